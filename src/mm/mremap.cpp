// src/mm/mremap.cpp: a mapping grows, shrinks, moves. See mmap.hpp
//
//   shrink: the tail is unmapped.  grow: in place if the hole behind it allows, else (MayMove) to a new place: PTEs are
//   moved, no page is copied.
#include "mm/mmap.hpp"

namespace weir {

Result<VirtAddr> AddressSpaces::mremap(Mm& mm, VirtAddr old_addr, uint64_t old_len, uint64_t new_len, MayMove may_move,
                                       VirtAddr fixed) {
  WEIR_FLOW(old_addr, old_len, new_len);
  if ((old_addr.v & ~PAGE_MASK) != 0) return Errno::inval;
  old_len = page_align_up(old_len);
  new_len = page_align_up(new_len);
  // Linux makes a second mapping of shared pages for an old length of 0; not here.
  if (new_len == 0 || old_len == 0 || new_len > mm.task_size.v || old_len > mm.task_size.v) return Errno::inval;
  bool locked = false;
  Result<VirtAddr> at = [&]() -> Result<VirtAddr> {
    ScopedWrite guard(mm.mmap_sem);
    Result<VirtAddr> now = resize_mapping(mm, old_addr, old_len, new_len, may_move, fixed);
    locked = now && new_len > old_len && locked_at_once(vmas_.vma_lookup(mm, *now)->vm_flags);
    return now;
  }();
  if (locked) mm_populate(mm, *at + old_len, *at + new_len);
  return at;
}

/// mmap_sem held for writing.
Result<VirtAddr> AddressSpaces::resize_mapping(Mm& mm, VirtAddr old_addr, uint64_t old_len, uint64_t new_len,
                                               MayMove may_move, VirtAddr fixed) {
  if (fixed.v != 0) {
    if (may_move == MayMove::no || (fixed.v & ~PAGE_MASK) != 0 || fixed.v > mm.task_size.v - new_len ||
        fixed < MMAP_MIN_ADDR)
      return Errno::inval;
    if (fixed < old_addr + old_len && old_addr < fixed + new_len) return Errno::inval;
    // Everything that can be refused is refused before what lies at the new place goes.
    WEIR_TRY(vma_to_resize(mm, old_addr, old_len < new_len ? old_len : new_len, new_len));
    WEIR_TRY_VOID(do_munmap(mm, fixed, new_len));
    if (new_len < old_len) WEIR_TRY_VOID(do_munmap(mm, old_addr + new_len, old_len - new_len));
    if (new_len < old_len) old_len = new_len;
    VmArea* vma = WEIR_TRY(vma_to_resize(mm, old_addr, old_len, new_len));
    return move_vma(mm, *vma, old_addr, old_len, new_len, fixed);
  }

  if (old_len >= new_len) {
    if (vmas_.vma_lookup(mm, old_addr) == nullptr) return Errno::fault;
    if (old_len > new_len) WEIR_TRY_VOID(do_munmap(mm, old_addr + new_len, old_len - new_len));
    return old_addr;
  }

  VmArea* vma = WEIR_TRY(vma_to_resize(mm, old_addr, old_len, new_len));
  if (old_addr + old_len == vma->vm_end) {
    const VirtAddr new_end = old_addr + new_len;
    if (new_end <= mm.task_size && vmas_.find_vma_intersection(mm, vma->vm_end, new_end) == nullptr) {
      WEIR_TRY_VOID(vma_grow(mm, *vma, vma->vm_start, new_end, nullptr));
      vma->vm_flags |= VM_SOFTDIRTY;
      merge_with_neighbours(mm, *vma);
      return old_addr;
    }
  }
  if (may_move == MayMove::no) return Errno::nomem;
  const VirtAddr new_addr = WEIR_TRY(vmas_.get_unmapped_area(mm, VirtAddr(0), new_len));
  return move_vma(mm, *vma, old_addr, old_len, new_len, new_addr);
}

/// The one VMA that holds [address, address + old_len), if it may get that size.
Result<VmArea*> AddressSpaces::vma_to_resize(Mm& mm, VirtAddr address, uint64_t old_len, uint64_t new_len) {
  VmArea* vma = vmas_.vma_lookup(mm, address);
  if (vma == nullptr || old_len > vma->vm_end - address) return Errno::fault;
  if (new_len > old_len) {
    if ((vma->vm_flags & VM_DONTEXPAND) != 0) return Errno::fault;
    const uint64_t pgoff = linear_page_index(*vma, address);
    if (pgoff + (new_len >> PAGE_SHIFT) < pgoff) return Errno::inval;
  }
  return vma;
}

Result<VmArea*> AddressSpaces::copy_vma(Mm& mm, VmArea& vma, VirtAddr old_addr, VirtAddr new_addr, uint64_t length) {
  WEIR_FLOW(old_addr, new_addr, length);
  Wanted wanted{.start = new_addr,
                .end = new_addr + length,
                .flags = vma.vm_flags | VM_SOFTDIRTY,
                .anon_vma = vma.anon_vma,
                .file = vma.vm_file,
                .ops = vma.vm_ops,
                .pgoff = linear_page_index(vma, old_addr)};
  // No page knows its index yet: then it may be that of the new place, and the mapping one with its neighbours there.
  if (vma.vm_file == nullptr && vma.anon_vma == nullptr) wanted.pgoff = new_addr.v >> PAGE_SHIFT;
  VmArea* fresh = vmas_.vm_area_dup(vma, GFP_KERNEL);
  if (fresh == nullptr) return Errno::nomem;
  fresh->vm_start = wanted.start;
  fresh->vm_end = wanted.end;
  fresh->vm_pgoff = wanted.pgoff;
  fresh->vm_flags = wanted.flags;
  if (const Result<void> linked = rmap_.anon_vma_clone(*fresh, vma); !linked) {
    vmas_.free(*fresh);
    return linked.error();
  }
  if (fresh->vm_file != nullptr) get_file(*fresh->vm_file);
  vmas_.insert(mm, *fresh);
  rmap_.vma_link_file(*fresh);
  WEIR_STATE(vma_create, wanted.start, 0, wanted.end);
  return fresh;
}

Result<VirtAddr> AddressSpaces::move_vma(Mm& mm, VmArea& vma, VirtAddr old_addr, uint64_t old_len, uint64_t new_len,
                                         VirtAddr new_addr) {
  WEIR_FLOW(old_addr, new_addr, new_len);
  // Unmapping the old place may split it in three, and the new one is one more.
  if (mm.map_count >= sysctl_max_map_count - 3) return Errno::nomem;
  // A merged page is found by its address: it cannot move.
  uint64_t flags = vma.vm_flags;
  if ((flags & VM_MERGEABLE) != 0) WEIR_TRY_VOID(ksm_->ksm_madvise(vma, old_addr, old_addr + old_len, false, flags));
  VmArea* fresh = WEIR_TRY(copy_vma(mm, vma, old_addr, new_addr, new_len));
  if (const Result<void> moved = memory_.move_page_tables(vma, old_addr, *fresh, new_addr, old_len); !moved) {
    (void)do_munmap(mm, new_addr, new_len);
    return moved.error();
  }
  // Locked pages stay locked on their way.
  const bool locked = (vma.vm_flags & VM_LOCKED) != 0;
  if (locked) {
    vma.vm_flags &= ~VM_LOCKED;
    mm.locked_vm -= static_cast<int64_t>(vma.pages());
  }
  const VirtAddr around_start = vma.vm_start;
  const VirtAddr around_end = vma.vm_end;
  const Result<void> unmapped = do_munmap(mm, old_addr, old_len);
  if (locked) {
    // What is left of the old mapping beside the moved part.
    for (VirtAddr at : {around_start, old_addr + old_len}) {
      VmArea* rest = vmas_.vma_lookup(mm, at);
      const bool is_rest =
          rest != nullptr && rest != fresh && rest->vm_start >= around_start && rest->vm_end <= around_end;
      if (!is_rest || (rest->vm_flags & VM_LOCKED) != 0) continue;
      rest->vm_flags |= VM_LOCKED;
      mm.locked_vm += static_cast<int64_t>(rest->pages());
    }
  }
  if (!unmapped) return unmapped.error();
  merge_with_neighbours(mm, *fresh);
  return new_addr;
}

}  // namespace weir
