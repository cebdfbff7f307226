// src/mm/page_alloc.hpp
//
// Frames, handed out and taken back.
//
//   alloc_pages(gfp, order) --> zonelist --> watermark --> per-CPU list --empty--> buddy lists (split) --> Page
//                                            └ below --> slow path: wake kswapd, reclaim, retry, kill, or fail
//   __free_pages --> count 0 --> per-CPU list --above high--> buddy lists (merge)
//                            └ host page not given back yet --> quarantine --free_quarantined--> a list
//
// How far down an allocation may take a zone:
//
//   low        the fast path
//   min        the slow path
//   min / 2    __GFP_HIGH, __GFP_POOL, and a victim of the OOM killer
//   min * 3/8  GFP_ATOMIC
//   0          who is freeing memory: PF_MEMALLOC, __GFP_MEMALLOC
//
// Linux: mm/page_alloc.c, 4.14; what 3.x and 2.6.20 do between alloc_pages and the free lists is in page_alloc_3.cpp
// and page_alloc_2_6_20.cpp. There is no compaction yet: an order above 0 is served by reclaim and merging alone.
#pragma once

#include "mm/bootmem.hpp"
#include "mm/gfp.hpp"
#include "mm/interfaces.hpp"
#include "mm/mmzone.hpp"
#include "mm/page_ref.hpp"
#include "mm/profile.hpp"
#include "mm/vmstat.hpp"

namespace weir {

/// Whether a freed page's bytes are likely still in the CPU's cache.
enum class Temperature : uint8_t { hot, cold };

/// So often in a row may reclaim bring nothing before the slow path stops hoping.
inline constexpr int MAX_RECLAIM_RETRIES = 16;

/// Zones' lowmem_reserve_ratio: DMA32 keeps 1/256 of the zones above from those who could use these.
inline constexpr int64_t SYSCTL_LOWMEM_RESERVE_RATIO = 256;

class PageAllocator {
 public:
  /// `pressure` may be null until set_pressure: then the slow path fails instead of reclaiming.
  PageAllocator(MemMap& mem, Node& node, VmStat& vmstat, Mmu& mmu, unsigned cpus, KernelEra kernel = DEFAULT_KERNEL);
  PageAllocator(const PageAllocator&) = delete;
  PageAllocator& operator=(const PageAllocator&) = delete;

  /// Takes over what bootmem has left, builds zones, watermarks, per-CPU lists. Bootmem ends here.
  void init(Bootmem& boot, const ZoneLayout& layout);
  void set_pressure(Pressure* pressure) { pressure_ = pressure; }
  [[nodiscard]] Pressure* pressure() const { return pressure_; }

  // ---- allocation. Page comes with count 1, mapcount -1, flags clear (kernel_place if !__GFP_HIGHMEM), content
  // undefined unless __GFP_ZERO. Of a block only the first page is set up; the others stay all-zero, and must be so
  // again when the block is freed. Null: no memory. Sleeps with __GFP_DIRECT_RECLAIM only.
  [[nodiscard]] Page* alloc_pages(gfp_t gfp, Order order);
  [[nodiscard]] Page* alloc_page(gfp_t gfp) { return alloc_pages(gfp, Order(0)); }
  /// Kernel memory: the block's first byte, at its place. Null: no memory.
  [[nodiscard]] std::byte* __get_free_pages(gfp_t gfp, Order order);
  [[nodiscard]] std::byte* get_zeroed_page(gfp_t gfp);
  [[nodiscard]] std::byte* get_zeroed_pages(gfp_t gfp, Order order) {
    return __get_free_pages(gfp | __GFP_ZERO, order);
  }

  // ---- freeing. A bug, checked in every build: a page that is mapped, counted, in a page cache, or has a flag that
  // says that somebody still holds it (PAGE_FLAGS_CHECK_AT_FREE). An anonymous page's mapping is dropped here. Never
  // sleeps: the caller may hold spinlocks, and so may who calls Mmu::arch_free_page, which is done from here.
  /// Drops one reference; frees the block if it was the last.
  void __free_pages(Page& page, Order order);
  void free_pages(std::byte* address, Order order) { __free_pages(mem_.virt_to_page(address), order); }
  /// Order 0, count already 0, off every list, no mapping. Hot pages are handed out again first, cold ones last.
  void free_hot_cold_page(Page& page, Temperature temperature = Temperature::hot);
  /// A batch of such pages, linked by lru; the list is empty afterwards.
  void free_hot_cold_page_list(PageList& pages, Temperature temperature = Temperature::hot);
  /// A block that arch_free_page held back is free now. No lock of the arch is held.
  void free_quarantined(Page& page);
  /// Freed, but its host page is not given back yet. For verify().
  [[nodiscard]] static bool is_quarantined(const Page& page) {
    return page.index == QUARANTINED && page_count(page) == 0;
  }

