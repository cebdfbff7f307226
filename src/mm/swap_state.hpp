// src/mm/swap_state.hpp
//
// The swap cache: pages under their swap entry, so that a slot is read once and a page written once however many PTEs
// hold it.
//
//   out: add_to_swap (slot, cache, dirty) -> unmapped -> written -> delete_from_swap_cache -> freed
//   in:  lookup_swap_cache --miss--> read_swap_cache_async: swapcache_prepare -> insert -> read -> mapped -> perhaps
//   kept
//
//   slot free --get_swap_page--> HAS_CACHE --insert--> cached --PTEs--> cached + n users --reclaimed--> n users
//        ^                                               ^---------------- swapcache_prepare, read -------'
//        '--------- last user gone ---------------------------------------------------------------------'
//
// One AddressSpace per 64 MiB (16384 slots) of an area; the index in its tree is the slot's offset in the area.
// Linux: mm/swap_state.c 4.14 (readahead by clusters of slots), and of mm/swapfile.c what concerns pages:
// try_to_free_swap, reuse_swap_page, free_swap_and_cache.
#pragma once

#include "mm/filemap.hpp"
#include "mm/page_io.hpp"
#include "mm/swap_slots.hpp"
#include "mm/swapfile.hpp"
#include "mm/vma.hpp"

namespace weir {

inline constexpr unsigned SWAP_ADDRESS_SPACE_SHIFT = 14;
inline constexpr uint64_t SWAP_ADDRESS_SPACE_PAGES = uint64_t{1} << SWAP_ADDRESS_SPACE_SHIFT;

class SwapCache {
 public:
  SwapCache(Filemap& filemap, SwapFiles& swap, SwapSlots& slots, PageIo& io, VmStat& vmstat, Mmu& mmu);
  SwapCache(const SwapCache&) = delete;
  SwapCache& operator=(const SwapCache&) = delete;

  /// Spaces for an area of nr_pages slots. Errors: ENOMEM.
  Result<void> init_swap_address_space(unsigned type, uint64_t nr_pages);
  /// The area goes; its spaces are empty, and stay for the next one.
  void exit_swap_address_space(unsigned type);
  /// The area of `entry` has spaces.
  [[nodiscard]] AddressSpace& swap_address_space(SwpEntry entry);
  /// The tree a page is in: swap cache, file, or null. Linux: page_mapping (mm/util.c). Stable under the page lock.
  [[nodiscard]] AddressSpace* page_mapping(const Page& page);

  /// Anonymous page, locked, uptodate: gets a slot, enters the cache, dirty. False: no slot or no memory for the tree.
  bool add_to_swap(Page& page);
  /// Page locked; SWAP_HAS_CACHE of entry is the caller's. Errors: EEXIST, ENOMEM; page and slot are then as before.
  Result<void> add_to_swap_cache(Page& page, SwpEntry entry, gfp_t gfp);
  /// Page locked, not under writeback. Drops the cache's hold on slot and page.
  void delete_from_swap_cache(Page& page);
  /// tree_lock held, page frozen or locked; the caller drops slot (swapcache_free) and page.
  void __delete_from_swap_cache(Page& page);
  /// With a reference, or null. Counts the hit, and a hit on a page that was read ahead.
  [[nodiscard]] Page* lookup_swap_cache(SwpEntry entry);
  /// With a reference, or null; counts nothing.
  [[nodiscard]] Page* find_swap_cache(SwpEntry entry);
  /// The page of entry, being read or there; with a reference. Null: no memory, or the slot is free by now. Sleeps.
  [[nodiscard]] Page* read_swap_cache_async(SwpEntry entry, gfp_t gfp);
  /// The same with an aligned window of neighbours (page_cluster; 0 = none), adapted to hits.
  [[nodiscard]] Page* swapin_readahead(SwpEntry entry, gfp_t gfp);
  /// Page locked: the slot is given up if nobody but the cache holds it; the page is then dirty. True if given up.
  bool try_to_free_swap(Page& page);
  /// May this page be written in place by its only mapper? Page locked. Drops an unshared slot (the page is then
  /// dirty), but not that of a page under writeback: where hardware has no dirty bits the caller waits for that before
  /// it maps the page.
  bool reuse_swap_page(Page& page);
  /// Drops the slot of a page that only the swap cache keeps, if nobody else holds the slot or the page lock.
  void free_swap_cache(Page& page);
  /// put_page, dropping a swap-cache-only page's slot first if it can.
  void free_page_and_swap_cache(Page& page);
  /// A PTE that held entry is gone (zap): frees the slot, and the cached page if the cache was its last user and the
  /// page is unmapped, or swap is more than half full. Never sleeps.
  void free_swap_and_cache(SwpEntry entry);
  /// The copy in the cache goes if it is the slot's last user. True if it went. Never sleeps.
  bool __try_to_reclaim_swap(SwpEntry entry);

