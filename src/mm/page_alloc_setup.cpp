// src/mm/page_alloc_setup.cpp: zones at boot, watermarks, sysctls, the balloon, the survey; see page_alloc.hpp
#include <algorithm>
#include <bit>
#include <new>

#include "mm/page_alloc_era.hpp"

namespace weir {

namespace {
constexpr unsigned NR_TYPES = static_cast<unsigned>(MigrateType::count);

uint64_t int_sqrt(uint64_t x) {
  uint64_t root = 0;
  for (uint64_t bit = uint64_t{1} << 31; bit != 0; bit >>= 1)
    if ((root | bit) * (root | bit) <= x) root |= bit;
  return root;
}

/// How many pages one refill takes: a 4096th of the zone, at most 128 KiB's worth, one less than a power of two so that
/// refills of many CPUs do not fall on the same cache colours.
int32_t zone_batchsize(int64_t managed) {
  int64_t batch = std::min<int64_t>(managed / 1024, (512 * 1024) >> PAGE_SHIFT) / 4;
  if (batch < 1) batch = 1;
  return static_cast<int32_t>(std::bit_floor(static_cast<uint64_t>(batch + batch / 2))) - 1;
}
}  // namespace

PageAllocator::PageAllocator(MemMap& mem, Node& node, VmStat& vmstat, Mmu& mmu, unsigned cpus, KernelEra kernel)
    : mem_(mem), node_(node), vmstat_(vmstat), mmu_(mmu), cpus_(cpus) {
  cold_lists_ = profile_of(kernel).cold_lists;
  if (!profile_of(kernel).watermark_scale) watermark_scale_factor_ = 0;
  Era::place(*this, kernel);
  WEIR_BUG_ON(cpus == 0 || cpus > MAX_CPUS);
}

// ---- Boot -----------------------------------------------------------------------------------------------------------

void PageAllocator::init(Bootmem& boot, const ZoneLayout& layout) {
  tracks_host_pages_ = mmu_.caps().tracks_host_pages;
  Zone& dma32 = node_.zones[static_cast<unsigned>(ZoneType::DMA32)];
  Zone& normal = node_.zones[static_cast<unsigned>(ZoneType::NORMAL)];
  dma32.type = ZoneType::DMA32;
  normal.type = ZoneType::NORMAL;
  init_zone(boot, dma32, layout, Pfn(0), layout.dma32_end);
  init_zone(boot, normal, layout, layout.dma32_end, Pfn(0) + layout.end());
  for (Zone* zone : {&normal, &dma32})
    if (zone->populated()) node_.zonelist.zones[node_.zonelist.count++] = zone;

  // One mark a run, with its length, so that boot does not touch the metadata of all that it keeps.
  boot.for_each_reserved_run(
      [](void* arg, Pfn start, PageCount pages) {
        Page& first = static_cast<PageAllocator*>(arg)->mem_.page(start);
        first.set(PageFlag::reserved);
        first.private_ = static_cast<uint64_t>(pages.v);
      },
      this);
  boot.free_all_bootmem(
      [](void* arg, Pfn start, Order order) {
        auto& self = *static_cast<PageAllocator*>(arg);
        Page& page = self.mem_.page(start);
        Zone& zone = self.page_zone(page);
        zone.managed_pages.fetch_add(pages_of(order).v, std::memory_order_relaxed);
        if (order.v == MAX_ORDER - 1) {
          ScopedLock guard(zone.lock);
          if (self.keep_untouched(zone, start)) {
            self.__mod_zone_page_state(zone, pages_of(order).v);
            return;
          }
        }
        self.free_one_page(zone, page, start, order, zone.block_type(start));
      },
      this);
  memory_changed();
}

void PageAllocator::init_zone(Bootmem& boot, Zone& zone, const ZoneLayout& layout, Pfn low, Pfn high) {
  zone.zone_pgdat = &node_;
  Pfn first{}, last{};
  for (unsigned i = 0; i < layout.nr_ranges; ++i) {
    const Pfn start = std::max(layout.ranges[i].start, low);
    const Pfn end = std::min(layout.ranges[i].start + layout.ranges[i].pages, high);
    if (start >= end) continue;
    if (!zone.populated()) first = start;
    last = end;
    zone.present_pages += end - start;
  }
  if (!zone.populated()) return;
  zone.zone_start_pfn = first;
  zone.spanned_pages = last - first;
  WEIR_STATE(zone_span, zone, first, zone.spanned_pages);

  // Boot cannot go on without these, as the kernel panics.
  const uint64_t blocks = ((last.v - 1) >> pageblock_order) - (first.v >> pageblock_order) + 1;
  auto types = boot.alloc_bootmem(Bytes(blocks * sizeof(MigrateType)), Bytes(64));
  WEIR_BUG_ON(!types);
  zone.pageblock_type = reinterpret_cast<MigrateType*>(*types);
  // Most memory will be users'; what the kernel needs is taken over block by block.
  std::fill_n(zone.pageblock_type, blocks, MigrateType::movable);

  zone.nr_pcp = cold_lists_ ? 2 * cpus_ : cpus_;
  auto pcps = boot.alloc_bootmem(Bytes(zone.nr_pcp * sizeof(PerCpuPages)), Bytes(alignof(PerCpuPages)));
  WEIR_BUG_ON(!pcps);
  zone.pcp = reinterpret_cast<PerCpuPages*>(*pcps);
  for (unsigned n = 0; n < zone.nr_pcp; ++n) ::new (zone.pcp + n) PerCpuPages;
}

// ---- Sizes that follow memory ---------------------------------------------------------------------------------------

/// managed_pages changed: everything that is a share of it follows.
void PageAllocator::memory_changed() {
  if (!min_free_set_)
    min_free_kbytes_ = default_min_free_kbytes(static_cast<uint64_t>(managed_pages().v) << (PAGE_SHIFT - 10));
  setup_per_zone_wmarks();
  for (unsigned i = 0; i < node_.zonelist.count; ++i) setup_pcp(*node_.zonelist.zones[i]);
}

uint64_t PageAllocator::default_min_free_kbytes(uint64_t lowmem_kbytes) {
  // The root: little memory needs a larger share in reserve, as what needs it does not grow with memory.
  return std::clamp<uint64_t>(int_sqrt(lowmem_kbytes * 16), 128, 65536);
}

void PageAllocator::setup_per_zone_wmarks() {
  WEIR_FLOW();
  setup_per_zone_lowmem_reserve();
  const auto pages_min = static_cast<int64_t>(min_free_kbytes_ >> (PAGE_SHIFT - 10));
  const int64_t lowmem = std::max<int64_t>(managed_pages().v, 1);
  for (unsigned i = 0; i < node_.zonelist.count; ++i) {
    Zone& zone = *node_.zonelist.zones[i];
    const int64_t managed = zone.managed_pages.load(std::memory_order_relaxed);
    const int64_t min = pages_min * managed / lowmem;
    const int64_t step = std::max(min / 4, managed * static_cast<int64_t>(watermark_scale_factor_) / 10000);
    ScopedLock guard(zone.lock);
    for (unsigned mark = 0; mark < static_cast<unsigned>(Watermark::count); ++mark) {
      const int64_t before = zone.watermark[mark].exchange(min + mark * step);
      WEIR_STATE(zone_mark, flow_value_of(zone) << 8 | mark, before, min + mark * step);
    }
  }
}

void PageAllocator::setup_per_zone_lowmem_reserve() {
  for (unsigned i = 0; i < MAX_NR_ZONES; ++i) {
    int64_t above = 0;
    for (unsigned j = i + 1; j < MAX_NR_ZONES; ++j) {
      above += node_.zones[j].managed_pages.load(std::memory_order_relaxed);
      node_.zones[i].lowmem_reserve[j] = above / SYSCTL_LOWMEM_RESERVE_RATIO;
    }
  }
}

void PageAllocator::setup_pcp(Zone& zone) {
  const int64_t managed = zone.managed_pages.load(std::memory_order_relaxed);
  int32_t batch = zone_batchsize(managed);
  int32_t high = 6 * batch;
  const int32_t cold_high = 2 * batch, cold_batch = std::max(batch / 2, 1);
  batch = std::max(batch, 1);
  if (percpu_pagelist_fraction_ != 0) {
    high = static_cast<int32_t>(std::min<int64_t>(managed / percpu_pagelist_fraction_, INT32_MAX));
    batch = std::clamp(high / 4, 1, static_cast<int32_t>(PAGE_SHIFT * 8));
  }
  for (unsigned n = 0; n < zone.nr_pcp; ++n) {
    PerCpuPages& pcp = zone.pcp[n];
    ScopedLock guard(pcp.lock);
    pcp.batch = n < cpus_ ? batch : cold_batch;
    pcp.high = n < cpus_ ? high : cold_high;
    if (pcp.count >= pcp.high) free_pcppages_bulk(zone, pcp.count, pcp);
  }
}

void PageAllocator::set_min_free_kbytes(uint64_t kbytes) {
  min_free_kbytes_ = kbytes;
  min_free_set_ = true;
  setup_per_zone_wmarks();
}

void PageAllocator::set_watermark_scale_factor(unsigned factor) {
  if (watermark_scale_factor_ == 0) return;  // a kernel that does not know it
  watermark_scale_factor_ = std::clamp(factor, 1u, 1000u);
  setup_per_zone_wmarks();
}

void PageAllocator::set_percpu_pagelist_fraction(unsigned fraction) {
  percpu_pagelist_fraction_ = fraction == 0 ? 0 : std::max(fraction, 8u);
  for (unsigned i = 0; i < node_.zonelist.count; ++i) setup_pcp(*node_.zonelist.zones[i]);
}

PageCount PageAllocator::totalreserve_pages() const {
  PageCount total{};
  for (unsigned i = 0; i < MAX_NR_ZONES; ++i) {
    const Zone& zone = node_.zones[i];
    int64_t reserve = 0;
    for (unsigned j = i; j < MAX_NR_ZONES; ++j) reserve = std::max(reserve, zone.lowmem_reserve[j]);
    reserve += zone.wmark(Watermark::high);
    total.v += std::min(reserve, zone.managed_pages.load(std::memory_order_relaxed));
  }
  return total;
}

PageCount PageAllocator::nr_free_pages() const {
  PageCount n{};
  for (const Zone& zone : node_.zones) n.v += zone.nr_free.load(std::memory_order_relaxed);
  return n;
}

PageCount PageAllocator::managed_pages() const {
  PageCount n{};
  for (const Zone& zone : node_.zones) n.v += zone.managed_pages.load(std::memory_order_relaxed);
  return n;
}

// ---- The balloon ----------------------------------------------------------------------------------------------------

PageCount PageAllocator::balloon_inflate(PageCount n) {
  drain_all_pages();
  PageCount taken{};
  while (taken < n) {
    const PageCount before = taken;
    for (unsigned i = 0; i < node_.zonelist.count; ++i) {
      Zone& zone = *node_.zonelist.zones[i];
      while (taken < n) {
        Page* page = nullptr;
        unsigned order = 0;
        {
          ScopedLock guard(zone.lock);
          const int64_t room =
              std::min((n - taken).v, zone.nr_free.load(std::memory_order_relaxed) - zone.wmark(Watermark::low));
          if (room <= 0) break;
          order = std::min<unsigned>(MAX_ORDER - 1,
                                     static_cast<unsigned>(std::bit_width(static_cast<uint64_t>(room))) - 1) +
                  1;
          while (page == nullptr && order-- > 0)
            for (MigrateType type : {MigrateType::movable, MigrateType::reclaimable, MigrateType::unmovable})
              if ((page = __rmqueue_smallest(zone, Order(static_cast<uint8_t>(order)), type)) != nullptr) break;
          if (page == nullptr) break;
          __mod_zone_page_state(zone, -(int64_t{1} << order));
          zone.managed_pages.fetch_sub(int64_t{1} << order, std::memory_order_relaxed);
        }
        ScopedLock guard(balloon_lock_);
        page->set_flags(flag_bit(PageFlag::balloon));
        page->private_ = order;
        balloon_[order].push_back(*page);
        balloon_pages_ += int64_t{1} << order;
        taken.v += int64_t{1} << order;
      }
    }
    if (taken == before) break;
    memory_changed();  // the marks fall with what is left: perhaps there is more to take
  }
  return taken;
}

PageCount PageAllocator::balloon_deflate(PageCount n) {
  PageCount given{};
  while (given < n) {
    Page* page = nullptr;
    unsigned order = 0;
    {
      ScopedLock guard(balloon_lock_);
      const int64_t want = std::min((n - given).v, balloon_pages_);
      if (want == 0) break;
      const unsigned fits =
          std::min<unsigned>(MAX_ORDER - 1, static_cast<unsigned>(std::bit_width(static_cast<uint64_t>(want))) - 1);
      for (order = fits + 1; order-- > 0;)
        if (!balloon_[order].empty()) break;
      if (order > fits) {  // only larger ones: the smallest of them is halved until it fits
        for (order = fits + 1; balloon_[order].empty();) ++order;
        Page& block = balloon_[order].front();
        balloon_[order].pop_front();
        while (order > fits) {
          Page& upper = *(&block + (size_t{1} << --order));
          upper.set_flags(flag_bit(PageFlag::balloon));
          upper.private_ = order;
          balloon_[order].push_back(upper);
        }
        balloon_[order].push_front(block);
      }
      page = &balloon_[order].front();
      balloon_[order].pop_front();
      balloon_pages_ -= int64_t{1} << order;
      page->set_flags(0);
      page->private_ = 0;
    }
    Zone& zone = page_zone(*page);
    const Pfn pfn = mem_.pfn(*page);
    zone.managed_pages.fetch_add(int64_t{1} << order, std::memory_order_relaxed);
    free_one_page(zone, *page, pfn, Order(static_cast<uint8_t>(order)), zone.block_type(pfn));
    given.v += int64_t{1} << order;
  }
  if (given.v > 0) memory_changed();
  return given;
}

// ---- The survey -----------------------------------------------------------------------------------------------------

PageAllocator::Survey PageAllocator::survey(void (*fail)(void*, const char*, const char*), void* arg) {
  Survey s;
  const auto expect = [&](bool good, const char* id, const char* text) {
    if (!good) fail(arg, id, text);
  };
  const auto is_free = [](const Page& page) {
    return page_count(page) == 0 && page._mapcount.load(std::memory_order_relaxed) == 0 &&
           page.mapping.load(std::memory_order_relaxed) == 0 && page.index == 0;
  };
  for (unsigned z = 0; z < node_.zonelist.count; ++z) {
    Zone& zone = *node_.zonelist.zones[z];
    uint64_t in_zone = 0;
    {
      ScopedLock guard(zone.lock);
      while (zone.nr_untouched != 0) list_untouched(zone, mem_);
      for (unsigned o = 0; o < MAX_ORDER; ++o) {
        uint64_t blocks = 0;
        for (unsigned type = 0; type < NR_TYPES; ++type) {
          for (const Page& page : zone.free_area[o].free_list[type]) {
            const Pfn pfn = mem_.pfn(page);
            ++blocks;
            expect(page.flags.load(std::memory_order_relaxed) == flag_bit(PageFlag::buddy) && page.private_ == o &&
                       is_free(page),
                   "buddy-head", "a block on a free list is not marked as a free block of that order");
            expect((pfn.v & ((uint64_t{1} << o) - 1)) == 0, "buddy-aligned", "a free block is not aligned to its size");
            expect(zone.contains(pfn) && zone.contains(pfn + PageCount((int64_t{1} << o) - 1)), "buddy-zone",
                   "a free block is not inside its zone");
            const Pfn buddy{pfn.v ^ (uint64_t{1} << o)};
            if (o < MAX_ORDER - 1 && zone.contains(buddy)) {
              const Page& other = mem_.page(buddy);
              expect(!(other.test(PageFlag::buddy) && other.private_ == o), "buddy-merged",
                     "two free buddies were not merged");
            }
          }
        }
        expect(blocks == zone.free_area[o].nr_free, "buddy-count",
               "a free area's count is not the length of its lists");
        in_zone += blocks << o;
      }
      expect(static_cast<int64_t>(in_zone) == zone.nr_free.load(std::memory_order_relaxed), "zone-nr-free",
             "a zone's free pages are not the sum of its free areas");
    }
    s.free_in_buddy += in_zone;
    for (unsigned n = 0; n < zone.nr_pcp; ++n) {
      PerCpuPages& pcp = zone.pcp[n];
      ScopedLock guard(pcp.lock);
      int32_t count = 0;
      for (const PageList& list : pcp.lists)
        for (const Page& page : list) {
          ++count;
          expect(page.flags.load(std::memory_order_relaxed) == flag_bit(PageFlag::pcp) && page.private_ == 0 &&
                     is_free(page),
                 "pcp-page", "a page on a per-CPU list is not marked as such");
          expect(zone.contains(mem_.pfn(page)), "pcp-zone", "a page on a per-CPU list is of another zone");
        }
      expect(count == pcp.count, "pcp-count", "a per-CPU count is not the length of its lists");
      s.free_in_pcp += static_cast<uint64_t>(count);
    }
  }
  expect(static_cast<int64_t>(s.free_in_buddy) == vmstat_.node_page_state(NodeStat::nr_free_pages), "vmstat-nr-free",
         "nr_free_pages is not the sum over the zones");
  {
    ScopedLock guard(balloon_lock_);
    for (unsigned o = 0; o < MAX_ORDER; ++o)
      for (const Page& page : balloon_[o]) {
        expect(page.flags.load(std::memory_order_relaxed) == flag_bit(PageFlag::balloon) && page.private_ == o,
               "balloon-page", "a page in the balloon is not marked as such");
        s.in_balloon += uint64_t{1} << o;
      }
    expect(static_cast<int64_t>(s.in_balloon) == balloon_pages_, "balloon-count",
           "the balloon's count is not the sum of its blocks");
  }
  s.quarantined = static_cast<uint64_t>(vmstat_.node_page_state(NodeStat::nr_quarantined));
  return s;
}

}  // namespace weir
