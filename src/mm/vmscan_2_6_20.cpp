// src/mm/vmscan_2_6_20.cpp: reclaim as 2.6.20 does it; see vmscan.hpp
//
//   try_to_free_pages | kswapd -> balance_pgdat, priority 12 … 0:
//     shrink_zones -> shrink_zone -> shrink_active_list, shrink_inactive_list -> shrink_page_list
//
// Two lists a zone, anonymous and file pages mixed. Mapped pages are spared until the pressure (swap_tendency) says
// otherwise; then who was not used since the last look is taken. Locked pages are met again each scan. Files' dirty
// pages are written by whoever finds them.
//
// Linux: mm/vmscan.c, 2.6.20.
#include <algorithm>
#include <new>

#include "kernel/freezer.hpp"
#include "kernel/kthread.hpp"
#include "mm/vmscan_era.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "vmscan.cpp"

namespace weir {

namespace {

constexpr LruList INACTIVE = LruList::inactive_anon, ACTIVE = LruList::active_anon;

/// So often has the zone been scanned through for nothing that the next step is to kill.
bool zone_is_near_oom(const Zone& zone, int64_t lru_pages) {
  return zone.pages_scanned.load(std::memory_order_relaxed) >= 3 * lru_pages;
}

}  // namespace

int64_t swap_tendency_2_6_20(int prev_priority, int priority, int64_t mapped, int64_t total, int swappiness) {
  const int64_t distress = 100 >> std::min(prev_priority, priority);
  const int64_t mapped_ratio = mapped * 100 / std::max<int64_t>(total, 1);
  return mapped_ratio / 2 + distress + swappiness;
}

struct Vmscan::Era_2_6_20 final : Era {
  using Era::Era;

  [[nodiscard]] bool lock(Page& page) override { return !TestSetPageLocked(page); }
  PageCount try_to_free_pages(Order order, gfp_t gfp) override;
  PageCount shrink_all(ScanControl& sc) override;
  void wakeup_kswapd(ZoneType classzone, Order order) override;
  void kswapd_loop() override;
  References references(Page& page, FlushBatch& aged) override;
  void under_writeback(Page& page, Stat&) override { self.keep_locked(page, PageKeep::under_writeback); }
  Candidate::Verdict dirty_file_page(Page&, const ScanControl&) override { return Candidate::Verdict::go_on; }
  bool has_private(const Page& page) override { return page.test(PageFlag::private_); }  // PagePrivate, a macro
  bool remove_mapping(AddressSpace& mapping, Page& page) override {
    WEIR_FLOW(self.pages_.mem().pfn(page));
    return self.leave_tree(mapping, page);
  }
  void activated(Page&) override {}
  void free_pages(PageList& pages) override {
    while (!pages.empty()) {
      Page& page = pages.front();
      pages.pop_front();
      self.pages_.free_hot_cold_page(page, Temperature::cold);
    }
  }
  void after_batch(const Stat&, int64_t, const ScanControl&) override {}
  void trace_mm_shrink_slab_start(int64_t, int64_t, int64_t) override {}
  void trace_mm_shrink_slab_end(int64_t, int64_t) override {}
  int64_t shrink_one_cache(Shrinker& shrinker, int64_t nr_scanned, int64_t nr_eligible) override {
    return self.shrink_cache(shrinker, nr_scanned, nr_eligible);
  }

