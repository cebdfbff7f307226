// src/mm/rmap.cpp: see rmap.hpp
#include "mm/rmap.hpp"

#include "mm/inode.hpp"

namespace weir {

namespace {

int64_t get_mm_rss(const Mm& mm) {
  WEIR_FLOW(mm);
  return mm.get_mm_rss();
}

AddressSpace* mapping_of(const VmArea& vma) { return vma.vm_file != nullptr ? &vma.vm_file->f_inode->i_data : nullptr; }

// Into and out of what a file's mappings are found by; i_mmap locked for writing.
void insert_into(AddressSpace& mapping, VmArea& vma, VmArea* after = nullptr) {
  if ((vma.vm_flags & VM_NONLINEAR) != 0) {
    mapping.i_mmap_nonlinear.push_back(vma);
    vma.on_nonlinear = true;
  } else if (after != nullptr) {
    mapping.i_mmap.insert_after(&vma, after);
  } else {
    mapping.i_mmap.insert(&vma);
  }
}
void erase_from(AddressSpace& mapping, VmArea& vma) {
  if (vma.on_nonlinear) {
    mapping.i_mmap_nonlinear.erase(mapping.i_mmap_nonlinear.iterator_to(vma));
    vma.on_nonlinear = false;
  } else {
    mapping.i_mmap.erase(&vma);
  }
}

}  // namespace

bool recorded::PageAnon(const Page& page) {
  WEIR_FLOW(page.index);
  return ::weir::PageAnon(page);
}
AddressSpace* recorded::page_mapping(const Page& page) {
  WEIR_FLOW(page.index);
  return Filemap::file_mapping(page);
}
uint64_t recorded::page_to_pgoff(const Page& page) {
  WEIR_FLOW(page.index);
  return page.index;
}
int32_t recorded::page_mapcount(const Page& page) {
  WEIR_FLOW(page.index);
  return ::weir::page_mapcount(page);
}
int32_t recorded::total_mapcount(const Page& page) {
  WEIR_FLOW(page.index);
  return page_mapcount(page);
}
VmArea* recorded::vma_interval_tree_iter_first(const VmaFileTree& tree, uint64_t start, uint64_t last) {
  WEIR_FLOW(start, last);
  return tree.iter_first(start, last);
}
VmArea* recorded::vma_interval_tree_iter_next(const VmaFileTree& tree, VmArea* vma, uint64_t start, uint64_t last) {
  WEIR_FLOW(start, last);
  return tree.iter_next(vma, start, last);
}

void update_hiwater_rss(Mm& mm) {
  WEIR_FLOW(mm);
  const int64_t rss = get_mm_rss(mm);
  int64_t peak = mm.hiwater_rss.load(std::memory_order_relaxed);
  while (rss > peak && !mm.hiwater_rss.compare_exchange_weak(peak, rss, std::memory_order_relaxed)) {
  }
}

Rmap::Rmap(PageTables& tables, Slab& slab, Filemap& filemap, SwapFiles& swap, VmStat& vmstat, Mmu& mmu,
           KernelEra kernel)
    : tables_(tables), slab_(slab), filemap_(filemap), swap_(swap), vmstat_(vmstat), mmu_(mmu) {
  switch (kernel) {
    case KernelEra::linux_2_6_20: era_ = rmap_2_6_20(era_place_, *this); break;
    case KernelEra::linux_3: era_ = rmap_3(era_place_, *this); break;
    case KernelEra::linux_4_14: era_ = rmap_4_14(era_place_, *this); break;
  }
}

Result<void> Rmap::init() {
  anon_vma_cache_ = WEIR_TRY(slab_.kmem_cache_create("anon_vma", sizeof(AnonVma), {}));
  chain_cache_ = WEIR_TRY(slab_.kmem_cache_create("anon_vma_chain", sizeof(AnonVmaChain), {}));
  filemap_.lru().set_locked_mappings(*this);
  return {};
}

// ---- Anchors: references --------------------------------------------------------------------------------------------

AnonVma* Rmap::anon_vma_alloc() {
  AnonVma* anon_vma = slab_.create<AnonVma>(*anon_vma_cache_, GFP_KERNEL);
  if (anon_vma != nullptr) anon_vma->root = anon_vma->parent = anon_vma;
  return anon_vma;
}

void Rmap::put_anon_vma(AnonVma& anon_vma) {
  // Only the last reference must not go while page_get_anon_vma looks.
  for (int32_t refs = anon_vma.refcount.load(std::memory_order_relaxed); refs > 1;)
    if (anon_vma.refcount.compare_exchange_weak(refs, refs - 1, std::memory_order_release)) return;
  AnonVma* dead = &anon_vma;
  while (dead != nullptr) {
    {
      ScopedLock guard(life_lock_);
      if (dead->refcount.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    }
    AnonVma* root = dead->root != dead ? dead->root : nullptr;
    slab_.destroy(*anon_vma_cache_, dead);
    dead = root;
  }
}

AnonVma* Rmap::page_get_anon_vma(Page& page) {
  ScopedLock guard(life_lock_);
  // A page that is not mapped may name an AnonVma that is long gone.
  if (!page_mapped(page)) return nullptr;
  AnonVma* anon_vma = page_anon_vma(page);
  if (anon_vma != nullptr) anon_vma->refcount.fetch_add(1, std::memory_order_acq_rel);
  return anon_vma;
}

// ---- Anchors: VMAs --------------------------------------------------------------------------------------------------

Result<void> Rmap::anon_vma_prepare(VmArea& vma, VmArea* mergeable_neighbour) {
  {
    ScopedLock guard(vma.vm_mm->page_table_lock);
    if (vma.anon_vma != nullptr) return {};
  }
  return era_->anon_vma_prepare(vma, mergeable_neighbour);
}

Result<void> Rmap::anon_vma_clone(VmArea& dst, VmArea& src) {
  return src.anon_vma != nullptr ? era_->anon_vma_clone(dst, src) : Result<void>();
}

Result<void> Rmap::anon_vma_fork(VmArea& dst, VmArea& src) {
  return src.anon_vma != nullptr ? era_->anon_vma_fork(dst, src) : Result<void>();
}

void Rmap::unlink_anon_vmas(VmArea& vma) {
  if (vma.anon_vma != nullptr) era_->unlink_anon_vmas(vma);
}

void Rmap::anon_vma_merge(VmArea& vma, VmArea& next) {
  if (next.anon_vma != nullptr) era_->anon_vma_merge(vma, next);
}

bool Rmap::linked(const VmArea& vma, const AnonVma* anon_vma) const { return era_->linked(vma, anon_vma); }

// ---- Anchors: files, locks, changes of range ------------------------------------------------------------------------

void Rmap::vma_link_file(VmArea& vma, VmArea* after) {
  AddressSpace* mapping = mapping_of(vma);
  if (mapping == nullptr) return;
  ScopedWrite guard(mapping->i_mmap_rwsem);
  insert_into(*mapping, vma, after);
}

void Rmap::vma_unlink_file(VmArea& vma) {
  AddressSpace* mapping = mapping_of(vma);
  if (mapping == nullptr) return;
  ScopedWrite guard(mapping->i_mmap_rwsem);
  erase_from(*mapping, vma);
}

void Rmap::make_nonlinear(VmArea& vma) {
  AddressSpace& mapping = *mapping_of(vma);
  ScopedWrite guard(mapping.i_mmap_rwsem);
  erase_from(mapping, vma);
  vma.vm_flags |= VM_NONLINEAR;
  insert_into(mapping, vma);
}

void Rmap::take_rmap_locks(VmArea& vma) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  if (AddressSpace* mapping = mapping_of(vma)) mapping->i_mmap_rwsem.down_write();
  if (AnonVma* root = root_of(vma)) root->rwsem.down_write();
}

void Rmap::drop_rmap_locks(VmArea& vma) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  if (AnonVma* root = root_of(vma)) root->rwsem.up_write();
  if (AddressSpace* mapping = mapping_of(vma)) mapping->i_mmap_rwsem.up_write();
}

