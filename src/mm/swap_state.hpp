// src/mm/swap_state.hpp
//
// The swap cache: pages under their swap entry, so that a slot is read once and a page written once however many PTEs hold it.
//
//   out: add_to_swap (slot, cache, dirty) -> unmapped -> written -> delete_from_swap_cache -> freed
//   in:  lookup_swap_cache --miss--> read_swap_cache_async: swapcache_prepare -> insert -> read -> mapped -> perhaps kept
//
// One AddressSpace per 64 MiB (16384 slots) of an area. Linux: mm/swap_state.c 4.14.
#pragma once

#include "mm/filemap.hpp"
#include "mm/page_io.hpp"
#include "mm/swap_slots.hpp"
#include "mm/swapfile.hpp"
#include "mm/vma.hpp"

namespace weir {

inline constexpr unsigned SWAP_ADDRESS_SPACE_SHIFT = 14;

class SwapCache {
 public:
  SwapCache(Filemap& filemap, SwapFiles& swap, SwapSlots& slots, PageIo& io, VmStat& vmstat, Mmu& mmu);

  /// Spaces for an area of nr_pages slots. Errors: ENOMEM.
  Result<void> init_swap_address_space(unsigned type, uint64_t nr_pages);
  void exit_swap_address_space(unsigned type);
  [[nodiscard]] AddressSpace& swap_address_space(SwpEntry entry);
  /// The tree a page is in: swap cache, file, or null. Linux: page_mapping (mm/util.c).
  [[nodiscard]] AddressSpace* page_mapping(const Page& page);

  /// Anonymous page, locked, uptodate: gets a slot, enters the cache, dirty. False: no slot or no memory for the tree.
  bool add_to_swap(Page& page);
  /// Page locked; SWAP_HAS_CACHE of entry is the caller's. Errors: EEXIST, ENOMEM.
  Result<void> add_to_swap_cache(Page& page, SwpEntry entry, gfp_t gfp);
  /// Page locked, not under writeback. Drops the cache's hold on slot and page.
  void delete_from_swap_cache(Page& page);
  /// tree_lock held, page frozen or locked; the caller drops slot (swapcache_free) and page.
  void __delete_from_swap_cache(Page& page);
  /// With a reference, or null.
  [[nodiscard]] Page* lookup_swap_cache(SwpEntry entry);
  /// The page of entry, being read or there; with a reference. Null: no memory, or the slot is free by now.
  [[nodiscard]] Page* read_swap_cache_async(SwpEntry entry, gfp_t gfp);
  /// The same with an aligned window of neighbours (page_cluster; 0 = none), adapted to hits.
  [[nodiscard]] Page* swapin_readahead(SwpEntry entry, gfp_t gfp);
  /// Page locked: the slot is given up if nobody but the cache holds it; the page is then dirty. True if given up.
  bool try_to_free_swap(Page& page);
  /// May this page be written in place by its only mapper? Page locked. Drops an unshared slot.
  bool reuse_swap_page(Page& page);
  /// put_page, dropping a swap-cache-only page's slot first if it can.
  void free_page_and_swap_cache(Page& page);
  /// A PTE that held entry is gone (zap): frees the slot, and the cached page if it was the last user and vm_swap_full.
  void free_swap_and_cache(SwpEntry entry);

  void set_page_cluster(unsigned log2) { page_cluster_ = log2; }
  struct Stats {
    std::atomic<uint64_t> add_total{0}, del_total{0}, find_success{0}, find_total{0};
  };
  [[nodiscard]] const Stats& stats() const { return stats_; }
  [[nodiscard]] Filemap& filemap() const { return filemap_; }

 private:
  Filemap& filemap_;
  SwapFiles& swap_;
  SwapSlots& slots_;
  PageIo& io_;
  VmStat& vmstat_;
  Mmu& mmu_;
  unsigned page_cluster_ = 3;
  Stats stats_;
};

}  // namespace weir
