// src/mm/rmap.cpp: see rmap.hpp
#include "mm/rmap.hpp"

#include "mm/inode.hpp"

namespace weir {

namespace {

/// Questions that the documents' flows name, asked through functions of those names so that a recording shows them.
struct recorded {
  static bool PageAnon(const Page& page) {
    WEIR_FLOW(page.index);
    return ::weir::PageAnon(page);
  }
  static AddressSpace* page_mapping(const Page& page) {
    WEIR_FLOW(page.index);
    return Filemap::file_mapping(page);
  }
  static uint64_t page_to_pgoff(const Page& page) {
    WEIR_FLOW(page.index);
    return page.index;
  }
  static int32_t page_mapcount(const Page& page) {
    WEIR_FLOW(page.index);
    return ::weir::page_mapcount(page);
  }
  static int32_t total_mapcount(const Page& page) {
    WEIR_FLOW(page.index);
    return page_mapcount(page);
  }
  static int64_t get_mm_rss(const Mm& mm) {
    WEIR_FLOW(mm);
    return mm.get_mm_rss();
  }
  static VmArea* vma_interval_tree_iter_first(const VmaFileTree& tree, uint64_t start, uint64_t last) {
    WEIR_FLOW(start, last);
    return tree.iter_first(start, last);
  }
  static VmArea* vma_interval_tree_iter_next(const VmaFileTree& tree, VmArea* vma, uint64_t start, uint64_t last) {
    WEIR_FLOW(start, last);
    return tree.iter_next(vma, start, last);
  }
};

AddressSpace* mapping_of(const VmArea& vma) { return vma.vm_file != nullptr ? &vma.vm_file->f_inode->i_data : nullptr; }

AnonVma* root_of(const VmArea& vma) { return vma.chains != nullptr ? vma.chains->anon_vma->root : nullptr; }

}  // namespace

void update_hiwater_rss(Mm& mm) {
  WEIR_FLOW(mm);
  const int64_t rss = recorded::get_mm_rss(mm);
  int64_t peak = mm.hiwater_rss.load(std::memory_order_relaxed);
  while (rss > peak && !mm.hiwater_rss.compare_exchange_weak(peak, rss, std::memory_order_relaxed)) {
  }
}

Rmap::Rmap(PageTables& tables, Slab& slab, Filemap& filemap, SwapFiles& swap, VmStat& vmstat, Mmu& mmu)
    : tables_(tables), slab_(slab), filemap_(filemap), swap_(swap), vmstat_(vmstat), mmu_(mmu) {}

Result<void> Rmap::init() {
  anon_vma_cache_ = WEIR_TRY(slab_.kmem_cache_create("anon_vma", sizeof(AnonVma), {}));
  chain_cache_ = WEIR_TRY(slab_.kmem_cache_create("anon_vma_chain", sizeof(AnonVmaChain), {}));
  filemap_.lru().set_locked_mappings(*this);
  return {};
}

// ---- Anchors: references
// -----------------------------------------------------------------------------------------------

AnonVma* Rmap::anon_vma_alloc() {
  AnonVma* anon_vma = slab_.create<AnonVma>(*anon_vma_cache_, GFP_KERNEL);
  if (anon_vma != nullptr) anon_vma->root = anon_vma->parent = anon_vma;
  return anon_vma;
}

void Rmap::put_anon_vma(AnonVma& anon_vma) {
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

AnonVma* Rmap::page_lock_anon_vma_read(Page& page) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  AnonVma* anon_vma = page_get_anon_vma(page);
  if (anon_vma != nullptr) anon_vma->root->rwsem.down_read();
  return anon_vma;
}

void Rmap::page_unlock_anon_vma_read(AnonVma& anon_vma) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  anon_vma.root->rwsem.up_read();
  put_anon_vma(anon_vma);
}

// ---- Anchors: chains
// ---------------------------------------------------------------------------------------------------

AnonVmaChain* Rmap::alloc_chains(unsigned n) {
  AnonVmaChain* list = nullptr;
  for (; n > 0; --n) {
    AnonVmaChain* chain = slab_.create<AnonVmaChain>(*chain_cache_, GFP_KERNEL);
    if (chain == nullptr) {
      free_chains(list);
      return nullptr;
    }
    chain->next_of_vma = list;
    list = chain;
  }
  return list;
}

