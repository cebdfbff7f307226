// Reserves: how much each kind of request must leave behind.
#include <gmock/gmock.h>

#include <map>

#include "mm/mm_types.hpp"
#include "support/mm_fixture.hpp"

namespace weir {
namespace {

using test::MachineOptions;
using test::run_world;
using test::TestMachine;

TEST(Watermark, MinFreeKbytesIsFourTimesTheRootOfMemory) {
  const std::map<uint64_t, uint64_t> oracle = {{16, 512}, {128, 1448}, {1024, 4096}, {4096, 8192}, {16384, 16384}};
  for (const auto& [mib, kbytes] : oracle)
    EXPECT_EQ(PageAllocator::default_min_free_kbytes(mib * 1024), kbytes) << mib << " MB";
  EXPECT_EQ(PageAllocator::default_min_free_kbytes(512), 128u);
  EXPECT_EQ(PageAllocator::default_min_free_kbytes(uint64_t{4} << 30), 65536u);
}

TEST(Watermark, MarksAreSharesOfTheZones) {
  TestMachine m({.ram = 1_GiB, .dma32_end = Pfn(65536)});
  const int64_t managed = m.pages.managed_pages().v;
  EXPECT_EQ(m.pages.min_free_kbytes(), PageAllocator::default_min_free_kbytes(static_cast<uint64_t>(managed) * 4));
  for (ZoneType type : {ZoneType::DMA32, ZoneType::NORMAL}) {
    const Zone& zone = m.zone(type);
    const int64_t min = static_cast<int64_t>(m.pages.min_free_kbytes() / 4) * zone.managed_pages / managed;
    const int64_t step = std::max(min / 4, zone.managed_pages * 10 / 10000);
    EXPECT_EQ(zone.wmark(Watermark::min), min);
    EXPECT_EQ(zone.wmark(Watermark::low), min + step);
    EXPECT_EQ(zone.wmark(Watermark::high), min + 2 * step);
  }
}

TEST(Watermark, TheScaleFactorSpreadsTheMarks) {
  TestMachine m({.ram = 1_GiB});
  const Zone& zone = m.zone(ZoneType::DMA32);
  m.pages.set_watermark_scale_factor(1000);
  EXPECT_EQ(zone.wmark(Watermark::low) - zone.wmark(Watermark::min), zone.managed_pages / 10);
  EXPECT_EQ(zone.wmark(Watermark::high) - zone.wmark(Watermark::low), zone.managed_pages / 10);
  m.pages.set_watermark_scale_factor(5000);
  EXPECT_EQ(m.pages.watermark_scale_factor(), 1000u);
}

TEST(Watermark, AChosenMinFreeKbytesStays) {
  TestMachine m({.ram = 256_MiB});
  m.pages.set_min_free_kbytes(8000);
  EXPECT_EQ(m.zone(ZoneType::DMA32).wmark(Watermark::min), 2000);
  m.pages.balloon_inflate(PageCount(10000));
  EXPECT_EQ(m.pages.min_free_kbytes(), 8000u);
}

TEST(Watermark, LowZonesAreProtectedByTheZonesAboveThem) {
  TestMachine m({.ram = 1_GiB, .dma32_end = Pfn(65536)});
  const Zone& dma32 = m.zone(ZoneType::DMA32);
  const Zone& normal = m.zone(ZoneType::NORMAL);
  // "protection: (0, n)" below, "(0, 0)" above.
  EXPECT_EQ(dma32.lowmem_reserve[0], 0);
  EXPECT_EQ(dma32.lowmem_reserve[1], normal.managed_pages / 256);
  EXPECT_EQ(normal.lowmem_reserve[0], 0);
  EXPECT_EQ(normal.lowmem_reserve[1], 0);
  EXPECT_EQ(m.pages.totalreserve_pages().v,
            dma32.lowmem_reserve[1] + dma32.wmark(Watermark::high) + normal.wmark(Watermark::high));
}

/// A zone with exactly `free` pages, whatever its lists say: the checks look at the count.
class ZoneWith {
 public:
  ZoneWith(Zone& zone, int64_t free) : zone_(zone), saved_(zone.nr_free.exchange(free)) {}
  ~ZoneWith() { zone_.nr_free = saved_; }
  ZoneWith(const ZoneWith&) = delete;
  ZoneWith& operator=(const ZoneWith&) = delete;

