// The swap cache (mm/swap_state.cpp).
#include "mm/swap_state.hpp"

#include <gtest/gtest.h>

#include <random>

#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

void run(std::function<void()> fn) { run_world({.log = no_log}, std::move(fn)); }

/// A slot with `value` written to it and `users` users, nothing in the cache.
SwpEntry written_slot(SwapMachine& m, uint64_t value, int users = 1) {
  Page& page = m.anon_page(value);
  WEIR_BUG_ON(!m.cache.add_to_swap(page));
  const SwpEntry entry{page.private_};
  for (int i = 0; i < users; ++i) WEIR_BUG_ON(!m.files.swap_duplicate(entry));
  page.clear(PageFlag::dirty);
  WritebackControl wbc;
  WEIR_BUG_ON(!m.io.swap_writepage(page, wbc));
  m.filemap.wait_on_page_writeback(page);
  m.filemap.lock_page(page);
  m.cache.delete_from_swap_cache(page);
  m.filemap.unlock_page(page);
  m.lru.put_page(page);
  return entry;
}

TEST(SwapCache, AddingTakesASlotAReferenceAndDirties) {
  SwapMachine m;
  run([&] {
    m.add_area({.pages = 1024});
    Page& page = m.anon_page(1);
    const uint64_t pfn = m.mem.pfn(page).v;
    Trace trace;
    ASSERT_TRUE(m.cache.add_to_swap(page));
    const SwpEntry entry{page.private_};
    EXPECT_TRUE(PageSwapCache(page));
    EXPECT_TRUE(page.test(PageFlag::dirty));
    EXPECT_EQ(page_count(page), 2);
    EXPECT_EQ(m.files.swap_map_value(entry), SWAP_HAS_CACHE);
    EXPECT_EQ(m.gauge(NodeStat::nr_file_pages), 1);
    EXPECT_EQ(m.cache.total_swapcache_pages(), PageCount(1));
    EXPECT_EQ(&m.cache.swap_address_space(entry), m.cache.page_mapping(page));
    EXPECT_EQ(trace.of(State::swap_slot), (std::vector<Trace::StateChange>{{State::swap_slot, entry.val, 0, pfn}}));
    EXPECT_EQ(trace.of(State::swap_cache),
              (std::vector<Trace::StateChange>{{State::swap_cache, entry.val, 0, pfn + 1}}));
    m.cache.delete_from_swap_cache(page);
    EXPECT_FALSE(PageSwapCache(page));
    EXPECT_EQ(page_count(page), 1);
    EXPECT_EQ(m.gauge(NodeStat::nr_file_pages), 0);
    EXPECT_EQ(m.cache.page_mapping(page), nullptr);
    EXPECT_EQ(trace.of(State::swap_cache).at(1), (Trace::StateChange{State::swap_cache, entry.val, pfn + 1, 0}));
    m.filemap.unlock_page(page);
    m.lru.put_page(page);
    EXPECT_EQ(m.faults(), "");
  });
}

// The nesting of flow "add-to-swap".
TEST(SwapCache, AddToSwapRunsInTheKernelsOrder) {
  SwapMachine m;
  run([&] {
    m.add_area({.pages = 1024});
    Page& page = m.anon_page(1);
    Trace trace;
    ASSERT_TRUE(m.cache.add_to_swap(page));
    EXPECT_EQ(
        trace.tree({"add_to_swap", "get_swap_page", "get_swap_pages", "scan_swap_map_slots", "add_to_swap_cache",
                    "radix_tree_maybe_preload_order", "__add_to_swap_cache", "page_ref_add", "swap_address_space",
                    "radix_tree_insert", "__radix_tree_insert", "radix_tree_is_internal_node", "__radix_tree_create",
                    "insert_entries", "radix_tree_preload_end"}),
        (std::vector<std::string>{"add_to_swap", " get_swap_page", "  get_swap_pages", "   scan_swap_map_slots",
                                  " add_to_swap_cache", "  radix_tree_maybe_preload_order", "  __add_to_swap_cache",
                                  "   page_ref_add", "   swap_address_space", "   radix_tree_insert",
                                  "    __radix_tree_insert", "     radix_tree_is_internal_node",
                                  "     __radix_tree_create", "     insert_entries", "  radix_tree_preload_end"}));
    m.cache.delete_from_swap_cache(page);
    m.filemap.unlock_page(page);
    m.lru.put_page(page);
  });
}

