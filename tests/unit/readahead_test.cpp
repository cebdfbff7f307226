// Windows: how large, when, and what is read.
#include "mm/readahead.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "support/file_fixture.hpp"

namespace weir {
namespace {

using test::FileWorld;
using test::FlowLog;

struct Window {
  uint64_t start, size, async;
  bool operator==(const Window&) const = default;
  friend std::ostream& operator<<(std::ostream& out, const Window& w) {
    return out << "[" << w.start << ", +" << w.size << ", async " << w.async << "]";
  }
};

constexpr SimDiskOptions DISK{.name = "disk0", .capacity = PageCount(1 << 16), .congested_above = 40};

/// Files that are read under a kernel, and what was recorded.
class FileReading : public testing::Test {
 protected:
  explicit FileReading(KernelEra kernel) : w{{.kernel = kernel, .disk = DISK}} {}
  void SetUp() override { w.world.set_sink(&log); }
  void TearDown() override { w.world.set_sink(nullptr); }
  void read_page(File& file, uint64_t index, uint64_t pages = 1) {
    Result<uint64_t> n = w.m.files.read(file, index * PAGE_SIZE, nullptr, pages * PAGE_SIZE);
    ASSERT_TRUE(n);
  }
  void with_file(Bytes size, std::function<void(File&)> fn) {
    Inode* inode = w.make_file(size);
    w.run([&] {
      File* file = *w.m.files.open(*inode);
      fn(*file);
      w.m.files.close(*file);
    });
  }
  FileWorld w;
  FlowLog log;
};

class ReadaheadTest : public FileReading {
 protected:
  ReadaheadTest() : FileReading(DEFAULT_KERNEL) {}
  std::vector<Window> windows() const {
    std::vector<Window> found;
    for (const FlowLog::Entry& e : log.calls("ra_submit")) found.push_back({e.a, e.b, e.c});
    return found;
  }
  std::vector<uint64_t> pages_read() const {
    std::vector<uint64_t> found;
    for (const FlowLog::Entry& e : log.states(State::page_cache_read)) found.push_back(e.b);
    return found;
  }
};

TEST_F(ReadaheadTest, TheFirstWindowIsTheRequestRoundedUpTimesFourTwoOrTheMaximum) {
  std::vector<uint32_t> sizes;
  for (uint64_t asked : {1, 2, 3, 4, 8, 9, 16, 32, 100}) sizes.push_back(Readahead::get_init_ra_size(asked, 32));
  EXPECT_EQ(sizes, (std::vector<uint32_t>{4, 4, 8, 8, 16, 32, 32, 32, 32}));
  EXPECT_EQ(Readahead::get_init_ra_size(4, 128), 16u);
}

TEST_F(ReadaheadTest, TheNextWindowIsFourTimesOrTwiceAsLargeUpToTheMaximum) {
  std::vector<uint32_t> sizes;
  for (uint32_t size : {1, 2, 4, 16, 20, 32}) sizes.push_back(Readahead::get_next_ra_size(size, 32));
  EXPECT_EQ(sizes, (std::vector<uint32_t>{4, 4, 8, 32, 32, 32}));
}

TEST_F(ReadaheadTest, ASequentialReadersWindowsGrowFrom4To32) {
  with_file(1_MiB, [&](File& file) {
    for (uint64_t i = 0; i < 128; ++i) read_page(file, i);
  });
  EXPECT_EQ(
      windows(),
      (std::vector<Window>{
          {0, 4, 3}, {4, 8, 8}, {12, 16, 16}, {28, 32, 32}, {60, 32, 32}, {92, 32, 32}, {124, 32, 32}, {156, 32, 32}}));
  std::vector<uint64_t> each_once(188);
  for (uint64_t i = 0; i < each_once.size(); ++i) each_once[i] = i;
  EXPECT_EQ(pages_read(), each_once);
}

TEST_F(ReadaheadTest, AStreamMayBeginInTheMiddle) {
  with_file(4_MiB, [&](File& file) {
    read_page(file, 500);
    for (uint64_t i = 501; i < 530; ++i) read_page(file, i);
  });
  // The first read is random: its page alone. The second follows it.
  EXPECT_EQ(windows(), (std::vector<Window>{{501, 4, 3}, {505, 8, 8}, {513, 16, 16}, {529, 32, 32}, {561, 32, 32}}));
}

TEST_F(ReadaheadTest, RandomReadsReadOnlyWhatTheyAskFor) {
  std::vector<uint64_t> asked;
  with_file(16_MiB, [&](File& file) {
    for (uint64_t i = 1; i <= 200; ++i) {
      const uint64_t index = i * 2654435761u % 4093 + 2;
      if (std::find(asked.begin(), asked.end(), index) != asked.end() || (!asked.empty() && index - asked.back() <= 1))
        continue;
      asked.push_back(index);
      read_page(file, index);
    }
  });
  EXPECT_EQ(windows(), std::vector<Window>{});
  EXPECT_EQ(pages_read(), asked);
}

TEST_F(ReadaheadTest, ALargeRandomReadIsReadAtOnceAndNoFurther) {
  with_file(4_MiB, [&](File& file) { read_page(file, 300, 20); });
  EXPECT_EQ(windows(), std::vector<Window>{});
  EXPECT_EQ(pages_read().size(), 20u);
}

TEST_F(ReadaheadTest, ARequestLargerThanTheMaximumGoesInWindowsOfIt) {
  with_file(4_MiB, [&](File& file) { read_page(file, 100, 80); });
  // In the first one the marker is on the middle page: the rest is asked for as well.
  EXPECT_EQ(windows(), (std::vector<Window>{{100, 32, 16}, {132, 32, 32}, {164, 32, 32}, {196, 32, 32}}));
}

TEST_F(ReadaheadTest, NothingIsReadBehindTheEndOfTheFile) {
  with_file(Bytes(6 * PAGE_SIZE + 1), [&](File& file) {
    for (uint64_t i = 0; i < 7; ++i) read_page(file, i);
  });
  EXPECT_EQ(pages_read(), (std::vector<uint64_t>{0, 1, 2, 3, 4, 5, 6}));
}

TEST_F(ReadaheadTest, PagesAlreadyCachedAreNotReadAgain) {
  with_file(1_MiB, [&](File& file) {
    file.ra_pages = 0;
    for (uint64_t i : {2, 5, 6}) read_page(file, i);
    file.ra_pages = 32;
    for (uint64_t i = 0; i < 12; ++i) read_page(file, i);
  });
  std::vector<uint64_t> read = pages_read();
  const size_t count = read.size();
  std::sort(read.begin(), read.end());
  read.erase(std::unique(read.begin(), read.end()), read.end());
  EXPECT_EQ(read.size(), count);
}

TEST_F(ReadaheadTest, WithoutReadaheadOnePageIsReadAtATime) {
  with_file(1_MiB, [&](File& file) {
    file.ra_pages = 0;
    for (uint64_t i = 0; i < 5; ++i) read_page(file, i);
  });
  EXPECT_EQ(windows(), std::vector<Window>{});
  EXPECT_EQ(pages_read(), (std::vector<uint64_t>{0, 1, 2, 3, 4}));
}

TEST_F(ReadaheadTest, TwoStreamsOfOneFileEachHaveTheirWindows) {
  Inode* inode = w.make_file(4_MiB);
  w.run([&] {
    File* low = *w.m.files.open(*inode);
    File* high = *w.m.files.open(*inode);
    for (uint64_t i = 0; i < 60; ++i) {
      read_page(*low, i);
      read_page(*high, 512 + i);
    }
    EXPECT_EQ(low->ra_size, 32u);
    EXPECT_EQ(high->ra_size, 32u);
    w.m.files.close(*low);
    w.m.files.close(*high);
  });
}

TEST_F(ReadaheadTest, TheMarkerLetsReadingAndComputingOverlap) {
  // A page takes 70 us to be used and 80 us + 8 us to be read. Windows hide all but the first reads.
  Nanos begin, end;
  with_file(4_MiB, [&](File& file) {
    begin = w.world.now();
    for (uint64_t i = 0; i < 512; ++i) {
      read_page(file, i);
      w.world.spend(70_us);
    }
    end = w.world.now();
  });
  const uint64_t used = 512 * 70'000;
  EXPECT_LT((end - begin).v, used + 300'000);
}

TEST_F(ReadaheadTest, AMarkerIsUsedUpByTheFirstWhoReadsItsPage) {
  Inode* inode = w.make_file(4_MiB);
  w.run([&] {
    File* first = *w.m.files.open(*inode);
    File* second = *w.m.files.open(*inode);
    for (uint64_t i = 0; i < 3; ++i) read_page(*first, i);
    log.entries.clear();
    read_page(*second, 1);
    EXPECT_EQ(windows(), std::vector<Window>{});
    read_page(*second, 4);  // the next window's, which nobody has read yet: the cached run ends at 12
    EXPECT_EQ(windows(), (std::vector<Window>{{12, 18, 18}}));
    w.m.files.close(*first);
    w.m.files.close(*second);
  });
}

TEST_F(ReadaheadTest, ACongestedDeviceIsNotAskedForMoreThanIsNeeded) {
  Inode* inode = w.make_file(4_MiB);
  Inode* other = w.make_file(4_MiB);
  w.run([&] {
    File* file = *w.m.files.open(*inode);
    File* rival = *w.m.files.open(*other);
    read_page(*file, 0);
    // The rival's requests wait in the disk's queue.
    rival->ra_pages = 200;  // one window of 200 pages
    w.spawn("rival", [&] { read_page(*rival, 0, 200); });
    w.world.schedule_timeout(1_us);
    EXPECT_TRUE(w.disk->congested());
    log.entries.clear();
    read_page(*file, 1);
    EXPECT_EQ(windows(), std::vector<Window>{});
    w.world.schedule_timeout(100_ms);
    w.m.files.close(*file);
    w.m.files.close(*rival);
  });
}

TEST_F(ReadaheadTest, ShortOfMemoryAReaderStillGetsItsPage) {
  with_file(1_MiB, [&](File& file) {
    // Only what the reader's own page needs is left: readahead asks with less insistence, and none of it is promised.
    std::vector<Page*> hoard;
    while (Page* p = w.m.pages.alloc_page(GFP_NOWAIT | __GFP_NOWARN)) hoard.push_back(p);
    ThreadFlagScope reserve(PF_MEMALLOC);
    read_page(file, 0);
    for (Page* p : hoard) w.m.lru.put_page(*p);
  });
  EXPECT_FALSE(pages_read().empty());
}

// ---- 2.6.20: two windows

class TwoWindowTest : public FileReading {
 protected:
  TwoWindowTest() : FileReading(KernelEra::linux_2_6_20) {}
  /// What was asked for, read or not: start and size.
  std::vector<std::pair<uint64_t, uint64_t>> windows() const {
    std::vector<std::pair<uint64_t, uint64_t>> found;
    for (const FlowLog::Entry& e : log.calls("__do_page_cache_readahead")) found.emplace_back(e.a, e.b);
    return found;
  }
  using Windows = std::vector<std::pair<uint64_t, uint64_t>>;
};

TEST_F(TwoWindowTest, ASequentialReadersWindowsGrowFrom4To32) {
  with_file(1_MiB, [&](File& file) {
    for (uint64_t i = 0; i < 100; ++i) read_page(file, i);
  });
  EXPECT_EQ(windows(), (Windows{{0, 4}, {4, 8}, {12, 16}, {28, 32}, {60, 32}, {92, 32}, {124, 32}}));
}

TEST_F(TwoWindowTest, TheWindowAheadIsReadWhenTheReaderEntersTheOneBeforeIt) {
  std::vector<size_t> at;
  with_file(1_MiB, [&](File& file) {
    for (uint64_t i = 0; i < 30; ++i) {
      const size_t before = windows().size();
      read_page(file, i);
      if (windows().size() != before) at.push_back(i);
    }
  });
  EXPECT_EQ(at, (std::vector<size_t>{0, 1, 4, 12, 28}));
}

TEST_F(TwoWindowTest, RandomReadsReadOnlyWhatTheyAskFor) {
  with_file(16_MiB, [&](File& file) { read_page(file, 500), read_page(file, 100, 3), read_page(file, 900); });
  EXPECT_EQ(windows(), (Windows{{500, 1}, {100, 3}, {900, 1}}));
}

TEST_F(TwoWindowTest, AStreamThatJumpsBeginsAnew) {
  with_file(16_MiB, [&](File& file) {
    for (uint64_t i = 0; i < 14; ++i) read_page(file, i);
    for (uint64_t i = 1000; i < 1006; ++i) read_page(file, i);
  });
  EXPECT_EQ(windows(), (Windows{{0, 4}, {4, 8}, {12, 16}, {28, 32}, {1000, 1}, {1001, 4}, {1005, 8}, {1013, 16}}));
}

TEST_F(TwoWindowTest, ALargeRequestHasTwoWindowsUnderWayAtOnce) {
  with_file(4_MiB, [&](File& file) { read_page(file, 0, 64); });
  const Windows found = windows();
  ASSERT_GE(found.size(), 2u);
  EXPECT_EQ(found[0], (std::pair<uint64_t, uint64_t>{0, 32}));
  EXPECT_EQ(found[1], (std::pair<uint64_t, uint64_t>{32, 32}));
}

TEST_F(TwoWindowTest, ThrashingMakesTheNextWindowTwoPagesSmaller) {
  with_file(4_MiB, [&](File& file) {
    uint64_t i = 0;
    for (; i < 60; ++i) read_page(file, i);  // current [28, 60), ahead [60, 92)
    ASSERT_EQ(windows().back(), (std::pair<uint64_t, uint64_t>{60, 32}));
    // What was read ahead is gone again.
    w.world.schedule_timeout(1_s);
    (void)w.m.files.invalidate(*file.f_inode);
    log.entries.clear();
    read_page(file, i++);  // enters the window ahead: the next one is read; then its page is missed
    EXPECT_EQ(windows(), (Windows{{92, 32}}));
    for (; i < 93; ++i) read_page(file, i);
    EXPECT_EQ(windows().back(), (std::pair<uint64_t, uint64_t>{124, 30}));
  });
}

TEST_F(TwoWindowTest, AFileThatIsCachedIsNotReadAheadUntilAPageIsMissing) {
  with_file(4_MiB, [&](File& file) {
    for (uint64_t i = 0; i < 600; ++i) read_page(file, i);
    File* again = *w.m.files.open(*file.f_inode);
    log.entries.clear();
    for (uint64_t i = 0; i < 500; ++i) read_page(*again, i);
    uint64_t asked = 0;
    for (const auto& [start, size] : windows()) asked += size;
    EXPECT_GE(asked, 256u);
    EXPECT_LE(asked, 256u + 32) << "after 256 pages that were there nothing is asked for";
    EXPECT_TRUE(again->ra_incache);
    for (uint64_t i = 500; i < 700; ++i) read_page(*again, i);
    EXPECT_FALSE(again->ra_incache);
    w.m.files.close(*again);
  });
}

TEST_F(TwoWindowTest, ABusyDeviceIsAskedForTheCurrentWindowOnly) {
  Inode* other = w.make_file(4_MiB);
  with_file(4_MiB, [&](File& file) {
    read_page(file, 0);
    File* busy = *w.m.files.open(*other);
    for (uint64_t i = 0; i < 45; ++i) ASSERT_TRUE(w.m.files.write_tag(*busy, i, 1));
    WritebackControl wbc;
    wbc.nr_to_write = 100;
    w.m.writeback.write_cache_pages(other->i_data, wbc);
    ASSERT_TRUE(other->bdev->congested());
    log.entries.clear();
    read_page(file, 1);
    EXPECT_EQ(windows(), (Windows{}));
    EXPECT_EQ(file.ahead_start, 0u);
    w.m.files.close(*busy);
  });
}

}  // namespace
}  // namespace weir
