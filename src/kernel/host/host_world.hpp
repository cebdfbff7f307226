// src/kernel/host/host_world.hpp
//
// Real time and real threads, inside somebody else's program. Whatever the program's threads hold (malloc's lock,
// libc's, a lock of the loader) the engine may be entered, so nothing here allocates, throws, uses thread_local or
// calls what takes a libc lock: memory is mapped by start(), threads are raw clones, sleeping is a futex.
//
//   program thread --enter()--> all signals blocked --> an engine stack from the pool --> gate for reading --> fn(arg)
//   kthread        raw clone; all signals blocked; engine stack, TLS block and descriptor table of its own
//   timers         run by one kthread, "ktimerd"
//
// A kthread is not a thread that libc knows: %fs points to a zeroed block of our own, so that an errno that libc writes
// hits nobody else's. Calls that need more of libc than that (malloc, stdio, locales, dlopen, anything with a
// thread_local of a shared library) must not be made there.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernel/locks.hpp"

namespace weir {

struct HostThread;

class HostWorld final : public World {
 public:
  static constexpr unsigned MAX_KTHREADS = 64;
  static constexpr unsigned MAX_ENTERED = 512;

  enum class KthreadFiles : uint8_t {
    own,  ///< a copy of the creator's descriptor table: a program that closes all its descriptors does not close ours
    shared,  ///< the program's table
  };
  struct Options {
    KthreadFiles files = KthreadFiles::own;
    /// Called first in every kthread. With files == own: the place to close what the engine does not need, or the
    /// copies keep the program's pipes open for ever.
    void (*kthread_start)(void* data) = nullptr;
    void* kthread_start_data = nullptr;
    /// Engine stacks made by start(); more are made when needed, up to MAX_ENTERED.
    unsigned entry_stacks = 8;
  };

  constexpr HostWorld() : HostWorld(Options{}) {}
  constexpr explicit HostWorld(Options options) : World(HostThreads::many), options_(options) {}
  ~HostWorld() { stop(); }
  HostWorld(const HostWorld&) = delete;
  HostWorld& operator=(const HostWorld&) = delete;

  /// Maps the pools and starts the timer thread. Before anything else; on any stack. Errors: ENOMEM, EAGAIN.
  [[nodiscard]] Result<void> start();
  /// Ends the timer thread and unmaps everything. All other kthreads are stopped, nobody is inside. On any stack.
  void stop();

  /// Runs fn(arg) in the engine, for `task`. From any program thread, in a signal handler too; not from within the
  /// engine. Waits while somebody holds the gate for writing, or all MAX_ENTERED places are taken.
  void enter(void (*fn)(void*), void* arg, Task* task = nullptr) { do_enter(fn, arg, task, Gate::shared); }
  /// The same with the gate for writing: nobody else is inside, no kthread is at work. So fn waits for no kthread, and
  /// stops none.
  void enter_exclusive(void (*fn)(void*), void* arg, Task* task = nullptr) { do_enter(fn, arg, task, Gate::exclusive); }
  [[nodiscard]] RwSem* gate() override { return &gate_; }

  /// In the child of a fork made inside enter_exclusive(): no thread but the caller is here. Forgets all others,
  /// restarts the timer thread (armed timers stay armed). The caller then starts its kthreads anew, having called
  /// forget_waiters() on the wait queues that the old ones slept in. Errors: EAGAIN.
  [[nodiscard]] Result<void> restart_after_fork();
  /// The kthreads are not here; their Threads become free.
  void forget_kthreads();

  /// Every kthread that exists has called Options::kthread_start. Whoever creates or stops one meanwhile is waited for,
  /// or not.
  void wait_for_kthread_starts();

  /// Where all threads record, present and future; null turns recording off. A running thread may miss it until its
  /// next function.
  void set_sink(FlowSink* sink);
  /// Kthreads that exist, the timer thread included.
  [[nodiscard]] unsigned nr_kthreads() const { return nr_kthreads_.load(std::memory_order_relaxed); }

  [[nodiscard]] Nanos now() const override;
  void spend(Nanos) override {}
  void schedule() override;
  bool schedule_timeout(Nanos delay) override;
  void wake(Thread& thread) override;
  void cond_resched() override { might_sleep(); }
  void spin_wait(std::atomic<uint32_t>& word) override;
  void spin_wake(std::atomic<uint32_t>& word) override;
  Thread* kthread_create(void (*fn)(void*), void* data, const char* name) override;
  /// As in World; also on a stack that is not the engine's.
  void kthread_stop(Thread& thread) override;
  void timer_arm(Timer& timer, Nanos delay) override;
  void timer_cancel(Timer& timer) override;
  [[nodiscard]] unsigned nr_cpus() const override { return nr_cpus_; }
  uint64_t random() override;
  void printk(const char* text) override;
  /// What printk says is kept back, while a machine boots in a program that nobody asked about its swap areas.
  void mute(bool on) { muted_.store(on, std::memory_order_relaxed); }

 private:
  enum class Gate : uint8_t { shared, exclusive };
  /// Free Thread places: a lock-free stack of indices; the tag in the upper half makes a re-used head differ.
  struct Pool {
    HostThread* slots = nullptr;
    unsigned size = 0;
    std::atomic<uint64_t> head{0};
    void fill(const HostThread* except);
    HostThread* take();
    void give(HostThread& thread);
  };
  struct Call;

  void do_enter(void (*fn)(void*), void* arg, Task* task, Gate gate);
  HostThread& take_entry();
  void give_entry(HostThread& thread);
  [[nodiscard]] bool prepare(HostThread& thread);
  [[nodiscard]] bool on_engine_stack() const;
  [[nodiscard]] CpuId cpu_hint() const;
  int32_t clone_kthread(HostThread& thread);
  static void kthread_main(void* thread);
  static void timer_main(void* world);
  [[nodiscard]] Nanos run_timers();
  void unlink(Timer& timer);

  Options options_;
  RwSem gate_{LockRank::gate};
  void* area_ = nullptr;
  Pool kthreads_, entries_;
  std::atomic<uint32_t> entry_given_{0};  // counts up when a place is given back
  std::atomic<uint32_t> entry_waiters_{0};
  std::atomic<uint32_t> nr_kthreads_{0};
  std::atomic<FlowSink*> sink_{nullptr};
  unsigned nr_cpus_ = 1;
  std::atomic<bool> muted_{false};

  SpinLock timer_lock_{LockRank::kernel};
  Timer* timers_ WEIR_GUARDED_BY(timer_lock_) = nullptr;  // by time, then by arming
  Thread* timer_thread_ = nullptr;
  std::atomic<Timer*> running_timer_{nullptr};
  std::atomic<uint32_t> timer_runs_{0};  // counts up after each function
};

}  // namespace weir
