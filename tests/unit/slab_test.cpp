// Object caches: classes, arrays, slabs, poison.
#include "mm/slab.hpp"

#include <gmock/gmock.h>

#include <map>
#include <random>

#include "support/mm_fixture.hpp"

namespace weir {
namespace {

using test::MachineOptions;
using test::run_world;
using test::TestMachine;

std::string slab_faults(TestMachine& m) {
  std::string found;
  m.slab.survey([](void* arg, const char* id,
                   const char* text) { *static_cast<std::string*>(arg) += std::string(id) + ": " + text + "\n"; },
                &found);
  return found + m.faults();
}

TEST(Slab, ASizeIsServedByTheSmallestClassThatHoldsIt) {
  TestMachine m;
  const std::map<size_t, size_t> table = {
      {1, 32},      {32, 32},     {33, 64},     {64, 64},         {65, 96},         {96, 96},           {97, 128},
      {128, 128},   {129, 192},   {192, 192},   {193, 256},       {256, 256},       {257, 512},         {1024, 1024},
      {1025, 2048}, {4096, 4096}, {4097, 8192}, {131072, 131072}, {131073, 262144}, {4 << 20, 4 << 20},
  };
  for (const auto& [size, given] : table) {
    void* object = m.slab.kmalloc(size, GFP_KERNEL);
    ASSERT_NE(object, nullptr) << size;
    EXPECT_EQ(m.slab.ksize(object), given) << size;
    m.slab.kfree(object);
  }
  EXPECT_EQ(m.slab.kmalloc((4 << 20) + 1, GFP_KERNEL), nullptr);
  EXPECT_EQ(m.slab.kmalloc(0, GFP_KERNEL), ZERO_SIZE_PTR);
  m.slab.kfree(ZERO_SIZE_PTR);
  m.slab.kfree(nullptr);
  EXPECT_EQ(slab_faults(m), "");
}

TEST(Slab, ArrayLimitsFollowTheObjectSize) {
  TestMachine m;
  const std::map<uint32_t, uint32_t> table = {{32, 120},  {256, 120}, {257, 54},   {1024, 54}, {1025, 24},
                                              {4096, 24}, {4097, 8},  {131072, 8}, {131073, 1}};
  for (const auto& [size, limit] : table) {
    Result<KmemCache*> cache = m.slab.kmem_cache_create("test", size, {.align = 1});
    ASSERT_TRUE(cache);
    EXPECT_EQ((*cache)->limit, limit) << size;
    EXPECT_EQ((*cache)->batchcount, (limit + 1) / 2);
    EXPECT_TRUE(m.slab.kmem_cache_destroy(**cache));
  }
}

TEST(Slab, The121stFreeOfASmallObjectMovesABatch) {
  TestMachine m;
  KmemCache* cache = *m.slab.kmem_cache_create("small", 64, {});
  std::vector<void*> objects;
  while (objects.size() < 180 || m.slab.info(*cache).cached > 0)
    objects.push_back(m.slab.kmem_cache_alloc(*cache, GFP_KERNEL));
  for (int i = 0; i < 120; ++i) m.slab.kmem_cache_free(*cache, objects[static_cast<size_t>(i)]);
  EXPECT_EQ(m.slab.info(*cache).cached, 120u);
  EXPECT_EQ(m.slab.info(*cache).active_objs, objects.size());
  m.slab.kmem_cache_free(*cache, objects[120]);
  EXPECT_EQ(m.slab.info(*cache).cached, 61u);
  EXPECT_EQ(m.slab.info(*cache).active_objs, objects.size() - 60);
  EXPECT_EQ(slab_faults(m), "");
}

TEST(Slab, TheLastFreedObjectIsTheNextHandedOut) {
  TestMachine m;
  void* a = m.slab.kmalloc(100, GFP_KERNEL);
  void* b = m.slab.kmalloc(100, GFP_KERNEL);
  m.slab.kfree(a);
  m.slab.kfree(b);
  EXPECT_EQ(m.slab.kmalloc(100, GFP_KERNEL), b);
  EXPECT_EQ(m.slab.kmalloc(100, GFP_KERNEL), a);
}

TEST(Slab, ZeroedMeansZeroed) {
  TestMachine m;
  void* p = m.slab.kmalloc(500, GFP_KERNEL);
  std::memset(p, 0xff, 500);
  m.slab.kfree(p);
  auto* q = static_cast<std::byte*>(m.slab.kzalloc(500, GFP_KERNEL));
  ASSERT_EQ(q, p);
  EXPECT_TRUE(std::all_of(q, q + 500, [](std::byte b) { return b == std::byte{0}; }));
}

TEST(Slab, SlabsBeginAtDifferentColours) {
  TestMachine m;
  KmemCache* cache = *m.slab.kmem_cache_create("coloured", 1500, {});
  std::set<uintptr_t> starts;
  for (int i = 0; i < 60; ++i) {
    auto p = reinterpret_cast<uintptr_t>(m.slab.kmem_cache_alloc(*cache, GFP_KERNEL));
    starts.insert(p % (PAGE_SIZE << cache->gfporder));
  }
  EXPECT_GT(cache->colours, 0u);
  EXPECT_EQ(starts.size(), cache->num * (cache->colours + 1));
}

TEST(Slab, ADestroyWithLiveObjectsIsRefused) {
  TestMachine m;
  KmemCache* cache = *m.slab.kmem_cache_create("refused", 200, {});
  void* object = m.slab.kmem_cache_alloc(*cache, GFP_KERNEL);
  EXPECT_EQ(m.slab.kmem_cache_destroy(*cache).error(), Errno::busy);
  m.slab.kmem_cache_free(*cache, object);
  EXPECT_TRUE(m.slab.kmem_cache_destroy(*cache));
  EXPECT_EQ(slab_faults(m), "");
}

TEST(Slab, SizesThatCannotBeAreRefused) {
  TestMachine m;
  EXPECT_EQ(m.slab.kmem_cache_create("none", 0, {}).error(), Errno::inval);
  EXPECT_EQ(m.slab.kmem_cache_create("huge", (4 << 20) + 1, {}).error(), Errno::inval);
  EXPECT_EQ(m.slab.kmem_cache_create("crooked", 8, {.align = 24}).error(), Errno::inval);
}

TEST(Slab, EverythingGoesBackWhenEverythingIsFreed) {
  TestMachine m;
  const auto before = m.buddyinfo(ZoneType::DMA32);
  const int64_t slab_before = m.vmstat.node_page_state(NodeStat::nr_slab_unreclaimable);
  const int64_t reclaimable_before = m.vmstat.node_page_state(NodeStat::nr_slab_reclaimable);
  KmemCache* cache = *m.slab.kmem_cache_create("all", 300, {.reclaimable = Slab::Reclaimable::yes});
  std::vector<void*> objects;
  for (int i = 0; i < 5000; ++i) objects.push_back(m.slab.kmem_cache_alloc(*cache, GFP_KERNEL));
  const Slab::CacheInfo info = m.slab.info(*cache);
  EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_slab_reclaimable) - reclaimable_before,
            static_cast<int64_t>(info.num_slabs * info.pagesperslab));
  EXPECT_EQ(info.active_objs - info.cached, 5000u);
  EXPECT_EQ(slab_faults(m), "");
  for (void* object : objects) m.slab.kmem_cache_free(*cache, object);
  EXPECT_TRUE(m.slab.kmem_cache_destroy(*cache));
  m.slab.shrink_all();
  EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_slab_unreclaimable), slab_before);
  EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_slab_reclaimable), reclaimable_before);
  uint64_t free_before = 0, free_after = 0;
  const auto after = m.buddyinfo(ZoneType::DMA32);
  for (size_t o = 0; o < after.size(); ++o) free_before += before[o] << o, free_after += after[o] << o;
  EXPECT_EQ(free_after, free_before);
}

