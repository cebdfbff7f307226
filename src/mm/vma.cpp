// src/mm/vma.cpp
#include "mm/vma.hpp"

namespace weir {

Vmas::Vmas(Slab& slab) : slab_(slab) {}

Result<void> Vmas::init() {
  cache_ = WEIR_TRY(slab_.kmem_cache_create("vm_area_struct", sizeof(VmArea), {}));
  return {};
}

VmArea* Vmas::alloc(gfp_t gfp) { return slab_.create<VmArea>(*cache_, gfp); }

VmArea* Vmas::vm_area_dup(const VmArea& vma, gfp_t gfp) {
  VmArea* copy = alloc(gfp);
  if (copy == nullptr) return nullptr;
  copy->vm_start = vma.vm_start;
  copy->vm_end = vma.vm_end;
  copy->vm_mm = vma.vm_mm;
  copy->vm_flags = vma.vm_flags;
  copy->vm_pgoff = vma.vm_pgoff;
  copy->vm_file = vma.vm_file;
  copy->vm_ops = vma.vm_ops;
  return copy;
}

void Vmas::free(VmArea& vma) {
  WEIR_DEBUG_BUG_ON(vma.shared.linked() || vma.chains != nullptr);
  slab_.destroy(*cache_, &vma);
}

// ---- Finding --------------------------------------------------------------------------------------------------------

VmArea* Vmas::find_vma(Mm& mm, VirtAddr address) const {
  if (VmArea* cached = mm.vmacache.load(std::memory_order_acquire); cached != nullptr && cached->contains(address))
    return cached;
  auto above = mm.mmap.upper_bound(address);  // the first that starts above; the one before it may hold the address
  if (above != mm.mmap.begin()) {
    auto before = above;
    if ((--before)->contains(address)) {
      mm.vmacache.store(&*before, std::memory_order_release);
      return &*before;
    }
  }
  return above != mm.mmap.end() ? &*above : nullptr;
}

VmArea* Vmas::vma_lookup(Mm& mm, VirtAddr address) const {
  VmArea* vma = find_vma(mm, address);
  return vma != nullptr && vma->vm_start <= address ? vma : nullptr;
}

VmArea* Vmas::find_vma_intersection(Mm& mm, VirtAddr start, VirtAddr end) const {
  VmArea* vma = find_vma(mm, start);
  return vma != nullptr && vma->vm_start < end ? vma : nullptr;
}

VmArea* Vmas::find_vma_prev(Mm& mm, VirtAddr address) const {
  auto at = mm.mmap.lower_bound(address);
  return at != mm.mmap.begin() ? &*--at : nullptr;
}

VmArea* Vmas::next(Mm& mm, VmArea& vma) const {
  auto at = ++mm.mmap.iterator_to(vma);
  return at != mm.mmap.end() ? &*at : nullptr;
}

VmArea* Vmas::prev(Mm& mm, VmArea& vma) const {
  auto at = mm.mmap.iterator_to(vma);
  return at != mm.mmap.begin() ? &*--at : nullptr;
}

// ---- Linking --------------------------------------------------------------------------------------------------------

void Vmas::insert(Mm& mm, VmArea& vma) {
  vma.vm_mm = &mm;
  [[maybe_unused]] const bool fresh = mm.mmap.insert(vma).second;
  WEIR_DEBUG_BUG_ON(!fresh);
  ++mm.map_count;
  mm.total_vm += static_cast<int64_t>(vma.pages());
  if ((vma.vm_flags & VM_LOCKED) != 0) mm.locked_vm += static_cast<int64_t>(vma.pages());
}

void Vmas::remove(Mm& mm, VmArea& vma) {
  const VmArea* before = prev(mm, vma);
  const VmArea* behind = next(mm, vma);
  mm.mmap.erase(mm.mmap.iterator_to(vma));
  mm.vmacache.store(nullptr, std::memory_order_release);
  --mm.map_count;
  mm.total_vm -= static_cast<int64_t>(vma.pages());
  if ((vma.vm_flags & VM_LOCKED) != 0) mm.locked_vm -= static_cast<int64_t>(vma.pages());
  hole_made(mm, before != nullptr ? before->vm_end : MMAP_MIN_ADDR,
            behind != nullptr ? behind->vm_start : mm.task_size);
}

void Vmas::resize(Mm& mm, VmArea& vma, VirtAddr start, VirtAddr end) {
  const auto before = static_cast<int64_t>(vma.pages());
  vma.vm_start = start;
  vma.vm_end = end;
  const auto change = static_cast<int64_t>(vma.pages()) - before;
  mm.total_vm += change;
  if ((vma.vm_flags & VM_LOCKED) != 0) mm.locked_vm += change;
}

// ---- Placing --------------------------------------------------------------------------------------------------------

/// Keeps the promise of cached_hole_size. A hole that begins below free_area_cache belongs to what is searched anyway,
/// but the part above it could be missed: the search begins above it from now on.
void Vmas::hole_made(Mm& mm, VirtAddr start, VirtAddr end) const {
  if (end > mm.mmap_base) end = mm.mmap_base;
  if (end <= start || end <= mm.free_area_cache) return;
  if (start < mm.free_area_cache) {
    mm.free_area_cache = end;
  } else if (end - start > mm.cached_hole_size) {
    mm.cached_hole_size = end - start;
  }
}

Result<VirtAddr> Vmas::get_unmapped_area(Mm& mm, VirtAddr hint, uint64_t length) const {
  WEIR_FLOW(hint, length);
  if (length == 0 || length > mm.task_size.v) return Errno::nomem;
  hint = VirtAddr(page_align_up(hint.v));
  if (hint >= MMAP_MIN_ADDR && hint.v <= mm.task_size.v - length &&
      find_vma_intersection(mm, hint, hint + length) == nullptr)
    return hint;

  VirtAddr top = mm.mmap_base;
  uint64_t largest = 0;
  if (mm.free_area_cache.v != 0 && length > mm.cached_hole_size) {
    top = mm.free_area_cache;
    largest = mm.cached_hole_size;
  }
  // Downwards, hole by hole. `top` is the upper end of the hole that is looked at.
  auto at = mm.mmap.lower_bound(top);
  while (at != mm.mmap.begin()) {
    auto below = std::prev(at);
    const VirtAddr bottom = below->vm_end < top ? below->vm_end : top;
    if (top - bottom >= length) break;
    if (top - bottom > largest) largest = top - bottom;
    top = below->vm_start < top ? below->vm_start : top;
    at = below;
  }
  const VirtAddr floor = at != mm.mmap.begin() ? std::prev(at)->vm_end : MMAP_MIN_ADDR;
  if (top.v < floor.v || top - floor < length) return Errno::nomem;
  mm.free_area_cache = top;
  mm.cached_hole_size = largest;
  return top - length;
}

}  // namespace weir
