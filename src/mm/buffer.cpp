// src/mm/buffer.cpp: the buffers of a page and those of a device's blocks: made, found and taken away. I/O:
// buffer_io.cpp. See buffer.hpp
#include "mm/buffer.hpp"

#include "mm/page_private.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "buffer.cpp"

namespace weir {

Buffers::Buffers(Filemap& filemap, BioSet& bios, PageWriteback& writeback, Slab& slab, VmStat& vmstat, Mmu& mmu,
                 KernelEra kernel)
    : filemap_(filemap),
      bios_(bios),
      writeback_(writeback),
      slab_(slab),
      vmstat_(vmstat),
      mmu_(mmu),
      getblk_(kernel == KernelEra::linux_4_14 ? &Buffers::__getblk_gfp : &Buffers::find_or_grow),
      bread_(kernel == KernelEra::linux_4_14 ? &Buffers::__bread_gfp : &Buffers::get_and_read) {}

Result<void> Buffers::init() {
  cache_ = WEIR_TRY(slab_.kmem_cache_create("buffer_head", sizeof(BufferHead),
                                            {.align = alignof(BufferHead), .reclaimable = Slab::Reclaimable::yes}));
  return {};
}

// ---- Bits -----------------------------------------------------------------------------------------------------------

void Buffers::changed(const BufferHead& bh, uint32_t before, uint32_t after) const {
  if (before != after) WEIR_STATE(buffer, mem().pfn(bh.b_page).v << 8 | bh.b_offset / 512, before, after);
}

/// True if it was set before.
bool Buffers::set(BufferHead& bh, BufferFlag flag) {
  const uint32_t old = bh.b_state.fetch_or(BufferHead::bit(flag), std::memory_order_acq_rel);
  changed(bh, old, old | BufferHead::bit(flag));
  return (old & BufferHead::bit(flag)) != 0;
}

bool Buffers::clear(BufferHead& bh, BufferFlag flag) {
  const uint32_t old = bh.b_state.fetch_and(~BufferHead::bit(flag), std::memory_order_acq_rel);
  changed(bh, old, old & ~BufferHead::bit(flag));
  return (old & BufferHead::bit(flag)) != 0;
}

// ---- Rings ----------------------------------------------------------------------------------------------------------

BufferHead* Buffers::alloc_buffer_head(gfp_t gfp) {
  WEIR_FLOW(gfp);
  auto* bh = slab_.create<BufferHead>(*cache_, gfp);
  if (bh != nullptr) nr_buffer_heads_.fetch_add(1, std::memory_order_relaxed);
  return bh;
}

void Buffers::free_buffer_head(BufferHead& bh) {
  WEIR_FLOW(bh);
  WEIR_DEBUG_BUG_ON(bh.b_count.load() != 0 || bh.test(BufferFlag::lock));
  nr_buffer_heads_.fetch_sub(1, std::memory_order_relaxed);
  slab_.destroy(*cache_, &bh);
}

/// A chain from the last to the first, or a ring.
void Buffers::free_ring(BufferHead* head) {
  for (BufferHead* bh = head; bh != nullptr;) {
    BufferHead* next = bh->b_this_page;
    free_buffer_head(*bh);
    bh = next != head ? next : nullptr;
  }
}

/// Page locked, without buffers: new ones that cover it, a chain in order. Null: no memory, if it is not to be tried
/// again or the task is to die.
BufferHead* Buffers::alloc_page_buffers(Page& page, uint32_t size, Retry retry) {
  WEIR_FLOW(mem().pfn(page), size);
  for (;;) {
    BufferHead* head = nullptr;
    uint32_t offset = PAGE_SIZE;
    while (offset > 0) {
      BufferHead* bh = alloc_buffer_head(GFP_NOFS);
      if (bh == nullptr) break;
      offset -= size;
      bh->b_this_page = head;
      bh->b_page = &page;
      bh->b_size = size;
      bh->b_offset = offset;
      head = bh;
    }
    if (offset == 0) return head;
    free_ring(head);
    if (retry == Retry::no || fatal_signal_pending()) return nullptr;
    free_more_memory();
  }
}

/// The chain becomes the page's ring.
void Buffers::attach_page_buffers(Page& page, BufferHead& head) {
  WEIR_FLOW(mem().pfn(page));
  BufferHead* tail = &head;
  while (tail->b_this_page != nullptr) tail = tail->b_this_page;
  tail->b_this_page = &head;
  PageAllocator::get_page(page);
  set_page_private(page, reinterpret_cast<uint64_t>(&head));
  page.set(PageFlag::private_);
}

/// Page locked, without buffers. False: no memory, and the task is to die.
bool Buffers::create_empty_buffers(Page& page, uint32_t size, uint32_t state) {
  WEIR_FLOW(mem().pfn(page), size, state);
  BufferHead* head = alloc_page_buffers(page, size, Retry::yes);
  if (head == nullptr) return false;
  for (BufferHead* bh = head; bh != nullptr; bh = bh->b_this_page) bh->b_state.store(state, std::memory_order_relaxed);
  ScopedLock guard(private_lock_);
  attach_page_buffers(page, *head);
  return true;
}

/// private_lock_ held. False: one of them is in use, dirty or locked. True: they are the caller's, to be freed.
bool Buffers::drop_buffers(Page& page) {
  WEIR_FLOW(mem().pfn(page));
  BufferHead* head = page_buffers(page);
  BufferHead* bh = head;
  do {
    if (bh->b_count.load(std::memory_order_acquire) != 0 || bh->test(BufferFlag::dirty) || bh->test(BufferFlag::lock))
      return false;
    bh = bh->b_this_page;
  } while (bh != head);
  page.clear(PageFlag::private_);
  set_page_private(page, 0);
  return true;
}

bool Buffers::try_to_free_buffers(Page& page) {
  WEIR_FLOW(mem().pfn(page));
  WEIR_DEBUG_BUG_ON(!page.test(PageFlag::locked));
  if (page.test(PageFlag::writeback)) return false;
  BufferHead* head;
  {
    ScopedLock guard(private_lock_);
    head = page_buffers(page);
    if (!drop_buffers(page)) return false;
    // All buffers clean: what made the page dirty has been written, buffer by buffer.
    if (Filemap::file_mapping(page) != nullptr) writeback_.cancel_dirty_page(page);
  }
  free_ring(head);
  filemap_.lru().put_page(page);  // the ring's; the caller has one
  return true;
}

void Buffers::discard_buffer(BufferHead& bh) {
  lock_buffer(bh);
  clear(bh, BufferFlag::dirty);
  clear(bh, BufferFlag::mapped);
  unlock_buffer(bh);
}

void Buffers::block_invalidatepage(Page& page) {
  WEIR_FLOW(mem().pfn(page));
  if (!page.test(PageFlag::private_)) return;
  BufferHead* head = page_buffers(page);
  BufferHead* bh = head;
  do {
    if (bh->b_count.load(std::memory_order_acquire) == 0) discard_buffer(*bh);
    bh = bh->b_this_page;
  } while (bh != head);
  (void)try_to_release_page(page, gfp_t{});
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "filemap.cpp"
bool Buffers::try_to_release_page(Page& page, gfp_t gfp) {
  WEIR_FLOW(mem().pfn(page), gfp);
  if (page.test(PageFlag::writeback)) return false;
  return !page.test(PageFlag::private_) || try_to_free_buffers(page);
}

/// The page at `index`, locked and referenced. Null: no memory.
Page* Buffers::find_or_create_page(AddressSpace& mapping, uint64_t index, gfp_t gfp) {
  WEIR_FLOW(index, gfp);
  for (;;) {
    if (Page* page = filemap_.find_lock_page(mapping, index)) return page;
    Page* page = filemap_.pages().alloc_page(gfp);
    if (page == nullptr) return nullptr;
    const Result<void> added = filemap_.add_to_page_cache_lru(*page, mapping, index, gfp);
    if (added) return page;
    filemap_.lru().put_page(*page);
    if (added.error() != Errno::exist) return nullptr;
  }
}
#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "buffer.cpp"

// ---- Blocks ---------------------------------------------------------------------------------------------------------

void Buffers::brelse(BufferHead& bh) {
  [[maybe_unused]] const int32_t before = bh.b_count.fetch_sub(1, std::memory_order_acq_rel);
  WEIR_DEBUG_BUG_ON(before <= 0);
}

/// The block's place on the device. 4096 bytes of a page are its blocks, one behind the other.
void Buffers::map_buffer(const Inode& inode, Page& page, BufferHead& bh) {
  bh.b_bdev = inode.bdev;
  bh.b_blocknr = (((inode.first_page + page.index) << PAGE_SHIFT) + bh.b_offset) / bh.b_size;
  set(bh, BufferFlag::mapped);
}

/// The buffer, with a reference, if it is there.
BufferHead* Buffers::__find_get_block(Inode& bdev, uint64_t block) {
  WEIR_FLOW(block);
  const uint64_t at = block * bdev.block_size;
  Page* page = filemap_.find_get_page(bdev.i_data, at >> PAGE_SHIFT);
  if (page == nullptr) return nullptr;
  BufferHead* found = nullptr;
  {
    ScopedLock guard(private_lock_);
    if (page->test(PageFlag::private_)) {
      BufferHead* head = page_buffers(*page);
      BufferHead* bh = head;
      do {
        if (bh->test(BufferFlag::mapped) && bh->b_size == bdev.block_size && bh->b_blocknr == block) found = bh;
        bh = bh->b_this_page;
      } while (found == nullptr && bh != head);
      if (found != nullptr) found->b_count.fetch_add(1, std::memory_order_acq_rel);
    }
  }
  if (found != nullptr) filemap_.lru().mark_page_accessed(*page);
  filemap_.lru().put_page(*page);
  return found;
}

/// The page of a block comes into the device's cache, with buffers. False: no memory, or the page's old buffers are of
/// another size and in use.
bool Buffers::grow_dev_page(Inode& bdev, uint64_t block) {
  WEIR_FLOW(block);
  AddressSpace& mapping = bdev.i_data;
  Page* page = find_or_create_page(mapping, block * bdev.block_size >> PAGE_SHIFT, mapping.gfp_mask & ~__GFP_FS);
  if (page == nullptr) return false;
  bool grown = true;
  if (page->test(PageFlag::private_) && page_buffers(*page)->b_size != bdev.block_size)
    grown = try_to_free_buffers(*page);
  if (grown) {
    BufferHead* head = page->test(PageFlag::private_) ? nullptr : alloc_page_buffers(*page, bdev.block_size, Retry::no);
    ScopedLock guard(private_lock_);
    if (head != nullptr) attach_page_buffers(*page, *head);
    grown = page->test(PageFlag::private_);
    if (grown) {
      BufferHead* bh = page_buffers(*page);
      do {
        if (!bh->test(BufferFlag::mapped)) map_buffer(bdev, *page, *bh);
        bh = bh->b_this_page;
      } while (bh != page_buffers(*page));
    }
  }
  filemap_.unlock_page(*page);
  filemap_.lru().put_page(*page);
  return grown;
}

bool Buffers::grow_buffers(Inode& bdev, uint64_t block) {
  WEIR_FLOW(block);
  return grow_dev_page(bdev, block);
}

void Buffers::free_more_memory() {
  WEIR_FLOW();
  if (writeback_.flusher() != nullptr) writeback_.flusher()->wakeup(WB_REASON_FREE_MORE_MEM);
  (void)world().schedule_timeout(1_ms);
  Pressure* pressure = filemap_.pages().pressure();
  if (pressure == nullptr || (current_flags() & PF_MEMALLOC) != 0) return;
  const ThreadFlagScope reclaiming(PF_MEMALLOC);
  (void)pressure->try_to_free_pages(Order(0), GFP_NOFS);
}

BufferHead* Buffers::__getblk_slow(Inode& bdev, uint64_t block) {
  WEIR_FLOW(block);
  if (block >= static_cast<uint64_t>(bdev.bdev->capacity().v) * (PAGE_SIZE / bdev.block_size)) return nullptr;
  for (;;) {
    if (BufferHead* bh = __find_get_block(bdev, block)) return bh;
    if (grow_buffers(bdev, block)) continue;
    if (fatal_signal_pending()) return nullptr;
    free_more_memory();
  }
}

BufferHead* Buffers::find_or_grow(Inode& bdev, uint64_t block) {
  BufferHead* bh = __find_get_block(bdev, block);
  return bh != nullptr ? bh : __getblk_slow(bdev, block);
}

BufferHead* Buffers::__getblk_gfp(Inode& bdev, uint64_t block) {
  WEIR_FLOW(block);
  return find_or_grow(bdev, block);
}

BufferHead* Buffers::__getblk(Inode& bdev, uint64_t block) {
  WEIR_FLOW(block);
  return (this->*getblk_)(bdev, block);
}

Result<BufferHead*> Buffers::make_uptodate(BufferHead* bh) {
  if (bh == nullptr) return fatal_signal_pending() ? Errno::nomem : Errno::inval;
  if (bh->test(BufferFlag::uptodate)) return bh;
  return __bread_slow(*bh);
}

Result<BufferHead*> Buffers::__bread_gfp(Inode& bdev, uint64_t block) {
  WEIR_FLOW(block);
  return make_uptodate(__getblk_gfp(bdev, block));
}

Result<BufferHead*> Buffers::get_and_read(Inode& bdev, uint64_t block) { return make_uptodate(__getblk(bdev, block)); }

Result<BufferHead*> Buffers::__bread(Inode& bdev, uint64_t block) {
  WEIR_FLOW(block);
  return (this->*bread_)(bdev, block);
}

}  // namespace weir
