#include "block/zsmalloc.hpp"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

#include "kernel/virtual/virtual_world.hpp"
#include "support/frame_source.hpp"

namespace weir {
namespace {

struct Object {
  ZsHandle handle;
  uint32_t size;
  uint8_t pattern;
};

void fill(ZsPool& pool, const Object& object) {
  const std::vector<std::byte> bytes(object.size, std::byte{object.pattern});
  pool.zs_map_object(object.handle, object.size).copy_in(bytes.data());
}

bool intact(const ZsPool& pool, const Object& object) {
  std::vector<std::byte> bytes(object.size);
  pool.zs_map_object(object.handle, object.size).copy_out(bytes.data());
  for (std::byte b : bytes)
    if (b != std::byte{object.pattern}) return false;
  return true;
}

TEST(Zsmalloc, ClassesAreSixteenBytesApartAndWasteLittle) {
  for (uint32_t size = 1; size <= ZS_MAX_ALLOC_SIZE; ++size) {
    const uint32_t object = ZsPool::zs_object_size(size);
    const uint32_t frames = ZsPool::zs_pages_per_zspage(size);
    const uint32_t objects = ZsPool::zs_objs_per_zspage(size);
    ASSERT_GE(object, size);
    ASSERT_EQ(object % 16, 0u);
    ASSERT_GE(object, ZS_MIN_ALLOC_SIZE);
    ASSERT_LE(frames, ZS_MAX_PAGES_PER_ZSPAGE);
    ASSERT_LE(object * objects, frames * PAGE_SIZE);
    // A class that a smaller one was merged into gives nothing away: as many objects as the finest class would have.
    const uint32_t fine = size <= ZS_MIN_ALLOC_SIZE ? ZS_MIN_ALLOC_SIZE : (size + 15) / 16 * 16;
    ASSERT_EQ(objects, frames * PAGE_SIZE / fine) << size;
    for (uint32_t other = 1; other <= ZS_MAX_PAGES_PER_ZSPAGE; ++other)
      ASSERT_LE(frames * PAGE_SIZE % fine * other, other * PAGE_SIZE % fine * frames)
          << size << " with " << other << " frames";
  }
  EXPECT_EQ(ZsPool::zs_pages_per_zspage(4096), 1u);
  EXPECT_EQ(ZsPool::zs_objs_per_zspage(4096), 1u);
  EXPECT_EQ(ZsPool::zs_pages_per_zspage(3072), 3u);
  EXPECT_EQ(ZsPool::zs_objs_per_zspage(3072), 4u);
}

TEST(Zsmalloc, RefusesNothingAndMoreThanAPage) {
  TestFrameSource frames{PageCount(4)};
  ZsPool pool(frames);
  EXPECT_EQ(pool.zs_malloc(0).error(), Errno::inval);
  EXPECT_EQ(pool.zs_malloc(4097).error(), Errno::inval);
  EXPECT_EQ(frames.out(), PageCount(0));
}

TEST(Zsmalloc, AnObjectThatCrossesAFrameComesInTwoPieces) {
  TestFrameSource frames{PageCount(16)};
  ZsPool pool(frames);
  // 3072: four objects in three frames. The second one lies at 3072…6143.
  const ZsHandle first = *pool.zs_malloc(3072);
  const ZsHandle second = *pool.zs_malloc(3072);
  const ZsObject whole = pool.zs_map_object(first, 3072);
  EXPECT_EQ(whole.head_bytes, 3072u);
  EXPECT_EQ(whole.tail, nullptr);
  const ZsObject crossing = pool.zs_map_object(second, 3072);
  EXPECT_EQ(crossing.head_bytes, 1024u);
  EXPECT_EQ(crossing.tail_bytes, 2048u);
  const ZsObject front = pool.zs_map_object(second, 1024);
  EXPECT_EQ(front.head, crossing.head);
  EXPECT_EQ(front.tail, nullptr);
  pool.zs_free(first);
  pool.zs_free(second);
}

TEST(Zsmalloc, AnEmptiedZspageGivesItsFramesBackAtOnce) {
  TestFrameSource frames{PageCount(64)};
  ZsPool pool(frames);
  std::vector<ZsHandle> objects;
  for (int i = 0; i < 8; ++i) objects.push_back(*pool.zs_malloc(3072));  // two zspages
  EXPECT_EQ(frames.out(), PageCount(2 * 3 + 1));                         // and a frame of descriptors
  for (int i = 0; i < 4; ++i) pool.zs_free(objects[i]);
  EXPECT_EQ(frames.out(), PageCount(3 + 1));
  for (int i = 4; i < 8; ++i) pool.zs_free(objects[i]);
  EXPECT_EQ(frames.out(), PageCount(0));
}

TEST(Zsmalloc, AlmostFullZspagesAreFilledBeforeAlmostEmptyOnes) {
  TestFrameSource frames{PageCount(64)};
  ZsPool pool(frames);
  std::vector<ZsHandle> objects;
  const uint32_t each = ZsPool::zs_objs_per_zspage(512);
  for (uint32_t i = 0; i < 2 * each; ++i) objects.push_back(*pool.zs_malloc(512));
  pool.zs_free(objects[0]);  // the first zspage lacks one, the second all but one
  for (uint32_t i = each; i < 2 * each - 1; ++i) pool.zs_free(objects[i]);
  const PageCount before = frames.out();
  const ZsHandle again = *pool.zs_malloc(512);
  pool.zs_free(objects[2 * each - 1]);
  EXPECT_LT(frames.out(), before);  // the nearly empty one was left alone, and is empty now
  pool.zs_free(again);
  for (uint32_t i = 1; i < each; ++i) pool.zs_free(objects[i]);
  EXPECT_EQ(frames.out(), PageCount(0));
}

TEST(Zsmalloc, TheLimitHoldsAndLeavesNothingBehind) {
  TestFrameSource frames{PageCount(64)};
  ZsPool pool(frames);
  pool.set_limit(PageCount(6));  // descriptors and five pages
  std::vector<ZsHandle> objects;
  for (;;) {
    Result<ZsHandle> object = pool.zs_malloc(4096);
    if (!object) {
      EXPECT_EQ(object.error(), Errno::nomem);
      break;
    }
    objects.push_back(*object);
  }
  EXPECT_EQ(objects.size(), 5u);
  EXPECT_EQ(frames.max_out(), PageCount(6));
  EXPECT_EQ(pool.counters(), pool.recount());
  for (ZsHandle object : objects) pool.zs_free(object);
  EXPECT_EQ(frames.out(), PageCount(0));
}

TEST(Zsmalloc, AFrameThatCannotBeHadAtAnyPointLeavesThePoolAsItWas) {
  TestFrameSource frames{PageCount(64)};
  for (int64_t n = 0;; ++n) {
    ZsPool pool(frames);
    frames.fail_after(n);
    Result<ZsHandle> object = pool.zs_malloc(3072);
    frames.fail_after(-1);
    EXPECT_EQ(pool.counters(), pool.recount());
    if (object.ok()) {
      EXPECT_EQ(n, 4);  // descriptors and three frames
      pool.zs_free(*object);
      break;
    }
    EXPECT_EQ(frames.out(), PageCount(0)) << "after " << n << " frames";
  }
}

TEST(Zsmalloc, ObjectsOfAllSizesNeverOverlap) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    TestFrameSource frames{PageCount(4096)};
    ZsPool pool(frames);
    std::vector<Object> objects;
    std::set<uint64_t> handles;
    for (int step = 0; step < 20000; ++step) {
      // Grows, then shrinks, so that zspages of all groups come and go.
      const bool grow = random() % 100 < (step / 4000 % 2 == 0 ? 65u : 35u);
      if (grow || objects.empty()) {
        const uint32_t size = random() % 4 == 0 ? 1 + random() % 4096 : 1024 + random() % 2049;
        Result<ZsHandle> handle = pool.zs_malloc(size);
        ASSERT_TRUE(handle.ok());
        ASSERT_NE(handle->v, 0u);
        ASSERT_TRUE(handles.insert(handle->v).second);
        objects.push_back({*handle, size, static_cast<uint8_t>(random())});
        fill(pool, objects.back());
      } else {
        const size_t victim = random() % objects.size();
        ASSERT_TRUE(intact(pool, objects[victim])) << "step " << step;
        pool.zs_free(objects[victim].handle);
        handles.erase(objects[victim].handle.v);
        objects[victim] = objects.back();
        objects.pop_back();
      }
      if (step % 1000 == 0) {
        const ZsRecount counted = pool.recount();
        ASSERT_EQ(counted, pool.counters());
        ASSERT_EQ(counted.objects, objects.size());
        ASSERT_EQ(counted.pages, frames.out());
        ASSERT_EQ(counted.broken, 0u);
      }
    }
    for (const Object& object : objects) {
      ASSERT_TRUE(intact(pool, object));
      pool.zs_free(object.handle);
    }
    EXPECT_EQ(frames.out(), PageCount(0));
  }
}

