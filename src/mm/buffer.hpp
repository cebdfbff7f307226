// src/mm/buffer.hpp
//
// Buffers: parts of a page, 512 to 4096 bytes each, that are blocks of a device. Linux: fs/buffer.c,
// include/linux/buffer_head.h.
//
//   page --private_--> buffer --b_this_page--> buffer ... --> the first      the ring covers the page, in order; it has
//        <---b_page---                                                       one reference to the page
//
//   a device's own cache, block by block:
//     __bread --> __getblk --no buffer yet--> grow_buffers: the page comes into the cache, with buffers
//             --> __bread_slow: lock_buffer, submit_bh, wait_on_buffer        unless it is uptodate
//     changed: mark_buffer_dirty; out by sync_dirty_buffer at once, or by the flusher
//   pages of files with blocks smaller than a page: block_read_full_page, block_write_full_page
//
//   away: try_to_release_page --> try_to_free_buffers, unless one is in use, dirty or locked. A page that leaves its
//         tree while a buffer is in use keeps its buffers and has no mapping; reclaim meets it later.
//
// Where pages are tagged (simulations) a block is a whole page. Not here: the per-CPU list of buffers used last.
#pragma once

#include "mm/bio.hpp"
#include "mm/inode.hpp"
#include "mm/page_writeback.hpp"
#include "mm/profile.hpp"

namespace weir {

enum class BufferFlag : uint8_t {
  uptodate,
  dirty,
  lock,  ///< under I/O, or its content is being changed
  mapped,
  async_read,   ///< one of several buffers of a page that are read
  async_write,  ///< the same, written
  write_io_error
};

/// Invariants: as long as it lives it is in the ring of b_page, which has PG_private; dirty only while b_page is.
struct BufferHead {
  WorldAtomic<uint32_t> b_state{0};
  WorldAtomic<int32_t> b_count{0};    ///< users; only without any it may go
  BufferHead* b_this_page = nullptr;  ///< the page's next; the page's lock
  Page* b_page = nullptr;             // immutable
  uint32_t b_size = 0;                ///< bytes; immutable
  uint32_t b_offset = 0;              ///< in the page; immutable
  uint64_t b_blocknr = 0;             ///< while mapped: of b_bdev, in blocks of b_size
  BlockDevice* b_bdev = nullptr;      ///< while mapped
  Errno b_error = Errno::ok;          ///< what its last write met; of the page's first: what the page's I/O met
  void (*b_end_io)(BufferHead& bh, Errno status, class Buffers& buffers) = nullptr;  ///< the lock's holder's

  [[nodiscard]] bool test(BufferFlag f) const { return (b_state.load(std::memory_order_acquire) & bit(f)) != 0; }
  static constexpr uint32_t bit(BufferFlag f) { return uint32_t{1} << static_cast<unsigned>(f); }
};
[[nodiscard]] inline uint64_t flow_value_of(const BufferHead& bh) { return bh.b_blocknr; }

[[nodiscard]] inline BufferHead* page_buffers(const Page& page) { return reinterpret_cast<BufferHead*>(page.private_); }

class Buffers {
 public:
  Buffers(Filemap& filemap, BioSet& bios, PageWriteback& writeback, Slab& slab, VmStat& vmstat, Mmu& mmu,
          KernelEra kernel = DEFAULT_KERNEL);
  /// Makes the cache "buffer_head". Errors: ENOMEM.
  Result<void> init();
  /// What a page of a file learns when all its buffers were read; as PageIo::submit_page's done.
  void set_read_end(void (*fn)(Page&, Errno, void*), void* arg) { read_end_ = fn, read_arg_ = arg; }

  // ---- blocks of a device; `bdev` is its own inode: a file that is all of the device (FlatFs)
  /// The buffer of a block, with a reference, perhaps not read. Null behind the end of the device, and for a task that
  /// is to die when there is no memory; else it waits for memory. Sleeps.
  BufferHead* __getblk(Inode& bdev, uint64_t block);
  /// The same, uptodate. Errors: EIO, EINVAL (behind the end), ENOMEM. Sleeps.
  Result<BufferHead*> __bread(Inode& bdev, uint64_t block);
  static void brelse(BufferHead& bh);
  /// The first word of the block. It consists of one word from now on, and is uptodate.
  [[nodiscard]] uint64_t word_of(const BufferHead& bh);
  void fill_with_word(BufferHead& bh, uint64_t word);

  void lock_buffer(BufferHead& bh);
  void unlock_buffer(BufferHead& bh);
  void wait_on_buffer(BufferHead& bh);
  /// It differs from the device: it and its page are dirty. In use. Not under a spinlock of rank writeback or above.
  void mark_buffer_dirty(BufferHead& bh);
  /// In use: if it is dirty it is written, and the write waited for. Errors: EIO, ENOSPC; it is dirty as it was then.
  Result<void> sync_dirty_buffer(BufferHead& bh);

