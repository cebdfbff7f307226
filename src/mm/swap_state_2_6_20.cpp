// src/mm/swap_state_2_6_20.cpp: the swap cache's functions in 2.6.20. See swap_state.hpp. Linux: mm/swap_state.c,
// mm/swapfile.c and (swapin_readahead) mm/memory.c 2.6.20.
#include <new>

#include "mm/swap_state.hpp"

namespace weir {

namespace {

class SwapCache_2_6_20 final : public SwapCacheEra {
 public:
  using SwapCacheEra::SwapCacheEra;

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "swap_state.cpp"
  [[nodiscard]] bool one_space() const override { return true; }
  AddressSpace& space(SwpEntry) override { return swapper_space(); }

  /// The slot's first user is the cache itself.
  bool add_to_swap(Page& page) override {
    WEIR_FLOW(filemap().pages().mem().pfn(page));
    WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked) || !page.test(PageFlag::uptodate) || PageSwapCache(page));
    for (;;) {
      const SwpEntry entry = get_swap_page(page);
      if (!entry) WEIR_RETURN(false);
      const Result<void> added = preload_and_insert(page, entry, __GFP_HIGH | __GFP_NOMEMALLOC | __GFP_NOWARN);
      if (added) {
        mark_unwritten(page);
        WEIR_RETURN(true);
      }
      (void)swap().swap_free(entry);
      // Another page is there: a reader was faster than the slot's last user. Another slot, then.
      if (added.error() != Errno::exist) WEIR_RETURN(false);
    }
  }
  SwpEntry get_swap_page(Page& page) override {
    const SwpEntry entry = swap().get_swap_page();
    if (entry) WEIR_STATE(swap_slot, entry, 0, filemap().pages().mem().pfn(page));
    return entry;
  }
  /// The slot's user so far is the cache; the file becomes another.
  Result<void> add_shmem(Page& page, SwpEntry entry) override { return move_to_swap_cache(page, entry); }
  /// The cache becomes one more user of a slot that somebody uses. Errors: ENOENT (nobody does), EEXIST, ENOMEM.
  Result<void> add_to_swap_cache(Page& page, SwpEntry entry, gfp_t gfp) override {
    WEIR_FLOW(filemap().pages().mem().pfn(page), entry);
    if (!swap().swap_duplicate(entry)) return Errno::noent;
    const Result<void> added = preload_and_insert(page, entry, gfp);
    if (!added) (void)swap().swap_free(entry);
    return added;
  }
  Result<void> preload(RadixPreload& preload) override { return radix_tree_preload(preload); }
  Result<void> insert(Page& page, SwpEntry entry, RadixPreload& preload) override {
    return __add_to_swap_cache(page, entry, preload);
  }
  Page* read_swap_cache_async(SwpEntry entry, gfp_t gfp) override {
    WEIR_FLOW(entry);
    Page* fresh = nullptr;
    Page* found = nullptr;
    for (;;) {
      found = filemap().find_get_page(swapper_space(), entry.val);
      if (found != nullptr) break;
      if (fresh == nullptr) fresh = filemap().pages().alloc_page(gfp | GFP_HIGHUSER);
      if (fresh == nullptr) break;
      filemap().__set_page_locked(*fresh);
      fresh->set(PageFlag::swapbacked);
      const Result<void> added = add_to_swap_cache(*fresh, entry, gfp);
      if (added) {
        filemap().lru().lru_cache_add_anon(*fresh);
        (void)io().swap_readpage(*fresh);
        return fresh;
      }
      fresh->clear(PageFlag::swapbacked);
      filemap().unlock_page(*fresh);
      if (added.error() != Errno::exist) break;
    }
    if (fresh != nullptr) filemap().lru().put_page(*fresh);
    return found;
  }

 private:
  Result<void> move_to_swap_cache(Page& page, SwpEntry entry) {
    WEIR_FLOW(filemap().pages().mem().pfn(page), entry);
    WEIR_TRY_VOID(preload_and_insert(page, entry, GFP_ATOMIC | __GFP_NOMEMALLOC | __GFP_NOWARN));
    const Result<void> done = swap().swap_duplicate(entry);
    WEIR_BUG_ON(!done);
    return {};
  }
  Result<void> __add_to_swap_cache(Page& page, SwpEntry entry, RadixPreload& preload) {
    WEIR_FLOW(filemap().pages().mem().pfn(page), entry);
    PageAllocator::get_page(page);
    return common_insert(page, entry, preload);
  }

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "swapfile.cpp"
  bool can_share_swap_page(Page& page) {
    WEIR_FLOW(filemap().pages().mem().pfn(page));
    uint64_t count = static_cast<uint64_t>(page_mapcount(page));
    if (count <= 1 && PageSwapCache(page)) count += cache_.page_swapcount(page);
    return count == 1;
  }
  /// Gives up the slot if the cache is its only user and the page has no user but the caller and one PTE.
  bool remove_exclusive_swap_page(Page& page) {
    WEIR_FLOW(filemap().pages().mem().pfn(page));
    if (!PageSwapCache(page) || page.test(PageFlag::writeback) || page_mapcount(page) > 1) return false;
    constexpr int32_t CALLER_AND_CACHE = 2;
    if (page_count(page) != CALLER_AND_CACHE + page_mapcount(page) || cache_.page_swapcount(page) != 0) return false;
    give_up(page);
    return true;
  }

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "memory.cpp"
  void read_ahead(SwpEntry entry, gfp_t gfp) {
    uint64_t first = 0;
    const unsigned n = swap().valid_swaphandles(entry, 1u << cache_.page_cluster(), first);
    for (unsigned i = 0; i < n; ++i) {
      Page* page = read_swap_cache_async(swp_entry(swp_type(entry), first + i), gfp);
      if (page == nullptr) break;
      filemap().lru().put_page(*page);
    }
    filemap().lru().lru_add_drain();
  }

 public:
  Page* swapin_readahead(SwpEntry entry, gfp_t gfp) override {
    {
      WEIR_FLOW(entry);
      read_ahead(entry, gfp);
    }
    return read_swap_cache_async(entry, gfp);
  }
  bool try_to_free_swap(Page& page) override { return remove_exclusive_swap_page(page); }
  bool reuse_swap_page(Page& page) override { return can_share_swap_page(page); }
};

}  // namespace

SwapCacheEra* swap_cache_2_6_20(void* place, SwapCache& cache) { return ::new (place) SwapCache_2_6_20(cache); }

}  // namespace weir
