// src/mm/memory.cpp: faults. See memory.hpp; copying and zapping: memory_ranges.cpp
#include "mm/memory.hpp"

#include "mm/inode.hpp"

namespace weir {

namespace {

/// Between map_file_page and its callers only: the page is in the address space now.
constexpr uint32_t MAPPED = 1u << 31;
constexpr uint32_t VM_FAULT_ERROR = VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV | VM_FAULT_KILLED;

/// Could two neighbours' pages hang on one anon_vma? As if they were one VMA, but for rights, which mprotect may make
/// equal.
bool anon_vma_compatible(const VmArea& below, const VmArea& above) {
  return below.vm_end == above.vm_start && below.vm_file == above.vm_file && below.vm_ops == above.vm_ops &&
         ((below.vm_flags ^ above.vm_flags) & ~VM_ACCESS_FLAGS) == 0 &&
         above.vm_pgoff == below.vm_pgoff + below.pages();
}

}  // namespace

Memory::Memory(PageTables& tables, Vmas& vmas, Rmap& rmap, SwapCache& cache, SwapFiles& swap, Filemap& filemap,
               VmStat& vmstat, Mmu& mmu, KernelEra kernel)
    : tables_(tables),
      vmas_(vmas),
      rmap_(rmap),
      cache_(cache),
      swap_(swap),
      filemap_(filemap),
      vmstat_(vmstat),
      mmu_(mmu) {
  switch (kernel) {
    case KernelEra::linux_2_6_20: era_ = memory_2_6_20(era_place_, *this); break;
    case KernelEra::linux_3: era_ = memory_3(era_place_, *this); break;
    case KernelEra::linux_4_14: era_ = memory_4_14(era_place_, *this); break;
  }
}

Result<void> Memory::init() {
  caps_ = mmu_.caps();
  if (!caps_.has_zero_page) return {};
  zero_page_ = tables_.pages().alloc_page(GFP_HIGHUSER);
  if (zero_page_ == nullptr) return Errno::nomem;
  mmu_.clear_user_highpage(*zero_page_);
  zero_page_->set(PageFlag::uptodate);
  return {};
}

// ---- What faults share ----------------------------------------------------------------------------------------------

VmArea* Memory::mergeable_neighbour(VmArea& vma) const {
  Mm& mm = *vma.vm_mm;
  if (VmArea* above = vmas_.next(mm, vma);
      above != nullptr && anon_vma_compatible(vma, *above) && above->anon_vma != nullptr)
    return above;
  if (VmArea* below = vmas_.prev(mm, vma);
      below != nullptr && anon_vma_compatible(*below, vma) && below->anon_vma != nullptr)
    return below;
  return nullptr;
}

Result<void> Memory::anon_vma_prepare(VmArea& vma) {
  if (vma.anon_vma != nullptr) return {};
  return rmap_.anon_vma_prepare(vma, mergeable_neighbour(vma));
}

/// A user frame, locked until hardware has it. Null: no memory.
Page* Memory::alloc_locked_page() {
  Page* page = tables_.pages().alloc_pages(GFP_HIGHUSER_MOVABLE, Order(0));
  if (page != nullptr) filemap_.__set_page_locked(*page);
  return page;
}

Page* MemoryEra::prepare_zeroed(Page* page) {
  if (page == nullptr) return nullptr;
  memory_.filemap_.__set_page_locked(*page);
  memory_.mmu_.clear_user_highpage(*page);
  return page;
}

/// The fault is done with the page: its lock and its own reference go. (A mapping has a reference of its own: another
/// thread's DONTNEED may take the page away as soon as the PTE's lock is dropped.)
void Memory::unlock_put(Page& page) {
  filemap_.unlock_page(page);
  filemap_.lru().put_page(page);
}

/// The PTE is set and its lock dropped; the page is locked. If hardware cannot have it now, the PTE is old again.
uint32_t Memory::make_known(FaultContext& ctx, Pte pte, Page& page) {
  // Where a page has one place only, it is not both written out and mapped.
  if (!caps_.has_alias && !PageAnon(page)) filemap_.wait_on_page_writeback(page);
  const Result<void> known = mmu_.update_mmu_cache(ctx.mm, ctx.address, pte, &page);
  if (known) return VM_FAULT_OK;
  if (!caps_.has_accessed) {
    PteLock ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
    if (ptl && pte_present(*ptl) && pte_pfn(*ptl) == pte_pfn(pte))
      tables_.ptep_test_and_clear_young(ctx.mm, ctx.address, ptl.get());
  }
  // EAGAIN: the address space is being changed. The access is repeated and faults again.
  return known.error() == Errno::nomem ? VM_FAULT_OOM : VM_FAULT_NOPAGE;
}

/// False: mmap_sem was dropped and the page was waited for; the fault begins anew.
bool Memory::lock_page_or_retry(Page& page, Mm& mm, uint32_t flags) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  if (filemap_.trylock_page(page)) return true;
  if ((flags & FAULT_FLAG_ALLOW_RETRY) != 0) {
    mm.mmap_sem.up_read();
    filemap_.wait_on_page_locked(page);
    return false;
  }
  filemap_.lock_page(page);
  return true;
}

