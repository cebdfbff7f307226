// Start-up memory: a bitmap, first fit, and the hand-over.
#include "mm/bootmem.hpp"

#include <gmock/gmock.h>

#include <random>
#include <vector>

#include "support/mm_fixture.hpp"

namespace weir {
namespace {

using test::Arena;
using test::MachineOptions;
using test::TestMachine;

ZoneLayout layout_with(std::initializer_list<ZoneLayout::Range> ranges) {
  ZoneLayout layout;
  for (const auto& r : ranges) layout.ranges[layout.nr_ranges++] = r;
  return layout;
}

struct Booted {
  explicit Booted(const ZoneLayout& layout) : arena(layout.end()) {
    EXPECT_TRUE(Bootmem::init(boot, mem, arena.base(), layout));
  }
  Arena arena;
  MemMap mem;
  Bootmem boot;
  [[nodiscard]] Pfn pfn_of(const std::byte* p) const { return Pfn(static_cast<uint64_t>(p - mem.arena) >> PAGE_SHIFT); }
  std::vector<int> hand_over() {
    std::vector<int> given(static_cast<size_t>(mem.frames.v));
    boot.free_all_bootmem(
        [](void* arg, Pfn start, Order order) {
          auto& g = *static_cast<std::vector<int>*>(arg);
          EXPECT_EQ(start.v % (uint64_t{1} << order.v), 0u);
          for (uint64_t i = 0; i < uint64_t{1} << order.v; ++i) ++g[start.v + i];
        },
        &given);
    return given;
  }
};

TEST(Bootmem, OnlyWhatIsMemoryAndNotTheMachinesOwnIsFree) {
  Booted b(layout_with({{Pfn(0), PageCount(1000)}, {Pfn(2000), PageCount(3000)}}));
  // 5000 frames: a bitmap of one page, a mem_map of 79 pages (64 bytes a frame), at the start of the first range.
  EXPECT_EQ(b.boot.reserved_pages(), PageCount(1 + 79 + 1000));
  EXPECT_TRUE(b.boot.reserved(Pfn(0)));
  EXPECT_TRUE(b.boot.reserved(Pfn(79)));
  EXPECT_FALSE(b.boot.reserved(Pfn(80)));
  EXPECT_TRUE(b.boot.reserved(Pfn(1500)));
  EXPECT_FALSE(b.boot.reserved(Pfn(4999)));
}

TEST(Bootmem, MemMapGoesToTheFirstRangeThatHoldsIt) {
  Booted b(layout_with({{Pfn(0), PageCount(16)}, {Pfn(256), PageCount(8192)}}));
  EXPECT_FALSE(b.boot.reserved(Pfn(0)));
  EXPECT_TRUE(b.boot.reserved(Pfn(256)));
}

TEST(Bootmem, LayoutsThatCannotBeAreRefused) {
  Arena arena(PageCount(4096));
  const auto init = [&](const ZoneLayout& layout) {
    MemMap mem;
    Bootmem boot;
    return Bootmem::init(boot, mem, arena.base(), layout).error();
  };
  EXPECT_EQ(init({}), Errno::inval);
  EXPECT_EQ(init(layout_with({{Pfn(0), PageCount(0)}})), Errno::inval);
  EXPECT_EQ(init(layout_with({{Pfn(100), PageCount(100)}, {Pfn(150), PageCount(10)}})), Errno::inval);
  ZoneLayout crooked = layout_with({{Pfn(0), PageCount(4096)}});
  crooked.dma32_end = Pfn(1000);
  EXPECT_EQ(init(crooked), Errno::inval);
  EXPECT_EQ(init(layout_with({{Pfn(0), PageCount(1)}, {Pfn(10), PageCount(1)}})), Errno::nomem);
}

TEST(Bootmem, SmallRequestsShareAPage) {
  Booted b(layout_with({{Pfn(0), PageCount(4096)}}));
  std::byte* a = *b.boot.alloc_bootmem(Bytes(100), Bytes(8));
  std::byte* c = *b.boot.alloc_bootmem(Bytes(100), Bytes(64));
  EXPECT_EQ(c, a + 128);
  std::byte* whole = *b.boot.alloc_bootmem(Bytes(4096), Bytes(8));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(whole) % PAGE_SIZE, 0u);
  // The rest of the last page of a long request serves too.
  std::byte* many = *b.boot.alloc_bootmem(Bytes(3 * 4096 + 10), Bytes(8));
  EXPECT_EQ(*b.boot.alloc_bootmem(Bytes(8), Bytes(8)), many + 3 * 4096 + 16);
}

TEST(Bootmem, GoalLimitAndAlignmentAreKept) {
  Booted b(layout_with({{Pfn(0), PageCount(4096)}}));
  EXPECT_EQ(b.pfn_of(*b.boot.alloc_bootmem(Bytes(4096), Bytes(4096), Pfn(1000))), Pfn(1000));
  EXPECT_EQ(b.pfn_of(*b.boot.alloc_bootmem(Bytes(4096), Bytes(4096), Pfn(1000))), Pfn(1001));
  EXPECT_EQ(b.pfn_of(*b.boot.alloc_bootmem(Bytes(4096), Bytes(4096 * 64), Pfn(1000))), Pfn(1024));
  EXPECT_EQ(b.boot.alloc_bootmem(Bytes(4096), Bytes(4096), Pfn(0), Pfn(10)).error(), Errno::nomem);
  // A goal that cannot be met is only a wish.
  EXPECT_LT(b.pfn_of(*b.boot.alloc_bootmem(Bytes(200 * 4096), Bytes(4096), Pfn(4000))), Pfn(4000));
}

TEST(Bootmem, MemoryIsZeroEvenWhereItWasUsedBefore) {
  Booted b(layout_with({{Pfn(0), PageCount(4096)}}));
  std::byte* a = *b.boot.alloc_bootmem(Bytes(8192), Bytes(4096));
  std::memset(a, 0xff, 8192);
  b.boot.free(b.pfn_of(a), PageCount(2));
  std::byte* again = *b.boot.alloc_bootmem(Bytes(8192), Bytes(4096));
  ASSERT_EQ(again, a);
  EXPECT_TRUE(std::all_of(again, again + 8192, [](std::byte x) { return x == std::byte{0}; }));
}

TEST(Bootmem, FirstFitFillsHoles) {
  Booted b(layout_with({{Pfn(0), PageCount(4096)}}));
  b.boot.reserve(Pfn(1), PageCount(4000));
  b.boot.free(Pfn(300), PageCount(3));
  b.boot.free(Pfn(400), PageCount(4));
  EXPECT_EQ(b.pfn_of(*b.boot.alloc_bootmem(Bytes(4 * 4096), Bytes(4096))), Pfn(400));
  EXPECT_EQ(b.pfn_of(*b.boot.alloc_bootmem(Bytes(3 * 4096), Bytes(4096))), Pfn(300));
}

TEST(Bootmem, TheHandOverGivesEveryFreeFrameOnceAndNoReservedOne) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 20; ++round) {
    Booted b(layout_with(
        {{Pfn(rng() % 100), PageCount(2000)}, {Pfn(3000), PageCount(static_cast<int64_t>(1 + rng() % 9000))}}));
    for (int i = 0; i < 20; ++i) {
      (void)b.boot.alloc_bootmem(Bytes(1 + rng() % 50000), Bytes(uint64_t{1} << (rng() % 16)), Pfn(rng() % 3000));
      b.boot.reserve(Pfn(rng() % 1900), PageCount(static_cast<int64_t>(rng() % 50)));
    }
    std::vector<int> expected;
    for (int64_t i = 0; i < b.mem.frames.v; ++i)
      expected.push_back(b.boot.reserved(Pfn(static_cast<uint64_t>(i))) ? 0 : 1);
    // The bitmap's own pages come last.
    const auto bitmap = (static_cast<uint64_t>(b.mem.frames.v) / 8 + PAGE_SIZE) / PAGE_SIZE;
    const uint64_t mem_map = b.mem.pfn(b.mem.virt_to_page(b.mem.mem_map)).v;
    for (uint64_t i = 1; i <= bitmap; ++i) expected[mem_map - i] = 1;
    EXPECT_EQ(b.hand_over(), expected);
  }
}