  // ---- pages of files (Inode::block_size); page locked
  /// As AddressSpaceOps::readpage. Errors: ENOMEM (a task that is to die): nothing is started, the page still locked.
  Result<void> block_read_full_page(Page& page);
  /// As AddressSpaceOps::writepage.
  Result<void> block_write_full_page(Page& page, WritebackControl& wbc);
  /// True if the page was clean. The page need not be locked.
  bool __set_page_dirty_buffers(Page& page);

  // ---- a page's buffers go; page locked
  /// True: the page has none (any more).
  bool try_to_release_page(Page& page, gfp_t gfp);
  bool try_to_free_buffers(Page& page);
  /// The page leaves its file: what is in its buffers is given up. A buffer in use stays as it is, with the page: its
  /// user writes it, as a journal does. (Linux takes it from under a user that is not a journal.)
  void block_invalidatepage(Page& page);

  /// Buffers there are. For verify().
  [[nodiscard]] int64_t nr_buffer_heads() const { return nr_buffer_heads_.load(std::memory_order_relaxed); }

 private:
  static constexpr unsigned MAX_BUF_PER_PAGE = PAGE_SIZE / 512;
  enum class Retry : uint8_t { no, yes };

  BufferHead* __getblk_gfp(Inode& bdev, uint64_t block);
  BufferHead* find_or_grow(Inode& bdev, uint64_t block);
  BufferHead* __find_get_block(Inode& bdev, uint64_t block);
  BufferHead* __getblk_slow(Inode& bdev, uint64_t block);
  Result<BufferHead*> get_and_read(Inode& bdev, uint64_t block);
  Result<BufferHead*> __bread_gfp(Inode& bdev, uint64_t block);
  Result<BufferHead*> make_uptodate(BufferHead* bh);
  Result<BufferHead*> __bread_slow(BufferHead& bh);
  bool grow_buffers(Inode& bdev, uint64_t block);
  bool grow_dev_page(Inode& bdev, uint64_t block);
  Page* find_or_create_page(AddressSpace& mapping, uint64_t index, gfp_t gfp);
  void free_more_memory();

  BufferHead* alloc_page_buffers(Page& page, uint32_t size, Retry retry);
  BufferHead* alloc_buffer_head(gfp_t gfp);
  void free_buffer_head(BufferHead& bh);
  void attach_page_buffers(Page& page, BufferHead& head);
  bool create_empty_buffers(Page& page, uint32_t size, uint32_t state);
  bool drop_buffers(Page& page);
  void free_ring(BufferHead* head);
  void discard_buffer(BufferHead& bh);

  bool try_lock_buffer(BufferHead& bh);
  bool set(BufferHead& bh, BufferFlag flag);
  bool clear(BufferHead& bh, BufferFlag flag);
  void changed(const BufferHead& bh, uint32_t before, uint32_t after) const;
  void map_buffer(const Inode& inode, Page& page, BufferHead& bh);
  void submit_bh(BioOp op, BufferHead& bh);
  static void end_bio_bh_io_sync(Bio& bio);
  static void end_buffer_read_sync(BufferHead& bh, Errno status, Buffers& self);
  static void end_buffer_write_sync(BufferHead& bh, Errno status, Buffers& self);
  static void end_buffer_async_read(BufferHead& bh, Errno status, Buffers& self);
  static void end_buffer_async_write(BufferHead& bh, Errno status, Buffers& self);
  bool last_of_page(BufferHead& bh, BufferFlag flag, Errno status, Errno& met);
  WaitQueue& waitqueue(const BufferHead& bh);

  [[nodiscard]] MemMap& mem() const { return filemap_.pages().mem(); }

  Filemap& filemap_;
  BioSet& bios_;
  PageWriteback& writeback_;
  Slab& slab_;
  VmStat& vmstat_;
  Mmu& mmu_;
  // Under the kernel's names.
  BufferHead* (Buffers::*const getblk_)(Inode& bdev, uint64_t block);
  Result<BufferHead*> (Buffers::*const bread_)(Inode& bdev, uint64_t block);
  KmemCache* cache_ = nullptr;
  void (*read_end_)(Page&, Errno, void*) = nullptr;
  void* read_arg_ = nullptr;
  SpinLock private_lock_{LockRank::buffers};  ///< rings come and go; a buffer gets its first user
  SpinLock end_lock_{LockRank::leaf};         ///< which of a page's I/Os is the last
  WorldAtomic<int64_t> nr_buffer_heads_{0};
  WaitTable waitqueues_;
};

}  // namespace weir
