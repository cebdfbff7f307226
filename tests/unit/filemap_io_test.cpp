// Files read, written, mapped; what the device has to do for it; errors; a byte array as the model.
#include "mm/filemap_io.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "support/file_fixture.hpp"

namespace weir {
namespace {

using test::error_of;
using test::FileWorld;
using test::FlowLog;

using Bytestring = std::vector<std::byte>;

Bytestring bytes_of_value(int value, uint64_t n) { return Bytestring(n, static_cast<std::byte>(value)); }

class FilemapIoTest : public testing::Test {
 protected:
  FilemapIo& files() { return w.m.files; }
  /// Reads; fewer bytes than asked for if the file ends.
  Bytestring read(File& file, uint64_t pos, uint64_t n) {
    Bytestring got(n);
    Result<uint64_t> read = files().read(file, pos, got.data(), n);
    EXPECT_TRUE(read) << errno_name(read.error());
    got.resize(read ? *read : 0);
    return got;
  }
  void write(File& file, uint64_t pos, const Bytestring& bytes) {
    Result<uint64_t> written = files().write(file, pos, bytes.data(), bytes.size());
    EXPECT_TRUE(written) << errno_name(written.error());
    if (written) {
      EXPECT_EQ(*written, bytes.size());
    }
  }
  void with_file(Inode& inode, std::function<void(File&)> fn) {
    w.run([&] {
      Result<File*> file = files().open(inode);
      ASSERT_TRUE(file);
      fn(**file);
      files().close(**file);
    });
  }
  FileWorld w;
};

// ---- Reading

TEST_F(FilemapIoTest, AFileReadsAsWhatLiesOnTheDevice) {
  Inode* first = w.make_file(8_KiB, 8_KiB);
  Inode* inode = w.make_file(Bytes(3 * PAGE_SIZE - 100));
  EXPECT_EQ(inode->first_page, 2u);
  for (uint64_t i = 0; i < 3; ++i) w.put_on_disk(*inode, i, 0x40 + static_cast<int>(i));
  (void)first;
  with_file(*inode, [&](File& file) {
    Bytestring expected = bytes_of_value(0x40, 4096);
    expected.insert(expected.end(), 4096, std::byte{0x41});
    expected.insert(expected.end(), 4096 - 100, std::byte{0x42});
    EXPECT_EQ(read(file, 0, 100000), expected);
    EXPECT_EQ(read(file, 4090, 10), Bytestring(expected.begin() + 4090, expected.begin() + 4100));
    EXPECT_EQ(read(file, 3 * PAGE_SIZE - 101, 50).size(), 1u);
    EXPECT_EQ(read(file, 3 * PAGE_SIZE - 100, 50).size(), 0u);
    EXPECT_EQ(read(file, 1 << 30, 50).size(), 0u);
  });
}

TEST_F(FilemapIoTest, WhatIsCachedIsNotReadAgain) {
  Inode* inode = w.make_file(64_KiB);
  with_file(*inode, [&](File& file) {
    read(file, 0, 65536);
    EXPECT_EQ(w.reads(), 16u);
    read(file, 0, 65536);
    EXPECT_EQ(w.reads(), 16u);
  });
}

TEST_F(FilemapIoTest, TwoReadersOfAMissingPageCauseOneRead) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FileWorld v({.seed = seed, .preempt_one_in = 3, .cpus = 2});
    Inode* inode = v.make_file(64_KiB);
    v.put_on_disk(*inode, 5, 0x77);
    int good = 0;
    for (int t = 0; t < 4; ++t)
      v.spawn("reader", [&] {
        File* file = *v.m.files.open(*inode);
        std::byte got[16];
        Result<uint64_t> n = v.m.files.read(*file, 5 * PAGE_SIZE, got, sizeof got);
        good += n && *n == sizeof got && got[7] == std::byte{0x77};
        v.m.files.close(*file);
      });
    v.run();
    EXPECT_EQ(good, 4);
    EXPECT_EQ(v.reads(), 1u);
  }
}

TEST_F(FilemapIoTest, ReadingOnIsOneAccessReadingAgainMakesAPageActive) {
  Inode* inode = w.make_file(64_KiB);
  with_file(*inode, [&](File& file) {
    file.ra_pages = 0;
    for (uint64_t at = 0; at < 4096; at += 512) read(file, at, 512);
    w.m.lru.lru_add_drain_all();
    Page* page = w.m.filemap.find_get_page(inode->i_data, 0);
    EXPECT_TRUE(page->test(PageFlag::referenced));
    EXPECT_FALSE(page->test(PageFlag::active));
    read(file, 0, 512);
    w.m.lru.lru_add_drain_all();
    EXPECT_TRUE(page->test(PageFlag::active));
    w.m.lru.put_page(*page);
  });
}

TEST_F(FilemapIoTest, TheRecordingTellsOfARequestAMissAReadAndItsReturn) {
  Inode* inode = w.make_file(64_KiB);
  FlowLog log;
  w.world.set_sink(&log);
  with_file(*inode, [&](File& file) { read(file, 2 * PAGE_SIZE, 100); });
  w.world.set_sink(nullptr);
  std::vector<State> states;
  for (const FlowLog::Entry& e : log.entries)
    if (e.function.empty())
      for (State s : {State::user_request, State::file_request, State::page_cache_find, State::page_cache_read,
                      State::page_cache, State::page_cache_return})
        if (e.state == s) states.push_back(s);
  EXPECT_EQ(states, (std::vector<State>{State::user_request, State::file_request, State::page_cache_find,
                                        State::page_cache, State::page_cache_read, State::page_cache_return}));
  EXPECT_EQ(log.states(State::user_request)[0].b, 3u);
  EXPECT_EQ(log.states(State::page_cache_find)[0].c, 0u);
  for (const char* name : {"generic_file_read_iter", "add_to_page_cache", "readpage"})
    EXPECT_EQ(log.calls(name).size(), 1u) << name;
}