TEST(SwapCache, WithoutASlotNothingHappens) {
  SwapMachine m;
  run([&] {
    m.add_area({.pages = 11});
    std::vector<Page*> pages;
    for (int i = 0; i < 10; ++i) {
      pages.push_back(&m.anon_page(1));
      ASSERT_TRUE(m.cache.add_to_swap(*pages.back()));
    }
    Page& page = m.anon_page(2);
    EXPECT_FALSE(m.cache.add_to_swap(page));
    EXPECT_EQ(page_count(page), 1);
    EXPECT_FALSE(page.test(PageFlag::dirty));
    // A slot that is given up can be had at once: the caches are off.
    m.cache.delete_from_swap_cache(*pages[3]);
    EXPECT_TRUE(m.cache.add_to_swap(page));
    pages.push_back(&page);
    for (Page* p : pages) {
      m.cache.try_to_free_swap(*p);
      m.filemap.unlock_page(*p);
      m.lru.put_page(*p);
    }
    EXPECT_EQ(m.files.nr_swap_pages(), 10);
  });
}

// While swap is short, slots that only the cache holds are freed where the search for a slot passes.
TEST(SwapCache, AFullAreaTakesBackWhatOnlyTheCacheHolds) {
  SwapMachine m;
  run([&] {
    m.add_area({.pages = 11});
    std::vector<Page*> pages;
    const auto add = [&] {
      pages.push_back(&m.anon_page(1));
      const bool added = m.cache.add_to_swap(*pages.back());
      m.filemap.unlock_page(*pages.back());
      return added;
    };
    for (int i = 0; i < 10; ++i) ASSERT_TRUE(add());
    EXPECT_FALSE(add());
    const uint64_t third = pages[2]->private_;
    for (const size_t i : {size_t{1}, size_t{8}}) m.cache.free_swap_cache(*pages[i]);
    ASSERT_TRUE(add());
    ASSERT_TRUE(add());
    EXPECT_EQ(pages.back()->private_, third) << "slot 9 is free, but slot 3 comes first";
    EXPECT_FALSE(PageSwapCache(*pages[2]));
    EXPECT_TRUE(pages[2]->test(PageFlag::dirty));
    for (Page* p : pages) m.cache.free_page_and_swap_cache(*p);
    EXPECT_EQ(m.files.nr_swap_pages(), 10);
    EXPECT_EQ(m.swap_faults(), "");
  });
}

TEST(SwapCache, AHitNeedsNoReadAndIsCounted) {
  SwapMachine m;
  run([&] {
    TestDevice& d = m.add_area({.pages = 1024});
    const SwpEntry e = written_slot(m, 77);
    EXPECT_EQ(m.cache.lookup_swap_cache(e), nullptr);
    Page* page = m.cache.read_swap_cache_async(e, GFP_KERNEL);
    ASSERT_NE(page, nullptr);
    EXPECT_EQ(m.word(*page), 77u);
    EXPECT_TRUE(PageSwapBacked(*page));
    EXPECT_EQ(d.read.size(), 1u);
    Page* again = m.cache.read_swap_cache_async(e, GFP_KERNEL);
    Page* found = m.cache.lookup_swap_cache(e);
    EXPECT_EQ(again, page);
    EXPECT_EQ(found, page);
    EXPECT_EQ(d.read.size(), 1u);
    EXPECT_EQ(m.cache.stats().find_total.load(), 2u);
    EXPECT_EQ(m.cache.stats().find_success.load(), 1u);
    m.lru.put_page(*again);
    m.lru.put_page(*found);
    m.files.swap_free(e);
    m.cache.free_page_and_swap_cache(*page);
  });
}

