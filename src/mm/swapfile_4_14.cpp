// src/mm/swapfile_4_14.cpp: slots in 4.14. See swapfile.hpp. Linux: mm/swapfile.c 4.14.
#include <new>

#include "mm/swapfile.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "swapfile.cpp"

namespace weir {

namespace {

class SwapFiles_4_14 final : public SwapFilesEra {
 public:
  using SwapFilesEra::SwapFilesEra;

  [[nodiscard]] Traits traits() const override { return {}; }
  unsigned scan(SwapInfo& si, unsigned n, SwpEntry* entries) override { return scan_batch(si, n, entries); }
  SwpEntry get_swap_page() override {
    SwpEntry entry;
    (void)files_.get_swap_pages(1, &entry);
    return entry;
  }
  Result<void> swap_duplicate(SwpEntry entry) override {
    WEIR_FLOW(entry);
    return one_user_more(entry);
  }
  uint16_t swap_free(SwpEntry entry) override {
    WEIR_FLOW(entry);
    SwapInfo* si = lookup(entry, "swap_free");
    return si != nullptr ? drop_and_release(*si, entry, 1) : 0;
  }
  Result<void> swapcache_prepare(SwpEntry entry) override {
    WEIR_FLOW(entry);
    return cache_takes(entry);
  }
  void swapcache_free(SwpEntry entry) override {
    WEIR_FLOW(entry);
    if (SwapInfo* si = lookup(entry, "swapcache_free")) drop_and_release(*si, entry, SWAP_HAS_CACHE);
  }
};

}  // namespace

SwapFilesEra* swapfiles_4_14(void* place, SwapFiles& files) { return ::new (place) SwapFiles_4_14(files); }

}  // namespace weir