TEST_F(FilemapIoTest, AReadErrorIsReportedAndTriedAgainNextTime) {
  Inode* inode = w.make_file(64_KiB);
  w.put_on_disk(*inode, 3, 0x33);
  with_file(*inode, [&](File& file) {
    w.fail_all();
    std::byte got[4];
    EXPECT_EQ(error_of(files().read(file, 3 * PAGE_SIZE, got, 4)), Errno::io);
    w.fail_none();
    EXPECT_EQ(read(file, 3 * PAGE_SIZE, 4), bytes_of_value(0x33, 4));
  });
}

TEST_F(FilemapIoTest, AnErrorBehindTheFirstPageShortensTheRead) {
  Inode* inode = w.make_file(64_KiB);
  with_file(*inode, [&](File& file) {
    file.ra_pages = 0;
    read(file, 0, PAGE_SIZE);
    w.fail_all();
    EXPECT_EQ(read(file, 0, 3 * PAGE_SIZE).size(), PAGE_SIZE);
    w.fail_none();
  });
}

TEST_F(FilemapIoTest, AKilledReaderDoesNotWaitForTheDisk) {
  Inode* inode = w.make_file(64_KiB);
  Task task;
  w.faulty->set_delay({.probability = 100});
  w.spawn(
      "reader",
      [&] {
        task.thread = &current();
        File* file = *files().open(*inode);
        std::byte got[4];
        EXPECT_EQ(error_of(files().read(*file, 0, got, 4)), Errno::intr);
        EXPECT_EQ(w.world.now(), 5_us);
        files().close(*file);
      },
      &task);
  w.spawn("killer", [&] {
    w.world.schedule_timeout(5_us);
    task.sigkill = true;
    w.world.wake(*task.thread);
  });
  w.run();
  w.run_for(10_ms);
}

// ---- Writing

TEST_F(FilemapIoTest, WhatIsWrittenIsReadBackAndReachesTheDeviceWithFsync) {
  Inode* inode = w.make_file(Bytes(0));
  with_file(*inode, [&](File& file) {
    write(file, 0, bytes_of_value(0x11, 10000));
    EXPECT_EQ(inode->i_size.load(), 10000u);
    EXPECT_EQ(read(file, 0, 20000), bytes_of_value(0x11, 10000));
    EXPECT_EQ(w.writes(), 0u);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_dirty), 3);
    EXPECT_TRUE(files().fsync(file));
    EXPECT_EQ(w.writes(), 3u);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_dirty), 0);
    EXPECT_EQ(w.on_disk(*inode, 2)[1807], std::byte{0x11});
    EXPECT_EQ(w.on_disk(*inode, 2)[1808], std::byte{0});
    EXPECT_TRUE(files().fsync(file));
    EXPECT_EQ(w.writes(), 3u);
  });
  EXPECT_EQ(w.reads(), 0u) << "new pages have nothing to be read";
}

TEST_F(FilemapIoTest, OnlyAPageThatIsChangedInPartIsReadFirst) {
  Inode* inode = w.make_file(64_KiB);
  for (uint64_t i = 0; i < 16; ++i) w.put_on_disk(*inode, i, 0x50);
  with_file(*inode, [&](File& file) {
    write(file, 4096 - 8, bytes_of_value(0x60, 8 + 4096 + 8));  // tail, whole, head
    EXPECT_EQ(w.reads(), 2u);
    Bytestring expected = bytes_of_value(0x50, 4 * 4096);
    std::fill(expected.begin() + 4088, expected.begin() + 4088 + 4112, std::byte{0x60});
    EXPECT_EQ(read(file, 0, 4 * 4096), expected);
  });
}

TEST_F(FilemapIoTest, AHoleIsZeroWhateverTheDeviceHasThere) {
  Inode* inode = w.make_file(Bytes(100));
  for (uint64_t i = 0; i < 20; ++i) w.put_on_disk(*inode, i, 0xee);
  with_file(*inode, [&](File& file) {
    write(file, 10 * 4096 + 7, bytes_of_value(0x22, 1));
    Bytestring expected = bytes_of_value(0, 10 * 4096 + 8);
    std::fill(expected.begin(), expected.begin() + 100, std::byte{0xee});
    expected.back() = std::byte{0x22};
    EXPECT_EQ(read(file, 0, 1 << 20), expected);
    EXPECT_TRUE(files().fsync(file));
    files().invalidate(*inode);
    EXPECT_EQ(read(file, 0, 1 << 20), expected) << "and on the device too";
  });
}

TEST_F(FilemapIoTest, AFileNeverGetsLargerThanItsPlace) {
  Inode* inode = w.make_file(Bytes(0), 16_KiB);
  with_file(*inode, [&](File& file) {
    const Bytestring much = bytes_of_value(1, 20000);
    Result<uint64_t> n = files().write(file, 4096, much.data(), much.size());
    ASSERT_TRUE(n);
    EXPECT_EQ(*n, 12288u);
    EXPECT_EQ(inode->i_size.load(), 16384u);
    EXPECT_EQ(error_of(files().write(file, 16384, much.data(), 1)), Errno::fbig);
    EXPECT_EQ(error_of(files().truncate(*inode, Bytes(16385))), Errno::fbig);
  });
}

