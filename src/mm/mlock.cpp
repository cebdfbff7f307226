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

// ---- By kernel -----------------------------------------------------------------------------------------------------
//
//              2.6.20                             3.x                          4.14
//   mlock      do_mlock, make_pages_present       do_mlock, __mm_populate      do_mlock -> apply_vma_lock_flags,
//                                                                                          __mm_populate
//   munlock    do_mlock                           do_mlock                     apply_vma_lock_flags
//   mlockall   do_mlockall, make_pages_present    do_mlockall, __mm_populate   apply_mlockall_flags, __mm_populate
//   a page     stays on its list and is met       is unevictable               is unevictable
//              again by each scan
//
// 2.6.20 brings the pages in VMA by VMA under mmap_sem; here they come when all VMAs are locked, as later.

struct AddressSpaces::MlockEra {
  using Spaces = AddressSpaces;

  /// mlock2 and MCL_ONFAULT are there (4.4).
  [[nodiscard]] virtual bool onfault() const { return false; }
  /// Pages on their way to a list must be on it to leave it.
  virtual void drain(Spaces& self) const { self.memory_.filemap().lru().lru_add_drain_all(); }
  virtual Result<void> lock(Spaces& self, Task& task, VirtAddr start, VirtAddr end, uint64_t lock_flags) const = 0;
  virtual Result<void> unlock(Spaces& self, Mm& mm, VirtAddr start, VirtAddr end) const = 0;
  virtual void set_all(Spaces& self, Mm& mm, uint64_t lock_flags) const = 0;
  virtual Result<void> bring_in(Spaces& self, Task& task, VirtAddr start, VirtAddr end) const = 0;
  virtual void let_go(Spaces& self, VmArea& vma, VirtAddr start, VirtAddr end) const {
    self.munlock_vma_pages_range(vma, start, end);
  }

  struct To_4_3;
  struct Linux_2_6_20;
  struct Linux_3;
  struct Linux_4_14;

 protected:
  ~MlockEra() = default;
};

struct AddressSpaces::MlockEra::To_4_3 : MlockEra {
  Result<void> lock(Spaces& self, Task& task, VirtAddr start, VirtAddr end, uint64_t lock_flags) const final {
    drain(self);
    {
      ScopedWrite guard(task.mm->mmap_sem);
      WEIR_TRY_VOID(do_mlock(self, *task.mm, start, end, lock_flags));
    }
    return bring_in(self, task, start, end);
  }
  Result<void> unlock(Spaces& self, Mm& mm, VirtAddr start, VirtAddr end) const final {
    ScopedWrite guard(mm.mmap_sem);
    return do_mlock(self, mm, start, end, 0);
  }
  void set_all(Spaces& self, Mm& mm, uint64_t lock_flags) const final { do_mlockall(self, mm, lock_flags); }

 private:
  static Result<void> do_mlock(Spaces& self, Mm& mm, VirtAddr start, VirtAddr end, uint64_t lock_flags) {
    WEIR_FLOW(start, end, lock_flags);
    return self.set_lock_flags(mm, start, end, lock_flags);
  }
  static void do_mlockall(Spaces& self, Mm& mm, uint64_t lock_flags) {
    WEIR_FLOW(mm, lock_flags);
    self.set_all_lock_flags(mm, lock_flags);
  }
};

struct AddressSpaces::MlockEra::Linux_2_6_20 final : To_4_3 {
  void drain(Spaces&) const override {}
  void let_go(Spaces&, VmArea&, VirtAddr, VirtAddr) const override {}
  Result<void> bring_in(Spaces& self, Task& task, VirtAddr start, VirtAddr end) const override {
    return make_pages_present(self, task, start, end);
  }

 private:
#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "memory.cpp"
  static Result<void> make_pages_present(Spaces& self, Task& task, VirtAddr start, VirtAddr end) {
    WEIR_FLOW(start, end);
    return self.populate(task, start, end);
  }
};

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "mlock.cpp"
struct AddressSpaces::MlockEra::Linux_3 final : To_4_3 {
  Result<void> bring_in(Spaces& self, Task& task, VirtAddr start, VirtAddr end) const override {
    return __mm_populate(self, task, start, end);
  }

