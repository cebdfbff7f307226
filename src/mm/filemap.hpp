// src/mm/filemap.hpp
//
// The page cache's tree, and the page lock. Linux: mm/filemap.c (lookup half), include/linux/pagemap.h, fs.h.
//
//   AddressSpace: index --> Page (radix tree, tags DIRTY WRITEBACK TOWRITE); one a file, one per 64 MiB of a swap area
#pragma once

#include "base/radix_tree.hpp"
#include "mm/mm_types.hpp"
#include "mm/swap.hpp"

namespace weir {

enum class PageTag : unsigned { dirty = 0, writeback = 1, towrite = 2 };

enum class SyncMode : uint8_t { none, all };
/// Who writes and how. Linux: struct writeback_control.
struct WritebackControl {
  int64_t nr_to_write = 0;
  SyncMode sync_mode = SyncMode::none;
  bool for_reclaim = false;
  bool for_background = false;
  uint64_t range_start = 0, range_end = ~uint64_t{0};  ///< pages, inclusive
};

inline constexpr int AOP_WRITEPAGE_ACTIVATE = 0x80000;

struct AddressSpace;
/// What the owner of an AddressSpace does with its pages. Linux: struct address_space_operations.
class AddressSpaceOps {
 public:
  /// Page locked and dirty-cleared by the caller; unlocked here or at the end of the I/O. Errors: EIO, ENOSPC (page stays dirty).
  /// AOP_WRITEPAGE_ACTIVATE is said by Errno::again: the page is still locked, dirty again, and should be activated.
  virtual Result<void> writepage(Page& page, WritebackControl& wbc) = 0;
  /// Page locked; unlocked when the read ends, uptodate if it succeeded.
  virtual Result<void> readpage(AddressSpace& mapping, Page& page) = 0;
  /// True if the page was clean before.
  virtual bool set_page_dirty(Page& page) = 0;

 protected:
  ~AddressSpaceOps() = default;
};

struct Inode;

struct AddressSpace {
  Inode* host = nullptr;               ///< null: swap
  AddressSpaceOps* a_ops = nullptr;    // immutable
  SpinLock tree_lock{LockRank::tree};
  RadixTree page_tree;                 // tree_lock
  uint64_t nrpages = 0;                // tree_lock
  uint64_t nrexceptional = 0;          // tree_lock
  gfp_t gfp_mask = GFP_HIGHUSER_MOVABLE;
  bool no_writeback_tags = false;      ///< swap: never tagged
  RwSem i_mmap_rwsem{LockRank::i_mmap};
  void* i_mmap = nullptr;              ///< interval tree of VMAs; i_mmap_rwsem. Typed in rmap.hpp
  std::atomic<Errno> wb_err{Errno::ok};  ///< last write error, for fsync
};

/// The page lock, waiting for page bits, and trees of pages.
class Filemap {
 public:
  Filemap(PageAllocator& pages, Slab& slab, Lru& lru, VmStat& vmstat);
  Result<void> init();

  // ---- page bits
  void lock_page(Page& page);
  /// False if the task got a fatal signal instead.
  [[nodiscard]] bool lock_page_killable(Page& page);
  [[nodiscard]] bool trylock_page(Page& page);
  /// A page nobody else can see yet.
  void __set_page_locked(Page& page);
  void unlock_page(Page& page);
  void wait_on_page_locked(Page& page);
  void wait_on_page_writeback(Page& page);
  void set_page_writeback(Page& page);   ///< page locked; tags the tree unless no_writeback_tags
  void end_page_writeback(Page& page);   ///< wakes; rotates a PG_reclaim page. Any context.

  // ---- trees
  [[nodiscard]] RadixNodeSource& node_source();
  /// With a reference, or null. An exceptional entry is "not there".
  [[nodiscard]] Page* find_get_page(AddressSpace& mapping, uint64_t index);
  [[nodiscard]] Page* find_lock_page(AddressSpace& mapping, uint64_t index);
  /// Page locked, new to the tree: reference, mapping and index set, NR_FILE_PAGES. Errors: EEXIST, ENOMEM.
  Result<void> add_to_page_cache_locked(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp);
  /// The same, then onto the file LRU. `page` comes unlocked and new; locked after success.
  Result<void> add_to_page_cache_lru(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp);
  /// Recorded name of documents 004: add_to_page_cache.
  Result<void> add_to_page_cache(Page& page, AddressSpace& mapping, uint64_t index, gfp_t gfp);
  /// Page locked; off the tree, reference dropped by the caller afterwards (lru.put_page).
  void delete_from_page_cache(Page& page);
  /// tree_lock held.
  void __delete_from_page_cache(Page& page);
  /// With references. Returns how many.
  unsigned find_get_pages(AddressSpace& mapping, uint64_t start, unsigned max, Page** pages);
  unsigned find_get_pages_tag(AddressSpace& mapping, uint64_t start, uint64_t end, PageTag tag, unsigned max, Page** pages);

  [[nodiscard]] Lru& lru() const { return lru_; }
  [[nodiscard]] PageAllocator& pages() const { return pages_; }

 private:
  PageAllocator& pages_;
  Slab& slab_;
  Lru& lru_;
  VmStat& vmstat_;
};

}  // namespace weir
