// src/mm/mmap.hpp
//
// The system calls on address spaces: mmap, munmap, brk, mremap, mprotect, madvise, mlock; fork and exit of an Mm.
// No page is allocated by mmap.
//
//   mmap     --> do_mmap --> get_unmapped_area --> mmap_region --> vma_merge, or a new VMA
//   munmap   --> do_munmap --> split_vma at the edges --> out of the tree --> zap, rmap, tables --> freed
//   mprotect, madvise, mlock --> vma_merge with the neighbours, or split_vma --> flags
//   fork     --> dup_mm --> dup_mmap --> copy_page_range a VMA;   last mmput --> exit_mmap
//
// Two VMAs are one (vma_merge) when they touch, have equal flags and file, continuous pgoff, and their pages hang on
// the same anon_vma or one of them has none yet. So neighbours that could be one are one, but after a failed
// allocation.
//
// The files: mmap.cpp (mmap, munmap, brk, merge, split), mremap.cpp, mprotect.cpp, madvise.cpp, mlock.cpp,
// fremap.cpp, task_mmu.cpp, fork.cpp (life of an Mm). Linux: the same names in mm/, kernel/fork.c; 4.14.
#pragma once

#include "mm/fault.hpp"
#include "mm/inode.hpp"
#include "mm/ksm.hpp"
#include "mm/shmem.hpp"
#include "mm/vmscan.hpp"

namespace weir {

struct MmapRequest {
  VirtAddr addr{};                     ///< hint, or the place with fixed
  uint64_t length = 0;                 ///< bytes
  uint64_t prot = VM_READ | VM_WRITE;  ///< VM_READ | VM_WRITE | VM_EXEC
  enum class Sharing : uint8_t { private_, shared } sharing = Sharing::private_;
  enum class Place : uint8_t { hint, fixed } place = Place::hint;
  uint64_t extra_flags = 0;  ///< VM_LOCKED, VM_NORESERVE, …
  File* file = nullptr;
  uint64_t pgoff = 0;
};

/// Bits of a pagemap entry. Below them the frame number, or the swap area (5 bits) and the slot.
inline constexpr uint64_t PM_SOFT_DIRTY = uint64_t{1} << 55, PM_MMAP_EXCLUSIVE = uint64_t{1} << 56,
                          PM_FILE = uint64_t{1} << 61, PM_SWAP = uint64_t{1} << 62, PM_PRESENT = uint64_t{1} << 63;
inline constexpr unsigned MAX_SWAPFILES_SHIFT = 5;

enum class Advice : uint8_t {
  normal,
  random,
  sequential,
  willneed,
  dontneed,
  mergeable,
  unmergeable,
  free,
  cold,
  pageout
};

class AddressSpaces {
 public:
  AddressSpaces(Memory& memory, Fault& fault, Vmas& vmas, Rmap& rmap, PageTables& tables, SwapFiles& swap, Slab& slab,
                VmStat& vmstat, Mmu& mmu, const Profile& profile = profile_of(DEFAULT_KERNEL));
  Result<void> init();
  /// Who makes the memory that address spaces share without a file. Without it there is none (ENODEV).
  void set_shmem(Shmem& shmem) { shmem_ = &shmem; }
  /// Who takes the pages that madvise gives up (pageout).
  void set_vmscan(Vmscan& vmscan) { vmscan_ = &vmscan; }
  /// The last kind of advice that the kernel knows; others are EINVAL.
  void set_newest_advice(Advice advice) { newest_advice_ = advice; }
  void set_ksm(Ksm& ksm) { ksm_ = &ksm; }

  Result<Mm*> mm_alloc(Task* owner);
  void mmget(Mm& mm) {
    WEIR_FLOW(mm);
    mm.mm_users.fetch_add(1, std::memory_order_acq_rel);
  }
  void mmgrab(Mm& mm) { mm.mm_count.fetch_add(1, std::memory_order_acq_rel); }
  /// Last user: exit_mmap. Last reference: the struct goes. Sleeps.
  void mmput(Mm& mm);
  void mmdrop(Mm& mm);
  /// fork: a new Mm with the same VMAs; pages shared copy-on-write. Errors: ENOMEM (nothing left behind); ENOSYS where
  /// hardware cannot write-protect.
  Result<Mm*> fork(Mm& old, Task* owner);
  Result<Mm*> dup_mm(Mm& old, Task* owner);
  void exit_mmap(Mm& mm);