 private:
  static Result<void> __mm_populate(Spaces& self, Task& task, VirtAddr start, VirtAddr end) {
    WEIR_FLOW(start, end);
    return self.populate(task, start, end);
  }
};

struct AddressSpaces::MlockEra::Linux_4_14 final : MlockEra {
  [[nodiscard]] bool onfault() const override { return true; }
  Result<void> lock(Spaces& self, Task& task, VirtAddr start, VirtAddr end, uint64_t lock_flags) const override {
    return do_mlock(self, task, start, end, lock_flags);
  }
  Result<void> unlock(Spaces& self, Mm& mm, VirtAddr start, VirtAddr end) const override {
    ScopedWrite guard(mm.mmap_sem);
    return apply_vma_lock_flags(self, mm, start, end, 0);
  }
  void set_all(Spaces& self, Mm& mm, uint64_t lock_flags) const override { apply_mlockall_flags(self, mm, lock_flags); }
  Result<void> bring_in(Spaces& self, Task& task, VirtAddr start, VirtAddr end) const override {
    return __mm_populate(self, task, start, end);
  }

 private:
  Result<void> do_mlock(Spaces& self, Task& task, VirtAddr start, VirtAddr end, uint64_t lock_flags) const {
    WEIR_FLOW(start, end, lock_flags);
    drain(self);
    {
      ScopedWrite guard(task.mm->mmap_sem);
      WEIR_TRY_VOID(apply_vma_lock_flags(self, *task.mm, start, end, lock_flags));
    }
    return __mm_populate(self, task, start, end);
  }
  static Result<void> apply_vma_lock_flags(Spaces& self, Mm& mm, VirtAddr start, VirtAddr end, uint64_t lock_flags) {
    WEIR_FLOW(start, end, lock_flags);
    return self.set_lock_flags(mm, start, end, lock_flags);
  }
  static void apply_mlockall_flags(Spaces& self, Mm& mm, uint64_t lock_flags) {
    WEIR_FLOW(mm, lock_flags);
    self.set_all_lock_flags(mm, lock_flags);
  }

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "gup.cpp"
  static Result<void> __mm_populate(Spaces& self, Task& task, VirtAddr start, VirtAddr end) {
    WEIR_FLOW(start, end);
    return self.populate(task, start, end);
  }
};

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "mlock.cpp"
const AddressSpaces::MlockEra& AddressSpaces::mlock_era_of(KernelEra kernel) {
  static constexpr MlockEra::Linux_2_6_20 era_2_6_20;
  static constexpr MlockEra::Linux_3 era_3;
  static constexpr MlockEra::Linux_4_14 era_4_14;
  switch (kernel) {
    case KernelEra::linux_2_6_20: return era_2_6_20;
    case KernelEra::linux_3: return era_3;
    case KernelEra::linux_4_14: break;
  }
  return era_4_14;
}

// ---- VMAs ----------------------------------------------------------------------------------------------------------

/// [start, end) of vma is locked as the flags say from now on, or no longer.
Result<VmArea*> AddressSpaces::mlock_fixup(VmArea& vma, VirtAddr start, VirtAddr end, uint64_t lock_flags) {
  WEIR_FLOW(vma, start, end);
  const bool was = (vma.vm_flags & VM_LOCKED) != 0;
  if ((vma.vm_flags & VM_IO) != 0) return &vma;  // pages that are nobody's to lock
  VmArea* now = WEIR_TRY(change_flags(*vma.vm_mm, vma, start, end, (vma.vm_flags & ~VM_LOCKED_CLEAR) | lock_flags));
  if (was && lock_flags == 0) mlock_era_.let_go(*this, *now, start, end);
  return now;
}

/// Every VMA of [start, end), up to a hole.
Result<void> AddressSpaces::set_lock_flags(Mm& mm, VirtAddr start, VirtAddr end, uint64_t lock_flags) {
  return for_each_part(mm, start, end, Holes::end, [&](VmArea& vma, VirtAddr part, VirtAddr part_end) {
    return mlock_fixup(vma, part, part_end, lock_flags);
  });
}

