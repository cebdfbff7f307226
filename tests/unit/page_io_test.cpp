// Pages to their slots and back (mm/page_io.cpp).
#include "mm/page_io.hpp"

#include <gtest/gtest.h>

#include "block/sim_disk.hpp"
#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

class PageIoTest : public testing::TestWithParam<bool> {
 protected:
  void run(std::function<void()> fn) { run_world({}, std::move(fn), &log); }
  /// In the swap cache with one user of its slot, dirty taken off, locked: what pageout hands to writepage.
  Page& swapped_page(uint64_t value) {
    Page& page = m.anon_page(value);
    WEIR_BUG_ON(!m.cache.add_to_swap(page));
    WEIR_BUG_ON(!m.files.swap_duplicate(SwpEntry{page.private_}));
    page.clear(PageFlag::dirty);
    return page;
  }
  /// Off the cache and freed; the slot keeps its user.
  void drop(Page& page) {
    m.filemap.lock_page(page);
    m.cache.delete_from_swap_cache(page);
    m.filemap.unlock_page(page);
    m.lru.put_page(page);
  }
  TestDevice::Options device() const { return {.pages = 512, .synchronous = GetParam(), .latency = 100_us}; }
  SwapMachine m;
  std::vector<std::string> log;
  WritebackControl wbc;
};

TEST_P(PageIoTest, BytesLieAtTheSlotAndComeBack) {
  run([&] {
    TestDevice& d = m.add_area(device());
    for (uint64_t i = 0; i < 100; ++i) {
      Page& page = swapped_page(1000 + i);
      const SwpEntry entry{page.private_};
      ASSERT_TRUE(m.io.swap_writepage(page, wbc));
      m.filemap.wait_on_page_writeback(page);
      EXPECT_FALSE(page.test(PageFlag::locked));
      EXPECT_FALSE(page.test(PageFlag::dirty));
      EXPECT_EQ(d.word(swp_offset(entry)), 1000 + i);
      drop(page);
      Page* back = m.cache.read_swap_cache_async(entry, GFP_KERNEL);
      ASSERT_NE(back, nullptr);
      m.filemap.wait_on_page_locked(*back);
      EXPECT_TRUE(back->test(PageFlag::uptodate));
      EXPECT_EQ(m.word(*back), 1000 + i);
      m.lru.put_page(*back);
    }
    EXPECT_EQ(m.event(VmEvent::pswpout), 100u);
    EXPECT_EQ(m.event(VmEvent::pswpin), 100u);
    EXPECT_EQ(m.gauge(NodeStat::nr_writeback), 0);
    EXPECT_EQ(m.bios.in_flight(), 0u);
  });
}

TEST_P(PageIoTest, ASlotThatNobodyUsesIsNotWritten) {
  run([&] {
    TestDevice& d = m.add_area(device());
    Page& page = m.anon_page(7);
    ASSERT_TRUE(m.cache.add_to_swap(page));
    page.clear(PageFlag::dirty);
    ASSERT_TRUE(m.io.swap_writepage(page, wbc));
    EXPECT_TRUE(d.written.empty());
    EXPECT_FALSE(PageSwapCache(page));
    EXPECT_TRUE(page.test(PageFlag::dirty)) << "the page is the only copy now";
    EXPECT_FALSE(page.test(PageFlag::locked));
    EXPECT_EQ(m.event(VmEvent::pswpout), 0u);
    m.lru.put_page(page);
  });
}

TEST_P(PageIoTest, AWriteErrorLeavesThePageDirtyAndKept) {
  run([&] {
    TestDevice& d = m.add_area(device());
    Page& page = swapped_page(7);
    const SwpEntry entry{page.private_};
    d.bad.insert(swp_offset(entry));
    log.clear();
    page.set(PageFlag::reclaim);
    const Result<void> written = m.io.swap_writepage(page, wbc);
    EXPECT_EQ(written.error(), GetParam() ? Errno::io : Errno::ok);
    m.filemap.wait_on_page_writeback(page);
    EXPECT_TRUE(page.test(PageFlag::dirty));
    EXPECT_TRUE(page.test(PageFlag::error));
    EXPECT_FALSE(page.test(PageFlag::locked));
    EXPECT_FALSE(page.test(PageFlag::reclaim)) << "not to be rotated to where it is tried again at once";
    EXPECT_TRUE(PageSwapCache(page));
    EXPECT_EQ(m.event(VmEvent::swap_write_error), 1u);
    EXPECT_EQ(m.files.swap_info(0)->write_errors.load(), 1u);
    ASSERT_EQ(log.size(), 1u);
    EXPECT_EQ(log[0], "Write-error on swap-device (test0:" + std::to_string(swp_offset(entry) * 8) + ")");
    EXPECT_FALSE(PageIo::page_may_be_clean(page));

    d.bad.clear();
    m.filemap.lock_page(page);
    page.clear(PageFlag::dirty);
    ASSERT_TRUE(m.io.swap_writepage(page, wbc));
    m.filemap.wait_on_page_writeback(page);
    EXPECT_TRUE(PageIo::page_may_be_clean(page));
    EXPECT_EQ(d.word(swp_offset(entry)), 7u);
    drop(page);
  });
}

