// src/mm/page_writeback.hpp
//
// How much may be dirty, and who is slowed for it. Linux: mm/page-writeback.c.
//
//   page becomes dirty -> account_page_dirtied -> balance_dirty_pages_ratelimited -> balance_dirty_pages
//
//   0 ........... background ........... freerun ........... dirty           pages dirty or under writeback
//     nothing      the flusher writes    = (background + dirty) / 2
//
// 2.6.20: above dirty the writer itself writes pages of the device, waits 100 ms, and looks again, until it has done 48
// or is below (page_writeback_2_6_20.cpp).
//
// 3.2 and later: writers only sleep. Above freerun each writer on a device may dirty
//
//   dirty_ratelimit x pos_ratio         pages a second, and sleeps for what it is ahead of that, 200 ms at most
//        │               └ 2 at freerun, 1 half way to dirty, 0 at dirty: wb_position_ratio
//        └ of the device: what it takes, divided among its writers (backing_dev.hpp)
//
// so that those of a slow device are slowed, and those of a fast one are not (page_writeback_3.cpp).
#pragma once

#include "mm/backing_dev.hpp"
#include "mm/profile.hpp"

namespace weir {

struct DirtyLimits {
  PageCount background{}, dirty{};
};

/// Why pages are written: the reason that the flusher is given and that is recorded. Linux: enum wb_reason.
enum WbReason : int {
  WB_REASON_BACKGROUND = 0,
  WB_REASON_VMSCAN = 1,
  WB_REASON_SYNC = 2,
  WB_REASON_PERIODIC = 3,
  WB_REASON_FREE_MORE_MEM = 5,
};

/// Pages that a task may dirty between two looks at the limits; above the limit it looks more often.
inline constexpr unsigned DIRTY_RATELIMIT_PAGES = 32, DIRTY_EXCEEDED_RATELIMIT_PAGES = 8;

/// What the flusher gives: wake it, tell it of inodes. Plugged in by machine.
class WritebackControlSink {
 public:
  /// Everything that is dirty now is to be written; WB_REASON_BACKGROUND: until below the background limit. Any
  /// context.
  virtual void wakeup(int reason) = 0;
  /// An inode's page became dirty: it is on the flusher's list when this returns. Any context.
  virtual void mark_inode_dirty(Inode& inode) { (void)inode; }
  /// Its device's part of the work: background writeback, as WB_REASON_BACKGROUND. Any context.
  virtual void start_background(BdiWriteback& wb) {
    (void)wb;
    wakeup(WB_REASON_BACKGROUND);
  }
  /// Writes up to wbc.nr_to_write pages of the device's dirty inodes, by the caller; wbc.nr_to_write is less by what was
  /// written. Sleeps.
  virtual void writeback_inodes(BdiWriteback& wb, WritebackControl& wbc) { (void)wb, (void)wbc; }
  /// A device that has not been seen before. Sleeps.
  virtual void bdi_register(BdiWriteback& wb) { (void)wb; }
  /// The inode goes: off the list, and no longer in the flusher's hands when this returns. Sleeps.
  virtual void forget_inode(Inode& inode) { (void)inode; }
  /// False if nobody would write: then the writers do it themselves, as before there were flushers.
  [[nodiscard]] virtual bool has_thread() const { return true; }

 protected:
  ~WritebackControlSink() = default;
};

/// What rmap does for file pages that tasks have mapped; rmap is a room above. Plugged in by machine, and a test's
/// fake.
class MappedFilePages {
 public:
  /// Page locked: every PTE of it clean and write-protected, hardware too when this returns. How many were dirty.
  virtual int page_mkclean(Page& page) = 0;
  /// See Memory::unmap_mapping_range. A page of the range may be locked by the caller.
  virtual void unmap_mapping_range(AddressSpace& mapping, uint64_t holebegin, uint64_t holelen, EvenCows even_cows) = 0;

 protected:
  ~MappedFilePages() = default;
};

class PageWriteback;

/// Limits and throttling, as each kernel does it.
class DirtyEra {
 public:
  /// Without what single threads get on top.
  [[nodiscard]] virtual DirtyLimits limits(const PageWriteback& self) const = 0;
  /// Pages that a thread, and that all of them, may dirty between two looks at the limits.
  [[nodiscard]] virtual uint64_t ratelimit(const BdiWriteback& wb) const = 0;
  virtual void balance_dirty_pages(PageWriteback& self, AddressSpace& mapping, PageCount dirtied) const = 0;
  static const DirtyEra& of(KernelEra kernel);
  static const DirtyEra& of_2_6_20();  // page_writeback_2_6_20.cpp
  static const DirtyEra& of_3();       // page_writeback_3.cpp

 protected:
  ~DirtyEra() = default;
};

class PageWriteback {
 public:
  PageWriteback(Filemap& filemap, VmStat& vmstat, KernelEra kernel = DEFAULT_KERNEL);
  void set_flusher(WritebackControlSink* flusher) { flusher_ = flusher; }
  [[nodiscard]] WritebackControlSink* flusher() const { return flusher_; }
  void set_mapped_pages(MappedFilePages* mapped) { mapped_ = mapped; }
  [[nodiscard]] MappedFilePages* mapped_pages() const { return mapped_; }
  /// vm.dirty_background_ratio, vm.dirty_ratio: percent of dirtyable memory, 0…100.
  void set_ratios(unsigned background_percent, unsigned dirty_percent);

