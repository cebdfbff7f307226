// src/mm/readahead_2_6_20.cpp: two windows. See readahead.hpp
#include <algorithm>

#include "mm/readahead.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "readahead.cpp"

namespace weir {

namespace {

constexpr uint32_t MIN_READAHEAD = 4;  // pages; 16 KiB
/// So many pages in a row that were there already, and the file counts as cached. Linux's VM_MAX_CACHE_HIT.
constexpr uint32_t MAX_CACHE_HIT = 256;

}  // namespace

void TwoWindowReadahead::ra_off(File& file) {
  file.ra_start = file.ahead_start = 0;
  file.ra_size = file.ahead_size = 0;
  file.ra_missed = file.ra_incache = false;
}

/// A page that was read ahead is needed, and has been reclaimed since: the next window is to be smaller.
void TwoWindowReadahead::handle_ra_miss(File& file, uint64_t index) {
  WEIR_FLOW(index);
  file.ra_missed = true;
  file.ra_incache = false;
  file.cache_hit = 0;
}

uint32_t TwoWindowReadahead::next_window(File& file) {
  if (!file.ra_missed) return get_next_ra_size(file.ra_size, file.ra_pages);
  file.ra_missed = false;
  return std::min(file.ra_size > MIN_READAHEAD + 2 ? file.ra_size - 2 : MIN_READAHEAD, file.ra_pages);
}

/// False: nothing has been read for so long that nothing need be tried.
bool TwoWindowReadahead::check_ra_success(File& file, uint64_t nr, uint64_t actual) {
  if (actual != 0) {
    file.cache_hit = 0;
    return true;
  }
  file.cache_hit += static_cast<uint32_t>(nr);
  if (file.cache_hit < MAX_CACHE_HIT) return true;
  ra_off(file);
  file.ra_incache = true;
  return false;
}

/// False: not read, as the device is busy or the file cached.
bool TwoWindowReadahead::blockable_page_cache_readahead(AddressSpace& mapping, File& file, uint64_t index, uint64_t nr,
                                                        Block block) {
  WEIR_FLOW(index, nr, block);
  if (block == Block::no && mapping.host->bdev->congested()) return false;
  return check_ra_success(file, nr, __do_page_cache_readahead(mapping, index, nr, 0));
}

bool TwoWindowReadahead::make_ahead_window(AddressSpace& mapping, File& file, Block force) {
  file.ahead_size = next_window(file);
  file.ahead_start = file.ra_start + file.ra_size;
  WEIR_FLOW(file.ahead_start, file.ahead_size);
  // The reader is in it already: then it is needed, however busy the device.
  const Block block = force == Block::yes || file.prev_page >= file.ahead_start ? Block::yes : Block::no;
  const bool done = blockable_page_cache_readahead(mapping, file, file.ahead_start, file.ahead_size, block);
  if (!done && force == Block::no) {
    file.ahead_start = 0;
    file.ahead_size = 0;
  }
  return done;
}

/// Returns the page at which the request is to come again.
uint64_t TwoWindowReadahead::page_cache_readahead(AddressSpace& mapping, File& file, uint64_t index,
                                                  uint64_t req_size) {
  WEIR_FLOW(index, req_size);
  // The last request ended inside this page.
  if (index == file.prev_page && --req_size != 0) ++index;
  const bool sequential = index == file.prev_page + 1;
  file.prev_page = index;
  const uint32_t max = file.ra_pages;
  const uint64_t newsize = std::min<uint64_t>(req_size, max);
  if (newsize == 0 || file.ra_incache) return file.prev_page + 1;
  file.prev_page += newsize - 1;

  if (sequential && file.ra_size == 0) {
    // A stream begins.
    file.ra_size = get_init_ra_size(newsize, max);
    file.ra_start = index;
    // More than a window is asked for: then the next is needed as surely.
    if (blockable_page_cache_readahead(mapping, file, index, file.ra_size, Block::yes) && req_size >= max)
      make_ahead_window(mapping, file, Block::yes);
    return file.prev_page + 1;
  }
  if (!sequential) {
    ra_off(file);
    blockable_page_cache_readahead(mapping, file, index, newsize, Block::yes);
    return file.prev_page + 1;
  }
  const bool made = file.ahead_start != 0 || make_ahead_window(mapping, file, Block::no);
  if (made && file.prev_page >= file.ahead_start) {
    file.ra_start = file.ahead_start;
    file.ra_size = file.ahead_size;
    make_ahead_window(mapping, file, Block::no);
  } else if (made) {
    return file.prev_page + 1;
  }
  // The request is not to run past what is ahead.
  if (file.ahead_size != 0) file.prev_page = std::min(file.prev_page, file.ahead_start + file.ahead_size - 1);
  return file.prev_page + 1;
}

void TwoWindowReadahead::do_page_cache_readahead(AddressSpace& mapping, uint64_t index, uint64_t nr) {
  WEIR_FLOW(index, nr);
  if (!mapping.host->bdev->congested()) __do_page_cache_readahead(mapping, index, nr, 0);
}

void TwoWindowReadahead::read_around(AddressSpace& mapping, File& file, uint64_t index) {
  const uint64_t half = file.ra_pages / 2;
  do_page_cache_readahead(mapping, index > half ? index - half : 0, file.ra_pages);
}

}  // namespace weir