TEST(SwapCache, AFreeSlotIsNotRead) {
  SwapMachine m;
  run([&] {
    TestDevice& d = m.add_area({.pages = 1024});
    const SwpEntry e = written_slot(m, 5);
    m.files.swap_free(e);
    EXPECT_EQ(m.files.swap_map_value(e), SWAP_HAS_CACHE) << "it waits in the slots cache";
    EXPECT_EQ(m.cache.read_swap_cache_async(e, GFP_KERNEL), nullptr);
    m.slots.drain_slots_cache();
    EXPECT_EQ(m.cache.read_swap_cache_async(e, GFP_KERNEL), nullptr);
    EXPECT_TRUE(d.read.empty());
  });
}

TEST(SwapCache, ManyReadersOfASharedSlotDoOneRead) {
  for (const bool synchronous : {true, false}) {
    for (uint64_t seed = 1; seed <= 60; ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed));
      SwapMachine m({.ram = Bytes(uint64_t{16} << 20), .cpus = 3});
      VirtualWorld world({.seed = seed, .cpus = 3, .preempt_one_in = 3, .log = no_log});
      std::set<Page*> seen;
      TestDevice* d = nullptr;
      SwpEntry shared;
      world.spawn("setup", [&] {
        d = &m.add_area({.pages = 1024, .synchronous = synchronous, .latency = 50_us});
        const SwpEntry e = shared = written_slot(m, 123, 5);
        for (int t = 0; t < 5; ++t) {
          world.spawn("reader", [&, e] {
            Page* page = m.cache.read_swap_cache_async(e, GFP_KERNEL);
            ASSERT_NE(page, nullptr);
            m.filemap.lock_page(*page);
            EXPECT_TRUE(page->test(PageFlag::uptodate));
            EXPECT_EQ(m.word(*page), 123u);
            EXPECT_EQ(page->private_, e.val);
            seen.insert(page);
            m.filemap.unlock_page(*page);
            m.files.swap_free(e);
            m.cache.free_page_and_swap_cache(*page);
          });
        }
      });
      ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
      EXPECT_EQ(seen.size(), 1u);
      EXPECT_EQ(d->read.size(), 1u);
      m.lru.lru_add_drain_all();
      // Two who let go at once may each leave the copy to the other; then reclaim finds it.
      m.cache.__try_to_reclaim_swap(shared);
      m.slots.drain_slots_cache();
      EXPECT_EQ(m.files.nr_swap_pages(), 1023);
      EXPECT_EQ(m.gauge(NodeStat::nr_swapcached), 0);
      EXPECT_EQ(m.faults(), "");
    }
  }
}

// Row 46: window by hits.
TEST(SwapCache, TheReadaheadWindowFollowsItsHits) {
  struct Case {
    uint64_t prev, offset;
    unsigned hits, last, pages;
  };
  const Case cases[] = {
      {100, 500, 0, 1, 1}, {100, 101, 0, 1, 2}, {100, 99, 0, 1, 2},  {100, 102, 0, 1, 1},
      {0, 500, 1, 1, 4},   {0, 500, 2, 1, 4},   {0, 500, 3, 1, 8},   {0, 500, 7, 1, 8},
      {100, 500, 0, 8, 4}, {100, 500, 0, 4, 2}, {100, 500, 0, 2, 1}, {100, 101, 0, 8, 4},
  };
  for (const Case& c : cases)
    EXPECT_EQ(SwapCache::__swapin_nr_pages(c.prev, c.offset, c.hits, 8, c.last), c.pages)
        << c.prev << " " << c.offset << " hits " << c.hits << " last " << c.last;
}

class Readahead : public testing::Test {
 protected:
  /// 64 slots in a row from 256 on, all written.
  std::vector<SwpEntry> row(SwapMachine& m) {
    std::vector<SwpEntry> entries;
    while (entries.size() < 64) {
      const SwpEntry e = written_slot(m, swp_offset(SwpEntry{}) + entries.size());
      if (swp_offset(e) >= 256) entries.push_back(e);
    }
    EXPECT_EQ(swp_offset(entries[0]), 256u);
    return entries;
  }
};