TEST(Slab, AnIdleCacheShrinksToNothingInAFewPasses) {
  TestMachine m;
  KmemCache* cache = *m.slab.kmem_cache_create("idle", 128, {});
  std::vector<void*> objects;
  for (int i = 0; i < 1000; ++i) objects.push_back(m.slab.kmem_cache_alloc(*cache, GFP_KERNEL));
  for (void* object : objects) m.slab.kmem_cache_free(*cache, object);
  int passes = 0;
  while (m.slab.info(*cache).num_slabs > 0 && passes < 40) {
    m.slab.cache_reap(CpuId(0));
    ++passes;
  }
  EXPECT_LE(passes, 12);
  EXPECT_GE(passes, 3);
  EXPECT_EQ(slab_faults(m), "");
}

TEST(Slab, ATouchedArrayIsLeftAlone) {
  TestMachine m;
  KmemCache* cache = *m.slab.kmem_cache_create("busy", 128, {});
  std::vector<void*> objects;
  for (int i = 0; i < 60; ++i) objects.push_back(m.slab.kmem_cache_alloc(*cache, GFP_KERNEL));
  for (void* object : objects) m.slab.kmem_cache_free(*cache, object);
  const uint64_t cached = m.slab.info(*cache).cached;
  for (int pass = 0; pass < 5; ++pass) {
    void* object = m.slab.kmem_cache_alloc(*cache, GFP_KERNEL);
    m.slab.kmem_cache_free(*cache, object);
    m.slab.cache_reap(CpuId(0));
    EXPECT_EQ(m.slab.info(*cache).cached, cached);
  }
}

