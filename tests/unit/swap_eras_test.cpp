// Swap under each kernel's rules: the same memory comes back, and each slot's count is what its era says.
#include <gtest/gtest.h>

#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

using Threads = weir::MachineOptions::Threads;

class SwapEras : public testing::TestWithParam<KernelEra> {
 protected:
  ReclaimWorld w{{.kernel = GetParam(), .threads = Threads::none}};
  SwapFiles& swap() { return w.m().swap_files; }
  void push_out(Task& t, VirtAddr base, uint64_t pages) {
    for (int i = 0; i < 3; ++i) {
      w.make_old(t, base, pages);
      w.reclaim(static_cast<int64_t>(pages));
      weir::world().schedule_timeout(20_ms);  // what has been written can go
    }
  }
  /// What verify() finds when all I/O is over.
  std::string broken() {
    weir::world().schedule_timeout(20_ms);
    return w.broken();
  }
  VirtAddr swapped(Task& t, uint64_t pages, uint64_t seed) {
    const VirtAddr base = w.map(t, pages);
    w.fill(t, base, pages, seed);
    push_out(t, base, pages);
    return base;
  }
  [[nodiscard]] bool is(KernelEra era) const { return GetParam() == era; }
};

TEST_P(SwapEras, WhatGoesOutComesBack) {
  w.add_area({.pages = 2048, .synchronous = false, .latency = 20_us});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr base = swapped(t, 600, 3);
    EXPECT_GT(w.event(VmEvent::pswpout), 400u);
    EXPECT_EQ(broken(), "");
    w.expect(t, base, 600, 3);
    EXPECT_EQ(broken(), "");
    w.fill(t, base, 600, 9);
    push_out(t, base, 600);
    w.expect(t, base, 600, 9);
    w.exit(t);
    EXPECT_EQ(broken(), "");
    w.m().swap_slots.drain_slots_cache();
    EXPECT_EQ(swap().nr_swap_pages(), swap().total_swap_pages());
  });
}

TEST_P(SwapEras, TheCacheCountsAsItsEraSays) {
  w.add_area({.pages = 2048});
  w.run([&] {
    Task& parent = w.task("parent");
    const VirtAddr base = swapped(parent, 50, 1);
    for (int i = 0; i < 3; ++i) w.fork(parent);
    uint64_t i = 0;
    while (i < 50 && !is_swap_pte(w.pte(parent, ReclaimWorld::at(base, i)))) ++i;
    ASSERT_LT(i, 50u);
    const VirtAddr at = ReclaimWorld::at(base, i);
    const SwpEntry entry = decode_swap_pte(w.pte(parent, at));
    EXPECT_EQ(swap().swap_map_value(entry), 4u);
    // One has it back: three PTEs, and the cache.
    EXPECT_EQ(w.get(parent, at), 1 + i);
    EXPECT_EQ(swap().swap_map_value(entry), is(KernelEra::linux_2_6_20) ? 4u : SWAP_HAS_CACHE | 3u);
    EXPECT_EQ(swap().swp_swapcount(entry, SwapFiles::Cached::yes), 3u);
    EXPECT_EQ(broken(), "");
    // A write makes the others' page another one.
    w.put(parent, at, 77);
    EXPECT_EQ(broken(), "");
    EXPECT_EQ(w.get(parent, at), 77u);
  });
}

TEST_P(SwapEras, AnAreaGoesWithAllBroughtBack) {
  w.add_area({.pages = 2048});
  w.run([&] {
    Task& parent = w.task("parent");
    const VirtAddr base = swapped(parent, 200, 5);
    Task& child = w.fork(parent);
    ASSERT_TRUE(w.m().swapon.swapoff(0).ok());
    EXPECT_EQ(swap().total_swap_pages(), 0);
    EXPECT_EQ(broken(), "");
    w.expect(parent, base, 200, 5);
    w.expect(child, base, 200, 5);
  });
}

TEST_P(SwapEras, SlotsGoInARowAndTheLastOneCanBeUsed) {
  w.add_area({.pages = 300, .nonrotational = false});
  w.run([&] {
    std::vector<uint64_t> got;
    for (SwpEntry e = swap().get_swap_page(); e; e = swap().get_swap_page()) got.push_back(swp_offset(e));
    ASSERT_EQ(got.size(), 299u);
    for (uint64_t i = 0; i < 299; ++i) EXPECT_EQ(got[i], i + 1);
    EXPECT_EQ(swap().nr_swap_pages(), 0);
    for (const uint64_t offset : got) swap().swapcache_free(swp_entry(0, offset));
    w.m().swap_slots.drain_slots_cache();
    EXPECT_EQ(swap().nr_swap_pages(), 299);
    EXPECT_EQ(broken(), "");
  });
}

