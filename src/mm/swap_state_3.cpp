// src/mm/swap_state_3.cpp: the swap cache's functions in 3.x. See swap_state.hpp. Linux: mm/swap_state.c 3.7 and 3.8.
#include <algorithm>
#include <new>

#include "mm/swap_state.hpp"

namespace weir {

namespace {

class SwapCache_3 final : public SwapCacheEra {
 public:
  using SwapCacheEra::SwapCacheEra;

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "swap_state.cpp"
  [[nodiscard]] bool one_space() const override { return true; }
  AddressSpace& space(SwpEntry) override { return swapper_space(); }

  bool add_to_swap(Page& page) override {
    WEIR_FLOW(filemap().pages().mem().pfn(page));
    WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked) || !page.test(PageFlag::uptodate) || PageSwapCache(page));
    const SwpEntry entry = get_swap_page(page);
    if (!entry) WEIR_RETURN(false);
    if (!add_to_swap_cache(page, entry, __GFP_HIGH | __GFP_NOMEMALLOC | __GFP_NOWARN)) {
      swap().swapcache_free(entry);
      WEIR_RETURN(false);
    }
    mark_unwritten(page);
    WEIR_RETURN(true);
  }
  SwpEntry get_swap_page(Page& page) override {
    const SwpEntry entry = swap().get_swap_page();
    if (entry) WEIR_STATE(swap_slot, entry, 0, filemap().pages().mem().pfn(page));
    return entry;
  }
  Result<void> add_to_swap_cache(Page& page, SwpEntry entry, gfp_t gfp) override {
    WEIR_FLOW(filemap().pages().mem().pfn(page), entry);
    return preload_and_insert(page, entry, gfp);
  }
  Result<void> preload(RadixPreload& preload) override { return radix_tree_preload(preload); }
  Result<void> insert(Page& page, SwpEntry entry, RadixPreload& preload) override {
    return __add_to_swap_cache(page, entry, preload);
  }
  Page* read_swap_cache_async(SwpEntry entry, gfp_t gfp) override {
    WEIR_FLOW(entry);
    bool fresh = false;
    Page* page = find_or_make(entry, gfp, fresh);
    if (fresh) (void)io().swap_readpage(*page);
    return page;
  }
  /// A fixed window, aligned; free and bad slots are passed over.
  Page* swapin_readahead(SwpEntry entry, gfp_t gfp) override {
    WEIR_FLOW(entry);
    const uint64_t mask = (uint64_t{1} << cache_.page_cluster()) - 1;
    const uint64_t offset = swp_offset(entry);
    if (const SwapInfo* si = swap().swap_info(swp_type(entry)); si != nullptr && mask != 0) {
      const uint64_t last = std::min(offset | mask, si->max - 1);
      for (uint64_t at = std::max<uint64_t>(offset & ~mask, 1); at <= last; ++at)
        if (Page* page = read_swap_cache_async(swp_entry(si->type, at), gfp)) filemap().lru().put_page(*page);
      filemap().lru().lru_add_drain();
    }
    return read_swap_cache_async(entry, gfp);
  }

 private:
  Result<void> __add_to_swap_cache(Page& page, SwpEntry entry, RadixPreload& preload) {
    WEIR_FLOW(filemap().pages().mem().pfn(page), entry);
    PageAllocator::get_page(page);
    return common_insert(page, entry, preload);
  }
};

}  // namespace

SwapCacheEra* swap_cache_3(void* place, SwapCache& cache) { return ::new (place) SwapCache_3(cache); }

}  // namespace weir
