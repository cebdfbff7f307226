// Frames handed out and taken back: buddy lists, per-CPU lists, zones, migrate types, quarantine, balloon.
#include "mm/page_alloc.hpp"

#include <gmock/gmock.h>

#include <map>
#include <random>
#include <set>

#include "support/mm_fixture.hpp"

namespace weir {
namespace {

using test::MachineOptions;
using test::run_world;
using test::TestMachine;
using test::Trace;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr gfp_t UNMOVABLE = GFP_NOWAIT | __GFP_NOWARN;
constexpr gfp_t MOVABLE = UNMOVABLE | __GFP_HIGHMEM | __GFP_MOVABLE;
/// Takes everything, reserves too: for tests that empty a machine.
constexpr gfp_t ALL = __GFP_MEMALLOC | __GFP_NOWARN;

/// 16 MiB of DMA32 below, the rest NORMAL.
constexpr MachineOptions two_zones(Bytes ram) {
  MachineOptions options;
  options.ram = ram;
  options.dma32_end = Pfn(4096);
  return options;
}

std::vector<Page*> exhaust(TestMachine& m, gfp_t gfp, Order order = Order(0)) {
  std::vector<Page*> pages;
  while (Page* page = m.pages.alloc_pages(gfp, order)) pages.push_back(page);
  return pages;
}

// ---- One page -------------------------------------------------------------------------------------------------------

TEST(PageAlloc, APageComesCleanAndGoesClean) {
  TestMachine m;
  Page* page = m.pages.alloc_page(GFP_KERNEL | __GFP_ZERO);
  ASSERT_NE(page, nullptr);
  EXPECT_EQ(page_count(*page), 1);
  EXPECT_EQ(page_mapcount(*page), 0);
  EXPECT_EQ(page->flags.load(), flag_bit(PageFlag::kernel_place));
  const std::byte* bytes = m.mem.page_address(*page);
  EXPECT_TRUE(std::all_of(bytes, bytes + PAGE_SIZE, [](std::byte b) { return b == std::byte{0}; }));
  page->set(PageFlag::uptodate);
  page->index = 7;
  page->mapping = 0x1000 | PAGE_MAPPING_ANON;  // an anonymous page may be freed as it is
  m.pages.__free_pages(*page, Order(0));
  EXPECT_EQ(page->flags.load(), flag_bit(PageFlag::pcp));
  EXPECT_EQ(page->index + page->private_ + page->mapping + static_cast<uint64_t>(page->_mapcount), 0u);
  EXPECT_EQ(m.faults(), "");
}

TEST(PageAlloc, AUserPageIsClearedByTheArchitecture) {
  TestMachine m;
  Page* page = m.pages.alloc_page(GFP_HIGHUSER_MOVABLE | __GFP_ZERO);
  EXPECT_EQ(m.mmu.cleared, 1u);
  EXPECT_FALSE(page->test(PageFlag::kernel_place));
}

TEST(PageAlloc, OnlyTheFirstPageOfABlockIsSetUp) {
  TestMachine m;
  Page* block = m.pages.alloc_pages(GFP_KERNEL, Order(3));
  EXPECT_EQ(page_count(*block), 1);
  for (int i = 1; i < 8; ++i) {
    const Page& tail = *(block + i);
    EXPECT_EQ(tail.flags.load() + static_cast<uint64_t>(tail._refcount) + tail.private_, 0u) << i;
  }
}

TEST(PageAlloc, AReferenceIsOnlyTakenWhereThereIsOne) {
  TestMachine m;
  Page* page = m.pages.alloc_page(GFP_KERNEL);
  EXPECT_TRUE(PageAllocator::get_page_unless_zero(*page));
  EXPECT_EQ(page_count(*page), 2);
  m.pages.__free_pages(*page, Order(0));
  EXPECT_EQ(page_count(*page), 1);
  m.pages.__free_pages(*page, Order(0));
  EXPECT_FALSE(PageAllocator::get_page_unless_zero(*page));
}

TEST(PageAllocDeathTest, WhatSomebodyStillHoldsCannotBeFreed) {
  TestMachine m;
  const auto freeing = [&](auto spoil) {
    Page* page = m.pages.alloc_page(GFP_KERNEL);
    spoil(*page);
    m.pages.__free_pages(*page, Order(0));
  };
  EXPECT_DEATH(freeing([](Page& p) { p._mapcount = 0; }), "is mapped");
  EXPECT_DEATH(freeing([](Page& p) { p.mapping = 0x1000; }), "belongs to a mapping");
  EXPECT_DEATH(freeing([](Page& p) { p.set(PageFlag::lru); }), "on an LRU list");
  EXPECT_DEATH(freeing([](Page& p) { p.set(PageFlag::locked); }), "is locked");
  EXPECT_DEATH(freeing([](Page& p) { p.set(PageFlag::writeback); }), "being written");
  EXPECT_DEATH(freeing([](Page& p) { p.set(PageFlag::swapcache); }), "in the swap cache");
  EXPECT_DEATH(freeing([](Page& p) { p.set(PageFlag::slab); }), "somebody has the page");
  EXPECT_DEATH(freeing([](Page& p) { p.set(PageFlag::table); }), "somebody has the page");
}

TEST(PageAllocDeathTest, APageIsFreedOnce) {
  TestMachine m;
  Page* page = m.pages.alloc_page(GFP_KERNEL);
  m.pages.__free_pages(*page, Order(0));
  EXPECT_DEATH(m.pages.free_hot_cold_page(*page), "mapped|free already");
}

TEST(PageAllocDeathTest, AWriteToAFreePageIsNoticedWhenItIsHandedOut) {
  TestMachine m;
  Page* block = m.pages.alloc_pages(GFP_KERNEL, Order(5));
  m.pages.__free_pages(*block, Order(5));
  block->mapping = 0x1000;
  EXPECT_DEATH((void)exhaust(m, UNMOVABLE), "check_new_page|check_pcp_refill");
}

// ---- Buddies --------------------------------------------------------------------------------------------------------

TEST(PageAlloc, ABlockIsSplitDownToTheOrderAskedFor) {
  TestMachine m;
  const auto before = m.buddyinfo(ZoneType::DMA32);
  Trace trace;
  Page* block = m.pages.alloc_pages(MOVABLE, Order(7));
  const uint64_t pfn = m.mem.pfn(block).v;
  EXPECT_EQ(pfn % 128, 0u);
  const auto found = trace.of(State::buddy_find);
  ASSERT_EQ(found.size(), 1u);
  const uint64_t order_found = found[0].after;
  // The low half is kept, each upper half goes to the list below.
  std::vector<Trace::StateChange> halves;
  for (uint64_t o = order_found; o-- > 7;) halves.push_back({State::buddy_split, pfn + (uint64_t{1} << o), o + 1, o});
  EXPECT_EQ(trace.of(State::buddy_split), halves);
  auto expected = before;
  --expected[order_found];
  for (uint64_t o = order_found; o-- > 7;) ++expected[o];
  EXPECT_EQ(m.buddyinfo(ZoneType::DMA32), expected);
  m.pages.__free_pages(*block, Order(7));
  EXPECT_EQ(m.buddyinfo(ZoneType::DMA32), before);
}

TEST(PageAlloc, TheSmallestSufficientOrderIsTaken) {
  TestMachine m;
  Zone& zone = m.zone(ZoneType::DMA32);
  EXPECT_EQ(m.faults(), "");  // afterwards every free block is on a list
  std::mt19937_64 rng(5);
  for (int i = 0; i < 300; ++i) {
    const unsigned order = rng() % 6;
    unsigned smallest = order;
    while (zone.free_area[smallest].free_list[static_cast<unsigned>(MigrateType::movable)].empty())
      ASSERT_LT(++smallest, MAX_ORDER);
    Trace trace;
    ASSERT_NE(m.pages.alloc_pages(MOVABLE, Order(static_cast<uint8_t>(order))), nullptr);
    if (order > 0) {
      EXPECT_EQ(trace.of(State::buddy_find).at(0).after, smallest);
    }
  }
}

TEST(PageAlloc, WhetherBlocksWereListedAtBootIsNotSeen) {
  TestMachine eager(two_zones(256_MiB)), lazy(two_zones(256_MiB));
  EXPECT_GT(lazy.zone(ZoneType::NORMAL).nr_untouched, 0u);
  EXPECT_EQ(eager.faults(), "");  // lists them
  EXPECT_EQ(eager.zone(ZoneType::NORMAL).nr_untouched, 0u);
  std::mt19937_64 rng(1);
  std::vector<std::pair<Page*, Page*>> live;
  for (int i = 0; i < 20000; ++i) {
    const Order order(i % 7 == 0 ? static_cast<uint8_t>(rng() % MAX_ORDER) : 0);
    const gfp_t gfp = rng() % 3 == 0 ? UNMOVABLE : MOVABLE;
    Page* a = eager.pages.alloc_pages(gfp, order);
    Page* b = lazy.pages.alloc_pages(gfp, order);
    ASSERT_EQ(a != nullptr, b != nullptr) << i;
    if (a == nullptr) break;
    ASSERT_EQ(eager.mem.pfn(a), lazy.mem.pfn(b)) << i;
    if (order.v == 0) live.emplace_back(a, b);
    if (rng() % 3 == 0 && !live.empty()) {
      eager.pages.__free_pages(*live.back().first, Order(0));
      lazy.pages.__free_pages(*live.back().second, Order(0));
      live.pop_back();
    }
  }
  EXPECT_EQ(eager.buddyinfo(ZoneType::NORMAL), lazy.buddyinfo(ZoneType::NORMAL));
  EXPECT_EQ(lazy.faults(), "");
}

TEST(PageAlloc, OrdersBeyondTheLargestAreRefused) {
  TestMachine m;
  EXPECT_EQ(m.pages.alloc_pages(GFP_KERNEL, Order(MAX_ORDER)), nullptr);
  EXPECT_NE(m.pages.alloc_pages(GFP_KERNEL, Order(MAX_ORDER - 1)), nullptr);
}

TEST(PageAlloc, RandomUseOverlapsNothingAndLeavesTheListsAsAtBoot) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  TestMachine m(two_zones(48_MiB));
  const auto dma32 = m.buddyinfo(ZoneType::DMA32), normal = m.buddyinfo(ZoneType::NORMAL);
  const PageCount free_at_boot = m.pages.nr_free_pages();
  struct Block {
    Page* page;
    unsigned order;
  };
  std::vector<Block> live;
  std::vector<bool> taken(static_cast<size_t>(m.mem.frames.v));
  const gfp_t kinds[] = {UNMOVABLE, MOVABLE, UNMOVABLE | __GFP_RECLAIMABLE, UNMOVABLE | __GFP_DMA32,
                         MOVABLE | __GFP_COLD};
  for (int step = 0; step < 30000; ++step) {
    const bool grow = (step / 5000) % 2 == 0;  // fill it, empty it, again
    if (live.empty() || rng() % 8 < (grow ? 5u : 3u)) {
      const unsigned order = rng() % 4 == 0 ? rng() % MAX_ORDER : 0;
      Page* page = m.pages.alloc_pages(kinds[rng() % std::size(kinds)], Order(static_cast<uint8_t>(order)));
      if (page == nullptr) continue;
      const uint64_t pfn = m.mem.pfn(page).v;
      ASSERT_EQ(pfn % (uint64_t{1} << order), 0u);
      for (uint64_t i = 0; i < uint64_t{1} << order; ++i) {
        ASSERT_FALSE(taken[pfn + i]) << "frame " << pfn + i << " handed out twice, step " << step;
        taken[pfn + i] = true;
      }
      live.push_back({page, order});
    } else {
      std::swap(live[rng() % live.size()], live.back());
      const Block b = live.back();
      live.pop_back();
      const uint64_t pfn = m.mem.pfn(b.page).v;
      for (uint64_t i = 0; i < uint64_t{1} << b.order; ++i) taken[pfn + i] = false;
      m.pages.__free_pages(*b.page, Order(static_cast<uint8_t>(b.order)));
    }
    if (step % 3000 == 0) {
      ASSERT_EQ(m.faults(), "") << "step " << step;
    }
  }
  for (const Block& b : live) m.pages.__free_pages(*b.page, Order(static_cast<uint8_t>(b.order)));
  EXPECT_EQ(m.buddyinfo(ZoneType::DMA32), dma32);
  EXPECT_EQ(m.buddyinfo(ZoneType::NORMAL), normal);
  EXPECT_EQ(m.pages.nr_free_pages(), free_at_boot);
  EXPECT_EQ(m.faults(), "");
}

TEST(PageAlloc, EventsAreCountedInPages) {
  TestMachine m(two_zones(48_MiB));
  const auto event = [&](VmEvent e) { return m.vmstat.event(e); };
  const uint64_t normal = event(VmEvent::pgalloc_normal), dma32 = event(VmEvent::pgalloc_dma32),
                 freed = event(VmEvent::pgfree);
  Page* a = m.pages.alloc_pages(UNMOVABLE, Order(4));
  Page* b = m.pages.alloc_page(UNMOVABLE | __GFP_DMA32);
  EXPECT_EQ(event(VmEvent::pgalloc_normal), normal + 16);
  EXPECT_EQ(event(VmEvent::pgalloc_dma32), dma32 + 1);
  m.pages.__free_pages(*a, Order(4));
  m.pages.__free_pages(*b, Order(0));
  EXPECT_EQ(event(VmEvent::pgfree), freed + 17);
}

// ---- Zones ----------------------------------------------------------------------------------------------------------

TEST(PageAlloc, ZonesHoldAllMemory) {
  TestMachine m(two_zones(48_MiB));
  EXPECT_EQ(m.zone(ZoneType::DMA32).present_pages, PageCount(4096));
  EXPECT_EQ(m.zone(ZoneType::NORMAL).present_pages, PageCount(8192));
  EXPECT_EQ(m.zone(ZoneType::NORMAL).zone_start_pfn, Pfn(4096));
  EXPECT_THAT(std::vector<Zone*>(m.node.zonelist.zones, m.node.zonelist.zones + m.node.zonelist.count),
              ElementsAre(&m.zone(ZoneType::NORMAL), &m.zone(ZoneType::DMA32)));
}

TEST(PageAlloc, ADma32RequestFailsWhileNormalHasPages) {
  TestMachine m(two_zones(48_MiB));
  for (Page* page : exhaust(m, ALL | __GFP_DMA32)) ASSERT_LT(m.mem.pfn(page), Pfn(4096));
  EXPECT_EQ(m.pages.alloc_page(UNMOVABLE | __GFP_DMA32), nullptr);
  EXPECT_GT(m.zone(ZoneType::NORMAL).nr_free.load(), 1000);
  Page* page = m.pages.alloc_page(UNMOVABLE);
  ASSERT_NE(page, nullptr);
  EXPECT_GE(m.mem.pfn(page), Pfn(4096));
}

TEST(PageAlloc, AnExhaustedZoneMovesOnToTheLowerOne) {
  TestMachine m(two_zones(48_MiB));
  const Zone& normal = m.zone(ZoneType::NORMAL);
  const Zone& dma32 = m.zone(ZoneType::DMA32);
  Page* page = m.pages.alloc_page(UNMOVABLE);
  for (; m.mem.pfn(page) >= Pfn(4096); page = m.pages.alloc_page(UNMOVABLE)) {
  }
  EXPECT_LE(normal.nr_free.load(), normal.wmark(Watermark::low));
  exhaust(m, UNMOVABLE);
  EXPECT_LE(normal.nr_free.load(), normal.wmark(Watermark::min));
  // What NORMAL requests must leave in DMA32 is still there for who can use nothing else.
  const int64_t kept = dma32.wmark(Watermark::min) + dma32.lowmem_reserve[1];
  EXPECT_GT(dma32.lowmem_reserve[1], 0);
  EXPECT_LE(dma32.nr_free.load(), kept);
  EXPECT_GT(dma32.nr_free.load(), kept - dma32.pcp->batch);
  EXPECT_NE(m.pages.alloc_page(UNMOVABLE | __GFP_DMA32), nullptr);
}

// ---- Per-CPU lists --------------------------------------------------------------------------------------------------

TEST(PageAlloc, ThirtyOneConsecutiveAllocationsTakeTheZoneLockOnce) {
  TestMachine m({.ram = 1_GiB});
  ASSERT_EQ(m.zone(ZoneType::DMA32).pcp->batch, 31);
  ASSERT_EQ(m.zone(ZoneType::DMA32).pcp->high, 186);
  m.pages.drain_all_pages();
  Trace trace;
  for (int i = 0; i < 31; ++i) ASSERT_NE(m.pages.alloc_page(UNMOVABLE), nullptr);
  EXPECT_EQ(trace.count("rmqueue_bulk"), 1u);
  EXPECT_EQ(trace.of(State::pcp_miss).size(), 1u);
  EXPECT_EQ(trace.of(State::pcp_hit).size(), 30u);
  ASSERT_NE(m.pages.alloc_page(UNMOVABLE), nullptr);
  EXPECT_EQ(trace.count("rmqueue_bulk"), 2u);
}

TEST(PageAlloc, BatchFollowsTheZonesSize) {
  const std::map<uint64_t, int32_t> table = {{16, 1}, {64, 3}, {128, 7}, {256, 15}, {512, 31}, {1024, 31}, {16384, 31}};
  for (const auto& [mib, batch] : table) {
    MachineOptions options;
    options.ram = Bytes(mib << 20);
    options.dma32_end = Pfn(uint64_t{1} << 30);
    TestMachine m(options);
    // Boot keeps a part of memory, so the smallest of a step falls below it.
    const int32_t got = m.zone(ZoneType::DMA32).pcp->batch;
    EXPECT_TRUE(got == batch || got == batch / 2) << mib << " MiB: " << got;
    // A zone too small for lists of its own gives every page back at once.
    EXPECT_EQ(m.zone(ZoneType::DMA32).pcp->high, mib == 16 ? 0 : 6 * got);
  }
}

TEST(PageAlloc, TheLastFreedHotPageIsTheNextHandedOutAndAColdOneTheLast) {
  TestMachine m({.ram = 1_GiB});
  Page* a = m.pages.alloc_page(MOVABLE);
  Page* b = m.pages.alloc_page(MOVABLE);
  Page* c = m.pages.alloc_page(MOVABLE);
  m.pages.__free_pages(*a, Order(0));
  m.pages.__free_pages(*b, Order(0));
  ASSERT_TRUE(PageAllocator::put_page_testzero(*c));
  m.pages.free_hot_cold_page(*c, Temperature::cold);
  EXPECT_EQ(m.pages.alloc_page(MOVABLE), b);
  EXPECT_EQ(m.pages.alloc_page(MOVABLE | __GFP_COLD), c);
  EXPECT_EQ(m.pages.alloc_page(MOVABLE), a);
}

TEST(PageAlloc, AListIsNeverLongerThanHigh) {
  TestMachine m({.ram = 1_GiB});
  std::vector<Page*> pages;
  for (int i = 0; i < 1000; ++i) pages.push_back(m.pages.alloc_page(MOVABLE));
  const PerCpuPages& pcp = *m.zone(ZoneType::DMA32).pcp;
  Trace trace;
  int32_t most = 0;
  for (Page* page : pages) {
    m.pages.__free_pages(*page, Order(0));
    most = std::max(most, pcp.count);
  }
  EXPECT_EQ(most, pcp.high - 1);
  EXPECT_EQ(m.faults(), "");
  m.pages.drain_all_pages();
  EXPECT_EQ(pcp.count, 0);
  EXPECT_EQ(m.faults(), "");
}

TEST(PageAlloc, AFractionSetsTheListsLengths) {
  TestMachine m({.ram = 1_GiB});
  const Zone& zone = m.zone(ZoneType::DMA32);
  m.pages.set_percpu_pagelist_fraction(1000);
  EXPECT_EQ(zone.pcp->high, zone.managed_pages / 1000);
  EXPECT_EQ(zone.pcp->batch, zone.managed_pages / 1000 / 4);
  m.pages.set_percpu_pagelist_fraction(8);
  EXPECT_EQ(zone.pcp->batch, 96);
  m.pages.set_percpu_pagelist_fraction(0);
  EXPECT_EQ(zone.pcp->high, 186);
}

TEST(PageAlloc, ABatchIsFreedAsOne) {
  TestMachine m({.ram = 1_GiB});
  PageList batch;
  for (int i = 0; i < 100; ++i) {
    Page* page = m.pages.alloc_page(MOVABLE);
    ASSERT_TRUE(PageAllocator::put_page_testzero(*page));
    batch.push_back(*page);
  }
  m.pages.free_hot_cold_page_list(batch);
  EXPECT_TRUE(batch.empty());
  EXPECT_EQ(m.faults(), "");
}

TEST(PageAlloc, ManyThreadsOnManyCpus) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    TestMachine m({.ram = 16_MiB, .cpus = 3});
    const auto before = m.buddyinfo(ZoneType::DMA32);
    VirtualWorld world({.seed = seed, .cpus = 3, .preempt_one_in = 4});
    for (int t = 0; t < 5; ++t)
      world.spawn("user", [&, t] {
        std::mt19937_64 rng(seed * 100 + static_cast<uint64_t>(t));
        std::vector<std::pair<Page*, Order>> mine;
        for (int i = 0; i < 200; ++i) {
          const Order order(rng() % 3 == 0 ? static_cast<uint8_t>(rng() % 5) : 0);
          if (Page* page = m.pages.alloc_pages(rng() % 2 == 0 ? MOVABLE : UNMOVABLE, order)) {
            ASSERT_EQ(page->index, 0u);
            page->index = static_cast<uint64_t>(t) + 1;
            mine.emplace_back(page, order);
          }
          if (rng() % 2 == 0 && !mine.empty()) {
            std::swap(mine[rng() % mine.size()], mine.back());
            ASSERT_EQ(mine.back().first->index, static_cast<uint64_t>(t) + 1);
            m.pages.__free_pages(*mine.back().first, mine.back().second);
            mine.pop_back();
          }
          if (rng() % 50 == 0) m.pages.drain_all_pages();
        }
        for (auto [page, order] : mine) m.pages.__free_pages(*page, order);
      });
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
    EXPECT_EQ(m.buddyinfo(ZoneType::DMA32), before);
    EXPECT_EQ(m.faults(), "");
  }
}

