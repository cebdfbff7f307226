// src/mm/flusher.hpp
//
// The flusher thread: writes dirty inodes in the background. Linux: fs/fs-writeback.c (bdi_writeback), one thread for
// now.
//
//   every 5 s:                           inodes dirty longer than 30 s
//   woken over the background limit:     until under it
//   asked:                               everything
//
//   b_dirty: inode --> inode --> inode      by dirtied_when, oldest first
//      └ taken (i_sync), up to 1024 pages written
//          quota used up -> front of the next round, as old as it was
//          still dirty   -> back, as if dirtied now
//          clean         -> off
//
// Without a dirty inode the thread sleeps without an end: an idle machine is not woken by it.
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
  /// The files whose inodes it is given outlive it, or are forgotten first.
  Flusher(PageWriteback& writeback, VmStat& vmstat, KernelEra kernel = DEFAULT_KERNEL);
  /// Starts the thread. Without a thread to be had the writers write themselves.
  void start(World& world);
  /// Waits until what is being written is submitted, and ends the thread. Dirty pages stay dirty.
  void stop();

  // WritebackControlSink
  void wakeup(int reason) override { (this->*wakeup_)(reason); }
  void mark_inode_dirty(Inode& inode) override;
  void forget_inode(Inode& inode) override;
  [[nodiscard]] bool has_thread() const override { return thread_.load(std::memory_order_acquire) != nullptr; }

  /// Inodes on the list or in the thread's hands.
  [[nodiscard]] uint64_t dirty_inodes();

 private:
  using InodeList = boost::intrusive::list<Inode, boost::intrusive::member_hook<Inode, ListHook, &Inode::wb_list>,
                                           boost::intrusive::constant_time_size<false>>;
  /// One piece of work. Linux: struct wb_writeback_work.
  struct Work {
    int reason;
    Nanos older_than;  ///< only inodes dirtied until then
    [[nodiscard]] bool background() const { return reason == WB_REASON_BACKGROUND; }
  };
  static constexpr int NOTHING = -1;

  void wakeup_pdflush(int reason);
  void wakeup_flusher_threads(int reason);
  void ask(int reason);

  static void thread_fn(void* self);
  void wb_workfn();
  void wait_for_work();
  void wb_writeback(const Work& work);
  PageCount writeback_inodes(const Work& work, bool& errors);
  PageCount writeback_single_inode(Inode& inode, const Work& work);
  void queue_io(const Work& work) WEIR_REQUIRES(lock_);
  void requeue_inode(Inode& inode, bool more_io) WEIR_REQUIRES(lock_);

  PageWriteback& writeback_;
  VmStat& vmstat_;
  void (Flusher::*const wakeup_)(int reason);  ///< under the kernel's name
  std::atomic<Thread*> thread_{nullptr};
  World* world_ = nullptr;
  SpinLock lock_{LockRank::writeback};
  InodeList b_dirty_ WEIR_GUARDED_BY(lock_);
  InodeList b_io_ WEIR_GUARDED_BY(lock_);       ///< of the round being written, those still to come
  InodeList b_more_io_ WEIR_GUARDED_BY(lock_);  ///< whose quota was used up
  Nanos next_periodic_
      WEIR_GUARDED_BY(lock_){};          ///< when the list was not empty: 5 s after the last look, or the first inode
  std::atomic<bool> background_{false};  ///< asked for
  std::atomic<int> all_{NOTHING};        ///< asked for: everything, for this WbReason
  WaitQueue wait_;
  WaitQueue sync_wait_;  ///< for an inode to leave the thread's hands
};

}  // namespace weir
