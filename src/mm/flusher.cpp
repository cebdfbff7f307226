// src/mm/flusher.cpp: see flusher.hpp
#include "mm/flusher.hpp"

#include "kernel/freezer.hpp"

namespace weir {

namespace {

/// Between two rounds when the device refused what it was given: it is not asked again at once.
constexpr Nanos PAUSE_AFTER_ERRORS = 100_ms;

}  // namespace

Flusher::Flusher(PageWriteback& writeback, VmStat& vmstat, KernelEra kernel)
    : writeback_(writeback),
      vmstat_(vmstat),
      // Until 2.6.31 a pool of pdflush threads served all devices.
      wakeup_(kernel == KernelEra::linux_2_6_20 ? &Flusher::wakeup_pdflush : &Flusher::wakeup_flusher_threads) {}

void Flusher::start(World& world) {
  WEIR_BUG_ON(has_thread());
  world_ = &world;
  thread_.store(kthread_run(world, &thread_fn, this, "flusher"), std::memory_order_release);
}

void Flusher::stop() {
  Thread* thread = thread_.exchange(nullptr, std::memory_order_acq_rel);
  if (thread != nullptr) world_->kthread_stop(*thread);
}

uint64_t Flusher::dirty_inodes() {
  ScopedLock guard(lock_);
  uint64_t count = 0;
  for (const InodeList* list : {&b_dirty_, &b_io_, &b_more_io_}) count += list->size();
  return count;
}

// ---- Asked by others -----------------------------------------------------------------------------------------------

void Flusher::wakeup_flusher_threads(int reason) {
  WEIR_FLOW(reason);
  ask(reason);
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "page_writeback.cpp"
void Flusher::wakeup_pdflush(int reason) {
  WEIR_FLOW(reason);
  ask(reason);
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "flusher.cpp"
void Flusher::ask(int reason) {
  if (reason == WB_REASON_BACKGROUND) {
    if (background_.exchange(true, std::memory_order_acq_rel)) return;
  } else {
    if (all_.exchange(reason, std::memory_order_acq_rel) != NOTHING) return;
  }
  vmstat_.count_vm_event(VmEvent::flusher_wakeup);
  wait_.wake_all();
}

void Flusher::mark_inode_dirty(Inode& inode) {
  // The page was tagged before. Whoever takes the inode off (requeue_inode) looks at the tags after he has cleared
  // `dirty`.
  if (inode.dirty.load(std::memory_order_seq_cst)) return;
  bool first;
  {
    ScopedLock guard(lock_);
    if (inode.dirty.load(std::memory_order_relaxed)) return;
    first = b_dirty_.empty();
    inode.dirty.store(true, std::memory_order_relaxed);
    inode.dirtied_when = world().now();
    if (first) next_periodic_ = inode.dirtied_when + DIRTY_WRITEBACK_INTERVAL;
    b_dirty_.push_back(inode);
  }
  if (first) wait_.wake_all();
}

void Flusher::forget_inode(Inode& inode) {
  sync_wait_.wait(
      [&] {
        ScopedLock guard(lock_);
        if (inode.i_sync) return false;
        if (inode.dirty.exchange(false, std::memory_order_relaxed)) b_dirty_.erase(b_dirty_.iterator_to(inode));
        return true;
      },
      &inode);
}

// ---- The thread ----------------------------------------------------------------------------------------------------

void Flusher::thread_fn(void* self) {
  current().flags |= PF_SWAPWRITE;
  static_cast<Flusher*>(self)->wb_workfn();
}

void Flusher::wait_for_work() {
  const auto asked = [&] {
    return kthread_should_stop() || background_.load(std::memory_order_acquire) ||
           all_.load(std::memory_order_acquire) != NOTHING;
  };
  const auto have_inodes = [&] {
    ScopedLock guard(lock_);
    return !b_dirty_.empty();
  };
  wait_.wait([&] { return asked() || have_inodes(); });
  Nanos until;
  {
    ScopedLock guard(lock_);
    until = next_periodic_;
  }
  const Nanos now = world().now();
  if (until > now) (void)wait_.wait_timeout(until - now, asked);
}

void Flusher::wb_workfn() {
  for (;;) {
    wait_for_work();
    if (kthread_should_stop()) return;
    if (const int reason = all_.exchange(NOTHING, std::memory_order_acq_rel); reason != NOTHING)
      wb_writeback({.reason = reason, .older_than = world().now()});
    background_.store(false, std::memory_order_release);
    if (writeback_.over_background_thresh())
      wb_writeback({.reason = WB_REASON_BACKGROUND, .older_than = world().now()});

    const Nanos now = world().now();
    bool due;
    {
      ScopedLock guard(lock_);
      due = !b_dirty_.empty() && now >= next_periodic_;
      if (due) next_periodic_ = now + DIRTY_WRITEBACK_INTERVAL;
    }
    if (due && now >= DIRTY_EXPIRE_INTERVAL)
      wb_writeback({.reason = WB_REASON_PERIODIC, .older_than = now - DIRTY_EXPIRE_INTERVAL});
  }
}

/// Inodes old enough go from b_dirty to b_io.
void Flusher::queue_io(const Work& work) {
  while (!b_dirty_.empty() && b_dirty_.front().dirtied_when <= work.older_than) {
    Inode& inode = b_dirty_.front();
    b_dirty_.pop_front();
    b_io_.push_back(inode);
  }
}

void Flusher::wb_writeback(const Work& work) {
  WEIR_FLOW(work.reason);
  {
    ScopedLock guard(lock_);
    queue_io(work);
    if (b_io_.empty()) return;
  }
  WEIR_STATE(writeback_start, work.reason, 0, vmstat_.node_page_state(NodeStat::nr_dirty));
  while (!kthread_should_stop() && (!work.background() || writeback_.over_background_thresh())) {
    try_to_freeze();
    {
      ScopedLock guard(lock_);
      b_io_.splice(b_io_.end(), b_more_io_);
      // What was dirtied since belongs to the next work, but the background goes on while there is too much.
      if (b_io_.empty() && work.background()) queue_io({.reason = work.reason, .older_than = world().now()});
      if (b_io_.empty()) break;
    }
    bool errors = false;
    // Nothing got written: all of it is in others' hands.
    if (writeback_inodes(work, errors).v == 0) break;
    if (errors) (void)wait_.wait_timeout(PAUSE_AFTER_ERRORS, [] { return kthread_should_stop(); });
  }
  ScopedLock guard(lock_);
  // They are older than all that is on the list.
  b_dirty_.splice(b_dirty_.begin(), b_io_);
  b_dirty_.splice(b_dirty_.begin(), b_more_io_);
}

/// One round through b_io. `errors`: writes of one of these inodes have failed since the last round.
PageCount Flusher::writeback_inodes(const Work& work, bool& errors) {
  PageCount written{};
  for (;;) {
    Inode* inode;
    {
      ScopedLock guard(lock_);
      if (b_io_.empty()) return written;
      inode = &b_io_.front();
      b_io_.pop_front();
      inode->i_sync = true;
    }
    const uint32_t seq = inode->i_data.wb_err_seq.load(std::memory_order_acquire);
    if (seq != inode->wb_err_seen) errors = true;
    inode->wb_err_seen = seq;
    written += writeback_single_inode(*inode, work);
    if (kthread_should_stop() || (work.background() && !writeback_.over_background_thresh())) return written;
  }
}

PageCount Flusher::writeback_single_inode(Inode& inode, const Work& work) {
  WEIR_FLOW(inode.ino);
  WritebackControl wbc;
  wbc.nr_to_write = WRITEBACK_CHUNK;
  wbc.for_background = work.background();
  wbc.range_cyclic = true;
  const PageCount written = writeback_.write_cache_pages(inode.i_data, wbc);
  {
    ScopedLock guard(lock_);
    inode.i_sync = false;
    requeue_inode(inode, wbc.nr_to_write <= 0);
  }
  sync_wait_.wake_all(&inode);  // by address alone: it may be gone
  return written;
}

void Flusher::requeue_inode(Inode& inode, bool more_io) {
  // In this order: see mark_inode_dirty.
  inode.dirty.exchange(false, std::memory_order_seq_cst);
  bool tagged;
  {
    ScopedLock guard(inode.i_data.tree_lock);
    tagged = inode.i_data.page_tree.tagged(PAGECACHE_TAG_DIRTY);
  }
  if (!tagged) return;
  inode.dirty.store(true, std::memory_order_seq_cst);
  if (more_io) {
    b_more_io_.push_back(inode);
  } else {
    inode.dirtied_when = world().now();
    b_dirty_.push_back(inode);
  }
}

}  // namespace weir