// ---- Migrate types --------------------------------------------------------------------------------------------------

TEST(PageAlloc, FallbackTakesTheLargestBlockAndItsPageblock) {
  TestMachine m;
  Zone& zone = m.zone(ZoneType::DMA32);
  m.pages.drain_all_pages();
  // Some movable pages in use, so that there are movable blocks of many orders.
  std::vector<Page*> used;
  for (int i = 0; i < 3; ++i) used.push_back(m.pages.alloc_pages(MOVABLE, Order(0)));
  m.slab.shrink_all();
  std::vector<Page*> kernel;
  Trace trace;
  while (trace.count("steal_suitable_fallback") == 0) {
    Page* page = m.pages.alloc_pages(UNMOVABLE, Order(1));
    ASSERT_NE(page, nullptr);
    kernel.push_back(page);
  }
  unsigned largest = MAX_ORDER - 1;
  while (zone.free_area[largest].nr_free == 0) --largest;
  EXPECT_EQ(largest, MAX_ORDER - 1);
  const auto found = trace.of(State::buddy_find).back();
  EXPECT_EQ(found.after, MAX_ORDER - 1u);
  EXPECT_EQ(zone.block_type(m.mem.pfn(kernel.back())), MigrateType::unmovable);
}

TEST(PageAlloc, TypesKeepToTheirPageblocks) {
  TestMachine m;
  Zone& zone = m.zone(ZoneType::DMA32);
  for (int i = 0; i < 2000; ++i) {
    Page* kernel = m.pages.alloc_page(UNMOVABLE);
    Page* user = m.pages.alloc_page(MOVABLE);
    Page* inode = m.pages.alloc_page(UNMOVABLE | __GFP_RECLAIMABLE);
    ASSERT_EQ(zone.block_type(m.mem.pfn(kernel)), MigrateType::unmovable);
    ASSERT_EQ(zone.block_type(m.mem.pfn(user)), MigrateType::movable);
    ASSERT_EQ(zone.block_type(m.mem.pfn(inode)), MigrateType::reclaimable);
  }
}

