// src/mm/oom_kill.hpp
//
// When nothing can be reclaimed: who dies. Linux: mm/oom_kill.c 4.14.
//
//   points = rss + swapents + page-table pages, + oom_score_adj × totalpages / 1000; -1000 never
#pragma once

#include "mm/interfaces.hpp"
#include "mm/mmap.hpp"

namespace weir {

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
  void add(Task& task);
  void remove(Task& task);
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
  OomKiller(TaskList& tasks, AddressSpaces& spaces, PageAllocator& pages, SwapFiles& swap, VmStat& vmstat);
  void set_executioner(Executioner* e) { executioner_ = e; }
  /// True: somebody was killed or is dying, try again. False: no victim.
  bool out_of_memory(const OomControl& control);
  [[nodiscard]] int64_t oom_badness(const Task& task, PageCount totalpages) const;

 private:
  TaskList& tasks_;
  AddressSpaces& spaces_;
  PageAllocator& pages_;
  SwapFiles& swap_;
  VmStat& vmstat_;
  Executioner* executioner_ = nullptr;
};

}  // namespace weir
