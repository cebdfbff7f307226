// tests/live/live_file_test.cpp: files mapped into a live machine: what is read, stored and written back; on the host's
// real MMU and real files. What goes wrong: live_file_errors_test.
#include "live/live_file.hpp"

#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>

namespace {

using namespace weir;
using namespace weir::test;
using Sharing = LiveMachine::Sharing;

INSTANTIATE_TEST_SUITE_P(, LiveFile, testing::Values(Delivery::signal, Delivery::thread), delivery_name);

// ---- Reading and writing --------------------------------------------------------------------------------------------

TEST_P(LiveFile, four_times_the_ram_is_read_and_every_byte_is_the_files) {
  constexpr uint64_t SIZE = 64 << 20;
  HostFile file(SIZE);
  std::byte* at = map(file, 0, SIZE, READ);
  EXPECT_EQ(wrong(at, SIZE, 0), 0u);
  std::mt19937_64 random(1);
  uint64_t bad = 0;
  for (int i = 0; i < 20000; ++i) {
    const uint64_t pos = random() % SIZE;
    bad += at[pos] != byte_of(1, pos) ? 1 : 0;
  }
  EXPECT_EQ(bad, 0u);
  EXPECT_LE(stats().host_resident_pages, RAM.v / PAGE);
  EXPECT_EQ(node(NodeStat::nr_dirty), 0);
}

TEST_P(LiveFile, stores_are_in_the_file_after_msync_and_after_unmapping) {
  constexpr uint64_t SIZE = 48 << 20;
  HostFile file(SIZE);
  std::byte* at = map(file, 0, SIZE);
  // One byte a page, so that the rest has to be read first.
  for (uint64_t page = 0; page < SIZE; page += PAGE) at[page + page / PAGE % PAGE] = byte_of(2, page);
  EXPECT_EQ(sync(at, SIZE), Errno::ok);
  EXPECT_EQ(node(NodeStat::nr_dirty), 0);
  uint64_t bad = 0;
  for (uint64_t page = 0; page < SIZE; page += PAGE) bad += file.byte(page + page / PAGE % PAGE) != byte_of(2, page);
  EXPECT_EQ(bad, 0u);
  for (uint64_t page = 0; page < SIZE; page += PAGE) at[page + page / PAGE % PAGE] = byte_of(3, page);
  EXPECT_EQ(unmap(at, SIZE), Errno::ok);
  for (uint64_t page = 0; page < SIZE; page += PAGE) {
    const std::vector<std::byte> now = file.bytes(page, PAGE);
    for (uint64_t i = 0; i < PAGE; ++i)
      bad += now[i] != (i == page / PAGE % PAGE ? byte_of(3, page) : byte_of(1, page + i));
  }
  EXPECT_EQ(bad, 0u);
  EXPECT_EQ(node(NodeStat::nr_file_pages), 0);
}

TEST_P(LiveFile, a_private_mapping_keeps_its_stores_in_swap_and_the_file_does_not_see_them) {
  constexpr uint64_t SIZE = 32 << 20;
  HostFile file(SIZE);
  std::byte* at = map(file, 0, SIZE, WRITE, Sharing::private_);
  for (uint64_t page = 0; page < SIZE; page += 2 * PAGE) store(at + page, PAGE, page, 5);
  EXPECT_EQ(sync(at, SIZE), Errno::ok);
  for (uint64_t page = 0; page < SIZE; page += PAGE)
    ASSERT_EQ(wrong(at + page, PAGE, page, page % (2 * PAGE) == 0 ? 5 : 1), 0u) << page;
  EXPECT_EQ(wrong(file, 0, SIZE, 1), 0u);
  EXPECT_GT(stats().event[static_cast<unsigned>(VmEvent::pswpout)], 0u);
  // What is given up comes back from the file.
  EXPECT_TRUE(live->advise(at, SIZE, MADV_DONTNEED));
  EXPECT_EQ(wrong(at, SIZE, 0), 0u);
  EXPECT_EQ(unmap(at, SIZE), Errno::ok);
}

TEST_P(LiveFile, any_page_aligned_offset_and_a_length_that_is_no_page) {
  HostFile file(10 * PAGE + 100);
  std::byte* at = map(file, 3 * PAGE, 5 * PAGE + 1);
  EXPECT_EQ(wrong(at, 6 * PAGE, 3 * PAGE), 0u);
  std::byte* tail = map(file, 10 * PAGE, 100);
  EXPECT_EQ(wrong(tail, 100, 10 * PAGE), 0u);
  for (size_t i = 100; i < PAGE; ++i) ASSERT_EQ(tail[i], std::byte{0});
  // What is stored behind the end is nobody's, and the file does not grow.
  std::memset(tail + 50, 7, 200);
  EXPECT_EQ(unmap(tail, 100), Errno::ok);
  EXPECT_EQ(file.size(), 10 * PAGE + 100);
  EXPECT_EQ(file.byte(10 * PAGE + 99), std::byte{7});
  EXPECT_EQ(unmap(at, 5 * PAGE + 1), Errno::ok);
}

TEST_P(LiveFile, several_files_and_the_memory_beside_them_share_the_ram) {
  constexpr uint64_t SIZE = 12 << 20;
  HostFile a(SIZE, 1), b(SIZE, 2), c(SIZE, 3);
  std::byte* at[] = {map(a, 0, SIZE), map(b, 0, SIZE), map(c, 0, SIZE)};
  auto* memory = static_cast<std::byte*>(*live->map(SIZE, WRITE));
  std::mt19937_64 random(7);
  for (int i = 0; i < 20000; ++i) {
    const uint64_t page = random() % (SIZE / PAGE) * PAGE, which = random() % 4;
    if (which == 3) {
      memory[page] = byte_of(9, page);
    } else {
      ASSERT_EQ(at[which][page + 1], byte_of(which + 1, page + 1));
      at[which][page] = byte_of(which + 11, page);
    }
  }
  for (int which = 0; which < 3; ++which) EXPECT_EQ(unmap(at[which], SIZE), Errno::ok);
  uint64_t bad = 0;
  for (uint64_t page = 0; page < SIZE; page += PAGE) {
    bad += memory[page] != byte_of(9, page) && memory[page] != std::byte{0};
    int which = 0;
    for (const HostFile* file : {&a, &b, &c}) {
      const std::byte now = file->byte(page);
      ++which;
      bad += now != byte_of(which, page) && now != byte_of(which + 10, page);
    }
  }
  EXPECT_EQ(bad, 0u);
}

TEST_P(LiveFile, two_mappings_of_a_file_show_the_same_bytes) {
  constexpr uint64_t SIZE = 1 << 20;
  HostFile file(SIZE);
  std::byte* a = map(file, 0, SIZE);
  std::byte* b = map(file, 0, SIZE);
  std::byte* p = map(file, 0, SIZE, WRITE, Sharing::private_);
  for (uint64_t page = 0; page < SIZE; page += PAGE) {
    EXPECT_EQ(b[page], byte_of(1, page));
    EXPECT_EQ(p[page], byte_of(1, page));
    a[page] = std::byte{42};
    EXPECT_EQ(b[page], std::byte{42});
    EXPECT_EQ(p[page], std::byte{42});
    p[page] = std::byte{1};
    b[page] = std::byte{43};
    EXPECT_EQ(a[page], std::byte{43});
    EXPECT_EQ(p[page], std::byte{1});
  }
  EXPECT_EQ(unmap(b, SIZE), Errno::ok);
  EXPECT_EQ(a[0], std::byte{43});
  EXPECT_EQ(file.byte(0), std::byte{43});
}

TEST_P(LiveFile, threads_on_mappings_of_one_file_lose_nothing) {
  constexpr uint64_t SIZE = 24 << 20;
  constexpr int THREADS = 3;
  HostFile file(SIZE);
  std::byte* mappings[] = {map(file, 0, SIZE), map(file, 0, SIZE)};
  std::atomic<bool> stop{false};
  std::thread syncer([&] {
    while (!stop) EXPECT_EQ(sync(mappings[0], SIZE), Errno::ok);
  });
  std::vector<std::thread> threads;
  std::atomic<uint64_t> bad{0};
  for (int t = 0; t < THREADS; ++t)
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      // Each has bytes of its own in every page.
      for (int round = 0; round < 6000; ++round) {
        const uint64_t pos = random() % (SIZE / PAGE) * PAGE + static_cast<uint64_t>(t);
        std::byte& byte = mappings[random() % 2][pos];
        const std::byte now = byte;
        if (now != byte_of(1, pos) && now != byte_of(20, pos)) ++bad;
        byte = byte_of(20, pos);
        if (mappings[random() % 2][pos] != byte_of(20, pos)) ++bad;
      }
    });
  for (std::thread& t : threads) t.join();
  stop = true;
  syncer.join();
  EXPECT_EQ(bad, 0u);
  for (int t = 0; t < THREADS; ++t) {
    std::mt19937_64 random(t);
    for (int round = 0; round < 6000; ++round) {
      const uint64_t pos = random() % (SIZE / PAGE) * PAGE + static_cast<uint64_t>(t);
      (void)random(), (void)random();
      bad += mappings[0][pos] != byte_of(20, pos);
    }
  }
  EXPECT_EQ(bad, 0u);
  EXPECT_EQ(unmap(mappings[0], SIZE), Errno::ok);
  EXPECT_EQ(unmap(mappings[1], SIZE), Errno::ok);
}

