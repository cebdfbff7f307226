// src/mm/page_io.hpp
//
// A page to its slot and back: sector = slot × 8. Linux: mm/page_io.c 4.14, fs/block_dev.c (bdev_write_page,
// bdev_read_page).
//
//   before the device: frontswap, if there is a store
//   write: PG_writeback, unlock, submit_bio … end_swap_bio_write (error: dirty again, kept)
//   read:  page locked until end_swap_bio_read (error: not uptodate)
// Synchronous devices (zram) are served by bdev_write_page / bdev_read_page at once, or, by kernels without rw_page,
// like all others.
//
// Where the Mmu has no dirty bits, it keeps a mark of what lies in the slot. A write sets it before the page is
// unlocked, while the bytes still are what is written. PG_error says that the mark is not to be believed
// (page_may_be_clean): from add_to_swap to the first write, and from a failed write to the next.
#pragma once

#include "mm/bio.hpp"
#include "mm/filemap.hpp"
#include "mm/profile.hpp"
#include "mm/swapfile.hpp"

namespace weir {

class PageIo {
 public:
  PageIo(Filemap& filemap, SwapFiles& swap, BioSet& bios, VmStat& vmstat, Mmu& mmu,
         const Profile& profile = profile_of(DEFAULT_KERNEL));
  PageIo(const PageIo&) = delete;
  PageIo& operator=(const PageIo&) = delete;
  /// Page locked, in the swap cache, PG_dirty taken off by the caller. Unlocked when it returns, unless it answers
  /// EAGAIN: the device has no room; page still locked, dirty again, to be kept active (AOP_WRITEPAGE_ACTIVATE). Other
  /// errors: the page is unlocked and dirty again. A slot that no PTE uses is given up and nothing is written
  /// (set_try_to_free_swap). Sleeps.
  Result<void> swap_writepage(Page& page, WritebackControl& wbc);
  /// Page locked, in the swap cache, not uptodate. Unlocked when the read is over; then it is uptodate, or PG_error.
  /// Sleeps.
  Result<void> swap_readpage(Page& page) { return swap_readpage(page, nullptr); }
  /// Reads of one readahead window, for devices that serve neighbours together: started when the list is submitted.
  /// Linux plugs the queue for as long.
  struct ReadList {
    BlockDevice* device = nullptr;
    Bio* first = nullptr;
    Bio* last = nullptr;
  };
  /// The read may only have been put into `list`.
  Result<void> swap_readpage(Page& page, ReadList* list);
  /// Waits::no: nobody is going to wait for these, so no thread is kept with them.
  using Waits = AddressSpaceOps::Waits;
  static void submit(ReadList& list, Waits waits = Waits::yes);
  /// A swap-cache page is newer than its slot. True if it was clean before. Without tags: nobody looks for dirty swap
  /// pages by tree.
  bool swap_set_page_dirty(Page& page);
  /// Where the Mmu has no dirty bits: may its answer "as in the slot" be believed?
  [[nodiscard]] static bool page_may_be_clean(const Page& page) {
    return PageSwapCache(page) && !page.test(PageFlag::error);
  }
  /// For other rooms that read and write pages of devices (files): submits, calls done(page, errno, owner) once at the
  /// end, in any thread, possibly before this returns; it must not sleep. Counts pgpgin and pgpgout (in sectors).
  /// Sleeps while the pool is empty.
  void submit_page(BlockDevice& device, BioOp op, uint64_t sector, Page& page, void (*done)(Page&, Errno, void*),
                   void* owner);
  /// The same, to be started with others when `list` is submitted, or before. Reads only.
  void add_page(ReadList& list, BlockDevice& device, uint64_t sector, Page& page, void (*done)(Page&, Errno, void*),
                void* owner);
  /// try_to_free_swap is above this floor; the swap cache plugs it in.
  void set_try_to_free_swap(bool (*fn)(void*, Page&), void* arg) { try_to_free_swap_ = fn, try_arg_ = arg; }

 private:
  [[nodiscard]] PageBio& prepare(BioOp op, uint64_t sector, Page& page, void (*end_io)(Bio&), ReadList* list = nullptr);
  [[nodiscard]] PageBio& get_swap_bio(BioOp op, SwpEntry entry, Page& page, void (*end_io)(Bio&),
                                      ReadList* list = nullptr);
  /// Has the device's rw_page, and the kernel a use for it.
  [[nodiscard]] bool at_once(const BlockDevice& device) const { return rw_page_ && device.synchronous(); }
  void submit_bio(BlockDevice& device, PageBio& bio);
  void add_to_list(ReadList& list, BlockDevice& device, PageBio& bio);
  Result<void> bdev_write_page(BlockDevice& device, uint64_t index, Page& page);
  /// True: the device's copy of a page that was just read is gone, and the page dirty.
  bool swap_slot_free_notify(BlockDevice& device, Page& page);
  Result<void> bdev_read_page(BlockDevice& device, uint64_t index, Page& page);
  Result<void> __swap_writepage(Page& page);
  Result<void> write_to_slot(Page& page);
  bool frontswap_store(Page& page);
  bool frontswap_load(Page& page, Result<void>& outcome);
  void write_failed(Page& page, SwpEntry entry);
  void read_failed(Page& page, SwpEntry entry);
  static void end_swap_bio_write(Bio& bio);
  static void end_swap_bio_read(Bio& bio);
  static void end_page_bio(Bio& bio);

  Filemap& filemap_;
  SwapFiles& swap_;
  BioSet& bios_;
  VmStat& vmstat_;
  Mmu& mmu_;
  const bool rw_page_;
  Result<void> (PageIo::*const write_)(Page& page);
  bool (*try_to_free_swap_)(void*, Page&) = nullptr;
  void* try_arg_ = nullptr;
};

}  // namespace weir
