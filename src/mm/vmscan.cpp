// src/mm/vmscan.cpp: how much is reclaimed, and when: balance, one node, direct reclaim, slab caches, kswapd. What a
// scan does with the pages of a list: vmscan_list.cpp. See vmscan.hpp
#include <algorithm>
#include <new>

#include "kernel/freezer.hpp"
#include "kernel/kthread.hpp"
#include "mm/vmscan_era.hpp"

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
      "buffers in use",
  };
  static_assert(std::size(names) == static_cast<size_t>(PageKeep::count));
  return reason < PageKeep::count ? names[static_cast<unsigned>(reason)] : "?";
}

Vmscan::Vmscan(Node& node, PageAllocator& pages, Lru& lru, Rmap& rmap, Filemap& filemap, SwapFiles& swap,
               SwapCache& cache, PageWriteback& writeback, Buffers& buffers, VmStat& vmstat, Mmu& mmu, KernelEra kernel)
    : node_(node),
      pages_(pages),
      lru_(lru),
      rmap_(rmap),
      filemap_(filemap),
      swap_(swap),
      cache_(cache),
      writeback_(writeback),
      buffers_(buffers),
      vmstat_(vmstat),
      mmu_(mmu) {
  Era::place(*this, kernel);
}

void Vmscan::Era::place(Vmscan& self, KernelEra kernel) {
  switch (kernel) {
    case KernelEra::linux_2_6_20: place_2_6_20(self); break;
    case KernelEra::linux_3: place_3(self); break;
    case KernelEra::linux_4_14: place_4_14(self); break;
  }
}

PageCount Vmscan::try_to_free_pages(Order order, gfp_t gfp) { return era_->try_to_free_pages(order, gfp); }
void Vmscan::wakeup_kswapd(ZoneType classzone, Order order) { era_->wakeup_kswapd(classzone, order); }

void Vmscan::kswapd(void* self) {
  WEIR_FLOW();
  // It frees memory, so it may use the reserves, and the last device that takes pages.
  current().flags |= PF_MEMALLOC | PF_SWAPWRITE | PF_KSWAPD;
  static_cast<Vmscan*>(self)->era_->kswapd_loop();
  current().flags &= ~static_cast<uint32_t>(PF_MEMALLOC | PF_SWAPWRITE | PF_KSWAPD);
}

// ---- Balance -------------------------------------------------------------------------------------------------------

int64_t inactive_ratio(int64_t pages) {
  const int64_t gib = pages >> (30 - PAGE_SHIFT);
  return gib > 0 ? int_sqrt(10 * gib) : 1;
}

