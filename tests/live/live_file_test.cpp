// tests/live/live_file_test.cpp: files mapped into a live machine: what is read, stored, written back, refused; on the
// host's real MMU and real files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

#include "live/host_file.hpp"
#include "live/live_machine.hpp"

namespace {

using namespace weir;
using test::byte_of;
using test::HostFile;
using Sharing = LiveMachine::Sharing;

constexpr size_t PAGE = 4096;
constexpr int READ = PROT_READ, WRITE = PROT_READ | PROT_WRITE;

thread_local sigjmp_buf refused_access;
std::atomic<int> last_signal{0};
void on_signal(int signal) {
  last_signal = signal;
  siglongjmp(refused_access, 1);
}

/// The signal that an access raises, 0 if none.
template <class Fn>
int signal_of(Fn fn) {
  struct sigaction ours {
  }, before_bus, before_segv;
  ours.sa_handler = on_signal;
  ours.sa_flags = SA_NODEFER;
  sigaction(SIGSEGV, &ours, &before_segv);
  // The machine's handler stays in front where there is one.
  struct sigaction machines;
  sigaction(SIGBUS, nullptr, &machines);
  const bool in_front = (machines.sa_flags & SA_SIGINFO) != 0;
  if (in_front)
    LiveMachine::set_next_sigbus_handler(&ours, &before_bus);
  else
    sigaction(SIGBUS, &ours, &before_bus);
  last_signal = 0;
  if (sigsetjmp(refused_access, 1) == 0) fn();
  if (in_front)
    LiveMachine::set_next_sigbus_handler(&before_bus, nullptr);
  else
    sigaction(SIGBUS, &before_bus, nullptr);
  sigaction(SIGSEGV, &before_segv, nullptr);
  return last_signal;
}

/// A machine for each test, in both deliveries where the host allows it; all is as it should be when it ends.
class LiveFile : public testing::TestWithParam<Delivery> {
 protected:
  static constexpr Bytes RAM = 16_MiB;
  void SetUp() override {
    const std::string_view swap[] = {"zram", "file:/var/tmp:64M"};
    specs_ = std::get<std::vector<SwapSpec>>(parse_swap_specs({std::begin(swap), std::end(swap)}, RAM));
    LiveOptions o;
    o.ram = RAM;
    o.swap = specs_;
    o.delivery = GetParam();
    o.quiet_boot = true;
    LiveError error;
    live = LiveMachine::create(o, error);
    if (live == nullptr && GetParam() == Delivery::thread) GTEST_SKIP() << error.text;
    ASSERT_NE(live, nullptr) << error.text;
  }
  void TearDown() override {
    if (live == nullptr) return;
    EXPECT_EQ(live->verify(), 0u);
    LiveMachine::destroy(live);
  }

  std::byte* map(const HostFile& file, uint64_t offset, size_t length, int prot = WRITE,
                 Sharing sharing = Sharing::shared) {
    Result<void*> mapped = live->map_file(file.fd(), offset, length, prot, sharing);
    EXPECT_TRUE(mapped) << errno_name(mapped.error());
    return mapped ? static_cast<std::byte*>(*mapped) : nullptr;
  }
  Errno sync(void* at, size_t length, int flags = MS_SYNC) { return live->sync_file(at, length, flags).error(); }
  Errno unmap(void* at, size_t length) { return live->unmap_file(at, length).error(); }
  LiveStats stats() {
    LiveStats s;
    live->stats(s);
    return s;
  }
  int64_t node(NodeStat which) { return stats().node[static_cast<unsigned>(which)]; }
  /// Bytes of [at, at + n) that are not those of `seed` from `pos` on.
  static uint64_t wrong(const std::byte* at, uint64_t n, uint64_t pos, uint64_t seed = 1) {
    uint64_t found = 0;
    for (uint64_t i = 0; i < n; ++i) found += at[i] != byte_of(seed, pos + i) ? 1 : 0;
    return found;
  }
  static uint64_t wrong(const HostFile& file, uint64_t pos, uint64_t n, uint64_t seed) {
    const std::vector<std::byte> now = file.bytes(pos, n);
    return wrong(now.data(), now.size(), pos, seed) + (n - now.size());
  }
  static void store(std::byte* at, uint64_t n, uint64_t pos, uint64_t seed) {
    for (uint64_t i = 0; i < n; ++i) at[i] = byte_of(seed, pos + i);
  }
  /// Anonymous memory that pushes everything else out.
  void press() {
    const size_t bytes = 2 * RAM.v;
    Result<void*> at = live->map(bytes, WRITE);
    ASSERT_TRUE(at);
    for (size_t i = 0; i < bytes; i += PAGE) static_cast<std::byte*>(*at)[i] = std::byte{1};
    ASSERT_TRUE(live->unmap(*at, bytes));
  }

