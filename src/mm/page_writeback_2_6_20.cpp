// src/mm/page_writeback_2_6_20.cpp: limits by what is not mapped, and the writer writes. See page_writeback.hpp
#include <algorithm>

#include "mm/page_writeback.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "page_writeback.cpp"

namespace weir {

namespace {

/// Between two looks of a writer that is above the limit; Linux's HZ/10.
constexpr Nanos CONGESTION_WAIT = 100_ms;

class DirtyEra_2_6_20 final : public DirtyEra {
  /// What programs have mapped cannot well be given to dirty pages: half of the rest at most, 5 percent at least.
  [[nodiscard]] DirtyLimits limits(const PageWriteback& self) const override {
    const int64_t memory = std::max<int64_t>(self.filemap().pages().managed_pages().v, 1);
    const VmStat& stat = self.vmstat();
    const int64_t mapped = stat.node_page_state(NodeStat::nr_mapped) + stat.node_page_state(NodeStat::nr_anon_pages);
    const int64_t unmapped_percent = 100 - std::min<int64_t>(mapped * 100 / memory, 100);
    return self.ratios_of(memory, static_cast<unsigned>(std::max<int64_t>(unmapped_percent / 2, 5)));
  }
  [[nodiscard]] uint64_t ratelimit(const BdiWriteback& wb) const override {
    return wb.dirty_exceeded.load(std::memory_order_relaxed) ? DIRTY_EXCEEDED_RATELIMIT_PAGES : DIRTY_RATELIMIT_PAGES;
  }

  void balance_dirty_pages(PageWriteback& self, AddressSpace& mapping, PageCount dirtied) const override {
    WEIR_FLOW(dirtied);
    constexpr int64_t WRITE_CHUNK = DIRTY_RATELIMIT_PAGES + DIRTY_RATELIMIT_PAGES / 2;
    BdiWriteback& wb = self.wb_of(mapping);
    WritebackControlSink* flusher = self.flusher();
    const auto exceeded = [&] {
      const DirtyLimits limits = self.global_dirty_limits();
      self.set_ratelimit(limits.dirty);
      return self.dirty_and_writeback() > limits.dirty;
    };
    bool above;
    for (int64_t written = 0; (above = exceeded()) && !fatal_signal_pending();) {
      wb.dirty_exceeded.store(true, std::memory_order_relaxed);
      WritebackControl wbc;
      wbc.nr_to_write = WRITE_CHUNK;
      wbc.range_cyclic = true;
      if (flusher != nullptr)
        flusher->writeback_inodes(wb, wbc);
      else
        self.write_cache_pages(mapping, wbc);
      if (!(above = exceeded())) break;
      written += WRITE_CHUNK - wbc.nr_to_write;
      if (written >= WRITE_CHUNK) break;  // it has done its duty
      self.pause(CONGESTION_WAIT);
    }
    if (!above) wb.dirty_exceeded.store(false, std::memory_order_relaxed);
    // Somebody writes for the device already.
    if (wb.in_progress.load(std::memory_order_relaxed) != 0) return;
    if (flusher != nullptr && self.over_background_thresh()) flusher->start_background(wb);
  }
};

}  // namespace

const DirtyEra& DirtyEra::of_2_6_20() {
  static constexpr DirtyEra_2_6_20 era;
  return era;
}

}  // namespace weir