TEST(BootmemDeathTest, LaterUseIsRefused) {
  Booted b(layout_with({{Pfn(0), PageCount(4096)}}));
  b.hand_over();
  EXPECT_DEATH((void)b.boot.alloc_bootmem(Bytes(8), Bytes(8)), "over_");
  EXPECT_DEATH(b.boot.reserve(Pfn(1), PageCount(1)), "over_");
}

TEST(Bootmem, WhatTheAllocatorManagesIsWhatBootDidNotKeep) {
  MachineOptions options;
  options.layout = layout_with({{Pfn(0), PageCount(160)}, {Pfn(256), PageCount(20000)}});
  TestMachine m(options);
  uint64_t reserved = 0;
  for (uint64_t pfn = 0; pfn < static_cast<uint64_t>(m.mem.frames.v);) {
    const Page& page = m.mem.page(Pfn(pfn));
    const uint64_t run = page.test(PageFlag::reserved) ? page.private_ : 0;
    reserved += run;
    pfn += run > 0 ? run : 1;
  }
  EXPECT_EQ(static_cast<uint64_t>(m.pages.managed_pages().v) + reserved, static_cast<uint64_t>(m.mem.frames.v));
  EXPECT_EQ(m.faults(), "");
}

TEST(Bootmem, ATerabyteMachineBootsWithoutTouchingMostOfItsMetadata) {
  TestMachine m({.ram = Bytes(uint64_t{1} << 40)});
  const uint64_t map_bytes = static_cast<uint64_t>(m.mem.frames.v) * sizeof(Page);
  std::vector<unsigned char> resident(map_bytes / PAGE_SIZE);
  ASSERT_EQ(mincore(m.mem.mem_map, map_bytes, resident.data()), 0);
  const auto touched = static_cast<uint64_t>(
      std::count_if(resident.begin(), resident.end(), [](unsigned char c) { return (c & 1) != 0; }));
  EXPECT_LE(touched, 100u);  // of 4 million
  EXPECT_GT(m.pages.managed_pages().v, m.mem.frames.v - static_cast<int64_t>(map_bytes / PAGE_SIZE) - 200);
  EXPECT_GT(m.zone(ZoneType::NORMAL).free_area[MAX_ORDER - 1].nr_free, 250000u);
}

}  // namespace
}  // namespace weir
