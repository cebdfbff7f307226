// swapon, mkswap, swapoff (mm/swapfile_unuse.cpp).
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "block/sim_disk.hpp"
#include "mm/swapfile_unuse.hpp"
#include "support/file_fixture.hpp"
#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

class SwaponTest : public testing::Test {
 protected:
  void run(std::function<void()> fn) { run_world({}, std::move(fn), &log); }
  /// A device with a good header.
  void fresh(int64_t pages = 100) {
    device = std::make_unique<TestDevice>(TestDevice::Options{.pages = pages});
    ASSERT_TRUE(m.swapon.mkswap(*device));
    log.clear();
  }
  SwapHeader& header() { return *reinterpret_cast<SwapHeader*>(device->page(0)); }
  Errno on(int prio = SWAP_PRIO_AUTO) { return m.swapon.swapon(*device, prio).error(); }
  SwapMachine m;
  std::unique_ptr<TestDevice> device;
  std::vector<std::string> log;
};

TEST_F(SwaponTest, TheHeaderLiesWhereLinuxLooks) {
  EXPECT_EQ(offsetof(SwapHeader, version), 1024u);
  EXPECT_EQ(offsetof(SwapHeader, last_page), 1028u);
  EXPECT_EQ(offsetof(SwapHeader, nr_badpages), 1032u);
  EXPECT_EQ(offsetof(SwapHeader, sws_uuid), 1036u);
  EXPECT_EQ(offsetof(SwapHeader, sws_volume), 1052u);
  EXPECT_EQ(offsetof(SwapHeader, badpages), 1536u);
  EXPECT_EQ(offsetof(SwapHeader, magic), 4086u);
}

TEST_F(SwaponTest, AFreshAreaIsTakenIntoUse) {
  run([&] {
    fresh();
    EXPECT_EQ(on(7), Errno::ok);
    const SwapInfo& si = *m.files.swap_info(0);
    EXPECT_EQ(si.prio, 7);
    EXPECT_EQ(si.max, 100u);
    EXPECT_EQ(si.pages, 99u);
    EXPECT_EQ(si.lowest_bit, 1u);
    EXPECT_EQ(si.highest_bit, 99u);
    EXPECT_EQ(m.files.total_swap_pages(), 99);
    EXPECT_EQ(log, std::vector<std::string>{"Adding 396k swap on test0.  Priority:7 SS"});
  });
}

TEST_F(SwaponTest, EachFieldOfTheHeaderIsChecked) {
  struct Case {
    const char* what;
    std::function<void(SwapHeader&)> spoil;
    const char* message;
  };
  const Case cases[] = {
      {"magic", [](SwapHeader& h) { h.magic[9] = '1'; }, "Unable to find swap-space signature"},
      {"old magic", [](SwapHeader& h) { std::memcpy(h.magic, "SWAP-SPACE", 10); },
       "Unable to find swap-space signature"},
      {"version", [](SwapHeader& h) { h.version = 2; }, "Unable to handle swap header version 2"},
      {"no pages", [](SwapHeader& h) { h.last_page = 0; }, "Empty swap-file"},
      {"too short", [](SwapHeader& h) { h.last_page = 100; }, "Swap area shorter than signature indicates"},
      {"too many bad", [](SwapHeader& h) { h.nr_badpages = MAX_SWAP_BADPAGES + 1; }, nullptr},
      {"bad page 0", [](SwapHeader& h) { h.nr_badpages = 1; }, nullptr},
      {"bad page behind the end", [](SwapHeader& h) { h.nr_badpages = 1, h.badpages[0] = 100; }, nullptr},
      {"nothing good",
       [](SwapHeader& h) {
         h.last_page = 3, h.nr_badpages = 3;
         for (uint32_t i = 0; i < 3; ++i) h.badpages[i] = i + 1;
       },
       "Empty swap-file"},
  };
  run([&] {
    const int64_t free_before = m.pages.nr_free_pages().v;
    for (const Case& c : cases) {
      SCOPED_TRACE(c.what);
      fresh();
      c.spoil(header());
      EXPECT_EQ(on(), Errno::inval);
      EXPECT_EQ(m.files.swap_info(0), nullptr);
      if (c.message != nullptr) {
        EXPECT_EQ(log, std::vector<std::string>{c.message});
      }
    }
    m.slab.shrink_all();
    m.vmalloc.purge_vmap_area_lazy();
    m.pages.drain_all_pages();
    // The area's description stays for the next; kernel page tables of vmalloc stay too.
    EXPECT_LE(free_before - m.pages.nr_free_pages().v, 8);
    fresh();
    EXPECT_EQ(on(), Errno::ok);
  });
}

