// src/mm/swapfile.hpp
//
// Swap areas and their maps: who uses which slot.
//
//   swap_map[slot]: 0 free · 1…0x3e users (PTEs) | SWAP_HAS_CACHE 0x40 · SWAP_MAP_BAD 0x3f
//                   0x80 COUNT_CONTINUED: users above 0x3e are counted in pages of further digits, base 0x80
//                   0xbf SWAP_MAP_SHMEM: a memory file, which no other user joins
//   take:  get_swap_pages -> scan_swap_map_slots (clusters of 256) -> SWAP_HAS_CACHE
//   give:  swap_free (a PTE goes), swapcache_free (the cache goes)
//          nobody left -> SWAP_HAS_CACHE alone -> slots cache -> 0
//
//   a device without seek time:  free clusters --one for each CPU--> its slots in order --used up--> the next
//                                none free: any slot
//   one that seeks:              a hand moves upwards through 256 free slots in a row, then looks for the next stretch
//
//   eras, by what an era object of the machine does (swapfile_2_6_20.cpp, _3, _4_14):
//     2.6.20  16 bits a slot: 0 free · 1…0x7fff users, the cache is one of them · 0x8000 bad; one slot at a time, freed
//             at once
//     3.x     8 bits as above; one slot at a time by the hand, freed at once
//     4.14    8 bits; clusters for each CPU, slots in batches for the slots cache and back from it
//
// Invariant: users of slot S = PTEs that hold S; SWAP_HAS_CACHE set iff S is in the swap cache (or held by the slots
// cache). Linux: mm/swapfile.c 4.14. Slots are taken in swapfile_scan.cpp, counted in swapfile_count.cpp; swapon,
// swapoff and reuse of pages are in swapfile_unuse and swap_state. The device hears of a slot's end when its last user
// goes, not when it leaves the slots cache: what lies there is dead already, and in zram it is memory.
#pragma once

#include "block/block.hpp"
#include "kernel/log_line.hpp"
#include "kernel/workqueue.hpp"
#include "mm/frontswap.hpp"
#include "mm/mm_types.hpp"
#include "mm/profile.hpp"
#include "mm/swapops.hpp"
#include "mm/vmalloc.hpp"

namespace weir {

inline constexpr uint8_t SWAP_HAS_CACHE = 0x40, SWAP_MAP_MAX = 0x3e, SWAP_MAP_BAD = 0x3f, COUNT_CONTINUED = 0x80;
/// Users of a slot whose one user is a memory file.
inline constexpr uint8_t SWAP_MAP_SHMEM = 0xbf;
/// The most that one further digit of a count holds.
inline constexpr uint8_t SWAP_CONT_MAX = 0x7f;
/// The same of 2.6.20, whose map has 16 bits a slot. A count at its maximum stays there until swapoff.
inline constexpr uint16_t SWAP_MAP_MAX_16 = 0x7fff, SWAP_MAP_BAD_16 = 0x8000;
/// Slots in a row that one CPU (or the hand) fills: 1 MiB, a stretch that a disk reads back in one go.
inline constexpr unsigned SWAPFILE_CLUSTER = 256;
/// So many slots are looked at in one go; then others may run.
inline constexpr uint64_t LATENCY_LIMIT = 256;
/// A batch that has slots already looks so far for the next one when there is no free cluster. (4.14 is content with
/// one slot then. Here it goes on: the same slots in the same order, but the lock of the area is taken less.)
inline constexpr uint64_t SCAN_AHEAD = 4 * LATENCY_LIMIT;
/// Most slots taken in one go.
inline constexpr unsigned SWAP_BATCH = 64;

enum SwpFlag : uint32_t {
  SWP_USED = 1,
  SWP_WRITEOK = 2,
  SWP_DISCARDABLE = 4,
  SWP_SOLIDSTATE = 16,
  SWP_BLKDEV = 64,
  SWP_FILE = 128,
  SWP_AREA_DISCARD = 256,  ///< all of it when it is taken into use
  SWP_PAGE_DISCARD = 512,  ///< clusters when they are free again
};

/// An array too large for one block of frames: vzalloc'ed, reached page by page at the frames' places.
template <class T>
class PagedArray {
 public:
  static constexpr uint64_t PER_PAGE = PAGE_SIZE / sizeof(T);
  [[nodiscard]] T& operator[](uint64_t i) const { return pages_[i / PER_PAGE][i % PER_PAGE]; }
  explicit operator bool() const { return pages_ != nullptr; }

