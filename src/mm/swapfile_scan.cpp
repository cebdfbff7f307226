// src/mm/swapfile_scan.cpp: taking slots and giving them back to their area. See swapfile.hpp
#include <emmintrin.h>

#include <algorithm>
#include <bit>

#include "mm/swapfile.hpp"

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "swapfile.cpp"

namespace weir {

namespace {

/// The end of the stretch of LATENCY_LIMIT slots that it lies in.
uint64_t stretch_end(uint64_t offset) { return (offset | (LATENCY_LIMIT - 1)) + 1; }

}  // namespace

unsigned SwapFiles::get_swap_pages(unsigned n, SwpEntry* entries) {
  WEIR_FLOW(n);
  return take_slots(n, entries);
}

SwpEntry SwapFiles::get_swap_page() { return era_->get_swap_page(); }

/// Area by area, the best first.
unsigned SwapFiles::take_slots(unsigned n, SwpEntry* entries) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  if (nr_swap_pages() <= 0) return 0;
  n = std::min(n, SWAP_BATCH);
  uint8_t order[MAX_SWAPFILES];
  unsigned areas = 0;
  {
    ScopedLock guard(swap_lock_);
    areas = nr_active_;
    std::copy(active_, active_ + nr_active_, order);
  }
  for (unsigned i = 0; i < areas; ++i) {
    SwapInfo& si = *swap_info_[order[i]].load(std::memory_order_acquire);
    for (bool first = true;; first = false) {
      // From list to area hand over hand: an area that swapoff has taken off is not used any more.
      swap_lock_.lock();
      si.lock.lock();
      const bool usable = (si.flags.load(std::memory_order_relaxed) & SWP_WRITEOK) != 0 && si.highest_bit != 0;
      const bool has_room = usable && si.bdev->has_room();
      if (has_room) requeue(si.type);
      swap_lock_.unlock();
      const unsigned got = has_room ? era_->scan(si, n, entries) : 0;
      si.lock.unlock();
      if (got > 0) return got;
      if (!usable || has_room || !first) break;
      reclaim_copies(si);
    }
  }
  return 0;
}

unsigned SwapFiles::scan_swap_map_slots(SwapInfo& si, unsigned n, SwpEntry* entries) {
  WEIR_FLOW(si.type, n);
  bool by_cluster = static_cast<bool>(si.cluster_info);
  unsigned got = 0;
  while (got < n) {
    uint64_t offset = 0;
    if (by_cluster) {
      offset = scan_swap_map_try_ssd_cluster(si);
      by_cluster = offset != 0;
    }
    // Without a free cluster one slot is as good as another. When some are at hand, only what is near is worth a look.
    if (offset == 0 && !si.cluster_info) {
      offset = scan_swap_map_hand(si);
    } else if (offset == 0) {
      offset = got == 0 ? next_free_slot(si) : free_slot_in(si, si.cluster_next, si.cluster_next + SCAN_AHEAD);
      // One that became free while the lock was let go is taken as a cluster.
      by_cluster = si.free_clusters_head != 0 && (si.flags.load(std::memory_order_relaxed) & SWP_WRITEOK) != 0;
      if (offset == 0 && by_cluster) continue;
    }
    if (offset == 0) break;
    swap_range_alloc(si, offset);
    entries[got++] = swp_entry(si.type, offset);
  }
  return got;
}

PerCpuCluster& SwapFiles::this_cpu_cluster(SwapInfo& si) const {
  const Thread* thread = engine_thread().thread;
  return si.percpu_cluster[thread == nullptr ? 0 : thread->cpu.v % cpus_];
}

