// src/mm/memory_nonlinear.cpp: mappings whose pages are in an order of their own. See memory.hpp. Linux: mm/fremap.c,
// mm/memory.c; 2.6.20 and 3.x.
#include "mm/memory.hpp"

namespace weir {

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "fremap.cpp"

/// The PTE says which page of the file belongs there. False: no memory for a table.
bool Memory::install_file_pte(VmArea& vma, VirtAddr address, uint64_t pgoff) {
  WEIR_FLOW(address, pgoff);
  PteLock ptl = tables_.pte_alloc_map_lock(*vma.vm_mm, address);
  if (!ptl) return false;
  WEIR_DEBUG_BUG_ON(!pte_none(*ptl));
  tables_.set_pte_at(*vma.vm_mm, address, ptl.get(), pgoff_to_pte(pgoff));
  return true;
}

Result<void> Memory::generic_file_remap_pages(VmArea& vma, VirtAddr start, uint64_t size, uint64_t pgoff) {
  WEIR_FLOW(start, size, pgoff);
  const VirtAddr end = start + size;
  zap_page_range(vma, start, end);
  for (VirtAddr a = start; a < end; a = a + PAGE_SIZE, ++pgoff)
    if (!install_file_pte(vma, a, pgoff)) return Errno::nomem;
  return {};
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "memory.cpp"

void Memory::zap_nonlinear_range(VmArea& vma, VirtAddr start, VirtAddr end, uint64_t first, uint64_t last) {
  WEIR_FLOW(start, end);
  Mm& mm = *vma.vm_mm;
  update_hiwater_rss(mm);
  ChangingRange changing(mm, start, end);
  MmuGather gather(mm);
  for (VirtAddr a = tables_.next_table(mm, start, end); a < end; a = tables_.next_table(mm, a, end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, end);
    while (a < stop) {
      {
        PteLock ptl = tables_.pte_offset_map_lock(mm, a);
        for (Pte* pte = ptl.get(); a < stop && !gather.full(); a = a + PAGE_SIZE, ++pte) {
          const Page* page = vm_normal_page(Pte{__atomic_load_n(&pte->v, __ATOMIC_RELAXED)});
          if (page == nullptr || page->index < first || page->index > last) continue;
          const uint64_t pgoff = page->index;
          zap_pte(gather, vma, a, pte, EvenCows::no);
          if (pgoff != linear_page_index(vma, a)) tables_.set_pte_at(mm, a, pte, pgoff_to_pte(pgoff));
        }
      }
      if (gather.full()) tlb_flush_mmu(gather);
    }
  }
  tlb_flush_mmu(gather);
}

}  // namespace weir
