// src/mm/vmscan_3.cpp: reclaim as 3.x does it; see vmscan.hpp
//
//   try_to_free_pages -> throttle_direct_reclaim -> do_try_to_free_pages -> shrink_zones -┐
//   kswapd -> kswapd_try_to_sleep, balance_pgdat -----------------------------------------┴> shrink_zone
//   shrink_zone -> shrink_lruvec -> shrink_list -> shrink_active_list | shrink_inactive_list
//   shrink_inactive_list -> shrink_page_list
//
// Five lists a zone. Dirty pages of files are left to the flushers; kswapd writes them when it has come far down.
//
// Linux: mm/vmscan.c, 3.7 to 3.10, without memory cgroups and compaction.
#include <algorithm>
#include <new>

#include "kernel/freezer.hpp"
#include "kernel/kthread.hpp"
#include "mm/vmscan_era.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "vmscan.cpp"

namespace weir {

namespace {

constexpr LruList EVICTABLE[] = {LruList::inactive_anon, LruList::active_anon, LruList::inactive_file,
                                 LruList::active_file};

int64_t low_wmark_pages(const Zone& zone) {
  WEIR_FLOW(zone);
  return zone.wmark(Watermark::low);
}
int64_t high_wmark_pages(const Zone& zone) {
  WEIR_FLOW(zone);
  return zone.wmark(Watermark::high);
}

bool inactive_anon_is_low(const LruVec& lruvec, bool have_swap) {
  WEIR_FLOW();
  // Without swap nobody ever comes for the inactive anonymous pages.
  if (!have_swap) return false;
  return lruvec.size_racy(LruList::inactive_anon) *
             inactive_ratio(lruvec.zone->managed_pages.load(std::memory_order_relaxed)) <
         lruvec.size_racy(LruList::active_anon);
}
bool inactive_file_is_low(const LruVec& lruvec) {
  WEIR_FLOW();
  return lruvec.size_racy(LruList::active_file) > lruvec.size_racy(LruList::inactive_file);
}

/// What is reserved from requests of higher zones does not count: it is not kswapd's to make.
bool zone_balanced(const Zone& zone, Order order) {
  WEIR_FLOW(zone, order);
  return linux_3::zone_watermark_ok_safe(zone, order, high_wmark_pages(zone), ZoneType::DMA32, 0);
}

}  // namespace

struct Vmscan::Era_3 final : Era {
  using Era::Era;

  PageCount try_to_free_pages(Order order, gfp_t gfp) override;
  PageCount shrink_all(ScanControl& sc) override { return do_try_to_free_pages(sc); }
  void wakeup_kswapd(ZoneType classzone, Order order) override;
  void kswapd_loop() override;
  References references(Page& page, FlushBatch& aged) override { return self.page_check_references(page, aged); }
  void under_writeback(Page& page, Stat& stat) override {
    // The end of the write puts it at the tail.
    page.set(PageFlag::reclaim);
    ++stat.nr_writeback;
    self.keep_locked(page, PageKeep::under_writeback);
  }
  Candidate::Verdict dirty_file_page(Page& page, const ScanControl& sc) override {
    // One page here, one there is the slowest way to write a file: only kswapd, and only when little else is left.
    if (current_is_kswapd() && sc.priority < DEF_PRIORITY - 2) return Candidate::Verdict::go_on;
    page.set(PageFlag::reclaim);
    return Candidate::Verdict::keep;
  }
  bool remove_mapping(AddressSpace& mapping, Page& page) override { return self.__remove_mapping(mapping, page); }
  void activated(Page& page) override {
    // It stays in memory, so its slot is better used for another page.
    if (PageSwapCache(page) && self.swap_.vm_swap_full()) self.cache_.try_to_free_swap(page);
  }
  void free_pages(PageList& pages) override { self.pages_.free_hot_cold_page_list(pages, Temperature::cold); }
  void after_batch(const Stat& stat, int64_t taken, const ScanControl& sc) override {
    // The deeper the scan, the fewer pages under writeback are a reason to wait for the device.
    if (stat.nr_writeback != 0 && stat.nr_writeback >= taken >> (DEF_PRIORITY - std::max(sc.priority, 0)))
      wait_iff_congested();
  }
  int64_t shrink_one_cache(Shrinker& shrinker, int64_t nr_scanned, int64_t nr_eligible) override {
    return self.shrink_cache(shrinker, nr_scanned, nr_eligible);
  }

