// src/mm/mmap.cpp: mmap, munmap, brk; VMAs merged and split. See mmap.hpp
#include "mm/mmap.hpp"

namespace weir {

namespace {

/// May pages of one hang on the other's anon_vma? If only one has any, it must never have been forked: the merged VMA
/// would drag the other part into all of the family's walks.
bool is_mergeable_anon_vma(const AnonVma* a, const AnonVmaChain* a_chains, const AnonVma* b,
                           const AnonVmaChain* b_chains) {
  if (a != nullptr && b != nullptr) return a == b;
  const AnonVmaChain* chains = a != nullptr ? a_chains : b_chains;
  return chains == nullptr || chains->next_of_vma == nullptr;
}

}  // namespace

AddressSpaces::AddressSpaces(Memory& memory, Fault& fault, Vmas& vmas, Rmap& rmap, PageTables& tables, SwapFiles& swap,
                             Slab& slab, VmStat& vmstat, Mmu& mmu, const Profile& profile)
    : memory_(memory),
      fault_(fault),
      vmas_(vmas),
      rmap_(rmap),
      tables_(tables),
      swap_(swap),
      slab_(slab),
      vmstat_(vmstat),
      mmu_(mmu),
      profile_(profile),
      mlock_era_(mlock_era_of(profile.era)) {}

// ---- Merging --------------------------------------------------------------------------------------------------------

Result<void> AddressSpaces::vma_grow(Mm& mm, VmArea& vma, VirtAddr start, VirtAddr end, VmArea* eaten) {
  if (eaten != nullptr && eaten->anon_vma != nullptr && vma.anon_vma == nullptr)
    WEIR_TRY_VOID(rmap_.anon_vma_clone(vma, *eaten));
  const VirtAddr old_start = vma.vm_start;
  const VirtAddr old_end = vma.vm_end;
  const bool whole = eaten != nullptr && eaten->vm_start >= start && eaten->vm_end <= end;
  {
    VmaUpdate update(rmap_, vma, eaten);
    if (whole) {
      vmas_.remove(mm, *eaten);
      update.other_leaves();
    } else if (eaten != nullptr && eaten->vm_start < end && eaten->vm_start >= old_end) {
      eaten->vm_pgoff += (end - eaten->vm_start) >> PAGE_SHIFT;
      vmas_.resize(mm, *eaten, end, eaten->vm_end);
    } else if (eaten != nullptr && eaten->vm_end > start && eaten->vm_end <= old_start) {
      vmas_.resize(mm, *eaten, eaten->vm_start, start);
    }
    if (eaten != nullptr) vma.vm_flags |= eaten->vm_flags & VM_SOFTDIRTY;
    vma.vm_pgoff -= (old_start - start) >> PAGE_SHIFT;
    vmas_.resize(mm, vma, start, end);
  }
  WEIR_STATE(vma_extend, start, old_end, end);
  if (whole) {
    rmap_.anon_vma_merge(vma, *eaten);
    remove_vma(*eaten);
  }
  return {};
}

VmArea* AddressSpaces::vma_merge(Mm& mm, const Wanted& wanted, VmArea* area) {
  WEIR_FLOW(wanted.start, wanted.end);
  if ((wanted.flags & VM_SPECIAL) != 0) return nullptr;
  const uint64_t pages = (wanted.end - wanted.start) >> PAGE_SHIFT;
  const AnonVmaChain* chains = area != nullptr ? area->chains : nullptr;
  const auto alike = [&](const VmArea& v) {
    return ((v.vm_flags ^ wanted.flags) & ~VM_SOFTDIRTY) == 0 && v.vm_file == wanted.file && v.vm_ops == wanted.ops &&
           is_mergeable_anon_vma(wanted.anon_vma, chains, v.anon_vma, v.chains);
  };
  // Neighbours: other VMAs that touch. Where `area` goes on beyond [start, end) there is none on that side.
  VmArea* left = area == nullptr || area->vm_start == wanted.start ? vmas_.find_vma_prev(mm, wanted.start) : nullptr;
  if (left != nullptr &&
      (left->vm_end != wanted.start || !alike(*left) || left->vm_pgoff + left->pages() != wanted.pgoff))
    left = nullptr;
  VmArea* right = area == nullptr || area->vm_end == wanted.end ? vmas_.vma_lookup(mm, wanted.end) : nullptr;
  if (right != nullptr && (right->vm_start != wanted.end || !alike(*right) || right->vm_pgoff != wanted.pgoff + pages))
    right = nullptr;
  if (left != nullptr && right != nullptr &&
      !is_mergeable_anon_vma(left->anon_vma, left->chains, right->anon_vma, right->chains))
    right = nullptr;

  // What is new in any part of a mapping is new in all of it.
  for (VmArea* v : {left, right})
    if (v != nullptr) v->vm_flags |= wanted.flags & VM_SOFTDIRTY;
  if (left != nullptr) {
    VmArea* first = area != nullptr ? area : right;
    const VirtAddr end = area != nullptr || right == nullptr ? wanted.end : right->vm_end;
    if (!vma_grow(mm, *left, left->vm_start, end, first)) return nullptr;
    // With an area between them there is one more to eat. If that fails, half of the merge still stands.
    if (area != nullptr && right != nullptr) (void)vma_grow(mm, *left, left->vm_start, right->vm_end, right);
    return left;
  }
  if (right != nullptr) return vma_grow(mm, *right, wanted.start, right->vm_end, area) ? right : nullptr;
  return nullptr;
}

void AddressSpaces::merge_with_neighbours(Mm& mm, VmArea& vma) {
  const Wanted as_it_is{.start = vma.vm_start,
                        .end = vma.vm_end,
                        .flags = vma.vm_flags,
                        .anon_vma = vma.anon_vma,
                        .file = vma.vm_file,
                        .ops = vma.vm_ops,
                        .pgoff = vma.vm_pgoff};
  (void)vma_merge(mm, as_it_is, &vma);
}

// ---- Splitting ------------------------------------------------------------------------------------------------------

Result<VmArea*> AddressSpaces::__split_vma(Mm& mm, VmArea& vma, VirtAddr address, NewOne which) {
  WEIR_FLOW(vma.vm_start, address, vma.vm_end);
  VmArea* fresh = vmas_.vm_area_dup(vma, GFP_KERNEL);
  if (fresh == nullptr) return Errno::nomem;
  if (const Result<void> linked = rmap_.anon_vma_clone(*fresh, vma); !linked) {
    vmas_.free(*fresh);
    return linked.error();
  }
  if (fresh->vm_file != nullptr) get_file(*fresh->vm_file);
  const uint64_t below = (address - vma.vm_start) >> PAGE_SHIFT;
  {
    VmaUpdate update(rmap_, vma, fresh);
    if (which == NewOne::below) {
      fresh->vm_end = address;
      vma.vm_pgoff += below;
      vmas_.resize(mm, vma, address, vma.vm_end);
    } else {
      fresh->vm_start = address;
      fresh->vm_pgoff += below;
      vmas_.resize(mm, vma, vma.vm_start, address);
    }
    vmas_.insert(mm, *fresh);
  }
  return fresh;
}

Result<VmArea*> AddressSpaces::split_vma(Mm& mm, VmArea& vma, VirtAddr address, NewOne which) {
  if (mm.map_count >= sysctl_max_map_count) return Errno::nomem;
  return __split_vma(mm, vma, address, which);
}

Result<VmArea*> AddressSpaces::change_flags(Mm& mm, VmArea& vma, VirtAddr start, VirtAddr end, uint64_t flags) {
  if (vma.vm_flags == flags) return &vma;
  const Wanted wanted{.start = start,
                      .end = end,
                      .flags = flags,
                      .anon_vma = vma.anon_vma,
                      .file = vma.vm_file,
                      .ops = vma.vm_ops,
                      .pgoff = linear_page_index(vma, start)};
  if (VmArea* merged = vma_merge(mm, wanted, &vma)) return merged;
  if (start != vma.vm_start) WEIR_TRY(split_vma(mm, vma, start, NewOne::below));
  if (end != vma.vm_end) WEIR_TRY(split_vma(mm, vma, end, NewOne::above));
  const auto pages = static_cast<int64_t>(vma.pages());
  if ((vma.vm_flags & VM_LOCKED) != 0) mm.locked_vm -= pages;
  if ((flags & VM_LOCKED) != 0) mm.locked_vm += pages;
  vma.vm_flags = flags;
  return &vma;
}

// ---- mmap -----------------------------------------------------------------------------------------------------------

Result<VmArea*> AddressSpaces::new_vma(Mm& mm, const Wanted& wanted) {
  VmArea* vma = vmas_.alloc(GFP_KERNEL);
  if (vma == nullptr) return Errno::nomem;
  vma->vm_start = wanted.start;
  vma->vm_end = wanted.end;
  vma->vm_flags = wanted.flags;
  vma->vm_pgoff = wanted.pgoff;
  vma->vm_file = wanted.file;
  vma->vm_ops = wanted.ops;
  if (wanted.file != nullptr) {
    get_file(*wanted.file);
    WEIR_TRY_VOID(call_mmap(mm, *vma));
    if ((vma->vm_flags & VM_SPECIAL) != 0) vma->vm_flags &= ~VM_LOCKED_CLEAR;
  }
  vmas_.insert(mm, *vma);
  rmap_.vma_link_file(*vma);
  WEIR_STATE(vma_create, wanted.start, 0, wanted.end);
  return vma;
}

/// The file learns of a mapping that nobody can see yet. If it refuses, the mapping is gone.
Result<void> AddressSpaces::call_mmap(Mm& mm, VmArea& vma) {
  vma.vm_mm = &mm;
  const Result<void> mapped = vma.vm_file->f_op->mmap(*vma.vm_file, vma);
  if (mapped) return {};
  VmaList only;
  only.push_back(vma);
  memory_.unmap_vmas(mm, only);
  free_tables(mm, vma.vm_start, vma.vm_end);
  only.clear();
  remove_vma(vma);
  return mapped;
}

Result<VirtAddr> AddressSpaces::mmap(Mm& mm, const MmapRequest& request) {
  WEIR_FLOW(request.addr, request.length);
  WEIR_STATE(user_request, request.addr, request.file != nullptr ? 3 : 0, request.length);
  bool locked = false;
  Result<VirtAddr> at = [&]() -> Result<VirtAddr> {
    ScopedWrite guard(mm.mmap_sem);
    locked = locked_at_once(mm.def_flags | request.extra_flags);
    return do_mmap(mm, request);
  }();
  if (at && locked) mm_populate(mm, *at, *at + page_align_up(request.length));
  return at;
}

Result<VirtAddr> AddressSpaces::do_mmap(Mm& mm, const MmapRequest& request) {
  WEIR_FLOW(request.addr, request.length);
  if (request.length == 0) return Errno::inval;
  const uint64_t length = page_align_up(request.length);
  if (length == 0 || length > mm.task_size.v) return Errno::nomem;
  if (request.pgoff + (length >> PAGE_SHIFT) < request.pgoff) return Errno::overflow;
  if (mm.map_count > sysctl_max_map_count) return Errno::nomem;
  const bool shared = request.sharing == MmapRequest::Sharing::shared;
  if (request.file != nullptr ? request.file->f_vm_ops == nullptr : shared && shmem_ == nullptr) return Errno::nodev;
  const Mmu::Caps& caps = mmu_.caps();
  if (shared && !caps.has_alias && (request.file == nullptr || !caps.maps_files)) return Errno::nosys;

  uint64_t flags = (request.prot & VM_ACCESS_FLAGS) | VM_MAY_FLAGS | VM_SOFTDIRTY | request.extra_flags | mm.def_flags;
  if (shared) flags |= VM_SHARED | VM_MAYSHARE;
  VirtAddr start = request.addr;
  if (request.place == MmapRequest::Place::fixed) {
    if ((start.v & ~PAGE_MASK) != 0) return Errno::inval;
    if (start < MMAP_MIN_ADDR) return Errno::perm;
    if (start.v > mm.task_size.v - length) return Errno::nomem;
  } else {
    start = WEIR_TRY(vmas_.get_unmapped_area(mm, start, length));
  }
  if (request.file != nullptr || !shared) return mmap_region(mm, start, length, flags, request.file, request.pgoff);
  // Shared without a file: one that has no name, and that the mapping keeps.
  File* file = WEIR_TRY(shmem_->shmem_zero_setup(Bytes(length)));
  Result<VirtAddr> mapped = mmap_region(mm, start, length, flags, file, 0);
  fput(*file);
  return mapped;
}

Result<VirtAddr> AddressSpaces::mmap_region(Mm& mm, VirtAddr start, uint64_t length, uint64_t flags, File* file,
                                            uint64_t pgoff) {
  WEIR_FLOW(start, length, flags);
  if (vmas_.find_vma_intersection(mm, start, start + length) != nullptr) WEIR_TRY_VOID(do_munmap(mm, start, length));
  const Wanted wanted{.start = start,
                      .end = start + length,
                      .flags = flags,
                      .anon_vma = nullptr,
                      .file = file,
                      .ops = file != nullptr ? file->f_vm_ops : nullptr,
                      // So that neighbours continue each other, and a page's index says its address.
                      .pgoff = file != nullptr ? pgoff : start.v >> PAGE_SHIFT};
  if (vma_merge(mm, wanted, nullptr) == nullptr) WEIR_TRY(new_vma(mm, wanted));
  return start;
}

// ---- munmap ---------------------------------------------------------------------------------------------------------

Result<void> AddressSpaces::munmap(Mm& mm, VirtAddr start, uint64_t length) {
  WEIR_FLOW(start, length);
  ScopedWrite guard(mm.mmap_sem);
  return do_munmap(mm, start, length);
}

Result<void> AddressSpaces::do_munmap(Mm& mm, VirtAddr start, uint64_t length) {
  WEIR_FLOW(start, length);
  if ((start.v & ~PAGE_MASK) != 0 || start > mm.task_size || length > mm.task_size - start) return Errno::inval;
  length = page_align_up(length);
  if (length == 0) return Errno::inval;
  const VirtAddr end = start + length;
  VmArea* vma = vmas_.find_vma_intersection(mm, start, end);
  if (vma == nullptr) return {};

  if (start > vma->vm_start) {
    // A hole in one VMA makes two of it; the limit is looked at before anything is changed.
    if (end < vma->vm_end && mm.map_count >= sysctl_max_map_count) return Errno::nomem;
    vma = WEIR_TRY(__split_vma(mm, *vma, start, NewOne::above));
  }
  if (VmArea* last = vmas_.vma_lookup(mm, end); last != nullptr && last->vm_start < end) {
    VmArea* leaving = WEIR_TRY(__split_vma(mm, *last, end, NewOne::below));
    if (last == vma) vma = leaving;
  }

  VmaList list;
  while (vma != nullptr && vma->vm_start < end) {
    VmArea* next = vmas_.next(mm, *vma);
    WEIR_STATE(vma_remove, vma->vm_start, vma->vm_end, 0);
    vmas_.remove(mm, *vma);
    munlock_vma_pages_all(*vma);
    list.push_back(*vma);
    vma = next;
  }
  unmap_region(mm, list, start, end);
  while (!list.empty()) {
    VmArea& gone = list.front();
    list.pop_front();
    remove_vma(gone);
  }
  return {};
}

/// The VMAs have left the tree: their pages, their places in reverse maps, and tables that nobody else needs go.
void AddressSpaces::unmap_region(Mm& mm, VmaList& list, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(start, end);
  memory_.unmap_vmas(mm, list);
  for (VmArea& vma : list) {
    rmap_.unlink_anon_vmas(vma);
    rmap_.vma_unlink_file(vma);
  }
  free_tables(mm, start, end);
}

/// Those of a hole that no neighbour needs.
void AddressSpaces::free_tables(Mm& mm, VirtAddr start, VirtAddr end) {
  const VmArea* below = vmas_.find_vma_prev(mm, start);
  const VmArea* above = vmas_.find_vma(mm, end);
  tables_.free_pgtables(mm, start, end, below != nullptr ? below->vm_end : VirtAddr(0),
                        above != nullptr ? above->vm_start : USER_PGTABLES_CEILING);
}

void AddressSpaces::remove_vma(VmArea& vma) {
  if (vma.vm_file != nullptr) fput(*vma.vm_file);
  vmas_.free(vma);
}

// ---- brk ------------------------------------------------------------------------------------------------------------

VirtAddr AddressSpaces::brk(Mm& mm, VirtAddr brk) {
  WEIR_FLOW(brk);
  WEIR_STATE(user_request, brk, 1, brk > mm.brk ? brk - mm.brk : 0);
  const VirtAddr new_end{page_align_up(brk.v)};
  VirtAddr old_end;
  bool moved = true, locked = false;
  {
    ScopedWrite guard(mm.mmap_sem);
    if (brk < mm.start_brk || brk >= mm.task_size) return mm.brk;
    old_end = VirtAddr(page_align_up(mm.brk.v));
    if (new_end < old_end) {
      moved = do_munmap(mm, new_end, old_end - new_end).ok();
    } else if (new_end > old_end) {
      // One page stays free above the heap: what overruns it faults.
      moved = vmas_.find_vma_intersection(mm, old_end, new_end + PAGE_SIZE) == nullptr &&
              do_brk_flags(mm, old_end, new_end - old_end).ok();
    }
    if (!moved) return mm.brk;
    mm.brk = brk;
    locked = locked_at_once(mm.def_flags);
  }
  if (locked && new_end > old_end) mm_populate(mm, old_end, new_end);
  return brk;
}

Result<void> AddressSpaces::do_brk_flags(Mm& mm, VirtAddr start, uint64_t length) {
  WEIR_FLOW(start, length);
  if (mm.map_count > sysctl_max_map_count) return Errno::nomem;
  const Wanted wanted{.start = start,
                      .end = start + length,
                      .flags = VM_READ | VM_WRITE | VM_MAY_FLAGS | VM_SOFTDIRTY | mm.def_flags,
                      .anon_vma = nullptr,
                      .file = nullptr,
                      .ops = nullptr,
                      .pgoff = start.v >> PAGE_SHIFT};
  if (vma_merge(mm, wanted, nullptr) == nullptr) WEIR_TRY(new_vma(mm, wanted));
  return {};
}

// ---- The end

void AddressSpaces::exit_mmap(Mm& mm) {
  WEIR_FLOW(mm);
  if (has_listeners(mm)) mmu_notifier_release(mm);
  ScopedWrite guard(mm.mmap_sem);
  if (mm.locked_vm > 0) {
    mm.locked_vm = 0;
    for (VmArea& vma : mm.mmap) munlock_vma_pages_all(vma);
  }
  memory_.unmap_vmas(mm);
  for (VmArea& vma : mm.mmap) {
    rmap_.unlink_anon_vmas(vma);
    rmap_.vma_unlink_file(vma);
  }
  tables_.free_pgtables(mm, VirtAddr(0), USER_PGTABLES_CEILING, VirtAddr(0), USER_PGTABLES_CEILING);
  while (!mm.mmap.empty()) {
    VmArea& vma = *mm.mmap.begin();
    WEIR_STATE(vma_remove, vma.vm_start, vma.vm_end, 0);
    vmas_.remove(mm, vma);
    remove_vma(vma);
  }
  ksm_->ksm_exit(mm);
  // After its last swap entry: swapoff looks for entries in the Mms of this list.
  swap_.mmlist_remove(mm);
  // All there was to come back has come back.
  mm.oom_skip.store(true, std::memory_order_release);
}

}  // namespace weir