TEST_F(FilemapIoTest, AWriteThatCannotReadItsPageFailsAndChangesNothing) {
  Inode* inode = w.make_file(Bytes(100));
  with_file(*inode, [&](File& file) {
    w.fail_all();
    const std::byte one{1};
    EXPECT_EQ(error_of(files().write(file, 50, &one, 1)), Errno::io);
    EXPECT_EQ(error_of(files().write(file, 5000, &one, 1)), Errno::io);
    EXPECT_EQ(inode->i_size.load(), 100u);
    w.fail_none();
    EXPECT_EQ(read(file, 0, 200), bytes_of_value(0, 100));
  });
}

TEST_F(FilemapIoTest, AKilledWriterBehindTheEndLeavesTheFileAsItWas) {
  Inode* inode = w.make_file(8_KiB);
  Task task;
  w.spawn(
      "writer",
      [&] {
        File* file = *files().open(*inode);
        task.sigkill = true;
        const std::byte one{1};
        EXPECT_EQ(error_of(files().write(*file, 100000, &one, 1)), Errno::intr);
        files().close(*file);
      },
      &task);
  w.run();
  EXPECT_EQ(inode->i_size.load(), 8192u);
  with_file(*inode, [&](File& file) { EXPECT_EQ(read(file, 8000, 100000).size(), 192u); });
}

TEST_F(FilemapIoTest, ADeviceNeverSeesAPageChangeWhileItWritesIt) {
  Inode* inode = w.make_file(Bytes(0));
  w.faulty->set_delay({.probability = 100});
  with_file(*inode, [&](File& file) {
    write(file, 0, bytes_of_value(0x11, 4096));
    w.spawn("sync", [&] {
      File* other = *files().open(*inode);
      EXPECT_TRUE(files().fsync(*other));
      files().close(*other);
    });
    w.world.schedule_timeout(1_us);
    Page* page = w.m.filemap.find_get_page(inode->i_data, 0);
    ASSERT_TRUE(page->test(PageFlag::writeback));
    write(file, 0, bytes_of_value(0x22, 1));
    EXPECT_FALSE(page->test(PageFlag::writeback));
    w.m.lru.put_page(*page);
    EXPECT_EQ(w.on_disk(*inode, 0)[0], std::byte{0x11});
    EXPECT_TRUE(files().fsync(file));
    EXPECT_EQ(w.on_disk(*inode, 0)[0], std::byte{0x22});
  });
  w.faulty->set_delay({});
}

TEST_F(FilemapIoTest, CreationChecksThePlace) {
  w.run([&] {
    const auto pages = static_cast<uint64_t>(w.disk->capacity().v);
    EXPECT_EQ(error_of(files().create_inode("x", *w.disk, pages - 1, 0_KiB, 8_KiB)), Errno::inval);
    EXPECT_EQ(error_of(files().create_inode("x", *w.disk, ~uint64_t{0}, 0_KiB, 8_KiB)), Errno::inval);
    EXPECT_EQ(error_of(files().create_inode("x", *w.disk, 0, 0_KiB, Bytes(4095))), Errno::inval);
    EXPECT_EQ(error_of(files().create_inode("x", *w.disk, 0, Bytes(4097), Bytes(8191))), Errno::inval);
  });
}

// ---- fsync and errors

TEST_F(FilemapIoTest, AWriteErrorIsReportedByFsyncOnceToEachOpenFile) {
  Inode* inode = w.make_file(Bytes(0));
  with_file(*inode, [&](File& file) {
    File* second = *files().open(*inode);
    write(file, 0, bytes_of_value(0x11, 8192));
    w.fail_all();
    EXPECT_EQ(error_of(files().fsync(file)), Errno::io);
    w.fail_none();
    File* late = *files().open(*inode);
    EXPECT_TRUE(files().fsync(file)) << "told already, and now it is written";
    EXPECT_EQ(error_of(files().fsync(*second)), Errno::io);
    EXPECT_TRUE(files().fsync(*second));
    EXPECT_TRUE(files().fsync(*late)) << "opened after it happened";
    files().close(*second);
    files().close(*late);
  });
}

// Before 4.13: two flags of the file, cleared by whoever asks first.
TEST(FilemapIoErrors, AnOlderKernelTellsWhoAsksFirstOfEachKindTheWorst) {
  for (const KernelEra kernel : {KernelEra::linux_2_6_20, KernelEra::linux_3}) {
    FileWorld w({.kernel = kernel});
    Inode* inode = w.make_file(64_KiB);
    w.run([&] {
      FilemapIo& files = w.m.files;
      File *one = *files.open(*inode), *other = *files.open(*inode);
      const Bytestring bytes = bytes_of_value(7, 100);
      const auto fail_a_write = [&] {
        EXPECT_TRUE(files.write(*one, 0, bytes.data(), bytes.size()));
        w.fail_all();
        files.filemap_write_and_wait_range(inode->i_data, 0, 100);
        w.fail_none();
      };
      fail_a_write();
      EXPECT_EQ(error_of(files.fsync(*other)), Errno::io);
      EXPECT_EQ(error_of(files.fsync(*one)), Errno::ok);
      EXPECT_EQ(error_of(files.fsync(*other)), Errno::ok);
      fail_a_write();
      inode->i_data.wb_flags |= AS_ENOSPC;
      EXPECT_EQ(error_of(files.fsync(*one)), Errno::io);
      EXPECT_EQ(error_of(files.fsync(*one)), Errno::ok);
      files.close(*one);
      files.close(*other);
    });
  }
}