VmaUpdate::VmaUpdate(Rmap& rmap, VmArea& vma, VmArea* other) WEIR_NO_THREAD_SAFETY_ANALYSIS
    : era_(*rmap.era_),
      vma_(vma),
      other_(other),
      mapping_(mapping_of(vma)),
      root_(Rmap::root_of(vma)) {
  if (root_ == nullptr && other != nullptr) root_ = Rmap::root_of(*other);
  WEIR_DEBUG_BUG_ON(other != nullptr && mapping_of(*other) != mapping_);
  WEIR_DEBUG_BUG_ON(other != nullptr && Rmap::root_of(*other) != nullptr && Rmap::root_of(*other) != root_);
  if (mapping_ != nullptr) mapping_->i_mmap_rwsem.down_write();
  if (root_ != nullptr) root_->rwsem.down_write();
  for (VmArea* v : {&vma_, other_}) {
    if (v == nullptr) continue;
    era_.pre_update_vma(*v);
    // A VMA that is just being made is in no file's tree yet, and comes into it with the others.
    if (mapping_ != nullptr && (v->shared.linked() || v->on_nonlinear)) erase_from(*mapping_, *v);
  }
}

VmaUpdate::~VmaUpdate() WEIR_NO_THREAD_SAFETY_ANALYSIS {
  for (VmArea* v : {&vma_, other_}) {
    if (v == nullptr) continue;
    era_.post_update_vma(*v);
    if (mapping_ != nullptr && (v != other_ || other_file_)) insert_into(*mapping_, *v);
  }
  if (root_ != nullptr) root_->rwsem.up_write();
  if (mapping_ != nullptr) mapping_->i_mmap_rwsem.up_write();
}

