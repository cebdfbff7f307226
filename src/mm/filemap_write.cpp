// src/mm/filemap_write.cpp: files written and truncated, and their pages on the way to the device. See filemap_io.hpp
#include <algorithm>

#include "mm/filemap_io.hpp"

namespace weir {

// ---- Writing -------------------------------------------------------------------------------------------------------

bool FilemapIo::set_page_dirty(Page& page) {
  AddressSpace* mapping = Filemap::file_mapping(page);
  if (mapping == nullptr) return false;
  // What it said (a readahead marker, or "free me after this write") is no longer so.
  if (page.test(PageFlag::reclaim)) page.clear(PageFlag::reclaim);
  return mapping->host->block_size != 0 ? buffers_.__set_page_dirty_buffers(page)
                                        : writeback_.__set_page_dirty_nobuffers(page, *mapping);
}

/// The page at `index`, locked, referenced, not under writeback; perhaps new. Errors: ENOMEM.
Result<Page*> FilemapIo::grab_cache_page_write_begin(AddressSpace& mapping, uint64_t index) {
  WEIR_FLOW(index);
  for (;;) {
    Page* page = filemap_.find_lock_page(mapping, index);
    WEIR_STATE(page_cache_find, mapping.host->ino, index, page != nullptr ? filemap_.pages().mem().pfn(page).v + 1 : 0);
    if (page == nullptr) {
      const gfp_t gfp = mapping.gfp_mask | __GFP_WRITE;
      page = filemap_.pages().alloc_page(gfp);
      if (page == nullptr) return Errno::nomem;
      const Result<void> added = filemap_.add_to_page_cache_lru(*page, mapping, index, gfp);
      if (!added) {
        filemap_.lru().put_page(*page);
        if (added.error() == Errno::exist) continue;
        return added.error();
      }
    }
    // Stable pages: a device must not see a page change while it writes it.
    filemap_.wait_on_page_writeback(*page);
    return page;
  }
}

/// The same, uptodate where [offset, offset + bytes) leaves something of it. Errors: EIO, ENOMEM.
Result<Page*> FilemapIo::write_begin(Inode& inode, uint64_t index, uint32_t offset, uint64_t bytes) {
  AddressSpace& mapping = inode.i_data;
  for (;;) {
    Page* page = WEIR_TRY(grab_cache_page_write_begin(mapping, index));
    if (page->test(PageFlag::uptodate) || (offset == 0 && bytes == PAGE_SIZE)) return page;
    if (index >= inode.valid_pages.load(std::memory_order_acquire)) {
      make_zero(*page);
      return page;
    }
    page->clear(PageFlag::error);
    const Result<void> started = readpage(mapping, *page);
    if (started) {
      filemap_.lock_page(*page);
      const bool there = Filemap::file_mapping(*page) == &mapping;
      if (there && page->test(PageFlag::uptodate)) {
        filemap_.wait_on_page_writeback(*page);
        return page;
      }
      filemap_.unlock_page(*page);
      filemap_.lru().put_page(*page);
      if (there) return Errno::io;
      continue;  // reclaimed between its read and our lock
    }
    filemap_.lru().put_page(*page);
    return started.error();
  }
}

/// Page locked: valid_pages is at least `pages`, of which this is the last.
static void advance_valid_pages(Inode& inode, uint64_t pages) {
  uint64_t now = inode.valid_pages.load(std::memory_order_relaxed);
  while (now < pages && !inode.valid_pages.compare_exchange_weak(now, pages, std::memory_order_acq_rel)) {
  }
}

/// Pages below `pages` (and below the end of the file) are valid: what was not is zero now, and dirty.
Result<void> FilemapIo::make_valid(Inode& inode, uint64_t pages) {
  for (;;) {
    const uint64_t index = inode.valid_pages.load(std::memory_order_acquire);
    if (index >= pages) return {};
    if (fatal_signal_pending()) return Errno::intr;
    Page* page = WEIR_TRY(write_begin(inode, index, 0, 1));
    const bool inside = index < i_size_pages(inode);  // looked at under the lock: truncation waits for us, or we see it
    if (inside) {
      set_page_dirty(*page);
      advance_valid_pages(inode, index + 1);
    }
    filemap_.unlock_page(*page);
    filemap_.lru().put_page(*page);
    if (!inside) return {};
    writeback_.balance_dirty_pages_ratelimited(inode.i_data);
  }
}

/// Bytes [from, to) become zero, also for who has them mapped. Inode::rwsem held.
Result<void> FilemapIo::zero_range(Inode& inode, uint64_t from, uint64_t to) {
  while (from < to) {
    if (fatal_signal_pending()) return Errno::intr;
    const uint64_t index = from >> PAGE_SHIFT;
    if (index >= inode.valid_pages.load(std::memory_order_acquire)) return {};  // it is zero already
    const auto offset = static_cast<uint32_t>(from % PAGE_SIZE);
    const uint64_t n = std::min(to - from, PAGE_SIZE - offset);
    Page* page = WEIR_TRY(write_begin(inode, index, offset, n));
    zero_page_range(mmu_, *page, offset, n);
    page->set(PageFlag::uptodate);
    set_page_dirty(*page);
    filemap_.unlock_page(*page);
    filemap_.lru().put_page(*page);
    writeback_.balance_dirty_pages_ratelimited(inode.i_data);
    from += n;
  }
  return {};
}

/// The file is about to grow: what lies behind its end in its last page becomes zero. Inode::rwsem held.
Result<void> FilemapIo::zero_tail_of_last_page(Inode& inode) {
  const uint64_t size = inode.i_size.load(std::memory_order_acquire);
  return zero_range(inode, size, page_align_up(size));
}

Result<uint64_t> FilemapIo::generic_perform_write(Inode& inode, uint64_t pos, const PageSource& source,
                                                  uint64_t bytes) {
  WEIR_FLOW(pos, bytes);
  uint64_t done = 0;
  Errno error = Errno::ok;
  while (done < bytes && error == Errno::ok) {
    if (fatal_signal_pending()) {
      error = Errno::intr;
      break;
    }
    const uint64_t at = pos + done, index = at >> PAGE_SHIFT;
    const auto offset = static_cast<uint32_t>(at % PAGE_SIZE);
    const uint64_t n = std::min(bytes - done, PAGE_SIZE - offset);
    Result<Page*> got = write_begin(inode, index, offset, n);
    if (!got) {
      error = got.error();
      break;
    }
    Page& page = **got;
    WEIR_STATE(page_cache_return, inode.ino, index, filemap_.pages().mem().pfn(page));
    copy_to_page(mmu_, page, offset, n, source, done);
    page.set(PageFlag::uptodate);
    set_page_dirty(page);
    advance_valid_pages(inode, index + 1);
    // With the page locked, so that whoever reads it for the first time after the size grew finds these bytes.
    if (at + n > inode.i_size.load(std::memory_order_relaxed)) inode.i_size.store(at + n, std::memory_order_release);
    filemap_.unlock_page(page);
    filemap_.lru().put_page(page);
    done += n;
    world().cond_resched();
    writeback_.balance_dirty_pages_ratelimited(inode.i_data);
  }
  if (done > 0) return done;
  if (error != Errno::ok) return error;
  return uint64_t{0};
}

Result<uint64_t> FilemapIo::generic_file_write_iter(File& file, uint64_t pos, const PageSource& source,
                                                    uint64_t bytes) {
  WEIR_FLOW(pos, bytes);
  Inode& inode = *file.f_inode;
  WEIR_STATE(file_request, inode.ino, FileRequest::write, pos >> PAGE_SHIFT);
  const uint64_t limit = inode.max_pages << PAGE_SHIFT;
  if (bytes == 0) return uint64_t{0};
  if (pos >= limit) return Errno::fbig;
  ScopedLock guard(inode.rwsem);
  const uint64_t old_size = inode.i_size.load(std::memory_order_acquire);
  Result<void> ready;
  if (pos > old_size) {
    WEIR_TRY_VOID(zero_tail_of_last_page(inode));
    // Up to where this write begins the file is zero. The size grows first: pages are made valid inside the file only.
    inode.i_size.store(pos, std::memory_order_release);
  }
  ready = make_valid(inode, pos >> PAGE_SHIFT);
  Result<uint64_t> written =
      ready ? generic_perform_write(inode, pos, source, std::min(bytes, limit - pos)) : ready.error();
  if (!written && pos > old_size) truncate_.truncate_setsize(inode, old_size);
  return written;
}

Result<uint64_t> FilemapIo::write(File& file, uint64_t pos, const std::byte* from, uint64_t bytes) {
  WEIR_STATE(user_request, pos, 3, bytes);
  return generic_file_write_iter(file, pos, {.from = from}, bytes);
}

Result<void> FilemapIo::write_tag(File& file, uint64_t index, uint64_t tag) {
  WEIR_STATE(user_request, index << PAGE_SHIFT, 3, PAGE_SIZE);
  const Result<uint64_t> written = generic_file_write_iter(file, index << PAGE_SHIFT, {.tag = &tag}, PAGE_SIZE);
  if (!written) return written.error();
  return {};
}

Result<void> FilemapIo::truncate(Inode& inode, Bytes size) {
  WEIR_FLOW(inode.ino, size);
  if (size.v > inode.max_pages << PAGE_SHIFT) return Errno::fbig;
  ScopedLock guard(inode.rwsem);
  if (size.v > inode.i_size.load(std::memory_order_acquire)) WEIR_TRY_VOID(zero_tail_of_last_page(inode));
  truncate_.truncate_setsize(inode, size.v);
  return {};
}

Result<void> FilemapIo::fallocate(Inode& inode, uint32_t mode, uint64_t offset, uint64_t bytes) {
  WEIR_FLOW(inode.ino, offset, bytes);
  if (bytes == 0 || offset + bytes < offset) return Errno::inval;
  const bool keep_size = (mode & FALLOC_KEEP_SIZE) != 0;
  switch (mode & ~uint32_t{FALLOC_KEEP_SIZE}) {
    case 0:
    case FALLOC_ZERO_RANGE: break;
    case FALLOC_PUNCH_HOLE:
      if (keep_size) break;
      [[fallthrough]];
    default: return Errno::opnotsupp;
  }
  const uint64_t end = offset + bytes;
  if (!keep_size && end > inode.max_pages << PAGE_SHIFT) return Errno::fbig;
  ScopedLock guard(inode.rwsem);
  const uint64_t size = inode.i_size.load(std::memory_order_acquire);
  if ((mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE)) != 0)
    WEIR_TRY_VOID(zero_range(inode, offset, std::min(end, size)));
  if (keep_size || end <= size) return {};
  WEIR_TRY_VOID(zero_tail_of_last_page(inode));
  truncate_.truncate_setsize(inode, end);
  return {};
}

