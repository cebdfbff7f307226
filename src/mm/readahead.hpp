// src/mm/readahead.hpp
//
// Reading a file's pages before they are asked for. A window is read at once; a page in it carries a marker, and
// whoever reads that page starts the next window, while the rest of this one is still being used.
//
//   read page 0    window [0, 4)    marker on 1      page:   0 1* 2 3 | 4* 5 ... 11 | 12* ... 27 | 28* ... 59 | 60* ...
//   read page 1    window [4, 12)   marker on 4              4          8             16           32           32
//   read page 4    window [12, 28)  marker on 12
//   random read    the pages asked for, no window, no marker
//
// The state is the open file's (File::ra_*): two readers of one file through two Files do not disturb each other.
// Linux: mm/readahead.c (on demand, 2.6.23 and later). Not here: guessing a stream from what lies in the cache before
// it.
#pragma once

#include "mm/inode.hpp"

namespace weir {

class Readahead {
 public:
  explicit Readahead(Filemap& filemap) : filemap_(filemap) {}

  /// Page `index` is not in the cache, and `req_size` pages from it on are wanted: reads them and perhaps more. Nothing
  /// is promised (memory may be short). Sleeps for memory, not for the reads.
  void page_cache_sync_readahead(AddressSpace& mapping, File& file, uint64_t index, uint64_t req_size);
  /// `page`, at `index`, carries the marker: takes it off and starts the next window.
  void page_cache_async_readahead(AddressSpace& mapping, File& file, Page& page, uint64_t index, uint64_t req_size);
  /// Submits the file's window.
  uint64_t ra_submit(AddressSpace& mapping, File& file);
  /// Reads those of [index, index + nr) that are not cached and that the file has. The page `lookahead` before the end
  /// gets the marker. Returns how many reads were started.
  uint64_t __do_page_cache_readahead(AddressSpace& mapping, uint64_t index, uint64_t nr, uint64_t lookahead);

  /// The first window for `size` pages asked; the window after one of `size`. `max`: the largest.
  [[nodiscard]] static uint32_t get_init_ra_size(uint64_t size, uint32_t max);
  [[nodiscard]] static uint32_t get_next_ra_size(uint32_t size, uint32_t max);

  /// PG_readahead is PG_reclaim of a page that is not under writeback.
  [[nodiscard]] static bool PageReadahead(const Page& page) {
    return page.test(PageFlag::reclaim) && !page.test(PageFlag::writeback);
  }

 private:
  enum class Trigger : uint8_t { miss, marker };
  void ondemand_readahead(AddressSpace& mapping, File& file, Trigger trigger, uint64_t index, uint64_t req_size);
  [[nodiscard]] static uint64_t page_cache_next_hole(AddressSpace& mapping, uint64_t index, uint64_t max_scan);

  Filemap& filemap_;
};

}  // namespace weir
