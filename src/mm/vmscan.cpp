// src/mm/vmscan.cpp: who leaves memory, and when. See vmscan.hpp
#include "mm/vmscan.hpp"

#include <algorithm>

#include "kernel/freezer.hpp"
#include "kernel/kthread.hpp"

namespace weir {

namespace {

bool current_is_kswapd() { return (current_flags() & PF_KSWAPD) != 0; }

void cond_resched() {
  if (engine_thread().world != nullptr) world().cond_resched();
}

/// Integer square root.
int64_t int_sqrt(int64_t x) {
  int64_t root = 0;
  for (int64_t bit = int64_t{1} << 30; bit != 0; bit >>= 1)
    if ((root + bit) * (root + bit) <= x) root += bit;
  return root;
}

constexpr unsigned index_of(LruList list) { return static_cast<unsigned>(list); }
constexpr LruList EVICTABLE[] = {LruList::inactive_anon, LruList::active_anon, LruList::inactive_file,
                                 LruList::active_file};

}  // namespace

const char* page_keep_name(PageKeep reason) {
  static constexpr const char* names[] = {
      "locked by somebody else",
      "unevictable",
      "mapped, not to be unmapped now",
      "under writeback",
      "referenced",
      "referenced once",
      "aged only now",
      "pinned",
      "would need I/O",
      "no swap slot",
      "a mapping could not be removed",
      "dirty file page, left to the flusher",
      "dirty",
      "dirty, no file system to be entered",
      "in use",
      "the device has no room",
      "write started",
      "write failed",
  };
  static_assert(std::size(names) == static_cast<size_t>(PageKeep::count));
  return reason < PageKeep::count ? names[static_cast<unsigned>(reason)] : "?";
}

Vmscan::Vmscan(Node& node, PageAllocator& pages, Lru& lru, Rmap& rmap, Filemap& filemap, SwapFiles& swap,
               SwapCache& cache, PageWriteback& writeback, VmStat& vmstat, Mmu& mmu)
    : node_(node),
      pages_(pages),
      lru_(lru),
      rmap_(rmap),
      filemap_(filemap),
      swap_(swap),
      cache_(cache),
      writeback_(writeback),
      vmstat_(vmstat),
      mmu_(mmu) {}

// --------------------------------------------------------------------------------------------------------------
// balance

int64_t inactive_ratio(int64_t pages) {
  const int64_t gib = pages >> (30 - PAGE_SHIFT);
  return gib > 0 ? int_sqrt(10 * gib) : 1;
}

ScanCount scan_balance(const ScanBalanceInput& in) {
  const auto size = [&](LruList list) { return in.size[index_of(list)]; };
  const int64_t file_pages = size(LruList::inactive_file) + size(LruList::active_file);
  enum class Balance { equal, proportional, anon, file } balance;
  if (!in.may_swap)
    balance = Balance::file;
  else if (in.priority == 0 && in.swappiness != 0)
    balance = Balance::equal;  // close to the end: everything, at once
  else if (file_pages + in.free_pages <= in.high_wmark_pages && !in.inactive_anon_low &&
           (size(LruList::inactive_anon) >> in.priority) != 0)
    balance = Balance::anon;  // what is left of the page cache cannot bring the zone to its mark; it would only thrash
  else if (!in.inactive_file_low && (size(LruList::inactive_file) >> in.priority) != 0)
    balance = Balance::file;  // cache that nobody uses
  else
    balance = Balance::proportional;

  // How much a list of either kind yields: pages looked at for each that had to be put back.
  uint64_t weight[2];
  const uint64_t prio[2] = {static_cast<uint64_t>(in.swappiness), static_cast<uint64_t>(200 - in.swappiness)};
  for (unsigned kind = 0; kind < 2; ++kind)
    weight[kind] = prio[kind] * (in.stat.recent_scanned[kind] + 1) / (in.stat.recent_rotated[kind] + 1);
  const uint64_t whole = weight[0] + weight[1] + 1;

  ScanCount count;
  for (const LruList list : EVICTABLE) {
    const unsigned file = is_file_lru(list) ? 1 : 0;
    if ((balance == Balance::file && file == 0) || (balance == Balance::anon && file == 1)) continue;
    int64_t scan = size(list) >> in.priority;
    if (balance == Balance::proportional)
      scan = static_cast<int64_t>(static_cast<uint64_t>(scan) * weight[file] / whole);
    count.nr[index_of(list)] = scan;
    count.lru_pages += size(list);
  }
  return count;
}

bool Vmscan::inactive_list_is_low(bool file) const {
  WEIR_FLOW(file);
  // Without swap nobody ever comes for the inactive anonymous pages.
  if (!file && swap_.total_swap_pages() == 0) return false;
  const int64_t inactive = lru_.lru_size(file ? LruList::inactive_file : LruList::inactive_anon).v;
  const int64_t active = lru_.lru_size(file ? LruList::active_file : LruList::active_anon).v;
  return inactive * inactive_ratio(inactive + active) < active;
}

void Vmscan::get_scan_count(const ScanControl& sc, ScanCount& count) {
  WEIR_FLOW(sc.priority);
  ScanBalanceInput in;
  in.swappiness = swappiness();
  in.priority = sc.priority;
  in.may_swap = sc.may_swap && swap_.swap_has_room();
  for (const LruList list : EVICTABLE) in.size[index_of(list)] = lru_.lru_size(list).v;
  for (const Zone& zone : node_.zones) {
    if (!zone.populated()) continue;
    in.free_pages += zone.nr_free.load(std::memory_order_relaxed);
    in.high_wmark_pages += zone.wmark(Watermark::high);
  }
  in.inactive_anon_low = inactive_list_is_low(false);
  in.inactive_file_low = inactive_list_is_low(true);
  {
    ScopedLock guard(node_.lru_lock);
    ZoneReclaimStat& stat = node_.lruvec.reclaim_stat;
    const int64_t total[2] = {in.size[0] + in.size[1], in.size[2] + in.size[3]};
    for (unsigned kind = 0; kind < 2; ++kind) {
      if (static_cast<int64_t>(stat.recent_scanned[kind]) <= total[kind] / 4) continue;
      stat.recent_scanned[kind] /= 2;
      stat.recent_rotated[kind] /= 2;
    }
    in.stat = stat;
  }
  count = scan_balance(in);
}

PageCount Vmscan::zone_reclaimable_pages() const {
  PageCount nr = lru_.lru_size(LruList::inactive_file) + lru_.lru_size(LruList::active_file);
  if (swap_.swap_has_room()) nr += lru_.lru_size(LruList::inactive_anon) + lru_.lru_size(LruList::active_anon);
  return nr;
}

// ------------------------------------------------------------------------------------------------------- lists,
// isolation

int64_t Vmscan::isolate_lru_pages(int64_t nr_to_scan, PageList& to, int64_t& nr_scanned, const ScanControl& sc,
                                  LruList list) {
  WEIR_FLOW(list, nr_to_scan);
  PageList& from = node_.lruvec.lists[index_of(list)];
  const bool some_too_high = sc.reclaim_idx != ZoneType::NORMAL;
  PageList skipped;
  int64_t taken = 0;
  nr_scanned = 0;
  while (nr_scanned < nr_to_scan && !from.empty()) {
    Page& page = from.back();
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
    const LruList list = Lru::page_lru(page);
    const unsigned file = Lru::page_is_file_cache(page);
    if (put_isolated(page, list))
      to_free.push_back(page);
    else if (is_active_lru(list))
      ++node_.lruvec.reclaim_stat.recent_rotated[file];
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

// ---------------------------------------------------------------------------------------------------------- active
// lists

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

void Vmscan::shrink_active_list(int64_t nr_to_scan, ScanControl& sc, LruList list) {
  WEIR_FLOW(list, nr_to_scan);
  const unsigned file = is_file_lru(list) ? 1 : 0;
  const NodeStat isolated = file != 0 ? NodeStat::nr_isolated_file : NodeStat::nr_isolated_anon;
  const bool ask = file != 0 || mmu_.caps().has_accessed;
  PageList held, active, inactive, to_free;
  lru_.lru_add_drain();
  int64_t taken = 0, scanned = 0;
  {
    ScopedLock guard(node_.lru_lock);
    taken = isolate_lru_pages(nr_to_scan, held, scanned, sc, list);
    vmstat_.mod_node_page_state(isolated, taken);
    node_.lruvec.reclaim_stat.recent_scanned[file] += static_cast<uint64_t>(taken);
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
    lru_.clear_page_flag(page, PageFlag::active);
    inactive.push_front(page);
  }
  {
    ScopedLock guard(node_.lru_lock);
    // Referenced pages count as rotated though they go to the inactive list: they get there a second round before
    // reclaim.
    node_.lruvec.reclaim_stat.recent_rotated[file] += rotated;
    move_active_pages_to_lru(active, to_free, list);
    move_active_pages_to_lru(inactive, to_free, file != 0 ? LruList::inactive_file : LruList::inactive_anon);
    vmstat_.mod_node_page_state(isolated, -taken);
  }
  pages_.free_hot_cold_page_list(to_free, Temperature::cold);
}

// ----------------------------------------------------------------------------------------------------------------
// aging

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

// ------------------------------------------------------------------------------------------------------- one batch of
// pages

void Vmscan::keep(Page& page, PageKeep reason) { WEIR_STATE(page_keep, pages_.mem().pfn(page), reason, 0); }

void Vmscan::keep_locked(Page& page, PageKeep reason) {
  keep(page, reason);
  filemap_.unlock_page(page);
}

void Vmscan::activate_locked(Page& page, PageKeep reason) {
  // It stays in memory, so its slot is better used for another page.
  if (PageSwapCache(page) && (swap_.vm_swap_full() || page.test(PageFlag::mlocked))) cache_.try_to_free_swap(page);
  if (!page.test(PageFlag::mlocked)) {
    lru_.set_page_flag(page, PageFlag::active);
    lru_.clear_page_aged(page);
    vmstat_.count_vm_event(VmEvent::pgactivate);
  }
  keep_locked(page, reason);
}

Vmscan::References Vmscan::page_check_references(Page& page, FlushBatch& aged) {
  WEIR_FLOW(pages_.mem().pfn(page));
  const bool anon = PageSwapBacked(page);
  const bool staged = page.test(PageFlag::aged);
  uint64_t vm_flags = 0;
  const int ptes = rmap_.page_referenced(page, &vm_flags, aged);
  const bool referenced = page.test(PageFlag::referenced);
  if (referenced) lru_.clear_page_flag(page, PageFlag::referenced);
  // Unmapping will find the lock, and cull the page.
  if ((vm_flags & VM_LOCKED) != 0) return References::reclaim;
  if (!mmu_.caps().has_accessed && PageAnon(page) && page_mapped(page) && !staged) return References::aging;
  if (ptes > 0) {
    if (anon) return References::activate;
    // A file page used once gets one more round: to tell a stream from a working set.
    lru_.set_page_flag(page, PageFlag::referenced);
    if (referenced || ptes > 1 || (vm_flags & VM_EXEC) != 0) return References::activate;
    return References::keep;
  }
  return referenced && !anon ? References::reclaim_clean : References::reclaim;
}

// Phase 1 of one page. True: a candidate, locked. False: kept, unlocked.
bool Vmscan::prepare_page(Page& page, ScanControl& sc, Stat& stat, FlushBatch& unmapped, FlushBatch& aged,
                          Candidate& candidate) {
  if (!filemap_.trylock_page(page)) return keep(page, PageKeep::locked), false;
  sc.nr_scanned += PageCount(1);
  if (!Lru::page_evictable(page)) return activate_locked(page, PageKeep::unevictable), false;
  if (!sc.may_unmap && page_mapped(page)) return keep_locked(page, PageKeep::may_not_unmap), false;
  // They cost more to get back: slab caches pay double for them.
  if (page_mapped(page) || PageSwapCache(page)) sc.nr_scanned += PageCount(1);

  const bool file = !PageSwapBacked(page);
  const bool writeback = page.test(PageFlag::writeback);
  const bool dirty = file && page.test(PageFlag::dirty);
  if (dirty || writeback) ++stat.nr_dirty;
  if (dirty && !writeback) ++stat.nr_unqueued_dirty;
  bool may_enter_fs = sc.gfp_mask.has(__GFP_FS) || (PageSwapCache(page) && sc.gfp_mask.has(__GFP_IO));
  if (writeback && page.test(PageFlag::reclaim)) ++stat.nr_congested;
  if (writeback) {
    // Met for the second time before its write has ended: the scan is faster than the device.
    if (current_is_kswapd() && page.test(PageFlag::reclaim) && pgdat_writeback_.load(std::memory_order_relaxed)) {
      ++stat.nr_immediate;
    } else {
      // The end of the write puts it at the tail.
      page.set(PageFlag::reclaim);
      ++stat.nr_writeback;
    }
    return activate_locked(page, PageKeep::under_writeback), false;
  }

  candidate = {.page = &page};
  candidate.references = page_check_references(page, aged);
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
  if (PageAnon(page) && PageSwapBacked(page) && !PageSwapCache(page)) {
    if (!sc.gfp_mask.has(__GFP_IO)) return decide(Candidate::Verdict::keep, PageKeep::no_io);
    if (!cache_.add_to_swap(page)) return decide(Candidate::Verdict::activate, PageKeep::no_slot);
    may_enter_fs = true;
  }
  candidate.may_enter_fs = may_enter_fs;
  if (page_mapped(page) && rmap_.try_to_unmap(page, unmapped) == TryToUnmap::fail)
    return decide(Candidate::Verdict::activate, PageKeep::not_unmapped);
  return true;
}

Vmscan::Pageout Vmscan::pageout(Page& page, AddressSpace* mapping, ScanControl& sc) {
  WEIR_FLOW(pages_.mem().pfn(page));
  (void)sc;
  // The tree's reference and this run's. With one more the write would be for nothing: the page could not be freed
  // after it.
  if (mapping == nullptr || page_count(page) != 2) return Pageout::keep;
  if (mapping->a_ops == nullptr) return Pageout::activate;
  if (!writeback_.clear_page_dirty_for_io(page)) return Pageout::clean;
  if (mapping->host != nullptr) WEIR_STATE(write_dirty, pages_.mem().pfn(page), page.index, 0);
  WritebackControl wbc;
  wbc.nr_to_write = SWAP_CLUSTER_MAX;
  wbc.for_reclaim = true;
  page.set(PageFlag::reclaim);
  const Result<void> written = mapping->a_ops->writepage(page, wbc);
  if (written.error() == Errno::again) {
    page.clear(PageFlag::reclaim);
    return Pageout::activate;
  }
  // Done already, or failed.
  if (!page.test(PageFlag::writeback)) page.clear(PageFlag::reclaim);
  vmstat_.inc_node_page_state(NodeStat::nr_vmscan_write);
  return Pageout::success;
}

bool Vmscan::__remove_mapping(AddressSpace& mapping, Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
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
    if (swapped)
      cache_.__delete_from_swap_cache(page);
    else
      filemap_.__delete_from_page_cache(page);
  }
  if (swapped) swap_.swapcache_free(entry);
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
    lru_.set_page_flag(page, PageFlag::dirty);
    return activate_locked(page, PageKeep::pinned), false;
  }
  if (!mmu_.caps().has_dirty && PageAnon(page) && PageSwapCache(page)) {
    if (!PageIo::page_may_be_clean(page) || mmu_.test_dirty(page))
      lru_.set_page_flag(page, PageFlag::dirty);
    else
      lru_.clear_page_flag(page, PageFlag::dirty);
  }
  AddressSpace* mapping = cache_.page_mapping(page);
  const bool was_dirty = page.test(PageFlag::dirty);
  if (was_dirty) {
    if (!PageSwapBacked(page) &&
        !(current_is_kswapd() && page.test(PageFlag::reclaim) && pgdat_dirty_.load(std::memory_order_relaxed))) {
      // One page here, one there is the slowest way to write a file. The flusher is told; met again, the page goes at
      // once.
      page.set(PageFlag::reclaim);
      return activate_locked(page, PageKeep::file_dirty), false;
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
        if (!filemap_.trylock_page(page)) return keep(page, PageKeep::locked), false;
        if (page.test(PageFlag::writeback)) return keep_locked(page, PageKeep::write_started), false;
        if (page.test(PageFlag::dirty)) return keep_locked(page, PageKeep::dirty), false;
        mapping = cache_.page_mapping(page);
        break;
      case Pageout::clean: break;
    }
  }
  const bool swapped = PageSwapCache(page);
  if (mapping == nullptr || !__remove_mapping(*mapping, page)) return keep_locked(page, PageKeep::in_use), false;
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
    pages_.free_hot_cold_page_list(to_free, Temperature::cold);
  }
  pages.splice(pages.end(), kept);
  return reclaimed;
}