TEST_F(FilemapIoTest, AWriteErrorKeepsThePageDirtyAndInMemory) {
  Inode* inode = w.make_file(Bytes(0));
  with_file(*inode, [&](File& file) {
    write(file, 0, bytes_of_value(0x11, 4096));
    w.fail_all();
    EXPECT_FALSE(files().fsync(file));
    w.fail_none();
    EXPECT_EQ(w.m.gauge(NodeStat::nr_dirty), 1);
    EXPECT_EQ(files().invalidate(*inode), 0u) << "it cannot be dropped";
    EXPECT_EQ(read(file, 0, 4096), bytes_of_value(0x11, 4096));
    EXPECT_EQ(w.on_disk(*inode, 0)[0], std::byte{0});
    EXPECT_TRUE(files().fsync(file));
    EXPECT_EQ(w.on_disk(*inode, 0)[0], std::byte{0x11});
  });
}

TEST_F(FilemapIoTest, FsyncWaitsForWritesThatOthersHaveStarted) {
  Inode* inode = w.make_file(Bytes(0));
  w.faulty->set_late({.probability = 100});
  with_file(*inode, [&](File& file) {
    write(file, 0, bytes_of_value(0x11, 4096));
    WritebackControl wbc;
    wbc.nr_to_write = 10;
    w.m.writeback.write_cache_pages(inode->i_data, wbc);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_writeback), 1);
    EXPECT_TRUE(files().fsync(file));
    EXPECT_EQ(w.m.gauge(NodeStat::nr_writeback), 0);
  });
  w.faulty->set_late({});
}

// ---- Truncation

TEST_F(FilemapIoTest, APunchedHoleIsZeroAndAllocationMakesTheFileLonger) {
  Inode* inode = w.make_file(64_KiB, 128_KiB);
  for (uint64_t i = 0; i < 16; ++i) w.put_on_disk(*inode, i, 0x11);
  with_file(*inode, [&](File& file) {
    constexpr uint32_t PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE;
    Bytestring expected = bytes_of_value(0x11, 65536);
    std::fill(expected.begin() + 1000, expected.begin() + 9000, std::byte{0});
    EXPECT_TRUE(files().fallocate(*inode, PUNCH, 1000, 8000));
    EXPECT_EQ(read(file, 0, 100000), expected);
    EXPECT_EQ(w.reads(), 15u) << "not the page that is a hole as a whole";
    // Behind the end: nothing there, and the file does not grow.
    EXPECT_TRUE(files().fallocate(*inode, PUNCH, 60000, 1 << 30));
    std::fill(expected.begin() + 60000, expected.end(), std::byte{0});
    EXPECT_TRUE(files().fallocate(*inode, FALLOC_KEEP_SIZE, 0, 1 << 30));
    EXPECT_EQ(inode->i_size.load(), 65536u);
    EXPECT_EQ(read(file, 0, 100000), expected);
    EXPECT_TRUE(files().fallocate(*inode, 0, 70000, 100));
    EXPECT_EQ(inode->i_size.load(), 70100u);
    expected.resize(70100);
    EXPECT_EQ(read(file, 0, 100000), expected);
    EXPECT_TRUE(files().fallocate(*inode, FALLOC_ZERO_RANGE, 500, 80000));
    EXPECT_EQ(inode->i_size.load(), 80500u);
    expected = bytes_of_value(0, 80500);
    std::fill(expected.begin(), expected.begin() + 500, std::byte{0x11});
    EXPECT_EQ(read(file, 0, 100000), expected);
    EXPECT_EQ(error_of(files().fallocate(*inode, 0, 0, 0)), Errno::inval);
    EXPECT_EQ(error_of(files().fallocate(*inode, 0, 0, (128 << 10) + 1)), Errno::fbig);
    EXPECT_EQ(error_of(files().fallocate(*inode, FALLOC_PUNCH_HOLE, 0, 10)), Errno::opnotsupp);
    EXPECT_EQ(error_of(files().fallocate(*inode, 4, 0, 10)), Errno::opnotsupp);
    EXPECT_TRUE(files().fsync(file));
    EXPECT_EQ(w.on_disk(*inode, 0)[499], std::byte{0x11});
    EXPECT_EQ(w.on_disk(*inode, 0)[500], std::byte{0});
    EXPECT_EQ(w.on_disk(*inode, 1)[0], std::byte{0});
  });
}

TEST_F(FilemapIoTest, WhatWasCutOffIsZeroWhenTheFileGrowsAgain) {
  Inode* inode = w.make_file(Bytes(0));
  with_file(*inode, [&](File& file) {
    write(file, 0, bytes_of_value(0x11, 20000));
    EXPECT_TRUE(files().fsync(file));
    EXPECT_TRUE(files().truncate(*inode, Bytes(5000)));
    EXPECT_EQ(w.m.gauge(NodeStat::nr_file_pages), 2);
    EXPECT_EQ(read(file, 0, 30000), bytes_of_value(0x11, 5000));
    EXPECT_TRUE(files().truncate(*inode, Bytes(30000)));
    Bytestring expected = bytes_of_value(0, 30000);
    std::fill(expected.begin(), expected.begin() + 5000, std::byte{0x11});
    EXPECT_EQ(read(file, 0, 40000), expected);
    EXPECT_TRUE(files().fsync(file));
    files().invalidate(*inode);
    EXPECT_EQ(read(file, 0, 40000), expected);
  });
}