 private:
  friend class SwapFiles;
  VirtAddr area_{};
  T** pages_ = nullptr;  // kmalloc'ed
};

/// One further digit for each slot of a page of the map. A count is the map's digit (base 0x3f), then those of the
/// chain (base 0x80), least first; COUNT_CONTINUED in a digit: one above it is not 0. Stays until swapoff.
struct SwapContinuation {
  uint8_t* digits = nullptr;  // a frame
  SwapContinuation* next = nullptr;
};

/// 256 slots of an area without seek time. Guarded by the area's lock.
/// Invariants: count = its slots whose map is not 0 (those behind the end of the area count as used).
/// On the free list iff count = 0 and owner = none; on the list to be discarded iff count = 0 and owner = discard:
/// nobody takes a slot of it before the device has been told.
struct SwapCluster {
  enum class Owner : uint16_t { none, cpu, discard };
  uint32_t next = 0;  ///< on the list that it is on; 0 ends it (cluster 0 has the header's slot and is never free)
  uint16_t count = 0;
  Owner owner = Owner::none;
};

/// The cluster one CPU is filling. 0: none.
struct PerCpuCluster {
  uint32_t index = 0;
  uint64_t next = 0;  ///< the slot to look at next
};

class SwapFiles;

/// One area. Linux: struct swap_info_struct. Never freed: a type that is free again is used for the next swapon.
struct SwapInfo {
  SpinLock lock{LockRank::swap_area};
  std::atomic<uint32_t> flags{0};              ///< SwpFlag; changed under lock
  int16_t prio = 0;                            // swap_lock
  unsigned type = 0;                           ///< index in swap_info[]; immutable while used
  uint64_t max = 0;                            ///< slots, the header's included
  PagedArray<uint16_t> swap_map16;             ///< 2.6.20 has this in place of swap_map; lock
  PagedArray<uint8_t> swap_map;                ///< in the machine's own frames; lock
  SwapContinuation** continuations = nullptr;  ///< a chain for each page of the map, kmalloc'ed; lock
  // Free slots, if there are any, lie in [lowest_bit, highest_bit]; full: highest_bit = 0.
  uint64_t lowest_bit = 0, highest_bit = 0;                       // lock
  uint64_t pages = 0;                                             ///< usable slots
  uint64_t inuse_pages = 0;                                       // lock; = slots whose map is neither 0 nor BAD
  uint64_t cluster_next = 0, cluster_nr = 0;                      // lock
  uint64_t copy_hand = 0;                                         ///< where reclaim_copies() goes on; lock
  PagedArray<SwapCluster> cluster_info;                           // lock; only SWP_SOLIDSTATE
  uint32_t free_clusters_head = 0, free_clusters_tail = 0;        // lock
  uint32_t discard_clusters_head = 0, discard_clusters_tail = 0;  // lock
  PerCpuCluster* percpu_cluster = nullptr;                        // lock; kmalloc'ed
  struct DiscardWork {
    WorkStruct work;  // first: its function is given this
    SwapFiles* files = nullptr;
    SwapInfo* area = nullptr;
  } discard_work;
  PagedArray<std::atomic<uint64_t>> frontswap_map;  ///< a bit a slot: its bytes are in the store; only with a store
  std::atomic<uint64_t> frontswap_pages{0};
  BlockDevice* bdev = nullptr;
  std::atomic<uint64_t> write_errors{0}, read_errors{0};
};

class SwapFilesEra;

class SwapFiles : private FrontswapMaps {
 public:
  SwapFiles(PageAllocator& pages, Slab& slab, Vmalloc& vmalloc, VmStat& vmstat, unsigned cpus,
            KernelEra kernel = DEFAULT_KERNEL);
  SwapFiles(const SwapFiles&) = delete;
  SwapFiles& operator=(const SwapFiles&) = delete;

  // ---- what the eras have
  /// In the map the cache is a user like the others (2.6.20), not a flag of its own.
  [[nodiscard]] bool cache_is_a_user() const { return traits_.cache_is_a_user; }
  /// Slots are kept at hand for each CPU (4.14).
  [[nodiscard]] bool has_slots_cache() const { return traits_.slots_cache; }
  /// Areas without seek time are filled by clusters (4.14).
  [[nodiscard]] bool has_clusters() const { return traits_.clusters; }

