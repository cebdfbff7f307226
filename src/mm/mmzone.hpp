// src/mm/mmzone.hpp
//
// Node and zones as data. Linux: include/linux/mmzone.h.
//
//   Node ── zones[DMA32, NORMAL] ── free_area[0..10].free_list[type], pcp per CPU, watermark[min, low, high]
//        ├─ zonelist: the zones in the order in which an allocation tries them
//        └─ lruvec (five lists), reclaim statistics
#pragma once

#include "kernel/locks.hpp"
#include "mm/types.hpp"

namespace weir {

/// A block is on the list of the type it was freed under, which need not be its pageblock's: merging ignores types.
struct FreeArea {
  PageList free_list[static_cast<unsigned>(MigrateType::count)];
  uint64_t nr_free = 0;  ///< blocks of this order = sum of the lists' lengths (+ Zone::untouched, for the largest)

  /// nr_free without the zone lock: watermark checks look ahead and may be late.
  [[nodiscard]] uint64_t nr_free_racy() const { return __atomic_load_n(&nr_free, __ATOMIC_RELAXED); }
};

/// One CPU's free order-0 pages of one zone. In the host world "this CPU" is a hint, so the lock is always taken.
/// On a list: flag pcp, count 0. A cache line apart, so that CPUs do not disturb each other.
struct alignas(64) PerCpuPages {
  SpinLock lock{LockRank::pcp};
  int32_t count = 0;  ///< = sum of the lists' lengths; < max(high, 1) after every free
  int32_t high = 0;   ///< a free that reaches it gives `batch` pages back to the buddy lists
  int32_t batch = 1;
  PageList lists[MIGRATE_PCPTYPES];
};

inline constexpr unsigned MAX_CPUS = 64;

struct Node;

struct Zone {
  // Guarded by lock: free_area, untouched, nr_free, pageblock types.
  SpinLock lock{LockRank::zone};
  ZoneType type = ZoneType::NORMAL;
  Node* zone_pgdat = nullptr;             // immutable
  Pfn zone_start_pfn{};                   // immutable
  PageCount spanned_pages{};              ///< holes included
  PageCount present_pages{};              ///< without holes
  std::atomic<int64_t> managed_pages{0};  ///< present less what boot reserved; falls and rises with the balloon
  std::atomic<int64_t> watermark[static_cast<unsigned>(Watermark::count)] = {};
  int64_t lowmem_reserve[MAX_NR_ZONES] = {};
  FreeArea free_area[MAX_ORDER];
  /// Runs of largest blocks that nobody has had since boot, ascending. They count as free movable blocks, behind those
  /// on the list and highest first, but are not on it: so that a machine's metadata is touched as its memory is used,
  /// and not at boot.
  struct Untouched {
    Pfn start{};
    uint64_t blocks = 0;
  };
  Untouched untouched[8];
  unsigned nr_untouched = 0;
  /// NR_FREE_PAGES: pages in free_area (per-CPU lists are not free). Exact under lock
  std::atomic<int64_t> nr_free{0};
  MigrateType* pageblock_type = nullptr;  ///< one a pageblock of the zone's span
  PerCpuPages* pcp = nullptr;  ///< one a CPU; behind them, where kernels have them, the cold ones of each CPU
  unsigned nr_pcp = 0;

  // Reclaim, where lists are a zone's (Profile::zone_lists); else unused.
  LruVec lruvec;                               ///< the node's lru_lock
  std::atomic<int64_t> pages_scanned{0};       ///< by reclaim since a page was freed into the zone
  std::atomic<bool> all_unreclaimable{false};  ///< scanned over and over for nothing; until a page is freed
  std::atomic<int> prev_priority{12};          ///< how far the last run had to go (2.6.20); 12: not far
  std::atomic<int64_t> nr_scan_active{0};      ///< shares of a list too small to be scanned yet (2.6.20)
  std::atomic<int64_t> nr_scan_inactive{0};

  [[nodiscard]] bool populated() const { return present_pages.v > 0; }
  [[nodiscard]] bool contains(Pfn pfn) const { return pfn >= zone_start_pfn && pfn < zone_start_pfn + spanned_pages; }
  [[nodiscard]] int64_t wmark(Watermark w) const {
    return watermark[static_cast<unsigned>(w)].load(std::memory_order_relaxed);
  }
  [[nodiscard]] MigrateType& block_type(Pfn pfn) const {
    return pageblock_type[(pfn.v >> pageblock_order) - (zone_start_pfn.v >> pageblock_order)];
  }
};
[[nodiscard]] inline uint64_t flow_value_of(const Zone& zone) { return static_cast<uint64_t>(zone.type); }

[[nodiscard]] const char* zone_name(ZoneType type);

/// The populated zones of a node, highest first: fallback goes only downward. Immutable after boot.
struct Zonelist {
  Zone* zones[MAX_NR_ZONES] = {};
  unsigned count = 0;
};
/// The next zone at or after place `at` of the list that is not above `highest`, and its place in `at`. Null at the
/// end.
[[nodiscard]] Zone* for_next_zone_zonelist_nodemask(const Zonelist& zonelist, ZoneType highest, unsigned& at);

/// One NUMA node. (One for now; the type is there so that nothing assumes it.)
struct Node {
  NodeId id{};
  Zone zones[MAX_NR_ZONES];
  Zonelist zonelist;
  SpinLock lru_lock{LockRank::lru};
  LruVec lruvec WEIR_GUARDED_BY(lru_lock);

  // kswapd
  WaitQueue kswapd_wait;
  std::atomic<int32_t> kswapd_order{0};
  std::atomic<int32_t> kswapd_classzone{-1};  ///< -1: nobody asked
  std::atomic<int32_t> kswapd_failures{0};
  Thread* kswapd = nullptr;
};

}  // namespace weir
