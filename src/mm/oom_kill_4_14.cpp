// src/mm/oom_kill_4_14.cpp: whom 4.14 kills; see oom_kill.hpp
#include "mm/oom_kill.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "oom_kill.cpp"

namespace weir {

namespace {

/// Percent of its own points that the superuser has free.
constexpr int64_t SUPERUSER_BONUS = 3;

int64_t oom_badness(const Task& task, PageCount totalpages) {
  WEIR_FLOW(task.pid, totalpages);
  return OomKiller::points_of(task, totalpages, 0, SUPERUSER_BONUS);
}

OomPolicy::Scan oom_evaluate_task(const Task& task, PageCount totalpages, int64_t& points) {
  WEIR_FLOW(task.pid, totalpages);
  // One at a time: what a victim holds comes back soon, even after its exit_mm. If it cannot, oom_skip says so.
  if (task.memdie.load(std::memory_order_acquire)) {
    const Mm* mm = task.oom_mm != nullptr ? task.oom_mm : task.mm;
    if (mm == nullptr || mm->oom_skip.load(std::memory_order_acquire)) return OomPolicy::Scan::pass;
    return OomPolicy::Scan::wait;
  }
  points = oom_badness(task, totalpages);
  if (points == 0) return OomPolicy::Scan::pass;
  // Who has just asked for all of memory to be brought back (swapoff) has itself to blame.
  return task.oom_origin.load(std::memory_order_relaxed) ? OomPolicy::Scan::choose : OomPolicy::Scan::compare;
}

/// The name that the kernel has for the whole of a request's flags; empty: none.
const char* gfp_name(gfp_t gfp) {
  if (gfp == GFP_HIGHUSER_MOVABLE) return "(GFP_HIGHUSER_MOVABLE)";
  if (gfp == GFP_KERNEL) return "(GFP_KERNEL)";
  if (gfp == GFP_NOFS) return "(GFP_NOFS)";
  return "";
}

class Policy final : public OomPolicy {
 public:
  Scan scan(OomKiller&, Task& task, PageCount totalpages, int64_t& points) const override {
    return oom_evaluate_task(task, totalpages, points);
  }
  int64_t score(const OomKiller&, const Task& task, PageCount totalpages) const override {
    return oom_badness(task, totalpages);
  }
  bool lets_current_through(OomKiller& oom, const Task& current) const override {
    return oom.task_will_free_mem(current);
  }
  bool lets_chosen_through(OomKiller& oom, const Task& chosen) const override { return oom.task_will_free_mem(chosen); }
  bool dies_with_victim(const Task&) const override { return true; }
  bool reaps() const override { return true; }

  void dump_header(OomKiller& oom, const OomControl& control) const override {
    const Task* task = current_task();
    const Thread* thread = engine_thread().thread;
    {
      LogLine line;
      (line << (thread != nullptr ? thread->comm : "?") << " invoked oom-killer: gfp_mask=0x").hex(control.gfp.v)
          << gfp_name(control.gfp) << ", nodemask=(null),  order=" << uint32_t{control.order.v}
          << ", oom_score_adj=" << (task != nullptr ? task->oom_score_adj.load(std::memory_order_relaxed) : int32_t{0});
    }
    oom.show_mem();
    if (oom.sysctl.oom_dump_tasks) dump_tasks(oom);
  }
  void dump_tasks(OomKiller& oom) const override {
    LogLine() << "[ pid ]   uid  tgid total_vm      rss nr_ptes nr_pmds swapents oom_score_adj name";
    for (const Task& task : oom.task_list()) {
      const Mm* mm = task.mm;
      if (mm == nullptr) continue;
      const int64_t ptes = mm->nr_ptes.load(std::memory_order_relaxed);
      LogLine line;
      (line << "[").column(task.pid, 5) << "] ";
      (line.column(task.uid, 5) << " ").column(task.pid, 5) << " ";
      (line.column(mm->total_vm, 8) << " ").column(mm->get_mm_rss(), 8) << " ";
      (line.column(ptes, 7) << " ").column(mm->nr_table_pages.load(std::memory_order_relaxed) - ptes, 7) << " ";
      (line.column(mm->rss(RssKind::swapents), 8) << "         ")
              .column(task.oom_score_adj.load(std::memory_order_relaxed), 5)
          << " " << task.comm;
    }
  }
  void say_chosen(const Task& chosen, int64_t points, PageCount totalpages, const char* message) const override {
    LogLine() << message << ": Kill process " << chosen.pid << " (" << chosen.comm << ") score "
              << (totalpages.v > 0 ? points * 1000 / totalpages.v : points) << " or sacrifice child";
  }
  void say_killed(const Task& victim) const override {
    constexpr int64_t KB = PAGE_SIZE / 1024;
    const Mm& mm = *victim.mm;
    LogLine() << "Killed process " << victim.pid << " (" << victim.comm << ") total-vm:" << mm.total_vm * KB
              << "kB, anon-rss:" << mm.rss(RssKind::anon) * KB << "kB, file-rss:" << mm.rss(RssKind::file) * KB
              << "kB, shmem-rss:" << mm.rss(RssKind::shmem) * KB << "kB";
  }
};

constexpr Policy POLICY;

}  // namespace

const OomPolicy& OOM_POLICY_4_14 = POLICY;

}  // namespace weir