/// A page, referenced: locked; and a file's is not being written, where it has one place only. False: mmap_sem and the
/// reference were dropped when that had been waited for; the fault begins anew.
bool Memory::lock_still_page(Page& page, Mm& mm, uint32_t flags) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  if (caps_.has_alias || PageAnon(page) || (flags & FAULT_FLAG_ALLOW_RETRY) == 0) {
    filemap_.lock_page(page);
    return true;
  }
  if (filemap_.trylock_page(page)) {
    if (!page.test(PageFlag::writeback)) return true;
    filemap_.unlock_page(page);
  }
  wait_for_its_disk(page, mm);
  return false;
}

/// Drops mmap_sem and the reference: others may change the address space while a disk takes its time.
void Memory::wait_for_its_disk(Page& page, Mm& mm) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  mm.mmap_sem.up_read();
  filemap_.wait_on_page_locked(page);
  filemap_.wait_on_page_writeback(page);
  filemap_.lru().put_page(page);
}

// ---- Dispatch -------------------------------------------------------------------------------------------------------

uint32_t Memory::handle_mm_fault(VmArea& vma, VirtAddr address, uint32_t flags) {
  WEIR_FLOW(address, flags);
  vmstat_.count_vm_event(VmEvent::pgfault);
  FaultContext ctx{.vma = vma,
                   .mm = *vma.vm_mm,
                   .address = address.page(),
                   .flags = flags,
                   .pgoff = linear_page_index(vma, address.page())};
  WEIR_RETURN(era_->dispatch(ctx));
}

uint32_t Memory::handle_pte_fault(FaultContext& ctx) {
  // Read without the lock: whoever acts on it looks again under the lock.
  if (const Pte* pte = tables_.walk(ctx.mm, ctx.address))
    ctx.orig_pte = Pte{__atomic_load_n(&pte->v, __ATOMIC_ACQUIRE)};
  WEIR_FLOW(ctx.address, ctx.orig_pte);
  if (pte_none(ctx.orig_pte)) WEIR_RETURN(ctx.vma.anonymous() ? do_anonymous_page(ctx) : era_->file_fault(ctx));
  if (!pte_present(ctx.orig_pte))
    WEIR_RETURN(era_->pte_file(ctx.orig_pte) ? era_->nonlinear_fault(ctx) : do_swap_page(ctx));
  PteLock ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
  if (*ptl != ctx.orig_pte) WEIR_RETURN(VM_FAULT_OK);
  if (ctx.write() && pte_user(ctx.orig_pte) && !pte_write(ctx.orig_pte)) WEIR_RETURN(do_wp_page(ctx, std::move(ptl)));
  WEIR_RETURN(present_fault(ctx, std::move(ptl)));
}

