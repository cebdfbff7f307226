// src/mm/page_ref.hpp
//
// Reference counts by their recorded names. get_page and put_page_testzero are PageAllocator's, put_page is Lru's; here
// is what moves a count by more than one or freezes it. Linux: include/linux/page_ref.h.
#pragma once

#include "mm/types.hpp"

namespace weir {

/// Records a change of _refcount.
inline void count_changed(const Page& page, int32_t before, int32_t by) {
  if (recording_pages())
    record_page(page, State::page_count, static_cast<uint32_t>(before), static_cast<uint32_t>(before + by));
}

/// nr more references: what a cache takes for a page (one for each of its subpages).
inline void page_ref_add(Page& page, int32_t nr) {
  WEIR_FLOW(nr);
  count_changed(page, page._refcount.fetch_add(nr, std::memory_order_acq_rel), nr);
}

/// If exactly `count` references exist, takes them all: nobody can get a new one until page_ref_unfreeze. False:
/// nothing changed.
[[nodiscard]] inline bool page_ref_freeze(Page& page, int32_t count) {
  int32_t expected = count;
  if (!page._refcount.compare_exchange_strong(expected, 0, std::memory_order_acq_rel)) return false;
  count_changed(page, count, -count);
  return true;
}

inline void page_ref_unfreeze(Page& page, int32_t count) {
  page._refcount.store(count, std::memory_order_release);
  count_changed(page, 0, count);
}

}  // namespace weir