  // ---- references
  static void get_page(Page& page) { count_changed(page, page._refcount.fetch_add(1, std::memory_order_acq_rel), 1); }
  /// False if the count was 0 (the page is free or being freed).
  [[nodiscard]] static bool get_page_unless_zero(Page& page);
  /// True if this was the last reference; the caller then frees the page (Lru::put_page does both).
  [[nodiscard]] static bool put_page_testzero(Page& page) {
    const int32_t before = page._refcount.fetch_sub(1, std::memory_order_acq_rel);
    count_changed(page, before, -1);
    return before == 1;
  }

  // ---- watermarks
  /// Would the zone keep more than `mark` (and what is reserved from requests of `classzone`) if 2^order pages were
  /// taken now?
  [[nodiscard]] bool zone_watermark_ok(Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                       uint32_t alloc_flags) const;
  [[nodiscard]] bool zone_watermark_ok_safe(Zone& zone, Order order, int64_t mark, ZoneType classzone) const;
  /// Recomputes marks and lowmem reserves; after set-up, and when min_free_kbytes or memory changes.
  void setup_per_zone_wmarks();
  /// vm.min_free_kbytes. From now on it stays, whatever memory comes and goes.
  void set_min_free_kbytes(uint64_t kbytes);
  /// vm.watermark_scale_factor: distance of the marks in 1/10000 of the zone, 1…1000 (taken into that range). Nothing
  /// where the kernel has none (before 4.6).
  void set_watermark_scale_factor(unsigned factor);
  /// vm.percpu_pagelist_fraction: 0 for the default, else a list may hold 1/fraction of the zone; at least 8.
  void set_percpu_pagelist_fraction(unsigned fraction);
  /// Fault injection: of the allocations from now on that may fail, the one after `after` others does. Negative: none.
  /// Returns how many more there would have been; negative: it has failed already, or none was to. Linux:
  /// fail_page_alloc.
  int64_t fail_page_alloc(int64_t after) { return fail_after_.exchange(after, std::memory_order_relaxed); }
  [[nodiscard]] uint64_t min_free_kbytes() const { return min_free_kbytes_; }
  [[nodiscard]] unsigned watermark_scale_factor() const { return watermark_scale_factor_; }
  /// What min_free_kbytes is by itself: 4 times the root of the memory in KiB, at least 128, at most 65536.
  [[nodiscard]] static uint64_t default_min_free_kbytes(uint64_t lowmem_kbytes);
  /// Pages that are of no use to page cache and processes: reserves and high marks.
  [[nodiscard]] PageCount totalreserve_pages() const;

  // ---- who and how much
  [[nodiscard]] Zone& page_zone(const Page& page) const;
  [[nodiscard]] Node& node() const { return node_; }
  [[nodiscard]] MemMap& mem() const { return mem_; }
  [[nodiscard]] VmStat& vmstat() const { return vmstat_; }
  [[nodiscard]] PageCount nr_free_pages() const;
  [[nodiscard]] PageCount managed_pages() const;
  /// Every CPU's / this CPU's free pages go back to the buddy lists.
  void drain_all_pages();
  void drain_local_pages();
  /// One out_of_memory at a time; who holds it may call Pressure::out_of_memory. The slow path only tries.
  [[nodiscard]] Mutex& oom_lock() { return oom_lock_; }

  // ---- the balloon: frames held out of circulation
  /// Takes up to n free frames out, in largest blocks, down to the low watermark of what stays. Returns how many.
  PageCount balloon_inflate(PageCount n);
  PageCount balloon_deflate(PageCount n);

  // ---- for verify(), buddyinfo
  struct Survey {
    uint64_t free_in_buddy = 0, free_in_pcp = 0, in_balloon = 0, quarantined = 0;
  };
  /// Walks every list under its lock; a bug found is reported through `fail(id, text)`. Afterwards every free block is
  /// on a list.
  Survey survey(void (*fail)(void*, const char* id, const char* text), void* arg);

 private:
  // What differs by kernel: everything between alloc_pages and the free lists, and the slow path.
  struct Era;
  struct OldEra;
  struct Era_2_6_20;  // page_alloc_2_6_20.cpp
  struct Era_3;       // page_alloc_3.cpp
  struct Era_4_14;    // page_alloc.cpp, page_alloc_slowpath.cpp
  static constexpr size_t ERA_BYTES = 16;
  static constexpr uint64_t QUARANTINED = ~uint64_t{0} - 1;  ///< Page::index of a quarantined block's first page

