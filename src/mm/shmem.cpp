// src/mm/shmem.cpp: see shmem.hpp
#include "mm/shmem.hpp"

#include <algorithm>
#include <cstring>

namespace weir {

namespace {

/// No page of a memory file lies above it.
constexpr uint64_t MAX_INDEX = (uint64_t{1} << (47 - PAGE_SHIFT)) - 1;

void* swp_to_radix_entry(SwpEntry entry) { return make_exceptional_entry(entry.val); }
SwpEntry radix_to_swp_entry(const void* entry) { return SwpEntry{exceptional_value(entry)}; }

}  // namespace

Shmem::Shmem(SwapCache& cache, SwapFiles& swap, PageIo& io, FilemapIo& files, PageWriteback& writeback, Slab& slab,
             VmStat& vmstat, const Profile& profile)
    : cache_(cache),
      swap_(swap),
      io_(io),
      files_(files),
      filemap_(cache.filemap()),
      lru_(filemap_.lru()),
      writeback_(writeback),
      slab_(slab),
      vmstat_(vmstat),
      mmu_(cache.mmu()),
      profile_(profile),
      truncate_(filemap_, writeback, files.buffers(), mmu_) {}

Result<void> Shmem::init() {
  inode_cache_ =
      WEIR_TRY(slab_.kmem_cache_create("shmem_inode_cache", sizeof(ShmemInode), {.align = alignof(ShmemInode)}));
  set_max_blocks(PageCount(filemap_.pages().managed_pages().v / 2));
  return {};
}

// ---- Files ----------------------------------------------------------------------------------------------------------

Result<ShmemInode*> Shmem::shmem_get_inode(const char* name, Bytes size, bool limited) {
  WEIR_FLOW(size);
  if (page_align_up(size.v) >> PAGE_SHIFT > MAX_INDEX + 1) return Errno::fbig;
  auto* info = slab_.create<ShmemInode>(*inode_cache_, GFP_KERNEL);
  if (info == nullptr) return Errno::nomem;
  info->ino = next_ino_.fetch_add(1, std::memory_order_relaxed);
  std::strncpy(info->name, name, sizeof info->name - 1);
  info->max_pages = MAX_INDEX + 1;
  info->limited = limited;
  info->i_size.store(size.v, std::memory_order_relaxed);
  info->i_data.host = info;
  info->i_data.host_ino = 0x8000 | info->ino;
  info->i_data.a_ops = this;
  info->i_data.max_index = MAX_INDEX;
  info->i_data.no_writeback_tags = true;
  ScopedLock guard(inodes_lock_);
  inodes_.push_back(*info);
  return info;
}

Result<Inode*> Shmem::create_inode(const char* name, Bytes size) { return WEIR_TRY(shmem_get_inode(name, size, true)); }

Result<File*> Shmem::open(Inode& inode) {
  File* file = WEIR_TRY(files_.alloc_file(inode, *this, *this));
  file->release = [](void* self, File& f) {
    auto& shmem = *static_cast<Shmem*>(self);
    Inode& of = *f.f_inode;
    shmem.files_.free_file(f);
    shmem.iput(of);
  };
  file->owner = this;
  return file;
}

Result<File*> Shmem::shmem_file_setup(const char* name, Bytes size) {
  WEIR_FLOW(size);
  ShmemInode* info = WEIR_TRY(shmem_get_inode(name, size, false));
  Result<File*> file = open(*info);
  iput(*info);  // the file has its own
  return file;
}

Result<File*> Shmem::shmem_zero_setup(Bytes size) {
  WEIR_FLOW(size);
  return shmem_file_setup("dev/zero", size);
}

void Shmem::iput(Inode& inode) {
  if (inode.i_count.fetch_sub(1, std::memory_order_acq_rel) == 1) shmem_evict_inode(info_of(inode));
}

void Shmem::shmem_evict_inode(ShmemInode& info) {
  WEIR_FLOW(info.ino);
  shmem_truncate_range(info, 0);
  {
    // Whoever still counts a page of it in or out of swap holds this.
    ScopedLock guard(swaplist_mutex_);
    if (info.on_swaplist) swaplist_.erase(swaplist_.iterator_to(info));
  }
  WEIR_BUG_ON(info.i_data.nrpages != 0 || info.swapped != 0 || info.alloced != 0 || !info.i_data.i_mmap.empty());
  {
    ScopedLock guard(inodes_lock_);
    inodes_.erase(inodes_.iterator_to(info));
  }
  slab_.destroy(*inode_cache_, &info);
}

// ---- Counting -------------------------------------------------------------------------------------------------------

Result<void> Shmem::shmem_inode_acct_block(ShmemInode& info) {
  if (!info.limited) return {};
  int64_t used = used_blocks_.load(std::memory_order_relaxed);
  do {
    if (used >= max_blocks_.load(std::memory_order_relaxed)) return Errno::nospc;
  } while (!used_blocks_.compare_exchange_weak(used, used + 1, std::memory_order_relaxed));
  return {};
}

void Shmem::shmem_inode_unacct_blocks(ShmemInode& info, uint64_t pages) {
  if (info.limited) used_blocks_.fetch_sub(static_cast<int64_t>(pages), std::memory_order_relaxed);
}

/// Pages have left the file, and `swapped_delta` of its pages have gone to swap. Called before a page leaves the tree
/// for swap and after one came back, so that no page ever looks freed that is not. Reclaim frees clean pages (those
/// that were only read) without asking.
void Shmem::shmem_recalc_inode(ShmemInode& info, int64_t swapped_delta) {
  WEIR_FLOW(info.ino);
  ScopedLock guard(info.lock);
  info.swapped += static_cast<uint64_t>(swapped_delta);
  const uint64_t pages = __atomic_load_n(&info.i_data.nrpages, __ATOMIC_RELAXED);
  if (info.alloced <= info.swapped + pages) return;
  const uint64_t freed = info.alloced - info.swapped - pages;
  info.alloced -= freed;
  shmem_inode_unacct_blocks(info, freed);
}

bool Shmem::__set_page_dirty_no_writeback(Page& page) {
  if (page.test(PageFlag::dirty)) return false;
  page.set(PageFlag::dirty);
  return true;
}

// ---- The tree -------------------------------------------------------------------------------------------------------

/// Page locked and swap-backed, not under writeback: it comes into the tree in the place of `expected`. Errors: EEXIST
/// (something else is there), ENOMEM.
Result<void> Shmem::shmem_add_to_page_cache(Page& page, AddressSpace& mapping, uint64_t index, SwpEntry expected) {
  WEIR_FLOW(filemap_.pages().mem().pfn(page), index, expected);
  if (!expected) {
    WEIR_TRY_VOID(filemap_.add_to_page_cache_locked(page, mapping, index, mapping.gfp_mask));
    vmstat_.inc_node_page_state(NodeStat::nr_shmem);
    return {};
  }
  ScopedLock guard(mapping.tree_lock);
  if (mapping.page_tree.lookup(index) != swp_to_radix_entry(expected)) return Errno::exist;
  mapping.page_tree.replace(index, &page);
  ++mapping.nrpages;
  PageAllocator::get_page(page);
  page.index = index;
  page.set_mapping(reinterpret_cast<uintptr_t>(&mapping), index);
  WEIR_STATE(page_cache, cache_subject(mapping, index), 0, filemap_.pages().mem().pfn(page).v + 1);
  vmstat_.inc_node_page_state(NodeStat::nr_file_pages);
  vmstat_.inc_node_page_state(NodeStat::nr_shmem);
  return {};
}

/// Page locked: the entry takes its place in the tree.
void Shmem::shmem_delete_from_page_cache(Page& page, SwpEntry entry) {
  const Pfn pfn = filemap_.pages().mem().pfn(page);
  WEIR_FLOW(pfn, entry);
  AddressSpace& mapping = *file_mapping(page);
  {
    ScopedLock guard(mapping.tree_lock);
    const void* was = mapping.page_tree.replace(page.index, swp_to_radix_entry(entry));
    WEIR_BUG_ON(was != &page);
    --mapping.nrpages;
    page.set_mapping(0, page.index);
    WEIR_STATE(page_cache, cache_subject(mapping, page.index), pfn.v + 1, 0);
    vmstat_.dec_node_page_state(NodeStat::nr_file_pages);
    vmstat_.dec_node_page_state(NodeStat::nr_shmem);
  }
  lru_.put_page(page);
}

bool Shmem::shmem_confirm_swap(AddressSpace& mapping, uint64_t index, SwpEntry entry) {
  ScopedLock guard(mapping.tree_lock);
  return mapping.page_tree.lookup(index) == swp_to_radix_entry(entry);
}

/// The entry leaves the tree, and its slot loses its user. False: something else is there by now.
bool Shmem::shmem_free_swap(AddressSpace& mapping, uint64_t index, SwpEntry entry) {
  WEIR_FLOW(index, entry);
  {
    ScopedLock guard(mapping.tree_lock);
    if (mapping.page_tree.lookup(index) != swp_to_radix_entry(entry)) return false;
    mapping.page_tree.erase(index, filemap_.node_source());
  }
  cache_.free_swap_and_cache(entry);
  return true;
}

// ---- One page of a file ---------------------------------------------------------------------------------------------

Page* Shmem::shmem_swapin(SwpEntry entry, gfp_t gfp) {
  WEIR_FLOW(entry);
  return cache_.swapin_readahead(entry, gfp);
}

/// The copy of `entry`, locked and uptodate, goes from the swap cache into the tree, and the slot loses its user. False:
/// something else is at `index` by now.
bool Shmem::take_back(ShmemInode& info, uint64_t index, SwpEntry entry, Page& page) {
  if (!shmem_add_to_page_cache(page, info.i_data, index, entry)) return false;
  shmem_recalc_inode(info, -1);
  cache_.delete_from_swap_cache(page);
  __set_page_dirty_no_writeback(page);
  (void)swap_.swap_free(entry);
  return true;
}

/// The page of a slot of the tree that holds `entry`: back in the tree, locked, referenced. Errors: EAGAIN (the tree
/// has changed: look again), EIO, ENOMEM.
Result<Page*> Shmem::shmem_swapin_page(ShmemInode& info, uint64_t index, SwpEntry entry, uint32_t* fault_type) {
  AddressSpace& mapping = info.i_data;
  Page* page = cache_.lookup_swap_cache(entry);
  if (page == nullptr) {
    if (fault_type != nullptr) {
      *fault_type |= VM_FAULT_MAJOR;
      vmstat_.count_vm_event(VmEvent::pgmajfault);
    }
    page = shmem_swapin(entry, mapping.gfp_mask);
    if (page == nullptr) return shmem_confirm_swap(mapping, index, entry) ? Errno::nomem : Errno::again;
  }
  filemap_.lock_page(*page);
  const auto give_up = [&](Errno why) {
    filemap_.unlock_page(*page);
    lru_.put_page(*page);
    return why;
  };
  if (!PageSwapCache(*page) || page->private_ != entry.val || !shmem_confirm_swap(mapping, index, entry))
    return give_up(Errno::again);
  if (!page->test(PageFlag::uptodate)) return give_up(Errno::io);
  filemap_.wait_on_page_writeback(*page);
  if (!take_back(info, index, entry, *page)) return give_up(Errno::again);
  return page;
}

/// A new page for an empty slot: in the tree, locked, referenced; its bytes are zero but for SgpType::write. Errors:
/// EAGAIN (somebody was faster), ENOSPC, ENOMEM.
Result<Page*> Shmem::shmem_alloc_page(ShmemInode& info, uint64_t index, SgpType sgp) {
  WEIR_FLOW(info.ino, index);
  AddressSpace& mapping = info.i_data;
  WEIR_TRY_VOID(shmem_inode_acct_block(info));
  Page* page = filemap_.pages().alloc_page(mapping.gfp_mask);
  if (page == nullptr) {
    shmem_inode_unacct_blocks(info, 1);
    return Errno::nomem;
  }
  filemap_.__set_page_locked(*page);
  page->set(PageFlag::swapbacked);
  if (sgp != SgpType::write) {
    mmu_.clear_user_highpage(*page);
    page->set(PageFlag::uptodate);
  }
  if (const Result<void> added = shmem_add_to_page_cache(*page, mapping, index, SwpEntry{}); !added) {
    shmem_inode_unacct_blocks(info, 1);
    page->clear(PageFlag::swapbacked);
    filemap_.unlock_page(*page);
    lru_.put_page(*page);
    return added.error() == Errno::exist ? Errno::again : added.error();
  }
  {
    ScopedLock guard(info.lock);
    ++info.alloced;
  }
  lru_.lru_cache_add_anon(*page);
  return page;
}

/// The page at `index`, locked and referenced; null: an empty slot (SgpType::read). Errors: EINVAL (behind the end of
/// the file), EFBIG, EIO, ENOSPC, ENOMEM, EINTR.
Result<Page*> Shmem::shmem_getpage(ShmemInode& info, uint64_t index, SgpType sgp, uint32_t* fault_type) {
  WEIR_FLOW(info.ino, index, sgp);
  if (index > MAX_INDEX) return Errno::fbig;
  AddressSpace& mapping = info.i_data;
  const auto outside = [&] { return sgp != SgpType::write && index >= i_size_pages(info); };
  for (;;) {
    if (fatal_signal_pending()) return Errno::intr;
    const Filemap::TreeEntry found = filemap_.find_lock_entry(mapping, index);
    Page* page = found.page;
    if (page == nullptr) {
      if (outside()) return Errno::inval;
      if (found.exceptional == nullptr && sgp == SgpType::read) return nullptr;
      Result<Page*> made = found.exceptional != nullptr
                               ? shmem_swapin_page(info, index, radix_to_swp_entry(found.exceptional), fault_type)
                               : shmem_alloc_page(info, index, sgp);
      if (made.error() == Errno::again) continue;
      if (!made) return made.error();
      page = *made;
    }
    // Under the page lock: truncation, which sets the size first, has not seen the page yet, and waits for it.
    if (outside()) {
      filemap_.unlock_page(*page);
      lru_.put_page(*page);
      return Errno::inval;
    }
    if (sgp == SgpType::write) lru_.mark_page_accessed(*page);
    return page;
  }
}

uint32_t Shmem::shmem_fault(FaultRequest& request) {
  WEIR_FLOW(request.address, request.pgoff);
  uint32_t result = VM_FAULT_LOCKED;
  Result<Page*> page = shmem_getpage(info_of(*request.vma->vm_file->f_inode), request.pgoff, SgpType::cache, &result);
  if (!page) {
    switch (page.error()) {
      case Errno::nomem: return VM_FAULT_OOM;
      case Errno::intr: return VM_FAULT_KILLED;
      default: return VM_FAULT_SIGBUS;
    }
  }
  request.page = *page;
  return result;
}

// ---- To swap and back -----------------------------------------------------------------------------------------------

/// Page locked, clean for writing, unmapped, with the tree's reference and the caller's. Errors: EAGAIN (stays, dirty
/// and locked: no slot, or the file is locked in memory); as PageIo::swap_writepage.
Result<void> Shmem::shmem_writepage(Page& page, WritebackControl& wbc) {
  WEIR_FLOW(filemap_.pages().mem().pfn(page), page.index);
  ShmemInode& info = info_of(*file_mapping(page)->host);
  SwpEntry entry;
  if (!info.locked.load(std::memory_order_acquire) && swap_.total_swap_pages() != 0) {
    // Until the page is counted as swapped swapoff must not find that there is nothing of the file in swap.
    ScopedLock guard(swaplist_mutex_);
    entry = cache_.add_shmem_to_swap(page);
    if (entry) {
      if (!info.on_swaplist) swaplist_.push_back(info);
      info.on_swaplist = true;
      shmem_recalc_inode(info, 1);
      shmem_delete_from_page_cache(page, entry);
    }
  }
  if (!entry) {
    __set_page_dirty_no_writeback(page);
    return Errno::again;
  }
  return io_.swap_writepage(page, wbc);
}

bool Shmem::shmem_unuse_inode(ShmemInode& info, SwpEntry entry, Page& page) {
  WEIR_FLOW(info.ino, entry);
  constexpr unsigned BATCH = 32;
  AddressSpace& mapping = info.i_data;
  void* const wanted = swp_to_radix_entry(entry);
  void* found[BATCH];
  uint64_t indices[BATCH];
  uint64_t index = 0;
  for (bool there = false; !there;) {
    unsigned got = 0;
    {
      ScopedLock guard(mapping.tree_lock);
      got = mapping.page_tree.gang_lookup(found, indices, index, BATCH);
    }
    if (got == 0) return false;
    for (unsigned i = 0; i < got && !there; ++i) {
      there = found[i] == wanted;
      index = there ? indices[i] : indices[i] + 1;
    }
    world().cond_resched();
  }
  return take_back(info, index, entry, page);
}

bool Shmem::shmem_unuse(SwpEntry entry, Page& page) {
  WEIR_FLOW(entry);
  if (!PageSwapCache(page) || page.private_ != entry.val) return false;
  ScopedLock guard(swaplist_mutex_);
  for (auto at = swaplist_.begin(); at != swaplist_.end();) {
    ShmemInode& info = *at++;
    bool any = false;
    {
      ScopedLock counts(info.lock);
      any = info.swapped != 0;
    }
    if (any) {
      if (shmem_unuse_inode(info, entry, page)) return true;
      continue;
    }
    swaplist_.erase(swaplist_.iterator_to(info));
    info.on_swaplist = false;
  }
  return false;
}

void Shmem::shmem_unlock_mapping(AddressSpace& mapping) {
  WEIR_FLOW();
  lru_.lru_add_drain_all();
  Page* pages[PAGEVEC_SIZE];
  uint64_t start = 0;
  while (const unsigned found = filemap_.find_get_pages(mapping, start, PAGEVEC_SIZE, pages)) {
    start = pages[found - 1]->index + 1;
    for (unsigned i = 0; i < found; ++i)
      if (pages[i]->test(PageFlag::unevictable) && lru_.isolate_lru_page(*pages[i])) lru_.putback_lru_page(*pages[i]);
    lru_.release_pages(pages, found);
    world().cond_resched();
  }
}

void Shmem::shmem_lock(Inode& inode, ShmLock what) {
  WEIR_FLOW(inode.ino, what);
  ShmemInode& info = info_of(inode);
  info.locked.store(what == ShmLock::lock, std::memory_order_release);
  // Where there is no list for such pages reclaim meets them again and again.
  if (!profile_.five_lists) return;
  info.i_data.unevictable.store(what == ShmLock::lock, std::memory_order_release);
  if (what == ShmLock::unlock) shmem_unlock_mapping(info.i_data);
}

// ---- Truncating -----------------------------------------------------------------------------------------------------

/// Pages and entries from page `first` on go.
void Shmem::shmem_truncate_range(ShmemInode& info, uint64_t first) {
  WEIR_FLOW(info.ino, first);
  constexpr unsigned BATCH = PAGEVEC_SIZE;
  AddressSpace& mapping = info.i_data;
  void* found[BATCH];
  uint64_t indices[BATCH];
  // A page may become an entry meanwhile, or the reverse: until there is neither.
  for (;;) {
    Page* pages[BATCH];
    unsigned nr_pages = 0, got = 0;
    {
      ScopedLock guard(mapping.tree_lock);
      got = mapping.page_tree.gang_lookup(found, indices, first, BATCH);
      for (unsigned i = 0; i < got; ++i) {
        if (is_exceptional_entry(found[i])) continue;
        pages[nr_pages] = static_cast<Page*>(found[i]);
        PageAllocator::get_page(*pages[nr_pages++]);
      }
    }
    if (got == 0) {
      // Reclaim may have been here before, and freed the clean ones.
      shmem_recalc_inode(info, 0);
      break;
    }
    int64_t freed = 0;
    for (unsigned i = 0; i < got; ++i)
      if (is_exceptional_entry(found[i]) && shmem_free_swap(mapping, indices[i], radix_to_swp_entry(found[i]))) ++freed;
    for (unsigned i = 0; i < nr_pages; ++i) {
      Page& page = *pages[i];
      filemap_.lock_page(page);
      if (file_mapping(page) == &mapping) {
        filemap_.wait_on_page_writeback(page);
        truncate_.truncate_complete_page(page);
      }
      filemap_.unlock_page(page);
    }
    lru_.release_pages(pages, nr_pages);
    shmem_recalc_inode(info, -freed);
    world().cond_resched();
  }
}

Result<void> Shmem::truncate(Inode& inode, Bytes size) {
  WEIR_FLOW(inode.ino, size);
  ShmemInode& info = info_of(inode);
  if (page_align_up(size.v) >> PAGE_SHIFT > MAX_INDEX + 1) return Errno::fbig;
  ScopedLock guard(info.rwsem);
  const uint64_t old = info.i_size.load(std::memory_order_acquire);
  // What a mapping has stored behind the end in its last page must not come to light when the file grows.
  const uint64_t end = std::min(size.v, old);
  if (const auto tail = static_cast<uint32_t>(end % PAGE_SIZE); tail != 0) {
    if (Page* page = WEIR_TRY(shmem_getpage(info, end >> PAGE_SHIFT, SgpType::read))) {
      zero_page_tail(mmu_, *page, tail);
      __set_page_dirty_no_writeback(*page);
      filemap_.unlock_page(*page);
      lru_.put_page(*page);
    }
  }
  info.i_size.store(size.v, std::memory_order_release);
  if (size.v >= old) return {};
  const uint64_t hole = page_align_up(size.v);
  MappedFilePages* mapped = writeback_.mapped_pages();
  if (mapped != nullptr) mapped->unmap_mapping_range(info.i_data, hole, 0, EvenCows::yes);
  shmem_truncate_range(info, hole >> PAGE_SHIFT);
  // A fault that had found its page before the size fell may have made a private copy of it meanwhile.
  if (mapped != nullptr) mapped->unmap_mapping_range(info.i_data, hole, 0, EvenCows::yes);
  return {};
}

// ---- Reading and writing --------------------------------------------------------------------------------------------

Result<uint64_t> Shmem::read(File& file, uint64_t pos, std::byte* to, uint64_t bytes) {
  WEIR_FLOW(pos, bytes);
  ShmemInode& info = info_of(*file.f_inode);
  uint64_t done = 0;
  while (done < bytes) {
    world().cond_resched();
    const uint64_t at = pos + done;
    const auto offset = static_cast<uint32_t>(at % PAGE_SIZE);
    Result<Page*> page = shmem_getpage(info, at >> PAGE_SHIFT, SgpType::read);
    if (page.error() == Errno::inval) break;  // behind the end
    if (!page) {
      if (done > 0) break;
      return page.error();
    }
    if (*page != nullptr) filemap_.unlock_page(**page);
    const uint64_t size = info.i_size.load(std::memory_order_acquire);
    const uint64_t n = at < size ? std::min({bytes - done, PAGE_SIZE - offset, size - at}) : 0;
    if (*page != nullptr) {
      if (n != 0) lru_.mark_page_accessed(**page);
      if (to != nullptr) copy_from_page(mmu_, **page, offset, to + done, n);
      lru_.put_page(**page);
    } else if (to != nullptr) {
      std::memset(to + done, 0, n);
    }
    if (n == 0) break;
    done += n;
  }
  return done;
}

Result<uint64_t> Shmem::shmem_perform_write(File& file, uint64_t pos, const PageSource& source, uint64_t bytes) {
  WEIR_FLOW(pos, bytes);
  ShmemInode& info = info_of(*file.f_inode);
  ScopedLock guard(info.rwsem);
  uint64_t done = 0;
  while (done < bytes) {
    const uint64_t at = pos + done;
    const auto offset = static_cast<uint32_t>(at % PAGE_SIZE);
    const uint64_t n = std::min(bytes - done, PAGE_SIZE - offset);
    Result<Page*> got = shmem_getpage(info, at >> PAGE_SHIFT, SgpType::write);
    if (!got) {
      if (done > 0) break;
      return got.error();
    }
    Page& page = **got;
    if (!page.test(PageFlag::uptodate) && n < PAGE_SIZE) mmu_.clear_user_highpage(page);
    copy_to_page(mmu_, page, offset, n, source, done);
    page.set(PageFlag::uptodate);
    __set_page_dirty_no_writeback(page);
    if (at + n > info.i_size.load(std::memory_order_relaxed)) info.i_size.store(at + n, std::memory_order_release);
    filemap_.unlock_page(page);
    lru_.put_page(page);
    done += n;
    world().cond_resched();
  }
  return done;
}

Result<uint64_t> Shmem::write(File& file, uint64_t pos, const std::byte* from, uint64_t bytes) {
  return shmem_perform_write(file, pos, {.from = from}, bytes);
}

Result<void> Shmem::write_tag(File& file, uint64_t index, uint64_t tag) {
  const Result<uint64_t> written = shmem_perform_write(file, index << PAGE_SHIFT, {.tag = &tag}, PAGE_SIZE);
  if (!written) return written.error();
  return {};
}

Result<uint64_t> Shmem::read_tag(File& file, uint64_t index) {
  Result<Page*> page = shmem_getpage(info_of(*file.f_inode), index, SgpType::read);
  if (page.error() == Errno::inval) return Errno::noent;
  if (!page) return page.error();
  if (*page == nullptr) return uint64_t{0};
  filemap_.unlock_page(**page);
  lru_.mark_page_accessed(**page);
  const uint64_t tag = tag_of_page(mmu_, **page);
  lru_.put_page(**page);
  return tag;
}

}  // namespace weir
