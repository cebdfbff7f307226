// src/mm/flusher.cpp: dirty inodes, and a thread for each device. The pool: flusher_2_6_20.cpp. See flusher.hpp
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
      pool_(kernel == KernelEra::linux_2_6_20),
      wakeup_(pool_ ? &Flusher::wakeup_pdflush : &Flusher::wakeup_flusher_threads),
      start_background_(pool_ ? &Flusher::pdflush_background : &Flusher::wb_start_background_writeback),
      workfn_(kernel == KernelEra::linux_3 ? &Flusher::bdi_writeback_workfn : &Flusher::wb_workfn) {}

void Flusher::start(World& world) {
  WEIR_BUG_ON(started_.load(std::memory_order_relaxed));
  world_ = &world;
  started_.store(true, std::memory_order_release);
  if (!pool_) return writeback_.for_each_wb([this](BdiWriteback& wb) { start_bdi(wb); });
  for (unsigned i = 0; i < MIN_PDFLUSH_THREADS; ++i) start_one_pdflush_thread();
  arm_kupdate(DIRTY_WRITEBACK_INTERVAL);
}

void Flusher::stop() {
  if (!started_.exchange(false, std::memory_order_acq_rel)) return;
  if (!pool_) {
    writeback_.for_each_wb([this](BdiWriteback& wb) {
      Thread* thread = wb.thread.exchange(nullptr, std::memory_order_acq_rel);
      if (thread == nullptr) return;
      world_->kthread_stop(*thread);
      nr_threads_.fetch_sub(1, std::memory_order_acq_rel);
    });
    return;
  }
  world_->timer_cancel(wb_timer_);
  for (Pdflush& slot : pool_threads_) {
    if (slot.thread == nullptr) continue;
    world_->kthread_stop(*slot.thread);
    slot.thread = nullptr;
    slot.state = Pdflush::State::none;
  }
  nr_threads_.store(0, std::memory_order_release);
}

uint64_t Flusher::dirty_inodes() {
  ScopedLock guard(lock_);
  uint64_t count = 0;
  writeback_.for_each_wb([&](BdiWriteback& wb) {
    for (const InodeList* list : {&wb.b_dirty, &wb.b_io, &wb.b_more_io}) count += list->size();
  });
  return count;
}

bool Flusher::has_dirty_inodes(BdiWriteback& wb) {
  ScopedLock guard(lock_);
  return !wb.b_dirty.empty() || !wb.b_io.empty() || !wb.b_more_io.empty();
}

// ---- Dirty inodes --------------------------------------------------------------------------------------------------

void Flusher::mark_inode_dirty(Inode& inode) {
  // The page was tagged before. Whoever takes the inode off (requeue_inode) looks at the tags after he has cleared
  // `dirty`.
  if (inode.dirty.load(std::memory_order_seq_cst)) return;
  BdiWriteback& wb = writeback_.wb_of(inode.i_data);
  bool first;
  {
    ScopedLock guard(lock_);
    if (inode.dirty.load(std::memory_order_relaxed)) return;
    first = wb.b_dirty.empty();
    inode.dirty.store(true, std::memory_order_relaxed);
    inode.dirtied_when = world().now();
    if (first) wb.next_periodic = inode.dirtied_when + DIRTY_WRITEBACK_INTERVAL;
    wb.b_dirty.push_back(inode);
  }
  if (!first) return;
  if (pool_)
    arm_kupdate(DIRTY_WRITEBACK_INTERVAL);
  else
    wb.wait.wake_all();
}

void Flusher::forget_inode(Inode& inode) {
  sync_wait_.wait(
      [&] {
        ScopedLock guard(lock_);
        if (inode.i_sync) return false;
        if (inode.dirty.exchange(false, std::memory_order_relaxed)) {
          InodeList& list = writeback_.wb_of(inode.i_data).b_dirty;  // or another one: it makes no difference
          list.erase(list.iterator_to(inode));
        }
        return true;
      },
      &inode);
}

/// Inodes old enough go from b_dirty to b_io.
void Flusher::queue_io(BdiWriteback& wb, Nanos older_than) {
  while (!wb.b_dirty.empty() && wb.b_dirty.front().dirtied_when <= older_than) {
    Inode& inode = wb.b_dirty.front();
    wb.b_dirty.pop_front();
    wb.b_io.push_back(inode);
  }
}

