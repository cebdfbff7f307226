// src/mm/page_writeback.cpp: see page_writeback.hpp
#include "mm/page_writeback.hpp"

#include <algorithm>

namespace weir {

namespace {

/// What a device wrote counts half as much every so often.
constexpr Nanos VM_COMPLETIONS_PERIOD_LEN = 3_s;

}  // namespace

const DirtyEra& DirtyEra::of(KernelEra kernel) { return kernel == KernelEra::linux_2_6_20 ? of_2_6_20() : of_3(); }

PageWriteback::PageWriteback(Filemap& filemap, VmStat& vmstat, KernelEra kernel)
    : filemap_(filemap), vmstat_(vmstat), era_(DirtyEra::of(kernel)), vm_dirty_ratio_(profile_of(kernel).dirty_ratio) {}

void PageWriteback::set_ratios(unsigned background_percent, unsigned dirty_percent) {
  WEIR_BUG_ON(background_percent > 100 || dirty_percent > 100);
  dirty_background_ratio_.store(background_percent, std::memory_order_relaxed);
  vm_dirty_ratio_.store(dirty_percent, std::memory_order_relaxed);
}

// ---- Limits --------------------------------------------------------------------------------------------------------

PageCount PageWriteback::global_dirtyable_memory() const {
  const int64_t free = filemap_.pages().nr_free_pages().v;
  const int64_t kept_back = std::min(free, filemap_.pages().totalreserve_pages().v);
  return PageCount(free - kept_back + vmstat_.node_page_state(NodeStat::nr_inactive_file) +
                   vmstat_.node_page_state(NodeStat::nr_active_file) + 1);
}

DirtyLimits PageWriteback::ratios_of(int64_t memory, unsigned most_percent) const {
  const unsigned ratio = std::min(vm_dirty_ratio_.load(std::memory_order_relaxed), most_percent);
  int64_t dirty = memory * ratio / 100;
  int64_t background = memory * dirty_background_ratio_.load(std::memory_order_relaxed) / 100;
  if (background >= dirty) background = dirty / 2;
  return {.background = PageCount(background), .dirty = PageCount(dirty)};
}

DirtyLimits PageWriteback::global_dirty_limits() const {
  auto [background, dirty] = era_.limits(*this);
  // Who writes on behalf of others (a loop device's thread) must not be stopped by what these have dirtied.
  if ((current_flags() & PF_LESS_THROTTLE) != 0) {
    background += background / 4;
    dirty += dirty / 4;
  }
  return {.background = background, .dirty = dirty};
}

PageCount PageWriteback::dirty_and_writeback() const {
  return PageCount(vmstat_.node_page_state(NodeStat::nr_dirty) + vmstat_.node_page_state(NodeStat::nr_writeback));
}

bool PageWriteback::over_background_thresh() const {
  return vmstat_.node_page_state(NodeStat::nr_dirty) > global_dirty_limits().background.v;
}

bool PageWriteback::node_dirty_ok() const {
  WEIR_FLOW();
  return dirty_and_writeback() <= global_dirty_limits().dirty;  // one node: its share is all of it
}

// ---- Clean and dirty -----------------------------------------------------------------------------------------------

void PageWriteback::account_page_dirtied(Page& page, AddressSpace& mapping) {
  WEIR_FLOW(filemap_.pages().mem().pfn(page), page.index);
  const int64_t before = vmstat_.node_page_state(NodeStat::nr_dirty);
  vmstat_.inc_node_page_state(NodeStat::nr_dirty);
  if (mapping.wb != nullptr) {
    mapping.wb->reclaimable.fetch_add(1, std::memory_order_relaxed);
    mapping.wb->dirtied.fetch_add(1, std::memory_order_relaxed);
  }
  vmstat_.inc_node_page_state(NodeStat::nr_dirtied);
  WEIR_STATE(dirty_count, 0, before, before + 1);
  bdp_ratelimits_.fetch_add(1, std::memory_order_relaxed);
  if (Task* task = current_task()) ++task->nr_dirtied;
}

void PageWriteback::account_page_cleaned(Page& page, const AddressSpace& mapping) {
  (void)page;
  if (mapping.wb != nullptr) mapping.wb->reclaimable.fetch_sub(1, std::memory_order_relaxed);
  const int64_t before = vmstat_.node_page_state(NodeStat::nr_dirty);
  vmstat_.dec_node_page_state(NodeStat::nr_dirty);
  WEIR_STATE(dirty_count, 0, before, before - 1);
}

bool PageWriteback::__set_page_dirty_nobuffers(Page& page, AddressSpace& mapping) {
  if (page.test(PageFlag::dirty)) return false;
  WEIR_FLOW(filemap_.pages().mem().pfn(page), page.index);
  {
    ScopedLock guard(mapping.tree_lock);
    // Truncated just now: its bytes are of no use to anybody.
    if (Filemap::file_mapping(page) != &mapping) return false;
    if (page.test_and_set(PageFlag::dirty)) return false;
    WEIR_STATE(page_dirtied, filemap_.pages().mem().pfn(page), page.index, 0);
    account_page_dirtied(page, mapping);
    mapping.page_tree.tag_set(page.index, PAGECACHE_TAG_DIRTY);
  }
  if (mapping.host != nullptr && flusher_ != nullptr) flusher_->mark_inode_dirty(*mapping.host);
  return true;
}

void PageWriteback::redirty_page_for_writepage(WritebackControl& wbc, Page& page) {
  (void)wbc;
  AddressSpace* mapping = Filemap::file_mapping(page);
  if (mapping == nullptr || !__set_page_dirty_nobuffers(page, *mapping)) return;
  vmstat_.dec_node_page_state(NodeStat::nr_dirtied);
  if (mapping->wb != nullptr) mapping->wb->dirtied.fetch_sub(1, std::memory_order_relaxed);
  if (Task* task = current_task(); task != nullptr && task->nr_dirtied > 0) --task->nr_dirtied;
}

bool PageWriteback::clear_page_dirty_for_io(Page& page) {
  WEIR_FLOW(filemap_.pages().mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked));
  AddressSpace* mapping = Filemap::file_mapping(page);
  if (mapping == nullptr || mapping->no_writeback_tags) return page.test_and_clear(PageFlag::dirty);
  // From here on a store through a mapping faults, and dirties the page anew. What was stored before is in what is
  // written.
  if (page_mapped(page) && mapped_ != nullptr && mapped_->page_mkclean(page) > 0) mapping->a_ops->set_page_dirty(page);
  if (!page.test_and_clear(PageFlag::dirty)) return false;
  account_page_cleaned(page, *mapping);
  return true;
}

