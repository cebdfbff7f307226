// LRU lists, pagevecs, references (mm/swap.cpp).
#include <gtest/gtest.h>

#include <random>

#include "mm/mm_types.hpp"
#include "mm/swap.hpp"
#include "support/mm_fixture.hpp"

namespace weir::test {
namespace {

constexpr unsigned at(LruList list) { return static_cast<unsigned>(list); }

class LruMachine : public TestMachine {
 public:
  explicit LruMachine(unsigned cpus = 1)
      : TestMachine({.ram = Bytes(uint64_t{8} << 20), .cpus = cpus}), lru(pages, vmstat, mmu, cpus) {
    WEIR_BUG_ON(!lru.init());
  }
  Lru lru;

  Page& anon() {
    Page* page = pages.alloc_page(GFP_HIGHUSER_MOVABLE);
    WEIR_BUG_ON(page == nullptr);
    page->set(PageFlag::swapbacked);
    return *page;
  }
  Page& file() {
    Page* page = pages.alloc_page(GFP_HIGHUSER_MOVABLE);
    WEIR_BUG_ON(page == nullptr);
    return *page;
  }
  /// The five sizes by counting, after all lists' other books were found to agree.
  std::vector<int64_t> sizes() {
    std::vector<int64_t> found;
    for (unsigned l = 0; l < NR_LRU_LISTS; ++l) {
      int64_t length = 0;
      for (Page& page : node.lruvec.lists[l]) {
        ++length;
        EXPECT_TRUE(page.test(PageFlag::lru));
        EXPECT_EQ(at(lru.page_lru(page)), l);
      }
      EXPECT_EQ(length, node.lruvec.size[l].v);
      EXPECT_EQ(length, lru.lru_size(static_cast<LruList>(l)).v);
      found.push_back(length);
    }
    return found;
  }
  /// The list a page is on, by looking at all of them.
  LruList list_of(const Page& page) {
    LruList found = LruList::count;
    for (unsigned l = 0; l < NR_LRU_LISTS; ++l)
      for (Page& p : node.lruvec.lists[l])
        if (&p == &page) {
          EXPECT_EQ(found, LruList::count) << "on two lists";
          found = static_cast<LruList>(l);
        }
    return found;
  }
};

TEST(Lru, APageWaitsInThePagevecWithAReferenceOfItsOwn) {
  LruMachine m;
  std::vector<Page*> pages;
  for (unsigned i = 0; i + 1 < PAGEVEC_SIZE; ++i) {
    pages.push_back(&m.anon());
    m.lru.lru_cache_add(*pages.back());
    EXPECT_EQ(page_count(*pages.back()), 2);
    EXPECT_EQ(m.lru.in_pagevecs(*pages.back()), 1u);
  }
  EXPECT_EQ(m.sizes(), (std::vector<int64_t>{0, 0, 0, 0, 0}));
  pages.push_back(&m.anon());
  m.lru.lru_cache_add(*pages.back());
  EXPECT_EQ(m.sizes(), (std::vector<int64_t>{PAGEVEC_SIZE, 0, 0, 0, 0}));
  for (Page* page : pages) {
    EXPECT_EQ(page_count(*page), 1);
    EXPECT_EQ(m.lru.in_pagevecs(*page), 0u);
    m.lru.put_page(*page);
  }
  EXPECT_EQ(m.sizes(), (std::vector<int64_t>{0, 0, 0, 0, 0}));
  EXPECT_EQ(m.faults(), "");
}

TEST(Lru, FlagsNameTheList) {
  LruMachine m;
  Page* pages[5] = {&m.anon(), &m.anon(), &m.file(), &m.file(), &m.anon()};
  pages[1]->set(PageFlag::active);
  pages[3]->set(PageFlag::active);
  m.lru.lru_cache_add_anon(*pages[0]);
  m.lru.lru_cache_add_anon(*pages[1]);
  m.lru.lru_cache_add_file(*pages[2]);
  m.lru.lru_cache_add_file(*pages[3]);
  m.lru.add_page_to_unevictable_list(*pages[4]);
  m.lru.lru_add_drain();
  const LruList lists[] = {LruList::inactive_anon, LruList::active_anon, LruList::inactive_file, LruList::active_file,
                           LruList::unevictable};
  for (int i = 0; i < 5; ++i) EXPECT_EQ(m.list_of(*pages[i]), lists[i]);
  EXPECT_EQ(m.sizes(), (std::vector<int64_t>{1, 1, 1, 1, 1}));
  for (Page* page : pages) m.lru.put_page(*page);
  EXPECT_EQ(m.sizes(), (std::vector<int64_t>{0, 0, 0, 0, 0}));
}

TEST(Lru, NewFaultPagesAreActiveAndLockedOnesUnevictable) {
  LruMachine m;
  VmArea plain, locked;
  plain.vm_flags = VM_READ | VM_WRITE;
  locked.vm_flags = VM_READ | VM_WRITE | VM_LOCKED;
  Page& a = m.anon();
  Page& b = m.anon();
  m.lru.lru_cache_add_active_or_unevictable(a, plain);
  m.lru.lru_cache_add_active_or_unevictable(b, locked);
  EXPECT_EQ(m.list_of(b), LruList::unevictable) << "no pagevec for this list";
  m.lru.lru_add_drain();
  EXPECT_EQ(m.list_of(a), LruList::active_anon);
  EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_mlock), 1);
  m.lru.put_page(a);
  m.lru.put_page(b);
  EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_mlock), 0);
}

