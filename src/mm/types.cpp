// src/mm/types.cpp: names for people
#include "mm/types.hpp"

namespace weir {

void record_page(const Page& page, State what, uint64_t before, uint64_t after) {
  FlowSink* sink = engine_thread().sink;
  if (sink == nullptr || sink->mem_map == nullptr) return;
  if (what == State::page_flags && !sink->details) {
    before &= ~flag_bit(PageFlag::locked);
    after &= ~flag_bit(PageFlag::locked);
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