  // All take mmap_sem themselves. Errors as the system calls.
  /// Errors: EINVAL (length 0, place not aligned, pgoff), ENOMEM (no room, too many VMAs), EOVERFLOW (end of the file
  /// offset), ENODEV (a file that cannot be mapped; shared memory without a file where there is no shmem), ENOSYS
  /// (shared where hardware has no alias), FileOperations::mmap's. What is VM_LOCKED comes at once, as far as it can,
  /// where the thread is one of the Mm's task; so in brk and mremap.
  Result<VirtAddr> mmap(Mm& mm, const MmapRequest& request);
  Result<void> munmap(Mm& mm, VirtAddr start, uint64_t length);
  /// Returns the new break (the old one when it cannot move).
  VirtAddr brk(Mm& mm, VirtAddr brk);
  enum class MayMove : uint8_t { no, yes };
  Result<VirtAddr> mremap(Mm& mm, VirtAddr old_addr, uint64_t old_len, uint64_t new_len, MayMove may_move,
                          VirtAddr fixed = VirtAddr(0));
  /// [start, start + size) of a shared mapping shows the file's pages from pgoff on; they come at their faults. Until
  /// 3.x the mapping stays one, and its PTEs say which page is where (Profile::nonlinear); else it becomes several.
  /// prot is 0. Errors: EINVAL (prot, the range, not all of it in one shared mapping), ENOMEM.
  Result<void> remap_file_pages(Mm& mm, VirtAddr start, uint64_t size, uint64_t prot, uint64_t pgoff);
  Result<void> mprotect(Mm& mm, VirtAddr start, uint64_t length, uint64_t prot);
  /// dontneed: the pages go, and read as zero (or as the file) again. random, sequential: how files are read ahead.
  /// free (4.5; anonymous memory): the pages may go when memory is short; one that is written to until then stays.
  /// Where hardware has no dirty bits they go at once. cold (5.4): to the inactive lists. pageout (5.4): out, as far as
  /// they go now. willneed: nothing. Errors: EINVAL (the place; locked memory; free of a file's), ENOMEM (a hole; the
  /// rest is done).
  Result<void> madvise(Mm& mm, VirtAddr start, uint64_t length, Advice advice);
  enum class ClearRefs : uint8_t { all = 1, anon = 2, mapped = 3, soft_dirty = 4 };
  /// What is written to /proc/PID/clear_refs. Errors: EINVAL (only 4 is there), ENOSYS (before 3.11, or hardware cannot
  /// write-protect).
  Result<void> clear_refs_write(Mm& mm, ClearRefs what);
  /// The page's entry in /proc/PID/pagemap: PM_ bits.
  uint64_t pagemap(Mm& mm, VirtAddr address);
  enum class Lock : uint8_t { no, yes, onfault };
  /// Faults everything in (as `task`), and it stays. Errors: EINVAL (it wraps), ENOMEM (a hole; memory that cannot be
  /// brought in).
  Result<void> mlock(Task& task, VirtAddr start, uint64_t length);
  /// onfault (4.4): what is in memory stays, the rest from its fault on. yes: as mlock. Errors: those; EINVAL (no),
  /// ENOSYS (before 4.4).
  Result<void> mlock2(Task& task, VirtAddr start, uint64_t length, Lock lock);
  /// Errors: EINVAL (it wraps), ENOMEM (a hole).
  Result<void> munlock(Task& task, VirtAddr start, uint64_t length);
  enum class LockFuture : uint8_t { no, yes, onfault };
  /// All that is mapped now (`current`; onfault as above), and what is mapped from now on (`future`). What cannot be
  /// brought in is left out. Errors: EINVAL (neither; onfault before 4.4).
  Result<void> mlockall(Task& task, Lock current, LockFuture future);
  Result<void> munlockall(Task& task);