// -------------------------------------------------------------------------------------------------------- inactive
// lists

void Vmscan::congestion_wait() {
  if (engine_thread().world != nullptr) (void)world().schedule_timeout(100_ms);
}

int64_t Vmscan::shrink_inactive_list(int64_t nr_to_scan, ScanControl& sc, LruList list) {
  WEIR_FLOW(list, nr_to_scan);
  const bool file = is_file_lru(list);
  const NodeStat isolated = file ? NodeStat::nr_isolated_file : NodeStat::nr_isolated_anon;
  for (bool stalled = false; too_many_isolated(file, sc); stalled = true) {
    if (stalled) return 0;
    congestion_wait();
    // Who is to die should not wait for others: it says that it made progress and leaves.
    if (fatal_signal_pending()) return SWAP_CLUSTER_MAX;
  }
  lru_.lru_add_drain();
  if (!file && !mmu_.caps().has_accessed) age_ahead_of_tail();
  PageList pages, to_free;
  int64_t taken = 0, scanned = 0;
  {
    ScopedLock guard(node_.lru_lock);
    taken = isolate_lru_pages(nr_to_scan, pages, scanned, sc, list);
    vmstat_.mod_node_page_state(isolated, taken);
    node_.lruvec.reclaim_stat.recent_scanned[file ? 1 : 0] += static_cast<uint64_t>(taken);
  }
  const bool by_kswapd = current_is_kswapd();
  vmstat_.count_vm_events(by_kswapd ? VmEvent::pgscan_kswapd : VmEvent::pgscan_direct, static_cast<uint64_t>(scanned));
  if (taken == 0) return 0;
  Stat stat;
  const int64_t reclaimed = shrink_page_list(pages, sc, stat);
  vmstat_.count_vm_events(by_kswapd ? VmEvent::pgsteal_kswapd : VmEvent::pgsteal_direct,
                          static_cast<uint64_t>(reclaimed));
  putback_inactive_pages(pages, to_free);
  vmstat_.mod_node_page_state(isolated, -taken);
  pages_.free_hot_cold_page_list(to_free, Temperature::cold);

  // What the scan met tells how the devices do.
  if (stat.nr_writeback != 0 && stat.nr_writeback == taken) pgdat_writeback_.store(true, std::memory_order_relaxed);
  if (stat.nr_dirty != 0 && stat.nr_dirty == stat.nr_congested) pgdat_congested_.store(true, std::memory_order_relaxed);
  if (stat.nr_unqueued_dirty != 0 && flusher_ != nullptr && stat.nr_unqueued_dirty == taken) {
    flusher_->wakeup_flusher_threads(WB_REASON_VMSCAN);
    pgdat_dirty_.store(true, std::memory_order_relaxed);
  }
  if (stat.nr_immediate != 0) congestion_wait();
  if (!by_kswapd && pgdat_congested_.load(std::memory_order_relaxed)) congestion_wait();
  return reclaimed;
}

