// src/mm/mempolicy.hpp
//
// Which node a mapping's pages come from. There is one node: whatever the mapping, the answer is the allocator's.
// Linux: mm/mempolicy.c (the entry that faults use).
#pragma once

#include "mm/mm_types.hpp"
#include "mm/page_alloc.hpp"

namespace weir {

/// A page for a mapping. Null: no memory.
[[nodiscard]] Page* alloc_page_vma(PageAllocator& pages, gfp_t gfp, const VmArea& vma, VirtAddr address);

}  // namespace weir