  std::vector<SwapSpec> specs_;
  LiveMachine* live = nullptr;
};

INSTANTIATE_TEST_SUITE_P(, LiveFile, testing::Values(Delivery::signal, Delivery::thread),
                         [](const auto& info) { return info.param == Delivery::signal ? "signal" : "thread"; });

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

// ---- What else changes the file -------------------------------------------------------------------------------------

TEST_P(LiveFile, what_others_write_is_seen_after_an_invalidate) {
  HostFile file(16 * PAGE);
  std::byte* at = map(file, 0, 16 * PAGE);
  EXPECT_EQ(wrong(at, 16 * PAGE, 0), 0u);
  at[5] = std::byte{99};
  std::vector<std::byte> other(PAGE);
  for (uint64_t i = 0; i < PAGE; ++i) other[i] = byte_of(2, PAGE + i);
  ASSERT_EQ(pwrite(file.fd(), other.data(), PAGE, PAGE), static_cast<ssize_t>(PAGE));
  EXPECT_EQ(sync(at, 16 * PAGE, MS_INVALIDATE), Errno::ok);
  EXPECT_EQ(wrong(at + PAGE, PAGE, PAGE, 2), 0u);
  EXPECT_EQ(at[5], std::byte{99}) << "what was stored stays";
  EXPECT_EQ(sync(at, 16 * PAGE), Errno::ok);
  EXPECT_EQ(file.byte(5), std::byte{99});
}

TEST_P(LiveFile, behind_the_end_is_sigbus_and_a_file_that_grows_has_the_pages_then) {
  HostFile file(2 * PAGE + 10);
  std::byte* at = map(file, 0, 8 * PAGE);
  EXPECT_EQ(at[2 * PAGE + 10], std::byte{0});
  EXPECT_EQ(signal_of([&] { (void)*const_cast<volatile std::byte*>(at + 3 * PAGE); }), SIGBUS);
  EXPECT_EQ(signal_of([&] { at[4 * PAGE] = std::byte{1}; }), SIGBUS);
  EXPECT_EQ(signal_of([&] { at[2 * PAGE] = std::byte{1}; }), 0);
  ASSERT_EQ(ftruncate(file.fd(), 8 * PAGE), 0);
  EXPECT_EQ(signal_of([&] { at[6 * PAGE] = std::byte{1}; }), 0);
  EXPECT_EQ(sync(at, 8 * PAGE), Errno::ok);
  EXPECT_EQ(file.byte(6 * PAGE), std::byte{1});
}

TEST_P(LiveFile, a_file_that_shrinks_takes_its_pages_with_it_and_is_not_made_longer) {
  HostFile file(64 * PAGE);
  std::byte* at = map(file, 0, 64 * PAGE);
  for (uint64_t page = 0; page < 32; ++page) at[page * PAGE] = std::byte{1};
  ASSERT_EQ(ftruncate(file.fd(), 16 * PAGE + 5), 0);
  EXPECT_EQ(sync(at, 64 * PAGE, MS_SYNC | MS_INVALIDATE), Errno::ok);
  EXPECT_EQ(file.size(), 16 * PAGE + 5);
  EXPECT_EQ(file.byte(0), std::byte{1});
  EXPECT_EQ(at[16 * PAGE + 4], byte_of(1, 16 * PAGE + 4));
  EXPECT_EQ(at[16 * PAGE + 5], std::byte{0});
  EXPECT_EQ(signal_of([&] { (void)*const_cast<volatile std::byte*>(at + 17 * PAGE); }), SIGBUS);
  EXPECT_EQ(signal_of([&] { (void)*const_cast<volatile std::byte*>(at + 40 * PAGE); }), SIGBUS);
  EXPECT_EQ(unmap(at, 64 * PAGE), Errno::ok);
  EXPECT_EQ(file.size(), 16 * PAGE + 5);
}

TEST_P(LiveFile, a_file_whose_name_is_gone_and_whose_descriptor_is_closed_is_still_mapped) {
  constexpr uint64_t SIZE = 32 << 20;
  auto file = std::make_unique<HostFile>(SIZE);
  std::byte* at = map(*file, 0, SIZE);
  const int other = dup(file->fd());
  file.reset();
  for (uint64_t page = 0; page < SIZE; page += PAGE) at[page] = byte_of(4, page);
  press();
  for (uint64_t page = 0; page < SIZE; page += PAGE) {
    ASSERT_EQ(at[page], byte_of(4, page));
    ASSERT_EQ(at[page + 1], byte_of(1, page + 1));
  }
  EXPECT_EQ(unmap(at, SIZE), Errno::ok);
  std::byte now{};
  ASSERT_EQ(pread(other, &now, 1, SIZE - PAGE), 1);
  EXPECT_EQ(now, byte_of(4, SIZE - PAGE));
  close(other);
}

// ---- What is refused ------------------------------------------------------------------------------------------------

TEST_P(LiveFile, arguments_are_refused_as_by_mmap_and_msync) {
  HostFile file(4 * PAGE);
  const auto error = [&](int fd, uint64_t offset, size_t length, int prot, Sharing sharing) {
    return live->map_file(fd, offset, length, prot, sharing).error();
  };
  EXPECT_EQ(error(file.fd(), 1, PAGE, READ, Sharing::shared), Errno::inval);
  EXPECT_EQ(error(file.fd(), 0, 0, READ, Sharing::shared), Errno::inval);
  EXPECT_EQ(error(file.fd(), 0, PAGE, READ | PROT_EXEC, Sharing::shared), Errno::inval);
  EXPECT_EQ(error(-1, 0, PAGE, READ, Sharing::shared), Errno::badf);
  EXPECT_EQ(error(file.fd(), LiveMachine::MAX_FILE_BYTES, PAGE, READ, Sharing::shared), Errno::overflow);
  EXPECT_EQ(error(file.fd(), 0, ~size_t{0}, READ, Sharing::shared), Errno::nomem);
  const int folder = open("/var/tmp", O_RDONLY | O_DIRECTORY);
  EXPECT_EQ(error(folder, 0, PAGE, READ, Sharing::shared), Errno::nodev);
  close(folder);
  const int reader = open(file.name(), O_RDONLY), writer = open(file.name(), O_WRONLY);
  EXPECT_EQ(error(reader, 0, PAGE, WRITE, Sharing::shared), Errno::acces);
  EXPECT_EQ(error(writer, 0, PAGE, READ, Sharing::shared), Errno::acces);
  Result<void*> read_only = live->map_file(reader, 0, PAGE, READ, Sharing::shared);
  ASSERT_TRUE(read_only);
  EXPECT_EQ(error(file.fd(), 0, PAGE, WRITE, Sharing::shared), Errno::busy);
  ASSERT_TRUE(live->map_file(reader, 0, PAGE, WRITE, Sharing::private_));
  close(reader), close(writer);

  EXPECT_EQ(sync(*read_only, PAGE, MS_SYNC | MS_ASYNC), Errno::inval);
  EXPECT_EQ(sync(*read_only, PAGE, 64), Errno::inval);
  EXPECT_EQ(sync(static_cast<std::byte*>(*read_only) + 1, PAGE), Errno::inval);
  EXPECT_EQ(sync(live->range(), PAGE), Errno::nomem);
  auto* memory = static_cast<std::byte*>(*live->map(PAGE, WRITE));
  EXPECT_EQ(unmap(memory, PAGE), Errno::inval);
  EXPECT_EQ(unmap(static_cast<std::byte*>(*read_only) + 1, PAGE), Errno::inval);
  memory[0] = std::byte{1};
}

TEST_P(LiveFile, a_store_to_what_is_mapped_for_reading_is_sigsegv_and_changes_nothing) {
  HostFile file(4 * PAGE);
  for (const Sharing sharing : {Sharing::shared, Sharing::private_}) {
    std::byte* at = map(file, 0, 4 * PAGE, READ, sharing);
    EXPECT_EQ(at[PAGE], byte_of(1, PAGE));
    EXPECT_EQ(signal_of([&] { at[PAGE] = std::byte{1}; }), SIGSEGV);
    EXPECT_EQ(signal_of([&] { at[2 * PAGE] = std::byte{1}; }), SIGSEGV);
    EXPECT_EQ(wrong(at, 4 * PAGE, 0), 0u);
    EXPECT_EQ(unmap(at, 4 * PAGE), Errno::ok);
  }
  EXPECT_EQ(wrong(file, 0, 4 * PAGE, 1), 0u);
}

TEST_P(LiveFile, as_many_files_as_there_are_places_and_one_more_is_refused) {
  std::vector<std::unique_ptr<HostFile>> files;
  std::vector<std::byte*> at;
  for (unsigned i = 0; i < LiveMachine::MAX_FILES; ++i) {
    files.push_back(std::make_unique<HostFile>(PAGE, i));
    at.push_back(map(*files.back(), 0, PAGE));
  }
  HostFile more(PAGE, 99);
  EXPECT_EQ(live->map_file(more.fd(), 0, PAGE, READ, Sharing::shared).error(), Errno::nfile);
  for (unsigned i = 0; i < LiveMachine::MAX_FILES; ++i) EXPECT_EQ(at[i][7], byte_of(i, 7));
  EXPECT_EQ(unmap(at[3], PAGE), Errno::ok);
  std::byte* last = map(more, 0, PAGE);
  EXPECT_EQ(last[7], byte_of(99, 7));
}

// ---- Writes that fail -----------------------------------------------------------------------------------------------

/// While it lives the process's writes behind `bytes` of a file fail with EFBIG.
class SizeLimit {
 public:
  explicit SizeLimit(uint64_t bytes) {
    before_signal_ = signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit now{bytes, before_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &now), 0);
  }
  ~SizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, before_signal_);
  }
  SizeLimit(const SizeLimit&) = delete;
  SizeLimit& operator=(const SizeLimit&) = delete;

 private:
  rlimit before_{};
  void (*before_signal_)(int) = nullptr;
};