TEST(PageAlloc, AMovableRequestTakesOnlyWhatItNeedsFromASmallForeignBlock) {
  TestMachine m({.ram = 16_MiB});
  // Every pageblock becomes the kernel's; then single blocks of order 0 and 3 are free, and nothing else.
  std::vector<Page*> all = exhaust(m, ALL);
  m.pages.drain_all_pages();
  Page* eight = nullptr;
  for (Page* page : all)
    if (m.mem.pfn(page).v % 16 == 0 && page + 8 < m.mem.mem_map + m.mem.frames.v) {
      bool whole = true;
      for (int i = 0; i < 9; ++i) whole &= page_count(*(page + i)) == 1 && !(page + i)->test(PageFlag::slab);
      whole &= page_count(*(page + 15)) == 1 && !(page + 15)->test(PageFlag::slab);
      if (whole) eight = page;
    }
  ASSERT_NE(eight, nullptr);
  Zone& zone = m.zone(ZoneType::DMA32);
  zone.block_type(m.mem.pfn(eight)) = MigrateType::unmovable;
  for (int i = 0; i < 8; ++i) m.pages.__free_pages(*(eight + i), Order(0));
  m.pages.__free_pages(*(eight + 15), Order(0));
  m.pages.drain_all_pages();
  ASSERT_EQ(zone.free_area[0].nr_free, 1u);
  ASSERT_EQ(zone.free_area[3].nr_free, 1u);
  // The smallest that does; the block of 8 stays whole, and the pageblock the kernel's.
  EXPECT_EQ(m.pages.alloc_page(ALL | __GFP_HIGHMEM | __GFP_MOVABLE), eight + 15);
  EXPECT_EQ(zone.free_area[3].nr_free, 1u);
  EXPECT_EQ(zone.block_type(m.mem.pfn(eight)), MigrateType::unmovable);
}

