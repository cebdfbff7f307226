// src/mm/rmap_4_14.cpp: chains, and one walk with callbacks. See rmap.hpp. Linux: mm/rmap.c 4.14.
#include <new>

#include "mm/rmap_chains.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "rmap.cpp"

namespace weir {

namespace {

/// How a walk over a page's mappings goes. Linux: struct rmap_walk_control.
struct RmapWalkControl {
  void* arg = nullptr;
  /// False ends the walk.
  bool (*rmap_one)(Page& page, VmArea& vma, VirtAddr address, void* arg) = nullptr;
  /// True ends the walk: asked after each mapping.
  bool (*done)(Page& page) = nullptr;
  /// True skips the VMA.
  bool (*invalid_vma)(VmArea& vma, void* arg) = nullptr;
};

class Rmap_4_14 final : public RmapChains {
 public:
  explicit Rmap_4_14(Rmap& rmap) : RmapChains(rmap, Reuse::yes) {}

  void page_referenced(Page& page, RmapWalk& walk) override {
    Callback callback{*this, walk};
    RmapWalkControl control{.arg = &callback, .rmap_one = page_referenced_one};
    rmap_walk(page, control);
  }
  void try_to_unmap(Page& page, RmapWalk& walk) override {
    Callback callback{*this, walk};
    RmapWalkControl control{.arg = &callback, .rmap_one = try_to_unmap_one, .done = page_mapcount_is_zero};
    rmap_walk(page, control);
  }
  void page_mkclean(Page& page, RmapWalk& walk) override {
    Callback callback{*this, walk};
    RmapWalkControl control{.arg = &callback, .rmap_one = page_mkclean_one, .invalid_vma = invalid_mkclean_vma};
    rmap_walk(page, control);
  }
  void try_to_munlock(Page& page, RmapWalk& walk) override {
    Callback callback{*this, walk};
    RmapWalkControl control{.arg = &callback, .rmap_one = try_to_munlock_one};
    rmap_walk(page, control);
  }
  [[nodiscard]] Pte swap_pte(SwpEntry entry, Pte was) const override {
    const Pte pte = swp_entry_to_pte(entry);
    return pte_soft_dirty(was) ? pte_swp_mksoft_dirty(pte) : pte;
  }
  void page_remove_file_rmap(Page& page) override {
    WEIR_FLOW(pfn(page));
    remove_file_rmap(page);
  }

 private:
  struct Callback {
    Rmap_4_14& era;
    RmapWalk& walk;
  };

  void rmap_walk(Page& page, RmapWalkControl& control) {
    WEIR_FLOW(pfn(page));
    if (PageKsm(page))
      rmap_walk_ksm(page, control);
    else if (recorded::PageAnon(page))
      rmap_walk_anon(page, control);
    else
      rmap_walk_file(page, control);
  }

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "ksm.cpp"
  void rmap_walk_ksm(Page& page, RmapWalkControl& control) {
    WEIR_FLOW(pfn(page));
    struct Step {
      Page& page;
      RmapWalkControl& control;
    } step{page, control};
    ksm()->for_each_ksm_mapping(
        page,
        [](VmArea& vma, VirtAddr address, void* arg) {
          auto [p, c] = *static_cast<Step*>(arg);
          if (c.invalid_vma != nullptr && c.invalid_vma(vma, c.arg)) return true;
          return c.rmap_one(p, vma, address, c.arg) && (c.done == nullptr || !c.done(p));
        },
        &step);
  }
#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "rmap.cpp"

  void rmap_walk_anon(Page& page, RmapWalkControl& control) {
    WEIR_FLOW(pfn(page));
    AnonVma* anon_vma = page_lock_anon_vma_read(page);
    if (anon_vma == nullptr) return;
    const uint64_t pgoff = recorded::page_to_pgoff(page);
    for (AnonVmaChain* c = anon_vma->rb_root.iter_first(pgoff, pgoff); c != nullptr;
         c = anon_vma->rb_root.iter_next(c, pgoff, pgoff)) {
      VmArea& vma = *c->vma;
      const VirtAddr address = Rmap::vma_address(page, vma);
      if (control.invalid_vma != nullptr && control.invalid_vma(vma, control.arg)) continue;
      if (!control.rmap_one(page, vma, address, control.arg)) break;
      if (control.done != nullptr && control.done(page)) break;
    }
    page_unlock_anon_vma_read(*anon_vma);
  }

