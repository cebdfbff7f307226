// src/mm/pgtable_types.hpp
//
// A page-table entry, 64 bits, laid out as x86-64's where hardware looks:
//
//   present:      63 ... 12   11..7   6  5   2  1  0        P present, RW writable, US user, A accessed (young),
//                 pfn         SD=11   D  A   US RW P        D dirty, SD soft dirty
//   swap entry:   63 ... 9    8..2    1  0
//                 offset      type    SD 0                  never all zero: offset 0 (the header's slot) is never used
//   file offset:  63 ... 9    8   7..0                       until 3.x, in nonlinear mappings: the page of the file
//                 pgoff       1   0
//   none:         0
//
// Linux: arch/x86/include/asm/pgtable*.h, include/linux/swapops.h. Bit places of the swap entry are weir's own.
#pragma once

#include "mm/types.hpp"

namespace weir {

struct Pte {
  uint64_t v = 0;
  friend constexpr bool operator==(Pte, Pte) = default;
};
[[nodiscard]] constexpr uint64_t flow_value_of(Pte pte) { return pte.v; }

inline constexpr uint64_t _PAGE_PRESENT = 1u << 0, _PAGE_RW = 1u << 1, _PAGE_USER = 1u << 2, _PAGE_ACCESSED = 1u << 5,
                          _PAGE_DIRTY = 1u << 6, _PAGE_SPECIAL = 1u << 9, _PAGE_SOFT_DIRTY = 1u << 11;
inline constexpr uint64_t PTE_PFN_MASK = 0x000ffffffffff000ull;

[[nodiscard]] constexpr bool pte_none(Pte p) { return p.v == 0; }
[[nodiscard]] constexpr bool pte_present(Pte p) { return (p.v & _PAGE_PRESENT) != 0; }
[[nodiscard]] constexpr bool pte_write(Pte p) { return (p.v & _PAGE_RW) != 0; }
[[nodiscard]] constexpr bool pte_young(Pte p) { return (p.v & _PAGE_ACCESSED) != 0; }
[[nodiscard]] constexpr bool pte_dirty(Pte p) { return (p.v & _PAGE_DIRTY) != 0; }
/// Maps a frame that is not counted: the zero page, a device's. No refcount, no rmap.
[[nodiscard]] constexpr bool pte_special(Pte p) { return (p.v & _PAGE_SPECIAL) != 0; }
[[nodiscard]] constexpr Pfn pte_pfn(Pte p) { return Pfn((p.v & PTE_PFN_MASK) >> PAGE_SHIFT); }
[[nodiscard]] constexpr Pte pte_mkyoung(Pte p) { return Pte{p.v | _PAGE_ACCESSED}; }
[[nodiscard]] constexpr Pte pte_mkold(Pte p) { return Pte{p.v & ~_PAGE_ACCESSED}; }
[[nodiscard]] constexpr Pte pte_mkdirty(Pte p) { return Pte{p.v | _PAGE_DIRTY | _PAGE_SOFT_DIRTY}; }
[[nodiscard]] constexpr Pte pte_mkclean(Pte p) { return Pte{p.v & ~_PAGE_DIRTY}; }
[[nodiscard]] constexpr Pte pte_mkwrite(Pte p) { return Pte{p.v | _PAGE_RW}; }
[[nodiscard]] constexpr Pte pte_wrprotect(Pte p) { return Pte{p.v & ~_PAGE_RW}; }
[[nodiscard]] constexpr Pte pte_mkspecial(Pte p) { return Pte{p.v | _PAGE_SPECIAL}; }
/// The access rights a VMA gives its present pages, without write: who may write is decided at the fault.
[[nodiscard]] constexpr Pte pfn_pte(Pfn pfn) {
  return Pte{(pfn.v << PAGE_SHIFT) | _PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED};
}

/// Names a swap slot: area (type) and page slot (offset). 0 is "no entry".
struct SwpEntry {
  uint64_t val = 0;
  friend constexpr bool operator==(SwpEntry, SwpEntry) = default;
  explicit constexpr operator bool() const { return val != 0; }
};
[[nodiscard]] constexpr uint64_t flow_value_of(SwpEntry e) { return e.val; }
inline constexpr unsigned SWP_TYPE_BITS = 5;
inline constexpr unsigned MAX_SWAPFILES = 29;  ///< 32 less the types of migration (2) and hwpoison (1)
[[nodiscard]] constexpr SwpEntry swp_entry(unsigned type, uint64_t offset) {
  return SwpEntry{(offset << SWP_TYPE_BITS) | type};
}
[[nodiscard]] constexpr unsigned swp_type(SwpEntry e) {
  return static_cast<unsigned>(e.val & ((1u << SWP_TYPE_BITS) - 1));
}
[[nodiscard]] constexpr uint64_t swp_offset(SwpEntry e) { return e.val >> SWP_TYPE_BITS; }
/// Not present: which page of the file belongs there.
inline constexpr uint64_t _PAGE_FILE = 1u << 8;
[[nodiscard]] constexpr bool is_file_pte(Pte p) { return !pte_present(p) && (p.v & _PAGE_FILE) != 0; }
[[nodiscard]] constexpr bool is_swap_pte(Pte p) { return !pte_none(p) && !pte_present(p) && !is_file_pte(p); }
[[nodiscard]] constexpr Pte pgoff_to_pte(uint64_t pgoff) { return Pte{pgoff << 9 | _PAGE_FILE}; }
[[nodiscard]] constexpr uint64_t pte_to_pgoff(Pte p) { return p.v >> 9; }

}  // namespace weir