// ---- Recorded as drawn ----------------------------------------------------------------------------------------------

TEST(PageAlloc, TheFastPathIsRecordedAsTheDocumentsDrawIt) {
  TestMachine m({.ram = 1_GiB});
  m.pages.drain_all_pages();
  (void)m.pages.alloc_page(MOVABLE);
  m.pages.drain_all_pages();
  Trace trace;
  (void)m.pages.alloc_page(MOVABLE);
  std::vector<std::string> lines = trace.tree();
  // 31 rounds of the refill, of which one is enough.
  std::vector<std::string> once;
  for (const std::string& line : lines)
    if (std::find(once.begin(), once.end(), line) == once.end()) once.push_back(line);
  EXPECT_THAT(once, ElementsAre("alloc_pages", " __alloc_pages_nodemask", "  prepare_alloc_pages", "   gfp_zone",
                                "   node_zonelist", "   gfpflags_to_migratetype", "  get_page_from_freelist",
                                "   for_next_zone_zonelist_nodemask", "   zone_watermark_fast", "   rmqueue",
                                "    rmqueue_pcplist", "     __rmqueue_pcplist", "      rmqueue_bulk",
                                "       __rmqueue", "        __rmqueue_smallest", "         list_first_entry_or_null",
                                "       check_pcp_refill", "        check_new_page", "       __mod_zone_page_state",
                                "      list_del", "     __count_zid_vm_events", "   prep_new_page"));
  EXPECT_EQ(trace.count("check_pcp_refill"), 31u);
  std::vector<State> states;
  for (const auto& s : trace.states)
    if (s.what != State::buddy_split && s.what != State::free_area && (states.empty() || states.back() != s.what))
      states.push_back(s.what);
  states.resize(5);
  EXPECT_THAT(states,
              ElementsAre(State::zonelist, State::watermark, State::pcp_miss, State::buddy_find, State::buddy_remove));
  EXPECT_EQ(trace.states.back().what, State::page_alloced);
}

