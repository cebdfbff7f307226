// src/mm/backing_dev.hpp
//
// A device as writeback sees it: its dirty inodes, what is dirty and under writeback on it, how fast it takes pages.
// Linux: struct bdi_writeback (include/linux/backing-dev-defs.h), mm/backing-dev.c; the estimates are
// mm/page-writeback.c's (3.2 and later).
//
//   every 200 ms:   written since, a second                   --averaged over 4 s--> write_bandwidth
//                   ratelimit x pos_ratio = what each of N writers was let do; dirtied since = what N of them did
//                   ratelimit x pos_ratio x bandwidth / dirtied = what each may do, so that all together do what the
//                   device does                               --in small steps--> dirty_ratelimit
#pragma once

#include "mm/inode.hpp"

namespace weir {

/// No writer sleeps longer at a time: it must see a kill, and that the limits changed. Linux's value.
inline constexpr Nanos MAX_PAUSE = 200_ms;
inline constexpr Nanos BANDWIDTH_INTERVAL = 200_ms;
/// What a device is taken for before it has shown: 100 MB/s, in pages.
inline constexpr int64_t INIT_BW = (100 << 20) >> PAGE_SHIFT;
/// Ratios are in 1/1024.
inline constexpr unsigned RATELIMIT_CALC_SHIFT = 10;
/// Devices that are told apart; more share the first one's place with what has no device.
inline constexpr unsigned MAX_BDIS = 16;

/// Where the dirty pages stand, for one writer. All in pages. Linux: struct dirty_throttle_control.
struct DirtyControl {
  int64_t thresh = 0, bg_thresh = 0;
  int64_t dirty = 0;  ///< and under writeback; of all
  int64_t wb_thresh = 0, wb_bg_thresh = 0;
  int64_t wb_dirty = 0;  ///< of the device
  bool strict = false;   ///< it is not to have more than wb_thresh, however few others have
  int64_t write_bw = INIT_BW;
  int64_t pos_ratio = 0;  ///< 1024 where dirty is as it should be
  [[nodiscard]] int64_t freerun() const { return (thresh + bg_thresh) / 2; }
  [[nodiscard]] int64_t wb_freerun() const { return (wb_thresh + wb_bg_thresh) / 2; }
  /// Nobody is slowed.
  [[nodiscard]] bool runs_free() const { return strict ? wb_dirty <= wb_freerun() : dirty <= freerun(); }
};

/// How much faster or slower than its share a writer may be, so that `dirty` comes to lie half way between freerun and
/// the limit: 2 at freerun, 1 there, 0 at the limit; a cubic.
[[nodiscard]] int64_t pos_ratio_polynom(int64_t setpoint, int64_t dirty, int64_t limit);
/// The same for a writer on a device: less where the device has more than its share, more where it has hardly any.
[[nodiscard]] int64_t wb_position_ratio(const DirtyControl& control);

/// One piece of a flusher's work. Linux: struct wb_writeback_work.
struct WritebackWork {
  int reason = 0;           ///< WbReason
  int64_t nr_pages = 0;     ///< so many at most
  Nanos older_than{};       ///< only inodes dirtied until then
  bool background = false;  ///< until below the background limit
};

using InodeList = boost::intrusive::list<Inode, boost::intrusive::member_hook<Inode, ListHook, &Inode::wb_list>,
                                         boost::intrusive::constant_time_size<false>>;

struct BdiWriteback : WbStat {
  static constexpr unsigned MAX_WORKS = 8;

  const BlockDevice* bdi = nullptr;  ///< null: of inodes without a device. Immutable

  // Estimates; pages, pages a second. PageWriteback's estimate lock.
  Nanos bw_time_stamp{};  ///< of the last estimate
  uint64_t dirtied_stamp = 0, written_stamp = 0;
  int64_t write_bandwidth = INIT_BW, avg_write_bandwidth = INIT_BW;
  std::atomic<int64_t> dirty_ratelimit{INIT_BW};
  int64_t balanced_dirty_ratelimit = INIT_BW;
  uint64_t completions = 0;  ///< pages written, those of each 3 s counting half of the next's
  std::atomic<bool> dirty_exceeded{false};

  // Dirty inodes and who writes them; the flusher's writeback lock.
  InodeList b_dirty;      ///< by dirtied_when, oldest first
  InodeList b_io;         ///< of the round being written, those still to come
  InodeList b_more_io;    ///< whose quota was used up
  Nanos next_periodic{};  ///< while b_dirty is not empty: 5 s after the last look, or the first inode
  WritebackWork works[MAX_WORKS];
  unsigned first_work = 0, nr_works = 0;
  std::atomic<bool> background{false};  ///< asked for
  std::atomic<int32_t> in_progress{0};  ///< threads that write for it
  void* flusher = nullptr;              ///< its thread's
  std::atomic<Thread*> thread{nullptr};
  WaitQueue wait;

  /// New estimates, if it is time. start: when the caller began. The estimate lock is held.
  void update_bandwidth(const DirtyControl& control, Nanos start, Nanos now);

 private:
  void update_dirty_ratelimit(const DirtyControl& control, uint64_t dirtied_now, Nanos elapsed);
  void update_write_bandwidth(uint64_t written_now, Nanos elapsed);
};

}  // namespace weir
