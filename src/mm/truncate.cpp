// src/mm/truncate.cpp: see truncate.hpp
#include "mm/truncate.hpp"

namespace weir {

void Truncate::truncate_complete_page(Page& page) {
  WEIR_FLOW(filemap_.pages().mem().pfn(page), page.index);
  // Nobody can map it again: faults look at the size with the page locked.
  if (page_mapped(page) && writeback_.mapped_pages() != nullptr)
    writeback_.mapped_pages()->unmap_mapping_range(*Filemap::file_mapping(page), page.index << PAGE_SHIFT, PAGE_SIZE,
                                                   EvenCows::no);
  writeback_.cancel_dirty_page(page);
  filemap_.lru().clear_page_mlock(page);
  filemap_.delete_from_page_cache(page);
  // Only now: off the tree nobody can make a buffer dirty any more, but who has one in use.
  if (page.test(PageFlag::private_)) buffers_.block_invalidatepage(page);
  filemap_.lru().put_page(page);  // the tree's
}

void Truncate::truncate_inode_pages(AddressSpace& mapping, uint64_t start) {
  WEIR_FLOW(start);
  if (const auto offset = static_cast<uint32_t>(start % PAGE_SIZE); offset != 0) {
    // What a mapping has stored behind the old end must not come to light when the file grows again.
    if (Page* page = filemap_.find_lock_page(mapping, start >> PAGE_SHIFT)) {
      filemap_.wait_on_page_writeback(*page);
      if (page->test(PageFlag::uptodate)) {
        zero_page_tail(mmu_, *page, offset);
        mapping.a_ops->set_page_dirty(*page);
      }
      filemap_.unlock_page(*page);
      filemap_.lru().put_page(*page);
    }
  }
  // Readers may put pages in meanwhile that they had begun before the size fell, so this ends when none is found.
  const uint64_t first = page_align_up(start) >> PAGE_SHIFT;
  Page* pages[PAGEVEC_SIZE];
  while (const unsigned found = filemap_.find_get_pages(mapping, first, PAGEVEC_SIZE, pages)) {
    for (unsigned i = 0; i < found; ++i) {
      Page& page = *pages[i];
      filemap_.lock_page(page);
      if (Filemap::file_mapping(page) == &mapping) {
        filemap_.wait_on_page_writeback(page);
        truncate_complete_page(page);
      }
      filemap_.unlock_page(page);
    }
    filemap_.lru().release_pages(pages, found);
    world().cond_resched();
  }
  filemap_.clear_shadows(mapping, first, ~uint64_t{0});
}

void Truncate::truncate_pagecache(Inode& inode, uint64_t size) {
  WEIR_FLOW(inode.ino, size);
  const uint64_t holebegin = page_align_up(size);
  MappedFilePages* mapped = writeback_.mapped_pages();
  if (mapped != nullptr) mapped->unmap_mapping_range(inode.i_data, holebegin, 0, EvenCows::yes);
  truncate_inode_pages(inode.i_data, size);
  // A fault that had found its page before the size fell may have made a private copy of it meanwhile.
  if (mapped != nullptr) mapped->unmap_mapping_range(inode.i_data, holebegin, 0, EvenCows::yes);
}

void Truncate::truncate_setsize(Inode& inode, uint64_t size) {
  WEIR_FLOW(inode.ino, size);
  const uint64_t old = inode.i_size.exchange(size, std::memory_order_acq_rel);
  if (size >= old) return;
  truncate_pagecache(inode, size);
  // Only now: who was making a page valid had it locked, and was waited for above.
  const uint64_t pages = i_size_pages(inode);
  if (inode.valid_pages.load(std::memory_order_acquire) > pages)
    inode.valid_pages.store(pages, std::memory_order_release);
}

bool Truncate::invalidate_complete_page(AddressSpace& mapping, Page& page) {
  if (page.test(PageFlag::private_) && !buffers_.try_to_release_page(page, gfp_t{})) return false;
  ScopedLock guard(mapping.tree_lock);
  // The tree's reference and ours: whoever else has one may be about to use the page.
  if (!page_ref_freeze(page, 2)) return false;
  const bool goes = !page.test(PageFlag::dirty);
  if (goes) filemap_.__delete_from_page_cache(page);
  page_ref_unfreeze(page, goes ? 1 : 2);
  return goes;
}

uint64_t Truncate::invalidate_mapping_pages(AddressSpace& mapping, uint64_t start, uint64_t end) {
  WEIR_FLOW(start, end);
  const uint64_t first = start;
  uint64_t dropped = 0;
  filemap_.lru().lru_add_drain_all();  // pages in a batch are in use
  Page* pages[PAGEVEC_SIZE];
  while (const unsigned found = filemap_.find_get_pages(mapping, start, PAGEVEC_SIZE, pages)) {
    bool more = true;
    for (unsigned i = 0; i < found; ++i) {
      Page& page = *pages[i];
      if (page.index > end) {
        more = false;
        break;
      }
      start = page.index + 1;
      if (!filemap_.trylock_page(page)) continue;
      if (Filemap::file_mapping(page) == &mapping && !page.test(PageFlag::dirty) && !page.test(PageFlag::writeback) &&
          !page_mapped(page) && invalidate_complete_page(mapping, page))
        ++dropped;
      filemap_.unlock_page(page);
    }
    filemap_.lru().release_pages(pages, found);
    if (!more || start == 0) break;
    world().cond_resched();
  }
  filemap_.clear_shadows(mapping, first, end);
  return dropped;
}

Result<void> Truncate::invalidate_inode_pages2_range(AddressSpace& mapping, uint64_t start, uint64_t end) {
  WEIR_FLOW(start, end);
  MappedFilePages* mapped = writeback_.mapped_pages();
  // Those of a batch are in use, and unmapping puts pages into batches: so all at once first.
  if (mapped != nullptr) {
    const uint64_t pages = end - start + 1;
    mapped->unmap_mapping_range(mapping, start << PAGE_SHIFT, pages << PAGE_SHIFT, EvenCows::no);
  }
  filemap_.lru().lru_add_drain_all();
  Result<void> all;
  Page* pages[PAGEVEC_SIZE];
  for (uint64_t next = start; next <= end;) {
    const unsigned found = filemap_.find_get_pages(mapping, next, PAGEVEC_SIZE, pages);
    if (found == 0) break;
    next = pages[found - 1]->index + 1;
    for (unsigned i = 0; i < found; ++i) {
      Page& page = *pages[i];
      if (page.index > end) continue;
      filemap_.lock_page(page);
      filemap_.wait_on_page_writeback(page);
      if (Filemap::file_mapping(page) == &mapping) {
        if (page_mapped(page) && mapped != nullptr)
          mapped->unmap_mapping_range(mapping, page.index << PAGE_SHIFT, PAGE_SIZE, EvenCows::no);
        if (!page.test(PageFlag::dirty) && !invalidate_complete_page(mapping, page) && !page.test(PageFlag::dirty))
          all = Errno::busy;
      }
      filemap_.unlock_page(page);
    }
    filemap_.lru().release_pages(pages, found);
    world().cond_resched();
  }
  return all;
}

}  // namespace weir