// The next free slot of this CPU's cluster, or of a fresh one; 0 when there is no free cluster.
uint64_t SwapFiles::scan_swap_map_try_ssd_cluster(SwapInfo& si) {
  PerCpuCluster& mine = this_cpu_cluster(si);
  for (;;) {
    if (mine.index == 0) {
      mine.index = pop_free_cluster(si);
      if (mine.index == 0 && si.discard_clusters_head != 0) {
        // Those that wait for the device are free as soon as it has been told.
        swap_do_scheduled_discard(si);
        if ((si.flags.load(std::memory_order_relaxed) & SWP_WRITEOK) == 0) return 0;
        continue;
      }
      if (mine.index == 0) return 0;
      vmstat_.count_vm_event(VmEvent::swap_cluster);
      mine.next = uint64_t{mine.index} * SWAPFILE_CLUSTER;
    }
    const uint64_t end = (uint64_t{mine.index} + 1) * SWAPFILE_CLUSTER;
    // Others may have used its slots when they found no cluster of their own.
    while (mine.next < end && map_at(si, mine.next) != 0) ++mine.next;
    if (mine.next < end) return mine.next++;
    SwapCluster& used_up = si.cluster_info[mine.index];
    used_up.owner = SwapCluster::Owner::none;
    if (used_up.count == 0) free_cluster(si, mine.index);
    mine.index = 0;
  }
}

// The slot under the hand, or the next free one above it. Every 256 slots the hand looks for a free stretch from below,
// so that pages that leave together lie together.
uint64_t SwapFiles::scan_swap_map_hand(SwapInfo& si) {
  if (si.cluster_nr > 0) {
    --si.cluster_nr;
    return next_free_slot(si);
  }
  si.cluster_nr = SWAPFILE_CLUSTER - 1;
  if (si.pages - si.inuse_pages >= SWAPFILE_CLUSTER) {
    uint64_t latency = LATENCY_LIMIT;
    for (uint64_t start = si.lowest_bit; start + SWAPFILE_CLUSTER <= si.highest_bit + 1;) {
      // From its end: a stretch with a used slot is over at once, and the next one begins behind that slot.
      uint64_t free_from = start + SWAPFILE_CLUSTER;
      while (free_from > start && map_at(si, free_from - 1) == 0) --free_from;
      if (free_from == start) {
        si.cluster_next = start;
        break;
      }
      start = free_from;
      // What was free may not be when the lock is back: at worst the stretch has a gap.
      if (!breathe(si, latency)) return 0;
    }
  }
  return next_free_slot(si);
}

// Every LATENCY_LIMIT steps lets go of the lock for a moment. False: the area is being switched off.
bool SwapFiles::breathe(SwapInfo& si, uint64_t& latency) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  if (--latency > 0) return true;
  latency = LATENCY_LIMIT;
  si.lock.unlock();
  if (engine_thread().world != nullptr) world().cond_resched();
  si.lock.lock();
  return (si.flags.load(std::memory_order_relaxed) & SWP_WRITEOK) != 0;
}

namespace {

constexpr uint64_t LOOK = 16;  // slots looked at in one step

// Which of LOOK entries are 0 once flipped and masked, a bit each. They begin at a multiple of LOOK.
unsigned zeros(const uint8_t* map, uint8_t flip, uint8_t keep) {
  const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i*>(map));
  const __m128i wanted = _mm_and_si128(_mm_xor_si128(entries, _mm_set1_epi8(static_cast<char>(flip))),
                                       _mm_set1_epi8(static_cast<char>(keep)));
  return static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(wanted, _mm_setzero_si128())));
}

unsigned zeros(const uint16_t* map) {
  const auto* half = reinterpret_cast<const __m128i*>(map);
  const __m128i none = _mm_setzero_si128();
  return static_cast<unsigned>(_mm_movemask_epi8(
      _mm_packs_epi16(_mm_cmpeq_epi16(_mm_load_si128(half), none), _mm_cmpeq_epi16(_mm_load_si128(half + 1), none))));
}

}  // namespace

// The first slot of [from, to) that is free, or that only the cache uses; `to` if there is none. They lie in one page of
// the map.
uint64_t SwapFiles::next_candidate(const SwapInfo& si, uint64_t from, uint64_t to, Wanted what) {
  const uint64_t first = from & ~(LOOK - 1);
  const auto* map = si.swap_map16 ? nullptr : &si.swap_map[first];
  const auto* map16 = si.swap_map16 ? &si.swap_map16[first] : nullptr;
  const uint8_t flip = what == Wanted::copy ? SWAP_HAS_CACHE : 0;
  const uint8_t keep = what == Wanted::free_or_copy ? static_cast<uint8_t>(~SWAP_HAS_CACHE) : 0xff;
  unsigned not_before = ~0u << (from - first);
  for (uint64_t at = first; at < to; at += LOOK, not_before = ~0u) {
    const unsigned found =
        (map != nullptr ? zeros(map + (at - first), flip, keep) : zeros(map16 + (at - first))) & not_before;
    if (found != 0) return std::min(to, at + static_cast<unsigned>(std::countr_zero(found)));
  }
  return to;
}

