// src/mm/rmap_3.cpp: chains, and a walk of its own for each question. See rmap.hpp. Linux: mm/rmap.c 3.7 to 3.10.
#include <new>

#include "mm/rmap_chains.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "rmap.cpp"

namespace weir {

namespace {

class Rmap_3 final : public RmapChains {
 public:
  explicit Rmap_3(Rmap& rmap) : RmapChains(rmap, Reuse::no) {}

  void page_referenced(Page& page, RmapWalk& walk) override {
    if (PageKsm(page))
      page_referenced_ksm(page, walk);
    else if (recorded::PageAnon(page))
      page_referenced_anon(page, walk);
    else
      page_referenced_file(page, walk);
  }
  void try_to_unmap(Page& page, RmapWalk& walk) override {
    if (PageKsm(page))
      try_to_unmap_ksm(page, walk);
    else if (recorded::PageAnon(page))
      try_to_unmap_anon(page, walk);
    else
      try_to_unmap_file(page, walk);
  }
  void page_mkclean(Page& page, RmapWalk& walk) override { page_mkclean_file(page, walk); }
  void try_to_munlock(Page& page, RmapWalk&) override {
    const auto look = [&](VmArea& vma, VirtAddr at) {
      return !page_check_address(page, vma, at) || munlock_pte(page, vma);
    };
    if (PageKsm(page))
      for_each_merged(page, look);
    else if (recorded::PageAnon(page))
      for_each_anon(page, look);
    else
      for_each_file(page, look);
  }

 private:
  /// fn(vma, address) for each mapping of an anonymous page; false ends it.
  template <class Fn>
  void for_each_anon(Page& page, Fn fn) {
    AnonVma* anon_vma = page_lock_anon_vma_read(page);
    if (anon_vma == nullptr) return;
    const uint64_t pgoff = page.index;
    for (AnonVmaChain* c = anon_vma->rb_root.iter_first(pgoff, pgoff); c != nullptr;
         c = anon_vma->rb_root.iter_next(c, pgoff, pgoff))
      if (!fn(*c->vma, Rmap::vma_address(page, *c->vma))) break;
    page_unlock_anon_vma_read(*anon_vma);
  }
  template <class Fn>
  void for_each_file(Page& page, Fn fn) {
    AddressSpace* mapping = Filemap::file_mapping(page);
    if (mapping == nullptr) return;
    const uint64_t pgoff = page.index;
    ScopedRead guard(mapping->i_mmap_rwsem);
    for (VmArea* vma = recorded::vma_interval_tree_iter_first(mapping->i_mmap, pgoff, pgoff); vma != nullptr;
         vma = recorded::vma_interval_tree_iter_next(mapping->i_mmap, vma, pgoff, pgoff))
      if (!fn(*vma, Rmap::vma_address(page, *vma))) break;
  }

  template <class Fn>
  void for_each_merged(Page& page, Fn fn) {
    ksm()->for_each_ksm_mapping(
        page, [](VmArea& vma, VirtAddr address, void* arg) { return (*static_cast<Fn*>(arg))(vma, address); }, &fn);
  }

  PteLock page_check_address(Page& page, VmArea& vma, VirtAddr address) {
    WEIR_FLOW(pfn(page), address);
    return pte_of(page, vma, address);
  }

  bool page_referenced_one(Page& page, VmArea& vma, VirtAddr address, RmapWalk& walk) {
    WEIR_FLOW(address);
    room_to_age(walk);
    PteLock pte = page_check_address(page, vma, address);
    return !pte || referenced_pte(page, vma, address, std::move(pte), walk);
  }
  void page_referenced_anon(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    for_each_anon(page, [&](VmArea& vma, VirtAddr at) { return page_referenced_one(page, vma, at, walk); });
  }
  void page_referenced_file(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    for_each_file(page, [&](VmArea& vma, VirtAddr at) { return page_referenced_one(page, vma, at, walk); });
  }

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "ksm.cpp"
  void page_referenced_ksm(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    for_each_merged(page, [&](VmArea& vma, VirtAddr at) { return page_referenced_one(page, vma, at, walk); });
  }
  void try_to_unmap_ksm(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    for_each_merged(page, [&](VmArea& vma, VirtAddr at) { return try_to_unmap_one(page, vma, at, walk); });
  }
#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "rmap.cpp"

  bool try_to_unmap_one(Page& page, VmArea& vma, VirtAddr address, RmapWalk& walk) {
    WEIR_FLOW(address);
    room_to_flush(walk);
    PteLock pte = page_check_address(page, vma, address);
    if (!pte) return true;
    if ((vma.vm_flags & VM_LOCKED) != 0) {
      lru().mlock_vma_page(page);
      return false;
    }
    return unmap_pte(page, vma, address, std::move(pte), walk) && page_mapped(page);
  }
  void try_to_unmap_anon(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    for_each_anon(page, [&](VmArea& vma, VirtAddr at) { return try_to_unmap_one(page, vma, at, walk); });
  }
  void try_to_unmap_file(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    for_each_file(page, [&](VmArea& vma, VirtAddr at) { return try_to_unmap_one(page, vma, at, walk); });
    AddressSpace* mapping = Filemap::file_mapping(page);
    if (mapping == nullptr || !page_mapped(page)) return;
    ScopedRead guard(mapping->i_mmap_rwsem);
    unmap_nonlinear(page, *mapping);
  }

  bool page_mkclean_one(Page& page, VmArea& vma, VirtAddr address, RmapWalk& walk) {
    WEIR_FLOW(address);
    room_to_flush(walk);
    if (PteLock pte = page_check_address(page, vma, address)) mkclean_pte(page, vma, address, std::move(pte), walk);
    return true;
  }
  void page_mkclean_file(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    for_each_file(page, [&](VmArea& vma, VirtAddr at) {
      return (vma.vm_flags & VM_SHARED) == 0 || page_mkclean_one(page, vma, at, walk);
    });
  }
};
static_assert(sizeof(Rmap_3) <= Rmap::ERA_BYTES);

}  // namespace

RmapEra* rmap_3(void* place, Rmap& rmap) { return ::new (place) Rmap_3(rmap); }

}  // namespace weir
