// src/mm/inode.hpp
//
// A simple file on a block device: one extent of pages, a size, a page cache. As much of a file system as the page
// cache needs to be real: contents live on the device, are read and written by bios. Linux: include/linux/fs.h.
//
//   pages of the file    0 ............ valid_pages ............ size ............ max_pages
//                        cache, or device   reads as zero        behind the end: SIGBUS, read returns 0
//
// valid_pages only grows one page at a time, with that page in the cache, locked and filled; so no page below it can
// show what an earlier file left on the device. (exFAT's valid data length, in pages.)
#pragma once

#include "mm/filemap.hpp"
#include "mm/vma.hpp"

namespace weir {

struct Inode;
struct File;

/// How fallocate changes a file. Linux: include/uapi/linux/falloc.h, FALLOC_FL_* and their values.
enum FallocateMode : uint32_t {
  FALLOC_KEEP_SIZE = 1,    ///< the file does not grow
  FALLOC_PUNCH_HOLE = 2,   ///< what is inside the file becomes zero; only with KEEP_SIZE
  FALLOC_ZERO_RANGE = 16,  ///< the same, and the file may grow
};

/// What can be done with an open file of whatever kind. Linux: struct file_operations, inode_operations.
class FileOperations {
 public:
  /// Reads up to `bytes` at pos into `to`, or nowhere if it is null. Returns bytes; fewer at the end of the file, at an
  /// error after the first page, or at a kill. Errors: EIO, ENOMEM, EINTR (killed).
  virtual Result<uint64_t> read(File& file, uint64_t pos, std::byte* to, uint64_t bytes) = 0;
  /// Writes; `from` may be null where pages are tagged: then the tags change. Returns bytes; fewer where the file can
  /// grow no more. Sleeps while too much is dirty. Errors: EFBIG (pos at or behind the largest size), ENOSPC, EIO (a
  /// page to be changed in part cannot be read), ENOMEM, EINTR.
  virtual Result<uint64_t> write(File& file, uint64_t pos, const std::byte* from, uint64_t bytes) = 0;
  /// Whole pages by content: what tagged simulations and the model test use. Errors: as above; ENOENT for a page behind
  /// the end.
  virtual Result<uint64_t> read_tag(File& file, uint64_t index) = 0;
  virtual Result<void> write_tag(File& file, uint64_t index, uint64_t tag) = 0;
  /// What was written before is where it is kept. Errors: EIO or ENOSPC if a write of the file failed since this File
  /// last reported (before 4.13: since any did).
  virtual Result<void> fsync(File& file) = 0;
  /// The file becomes `size` bytes long; what is new reads as zero. Errors: EFBIG, EIO, ENOMEM, EINTR.
  virtual Result<void> truncate(Inode& inode, Bytes size) = 0;
  /// Room for bytes [offset, offset + bytes), which makes the file longer; with a FallocateMode, what that says. Errors:
  /// EINVAL (no bytes), EOPNOTSUPP (such a mode, or such files), EFBIG, EIO, ENOMEM, EINTR.
  virtual Result<void> fallocate(Inode& inode, uint32_t mode, uint64_t offset, uint64_t bytes) {
    (void)inode, (void)mode, (void)offset, (void)bytes;
    return Errno::opnotsupp;
  }
  /// A mapping of it is being made: not yet in its address space, which is locked for writing. Errors: mmap's.
  virtual Result<void> mmap(File& file, VmArea& vma) {
    (void)file, (void)vma;
    return {};
  }

 protected:
  ~FileOperations() = default;
};

/// Who keeps what is known of a file beside its pages. Linux: struct super_operations.
class SuperOperations {
 public:
  /// Its size goes to where it is kept. Errors: EIO, ENOSPC, ENOMEM. Sleeps.
  virtual Result<void> write_inode(Inode& inode) = 0;