int64_t Vmscan::shrink_list(LruList list, int64_t nr_to_scan, ScanControl& sc) {
  WEIR_FLOW(list, nr_to_scan);
  if (!is_active_lru(list)) return shrink_inactive_list(nr_to_scan, sc, list);
  if (inactive_list_is_low(is_file_lru(list))) shrink_active_list(nr_to_scan, sc, list);
  return 0;
}

void Vmscan::shrink_node_memcg(ScanControl& sc, int64_t& lru_pages) {
  WEIR_FLOW(sc.priority);
  ScanCount target;
  get_scan_count(sc, target);
  lru_pages = target.lru_pages;
  int64_t left[NR_LRU_LISTS];
  std::copy(std::begin(target.nr), std::end(target.nr), left);
  const auto at = [](LruList list) { return index_of(list); };
  int64_t reclaimed = 0;
  // A first direct pass looks at a 4096th of the lists: it does all of it, so that both kinds age alike.
  bool adjusted = !current_is_kswapd() && sc.priority == DEF_PRIORITY;
  while (left[at(LruList::inactive_anon)] != 0 || left[at(LruList::active_file)] != 0 ||
         left[at(LruList::inactive_file)] != 0) {
    for (const LruList list : EVICTABLE) {
      const int64_t n = std::min(left[at(list)], SWAP_CLUSTER_MAX);
      if (n == 0) continue;
      left[at(list)] -= n;
      reclaimed += shrink_list(list, n, sc);
    }
    cond_resched();
    if (reclaimed < sc.nr_to_reclaim.v || adjusted) continue;
    // Enough. The kind with less left to do stops; the other goes on until it has done the same share of its own.
    const int64_t anon = left[at(LruList::inactive_anon)] + left[at(LruList::active_anon)];
    const int64_t file = left[at(LruList::inactive_file)] + left[at(LruList::active_file)];
    if (anon == 0 || file == 0) break;
    const bool stop_anon = anon < file;
    const LruList stop[2] = {stop_anon ? LruList::inactive_anon : LruList::inactive_file,
                             stop_anon ? LruList::active_anon : LruList::active_file};
    const LruList go_on[2] = {stop_anon ? LruList::inactive_file : LruList::inactive_anon,
                              stop_anon ? LruList::active_file : LruList::active_anon};
    const int64_t percent_left =
        (stop_anon ? anon : file) * 100 / (target.nr[at(stop[0])] + target.nr[at(stop[1])] + 1);
    left[at(stop[0])] = left[at(stop[1])] = 0;
    for (const LruList list : go_on) {
      const int64_t done = target.nr[at(list)] - left[at(list)];
      left[at(list)] = std::max<int64_t>(target.nr[at(list)] * (100 - percent_left) / 100 - done, 0);
    }
    adjusted = true;
  }
  sc.nr_reclaimed += PageCount(reclaimed);
  // Anonymous pages age even while only file pages are reclaimed, or they would all look alike when their time comes.
  if (inactive_list_is_low(false)) shrink_active_list(SWAP_CLUSTER_MAX, sc, LruList::active_anon);
}

