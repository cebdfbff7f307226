// src/kernel/locks.cpp: see locks.hpp
#include "kernel/locks.hpp"

#include "base/raw_syscall.hpp"

namespace weir {

// ---- SpinLock ------------------------------------------------------------------------------------------------------

void SpinLock::lock_slow() {
  // From here on the word is 2 until somebody unlocks: whoever has waited cannot know whether others still do.
  World* w = engine_thread().world;
  for (unsigned tries = 0; word_.exchange(2, std::memory_order_acquire) != 0; ++tries) {
    if (w != nullptr) {
      w->spin_wait(word_);
    } else if (tries < 100) {
      __builtin_ia32_pause();
    } else {
      raw_syscall(SYS_sched_yield);
    }
  }
}

void SpinLock::unlock_slow() {
  if (World* w = engine_thread().world) w->spin_wake(word_);
}

// ---- WaitQueue -----------------------------------------------------------------------------------------------------
// A sleeper links itself, then looks at the state; a waker changes the state, then looks at the queue. Both look
// through a read-modify-write of head_, so that one of the two sees the other.

void WaitQueue::prepare(Waiter& waiter, const void* key) {
  ScopedLock guard(lock_);
  if (!waiter.queued) {
    waiter.thread = &current();
    waiter.key = key;
    waiter.next = nullptr;
    waiter.prev = tail_;
    waiter.queued = true;
    if (tail_ != nullptr) {
      tail_->next = &waiter;
    } else {
      head_.store(&waiter, std::memory_order_relaxed);
    }
    tail_ = &waiter;
  }
  head_.fetch_add(0, std::memory_order_acq_rel);
}

void WaitQueue::unlink(Waiter& waiter) {
  if (waiter.prev != nullptr) {
    waiter.prev->next = waiter.next;
  } else {
    head_.store(waiter.next, std::memory_order_relaxed);
  }
  if (waiter.next != nullptr) {
    waiter.next->prev = waiter.prev;
  } else {
    tail_ = waiter.prev;
  }
  waiter.queued = false;
}

void WaitQueue::finish(Waiter& waiter, const void* key) {
  bool took_a_wake;
  {
    ScopedLock guard(lock_);
    took_a_wake = !waiter.queued;
    if (waiter.queued) unlink(waiter);
  }
  // Woken between queueing and finding out by itself: that wake may have been meant for one waiter, who is not us.
  if (took_a_wake) wake_one(key);
}

unsigned WaitQueue::wake(const void* key, unsigned at_most) {
  // Waking is a host call: done without the lock, in batches. A waiter's node is gone once it is off the queue, its
  // Thread is not: worlds keep Thread structures, and a wake too many is harmless.
  constexpr unsigned BATCH = 16;
  Thread* batch[BATCH];
  unsigned count = 0;
  {
    ScopedLock guard(lock_);
    Waiter* next;
    for (Waiter* w = head_.load(std::memory_order_relaxed); w != nullptr && count < BATCH && count < at_most;
         w = next) {
      next = w->next;
      if (key != nullptr && w->key != key) continue;
      batch[count++] = w->thread;
      unlink(*w);
    }
  }
  for (unsigned i = 0; i < count; ++i) batch[i]->world->wake(*batch[i]);
  return count;
}

void WaitQueue::wake_one(const void* key) {
  if (head_.fetch_add(0, std::memory_order_acq_rel) == nullptr) return;
  wake(key, 1);
}

void WaitQueue::wake_all(const void* key) {
  if (head_.fetch_add(0, std::memory_order_acq_rel) == nullptr) return;
  // Those who find nothing and queue again are not woken twice: at most as many as there are now.
  unsigned left = 0;
  {
    ScopedLock guard(lock_);
    for (Waiter* w = head_.load(std::memory_order_relaxed); w != nullptr; w = w->next) ++left;
  }
  while (left > 0) {
    const unsigned woken = wake(key, left);
    if (woken == 0) break;
    left -= woken;
  }
}

void WaitQueue::forget_waiters() {
  lock_.forget_holder();
  head_.store(nullptr, std::memory_order_relaxed);
  tail_ = nullptr;
}

// ---- Mutex ---------------------------------------------------------------------------------------------------------

void Mutex::lock_slow() {
  waiters_.wait([this] { return !held_.exchange(true, std::memory_order_acquire); });
}

bool Mutex::try_lock() {
  if (held_.exchange(true, std::memory_order_acquire)) return false;
  lockdep_acquire_try(this, rank_);
  return true;
}

// ---- RwSem ---------------------------------------------------------------------------------------------------------

/// Takes it for reading unless writers are in the way: such as hold it or wait (all but READERS), or such as hold it.
bool RwSem::try_read(uint32_t kept_out_by) {
  uint32_t state = state_.load(std::memory_order_relaxed);
  while ((state & kept_out_by) == 0)
    if (state_.compare_exchange_weak(state, state + READER, std::memory_order_acquire)) return true;
  return false;
}

/// Takes it for writing if nobody has it; `waiting` is WRITER_WAITS for one who has announced himself, else 0.
bool RwSem::try_write(uint32_t waiting) {
  uint32_t state = state_.load(std::memory_order_relaxed);
  while ((state & (WRITER | READERS)) == 0)
    if (state_.compare_exchange_weak(state, (state - waiting) | WRITER, std::memory_order_acquire)) return true;
  return false;
}

void RwSem::down_read_slow() {
  // Step back. The writer may have taken us for a reader and gone to sleep: then it is ours to wake it.
  up_read_slow(state_.fetch_sub(READER, std::memory_order_release));
  waiters_.wait([this] { return try_read(~READERS); }, &rank_);
}

void RwSem::down_read_overtaking() {
  lockdep_acquire(this, rank_);
  if (!try_read(WRITER)) waiters_.wait([this] { return try_read(WRITER); }, &rank_);
}

void RwSem::up_read_slow(uint32_t before) {
  if ((before & WRITER) == 0 && (before & READERS) == 1) waiters_.wake_one(&state_);
}

bool RwSem::down_read_trylock() {
  if (!try_read(~READERS)) return false;
  lockdep_acquire_try(this, rank_);
  return true;
}

void RwSem::down_write() {
  lockdep_acquire(this, rank_);
  if (try_write(0)) return;
  state_.fetch_add(WRITER_WAITS, std::memory_order_relaxed);
  waiters_.wait([this] { return try_write(WRITER_WAITS); }, &state_);
}

bool RwSem::down_write_trylock() {
  uint32_t free = 0;
  if (!state_.compare_exchange_strong(free, WRITER, std::memory_order_acquire)) return false;
  lockdep_acquire_try(this, rank_);
  return true;
}

void RwSem::up_write() {
  lockdep_release(this, rank_);
  const uint32_t after = state_.fetch_and(~WRITER, std::memory_order_release) & ~WRITER;
  if (after >= WRITER_WAITS) {
    waiters_.wake_one(&state_);
  } else {
    waiters_.wake_all(&rank_);
  }
}

void RwSem::forget_waiters() {
  state_.store(WRITER, std::memory_order_relaxed);
  waiters_.forget_waiters();
}

}  // namespace weir
