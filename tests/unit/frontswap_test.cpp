// A store before the swap areas (mm/frontswap.cpp) and the plainest one (mm/frontswap_frames.cpp).
#include <gtest/gtest.h>

#include <array>

#include "mm/frontswap_frames.hpp"
#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

using Threads = weir::MachineOptions::Threads;

/// Keeps pages in the test's memory, and refuses as it is told.
class TestStore final : public FrontswapOps {
 public:
  unsigned refuse_one_in = 0;  ///< 0: takes everything
  uint64_t random = 1;
  std::map<std::pair<unsigned, uint64_t>, std::vector<std::byte>> kept;
  uint64_t refused = 0, loaded = 0;
  bool broken = false;  ///< loads fail

  void init(unsigned type, uint64_t) override { invalidate_area(type); }
  Result<void> store(unsigned type, uint64_t offset, Content content) override {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    if (refuse_one_in != 0 && (random >> 33) % refuse_one_in == 0) {
      ++refused;
      return Errno::nomem;
    }
    EXPECT_EQ(kept.count({type, offset}), 0u) << "an older copy was not dropped";
    kept[{type, offset}].assign(content.bytes, content.bytes + PAGE_SIZE);
    return {};
  }
  Result<void> load(unsigned type, uint64_t offset, Content content) override {
    if (broken) return Errno::io;
    const auto it = kept.find({type, offset});
    EXPECT_NE(it, kept.end());
    std::memcpy(content.bytes, it->second.data(), PAGE_SIZE);
    ++loaded;
    return {};
  }
  void invalidate_page(unsigned type, uint64_t offset) override { EXPECT_EQ(kept.erase({type, offset}), 1u); }
  void invalidate_area(unsigned type) override {
    std::erase_if(kept, [&](const auto& entry) { return entry.first.first == type; });
  }
};

struct Front {
  TestStore store;  // outlives the machine
  ReclaimWorld w{{.threads = Threads::none, .page_cluster = 0}};
  TestDevice* d = nullptr;
  explicit Front(unsigned refuse_one_in = 0) {
    store.refuse_one_in = refuse_one_in;
    w.m().swap_files.frontswap().frontswap_register_ops(&store);
    d = &w.add_area({.pages = 4096});
  }
  const Frontswap::Stats& stats() { return w.m().swap_files.frontswap().stats(); }
  VirtAddr push_out(Task& t, uint64_t pages, uint64_t seed) {
    const VirtAddr base = w.map(t, pages);
    w.fill(t, base, pages, seed);
    for (int i = 0; i < 2; ++i) {
      w.make_old(t, base, pages);
      w.reclaim(static_cast<int64_t>(pages));
    }
    return base;
  }
};

TEST(Frontswap, WhatTheStoreTakesTheDeviceDoesNotSee) {
  Front f;
  f.w.run([&] {
    Task& t = f.w.task("a");
    const VirtAddr base = f.push_out(t, 200, 5);
    EXPECT_TRUE(f.d->written.empty());
    EXPECT_GT(f.store.kept.size(), 150u);
    EXPECT_EQ(f.w.m().swap_files.swap_info(0)->frontswap_pages.load(), f.store.kept.size());
    EXPECT_EQ(f.stats().succ_stores.load(), f.store.kept.size());
    EXPECT_EQ(f.w.broken(), "");
    f.w.expect(t, base, 200, 5);
    EXPECT_TRUE(f.d->read.empty());
    EXPECT_EQ(f.stats().loads.load(), f.store.loaded);
  });
}

TEST(Frontswap, WithAStoreThatRefusesAtRandomEveryPageReadsBackRight) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Front f(3);
    f.store.random = seed;
    f.w.run([&] {
      Task& t = f.w.task("a");
      const VirtAddr base = f.w.map(t, 300);
      for (uint64_t round = 0; round < 3; ++round) {
        f.w.fill(t, base, 300, round * 1000);
        for (int i = 0; i < 2; ++i) {
          f.w.make_old(t, base, 300);
          f.w.reclaim(300);
        }
        f.w.expect(t, base, 300, round * 1000);
        EXPECT_EQ(f.w.broken(), "");
      }
      EXPECT_GT(f.store.refused, 50u);
      EXPECT_EQ(f.d->written.size(), f.store.refused) << "the device gets what is refused";
      EXPECT_EQ(f.stats().failed_stores.load(), f.store.refused);
    });
  }
}

