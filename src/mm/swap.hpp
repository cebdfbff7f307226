// src/mm/swap.hpp
//
// The LRU: pages come in through small per-CPU batches (pagevecs of 14) and sit on one of five lists.
//
//   lru_cache_add --> pagevec --full or drain--> inactive/active anon/file
//   touched once: referenced;  twice: active;  put_page at count 0: off the list, freed
//
// PG_lru says "on a list" and changes only under the node's lru_lock, together with the list and its size. Who takes a
// page off to work on it (isolates it) clears PG_lru and keeps PG_active, so that the page can go back to where it was.
// A page in a pagevec is held by a reference of the pagevec's own.
//
// Linux: mm/swap.c, and of mm/vmscan.c and mm/mlock.c what moves single pages. (Swapping itself is in vmscan, swapfile,
// swap_state, page_io.)
#pragma once

#include "mm/address_space.hpp"
#include "mm/page_alloc.hpp"
#include "mm/page_ref.hpp"

namespace weir {

/// Large enough that the lru_lock is taken once for many pages, small enough that few pages are out of reclaim's sight.
inline constexpr unsigned PAGEVEC_SIZE = 14;

/// Who finds the mappings of a page. Rmap implements it.
class LockedMappings {
 public:
  /// Lru::mlock_vma_page for the page if some VM_LOCKED mapping has it. Page locked. Sleeps.
  virtual void try_to_munlock(Page& page) = 0;

 protected:
  ~LockedMappings() = default;
};

class Lru;
class Workingset;

/// By which of its entries a kernel puts new pages on the LRU. Without state.
class LruEra {
 public:
  virtual void add_new_user_page(Lru& lru, Page& page, const VmArea& vma) const = 0;
  virtual void add_new_cache_page(Lru& lru, Page& page) const = 0;
  [[nodiscard]] static const LruEra& of(KernelEra kernel);

 protected:
  ~LruEra() = default;
};

class Lru {
 public:
  Lru(PageAllocator& pages, VmStat& vmstat, Mmu& mmu, unsigned cpus, KernelEra kernel = DEFAULT_KERNEL);
  /// Makes the pagevecs; after the page allocator. Until then every page goes to its list at once. Errors: ENOMEM.
  Result<void> init();
  void set_locked_mappings(LockedMappings& mappings) { locked_mappings_ = &mappings; }

  /// New anonymous page: inactive (active if PG_active is set). Takes a reference for the pagevec.
  void lru_cache_add_anon(Page& page);
  void lru_cache_add_file(Page& page);
  void lru_cache_add(Page& page);
  /// A new page of the page cache.
  void add_new_cache_page(Page& page) { era_.add_new_cache_page(*this, page); }
  /// A new anonymous page of a fault: active, or unevictable when the VMA is VM_LOCKED. By the kernel's own entry:
  void add_new_user_page(Page& page, const VmArea& vma) { era_.add_new_user_page(*this, page, vma); }
  /// 2.6.20
  void lru_cache_add_active(Page& page);
  /// 3.x
  void lru_cache_add_lru(Page& page, LruList list);
  /// 4.14
  void lru_cache_add_active_or_unevictable(Page& page, const VmArea& vma);
  void add_new_mlocked_page(Page& page);
  /// Straight onto the unevictable list; the page is on no list and in no pagevec.
  void add_page_to_unevictable_list(Page& page);
  /// Moves a page on an inactive list to the active one (through a pagevec).
  void activate_page(Page& page);
  /// Where evicted file pages leave a shadow (4.14): it is told what becomes active. Set once, at boot.
  void set_workingset(Workingset* workingset) { workingset_ = workingset; }
  /// inactive,unref -> inactive,ref -> active,unref -> active,ref.
  void mark_page_accessed(Page& page);
  /// Moves a page on an active list to the head of the inactive one (through a pagevec): it is not needed soon.
  void deactivate_page(Page& page);
  /// An anonymous page whose content need not be kept: it leaves swap's backing for the inactive file list, where it is
  /// dropped if nobody has written it by then. Not for pages of the swap cache.
  void mark_page_lazyfree(Page& page);
  /// Writeback ended on a PG_reclaim page: to the inactive tail.
  void rotate_reclaimable_page(Page& page);
  /// Empties this CPU's pagevecs onto the lists; all CPUs'.
  void lru_add_drain();
  void lru_add_drain_all();

  /// Drops a reference; frees the page with the last one (off its LRU list first).
  void put_page(Page& page);
  /// The same for many.
  void release_pages(Page** pages, unsigned count);

  // ---- single pages off the lists and back
  /// Takes a page off its list, with a reference. Errors: EBUSY (it is on none).
  Result<void> isolate_lru_page(Page& page);
  /// Puts an isolated page on the list its flags name (unevictable if mlocked) and drops the isolation's reference.
  void putback_lru_page(Page& page);
  /// False: an mlocked page, or one of a file that stays in memory: reclaim must leave it alone. (Where there is no
  /// unevictable list neither is marked.)
  [[nodiscard]] static bool page_evictable(const Page& page) {
    return !page.test(PageFlag::mlocked) && !mapping_unevictable(page);
  }

