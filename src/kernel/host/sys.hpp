// src/kernel/host/sys.hpp
//
// System calls without libc: no errno (it lives in TLS), no cancellation, no lock. Results as the kernel gives them:
// -errno on failure.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

#include <atomic>
#include <cstdint>

#include "base/units.hpp"

namespace weir::sys {

inline long call(long nr, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
  long result;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

template <class T>
long arg(T* p) {
  return static_cast<long>(reinterpret_cast<intptr_t>(p));
}

/// Sleeps while `word` is `expected`, until woken or (if given) CLOCK_MONOTONIC reaches `until`. May return early.
inline long futex_wait(std::atomic<uint32_t>& word, uint32_t expected, const Nanos* until = nullptr) {
  timespec ts{};
  if (until != nullptr) {
    ts.tv_sec = static_cast<time_t>(until->v / 1000000000);
    ts.tv_nsec = static_cast<long>(until->v % 1000000000);
  }
  return call(SYS_futex, arg(&word), FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, static_cast<long>(expected),
              until != nullptr ? arg(&ts) : 0, 0, static_cast<long>(FUTEX_BITSET_MATCH_ANY));
}

inline void futex_wake(std::atomic<uint32_t>& word, int count) {
  call(SYS_futex, arg(&word), FUTEX_WAKE | FUTEX_PRIVATE_FLAG, count);
}

/// A whole signal mask, as the kernel has it. All ones: everything that can be blocked.
using SignalMask = uint64_t;
inline constexpr SignalMask ALL_SIGNALS = ~SignalMask{0};

/// Sets the thread's mask and returns the one before.
inline SignalMask set_signal_mask(SignalMask mask) {
  SignalMask before = 0;
  call(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, arg(&mask), arg(&before), sizeof mask);
  return before;
}

inline int32_t gettid() { return static_cast<int32_t>(call(SYS_gettid)); }

}  // namespace weir::sys