TEST_F(Readahead, AWindowIsAlignedAndItsPagesAreMarked) {
  SwapMachine m;
  run([&] {
    TestDevice& d = m.add_area({.pages = 4096});
    const std::vector<SwpEntry> e = row(m);
    d.read.clear();
    Page* page = m.cache.swapin_readahead(e[13], GFP_KERNEL);  // the first window: as if four hits had been
    EXPECT_EQ(d.read, (std::vector<uint64_t>{264, 265, 266, 267, 268, 269, 270, 271}));
    EXPECT_EQ(m.event(VmEvent::swap_ra), 7u);
    EXPECT_EQ(page->private_, e[13].val);
    EXPECT_FALSE(page->test(PageFlag::reclaim)) << "the wanted page is not read ahead";
    m.lru.put_page(*page);
    for (int i : {8, 9}) {
      Page* hit = m.cache.lookup_swap_cache(e[static_cast<size_t>(i)]);
      EXPECT_FALSE(hit->test(PageFlag::reclaim));
      m.lru.put_page(*hit);
    }
    EXPECT_EQ(m.event(VmEvent::swap_ra_hit), 2u);
    // Two hits: a window of four, not below half of the last.
    d.read.clear();
    m.lru.put_page(*m.cache.swapin_readahead(e[33], GFP_KERNEL));
    EXPECT_EQ(d.read, (std::vector<uint64_t>{288, 289, 290, 291}));
    // No hit and no neighbour: down to one.
    d.read.clear();
    m.lru.put_page(*m.cache.swapin_readahead(e[44], GFP_KERNEL));
    EXPECT_EQ(d.read.size(), 2u);
    d.read.clear();
    m.lru.put_page(*m.cache.swapin_readahead(e[51], GFP_KERNEL));
    EXPECT_EQ(d.read, std::vector<uint64_t>{307});
    EXPECT_EQ(m.gauge(NodeStat::nr_inactive_anon), m.gauge(NodeStat::nr_swapcached) - 1)
        << "drained after the window; one read alone";
  });
}

TEST_F(Readahead, FreeSlotsAndTheHeaderAreLeftOut) {
  SwapMachine m;
  run([&] {
    TestDevice& d = m.add_area({.pages = 20});
    std::vector<SwpEntry> e;
    for (int i = 0; i < 19; ++i) e.push_back(written_slot(m, static_cast<uint64_t>(i)));
    std::sort(e.begin(), e.end(), [](SwpEntry a, SwpEntry b) { return a.val < b.val; });
    m.files.swap_free(e[2]);  // slot 3
    d.read.clear();
    m.lru.put_page(*m.cache.swapin_readahead(e[4], GFP_KERNEL));
    EXPECT_EQ(d.read, (std::vector<uint64_t>{1, 2, 4, 5, 6, 7}));
    // The window ends with the area.
    for (uint64_t o : {6, 7}) m.lru.put_page(*m.cache.lookup_swap_cache(swp_entry(0, o)));
    for (uint64_t o : {1, 2, 4}) m.lru.put_page(*m.cache.lookup_swap_cache(swp_entry(0, o)));
    d.read.clear();
    m.lru.put_page(*m.cache.swapin_readahead(e[17], GFP_KERNEL));
    EXPECT_EQ(d.read, (std::vector<uint64_t>{16, 17, 18, 19}));
  });
}

TEST_F(Readahead, NoClusterMeansNoReadahead) {
  SwapMachine m;
  run([&] {
    TestDevice& d = m.add_area({.pages = 4096});
    const std::vector<SwpEntry> e = row(m);
    m.cache.set_page_cluster(0);
    d.read.clear();
    for (int i = 0; i < 8; ++i) m.lru.put_page(*m.cache.swapin_readahead(e[static_cast<size_t>(i)], GFP_KERNEL));
    EXPECT_EQ(d.read.size(), 8u);
    EXPECT_EQ(m.event(VmEvent::swap_ra), 0u);
  });
}

