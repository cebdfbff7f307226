// src/mm/pgtable.hpp
//
// Page tables in real frames: 4 levels of 512 entries, 9 bits each, 48-bit addresses.
//
//   pgd[47..39] --> pud[38..30] --> pmd[29..21] --> pte[20..12] --> frame
//
// Upper levels are filled under mm->page_table_lock, PTEs under the lock of their table page (split locks; the lock
// lies in the page's private_). Table pages are counted in Mm::nr_table_pages and NR_PAGETABLE, the pgd included; they
// go only through free_pgtables, after every rmap path to them is cut, and pgd_free.
//
// Accessors here only change the entry and record it. Making hardware follow is said by the caller: FlushBatch,
// update_mmu_cache. Hardware's walk sets young and dirty in present entries at any moment, so each change is one atomic
// step.
//
// Linux: mm/memory.c (allocation, free_pgtables), mm/pgtable-generic.c, arch/x86/mm/pgtable.c.
#pragma once

#include "mm/mm_types.hpp"
#include "mm/page_alloc.hpp"

namespace weir {

inline constexpr unsigned PTRS_PER_TABLE = 512;
inline constexpr uint64_t PMD_SIZE = uint64_t{1} << 21;  ///< what one PTE table spans
inline constexpr uint64_t PMD_MASK = ~(PMD_SIZE - 1);
inline constexpr uint64_t PUD_SIZE = uint64_t{1} << 30, PGDIR_SIZE = uint64_t{1} << 39;

/// May a user's access use it at all? A present PTE without this right makes hardware fault (PROT_NONE, a copy in
/// transit).
[[nodiscard]] constexpr bool pte_user(Pte p) { return (p.v & _PAGE_USER) != 0; }
[[nodiscard]] constexpr Pte pte_mkuser(Pte p) { return Pte{p.v | _PAGE_USER}; }
[[nodiscard]] constexpr Pte pte_mkinaccessible(Pte p) { return Pte{p.v & ~_PAGE_USER}; }

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
  void unlock() WEIR_NO_THREAD_SAFETY_ANALYSIS {
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
  /// The kernel's own pgd. Errors: ENOMEM.
  Result<void> init() { return alloc_pgd(init_mm_); }

  /// Errors: ENOMEM.
  Result<void> pgd_alloc(Mm& mm);
  /// Everything below it is freed already.
  void pgd_free(Mm& mm);

  /// Makes the path down to the PTE table of `address`. The loser of a race frees its page. Errors: ENOMEM.
  Result<void> pte_alloc(Mm& mm, VirtAddr address);
  // The same, level by level: the entry for the address in the table of that level, which is made if it is missing.
  // Null, ENOMEM: no memory.
  [[nodiscard]] static Pte* pgd_offset(const Mm& mm, VirtAddr address);
  [[nodiscard]] Pte* make_pud(Mm& mm, Pte* pgd, VirtAddr address);
  [[nodiscard]] Pte* make_pmd(Mm& mm, Pte* pud, VirtAddr address);
  Result<void> make_pte_table(Mm& mm, Pte* pmd, VirtAddr address);
  /// pte_alloc, then the PTE locked. Empty: no memory.
  [[nodiscard]] PteLock pte_alloc_map_lock(Mm& mm, VirtAddr address);
  /// Empty if there is no PTE table for the address.
  [[nodiscard]] PteLock pte_offset_map_lock(Mm& mm, VirtAddr address);
  /// Without the lock: what a hardware walk sees. Null if there is no table.
  [[nodiscard]] const Pte* walk(const Mm& mm, VirtAddr address) const { return pte_offset(mm, address); }
  /// The place of the PTE table's first entry, unlocked (soft MMU's cache, verify). Null if there is none.
  [[nodiscard]] Pte* pte_table(const Mm& mm, VirtAddr address) const {
    Pte* pte = pte_offset(mm, address);
    return pte == nullptr ? nullptr : pte - index_at(address, PTE_LEVEL);
  }
  /// The PTE's place, unlocked; null if there is no table.
  [[nodiscard]] Pte* pte_offset(const Mm& mm, VirtAddr address) const;
  /// The first address in [start, end) that has a PTE table, or `end`. Skips whole absent levels.
  [[nodiscard]] VirtAddr next_table(const Mm& mm, VirtAddr start, VirtAddr end) const;

  /// Calls fn(address, Pte* pte) for each entry with a table in [start, end), table by table under its lock.
  /// fn may change the entry; it must not sleep. Between tables no lock is held.
  template <class Fn>
  void for_each_pte(Mm& mm, VirtAddr start, VirtAddr end, Fn fn) {
    for (VirtAddr a = next_table(mm, start, end); a < end; a = next_table(mm, a, end)) {
      const VirtAddr stop = pmd_addr_end(a, end);
      if (PteLock first = pte_offset_map_lock(mm, a)) {
        Pte* p = first.get();
        for (; a < stop; a = a + PAGE_SIZE, ++p) fn(a, p);
      }
      a = stop;
    }
  }
  /// The end of what an entry of so many bytes (a power of two) covers, or `end` if that comes first.
  [[nodiscard]] static constexpr VirtAddr addr_end(VirtAddr address, VirtAddr end, uint64_t size) {
    const uint64_t next = (address.v & ~(size - 1)) + size;
    return next - 1 < end.v - 1 ? VirtAddr(next) : end;
  }
  /// The end of the PTE table that holds `address`, or `end` if that comes first.
  [[nodiscard]] static constexpr VirtAddr pmd_addr_end(VirtAddr address, VirtAddr end) {
    return addr_end(address, end, PMD_SIZE);
  }

  /// Frees the tables that lie wholly in [floor, ceiling) and serve [start, end). Their entries are all none; no rmap
  /// path leads here. floor and ceiling are where the neighbours' mappings end and begin. mmap_sem for writing, or the
  /// last user.
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
  /// Sets young (and, with `entry` dirty, dirty and writable as it says). True if something changed.
  bool ptep_set_access_flags(Mm& mm, VirtAddr address, Pte* ptep, Pte entry);
  /// Changes a present entry's rights; `change` maps the old value to the new one and may be called again if hardware's
  /// bits came between.
  template <class Change>
  Pte ptep_modify(const Mm& mm, VirtAddr address, Pte* ptep, Change change) {
    uint64_t old = __atomic_load_n(&ptep->v, __ATOMIC_RELAXED);
    Pte now;
    do {
      now = change(Pte{old});
      if (now.v == old) return now;
    } while (!__atomic_compare_exchange_n(&ptep->v, &old, now.v, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    stored(mm, address, Pte{old}, now);
    return now;
  }

  /// Calls fn(Page&) for the top table of every user Mm. For verify(): nothing else runs.
  template <class Fn>
  void for_each_pgd(Fn fn) {
    for (Page& page : pgd_list_) fn(page);
  }
  /// For a test that plants a fault: the list itself.
  [[nodiscard]] PageList& pgd_list() { return pgd_list_; }

  /// The kernel's own tables (vmalloc).
  [[nodiscard]] Mm& init_mm() { return init_mm_; }
  [[nodiscard]] PageAllocator& pages() const { return pages_; }

 private:
  static constexpr unsigned PTE_LEVEL = 0, PMD_LEVEL = 1, PUD_LEVEL = 2, PGD_LEVEL = 3;
  static constexpr unsigned level_shift(unsigned level) { return PAGE_SHIFT + 9 * level; }
  static constexpr unsigned index_at(VirtAddr address, unsigned level) {
    return static_cast<unsigned>(address.v >> level_shift(level)) & (PTRS_PER_TABLE - 1);
  }
  /// The table that entry `e` points to; e is not none.
  [[nodiscard]] Pte* table_of(Pte e) const { return reinterpret_cast<Pte*>(pages_.mem().address(pte_pfn(e))); }
  static Pte load(const Pte* entry) { return Pte{__atomic_load_n(&entry->v, __ATOMIC_ACQUIRE)}; }
  /// The entry of `level` for the address, or null when a level above is missing.
  [[nodiscard]] Pte* entry_at(const Mm& mm, VirtAddr address, unsigned level) const;

  Result<void> alloc_pgd(Mm& mm);
  void pgd_list_add(Page& pgd);
  void pgd_list_del(Page& pgd);
  [[nodiscard]] std::byte* pud_alloc_one();
  [[nodiscard]] std::byte* pmd_alloc_one();
  [[nodiscard]] std::byte* pte_alloc_one();
  Result<void> __pud_alloc(Mm& mm, Pte* pgd, VirtAddr address);
  Result<void> __pmd_alloc(Mm& mm, Pte* pud, VirtAddr address);
  Result<void> __pte_alloc(Mm& mm, Pte* pmd, VirtAddr address);
  void pmd_populate(Pte* pmd, Page& table);
  Result<void> hook_in(Mm& mm, Pte* upper, unsigned upper_level, std::byte* table);
  void pgtable_page_ctor(Page& page);
  void count_table(Mm& mm, unsigned upper_level, int n);
  void free_table(Mm& mm, std::byte* table, unsigned upper_level);
  void free_range(Mm& mm, Pte* table, unsigned level, VirtAddr start, VirtAddr end, VirtAddr floor, VirtAddr ceiling);
  SpinLock& pte_lockptr(const Pte* pte) const {
    return *std::launder(reinterpret_cast<SpinLock*>(&pages_.mem().virt_to_page(pte).private_));
  }
  void stored(const Mm& mm, VirtAddr address, Pte old_pte, Pte new_pte);

  PageAllocator& pages_;
  VmStat& vmstat_;
  Mm init_mm_;
  SpinLock pgd_lock_{LockRank::leaf};
  /// The top tables of all user Mms: where a change of the kernel's half would have to go. pgd_lock_
  PageList pgd_list_;
};

/// The PTE for a page with a VMA's rights; writable only by pte_mkwrite. Linux: mk_pte.
[[nodiscard]] Pte mk_pte(Pfn pfn, const VmArea& vma);
/// Writable if the VMA is. Linux: maybe_mkwrite.
[[nodiscard]] inline Pte maybe_mkwrite(Pte pte, const VmArea& vma) {
  return (vma.vm_flags & VM_WRITE) != 0 ? pte_mkwrite(pte) : pte;
}

}  // namespace weir
