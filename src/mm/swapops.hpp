// src/mm/swapops.hpp
//
// A swap entry in a page table and back. Linux: include/linux/swapops.h.
#pragma once

#include "mm/pgtable_types.hpp"

namespace weir {

/// The non-present PTE that holds `entry`.
[[nodiscard]] inline Pte swp_entry_to_pte(SwpEntry entry) {
  WEIR_FLOW(entry);
  const uint64_t type = swp_type(entry);
  return Pte{(swp_offset(entry) << 9) | (type << 2)};
}

/// The entry that a swap PTE holds.
[[nodiscard]] inline SwpEntry pte_to_swp_entry(Pte pte) {
  WEIR_FLOW(pte);
  return swp_entry(static_cast<unsigned>((pte.v >> 2) & 0x1f), pte.v >> 9);
}

/// Unrecorded twin for verify(), dumps and formatters.
[[nodiscard]] constexpr SwpEntry decode_swap_pte(Pte pte) {
  return swp_entry(static_cast<unsigned>((pte.v >> 2) & 0x1f), pte.v >> 9);
}

}  // namespace weir