  // ---- mlock flags; page locked
  /// A VM_LOCKED mapping of the page exists: PG_mlocked, off to the unevictable list if it is on another.
  void mlock_vma_page(Page& page);
  /// A VM_LOCKED mapping goes: back to an evictable list, unless there is another one. Sleeps.
  void munlock_vma_page(Page& page);
  /// The last mapping went, or the page is truncated: PG_mlocked goes too. Page lock not needed.
  void clear_page_mlock(Page& page);

  // ---- lists; node.lru_lock held
  /// To the head; PG_lru is the caller's. Size, gauge and the recorded `lru` change are done here.
  void add_page_to_lru_list(Page& page, LruList list) WEIR_NO_THREAD_SAFETY_ANALYSIS;
  void add_page_to_lru_list_tail(Page& page, LruList list) WEIR_NO_THREAD_SAFETY_ANALYSIS;
  void del_page_from_lru_list(Page& page, LruList list) WEIR_NO_THREAD_SAFETY_ANALYSIS;
  /// The list a page with these flags belongs to.
  [[nodiscard]] LruList page_lru(const Page& page) const;
  /// The lists it belongs to: its zone's, or the node's.
  [[nodiscard]] LruVec& lruvec_of(const Page& page) const {
    return profile_.zone_lists ? pages_.page_zone(page).lruvec : node().lruvec;
  }
  /// 1 if the page counts as file-backed, 0 if it goes to swap. Index of ZoneReclaimStat.
  [[nodiscard]] unsigned page_is_file_cache(const Page& page) const {
    return PageSwapBacked(page) || !profile_.five_lists ? 0 : 1;
  }

  // ---- staging, where the MMU has no accessed bits: PG_aged says that a page's PTEs were made old since it became
  // inactive. A hand goes over the inactive anonymous list from the tail to the head; what it has passed was offered
  // once.
  /// The next pages under the hand that are not aged, with references. Returns how many.
  unsigned pages_to_age(Page** pages, unsigned max);
  void set_page_aged(Page& page) {
    if (!page.test_and_set(PageFlag::aged)) nr_aged_.fetch_add(1, std::memory_order_relaxed);
  }
  void clear_page_aged(Page& page) {
    if (page.test_and_clear(PageFlag::aged)) nr_aged_.fetch_sub(1, std::memory_order_relaxed);
  }
  /// Pages with PG_aged.
  [[nodiscard]] PageCount nr_aged() const { return PageCount(nr_aged_.load(std::memory_order_relaxed)); }

  // ---- flags whose change the documents show; both record it

  [[nodiscard]] PageCount lru_size(LruList list) const;
  [[nodiscard]] Node& node() const { return pages_.node(); }
  [[nodiscard]] PageAllocator& pages() const { return pages_; }
  /// How often the page is in pagevecs now, for verify().
  [[nodiscard]] unsigned in_pagevecs(const Page& page) const;

 private:
  enum class Batch : uint8_t { add, activate, rotate, deactivate, lazyfree, count };
  static constexpr unsigned NR_BATCHES = static_cast<unsigned>(Batch::count);
  /// Guarded by its CPU's lock. pages[0, nr), each with a reference of the pagevec's own; nr < PAGEVEC_SIZE between
  /// calls.
  struct Pagevec {
    unsigned nr = 0;
    Page* pages[PAGEVEC_SIZE];
  };
  struct PerCpu {
    SpinLock lock{LockRank::pagevec};
    Pagevec vec[NR_BATCHES];
  };
  enum class End : uint8_t { head, tail };

  [[nodiscard]] PerCpu& this_cpu() const;
  void pagevec_add(Batch batch, Page& page);
  unsigned pagevec_flush(Batch batch, Pagevec& vec, Page** done);
  void drain_cpu(PerCpu& cpu);
  void move_fn(Batch batch, Page& page) WEIR_NO_THREAD_SAFETY_ANALYSIS;
  void link(Page& page, LruList list, End end) WEIR_NO_THREAD_SAFETY_ANALYSIS;
  void unlink(Page& page, LruList list) WEIR_NO_THREAD_SAFETY_ANALYSIS;
  void move_page(Page& page, LruList from, LruList to, End end) WEIR_NO_THREAD_SAFETY_ANALYSIS;
  [[nodiscard]] static bool lazyfree_candidate(const Page& page);
  void advance_aging_hand() WEIR_NO_THREAD_SAFETY_ANALYSIS;
  void update_page_reclaim_stat(const Page& page, unsigned file, bool rotated) WEIR_NO_THREAD_SAFETY_ANALYSIS;
  void __page_cache_release(Page& page);
  bool __lru_cache_activate_page(Page& page);

  PageAllocator& pages_;
  VmStat& vmstat_;
  const Profile& profile_;
  const LruEra& era_;
  unsigned cpus_;
  Workingset* workingset_ = nullptr;
  LockedMappings* locked_mappings_ = nullptr;  // set once, before there is a mapping
  PerCpu* percpu_ = nullptr;                   // cpus_ of them, in the machine's own frames
  std::atomic<int64_t> nr_aged_{0};
  Page* aging_hand_ = nullptr;  // lru_lock; on the inactive anonymous list; null: the head was passed
};

}  // namespace weir
