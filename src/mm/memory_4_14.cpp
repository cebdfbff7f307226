// src/mm/memory_4_14.cpp: a fault's functions in 4.14. See memory.hpp. Linux: mm/memory.c 4.14.
#include <new>

#include "mm/memory.hpp"

namespace weir {

namespace {

class Memory_4_14 final : public MemoryEra {
 public:
  using MemoryEra::MemoryEra;

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "memory.cpp"
  uint32_t dispatch(Context& ctx) override { return __handle_mm_fault(ctx); }
  Page* zeroed_page(Context& ctx) override { return alloc_zeroed_user_highpage_movable(ctx); }
  uint32_t file_fault(Context& ctx) override { return do_fault(ctx); }
  [[nodiscard]] Pte restored(Pte pte, Pte swap_pte) const override {
    return pte_swp_soft_dirty(swap_pte) ? pte_mksoft_dirty(pte) : pte;
  }
  [[nodiscard]] Pte moved(Pte pte) const override { return move_soft_dirty_pte(pte); }
  Result<void> remap_below_pgd(VmArea& vma, Pte* pgd, VirtAddr address, VirtAddr end, Pfn pfn) override {
    return remap_p4d_range(vma, pgd, address, end, pfn);
  }
  void mapped_again(Page& page) override { lru().activate_page(page); }
  uint32_t read_fault(Context& ctx) override { return do_read_fault(ctx); }
  uint32_t cow_fault(Context& ctx) override { return do_cow_fault(ctx); }
  uint32_t shared_fault(Context& ctx) override { return do_shared_fault(ctx); }
  uint32_t ask_owner(Context& ctx) override { return __do_fault(ctx); }
  uint32_t map_file_page(Context& ctx) override { return finish_fault(ctx); }
  uint32_t set_file_pte(Context& ctx, Page& page, PteLock& ptl, Pte& entry) override {
    return alloc_set_pte(ctx, page, ptl, entry);
  }
  uint32_t ask_mkwrite(Context& ctx) override { return do_page_mkwrite(ctx); }
  uint32_t dirty_shared_page(Context& ctx, Page& page) override { return fault_dirty_shared_page(ctx, page); }
  uint32_t copy_page(Context& ctx, Page* old_page) override { return wp_page_copy(ctx, old_page); }
  Pte reuse_page(Context& ctx, PteLock& ptl) override { return wp_page_reuse(ctx, ptl); }
  uint32_t reuse_shared_page(Context& ctx, Page& page, PteLock ptl) override {
    return wp_page_shared(ctx, page, std::move(ptl));
  }

 private:
  /// The fourth of five levels; there are four, and it is folded into the top.
  Result<void> remap_p4d_range(VmArea& vma, Pte* pgd, VirtAddr address, VirtAddr end, Pfn pfn) {
    WEIR_FLOW(address, end, pfn);
    Pte* p4d = p4d_alloc(pgd, address);
    const VirtAddr next = p4d_addr_end(address, end);
    WEIR_DEBUG_BUG_ON(next != end);
    return MemoryEra::remap_below_pgd(vma, p4d, address, next, pfn);
  }
  /// At its new address nobody has seen it yet.
  static Pte move_soft_dirty_pte(Pte pte) {
    WEIR_FLOW(pte);
    return pte_present(pte) ? pte_mksoft_dirty(pte) : pte_swp_mksoft_dirty(pte);
  }
  uint32_t __handle_mm_fault(Context& ctx) {
    WEIR_FLOW(ctx.address, ctx.flags);
    return handle_pte_fault(ctx);
  }
  uint32_t do_fault(Context& ctx) {
    WEIR_FLOW(ctx.address, ctx.flags);
    return memory_file_fault(ctx);
  }
  uint32_t do_read_fault(Context& ctx) {
    WEIR_FLOW(ctx.address);
    return MemoryEra::read_fault(ctx);
  }
  uint32_t do_cow_fault(Context& ctx) {
    WEIR_FLOW(ctx.address);
    return MemoryEra::cow_fault(ctx);
  }
  uint32_t do_shared_fault(Context& ctx) {
    WEIR_FLOW(ctx.address);
    return MemoryEra::shared_fault(ctx);
  }
  uint32_t __do_fault(Context& ctx) {
    WEIR_FLOW(ctx.address, ctx.flags);
    return MemoryEra::ask_owner(ctx);
  }
  uint32_t finish_fault(Context& ctx) {
    WEIR_FLOW(ctx.address);
    return MemoryEra::map_file_page(ctx);
  }
  uint32_t alloc_set_pte(Context& ctx, Page& page, PteLock& ptl, Pte& entry) {
    WEIR_FLOW(ctx.address, pfn(page));
    return MemoryEra::set_file_pte(ctx, page, ptl, entry);
  }
  uint32_t do_page_mkwrite(Context& ctx) {
    WEIR_FLOW(ctx.address);
    return MemoryEra::ask_mkwrite(ctx);
  }
  uint32_t fault_dirty_shared_page(Context& ctx, Page& page) {
    WEIR_FLOW(ctx.address);
    return MemoryEra::dirty_shared_page(ctx, page);
  }
  uint32_t wp_page_copy(Context& ctx, Page* old_page) {
    WEIR_FLOW(ctx.address, ctx.orig_pte);
    return MemoryEra::copy_page(ctx, old_page);
  }
  Pte wp_page_reuse(Context& ctx, PteLock& ptl) {
    WEIR_FLOW(ctx.address);
    return MemoryEra::reuse_page(ctx, ptl);
  }
  uint32_t wp_page_shared(Context& ctx, Page& page, PteLock ptl) {
    WEIR_FLOW(ctx.address);
    return MemoryEra::reuse_shared_page(ctx, page, std::move(ptl));
  }

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "mm.h"
  static Pte* p4d_alloc(Pte* pgd, VirtAddr address) {
    WEIR_FLOW(address);
    return pgd;
  }
#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "pgtable.h"
  static VirtAddr p4d_addr_end(VirtAddr address, VirtAddr end) {
    WEIR_FLOW(address, end);
    return end;
  }

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "highmem.h"
  Page* alloc_zeroed_user_highpage_movable(Context& ctx) {
    WEIR_FLOW(ctx.vma, ctx.address);
    return prepare_zeroed(pages().alloc_pages(GFP_HIGHUSER_MOVABLE, Order(0)));
  }
};
static_assert(sizeof(Memory_4_14) <= Memory::ERA_BYTES);

}  // namespace

MemoryEra* memory_4_14(void* place, Memory& memory) { return ::new (place) Memory_4_14(memory); }

}  // namespace weir
