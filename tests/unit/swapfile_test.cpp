// Swap maps, clusters, areas by priority (mm/swapfile.cpp).
#include "mm/swapfile.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

class SwapfileTest : public testing::Test {
 protected:
  void run(std::function<void()> fn, VirtualWorld::Options options = {}) {
    run_world(std::move(options), std::move(fn), &log);
  }
  /// Takes up to n slots one by one, past the slots cache.
  std::vector<SwpEntry> take(unsigned n) {
    std::vector<SwpEntry> got;
    for (SwpEntry e; got.size() < n && m.files.get_swap_pages(1, &e) == 1;) got.push_back(e);
    return got;
  }
  static std::vector<uint64_t> offsets(const std::vector<SwpEntry>& entries) {
    std::vector<uint64_t> found;
    for (const SwpEntry e : entries) found.push_back(swp_offset(e));
    return found;
  }
  SwapMachine m;
  std::vector<std::string> log;
};

TEST_F(SwapfileTest, EveryGoodSlotIsHandedOutOnceAndTheHeaderNever) {
  run([&] {
    m.add_area({.pages = 100});
    std::vector<uint64_t> got = offsets(take(1000));
    std::sort(got.begin(), got.end());
    std::vector<uint64_t> all(99);
    for (uint64_t i = 0; i < 99; ++i) all[i] = i + 1;
    EXPECT_EQ(got, all);
    EXPECT_EQ(m.files.nr_swap_pages(), 0);
    EXPECT_EQ(m.files.swap_info(0)->inuse_pages, 99u);
    EXPECT_EQ(m.swap_faults(), "");
  });
}

TEST_F(SwapfileTest, SlotsTakenOneAfterAnotherLieInARow) {
  for (const bool solid : {true, false}) {
    run([&] {
      TestDevice& d = m.add_area({.pages = 4096, .nonrotational = solid}, 5);
      const std::vector<uint64_t> got = offsets(take(600));
      // The first cluster has the header's slot and is never whole; within a cluster slots ascend.
      for (size_t i = 1; i < got.size(); ++i)
        EXPECT_TRUE(got[i] == got[i - 1] + 1 || got[i] % SWAPFILE_CLUSTER == 0) << got[i - 1] << " then " << got[i];
      for (const uint64_t o : got) m.files.swapcache_free(swp_entry(m.type_of(d), o));
      ASSERT_TRUE(m.swapon.swapoff(m.type_of(d)));
    });
  }
}

TEST_F(SwapfileTest, TheHandOfADiskLooksForAFreeStretch) {
  run([&] {
    m.add_area({.pages = 2048, .nonrotational = false});
    std::vector<SwpEntry> got = take(1000);
    // Every other slot of the first 512 is free again, and 600…900 in one piece.
    for (uint64_t o = 2; o < 512; o += 2) m.files.swapcache_free(swp_entry(0, o));
    for (uint64_t o = 600; o < 900; ++o) m.files.swapcache_free(swp_entry(0, o));
    SwapInfo& si = *m.files.swap_info(0);
    si.cluster_nr = 0;  // the stretch it is in is used up
    EXPECT_EQ(offsets(take(3)), (std::vector<uint64_t>{600, 601, 602}));
    EXPECT_EQ(m.swap_faults(), "");
  });
}

TEST_F(SwapfileTest, EachCpuFillsAClusterOfItsOwn) {
  SwapMachine two({.ram = Bytes(uint64_t{16} << 20), .cpus = 2});
  VirtualWorld world({.cpus = 2, .log = no_log});
  std::map<uint16_t, std::set<uint64_t>> clusters;
  world.spawn("setup", [&] {
    two.add_area({.pages = 8192});
    for (int t = 0; t < 2; ++t) {
      world.spawn("taker", [&] {
        for (int i = 0; i < 100; ++i) {
          SwpEntry e;
          ASSERT_EQ(two.files.get_swap_pages(1, &e), 1u);
          clusters[current().cpu.v].insert(swp_offset(e) / SWAPFILE_CLUSTER);
          weir::world().spend(1_us);
        }
      });
    }
  });
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished);
  ASSERT_EQ(clusters.size(), 2u);
  EXPECT_EQ(clusters[0].size(), 1u);
  EXPECT_EQ(clusters[1].size(), 1u);
  EXPECT_NE(clusters[0], clusters[1]);
}

