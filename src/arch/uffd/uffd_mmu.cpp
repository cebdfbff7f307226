// src/arch/uffd/uffd_mmu.cpp: where user frames' bytes are; frames changing hands. See uffd_mmu.hpp
#include "arch/uffd/uffd_mmu.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "arch/uffd/host_calls.hpp"
#include "mm/bootmem.hpp"
#include "mm/vmstat.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace weir {

using host::madvise;

Result<void> UffdMmu::attach(MemMap& mem, PageTables& tables, Bootmem& boot) {
  mem_ = &mem;
  tables_ = &tables;
  const auto frames = static_cast<uint64_t>(mem.frames.v);
  if (options_.staging_slots < frames + SLACK || options_.staging_slots > INDEX_MASK) return Errno::inval;
  const auto table = [&](size_t bytes) { return boot.alloc_bootmem(Bytes(bytes), Bytes(64)); };
  const auto pages = [&](size_t n) { return boot.alloc_bootmem(Bytes(n << PAGE_SHIFT), Bytes(PAGE_SIZE)); };
  hashes_ = reinterpret_cast<Hash*>(WEIR_TRY(table(frames * sizeof(Hash))));
  mapped_at_ = reinterpret_cast<std::atomic<uint64_t>*>(WEIR_TRY(table(frames * sizeof(uint64_t))));
  resident_ = reinterpret_cast<std::atomic<uint64_t>*>(WEIR_TRY(table((frames + 63) / 64 * 8)));
  slot_map_ = reinterpret_cast<uint64_t*>(WEIR_TRY(table((options_.staging_slots + 63) / 64 * 8)));
  nr_bounce_ = static_cast<uint32_t>(std::clamp<uint64_t>(frames / 64 / 64 * 64, MIN_BOUNCE_PAGES, MAX_BOUNCE_PAGES));
  bounce_ = WEIR_TRY(pages(nr_bounce_));
  zero_ = WEIR_TRY(pages(1));
  if (options_.reserve != 0) {
    reserve_ = {WEIR_TRY(pages(page_align_up(options_.reserve) >> PAGE_SHIFT)), options_.reserve};
  }
  // Never touched: what a slot left behind costs is paid from here.
  WEIR_TRY(pages(SLACK));
  for (uint32_t i = 0; i < nr_bounce_; i += 64) bounce_free_[i / 64].store(~uint64_t{0}, std::memory_order_relaxed);
  uint64_t seed = options_.secret[0];
  for (size_t i = 0; i < sizeof secret_; i += 8) {
    uint64_t z = (seed += 0x9e3779b97f4a7c15ull) ^ options_.secret[1];
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    std::memcpy(secret_ + i, &z, 8);
  }
  ScopedLock guard(staging_lock_);
  slots_limit_ = options_.staging_slots < 1024 ? options_.staging_slots : 1024;
  return {};
}

void UffdMmu::booted(PageAllocator& pages) {
  // Whatever boot has touched and given back has its host page still.
  unsigned char present[512] = {};
  const auto frames = static_cast<uint64_t>(mem_->frames.v);
  for (uint64_t at = 0; at < frames; at += sizeof present) {
    const uint64_t n = frames - at < sizeof present ? frames - at : sizeof present;
    if (host::mincore(mem_->address(Pfn(at)), n << PAGE_SHIFT, present) != 0)
      bug("mincore on the arena", __FILE__, __LINE__);
    for (uint64_t i = 0; i < n; ++i)
      if ((present[i] & 1) != 0) set_resident(at + i, true);
  }
  pages_ = &pages;
}

void UffdMmu::mm_created(Mm& mm) {
  // One program, one address space.
  if (mm_ == nullptr) mm_ = &mm;
}

void UffdMmu::mm_destroyed(Mm& mm) {
  if (mm_ == &mm) mm_ = nullptr;
}

