// src/mm/types.cpp: names for people
#include "mm/types.hpp"

namespace weir {

uint64_t flow_value_of(const Page* page) {
  const FlowSink* sink = engine_thread().sink;
  if (page == nullptr || sink == nullptr || sink->mem_map == nullptr) return 0;
  return static_cast<uint64_t>(page - static_cast<const Page*>(sink->mem_map)) + 1;
}

static_assert(NR_PAGE_FLAGS <= 32, "a ring has room for so many");

void record_page(const Page& page, State what, uint64_t before, uint64_t after) {
  FlowSink* sink = engine_thread().sink;
  if (sink == nullptr || sink->mem_map == nullptr) return;
  if (what == State::page_flags && !sink->details) {
    // The page lock, and what other changes tell as well: lists, the swap cache, I/O that failed.
    constexpr uint64_t LEFT_OUT = flag_bit(PageFlag::locked) | flag_bit(PageFlag::buddy) | flag_bit(PageFlag::pcp) |
                                  flag_bit(PageFlag::lru) | flag_bit(PageFlag::swapcache) | flag_bit(PageFlag::error) |
                                  flag_bit(PageFlag::aged);
    // Somebody else has the page now: its next change has a time of its own.
    if ((~before & after & flag_bit(PageFlag::locked)) != 0) engine_thread().lane.interrupt();
    before &= ~LEFT_OUT;
    after &= ~LEFT_OUT;
    if (before == after) return;
  }
  static constinit const FlowSite site{__func__, "types.cpp", ""};
  sink->state(site, what, static_cast<uint64_t>(&page - static_cast<const Page*>(sink->mem_map)), before, after);
}

const char* lru_name(LruList list) {
  switch (list) {
    case LruList::inactive_anon: return "LRU_INACTIVE_ANON";
    case LruList::active_anon: return "LRU_ACTIVE_ANON";
    case LruList::inactive_file: return "LRU_INACTIVE_FILE";
    case LruList::active_file: return "LRU_ACTIVE_FILE";
    case LruList::unevictable: return "LRU_UNEVICTABLE";
    case LruList::count: break;
  }
  return "none";
}

}  // namespace weir