  /// What an allocation works out once.
  struct AllocContext {
    const Zonelist* zonelist = nullptr;
    ZoneType high_zoneidx{};   ///< highest zone allowed
    ZoneType classzone_idx{};  ///< highest zone there is for it: its reserve in lower zones counts against it
    MigrateType migratetype{};
  };

  // allocation
  [[nodiscard]] Page* __alloc_pages_nodemask(gfp_t gfp, Order order);
  [[nodiscard]] bool prepare_alloc_pages(gfp_t gfp, Order order, AllocContext& ac);
  [[nodiscard]] bool should_fail_alloc_page(gfp_t gfp, Order order);
  [[nodiscard]] Page* get_page_from_freelist(gfp_t gfp, Order order, uint32_t alloc_flags, const AllocContext& ac);
  [[nodiscard]] bool zone_watermark_fast(Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                         uint32_t alloc_flags) const;
  [[nodiscard]] static bool __zone_watermark_ok(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                                uint32_t alloc_flags, int64_t free_pages);
  [[nodiscard]] Page* rmqueue(Zone& zone, Order order, gfp_t gfp, MigrateType type);
  [[nodiscard]] Page* rmqueue_pcplist(Zone& zone, gfp_t gfp, MigrateType type);
  [[nodiscard]] Page* __rmqueue_pcplist(Zone& zone, PerCpuPages& pcp, gfp_t gfp, MigrateType type)
      WEIR_REQUIRES(pcp.lock);
  int32_t rmqueue_bulk(Zone& zone, Order order, int32_t count, PageList& list, MigrateType type,
                       Temperature temperature);
  [[nodiscard]] Page* __rmqueue(Zone& zone, Order order, MigrateType type) WEIR_REQUIRES(zone.lock);
  [[nodiscard]] Page* __rmqueue_smallest(Zone& zone, Order order, MigrateType type) WEIR_REQUIRES(zone.lock);
  [[nodiscard]] bool __rmqueue_fallback(Zone& zone, Order order, MigrateType start) WEIR_REQUIRES(zone.lock);
  void expand(Zone& zone, Page& page, unsigned low, unsigned high, MigrateType type) WEIR_REQUIRES(zone.lock);
  void steal_suitable_fallback(Zone& zone, Page& page, MigrateType start, bool whole_block) WEIR_REQUIRES(zone.lock);
  [[nodiscard]] int64_t move_freepages_block(Zone& zone, Page& page, MigrateType type, int64_t& movable)
      WEIR_REQUIRES(zone.lock);
  [[nodiscard]] bool check_pcp_refill(const Page& page) const;
  [[nodiscard]] bool check_new_page(const Page& page) const;
  [[nodiscard]] static bool written_while_free(const Page& page);
  void prep_new_page(Page& page, Order order, gfp_t gfp);

  // slow path
  [[nodiscard]] Page* __alloc_pages_slowpath(gfp_t gfp, Order order, const AllocContext& ac);
  [[nodiscard]] Page* __alloc_pages_direct_reclaim(gfp_t gfp, Order order, uint32_t alloc_flags, const AllocContext& ac,
                                                   bool& did_some_progress);
  [[nodiscard]] PageCount __perform_reclaim(gfp_t gfp, Order order);
  [[nodiscard]] Page* __alloc_pages_may_oom(gfp_t gfp, Order order, const AllocContext& ac, bool& did_some_progress);
  [[nodiscard]] bool should_reclaim_retry(Order order, const AllocContext& ac, uint32_t alloc_flags,
                                          bool did_some_progress, int& no_progress_loops);
  void wake_all_kswapds(gfp_t gfp, Order order, const AllocContext& ac);
  void flush_quarantine(gfp_t gfp);
  static void cond_resched();
  static void sleep_for(Nanos delay);
  void warn_alloc(gfp_t gfp, Order order);

  // freeing
  [[nodiscard]] bool free_pages_prepare(Page& page, Order order);
  void free_pcp(Page& page, Temperature temperature);
  void free_pcppages_bulk(Zone& zone, int32_t count, PerCpuPages& pcp) WEIR_REQUIRES(pcp.lock);
  void __free_pages_ok(Page& page, Order order);
  void free_one_page(Zone& zone, Page& page, Pfn pfn, Order order, MigrateType type);
  void __free_one_page(Page& page, Pfn pfn, Zone& zone, Order order, MigrateType type) WEIR_REQUIRES(zone.lock);