void UffdMmu::forget_waiters() {
  for (Window& w : windows_) {
    w.lock.~Mutex();
    ::new (static_cast<void*>(&w.lock)) Mutex(LockRank::window);
  }
  staging_lock_.forget_holder();
  quarantine_lock_.forget_holder();
}

UffdStats UffdMmu::stats() const {
  const auto get = [](const std::atomic<uint64_t>& v) { return v.load(std::memory_order_relaxed); };
  UffdStats s;
  s.copies = get(n_.copies);
  s.zero_copies = get(n_.zero_copies);
  s.staged_back = get(n_.staged_back);
  s.place_moves = get(n_.place_moves);
  s.moves = get(n_.moves);
  s.moved_pages = get(n_.moved_pages);
  s.pinned = get(n_.pinned);
  s.cow_breaks = get(n_.cow_breaks);
  s.flush_skipped = get(n_.flush_skipped);
  s.again = get(n_.again);
  s.stale = get(n_.stale);
  s.clean = get(n_.clean);
  s.dirty = get(n_.dirty);
  s.quarantine_flushes = get(n_.quarantine_flushes);
  s.quarantined_pages = get(n_.quarantined_pages);
  auto& self = const_cast<UffdMmu&>(*this);
  {
    ScopedLock guard(self.staging_lock_);
    s.staged = slots_taken_;
  }
  ScopedLock guard(self.quarantine_lock_);
  s.slack = nr_left_ + draining_left_;
  return s;
}

// ---- Places and bounce pages ----------------------------------------------------------------------------------------

bool UffdMmu::resident(uint64_t pfn) const {
  return (resident_[pfn / 64].load(std::memory_order_acquire) >> (pfn % 64) & 1) != 0;
}

void UffdMmu::set_resident(uint64_t pfn, bool on) {
  const uint64_t bit = uint64_t{1} << (pfn % 64);
  if (on)
    resident_[pfn / 64].fetch_or(bit, std::memory_order_acq_rel);
  else
    resident_[pfn / 64].fetch_and(~bit, std::memory_order_acq_rel);
}

/// The place's host page goes back to the host; the place reads zero.
void UffdMmu::drop_place(Page& page) {
  const uint64_t n = pfn(page);
  if (!resident(n)) return;
  if (madvise(mem_->page_address(page), PAGE_SIZE, MADV_DONTNEED) != 0)
    bug("MADV_DONTNEED on the arena", __FILE__, __LINE__);
  set_resident(n, false);
}

/// The lowest: it was in use a moment ago.
bool UffdMmu::take_bounce(uint32_t& i) {
  for (uint32_t word = 0; word < nr_bounce_ / 64; ++word) {
    uint64_t free = bounce_free_[word].load(std::memory_order_relaxed);
    while (free != 0) {
      i = word * 64 + static_cast<uint32_t>(std::countr_zero(free));
      if (bounce_free_[word].compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire)) return true;
    }
  }
  return false;
}

void UffdMmu::give_bounce(uint32_t i) {
  bounce_free_[i / 64].fetch_or(uint64_t{1} << (i % 64), std::memory_order_release);
}

std::byte* UffdMmu::bytes(Page& page) const {
  switch (kind(page)) {
    case Kind::bounce: return bounce_address(index(page));
    case Kind::place: return mem_->page_address(page);
    case Kind::staged: return slot_address(index(page));
    default: return nullptr;
  }
}

Content UffdMmu::kmap(Page& page) {
  if (!PageAnon(page)) take_back(page);
  if (std::byte* at = bytes(page)) return {.bytes = at};
  if (page.test(PageFlag::kernel_place)) return {.bytes = mem_->page_address(page)};
  WEIR_BUG_ON(kind(page) == Kind::mapped);  // the task may be writing there: who takes bytes asks captured() first
  const bool zero = kind(page) == Kind::zero;
  uint32_t i = 0;
  if (take_bounce(i)) {
    if (zero) std::memset(bounce_address(i), 0, PAGE_SIZE);
    set(page, Kind::bounce, i);
    return {.bytes = bounce_address(i)};
  }
  // A page without a host page has none at its place either, so that what is there now reads zero.
  set_resident(pfn(page), true);
  set(page, Kind::place);
  return {.bytes = mem_->page_address(page)};
}

