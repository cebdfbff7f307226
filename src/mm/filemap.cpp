// src/mm/filemap.cpp: see filemap.hpp
#include "mm/filemap.hpp"

#include <optional>

namespace weir {

namespace {

// What of a caller's flags decides how a kernel object is got. Where its page's content may lie does not.
constexpr gfp_t GFP_RECLAIM_MASK = __GFP_RECLAIM | __GFP_IO | __GFP_FS | __GFP_HIGH | __GFP_ATOMIC | __GFP_NOWARN |
                                   __GFP_RETRY_MAYFAIL | __GFP_NOFAIL | __GFP_NORETRY | __GFP_NOMEMALLOC |
                                   __GFP_MEMALLOC | __GFP_POOL;

/// Reads a bit by an atomic write, as a waiter must after it has queued (see unlock_page).
bool bit_is_set(Page& page, PageFlag bit) {
  return (page.flags.fetch_or(0, std::memory_order_acq_rel) & flag_bit(bit)) != 0;
}

}  // namespace

// ---- PageTreeNodes -------------------------------------------------------------------------------------------------

RadixTreeNode* PageTreeNodes::alloc_node() {
  return static_cast<RadixTreeNode*>(slab_.kmem_cache_alloc(*cache_, gfp_));
}

void PageTreeNodes::free_node(RadixTreeNode* node) { slab_.kmem_cache_free(*cache_, node); }

WorldAtomic<RadixTreeNode*>& PageTreeNodes::this_cpu_spares() const {
  const Thread* thread = engine_thread().thread;
  return spares_[thread != nullptr ? thread->cpu.v % MAX_CPUS : 0];
}

RadixNodeSource::Chain PageTreeNodes::take_spares() {
  RadixTreeNode* first = this_cpu_spares().exchange(nullptr, std::memory_order_acquire);
  return {first, first != nullptr ? static_cast<unsigned>(first->exceptional) : 0};
}

// Somebody else's may have come in the meantime: one chain is enough.
bool PageTreeNodes::keep_spares(Chain spares) {
  spares.first->exceptional = spares.count;
  RadixTreeNode* none = nullptr;
  return this_cpu_spares().compare_exchange_strong(none, spares.first, std::memory_order_release);
}

Filemap::Filemap(PageAllocator& pages, Slab& slab, Lru& lru, VmStat& vmstat)
    : pages_(pages),
      slab_(slab),
      lru_(lru),
      vmstat_(vmstat),
      nowait_nodes_(slab, node_cache_, spare_nodes_, GFP_NOWAIT | __GFP_POOL | __GFP_NOWARN) {}

Result<void> Filemap::init() {
  node_cache_ =
      WEIR_TRY(slab_.kmem_cache_create("radix_tree_node", sizeof(RadixTreeNode),
                                       {.align = alignof(RadixTreeNode), .reclaimable = Slab::Reclaimable::yes}));
  return {};
}

PageTreeNodes Filemap::node_source(gfp_t gfp) { return {slab_, node_cache_, spare_nodes_, gfp & GFP_RECLAIM_MASK}; }

// ---- Page bits -----------------------------------------------------------------------------------------------------

void Filemap::__lock_page(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  page_waitqueue(page).wait([&page] { return !page.test_and_set(PageFlag::locked); }, locker_key(page));
}

bool Filemap::lock_page_killable(Page& page) {
  might_sleep();
  lockdep_acquire(&page, LockRank::page);
  bool got = !page.test_and_set(PageFlag::locked);
  if (!got) {
    page_waitqueue(page).wait(
        [&page, &got] { return (got = !page.test_and_set(PageFlag::locked)) || fatal_signal_pending(); },
        locker_key(page));
  }
  if (got) locked(page);
  return got;
}

void Filemap::__set_page_locked(Page& page) {
  WEIR_DEBUG_BUG_ON(page.test(PageFlag::locked));
  page.set(PageFlag::locked);
  lockdep_acquire_try(&page, LockRank::page);
}

void Filemap::wake_up_page(WaitQueue& queue, Page& page) {
  queue.wake_all(unlock_key(page));
  queue.wake_one(locker_key(page));  // only one of them can have it; its own unlock wakes the next
}

void Filemap::wait_on_page_bit(Page& page, PageFlag bit, const void* key) {
  page_waitqueue(page).wait([&page, bit] { return !bit_is_set(page, bit); }, key);
}

void Filemap::wait_on_page_locked(Page& page) {
  might_sleep();
  if (page.test(PageFlag::locked)) wait_on_page_bit(page, PageFlag::locked, unlock_key(page));
}

bool Filemap::wait_on_page_locked_killable(Page& page) {
  might_sleep();
  bool unlocked = !page.test(PageFlag::locked);
  if (!unlocked) {
    page_waitqueue(page).wait(
        [&page, &unlocked] { return (unlocked = !bit_is_set(page, PageFlag::locked)) || fatal_signal_pending(); },
        unlock_key(page));
  }
  return unlocked;
}

void Filemap::wait_on_page_writeback(Page& page) {
  might_sleep();
  if (!page.test(PageFlag::writeback)) return;
  WEIR_FLOW(pages_.mem().pfn(page));
  wait_on_page_bit(page, PageFlag::writeback, writeback_key(page));
}

void Filemap::set_page_writeback(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked));
  AddressSpace* mapping = file_mapping(page);
  if (mapping != nullptr && !mapping->no_writeback_tags) {
    ScopedLock guard(mapping->tree_lock);
    const bool was = page.test_and_set(PageFlag::writeback);
    WEIR_DEBUG_BUG_ON(was);
    (void)was;
    mapping->page_tree.tag_set(page.index, PAGECACHE_TAG_WRITEBACK);
    if (!page.test(PageFlag::dirty)) mapping->page_tree.tag_clear(page.index, PAGECACHE_TAG_DIRTY);
    mapping->page_tree.tag_clear(page.index, PAGECACHE_TAG_TOWRITE);
  } else {
    const bool was = page.test_and_set(PageFlag::writeback);
    WEIR_DEBUG_BUG_ON(was);
    (void)was;
  }
  vmstat_.inc_node_page_state(NodeStat::nr_writeback);
  if (mapping != nullptr && mapping->wb != nullptr) mapping->wb->writeback.fetch_add(1, std::memory_order_relaxed);
}

