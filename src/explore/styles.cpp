// src/explore/styles.cpp: see styles.hpp. build.py reads the tables of names here for the page.
#include "explore/styles.hpp"

#include <fmt/format.h>

#include <iterator>

#include "mm/pgtable_types.hpp"
#include "mm/swapops.hpp"
#include "mm/types.hpp"

namespace weir::explore {

namespace {

std::string entry_text(uint64_t value) {
  const SwpEntry entry{value};
  return fmt::format("({},{})", swp_type(entry), swp_offset(entry));
}

std::string pte_text(uint64_t value) {
  const Pte pte{value};
  if (pte_none(pte)) return "none";
  if (is_file_pte(pte)) return fmt::format("page {} of the file", pte_to_pgoff(pte));
  if (is_swap_pte(pte)) return "swap" + entry_text(decode_swap_pte(pte).val);
  std::string text = fmt::format("pfn {} {}", pte_pfn(pte).v, pte_write(pte) ? "rw" : "ro");
  if (pte_dirty(pte)) text += " dirty";
  if (pte_young(pte)) text += " young";
  if (pte_special(pte)) text += " special";
  return text;
}

std::string lru_text(uint64_t list) { return list < NR_LRU_LISTS ? lru_name(static_cast<LruList>(list)) : "none"; }

template <size_t N>
std::string bits_text(uint64_t value, const char* const (&names)[N], const char* none) {
  std::string text;
  for (unsigned bit = 0; value != 0; ++bit, value >>= 1) {
    if ((value & 1) == 0) continue;
    if (!text.empty()) text += '|';
    text += bit < N && names[bit] != nullptr ? std::string(names[bit]) : fmt::format("bit{}", bit);
  }
  return text.empty() ? none : text;
}

std::string page_flags_text(uint64_t flags) {
  static constexpr const char* PAGE_FLAG_NAMES[] = {
      "locked",  "referenced", "uptodate", "dirty",      "lru",          "active",  "slab",      "reserved",
      "private", "writeback",  "reclaim",  "swapbacked", "unevictable",  "mlocked", "swapcache", "buddy",
      "pcp",     "table",      "error",    "aged",       "kernel_place", "vmalloc", "zram",      "balloon"};
  static_assert(std::size(PAGE_FLAG_NAMES) == NR_PAGE_FLAGS, "mm/types.hpp has another flag");
  return bits_text(flags, PAGE_FLAG_NAMES, "none");
}

std::string fault_text(uint64_t result) {
  static constexpr const char* FAULT_NAMES[] = {"OOM",      "SIGBUS", "MAJOR",  nullptr,  nullptr, nullptr,
                                                "SIGSEGV",  nullptr,  "NOPAGE", "LOCKED", "RETRY", nullptr,
                                                "DONE_COW", nullptr,  nullptr,  nullptr,  "KILLED"};
  static_assert(VM_FAULT_KILLED == 1u << (std::size(FAULT_NAMES) - 1), "mm/types.hpp has moved a bit");
  return bits_text(result, FAULT_NAMES, "ok");
}

}  // namespace

FlowStyles mm_styles() {
  FlowStyles styles;
  styles.pte = pte_text;
  styles.swap_entry = entry_text;
  styles.lru_list = lru_text;
  styles.page_flags = page_flags_text;
  styles.fault_result = fault_text;
  return styles;
}

}  // namespace weir::explore
