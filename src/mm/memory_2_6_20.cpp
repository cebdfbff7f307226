// src/mm/memory_2_6_20.cpp: a fault's functions in 2.6.20. See memory.hpp. Linux: mm/memory.c 2.6.20.
#include <new>

#include "mm/memory.hpp"

namespace weir {

namespace {

class Memory_2_6_20 final : public MemoryEra {
 public:
  using MemoryEra::MemoryEra;

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "memory.cpp"
  uint32_t dispatch(Context& ctx) override { return __handle_mm_fault(ctx); }
  Page* zeroed_page(Context& ctx) override { return alloc_zeroed_user_highpage(ctx); }
  uint32_t file_fault(Context& ctx) override { return do_no_page(ctx); }
  uint32_t nonlinear_fault(Context& ctx) override { return do_file_page(ctx); }
  void swapped_in(Page& page) override { lru().mark_page_accessed(page); }
  Page* fitting(Page& page, VmArea&, VirtAddr) override { return &page; }
  void own(Page&, VmArea&) override {}  // all of the family's pages hang on one AnonVma

 private:
  uint32_t __handle_mm_fault(Context& ctx) {
    WEIR_FLOW(ctx.address, ctx.flags);
    return make_path_and_handle(ctx);
  }
  uint32_t do_file_page(Context& ctx) {
    WEIR_FLOW(ctx.address, ctx.flags);
    if ((ctx.vma.vm_flags & VM_NONLINEAR) == 0) return VM_FAULT_OOM;  // a bad PTE
    ctx.pgoff = pte_to_pgoff(ctx.orig_pte);
    return memory_file_fault(ctx);
  }
  uint32_t do_no_page(Context& ctx) {
    WEIR_FLOW(ctx.address, ctx.flags);
    return memory_file_fault(ctx);
  }

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "pgtable.h"
  [[nodiscard]] bool pte_file(Pte pte) const override {
    WEIR_FLOW(pte);
    return is_file_pte(pte);
  }

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "highmem.h"
  Page* alloc_zeroed_user_highpage(Context& ctx) {
    WEIR_FLOW(ctx.vma, ctx.address);
    return prepare_zeroed(pages().alloc_pages(GFP_HIGHUSER, Order(0)));
  }
};
static_assert(sizeof(Memory_2_6_20) <= Memory::ERA_BYTES);

}  // namespace

MemoryEra* memory_2_6_20(void* place, Memory& memory) { return ::new (place) Memory_2_6_20(memory); }

}  // namespace weir
