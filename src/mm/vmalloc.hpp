// src/mm/vmalloc.hpp
//
// Virtually contiguous kernel memory of scattered pages, mapped in the machine's kernel page tables.
//
//   vmalloc(bytes) --> address range, first fit, one guard page behind --> pages one by one --> kernel PTEs
//   vfree          --> PTEs cleared, pages freed, the range reused only after a purge (bulk TLB flush)
//
// The addresses are the machine's, not the host's: bytes are reached by vread and vwrite, or page by page (vmalloc_to_page).
// Linux: mm/vmalloc.c.
#pragma once

#include "mm/pgtable.hpp"
#include "mm/slab.hpp"

namespace weir {

inline constexpr VirtAddr VMALLOC_START{0xffffc90000000000ull};
inline constexpr VirtAddr VMALLOC_END{0xffffe8ffffffffffull};

class Vmalloc {
 public:
  Vmalloc(PageAllocator& pages, Slab& slab, PageTables& tables, VmStat& vmstat);
  void init();  ///< after slab
  /// Page-rounded area. Errors: ENOMEM (everything taken is given back), EINVAL for 0.
  Result<VirtAddr> vmalloc(Bytes size);
  Result<VirtAddr> vzalloc(Bytes size);
  void vfree(VirtAddr start);
  /// Null for an address that is not in a live area (the guard page, say).
  [[nodiscard]] Page* vmalloc_to_page(VirtAddr address);
  Result<void> vread(VirtAddr from, std::byte* to, size_t bytes);
  Result<void> vwrite(VirtAddr to, const std::byte* from, size_t bytes);
  void purge_vmap_area_lazy();
  [[nodiscard]] unsigned nr_areas() const;

 private:
  PageAllocator& pages_;
  Slab& slab_;
  PageTables& tables_;
  VmStat& vmstat_;
};

}  // namespace weir
