// src/mm/swapfile.hpp
//
// Swap areas and their maps: who uses which slot.
//
//   swap_map[slot]: 0 free · 1…0x3e users (PTEs) | SWAP_HAS_CACHE 0x40 · SWAP_MAP_BAD 0x3f · 0x80 count goes on elsewhere
//   take: get_swap_pages -> scan_swap_map_slots (clusters of 256) -> SWAP_HAS_CACHE
//   give: swap_free (a PTE goes), swapcache_free (the cache goes); 0 -> slot free
//
// Invariant: users of slot S = PTEs that hold S; SWAP_HAS_CACHE set iff S is in the swap cache (or held by the slots cache).
// Linux: mm/swapfile.c 4.14. swapon, swapoff and reuse of pages are in swapfile_unuse.
#pragma once

#include "block/block.hpp"
#include "mm/mm_types.hpp"
#include "mm/swapops.hpp"
#include "mm/vmalloc.hpp"

namespace weir {

inline constexpr uint8_t SWAP_HAS_CACHE = 0x40, SWAP_MAP_MAX = 0x3e, SWAP_MAP_BAD = 0x3f, COUNT_CONTINUED = 0x80;
inline constexpr unsigned SWAPFILE_CLUSTER = 256;
inline constexpr uint64_t LATENCY_LIMIT = 256;

enum SwpFlag : uint32_t { SWP_USED = 1, SWP_WRITEOK = 2, SWP_DISCARDABLE = 4, SWP_SOLIDSTATE = 16, SWP_BLKDEV = 64, SWP_FILE = 128 };

/// One area. Linux: struct swap_info_struct.
struct SwapInfo {
  SpinLock lock{LockRank::swap_area};
  uint32_t flags = 0;            // lock
  int16_t prio = 0;              // swap_lock
  unsigned type = 0;             ///< index in swap_info[]; immutable while used
  uint64_t max = 0;              ///< slots, the header's included
  uint8_t* swap_map = nullptr;   ///< in the machine's own frames; lock
  uint64_t lowest_bit = 0, highest_bit = 0;   // lock
  uint64_t pages = 0;            ///< usable slots
  uint64_t inuse_pages = 0;      // lock; = slots whose map is neither 0 nor BAD
  uint64_t cluster_next = 0, cluster_nr = 0;  // lock
  BlockDevice* bdev = nullptr;
  std::atomic<uint64_t> write_errors{0}, read_errors{0};
};

class SwapFiles {
 public:
  SwapFiles(PageAllocator& pages, Slab& slab, Vmalloc& vmalloc, VmStat& vmstat, unsigned cpus);

  // ---- slots
  /// Takes up to n slots of the best area (priority, then round robin; areas whose device has no room are passed over), each with
  /// SWAP_HAS_CACHE. Returns how many.
  unsigned get_swap_pages(unsigned n, SwpEntry* entries);
  /// Gives back slots that hold only SWAP_HAS_CACHE, in bulk (slots cache).
  void swapcache_free_entries(SwpEntry* entries, unsigned n);
  /// One more PTE holds the entry. Errors: EINVAL (bad entry), ENOENT (free slot), ENOMEM (count at its maximum, no continuation).
  Result<void> swap_duplicate(SwpEntry entry);
  /// A PTE that held it is gone.
  void swap_free(SwpEntry entry);
  /// Takes SWAP_HAS_CACHE before reading a slot in. Errors: EEXIST (somebody else is reading it), ENOENT (free meanwhile).
  Result<void> swapcache_prepare(SwpEntry entry);
  /// The cache lets go of the slot. Goes through `release` (slots cache) when that was its last user.
  void swapcache_free(SwpEntry entry);
  /// Users of the slot without the cache.
  [[nodiscard]] int swp_swapcount(SwpEntry entry);
  [[nodiscard]] uint8_t swap_map_value(SwpEntry entry);
  /// More than half of all slots used: clean swap-cache copies are given up eagerly.
  [[nodiscard]] bool vm_swap_full() const;
  [[nodiscard]] int64_t nr_swap_pages() const { return nr_swap_pages_.load(std::memory_order_relaxed); }
  [[nodiscard]] int64_t total_swap_pages() const { return total_swap_pages_.load(std::memory_order_relaxed); }

  // ---- areas
  [[nodiscard]] SwapInfo* swap_info(unsigned type);       ///< null if not in use
  [[nodiscard]] SwapInfo* swap_info_get(SwpEntry entry);  ///< null and a report for a bad entry
  /// Reserves a type number. Errors: EPERM when all are used.
  Result<SwapInfo*> alloc_swap_info();
  /// The area (map, max, bdev set) takes part from now on.
  void enable_swap_info(SwapInfo& si, int prio);
  void disable_swap_info(SwapInfo& si);
  void release_swap_info(SwapInfo& si);

  /// The list of Mms that may hold swap entries. Linux: mmlist.
  void mmlist_add(Mm& mm);
  void mmlist_remove(Mm& mm);

  [[nodiscard]] PageAllocator& pages() const { return pages_; }
  [[nodiscard]] Slab& slab() const { return slab_; }
  [[nodiscard]] Vmalloc& vmalloc() const { return vmalloc_; }

 private:
  PageAllocator& pages_;
  Slab& slab_;
  Vmalloc& vmalloc_;
  VmStat& vmstat_;
  std::atomic<int64_t> nr_swap_pages_{0}, total_swap_pages_{0};
};

}  // namespace weir
