// src/live/live_protect.cpp: rights, advice and locks of managed memory. See live_machine.hpp
//
// Code is special: between places of different rights the host moves no page, and staging is memory that is read and
// written. So memory that is made executable comes in first and is VM_LOCKED as long as it is VM_EXEC.
//
//   RW --mlock--> all of it in --mprotect--> RX, RWX (any to any) --munlock--> RW, none
#include <sys/mman.h>

#include <algorithm>

#include "arch/uffd/linux_abi.hpp"
#include "live/live_parts.hpp"

namespace weir {

/// fn(from, to, vm_flags) for each part of [start, end) that is one VMA's. No lock is held: mappings may come and go.
/// Errors: fn's first, at once; ENOMEM if a part is not mapped, at the end.
template <class Fn>
Result<void> LiveMachine::for_each_part(VirtAddr start, VirtAddr end, Fn fn) {
  Parts& p = *parts_;
  Mm& mm = *p.task->mm;
  bool hole = false;
  while (start < end) {
    VirtAddr from, to;
    uint64_t flags = 0;
    {
      ScopedRead reading(mm.mmap_sem);
      const VmArea* vma = p.machine->vmas.find_vma(mm, start);
      if (vma == nullptr || vma->vm_start >= end) return Errno::nomem;
      hole |= vma->vm_start > start;
      from = std::max(start, vma->vm_start);
      to = std::min(end, vma->vm_end);
      flags = vma->vm_flags;
    }
    WEIR_TRY_VOID(fn(from, to, flags));
    start = to;
  }
  if (hole) return Errno::nomem;
  return {};
}

Result<int> LiveMachine::protection(VirtAddr address) {
  return parts_->in_engine([&]() -> Result<int> {
    Mm& mm = *parts_->task->mm;
    ScopedRead reading(mm.mmap_sem);
    const VmArea* vma = parts_->machine->vmas.vma_lookup(mm, address);
    if (vma == nullptr) return Errno::fault;
    const uint64_t rights = vma->vm_flags;
    return ((rights & VM_READ) != 0 ? PROT_READ : 0) | ((rights & VM_WRITE) != 0 ? PROT_WRITE : 0) |
           ((rights & VM_EXEC) != 0 ? PROT_EXEC : 0);
  });
}

Result<void> LiveMachine::set_protection(VirtAddr start, VirtAddr end, int prot) {
  Parts& p = *parts_;
  ScopedLock guard(p.layout);
  WEIR_TRY_VOID(p.machine->spaces.mprotect(*p.task->mm, start, end - start, vm_prot(prot)));
  if (const long r = host_mprotect(start.v, end - start, prot); r != 0) return static_cast<Errno>(-r);
  return {};
}

Result<void> LiveMachine::protect(void* address, size_t length, int prot) {
  if ((prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC)) != 0) return Errno::inval;
  length = page_align_up(length);
  if (!inside(address, length)) return Errno::nomem;
  const VirtAddr start = at(address), end = start + length;
  if ((start.v & ~PAGE_MASK) != 0) return Errno::inval;
  return parts_->in_engine([&]() -> Result<void> {
    Parts& p = *parts_;
    // A hole is an error in the end, where mprotect finds it.
    const Result<void> ready =
        for_each_part(start, end, [&](VirtAddr from, VirtAddr to, uint64_t flags) -> Result<void> {
          const bool was_code = (flags & VM_EXEC) != 0, becomes_code = (prot & PROT_EXEC) != 0;
          if (was_code == becomes_code) return {};
          if (was_code) return p.machine->spaces.munlock(*p.task, from, to - from);
          WEIR_TRY_VOID(set_protection(from, to, PROT_READ | PROT_WRITE));
          return p.machine->spaces.mlock(*p.task, from, to - from);
        });
    const Result<void> done = set_protection(start, end, prot);
    return done ? ready : done;
  });
}

/// Discards what is there. Locked memory is not (EINVAL), but for code, and where the advice says so.
Result<void> LiveMachine::discard(VirtAddr start, VirtAddr end, uint64_t though) {
  Parts& p = *parts_;
  const auto locked = [&](uint64_t flags) { return (flags & VM_LOCKED) != 0 && (flags & though) != 0; };
  return for_each_part(start, end, [&](VirtAddr from, VirtAddr to, uint64_t flags) -> Result<void> {
    if (locked(flags)) WEIR_TRY_VOID(p.machine->spaces.munlock(*p.task, from, to - from));
    WEIR_TRY_VOID(p.machine->spaces.madvise(*p.task->mm, from, to - from, Advice::dontneed));
    return locked(flags) ? p.machine->spaces.mlock(*p.task, from, to - from) : Result<void>();
  });
}

Result<void> LiveMachine::advise(void* address, size_t length, int advice) {
  if ((at(address).v & ~PAGE_MASK) != 0) return Errno::inval;
  length = page_align_up(length);
  if (length == 0) return {};
  if (!inside(address, length)) return Errno::nomem;
  switch (advice) {
    case MADV_DONTNEED:
    case MADV_FREE:  // may be taken at any time: it is taken now
      return parts_->in_engine([&] { return discard(at(address), at(address) + length, VM_EXEC); });
    case abi::ADVICE_DONTNEED_LOCKED:
      return parts_->in_engine([&] { return discard(at(address), at(address) + length, VM_LOCKED); });
    case MADV_NORMAL:
    case MADV_RANDOM:
    case MADV_SEQUENTIAL:
    case MADV_WILLNEED: return advise_files(at(address), at(address) + length, advice);
    case abi::ADVICE_POPULATE_READ: return populate(address, length, false);
    case abi::ADVICE_POPULATE_WRITE: return populate(address, length, true);
    case MADV_WIPEONFORK:
    case MADV_KEEPONFORK:
    case MADV_DONTFORK:
    case MADV_DOFORK:
    case MADV_REMOVE: return Errno::inval;
    default: return {};
  }
}

Result<void> LiveMachine::lock(void* address, size_t length) {
  if (!inside(address, length)) return Errno::nomem;
  return parts_->in_engine([&] {
    return parts_->machine->spaces.mlock(*parts_->task, at(address).page(),
                                         page_align_up(length + (at(address).v & ~PAGE_MASK)));
  });
}

Result<void> LiveMachine::unlock(void* address, size_t length) {
  if (!inside(address, length)) return Errno::nomem;
  const VirtAddr start = at(address).page();
  const VirtAddr end = start + page_align_up(length + (at(address).v & ~PAGE_MASK));
  return parts_->in_engine([&] {
    return for_each_part(start, end, [&](VirtAddr from, VirtAddr to, uint64_t flags) -> Result<void> {
      if ((flags & VM_EXEC) != 0) return {};
      return parts_->machine->spaces.munlock(*parts_->task, from, to - from);
    });
  });
}

}  // namespace weir
