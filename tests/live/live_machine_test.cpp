// tests/live/live_machine_test.cpp: system calls on managed memory, fork, what the machine says of itself; on the
// host's real MMU.
#include "live/live_machine.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "live/live_fixture.hpp"
#include "record/reader.hpp"
#include "record/ring.hpp"

namespace {

using namespace weir;

constexpr size_t PAGE = 4096, WORDS = PAGE / 8;

uint64_t word(uint64_t page, uint64_t value, size_t i) {
  return i < 96 ? (page * 0x9e3779b97f4a7c15ull + i * 0xbf58476d1ce4e5b9ull) ^ value << 40 : value;
}
void fill(uint64_t* at, uint64_t page, uint64_t value) {
  for (size_t i = 0; i < WORDS; ++i) at[i] = word(page, value, i);
}
bool holds(const uint64_t* at, uint64_t page, uint64_t value) {
  for (size_t i = 0; i < WORDS; ++i)
    if (at[i] != word(page, value, i)) return false;
  return true;
}

/// A machine of its own for each test, in both deliveries where the host allows it.
class LiveTest : public test::LiveFixture<testing::TestWithParam<Delivery>> {
 protected:
  void SetUp() override { make(16_MiB); }
  void make(Bytes ram) {
    LiveOptions o;
    o.ring = ring;
    o.record_events = RECORD_EVENTS;
    LiveFixture::make({"zram", "file:/var/tmp:128M"}, ram, GetParam(), o);
  }
  uint64_t* map(size_t bytes, int prot = PROT_READ | PROT_WRITE) {
    Result<void*> r = live->map(bytes, prot);
    EXPECT_TRUE(r.ok()) << errno_name(r.error());
    return r ? static_cast<uint64_t*>(*r) : nullptr;
  }
  /// Touches so much else that everything that can leave has left.
  void push_everything_out() {
    uint64_t* other = map(32 << 20);
    for (uint64_t page = 0; page < (32u << 20) / PAGE; ++page) fill(other + page * WORDS, page, 77);
    EXPECT_TRUE(live->unmap(other, 32 << 20).ok());
  }

