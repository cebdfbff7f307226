// src/mm/memory.hpp
//
// Faults, copying and zapping of page tables. Linux: mm/memory.c 4.14.
//
// New pages are locked from allocation until hardware has them (update_mmu_cache): between "PTE set, lock dropped" and "mapped in
// hardware" another thread's fault on the same address finds a present PTE, waits for the page lock and looks again. Where hardware
// walks our tables itself (soft), that window is empty.
#pragma once

#include "mm/rmap.hpp"
#include "mm/swap_state.hpp"

namespace weir {

/// Pages and translations on their way out (munmap, exit, DONTNEED): translations are flushed before frames are freed.
/// Linux: struct mmu_gather.
struct MmuGather {
  static constexpr unsigned MAX = 128;
  Mm* mm = nullptr;
  VirtAddr start{~uint64_t{0}}, end{0};
  Page* pages[MAX];
  unsigned nr = 0;
};

class Memory {
 public:
  Memory(PageTables& tables, Vmas& vmas, Rmap& rmap, SwapCache& cache, SwapFiles& swap, Filemap& filemap, VmStat& vmstat, Mmu& mmu);
  Result<void> init();   ///< the zero page, where the Mmu has one

  /// mmap_sem held for reading. VmFault bits.
  uint32_t handle_mm_fault(VmArea& vma, VirtAddr address, uint32_t flags);

  /// fork: dst gets src's mappings; private writable ones become read-only on both sides. Both mmap_sems held for writing. Errors: ENOMEM.
  Result<void> copy_page_range(VmArea& dst, VmArea& src);
  /// Every page of [start, end) in vma leaves. mmap_sem held.
  void zap_page_range(VmArea& vma, VirtAddr start, VirtAddr end);
  /// All VMAs of a dying mm.
  void unmap_vmas(Mm& mm);
  /// Moves PTEs (mremap): from old to new addresses of the same pages. mmap_sem for writing.
  Result<void> move_page_tables(VmArea& from, VirtAddr old_addr, VmArea& to, VirtAddr new_addr, uint64_t length);
  /// Rights changed (mprotect): PTEs lose what the VMA no longer grants.
  void change_protection(VmArea& vma, VirtAddr start, VirtAddr end);

  [[nodiscard]] Page* zero_page() const { return zero_page_; }

 private:
  PageTables& tables_;
  Vmas& vmas_;
  Rmap& rmap_;
  SwapCache& cache_;
  SwapFiles& swap_;
  Filemap& filemap_;
  VmStat& vmstat_;
  Mmu& mmu_;
  Page* zero_page_ = nullptr;
};

}  // namespace weir