TEST(SlabDeathTest, DebugCachesCatchUseAfterFree) {
  TestMachine m;
  KmemCache* cache = *m.slab.kmem_cache_create("debugged", 40, {.debug = true});
  auto* p = static_cast<std::byte*>(m.slab.kmem_cache_alloc(*cache, GFP_KERNEL));
  EXPECT_EQ(p[0], std::byte{0x5a});
  m.slab.kmem_cache_free(*cache, p);
  EXPECT_EQ(p[0], std::byte{0x6b});
  EXPECT_EQ(p[39], std::byte{0xa5});
  p[3] = std::byte{1};
  EXPECT_DEATH((void)m.slab.kmem_cache_alloc(*cache, GFP_KERNEL), "use after free");
}

TEST(SlabDeathTest, DebugCachesCatchOverrunsAndDoubleFrees) {
  TestMachine m;
  KmemCache* cache = *m.slab.kmem_cache_create("debugged", 40, {.align = 64, .debug = true});
  auto* p = static_cast<std::byte*>(m.slab.kmem_cache_alloc(*cache, GFP_KERNEL));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % 64, 0u);
  const std::byte kept = p[40];
  p[40] = std::byte{1};
  EXPECT_DEATH(m.slab.kmem_cache_free(*cache, p), "beyond its end");
  p[40] = kept;
  m.slab.kmem_cache_free(*cache, p);
  EXPECT_DEATH(m.slab.kmem_cache_free(*cache, p), "double free");
}

TEST(SlabDeathTest, AnObjectOfAnotherCacheIsRefused) {
  TestMachine m;
  KmemCache* cache = *m.slab.kmem_cache_create("mine", 40, {});
  void* other = m.slab.kmalloc(40, GFP_KERNEL);
  EXPECT_DEATH(m.slab.kmem_cache_free(*cache, other), "another cache");
#ifdef WEIR_DEBUG
  EXPECT_DEATH(m.slab.kfree(static_cast<std::byte*>(other) + 8), "first byte");
#endif
}

TEST(Slab, RandomUseKeepsObjectsApart) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  TestMachine m;
  struct Live {
    std::byte* at;
    size_t size;
    std::byte fill;
  };
  std::vector<Live> live;
  for (int step = 0; step < 20000; ++step) {
    if (live.empty() || rng() % 5 < 3) {
      const size_t size = 1 + rng() % (rng() % 16 == 0 ? 20000 : 600);
      auto* p = static_cast<std::byte*>(m.slab.kmalloc(size, GFP_NOWAIT | __GFP_NOWARN));
      if (p == nullptr) continue;
      const auto fill = static_cast<std::byte>(rng());
      std::memset(p, static_cast<int>(fill), size);
      live.push_back({p, size, fill});
    } else {
      std::swap(live[rng() % live.size()], live.back());
      const Live l = live.back();
      live.pop_back();
      ASSERT_TRUE(std::all_of(l.at, l.at + l.size, [&](std::byte b) { return b == l.fill; })) << "step " << step;
      m.slab.kfree(l.at);
    }
    if (step % 2000 == 0) {
      ASSERT_EQ(slab_faults(m), "") << "step " << step;
    }
  }
  for (const Live& l : live) m.slab.kfree(l.at);
  m.slab.shrink_all();
  ASSERT_EQ(slab_faults(m), "");
}

TEST(Slab, ManyThreadsOnManyCpus) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    TestMachine m({.cpus = 3});
    KmemCache* cache = *m.slab.kmem_cache_create("shared", 72, {.debug = true});
    VirtualWorld world({.seed = seed, .cpus = 3, .preempt_one_in = 5});
    for (int t = 0; t < 4; ++t)
      world.spawn("user", [&, t] {
        std::vector<std::byte*> mine;
        for (int i = 0; i < 300; ++i) {
          auto* p = static_cast<std::byte*>(m.slab.kmem_cache_alloc(*cache, GFP_KERNEL));
          ASSERT_NE(p, nullptr);
          std::memset(p, t, 72);
          mine.push_back(p);
          if (i % 3 == 2) {
            for (int b = 0; b < 72; ++b) ASSERT_EQ(mine.front()[b], static_cast<std::byte>(t));
            m.slab.kmem_cache_free(*cache, mine.front());
            mine.erase(mine.begin());
          }
          if (i % 50 == 0) m.slab.kmem_cache_shrink(*cache);
        }
        for (std::byte* p : mine) m.slab.kmem_cache_free(*cache, p);
      });
    EXPECT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
    EXPECT_TRUE(m.slab.kmem_cache_destroy(*cache));
    EXPECT_EQ(slab_faults(m), "");
  }
}

}  // namespace
}  // namespace weir
