// src/mm/swapfile_3.cpp: slots in 3.x: one by one, free at once. See swapfile.hpp. Linux: mm/swapfile.c 3.7 to 3.10.
#include <new>

#include "mm/swapfile.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "swapfile.cpp"

namespace weir {

namespace {

class SwapFiles_3 final : public SwapFilesEra {
 public:
  using SwapFilesEra::SwapFilesEra;

  [[nodiscard]] Traits traits() const override { return {.slots_cache = false, .clusters = false}; }
  unsigned scan(SwapInfo& si, unsigned, SwpEntry* entries) override {
    const uint64_t offset = scan_swap_map(si);
    if (offset == 0) return 0;
    *entries = swp_entry(si.type, offset);
    return 1;
  }
  SwpEntry get_swap_page() override {
    WEIR_FLOW();
    SwpEntry entry;
    (void)take_slots(1, &entry);
    return entry;
  }
  Result<void> swap_duplicate(SwpEntry entry) override {
    WEIR_FLOW(entry);
    return one_user_more(entry);
  }
  uint16_t swap_free(SwpEntry entry) override {
    WEIR_FLOW(entry);
    return swap_entry_free(entry, 1);
  }
  Result<void> swapcache_prepare(SwpEntry entry) override {
    WEIR_FLOW(entry);
    return cache_takes(entry);
  }
  void swapcache_free(SwpEntry entry) override {
    WEIR_FLOW(entry);
    (void)swap_entry_free(entry, SWAP_HAS_CACHE);
  }

 private:
  uint64_t scan_swap_map(SwapInfo& si) WEIR_NO_THREAD_SAFETY_ANALYSIS {
    WEIR_FLOW(si.type);
    return scan_one(si);
  }
  uint16_t swap_entry_free(SwpEntry entry, uint8_t usage) {
    WEIR_FLOW(entry, usage);
    SwapInfo* si = lookup(entry, "swap_free");
    if (si == nullptr) return 0;
    ScopedLock guard(si->lock);
    const bool used = swp_offset(entry) < si->max && si->swap_map[swp_offset(entry)] != 0;
    const uint8_t left = drop_user(*si, entry, usage);
    if (used && left == 0 && (si->flags.load(std::memory_order_relaxed) & SWP_BLKDEV) != 0)
      swap_slot_free_notify(*si->bdev, swp_offset(entry));
    return left;
  }
  /// A device of memory gives back its copy at once.
  static void swap_slot_free_notify(BlockDevice& device, uint64_t offset) {
    WEIR_FLOW(offset);
    device.slot_free_notify(offset);
  }
};

}  // namespace

SwapFilesEra* swapfiles_3(void* place, SwapFiles& files) { return ::new (place) SwapFiles_3(files); }

}  // namespace weir
