// src/mm/readahead.hpp
//
// Reading a file's pages before they are asked for. Two ways, by kernel.
//
// On demand (2.6.23 and later): a window is read at once; a page in it carries a marker, and whoever reads that page
// starts the next window, while the rest of this one is still being used.
//
//   read page 0    window [0, 4)    marker on 1      page:   0 1* 2 3 | 4* 5 ... 11 | 12* ... 27 | 28* ... 59 | 60* ...
//   read page 1    window [4, 12)   marker on 4              4          8             16           32           32
//   read page 4    window [12, 28)  marker on 12
//   random read    the pages asked for, no window, no marker
//
// Two windows (2.6.20, readahead_2_6_20.cpp): the current one and the one ahead of it, known to the file alone. Whoever
// enters the one ahead makes it the current one and reads the next.
//
//   read page 0    current [0, 4)                            read page 12   current [12, 28)   ahead [28, 60)
//   read page 1    current [0, 4)    ahead [4, 12)           a page of it is gone again: thrashing, the next window is
//   read page 4    current [4, 12)   ahead [12, 28)          2 pages smaller.  256 pages were there already: none is read
//
// The state is the open file's (File::ra_*): two readers of one file through two Files do not disturb each other.
// Linux: mm/readahead.c. Not here: guessing a stream from what lies in the cache before it.
#pragma once

#include "mm/inode.hpp"

namespace weir {

/// What kernels share, and the moments at which they differ.
class Readahead {
 public:
  explicit Readahead(Filemap& filemap) : filemap_(filemap) {}

  /// A request comes to page `index`, and wants `wanted` pages from there on. `next`: the page at which it asks again;
  /// 0 at its beginning.
  virtual void request_reaches(AddressSpace& mapping, File& file, uint64_t index, uint64_t wanted, uint64_t& next) {
    (void)mapping, (void)file, (void)index, (void)wanted, (void)next;
  }
  /// Page `index` is not in the cache, and `wanted` pages from it on are wanted. Nothing is promised (memory may be
  /// short). Sleeps for memory, not for reads, as the rest.
  virtual void page_missing(AddressSpace& mapping, File& file, uint64_t index, uint64_t wanted) = 0;
  /// Is something to be started because this page is found? Then page_found, with its index.
  [[nodiscard]] virtual bool due(const Page& page) const {
    (void)page;
    return false;
  }
  virtual void page_found(AddressSpace& mapping, File& file, Page& page, uint64_t index, uint64_t wanted) {
    (void)mapping, (void)file, (void)page, (void)index, (void)wanted;
  }
  /// A fault found page `index` missing: what lies around it, in both directions.
  virtual void read_around(AddressSpace& mapping, File& file, uint64_t index) = 0;

  /// Reads those of [index, index + nr) that are not cached and that the file has. The page `lookahead` before the end
  /// gets the marker. Returns how many reads were started.
  uint64_t __do_page_cache_readahead(AddressSpace& mapping, uint64_t index, uint64_t nr, uint64_t lookahead,
                                     AddressSpaceOps::Waits waits = AddressSpaceOps::Waits::no);

  /// The first window for `size` pages asked; the window after one of `size`. `max`: the largest.
  [[nodiscard]] static uint32_t get_init_ra_size(uint64_t size, uint32_t max);
  [[nodiscard]] static uint32_t get_next_ra_size(uint32_t size, uint32_t max);

 protected:
  ~Readahead() = default;
  Filemap& filemap_;
};

class OndemandReadahead final : public Readahead {
 public:
  using Readahead::Readahead;
  void page_missing(AddressSpace& mapping, File& file, uint64_t index, uint64_t wanted) override {
    page_cache_sync_readahead(mapping, file, index, wanted);
  }
  [[nodiscard]] bool due(const Page& page) const override { return PageReadahead(page); }
  void page_found(AddressSpace& mapping, File& file, Page& page, uint64_t index, uint64_t wanted) override {
    page_cache_async_readahead(mapping, file, page, index, wanted);
  }
  void read_around(AddressSpace& mapping, File& file, uint64_t index) override;

 private:
  enum class Trigger : uint8_t { miss, marker };
  void page_cache_sync_readahead(AddressSpace& mapping, File& file, uint64_t index, uint64_t req_size);
  /// `page`, at `index`, carries the marker: takes it off and starts the next window.
  void page_cache_async_readahead(AddressSpace& mapping, File& file, Page& page, uint64_t index, uint64_t req_size);
  void ondemand_readahead(AddressSpace& mapping, File& file, Trigger trigger, uint64_t index, uint64_t req_size);
  /// Submits the file's window.
  uint64_t ra_submit(AddressSpace& mapping, File& file, Trigger trigger);
  [[nodiscard]] static uint64_t page_cache_next_hole(AddressSpace& mapping, uint64_t index, uint64_t max_scan);
  /// PG_readahead is PG_reclaim of a page that is not under writeback.
  [[nodiscard]] static bool PageReadahead(const Page& page) {
    return page.test(PageFlag::reclaim) && !page.test(PageFlag::writeback);
  }
};

class TwoWindowReadahead final : public Readahead {
 public:
  using Readahead::Readahead;
  void request_reaches(AddressSpace& mapping, File& file, uint64_t index, uint64_t wanted, uint64_t& next) override {
    if (next == 0 || index >= next) next = page_cache_readahead(mapping, file, index, wanted);
  }
  void page_missing(AddressSpace&, File& file, uint64_t index, uint64_t) override { handle_ra_miss(file, index); }
  void read_around(AddressSpace& mapping, File& file, uint64_t index) override;

 private:
  enum class Block : uint8_t { no, yes };  ///< read though the device is congested
  uint64_t page_cache_readahead(AddressSpace& mapping, File& file, uint64_t index, uint64_t req_size);
  bool make_ahead_window(AddressSpace& mapping, File& file, Block force);
  bool blockable_page_cache_readahead(AddressSpace& mapping, File& file, uint64_t index, uint64_t nr, Block block);
  static bool check_ra_success(File& file, uint64_t nr, uint64_t actual);
  void do_page_cache_readahead(AddressSpace& mapping, uint64_t index, uint64_t nr);
  static void handle_ra_miss(File& file, uint64_t index);
  static void ra_off(File& file);
  [[nodiscard]] static uint32_t next_window(File& file);
};

}  // namespace weir