  /// Pages that could be dirty: free ones and the page cache's, less what the allocator keeps back. At least 1.
  [[nodiscard]] PageCount global_dirtyable_memory() const;
  /// Of the current thread: PF_LESS_THROTTLE gets a quarter more.
  [[nodiscard]] DirtyLimits global_dirty_limits() const;
  /// Is more dirty than the flusher tolerates?
  [[nodiscard]] bool over_background_thresh() const;

  /// Page of a file: PG_dirty, tag, NR_FILE_DIRTY. True if it was clean. The page is locked, or mapped with its PTE
  /// locked, or otherwise cannot leave its file now. Any context. Takes tree_lock, then the flusher's.
  bool __set_page_dirty_nobuffers(Page& page, AddressSpace& mapping);
  /// tree_lock held: the page is dirty now.
  void account_page_dirtied(Page& page, AddressSpace& mapping);
  void account_page_cleaned(Page& page, const AddressSpace& mapping);
  /// A page taken for writing that is not written after all: dirty as it was. Nobody is charged for it again.
  void redirty_page_for_writepage(WritebackControl& wbc, Page& page);
  /// Page locked: takes PG_dirty off for writing, after its PTEs. True if it was dirty (the writer now owns the write).
  /// Tags follow in set_page_writeback. Also for swap-cache pages, which are not accounted. May sleep if the page is a
  /// file's.
  bool clear_page_dirty_for_io(Page& page);
  /// Page locked: its bytes are given up, or have been written. Linux: cancel_dirty_page.
  void cancel_dirty_page(Page& page);

  /// Called by whoever dirtied a page, holding no page lock: every so many pages looks at the limits. Sleeps.
  void balance_dirty_pages_ratelimited(AddressSpace& mapping);
  /// `dirtied` pages since the last look. Returns when the writer may go on, or was killed.
  void balance_dirty_pages(AddressSpace& mapping, PageCount dirtied = PageCount(DIRTY_RATELIMIT_PAGES)) {
    era_.balance_dirty_pages(*this, mapping, dirtied);
  }

  // ---- devices
  /// What is kept for a device; new to it, it gets a place. Sleeps.
  BdiWriteback& wb_of(const BlockDevice& device);
  /// What is kept for the device of a mapping.
  [[nodiscard]] BdiWriteback& wb_of(const AddressSpace& mapping) {
    return mapping.wb != nullptr ? static_cast<BdiWriteback&>(*mapping.wb) : wbs_[0];
  }
  template <class Fn>
  void for_each_wb(Fn&& fn) {
    for (unsigned i = 0; i < nr_wbs_.load(std::memory_order_acquire); ++i) fn(wbs_[i]);
  }
  /// The device's part of `thresh`: its share of what was written of late.
  [[nodiscard]] int64_t wb_calc_thresh(const BdiWriteback& wb, int64_t thresh);
  /// Where the dirty pages stand for a writer of this device.
  [[nodiscard]] DirtyControl dirty_control(BdiWriteback& wb);
  /// New estimates for the device, if it is time. start: of the caller's work.
  void wb_update_bandwidth(BdiWriteback& wb, const DirtyControl& control, Nanos start);
  /// Has the device's flusher something to do in the background?
  [[nodiscard]] bool wb_over_bg_thresh(BdiWriteback& wb);
  /// Writes a mapping's dirty pages through a_ops->writepage, in order. SyncMode::all writes those that are dirty now,
  /// however many become so meanwhile (TOWRITE), and waits for writes under way before it writes a page again. Returns
  /// pages written; wbc.nr_to_write is less by as many. Sleeps, takes page locks.
  PageCount write_cache_pages(AddressSpace& mapping, WritebackControl& wbc);
  /// Does the node's share of dirty pages have room for one more (__GFP_WRITE)?
  [[nodiscard]] bool node_dirty_ok() const;

  [[nodiscard]] PageCount dirty_and_writeback() const;
  /// vm.dirty_background_ratio and vm.dirty_ratio of `memory`.
  [[nodiscard]] DirtyLimits ratios_of(int64_t memory, unsigned most_percent = 100) const;
  [[nodiscard]] Filemap& filemap() const { return filemap_; }
  [[nodiscard]] VmStat& vmstat() const { return vmstat_; }
  /// A writer is made to sleep.
  void pause(Nanos time);
  /// Pages dirtied by all between two looks.
  void set_ratelimit(PageCount dirty_limit);

 private:
  void tag_pages_for_writeback(AddressSpace& mapping, uint64_t start, uint64_t end);
  bool write_one(AddressSpace& mapping, Page& page, WritebackControl& wbc);
  PageCount write_range(AddressSpace& mapping, WritebackControl& wbc, uint64_t start, uint64_t end,
                        uint64_t& done_index);

  Filemap& filemap_;
  VmStat& vmstat_;
  const DirtyEra& era_;
  WritebackControlSink* flusher_ = nullptr;  // set once, at boot
  MappedFilePages* mapped_ = nullptr;        // set once, at boot
  std::atomic<unsigned> dirty_background_ratio_{10}, vm_dirty_ratio_;
  /// Pages dirtied by all since somebody last looked, and how many of them make somebody look: a thousand tasks with 31
  /// each.
  std::atomic<uint32_t> bdp_ratelimits_{0}, ratelimit_pages_{DIRTY_RATELIMIT_PAGES};
  SpinLock wbs_lock_{LockRank::leaf};  ///< new devices, estimates
  BdiWriteback wbs_[MAX_BDIS];         ///< [0]: of what has no device, and of devices without a place
  std::atomic<unsigned> nr_wbs_{1};
  Nanos completions_since_ WEIR_GUARDED_BY(wbs_lock_){};  ///< since when completions count in full
};

}  // namespace weir
