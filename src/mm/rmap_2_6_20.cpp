// src/mm/rmap_2_6_20.cpp: one AnonVma for a whole fork family. See rmap.hpp. Linux: mm/rmap.c 2.6.20.
#include <new>

#include "mm/rmap.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "rmap.cpp"

namespace weir {

namespace {

class Rmap_2_6_20 final : public RmapEra {
 public:
  using RmapEra::RmapEra;

  // ---- anchors: vma.anon_vma says whose list the VMA is on; each VMA on it holds a reference
  Result<void> anon_vma_prepare(VmArea& vma, VmArea* mergeable_neighbour) override {
    WEIR_FLOW(vma);
    Mm& mm = *vma.vm_mm;
    AnonVma* anon_vma = nullptr;
    if (mergeable_neighbour != nullptr) {
      ScopedLock guard(mm.page_table_lock);
      anon_vma = mergeable_neighbour->anon_vma;  // it stays while mmap_sem is held
    }
    AnonVma* fresh = nullptr;
    if (anon_vma == nullptr) {
      anon_vma = fresh = anon_vma_alloc();
      if (fresh == nullptr) return Errno::nomem;
    }
    {
      ScopedWrite family(anon_vma->rwsem);
      ScopedLock guard(mm.page_table_lock);
      if (vma.anon_vma == nullptr) {
        if (fresh == nullptr) anon_vma->refcount.fetch_add(1, std::memory_order_acq_rel);
        anon_vma->head.push_back(vma);
        vma.anon_vma = anon_vma;
        fresh = nullptr;
      }
    }
    if (fresh != nullptr) put_anon_vma(*fresh);
    return {};
  }

  Result<void> anon_vma_clone(VmArea& dst, VmArea& src) override {
    dst.anon_vma = src.anon_vma;
    anon_vma_link(dst);
    return {};
  }
  Result<void> anon_vma_fork(VmArea& dst, VmArea& src) override { return anon_vma_clone(dst, src); }
  void unlink_anon_vmas(VmArea& vma) override { anon_vma_unlink(vma); }
  void anon_vma_merge(VmArea& vma, VmArea& next) override {
    if (next.anon_vma != nullptr) __anon_vma_merge(vma, next);
  }

  // A list does not know ranges.
  void pre_update_vma(VmArea&) override {}
  void post_update_vma(VmArea&) override {}

  [[nodiscard]] AnonVma* anchor(const VmArea& vma, Exclusive) const override { return vma.anon_vma; }
  [[nodiscard]] bool linked(const VmArea& vma, const AnonVma* anon_vma) const override {
    return vma.anon_vma == anon_vma && anon_vma != nullptr;
  }
  void for_each_vma(AnonVma& anon_vma, uint64_t, uint64_t, bool (*fn)(VmArea&, void*), void* arg) const override {
    for (VmArea& vma : anon_vma.head)
      if (!fn(vma, arg)) return;
  }

  // ---- walks
  void page_referenced(Page& page, RmapWalk& walk) override {
    if (recorded::PageAnon(page))
      page_referenced_anon(page, walk);
    else
      page_referenced_file(page, walk);
  }
  void try_to_unmap(Page& page, RmapWalk& walk) override {
    if (recorded::PageAnon(page))
      try_to_unmap_anon(page, walk);
    else
      try_to_unmap_file(page, walk);
  }
  void page_mkclean(Page& page, RmapWalk& walk) override { page_mkclean_file(page, walk); }
  void try_to_munlock(Page&, RmapWalk&) override {}  // locked pages stay on the ordinary lists
  void changed(Mm&, VirtAddr) override {}            // nobody listens yet

 private:
  void anon_vma_link(VmArea& vma) {
    if (vma.anon_vma == nullptr) return;
    WEIR_FLOW(vma);
    ScopedWrite family(vma.anon_vma->rwsem);
    __anon_vma_link(vma);
  }
  void __anon_vma_link(VmArea& vma) {
    WEIR_FLOW(vma);
    vma.anon_vma->refcount.fetch_add(1, std::memory_order_acq_rel);
    vma.anon_vma->head.push_back(vma);
  }
  void anon_vma_unlink(VmArea& vma) {
    if (vma.anon_vma == nullptr) return;
    WEIR_FLOW(vma);
    leave(vma);
  }
  void __anon_vma_merge(VmArea& vma, VmArea& next) {
    WEIR_FLOW(vma, next);
    leave(next);
  }
  void leave(VmArea& vma) {
    AnonVma& anon_vma = *vma.anon_vma;
    {
      ScopedWrite family(anon_vma.rwsem);
      anon_vma.head.erase(AnonVmaHead::s_iterator_to(vma));
    }
    vma.anon_vma = nullptr;
    put_anon_vma(anon_vma);
  }

