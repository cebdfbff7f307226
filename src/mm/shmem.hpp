// src/mm/shmem.hpp
//
// Files that live in memory and whose pages go to swap: tmpfs, and memory that is shared without a file. Linux:
// mm/shmem.c 4.14.
//
//   a slot of the file's tree:
//
//     empty --store, fault--> page (dirty, PG_swapbacked, on an anonymous list)
//                              |  ^
//              shmem_writepage |  | shmem_getpage, swapoff
//                              v  |
//                         swap entry, of whose slot the file is the one user (SWAP_MAP_SHMEM); the page, as long as it
//                         is there, is in the swap cache
//
//   read of an empty slot: zeros, and it stays empty.   truncate: pages are freed, slots of entries too.
//
// Which files have pages in swap is on a list, for swapoff. A file has `alloced` pages: those in memory and those in
// swap. A mounted file's count against the limit of the mount (half of memory); shared memory's do not.
//
// The tree holds swap entries from 3.1 on; 2.6.20 keeps them in a table of its own beside the tree. That is not here.
#pragma once

#include "mm/filemap_io.hpp"
#include "mm/profile.hpp"
#include "mm/swap_state.hpp"

namespace weir {

/// Linux: struct shmem_inode_info.
/// Invariant: alloced = pages in the tree + swapped, at rest. swapped = swap entries in the tree; if there are any, it
/// is on the swaplist.
struct ShmemInode : Inode {
  SpinLock lock{LockRank::leaf};
  uint64_t alloced = 0;             // lock
  uint64_t swapped = 0;             // lock
  bool limited = false;             ///< its pages count against the mount's limit; immutable
  std::atomic<bool> locked{false};  ///< SHM_LOCK
  ListHook swaplist;                // swaplist mutex, as the next
  bool on_swaplist = false;
};

class Shmem final : public FileOperations, public VmOps, public AddressSpaceOps {
 public:
  Shmem(SwapCache& cache, SwapFiles& swap, PageIo& io, FilemapIo& files, PageWriteback& writeback, Slab& slab,
        VmStat& vmstat, const Profile& profile);
  /// Makes the cache "shmem_inode_cache"; the limit becomes half of memory. Errors: ENOMEM.
  Result<void> init();

  /// A file of the mount, of `size` bytes that read as zero. The caller has a reference. Errors: ENOMEM.
  Result<Inode*> create_inode(const char* name, Bytes size);
  /// Errors: ENOMEM.
  Result<File*> open(Inode& inode);
  /// Drops a reference; with the last one pages and slots are freed, and the inode is gone. Sleeps.
  void iput(Inode& inode);
  /// A file that only the caller knows, and that no limit concerns. Errors: ENOMEM.
  Result<File*> shmem_file_setup(const char* name, Bytes size);
  /// What a shared mapping without a file is a mapping of. Errors: ENOMEM.
  Result<File*> shmem_zero_setup(Bytes size);

  /// The mount's limit, in pages. Files that are larger already stay.
  void set_max_blocks(PageCount pages) { max_blocks_.store(pages.v, std::memory_order_relaxed); }
  [[nodiscard]] PageCount max_blocks() const { return PageCount(max_blocks_.load(std::memory_order_relaxed)); }
  /// Pages that the mount's files have, in memory or in swap.
  [[nodiscard]] PageCount used_blocks() const { return PageCount(used_blocks_.load(std::memory_order_relaxed)); }

  /// SHM_LOCK and SHM_UNLOCK: locked, pages that are in memory stay there. Sleeps.
  enum class ShmLock : uint8_t { unlock, lock };
  void shmem_lock(Inode& inode, ShmLock what);
  /// swapoff: `page`, locked, is the copy of entry; if entry is a memory file's the page goes back into the file, and
  /// the slot loses its user. True if so. Sleeps.
  bool shmem_unuse(SwpEntry entry, Page& page);

  // FileOperations
  Result<uint64_t> read(File& file, uint64_t pos, std::byte* to, uint64_t bytes) override;
  Result<uint64_t> write(File& file, uint64_t pos, const std::byte* from, uint64_t bytes) override;
  Result<uint64_t> read_tag(File& file, uint64_t index) override;
  Result<void> write_tag(File& file, uint64_t index, uint64_t tag) override;
  /// Nothing to do: there is no other place for it.
  Result<void> fsync(File&) override { return {}; }
  Result<void> truncate(Inode& inode, Bytes size) override;
  // VmOps
  uint32_t fault(FaultRequest& request) override { return shmem_fault(request); }
  // AddressSpaceOps
  Result<void> writepage(Page& page, WritebackControl& wbc) override { return shmem_writepage(page, wbc); }
  bool set_page_dirty(Page& page) override { return __set_page_dirty_no_writeback(page); }