 private:
  // mmap.cpp; mmap_sem held for writing
  Result<VirtAddr> do_mmap(Mm& mm, const MmapRequest& request);
  Result<VirtAddr> mmap_region(Mm& mm, VirtAddr start, uint64_t length, uint64_t flags, File* file, uint64_t pgoff);
  Result<void> do_munmap(Mm& mm, VirtAddr start, uint64_t length);
  Result<void> do_brk_flags(Mm& mm, VirtAddr start, uint64_t length);
  void unmap_region(Mm& mm, VmaList& list, VirtAddr start, VirtAddr end);
  void free_tables(Mm& mm, VirtAddr start, VirtAddr end);
  void remove_vma(VmArea& vma);
  Result<void> call_mmap(Mm& mm, VmArea& vma);
  /// What a VMA is to be, for vma_merge.
  struct Wanted {
    VirtAddr start, end;
    uint64_t flags;
    AnonVma* anon_vma;
    File* file;
    VmOps* ops;
    uint64_t pgoff;
  };
  /// [start, end), a hole or (part of) `area`, becomes part of a neighbour if it can. Null: it cannot, or there is no
  /// memory; nothing changed.
  VmArea* vma_merge(Mm& mm, const Wanted& wanted, VmArea* area);
  /// `vma` grows over holes and over `eaten`, which shrinks or goes. Errors: ENOMEM, nothing changed.
  Result<void> vma_grow(Mm& mm, VmArea& vma, VirtAddr start, VirtAddr end, VmArea* eaten);
  /// `vma` came to lie beside others, or grew up to them. It may be gone afterwards.
  void merge_with_neighbours(Mm& mm, VmArea& vma);
  enum class NewOne : uint8_t { above, below };
  /// Two of one; `vma` stays the part that is not new. Errors: ENOMEM.
  Result<VmArea*> split_vma(Mm& mm, VmArea& vma, VirtAddr address, NewOne which);
  Result<VmArea*> __split_vma(Mm& mm, VmArea& vma, VirtAddr address, NewOne which);
  /// [start, end) of vma gets other flags. Returns the VMA that it belongs to now. Errors: ENOMEM.
  Result<VmArea*> change_flags(Mm& mm, VmArea& vma, VirtAddr start, VirtAddr end, uint64_t flags);
  Result<VmArea*> new_vma(Mm& mm, const Wanted& wanted);
  /// Every VMA of [start, end) in turn: fn(vma, its start, its end) -> Result<VmArea*>, the VMA that now holds that
  /// part. Errors: fn's; ENOMEM for a hole, at which it ends if `holes` says so.
  enum class Holes : uint8_t { end, skip };
  template <class Fn>
  Result<void> for_each_part(Mm& mm, VirtAddr start, VirtAddr end, Holes holes, Fn fn);

  // mlock.cpp; mmap_sem not held
  void mm_populate(Mm& mm, VirtAddr start, VirtAddr end);
  // mremap.cpp
  Result<VirtAddr> resize_mapping(Mm& mm, VirtAddr old_addr, uint64_t old_len, uint64_t new_len, MayMove may_move,
                                  VirtAddr fixed);
  Result<VmArea*> vma_to_resize(Mm& mm, VirtAddr address, uint64_t old_len, uint64_t new_len);
  Result<VirtAddr> move_vma(Mm& mm, VmArea& vma, VirtAddr old_addr, uint64_t old_len, uint64_t new_len,
                            VirtAddr new_addr);
  Result<VmArea*> copy_vma(Mm& mm, VmArea& vma, VirtAddr old_addr, VirtAddr new_addr, uint64_t length);

