// src/mm/vma.hpp
//
// VMAs: make, find, link, and where a new one may go.
//
//   Mm::mmap   [10000, 14000)   [20000, 21000)         a tree by start; none overlap
//   find_vma(13000) = the first; find_vma(15000) = the second, which begins above
//
// Linux: mm/mmap.c (lookup half), mm/vmacache.c, kernel/fork.c (vm_area_dup).
#pragma once

#include "mm/mm_types.hpp"
#include "mm/slab.hpp"

namespace weir {

/// What a mapping's owner does for it. Linux: struct vm_operations_struct.
struct FaultRequest {
  VmArea* vma = nullptr;
  VirtAddr address{};  ///< page aligned
  uint64_t pgoff = 0;
  uint32_t flags = 0;    ///< FaultFlag
  Page* page = nullptr;  ///< out: locked and uptodate, with a reference, when VM_FAULT_LOCKED
};
class VmOps {
 public:
  /// Finds or reads the page. May drop mmap_sem only with FAULT_FLAG_ALLOW_RETRY (then VM_FAULT_RETRY).
  virtual uint32_t fault(FaultRequest& request) = 0;
  /// A shared page is about to become writable: page locked, and locked on return. 0 or VM_FAULT_SIGBUS. Only where the
  /// owner wants to know.
  [[nodiscard]] virtual bool has_page_mkwrite() const { return false; }
  virtual uint32_t page_mkwrite(FaultRequest& request) {
    (void)request;
    return 0;
  }
  /// Something shared of `file` was made dirty by a mapping: its writer may be slowed. Holds at most mmap_sem for reading.
  virtual void balance_dirty(File& file) { (void)file; }

 protected:
  ~VmOps() = default;
};

/// How many VMAs an Mm may have. Linux's value: 65536 less room for a core dump's extra sections.
inline constexpr int32_t sysctl_max_map_count = 65530;

class Vmas {
 public:
  explicit Vmas(Slab& slab);
  Result<void> init();
  [[nodiscard]] VmArea* alloc(gfp_t gfp);
  /// A copy of `vma` that is in no tree and on no list: same range, rights, file (not counted again); no anon_vma.
  [[nodiscard]] VmArea* vm_area_dup(const VmArea& vma, gfp_t gfp);
  void free(VmArea& vma);
  /// First VMA that ends above `address` (it may begin above it too). mmap_sem held.
  [[nodiscard]] VmArea* find_vma(Mm& mm, VirtAddr address) const;
  /// The VMA that holds `address`, or null.
  [[nodiscard]] VmArea* vma_lookup(Mm& mm, VirtAddr address) const;
  [[nodiscard]] VmArea* find_vma_intersection(Mm& mm, VirtAddr start, VirtAddr end) const;
  [[nodiscard]] VmArea* next(Mm& mm, VmArea& vma) const;
  [[nodiscard]] VmArea* prev(Mm& mm, VmArea& vma) const;
  /// The last VMA that begins below `address`, or null.
  [[nodiscard]] VmArea* find_vma_prev(Mm& mm, VirtAddr address) const;
  void insert(Mm& mm, VmArea& vma);  ///< tree, map_count, total_vm
  void remove(Mm& mm, VmArea& vma);
  /// `vma`, in the tree, becomes [start, end): total_vm follows. Its neighbours leave room already.
  void resize(Mm& mm, VmArea& vma, VirtAddr start, VirtAddr end);
  /// The page-aligned `hint` if it is free, else top-down first fit below mm.mmap_base. Errors: ENOMEM.
  Result<VirtAddr> get_unmapped_area(Mm& mm, VirtAddr hint, uint64_t length) const;

 private:
  void hole_made(Mm& mm, VirtAddr start, VirtAddr end) const;

  Slab& slab_;
  KmemCache* cache_ = nullptr;
};

/// mmap_min_addr: below it nothing is mapped, so that a null pointer faults.
inline constexpr VirtAddr MMAP_MIN_ADDR{65536};

}  // namespace weir