/// The PTE allows the access and hardware faulted nevertheless: the page is old where hardware knows no old pages, or
/// hardware was not told yet, or (without the user right) the PTE is a copy in transit.
uint32_t Memory::present_fault(FaultContext& ctx, PteLock ptl) {
  Page* page = vm_normal_page(ctx.orig_pte);
  if (page == nullptr) {  // the zero page, a device's: known to hardware as soon as it is in the table
    ptl.unlock();
    return VM_FAULT_OK;
  }
  PageAllocator::get_page(*page);
  ptl.unlock();

  // Whoever changes what hardware knows of the page has its lock.
  if (!lock_still_page(*page, ctx.mm, ctx.flags)) return VM_FAULT_RETRY;
  uint32_t ret = VM_FAULT_OK;
  ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
  const Pte now = *ptl;
  const bool same = pte_present(now) && pte_pfn(now) == pte_pfn(ctx.orig_pte) && pte_user(now);
  if (same && (pte_write(now) || !ctx.write())) {
    const Pte entry = pte_mkyoung(ctx.write() ? pte_mkdirty(now) : now);
    tables_.ptep_set_access_flags(ctx.mm, ctx.address, ptl.get(), entry);
    ptl.unlock();
    ret = make_known(ctx, entry, *page);
    if (!caps_.has_accessed && !pte_young(now)) vmstat_.count_vm_event(VmEvent::access_flag_fault);
  }
  ptl.unlock();
  unlock_put(*page);
  return ret;
}

// ---- Anonymous ------------------------------------------------------------------------------------------------------

uint32_t Memory::do_anonymous_page(FaultContext& ctx) {
  WEIR_FLOW(ctx.address, ctx.flags);
  WEIR_STATE(fault_anonymous, ctx.address, 0, ctx.flags);
  VmArea& vma = ctx.vma;
  // Shared memory without an object behind it does not exist: it is a file of shmem's.
  if ((vma.vm_flags & VM_SHARED) != 0) WEIR_RETURN(VM_FAULT_SIGBUS);
  if (!tables_.pte_alloc(ctx.mm, ctx.address)) WEIR_RETURN(VM_FAULT_OOM);

  if (!ctx.write() && caps_.has_zero_page) {
    const Pte entry = pte_mkspecial(mk_pte(tables_.pages().mem().pfn(zero_page_), vma));
    PteLock ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
    if (!pte_none(*ptl)) WEIR_RETURN(VM_FAULT_OK);
    tables_.set_pte_at(ctx.mm, ctx.address, ptl.get(), entry);
    ptl.unlock();
    vmstat_.count_vm_event(VmEvent::zero_page_map);
    WEIR_RETURN(make_known(ctx, entry, *zero_page_));
  }

  if (!anon_vma_prepare(vma)) WEIR_RETURN(VM_FAULT_OOM);
  Page* page = era_->zeroed_page(ctx);
  if (page == nullptr) WEIR_RETURN(VM_FAULT_OOM);
  uint32_t ret = VM_FAULT_OK;
  if (map_anonymous(ctx, *page, ret) && ret == VM_FAULT_OK && caps_.fault_around > 1) anonymous_around(ctx);
  WEIR_RETURN(ret);
}

/// A new frame, locked and zeroed, becomes a page at ctx.address. False: another thread was faster, and the frame is
/// freed.
bool Memory::map_anonymous(FaultContext& ctx, Page& page, uint32_t& ret) {
  VmArea& vma = ctx.vma;
  page.set(PageFlag::uptodate);
  Pte entry = mk_pte(tables_.pages().mem().pfn(page), vma);
  if ((vma.vm_flags & VM_WRITE) != 0) entry = pte_mkwrite(pte_mkdirty(entry));
  {
    PteLock ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
    if (!pte_none(*ptl)) {
      ptl.unlock();
      unlock_put(page);
      return false;
    }
    PageAllocator::get_page(page);
    ctx.mm.inc_mm_counter(RssKind::anon);
    rmap_.page_add_new_anon_rmap(page, vma, ctx.address);
    filemap_.lru().add_new_user_page(page, vma);
    tables_.set_pte_at(ctx.mm, ctx.address, ptl.get(), entry);
  }
  ret = make_known(ctx, entry, page);
  unlock_put(page);
  return true;
}

