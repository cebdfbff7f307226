// src/mm/page_alloc_2_6_20.cpp: allocation as 2.6.20 does it, all in one function; see page_alloc.hpp
//
//   __alloc_pages: at low --> wake kswapd --> at min --> PF_MEMALLOC: no marks --> try_to_free_pages
//     progress: at min
//     none: at high, out_of_memory, from the start
//
// Linux: mm/page_alloc.c, 2.6.20. It knows no migrate types: a block of any list will do.
#include <new>

#include "mm/mm_types.hpp"
#include "mm/page_alloc_era.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "page_alloc.cpp"

namespace weir {

// ---- What older kernels share --------------------------------------------------------------------------------------

void PageAllocator::Era::place(PageAllocator& self, KernelEra kernel) {
  switch (kernel) {
    case KernelEra::linux_2_6_20: place_2_6_20(self); break;
    case KernelEra::linux_3: place_3(self); break;
    case KernelEra::linux_4_14: place_4_14(self); break;
  }
}

bool PageAllocator::OldEra::context(gfp_t gfp, Order order, AllocContext& ac) const {
  if (order.v >= MAX_ORDER) return false;
  if (self.fail_after_.load(std::memory_order_relaxed) >= 0 && self.should_fail_alloc_page(gfp, order)) return false;
  ac.high_zoneidx = gfp.has(__GFP_DMA32) ? ZoneType::DMA32 : ZoneType::NORMAL;
  ac.zonelist = &self.node_.zonelist;
  ac.migratetype = gfp.has(__GFP_MOVABLE)       ? MigrateType::movable
                   : gfp.has(__GFP_RECLAIMABLE) ? MigrateType::reclaimable
                                                : MigrateType::unmovable;
  if (gfp.has(__GFP_DIRECT_RECLAIM)) might_sleep();
  for (unsigned i = 0; i < ac.zonelist->count; ++i) {
    const Zone& zone = *ac.zonelist->zones[i];
    if (zone.type > ac.high_zoneidx) continue;
    ac.classzone_idx = zone.type;
    WEIR_STATE(zonelist, zone, 0, order);
    return true;
  }
  return false;
}

void PageAllocator::OldEra::wake_kswapds(Order order, const AllocContext& ac) {
  for (unsigned i = 0; i < ac.zonelist->count; ++i)
    if (ac.zonelist->zones[i]->type <= ac.high_zoneidx)
      self.pressure_->wakeup_kswapd(ac.zonelist->zones[i]->type, order);
}

PageCount PageAllocator::OldEra::reclaim(gfp_t gfp, Order order) {
  cond_resched();
  PageCount progress{};
  if (engine_thread().thread != nullptr) {
    const ThreadFlagScope freeing_memory(PF_MEMALLOC);
    progress = self.pressure_->try_to_free_pages(order, gfp);
  } else {
    progress = self.pressure_->try_to_free_pages(order, gfp);
  }
  cond_resched();
  return progress;
}

Page* PageAllocator::OldEra::get_page_from_freelist(gfp_t gfp, Order order, uint32_t alloc_flags,
                                                    const AllocContext& ac) {
  WEIR_FLOW(gfp, order, alloc_flags);
  for (unsigned i = 0; i < ac.zonelist->count; ++i) {
    Zone& zone = *ac.zonelist->zones[i];
    if (zone.type > ac.high_zoneidx) continue;
    if ((alloc_flags & ALLOC_NO_WATERMARKS) == 0) {
      const int64_t mark = zone.watermark[alloc_flags & ALLOC_WMARK_MASK & 3].load(std::memory_order_relaxed);
      if (!watermark_ok(zone, order, mark, ac.classzone_idx, alloc_flags)) continue;
    }
    if (Page* page = buffered_rmqueue(zone, order, gfp, ac.migratetype)) {
      self.prep_new_page(*page, order, gfp);
      return page;
    }
  }
  return nullptr;
}

Page* PageAllocator::OldEra::buffered_rmqueue(Zone& zone, Order order, gfp_t gfp, MigrateType type) {
  WEIR_FLOW(zone, order, gfp);
  Page* page = nullptr;
  if (order.v == 0) {
    PerCpuPages& pcp = pcp_of(zone, gfp);
    ScopedLock guard(pcp.lock);
    PageList& list = list_of(pcp, type);
    const bool hit = !list.empty();
    if (!hit) {
      WEIR_STATE(pcp_miss, zone, 0, 0);
      self.count_pcp(zone, pcp, rmqueue_bulk(zone, Order(0), pcp.batch, list, type));
      if (list.empty()) return nullptr;
    }
    // The cold end, where hot and cold pages are on one list.
    page = gfp.has(__GFP_COLD) && !self.cold_lists_ ? &list.back() : &list.front();
    list.erase(PageList::s_iterator_to(*page));
    self.count_pcp(zone, pcp, -1);
    page->set_flags(0);
    if (hit) WEIR_STATE(pcp_hit, self.mem_.pfn(*page), pcp.count + 1, pcp.count);
  } else {
    WEIR_STATE(pcp_miss, zone, 0, order);
    ScopedLock guard(zone.lock);
    page = take_block(zone, order, type);
    if (page == nullptr) return nullptr;
    self.__mod_zone_page_state(zone, -(int64_t{1} << order.v));
  }
  WEIR_BUG_ON(written_while_free(*page));
  self.vmstat_.count_vm_events(zone.type == ZoneType::DMA32 ? VmEvent::pgalloc_dma32 : VmEvent::pgalloc_normal,
                               uint64_t{1} << order.v);
  return page;
}

int32_t PageAllocator::OldEra::rmqueue_bulk(Zone& zone, Order order, int32_t count, PageList& list, MigrateType type) {
  WEIR_FLOW(zone, order, count);
  ScopedLock guard(zone.lock);
  int32_t taken = 0;
  for (; taken < count; ++taken) {
    Page* page = take_block(zone, order, type);
    if (page == nullptr) break;
    WEIR_BUG_ON(written_while_free(*page));
    page->set_flags(flag_bit(PageFlag::pcp));
    list.push_back(*page);
  }
  self.__mod_zone_page_state(zone, -(int64_t{taken} << order.v));
  return taken;
}

bool watermark_by_orders(const Zone& zone, Order order, int64_t mark, ZoneType classzone, uint32_t alloc_flags) {
  int64_t free_pages = zone.nr_free.load(std::memory_order_relaxed);
  WEIR_STATE(watermark, zone, mark, free_pages);
  const auto enough = [&] {
    int64_t min = mark;
    int64_t left = free_pages - (int64_t{1} << order.v) + 1;
    if ((alloc_flags & (ALLOC_HIGH | ALLOC_POOL)) != 0) min -= min / 2;
    if ((alloc_flags & ALLOC_HARDER) != 0) min -= min / 4;
    if (left <= min + zone.lowmem_reserve[static_cast<unsigned>(classzone)]) return false;
    for (unsigned o = 0; o < order.v; ++o) {
      // Blocks of this order are of no use for the request; of the larger ones half as many will do.
      left -= static_cast<int64_t>(zone.free_area[o].nr_free_racy() << o);
      min >>= 1;
      if (left <= min) return false;
    }
    return true;
  }();
  if (!enough) WEIR_STATE(watermark_low, zone, mark, free_pages);
  return enough;
}

// ---- 2.6.20 --------------------------------------------------------------------------------------------------------

bool linux_2_6_20::zone_watermark_ok(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                     uint32_t alloc_flags) {
  WEIR_FLOW(zone, order, mark);
  return watermark_by_orders(zone, order, mark, classzone, alloc_flags);
}

struct PageAllocator::Era_2_6_20 final : OldEra {
  using OldEra::OldEra;
  Page* alloc(gfp_t gfp, Order order) override { return __alloc_pages(gfp, order); }