// The first free slot of [offset, to); 0 when there is none. While swap is short, slots that hold only the cache's copy
// are freed on the way.
uint64_t SwapFiles::free_slot_in(SwapInfo& si, uint64_t offset, uint64_t to) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  const auto cluster_of = [&](uint64_t slot) { return si.cluster_info[slot / SWAPFILE_CLUSTER]; };
  // Such a one is taken from its list.
  const auto free_cluster_of = [&](uint64_t slot) {
    return si.cluster_info && cluster_of(slot).count == 0 && cluster_of(slot).owner != SwapCluster::Owner::cpu;
  };
  uint64_t latency = 4;  // stretches
  while (offset < std::min(to, si.highest_bit + 1)) {
    if ((si.flags.load(std::memory_order_relaxed) & SWP_WRITEOK) == 0) return 0;
    const uint64_t stop = std::min({stretch_end(offset), to, si.highest_bit + 1});
    const bool copies = vm_swap_full() && !traits_.cache_is_a_user && reclaim_ != nullptr;
    const bool none =
        free_cluster_of(offset) || (si.cluster_info && !copies && cluster_of(offset).count == SWAPFILE_CLUSTER);
    if (!none) offset = next_candidate(si, offset, stop, copies ? Wanted::free_or_copy : Wanted::free);
    if (none || offset == stop) {
      offset = stop;
      if (!none) (void)breathe(si, latency);
      continue;
    }
    if (map_at(si, offset) == 0) {
      if (may_take(si, offset)) return offset;
    } else {
      si.lock.unlock();
      const bool freed = reclaim_(reclaim_arg_, swp_entry(si.type, offset));
      si.lock.lock();
      const bool usable = (si.flags.load(std::memory_order_relaxed) & SWP_WRITEOK) != 0;
      if (freed && usable && offset <= si.highest_bit && may_take(si, offset) && !free_cluster_of(offset))
        return offset;
    }
    ++offset;
  }
  return 0;
}

// From cluster_next up, then from lowest_bit.
uint64_t SwapFiles::next_free_slot(SwapInfo& si) {
  const uint64_t start = std::max(si.cluster_next, si.lowest_bit);
  if (const uint64_t offset = free_slot_in(si, start, si.max)) return offset;
  return free_slot_in(si, si.lowest_bit, start);
}

// The device has no room left. What it holds of pages that are in memory is the first to go: those slots that only the
// cache uses, a batch at a time.
void SwapFiles::reclaim_copies(SwapInfo& si) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  if (reclaim_ == nullptr || traits_.cache_is_a_user) return;
  constexpr uint64_t LOOK_AT = 16 * LATENCY_LIMIT;
  unsigned freed = 0;
  si.lock.lock();
  for (uint64_t looked = 0; looked < std::min(LOOK_AT, si.max) && freed < SWAP_BATCH;) {
    if ((si.flags.load(std::memory_order_relaxed) & SWP_WRITEOK) == 0) break;
    if (si.copy_hand >= si.max) si.copy_hand = 1;
    const uint64_t from = si.copy_hand, stop = std::min(stretch_end(from), si.max);
    const uint64_t offset = next_candidate(si, from, stop, Wanted::copy);
    si.copy_hand = offset + (offset != stop ? 1 : 0);
    looked += si.copy_hand - from;
    si.lock.unlock();
    if (offset != stop && reclaim_(reclaim_arg_, swp_entry(si.type, offset))) ++freed;
    si.lock.lock();
  }
  si.lock.unlock();
  vmstat_.count_vm_events(VmEvent::swap_copy_freed, freed);
}

void SwapFiles::swap_range_alloc(SwapInfo& si, uint64_t offset) {
  set_map(si, offset, traits_.taken);
  if (si.cluster_info) ++si.cluster_info[offset / SWAPFILE_CLUSTER].count;
  if (offset == si.lowest_bit) ++si.lowest_bit;
  if (offset == si.highest_bit) --si.highest_bit;
  ++si.inuse_pages;
  if (si.inuse_pages == si.pages) {
    si.lowest_bit = si.max;
    si.highest_bit = 0;
  }
  si.cluster_next = offset + 1;
  nr_swap_pages_.fetch_sub(1, std::memory_order_relaxed);
  WEIR_STATE(swap_map, swp_entry(si.type, offset), 0, traits_.taken);
}