bool Vmscan::shrink_node(ScanControl& sc) {
  WEIR_FLOW(node_.id, sc.priority);
  const PageCount scanned = sc.nr_scanned, reclaimed = sc.nr_reclaimed;
  int64_t lru_pages = 0;
  shrink_node_memcg(sc, lru_pages);
  shrink_slab(sc.gfp_mask, (sc.nr_scanned - scanned).v, lru_pages);
  const bool progress = sc.nr_reclaimed > reclaimed;
  if (progress) node_.kswapd_failures.store(0, std::memory_order_relaxed);
  return progress;
}

void Vmscan::shrink_zones(ScanControl& sc) {
  WEIR_FLOW(sc.priority);
  shrink_node(sc);
}

PageCount Vmscan::do_try_to_free_pages(ScanControl& sc) {
  WEIR_FLOW(sc.order, sc.gfp_mask);
  WEIR_STATE(reclaim_start, sc.reason, sc.priority, sc.nr_to_reclaim);
  if (sc.reason == ReclaimReason::direct) vmstat_.count_vm_event(VmEvent::allocstall);
  for (; sc.priority >= 0; --sc.priority) {
    sc.nr_scanned = PageCount(0);
    shrink_zones(sc);
    if (sc.nr_reclaimed >= sc.nr_to_reclaim) break;
    if (sc.priority < DEF_PRIORITY - 2) sc.may_writepage = true;
  }
  return sc.nr_reclaimed;
}

