// src/record/output.cpp: see output.hpp
#include "record/output.hpp"

#include <cstring>

#include "base/flow.hpp"
#include "base/raw_syscall.hpp"

namespace weir {

namespace {
constexpr const char* STATE_NAMES[] = {
#define X(name) #name,
    WEIR_STATES(X)
#undef X
};
}  // namespace

void relax(unsigned& spins) {
  if (++spins % 64 == 0)
    raw_syscall(SYS_sched_yield);
  else
    __builtin_ia32_pause();
}

SideLock::SideLock(std::atomic<bool>& word) : word_(word) {
  for (unsigned spins = 0; word_.exchange(true, std::memory_order_acquire);) relax(spins);
}

FlowOutput output_to_fd(int fd) {
  return {[](void* context, const void* bytes, size_t size) {
            constexpr long EINTR_ = -4, EAGAIN_ = -11;
            const auto fd = reinterpret_cast<intptr_t>(context);
            unsigned spins = 0;
            for (const char* at = static_cast<const char*>(bytes); size > 0;) {
              const long done = raw_syscall(SYS_write, fd, at, size);
              if (done == EINTR_ || done == EAGAIN_) {
                relax(spins);
                continue;
              }
              if (done <= 0) return false;
              at += done;
              size -= static_cast<size_t>(done);
            }
            return true;
          },
          reinterpret_cast<void*>(static_cast<intptr_t>(fd))};
}

void FlowWriter::bytes(const void* from, size_t size) {
  if (size > sizeof buffer_ - used_) flush();
  if (size > sizeof buffer_) {
    if (ok_) ok_ = output_.write(output_.context, from, size);
    return;
  }
  std::memcpy(buffer_ + used_, from, size);
  used_ += size;
}

bool FlowWriter::flush() {
  if (ok_ && used_ > 0) ok_ = output_.write(output_.context, buffer_, used_);
  used_ = 0;
  return ok_;
}

void FlowWriter::header() {
  value(RecordingHeader{});
  size_t size = 0;
  for (const char* name : STATE_NAMES) size += std::strlen(name) + 1;
  block(BLOCK_STATES, size);
  for (const char* name : STATE_NAMES) bytes(name, std::strlen(name) + 1);
}

void FlowWriter::events(uint64_t first, const void* from, size_t count) {
  block(BLOCK_EVENTS, sizeof first + count * sizeof(FlowEvent));
  value(first);
  bytes(from, count * sizeof(FlowEvent));
}

void FlowWriter::done(uint64_t recorded) {
  block(BLOCK_DONE, sizeof recorded);
  value(recorded);
}

}  // namespace weir