void Rmap::free_chains(AnonVmaChain* chains) {
  while (chains != nullptr) {
    AnonVmaChain* next = chains->next_of_vma;
    slab_.destroy(*chain_cache_, chains);
    chains = next;
  }
}

/// Root locked for writing.
void Rmap::anon_vma_chain_link(VmArea& vma, AnonVmaChain& chain, AnonVma& anon_vma) {
  chain.vma = &vma;
  chain.anon_vma = &anon_vma;
  chain.next_of_vma = vma.chains;
  vma.chains = &chain;
  anon_vma.rb_root.insert(&chain);
}

Result<void> Rmap::anon_vma_prepare(VmArea& vma, VmArea* mergeable_neighbour) {
  Mm& mm = *vma.vm_mm;
  {
    ScopedLock guard(mm.page_table_lock);
    if (vma.anon_vma != nullptr) return {};
  }
  WEIR_FLOW(vma);
  AnonVmaChain* chain = alloc_chains(1);
  if (chain == nullptr) return Errno::nomem;
  AnonVma* anon_vma = nullptr;
  if (mergeable_neighbour != nullptr) {
    // Only from a neighbour that was never forked: one AnonVma must be all that it has. It stays while mmap_sem is
    // held.
    ScopedLock guard(mm.page_table_lock);
    const AnonVmaChain* chains = mergeable_neighbour->chains;
    if (chains != nullptr && chains->next_of_vma == nullptr) anon_vma = mergeable_neighbour->anon_vma;
  }
  AnonVma* fresh = nullptr;
  if (anon_vma == nullptr) {
    anon_vma = fresh = anon_vma_alloc();
    if (fresh == nullptr) {
      free_chains(chain);
      return Errno::nomem;
    }
  }
  {
    ScopedWrite family(anon_vma->root->rwsem);
    ScopedLock guard(mm.page_table_lock);
    if (vma.anon_vma == nullptr) {
      // A new root has degree 1 from being its own child; this VMA makes it 2.
      ++anon_vma->degree;
      vma.anon_vma = anon_vma;
      if (fresh == nullptr) anon_vma->refcount.fetch_add(1, std::memory_order_acq_rel);
      anon_vma_chain_link(vma, *chain, *anon_vma);
      chain = nullptr;
      fresh = nullptr;
    }
  }
  if (chain != nullptr) free_chains(chain);
  if (fresh != nullptr) put_anon_vma(*fresh);
  return {};
}

Result<void> Rmap::clone_chains(VmArea& dst, VmArea& src, Reuse reuse) {
  WEIR_DEBUG_BUG_ON(dst.chains != nullptr);
  AnonVma* root = root_of(src);
  if (root == nullptr) return {};
  unsigned n = 0;
  for (const AnonVmaChain* c = src.chains; c != nullptr; c = c->next_of_vma) ++n;
  // All of them before the lock: an allocation may reclaim, and reclaim walks families.
  AnonVmaChain* chains = alloc_chains(n);
  if (chains == nullptr) return Errno::nomem;
  dst.chains = chains;
  ScopedWrite family(root->rwsem);
  for (AnonVmaChain* c = src.chains; c != nullptr; c = c->next_of_vma, chains = chains->next_of_vma) {
    AnonVma& anon_vma = *c->anon_vma;
    chains->vma = &dst;
    chains->anon_vma = &anon_vma;
    anon_vma.refcount.fetch_add(1, std::memory_order_acq_rel);
    anon_vma.rb_root.insert(chains);
    // An ancestor whose own VMAs are gone and that has but one child serves the new VMA as well as a new one would.
    if (reuse == Reuse::yes && dst.anon_vma == nullptr && &anon_vma != src.anon_vma && anon_vma.degree < 2)
      dst.anon_vma = &anon_vma;
  }
  if (dst.anon_vma != nullptr) ++dst.anon_vma->degree;
  return {};
}

Result<void> Rmap::anon_vma_clone(VmArea& dst, VmArea& src) {
  WEIR_FLOW(dst, src);
  dst.anon_vma = src.anon_vma;
  Result<void> cloned = clone_chains(dst, src, Reuse::no);
  if (!cloned) dst.anon_vma = nullptr;
  return cloned;
}

