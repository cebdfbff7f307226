// src/kernel/locks.hpp
//
// Locks of both worlds, made of one atomic word, a wait queue and the world's park and wake. Ranks: lock_table.hpp.
// Debug builds check order and "no sleep under a spinlock" (lockdep.cpp).
#pragma once

#include <atomic>
#include <cstdint>

#include "kernel/annotations.hpp"
#include "kernel/kernel.hpp"
#include "kernel/world_atomic.hpp"

namespace weir {

/// Lockdep's doors; empty unless WEIR_DEBUG. For locks that are not of these classes (the page lock is a bit) too.
///
/// The page lock has no owner in the kernel's sense: whoever completes the read unlocks. So lockdep_acquire(page) only
/// checks; the lock counts as held from lockdep_acquire_try(), which lock_page() calls when it has the bit, until
/// lockdep_release_any(). Who submits a locked page for reading hands it to the I/O: lockdep_release_any() there, and
/// once more (then without effect) when the completion unlocks.
#ifdef WEIR_DEBUG
void lockdep_acquire(const void* lock, LockRank rank);      ///< before blocking on it
void lockdep_acquire_try(const void* lock, LockRank rank);  ///< after a successful trylock: no order check
void lockdep_release(const void* lock, LockRank rank);
/// The page lock is handed from thread to thread (I/O completion unlocks): drops it from whoever holds it, if anybody
/// does.
void lockdep_release_any(const void* lock, LockRank rank);
void might_sleep();  ///< a bug while a spinning lock is held
[[nodiscard]] bool lockdep_holds(const void* lock);
void lockdep_thread_idle(Thread& thread);  ///< a bug while it holds anything: it ends or leaves the engine
void lockdep_forget(Thread& thread);       ///< it is dropped as it is: whatever it holds is forgotten
#else
inline void lockdep_acquire(const void*, LockRank) {}
inline void lockdep_acquire_try(const void*, LockRank) {}
inline void lockdep_release(const void*, LockRank) {}
inline void lockdep_release_any(const void*, LockRank) {}
inline void might_sleep() {}
[[nodiscard]] inline bool lockdep_holds(const void*) { return true; }
inline void lockdep_thread_idle(Thread&) {}
inline void lockdep_forget(Thread&) {}
#endif
/// The rank's name in the lock table.
[[nodiscard]] const char* lock_rank_name(LockRank rank);

/// Held for a few instructions; never across sleeping, I/O, compression or host calls. 4 bytes: it fits into a Page.
/// 0 free, 1 held, 2 held and somebody waits. A world of one host thread takes it by a load and a store.
class WEIR_CAPABILITY("spinlock") SpinLock {
 public:
  constexpr explicit SpinLock(LockRank rank) : rank_(rank) {}
  SpinLock(const SpinLock&) = delete;
  SpinLock& operator=(const SpinLock&) = delete;

  void lock() WEIR_ACQUIRE() {
    lockdep_acquire(this, rank_);
    World* w = engine_thread().world;
    uint32_t free = 0;
    if (w == nullptr || !w->one_host_thread()) {
      if (__builtin_expect(!word_.compare_exchange_strong(free, 1, std::memory_order_acquire), 0)) lock_slow();
      return;
    }
    if (__builtin_expect(word_.load(std::memory_order_relaxed) == 0, 1))
      word_.store(1, std::memory_order_relaxed);
    else
      lock_slow();
    w->preempt_point();
  }
  [[nodiscard]] bool try_lock() WEIR_TRY_ACQUIRE(true) {
    uint32_t free = 0;
    if (!word_.compare_exchange_strong(free, 1, std::memory_order_acquire)) return false;
    lockdep_acquire_try(this, rank_);
    return true;
  }
  void unlock() WEIR_RELEASE() {
    lockdep_release(this, rank_);
    World* w = engine_thread().world;
    if (w == nullptr || !w->one_host_thread()) {
      if (__builtin_expect(word_.exchange(0, std::memory_order_release) == 2, 0)) unlock_slow();
      return;
    }
    const bool awaited = word_.load(std::memory_order_relaxed) == 2;
    word_.store(0, std::memory_order_relaxed);
    if (__builtin_expect(awaited, 0)) unlock_slow();
    w->preempt_point();
  }
  [[nodiscard]] bool is_locked() const { return word_.load(std::memory_order_relaxed) != 0; }
  /// In the child of a fork, where only the caller runs: whoever held it is not here. What it guards must be whole.
  void forget_holder() { word_.store(0, std::memory_order_relaxed); }

 private:
  void lock_slow();
  void unlock_slow();
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
    finish(waiter, key);
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
    finish(waiter, key);
    return done;
  }
  /// Wakes all, or those that wait for `key`. Cheap when nobody waits.
  void wake_all(const void* key = nullptr);
  void wake_one(const void* key = nullptr);
  [[nodiscard]] bool empty() const { return head_.load(std::memory_order_acquire) == nullptr; }
  /// In the child of a fork, where only the caller runs: the waiters were threads that are not here. Forgets them.
  void forget_waiters();

 private:
  void prepare(Waiter& waiter, const void* key);
  void finish(Waiter& waiter, const void* key);
  void unlink(Waiter& waiter);
  unsigned wake(const void* key, unsigned at_most);
  SpinLock lock_{LockRank::wait_queue};
  WorldAtomic<Waiter*> head_{nullptr};
  Waiter* tail_ = nullptr;
};

