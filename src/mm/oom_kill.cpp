// src/mm/oom_kill.cpp: what is the same in all eras; see oom_kill.hpp
#include "mm/oom_kill.hpp"

#include <algorithm>

namespace weir {

namespace {

const OomPolicy& policy_of(KernelEra era) {
  switch (era) {
    case KernelEra::linux_2_6_20: return OOM_POLICY_2_6_20;
    case KernelEra::linux_3: return OOM_POLICY_3;
    case KernelEra::linux_4_14: break;
  }
  return OOM_POLICY_4_14;
}

bool dies(const Task& t) {
  return t.sigkill.load(std::memory_order_acquire) || t.exiting.load(std::memory_order_acquire);
}

}  // namespace

Task* OomPolicy::child_of(OomKiller& oom, Task& parent, PageCount totalpages) const {
  return oom.worst_child(parent, totalpages);
}

bool OomPolicy::fault_out_of_memory(OomKiller& oom, Task&) const { return oom.pagefault_out_of_memory(); }

OomKiller::OomKiller(TaskList& tasks, PageAllocator& pages, SwapFiles& swap, VmStat& vmstat, KernelEra era)
    : tasks_(tasks), pages_(pages), swap_(swap), vmstat_(vmstat), policy_(policy_of(era)) {}

PageCount OomKiller::totalpages() const { return pages_.managed_pages() + PageCount(swap_.total_swap_pages()); }

// ---- Asking for points ----------------------------------------------------------------------------------------------

Result<void> OomKiller::set_oom_score_adj(Task& task, int32_t value) {
  if (value < OOM_SCORE_ADJ_MIN || value > OOM_SCORE_ADJ_MAX) return Errno::inval;
  task.oom_score_adj.store(value, std::memory_order_relaxed);
  task.oom_adj.store(value == OOM_SCORE_ADJ_MAX ? OOM_ADJUST_MAX : value * -OOM_DISABLE / OOM_SCORE_ADJ_MAX,
                     std::memory_order_relaxed);
  return {};
}

Result<void> OomKiller::set_oom_adj(Task& task, int32_t value) {
  if (value != OOM_DISABLE && (value < OOM_ADJUST_MIN || value > OOM_ADJUST_MAX)) return Errno::inval;
  task.oom_adj.store(value, std::memory_order_relaxed);
  task.oom_score_adj.store(value == OOM_ADJUST_MAX ? OOM_SCORE_ADJ_MAX : value * OOM_SCORE_ADJ_MAX / -OOM_DISABLE,
                           std::memory_order_relaxed);
  return {};
}

int64_t OomKiller::points_of(const Task& task, PageCount totalpages, int64_t superuser_bonus_permille,
                             int64_t superuser_bonus_percent) {
  const Mm* mm = task.mm;
  int64_t adj = task.oom_score_adj.load(std::memory_order_relaxed);
  if (mm == nullptr || adj == OOM_SCORE_ADJ_MIN || mm->oom_skip.load(std::memory_order_relaxed)) return 0;
  int64_t points = mm->get_mm_rss() + mm->rss(RssKind::swapents) + mm->nr_table_pages.load(std::memory_order_relaxed);
  if (capable(task, CAP_SYS_ADMIN)) {
    points -= points * superuser_bonus_percent / 100;
    adj -= superuser_bonus_permille;
  }
  // Linux's order of operations: the adjustment is in thousandths of memory, rounded down to pages.
  points += adj * (totalpages.v / 1000);
  return points > 0 ? points : 1;
}

Task* OomKiller::worst_child(Task& parent, PageCount totalpages) {
  Task* worst = nullptr;
  int64_t most = 0;
  for (Task& child : tasks_.list()) {
    if (child.parent != &parent || child.mm == parent.mm) continue;
    const int64_t points = score(child, totalpages);
    if (points <= most) continue;
    worst = &child;
    most = points;
  }
  return worst;
}

bool OomKiller::task_will_free_mem(const Task& task) {
  if (task.mm == nullptr || !dies(task) || task.mm->oom_skip.load(std::memory_order_relaxed)) return false;
  return std::all_of(tasks_.list().begin(), tasks_.list().end(),
                     [&](const Task& other) { return other.mm != task.mm || dies(other); });
}

// ---- Choosing and killing -------------------------------------------------------------------------------------------

// It may use the reserves to get to its end. The allocator asks the task, so all its threads have the right at once.
void OomKiller::mark_oom_victim(Task& task) {
  if (task.oom_mm == nullptr && task.mm != nullptr) {
    task.mm->mm_count.fetch_add(1, std::memory_order_acq_rel);
    task.oom_mm = task.mm;
  }
  task.memdie.store(true, std::memory_order_release);
  if (task.thread != nullptr) task.thread->memdie.store(true, std::memory_order_release);
  if (&task == current_task()) current().memdie.store(true, std::memory_order_release);
}

void OomKiller::select_bad_process(PageCount totalpages, Choice& choice) {
  WEIR_FLOW(totalpages);
  for (Task& task : tasks_.list()) {
    int64_t points = 0;
    const OomPolicy::Scan scan = policy_.scan(*this, task, totalpages, points);
    if (scan == OomPolicy::Scan::pass) continue;
    if (scan == OomPolicy::Scan::wait) {
      choice = {.chosen = nullptr, .points = 0, .victim_dying = true};
      return;
    }
    WEIR_STATE(oom_points, task.pid, task.oom_score_adj.load(std::memory_order_relaxed), points);
    if (scan == OomPolicy::Scan::choose) {
      choice = {.chosen = &task, .points = points};
      break;
    }
    if (policy_.beats(points, choice.chosen != nullptr, choice.points)) choice = {.chosen = &task, .points = points};
  }
  if (choice.chosen != nullptr) WEIR_STATE(oom_select, choice.chosen->pid, 0, choice.points);
}

void OomKiller::kill(Task& victim) {
  victim.sigkill.store(true, std::memory_order_release);
  if (executioner_ != nullptr) executioner_->deliver_sigkill(victim);
}

void OomKiller::oom_kill_process(const OomControl& control, const Choice& choice, PageCount totalpages,
                                 const char* message) {
  WEIR_FLOW(choice.chosen->pid, choice.points);
  // On its way already: no need to tell anybody, only to let it through.
  if (policy_.lets_chosen_through(*this, *choice.chosen)) {
    mark_oom_victim(*choice.chosen);
    return;
  }
  policy_.dump_header(*this, control);
  policy_.say_chosen(*choice.chosen, choice.points, totalpages, message);
  // A child with memory of its own may give back enough, and the parent may be a shell with all of somebody's work.
  Task* child = policy_.child_of(*this, *choice.chosen, totalpages);
  Task& victim = child != nullptr ? *child : *choice.chosen;
  const Mm* mm = victim.mm;
  mark_oom_victim(victim);
  policy_.say_killed(victim);
  vmstat_.count_vm_event(VmEvent::oom_kill);
  WEIR_STATE(oom_kill, victim.pid, 0, mm->get_mm_rss() + mm->rss(RssKind::swapents));
  kill(victim);
  // Its memory comes back only when nobody uses it any more.
  bool all_die = true;
  for (Task& other : tasks_.list()) {
    if (&other == &victim || other.mm != mm) continue;
    if (policy_.dies_with_victim(other))
      kill(other);
    else
      all_die = false;
  }
  if (policy_.reaps() && all_die && reaper_ != nullptr) reaper_->wake_oom_reaper(victim);
}

bool OomKiller::panics(const char* why, const char* text) {
  LogLine() << "Kernel panic - not syncing: " << text;
  if (executioner_ != nullptr) executioner_->panic(why);
  return false;
}

bool OomKiller::out_of_memory(const OomControl& control) {
  WEIR_FLOW(control.gfp, control.order);
  Task* me = current_task();
  const PageCount total = totalpages();
  Choice choice;
  enum class Panic : uint8_t { no, asked_for, no_victim } panic = Panic::no;
  {
    ScopedLock guard(tasks_.lock());
    if (me != nullptr && policy_.lets_current_through(*this, *me)) {
      mark_oom_victim(*me);
      if (policy_.reaps() && reaper_ != nullptr) reaper_->wake_oom_reaper(*me);
      return true;
    }
    // Who may not enter a file system has not tried everything: whoever may will come here too.
    if (control.gfp.v == 0 || control.gfp.has(__GFP_FS)) {
      const bool suicide = sysctl.oom_kill_allocating_task && policy_.may_kill_allocating_task() && me != nullptr &&
                           me->mm != nullptr && me->oom_score_adj.load(std::memory_order_relaxed) != OOM_SCORE_ADJ_MIN;
      if (sysctl.panic_on_oom != 0) {
        panic = Panic::asked_for;
      } else if (suicide) {
        choice = {.chosen = me, .points = 0};
        oom_kill_process(control, choice, total, "Out of memory (oom_kill_allocating_task)");
      } else {
        select_bad_process(total, choice);
        if (choice.chosen != nullptr)
          oom_kill_process(control, choice, total, "Out of memory");
        else if (!choice.victim_dying)
          panic = Panic::no_victim;
      }
      if (panic != Panic::no) policy_.dump_header(*this, control);
    }
  }
  if (panic == Panic::asked_for) return panics("panic_on_oom", policy_.panic_on_oom_text(sysctl.panic_on_oom));
  if (panic == Panic::no_victim)
    return panics("Out of memory and no killable processes", "Out of memory and no killable processes...");
  // The victim, or whoever may do what this caller may not, must run.
  if (engine_thread().world != nullptr && engine_thread().thread != nullptr && !fatal_signal_pending())
    (void)world().schedule_timeout(4_ms);
  return true;
}

// From 2.6.29 on: the fault asks for the killer, and is tried again.
bool OomKiller::pagefault_out_of_memory() {
  WEIR_FLOW();
  Mutex& oom_lock = pages_.oom_lock();
  if (!oom_lock.try_lock()) {
    // Somebody is killing already: a tick for the victim to go.
    if (World* w = engine_thread().world) w->schedule_timeout(1_ms);
    return true;
  }
  const bool helped = out_of_memory({.gfp = GFP_HIGHUSER_MOVABLE, .order = Order(0)});
  oom_lock.unlock();
  return helped;
}

// ---- The report -----------------------------------------------------------------------------------------------------

void OomKiller::show_mem() {
  LogLine() << "Mem-Info:";
  LogLine() << "active_anon:" << stat(NodeStat::nr_active_anon) << " inactive_anon:" << stat(NodeStat::nr_inactive_anon)
            << " isolated_anon:" << stat(NodeStat::nr_isolated_anon);
  LogLine() << " active_file:" << stat(NodeStat::nr_active_file)
            << " inactive_file:" << stat(NodeStat::nr_inactive_file)
            << " isolated_file:" << stat(NodeStat::nr_isolated_file);
  LogLine() << " unevictable:" << stat(NodeStat::nr_unevictable) << " dirty:" << stat(NodeStat::nr_dirty)
            << " writeback:" << stat(NodeStat::nr_writeback) << " unstable:0";
  LogLine() << " slab_reclaimable:" << stat(NodeStat::nr_slab_reclaimable)
            << " slab_unreclaimable:" << stat(NodeStat::nr_slab_unreclaimable);
  LogLine() << " mapped:" << stat(NodeStat::nr_mapped) << " shmem:0 pagetables:" << stat(NodeStat::nr_page_table_pages)
            << " bounce:0";
  LogLine() << " free:" << pages_.nr_free_pages().v << " zspages:" << stat(NodeStat::nr_zspages) << " free_cma:0";
  constexpr int64_t KB = PAGE_SIZE / 1024;
  for (const Zone& zone : pages_.node().zones) {
    if (!zone.populated()) continue;
    LogLine() << "Node 0 " << zone_name(zone.type) << " free:" << zone.nr_free.load(std::memory_order_relaxed) * KB
              << "kB min:" << zone.wmark(Watermark::min) * KB << "kB low:" << zone.wmark(Watermark::low) * KB
              << "kB high:" << zone.wmark(Watermark::high) * KB << "kB present:" << zone.present_pages.v * KB
              << "kB managed:" << zone.managed_pages.load(std::memory_order_relaxed) * KB << "kB";
  }
  LogLine() << stat(NodeStat::nr_file_pages) << " total pagecache pages";
  LogLine() << stat(NodeStat::nr_swapcached) << " pages in swap cache";
  LogLine() << "Free swap  = " << swap_.nr_swap_pages() * KB << "kB";
  LogLine() << "Total swap = " << static_cast<int64_t>(swap_.total_swap_pages()) * KB << "kB";
  LogLine() << pages_.managed_pages().v << " pages RAM";
}

}  // namespace weir