  void set_page_cluster(unsigned log2) { page_cluster_.store(log2, std::memory_order_relaxed); }
  [[nodiscard]] unsigned page_cluster() const { return page_cluster_.load(std::memory_order_relaxed); }
  /// Pages in the cache. Linux: total_swapcache_pages.
  [[nodiscard]] PageCount total_swapcache_pages() const;
  struct Stats {
    std::atomic<uint64_t> add_total{0}, del_total{0}, find_success{0}, find_total{0};
  };
  [[nodiscard]] const Stats& stats() const { return stats_; }
  [[nodiscard]] Filemap& filemap() const { return filemap_; }
  [[nodiscard]] Mmu& mmu() const { return mmu_; }

  /// Calls fn(type, AddressSpace&) for every space. For verify() and dumps: no swapon or swapoff meanwhile.
  template <class Fn>
  void for_each_space(Fn fn) {
    for (unsigned type = 0; type < MAX_SWAPFILES; ++type)
      for (unsigned i = 0; i < nr_swapper_spaces_[type]; ++i) fn(type, swapper_spaces_[type][i]);
  }

  /// Slots to read for a fault on `offset`: row 46's rule. `prev_offset` and `last` are those of the fault before;
  /// `hits` on pages read ahead since then.
  [[nodiscard]] static unsigned __swapin_nr_pages(uint64_t prev_offset, uint64_t offset, unsigned hits,
                                                  unsigned max_pages, unsigned last);

 private:
  /// What a swap-cache page's owner does. Linux: swap_aops.
  class SwapAops final : public AddressSpaceOps {
   public:
    explicit SwapAops(PageIo& io) : io_(io) {}
    Result<void> writepage(Page& page, WritebackControl& wbc) override { return io_.swap_writepage(page, wbc); }
    Result<void> readpage(AddressSpace&, Page& page) override { return io_.swap_readpage(page); }
    bool set_page_dirty(Page& page) override { return io_.swap_set_page_dirty(page); }

   private:
    PageIo& io_;
  };

  [[nodiscard]] AddressSpace* space_of(SwpEntry entry) const;
  Result<void> __add_to_swap_cache(Page& page, SwpEntry entry, RadixPreload& preload);
  [[nodiscard]] Page* __read_swap_cache_async(SwpEntry entry, gfp_t gfp, bool& new_page_allocated);
  [[nodiscard]] unsigned swapin_nr_pages(uint64_t offset);
  [[nodiscard]] bool page_swapped(const Page& page);

  Filemap& filemap_;
  SwapFiles& swap_;
  SwapSlots& slots_;
  PageIo& io_;
  VmStat& vmstat_;
  Mmu& mmu_;
  SwapAops swap_aops_;
  std::atomic<unsigned> page_cluster_{3};
  Stats stats_;
  // Changed by swapon and swapoff, one at a time, while nobody uses the area.
  AddressSpace* swapper_spaces_[MAX_SWAPFILES] = {};
  unsigned nr_swapper_spaces_[MAX_SWAPFILES] = {};
  // Readahead, of all areas together as in Linux: a hint, raced on without harm.
  std::atomic<unsigned> swapin_readahead_hits_{4};
  std::atomic<unsigned> last_readahead_pages_{0};
  std::atomic<uint64_t> prev_offset_{0};
};

}  // namespace weir