TEST_F(SwaponTest, AHeaderOfTheOtherByteOrderIsAccepted) {
  run([&] {
    fresh();
    SwapHeader& h = header();
    h.version = __builtin_bswap32(1);
    h.last_page = __builtin_bswap32(50);
    h.nr_badpages = __builtin_bswap32(1);
    h.badpages[0] = __builtin_bswap32(7);
    EXPECT_EQ(on(), Errno::ok);
    EXPECT_EQ(m.files.swap_info(0)->max, 51u);
    EXPECT_EQ(m.files.swap_info(0)->pages, 49u);
    EXPECT_EQ(m.files.swap_map_value(swp_entry(0, 7)), SWAP_MAP_BAD);
  });
}

TEST_F(SwaponTest, BadSlotsAreNeverUsed) {
  run([&] {
    fresh(1000);
    SwapHeader& h = header();
    h.nr_badpages = 4;
    const uint32_t bad[] = {1, 300, 999, 300};
    std::copy(std::begin(bad), std::end(bad), h.badpages);
    ASSERT_EQ(on(), Errno::ok);
    EXPECT_EQ(m.files.swap_info(0)->pages, 996u);
    std::set<uint64_t> got;
    while (const SwpEntry e = m.slots.get_swap_page()) got.insert(swp_offset(e));
    EXPECT_EQ(got.size(), 996u);
    for (const uint64_t b : {0, 1, 300, 999}) EXPECT_EQ(got.count(b), 0u);
    EXPECT_EQ(m.swap_faults(), "");
  });
}

TEST_F(SwaponTest, AnAreaInUseCannotBeTakenTwiceOrFormatted) {
  run([&] {
    fresh();
    ASSERT_EQ(on(), Errno::ok);
    EXPECT_EQ(on(), Errno::busy);
    EXPECT_EQ(m.swapon.mkswap(*device).error(), Errno::busy);
    EXPECT_EQ(m.files.total_swap_pages(), 99);
  });
}

TEST_F(SwaponTest, PrioritiesOutsideTheirRangeAreRefused) {
  run([&] {
    fresh();
    EXPECT_EQ(on(-2), Errno::inval);
    EXPECT_EQ(on(32768), Errno::inval);
    EXPECT_EQ(on(32767), Errno::ok);
  });
}

TEST_F(SwaponTest, ADeviceThatCannotBeReadOrIsTooSmallIsRefused) {
  run([&] {
    device = std::make_unique<TestDevice>(TestDevice::Options{.pages = 9});
    EXPECT_EQ(m.swapon.mkswap(*device).error(), Errno::inval);
    fresh();
    device->bad.insert(0);
    EXPECT_EQ(on(), Errno::io);
    EXPECT_EQ(m.swapon.mkswap(*device).error(), Errno::io);
    EXPECT_EQ(m.files.swap_info(0), nullptr);
  });
}

TEST_F(SwaponTest, SwapoffGivesEverythingBack) {
  run([&] {
    fresh(3000);
    ASSERT_EQ(on(), Errno::ok);
    ASSERT_TRUE(m.swapon.swapoff(0));
    EXPECT_EQ(m.files.nr_swap_pages(), 0);
    EXPECT_EQ(m.files.total_swap_pages(), 0);
    EXPECT_EQ(m.swapon.swapoff(0).error(), Errno::inval);
    EXPECT_EQ(on(), Errno::ok);
    ASSERT_TRUE(m.swapon.swapoff(0));
  });
}

TEST_F(SwaponTest, SwapoffWithoutAddressSpacesLeavesAnAreaWithSwappedPagesAsItIs) {
  run([&] {
    fresh(3000);
    ASSERT_EQ(on(), Errno::ok);
    Page& page = m.anon_page(1);
    ASSERT_TRUE(m.cache.add_to_swap(page));
    const SwpEntry entry{page.private_};
    ASSERT_TRUE(m.files.swap_duplicate(entry));
    m.filemap.unlock_page(page);
    EXPECT_EQ(m.swapon.swapoff(0).error(), Errno::busy);
    EXPECT_EQ(m.files.swap_info(0)->prio, -2);
    EXPECT_EQ(m.files.nr_swap_pages(), 2998);
    EXPECT_EQ(m.files.total_swap_pages(), 2999);
    EXPECT_TRUE(m.slots.get_swap_page()) << "it takes part again";
    m.slots.drain_slots_cache();
    m.files.swap_free(entry);
    EXPECT_EQ(m.swap_faults(), "");
    m.lru.put_page(page);
  });
}

