// src/mm/task_mmu.cpp: what was written since the last look: clear_refs and pagemap. See mmap.hpp. Linux:
// fs/proc/task_mmu.c (3.11 and later).
//
//   clear_refs 4: every PTE of the address space loses its soft-dirty bit and its right to write
//   a write:      faults, gets the right back (do_wp_page), and pte_mkdirty sets the bit
//   pagemap:      bit 55 of a page's entry = the bit, in whatever kind of PTE, or the mapping is new since then
#include "mm/mmap.hpp"

namespace weir {

Result<void> AddressSpaces::clear_refs_write(Mm& mm, ClearRefs what) {
  WEIR_FLOW(mm, what);
  if (what != ClearRefs::soft_dirty) return Errno::inval;
  if (!profile_.soft_dirty || !mmu_.caps().has_write_protect) return Errno::nosys;
  // For writing: no fault makes a PTE writable with the bit of before, and no mapping is made meanwhile.
  ScopedWrite guard(mm.mmap_sem);
  ChangingRange changing(mm, VirtAddr(0), mm.task_size);
  for (VmArea& vma : mm.mmap) {
    vma.vm_flags &= ~VM_SOFTDIRTY;
    clear_soft_dirty(vma);
    mmu_.flush_range(mm, vma.vm_start, vma.vm_end);
  }
  return {};
}

void AddressSpaces::clear_soft_dirty(VmArea& vma) {
  WEIR_FLOW(vma);
  tables_.for_each_pte(*vma.vm_mm, vma.vm_start, vma.vm_end, [&](VirtAddr address, Pte* ptep) {
    const Pte pte{__atomic_load_n(&ptep->v, __ATOMIC_RELAXED)};
    if (pte_none(pte)) return;
    tables_.ptep_modify(*vma.vm_mm, address, ptep, [](Pte now) {
      now = without_soft_dirty(now);
      return pte_present(now) ? pte_wrprotect(now) : now;
    });
  });
}

uint64_t AddressSpaces::pagemap(Mm& mm, VirtAddr address) {
  ScopedRead guard(mm.mmap_sem);
  VmArea* vma = vmas_.vma_lookup(mm, address);
  if (vma == nullptr) return 0;
  uint64_t entry = (vma->vm_flags & VM_SOFTDIRTY) != 0 ? PM_SOFT_DIRTY : 0;
  PteLock ptl = tables_.pte_offset_map_lock(mm, address);
  if (!ptl || pte_none(*ptl)) return entry;
  const Pte pte = *ptl;
  if (is_soft_dirty(pte)) entry |= PM_SOFT_DIRTY;
  if (is_file_pte(pte)) return entry | PM_FILE;
  if (!pte_present(pte)) {
    const SwpEntry swap = decode_swap_pte(pte);
    return entry | PM_SWAP | swp_type(swap) | (swp_offset(swap) << MAX_SWAPFILES_SHIFT);
  }
  entry |= PM_PRESENT | pte_pfn(pte).v;
  if (Page* page = memory_.vm_normal_page(pte)) {
    if (!PageAnon(*page)) entry |= PM_FILE;
    if (page_mapcount(*page) == 1) entry |= PM_MMAP_EXCLUSIVE;
  }
  return entry;
}

}  // namespace weir
