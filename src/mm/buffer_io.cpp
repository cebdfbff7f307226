// src/mm/buffer_io.cpp: buffers locked, read and written, one by one or all of a page. See buffer.hpp
#include "mm/buffer.hpp"
#include "mm/page_content.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "buffer.cpp"

namespace weir {

// ---- The lock -------------------------------------------------------------------------------------------------------

/// By frame number, as those of pages.
WaitQueue& Buffers::waitqueue(const BufferHead& bh) {
  return waitqueues_.of(reinterpret_cast<const void*>((mem().pfn(bh.b_page).v << 3 | bh.b_offset / 512) + 1));
}

bool Buffers::try_lock_buffer(BufferHead& bh) { return !set(bh, BufferFlag::lock); }

void Buffers::lock_buffer(BufferHead& bh) {
  might_sleep();
  if (!try_lock_buffer(bh)) waitqueue(bh).wait([&] { return try_lock_buffer(bh); }, &bh);
  if (World* w = engine_thread().world) w->preempt_point();
}

void Buffers::unlock_buffer(BufferHead& bh) {
  // A locker queues before it tries the bit for the last time, by an atomic that this one orders with. Once the bit is
  // off the buffer may be gone.
  WaitQueue& queue = waitqueue(bh);
  const bool was = clear(bh, BufferFlag::lock);
  WEIR_DEBUG_BUG_ON(!was);
  (void)was;
  if (!queue.empty()) queue.wake_all(&bh);
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "buffer_head.h"
void Buffers::wait_on_buffer(BufferHead& bh) {
  WEIR_FLOW(bh);
  might_sleep();
  waitqueue(bh).wait(
      [&] { return (bh.b_state.fetch_or(0, std::memory_order_acq_rel) & BufferHead::bit(BufferFlag::lock)) == 0; },
      &bh);
}
#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "buffer.cpp"

// ---- Content --------------------------------------------------------------------------------------------------------

uint64_t Buffers::word_of(const BufferHead& bh) {
  uint64_t word = 0;
  copy_from_page(mmu_, *bh.b_page, bh.b_offset, reinterpret_cast<std::byte*>(&word), sizeof word);
  return word;
}

void Buffers::fill_with_word(BufferHead& bh, uint64_t word) {
  lock_buffer(bh);
  copy_to_page(mmu_, *bh.b_page, bh.b_offset, bh.b_size, {.tag = &word}, 0);
  set(bh, BufferFlag::uptodate);
  unlock_buffer(bh);
}

// ---- One buffer -----------------------------------------------------------------------------------------------------

void Buffers::submit_bh(BioOp op, BufferHead& bh) {
  WEIR_FLOW(op, bh);
  WEIR_DEBUG_BUG_ON(!bh.test(BufferFlag::lock) || !bh.test(BufferFlag::mapped));
  PageBio& bio = bios_.bio_alloc();
  bio.io = this;
  bio.page = bh.b_page;
  bio.owner = &bh;
  bio.bio.op = op;
  bio.bio.sector = bh.b_blocknr * (bh.b_size / SECTOR_SIZE);
  bio.bio.bytes = bh.b_size;
  bio.bio.content = mmu_.kmap(*bh.b_page);
  if (!bio.bio.content.tagged()) bio.bio.content.bytes += bh.b_offset;
  bio.bio.end_io = end_bio_bh_io_sync;
  bio.bio.owner = &bio;
  vmstat_.count_vm_events(op == BioOp::read ? VmEvent::pgpgin : VmEvent::pgpgout, bh.b_size / SECTOR_SIZE);
  bh.b_bdev->submit_bio(bio.bio);
}

void Buffers::end_bio_bh_io_sync(Bio& bio) {
  PageBio& mine = *static_cast<PageBio*>(bio.owner);
  auto& self = *static_cast<Buffers*>(mine.io);
  auto& bh = *static_cast<BufferHead*>(mine.owner);
  const Errno status = bio.status;
  WEIR_FLOW(bh, status);
  WEIR_STATE(io_done, bio.sector, self.mem().pfn(bh.b_page), status);
  self.mmu_.kunmap(*bh.b_page);
  self.bios_.bio_put(mine);
  bh.b_end_io(bh, status, self);
}

void Buffers::end_buffer_read_sync(BufferHead& bh, Errno status, Buffers& self) {
  WEIR_FLOW(bh, status);
  if (status == Errno::ok)
    self.set(bh, BufferFlag::uptodate);
  else
    self.clear(bh, BufferFlag::uptodate);
  self.unlock_buffer(bh);
  brelse(bh);
}

void Buffers::end_buffer_write_sync(BufferHead& bh, Errno status, Buffers& self) {
  WEIR_FLOW(bh, status);
  bh.b_error = status;
  self.unlock_buffer(bh);
  brelse(bh);
}

/// Not uptodate, with the caller's reference, which goes if it cannot be read.
Result<BufferHead*> Buffers::__bread_slow(BufferHead& bh) {
  WEIR_FLOW(bh);
  lock_buffer(bh);
  if (bh.test(BufferFlag::uptodate)) {
    unlock_buffer(bh);
    return &bh;
  }
  bh.b_count.fetch_add(1, std::memory_order_acq_rel);
  bh.b_end_io = end_buffer_read_sync;
  submit_bh(BioOp::read, bh);
  wait_on_buffer(bh);
  if (bh.test(BufferFlag::uptodate)) return &bh;
  brelse(bh);
  return Errno::io;
}

void Buffers::mark_buffer_dirty(BufferHead& bh) {
  WEIR_FLOW(bh);
  WEIR_DEBUG_BUG_ON(!bh.test(BufferFlag::uptodate));
  if (set(bh, BufferFlag::dirty)) return;
  Page& page = *bh.b_page;
  if (AddressSpace* mapping = Filemap::file_mapping(page)) (void)writeback_.__set_page_dirty_nobuffers(page, *mapping);
  // It has left the cache with its buffers: nobody counts it.
  if (Filemap::file_mapping(page) == nullptr) page.set(PageFlag::dirty);
}

Result<void> Buffers::sync_dirty_buffer(BufferHead& bh) {
  WEIR_FLOW(bh);
  lock_buffer(bh);
  if (!clear(bh, BufferFlag::dirty)) {
    unlock_buffer(bh);
    return {};
  }
  bh.b_count.fetch_add(1, std::memory_order_acq_rel);
  bh.b_end_io = end_buffer_write_sync;
  submit_bh(BioOp::write, bh);
  wait_on_buffer(bh);
  if (bh.b_error == Errno::ok) return {};
  const Errno error = bh.b_error;
  // Kept for the flusher, if it finds the page.
  if (Filemap::file_mapping(*bh.b_page) != nullptr) mark_buffer_dirty(bh);
  return error;
}

// ---- All buffers of a page ------------------------------------------------------------------------------------------

bool Buffers::__set_page_dirty_buffers(Page& page) {
  AddressSpace* mapping = Filemap::file_mapping(page);
  if (mapping == nullptr) return false;
  WEIR_FLOW(mem().pfn(page));
  const auto each = [&](bool dirty) {
    ScopedLock guard(private_lock_);
    if (!page.test(PageFlag::private_)) return;
    BufferHead* bh = page_buffers(page);
    do {
      if (dirty)
        set(*bh, BufferFlag::dirty);
      else
        clear(*bh, BufferFlag::dirty);
      bh = bh->b_this_page;
    } while (bh != page_buffers(page));
  };
  each(true);
  const bool was_clean = writeback_.__set_page_dirty_nobuffers(page, *mapping);
  // Truncated meanwhile: whoever did it may have found them dirty only after it gave them up.
  if (Filemap::file_mapping(page) == nullptr) each(false);
  return was_clean;
}

/// Of the buffers of a page that were submitted together this one has ended. True: the last; `met` is what became of
/// all.
bool Buffers::last_of_page(BufferHead& bh, BufferFlag flag, Errno status, Errno& met) {
  ScopedLock guard(end_lock_);
  BufferHead* head = page_buffers(*bh.b_page);
  if (status != Errno::ok) head->b_error = status;
  clear(bh, flag);
  for (BufferHead* other = bh.b_this_page; other != &bh; other = other->b_this_page)
    if (other->test(flag)) return false;
  met = head->b_error;
  return true;
}

void Buffers::end_buffer_async_read(BufferHead& bh, Errno status, Buffers& self) {
  WEIR_FLOW(bh, status);
  Page& page = *bh.b_page;
  if (status == Errno::ok) self.set(bh, BufferFlag::uptodate);
  self.unlock_buffer(bh);
  if (Errno met; self.last_of_page(bh, BufferFlag::async_read, status, met)) self.read_end_(page, met, self.read_arg_);
}

Result<void> Buffers::block_read_full_page(Page& page) {
  WEIR_FLOW(mem().pfn(page), page.index);
  const Inode& inode = *Filemap::file_mapping(page)->host;
  if (!page.test(PageFlag::private_) && !create_empty_buffers(page, inode.block_size, 0)) return Errno::nomem;
  BufferHead* head = page_buffers(page);
  BufferHead* to_read[MAX_BUF_PER_PAGE];
  unsigned n = 0;
  BufferHead* bh = head;
  do {
    if (!bh->test(BufferFlag::uptodate)) {
      map_buffer(inode, page, *bh);
      to_read[n++] = bh;
    }
    bh = bh->b_this_page;
  } while (bh != head);
  head->b_error = Errno::ok;
  if (n == 0) {
    read_end_(page, Errno::ok, read_arg_);
    return {};
  }
  for (unsigned i = 0; i < n; ++i) {
    lock_buffer(*to_read[i]);
    set(*to_read[i], BufferFlag::async_read);
    to_read[i]->b_end_io = end_buffer_async_read;
  }
  lockdep_release_any(&page, LockRank::page);  // the reads' now
  for (unsigned i = 0; i < n; ++i) submit_bh(BioOp::read, *to_read[i]);
  return {};
}

void Buffers::end_buffer_async_write(BufferHead& bh, Errno status, Buffers& self) {
  WEIR_FLOW(bh, status);
  Page& page = *bh.b_page;
  // As pages without buffers: what could not be written stays, dirty.
  if (status != Errno::ok) self.set(bh, BufferFlag::dirty);
  self.unlock_buffer(bh);
  Errno met;
  if (!self.last_of_page(bh, BufferFlag::async_write, status, met)) return;
  if (met != Errno::ok) {
    AddressSpace& mapping = *Filemap::file_mapping(page);
    page.set(PageFlag::error);
    mapping_set_error(mapping, met);
    (void)self.writeback_.__set_page_dirty_nobuffers(page, mapping);
  }
  self.filemap_.end_page_writeback(page);
}

Result<void> Buffers::block_write_full_page(Page& page, WritebackControl& wbc) {
  WEIR_FLOW(mem().pfn(page), page.index);
  const Inode& inode = *Filemap::file_mapping(page)->host;
  constexpr uint32_t NEW = BufferHead::bit(BufferFlag::dirty) | BufferHead::bit(BufferFlag::uptodate);
  if (!page.test(PageFlag::private_) && !create_empty_buffers(page, inode.block_size, NEW)) {
    writeback_.redirty_page_for_writepage(wbc, page);
    filemap_.unlock_page(page);
    return Errno::nomem;
  }
  BufferHead* head = page_buffers(page);
  BufferHead* to_write[MAX_BUF_PER_PAGE];
  unsigned n = 0;
  BufferHead* bh = head;
  do {
    if (bh->test(BufferFlag::dirty)) {
      lock_buffer(*bh);
      if (clear(*bh, BufferFlag::dirty)) {
        map_buffer(inode, page, *bh);
        set(*bh, BufferFlag::async_write);
        bh->b_end_io = end_buffer_async_write;
        to_write[n++] = bh;
      } else {
        unlock_buffer(*bh);  // its user wrote it meanwhile
      }
    }
    bh = bh->b_this_page;
  } while (bh != head);
  head->b_error = Errno::ok;
  filemap_.set_page_writeback(page);
  filemap_.unlock_page(page);
  for (unsigned i = 0; i < n; ++i) submit_bh(BioOp::write, *to_write[i]);
  // All were clean: they had been written one by one.
  if (n == 0) filemap_.end_page_writeback(page);
  return {};
}

}  // namespace weir