 private:
  PageCount do_try_to_free_pages(ScanControl& sc);
  void shrink_zones(ScanControl& sc);
  void shrink_zone(Zone& zone, ScanControl& sc);
  void shrink_lruvec(LruVec& lruvec, ScanControl& sc);
  void get_scan_count(LruVec& lruvec, const ScanControl& sc, ScanCount& count);
  int64_t shrink_list(LruList list, int64_t nr_to_scan, LruVec& lruvec, ScanControl& sc);
  bool inactive_list_is_low(const LruVec& lruvec, LruList list) const;
  [[nodiscard]] bool all_unreclaimable(const ScanControl& sc) const;
  [[nodiscard]] bool zone_reclaimable(const Zone& zone) const;
  void wait_iff_congested();
  [[nodiscard]] bool pgdat_balanced(Order order, ZoneType classzone) const;
  [[nodiscard]] bool prepare_kswapd_sleep(Order order, ZoneType classzone);
  void kswapd_try_to_sleep(Order order, ZoneType classzone);
  Order balance_pgdat(Order order, ZoneType classzone);
  void age_active_anon(Zone& zone, ScanControl& sc);
  [[nodiscard]] bool have_swap() const { return self.swap_.total_swap_pages() != 0; }
};

void Vmscan::Era::place_3(Vmscan& self) {
  static_assert(sizeof(Era_3) <= ERA_BYTES);
  self.era_ = ::new (static_cast<void*>(self.era_place_)) Era_3(self);
}

void Vmscan::Era_3::wait_iff_congested() {
  WEIR_FLOW();
  self.congestion_wait();
}

// ---- One zone ------------------------------------------------------------------------------------------------------

bool Vmscan::Era_3::inactive_list_is_low(const LruVec& lruvec, LruList list) const {
  WEIR_FLOW(list);
  return is_file_lru(list) ? inactive_file_is_low(lruvec) : inactive_anon_is_low(lruvec, have_swap());
}

void Vmscan::Era_3::get_scan_count(LruVec& lruvec, const ScanControl& sc, ScanCount& count) {
  WEIR_FLOW(sc.priority);
  ScanBalanceInput in;
  in.swappiness = self.swappiness();
  in.priority = sc.priority;
  in.may_swap = sc.may_swap && self.swap_.swap_has_room();
  for (const LruList list : EVICTABLE) in.size[static_cast<unsigned>(list)] = lruvec.size_racy(list);
  in.free_pages = lruvec.zone->nr_free.load(std::memory_order_relaxed);
  in.high_wmark_pages = high_wmark_pages(*lruvec.zone);
  in.inactive_anon_low = inactive_anon_is_low(lruvec, have_swap());
  in.inactive_file_low = inactive_file_is_low(lruvec);
  {
    ScopedLock guard(self.node_.lru_lock);
    self.scan_stat(lruvec.reclaim_stat, in.size);
    in.stat = lruvec.reclaim_stat;
  }
  count = scan_balance(in);
}

int64_t Vmscan::Era_3::shrink_list(LruList list, int64_t nr_to_scan, LruVec& lruvec, ScanControl& sc) {
  WEIR_FLOW(list, nr_to_scan);
  if (!is_active_lru(list)) return self.shrink_inactive_list(nr_to_scan, lruvec, sc, list);
  if (inactive_list_is_low(lruvec, list)) self.shrink_active_list(nr_to_scan, lruvec, sc, list);
  return 0;
}

void Vmscan::Era_3::shrink_lruvec(LruVec& lruvec, ScanControl& sc) {
  WEIR_FLOW(sc.priority);
  ScanCount target;
  get_scan_count(lruvec, sc, target);
  int64_t(&left)[NR_LRU_LISTS] = target.nr;
  const auto at = [&](LruList list) -> int64_t& { return left[static_cast<unsigned>(list)]; };
  int64_t reclaimed = 0;
  while (at(LruList::inactive_anon) != 0 || at(LruList::active_file) != 0 || at(LruList::inactive_file) != 0) {
    for (const LruList list : EVICTABLE) {
      const int64_t n = std::min(at(list), SWAP_CLUSTER_MAX);
      if (n == 0) continue;
      at(list) -= n;
      reclaimed += shrink_list(list, n, lruvec, sc);
    }
    cond_resched();
    // A first pass does all of its share, so that the lists of all zones age alike.
    if (reclaimed >= sc.nr_to_reclaim.v && sc.priority < DEF_PRIORITY) break;
  }
  sc.nr_reclaimed += PageCount(reclaimed);
  // Anonymous pages age even while only file pages are reclaimed, or they would all look alike when their time comes.
  if (inactive_anon_is_low(lruvec, have_swap()))
    self.shrink_active_list(SWAP_CLUSTER_MAX, lruvec, sc, LruList::active_anon);
}

void Vmscan::Era_3::shrink_zone(Zone& zone, ScanControl& sc) {
  WEIR_FLOW(zone, sc.priority);
  shrink_lruvec(zone.lruvec, sc);
}

// ---- Direct reclaim ------------------------------------------------------------------------------------------------

void Vmscan::Era_3::shrink_zones(ScanControl& sc) {
  WEIR_FLOW(sc.priority);
  const Zonelist& zonelist = self.node_.zonelist;
  for (unsigned i = 0; i < zonelist.count; ++i) {
    Zone& zone = *zonelist.zones[i];
    if (zone.type > sc.reclaim_idx) continue;
    if (!zone_reclaimable(zone) && sc.priority != DEF_PRIORITY) continue;
    shrink_zone(zone, sc);
  }
}

bool Vmscan::Era_3::zone_reclaimable(const Zone& zone) const {
  int64_t pages = zone.lruvec.size_racy(LruList::active_file) + zone.lruvec.size_racy(LruList::inactive_file);
  if (self.swap_.swap_has_room())
    pages += zone.lruvec.size_racy(LruList::active_anon) + zone.lruvec.size_racy(LruList::inactive_anon);
  return zone.pages_scanned.load(std::memory_order_relaxed) < 6 * pages;
}

/// As 3.12 asks: what kswapd has found out it may never have, asleep while single pages are free.
bool Vmscan::Era_3::all_unreclaimable(const ScanControl& sc) const {
  WEIR_FLOW();
  for (const Zone& zone : self.node_.zones)
    if (zone.populated() && zone.type <= sc.reclaim_idx && zone_reclaimable(zone)) return false;
  return true;
}

PageCount Vmscan::Era_3::do_try_to_free_pages(ScanControl& sc) {
  WEIR_FLOW(sc.order, sc.gfp_mask);
  WEIR_STATE(reclaim_start, sc.reason, sc.priority, sc.nr_to_reclaim);
  const bool direct = sc.reason == ReclaimReason::direct;
  if (direct) self.vmstat_.count_vm_event(VmEvent::allocstall);
  int64_t total_scanned = 0;
  for (; sc.priority >= 0; --sc.priority) {
    sc.nr_scanned = PageCount(0);
    shrink_zones(sc);
    int64_t lru = 0;
    for (const Zone& zone : self.node_.zones)
      if (zone.populated() && zone.type <= sc.reclaim_idx) lru += lru_pages(zone);
    self.shrink_slab(sc.gfp_mask, sc.nr_scanned.v, lru);
    total_scanned += sc.nr_scanned.v;
    if (sc.nr_reclaimed >= sc.nr_to_reclaim) WEIR_RETURN(sc.nr_reclaimed);
    if (sc.priority < DEF_PRIORITY - 2) sc.may_writepage = true;
    // Much looked at, little got: perhaps it is dirt that stands in the way.
    if (total_scanned > sc.nr_to_reclaim.v + sc.nr_to_reclaim.v / 2) {
      if (self.flusher_ != nullptr) self.flusher_->wakeup(WB_REASON_VMSCAN);
      sc.may_writepage = true;
    }
    if (direct && sc.nr_scanned.v > 0 && sc.priority < DEF_PRIORITY - 2) wait_iff_congested();
  }
  if (sc.nr_reclaimed.v > 0 || !direct) WEIR_RETURN(sc.nr_reclaimed);
  // While a zone is worth another scan nobody is to be killed.
  WEIR_RETURN(all_unreclaimable(sc) ? PageCount(0) : PageCount(1));
}

PageCount Vmscan::Era_3::try_to_free_pages(Order order, gfp_t gfp) {
  WEIR_FLOW(order, gfp);
  ScanControl sc;
  sc.gfp_mask = current_gfp_context(gfp);
  sc.reclaim_idx = gfp.has(__GFP_DMA32) ? ZoneType::DMA32 : ZoneType::NORMAL;
  sc.order = order;
  if (self.throttle_direct_reclaim(sc.gfp_mask)) WEIR_RETURN(PageCount(1));
  WEIR_RETURN(do_try_to_free_pages(sc));
}

// ---- kswapd --------------------------------------------------------------------------------------------------------

void Vmscan::Era_3::wakeup_kswapd(ZoneType classzone, Order order) {
  WEIR_FLOW(classzone, order);
  Node& node = self.node_;
  Zone& zone = node.zones[static_cast<unsigned>(classzone)];
  if (!zone.populated()) return;
  self.put_back_request(order, classzone);
  if (node.kswapd_wait.empty()) return;
  if (linux_3::zone_watermark_ok_safe(zone, order, low_wmark_pages(zone), ZoneType::DMA32, 0)) return;
  self.kswapd_wakeups_.fetch_add(1, std::memory_order_acq_rel);
  node.kswapd_wait.wake_all();
}

/// For single pages every zone; for a block it is enough that a quarter of the memory could give one.
bool Vmscan::Era_3::pgdat_balanced(Order order, ZoneType classzone) const {
  WEIR_FLOW(order, classzone);
  int64_t managed = 0, balanced = 0;
  for (const Zone& zone : self.node_.zones) {
    if (!zone.populated() || zone.type > classzone) continue;
    const int64_t pages = zone.managed_pages.load(std::memory_order_relaxed);
    managed += pages;
    // One that is not worth scanning counts: nobody can do more for it.
    if (zone.all_unreclaimable.load(std::memory_order_relaxed) || zone_balanced(zone, order))
      balanced += pages;
    else if (order.v == 0)
      return false;
  }
  return order.v == 0 || balanced >= managed / 4;
}

bool Vmscan::Era_3::prepare_kswapd_sleep(Order order, ZoneType classzone) {
  WEIR_FLOW(order, classzone);
  // Nobody shall wait for a kswapd that sleeps.
  self.pfmemalloc_wait_.wake_all();
  return pgdat_balanced(order, classzone);
}

// A short sleep first: allocations that come in bursts would else wake kswapd for each.
void Vmscan::Era_3::kswapd_try_to_sleep(Order order, ZoneType classzone) {
  WEIR_FLOW(order, classzone);
  if (freezing(current()) || kthread_should_stop()) return;
  Node& node = self.node_;
  const uint64_t seen = self.kswapd_wakeups_.load(std::memory_order_acquire);
  const auto woken = [&] {
    return self.kswapd_wakeups_.load(std::memory_order_acquire) != seen || kthread_should_stop();
  };
  bool early = false;
  if (prepare_kswapd_sleep(order, classzone)) early = node.kswapd_wait.wait_timeout(100_ms, woken);
  if (!early && prepare_kswapd_sleep(order, classzone)) {
    node.kswapd_wait.wait(woken);
  } else {
    self.vmstat_.count_vm_event(early ? VmEvent::kswapd_low_wmark_hit_quickly : VmEvent::kswapd_high_wmark_hit_quickly);
  }
}

void Vmscan::Era_3::kswapd_loop() {
  Node& node = self.node_;
  Order order{};
  ZoneType classzone = ZoneType::NORMAL;
  for (;;) {
    kswapd_try_to_sleep(order, classzone);
    order = Order(static_cast<uint8_t>(node.kswapd_order.exchange(0, std::memory_order_acq_rel)));
    classzone = self.kswapd_classzone(ZoneType::NORMAL);
    node.kswapd_classzone.store(-1, std::memory_order_release);
    const bool was_frozen = try_to_freeze();
    if (kthread_should_stop()) break;
    // What was asked before the freeze is old; it will be asked again.
    if (was_frozen) continue;
    order = balance_pgdat(order, classzone);
  }
}

void Vmscan::Era_3::age_active_anon(Zone& zone, ScanControl& sc) {
  WEIR_FLOW(zone);
  if (!have_swap()) return;
  if (inactive_anon_is_low(zone.lruvec, true))
    self.shrink_active_list(SWAP_CLUSTER_MAX, zone.lruvec, sc, LruList::active_anon);
}

Order Vmscan::Era_3::balance_pgdat(Order order, ZoneType classzone) {
  WEIR_FLOW(order, classzone);
  Node& node = self.node_;
  ScanControl sc;
  for (bool balanced = false; !balanced;) {
    sc = ScanControl{};
    sc.order = order;
    sc.reason = ReclaimReason::kswapd;
    self.vmstat_.count_vm_event(VmEvent::pageoutrun);
    WEIR_STATE(reclaim_start, sc.reason, sc.priority, sc.nr_to_reclaim);
    int64_t total_scanned = 0;
    for (; sc.priority >= 0 && !balanced; --sc.priority) {
      // A fork comes before or after it, and finds no page locked by it.
      KthreadPass pass;
      const auto skip = [&](const Zone& zone) {
        return !zone.populated() ||
               (zone.all_unreclaimable.load(std::memory_order_relaxed) && sc.priority != DEF_PRIORITY);
      };
      // Down to the highest zone that needs it.
      Zone* end_zone = nullptr;
      for (unsigned i = MAX_NR_ZONES; i-- > 0 && end_zone == nullptr;) {
        Zone& zone = node.zones[i];
        if (skip(zone)) continue;
        age_active_anon(zone, sc);
        if (!zone_balanced(zone, order)) end_zone = &zone;
      }
      if (end_zone == nullptr) {
        balanced = true;
        break;
      }
      int64_t lru = 0;
      for (const Zone& zone : node.zones)
        if (&zone <= end_zone) lru += lru_pages(zone);
      // And up again.
      for (Zone& zone : node.zones) {
        if (&zone > end_zone || skip(zone)) continue;
        sc.nr_scanned = PageCount(0);
        if (!zone_balanced(zone, order)) {
          shrink_zone(zone, sc);
          const int64_t nr_slab = self.shrink_slab(GFP_KERNEL, sc.nr_scanned.v, lru);
          total_scanned += sc.nr_scanned.v;
          if (nr_slab == 0 && !zone_reclaimable(zone)) zone.all_unreclaimable.store(true, std::memory_order_relaxed);
        }
        if (sc.priority < DEF_PRIORITY - 2) sc.may_writepage = true;
      }
      if (!self.pfmemalloc_wait_.empty() && self.allow_direct_reclaim()) self.pfmemalloc_wait_.wake_all();
      balanced = pgdat_balanced(order, classzone);
      if (balanced || kthread_should_stop()) break;
      if (total_scanned > 0 && sc.priority < DEF_PRIORITY - 2) self.congestion_wait();
      // So much at a time: then the marks are looked at anew.
      if (sc.nr_reclaimed.v >= SWAP_CLUSTER_MAX) break;
    }
    if (balanced) break;
    cond_resched();
    if (try_to_freeze() || kthread_should_stop()) break;
    // A block does not come together: single pages will do.
    if (sc.nr_reclaimed.v < SWAP_CLUSTER_MAX) order = Order(0);
  }
  return order;
}

}  // namespace weir
