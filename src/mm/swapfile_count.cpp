// src/mm/swapfile_count.cpp: who uses a slot, and counts that outgrow their byte. See swapfile.hpp
#include <algorithm>

#include "mm/swapfile.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "swapfile.cpp"

namespace weir {

namespace {

/// What a digit of a continuation says without its flag.
constexpr uint8_t digit(uint8_t v) { return v & SWAP_CONT_MAX; }

/// A slot's digits above the map's, least first.
struct Digits {
  static constexpr unsigned MOST = 5;  // 63 * 128^5 users are more than there can be PTEs
  uint8_t* at[MOST] = {};
  unsigned n = 0;

  Digits(const SwapInfo& si, uint64_t offset) {
    constexpr uint64_t per_page = PagedArray<uint8_t>::PER_PAGE;
    for (SwapContinuation* c = si.continuations[offset / per_page]; c != nullptr && n < MOST; c = c->next)
      at[n++] = c->digits + offset % per_page;
  }
};

}  // namespace

// The map's digit is at its maximum and goes to 0; the carry goes into the continuation. False: there is no further
// page.
bool SwapFiles::swap_count_continued(SwapInfo& si, uint64_t offset, Carry carry) {
  WEIR_FLOW(offset, carry);
  const Digits digits(si, offset);
  uint8_t& map = si.swap_map[offset];
  const uint8_t cache = map & SWAP_HAS_CACHE;
  unsigned level = 0;
  if (carry == Carry::up) {
    while (level < digits.n && digit(*digits.at[level]) == SWAP_CONT_MAX) ++level;
    if (level == digits.n) return false;
    ++*digits.at[level];
    while (level-- > 0) *digits.at[level] = COUNT_CONTINUED;
    map = cache | COUNT_CONTINUED;
    return true;
  }
  while (level < digits.n && digit(*digits.at[level]) == 0) ++level;
  WEIR_BUG_ON(level == digits.n);
  --*digits.at[level];
  bool more = *digits.at[level] != 0;
  while (level-- > 0) {
    *digits.at[level] = static_cast<uint8_t>(SWAP_CONT_MAX | (more ? COUNT_CONTINUED : 0));
    more = true;
  }
  map = static_cast<uint8_t>(cache | SWAP_MAP_MAX | (more ? COUNT_CONTINUED : 0));
  return true;
}

Result<void> SwapFiles::add_swap_count_continuation(SwpEntry entry, gfp_t gfp) {
  WEIR_FLOW(entry);
  // Had before the area's lock; given back if it turns out that nobody needs it.
  auto* fresh = static_cast<SwapContinuation*>(slab_.kmalloc(sizeof(SwapContinuation), gfp));
  std::byte* page = fresh != nullptr ? pages_.get_zeroed_page(gfp) : nullptr;
  const auto give_back = [&] {
    if (page != nullptr) pages_.free_pages(page, Order(0));
    slab_.kfree(fresh);
  };
  SwapInfo* si = lookup(entry, "add_swap_count_continuation");
  if (si == nullptr) {
    give_back();
    return {};  // the area is going; the caller finds out for itself
  }
  enum class Need : uint8_t { none, page } need = Need::none;
  {
    ScopedLock guard(si->lock);
    const uint64_t offset = swp_offset(entry);
    if (offset < si->max && (si->swap_map[offset] & ~(SWAP_HAS_CACHE | COUNT_CONTINUED)) == SWAP_MAP_MAX) {
      const Digits digits(*si, offset);
      const bool room =
          std::any_of(digits.at, digits.at + digits.n, [](const uint8_t* d) { return digit(*d) != SWAP_CONT_MAX; });
      if (!room) need = Need::page;
      if (!room && page != nullptr && digits.n < Digits::MOST) {
        fresh->digits = reinterpret_cast<uint8_t*>(page);
        fresh->next = nullptr;
        SwapContinuation** end = &si->continuations[offset / PagedArray<uint8_t>::PER_PAGE];
        while (*end != nullptr) end = &(*end)->next;
        *end = fresh;
        return {};
      }
    }
  }
  give_back();
  if (need == Need::page) return Errno::nomem;
  return {};
}

void SwapFiles::free_swap_count_continuations(SwapContinuation** chains, uint64_t nr_chains) {
  WEIR_FLOW();
  for (uint64_t i = 0; chains != nullptr && i < nr_chains; ++i) {
    while (SwapContinuation* c = chains[i]) {
      chains[i] = c->next;
      pages_.free_pages(reinterpret_cast<std::byte*>(c->digits), Order(0));
      slab_.kfree(c);
    }
  }
  slab_.kfree(chains);
}

// The users of a slot, the continuation's included, without the cache.
uint64_t SwapFiles::count_of(const SwapInfo& si, uint64_t offset) {
  const uint8_t map = si.swap_map[offset];
  if (map == SWAP_MAP_BAD) return 0;
  if ((map & ~SWAP_HAS_CACHE) == SWAP_MAP_SHMEM) return 1;
  uint64_t users = map & ~(SWAP_HAS_CACHE | COUNT_CONTINUED);
  if ((map & COUNT_CONTINUED) == 0) return users;
  const Digits digits(si, offset);
  uint64_t weight = SWAP_MAP_MAX + 1;
  for (unsigned level = 0; level < digits.n; ++level, weight *= SWAP_CONT_MAX + 1)
    users += weight * digit(*digits.at[level]);
  return users;
}

// COUNT_CONTINUED, in the map and in each digit, is there iff a digit above is not 0.
bool SwapFiles::continued_right(const SwapInfo& si, uint64_t offset) {
  if ((si.swap_map[offset] & ~SWAP_HAS_CACHE) == SWAP_MAP_SHMEM) return true;
  const Digits digits(si, offset);
  bool more = false;
  for (unsigned level = digits.n; level-- > 0;) {
    if (((*digits.at[level] & COUNT_CONTINUED) != 0) != more) return false;
    more = *digits.at[level] != 0;
  }
  return ((si.swap_map[offset] & COUNT_CONTINUED) != 0) == more;
}

Result<void> SwapFiles::__swap_duplicate(SwpEntry entry, uint8_t usage, const char* who) {
  SwapInfo* si = lookup(entry, who);
  if (si == nullptr) return Errno::inval;
  ScopedLock guard(si->lock);
  if (swp_offset(entry) >= si->max) return Errno::inval;
  uint8_t& map = si->swap_map[swp_offset(entry)];
  const uint8_t old = map;
  const uint8_t users = old & static_cast<uint8_t>(~SWAP_HAS_CACHE);
  const uint8_t count = users & static_cast<uint8_t>(~COUNT_CONTINUED);
  if (old == SWAP_MAP_BAD) return Errno::inval;
  if (usage == SWAP_HAS_CACHE) {
    if ((old & SWAP_HAS_CACHE) != 0) return Errno::exist;
    if (users == 0) return Errno::noent;
    map = old | SWAP_HAS_CACHE;
  } else if (usage == SWAP_MAP_SHMEM) {
    if (old == 0) return Errno::noent;
    if (users != 0) return Errno::inval;
    map = old | SWAP_MAP_SHMEM;
  } else {
    if (old == 0) return Errno::noent;
    if (count != SWAP_MAP_MAX)
      ++map;
    else if (!swap_count_continued(*si, swp_offset(entry), Carry::up))
      return Errno::nomem;
  }
  WEIR_STATE(swap_map, entry, old, map);
  return {};
}

Result<void> SwapFiles::swap_duplicate(SwpEntry entry) { return era_->swap_duplicate(entry); }
Result<void> SwapFiles::swapcache_prepare(SwpEntry entry) { return era_->swapcache_prepare(entry); }
uint16_t SwapFiles::swap_free(SwpEntry entry) { return era_->swap_free(entry); }
void SwapFiles::swapcache_free(SwpEntry entry) { era_->swapcache_free(entry); }

void SwapFiles::swap_shmem_alloc(SwpEntry entry) {
  WEIR_FLOW(entry);
  const Result<void> done = __swap_duplicate(entry, SWAP_MAP_SHMEM, "swap_shmem_alloc");
  WEIR_BUG_ON(!done);
}

bool SwapFiles::may_be_shmem(SwpEntry entry) {
  return cache_is_a_user() || (swap_map_value(entry) & ~SWAP_HAS_CACHE) == SWAP_MAP_SHMEM;
}

Result<void> SwapFilesEra::one_user_more(SwpEntry entry) {
  for (;;) {
    const Result<void> done = files_.__swap_duplicate(entry, 1, "swap_duplicate");
    if (done.error() != Errno::nomem) return done;
    // A PTE lock may be held.
    if (!files_.add_swap_count_continuation(entry, GFP_ATOMIC | __GFP_NOWARN)) return done;
  }
}

uint8_t SwapFiles::drop_user(SwapInfo& si, SwpEntry entry, uint8_t usage, bool& dropped) {
  dropped = false;
  if (swp_offset(entry) >= si.max) return 0;
  uint8_t& map = si.swap_map[swp_offset(entry)];
  const uint8_t old = map;
  const uint8_t users = old & static_cast<uint8_t>(~SWAP_HAS_CACHE);
  const bool held = usage == SWAP_HAS_CACHE ? (old & SWAP_HAS_CACHE) != 0 : users != 0;
  if (old == SWAP_MAP_BAD || !held) {
    ((LogLine() << "swap_free: Unused swap offset entry ").hex(entry.val) << " map ").hex(old);
    return old;
  }
  if (usage != SWAP_HAS_CACHE && users == SWAP_MAP_SHMEM)
    map = old & SWAP_HAS_CACHE;
  else if (usage != SWAP_HAS_CACHE && users == COUNT_CONTINUED)
    (void)swap_count_continued(si, swp_offset(entry), Carry::down);
  else
    map = old - usage;
  dropped = true;
  return map;
}

// One user less. The last one leaves SWAP_HAS_CACHE behind, which release() gives back: meanwhile nobody else can take
// the slot.
void SwapFiles::__swap_entry_free(SwapInfo& si, SwpEntry entry, uint8_t usage, uint8_t& left) {
  bool dropped = false;
  {
    ScopedLock guard(si.lock);
    const uint64_t offset = swp_offset(entry);
    const uint8_t old = offset < si.max ? si.swap_map[offset] : uint8_t{0};
    left = drop_user(si, entry, usage, dropped);
    if (!dropped) return;
    if (left == 0) si.swap_map[offset] = SWAP_HAS_CACHE;
    WEIR_STATE(swap_map, entry, old, si.swap_map[offset]);
    if (left == 0) si.bdev->slot_free_notify(offset);
  }
  if (left == 0) release(entry);
}

uint8_t SwapFilesEra::drop_and_release(SwapInfo& si, SwpEntry entry, uint8_t usage) {
  uint8_t left = 0;
  files_.__swap_entry_free(si, entry, usage, left);
  return left;
}

uint8_t SwapFilesEra::drop_user(SwapInfo& si, SwpEntry entry, uint8_t usage) {
  const uint8_t old = swp_offset(entry) < si.max ? si.swap_map[swp_offset(entry)] : uint8_t{0};
  bool dropped = false;
  const uint8_t left = files_.drop_user(si, entry, usage, dropped);
  if (!dropped) return old;
  WEIR_STATE(swap_map, entry, old, left);
  if (left == 0) files_.swap_range_free(si, swp_offset(entry));
  return left;
}

void SwapFiles::release(SwpEntry entry) {
  if (release_ != nullptr)
    release_(release_arg_, entry);
  else
    swapcache_free_entries(&entry, 1);
}

void SwapFiles::swap_entry_free(SwapInfo& si, SwpEntry entry) {
  WEIR_FLOW(entry);
  uint8_t& map = si.swap_map[swp_offset(entry)];
  WEIR_BUG_ON(map != SWAP_HAS_CACHE);
  map = 0;
  WEIR_STATE(swap_map, entry, SWAP_HAS_CACHE, 0);
  swap_range_free(si, swp_offset(entry));
}

void SwapFiles::swapcache_free_entries(const SwpEntry* entries, unsigned n) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  WEIR_FLOW(n);
  SwapInfo* held = nullptr;
  for (unsigned i = 0; i < n; ++i) {
    SwapInfo* si = lookup(entries[i], "swapcache_free_entries");
    if (si == nullptr) continue;
    if (si != held) {
      if (held != nullptr) held->lock.unlock();
      si->lock.lock();
      held = si;
    }
    swap_entry_free(*si, entries[i]);
  }
  if (held != nullptr) held->lock.unlock();
}

