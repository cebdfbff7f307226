// src/mm/vmscan.hpp
//
// Reclaim: kswapd in the background, direct reclaim in the allocator's need.
//
//   priority 12 … 0: get_scan_count -> shrink_list per LRU -> shrink_active_list
//                                                             shrink_inactive_list -> shrink_page_list
//   shrink_page_list, a batch of <= 32 in phases:
//     (1) lock, references, add_to_swap, try_to_unmap (flush deferred)   (2) one flush_batch
//     (3) dirty test, pageout, remove_mapping                            (4) free in a batch
//
//   kswapd:  free < low: woken -> balance_pgdat until some zone is at high -> sleeps 100 ms, then for good
//
// Where the MMU has no accessed bits, old means absent in hardware, and that costs: only a stretch ahead of the
// inactive tail is made old (staged), in batches; a page that comes to the tail unaged is aged then and kept for a
// round. Active anonymous pages are demoted without being asked.
//
// Linux: mm/vmscan.c, without memory cgroups and compaction: a higher order is served by what freeing
// merges. What is drawn here is 4.14. Of 3.x (vmscan_3.cpp) and 2.6.20 (vmscan_2_6_20.cpp) the files' heads tell; what
// kernels share is in vmscan.cpp and vmscan_list.cpp.
#pragma once

#include "mm/buffer.hpp"
#include "mm/page_writeback.hpp"
#include "mm/rmap.hpp"
#include "mm/shrinker.hpp"
#include "mm/swap_state.hpp"

namespace weir {

inline constexpr int DEF_PRIORITY = 12;
/// Pages taken off a list in one go: few enough to hold the lru_lock shortly, enough to be worth taking it.
inline constexpr int64_t SWAP_CLUSTER_MAX = 32;
/// Objects a shrinker is asked for in one go.
inline constexpr int64_t SHRINK_BATCH = 128;

/// Why reclaim runs: subject of the state reclaim_start.
enum class ReclaimReason : uint8_t { direct = 0, kswapd = 1, limit = 2 };

/// Why a page that reclaim looked at was kept: the state page_keep.
enum class PageKeep : uint8_t {
  locked,           ///< somebody else has the page lock
  unevictable,      ///< mlocked: to the unevictable list
  may_not_unmap,    ///< mapped, and this run leaves mapped pages alone
  under_writeback,  ///< being written: out of the way, back at the tail when the write ends
  referenced,       ///< used, and worth the active list
  referenced_once,  ///< used once since it was last looked at: a second chance
  aging,            ///< made old only now: touched until it comes round again, it stays
  pinned,           ///< cannot be made old or absent now
  no_io,            ///< would need I/O, which this run may not do
  no_slot,          ///< swap is full, or no memory for the swap cache: active
  not_unmapped,     ///< a mapping could not be taken away
  file_dirty,       ///< dirty file page: left to the flusher
  dirty,            ///< dirty, and this run may not write, or wants it only if clean
  no_fs,            ///< dirty, and this run may not enter a file system
  in_use,           ///< somebody has a reference besides its tree and this run
  no_room,          ///< the device would not take it: active
  write_started,    ///< being written now: freed by a later scan
  write_failed,     ///< dirty again
  buffers,          ///< its buffers are in use: active
  count
};
[[nodiscard]] const char* page_keep_name(PageKeep reason);

/// One reclaim run. Linux: struct scan_control.
struct ScanControl {
  PageCount nr_to_reclaim{SWAP_CLUSTER_MAX};
  gfp_t gfp_mask = GFP_KERNEL;
  Order order{};
  int priority = DEF_PRIORITY;
  bool may_writepage = true, may_unmap = true, may_swap = true;
  bool all_unreclaimable = false;  ///< no zone is worth a scan any more (2.6.20)
  bool ignore_references = false;  ///< somebody said that the pages are not needed
  PageCount nr_scanned{}, nr_reclaimed{};
  ZoneType reclaim_idx = ZoneType::NORMAL;
  ReclaimReason reason = ReclaimReason::direct;
};

/// How many pages of each list one pass looks at. Linux: what get_scan_count fills.
struct ScanCount {
  int64_t nr[NR_LRU_LISTS] = {};
  int64_t lru_pages = 0;  ///< size of the lists that are scanned: what slab pressure is measured against
};

/// What the balance between anonymous and file pages is computed from: row 33 of the inventory. A pure function, for
/// tests.
struct ScanBalanceInput {
  int swappiness = 60;
  int priority = DEF_PRIORITY;
  bool may_swap = true;  ///< the run may swap, and there is a free slot
  int64_t size[NR_LRU_LISTS] = {};
  int64_t free_pages = 0, high_wmark_pages = 0;
  ZoneReclaimStat stat;
  bool inactive_anon_low = false, inactive_file_low = false;
};
[[nodiscard]] ScanCount scan_balance(const ScanBalanceInput& in);

/// What becomes of a page that reclaim looks at, by how it was used since the last look: row 32 of the inventory.
enum class PageReferences : uint8_t {
  reclaim,
  reclaim_clean,  ///< if it need not be written first
  keep,           ///< PG_referenced, and one more round
  activate,
  aging  ///< young and old cannot be told apart yet: made old, and looked at again
};
struct ReferencesSeen {
  int ptes = 0;             ///< mappings that were young
  uint64_t vm_flags = 0;    ///< of the VMAs that map it
  bool referenced = false;  ///< PG_referenced was set
  bool swapbacked = false;
  bool unaged = false;  ///< mapped, and the MMU has no accessed bits and was not asked before
};
/// A pure function, for tests.
[[nodiscard]] PageReferences references_of(const ReferencesSeen& seen);

/// active : inactive that is still all right: √(10 × GiB), at least 1.
[[nodiscard]] int64_t inactive_ratio(int64_t pages);

/// 2.6.20: how much it presses towards taking mapped pages too, which it does from 100 on: row 33 of the inventory. A
/// pure function, for tests. mapped, total: pages.
[[nodiscard]] int64_t swap_tendency_2_6_20(int prev_priority, int priority, int64_t mapped, int64_t total,
                                           int swappiness);

class Vmscan {
 public:
  Vmscan(Node& node, PageAllocator& pages, Lru& lru, Rmap& rmap, Filemap& filemap, SwapFiles& swap, SwapCache& cache,
         PageWriteback& writeback, Buffers& buffers, VmStat& vmstat, Mmu& mmu, KernelEra kernel = DEFAULT_KERNEL);
  Vmscan(const Vmscan&) = delete;
  Vmscan& operator=(const Vmscan&) = delete;

