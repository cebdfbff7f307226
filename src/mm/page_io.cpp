// src/mm/page_io.cpp: pages to devices and back. See page_io.hpp
#include "mm/page_io.hpp"

namespace weir {

PageIo::PageIo(Filemap& filemap, SwapFiles& swap, BioSet& bios, VmStat& vmstat, Mmu& mmu, const Profile& profile)
    : filemap_(filemap),
      swap_(swap),
      bios_(bios),
      vmstat_(vmstat),
      mmu_(mmu),
      rw_page_(profile.rw_page),
      write_(profile.era == KernelEra::linux_2_6_20 ? &PageIo::write_to_slot : &PageIo::__swap_writepage) {}

// ---- Bios -----------------------------------------------------------------------------------------------------------

// Page locked, or under writeback: its bytes stay where kmap finds them until the end.
PageBio& PageIo::prepare(BioOp op, uint64_t sector, Page& page, void (*end_io)(Bio&), ReadList* list) {
  const BioUnplug unplug{[](void* arg) { submit(*static_cast<ReadList*>(arg)); }, list};
  PageBio& bio = bios_.bio_alloc(list != nullptr ? unplug : BioUnplug{});
  bio.io = this;
  bio.page = &page;
  bio.bio.op = op;
  bio.bio.sector = sector;
  bio.bio.content = mmu_.kmap(page);
  bio.bio.end_io = end_io;
  bio.bio.owner = &bio;
  return bio;
}

/// The bio of a swap page, aimed at its slot.
PageBio& PageIo::get_swap_bio(BioOp op, SwpEntry entry, Page& page, void (*end_io)(Bio&), ReadList* list) {
  WEIR_FLOW(entry);
  return prepare(op, swp_offset(entry) * SECTORS_PER_PAGE, page, end_io, list);
}

void PageIo::submit_bio(BlockDevice& device, PageBio& bio) {
  WEIR_FLOW(bio.bio.sector);
  vmstat_.count_vm_events(bio.bio.op == BioOp::read ? VmEvent::pgpgin : VmEvent::pgpgout, SECTORS_PER_PAGE);
  // The page lock goes with a read: its end unlocks.
  if (bio.bio.op == BioOp::read) lockdep_release_any(bio.page, LockRank::page);
  device.submit_bio(bio.bio);
}

void PageIo::submit(ReadList& list, Waits waits) {
  if (list.first == nullptr) return;
  Bio* first = list.first;
  list.first = list.last = nullptr;
  waits == Waits::yes ? list.device->submit_bios(first) : list.device->queue_bios(first);
}

/// `bio`, a read, goes to the end of the list; the page lock goes with it.
void PageIo::add_to_list(ReadList& list, BlockDevice& device, PageBio& bio) {
  vmstat_.count_vm_events(VmEvent::pgpgin, SECTORS_PER_PAGE);
  lockdep_release_any(bio.page, LockRank::page);
  bio.bio.next = nullptr;
  (list.last != nullptr ? list.last->next : list.first) = &bio.bio;
  list.last = &bio.bio;
  list.device = &device;
}

void PageIo::add_page(ReadList& list, BlockDevice& device, uint64_t sector, Page& page,
                      void (*done)(Page&, Errno, void*), void* owner) {
  PageBio& bio = prepare(BioOp::read, sector, page, end_page_bio, &list);
  bio.done = done;
  bio.owner = owner;
  add_to_list(list, device, bio);
}

void PageIo::submit_page(BlockDevice& device, BioOp op, uint64_t sector, Page& page, void (*done)(Page&, Errno, void*),
                         void* owner) {
  PageBio& bio = prepare(op, sector, page, end_page_bio);
  bio.done = done;
  bio.owner = owner;
  submit_bio(device, bio);
}

void PageIo::end_page_bio(Bio& bio) {
  PageBio& mine = *static_cast<PageBio*>(bio.owner);
  PageIo& io = *static_cast<PageIo*>(mine.io);
  Page& page = *mine.page;
  const Errno status = bio.status;
  WEIR_STATE(io_done, bio.sector, io.filemap_.pages().mem().pfn(page), status);
  io.mmu_.kunmap(page);
  void (*const done)(Page&, Errno, void*) = mine.done;
  void* const owner = mine.owner;
  io.bios_.bio_put(mine);
  done(page, status, owner);
}

// ---- Writing --------------------------------------------------------------------------------------------------------

bool PageIo::swap_set_page_dirty(Page& page) {
  WEIR_FLOW(filemap_.pages().mem().pfn(page));
  return !page.test_and_set(PageFlag::dirty);
}

Result<void> PageIo::swap_writepage(Page& page, WritebackControl& wbc) {
  const SwpEntry entry{page.private_};
  WEIR_FLOW(filemap_.pages().mem().pfn(page), entry);
  (void)wbc;
  if (try_to_free_swap_ != nullptr && try_to_free_swap_(try_arg_, page)) {
    filemap_.unlock_page(page);
    WEIR_RETURN(Result<void>());
  }
  if (swap_.frontswap().enabled() && frontswap_store(page)) WEIR_RETURN(Result<void>());
  WEIR_RETURN((this->*write_)(page));
}

/// True: the page is in the store and unlocked; it need not go to the device.
bool PageIo::frontswap_store(Page& page) {
  const SwpEntry entry{page.private_};
  WEIR_FLOW(filemap_.pages().mem().pfn(page), entry);
  const bool stored = swap_.frontswap().store(entry, mmu_.kmap(page));
  mmu_.kunmap(page);
  if (!stored) return false;
  page.clear(PageFlag::error);
  if (!mmu_.caps().has_dirty) mmu_.mark_clean(page);
  filemap_.set_page_writeback(page);
  filemap_.unlock_page(page);
  filemap_.end_page_writeback(page);
  return true;
}

/// True: the bytes came from the store, or are lost there; the page is unlocked.
bool PageIo::frontswap_load(Page& page, Result<void>& outcome) {
  const SwpEntry entry{page.private_};
  WEIR_FLOW(filemap_.pages().mem().pfn(page), entry);
  const Result<void> loaded = swap_.frontswap().load(entry, mmu_.kmap(page));
  mmu_.kunmap(page);
  if (loaded.error() == Errno::noent) return false;
  page.clear(PageFlag::error);
  if (loaded) {
    if (!mmu_.caps().has_dirty) mmu_.mark_clean(page);
    page.set(PageFlag::uptodate);
  } else {
    read_failed(page, entry);
    outcome = loaded;
  }
  filemap_.unlock_page(page);
  return true;
}

// Dirty as before, and its slot holds nobody knows what.
void PageIo::write_failed(Page& page, SwpEntry entry) {
  page.set(PageFlag::error);
  page.set(PageFlag::dirty);
  // Not to be rotated to where it would be tried again at once.
  page.clear(PageFlag::reclaim);
  vmstat_.count_vm_event(VmEvent::swap_write_error);
  SwapInfo* si = swap_.swap_info(swp_type(entry));
  if (si == nullptr) return;
  si->write_errors.fetch_add(1, std::memory_order_relaxed);
  LogLine() << "Write-error on swap-device (" << si->bdev->name() << ":" << swp_offset(entry) * SECTORS_PER_PAGE << ")";
}

void PageIo::end_swap_bio_write(Bio& bio) {
  PageBio& mine = *static_cast<PageBio*>(bio.owner);
  PageIo& io = *static_cast<PageIo*>(mine.io);
  Page& page = *mine.page;
  WEIR_FLOW(io.filemap_.pages().mem().pfn(page), bio.status);
  WEIR_STATE(io_done, bio.sector, io.filemap_.pages().mem().pfn(page), bio.status);
  io.mmu_.kunmap(page);
  if (bio.status != Errno::ok) io.write_failed(page, SwpEntry{page.private_});
  io.bios_.bio_put(mine);
  io.filemap_.end_page_writeback(page);
}

Result<void> PageIo::bdev_write_page(BlockDevice& device, uint64_t index, Page& page) {
  const Pfn pfn = filemap_.pages().mem().pfn(page);
  WEIR_FLOW(index, pfn);
  filemap_.set_page_writeback(page);
  const Result<void> written = device.rw_page(BioOp::write, index, mmu_.kmap(page));
  mmu_.kunmap(page);
  WEIR_STATE(io_done, index * SECTORS_PER_PAGE, pfn, written.error());
  // The page stays locked until the caller has drawn the consequences, so nobody can use a half-finished state.
  filemap_.end_page_writeback(page);
  if (!written) return written.error();
  return {};
}

Result<void> PageIo::__swap_writepage(Page& page) {
  WEIR_FLOW(filemap_.pages().mem().pfn(page), SwpEntry{page.private_});
  return write_to_slot(page);
}

Result<void> PageIo::write_to_slot(Page& page) {
  const Pfn pfn = filemap_.pages().mem().pfn(page);
  const SwpEntry entry{page.private_};
  WEIR_DEBUG_BUG_ON(!PageSwapCache(page));
  SwapInfo* si = swap_.swap_info(swp_type(entry));
  if (si == nullptr) {
    write_failed(page, entry);
    filemap_.unlock_page(page);
    return Errno::io;
  }
  WEIR_STATE(swap_write, entry, pfn, 0);
  if (at_once(*si->bdev)) {
    const Result<void> written = bdev_write_page(*si->bdev, swp_offset(entry), page);
    if (written) {
      page.clear(PageFlag::error);
      vmstat_.count_vm_event(VmEvent::pswpout);
      if (!mmu_.caps().has_dirty) mmu_.mark_clean(page);
      filemap_.unlock_page(page);
      return {};
    }
    if (written.error() == Errno::nomem) {
      // Room, not health, is what the device lacks. What the slot held before still lies there, older than the page.
      page.set(PageFlag::dirty);
      page.clear(PageFlag::reclaim);
      return Errno::again;
    }
    write_failed(page, entry);
    filemap_.unlock_page(page);
    return written.error();
  }
  PageBio& bio = get_swap_bio(BioOp::write, entry, page, end_swap_bio_write);
  page.clear(PageFlag::error);
  vmstat_.count_vm_event(VmEvent::pswpout);
  if (!mmu_.caps().has_dirty) mmu_.mark_clean(page);
  filemap_.set_page_writeback(page);
  filemap_.unlock_page(page);
  submit_bio(*si->bdev, bio);
  return {};
}

// ---- Reading --------------------------------------------------------------------------------------------------------

void PageIo::read_failed(Page& page, SwpEntry entry) {
  page.set(PageFlag::error);
  page.clear(PageFlag::uptodate);
  vmstat_.count_vm_event(VmEvent::swap_read_error);
  SwapInfo* si = swap_.swap_info(swp_type(entry));
  if (si == nullptr) return;
  si->read_errors.fetch_add(1, std::memory_order_relaxed);
  LogLine() << "Read-error on swap-device (" << si->bdev->name() << ":" << swp_offset(entry) * SECTORS_PER_PAGE << ")";
}

void PageIo::end_swap_bio_read(Bio& bio) {
  PageBio& mine = *static_cast<PageBio*>(bio.owner);
  PageIo& io = *static_cast<PageIo*>(mine.io);
  Page& page = *mine.page;
  WEIR_FLOW(io.filemap_.pages().mem().pfn(page), bio.status);
  WEIR_STATE(io_done, bio.sector, io.filemap_.pages().mem().pfn(page), bio.status);
  io.mmu_.kunmap(page);
  if (bio.status == Errno::ok) {
    if (!io.mmu_.caps().has_dirty) io.mmu_.mark_clean(page);
    page.set(PageFlag::uptodate);
  } else {
    io.read_failed(page, SwpEntry{page.private_});
  }
  io.bios_.bio_put(mine);
  io.filemap_.unlock_page(page);
}

Result<void> PageIo::bdev_read_page(BlockDevice& device, uint64_t index, Page& page) {
  const Pfn pfn = filemap_.pages().mem().pfn(page);
  WEIR_FLOW(index, pfn);
  const Result<void> got = device.rw_page(BioOp::read, index, mmu_.kmap(page));
  mmu_.kunmap(page);
  WEIR_STATE(io_done, index * SECTORS_PER_PAGE, pfn, got.error());
  if (!got) return got.error();
  return {};
}

Result<void> PageIo::swap_readpage(Page& page, ReadList* list) {
  const Pfn pfn = filemap_.pages().mem().pfn(page);
  const SwpEntry entry{page.private_};
  WEIR_FLOW(pfn, entry);
  WEIR_DEBUG_BUG_ON(!PageSwapCache(page) || page.test(PageFlag::uptodate));
  SwapInfo* si = swap_.swap_info(swp_type(entry));
  if (si == nullptr) {
    read_failed(page, entry);
    filemap_.unlock_page(page);
    return Errno::io;
  }
  if (swap_.frontswap().has(entry)) {
    Result<void> outcome;
    if (frontswap_load(page, outcome)) return outcome;
  }
  WEIR_STATE(swap_read, entry, pfn, 0);
  page.clear(PageFlag::error);
  if (!at_once(*si->bdev)) {
    PageBio& bio = get_swap_bio(BioOp::read, entry, page, end_swap_bio_read, list);
    vmstat_.count_vm_event(VmEvent::pswpin);
    if (list == nullptr || !si->bdev->batches()) {
      submit_bio(*si->bdev, bio);
      return {};
    }
    add_to_list(*list, *si->bdev, bio);
    return {};
  }
  vmstat_.count_vm_event(VmEvent::pswpin);
  const Result<void> got = bdev_read_page(*si->bdev, swp_offset(entry), page);
  if (got) {
    if (!swap_slot_free_notify(*si->bdev, page)) {
      if (!mmu_.caps().has_dirty) mmu_.mark_clean(page);
    }
    page.set(PageFlag::uptodate);
  } else {
    read_failed(page, entry);
  }
  filemap_.unlock_page(page);
  if (!got) return got.error();
  return {};
}

// A slot on a disk is kept for a page that may leave again unchanged. In memory that is a second copy: when room is
// short it goes, and the page is the only one. Linux 4.14 does so always.
bool PageIo::swap_slot_free_notify(BlockDevice& device, Page& page) {
  if (device.has_room()) return false;
  device.slot_free_notify(swp_offset(SwpEntry{page.private_}));
  page.set(PageFlag::dirty);
  return true;
}

}  // namespace weir