void SwapFiles::swap_range_free(SwapInfo& si, uint64_t offset) {
  si.lowest_bit = std::min(si.lowest_bit, offset);
  si.highest_bit = std::max(si.highest_bit, offset);
  --si.inuse_pages;
  frontswap_.invalidate_page(si.type, offset);
  if (si.cluster_info) {
    SwapCluster& cluster = si.cluster_info[offset / SWAPFILE_CLUSTER];
    if (--cluster.count == 0 && cluster.owner == SwapCluster::Owner::none)
      free_cluster(si, static_cast<uint32_t>(offset / SWAPFILE_CLUSTER));
  }
  nr_swap_pages_.fetch_add(1, std::memory_order_relaxed);
}

// Nobody uses a slot of the cluster: it is free, or will be when the device has been told.
void SwapFiles::free_cluster(SwapInfo& si, uint32_t cluster) {
  constexpr uint32_t DISCARDS = SWP_WRITEOK | SWP_PAGE_DISCARD;
  if ((si.flags.load(std::memory_order_relaxed) & DISCARDS) == DISCARDS)
    swap_cluster_schedule_discard(si, cluster);
  else
    push_free_cluster(si, cluster);
}

void SwapFiles::swap_cluster_schedule_discard(SwapInfo& si, uint32_t cluster) {
  WEIR_FLOW(si.type, cluster);
  SwapCluster& it = si.cluster_info[cluster];
  it.owner = SwapCluster::Owner::discard;
  it.next = 0;
  if (si.discard_clusters_tail != 0)
    si.cluster_info[si.discard_clusters_tail].next = cluster;
  else
    si.discard_clusters_head = cluster;
  si.discard_clusters_tail = cluster;
  if (discarding_) discard_queue_.queue_work(si.discard_work.work);
}

void SwapFiles::swap_do_scheduled_discard(SwapInfo& si) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  WEIR_FLOW(si.type);
  while (const uint32_t cluster = si.discard_clusters_head) {
    si.discard_clusters_head = si.cluster_info[cluster].next;
    if (si.discard_clusters_head == 0) si.discard_clusters_tail = 0;
    const uint64_t first = uint64_t{cluster} * SWAPFILE_CLUSTER;
    si.lock.unlock();
    discard_slots(si, first, SWAPFILE_CLUSTER);
    si.lock.lock();
    si.cluster_info[cluster].owner = SwapCluster::Owner::none;
    push_free_cluster(si, cluster);
  }
}

void SwapFiles::swap_discard_work(WorkStruct* work) {
  auto& mine = *reinterpret_cast<SwapInfo::DiscardWork*>(work);
  WEIR_FLOW(mine.area->type);
  ScopedLock guard(mine.area->lock);
  if (mine.area->cluster_info) mine.files->swap_do_scheduled_discard(*mine.area);
}

void SwapFiles::push_free_cluster(SwapInfo& si, uint32_t cluster) {
  si.cluster_info[cluster].next = 0;
  if (si.free_clusters_tail != 0)
    si.cluster_info[si.free_clusters_tail].next = cluster;
  else
    si.free_clusters_head = cluster;
  si.free_clusters_tail = cluster;
}

uint32_t SwapFiles::pop_free_cluster(SwapInfo& si) {
  const uint32_t cluster = si.free_clusters_head;
  if (cluster == 0) return 0;
  si.free_clusters_head = si.cluster_info[cluster].next;
  if (si.free_clusters_head == 0) si.free_clusters_tail = 0;
  si.cluster_info[cluster].next = 0;
  si.cluster_info[cluster].owner = SwapCluster::Owner::cpu;
  return cluster;
}

uint64_t SwapFilesEra::scan_one(SwapInfo& si) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  const uint64_t offset = files_.scan_swap_map_hand(si);
  if (offset != 0) files_.swap_range_alloc(si, offset);
  return offset;
}

}  // namespace weir