  // How each kernel does it: struct Era's files. 2.6.20 and 3.x scan zone by zone, 4.14 the node.
  /// Direct reclaim. The caller has set PF_MEMALLOC. Returns pages reclaimed, or 1 if it was progress of another kind:
  /// a task that is to die, 32 pages (2.6.20). Sleeps.
  PageCount try_to_free_pages(Order order, gfp_t gfp);
  /// Any context. 2.6.20 and 3.x: for each zone that an allocation looked at; it is woken if that zone is below low.
  void wakeup_kswapd(ZoneType classzone, Order order);
  /// Starts kswapd%d. Linux: kswapd_run. Errors: ENOMEM.
  Result<void> kswapd_run(World& world);
  void kswapd_stop();
  /// Reclaims about n pages for a shrinking budget (the balloon): as memory.limit does. Returns what it got. Sleeps.
  PageCount shrink_all_memory(PageCount n);
  /// Isolated pages go out now, used or not, as far as they can; the rest goes back to its lists. Returns how many
  /// went. Linux 5.4. Sleeps.
  PageCount reclaim_pages(PageList& pages);
  /// Pages that reclaim may still free: file pages, and anonymous ones while there is swap for them.
  [[nodiscard]] PageCount zone_reclaimable_pages() const;
  void set_swappiness(int v) { vm_swappiness_ = v; }
  [[nodiscard]] int swappiness() const { return vm_swappiness_; }
  /// Share of memory that may be staged ahead of the inactive tail, where the MMU has no accessed bits: 1/divisor.
  void set_staging_share(unsigned divisor) { staging_divisor_ = divisor == 0 ? 1 : divisor; }
  /// A flusher to wake when dirty pages pile up at the tail.
  void set_flusher(WritebackControlSink* flusher) { flusher_ = flusher; }
  void register_shrinker(Shrinker& shrinker);
  void unregister_shrinker(Shrinker& shrinker);

 private:
  struct Era;
  struct Era_2_6_20;  // vmscan_2_6_20.cpp
  struct Era_3;       // vmscan_3.cpp
  struct Era_4_14;    // vmscan.cpp
  static constexpr size_t ERA_BYTES = 32;
  using References = PageReferences;
  enum class Pageout : uint8_t { keep, activate, success, clean };
  /// What shrink_page_list saw, for who decides about waiting and flushers.
  struct Stat {
    int64_t nr_dirty = 0, nr_unqueued_dirty = 0, nr_congested = 0, nr_writeback = 0, nr_immediate = 0;
  };
  /// A page of a batch between phases 1 and 3: locked, and hardware not told yet.
  struct Candidate {
    Page* page = nullptr;
    enum class Verdict : uint8_t { go_on, keep, activate } verdict = Verdict::go_on;
    PageKeep reason = PageKeep::count;  ///< of a verdict that is not go_on
    References references = References::reclaim;
    bool may_enter_fs = false;
  };

  [[nodiscard]] LruVec& node_lists() const WEIR_NO_THREAD_SAFETY_ANALYSIS { return node_.lruvec; }

