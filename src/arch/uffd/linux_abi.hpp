// src/arch/uffd/linux_abi.hpp: kernel constants and structures newer than the headers that weir is built with (Debian
// 12: 6.1).
#pragma once

#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>

#include <cstdint>

namespace weir::abi {

// linux/userfaultfd.h
inline constexpr uint64_t FEATURE_MISSING_SIGBUS = uint64_t{1} << 7;  // 4.14
inline constexpr uint64_t FEATURE_EXACT_ADDRESS = uint64_t{1} << 11;  // 5.18
inline constexpr uint64_t FEATURE_POISON = uint64_t{1} << 14;         // 6.6
inline constexpr uint64_t FEATURE_MOVE = uint64_t{1} << 16;           // 6.8

struct UffdMove {
  uint64_t dst, src, len, mode;
  int64_t move;  ///< bytes moved, or -errno
};
inline constexpr unsigned long IOC_MOVE = _IOWR(UFFDIO, 0x05, UffdMove);
inline constexpr uint64_t MOVE_DONTWAKE = 1;

struct UffdPoison {
  uint64_t start, len, mode;
  int64_t updated;
};
inline constexpr unsigned long IOC_POISON = _IOWR(UFFDIO, 0x08, UffdPoison);

/// ioctl of /dev/userfaultfd: a new userfaultfd. 6.1
inline constexpr unsigned long IOC_NEW = _IO(UFFDIO, 0x00);
/// Flag of userfaultfd(): only faults from user space. 5.11
inline constexpr int USER_MODE_ONLY = 1;

// asm-generic/mman-common.h
inline constexpr int ADVICE_DONTNEED_LOCKED = 24;                            // 5.18
inline constexpr int ADVICE_POPULATE_READ = 22, ADVICE_POPULATE_WRITE = 23;  // 5.14
inline constexpr int ADVICE_GUARD_INSTALL = 102;
inline constexpr int REMAP_DONTUNMAP = 4;  // 5.7

// linux/pidfd.h: the calling thread instead of a descriptor. 6.14
inline constexpr int PIDFD_SELF = -10000;

// linux/fs.h: PAGEMAP_SCAN, 6.7
struct PageRegion {
  uint64_t start, end, categories;
};
struct PmScanArg {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask,
      category_anyof_mask, return_mask;
};
inline constexpr unsigned long IOC_PAGEMAP_SCAN = _IOWR('f', 16, PmScanArg);
inline constexpr uint64_t PAGE_IS_PRESENT = 8, PAGE_IS_SWAPPED = 16, PAGE_IS_PFNZERO = 32;

}  // namespace weir::abi
