// src/mm/page_io.hpp
//
// A page to its slot and back: sector = slot × 8. Linux: mm/page_io.c.
//
//   write: PG_writeback, unlock, submit_bio … end_swap_bio_write (error: dirty again, kept)
//   read:  page locked until end_swap_bio_read (error: not uptodate)
// Synchronous devices (zram) are served by bdev_write_page / bdev_read_page at once.
#pragma once

#include "mm/filemap.hpp"
#include "mm/swapfile.hpp"

namespace weir {

class PageIo {
 public:
  /// Bios come from a pool made at start: submit cannot fail, it waits for a free one.
  PageIo(Filemap& filemap, SwapFiles& swap, VmStat& vmstat, Mmu& mmu);
  Result<void> init(unsigned pool_size);

  /// Page locked, in the swap cache; unlocked when it returns. `still_wanted` is try_to_free_swap's answer, asked by the caller's a_ops.
  Result<void> swap_writepage(Page& page, WritebackControl& wbc);
  Result<void> __swap_writepage(Page& page, WritebackControl& wbc);
  /// Page locked, in the swap cache, not uptodate. Unlocked when the read is over.
  Result<void> swap_readpage(Page& page);
  /// For other rooms that write pages to devices (files): submits, calls done(page, errno, owner) at the end.
  void submit_page(BlockDevice& device, BioOp op, uint64_t sector, Page& page, void (*done)(Page&, Errno, void*), void* owner);
  /// try_to_free_swap is above this floor; the swap cache plugs it in.
  void set_try_to_free_swap(bool (*fn)(void*, Page&), void* arg) { try_to_free_swap_ = fn, try_arg_ = arg; }

 private:
  Filemap& filemap_;
  SwapFiles& swap_;
  VmStat& vmstat_;
  Mmu& mmu_;
  bool (*try_to_free_swap_)(void*, Page&) = nullptr;
  void* try_arg_ = nullptr;
};

}  // namespace weir
