// src/mm/oom_kill.hpp
//
// When nothing can be reclaimed: who dies. Linux: mm/oom_kill.c.
//
//   out_of_memory: who asks is dying  -> reserves for it
//                  panic_on_oom       -> panic
//                  select_bad_process: a victim still dies -> wait; else the one with most points
//                    -> oom_kill_process: a child of it with another mm, or itself, and all who share that mm
//
// Points by era (OomPolicy):
//   2.6.20  badness: total_vm and half of each child's, less by CPU and run time, more by nice, less for the superuser,
//           shifted by oom_adj
//   3.x     oom_badness: rss + swapents + page tables, + oom_score_adj thousandths of memory (30 less for the
//           superuser)
//   4.14    the same, the superuser 3 % of its own points less; a victim counts until its memory is back, and a reaper
//           takes the memory of one that is stuck
//
// No task is exempt as init: a machine's first task is a program like the others. Memory cgroups and NUMA constraints
// come with their rows.
#pragma once

#include "mm/interfaces.hpp"
#include "mm/mm_types.hpp"
#include "mm/profile.hpp"
#include "mm/swapfile.hpp"

namespace weir {

inline constexpr int32_t OOM_SCORE_ADJ_MIN = -1000, OOM_SCORE_ADJ_MAX = 1000;
inline constexpr int32_t OOM_DISABLE = -17, OOM_ADJUST_MIN = -16, OOM_ADJUST_MAX = 15;

/// What a kill means outside mm: wake the victim, send the signal. Implemented by sim and live.
class Executioner {
 public:
  /// task->sigkill is set already. Called with the tasklist lock held: must not sleep.
  virtual void deliver_sigkill(Task& task) = 0;
  /// No killable task, or panic_on_oom: panic.
  virtual void panic(const char* why) = 0;

 protected:
  ~Executioner() = default;
};

/// Who takes the memory of a victim that does not come to its end. Implemented by the room that ends address spaces.
class ReapsVictims {
 public:
  /// Tasklist lock held; victim.oom_mm is set. Must not sleep.
  virtual void wake_oom_reaper(Task& victim) = 0;

 protected:
  ~ReapsVictims() = default;
};

/// All tasks of the machine. Linux: init_task's list and tasklist_lock.
class TaskList {
 public:
  void add(Task& task) {
    ScopedLock guard(lock_);
    tasks_.push_back(task);
  }
  void remove(Task& task) {
    ScopedLock guard(lock_);
    tasks_.erase(TaskListT::s_iterator_to(task));
  }
  template <class Fn>
  void for_each(Fn fn) {
    ScopedLock guard(lock_);
    for (Task& t : tasks_) fn(t);
  }
  [[nodiscard]] SpinLock& lock() { return lock_; }
  [[nodiscard]] TaskListT& list() { return tasks_; }

 private:
  SpinLock lock_{LockRank::tasklist};
  TaskListT tasks_;
};

/// /proc/sys/vm. Only by who sets the machine up, or a sysctl while tasks run.
struct OomSysctls {
  int panic_on_oom = 0;                   ///< 1, 2: panic in place of a kill (2: also where only some nodes are short)
  bool oom_kill_allocating_task = false;  ///< who asks dies, in place of the worst. Not in 2.6.20
  bool oom_dump_tasks = true;             ///< the task table in the report. Not in 2.6.20
};

class OomKiller;

/// What differs by era. The tasklist lock is held in all that take a task.
/// Where a function has a body here, 3.x and 4.14 agree on it.
class OomPolicy {
 public:
  /// What the choice does with a task.
  enum class Scan : uint8_t {
    pass,     ///< not a candidate
    compare,  ///< by its points
    choose,   ///< whatever the others have
    wait,     ///< it will give back memory soon: nobody is chosen
  };
  /// Sets points, for compare.
  virtual Scan scan(OomKiller& oom, Task& task, PageCount totalpages, int64_t& points) const = 0;
  /// 0: not to be killed (from 3.x on).
  virtual int64_t score(const OomKiller& oom, const Task& task, PageCount totalpages) const = 0;
  /// `points` beat those of the one chosen so far, if any.
  [[nodiscard]] virtual bool beats(int64_t points, bool any_chosen, int64_t best) const {
    (void)any_chosen;
    return points > best;
  }
  /// Who asks is on its way out, and needs nobody killed for it.
  [[nodiscard]] virtual bool lets_current_through(OomKiller& oom, const Task& current) const = 0;
  /// The chosen one is on its way out.
  [[nodiscard]] virtual bool lets_chosen_through(OomKiller& oom, const Task& chosen) const = 0;
  /// A child that dies in place of `parent`; null: none.
  [[nodiscard]] virtual Task* child_of(OomKiller& oom, Task& parent, PageCount totalpages) const;
  /// A task that shares the victim's mm dies too.
  [[nodiscard]] virtual bool dies_with_victim(const Task& sharer) const = 0;
  [[nodiscard]] virtual bool may_kill_allocating_task() const { return true; }
  [[nodiscard]] virtual bool reaps() const = 0;
  /// A fault got no memory. False: the task must die.
  virtual bool fault_out_of_memory(OomKiller& oom, Task& task) const;
  // The report.
  virtual void dump_header(OomKiller& oom, const OomControl& control) const = 0;
  virtual void dump_tasks(OomKiller& oom) const = 0;
  virtual void say_chosen(const Task& chosen, int64_t points, PageCount totalpages, const char* message) const = 0;
  virtual void say_killed(const Task& victim) const = 0;
  [[nodiscard]] virtual const char* panic_on_oom_text(int level) const {
    return level == 2 ? "Out of memory: compulsory panic_on_oom is enabled"
                      : "Out of memory: system-wide panic_on_oom is enabled";
  }