// -------------------------------------------------------------------------------------------------------- direct
// reclaim

// Half of the reserves is for those who free memory, and while that is left everybody may try.
bool Vmscan::allow_direct_reclaim() const {
  if (node_.kswapd_failures.load(std::memory_order_relaxed) >= MAX_RECLAIM_RETRIES) return true;
  int64_t reserve = 0, free = 0;
  for (const Zone& zone : node_.zones) {
    if (!zone.populated()) continue;
    reserve += zone.wmark(Watermark::min);
    free += zone.nr_free.load(std::memory_order_relaxed);
  }
  return reserve == 0 || free > reserve / 2 || zone_reclaimable_pages().v == 0;
}

// True: the task was killed while it waited, and shall not reclaim.
bool Vmscan::throttle_direct_reclaim(gfp_t gfp) {
  WEIR_FLOW(gfp);
  // A kthread may be what the others wait for; who dies will free more than reclaim finds.
  if ((current_flags() & PF_KTHREAD) != 0 || fatal_signal_pending()) return false;
  if (node_.kswapd == nullptr || allow_direct_reclaim()) return false;
  vmstat_.count_vm_event(VmEvent::pgscan_direct_throttle);
  const auto may_go_on = [&] {
    if (allow_direct_reclaim() || fatal_signal_pending()) return true;
    wakeup_kswapd(ZoneType::NORMAL, Order(0));
    return false;
  };
  // Who holds a file system's locks may stand in kswapd's way.
  if (!gfp.has(__GFP_FS)) {
    (void)pfmemalloc_wait_.wait_timeout(1_s, may_go_on);
  } else {
    while (!pfmemalloc_wait_.wait_timeout(1_s, may_go_on)) {
    }
  }
  return fatal_signal_pending();
}

