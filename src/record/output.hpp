// src/record/output.hpp
//
// Bytes of a file on their way: where they go, and the writer that makes blocks of what a recorder says. No malloc, no
// throw, no errno: for use inside a managed process.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "record/event.hpp"

namespace weir {

/// Where a recording's bytes go, in order. `write` takes all of them or returns false; after a false it is not called
/// again.
struct FlowOutput {
  bool (*write)(void* context, const void* bytes, size_t size) = nullptr;
  void* context = nullptr;
};

/// An open file descriptor, by raw system calls.
[[nodiscard]] FlowOutput output_to_fd(int fd);

/// Gathers small pieces, so that a table of names is a few writes. Lies on the stack.
class FlowWriter {
 public:
  explicit FlowWriter(FlowOutput output) : output_(output), ok_(output.write != nullptr) {}

  void bytes(const void* from, size_t size);
  template <class T>
  void value(const T& x) {
    bytes(&x, sizeof x);
  }
  void block(uint32_t tag, size_t size) { value(BlockHeader{tag, static_cast<uint32_t>(size)}); }
  /// The file's header and the names of the states.
  void header();
  /// Events without a gap, the first of which has this number.
  void events(uint64_t first, const void* from, size_t count);
  void done(uint64_t recorded);
  /// False if the output failed at any time.
  bool flush();

 private:
  FlowOutput output_;
  bool ok_;
  size_t used_ = 0;
  char buffer_[8192];
};

/// How a recorder's own locks wait: not kernel/'s SpinLock, which is a place where the virtual world may switch
/// threads, and recording must not change a schedule.
class SideLock {
 public:
  explicit SideLock(std::atomic<bool>& word);
  ~SideLock() { word_.store(false, std::memory_order_release); }
  SideLock(const SideLock&) = delete;
  SideLock& operator=(const SideLock&) = delete;

 private:
  std::atomic<bool>& word_;
};

/// One turn of waiting for another thread; `spins` counts them, from 0 on.
void relax(unsigned& spins);

}  // namespace weir