  static constexpr uint64_t RECORD_EVENTS = 16384;
  std::span<std::byte> ring;  ///< empty: nothing is recorded
};

TEST_P(LiveTest, what_is_unmapped_and_mapped_again_reads_zero) {
  uint64_t* p = map(64 * PAGE);
  for (int round = 0; round < 3; ++round) {
    for (uint64_t page = 0; page < 64; ++page) {
      ASSERT_EQ(p[page * WORDS + 5], 0u);
      fill(p + page * WORDS, page, 1);
    }
    if (round == 1) push_everything_out();
    ASSERT_TRUE(live->unmap(p, 64 * PAGE).ok());
    Result<void*> again = live->map(64 * PAGE, PROT_READ | PROT_WRITE, LiveMachine::Place::fixed, p);
    ASSERT_TRUE(again.ok());
  }
}

TEST_P(LiveTest, a_mapping_that_moves_takes_its_pages_along) {
  uint64_t* p = map(600 * PAGE);
  for (uint64_t page = 0; page < 600; ++page) fill(p + page * WORDS, page, 2);
  uint64_t* behind = map(PAGE);  // so that there is no room to grow in place, if it came to lie there
  Result<void*> moved = live->remap(p, 600 * PAGE, 5000 * PAGE, MREMAP_MAYMOVE);
  ASSERT_TRUE(moved.ok()) << errno_name(moved.error());
  auto* q = static_cast<uint64_t*>(*moved);
  for (uint64_t page = 0; page < 600; ++page) ASSERT_TRUE(holds(q + page * WORDS, page, 2)) << page;
  for (uint64_t page = 600; page < 5000; ++page) ASSERT_EQ(q[page * WORDS], 0u);
  push_everything_out();
  Result<void*> fixed = live->remap(q, 5000 * PAGE, 300 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                                    p == q ? static_cast<void*>(p + 6000 * WORDS) : p);
  if (fixed) q = static_cast<uint64_t*>(*fixed);
  for (uint64_t page = 0; page < 300; ++page) ASSERT_TRUE(holds(q + page * WORDS, page, 2)) << page;
  (void)behind;
}

TEST_P(LiveTest, rights_are_the_host_s) {
  uint64_t* p = map(4 * PAGE);
  fill(p, 0, 3);
  ASSERT_TRUE(live->protect(p, PAGE, PROT_READ).ok());
  const pid_t child = ::fork();
  if (child == 0) {
    signal(SIGSEGV, SIG_DFL);
    *static_cast<volatile uint64_t*>(p) = 1;
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
  push_everything_out();
  EXPECT_TRUE(holds(p, 0, 3));
  ASSERT_TRUE(live->protect(p, PAGE, PROT_READ | PROT_WRITE).ok());
  push_everything_out();
  fill(p, 0, 4);
  EXPECT_TRUE(holds(p, 0, 4));
}

TEST_P(LiveTest, locked_pages_stay) {
  uint64_t* p = map(256 * PAGE);
  ASSERT_TRUE(live->lock(p, 256 * PAGE).ok());
  for (uint64_t page = 0; page < 256; ++page) fill(p + page * WORDS, page, 4);
  push_everything_out();
  const uint64_t before = event(VmEvent::pswpin);
  for (uint64_t page = 0; page < 256; ++page) ASSERT_TRUE(holds(p + page * WORDS, page, 4));
  EXPECT_EQ(event(VmEvent::pswpin), before);
  EXPECT_TRUE(live->unlock(p, 256 * PAGE).ok());
}

TEST_P(LiveTest, places_given_up_are_the_program_s) {
  uint64_t* p = map(64 * PAGE);
  fill(p, 0, 1);
  ASSERT_TRUE(live->give_up(p, 32 * PAGE).ok());
  ASSERT_EQ(mmap(p, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), p);
  for (uint64_t page = 0; page < 32; ++page) fill(p + page * WORDS, page, 9);
  for (int i = 0; i < 20; ++i) {
    uint64_t* q = map(64 * PAGE);
    EXPECT_TRUE(q + 64 * WORDS <= p || q >= p + 32 * WORDS) << "handed out though it was given up";
  }
  push_everything_out();
  for (uint64_t page = 0; page < 32; ++page) ASSERT_TRUE(holds(p + page * WORDS, page, 9));
}

TEST_P(LiveTest, bad_requests_are_refused) {
  EXPECT_EQ(live->map(0, PROT_READ).error(), Errno::inval);
  EXPECT_EQ(live->map(PAGE, PROT_EXEC).error(), Errno::inval);
  EXPECT_EQ(live->map(size_t{1} << 50, PROT_READ).error(), Errno::nomem);
  EXPECT_EQ(live->map(PAGE, PROT_READ, LiveMachine::Place::fixed, this).error(), Errno::inval);
  uint64_t* p = map(PAGE);
  EXPECT_EQ(live->map(PAGE, PROT_READ, LiveMachine::Place::fixed_noreplace, p).error(), Errno::exist);
  EXPECT_EQ(live->unmap(reinterpret_cast<char*>(p) + 1, PAGE).error(), Errno::inval);
  EXPECT_EQ(live->advise(p, PAGE, MADV_WIPEONFORK).error(), Errno::inval);
  EXPECT_EQ(live->populate(p + 100 * WORDS, PAGE, true).error(), Errno::fault);
}

TEST_P(LiveTest, a_pinned_page_is_left_where_the_host_writes_to_it) {
  constexpr uint64_t pinned = 64;
  uint64_t* p = map(pinned * PAGE);
  for (uint64_t page = 0; page < pinned; ++page) fill(p + page * WORDS, page, 1);
  io_uring_params params{};
  const auto ring = static_cast<int>(syscall(SYS_io_uring_setup, 4, &params));
  if (ring < 0) GTEST_SKIP() << "no io_uring here to pin pages with";
  iovec v{p, pinned * PAGE};
  ASSERT_EQ(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &v, 1), 0);
  push_everything_out();
  // The program goes on writing, and the pages are asked to leave again and again.
  for (uint64_t page = 0; page < pinned; ++page) fill(p + page * WORDS, page, 2);
  push_everything_out();
  for (uint64_t page = 0; page < pinned; ++page) ASSERT_TRUE(holds(p + page * WORDS, page, 2)) << page;
  LiveStats s;
  live->stats(s);
  EXPECT_GT(s.arch.pinned, 0u);
  // Released, they leave like others.
  ASSERT_EQ(syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, nullptr, 0), 0);
  close(ring);
  push_everything_out();
  push_everything_out();
  for (uint64_t page = 0; page < pinned; ++page) ASSERT_TRUE(holds(p + page * WORDS, page, 2)) << page;
}