TEST_F(SwaponTest, CopiesThatOnlyTheCacheKeepsGoWithTheArea) {
  run([&] {
    fresh(3000);
    ASSERT_EQ(on(), Errno::ok);
    Page& page = m.anon_page(1);
    ASSERT_TRUE(m.cache.add_to_swap(page));
    m.filemap.unlock_page(page);
    ASSERT_TRUE(m.swapon.swapoff(0));
    EXPECT_FALSE(PageSwapCache(page));
    EXPECT_TRUE(page.test(PageFlag::dirty));
    EXPECT_EQ(m.gauge(NodeStat::nr_swapcached), 0);
    m.lru.put_page(page);
  });
}

TEST_F(SwaponTest, TheOrderOfAnArea) {
  run([&] {
    fresh();
    Trace trace;
    ASSERT_EQ(on(), Errno::ok);
    EXPECT_EQ(
        trace.tree({"swapon", "alloc_swap_info", "claim_swapfile", "read_mapping_page", "read_swap_header", "memcmp",
                    "vzalloc", "init_swap_address_space", "INIT_RADIX_TREE", "mapping_set_no_writeback_tags"}),
        (std::vector<std::string>{"swapon", " alloc_swap_info", " claim_swapfile", " read_mapping_page",
                                  " read_swap_header", "  memcmp", " vzalloc", " vzalloc", " init_swap_address_space",
                                  "  INIT_RADIX_TREE", "  mapping_set_no_writeback_tags"}));
    EXPECT_EQ(trace.of(State::swap_area), (std::vector<Trace::StateChange>{{State::swap_area, 0, 0, 99}}));
  });
}

TEST_F(SwaponTest, AnAreaMadeByTheRealMkswapIsAccepted) {
  const std::string path = testing::TempDir() + "weir_mkswap_test";
  { std::ofstream(path, std::ios::binary) << std::string(200 * PAGE_SIZE, '\0'); }
  if (std::system(("mkswap -L weir " + path + " >/dev/null 2>&1").c_str()) != 0) {
    std::remove(path.c_str());
    GTEST_SKIP() << "no mkswap on this host";
  }
  std::ifstream file(path, std::ios::binary);
  device = std::make_unique<TestDevice>(TestDevice::Options{.pages = 200});
  file.read(reinterpret_cast<char*>(device->page(0)), PAGE_SIZE);
  std::remove(path.c_str());
  run([&] {
    EXPECT_EQ(on(), Errno::ok);
    EXPECT_EQ(m.files.swap_info(0)->pages, 199u);
  });
}

// In a tagged simulation a page is one number, the header too.
TEST(Swapon, ATaggedDeviceHasATaggedHeader) {
  FileMachine m(Bytes(uint64_t{16} << 20), 1, ContentKind::tags);
  SwapSlots slots(m.swap_files, m.vmstat, 1);
  SwapCache cache(m.filemap, m.swap_files, slots, m.io, m.vmstat, m.user);
  SwapOn swapon(m.swap_files, cache, slots, m.vmstat);
  WEIR_BUG_ON(!m.tables.init());
  m.vmalloc.init();
  ASSERT_TRUE(slots.init());
  VirtualWorld world({.log = no_log});
  alignas(SimDisk) std::byte place[sizeof(SimDisk)];
  SimDisk* disk = nullptr;
  world.spawn("test", [&] {
    disk = *SimDisk::create(place, world, {.capacity = PageCount(300), .content = ContentKind::tags});
    EXPECT_EQ(swapon.swapon(*disk, 0).error(), Errno::inval);
    ASSERT_TRUE(swapon.mkswap(*disk));
    const Result<unsigned> on = swapon.swapon(*disk, 0);
    ASSERT_TRUE(on.ok());
    EXPECT_EQ(m.swap_files.swap_info(0)->pages, 299u);
    ASSERT_TRUE(swapon.swapoff(0));
  });
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
  disk->~SimDisk();
}

}  // namespace
}  // namespace weir::test