void Filemap::end_page_writeback(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  // The page was meant for reclaim and was only kept for this write.
  if (page.test_and_clear(PageFlag::reclaim)) lru_.rotate_reclaimable_page(page);

  // Counted first: who sees the bit off sees the counters.
  vmstat_.dec_node_page_state(NodeStat::nr_writeback);
  vmstat_.inc_node_page_state(NodeStat::nr_written);
  WaitQueue& queue = page_waitqueue(page);
  bool was;
  AddressSpace* mapping = file_mapping(page);
  if (mapping != nullptr && mapping->wb != nullptr) mapping->wb->end_writeback();
  if (mapping != nullptr && !mapping->no_writeback_tags) {
    // A page under writeback stays in its tree.
    ScopedLock guard(mapping->tree_lock);
    mapping->page_tree.tag_clear(page.index, PAGECACHE_TAG_WRITEBACK);
    was = page.test_and_clear(PageFlag::writeback);
  } else {
    was = page.test_and_clear(PageFlag::writeback);
  }
  WEIR_DEBUG_BUG_ON(!was);
  (void)was;
  if (!queue.empty()) queue.wake_all(writeback_key(page));
  preempt();
}

// ---- Trees ---------------------------------------------------------------------------------------------------------

Filemap::TreeEntry Filemap::find_get_entry(AddressSpace& mapping, uint64_t index) {
  // Linux looks without the lock and then makes sure; the lock makes sure here. A page in the tree has the tree's
  // reference.
  ScopedLock guard(mapping.tree_lock);
  void* entry = mapping.page_tree.lookup(index);
  if (entry == nullptr || is_exceptional_entry(entry)) return {.exceptional = entry};
  Page* page = static_cast<Page*>(entry);
  WEIR_DEBUG_BUG_ON(page_count(*page) <= 0);
  PageAllocator::get_page(*page);
  return {.page = page};
}

Page* Filemap::find_get_page(AddressSpace& mapping, uint64_t index) {
  WEIR_FLOW(index);
  return find_get_entry(mapping, index).page;
}

Filemap::TreeEntry Filemap::find_lock_entry(AddressSpace& mapping, uint64_t index) {
  WEIR_FLOW(index);
  for (;;) {
    const TreeEntry entry = find_get_entry(mapping, index);
    if (entry.page == nullptr) return entry;
    lock_page(*entry.page);
    if (file_mapping(*entry.page) == &mapping) return entry;
    unlock_page(*entry.page);  // truncated, or gone to swap, while we waited
    lru_.put_page(*entry.page);
  }
}

Page* Filemap::find_lock_page(AddressSpace& mapping, uint64_t index) {
  for (;;) {
    Page* page = find_get_page(mapping, index);
    if (page == nullptr) return nullptr;
    lock_page(*page);
    if (file_mapping(*page) == &mapping) return page;
    unlock_page(*page);  // truncated while we waited
    lru_.put_page(*page);
  }
}

