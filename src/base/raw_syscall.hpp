// src/base/raw_syscall.hpp
//
// System calls without the C library: its wrappers write errno, which lies behind a thread pointer that an I/O kthread
// may not have, and a managed process interposes some of their names. The result is the kernel's: negative = -errno.
#pragma once

#include <sys/syscall.h>

#include <cstdint>

namespace weir {

template <class T>
[[nodiscard]] inline long raw_argument(T value) {
  if constexpr (requires { static_cast<long>(value); }) {
    return static_cast<long>(value);
  } else {
    return static_cast<long>(reinterpret_cast<uintptr_t>(value));
  }
}

template <class... Args>
inline long raw_syscall(long number, Args... args) {
  static_assert(sizeof...(Args) <= 6);
  const long v[7] = {raw_argument(args)...};
  long result = number;
  register long a4 asm("r10") = v[3];
  register long a5 asm("r8") = v[4];
  register long a6 asm("r9") = v[5];
  asm volatile("syscall"
               : "+a"(result)
               : "D"(v[0]), "S"(v[1]), "d"(v[2]), "r"(a4), "r"(a5), "r"(a6)
               : "rcx", "r11", "memory");
  return result;
}

}  // namespace weir
