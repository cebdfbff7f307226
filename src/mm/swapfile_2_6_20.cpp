// src/mm/swapfile_2_6_20.cpp: slots in 2.6.20: 16 bits each, the cache is one of the users. See swapfile.hpp. Linux:
// mm/swapfile.c 2.6.20.
#include <new>

#include "mm/swapfile.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "swapfile.cpp"

namespace weir {

namespace {

class SwapFiles_2_6_20 final : public SwapFilesEra {
 public:
  using SwapFilesEra::SwapFilesEra;

  [[nodiscard]] Traits traits() const override {
    return {.cache_is_a_user = true, .slots_cache = false, .clusters = false, .taken = 1};
  }
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
    SwapInfo* si = lookup(entry, "swap_duplicate");
    if (si == nullptr) return Errno::inval;
    ScopedLock guard(si->lock);
    if (swp_offset(entry) >= si->max) return Errno::inval;
    uint16_t& map = si->swap_map16[swp_offset(entry)];
    const uint16_t old = map;
    if (old == SWAP_MAP_BAD_16) return Errno::inval;
    if (old == 0) return Errno::noent;
    if (old == SWAP_MAP_MAX_16 - 1) LogLine() << "swap_dup: swap entry overflow";
    if (old < SWAP_MAP_MAX_16) ++map;
    WEIR_STATE(swap_map, entry, old, map);
    return {};
  }
  uint16_t swap_free(SwpEntry entry) override {
    WEIR_FLOW(entry);
    SwapInfo* si = lookup(entry, "swap_free");
    if (si == nullptr) return 0;
    ScopedLock guard(si->lock);
    return swap_entry_free(*si, entry);
  }
  // The cache is a user like a PTE.
  Result<void> swapcache_prepare(SwpEntry entry) override { return swap_duplicate(entry); }
  void swapcache_free(SwpEntry entry) override { (void)swap_free(entry); }

 private:
  uint64_t scan_swap_map(SwapInfo& si) WEIR_NO_THREAD_SAFETY_ANALYSIS {
    WEIR_FLOW(si.type);
    return scan_one(si);
  }
  uint16_t swap_entry_free(SwapInfo& si, SwpEntry entry) WEIR_REQUIRES(si.lock) {
    WEIR_FLOW(entry);
    const uint64_t offset = swp_offset(entry);
    if (offset >= si.max) return 0;
    uint16_t& map = si.swap_map16[offset];
    const uint16_t old = map;
    if (old == 0 || old == SWAP_MAP_BAD_16) {
      ((LogLine() << "swap_free: Unused swap offset entry ").hex(entry.val) << " map ").hex(old);
      return old;
    }
    // A count at its maximum may be too small: it stays until swapoff.
    if (old == SWAP_MAP_MAX_16) return old;
    --map;
    WEIR_STATE(swap_map, entry, old, map);
    if (map == 0) {
      si.bdev->slot_free_notify(offset);
      range_free(si, offset);
    }
    return map;
  }
};

}  // namespace

SwapFilesEra* swapfiles_2_6_20(void* place, SwapFiles& files) { return ::new (place) SwapFiles_2_6_20(files); }

}  // namespace weir