// ---- Files ----------------------------------------------------------------------------------------------------------

uint32_t Memory::file_fault(FaultContext& ctx) {
  WEIR_STATE(fault_file, ctx.address, 0, ctx.flags);
  if ((ctx.vma.vm_flags & VM_SHARED) != 0) return ctx.write() ? era_->shared_fault(ctx) : era_->read_fault(ctx);
  // Where a page cannot be mapped read-only, or not beside its place in the cache, a private mapping gets its copy at
  // once.
  const bool always_copy = (!caps_.has_write_protect || !caps_.has_alias) && !caps_.maps_files;
  return ctx.write() || always_copy ? era_->cow_fault(ctx) : era_->read_fault(ctx);
}

/// Asks the mapping's owner for the page: afterwards ctx.page is locked, unless an error or RETRY comes back.
uint32_t Memory::ask_owner(FaultContext& ctx) {
  FaultRequest request{.vma = &ctx.vma, .address = ctx.address, .pgoff = ctx.pgoff, .flags = ctx.flags};
  const uint32_t ret = ctx.vma.vm_ops->fault(request);
  if ((ret & (VM_FAULT_ERROR | VM_FAULT_NOPAGE | VM_FAULT_RETRY)) != 0) return ret;
  Page& page = *request.page;
  if ((ret & VM_FAULT_LOCKED) == 0) filemap_.lock_page(page);
  if (!caps_.has_alias && page.test(PageFlag::writeback) && (ctx.flags & FAULT_FLAG_ALLOW_RETRY) != 0) {
    filemap_.unlock_page(page);
    wait_for_its_disk(page, ctx.mm);
    return (ret & ~VM_FAULT_LOCKED) | VM_FAULT_RETRY;
  }
  ctx.page = &page;
  return (ret & ~VM_FAULT_LOCKED);
}

/// Maps the page at ctx.address if that is still as the fault found it; `ptl` is held then. NOPAGE: somebody was faster.
uint32_t Memory::set_file_pte(FaultContext& ctx, Page& page, PteLock& ptl, Pte& entry) {
  ptl = tables_.pte_alloc_map_lock(ctx.mm, ctx.address);
  if (!ptl) return VM_FAULT_OOM;
  if (*ptl != ctx.orig_pte) return VM_FAULT_NOPAGE;
  VmArea& vma = ctx.vma;
  PageAllocator::get_page(page);
  entry = mk_pte(tables_.pages().mem().pfn(page), vma);
  if (&page == ctx.cow_page) {
    if (ctx.write()) entry = pte_mkdirty(entry);
    entry = maybe_mkwrite(entry, vma);
    ctx.mm.inc_mm_counter(RssKind::anon);
    rmap_.page_add_new_anon_rmap(page, vma, ctx.address);
    filemap_.lru().add_new_user_page(page, vma);
  } else {
    if (ctx.write()) entry = maybe_mkwrite(pte_mkdirty(entry), vma);
    ctx.mm.inc_mm_counter(mm_counter(page));
    rmap_.page_add_file_rmap(page);
  }
  tables_.set_pte_at(ctx.mm, ctx.address, ptl.get(), entry);
  return VM_FAULT_OK;
}

/// Page locked, a file's: nobody maps it afterwards. False: a mapping keeps it (VM_LOCKED).
bool Memory::unmap_elsewhere(Page& page) {
  FlushBatch batch;
  const bool unmapped = rmap_.try_to_unmap(page, batch) == TryToUnmap::success;
  if (batch.count > 0) mmu_.flush_batch(batch);
  return unmapped;
}

/// The page, locked by us, becomes part of the address space: MAPPED. If something else is there by now: NOPAGE.
uint32_t Memory::map_file_page(FaultContext& ctx) {
  Page& page = ctx.cow_page != nullptr ? *ctx.cow_page : *ctx.page;
  if (!caps_.has_alias && ctx.cow_page == nullptr && page_mapped(page) && !unmap_elsewhere(page))
    return VM_FAULT_SIGBUS;
  Pte entry;
  {
    PteLock ptl;
    if (const uint32_t ret = era_->set_file_pte(ctx, page, ptl, entry); ret != VM_FAULT_OK) return ret;
  }
  // From here on the mapping stands, whatever hardware says.
  return make_known(ctx, entry, page) | MAPPED;
}

