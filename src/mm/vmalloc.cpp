// src/mm/vmalloc.cpp: see vmalloc.hpp
#include "mm/vmalloc.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace weir {

namespace {
/// A kernel page: users have no right to it.
constexpr Pte kernel_pte(Pfn pfn) {
  return Pte{(pfn.v << PAGE_SHIFT) | _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY};
}
}  // namespace

Vmalloc::Vmalloc(PageAllocator& pages, Slab& slab, PageTables& tables, VmStat&)
    : pages_(pages), slab_(slab), tables_(tables) {}

void Vmalloc::init() {
  Result<KmemCache*> cache = slab_.kmem_cache_create("vmap_area", sizeof(VmapArea), {});
  WEIR_BUG_ON(!cache);
  area_cache_ = *cache;
}

PageCount Vmalloc::lazy_max_pages() {
  // More CPUs make a flush dearer, and free more between two of them; not in proportion.
  const unsigned cpus = engine_thread().world != nullptr ? world().nr_cpus() : 1;
  return pages_in(32_MiB) * std::bit_width(cpus);
}

// ---- Allocation -----------------------------------------------------------------------------------------------------

Result<VirtAddr> Vmalloc::vmalloc(Bytes size) {
  WEIR_FLOW(size);
  return __vmalloc_node_flags(size, GFP_KERNEL);
}

Result<VirtAddr> Vmalloc::vzalloc(Bytes size) {
  WEIR_FLOW(size);
  return __vmalloc_node_flags(size, GFP_KERNEL | __GFP_ZERO);
}

Result<VirtAddr> Vmalloc::__vmalloc_node_flags(Bytes size, gfp_t gfp) {
  WEIR_FLOW(size, gfp);
  if (size.v == 0) return Errno::inval;
  // More than there is can never be had; asking for it page by page would only kill somebody first.
  if (size.v > bytes_of(pages_.managed_pages()).v) return Errno::nomem;
  VmapArea* area = alloc_vmap_area(Bytes(page_align_up(size.v)));
  if (area == nullptr) return Errno::nomem;
  if (const Result<void> mapped = map_pages(*area, gfp | __GFP_NOWARN); !mapped) {
    unmap_pages(*area);
    free_vmap_area_noflush(*area);
    return mapped.error();
  }
  return area->va_start;
}

/// A free range of `size` bytes and a guard page behind. Null: no memory, or no addresses.
VmapArea* Vmalloc::alloc_vmap_area(Bytes size) {
  WEIR_FLOW(size);
  auto* area = slab_.create<VmapArea>(*area_cache_, GFP_KERNEL);
  if (area == nullptr) return nullptr;
  for (bool purged : {false, true}) {
    {
      ScopedLock guard(lock_);
      if (insert_vmap_area(*area, size.v + PAGE_SIZE)) {
        ++nr_live_;
        WEIR_STATE(vmalloc_area, area->va_start, 0, size);
        return area;
      }
    }
    if (!purged) purge_vmap_area_lazy();
  }
  slab_.destroy(*area_cache_, area);
  return nullptr;
}

/// First fit.
bool Vmalloc::insert_vmap_area(VmapArea& area, uint64_t bytes) {
  VirtAddr at = VMALLOC_START;
  for (const VmapArea& taken : areas_) {
    if (taken.va_start - at >= bytes) break;
    at = taken.va_end;
  }
  if (VMALLOC_END - at < bytes) return false;
  area.va_start = at;
  area.va_end = at + bytes;
  areas_.insert(area);
  return true;
}

Result<void> Vmalloc::map_pages(VmapArea& area, gfp_t gfp) {
  Mm& init_mm = tables_.init_mm();
  for (VirtAddr at = area.va_start; at < area.guard(); at = at + PAGE_SIZE) {
    Page* page = pages_.alloc_page(gfp);
    if (page == nullptr) return Errno::nomem;
    page->set(PageFlag::vmalloc);
    PteLock pte = tables_.pte_alloc_map_lock(init_mm, at);
    if (!pte) {
      page->clear(PageFlag::vmalloc);
      pages_.__free_pages(*page, Order(0));
      return Errno::nomem;
    }
    tables_.set_pte_at(init_mm, at, pte.get(), kernel_pte(pages_.mem().pfn(page)));
  }
  return {};
}

// ---- Freeing --------------------------------------------------------------------------------------------------------

