// src/mm/oom_kill.cpp: see oom_kill.hpp
#include "mm/oom_kill.hpp"

#include <algorithm>

namespace weir {

namespace {

Task* current_task() {
  const Thread* thread = engine_thread().thread;
  return thread != nullptr ? thread->task : nullptr;
}

constexpr int64_t kib(int64_t pages) { return pages * static_cast<int64_t>(PAGE_SIZE / 1024); }

}  // namespace

OomKiller::OomKiller(TaskList& tasks, PageAllocator& pages, SwapFiles& swap, VmStat& vmstat)
    : tasks_(tasks), pages_(pages), swap_(swap), vmstat_(vmstat) {}

PageCount OomKiller::totalpages() const { return pages_.managed_pages() + PageCount(swap_.total_swap_pages()); }

int64_t OomKiller::oom_badness(const Task& task, PageCount totalpages) const {
  const Mm* mm = task.mm;
  const int32_t adj = task.oom_score_adj.load(std::memory_order_relaxed);
  if (mm == nullptr || adj == OOM_SCORE_ADJ_MIN || mm->oom_skip.load(std::memory_order_relaxed)) return 0;
  const int64_t used =
      mm->get_mm_rss() + mm->rss(RssKind::swapents) + mm->nr_table_pages.load(std::memory_order_relaxed);
  // Linux's order of operations: the adjustment is in thousandths of memory, rounded down to pages.
  const int64_t points = used + adj * (totalpages.v / 1000);
  return points > 0 ? points : 1;
}

// Exiting or killed already, and so is everybody who shares its memory. Tasklist lock held.
bool OomKiller::task_will_free_mem(const Task& task) const {
  const auto dies = [](const Task& t) {
    return t.sigkill.load(std::memory_order_acquire) || t.exiting.load(std::memory_order_acquire);
  };
  if (task.mm == nullptr || !dies(task) || task.mm->oom_skip.load(std::memory_order_relaxed)) return false;
  for (const Task& other : tasks_.list())
    if (other.mm == task.mm && !dies(other)) return false;
  return true;
}

// It may use the reserves to get to its end. Its own thread takes that right up when it next asks for memory.
void OomKiller::mark_oom_victim(Task& task) {
  task.memdie.store(true, std::memory_order_release);
  if (&task == current_task()) current().flags |= TIF_MEMDIE;
}

void OomKiller::select_bad_process(PageCount totalpages, Choice& choice) {
  WEIR_FLOW(totalpages);
  for (Task& task : tasks_.list()) {
    if (task.mm == nullptr) continue;
    // One at a time: what it holds comes back soon. If it cannot, oom_skip says so.
    if (task.memdie.load(std::memory_order_acquire) && !task.mm->oom_skip.load(std::memory_order_relaxed)) {
      choice = {.chosen = nullptr, .points = 0, .victim_dying = true};
      return;
    }
    const int64_t points = oom_badness(task, totalpages);
    WEIR_STATE(oom_points, task.pid, task.oom_score_adj.load(std::memory_order_relaxed), points);
    // Who has just asked for all of memory to be brought back (swapoff) has itself to blame.
    if (points > 0 && task.oom_origin.load(std::memory_order_relaxed)) {
      choice = {.chosen = &task, .points = points};
      break;
    }
    if (points > choice.points) choice = {.chosen = &task, .points = points};
  }
  if (choice.chosen != nullptr) WEIR_STATE(oom_select, choice.chosen->pid, 0, choice.points);
}

void OomKiller::dump_tasks() {
  LogLine() << "[  pid] total_vm      rss nr_ptes swapents oom_score_adj name";
  for (const Task& task : tasks_.list()) {
    const Mm* mm = task.mm;
    if (mm == nullptr) continue;
    LogLine line;
    (line << "[").column(task.pid, 5) << "] ";
    (line.column(mm->total_vm, 8) << " ").column(mm->get_mm_rss(), 8) << " ";
    (line.column(mm->nr_table_pages.load(std::memory_order_relaxed), 7) << " ").column(mm->rss(RssKind::swapents), 8)
        << " ";
    line.column(task.oom_score_adj.load(std::memory_order_relaxed), 13) << " " << task.comm;
  }
}

void OomKiller::dump_header(const OomControl& control) {
  const Task* task = current_task();
  const Thread* thread = engine_thread().thread;
  {
    LogLine line;
    (line << (task != nullptr     ? task->comm
              : thread != nullptr ? thread->comm
                                  : "?")
          << " invoked oom-killer: gfp_mask=0x")
            .hex(control.gfp.v)
        << ", order=" << uint32_t{control.order.v}
        << ", oom_score_adj=" << (task != nullptr ? task->oom_score_adj.load(std::memory_order_relaxed) : int32_t{0});
  }
  const auto stat = [this](NodeStat s) { return vmstat_.node_page_state(s); };
  LogLine() << "Mem-Info:";
  LogLine() << "active_anon:" << stat(NodeStat::nr_active_anon) << " inactive_anon:" << stat(NodeStat::nr_inactive_anon)
            << " isolated_anon:" << stat(NodeStat::nr_isolated_anon)
            << " active_file:" << stat(NodeStat::nr_active_file)
            << " inactive_file:" << stat(NodeStat::nr_inactive_file)
            << " isolated_file:" << stat(NodeStat::nr_isolated_file)
            << " unevictable:" << stat(NodeStat::nr_unevictable);
  LogLine() << "dirty:" << stat(NodeStat::nr_dirty) << " writeback:" << stat(NodeStat::nr_writeback)
            << " slab_reclaimable:" << stat(NodeStat::nr_slab_reclaimable)
            << " slab_unreclaimable:" << stat(NodeStat::nr_slab_unreclaimable)
            << " mapped:" << stat(NodeStat::nr_mapped) << " pagetables:" << stat(NodeStat::nr_page_table_pages)
            << " zspages:" << stat(NodeStat::nr_zspages) << " free:" << pages_.nr_free_pages().v;
  for (const Zone& zone : pages_.node().zones) {
    if (!zone.populated()) continue;
    LogLine() << "Node 0 " << zone_name(zone.type) << " free:" << kib(zone.nr_free.load(std::memory_order_relaxed))
              << "kB min:" << kib(zone.wmark(Watermark::min)) << "kB low:" << kib(zone.wmark(Watermark::low))
              << "kB high:" << kib(zone.wmark(Watermark::high))
              << "kB managed:" << kib(zone.managed_pages.load(std::memory_order_relaxed)) << "kB";
  }
  LogLine() << stat(NodeStat::nr_file_pages) << " total pagecache pages";
  LogLine() << stat(NodeStat::nr_swapcached) << " pages in swap cache";
  LogLine() << "Free swap  = " << kib(swap_.nr_swap_pages()) << "kB";
  LogLine() << "Total swap = " << kib(swap_.total_swap_pages()) << "kB";
  dump_tasks();
}

void OomKiller::kill(Task& victim) {
  victim.sigkill.store(true, std::memory_order_release);
  if (executioner_ != nullptr) executioner_->deliver_sigkill(victim);
}

void OomKiller::oom_kill_process(const OomControl& control, const Choice& choice, PageCount totalpages) {
  WEIR_FLOW(choice.chosen->pid, choice.points);
  Task* victim = choice.chosen;
  // On its way already: no need to tell anybody, only to let it through.
  if (task_will_free_mem(*victim)) {
    mark_oom_victim(*victim);
    return;
  }
  dump_header(control);
  LogLine() << "Out of memory: Kill process " << victim->pid << " (" << victim->comm << ") score "
            << choice.points * 1000 / std::max<int64_t>(totalpages.v, 1) << " or sacrifice child";
  // A child with memory of its own may give back enough, and the parent may be a shell with all of somebody's work.
  int64_t victim_points = 0;
  for (Task& child : tasks_.list()) {
    if (child.parent != choice.chosen || child.mm == choice.chosen->mm) continue;
    const int64_t points = oom_badness(child, totalpages);
    if (points <= victim_points) continue;
    victim = &child;
    victim_points = points;
  }
  const Mm* mm = victim->mm;
  mark_oom_victim(*victim);
  LogLine() << "Killed process " << victim->pid << " (" << victim->comm << ") total-vm:" << kib(mm->total_vm)
            << "kB, anon-rss:" << kib(mm->rss(RssKind::anon)) << "kB, file-rss:" << kib(mm->rss(RssKind::file))
            << "kB, shmem-rss:" << kib(mm->rss(RssKind::shmem)) << "kB";
  vmstat_.count_vm_event(VmEvent::oom_kill);
  WEIR_STATE(oom_kill, victim->pid, 0, mm->get_mm_rss() + mm->rss(RssKind::swapents));
  kill(*victim);
  // Its memory comes back only when nobody uses it any more.
  for (Task& other : tasks_.list())
    if (&other != victim && other.mm == mm) kill(other);
}

bool OomKiller::out_of_memory(const OomControl& control) {
  WEIR_FLOW(control.gfp, control.order);
  Task* me = current_task();
  const PageCount total = totalpages();
  Choice choice;
  bool panic = false;
  {
    ScopedLock guard(tasks_.lock());
    if (me != nullptr && task_will_free_mem(*me)) {
      mark_oom_victim(*me);
      return true;
    }
    // Who may not enter a file system has not tried everything: whoever may will come here too.
    if (control.gfp.v == 0 || control.gfp.has(__GFP_FS)) {
      select_bad_process(total, choice);
      panic = choice.chosen == nullptr && !choice.victim_dying;
      if (choice.chosen != nullptr) oom_kill_process(control, choice, total);
      if (panic) dump_header(control);
    }
  }
  if (panic) {
    LogLine() << "Kernel panic - not syncing: Out of memory and no killable processes...";
    if (executioner_ != nullptr) executioner_->panic("Out of memory and no killable processes");
    return false;
  }
  // The victim, or whoever may do what this caller may not, must run.
  if (engine_thread().world != nullptr && engine_thread().thread != nullptr && !fatal_signal_pending())
    (void)world().schedule_timeout(4_ms);
  return true;
}

}  // namespace weir
