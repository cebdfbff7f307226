// src/kernel/workqueue.cpp: see workqueue.hpp
#include "kernel/workqueue.hpp"

#include <cstddef>

namespace weir {

static_assert(offsetof(DelayedWork, work) == 0);

Result<void> Workqueue::start(World& world, const char* name) {
  world_ = &world;
  thread_ = kthread_run(world, worker, this, name);
  if (thread_ == nullptr) return Errno::nomem;
  return {};
}

void Workqueue::stop() {
  if (thread_ == nullptr) return;
  world_->kthread_stop(*thread_);
  thread_ = nullptr;
}

void Workqueue::forget_thread() {
  thread_ = nullptr;
  lock_.forget_holder();
  more_.forget_waiters();
  finished_.forget_waiters();
}

void Workqueue::worker(void* data) {
  auto& wq = *static_cast<Workqueue*>(data);
  for (;;) {
    if (wq.run_one()) continue;
    if (kthread_should_stop()) return;
    wq.more_.wait([&] {
      ScopedLock guard(wq.lock_);
      return wq.head_ != nullptr || kthread_should_stop();
    });
  }
}

/// Takes the first item and runs it; false when there is none.
bool Workqueue::run_one() {
  KthreadPass pass;
  WorkStruct* work;
  {
    ScopedLock guard(lock_);
    work = head_;
    if (work == nullptr) return false;
    remove(*work);
    running_ = work;
    running_ticket_ = work->ticket;
    // With the lock, so that cancel() never meets one that is pending and nowhere.
    work->data.fetch_and(~WorkStruct::PENDING, std::memory_order_acq_rel);
  }
  work->func(work);
  {
    ScopedLock guard(lock_);
    running_ = nullptr;
    done_ = running_ticket_;
  }
  finished_.wake_all();
  return true;
}

void Workqueue::insert(WorkStruct& work) {
  work.ticket = ++last_ticket_;
  work.entry = nullptr;
  work.queued = true;
  (tail_ != nullptr ? tail_->entry : head_) = &work;
  tail_ = &work;
}

void Workqueue::remove(WorkStruct& work) {
  WorkStruct* before = nullptr;
  for (WorkStruct* w = head_; w != &work; w = w->entry) before = w;
  (before != nullptr ? before->entry : head_) = work.entry;
  if (tail_ == &work) tail_ = before;
  work.entry = nullptr;
  work.queued = false;
}

bool Workqueue::queue_work(WorkStruct& work) {
  {
    ScopedLock guard(lock_);
    if ((work.data.fetch_or(WorkStruct::PENDING, std::memory_order_acq_rel) & WorkStruct::PENDING) != 0) return false;
    insert(work);
  }
  more_.wake_one();
  return true;
}

bool Workqueue::queue_delayed_work(DelayedWork& delayed, Nanos delay) {
  if (delay.v == 0) return queue_work(delayed.work);
  ScopedLock guard(lock_);
  if ((delayed.work.data.fetch_or(WorkStruct::PENDING, std::memory_order_acq_rel) & WorkStruct::PENDING) != 0)
    return false;
  delayed.wq = this;
  delayed.on_timer = true;
  delayed.timer.function = delayed_work_timer_fn;
  delayed.timer.data = &delayed;
  world_->timer_arm(delayed.timer, delay);
  return true;
}

bool Workqueue::mod_delayed_work(DelayedWork& delayed, Nanos delay) {
  bool was_on_timer;
  {
    ScopedLock guard(lock_);
    if (delayed.work.queued) return true;
    was_on_timer = delayed.on_timer;
    if (was_on_timer && delay.v > 0) {
      world_->timer_arm(delayed.timer, delay);
      return true;
    }
    delayed.on_timer = false;
  }
  if (!was_on_timer) return !queue_delayed_work(delayed, delay);
  // The item is off the timer and still pending, so nobody else moves it. The timer goes first: once in the queue the
  // item may run, and be gone.
  world_->timer_cancel(delayed.timer);
  {
    ScopedLock guard(lock_);
    insert(delayed.work);
  }
  more_.wake_one();
  return true;
}

void Workqueue::delayed_work_timer_fn(void* data) {
  auto& delayed = *static_cast<DelayedWork*>(data);
  Workqueue& wq = *delayed.wq;
  {
    ScopedLock guard(wq.lock_);
    if (!delayed.on_timer) return;
    delayed.on_timer = false;
    wq.insert(delayed.work);
  }
  wq.more_.wake_one();
}

void Workqueue::wait_for(uint64_t ticket) {
  WEIR_BUG_ON(thread_ == &current());
  finished_.wait([&] {
    ScopedLock guard(lock_);
    return done_ >= ticket || (head_ == nullptr && running_ == nullptr);
  });
}

bool Workqueue::flush_work(WorkStruct& work) {
  uint64_t ticket;
  {
    ScopedLock guard(lock_);
    if (work.queued) {
      ticket = work.ticket;
    } else if (running_ == &work) {
      ticket = running_ticket_;
    } else {
      return false;
    }
  }
  wait_for(ticket);
  return true;
}

void Workqueue::flush_workqueue() {
  uint64_t ticket;
  {
    ScopedLock guard(lock_);
    ticket = last_ticket_;
  }
  wait_for(ticket);
}

bool Workqueue::cancel_work_sync(WorkStruct& work) { return cancel(work, nullptr); }

bool Workqueue::cancel_delayed_work_sync(DelayedWork& work) { return cancel(work.work, &work); }

bool Workqueue::cancel(WorkStruct& work, DelayedWork* delayed) {
  // With PENDING ours nobody can queue it, its own function included.
  bool was_pending = true;
  uint64_t running_until = 0;
  {
    ScopedLock guard(lock_);
    if (work.queued) {
      remove(work);
    } else if (delayed != nullptr && delayed->on_timer) {
      delayed->on_timer = false;
    } else {
      was_pending = (work.data.fetch_or(WorkStruct::PENDING, std::memory_order_acq_rel) & WorkStruct::PENDING) != 0;
    }
    if (running_ == &work) running_until = running_ticket_;
  }
  if (delayed != nullptr) world_->timer_cancel(delayed->timer);
  finished_.wake_all();  // flushers of the item that will not run
  if (running_until != 0) wait_for(running_until);
  work.data.fetch_and(~WorkStruct::PENDING, std::memory_order_acq_rel);
  return was_pending;
}

}  // namespace weir
