// src/mm/swap_state.hpp
//
// The swap cache: pages under their swap entry, so that a slot is read once and a page written once however many PTEs
// hold it.
//
//   out: add_to_swap (slot, cache, dirty) -> unmapped -> written -> delete_from_swap_cache -> freed
//   in:  lookup_swap_cache --miss--> read_swap_cache_async: swapcache_prepare -> insert -> read -> mapped
//
//   slot free --get_swap_page--> HAS_CACHE --insert--> cached --PTEs--> cached + n users --reclaimed--> n users
//        ^                                               ^                                                 |
//        |                                               '---------------- swapcache_prepare, read --------+
//        '--------------------------------------------------------------- last user gone ------------------'
//
// One AddressSpace per 64 MiB (16384 slots) of an area; the index in its tree is the slot's offset in the area.
// Before 3.9 one swapper_space for all areas; the index is the entry. What else the eras do differently is in
// swap_state_2_6_20.cpp, swap_state_3.cpp and swap_state_4_14.cpp. Linux: mm/swap_state.c 4.14 (readahead by clusters
// of slots), and of mm/swapfile.c what concerns pages: try_to_free_swap, reuse_swap_page, free_swap_and_cache.
#pragma once

#include "mm/filemap.hpp"
#include "mm/page_io.hpp"
#include "mm/swap_slots.hpp"
#include "mm/swapfile.hpp"
#include "mm/vma.hpp"

namespace weir {

inline constexpr unsigned SWAP_ADDRESS_SPACE_SHIFT = 14;
inline constexpr uint64_t SWAP_ADDRESS_SPACE_PAGES = uint64_t{1} << SWAP_ADDRESS_SPACE_SHIFT;

class SwapCacheEra;

class SwapCache {
 public:
  SwapCache(Filemap& filemap, SwapFiles& swap, SwapSlots& slots, PageIo& io, VmStat& vmstat, Mmu& mmu,
            KernelEra kernel = DEFAULT_KERNEL);
  SwapCache(const SwapCache&) = delete;
  SwapCache& operator=(const SwapCache&) = delete;

  /// An area is taken into use, or goes: whatever the era keeps for it. Errors: ENOMEM.
  Result<void> add_area(unsigned type, uint64_t nr_pages) {
    if (one_space_) return {};
    return init_swap_address_space(type, nr_pages);
  }
  void remove_area(unsigned type) {
    if (!one_space_) exit_swap_address_space(type);
  }
  /// Spaces for an area of nr_pages slots. Errors: ENOMEM.
  Result<void> init_swap_address_space(unsigned type, uint64_t nr_pages);
  /// The area goes; its spaces are empty, and stay for the next one.
  void exit_swap_address_space(unsigned type);
  /// The area of `entry` has spaces. 4.14's name for where an entry belongs.
  [[nodiscard]] AddressSpace& swap_address_space(SwpEntry entry);
  /// The page of entry with a reference, or null; nothing is counted.
  [[nodiscard]] Page* find_get_swap_page(SwpEntry entry);
  /// The tree a page is in: swap cache, file, or null. Linux: page_mapping (mm/util.c). Stable under the page lock.
  [[nodiscard]] AddressSpace* page_mapping(const Page& page);

  /// Anonymous page, locked, uptodate: gets a slot, enters the cache, dirty. False: no slot or no memory for the tree.
  bool add_to_swap(Page& page);
  /// Page locked; SWAP_HAS_CACHE of entry is the caller's. Errors: EEXIST, ENOMEM; page and slot are then as before.
  Result<void> add_to_swap_cache(Page& page, SwpEntry entry, gfp_t gfp);
  /// A memory file's page, locked, gets a slot of which the file is the one user, and enters the cache; the file still
  /// has it. An empty entry: no slot or no memory for the tree; nothing changed.
  [[nodiscard]] SwpEntry add_shmem_to_swap(Page& page);
  /// Page locked, not under writeback. Drops the cache's hold on slot and page.
  void delete_from_swap_cache(Page& page);
  /// tree_lock held, page frozen or locked; the caller drops slot (swapcache_free) and page.
  void __delete_from_swap_cache(Page& page);
  /// With a reference, or null. Counts the hit, and a hit on a page that was read ahead (`read_ahead` says so).
  [[nodiscard]] Page* lookup_swap_cache(SwpEntry entry, bool* read_ahead = nullptr);
  /// The page of entry, being read or there; with a reference. Null: no memory, or the slot is free by now. Sleeps.
  [[nodiscard]] Page* read_swap_cache_async(SwpEntry entry, gfp_t gfp);
  /// The same with an aligned window of neighbours (page_cluster; 0 = none), adapted to hits.
  [[nodiscard]] Page* swapin_readahead(SwpEntry entry, gfp_t gfp);
  /// Where neighbours are mapped together: entry's page was read ahead and left out of its row, and is asked for now. If
  /// it continues a row of such pages, the next window is read, and where reading takes time the one behind it too:
  /// nobody waits for that one.
  void read_on(SwpEntry entry);
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
    WorldAtomic<uint64_t> add_total{0}, del_total{0}, find_success{0}, find_total{0};
  };
  [[nodiscard]] const Stats& stats() const { return stats_; }
  [[nodiscard]] Filemap& filemap() const { return filemap_; }
  [[nodiscard]] Mmu& mmu() const { return mmu_; }