 private:
#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "page-flags.h"
  /// True if the page is locked already.
  bool TestSetPageLocked(Page& page) {
    WEIR_FLOW(self.pages_.mem().pfn(page));
    return !self.filemap_.trylock_page(page);
  }

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "vmscan.cpp"
  [[nodiscard]] bool page_mapping_inuse(const Page& page) const;
  int64_t shrink_zones(ScanControl& sc);
  int64_t shrink_zone(Zone& zone, ScanControl& sc);
  void shrink_active_list(int64_t nr_pages, Zone& zone, ScanControl& sc);
  int64_t shrink_inactive_list(int64_t max_scan, Zone& zone, ScanControl& sc);
  PageCount balance_pgdat(Order order);
  bool balance_zone(Zone& zone, Order order, ZoneType end_zone, int64_t lru_pages, ScanControl& sc,
                    int64_t& total_scanned);
  [[nodiscard]] bool reclaim_mapped(const Zone& zone, const ScanControl& sc) const;
  static void note_zone_scanning_priority(Zone& zone, int priority) {
    int now = zone.prev_priority.load(std::memory_order_relaxed);
    while (priority < now && !zone.prev_priority.compare_exchange_weak(now, priority, std::memory_order_relaxed)) {
    }
  }
};

void Vmscan::Era::place_2_6_20(Vmscan& self) {
  static_assert(sizeof(Era_2_6_20) <= ERA_BYTES);
  self.era_ = ::new (static_cast<void*>(self.era_place_)) Era_2_6_20(self);
}

// ---- One page ------------------------------------------------------------------------------------------------------

/// Is the page part of what somebody maps now?
bool Vmscan::Era_2_6_20::page_mapping_inuse(const Page& page) const {
  WEIR_FLOW(self.pages_.mem().pfn(page));
  if (page_mapped(page) || PageSwapCache(page)) return true;
  const AddressSpace* mapping = Filemap::file_mapping(page);
  return mapping != nullptr && !mapping->i_mmap.empty();
}

Vmscan::References Vmscan::Era_2_6_20::references(Page& page, FlushBatch& aged) {
  const bool unaged =
      !self.mmu_.caps().has_accessed && PageAnon(page) && page_mapped(page) && !page.test(PageFlag::aged);
  uint64_t vm_flags = 0;
  int referenced = self.rmap_.page_referenced(page, &vm_flags, aged);
  if (page.test(PageFlag::referenced)) {
    page.clear(PageFlag::referenced);
    ++referenced;
  }
  if (unaged) return References::aging;
  if (referenced == 0) return References::reclaim;
  return page_mapping_inuse(page) ? References::activate : References::reclaim_clean;
}

// ---- One zone ------------------------------------------------------------------------------------------------------

bool Vmscan::Era_2_6_20::reclaim_mapped(const Zone& zone, const ScanControl& sc) const {
  if (!sc.may_unmap) return false;
  if (zone_is_near_oom(zone, lru_pages(zone))) return true;
  const int64_t mapped =
      self.vmstat_.node_page_state(NodeStat::nr_mapped) + self.vmstat_.node_page_state(NodeStat::nr_anon_pages);
  return swap_tendency_2_6_20(zone.prev_priority.load(std::memory_order_relaxed), sc.priority, mapped,
                              self.pages_.managed_pages().v, self.swappiness()) >= 100;
}

void Vmscan::Era_2_6_20::shrink_active_list(int64_t nr_pages, Zone& zone, ScanControl& sc) {
  WEIR_FLOW(nr_pages, zone);
  const bool take_mapped = reclaim_mapped(zone, sc);
  const bool ask = self.mmu_.caps().has_accessed;
  PageList held, active, inactive, to_free;
  self.lru_.lru_add_drain();
  int64_t taken = 0, scanned = 0;
  {
    ScopedLock guard(self.node_.lru_lock);
    taken = self.isolate_lru_pages(nr_pages, zone.lruvec, held, scanned, sc, ACTIVE);
    self.vmstat_.mod_node_page_state(NodeStat::nr_isolated_anon, taken);
  }
  self.vmstat_.count_vm_events(VmEvent::pgrefill, static_cast<uint64_t>(scanned));
  while (!held.empty()) {
    cond_resched();
    Page& page = held.back();
    held.pop_back();
    uint64_t vm_flags = 0;
    const bool stays = page_mapped(page) && (!take_mapped || (PageAnon(page) && self.swap_.total_swap_pages() == 0) ||
                                             (ask && self.page_referenced(page, &vm_flags) > 0));
    if (!stays) page.clear(PageFlag::active);
    (stays ? active : inactive).push_front(page);
  }
  {
    ScopedLock guard(self.node_.lru_lock);
    int64_t deactivated = 0;
    while (!inactive.empty()) {
      Page& page = inactive.back();
      inactive.pop_back();
      ++deactivated;
      if (self.put_isolated(page, INACTIVE)) to_free.push_back(page);
    }
    while (!active.empty()) {
      Page& page = active.back();
      active.pop_back();
      if (self.put_isolated(page, ACTIVE)) to_free.push_back(page);
    }
    self.vmstat_.mod_node_page_state(NodeStat::nr_isolated_anon, -taken);
    self.vmstat_.count_vm_events(VmEvent::pgdeactivate, static_cast<uint64_t>(deactivated));
  }
  free_pages(to_free);
}

int64_t Vmscan::Era_2_6_20::shrink_inactive_list(int64_t max_scan, Zone& zone, ScanControl& sc) {
  WEIR_FLOW(max_scan, zone);
  self.lru_.lru_add_drain();
  if (!self.mmu_.caps().has_accessed) self.age_ahead_of_tail();
  const bool by_kswapd = current_is_kswapd();
  int64_t reclaimed = 0;
  for (int64_t nr_scanned = 0; nr_scanned < max_scan;) {
    PageList pages, to_free;
    int64_t taken = 0, scanned = 0;
    {
      ScopedLock guard(self.node_.lru_lock);
      taken = self.isolate_lru_pages(SWAP_CLUSTER_MAX, zone.lruvec, pages, scanned, sc, INACTIVE);
      self.vmstat_.mod_node_page_state(NodeStat::nr_isolated_anon, taken);
    }
    nr_scanned += scanned;
    Stat stat;
    const int64_t freed = self.shrink_page_list(pages, sc, stat);
    reclaimed += freed;
    self.vmstat_.count_vm_events(by_kswapd ? VmEvent::pgscan_kswapd : VmEvent::pgscan_direct,
                                 static_cast<uint64_t>(scanned));
    self.vmstat_.count_vm_events(by_kswapd ? VmEvent::pgsteal_kswapd : VmEvent::pgsteal_direct,
                                 static_cast<uint64_t>(freed));
    self.put_back(pages, to_free);
    self.vmstat_.mod_node_page_state(NodeStat::nr_isolated_anon, -taken);
    free_pages(to_free);
    if (taken == 0) break;
  }
  WEIR_RETURN(reclaimed);
}

int64_t Vmscan::Era_2_6_20::shrink_zone(Zone& zone, ScanControl& sc) {
  WEIR_FLOW(zone, sc.priority);
  // Shares too small to be worth a scan add up.
  const auto share = [&](std::atomic<int64_t>& saved, LruList list) {
    const int64_t due = saved.load(std::memory_order_relaxed) + (zone.lruvec.size_racy(list) >> sc.priority) + 1;
    const bool enough = due >= SWAP_CLUSTER_MAX;
    saved.store(enough ? 0 : due, std::memory_order_relaxed);
    return enough ? due : 0;
  };
  int64_t nr_active = share(zone.nr_scan_active, ACTIVE);
  int64_t nr_inactive = share(zone.nr_scan_inactive, INACTIVE);
  int64_t reclaimed = 0;
  while (nr_active > 0 || nr_inactive > 0) {
    if (nr_active > 0) {
      const int64_t n = std::min(nr_active, SWAP_CLUSTER_MAX);
      nr_active -= n;
      shrink_active_list(n, zone, sc);
    }
    if (nr_inactive > 0) {
      const int64_t n = std::min(nr_inactive, SWAP_CLUSTER_MAX);
      nr_inactive -= n;
      reclaimed += shrink_inactive_list(n, zone, sc);
    }
    cond_resched();
  }
  return reclaimed;
}

// ---- Direct reclaim ------------------------------------------------------------------------------------------------

int64_t Vmscan::Era_2_6_20::shrink_zones(ScanControl& sc) {
  WEIR_FLOW(sc.priority);
  int64_t reclaimed = 0;
  sc.all_unreclaimable = true;
  const Zonelist& zonelist = self.node_.zonelist;
  for (unsigned i = 0; i < zonelist.count; ++i) {
    Zone& zone = *zonelist.zones[i];
    if (zone.type > sc.reclaim_idx) continue;
    note_zone_scanning_priority(zone, sc.priority);
    if (zone.all_unreclaimable.load(std::memory_order_relaxed) && sc.priority != DEF_PRIORITY) continue;
    sc.all_unreclaimable = false;
    reclaimed += shrink_zone(zone, sc);
    // kswapd finds out that a zone is not worth scanning. Without one, or while it sleeps on single pages that are free,
    // nobody else would.
    if ((kthread() == nullptr || !self.node_.kswapd_wait.empty()) &&
        zone.pages_scanned.load(std::memory_order_relaxed) >= 4 * lru_pages(zone))
      zone.all_unreclaimable.store(true, std::memory_order_relaxed);
  }
  return reclaimed;
}

PageCount Vmscan::Era_2_6_20::try_to_free_pages(Order order, gfp_t gfp) {
  WEIR_FLOW(order, gfp);
  ScanControl sc;
  sc.gfp_mask = gfp;
  sc.reclaim_idx = gfp.has(__GFP_DMA32) ? ZoneType::DMA32 : ZoneType::NORMAL;
  self.vmstat_.count_vm_event(VmEvent::allocstall);
  WEIR_STATE(reclaim_start, sc.reason, sc.priority, sc.nr_to_reclaim);
  int64_t lru = 0;
  for (const Zone& zone : self.node_.zones)
    if (zone.populated() && zone.type <= sc.reclaim_idx) lru += lru_pages(zone);
  int64_t reclaimed = 0, total_scanned = 0;
  bool enough = false;
  for (; sc.priority >= 0; --sc.priority) {
    sc.nr_scanned = PageCount(0);
    reclaimed += shrink_zones(sc);
    self.shrink_slab(sc.gfp_mask, sc.nr_scanned.v, lru);
    total_scanned += sc.nr_scanned.v;
    enough = reclaimed >= SWAP_CLUSTER_MAX;
    if (enough) break;
    // Much looked at, little got: perhaps it is dirt that stands in the way.
    if (total_scanned > SWAP_CLUSTER_MAX + SWAP_CLUSTER_MAX / 2) {
      if (self.flusher_ != nullptr) self.flusher_->wakeup(WB_REASON_VMSCAN);
      sc.may_writepage = true;
    }
    if (sc.nr_scanned.v > 0 && sc.priority < DEF_PRIORITY - 2) self.congestion_wait();
  }
  for (Zone& zone : self.node_.zones)
    if (zone.populated() && zone.type <= sc.reclaim_idx)
      zone.prev_priority.store(std::max(sc.priority, 0), std::memory_order_relaxed);
  // While a zone is worth another scan nobody is to be killed.
  WEIR_RETURN(enough || !sc.all_unreclaimable ? PageCount(std::max<int64_t>(reclaimed, 1)) : PageCount(0));
}

PageCount Vmscan::Era_2_6_20::shrink_all(ScanControl& sc) {
  WEIR_STATE(reclaim_start, sc.reason, sc.priority, sc.nr_to_reclaim);
  int64_t reclaimed = 0;
  for (; sc.priority >= 0 && reclaimed < sc.nr_to_reclaim.v; --sc.priority) {
    sc.nr_scanned = PageCount(0);
    reclaimed += shrink_zones(sc);
    self.shrink_slab(sc.gfp_mask, sc.nr_scanned.v, self.zone_reclaimable_pages().v);
  }
  for (Zone& zone : self.node_.zones) zone.prev_priority.store(DEF_PRIORITY, std::memory_order_relaxed);
  return PageCount(reclaimed);
}

// ---- kswapd --------------------------------------------------------------------------------------------------------

void Vmscan::Era_2_6_20::wakeup_kswapd(ZoneType classzone, Order order) {
  WEIR_FLOW(classzone, order);
  Node& node = self.node_;
  Zone& zone = node.zones[static_cast<unsigned>(classzone)];
  if (!zone.populated()) return;
  if (linux_2_6_20::zone_watermark_ok(zone, order, zone.wmark(Watermark::low), ZoneType::DMA32, 0)) return;
  int32_t now = node.kswapd_order.load(std::memory_order_relaxed);
  while (now < order.v && !node.kswapd_order.compare_exchange_weak(now, order.v, std::memory_order_acq_rel)) {
  }
  if (node.kswapd_wait.empty()) return;
  self.kswapd_wakeups_.fetch_add(1, std::memory_order_acq_rel);
  node.kswapd_wait.wake_all();
}

void Vmscan::Era_2_6_20::kswapd_loop() {
  Node& node = self.node_;
  Order order{};
  for (;;) {
    (void)try_to_freeze();
    if (kthread_should_stop()) break;
    const uint64_t seen = self.kswapd_wakeups_.load(std::memory_order_acquire);
    const Order asked(static_cast<uint8_t>(node.kswapd_order.exchange(0, std::memory_order_acq_rel)));
    if (order < asked) {
      order = asked;
    } else {
      node.kswapd_wait.wait(
          [&] { return self.kswapd_wakeups_.load(std::memory_order_acquire) != seen || kthread_should_stop(); });
      order = Order(static_cast<uint8_t>(node.kswapd_order.load(std::memory_order_acquire)));
      // What was asked before a freeze is old; it will be asked again.
      if (try_to_freeze()) continue;
    }
    if (kthread_should_stop()) break;
    balance_pgdat(order);
  }
}

// False: the zone is below its high mark.
bool Vmscan::Era_2_6_20::balance_zone(Zone& zone, Order order, ZoneType end_zone, int64_t lru_pages, ScanControl& sc,
                                      int64_t& total_scanned) {
  // A fork comes before or after it, and finds no page locked by it.
  KthreadPass pass;
  const bool ok = linux_2_6_20::zone_watermark_ok(zone, order, zone.wmark(Watermark::high), end_zone, 0);
  sc.nr_scanned = PageCount(0);
  note_zone_scanning_priority(zone, sc.priority);
  sc.nr_reclaimed += PageCount(shrink_zone(zone, sc));
  const int64_t nr_slab = self.shrink_slab(GFP_KERNEL, sc.nr_scanned.v, lru_pages);
  total_scanned += sc.nr_scanned.v;
  if (!zone.all_unreclaimable.load(std::memory_order_relaxed)) {
    if (nr_slab == 0 && zone.pages_scanned.load(std::memory_order_relaxed) >= 4 * Era::lru_pages(zone))
      zone.all_unreclaimable.store(true, std::memory_order_relaxed);
    if (total_scanned > 2 * SWAP_CLUSTER_MAX && total_scanned > sc.nr_reclaimed.v + sc.nr_reclaimed.v / 2)
      sc.may_writepage = true;
  }
  return ok;
}

PageCount Vmscan::Era_2_6_20::balance_pgdat(Order order) {
  WEIR_FLOW(order);
  Node& node = self.node_;
  const Zone* const first = node.zones;
  ScanControl sc;
  for (bool all_zones_ok = false; !all_zones_ok;) {
    sc = ScanControl{};
    sc.order = order;
    sc.reason = ReclaimReason::kswapd;
    self.vmstat_.count_vm_event(VmEvent::pageoutrun);
    WEIR_STATE(reclaim_start, sc.reason, sc.priority, sc.nr_to_reclaim);
    int temp_priority[MAX_NR_ZONES];
    std::fill(std::begin(temp_priority), std::end(temp_priority), DEF_PRIORITY);
    int64_t total_scanned = 0;
    for (; sc.priority >= 0; --sc.priority) {
      all_zones_ok = true;
      const auto skip = [&](const Zone& zone) {
        return !zone.populated() ||
               (zone.all_unreclaimable.load(std::memory_order_relaxed) && sc.priority != DEF_PRIORITY);
      };
      // Down to the highest zone that needs it; what lies above is left alone.
      Zone* end_zone = nullptr;
      for (unsigned i = MAX_NR_ZONES; i-- > 0 && end_zone == nullptr;) {
        Zone& zone = node.zones[i];
        if (!skip(zone) &&
            !linux_2_6_20::zone_watermark_ok(zone, order, zone.wmark(Watermark::high), ZoneType::DMA32, 0))
          end_zone = &zone;
      }
      if (end_zone == nullptr) break;
      int64_t lru = 0;
      for (Zone& zone : node.zones)
        if (&zone <= end_zone) lru += lru_pages(zone);
      // And up again: the lowest is what the others fall back to.
      for (Zone& zone : node.zones) {
        if (&zone > end_zone || skip(zone)) continue;
        if (!balance_zone(zone, order, end_zone->type, lru, sc, total_scanned)) all_zones_ok = false;
        temp_priority[&zone - first] = sc.priority;
      }
      if (all_zones_ok) break;
      if (kthread_should_stop()) return sc.nr_reclaimed;
      if (total_scanned > 0 && sc.priority < DEF_PRIORITY - 2) self.congestion_wait();
      // So much at a time: then the marks are looked at anew.
      if (sc.nr_reclaimed.v >= SWAP_CLUSTER_MAX) break;
    }
    // The priority of the run that did the work is what the next one starts its distress from.
    for (unsigned i = 0; i < MAX_NR_ZONES; ++i)
      node.zones[i].prev_priority.store(temp_priority[i], std::memory_order_relaxed);
    if (all_zones_ok) break;
    cond_resched();
    if (try_to_freeze() || kthread_should_stop()) break;
  }
  return sc.nr_reclaimed;
}

}  // namespace weir
