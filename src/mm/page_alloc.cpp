// src/mm/page_alloc.cpp: the paths that every allocation and every free takes; see page_alloc.hpp.
// What is done when they fail: page_alloc_slowpath.cpp. Set-up, sysctls, balloon: page_alloc_setup.cpp.
#include <cstring>
#include <new>

#include "mm/page_alloc_era.hpp"

namespace weir {

namespace {

using MT = MigrateType;
constexpr unsigned NR_TYPES = static_cast<unsigned>(MT::count);
constexpr int64_t PAGEBLOCK_PAGES = int64_t{1} << pageblock_order;

/// Where to look when a type has no block left, best first.
constexpr MT FALLBACKS[NR_TYPES][2] = {
    /* unmovable   */ {MT::reclaimable, MT::movable},
    /* movable     */ {MT::reclaimable, MT::unmovable},
    /* reclaimable */ {MT::unmovable, MT::movable},
};

PageList& list_of(FreeArea& area, MT type) { return area.free_list[static_cast<unsigned>(type)]; }
PageList& list_of(PerCpuPages& pcp, MT type) { return pcp.lists[static_cast<unsigned>(type)]; }

Page* list_first_entry_or_null(PageList& list) {
  WEIR_FLOW();
  return list.empty() ? nullptr : &list.front();
}

void list_del(PageList& list, Page& page) {
  WEIR_FLOW();
  list.erase(PageList::s_iterator_to(page));
}

/// Could `page` be the free buddy of a block of this order? Only heads of free blocks have the flag.
bool page_is_buddy(const Page& page, unsigned order) {
  return (page.flags.load(std::memory_order_relaxed) & flag_bit(PageFlag::buddy)) != 0 && page.private_ == order;
}

/// Is a block of this order worth its whole pageblock? Large ones are; and whoever cannot be moved later had better
/// keep together.
bool can_steal_fallback(unsigned order, MT start) { return order >= pageblock_order / 2 || start != MT::movable; }

/// A page came back: the zone is worth a scan again.
void reclaim_may_hope(Zone& zone) {
  zone.pages_scanned.store(0, std::memory_order_relaxed);
  zone.all_unreclaimable.store(false, std::memory_order_relaxed);
}

}  // namespace

// ---- Lists and counts -----------------------------------------------------------------------------------------------

PerCpuPages& PageAllocator::this_cpu_pcp(Zone& zone, Temperature temperature) const {
  const Thread* thread = engine_thread().thread;
  unsigned cpu = thread != nullptr ? thread->cpu.v : 0;
  if (cpu >= cpus_) cpu = 0;
  if (temperature == Temperature::cold && zone.nr_pcp > cpus_) cpu += cpus_;
  return zone.pcp[cpu];
}

Zone& PageAllocator::page_zone(const Page& page) const {
  // Zones are at most two, and the upper one begins where the lower ends.
  Zone& normal = node_.zones[static_cast<unsigned>(ZoneType::NORMAL)];
  return normal.populated() && mem_.pfn(page) >= normal.zone_start_pfn
             ? normal
             : node_.zones[static_cast<unsigned>(ZoneType::DMA32)];
}

void PageAllocator::__mod_zone_page_state(Zone& zone, int64_t delta) {
  WEIR_FLOW(zone, delta);
  const int64_t before = zone.nr_free.load(std::memory_order_relaxed);
  zone.nr_free.store(before + delta, std::memory_order_relaxed);
  vmstat_.mod_node_page_state(NodeStat::nr_free_pages, delta);
  WEIR_STATE(nr_free, zone, before, before + delta);
}

void PageAllocator::__count_zid_vm_events(const Zone& zone, Order order) {
  WEIR_FLOW(zone, order);
  const VmEvent event = zone.type == ZoneType::DMA32 ? VmEvent::pgalloc_dma32 : VmEvent::pgalloc_normal;
  vmstat_.count_vm_events(event, uint64_t{1} << order.v);
}

void PageAllocator::count_blocks(Zone& zone, unsigned order, int by) {
  FreeArea& area = zone.free_area[order];
  const uint64_t before = area.nr_free, after = before + static_cast<uint64_t>(int64_t{by});
  __atomic_store_n(&area.nr_free, after, __ATOMIC_RELAXED);
  WEIR_STATE(free_area, uint64_t{flow_value_of(zone)} << 8 | order, before, after);
}

void PageAllocator::count_pcp(const Zone& zone, PerCpuPages& pcp, int32_t by) {
  const int32_t before = pcp.count;
  pcp.count += by;
  WEIR_STATE(pcp_count, flow_value_of(zone) << 16 | static_cast<uint64_t>(&pcp - zone.pcp), before, pcp.count);
}

void PageAllocator::add_to_free_list(Zone& zone, Page& page, unsigned order, MigrateType type) {
  page.private_ = order;
  page.set_flags(flag_bit(PageFlag::buddy));
  FreeArea& area = zone.free_area[order];
  list_of(area, type).push_front(page);
  count_blocks(zone, order, 1);
}

void PageAllocator::del_from_free_list(Zone& zone, Page& page, unsigned order) {
  FreeArea& area = zone.free_area[order];
  // Which list it is on does not matter: the lists keep no length.
  area.free_list[0].erase(PageList::s_iterator_to(page));
  page.private_ = 0;
  page.set_flags(0);
  count_blocks(zone, order, -1);
}

/// The list of free blocks of this order and type. Empty only if there are none: the next untouched block is put on it
/// in time.
PageList& PageAllocator::free_list(Zone& zone, const MemMap& mem, unsigned order, MigrateType type) {
  PageList& list = list_of(zone.free_area[order], type);
  if (order == MAX_ORDER - 1 && type == MT::movable && zone.nr_untouched != 0 && list.empty())
    list_untouched(zone, mem);
  return list;
}

/// The highest untouched block goes to the end of its list. It is counted already.
void PageAllocator::list_untouched(Zone& zone, const MemMap& mem) {
  Zone::Untouched& run = zone.untouched[zone.nr_untouched - 1];
  Page& page = mem.page(run.start + PageCount(static_cast<int64_t>(--run.blocks << (MAX_ORDER - 1))));
  if (run.blocks == 0) --zone.nr_untouched;
  page.private_ = MAX_ORDER - 1;
  page.set_flags(flag_bit(PageFlag::buddy));
  list_of(zone.free_area[MAX_ORDER - 1], MT::movable).push_back(page);
}

/// Boot gives a largest block, in ascending order. False: the runs are too many, it must go on a list.
bool PageAllocator::keep_untouched(Zone& zone, Pfn start) {
  Zone::Untouched* run = zone.nr_untouched > 0 ? &zone.untouched[zone.nr_untouched - 1] : nullptr;
  if (run == nullptr || run->start + PageCount(static_cast<int64_t>(run->blocks << (MAX_ORDER - 1))) != start) {
    if (zone.nr_untouched == std::size(zone.untouched)) return false;
    run = &zone.untouched[zone.nr_untouched++];
    *run = {start, 0};
  }
  ++run->blocks;
  count_blocks(zone, MAX_ORDER - 1, 1);
  return true;
}

// ---- Allocation -----------------------------------------------------------------------------------------------------

Page* PageAllocator::alloc_pages(gfp_t gfp, Order order) {
  WEIR_FLOW(gfp, order);
  WEIR_RETURN(era_->alloc(gfp, order));
}

struct PageAllocator::Era_4_14 final : Era {
  using Era::Era;
  Page* alloc(gfp_t gfp, Order order) override { return self.__alloc_pages_nodemask(gfp, order); }
};

void PageAllocator::Era::place_4_14(PageAllocator& self) {
  static_assert(sizeof(Era_4_14) <= ERA_BYTES);
  self.era_ = ::new (static_cast<void*>(self.era_place_)) Era_4_14(self);
}

Page* PageAllocator::__alloc_pages_nodemask(gfp_t gfp, Order order) {
  WEIR_FLOW(gfp, order);
  AllocContext ac;
  if (!prepare_alloc_pages(gfp, order, ac)) return nullptr;
  Page* page = get_page_from_freelist(gfp, order, ALLOC_WMARK_LOW, ac);
  if (__builtin_expect(page == nullptr, 0)) page = __alloc_pages_slowpath(current_gfp_context(gfp), order, ac);
  if (page != nullptr) WEIR_STATE(page_alloced, mem_.pfn(page), 0, order);
  return page;
}

std::byte* PageAllocator::__get_free_pages(gfp_t gfp, Order order) {
  WEIR_FLOW(gfp, order);
  Page* page = alloc_pages(gfp & ~__GFP_HIGHMEM, order);
  return page != nullptr ? mem_.page_address(*page) : nullptr;
}

std::byte* PageAllocator::get_zeroed_page(gfp_t gfp) {
  WEIR_FLOW(gfp);
  return __get_free_pages(gfp | __GFP_ZERO, Order(0));
}

bool PageAllocator::prepare_alloc_pages(gfp_t gfp, Order order, AllocContext& ac) {
  WEIR_FLOW(gfp, order);
  if (order.v >= MAX_ORDER) return false;
  ac.high_zoneidx = gfp_zone(gfp);
  ac.zonelist = &node_zonelist(node_, gfp);
  ac.migratetype = gfpflags_to_migratetype(gfp);
  if (gfp.has(__GFP_DIRECT_RECLAIM)) might_sleep();
  const Zone* first = nullptr;
  for (unsigned i = 0; i < ac.zonelist->count && first == nullptr; ++i)
    if (ac.zonelist->zones[i]->type <= ac.high_zoneidx) first = ac.zonelist->zones[i];
  if (first == nullptr) return false;  // no zone as low as that has memory
  if (__builtin_expect(fail_after_.load(std::memory_order_relaxed) >= 0, 0) && should_fail_alloc_page(gfp, order))
    return false;
  ac.classzone_idx = first->type;
  WEIR_STATE(zonelist, *first, 0, order);
  return true;
}

/// Fault injection: one allocation fails, whatever there is.
bool PageAllocator::should_fail_alloc_page(gfp_t gfp, Order order) {
  WEIR_FLOW(gfp, order);
  return !gfp.has(__GFP_NOFAIL) && fail_after_.fetch_sub(1, std::memory_order_relaxed) == 0;
}

Page* PageAllocator::get_page_from_freelist(gfp_t gfp, Order order, uint32_t alloc_flags, const AllocContext& ac) {
  WEIR_FLOW(gfp, order, alloc_flags);
  for (unsigned at = 0;; ++at) {
    Zone* zone = for_next_zone_zonelist_nodemask(*ac.zonelist, ac.high_zoneidx, at);
    if (zone == nullptr) return nullptr;
    const int64_t mark = zone->watermark[alloc_flags & ALLOC_WMARK_MASK & 3].load(std::memory_order_relaxed);
    if (!zone_watermark_fast(*zone, order, mark, ac.classzone_idx, alloc_flags) &&
        (alloc_flags & ALLOC_NO_WATERMARKS) == 0)
      continue;
    if (Page* page = rmqueue(*zone, order, gfp, ac.migratetype)) {
      prep_new_page(*page, order, gfp);
      return page;
    }
  }
}

// ---- Watermarks -----------------------------------------------------------------------------------------------------

bool PageAllocator::__zone_watermark_ok(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                        uint32_t alloc_flags, int64_t free_pages) {
  WEIR_FLOW(zone, order, mark);
  int64_t min = mark;
  free_pages -= (int64_t{1} << order.v) - 1;
  if ((alloc_flags & (ALLOC_HIGH | ALLOC_POOL)) != 0) min -= min / 2;
  if ((alloc_flags & ALLOC_OOM) != 0)
    min -= min / 2;  // it will free more than it takes
  else if ((alloc_flags & ALLOC_HARDER) != 0)
    min -= min / 4;
  if (free_pages <= min + zone.lowmem_reserve[static_cast<unsigned>(classzone)]) return false;
  if (order.v == 0) return true;
  // Enough in sum; one block must also be large enough. Every type's list will do: fallback takes from all.
  for (unsigned o = order.v; o < MAX_ORDER; ++o)
    if (zone.free_area[o].nr_free_racy() > 0) return true;
  return false;
}

bool PageAllocator::zone_watermark_fast(Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                        uint32_t alloc_flags) const {
  WEIR_FLOW(zone, order, mark);
  const int64_t free_pages = zone.nr_free.load(std::memory_order_relaxed);
  WEIR_STATE(watermark, zone, mark, free_pages);
  if (order.v == 0 && free_pages > mark + zone.lowmem_reserve[static_cast<unsigned>(classzone)]) return true;
  const bool ok = __zone_watermark_ok(zone, order, mark, classzone, alloc_flags, free_pages);
  if (!ok) WEIR_STATE(watermark_low, zone, mark, free_pages);
  return ok;
}

bool PageAllocator::zone_watermark_ok(Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                      uint32_t alloc_flags) const {
  WEIR_FLOW(zone, order, mark);
  return __zone_watermark_ok(zone, order, mark, classzone, alloc_flags, zone.nr_free.load(std::memory_order_relaxed));
}

bool PageAllocator::zone_watermark_ok_safe(Zone& zone, Order order, int64_t mark, ZoneType classzone) const {
  WEIR_FLOW(zone, order, mark);
  // The counter has no per-CPU part, so the safe reading is the ordinary one.
  return __zone_watermark_ok(zone, order, mark, classzone, 0, zone.nr_free.load(std::memory_order_relaxed));
}

// ---- Out of a zone's lists ------------------------------------------------------------------------------------------

Page* PageAllocator::rmqueue(Zone& zone, Order order, gfp_t gfp, MigrateType type) {
  WEIR_FLOW(zone, order, type);
  if (__builtin_expect(order.v == 0, 1)) return rmqueue_pcplist(zone, gfp, type);
  WEIR_STATE(pcp_miss, zone, 0, order);
  Page* page;
  {
    ScopedLock guard(zone.lock);
    page = __rmqueue(zone, order, type);
    if (page != nullptr) __mod_zone_page_state(zone, -(int64_t{1} << order.v));
  }
  if (page == nullptr) return nullptr;
  WEIR_BUG_ON(check_new_page(*page));
  __count_zid_vm_events(zone, order);
  return page;
}

Page* PageAllocator::rmqueue_pcplist(Zone& zone, gfp_t gfp, MigrateType type) {
  WEIR_FLOW(zone, type);
  PerCpuPages& pcp = this_cpu_pcp(zone);
  ScopedLock guard(pcp.lock);
  Page* page = __rmqueue_pcplist(zone, pcp, gfp, type);
  if (page != nullptr) __count_zid_vm_events(zone, Order(0));
  return page;
}

Page* PageAllocator::__rmqueue_pcplist(Zone& zone, PerCpuPages& pcp, gfp_t gfp, MigrateType type) {
  WEIR_FLOW(zone, type);
  const Temperature temperature = gfp.has(__GFP_COLD) ? Temperature::cold : Temperature::hot;
  PageList& list = list_of(pcp, type);
  const bool hit = !list.empty();
  if (!hit) {
    WEIR_STATE(pcp_miss, zone, 0, 0);
    count_pcp(zone, pcp, rmqueue_bulk(zone, Order(0), pcp.batch, list, type, temperature));
    if (list.empty()) return nullptr;
  }
  Page& page = temperature == Temperature::cold ? list.back() : list.front();
  list_del(list, page);
  count_pcp(zone, pcp, -1);
  page.set_flags(0);
  if (hit) WEIR_STATE(pcp_hit, mem_.pfn(page), pcp.count + 1, pcp.count);
  return &page;
}

int32_t PageAllocator::rmqueue_bulk(Zone& zone, Order order, int32_t count, PageList& list, MigrateType type,
                                    Temperature temperature) {
  WEIR_FLOW(zone, order, count);
  ScopedLock guard(zone.lock);
  int32_t taken = 0;
  for (; taken < count; ++taken) {
    Page* page = __rmqueue(zone, order, type);
    if (page == nullptr) break;
    WEIR_BUG_ON(check_pcp_refill(*page));
    page->set_flags(flag_bit(PageFlag::pcp));
    // Whichever end they are taken from, they come in the order of their frames: neighbours are merged by who reads
    // them.
    if (temperature == Temperature::cold)
      list.push_front(*page);
    else
      list.push_back(*page);
  }
  __mod_zone_page_state(zone, -(int64_t{taken} << order.v));
  return taken;
}

Page* PageAllocator::__rmqueue(Zone& zone, Order order, MigrateType type) {
  WEIR_FLOW(zone, order, type);
  for (;;) {
    if (Page* page = __rmqueue_smallest(zone, order, type)) return page;
    if (!__rmqueue_fallback(zone, order, type)) return nullptr;
  }
}

Page* PageAllocator::__rmqueue_smallest(Zone& zone, Order order, MigrateType type) {
  WEIR_FLOW(zone, order, type);
  for (unsigned o = order.v; o < MAX_ORDER; ++o) {
    FreeArea& area = zone.free_area[o];
    Page* page = list_first_entry_or_null(free_list(zone, mem_, o, type));
    if (page == nullptr) continue;
    WEIR_STATE(buddy_find, mem_.pfn(page), order, o);
    del_from_free_list(zone, *page, o);
    WEIR_STATE(buddy_remove, mem_.pfn(page), area.nr_free + 1, area.nr_free);
    expand(zone, *page, order.v, o, type);
    return page;
  }
  return nullptr;
}

/// The low half is kept, each upper half goes to the list below.
void PageAllocator::expand(Zone& zone, Page& page, unsigned low, unsigned high, MigrateType type) {
  while (high > low) {
    --high;
    Page& upper = *(&page + (size_t{1} << high));
    add_to_free_list(zone, upper, high, type);
    WEIR_STATE(buddy_split, mem_.pfn(upper), high + 1, high);
  }
}

// ---- fallback: a type without blocks takes another's, the largest first, so that few pageblocks are mixed

bool PageAllocator::__rmqueue_fallback(Zone& zone, Order order, MigrateType start) {
  WEIR_FLOW(zone, order, start);
  const auto suitable = [&](unsigned o) WEIR_REQUIRES(zone.lock) -> Page* {
    for (MT type : FALLBACKS[static_cast<unsigned>(start)])
      if (PageList& list = free_list(zone, mem_, o, type); !list.empty()) return &list.front();
    return nullptr;
  };
  for (unsigned o = MAX_ORDER; o-- > order.v;) {
    Page* page = suitable(o);
    if (page == nullptr) continue;
    const bool whole_block = can_steal_fallback(o, start);
    // Movable pages take only what they need, and then the smallest that does: the large one stays whole (4.13 and
    // later).
    if (!whole_block)
      for (unsigned small = order.v; small < o; ++small)
        if (Page* p = suitable(small)) {
          page = p;
          break;
        }
    steal_suitable_fallback(zone, *page, start, whole_block);
    return true;
  }
  return false;
}

/// Afterwards `page`'s block is on a list of type `start`.
void PageAllocator::steal_suitable_fallback(Zone& zone, Page& page, MigrateType start, bool whole_block) {
  WEIR_FLOW(zone, mem_.pfn(page), start);
  const auto order = static_cast<unsigned>(page.private_);
  const Pfn pfn = mem_.pfn(page);
  bool moved = false;
  if (order >= pageblock_order) {
    for (int64_t i = 0; i < int64_t{1} << order; i += PAGEBLOCK_PAGES) zone.block_type(pfn + PageCount(i)) = start;
  } else if (whole_block) {
    MigrateType& block = zone.block_type(pfn);
    int64_t movable = 0;
    const int64_t free_pages = move_freepages_block(zone, page, start, movable);
    moved = free_pages > 0;
    // Pages in use that are of our kind count as if they were free. Between the two immovable kinds nobody can tell.
    int64_t alike = 0;
    if (start == MT::movable)
      alike = movable;
    else if (block == MT::movable)
      alike = PAGEBLOCK_PAGES - (free_pages + movable);
    if (moved && free_pages + alike >= PAGEBLOCK_PAGES / 2) block = start;
  }
  if (moved) return;
  zone.free_area[order].free_list[0].erase(PageList::s_iterator_to(page));
  list_of(zone.free_area[order], start).push_front(page);
}

/// Moves every free block of `page`'s pageblock to the lists of `type`. Returns their pages; 0 if the pageblock is not
/// wholly in the zone.
int64_t PageAllocator::move_freepages_block(Zone& zone, Page& page, MigrateType type, int64_t& movable) {
  const Pfn start{mem_.pfn(page).v & ~static_cast<uint64_t>(PAGEBLOCK_PAGES - 1)};
  const Pfn end = start + PageCount(PAGEBLOCK_PAGES);
  if (!zone.contains(start) || !zone.contains(end + PageCount(-1))) return 0;
  int64_t free_pages = 0;
  for (Pfn pfn = start; pfn < end;) {
    Page& p = mem_.page(pfn);
    if (!p.test(PageFlag::buddy)) {
      if (p.test(PageFlag::lru)) ++movable;
      pfn = pfn + PageCount(1);
      continue;
    }
    const auto order = static_cast<unsigned>(p.private_);
    zone.free_area[order].free_list[0].erase(PageList::s_iterator_to(p));
    list_of(zone.free_area[order], type).push_front(p);
    free_pages += int64_t{1} << order;
    pfn = pfn + PageCount(int64_t{1} << order);
  }
  return free_pages;
}

// ---- A page changes hands -------------------------------------------------------------------------------------------

bool PageAllocator::check_pcp_refill(const Page& page) const {
  WEIR_FLOW(mem_.pfn(page));
  return check_new_page(page);
}

/// True if somebody wrote to a page that is free.
bool PageAllocator::check_new_page(const Page& page) const {
  WEIR_FLOW(mem_.pfn(page));
  return written_while_free(page);
}

bool PageAllocator::written_while_free(const Page& page) {
  return (page.flags.load(std::memory_order_relaxed) | page.mapping.load(std::memory_order_relaxed) | page.index |
          page.private_) != 0 ||
         page._mapcount.load(std::memory_order_relaxed) != 0 || page._refcount.load(std::memory_order_relaxed) != 0;
}

void PageAllocator::prep_new_page(Page& page, Order order, gfp_t gfp) {
  WEIR_FLOW(mem_.pfn(page), order, gfp);
  const bool user = gfp.has(__GFP_HIGHMEM);
  page.set_flags(user ? uint64_t{0} : flag_bit(PageFlag::kernel_place));
  page._mapcount.store(-1, std::memory_order_relaxed);
  page._refcount.store(1, std::memory_order_release);
  count_changed(page, 0, 1);
  if (tracks_host_pages_) mmu_.arch_alloc_page(page, order, gfp);
  if (!gfp.has(__GFP_ZERO)) return;
  if (user) {
    for (size_t i = 0; i < size_t{1} << order.v; ++i) mmu_.clear_user_highpage(*(&page + i));
  } else {
    std::memset(mem_.page_address(page), 0, PAGE_SIZE << order.v);
  }
}

bool PageAllocator::get_page_unless_zero(Page& page) {
  int32_t count = page._refcount.load(std::memory_order_relaxed);
  while (count != 0)
    if (page._refcount.compare_exchange_weak(count, count + 1, std::memory_order_acq_rel)) {
      count_changed(page, count, 1);
      return true;
    }
  return false;
}

/// What `page` must not be when it is freed, as a sentence; null if all is well.
static const char* free_pages_check(const Page& page) {
  if (page_count(page) != 0) return "free_pages_check: the page has users";
  if (page_mapcount(page) != 0) return "free_pages_check: the page is mapped";
  const uintptr_t mapping = page.mapping.load(std::memory_order_relaxed);
  if (mapping != 0 && (mapping & PAGE_MAPPING_ANON) == 0) return "free_pages_check: the page belongs to a mapping";
  const uint64_t flags = page.flags.load(std::memory_order_relaxed) & PAGE_FLAGS_CHECK_AT_FREE;
  if (flags == 0) return nullptr;
  if ((flags & flag_bit(PageFlag::locked)) != 0) return "free_pages_check: the page is locked";
  if ((flags & flag_bit(PageFlag::lru)) != 0) return "free_pages_check: the page is on an LRU list";
  if ((flags & (flag_bit(PageFlag::buddy) | flag_bit(PageFlag::pcp))) != 0)
    return "free_pages_check: the page is free already";
  if ((flags & flag_bit(PageFlag::writeback)) != 0) return "free_pages_check: the page is being written";
  if ((flags & flag_bit(PageFlag::swapcache)) != 0) return "free_pages_check: the page is in the swap cache";
  return "free_pages_check: a flag says that somebody has the page";
}

/// Afterwards the page is all-zero but for its hook. False: the arch keeps it for now.
bool PageAllocator::free_pages_prepare(Page& page, Order order) {
  if (const char* what = free_pages_check(page)) bug(what, __FILE__, __LINE__);
#ifdef WEIR_DEBUG
  for (size_t i = 1; i < size_t{1} << order.v; ++i) WEIR_BUG_ON(check_new_page(*(&page + i)));
#endif
  vmstat_.count_vm_events(VmEvent::pgfree, uint64_t{1} << order.v);
  if (page.mapping.load(std::memory_order_relaxed) != 0) page.set_mapping(0, 0);
  page._mapcount.store(0, std::memory_order_relaxed);
  if (tracks_host_pages_) {
    // Before the arch sees it: it may hand it back from another thread at once.
    page.index = QUARANTINED;
    page.private_ = order.v;
    vmstat_.mod_node_page_state(NodeStat::nr_quarantined, int64_t{1} << order.v);
    if (!mmu_.arch_free_page(page, order)) return false;
    vmstat_.mod_node_page_state(NodeStat::nr_quarantined, -(int64_t{1} << order.v));
  }
  page.index = 0;
  page.private_ = 0;
  page.set_flags(0);
  return true;
}

// ---- Freeing --------------------------------------------------------------------------------------------------------

void PageAllocator::__free_pages(Page& page, Order order) {
  WEIR_FLOW(mem_.pfn(page), order);
  if (!put_page_testzero(page)) return;
  if (order.v == 0)
    free_hot_cold_page(page, Temperature::hot);
  else
    __free_pages_ok(page, order);
}

void PageAllocator::free_hot_cold_page(Page& page, Temperature temperature) {
  WEIR_FLOW(mem_.pfn(page), temperature);
  if (free_pages_prepare(page, Order(0))) free_pcp(page, temperature);
}

void PageAllocator::free_hot_cold_page_list(PageList& pages, Temperature temperature) {
  WEIR_FLOW(temperature);
  while (!pages.empty()) {
    Page& page = pages.front();
    pages.pop_front();
    free_hot_cold_page(page, temperature);
  }
}

void PageAllocator::free_pcp(Page& page, Temperature temperature) {
  const Pfn pfn = mem_.pfn(page);
  Zone& zone = page_zone(page);
  const MigrateType type = zone.block_type(pfn);
  PerCpuPages& pcp = this_cpu_pcp(zone, temperature);
  ScopedLock guard(pcp.lock);
  page.set_flags(flag_bit(PageFlag::pcp));
  if (temperature == Temperature::cold && zone.nr_pcp == cpus_)
    list_of(pcp, type).push_back(page);
  else
    list_of(pcp, type).push_front(page);
  count_pcp(zone, pcp, 1);
  if (pcp.count >= pcp.high) free_pcppages_bulk(zone, pcp.batch, pcp);
  WEIR_STATE(page_freed, pfn, 0, zone.nr_free.load(std::memory_order_relaxed));
}

/// `count` pages, the coldest of each list in turn, go back under one zone lock.
void PageAllocator::free_pcppages_bulk(Zone& zone, int32_t count, PerCpuPages& pcp) {
  if (count > pcp.count) count = pcp.count;
  if (count == 0) return;
  count_pcp(zone, pcp, -count);
  ScopedLock guard(zone.lock);
  reclaim_may_hope(zone);
  __mod_zone_page_state(zone, count);
  unsigned type = 0, batch = 0;
  while (count > 0) {
    // Lists that were found empty let the next one give more, so that one full list is not walked past again and again.
    do {
      ++batch;
      type = (type + 1) % MIGRATE_PCPTYPES;
    } while (pcp.lists[type].empty());
    if (batch == MIGRATE_PCPTYPES) batch = static_cast<unsigned>(count);
    do {
      Page& page = pcp.lists[type].back();
      pcp.lists[type].pop_back();
      __free_one_page(page, mem_.pfn(page), zone, Order(0), static_cast<MigrateType>(type));
    } while (--count > 0 && --batch > 0 && !pcp.lists[type].empty());
    batch = 0;
  }
}

void PageAllocator::__free_pages_ok(Page& page, Order order) {
  WEIR_FLOW(mem_.pfn(page), order);
  if (!free_pages_prepare(page, order)) return;
  const Pfn pfn = mem_.pfn(page);
  Zone& zone = page_zone(page);
  free_one_page(zone, page, pfn, order, zone.block_type(pfn));
}

void PageAllocator::free_one_page(Zone& zone, Page& page, Pfn pfn, Order order, MigrateType type) {
  WEIR_FLOW(zone, pfn, order);
  ScopedLock guard(zone.lock);
  reclaim_may_hope(zone);
  __mod_zone_page_state(zone, int64_t{1} << order.v);
  __free_one_page(page, pfn, zone, order, type);
  WEIR_STATE(page_freed, pfn, order, zone.nr_free.load(std::memory_order_relaxed));
}

void PageAllocator::__free_one_page(Page& page, Pfn pfn, Zone& zone, Order order_freed, MigrateType type) {
  WEIR_FLOW(pfn, zone, order_freed);
  page.set_flags(0);
  unsigned order = order_freed.v;
  for (; order < MAX_ORDER - 1; ++order) {
    const Pfn buddy{pfn.v ^ (uint64_t{1} << order)};
    if (!zone.contains(buddy) || !page_is_buddy(mem_.page(buddy), order)) break;
    del_from_free_list(zone, mem_.page(buddy), order);
    pfn = Pfn(pfn.v & ~(uint64_t{1} << order));
    WEIR_STATE(buddy_merge, pfn, order, order + 1);
  }
  Page& head = mem_.page(pfn);
  add_to_free_list(zone, head, order, type);
  // If the pair that this block and its buddy would form has a free buddy already, a large merge is near: taken last,
  // it may come.
  if (order < MAX_ORDER - 2) {
    const Pfn pair{pfn.v & ~(uint64_t{1} << order)};
    const Pfn other{pair.v ^ (uint64_t{2} << order)};
    if (zone.contains(other) && page_is_buddy(mem_.page(other), order + 1)) {
      PageList& list = list_of(zone.free_area[order], type);
      list.splice(list.end(), list, PageList::s_iterator_to(head));
    }
  }
}

void PageAllocator::free_quarantined(Page& page) {
  WEIR_FLOW(mem_.pfn(page));
  WEIR_BUG_ON(!is_quarantined(page));
  const Order order(static_cast<uint8_t>(page.private_));
  vmstat_.mod_node_page_state(NodeStat::nr_quarantined, -(int64_t{1} << order.v));
  page.index = 0;
  page.private_ = 0;
  page.set_flags(0);
  if (order.v == 0) {
    free_pcp(page, Temperature::cold);
  } else {
    Zone& zone = page_zone(page);
    free_one_page(zone, page, mem_.pfn(page), order, zone.block_type(mem_.pfn(page)));
  }
}

void PageAllocator::drain_pcp(Zone& zone, PerCpuPages& pcp) {
  ScopedLock guard(pcp.lock);
  free_pcppages_bulk(zone, pcp.count, pcp);
}

void PageAllocator::drain_local_pages() {
  for (unsigned i = 0; i < node_.zonelist.count; ++i) {
    Zone& zone = *node_.zonelist.zones[i];
    drain_pcp(zone, this_cpu_pcp(zone));
    if (zone.nr_pcp > cpus_) drain_pcp(zone, this_cpu_pcp(zone, Temperature::cold));
  }
}

void PageAllocator::drain_all_pages() {
  for (unsigned i = 0; i < node_.zonelist.count; ++i) {
    Zone& zone = *node_.zonelist.zones[i];
    for (unsigned n = 0; n < zone.nr_pcp; ++n) drain_pcp(zone, zone.pcp[n]);
  }
}

}  // namespace weir