TEST_F(SwapfileTest, AFreedClusterIsFilledAnew) {
  run([&] {
    m.add_area({.pages = 1 + 255 + 256 * 3});
    const std::vector<SwpEntry> all = take(5000);
    EXPECT_EQ(all.size(), 255u + 256 * 3);
    for (uint64_t o = 512; o < 768; ++o) m.files.swapcache_free(swp_entry(0, o));
    EXPECT_EQ(m.swap_faults(), "");
    std::vector<uint64_t> again = offsets(take(256));
    for (uint64_t i = 0; i < 256; ++i) EXPECT_EQ(again[i], 512 + i);
    EXPECT_EQ(take(1).size(), 0u);
    EXPECT_EQ(m.event(VmEvent::swap_cluster), 3u + 1) << "the header's cluster is never free";
  });
}

TEST_F(SwapfileTest, HigherPriorityFirstUntilItIsFull) {
  run([&] {
    TestDevice& low = m.add_area({.name = "low", .pages = 64}, 1);
    TestDevice& high = m.add_area({.name = "high", .pages = 33}, 10);
    TestDevice& none = m.add_area({.name = "auto", .pages = 64});
    const std::vector<SwpEntry> got = take(1000);
    ASSERT_EQ(got.size(), 32u + 63 + 63);
    for (size_t i = 0; i < got.size(); ++i) {
      const unsigned expected = m.type_of(i < 32 ? high : i < 95 ? low : none);
      EXPECT_EQ(swp_type(got[i]), expected) << i;
    }
  });
}

TEST_F(SwapfileTest, EqualPrioritiesTakeTurns) {
  run([&] {
    m.add_area({.pages = 64}, 3);
    m.add_area({.pages = 64}, 3);
    m.add_area({.pages = 64}, 3);
    const std::vector<SwpEntry> got = take(30);
    for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(swp_type(got[i]), i % 3);
  });
}

TEST_F(SwapfileTest, AutomaticPrioritiesFallFromMinusTwoAndMoveUpWhenOneLeaves) {
  run([&] {
    for (int i = 0; i < 4; ++i) m.add_area({.pages = 64});
    const auto prios = [&] {
      std::vector<int> found;
      for (unsigned type = 0; type < 4; ++type)
        if (const SwapInfo* si = m.files.swap_info(type)) found.push_back(si->prio);
      return found;
    };
    EXPECT_EQ(prios(), (std::vector<int>{-2, -3, -4, -5}));
    ASSERT_TRUE(m.swapon.swapoff(1));
    EXPECT_EQ(prios(), (std::vector<int>{-2, -3, -4}));
    // The type number that is free is used again, at the end of the queue.
    TestDevice& again = m.add_area({.pages = 64});
    EXPECT_EQ(m.type_of(again), 1u);
    EXPECT_EQ(prios(), (std::vector<int>{-2, -5, -3, -4}));
  });
}

TEST_F(SwapfileTest, AnAreaWhoseDeviceHasNoRoomIsPassedOver) {
  run([&] {
    TestDevice& full = m.add_area({.pages = 64}, 10);
    TestDevice& other = m.add_area({.pages = 64}, 1);
    full.room = false;
    EXPECT_TRUE(m.files.swap_has_room());
    EXPECT_EQ(swp_type(take(1).at(0)), m.type_of(other));
    other.room = false;
    EXPECT_FALSE(m.files.swap_has_room());
    EXPECT_EQ(take(1).size(), 0u);
    full.room = true;
    EXPECT_EQ(swp_type(take(1).at(0)), m.type_of(full));
  });
}

TEST_F(SwapfileTest, CopiesOfPagesInMemoryAreTheFirstToGoWhenTheDeviceHasNoRoom) {
  run([&] {
    TestDevice& full = m.add_area({.pages = 1024}, 10);
    TestDevice& other = m.add_area({.pages = 64}, 1);
    struct Asked {
      SwapMachine& m;
      TestDevice& full;
      unsigned room_after;
      std::vector<uint64_t> slots = {};
    } asked{m, full, 5};
    m.files.set_try_to_reclaim_swap(
        [](void* arg, SwpEntry e) {
          Asked& a = *static_cast<Asked*>(arg);
          a.slots.push_back(swp_offset(e));
          if (swp_offset(e) % 2 != 0) return false;  // its page is locked, say
          a.m.files.swapcache_free(e);
          a.full.room = a.slots.size() >= a.room_after;
          return true;
        },
        &asked);
    const std::vector<SwpEntry> held = take(20);
    ASSERT_EQ(offsets(held).front(), 256u);
    ASSERT_TRUE(m.files.swap_duplicate(held[2]));  // it has a user beside the cache
    full.room = false;
    EXPECT_EQ(swp_type(take(1).at(0)), m.type_of(full));
    EXPECT_EQ(asked.slots.size(), 19u) << "a batch, before the area is looked at again";
    EXPECT_EQ(std::count(asked.slots.begin(), asked.slots.end(), 258u), 0);
    EXPECT_EQ(m.event(VmEvent::swap_copy_freed), 9u);
    // Nothing is left that may go.
    full.room = false;
    asked.room_after = 1000;
    EXPECT_EQ(swp_type(take(1).at(0)), m.type_of(other));
    EXPECT_EQ(m.event(VmEvent::swap_copy_freed), 10u) << "the slot taken since";
  });
}

