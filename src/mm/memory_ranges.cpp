// src/mm/memory_ranges.cpp: whole ranges of page tables: zapped, copied by fork, moved by mremap, restricted by
// mprotect. See memory.hpp. Linux: mm/memory.c, mm/mremap.c (move_page_tables), mm/mprotect.c (change_protection).
#include <algorithm>

#include "mm/memory.hpp"

namespace weir {

// ---- Zapping --------------------------------------------------------------------------------------------------------

/// What hardware has of the range goes with it, but a file's pages stay in the cache.
void Memory::keep_file_pages(MmuGather& gather) {
  FlushBatch batch;
  for (unsigned i = 0; i < gather.nr; ++i) {
    const MmuGather::Gone& gone = gather.pages[i];
    if (PageAnon(*gone.page)) continue;
    if (batch.full()) mmu_.keep_batch(batch);
    batch.add(*gather.mm, gone.address, gone.page);
  }
  if (batch.count > 0) mmu_.keep_batch(batch);
}

/// What was gathered goes: first from hardware, then for good.
void Memory::tlb_flush_mmu(MmuGather& gather) {
  if (gather.start < gather.end) {
    WEIR_FLOW(gather.start, gather.end);
    if (!caps_.has_alias) keep_file_pages(gather);
    mmu_.flush_range(*gather.mm, gather.start, gather.end);
  }
  for (unsigned i = 0; i < gather.nr; ++i) {
    const MmuGather::Gone& gone = gather.pages[i];
    if (PageAnon(*gone.page)) {
      cache_.free_page_and_swap_cache(*gone.page);
      continue;
    }
    if (gone.dirty) rmap_.set_page_dirty(*gone.page);
    if (gone.accessed) filemap_.lru().mark_page_accessed(*gone.page);
    filemap_.lru().put_page(*gone.page);
  }
  for (unsigned i = 0; i < gather.nr_entries; ++i) cache_.free_swap_and_cache(gather.entries[i]);
  gather.nr = gather.nr_entries = 0;
  gather.start = VirtAddr(~uint64_t{0});
  gather.end = VirtAddr(0);
}

/// PTE's lock held; the gather has room.
void Memory::zap_pte(MmuGather& gather, VmArea& vma, VirtAddr address, Pte* pte, EvenCows even_cows) {
  const Pte now{__atomic_load_n(&pte->v, __ATOMIC_RELAXED)};
  if (pte_none(now)) return;
  if (even_cows == EvenCows::no) {
    const Page* page = vm_normal_page(now);
    if (page == nullptr || PageAnon(*page)) return;
  }
  Mm& mm = *vma.vm_mm;
  const Pte was = tables_.ptep_get_and_clear(mm, address, pte);
  // Old or young: where hardware does not have an old page, the architecture has its bytes, and gives them up by
  // address. Behind a swap entry there may be a page that hardware could not let go of (Mmu::captured).
  if (pte_present(was) || !caps_.has_accessed) {
    if (address < gather.start) gather.start = address;
    if (address + PAGE_SIZE > gather.end) gather.end = address + PAGE_SIZE;
  }
  if (is_file_pte(was)) return;
  if (!pte_present(was)) {
    mm.dec_mm_counter(RssKind::swapents);
    gather.entries[gather.nr_entries++] = decode_swap_pte(was);
    return;
  }
  Page* page = vm_normal_page(was);
  if (page == nullptr) return;
  const bool anon = PageAnon(*page);
  mm.dec_mm_counter(mm_counter(*page));
  rmap_.page_remove_rmap(*page);
  gather.pages[gather.nr++] = {
      .page = page,
      .address = address,
      .dirty = !anon && pte_dirty(was),
      .accessed = !anon && pte_young(was) && (vma.vm_flags & VM_SEQ_READ) == 0,
  };
}

void Memory::zap_pte_range(MmuGather& gather, VmArea& vma, VirtAddr start, VirtAddr end, EvenCows even_cows) {
  WEIR_FLOW(start, end);
  Mm& mm = *vma.vm_mm;
  for (VirtAddr a = tables_.next_table(mm, start, end); a < end; a = tables_.next_table(mm, a, end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, end);
    while (a < stop) {
      {
        PteLock first = tables_.pte_offset_map_lock(mm, a);
        for (Pte* pte = first.get(); a < stop && !gather.full(); a = a + PAGE_SIZE, ++pte)
          zap_pte(gather, vma, a, pte, even_cows);
      }
      if (gather.full()) tlb_flush_mmu(gather);
    }
    if (World* w = engine_thread().world) w->cond_resched();
  }
}

void Memory::zap_page_range(VmArea& vma, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(start, end);
  update_hiwater_rss(*vma.vm_mm);
  ChangingRange changing(*vma.vm_mm, start, end);
  MmuGather gather(*vma.vm_mm);
  zap_pte_range(gather, vma, start, end);
  tlb_flush_mmu(gather);
}

void Memory::unmap_mapping_range(AddressSpace& mapping, uint64_t holebegin, uint64_t holelen, EvenCows even_cows) {
  WEIR_FLOW(holebegin, holelen);
  const uint64_t first = holebegin >> PAGE_SHIFT;
  const uint64_t last = holelen == 0 ? ~uint64_t{0} : (holebegin + holelen - 1) >> PAGE_SHIFT;
  // Held for reading: no mapping leaves, and none moves.
  ScopedRead guard(mapping.i_mmap_rwsem);
  for (VmArea* vma = mapping.i_mmap.iter_first(first, last); vma != nullptr;
       vma = mapping.i_mmap.iter_next(vma, first, last)) {
    const uint64_t from = std::max(first, vma->vm_pgoff);
    const uint64_t to = std::min(last, vma->vm_pgoff + vma->pages() - 1);
    const VirtAddr start = vma->vm_start + ((from - vma->vm_pgoff) << PAGE_SHIFT);
    const VirtAddr end = vma->vm_start + ((to - vma->vm_pgoff + 1) << PAGE_SHIFT);
    update_hiwater_rss(*vma->vm_mm);
    ChangingRange changing(*vma->vm_mm, start, end);
    MmuGather gather(*vma->vm_mm);
    zap_pte_range(gather, *vma, start, end, even_cows);
    tlb_flush_mmu(gather);
  }
  for (VmArea& vma : mapping.i_mmap_nonlinear) zap_nonlinear_range(vma, vma.vm_start, vma.vm_end, first, last);
}

void Memory::unmap_page_range(VmArea& vma, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(start, end);
  MmuGather gather(*vma.vm_mm);
  zap_pte_range(gather, vma, start, end);
  tlb_flush_mmu(gather);
}

void Memory::unmap_vmas(Mm& mm) {
  WEIR_FLOW(mm);
  update_hiwater_rss(mm);
  MmuGather gather(mm);
  for (VmArea& vma : mm.mmap) zap_pte_range(gather, vma, vma.vm_start, vma.vm_end);
  tlb_flush_mmu(gather);
}

void Memory::unmap_vmas(Mm& mm, VmaList& vmas) {
  WEIR_FLOW(mm);
  update_hiwater_rss(mm);
  if (vmas.empty()) return;
  ChangingRange changing(mm, vmas.front().vm_start, vmas.back().vm_end);
  MmuGather gather(mm);
  for (VmArea& vma : vmas) zap_pte_range(gather, vma, vma.vm_start, vma.vm_end);
  tlb_flush_mmu(gather);
}

// ---- Copying (fork) -------------------------------------------------------------------------------------------------

/// Both PTEs' locks held; src's is not none, dst's is.
Result<void> Memory::copy_one_pte(VmArea& dst, VmArea& src, VirtAddr address, Pte* dst_pte, Pte* src_pte) {
  Mm& child = *dst.vm_mm;
  Pte pte{__atomic_load_n(&src_pte->v, __ATOMIC_RELAXED)};
  if (is_file_pte(pte)) {
    tables_.set_pte_at(child, address, dst_pte, pte);
    return {};
  }
  if (!pte_present(pte)) {
    WEIR_TRY_VOID(swap_.swap_duplicate(decode_swap_pte(pte)));
    if (!child.on_mmlist.load(std::memory_order_acquire)) swap_.mmlist_add(child);
    child.inc_mm_counter(RssKind::swapents);
    tables_.set_pte_at(child, address, dst_pte, pte);
    return {};
  }
  const bool is_cow = (src.vm_flags & (VM_SHARED | VM_MAYWRITE)) == VM_MAYWRITE;
  if (is_cow && pte_write(pte)) {
    tables_.ptep_set_wrprotect(*src.vm_mm, address, src_pte);
    pte = pte_wrprotect(pte);
  }
  if ((src.vm_flags & VM_SHARED) != 0) pte = pte_mkclean(pte);  // the parent's PTE keeps the dirty bit
  pte = pte_mkold(pte);
  if (Page* page = vm_normal_page(pte)) {
    PageAllocator::get_page(*page);
    rmap_.page_dup_rmap(*page);
    child.inc_mm_counter(mm_counter(*page));
  }
  tables_.set_pte_at(child, address, dst_pte, pte);
  return {};
}

Result<void> Memory::copy_page_range(VmArea& dst, VmArea& src) {
  WEIR_FLOW(src.vm_start, src.vm_end);
  // A file's pages come back by faults; what only this address space has or knows, and a device's frames, do not.
  if (src.anon_vma == nullptr && (src.vm_flags & (VM_PFNMAP | VM_NONLINEAR)) == 0) return {};
  Mm& parent = *src.vm_mm;
  Mm& child = *dst.vm_mm;
  const VirtAddr end = src.vm_end;
  ChangingRange changing(parent, src.vm_start, end);
  Result<void> done;
  for (VirtAddr a = tables_.next_table(parent, src.vm_start, end); a < end && done;
       a = tables_.next_table(parent, a, end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, end);
    PteLock to = tables_.pte_alloc_map_lock(child, a);
    if (!to) {
      done = Errno::nomem;
      break;
    }
    PteLock from = tables_.pte_offset_map_lock(parent, a);
    Pte* to_pte = to.get();
    for (Pte* pte = from.get(); a < stop && done; a = a + PAGE_SIZE, ++pte, ++to_pte)
      if (!pte_none(Pte{__atomic_load_n(&pte->v, __ATOMIC_RELAXED)})) done = copy_one_pte(dst, src, a, to_pte, pte);
    if (done.error() != Errno::nomem) continue;
    // A slot's count needs a page, and under the PTE locks there was none. The address is the one that failed.
    a = VirtAddr(a.v - PAGE_SIZE);
    const Pte left{__atomic_load_n(&tables_.walk(parent, a)->v, __ATOMIC_RELAXED)};
    from.unlock();
    to.unlock();
    if (is_swap_pte(left)) done = swap_.add_swap_count_continuation(decode_swap_pte(left), GFP_KERNEL);
  }
  // The parent's other threads may still write what is shared now: until here, and the child has not begun to run.
  mmu_.flush_range(parent, src.vm_start, end);
  return done;
}

// ---- Moving (mremap) ------------------------------------------------------------------------------------------------

/// Only where hardware has mappings of its own: takes [start, end) out of it. PTEs are old afterwards, and the pages'
/// bytes are where they can be mapped in again at any address. Behind an old PTE or a swap entry there may be a page
/// too that hardware could not let go of at the time (Mmu::captured). False: there is one that it still holds. mmap_sem
/// for writing: nobody faults meanwhile.
bool Memory::make_absent(Mm& mm, VirtAddr start, VirtAddr end) {
  for (VirtAddr a = tables_.next_table(mm, start, end); a < end; a = tables_.next_table(mm, a, end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, end);
    for (; a < stop; a = a + PAGE_SIZE) {
      Page* page = nullptr;
      SwpEntry entry{};
      {
        PteLock pte = tables_.pte_offset_map_lock(mm, a);
        if (is_swap_pte(*pte)) {
          entry = decode_swap_pte(*pte);
        } else {
          page = vm_normal_page(*pte);
          if (page == nullptr) continue;
          PageAllocator::get_page(*page);
        }
      }
      if (entry) page = cache_.find_get_swap_page(entry);
      if (page == nullptr) continue;
      filemap_.lock_page(*page);
      FlushBatch batch;
      {
        PteLock pte = tables_.pte_offset_map_lock(mm, a);
        const bool here = entry ? is_swap_pte(*pte) && decode_swap_pte(*pte) == entry && PageSwapCache(*page) &&
                                      page->private_ == entry.val
                                : vm_normal_page(*pte) == page;
        if (here && !entry) (void)tables_.ptep_test_and_clear_young(mm, a, pte.get());
        if (here) batch.add(mm, a, page);
      }
      const bool here = batch.count > 0;
      if (here) mmu_.flush_batch(batch);
      const bool gone = !here || mmu_.captured(*page);
      unlock_put(*page);
      if (!gone) return false;
    }
  }
  return true;
}

/// Both tables are there.
void Memory::move_ptes(VmArea& from, VirtAddr old_addr, VirtAddr old_end, VirtAddr new_addr) {
  Mm& mm = *from.vm_mm;
  PteLock old_pte = tables_.pte_offset_map_lock(mm, old_addr);
  Pte* to = tables_.pte_offset(mm, new_addr);
  PteLock new_pte;  // one lock if both lie in one table
  if (tables_.pte_table(mm, old_addr) != tables_.pte_table(mm, new_addr))
    new_pte = tables_.pte_offset_map_lock(mm, new_addr);
  for (Pte* pte = old_pte.get(); old_addr < old_end;
       old_addr = old_addr + PAGE_SIZE, new_addr = new_addr + PAGE_SIZE, ++pte, ++to) {
    if (pte_none(Pte{__atomic_load_n(&pte->v, __ATOMIC_RELAXED)})) continue;
    const Pte moved = tables_.ptep_get_and_clear(mm, old_addr, pte);
    tables_.set_pte_at(mm, new_addr, to, era_->moved(moved));
  }
}

Result<void> Memory::move_page_tables(VmArea& from, VirtAddr old_addr, VmArea& to, VirtAddr new_addr, uint64_t length) {
  WEIR_FLOW(old_addr, new_addr, length);
  Mm& mm = *from.vm_mm;
  (void)to;
  const VirtAddr old_end = old_addr + length;
  // All tables first: then nothing can fail half way.
  for (VirtAddr a = tables_.next_table(mm, old_addr, old_end); a < old_end; a = tables_.next_table(mm, a, old_end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, old_end);
    WEIR_TRY_VOID(tables_.pte_alloc(mm, new_addr + (a - old_addr)));
    WEIR_TRY_VOID(tables_.pte_alloc(mm, new_addr + (stop - PAGE_SIZE - old_addr)));
    a = stop;
  }
  if (!caps_.has_accessed && !make_absent(mm, old_addr, old_end)) return Errno::nomem;

  ChangingRange changing(mm, old_addr, old_end);
  // A walk that has passed the new place must not find the old one empty: it would miss the page.
  rmap_.take_rmap_locks(from);
  for (VirtAddr a = tables_.next_table(mm, old_addr, old_end); a < old_end; a = tables_.next_table(mm, a, old_end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, old_end);
    while (a < stop) {
      // As far as both the old and the new table go.
      const VirtAddr there = new_addr + (a - old_addr);
      const VirtAddr there_stop = PageTables::pmd_addr_end(there, new_addr + (stop - old_addr));
      const VirtAddr here_stop = a + (there_stop - there);
      move_ptes(from, a, here_stop, there);
      a = here_stop;
    }
  }
  if (caps_.has_accessed) mmu_.flush_range(mm, old_addr, old_end);
  rmap_.drop_rmap_locks(from);
  return {};
}

// ---- Restricting (mprotect) -----------------------------------------------------------------------------------------

void Memory::change_protection(VmArea& vma, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(start, end);
  const bool accessible = (vma.vm_flags & VM_ACCESS_FLAGS) != 0;
  const bool writable = (vma.vm_flags & VM_WRITE) != 0;
  ChangingRange changing(*vma.vm_mm, start, end);
  tables_.for_each_pte(*vma.vm_mm, start, end, [&](VirtAddr address, Pte* ptep) {
    if (!pte_present(Pte{__atomic_load_n(&ptep->v, __ATOMIC_RELAXED)})) return;
    tables_.ptep_modify(*vma.vm_mm, address, ptep, [&](Pte pte) {
      pte = accessible ? pte_mkuser(pte) : pte_mkinaccessible(pte);
      // What may be written again is found out by the next write fault; without write protection there is none.
      if (!writable) return pte_wrprotect(pte);
      return caps_.has_write_protect ? pte : pte_mkwrite(pte);
    });
  });
  // Without write protection a PTE's rights are the mapping's, which the host enforces.
  if (caps_.has_write_protect) mmu_.flush_range(*vma.vm_mm, start, end);
}

}  // namespace weir