 protected:
  ~SuperOperations() = default;
};

struct Inode {
  uint64_t ino = 0;  // immutable, as name, bdev, first_page, max_pages, block_size, i_sb, record
  char name[32] = {};
  Mutex rwsem{LockRank::inode};     ///< writers and size changes
  std::atomic<uint64_t> i_size{0};  ///< bytes; grows with the page that is behind the old end locked
  std::atomic<uint64_t> valid_pages{0};
  AddressSpace i_data;
  BlockDevice* bdev = nullptr;
  uint64_t first_page = 0;  ///< the file's pages are first_page … first_page + max_pages - 1 of the device
  uint64_t max_pages = 0;
  uint32_t block_size = 0;          ///< bytes, 512 … 4096: its pages have buffers (buffer.hpp). 0: they have none
  SuperOperations* i_sb = nullptr;  ///< null: nothing is kept of it
  uint32_t record = 0;              ///< i_sb's: which one
  std::atomic<int32_t> i_count{1};
  ListHook i_sb_list;              ///< all inodes; FilemapIo's lock
  std::atomic<bool> dirty{false};  ///< on the flusher's list, or in its hands; changes under the writeback lock
  bool failed_stay_dirty =
      true;                  ///< pages that could not be written; else while there is room for dirty pages. Immutable
  bool i_sync = false;       ///< in the flusher's hands: it stays until this is off. Writeback lock
  Nanos dirtied_when{};      // writeback lock
  ListHook wb_list;          // writeback lock
  uint32_t wb_err_seen = 0;  ///< i_data.wb_err_seq when the flusher last looked; its thread's
};

/// An open file. Linux: struct file. What is not said otherwise is for one reader at a time; two at once get a wrong
/// window, not wrong bytes.
struct File {
  Inode* f_inode = nullptr;
  FileOperations* f_op = nullptr;
  VmOps* f_vm_ops = nullptr;  ///< serves the faults of its mappings
  std::atomic<int32_t> f_count{1};
  void (*release)(void* owner, File& file) = nullptr;  ///< called with the last reference; sleeps
  void* owner = nullptr;                               ///< release's
  uint64_t f_pos = 0;
  std::atomic<uint32_t> f_wb_err{0};  ///< AddressSpace::wb_err_seq up to which errors were reported here

  // Linux: struct file_ra_state. The window is [ra_start, ra_start + ra_size); a read of its page
  // ra_start + ra_size - ra_async_size starts the next one.
  uint64_t ra_start = 0;
  uint32_t ra_size = 0, ra_async_size = 0;
  uint32_t ra_pages = 32;  ///< largest window; 128 KiB
  // 2.6.20: the window is [ra_start, ra_start + ra_size), the one ahead of it follows; 0: there is none.
  uint64_t ahead_start = 0;
  uint32_t ahead_size = 0;
  uint32_t cache_hit = 0;              ///< pages in a row that were to be read and were there
  uint64_t prev_page = ~uint64_t{0};   ///< last page that a request came to
  bool ra_missed = false;              ///< what was read ahead was gone when it was needed
  bool ra_incache = false;             ///< all that was to be read was there for long: nothing is read ahead
  uint32_t mmap_miss = 0;              ///< faults that found no page, less those that did
  uint64_t prev_index = ~uint64_t{0};  ///< page of the last read
  uint32_t prev_offset = 0;            ///< where in it the last read ended: 4096 if it went to the page's end
};

inline void get_file(File& file) { file.f_count.fetch_add(1, std::memory_order_relaxed); }
/// Drops a reference, with the last one the file, and perhaps its inode (FilemapIo::iput). Sleeps then; no lock inside
/// mmap_sem may be held.
inline void fput(File& file) {
  if (file.f_count.fetch_sub(1, std::memory_order_acq_rel) == 1) file.release(file.owner, file);
}

/// Pages that the file's size covers.
[[nodiscard]] inline uint64_t i_size_pages(const Inode& inode) {
  return page_align_up(inode.i_size.load(std::memory_order_acquire)) >> PAGE_SHIFT;
}

}  // namespace weir