  bool watermark_ok(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                    uint32_t alloc_flags) const override {
    return linux_2_6_20::zone_watermark_ok(zone, order, mark, classzone, alloc_flags);
  }
  PerCpuPages& pcp_of(Zone& zone, gfp_t gfp) const override {
    return self.this_cpu_pcp(zone, gfp.has(__GFP_COLD) ? Temperature::cold : Temperature::hot);
  }
  PageList& list_of(PerCpuPages& pcp, MigrateType) const override {
    for (PageList& list : pcp.lists)
      if (!list.empty()) return list;
    return pcp.lists[0];
  }
  Page* take_block(Zone& zone, Order order, MigrateType) override { return __rmqueue(zone, order); }

  Page* __alloc_pages(gfp_t gfp, Order order);
  Page* __rmqueue(Zone& zone, Order order) WEIR_REQUIRES(zone.lock);
  Page* direct_reclaim(gfp_t gfp, Order order, uint32_t alloc_flags, const AllocContext& ac, bool& restart,
                       bool& hopeless);
  Page* handed_out(Page& page, Order order) {
    WEIR_STATE(page_alloced, self.mem_.pfn(page), 0, order);
    return &page;
  }
};

void PageAllocator::Era::place_2_6_20(PageAllocator& self) {
  static_assert(sizeof(Era_2_6_20) <= ERA_BYTES);
  self.era_ = ::new (static_cast<void*>(self.era_place_)) Era_2_6_20(self);
}

Page* PageAllocator::Era_2_6_20::__alloc_pages(gfp_t gfp, Order order) {
  WEIR_FLOW(gfp, order);
  AllocContext ac;
  if (!context(gfp, order, ac)) return nullptr;
  gfp = current_gfp_context(gfp);
  const bool wait = gfp.has(__GFP_DIRECT_RECLAIM) && self.pressure_ != nullptr;
  bool restart = true;
  while (restart) {
    restart = false;
    if (Page* page = get_page_from_freelist(gfp, order, ALLOC_WMARK_LOW, ac)) return handed_out(*page, order);
    if (gfp.has(__GFP_KSWAPD_RECLAIM) && self.pressure_ != nullptr) wake_kswapds(order, ac);
    uint32_t alloc_flags = ALLOC_WMARK_MIN;
    if (!gfp.has(__GFP_DIRECT_RECLAIM) || gfp.has(__GFP_ATOMIC)) alloc_flags |= ALLOC_HARDER;
    if (gfp.has(__GFP_HIGH)) alloc_flags |= ALLOC_HIGH;
    if (gfp.has(__GFP_POOL)) alloc_flags |= ALLOC_POOL;
    if (Page* page = get_page_from_freelist(gfp, order, alloc_flags, ac)) return handed_out(*page, order);
    self.flush_quarantine(gfp);

    // Who frees memory, and who is to die, gets the last page; it does not reclaim itself.
    if ((current_flags() & PF_MEMALLOC) != 0 || current_is_oom_victim()) {
      if (gfp.has(__GFP_NOMEMALLOC) || gfp.has(__GFP_POOL)) break;
      do {
        if (Page* page = get_page_from_freelist(gfp, order, ALLOC_NO_WATERMARKS, ac)) return handed_out(*page, order);
        if (gfp.has(__GFP_NOFAIL)) sleep_for(20_ms);
      } while (gfp.has(__GFP_NOFAIL));
      break;
    }
    if (!wait) {
      if (gfp.has(__GFP_NOFAIL)) bug("__GFP_NOFAIL of who cannot wait", __FILE__, __LINE__);
      break;
    }
    for (;;) {
      bool hopeless = false;
      if (Page* page = direct_reclaim(gfp, order, alloc_flags, ac, restart, hopeless)) return handed_out(*page, order);
      if (restart) break;
      const bool again =
          gfp.has(__GFP_NOFAIL) || (!gfp.has(__GFP_NORETRY) && !hopeless &&
                                    (order.v <= PAGE_ALLOC_COSTLY_ORDER || gfp.has(__GFP_RETRY_MAYFAIL)));
      if (!again) break;
      sleep_for(20_ms);  // congestion_wait
    }
  }
  self.warn_alloc(gfp, order);
  return nullptr;
}

// One round of it. restart: somebody was killed, everything is tried anew. hopeless: there is nobody left to kill,
// where the kernel panics.
Page* PageAllocator::Era_2_6_20::direct_reclaim(gfp_t gfp, Order order, uint32_t alloc_flags, const AllocContext& ac,
                                                bool& restart, bool& hopeless) {
  const PageCount progress = reclaim(gfp, order);
  self.flush_quarantine(gfp);
  if (progress.v > 0) return get_page_from_freelist(gfp, order, alloc_flags, ac);
  WEIR_STATE(reclaim_fruitless, order, 0, 1);
  if (!gfp.has(__GFP_FS) || gfp.has(__GFP_NORETRY)) return nullptr;
  // So high that it only succeeds if another kill has just freed a lot.
  if (Page* page = get_page_from_freelist(gfp, order, ALLOC_WMARK_HIGH, ac)) return page;
  if (!self.oom_lock_.try_lock()) {
    // Somebody else is killing.
    restart = true;
    sleep_for(4_ms);
    return nullptr;
  }
  const bool killed = self.pressure_->out_of_memory(OomControl{gfp, order});
  self.oom_lock_.unlock();
  restart = killed;
  hopeless = !killed;
  // Who was killed needs a moment to die.
  if (killed) sleep_for(4_ms);
  return nullptr;
}

Page* PageAllocator::Era_2_6_20::__rmqueue(Zone& zone, Order order) {
  WEIR_FLOW(zone, order);
  for (unsigned o = order.v; o < MAX_ORDER; ++o)
    for (unsigned t = static_cast<unsigned>(MigrateType::count); t-- > 0;) {
      const auto type = static_cast<MigrateType>(t);
      PageList& list = free_list(zone, self.mem_, o, type);
      if (list.empty()) continue;
      Page& page = list.front();
      const FreeArea& area = zone.free_area[o];
      WEIR_STATE(buddy_find, self.mem_.pfn(page), order, o);
      self.del_from_free_list(zone, page, o);
      WEIR_STATE(buddy_remove, self.mem_.pfn(page), area.nr_free + 1, area.nr_free);
      self.expand(zone, page, order.v, o, type);
      return &page;
    }
  return nullptr;
}

}  // namespace weir