TEST_P(SwapEras, EachKernelsOwnFunctionsRun) {
  w.add_area({.pages = 2048, .synchronous = false, .latency = 20_us});
  w.run([&] {
    Task& t = w.task("a");
    std::set<std::string> out, in;
    const std::vector<std::string> names = {
        "get_swap_pages",        "scan_swap_map_slots", "get_swap_page",       "scan_swap_map",
        "add_to_swap",           "add_to_swap_cache",   "__add_to_swap_cache", "swap_entry_free",
        "swapcache_free",        "swapcache_prepare",   "try_to_free_swap",    "remove_exclusive_swap_page",
        "reuse_swap_page",       "can_share_swap_page", "valid_swaphandles",   "__read_swap_cache_async",
        "read_swap_cache_async", "swap_address_space",  "drain_slots_cache",   "free_swap_slot"};
    Trace trace;
    const VirtAddr base = swapped(t, 200, 5);
    w.expect(t, base, 200, 5);
    w.fill(t, base, 200, 6);
    std::set<std::string> ran;
    for (std::string line : trace.tree(names)) ran.insert(line.substr(line.find_first_not_of(' ')));
    const auto has = [&](const char* name) { return ran.count(name) != 0; };
    const bool old = is(KernelEra::linux_2_6_20), late = is(KernelEra::linux_4_14);
    EXPECT_TRUE(has("add_to_swap") && has("get_swap_page") && has("__add_to_swap_cache") &&
                has("read_swap_cache_async"));
    EXPECT_EQ(has("scan_swap_map"), !late);
    EXPECT_EQ(has("scan_swap_map_slots"), late);
    EXPECT_EQ(has("get_swap_pages"), late);
    EXPECT_EQ(has("__read_swap_cache_async"), late);
    EXPECT_EQ(has("swap_address_space"), late);
    EXPECT_EQ(has("swapcache_prepare"), !old);
    EXPECT_EQ(has("swapcache_free"), !old);
    EXPECT_EQ(has("can_share_swap_page"), old);
    EXPECT_EQ(has("remove_exclusive_swap_page"), old);
    EXPECT_EQ(has("reuse_swap_page"), !old);
    EXPECT_EQ(has("try_to_free_swap"), !old);
    EXPECT_EQ(has("valid_swaphandles"), old);
  });
}

INSTANTIATE_TEST_SUITE_P(Kernels, SwapEras,
                         testing::Values(KernelEra::linux_2_6_20, KernelEra::linux_3, KernelEra::linux_4_14),
                         [](const testing::TestParamInfo<KernelEra>& info) {
                           std::string name = profile_of(info.param).name;
                           for (char& c : name)
                             if (c == '.') c = '_';
                           return "of_" + name;
                         });

/// A window of slots as row 46 has it for 2.6.20: it ends at the first free or bad one, and at the area's edges.
TEST(ValidSwaphandles, EndAtTheFirstFreeSlot) {
  SwapMachine m;
  run_world({}, [&] {
    m.add_area({.pages = 21, .nonrotational = false});
    std::vector<SwpEntry> all;
    for (SwpEntry e; m.files.get_swap_pages(1, &e) == 1;) all.push_back(e);
    ASSERT_EQ(all.size(), 20u);
    uint64_t first = 0;
    EXPECT_EQ(m.files.valid_swaphandles(swp_entry(0, 10), 8, first), 8u);
    EXPECT_EQ(first, 8u);
    EXPECT_EQ(m.files.valid_swaphandles(swp_entry(0, 3), 8, first), 7u) << "slot 0 is the header's";
    EXPECT_EQ(first, 1u);
    EXPECT_EQ(m.files.valid_swaphandles(swp_entry(0, 18), 8, first), 5u) << "the area ends";
    EXPECT_EQ(first, 16u);
    m.files.swapcache_free(swp_entry(0, 9));
    m.files.swapcache_free(swp_entry(0, 13));
    EXPECT_EQ(m.files.valid_swaphandles(swp_entry(0, 11), 8, first), 3u);
    EXPECT_EQ(first, 10u);
    EXPECT_EQ(m.files.valid_swaphandles(swp_entry(0, 8), 8, first), 0u) << "alone";
    EXPECT_EQ(m.files.valid_swaphandles(swp_entry(0, 11), 1, first), 0u);
    m.slots.drain_slots_cache();
  });
}

}  // namespace
}  // namespace weir::test
