// src/mm/types.hpp
//
// The spine: what every room of the memory manager means by a page, a zone, an LRU list, a right to allocate.
// Types and constants only; each struct's invariants are equations that Machine::verify() checks.
//
//   Page        one frame's metadata                         struct page
//   MemMap      all of them, and the frames' places          mem_map
//   gfp_t       how an allocation may behave                 gfp_t
//   LruVec      the five LRU lists of a node                 struct lruvec
//   VmFault     what became of a fault                       VM_FAULT_*
#pragma once

#include <atomic>
#include <boost/intrusive/list.hpp>
#include <cstddef>
#include <cstdint>

#include "base/flow.hpp"
#include "base/result.hpp"
#include "base/units.hpp"
#include "kernel/world_atomic.hpp"

namespace weir {

struct Mm;
struct VmArea;
struct AnonVma;
struct AddressSpace;
struct KmemCache;
struct Task;
struct Zone;

// ---- Pages ----------------------------------------------------------------------------------------------------------

/// Bits of Page::flags. Changed by atomic or/and; who may change which is said beside it.
enum class PageFlag : uint8_t {
  locked,      ///< the page lock: holder may change identity and content
  referenced,  ///< second chance; reclaim and mark_page_accessed
  uptodate,    ///< content is what its backing store says; under the page lock
  dirty,       ///< content is newer than its backing store
  lru,         ///< on an LRU list of its node; under lru_lock
  active,      ///< on, or bound for, an active list
  slab,        ///< owned by slab.cpp
  reserved,    ///< never given to the allocator: boot's own
  private_,    ///< Page::private_ belongs to the file system
  writeback,   ///< being written; set under the page lock, cleared by I/O completion
  reclaim,     ///< rotate to the inactive tail when writeback ends (for readahead pages: PG_readahead)
  swapbacked,  ///< anonymous or shmem: goes to swap
  unevictable,
  mlocked,
  swapcache,  ///< in the swap cache under private_; under page lock and tree lock
  buddy,      ///< head of a free block of order private_; under the zone lock
  pcp,        ///< free, on a per-CPU list
  table,      ///< a page-table page
  error,
  aged,          ///< where the MMU has no accessed bits: its PTEs were made old since it joined the inactive list
  kernel_place,  ///< handed out for kernel use: its bytes live at its place in the arena
  vmalloc,
  zram,     ///< belongs to a zram pool
  balloon,  ///< held back: not in circulation
};
inline constexpr unsigned NR_PAGE_FLAGS = 24;

[[nodiscard]] constexpr uint64_t flag_bit(PageFlag f) { return uint64_t{1} << static_cast<unsigned>(f); }

using ListHook = boost::intrusive::list_member_hook<boost::intrusive::link_mode<boost::intrusive::normal_link>>;

struct Page;
/// As a result in a recording: pfn + 1, or 0 for none.
[[nodiscard]] uint64_t flow_value_of(const Page* page);
/// A page says what became of it: page_flags, page_count, page_mapping.
void record_page(const Page& page, State what, uint64_t before, uint64_t after);
[[nodiscard]] [[gnu::always_inline]] inline bool recording_pages() {
  return __builtin_expect(engine_thread().sink != nullptr, 0);
}

/// One frame's metadata. All-zero means "free, inside a buddy block (not its head)", so that boot touches one a block.
///
/// Life:  buddy --rmqueue--> owned (count 1, mapcount -1) --put_page, count 0--> pcp / buddy
///   anonymous: owned -> mapped (mapping = AnonVma|1, mapcount >= 0, on an LRU) -> swapcache (private_ = entry)
///              -> unmapped -> freed
///   file:      owned -> in a page cache tree (mapping, index) -> perhaps mapped -> removed from the tree -> freed
///   slab / table / vmalloc / zram: owned, flag set, never on an LRU.
///
/// Invariants: _mapcount + 1 = number of PTEs that map it.
/// _refcount >= (_mapcount + 1) + (in a tree ? 1 : 0) + isolated/held.
/// _refcount = 0 iff buddy, pcp, inside a buddy block, or a pcp page. lru set iff on exactly one LRU list.
struct Page {
  WorldAtomic<uint64_t> flags{0};
  ListHook lru;  ///< LRU list (lru lock), buddy list (zone lock), pcp list (pcp lock), or its owner's
  std::atomic<uintptr_t> mapping{0};  ///< AddressSpace*, or AnonVma* | 1; slab: KmemCache*. Page lock.
  uint64_t index = 0;                 ///< offset in mapping in pages; linear page offset if anonymous. Slab: its own.
  uint64_t private_ = 0;              ///< buddy: order. swapcache: SwpEntry. Slab, table: their own
  WorldAtomic<int32_t> _mapcount{0};  ///< mappings - 1 while owned
  WorldAtomic<int32_t> _refcount{0};
  uint32_t arch = 0;  ///< the Mmu's own (uffd: where the host page is); 0 = nothing to give back. Page lock
  uint32_t spare = 0;

