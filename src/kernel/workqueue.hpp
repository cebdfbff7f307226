// src/kernel/workqueue.hpp
//
// Functions called later, one after the other, by a kthread of the queue's own.
//
//   queue_work():          idle --> pending (in the queue) --> running --> idle
//   queue_delayed_work():  idle --> pending (on the timer) --> pending (in the queue) --> running --> idle
//
// A work item is queued once until it runs: queueing a pending one does nothing, queueing a running one makes it run
// once more. Items may lie in any object; when the function runs the item is the function's, which may free it. Linux:
// include/linux/workqueue.h, kernel/workqueue.c (which shares its workers; here each queue has one).
#pragma once

#include "kernel/locks.hpp"

namespace weir {

class Workqueue;
struct WorkStruct;
using work_func_t = void (*)(WorkStruct* work);

struct WorkStruct {
  /// Set from queueing until just before the function runs, and while the item is being cancelled.
  static constexpr uint32_t PENDING = 1;
  std::atomic<uint32_t> data{0};
  work_func_t func = nullptr;
  // The queue's own, guarded by its lock.
  WorkStruct* entry = nullptr;
  bool queued = false;
  uint64_t ticket = 0;
};

struct DelayedWork {
  WorkStruct work;
  Timer timer;
  Workqueue* wq = nullptr;
  bool on_timer = false;  // guarded by the queue's lock: the timer's function is to put it into the queue
};

inline void INIT_WORK(WorkStruct& work, work_func_t func) {
  WEIR_FLOW();
  work.func = func;
}

inline void INIT_DELAYED_WORK(DelayedWork& work, work_func_t func) {
  WEIR_FLOW();
  work.work.func = func;
  work.timer.deferrable = false;
}

/// Its timer is never the reason why an idle CPU wakes up (see Timer::deferrable).
inline void INIT_DEFERRABLE_WORK(DelayedWork& work, work_func_t func) {
  WEIR_FLOW();
  work.work.func = func;
  work.timer.deferrable = true;
}

/// The DelayedWork of a work function's argument.
[[nodiscard]] inline DelayedWork& to_delayed_work(WorkStruct& work) { return reinterpret_cast<DelayedWork&>(work); }

[[nodiscard]] inline bool work_pending(const WorkStruct& work) {
  return (work.data.load(std::memory_order_acquire) & WorkStruct::PENDING) != 0;
}

class Workqueue {
 public:
  Workqueue() = default;
  Workqueue(const Workqueue&) = delete;
  Workqueue& operator=(const Workqueue&) = delete;

  /// Starts the kthread. ENOMEM when there is none. Items queued before wait for it.
  [[nodiscard]] Result<void> start(World& world, const char* name);
  /// Runs what is in the queue, then ends the kthread. Items on a timer are cancelled before, by their owners.
  void stop();
  /// In the child of a fork: the kthread is not here. Start again; what was queued still is.
  void forget_thread();

  /// False if it was pending already. Any context, under spinlocks too.
  bool queue_work(WorkStruct& work);
  /// The same after `delay`. The queue has been started.
  bool queue_delayed_work(DelayedWork& work, Nanos delay);
  /// Queues it, or moves the end of the delay that it is in (it may still run at the old time when that is just
  /// passing). True if it was pending. Any context but spinlocks that a timer's function takes.
  bool mod_delayed_work(DelayedWork& work, Nanos delay);

  /// Waits until the item, as queued or running now, has run. False if it was neither. Sleeps.
  bool flush_work(WorkStruct& work);
  /// Waits for everything queued before. Sleeps.
  void flush_workqueue();
  /// Afterwards it is neither pending nor running, even if its function queues it again. True if it was pending.
  /// Sleeps; not from the item's own function, and by one caller at a time.
  bool cancel_work_sync(WorkStruct& work);
  bool cancel_delayed_work_sync(DelayedWork& work);

 private:
  static void worker(void* wq);
  bool run_one();
  static void delayed_work_timer_fn(void* work);
  void insert(WorkStruct& work) WEIR_REQUIRES(lock_);
  void remove(WorkStruct& work) WEIR_REQUIRES(lock_);
  void wait_for(uint64_t ticket);
  bool cancel(WorkStruct& work, DelayedWork* delayed);

  SpinLock lock_{LockRank::workqueue};
  WorkStruct* head_ WEIR_GUARDED_BY(lock_) = nullptr;
  WorkStruct* tail_ WEIR_GUARDED_BY(lock_) = nullptr;
  WorkStruct* running_ WEIR_GUARDED_BY(lock_) = nullptr;
  // Items run in the order of their tickets: all up to done_ have run or were cancelled.
  uint64_t last_ticket_ WEIR_GUARDED_BY(lock_) = 0;
  uint64_t running_ticket_ WEIR_GUARDED_BY(lock_) = 0;
  uint64_t done_ WEIR_GUARDED_BY(lock_) = 0;
  World* world_ = nullptr;
  Thread* thread_ = nullptr;
  WaitQueue more_;      // the kthread waits for work
  WaitQueue finished_;  // flushers wait for an item's end
};

}  // namespace weir