  void rmap_walk_file(Page& page, RmapWalkControl& control) {
    WEIR_FLOW(pfn(page));
    AddressSpace* mapping = recorded::page_mapping(page);
    if (mapping == nullptr) return;
    const uint64_t pgoff = recorded::page_to_pgoff(page);
    ScopedRead guard(mapping->i_mmap_rwsem);
    for (VmArea* vma = recorded::vma_interval_tree_iter_first(mapping->i_mmap, pgoff, pgoff); vma != nullptr;
         vma = recorded::vma_interval_tree_iter_next(mapping->i_mmap, vma, pgoff, pgoff)) {
      const VirtAddr address = Rmap::vma_address(page, *vma);
      if (control.invalid_vma != nullptr && control.invalid_vma(*vma, control.arg)) continue;
      if (!control.rmap_one(page, *vma, address, control.arg)) break;
      if (control.done != nullptr && control.done(page)) break;
    }
  }

  /// The PTE of the VMA that maps the page, locked; empty if there is none.
  PteLock page_vma_mapped_walk(Page& page, VmArea& vma, VirtAddr address) {
    WEIR_FLOW(pfn(page), address);
    return pte_of(page, vma, address);
  }

  static bool page_referenced_one(Page& page, VmArea& vma, VirtAddr address, void* arg) {
    WEIR_FLOW(address);
    auto [era, walk] = *static_cast<Callback*>(arg);
    era.room_to_age(walk);
    PteLock pte = era.page_vma_mapped_walk(page, vma, address);
    return !pte || era.referenced_pte(page, vma, address, std::move(pte), walk);
  }

  /// Whether the flush may wait for the end of the batch. Linux asks if other CPUs must be interrupted; here it always
  /// may: nothing looks at the page before the batch is flushed.
  static bool should_defer_flush(const Mm& mm) {
    WEIR_FLOW(mm);
    return true;
  }

  static bool page_mapcount_is_zero(Page& page) {
    WEIR_FLOW(page.index);
    return recorded::total_mapcount(page) == 0;
  }

  static bool try_to_unmap_one(Page& page, VmArea& vma, VirtAddr address, void* arg) {
    WEIR_FLOW(address);
    auto [era, walk] = *static_cast<Callback*>(arg);
    era.room_to_flush(walk);
    PteLock pte = era.page_vma_mapped_walk(page, vma, address);
    if (!pte) return true;
    if ((vma.vm_flags & VM_LOCKED) != 0) {
      era.lru().mlock_vma_page(page);
      return false;
    }
    [[maybe_unused]] const bool deferred = should_defer_flush(*vma.vm_mm);
    WEIR_DEBUG_BUG_ON(!deferred);
    return era.unmap_pte(page, vma, address, std::move(pte), walk);
  }

  static bool try_to_munlock_one(Page& page, VmArea& vma, VirtAddr address, void* arg) {
    Rmap_4_14& era = static_cast<Callback*>(arg)->era;
    if ((vma.vm_flags & VM_LOCKED) == 0) return true;
    const PteLock pte = era.page_vma_mapped_walk(page, vma, address);
    return !pte || era.munlock_pte(page, vma);
  }

  /// A private mapping's dirty bit is about the task's own copy, never about the file.
  static bool invalid_mkclean_vma(VmArea& vma, void*) { return (vma.vm_flags & VM_SHARED) == 0; }

  static bool page_mkclean_one(Page& page, VmArea& vma, VirtAddr address, void* arg) {
    WEIR_FLOW(address);
    auto [era, walk] = *static_cast<Callback*>(arg);
    era.room_to_flush(walk);
    if (PteLock pte = era.page_vma_mapped_walk(page, vma, address))
      era.mkclean_pte(page, vma, address, std::move(pte), walk);
    return true;
  }
};
static_assert(sizeof(Rmap_4_14) <= Rmap::ERA_BYTES);

}  // namespace

RmapEra* rmap_4_14(void* place, Rmap& rmap) { return ::new (place) Rmap_4_14(rmap); }

}  // namespace weir
