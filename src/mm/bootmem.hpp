// src/mm/bootmem.hpp
//
// Start-up: from a memory map with holes to a page allocator. One bit a page (1 = reserved); everything is reserved
// first, usable ranges are freed, what the machine itself needs (the bitmap, mem_map, tables) is reserved again.
//
// Linux: mm/bootmem.c (to 3.x).
#pragma once

#include "mm/types.hpp"

namespace weir {

/// Where zones begin and which ranges are memory. At most 8 ranges, ascending, not overlapping, none empty.
struct ZoneLayout {
  struct Range {
    Pfn start{};
    PageCount pages{};
  };
  Range ranges[8];
  unsigned nr_ranges = 0;
  /// First frame of ZONE_NORMAL; frames below are DMA32. x86-64: 4 GiB. A multiple of the largest block (4 MiB).
  Pfn dma32_end{uint64_t{1} << 20};
  [[nodiscard]] PageCount end() const {
    return nr_ranges == 0 ? PageCount(0) : (ranges[nr_ranges - 1].start + ranges[nr_ranges - 1].pages) - Pfn(0);
  }
};

class Bootmem {
 public:
  /// Places the bitmap, then mem_map, in the first range that holds them. Fills `mem`. `arena` is reserved memory of
  /// layout.end() pages that reads zero and is not populated. Errors: ENOMEM when the ranges cannot hold them, EINVAL
  /// for a layout that is not as said.
  static Result<void> init(Bootmem& boot, MemMap& mem, std::byte* arena, const ZoneLayout& layout);

  /// First fit from `goal`, aligned (power of two), below `limit` (0: anywhere); small requests share the last page.
  /// Zeroed. Errors: ENOMEM. A bug after free_all_bootmem.
  Result<std::byte*> alloc_bootmem(Bytes size, Bytes align, Pfn goal = Pfn(0), Pfn limit = Pfn(0));
  void reserve(Pfn start, PageCount pages);
  void free(Pfn start, PageCount pages);
  [[nodiscard]] bool reserved(Pfn pfn) const;
  [[nodiscard]] PageCount reserved_pages() const;
  /// Every run of reserved frames, holes included, that will still be reserved after free_all_bootmem.
  void for_each_reserved_run(void (*fn)(void* arg, Pfn start, PageCount pages), void* arg) const;

  /// Hands every free page, in largest blocks, and then the bitmap's own pages, to `give`. Afterwards allocation is
  /// refused.
  PageCount free_all_bootmem(void (*give)(void* arg, Pfn start, Order order), void* arg);

 private:
  void mark(Pfn start, PageCount pages, bool reserved);
  /// First frame at or after `bit` that is (or is not) reserved; the number of frames if there is none.
  [[nodiscard]] uint64_t next(uint64_t bit, bool reserved) const;
  PageCount give_free_runs(void (*give)(void* arg, Pfn start, Order order), void* arg) const;
  static PageCount give_run(Pfn start, Pfn stop, void (*give)(void* arg, Pfn start, Order order), void* arg);

  MemMap* mem_ = nullptr;
  uint8_t* bitmap_ = nullptr;
  Pfn bitmap_start_{};
  PageCount bitmap_pages_{};
  uint64_t last_offset_ = 0;  ///< first unused byte of last_pfn_; 0: nothing is left there
  Pfn last_pfn_{};            ///< last page of the request served last
  Pfn touched_end_{};         ///< frames from here on were never given to anybody
  bool over_ = false;
};

}  // namespace weir