// ---- One PTE's worth ------------------------------------------------------------------------------------------------

void Rmap::record_mapcount(const Page& page, int32_t before, int32_t after) {
  WEIR_STATE(mapcount, tables_.pages().mem().pfn(page), before, after);
}

/// Linux: __page_set_anon_rmap.
void Rmap::page_set_anon_rmap(Page& page, VmArea& vma, VirtAddr address, Exclusive exclusive) {
  WEIR_DEBUG_BUG_ON(vma.anon_vma == nullptr);
  if (PageKsm(page)) return;
  // Mapped already. (One in the swap cache that nobody maps belongs to whoever maps it first: its AnonVma may be gone.)
  if (PageAnon(page) && page_mapped(page)) return;
  const AnonVma* anon_vma = era_->anchor(vma, exclusive);
  page.index = linear_page_index(vma, address);
  page.set_mapping(reinterpret_cast<uintptr_t>(anon_vma) | PAGE_MAPPING_ANON, page.index);
}

void Rmap::page_add_new_anon_rmap(Page& page, VmArea& vma, VirtAddr address) {
  WEIR_FLOW(tables_.pages().mem().pfn(page), address);
  page.set(PageFlag::swapbacked);
  page_set_anon_rmap(page, vma, address, Exclusive::yes);
  page._mapcount.store(0, std::memory_order_release);
  record_mapcount(page, 0, 1);
  vmstat_.inc_node_page_state(NodeStat::nr_anon_pages);
}

void Rmap::page_add_anon_rmap(Page& page, VmArea& vma, VirtAddr address, Exclusive exclusive) {
  WEIR_FLOW(tables_.pages().mem().pfn(page), address);
  page_set_anon_rmap(page, vma, address, exclusive);
  const int32_t before = page._mapcount.fetch_add(1, std::memory_order_acq_rel) + 1;
  record_mapcount(page, before, before + 1);
  if (before == 0) vmstat_.inc_node_page_state(NodeStat::nr_anon_pages);
}

void Rmap::page_add_file_rmap(Page& page) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  const int32_t before = page._mapcount.fetch_add(1, std::memory_order_acq_rel) + 1;
  record_mapcount(page, before, before + 1);
  if (before == 0) vmstat_.inc_node_page_state(NodeStat::nr_mapped);
}

void Rmap::page_dup_rmap(Page& page) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  const int32_t before = page._mapcount.fetch_add(1, std::memory_order_acq_rel) + 1;
  WEIR_DEBUG_BUG_ON(before <= 0);
  record_mapcount(page, before, before + 1);
}

void Rmap::remove_file_rmap(Page& page) {
  const int32_t before = page._mapcount.fetch_sub(1, std::memory_order_acq_rel) + 1;
  WEIR_BUG_ON(before <= 0);
  record_mapcount(page, before, before - 1);
  if (before > 1) return;
  vmstat_.dec_node_page_state(NodeStat::nr_mapped);
  if (page.test(PageFlag::mlocked)) filemap_.lru().clear_page_mlock(page);
}

void Rmap::page_remove_rmap(Page& page) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  if (!PageAnon(page)) {
    era_->page_remove_file_rmap(page);
    return;
  }
  const int32_t before = page._mapcount.fetch_sub(1, std::memory_order_acq_rel) + 1;
  WEIR_BUG_ON(before <= 0);
  record_mapcount(page, before, before - 1);
  if (before > 1) return;
  // `mapping` stays: the page may be in the swap cache and be mapped again at once.
  vmstat_.dec_node_page_state(NodeStat::nr_anon_pages);
  if (page.test(PageFlag::mlocked)) filemap_.lru().clear_page_mlock(page);
}

