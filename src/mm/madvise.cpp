// src/mm/madvise.cpp: what a program says it will do with its memory. See mmap.hpp
#include "mm/mmap.hpp"

namespace weir {

namespace {

/// What reads the tables only: mmap_sem for reading is enough.
bool reads_only(Advice advice) {
  switch (advice) {
    case Advice::normal:
    case Advice::random:
    case Advice::sequential:
    case Advice::mergeable:
    case Advice::unmergeable: return false;
    default: return true;
  }
}

/// May pages of the VMA be thrown away or sent out? Linux: can_madv_dontneed_vma.
bool can_madv_lru_vma(const VmArea& vma) { return (vma.vm_flags & (VM_LOCKED | VM_IO)) == 0; }

}  // namespace

Result<void> AddressSpaces::madvise(Mm& mm, VirtAddr start, uint64_t length, Advice advice) {
  WEIR_FLOW(start, length);
  if ((start.v & ~PAGE_MASK) != 0 || advice > newest_advice_) return Errno::inval;
  length = page_align_up(length);
  if (start.v + length < start.v) return Errno::inval;
  if (length == 0) return {};
  const VirtAddr end = start + length;
  if (reads_only(advice)) {
    ScopedRead guard(mm.mmap_sem);
    return for_each_part(mm, start, end, Holes::skip, [&](VmArea& vma, VirtAddr from, VirtAddr to) {
      const Result<void> done = madvise_vma(vma, from, to, advice);
      return done ? Result<VmArea*>(&vma) : Result<VmArea*>(done.error());
    });
  }
  ScopedWrite guard(mm.mmap_sem);
  return for_each_part(mm, start, end, Holes::skip, [&](VmArea& vma, VirtAddr from, VirtAddr to) -> Result<VmArea*> {
    uint64_t flags = vma.vm_flags & ~(VM_SEQ_READ | VM_RAND_READ);
    if (advice == Advice::sequential) flags |= VM_SEQ_READ;
    if (advice == Advice::random) flags |= VM_RAND_READ;
    if (advice == Advice::mergeable || advice == Advice::unmergeable) {
      flags = vma.vm_flags;
      WEIR_TRY_VOID(ksm_->ksm_madvise(vma, from, to, advice == Advice::mergeable, flags));
    }
    return change_flags(mm, vma, from, to, flags);
  });
}

Result<void> AddressSpaces::madvise_vma(VmArea& vma, VirtAddr start, VirtAddr end, Advice advice) {
  WEIR_FLOW(vma, start, end);
  // A hint: pages come when they are touched.
  if (advice == Advice::willneed) return {};
  if (!can_madv_lru_vma(vma)) return Errno::inval;
  switch (advice) {
    case Advice::dontneed:
      if ((vma.vm_flags & VM_NONLINEAR) != 0)
        memory_.zap_nonlinear_range(vma, start, end, 0, ~uint64_t{0});
      else
        memory_.zap_page_range(vma, start, end);
      break;
    case Advice::free:
      if (!vma.anonymous()) return Errno::inval;
      // Nobody could tell later whether the page was written to.
      if (!mmu_.caps().has_dirty)
        memory_.zap_page_range(vma, start, end);
      else
        madvise_free_single_vma(vma, start, end);
      break;
    case Advice::cold:
    case Advice::pageout: madvise_cold_or_pageout(vma, start, end, advice); break;
    default: break;
  }
  return {};
}

// PTEs are looked at in runs of at most so many, under one hold of their lock.
namespace {
constexpr unsigned RUN = 32;
}

/// The PTEs of [start, end), all of one table: clean and old, their pages on the way to the inactive file list, their
/// swap slots given up.
void AddressSpaces::madvise_free_pte_range(VmArea& vma, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(start, end);
  Mm& mm = *vma.vm_mm;
  SwapCache& cache = memory_.cache();
  Lru& lru = memory_.filemap().lru();
  for (VirtAddr a = start; a < end;) {
    SwpEntry entries[RUN];
    unsigned nr_entries = 0;
    const VirtAddr stop = end - a > RUN << PAGE_SHIFT ? a + (uint64_t{RUN} << PAGE_SHIFT) : end;
    PteLock ptl = tables_.pte_offset_map_lock(mm, a);
    Pte* ptep = ptl.get();
    for (; a < stop; a = a + PAGE_SIZE, ++ptep) {
      const Pte pte{__atomic_load_n(&ptep->v, __ATOMIC_RELAXED)};
      if (pte_none(pte)) continue;
      if (!pte_present(pte)) {
        // What was swapped out reads as zero from now on.
        entries[nr_entries++] = decode_swap_pte(tables_.ptep_get_and_clear(mm, a, ptep));
        mm.dec_mm_counter(RssKind::swapents);
        continue;
      }
      Page* page = memory_.vm_normal_page(pte);
      if (page == nullptr) continue;
      if (PageSwapCache(*page) || page->test(PageFlag::dirty)) {
        // Others may still need its content; and what a slot keeps is not free yet.
        if (!memory_.filemap().trylock_page(*page)) continue;
        const bool ours = page_mapcount(*page) == 1 && (!PageSwapCache(*page) || cache.try_to_free_swap(*page));
        if (ours) page->clear(PageFlag::dirty);
        memory_.filemap().unlock_page(*page);
        if (!ours) continue;
      }
      if (pte_young(pte) || pte_dirty(pte)) {
        const Pte was = tables_.ptep_get_and_clear(mm, a, ptep);
        tables_.set_pte_at(mm, a, ptep, pte_mkclean(pte_mkold(was)));
      }
      lru.mark_page_lazyfree(*page);
    }
    ptl.unlock();
    for (unsigned i = 0; i < nr_entries; ++i) cache.free_swap_and_cache(entries[i]);
  }
}

void AddressSpaces::madvise_free_single_vma(VmArea& vma, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(vma, start, end);
  Mm& mm = *vma.vm_mm;
  memory_.filemap().lru().lru_add_drain();
  update_hiwater_rss(mm);
  for (VirtAddr a = tables_.next_table(mm, start, end); a < end; a = tables_.next_table(mm, a, end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, end);
    madvise_free_pte_range(vma, a, stop);
    a = stop;
  }
  // A store through an old translation would leave no dirty bit.
  mmu_.flush_range(mm, start, end);
}

/// Pages that this address space alone maps: old, and to the inactive lists, or out at once.
void AddressSpaces::madvise_cold_or_pageout(VmArea& vma, VirtAddr start, VirtAddr end, Advice advice) {
  WEIR_FLOW(vma, start, end);
  Mm& mm = *vma.vm_mm;
  Lru& lru = memory_.filemap().lru();
  const bool has_accessed = mmu_.caps().has_accessed;
  lru.lru_add_drain();
  for (VirtAddr a = tables_.next_table(mm, start, end); a < end; a = tables_.next_table(mm, a, end)) {
    const VirtAddr table_end = PageTables::pmd_addr_end(a, end);
    while (a < table_end) {
      PageList out;
      const VirtAddr stop = table_end - a > RUN << PAGE_SHIFT ? a + (uint64_t{RUN} << PAGE_SHIFT) : table_end;
      {
        PteLock ptl = tables_.pte_offset_map_lock(mm, a);
        for (Pte* ptep = ptl.get(); a < stop; a = a + PAGE_SIZE, ++ptep) {
          Page* page = memory_.vm_normal_page(Pte{__atomic_load_n(&ptep->v, __ATOMIC_RELAXED)});
          if (page == nullptr || page_mapcount(*page) != 1) continue;
          // Where old means absent in hardware, reclaim makes it so when it comes to the page.
          if (has_accessed) (void)tables_.ptep_test_and_clear_young(mm, a, ptep);
          page->clear(PageFlag::referenced);
          if (advice == Advice::cold)
            lru.deactivate_page(*page);
          else if (!page->test(PageFlag::unevictable) && lru.isolate_lru_page(*page))
            out.push_back(*page);
        }
      }
      if (!out.empty()) vmscan_->reclaim_pages(out);
    }
  }
  if (has_accessed) mmu_.flush_range(mm, start, end);
}

}  // namespace weir