uint16_t SwapFiles::swap_map_value(SwpEntry entry) {
  SwapInfo* si = entry ? swap_info(swp_type(entry)) : nullptr;
  if (si == nullptr) return 0;
  ScopedLock guard(si->lock);
  return swp_offset(entry) < si->max ? map_at(*si, swp_offset(entry)) : uint16_t{0};
}

uint64_t SwapFiles::swp_swapcount(SwpEntry entry, Cached cached) {
  SwapInfo* si = entry ? swap_info(swp_type(entry)) : nullptr;
  if (si == nullptr) return 0;
  ScopedLock guard(si->lock);
  if (swp_offset(entry) >= si->max) return 0;
  if (!traits_.cache_is_a_user) return count_of(*si, swp_offset(entry));
  const uint16_t map = map_at(*si, swp_offset(entry));
  if (map == SWAP_MAP_BAD_16) return 0;
  return map - (cached == Cached::yes && map > 0 ? 1u : 0u);
}

unsigned SwapFiles::valid_swaphandles(SwpEntry entry, unsigned window, uint64_t& first) {
  WEIR_FLOW(entry, window);
  SwapInfo* si = lookup(entry, "valid_swaphandles");
  const uint64_t target = swp_offset(entry);
  first = target;
  if (si == nullptr || window <= 1) return 0;
  ScopedLock guard(si->lock);
  const auto usable = [&](uint64_t slot) {
    return slot < si->max && map_at(*si, slot) != 0 && map_at(*si, slot) != bad_value();
  };
  const uint64_t base = std::max<uint64_t>(target & ~uint64_t{window - 1}, 1);
  const uint64_t end = std::min((target | (window - 1)) + 1, si->max);
  uint64_t last = target;
  while (last + 1 < end && usable(last + 1)) ++last;
  while (first > base && usable(first - 1)) --first;
  // The slot itself is read anyway.
  return first == last ? 0 : static_cast<unsigned>(last - first + 1);
}

uint64_t SwapFiles::find_next_to_unuse(SwapInfo& si, uint64_t offset) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  WEIR_FLOW(si.type, offset);
  uint64_t latency = LATENCY_LIMIT;
  ScopedLock guard(si.lock);
  // Once round: behind the last one it begins again at the first.
  for (uint64_t looked = 1; looked < si.max; ++looked) {
    if (++offset >= si.max) offset = 1;
    const uint16_t map = map_at(si, offset);
    if (map != 0 && map != bad_value()) return offset;
    (void)breathe(si, latency);
  }
  return 0;
}

}  // namespace weir