void Rmap::page_move_anon_rmap(Page& page, VmArea& vma) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked) || vma.anon_vma == nullptr);
  page.set_mapping(reinterpret_cast<uintptr_t>(vma.anon_vma) | PAGE_MAPPING_ANON, page.index);
}

void Rmap::set_page_dirty(Page& page) {
  if (AddressSpace* mapping = Filemap::file_mapping(page); mapping != nullptr && !PageAnon(page)) {
    mapping->a_ops->set_page_dirty(page);
    return;
  }
  page.set(PageFlag::dirty);
}

// ---- Walks ----------------------------------------------------------------------------------------------------------

VirtAddr Rmap::vma_address(const Page& page, const VmArea& vma) {
  WEIR_FLOW(page.index, vma);
  if (page.index < vma.vm_pgoff || page.index - vma.vm_pgoff >= vma.pages()) return NO_ADDRESS;
  return vma.vm_start + ((page.index - vma.vm_pgoff) << PAGE_SHIFT);
}

int Rmap::page_referenced(Page& page, uint64_t* vm_flags, FlushBatch& batch) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  *vm_flags = 0;
  RmapWalk walk{.batch = batch, .left = page_mapcount(page)};
  if (walk.left == 0) WEIR_RETURN(0);
  era_->page_referenced(page, walk);
  *vm_flags = walk.vm_flags;
  WEIR_RETURN(walk.count);
}

TryToUnmap Rmap::try_to_unmap(Page& page, FlushBatch& batch) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked));
  RmapWalk walk{.batch = batch};
  era_->try_to_unmap(page, walk);
  WEIR_RETURN(recorded::page_mapcount(page) == 0 ? TryToUnmap::success : TryToUnmap::fail);
}

void Rmap::try_to_munlock(Page& page) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked));
  FlushBatch nothing;
  RmapWalk walk{.batch = nothing};
  era_->try_to_munlock(page, walk);
}

int Rmap::page_mkclean(Page& page, FlushBatch& batch) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked));
  if (!page_mapped(page) || PageAnon(page)) return 0;
  RmapWalk walk{.batch = batch};
  era_->page_mkclean(page, walk);
  return walk.count;
}

void Rmap::for_each_vma_of(AnonVma& anon_vma, uint64_t first, uint64_t last, bool (*fn)(VmArea& vma, void* arg),
                           void* arg) {
  ScopedRead family(anon_vma.root->rwsem);
  era_->for_each_vma(anon_vma, first, last, fn, arg);
}

void Rmap::for_each_mapping(const Page& page, bool (*fn)(VmArea& vma, VirtAddr address, void* arg), void* arg) const {
  const auto maps = [&](const VmArea& vma, VirtAddr address) {
    const Pte* pte = tables_.walk(*vma.vm_mm, address);
    return pte != nullptr && pte_present(*pte) && pte_pfn(*pte) == tables_.pages().mem().pfn(page);
  };
  const auto visit = [&](VmArea& vma) {
    if (page.index < vma.vm_pgoff || page.index - vma.vm_pgoff >= vma.pages()) return true;
    const VirtAddr address = vma.vm_start + ((page.index - vma.vm_pgoff) << PAGE_SHIFT);
    return !maps(vma, address) || fn(vma, address, arg);
  };
  if (PageKsm(page)) {
    struct Ask {
      const decltype(visit)& visit_at;
      const Page& page;
      const Rmap& rmap;
      bool (*fn)(VmArea&, VirtAddr, void*);
      void* arg;
    } ask{visit, page, *this, fn, arg};
    ksm_->for_each_ksm_mapping(
        const_cast<Page&>(page),
        [](VmArea& vma, VirtAddr address, void* v) {
          auto& a = *static_cast<Ask*>(v);
          const Pte* pte = a.rmap.tables_.walk(*vma.vm_mm, address);
          if (pte == nullptr || !pte_present(*pte) || pte_pfn(*pte) != a.rmap.tables_.pages().mem().pfn(a.page))
            return true;
          return a.fn(vma, address, a.arg);
        },
        &ask);
  } else if (AnonVma* anon_vma = page_anon_vma(page)) {
    era_->for_each_vma(
        *anon_vma, page.index, page.index,
        [](VmArea& vma, void* v) { return (*static_cast<decltype(visit)*>(v))(vma); },
        const_cast<void*>(static_cast<const void*>(&visit)));
  } else if (AddressSpace* mapping = Filemap::file_mapping(page)) {
    for (VmArea& vma : mapping->i_mmap_nonlinear)
      for (VirtAddr a = vma.vm_start; a < vma.vm_end; a = a + PAGE_SIZE)
        if (maps(vma, a) && !fn(vma, a, arg)) return;
    VmaFileTree& tree = mapping->i_mmap;
    for (VmArea* vma = tree.iter_first(page.index, page.index); vma != nullptr && visit(*vma);
         vma = tree.iter_next(vma, page.index, page.index)) {
    }
  }
}