  /// Calls fn(type, AddressSpace&) for every space. For verify() and dumps: no swapon or swapoff meanwhile.
  template <class Fn>
  void for_each_space(Fn fn) {
    if (one_space_) fn(0u, swapper_space_);
    for (unsigned type = 0; type < MAX_SWAPFILES; ++type)
      for (unsigned i = 0; i < nr_swapper_spaces_[type]; ++i) fn(type, swapper_spaces_[type][i]);
  }

  /// The entry that lies at `index` of a space of area `type`.
  [[nodiscard]] SwpEntry entry_at(unsigned type, uint64_t index) const {
    return one_space_ ? SwpEntry{index} : swp_entry(type, index);
  }
  /// Users of a cached page's slot but the cache.
  [[nodiscard]] uint64_t page_swapcount(const Page& page) {
    return swap_.swp_swapcount(SwpEntry{page.private_}, SwapFiles::Cached::yes);
  }
  /// The same of a slot that `page`, locked, may or may not still be the copy of.
  [[nodiscard]] uint64_t slot_users(SwpEntry entry, const Page& page) {
    const bool cached = PageSwapCache(page) && page.private_ == entry.val;
    return swap_.swp_swapcount(entry, cached ? SwapFiles::Cached::yes : SwapFiles::Cached::no);
  }
  /// Slots to read for a fault on `offset`: row 46's rule. `prev_offset` and `last` are those of the fault before;
  /// `hits` on pages read ahead since then.
  [[nodiscard]] static unsigned __swapin_nr_pages(uint64_t prev_offset, uint64_t offset, unsigned hits,
                                                  unsigned max_pages, unsigned last);

 private:
  friend class SwapCacheEra;
  static constexpr size_t ERA_BYTES = 32;
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
  [[nodiscard]] uint64_t index_of(SwpEntry entry) const { return one_space_ ? entry.val : swp_offset(entry); }
  Result<void> insert(Page& page, SwpEntry entry, RadixPreload& preload);
  [[nodiscard]] Page* find_or_make(SwpEntry entry, gfp_t gfp, bool& fresh);
  [[nodiscard]] unsigned swapin_nr_pages(uint64_t offset);
  void give_up(Page& page);

  Filemap& filemap_;
  SwapFiles& swap_;
  SwapSlots& slots_;
  PageIo& io_;
  VmStat& vmstat_;
  Mmu& mmu_;
  SwapAops swap_aops_;
  std::atomic<unsigned> page_cluster_{3};
  Stats stats_;
  bool one_space_ = false;  // immutable
  AddressSpace swapper_space_;
  alignas(16) std::byte era_place_[ERA_BYTES];
  SwapCacheEra* era_ = nullptr;  // in era_place_; immutable
  // Changed by swapon and swapoff, one at a time, while nobody uses the area.
  AddressSpace* swapper_spaces_[MAX_SWAPFILES] = {};
  unsigned nr_swapper_spaces_[MAX_SWAPFILES] = {};
  // Readahead, of all areas together as in Linux: a hint, raced on without harm.
  WorldAtomic<unsigned> swapin_readahead_hits_{4};
  std::atomic<unsigned> last_readahead_pages_{0};
  std::atomic<uint64_t> prev_offset_{0};
  /// read_on(): the windows in which rows were asked for last, 0: none.
  std::atomic<uint64_t> rows_[8] = {};
  std::atomic<unsigned> next_row_{0};
};