  // ---- slots
  /// One slot, used by the cache; what 2.6.20 and 3.x take. 0: every area is full. May let others run.
  [[nodiscard]] SwpEntry get_swap_page();
  /// Takes up to n slots of the best area (priority, then round robin; areas whose device has no room are passed over),
  /// each with SWAP_HAS_CACHE. Returns how many, at most SWAP_BATCH. May let others run between two looks at the map:
  /// no spinlock held.
  unsigned get_swap_pages(unsigned n, SwpEntry* entries);
  /// Gives back slots that hold only SWAP_HAS_CACHE, in bulk (slots cache).
  void swapcache_free_entries(const SwpEntry* entries, unsigned n);
  /// One more PTE holds the entry. Any context. Errors: EINVAL (bad entry), ENOENT (free slot), ENOMEM (the count needs
  /// a page for its further digits and there is none: add_swap_count_continuation, then again).
  Result<void> swap_duplicate(SwpEntry entry);
  /// The slot, which only the cache holds, becomes a memory file's. Any context.
  void swap_shmem_alloc(SwpEntry entry);
  /// May the slot's user be a memory file? (Where the map does not tell: yes.)
  [[nodiscard]] bool may_be_shmem(SwpEntry entry);
  /// Makes room for one more user of a slot whose count is at its maximum; nothing to do for others. Errors: ENOMEM.
  Result<void> add_swap_count_continuation(SwpEntry entry, gfp_t gfp);
  /// A PTE that held it is gone. Returns what is left of the slot's users: a count | SWAP_HAS_CACHE; 0 if it was the
  /// last.
  uint16_t swap_free(SwpEntry entry);
  /// Takes SWAP_HAS_CACHE before reading a slot in. Errors: EEXIST (somebody else is reading it), ENOENT (free
  /// meanwhile), EINVAL.
  Result<void> swapcache_prepare(SwpEntry entry);
  /// The cache lets go of the slot. Goes through `release` (slots cache) when that was its last user.
  void swapcache_free(SwpEntry entry);
  /// Users of the slot without the cache; 0 for a bad entry or slot. Where the cache is a user like the others, the
  /// caller says whether it is one of them.
  enum class Cached : uint8_t { no, yes };
  [[nodiscard]] uint64_t swp_swapcount(SwpEntry entry, Cached cached = Cached::no);
  [[nodiscard]] uint16_t swap_map_value(SwpEntry entry);
  /// The value that says that a slot cannot be used.
  [[nodiscard]] uint16_t bad_value() const { return traits_.cache_is_a_user ? SWAP_MAP_BAD_16 : SWAP_MAP_BAD; }
  /// For readahead: the slots around `entry` that are worth reading, as many as lie in a window of `window` (a power of
  /// 2) and before the first free or bad one. Returns how many, `first` is the lowest. Linux 2.6.20: valid_swaphandles.
  [[nodiscard]] unsigned valid_swaphandles(SwpEntry entry, unsigned window, uint64_t& first);
  /// Clean swap-cache copies are given up eagerly: more than half of all slots are used, or compressed memory has grown
  /// past what copies may cost.
  [[nodiscard]] bool vm_swap_full() const {
    return vmstat_.node_page_state(NodeStat::nr_zspages) >= copies_limit_ || nr_swap_pages() * 2 < total_swap_pages();
  }
  /// Areas are the machine's own memory (zram alone): with this many frames in their pools a copy is one too many as soon
  /// as its page is back.
  void set_copies_limit(PageCount pool_frames) { copies_limit_ = static_cast<int64_t>(pool_frames.v); }
  /// Free slots: pages of all areas less their inuse_pages (slots that the slots cache holds are in use).
  [[nodiscard]] int64_t nr_swap_pages() const { return nr_swap_pages_.load(std::memory_order_relaxed); }
  [[nodiscard]] int64_t total_swap_pages() const { return total_swap_pages_.load(std::memory_order_relaxed); }
  /// A page could be swapped out now: some area has a free slot and a device with room. A hint.
  [[nodiscard]] bool swap_has_room() const;
  /// The entry's device has room. A hint.
  [[nodiscard]] bool has_room(SwpEntry entry) const;