TEST_P(LiveFile, mappings_come_and_go_while_others_use_the_file) {
  constexpr uint64_t SIZE = 8 << 20;
  HostFile file(SIZE);
  std::byte* stays = map(file, 0, SIZE);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> bad{0};
  std::thread other([&] {
    std::mt19937_64 random(3);
    while (!stop) {
      const uint64_t pos = random() % (SIZE / PAGE) * PAGE + 8;
      const std::byte now = stays[pos];
      if (now != byte_of(1, pos) && now != byte_of(6, pos)) ++bad;
      stays[pos] = byte_of(6, pos);
      if (stays[pos] != byte_of(6, pos)) ++bad;
    }
  });
  std::mt19937_64 random(4);
  for (int round = 0; round < 60; ++round) {
    std::byte* at = map(file, 0, SIZE);
    for (int i = 0; i < 100; ++i) {
      const uint64_t pos = random() % (SIZE / PAGE) * PAGE;
      at[pos] = byte_of(7, pos);
    }
    if (round % 3 == 0) (void)live->advise(at, SIZE, MADV_DONTNEED);
    EXPECT_EQ(sync(at, SIZE, MS_ASYNC), Errno::ok);
    EXPECT_EQ(unmap(at, SIZE), Errno::ok);
  }
  stop = true;
  other.join();
  EXPECT_EQ(bad, 0u);
  random.seed(4);
  for (int i = 0; i < 60 * 100; ++i) {
    const uint64_t pos = random() % (SIZE / PAGE) * PAGE;
    bad += stays[pos] != byte_of(7, pos);
  }
  EXPECT_EQ(bad, 0u);
}

