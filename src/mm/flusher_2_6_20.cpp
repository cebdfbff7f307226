// src/mm/flusher_2_6_20.cpp: pdflush, a pool of threads for all devices. See flusher.hpp
#include <algorithm>

#include "kernel/freezer.hpp"
#include "mm/flusher.hpp"

namespace weir {

namespace {

constexpr Nanos A_SECOND = 1_s;
/// A device that takes no more now is left alone for so long; Linux's HZ/10.
constexpr Nanos CONGESTION_WAIT = 100_ms;

}  // namespace

// ---- The pool ------------------------------------------------------------------------------------------------------

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "pdflush.cpp"

/// False: all are busy.
bool Flusher::pdflush_operation(Pdflush::Job job, int64_t min_pages) {
  WEIR_FLOW(job, min_pages);
  Pdflush* chosen = nullptr;
  {
    ScopedLock guard(lock_);
    unsigned idle = 0;
    for (Pdflush& slot : pool_threads_) {
      if (slot.state != Pdflush::State::idle) continue;
      ++idle;
      // Who went to sleep last: the others get the chance to end.
      if (chosen == nullptr || slot.went_to_sleep > chosen->went_to_sleep) chosen = &slot;
    }
    if (chosen == nullptr) return false;
    if (idle == 1) last_empty_ = world().now();
    chosen->state = Pdflush::State::busy;
    chosen->job = job;
    chosen->min_pages = min_pages;
  }
  vmstat_.count_vm_event(VmEvent::flusher_wakeup);
  chosen->wait.wake_all();
  return true;
}

void Flusher::start_one_pdflush_thread() {
  Pdflush* slot = nullptr;
  Thread* old = nullptr;
  {
    ScopedLock guard(lock_);
    for (Pdflush& s : pool_threads_)
      if (slot == nullptr && (s.state == Pdflush::State::none || s.state == Pdflush::State::ended)) slot = &s;
    if (slot == nullptr) return;
    old = slot->thread;
    slot->thread = nullptr;
    slot->state = Pdflush::State::busy;
    slot->job = Pdflush::Job::none;
    slot->owner = this;
  }
  if (old != nullptr) world_->kthread_stop(*old);
  Thread* thread = kthread_run(*world_, &pdflush_thread, slot, "pdflush");
  ScopedLock guard(lock_);
  slot->thread = thread;
  if (thread == nullptr)
    slot->state = Pdflush::State::none;
  else
    nr_threads_.fetch_add(1, std::memory_order_acq_rel);
}

void Flusher::pdflush_thread(void* slot) {
  current().flags |= PF_SWAPWRITE;
  auto& self = *static_cast<Pdflush*>(slot);
  self.owner->__pdflush(self);
}

/// After its work. True: the thread is one too many.
bool Flusher::one_less(Pdflush& self) {
  ScopedLock guard(lock_);
  Pdflush* longest = nullptr;
  for (Pdflush& slot : pool_threads_)
    if (slot.state == Pdflush::State::idle && (longest == nullptr || slot.went_to_sleep < longest->went_to_sleep))
      longest = &slot;
  if (longest == nullptr || nr_threads() <= MIN_PDFLUSH_THREADS) return false;
  const Nanos now = world().now();
  if (now - longest->went_to_sleep <= A_SECOND) return false;
  // Not all at once: the next has a second from now on.
  longest->went_to_sleep = now;
  self.state = Pdflush::State::ended;
  nr_threads_.fetch_sub(1, std::memory_order_acq_rel);
  return true;
}

void Flusher::__pdflush(Pdflush& self) {
  for (;;) {
    {
      ScopedLock guard(lock_);
      self.state = Pdflush::State::idle;
      self.job = Pdflush::Job::none;
      self.went_to_sleep = world().now();
    }
    self.wait.wait([&] {
      ScopedLock guard(lock_);
      return kthread_should_stop() || self.job != Pdflush::Job::none;
    });
    try_to_freeze();
    if (kthread_should_stop()) return;
    WEIR_FLOW(self.job, self.min_pages);
    if (self.job == Pdflush::Job::background)
      background_writeout(self.min_pages);
    else
      wb_kupdate();
    bool one_more;
    {
      ScopedLock guard(lock_);
      const bool all_busy = started_.load(std::memory_order_acquire) &&
                            std::none_of(std::begin(pool_threads_), std::end(pool_threads_),
                                         [](const Pdflush& s) { return s.state == Pdflush::State::idle; });
      one_more = all_busy && world().now() - last_empty_ > A_SECOND;
    }
    if (one_more && nr_threads() < MAX_PDFLUSH_THREADS) start_one_pdflush_thread();
    if (one_less(self)) return;
  }
}

// ---- Its work ------------------------------------------------------------------------------------------------------

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "page_writeback.cpp"

void Flusher::wakeup_pdflush(int reason) {
  WEIR_FLOW(reason);
  const int64_t pages = reason == WB_REASON_BACKGROUND ? 0 : vmstat_.node_page_state(NodeStat::nr_dirty);
  (void)pdflush_operation(Pdflush::Job::background, pages);
}

void Flusher::pdflush_background(BdiWriteback&) { (void)pdflush_operation(Pdflush::Job::background, 0); }

/// Until less is dirty than the background limit, and at least `min_pages`.
void Flusher::background_writeout(int64_t min_pages) {
  WEIR_FLOW(min_pages);
  WEIR_STATE(writeback_start, WB_REASON_BACKGROUND, 0, vmstat_.node_page_state(NodeStat::nr_dirty));
  while (!kthread_should_stop() && (min_pages > 0 || writeback_.over_background_thresh())) {
    try_to_freeze();
    int64_t left = WRITEBACK_CHUNK;
    bool busy = false;
    writeback_.for_each_wb([&](BdiWriteback& wb) {
      // One thread a device, as long as there is another one to do.
      if (left <= 0 || wb.in_progress.load(std::memory_order_relaxed) != 0) return;
      if (wb.bdi != nullptr && wb.bdi->congested()) {
        busy = true;
        return;
      }
      WritebackControl wbc;
      wbc.nr_to_write = left;
      wb.in_progress.fetch_add(1, std::memory_order_relaxed);
      writeback_inodes(wb, wbc);
      wb.in_progress.fetch_sub(1, std::memory_order_relaxed);
      left = wbc.nr_to_write;
    });
    min_pages -= WRITEBACK_CHUNK - left;
    if (left <= 0) continue;
    // Less than a chunk: what there was, or what the devices take now.
    (void)world().schedule_timeout(CONGESTION_WAIT);
    if (!busy) break;
  }
}

/// Every 5 s: what has been dirty for 30 s.
void Flusher::wb_kupdate() {
  WEIR_FLOW();
  const Nanos now = world().now();
  if (now >= DIRTY_EXPIRE_INTERVAL) {
    const WritebackWork work{.reason = WB_REASON_PERIODIC, .older_than = now - DIRTY_EXPIRE_INTERVAL};
    bool any = false;
    writeback_.for_each_wb([&](BdiWriteback& wb) {
      ScopedLock guard(lock_);
      queue_io(wb, work.older_than);
      any |= !wb.b_io.empty();
    });
    if (any) WEIR_STATE(writeback_start, work.reason, 0, vmstat_.node_page_state(NodeStat::nr_dirty));
    writeback_.for_each_wb([&](BdiWriteback& wb) {
      {
        ScopedLock guard(lock_);
        if (wb.b_io.empty()) return;
      }
      wb.in_progress.fetch_add(1, std::memory_order_relaxed);
      for (int64_t written = 1; written > 0 && !kthread_should_stop();) {
        {
          ScopedLock guard(lock_);
          wb.b_io.splice(wb.b_io.end(), wb.b_more_io);
        }
        WritebackControl wbc;
        wbc.nr_to_write = WRITEBACK_CHUNK;
        bool errors = false;
        written = writeback_sb_inodes(wb, wbc, work, errors).v;
        if (errors) break;
        if (wb.bdi != nullptr && wb.bdi->congested()) (void)world().schedule_timeout(CONGESTION_WAIT);
      }
      wb.in_progress.fetch_sub(1, std::memory_order_relaxed);
      ScopedLock guard(lock_);
      give_back(wb);
    });
  }
  bool more = false;
  writeback_.for_each_wb([&](BdiWriteback& wb) { more |= has_dirty_inodes(wb); });
  if (more) arm_kupdate(DIRTY_WRITEBACK_INTERVAL);
}

/// The next wb_kupdate, if none is due already.
void Flusher::arm_kupdate(Nanos delay) {
  if (!started_.load(std::memory_order_acquire)) return;
  {
    ScopedLock guard(lock_);
    if (kupdate_due_) return;
    kupdate_due_ = true;
  }
  wb_timer_.function = &wb_timer_fn;
  wb_timer_.data = this;
  world_->timer_arm(wb_timer_, delay);
}

void Flusher::wb_timer_fn(void* self) {
  auto& flusher = *static_cast<Flusher*>(self);
  {
    ScopedLock guard(flusher.lock_);
    flusher.kupdate_due_ = false;
  }
  // All are busy: in a second.
  if (!flusher.pdflush_operation(Pdflush::Job::kupdate, 0)) flusher.arm_kupdate(A_SECOND);
}

}  // namespace weir
