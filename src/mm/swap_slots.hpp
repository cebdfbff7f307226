// src/mm/swap_slots.hpp
//
// The swap slots cache: each CPU keeps a few free slots at hand, so that swapping out takes a swap area's lock
// once for 64 pages instead of once a page, and freed slots go back in bulk.
//
//   get_swap_page():       this CPU's slots --empty--> refill 64 from the areas --none left--> one slot at a time
//   free_swap_slot(entry): this CPU's returns --full--> all 64 back to their areas
//
//   off:  free slots < 128 a CPU --> every cached slot goes back --> off --free slots > 320 a CPU--> on again
//
// Linux: mm/swap_slots.c, 4.11 and later. One departure: slots of an area whose device has run out of room (a full
// zram) are given back instead of handed out, so that the next page goes to the next area.
#pragma once

#include "mm/swapfile.hpp"

namespace weir {

/// How many slots one CPU may hold on each side. Linux's value: large enough that the area lock vanishes from profiles,
/// small enough that an area of a few thousand slots is not hidden in caches when it runs full.
inline constexpr unsigned SWAP_SLOTS_CACHE_SIZE = 64;
/// Free slots a CPU at which the caches are emptied and switched off, and above which they are on again: apart, so that
/// a machine at the edge does not switch for ever.
inline constexpr unsigned THRESHOLD_DEACTIVATE_SWAP_SLOTS_CACHE = 2 * SWAP_SLOTS_CACHE_SIZE;
inline constexpr unsigned THRESHOLD_ACTIVATE_SWAP_SLOTS_CACHE = 5 * SWAP_SLOTS_CACHE_SIZE;

class SwapSlots {
 public:
  /// `areas` outlives this; slots that it has nobody left for come here from now on. The cache starts disabled: boot
  /// has no swap.
  SwapSlots(SwapFiles& areas, VmStat& vmstat, unsigned cpus);
  SwapSlots(const SwapSlots&) = delete;
  SwapSlots& operator=(const SwapSlots&) = delete;
  /// Makes the caches. Errors: ENOMEM.
  Result<void> init();

  /// A slot, SWAP_HAS_CACHE set. 0: every area is full. May wait for another user of this CPU's cache; no spinlock
  /// held. `page` is who it is for, where that is known: it is only recorded.
  [[nodiscard]] SwpEntry get_swap_page(const Page* page = nullptr);
  /// Gives back a slot that holds only SWAP_HAS_CACHE. It may stay here a while: free, but not yet allocatable by
  /// others. Never sleeps.
  void free_swap_slot(SwpEntry entry);
  /// swapoff: every cached slot goes back; none is taken while disabled.
  void drain_slots_cache();
  void disable_swap_slots_cache();
  void reenable_swap_slots_cache();
  /// Slots of `type` held here in both directions; verify() adds them to what swap_map shows as SWAP_HAS_CACHE without
  /// a page.
  [[nodiscard]] uint64_t held(unsigned type);
  /// Is this slot held here?
  [[nodiscard]] bool holds(SwpEntry entry);

 private:
  struct PerCpu {
    Mutex alloc_lock{LockRank::swap_slots};
    // Invariant: next <= filled <= SWAP_SLOTS_CACHE_SIZE; slots[next, filled) are free slots owned by this CPU.
    SwpEntry slots[SWAP_SLOTS_CACHE_SIZE] WEIR_GUARDED_BY(alloc_lock) = {};
    unsigned next WEIR_GUARDED_BY(alloc_lock) = 0;
    unsigned filled WEIR_GUARDED_BY(alloc_lock) = 0;
    // The way back runs under page-table locks, so it spins; the areas are told after it is dropped.
    SpinLock free_lock{LockRank::leaf};
    SwpEntry slots_ret[SWAP_SLOTS_CACHE_SIZE] WEIR_GUARDED_BY(free_lock) = {};
    unsigned n_ret WEIR_GUARDED_BY(free_lock) = 0;
  };

  [[nodiscard]] PerCpu& this_cpu() const;
  [[nodiscard]] bool in_use() const {
    return enabled_.load(std::memory_order_acquire) && active_.load(std::memory_order_acquire);
  }
  bool check_cache_active();
  bool refill_swap_slots_cache(PerCpu& cpu) WEIR_REQUIRES(cpu.alloc_lock);
  void give_back_alloc(PerCpu& cpu) WEIR_REQUIRES(cpu.alloc_lock);

  SwapFiles& areas_;
  VmStat& vmstat_;
  unsigned cpus_;
  PerCpu* percpu_ = nullptr;          // cpus_ of them, kmalloc'ed
  std::atomic<bool> enabled_{false};  ///< there is an area, and no swapoff is under way
  std::atomic<bool> active_{false};   ///< enough slots are free
};

}  // namespace weir
