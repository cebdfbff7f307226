// src/mm/mmap.hpp
//
// The system calls on address spaces: mmap, munmap, brk, mremap, mprotect, madvise, mlock; fork and exit of an Mm.
// Linux: mm/mmap.c, mremap.c, mprotect.c, madvise.c, mlock.c, kernel/fork.c, kernel/exit.c. No page is allocated by mmap.
#pragma once

#include "mm/fault.hpp"
#include "mm/inode.hpp"

namespace weir {

struct MmapRequest {
  VirtAddr addr{};            ///< hint, or the place with fixed
  uint64_t length = 0;        ///< bytes
  uint64_t prot = VM_READ | VM_WRITE;  ///< VM_READ | VM_WRITE | VM_EXEC
  enum class Sharing : uint8_t { private_, shared } sharing = Sharing::private_;
  enum class Place : uint8_t { hint, fixed } place = Place::hint;
  uint64_t extra_flags = 0;   ///< VM_LOCKED, VM_NORESERVE, …
  File* file = nullptr;
  uint64_t pgoff = 0;
};

enum class Advice : uint8_t { normal, random, sequential, willneed, dontneed };

class AddressSpaces {
 public:
  AddressSpaces(Memory& memory, Fault& fault, Vmas& vmas, Rmap& rmap, PageTables& tables, SwapFiles& swap, Slab& slab, VmStat& vmstat, Mmu& mmu);
  Result<void> init();

  Result<Mm*> mm_alloc(Task* owner);
  void mmget(Mm& mm) { mm.mm_users.fetch_add(1, std::memory_order_acq_rel); }
  /// Last user: exit_mmap. Last reference: the struct goes.
  void mmput(Mm& mm);
  void mmdrop(Mm& mm);
  /// fork: a new Mm with the same VMAs; pages shared copy-on-write. Errors: ENOMEM (nothing left behind).
  Result<Mm*> dup_mm(Mm& old, Task* owner);
  void exit_mmap(Mm& mm);

  // All take mmap_sem themselves. Errors as the system calls.
  Result<VirtAddr> mmap(Mm& mm, const MmapRequest& request);
  Result<void> munmap(Mm& mm, VirtAddr start, uint64_t length);
  /// Returns the new break (the old one when it cannot move).
  VirtAddr brk(Mm& mm, VirtAddr brk);
  enum class MayMove : uint8_t { no, yes };
  Result<VirtAddr> mremap(Mm& mm, VirtAddr old_addr, uint64_t old_len, uint64_t new_len, MayMove may_move, VirtAddr fixed = VirtAddr(0));
  Result<void> mprotect(Mm& mm, VirtAddr start, uint64_t length, uint64_t prot);
  Result<void> madvise(Mm& mm, VirtAddr start, uint64_t length, Advice advice);
  enum class Lock : uint8_t { no, yes };
  /// yes: faults everything in (as `task`).
  Result<void> mlock(Task& task, VirtAddr start, uint64_t length, Lock lock);

 private:
  Memory& memory_;
  Fault& fault_;
  Vmas& vmas_;
  Rmap& rmap_;
  PageTables& tables_;
  SwapFiles& swap_;
  Slab& slab_;
  VmStat& vmstat_;
  Mmu& mmu_;
};

}  // namespace weir
