// src/kernel/kernel.hpp
//
// What a memory manager stands on: who runs (`current`), sleeping and waking, time, kthreads, timers. One interface,
// two worlds: virtual/ (fibers on simulated time, one host thread, the seed decides who runs) and host/ (threads,
// futexes). mm code is straight-line code that may block; it never asks which world it is in.
//
//   schedule()  : running --> parked --wake()--> runnable --> running      (a wake before the park is not lost)
#pragma once

#include <atomic>
#include <cstdint>

#include "base/engine_stack.hpp"
#include "base/flow.hpp"
#include "base/result.hpp"
#include "base/units.hpp"
#include "kernel/lock_table.hpp"

namespace weir {

struct Task;  // mm's: what faults, sleeps and is killed
class World;
class RwSem;

/// Rights and roles of a thread, the kernel's PF_* and TIF_* where mm looks at them.
enum ThreadFlag : uint32_t {
  PF_KTHREAD = 1u << 0,
  PF_KSWAPD = 1u << 1,
  PF_SWAPWRITE = 1u << 2,  ///< may write to a congested swap device
  PF_MEMALLOC = 1u << 3,   ///< may use the reserves: it is freeing memory
  PF_LESS_THROTTLE = 1u << 4,
  PF_MEMALLOC_NOFS = 1u << 5,
  PF_MEMALLOC_NOIO = 1u << 6,
  PF_STAGING = 1u << 9,     ///< inside the arch's own work: no fault may be taken
  PF_NOFREEZE = 1u << 10,   ///< the freezer leaves it alone
  PF_IN_PASS = 1u << 11,    ///< inside a KthreadPass
  PF_HAS_FILES = 1u << 12,  ///< its descriptor table has the swap files: it may read them itself
};

inline constexpr int MAX_HELD_LOCKS = 24;

/// One flow of engine execution: a simulated task's fiber, a kthread, or a program's thread that entered through the
/// door. Owned by its world. Only the thread itself writes it, but for the atomics.
struct Thread {
  World* world = nullptr;
  EngineThread* stack = nullptr;
  Task* task = nullptr;  ///< null for kthreads that serve nobody
  uint32_t flags = 0;    ///< ThreadFlag bits
  int32_t tid = 0;
  char comm[16] = {};
  CpuId cpu{};  ///< virtual world: the CPU it runs on. Host: a hint, so per-CPU data always has its lock
  std::atomic<bool> should_stop{false};
  std::atomic<bool> memdie{false};  ///< TIF_MEMDIE: its task was chosen by the OOM killer; set by whoever chose it
  struct HeldLock {
    const void* lock;
    LockRank rank;
  } held[MAX_HELD_LOCKS] = {};  ///< lockdep: what it holds, in order of acquisition (debug builds)
  uint8_t held_count = 0;
  std::atomic<int32_t> page_locks{
      0};                        ///< lockdep: page locks held; they are not in `held`, another thread may release them
  uint8_t spin_depth = 0;        ///< spinning locks held: sleeping is a bug while not 0 (debug builds)
  void* journal_info = nullptr;  ///< reclaim_state, as in the kernel: who runs reclaim hangs its counts here
};

/// A callback at a time. Runs in a thread of the world's own (softirq): may take spinlocks and wake, must not sleep.
struct Timer {
  void (*function)(void* data) = nullptr;
  void* data = nullptr;
  Nanos expires{};
  bool deferrable = false;  ///< virtual: never the reason why an idle machine wakes up; runs when something else does
  Timer* next = nullptr;    ///< world's own
  uint64_t id = 0;          ///< world's own
  size_t place = 0;         ///< world's own
  bool armed = false;       ///< world's own
};

/// What the freezer (freezer.hpp) keeps in a world.
struct FrozenThread;
struct FreezerState {
  std::atomic<bool> freezing{false};
  std::atomic<uint32_t> nr_frozen{0};
  std::atomic<FrozenThread*> frozen{nullptr};
};

/// One world. All functions are callable from any engine thread of it unless said otherwise.
class World {
 public:
  /// The machine's clock. Virtual: the running CPU's time, at rest while nothing is spent or slept.
  [[nodiscard]] virtual Nanos now() const = 0;
  /// Virtual: the running CPU has worked so long. Host: nothing.
  virtual void spend(Nanos cpu_time) = 0;
  /// Parks the current thread until wake(); returns at once if a wake came since the last return. Holding no spinlock.
  virtual void schedule() = 0;
  /// The same with an end. True if woken, false if the time passed.
  virtual bool schedule_timeout(Nanos delay) = 0;
  /// Lets `thread` return from schedule(). Any context.
  virtual void wake(Thread& thread) = 0;
  /// Lets others run (virtual: at the seed's choice, and always when the slice is used up; host: nothing).
  virtual void cond_resched() = 0;
  /// A place where the virtual world may switch threads: locks, unlocks, shared atomics, PTE stores, wakes. Host:
  /// nothing.
  void preempt_point() {
    if (!one_host_thread_ || __builtin_expect(turn_.now < turn_.resched_at && --turn_.countdown != 0, 1)) return;
    preempt();
  }
  /// One host thread runs all threads of this world and changes between them at preemption points and when they sleep
  /// only: what lies between two of those is one step.
  [[nodiscard]] bool one_host_thread() const { return one_host_thread_; }
  /// A spinlock's slow half: returns when it is worth trying again. `word` is 2 while somebody waits.
  virtual void spin_wait(std::atomic<uint32_t>& word) = 0;
  /// Wakes one waiter of spin_wait. Called by the unlocker when `word` was 2.
  virtual void spin_wake(std::atomic<uint32_t>& word) = 0;
  /// Starts a kernel thread: fn(data) on a stack of its own, flags PF_KTHREAD. Null when no thread can be had.
  virtual Thread* kthread_create(void (*fn)(void*), void* data, const char* name) = 0;
  /// Sets should_stop, wakes it and waits until its function has returned. The Thread is then gone.
  virtual void kthread_stop(Thread& thread) = 0;
  /// What `thread` has spent so far. Host: nothing is known of it. Not for a thread that has ended.
  [[nodiscard]] virtual Nanos cpu_time(const Thread& thread) const {
    (void)thread;
    return Nanos(0);
  }
  virtual void timer_arm(Timer& timer, Nanos delay) = 0;
  /// Afterwards the function neither runs nor will run.
  virtual void timer_cancel(Timer& timer) = 0;
  [[nodiscard]] virtual unsigned nr_cpus() const = 0;
  /// A random number that the seed decides (virtual); host: a cheap mix of the clock. For victims and hashes, never for
  /// order.
  virtual uint64_t random() = 0;
  /// A line for a person: the kernel's log. `text` ends without a newline.
  virtual void printk(const char* text) = 0;