void PageWriteback::cancel_dirty_page(Page& page) {
  AddressSpace* mapping = Filemap::file_mapping(page);
  if (mapping == nullptr || mapping->no_writeback_tags) {
    page.clear(PageFlag::dirty);
    return;
  }
  ScopedLock guard(mapping->tree_lock);
  if (!page.test_and_clear(PageFlag::dirty)) return;
  mapping->page_tree.tag_clear(page.index, PAGECACHE_TAG_DIRTY);
  account_page_cleaned(page, *mapping);
}

// ---- Throttling ----------------------------------------------------------------------------------------------------

void PageWriteback::balance_dirty_pages_ratelimited(AddressSpace& mapping) {
  Task* task = current_task();
  const uint64_t limit = era_.ratelimit(wb_of(mapping));
  const uint32_t by_all = bdp_ratelimits_.load(std::memory_order_relaxed);
  uint64_t dirtied = by_all;
  // Threads without a task have only the common count.
  if (task != nullptr) {
    dirtied = task->nr_dirtied;
    if (dirtied < limit && by_all < ratelimit_pages_.load(std::memory_order_relaxed)) return;
    task->nr_dirtied = 0;
  } else if (dirtied < limit) {
    return;
  }
  bdp_ratelimits_.store(0, std::memory_order_relaxed);
  balance_dirty_pages(mapping, PageCount(static_cast<int64_t>(dirtied)));
}

void PageWriteback::set_ratelimit(PageCount dirty_limit) {
  ratelimit_pages_.store(static_cast<uint32_t>(std::clamp<int64_t>(dirty_limit.v / 32, 16, 1024)),
                         std::memory_order_relaxed);
}

