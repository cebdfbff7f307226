// src/mm/filemap_io.cpp: files, their content, reading them and faults on them. Writing: filemap_write.cpp. See
// filemap_io.hpp
#include "mm/filemap_io.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace weir {

namespace {

/// A fault that found no page costs one; so many more than hits, and reading around faults is given up. Linux's value.
constexpr uint32_t MMAP_LOTSAMISS = 100;

}  // namespace

FilemapIo::FilemapIo(Filemap& filemap, PageIo& io, PageWriteback& writeback, Buffers& buffers, Slab& slab,
                     VmStat& vmstat, Mmu& mmu, KernelEra kernel)
    : filemap_(filemap),
      io_(io),
      writeback_(writeback),
      buffers_(buffers),
      slab_(slab),
      vmstat_(vmstat),
      mmu_(mmu),
      check_errors_(profile_of(kernel).errseq ? &FilemapIo::file_check_and_advance_wb_err
                                              : &FilemapIo::filemap_check_errors),
      mmap_missed_(kernel == KernelEra::linux_2_6_20 ? &FilemapIo::mmap_readahead : &FilemapIo::do_sync_mmap_readahead),
      ondemand_(filemap),
      two_window_(filemap),
      readahead_(kernel == KernelEra::linux_2_6_20 ? static_cast<Readahead&>(two_window_) : ondemand_),
      truncate_(filemap, writeback, buffers, mmu) {
  buffers.set_read_end(&end_read, this);
}

Result<void> FilemapIo::init() {
  inode_cache_ = WEIR_TRY(slab_.kmem_cache_create("inode_cache", sizeof(Inode),
                                                  {.align = alignof(Inode), .reclaimable = Slab::Reclaimable::yes}));
  file_cache_ = WEIR_TRY(slab_.kmem_cache_create("filp", sizeof(File), {.align = alignof(File)}));
  return {};
}

// ---- Inodes and files ----------------------------------------------------------------------------------------------

Result<Inode*> FilemapIo::create_inode(const char* name, BlockDevice& device, uint64_t first_page, Bytes size,
                                       Bytes max_bytes, uint32_t block_size) {
  const auto capacity = static_cast<uint64_t>(device.capacity().v);
  const uint64_t max_pages = max_bytes.v >> PAGE_SHIFT;
  if (max_pages == 0 || first_page > capacity || max_pages > capacity - first_page) return Errno::inval;
  if (size.v > max_pages << PAGE_SHIFT) return Errno::inval;
  if (block_size != 0 &&
      (!std::has_single_bit(block_size) || block_size > PAGE_SIZE || block_size < device.logical_block_size()))
    return Errno::inval;
  auto* inode = slab_.create<Inode>(*inode_cache_, GFP_KERNEL);
  if (inode == nullptr) return Errno::nomem;
  inode->ino = next_ino_.fetch_add(1, std::memory_order_relaxed);
  std::strncpy(inode->name, name, sizeof inode->name - 1);
  inode->bdev = &device;
  inode->first_page = first_page;
  inode->max_pages = max_pages;
  inode->block_size = block_size;
  inode->i_size.store(size.v, std::memory_order_relaxed);
  inode->valid_pages.store(i_size_pages(*inode), std::memory_order_relaxed);
  inode->i_data.host = inode;
  inode->i_data.host_ino = inode->ino;
  inode->i_data.a_ops = this;
  inode->i_data.wb = &writeback_.wb_of(device);
  inode->i_data.max_index = max_pages - 1;
  inode_sb_list_add(*inode);
  return inode;
}

void FilemapIo::inode_sb_list_add(Inode& inode) {
  ScopedLock guard(inodes_lock_);
  inodes_.push_back(inode);
}

void FilemapIo::inode_sb_list_del(Inode& inode) {
  ScopedLock guard(inodes_lock_);
  inodes_.erase(inodes_.iterator_to(inode));
}

