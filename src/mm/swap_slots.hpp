// src/mm/swap_slots.hpp
//
// The swap slots cache: each CPU keeps a few free slots at hand, so that swapping out takes a swap area's lock
// once for 64 pages instead of once a page, and freed slots go back in bulk.
//
//   get_swap_page():       this CPU's slots --empty--> refill 64 from the areas --none left--> one slot at a time
//   free_swap_slot(entry): this CPU's returns --full--> all 64 back to their areas
//
// Linux: mm/swap_slots.c, 4.11 and later.
#pragma once

#include "mm/swapfile.hpp"

namespace weir {

inline constexpr unsigned SWAP_SLOTS_CACHE_SIZE = 64;

class SwapSlots {
 public:
  SwapSlots(SwapFiles& areas, VmStat& vmstat, unsigned cpus);
  /// A slot, SWAP_HAS_CACHE set. 0: every area is full.
  [[nodiscard]] SwpEntry get_swap_page();
  /// Gives back a slot that holds only SWAP_HAS_CACHE.
  void free_swap_slot(SwpEntry entry);
  /// swapoff: every cached slot goes back; none is taken while disabled.
  void drain_slots_cache();
  void disable_swap_slots_cache();
  void reenable_swap_slots_cache();
  /// Slots of `type` held here in both directions.
  [[nodiscard]] uint64_t held(unsigned type);

 private:
  SwapFiles& areas_;
  VmStat& vmstat_;
  unsigned cpus_;
};

}  // namespace weir