TEST_P(LiveFile, a_write_that_fails_is_told_once_to_each_mapping_and_what_was_stored_stays) {
  constexpr uint64_t SIZE = 64 * PAGE;
  HostFile file(SIZE);
  std::byte* a = map(file, 0, SIZE);
  std::byte* b = map(file, 0, SIZE);
  store(a, SIZE, 0, 8);
  {
    SizeLimit limit(32 * PAGE);
    EXPECT_EQ(sync(a, SIZE), Errno::fbig);
  }
  EXPECT_EQ(wrong(file, 0, 32 * PAGE, 8), 0u);
  EXPECT_EQ(wrong(file, 32 * PAGE, 32 * PAGE, 1), 0u);
  EXPECT_EQ(sync(a, SIZE), Errno::ok) << "told once; what had failed is written now";
  EXPECT_EQ(sync(b, SIZE), Errno::fbig) << "and to the other";
  EXPECT_EQ(sync(b, SIZE), Errno::ok);
  EXPECT_EQ(wrong(file, 0, SIZE, 8), 0u);
  EXPECT_EQ(wrong(b, SIZE, 0, 8), 0u);
}

TEST_P(LiveFile, unmapping_tells_what_could_not_be_written_and_does_not_hang) {
  constexpr uint64_t SIZE = 64 * PAGE;
  HostFile file(SIZE);
  std::byte* at = map(file, 0, SIZE);
  store(at, SIZE, 0, 8);
  SizeLimit limit(PAGE);
  EXPECT_EQ(unmap(at, SIZE), Errno::fbig);
  EXPECT_EQ(wrong(file, 0, PAGE, 8), 0u);
  EXPECT_EQ(wrong(file, PAGE, SIZE - PAGE, 1), 0u);
}