  // ---- what rooms above plug in
  /// Takes slots whose last user is gone (map: SWAP_HAS_CACHE alone). Any context. Without it they are freed at once.
  void set_release(void (*fn)(void*, SwpEntry), void* arg) { release_ = fn, release_arg_ = arg; }
  /// Tries to give up a swap-cache copy that is the slot's only user; true if it did. No spinlock held.
  void set_try_to_reclaim_swap(bool (*fn)(void*, SwpEntry), void* arg) { reclaim_ = fn, reclaim_arg_ = arg; }

  // ---- areas
  [[nodiscard]] SwapInfo* swap_info(unsigned type) const;  ///< null if not in use
  [[nodiscard]] SwapInfo* swap_info_get(SwpEntry entry);   ///< null and a report for a bad entry or a free slot
  /// Reserves a type number, the lowest free one. Errors: EPERM when all are used, ENOMEM.
  Result<SwapInfo*> alloc_swap_info();
  /// Makes the map of `maxpages` slots: 0, or SWAP_MAP_BAD for slot 0 and those listed (each below maxpages); and the
  /// clusters, where the area is SWP_SOLIDSTATE. bdev and flags are set. Errors: ENOMEM, EINVAL (no good slot is left).
  Result<void> setup_swap_map(SwapInfo& si, uint64_t maxpages, const uint32_t* badpages, unsigned nr_badpages);
  /// The area (map, max, bdev set) takes part from now on. `prio` below 0: the next automatic one.
  void enable_swap_info(SwapInfo& si, int prio);
  /// No slot of it is handed out any more. Automatic priorities below its own move up by one.
  void disable_swap_info(SwapInfo& si);
  /// After a swapoff that had to give up: takes part again as if nothing had been, with the priority `prio` it had.
  void reinsert_swap_info(SwapInfo& si, int prio);
  /// No slot is in use. Frees the map; the type is free.
  void release_swap_info(SwapInfo& si);
  /// The next slot in use behind `offset`, and behind the last one the first; 0 if there is none. May let others run.
  [[nodiscard]] uint64_t find_next_to_unuse(SwapInfo& si, uint64_t offset);

  /// The list of Mms that may hold swap entries. Linux: mmlist.
  void mmlist_add(Mm& mm);
  void mmlist_remove(Mm& mm);
  /// The next Mm of the list behind `after` (null: the first) that is not going, with a user's reference (mmget).
  /// `after` is held by the caller. Null at the end.
  [[nodiscard]] Mm* mmlist_next(const Mm* after);

  [[nodiscard]] PageAllocator& pages() const { return pages_; }
  [[nodiscard]] Slab& slab() const { return slab_; }
  [[nodiscard]] Vmalloc& vmalloc() const { return vmalloc_; }

  // ---- discard
  /// Tells the device that slots [first, first + n) hold nothing. Nobody may take them meanwhile. Sleeps. What the
  /// device answers is of no consequence.
  void discard_slots(SwapInfo& si, uint64_t first, uint64_t n);
  /// What the kthread runs: the clusters of one area that wait.
  static void swap_discard_work(WorkStruct* work);
  /// The kthread that discards clusters; until it runs, or without it, who finds no other free cluster discards.
  Result<void> start_discard(World& world);
  void stop_discard();
  /// Nothing of the area waits to be discarded any more. Sleeps.
  void flush_discard(SwapInfo& si);

  [[nodiscard]] Frontswap& frontswap() { return frontswap_; }

  /// Recounts every area under its lock; a bug found is reported through `fail(arg, id, text)`. For verify().
  void survey(void (*fail)(void*, const char* id, const char* text), void* arg);

 private:
  friend class SwapFilesEra;
  struct Traits {
    bool cache_is_a_user = false, slots_cache = true, clusters = true;
    uint16_t taken = SWAP_HAS_CACHE;  ///< the map's value of a slot just taken
  };
  static constexpr size_t ERA_BYTES = 32;
  template <class T>
  Result<void> make(PagedArray<T>& array, uint64_t n);
  template <class T>
  void free(PagedArray<T>& array);