PageCount Vmscan::try_to_free_pages(Order order, gfp_t gfp) {
  WEIR_FLOW(order, gfp);
  ScanControl sc;
  sc.gfp_mask = current_gfp_context(gfp);
  sc.reclaim_idx = gfp_zone(gfp);
  sc.order = order;
  if (throttle_direct_reclaim(sc.gfp_mask)) return PageCount(1);
  return do_try_to_free_pages(sc);
}

PageCount Vmscan::shrink_all_memory(PageCount n) {
  WEIR_FLOW(n);
  const ThreadFlagScope reclaiming(PF_MEMALLOC);
  ScanControl sc;
  sc.nr_to_reclaim = n;
  sc.gfp_mask = GFP_HIGHUSER_MOVABLE;
  sc.reason = ReclaimReason::limit;
  return do_try_to_free_pages(sc);
}

// ----------------------------------------------------------------------------------------------------------- slab
// caches

void Vmscan::register_shrinker(Shrinker& shrinker) {
  ScopedWrite guard(shrinker_rwsem_);
  shrinker.next_ = shrinkers_;
  shrinkers_ = &shrinker;
}

void Vmscan::unregister_shrinker(Shrinker& shrinker) {
  ScopedWrite guard(shrinker_rwsem_);
  for (Shrinker** at = &shrinkers_; *at != nullptr; at = &(*at)->next_) {
    if (*at != &shrinker) continue;
    *at = shrinker.next_;
    return;
  }
}

// Objects in the proportion in which pages were looked at; what cannot be done now is owed.
int64_t Vmscan::do_shrink_slab(Shrinker& shrinker, int64_t nr_scanned, int64_t nr_eligible) {
  WEIR_FLOW(nr_scanned, nr_eligible);
  const int64_t freeable = shrinker.count_objects().v;
  if (freeable <= 0) return 0;
  const int64_t deferred = shrinker.nr_deferred_.exchange(0, std::memory_order_acq_rel);
  const int64_t delta = static_cast<int64_t>(static_cast<__int128>(4 * nr_scanned / std::max(shrinker.seeks, 1)) *
                                             freeable / (nr_eligible + 1));
  int64_t total = deferred + delta;
  // A debt from long ago must not empty the cache on a breath of pressure.
  if (delta < freeable / 4) total = std::min(total, freeable / 2);
  total = std::min(total, 2 * freeable);
  int64_t freed = 0, done = 0;
  while (total >= SHRINK_BATCH || total >= freeable) {
    const int64_t n = std::min(SHRINK_BATCH, total);
    const int64_t got = shrinker.scan_objects(PageCount(n)).v;
    if (got < 0) break;
    freed += got;
    vmstat_.count_vm_events(VmEvent::slabs_scanned, static_cast<uint64_t>(n));
    total -= n;
    done += n;
    if (n == 0) break;
    cond_resched();
  }
  shrinker.nr_deferred_.fetch_add(std::max<int64_t>(deferred + delta - done, 0), std::memory_order_acq_rel);
  return freed;
}