/// One round through b_io, up to wbc.nr_to_write pages. `errors`: writes of one of these inodes have failed since the
/// last round.
PageCount Flusher::writeback_sb_inodes(BdiWriteback& wb, WritebackControl& wbc, const WritebackWork& work,
                                       bool& errors) {
  WEIR_FLOW(wbc.nr_to_write);
  PageCount written{};
  for (;;) {
    Inode* inode;
    {
      ScopedLock guard(lock_);
      if (wb.b_io.empty()) return written;
      inode = &wb.b_io.front();
      wb.b_io.pop_front();
      inode->i_sync = true;
    }
    const uint32_t seq = inode->i_data.wb_err_seq.load(std::memory_order_acquire);
    if (seq != inode->wb_err_seen) errors = true;
    inode->wb_err_seen = seq;
    // A flusher's slices are all alike; a writer writes what it is told.
    const PageCount some = writeback_single_inode(*inode, work, work.nr_pages != 0 ? WRITEBACK_CHUNK : wbc.nr_to_write);
    written += some;
    wbc.nr_to_write -= some.v;
    if (wbc.nr_to_write <= 0 || enough(wb, work)) return written;
    if ((current().flags & PF_KTHREAD) != 0 ? kthread_should_stop() : fatal_signal_pending()) return written;
  }
}

PageCount Flusher::writeback_single_inode(Inode& inode, const WritebackWork& work, int64_t nr_to_write) {
  WEIR_FLOW(inode.ino);
  WritebackControl wbc;
  wbc.nr_to_write = nr_to_write;
  wbc.for_background = work.background;
  wbc.range_cyclic = true;
  BdiWriteback& wb = writeback_.wb_of(inode.i_data);
  const PageCount written = writeback_.write_cache_pages(inode.i_data, wbc);
  {
    ScopedLock guard(lock_);
    inode.i_sync = false;
    requeue_inode(wb, inode, wbc.nr_to_write <= 0);
  }
  sync_wait_.wake_all(&inode);  // by address alone: it may be gone
  return written;
}

void Flusher::requeue_inode(BdiWriteback& wb, Inode& inode, bool more_io) {
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
    wb.b_more_io.push_back(inode);
  } else {
    inode.dirtied_when = world().now();
    wb.b_dirty.push_back(inode);
  }
}

/// What a round has left is older than all that is on the list.
void Flusher::give_back(BdiWriteback& wb) {
  wb.b_dirty.splice(wb.b_dirty.begin(), wb.b_io);
  wb.b_dirty.splice(wb.b_dirty.begin(), wb.b_more_io);
}

void Flusher::writeback_inodes(BdiWriteback& wb, WritebackControl& wbc) {
  WEIR_FLOW(wbc.nr_to_write);
  {
    ScopedLock guard(lock_);
    if (wb.b_io.empty()) {
      wb.b_io.splice(wb.b_io.end(), wb.b_more_io);
      queue_io(wb, world().now());
    }
  }
  bool errors = false;
  (void)writeback_sb_inodes(wb, wbc, {}, errors);
}

// ---- A thread for each device --------------------------------------------------------------------------------------

void Flusher::bdi_register(BdiWriteback& wb) {
  if (!pool_ && started_.load(std::memory_order_acquire)) start_bdi(wb);
}

void Flusher::start_bdi(BdiWriteback& wb) {
  wb.flusher = this;
  Thread* thread = kthread_run(*world_, &bdi_thread, &wb, "flusher");
  if (thread == nullptr) return;
  wb.thread.store(thread, std::memory_order_release);
  nr_threads_.fetch_add(1, std::memory_order_acq_rel);
}

void Flusher::wakeup_flusher_threads(int reason) {
  WEIR_FLOW(reason);
  const int64_t pages = vmstat_.node_page_state(NodeStat::nr_dirty);
  writeback_.for_each_wb([&](BdiWriteback& wb) {
    if (!has_dirty_inodes(wb)) return;
    if (reason == WB_REASON_BACKGROUND || !wb_queue_work(wb, {.reason = reason, .nr_pages = pages}))
      return wb_start_background_writeback(wb);
  });
}

void Flusher::wb_start_background_writeback(BdiWriteback& wb) {
  if (wb.background.exchange(true, std::memory_order_acq_rel)) return;
  WEIR_FLOW();
  vmstat_.count_vm_event(VmEvent::flusher_wakeup);
  wb.wait.wake_all();
}

/// False: the queue is full.
bool Flusher::wb_queue_work(BdiWriteback& wb, const WritebackWork& work) {
  WEIR_FLOW(work.reason, work.nr_pages);
  {
    ScopedLock guard(lock_);
    // The same once more is the same.
    for (unsigned i = 0; i < wb.nr_works; ++i)
      if (wb.works[(wb.first_work + i) % BdiWriteback::MAX_WORKS].reason == work.reason) return true;
    if (wb.nr_works == BdiWriteback::MAX_WORKS) return false;
    wb.works[(wb.first_work + wb.nr_works++) % BdiWriteback::MAX_WORKS] = work;
  }
  vmstat_.count_vm_event(VmEvent::flusher_wakeup);
  wb.wait.wake_all();
  return true;
}