TEST(SwapCache, ASlotWithUsersIsNotGivenUp) {
  SwapMachine m;
  run([&] {
    m.add_area({.pages = 1024});
    Page& page = m.anon_page(1);
    ASSERT_TRUE(m.cache.add_to_swap(page));
    const SwpEntry e{page.private_};
    ASSERT_TRUE(m.files.swap_duplicate(e));
    EXPECT_FALSE(m.cache.try_to_free_swap(page));
    m.files.swap_free(e);
    page.clear(PageFlag::dirty);
    EXPECT_TRUE(m.cache.try_to_free_swap(page));
    EXPECT_TRUE(page.test(PageFlag::dirty));
    EXPECT_FALSE(m.cache.try_to_free_swap(page));
    m.filemap.unlock_page(page);
    m.lru.put_page(page);
  });
}

TEST(SwapCache, APageMayBeWrittenInPlaceByItsOnlyUser) {
  struct Case {
    int mapped, users;
    bool cached, reuse;
  };
  const Case cases[] = {{1, 0, false, true}, {2, 0, false, false}, {1, 0, true, true},
                        {0, 1, true, true},  {1, 1, true, false},  {2, 0, true, false}};
  for (const Case& c : cases) {
    SwapMachine m;
    run([&] {
      m.add_area({.pages = 1024});
      Page& page = m.anon_page(1);
      if (c.cached) {
        ASSERT_TRUE(m.cache.add_to_swap(page));
      }
      const SwpEntry e{page.private_};
      for (int i = 0; i < c.users; ++i) ASSERT_TRUE(m.files.swap_duplicate(e));
      page._mapcount.store(c.mapped - 1);
      EXPECT_EQ(m.cache.reuse_swap_page(page), c.reuse) << c.mapped << c.users << c.cached;
      EXPECT_EQ(PageSwapCache(page), c.cached && !c.reuse);
      m.filemap.unlock_page(page);
    });
  }
}

TEST(SwapCache, TheLastPtesEndFreesSlotAndCopy) {
  SwapMachine m;
  run([&] {
    TestDevice& d = m.add_area({.pages = 1024});
    const SwpEntry e = written_slot(m, 5, 2);
    m.lru.put_page(*m.cache.read_swap_cache_async(e, GFP_KERNEL));
    m.cache.free_swap_and_cache(e);
    EXPECT_EQ(m.cache.total_swapcache_pages().v, 1);
    EXPECT_TRUE(d.freed.empty());
    m.cache.free_swap_and_cache(e);
    EXPECT_EQ(m.cache.total_swapcache_pages().v, 0);
    EXPECT_EQ(d.freed, std::vector<uint64_t>{swp_offset(e)});
    m.slots.drain_slots_cache();
    EXPECT_EQ(m.files.nr_swap_pages(), 1023);
  });
}

TEST(SwapCache, ALockedCopyIsLeftToWhoHasTheLock) {
  SwapMachine m;
  run([&] {
    m.add_area({.pages = 1024});
    const SwpEntry e = written_slot(m, 5);
    Page* page = m.cache.read_swap_cache_async(e, GFP_KERNEL);
    m.filemap.lock_page(*page);
    m.cache.free_swap_and_cache(e);
    EXPECT_TRUE(PageSwapCache(*page));
    m.filemap.unlock_page(*page);
    m.cache.free_page_and_swap_cache(*page);
    EXPECT_EQ(m.cache.total_swapcache_pages().v, 0);
  });
}

