// src/mm/flat_fs.hpp
//
// A flat file system: files of one extent each, and a table at the start of the device: where each lies and how long it
// is. The table is read and written through buffers (buffer.hpp).
//
//   block    0        1           2          3           4         ...        first page behind the table ...
//            super    extent 0    length 0   extent 1    length 1             the files' pages, extent behind extent
//
//   super    magic << 32 | files that there is room for
//   extent   first page << 32 | pages; 0: no file
//   length   pages that were ever written << 40 | size in bytes
//
// Each block consists of one word, so that a tagged simulation, where a page is one word, has it too. A file's length
// goes into the table by fsync and when it is closed for the last time; the size of a file whose machine was lost is
// that of its last fsync.
#pragma once

#include "mm/filemap_io.hpp"

namespace weir {

class FlatFs final : public SuperOperations {
 public:
  explicit FlatFs(FilemapIo& files) : files_(files), buffers_(files.buffers()) {}
  FlatFs(const FlatFs&) = delete;
  FlatFs& operator=(const FlatFs&) = delete;

  /// An empty table, then as mount. Errors: EINVAL (no power of two, less than the device's blocks or more than a page;
  /// no files), ENOSPC, EIO, ENOMEM.
  Result<void> mkfs(BlockDevice& device, uint32_t block_size, uint32_t max_files);
  /// Errors: EINVAL (no such file system), EIO, ENOMEM.
  Result<void> mount(BlockDevice& device, uint32_t block_size);
  /// Every file is closed. What is dirty of the table is written, and nothing of it stays in memory.
  void umount();

  /// A new file, empty, that may grow to `max_bytes`. The caller has a reference (FilemapIo::iput). Errors: ENOSPC,
  /// EFBIG, EIO, ENOMEM.
  Result<Inode*> create(const char* name, Bytes max_bytes);
  /// The file of a record of the table, as it was when its length was last written; it may be open only once. Errors:
  /// ENOENT, EIO, ENOMEM.
  Result<Inode*> iget(uint32_t record, const char* name);
  /// What is dirty of the table is written, and then all of it leaves memory; the next look reads it from the device.
  /// Linux: what set_blocksize does.
  void flush_blockdev();

  // SuperOperations
  Result<void> write_inode(Inode& inode) override;

  /// The device's own inode, whose cache has the table. Null: not mounted.
  [[nodiscard]] Inode* bd_inode() const { return bd_inode_; }
  /// Pages of the device that a table for so many files takes.
  [[nodiscard]] static uint64_t table_pages(uint32_t block_size, uint32_t max_files) {
    return page_align_up((1 + uint64_t{max_files} * 2) * block_size) >> PAGE_SHIFT;
  }

 private:
  Result<void> bdget(BlockDevice& device, uint32_t block_size);
  Result<uint64_t> read_word(uint64_t block);
  Result<void> write_word(uint64_t block, uint64_t word);
  void sync_blockdev();
  void kill_bdev();

  FilemapIo& files_;
  Buffers& buffers_;
  Inode* bd_inode_ = nullptr;
  uint32_t max_files_ = 0;
  Mutex table_{LockRank::inode};  ///< which records and pages are taken
};

}  // namespace weir