bool Flusher::next_work(BdiWriteback& wb, WritebackWork& work) {
  ScopedLock guard(lock_);
  if (wb.nr_works == 0) return false;
  work = wb.works[wb.first_work];
  wb.first_work = (wb.first_work + 1) % BdiWriteback::MAX_WORKS;
  --wb.nr_works;
  return true;
}

void Flusher::bdi_thread(void* wb) {
  current().flags |= PF_SWAPWRITE;
  auto& device = *static_cast<BdiWriteback*>(wb);
  auto& self = *static_cast<Flusher*>(device.flusher);
  for (;;) {
    self.wait_for_work(device);
    if (kthread_should_stop()) return;
    (self.*self.workfn_)(device);
  }
}

void Flusher::wait_for_work(BdiWriteback& wb) {
  const auto asked = [&] {
    if (kthread_should_stop() || wb.background.load(std::memory_order_acquire)) return true;
    ScopedLock guard(lock_);
    return wb.nr_works != 0;
  };
  const auto have_inodes = [&] {
    ScopedLock guard(lock_);
    return !wb.b_dirty.empty();
  };
  wb.wait.wait([&] { return asked() || have_inodes(); });
  Nanos until;
  {
    ScopedLock guard(lock_);
    until = wb.next_periodic;
  }
  const Nanos now = world().now();
  if (until > now) (void)wb.wait.wait_timeout(until - now, asked);
}

void Flusher::bdi_writeback_workfn(BdiWriteback& wb) {
  WEIR_FLOW();
  wb_do_writeback(wb);
}

void Flusher::wb_workfn(BdiWriteback& wb) {
  WEIR_FLOW();
  wb_do_writeback(wb);
}

void Flusher::wb_do_writeback(BdiWriteback& wb) {
  WEIR_FLOW();
  for (WritebackWork work; next_work(wb, work);) {
    work.older_than = world().now();
    wb_writeback(wb, work);
  }
  wb.background.store(false, std::memory_order_release);
  if (writeback_.wb_over_bg_thresh(wb))
    wb_writeback(
        wb, {.reason = WB_REASON_BACKGROUND, .nr_pages = INT64_MAX, .older_than = world().now(), .background = true});
  const Nanos now = world().now();
  bool due;
  {
    ScopedLock guard(lock_);
    due = !wb.b_dirty.empty() && now >= wb.next_periodic;
    if (due) wb.next_periodic = now + DIRTY_WRITEBACK_INTERVAL;
  }
  if (due && now >= DIRTY_EXPIRE_INTERVAL)
    wb_writeback(wb, {.reason = WB_REASON_PERIODIC, .nr_pages = INT64_MAX, .older_than = now - DIRTY_EXPIRE_INTERVAL});
}

void Flusher::wb_writeback(BdiWriteback& wb, const WritebackWork& work) {
  WEIR_FLOW(work.reason);
  {
    ScopedLock guard(lock_);
    queue_io(wb, work.older_than);
    if (wb.b_io.empty()) return;
  }
  WEIR_STATE(writeback_start, work.reason, 0, vmstat_.node_page_state(NodeStat::nr_dirty));
  const Nanos start = world().now();
  WritebackControl wbc;
  wbc.nr_to_write = work.nr_pages;
  wb.in_progress.fetch_add(1, std::memory_order_relaxed);
  while (!kthread_should_stop() && !enough(wb, work) && wbc.nr_to_write > 0) {
    try_to_freeze();
    {
      ScopedLock guard(lock_);
      wb.b_io.splice(wb.b_io.end(), wb.b_more_io);
      // What was dirtied since belongs to the next work, but the background goes on while there is too much.
      if (wb.b_io.empty() && work.background) queue_io(wb, world().now());
      if (wb.b_io.empty()) break;
    }
    bool errors = false;
    PageCount written;
    {
      // A fork comes before or after it, and finds no page locked by it.
      KthreadPass pass;
      written = writeback_sb_inodes(wb, wbc, work, errors);
      const DirtyControl control = writeback_.dirty_control(wb);
      writeback_.wb_update_bandwidth(wb, control, start);
    }
    // Nothing got written: all of it is in others' hands.
    if (written.v == 0) break;
    if (errors) (void)wb.wait.wait_timeout(PAUSE_AFTER_ERRORS, [] { return kthread_should_stop(); });
  }
  wb.in_progress.fetch_sub(1, std::memory_order_relaxed);
  ScopedLock guard(lock_);
  give_back(wb);
}

}  // namespace weir
