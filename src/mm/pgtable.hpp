// src/mm/pgtable.hpp
//
// Page tables in real frames: 4 levels of 512 entries, 9 bits each, 48-bit addresses.
//
//   pgd[47..39] --> pud[38..30] --> pmd[29..21] --> pte[20..12] --> frame
//
// Upper levels are filled under mm->page_table_lock, PTEs under the lock of their table page (split locks). Table pages are
// counted in Mm::nr_table_pages and NR_PAGETABLE; they go only through free_pgtables, after every rmap path to them is cut.
// Accessors here only change the entry and record it. Making hardware follow is said by the caller: FlushBatch, update_mmu_cache.
// Linux: mm/memory.c (allocation), mm/pgtable-generic.c, arch/x86/mm/pgtable.c.
#pragma once

#include "mm/mm_types.hpp"
#include "mm/page_alloc.hpp"

namespace weir {

inline constexpr unsigned PTRS_PER_TABLE = 512;
inline constexpr uint64_t PMD_SIZE = uint64_t{1} << 21;  ///< what one PTE table spans
inline constexpr uint64_t PMD_MASK = ~(PMD_SIZE - 1);

/// One locked PTE. Unlocks when it goes.
class PteLock {
 public:
  PteLock() = default;
  PteLock(Pte* pte, SpinLock* ptl) : pte_(pte), ptl_(ptl) {}
  PteLock(PteLock&& o) noexcept : pte_(o.pte_), ptl_(o.ptl_) { o.pte_ = nullptr, o.ptl_ = nullptr; }
  PteLock& operator=(PteLock&& o) noexcept {
    unlock();
    pte_ = o.pte_, ptl_ = o.ptl_;
    o.pte_ = nullptr, o.ptl_ = nullptr;
    return *this;
  }
  ~PteLock() { unlock(); }
  void unlock() {
    if (ptl_ != nullptr) ptl_->unlock();
    pte_ = nullptr, ptl_ = nullptr;
  }
  explicit operator bool() const { return pte_ != nullptr; }
  [[nodiscard]] Pte operator*() const { return Pte{__atomic_load_n(&pte_->v, __ATOMIC_RELAXED)}; }
  [[nodiscard]] Pte* get() const { return pte_; }

 private:
  Pte* pte_ = nullptr;
  SpinLock* ptl_ = nullptr;
};

class PageTables {
 public:
  PageTables(PageAllocator& pages, VmStat& vmstat);

  /// Errors: ENOMEM.
  Result<void> pgd_alloc(Mm& mm);
  void pgd_free(Mm& mm);

  /// Makes the path down to the PTE table of `address`. The loser of a race frees its page. Errors: ENOMEM.
  Result<void> pte_alloc(Mm& mm, VirtAddr address);
  /// pte_alloc, then the PTE locked. Empty: no memory.
  [[nodiscard]] PteLock pte_alloc_map_lock(Mm& mm, VirtAddr address);
  /// Empty if there is no PTE table for the address.
  [[nodiscard]] PteLock pte_offset_map_lock(Mm& mm, VirtAddr address);
  /// Without the lock: what a hardware walk sees. Null if there is no table.
  [[nodiscard]] const Pte* walk(const Mm& mm, VirtAddr address) const;
  /// The place of the PTE table's first entry, unlocked (soft MMU's cache, verify). Null if there is none.
  [[nodiscard]] Pte* pte_table(const Mm& mm, VirtAddr address) const;

  /// Calls fn(address, Pte* pte) for each entry with a table in [start, end), table by table under its lock.
  /// fn may change the entry; it must not sleep. Between tables no lock is held.
  template <class Fn>
  void for_each_pte(Mm& mm, VirtAddr start, VirtAddr end, Fn fn) {
    for (VirtAddr a = start; a < end;) {
      const VirtAddr next{(a.v & PMD_MASK) + PMD_SIZE};
      const VirtAddr stop = next < end ? next : end;
      if (PteLock first = pte_offset_map_lock(mm, a)) {
        Pte* p = first.get();
        for (; a < stop; a = a + PAGE_SIZE, ++p) fn(a, p);
      }
      a = stop;
    }
  }

  /// Frees the tables that lie wholly in [floor, ceiling) and serve only [start, end). All entries are none; no rmap path leads here.
  void free_pgtables(Mm& mm, VirtAddr start, VirtAddr end, VirtAddr floor, VirtAddr ceiling);

  // ---- accessors; the PTE's lock is held
  void set_pte_at(Mm& mm, VirtAddr address, Pte* ptep, Pte pte);
  /// Clears the entry and returns what was there (hardware's young and dirty bits included).
  Pte ptep_get_and_clear(Mm& mm, VirtAddr address, Pte* ptep);
  /// The same; the caller puts the address into a FlushBatch.
  Pte ptep_clear_flush(Mm& mm, VirtAddr address, Pte* ptep);
  void ptep_set_wrprotect(Mm& mm, VirtAddr address, Pte* ptep);
  /// True if it was young; it is old now. Where !has_accessed the caller batches the address for age_batch.
  bool ptep_test_and_clear_young(Mm& mm, VirtAddr address, Pte* ptep);
  /// Sets young (and, with `dirty`, dirty and writable as `entry` says). True if something changed.
  bool ptep_set_access_flags(Mm& mm, VirtAddr address, Pte* ptep, Pte entry);

  /// The kernel's own tables (vmalloc).
  [[nodiscard]] Mm& init_mm() { return init_mm_; }
  [[nodiscard]] PageAllocator& pages() const { return pages_; }

 private:
  PageAllocator& pages_;
  VmStat& vmstat_;
  Mm init_mm_;
};

/// The PTE for a page with a VMA's rights; writable only by pte_mkwrite. Linux: mk_pte.
[[nodiscard]] Pte mk_pte(Pfn pfn, const VmArea& vma);

}  // namespace weir