 protected:
  ~OomPolicy() = default;
};

extern const OomPolicy& OOM_POLICY_2_6_20;  // oom_kill_2_6_20.cpp
extern const OomPolicy& OOM_POLICY_3;       // oom_kill_3.cpp
extern const OomPolicy& OOM_POLICY_4_14;    // oom_kill_4_14.cpp

class OomKiller {
 public:
  OomKiller(TaskList& tasks, PageAllocator& pages, SwapFiles& swap, VmStat& vmstat, KernelEra era = DEFAULT_KERNEL);
  void set_executioner(Executioner* e) { executioner_ = e; }
  void set_reaper(ReapsVictims* reaper) { reaper_ = reaper; }
  OomSysctls sysctl;

  /// True: somebody was killed or is dying, try again. False: no victim (after Executioner::panic, should that return).
  /// One at a time: the caller holds PageAllocator::oom_lock. Sleeps a moment, so that the victim can run.
  bool out_of_memory(const OomControl& control);
  /// What a fault does that got VM_FAULT_OOM, what the allocator tried on its behalf being over. False: the task must
  /// die (in 2.6.20 always: nobody else is looked at).
  bool fault_out_of_memory(Task& task) { return policy_.fault_out_of_memory(*this, task); }
  /// The points of the era. Tasklist lock held, or the task cannot leave.
  [[nodiscard]] int64_t score(const Task& task, PageCount totalpages) const {
    return policy_.score(*this, task, totalpages);
  }
  /// The era has an oom_reaper thread.
  [[nodiscard]] bool reaps() const { return policy_.reaps(); }
  /// RAM and swap together: what the points are relative to.
  [[nodiscard]] PageCount totalpages() const;

  /// /proc/PID/oom_score_adj and oom_adj: each sets the other too, as the kernels that have both do.
  /// Errors: EINVAL (out of range), nothing changed.
  static Result<void> set_oom_score_adj(Task& task, int32_t value);
  static Result<void> set_oom_adj(Task& task, int32_t value);

  // ---- for the policies
  bool pagefault_out_of_memory();
  void kill(Task& victim);
  [[nodiscard]] TaskListT& task_list() { return tasks_.list(); }
  /// Exiting or killed already, and so is everybody who shares its memory.
  [[nodiscard]] bool task_will_free_mem(const Task& task);
  /// rss + swapents + page tables, moved by `adj` thousandths of totalpages; at least 1. 0: never.
  [[nodiscard]] static int64_t points_of(const Task& task, PageCount totalpages, int64_t superuser_bonus_permille,
                                         int64_t superuser_bonus_percent);
  [[nodiscard]] Task* worst_child(Task& parent, PageCount totalpages);
  void show_mem();
  [[nodiscard]] PageAllocator& pages() { return pages_; }
  [[nodiscard]] SwapFiles& swap() { return swap_; }
  [[nodiscard]] int64_t stat(NodeStat s) const { return vmstat_.node_page_state(s); }

 private:
  /// What one run found.
  struct Choice {
    Task* chosen = nullptr;
    int64_t points = 0;
    bool victim_dying = false;
  };
  static void mark_oom_victim(Task& task);
  void select_bad_process(PageCount totalpages, Choice& choice);
  void oom_kill_process(const OomControl& control, const Choice& choice, PageCount totalpages, const char* message);
  bool panics(const char* why, const char* text);

  TaskList& tasks_;
  PageAllocator& pages_;
  SwapFiles& swap_;
  VmStat& vmstat_;
  const OomPolicy& policy_;
  Executioner* executioner_ = nullptr;
  ReapsVictims* reaper_ = nullptr;
};

}  // namespace weir
