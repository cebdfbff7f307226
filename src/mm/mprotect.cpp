// src/mm/mprotect.cpp: rights of mappings. See mmap.hpp
#include "mm/mmap.hpp"

namespace weir {

Result<void> AddressSpaces::mprotect(Mm& mm, VirtAddr start, uint64_t length, uint64_t prot) {
  WEIR_FLOW(start, length, prot);
  if ((start.v & ~PAGE_MASK) != 0) return Errno::inval;
  length = page_align_up(length);
  if (length == 0) return {};
  if (start.v + length < start.v) return Errno::nomem;
  ScopedWrite guard(mm.mmap_sem);
  return for_each_part(mm, start, start + length, Holes::end, [&](VmArea& vma, VirtAddr from, VirtAddr to) {
    return mprotect_fixup(mm, vma, from, to, prot & VM_ACCESS_FLAGS);
  });
}

Result<VmArea*> AddressSpaces::mprotect_fixup(Mm& mm, VmArea& vma, VirtAddr start, VirtAddr end, uint64_t prot) {
  WEIR_FLOW(start, end, prot);
  // VM_MAYREAD is four bits above VM_READ, and so on.
  if ((prot & ~(vma.vm_flags >> 4)) != 0) return Errno::acces;
  const uint64_t flags = (vma.vm_flags & ~VM_ACCESS_FLAGS) | prot;
  if (flags == vma.vm_flags) return &vma;
  VmArea* now = WEIR_TRY(change_flags(mm, vma, start, end, flags));
  memory_.change_protection(*now, start, end);
  return now;
}

}  // namespace weir
