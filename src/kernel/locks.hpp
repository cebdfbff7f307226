// src/kernel/locks.hpp
//
// Locks of both worlds, made of one atomic word, a wait queue and the world's park and wake. Ranks: lock_table.hpp.
// Debug builds check order and "no sleep under a spinlock" (lockdep.cpp).
#pragma once

#include <atomic>
#include <cstdint>

#include "kernel/annotations.hpp"
#include "kernel/kernel.hpp"

namespace weir {

/// Lockdep's doors; empty unless WEIR_DEBUG. For locks that are not of these classes (the page lock is a bit) too.
#ifdef WEIR_DEBUG
void lockdep_acquire(const void* lock, LockRank rank);      ///< before blocking on it
void lockdep_acquire_try(const void* lock, LockRank rank);  ///< after a successful trylock: no order check
void lockdep_release(const void* lock, LockRank rank);
/// The page lock is handed from thread to thread (I/O completion unlocks): drops it from whoever holds it, if anybody does.
void lockdep_release_any(const void* lock, LockRank rank);
void might_sleep();                                          ///< a bug while a spinning lock is held
[[nodiscard]] bool lockdep_holds(const void* lock);
#else
inline void lockdep_acquire(const void*, LockRank) {}
inline void lockdep_acquire_try(const void*, LockRank) {}
inline void lockdep_release(const void*, LockRank) {}
inline void lockdep_release_any(const void*, LockRank) {}
inline void might_sleep() {}
[[nodiscard]] inline bool lockdep_holds(const void*) { return true; }
#endif

/// Held for a few instructions; never across sleeping, I/O, compression or host calls. 4 bytes: it fits into a Page.
/// 0 free, 1 held, 2 held and somebody waits.
class WEIR_CAPABILITY("spinlock") SpinLock {
 public:
  constexpr explicit SpinLock(LockRank rank) : rank_(rank) {}
  SpinLock(const SpinLock&) = delete;
  SpinLock& operator=(const SpinLock&) = delete;

  void lock() WEIR_ACQUIRE() {
    lockdep_acquire(this, rank_);
    uint32_t free = 0;
    if (__builtin_expect(!word_.compare_exchange_strong(free, 1, std::memory_order_acquire), 0)) lock_slow();
    preempt_after_lock();
  }
  [[nodiscard]] bool try_lock() WEIR_TRY_ACQUIRE(true) {
    uint32_t free = 0;
    if (!word_.compare_exchange_strong(free, 1, std::memory_order_acquire)) return false;
    lockdep_acquire_try(this, rank_);
    return true;
  }
  void unlock() WEIR_RELEASE() {
    lockdep_release(this, rank_);
    if (__builtin_expect(word_.exchange(0, std::memory_order_release) == 2, 0)) unlock_slow();
    preempt_after_lock();
  }
  [[nodiscard]] bool is_locked() const { return word_.load(std::memory_order_relaxed) != 0; }

 private:
  void lock_slow();
  void unlock_slow();
  static void preempt_after_lock() {
    if (World* w = engine_thread().world) w->preempt_point();
  }
  std::atomic<uint32_t> word_{0};
  LockRank rank_;
};

/// A thread that waits in a WaitQueue; lives on its stack.
struct Waiter {
  Thread* thread = nullptr;
  const void* key = nullptr;
  Waiter* next = nullptr;
  Waiter* prev = nullptr;
  bool queued = false;
};

/// FIFO of sleepers. The caller's own state decides what they wait for:
///   wq.wait([&] { return done; });      done = true; wq.wake_all();
class WaitQueue {
 public:
  constexpr WaitQueue() = default;
  WaitQueue(const WaitQueue&) = delete;
  WaitQueue& operator=(const WaitQueue&) = delete;

  /// Returns when pred() is true. pred is called without the queue's lock; it must be safe to call any number of times.
  template <class Pred>
  void wait(Pred pred, const void* key = nullptr) {
    might_sleep();
    if (pred()) return;
    Waiter waiter;
    for (;;) {
      prepare(waiter, key);
      if (pred()) break;
      world().schedule();
    }
    finish(waiter);
  }
  /// The same with an end; false when the time passed and pred is still false.
  template <class Pred>
  [[nodiscard]] bool wait_timeout(Nanos delay, Pred pred, const void* key = nullptr) {
    might_sleep();
    if (pred()) return true;
    const Nanos end = world().now() + delay;
    Waiter waiter;
    bool done = false;
    for (;;) {
      prepare(waiter, key);
      done = pred();
      const Nanos now = world().now();
      if (done || now >= end) break;
      world().schedule_timeout(end - now);
    }
    finish(waiter);
    return done;
  }
  /// Wakes all, or those that wait for `key`. Cheap when nobody waits.
  void wake_all(const void* key = nullptr);
  void wake_one(const void* key = nullptr);
  [[nodiscard]] bool empty() const { return head_.load(std::memory_order_acquire) == nullptr; }

