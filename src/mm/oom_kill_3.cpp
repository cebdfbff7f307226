// src/mm/oom_kill_3.cpp: whom 3.7 to 3.10 kill; see oom_kill.hpp
#include "mm/oom_kill.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "oom_kill.cpp"

namespace weir {

namespace {

/// The superuser has 30 thousandths of memory free.
constexpr int64_t SUPERUSER_BONUS = 30;

int64_t oom_badness(const Task& task, PageCount totalpages) {
  WEIR_FLOW(task.pid, totalpages);
  return OomKiller::points_of(task, totalpages, SUPERUSER_BONUS, 0);
}

bool dying(const Task& task) {
  return task.sigkill.load(std::memory_order_acquire) || task.exiting.load(std::memory_order_acquire);
}

OomPolicy::Scan oom_scan_process_thread(const Task& task) {
  WEIR_FLOW(task.pid);
  // A victim counts until it has left the list of tasks, its address space gone.
  if (task.memdie.load(std::memory_order_acquire)) return OomPolicy::Scan::wait;
  if (task.mm == nullptr) return OomPolicy::Scan::pass;
  if (task.oom_origin.load(std::memory_order_relaxed)) return OomPolicy::Scan::choose;
  if (task.exiting.load(std::memory_order_acquire)) return OomPolicy::Scan::wait;
  return OomPolicy::Scan::compare;
}

class Policy final : public OomPolicy {
 public:
  Scan scan(OomKiller&, Task& task, PageCount totalpages, int64_t& points) const override {
    const Scan what = oom_scan_process_thread(task);
    if (what == Scan::choose) points = INT64_MAX;
    if (what != Scan::compare) return what;
    points = oom_badness(task, totalpages);
    return points == 0 ? Scan::pass : Scan::compare;
  }
  int64_t score(const OomKiller&, const Task& task, PageCount totalpages) const override {
    return oom_badness(task, totalpages);
  }
  bool lets_current_through(OomKiller&, const Task& current) const override { return dying(current); }
  bool lets_chosen_through(OomKiller&, const Task& chosen) const override {
    return chosen.exiting.load(std::memory_order_acquire);
  }
  bool dies_with_victim(const Task& sharer) const override {
    return sharer.oom_score_adj.load(std::memory_order_relaxed) != OOM_SCORE_ADJ_MIN;
  }
  bool reaps() const override { return false; }

  void dump_header(OomKiller& oom, const OomControl& control) const override {
    const Task* task = current_task();
    const Thread* thread = engine_thread().thread;
    {
      LogLine line;
      (line << (thread != nullptr ? thread->comm : "?") << " invoked oom-killer: gfp_mask=0x").hex(control.gfp.v)
          << ", order=" << uint32_t{control.order.v}
          << ", oom_score_adj=" << (task != nullptr ? task->oom_score_adj.load(std::memory_order_relaxed) : int32_t{0});
    }
    oom.show_mem();
    if (oom.sysctl.oom_dump_tasks) dump_tasks(oom);
  }
  void dump_tasks(OomKiller& oom) const override {
    LogLine() << "[ pid ]   uid  tgid total_vm      rss nr_ptes swapents oom_score_adj name";
    for (const Task& task : oom.task_list()) {
      const Mm* mm = task.mm;
      if (mm == nullptr) continue;
      LogLine line;
      (line << "[").column(task.pid, 5) << "] ";
      (line.column(task.uid, 5) << " ").column(task.pid, 5) << " ";
      (line.column(mm->total_vm, 8) << " ").column(mm->get_mm_rss(), 8) << " ";
      (line.column(mm->nr_table_pages.load(std::memory_order_relaxed), 7) << " ").column(mm->rss(RssKind::swapents), 8);
      (line << "         ").column(task.oom_score_adj.load(std::memory_order_relaxed), 5) << " " << task.comm;
    }
  }
  void say_chosen(const Task& chosen, int64_t points, PageCount totalpages, const char* message) const override {
    LogLine() << message << ": Kill process " << chosen.pid << " (" << chosen.comm << ") score "
              << (totalpages.v > 0 && points < INT64_MAX / 1000 ? points * 1000 / totalpages.v : 1000)
              << " or sacrifice child";
  }
  void say_killed(const Task& victim) const override {
    constexpr int64_t KB = PAGE_SIZE / 1024;
    const Mm& mm = *victim.mm;
    LogLine() << "Killed process " << victim.pid << " (" << victim.comm << ") total-vm:" << mm.total_vm * KB
              << "kB, anon-rss:" << mm.rss(RssKind::anon) * KB
              << "kB, file-rss:" << (mm.rss(RssKind::file) + mm.rss(RssKind::shmem)) * KB << "kB";
  }
};

constexpr Policy POLICY;

}  // namespace

const OomPolicy& OOM_POLICY_3 = POLICY;

}  // namespace weir
