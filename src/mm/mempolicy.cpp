// src/mm/mempolicy.cpp: see mempolicy.hpp
#include "mm/mempolicy.hpp"

namespace weir {

Page* alloc_page_vma(PageAllocator& pages, gfp_t gfp, const VmArea& vma, VirtAddr address) {
  WEIR_FLOW(gfp, vma, address);
  return pages.alloc_pages(gfp, Order(0));
}

}  // namespace weir