TEST(PageAlloc, AHitOnThePerCpuListIsRecordedAsSuch) {
  TestMachine m({.ram = 1_GiB});
  Page* page = m.pages.alloc_page(MOVABLE);
  m.pages.__free_pages(*page, Order(0));
  const int32_t count = m.zone(ZoneType::DMA32).pcp->count;
  Trace trace;
  EXPECT_EQ(m.pages.alloc_page(MOVABLE), page);
  const uint64_t pfn = m.mem.pfn(page).v;
  EXPECT_THAT(trace.of(State::pcp_hit),
              ElementsAre(Trace::StateChange{State::pcp_hit, pfn, static_cast<uint64_t>(count),
                                             static_cast<uint64_t>(count - 1)}));
  EXPECT_THAT(trace.of(State::page_alloced), ElementsAre(Trace::StateChange{State::page_alloced, pfn, 0, 0}));
  EXPECT_THAT(trace.of(State::nr_free), IsEmpty());
}

TEST(PageAlloc, AFreeIsRecordedAsTheDocumentsDrawIt) {
  TestMachine m;
  Page* one = m.pages.alloc_page(MOVABLE);
  Page* four = m.pages.alloc_pages(MOVABLE, Order(2));
  {
    Trace trace;
    m.pages.__free_pages(*one, Order(0));
    EXPECT_THAT(trace.tree({"__free_pages", "free_hot_cold_page"}), ElementsAre("__free_pages", " free_hot_cold_page"));
  }
  Trace trace;
  m.pages.__free_pages(*four, Order(2));
  EXPECT_THAT(trace.tree({"__free_pages", "__free_pages_ok", "free_one_page", "__free_one_page"}),
              ElementsAre("__free_pages", " __free_pages_ok", "  free_one_page", "   __free_one_page"));
  EXPECT_EQ(trace.of(State::page_freed).size(), 1u);
}

