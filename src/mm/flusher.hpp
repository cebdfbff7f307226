// src/mm/flusher.hpp
//
// Who writes dirty inodes in the background. Linux: fs/fs-writeback.c, mm/backing-dev.c, mm/pdflush.c.
//
//   every 5 s:                           inodes dirty longer than 30 s
//   woken over the background limit:     until under it
//   asked:                               everything
//
//   a device's b_dirty: inode --> inode --> inode      by dirtied_when, oldest first
//      └ taken (i_sync), up to 1024 pages written
//          quota used up -> front of the next round, as old as it was
//          still dirty   -> back, as if dirtied now
//          clean         -> off
//
// 2.6.32 and later: a thread for each device, with a queue of work; a slow device holds up nobody else's. Before that
// (flusher_2_6_20.cpp) a pool of 2 to 8 pdflush threads for all devices: one more when all have been busy for a second,
// one less when one has had nothing to do for as long.
//
// Without a dirty inode the threads sleep without an end: an idle machine is not woken by them.
#pragma once

#include "mm/inode.hpp"
#include "mm/page_writeback.hpp"
#include "mm/profile.hpp"

namespace weir {

/// vm.dirty_writeback_centisecs, vm.dirty_expire_centisecs; Linux's values. A page is on its way to the device at most
/// their sum after it was dirtied.
inline constexpr Nanos DIRTY_WRITEBACK_INTERVAL = 5_s, DIRTY_EXPIRE_INTERVAL = 30_s;
/// Pages of one inode written before the next has its turn. 4 MiB: Linux's smallest chunk.
inline constexpr int64_t WRITEBACK_CHUNK = 1024;

class Flusher final : public WritebackControlSink {
 public:
  static constexpr unsigned MIN_PDFLUSH_THREADS = 2, MAX_PDFLUSH_THREADS = 8;

  /// The files whose inodes it is given outlive it, or are forgotten first.
  Flusher(PageWriteback& writeback, VmStat& vmstat, KernelEra kernel = DEFAULT_KERNEL);
  /// Starts the threads: of every device there is, and of those that come. Without a thread to be had the writers write
  /// themselves.
  void start(World& world);
  /// Waits until what is being written is submitted, and ends the threads. Dirty pages stay dirty.
  void stop();

  // WritebackControlSink
  void wakeup(int reason) override { (this->*wakeup_)(reason); }
  void start_background(BdiWriteback& wb) override { (this->*start_background_)(wb); }
  void writeback_inodes(BdiWriteback& wb, WritebackControl& wbc) override;
  void bdi_register(BdiWriteback& wb) override;
  void mark_inode_dirty(Inode& inode) override;
  void forget_inode(Inode& inode) override;
  [[nodiscard]] bool has_thread() const override { return nr_threads_.load(std::memory_order_acquire) != 0; }

  /// Inodes on a list or in a thread's hands.
  [[nodiscard]] uint64_t dirty_inodes();
  /// Threads there are now.
  [[nodiscard]] unsigned nr_threads() const { return nr_threads_.load(std::memory_order_acquire); }

 private:
  // What both ways share.
  void queue_io(BdiWriteback& wb, Nanos older_than) WEIR_REQUIRES(lock_);
  void give_back(BdiWriteback& wb) WEIR_REQUIRES(lock_);
  PageCount writeback_sb_inodes(BdiWriteback& wb, WritebackControl& wbc, const WritebackWork& work, bool& errors);
  PageCount writeback_single_inode(Inode& inode, const WritebackWork& work, int64_t nr_to_write);
  void requeue_inode(BdiWriteback& wb, Inode& inode, bool more_io) WEIR_REQUIRES(lock_);
  [[nodiscard]] bool enough(BdiWriteback& wb, const WritebackWork& work) {
    return work.background && !writeback_.wb_over_bg_thresh(wb);
  }
  [[nodiscard]] bool has_dirty_inodes(BdiWriteback& wb);

  // 2.6.32 and later: a thread a device
  void wakeup_flusher_threads(int reason);
  void wb_start_background_writeback(BdiWriteback& wb);
  void start_bdi(BdiWriteback& wb);
  bool wb_queue_work(BdiWriteback& wb, const WritebackWork& work);
  bool next_work(BdiWriteback& wb, WritebackWork& work);
  static void bdi_thread(void* wb);
  void bdi_writeback_workfn(BdiWriteback& wb);
  void wb_workfn(BdiWriteback& wb);
  void wb_do_writeback(BdiWriteback& wb);
  void wait_for_work(BdiWriteback& wb);
  void wb_writeback(BdiWriteback& wb, const WritebackWork& work);

  // 2.6.20: a pool
  struct Pdflush {
    enum class State : uint8_t { none, idle, busy, ended } state = State::none;  // lock_, as the rest
    enum class Job : uint8_t { none, background, kupdate } job = Job::none;
    int64_t min_pages = 0;  ///< background: so many, however little is dirty
    Nanos went_to_sleep{};
    Flusher* owner = nullptr;
    Thread* thread = nullptr;
    WaitQueue wait;
  };
  void wakeup_pdflush(int reason);
  void pdflush_background(BdiWriteback& wb);
  bool pdflush_operation(Pdflush::Job job, int64_t min_pages);
  void start_one_pdflush_thread();
  static void pdflush_thread(void* slot);
  void __pdflush(Pdflush& self);
  bool one_less(Pdflush& self);
  void background_writeout(int64_t min_pages);
  void wb_kupdate();
  void arm_kupdate(Nanos delay);
  static void wb_timer_fn(void* self);

  PageWriteback& writeback_;
  VmStat& vmstat_;
  const bool pool_;                            ///< 2.6.20
  void (Flusher::*const wakeup_)(int reason);  ///< under the kernel's name, as the others
  void (Flusher::*const start_background_)(BdiWriteback& wb);
  void (Flusher::*const workfn_)(BdiWriteback& wb);
  World* world_ = nullptr;
  std::atomic<bool> started_{false};
  std::atomic<unsigned> nr_threads_{0};
  SpinLock lock_{LockRank::writeback};  ///< lists and work of all devices, the pool
  WaitQueue sync_wait_;                 ///< for an inode to leave a thread's hands
  Pdflush pool_threads_[MAX_PDFLUSH_THREADS] WEIR_GUARDED_BY(lock_);
  Nanos last_empty_ WEIR_GUARDED_BY(lock_){};        ///< when the last idle thread of the pool was taken
  bool kupdate_due_ WEIR_GUARDED_BY(lock_) = false;  ///< wb_timer_ is armed
  Timer wb_timer_;
};

}  // namespace weir
