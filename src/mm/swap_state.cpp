// src/mm/swap_state.cpp: the swap cache. See swap_state.hpp
#include "mm/swap_state.hpp"

#include <algorithm>

#include "mm/page_private.hpp"

namespace weir {

namespace {

/// An empty tree whose nodes come as `mask` says.
void INIT_RADIX_TREE(AddressSpace& space, gfp_t mask) {
  WEIR_FLOW(mask);
  WEIR_BUG_ON(!space.page_tree.empty());
  WEIR_STATE(tree_init, 0, space.nrpages, mask);
  space.gfp_mask = mask;
}

/// Pages of this space are never tagged: who writes them finds them on the LRU, not in the tree.
void mapping_set_no_writeback_tags(AddressSpace& space) {
  WEIR_FLOW();
  space.no_writeback_tags = true;
}

}  // namespace

SwapCache::SwapCache(Filemap& filemap, SwapFiles& swap, SwapSlots& slots, PageIo& io, VmStat& vmstat, Mmu& mmu,
                     KernelEra kernel)
    : filemap_(filemap), swap_(swap), slots_(slots), io_(io), vmstat_(vmstat), mmu_(mmu), swap_aops_(io) {
  switch (kernel) {
    case KernelEra::linux_2_6_20: era_ = swap_cache_2_6_20(era_place_, *this); break;
    case KernelEra::linux_3: era_ = swap_cache_3(era_place_, *this); break;
    case KernelEra::linux_4_14: era_ = swap_cache_4_14(era_place_, *this); break;
  }
  one_space_ = era_->one_space();
  swapper_space_.gfp_mask = GFP_ATOMIC | __GFP_NOWARN;
  swapper_space_.a_ops = &swap_aops_;
  swapper_space_.max_index = (uint64_t{1} << 42) - 1;  // 128 TiB an area, and seven levels of nodes
  swapper_space_.no_writeback_tags = true;
  io_.set_try_to_free_swap([](void* self, Page& page) { return static_cast<SwapCache*>(self)->try_to_free_swap(page); },
                           this);
  swap_.set_try_to_reclaim_swap(
      [](void* self, SwpEntry entry) { return static_cast<SwapCache*>(self)->__try_to_reclaim_swap(entry); }, this);
}

// ---- Spaces ---------------------------------------------------------------------------------------------------------

Result<void> SwapCache::init_swap_address_space(unsigned type, uint64_t nr_pages) {
  WEIR_FLOW(type, nr_pages);
  const uint64_t nr = (nr_pages + SWAP_ADDRESS_SPACE_PAGES - 1) >> SWAP_ADDRESS_SPACE_SHIFT;
  if (nr > nr_swapper_spaces_[type]) {
    auto* spaces = static_cast<AddressSpace*>(swap_.slab().kzalloc(nr * sizeof(AddressSpace), GFP_KERNEL));
    if (spaces == nullptr) return Errno::nomem;
    for (uint64_t i = 0; i < nr; ++i) ::new (static_cast<void*>(spaces + i)) AddressSpace();
    swapper_spaces_[type] = spaces;
    nr_swapper_spaces_[type] = static_cast<unsigned>(nr);
  }
  for (uint64_t i = 0; i < nr; ++i) {
    AddressSpace& space = swapper_spaces_[type][i];
    INIT_RADIX_TREE(space, GFP_ATOMIC | __GFP_NOWARN);
    space.a_ops = &swap_aops_;
    space.max_index = std::min((i + 1) << SWAP_ADDRESS_SPACE_SHIFT, nr_pages) - 1;
    WEIR_STATE(swap_space, type, i << SWAP_ADDRESS_SPACE_SHIFT, space.max_index);
    mapping_set_no_writeback_tags(space);
  }
  return {};
}

// The spaces stay, empty, for the next area of this type: who read an entry of this one from a PTE before it was
// replaced may look here yet. It finds nothing, or another page's copy, and then sees that the PTE has changed.
void SwapCache::exit_swap_address_space(unsigned type) {
  for (unsigned i = 0; i < nr_swapper_spaces_[type]; ++i) WEIR_BUG_ON(!swapper_spaces_[type][i].page_tree.empty());
}

AddressSpace* SwapCache::space_of(SwpEntry entry) const {
  if (one_space_) return const_cast<AddressSpace*>(&swapper_space_);
  const unsigned type = swp_type(entry);
  const uint64_t i = swp_offset(entry) >> SWAP_ADDRESS_SPACE_SHIFT;
  return type < MAX_SWAPFILES && i < nr_swapper_spaces_[type] ? &swapper_spaces_[type][i] : nullptr;
}

Page* SwapCache::find_get_swap_page(SwpEntry entry) {
  AddressSpace* space = space_of(entry);
  return space != nullptr ? filemap_.find_get_page(*space, index_of(entry)) : nullptr;
}

AddressSpace& SwapCache::swap_address_space(SwpEntry entry) {
  WEIR_FLOW(entry);
  AddressSpace* space = space_of(entry);
  WEIR_BUG_ON(space == nullptr);
  return *space;
}

AddressSpace* SwapCache::page_mapping(const Page& page) {
  WEIR_FLOW(filemap_.pages().mem().pfn(page));
  if (page.test(PageFlag::slab)) return nullptr;
  if (PageSwapCache(page)) return space_of(SwpEntry{page.private_});
  return Filemap::file_mapping(page);
}

PageCount SwapCache::total_swapcache_pages() const {
  return PageCount(vmstat_.node_page_state(NodeStat::nr_swapcached));
}

// ---- In, out --------------------------------------------------------------------------------------------------------

bool SwapCache::add_to_swap(Page& page) { return era_->add_to_swap(page); }
SwpEntry SwapCache::add_shmem_to_swap(Page& page) {
  const SwpEntry entry = era_->get_swap_page(page);
  if (!entry) return {};
  if (era_->add_shmem(page, entry)) return entry;
  swap_.swapcache_free(entry);
  return {};
}
Result<void> SwapCache::add_to_swap_cache(Page& page, SwpEntry entry, gfp_t gfp) {
  return era_->add_to_swap_cache(page, entry, gfp);
}
Page* SwapCache::read_swap_cache_async(SwpEntry entry, gfp_t gfp) { return era_->read_swap_cache_async(entry, gfp); }
Page* SwapCache::swapin_readahead(SwpEntry entry, gfp_t gfp) { return era_->swapin_readahead(entry, gfp); }
bool SwapCache::try_to_free_swap(Page& page) { return era_->try_to_free_swap(page); }
bool SwapCache::reuse_swap_page(Page& page) { return era_->reuse_swap_page(page); }

void SwapCacheEra::mark_unwritten(Page& page) {
  // What an Mmu without dirty bits remembers of the slot is its last user's.
  if (!cache_.mmu_.caps().has_dirty) page.set(PageFlag::error);
  page.set(PageFlag::dirty);
}

Result<void> SwapCacheEra::preload_and_insert(Page& page, SwpEntry entry, gfp_t gfp) {
  AddressSpace* space = cache_.space_of(entry);
  if (space == nullptr) return Errno::nomem;
  PageTreeNodes nodes = filemap().node_source(gfp);
  RadixPreload reserve(nodes, space->max_index);
  WEIR_TRY_VOID(preload_for_page(reserve));
  const Result<void> added = insert(page, entry, reserve);
  radix_tree_preload_end(reserve);
  if (!added) return added.error();
  return {};
}

/// The caller has taken the cache's reference to the page; it is dropped on an error.
Result<void> SwapCache::insert(Page& page, SwpEntry entry, RadixPreload& preload) {
  const Pfn pfn = filemap_.pages().mem().pfn(page);
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked) || PageSwapCache(page) || !PageSwapBacked(page));
  AddressSpace& space = era_->space(entry);
  set_page_private(page, entry.val);
  Result<void> added;
  {
    ScopedLock guard(space.tree_lock);
    added = space.page_tree.radix_tree_insert(index_of(entry), &page, preload);
    if (added) {
      page.set(PageFlag::swapcache);
      WEIR_STATE(swap_cache, entry, 0, pfn.v + 1);
      ++space.nrpages;
      era_->count_cached(vmstat_);
      vmstat_.inc_node_page_state(NodeStat::nr_swapcached);
    } else {
      set_page_private(page, 0);
    }
  }
  if (!added) {
    filemap_.lru().put_page(page);
    return added.error();
  }
  stats_.add_total.fetch_add(1, std::memory_order_relaxed);
  return {};
}