  /// What fork and set-up take for writing, and whoever works in the engine for reading; null where there is no fork.
  [[nodiscard]] virtual RwSem* gate() { return nullptr; }

  FreezerState freezer;

 protected:
  enum class HostThreads : uint8_t { one, many };
  constexpr explicit World(HostThreads threads) : one_host_thread_(threads == HostThreads::one) {}
  ~World() = default;

  /// A preemption point found the turn over. Not called where host threads are many.
  virtual void preempt() {}

  /// Virtual: how long whoever runs goes on. All that a preemption point looks at.
  struct Turn {
    Nanos now{0};  ///< the running CPU's clock; between runs, the time at which the last run ended
    Nanos resched_at{~uint64_t{0}};
    uint64_t countdown = ~uint64_t{0};  ///< preemption points until the seed decides
  } turn_;

 private:
  const bool one_host_thread_;
};

[[nodiscard]] inline Thread& current() { return *engine_thread().thread; }
[[nodiscard]] inline World& world() { return *engine_thread().world; }

/// Puts flags on the current thread for a scope and restores those that were not there: PF_MEMALLOC as a right with an
/// end.
class ThreadFlagScope {
 public:
  explicit ThreadFlagScope(uint32_t flags) : thread_(current()), saved_(thread_.flags & flags), flags_(flags) {
    thread_.flags |= flags;
  }
  ~ThreadFlagScope() { thread_.flags = (thread_.flags & ~flags_) | saved_; }
  ThreadFlagScope(const ThreadFlagScope&) = delete;
  ThreadFlagScope& operator=(const ThreadFlagScope&) = delete;

 private:
  Thread& thread_;
  uint32_t saved_, flags_;
};

}  // namespace weir

// kthread_run, kthread_should_stop
#include "kernel/kthread.hpp"