// Row 32's table, with the page on its list and still in the pagevec, anonymous and file.
TEST(Lru, MarkPageAccessedStateMachine) {
  struct Step {
    bool active, referenced;
  };
  const Step steps[] = {{false, false}, {false, true}, {true, false}, {true, true}, {true, true}};
  for (const bool file : {false, true}) {
    for (const bool on_list : {false, true}) {
      SCOPED_TRACE(std::string(file ? "file" : "anon") + (on_list ? ", on a list" : ", in the pagevec"));
      LruMachine m;
      Page& page = file ? m.file() : m.anon();
      m.lru.lru_cache_add(page);
      if (on_list) m.lru.lru_add_drain();
      for (const Step& step : steps) {
        EXPECT_EQ(page.test(PageFlag::active), step.active);
        EXPECT_EQ(page.test(PageFlag::referenced), step.referenced);
        m.lru.mark_page_accessed(page);
        if (on_list) m.lru.lru_add_drain();
      }
      m.lru.lru_add_drain();
      EXPECT_EQ(m.list_of(page), file ? LruList::active_file : LruList::active_anon);
      m.lru.put_page(page);
    }
  }
}

TEST(Lru, AnUnevictablePageIsOnlyMarked) {
  LruMachine m;
  Page& page = m.anon();
  m.lru.add_page_to_unevictable_list(page);
  for (int i = 0; i < 3; ++i) m.lru.mark_page_accessed(page);
  m.lru.activate_page(page);
  m.lru.rotate_reclaimable_page(page);
  m.lru.lru_add_drain();
  EXPECT_EQ(m.list_of(page), LruList::unevictable);
  EXPECT_FALSE(page.test(PageFlag::active));
  m.lru.put_page(page);
}

TEST(Lru, ActivationMovesToTheHeadAndIsCountedAndRecorded) {
  LruMachine m;
  Page& first = m.anon();
  Page& second = m.anon();
  for (Page* p : {&first, &second}) {
    m.lru.lru_cache_add(*p);
    m.lru.lru_add_drain();
  }
  Trace trace;
  m.lru.activate_page(first);
  m.lru.lru_add_drain();
  m.lru.activate_page(second);
  m.lru.lru_add_drain();
  EXPECT_EQ(&m.node.lruvec.lists[at(LruList::active_anon)].front(), &second);
  EXPECT_EQ(m.vmstat.event(VmEvent::pgactivate), 2u);
  EXPECT_EQ(m.node.lruvec.reclaim_stat.recent_rotated[0], 2u);
  EXPECT_EQ(m.node.lruvec.reclaim_stat.recent_scanned[0], 4u);
  const uint64_t pfn = m.mem.pfn(first).v;
  EXPECT_EQ(trace.of(State::lru).at(0),
            (Trace::StateChange{State::lru, pfn, at(LruList::inactive_anon), at(LruList::active_anon)}));
  m.lru.put_page(first);
  m.lru.put_page(second);
}

