// src/mm/filemap.hpp
//
// The page cache's tree, and the page lock. Linux: mm/filemap.c (lookup half), include/linux/pagemap.h, fs.h.
//
//   AddressSpace: index --> Page (radix tree, tags DIRTY WRITEBACK TOWRITE); one a file, one per 64 MiB of a swap area
//
//   lock_page:    PG_locked 0 --one atomic--> 1 (ours)      1 --> sleep in the page's hashed queue --> try again
//   unlock_page:  PG_locked 1 --> 0; nobody queued: done.   Otherwise: all who only wait for the unlock, and one locker
//
// Who counts NR_FILE_PAGES: the functions here for the trees of files; swap_state for its own trees, which it fills
// itself.
#pragma once

#include "mm/address_space.hpp"
#include "mm/slab.hpp"
#include "mm/swap.hpp"
#include "mm/workingset.hpp"

namespace weir {

/// Nodes of page trees from one slab cache, allocated as `gfp` says. Made where it is used; small.
class PageTreeNodes final : public RadixNodeSource {
 public:
  /// A chain for each CPU; the first node's `exceptional` says how many there are.
  using Spares = WorldAtomic<RadixTreeNode*>[MAX_CPUS];

  PageTreeNodes(Slab& slab, KmemCache*& cache, Spares& spares, gfp_t gfp)
      : slab_(slab), cache_(cache), spares_(spares), gfp_(gfp) {}
  RadixTreeNode* alloc_node() override;
  void free_node(RadixTreeNode* node) override;
  Chain take_spares() override;
  bool keep_spares(Chain spares) override;

 private:
  [[nodiscard]] WorldAtomic<RadixTreeNode*>& this_cpu_spares() const;
  Slab& slab_;
  KmemCache*& cache_;
  Spares& spares_;
  gfp_t gfp_;
};

/// The page lock, waiting for page bits, and trees of pages.
class Filemap {
 public:
  Filemap(PageAllocator& pages, Slab& slab, Lru& lru, VmStat& vmstat);
  /// Makes the cache "radix_tree_node". Errors: ENOMEM.
  Result<void> init();

  // ---- page bits
  /// Sleeps until the lock is ours.
  void lock_page(Page& page) {
    might_sleep();
    lockdep_acquire(&page, LockRank::page);
    if (__builtin_expect(page.test_and_set(PageFlag::locked), 0)) __lock_page(page);
    locked(page);
  }
  /// False if the task got a fatal signal instead.
  [[nodiscard]] bool lock_page_killable(Page& page);
  [[nodiscard]] bool trylock_page(Page& page) {
    if (page.test_and_set(PageFlag::locked)) return false;
    locked(page);
    return true;
  }
  /// A page nobody else can see yet.
  void __set_page_locked(Page& page);
  /// Any context, any thread: the end of a read unlocks what the reader locked.
  void unlock_page(Page& page) {
    lockdep_release_any(&page, LockRank::page);
    // A locker queues before it tries the bit for the last time, by an atomic that this one orders with: either it
    // finds the bit free, or its queue is seen here.
    WaitQueue& queue = page_waitqueue(page);
    const bool was_locked = page.test_and_clear(PageFlag::locked);
    WEIR_DEBUG_BUG_ON(!was_locked);
    (void)was_locked;
    if (__builtin_expect(!queue.empty(), 0)) wake_up_page(queue, page);
    preempt();
  }
  void wait_on_page_locked(Page& page);
  /// False if the task got a fatal signal instead.
  [[nodiscard]] bool wait_on_page_locked_killable(Page& page);
  void wait_on_page_writeback(Page& page);
  /// Page locked; NR_WRITEBACK. Tags the tree (WRITEBACK; TOWRITE and, unless PG_dirty, DIRTY go) unless
  /// no_writeback_tags.
  void set_page_writeback(Page& page);
  /// Wakes; rotates a PG_reclaim page. Any context. The page is not touched once the bit is off: it may be freed then.
  void end_page_writeback(Page& page);

