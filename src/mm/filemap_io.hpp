// src/mm/filemap_io.hpp
//
// Files read, written, mapped. Linux: mm/filemap.c (generic_file_read_iter, generic_perform_write, filemap_fault), and
// as much of a file system as they need.
//
//   read:   find page --there, uptodate--> copy
//                     --missing--> readahead: pages into the tree, locked, bios out --unlocked when read--> copy
//   write:  find or make page, locked; read it first if only part is written --> copy, dirty --> balance_dirty_pages
//   fault:  as read, the page comes back locked;  first store: page_mkwrite --> dirty
//   out:    flusher, fsync or reclaim --> writepage: PG_writeback, unlocked, bio --end--> clean
//                                                                              --error--> PG_error, dirty again; told
//                                                                                         by fsync: since 4.13 to
//                                                                                         each open file, before to
//                                                                                         who asks first
//
// A page that could not be written stays dirty and in memory: it is tried again by the flusher 30 s later, by fsync, by
// iput. (Linux's file systems leave it clean: the next reclaim loses what the program wrote.) Accepted loss: a device
// that takes no writes at all fills the machine with dirty pages up to the limit, and holds its writers there until
// they are killed. Where that must not be (Inode::failed_stay_dirty is off) it is so up to the background limit, and
// from there on as in Linux.
//
#pragma once

#include "mm/buffer.hpp"
#include "mm/inode.hpp"
#include "mm/page_content.hpp"
#include "mm/page_io.hpp"
#include "mm/page_writeback.hpp"
#include "mm/readahead.hpp"
#include "mm/truncate.hpp"
#include "mm/vma.hpp"

namespace weir {

/// A file request's kind, as recorded with State::file_request.
enum class FileRequest : uint8_t { read, write, fault };

class FilemapIo final : public FileOperations, public VmOps, public AddressSpaceOps {
 public:
  FilemapIo(Filemap& filemap, PageIo& io, PageWriteback& writeback, Buffers& buffers, Slab& slab, VmStat& vmstat,
            Mmu& mmu, KernelEra kernel = DEFAULT_KERNEL);
  /// Makes the caches "inode_cache" and "filp". Errors: ENOMEM.
  Result<void> init();

  /// A file of `size` bytes, never more than max_bytes, on `device` from page first_page; what lies there is its
  /// content. With a block size its pages are read and written in buffers of so many bytes. The caller has a reference.
  /// Errors: ENOMEM, EINVAL (no room for a page, outside the device, larger than max_bytes; blocks that the device does
  /// not have).
  Result<Inode*> create_inode(const char* name, BlockDevice& device, uint64_t first_page, Bytes size, Bytes max_bytes,
                              uint32_t block_size = 0);
  /// Errors: ENOMEM.
  Result<File*> open(Inode& inode);
  /// A File of `inode`, on which it has a reference, with whatever operations; `release` is the caller's to set, and
  /// ends with free_file. Errors: ENOMEM.
  Result<File*> alloc_file(Inode& inode, FileOperations& f_op, VmOps& vm_ops);
  void free_file(File& file);
  /// Drops the caller's reference (fput). Sleeps.
  void close(File& file) { fput(file); }
  /// Drops a reference. With the last one dirty pages are written out, all pages are freed, and the inode is gone.
  /// Sleeps.
  void iput(Inode& inode);

  // FileOperations
  Result<uint64_t> read(File& file, uint64_t pos, std::byte* to, uint64_t bytes) override;
  Result<uint64_t> write(File& file, uint64_t pos, const std::byte* from, uint64_t bytes) override;
  Result<uint64_t> read_tag(File& file, uint64_t index) override;
  Result<void> write_tag(File& file, uint64_t index, uint64_t tag) override;
  Result<void> fsync(File& file) override;
  Result<void> truncate(Inode& inode, Bytes size) override;
  /// The file's place on the device is its own from the start: a hole that is punched is zeros written there.
  Result<void> fallocate(Inode& inode, uint32_t mode, uint64_t offset, uint64_t bytes) override;
  /// The same for pages [start, end].
  Result<void> fsync_range(File& file, uint64_t start, uint64_t end);
  /// Drops the file's pages that can be dropped at once. Returns how many.
  uint64_t invalidate(Inode& inode) { return truncate_.invalidate_mapping_pages(inode.i_data, 0, ~uint64_t{0}); }
  /// Pages [start, end] are read anew when they are needed, but for dirty ones. Errors: EBUSY.
  Result<void> invalidate_range(Inode& inode, uint64_t start, uint64_t end) {
    return truncate_.invalidate_inode_pages2_range(inode.i_data, start, end);
  }
  /// Starts to read those of pages [start, end] that are not cached; no more than half of what can be had for it. Linux:
  /// force_page_cache_readahead, max_sane_readahead.
  void force_page_cache_readahead(Inode& inode, uint64_t start, uint64_t end);

  /// All its pages go at once, written or not.
  void truncate_inode_pages(AddressSpace& mapping) { truncate_.truncate_inode_pages(mapping, 0); }