// ---- Limits, advice, system calls -----------------------------------------------------------------------------------

TEST_P(LiveFile, flushers_write_what_is_too_much_without_being_asked) {
  constexpr uint64_t SIZE = 48 << 20;
  HostFile file(SIZE);
  std::byte* at = map(file, 0, SIZE);
  int64_t most = 0;
  for (uint64_t page = 0; page < SIZE; page += PAGE) {
    at[page] = byte_of(2, page);
    if (page % (64 * PAGE) == 0) most = std::max(most, node(NodeStat::nr_dirty) + node(NodeStat::nr_writeback));
  }
  EXPECT_LE(most, static_cast<int64_t>(RAM.v / PAGE) / 5 + 256);
  EXPECT_GT(stats().event[static_cast<unsigned>(VmEvent::flusher_wakeup)], 0u);
  EXPECT_EQ(unmap(at, SIZE), Errno::ok);
  uint64_t bad = 0;
  for (uint64_t page = 0; page < SIZE; page += PAGE) bad += file.byte(page) != byte_of(2, page);
  EXPECT_EQ(bad, 0u);
}

TEST_P(LiveFile, advice_says_how_far_is_read_ahead) {
  constexpr uint64_t SIZE = 4 << 20;
  HostFile file(SIZE);
  std::byte* at = map(file, 0, SIZE, READ);
  ASSERT_TRUE(live->advise(at, SIZE, MADV_RANDOM));
  (void)*const_cast<volatile std::byte*>(at + 100 * PAGE);
  EXPECT_EQ(node(NodeStat::nr_file_pages), 1);
  ASSERT_TRUE(live->advise(at, SIZE, MADV_NORMAL));
  (void)*const_cast<volatile std::byte*>(at + 300 * PAGE);
  EXPECT_GE(node(NodeStat::nr_file_pages), 32);
  ASSERT_TRUE(live->advise(at, SIZE, MADV_WILLNEED));
  EXPECT_EQ(node(NodeStat::nr_file_pages), static_cast<int64_t>(SIZE / PAGE));
  EXPECT_EQ(wrong(at, SIZE, 0), 0u);
  EXPECT_EQ(live->advise(at, SIZE, MADV_WIPEONFORK).error(), Errno::inval);
}