// ---- Quarantine and balloon -----------------------------------------------------------------------------------------

TEST(PageAlloc, AFrameWhoseHostPageIsNotGivenBackIsNotFree) {
  TestMachine m({.ram = 64_MiB, .tracks_host_pages = true});
  EXPECT_GT(m.mmu.arch_allocs, 0u);
  Page* page = m.pages.alloc_page(MOVABLE);
  m.mmu.hold_back = true;
  m.pages.__free_pages(*page, Order(0));
  EXPECT_TRUE(PageAllocator::is_quarantined(*page));
  EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_quarantined), 1);
  EXPECT_EQ(m.pages.survey([](void*, const char*, const char*) {}, nullptr).quarantined, 1u);
  EXPECT_NE(m.pages.alloc_page(MOVABLE), page);
  m.mmu.hold_back = false;
  m.mmu.flush_quarantine();
  EXPECT_FALSE(PageAllocator::is_quarantined(*page));
  EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_quarantined), 0);
  EXPECT_EQ(m.faults(), "");
}

TEST(PageAlloc, QuarantineIsFlushedWhenAnAllocationReachesTheMinWatermark) {
  TestMachine m({.ram = 16_MiB, .tracks_host_pages = true});
  m.mmu.hold_back = true;
  std::vector<Page*> pages = exhaust(m, MOVABLE);
  for (Page* page : pages) m.pages.__free_pages(*page, Order(0));
  EXPECT_EQ(m.pages.alloc_page(MOVABLE), nullptr);  // who cannot wait does not ask the host for anything
  EXPECT_EQ(m.mmu.flush_quarantine_calls, 0u);
  EXPECT_NE(m.pages.alloc_page(GFP_HIGHUSER_MOVABLE | __GFP_NOWARN), nullptr);
  EXPECT_EQ(m.mmu.flush_quarantine_calls, 1u);
}