TEST_F(FilemapIoTest, ThePartOfAnUncachedPageThatWasCutOffIsZeroToo) {
  Inode* inode = w.make_file(64_KiB);
  w.put_on_disk(*inode, 1, 0x55);
  with_file(*inode, [&](File& file) {
    EXPECT_TRUE(files().truncate(*inode, Bytes(4096 + 10)));
    EXPECT_TRUE(files().truncate(*inode, Bytes(3 * 4096)));
    Bytestring expected = bytes_of_value(0, 2 * 4096);
    std::fill(expected.begin(), expected.begin() + 10, std::byte{0x55});
    EXPECT_EQ(read(file, 4096, 10000), expected);
  });
}

TEST_F(FilemapIoTest, TruncationWaitsForAWriteUnderWay) {
  Inode* inode = w.make_file(Bytes(0));
  with_file(*inode, [&](File& file) {
    write(file, 0, bytes_of_value(0x11, 3 * PAGE_SIZE));
    WritebackControl wbc;
    wbc.nr_to_write = 10;
    w.m.writeback.write_cache_pages(inode->i_data, wbc);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_writeback), 3);
    EXPECT_TRUE(files().truncate(*inode, Bytes(PAGE_SIZE + 1)));
    EXPECT_EQ(w.m.gauge(NodeStat::nr_writeback), 0);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_file_pages), 2);
  });
}

TEST_F(FilemapIoTest, TruncationWaitsForWhatIsBeingReadAndWritten) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FileWorld v({.seed = seed, .preempt_one_in = 3, .cpus = 2});
    Inode* inode = v.make_file(256_KiB);
    v.spawn("reader", [&] {
      File* file = *v.m.files.open(*inode);
      EXPECT_TRUE(v.m.files.read(*file, 0, nullptr, 256 << 10));
      v.m.files.close(*file);
    });
    v.spawn("writer", [&] {
      File* file = *v.m.files.open(*inode);
      const Bytestring data = bytes_of_value(9, 100000);
      EXPECT_TRUE(v.m.files.write(*file, 30000, data.data(), data.size()));
      EXPECT_TRUE(v.m.files.fsync(*file));
      v.m.files.close(*file);
    });
    v.spawn("truncater", [&] {
      for (uint64_t size : {200000, 100000, 131072, 50000, 4096}) {
        EXPECT_TRUE(v.m.files.truncate(*inode, Bytes(size)));
        v.world.schedule_timeout(50_us);
      }
    });
    v.run();
    EXPECT_LE(v.m.gauge(NodeStat::nr_file_pages), static_cast<int64_t>(i_size_pages(*inode)) + 0);
  }
}

TEST_F(FilemapIoTest, InvalidationDropsOnlyWhatNobodyWouldMiss) {
  Inode* inode = w.make_file(64_KiB);
  with_file(*inode, [&](File& file) {
    file.ra_pages = 0;
    for (uint64_t i = 0; i < 6; ++i) read(file, i * PAGE_SIZE, 1);
    write(file, 1 * PAGE_SIZE, bytes_of_value(1, 1));  // dirty
    Page* used = w.m.filemap.find_get_page(inode->i_data, 2);
    Page* locked = w.m.filemap.find_lock_page(inode->i_data, 3);
    w.m.lru.put_page(*locked);
    Page* mapped = w.m.filemap.find_get_page(inode->i_data, 4);
    w.m.lru.put_page(*mapped);
    mapped->_mapcount.store(0);
    EXPECT_EQ(files().invalidate(*inode), 2u);  // 0 and 5
    EXPECT_EQ(w.m.gauge(NodeStat::nr_file_pages), 4);
    w.m.filemap.unlock_page(*locked);
    w.m.lru.put_page(*used);
    mapped->_mapcount.store(-1);
    EXPECT_EQ(files().invalidate(*inode), 3u);
  });
}

// ---- The end

TEST_F(FilemapIoTest, TheLastReferenceWritesOutAndFreesEveryPage) {
  Inode* inode = w.make_file(Bytes(0));
  const uint64_t first_page = inode->first_page;
  with_file(*inode, [&](File& file) {
    write(file, 0, bytes_of_value(0x44, 40000));
    w.forget(inode);
    files().iput(*inode);  // the open file still has one
    EXPECT_EQ(read(file, 0, 1), bytes_of_value(0x44, 1));
  });
  EXPECT_EQ(w.m.gauge(NodeStat::nr_file_pages), 0);
  EXPECT_EQ(w.writes(), 10u);
  EXPECT_EQ(w.disk->stored_bytes(first_page + 9)[3135], std::byte{0x44});
}

TEST_F(FilemapIoTest, AFileOutlivesItsMappingsReferencesOnly) {
  Inode* inode = w.make_file(64_KiB);
  w.run([&] {
    File* file = *files().open(*inode);
    get_file(*file);
    files().close(*file);
    read(*file, 0, 1);  // a mapping would still hold it
    fput(*file);
    EXPECT_EQ(inode->i_count.load(), 1);
  });
}

// ---- Faults

