// The page lock, waiting for page bits, trees of pages.
#include "mm/filemap.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "support/file_fixture.hpp"

namespace weir {
namespace {

using test::error_of;
using test::FileWorld;
using test::FlowLog;

class FilemapTest : public testing::Test {
 protected:
  void TearDown() override {
    if (mapping.nrpages == 0 && mapping.nrexceptional == 0) return;
    w.run([&] {
      Page* pages[64];
      while (unsigned n = fm().find_get_pages(mapping, 0, 64, pages)) {
        for (unsigned i = 0; i < n; ++i) drop(*pages[i]);
        w.m.lru.release_pages(pages, n);
      }
      ScopedLock guard(mapping.tree_lock);
      mapping.page_tree.destroy(fm().node_source());
    });
  }
  Filemap& fm() { return w.m.filemap; }
  Page& new_page() {
    Page* page = w.m.pages.alloc_page(GFP_HIGHUSER_MOVABLE);
    WEIR_BUG_ON(page == nullptr);
    return *page;
  }
  /// In the tree and unlocked; our reference is dropped.
  Page& cached(uint64_t index) {
    Page& page = new_page();
    WEIR_BUG_ON(!fm().add_to_page_cache_lru(page, mapping, index, GFP_KERNEL));
    fm().unlock_page(page);
    w.m.lru.put_page(page);
    return page;
  }
  void drop(Page& page) {
    fm().lock_page(page);
    fm().delete_from_page_cache(page);
    fm().unlock_page(page);
    w.m.lru.put_page(page);
  }
  std::vector<uint64_t> tagged(PageTag tag) {
    Page* pages[64];
    const unsigned n = fm().find_get_pages_tag(mapping, 0, ~uint64_t{0}, tag, 64, pages);
    std::vector<uint64_t> indices;
    for (unsigned i = 0; i < n; ++i) indices.push_back(pages[i]->index);
    w.m.lru.release_pages(pages, n);
    return indices;
  }

  FileWorld w;
  AddressSpace mapping;
};

// ---- The page lock

TEST_F(FilemapTest, ALockedPageIsLockedForEverybodyElse) {
  w.run([&] {
    Page& page = new_page();
    fm().lock_page(page);
    EXPECT_FALSE(fm().trylock_page(page));
    fm().unlock_page(page);
    EXPECT_TRUE(fm().trylock_page(page));
    fm().unlock_page(page);
    w.m.lru.put_page(page);
  });
}

TEST_F(FilemapTest, ALockerSleepsUntilTheUnlock) {
  Page* page = nullptr;
  std::vector<int> order;
  w.spawn("holder", [&] {
    page = &new_page();
    fm().lock_page(*page);
    w.world.schedule_timeout(5_ms);
    order.push_back(1);
    fm().unlock_page(*page);
  });
  for (int i = 2; i < 5; ++i)
    w.spawn("locker", [&, i] {
      w.world.schedule_timeout(Nanos(static_cast<uint64_t>(i) * 1000));
      fm().lock_page(*page);
      EXPECT_GE(w.world.now(), 5_ms);
      order.push_back(i);
      w.world.schedule_timeout(1_ms);
      fm().unlock_page(*page);
    });
  w.run();
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3, 4}));  // in the order in which they came
  w.run([&] { w.m.lru.put_page(*page); });
}

TEST_F(FilemapTest, AnotherThreadMayUnlock) {
  w.run([&] {
    Page& page = new_page();
    fm().lock_page(page);
    w.spawn("completion", [&] { fm().unlock_page(page); });
    fm().wait_on_page_locked(page);
    EXPECT_FALSE(page.test(PageFlag::locked));
    w.m.lru.put_page(page);
  });
}

TEST_F(FilemapTest, AllWhoOnlyWaitForTheUnlockGoOnThoughALockerTakesThePage) {
  int through = 0;
  w.run([&] {
    Page& page = new_page();
    fm().lock_page(page);
    for (int i = 0; i < 3; ++i)
      w.spawn("waiter", [&] {
        fm().wait_on_page_locked(page);
        ++through;
      });
    w.spawn("locker", [&] {
      fm().lock_page(page);
      fm().unlock_page(page);
      ++through;
    });
    w.world.schedule_timeout(1_ms);
    fm().unlock_page(page);
    w.world.schedule_timeout(1_ms);
    EXPECT_EQ(through, 4);
    w.m.lru.put_page(page);
  });
}

