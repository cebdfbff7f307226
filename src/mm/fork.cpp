// src/mm/fork.cpp: how an Mm begins and ends. See mmap.hpp
//
//   mm_users 1 --mmget--> n --mmput--> 0: exit_mmap (pages, swap entries, tables, VMAs)     then mm_count - 1
//   mm_count 1 --mmgrab--> n --mmdrop--> 0: the pgd and the struct
#include <new>

#include "mm/mmap.hpp"

namespace weir {

namespace {

// The layout of a program without position independence: heap above its data, mappings downwards from below the stack.
constexpr VirtAddr TASK_SIZE{0x00007ffffffff000ull};
constexpr VirtAddr MMAP_BASE{TASK_SIZE.v - (uint64_t{128} << 20)};
constexpr VirtAddr START_BRK{0x0000000000800000ull};

}  // namespace

Result<void> AddressSpaces::init() {
  mm_cache_ = WEIR_TRY(slab_.kmem_cache_create("mm_struct", sizeof(Mm), {}));
  return {};
}

// ---- Beginning ------------------------------------------------------------------------------------------------------

Mm* AddressSpaces::allocate_mm() {
  WEIR_FLOW();
  Mm* used = nullptr;
  {
    ScopedLock guard(dead_lock_);
    if (!dead_.empty()) {
      used = &dead_.front();
      dead_.pop_front();
    }
  }
  if (used == nullptr) return slab_.create<Mm>(*mm_cache_, GFP_KERNEL);
  used->~Mm();
  return ::new (static_cast<void*>(used)) Mm;
}

void AddressSpaces::free_mm(Mm& mm) {
  ScopedLock guard(dead_lock_);
  dead_.push_front(mm);
}

Result<void> AddressSpaces::mm_alloc_pgd(Mm& mm) {
  WEIR_FLOW(mm);
  return tables_.pgd_alloc(mm);
}

Result<void> AddressSpaces::mm_init(Mm& mm, Task* owner) {
  WEIR_FLOW(mm);
  mm.id = next_mm_id_.fetch_add(1, std::memory_order_relaxed);
  mm.task_size = TASK_SIZE;
  mm.mmap_base = MMAP_BASE;
  mm.start_brk = mm.brk = START_BRK;
  mm.owner = owner;
  if (const Result<void> made = mm_alloc_pgd(mm); !made) {
    free_mm(mm);
    return made.error();
  }
  mmu_.mm_created(mm);
  return {};
}

Result<Mm*> AddressSpaces::mm_alloc(Task* owner) {
  WEIR_FLOW();
  Mm* mm = allocate_mm();
  if (mm == nullptr) return Errno::nomem;
  WEIR_TRY_VOID(mm_init(*mm, owner));
  return mm;
}

// ---- Copying --------------------------------------------------------------------------------------------------------

Result<Mm*> AddressSpaces::fork(Mm& old, Task* owner) {
  WEIR_FLOW(old);
  return dup_mm(old, owner);
}

Result<Mm*> AddressSpaces::dup_mm(Mm& old, Task* owner) {
  WEIR_FLOW(old);
  // Shared frames must be read-only in hardware.
  if (!mmu_.caps().has_write_protect || !mmu_.caps().has_alias) return Errno::nosys;
  Mm* mm = WEIR_TRY(mm_alloc(owner));
  if (const Result<void> copied = dup_mmap(*mm, old); !copied) {
    mmput(*mm);
    return copied.error();
  }
  return mm;
}

Result<void> AddressSpaces::dup_mmap(Mm& mm, Mm& old) {
  WEIR_FLOW(mm, old);
  ScopedWrite old_guard(old.mmap_sem);
  ScopedWrite guard(mm.mmap_sem);
  mm.mmap_base = old.mmap_base;
  mm.task_size = old.task_size;
  mm.start_brk = old.start_brk;
  mm.brk = old.brk;
  WEIR_TRY_VOID(ksm_->ksm_fork(mm, old));
  for (VmArea& vma : old.mmap) {
    if ((vma.vm_flags & VM_DONTCOPY) != 0) continue;
    VmArea* copy = vmas_.vm_area_dup(vma, GFP_KERNEL);
    if (copy == nullptr) return Errno::nomem;
    copy->vm_flags &= ~VM_LOCKED_CLEAR;
    copy->vm_mm = &mm;
    if (const Result<void> linked = rmap_.anon_vma_fork(*copy, vma); !linked) {
      vmas_.free(*copy);
      return linked.error();
    }
    if (copy->vm_file != nullptr) get_file(*copy->vm_file);
    vmas_.insert(mm, *copy);
    rmap_.vma_link_file(*copy, &vma);
    WEIR_TRY_VOID(memory_.copy_page_range(*copy, vma));
  }
  return {};
}

// ---- Ending ---------------------------------------------------------------------------------------------------------

void AddressSpaces::mmput(Mm& mm) {
  WEIR_FLOW(mm);
  if (mm.mm_users.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  exit_mmap(mm);
  mmdrop(mm);
}

void AddressSpaces::mmdrop(Mm& mm) {
  if (mm.mm_count.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  mmu_.mm_destroyed(mm);
  tables_.pgd_free(mm);
  free_mm(mm);
}

}  // namespace weir