TEST(Frontswap, AFreeSlotAndAnAreaThatGoesLeaveNothingInTheStore) {
  Front f;
  f.w.run([&] {
    Task& t = f.w.task("a");
    const VirtAddr base = f.push_out(t, 200, 5);
    ASSERT_TRUE(f.w.m().spaces.munmap(*t.mm, base, 100 * PAGE_SIZE).ok());
    f.w.m().swap_slots.drain_slots_cache();
    EXPECT_EQ(f.w.broken(), "");
    EXPECT_LE(f.store.kept.size(), 100u);
    EXPECT_GT(f.stats().invalidates.load(), 50u);
    ASSERT_TRUE(f.w.m().swapon.swapoff(0).ok());
    EXPECT_TRUE(f.store.kept.empty());
    for (uint64_t i = 100; i < 200; ++i) EXPECT_EQ(f.w.get(t, ReclaimWorld::at(base, i)), 5 + i);
  });
}

TEST(Frontswap, WrittenThroughAPageIsInBothAndReadFromTheStore) {
  Front f;
  f.w.m().swap_files.frontswap().frontswap_writethrough(true);
  f.w.run([&] {
    Task& t = f.w.task("a");
    const VirtAddr base = f.push_out(t, 100, 5);
    EXPECT_EQ(f.d->written.size(), f.store.kept.size());
    f.w.expect(t, base, 100, 5);
    EXPECT_TRUE(f.d->read.empty());
  });
}

TEST(Frontswap, WhatTheStoreLosesIsReportedAndKillsNobodyElse) {
  Front f;
  f.w.run([&] {
    Task& t = f.w.task("a");
    const VirtAddr base = f.push_out(t, 50, 5);
    f.store.broken = true;
    uint64_t i = 0;
    while (i < 50 && !is_swap_pte(f.w.pte(t, ReclaimWorld::at(base, i)))) ++i;
    ASSERT_LT(i, 50u);
    uint64_t value = 0;
    EXPECT_NE(f.w.load(t, ReclaimWorld::at(base, i), value), FaultResult::done);
    EXPECT_EQ(f.w.event(VmEvent::swap_read_error), 1u);
    EXPECT_EQ(f.w.m().swap_files.swap_info(0)->read_errors.load(), 1u);
    f.store.broken = false;
  });
}

TEST(FrontswapFrames, KeepsPagesUpToItsLimitAndGivesEveryFrameBack) {
  SwapMachine m;
  PoolFrames frames(m.pages);
  run_world({}, [&] {
    FrontswapFrames store(m.slab, frames, PageCount(10));
    store.init(0, 1000);
    std::array<std::byte, PAGE_SIZE> page{}, back{};
    unsigned taken = 0;
    for (uint64_t i = 1; i <= 20; ++i) {
      std::memcpy(page.data() + 8 * i, &i, sizeof i);
      taken += store.store(0, i, {.bytes = page.data()}).ok() ? 1 : 0;
    }
    EXPECT_EQ(taken, 10u);
    EXPECT_EQ(store.frames_held(), PageCount(10));
    // One word needs no frame.
    page.fill(std::byte{0x5a});
    EXPECT_TRUE(store.store(0, 500, {.bytes = page.data()}).ok());
    EXPECT_TRUE(store.load(0, 500, {.bytes = back.data()}).ok());
    EXPECT_EQ(back, page);
    EXPECT_TRUE(store.load(0, 3, {.bytes = back.data()}).ok());
    EXPECT_EQ(back[24], std::byte{3});
    EXPECT_EQ(back[32], std::byte{0});
    EXPECT_EQ(store.load(0, 15, {.bytes = back.data()}).error(), Errno::io);
    EXPECT_EQ(store.store(0, 5000, {.bytes = page.data()}).error(), Errno::nomem) << "behind the end";
    store.invalidate_page(0, 3);
    EXPECT_EQ(store.frames_held(), PageCount(9));
    store.invalidate_area(0);
    EXPECT_EQ(store.frames_held(), PageCount(0));
  });
}

TEST(FrontswapFrames, AsATierBeforeADevice) {
  ReclaimWorld w({.threads = Threads::none, .page_cluster = 0});
  FrontswapFrames* store = nullptr;
  w.run([&] { store = new FrontswapFrames(w.m().slab, w.m().pool_frames, PageCount(100)); });
  w.m().swap_files.frontswap().frontswap_register_ops(store);
  TestDevice& d = w.add_area({.pages = 4096});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr base = w.map(t, 400);
    for (uint64_t i = 0; i < 400; ++i) {
      w.put(t, ReclaimWorld::at(base, i), 9 + i);
    }
    for (int i = 0; i < 2; ++i) {
      w.make_old(t, base, 400);
      w.reclaim(400);
    }
    EXPECT_EQ(store->frames_held(), PageCount(100));
    EXPECT_FALSE(d.written.empty());
    EXPECT_EQ(w.broken(), "");
    w.expect(t, base, 400, 9);
    w.exit(t);
    w.m().swap_slots.drain_slots_cache();
    ASSERT_TRUE(w.m().swapon.swapoff(0).ok());
    EXPECT_EQ(store->frames_held(), PageCount(0));
    delete store;
    w.m().swap_files.frontswap().frontswap_register_ops(nullptr);
  });
}

}  // namespace
}  // namespace weir::test