TEST_F(FilemapTest, AKilledTaskGivesUpWaitingAndTheNextStillGetsThePage) {
  Task victim;
  bool killed_got_it = true, other_got_it = false;
  w.run([&] {
    Page& page = new_page();
    fm().lock_page(page);
    w.spawn(
        "victim",
        [&] {
          victim.thread = &current();
          killed_got_it = fm().lock_page_killable(page);
          EXPECT_EQ(w.world.now(), 1_ms);
        },
        &victim);
    w.spawn("other", [&] {
      w.world.schedule_timeout(100_us);
      fm().lock_page(page);
      other_got_it = true;
      fm().unlock_page(page);
    });
    w.world.schedule_timeout(1_ms);
    victim.sigkill = true;
    w.world.wake(*victim.thread);
    w.world.schedule_timeout(1_ms);
    fm().unlock_page(page);
    w.world.schedule_timeout(1_ms);
    EXPECT_TRUE(other_got_it);
    w.m.lru.put_page(page);
  });
  EXPECT_FALSE(killed_got_it);
}

TEST_F(FilemapTest, NobodyIsInsideTogetherAndNoWakeIsLost) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FileWorld v({.seed = seed, .preempt_one_in = 3, .cpus = 2});
    Task killed[2];
    Page* page = nullptr;
    int inside = 0, entered = 0;
    v.run([&] { page = v.m.pages.alloc_page(GFP_HIGHUSER_MOVABLE); });
    for (int t = 0; t < 6; ++t) {
      Task* task = t < 2 ? &killed[t] : nullptr;
      v.spawn(
          "locker",
          [&, t, task] {
            if (task != nullptr) task->thread = &current();
            for (int i = 0; i < 10; ++i) {
              bool got = true;
              if (task != nullptr)
                got = v.m.filemap.lock_page_killable(*page);
              else if (t == 2)
                got = v.m.filemap.trylock_page(*page);
              else
                v.m.filemap.lock_page(*page);
              if (!got) {
                v.world.cond_resched();
                continue;
              }
              EXPECT_EQ(inside++, 0);
              ++entered;
              if (i % 3 == 0) v.world.schedule_timeout(1_us);
              v.world.preempt_point();
              EXPECT_EQ(--inside, 0);
              v.m.filemap.unlock_page(*page);
            }
          },
          task);
    }
    v.spawn("killer", [&] {
      v.world.schedule_timeout(5_us);
      for (Task& task : killed) {
        task.sigkill = true;
        if (task.thread != nullptr) v.world.wake(*task.thread);
      }
    });
    v.run();
    EXPECT_GE(entered, 30);
    EXPECT_FALSE(page->test(PageFlag::locked));
    v.run([&] { v.m.lru.put_page(*page); });
  }
}

// ---- Writeback

TEST_F(FilemapTest, WritebackMovesTheTagsAndWakesWhoWaits) {
  w.run([&] {
    Page& page = cached(3);
    fm().lock_page(page);
    {
      ScopedLock guard(mapping.tree_lock);
      mapping.page_tree.tag_set(3, PAGECACHE_TAG_DIRTY);
      mapping.page_tree.tag_set(3, PAGECACHE_TAG_TOWRITE);
    }
    fm().set_page_writeback(page);
    fm().unlock_page(page);
    EXPECT_EQ(tagged(PageTag::dirty), std::vector<uint64_t>{});
    EXPECT_EQ(tagged(PageTag::towrite), std::vector<uint64_t>{});
    EXPECT_EQ(tagged(PageTag::writeback), std::vector<uint64_t>{3});
    EXPECT_EQ(w.m.gauge(NodeStat::nr_writeback), 1);
    w.spawn("completion", [&] {
      w.world.schedule_timeout(2_ms);
      fm().end_page_writeback(page);
    });
    fm().wait_on_page_writeback(page);
    EXPECT_EQ(w.world.now(), 2_ms);
    EXPECT_EQ(tagged(PageTag::writeback), std::vector<uint64_t>{});
    EXPECT_EQ(w.m.gauge(NodeStat::nr_writeback), 0);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_written), 1);
  });
}

