// src/mm/madvise.cpp: what a program says it will do with its memory. See mmap.hpp
#include "mm/mmap.hpp"

namespace weir {

Result<void> AddressSpaces::madvise(Mm& mm, VirtAddr start, uint64_t length, Advice advice) {
  WEIR_FLOW(start, length);
  if ((start.v & ~PAGE_MASK) != 0) return Errno::inval;
  length = page_align_up(length);
  if (start.v + length < start.v) return Errno::inval;
  if (length == 0) return {};
  const VirtAddr end = start + length;
  if (advice == Advice::dontneed || advice == Advice::willneed) {
    ScopedRead guard(mm.mmap_sem);
    if (advice == Advice::dontneed) return madvise_dontneed(mm, start, end);
    // A hint: pages come when they are touched.
    return for_each_part(mm, start, end, Holes::skip,
                         [](VmArea& vma, VirtAddr, VirtAddr) { return Result<VmArea*>(&vma); });
  }
  ScopedWrite guard(mm.mmap_sem);
  return for_each_part(mm, start, end, Holes::skip, [&](VmArea& vma, VirtAddr from, VirtAddr to) {
    uint64_t flags = vma.vm_flags & ~(VM_SEQ_READ | VM_RAND_READ);
    if (advice == Advice::sequential) flags |= VM_SEQ_READ;
    if (advice == Advice::random) flags |= VM_RAND_READ;
    return change_flags(mm, vma, from, to, flags);
  });
}

Result<void> AddressSpaces::madvise_dontneed(Mm& mm, VirtAddr start, VirtAddr end) {
  return for_each_part(mm, start, end, Holes::skip, [&](VmArea& vma, VirtAddr from, VirtAddr to) -> Result<VmArea*> {
    if ((vma.vm_flags & VM_LOCKED) != 0) return Errno::inval;
    memory_.zap_page_range(vma, from, to);
    return &vma;
  });
}

}  // namespace weir
