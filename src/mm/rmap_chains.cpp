// src/mm/rmap_chains.cpp: VMAs and AnonVmas linked many to many. See rmap.hpp. Linux: mm/rmap.c 3.7 to 4.14.
#include "mm/rmap_chains.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "rmap.cpp"

namespace weir {

// ---- Anchors: chains ------------------------------------------------------------------------------------------------

AnonVmaChain* RmapChains::alloc_chains(unsigned n) {
  AnonVmaChain* list = nullptr;
  for (; n > 0; --n) {
    AnonVmaChain* chain = slab().create<AnonVmaChain>(chain_cache(), GFP_KERNEL);
    if (chain == nullptr) {
      free_chains(list);
      return nullptr;
    }
    chain->next_of_vma = list;
    list = chain;
  }
  return list;
}

void RmapChains::free_chains(AnonVmaChain* chains) {
  while (chains != nullptr) {
    AnonVmaChain* next = chains->next_of_vma;
    slab().destroy(chain_cache(), chains);
    chains = next;
  }
}

/// Root locked for writing.
void RmapChains::anon_vma_chain_link(VmArea& vma, AnonVmaChain& chain, AnonVma& anon_vma) {
  chain.vma = &vma;
  chain.anon_vma = &anon_vma;
  chain.next_of_vma = vma.chains;
  vma.chains = &chain;
  anon_vma.rb_root.insert(&chain);
}

Result<void> RmapChains::anon_vma_prepare(VmArea& vma, VmArea* mergeable_neighbour) {
  Mm& mm = *vma.vm_mm;
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

Result<void> RmapChains::clone_chains(VmArea& dst, VmArea& src, Reuse reuse) {
  WEIR_DEBUG_BUG_ON(dst.chains != nullptr);
  AnonVma* root = Rmap::root_of(src);
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

Result<void> RmapChains::anon_vma_clone(VmArea& dst, VmArea& src) {
  WEIR_FLOW(dst, src);
  dst.anon_vma = src.anon_vma;
  Result<void> cloned = clone_chains(dst, src, Reuse::no);
  if (!cloned) dst.anon_vma = nullptr;
  return cloned;
}

Result<void> RmapChains::anon_vma_fork(VmArea& dst, VmArea& src) {
  WEIR_FLOW(dst, src);
  dst.anon_vma = nullptr;
  if (src.anon_vma == nullptr) return {};
  AnonVma* fresh = anon_vma_alloc();
  AnonVmaChain* chain = alloc_chains(1);
  Result<void> done = fresh == nullptr || chain == nullptr ? Result<void>(Errno::nomem) : Result<void>();
  if (done) done = clone_chains(dst, src, reuse_);
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

void RmapChains::unlink_anon_vmas(VmArea& vma) {
  AnonVma* root = Rmap::root_of(vma);
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

void RmapChains::anon_vma_merge(VmArea& vma, VmArea& next) {
  WEIR_FLOW(vma, next);
  unlink_anon_vmas(next);
}

// ---- Ranges, walks --------------------------------------------------------------------------------------------------

void RmapChains::pre_update_vma(VmArea& vma) {
  for (AnonVmaChain* c = vma.chains; c != nullptr; c = c->next_of_vma) c->anon_vma->rb_root.erase(c);
}

void RmapChains::post_update_vma(VmArea& vma) {
  for (AnonVmaChain* c = vma.chains; c != nullptr; c = c->next_of_vma) c->anon_vma->rb_root.insert(c);
}

/// Others may map a page that is not exclusive: it must hang where all of the family are linked.
AnonVma* RmapChains::anchor(const VmArea& vma, Exclusive exclusive) const {
  return exclusive == Exclusive::yes ? vma.anon_vma : vma.anon_vma->root;
}

bool RmapChains::linked(const VmArea& vma, const AnonVma* anon_vma) const {
  const AnonVmaChain* chain = vma.chains;
  while (chain != nullptr && chain->anon_vma != anon_vma) chain = chain->next_of_vma;
  return chain != nullptr && vma.anon_vma != nullptr;
}

void RmapChains::for_each_vma(AnonVma& anon_vma, uint64_t first, uint64_t last, bool (*fn)(VmArea&, void*),
                              void* arg) const {
  for (AnonVmaChain* c = anon_vma.rb_root.iter_first(first, last); c != nullptr;
       c = anon_vma.rb_root.iter_next(c, first, last))
    if (!fn(*c->vma, arg)) return;
}

AnonVma* RmapChains::page_lock_anon_vma_read(Page& page) {
  WEIR_FLOW(pfn(page));
  return lock_family_of(page);
}

void RmapChains::page_unlock_anon_vma_read(AnonVma& anon_vma) { unlock_family(anon_vma); }

}  // namespace weir
