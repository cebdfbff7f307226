// tests/support/frame_source.hpp
//
// Frames for a device under test, and an eye on how it treats them: a frame is given back once, only if it was got, and
// its bytes are scribbled over when it is.
#pragma once

#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "base/result.hpp"
#include "block/block.hpp"
#include "kernel/locks.hpp"

namespace weir {

class TestFrameSource final : public FrameSource {
 public:
  /// `first` is the lowest frame's number. Frames are handed out in an order that is not theirs, so that no two
  /// neighbours in a zspage are neighbours in memory.
  explicit TestFrameSource(PageCount frames, Pfn first = Pfn(7)) : first_(first), held_(static_cast<size_t>(frames.v)) {
    bytes_ = frames.v * PAGE_SIZE;
    void* place = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    WEIR_BUG_ON(place == MAP_FAILED);
    arena_ = static_cast<std::byte*>(place);
    for (uint64_t i = 0; i < held_.size(); ++i) free_.push_back(i);
    for (uint64_t i = 0; i + 1 < free_.size(); i += 2) std::swap(free_[i], free_[i + 1]);
  }
  TestFrameSource(const TestFrameSource&) = delete;
  TestFrameSource& operator=(const TestFrameSource&) = delete;
  ~TestFrameSource() { munmap(arena_, bytes_); }

  Result<Pfn> get_frame() override {
    ScopedLock guard(lock_);
    if (free_.empty() || fail_after_ == 0) return Errno::nomem;
    if (fail_after_ > 0) --fail_after_;
    const uint64_t index = free_.back();
    free_.pop_back();
    WEIR_BUG_ON(held_[index]);
    held_[index] = true;
    ++out_;
    if (out_ > max_out_) max_out_ = out_;
    return first_ + PageCount(static_cast<int64_t>(index));
  }
  void put_frame(Pfn frame) override {
    std::memset(frame_bytes(frame), 0xdb, PAGE_SIZE);
    ScopedLock guard(lock_);
    const uint64_t index = frame.v - first_.v;
    WEIR_BUG_ON(frame < first_ || index >= held_.size() || !held_[index]);
    held_[index] = false;
    --out_;
    free_.push_back(index);
  }
  std::byte* frame_bytes(Pfn frame) override { return arena_ + (frame.v - first_.v) * PAGE_SIZE; }

  /// Frames that the device has now; the most it ever had.
  [[nodiscard]] PageCount out() const { return PageCount(out_); }
  [[nodiscard]] PageCount max_out() const { return PageCount(max_out_); }
  /// So many more frames, then none; -1: as many as there are.
  void fail_after(int64_t frames) { fail_after_ = frames; }

 private:
  Pfn first_;
  std::byte* arena_ = nullptr;
  size_t bytes_ = 0;
  SpinLock lock_{LockRank::zone};
  std::vector<bool> held_;
  std::vector<uint64_t> free_;
  int64_t out_ = 0, max_out_ = 0, fail_after_ = -1;
};

}  // namespace weir
