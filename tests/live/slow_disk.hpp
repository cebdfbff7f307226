// tests/live/slow_disk.hpp: a file on a disk that does as it is told: answers, holds what it is asked, or refuses it.
// A file system of the host's (FUSE) with one file, served by a process of its own; so what waits for it waits inside
// a system call, as for any disk.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "live/host_file.hpp"

namespace weir::test {

/// To be made before any machine: its process has none of the machine's threads and descriptors.
class SlowDisk {
 public:
  /// Its file has `size` bytes, byte_of(1, position).
  explicit SlowDisk(uint64_t size) : size_(size) {
    void* memory = mmap(nullptr, sizeof(Shared) + size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    shared_ = ::new (memory) Shared;
    for (uint64_t at = 0; at < size; ++at) data()[at] = byte_of(1, at);
    EXPECT_NE(mkdtemp(folder_), nullptr);
    int ready[2];
    EXPECT_EQ(pipe(orders_), 0);
    EXPECT_EQ(pipe(ready), 0);
    const pid_t parent = getpid();
    server_ = fork();
    if (server_ == 0) {
      // A test that dies takes the disk with it: who waits for it is let go.
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(0);
      serve(ready[1]);
    }
    close(orders_[0]);
    close(ready[1]);
    if (char mounted = 0; read(ready[0], &mounted, 1) == 1) {
      fd_ = open((std::string(folder_) + "/file").c_str(), O_RDWR);
      // The open file keeps it; a test that dies leaves nothing mounted.
      EXPECT_EQ(umount2(folder_, MNT_DETACH), 0);
    }
    close(ready[0]);
    rmdir(folder_);
  }
  ~SlowDisk() {
    kill(server_, SIGKILL);
    waitpid(server_, nullptr, 0);
    if (fd_ >= 0) close(fd_);
    close(orders_[1]);
    munmap(shared_, sizeof(Shared) + size_);
  }
  SlowDisk(const SlowDisk&) = delete;
  SlowDisk& operator=(const SlowDisk&) = delete;

  /// The file; -1 without the right to mount.
  [[nodiscard]] int fd() const { return fd_; }
  /// What is on the disk.
  [[nodiscard]] const std::byte* bytes() const { return const_cast<SlowDisk*>(this)->data(); }

  void hold_reads(bool yes) { order(shared_->hold_reads, yes ? 1 : 0); }
  void hold_writes(bool yes) { order(shared_->hold_writes, yes ? 1 : 0); }
  /// 0: they succeed again.
  void fail_reads(int error) { order(shared_->read_error, error); }
  void fail_writes(int error) { order(shared_->write_error, error); }
  /// Waits until so many requests are held.
  void wait_for_held(int n) const {
    while (shared_->held.load() < n) sched_yield();
  }
  [[nodiscard]] int held() const { return shared_->held.load(); }
  /// The disk is torn out: every request from now on fails, those that it held too.
  void tear_out() {
    kill(server_, SIGKILL);
    waitpid(server_, nullptr, 0);
  }

 private:
  struct Shared {
    std::atomic<int> hold_reads{0}, hold_writes{0}, read_error{0}, write_error{0};
    std::atomic<int> held{0};
  };
  static constexpr uint64_t FILE_NODE = 2;
  static constexpr uint64_t FOR_EVER = 1 << 20;  // seconds
  static constexpr unsigned MAX_WRITE = 128 << 10, MAX_HELD = 64;
  static constexpr unsigned BUFFER = MAX_WRITE + 4096;

  std::byte* data() { return reinterpret_cast<std::byte*>(shared_ + 1); }
  void order(std::atomic<int>& what, int value) {
    what = value;
    EXPECT_EQ(write(orders_[1], "o", 1), 1);
  }

  // ---- In the server's process --------------------------------------------------------------------------------------

  [[noreturn]] void serve(int ready) {
    close(orders_[1]);
    fuse_ = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    char options[80];
    std::snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fuse_);
    if (fuse_ < 0 || mount("weir-test", folder_, "fuse", 0, options) != 0) _exit(1);
    if (write(ready, "m", 1) != 1) _exit(1);
    close(ready);
    for (;;) {
      pollfd events[] = {{fuse_, POLLIN, 0}, {orders_[0], POLLIN, 0}};
      if (poll(events, 2, -1) < 0) _exit(1);
      if (events[1].revents != 0) {
        char orders[16];
        if (read(orders_[0], orders, sizeof orders) <= 0) _exit(0);
        const unsigned waiting = nr_held_;
        nr_held_ = 0;
        for (unsigned i = 0; i < waiting; ++i) take(held_[i]);
        shared_->held = static_cast<int>(nr_held_);
      }
      if (events[0].revents != 0) {
        char* request = static_cast<char*>(std::malloc(BUFFER));
        const ssize_t n = read(fuse_, request, BUFFER);
        if (n < 0 && errno == ENODEV) _exit(0);  // unmounted
        if (n >= static_cast<ssize_t>(sizeof(fuse_in_header)))
          take(request);
        else
          std::free(request);
      }
    }
  }