class FileFaultTest : public FilemapIoTest {
 protected:
  void SetUp() override {
    w.run([&] {
      inode = *files().create_inode("mapped", *w.faulty, 0, Bytes(40 * PAGE_SIZE), 1_MiB);
      vma.vm_file = *files().open(*inode);
      vma.vm_ops = &files();
      vma.vm_mm = &mm;
      vma.vm_start = VirtAddr(0x10000);
      vma.vm_end = VirtAddr(0x10000 + 256 * PAGE_SIZE);
      vma.vm_flags = VM_READ;
    });
  }
  void TearDown() override {
    w.run([&] {
      fput(*vma.vm_file);
      files().iput(*inode);
    });
  }
  /// As the fault path does: mmap_sem for reading; given up by whoever retries.
  uint32_t fault(uint64_t pgoff, uint32_t flags = 0) {
    mm.mmap_sem.down_read();
    FaultRequest request{.vma = &vma, .address = vma.vm_start + pgoff * PAGE_SIZE, .pgoff = pgoff, .flags = flags};
    const uint32_t result = files().fault(request);
    got = request.page;
    if ((result & VM_FAULT_RETRY) == 0) mm.mmap_sem.up_read();
    return result;
  }
  void release() {
    w.m.filemap.unlock_page(*got);
    w.m.lru.put_page(*got);
  }
  Inode* inode = nullptr;
  Mm mm;
  VmArea vma;
  Page* got = nullptr;
};

TEST_F(FileFaultTest, AMissIsMajorAHitIsNotAndThePageComesLockedAndUptodate) {
  w.put_on_disk(*inode, 7, 0x70);
  w.run([&] {
    EXPECT_EQ(fault(7), VM_FAULT_MAJOR | VM_FAULT_LOCKED);
    EXPECT_TRUE(got->test(PageFlag::locked) && got->test(PageFlag::uptodate));
    EXPECT_EQ(w.m.user.kmap(*got).bytes[100], std::byte{0x70});
    EXPECT_EQ(w.m.event(VmEvent::pgmajfault), 1u);
    release();
    EXPECT_EQ(fault(7), VM_FAULT_LOCKED);
    release();
    EXPECT_EQ(fault(8), VM_FAULT_LOCKED) << "read around the first fault";
    release();
    EXPECT_EQ(w.m.event(VmEvent::pgmajfault), 1u);
  });
}

TEST_F(FileFaultTest, WhereItMayRetryTheAddressSpaceIsFreeWhileTheDiskWorks) {
  w.run([&] {
    EXPECT_EQ(fault(7, FAULT_FLAG_ALLOW_RETRY), VM_FAULT_MAJOR | VM_FAULT_RETRY);
    EXPECT_GE(w.world.now(), 80_us) << "it came back when the page was read";
    EXPECT_FALSE(mm.mmap_sem.is_locked());
    EXPECT_EQ(fault(7, FAULT_FLAG_TRIED), VM_FAULT_LOCKED);
    release();
  });
}

TEST_F(FileFaultTest, BehindTheEndOfTheFileIsSigbus) {
  w.run([&] {
    EXPECT_EQ(fault(40), VM_FAULT_SIGBUS);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_file_pages), 0);
    EXPECT_TRUE(files().truncate(*inode, Bytes(3 * PAGE_SIZE + 1)));
    EXPECT_EQ(fault(3) & VM_FAULT_LOCKED, VM_FAULT_LOCKED);
    release();
    EXPECT_EQ(fault(4), VM_FAULT_SIGBUS);
  });
}

TEST_F(FileFaultTest, AReadErrorIsSigbus) {
  w.run([&] {
    w.fail_all();
    EXPECT_EQ(fault(5), VM_FAULT_SIGBUS);
    w.fail_none();
    EXPECT_EQ(fault(5) & VM_FAULT_LOCKED, VM_FAULT_LOCKED);
    release();
  });
}

TEST_F(FileFaultTest, BehindTheEndInsideTheLastPageAMappingSeesZeros) {
  w.put_on_disk(*inode, 2, 0x99);
  w.run([&] {
    EXPECT_TRUE(files().truncate(*inode, Bytes(2 * PAGE_SIZE + 10)));
    (void)fault(2);
    EXPECT_EQ(w.m.user.kmap(*got).bytes[9], std::byte{0x99});
    EXPECT_EQ(w.m.user.kmap(*got).bytes[10], std::byte{0});
    release();
  });
}

TEST_F(FileFaultTest, TheFirstStoreDirtiesThePageOnceItsWriteHasEnded) {
  w.run([&] {
    (void)fault(6);
    FaultRequest request{.vma = &vma, .address = vma.vm_start, .pgoff = 6, .page = got};
    w.m.filemap.set_page_writeback(*got);
    w.spawn("disk", [&] {
      w.world.schedule_timeout(1_ms);
      w.m.filemap.end_page_writeback(*got);
    });
    const Nanos before = w.world.now();
    EXPECT_EQ(files().page_mkwrite(request), 0u);
    EXPECT_EQ(w.world.now(), before + 1_ms);
    EXPECT_TRUE(got->test(PageFlag::dirty) && got->test(PageFlag::locked));
    EXPECT_EQ(w.m.gauge(NodeStat::nr_dirty), 1);
    release();
  });
}

TEST_F(FileFaultTest, AMappedHoleIsZeroAndWhatIsStoredThereIsKept) {
  for (uint64_t i = 40; i < 60; ++i) w.put_on_disk(*inode, i, 0xee);
  vma.vm_flags = VM_READ | VM_WRITE | VM_MAYWRITE | VM_SHARED;
  w.run([&] {
    EXPECT_TRUE(files().truncate(*inode, Bytes(50 * PAGE_SIZE)));
    EXPECT_EQ(fault(45, FAULT_FLAG_WRITE) & VM_FAULT_LOCKED, VM_FAULT_LOCKED);
    FaultRequest request{.vma = &vma, .address = vma.vm_start, .pgoff = 45, .page = got};
    EXPECT_EQ(files().page_mkwrite(request), 0u);
    w.m.user.kmap(*got).bytes[5] = std::byte{0x12};
    release();
    EXPECT_TRUE(files().fsync(*vma.vm_file));
    files().invalidate(*inode);
    Bytestring expected = bytes_of_value(0, 10 * PAGE_SIZE);
    expected[5 * PAGE_SIZE + 5] = std::byte{0x12};
    EXPECT_EQ(read(*vma.vm_file, 40 * PAGE_SIZE, 20 * PAGE_SIZE), expected);
  });
}

