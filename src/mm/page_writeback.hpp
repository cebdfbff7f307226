// src/mm/page_writeback.hpp
//
// How much may be dirty, and who is slowed for it. Linux: mm/page-writeback.c 4.14 (thresholds; pauses kept simple).
//
//   page becomes dirty -> account_page_dirtied -> balance_dirty_pages_ratelimited
//     -> over freerun: wake flusher, pause <= 200 ms
//
//   0 ........... background ........... freerun ........... dirty           pages dirty or under writeback
//     nothing      the flusher writes    = (background + dirty) / 2
//                                         pauses from 0 ........ to 200 ms, then again and again until below
//
// A writer's pause is proportional to how far above freerun the machine is. So writers settle where they dirty what the
// device takes away: a pause of (pages between two looks) / (pages a second). Linux estimates the device's bandwidth
// and each writer's share to arrive at the same pause sooner and with less swing; one limit for each device is not here
// yet: a slow device slows writers of a fast one.
#pragma once

#include "mm/filemap.hpp"

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

/// No writer sleeps longer at a time: it must see a kill, and that the limits changed. Linux's value.
inline constexpr Nanos MAX_PAUSE = 200_ms;
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

class PageWriteback {
 public:
  PageWriteback(Filemap& filemap, VmStat& vmstat);
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
  void account_page_cleaned(Page& page);
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
  /// `dirtied` pages since the last look. Returns below the limits, or after a pause, or when the task was killed.
  void balance_dirty_pages(AddressSpace& mapping, PageCount dirtied = PageCount(DIRTY_RATELIMIT_PAGES));
  /// Writes a mapping's dirty pages through a_ops->writepage, in order. SyncMode::all writes those that are dirty now,
  /// however many become so meanwhile (TOWRITE), and waits for writes under way before it writes a page again. Returns
  /// pages written; wbc.nr_to_write is less by as many. Sleeps, takes page locks.
  PageCount write_cache_pages(AddressSpace& mapping, WritebackControl& wbc);
  /// Does the node's share of dirty pages have room for one more (__GFP_WRITE)?
  [[nodiscard]] bool node_dirty_ok() const;

 private:
  [[nodiscard]] PageCount dirty_and_writeback() const;
  [[nodiscard]] unsigned ratelimit() const;
  void tag_pages_for_writeback(AddressSpace& mapping, uint64_t start, uint64_t end);
  bool write_one(AddressSpace& mapping, Page& page, WritebackControl& wbc);
  PageCount write_range(AddressSpace& mapping, WritebackControl& wbc, uint64_t start, uint64_t end,
                        uint64_t& done_index);

  Filemap& filemap_;
  VmStat& vmstat_;
  WritebackControlSink* flusher_ = nullptr;  // set once, at boot
  MappedFilePages* mapped_ = nullptr;        // set once, at boot
  std::atomic<unsigned> dirty_background_ratio_{10}, vm_dirty_ratio_{20};
  std::atomic<bool> dirty_exceeded_{false};  ///< above the limit at the last look: look more often
  /// Pages dirtied by all since somebody last looked, and how many of them make somebody look: a thousand tasks with 31
  /// each.
  std::atomic<uint32_t> bdp_ratelimits_{0}, ratelimit_pages_{DIRTY_RATELIMIT_PAGES};
};

}  // namespace weir