uint32_t Memory::read_fault(FaultContext& ctx) {
  uint32_t ret = era_->ask_owner(ctx);
  if (ctx.page == nullptr) return ret;
  ret |= era_->map_file_page(ctx);
  unlock_put(*ctx.page);
  if ((ret & MAPPED) != 0 && caps_.fault_around > 1 && ctx.vma.vm_file != nullptr) file_around(ctx);
  return ret & ~MAPPED;
}

uint32_t Memory::cow_fault(FaultContext& ctx) {
  if (!anon_vma_prepare(ctx.vma)) return VM_FAULT_OOM;
  // Before the file's page is locked: an allocation may have to wait for pages that wait for locks.
  ctx.cow_page = alloc_locked_page();
  if (ctx.cow_page == nullptr) return VM_FAULT_OOM;
  uint32_t ret = era_->ask_owner(ctx);
  if (ctx.page == nullptr) {
    unlock_put(*ctx.cow_page);
    return ret;
  }
  mmu_.copy_user_highpage(*ctx.cow_page, *ctx.page);
  ctx.cow_page->set(PageFlag::uptodate);
  ret |= era_->map_file_page(ctx);
  unlock_put(*ctx.page);
  unlock_put(*ctx.cow_page);
  return ret & ~MAPPED;
}

uint32_t Memory::ask_mkwrite(FaultContext& ctx) {
  FaultRequest request{
      .vma = &ctx.vma, .address = ctx.address, .pgoff = ctx.page->index, .flags = FAULT_FLAG_WRITE, .page = ctx.page};
  return ctx.vma.vm_ops->page_mkwrite(request);
}

uint32_t Memory::may_become_writable(FaultContext& ctx) {
  return ctx.vma.vm_ops->has_page_mkwrite() ? era_->ask_mkwrite(ctx) : 0;
}

/// The page is mapped writable, locked, and about to be written: its owner learns it now, and the writer may be slowed.
/// Where others wait for real, without mmap_sem: COMPLETED.
uint32_t Memory::dirty_shared_page(FaultContext& ctx, Page& page) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  rmap_.set_page_dirty(page);
  unlock_put(page);
  VmOps& vm_ops = *ctx.vma.vm_ops;
  File& file = *ctx.vma.vm_file;
  if (caps_.has_alias || (ctx.flags & FAULT_FLAG_ALLOW_RETRY) == 0) {
    vm_ops.balance_dirty(file);
    return VM_FAULT_OK;
  }
  get_file(file);
  ctx.mm.mmap_sem.up_read();
  vm_ops.balance_dirty(file);
  fput(file);
  return VM_FAULT_COMPLETED;
}

uint32_t Memory::shared_fault(FaultContext& ctx) {
  uint32_t ret = era_->ask_owner(ctx);
  if (ctx.page == nullptr) return ret;
  Page& page = *ctx.page;
  if (const uint32_t refused = may_become_writable(ctx); (refused & (VM_FAULT_ERROR | VM_FAULT_NOPAGE)) != 0) {
    unlock_put(page);
    return refused;
  }
  ret |= era_->map_file_page(ctx);
  if ((ret & MAPPED) == 0) {
    unlock_put(page);
    return ret;
  }
  ret |= era_->dirty_shared_page(ctx, page);
  return ret & ~MAPPED;
}

// ---- Swap -----------------------------------------------------------------------------------------------------------

