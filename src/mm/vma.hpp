// src/mm/vma.hpp
//
// VMAs: make, find, link. Linux: mm/mmap.c (lookup half), mm/nommu parts, kernel/fork.c (vm_area_dup).
#pragma once

#include "mm/mm_types.hpp"
#include "mm/slab.hpp"

namespace weir {

/// What a mapping's owner does for it. Linux: struct vm_operations_struct.
struct FaultRequest {
  VmArea* vma = nullptr;
  VirtAddr address{};       ///< page aligned
  uint64_t pgoff = 0;
  uint32_t flags = 0;       ///< FaultFlag
  Page* page = nullptr;     ///< out: locked and uptodate, with a reference, when VM_FAULT_LOCKED
};
class VmOps {
 public:
  /// Finds or reads the page. May drop mmap_sem only with FAULT_FLAG_ALLOW_RETRY (then VM_FAULT_RETRY).
  virtual uint32_t fault(FaultRequest& request) = 0;
  /// A shared page is about to become writable: page locked. 0 or VM_FAULT_SIGBUS.
  virtual uint32_t page_mkwrite(FaultRequest& request) = 0;

 protected:
  ~VmOps() = default;
};

class Vmas {
 public:
  explicit Vmas(Slab& slab);
  Result<void> init();
  [[nodiscard]] VmArea* alloc(gfp_t gfp);
  void free(VmArea& vma);
  /// First VMA that ends above `address` (it may begin above it too). mmap_sem held.
  [[nodiscard]] VmArea* find_vma(Mm& mm, VirtAddr address) const;
  /// The VMA that holds `address`, or null.
  [[nodiscard]] VmArea* vma_lookup(Mm& mm, VirtAddr address) const;
  [[nodiscard]] VmArea* find_vma_intersection(Mm& mm, VirtAddr start, VirtAddr end) const;
  [[nodiscard]] VmArea* next(Mm& mm, VmArea& vma) const;
  [[nodiscard]] VmArea* prev(Mm& mm, VmArea& vma) const;
  void insert(Mm& mm, VmArea& vma);  ///< tree, map_count, total_vm; records vma_create
  void remove(Mm& mm, VmArea& vma);
  /// Top-down first fit below mm.mmap_base. Errors: ENOMEM.
  Result<VirtAddr> get_unmapped_area(Mm& mm, VirtAddr hint, uint64_t length) const;

 private:
  Slab& slab_;
  KmemCache* cache_ = nullptr;
};

inline constexpr int32_t sysctl_max_map_count = 65530;

}  // namespace weir