  AnonVma* page_lock_anon_vma(Page& page) {
    WEIR_FLOW(pfn(page));
    return lock_family_of(page);
  }
  PteLock page_check_address(Page& page, VmArea& vma, VirtAddr address) {
    WEIR_FLOW(pfn(page), address);
    return pte_of(page, vma, address);
  }

  bool page_referenced_one(Page& page, VmArea& vma, RmapWalk& walk) {
    WEIR_FLOW(vma);
    const VirtAddr address = Rmap::vma_address(page, vma);
    if (address == Rmap::NO_ADDRESS) return true;
    room_to_age(walk);
    PteLock pte = page_check_address(page, vma, address);
    return !pte || referenced_pte(page, vma, address, std::move(pte), walk);
  }
  void page_referenced_anon(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    AnonVma* anon_vma = page_lock_anon_vma(page);
    if (anon_vma == nullptr) return;
    for (VmArea& vma : anon_vma->head)
      if (!page_referenced_one(page, vma, walk)) break;
    unlock_family(*anon_vma);
  }
  void page_referenced_file(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    AddressSpace* mapping = Filemap::file_mapping(page);
    if (mapping == nullptr) return;
    ScopedRead guard(mapping->i_mmap_rwsem);
    for (VmArea* vma = mapping->i_mmap.iter_first(page.index, page.index); vma != nullptr;
         vma = mapping->i_mmap.iter_next(vma, page.index, page.index))
      if (!page_referenced_one(page, *vma, walk)) break;
  }

  bool try_to_unmap_one(Page& page, VmArea& vma, RmapWalk& walk) {
    WEIR_FLOW(vma);
    const VirtAddr address = Rmap::vma_address(page, vma);
    if (address == Rmap::NO_ADDRESS) return true;
    room_to_flush(walk);
    PteLock pte = page_check_address(page, vma, address);
    if (!pte) return true;
    // What was used since the last look stays, as what is locked. (Where hardware has no accessed bits a PTE that is
    // young only says that it is mapped.)
    if ((vma.vm_flags & VM_LOCKED) != 0 ||
        (mmu().caps().has_accessed && tables().ptep_test_and_clear_young(*vma.vm_mm, address, pte.get()))) {
      walk.failed = true;
      return false;
    }
    return unmap_pte(page, vma, address, std::move(pte), walk);
  }
  void try_to_unmap_anon(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    AnonVma* anon_vma = page_lock_anon_vma(page);
    if (anon_vma == nullptr) return;
    for (VmArea& vma : anon_vma->head)
      if (!try_to_unmap_one(page, vma, walk) || !page_mapped(page)) break;
    unlock_family(*anon_vma);
  }
  void try_to_unmap_file(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    AddressSpace* mapping = Filemap::file_mapping(page);
    if (mapping == nullptr) return;
    ScopedRead guard(mapping->i_mmap_rwsem);
    for (VmArea* vma = mapping->i_mmap.iter_first(page.index, page.index); vma != nullptr;
         vma = mapping->i_mmap.iter_next(vma, page.index, page.index))
      if (!try_to_unmap_one(page, *vma, walk) || !page_mapped(page)) return;
    unmap_nonlinear(page, *mapping);
  }

  void page_mkclean_one(Page& page, VmArea& vma, RmapWalk& walk) {
    WEIR_FLOW(vma);
    const VirtAddr address = Rmap::vma_address(page, vma);
    if (address == Rmap::NO_ADDRESS) return;
    room_to_flush(walk);
    if (PteLock pte = page_check_address(page, vma, address)) mkclean_pte(page, vma, address, std::move(pte), walk);
  }
  void page_mkclean_file(Page& page, RmapWalk& walk) {
    WEIR_FLOW(pfn(page));
    AddressSpace* mapping = Filemap::file_mapping(page);
    if (mapping == nullptr) return;
    ScopedRead guard(mapping->i_mmap_rwsem);
    for (VmArea* vma = mapping->i_mmap.iter_first(page.index, page.index); vma != nullptr;
         vma = mapping->i_mmap.iter_next(vma, page.index, page.index))
      if ((vma->vm_flags & VM_SHARED) != 0) page_mkclean_one(page, *vma, walk);
    mkclean_nonlinear(page, *mapping, walk);
  }
};
static_assert(sizeof(Rmap_2_6_20) <= Rmap::ERA_BYTES);

}  // namespace

RmapEra* rmap_2_6_20(void* place, Rmap& rmap) { return ::new (place) Rmap_2_6_20(rmap); }

}  // namespace weir
