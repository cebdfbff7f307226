// src/arch/uffd/host_calls.hpp: the host's calls on memory, raw: no errno, no lock, no cancellation. Results: 0 or
// more, or -errno.
#pragma once

#include <errno.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

#include "arch/uffd/linux_abi.hpp"
#include "base/raw_syscall.hpp"

namespace weir::host {

inline long madvise(const void* address, size_t length, int advice) {
  return raw_syscall(SYS_madvise, address, length, advice);
}
inline long mincore(const void* address, size_t length, unsigned char* present) {
  return raw_syscall(SYS_mincore, address, length, present);
}
inline long ioctl(int fd, unsigned long request, void* argument) {
  return raw_syscall(SYS_ioctl, fd, request, argument);
}

}  // namespace weir::host
