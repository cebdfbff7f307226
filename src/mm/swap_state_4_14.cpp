// src/mm/swap_state_4_14.cpp: the swap cache's functions in 4.14. See swap_state.hpp. Linux: mm/swap_state.c 4.14.
#include <algorithm>
#include <new>

#include "mm/swap_state.hpp"

namespace weir {

namespace {

class SwapCache_4_14 final : public SwapCacheEra {
 public:
  using SwapCacheEra::SwapCacheEra;

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "swap_state.cpp"
  void count_cached(VmStat& vmstat) override { vmstat.inc_node_page_state(NodeStat::nr_file_pages); }
  [[nodiscard]] bool one_space() const override { return false; }
  AddressSpace& space(SwpEntry entry) override { return cache_.swap_address_space(entry); }

  bool add_to_swap(Page& page) override {
    WEIR_FLOW(filemap().pages().mem().pfn(page));
    WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked) || !page.test(PageFlag::uptodate) || PageSwapCache(page));
    const SwpEntry entry = get_swap_page(page);
    if (!entry) WEIR_RETURN(false);
    // Reclaim may use the reserves; the tree's nodes must not eat them up to the last page, or nothing would be left to
    // write with.
    if (!add_to_swap_cache(page, entry, __GFP_HIGH | __GFP_NOMEMALLOC | __GFP_NOWARN)) {
      swap().swapcache_free(entry);
      WEIR_RETURN(false);
    }
    mark_unwritten(page);
    WEIR_RETURN(true);
  }
  SwpEntry get_swap_page(Page& page) override { return slots().get_swap_page(&page); }
  Result<void> add_to_swap_cache(Page& page, SwpEntry entry, gfp_t gfp) override {
    WEIR_FLOW(filemap().pages().mem().pfn(page), entry);
    return preload_and_insert(page, entry, gfp);
  }
  Result<void> preload(RadixPreload& preload) override { return radix_tree_maybe_preload(preload); }
  Result<void> preload_for_page(RadixPreload& preload) override { return radix_tree_maybe_preload_order(preload, 0); }
  Result<void> insert(Page& page, SwpEntry entry, RadixPreload& preload) override {
    return __add_to_swap_cache(page, entry, preload);
  }
  Page* read_swap_cache_async(SwpEntry entry, gfp_t gfp) override {
    WEIR_FLOW(entry);
    bool fresh = false;
    Page* page = __read_swap_cache_async(entry, gfp, fresh);
    // An error shows as a page that is not uptodate, to whoever waits for its lock.
    if (fresh) {
      PageIo::ReadList list;
      (void)io().swap_readpage(*page, &list);
      io().submit(list);
    }
    return page;
  }
  Page* swapin_readahead(SwpEntry entry, gfp_t gfp) override {
    WEIR_FLOW(entry);
    const uint64_t offset = swp_offset(entry);
    const unsigned pages = window(entry);
    const SwapInfo* si = swap().swap_info(swp_type(entry));
    if (pages > 1 && si != nullptr) {
      // Aligned, so that the next fault of a row falls into the next window. Slot 0 is the header's.
      const uint64_t first = std::max<uint64_t>(offset & ~uint64_t{pages - 1}, 1);
      const uint64_t last = std::min(offset | (pages - 1), si->max - 1);
      vmstat().count_vm_event(VmEvent::swap_ra_window);
      PageIo::ReadList list;
      for (uint64_t at = first; at <= last; ++at) {
        bool fresh = false;
        Page* page = __read_swap_cache_async(swp_entry(si->type, at), gfp, fresh);
        if (page == nullptr) continue;
        if (fresh) {
          if (at != offset) {
            page->set(PageFlag::reclaim);  // PG_readahead
            vmstat().count_vm_event(VmEvent::swap_ra);
          }
          (void)io().swap_readpage(*page, &list);
        }
        filemap().lru().put_page(*page);
      }
      io().submit(list);
      filemap().lru().lru_add_drain();
    }
    return read_swap_cache_async(entry, gfp);
  }

 private:
  Result<void> __add_to_swap_cache(Page& page, SwpEntry entry, RadixPreload& preload) {
    WEIR_FLOW(filemap().pages().mem().pfn(page), entry);
    page_ref_add(page, 1);
    return common_insert(page, entry, preload);
  }
  Page* __read_swap_cache_async(SwpEntry entry, gfp_t gfp, bool& new_page_allocated) {
    WEIR_FLOW(entry);
    return find_or_make(entry, gfp, new_page_allocated);
  }
};

}  // namespace

SwapCacheEra* swap_cache_4_14(void* place, SwapCache& cache) { return ::new (place) SwapCache_4_14(cache); }

}  // namespace weir
