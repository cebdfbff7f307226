// src/mm/readahead.cpp: what kernels share, and readahead on demand. See readahead.hpp
#include "mm/readahead.hpp"

#include <algorithm>
#include <bit>

namespace weir {

uint32_t Readahead::get_init_ra_size(uint64_t size, uint32_t max) {
  const uint64_t rounded = std::bit_ceil(size);
  if (rounded <= max / 32) return static_cast<uint32_t>(rounded * 4);
  if (rounded <= max / 4) return static_cast<uint32_t>(rounded * 2);
  return max;
}

uint32_t Readahead::get_next_ra_size(uint32_t size, uint32_t max) {
  return std::min(size < max / 16 ? size * 4 : size * 2, max);
}

uint64_t OndemandReadahead::page_cache_next_hole(AddressSpace& mapping, uint64_t index, uint64_t max_scan) {
  ScopedLock guard(mapping.tree_lock);
  return mapping.page_tree.next_hole(index, max_scan, RadixHole::no_object);
}

uint64_t Readahead::__do_page_cache_readahead(AddressSpace& mapping, uint64_t index, uint64_t nr, uint64_t lookahead,
                                              AddressSpaceOps::Waits waits) {
  WEIR_FLOW(index, nr, lookahead);
  const uint64_t size = i_size_pages(*mapping.host);
  const uint64_t marked = index + nr - lookahead;
  // Nobody waits for these pages yet: no memory is fought for.
  const gfp_t gfp = mapping.gfp_mask | __GFP_NORETRY | __GFP_NOWARN;
  uint64_t started = 0;
  // All pages first, then all reads: the device gets them in one go, and reclaim is not entered between two of them.
  PageList batch;
  for (uint64_t i = index; i < index + nr && i < size; ++i) {
    {
      ScopedLock guard(mapping.tree_lock);
      const void* there = mapping.page_tree.lookup(i);
      if (there != nullptr && !is_exceptional_entry(there)) continue;
    }
    Page* page = filemap_.pages().alloc_page(gfp);
    if (page == nullptr) break;
    page->index = i;
    if (i == marked && lookahead > 0) page->set(PageFlag::reclaim);
    batch.push_back(*page);
  }
  constexpr unsigned RUN = 32;
  Page* run[RUN];
  unsigned together = 0;
  const auto read_together = [&] {
    mapping.a_ops->readpages(mapping, run, together, waits);
    for (unsigned i = 0; i < together; ++i) filemap_.lru().put_page(*run[i]);
    together = 0;
  };
  const bool batches = mapping.host->bdev != nullptr && mapping.host->bdev->batches();
  while (!batch.empty()) {
    Page& page = batch.front();
    batch.pop_front();
    // Somebody else may have been faster: then his page is as good.
    if (filemap_.add_to_page_cache_lru(page, mapping, page.index, gfp)) {
      if (batches) {
        ++started;
        run[together++] = &page;
        if (together == RUN) read_together();
        continue;
      }
      if (mapping.a_ops->readpage(mapping, page)) ++started;
    }
    filemap_.lru().put_page(page);
  }
  if (together > 0) read_together();
  return started;
}

uint64_t OndemandReadahead::ra_submit(AddressSpace& mapping, File& file, Trigger trigger) {
  WEIR_FLOW(file.ra_start, file.ra_size, file.ra_async_size);
  return __do_page_cache_readahead(mapping, file.ra_start, file.ra_size, file.ra_async_size,
                                   trigger == Trigger::miss ? AddressSpaceOps::Waits::yes : AddressSpaceOps::Waits::no);
}

void OndemandReadahead::ondemand_readahead(AddressSpace& mapping, File& file, Trigger trigger, uint64_t index,
                                           uint64_t req_size) {
  WEIR_FLOW(index, req_size);
  const uint32_t max = file.ra_pages;
  const auto advance_to = [&](uint64_t start, uint32_t size) {
    file.ra_start = start;
    file.ra_size = file.ra_async_size = size;
  };

  const uint64_t end = file.ra_start + file.ra_size;
  if (index != 0 && file.ra_size != 0 && (index == end || index == end - file.ra_async_size)) {
    // Just as foreseen.
    advance_to(end, get_next_ra_size(file.ra_size, max));
  } else if (trigger == Trigger::marker) {
    // A marker of somebody else's window, or of one that this file has left since: the cached run from here on shows
    // how far that reader is ahead.
    const uint64_t hole = page_cache_next_hole(mapping, index + 1, max);
    if (hole == 0 || hole - index > max) return;
    advance_to(hole, get_next_ra_size(static_cast<uint32_t>(std::min<uint64_t>(hole - index + req_size, max)), max));
  } else if (index == 0 || req_size > max || index - file.prev_index <= 1) {
    // The start of a file, a large read, or the page after the last one read: a stream begins.
    file.ra_start = index;
    file.ra_size = get_init_ra_size(req_size, max);
    file.ra_async_size = file.ra_size > req_size ? file.ra_size - static_cast<uint32_t>(req_size) : file.ra_size;
  } else {
    __do_page_cache_readahead(mapping, index, req_size, 0, AddressSpaceOps::Waits::yes);
    return;
  }

  // The marker would be on the very page that is being read: so the next window is due now as well.
  if (index == file.ra_start && file.ra_size == file.ra_async_size) {
    const uint32_t next = get_next_ra_size(file.ra_size, max);
    if (file.ra_size + next <= max) {
      file.ra_async_size = next;
      file.ra_size += next;
    } else {
      file.ra_size = max;
      file.ra_async_size = max / 2;
    }
  }
  ra_submit(mapping, file, trigger);
}

void OndemandReadahead::page_cache_sync_readahead(AddressSpace& mapping, File& file, uint64_t index,
                                                  uint64_t req_size) {
  WEIR_FLOW(index, req_size);
  if (file.ra_pages == 0) return;
  ondemand_readahead(mapping, file, Trigger::miss, index, req_size);
}

void OndemandReadahead::page_cache_async_readahead(AddressSpace& mapping, File& file, Page& page, uint64_t index,
                                                   uint64_t req_size) {
  WEIR_FLOW(index, req_size);
  if (file.ra_pages == 0) return;
  page.clear(PageFlag::reclaim);
  // The reader does not need it yet, and the device has enough to do.
  if (mapping.host->bdev->congested()) return;
  ondemand_readahead(mapping, file, Trigger::marker, index, req_size);
}

void OndemandReadahead::read_around(AddressSpace& mapping, File& file, uint64_t index) {
  file.ra_start = index > file.ra_pages / 2 ? index - file.ra_pages / 2 : 0;
  file.ra_size = file.ra_pages;
  file.ra_async_size = file.ra_pages / 4;
  ra_submit(mapping, file, Trigger::miss);
}

}  // namespace weir