  // 4.14
  PageCount do_try_to_free_pages(ScanControl& sc);
  void shrink_zones(ScanControl& sc);
  bool shrink_node(ScanControl& sc);
  void shrink_node_memcg(ScanControl& sc, int64_t& lru_pages);
  void get_scan_count(const ScanControl& sc, ScanCount& count);
  int64_t shrink_list(LruList list, int64_t nr_to_scan, ScanControl& sc);
  /// Is the inactive list of this kind so short that pages should be demoted?
  enum class Asked : uint8_t { for_balance, to_demote };
  [[nodiscard]] bool inactive_list_is_low(bool file, Asked why) const;
  /// What came back to the active list so far: what comes back until the next run says that the list is too long.
  void snapshot_refaults();
  bool throttle_direct_reclaim(gfp_t gfp);
  [[nodiscard]] bool allow_direct_reclaim() const;
  int64_t do_shrink_slab(Shrinker& shrinker, int64_t nr_scanned, int64_t nr_eligible);
  void kswapd_loop();
  Order balance_pgdat(Order order, ZoneType classzone);
  bool kswapd_shrink_node(ScanControl& sc);
  void age_active_anon(ScanControl& sc);
  [[nodiscard]] bool pgdat_balanced(Order order, ZoneType classzone) const;
  [[nodiscard]] bool prepare_kswapd_sleep(Order order, ZoneType classzone);
  void kswapd_try_to_sleep(Order alloc_order, Order reclaim_order, ZoneType classzone);
  void put_back_request(Order order, ZoneType classzone);
  [[nodiscard]] ZoneType kswapd_classzone(ZoneType fallback) const;
  [[nodiscard]] References page_check_references(Page& page, FlushBatch& aged);
  [[nodiscard]] bool __remove_mapping(AddressSpace& mapping, Page& page);

  // What kernels share: the lists are the node's or a zone's. Names that one of them has not are its Era's.
  void scan_stat(ZoneReclaimStat& stat, const int64_t (&size)[NR_LRU_LISTS]) WEIR_REQUIRES(node_.lru_lock);
  void shrink_active_list(int64_t nr_to_scan, LruVec& lruvec, ScanControl& sc, LruList list);
  int64_t shrink_inactive_list(int64_t nr_to_scan, LruVec& lruvec, ScanControl& sc, LruList list);
  int64_t isolate_lru_pages(int64_t nr_to_scan, LruVec& lruvec, PageList& to, int64_t& nr_scanned,
                            const ScanControl& sc, LruList list) WEIR_REQUIRES(node_.lru_lock);
  int64_t move_active_pages_to_lru(PageList& pages, PageList& to_free, LruList list) WEIR_REQUIRES(node_.lru_lock);
  void putback_inactive_pages(PageList& pages, PageList& to_free);
  void put_back(PageList& pages, PageList& to_free);
  bool put_isolated(Page& page, LruList list) WEIR_REQUIRES(node_.lru_lock);
  bool too_many_isolated(bool file, const ScanControl& sc) const;

  int64_t shrink_page_list(PageList& pages, ScanControl& sc, Stat& stat);
  bool prepare_page(Page& page, ScanControl& sc, Stat& stat, FlushBatch& unmapped, FlushBatch& aged,
                    Candidate& candidate);
  bool reclaim_page(const Candidate& candidate, ScanControl& sc);
  bool drop_lazyfree(Page& page);
  bool drop_orphan(Page& page);
  Pageout pageout(Page& page, AddressSpace* mapping, ScanControl& sc);
  [[nodiscard]] bool leave_tree(AddressSpace& mapping, Page& page);
  void keep(Page& page, PageKeep reason);
  void keep_locked(Page& page, PageKeep reason);
  void activate_locked(Page& page, PageKeep reason);
  [[nodiscard]] int page_referenced(Page& page, uint64_t* vm_flags);
  void age_ahead_of_tail();
  void age_batch(FlushBatch& batch, Page** pages, unsigned n);

  int64_t shrink_slab(gfp_t gfp, int64_t nr_scanned, int64_t nr_eligible);
  int64_t shrink_cache(Shrinker& shrinker, int64_t nr_scanned, int64_t nr_eligible);
  void congestion_wait();
  static void kswapd(void* self);

  Node& node_;
  alignas(16) std::byte era_place_[ERA_BYTES];
  Era* era_ = nullptr;  // in era_place_; immutable
  PageAllocator& pages_;
  Lru& lru_;
  Rmap& rmap_;
  Filemap& filemap_;
  SwapFiles& swap_;
  SwapCache& cache_;
  PageWriteback& writeback_;
  Buffers& buffers_;
  VmStat& vmstat_;
  Mmu& mmu_;
  WritebackControlSink* flusher_ = nullptr;
  std::atomic<int> vm_swappiness_{60};
  unsigned staging_divisor_ = 16;

  // Node-wide state of affairs, as in pgdat->flags: set by a scan, cleared when kswapd is content.
  std::atomic<bool> pgdat_congested_{false};  ///< the inactive tail is dirty pages of congested devices
  std::atomic<bool> pgdat_dirty_{false};      ///< the inactive tail is dirty file pages that nobody writes
  std::atomic<bool> pgdat_writeback_{false};  ///< the inactive tail is pages under writeback
  std::atomic<uint64_t> kswapd_wakeups_{0};
  WaitQueue pfmemalloc_wait_;  ///< allocators held back until half the reserve is there again

  RwSem shrinker_rwsem_{LockRank::shrinker};
  Shrinker* shrinkers_ = nullptr;  // shrinker_rwsem_
};

}  // namespace weir
