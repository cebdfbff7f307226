// src/mm/oom_kill_2_6_20.cpp: whom 2.6.20 kills; see oom_kill.hpp
//
// badness begins with total_vm: what a task has mapped, not what it has in memory.
#include <bit>

#include "mm/oom_kill.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "oom_kill.cpp"

namespace weir {

namespace {

int64_t int_sqrt(int64_t x) {
  int64_t root = 0;
  for (int64_t bit = int64_t{1} << 30; bit != 0; bit >>= 1)
    if ((root + bit) * (root + bit) <= x) root += bit;
  return root;
}

// 8 and 1024 seconds: what a task has done counts by the square root, how long it is there by the fourth root.
int64_t badness(const Task& task, Nanos uptime, TaskListT& tasks) {
  WEIR_FLOW(task.pid);
  const Mm* mm = task.mm;
  if (mm == nullptr) return 0;
  if (task.oom_origin.load(std::memory_order_relaxed)) return INT64_MAX;
  int64_t points = mm->total_vm;
  // Who forks much is answerable for half of what the children have.
  for (const Task& child : tasks)
    if (child.parent == &task && child.mm != mm && child.mm != nullptr) points += child.mm->total_vm / 2 + 1;
  Nanos cpu = task.cpu_time;
  if (task.thread != nullptr && task.thread->world != nullptr) cpu = cpu + task.thread->world->cpu_time(*task.thread);
  const Nanos run = uptime > task.start_time ? uptime - task.start_time : Nanos(0);
  if (const int64_t by_cpu = int_sqrt(static_cast<int64_t>(cpu.v / (8_s).v)); by_cpu != 0) points /= by_cpu;
  if (const int64_t by_run = int_sqrt(int_sqrt(static_cast<int64_t>(run.v / (1024_s).v))); by_run != 0)
    points /= by_run;
  if (task.nice > 0) points *= 2;
  if (capable(task, CAP_SYS_ADMIN) || capable(task, CAP_SYS_RESOURCE)) points /= 4;
  if (capable(task, CAP_SYS_RAWIO)) points /= 4;
  const int32_t adj = task.oom_adj.load(std::memory_order_relaxed);
  return adj > 0 ? points << adj : points >> -adj;
}

Nanos uptime() { return engine_thread().world != nullptr ? world().now() : Nanos(0); }

/// It, or somebody with the same mm, must not die.
bool disabled(const Task& task, TaskListT& tasks) {
  for (const Task& other : tasks)
    if (other.mm == task.mm && other.oom_adj.load(std::memory_order_relaxed) == OOM_DISABLE) return true;
  return false;
}

class Policy final : public OomPolicy {
 public:
  Scan scan(OomKiller& oom, Task& task, PageCount, int64_t& points) const override {
    if (task.mm == nullptr) return Scan::pass;
    if (task.memdie.load(std::memory_order_acquire)) return Scan::wait;
    if (task.exiting.load(std::memory_order_acquire)) {
      if (&task != current_task()) return Scan::wait;
      points = INT64_MAX;
      return Scan::choose;
    }
    if (disabled(task, oom.task_list())) return Scan::pass;
    points = badness(task, uptime(), oom.task_list());
    return Scan::compare;
  }
  int64_t score(const OomKiller& oom, const Task& task, PageCount) const override {
    return badness(task, uptime(), const_cast<OomKiller&>(oom).task_list());
  }
  bool beats(int64_t points, bool any_chosen, int64_t best) const override { return points > best || !any_chosen; }
  bool lets_current_through(OomKiller&, const Task&) const override { return false; }
  bool lets_chosen_through(OomKiller&, const Task& chosen) const override {
    return chosen.exiting.load(std::memory_order_acquire);
  }
  /// The first that can be killed, however small.
  Task* child_of(OomKiller& oom, Task& parent, PageCount) const override {
    for (Task& child : oom.task_list())
      if (child.parent == &parent && child.mm != nullptr && child.mm != parent.mm && !disabled(child, oom.task_list()))
        return &child;
    return nullptr;
  }
  bool dies_with_victim(const Task&) const override { return true; }
  bool may_kill_allocating_task() const override { return false; }
  bool reaps() const override { return false; }
  /// The task pays for its own fault.
  bool fault_out_of_memory(OomKiller& oom, Task& task) const override {
    LogLine() << "VM: killing process " << task.comm;
    oom.kill(task);
    return false;
  }

  void dump_header(OomKiller& oom, const OomControl& control) const override {
    const Task* task = current_task();
    const Thread* thread = engine_thread().thread;
    {
      LogLine line;
      (line << (thread != nullptr ? thread->comm : "?") << " invoked oom-killer: gfp_mask=0x").hex(control.gfp.v)
          << ", order=" << uint32_t{control.order.v}
          << ", oomkilladj=" << (task != nullptr ? task->oom_adj.load(std::memory_order_relaxed) : int32_t{0});
    }
    constexpr int64_t KB = PAGE_SIZE / 1024;
    LogLine() << "Mem-info:";
    LogLine() << "Active:" << oom.stat(NodeStat::nr_active_anon) + oom.stat(NodeStat::nr_active_file)
              << " inactive:" << oom.stat(NodeStat::nr_inactive_anon) + oom.stat(NodeStat::nr_inactive_file)
              << " dirty:" << oom.stat(NodeStat::nr_dirty) << " writeback:" << oom.stat(NodeStat::nr_writeback)
              << " unstable:0 free:" << oom.pages().nr_free_pages().v
              << " slab:" << oom.stat(NodeStat::nr_slab_reclaimable) + oom.stat(NodeStat::nr_slab_unreclaimable)
              << " mapped:" << oom.stat(NodeStat::nr_mapped)
              << " pagetables:" << oom.stat(NodeStat::nr_page_table_pages);
    for (const Zone& zone : oom.pages().node().zones) {
      if (!zone.populated()) continue;
      LogLine() << zone_name(zone.type) << " free:" << zone.nr_free.load(std::memory_order_relaxed) * KB
                << "kB min:" << zone.wmark(Watermark::min) * KB << "kB low:" << zone.wmark(Watermark::low) * KB
                << "kB high:" << zone.wmark(Watermark::high) * KB << "kB present:" << zone.present_pages.v * KB << "kB";
    }
    LogLine() << "Free swap  = " << oom.swap().nr_swap_pages() * KB << "kB";
    LogLine() << "Total swap = " << static_cast<int64_t>(oom.swap().total_swap_pages()) * KB << "kB";
    LogLine() << oom.pages().managed_pages().v << " pages of RAM";
    LogLine() << oom.stat(NodeStat::nr_swapcached) << " pages swap cached";
  }
  void dump_tasks(OomKiller&) const override {}
  void say_chosen(const Task& chosen, int64_t points, PageCount, const char* message) const override {
    LogLine() << message << ": kill process " << chosen.pid << " (" << chosen.comm << ") score " << points
              << " or a child";
  }
  void say_killed(const Task& victim) const override {
    LogLine() << "Killed process " << victim.pid << " (" << victim.comm << ")";
  }
  const char* panic_on_oom_text(int) const override { return "out of memory. panic_on_oom is selected"; }
};

constexpr Policy POLICY;

}  // namespace

const OomPolicy& OOM_POLICY_2_6_20 = POLICY;

}  // namespace weir