TEST_F(SwapfileTest, UsersAreCountedBeyondWhatTheMapHoldsAndBackToNone) {
  run([&] {
    m.add_area({.pages = 64});
    const std::vector<SwpEntry> e = take(2);
    // 63 fill the map's digit, 128 * 63 the next one: three digits and back.
    constexpr uint64_t MOST = 63 * 128 * 2 + 5;
    for (uint64_t users = 1; users <= MOST; ++users) {
      ASSERT_TRUE(m.files.swap_duplicate(e[0]));
      ASSERT_EQ(m.files.swp_swapcount(e[0]), users);
      if (users % 61 == 0) {
        ASSERT_TRUE(m.files.swap_duplicate(e[1]));
        ASSERT_EQ(m.files.swp_swapcount(e[1]), users / 61);
      }
      if (users % 997 == 0 || users < 130) {
        ASSERT_EQ(m.swap_faults(), "") << users;
      }
    }
    EXPECT_NE(m.files.swap_map_value(e[0]) & COUNT_CONTINUED, 0);
    for (uint64_t users = MOST; users-- > 0;) {
      m.files.swap_free(e[0]);
      ASSERT_EQ(m.files.swp_swapcount(e[0]), users);
      if (users % 997 == 0 || users < 130) {
        ASSERT_EQ(m.swap_faults(), "") << users;
      }
    }
    EXPECT_EQ(m.files.swp_swapcount(e[1]), MOST / 61) << "its neighbour";
    for (uint64_t users = MOST / 61; users > 0; --users) m.files.swap_free(e[1]);
    EXPECT_EQ(m.files.swap_map_value(e[0]), SWAP_HAS_CACHE);
    EXPECT_EQ(m.files.swap_map_value(e[1]), SWAP_HAS_CACHE);
    for (const SwpEntry entry : e) m.files.swapcache_free(entry);
    EXPECT_EQ(m.swap_faults(), "");
  });
}

TEST_F(SwapfileTest, WithoutMemoryForItsFurtherDigitsACountStaysAsItIs) {
  run([&] {
    m.add_area({.pages = 64});
    const SwpEntry e = take(1).at(0);
    for (int i = 0; i < SWAP_MAP_MAX; ++i) ASSERT_TRUE(m.files.swap_duplicate(e));
    std::vector<Page*> all;
    while (Page* page = m.pages.alloc_page(GFP_ATOMIC | __GFP_NOWARN)) all.push_back(page);
    EXPECT_EQ(m.files.swap_duplicate(e).error(), Errno::nomem);
    EXPECT_EQ(m.files.swp_swapcount(e), SWAP_MAP_MAX);
    EXPECT_EQ(m.files.swap_map_value(e), SWAP_HAS_CACHE | SWAP_MAP_MAX);
    for (Page* page : all) m.pages.__free_pages(*page, Order(0));
    // Before it is needed there is nothing to do; when it is, one page serves all slots of its page of the map.
    ASSERT_TRUE(m.files.add_swap_count_continuation(e, GFP_KERNEL));
    EXPECT_TRUE(m.files.swap_duplicate(e).ok());
    EXPECT_EQ(m.files.swp_swapcount(e), SWAP_MAP_MAX + 1u);
    EXPECT_EQ(m.swap_faults(), "");
  });
}