/// tree_lock held. A shadow of an evicted page gives way, to the caller; a swap entry does not: there the page is.
Result<void> Filemap::page_cache_tree_insert(AddressSpace& mapping, Page& page, uint64_t index, RadixPreload& preload,
                                             void*& shadow) {
  std::optional<Workingset::Update> update;
  if (has_shadows(mapping)) update.emplace(*workingset_, mapping, index);
  void* there = mapping.page_tree.lookup(index);
  if (there != nullptr && is_exceptional_entry(there) && !mapping.no_writeback_tags) {
    shadow = mapping.page_tree.replace(index, &page);
    --mapping.nrexceptional;
  } else {
    WEIR_TRY_VOID(mapping.page_tree.radix_tree_insert(index, &page, preload));
  }
  ++mapping.nrpages;
  page.index = index;
  page.set_mapping(reinterpret_cast<uintptr_t>(&mapping), index);
  WEIR_STATE(page_cache, cache_subject(mapping, index), 0, pages_.mem().pfn(page).v + 1);
  return {};
}

Result<void> Filemap::__add_to_page_cache_locked(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp,
                                                 void*& shadow) {
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked) || PageSwapCache(page) || index > mapping.max_index);
  PageAllocator::get_page(page);

  // 63 inserts of 64 need no node, so nothing is reserved beforehand: only when the free lists have none at once does
  // the insert come back with a reserve, for which it may sleep, and then cannot fail for want of one.
  PageTreeNodes nowait = node_source((gfp & ~__GFP_DIRECT_RECLAIM) | __GFP_NOWARN);
  Result<void> done;
  {
    RadixPreload none(nowait, mapping.max_index);
    ScopedLock guard(mapping.tree_lock);
    done = page_cache_tree_insert(mapping, page, index, none, shadow);
  }
  if (done.error() == Errno::nomem && gfp.has(__GFP_DIRECT_RECLAIM)) {
    PageTreeNodes nodes = node_source(gfp);
    RadixPreload preload(nodes, mapping.max_index);
    done = radix_tree_maybe_preload(preload);
    if (done) {
      ScopedLock guard(mapping.tree_lock);
      done = page_cache_tree_insert(mapping, page, index, preload, shadow);
    }
  }
  if (!done) {
    const bool last = PageAllocator::put_page_testzero(page);
    WEIR_BUG_ON(last);  // the caller has one
    return done;
  }
  vmstat_.inc_node_page_state(NodeStat::nr_file_pages);
  return {};
}

Result<void> Filemap::add_to_page_cache_locked(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp) {
  WEIR_FLOW(pages_.mem().pfn(page), index);
  void* shadow = nullptr;
  return __add_to_page_cache_locked(page, mapping, index, gfp, shadow);
}

Result<void> Filemap::add_to_page_cache(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp) {
  void* shadow = nullptr;
  return add_to_page_cache(page, mapping, index, gfp, shadow);
}

Result<void> Filemap::add_to_page_cache(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp, void*& shadow) {
  WEIR_FLOW(pages_.mem().pfn(page), index);
  __set_page_locked(page);
  Result<void> done = __add_to_page_cache_locked(page, mapping, index, gfp, shadow);
  if (!done) unlock_page(page);
  return done;
}

Result<void> Filemap::add_to_page_cache_lru(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp) {
  WEIR_FLOW(pages_.mem().pfn(page), index);
  void* shadow = nullptr;
  WEIR_TRY_VOID(add_to_page_cache(page, mapping, index, gfp, shadow));
  // Who overwrites a page does not ask for the old one back.
  if (workingset_ != nullptr && shadow != nullptr && !gfp.has(__GFP_WRITE) && workingset_->workingset_refault(shadow)) {
    page.set(PageFlag::active);
    workingset_->workingset_activation(page);
  }
  lru_.add_new_cache_page(page);
  return {};
}

/// tree_lock held.
void Filemap::page_cache_tree_delete(AddressSpace& mapping, Page& page, void* shadow) {
  RadixTree& tree = mapping.page_tree;
  std::optional<Workingset::Update> update;
  if (shadow != nullptr || has_shadows(mapping)) update.emplace(*workingset_, mapping, page.index);
  const void* was;
  if (shadow != nullptr) {
    for (const RadixTag tag : {PAGECACHE_TAG_DIRTY, PAGECACHE_TAG_WRITEBACK, PAGECACHE_TAG_TOWRITE})
      if (tree.tagged(tag)) tree.tag_clear(page.index, tag);
    was = tree.replace(page.index, shadow);
    ++mapping.nrexceptional;
  } else {
    was = tree.erase(page.index, nowait_nodes_);
  }
  WEIR_BUG_ON(was != &page);
  --mapping.nrpages;
}

