// src/mm/oom_kill.hpp
//
// When nothing can be reclaimed: who dies. Linux: mm/oom_kill.c 4.14.
//
//   points = rss + swapents + page-table pages, + oom_score_adj × (totalpages / 1000); at least 1; -1000 never
//   out_of_memory: I am dying myself -> reserves for me · a victim still dies -> wait · most points -> its worst child
//   with another mm, or itself; all tasks that share the victim's mm die with it
//
// No task is exempt as init: a machine's first task is a program like the others. Nobody is root. Memory cgroups, NUMA
// constraints and the reaper come with their rows.
#pragma once

#include "mm/interfaces.hpp"
#include "mm/mm_types.hpp"
#include "mm/swapfile.hpp"

namespace weir {

inline constexpr int32_t OOM_SCORE_ADJ_MIN = -1000, OOM_SCORE_ADJ_MAX = 1000;

/// What a kill means outside mm: wake the victim, send the signal. Implemented by sim and live.
class Executioner {
 public:
  /// task->sigkill is set already. Called with the tasklist lock held: must not sleep.
  virtual void deliver_sigkill(Task& task) = 0;
  /// No killable task: panic.
  virtual void panic(const char* why) = 0;

 protected:
  ~Executioner() = default;
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

class OomKiller {
 public:
  OomKiller(TaskList& tasks, PageAllocator& pages, SwapFiles& swap, VmStat& vmstat);
  void set_executioner(Executioner* e) { executioner_ = e; }
  /// True: somebody was killed or is dying, try again. False: no victim (after Executioner::panic, should that return).
  /// One at a time: the caller holds PageAllocator::oom_lock. Sleeps a moment, so that the victim can run.
  bool out_of_memory(const OomControl& control);
  /// 0: not to be killed. Tasklist lock held, or the task cannot leave.
  [[nodiscard]] int64_t oom_badness(const Task& task, PageCount totalpages) const;
  /// RAM and swap together: what the points are relative to.
  [[nodiscard]] PageCount totalpages() const;

 private:
  /// What one run found.
  struct Choice {
    Task* chosen = nullptr;
    int64_t points = 0;
    bool victim_dying = false;
  };
  [[nodiscard]] bool task_will_free_mem(const Task& task) const;
  static void mark_oom_victim(Task& task);
  void select_bad_process(PageCount totalpages, Choice& choice);
  void oom_kill_process(const OomControl& control, const Choice& choice, PageCount totalpages);
  void kill(Task& victim);
  void dump_header(const OomControl& control);
  void dump_tasks();

  TaskList& tasks_;
  PageAllocator& pages_;
  SwapFiles& swap_;
  VmStat& vmstat_;
  Executioner* executioner_ = nullptr;
};

}  // namespace weir