int64_t Vmscan::shrink_slab(gfp_t gfp, int64_t nr_scanned, int64_t nr_eligible) {
  WEIR_FLOW(gfp, nr_scanned, nr_eligible);
  if (nr_scanned == 0) nr_scanned = SWAP_CLUSTER_MAX;
  // Somebody registers a shrinker: it may itself be waiting for memory.
  if (!shrinker_rwsem_.down_read_trylock()) return 1;
  int64_t freed = 0;
  for (Shrinker* shrinker = shrinkers_; shrinker != nullptr; shrinker = shrinker->next_)
    freed += do_shrink_slab(*shrinker, nr_scanned, nr_eligible);
  shrinker_rwsem_.up_read();
  return freed;
}

// -----------------------------------------------------------------------------------------------------------------
// kswapd

bool Vmscan::pgdat_balanced(Order order, ZoneType classzone) const {
  bool any = false;
  for (unsigned i = 0; i <= static_cast<unsigned>(classzone); ++i) {
    Zone& zone = node_.zones[i];
    if (zone.managed_pages.load(std::memory_order_relaxed) <= 0) continue;
    any = true;
    if (pages_.zone_watermark_ok_safe(zone, order, zone.wmark(Watermark::high), classzone)) return true;
  }
  return !any;
}

ZoneType Vmscan::kswapd_classzone(ZoneType fallback) const {
  const int32_t asked = node_.kswapd_classzone.load(std::memory_order_acquire);
  return asked < 0 ? fallback : static_cast<ZoneType>(asked);
}

// A wish stands beside others: the largest of them is what kswapd works for.
void Vmscan::put_back_request(Order order, ZoneType classzone) {
  const auto raise = [](std::atomic<int32_t>& value, int32_t to) {
    int32_t now = value.load(std::memory_order_relaxed);
    while (now < to && !value.compare_exchange_weak(now, to, std::memory_order_acq_rel)) {
    }
  };
  raise(node_.kswapd_classzone, static_cast<int32_t>(classzone));
  raise(node_.kswapd_order, order.v);
}

void Vmscan::wakeup_kswapd(ZoneType classzone, Order order) {
  WEIR_FLOW(classzone, order);
  put_back_request(order, classzone);
  if (node_.kswapd_wait.empty()) return;
  // Tried often enough for nothing: direct reclaim shows when that changes.
  if (node_.kswapd_failures.load(std::memory_order_relaxed) >= MAX_RECLAIM_RETRIES) return;
  if (pgdat_balanced(order, classzone)) return;
  kswapd_wakeups_.fetch_add(1, std::memory_order_acq_rel);
  node_.kswapd_wait.wake_all();
}

bool Vmscan::prepare_kswapd_sleep(Order order, ZoneType classzone) {
  // Nobody shall wait for a kswapd that sleeps.
  pfmemalloc_wait_.wake_all();
  if (node_.kswapd_failures.load(std::memory_order_relaxed) >= MAX_RECLAIM_RETRIES) return true;
  if (!pgdat_balanced(order, classzone)) return false;
  pgdat_congested_.store(false, std::memory_order_relaxed);
  pgdat_dirty_.store(false, std::memory_order_relaxed);
  pgdat_writeback_.store(false, std::memory_order_relaxed);
  return true;
}

// A short sleep first: allocations that come in bursts would else wake kswapd for each.
void Vmscan::kswapd_try_to_sleep(Order alloc_order, Order reclaim_order, ZoneType classzone) {
  WEIR_FLOW(alloc_order, reclaim_order);
  if (freezing(current()) || kthread_should_stop()) return;
  const uint64_t seen = kswapd_wakeups_.load(std::memory_order_acquire);
  const auto woken = [&] { return kswapd_wakeups_.load(std::memory_order_acquire) != seen || kthread_should_stop(); };
  bool early = false;
  if (prepare_kswapd_sleep(reclaim_order, classzone)) {
    early = node_.kswapd_wait.wait_timeout(100_ms, woken);
    // Woken early: what it was to do before is still to be done.
    if (early) put_back_request(reclaim_order, kswapd_classzone(classzone));
  }
  if (!early && prepare_kswapd_sleep(reclaim_order, classzone)) {
    node_.kswapd_wait.wait(woken);
  } else {
    vmstat_.count_vm_event(early ? VmEvent::kswapd_low_wmark_hit_quickly : VmEvent::kswapd_high_wmark_hit_quickly);
  }
}