TEST_F(FilemapTest, APageDirtiedAgainBeforeItsWriteKeepsItsDirtyTag) {
  w.run([&] {
    Page& page = cached(3);
    fm().lock_page(page);
    {
      ScopedLock guard(mapping.tree_lock);
      mapping.page_tree.tag_set(3, PAGECACHE_TAG_DIRTY);
    }
    page.set(PageFlag::dirty);
    w.m.vmstat.inc_node_page_state(NodeStat::nr_dirty);
    fm().set_page_writeback(page);
    fm().unlock_page(page);
    EXPECT_EQ(tagged(PageTag::dirty), std::vector<uint64_t>{3});
    fm().end_page_writeback(page);
  });
}

TEST_F(FilemapTest, APageMeantForReclaimGoesToTheTailWhenItIsWritten) {
  w.run([&] {
    Page* pages[4];
    for (uint64_t i = 0; i < 4; ++i) pages[i] = &cached(i);
    w.m.lru.lru_add_drain();
    Page& page = *pages[3];  // youngest
    fm().lock_page(page);
    page.set(PageFlag::reclaim);
    fm().set_page_writeback(page);
    fm().unlock_page(page);
    fm().end_page_writeback(page);
    w.m.lru.lru_add_drain();
    EXPECT_FALSE(page.test(PageFlag::reclaim));
    EXPECT_EQ(&w.m.node.lruvec.lists[static_cast<unsigned>(LruList::inactive_file)].back(), &page);
  });
}

TEST_F(FilemapTest, SwapPagesAreWrittenWithoutTags) {
  w.run([&] {
    mapping.no_writeback_tags = true;
    Page& page = cached(1);
    fm().lock_page(page);
    fm().set_page_writeback(page);
    fm().unlock_page(page);
    EXPECT_EQ(tagged(PageTag::writeback), std::vector<uint64_t>{});
    EXPECT_EQ(w.m.gauge(NodeStat::nr_writeback), 1);
    fm().end_page_writeback(page);
    mapping.no_writeback_tags = false;
  });
}

// ---- Trees

TEST_F(FilemapTest, APageInTheTreeIsLockedCountedAndFound) {
  w.run([&] {
    Page& page = new_page();
    ASSERT_TRUE(fm().add_to_page_cache_lru(page, mapping, 77, GFP_KERNEL));
    EXPECT_TRUE(page.test(PageFlag::locked));
    EXPECT_EQ(Filemap::file_mapping(page), &mapping);
    EXPECT_EQ(page.index, 77u);
    EXPECT_EQ(page_count(page), 3);  // ours, the tree's, the pagevec's
    EXPECT_EQ(mapping.nrpages, 1u);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_file_pages), 1);
    fm().unlock_page(page);
    EXPECT_EQ(fm().find_get_page(mapping, 77), &page);
    EXPECT_EQ(page_count(page), 4);
    EXPECT_EQ(fm().find_get_page(mapping, 78), nullptr);
    w.m.lru.put_page(page);
    w.m.lru.put_page(page);
    drop(page);
    EXPECT_EQ(mapping.nrpages, 0u);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_file_pages), 0);
  });
}

TEST_F(FilemapTest, TheSecondPageForAnIndexIsRefusedAndStaysAsItWas) {
  w.run([&] {
    cached(5);
    Page& late = new_page();
    EXPECT_EQ(error_of(fm().add_to_page_cache_lru(late, mapping, 5, GFP_KERNEL)), Errno::exist);
    EXPECT_EQ(late.mapping.load(), 0u);
    EXPECT_FALSE(late.test(PageFlag::locked));
    EXPECT_EQ(page_count(late), 1);
    EXPECT_EQ(mapping.nrpages, 1u);
    w.m.lru.put_page(late);
  });
}

TEST_F(FilemapTest, WithoutMemoryForATreeNodeNothingIsInsertedAndNothingIsLost) {
  w.run([&] {
    Page& page = new_page();
    // All memory is taken, in page-sized pieces, but for what no normal request gets.
    std::vector<Page*> hoard;
    while (Page* p = w.m.pages.alloc_page(GFP_NOWAIT | __GFP_NOWARN)) hoard.push_back(p);
    const uint32_t nodes = mapping.page_tree.node_count();
    EXPECT_EQ(error_of(fm().add_to_page_cache_lru(page, mapping, 1000000, GFP_NOWAIT)), Errno::nomem);
    EXPECT_EQ(mapping.page_tree.node_count(), nodes);
    EXPECT_EQ(page.mapping.load(), 0u);
    EXPECT_EQ(page_count(page), 1);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_file_pages), 0);
    {
      ThreadFlagScope reclaiming(PF_MEMALLOC);  // who frees memory gets its node from the reserve
      ASSERT_TRUE(fm().add_to_page_cache_lru(page, mapping, 1000000, GFP_NOWAIT));
      fm().unlock_page(page);
    }
    for (Page* p : hoard) w.m.lru.put_page(*p);
    drop(page);
    w.m.lru.put_page(page);
  });
}

