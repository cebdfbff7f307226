// src/mm/page_alloc.hpp
//
// Frames, handed out and taken back.
//
//   alloc_pages(gfp, order) --> zonelist --> watermark --> per-CPU list --empty--> buddy lists (split) --> Page, count 1
//                                   └ below --> slow path: wake kswapd, reclaim, retry, kill, or fail
//   __free_pages            --> count 0 --> per-CPU list --above high--> buddy lists (merge)
//
// Linux: mm/page_alloc.c, 4.14.
#pragma once

#include "mm/bootmem.hpp"
#include "mm/interfaces.hpp"
#include "mm/mmzone.hpp"
#include "mm/vmstat.hpp"

namespace weir {

/// Whether a freed page's bytes are likely still in the CPU's cache.
enum class Temperature : uint8_t { hot, cold };

class PageAllocator {
 public:
  /// `pressure` may be null until set_pressure: then the slow path fails instead of reclaiming.
  PageAllocator(MemMap& mem, Node& node, VmStat& vmstat, Mmu& mmu, unsigned cpus);

  /// Takes over what bootmem has left, builds zones, watermarks, per-CPU lists. Bootmem ends here.
  void init(Bootmem& boot, const ZoneLayout& layout);
  void set_pressure(Pressure* pressure) { pressure_ = pressure; }

  // ---- allocation. Page comes with count 1, mapcount -1, flags clear (kernel_place if !__GFP_HIGHMEM). Null: no memory.
  [[nodiscard]] Page* alloc_pages(gfp_t gfp, Order order);
  [[nodiscard]] Page* alloc_page(gfp_t gfp) { return alloc_pages(gfp, Order(0)); }
  [[nodiscard]] Page* __alloc_pages_nodemask(gfp_t gfp, Order order);
  /// Kernel memory: the zeroed block's first byte, at its place. Null: no memory.
  [[nodiscard]] std::byte* get_zeroed_pages(gfp_t gfp, Order order);

  // ---- freeing
  void __free_pages(Page& page, Order order);
  /// Order 0, count already 0, off every list, no mapping. Hot pages are handed out again first, cold ones last.
  void free_hot_cold_page(Page& page, Temperature temperature = Temperature::hot);
  /// A batch of such pages, linked by lru; the list is empty afterwards.
  void free_hot_cold_page_list(PageList& pages, Temperature temperature = Temperature::hot);
  /// A frame that arch_free_page held back is free now.
  void free_quarantined(Page& page);

  // ---- references
  static void get_page(Page& page) { page._refcount.fetch_add(1, std::memory_order_acq_rel); }
  /// False if the count was 0 (the page is free or being freed).
  [[nodiscard]] static bool get_page_unless_zero(Page& page);
  /// True if this was the last reference; the caller then frees the page (Lru::put_page does both).
  [[nodiscard]] static bool put_page_testzero(Page& page) {
    return page._refcount.fetch_sub(1, std::memory_order_acq_rel) == 1;
  }

  // ---- watermarks
  [[nodiscard]] bool zone_watermark_ok(Zone& zone, Order order, int64_t mark, ZoneType classzone, uint32_t alloc_flags) const;
  [[nodiscard]] bool zone_watermark_ok_safe(Zone& zone, Order order, int64_t mark, ZoneType classzone) const;
  /// Recomputes marks and lowmem reserves; after set-up, and when min_free_kbytes or memory changes.
  void setup_per_zone_wmarks();
  void set_min_free_kbytes(uint64_t kbytes);
  void set_watermark_scale_factor(unsigned factor);
  [[nodiscard]] uint64_t min_free_kbytes() const { return min_free_kbytes_; }
  [[nodiscard]] PageCount totalreserve_pages() const;

  // ---- who and how much
  [[nodiscard]] Zone& page_zone(const Page& page) const;
  [[nodiscard]] Node& node() const { return node_; }
  [[nodiscard]] MemMap& mem() const { return mem_; }
  [[nodiscard]] PageCount nr_free_pages() const;
  [[nodiscard]] PageCount managed_pages() const;
  /// Free and clean file pages that could serve writes: the base of dirty ratios (global_dirtyable_memory's free part).
  void drain_all_pages();
  void drain_local_pages();

  // ---- the balloon: frames held out of circulation
  /// Takes up to n free frames out. Returns how many.
  PageCount balloon_inflate(PageCount n);
  PageCount balloon_deflate(PageCount n);

  // ---- for verify(), buddyinfo
  struct Survey {
    uint64_t free_in_buddy = 0, free_in_pcp = 0, in_balloon = 0, quarantined = 0;
  };
  /// Walks every list under its lock; a bug found is reported through `fail(id, text)`.
  Survey survey(void (*fail)(void*, const char* id, const char* text), void* arg);

  // The owner of this room completes it: slow path, buddy, pcp. Names as in the kernel.
 private:
  MemMap& mem_;
  Node& node_;
  VmStat& vmstat_;
  Mmu& mmu_;
  Pressure* pressure_ = nullptr;
  unsigned cpus_;
  uint64_t min_free_kbytes_ = 0;
};

}  // namespace weir
