// src/mm/page_writeback.hpp
//
// How much may be dirty, and who is slowed for it. Linux: mm/page-writeback.c 4.14 (thresholds; pauses kept simple).
//
//   page becomes dirty -> account_page_dirtied -> balance_dirty_pages_ratelimited -> over freerun: wake flusher, pause <= 200 ms
#pragma once

#include "mm/filemap.hpp"

namespace weir {

struct DirtyLimits {
  PageCount background{}, dirty{};
};

/// What the flusher gives: wake it. Plugged in by machine.
class WritebackControlSink {
 public:
  virtual void wakeup_flusher_threads(int reason) = 0;

 protected:
  ~WritebackControlSink() = default;
};

class PageWriteback {
 public:
  PageWriteback(Filemap& filemap, VmStat& vmstat);
  void set_flusher(WritebackControlSink* flusher) { flusher_ = flusher; }
  void set_ratios(unsigned background_percent, unsigned dirty_percent);
  [[nodiscard]] DirtyLimits global_dirty_limits() const;
  /// Page of a file: PG_dirty, tag, NR_FILE_DIRTY. True if it was clean.
  bool __set_page_dirty_nobuffers(Page& page, AddressSpace& mapping);
  void account_page_dirtied(Page& page, AddressSpace& mapping);
  void account_page_cleaned(Page& page);
  /// Page locked: takes PG_dirty off for writing. True if it was dirty (the writer now owns the write).
  bool clear_page_dirty_for_io(Page& page);
  /// Called by whoever dirtied a page, holding nothing: every ratelimit pages looks at the limits.
  void balance_dirty_pages_ratelimited(AddressSpace& mapping);
  void balance_dirty_pages(AddressSpace& mapping);
  /// Writes a mapping's dirty pages through a_ops->writepage, in order. Returns pages written.
  PageCount write_cache_pages(AddressSpace& mapping, WritebackControl& wbc);
  [[nodiscard]] bool node_dirty_ok() const;

 private:
  Filemap& filemap_;
  VmStat& vmstat_;
  WritebackControlSink* flusher_ = nullptr;
  unsigned dirty_background_ratio_ = 10, vm_dirty_ratio_ = 20;
};

}  // namespace weir