  [[nodiscard]] bool test(PageFlag f) const { return (flags.load(std::memory_order_acquire) & flag_bit(f)) != 0; }
  void set(PageFlag f) { test_and_set(f); }
  void clear(PageFlag f) { test_and_clear(f); }
  bool test_and_set(PageFlag f) {
    const uint64_t old = flags.fetch_or(flag_bit(f), std::memory_order_acq_rel);
    if (recording_pages()) flags_changed(old, old | flag_bit(f));
    return (old & flag_bit(f)) != 0;
  }
  bool test_and_clear(PageFlag f) {
    const uint64_t old = flags.fetch_and(~flag_bit(f), std::memory_order_acq_rel);
    if (recording_pages()) flags_changed(old, old & ~flag_bit(f));
    return (old & flag_bit(f)) != 0;
  }
  /// All of them at once, where nobody else has the page.
  void set_flags(uint64_t bits) {
    const uint64_t old = flags.load(std::memory_order_relaxed);
    flags.store(bits, std::memory_order_relaxed);
    if (recording_pages()) flags_changed(old, bits);
  }
  /// `at` (index in the mapping) is for the record.
  void set_mapping(uintptr_t to, uint64_t at) {
    mapping.store(to, std::memory_order_release);
    if (recording_pages()) record_page(*this, State::page_mapping, at, to == 0 ? 0 : 1 + (to & 3));
  }