uint32_t Memory::do_swap_page(FaultContext& ctx) {
  WEIR_FLOW(ctx.address, ctx.orig_pte);
  VmArea& vma = ctx.vma;
  const SwpEntry entry = pte_to_swp_entry(ctx.orig_pte);
  uint32_t ret = VM_FAULT_OK;
  bool read_ahead = false;
  Page* page = cache_.lookup_swap_cache(entry, &read_ahead);
  if (page == nullptr) {
    page = cache_.swapin_readahead(entry, GFP_HIGHUSER_MOVABLE);
    if (page == nullptr) {
      // No memory; or the slot is free by now, as another thread has brought the page in.
      PteLock ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
      WEIR_RETURN(*ptl == ctx.orig_pte ? VM_FAULT_OOM : VM_FAULT_OK);
    }
    ret = VM_FAULT_MAJOR;
    vmstat_.count_vm_event(VmEvent::pgmajfault);
  }
  era_->swapped_in(*page);
  Lru& lru = filemap_.lru();
  if (!lock_page_or_retry(*page, ctx.mm, ctx.flags)) {
    lru.put_page(*page);
    WEIR_RETURN(ret | VM_FAULT_RETRY);
  }
  // While we waited the cache may have let go of it.
  if (!PageSwapCache(*page) || page->private_ != entry.val) {
    unlock_put(*page);
    WEIR_RETURN(ret);
  }
  // Where writes leave no trace in the PTE, bytes that are being written out must not change.
  if (!caps_.has_dirty) filemap_.wait_on_page_writeback(*page);

  Page* const swapcache = page;
  page = era_->fitting(*page, vma, ctx.address);
  if (page == nullptr) {
    unlock_put(*swapcache);
    WEIR_RETURN(ret | VM_FAULT_OOM);
  }
  const bool copied = page != swapcache;  // the slot's page is somebody else's
  PteLock ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
  const bool same = *ptl == ctx.orig_pte;
  if (!same || !page->test(PageFlag::uptodate)) {
    ptl.unlock();
    if (copied) unlock_put(*swapcache);
    unlock_put(*page);
    WEIR_RETURN(same ? ret | VM_FAULT_SIGBUS : ret);
  }
  ctx.mm.inc_mm_counter(RssKind::anon);
  ctx.mm.dec_mm_counter(RssKind::swapents);
  Pte pte = mk_pte(tables_.pages().mem().pfn(page), vma);
  Exclusive exclusive = Exclusive::no;
  bool copy_next = false;
  if (ctx.write() && cache_.reuse_swap_page(*page)) {
    pte = maybe_mkwrite(pte_mkdirty(pte), vma);
    exclusive = Exclusive::yes;
  } else if (!caps_.has_write_protect) {
    pte = maybe_mkwrite(pte, vma);  // never shared there
  } else {
    copy_next = ctx.write();
  }
  pte = era_->restored(pte, ctx.orig_pte);
  PageAllocator::get_page(*page);
  tables_.set_pte_at(ctx.mm, ctx.address, ptl.get(), pte);
  if (copied) {
    rmap_.page_add_new_anon_rmap(*page, vma, ctx.address);
    lru.lru_cache_add_active_or_unevictable(*page, vma);
  } else {
    rmap_.page_add_anon_rmap(*page, vma, ctx.address, exclusive);
    era_->mapped_again(*page);
  }
  ptl.unlock();

  swap_.swap_free(entry);
  if (copied) unlock_put(*swapcache);
  // On a device without room a page that changes could not be written to its slot again: without one it may go
  // elsewhere.
  if (swap_.vm_swap_full() || !swap_.has_room(entry) || (vma.vm_flags & VM_LOCKED) != 0 ||
      page->test(PageFlag::mlocked))
    cache_.try_to_free_swap(*page);
  if (!copy_next) {
    ret |= make_known(ctx, pte, *page);
    unlock_put(*page);
    if (caps_.fault_around > 1) {
      if (read_ahead) cache_.read_on(entry);
      swap_around(ctx);
    }
    WEIR_RETURN(ret);
  }
  unlock_put(*page);
  ctx.orig_pte = pte;
  ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
  WEIR_RETURN(*ptl == pte ? ret | do_wp_page(ctx, std::move(ptl)) : ret);
}

// ---- Copy on write --------------------------------------------------------------------------------------------------