  [[nodiscard]] SwapInfo* lookup(SwpEntry entry, const char* who);
  Result<void> __swap_duplicate(SwpEntry entry, uint8_t usage, const char* who);
  enum class Carry : uint8_t { up, down };
  bool swap_count_continued(SwapInfo& si, uint64_t offset, Carry carry) WEIR_REQUIRES(si.lock);
  void free_swap_count_continuations(SwapContinuation** chains, uint64_t nr_chains);
  [[nodiscard]] static uint64_t count_of(const SwapInfo& si, uint64_t offset);
  [[nodiscard]] static bool continued_right(const SwapInfo& si, uint64_t offset);
  unsigned take_slots(unsigned n, SwpEntry* entries);
  /// The slot's value less one user (or the cache), written; nothing is done about a slot that nobody uses any more.
  uint8_t drop_user(SwapInfo& si, SwpEntry entry, uint8_t usage, bool& dropped) WEIR_REQUIRES(si.lock);
  [[nodiscard]] static uint16_t map_at(const SwapInfo& si, uint64_t offset) {
    return si.swap_map16 ? si.swap_map16[offset] : si.swap_map[offset];
  }
  static void set_map(SwapInfo& si, uint64_t offset, uint16_t v) {
    if (si.swap_map16)
      si.swap_map16[offset] = v;
    else
      si.swap_map[offset] = static_cast<uint8_t>(v);
  }
  void __swap_entry_free(SwapInfo& si, SwpEntry entry, uint8_t usage, uint8_t& left);
  void swap_entry_free(SwapInfo& si, SwpEntry entry) WEIR_REQUIRES(si.lock);
  void release(SwpEntry entry);

  [[nodiscard]] PerCpuCluster& this_cpu_cluster(SwapInfo& si) const;
  unsigned scan_swap_map_slots(SwapInfo& si, unsigned n, SwpEntry* entries) WEIR_REQUIRES(si.lock);
  uint64_t scan_swap_map_try_ssd_cluster(SwapInfo& si) WEIR_REQUIRES(si.lock);
  uint64_t scan_swap_map_hand(SwapInfo& si) WEIR_REQUIRES(si.lock);
  uint64_t free_slot_in(SwapInfo& si, uint64_t offset, uint64_t to) WEIR_REQUIRES(si.lock);
  uint64_t next_free_slot(SwapInfo& si) WEIR_REQUIRES(si.lock);
  enum class Wanted : uint8_t { free, free_or_copy, copy };
  [[nodiscard]] static uint64_t next_candidate(const SwapInfo& si, uint64_t from, uint64_t to, Wanted what);
  void reclaim_copies(SwapInfo& si);
  bool breathe(SwapInfo& si, uint64_t& latency) WEIR_REQUIRES(si.lock);
  void swap_range_alloc(SwapInfo& si, uint64_t offset) WEIR_REQUIRES(si.lock);
  void swap_range_free(SwapInfo& si, uint64_t offset) WEIR_REQUIRES(si.lock);
  void free_cluster(SwapInfo& si, uint32_t cluster) WEIR_REQUIRES(si.lock);
  void swap_cluster_schedule_discard(SwapInfo& si, uint32_t cluster) WEIR_REQUIRES(si.lock);
  void swap_do_scheduled_discard(SwapInfo& si) WEIR_REQUIRES(si.lock);
  [[nodiscard]] static bool may_take(const SwapInfo& si, uint64_t offset) {
    return map_at(si, offset) == 0 &&
           (!si.cluster_info || si.cluster_info[offset / SWAPFILE_CLUSTER].owner != SwapCluster::Owner::discard);
  }
  // FrontswapMaps
  [[nodiscard]] bool frontswap_test(unsigned type, uint64_t offset) const override;
  uint64_t frontswap_set(unsigned type, uint64_t offset) override;
  uint64_t frontswap_clear(unsigned type, uint64_t offset) override;
  void push_free_cluster(SwapInfo& si, uint32_t cluster) WEIR_REQUIRES(si.lock);
  [[nodiscard]] uint32_t pop_free_cluster(SwapInfo& si) WEIR_REQUIRES(si.lock);
  void __enable_swap_info(SwapInfo& si) WEIR_REQUIRES(swap_lock_);
  void insert_by_priority(SwapInfo& si) WEIR_REQUIRES(swap_lock_);
  void requeue(unsigned type) WEIR_REQUIRES(swap_lock_);

  PageAllocator& pages_;
  Slab& slab_;
  Vmalloc& vmalloc_;
  VmStat& vmstat_;
  unsigned cpus_;
  WorldAtomic<int64_t> nr_swap_pages_{0}, total_swap_pages_{0};
  int64_t copies_limit_ = INT64_MAX;                      // set when the machine is wired
  std::atomic<SwapInfo*> swap_info_[MAX_SWAPFILES] = {};  // set once each, under swap_lock_