 private:
  void flags_changed(uint64_t before, uint64_t after) const {
    if (before != after) record_page(*this, State::page_flags, before, after);
  }
};
static_assert(sizeof(Page) <= 64);

using PageList = boost::intrusive::list<Page, boost::intrusive::member_hook<Page, ListHook, &Page::lru>,
                                        boost::intrusive::constant_time_size<false>>;

inline constexpr uintptr_t PAGE_MAPPING_ANON = 1;
[[nodiscard]] inline bool PageAnon(const Page& page) {
  return (page.mapping.load(std::memory_order_acquire) & PAGE_MAPPING_ANON) != 0;
}
[[nodiscard]] inline bool PageSwapCache(const Page& page) { return page.test(PageFlag::swapcache); }
[[nodiscard]] inline bool PageSwapBacked(const Page& page) { return page.test(PageFlag::swapbacked); }
[[nodiscard]] inline int32_t page_mapcount(const Page& page) {
  return page._mapcount.load(std::memory_order_acquire) + 1;
}
[[nodiscard]] inline bool page_mapped(const Page& page) { return page_mapcount(page) > 0; }
[[nodiscard]] inline int32_t page_count(const Page& page) { return page._refcount.load(std::memory_order_acquire); }
/// A page merged by KSM: anonymous, and its mapping is a stable node.
inline constexpr uintptr_t PAGE_MAPPING_KSM = 3;
[[nodiscard]] inline bool PageKsm(const Page& page) {
  return (page.mapping.load(std::memory_order_acquire) & PAGE_MAPPING_KSM) == PAGE_MAPPING_KSM;
}
/// The anon_vma of an anonymous page, null for others and for merged ones.
[[nodiscard]] inline AnonVma* page_anon_vma(const Page& page) {
  const uintptr_t m = page.mapping.load(std::memory_order_acquire);
  return (m & PAGE_MAPPING_KSM) == PAGE_MAPPING_ANON ? reinterpret_cast<AnonVma*>(m & ~PAGE_MAPPING_ANON) : nullptr;
}

/// All frames of a machine: metadata and places. Immutable after boot.
struct MemMap {
  Page* mem_map = nullptr;
  std::byte* arena = nullptr;  ///< frame n's place is arena + n × 4096
  PageCount frames{};
  [[nodiscard]] Pfn pfn(const Page& page) const { return Pfn(static_cast<uint64_t>(&page - mem_map)); }
  [[nodiscard]] Pfn pfn(const Page* page) const { return pfn(*page); }
  [[nodiscard]] Page& page(Pfn pfn) const { return mem_map[pfn.v]; }
  [[nodiscard]] bool valid(Pfn pfn) const { return pfn.v < static_cast<uint64_t>(frames.v); }
  /// The frame's place: where a kernel page's bytes are.
  [[nodiscard]] std::byte* page_address(const Page& page) const { return arena + (pfn(page).v << PAGE_SHIFT); }
  [[nodiscard]] std::byte* address(Pfn pfn) const { return arena + (pfn.v << PAGE_SHIFT); }
  /// The page whose place holds this kernel address.
  [[nodiscard]] Page& virt_to_page(const void* p) const {
    return mem_map[static_cast<uint64_t>(static_cast<const std::byte*>(p) - arena) >> PAGE_SHIFT];
  }
  [[nodiscard]] bool is_kernel_address(const void* p) const {
    auto* b = static_cast<const std::byte*>(p);
    return b >= arena && b < arena + (static_cast<uint64_t>(frames.v) << PAGE_SHIFT);
  }
};

// ---- Allocation -----------------------------------------------------------------------------------------------------

inline constexpr unsigned MAX_ORDER = 11;
inline constexpr unsigned PAGE_ALLOC_COSTLY_ORDER = 3;
inline constexpr unsigned pageblock_order = 9;

enum class MigrateType : uint8_t { unmovable, movable, reclaimable, count };
inline constexpr unsigned MIGRATE_PCPTYPES = 3;

/// Zones of a node, low to high. DMA and HIGHMEM, MOVABLE come with their rows.
enum class ZoneType : uint8_t { DMA32, NORMAL, count };
inline constexpr unsigned MAX_NR_ZONES = static_cast<unsigned>(ZoneType::count);

enum class Watermark : uint8_t { min, low, high, count };

/// Allocation flags; names and meaning of 4.14. Values are weir's own.
struct gfp_t {
  uint32_t v = 0;
  friend constexpr gfp_t operator|(gfp_t a, gfp_t b) { return gfp_t{a.v | b.v}; }
  friend constexpr gfp_t operator&(gfp_t a, gfp_t b) { return gfp_t{a.v & b.v}; }
  friend constexpr gfp_t operator~(gfp_t a) { return gfp_t{~a.v}; }
  friend constexpr bool operator==(gfp_t, gfp_t) = default;
  [[nodiscard]] constexpr bool has(gfp_t f) const { return (v & f.v) != 0; }
};
inline constexpr gfp_t __GFP_DMA32{1u << 0}, __GFP_HIGHMEM{1u << 1}, __GFP_MOVABLE{1u << 2}, __GFP_RECLAIMABLE{1u << 3},
    __GFP_HIGH{1u << 4}, __GFP_IO{1u << 5}, __GFP_FS{1u << 6}, __GFP_ZERO{1u << 7}, __GFP_NOWARN{1u << 8},
    __GFP_RETRY_MAYFAIL{1u << 9}, __GFP_NOFAIL{1u << 10}, __GFP_NORETRY{1u << 11}, __GFP_NOMEMALLOC{1u << 12},
    __GFP_MEMALLOC{1u << 13}, __GFP_HARDWALL{1u << 14}, __GFP_ATOMIC{1u << 15}, __GFP_DIRECT_RECLAIM{1u << 16},
    __GFP_KSWAPD_RECLAIM{1u << 17}, __GFP_WRITE{1u << 18}, __GFP_COLD{1u << 19},
    /// A pool's right: may go below min, but not into the last half of it (zram's pool, bios).
    __GFP_POOL{1u << 20};
inline constexpr gfp_t __GFP_RECLAIM = __GFP_DIRECT_RECLAIM | __GFP_KSWAPD_RECLAIM;
inline constexpr gfp_t GFP_ATOMIC = __GFP_HIGH | __GFP_ATOMIC | __GFP_KSWAPD_RECLAIM;
inline constexpr gfp_t GFP_KERNEL = __GFP_RECLAIM | __GFP_IO | __GFP_FS;
inline constexpr gfp_t GFP_NOWAIT = __GFP_KSWAPD_RECLAIM;
inline constexpr gfp_t GFP_NOIO = __GFP_RECLAIM;
inline constexpr gfp_t GFP_NOFS = __GFP_RECLAIM | __GFP_IO;
inline constexpr gfp_t GFP_USER = __GFP_RECLAIM | __GFP_IO | __GFP_FS | __GFP_HARDWALL;
/// HIGHMEM says: the content need not be at the frame's place (user frames). It is what the arch looks at.
inline constexpr gfp_t GFP_HIGHUSER = GFP_USER | __GFP_HIGHMEM;
inline constexpr gfp_t GFP_HIGHUSER_MOVABLE = GFP_HIGHUSER | __GFP_MOVABLE;

[[nodiscard]] inline uint64_t flow_value_of(gfp_t gfp) { return gfp.v; }

// ---- LRU lists ------------------------------------------------------------------------------------------------------

enum class LruList : uint8_t { inactive_anon, active_anon, inactive_file, active_file, unevictable, count };
inline constexpr unsigned NR_LRU_LISTS = static_cast<unsigned>(LruList::count);
[[nodiscard]] constexpr bool is_file_lru(LruList l) { return l == LruList::inactive_file || l == LruList::active_file; }
[[nodiscard]] constexpr bool is_active_lru(LruList l) { return l == LruList::active_anon || l == LruList::active_file; }

/// Documents' name of a list ("LRU_INACTIVE_ANON").
[[nodiscard]] const char* lru_name(LruList list);

struct ZoneReclaimStat {
  // [0] anonymous, [1] file. Halved when they grow past a quarter of the list, so that they follow the workload.
  uint64_t recent_rotated[2] = {0, 0};
  uint64_t recent_scanned[2] = {0, 0};
};

/// The LRU of a node, or of a zone. Guarded by the node's lru_lock. size[l] = number of pages on lists[l]. Where there
/// are two lists only (2.6.20) they are the anonymous ones.
struct LruVec {
  Zone* zone = nullptr;  ///< whose lists they are; null: the node's. Immutable
  PageList lists[NR_LRU_LISTS];
  PageCount size[NR_LRU_LISTS];
  ZoneReclaimStat reclaim_stat;
  std::atomic<uint64_t> inactive_age{0};  ///< evictions from and activations on the inactive file list so far
  std::atomic<uint64_t> refaults{0};      ///< workingset_activate at the end of the last reclaim run

