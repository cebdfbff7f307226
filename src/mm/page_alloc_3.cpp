// src/mm/page_alloc_3.cpp: allocation as 3.x does it; see page_alloc.hpp
//
//   __alloc_pages_nodemask: at low --> __alloc_pages_slowpath: wake_all_kswapd --> at min --> no marks, if allowed
//     --> __alloc_pages_direct_reclaim --> none: __alloc_pages_may_oom, from the start · should_alloc_retry: again
//
// Linux: mm/page_alloc.c, 3.7 to 3.10, without compaction.
#include <new>

#include "mm/mm_types.hpp"
#include "mm/page_alloc_era.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "page_alloc.cpp"

namespace weir {

namespace {

using MT = MigrateType;
constexpr int64_t PAGEBLOCK_PAGES = int64_t{1} << pageblock_order;
/// Where to look when a type has no block left, best first.
constexpr MT FALLBACKS[static_cast<unsigned>(MT::count)][2] = {
    /* unmovable   */ {MT::reclaimable, MT::movable},
    /* movable     */ {MT::reclaimable, MT::unmovable},
    /* reclaimable */ {MT::unmovable, MT::movable},
};

bool __zone_watermark_ok(const Zone& zone, Order order, int64_t mark, ZoneType classzone, uint32_t alloc_flags) {
  WEIR_FLOW(zone, order, mark);
  return watermark_by_orders(zone, order, mark, classzone, alloc_flags);
}

}  // namespace

bool linux_3::zone_watermark_ok(const Zone& zone, Order order, int64_t mark, ZoneType classzone, uint32_t alloc_flags) {
  WEIR_FLOW(zone, order, mark);
  return __zone_watermark_ok(zone, order, mark, classzone, alloc_flags);
}

bool linux_3::zone_watermark_ok_safe(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                     uint32_t alloc_flags) {
  WEIR_FLOW(zone, order, mark);
  return __zone_watermark_ok(zone, order, mark, classzone, alloc_flags);
}

struct PageAllocator::Era_3 final : OldEra {
  using OldEra::OldEra;
  Page* alloc(gfp_t gfp, Order order) override { return __alloc_pages_nodemask(gfp, order); }

  bool watermark_ok(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                    uint32_t alloc_flags) const override {
    return linux_3::zone_watermark_ok(zone, order, mark, classzone, alloc_flags);
  }
  PerCpuPages& pcp_of(Zone& zone, gfp_t) const override { return self.this_cpu_pcp(zone); }
  PageList& list_of(PerCpuPages& pcp, MigrateType type) const override {
    return pcp.lists[static_cast<unsigned>(type)];
  }
  Page* take_block(Zone& zone, Order order, MigrateType type) override { return __rmqueue(zone, order, type); }