  /// Every file there is: fn(ShmemInode&). None may come or go meanwhile. For verify().
  template <class Fn>
  void for_each_inode(Fn&& fn) {
    for (Inode& inode : inodes_) fn(info_of(inode));
  }

 private:
  using InodeList = boost::intrusive::list<Inode, boost::intrusive::member_hook<Inode, ListHook, &Inode::i_sb_list>,
                                           boost::intrusive::constant_time_size<false>>;
  using SwapList =
      boost::intrusive::list<ShmemInode, boost::intrusive::member_hook<ShmemInode, ListHook, &ShmemInode::swaplist>,
                             boost::intrusive::constant_time_size<false>>;
  /// What a page is wanted for. Linux: enum sgp_type.
  enum class SgpType : uint8_t {
    read,   ///< nothing is made for an empty slot; inside the file only
    cache,  ///< a fault: an empty slot gets a page; inside the file only
    write   ///< the same, behind the end of the file too; its bytes are the caller's to fill if it is not uptodate
  };

  static ShmemInode& info_of(Inode& inode) { return static_cast<ShmemInode&>(inode); }
  Result<ShmemInode*> shmem_get_inode(const char* name, Bytes size, bool limited);
  Result<Page*> shmem_getpage(ShmemInode& info, uint64_t index, SgpType sgp, uint32_t* fault_type = nullptr);
  Result<Page*> shmem_swapin_page(ShmemInode& info, uint64_t index, SwpEntry entry, uint32_t* fault_type);
  Result<Page*> shmem_alloc_page(ShmemInode& info, uint64_t index, SgpType sgp);
  Page* shmem_swapin(SwpEntry entry, gfp_t gfp);
  bool take_back(ShmemInode& info, uint64_t index, SwpEntry entry, Page& page);
  Result<void> shmem_add_to_page_cache(Page& page, AddressSpace& mapping, uint64_t index, SwpEntry expected);
  void shmem_delete_from_page_cache(Page& page, SwpEntry entry);
  static bool shmem_confirm_swap(AddressSpace& mapping, uint64_t index, SwpEntry entry);
  bool shmem_free_swap(AddressSpace& mapping, uint64_t index, SwpEntry entry);
  void shmem_truncate_range(ShmemInode& info, uint64_t first);
  void shmem_evict_inode(ShmemInode& info);
  bool shmem_unuse_inode(ShmemInode& info, SwpEntry entry, Page& page);
  void shmem_unlock_mapping(AddressSpace& mapping);
  void shmem_recalc_inode(ShmemInode& info, int64_t swapped_delta);
  [[nodiscard]] Result<void> shmem_inode_acct_block(ShmemInode& info);
  void shmem_inode_unacct_blocks(ShmemInode& info, uint64_t pages);
  bool __set_page_dirty_no_writeback(Page& page);
  Result<void> shmem_writepage(Page& page, WritebackControl& wbc);
  uint32_t shmem_fault(FaultRequest& request);
  Result<uint64_t> shmem_perform_write(File& file, uint64_t pos, const PageSource& source, uint64_t bytes);

  SwapCache& cache_;
  SwapFiles& swap_;
  PageIo& io_;
  FilemapIo& files_;
  Filemap& filemap_;
  Lru& lru_;
  PageWriteback& writeback_;
  Slab& slab_;
  VmStat& vmstat_;
  Mmu& mmu_;
  const Profile& profile_;
  Truncate truncate_;
  KmemCache* inode_cache_ = nullptr;
  std::atomic<uint64_t> next_ino_{1};
  std::atomic<int64_t> max_blocks_{0}, used_blocks_{0};
  SpinLock inodes_lock_{LockRank::leaf};
  InodeList inodes_;  // inodes_lock_, but for for_each_inode
  Mutex swaplist_mutex_{LockRank::shmem_swaplist};
  SwapList swaplist_ WEIR_GUARDED_BY(swaplist_mutex_);  ///< files that have, or had, entries in swap
};

}  // namespace weir
