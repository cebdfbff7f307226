// src/mm/memory_around.cpp: neighbours that are mapped with the page that was asked for, where a fault is dear
// (Mmu::Caps::fault_around). Linux maps file pages around a fault; anonymous ones it does not need to.
#include <algorithm>

#include "mm/inode.hpp"
#include "mm/memory.hpp"

namespace weir {

// ---- Pages that readahead has brought -------------------------------------------------------------------------------

/// The page that the entry at ctx.address stands for, if it is in the cache; with a reference. Counts no hit.
Page* Memory::cached_at(const FaultContext& ctx, Pte& pte) {
  const Pte* at = tables_.walk(ctx.mm, ctx.address);
  pte = at != nullptr ? Pte{__atomic_load_n(&at->v, __ATOMIC_ACQUIRE)} : Pte{};
  return is_swap_pte(pte) ? cache_.find_get_swap_page(decode_swap_pte(pte)) : nullptr;
}

/// Maps the page for ctx.orig_pte if it can be had without waiting. It stays inactive: nobody has asked for it.
void Memory::map_cached(FaultContext& ctx, Page& page) {
  const SwpEntry entry = decode_swap_pte(ctx.orig_pte);
  if (!filemap_.trylock_page(page)) return;
  if (!PageSwapCache(page) || page.private_ != entry.val || !page.test(PageFlag::uptodate) ||
      page.test(PageFlag::writeback) || page_mapped(page)) {
    filemap_.unlock_page(page);
    return;
  }
  PteLock ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
  if (!ptl || *ptl != ctx.orig_pte) {
    ptl.unlock();
    filemap_.unlock_page(page);
    return;
  }
  ctx.mm.inc_mm_counter(RssKind::anon);
  ctx.mm.dec_mm_counter(RssKind::swapents);
  Pte pte = mk_pte(tables_.pages().mem().pfn(page), ctx.vma);
  if (!caps_.has_write_protect) pte = maybe_mkwrite(pte, ctx.vma);
  PageAllocator::get_page(page);
  page.clear(PageFlag::reclaim);  // PG_readahead: the page that stays behind answers for this one
  rmap_.page_add_anon_rmap(page, ctx.vma, ctx.address, Exclusive::no);
  tables_.set_pte_at(ctx.mm, ctx.address, ptl.get(), pte);
  ptl.unlock();
  swap_.swap_free(entry);
  if (swap_.vm_swap_full() || (ctx.vma.vm_flags & VM_LOCKED) != 0) cache_.try_to_free_swap(page);
  (void)make_known(ctx, pte, page);  // if not, its own fault finds out
  filemap_.unlock_page(page);
}

/// Upwards, then downwards, as long as neighbours are in the cache. The last one stays unmapped: that it is asked for
/// later tells that readahead does well, and the whole row counts as used.
void Memory::swap_around(FaultContext& ctx) {
  const uint64_t reach = uint64_t{caps_.fault_around} << PAGE_SHIFT;
  const VirtAddr lowest = std::max(ctx.vma.vm_start, VirtAddr(ctx.address.v & ~(PMD_SIZE - 1)));
  const VirtAddr end = PageTables::pmd_addr_end(ctx.address, ctx.vma.vm_end);
  for (const bool up : {true, false}) {
    Page* held = nullptr;
    FaultContext last{.vma = ctx.vma, .mm = ctx.mm, .address = ctx.address, .flags = 0};
    for (uint64_t step = PAGE_SIZE; step < reach; step += PAGE_SIZE) {
      if (up ? ctx.address.v + step >= end.v : ctx.address.v < lowest.v + step) break;
      FaultContext at{.vma = ctx.vma,
                      .mm = ctx.mm,
                      .address = VirtAddr(up ? ctx.address.v + step : ctx.address.v - step),
                      .flags = 0};
      Page* page = cached_at(at, at.orig_pte);
      if (page == nullptr) {
        if (pte_present(at.orig_pte)) continue;
        break;
      }
      if (held != nullptr) {
        map_cached(last, *held);
        filemap_.lru().put_page(*held);
      }
      held = page;
      last.address = at.address;
      last.orig_pte = at.orig_pte;
    }
    if (held != nullptr) filemap_.lru().put_page(*held);
  }
}

// ---- Pages of a file ------------------------------------------------------------------------------------------------

/// The file's page for at.address, referenced: mapped read-only if it can be had without waiting and nobody else has it.
bool Memory::map_cached_file_page(FaultContext& at, Page& page) {
  if (!filemap_.trylock_page(page)) return false;
  // A page with a readahead marker is to be asked for.
  bool mapped = Filemap::file_mapping(page) == &at.vma.vm_file->f_inode->i_data && page.test(PageFlag::uptodate) &&
                !page.test(PageFlag::writeback) && !page.test(PageFlag::reclaim) && !page_mapped(page) &&
                at.pgoff < i_size_pages(*at.vma.vm_file->f_inode);
  Pte entry;
  if (mapped) {
    PteLock ptl;
    mapped = set_file_pte(at, page, ptl, entry) == VM_FAULT_OK;
  }
  if (mapped) mapped = make_known(at, entry, page) == VM_FAULT_OK;
  filemap_.unlock_page(page);
  return mapped;
}

/// A file's page was mapped for reading at ctx.address: those behind it too, as far as they are in the cache. Linux:
/// do_fault_around, on both sides.
void Memory::file_around(FaultContext& ctx) {
  if ((ctx.vma.vm_flags & VM_RAND_READ) != 0) return;
  File& file = *ctx.vma.vm_file;
  const VirtAddr end = PageTables::pmd_addr_end(ctx.address, ctx.vma.vm_end);
  for (unsigned made = 1; made < caps_.fault_around; ++made) {
    FaultContext at{.vma = ctx.vma,
                    .mm = ctx.mm,
                    .address = ctx.address + (uint64_t{made} << PAGE_SHIFT),
                    .flags = 0,
                    .pgoff = ctx.pgoff + made};
    if (at.address >= end) return;
    const Pte* pte = tables_.walk(at.mm, at.address);
    if (pte != nullptr && !pte_none(Pte{__atomic_load_n(&pte->v, __ATOMIC_ACQUIRE)})) return;
    Page* page = filemap_.find_get_page(file.f_inode->i_data, at.pgoff);
    if (page == nullptr) return;
    const bool mapped = map_cached_file_page(at, *page);
    filemap_.lru().put_page(*page);
    if (!mapped) return;
    if (file.mmap_miss > 0) --file.mmap_miss;
  }
}

// ---- New pages in a row ---------------------------------------------------------------------------------------------

/// ctx.address was touched first and has its page. If it continues a row of first touches, the next pages are made
/// too: twice as many as the last time. Only from memory that is free now.
void Memory::anonymous_around(FaultContext& ctx) {
  const uint64_t page_nr = ctx.address.v >> PAGE_SHIFT;
  std::atomic<uint64_t>* row = nullptr;
  unsigned wanted = 1;
  for (std::atomic<uint64_t>& r : ctx.mm.touch_rows) {
    const uint64_t v = r.load(std::memory_order_relaxed);
    if (v >> 8 != page_nr) continue;
    row = &r;
    wanted = std::min(static_cast<unsigned>(v & 0xff) * 2, caps_.fault_around);
    break;
  }
  if (row == nullptr)
    row =
        &ctx.mm
             .touch_rows[ctx.mm.next_touch_row.fetch_add(1, std::memory_order_relaxed) % std::size(ctx.mm.touch_rows)];
  const VirtAddr end = PageTables::pmd_addr_end(ctx.address, ctx.vma.vm_end);
  const gfp_t gfp = (GFP_HIGHUSER_MOVABLE & ~__GFP_DIRECT_RECLAIM) | __GFP_NOWARN | __GFP_NORETRY | __GFP_NOMEMALLOC;
  unsigned made = 1;
  for (; made < wanted; ++made) {
    FaultContext at{.vma = ctx.vma, .mm = ctx.mm, .address = ctx.address + (uint64_t{made} << PAGE_SHIFT), .flags = 0};
    if (at.address >= end) break;
    const Pte* pte = tables_.walk(at.mm, at.address);
    if (pte != nullptr && !pte_none(Pte{__atomic_load_n(&pte->v, __ATOMIC_ACQUIRE)})) break;
    Page* page = tables_.pages().alloc_pages(gfp, Order(0));
    if (page == nullptr) break;
    filemap_.__set_page_locked(*page);
    mmu_.clear_user_highpage(*page);
    uint32_t ret = VM_FAULT_OK;
    if (!map_anonymous(at, *page, ret) || ret != VM_FAULT_OK) break;
  }
  row->store((page_nr + made) << 8 | made, std::memory_order_relaxed);
}

}  // namespace weir