TEST(SwapCache, EveryOffsetHasASpaceOf64MiB) {
  SwapMachine m({.ram = Bytes(uint64_t{32} << 20)});
  run([&] {
    ASSERT_TRUE(m.cache.init_swap_address_space(3, 40000));
    unsigned spaces = 0;
    m.cache.for_each_space([&](unsigned type, AddressSpace& space) {
      EXPECT_EQ(type, 3u);
      EXPECT_TRUE(space.no_writeback_tags);
      EXPECT_EQ(space.host, nullptr);
      EXPECT_EQ(space.max_index, spaces == 2 ? 39999u : (spaces + 1) * 16384u - 1);
      ++spaces;
    });
    EXPECT_EQ(spaces, 3u);
    EXPECT_EQ(&m.cache.swap_address_space(swp_entry(3, 16383)), &m.cache.swap_address_space(swp_entry(3, 1)));
    EXPECT_EQ(&m.cache.swap_address_space(swp_entry(3, 16384)), &m.cache.swap_address_space(swp_entry(3, 1)) + 1);
    m.cache.exit_swap_address_space(3);
  });
}

// Random swap-outs, swap-ins and ends of users by several threads: never two pages for a slot, never a wrong byte, and
// at the end every slot and every page is back.
TEST(SwapCache, ContentsAndCountsHoldUnderManySchedules) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SwapMachine m({.ram = Bytes(uint64_t{16} << 20), .cpus = 3});
    VirtualWorld world({.seed = seed, .cpus = 3, .preempt_one_in = 4, .log = no_log});
    struct Slot {
      SwpEntry entry;
      uint64_t value;
      int users;
    };
    std::vector<Slot> slots;
    world.spawn("setup", [&] {
      m.add_area({.pages = 300, .synchronous = seed % 2 == 0, .latency = 20_us}, 1);
      m.add_area({.pages = 300, .synchronous = true}, 1);
      for (uint64_t i = 0; i < 30; ++i) slots.push_back({written_slot(m, 1000 + i, 8), 1000 + i, 8});
      for (int t = 0; t < 4; ++t) {
        world.spawn("worker", [&, t] {
          std::mt19937_64 rng(seed * 8 + static_cast<uint64_t>(t));
          WritebackControl wbc;
          for (int i = 0; i < 80; ++i) {
            Slot& slot = slots[rng() % slots.size()];
            // A user of the slot for as long as we work with it.
            if (slot.users <= 1) continue;
            --slot.users;
            const SwpEntry e = slot.entry;
            Page* page =
                rng() % 2 == 0 ? m.cache.swapin_readahead(e, GFP_KERNEL) : m.cache.read_swap_cache_async(e, GFP_KERNEL);
            ASSERT_NE(page, nullptr);
            m.filemap.lock_page(*page);
            if (PageSwapCache(*page) && page->private_ == e.val) {
              ASSERT_TRUE(page->test(PageFlag::uptodate));
              ASSERT_EQ(m.word(*page), slot.value);
              const unsigned what = rng() % 3;
              if (what == 0 && !page->test(PageFlag::writeback)) {
                ASSERT_TRUE(m.io.swap_writepage(*page, wbc));
              } else {
                if (what == 1 && !page->test(PageFlag::writeback)) m.cache.delete_from_swap_cache(*page);
                m.filemap.unlock_page(*page);
              }
            } else {
              m.filemap.unlock_page(*page);
            }
            if (rng() % 2 == 0) {
              m.cache.free_swap_and_cache(e);
            } else {
              ++slot.users;
            }
            m.cache.free_page_and_swap_cache(*page);
          }
        });
      }
    });
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
    world.spawn("end", [&] {
      weir::world().schedule_timeout(1_ms);  // writes under way end
      m.lru.lru_add_drain_all();
      for (Slot& slot : slots) {
        for (; slot.users > 0; --slot.users) m.cache.free_swap_and_cache(slot.entry);
        m.cache.__try_to_reclaim_swap(slot.entry);
      }
      m.slots.drain_slots_cache();
      EXPECT_EQ(m.files.nr_swap_pages(), 598);
      EXPECT_EQ(m.cache.total_swapcache_pages().v, 0);
      EXPECT_EQ(m.gauge(NodeStat::nr_file_pages), 0);
      EXPECT_EQ(m.gauge(NodeStat::nr_inactive_anon), 0);
      EXPECT_EQ(m.swap_faults(), "");
      EXPECT_EQ(m.faults(), "");
    });
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
  }
}

}  // namespace
}  // namespace weir::test