void PageWriteback::pause(Nanos time) {
  WEIR_STATE(dirty_pause, current().tid, 0, time);
  vmstat_.count_vm_event(VmEvent::balance_dirty_pause);
  world().schedule_timeout(time);
}

// ---- Devices -------------------------------------------------------------------------------------------------------

BdiWriteback& PageWriteback::wb_of(const BlockDevice& device) {
  BdiWriteback* made = nullptr;
  {
    ScopedLock guard(wbs_lock_);
    const unsigned n = nr_wbs_.load(std::memory_order_relaxed);
    for (unsigned i = 1; i < n; ++i)
      if (wbs_[i].bdi == &device) return wbs_[i];
    if (n == MAX_BDIS) return wbs_[0];
    made = &wbs_[n];
    made->bdi = &device;
    nr_wbs_.store(n + 1, std::memory_order_release);
  }
  if (flusher_ != nullptr) flusher_->bdi_register(*made);
  return *made;
}

int64_t PageWriteback::wb_calc_thresh(const BdiWriteback& wb, int64_t thresh) {
  ScopedLock guard(wbs_lock_);
  const auto of = [](const BdiWriteback& w) {
    return w.completions + w.written.load(std::memory_order_relaxed) - w.written_stamp;
  };
  uint64_t all = 0;
  for (unsigned i = 0; i < nr_wbs_.load(std::memory_order_relaxed); ++i) all += of(wbs_[i]);
  // While nothing has been written nothing is known of any.
  return all == 0 ? thresh : static_cast<int64_t>(static_cast<uint64_t>(thresh) * of(wb) / all);
}

DirtyControl PageWriteback::dirty_control(BdiWriteback& wb) {
  const DirtyLimits limits = global_dirty_limits();
  DirtyControl control{.thresh = limits.dirty.v, .bg_thresh = limits.background.v, .dirty = dirty_and_writeback().v};
  control.wb_thresh = wb_calc_thresh(wb, control.thresh);
  control.wb_bg_thresh = wb_calc_thresh(wb, control.bg_thresh);
  control.wb_dirty = wb.reclaimable.load(std::memory_order_relaxed) + wb.writeback.load(std::memory_order_relaxed);
  control.strict = wb.bdi != nullptr && wb.bdi->foreign();
  if (control.strict) {
    // One that has not written anything yet, and one whose share others have, may have as much as it leaves; and none
    // has what others hold.
    if (wb.written.load(std::memory_order_relaxed) == 0) control.wb_thresh = control.wb_bg_thresh = 0;
    const int64_t room = std::max<int64_t>(control.thresh - control.dirty, 0);
    control.wb_thresh = std::min(std::max(control.wb_thresh, room), control.wb_dirty + room);
    control.wb_bg_thresh = std::min(std::max(control.wb_bg_thresh, room / 2), control.wb_thresh / 2);
  }
  {
    ScopedLock guard(wbs_lock_);
    control.write_bw = wb.avg_write_bandwidth;
  }
  control.pos_ratio = wb_position_ratio(control);
  return control;
}

void PageWriteback::wb_update_bandwidth(BdiWriteback& wb, const DirtyControl& control, Nanos start) {
  const Nanos now = world().now();
  ScopedLock guard(wbs_lock_);
  wb.update_bandwidth(control, start, now);
  for (; now >= completions_since_ + VM_COMPLETIONS_PERIOD_LEN; completions_since_ += VM_COMPLETIONS_PERIOD_LEN) {
    bool any = false;
    for (unsigned i = 0; i < nr_wbs_.load(std::memory_order_relaxed); ++i) any |= (wbs_[i].completions /= 2) != 0;
    if (!any) completions_since_ = now;
  }
}

bool PageWriteback::wb_over_bg_thresh(BdiWriteback& wb) {
  if (over_background_thresh()) return true;
  return wb.reclaimable.load(std::memory_order_relaxed) > dirty_control(wb).wb_bg_thresh;
}

// ---- Writing -------------------------------------------------------------------------------------------------------