  // lists and counts
  [[nodiscard]] static PageList& free_list(Zone& zone, const MemMap& mem, unsigned order, MigrateType type)
      WEIR_REQUIRES(zone.lock);
  static void list_untouched(Zone& zone, const MemMap& mem) WEIR_REQUIRES(zone.lock);
  [[nodiscard]] static bool keep_untouched(Zone& zone, Pfn start) WEIR_REQUIRES(zone.lock);
  static void count_blocks(Zone& zone, unsigned order, int by);
  static void count_pcp(const Zone& zone, PerCpuPages& pcp, int32_t by);
  void add_to_free_list(Zone& zone, Page& page, unsigned order, MigrateType type) WEIR_REQUIRES(zone.lock);
  void del_from_free_list(Zone& zone, Page& page, unsigned order) WEIR_REQUIRES(zone.lock);
  void __mod_zone_page_state(Zone& zone, int64_t delta) WEIR_REQUIRES(zone.lock);
  void __count_zid_vm_events(const Zone& zone, Order order);
  [[nodiscard]] PerCpuPages& this_cpu_pcp(Zone& zone, Temperature temperature = Temperature::hot) const;
  void drain_pcp(Zone& zone, PerCpuPages& pcp);

  // set-up
  void init_zone(Bootmem& boot, Zone& zone, const ZoneLayout& layout, Pfn low, Pfn high);
  void setup_pcp(Zone& zone);
  void setup_per_zone_lowmem_reserve();
  void memory_changed();

  MemMap& mem_;                   // immutable
  Node& node_;                    // immutable
  VmStat& vmstat_;                // immutable
  Mmu& mmu_;                      // immutable
  Pressure* pressure_ = nullptr;  // set once, before there is pressure
  unsigned cpus_;                 // immutable
  alignas(16) std::byte era_place_[ERA_BYTES];
  Era* era_ = nullptr;              // in era_place_; immutable
  bool tracks_host_pages_ = false;  // immutable after init
  bool min_free_set_ = false;       ///< somebody chose min_free_kbytes
  // Set-up and sysctls: whoever changes them is alone in doing so; readers take what they find.
  uint64_t min_free_kbytes_ = 0;
  unsigned watermark_scale_factor_ = 10;
  bool cold_lists_ = false;
  unsigned percpu_pagelist_fraction_ = 0;
  Mutex oom_lock_{LockRank::oom};
  std::atomic<int64_t> fail_after_{-1};
  // The balloon: blocks of order n, linked by lru, flag balloon.
  SpinLock balloon_lock_{LockRank::leaf};
  PageList balloon_[MAX_ORDER] WEIR_GUARDED_BY(balloon_lock_);
  int64_t balloon_pages_ WEIR_GUARDED_BY(balloon_lock_) = 0;
  // printk of failures: at most 10 in 5 seconds.
  std::atomic<uint64_t> warn_window_{0};
  std::atomic<int> warned_{0};
};

/// What the rooms above ask of a zone, as older kernels answer it: for a block of 2^n pages every order below must have
/// its own share free, half of the mark of the one before.
namespace linux_2_6_20 {
[[nodiscard]] bool zone_watermark_ok(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                     uint32_t alloc_flags);
}
namespace linux_3 {
[[nodiscard]] bool zone_watermark_ok(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                     uint32_t alloc_flags);
[[nodiscard]] bool zone_watermark_ok_safe(const Zone& zone, Order order, int64_t mark, ZoneType classzone,
                                          uint32_t alloc_flags);
}  // namespace linux_3

/// Flags with which no page may be freed: each says that somebody still has it.
inline constexpr uint64_t PAGE_FLAGS_CHECK_AT_FREE =
    flag_bit(PageFlag::locked) | flag_bit(PageFlag::lru) | flag_bit(PageFlag::active) | flag_bit(PageFlag::slab) |
    flag_bit(PageFlag::reserved) | flag_bit(PageFlag::private_) | flag_bit(PageFlag::writeback) |
    flag_bit(PageFlag::unevictable) | flag_bit(PageFlag::mlocked) | flag_bit(PageFlag::swapcache) |
    flag_bit(PageFlag::buddy) | flag_bit(PageFlag::pcp) | flag_bit(PageFlag::table) | flag_bit(PageFlag::vmalloc) |
    flag_bit(PageFlag::zram) | flag_bit(PageFlag::balloon);

}  // namespace weir