 private:
  Zone& zone_;
  int64_t saved_;
};

TEST(Watermark, ARequestAtExactlyMarkPlusReserveFailsAndOnePageMoreSucceeds) {
  TestMachine m({.ram = 1_GiB, .dma32_end = Pfn(65536)});
  Zone& zone = m.zone(ZoneType::DMA32);
  const int64_t mark = zone.wmark(Watermark::low);
  const int64_t limit = mark + zone.lowmem_reserve[1];
  for (unsigned order : {0u, 1u, 4u}) {
    const Order o(static_cast<uint8_t>(order));
    const int64_t taken = int64_t{1} << order;
    {
      const ZoneWith exact(zone, limit + taken - 1);
      EXPECT_FALSE(m.pages.zone_watermark_ok(zone, o, mark, ZoneType::NORMAL, 0)) << order;
      // Who can only use this zone is not kept from it.
      EXPECT_TRUE(m.pages.zone_watermark_ok(zone, o, mark, ZoneType::DMA32, 0)) << order;
    }
    const ZoneWith more(zone, limit + taken);
    EXPECT_TRUE(m.pages.zone_watermark_ok(zone, o, mark, ZoneType::NORMAL, 0)) << order;
    EXPECT_TRUE(m.pages.zone_watermark_ok_safe(zone, o, mark, ZoneType::NORMAL)) << order;
  }
}

TEST(Watermark, RightsLowerTheMark) {
  TestMachine m;
  Zone& zone = m.zone(ZoneType::DMA32);
  m.pages.set_min_free_kbytes(4000);
  const int64_t min = zone.wmark(Watermark::min);
  ASSERT_EQ(min, 1000);
  const std::map<uint32_t, int64_t> table = {
      {0, 1000},
      {ALLOC_HIGH, 500},
      {ALLOC_POOL, 500},
      {ALLOC_HARDER, 750},
      {ALLOC_HIGH | ALLOC_HARDER, 375},
      {ALLOC_OOM, 500},
      {ALLOC_HIGH | ALLOC_OOM, 250},
  };
  for (const auto& [flags, limit] : table) {
    {
      const ZoneWith exact(zone, limit);
      EXPECT_FALSE(m.pages.zone_watermark_ok(zone, Order(0), min, ZoneType::DMA32, flags)) << flags;
    }
    const ZoneWith more(zone, limit + 1);
    EXPECT_TRUE(m.pages.zone_watermark_ok(zone, Order(0), min, ZoneType::DMA32, flags)) << flags;
  }
}

TEST(Watermark, AnOrderNeedsABlockThatIsLargeEnough) {
  TestMachine m({.ram = 16_MiB});
  Zone& zone = m.zone(ZoneType::DMA32);
  std::vector<Page*> pages;
  while (Page* page = m.pages.alloc_page(__GFP_MEMALLOC | __GFP_NOWARN)) pages.push_back(page);
  for (Page* page : pages)
    if (m.mem.pfn(page).v % 2 == 0) m.pages.__free_pages(*page, Order(0));
  m.pages.drain_all_pages();
  ASSERT_GT(zone.nr_free.load(), 1000);
  EXPECT_TRUE(m.pages.zone_watermark_ok(zone, Order(0), 10, ZoneType::DMA32, 0));
  EXPECT_FALSE(m.pages.zone_watermark_ok(zone, Order(1), 10, ZoneType::DMA32, 0));
}

/// How far down each kind of request gets, with nobody to reclaim.
enum class Who { anybody, victim };
int64_t floor_of(gfp_t gfp, uint32_t thread_flags = 0, Who who = Who::anybody) {
  TestMachine m({.ram = 64_MiB});
  m.pages.set_min_free_kbytes(4000);
  int64_t left = -1;
  run_world({}, [&] {
    Task task;
    task.memdie = who == Who::victim;
    current().task = &task;
    current().flags |= thread_flags;
    while (m.pages.alloc_page(gfp | __GFP_NOWARN) != nullptr) {
    }
    left = m.pages.nr_free_pages().v;
    current().task = nullptr;
  });
  return left;
}

TEST(Watermark, EachRequestStopsAtItsOwnMark) {
  // The last refill, of a batch of 3, may go below the mark.
  const auto stops_at = [](int64_t mark, int64_t left) { return left <= mark && left > mark - 3; };
  EXPECT_PRED2(stops_at, 1000, floor_of(GFP_NOWAIT));
  EXPECT_PRED2(stops_at, 1000, floor_of(GFP_KERNEL));
  EXPECT_PRED2(stops_at, 375, floor_of(GFP_ATOMIC));
  EXPECT_PRED2(stops_at, 500, floor_of(__GFP_HIGH));
  EXPECT_PRED2(stops_at, 500, floor_of(__GFP_POOL));
  // The pool keeps to its half even inside reclaim; reclaim itself may have everything.
  EXPECT_PRED2(stops_at, 500, floor_of(__GFP_POOL, PF_MEMALLOC));
  EXPECT_EQ(floor_of(GFP_KERNEL, PF_MEMALLOC), 0);
  EXPECT_PRED2(stops_at, 1000, floor_of(GFP_KERNEL | __GFP_NOMEMALLOC, PF_MEMALLOC));
  EXPECT_EQ(floor_of(__GFP_MEMALLOC), 0);
  // A victim of the OOM killer gets half, to be able to exit.
  EXPECT_PRED2(stops_at, 500, floor_of(GFP_KERNEL, 0, Who::victim));
}

}  // namespace
}  // namespace weir