void SwapCache::__delete_from_swap_cache(Page& page) {
  const SwpEntry entry{page.private_};
  const Pfn pfn = filemap_.pages().mem().pfn(page);
  WEIR_FLOW(pfn, entry);
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked) || !PageSwapCache(page) || page.test(PageFlag::writeback));
  AddressSpace& space = era_->space(entry);
  void* was = space.page_tree.erase(index_of(entry), filemap_.node_source());
  WEIR_BUG_ON(was != &page);
  page.clear(PageFlag::swapcache);
  WEIR_STATE(swap_cache, entry, pfn.v + 1, 0);
  set_page_private(page, 0);
  // Its doubts were about the slot.
  page.clear(PageFlag::error);
  --space.nrpages;
  vmstat_.dec_node_page_state(NodeStat::nr_file_pages);
  vmstat_.dec_node_page_state(NodeStat::nr_swapcached);
  stats_.del_total.fetch_add(1, std::memory_order_relaxed);
}

void SwapCache::delete_from_swap_cache(Page& page) {
  const SwpEntry entry{page.private_};
  WEIR_FLOW(filemap_.pages().mem().pfn(page), entry);
  AddressSpace& space = era_->space(entry);
  {
    ScopedLock guard(space.tree_lock);
    __delete_from_swap_cache(page);
  }
  swap_.swapcache_free(entry);
  filemap_.lru().put_page(page);
}