// ---- To the device -------------------------------------------------------------------------------------------------

Result<void> FilemapIo::writepage(Page& page, WritebackControl& wbc) {
  WEIR_FLOW(filemap_.pages().mem().pfn(page), page.index);
  Inode& inode = *Filemap::file_mapping(page)->host;
  if (page.index >= i_size_pages(inode)) {  // truncation has it next
    filemap_.unlock_page(page);
    return {};
  }
  if (!mmu_.captured(page)) {  // the program's stores still go there: later
    set_page_dirty(page);
    return Errno::again;
  }
  page.clear(PageFlag::error);
  if (inode.block_size != 0) return buffers_.block_write_full_page(page, wbc);
  const uint64_t sector = (inode.first_page + page.index) * SECTORS_PER_PAGE;
  filemap_.set_page_writeback(page);
  filemap_.unlock_page(page);
  io_.submit_page(*inode.bdev, BioOp::write, sector, page, &end_write, this);
  return {};
}

void FilemapIo::mapping_set_error(AddressSpace& mapping, Errno error) {
  mapping.wb_err.store(error, std::memory_order_release);
  mapping.wb_err_seq.fetch_add(1, std::memory_order_acq_rel);
  mapping.wb_flags.fetch_or(error == Errno::nospc ? AS_ENOSPC : AS_EIO, std::memory_order_acq_rel);
}