// Linux's goal: as much as brings every zone from nothing to its high mark. True if so much was looked at.
bool Vmscan::kswapd_shrink_node(ScanControl& sc) {
  WEIR_FLOW(sc.priority);
  sc.nr_to_reclaim = PageCount(0);
  for (unsigned i = 0; i <= static_cast<unsigned>(sc.reclaim_idx); ++i) {
    const Zone& zone = node_.zones[i];
    if (zone.managed_pages.load(std::memory_order_relaxed) > 0)
      sc.nr_to_reclaim += PageCount(std::max(zone.wmark(Watermark::high), SWAP_CLUSTER_MAX));
  }
  shrink_node(sc);
  // Enough pages are free for the block to exist, were they side by side; more would not help.
  if (sc.order.v > 0 && sc.nr_reclaimed.v >= int64_t{2} << sc.order.v) sc.order = Order(0);
  return sc.nr_scanned >= sc.nr_to_reclaim;
}

void Vmscan::age_active_anon(ScanControl& sc) {
  if (swap_.total_swap_pages() == 0) return;
  if (inactive_list_is_low(false)) shrink_active_list(SWAP_CLUSTER_MAX, sc, LruList::active_anon);
}

Order Vmscan::balance_pgdat(Order order, ZoneType classzone) {
  WEIR_FLOW(order, classzone);
  ScanControl sc;
  sc.order = order;
  sc.reclaim_idx = classzone;
  sc.reason = ReclaimReason::kswapd;
  vmstat_.count_vm_event(VmEvent::pageoutrun);
  WEIR_STATE(reclaim_start, sc.reason, sc.priority, sc.nr_to_reclaim);
  do {
    const PageCount before = sc.nr_reclaimed;
    bool raise_priority = true;
    if (pgdat_balanced(sc.order, classzone)) return sc.order;
    {
      // A fork comes before or after it, and finds no page locked by it.
      KthreadPass pass;
      age_active_anon(sc);
      if (sc.priority < DEF_PRIORITY - 2) sc.may_writepage = true;
      sc.nr_scanned = PageCount(0);
      if (kswapd_shrink_node(sc)) raise_priority = false;
      if (!pfmemalloc_wait_.empty() && allow_direct_reclaim()) pfmemalloc_wait_.wake_all();
    }
    if (try_to_freeze() || kthread_should_stop()) break;
    if (raise_priority || sc.nr_reclaimed == before) --sc.priority;
  } while (sc.priority >= 1);
  if (sc.nr_reclaimed.v == 0) node_.kswapd_failures.fetch_add(1, std::memory_order_relaxed);
  return sc.order;
}

void Vmscan::kswapd(void* data) {
  WEIR_FLOW();
  auto& self = *static_cast<Vmscan*>(data);
  Node& node = self.node_;
  // It frees memory, so it may use the reserves, and the last device that takes pages.
  current().flags |= PF_MEMALLOC | PF_SWAPWRITE | PF_KSWAPD;
  Order alloc_order{}, reclaim_order{};
  ZoneType classzone = ZoneType::NORMAL;
  for (;;) {
    self.kswapd_try_to_sleep(alloc_order, reclaim_order, classzone);
    alloc_order = reclaim_order = Order(static_cast<uint8_t>(node.kswapd_order.exchange(0, std::memory_order_acq_rel)));
    classzone = self.kswapd_classzone(ZoneType::NORMAL);
    node.kswapd_classzone.store(-1, std::memory_order_release);
    const bool was_frozen = try_to_freeze();
    if (kthread_should_stop()) break;
    // What was asked before the freeze is old; it will be asked again.
    if (was_frozen) continue;
    reclaim_order = self.balance_pgdat(alloc_order, classzone);
  }
  current().flags &= ~static_cast<uint32_t>(PF_MEMALLOC | PF_SWAPWRITE | PF_KSWAPD);
}

Result<void> Vmscan::kswapd_run(World& world) {
  WEIR_FLOW(node_.id);
  if (node_.kswapd != nullptr) return {};
  char name[] = "kswapd0";
  name[6] = static_cast<char>('0' + node_.id.v % 10);
  node_.kswapd = kthread_run(world, kswapd, this, name);
  if (node_.kswapd == nullptr) return Errno::nomem;
  return {};
}

void Vmscan::kswapd_stop() {
  if (node_.kswapd == nullptr) return;
  node_.kswapd->world->kthread_stop(*node_.kswapd);
  node_.kswapd = nullptr;
  pfmemalloc_wait_.wake_all();
}

}  // namespace weir