void Filemap::clear_shadows(AddressSpace& mapping, uint64_t start, uint64_t end) {
  constexpr unsigned CHUNK = 16;
  void* found[CHUNK];
  uint64_t indices[CHUNK];
  for (;;) {
    ScopedLock guard(mapping.tree_lock);
    if (!has_shadows(mapping)) return;
    const unsigned got = mapping.page_tree.gang_lookup(found, indices, start, CHUNK);
    for (unsigned i = 0; i < got; ++i) {
      if (indices[i] > end) return;
      if (!is_exceptional_entry(found[i])) continue;
      Workingset::Update update(*workingset_, mapping, indices[i]);
      (void)mapping.page_tree.erase(indices[i], nowait_nodes_);
      --mapping.nrexceptional;
    }
    if (got < CHUNK || indices[got - 1] == ~uint64_t{0}) return;
    start = indices[got - 1] + 1;
  }
}

void Filemap::destroy_tree(AddressSpace& mapping) {
  if (workingset_ != nullptr) workingset_->forget_mapping(mapping);
  mapping.page_tree.destroy(nowait_nodes_);
  mapping.nrexceptional = 0;
}

void Filemap::__delete_from_page_cache(Page& page, void* shadow) {
  WEIR_FLOW(pages_.mem().pfn(page), page.index);
  AddressSpace* mapping = file_mapping(page);
  WEIR_BUG_ON(mapping == nullptr || PageSwapCache(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked) || page.test(PageFlag::writeback));
  page_cache_tree_delete(*mapping, page, shadow);
  page.set_mapping(0, page.index);  // index stays, for whoever looks at a page just gone
  WEIR_STATE(page_cache, cache_subject(*mapping, page.index), pages_.mem().pfn(page).v + 1, 0);
  vmstat_.dec_node_page_state(NodeStat::nr_file_pages);
  if (PageSwapBacked(page)) vmstat_.dec_node_page_state(NodeStat::nr_shmem);
  // Its bytes are given up with it.
  if (page.test_and_clear(PageFlag::dirty) && !mapping->no_writeback_tags) {
    vmstat_.dec_node_page_state(NodeStat::nr_dirty);
    if (mapping->wb != nullptr) mapping->wb->reclaimable.fetch_sub(1, std::memory_order_relaxed);
  }
}

void Filemap::delete_from_page_cache(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page), page.index);
  AddressSpace* mapping = file_mapping(page);
  WEIR_BUG_ON(mapping == nullptr);
  ScopedLock guard(mapping->tree_lock);
  __delete_from_page_cache(page);
}

unsigned Filemap::find_get_pages(AddressSpace& mapping, uint64_t start, unsigned max, Page** pages) {
  constexpr unsigned CHUNK = 16;
  void* found[CHUNK];
  uint64_t indices[CHUNK];
  unsigned count = 0;
  ScopedLock guard(mapping.tree_lock);
  while (count < max) {
    const unsigned wanted = max - count < CHUNK ? max - count : CHUNK;
    const unsigned got = mapping.page_tree.gang_lookup(found, indices, start, wanted);
    for (unsigned i = 0; i < got; ++i) {
      if (is_exceptional_entry(found[i])) continue;
      pages[count] = static_cast<Page*>(found[i]);
      PageAllocator::get_page(*pages[count++]);
    }
    if (got < wanted || indices[got - 1] == ~uint64_t{0}) break;
    start = indices[got - 1] + 1;
  }
  return count;
}

unsigned Filemap::find_get_pages_tag(AddressSpace& mapping, uint64_t start, uint64_t end, PageTag tag, unsigned max,
                                     Page** pages) {
  constexpr unsigned CHUNK = 16;
  void* found[CHUNK];
  uint64_t indices[CHUNK];
  unsigned count = 0;
  ScopedLock guard(mapping.tree_lock);
  while (count < max) {
    const unsigned wanted = max - count < CHUNK ? max - count : CHUNK;
    const unsigned got = mapping.page_tree.gang_lookup_tag(found, indices, start, wanted, static_cast<RadixTag>(tag));
    for (unsigned i = 0; i < got; ++i) {
      if (indices[i] > end) return count;
      pages[count] = static_cast<Page*>(found[i]);  // only pages are tagged
      PageAllocator::get_page(*pages[count++]);
    }
    if (got < wanted || indices[got - 1] == ~uint64_t{0}) break;
    start = indices[got - 1] + 1;
  }
  return count;
}

}  // namespace weir