TEST(Zsmalloc, SeveralThreadsShareAPoolUnderAnySchedule) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    VirtualWorld world({.seed = seed, .cpus = 2, .preempt_one_in = 3});
    TestFrameSource frames{PageCount(256)};
    ZsPool pool(frames);
    int intact_objects = 0;
    for (int t = 0; t < 3; ++t) {
      world.spawn("user", [&, t] {
        std::mt19937_64 random(seed * 10 + t);
        std::vector<Object> objects;
        for (int step = 0; step < 60; ++step) {
          if (random() % 2 == 0 || objects.empty()) {
            const uint32_t size = 2048 + random() % 64;  // few classes, so that they meet
            Result<ZsHandle> handle = pool.zs_malloc(size);
            if (!handle) continue;
            objects.push_back({*handle, size, static_cast<uint8_t>(random())});
            fill(pool, objects.back());
          } else {
            intact_objects += intact(pool, objects.back());
            pool.zs_free(objects.back().handle);
            objects.pop_back();
          }
        }
        for (const Object& object : objects) {
          intact_objects += intact(pool, object);
          pool.zs_free(object.handle);
        }
      });
    }
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
    EXPECT_GT(intact_objects, 60);
    EXPECT_EQ(frames.out(), PageCount(0));
    EXPECT_EQ(pool.recount(), ZsRecount{});
  }
}

}  // namespace
}  // namespace weir