Page* SwapCache::lookup_swap_cache(SwpEntry entry, bool* read_ahead) {
  WEIR_FLOW(entry);
  stats_.find_total.fetch_add(1, std::memory_order_relaxed);
  Page* page = find_get_swap_page(entry);
  if (page == nullptr) WEIR_RETURN(static_cast<Page*>(nullptr));
  stats_.find_success.fetch_add(1, std::memory_order_relaxed);
  // On a page that is being written the same bit means that it is wanted back by reclaim; it stays.
  if (page->test(PageFlag::reclaim) && !page->test(PageFlag::writeback) && page->test_and_clear(PageFlag::reclaim)) {
    vmstat_.count_vm_event(VmEvent::swap_ra_hit);
    // Where neighbours are mapped together, the one that was left to be asked for stands for its window.
    const unsigned stands_for =
        mmu_.caps().fault_around > 1 ? std::max(last_readahead_pages_.load(std::memory_order_relaxed), 1u) : 1;
    swapin_readahead_hits_.fetch_add(stands_for, std::memory_order_relaxed);
    if (read_ahead != nullptr) *read_ahead = true;
  }
  WEIR_RETURN(page);
}

// ---- Reading --------------------------------------------------------------------------------------------------------

/// The page of entry, found, or made, locked and in the cache: then `fresh`, to be read by the caller.
Page* SwapCache::find_or_make(SwpEntry entry, gfp_t gfp, bool& is_fresh) {
  is_fresh = false;
  Page* fresh = nullptr;
  Page* found = nullptr;
  for (;;) {
    AddressSpace* space = space_of(entry);
    if (space == nullptr) break;
    found = filemap_.find_get_page(*space, index_of(entry));
    if (found != nullptr) break;
    // Nobody's any more, though it may still wait in a slots cache with SWAP_HAS_CACHE set.
    if (swap_.swp_swapcount(entry) == 0) break;
    if (fresh == nullptr) {
      fresh = filemap_.pages().alloc_page(gfp | GFP_HIGHUSER_MOVABLE);
      if (fresh == nullptr) break;
    }
    PageTreeNodes nodes = filemap_.node_source(gfp);
    RadixPreload preload(nodes, space->max_index);
    if (!era_->preload(preload)) break;
    const Result<void> prepared = swap_.swapcache_prepare(entry);
    if (prepared.error() == Errno::exist) {
      // Somebody has the slot's cache bit and not yet, or no longer, its page in the tree. That takes a moment.
      radix_tree_preload_end(preload);
      world().schedule_timeout(50_us);
      continue;
    }
    if (!prepared) {
      radix_tree_preload_end(preload);
      break;
    }
    filemap_.__set_page_locked(*fresh);
    fresh->set(PageFlag::swapbacked);
    const Result<void> added = era_->insert(*fresh, entry, preload);
    radix_tree_preload_end(preload);
    if (added) {
      filemap_.lru().lru_cache_add_anon(*fresh);
      is_fresh = true;
      return fresh;
    }
    fresh->clear(PageFlag::swapbacked);
    filemap_.unlock_page(*fresh);
    swap_.swapcache_free(entry);
    if (added.error() == Errno::nomem) break;
  }
  if (fresh != nullptr) filemap_.lru().put_page(*fresh);
  return found;
}

unsigned SwapCache::__swapin_nr_pages(uint64_t prev_offset, uint64_t offset, unsigned hits, unsigned max_pages,
                                      unsigned last) {
  // What was read ahead is used: keep reading what was used, rounded up. Nothing was: a neighbour may be the start of a
  // row.
  unsigned pages = hits + 2;
  if (hits == 0) {
    if (offset != prev_offset + 1 && offset + 1 != prev_offset) pages = 1;
  } else {
    unsigned rounded = 4;
    while (rounded < pages) rounded <<= 1;
    pages = rounded;
  }
  // Not down too fast: one miss may be a disturbance.
  return std::max(std::min(pages, max_pages), last / 2);
}

unsigned SwapCache::swapin_nr_pages(uint64_t offset) {
  const unsigned max_pages = 1u << page_cluster();
  if (max_pages <= 1) return 1;
  const unsigned hits = swapin_readahead_hits_.exchange(0, std::memory_order_relaxed);
  const unsigned pages = __swapin_nr_pages(prev_offset_.load(std::memory_order_relaxed), offset, hits, max_pages,
                                           last_readahead_pages_.load(std::memory_order_relaxed));
  if (hits == 0) prev_offset_.store(offset, std::memory_order_relaxed);
  last_readahead_pages_.store(pages, std::memory_order_relaxed);
  return pages;
}

