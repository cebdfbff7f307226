// tests/live/live_file_errors_test.cpp: files that others change, that vanish, that cannot be written, and disks that fail
// or do not answer: the errors that Linux gives, and nothing lost. What mappings do otherwise: live_file_test.
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <atomic>
#include <memory>
#include <thread>

#include "live/live_file.hpp"
#include "live/slow_disk.hpp"

namespace {

using namespace weir;
using namespace weir::test;
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

/// With a file on a disk that does as it is told.
class LiveSlowDisk : public LiveFile {
 protected:
  static constexpr uint64_t SIZE = 48 << 20;
  void SetUp() override {
    disk = std::make_unique<SlowDisk>(SIZE);
    if (disk->fd() < 0) GTEST_SKIP() << "no right to mount a file system of one's own";
    LiveFile::SetUp();
    if (live == nullptr) return;
    Result<void*> mapped = live->map_file(disk->fd(), 0, SIZE, WRITE, Sharing::shared);
    ASSERT_TRUE(mapped) << errno_name(mapped.error());
    slow = static_cast<std::byte*>(*mapped);
  }
  void TearDown() override {
    LiveFile::TearDown();
    disk.reset();
  }
  /// Everything that does not use the slow disk goes on: files, memory, mappings that come and go.
  void all_else_works() {
    constexpr uint64_t OTHER = 24 << 20;
    HostFile file(OTHER);
    std::byte* at = map(file, 0, OTHER);
    for (uint64_t page = 0; page < OTHER; page += PAGE) {
      ASSERT_EQ(at[page + 1], byte_of(1, page + 1));
      at[page] = byte_of(2, page);
    }
    EXPECT_EQ(sync(at, OTHER / 2), Errno::ok);
    press();
    EXPECT_EQ(unmap(at, OTHER), Errno::ok);
    uint64_t bad = 0;
    for (uint64_t page = 0; page < OTHER; page += PAGE) bad += file.byte(page) != byte_of(2, page);
    EXPECT_EQ(bad, 0u);
  }
  /// Pages of the slow disk's file whose first byte is not of `seed`, or whose second is not what it was.
  uint64_t wrong_pages(const std::byte* at, uint64_t seed) const {
    uint64_t bad = 0;
    for (uint64_t page = 0; page < SIZE; page += PAGE)
      bad += at[page] != byte_of(seed, page) || at[page + 1] != byte_of(1, page + 1);
    return bad;
  }