TEST_P(PageIoTest, AReadErrorLeavesThePageNotUptodate) {
  run([&] {
    TestDevice& d = m.add_area(device());
    Page& page = swapped_page(7);
    const SwpEntry entry{page.private_};
    ASSERT_TRUE(m.io.swap_writepage(page, wbc));
    m.filemap.wait_on_page_writeback(page);
    drop(page);
    d.bad.insert(swp_offset(entry));
    log.clear();
    Page* back = m.cache.read_swap_cache_async(entry, GFP_KERNEL);
    ASSERT_NE(back, nullptr);
    m.filemap.wait_on_page_locked(*back);
    EXPECT_FALSE(back->test(PageFlag::uptodate));
    EXPECT_TRUE(back->test(PageFlag::error));
    EXPECT_EQ(m.event(VmEvent::swap_read_error), 1u);
    EXPECT_EQ(log.size(), 1u);
    drop(*back);
  });
}

TEST_P(PageIoTest, TheDevicePlaceOfAPageIsRecorded) {
  run([&] {
    m.add_area(device());
    Page& page = swapped_page(7);
    const SwpEntry entry{page.private_};
    const uint64_t pfn = m.mem.pfn(page).v;
    Trace trace;
    ASSERT_TRUE(m.io.swap_writepage(page, wbc));
    EXPECT_EQ(trace.of(State::swap_write), (std::vector<Trace::StateChange>{{State::swap_write, entry.val, pfn, 0}}));
    if (GetParam()) {
      EXPECT_EQ(trace.of(State::io_done),
                (std::vector<Trace::StateChange>{{State::io_done, swp_offset(entry) * 8, pfn, 0}}));
      EXPECT_EQ(
          trace.tree({"swap_writepage", "try_to_free_swap", "__swap_writepage", "bdev_write_page"}),
          (std::vector<std::string>{"swap_writepage", " try_to_free_swap", " __swap_writepage", "  bdev_write_page"}));
    }
    m.filemap.wait_on_page_writeback(page);
    drop(page);
  });
}

INSTANTIATE_TEST_SUITE_P(Devices, PageIoTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Synchronous" : "Queued"; });

TEST(PageIo, APageUnderWritebackIsUnlockedAndStaysInTheCache) {
  SwapMachine m;
  run_world({.log = no_log}, [&] {
    TestDevice& d = m.add_area({.pages = 512, .synchronous = false, .latency = 1_ms});
    Page& page = m.anon_page(9);
    ASSERT_TRUE(m.cache.add_to_swap(page));
    ASSERT_TRUE(m.files.swap_duplicate(SwpEntry{page.private_}));
    page.clear(PageFlag::dirty);
    WritebackControl wbc;
    ASSERT_TRUE(m.io.swap_writepage(page, wbc));
    EXPECT_TRUE(page.test(PageFlag::writeback));
    EXPECT_FALSE(page.test(PageFlag::locked));
    EXPECT_EQ(m.gauge(NodeStat::nr_writeback), 1);
    EXPECT_EQ(m.bios.in_flight(), 1u);
    m.filemap.lock_page(page);
    m.files.swap_free(SwpEntry{page.private_});
    EXPECT_FALSE(m.cache.try_to_free_swap(page)) << "the device still reads it";
    m.filemap.unlock_page(page);
    m.filemap.wait_on_page_writeback(page);
    EXPECT_EQ(d.written.size(), 1u);
    m.cache.free_page_and_swap_cache(page);
    EXPECT_EQ(m.gauge(NodeStat::nr_swapcached), 0);
  });
}

// A full zram: no failure of the device, only no room now.
TEST(PageIo, ADeviceWithoutRoomKeepsThePageLockedDirtyAndActive) {
  SwapMachine m;
  std::vector<std::string> log;
  run_world(
      {},
      [&] {
        TestDevice& d = m.add_area({.pages = 512});
        Page& page = m.anon_page(9);
        ASSERT_TRUE(m.cache.add_to_swap(page));
        const SwpEntry entry{page.private_};
        ASSERT_TRUE(m.files.swap_duplicate(entry));
        page.clear(PageFlag::dirty);
        d.room = false;
        log.clear();
        WritebackControl wbc;
        EXPECT_EQ(m.io.swap_writepage(page, wbc).error(), Errno::again);
        EXPECT_TRUE(page.test(PageFlag::locked));
        EXPECT_TRUE(page.test(PageFlag::dirty));
        EXPECT_FALSE(page.test(PageFlag::writeback));
        EXPECT_EQ(page.private_, entry.val) << "its PTEs hold the entry, so it stays";
        EXPECT_EQ(m.event(VmEvent::swap_write_error), 0u);
        EXPECT_TRUE(log.empty());
        m.cache.delete_from_swap_cache(page);
        m.filemap.unlock_page(page);
        m.lru.put_page(page);
      },
      &log);
}

TEST(PageIo, WritersWaitWhileEveryBioIsUnderWay) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SwapMachine m({.ram = Bytes(uint64_t{16} << 20), .cpus = 2});
    VirtualWorld world({.seed = seed, .cpus = 2, .preempt_one_in = 5, .log = no_log});
    unsigned most = 0;
    world.spawn("setup", [&] {
      TestDevice& d = m.add_area({.pages = 2048, .synchronous = false, .latency = 200_us});
      for (int t = 0; t < 3; ++t) {
        world.spawn("writer", [&, t] {
          WritebackControl wbc;
          std::vector<Page*> pages;
          for (uint64_t i = 0; i < 100; ++i) {
            Page& page = m.anon_page(static_cast<uint64_t>(t) * 1000 + i);
            ASSERT_TRUE(m.cache.add_to_swap(page));
            ASSERT_TRUE(m.files.swap_duplicate(SwpEntry{page.private_}));
            page.clear(PageFlag::dirty);
            ASSERT_TRUE(m.io.swap_writepage(page, wbc));
            most = std::max(most, m.bios.in_flight());
            pages.push_back(&page);
          }
          for (uint64_t i = 0; i < pages.size(); ++i) {
            m.filemap.wait_on_page_writeback(*pages[i]);
            EXPECT_EQ(d.word(swp_offset(SwpEntry{pages[i]->private_})), static_cast<uint64_t>(t) * 1000 + i);
            m.files.swap_free(SwpEntry{pages[i]->private_});
            m.cache.free_page_and_swap_cache(*pages[i]);
          }
        });
      }
    });
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
    EXPECT_GE(most, 16u);
    EXPECT_EQ(m.bios.in_flight(), 0u);
    EXPECT_EQ(m.gauge(NodeStat::nr_writeback), 0);
    EXPECT_EQ(m.swap_faults(), "");
  }
}

