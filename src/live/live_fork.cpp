// src/live/live_fork.cpp: fork with managed memory. See live_machine.hpp
//
//   parent                   child
//   gate for writing: no fault, no pass, no I/O under way
//   swap files are copied, as far as they are used
//   fork ------------------> descriptors that came along are closed: they act on the parent's memory
//   gate opens               userfaultfd opened anew, everything registered: missing pages fault again
//                            locks and wait queues of threads that are not here forgotten
//                            kthreads started, those of swap files on the copies
//                            gate opens
//
// zram is memory like any other: parent and child share it until one of them writes. A slot of a swap file that both
// could read would have to be copied before either writes it again, and nothing here could tell: so the child has a
// file of its own from the start.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>

#include <bit>
#include <cstring>

#include "arch/uffd/host_calls.hpp"
#include "live/live_parts.hpp"

namespace weir {

namespace {

/// Is the descriptor still the one that was opened as userfaultfd (or eventfd), or has the program put its own there?
bool is_anonymous_inode(int fd) {
  char path[40] = "/proc/self/fd/";
  size_t at = 14;
  char digits[12];
  unsigned n = 0;
  for (int v = fd; v > 0 || n == 0; v /= 10) digits[n++] = static_cast<char>('0' + v % 10);
  while (n != 0) path[at++] = digits[--n];
  path[at] = 0;
  char target[32];
  const long length = raw_syscall(SYS_readlink, path, target, sizeof target);
  return length >= 10 && std::memcmp(target, "anon_inode", 10) == 0;
}

void close_if_ours(int fd) {
  if (fd >= 0 && is_anonymous_inode(fd)) raw_syscall(SYS_close, fd);
}

constexpr uint64_t COPY_BYTES = uint64_t{1} << 20;

long transfer(long call, int fd, char* buffer, uint64_t bytes, uint64_t at) {
  uint64_t done = 0;
  while (done < bytes) {
    const long n = raw_syscall(call, fd, buffer + done, bytes - done, at + done);
    if (n == -EINTR) continue;
    if (n <= 0) return n < 0 ? n : -EIO;
    done += static_cast<uint64_t>(n);
  }
  return 0;
}

}  // namespace

/// A nameless file beside the area's with the same bytes in the slots that are in use; a descriptor, or -errno.
long LiveMachine::copy_swap_file(unsigned i) {
  Parts& p = *parts_;
  Parts::Area& area = p.areas[i];
  const SwapInfo* si = p.machine->swap_files.swap_info(area.type);
  if (si == nullptr) return -EINVAL;
  const long made = raw_syscall(SYS_openat, AT_FDCWD, area.folder, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);
  if (made < 0) return made;
  const int fd = move_descriptor_up(static_cast<int>(made));
  long result = raw_syscall(SYS_ftruncate, fd, si->max << PAGE_SHIFT);
  const long m = raw_syscall(SYS_mmap, 0L, COPY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
  if (m < 0 && m > -4096) result = m;
  if (area.file->direct()) raw_syscall(SYS_fcntl, fd, F_SETFL, O_DIRECT);
  const auto used = [&](uint64_t slot) {
    const uint8_t use = __atomic_load_n(&si->swap_map[slot], __ATOMIC_RELAXED);
    return use != 0 && use != SWAP_MAP_BAD;
  };
  for (uint64_t slot = 1; slot < si->max && result == 0;) {
    if (!used(slot)) {
      ++slot;
      continue;
    }
    uint64_t end = slot + 1;
    while (end < si->max && end - slot < COPY_BYTES >> PAGE_SHIFT && used(end)) ++end;
    auto* buffer = reinterpret_cast<char*>(m);
    result = transfer(SYS_pread64, area.file->descriptor(), buffer, (end - slot) << PAGE_SHIFT, slot << PAGE_SHIFT);
    if (result == 0) result = transfer(SYS_pwrite64, fd, buffer, (end - slot) << PAGE_SHIFT, slot << PAGE_SHIFT);
    slot = end;
  }
  if (m > 0 || m < -4095) raw_syscall(SYS_munmap, m, COPY_BYTES);
  if (result == 0) return fd;
  raw_syscall(SYS_close, fd);
  return result;
}

/// On an engine stack, the gate held for writing. False: a swap file cannot be copied.
bool LiveMachine::before_fork() {
  Parts& p = *parts_;
  for (unsigned i = 0; i < p.nr_areas; ++i) {
    p.areas[i].copy = -1;
    if (p.areas[i].file == nullptr) continue;
    const long fd = copy_swap_file(i);
    if (fd < 0) {
      LogLine() << "fork: swap file " << p.areas[i].name
                << " cannot be copied for the child: " << errno_name(static_cast<Errno>(-fd));
      return false;
    }
    p.areas[i].copy = static_cast<int>(fd);
  }
  return true;
}

void LiveMachine::parent_after_fork() {
  for (unsigned i = 0; i < parts_->nr_areas; ++i) {
    int& copy = parts_->areas[i].copy;
    if (copy >= 0) raw_syscall(SYS_close, copy);
    copy = -1;
  }
}

void LiveMachine::child_after_fork() {
  Parts& p = *parts_;
  // First of all: by these the child would change the parent's memory.
  close_if_ours(p.fds.user);
  close_if_ours(p.fds.staging);
  close_if_ours(p.fds.stop);
  p.fds = {};
  UffdOpenError why{};
  if (!open_descriptors(p.fds, range_, range_bytes_, p.staging, p.staging_bytes, why))
    bug(why.what, __FILE__, __LINE__);
  p.mmu->set_descriptors(
      {.user = p.fds.user, .staging = p.fds.staging, .must_wake = options_.delivery == Delivery::thread});
  p.mmu->forget_waiters();

  if (p.ring != nullptr) {
    p.ring->restart();
    name_recording();
  }
  if (!p.world->restart_after_fork()) bug("the child's timer thread cannot be started", __FILE__, __LINE__);
  Machine& m = *p.machine;
  m.node.kswapd = nullptr;
  m.node.kswapd_wait.forget_waiters();
  if (!m.vmscan.kswapd_run(*p.world)) bug("the child's kswapd cannot be started", __FILE__, __LINE__);
  for (unsigned i = 0; i < p.nr_areas; ++i) {
    Parts::Area& area = p.areas[i];
    if (area.file == nullptr) continue;
    const int parents = area.file->descriptor();
    if (!area.file->restart_in_child(area.copy)) bug("the child's I/O threads cannot be started", __FILE__, __LINE__);
    area.copy = -1;
    raw_syscall(SYS_close, parents);
  }

  for (Thread*& t : p.fault_threads) t = nullptr;
  if (options_.delivery == Delivery::thread) {
    for (unsigned i = 0; i < options_.fault_threads; ++i) {
      p.fault_threads[i] = kthread_run(*p.world, fault_thread, this, "weir-fault");
      if (p.fault_threads[i] == nullptr) bug("the child's fault threads cannot be started", __FILE__, __LINE__);
    }
  }
}

pid_t LiveMachine::fork_from(unsigned i, pid_t (*do_fork)()) {
  while (i < most_machines() && nth(i) == nullptr) ++i;
  if (i == most_machines()) return do_fork();
  struct Call {
    LiveMachine& live;
    unsigned next;
    pid_t (*do_fork)();
    pid_t pid = -1;
  } call{*nth(i), i + 1, do_fork};
  call.live.parts_->world->enter_exclusive(
      [](void* arg) {
        auto& c = *static_cast<Call*>(arg);
        if (!c.live.before_fork()) {
          c.live.parent_after_fork();
          errno = EAGAIN;
          return;
        }
        c.pid = fork_from(c.next, c.do_fork);
        if (c.pid == 0)
          c.live.child_after_fork();
        else
          c.live.parent_after_fork();
      },
      &call, call.live.parts_->task);
  return call.pid;
}

pid_t LiveMachine::fork(pid_t (*do_fork)()) { return fork_from(0, do_fork); }

}  // namespace weir