Result<void> Rmap::anon_vma_fork(VmArea& dst, VmArea& src) {
  WEIR_FLOW(dst, src);
  dst.anon_vma = nullptr;
  if (src.anon_vma == nullptr) return {};
  AnonVma* fresh = anon_vma_alloc();
  AnonVmaChain* chain = alloc_chains(1);
  Result<void> done = fresh == nullptr || chain == nullptr ? Result<void>(Errno::nomem) : Result<void>();
  if (done) done = clone_chains(dst, src, Reuse::yes);
  if (done && dst.anon_vma == nullptr) {
    fresh->root = src.anon_vma->root;
    fresh->parent = src.anon_vma;
    fresh->root->refcount.fetch_add(1, std::memory_order_acq_rel);
    dst.anon_vma = fresh;
    ScopedWrite family(fresh->root->rwsem);
    anon_vma_chain_link(dst, *chain, *fresh);
    ++fresh->parent->degree;
    return {};
  }
  if (fresh != nullptr) put_anon_vma(*fresh);
  free_chains(chain);
  return done;
}

void Rmap::unlink_anon_vmas(VmArea& vma) {
  AnonVma* root = root_of(vma);
  if (root == nullptr) return;
  WEIR_FLOW(vma);
  {
    ScopedWrite family(root->rwsem);
    for (AnonVmaChain* c = vma.chains; c != nullptr; c = c->next_of_vma) {
      c->anon_vma->rb_root.erase(c);
      if (c->anon_vma->rb_root.empty()) --c->anon_vma->parent->degree;
    }
    if (vma.anon_vma != nullptr) --vma.anon_vma->degree;
  }
  // Newest first, so that the root goes last.
  for (AnonVmaChain* c = vma.chains; c != nullptr; c = c->next_of_vma) put_anon_vma(*c->anon_vma);
  free_chains(vma.chains);
  vma.chains = nullptr;
  vma.anon_vma = nullptr;
}

// ---- Anchors: files, locks, changes of range
// -----------------------------------------------------------------------------

void Rmap::vma_link_file(VmArea& vma, VmArea* after) {
  AddressSpace* mapping = mapping_of(vma);
  if (mapping == nullptr) return;
  ScopedWrite guard(mapping->i_mmap_rwsem);
  if (after != nullptr)
    mapping->i_mmap.insert_after(&vma, after);
  else
    mapping->i_mmap.insert(&vma);
}

void Rmap::vma_unlink_file(VmArea& vma) {
  AddressSpace* mapping = mapping_of(vma);
  if (mapping == nullptr) return;
  ScopedWrite guard(mapping->i_mmap_rwsem);
  mapping->i_mmap.erase(&vma);
}

void Rmap::take_rmap_locks(VmArea& vma) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  if (AddressSpace* mapping = mapping_of(vma)) mapping->i_mmap_rwsem.down_write();
  if (AnonVma* root = root_of(vma)) root->rwsem.down_write();
}

void Rmap::drop_rmap_locks(VmArea& vma) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  if (AnonVma* root = root_of(vma)) root->rwsem.up_write();
  if (AddressSpace* mapping = mapping_of(vma)) mapping->i_mmap_rwsem.up_write();
}

void Rmap::anon_vma_interval_tree_pre_update_vma(VmArea& vma) {
  for (AnonVmaChain* c = vma.chains; c != nullptr; c = c->next_of_vma) c->anon_vma->rb_root.erase(c);
}

void Rmap::anon_vma_interval_tree_post_update_vma(VmArea& vma) {
  for (AnonVmaChain* c = vma.chains; c != nullptr; c = c->next_of_vma) c->anon_vma->rb_root.insert(c);
}