TEST(Lru, AWrittenPageIsRotatedToTheTailOfTheInactiveList) {
  LruMachine m;
  std::vector<Page*> pages;
  for (int i = 0; i < 5; ++i) {
    pages.push_back(&m.anon());
    m.lru.lru_cache_add(*pages.back());
    m.lru.lru_add_drain();
  }
  Page& newest = *pages.back();
  newest.set(PageFlag::dirty);
  m.lru.rotate_reclaimable_page(newest);
  m.lru.lru_add_drain();
  EXPECT_EQ(&m.node.lruvec.lists[0].front(), &newest) << "dirty again: nothing gained by looking at it soon";
  newest.clear(PageFlag::dirty);
  m.lru.rotate_reclaimable_page(newest);
  m.lru.lru_add_drain();
  EXPECT_EQ(&m.node.lruvec.lists[0].back(), &newest);
  EXPECT_EQ(m.vmstat.event(VmEvent::pgrotated), 1u);
  // From the active list too: reclaim puts pages under writeback there, out of its way.
  m.lru.activate_page(newest);
  m.lru.lru_add_drain();
  m.lru.rotate_reclaimable_page(newest);
  m.lru.lru_add_drain();
  EXPECT_EQ(m.list_of(newest), LruList::inactive_anon);
  EXPECT_EQ(&m.node.lruvec.lists[0].back(), &newest);
  for (Page* page : pages) m.lru.put_page(*page);
}

TEST(Lru, APageFreedInThePagevecGoesWithThePagevecsReference) {
  LruMachine m;
  const int64_t free_before = m.pages.nr_free_pages().v;
  Page& page = m.anon();
  m.lru.lru_cache_add(page);
  m.lru.put_page(page);
  EXPECT_EQ(page_count(page), 1);
  m.lru.lru_add_drain();
  EXPECT_EQ(page_count(page), 0);
  m.pages.drain_all_pages();
  EXPECT_EQ(m.pages.nr_free_pages().v, free_before);
  EXPECT_EQ(m.sizes(), (std::vector<int64_t>{0, 0, 0, 0, 0}));
}

TEST(Lru, MlockTakesAPageOutOfReclaimsSightAndMunlockBringsItBack) {
  LruMachine m;
  Page& page = m.anon();
  m.lru.lru_cache_add(page);
  m.lru.lru_add_drain();
  m.lru.mlock_vma_page(page);
  EXPECT_EQ(m.list_of(page), LruList::unevictable);
  m.lru.mlock_vma_page(page);
  EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_mlock), 1);
  m.lru.munlock_vma_page(page);
  m.lru.lru_add_drain();
  EXPECT_EQ(m.list_of(page), LruList::inactive_anon);
  EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_mlock), 0);
  EXPECT_EQ(m.vmstat.event(VmEvent::unevictable_pgs_culled), 1u);
  EXPECT_EQ(m.vmstat.event(VmEvent::unevictable_pgs_rescued), 1u);
  EXPECT_EQ(page_count(page), 1);
  m.lru.put_page(page);
}

TEST(Lru, AnIsolatedPageIsOnNoListAndGoesBackToItsOwn) {
  LruMachine m;
  Page& page = m.file();
  page.set(PageFlag::active);
  m.lru.lru_cache_add(page);
  EXPECT_EQ(m.lru.isolate_lru_page(page).error(), Errno::busy) << "it is in a pagevec";
  m.lru.lru_add_drain();
  ASSERT_TRUE(m.lru.isolate_lru_page(page));
  EXPECT_EQ(m.list_of(page), LruList::count);
  EXPECT_FALSE(page.test(PageFlag::lru));
  EXPECT_EQ(page_count(page), 2);
  m.lru.putback_lru_page(page);
  m.lru.lru_add_drain();
  EXPECT_EQ(m.list_of(page), LruList::active_file);
  EXPECT_EQ(page_count(page), 1);
  m.lru.put_page(page);
}

TEST(Lru, DrainAllEmptiesEveryCpu) {
  LruMachine m(2);
  VirtualWorld world({.cpus = 2});
  std::vector<Page*> pages;
  for (int t = 0; t < 2; ++t) {
    world.spawn("adder", [&] {
      for (int i = 0; i < 5; ++i) {
        pages.push_back(&m.anon());
        m.lru.lru_cache_add(*pages.back());
        weir::world().spend(1_us);
      }
    });
  }
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished);
  EXPECT_EQ(m.sizes(), (std::vector<int64_t>{0, 0, 0, 0, 0}));
  m.lru.lru_add_drain_all();
  EXPECT_EQ(m.sizes(), (std::vector<int64_t>{10, 0, 0, 0, 0}));
  for (Page* page : pages) m.lru.put_page(*page);
}

