// src/mm/mlock.cpp: memory that stays. See mmap.hpp
#include "mm/mmap.hpp"

namespace weir {

Result<void> AddressSpaces::mlock(Task& task, VirtAddr start, uint64_t length, Lock lock) {
  WEIR_FLOW(start, length);
  Mm& mm = *task.mm;
  const VirtAddr from = start.page();
  if (start.v + length < start.v) return Errno::inval;
  const VirtAddr to{page_align_up(start.v + length)};
  if (from == to) return {};
  {
    ScopedWrite guard(mm.mmap_sem);
    WEIR_TRY_VOID(for_each_part(mm, from, to, Holes::end, [&](VmArea& vma, VirtAddr part, VirtAddr part_end) {
      const bool was = (vma.vm_flags & VM_LOCKED) != 0;
      const uint64_t flags = lock == Lock::yes ? vma.vm_flags | VM_LOCKED : vma.vm_flags & ~VM_LOCKED;
      Result<VmArea*> now = change_flags(mm, vma, part, part_end, flags);
      if (now && was && lock == Lock::no) munlock_vma_pages_range(**now, part, part_end);
      return now;
    }));
  }
  return lock == Lock::yes ? populate(task, from, to) : Result<void>();
}

/// The page that a PTE maps now, with a reference, and the PTE; null for none, swap entries and the zero page.
Page* AddressSpaces::get_present_page(Mm& mm, VirtAddr address, Pte& pte) {
  pte = Pte{};
  PteLock ptl = tables_.pte_offset_map_lock(mm, address);
  if (!ptl) return nullptr;
  pte = *ptl;
  Page* page = memory_.vm_normal_page(pte);
  if (page != nullptr) PageAllocator::get_page(*page);
  return page;
}

/// Every page present, in the task's own copy where it may write, and known as locked. Linux: __mm_populate.
Result<void> AddressSpaces::populate(Task& task, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(start, end);
  Mm& mm = *task.mm;
  Filemap& filemap = memory_.filemap();
  for (VirtAddr at = start; at < end; at = at + PAGE_SIZE) {
    for (;;) {
      uint32_t error_code = PF_USER;
      Pte pte;
      Page* page = nullptr;
      {
        ScopedRead guard(mm.mmap_sem);
        VmArea* vma = vmas_.vma_lookup(mm, at);
        if (vma == nullptr || (vma->vm_flags & VM_LOCKED) == 0)
          return Errno::nomem;  // unmapped or unlocked by another thread
        if ((vma->vm_flags & VM_ACCESS_FLAGS) == 0) return Errno::nomem;
        if ((vma->vm_flags & (VM_WRITE | VM_SHARED)) == VM_WRITE) error_code |= PF_WRITE;
        page = get_present_page(mm, at, pte);
      }
      if (page != nullptr && (pte_write(pte) || (error_code & PF_WRITE) == 0)) {
        if (!page->test(PageFlag::lru))
          filemap.lru().lru_add_drain();  // on its way to a list: it must be on it to leave it
        filemap.lock_page(*page);
        if (page_mapped(*page)) filemap.lru().mlock_vma_page(*page);
        filemap.unlock_page(*page);
        filemap.lru().put_page(*page);
        break;
      }
      if (page != nullptr) filemap.lru().put_page(*page);
      if (pte_special(pte) && pte_present(pte) && (error_code & PF_WRITE) == 0) break;  // the zero page stays anyway
      if (fault_.do_page_fault(task, at, error_code) != FaultResult::done) return Errno::nomem;
    }
  }
  return {};
}

/// The VMA's pages may be reclaimed again. One that another locked mapping has is found and locked again when reclaim
/// tries it.
void AddressSpaces::munlock_vma_pages_range(VmArea& vma, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(start, end);
  Mm& mm = *vma.vm_mm;
  Filemap& filemap = memory_.filemap();
  for (VirtAddr a = tables_.next_table(mm, start, end); a < end; a = tables_.next_table(mm, a, end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, end);
    for (; a < stop; a = a + PAGE_SIZE) {
      Pte pte;
      Page* page = get_present_page(mm, a, pte);
      if (page == nullptr) continue;
      if (page->test(PageFlag::mlocked)) {
        filemap.lock_page(*page);
        filemap.lru().munlock_vma_page(*page);
        filemap.unlock_page(*page);
      }
      filemap.lru().put_page(*page);
    }
  }
}

}  // namespace weir