// ---- Eras
//
//              2.6.20                              3.x                                  4.14
//   out        add_to_swap                         add_to_swap                          add_to_swap
//                -> __add_to_swap_cache              -> add_to_swap_cache -> __...        -> add_to_swap_cache -> __...
//   in         swapin_readahead, as far as slots   swapin_readahead: a fixed window     swapin_readahead: it adapts
//              are used                              -> read_swap_cache_async             -> __read_swap_cache_async
//              read_swap_cache_async
//   reuse      can_share_swap_page                 reuse_swap_page                      reuse_swap_page
//   give up    remove_exclusive_swap_page          try_to_free_swap                     try_to_free_swap

class SwapCacheEra {
 public:
  explicit SwapCacheEra(SwapCache& cache) : cache_(cache) {}
  SwapCacheEra(const SwapCacheEra&) = delete;
  SwapCacheEra& operator=(const SwapCacheEra&) = delete;

  /// A page more in the swap cache: NR_FILE_PAGES.
  virtual void count_cached(VmStat& vmstat) { vmstat.__inc_zone_page_state(NodeStat::nr_file_pages); }
  /// Before 3.9.
  [[nodiscard]] virtual bool one_space() const = 0;
  virtual AddressSpace& space(SwpEntry entry) = 0;
  virtual bool add_to_swap(Page& page) = 0;
  virtual SwpEntry get_swap_page(Page& page) = 0;
  virtual Result<void> add_to_swap_cache(Page& page, SwpEntry entry, gfp_t gfp) = 0;
  /// As add_to_swap_cache, for a slot just taken, which becomes a memory file's too.
  virtual Result<void> add_shmem(Page& page, SwpEntry entry) {
    WEIR_TRY_VOID(add_to_swap_cache(page, entry, GFP_ATOMIC | __GFP_NOMEMALLOC | __GFP_NOWARN));
    swap().swap_shmem_alloc(entry);
    return {};
  }
  virtual Page* read_swap_cache_async(SwpEntry entry, gfp_t gfp) = 0;
  virtual Page* swapin_readahead(SwpEntry entry, gfp_t gfp) = 0;
  virtual bool try_to_free_swap(Page& page);
  virtual bool reuse_swap_page(Page& page);
  /// Memory for a node, and the page into the tree. Errors: ENOMEM, EEXIST.
  virtual Result<void> preload(RadixPreload& preload) = 0;
  virtual Result<void> preload_for_page(RadixPreload& reserve) { return preload(reserve); }
  virtual Result<void> insert(Page& page, SwpEntry entry, RadixPreload& preload) = 0;

 protected:
  ~SwapCacheEra() = default;

  // What the eras are put together from.
  Result<void> common_insert(Page& page, SwpEntry entry, RadixPreload& preload) {
    return cache_.insert(page, entry, preload);
  }
  /// The page is to be written before it is dropped: its slot holds nothing yet.
  void mark_unwritten(Page& page);
  Result<void> preload_and_insert(Page& page, SwpEntry entry, gfp_t gfp);
  Page* find_or_make(SwpEntry entry, gfp_t gfp, bool& fresh) { return cache_.find_or_make(entry, gfp, fresh); }
  /// A window of slots around entry is read; the caller drains the pagevecs.
  unsigned window(SwpEntry entry) { return cache_.swapin_nr_pages(swp_offset(entry)); }
  void give_up(Page& page) { cache_.give_up(page); }
  [[nodiscard]] AddressSpace& swapper_space() { return cache_.swapper_space_; }
  Filemap& filemap() { return cache_.filemap_; }
  SwapFiles& swap() { return cache_.swap_; }
  SwapSlots& slots() { return cache_.slots_; }
  PageIo& io() { return cache_.io_; }
  VmStat& vmstat() { return cache_.vmstat_; }
  SwapCache& cache_;
};

/// Made in `place` (SwapCache::ERA_BYTES).
SwapCacheEra* swap_cache_2_6_20(void* place, SwapCache& cache);
SwapCacheEra* swap_cache_3(void* place, SwapCache& cache);
SwapCacheEra* swap_cache_4_14(void* place, SwapCache& cache);

}  // namespace weir