/// PTEs are cleared and their pages freed, a handful at a time, so that no page is freed under a page-table lock.
void Vmalloc::unmap_pages(VmapArea& area) {
  Mm& init_mm = tables_.init_mm();
  for (VirtAddr at = area.va_start; at < area.guard();) {
    Page* gone[32];
    unsigned count = 0;
    {
      PteLock pte = tables_.pte_offset_map_lock(init_mm, at);
      if (!pte) return;  // set-up failed here: nothing was mapped from here on
      const VirtAddr stop = PageTables::pmd_addr_end(at, area.guard());
      for (Pte* p = pte.get(); at < stop && count < std::size(gone); at = at + PAGE_SIZE, ++p) {
        const Pte old = tables_.ptep_get_and_clear(init_mm, at, p);
        if (pte_present(old)) gone[count++] = &pages_.mem().page(pte_pfn(old));
      }
    }
    for (unsigned i = 0; i < count; ++i) {
      gone[i]->clear(PageFlag::vmalloc);
      pages_.__free_pages(*gone[i], Order(0));
    }
  }
}

void Vmalloc::vfree(VirtAddr start) {
  WEIR_FLOW(start);
  if (start.v == 0) return;
  VmapArea* area = nullptr;
  {
    ScopedLock guard(lock_);
    if (auto found = areas_.find(start); found != areas_.end() && found->live) {
      found->live = false;
      area = &*found;
    }
  }
  if (area == nullptr) bug("vfree: no area begins there", __FILE__, __LINE__);
  unmap_pages(*area);
  free_vmap_area_noflush(*area);
}

/// The area's addresses wait for the next purge.
void Vmalloc::free_vmap_area_noflush(VmapArea& area) {
  bool many;
  {
    ScopedLock guard(lock_);
    area.live = false;
    area.next_lazy = lazy_;
    lazy_ = &area;
    lazy_pages_ += pages_in(Bytes(area.va_end - area.va_start));
    --nr_live_;
    many = lazy_pages_ > lazy_max_pages();
  }
  if (many) purge_vmap_area_lazy();
}

void Vmalloc::purge_vmap_area_lazy() {
  WEIR_FLOW();
  VmapArea* gone;
  {
    ScopedLock guard(lock_);
    gone = lazy_;
    lazy_ = nullptr;
    lazy_pages_ = PageCount(0);
    for (VmapArea* area = gone; area != nullptr; area = area->next_lazy) areas_.erase(areas_.iterator_to(*area));
  }
  while (gone != nullptr) {
    VmapArea* next = gone->next_lazy;
    slab_.destroy(*area_cache_, gone);
    gone = next;
  }
}

// ---- Bytes ----------------------------------------------------------------------------------------------------------

Page* Vmalloc::vmalloc_to_page(VirtAddr address) {
  if (address < VMALLOC_START || address >= VMALLOC_END) return nullptr;
  const Pte* entry = tables_.walk(tables_.init_mm(), address);
  if (entry == nullptr) return nullptr;
  const Pte pte{__atomic_load_n(&entry->v, __ATOMIC_ACQUIRE)};
  return pte_present(pte) ? &pages_.mem().page(pte_pfn(pte)) : nullptr;
}

/// copy(place, n) for each piece of [at, at + bytes) that lies in one page.
template <class Copy>
Result<void> Vmalloc::for_bytes(VirtAddr at, size_t bytes, Copy copy) {
  while (bytes > 0) {
    Page* page = vmalloc_to_page(at);
    if (page == nullptr) return Errno::fault;
    const size_t offset = at.v % PAGE_SIZE;
    const size_t n = std::min<size_t>(bytes, PAGE_SIZE - offset);
    copy(pages_.mem().page_address(*page) + offset, n);
    at = at + n;
    bytes -= n;
  }
  return {};
}

Result<void> Vmalloc::vread(VirtAddr from, std::byte* to, size_t bytes) {
  return for_bytes(from, bytes, [&](const std::byte* place, size_t n) {
    std::memcpy(to, place, n);
    to += n;
  });
}

Result<void> Vmalloc::vwrite(VirtAddr to, const std::byte* from, size_t bytes) {
  return for_bytes(to, bytes, [&](std::byte* place, size_t n) {
    std::memcpy(place, from, n);
    from += n;
  });
}

unsigned Vmalloc::nr_areas() const {
  ScopedLock guard(lock_);
  return nr_live_;
}

}  // namespace weir