  Page* __alloc_pages_nodemask(gfp_t gfp, Order order);
  Page* __alloc_pages_slowpath(gfp_t gfp, Order order, const AllocContext& ac);
  void wake_all_kswapd(gfp_t gfp, Order order, const AllocContext& ac);
  Page* __alloc_pages_high_priority(gfp_t gfp, Order order, const AllocContext& ac);
  Page* __alloc_pages_direct_reclaim(gfp_t gfp, Order order, uint32_t alloc_flags, const AllocContext& ac,
                                     PageCount& did_some_progress);
  PageCount __perform_reclaim(gfp_t gfp, Order order);
  Page* __alloc_pages_may_oom(gfp_t gfp, Order order, const AllocContext& ac, bool& killed);
  static bool should_alloc_retry(gfp_t gfp, Order order, PageCount pages_reclaimed);
  static uint32_t gfp_to_alloc_flags(gfp_t gfp);
  static void wait_iff_congested(Nanos at_most);
  Page* __rmqueue(Zone& zone, Order order, MigrateType type) WEIR_REQUIRES(zone.lock);
  Page* __rmqueue_smallest(Zone& zone, Order order, MigrateType type) WEIR_REQUIRES(zone.lock);
  Page* __rmqueue_fallback(Zone& zone, Order order, MigrateType start) WEIR_REQUIRES(zone.lock);
  void rmv_page_order(Zone& zone, Page& page, unsigned order) WEIR_REQUIRES(zone.lock);
};

void PageAllocator::Era::place_3(PageAllocator& self) {
  static_assert(sizeof(Era_3) <= ERA_BYTES);
  self.era_ = ::new (static_cast<void*>(self.era_place_)) Era_3(self);
}

Page* PageAllocator::Era_3::__alloc_pages_nodemask(gfp_t gfp, Order order) {
  WEIR_FLOW(gfp, order);
  AllocContext ac;
  if (!context(gfp, order, ac)) return nullptr;
  Page* page = get_page_from_freelist(gfp, order, ALLOC_WMARK_LOW, ac);
  if (page == nullptr) page = __alloc_pages_slowpath(current_gfp_context(gfp), order, ac);
  if (page != nullptr) WEIR_STATE(page_alloced, self.mem_.pfn(page), 0, order);
  return page;
}

// ---- The slow path -------------------------------------------------------------------------------------------------

uint32_t PageAllocator::Era_3::gfp_to_alloc_flags(gfp_t gfp) {
  uint32_t flags = ALLOC_WMARK_MIN;
  if (gfp.has(__GFP_HIGH)) flags |= ALLOC_HIGH;
  if (gfp.has(__GFP_POOL)) flags |= ALLOC_POOL;
  if (gfp.has(__GFP_ATOMIC) && !gfp.has(__GFP_NOMEMALLOC)) flags |= ALLOC_HARDER;
  if (gfp.has(__GFP_NOMEMALLOC) || gfp.has(__GFP_POOL)) return flags;
  if (gfp.has(__GFP_MEMALLOC) || (current_flags() & PF_MEMALLOC) != 0 || current_is_oom_victim())
    flags |= ALLOC_NO_WATERMARKS;
  return flags;
}

bool PageAllocator::Era_3::should_alloc_retry(gfp_t gfp, Order order, PageCount pages_reclaimed) {
  WEIR_FLOW(gfp, order, pages_reclaimed);
  if (gfp.has(__GFP_NORETRY)) return false;
  // So few pages come together by themselves, or by killing.
  if (order.v <= PAGE_ALLOC_COSTLY_ORDER) return true;
  if (gfp.has(__GFP_RETRY_MAYFAIL) && pages_reclaimed.v < int64_t{1} << order.v) return true;
  return gfp.has(__GFP_NOFAIL);
}

/// Nobody here says that a device is congested: who asks waits as if it were.
void PageAllocator::Era_3::wait_iff_congested(Nanos at_most) {
  WEIR_FLOW(at_most);
  sleep_for(at_most);
}

Page* PageAllocator::Era_3::__alloc_pages_slowpath(gfp_t gfp, Order order, const AllocContext& ac) {
  WEIR_FLOW(gfp, order);
  const bool wait = gfp.has(__GFP_DIRECT_RECLAIM) && self.pressure_ != nullptr;
  PageCount pages_reclaimed{};
  bool hopeless = false;
  for (bool restart = true; restart;) {
    restart = false;
    wake_all_kswapd(gfp, order, ac);
    const uint32_t alloc_flags = gfp_to_alloc_flags(gfp);
    for (;;) {
      if (Page* page = get_page_from_freelist(gfp, order, alloc_flags & ~uint32_t{ALLOC_NO_WATERMARKS}, ac))
        return page;
      self.flush_quarantine(gfp);
      if ((alloc_flags & ALLOC_NO_WATERMARKS) != 0)
        if (Page* page = __alloc_pages_high_priority(gfp, order, ac)) return page;
      if (!wait) {
        if (gfp.has(__GFP_NOFAIL)) bug("__GFP_NOFAIL of who cannot wait", __FILE__, __LINE__);
        break;
      }
      if ((current_flags() & PF_MEMALLOC) != 0) break;
      // A victim that finds nothing here fails, so that it gets to its exit.
      if (current_is_oom_victim() && !gfp.has(__GFP_NOFAIL)) break;

      PageCount did_some_progress{};
      if (Page* page = __alloc_pages_direct_reclaim(gfp, order, alloc_flags, ac, did_some_progress)) return page;
      if (did_some_progress.v == 0 && gfp.has(__GFP_FS) && !gfp.has(__GFP_NORETRY)) {
        bool killed = false;
        if (Page* page = __alloc_pages_may_oom(gfp, order, ac, killed)) return page;
        // Killing was not allowed, and will not be: a costly order, or a low zone.
        const bool allowed = order.v <= PAGE_ALLOC_COSTLY_ORDER && ac.high_zoneidx >= ZoneType::NORMAL;
        hopeless = !killed && allowed;
        if (!gfp.has(__GFP_NOFAIL) && (!allowed || hopeless)) break;
        restart = true;
        break;
      }
      pages_reclaimed += did_some_progress;
      if (!should_alloc_retry(gfp, order, pages_reclaimed)) break;
      wait_iff_congested(20_ms);
    }
  }
  self.warn_alloc(gfp, order);
  return nullptr;
}

void PageAllocator::Era_3::wake_all_kswapd(gfp_t gfp, Order order, const AllocContext& ac) {
  if (!gfp.has(__GFP_KSWAPD_RECLAIM) || self.pressure_ == nullptr) return;
  WEIR_FLOW(order);
  wake_kswapds(order, ac);
}

Page* PageAllocator::Era_3::__alloc_pages_high_priority(gfp_t gfp, Order order, const AllocContext& ac) {
  WEIR_FLOW(gfp, order);
  for (;;) {
    Page* page = get_page_from_freelist(gfp, order, ALLOC_NO_WATERMARKS, ac);
    if (page != nullptr || !gfp.has(__GFP_NOFAIL)) return page;
    wait_iff_congested(20_ms);
  }
}

Page* PageAllocator::Era_3::__alloc_pages_direct_reclaim(gfp_t gfp, Order order, uint32_t alloc_flags,
                                                         const AllocContext& ac, PageCount& did_some_progress) {
  WEIR_FLOW(gfp, order);
  did_some_progress = __perform_reclaim(gfp, order);
  if (did_some_progress.v == 0) {
    WEIR_STATE(reclaim_fruitless, order, 0, 1);
    return nullptr;
  }
  self.flush_quarantine(gfp);
  const uint32_t flags = alloc_flags & ~uint32_t{ALLOC_NO_WATERMARKS};
  if (Page* page = get_page_from_freelist(gfp, order, flags, ac)) return page;
  // What was freed may lie on other CPUs' lists.
  self.drain_all_pages();
  return get_page_from_freelist(gfp, order, flags, ac);
}

PageCount PageAllocator::Era_3::__perform_reclaim(gfp_t gfp, Order order) {
  WEIR_FLOW(gfp, order);
  return reclaim(gfp, order);
}

Page* PageAllocator::Era_3::__alloc_pages_may_oom(gfp_t gfp, Order order, const AllocContext& ac, bool& killed) {
  WEIR_FLOW(gfp, order);
  killed = false;
  if (!self.oom_lock_.try_lock()) {
    // Somebody else is killing.
    killed = true;
    sleep_for(4_ms);
    return nullptr;
  }
  // A last look, high enough that it only succeeds if another kill has just freed a lot.
  Page* page = get_page_from_freelist((gfp | __GFP_HARDWALL) & ~__GFP_DIRECT_RECLAIM, order, ALLOC_WMARK_HIGH, ac);
  const bool worth_it =
      gfp.has(__GFP_NOFAIL) || (order.v <= PAGE_ALLOC_COSTLY_ORDER && ac.high_zoneidx >= ZoneType::NORMAL);
  if (page == nullptr && worth_it) killed = self.pressure_->out_of_memory(OomControl{gfp, order});
  self.oom_lock_.unlock();
  // Who was killed needs a moment to die.
  if (killed) sleep_for(4_ms);
  return page;
}

// ---- Out of the free lists -----------------------------------------------------------------------------------------

Page* PageAllocator::Era_3::__rmqueue(Zone& zone, Order order, MigrateType type) {
  WEIR_FLOW(zone, order, type);
  Page* page = __rmqueue_smallest(zone, order, type);
  return page != nullptr ? page : __rmqueue_fallback(zone, order, type);
}

void PageAllocator::Era_3::rmv_page_order(Zone& zone, Page& page, unsigned order) {
  WEIR_FLOW(self.mem_.pfn(page), order);
  const FreeArea& area = zone.free_area[order];
  self.del_from_free_list(zone, page, order);
  WEIR_STATE(buddy_remove, self.mem_.pfn(page), area.nr_free + 1, area.nr_free);
}

Page* PageAllocator::Era_3::__rmqueue_smallest(Zone& zone, Order order, MigrateType type) {
  WEIR_FLOW(zone, order, type);
  for (unsigned o = order.v; o < MAX_ORDER; ++o) {
    PageList& list = free_list(zone, self.mem_, o, type);
    if (list.empty()) continue;
    Page& page = list.front();
    WEIR_STATE(buddy_find, self.mem_.pfn(page), order, o);
    rmv_page_order(zone, page, o);
    self.expand(zone, page, order.v, o, type);
    return &page;
  }
  return nullptr;
}

/// A block of another type, the largest there is; with its pageblock, if it is large or the taker cannot be moved.
Page* PageAllocator::Era_3::__rmqueue_fallback(Zone& zone, Order order, MigrateType start) {
  WEIR_FLOW(zone, order, start);
  for (unsigned o = MAX_ORDER; o-- > order.v;) {
    for (MT type : FALLBACKS[static_cast<unsigned>(start)]) {
      PageList& list = free_list(zone, self.mem_, o, type);
      if (list.empty()) continue;
      Page& page = list.front();
      const Pfn pfn = self.mem_.pfn(page);
      WEIR_STATE(buddy_find, pfn, order, o);
      if (o < pageblock_order && (o >= pageblock_order / 2 || start == MT::reclaimable)) {
        int64_t movable = 0;
        const int64_t moved = self.move_freepages_block(zone, page, start, movable);
        if (moved >= PAGEBLOCK_PAGES / 2) zone.block_type(pfn) = start;
        if (moved > 0) type = start;
      }
      rmv_page_order(zone, page, o);
      if (o >= pageblock_order) {
        for (int64_t i = 0; i < int64_t{1} << o; i += PAGEBLOCK_PAGES) zone.block_type(pfn + PageCount(i)) = start;
        type = start;
      }
      self.expand(zone, page, order.v, o, type);
      return &page;
    }
  }
  return nullptr;
}

}  // namespace weir