  std::unique_ptr<SlowDisk> disk;
  std::byte* slow = nullptr;
};

INSTANTIATE_TEST_SUITE_P(, LiveFile, testing::Values(Delivery::signal, Delivery::thread), delivery_name);
INSTANTIATE_TEST_SUITE_P(, LiveSlowDisk, testing::Values(Delivery::signal, Delivery::thread), delivery_name);

int touch(const std::byte* at) {
  return signal_of([&] { (void)*const_cast<volatile const std::byte*>(at); });
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

TEST_P(LiveFile, an_empty_file_and_what_lies_behind_the_end_are_mapped_and_are_sigbus) {
  HostFile empty(0), file(4 * PAGE);
  std::byte* at = map(empty, 0, 2 * PAGE);
  std::byte* behind = map(file, 8 * PAGE, PAGE);
  EXPECT_EQ(touch(at), SIGBUS);
  EXPECT_EQ(touch(behind), SIGBUS);
  EXPECT_EQ(live->advise(behind, PAGE, MADV_POPULATE_WRITE).error(), Errno::fault);
  EXPECT_EQ(sync(at, 2 * PAGE), Errno::ok);
  EXPECT_EQ(unmap(at, 2 * PAGE), Errno::ok);
  EXPECT_EQ(unmap(behind, PAGE), Errno::ok);
  EXPECT_EQ(empty.size(), 0u);
  EXPECT_EQ(file.size(), 4 * PAGE);
}

TEST_P(LiveFile, a_page_at_the_far_end_of_the_largest_offsets) {
  HostFile file(0);
  // What ext4 can have at most with blocks of 4 KiB.
  constexpr uint64_t FAR = (uint64_t{1} << 44) - 2 * PAGE;
  if (ftruncate(file.fd(), static_cast<off_t>(FAR + PAGE)) != 0) GTEST_SKIP() << "no file of 16 TiB here";
  std::byte* at = map(file, FAR, PAGE);
  EXPECT_EQ(at[PAGE - 1], std::byte{0});
  at[7] = std::byte{9};
  EXPECT_EQ(unmap(at, PAGE), Errno::ok);
  EXPECT_EQ(file.byte(FAR + 7), std::byte{9});
}

TEST_P(LiveFile, a_file_whose_folder_is_gone_is_still_mapped) {
  constexpr uint64_t SIZE = 24 << 20;
  char folder[] = "/var/tmp/weir-gone-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  std::byte* at = nullptr;
  int other = -1;
  {
    HostFile file(SIZE, 1, folder);
    at = map(file, 0, SIZE);
    other = dup(file.fd());
  }
  ASSERT_EQ(rmdir(folder), 0);
  for (uint64_t page = 0; page < SIZE; page += PAGE) at[page] = byte_of(4, page);
  EXPECT_EQ(sync(at, SIZE), Errno::ok);
  press();
  for (uint64_t page = 0; page < SIZE; page += PAGE) ASSERT_EQ(at[page], byte_of(4, page));
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

TEST_P(LiveFile, what_the_host_would_not_map_is_refused_with_its_errors) {
  const auto error = [&](int fd, uint64_t offset, int prot, Sharing sharing) {
    return live->map_file(fd, offset, PAGE, prot, sharing).error();
  };
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_EQ(error(ends[0], 0, READ, Sharing::shared), Errno::nodev);
  close(ends[0]), close(ends[1]);
  for (const char* name : {"/proc/self/status", "/dev/null"}) {
    const int fd = open(name, O_RDONLY);
    EXPECT_EQ(error(fd, 0, READ, Sharing::shared), Errno::nodev) << name;
    close(fd);
  }
  HostFile file(4 * PAGE);
  const int path = open(file.name(), O_PATH);
  EXPECT_EQ(error(path, 0, READ, Sharing::shared), Errno::badf);
  close(path);
  const int sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(sealed, PAGE), 0);
  ASSERT_EQ(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE), 0);
  EXPECT_EQ(error(sealed, 0, WRITE, Sharing::shared), Errno::perm);
  Result<void*> copy = live->map_file(sealed, 0, PAGE, WRITE, Sharing::private_);
  ASSERT_TRUE(copy);
  static_cast<std::byte*>(*copy)[0] = std::byte{1};
  EXPECT_EQ(unmap(*copy, PAGE), Errno::ok);
  close(sealed);
  // As mmap: the sum of offset and length is what counts.
  const uint64_t top = ~uint64_t{0} << 12;
  EXPECT_EQ(error(file.fd(), top, READ, Sharing::shared), Errno::overflow);
  EXPECT_EQ(error(file.fd(), top - PAGE, READ, Sharing::shared), Errno::overflow);
  EXPECT_EQ(error(file.fd(), uint64_t{1} << 63, READ, Sharing::shared), Errno::overflow);
  EXPECT_EQ(error(file.fd(), top + 1, READ, Sharing::shared), Errno::inval);
  EXPECT_EQ(live->map_file(file.fd(), LiveMachine::MAX_FILE_BYTES - PAGE, 2 * PAGE, READ, Sharing::shared).error(),
            Errno::overflow);
}

TEST_P(LiveFile, lengths_past_the_end_of_the_range_are_refused_and_change_nothing) {
  HostFile file(4 * PAGE);
  std::byte* at = map(file, 0, 4 * PAGE);
  at[0] = std::byte{9};
  constexpr size_t HUGE = ~size_t{0} << 12;
  EXPECT_EQ(sync(at, HUGE), Errno::nomem);
  EXPECT_EQ(sync(at, 0), Errno::ok);
  EXPECT_EQ(unmap(at, HUGE), Errno::inval);
  EXPECT_EQ(unmap(at, ~size_t{0}), Errno::inval);
  EXPECT_EQ(unmap(at, 0), Errno::inval);
  EXPECT_NE(live->advise(at, HUGE, MADV_WILLNEED).error(), Errno::ok);
  EXPECT_EQ(at[0], std::byte{9});
  EXPECT_EQ(unmap(at, 4 * PAGE), Errno::ok);
  EXPECT_EQ(file.byte(0), std::byte{9});
}

TEST_P(LiveFile, a_private_mapping_of_a_file_that_cannot_be_written_takes_stores_and_keeps_them) {
  constexpr uint64_t SIZE = 24 << 20;
  HostFile file(SIZE);
  ASSERT_EQ(fchmod(file.fd(), 0400), 0);
  const int reader = open(file.name(), O_RDONLY);
  Result<void*> mapped = live->map_file(reader, 0, SIZE, WRITE, Sharing::private_);
  close(reader);
  ASSERT_TRUE(mapped);
  auto* at = static_cast<std::byte*>(*mapped);
  for (uint64_t page = 0; page < SIZE; page += PAGE) at[page] = byte_of(5, page);
  EXPECT_EQ(sync(at, SIZE), Errno::ok);
  for (uint64_t page = 0; page < SIZE; page += PAGE) {
    ASSERT_EQ(at[page], byte_of(5, page));
    ASSERT_EQ(at[page + 1], byte_of(1, page + 1));
  }
  EXPECT_EQ(unmap(at, SIZE), Errno::ok);
  for (uint64_t page = 0; page < SIZE; page += PAGE) ASSERT_EQ(file.byte(page), byte_of(1, page));
}

/// While it lives nobody can open the file for writing.
class Immutable {
 public:
  explicit Immutable(int fd) : fd_(fd) { set(true); }
  ~Immutable() { set(false); }
  Immutable(const Immutable&) = delete;
  Immutable& operator=(const Immutable&) = delete;
  [[nodiscard]] bool done() const { return done_; }

