// src/mm/rmap.hpp
//
// From a page to every PTE that maps it.
//
//   anonymous: page->mapping = AnonVma | 1, index = linear page offset; AnonVma holds chains (AnonVmaChain) to all VMAs that may map it
//              address = vm_start + (index - vm_pgoff) × 4096, outside the VMA: skip
//   file:      page->mapping = AddressSpace, whose i_mmap holds all VMAs of the file
//
// Linux: mm/rmap.c 4.14 (anon_vma_chain, interval trees).
#pragma once

#include "mm/filemap.hpp"
#include "mm/pgtable.hpp"
#include "mm/swapfile.hpp"
#include "mm/vma.hpp"

namespace weir {

/// Links one VMA to one AnonVma; in the AnonVma's interval tree and on the VMA's list.
struct AnonVmaChain {
  VmArea* vma = nullptr;
  AnonVma* anon_vma = nullptr;
  AnonVmaChain* next_of_vma = nullptr;  // mmap_sem + anon_vma lock
  IntervalTreeLink link;                // root's lock
};

struct AnonVma {
  AnonVma* root = nullptr;              ///< whose lock guards the whole family; immutable
  RwSem rwsem{LockRank::anon_vma};      ///< used on the root only
  std::atomic<int32_t> refcount{1};
  AnonVma* parent = nullptr;
  int32_t degree = 0;                   ///< children + VMAs whose anon_vma is this: at most 1 -> may be reused in fork
  void* tree = nullptr;                 ///< interval tree of chains; typed in rmap.cpp
};

/// How a walk over a page's mappings goes. Linux: struct rmap_walk_control.
struct RmapWalkControl {
  void* arg = nullptr;
  /// False ends the walk.
  bool (*rmap_one)(Page& page, VmArea& vma, VirtAddr address, void* arg) = nullptr;
  bool (*done)(Page& page) = nullptr;
  bool (*invalid_vma)(VmArea& vma, void* arg) = nullptr;
};

enum class TryToUnmap : uint8_t { success, fail };

class Rmap {
 public:
  Rmap(PageTables& tables, Slab& slab, Filemap& filemap, SwapFiles& swap, VmStat& vmstat, Mmu& mmu);
  Result<void> init();

  // ---- anchors
  /// vma gets an anon_vma (its own or a mergeable neighbour's). mmap_sem for reading suffices. Errors: ENOMEM.
  Result<void> anon_vma_prepare(VmArea& vma, VmArea* mergeable_neighbour);
  /// dst is linked wherever src is (split, merge, move). Errors: ENOMEM, nothing changed.
  Result<void> anon_vma_clone(VmArea& dst, VmArea& src);
  /// The same, and an anon_vma of dst's own, child of src's (fork).
  Result<void> anon_vma_fork(VmArea& dst, VmArea& src);
  void unlink_anon_vmas(VmArea& vma);
  /// Around a change of vm_start, vm_end or vm_pgoff: out of every interval tree, and in again.
  void anon_vma_interval_tree_pre_update_vma(VmArea& vma);
  void anon_vma_interval_tree_post_update_vma(VmArea& vma);
  void vma_link_file(VmArea& vma);
  void vma_unlink_file(VmArea& vma);

  // ---- mapping and unmapping of one PTE's worth; PTE lock held
  void page_add_new_anon_rmap(Page& page, VmArea& vma, VirtAddr address);
  void page_add_anon_rmap(Page& page, VmArea& vma, VirtAddr address);
  void page_add_file_rmap(Page& page);
  /// A further mapping of a page already mapped (fork).
  void page_dup_rmap(Page& page);
  void page_remove_rmap(Page& page);
  /// The page, mapped here alone, now belongs to this VMA's own anon_vma (after a COW reuse). Page locked.
  void page_move_anon_rmap(Page& page, VmArea& vma);

  // ---- walks; page locked
  void rmap_walk(Page& page, RmapWalkControl& control);
  /// Mappings that were young; they are old now. vm_flags: union of flags of the VMAs that map it; VM_LOCKED ends the walk.
  /// Where !has_accessed: old ones are put into `batch` (the caller hands it to Mmu::age_batch).
  int page_referenced(Page& page, uint64_t* vm_flags, FlushBatch& batch);
  /// Takes every PTE away: anonymous ones get the page's swap entry. fail: a VM_LOCKED mapping, or memory for a count is missing;
  /// PTEs already changed stay valid swap entries. Hardware is flushed by the caller: batch -> Mmu::flush_batch.
  TryToUnmap try_to_unmap(Page& page, FlushBatch& batch);
  /// For a file page about to be written: every PTE clean and write-protected. Returns how many were dirty.
  int page_mkclean(Page& page, FlushBatch& batch);

  /// Address of `page` in `vma`, or none (-EFAULT as VirtAddr(~0)).
  [[nodiscard]] static VirtAddr vma_address(const Page& page, const VmArea& vma);

 private:
  PageTables& tables_;
  Slab& slab_;
  Filemap& filemap_;
  SwapFiles& swap_;
  VmStat& vmstat_;
  Mmu& mmu_;
};

}  // namespace weir
