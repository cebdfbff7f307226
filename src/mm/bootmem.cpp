// src/mm/bootmem.cpp: see bootmem.hpp
#include "mm/bootmem.hpp"

#include <cstring>

namespace weir {

namespace {
constexpr PageCount LARGEST_BLOCK = PageCount(int64_t{1} << (MAX_ORDER - 1));

/// Ascending, not overlapping, not empty, and no block of the allocator lies in two zones.
bool layout_is_sound(const ZoneLayout& layout) {
  if (layout.nr_ranges == 0 || layout.nr_ranges > std::size(layout.ranges)) return false;
  if (layout.dma32_end.v % static_cast<uint64_t>(LARGEST_BLOCK.v) != 0) return false;
  Pfn end{};
  for (unsigned i = 0; i < layout.nr_ranges; ++i) {
    const ZoneLayout::Range& r = layout.ranges[i];
    if (r.pages.v <= 0 || r.start < end) return false;
    end = r.start + r.pages;
  }
  return true;
}
}  // namespace

Result<void> Bootmem::init(Bootmem& boot, MemMap& mem, std::byte* arena, const ZoneLayout& layout) {
  if (!layout_is_sound(layout)) return Errno::inval;
  const PageCount frames = layout.end();
  const PageCount bitmap = pages_in(Bytes(page_align_up((static_cast<uint64_t>(frames.v) + 7) / 8)));
  const PageCount map = pages_in(Bytes(page_align_up(static_cast<uint64_t>(frames.v) * sizeof(Page))));
  const ZoneLayout::Range* home = nullptr;
  for (unsigned i = 0; i < layout.nr_ranges && home == nullptr; ++i)
    if (layout.ranges[i].pages >= bitmap + map) home = &layout.ranges[i];
  if (home == nullptr) return Errno::nomem;

  mem.arena = arena;
  mem.frames = frames;
  mem.mem_map = reinterpret_cast<Page*>(mem.address(home->start + bitmap));  // all-zero already: unpopulated memory
  if (FlowSink* sink = engine_thread().sink) sink->mem_map = mem.mem_map;
  boot.mem_ = &mem;
  boot.bitmap_ = reinterpret_cast<uint8_t*>(mem.address(home->start));
  boot.bitmap_start_ = home->start;
  boot.bitmap_pages_ = bitmap;
  boot.last_pfn_ = Pfn(0);
  boot.last_offset_ = 0;
  boot.touched_end_ = Pfn(0);
  boot.over_ = false;
  std::memset(boot.bitmap_, 0xff, static_cast<size_t>(bytes_of(bitmap).v));
  for (unsigned i = 0; i < layout.nr_ranges; ++i) boot.free(layout.ranges[i].start, layout.ranges[i].pages);
  boot.reserve(home->start, bitmap + map);
  return {};
}

bool Bootmem::reserved(Pfn pfn) const {
  WEIR_BUG_ON(over_);
  return (bitmap_[pfn.v / 8] >> (pfn.v % 8) & 1) != 0;
}

void Bootmem::mark(Pfn start, PageCount pages, bool reserved) {
  WEIR_BUG_ON(over_);
  WEIR_BUG_ON(pages.v < 0 || start + pages > Pfn(0) + mem_->frames);
  uint64_t bit = start.v;
  const uint64_t end = bit + static_cast<uint64_t>(pages.v);
  while (bit < end) {
    if (bit % 8 == 0 && end - bit >= 8) {
      const uint64_t whole = (end - bit) / 8;
      std::memset(bitmap_ + bit / 8, reserved ? 0xff : 0, whole);
      bit += whole * 8;
      continue;
    }
    const auto mask = static_cast<uint8_t>(1u << (bit % 8));
    if (reserved)
      bitmap_[bit / 8] |= mask;
    else
      bitmap_[bit / 8] &= static_cast<uint8_t>(~mask);
    ++bit;
  }
}

void Bootmem::reserve(Pfn start, PageCount pages) { mark(start, pages, true); }
void Bootmem::free(Pfn start, PageCount pages) { mark(start, pages, false); }

PageCount Bootmem::reserved_pages() const {
  WEIR_BUG_ON(over_);
  const auto end = static_cast<uint64_t>(mem_->frames.v);
  PageCount n{};
  for (uint64_t start = next(0, true); start < end;) {
    const uint64_t stop = next(start, false);
    n += Pfn(stop) - Pfn(start);
    start = next(stop, true);
  }
  return n;
}

void Bootmem::for_each_reserved_run(void (*fn)(void*, Pfn, PageCount), void* arg) const {
  WEIR_BUG_ON(over_);
  const auto end = static_cast<uint64_t>(mem_->frames.v);
  const Pfn bitmap_end = bitmap_start_ + bitmap_pages_;
  for (uint64_t start = next(0, true); start < end;) {
    const uint64_t stop = next(start, false);
    Pfn from{start};
    if (from <= bitmap_start_ && bitmap_start_ < Pfn(stop)) {  // the bitmap, wholly inside this run, is memory soon
      if (from < bitmap_start_) fn(arg, from, bitmap_start_ - from);
      from = bitmap_end;
    }
    if (from < Pfn(stop)) fn(arg, from, Pfn(stop) - from);
    start = next(stop, true);
  }
}

uint64_t Bootmem::next(uint64_t bit, bool reserved) const {
  const auto end = static_cast<uint64_t>(mem_->frames.v);
  const uint8_t dull = reserved ? 0 : 0xff;  // a byte without a bit that is looked for
  while (bit < end) {
    if (bit % 64 == 0 && bit + 64 <= end) {
      uint64_t word;
      std::memcpy(&word, bitmap_ + bit / 8, sizeof word);
      if (word == (reserved ? 0 : ~uint64_t{0})) {
        bit += 64;
        continue;
      }
    }
    if (bit % 8 == 0 && bitmap_[bit / 8] == dull) {
      bit += 8;
      continue;
    }
    if (((bitmap_[bit / 8] >> (bit % 8) & 1) != 0) == reserved) return bit;
    ++bit;
  }
  return end;
}

Result<std::byte*> Bootmem::alloc_bootmem(Bytes size, Bytes align, Pfn goal, Pfn limit) {
  WEIR_BUG_ON(over_);
  if (size.v == 0 || align.v == 0 || (align.v & (align.v - 1)) != 0) return Errno::inval;
  const Pfn end = limit.v == 0 || limit.v > static_cast<uint64_t>(mem_->frames.v) ? Pfn(0) + mem_->frames : limit;

  // The rest of the page that was given last, if it is where the caller wants to be.
  if (last_offset_ != 0 && align.v <= PAGE_SIZE && last_pfn_ >= goal && last_pfn_ < end) {
    const uint64_t at = (last_offset_ + align.v - 1) & ~(align.v - 1);
    if (at + size.v <= PAGE_SIZE) {
      last_offset_ = at + size.v;
      return mem_->address(last_pfn_) + at;
    }
  }

  const auto pages = page_align_up(size.v) >> PAGE_SHIFT;
  const uint64_t step = align.v > PAGE_SIZE ? align.v >> PAGE_SHIFT : 1;
  // A goal that is too high to be met is only a wish.
  for (uint64_t from : {goal.v, uint64_t{0}}) {
    for (uint64_t start = from; start < end.v;) {
      start = next(start, false);
      start = (start + step - 1) / step * step;
      if (start + pages > end.v) break;
      const uint64_t taken = next(start, true);
      if (taken - start < pages && taken < start + pages) {
        start = taken;
        continue;
      }
      reserve(Pfn(start), PageCount(static_cast<int64_t>(pages)));
      std::byte* const first = mem_->address(Pfn(start));
      // The arena reads zero where nobody wrote: large tables cost only what of them is used.
      if (Pfn(start) < touched_end_) std::memset(first, 0, pages << PAGE_SHIFT);
      if (touched_end_ < Pfn(start + pages)) touched_end_ = Pfn(start + pages);
      last_pfn_ = Pfn(start + pages - 1);
      last_offset_ = size.v % PAGE_SIZE;  // 0: the last page is full
      return first;
    }
    if (from == 0) break;
  }
  return Errno::nomem;
}

PageCount Bootmem::give_free_runs(void (*give)(void*, Pfn, Order), void* arg) const {
  PageCount given{};
  const auto end = static_cast<uint64_t>(mem_->frames.v);
  for (uint64_t start = next(0, false); start < end;) {
    const uint64_t stop = next(start, true);
    given += give_run(Pfn(start), Pfn(stop), give, arg);
    start = next(stop, false);
  }
  return given;
}

PageCount Bootmem::give_run(Pfn start, Pfn stop, void (*give)(void*, Pfn, Order), void* arg) {
  for (uint64_t at = start.v; at < stop.v;) {
    unsigned order = MAX_ORDER - 1;
    while ((at & ((uint64_t{1} << order) - 1)) != 0 || at + (uint64_t{1} << order) > stop.v) --order;
    give(arg, Pfn(at), Order(static_cast<uint8_t>(order)));
    at += uint64_t{1} << order;
  }
  return stop - start;
}

PageCount Bootmem::free_all_bootmem(void (*give)(void*, Pfn, Order), void* arg) {
  WEIR_BUG_ON(over_);
  PageCount given = give_free_runs(give, arg);
  over_ = true;
  // The bitmap is no longer read: its own pages are memory like any other.
  given += give_run(bitmap_start_, bitmap_start_ + bitmap_pages_, give, arg);
  bitmap_ = nullptr;
  return given;
}

}  // namespace weir
