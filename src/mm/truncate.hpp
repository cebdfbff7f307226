// src/mm/truncate.hpp
//
// Pages leave their file.
//
//   truncate:    size first; then every mapping behind it goes, private copies too; then every page: lock, wait for its
//                write, unmap, give up its bytes, off the tree
//   invalidate:  only pages that nobody would miss: clean, unmapped, not locked, not under writeback, not in use
//
// Linux: mm/truncate.c.
#pragma once

#include "mm/buffer.hpp"
#include "mm/inode.hpp"
#include "mm/page_content.hpp"
#include "mm/page_writeback.hpp"

namespace weir {

class Truncate {
 public:
  Truncate(Filemap& filemap, PageWriteback& writeback, Buffers& buffers, Mmu& mmu)
      : filemap_(filemap), writeback_(writeback), buffers_(buffers), mmu_(mmu) {}

  /// The file is `size` bytes long from now on, and no page behind that is cached or mapped when this returns. Nobody
  /// else changes the size (Inode::rwsem). Sleeps.
  void truncate_setsize(Inode& inode, uint64_t size);
  /// The same for what is cached and mapped; the size is set already.
  void truncate_pagecache(Inode& inode, uint64_t size);
  /// Every page from byte `start` on goes; of the page that `start` is inside of, the bytes from there on become zero.
  void truncate_inode_pages(AddressSpace& mapping, uint64_t start);
  /// Drops what can be dropped at once of pages [start, end]. Returns how many.
  uint64_t invalidate_mapping_pages(AddressSpace& mapping, uint64_t start, uint64_t end);
  /// Pages [start, end] leave the cache and all mappings, but for dirty ones: what the file has by now is read. Waits for
  /// their writes and reads. Errors: EBUSY, a clean page was in use and stays.
  Result<void> invalidate_inode_pages2_range(AddressSpace& mapping, uint64_t start, uint64_t end);
  /// One page, locked, not under writeback, referenced by the caller: unmapped, its bytes given up, off the tree.
  void truncate_complete_page(Page& page);

 private:
  bool invalidate_complete_page(AddressSpace& mapping, Page& page);

  Filemap& filemap_;
  PageWriteback& writeback_;
  Buffers& buffers_;
  Mmu& mmu_;
};

}  // namespace weir
