// src/mm/address_space.hpp
//
// What holds pages under an index: a file's, or a part of a swap area's. Linux: struct address_space
// (include/linux/fs.h).
//
//   page_tree: index --> Page, or an exceptional entry (a swap entry of a memory file, a shadow)
#pragma once

#include "base/radix_tree.hpp"
#include "mm/mm_types.hpp"

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
  /// Page locked; unlocked when the read ends, uptodate if it succeeded. ENOSYS: pages are not read one by one.
  virtual Result<void> readpage(AddressSpace& mapping, Page& page) {
    (void)mapping, (void)page;
    return Errno::nosys;
  }
  /// Several pages, each locked and unlocked as by readpage; at once where the device serves neighbours together
  /// (BlockDevice::batches).
  enum class Waits : uint8_t { no, yes };  ///< is the caller going to wait for them?
  virtual void readpages(AddressSpace& mapping, Page* const* pages, unsigned n, Waits waits) {
    (void)waits;
    for (unsigned i = 0; i < n; ++i) (void)readpage(mapping, *pages[i]);
  }
  /// True if the page was clean before.
  virtual bool set_page_dirty(Page& page) = 0;

 protected:
  ~AddressSpaceOps() = default;
};

/// Linux: AS_EIO, AS_ENOSPC.
enum MappingFlag : uint32_t { AS_EIO = 1, AS_ENOSPC = 2 };

struct Inode;

/// Do the copies that private mappings have made of a file's pages go with them? Linux: even_cows.
enum class EvenCows : uint8_t { no, yes };

/// What is counted for a device's dirty pages. Linux: bdi_writeback's stat.
struct WbStat {
  std::atomic<int64_t> reclaimable{0}, writeback{0};  ///< pages dirty, under writeback
  std::atomic<uint64_t> dirtied{0}, written{0};       ///< pages that became dirty, whose write ended
  WaitQueue room;                                     ///< for a request's place. Linux: request_queue's, nr_requests

  /// Who writes more waits, so that a slow device does not take all bios.
  static constexpr int64_t NR_REQUESTS = 128;
  void wait_for_room() {
    room.wait([this] { return writeback.load(std::memory_order_acquire) < NR_REQUESTS; });
  }
  void end_writeback() {
    written.fetch_add(1, std::memory_order_relaxed);
    // Not for each place: who has waited writes a few.
    if (writeback.fetch_sub(1, std::memory_order_acq_rel) <= NR_REQUESTS * 7 / 8 && !room.empty()) room.wake_all();
  }
};

struct AddressSpace {
  Inode* host = nullptr;             ///< null: swap
  uint64_t host_ino = 0;             ///< by which a recording names it: the host's number; a memory file's with bit 15
  AddressSpaceOps* a_ops = nullptr;  // immutable
  SpinLock tree_lock{LockRank::tree};
  RadixTree page_tree;         // tree_lock
  uint64_t nrpages = 0;        // tree_lock
  uint64_t nrexceptional = 0;  ///< swap entries of a memory file, else shadows; tree_lock
  uint64_t shadow_nodes = 0;   ///< tree nodes that hold shadows only; tree_lock
  uint64_t shadow_cursor = 0;  ///< where the search for such nodes goes on; tree_lock
  ListHook shadow_list;        ///< Workingset's, while there are such nodes
  WbStat* wb = nullptr;        ///< its device's; null: swap, memory files. Immutable
  gfp_t gfp_mask = GFP_HIGHUSER_MOVABLE;
  bool no_writeback_tags = false;        ///< swap and memory files: never tagged, nor counted as dirty
  std::atomic<bool> unevictable{false};  ///< SHM_LOCK: reclaim leaves its pages alone. Linux: AS_UNEVICTABLE
  uint64_t max_index = ~uint64_t{0};  ///< no page is ever above it; immutable. A low tree reserves few nodes an insert
  RwSem i_mmap_rwsem{LockRank::i_mmap};
  VmaFileTree i_mmap;                    ///< the VMAs that map it; i_mmap_rwsem
  VmaNonlinearList i_mmap_nonlinear;     ///< those with VM_NONLINEAR; i_mmap_rwsem
  uint64_t writeback_index = 0;          ///< where the next cyclic write begins; its writer's
  std::atomic<Errno> wb_err{Errno::ok};  ///< last write error
  std::atomic<uint32_t> wb_err_seq{0};   ///< errors so far: each open file reports each once, by fsync (4.13)
  std::atomic<uint32_t> wb_flags{0};     ///< MappingFlag: what nobody has been told of yet (before 4.13)
};

/// A write of one of its pages has failed: fsync will tell.
inline void mapping_set_error(AddressSpace& mapping, Errno error) {
  mapping.wb_err.store(error, std::memory_order_release);
  mapping.wb_err_seq.fetch_add(1, std::memory_order_acq_rel);
}

/// Which page of which file: how `page_cache` names it in a recording.
[[nodiscard]] inline uint64_t cache_subject(const AddressSpace& mapping, uint64_t index) {
  return mapping.host_ino << 48 | (index & ((uint64_t{1} << 48) - 1));
}

/// The file a page belongs to, null for anonymous pages (in the swap cache or not) and for none. Stable under the page
/// lock.
[[nodiscard]] inline AddressSpace* file_mapping(const Page& page) {
  const uintptr_t m = page.mapping.load(std::memory_order_acquire);
  return (m & PAGE_MAPPING_ANON) != 0 || page.test(PageFlag::slab) ? nullptr : reinterpret_cast<AddressSpace*>(m);
}

/// Do the pages of the page's file stay in memory, whatever happens? Without the page lock the answer may be late: an
/// inode's memory stays readable when it is gone.
[[nodiscard]] inline bool mapping_unevictable(const Page& page) {
  const AddressSpace* mapping = file_mapping(page);
  return mapping != nullptr && mapping->unevictable.load(std::memory_order_relaxed);
}

}  // namespace weir
