// src/mm/exit.cpp: see exit.hpp
#include "mm/exit.hpp"

namespace weir {

void Exit::do_exit(Task& task, int code) {
  WEIR_FLOW(task.pid, code);
  task.exiting.store(true, std::memory_order_release);
  task.exit_code = code;
  WEIR_STATE(task_exit, task.pid, task.mm != nullptr ? task.mm->get_mm_rss() : 0, 0);
  exit_mm(task);
  exit_notify(task);
  tasks_.remove(task);
  // A victim of the OOM killer counted as one until now: nobody else was killed for what it gave back.
  if (Mm* mm = task.oom_mm) {
    task.oom_mm = nullptr;
    spaces_.mmdrop(*mm);
  }
}

void Exit::exit_mm(Task& task) {
  WEIR_FLOW(task.pid);
  Mm* mm = nullptr;
  {
    ScopedLock guard(tasks_.lock());
    mm = task.mm;
    task.mm = nullptr;
  }
  if (mm != nullptr) {
    WEIR_STATE(mm_task, *mm, task.pid, 0);
    spaces_.mmput(*mm);
  }
  // What it needed the reserves for is done.
  Thread* thread = engine_thread().thread;
  if (thread != nullptr && thread->task == &task) thread->memdie.store(false, std::memory_order_release);
}

void Exit::exit_notify(Task& task) {
  WEIR_FLOW(task.pid);
  ScopedLock guard(tasks_.lock());
  for (Task& other : tasks_.list())
    if (other.parent == &task) other.parent = task.parent;
}

}  // namespace weir