ScanCount scan_balance(const ScanBalanceInput& in) {
  const auto size = [&](LruList list) { return in.size[index_of(list)]; };
  const int64_t file_pages = size(LruList::inactive_file) + size(LruList::active_file);
  enum class Balance { equal, proportional, anon, file } balance;
  if (!in.may_swap)
    balance = Balance::file;  // NOLINT(bugprone-branch-clone): a rule each, asked in this order
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

PageReferences references_of(const ReferencesSeen& seen) {
  // Unmapping will find the lock, and cull the page.
  if ((seen.vm_flags & VM_LOCKED) != 0) return PageReferences::reclaim;
  if (seen.unaged) return PageReferences::aging;
  if (seen.ptes > 0) {
    if (seen.swapbacked) return PageReferences::activate;
    const bool often = seen.referenced || seen.ptes > 1 || (seen.vm_flags & VM_EXEC) != 0;
    return often ? PageReferences::activate : PageReferences::keep;
  }
  return seen.referenced && !seen.swapbacked ? PageReferences::reclaim_clean : PageReferences::reclaim;
}

bool Vmscan::inactive_list_is_low(bool file, Asked why) const {
  WEIR_FLOW(file);
  // Without swap nobody ever comes for the inactive anonymous pages.
  if (!file && swap_.total_swap_pages() == 0) return false;
  const int64_t inactive = lru_.lru_size(file ? LruList::inactive_file : LruList::inactive_anon).v;
  const int64_t active = lru_.lru_size(file ? LruList::active_file : LruList::active_anon).v;
  // Pages come back that were thrown out: what is active is no better than they are, and must compete.
  if (file && why == Asked::to_demote &&
      node_.lruvec.refaults.load(std::memory_order_relaxed) != vmstat_.event(VmEvent::workingset_activate))
    return active > 0;
  return inactive * inactive_ratio(inactive + active) < active;
}

void Vmscan::snapshot_refaults() {
  node_.lruvec.refaults.store(vmstat_.event(VmEvent::workingset_activate), std::memory_order_relaxed);
}

/// What was long ago counts less: halved when it is more than a quarter of the lists.
void Vmscan::scan_stat(ZoneReclaimStat& stat, const int64_t (&size)[NR_LRU_LISTS]) {
  const int64_t total[2] = {size[0] + size[1], size[2] + size[3]};
  for (unsigned kind = 0; kind < 2; ++kind) {
    if (static_cast<int64_t>(stat.recent_scanned[kind]) <= total[kind] / 4) continue;
    stat.recent_scanned[kind] /= 2;
    stat.recent_rotated[kind] /= 2;
  }
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
  in.inactive_anon_low = inactive_list_is_low(false, Asked::for_balance);
  in.inactive_file_low = inactive_list_is_low(true, Asked::for_balance);
  {
    ScopedLock guard(node_.lru_lock);
    scan_stat(node_.lruvec.reclaim_stat, in.size);
    in.stat = node_.lruvec.reclaim_stat;
  }
  count = scan_balance(in);
}

PageCount Vmscan::zone_reclaimable_pages() const {
  PageCount nr = lru_.lru_size(LruList::inactive_file) + lru_.lru_size(LruList::active_file);
  if (swap_.swap_has_room()) nr += lru_.lru_size(LruList::inactive_anon) + lru_.lru_size(LruList::active_anon);
  return nr;
}

// ---- One node ----------------------------------------------------------------------------------------------------

int64_t Vmscan::shrink_list(LruList list, int64_t nr_to_scan, ScanControl& sc) {
  WEIR_FLOW(list, nr_to_scan);
  if (!is_active_lru(list)) return shrink_inactive_list(nr_to_scan, node_lists(), sc, list);
  if (inactive_list_is_low(is_file_lru(list), Asked::to_demote)) shrink_active_list(nr_to_scan, node_lists(), sc, list);
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
  if (inactive_list_is_low(false, Asked::to_demote))
    shrink_active_list(SWAP_CLUSTER_MAX, node_lists(), sc, LruList::active_anon);
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

namespace {

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "vmscan.h"
void trace_mm_vmscan_direct_reclaim_begin(Order order, gfp_t gfp) { WEIR_FLOW(order, gfp); }
void trace_mm_vmscan_direct_reclaim_end(PageCount nr_reclaimed) { WEIR_FLOW(nr_reclaimed); }

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "delayacct.cpp"
void delayacct_end(Nanos start, Nanos& total, uint32_t& count) {
  WEIR_FLOW(start);
  total += world().now() - start;
  ++count;
}
void __delayacct_freepages_end(Task& task) {
  WEIR_FLOW(task.pid);
  delayacct_end(task.freepages_start, task.freepages_delay, task.freepages_count);
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "delayacct.h"
void delayacct_freepages_start() {
  WEIR_FLOW();
  if (Task* task = current_task()) task->freepages_start = world().now();
}
void delayacct_freepages_end() {
  WEIR_FLOW();
  if (Task* task = current_task()) __delayacct_freepages_end(*task);
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "vmscan.cpp"

}  // namespace

PageCount Vmscan::do_try_to_free_pages(ScanControl& sc) {
  WEIR_FLOW(sc.order, sc.gfp_mask);
  delayacct_freepages_start();
  WEIR_STATE(reclaim_start, sc.reason, sc.priority, sc.nr_to_reclaim);
  if (sc.reason == ReclaimReason::direct) vmstat_.count_vm_event(VmEvent::allocstall);
  for (; sc.priority >= 0; --sc.priority) {
    sc.nr_scanned = PageCount(0);
    shrink_zones(sc);
    if (sc.nr_reclaimed >= sc.nr_to_reclaim) break;
    if (sc.priority < DEF_PRIORITY - 2) sc.may_writepage = true;
  }
  snapshot_refaults();
  delayacct_freepages_end();
  WEIR_RETURN(sc.nr_reclaimed);
}

// ---- Direct reclaim ------------------------------------------------------------------------------------------------

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

PageCount Vmscan::shrink_all_memory(PageCount n) {
  WEIR_FLOW(n);
  const ThreadFlagScope reclaiming(PF_MEMALLOC);
  ScanControl sc;
  sc.nr_to_reclaim = n;
  sc.gfp_mask = GFP_HIGHUSER_MOVABLE;
  sc.reason = ReclaimReason::limit;
  return era_->shrink_all(sc);
}

PageCount Vmscan::reclaim_pages(PageList& pages) {
  WEIR_FLOW();
  const ThreadFlagScope reclaiming(PF_MEMALLOC);
  ScanControl sc;
  sc.ignore_references = true;
  // Some come from an active list; what is freed may not say so any more.
  for (Page& page : pages) page.clear(PageFlag::active);
  Stat stat;
  const int64_t reclaimed = shrink_page_list(pages, sc, stat);
  while (!pages.empty()) {
    Page& page = pages.front();
    pages.pop_front();
    lru_.putback_lru_page(page);
  }
  return PageCount(reclaimed);
}

// ---- Slab caches ---------------------------------------------------------------------------------------------------

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
  return shrink_cache(shrinker, nr_scanned, nr_eligible);
}

int64_t Vmscan::shrink_cache(Shrinker& shrinker, int64_t nr_scanned, int64_t nr_eligible) {
  const int64_t freeable = shrinker.count_objects().v;
  if (freeable <= 0) return 0;
  const int64_t deferred = shrinker.nr_deferred_.exchange(0, std::memory_order_acq_rel);
  const int64_t delta = static_cast<int64_t>(static_cast<__int128>(4 * nr_scanned / std::max(shrinker.seeks, 1)) *
                                             freeable / (nr_eligible + 1));
  int64_t total = deferred + delta;
  // A debt from long ago must not empty the cache on a breath of pressure.
  if (delta < freeable / 4) total = std::min(total, freeable / 2);
  total = std::min(total, 2 * freeable);
  era_->trace_mm_shrink_slab_start(freeable, delta, total);
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
  era_->trace_mm_shrink_slab_end(freed, total);
  return freed;
}

int64_t Vmscan::shrink_slab(gfp_t gfp, int64_t nr_scanned, int64_t nr_eligible) {
  WEIR_FLOW(gfp, nr_scanned, nr_eligible);
  if (nr_scanned == 0) nr_scanned = SWAP_CLUSTER_MAX;
  // Somebody registers a shrinker: it may itself be waiting for memory.
  if (!shrinker_rwsem_.down_read_trylock()) return 1;
  int64_t freed = 0;
  for (Shrinker* shrinker = shrinkers_; shrinker != nullptr; shrinker = shrinker->next_)
    freed += era_->shrink_one_cache(*shrinker, nr_scanned, nr_eligible);
  shrinker_rwsem_.up_read();
  return freed;
}

// ---- kswapd --------------------------------------------------------------------------------------------------------

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
  if (inactive_list_is_low(false, Asked::to_demote))
    shrink_active_list(SWAP_CLUSTER_MAX, node_lists(), sc, LruList::active_anon);
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
    if (pgdat_balanced(sc.order, classzone)) {
      snapshot_refaults();
      return sc.order;
    }
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
  snapshot_refaults();
  return sc.order;
}

void Vmscan::kswapd_loop() {
  Order alloc_order{}, reclaim_order{};
  ZoneType classzone = ZoneType::NORMAL;
  for (;;) {
    kswapd_try_to_sleep(alloc_order, reclaim_order, classzone);
    alloc_order = reclaim_order =
        Order(static_cast<uint8_t>(node_.kswapd_order.exchange(0, std::memory_order_acq_rel)));
    classzone = kswapd_classzone(ZoneType::NORMAL);
    node_.kswapd_classzone.store(-1, std::memory_order_release);
    const bool was_frozen = try_to_freeze();
    if (kthread_should_stop()) break;
    // What was asked before the freeze is old; it will be asked again.
    if (was_frozen) continue;
    reclaim_order = balance_pgdat(alloc_order, classzone);
  }
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

// ---- 4.14 ----------------------------------------------------------------------------------------------------------

struct Vmscan::Era_4_14 final : Era {
  using Era::Era;

  PageCount try_to_free_pages(Order order, gfp_t gfp) override {
    WEIR_FLOW(order, gfp);
    ScanControl sc;
    sc.gfp_mask = current_gfp_context(gfp);
    sc.reclaim_idx = gfp_zone(gfp);
    sc.order = order;
    if (self.throttle_direct_reclaim(sc.gfp_mask)) return PageCount(1);
    trace_mm_vmscan_direct_reclaim_begin(order, sc.gfp_mask);
    const PageCount reclaimed = self.do_try_to_free_pages(sc);
    trace_mm_vmscan_direct_reclaim_end(reclaimed);
    return reclaimed;
  }
  PageCount shrink_all(ScanControl& sc) override { return self.do_try_to_free_pages(sc); }

  void wakeup_kswapd(ZoneType classzone, Order order) override {
    WEIR_FLOW(classzone, order);
    Node& node = self.node_;
    self.put_back_request(order, classzone);
    if (node.kswapd_wait.empty()) return;
    // Tried often enough for nothing: direct reclaim shows when that changes.
    if (node.kswapd_failures.load(std::memory_order_relaxed) >= MAX_RECLAIM_RETRIES) return;
    if (self.pgdat_balanced(order, classzone)) return;
    self.kswapd_wakeups_.fetch_add(1, std::memory_order_acq_rel);
    node.kswapd_wait.wake_all();
  }
  void kswapd_loop() override { self.kswapd_loop(); }

  References references(Page& page, FlushBatch& aged) override { return self.page_check_references(page, aged); }

  void under_writeback(Page& page, Stat& stat) override {
    // Met for the second time before its write has ended: the scan is faster than the device.
    if (current_is_kswapd() && page.test(PageFlag::reclaim) && self.pgdat_writeback_.load(std::memory_order_relaxed) &&
        !on_foreign_disk(page)) {
      ++stat.nr_immediate;
    } else {
      // The end of the write puts it at the tail.
      page.set(PageFlag::reclaim);
      ++stat.nr_writeback;
    }
    self.activate_locked(page, PageKeep::under_writeback);
  }

  Candidate::Verdict dirty_file_page(Page& page, const ScanControl&) override {
    if (current_is_kswapd() && page.test(PageFlag::reclaim) && self.pgdat_dirty_.load(std::memory_order_relaxed))
      return Candidate::Verdict::go_on;
    // One page here, one there is the slowest way to write a file. The flusher is told; met again, the page goes at
    // once.
    page.set(PageFlag::reclaim);
    return Candidate::Verdict::activate;
  }

  bool remove_mapping(AddressSpace& mapping, Page& page) override { return self.__remove_mapping(mapping, page); }

  void activated(Page& page) override {
    // It stays in memory, so its slot is better used for another page.
    if (PageSwapCache(page) && (self.swap_.vm_swap_full() || page.test(PageFlag::mlocked)))
      self.cache_.try_to_free_swap(page);
  }

  void free_pages(PageList& pages) override { self.pages_.free_hot_cold_page_list(pages, Temperature::cold); }

  // What the scan met tells how the devices do.
  void after_batch(const Stat& stat, int64_t taken, const ScanControl&) override {
    if (stat.nr_writeback != 0 && stat.nr_writeback == taken)
      self.pgdat_writeback_.store(true, std::memory_order_relaxed);
    if (stat.nr_dirty != 0 && stat.nr_dirty == stat.nr_congested)
      self.pgdat_congested_.store(true, std::memory_order_relaxed);
    if (stat.nr_unqueued_dirty != 0 && self.flusher_ != nullptr && stat.nr_unqueued_dirty == taken) {
      self.flusher_->wakeup(WB_REASON_VMSCAN);
      self.pgdat_dirty_.store(true, std::memory_order_relaxed);
    }
    if (stat.nr_immediate != 0) self.congestion_wait();
    if (!current_is_kswapd() && self.pgdat_congested_.load(std::memory_order_relaxed)) self.congestion_wait();
  }

  int64_t shrink_one_cache(Shrinker& shrinker, int64_t nr_scanned, int64_t nr_eligible) override {
    return self.do_shrink_slab(shrinker, nr_scanned, nr_eligible);
  }
};

void Vmscan::Era::place_4_14(Vmscan& self) {
  static_assert(sizeof(Era_4_14) <= ERA_BYTES);
  self.era_ = ::new (static_cast<void*>(self.era_place_)) Era_4_14(self);
}

}  // namespace weir