  /// Writes pages [start, end] that are dirty and waits for them. Errors are kept in mapping.wb_err.
  void filemap_write_and_wait_range(AddressSpace& mapping, uint64_t start, uint64_t end);
  /// Waits for the writes under way.
  void filemap_fdatawait_range(AddressSpace& mapping, uint64_t start, uint64_t end);

  // VmOps
  uint32_t fault(FaultRequest& request) override { return filemap_fault(request); }
  [[nodiscard]] bool has_page_mkwrite() const override { return true; }
  uint32_t page_mkwrite(FaultRequest& request) override { return filemap_page_mkwrite(request); }
  void balance_dirty(File& file) override;
  // AddressSpaceOps
  Result<void> writepage(Page& page, WritebackControl& wbc) override;
  Result<void> readpage(AddressSpace& mapping, Page& page) override;
  void readpages(AddressSpace& mapping, Page* const* pages, unsigned n, Waits waits) override;
  bool set_page_dirty(Page& page) override;

  /// An inode that somebody else made is one of those that for_each_inode finds, until it goes.
  void inode_sb_list_add(Inode& inode);
  void inode_sb_list_del(Inode& inode);

  [[nodiscard]] Buffers& buffers() const { return buffers_; }
  /// Every inode there is: fn(Inode&). None may come or go meanwhile. For verify().
  template <class Fn>
  void for_each_inode(Fn&& fn) {
    for (Inode& inode : inodes_) fn(inode);
  }

 private:
  using InodeList = boost::intrusive::list<Inode, boost::intrusive::member_hook<Inode, ListHook, &Inode::i_sb_list>,
                                           boost::intrusive::constant_time_size<false>>;

  // read
  Result<uint64_t> generic_file_read_iter(File& file, uint64_t pos, std::byte* to, uint64_t bytes);
  Result<uint64_t> generic_file_buffered_read(File& file, uint64_t pos, std::byte* to, uint64_t bytes);
  Result<Page*> read_cache_page(File& file, uint64_t index, uint64_t wanted, uint64_t& next);
  Result<bool> wait_for_read(Inode& inode, Page& page);
  Result<Page*> find_missed(Inode& inode, uint64_t index);
  Result<void> page_cache_read(AddressSpace& mapping, uint64_t index, gfp_t gfp);
  static void end_read(Page& page, Errno error, void* self);

  // write
  Result<uint64_t> generic_file_write_iter(File& file, uint64_t pos, const PageSource& source, uint64_t bytes);
  Result<uint64_t> generic_perform_write(Inode& inode, uint64_t pos, const PageSource& source, uint64_t bytes);
  Result<Page*> grab_cache_page_write_begin(AddressSpace& mapping, uint64_t index);
  Result<Page*> write_begin(Inode& inode, uint64_t index, uint32_t offset, uint64_t bytes);
  void make_zero(Page& page);
  Result<void> make_valid(Inode& inode, uint64_t pages);
  Result<void> zero_range(Inode& inode, uint64_t from, uint64_t to);
  Result<void> zero_tail_of_last_page(Inode& inode);
  static void mapping_set_error(AddressSpace& mapping, Errno error);
  Result<void> file_check_and_advance_wb_err(File& file);
  Result<void> filemap_check_errors(File& file);
  static void end_write(Page& page, Errno error, void* self);

  // fault
  uint32_t filemap_fault(FaultRequest& request);
  uint32_t filemap_page_mkwrite(FaultRequest& request);
  void mmap_readahead(uint64_t vm_flags, File& file, uint64_t index);
  void do_sync_mmap_readahead(uint64_t vm_flags, File& file, uint64_t index);
  void do_async_mmap_readahead(uint64_t vm_flags, File& file, Page& page, uint64_t index);
  uint32_t read_without_mmap_sem(const VmArea& vma, uint64_t index);
  bool lock_page_or_retry(Page& page, Mm& mm, uint32_t flags) WEIR_NO_THREAD_SAFETY_ANALYSIS;

  void fput_final(File& file);
  [[nodiscard]] Page* find_page(Inode& inode, uint64_t index);

  Filemap& filemap_;
  PageIo& io_;
  PageWriteback& writeback_;
  Buffers& buffers_;
  Slab& slab_;
  VmStat& vmstat_;
  Mmu& mmu_;
  Result<void> (FilemapIo::*const check_errors_)(File& file);  ///< what fsync says, as the kernel does
  void (FilemapIo::*const mmap_missed_)(uint64_t vm_flags, File& file, uint64_t index);  ///< under the kernel's name
  OndemandReadahead ondemand_;
  TwoWindowReadahead two_window_;
  Readahead& readahead_;  ///< the kernel's
  Truncate truncate_;
  KmemCache* inode_cache_ = nullptr;
  KmemCache* file_cache_ = nullptr;
  SpinLock inodes_lock_{LockRank::leaf};
  InodeList inodes_;  // inodes_lock_, but for for_each_inode
  std::atomic<uint64_t> next_ino_{1};
};

}  // namespace weir
