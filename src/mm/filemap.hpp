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

#include "base/radix_tree.hpp"
#include "mm/mm_types.hpp"
#include "mm/slab.hpp"
#include "mm/swap.hpp"

namespace weir {

enum class PageTag : unsigned {
  dirty = PAGECACHE_TAG_DIRTY,
  writeback = PAGECACHE_TAG_WRITEBACK,
  towrite = PAGECACHE_TAG_TOWRITE
};

enum class SyncMode : uint8_t { none, all };
/// Who writes and how. Linux: struct writeback_control.
struct WritebackControl {
  int64_t nr_to_write = 0;
  SyncMode sync_mode = SyncMode::none;
  bool for_reclaim = false;
  bool for_background = false;
  bool range_cyclic = false;  ///< goes on where the last one ended (writeback_index), and once around
  uint64_t range_start = 0, range_end = ~uint64_t{0};  ///< pages, inclusive
};

inline constexpr int AOP_WRITEPAGE_ACTIVATE = 0x80000;

struct AddressSpace;
/// What the owner of an AddressSpace does with its pages. Linux: struct address_space_operations.
class AddressSpaceOps {
 public:
  /// Page locked and dirty-cleared by the caller; unlocked here or at the end of the I/O. Errors: EIO, ENOSPC (page
  /// stays dirty). AOP_WRITEPAGE_ACTIVATE is said by Errno::again: the page is still locked, dirty again, and should be
  /// activated.
  virtual Result<void> writepage(Page& page, WritebackControl& wbc) = 0;
  /// Page locked; unlocked when the read ends, uptodate if it succeeded.
  virtual Result<void> readpage(AddressSpace& mapping, Page& page) = 0;
  /// True if the page was clean before.
  virtual bool set_page_dirty(Page& page) = 0;

 protected:
  ~AddressSpaceOps() = default;
};

struct Inode;

/// Do the copies that private mappings have made of a file's pages go with them? Linux: even_cows.
enum class EvenCows : uint8_t { no, yes };

struct AddressSpace {
  Inode* host = nullptr;             ///< null: swap
  AddressSpaceOps* a_ops = nullptr;  // immutable
  SpinLock tree_lock{LockRank::tree};
  RadixTree page_tree;         // tree_lock
  uint64_t nrpages = 0;        // tree_lock
  uint64_t nrexceptional = 0;  // tree_lock
  gfp_t gfp_mask = GFP_HIGHUSER_MOVABLE;
  bool no_writeback_tags = false;     ///< swap: never tagged
  uint64_t max_index = ~uint64_t{0};  ///< no page is ever above it; immutable. A low tree reserves few nodes an insert
  RwSem i_mmap_rwsem{LockRank::i_mmap};
  VmaFileTree i_mmap;                    ///< the VMAs that map it; i_mmap_rwsem
  uint64_t writeback_index = 0;          ///< where the next cyclic write begins; its writer's
  std::atomic<Errno> wb_err{Errno::ok};  ///< last write error
  std::atomic<uint32_t> wb_err_seq{0};   ///< errors so far: each open file reports each once, by fsync
};

/// Nodes of page trees from one slab cache, allocated as `gfp` says. Made where it is used; small.
class PageTreeNodes final : public RadixNodeSource {
 public:
  PageTreeNodes(Slab& slab, KmemCache*& cache, gfp_t gfp) : slab_(slab), cache_(cache), gfp_(gfp) {}
  RadixTreeNode* alloc_node() override;
  void free_node(RadixTreeNode* node) override;

 private:
  Slab& slab_;
  KmemCache*& cache_;
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
  /// Page locked, new to the tree: reference, mapping and index set, NR_FILE_PAGES. Errors: EEXIST, ENOMEM; the page is
  /// then as before. Sleeps as gfp allows.
  Result<void> add_to_page_cache_locked(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp);
  /// The same, then onto the file LRU. `page` comes unlocked and new; locked after success.
  Result<void> add_to_page_cache_lru(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp);
  /// The same without the LRU. Recorded name of documents 004.
  Result<void> add_to_page_cache(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp);
  /// Page locked; off the tree, reference dropped by the caller afterwards (lru.put_page).
  void delete_from_page_cache(Page& page);
  /// tree_lock held. Also for a page whose count is frozen at 0.
  void __delete_from_page_cache(Page& page);
  /// From `start` on, by ascending index, with references. Returns how many.
  unsigned find_get_pages(AddressSpace& mapping, uint64_t start, unsigned max, Page** pages);
  /// The same of those in [start, end] that have the tag.
  unsigned find_get_pages_tag(AddressSpace& mapping, uint64_t start, uint64_t end, PageTag tag, unsigned max,
                              Page** pages);
  /// The file a page belongs to, null for anonymous pages (in the swap cache or not) and for none. Stable under the
  /// page lock.
  [[nodiscard]] static AddressSpace* file_mapping(const Page& page) {
    const uintptr_t m = page.mapping.load(std::memory_order_acquire);
    return (m & PAGE_MAPPING_ANON) != 0 || page.test(PageFlag::slab) ? nullptr : reinterpret_cast<AddressSpace*>(m);
  }

  [[nodiscard]] Lru& lru() const { return lru_; }
  [[nodiscard]] PageAllocator& pages() const { return pages_; }

 private:
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
  Result<void> __add_to_page_cache_locked(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp);
  static Result<void> page_cache_tree_insert(AddressSpace& mapping, Page& page, uint64_t index, RadixPreload& preload);

  PageAllocator& pages_;
  Slab& slab_;
  Lru& lru_;
  VmStat& vmstat_;
  KmemCache* node_cache_ = nullptr;
  PageTreeNodes nowait_nodes_;
  WaitTable waitqueues_;
};

}  // namespace weir
