// src/mm/vmstat.hpp
//
// Counters. Events per CPU, gauges per node; read as /proc/vmstat. Linux: mm/vmstat.c.
// One node: gauges are plain atomics (exact); per-CPU deltas come with the row of their own.
#pragma once

#include "mm/types.hpp"

namespace weir {

class VmStat {
 public:
  void mod_node_page_state(NodeStat s, int64_t delta) {
    gauges_[static_cast<unsigned>(s)].fetch_add(delta, std::memory_order_relaxed);
  }
  void inc_node_page_state(NodeStat s) { mod_node_page_state(s, 1); }
  /// Until 4.8 what is counted belongs to a zone; the sum over them is what is kept here.
  void __inc_zone_page_state(NodeStat s) {
    WEIR_FLOW(s);
    inc_node_page_state(s);
  }
  void dec_node_page_state(NodeStat s) { mod_node_page_state(s, -1); }
  [[nodiscard]] int64_t node_page_state(NodeStat s) const {
    return gauges_[static_cast<unsigned>(s)].load(std::memory_order_relaxed);
  }
  void count_vm_event(VmEvent e) {
    WEIR_FLOW(e);
    count_vm_events(e, 1);
  }
  void count_vm_events(VmEvent e, uint64_t n) {
    events_[static_cast<unsigned>(e)].fetch_add(n, std::memory_order_relaxed);
  }
  [[nodiscard]] uint64_t event(VmEvent e) const {
    return events_[static_cast<unsigned>(e)].load(std::memory_order_relaxed);
  }

 private:
  WorldAtomic<int64_t> gauges_[static_cast<unsigned>(NodeStat::count)] = {};
  WorldAtomic<uint64_t> events_[static_cast<unsigned>(VmEvent::count)] = {};
};

[[nodiscard]] const char* stat_name(NodeStat s);
[[nodiscard]] const char* event_name(VmEvent e);

}  // namespace weir