VmaUpdate::VmaUpdate(Rmap&, VmArea& vma, VmArea* other) WEIR_NO_THREAD_SAFETY_ANALYSIS : vma_(vma),
                                                                                         other_(other),
                                                                                         mapping_(mapping_of(vma)),
                                                                                         root_(root_of(vma)) {
  if (root_ == nullptr && other != nullptr) root_ = root_of(*other);
  WEIR_DEBUG_BUG_ON(other != nullptr && mapping_of(*other) != mapping_);
  WEIR_DEBUG_BUG_ON(other != nullptr && root_of(*other) != nullptr && root_of(*other) != root_);
  if (mapping_ != nullptr) mapping_->i_mmap_rwsem.down_write();
  if (root_ != nullptr) root_->rwsem.down_write();
  for (VmArea* v : {&vma_, other_}) {
    if (v == nullptr) continue;
    Rmap::anon_vma_interval_tree_pre_update_vma(*v);
    // A VMA that is just being made is in no file's tree yet, and comes into it with the others.
    if (v->shared.linked()) mapping_->i_mmap.erase(v);
  }
}

VmaUpdate::~VmaUpdate() WEIR_NO_THREAD_SAFETY_ANALYSIS {
  for (VmArea* v : {&vma_, other_}) {
    if (v == nullptr) continue;
    Rmap::anon_vma_interval_tree_post_update_vma(*v);
    if (mapping_ != nullptr && (v != other_ || other_file_)) mapping_->i_mmap.insert(v);
  }
  if (root_ != nullptr) root_->rwsem.up_write();
  if (mapping_ != nullptr) mapping_->i_mmap_rwsem.up_write();
}

// ---- One PTE's worth
// -----------------------------------------------------------------------------------------------------

void Rmap::record_mapcount(const Page& page, int32_t before, int32_t after) {
  WEIR_STATE(mapcount, tables_.pages().mem().pfn(page), before, after);
}

/// Linux: __page_set_anon_rmap.
void Rmap::page_set_anon_rmap(Page& page, VmArea& vma, VirtAddr address, Exclusive exclusive) {
  WEIR_DEBUG_BUG_ON(vma.anon_vma == nullptr);
  if (PageAnon(page)) return;  // mapped before, and still in the swap cache since
  // Others may map it too: then it must hang where all of the family are linked.
  AnonVma* anon_vma = exclusive == Exclusive::yes ? vma.anon_vma : vma.anon_vma->root;
  page.index = linear_page_index(vma, address);
  page.mapping.store(reinterpret_cast<uintptr_t>(anon_vma) | PAGE_MAPPING_ANON, std::memory_order_release);
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

void Rmap::page_remove_file_rmap(Page& page) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
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
    page_remove_file_rmap(page);
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
  page.mapping.store(reinterpret_cast<uintptr_t>(vma.anon_vma) | PAGE_MAPPING_ANON, std::memory_order_release);
}

void Rmap::set_page_dirty(Page& page) {
  if (AddressSpace* mapping = Filemap::file_mapping(page); mapping != nullptr && !PageAnon(page)) {
    mapping->a_ops->set_page_dirty(page);
    return;
  }
  page.set(PageFlag::dirty);
}

// ---- Walks
// ---------------------------------------------------------------------------------------------------------------

VirtAddr Rmap::vma_address(const Page& page, const VmArea& vma) {
  WEIR_FLOW(page.index, vma);
  if (page.index < vma.vm_pgoff || page.index - vma.vm_pgoff >= vma.pages()) return VirtAddr(~uint64_t{0});
  return vma.vm_start + ((page.index - vma.vm_pgoff) << PAGE_SHIFT);
}

void Rmap::rmap_walk(Page& page, RmapWalkControl& control) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  if (recorded::PageAnon(page))
    rmap_walk_anon(page, control);
  else
    rmap_walk_file(page, control);
}

void Rmap::rmap_walk_anon(Page& page, RmapWalkControl& control) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  AnonVma* anon_vma = page_lock_anon_vma_read(page);
  if (anon_vma == nullptr) return;
  const uint64_t pgoff = recorded::page_to_pgoff(page);
  for (AnonVmaChain* c = anon_vma->rb_root.iter_first(pgoff, pgoff); c != nullptr;
       c = anon_vma->rb_root.iter_next(c, pgoff, pgoff)) {
    VmArea& vma = *c->vma;
    const VirtAddr address = vma_address(page, vma);
    if (control.invalid_vma != nullptr && control.invalid_vma(vma, control.arg)) continue;
    if (!control.rmap_one(page, vma, address, control.arg)) break;
    if (control.done != nullptr && control.done(page)) break;
  }
  page_unlock_anon_vma_read(*anon_vma);
}

