// Virtually contiguous kernel memory.
#include "mm/vmalloc.hpp"

#include <gmock/gmock.h>

#include <algorithm>
#include <random>
#include <set>

#include "support/mm_fixture.hpp"

namespace weir {
namespace {

using test::MachineOptions;
using test::TestMachine;

struct VmallocMachine : TestMachine {
  explicit VmallocMachine(MachineOptions options = {})
      : TestMachine(options), tables(pages, vmstat), areas(pages, slab, tables, vmstat) {
    WEIR_BUG_ON(!tables.init());
    areas.init();
  }
  PageTables tables;
  Vmalloc areas;
  [[nodiscard]] int64_t free_pages() {
    pages.drain_all_pages();
    return pages.nr_free_pages().v;
  }
};

TEST(Vmalloc, AnAreaIsPageRoundedWithAGuardPageBehind) {
  VmallocMachine m;
  const VirtAddr a = *m.areas.vmalloc(Bytes(5000));
  EXPECT_EQ(a, VMALLOC_START);
  EXPECT_NE(m.areas.vmalloc_to_page(a), nullptr);
  EXPECT_NE(m.areas.vmalloc_to_page(a + PAGE_SIZE), nullptr);
  EXPECT_EQ(m.areas.vmalloc_to_page(a + 2 * PAGE_SIZE), nullptr);
  const VirtAddr b = *m.areas.vmalloc(Bytes(1));
  EXPECT_EQ(b, a + 3 * PAGE_SIZE);
  EXPECT_EQ(m.areas.nr_areas(), 2u);
}

TEST(Vmalloc, BytesAreKeptAcrossPages) {
  VmallocMachine m;
  const VirtAddr a = *m.areas.vzalloc(1_MiB);
  std::vector<std::byte> out(1 << 20), in(1 << 20);
  ASSERT_TRUE(m.areas.vread(a, in.data(), in.size()));
  EXPECT_TRUE(std::all_of(in.begin(), in.end(), [](std::byte b) { return b == std::byte{0}; }));
  std::mt19937 rng(1);
  for (std::byte& b : out) b = static_cast<std::byte>(rng());
  ASSERT_TRUE(m.areas.vwrite(a, out.data(), out.size()));
  ASSERT_TRUE(m.areas.vread(a, in.data(), in.size()));
  EXPECT_EQ(in, out);
  EXPECT_EQ(m.areas.vread(a + (1_MiB).v - 8, in.data(), 16).error(), Errno::fault);
  EXPECT_EQ(m.areas.vwrite(VirtAddr(0x1000), out.data(), 16).error(), Errno::fault);
}

TEST(Vmalloc, AMegabyteIsHadWhenNoTwoFreePagesAreNeighbours) {
  VmallocMachine m({.ram = 16_MiB});
  ASSERT_TRUE(m.areas.vmalloc(Bytes(1)));  // page tables and an area's slab are there
  std::vector<Page*> taken;
  while (Page* page = m.pages.alloc_page(GFP_HIGHUSER_MOVABLE | __GFP_MEMALLOC | __GFP_NOWARN)) taken.push_back(page);
  std::sort(taken.begin(), taken.end());
  for (Page*& page : taken)
    if (m.mem.pfn(page).v % 2 == 0) {
      m.pages.__free_pages(*page, Order(0));
      page = nullptr;
    }
  ASSERT_EQ(m.pages.alloc_pages(GFP_NOWAIT | __GFP_NOWARN, Order(1)), nullptr);
  EXPECT_TRUE(m.areas.vmalloc(1_MiB));
}

TEST(Vmalloc, AddressesAreReusedOnlyAfterAPurge) {
  VmallocMachine m;
  const VirtAddr a = *m.areas.vmalloc(64_KiB);
  m.areas.vfree(a);
  EXPECT_EQ(m.areas.vmalloc_to_page(a), nullptr);
  const VirtAddr b = *m.areas.vmalloc(64_KiB);
  EXPECT_EQ(b, a + 17 * PAGE_SIZE);
  m.areas.purge_vmap_area_lazy();
  EXPECT_EQ(*m.areas.vmalloc(64_KiB), a);
}

TEST(Vmalloc, FreedAddressSpaceIsPurgedInBulk) {
  VmallocMachine m({.ram = 64_MiB});
  // 32 MiB and one CPU: the first area that goes beyond makes all of them free again.
  const uint64_t area = 1 << 20;
  const auto most = static_cast<uint64_t>(Vmalloc::lazy_max_pages().v) / (area / PAGE_SIZE + 1);
  std::set<VirtAddr> seen;
  for (uint64_t i = 0; i <= most; ++i) {
    const VirtAddr a = *m.areas.vmalloc(Bytes(area));
    EXPECT_TRUE(seen.insert(a).second) << i;
    m.areas.vfree(a);
  }
  EXPECT_EQ(*m.areas.vmalloc(Bytes(area)), VMALLOC_START);
}

TEST(Vmalloc, AFailureMidwayGivesEverythingBack) {
  VmallocMachine m({.ram = 16_MiB});
  m.areas.vfree(*m.areas.vmalloc(8_MiB));  // the page tables stay
  m.areas.purge_vmap_area_lazy();
  const int64_t before = m.free_pages();
  EXPECT_EQ(m.areas.vmalloc(Bytes(bytes_of(m.pages.managed_pages()).v - 4096)).error(), Errno::nomem);
  m.areas.purge_vmap_area_lazy();
  EXPECT_NEAR(static_cast<double>(m.free_pages()), static_cast<double>(before), 8.0);  // a few table pages more
  EXPECT_EQ(m.areas.nr_areas(), 0u);
  EXPECT_EQ(m.faults(), "");
}

TEST(Vmalloc, SizesThatCannotBeAreRefused) {
  VmallocMachine m;
  EXPECT_EQ(m.areas.vmalloc(Bytes(0)).error(), Errno::inval);
  EXPECT_EQ(m.areas.vmalloc(Bytes(uint64_t{1} << 40)).error(), Errno::nomem);
}

TEST(VmallocDeathTest, FreeingWhatIsNotAnAreaIsABug) {
  VmallocMachine m;
  const VirtAddr a = *m.areas.vmalloc(Bytes(8192));
  EXPECT_DEATH(m.areas.vfree(a + PAGE_SIZE), "no area begins there");
  m.areas.vfree(a);
  EXPECT_DEATH(m.areas.vfree(a), "no area begins there");
}

TEST(Vmalloc, RandomAreasDoNotOverlap) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  VmallocMachine m;
  std::map<VirtAddr, std::pair<uint64_t, std::byte>> live;
  for (int step = 0; step < 2000; ++step) {
    if (live.empty() || rng() % 2 == 0) {
      const uint64_t size = 1 + rng() % 40000;
      Result<VirtAddr> a = m.areas.vmalloc(Bytes(size));
      if (!a) continue;
      const auto fill = static_cast<std::byte>(rng());
      const std::vector<std::byte> bytes(size, fill);
      ASSERT_TRUE(m.areas.vwrite(*a, bytes.data(), size));
      live[*a] = {size, fill};
    } else {
      auto victim = std::next(live.begin(), static_cast<std::ptrdiff_t>(rng() % live.size()));
      std::vector<std::byte> bytes(victim->second.first);
      ASSERT_TRUE(m.areas.vread(victim->first, bytes.data(), bytes.size()));
      ASSERT_TRUE(std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == victim->second.second; }));
      m.areas.vfree(victim->first);
      live.erase(victim);
    }
  }
  for (const auto& [start, area] : live) m.areas.vfree(start);
  EXPECT_EQ(m.areas.nr_areas(), 0u);
  EXPECT_EQ(m.faults(), "");
}

}  // namespace
}  // namespace weir