/// The PTE is read-only, the VMA writable. `ptl` is held and *ptl is ctx.orig_pte.
uint32_t Memory::do_wp_page(FaultContext& ctx, PteLock ptl) {
  WEIR_FLOW(ctx.address, ctx.orig_pte);
  Page* page = vm_normal_page(ctx.orig_pte);
  if (page == nullptr) {
    // A device's, shared: the right to write had been taken away for a while.
    if ((ctx.vma.vm_flags & VM_SHARED) != 0) {
      (void)era_->reuse_page(ctx, ptl);
      WEIR_RETURN(VM_FAULT_OK);
    }
    ptl.unlock();
    WEIR_RETURN(era_->copy_page(ctx, nullptr));
  }
  if (!PageAnon(*page)) {
    if ((ctx.vma.vm_flags & VM_SHARED) != 0) WEIR_RETURN(era_->reuse_shared_page(ctx, *page, std::move(ptl)));
    PageAllocator::get_page(*page);
    ptl.unlock();
    WEIR_RETURN(caps_.has_alias ? era_->copy_page(ctx, page) : copy_unmapped(ctx, *page));
  }

  PageAllocator::get_page(*page);
  if (!filemap_.trylock_page(*page)) {
    ptl.unlock();
    filemap_.lock_page(*page);
    ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
    if (*ptl != ctx.orig_pte) {
      ptl.unlock();
      unlock_put(*page);
      WEIR_RETURN(VM_FAULT_OK);
    }
  }
  if (cache_.reuse_swap_page(*page)) {
    era_->own(*page, ctx.vma);
    const Pte entry = era_->reuse_page(ctx, ptl);
    ptl.unlock();
    const uint32_t ret = make_known(ctx, entry, *page);
    unlock_put(*page);
    WEIR_RETURN(ret);
  }
  ptl.unlock();
  filemap_.unlock_page(*page);
  WEIR_RETURN(era_->copy_page(ctx, page));
}

/// A file's page in a private mapping, where what is mapped cannot be copied: it goes, and the fault is one on nothing.
/// Consumes the caller's reference.
uint32_t Memory::copy_unmapped(FaultContext& ctx, Page& page) {
  if (!lock_still_page(page, ctx.mm, ctx.flags)) return VM_FAULT_RETRY;
  const bool unmapped = unmap_elsewhere(page);
  unlock_put(page);
  if (!unmapped) return VM_FAULT_SIGBUS;
  ctx.orig_pte = Pte{};
  return era_->file_fault(ctx);
}

uint32_t Memory::break_cow(VmArea& vma, VirtAddr address) {
  FaultContext ctx{.vma = vma, .mm = *vma.vm_mm, .address = address.page(), .flags = FAULT_FLAG_WRITE};
  PteLock ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
  if (!ptl || !pte_present(*ptl) || pte_write(*ptl)) return VM_FAULT_OK;
  ctx.orig_pte = *ptl;
  return do_wp_page(ctx, std::move(ptl));
}

/// Nobody else has the page, or it is shared on purpose: the PTE becomes writable.
Pte Memory::reuse_page(FaultContext& ctx, PteLock& ptl) {
  const Pte entry = maybe_mkwrite(pte_mkdirty(pte_mkyoung(ctx.orig_pte)), ctx.vma);
  tables_.ptep_set_access_flags(ctx.mm, ctx.address, ptl.get(), entry);
  vmstat_.count_vm_event(VmEvent::pgreuse);
  return entry;
}

uint32_t Memory::reuse_shared_page(FaultContext& ctx, Page& page, PteLock ptl) {
  PageAllocator::get_page(page);
  ptl.unlock();
  if (!lock_still_page(page, ctx.mm, ctx.flags)) return VM_FAULT_RETRY;
  uint32_t ret = VM_FAULT_OK;
  if (Filemap::file_mapping(page) != nullptr) {  // else truncated meanwhile: look again
    ctx.page = &page;
    ret = may_become_writable(ctx);
    if ((ret & (VM_FAULT_ERROR | VM_FAULT_NOPAGE)) == 0) {
      ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
      if (*ptl == ctx.orig_pte) {
        const Pte entry = era_->reuse_page(ctx, ptl);
        ptl.unlock();
        ret |= make_known(ctx, entry, page);
        return ret | era_->dirty_shared_page(ctx, page);
      }
      ptl.unlock();
    }
  }
  unlock_put(page);
  return ret;
}