void Rmap::rmap_walk_file(Page& page, RmapWalkControl& control) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  AddressSpace* mapping = recorded::page_mapping(page);
  if (mapping == nullptr) return;
  const uint64_t pgoff = recorded::page_to_pgoff(page);
  ScopedRead guard(mapping->i_mmap_rwsem);
  for (VmArea* vma = recorded::vma_interval_tree_iter_first(mapping->i_mmap, pgoff, pgoff); vma != nullptr;
       vma = recorded::vma_interval_tree_iter_next(mapping->i_mmap, vma, pgoff, pgoff)) {
    const VirtAddr address = vma_address(page, *vma);
    if (control.invalid_vma != nullptr && control.invalid_vma(*vma, control.arg)) continue;
    if (!control.rmap_one(page, *vma, address, control.arg)) break;
    if (control.done != nullptr && control.done(page)) break;
  }
}

/// The PTE of the VMA that maps the page, locked; empty if there is none.
PteLock Rmap::page_vma_mapped_walk(Page& page, VmArea& vma, VirtAddr address) {
  WEIR_FLOW(tables_.pages().mem().pfn(page), address);
  PteLock pte = tables_.pte_offset_map_lock(*vma.vm_mm, address);
  if (pte && pte_present(*pte) && pte_pfn(*pte) == tables_.pages().mem().pfn(page)) return pte;
  return {};
}

struct Rmap::Walk {
  Rmap& rmap;
  FlushBatch& batch;
  uint64_t vm_flags = 0;
  int count = 0;     ///< references, cleaned PTEs
  int32_t left = 0;  ///< mappings not seen yet
};

bool Rmap::page_referenced_one(Page& page, VmArea& vma, VirtAddr address, void* arg) {
  WEIR_FLOW(address);
  auto& walk = *static_cast<Walk*>(arg);
  Rmap& self = walk.rmap;
  const bool ages = !self.mmu_.caps().has_accessed;
  if (ages && walk.batch.full()) self.mmu_.age_batch(walk.batch);
  PteLock pte = self.page_vma_mapped_walk(page, vma, address);
  if (!pte) return true;
  if ((vma.vm_flags & VM_LOCKED) != 0) {
    walk.vm_flags |= VM_LOCKED;
    return false;
  }
  if (self.tables_.ptep_test_and_clear_young(*vma.vm_mm, address, pte.get())) {
    if (ages) walk.batch.add(*vma.vm_mm, address, &page);
    // A reader that goes straight through a file looks at each page once: that is no reason to keep it.
    if ((vma.vm_flags & VM_SEQ_READ) == 0) {
      ++walk.count;
      walk.vm_flags |= vma.vm_flags;
    }
  }
  return --walk.left > 0;
}

int Rmap::page_referenced(Page& page, uint64_t* vm_flags, FlushBatch& batch) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  *vm_flags = 0;
  Walk walk{.rmap = *this, .batch = batch, .left = page_mapcount(page)};
  if (walk.left == 0) return 0;
  RmapWalkControl control{.arg = &walk, .rmap_one = page_referenced_one};
  rmap_walk(page, control);
  *vm_flags = walk.vm_flags;
  return walk.count;
}

/// Whether the flush may wait for the end of the batch. Linux asks if other CPUs must be interrupted; here it always
/// may: nothing looks at the page before the batch is flushed.
bool Rmap::should_defer_flush(const Mm& mm) {
  WEIR_FLOW(mm);
  return true;
}

bool Rmap::page_mapcount_is_zero(Page& page) {
  WEIR_FLOW(page.index);
  return recorded::total_mapcount(page) == 0;
}