TEST(Lru, TheAgingHandPassesEveryInactivePageOnce) {
  LruMachine m;
  std::vector<Page*> pages;
  for (int i = 0; i < 20; ++i) {
    pages.push_back(&m.anon());
    m.lru.lru_cache_add(*pages.back());
  }
  m.lru.lru_add_drain();
  Page* got[64];
  std::vector<Page*> seen;
  const auto look = [&](unsigned max) {
    const unsigned n = m.lru.pages_to_age(got, max);
    for (unsigned i = 0; i < n; ++i) {
      seen.push_back(got[i]);
      m.lru.set_page_aged(*got[i]);
    }
    m.lru.release_pages(got, n);
    return n;
  };
  EXPECT_EQ(look(8), 8u);
  // The page under the hand leaves; the hand goes on behind it.
  m.lru.activate_page(*pages[8]);
  m.lru.lru_add_drain();
  EXPECT_EQ(look(64), 11u);
  EXPECT_EQ(look(64), 0u);
  EXPECT_EQ(m.lru.nr_aged().v, 19);
  std::vector<Page*> expected = pages;
  expected.erase(expected.begin() + 8);
  EXPECT_EQ(seen, expected) << "oldest first";
  // A new page at the head is next; a page that was activated has lost its mark.
  pages.push_back(&m.anon());
  m.lru.lru_cache_add(*pages.back());
  m.lru.activate_page(*pages[3]);
  m.lru.lru_add_drain();
  EXPECT_EQ(m.lru.nr_aged().v, 18);
  seen.clear();
  EXPECT_EQ(look(64), 1u);
  EXPECT_EQ(seen, std::vector<Page*>{pages.back()});
  for (Page* page : pages) m.lru.put_page(*page);
  EXPECT_EQ(m.lru.nr_aged().v, 0);
}

// Everything at once on several CPUs: at the end each page is where its flags say, with its own references.
TEST(Lru, ListsAndCountersAgreeUnderManySchedules) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    LruMachine m(3);
    VirtualWorld world({.seed = seed, .cpus = 3, .preempt_one_in = 4});
    std::vector<Page*> pages;
    for (int i = 0; i < 60; ++i) {
      pages.push_back(i % 2 == 0 ? &m.anon() : &m.file());
      m.lru.lru_cache_add(*pages.back());
    }
    for (int t = 0; t < 4; ++t) {
      world.spawn("worker", [&, t] {
        std::mt19937_64 rng(seed * 8 + static_cast<uint64_t>(t));
        for (int i = 0; i < 200; ++i) {
          Page& page = *pages[rng() % pages.size()];
          switch (rng() % 6) {
            case 0: m.lru.mark_page_accessed(page); break;
            case 1: m.lru.activate_page(page); break;
            case 2: m.lru.rotate_reclaimable_page(page); break;
            case 3:
              if (m.lru.isolate_lru_page(page)) m.lru.putback_lru_page(page);
              break;
            case 4: m.lru.lru_add_drain(); break;
            default: {
              Page& own = m.anon();
              m.lru.lru_cache_add(own);
              m.lru.put_page(own);
            }
          }
        }
      });
    }
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
    m.lru.lru_add_drain_all();
    const std::vector<int64_t> sizes = m.sizes();
    EXPECT_EQ(sizes[0] + sizes[1], 30);
    EXPECT_EQ(sizes[2] + sizes[3], 30);
    for (Page* page : pages) {
      EXPECT_EQ(page_count(*page), 1);
      EXPECT_NE(m.list_of(*page), LruList::count);
    }
    Page** all = pages.data();
    m.lru.release_pages(all, static_cast<unsigned>(pages.size()));
    EXPECT_EQ(m.sizes(), (std::vector<int64_t>{0, 0, 0, 0, 0}));
    EXPECT_EQ(m.faults(), "");
  }
}

}  // namespace
}  // namespace weir::test
