// src/live/preload/fork.cpp: fork, with the child managed before it touches anything.
//
// A child inherits its parent's pages but not the userfaultfd registration: whatever is swapped out would read as
// zeros. libc's fork touches malloc'ed memory in the child (the locks of open FILEs) before any handler of
// pthread_atfork runs, so its place is taken by one that does the same in an order that works:
//
//   prepare handlers, last first -> lists of FILEs locked -> LiveMachine::fork(_Fork): the child is registered and runs
//   child:  locks of FILEs are made new -> a slot of its own, the helper thread -> child handlers, first first
//   parent: unlock -> parent handlers
//
// What libc's fork does beyond that and this one cannot: stacks of the parent's other threads are not used again in the
// child, and a child of a thread that forks while another is inside dlopen cannot dlopen. Raw clone() or
// syscall(SYS_fork) without CLONE_VM stay outside: their child is not managed.
#include <dlfcn.h>
#include <fcntl.h>
#include <pty.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#include <utmp.h>

#include "live/preload/preload.hpp"

extern "C" {
// libc's, exported but in no header.
void _IO_list_lock();
void _IO_list_unlock();
void _IO_list_resetlock();
void* _IO_iter_begin();
void* _IO_iter_end();
void* _IO_iter_next(void* at);
FILE* _IO_iter_file(void* at);
}

namespace weir::live::preload {

namespace {

struct Handler {
  void (*prepare)();
  void (*parent)();
  void (*child)();
  void* dso;
  bool used;
};

// In order of registration; one that went leaves a gap. Mapped as it grows: a library may not be able to allocate here.
constexpr unsigned MAX_HANDLERS = 4096;
Handler handlers[MAX_HANDLERS];
std::atomic<unsigned> nr_handlers{0};
std::atomic<uint32_t> handlers_lock{0};

void lock(std::atomic<uint32_t>& l) {
  while (l.exchange(1, std::memory_order_acquire) != 0) sys::call(SYS_sched_yield);
}
void unlock(std::atomic<uint32_t>& l) { l.store(0, std::memory_order_release); }

template <class Fn>
Fn next_symbol(const char* name) {
  return reinterpret_cast<Fn>(dlsym(RTLD_NEXT, name));
}

/// The lock in a FILE as glibc has it since 2.2.
struct FileLock {
  int lock, count;
  void* owner;
};

pid_t libc_Fork() {
  static const auto real = next_symbol<pid_t (*)()>("_Fork");
  const pid_t pid = real();
  if (pid == 0) take_ring_in_child(budget_child());
  return pid;
}

/// Forks the machine; the child has a slot and its helper thread when this returns.
pid_t fork_managed() {
  publish(Counters::now);
  lock_memory();
  if (!budget_fork()) {
    unlock_memory();
    say("too many processes at a time: a run holds at most 256");
    errno = EAGAIN;
    return -1;
  }
  const pid_t pid = LiveMachine::fork(libc_Fork);
  const int e = errno;
  if (pid != 0) budget_fork_done(pid);
  unlock_memory();
  if (pid == 0) {
    budget_forked();
    start_helper();
  }
  errno = e;
  return pid;
}

pid_t do_fork() {
  const unsigned n = nr_handlers.load(std::memory_order_acquire);
  for (unsigned i = n; i-- > 0;)
    if (handlers[i].used && handlers[i].prepare != nullptr) handlers[i].prepare();
  _IO_list_lock();
  const pid_t pid = fork_managed();
  const int e = errno;
  if (pid == 0) {
    for (void* at = _IO_iter_begin(); at != _IO_iter_end(); at = _IO_iter_next(at)) {
      FILE* file = _IO_iter_file(at);
      if (file->_lock != nullptr) *reinterpret_cast<FileLock*>(file->_lock) = {};
    }
    _IO_list_resetlock();
  } else {
    _IO_list_unlock();
  }
  for (unsigned i = 0; i < n; ++i) {
    if (!handlers[i].used) continue;
    if (auto* fn = pid == 0 ? handlers[i].child : handlers[i].parent) fn();
  }
  errno = e;
  return pid;
}

}  // namespace

}  // namespace weir::live::preload

using namespace weir::live::preload;

WEIR_EXPORT int __register_atfork(void (*prepare)(), void (*parent)(), void (*child)(), void* dso) noexcept {
  if (run == nullptr) {
    static const auto real = next_symbol<int (*)(void (*)(), void (*)(), void (*)(), void*)>("__register_atfork");
    return real(prepare, parent, child, dso);
  }
  lock(handlers_lock);
  const unsigned n = nr_handlers.load(std::memory_order_relaxed);
  int result = ENOMEM;
  if (n < MAX_HANDLERS) {
    handlers[n] = {prepare, parent, child, dso, true};
    nr_handlers.store(n + 1, std::memory_order_release);
    result = 0;
  }
  unlock(handlers_lock);
  return result;
}

WEIR_EXPORT void __cxa_finalize(void* dso) noexcept {
  // A library that is unloaded calls this with its own handle; its handlers must not be called any more.
  static const auto real = next_symbol<void (*)(void*)>("__cxa_finalize");
  if (dso != nullptr) {
    lock(handlers_lock);
    unsigned n = nr_handlers.load(std::memory_order_relaxed);
    for (unsigned i = 0; i < n; ++i)
      if (handlers[i].dso == dso) handlers[i].used = false;
    while (n != 0 && !handlers[n - 1].used) --n;
    nr_handlers.store(n, std::memory_order_release);
    unlock(handlers_lock);
  }
  if (real != nullptr) real(dso);
}

WEIR_EXPORT pid_t fork() noexcept {
  if (machine == nullptr) {
    static const auto real = next_symbol<pid_t (*)()>("fork");
    return real();
  }
  return do_fork();
}

WEIR_EXPORT pid_t _Fork() noexcept { return machine == nullptr ? libc_Fork() : fork_managed(); }

// libc's daemon() and forkpty() call its own fork, which nothing can be put before.
WEIR_EXPORT int daemon(int keep_folder, int keep_files) noexcept {
  switch (fork()) {
    case -1: return -1;
    case 0: break;
    default: _exit(0);
  }
  if (setsid() == -1) return -1;
  if (keep_folder == 0) (void)!chdir("/");
  if (keep_files == 0) {
    const int null = open("/dev/null", O_RDWR);
    if (null < 0) return -1;
    for (int fd = 0; fd <= 2; ++fd) (void)dup2(null, fd);
    if (null > 2) close(null);
  }
  return 0;
}

WEIR_EXPORT int forkpty(int* master, char* name, const struct termios* settings, const struct winsize* size) noexcept {
  int m = -1, s = -1;
  if (openpty(&m, &s, name, settings, size) != 0) return -1;
  const pid_t pid = fork();
  if (pid < 0) {
    close(m);
    close(s);
    return -1;
  }
  if (pid == 0) {
    close(m);
    if (login_tty(s) != 0) _exit(1);
    return 0;
  }
  *master = m;
  close(s);
  return pid;
}