void SwapCache::read_on(SwpEntry entry) {
  const uint64_t pages = uint64_t{1} << page_cluster();
  if (pages < 4 || last_readahead_pages_.load(std::memory_order_relaxed) < pages) return;
  const uint64_t window = (uint64_t{swp_type(entry)} << 56) + swp_offset(entry) / pages;
  auto* const row = std::find_if(std::begin(rows_), std::end(rows_), [&](const std::atomic<uint64_t>& r) {
    const uint64_t last = r.load(std::memory_order_relaxed);
    return last != 0 && window - last <= 1;
  });
  if (row == std::end(rows_)) {
    rows_[next_row_.fetch_add(1, std::memory_order_relaxed) % std::size(rows_)].store(window,
                                                                                      std::memory_order_relaxed);
    return;
  }
  row->store(window, std::memory_order_relaxed);
  const SwapInfo* si = swap_.swap_info(swp_type(entry));
  if (si == nullptr) return;
  const uint64_t first = (swp_offset(entry) | (pages - 1)) + 1;
  const uint64_t end = std::min(first + (si->bdev->synchronous() ? 1 : 2) * pages, si->max);
  // Only from memory that is free now.
  const gfp_t gfp = (GFP_HIGHUSER_MOVABLE & ~__GFP_DIRECT_RECLAIM) | __GFP_NOWARN | __GFP_NORETRY | __GFP_NOMEMALLOC;
  PageIo::ReadList list;
  for (uint64_t at = first; at < end; ++at) {
    bool fresh = false;
    Page* page = find_or_make(swp_entry(si->type, at), gfp, fresh);
    if (page == nullptr) continue;
    if (fresh) {
      page->set(PageFlag::reclaim);  // PG_readahead
      vmstat_.count_vm_event(VmEvent::swap_ra);
      (void)io_.swap_readpage(*page, &list);
    }
    filemap_.lru().put_page(*page);
  }
  io_.submit(list, PageIo::Waits::no);
}

// ---- Giving slots back ----------------------------------------------------------------------------------------------

/// Out of the cache; the page is the only copy from here on.
void SwapCache::give_up(Page& page) {
  page.set(PageFlag::dirty);
  delete_from_swap_cache(page);
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "swapfile.cpp"
bool SwapCacheEra::try_to_free_swap(Page& page) {
  WEIR_FLOW(filemap().pages().mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked));
  if (!PageSwapCache(page) || page.test(PageFlag::writeback) || cache_.page_swapcount(page) != 0) return false;
  give_up(page);
  return true;
}

bool SwapCacheEra::reuse_swap_page(Page& page) {
  WEIR_FLOW(filemap().pages().mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked));
  if (PageKsm(page)) return false;
  const bool cached = PageSwapCache(page);
  const uint64_t users = static_cast<uint64_t>(page_mapcount(page)) + (cached ? cache_.page_swapcount(page) : 0);
  if (users > 1) return false;
  if (users == 1 && cached && !page.test(PageFlag::writeback)) give_up(page);
  return true;
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "swap_state.cpp"
void SwapCache::free_swap_cache(Page& page) {
  if (!PageSwapCache(page) || page_mapped(page) || !filemap_.trylock_page(page)) return;
  try_to_free_swap(page);
  filemap_.unlock_page(page);
}

void SwapCache::free_page_and_swap_cache(Page& page) {
  free_swap_cache(page);
  filemap_.lru().put_page(page);
}

void SwapCache::free_swap_and_cache(SwpEntry entry) {
  WEIR_FLOW(entry);
  if (swap_.swap_free(entry) != (swap_.cache_is_a_user() ? 1 : SWAP_HAS_CACHE)) return;
  // Only the cache is left (where it is a user like others: perhaps). Whoever holds the page lock now decides for
  // itself.
  Page* page = find_get_swap_page(entry);
  if (page == nullptr) return;
  if (filemap_.trylock_page(*page)) {
    if (PageSwapCache(*page) && page->private_ == entry.val && (!page_mapped(*page) || swap_.vm_swap_full()))
      try_to_free_swap(*page);
    filemap_.unlock_page(*page);
  }
  filemap_.lru().put_page(*page);
}

bool SwapCache::__try_to_reclaim_swap(SwpEntry entry) {
  Page* page = find_get_swap_page(entry);
  if (page == nullptr) return false;
  bool freed = false;
  if (filemap_.trylock_page(*page)) {
    if (PageSwapCache(*page) && page->private_ == entry.val) freed = try_to_free_swap(*page);
    filemap_.unlock_page(*page);
  }
  filemap_.lru().put_page(*page);
  return freed;
}

}  // namespace weir
