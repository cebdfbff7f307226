// src/mm/mem.hpp
//
// Memory of a device that tasks map: frames of its own, which reclaim never sees. Linux: drivers/char/mem.c (mmap_mem);
// the window is the device's own, not all of memory.
//
//   mmap of the device's file --> mmap_mem --> remap_pfn_range: special PTEs for all of it, no fault, no page
#pragma once

#include "mm/filemap_io.hpp"
#include "mm/memory.hpp"

namespace weir {

class MemDevice final : public FileOperations, public VmOps {
 public:
  MemDevice(FilemapIo& files, Memory& memory, PageAllocator& pages, Mmu& mmu)
      : files_(files), memory_(memory), pages_(pages), mmu_(mmu) {}
  MemDevice(const MemDevice&) = delete;
  MemDevice& operator=(const MemDevice&) = delete;
  /// Takes its frames, one behind the other, all zero: at least `size`, at most 4 MiB. Errors: EINVAL (0, too large),
  /// ENOMEM.
  Result<void> init(const char* name, Bytes size);
  /// Gives them back. Nobody has it open or mapped.
  void exit();
  /// Errors: ENOMEM.
  Result<File*> open();
  [[nodiscard]] PageCount size() const { return PageCount(int64_t{1} << order_.v); }

  // FileOperations: it is only mapped.
  Result<uint64_t> read(File&, uint64_t, std::byte*, uint64_t) override { return Errno::inval; }
  Result<uint64_t> write(File&, uint64_t, const std::byte*, uint64_t) override { return Errno::inval; }
  Result<uint64_t> read_tag(File&, uint64_t) override { return Errno::inval; }
  Result<void> write_tag(File&, uint64_t, uint64_t) override { return Errno::inval; }
  Result<void> fsync(File&) override { return Errno::inval; }
  Result<void> truncate(Inode&, Bytes) override { return Errno::inval; }
  Result<void> mmap(File& file, VmArea& vma) override { return mmap_mem(file, vma); }
  // VmOps: what is not mapped by then never is.
  uint32_t fault(FaultRequest&) override { return VM_FAULT_SIGBUS; }

 private:
  Result<void> mmap_mem(File& file, VmArea& vma);

  FilemapIo& files_;
  Memory& memory_;
  PageAllocator& pages_;
  Mmu& mmu_;
  Inode inode_;
  Page* first_ = nullptr;
  Order order_{};
};

}  // namespace weir
