// src/mm/types.cpp: names for people
#include "mm/types.hpp"

namespace weir {

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
