// src/mm/vmalloc.hpp
//
// Virtually contiguous kernel memory of scattered pages, mapped in the machine's kernel page tables.
//
//   vmalloc(bytes) --> address range, first fit, one guard page behind --> pages one by one --> kernel PTEs
//   vfree          --> PTEs cleared, pages freed, the range reused only after a purge (bulk TLB flush)
//
// The addresses are the machine's, not the host's: bytes are reached by vread and vwrite, or page by page
// (vmalloc_to_page). That is also why the pages are kernel pages here, with their bytes at their places, where Linux
// may take highmem.
//
// An area has no array of its pages: its PTEs name them.
// Linux: mm/vmalloc.c, 4.14.
#pragma once

#include "mm/pgtable.hpp"
#include "mm/slab.hpp"

namespace weir {

inline constexpr VirtAddr VMALLOC_START{0xffffc90000000000ull};
inline constexpr VirtAddr VMALLOC_END{0xffffe8ffffffffffull};

/// A range of kernel addresses, its guard page included.
struct VmapArea {
  VirtAddr va_start{}, va_end{};  // immutable
  SetHook rb;                     // Vmalloc::lock_
  VmapArea* next_lazy = nullptr;  // Vmalloc::lock_
  bool live = true;               ///< false: freed, its addresses not yet to be had again. Vmalloc::lock_
  [[nodiscard]] VirtAddr guard() const { return va_end - PAGE_SIZE; }
};

class Vmalloc {
 public:
  Vmalloc(PageAllocator& pages, Slab& slab, PageTables& tables, VmStat& vmstat);
  void init();  ///< after slab and the kernel's page tables
  /// Page-rounded area. Errors: ENOMEM (everything taken is given back), EINVAL for 0. May sleep.
  Result<VirtAddr> vmalloc(Bytes size);
  Result<VirtAddr> vzalloc(Bytes size);
  /// `start` is what vmalloc gave. The pages are free at once.
  void vfree(VirtAddr start);
  /// Null for an address that is not in a live area (the guard page, say).
  [[nodiscard]] Page* vmalloc_to_page(VirtAddr address);
  /// Errors: EFAULT when a page of the range is not there; what lies before it is done.
  Result<void> vread(VirtAddr from, std::byte* to, size_t bytes);
  Result<void> vwrite(VirtAddr to, const std::byte* from, size_t bytes);
  /// The addresses of all areas freed so far may be had again.
  void purge_vmap_area_lazy();
  /// So many freed pages of address space wait at most: one flush of hardware's translations then serves them all.
  [[nodiscard]] static PageCount lazy_max_pages();
  [[nodiscard]] unsigned nr_areas() const;

 private:
  struct AreaStart {
    using type = VirtAddr;
    const VirtAddr& operator()(const VmapArea& area) const { return area.va_start; }
  };
  using AreaTree = boost::intrusive::set<VmapArea, boost::intrusive::member_hook<VmapArea, SetHook, &VmapArea::rb>,
                                         boost::intrusive::key_of_value<AreaStart>>;

  Result<VirtAddr> __vmalloc_node_flags(Bytes size, gfp_t gfp);
  [[nodiscard]] VmapArea* alloc_vmap_area(Bytes size);
  [[nodiscard]] bool insert_vmap_area(VmapArea& area, uint64_t bytes) WEIR_REQUIRES(lock_);
  Result<void> map_pages(VmapArea& area, gfp_t gfp);
  void unmap_pages(VmapArea& area);
  void free_vmap_area_noflush(VmapArea& area);
  template <class Copy>
  Result<void> for_bytes(VirtAddr at, size_t bytes, Copy copy);

  PageAllocator& pages_;             // immutable
  Slab& slab_;                       // immutable
  PageTables& tables_;               // immutable
  KmemCache* area_cache_ = nullptr;  // immutable after init
  mutable SpinLock lock_{LockRank::vmalloc};
  AreaTree areas_ WEIR_GUARDED_BY(lock_);  ///< live and lazy ones: both hold their addresses
  VmapArea* lazy_ WEIR_GUARDED_BY(lock_) = nullptr;
  PageCount lazy_pages_ WEIR_GUARDED_BY(lock_){};  ///< Σ pages of the lazy areas
  unsigned nr_live_ WEIR_GUARDED_BY(lock_) = 0;
};

}  // namespace weir
