// src/mm/filemap_io.hpp
//
// Files read, written, mapped. Linux: mm/filemap.c (generic_file_read_iter, generic_perform_write, filemap_fault), mm/readahead.c.
#pragma once

#include "mm/inode.hpp"
#include "mm/page_io.hpp"
#include "mm/page_writeback.hpp"
#include "mm/vma.hpp"

namespace weir {

class FilemapIo final : public VmOps, public AddressSpaceOps {
 public:
  FilemapIo(Filemap& filemap, PageIo& io, PageWriteback& writeback, Slab& slab, VmStat& vmstat, Mmu& mmu);
  Result<void> init();

  /// A file of max_bytes on `device` from page first_page. Errors: ENOMEM, EINVAL (outside the device).
  Result<Inode*> create_inode(const char* name, BlockDevice& device, uint64_t first_page, Bytes size, Bytes max_bytes);
  Result<File*> open(Inode& inode);
  void close(File& file);
  void iput(Inode& inode);

  /// Reads up to n bytes at pos into `to` (backed) — or, tagged, the tag of each page into `tags`. Returns bytes. Errors: EIO, ENOMEM, EINTR.
  Result<uint64_t> read(File& file, uint64_t pos, std::byte* to, uint64_t bytes);
  Result<uint64_t> write(File& file, uint64_t pos, const std::byte* from, uint64_t bytes);
  /// Whole pages by content: what tagged simulations and the model test use.
  Result<uint64_t> read_tag(File& file, uint64_t index);
  Result<void> write_tag(File& file, uint64_t index, uint64_t tag);
  Result<void> fsync(File& file);

  // VmOps
  uint32_t fault(FaultRequest& request) override;
  uint32_t page_mkwrite(FaultRequest& request) override;
  // AddressSpaceOps
  Result<void> writepage(Page& page, WritebackControl& wbc) override;
  Result<void> readpage(AddressSpace& mapping, Page& page) override;
  bool set_page_dirty(Page& page) override;

 private:
  Filemap& filemap_;
  PageIo& io_;
  PageWriteback& writeback_;
  Slab& slab_;
  VmStat& vmstat_;
  Mmu& mmu_;
};

}  // namespace weir
