// src/mm/swap.hpp
//
// The LRU: pages come in through small per-CPU batches (pagevecs of 14) and sit on one of five lists.
//
//   lru_cache_add --> pagevec --full or drain--> inactive/active anon/file
//   touched once: referenced;  twice: active;  put_page at count 0: off the list, freed
//
// Linux: mm/swap.c. (Swapping itself is in vmscan, swapfile, swap_state, page_io.)
#pragma once

#include "mm/page_alloc.hpp"

namespace weir {

inline constexpr unsigned PAGEVEC_SIZE = 14;

class Lru {
 public:
  Lru(PageAllocator& pages, VmStat& vmstat, Mmu& mmu, unsigned cpus);

  /// New anonymous page: inactive (active if PG_active is set). Takes a reference for the pagevec.
  void lru_cache_add_anon(Page& page);
  void lru_cache_add_file(Page& page);
  void lru_cache_add(Page& page);
  /// The fault path's entry: active, or unevictable when the VMA is VM_LOCKED.
  void lru_cache_add_active_or_unevictable(Page& page, const VmArea& vma);
  /// Moves a page on an inactive list to the active one (through a pagevec).
  void activate_page(Page& page);
  /// inactive,unref -> inactive,ref -> active,unref -> active,ref.
  void mark_page_accessed(Page& page);
  /// Writeback ended on a PG_reclaim page: to the inactive tail.
  void rotate_reclaimable_page(Page& page);
  /// Empties this CPU's pagevecs onto the lists; all CPUs'.
  void lru_add_drain();
  void lru_add_drain_all();

  /// Drops a reference; frees the page with the last one (off its LRU list first).
  void put_page(Page& page);
  /// The same for many.
  void release_pages(Page** pages, unsigned count);

  // ---- lists; node.lru_lock held
  void add_page_to_lru_list(Page& page, LruList list) WEIR_NO_THREAD_SAFETY_ANALYSIS;
  void add_page_to_lru_list_tail(Page& page, LruList list) WEIR_NO_THREAD_SAFETY_ANALYSIS;
  void del_page_from_lru_list(Page& page, LruList list) WEIR_NO_THREAD_SAFETY_ANALYSIS;
  /// The list a page with these flags belongs to.
  [[nodiscard]] static LruList page_lru(const Page& page);

  [[nodiscard]] PageCount lru_size(LruList list) const;
  [[nodiscard]] Node& node() const;
  [[nodiscard]] PageAllocator& pages() const { return pages_; }
  /// Pages now in pagevecs, for verify().
  [[nodiscard]] unsigned in_pagevecs(const Page& page) const;

 private:
  PageAllocator& pages_;
  VmStat& vmstat_;
  Mmu& mmu_;
  unsigned cpus_;
};

}  // namespace weir