// ---- What the eras' walks do alike ----------------------------------------------------------------------------------

AnonVma* RmapEra::lock_family_of(Page& page) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  AnonVma* anon_vma = rmap_.page_get_anon_vma(page);
  if (anon_vma != nullptr) anon_vma->root->rwsem.down_read();
  return anon_vma;
}

void RmapEra::unlock_family(AnonVma& anon_vma) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  anon_vma.root->rwsem.up_read();
  put_anon_vma(anon_vma);
}

PteLock RmapEra::pte_of(const Page& page, const VmArea& vma, VirtAddr address) const {
  PteLock pte = tables().pte_offset_map_lock(*vma.vm_mm, address);
  if (pte && pte_present(*pte) && pte_pfn(*pte) == pfn(page)) return pte;
  return {};
}

void RmapEra::room_to_age(RmapWalk& walk) {
  if (!mmu().caps().has_accessed && walk.batch.full()) mmu().age_batch(walk.batch);
}

void RmapEra::room_to_flush(RmapWalk& walk) {
  if (walk.batch.full()) mmu().flush_batch(walk.batch);
}

bool RmapEra::referenced_pte(Page& page, VmArea& vma, VirtAddr address, PteLock pte, RmapWalk& walk) {
  if ((vma.vm_flags & VM_LOCKED) != 0) {
    walk.vm_flags |= VM_LOCKED;
    return false;
  }
  Mm& mm = *vma.vm_mm;
  bool young = tables().ptep_test_and_clear_young(mm, address, pte.get());
  if (has_listeners(mm)) young |= mmu_notifier_clear_flush_young(mm, address, address + PAGE_SIZE);
  if (young) {
    if (!mmu().caps().has_accessed) walk.batch.add(mm, address, &page);
    // A reader that goes straight through a file looks at each page once: that is no reason to keep it.
    if ((vma.vm_flags & VM_SEQ_READ) == 0) {
      ++walk.count;
      walk.vm_flags |= vma.vm_flags;
    }
  }
  return --walk.left > 0;
}

bool RmapEra::unmap_pte(Page& page, VmArea& vma, VirtAddr address, PteLock pte, RmapWalk& walk) {
  Mm& mm = *vma.vm_mm;
  const Pte was = tables().ptep_clear_flush(mm, address, pte.get());
  if (pte_dirty(was)) rmap_.set_page_dirty(page);
  update_hiwater_rss(mm);
  if (PageAnon(page) && !PageSwapBacked(page)) {
    if (page.test(PageFlag::dirty)) {
      // Written since it was given up: wanted again.
      tables().set_pte_at(mm, address, pte.get(), was);
      page.set(PageFlag::swapbacked);
      walk.failed = true;
      return false;
    }
    mm.dec_mm_counter(RssKind::anon);
  } else if (PageAnon(page)) {
    const SwpEntry entry{page.private_};
    SwapFiles& swap = rmap_.swap_;
    if (!PageSwapCache(page) || !swap.swap_duplicate(entry)) {
      // No slot, or its count has no room: everything as it was.
      tables().set_pte_at(mm, address, pte.get(), was);
      walk.failed = true;
      return false;
    }
    if (!mm.on_mmlist.load(std::memory_order_acquire)) swap.mmlist_add(mm);
    mm.dec_mm_counter(RssKind::anon);
    mm.inc_mm_counter(RssKind::swapents);
    tables().set_pte_at(mm, address, pte.get(), swap_pte(entry, was));
  } else {
    mm.dec_mm_counter(mm_counter(page));
  }
  rmap_.page_remove_rmap(page);
  changed(mm, address);
  walk.batch.add(mm, address, &page);
  // The mapping's reference; the caller has one of its own.
  const bool last = PageAllocator::put_page_testzero(page);
  WEIR_BUG_ON(last);
  return true;
}