void AddressSpaces::set_all_lock_flags(Mm& mm, uint64_t lock_flags) {
  // A VMA that cannot be changed now stays as it is.
  (void)for_each_part(mm, VirtAddr(0), mm.task_size, Holes::skip, [&](VmArea& vma, VirtAddr from, VirtAddr to) {
    Result<VmArea*> now = mlock_fixup(vma, from, to, lock_flags);
    return now ? std::move(now) : Result<VmArea*>(&vma);
  });
}

// ---- System calls --------------------------------------------------------------------------------------------------

namespace {

/// From the page of start to the one that holds the last byte. EINVAL: it wraps.
Result<VirtAddr> end_of(VirtAddr start, uint64_t length) {
  if (start.v + length < start.v) return Errno::inval;
  return VirtAddr(page_align_up(start.v + length));
}

}  // namespace

Result<void> AddressSpaces::mlock(Task& task, VirtAddr start, uint64_t length) {
  WEIR_FLOW(start, length);
  const VirtAddr end = WEIR_TRY(end_of(start, length));
  if (start.page() == end) return {};
  return mlock_era_.lock(*this, task, start.page(), end, VM_LOCKED);
}

Result<void> AddressSpaces::mlock2(Task& task, VirtAddr start, uint64_t length, Lock lock) {
  if (!mlock_era_.onfault()) return Errno::nosys;
  if (lock == Lock::no) return Errno::inval;
  WEIR_FLOW(start, length, lock);
  const VirtAddr end = WEIR_TRY(end_of(start, length));
  if (start.page() == end) return {};
  return mlock_era_.lock(*this, task, start.page(), end, lock_flags_of(lock));
}

Result<void> AddressSpaces::munlock(Task& task, VirtAddr start, uint64_t length) {
  WEIR_FLOW(start, length);
  const VirtAddr end = WEIR_TRY(end_of(start, length));
  if (start.page() == end) return {};
  return mlock_era_.unlock(*this, *task.mm, start.page(), end);
}

Result<void> AddressSpaces::mlockall(Task& task, Lock current, LockFuture future) {
  WEIR_FLOW(current, future);
  Mm& mm = *task.mm;
  if (current == Lock::no && future == LockFuture::no) return Errno::inval;
  if (!mlock_era_.onfault() && (current == Lock::onfault || future == LockFuture::onfault)) return Errno::inval;
  mlock_era_.drain(*this);
  {
    ScopedWrite guard(mm.mmap_sem);
    mm.def_flags &= ~VM_LOCKED_CLEAR;
    if (future != LockFuture::no) mm.def_flags |= VM_LOCKED;
    if (future == LockFuture::onfault) mm.def_flags |= VM_LOCKONFAULT;
    if (current != Lock::no) mlock_era_.set_all(*this, mm, lock_flags_of(current));
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
    (void)mlock_era_.bring_in(*this, task, from, to);
    at = to;
  }
  return {};
}

Result<void> AddressSpaces::munlockall(Task& task) {
  WEIR_FLOW();
  Mm& mm = *task.mm;
  ScopedWrite guard(mm.mmap_sem);
  mm.def_flags &= ~VM_LOCKED_CLEAR;
  mlock_era_.set_all(*this, mm, 0);
  return {};
}

// ---- Pages ---------------------------------------------------------------------------------------------------------

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
Result<void> AddressSpaces::populate(Task& task, VirtAddr start, VirtAddr end) {
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

/// What has just been mapped and is locked, as far as it can be brought in. The caller's own memory only.
void AddressSpaces::mm_populate(Mm& mm, VirtAddr start, VirtAddr end) {
  if (Task* task = current_task(); task != nullptr && task->mm == &mm)
    (void)mlock_era_.bring_in(*this, *task, start, end);
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
  mlock_era_.let_go(*this, vma, vma.vm_start, vma.vm_end);
}

}  // namespace weir
