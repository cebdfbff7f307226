// src/mm/vmscan.hpp
//
// Reclaim: kswapd in the background, direct reclaim in the allocator's need.
//
//   priority 12 … 0: get_scan_count -> shrink_list per LRU -> shrink_active_list | shrink_inactive_list -> shrink_page_list
//   shrink_page_list, a batch of <= 32 in phases: (1) lock, references, add_to_swap, try_to_unmap (flush deferred)
//     (2) one flush_batch (3) dirty test, pageout, remove_mapping (4) free in a batch
//
// Linux: mm/vmscan.c 4.14.
#pragma once

#include "mm/page_writeback.hpp"
#include "mm/rmap.hpp"
#include "mm/swap_state.hpp"

namespace weir {

inline constexpr int DEF_PRIORITY = 12;
inline constexpr int64_t SWAP_CLUSTER_MAX = 32;
inline constexpr int MAX_RECLAIM_RETRIES = 16;

/// One reclaim run. Linux: struct scan_control.
struct ScanControl {
  PageCount nr_to_reclaim{SWAP_CLUSTER_MAX};
  gfp_t gfp_mask = GFP_KERNEL;
  Order order{};
  int priority = DEF_PRIORITY;
  bool may_writepage = true, may_unmap = true, may_swap = true;
  PageCount nr_scanned{}, nr_reclaimed{};
  ZoneType reclaim_idx = ZoneType::NORMAL;
};

/// Object caches that give way under pressure. Linux: struct shrinker.
class Shrinker {
 public:
  virtual PageCount count_objects() = 0;
  /// Returns objects freed.
  virtual PageCount scan_objects(PageCount nr) = 0;
  int seeks = 2;

 protected:
  ~Shrinker() = default;
};

class Vmscan {
 public:
  Vmscan(Node& node, PageAllocator& pages, Lru& lru, Rmap& rmap, Filemap& filemap, SwapFiles& swap, SwapCache& cache, PageWriteback& writeback,
         VmStat& vmstat, Mmu& mmu);

  PageCount try_to_free_pages(Order order, gfp_t gfp);
  void wakeup_kswapd(ZoneType classzone, Order order);
  /// Starts kswapd%d. Linux: kswapd_run.
  Result<void> kswapd_run(World& world);
  void kswapd_stop();
  /// Reclaims about n pages for a shrinking budget (the balloon): as memory.limit does. Returns what it got.
  PageCount shrink_all_memory(PageCount n);
  [[nodiscard]] PageCount zone_reclaimable_pages() const;
  void set_swappiness(int v) { vm_swappiness_ = v; }
  [[nodiscard]] int swappiness() const { return vm_swappiness_; }
  /// A flusher to wake when dirty pages pile up at the tail.
  void set_flusher(WritebackControlSink* flusher) { flusher_ = flusher; }
  void register_shrinker(Shrinker& shrinker);

 private:
  Node& node_;
  PageAllocator& pages_;
  Lru& lru_;
  Rmap& rmap_;
  Filemap& filemap_;
  SwapFiles& swap_;
  SwapCache& cache_;
  PageWriteback& writeback_;
  VmStat& vmstat_;
  Mmu& mmu_;
  WritebackControlSink* flusher_ = nullptr;
  int vm_swappiness_ = 60;
};

}  // namespace weir