void FilemapIo::iput(Inode& inode) {
  if (inode.i_count.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  WEIR_FLOW(inode.ino);
  AddressSpace& mapping = inode.i_data;
  filemap_write_and_wait_range(mapping, 0, ~uint64_t{0});
  if (inode.i_sb != nullptr) (void)inode.i_sb->write_inode(inode);
  truncate_.truncate_inode_pages(mapping, 0);
  WEIR_BUG_ON(mapping.nrpages != 0 || !mapping.i_mmap.empty());
  // Without pages nobody can make it dirty again, so the flusher, once rid of it, stays so.
  if (writeback_.flusher() != nullptr) writeback_.flusher()->forget_inode(inode);
  {
    ScopedLock guard(mapping.tree_lock);
    filemap_.destroy_tree(mapping);
  }
  inode_sb_list_del(inode);
  slab_.destroy(*inode_cache_, &inode);
}

Result<File*> FilemapIo::alloc_file(Inode& inode, FileOperations& f_op, VmOps& vm_ops) {
  File* file = slab_.create<File>(*file_cache_, GFP_KERNEL);
  if (file == nullptr) return Errno::nomem;
  inode.i_count.fetch_add(1, std::memory_order_relaxed);
  file->f_inode = &inode;
  file->f_op = &f_op;
  file->f_vm_ops = &vm_ops;
  return file;
}

void FilemapIo::free_file(File& file) { slab_.destroy(*file_cache_, &file); }

Result<File*> FilemapIo::open(Inode& inode) {
  File* file = WEIR_TRY(alloc_file(inode, *this, *this));
  file->release = [](void* self, File& f) { static_cast<FilemapIo*>(self)->fput_final(f); };
  file->owner = this;
  file->f_wb_err.store(inode.i_data.wb_err_seq.load(std::memory_order_acquire), std::memory_order_relaxed);
  return file;
}

void FilemapIo::fput_final(File& file) {
  Inode& inode = *file.f_inode;
  free_file(file);
  iput(inode);
}

Page* FilemapIo::find_page(Inode& inode, uint64_t index) {
  Page* page = filemap_.find_get_page(inode.i_data, index);
  WEIR_STATE(page_cache_find, inode.ino, index, page != nullptr ? filemap_.pages().mem().pfn(page).v + 1 : 0);
  return page;
}

// ---- Reading -------------------------------------------------------------------------------------------------------

void FilemapIo::make_zero(Page& page) {
  mmu_.clear_user_highpage(page);
  page.set(PageFlag::uptodate);
}

Result<void> FilemapIo::readpage(AddressSpace& mapping, Page& page) {
  WEIR_FLOW(filemap_.pages().mem().pfn(page), page.index);
  Inode& inode = *mapping.host;
  // No page becomes valid without its lock, which we have.
  if (page.index >= inode.valid_pages.load(std::memory_order_acquire)) {
    make_zero(page);
    filemap_.unlock_page(page);
    return {};
  }
  WEIR_STATE(page_cache_read, inode.ino, page.index, filemap_.pages().mem().pfn(page));
  if (inode.block_size != 0) {
    const Result<void> started = buffers_.block_read_full_page(page);
    if (!started) filemap_.unlock_page(page);
    return started;
  }
  lockdep_release_any(&page, LockRank::page);  // the read's now
  io_.submit_page(*inode.bdev, BioOp::read, (inode.first_page + page.index) * SECTORS_PER_PAGE, page, &end_read, this);
  return {};
}

void FilemapIo::readpages(AddressSpace& mapping, Page* const* pages, unsigned n, Waits waits) {
  Inode& inode = *mapping.host;
  const uint64_t valid = inode.valid_pages.load(std::memory_order_acquire);
  PageIo::ReadList list;
  for (unsigned i = 0; i < n; ++i) {
    Page& page = *pages[i];
    if (inode.block_size != 0 || page.index >= valid || !inode.bdev->batches()) {
      (void)readpage(mapping, page);
      continue;
    }
    WEIR_STATE(page_cache_read, inode.ino, page.index, filemap_.pages().mem().pfn(page));
    io_.add_page(list, *inode.bdev, (inode.first_page + page.index) * SECTORS_PER_PAGE, page, &end_read, this);
  }
  PageIo::submit(list, waits);
}

void FilemapIo::end_read(Page& page, Errno error, void* self) {
  auto& files = *static_cast<FilemapIo*>(self);
  if (error == Errno::ok) {
    // Behind the end of the file a mapping must see zeros, not what the device has there.
    const Inode& inode = *Filemap::file_mapping(page)->host;
    const uint64_t size = inode.i_size.load(std::memory_order_acquire);
    if (page.index == size >> PAGE_SHIFT && size % PAGE_SIZE != 0)
      zero_page_tail(files.mmu_, page, static_cast<uint32_t>(size % PAGE_SIZE));
    page.set(PageFlag::uptodate);
  } else {
    page.clear(PageFlag::uptodate);
    page.set(PageFlag::error);
  }
  files.filemap_.unlock_page(page);
}

/// One page into the cache, and its read started.
Result<void> FilemapIo::page_cache_read(AddressSpace& mapping, uint64_t index, gfp_t gfp) {
  WEIR_FLOW(index);
  Page* page = filemap_.pages().alloc_page(gfp);
  if (page == nullptr) return Errno::nomem;
  Result<void> done = filemap_.add_to_page_cache_lru(*page, mapping, index, gfp);
  if (done && mapping.host->bdev->batches()) {
    Page* const only[] = {page};
    mapping.a_ops->readpages(mapping, only, 1, Waits::yes);
  } else if (done) {
    done = mapping.a_ops->readpage(mapping, *page);
  } else if (done.error() == Errno::exist) {
    done = {};  // somebody else was faster
  }
  filemap_.lru().put_page(*page);
  return done;
}

/// Page in the tree, referenced, seen not uptodate. True: now it is. False: it has left the tree, look again. Errors:
/// EIO, EINTR.
Result<bool> FilemapIo::wait_for_read(Inode& inode, Page& page) {
  if (!filemap_.wait_on_page_locked_killable(page)) return Errno::intr;
  if (page.test(PageFlag::uptodate)) return true;
  // Nobody reads it, or the read failed. One more try is ours, under the lock.
  if (!filemap_.lock_page_killable(page)) return Errno::intr;
  if (Filemap::file_mapping(page) != &inode.i_data) {
    filemap_.unlock_page(page);
    return false;
  }
  if (page.test(PageFlag::uptodate)) {
    filemap_.unlock_page(page);
    return true;
  }
  page.clear(PageFlag::error);
  WEIR_TRY_VOID(readpage(inode.i_data, page));
  if (!filemap_.wait_on_page_locked_killable(page)) return Errno::intr;
  if (page.test(PageFlag::uptodate)) return true;
  if (Filemap::file_mapping(page) != &inode.i_data) return false;
  return Errno::io;
}

/// The page at `index`, referenced and uptodate; null behind the end of the file. `wanted`: pages from there on that
/// the request asks for. `next`: readahead's, 0 at the request's beginning. Errors: EIO, ENOMEM, EINTR.
Result<Page*> FilemapIo::read_cache_page(File& file, uint64_t index, uint64_t wanted, uint64_t& next) {
  Inode& inode = *file.f_inode;
  AddressSpace& mapping = inode.i_data;
  for (;;) {
    if (fatal_signal_pending()) return Errno::intr;
    if (index >= i_size_pages(inode)) return nullptr;
    readahead_.request_reaches(mapping, file, index, wanted, next);
    Page* page = find_page(inode, index);
    if (page == nullptr) {
      readahead_.page_missing(mapping, file, index, wanted);
      page = filemap_.find_get_page(mapping, index);
      if (page == nullptr) {  // no readahead, or no memory for it: this one page is needed
        WEIR_TRY_VOID(page_cache_read(mapping, index, mapping.gfp_mask));
        continue;
      }
    }
    if (readahead_.due(*page)) readahead_.page_found(mapping, file, *page, index, wanted);
    if (!page->test(PageFlag::uptodate)) {
      Result<bool> there = wait_for_read(inode, *page);
      if (!there || !*there) {
        filemap_.lru().put_page(*page);
        if (!there) return there.error();
        continue;
      }
    }
    WEIR_STATE(page_cache_return, inode.ino, index, filemap_.pages().mem().pfn(page));
    return page;
  }
}

Result<uint64_t> FilemapIo::generic_file_buffered_read(File& file, uint64_t pos, std::byte* to, uint64_t bytes) {
  WEIR_FLOW(pos, bytes);
  Inode& inode = *file.f_inode;
  uint64_t done = 0, next = 0;
  while (done < bytes) {
    world().cond_resched();
    const uint64_t at = pos + done, index = at >> PAGE_SHIFT;
    const auto offset = static_cast<uint32_t>(at % PAGE_SIZE);
    const uint64_t wanted = ((pos + bytes + PAGE_SIZE - 1) >> PAGE_SHIFT) - index;
    Result<Page*> got = read_cache_page(file, index, wanted, next);
    if (!got) {
      if (done > 0) break;
      return got.error();
    }
    Page* page = *got;
    // The size is looked at after the page is uptodate: a page behind the end that was read as zero must not be
    // returned as the file's when the file grows now.
    const uint64_t size = inode.i_size.load(std::memory_order_acquire);
    if (page == nullptr || at >= size) {
      if (page != nullptr) filemap_.lru().put_page(*page);
      break;
    }
    const uint64_t n = std::min({bytes - done, PAGE_SIZE - offset, size - at});
    // Reading on in the same page is one access.
    if (file.prev_index != index || file.prev_offset != offset) filemap_.lru().mark_page_accessed(*page);
    file.prev_index = index;
    if (to != nullptr) copy_from_page(mmu_, *page, offset, to + done, n);
    filemap_.lru().put_page(*page);
    done += n;
    file.prev_offset = offset + static_cast<uint32_t>(n);
  }
  return done;
}

Result<uint64_t> FilemapIo::generic_file_read_iter(File& file, uint64_t pos, std::byte* to, uint64_t bytes) {
  WEIR_FLOW(pos, bytes);
  WEIR_STATE(file_request, file.f_inode->ino, FileRequest::read, pos >> PAGE_SHIFT);
  return generic_file_buffered_read(file, pos, to, bytes);
}

Result<uint64_t> FilemapIo::read(File& file, uint64_t pos, std::byte* to, uint64_t bytes) {
  WEIR_STATE(user_request, pos, 3, bytes);
  return generic_file_read_iter(file, pos, to, bytes);
}

Result<uint64_t> FilemapIo::read_tag(File& file, uint64_t index) {
  WEIR_STATE(user_request, index << PAGE_SHIFT, 3, PAGE_SIZE);
  WEIR_STATE(file_request, file.f_inode->ino, FileRequest::read, index);
  uint64_t next = 0;
  Page* page = WEIR_TRY(read_cache_page(file, index, 1, next));
  if (page == nullptr) return Errno::noent;
  filemap_.lru().mark_page_accessed(*page);
  file.prev_index = index;
  file.prev_offset = PAGE_SIZE;
  const uint64_t tag = tag_of_page(mmu_, *page);
  filemap_.lru().put_page(*page);
  return tag;
}

// ---- Faults --------------------------------------------------------------------------------------------------------

void FilemapIo::do_sync_mmap_readahead(uint64_t vm_flags, File& file, uint64_t index) {
  WEIR_FLOW(index);
  mmap_readahead(vm_flags, file, index);
}

void FilemapIo::mmap_readahead(uint64_t vm_flags, File& file, uint64_t index) {
  if ((vm_flags & VM_RAND_READ) != 0 || file.ra_pages == 0) return;
  AddressSpace& mapping = file.f_inode->i_data;
  if ((vm_flags & VM_SEQ_READ) != 0) {
    readahead_.page_missing(mapping, file, index, file.ra_pages);
    return;
  }
  if (file.mmap_miss < MMAP_LOTSAMISS * 10) ++file.mmap_miss;
  if (file.mmap_miss > MMAP_LOTSAMISS) return;
  // Faults of a program tend to lie close together, in both directions: read around.
  readahead_.read_around(mapping, file, index);
}

void FilemapIo::do_async_mmap_readahead(uint64_t vm_flags, File& file, Page& page, uint64_t index) {
  if ((vm_flags & VM_RAND_READ) != 0) return;
  if (file.mmap_miss > 0) --file.mmap_miss;
  if (!readahead_.due(page)) return;
  WEIR_FLOW(index);
  readahead_.page_found(file.f_inode->i_data, file, page, index, file.ra_pages);
}

void FilemapIo::force_page_cache_readahead(Inode& inode, uint64_t start, uint64_t end) {
  WEIR_FLOW(start, end);
  constexpr uint64_t CHUNK = (2 << 20) >> PAGE_SHIFT;  // Linux's: so that not all of it is locked at once
  const auto sane =
      static_cast<uint64_t>(filemap_.pages().nr_free_pages().v + vmstat_.node_page_state(NodeStat::nr_inactive_file)) /
      2;
  if (end - start >= sane) end = start + sane;
  for (uint64_t at = start; at <= end; at += CHUNK) {
    if (fatal_signal_pending()) return;
    readahead_.__do_page_cache_readahead(inode.i_data, at, std::min(end - at + 1, CHUNK), 0);
    world().cond_resched();
  }
}

/// False: the page is not ours, and mmap_sem is no longer held.
bool FilemapIo::lock_page_or_retry(Page& page, Mm& mm, uint32_t flags) {
  if (filemap_.trylock_page(page)) return true;
  if ((flags & FAULT_FLAG_ALLOW_RETRY) != 0) {
    // Others may change the address space while the disk turns.
    mm.mmap_sem.up_read();
    (void)filemap_.wait_on_page_locked_killable(page);
    return false;
  }
  filemap_.lock_page(page);
  return true;
}

uint32_t FilemapIo::filemap_fault(FaultRequest& request) {
  WEIR_FLOW(request.address, request.pgoff);
  const VmArea& vma = *request.vma;
  File& file = *vma.vm_file;
  Inode& inode = *file.f_inode;
  AddressSpace& mapping = inode.i_data;
  const uint64_t index = request.pgoff;
  WEIR_STATE(file_request, inode.ino, FileRequest::fault, index);
  if (index >= i_size_pages(inode)) return VM_FAULT_SIGBUS;
  // A store into the page may come without another fault, so what lies before it must be valid by then.
  constexpr uint64_t MAY_BE_STORED_TO = VM_SHARED | VM_MAYWRITE;
  if ((vma.vm_flags & MAY_BE_STORED_TO) == MAY_BE_STORED_TO) {
    if (const Result<void> valid = make_valid(inode, index + 1); !valid) {
      return valid.error() == Errno::nomem  ? VM_FAULT_OOM
             : valid.error() == Errno::intr ? VM_FAULT_KILLED
                                            : VM_FAULT_SIGBUS;
    }
  }

  uint32_t result = 0;
  if ((vma.vm_flags & VM_SEQ_READ) != 0 && (request.flags & FAULT_FLAG_TRIED) == 0) {
    uint64_t next = 0;
    readahead_.request_reaches(mapping, file, index, 1, next);
  }
  Page* page = find_page(inode, index);
  if (page != nullptr) {
    if ((request.flags & FAULT_FLAG_TRIED) == 0) do_async_mmap_readahead(vma.vm_flags, file, *page, index);
  } else {
    vmstat_.count_vm_event(VmEvent::pgmajfault);
    result = VM_FAULT_MAJOR;
    if (inode.bdev->foreign() && (request.flags & FAULT_FLAG_ALLOW_RETRY) != 0)
      return result | read_without_mmap_sem(vma, index);
    (this->*mmap_missed_)(vma.vm_flags, file, index);
    page = filemap_.find_get_page(mapping, index);
  }
  for (;; page = filemap_.find_get_page(mapping, index)) {
    if (page == nullptr) {
      if (const Result<void> reading = page_cache_read(mapping, index, mapping.gfp_mask); !reading)
        return reading.error() == Errno::nomem ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
      continue;
    }
    if (!lock_page_or_retry(*page, *vma.vm_mm, request.flags)) {
      filemap_.lru().put_page(*page);
      return result | VM_FAULT_RETRY;
    }
    if (Filemap::file_mapping(*page) != &mapping) {
      filemap_.unlock_page(*page);
      filemap_.lru().put_page(*page);
      continue;
    }
    if (!page->test(PageFlag::uptodate)) {
      // Its read failed: once more, for us.
      page->clear(PageFlag::error);
      const Result<void> reading = readpage(mapping, *page);
      filemap_.wait_on_page_locked(*page);
      const bool good = reading.ok() && page->test(PageFlag::uptodate);
      filemap_.lru().put_page(*page);
      if (!good) return VM_FAULT_SIGBUS;
      continue;
    }
    break;
  }
  if (index >= i_size_pages(inode)) {  // truncated since: under the lock this holds until the page is mapped
    filemap_.unlock_page(*page);
    filemap_.lru().put_page(*page);
    return VM_FAULT_SIGBUS;
  }
  WEIR_STATE(page_cache_return, inode.ino, index, filemap_.pages().mem().pfn(page));
  request.page = page;
  return result | VM_FAULT_LOCKED;
}

/// The read is this thread's own: others may change the address space meanwhile. RETRY; what fails fails again, and is
/// told then.
uint32_t FilemapIo::read_without_mmap_sem(const VmArea& vma, uint64_t index) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  File& file = *vma.vm_file;
  Mm& mm = *vma.vm_mm;
  const uint64_t vm_flags = vma.vm_flags;
  AddressSpace& mapping = file.f_inode->i_data;
  get_file(file);
  mm.mmap_sem.up_read();
  (this->*mmap_missed_)(vm_flags, file, index);
  Page* page = filemap_.find_get_page(mapping, index);
  if (page == nullptr) {
    (void)page_cache_read(mapping, index, mapping.gfp_mask);
  } else {
    (void)filemap_.wait_on_page_locked_killable(*page);
    filemap_.lru().put_page(*page);
  }
  fput(file);
  return VM_FAULT_RETRY;
}

uint32_t FilemapIo::filemap_page_mkwrite(FaultRequest& request) {
  WEIR_FLOW(request.address, request.pgoff);
  Page& page = *request.page;
  if (Filemap::file_mapping(page) != &request.vma->vm_file->f_inode->i_data) return VM_FAULT_NOPAGE;  // truncated
  set_page_dirty(page);
  filemap_.wait_on_page_writeback(page);
  return 0;
}

void FilemapIo::balance_dirty(File& file) { writeback_.balance_dirty_pages_ratelimited(file.f_inode->i_data); }

}  // namespace weir