TEST_P(LiveFile, system_calls_read_and_write_through_mappings) {
  constexpr uint64_t SIZE = 1 << 20;
  HostFile file(SIZE), other(SIZE, 2);
  std::byte* at = map(file, 0, SIZE);
  // Under signal delivery the pages have to be there, as anywhere.
  ASSERT_TRUE(live->advise(at, SIZE, MADV_POPULATE_WRITE));
  ASSERT_EQ(pread(other.fd(), at, SIZE / 2, 0), static_cast<ssize_t>(SIZE / 2));
  EXPECT_EQ(sync(at, SIZE), Errno::ok);
  EXPECT_EQ(wrong(file, 0, SIZE / 2, 2), 0u);
  EXPECT_EQ(wrong(file, SIZE / 2, SIZE / 2, 1), 0u);
  ASSERT_TRUE(live->advise(at, SIZE, MADV_POPULATE_READ));
  ASSERT_EQ(pwrite(other.fd(), at + SIZE / 2, SIZE / 2, 0), static_cast<ssize_t>(SIZE / 2));
  EXPECT_EQ(wrong(at + SIZE / 2, SIZE / 2, SIZE / 2), 0u);
}

TEST_P(LiveFile, a_page_that_the_kernel_holds_stays_and_is_written_when_it_lets_go) {
  constexpr uint64_t SIZE = 128 * PAGE, HELD = 64 * PAGE;
  HostFile file(SIZE);
  std::byte* at = map(file, 0, SIZE);
  store(at, HELD, 0, 2);
  io_uring_params params{};
  const auto ring = static_cast<int>(syscall(SYS_io_uring_setup, 4, &params));
  if (ring < 0) GTEST_SKIP() << "no io_uring here to pin pages with";
  iovec held{at, HELD};
  ASSERT_EQ(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &held, 1), 0);
  press();
  store(at, HELD, 0, 3);
  EXPECT_EQ(sync(at, SIZE), Errno::ok);
  press();
  EXPECT_EQ(wrong(at, HELD, 0, 3), 0u);
  EXPECT_GT(stats().arch.pinned, 0u);
  // The device would write here without a fault.
  store(at, HELD, 0, 4);
  ASSERT_EQ(syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, nullptr, 0), 0);
  EXPECT_EQ(sync(at, SIZE), Errno::ok);
  EXPECT_EQ(wrong(file, 0, HELD, 4), 0u);

  // Unmapped while it is held: what it was then.
  store(at, HELD, 0, 5);
  ASSERT_EQ(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &held, 1), 0);
  press();
  EXPECT_EQ(unmap(at, SIZE), Errno::ok);
  EXPECT_EQ(wrong(file, 0, HELD, 5), 0u);
  EXPECT_EQ(wrong(file, HELD, SIZE - HELD, 1), 0u);
  close(ring);
}

}  // namespace
