// src/mm/mmzone.hpp
//
// Node and zones as data. Linux: include/linux/mmzone.h.
//
//   Node ── zones[DMA32, NORMAL] ── free_area[0..10].free_list[type], pcp per CPU, watermark[min, low, high]
//        └─ lruvec (five lists), reclaim statistics
#pragma once

#include "kernel/locks.hpp"
#include "mm/types.hpp"

namespace weir {

struct FreeArea {
  PageList free_list[static_cast<unsigned>(MigrateType::count)];
  uint64_t nr_free = 0;  ///< blocks of this order = sum of the lists' lengths
};

/// One CPU's free order-0 pages of one zone. In the host world "this CPU" is a hint, so the lock is always taken.
struct PerCpuPages {
  SpinLock lock{LockRank::pcp};
  int32_t count = 0;   ///< = sum of the lists' lengths; <= high after every free
  int32_t high = 0;    ///< above it, `batch` pages go back to the buddy lists
  int32_t batch = 1;
  PageList lists[MIGRATE_PCPTYPES];
};

inline constexpr unsigned MAX_CPUS = 64;

struct Node;

struct Zone {
  // Guarded by lock: free_area, nr_free, pageblock types.
  SpinLock lock{LockRank::zone};
  ZoneType type = ZoneType::NORMAL;
  Node* zone_pgdat = nullptr;              // immutable
  Pfn zone_start_pfn{};                    // immutable
  PageCount spanned_pages{};               ///< holes included
  PageCount present_pages{};               ///< without holes
  std::atomic<int64_t> managed_pages{0};   ///< present less what boot reserved; falls and rises with the balloon
  std::atomic<int64_t> watermark[static_cast<unsigned>(Watermark::count)] = {};
  int64_t lowmem_reserve[MAX_NR_ZONES] = {};
  FreeArea free_area[MAX_ORDER];
  std::atomic<int64_t> nr_free{0};         ///< NR_FREE_PAGES: pages in free_area (per-CPU lists are not free). Exact under lock
  MigrateType* pageblock_type = nullptr;   ///< one a pageblock of the zone's span
  PerCpuPages* pcp = nullptr;              ///< nr_cpus of them

  [[nodiscard]] bool populated() const { return present_pages.v > 0; }
  [[nodiscard]] bool contains(Pfn pfn) const { return pfn >= zone_start_pfn && pfn < zone_start_pfn + spanned_pages; }
  [[nodiscard]] int64_t wmark(Watermark w) const { return watermark[static_cast<unsigned>(w)].load(std::memory_order_relaxed); }
};

[[nodiscard]] const char* zone_name(ZoneType type);

/// One NUMA node. (One for now; the type is there so that nothing assumes it.)
struct Node {
  NodeId id{};
  Zone zones[MAX_NR_ZONES];
  SpinLock lru_lock{LockRank::lru};
  LruVec lruvec WEIR_GUARDED_BY(lru_lock);

  // kswapd
  WaitQueue kswapd_wait;
  std::atomic<int32_t> kswapd_order{0};
  std::atomic<int32_t> kswapd_classzone{-1};   ///< -1: nobody asked
  std::atomic<int32_t> kswapd_failures{0};
  Thread* kswapd = nullptr;
};

}  // namespace weir