  static const fuse_in_header& header(const char* request) { return *reinterpret_cast<const fuse_in_header*>(request); }
  template <class T>
  static const T& body(const char* request) {
    return *reinterpret_cast<const T*>(request + sizeof(fuse_in_header));
  }

  /// Answers it, or keeps it for later.
  void take(char* request) {
    const uint32_t what = header(request).opcode;
    const bool reads = what == FUSE_READ, writes = what == FUSE_WRITE || what == FUSE_FSYNC;
    if ((reads && shared_->hold_reads != 0) || (writes && shared_->hold_writes != 0)) {
      if (nr_held_ == MAX_HELD) _exit(2);
      held_[nr_held_++] = request;
      shared_->held = static_cast<int>(nr_held_);
      return;
    }
    if (reads && shared_->read_error != 0)
      answer(request, -shared_->read_error);
    else if (writes && shared_->write_error != 0)
      answer(request, -shared_->write_error);
    else
      act(request);
    std::free(request);
  }

  void answer(const char* request, int error, const void* with = nullptr, size_t n = 0) {
    fuse_out_header out{};
    out.len = static_cast<uint32_t>(sizeof out + n);
    out.error = error;
    out.unique = header(request).unique;
    iovec parts[] = {{&out, sizeof out}, {const_cast<void*>(with), n}};
    (void)!writev(fuse_, parts, n != 0 ? 2 : 1);  // ENOENT: it was interrupted
  }

  [[nodiscard]] fuse_attr attributes(uint64_t node) const {
    fuse_attr a{};
    a.ino = node;
    a.mode = node == FILE_NODE ? S_IFREG | 0600 : S_IFDIR | 0700;
    a.nlink = 1;
    a.size = node == FILE_NODE ? size_ : 0;
    a.blksize = 4096;
    return a;
  }

  void act(const char* request) {
    const fuse_in_header& in = header(request);
    switch (in.opcode) {
      case FUSE_INIT: {
        fuse_init_out out{};
        out.major = FUSE_KERNEL_VERSION;
        out.minor = FUSE_KERNEL_MINOR_VERSION;
        out.max_readahead = MAX_WRITE;
        out.flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES;
        out.max_background = MAX_HELD;
        out.congestion_threshold = MAX_HELD;
        out.max_write = MAX_WRITE;
        out.max_pages = MAX_WRITE / 4096;
        return answer(request, 0, &out, sizeof out);
      }
      case FUSE_LOOKUP: {
        if (std::strcmp(request + sizeof in, "file") != 0) return answer(request, -ENOENT);
        fuse_entry_out out{};
        out.nodeid = FILE_NODE;
        out.entry_valid = out.attr_valid = FOR_EVER;
        out.attr = attributes(FILE_NODE);
        return answer(request, 0, &out, sizeof out);
      }
      case FUSE_GETATTR: {
        fuse_attr_out out{};
        out.attr_valid = FOR_EVER;
        out.attr = attributes(in.nodeid);
        return answer(request, 0, &out, sizeof out);
      }
      case FUSE_OPEN: {
        const fuse_open_out out{};
        return answer(request, 0, &out, sizeof out);
      }
      case FUSE_READ: {
        const auto& what = body<fuse_read_in>(request);
        if (what.offset >= size_) return answer(request, 0);
        return answer(request, 0, data() + what.offset, std::min<uint64_t>(what.size, size_ - what.offset));
      }
      case FUSE_WRITE: {
        const auto& what = body<fuse_write_in>(request);
        if (what.offset >= size_) return answer(request, -EFBIG);
        fuse_write_out out{};
        out.size = static_cast<uint32_t>(std::min<uint64_t>(what.size, size_ - what.offset));
        std::memcpy(data() + what.offset, request + sizeof in + sizeof what, out.size);
        return answer(request, 0, &out, sizeof out);
      }
      case FUSE_FSYNC:
      case FUSE_FLUSH:
      case FUSE_RELEASE: return answer(request, 0);
      case FUSE_FORGET:
      case FUSE_BATCH_FORGET:
      case FUSE_INTERRUPT: return;
      default: return answer(request, -ENOSYS);
    }
  }

  const uint64_t size_;
  Shared* shared_ = nullptr;
  char folder_[32] = "/tmp/weir-disk-XXXXXX";
  int orders_[2] = {-1, -1};
  pid_t server_ = -1;
  int fd_ = -1;
  // the server's
  int fuse_ = -1;
  char* held_[MAX_HELD] = {};
  unsigned nr_held_ = 0;
};

}  // namespace weir::test
