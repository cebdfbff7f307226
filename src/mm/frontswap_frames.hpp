// src/mm/frontswap_frames.hpp
//
// The plainest store for frontswap: a frame of the machine for each page, up to a limit. Pages of one repeated word
// need none.
//
//   store: one word? kept as such    limit not reached? a frame, copied    else refused: the page goes to the device
//
// An example of FrontswapOps, and what a RAM tier costs when nothing is compressed.
#pragma once

#include "mm/frontswap.hpp"
#include "mm/slab.hpp"

namespace weir {

class FrontswapFrames final : public FrontswapOps {
 public:
  /// Holds at most `limit` frames.
  FrontswapFrames(Slab& slab, FrameSource& frames, PageCount limit) : slab_(slab), frames_(frames), limit_(limit) {}
  /// Nothing is stored any more.
  ~FrontswapFrames();
  FrontswapFrames(const FrontswapFrames&) = delete;
  FrontswapFrames& operator=(const FrontswapFrames&) = delete;

  void init(unsigned type, uint64_t slots) override;
  Result<void> store(unsigned type, uint64_t offset, Content content) override;
  Result<void> load(unsigned type, uint64_t offset, Content content) override;
  void invalidate_page(unsigned type, uint64_t offset) override;
  void invalidate_area(unsigned type) override;

  [[nodiscard]] PageCount frames_held() const { return PageCount(held_.load(std::memory_order_relaxed)); }

 private:
  /// What is kept of one slot: a frame, or the word that all of the page is.
  struct Kept {
    enum class Kind : uint8_t { nothing, word, frame } kind = Kind::nothing;
    uint64_t value = 0;
  };
  static constexpr uint64_t PER_CHUNK = 256;
  struct Area {
    Kept** chunks = nullptr;  // kmalloc'ed; a chunk is made when its first slot is stored
    uint64_t nr_chunks = 0;
  };
  [[nodiscard]] Kept* find(unsigned type, uint64_t offset);
  void drop(Kept& kept);

  Slab& slab_;
  FrameSource& frames_;
  PageCount limit_;
  SpinLock lock_{LockRank::leaf};
  Area areas_[MAX_SWAPFILES];
  std::atomic<int64_t> held_{0};
};

}  // namespace weir