void Memory::cow_user_page(Page& to, Page& from) {
  WEIR_FLOW(tables_.pages().mem().pfn(to), tables_.pages().mem().pfn(from));
  mmu_.copy_user_highpage(to, from);
}

/// A copy of the page (null: of a frame that is not counted), of which the caller has a reference, takes its place.
/// Consumes that reference.
uint32_t Memory::copy_page(FaultContext& ctx, Page* old_page) {
  Lru& lru = filemap_.lru();
  Page* page = nullptr;
  // A device's frames stay as long as they are mapped, and mmap_sem is held.
  Page* source = old_page;
  if (old_page == nullptr && !is_zero_page(ctx.orig_pte)) source = &tables_.pages().mem().page(pte_pfn(ctx.orig_pte));
  if (anon_vma_prepare(ctx.vma)) page = source != nullptr ? alloc_locked_page() : era_->zeroed_page(ctx);
  if (page == nullptr) {
    if (old_page != nullptr) lru.put_page(*old_page);
    return VM_FAULT_OOM;
  }
  if (source != nullptr) cow_user_page(*page, *source);
  page->set(PageFlag::uptodate);

  ChangingRange changing(ctx.mm, ctx.address, ctx.address + PAGE_SIZE);
  PteLock ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
  if (*ptl != ctx.orig_pte) {
    ptl.unlock();
    unlock_put(*page);
    if (old_page != nullptr) lru.put_page(*old_page);
    return VM_FAULT_OK;
  }
  if (old_page == nullptr || !PageAnon(*old_page)) {
    if (old_page != nullptr) ctx.mm.dec_mm_counter(mm_counter(*old_page));
    ctx.mm.inc_mm_counter(RssKind::anon);
  }
  const Pte entry = maybe_mkwrite(pte_mkdirty(mk_pte(tables_.pages().mem().pfn(page), ctx.vma)), ctx.vma);
  // Another CPU may know the old page until it is told. It must not read that while a third already writes to the copy:
  // so the copy is not accessible before the flush, which waits until the lock is dropped. Whoever faults on it waits
  // for the page lock.
  const bool others = ctx.mm.mm_users.load(std::memory_order_acquire) > 1;
  const Pte first = others ? pte_mkinaccessible(entry) : entry;
  PageAllocator::get_page(*page);
  tables_.ptep_clear_flush(ctx.mm, ctx.address, ptl.get());
  rmap_.page_add_new_anon_rmap(*page, ctx.vma, ctx.address);
  lru.add_new_user_page(*page, ctx.vma);
  tables_.set_pte_at(ctx.mm, ctx.address, ptl.get(), first);
  if (old_page != nullptr) rmap_.page_remove_rmap(*old_page);
  ptl.unlock();

  FlushBatch batch;
  batch.add(ctx.mm, ctx.address, nullptr);
  mmu_.flush_batch(batch);
  if (others) {
    ptl = tables_.pte_offset_map_lock(ctx.mm, ctx.address);
    if (ptl && *ptl == first) tables_.set_pte_at(ctx.mm, ctx.address, ptl.get(), entry);
    ptl.unlock();
  }
  vmstat_.count_vm_event(VmEvent::pgcow);
  const uint32_t ret = make_known(ctx, entry, *page);
  unlock_put(*page);
  if (old_page != nullptr) {
    // Whoever else maps it need not want it in memory.
    if ((ctx.vma.vm_flags & VM_LOCKED) != 0) {
      filemap_.lock_page(*old_page);
      if (old_page->test(PageFlag::mlocked)) lru.munlock_vma_page(*old_page);
      filemap_.unlock_page(*old_page);
    }
    lru.put_page(*old_page);
    lru.put_page(*old_page);  // the mapping's
  }
  return ret;
}

}  // namespace weir