void PageWriteback::tag_pages_for_writeback(AddressSpace& mapping, uint64_t start, uint64_t end) {
  constexpr unsigned BATCH = 64;
  void* found[BATCH];
  uint64_t indices[BATCH];
  for (;;) {
    unsigned got;
    {
      ScopedLock guard(mapping.tree_lock);
      got = mapping.page_tree.gang_lookup_tag(found, indices, start, BATCH, PAGECACHE_TAG_DIRTY);
      for (unsigned i = 0; i < got; ++i) {
        if (indices[i] > end) return;
        mapping.page_tree.tag_set(indices[i], PAGECACHE_TAG_TOWRITE);
      }
    }
    if (got < BATCH || indices[got - 1] == ~uint64_t{0}) return;
    start = indices[got - 1] + 1;
    world().cond_resched();
  }
}

/// Page referenced and not locked. True if a write was started.
bool PageWriteback::write_one(AddressSpace& mapping, Page& page, WritebackControl& wbc) {
  filemap_.lock_page(page);
  const auto worth_writing = [&] {
    // Truncated, or written by somebody else, since it was found.
    if (Filemap::file_mapping(page) != &mapping || !page.test(PageFlag::dirty)) return false;
    if (page.test(PageFlag::writeback)) {
      // Dirtied again under its own write. The next round has time for it, but a sync waits.
      if (wbc.sync_mode == SyncMode::none) return false;
      filemap_.wait_on_page_writeback(page);
    }
    return clear_page_dirty_for_io(page);
  };
  if (!worth_writing()) {
    filemap_.unlock_page(page);
    return false;
  }
  const Result<void> started = mapping.a_ops->writepage(page, wbc);
  if (started.error() == Errno::again) filemap_.unlock_page(page);  // AOP_WRITEPAGE_ACTIVATE
  return started.ok();
}

PageCount PageWriteback::write_range(AddressSpace& mapping, WritebackControl& wbc, uint64_t start, uint64_t end,
                                     uint64_t& done_index) {
  const PageTag tag = wbc.sync_mode == SyncMode::all ? PageTag::towrite : PageTag::dirty;
  Page* pages[PAGEVEC_SIZE];
  int64_t written = 0;
  bool more = true;
  done_index = start;
  while (more) {
    const unsigned found = filemap_.find_get_pages_tag(mapping, start, end, tag, PAGEVEC_SIZE, pages);
    for (unsigned i = 0; i < found && more; ++i) {
      done_index = pages[i]->index + 1;
      if (mapping.wb != nullptr) mapping.wb->wait_for_room();
      if (!write_one(mapping, *pages[i], wbc)) continue;
      ++written;
      // A sync writes all that it tagged, or it would report success for pages that are not written.
      if (--wbc.nr_to_write <= 0 && wbc.sync_mode == SyncMode::none) more = false;
    }
    if (found < PAGEVEC_SIZE) more = false;
    if (found > 0) {
      start = pages[found - 1]->index + 1;
      if (start == 0 || start > end) more = false;
    }
    filemap_.lru().release_pages(pages, found);
    world().cond_resched();
  }
  return PageCount(written);
}

PageCount PageWriteback::write_cache_pages(AddressSpace& mapping, WritebackControl& wbc) {
  WEIR_FLOW(wbc.nr_to_write);
  uint64_t done = 0;
  if (!wbc.range_cyclic) {
    if (wbc.sync_mode == SyncMode::all) tag_pages_for_writeback(mapping, wbc.range_start, wbc.range_end);
    return write_range(mapping, wbc, wbc.range_start, wbc.range_end, done);
  }
  const uint64_t begin = mapping.writeback_index;
  if (wbc.sync_mode == SyncMode::all) tag_pages_for_writeback(mapping, 0, ~uint64_t{0});
  PageCount written = write_range(mapping, wbc, begin, ~uint64_t{0}, done);
  if (begin > 0 && (wbc.nr_to_write > 0 || wbc.sync_mode == SyncMode::all))
    written += write_range(mapping, wbc, 0, begin - 1, done);
  mapping.writeback_index = done;
  return written;
}

}  // namespace weir
