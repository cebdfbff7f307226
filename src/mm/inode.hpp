// src/mm/inode.hpp
//
// A simple file on a block device: extents of pages, a size, a page cache. As much of a file system as the page cache needs
// to be real: contents live on the device, are read and written by bios. Linux: include/linux/fs.h.
#pragma once

#include "mm/filemap.hpp"

namespace weir {

struct Inode {
  uint64_t ino = 0;
  char name[32] = {};
  Mutex rwsem{LockRank::inode};     ///< writers and size changes
  std::atomic<uint64_t> i_size{0};  ///< bytes
  AddressSpace i_data;
  BlockDevice* bdev = nullptr;
  uint64_t first_page = 0;          ///< the file's pages are first_page … first_page + max_pages - 1 of the device
  uint64_t max_pages = 0;
  std::atomic<int32_t> i_count{1};
  std::atomic<bool> dirty{false};   ///< on the flusher's list
  Nanos dirtied_when{};             // writeback lock
  ListHook wb_list;                 // writeback lock
};

/// An open file. Linux: struct file.
struct File {
  Inode* f_inode = nullptr;
  std::atomic<int32_t> f_count{1};
  uint64_t f_pos = 0;
  // readahead state: file_ra_state
  uint64_t ra_start = 0;
  uint32_t ra_size = 0, ra_async_size = 0, ra_pages = 32;
  uint64_t prev_index = ~uint64_t{0};
};

}  // namespace weir