  // mprotect.cpp, madvise.cpp, mlock.cpp
  Result<VmArea*> mprotect_fixup(Mm& mm, VmArea& vma, VirtAddr start, VirtAddr end, uint64_t prot);
  Result<void> madvise_vma(VmArea& vma, VirtAddr start, VirtAddr end, Advice advice);
  void madvise_free_pte_range(VmArea& vma, VirtAddr start, VirtAddr end);
  void madvise_free_single_vma(VmArea& vma, VirtAddr start, VirtAddr end);
  void madvise_cold_or_pageout(VmArea& vma, VirtAddr start, VirtAddr end, Advice advice);
  struct MlockEra;
  [[nodiscard]] static const MlockEra& mlock_era_of(KernelEra kernel);
  Result<void> set_lock_flags(Mm& mm, VirtAddr start, VirtAddr end, uint64_t lock_flags);
  void set_all_lock_flags(Mm& mm, uint64_t lock_flags);
  Result<VmArea*> mlock_fixup(VmArea& vma, VirtAddr start, VirtAddr end, uint64_t lock_flags);
  Result<void> populate(Task& task, VirtAddr start, VirtAddr end);
  void munlock_vma_pages_range(VmArea& vma, VirtAddr start, VirtAddr end);
  void munlock_vma_pages_all(VmArea& vma);
  Page* get_present_page(Mm& mm, VirtAddr address, Pte& pte);

  // task_mmu.cpp
  void clear_soft_dirty(VmArea& vma);

  // fork.cpp
  Mm* allocate_mm();
  void free_mm(Mm& mm);
  Result<void> mm_alloc_pgd(Mm& mm);
  Result<void> mm_init(Mm& mm, Task* owner);
  Result<void> dup_mmap(Mm& mm, Mm& old);

  Memory& memory_;
  Fault& fault_;
  Vmas& vmas_;
  Rmap& rmap_;
  PageTables& tables_;
  SwapFiles& swap_;
  Slab& slab_;
  VmStat& vmstat_;
  Mmu& mmu_;
  const Profile& profile_;
  const MlockEra& mlock_era_;
  Shmem* shmem_ = nullptr;
  Vmscan* vmscan_ = nullptr;
  Advice newest_advice_ = Advice::pageout;
  Ksm* ksm_ = nullptr;
  KmemCache* mm_cache_ = nullptr;
  std::atomic<uint64_t> next_mm_id_{1};
  SpinLock dead_lock_{LockRank::leaf};
  /// Structs of Mms that are gone, kept for new ones: a FlushBatch of reclaim may name an Mm that dies before the batch
  /// is flushed. Such an entry then names an Mm that has nothing at the address, or a new one that loses no more than a
  /// translation.
  MmList dead_ WEIR_GUARDED_BY(dead_lock_);
};

/// What munlock and fork take off a mapping.
inline constexpr uint64_t VM_LOCKED_CLEAR = VM_LOCKED | VM_LOCKONFAULT;
/// Its pages come when it is mapped, not at their faults.
[[nodiscard]] constexpr bool locked_at_once(uint64_t vm_flags) { return (vm_flags & VM_LOCKED_CLEAR) == VM_LOCKED; }
/// Rights that a mapping may be given later.
inline constexpr uint64_t VM_MAY_FLAGS = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC;
/// One past the last address that user tables can map. What lies in [0, this) is freed with its last mapping.
inline constexpr VirtAddr USER_PGTABLES_CEILING{uint64_t{1} << 47};

template <class Fn>
Result<void> AddressSpaces::for_each_part(Mm& mm, VirtAddr start, VirtAddr end, Holes holes, Fn fn) {
  Result<void> hole;
  for (VirtAddr at = start; at < end;) {
    VmArea* vma = vmas_.find_vma(mm, at);
    if (vma == nullptr || vma->vm_start > at) {
      if (holes == Holes::end) return Errno::nomem;
      hole = Errno::nomem;
      if (vma == nullptr || vma->vm_start >= end) return hole;
      at = vma->vm_start;
    }
    const VirtAddr stop = vma->vm_end < end ? vma->vm_end : end;
    Result<VmArea*> now = fn(*vma, at, stop);
    if (!now) return now.error();
    at = stop;
  }
  return hole;
}

}  // namespace weir
