// src/mm/page_alloc_slowpath.cpp: what an allocation does when no zone is above its low mark; see page_alloc.hpp
//
//   wake kswapd --> try at min --┬ atomic: nothing
//                                └ try, reclaim, try ... 16 loops in vain --> kill somebody --> try ... or nothing
//
// Linux: mm/page_alloc.c, 4.14.
#include <algorithm>

#include "kernel/log_line.hpp"
#include "mm/mm_types.hpp"
#include "mm/page_alloc.hpp"

namespace weir {

namespace {

/// Which mark and how much of it, from what the request says of itself.
uint32_t gfp_to_alloc_flags(gfp_t gfp) {
  uint32_t flags = ALLOC_WMARK_MIN;
  if (gfp.has(__GFP_HIGH)) flags |= ALLOC_HIGH;
  if (gfp.has(__GFP_ATOMIC) && !gfp.has(__GFP_NOMEMALLOC)) flags |= ALLOC_HARDER;
  if (gfp.has(__GFP_POOL)) flags |= ALLOC_POOL;
  return flags;
}

/// The right to the reserves: of who is freeing memory, and of who was chosen to die. A pool keeps to its half even
/// while reclaim fills it: what it would take beyond is what reclaim needs to finish.
uint32_t gfp_pfmemalloc_flags(gfp_t gfp) {
  if (gfp.has(__GFP_NOMEMALLOC) || gfp.has(__GFP_POOL)) return 0;
  if (gfp.has(__GFP_MEMALLOC) || (current_flags() & PF_MEMALLOC) != 0) return ALLOC_NO_WATERMARKS;
  return current_is_oom_victim() ? uint32_t{ALLOC_OOM} : 0;
}

}  // namespace

void PageAllocator::cond_resched() {
  if (engine_thread().world != nullptr) world().cond_resched();
}

void PageAllocator::sleep_for(Nanos delay) {
  if (engine_thread().world != nullptr) (void)world().schedule_timeout(delay);
}

Page* PageAllocator::__alloc_pages_slowpath(gfp_t gfp, Order order, const AllocContext& ac) {
  WEIR_FLOW(gfp, order);
  const bool can_direct_reclaim = gfp.has(__GFP_DIRECT_RECLAIM) && pressure_ != nullptr;
  uint32_t alloc_flags = gfp_to_alloc_flags(gfp);
  int no_progress_loops = 0;

  wake_all_kswapds(gfp, order, ac);
  if (Page* page = get_page_from_freelist(gfp, order, alloc_flags, ac)) return page;
  flush_quarantine(gfp);

  for (;;) {
    wake_all_kswapds(gfp, order, ac);  // it may have gone to sleep meanwhile
    const uint32_t reserve_flags = gfp_pfmemalloc_flags(gfp);
    if (reserve_flags != 0) alloc_flags = reserve_flags;
    if (Page* page = get_page_from_freelist(gfp, order, alloc_flags, ac)) return page;

    const auto may_go_on = [&] {
      // Reclaim inside reclaim would not end.
      return can_direct_reclaim && (current_flags() & PF_MEMALLOC) == 0;
    };
    if (may_go_on()) {
      bool did_some_progress = false;
      if (Page* page = __alloc_pages_direct_reclaim(gfp, order, alloc_flags, ac, did_some_progress)) return page;
      const bool costly = order.v > PAGE_ALLOC_COSTLY_ORDER;
      if (!gfp.has(__GFP_NORETRY) && !(costly && !gfp.has(__GFP_RETRY_MAYFAIL))) {
        if (should_reclaim_retry(order, ac, alloc_flags, did_some_progress, no_progress_loops)) continue;
        if (Page* page = __alloc_pages_may_oom(gfp, order, ac, did_some_progress)) return page;
        // A victim that had its share of the reserves and still has no page fails, so that it gets to its exit.
        const bool dying = current_is_oom_victim() && (alloc_flags == ALLOC_OOM || gfp.has(__GFP_NOMEMALLOC));
        if (!dying && did_some_progress) {
          no_progress_loops = 0;
          continue;
        }
      }
    }

    // Who cannot fail goes on for ever, a little deeper in the reserves. Without the right to wait, or without rooms
    // above that could free anything, that is a bug of the caller.
    if (!gfp.has(__GFP_NOFAIL)) break;
    if (Page* page = get_page_from_freelist(gfp, order, ALLOC_HARDER, ac)) return page;
    if (!can_direct_reclaim) {
      if (Page* page = get_page_from_freelist(gfp, order, ALLOC_NO_WATERMARKS, ac)) return page;
      bug("__GFP_NOFAIL of who cannot wait", __FILE__, __LINE__);
    }
    cond_resched();
    if ((current_flags() & PF_MEMALLOC) != 0) sleep_for(20_ms);
  }
  warn_alloc(gfp, order);
  return nullptr;
}

void PageAllocator::wake_all_kswapds(gfp_t gfp, Order order, const AllocContext& ac) {
  if (gfp.has(__GFP_KSWAPD_RECLAIM) && pressure_ != nullptr) pressure_->wakeup_kswapd(ac.high_zoneidx, order);
}

/// Frames that wait for the host to take their pages back are free a moment from now.
/// It is work for the host: not for who cannot wait, who perhaps holds a spinlock.
void PageAllocator::flush_quarantine(gfp_t gfp) {
  if (!tracks_host_pages_ || !gfp.has(__GFP_DIRECT_RECLAIM)) return;
  if (vmstat_.node_page_state(NodeStat::nr_quarantined) > 0) mmu_.flush_quarantine();
}

Page* PageAllocator::__alloc_pages_direct_reclaim(gfp_t gfp, Order order, uint32_t alloc_flags, const AllocContext& ac,
                                                  bool& did_some_progress) {
  WEIR_FLOW(gfp, order);
  did_some_progress = __perform_reclaim(gfp, order).v > 0;
  if (!did_some_progress) return nullptr;
  flush_quarantine(gfp);
  if (Page* page = get_page_from_freelist(gfp, order, alloc_flags, ac)) return page;
  // What was freed may lie on other CPUs' lists.
  drain_all_pages();
  return get_page_from_freelist(gfp, order, alloc_flags, ac);
}

PageCount PageAllocator::__perform_reclaim(gfp_t gfp, Order order) {
  WEIR_FLOW(gfp, order);
  cond_resched();
  Thread* thread = engine_thread().thread;
  PageCount progress{};
  if (thread != nullptr) {
    const ThreadFlagScope freeing_memory(PF_MEMALLOC);
    progress = pressure_->try_to_free_pages(order, gfp);
  } else {
    progress = pressure_->try_to_free_pages(order, gfp);
  }
  cond_resched();
  return progress;
}

bool PageAllocator::should_reclaim_retry(Order order, const AllocContext& ac, uint32_t alloc_flags,
                                         bool did_some_progress, int& no_progress_loops) {
  WEIR_FLOW(order, no_progress_loops);
  // Progress for a costly order says little: single pages do not make a block.
  if (did_some_progress && order.v <= PAGE_ALLOC_COSTLY_ORDER) {
    no_progress_loops = 0;
  } else {
    WEIR_STATE(reclaim_fruitless, order, no_progress_loops, no_progress_loops + 1);
    ++no_progress_loops;
  }
  if (no_progress_loops > MAX_RECLAIM_RETRIES) return false;

  // Would the request be served if everything that reclaim can still get were free?
  const int64_t reclaimable = pressure_->zone_reclaimable_pages().v;
  for (unsigned at = 0;; ++at) {
    const Zone* zone = for_next_zone_zonelist_nodemask(*ac.zonelist, ac.high_zoneidx, at);
    if (zone == nullptr) return false;
    // The node's lists know no zones; none has more to give than it has.
    const int64_t here = std::min(reclaimable, zone->managed_pages.load(std::memory_order_relaxed));
    const int64_t available = zone->nr_free.load(std::memory_order_relaxed) + here;
    if (!__zone_watermark_ok(*zone, order, zone->wmark(Watermark::min), ac.classzone_idx, alloc_flags, available))
      continue;
    // If most of it is on its way to a disk, what is missing is time.
    if (!did_some_progress) {
      const int64_t pending =
          vmstat_.node_page_state(NodeStat::nr_writeback) + vmstat_.node_page_state(NodeStat::nr_dirty);
      if (2 * pending > reclaimable) {
        sleep_for(100_ms);
        return true;
      }
    }
    cond_resched();
    return true;
  }
}

Page* PageAllocator::__alloc_pages_may_oom(gfp_t gfp, Order order, const AllocContext& ac, bool& did_some_progress) {
  WEIR_FLOW(gfp, order);
  if (!oom_lock_.try_lock()) {
    // Somebody else is killing: what that frees counts as progress.
    did_some_progress = true;
    sleep_for(4_ms);
    return nullptr;
  }
  did_some_progress = false;
  // A last look, high enough that it only succeeds if another kill has just freed a lot.
  Page* page = get_page_from_freelist((gfp | __GFP_HARDWALL) & ~__GFP_DIRECT_RECLAIM, order, ALLOC_WMARK_HIGH, ac);
  // Killing helps neither a costly order nor a request that may fail; and a low zone is not worth a process.
  const bool worth_it =
      order.v <= PAGE_ALLOC_COSTLY_ORDER && !gfp.has(__GFP_RETRY_MAYFAIL) && ac.high_zoneidx >= ZoneType::NORMAL;
  if (page == nullptr && worth_it) {
    if (pressure_->out_of_memory(OomControl{gfp, order}) || gfp.has(__GFP_NOFAIL)) {
      did_some_progress = true;
      if (gfp.has(__GFP_NOFAIL)) page = get_page_from_freelist(gfp, order, ALLOC_NO_WATERMARKS, ac);
    }
  }
  oom_lock_.unlock();
  return page;
}

// ---- Saying that it failed ------------------------------------------------------------------------------------------

void PageAllocator::warn_alloc(gfp_t gfp, Order order) {
  if (gfp.has(__GFP_NOWARN) || engine_thread().world == nullptr) return;
  // A machine that fails fails often: 10 messages in 5 seconds say it.
  const uint64_t now = world().now().v + 1;
  if (const uint64_t since = warn_window_.load(std::memory_order_relaxed); since == 0 || now - since > (5_s).v) {
    warn_window_.store(now, std::memory_order_relaxed);
    warned_.store(0, std::memory_order_relaxed);
  }
  if (warned_.fetch_add(1, std::memory_order_relaxed) >= 10) return;

  const Thread* thread = engine_thread().thread;
  (LogLine() << (thread != nullptr ? thread->comm : "-") << ": page allocation failure. order:" << order.v
             << ", mode:0x")
      .hex(gfp.v);
  LogLine() << "Mem-Info:";
  const auto gauge = [&](NodeStat s) { return vmstat_.node_page_state(s); };
  LogLine() << "active_anon:" << gauge(NodeStat::nr_active_anon)
            << " inactive_anon:" << gauge(NodeStat::nr_inactive_anon)
            << " isolated_anon:" << gauge(NodeStat::nr_isolated_anon);
  LogLine() << "active_file:" << gauge(NodeStat::nr_active_file)
            << " inactive_file:" << gauge(NodeStat::nr_inactive_file)
            << " isolated_file:" << gauge(NodeStat::nr_isolated_file);
  LogLine() << "unevictable:" << gauge(NodeStat::nr_unevictable) << " dirty:" << gauge(NodeStat::nr_dirty)
            << " writeback:" << gauge(NodeStat::nr_writeback);
  LogLine() << "slab_reclaimable:" << gauge(NodeStat::nr_slab_reclaimable)
            << " slab_unreclaimable:" << gauge(NodeStat::nr_slab_unreclaimable);
  LogLine() << "mapped:" << gauge(NodeStat::nr_mapped) << " pagetables:" << gauge(NodeStat::nr_page_table_pages)
            << " free:" << gauge(NodeStat::nr_free_pages);
  constexpr int64_t KB = PAGE_SIZE / 1024;
  for (unsigned i = node_.zonelist.count; i-- > 0;) {
    const Zone& zone = *node_.zonelist.zones[i];
    LogLine() << "Node " << node_.id.v << " " << zone_name(zone.type)
              << " free:" << zone.nr_free.load(std::memory_order_relaxed) * KB
              << "kB min:" << zone.wmark(Watermark::min) * KB << "kB low:" << zone.wmark(Watermark::low) * KB
              << "kB high:" << zone.wmark(Watermark::high) * KB << "kB present:" << zone.present_pages.v * KB
              << "kB managed:" << zone.managed_pages.load(std::memory_order_relaxed) * KB << "kB";
  }
}

}  // namespace weir
