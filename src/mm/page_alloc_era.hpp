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
};

/// What 2.6.20 and 3.x share.
struct PageAllocator::OldEra : Era {
  using Era::Era;

 protected:
  ~OldEra() = default;

  // ---- where they differ
  [[nodiscard]] virtual bool watermark_ok(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                          uint32_t alloc_flags) const = 0;
  /// Where a page is taken from: the CPU's lists, and of them one that has pages, if any has.
  [[nodiscard]] virtual PerCpuPages& pcp_of(Zone& zone, gfp_t gfp) const = 0;
  [[nodiscard]] virtual PageList& list_of(PerCpuPages& pcp, MigrateType type) const WEIR_REQUIRES(pcp.lock) = 0;
  virtual Page* take_block(Zone& zone, Order order, MigrateType type) WEIR_REQUIRES(zone.lock) = 0;

  // ---- recorded
  Page* get_page_from_freelist(gfp_t gfp, Order order, uint32_t alloc_flags, const AllocContext& ac);
  Page* buffered_rmqueue(Zone& zone, Order order, gfp_t gfp, MigrateType type);
  int32_t rmqueue_bulk(Zone& zone, Order order, int32_t count, PageList& list, MigrateType type);

  // ---- not recorded
  /// False: no zone as low as the request wants has memory, or the order is too large.
  [[nodiscard]] bool context(gfp_t gfp, Order order, AllocContext& ac) const;
  void wake_kswapds(Order order, const AllocContext& ac);
  /// Direct reclaim, with the right to the reserves.
  PageCount reclaim(gfp_t gfp, Order order);
};

/// free - 2^order + 1 against the mark, and then for each order below what is left without its blocks against half.
[[nodiscard]] bool watermark_by_orders(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                       uint32_t alloc_flags);

}  // namespace weir
