// src/kernel/virtual/virtual_world.hpp
//
// Simulated time. Threads are fibers, all on the host thread that calls run(); N virtual CPUs each have a clock of
// their own.
//
//   CPU 0   clock 1.20 ms   runs kswapd0     queue: reader, writer
//   CPU 1   clock 1.35 ms   runs loader      queue: -
//   events  1.31 ms timer(disk 0), 2.00 ms sleeper
//
// The CPU with the smallest clock that has something to run goes next: here CPU 0, until its thread has spent 0.11 ms;
// then the timer; then CPU 1. A clock moves by spend() and, on a CPU that was idle, by jumping to what woke it. So no
// time passes that nobody spent or slept.
//
// Who runs is a function of the options and of what the threads do, nothing else: no pointer is compared, no host clock
// read. The seed decides at preemption points (locks, unlocks, wakes, ...) whether another thread runs now. It may let
// a CPU fall behind others by up to a slice, never beyond the next event.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernel/kernel.hpp"
#include "kernel/virtual/event_queue.hpp"
#include "kernel/virtual/fiber.hpp"

namespace weir {

class VirtualWorld final : public World {
 public:
  struct Options {
    uint64_t seed = 1;
    unsigned cpus = 1;
    /// At one preemption point in so many (on average) the seed puts another thread in. 0: never.
    uint32_t preempt_one_in = 0;
    /// A thread that others wait behind gives way at the first preemption point after so long.
    Nanos slice = Nanos(1000000);
    /// How far a CPU may run ahead of another that has work, for fewer switches. 0: not at all.
    Nanos skew{0};
    /// Where printk goes; standard error when there is none.
    std::function<void(Nanos, const char*)> log = {};
  };
  enum class RunState {
    finished,      ///< every thread that is not a kthread has ended
    time_reached,  ///< run_until: the time has come
    deadlock,      ///< threads wait, and nothing will ever wake them: see report()
    halted,        ///< halt() was called, now or in an earlier run
  };

  VirtualWorld();
  explicit VirtualWorld(Options options);
  /// Threads that have not ended are dropped where they are, kthreads too (shutdown() ends those in good order).
  ~VirtualWorld();
  VirtualWorld(const VirtualWorld&) = delete;
  VirtualWorld& operator=(const VirtualWorld&) = delete;

  /// A new thread, runnable at once; it ends when fn returns, and the Thread is then gone. `comm` is cut to 15
  /// characters.
  Thread* spawn(const char* comm, std::function<void()> fn, Task* task = nullptr);
  Thread* spawn(const char* comm, void (*fn)(void*), void* arg, Task* task = nullptr);

  /// Runs until every thread that is not a kthread has ended, or can never go on.
  RunState run();
  /// Runs everything that happens before `time`, kthreads and timers too; the clock then stands at `time`.
  RunState run_until(Nanos time);
  /// Called by a thread whose machine has panicked: it goes no further, and nobody else ever does.
  [[noreturn]] void halt();
  /// Stops all kthreads, youngest first. Called between runs. False if one does not return: see report().
  bool shutdown();
  /// After a deadlock: every thread that waits, with its comm, tid, and (debug builds) the locks it holds.
  [[nodiscard]] const std::string& report() const { return report_; }

  /// Where all threads record, present and future; null turns recording off.
  void set_sink(FlowSink* sink);
  [[nodiscard]] Nanos cpu_time(const Thread& thread) const override;
  /// What was spent on `cpu`, by whomever.
  [[nodiscard]] Nanos busy_time(CpuId cpu) const;
  /// Switches from one thread to another so far.
  [[nodiscard]] uint64_t switches() const { return switches_; }
  [[nodiscard]] const Options& options() const { return options_; }

  [[nodiscard]] Nanos now() const override { return turn_.now; }
  void spend(Nanos cpu_time) override;
  void schedule() override;
  bool schedule_timeout(Nanos delay) override;
  void wake(Thread& thread) override;
  void cond_resched() override;
  void spin_wait(std::atomic<uint32_t>& word) override;
  void spin_wake(std::atomic<uint32_t>& word) override;
  Thread* kthread_create(void (*fn)(void*), void* data, const char* name) override;
  void kthread_stop(Thread& thread) override;
  void timer_arm(Timer& timer, Nanos delay) override;
  void timer_cancel(Timer& timer) override;
  [[nodiscard]] unsigned nr_cpus() const override { return options_.cpus; }
  uint64_t random() override { return random_.next(); }
  void printk(const char* text) override;

 private:
  struct VThread;
  struct Cpu;
  using Events = EventQueue<VThread>;
  struct SplitMix {
    uint64_t state;
    uint64_t next() {
      uint64_t z = (state += 0x9e3779b97f4a7c15ull);
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
      return z ^ (z >> 31);
    }
    uint64_t below(uint64_t n) { return next() % n; }
  };
  enum class OrderRule { strict, as_drawn };
  enum class StopReason { done, limit, idle, halted };
  static constexpr Nanos NEVER{~uint64_t{0}};

  // Threads.
  VThread& new_thread(const char* comm, uint32_t flags, Task* task);
  void release(VThread& thread);
  static void thread_entry(void* arg);
  [[noreturn]] void thread_end(VThread& thread);
  void reap();

  // Scheduling. All of these are "inside the scheduler": nothing in them is a preemption point.
  void make_runnable(VThread& thread, Nanos at);
  void raise_softirq(Nanos at);
  [[nodiscard]] Nanos start_of(const Cpu& cpu) const;
  [[nodiscard]] VThread* pick_next();
  [[nodiscard]] VThread* draw();
  void fire(Events& events, Nanos at);
  void put_on(Cpu& cpu, VThread& thread);
  void dispatch(VThread* next, OrderRule rule);
  void set_resched(OrderRule rule);
  void save_clock();
  void switch_away();
  void preempt() override;
  void throw_dice();
  void cancel_sleep(VThread& thread);
  void unqueue_due(Timer& timer);
  void drive(Nanos limit, const std::function<bool()>& done);
  void describe_waiters();

  // Softirq: the thread that runs timers.
  static void softirq(void* arg);

  Options options_;
  SplitMix dice_, random_;
  std::vector<Cpu> cpus_;
  std::vector<std::unique_ptr<VThread>> threads_;  // by creation; ended ones are reused
  std::vector<VThread*> free_;
  std::vector<VThread*> spinning_;  // in order of arrival
  Events events_, deferrable_;
  uint64_t next_event_id_ = 1;
  int32_t next_tid_ = 1;
  uint64_t live_users_ = 0;
  uint64_t switches_ = 0;
  FlowSink* sink_ = nullptr;

  VThread* running_ = nullptr;
  VThread* dead_ = nullptr;  // ended, its stack still under the fiber that ended it
  Fiber main_;
  Nanos limit_ = NEVER;
  const std::function<bool()>* done_ = nullptr;
  StopReason stop_reason_ = StopReason::done;
  bool halted_ = false;

  VThread* softirq_ = nullptr;
  Timer* due_ = nullptr;
  Timer* due_tail_ = nullptr;
  Timer* running_timer_ = nullptr;
  std::atomic<uint32_t> timer_busy_{0};  // what timer_cancel waits on: 2 while a function runs
  std::string report_;
};

}  // namespace weir
