// src/mm/memory_remap.cpp: frames without a page behind them, mapped as they are. See memory.hpp. Linux: mm/memory.c
// (remap_pfn_range).
#include "mm/memory.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "memory.cpp"

namespace weir {

namespace {

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "pgtable.h"
VirtAddr pgd_addr_end(VirtAddr address, VirtAddr end) {
  WEIR_FLOW(address, end);
  return PageTables::addr_end(address, end, PGDIR_SIZE);
}
VirtAddr pud_addr_end(VirtAddr address, VirtAddr end) {
  WEIR_FLOW(address, end);
  return PageTables::addr_end(address, end, PUD_SIZE);
}
VirtAddr pmd_addr_end(VirtAddr address, VirtAddr end) {
  WEIR_FLOW(address, end);
  return PageTables::pmd_addr_end(address, end);
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "mm.h"
Pte* pud_alloc(PageTables& tables, Mm& mm, Pte* pgd, VirtAddr address) {
  WEIR_FLOW(address);
  return tables.make_pud(mm, pgd, address);
}
Pte* pmd_alloc(PageTables& tables, Mm& mm, Pte* pud, VirtAddr address) {
  WEIR_FLOW(address);
  return tables.make_pmd(mm, pud, address);
}
Result<void> pte_alloc(PageTables& tables, Mm& mm, Pte* pmd, VirtAddr address) {
  WEIR_FLOW(address);
  return tables.make_pte_table(mm, pmd, address);
}
PteLock pte_alloc_map_lock(PageTables& tables, Mm& mm, Pte* pmd, VirtAddr address) {
  WEIR_FLOW(address);
  return pte_alloc(tables, mm, pmd, address) ? tables.pte_offset_map_lock(mm, address) : PteLock();
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "memory.cpp"

}  // namespace

Result<void> Memory::remap_pte_range(VmArea& vma, Pte* pmd, VirtAddr address, VirtAddr end, Pfn pfn) {
  WEIR_FLOW(address, end, pfn);
  Mm& mm = *vma.vm_mm;
  PteLock ptl = pte_alloc_map_lock(tables_, mm, pmd, address);
  if (!ptl) return Errno::nomem;
  const bool shared = (vma.vm_flags & VM_SHARED) != 0;
  for (Pte* pte = ptl.get(); address < end; address = address + PAGE_SIZE, ++pte, ++pfn.v) {
    WEIR_BUG_ON(!pte_none(Pte{__atomic_load_n(&pte->v, __ATOMIC_RELAXED)}));
    const Pte entry = pte_mkspecial(mk_pte(pfn, vma));
    tables_.set_pte_at(mm, address, pte, shared ? maybe_mkwrite(entry, vma) : entry);
  }
  return {};
}

Result<void> Memory::remap_pmd_range(VmArea& vma, Pte* pud, VirtAddr address, VirtAddr end, Pfn pfn) {
  WEIR_FLOW(address, end, pfn);
  Pte* pmd = pmd_alloc(tables_, *vma.vm_mm, pud, address);
  if (pmd == nullptr) return Errno::nomem;
  for (VirtAddr next; address < end; pfn = pfn + pages_in(Bytes(next - address)), address = next, ++pmd) {
    next = pmd_addr_end(address, end);
    WEIR_TRY_VOID(remap_pte_range(vma, pmd, address, next, pfn));
  }
  return {};
}

Result<void> Memory::remap_pud_range(VmArea& vma, Pte* pgd, VirtAddr address, VirtAddr end, Pfn pfn) {
  WEIR_FLOW(address, end, pfn);
  Pte* pud = pud_alloc(tables_, *vma.vm_mm, pgd, address);
  if (pud == nullptr) return Errno::nomem;
  for (VirtAddr next; address < end; pfn = pfn + pages_in(Bytes(next - address)), address = next, ++pud) {
    next = pud_addr_end(address, end);
    WEIR_TRY_VOID(remap_pmd_range(vma, pud, address, next, pfn));
  }
  return {};
}

Result<void> Memory::remap_pfn_range(VmArea& vma, VirtAddr address, Pfn pfn, uint64_t size) {
  WEIR_FLOW(address, pfn, size);
  const VirtAddr end = address + page_align_up(size);
  const bool cow = (vma.vm_flags & (VM_SHARED | VM_MAYWRITE)) == VM_MAYWRITE;
  if (cow && (address != vma.vm_start || end != vma.vm_end)) return Errno::inval;
  vma.vm_flags |= VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP;
  Pte* pgd = PageTables::pgd_offset(*vma.vm_mm, address);
  for (VirtAddr next; address < end; pfn = pfn + pages_in(Bytes(next - address)), address = next, ++pgd) {
    next = pgd_addr_end(address, end);
    WEIR_TRY_VOID(era_->remap_below_pgd(vma, pgd, address, next, pfn));
  }
  return {};
}

}  // namespace weir
