// src/mm/fremap.cpp: remap_file_pages: pages of a shared mapping in another order. See mmap.hpp. Linux: mm/fremap.c (to
// 3.x), mm/mmap.c (4.0 and later).
#include "mm/mmap.hpp"

namespace weir {

Result<void> AddressSpaces::remap_file_pages(Mm& mm, VirtAddr start, uint64_t size, uint64_t prot, uint64_t pgoff) {
  WEIR_FLOW(start, size, pgoff);
  if (prot != 0) return Errno::inval;
  start = start.page();
  size &= PAGE_MASK;
  if (start.v + size <= start.v) return Errno::inval;
  // An offset must fit into a PTE.
  const uint64_t behind = pgoff + (size >> PAGE_SHIFT);
  if (behind < pgoff || behind > uint64_t{1} << (64 - 9)) return Errno::inval;
  ScopedWrite guard(mm.mmap_sem);
  VmArea* vma = vmas_.vma_lookup(mm, start);
  if (vma == nullptr || (vma->vm_flags & VM_SHARED) == 0 || (vma->vm_flags & VM_SPECIAL) != 0) return Errno::inval;
  if (size > vma->vm_end - start) return Errno::inval;

  if ((vma->vm_flags & VM_NONLINEAR) == 0) {
    if (pgoff == linear_page_index(*vma, start)) return {};
    File& file = *vma->vm_file;
    // A page that is counted as dirty must be found where it is mapped: then other mappings take the place of this one.
    if (profile_.nonlinear == Nonlinear::none ||
        (profile_.nonlinear == Nonlinear::of_memory_files && !file.f_inode->i_data.no_writeback_tags)) {
      get_file(file);
      const uint64_t flags = vma->vm_flags;
      const Result<VirtAddr> mapped = mmap_region(mm, start, size, flags, &file, pgoff);
      fput(file);
      return mapped ? Result<void>() : mapped.error();
    }
    rmap_.make_nonlinear(*vma);
  }
  return memory_.generic_file_remap_pages(*vma, start, size, pgoff);
}

}  // namespace weir
