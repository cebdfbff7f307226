// tests/live/uffd_mmu_test.cpp: where host pages are, on the host's real MMU: the RAM bound's invariant, aging, clean
// pages, quarantine.
#include "arch/uffd/uffd_mmu.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "arch/uffd/uffd_open.hpp"
#include "live/live_fixture.hpp"

namespace {

using namespace weir;

constexpr size_t PAGE = 4096, WORDS = PAGE / 8;
constexpr uint64_t PAGES = (32 << 20) / PAGE;

class UffdMmuTest : public test::LiveFixture<testing::Test> {
 protected:
  void create(const std::vector<std::string_view>& swap) {
    ASSERT_NO_FATAL_FAILURE(make(swap, 8_MiB, Delivery::signal));
    Result<void*> r = live->map(PAGES * PAGE, PROT_READ | PROT_WRITE);
    ASSERT_TRUE(r.ok());
    memory = static_cast<uint64_t*>(*r);
  }
  uint64_t* page(uint64_t n) { return memory + n * WORDS; }
  static void store(uint64_t* at, uint64_t value) {
    for (size_t i = 0; i < WORDS; ++i) at[i] = i < 32 ? value * 0x9e3779b97f4a7c15ull + i : value;
  }
  static bool holds(const uint64_t* at, uint64_t value) {
    for (size_t i = 0; i < WORDS; ++i)
      if (at[i] != (i < 32 ? value * 0x9e3779b97f4a7c15ull + i : value)) return false;
    return true;
  }

  uint64_t* memory = nullptr;
};

/// Of the process, as the host counts them.
uint64_t resident_now() {
  unsigned long total = 0, resident = 0;
  FILE* f = std::fopen("/proc/self/statm", "r");
  if (std::fscanf(f, "%lu %lu", &total, &resident) != 2) resident = 0;
  std::fclose(f);
  return resident;
}

TEST_F(UffdMmuTest, a_frame_has_one_host_page_at_most_at_any_moment) {
  const uint64_t before = resident_now();
  create({"zram", "file:/var/tmp:64M"});
  std::atomic<bool> stop{false};
  uint64_t most = 0, looks = 0;
  std::thread watcher([&] {
    for (; !stop; ++looks) most = std::max(most, resident_now());
  });
  std::vector<std::thread> threads;
  std::atomic<uint64_t> wrong{0};
  for (uint64_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (uint64_t n = t; n < PAGES; n += 3) store(page(n), n);
      std::mt19937_64 random(t);
      for (int i = 0; i < 4000; ++i) {
        const uint64_t n = random() % (PAGES / 3) * 3 + t;  // its own: others may still be writing theirs
        if (!holds(page(n), n)) ++wrong;
      }
    });
  for (std::thread& t : threads) t.join();
  stop = true;
  watcher.join();
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(looks, 3u);
  // The rest: stacks of the test's threads, and counters that the host keeps per CPU.
  EXPECT_LE(most - before, stats().ram_pages + 256);
  EXPECT_LE(stats().host_resident_pages, stats().ram_pages);
}

TEST_F(UffdMmuTest, old_pages_that_are_touched_come_back_from_staging_without_a_read) {
  create({"zram"});
  // A little more than fits, so that pages grow old; then the oldest that are still there are touched.
  for (uint64_t n = 0; n < 1800; ++n) store(page(n), n);
  const LiveStats before = stats();
  for (uint64_t n = 0; n < 1800; ++n) ASSERT_TRUE(holds(page(n), n));
  for (uint64_t n = 1800; n-- > 0;) ASSERT_TRUE(holds(page(n), n));
  const LiveStats after = stats();
  EXPECT_GT(after.arch.staged_back, before.arch.staged_back);
  // One that is on its way out comes back from there too, by a fault on its entry.
  const uint64_t touched = after.event[static_cast<unsigned>(VmEvent::access_flag_fault)] -
                           before.event[static_cast<unsigned>(VmEvent::access_flag_fault)];
  EXPECT_GT(touched, 0u);
  EXPECT_LE(touched, after.arch.staged_back - before.arch.staged_back);
}

TEST_F(UffdMmuTest, pages_only_read_since_they_came_back_leave_without_being_written) {
  create({"file:/var/tmp:128M"});
  for (uint64_t n = 0; n < PAGES; ++n) store(page(n), n);
  for (int round = 0; round < 2; ++round)
    for (uint64_t n = 0; n < PAGES; ++n) ASSERT_TRUE(holds(page(n), n));
  const LiveStats s = stats();
  EXPECT_GT(s.arch.clean, PAGES / 2);
  EXPECT_GT(s.event[static_cast<unsigned>(VmEvent::swap_clean_drop)], PAGES / 2);
  // One word is enough to make a page dirty.
  for (uint64_t n = 0; n < PAGES; ++n) page(n)[WORDS - 1] = ~n;
  for (uint64_t n = 0; n < PAGES; ++n) ASSERT_EQ(page(n)[WORDS - 1], ~n);
}

TEST_F(UffdMmuTest, what_is_given_back_late_is_counted_and_bounded) {
  create({"zram"});
  std::mt19937_64 random(1);
  for (uint64_t n = 0; n < PAGES; ++n) store(page(n), n);
  for (int i = 0; i < 20000; ++i) {
    const uint64_t n = random() % PAGES;
    ASSERT_TRUE(holds(page(n), n));
    if (i % 1000 != 0) continue;
    const LiveStats s = stats();
    ASSERT_LE(s.arch.slack, UffdMmu::SLACK);
    ASSERT_LE(s.node[static_cast<unsigned>(NodeStat::nr_quarantined)], 256);
  }
  EXPECT_GT(stats().arch.quarantine_flushes, 0u);
}

TEST_F(UffdMmuTest, memory_given_up_leaves_no_host_page_behind) {
  create({"zram", "file:/var/tmp:64M"});
  for (uint64_t n = 0; n < PAGES; ++n) store(page(n), n);
  ASSERT_TRUE(live->advise(memory, PAGES * PAGE, MADV_DONTNEED).ok());
  const LiveStats s = stats();
  EXPECT_EQ(s.rss_pages, 0u);
  EXPECT_EQ(s.swap_pages, 0u);
  for (uint64_t n = 0; n < PAGES; n += 17) ASSERT_EQ(page(n)[100], 0u);
}

TEST(UffdOpen, says_what_the_host_allows) {
  UffdOpenError error;
  Result<int> fd = uffd_open(UffdDelivery::signal, -1, error);
  ASSERT_TRUE(fd.ok()) << error.what << ": " << error.remedy;
  EXPECT_GE(*fd, 100) << "a number that programs count on";
  uffd_close(*fd);
}

}  // namespace
