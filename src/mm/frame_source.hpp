// src/mm/frame_source.hpp
//
// Frames for devices that keep their bytes in the machine's own memory (zram's pool): the page allocator behind block's
// interface.
//
//   get_frame --> alloc_page(__GFP_POOL): down to min/2 and no further, not even inside reclaim; never sleeps
//
// What it may not have is what reclaim needs to finish writing a page that the pool refused.
#pragma once

#include "block/block.hpp"
#include "mm/page_alloc.hpp"

namespace weir {

class PoolFrames final : public FrameSource {
 public:
  explicit PoolFrames(PageAllocator& pages) : pages_(pages) {}
  Result<Pfn> get_frame() override;
  void put_frame(Pfn frame) override;
  [[nodiscard]] std::byte* frame_bytes(Pfn frame) override { return pages_.mem().address(frame); }

 private:
  PageAllocator& pages_;
};

}  // namespace weir
