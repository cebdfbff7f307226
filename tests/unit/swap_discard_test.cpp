// Discard: the device hears which slots hold nothing (mm/swapfile*.cpp).
#include <gtest/gtest.h>

#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

class SwapDiscard : public testing::Test {
 protected:
  void run(std::function<void()> fn) { run_world({}, std::move(fn), &log); }
  TestDevice& add(uint32_t flags, TestDevice::Options options) {
    m.devices.push_back(std::make_unique<TestDevice>(options));
    TestDevice& d = *m.devices.back();
    WEIR_BUG_ON(!m.swapon.mkswap(d));
    const Result<unsigned> on = m.swapon.swapon(d, SWAP_PRIO_AUTO, flags);
    WEIR_BUG_ON(!on);
    return d;
  }
  std::vector<SwpEntry> take_all() {
    std::vector<SwpEntry> got;
    for (SwpEntry e; m.files.get_swap_pages(1, &e) == 1;) got.push_back(e);
    return got;
  }
  uint32_t flags() { return m.files.swap_info(0)->flags.load(); }
  using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;
  SwapMachine m;
  std::vector<std::string> log;
};

TEST_F(SwapDiscard, OnceIsTheWholeAreaButTheHeader) {
  run([&] {
    TestDevice& d = add(SWAP_FLAG_DISCARD | SWAP_FLAG_DISCARD_ONCE, {.pages = 40000, .discards = true});
    EXPECT_EQ(d.discarded, (Ranges{{1, 16384}, {16385, 16384}, {32769, 7231}}));
    EXPECT_EQ(flags() & (SWP_DISCARDABLE | SWP_AREA_DISCARD | SWP_PAGE_DISCARD), SWP_DISCARDABLE | SWP_AREA_DISCARD);
    EXPECT_EQ(std::memcmp(d.page(0) + 4086, "SWAPSPACE2", 10), 0);
    EXPECT_NE(log.back().find("SSDs"), std::string::npos) << log.back();
    ASSERT_TRUE(m.swapon.swapoff(0).ok());
  });
}

TEST_F(SwapDiscard, ADeviceThatCannotIsUsedWithoutAndUnknownFlagsAreRefused) {
  run([&] {
    TestDevice& d = add(SWAP_FLAG_DISCARD, {.pages = 1000});
    EXPECT_EQ(flags() & (SWP_DISCARDABLE | SWP_AREA_DISCARD | SWP_PAGE_DISCARD), 0u);
    EXPECT_TRUE(d.discarded.empty());
    TestDevice other({.pages = 100, .discards = true});
    ASSERT_TRUE(m.swapon.mkswap(other));
    EXPECT_EQ(m.swapon.swapon(other, 0, 0x80000).error(), Errno::inval);
  });
}

TEST_F(SwapDiscard, EachFreedClusterOnceAndNeverAUsedSlot) {
  run([&] {
    TestDevice& d = add(SWAP_FLAG_DISCARD_PAGES, {.pages = 2048, .latency = 100_us, .discards = true});
    EXPECT_TRUE(d.discarded.empty()) << "not at swapon";
    const std::vector<SwpEntry> all = take_all();
    ASSERT_EQ(all.size(), 2047u);
    for (const SwpEntry e : all) std::memset(d.page(swp_offset(e)), 0x11, PAGE_SIZE);
    // Two clusters wholly, one but for one slot.
    for (uint64_t o = 512; o < 1280; ++o)
      if (o != 1100) m.files.swapcache_free(swp_entry(0, o));
    m.files.flush_discard(*m.files.swap_info(0));
    EXPECT_EQ(d.discarded, (Ranges{{512, 256}, {768, 256}}));
    EXPECT_EQ(m.swap_faults(), "");
    for (uint64_t o = 1; o < 2048; ++o)
      ASSERT_EQ(*d.page(o), o >= 512 && o < 1024 ? std::byte{0xdd} : std::byte{0x11}) << o;
    // They are free now.
    std::set<uint64_t> again;
    for (const SwpEntry e : take_all()) again.insert(swp_offset(e));
    EXPECT_EQ(again.size(), 767u);
    EXPECT_EQ(m.swap_faults(), "");
    m.files.stop_discard();
  });
}

TEST_F(SwapDiscard, WhoNeedsASlotDoesNotWaitForTheWorker) {
  run([&] {
    TestDevice& d = add(SWAP_FLAG_DISCARD_PAGES, {.pages = 1024, .discards = true});
    m.files.stop_discard();
    const std::vector<SwpEntry> all = take_all();
    for (uint64_t o = 256; o < 512; ++o) m.files.swapcache_free(swp_entry(0, o));
    EXPECT_TRUE(d.discarded.empty());
    EXPECT_EQ(m.swap_faults(), "");
    EXPECT_EQ(m.files.nr_swap_pages(), 256);
    EXPECT_EQ(take_all().size(), 256u) << "every free slot can be had";
    EXPECT_EQ(d.discarded, (Ranges{{256, 256}}));
  });
}

}  // namespace
}  // namespace weir::test