// free --get--> cache --user--> cache|1 --cache goes--> 1 --prepare--> cache|1 --user goes--> cache --cache goes-->
// free
TEST_F(SwapfileTest, TheStatesOfASlot) {
  run([&] {
    TestDevice& d = m.add_area({.pages = 64});
    const SwpEntry e = take(1).at(0);
    EXPECT_EQ(m.files.swap_map_value(e), SWAP_HAS_CACHE);
    EXPECT_EQ(m.files.swapcache_prepare(e).error(), Errno::exist);
    ASSERT_TRUE(m.files.swap_duplicate(e));
    EXPECT_EQ(m.files.swap_map_value(e), SWAP_HAS_CACHE | 1);
    m.files.swapcache_free(e);
    EXPECT_EQ(m.files.swap_map_value(e), 1);
    ASSERT_TRUE(m.files.swapcache_prepare(e));
    EXPECT_EQ(m.files.swapcache_prepare(e).error(), Errno::exist);
    EXPECT_EQ(m.files.swap_map_value(e), SWAP_HAS_CACHE | 1);
    EXPECT_EQ(m.files.swap_free(e), SWAP_HAS_CACHE);
    EXPECT_TRUE(d.freed.empty());
    m.files.swapcache_free(e);
    EXPECT_EQ(m.files.swap_map_value(e), 0);
    EXPECT_EQ(d.freed, std::vector<uint64_t>{swp_offset(e)});
    EXPECT_EQ(m.files.swapcache_prepare(e).error(), Errno::noent);
    EXPECT_EQ(m.files.swap_duplicate(e).error(), Errno::noent);
    EXPECT_EQ(m.swap_faults(), "");
  });
}

TEST_F(SwapfileTest, WrongEntriesAreReportedAndChangeNothing) {
  run([&] {
    m.add_area({.pages = 64});
    log.clear();
    const SwpEntry wrong[] = {SwpEntry{0}, swp_entry(7, 3), swp_entry(0, 64), swp_entry(31, 1)};
    for (const SwpEntry e : wrong) {
      EXPECT_EQ(m.files.swap_duplicate(e).error(), Errno::inval);
      EXPECT_EQ(m.files.swap_free(e), 0);
      EXPECT_EQ(m.files.swap_info_get(e), nullptr);
      EXPECT_EQ(m.files.swp_swapcount(e), 0);
    }
    EXPECT_EQ(log.size(), 3u * 4);
    log.clear();
    // The header's slot is bad, a free slot has no users.
    EXPECT_EQ(m.files.swap_duplicate(swp_entry(0, 0)).error(), Errno::inval);
    EXPECT_EQ(m.files.swp_swapcount(swp_entry(0, 0)), 0);
    m.files.swap_free(swp_entry(0, 5));
    m.files.swapcache_free(swp_entry(0, 5));
    EXPECT_EQ(m.files.swap_info_get(swp_entry(0, 5)), nullptr);
    EXPECT_EQ(log.size(), 4u) << log.back();  // the header's slot is "bad file entry" 0
    EXPECT_EQ(m.swap_faults(), "");
  });
}

TEST_F(SwapfileTest, AllTypesCanBeUsedAndNoMore) {
  run([&] {
    for (unsigned i = 0; i < MAX_SWAPFILES; ++i) m.add_area({.pages = 10});
    TestDevice more({.pages = 10});
    ASSERT_TRUE(m.swapon.mkswap(more));
    EXPECT_EQ(m.swapon.swapon(more, SWAP_PRIO_AUTO).error(), Errno::perm);
    EXPECT_EQ(m.files.total_swap_pages(), int64_t{MAX_SWAPFILES} * 9);
    ASSERT_TRUE(m.swapon.swapoff(17));
    const Result<unsigned> on = m.swapon.swapon(more, SWAP_PRIO_AUTO);
    ASSERT_TRUE(on.ok());
  });
}

TEST_F(SwapfileTest, HalfUsedIsFull) {
  run([&] {
    m.add_area({.pages = 101});
    EXPECT_FALSE(m.files.vm_swap_full());
    take(50);
    EXPECT_FALSE(m.files.vm_swap_full());
    take(1);
    EXPECT_TRUE(m.files.vm_swap_full());
  });
}

