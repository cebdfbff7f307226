// src/mm/memory_3.cpp: a fault's functions in 3.x. See memory.hpp. Linux: mm/memory.c 3.7 to 3.10.
#include <new>

#include "mm/memory.hpp"

namespace weir {

namespace {

class Memory_3 final : public MemoryEra {
 public:
  using MemoryEra::MemoryEra;

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "memory.cpp"
  uint32_t dispatch(Context& ctx) override { return make_path_and_handle(ctx); }
  Page* zeroed_page(Context& ctx) override { return alloc_zeroed_user_highpage_movable(ctx); }
  uint32_t file_fault(Context& ctx) override { return do_linear_fault(ctx); }
  uint32_t nonlinear_fault(Context& ctx) override { return do_nonlinear_fault(ctx); }

 private:
  uint32_t do_linear_fault(Context& ctx) {
    WEIR_FLOW(ctx.address, ctx.flags);
    return __do_fault(ctx);
  }
  uint32_t do_nonlinear_fault(Context& ctx) {
    WEIR_FLOW(ctx.address, ctx.flags);
    if ((ctx.vma.vm_flags & VM_NONLINEAR) == 0) return VM_FAULT_SIGBUS;  // a bad PTE
    ctx.pgoff = pte_to_pgoff(ctx.orig_pte);
    return __do_fault(ctx);
  }
  uint32_t __do_fault(Context& ctx) {
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
  Page* alloc_zeroed_user_highpage_movable(Context& ctx) {
    WEIR_FLOW(ctx.vma, ctx.address);
    return __alloc_zeroed_user_highpage(__GFP_MOVABLE, ctx);
  }
  Page* __alloc_zeroed_user_highpage(gfp_t movableflags, Context& ctx) {
    WEIR_FLOW(movableflags, ctx.vma, ctx.address);
    return prepare_zeroed(pages().alloc_pages(GFP_HIGHUSER | movableflags, Order(0)));
  }
};
static_assert(sizeof(Memory_3) <= Memory::ERA_BYTES);

}  // namespace

MemoryEra* memory_3(void* place, Memory& memory) { return ::new (place) Memory_3(memory); }

}  // namespace weir
