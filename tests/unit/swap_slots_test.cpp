// The swap slots cache (mm/swap_slots.cpp).
#include "mm/swap_slots.hpp"

#include <gtest/gtest.h>

#include <random>

#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

void run(std::function<void()> fn) { run_world({.log = no_log}, std::move(fn)); }

TEST(SwapSlots, SixtyFourPagesTakeTheAreaLockOnce) {
  SwapMachine m;
  run([&] {
    m.add_area({.pages = 4096});
    Trace trace;
    for (unsigned i = 0; i < SWAP_SLOTS_CACHE_SIZE; ++i) ASSERT_TRUE(m.slots.get_swap_page());
    EXPECT_EQ(trace.count("get_swap_pages"), 1u);
    EXPECT_EQ(m.event(VmEvent::swap_slots_refill), 1u);
    EXPECT_EQ(m.event(VmEvent::swap_slots_cached), SWAP_SLOTS_CACHE_SIZE);
    ASSERT_TRUE(m.slots.get_swap_page());
    EXPECT_EQ(trace.count("get_swap_pages"), 2u);
  });
}

TEST(SwapSlots, SixtyFourFreedSlotsGoBackInOneGo) {
  SwapMachine m;
  run([&] {
    m.add_area({.pages = 4096});
    std::vector<SwpEntry> mine;
    for (unsigned i = 0; i < SWAP_SLOTS_CACHE_SIZE; ++i) mine.push_back(m.slots.get_swap_page());
    Trace trace;
    const int64_t before = m.files.nr_swap_pages();
    for (size_t i = 0; i + 1 < mine.size(); ++i) m.files.swapcache_free(mine[i]);
    EXPECT_EQ(m.files.nr_swap_pages(), before);
    EXPECT_EQ(m.slots.held(0), SWAP_SLOTS_CACHE_SIZE - 1);
    m.files.swapcache_free(mine.back());
    EXPECT_EQ(m.files.nr_swap_pages(), before + SWAP_SLOTS_CACHE_SIZE);
    EXPECT_EQ(m.slots.held(0), 0u);
    EXPECT_EQ(trace.count("swapcache_free_entries"), 1u);
  });
}

TEST(SwapSlots, AFreedSlotIsNotTheNextOneTaken) {
  SwapMachine m;
  run([&] {
    m.add_area({.pages = 4096});
    const SwpEntry first = m.slots.get_swap_page();
    m.files.swapcache_free(first);
    for (int i = 0; i < 500; ++i) EXPECT_NE(m.slots.get_swap_page(), first);
  });
}

TEST(SwapSlots, TheLastSlotOfAFullAreaIsStillHandedOut) {
  SwapMachine m({.ram = Bytes(uint64_t{16} << 20), .cpus = 2});
  VirtualWorld world({.cpus = 2, .log = no_log});
  std::set<uint64_t> held;
  world.spawn("setup", [&] {
    m.add_area({.pages = 2000});
    // Both CPUs' caches hide slots while many are free.
    for (int t = 0; t < 2; ++t) {
      world.spawn("taker", [&] {
        for (;;) {
          const SwpEntry e = m.slots.get_swap_page();
          if (!e) break;
          ASSERT_TRUE(held.insert(e.val).second);
          weir::world().spend(1_us);
        }
      });
    }
  });
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished);
  EXPECT_EQ(held.size(), 1999u);
  EXPECT_EQ(m.files.nr_swap_pages(), 0);
}

TEST(SwapSlots, FewFreeSlotsSwitchTheCacheOffAndMoreSwitchItOn) {
  SwapMachine m;
  run([&] {
    m.add_area({.pages = 1000});
    std::vector<SwpEntry> mine;
    while (m.files.nr_swap_pages() >= THRESHOLD_DEACTIVATE_SWAP_SLOTS_CACHE) mine.push_back(m.slots.get_swap_page());
    EXPECT_GT(m.slots.held(0), 0u);
    mine.push_back(m.slots.get_swap_page());
    EXPECT_EQ(m.slots.held(0), 0u) << "switched off, so empty";
    // Just above the lower threshold it stays off.
    while (m.files.nr_swap_pages() <= THRESHOLD_ACTIVATE_SWAP_SLOTS_CACHE) {
      m.files.swapcache_free(mine.back());
      mine.pop_back();
      EXPECT_EQ(m.slots.held(0), 0u);
    }
    mine.push_back(m.slots.get_swap_page());
    EXPECT_GT(m.slots.held(0), 0u);
  });
}

TEST(SwapSlots, SlotsOfADeviceWithoutRoomAreGivenBack) {
  SwapMachine m;
  run([&] {
    TestDevice& full = m.add_area({.pages = 2000}, 10);
    TestDevice& other = m.add_area({.pages = 2000}, 1);
    EXPECT_EQ(swp_type(m.slots.get_swap_page()), m.type_of(full));
    EXPECT_EQ(m.slots.held(m.type_of(full)), SWAP_SLOTS_CACHE_SIZE - 1);
    full.room = false;
    EXPECT_EQ(swp_type(m.slots.get_swap_page()), m.type_of(other));
    EXPECT_EQ(m.slots.held(m.type_of(full)), 0u);
  });
}

TEST(SwapSlots, ADisabledCacheHoldsNothing) {
  SwapMachine m;
  run([&] {
    m.add_area({.pages = 2000});
    const SwpEntry e = m.slots.get_swap_page();
    m.slots.disable_swap_slots_cache();
    EXPECT_EQ(m.slots.held(0), 0u);
    EXPECT_EQ(m.files.nr_swap_pages(), 1998);
    m.files.swapcache_free(e);
    EXPECT_EQ(m.files.nr_swap_pages(), 1999);
  });
}

TEST(SwapSlots, SwapoffGetsEverySlotBackWhileOthersAllocate) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SwapMachine m({.ram = Bytes(uint64_t{16} << 20), .cpus = 2});
    VirtualWorld world({.seed = seed, .cpus = 2, .preempt_one_in = 4, .log = no_log});
    world.spawn("setup", [&] {
      m.add_area({.pages = 800}, 10);
      m.add_area({.pages = 800}, 1);
      world.spawn("user", [&] {
        std::mt19937_64 rng(seed);
        std::vector<SwpEntry> mine;
        for (int i = 0; i < 200; ++i) {
          if (const SwpEntry e = m.slots.get_swap_page()) mine.push_back(e);
          while (!mine.empty() && rng() % 3 != 0) {
            m.files.swapcache_free(mine.back());
            mine.pop_back();
          }
        }
        for (const SwpEntry e : mine) m.files.swapcache_free(e);
      });
      world.spawn("swapoff", [&] {
        Result<void> off;
        for (int tries = 0; tries < 1000; ++tries) {
          off = m.swapon.swapoff(0);
          if (off) break;
          ASSERT_EQ(off.error(), Errno::busy);
          weir::world().schedule_timeout(1_us);
        }
        EXPECT_TRUE(off);
      });
    });
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
    EXPECT_EQ(m.files.swap_info(0), nullptr);
    EXPECT_EQ(m.slots.held(0), 0u);
    EXPECT_EQ(m.files.nr_swap_pages(), 799 - static_cast<int64_t>(m.slots.held(1)));
    EXPECT_EQ(m.swap_faults(), "");
  }
}

}  // namespace
}  // namespace weir::test