void RmapEra::unmap_nonlinear(Page& page, AddressSpace& mapping) {
  constexpr uint64_t CLUSTER = 32;  // pages
  int32_t mapcount = page_mapcount(page);
  uint64_t longest = 0;
  for (const VmArea& vma : mapping.i_mmap_nonlinear) longest = vma.pages() > longest ? vma.pages() : longest;
  // Once around each of them at most, a cluster of each in turn.
  for (uint64_t done = 0; done < longest && mapcount > 0; done += CLUSTER) {
    for (VmArea& vma : mapping.i_mmap_nonlinear) {
      if (done >= vma.pages() || mapcount <= 0 || (vma.vm_flags & VM_LOCKED) != 0) continue;
      if (vma.unmap_cursor >= vma.pages()) vma.unmap_cursor = 0;
      const VirtAddr start = vma.vm_start + (vma.unmap_cursor << PAGE_SHIFT);
      const VirtAddr table_end = PageTables::pmd_addr_end(start, vma.vm_end);
      const VirtAddr end = table_end - start > CLUSTER << PAGE_SHIFT ? start + (CLUSTER << PAGE_SHIFT) : table_end;
      try_to_unmap_cluster(vma, start, end, mapcount);
      vma.unmap_cursor += (end - start) >> PAGE_SHIFT;
    }
  }
}

/// All in one table, 32 pages at most.
void RmapEra::try_to_unmap_cluster(VmArea& vma, VirtAddr start, VirtAddr end, int32_t& mapcount) {
  WEIR_FLOW(start, end);
  Mm& mm = *vma.vm_mm;
  struct Gone {
    Page* page;
    bool dirty;
  } gone[32];
  unsigned n = 0;
  FlushBatch batch;
  {
    PteLock ptl = tables().pte_offset_map_lock(mm, start);
    if (!ptl) return;
    update_hiwater_rss(mm);
    Pte* pte = ptl.get();
    for (VirtAddr a = start; a < end; a = a + PAGE_SIZE, ++pte) {
      const Pte now{__atomic_load_n(&pte->v, __ATOMIC_RELAXED)};
      if (!pte_present(now) || tables().ptep_test_and_clear_young(mm, a, pte)) continue;
      Page& page = tables().pages().mem().page(pte_pfn(now));
      const Pte was = tables().ptep_clear_flush(mm, a, pte);
      if (page.index != linear_page_index(vma, a)) tables().set_pte_at(mm, a, pte, pgoff_to_pte(page.index));
      mm.dec_mm_counter(mm_counter(page));
      rmap_.page_remove_rmap(page);
      changed(mm, a);
      batch.add(mm, a, nullptr);
      gone[n++] = {&page, pte_dirty(was)};
      --mapcount;
    }
  }
  // Nobody can write to them any more before they are dirtied, or freed.
  if (n > 0) mmu().flush_batch(batch);
  for (unsigned i = 0; i < n; ++i) {
    if (gone[i].dirty) rmap_.set_page_dirty(*gone[i].page);
    lru().put_page(*gone[i].page);
  }
}

void RmapEra::mkclean_nonlinear(Page& page, AddressSpace& mapping, RmapWalk& walk) {
  for (VmArea& vma : mapping.i_mmap_nonlinear) {
    for (VirtAddr a = vma.vm_start; a < vma.vm_end; a = a + PAGE_SIZE) {
      room_to_flush(walk);
      if (PteLock pte = pte_of(page, vma, a)) mkclean_pte(page, vma, a, std::move(pte), walk);
    }
  }
}

void RmapEra::mkclean_pte(Page& page, VmArea& vma, VirtAddr address, PteLock pte, RmapWalk& walk) {
  Mm& mm = *vma.vm_mm;
  if (!pte_dirty(*pte) && !pte_write(*pte)) return;
  const Pte was = tables().ptep_clear_flush(mm, address, pte.get());
  const Pte now = pte_mkclean(pte_wrprotect(was));
  // Without an accessed bit flushed is old: the page is out of hardware while it is written.
  tables().set_pte_at(mm, address, pte.get(), mmu().caps().has_accessed ? now : pte_mkold(now));
  changed(mm, address);
  walk.batch.add(mm, address, &page);
  ++walk.count;
}

}  // namespace weir