  // ---- trees
  /// Nodes without sleeping, as far down into the reserves as the caller's rights go: for inserts by reclaim and for
  /// erasing.
  [[nodiscard]] RadixNodeSource& node_source() { return nowait_nodes_; }
  /// Nodes as `gfp` says (of which only what concerns reclaim counts): for a preload that may sleep.
  [[nodiscard]] PageTreeNodes node_source(gfp_t gfp);
  /// With a reference, or null. An exceptional entry is "not there".
  [[nodiscard]] Page* find_get_page(AddressSpace& mapping, uint64_t index);
  /// The same, locked. Sleeps.
  [[nodiscard]] Page* find_lock_page(AddressSpace& mapping, uint64_t index);
  /// What lies at an index: a page, locked and referenced, or an exceptional entry, or nothing.
  struct TreeEntry {
    Page* page = nullptr;
    void* exceptional = nullptr;
  };
  /// Sleeps.
  [[nodiscard]] TreeEntry find_lock_entry(AddressSpace& mapping, uint64_t index);
  /// Page locked, new to the tree: reference, mapping and index set, NR_FILE_PAGES. Errors: EEXIST, ENOMEM; the page is
  /// then as before. Sleeps as gfp allows.
  Result<void> add_to_page_cache_locked(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp);
  /// The same, then onto the file LRU. `page` comes unlocked and new; locked after success.
  Result<void> add_to_page_cache_lru(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp);
  /// The same without the LRU. Recorded name of documents 004.
  Result<void> add_to_page_cache(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp);
  /// Page locked; off the tree, reference dropped by the caller afterwards (lru.put_page).
  void delete_from_page_cache(Page& page);
  /// tree_lock held. Also for a page whose count is frozen at 0. `shadow`: what its slot holds from now on, or null.
  void __delete_from_page_cache(Page& page, void* shadow = nullptr);
  /// The shadows of pages [start, end] go.
  void clear_shadows(AddressSpace& mapping, uint64_t start, uint64_t end);
  /// tree_lock held, no page in the tree: the shadows go, and the nodes.
  void destroy_tree(AddressSpace& mapping);
  /// Where evicted pages leave a shadow (4.14); null elsewhere. Set once, at boot.
  void set_workingset(Workingset* workingset) {
    workingset_ = workingset;
    workingset->set_node_source(nowait_nodes_);
  }
  [[nodiscard]] Workingset* workingset() const { return workingset_; }
  /// From `start` on, by ascending index, with references. Returns how many.
  unsigned find_get_pages(AddressSpace& mapping, uint64_t start, unsigned max, Page** pages);
  /// The same of those in [start, end] that have the tag.
  unsigned find_get_pages_tag(AddressSpace& mapping, uint64_t start, uint64_t end, PageTag tag, unsigned max,
                              Page** pages);
  /// See weir::file_mapping.
  [[nodiscard]] static AddressSpace* file_mapping(const Page& page) { return weir::file_mapping(page); }

  [[nodiscard]] Lru& lru() const { return lru_; }
  [[nodiscard]] PageAllocator& pages() const { return pages_; }

 private:
  [[nodiscard]] static TreeEntry find_get_entry(AddressSpace& mapping, uint64_t index);
  // What a thread waits for is told apart by its key, an address inside the page.
  static const void* locker_key(const Page& page) { return &page.flags; }
  static const void* unlock_key(const Page& page) { return &page.mapping; }
  static const void* writeback_key(const Page& page) { return &page.index; }
  /// Chosen by frame number and not by address: which queues are shared must not change from run to run.
  WaitQueue& page_waitqueue(const Page& page) {
    return waitqueues_.of(reinterpret_cast<const void*>(pages_.mem().pfn(page).v + 1));
  }
  static void preempt() {
    if (World* w = engine_thread().world) w->preempt_point();
  }
  static void locked(Page& page) {
    lockdep_acquire_try(&page, LockRank::page);
    preempt();
  }
  void __lock_page(Page& page);
  void wake_up_page(WaitQueue& queue, Page& page);
  void wait_on_page_bit(Page& page, PageFlag bit, const void* key);
  Result<void> add_to_page_cache(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp, void*& shadow);
  Result<void> __add_to_page_cache_locked(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp, void*& shadow);
  Result<void> page_cache_tree_insert(AddressSpace& mapping, Page& page, uint64_t index, RadixPreload& preload,
                                      void*& shadow);
  /// tree_lock held.
  [[nodiscard]] bool has_shadows(const AddressSpace& mapping) const {
    return workingset_ != nullptr && mapping.nrexceptional != 0 && !mapping.no_writeback_tags;
  }
  void page_cache_tree_delete(AddressSpace& mapping, Page& page, void* shadow);

  PageAllocator& pages_;
  Slab& slab_;
  Lru& lru_;
  VmStat& vmstat_;
  Workingset* workingset_ = nullptr;
  KmemCache* node_cache_ = nullptr;
  PageTreeNodes::Spares spare_nodes_ = {};
  PageTreeNodes nowait_nodes_;
  WaitTable waitqueues_;
};

}  // namespace weir