bool Rmap::try_to_unmap_one(Page& page, VmArea& vma, VirtAddr address, void* arg) {
  WEIR_FLOW(address);
  auto& walk = *static_cast<Walk*>(arg);
  Rmap& self = walk.rmap;
  Mm& mm = *vma.vm_mm;
  if (walk.batch.full()) self.mmu_.flush_batch(walk.batch);
  PteLock pte = self.page_vma_mapped_walk(page, vma, address);
  if (!pte) return true;
  if ((vma.vm_flags & VM_LOCKED) != 0) {
    self.filemap_.lru().mlock_vma_page(page);
    return false;
  }
  const bool deferred = should_defer_flush(mm);
  WEIR_DEBUG_BUG_ON(!deferred);
  const Pte was = self.tables_.ptep_clear_flush(mm, address, pte.get());
  if (pte_dirty(was)) self.set_page_dirty(page);
  update_hiwater_rss(mm);
  if (PageAnon(page) && !PageSwapBacked(page)) {
    if (page.test(PageFlag::dirty)) {
      // Written since it was given up: wanted again.
      self.tables_.set_pte_at(mm, address, pte.get(), was);
      self.filemap_.lru().set_page_flag(page, PageFlag::swapbacked);
      return false;
    }
    mm.dec_mm_counter(RssKind::anon);
  } else if (PageAnon(page)) {
    const SwpEntry entry{page.private_};
    if (!PageSwapCache(page) || !self.swap_.swap_duplicate(entry)) {
      // No slot, or its count has no room: everything as it was.
      self.tables_.set_pte_at(mm, address, pte.get(), was);
      return false;
    }
    if (!mm.on_mmlist.load(std::memory_order_acquire)) self.swap_.mmlist_add(mm);
    mm.dec_mm_counter(RssKind::anon);
    mm.inc_mm_counter(RssKind::swapents);
    self.tables_.set_pte_at(mm, address, pte.get(), swp_entry_to_pte(entry));
  } else {
    mm.dec_mm_counter(RssKind::file);
  }
  self.page_remove_rmap(page);
  walk.batch.add(mm, address, &page);
  // The mapping's reference; the caller has one of its own.
  const bool last = PageAllocator::put_page_testzero(page);
  WEIR_BUG_ON(last);
  return true;
}

TryToUnmap Rmap::try_to_unmap(Page& page, FlushBatch& batch) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked));
  Walk walk{.rmap = *this, .batch = batch};
  RmapWalkControl control{.arg = &walk, .rmap_one = try_to_unmap_one, .done = page_mapcount_is_zero};
  rmap_walk(page, control);
  return recorded::page_mapcount(page) == 0 ? TryToUnmap::success : TryToUnmap::fail;
}

bool Rmap::try_to_munlock_one(Page& page, VmArea& vma, VirtAddr address, void* arg) {
  if ((vma.vm_flags & VM_LOCKED) == 0) return true;
  Rmap& self = *static_cast<Rmap*>(arg);
  const PteLock pte = self.page_vma_mapped_walk(page, vma, address);
  if (!pte) return true;
  self.filemap_.lru().mlock_vma_page(page);
  return false;
}

void Rmap::try_to_munlock(Page& page) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked));
  RmapWalkControl control{.arg = this, .rmap_one = try_to_munlock_one};
  rmap_walk(page, control);
}

/// A private mapping's dirty bit is about the task's own copy, never about the file.
bool Rmap::invalid_mkclean_vma(VmArea& vma, void*) { return (vma.vm_flags & VM_SHARED) == 0; }

bool Rmap::page_mkclean_one(Page& page, VmArea& vma, VirtAddr address, void* arg) {
  WEIR_FLOW(address);
  auto& walk = *static_cast<Walk*>(arg);
  Rmap& self = walk.rmap;
  Mm& mm = *vma.vm_mm;
  if (walk.batch.full()) self.mmu_.flush_batch(walk.batch);
  PteLock pte = self.page_vma_mapped_walk(page, vma, address);
  if (!pte || (!pte_dirty(*pte) && !pte_write(*pte))) return true;
  const Pte was = self.tables_.ptep_clear_flush(mm, address, pte.get());
  self.tables_.set_pte_at(mm, address, pte.get(), pte_mkclean(pte_wrprotect(was)));
  walk.batch.add(mm, address, &page);
  ++walk.count;
  return true;
}

int Rmap::page_mkclean(Page& page, FlushBatch& batch) {
  WEIR_FLOW(tables_.pages().mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked));
  if (!page_mapped(page) || PageAnon(page)) return 0;
  Walk walk{.rmap = *this, .batch = batch};
  RmapWalkControl control{.arg = &walk, .rmap_one = page_mkclean_one, .invalid_vma = invalid_mkclean_vma};
  rmap_walk(page, control);
  return walk.count;
}

}  // namespace weir
