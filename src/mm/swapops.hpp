// src/mm/swapops.hpp
//
// A swap entry in a page table and back; the soft-dirty bit of either kind of PTE. Linux: include/linux/swapops.h,
// arch/x86/include/asm/pgtable*.h.
#pragma once

#include "mm/pgtable_types.hpp"

namespace weir {

/// A swap entry as the page table has it.
struct ArchSwpEntry {
  uint64_t v = 0;
};

[[nodiscard]] inline ArchSwpEntry __swp_entry(unsigned type, uint64_t offset) {
  WEIR_FLOW(type, offset);
  return {(offset << 9) | (uint64_t{type} << 2)};
}
[[nodiscard]] inline Pte __swp_entry_to_pte(ArchSwpEntry entry) {
  WEIR_FLOW(entry);
  return Pte{entry.v};
}

/// The non-present PTE that holds `entry`.
[[nodiscard]] inline Pte swp_entry_to_pte(SwpEntry entry) {
  WEIR_FLOW(entry);
  return __swp_entry_to_pte(__swp_entry(swp_type(entry), swp_offset(entry)));
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

// ---- soft dirty: was the page written since somebody cleared the bit? In a swap PTE it is kept while the page is out.
inline constexpr uint64_t _PAGE_SWP_SOFT_DIRTY = 1u << 1;

[[nodiscard]] inline bool pte_soft_dirty(Pte pte) {
  WEIR_FLOW(pte);
  return (pte.v & _PAGE_SOFT_DIRTY) != 0;
}
[[nodiscard]] inline Pte pte_mksoft_dirty(Pte pte) {
  WEIR_FLOW(pte);
  return Pte{pte.v | _PAGE_SOFT_DIRTY};
}
[[nodiscard]] inline bool pte_swp_soft_dirty(Pte pte) {
  WEIR_FLOW(pte);
  return (pte.v & _PAGE_SWP_SOFT_DIRTY) != 0;
}
[[nodiscard]] inline Pte pte_swp_mksoft_dirty(Pte pte) {
  WEIR_FLOW(pte);
  return Pte{pte.v | _PAGE_SWP_SOFT_DIRTY};
}
/// Either kind, unrecorded.
[[nodiscard]] constexpr bool is_soft_dirty(Pte pte) {
  return (pte.v & (pte_present(pte) ? _PAGE_SOFT_DIRTY : _PAGE_SWP_SOFT_DIRTY)) != 0;
}
[[nodiscard]] constexpr Pte without_soft_dirty(Pte pte) {
  return Pte{pte.v & ~(pte_present(pte) ? _PAGE_SOFT_DIRTY : _PAGE_SWP_SOFT_DIRTY)};
}

}  // namespace weir
