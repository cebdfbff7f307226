// src/mm/pgtable.cpp
#include "mm/pgtable.hpp"

#include <new>

namespace weir {

namespace {

/// An upper entry that points to a table: rights are decided at the PTE.
constexpr Pte table_entry(Pfn pfn) {
  return Pte{(pfn.v << PAGE_SHIFT) | _PAGE_PRESENT | _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED | _PAGE_DIRTY};
}

static_assert(sizeof(SpinLock) <= sizeof(Page::private_) && alignof(SpinLock) <= alignof(uint64_t));

}  // namespace

PageTables::PageTables(PageAllocator& pages, VmStat& vmstat) : pages_(pages), vmstat_(vmstat) {}

// ---- Making tables --------------------------------------------------------------------------------------------------

void PageTables::count_table(Mm& mm, unsigned upper_level, int n) {
  mm.nr_table_pages.fetch_add(n, std::memory_order_relaxed);
  if (upper_level == PMD_LEVEL) mm.nr_ptes.fetch_add(n, std::memory_order_relaxed);
  vmstat_.mod_node_page_state(NodeStat::nr_page_table_pages, n);
}

Result<void> PageTables::pgd_alloc(Mm& mm) {
  WEIR_FLOW(mm);
  WEIR_TRY_VOID(alloc_pgd(mm));
  pgd_list_add(pages_.mem().virt_to_page(mm.pgd));
  return {};
}

void PageTables::pgd_list_add(Page& pgd) {
  WEIR_FLOW(pages_.mem().pfn(pgd));
  ScopedLock guard(pgd_lock_);
  pgd_list_.push_back(pgd);
}

void PageTables::pgd_list_del(Page& pgd) {
  WEIR_FLOW(pages_.mem().pfn(pgd));
  ScopedLock guard(pgd_lock_);
  pgd_list_.erase(PageList::s_iterator_to(pgd));
}

Result<void> PageTables::alloc_pgd(Mm& mm) {
  std::byte* pgd = pages_.__get_free_pages(GFP_KERNEL | __GFP_ZERO, Order(0));
  if (pgd == nullptr) return Errno::nomem;
  pages_.mem().virt_to_page(pgd).set(PageFlag::table);
  count_table(mm, PGD_LEVEL + 1, 1);
  mm.pgd = pgd;
  return {};
}

void PageTables::pgd_free(Mm& mm) {
  WEIR_FLOW(mm);
  if (mm.pgd == nullptr) return;
  pgd_list_del(pages_.mem().virt_to_page(mm.pgd));
  free_table(mm, mm.pgd, PGD_LEVEL + 1);
  mm.pgd = nullptr;
}

std::byte* PageTables::pud_alloc_one() {
  WEIR_FLOW();
  return pages_.get_zeroed_page(GFP_KERNEL);
}

std::byte* PageTables::pmd_alloc_one() {
  WEIR_FLOW();
  return pages_.get_zeroed_page(GFP_KERNEL);
}

std::byte* PageTables::pte_alloc_one() {
  WEIR_FLOW();
  Page* page = pages_.alloc_pages(GFP_KERNEL | __GFP_ZERO, Order(0));
  if (page == nullptr) return nullptr;
  pgtable_page_ctor(*page);
  return pages_.mem().page_address(*page);
}

void PageTables::pgtable_page_ctor(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  ::new (static_cast<void*>(&page.private_)) SpinLock(LockRank::page_table);
}

Result<void> PageTables::hook_in(Mm& mm, Pte* upper, unsigned upper_level, std::byte* table) {
  if (table == nullptr) return Errno::nomem;
  Page& page = pages_.mem().virt_to_page(table);
  page.set(PageFlag::table);
  count_table(mm, upper_level, 1);
  bool lost = false;
  {
    ScopedLock guard(mm.page_table_lock);
    lost = !pte_none(load(upper));
    // The table's zeros, and its lock, are there before anybody can walk to it.
    if (!lost && upper_level == PMD_LEVEL)
      pmd_populate(upper, page);
    else if (!lost)
      __atomic_store_n(&upper->v, table_entry(pages_.mem().pfn(page)).v, __ATOMIC_RELEASE);
  }
  if (lost) free_table(mm, table, upper_level);
  return {};
}

void PageTables::pmd_populate(Pte* pmd, Page& table) {
  WEIR_FLOW(pages_.mem().pfn(table));
  __atomic_store_n(&pmd->v, table_entry(pages_.mem().pfn(table)).v, __ATOMIC_RELEASE);
}

Result<void> PageTables::__pud_alloc(Mm& mm, Pte* pgd, VirtAddr address) {
  WEIR_FLOW(address);
  return hook_in(mm, pgd, PGD_LEVEL, pud_alloc_one());
}

Result<void> PageTables::__pmd_alloc(Mm& mm, Pte* pud, VirtAddr address) {
  WEIR_FLOW(address);
  return hook_in(mm, pud, PUD_LEVEL, pmd_alloc_one());
}

Result<void> PageTables::__pte_alloc(Mm& mm, Pte* pmd, VirtAddr address) {
  WEIR_FLOW(address);
  return hook_in(mm, pmd, PMD_LEVEL, pte_alloc_one());
}

Pte* PageTables::pgd_offset(const Mm& mm, VirtAddr address) {
  WEIR_DEBUG_BUG_ON(mm.pgd == nullptr);
  return reinterpret_cast<Pte*>(mm.pgd) + index_at(address, PGD_LEVEL);
}

Pte* PageTables::make_pud(Mm& mm, Pte* pgd, VirtAddr address) {
  if (pte_none(load(pgd)) && !__pud_alloc(mm, pgd, address)) return nullptr;
  return table_of(load(pgd)) + index_at(address, PUD_LEVEL);
}

Pte* PageTables::make_pmd(Mm& mm, Pte* pud, VirtAddr address) {
  if (pte_none(load(pud)) && !__pmd_alloc(mm, pud, address)) return nullptr;
  return table_of(load(pud)) + index_at(address, PMD_LEVEL);
}

Result<void> PageTables::make_pte_table(Mm& mm, Pte* pmd, VirtAddr address) {
  if (pte_none(load(pmd))) WEIR_TRY_VOID(__pte_alloc(mm, pmd, address));
  return {};
}

Result<void> PageTables::pte_alloc(Mm& mm, VirtAddr address) {
  Pte* pud = make_pud(mm, pgd_offset(mm, address), address);
  Pte* pmd = pud != nullptr ? make_pmd(mm, pud, address) : nullptr;
  if (pmd == nullptr) return Errno::nomem;
  return make_pte_table(mm, pmd, address);
}

// ---- Walking --------------------------------------------------------------------------------------------------------

Pte* PageTables::entry_at(const Mm& mm, VirtAddr address, unsigned level) const {
  if (mm.pgd == nullptr) return nullptr;
  Pte* table = reinterpret_cast<Pte*>(mm.pgd);
#pragma GCC unroll 3
  for (unsigned at = PGD_LEVEL; at > level; --at) {
    const Pte entry = load(table + index_at(address, at));
    if (pte_none(entry)) return nullptr;
    table = table_of(entry);
  }
  return table + index_at(address, level);
}

Pte* PageTables::pte_offset(const Mm& mm, VirtAddr address) const { return entry_at(mm, address, PTE_LEVEL); }

VirtAddr PageTables::next_table(const Mm& mm, VirtAddr start, VirtAddr end) const {
  VirtAddr at = start;
  while (at < end) {
    if (mm.pgd == nullptr) return end;
    const Pte* table = reinterpret_cast<const Pte*>(mm.pgd);
    unsigned level = PGD_LEVEL;
    for (; level > PTE_LEVEL; --level) {
      const Pte entry = load(table + index_at(at, level));
      if (pte_none(entry)) break;
      table = table_of(entry);
    }
    if (level == PTE_LEVEL) return at;
    // Nothing below this entry: on to where the next one begins.
    const uint64_t span = uint64_t{1} << level_shift(level);
    const uint64_t next = (at.v & ~(span - 1)) + span;
    if (next < at.v) return end;  // the top of the address space
    at = VirtAddr(next);
  }
  return end;
}

PteLock PageTables::pte_offset_map_lock(Mm& mm, VirtAddr address) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  Pte* pte = pte_offset(mm, address);
  if (pte == nullptr) return {};
  SpinLock& ptl = pte_lockptr(pte);
  ptl.lock();
  return PteLock(pte, &ptl);
}