void FilemapIo::end_write(Page& page, Errno error, void* self) {
  auto& files = *static_cast<FilemapIo*>(self);
  if (error != Errno::ok) {
    page.set(PageFlag::error);
    // Nobody takes the page or the inode away before the write has ended. Dirty before that: at no moment does the page
    // look as if it could be dropped.
    AddressSpace& mapping = *Filemap::file_mapping(page);
    mapping_set_error(mapping, error);
    if (mapping.host->failed_stay_dirty || !files.writeback_.over_background_thresh()) files.set_page_dirty(page);
  }
  files.filemap_.end_page_writeback(page);
}

void FilemapIo::filemap_fdatawait_range(AddressSpace& mapping, uint64_t start, uint64_t end) {
  WEIR_FLOW(start, end);
  Page* pages[PAGEVEC_SIZE];
  while (const unsigned found =
             filemap_.find_get_pages_tag(mapping, start, end, PageTag::writeback, PAGEVEC_SIZE, pages)) {
    start = pages[found - 1]->index + 1;
    for (unsigned i = 0; i < found; ++i) filemap_.wait_on_page_writeback(*pages[i]);
    filemap_.lru().release_pages(pages, found);
    if (start == 0 || start > end) break;
  }
}

void FilemapIo::filemap_write_and_wait_range(AddressSpace& mapping, uint64_t start, uint64_t end) {
  WEIR_FLOW(start, end);
  WritebackControl wbc;
  wbc.nr_to_write = INT64_MAX;
  wbc.sync_mode = SyncMode::all;
  wbc.range_start = start;
  wbc.range_end = end;
  writeback_.write_cache_pages(mapping, wbc);
  filemap_fdatawait_range(mapping, start, end);
}

