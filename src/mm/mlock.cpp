// src/mm/mlock.cpp: memory that stays. See mmap.hpp
#include "mm/mmap.hpp"

namespace weir {

namespace {

uint64_t lock_flags_of(AddressSpaces::Lock lock) {
  switch (lock) {
    case AddressSpaces::Lock::yes: return VM_LOCKED;
    case AddressSpaces::Lock::onfault: return VM_LOCKED | VM_LOCKONFAULT;
    case AddressSpaces::Lock::no: break;
  }
  return 0;
}

}  // namespace

/// [start, end) of vma is locked as the flags say from now on, or no longer.
Result<VmArea*> AddressSpaces::mlock_fixup(VmArea& vma, VirtAddr start, VirtAddr end, uint64_t lock_flags) {
  WEIR_FLOW(vma, start, end);
  const bool was = (vma.vm_flags & VM_LOCKED) != 0;
  if ((vma.vm_flags & VM_IO) != 0) return &vma;  // pages that are nobody's to lock
  VmArea* now = WEIR_TRY(change_flags(*vma.vm_mm, vma, start, end, (vma.vm_flags & ~VM_LOCKED_CLEAR) | lock_flags));
  if (was && lock_flags == 0) munlock_vma_pages_range(*now, start, end);
  return now;
}

Result<void> AddressSpaces::apply_vma_lock_flags(Mm& mm, VirtAddr start, VirtAddr end, uint64_t lock_flags) {
  WEIR_FLOW(start, end);
  return for_each_part(mm, start, end, Holes::end, [&](VmArea& vma, VirtAddr part, VirtAddr part_end) {
    return mlock_fixup(vma, part, part_end, lock_flags);
  });
}

Result<void> AddressSpaces::mlock(Task& task, VirtAddr start, uint64_t length, Lock lock) {
  WEIR_FLOW(start, length);
  Mm& mm = *task.mm;
  const VirtAddr from = start.page();
  if (start.v + length < start.v) return Errno::inval;
  const VirtAddr to{page_align_up(start.v + length)};
  if (from == to) return {};
  // As in Linux: pages on their way to a list must be on it to leave it.
  if (lock != Lock::no) memory_.filemap().lru().lru_add_drain_all();
  {
    ScopedWrite guard(mm.mmap_sem);
    WEIR_TRY_VOID(apply_vma_lock_flags(mm, from, to, lock_flags_of(lock)));
  }
  return lock != Lock::no ? __mm_populate(task, from, to) : Result<void>();
}

void AddressSpaces::apply_mlockall_flags(Mm& mm, uint64_t lock_flags) {
  WEIR_FLOW(mm);
  // A VMA that cannot be changed now stays as it is.
  (void)for_each_part(mm, VirtAddr(0), mm.task_size, Holes::skip, [&](VmArea& vma, VirtAddr from, VirtAddr to) {
    Result<VmArea*> now = mlock_fixup(vma, from, to, lock_flags);
    return now ? std::move(now) : Result<VmArea*>(&vma);
  });
}

Result<void> AddressSpaces::mlockall(Task& task, Lock current, LockFuture future) {
  WEIR_FLOW();
  Mm& mm = *task.mm;
  if (current == Lock::no && future == LockFuture::no) return Errno::inval;
  memory_.filemap().lru().lru_add_drain_all();
  {
    ScopedWrite guard(mm.mmap_sem);
    mm.def_flags &= ~VM_LOCKED_CLEAR;
    if (future != LockFuture::no) mm.def_flags |= VM_LOCKED;
    if (future == LockFuture::onfault) mm.def_flags |= VM_LOCKONFAULT;
    if (current != Lock::no) apply_mlockall_flags(mm, lock_flags_of(current));
  }
  VirtAddr at{0};
  while (current != Lock::no) {
    VirtAddr from, to;
    {
      ScopedRead guard(mm.mmap_sem);
      const VmArea* vma = vmas_.find_vma(mm, at);
      if (vma == nullptr) break;
      from = vma->vm_start > at ? vma->vm_start : at;
      to = vma->vm_end;
    }
    (void)__mm_populate(task, from, to);
    at = to;
  }
  return {};
}

Result<void> AddressSpaces::munlockall(Task& task) {
  WEIR_FLOW();
  Mm& mm = *task.mm;
  ScopedWrite guard(mm.mmap_sem);
  mm.def_flags &= ~VM_LOCKED_CLEAR;
  apply_mlockall_flags(mm, 0);
  return {};
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

/// Every page present, in the task's own copy where it may write, and known as locked; where pages are locked as they
/// come, only those that are here.
Result<void> AddressSpaces::__mm_populate(Task& task, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(start, end);
  Mm& mm = *task.mm;
  Filemap& filemap = memory_.filemap();
  for (VirtAddr at = start; at < end; at = at + PAGE_SIZE) {
    for (;;) {
      uint32_t error_code = PF_USER;
      {
        // Held until the page is marked: munlock would else pass it by before.
        ScopedRead guard(mm.mmap_sem);
        const VmArea* vma = vmas_.vma_lookup(mm, at);
        if (vma == nullptr) return Errno::nomem;      // unmapped by another thread
        if ((vma->vm_flags & VM_LOCKED) == 0) break;  // unlocked by another thread, or nothing to lock
        if ((vma->vm_flags & VM_ACCESS_FLAGS) == 0) return Errno::nomem;
        if ((vma->vm_flags & (VM_WRITE | VM_SHARED)) == VM_WRITE) error_code |= PF_WRITE;
        const bool onfault = (vma->vm_flags & VM_LOCKONFAULT) != 0;
        Pte pte;
        Page* page = get_present_page(mm, at, pte);
        const bool there = page != nullptr && (onfault || pte_write(pte) || (error_code & PF_WRITE) == 0);
        if (there) {
          if (!page->test(PageFlag::lru)) filemap.lru().lru_add_drain();
          filemap.lock_page(*page);
          if (page_mapped(*page)) filemap.lru().mlock_vma_page(*page);
          filemap.unlock_page(*page);
        }
        if (page != nullptr) filemap.lru().put_page(*page);
        // The zero page stays anyway.
        if (there || onfault || (pte_special(pte) && pte_present(pte) && (error_code & PF_WRITE) == 0)) break;
      }
      if (fault_.do_page_fault(task, at, error_code) != FaultResult::done) return Errno::nomem;
    }
  }
  return {};
}

/// The range's pages may be reclaimed again, but those that another locked mapping has. The VMA does not say any more
/// that it is locked.
void AddressSpaces::munlock_vma_pages_range(VmArea& vma, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(start, end);
  WEIR_DEBUG_BUG_ON((vma.vm_flags & VM_LOCKED) != 0);
  Mm& mm = *vma.vm_mm;
  Filemap& filemap = memory_.filemap();
  for (VirtAddr a = tables_.next_table(mm, start, end); a < end; a = tables_.next_table(mm, a, end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, end);
    for (; a < stop; a = a + PAGE_SIZE) {
      Pte pte;
      Page* page = get_present_page(mm, a, pte);
      if (page == nullptr) continue;
      // Locked before it is asked: reclaim may have seen the VMA locked and be about to mark the page.
      filemap.lock_page(*page);
      filemap.lru().munlock_vma_page(*page);
      filemap.unlock_page(*page);
      filemap.lru().put_page(*page);
    }
  }
}

void AddressSpaces::munlock_vma_pages_all(VmArea& vma) {
  if ((vma.vm_flags & VM_LOCKED) == 0) return;
  vma.vm_flags &= ~VM_LOCKED_CLEAR;
  munlock_vma_pages_range(vma, vma.vm_start, vma.vm_end);
}

}  // namespace weir