void UffdMmu::kunmap(Page&) {}

void UffdMmu::clear_user_highpage(Page& page) {
  switch (kind(page)) {
    case Kind::bounce: give_bounce(index(page)); break;
    case Kind::place: drop_place(page); break;
    case Kind::none:
    case Kind::zero: break;
    case Kind::mapped:
    case Kind::staged: bug("a page in use is cleared", __FILE__, __LINE__);
  }
  set(page, Kind::zero);
}

void UffdMmu::copy_user_highpage(Page& to, Page& from) {
  const Content source = kmap(from), target = kmap(to);
  WEIR_BUG_ON(source.bytes == nullptr || target.bytes == nullptr);
  std::memcpy(target.bytes, source.bytes, PAGE_SIZE);
  kunmap(from);
  kunmap(to);
}

// ---- Dirty or not ---------------------------------------------------------------------------------------------------

UffdMmu::Hash UffdMmu::hash_of(const Page& page, const std::byte* at) const {
  const XXH128_hash_t h = XXH3_128bits_withSecret(at, PAGE_SIZE, secret_, sizeof secret_);
  // Of the bytes and of the slot that they are compared with: a page that has moved to another slot differs from what
  // is there.
  Hash hash{h.low64 ^ page.private_ * 0x9e3779b97f4a7c15ull, h.high64};
  if (hash == Hash{}) hash.low = 1;
  return hash;
}

bool UffdMmu::test_dirty(Page& page) {
  WEIR_BUG_ON(kind(page) == Kind::mapped);
  const Hash kept = hashes_[pfn(page)];
  const std::byte* at = bytes(page);
  const bool clean = kept != Hash{} && kept == hash_of(page, at != nullptr ? at : zero_);
  (clean ? n_.clean : n_.dirty).fetch_add(1, std::memory_order_relaxed);
  return !clean;
}

void UffdMmu::mark_clean(Page& page) {
  if (kind(page) == Kind::mapped) {  // nobody knows what will be there in a moment
    hashes_[pfn(page)] = {};
    return;
  }
  const std::byte* at = bytes(page);
  hashes_[pfn(page)] = hash_of(page, at != nullptr ? at : zero_);
}

// ---- Frames changing hands ------------------------------------------------------------------------------------------

void UffdMmu::arch_alloc_page(Page& page, Order order, gfp_t gfp) {
  const uint64_t first = pfn(page);
  const auto n = static_cast<uint64_t>(pages_of(order).v);
  for (uint64_t i = 0; i < n; ++i) {
    Page& p = mem_->page(Pfn(first + i));
    if (!gfp.has(__GFP_HIGHMEM)) {
      set_resident(first + i, true);
      set(p, Kind::none);
      continue;
    }
    hashes_[first + i] = {};
    // The host page that its last user left there serves the next one.
    set(p, resident(first + i) ? Kind::place : Kind::none);
  }
}

// Makes no host call: the caller may hold a spinlock.
bool UffdMmu::arch_free_page(Page& page, Order order) {
  if (page.test(PageFlag::kernel_place)) return true;
  WEIR_BUG_ON(order.v != 0);
  switch (kind(page)) {
    case Kind::none:
    case Kind::zero:
    case Kind::place:   // stays resident
    case Kind::mapped:  // gone by flush_range
      break;
    case Kind::bounce: give_bounce(index(page)); break;
    case Kind::staged: {
      ScopedLock guard(quarantine_lock_);
      quarantine_.push_back(page);
      nr_quarantined_.fetch_add(1, std::memory_order_relaxed);
      return false;
    }
  }
  set(page, Kind::none);
  return true;
}

void UffdMmu::flush_quarantine() { drain(); }

}  // namespace weir