// One bio that comes back is no reason to wake a writer: it would write one page and wait again.
TEST(PageIo, AWriterThatWaitedForBiosGoesOnWithSeveral) {
  constexpr uint64_t PAGES = 640;
  SwapMachine m;
  VirtualWorld world({.log = no_log});
  alignas(SimDisk) std::byte place[sizeof(SimDisk)];
  SimDisk* disk = nullptr;
  uint64_t switches = 0;
  world.spawn("writer", [&] {
    disk = *SimDisk::create(place, world, {.name = "sda", .capacity = PageCount(1000)});
    ASSERT_TRUE(m.swapon.mkswap(*disk));
    ASSERT_TRUE(m.swapon.swapon(*disk, 0).ok());
    std::vector<Page*> pages;
    WritebackControl wbc;
    switches = world.switches();
    for (uint64_t i = 0; i < PAGES; ++i) {
      Page& page = m.anon_page(i);
      ASSERT_TRUE(m.cache.add_to_swap(page));
      ASSERT_TRUE(m.files.swap_duplicate(SwpEntry{page.private_}));
      page.clear(PageFlag::dirty);
      ASSERT_TRUE(m.io.swap_writepage(page, wbc));
      pages.push_back(&page);
    }
    switches = world.switches() - switches;
    for (Page* page : pages) {
      m.filemap.wait_on_page_writeback(*page);
      m.files.swap_free(SwpEntry{page->private_});
      m.cache.free_page_and_swap_cache(*page);
    }
    ASSERT_TRUE(m.swapon.swapoff(0));
  });
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
  EXPECT_LT(switches, PAGES) << "it is put to sleep and woken once for several pages";
  disk->~SimDisk();
}

TEST(PageIo, ASimulatedDiskHoldsTheBytes) {
  SwapMachine m;
  VirtualWorld world({.log = no_log});
  alignas(SimDisk) std::byte place[sizeof(SimDisk)];
  SimDisk* disk = nullptr;
  world.spawn("test", [&] {
    disk =
        *SimDisk::create(place, world, {.name = "sda", .capacity = PageCount(1000), .motion = DiskMotion::rotational});
    ASSERT_TRUE(m.swapon.mkswap(*disk));
    ASSERT_TRUE(m.swapon.swapon(*disk, 0).ok());
    Page& page = m.anon_page(0x1234);
    ASSERT_TRUE(m.cache.add_to_swap(page));
    const SwpEntry entry{page.private_};
    ASSERT_TRUE(m.files.swap_duplicate(entry));
    page.clear(PageFlag::dirty);
    WritebackControl wbc;
    ASSERT_TRUE(m.io.swap_writepage(page, wbc));
    m.filemap.wait_on_page_writeback(page);
    EXPECT_EQ(std::memcmp(disk->stored_bytes(swp_offset(entry)), m.mem.page_address(page), PAGE_SIZE), 0);
    m.files.swap_free(entry);
    m.cache.free_page_and_swap_cache(page);
    ASSERT_TRUE(m.swapon.swapoff(0));
  });
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
  disk->~SimDisk();
}

}  // namespace
}  // namespace weir::test