Result<void> FilemapIo::fsync(File& file) {
  WEIR_FLOW(file.f_inode->ino);
  return fsync_range(file, 0, ~uint64_t{0});
}

Result<void> FilemapIo::fsync_range(File& file, uint64_t start, uint64_t end) {
  AddressSpace& mapping = file.f_inode->i_data;
  filemap_write_and_wait_range(mapping, start, end);
  if (file.f_inode->i_sb != nullptr) WEIR_TRY_VOID(file.f_inode->i_sb->write_inode(*file.f_inode));
  return (this->*check_errors_)(file);
}

/// Has a write failed since this file last asked?
Result<void> FilemapIo::file_check_and_advance_wb_err(File& file) {
  WEIR_FLOW(file.f_inode->ino);
  AddressSpace& mapping = file.f_inode->i_data;
  const uint32_t seq = mapping.wb_err_seq.load(std::memory_order_acquire);
  if (file.f_wb_err.exchange(seq, std::memory_order_acq_rel) != seq)
    return mapping.wb_err.load(std::memory_order_acquire);
  return {};
}

/// Has a write failed since anybody last asked? In 2.6.20 a part of wait_on_page_writeback_range.
Result<void> FilemapIo::filemap_check_errors(File& file) {
  const uint32_t failed = file.f_inode->i_data.wb_flags.exchange(0, std::memory_order_acq_rel);
  if ((failed & AS_EIO) != 0) return Errno::io;
  if ((failed & AS_ENOSPC) != 0) return Errno::nospc;
  return {};
}

}  // namespace weir