PteLock PageTables::pte_alloc_map_lock(Mm& mm, VirtAddr address) {
  if (!pte_alloc(mm, address)) return {};
  return pte_offset_map_lock(mm, address);
}

// ---- Freeing tables -------------------------------------------------------------------------------------------------

void PageTables::free_table(Mm& mm, std::byte* table, unsigned upper_level) {
  Page& page = pages_.mem().virt_to_page(table);
  page.private_ = 0;
  page.clear(PageFlag::table);
  count_table(mm, upper_level, -1);
  pages_.__free_pages(page, Order(0));
}

/// Below `table`, whose entries stand on `level`: bottom up, so that a table is empty when it is freed.
void PageTables::free_range(Mm& mm, Pte* table, unsigned level, VirtAddr start, VirtAddr end, VirtAddr floor,
                            VirtAddr ceiling) {
  const uint64_t span = uint64_t{1} << level_shift(level);
  for (VirtAddr at = start; at < end;) {
    const VirtAddr first{at.v & ~(span - 1)};
    const VirtAddr behind = first + span;
    Pte* upper = table + index_at(at, level);
    if (const Pte entry = load(upper); !pte_none(entry)) {
      Pte* below = table_of(entry);
      if (level > PMD_LEVEL) free_range(mm, below, level - 1, at, behind < end ? behind : end, floor, ceiling);
      if (first >= floor && behind <= ceiling) {
        __atomic_store_n(&upper->v, 0, __ATOMIC_RELEASE);
        free_table(mm, reinterpret_cast<std::byte*>(below), level);
      }
    }
    at = behind;
  }
}

