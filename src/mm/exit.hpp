// src/mm/exit.hpp
//
// How a task ends. Linux: kernel/exit.c.
//
//   do_exit --> exit_mm --> mmput --> exit_mmap --> unmap_vmas --> free_swap_and_cache
//           |                                   `-> free_pgtables
//           `-> exit_notify: its children get its parent; it leaves the list of tasks
#pragma once

#include "mm/mmap.hpp"
#include "mm/oom_kill.hpp"

namespace weir {

class Exit {
 public:
  Exit(TaskList& tasks, AddressSpaces& spaces) : tasks_(tasks), spaces_(spaces) {}
  /// The address space goes, if nobody shares it, then the task leaves the list; the struct is left to the caller.
  /// Called by the task's own thread, or when it has none. Sleeps.
  void do_exit(Task& task, int code);

 private:
  void exit_mm(Task& task);
  void exit_notify(Task& task);

  TaskList& tasks_;
  AddressSpaces& spaces_;
};

}  // namespace weir
