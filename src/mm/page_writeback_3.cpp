// src/mm/page_writeback_3.cpp: writers sleep, each as long as its device needs; 3.2 and later. See page_writeback.hpp
#include <algorithm>
#include <bit>

#include "mm/page_writeback.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "page_writeback.cpp"

namespace weir {

namespace {

/// Shorter pauses than this are saved up.
constexpr Nanos SHORTEST = 10_ms;
constexpr uint64_t SECOND = 1'000'000'000;

unsigned log2_of(int64_t n) {
  return static_cast<unsigned>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(n, 1)))) - 1;
}

Nanos time_of(int64_t pages, int64_t a_second) {
  return Nanos(static_cast<uint64_t>(std::max<int64_t>(pages, 0)) * SECOND /
               static_cast<uint64_t>(std::max<int64_t>(a_second, 1)));
}
int64_t pages_in_time(int64_t a_second, Nanos time) {
  return static_cast<int64_t>(static_cast<uint64_t>(a_second) * time.v / SECOND);
}

class DirtyEra_3 final : public DirtyEra {
  /// Not 1: a store through a mapping, whose page is cleaned while its task pauses for it, would be made again and pause
  /// again without end.
  static constexpr uint64_t LEAST_POLL = 2;

  [[nodiscard]] DirtyLimits limits(const PageWriteback& self) const override {
    return self.ratios_of(self.global_dirtyable_memory().v);
  }
  [[nodiscard]] uint64_t ratelimit(const BdiWriteback& wb) const override {
    const Task* task = current_task();
    const uint64_t own = task != nullptr ? task->nr_dirtied_pause : uint64_t{DIRTY_RATELIMIT_PAGES};
    return wb.dirty_exceeded.load(std::memory_order_relaxed) ? std::min<uint64_t>(own, DIRTY_EXCEEDED_RATELIMIT_PAGES)
                                                             : own;
  }

  /// What is left before the limit, shared by as many writers as there may well be: its root.
  [[nodiscard]] static uint64_t dirty_poll_interval(int64_t dirty, int64_t thresh) {
    return std::max(thresh > dirty ? uint64_t{1} << (log2_of(thresh - dirty) / 2) : 1, LEAST_POLL);
  }
  /// Nobody sleeps so long that his device runs dry.
  [[nodiscard]] static Nanos wb_max_pause(const DirtyControl& control) {
    return std::clamp(time_of(control.wb_dirty, control.write_bw) / 8, 4_ms, MAX_PAUSE);
  }
  /// The shortest pause that is worth it, and in `pages` after how many it is due.
  [[nodiscard]] static Nanos wb_min_pause(const DirtyControl& control, int64_t task_ratelimit, int64_t dirty_ratelimit,
                                          Nanos max_pause, int64_t& pages) {
    // The more writers there are, the longer each sleeps.
    const unsigned hi = log2_of(control.write_bw), lo = log2_of(dirty_ratelimit);
    Nanos time = hi > lo ? SHORTEST + SHORTEST * (hi - lo) : SHORTEST;
    time = std::min(time, max_pause / 2 + 1_ms);
    pages = pages_in_time(dirty_ratelimit, time);
    constexpr int64_t POLL = DIRTY_RATELIMIT_PAGES;
    if (pages < POLL) {
      time = max_pause;
      pages = pages_in_time(dirty_ratelimit, time);
      if (pages > POLL) {
        pages = POLL;
        time = time_of(POLL, dirty_ratelimit);
      }
    }
    if (time_of(pages, task_ratelimit + 1) > max_pause) {
      time = max_pause;
      pages = pages_in_time(task_ratelimit, time);
    }
    const Nanos shortest = pages >= POLL ? time / 2 : time;
    // Linux lets it go on for longer; here nobody is to pass the limit by more.
    pages = std::clamp<int64_t>(pages, LEAST_POLL, POLL);
    return shortest;
  }

  void balance_dirty_pages(PageWriteback& self, AddressSpace& mapping, PageCount dirtied) const override {
    WEIR_FLOW(dirtied);
    BdiWriteback& wb = self.wb_of(mapping);
    WritebackControlSink* flusher = self.flusher();
    Task nobody;
    Task* const current = current_task();
    Task& task = current != nullptr ? *current : nobody;
    const Nanos start = world().now();
    bool exceeded = false;
    for (;;) {
      const Nanos now = world().now();
      const DirtyControl control = self.dirty_control(wb);
      self.set_ratelimit(PageCount(control.thresh));
      if (control.runs_free()) {
        task.dirty_paused_when = now;
        const uint64_t interval = control.strict ? dirty_poll_interval(control.wb_dirty, control.wb_thresh)
                                                 : dirty_poll_interval(control.dirty, control.thresh);
        task.nr_dirtied_pause = std::min<uint64_t>(interval, DIRTY_RATELIMIT_PAGES);
        break;
      }
      if (flusher != nullptr && flusher->has_thread()) {
        flusher->start_background(wb);
      } else {
        // Nobody would write: as before there were flushers.
        WritebackControl wbc;
        wbc.nr_to_write = DIRTY_RATELIMIT_PAGES + DIRTY_RATELIMIT_PAGES / 2;
        wbc.range_cyclic = true;
        self.write_cache_pages(mapping, wbc);
      }
      exceeded = control.wb_dirty > control.wb_thresh && (control.strict || control.dirty > control.thresh);
      wb.dirty_exceeded.store(exceeded, std::memory_order_relaxed);
      self.wb_update_bandwidth(wb, control, start);

      const int64_t dirty_ratelimit = wb.dirty_ratelimit.load(std::memory_order_relaxed);
      const int64_t task_ratelimit = dirty_ratelimit * control.pos_ratio >> RATELIMIT_CALC_SHIFT;
      const Nanos max_pause = wb_max_pause(control);
      int64_t due = LEAST_POLL;
      const Nanos min_pause = wb_min_pause(control, task_ratelimit, dirty_ratelimit, max_pause, due);
      Nanos pause = max_pause;
      if (task_ratelimit != 0) {
        const Nanos period = time_of(dirtied.v, task_ratelimit);
        // What it has been doing since the last pause counts.
        const Nanos since = task.dirty_paused_when != Nanos(0) ? now - std::min(now, task.dirty_paused_when) : Nanos(0);
        pause = period > since ? period - since : Nanos(0);
        if (pause < min_pause) {
          if (since > period + 1_s)
            task.dirty_paused_when = now;
          else
            task.dirty_paused_when += period;
          task.nr_dirtied_pause = static_cast<uint64_t>(due);
          break;
        }
        pause = std::min(pause, max_pause);
      }
      if (fatal_signal_pending()) break;
      self.pause(pause);
      task.dirty_paused_when = world().now();
      task.nr_dirtied_pause = static_cast<uint64_t>(due);
      if (fatal_signal_pending() || task_ratelimit != 0) break;
      // The limit is used up by others, on devices that do not get on: who has nothing dirty goes on.
      if (wb.reclaimable.load(std::memory_order_relaxed) + wb.writeback.load(std::memory_order_relaxed) <= 0) break;
    }
    if (!exceeded) wb.dirty_exceeded.store(false, std::memory_order_relaxed);
    if (flusher != nullptr && wb.in_progress.load(std::memory_order_relaxed) == 0 && self.over_background_thresh())
      flusher->start_background(wb);
  }
};

}  // namespace

const DirtyEra& DirtyEra::of_3() {
  static constexpr DirtyEra_3 era;
  return era;
}

}  // namespace weir