TEST(PageAlloc, TheBalloonHoldsFramesOutOfCirculation) {
  TestMachine m({.ram = 256_MiB});
  const PageCount managed = m.pages.managed_pages();
  const auto before = m.buddyinfo(ZoneType::DMA32);
  const uint64_t kbytes = m.pages.min_free_kbytes();
  const PageCount taken = m.pages.balloon_inflate(PageCount(40000));
  EXPECT_EQ(taken, PageCount(40000));
  EXPECT_EQ(m.pages.managed_pages(), managed - taken);
  EXPECT_EQ(m.pages.survey([](void*, const char*, const char*) {}, nullptr).in_balloon, 40000u);
  EXPECT_LT(m.pages.min_free_kbytes(), kbytes);  // reserves are a share of what is in circulation
  EXPECT_EQ(m.faults(), "");
  EXPECT_EQ(m.pages.balloon_deflate(PageCount(12345)), PageCount(12345));
  EXPECT_EQ(m.pages.managed_pages(), managed - taken + PageCount(12345));
  EXPECT_EQ(m.faults(), "");
  EXPECT_EQ(m.pages.balloon_deflate(PageCount(1 << 20)), taken - PageCount(12345));
  EXPECT_EQ(m.buddyinfo(ZoneType::DMA32), before);
  EXPECT_EQ(m.pages.min_free_kbytes(), kbytes);
}

TEST(PageAlloc, TheBalloonLeavesTheLowWatermark) {
  TestMachine m({.ram = 64_MiB});
  m.pages.balloon_inflate(PageCount(1 << 20));
  const Zone& zone = m.zone(ZoneType::DMA32);
  EXPECT_EQ(zone.nr_free.load(), zone.wmark(Watermark::low));
  EXPECT_EQ(m.faults(), "");
}

TEST(PageAlloc, TheBalloonIsMadeOfLargeBlocks) {
  TestMachine m({.ram = 1_GiB});
  Trace trace;
  ASSERT_EQ(m.pages.balloon_inflate(PageCount(200 * 1024)), PageCount(200 * 1024));
  EXPECT_LT(trace.count("__rmqueue_smallest"), 250u);
}

}  // namespace
}  // namespace weir