  SpinLock swap_lock_{LockRank::swap_lock};
  // Types of the areas that take part: priority falls; of equal ones the next to be used comes first.
  uint8_t active_[MAX_SWAPFILES] WEIR_GUARDED_BY(swap_lock_) = {};
  unsigned nr_active_ WEIR_GUARDED_BY(swap_lock_) = 0;
  int16_t least_priority_ WEIR_GUARDED_BY(swap_lock_) = -1;  // the lowest automatic one given; the first is -2

  SpinLock mmlist_lock_{LockRank::mmlist};
  MmList mmlist_ WEIR_GUARDED_BY(mmlist_lock_);

  alignas(16) std::byte era_place_[ERA_BYTES];
  SwapFilesEra* era_ = nullptr;  // in era_place_; immutable
  Traits traits_;                // immutable

  Workqueue discard_queue_;
  bool discarding_ = false;  ///< the queue has its kthread; swapon mutex
  Frontswap frontswap_;

  // Set when the machine is wired.
  void (*release_)(void*, SwpEntry) = nullptr;
  void* release_arg_ = nullptr;
  bool (*reclaim_)(void*, SwpEntry) = nullptr;
  void* reclaim_arg_ = nullptr;
};

// ---- Eras
//
//            taken by                               one more PTE     one less                         the cache lets go
//   2.6.20   get_swap_page -> scan_swap_map         swap_duplicate   swap_free -> swap_entry_free     swap_free
//   3.x      get_swap_page -> scan_swap_map         swap_duplicate   swap_free -> swap_entry_free     swapcache_free
//   4.14     get_swap_pages -> scan_swap_map_slots  swap_duplicate   swap_free -> … free_swap_slot    swapcache_free

class SwapFilesEra {
 public:
  explicit SwapFilesEra(SwapFiles& files) : files_(files) {}
  SwapFilesEra(const SwapFilesEra&) = delete;
  SwapFilesEra& operator=(const SwapFilesEra&) = delete;

  using Traits = SwapFiles::Traits;
  [[nodiscard]] virtual Traits traits() const = 0;
  /// Takes up to n slots of the area, whose lock is held.
  virtual unsigned scan(SwapInfo& si, unsigned n, SwpEntry* entries) = 0;
  virtual SwpEntry get_swap_page() = 0;
  virtual Result<void> swap_duplicate(SwpEntry entry) = 0;
  virtual uint16_t swap_free(SwpEntry entry) = 0;
  virtual Result<void> swapcache_prepare(SwpEntry entry) = 0;
  virtual void swapcache_free(SwpEntry entry) = 0;

 protected:
  ~SwapFilesEra() = default;

  // What the eras are put together from.
  unsigned take_slots(unsigned n, SwpEntry* entries) { return files_.take_slots(n, entries); }
  unsigned scan_batch(SwapInfo& si, unsigned n, SwpEntry* entries) {
    return files_.scan_swap_map_slots(si, n, entries);
  }
  /// One slot by the hand; 0: none.
  uint64_t scan_one(SwapInfo& si);
  SwapInfo* lookup(SwpEntry entry, const char* who) { return files_.lookup(entry, who); }
  Result<void> one_user_more(SwpEntry entry);
  Result<void> cache_takes(SwpEntry entry) {
    return files_.__swap_duplicate(entry, SWAP_HAS_CACHE, "swapcache_prepare");
  }
  /// 4.14: the last one leaves SWAP_HAS_CACHE behind, which release() gives back.
  uint8_t drop_and_release(SwapInfo& si, SwpEntry entry, uint8_t usage);
  /// 3.x: the slot is free at once. `usage` as in the map.
  uint8_t drop_user(SwapInfo& si, SwpEntry entry, uint8_t usage) WEIR_REQUIRES(si.lock);
  void range_free(SwapInfo& si, uint64_t offset) WEIR_REQUIRES(si.lock) { files_.swap_range_free(si, offset); }
  SwapFiles& files_;
};

/// Made in `place` (SwapFiles::ERA_BYTES).
SwapFilesEra* swapfiles_2_6_20(void* place, SwapFiles& files);
SwapFilesEra* swapfiles_3(void* place, SwapFiles& files);
SwapFilesEra* swapfiles_4_14(void* place, SwapFiles& files);

}  // namespace weir