TEST_F(FilemapTest, AShadowIsNotAPageAndGivesWayToOne) {
  w.run([&] {
    {
      RadixPreload none(fm().node_source());
      ScopedLock guard(mapping.tree_lock);
      ASSERT_TRUE(mapping.page_tree.radix_tree_insert(9, make_exceptional_entry(1234), none));
      ASSERT_TRUE(mapping.page_tree.radix_tree_insert(10, make_exceptional_entry(5678), none));
      mapping.nrexceptional = 2;
    }
    EXPECT_EQ(fm().find_get_page(mapping, 9), nullptr);
    Page& page = cached(9);
    EXPECT_EQ(mapping.nrexceptional, 1u);
    EXPECT_EQ(mapping.nrpages, 1u);
    cached(11);
    Page* found[4];
    ASSERT_EQ(fm().find_get_pages(mapping, 0, 4, found), 2u);
    EXPECT_EQ(found[0], &page);
    EXPECT_EQ(found[1]->index, 11u);
    w.m.lru.release_pages(found, 2);
  });
}

TEST_F(FilemapTest, WhoWaitedForAPageThatLeftItsFileMeanwhileLooksAgain) {
  w.run([&] {
    Page& old = new_page();
    ASSERT_TRUE(fm().add_to_page_cache_lru(old, mapping, 4, GFP_KERNEL));
    Page* found = nullptr;
    w.spawn("finder", [&] {
      found = fm().find_lock_page(mapping, 4);
      if (found != nullptr) fm().unlock_page(*found);
    });
    w.world.schedule_timeout(1_ms);
    fm().delete_from_page_cache(old);
    w.m.lru.put_page(old);
    Page& fresh = cached(4);
    fm().unlock_page(old);
    w.m.lru.put_page(old);
    w.world.schedule_timeout(1_ms);
    EXPECT_EQ(found, &fresh);
    if (found != nullptr) w.m.lru.put_page(*found);
  });
}

TEST_F(FilemapTest, GangLookupsGoByIndexAndStopAtTheEnd) {
  w.run([&] {
    for (uint64_t i : {0, 1, 63, 64, 4095, 4096, 70000}) cached(i);
    Page* found[64];
    ASSERT_EQ(fm().find_get_pages(mapping, 1, 64, found), 6u);
    std::vector<uint64_t> indices;
    for (int i = 0; i < 6; ++i) indices.push_back(found[i]->index);
    EXPECT_EQ(indices, (std::vector<uint64_t>{1, 63, 64, 4095, 4096, 70000}));
    w.m.lru.release_pages(found, 6);
    {
      ScopedLock guard(mapping.tree_lock);
      for (uint64_t i : {1, 64, 70000}) mapping.page_tree.tag_set(i, PAGECACHE_TAG_DIRTY);
    }
    ASSERT_EQ(fm().find_get_pages_tag(mapping, 0, 69999, PageTag::dirty, 64, found), 2u);
    EXPECT_EQ(found[1]->index, 64u);
    w.m.lru.release_pages(found, 2);
  });
}

TEST_F(FilemapTest, TheRecordingShowsWhatCameAndWent) {
  FlowLog log;
  w.world.set_sink(&log);
  uint64_t pfn = 0;
  w.run([&] {
    Page& page = cached(8);
    pfn = w.m.mem.pfn(page).v;
    drop(page);
  });
  w.world.set_sink(nullptr);
  const auto states = log.states(State::page_cache);
  ASSERT_EQ(states.size(), 2u);
  EXPECT_EQ((std::vector<uint64_t>{states[0].a, states[0].b, states[0].c}), (std::vector<uint64_t>{8, 0, pfn + 1}));
  EXPECT_EQ((std::vector<uint64_t>{states[1].a, states[1].b, states[1].c}), (std::vector<uint64_t>{8, pfn + 1, 0}));
  EXPECT_EQ(log.calls("add_to_page_cache").size(), 1u);
}

}  // namespace
}  // namespace weir