// Random users of random slots against a map kept beside; the areas are recounted again and again.
TEST_F(SwapfileTest, CountsAgreeWithAModelAfterRandomOperations) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SwapMachine mm;
    run_world({.seed = seed, .log = no_log}, [&] {
      std::mt19937_64 rng(seed);
      mm.add_area({.pages = 700}, 1);
      mm.add_area({.pages = 300, .nonrotational = false}, 1);
      mm.add_area({.pages = 1500});
      std::map<uint64_t, std::pair<int, bool>> model;  // entry -> users, cache
      const auto any = [&] {
        auto it = model.begin();
        std::advance(it, static_cast<long>(rng() % model.size()));
        return it;
      };
      const int64_t total = mm.files.total_swap_pages();
      for (int step = 0; step < 6000; ++step) {
        const unsigned what = rng() % 10;
        if (what < 4 || model.empty()) {
          SwpEntry got[SWAP_BATCH];
          const unsigned n = mm.files.get_swap_pages(1 + rng() % SWAP_BATCH, got);
          for (unsigned i = 0; i < n; ++i) ASSERT_TRUE(model.emplace(got[i].val, std::pair{0, true}).second);
          if (n == 0) {
            ASSERT_EQ(static_cast<int64_t>(model.size() + mm.slots.held(0) + mm.slots.held(1) + mm.slots.held(2)),
                      total);
          }
          // Most are given back soon, or the areas would only be full.
          for (unsigned i = 0; i < n && rng() % 4 != 0; ++i) {
            mm.files.swapcache_free(got[i]);
            model.erase(got[i].val);
          }
          continue;
        }
        const auto it = any();
        const SwpEntry e{it->first};
        auto& [users, cache] = it->second;
        if (what < 6) {
          const bool ok = mm.files.swap_duplicate(e).ok();
          ASSERT_EQ(ok, users < SWAP_MAP_MAX);
          users += ok ? 1 : 0;
        } else if (what < 8 && users > 0) {
          mm.files.swap_free(e);
          --users;
        } else if (what == 8 && cache) {
          mm.files.swapcache_free(e);
          cache = false;
        } else {
          const Errno r = mm.files.swapcache_prepare(e).error();
          ASSERT_EQ(r, cache ? Errno::exist : Errno::ok);
          cache = true;
        }
        if (users == 0 && !cache) model.erase(it);
        if (step % 500 == 0) {
          ASSERT_EQ(mm.swap_faults(), "");
          ASSERT_EQ(mm.files.nr_swap_pages(), total - static_cast<int64_t>(model.size() + mm.slots.held(0) +
                                                                           mm.slots.held(1) + mm.slots.held(2)));
          for (const auto& [val, state] : model)
            ASSERT_EQ(mm.files.swap_map_value(SwpEntry{val}), state.first | (state.second ? SWAP_HAS_CACHE : 0));
        }
      }
      while (!model.empty()) {
        const auto it = model.begin();
        for (; it->second.first > 0; --it->second.first) mm.files.swap_free(SwpEntry{it->first});
        if (it->second.second) mm.files.swapcache_free(SwpEntry{it->first});
        model.erase(it);
      }
      mm.slots.drain_slots_cache();
      EXPECT_EQ(mm.files.nr_swap_pages(), total);
      EXPECT_EQ(mm.swap_faults(), "");
    });
  }
}

TEST_F(SwapfileTest, NoSlotIsGivenTwiceWhileManyTake) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SwapMachine mm({.ram = Bytes(uint64_t{16} << 20), .cpus = 3});
    VirtualWorld world({.seed = seed, .cpus = 3, .preempt_one_in = 3, .log = no_log});
    std::set<uint64_t> held;
    world.spawn("setup", [&] {
      mm.add_area({.pages = 600});
      mm.add_area({.pages = 600, .nonrotational = false});
      for (int t = 0; t < 4; ++t) {
        world.spawn("taker", [&, t] {
          std::mt19937_64 rng(seed * 10 + static_cast<uint64_t>(t));
          std::vector<SwpEntry> mine;
          for (int i = 0; i < 150; ++i) {
            SwpEntry got[SWAP_BATCH];
            const unsigned n = mm.files.get_swap_pages(1 + rng() % 20, got);
            for (unsigned k = 0; k < n; ++k) {
              ASSERT_TRUE(held.insert(got[k].val).second);
              mine.push_back(got[k]);
            }
            while (!mine.empty() && rng() % 8 != 0) {
              held.erase(mine.back().val);
              mm.files.swapcache_free(mine.back());
              mine.pop_back();
            }
          }
        });
      }
    });
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
    EXPECT_EQ(mm.swap_faults(), "");
    EXPECT_EQ(mm.files.nr_swap_pages(),
              599 * 2 - static_cast<int64_t>(held.size() + mm.slots.held(0) + mm.slots.held(1)));
  }
}

}  // namespace
}  // namespace weir::test