TEST_P(LiveTest, a_pinned_page_that_is_given_up_reads_zero) {
  constexpr uint64_t pinned = 16;
  uint64_t* p = map(pinned * PAGE);
  for (uint64_t page = 0; page < pinned; ++page) fill(p + page * WORDS, page, 1);
  io_uring_params params{};
  const auto ring = static_cast<int>(syscall(SYS_io_uring_setup, 4, &params));
  if (ring < 0) GTEST_SKIP() << "no io_uring here to pin pages with";
  iovec v{p, pinned * PAGE};
  ASSERT_EQ(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &v, 1), 0);
  push_everything_out();
  ASSERT_TRUE(live->advise(p, pinned * PAGE, MADV_DONTNEED).ok());
  for (uint64_t page = 0; page < pinned; ++page) ASSERT_EQ(p[page * WORDS], 0u);
  close(ring);
}

TEST_P(LiveTest, the_budget_can_be_lowered_and_raised) {
  make(32_MiB);
  if (live == nullptr) return;
  constexpr uint64_t pages = (24 << 20) / PAGE;
  uint64_t* p = map(pages * PAGE);
  for (uint64_t page = 0; page < pages; ++page) fill(p + page * WORDS, page, 1);
  EXPECT_LE(live->set_ram(16_MiB), 17_MiB);
  LiveStats s;
  live->stats(s);
  EXPECT_LE(s.rss_pages, (16u << 20) / PAGE);
  for (uint64_t page = 0; page < pages; ++page) ASSERT_TRUE(holds(p + page * WORDS, page, 1)) << page;
  EXPECT_EQ(live->set_ram(32_MiB), 32_MiB);
  for (uint64_t page = 0; page < pages; ++page) ASSERT_TRUE(holds(p + page * WORDS, page, 1)) << page;
}

// ---- fork -----------------------------------------------------------------------------------------------------------

TEST_P(LiveTest, a_child_sees_memory_as_of_the_fork_and_both_go_on) {
  constexpr uint64_t pages = (24 << 20) / PAGE;
  uint64_t* p = map(pages * PAGE);
  for (uint64_t page = 0; page < pages; ++page) fill(p + page * WORDS, page, 1);
  for (int generation = 0; generation < 3; ++generation) {
    const pid_t child = LiveMachine::fork([]() -> pid_t { return static_cast<pid_t>(syscall(SYS_fork)); });
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (uint64_t page = 0; page < pages; ++page)
        if (!holds(p + page * WORDS, page, 1 + (page % 7 == 0 ? static_cast<uint64_t>(generation) : 0))) _exit(1);
      for (uint64_t page = 0; page < pages; page += 3) fill(p + page * WORDS, page, 50);
      for (uint64_t page = 0; page < pages; page += 3)
        if (!holds(p + page * WORDS, page, 50)) _exit(2);
      const pid_t grandchild = LiveMachine::fork([]() -> pid_t { return static_cast<pid_t>(syscall(SYS_fork)); });
      if (grandchild == 0) {
        for (uint64_t page = 0; page < pages; page += 3)
          if (!holds(p + page * WORDS, page, 50)) _exit(3);
        _exit(0);
      }
      int status = 0;
      waitpid(grandchild, &status, 0);
      if (status != 0) _exit(4);
      _exit(live->verify() == 0 ? 0 : 5);
    }
    for (uint64_t page = 0; page < pages; page += 7)
      fill(p + page * WORDS, page, 2 + static_cast<uint64_t>(generation));
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "generation " << generation << ", status " << status;
    for (uint64_t page = 0; page < pages; ++page)
      ASSERT_TRUE(holds(p + page * WORDS, page, page % 7 == 0 ? 2 + static_cast<uint64_t>(generation) : 1)) << page;
  }
}