 private:
  void prepare(Waiter& waiter, const void* key);
  void finish(Waiter& waiter);
  void unlink(Waiter& waiter);
  SpinLock lock_{LockRank::wait_queue};
  std::atomic<Waiter*> head_{nullptr};
  Waiter* tail_ = nullptr;
};

/// Hashed wait queues for things too many to have their own: page bits, slots.
class WaitTable {
 public:
  [[nodiscard]] WaitQueue& of(const void* key) {
    return queues_[(reinterpret_cast<uintptr_t>(key) * 0x9e3779b97f4a7c15ull) >> 56];
  }

 private:
  WaitQueue queues_[256];
};

class WEIR_CAPABILITY("mutex") Mutex {
 public:
  constexpr explicit Mutex(LockRank rank) : rank_(rank) {}
  void lock() WEIR_ACQUIRE();
  [[nodiscard]] bool try_lock() WEIR_TRY_ACQUIRE(true);
  void unlock() WEIR_RELEASE();
  [[nodiscard]] bool is_locked() const { return held_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> held_{false};
  LockRank rank_;
  WaitQueue waiters_;
};

/// Readers and a writer; a waiting writer keeps new readers out (so that fork and set-up come through).
class WEIR_CAPABILITY("rwsem") RwSem {
 public:
  constexpr explicit RwSem(LockRank rank) : rank_(rank) {}
  void down_read() WEIR_TSA(acquire_shared_capability());
  [[nodiscard]] bool down_read_trylock() WEIR_TSA(try_acquire_shared_capability(true));
  void up_read() WEIR_TSA(release_shared_capability());
  void down_write() WEIR_ACQUIRE();
  [[nodiscard]] bool down_write_trylock() WEIR_TRY_ACQUIRE(true);
  void up_write() WEIR_RELEASE();
  [[nodiscard]] bool is_locked() const { return state_.load(std::memory_order_relaxed) != 0; }
  [[nodiscard]] bool is_write_locked() const { return state_.load(std::memory_order_relaxed) < 0; }

 private:
  std::atomic<int32_t> state_{0};            ///< -1 writer, n > 0 readers
  std::atomic<int32_t> writers_waiting_{0};
  LockRank rank_;
  WaitQueue waiters_;
};

template <class Lock>
class WEIR_SCOPED_CAPABILITY ScopedLock {
 public:
  explicit ScopedLock(Lock& lock) WEIR_ACQUIRE(lock) : lock_(lock) { lock_.lock(); }
  ~ScopedLock() WEIR_RELEASE() { lock_.unlock(); }
  ScopedLock(const ScopedLock&) = delete;
  ScopedLock& operator=(const ScopedLock&) = delete;

 private:
  Lock& lock_;
};
template <class Lock>
ScopedLock(Lock&) -> ScopedLock<Lock>;

class ScopedRead {
 public:
  explicit ScopedRead(RwSem& sem) : sem_(sem) { sem_.down_read(); }
  ~ScopedRead() { sem_.up_read(); }
  ScopedRead(const ScopedRead&) = delete;
  ScopedRead& operator=(const ScopedRead&) = delete;

 private:
  RwSem& sem_;
};

class ScopedWrite {
 public:
  explicit ScopedWrite(RwSem& sem) : sem_(sem) { sem_.down_write(); }
  ~ScopedWrite() { sem_.up_write(); }
  ScopedWrite(const ScopedWrite&) = delete;
  ScopedWrite& operator=(const ScopedWrite&) = delete;

 private:
  RwSem& sem_;
};

/// Something that happens once, and whoever waits for it.
class Completion {
 public:
  void complete() {
    done_.store(true, std::memory_order_release);
    queue_.wake_all();
  }
  void wait() {
    queue_.wait([this] { return done_.load(std::memory_order_acquire); });
  }
  [[nodiscard]] bool done() const { return done_.load(std::memory_order_acquire); }

 private:
  std::atomic<bool> done_{false};
  WaitQueue queue_;
};

}  // namespace weir