void PageTables::free_pgtables(Mm& mm, VirtAddr start, VirtAddr end, VirtAddr floor, VirtAddr ceiling) {
  WEIR_FLOW(start, end);
  if (mm.pgd == nullptr) return;
  free_range(mm, reinterpret_cast<Pte*>(mm.pgd), PGD_LEVEL, start, end, floor, ceiling);
}

// ---- Accessors ------------------------------------------------------------------------------------------------------

void PageTables::stored(const Mm& mm, VirtAddr address, Pte old_pte, Pte new_pte) {
  WEIR_STATE(pte, pte_subject(mm, address), old_pte, new_pte);
  if (World* w = engine_thread().world) w->preempt_point();
}

void PageTables::set_pte_at(Mm& mm, VirtAddr address, Pte* ptep, Pte pte) {
  WEIR_FLOW(address, pte);
  stored(mm, address, Pte{__atomic_exchange_n(&ptep->v, pte.v, __ATOMIC_ACQ_REL)}, pte);
}

Pte PageTables::ptep_get_and_clear(Mm& mm, VirtAddr address, Pte* ptep) {
  WEIR_FLOW(address);
  const Pte old{__atomic_exchange_n(&ptep->v, 0, __ATOMIC_ACQ_REL)};
  stored(mm, address, old, Pte{});
  return old;
}

Pte PageTables::ptep_clear_flush(Mm& mm, VirtAddr address, Pte* ptep) {
  WEIR_FLOW(address);
  return ptep_get_and_clear(mm, address, ptep);
}

void PageTables::ptep_set_wrprotect(Mm& mm, VirtAddr address, Pte* ptep) {
  WEIR_FLOW(address);
  const Pte old{__atomic_fetch_and(&ptep->v, ~_PAGE_RW, __ATOMIC_ACQ_REL)};
  stored(mm, address, old, pte_wrprotect(old));
}

bool PageTables::ptep_test_and_clear_young(Mm& mm, VirtAddr address, Pte* ptep) {
  WEIR_FLOW(address);
  const Pte old{__atomic_fetch_and(&ptep->v, ~_PAGE_ACCESSED, __ATOMIC_ACQ_REL)};
  if (!pte_young(old)) return false;
  stored(mm, address, old, pte_mkold(old));
  return true;
}

bool PageTables::ptep_set_access_flags(Mm& mm, VirtAddr address, Pte* ptep, Pte entry) {
  WEIR_FLOW(address, entry);
  const uint64_t bits = entry.v & (_PAGE_ACCESSED | _PAGE_DIRTY | _PAGE_SOFT_DIRTY | _PAGE_RW);
  const uint64_t wanted = pte_dirty(entry) ? bits : bits & _PAGE_ACCESSED;
  const Pte old{__atomic_fetch_or(&ptep->v, wanted, __ATOMIC_ACQ_REL)};
  if ((old.v & wanted) == wanted) return false;
  stored(mm, address, old, Pte{old.v | wanted});
  return true;
}

Pte mk_pte(Pfn pfn, const VmArea& vma) {
  WEIR_FLOW(pfn, vma);
  const Pte pte = pfn_pte(pfn);
  return (vma.vm_flags & VM_ACCESS_FLAGS) != 0 ? pte : pte_mkinaccessible(pte);
}

}  // namespace weir