TEST_P(LiveTest, forks_while_other_threads_fault) {
  constexpr uint64_t pages = (32 << 20) / PAGE;
  uint64_t* p = map(pages * PAGE);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 2; ++t)
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      std::vector<uint64_t> mine(pages, 0);
      while (!stop) {
        const uint64_t page = random() % pages;
        std::atomic_ref<uint64_t> w(p[page * WORDS + t]);
        if (w.load() != mine[page]) ++wrong;
        w.store(mine[page] = random());
      }
    });
  while (std::atomic_ref<uint64_t>(p[0]).load() == 0 || std::atomic_ref<uint64_t>(p[(pages - 1) * WORDS]).load() == 0)
    usleep(1000);
  for (int i = 0; i < 10; ++i) {
    const pid_t child = LiveMachine::fork([]() -> pid_t { return static_cast<pid_t>(syscall(SYS_fork)); });
    ASSERT_GE(child, 0);
    if (child == 0) {
      uint64_t sum = 0;
      for (uint64_t page = 0; page < pages; ++page) sum += p[page * WORDS];
      _exit(sum != 0 ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  stop = true;
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0u);
}

INSTANTIATE_TEST_SUITE_P(Deliveries, LiveTest, testing::Values(Delivery::signal, Delivery::thread),
                         test::delivery_name);

class RecordedLive : public LiveTest {
 protected:
  RecordedLive() {
    const size_t bytes = FlowRing::bytes_for(RECORD_EVENTS);
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ring = {static_cast<std::byte*>(memory), bytes};
  }
  ~RecordedLive() override { munmap(ring.data(), ring.size()); }
};

TEST_P(RecordedLive, leaves_a_recording) {
  uint64_t* p = map(48 << 20);
  for (uint64_t page = 0; page < (48u << 20) / PAGE; ++page) fill(p + page * WORDS, page, 1);
  char name[] = "/var/tmp/weir-recording-XXXXXX";
  const int fd = mkstemp(name);
  ASSERT_GE(fd, 0);
  ASSERT_TRUE(live->write_recording(fd).ok());
  EXPECT_GT(lseek(fd, 0, SEEK_END), 100000);
  close(fd);
  unlink(name);
}

INSTANTIATE_TEST_SUITE_P(Deliveries, RecordedLive, testing::Values(Delivery::signal));

/// A program whose threads swap, and end in the midst of it.
[[noreturn]] void swap_until_killed(std::span<std::byte> ring, uint64_t events) {
  constexpr uint64_t PAGES = 8192;
  const auto specs = std::get<std::vector<SwapSpec>>(parse_swap_specs(std::vector<std::string_view>{"zram"}, 16_MiB));
  LiveOptions o;
  o.ram = 16_MiB;
  o.swap = specs;
  o.delivery = Delivery::signal;
  o.quiet_boot = true;
  o.ring = ring;
  o.record_events = events;
  LiveError error;
  LiveMachine* live = LiveMachine::create(o, error);
  if (live == nullptr) _exit(1);
  Result<void*> memory = live->map(PAGES * PAGE, PROT_READ | PROT_WRITE);
  if (!memory) _exit(1);
  std::atomic<uint64_t> stores{0};
  std::vector<std::thread> threads;
  for (uint64_t seed = 1; seed <= 4; ++seed)
    threads.emplace_back([&, random = std::mt19937_64(seed)]() mutable {
      for (;;) {
        std::atomic_ref(static_cast<uint64_t*>(*memory)[random() % PAGES * WORDS]).fetch_add(1);
        if (stores.fetch_add(1) == 100'000) kill(getpid(), SIGKILL);
      }
    });
  for (std::thread& t : threads) t.join();
  _exit(1);
}

TEST(LiveRecording, of_threads_that_swap_at_once_does_not_contradict_itself) {
  constexpr uint64_t EVENTS = 1 << 18;
  const size_t bytes = FlowRing::bytes_for(EVENTS);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  const std::span ring{static_cast<std::byte*>(memory), bytes};
  const pid_t child = ::fork();
  if (child == 0) swap_until_killed(ring, EVENTS);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  std::vector<std::byte> file;
  ASSERT_TRUE(write_ring(ring, "", output_to(file)));
  munmap(memory, bytes);
  const Recording recording = parse(file);
  ASSERT_GE(recording.events.size(), EVENTS);
  const std::set<std::string_view> followed = {"pte",      "mapcount",   "page_count", "page_flags", "lru",
                                               "swap_map", "swap_cache", "nr_free",    "free_area",  "pcp_count"};
  std::map<std::pair<uint16_t, uint64_t>, uint64_t> now;
  for (const FlowEvent& event : recording.events) {
    if (!event.is_state() || !followed.contains(recording.state_name(event))) continue;
    const auto [at, first] = now.try_emplace({event.kind, event.value[0]}, event.value[1]);
    EXPECT_EQ(at->second, event.value[1]) << recording.state_name(event) << " of " << event.value[0];
    at->second = event.value[2];
  }
}

}  // namespace