/// Hashed wait queues for things too many to have their own: page bits, slots. The key is a number of the machine (a
/// pfn, an entry) made a pointer, not an address: who shares a queue with whom decides where the virtual world may
/// switch.
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
  void lock() WEIR_ACQUIRE() {
    lockdep_acquire(this, rank_);
    if (__builtin_expect(held_.exchange(true, std::memory_order_acquire), 0)) lock_slow();
  }
  [[nodiscard]] bool try_lock() WEIR_TRY_ACQUIRE(true);
  void unlock() WEIR_RELEASE() {
    lockdep_release(this, rank_);
    held_.store(false, std::memory_order_release);
    waiters_.wake_one();
  }
  [[nodiscard]] bool is_locked() const { return held_.load(std::memory_order_relaxed); }

 private:
  void lock_slow();
  WorldAtomic<bool> held_{false};
  LockRank rank_;
  WaitQueue waiters_;
};

/// Readers and a writer; a waiting writer keeps new readers out (so that fork and set-up come through). Readers cost
/// one atomic add each way while no writer is about. Not recursive, not even for reading.
class WEIR_CAPABILITY("rwsem") RwSem {
 public:
  constexpr explicit RwSem(LockRank rank) : rank_(rank) {}
  void down_read() WEIR_TSA(acquire_shared_capability()) {
    lockdep_acquire(this, rank_);
    if (__builtin_expect(state_.fetch_add(READER, std::memory_order_acquire) >= WRITER_WAITS, 0)) down_read_slow();
  }
  /// For reading, past writers that wait: only one that holds it keeps us out. For threads that those wait for who are
  /// inside.
  void down_read_overtaking() WEIR_TSA(acquire_shared_capability());
  [[nodiscard]] bool down_read_trylock() WEIR_TSA(try_acquire_shared_capability(true));
  void up_read() WEIR_TSA(release_shared_capability()) {
    lockdep_release(this, rank_);
    const uint32_t before = state_.fetch_sub(READER, std::memory_order_release);
    if (__builtin_expect(before >= WRITER_WAITS, 0)) up_read_slow(before);
  }
  void down_write() WEIR_ACQUIRE();
  [[nodiscard]] bool down_write_trylock() WEIR_TRY_ACQUIRE(true);
  void up_write() WEIR_RELEASE();
  [[nodiscard]] bool is_locked() const { return (state_.load(std::memory_order_relaxed) & (WRITER | READERS)) != 0; }
  [[nodiscard]] bool is_write_locked() const { return (state_.load(std::memory_order_relaxed) & WRITER) != 0; }
  /// As WaitQueue's: the caller holds it for writing, and everybody else is gone.
  void forget_waiters();

 private:
  // state_ = writer held (1 bit) | writers waiting (15 bits) | readers (16 bits). Readers includes those that have just
  // added themselves and are about to step back because of a writer.
  static constexpr uint32_t READER = 1;
  static constexpr uint32_t READERS = 0xffff;
  static constexpr uint32_t WRITER_WAITS = 0x10000;
  static constexpr uint32_t WRITER = 0x80000000;
  void down_read_slow();
  void up_read_slow(uint32_t before);
  bool try_read(uint32_t kept_out_by);
  bool try_write(uint32_t waiting);
  WorldAtomic<uint32_t> state_{0};
  LockRank rank_;
  WaitQueue waiters_;  // writers wait with key &state_, readers with key &rank_
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

class WEIR_SCOPED_CAPABILITY ScopedRead {
 public:
  explicit ScopedRead(RwSem& sem) WEIR_ACQUIRE_SHARED(sem) : sem_(sem) { sem_.down_read(); }
  ~ScopedRead() WEIR_RELEASE_GENERIC() { sem_.up_read(); }
  ScopedRead(const ScopedRead&) = delete;
  ScopedRead& operator=(const ScopedRead&) = delete;

 private:
  RwSem& sem_;
};

class WEIR_SCOPED_CAPABILITY ScopedWrite {
 public:
  explicit ScopedWrite(RwSem& sem) WEIR_ACQUIRE(sem) : sem_(sem) { sem_.down_write(); }
  ~ScopedWrite() WEIR_RELEASE() { sem_.up_write(); }
  ScopedWrite(const ScopedWrite&) = delete;
  ScopedWrite& operator=(const ScopedWrite&) = delete;

 private:
  RwSem& sem_;
};

/// One piece of a kthread's work: a reclaim pass, a round of writeback. Live it joins the gate, so that fork and set-up
/// come between two pieces and find no page locked by a kthread; asleep for want of work a kthread is outside. A writer
/// that waits does not keep a pass out: somebody inside may be waiting for what this kthread is about to do. A pass
/// inside a pass is one pass; on a thread that is no kthread it is nothing, as that one came through the gate.
class KthreadPass {
 public:
  KthreadPass() {
    Thread& t = current();
    if ((t.flags & (PF_KTHREAD | PF_IN_PASS)) != PF_KTHREAD) return;
    gate_ = world().gate();
    if (gate_ == nullptr) return;
    gate_->down_read_overtaking();
    t.flags |= PF_IN_PASS;
    engine_thread().lane.interrupt();
  }
  ~KthreadPass() {
    if (gate_ == nullptr) return;
    current().flags &= ~PF_IN_PASS;
    gate_->up_read();
  }
  KthreadPass(const KthreadPass&) = delete;
  KthreadPass& operator=(const KthreadPass&) = delete;

 private:
  RwSem* gate_ = nullptr;
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
