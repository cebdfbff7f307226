// src/mm/vmscan_list.cpp: what a scan does with the pages of a list: isolates, ages, unmaps, writes, frees or keeps
// them. See vmscan.hpp
#include <algorithm>
#include <iterator>

#include "mm/vmscan_era.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "vmscan.cpp"

namespace weir {

namespace {

bool current_is_kswapd() { return (current_flags() & PF_KSWAPD) != 0; }

void cond_resched() {
  if (engine_thread().world != nullptr) world().cond_resched();
}

}  // namespace

// ---- Lists, isolation ----------------------------------------------------------------------------------------------

int64_t Vmscan::isolate_lru_pages(int64_t nr_to_scan, LruVec& lruvec, PageList& to, int64_t& nr_scanned,
                                  const ScanControl& sc, LruList list) {
  WEIR_FLOW(list, nr_to_scan);
  PageList& from = lruvec.lists[static_cast<unsigned>(list)];
  const bool some_too_high = sc.reclaim_idx != ZoneType::NORMAL;
  PageList skipped;
  int64_t taken = 0;
  nr_scanned = 0;
  while (nr_scanned < nr_to_scan && !from.empty()) {
    Page& page = from.back();
    // Pages lie about in an order of their own: the next one is fetched while this one is looked at.
    if (&page != &from.front()) __builtin_prefetch(&*std::prev(PageList::s_iterator_to(page)), 1);
    if (some_too_high && pages_.page_zone(page).type > sc.reclaim_idx) {
      skipped.splice(skipped.begin(), from, PageList::s_iterator_to(page));
      continue;
    }
    ++nr_scanned;
    if (!PageAllocator::get_page_unless_zero(page)) {
      // Its last reference went; whoever dropped it waits for this lock to take it off.
      from.splice(from.begin(), from, PageList::s_iterator_to(page));
      continue;
    }
    page.clear(PageFlag::lru);
    lru_.del_page_from_lru_list(page, list);
    to.push_front(page);
    ++taken;
  }
  from.splice(from.begin(), skipped);
  if (lruvec.zone != nullptr) lruvec.zone->pages_scanned.fetch_add(nr_scanned, std::memory_order_relaxed);
  WEIR_STATE(scan_lru, list, nr_to_scan, taken);
  return taken;
}

// An isolated page goes onto `list` and the isolation's reference with it. True if that was the last: the page is off
// again.
bool Vmscan::put_isolated(Page& page, LruList list) {
  page.set(PageFlag::lru);
  lru_.add_page_to_lru_list(page, list);
  if (!PageAllocator::put_page_testzero(page)) return false;
  lru_.del_page_from_lru_list(page, list);
  page.clear(PageFlag::lru);
  page.clear(PageFlag::active);
  lru_.clear_page_aged(page);
  return true;
}

int64_t Vmscan::move_active_pages_to_lru(PageList& pages, PageList& to_free, LruList list) {
  WEIR_FLOW(list);
  int64_t moved = 0;
  while (!pages.empty()) {
    Page& page = pages.back();
    pages.pop_back();
    if (put_isolated(page, list))
      to_free.push_back(page);
    else
      ++moved;
  }
  if (!is_active_lru(list)) vmstat_.count_vm_events(VmEvent::pgdeactivate, static_cast<uint64_t>(moved));
  return moved;
}

void Vmscan::putback_inactive_pages(PageList& pages, PageList& to_free) {
  WEIR_FLOW();
  put_back(pages, to_free);
}

void Vmscan::put_back(PageList& pages, PageList& to_free) {
  PageList evictable;
  while (!pages.empty()) {
    Page& page = pages.back();
    pages.pop_back();
    if (Lru::page_evictable(page))
      evictable.push_front(page);
    else
      lru_.putback_lru_page(page);
  }
  ScopedLock guard(node_.lru_lock);
  while (!evictable.empty()) {
    Page& page = evictable.back();
    evictable.pop_back();
    const LruList list = lru_.page_lru(page);
    const unsigned file = lru_.page_is_file_cache(page);
    if (put_isolated(page, list))
      to_free.push_back(page);
    else if (is_active_lru(list))
      ++lru_.lruvec_of(page).reclaim_stat.recent_rotated[file];
  }
}

// Direct reclaimers together must not take so much off the lists that one of them finds nothing and calls the OOM
// killer.
bool Vmscan::too_many_isolated(bool file, const ScanControl& sc) const {
  if (current_is_kswapd()) return false;
  int64_t inactive = lru_.lru_size(file ? LruList::inactive_file : LruList::inactive_anon).v;
  const int64_t isolated = vmstat_.node_page_state(file ? NodeStat::nr_isolated_file : NodeStat::nr_isolated_anon);
  // Who may neither do I/O nor enter a file system may be what the others wait for, so it gets through. One batch
  // always may be out: in a machine of a few megabytes an eighth of a list is less.
  if (sc.gfp_mask.has(__GFP_IO) && sc.gfp_mask.has(__GFP_FS)) inactive >>= 3;
  return isolated > std::max(inactive, SWAP_CLUSTER_MAX);
}

// ---- Active lists --------------------------------------------------------------------------------------------------

// Page not locked: a page that somebody else works on counts as used.
int Vmscan::page_referenced(Page& page, uint64_t* vm_flags) {
  *vm_flags = 0;
  if (!filemap_.trylock_page(page)) return 1;
  FlushBatch batch;
  const int referenced = rmap_.page_referenced(page, vm_flags, batch);
  if (batch.count > 0) mmu_.age_batch(batch);
  filemap_.unlock_page(page);
  return referenced;
}

void Vmscan::shrink_active_list(int64_t nr_to_scan, LruVec& lruvec, ScanControl& sc, LruList list) {
  WEIR_FLOW(list, nr_to_scan);
  const unsigned file = is_file_lru(list) ? 1 : 0;
  const NodeStat isolated = file != 0 ? NodeStat::nr_isolated_file : NodeStat::nr_isolated_anon;
  // Where asking takes the page out of hardware, it is asked when it has come to the inactive tail.
  const bool ask = mmu_.caps().has_accessed;
  PageList held, active, inactive, to_free;
  lru_.lru_add_drain();
  int64_t taken = 0, scanned = 0;
  {
    ScopedLock guard(node_.lru_lock);
    taken = isolate_lru_pages(nr_to_scan, lruvec, held, scanned, sc, list);
    vmstat_.mod_node_page_state(isolated, taken);
    lruvec.reclaim_stat.recent_scanned[file] += static_cast<uint64_t>(taken);
  }
  vmstat_.count_vm_events(VmEvent::pgrefill, static_cast<uint64_t>(scanned));
  uint64_t rotated = 0;
  while (!held.empty()) {
    cond_resched();
    Page& page = held.back();
    held.pop_back();
    if (!Lru::page_evictable(page)) {
      vmstat_.dec_node_page_state(isolated);
      --taken;
      lru_.putback_lru_page(page);
      continue;
    }
    uint64_t vm_flags = 0;
    if (ask && page_mapped(page) && page_referenced(page, &vm_flags) > 0) {
      ++rotated;
      // The code that runs: a stream of data through the cache shall not push it out.
      if (file != 0 && (vm_flags & VM_EXEC) != 0) {
        active.push_front(page);
        continue;
      }
    }
    page.clear(PageFlag::active);
    inactive.push_front(page);
  }
  {
    ScopedLock guard(node_.lru_lock);
    // Referenced pages count as rotated though they go to the inactive list: they get there a second round before
    // reclaim.
    lruvec.reclaim_stat.recent_rotated[file] += rotated;
    move_active_pages_to_lru(active, to_free, list);
    move_active_pages_to_lru(inactive, to_free, file != 0 ? LruList::inactive_file : LruList::inactive_anon);
    vmstat_.mod_node_page_state(isolated, -taken);
  }
  era_->free_pages(to_free);
}

// ---- Aging ---------------------------------------------------------------------------------------------------------

// The batch's PTEs were made old; hardware follows. Pages that could not be made absent are pinned and do not count as
// aged.
void Vmscan::age_batch(FlushBatch& batch, Page** pages, unsigned n) {
  Page* before[FlushBatch::CAPACITY];
  const unsigned count = batch.count;
  for (unsigned i = 0; i < count; ++i) before[i] = batch.entries[i].page;
  if (count > 0) mmu_.age_batch(batch);
  for (unsigned k = 0; k < n; ++k) {
    bool pinned = false;
    for (unsigned i = 0; i < count; ++i) pinned |= before[i] == pages[k] && batch.entries[i].page == nullptr;
    if (!pinned) lru_.set_page_aged(*pages[k]);
  }
}

void Vmscan::age_ahead_of_tail() {
  const PageCount target = pages_.managed_pages() / static_cast<int64_t>(staging_divisor_);
  // Four batches for each of reclaim's: the stretch is soon as long as it may be, and no scan has to build it alone.
  for (int round = 0; round < 4 && lru_.nr_aged() < target; ++round) {
    Page* pages[SWAP_CLUSTER_MAX];
    Page* aged[SWAP_CLUSTER_MAX];
    const unsigned n = lru_.pages_to_age(pages, SWAP_CLUSTER_MAX);
    if (n == 0) return;
    FlushBatch batch;
    unsigned locked = 0;
    for (unsigned i = 0; i < n; ++i) {
      Page& page = *pages[i];
      if (!filemap_.trylock_page(page)) continue;
      if (PageAnon(page) && page_mapped(page) && page.test(PageFlag::lru) && !page.test(PageFlag::active)) {
        uint64_t vm_flags = 0;
        // All are young until they were here, so the answer says nothing.
        (void)rmap_.page_referenced(page, &vm_flags, batch);
        aged[locked++] = &page;
      } else {
        filemap_.unlock_page(page);
      }
    }
    age_batch(batch, aged, locked);
    for (unsigned i = 0; i < locked; ++i) filemap_.unlock_page(*aged[i]);
    lru_.release_pages(pages, n);
  }
}

// ---- One batch of pages --------------------------------------------------------------------------------------------

void Vmscan::keep(Page& page, PageKeep reason) { WEIR_STATE(page_keep, pages_.mem().pfn(page), reason, 0); }

void Vmscan::keep_locked(Page& page, PageKeep reason) {
  keep(page, reason);
  filemap_.unlock_page(page);
}

void Vmscan::activate_locked(Page& page, PageKeep reason) {
  era_->activated(page);
  if (!page.test(PageFlag::mlocked)) {
    page.set(PageFlag::active);
    lru_.clear_page_aged(page);
    vmstat_.count_vm_event(VmEvent::pgactivate);
  }
  keep_locked(page, reason);
}

Vmscan::References Vmscan::page_check_references(Page& page, FlushBatch& aged) {
  WEIR_FLOW(pages_.mem().pfn(page));
  const bool staged = page.test(PageFlag::aged);
  uint64_t vm_flags = 0;
  const int ptes = rmap_.page_referenced(page, &vm_flags, aged);
  const bool referenced = page.test(PageFlag::referenced);
  if (referenced) page.clear(PageFlag::referenced);
  const References result =
      references_of({.ptes = ptes,
                     .vm_flags = vm_flags,
                     .referenced = referenced,
                     .swapbacked = PageSwapBacked(page),
                     .unaged = !mmu_.caps().has_accessed && PageAnon(page) && page_mapped(page) && !staged});
  // A file page used once gets one more round: to tell a stream from a working set.
  if (ptes > 0 && !PageSwapBacked(page) && result != References::reclaim) page.set(PageFlag::referenced);
  return result;
}

// Phase 1 of one page. True: a candidate, locked. False: kept, unlocked.
bool Vmscan::prepare_page(Page& page, ScanControl& sc, Stat& stat, FlushBatch& unmapped, FlushBatch& aged,
                          Candidate& candidate) {
  if (!era_->lock(page)) return keep(page, PageKeep::locked), false;
  sc.nr_scanned += PageCount(1);
  if (!Lru::page_evictable(page)) return activate_locked(page, PageKeep::unevictable), false;
  if (!sc.may_unmap && page_mapped(page)) return keep_locked(page, PageKeep::may_not_unmap), false;
  // They cost more to get back: slab caches pay double for them.
  if (page_mapped(page) || PageSwapCache(page)) sc.nr_scanned += PageCount(1);

  const bool file = !PageSwapBacked(page);
  const bool writeback = page_flags::PageWriteback(page);
  const bool dirty = file && page.test(PageFlag::dirty);
  if (dirty || writeback) ++stat.nr_dirty;
  if (dirty && !writeback) ++stat.nr_unqueued_dirty;
  bool may_enter_fs = sc.gfp_mask.has(__GFP_FS) || (PageSwapCache(page) && sc.gfp_mask.has(__GFP_IO));
  if (writeback && page.test(PageFlag::reclaim) && !on_foreign_disk(page)) ++stat.nr_congested;
  if (writeback) return era_->under_writeback(page, stat), false;

  candidate = {.page = &page};
  const unsigned nr_aged = aged.count;
  candidate.references = sc.ignore_references ? References::reclaim : era_->references(page, aged);
  const auto decide = [&](Candidate::Verdict verdict, PageKeep reason) {
    candidate.verdict = verdict;
    candidate.reason = reason;
    return true;
  };
  switch (candidate.references) {
    case References::activate: return decide(Candidate::Verdict::activate, PageKeep::referenced);
    case References::keep: return decide(Candidate::Verdict::keep, PageKeep::referenced_once);
    case References::aging: return decide(Candidate::Verdict::keep, PageKeep::aging);
    case References::reclaim:
    case References::reclaim_clean: break;
  }
  // It may have to be written, and its slot's device has filled up since: a slot elsewhere. Where only its bytes tell
  // whether it is dirty, that is known too late: when it is unmapped.
  if (PageSwapCache(page) && page_mapped(page) && (page.test(PageFlag::dirty) || !mmu_.caps().has_dirty) &&
      !swap_.has_room(SwpEntry{page.private_}))
    (void)cache_.try_to_free_swap(page);
  if (PageAnon(page) && PageSwapBacked(page) && !PageSwapCache(page)) {
    if (!sc.gfp_mask.has(__GFP_IO)) return decide(Candidate::Verdict::keep, PageKeep::no_io);
    if (!cache_.add_to_swap(page)) return decide(Candidate::Verdict::activate, PageKeep::no_slot);
    may_enter_fs = true;
  }
  candidate.may_enter_fs = may_enter_fs;
  if (!mmu_.caps().has_alias && page_mapped(page) && !PageAnon(page)) {
    // A file's page loses its PTE only when it has left hardware: else nothing would tell where its bytes are.
    if (aged.count > nr_aged) return decide(Candidate::Verdict::keep, PageKeep::aging);
    if (!mmu_.captured(page)) return decide(Candidate::Verdict::activate, PageKeep::pinned);
  }
  if (page_mapped(page) && rmap_.try_to_unmap(page, unmapped) == TryToUnmap::fail)
    return decide(Candidate::Verdict::activate, PageKeep::not_unmapped);
  return true;
}

Vmscan::Pageout Vmscan::pageout(Page& page, AddressSpace* mapping, ScanControl& sc) {
  WEIR_FLOW(pages_.mem().pfn(page));
  (void)sc;
  if (mapping == nullptr) {
    // It left its file while somebody used a buffer of it, who made it dirty and then wrote the buffer alone. (Linux
    // counts a tree's reference here too, and so keeps it unless somebody else looks at it just then.)
    WEIR_STATE(page_orphan, pages_.mem().pfn(page), 0, 1);
    if (!era_->has_private(page) || !buffers_.try_to_free_buffers(page)) WEIR_RETURN(Pageout::keep);
    WEIR_STATE(page_orphan, pages_.mem().pfn(page), 1, 1);
    page.clear(PageFlag::dirty);
    WEIR_RETURN(Pageout::clean);
  }
  // The tree's reference, its buffers' and this run's. With one more the write would be for nothing: the page could not
  // be freed after it.
  if (page_count(page) != (era_->has_private(page) ? 3 : 2)) WEIR_RETURN(Pageout::keep);
  if (mapping->a_ops == nullptr) WEIR_RETURN(Pageout::activate);
  if (!writeback_.clear_page_dirty_for_io(page)) WEIR_RETURN(Pageout::clean);
  if (mapping->host != nullptr) WEIR_STATE(write_dirty, pages_.mem().pfn(page), page.index, 0);
  WritebackControl wbc;
  wbc.nr_to_write = SWAP_CLUSTER_MAX;
  wbc.for_reclaim = true;
  page.set(PageFlag::reclaim);
  const Result<void> written = mapping->a_ops->writepage(page, wbc);
  if (written.error() == Errno::again) {
    page.clear(PageFlag::reclaim);
    WEIR_RETURN(Pageout::activate);
  }
  // Done already, or failed.
  if (!page.test(PageFlag::writeback)) page.clear(PageFlag::reclaim);
  vmstat_.inc_node_page_state(NodeStat::nr_vmscan_write);
  WEIR_RETURN(Pageout::success);
}

bool Vmscan::__remove_mapping(AddressSpace& mapping, Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  WEIR_RETURN(leave_tree(mapping, page));
}

bool Vmscan::leave_tree(AddressSpace& mapping, Page& page) {
  const SwpEntry entry{page.private_};
  const bool swapped = PageSwapCache(page);
  {
    ScopedLock guard(mapping.tree_lock);
    // The tree's reference and the isolation's. Frozen, the page can be found by nobody while it leaves.
    if (!page_ref_freeze(page, 2)) return false;
    // Looked at after the count: who dirtied the page through a reference and dropped it has done so in this order.
    if (page.test(PageFlag::dirty)) {
      page_ref_unfreeze(page, 2);
      return false;
    }
    Workingset* workingset = filemap_.workingset();
    if (swapped)
      cache_.__delete_from_swap_cache(page);
    else if (workingset != nullptr && lru_.page_is_file_cache(page) != 0)
      filemap_.__delete_from_page_cache(page, workingset->workingset_eviction(mapping, page));
    else
      filemap_.__delete_from_page_cache(page);
  }
  if (swapped) swap_.swapcache_free(entry);
  return true;
}

// An anonymous page whose content nobody wants back (MADV_FREE): it is in no tree, only the isolation has it.
bool Vmscan::drop_lazyfree(Page& page) {
  const bool gone = page_ref_freeze(page, 1);
  if (gone && page.test(PageFlag::dirty)) page_ref_unfreeze(page, 1);
  if (!gone || page.test(PageFlag::dirty)) return keep_locked(page, PageKeep::in_use), false;
  vmstat_.count_vm_event(VmEvent::pglazyfreed);
  filemap_.unlock_page(page);
  return true;
}

// A page without a file whose buffers are gone: only the isolation has it.
bool Vmscan::drop_orphan(Page& page) {
  if (!page_ref_freeze(page, 1)) return keep_locked(page, PageKeep::in_use), false;
  filemap_.unlock_page(page);
  return true;
}

// Phase 3 of one page, which is unmapped in hardware too. True: it is nobody's, count 0, unlocked. False: kept,
// unlocked.
bool Vmscan::reclaim_page(const Candidate& candidate, ScanControl& sc) {
  Page& page = *candidate.page;
  const Pfn pfn = pages_.mem().pfn(page);
  const uint64_t index = page.index;
  if (PageSwapCache(page) && !mmu_.captured(page)) {
    // Its task still writes there, or a device reads: the bytes can be neither compared nor written out.
    page.set(PageFlag::dirty);
    return activate_locked(page, PageKeep::pinned), false;
  }
  if (!mmu_.caps().has_dirty && PageAnon(page) && PageSwapCache(page)) {
    if (!PageIo::page_may_be_clean(page) || mmu_.test_dirty(page))
      page.set(PageFlag::dirty);
    else
      page.clear(PageFlag::dirty);
  }
  AddressSpace* mapping = cache_.page_mapping(page);
  const bool was_dirty = page_flags::PageDirty(page);
  const bool orphan = mapping == nullptr && !PageAnon(page) && page.test(PageFlag::private_);
  if (was_dirty) {
    if (!PageSwapBacked(page) && !orphan) {
      switch (era_->dirty_file_page(page, sc)) {
        case Candidate::Verdict::go_on: break;
        case Candidate::Verdict::keep: return keep_locked(page, PageKeep::file_dirty), false;
        case Candidate::Verdict::activate: return activate_locked(page, PageKeep::file_dirty), false;
      }
    }
    if (candidate.references == References::reclaim_clean) return keep_locked(page, PageKeep::dirty), false;
    if (!candidate.may_enter_fs) return keep_locked(page, PageKeep::no_fs), false;
    if (!sc.may_writepage) return keep_locked(page, PageKeep::dirty), false;
    switch (pageout(page, mapping, sc)) {
      case Pageout::keep: return keep_locked(page, PageKeep::in_use), false;
      case Pageout::activate: return activate_locked(page, PageKeep::no_room), false;
      case Pageout::success:
        // Unlocked. A device that answers at once leaves a page that can go now.
        if (page.test(PageFlag::writeback)) return keep(page, PageKeep::write_started), false;
        if (page.test(PageFlag::dirty)) return keep(page, PageKeep::write_failed), false;
        if (!era_->lock(page)) return keep(page, PageKeep::locked), false;
        if (page.test(PageFlag::writeback)) return keep_locked(page, PageKeep::write_started), false;
        if (page.test(PageFlag::dirty)) return keep_locked(page, PageKeep::dirty), false;
        mapping = cache_.page_mapping(page);
        break;
      case Pageout::clean: break;
    }
  }
  if (PageAnon(page) && !PageSwapBacked(page)) return drop_lazyfree(page);
  if (era_->has_private(page) && !buffers_.try_to_release_page(page, sc.gfp_mask))
    return activate_locked(page, PageKeep::buffers), false;
  if (orphan) return drop_orphan(page);
  const bool swapped = PageSwapCache(page);
  if (mapping == nullptr || !era_->remove_mapping(*mapping, page)) return keep_locked(page, PageKeep::in_use), false;
  if (!was_dirty) {
    WEIR_STATE(drop_clean, pfn, index, 0);
    if (swapped) vmstat_.count_vm_event(VmEvent::swap_clean_drop);
  }
  filemap_.unlock_page(page);
  lru_.clear_page_aged(page);
  return true;
}

int64_t Vmscan::shrink_page_list(PageList& pages, ScanControl& sc, Stat& stat) {
  WEIR_FLOW();
  PageList kept;
  int64_t reclaimed = 0;
  while (!pages.empty()) {
    cond_resched();
    Candidate batch[SWAP_CLUSTER_MAX];
    FlushBatch unmapped, aged;
    PageList to_free;
    unsigned n = 0;
    // (1) lock, references, slot, unmap
    while (n < SWAP_CLUSTER_MAX && !pages.empty()) {
      Page& page = pages.back();
      pages.pop_back();
      if (prepare_page(page, sc, stat, unmapped, aged, batch[n]))
        ++n;
      else
        kept.push_front(page);
    }
    // (2) hardware follows, for all of them at once
    if (unmapped.count > 0) mmu_.flush_batch(unmapped);
    if (!mmu_.caps().has_accessed) {
      Page* asked[SWAP_CLUSTER_MAX];
      unsigned nr_asked = 0;
      for (unsigned i = 0; i < n; ++i)
        if (batch[i].references == References::aging) asked[nr_asked++] = batch[i].page;
      age_batch(aged, asked, nr_asked);
      for (unsigned i = 0; i < n; ++i) {
        if (batch[i].references != References::aging || batch[i].page->test(PageFlag::aged)) continue;
        batch[i].verdict = Candidate::Verdict::activate;
        batch[i].reason = PageKeep::pinned;
      }
    }
    // (3) dirty test, write, leave the tree
    for (unsigned i = 0; i < n; ++i) {
      Page& page = *batch[i].page;
      switch (batch[i].verdict) {
        case Candidate::Verdict::go_on:
          if (reclaim_page(batch[i], sc)) {
            to_free.push_back(page);
            ++reclaimed;
            continue;
          }
          break;
        case Candidate::Verdict::keep: keep_locked(page, batch[i].reason); break;
        case Candidate::Verdict::activate: activate_locked(page, batch[i].reason); break;
      }
      kept.push_front(page);
    }
    // (4) free in a batch: nobody reads their bytes soon
    era_->free_pages(to_free);
  }
  pages.splice(pages.end(), kept);
  WEIR_RETURN(reclaimed);
}

// ---- Inactive lists ------------------------------------------------------------------------------------------------

void Vmscan::congestion_wait() {
  if (engine_thread().world != nullptr) (void)world().schedule_timeout(100_ms);
}

int64_t Vmscan::shrink_inactive_list(int64_t nr_to_scan, LruVec& lruvec, ScanControl& sc, LruList list) {
  WEIR_FLOW(list, nr_to_scan);
  const bool file = is_file_lru(list);
  const NodeStat isolated = file ? NodeStat::nr_isolated_file : NodeStat::nr_isolated_anon;
  for (bool stalled = false; too_many_isolated(file, sc); stalled = true) {
    if (stalled) WEIR_RETURN(0);
    congestion_wait();
    // Who is to die should not wait for others: it says that it made progress and leaves.
    if (fatal_signal_pending()) WEIR_RETURN(SWAP_CLUSTER_MAX);
  }
  lru_.lru_add_drain();
  if (!file && !mmu_.caps().has_accessed) age_ahead_of_tail();
  PageList pages, to_free;
  int64_t taken = 0, scanned = 0;
  {
    ScopedLock guard(node_.lru_lock);
    taken = isolate_lru_pages(nr_to_scan, lruvec, pages, scanned, sc, list);
    vmstat_.mod_node_page_state(isolated, taken);
    lruvec.reclaim_stat.recent_scanned[file ? 1 : 0] += static_cast<uint64_t>(taken);
  }
  const bool by_kswapd = current_is_kswapd();
  vmstat_.count_vm_events(by_kswapd ? VmEvent::pgscan_kswapd : VmEvent::pgscan_direct, static_cast<uint64_t>(scanned));
  if (taken == 0) WEIR_RETURN(0);
  Stat stat;
  const int64_t reclaimed = shrink_page_list(pages, sc, stat);
  vmstat_.count_vm_events(by_kswapd ? VmEvent::pgsteal_kswapd : VmEvent::pgsteal_direct,
                          static_cast<uint64_t>(reclaimed));
  putback_inactive_pages(pages, to_free);
  vmstat_.mod_node_page_state(isolated, -taken);
  era_->free_pages(to_free);

  era_->after_batch(stat, taken, sc);
  WEIR_RETURN(reclaimed);
}

}  // namespace weir