TEST_P(LiveFile, more_than_the_ram_is_stored_to_a_file_that_takes_no_writes_and_nobody_hangs) {
  constexpr uint64_t SIZE = 48 << 20;
  HostFile file(SIZE);
  std::byte* at = map(file, 0, SIZE);
  {
    SizeLimit limit(0);
    for (uint64_t page = 0; page < SIZE; page += PAGE) at[page] = byte_of(2, page);
    EXPECT_EQ(sync(at, SIZE), Errno::fbig);
  }
  // What was still in memory is written, as much as that is; the rest is as it was.
  (void)sync(at, SIZE);
  uint64_t bad = 0;
  for (uint64_t page = 0; page < SIZE; page += PAGE) {
    const std::byte now = file.byte(page);
    bad += now != byte_of(2, page) && now != byte_of(1, page);
    bad += at[page + 1] != byte_of(1, page + 1);
  }
  EXPECT_EQ(bad, 0u);
}

TEST_P(LiveFile, a_full_disk_is_enospc) {
  char folder[] = "/tmp/weir-full-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  if (mount("none", folder, "tmpfs", 0, "size=128k") != 0) {
    rmdir(folder);
    GTEST_SKIP() << "no right to mount a small file system";
  }
  {
    HostFile file(0, 1, folder);
    ASSERT_EQ(ftruncate(file.fd(), 64 * PAGE), 0);
    std::byte* at = map(file, 0, 64 * PAGE);
    for (uint64_t page = 0; page < 64; ++page) at[page * PAGE] = std::byte{5};
    EXPECT_EQ(sync(at, 64 * PAGE), Errno::nospc);
    for (uint64_t page = 0; page < 64; ++page) EXPECT_EQ(at[page * PAGE], std::byte{5}) << "what was stored stays";
    EXPECT_EQ(unmap(at, 64 * PAGE), Errno::nospc);
  }
  EXPECT_EQ(umount(folder), 0);
  rmdir(folder);
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