TEST_F(FileFaultTest, RandomFaultsSoonStopReadingAround) {
  w.run([&] {
    EXPECT_TRUE(files().truncate(*inode, 1_MiB));
    inode->valid_pages = 256;
    vma.vm_file->mmap_miss = 100;
    (void)fault(128);
    release();
    EXPECT_EQ(w.m.gauge(NodeStat::nr_file_pages), 1);
    vma.vm_flags |= VM_RAND_READ;
    vma.vm_file->mmap_miss = 0;
    (void)fault(64);
    release();
    EXPECT_EQ(w.m.gauge(NodeStat::nr_file_pages), 2);
  });
}

// ---- Tags

TEST(FilemapIoTags, WholePagesComeBackAsTheyWentAlsoFromTheDevice) {
  for (ContentKind kind : {ContentKind::tags, ContentKind::bytes}) {
    FileWorld w({.content = kind});
    Inode* inode = w.make_file(Bytes(0));
    w.run([&] {
      FilemapIo& files = w.m.files;
      File* file = *files.open(*inode);
      for (uint64_t i = 0; i < 50; ++i) EXPECT_TRUE(files.write_tag(*file, i, i * 0x9e3779b97f4a7c15));
      EXPECT_EQ(inode->i_size.load(), 50 * PAGE_SIZE);
      EXPECT_TRUE(files.fsync(*file));
      EXPECT_EQ(files.invalidate(*inode), 50u);
      for (uint64_t i = 0; i < 50; ++i) EXPECT_EQ(*files.read_tag(*file, i), i * 0x9e3779b97f4a7c15);
      EXPECT_EQ(error_of(files.read_tag(*file, 50)), Errno::noent);
      // A tag is a page of one word, in bytes too.
      std::byte got[10];
      EXPECT_TRUE(files.read(*file, 3 * PAGE_SIZE + 9, got, 10));
      const uint64_t tag = 3 * 0x9e3779b97f4a7c15;
      for (unsigned i = 0; i < 10; ++i) EXPECT_EQ(got[i], static_cast<std::byte>(tag >> ((9 + i) % 8 * 8)));
      EXPECT_TRUE(files.write_tag(*file, 60, 5));
      EXPECT_EQ(*files.read_tag(*file, 55), 0u);
      files.close(*file);
    });
  }
}

TEST(FilemapIoTags, BytesChangeATagAndOneWordIsItsOwnTag) {
  FileWorld w({.content = ContentKind::tags});
  Inode* inode = w.make_file(Bytes(0));
  w.run([&] {
    FilemapIo& files = w.m.files;
    File* file = *files.open(*inode);
    std::vector<uint64_t> words(512, 0xabcdef);
    EXPECT_TRUE(files.write(*file, 0, reinterpret_cast<std::byte*>(words.data()), 4096));
    EXPECT_EQ(*files.read_tag(*file, 0), 0xabcdefu);
    EXPECT_TRUE(files.write(*file, 8, reinterpret_cast<std::byte*>(words.data()), 3));
    const uint64_t partly = *files.read_tag(*file, 0);
    EXPECT_NE(partly, 0xabcdefu);
    EXPECT_TRUE(files.write(*file, 0, nullptr, 4096));
    EXPECT_NE(*files.read_tag(*file, 0), partly);
    files.close(*file);
  });
}

// ---- Against a byte array