 private:
  void set(bool on) {
    int flags = 0;
    done_ = ioctl(fd_, FS_IOC_GETFLAGS, &flags) == 0;
    flags = on ? flags | FS_IMMUTABLE_FL : flags & ~FS_IMMUTABLE_FL;
    done_ = done_ && ioctl(fd_, FS_IOC_SETFLAGS, &flags) == 0;
  }
  const int fd_;
  bool done_ = false;
};

TEST_P(LiveFile, the_programs_own_open_file_is_left_as_it_is) {
  HostFile file(4 * PAGE);
  // What cannot be opened once more is used as it is: with the program's own rights, and its flags.
  const int appends = open(file.name(), O_RDWR | O_APPEND);
  {
    const Immutable now(file.fd());
    if (!now.done()) GTEST_SKIP() << "no files here that cannot be opened again";
    std::byte* at = map(file, 0, 4 * PAGE);
    EXPECT_EQ(wrong(at, 4 * PAGE, 0), 0u);
    EXPECT_EQ(fcntl(file.fd(), F_GETFL) & O_DIRECT, 0);
    char odd[3];
    EXPECT_EQ(pread(file.fd(), odd, sizeof odd, 1), 3);
    EXPECT_EQ(unmap(at, 4 * PAGE), Errno::ok);
    EXPECT_EQ(live->map_file(appends, 0, PAGE, WRITE, Sharing::shared).error(), Errno::busy)
        << "writes through it would go to the end";
    EXPECT_TRUE(live->map_file(appends, 0, PAGE, READ, Sharing::shared));
  }
  Result<void*> mapped = live->map_file(appends, PAGE, PAGE, WRITE, Sharing::private_);
  ASSERT_TRUE(mapped);
  close(appends);
  EXPECT_EQ(file.size(), 4 * PAGE);
}

TEST_P(LiveFile, a_file_that_is_open_for_appending_is_written_in_place) {
  HostFile file(4 * PAGE);
  const int appends = open(file.name(), O_RDWR | O_APPEND);
  Result<void*> mapped = live->map_file(appends, PAGE, PAGE, WRITE, Sharing::shared);
  close(appends);
  ASSERT_TRUE(mapped);
  static_cast<std::byte*>(*mapped)[5] = std::byte{7};
  EXPECT_EQ(unmap(*mapped, PAGE), Errno::ok);
  EXPECT_EQ(file.size(), 4 * PAGE);
  EXPECT_EQ(file.byte(PAGE + 5), std::byte{7});
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
  constexpr uint64_t SIZE = 32 * PAGE;  // so little that nobody writes it unasked
  HostFile file(SIZE);
  std::byte* a = map(file, 0, SIZE);
  std::byte* b = map(file, 0, SIZE);
  store(a, SIZE, 0, 8);
  {
    SizeLimit limit(16 * PAGE);
    EXPECT_EQ(sync(a, SIZE), Errno::fbig);
  }
  EXPECT_EQ(wrong(file, 0, 16 * PAGE, 8), 0u);
  EXPECT_EQ(wrong(file, 16 * PAGE, 16 * PAGE, 1), 0u);
  EXPECT_EQ(sync(a, SIZE), Errno::ok) << "told once; what had failed is written now";
  EXPECT_EQ(sync(b, SIZE), Errno::fbig) << "and to the other";
  EXPECT_EQ(sync(b, SIZE), Errno::ok);
  EXPECT_EQ(wrong(file, 0, SIZE, 8), 0u);
  EXPECT_EQ(wrong(b, SIZE, 0, 8), 0u);
}

TEST_P(LiveFile, unmapping_tells_what_could_not_be_written_and_does_not_hang) {
  constexpr uint64_t SIZE = 32 * PAGE;  // so little that nobody writes it unasked
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

TEST_P(LiveFile, a_sparse_file_on_a_full_disk_is_enospc_and_keeps_what_was_stored) {
  char folder[] = "/var/tmp/weir-full-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string image = std::string(folder) + ".ext4";
  const std::string make = "truncate -s 16M " + image + " && mkfs.ext4 -q -O ^has_journal -m 0 " + image +
                           " && mount -o loop " + image + " " + folder + " 2>&1";
  const bool mounted = std::system(make.c_str()) == 0;
  if (mounted) {
    constexpr uint64_t SIZE = 64 * PAGE;
    {
      HostFile filler(0, 1, folder), file(0, 1, folder);
      ASSERT_EQ(ftruncate(file.fd(), SIZE), 0);
      std::byte* at = map(file, 0, SIZE);
      const std::vector<std::byte> some(PAGE);
      while (write(filler.fd(), some.data(), PAGE) > 0) {
      }
      ASSERT_EQ(errno, ENOSPC);
      for (uint64_t page = 0; page < SIZE; page += PAGE) at[page] = byte_of(5, page);
      EXPECT_EQ(sync(at, SIZE), Errno::nospc);
      ASSERT_EQ(ftruncate(filler.fd(), 0), 0);
      for (uint64_t page = 0; page < SIZE; page += PAGE) ASSERT_EQ(at[page], byte_of(5, page)) << page;
      EXPECT_EQ(sync(at, SIZE), Errno::ok) << "there is room now";
      for (uint64_t page = 0; page < SIZE; page += PAGE) ASSERT_EQ(file.byte(page), byte_of(5, page));
      while (write(filler.fd(), some.data(), PAGE) > 0) {
      }
      EXPECT_EQ(unmap(at, SIZE), Errno::ok);
    }
    EXPECT_EQ(umount(folder), 0);
  }
  unlink(image.c_str());
  rmdir(folder);
  if (!mounted) GTEST_SKIP() << "no right or no tools to mount a small file system";
}

// ---- A disk that does not answer ------------------------------------------------------------------------------------

TEST_P(LiveSlowDisk, a_read_that_is_not_answered_holds_only_who_waits_for_it) {
  EXPECT_EQ(slow[SIZE / 2], byte_of(1, SIZE / 2));
  disk->hold_reads(true);
  std::atomic<std::byte> first{}, last{};
  std::thread a([&] { first = slow[0]; });
  // Two would be all the threads that serve faults.
  const bool two = GetParam() == Delivery::signal;
  std::thread b([&] {
    if (two) last = slow[SIZE - PAGE];
  });
  disk->wait_for_held(two ? 2 : 1);
  EXPECT_EQ(slow[SIZE / 2 + 1], byte_of(1, SIZE / 2 + 1)) << "what is in memory needs no disk";
  all_else_works();
  EXPECT_GE(disk->held(), 1);
  disk->hold_reads(false);
  a.join();
  b.join();
  EXPECT_EQ(first.load(), byte_of(1, 0));
  if (two) {
    EXPECT_EQ(last.load(), byte_of(1, SIZE - PAGE));
  }
}

TEST_P(LiveSlowDisk, a_write_that_is_not_answered_holds_only_who_waits_for_it) {
  EXPECT_EQ(slow[SIZE / 2], byte_of(1, SIZE / 2));
  store(slow, 64 * PAGE, 0, 3);
  disk->hold_writes(true);
  Errno done = Errno::inval;
  std::thread syncer([&] { done = sync(slow, SIZE); });
  disk->wait_for_held(1);
  EXPECT_EQ(slow[SIZE / 2 + 1], byte_of(1, SIZE / 2 + 1)) << "what is in memory needs no disk";
  all_else_works();
  EXPECT_GE(disk->held(), 1);
  disk->hold_writes(false);
  syncer.join();
  EXPECT_EQ(done, Errno::ok);
  EXPECT_EQ(wrong(disk->bytes(), 64 * PAGE, 0, 3), 0u);
  EXPECT_EQ(unmap(slow, SIZE), Errno::ok);
}

TEST_P(LiveSlowDisk, who_stores_more_than_the_ram_to_a_disk_that_takes_nothing_waits_alone) {
  disk->hold_writes(true);
  std::thread writer([&] {
    for (uint64_t page = 0; page < SIZE; page += PAGE) slow[page] = byte_of(4, page);
  });
  disk->wait_for_held(1);
  all_else_works();
  disk->hold_writes(false);
  writer.join();
  EXPECT_EQ(unmap(slow, SIZE), Errno::ok);
  EXPECT_EQ(wrong_pages(disk->bytes(), 4), 0u);
}

// ---- A disk that fails ----------------------------------------------------------------------------------------------

TEST_P(LiveSlowDisk, a_read_that_fails_is_sigbus_for_its_page_alone_and_efault_for_populate) {
  disk->fail_reads(EIO);
  EXPECT_EQ(touch(slow), SIGBUS);
  EXPECT_EQ(live->advise(slow + 64 * PAGE, PAGE, MADV_POPULATE_READ).error(), Errno::fault);
  EXPECT_EQ(live->advise(slow + 64 * PAGE, PAGE, MADV_WILLNEED).error(), Errno::ok) << "a hint";
  all_else_works();
  disk->fail_reads(0);
  EXPECT_EQ(slow[64 * PAGE], byte_of(1, 64 * PAGE));
  EXPECT_EQ(unmap(slow, PAGE), Errno::ok);
  EXPECT_EQ(wrong(slow + PAGE, SIZE - PAGE, PAGE), 0u);
}

TEST_P(LiveSlowDisk, writes_that_fail_are_told_by_msync_and_close_and_nothing_hangs) {
  for (const int error : {EIO, ENOSPC}) {
    disk->fail_writes(error);
    for (uint64_t page = 0; page < 256; ++page) slow[page * PAGE] = std::byte{5};
    EXPECT_EQ(sync(slow, SIZE), static_cast<Errno>(error));
    for (uint64_t page = 0; page < 256; ++page) ASSERT_EQ(slow[page * PAGE], std::byte{5}) << "what was stored stays";
    disk->fail_writes(0);
    EXPECT_EQ(sync(slow, SIZE), Errno::ok);
    for (uint64_t page = 0; page < 256; ++page) ASSERT_EQ(disk->bytes()[page * PAGE], std::byte{5});
  }
  disk->fail_writes(EIO);
  for (uint64_t page = 0; page < SIZE; page += PAGE) slow[page] = byte_of(6, page);
  all_else_works();
  EXPECT_EQ(unmap(slow, SIZE), Errno::io);
}

TEST_P(LiveSlowDisk, a_disk_that_is_torn_out_is_an_error_everywhere_and_a_hang_nowhere) {
  store(slow, 64 * PAGE, 0, 3);
  EXPECT_EQ(slow[SIZE / 2], byte_of(1, SIZE / 2));
  disk->hold_reads(true);
  std::thread waits(
      [&] { EXPECT_EQ(live->advise(slow + 1000 * PAGE, PAGE, MADV_POPULATE_READ).error(), Errno::fault); });
  disk->wait_for_held(1);
  disk->tear_out();
  waits.join();
  EXPECT_EQ(slow[SIZE / 2 + 1], byte_of(1, SIZE / 2 + 1));
  EXPECT_EQ(wrong(slow, 64 * PAGE, 0, 3), 0u) << "what is in memory stays";
  EXPECT_EQ(touch(slow + 2000 * PAGE), SIGBUS);
  EXPECT_EQ(sync(slow, SIZE), static_cast<Errno>(ENOTCONN));
  all_else_works();
  EXPECT_EQ(unmap(slow, SIZE), static_cast<Errno>(ENOTCONN));
}

TEST_P(LiveSlowDisk, a_machine_that_ends_does_not_wait_for_a_disk_that_has_failed) {
  disk->hold_writes(true);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (uint64_t page = 0; !stop; page = (page + PAGE) % SIZE)
      (void)live->advise(slow + page, PAGE, MADV_POPULATE_WRITE);
  });
  disk->wait_for_held(1);
  disk->tear_out();
  all_else_works();
  stop = true;
  writer.join();
}

}  // namespace
