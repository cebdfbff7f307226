// src/mm/oom_reaper.cpp: see oom_reaper.hpp
#include "mm/oom_reaper.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "oom_kill.cpp"

namespace weir {

namespace {

constexpr int MAX_OOM_REAP_RETRIES = 10;
constexpr int64_t KB = PAGE_SIZE / 1024;

void say_rss(const char* what, const Mm& mm) {
  LogLine() << "oom_reaper: " << what << " process " << mm.reaped_pid << ", now anon-rss:" << mm.rss(RssKind::anon) * KB
            << "kB, file-rss:" << mm.rss(RssKind::file) * KB << "kB, shmem-rss:" << mm.rss(RssKind::shmem) * KB << "kB";
}

}  // namespace

Result<void> OomReaper::start(World& world) {
  thread_ = kthread_run(world, oom_reaper, this, "oom_reaper");
  return thread_ != nullptr ? Result<void>() : Result<void>(Errno::nomem);
}

void OomReaper::stop() {
  if (thread_ == nullptr) return;
  thread_->world->kthread_stop(*thread_);
  thread_ = nullptr;
  while (Mm* mm = next()) done_with(*mm);
}

void OomReaper::done_with(Mm& mm) {
  spaces_.mmdrop(mm);
  pending_.fetch_sub(1, std::memory_order_acq_rel);
}

void OomReaper::wake_oom_reaper(Task& victim) {
  WEIR_FLOW(victim.pid);
  if (thread_ == nullptr || victim.oom_mm == nullptr) return;
  Mm& mm = *victim.oom_mm;
  {
    ScopedLock guard(lock_);
    if (mm.reaped_pid != 0) return;  // once is enough
    mm.reaped_pid = victim.pid;
    spaces_.mmgrab(mm);
    pending_.fetch_add(1, std::memory_order_acq_rel);
    queue_.push_back(mm);
  }
  wait_.wake_all();
}

Mm* OomReaper::next() {
  ScopedLock guard(lock_);
  if (queue_.empty()) return nullptr;
  Mm* mm = &queue_.front();
  queue_.pop_front();
  return mm;
}

void OomReaper::oom_reaper(void* self) {
  WEIR_FLOW();
  auto& reaper = *static_cast<OomReaper*>(self);
  while (!kthread_should_stop()) {
    Mm* mm = reaper.next();
    if (mm != nullptr) {
      reaper.oom_reap_task(*mm);
      reaper.done_with(*mm);
      continue;
    }
    reaper.wait_.wait([&] {
      ScopedLock guard(reaper.lock_);
      return !reaper.queue_.empty() || kthread_should_stop();
    });
  }
}

void OomReaper::oom_reap_task(Mm& mm) {
  WEIR_FLOW(mm);
  for (int tries = 0; !__oom_reap_task_mm(mm); ++tries) {
    if (tries == MAX_OOM_REAP_RETRIES || kthread_should_stop()) {
      LogLine() << "oom_reaper: unable to reap pid:" << mm.reaped_pid;
      break;
    }
    (void)world().schedule_timeout(100_ms);
  }
  // Whatever it still has, waiting for it is over.
  mm.oom_skip.store(true, std::memory_order_release);
}

/// False: mmap_sem was not to be had.
bool OomReaper::__oom_reap_task_mm(Mm& mm) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  WEIR_FLOW(mm);
  if (!mm.mmap_sem.down_read_trylock()) return false;
  // Listeners may sleep; the reaper must not wait for them (4.14).
  if (!mm.oom_skip.load(std::memory_order_acquire) && !has_listeners(mm)) {
    [[maybe_unused]] const int64_t before = mm.get_mm_rss();
    for (VmArea& vma : mm.mmap) {
      // What is locked may be looked at without a fault; what is shared is not the victim's to give.
      if ((vma.vm_flags & (VM_LOCKED | VM_SHARED)) != 0 || !vma.anonymous()) continue;
      memory_.unmap_page_range(vma, vma.vm_start, vma.vm_end);
    }
    WEIR_STATE(oom_reap, mm.reaped_pid, before, mm.get_mm_rss());
    say_rss("reaped", mm);
  }
  mm.mmap_sem.up_read();
  return true;
}

}  // namespace weir
