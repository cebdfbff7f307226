// src/mm/vmstat.cpp: names as in /proc/vmstat
#include "mm/vmstat.hpp"

namespace weir {

const char* stat_name(NodeStat s) {
  static constexpr const char* names[] = {
#define X(n) #n,
      WEIR_NODE_STATS(X)
#undef X
  };
  return s < NodeStat::count ? names[static_cast<unsigned>(s)] : "none";
}

const char* event_name(VmEvent e) {
  static constexpr const char* names[] = {
#define X(n) #n,
      WEIR_VM_EVENTS(X)
#undef X
  };
  return e < VmEvent::count ? names[static_cast<unsigned>(e)] : "none";
}

}  // namespace weir
