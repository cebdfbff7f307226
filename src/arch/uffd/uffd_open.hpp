// src/arch/uffd/uffd_open.hpp
//
// Descriptors of userfaultfd: opened with what the host allows, moved out of the way of the program's, registered. Raw
// calls: usable in the child of a fork.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.hpp"

namespace weir {

enum class UffdDelivery : uint8_t {
  signal,   ///< a missing page raises SIGBUS; the host's own accesses fail
  message,  ///< the thread sleeps until the descriptor's reader has served it
};

/// Why it failed, for a person; a string constant.
struct UffdOpenError {
  const char* what = "";
  const char* remedy = "";
};

/// `device`: an open /dev/userfaultfd, or -1. The descriptor is close-on-exec and non-blocking, and its number high.
/// Errors: EPERM, ENOSYS (the host has no userfaultfd, or a filter forbids it), EINVAL (the host is too old), EMFILE,
/// ENOMEM; `error` says more.
Result<int> uffd_open(UffdDelivery delivery, int device, UffdOpenError& error);
/// Faults on missing pages of [start, start + length), and on stores to write-protected ones if asked for. May be
/// called again for a part. Errors: the host's.
enum class UffdFaults : uint8_t { missing, missing_and_protected };
Result<void> uffd_register(int fd, const void* start, size_t length, UffdFaults faults = UffdFaults::missing);
void uffd_close(int fd);
/// A copy of `fd` at a high number, `fd` closed.
[[nodiscard]] int move_descriptor_up(int fd);
/// The lowest number that descriptors are put at, where the limit allows it.
inline constexpr int LOWEST_DESCRIPTOR = 900;

}  // namespace weir