  /// Without the lock: perhaps late.
  [[nodiscard]] int64_t size_racy(LruList list) const {
    return __atomic_load_n(&size[static_cast<unsigned>(list)].v, __ATOMIC_RELAXED);
  }
};

// ---- Counters -------------------------------------------------------------------------------------------------------

/// Node and zone state: gauges. Spelling as in /proc/vmstat.
// clang-format off
#define WEIR_NODE_STATS(X)                                                                                             \
  X(nr_free_pages) X(nr_inactive_anon) X(nr_active_anon) X(nr_inactive_file) X(nr_active_file) X(nr_unevictable)       \
  X(nr_isolated_anon) X(nr_isolated_file) X(nr_anon_pages) X(nr_mapped) X(nr_file_pages) X(nr_dirty) X(nr_writeback)   \
  X(nr_slab_reclaimable) X(nr_slab_unreclaimable) X(nr_page_table_pages) X(nr_kernel_stack) X(nr_vmscan_write)         \
  X(nr_dirtied) X(nr_written) X(nr_swapcached) X(nr_zspages) X(nr_mlock) X(nr_quarantined) X(nr_shmem)
// clang-format on

enum class NodeStat : uint8_t {
#define X(n) n,
  WEIR_NODE_STATS(X)
#undef X
      count
};

/// Events: they only grow. Spelling as in /proc/vmstat.
// clang-format off
#define WEIR_VM_EVENTS(X)                                                                                              \
  X(pgpgin) X(pgpgout) X(pswpin) X(pswpout) X(pgalloc_dma32) X(pgalloc_normal) X(allocstall) X(pgfree) X(pgactivate)   \
  X(pgdeactivate) X(pgfault) X(pgmajfault) X(pgrefill) X(pgsteal_kswapd) X(pgsteal_direct) X(pgscan_kswapd)            \
  X(pgscan_direct) X(pginodesteal) X(slabs_scanned) X(kswapd_inodesteal) X(kswapd_low_wmark_hit_quickly)               \
  X(kswapd_high_wmark_hit_quickly) X(pageoutrun) X(pgrotated) X(drop_pagecache) X(oom_kill) X(swap_ra)                 \
  X(swap_ra_hit) X(pgscan_direct_throttle) X(unevictable_pgs_culled) X(unevictable_pgs_rescued)                        \
  X(unevictable_pgs_mlocked) X(unevictable_pgs_munlocked) X(unevictable_pgs_cleared) X(unevictable_pgs_stranded)       \
  X(pglazyfree) X(pglazyfreed) X(swap_slots_refill) X(swap_slots_cached) X(swap_cluster) X(swap_ra_window)             \
  X(swap_copy_freed) X(swap_clean_drop) X(pgreuse) X(pgcow) X(zero_page_map) X(access_flag_fault) X(window_unmap) X(window_unmap_pages)   \
  X(swap_write_error) X(swap_read_error) X(balance_dirty_pause) X(flusher_wakeup)                              \
  X(workingset_refault) X(workingset_activate) X(workingset_nodereclaim)
// clang-format on

enum class VmEvent : uint8_t {
#define X(n) n,
  WEIR_VM_EVENTS(X)
#undef X
      count
};

// ---- Faults ---------------------------------------------------------------------------------------------------------

enum VmFault : uint32_t {
  VM_FAULT_OK = 0,
  VM_FAULT_OOM = 1u << 0,
  VM_FAULT_SIGBUS = 1u << 1,
  VM_FAULT_MAJOR = 1u << 2,
  VM_FAULT_SIGSEGV = 1u << 6,
  VM_FAULT_NOPAGE = 1u << 8,  ///< the handler installed the PTE itself
  VM_FAULT_LOCKED = 1u << 9,  ///< the page comes back locked
  VM_FAULT_RETRY = 1u << 10,  ///< mmap_lock was dropped: look everything up again
  VM_FAULT_DONE_COW = 1u << 12,
  VM_FAULT_COMPLETED = 1u << 14,  ///< done, and mmap_lock was dropped. Linux 6.0
  VM_FAULT_KILLED = 1u << 16,     ///< the task is dying
};

enum FaultFlag : uint32_t {
  FAULT_FLAG_WRITE = 1u << 0,
  FAULT_FLAG_ALLOW_RETRY = 1u << 2,
  FAULT_FLAG_TRIED = 1u << 5,
  FAULT_FLAG_USER = 1u << 6,
  FAULT_FLAG_INSTRUCTION = 1u << 8,
};

enum VmFlag : uint64_t {
  VM_READ = 1u << 0,
  VM_WRITE = 1u << 1,
  VM_EXEC = 1u << 2,
  VM_SHARED = 1u << 3,
  VM_MAYREAD = 1u << 4,
  VM_MAYWRITE = 1u << 5,
  VM_MAYEXEC = 1u << 6,
  VM_MAYSHARE = 1u << 7,
  VM_GROWSDOWN = 1u << 8,
  VM_PFNMAP = 1u << 10,  ///< frames without a page behind them: special PTEs
  VM_LOCKED = 1u << 13,
  VM_IO = 1u << 14,
  VM_SEQ_READ = 1u << 15,
  VM_RAND_READ = 1u << 16,
  VM_DONTCOPY = 1u << 17,
  VM_DONTEXPAND = 1u << 18,
  VM_LOCKONFAULT = 1u << 19,  ///< with VM_LOCKED: pages are locked as they come, none is brought in
  VM_ACCOUNT = 1u << 20,
  VM_NORESERVE = 1u << 21,
  VM_NONLINEAR = 1u << 23,  ///< a PTE's page of the file is not told by its address (remap_file_pages, until 3.x)
  VM_DONTDUMP = 1u << 26,
  VM_MERGEABLE = 1u << 31,  ///< KSM may merge its pages
  VM_SOFTDIRTY = 1u << 27,  ///< made or grown since soft-dirty bits were last cleared
};
inline constexpr uint64_t VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC;
/// Mappings that are left as they are: neither merged nor locked.
inline constexpr uint64_t VM_SPECIAL = VM_IO | VM_DONTEXPAND | VM_PFNMAP;

enum class RssKind : uint8_t { file, anon, swapents, shmem, count };

}  // namespace weir
