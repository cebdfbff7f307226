// src/mm/page_alloc_era.hpp: what each kernel's own allocation path implements; only the files of page_alloc include it
#pragma once

#include "mm/page_alloc.hpp"

namespace weir {

struct PageAllocator::Era {
  explicit Era(PageAllocator& allocator) : self(allocator) {}
  /// What alloc_pages calls.
  virtual Page* alloc(gfp_t gfp, Order order) = 0;

  static void place(PageAllocator& self, KernelEra kernel);
  static void place_2_6_20(PageAllocator& self);
  static void place_3(PageAllocator& self);
  static void place_4_14(PageAllocator& self);

  PageAllocator& self;

 protected:
  ~Era() = default;

  // What older kernels share; nothing here is recorded.
  /// False: no zone as low as the request wants has memory, or the order is too large.
  [[nodiscard]] bool context(gfp_t gfp, Order order, AllocContext& ac) const;
  /// The tail of a per-CPU refill and of a whole block's way out.
  [[nodiscard]] Page* pcp_page(PerCpuPages& pcp, PageList& list, gfp_t gfp, bool hit) WEIR_REQUIRES(pcp.lock);
  [[nodiscard]] Page* block(Zone& zone, Page& page, Order order, unsigned found, MigrateType type)
      WEIR_REQUIRES(zone.lock);
};

/// free - 2^order + 1 against the mark, and then for each order below what is left without its blocks against half.
[[nodiscard]] bool watermark_by_orders(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                       uint32_t alloc_flags);

}  // namespace weir