/// Random reads, writes, truncations and syncs of one file by several threads, each in its own stripe of pages but for
/// the size; others drop clean pages and start writes as reclaim and the flusher would.
void model_run(uint64_t seed, unsigned threads, bool failing_disk) {
  SCOPED_TRACE("seed " + std::to_string(seed) + ", threads " + std::to_string(threads));
  FileWorld w({.seed = seed, .preempt_one_in = threads > 1 ? 7u : 0u, .cpus = threads > 1 ? 2u : 1u});
  std::mt19937_64 rng(seed);
  constexpr uint64_t MAX = 48 * PAGE_SIZE;
  std::vector<std::byte>
      model;  // one thread: the whole file. Several: the part below each one's stripe end is fixed in size
  const uint64_t initial = threads > 1 ? MAX : rng() % MAX;
  Inode* inode = w.make_file(Bytes(initial), Bytes(MAX));
  for (uint64_t i = 0; i < 48; ++i) w.put_on_disk(*inode, i, 0xd0 + static_cast<int>(i % 16));
  model.resize(initial);
  for (uint64_t i = 0; i < initial; ++i) model[i] = static_cast<std::byte>(0xd0 + i / PAGE_SIZE % 16);

  unsigned busy = threads;
  const uint64_t stripe = MAX / threads;
  for (unsigned t = 0; t < threads; ++t) {
    const auto work = [&, t] {
      std::mt19937_64 dice(seed * 1000 + t);
      File* file = *w.m.files.open(*inode);
      const uint64_t low = threads > 1 ? stripe * t : 0, high = threads > 1 ? low + stripe : MAX;
      for (int step = 0; step < (threads > 1 ? 120 : 400); ++step) {
        const uint64_t pos = low + dice() % (high - low);
        const uint64_t n = std::min(high - pos, dice() % (dice() % 4 == 0 ? 30000 : 300) + 1);
        const unsigned what = static_cast<unsigned>(dice() % 16);
        if (what < 6) {
          std::vector<std::byte> data(n);
          for (std::byte& b : data) b = static_cast<std::byte>(dice());
          Result<uint64_t> done = w.m.files.write(*file, pos, data.data(), n);
          if (!done) {
            ASSERT_TRUE(failing_disk) << errno_name(done.error());
            continue;
          }
          if (model.size() < pos + *done) model.resize(pos + *done);
          std::copy_n(data.begin(), *done, model.begin() + static_cast<long>(pos));
        } else if (what < 13) {
          std::vector<std::byte> data(n);
          Result<uint64_t> done = w.m.files.read(*file, pos, data.data(), n);
          if (!done) {
            ASSERT_TRUE(failing_disk) << errno_name(done.error());
            continue;
          }
          const uint64_t expected = pos < model.size() ? std::min(n, model.size() - pos) : 0;
          if (!failing_disk) {
            ASSERT_EQ(*done, expected) << "step " << step;
          }
          ASSERT_LE(*done, expected);
          ASSERT_TRUE(
              std::equal(data.begin(), data.begin() + static_cast<long>(*done), model.begin() + static_cast<long>(pos)))
              << "step " << step << ", pos " << pos << ", bytes " << n;
        } else if (what == 13) {
          const Result<void> synced = w.m.files.fsync(*file);
          if (!failing_disk) {
            ASSERT_TRUE(synced);
          }
        } else if (what == 14) {
          if (threads > 1) {
            w.world.schedule_timeout(Nanos(dice() % 100000));
          } else {
            const uint64_t size = dice() % (MAX + 1);
            if (const Result<void> cut = w.m.files.truncate(*inode, Bytes(size)))
              model.resize(size);
            else
              ASSERT_TRUE(failing_disk);
          }
        } else if (threads == 1) {
          w.m.files.invalidate(*inode);
        }
      }
      w.m.files.close(*file);
    };
    w.spawn("worker", [&, work] {
      work();
      --busy;
    });
  }
  if (threads > 1) {
    w.spawn("reclaim", [&] {
      while (busy > 0) {
        w.m.files.invalidate(*inode);
        w.world.schedule_timeout(20_us);
      }
    });
    w.spawn("flusher", [&] {
      while (busy > 0) {
        WritebackControl wbc;
        wbc.nr_to_write = 5;
        wbc.range_cyclic = true;
        w.m.writeback.write_cache_pages(inode->i_data, wbc);
        w.world.schedule_timeout(30_us);
      }
    });
    if (failing_disk)
      w.spawn("faults", [&] {
        while (busy > 0) {
          w.faulty->set_fail({.probability = 20});
          w.world.schedule_timeout(100_us);
          w.faulty->set_fail({});
          w.world.schedule_timeout(300_us);
        }
      });
  } else if (failing_disk) {
    w.faulty->set_fail({.probability = 5});
  }
  w.run();
  w.faulty->set_fail({});
  // In the end the device has it all.
  w.run([&] {
    File* file = *w.m.files.open(*inode);
    EXPECT_TRUE(w.m.files.fsync(*file));
    w.m.files.close(*file);
  });
  ASSERT_EQ(inode->i_size.load(), model.size());
  const uint64_t valid = std::min<uint64_t>(model.size(), inode->valid_pages * PAGE_SIZE);
  for (uint64_t i = 0; i < valid; ++i)
    ASSERT_EQ(w.on_disk(*inode, i / PAGE_SIZE)[i % PAGE_SIZE], model[i]) << "byte " << i;
  for (uint64_t i = valid; i < model.size(); ++i) ASSERT_EQ(model[i], std::byte{0});
}

TEST(FilemapIoModel, OneThreadDoesAsAByteArrayDoes) {
  for (uint64_t seed = 1; seed <= 60 && !testing::Test::HasFatalFailure(); ++seed) model_run(seed, 1, false);
}

TEST(FilemapIoModel, ThreadsDoAsAByteArrayDoesInAnySchedule) {
  for (uint64_t seed = 1; seed <= 40 && !testing::Test::HasFatalFailure(); ++seed) model_run(seed, 4, false);
}

TEST(FilemapIoModel, NothingThatWasAcceptedIsLostOnAFailingDisk) {
  for (uint64_t seed = 1; seed <= 40 && !testing::Test::HasFatalFailure(); ++seed) {
    model_run(seed, 1, true);
    model_run(seed, 3, true);
  }
}

TEST(FilemapIoModel, TheSameSeedGivesTheSameRun) {
  std::vector<std::pair<uint64_t, uint64_t>> runs;
  for (int i = 0; i < 2; ++i) {
    FileWorld w({.seed = 5, .preempt_one_in = 3, .cpus = 2});
    Inode* inode = w.make_file(256_KiB);
    for (int t = 0; t < 3; ++t)
      w.spawn("worker", [&, t] {
        File* file = *w.m.files.open(*inode);
        for (uint64_t k = 0; k < 100; ++k) {
          const uint64_t pos = k * 7919 * static_cast<uint64_t>(t + 1) % (250 << 10);
          if (k % 3 == 0) {
            const Bytestring data = bytes_of_value(t, 3000);
            EXPECT_TRUE(w.m.files.write(*file, pos, data.data(), data.size()));
          } else {
            EXPECT_TRUE(w.m.files.read(*file, pos, nullptr, 3000));
          }
        }
        w.m.files.close(*file);
      });
    w.run();
    runs.emplace_back(w.world.now().v, w.world.switches());
  }
  EXPECT_EQ(runs[0], runs[1]);
}

}  // namespace
}  // namespace weir
