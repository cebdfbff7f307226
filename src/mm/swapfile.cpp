// src/mm/swapfile.cpp: swap maps, clusters, areas by priority. See swapfile.hpp
#include "mm/swapfile.hpp"

#include <algorithm>

namespace weir {

SwapFiles::SwapFiles(PageAllocator& pages, Slab& slab, Vmalloc& vmalloc, VmStat&, unsigned cpus)
    : pages_(pages), slab_(slab), vmalloc_(vmalloc), cpus_(cpus == 0 ? 1 : cpus) {}

// --------------------------------------------------------------------------------------------------------- large
// arrays

template <class T>
Result<void> SwapFiles::make(PagedArray<T>& array, uint64_t n) {
  const uint64_t pages = (n + PagedArray<T>::PER_PAGE - 1) / PagedArray<T>::PER_PAGE;
  auto** table = static_cast<T**>(slab_.kmalloc(pages * sizeof(T*), GFP_KERNEL));
  if (table == nullptr) return Errno::nomem;
  Result<VirtAddr> area = vmalloc_.vzalloc(Bytes(pages << PAGE_SHIFT));
  if (!area) {
    slab_.kfree(table);
    return area.error();
  }
  for (uint64_t i = 0; i < pages; ++i) {
    Page* page = vmalloc_.vmalloc_to_page(*area + (i << PAGE_SHIFT));
    WEIR_BUG_ON(page == nullptr);
    table[i] = reinterpret_cast<T*>(pages_.mem().page_address(*page));
  }
  array.area_ = *area;
  array.pages_ = table;
  return {};
}

template <class T>
void SwapFiles::free(PagedArray<T>& array) {
  if (!array) return;
  vmalloc_.vfree(array.area_);
  slab_.kfree(array.pages_);
  array = {};
}

// ----------------------------------------------------------------------------------------------------------------
// areas

SwapInfo* SwapFiles::swap_info(unsigned type) const {
  SwapInfo* si = type < MAX_SWAPFILES ? swap_info_[type].load(std::memory_order_acquire) : nullptr;
  return si != nullptr && (si->flags.load(std::memory_order_acquire) & SWP_USED) != 0 ? si : nullptr;
}

SwapInfo* SwapFiles::lookup(SwpEntry entry, const char* who) {
  SwapInfo* si = entry ? swap_info(swp_type(entry)) : nullptr;
  const char* what = nullptr;
  if (si == nullptr)
    what = "Bad swap file entry ";
  else if (swp_offset(entry) >= si->max)
    what = "Bad swap offset entry ";
  else
    return si;
  (LogLine() << who << ": " << what).hex(entry.val);
  return nullptr;
}

SwapInfo* SwapFiles::swap_info_get(SwpEntry entry) {
  SwapInfo* si = lookup(entry, "swap_info_get");
  if (si == nullptr) return nullptr;
  if (swap_map_value(entry) != 0) return si;
  (LogLine() << "swap_info_get: Unused swap offset entry ").hex(entry.val);
  return nullptr;
}

Result<SwapInfo*> SwapFiles::alloc_swap_info() {
  WEIR_FLOW();
  for (;;) {
    unsigned type = 0;
    {
      ScopedLock guard(swap_lock_);
      for (; type < MAX_SWAPFILES; ++type) {
        SwapInfo* si = swap_info_[type].load(std::memory_order_relaxed);
        if (si == nullptr) break;
        if (si->flags.load(std::memory_order_relaxed) != 0) continue;
        si->flags.store(SWP_USED, std::memory_order_release);
        si->max = 0;
        si->write_errors.store(0, std::memory_order_relaxed);
        si->read_errors.store(0, std::memory_order_relaxed);
        return si;
      }
    }
    if (type == MAX_SWAPFILES) return Errno::perm;
    void* place = slab_.kzalloc(sizeof(SwapInfo), GFP_KERNEL);
    if (place == nullptr) return Errno::nomem;
    auto* fresh = ::new (place) SwapInfo();
    fresh->type = type;
    SwapInfo* none = nullptr;
    if (!swap_info_[type].compare_exchange_strong(none, fresh, std::memory_order_acq_rel)) slab_.kfree(place);
  }
}

Result<void> SwapFiles::setup_swap_map(SwapInfo& si, uint64_t maxpages, const uint32_t* badpages,
                                       unsigned nr_badpages) {
  if (maxpages < 2) return Errno::inval;
  const bool solid_state = (si.flags.load(std::memory_order_relaxed) & SWP_SOLIDSTATE) != 0;
  const uint64_t clusters = (maxpages + SWAPFILE_CLUSTER - 1) / SWAPFILE_CLUSTER;
  Result<void> made = make(si.swap_map, maxpages);
  if (made && solid_state) {
    made = [&]() -> Result<void> {
      WEIR_TRY_VOID(make(si.cluster_info, clusters));
      si.percpu_cluster = static_cast<PerCpuCluster*>(slab_.kzalloc(cpus_ * sizeof(PerCpuCluster), GFP_KERNEL));
      if (si.percpu_cluster == nullptr) return Errno::nomem;
      return {};
    }();
  }
  if (made) {
    si.swap_map[0] = SWAP_MAP_BAD;
    uint64_t bad = 1;
    for (unsigned i = 0; i < nr_badpages; ++i) {
      bad += si.swap_map[badpages[i]] != SWAP_MAP_BAD ? 1 : 0;
      si.swap_map[badpages[i]] = SWAP_MAP_BAD;
    }
    si.pages = maxpages - bad;
    if (si.pages == 0) made = Errno::inval;
  }
  if (!made) {
    free(si.swap_map);
    free(si.cluster_info);
    slab_.kfree(si.percpu_cluster);
    si.percpu_cluster = nullptr;
    return made.error();
  }
  si.max = maxpages;
  si.inuse_pages = 0;
  si.lowest_bit = 1;
  si.highest_bit = maxpages - 1;
  si.cluster_next = 1;
  si.cluster_nr = 0;
  si.free_clusters_head = si.free_clusters_tail = 0;
  if (solid_state) {
    ScopedLock guard(si.lock);
    for (uint64_t c = 0; c < clusters; ++c) {
      SwapCluster& cluster = si.cluster_info[c];
      cluster = {};
      for (uint64_t slot = c * SWAPFILE_CLUSTER; slot < (c + 1) * SWAPFILE_CLUSTER; ++slot)
        cluster.count += slot >= maxpages || si.swap_map[slot] != 0 ? 1 : 0;
      if (cluster.count == 0) push_free_cluster(si, static_cast<uint32_t>(c));
    }
  }
  return {};
}

void SwapFiles::insert_by_priority(SwapInfo& si) {
  unsigned at = 0;
  while (at < nr_active_ && swap_info_[active_[at]].load(std::memory_order_relaxed)->prio >= si.prio) ++at;
  std::copy_backward(active_ + at, active_ + nr_active_, active_ + nr_active_ + 1);
  active_[at] = static_cast<uint8_t>(si.type);
  ++nr_active_;
}

// Used now, so it goes behind the others of its priority.
void SwapFiles::requeue(unsigned type) {
  unsigned at = 0;
  while (at < nr_active_ && active_[at] != type) ++at;
  if (at == nr_active_) return;
  std::copy(active_ + at + 1, active_ + nr_active_, active_ + at);
  --nr_active_;
  insert_by_priority(*swap_info_[type].load(std::memory_order_relaxed));
}

void SwapFiles::__enable_swap_info(SwapInfo& si) {
  insert_by_priority(si);
  ScopedLock area(si.lock);
  si.flags.fetch_or(SWP_WRITEOK, std::memory_order_release);
  nr_swap_pages_.fetch_add(static_cast<int64_t>(si.pages), std::memory_order_relaxed);
  total_swap_pages_.fetch_add(static_cast<int64_t>(si.pages), std::memory_order_relaxed);
  WEIR_STATE(swap_area, si.type, 0, si.pages);
}

void SwapFiles::enable_swap_info(SwapInfo& si, int prio) {
  ScopedLock guard(swap_lock_);
  si.prio = static_cast<int16_t>(prio >= 0 ? prio : --least_priority_);
  __enable_swap_info(si);
}

void SwapFiles::reinsert_swap_info(SwapInfo& si, int prio) {
  ScopedLock guard(swap_lock_);
  si.prio = static_cast<int16_t>(prio);
  if (prio < 0) {
    for (unsigned i = 0; i < nr_active_; ++i) {
      SwapInfo& other = *swap_info_[active_[i]].load(std::memory_order_relaxed);
      if (other.prio < 0 && other.prio <= si.prio) --other.prio;
    }
    --least_priority_;
  }
  __enable_swap_info(si);
}

void SwapFiles::disable_swap_info(SwapInfo& si) {
  ScopedLock guard(swap_lock_);
  const unsigned at = static_cast<unsigned>(std::find(active_, active_ + nr_active_, si.type) - active_);
  if (at == nr_active_) return;
  std::copy(active_ + at + 1, active_ + nr_active_, active_ + at);
  --nr_active_;
  if (si.prio < 0) {
    for (unsigned i = 0; i < nr_active_; ++i) {
      SwapInfo& other = *swap_info_[active_[i]].load(std::memory_order_relaxed);
      if (other.prio < si.prio) ++other.prio;
    }
    ++least_priority_;
  }
  ScopedLock area(si.lock);
  si.flags.fetch_and(~static_cast<uint32_t>(SWP_WRITEOK), std::memory_order_release);
  // Slots still in use come back to nr_swap_pages one by one as they are freed; together that is all of them.
  nr_swap_pages_.fetch_sub(static_cast<int64_t>(si.pages), std::memory_order_relaxed);
  total_swap_pages_.fetch_sub(static_cast<int64_t>(si.pages), std::memory_order_relaxed);
  WEIR_STATE(swap_area, si.type, si.pages, 0);
}

void SwapFiles::release_swap_info(SwapInfo& si) {
  WEIR_BUG_ON(si.inuse_pages != 0);
  PagedArray<uint8_t> map;
  PagedArray<SwapCluster> clusters;
  {
    // Who still holds a stale entry of this area finds max = 0 under the lock.
    ScopedLock guard(si.lock);
    std::swap(map, si.swap_map);
    std::swap(clusters, si.cluster_info);
    si.max = si.pages = si.lowest_bit = si.highest_bit = 0;
  }
  free(map);
  free(clusters);
  slab_.kfree(si.percpu_cluster);
  si.percpu_cluster = nullptr;
  si.bdev = nullptr;
  ScopedLock guard(swap_lock_);
  si.flags.store(0, std::memory_order_release);
}

bool SwapFiles::swap_has_room() const {
  if (nr_swap_pages() <= 0) return false;
  for (const auto& slot : swap_info_) {
    const SwapInfo* si = slot.load(std::memory_order_acquire);
    if (si == nullptr) break;
    if ((si->flags.load(std::memory_order_acquire) & SWP_WRITEOK) != 0 && si->bdev->has_room()) return true;
  }
  return false;
}

bool SwapFiles::has_room(SwpEntry entry) const {
  const SwapInfo* si = swap_info(swp_type(entry));
  return si != nullptr && si->bdev != nullptr && si->bdev->has_room();
}

void SwapFiles::mmlist_add(Mm& mm) {
  if (mm.on_mmlist.load(std::memory_order_acquire)) return;
  ScopedLock guard(mmlist_lock_);
  if (mm.on_mmlist.exchange(true, std::memory_order_acq_rel)) return;
  mmlist_.push_back(mm);
}

void SwapFiles::mmlist_remove(Mm& mm) {
  if (!mm.on_mmlist.load(std::memory_order_acquire)) return;
  ScopedLock guard(mmlist_lock_);
  if (!mm.on_mmlist.exchange(false, std::memory_order_acq_rel)) return;
  mmlist_.erase(MmList::s_iterator_to(mm));
}

// ------------------------------------------------------------------------------------------------------- taking slots

unsigned SwapFiles::get_swap_pages(unsigned n, SwpEntry* entries) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  WEIR_FLOW(n);
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
    // From list to area hand over hand: an area that swapoff has taken off is not used any more.
    swap_lock_.lock();
    si.lock.lock();
    const bool usable =
        (si.flags.load(std::memory_order_relaxed) & SWP_WRITEOK) != 0 && si.highest_bit != 0 && si.bdev->has_room();
    if (usable) requeue(si.type);
    swap_lock_.unlock();
    const unsigned got = usable ? scan_swap_map_slots(si, n, entries) : 0;
    si.lock.unlock();
    if (got > 0) return got;
  }
  return 0;
}

unsigned SwapFiles::scan_swap_map_slots(SwapInfo& si, unsigned n, SwpEntry* entries) {
  WEIR_FLOW(si.type, n);
  const bool solid_state = static_cast<bool>(si.cluster_info);
  unsigned got = 0;
  while (got < n) {
    uint64_t offset = solid_state ? scan_swap_map_try_ssd_cluster(si) : scan_swap_map_hand(si);
    if (offset == 0 && solid_state) {
      // Without a free cluster one slot is as good as another. When some are at hand, only the next is worth a look.
      if (got == 0)
        offset = scan_swap_map(si);
      else if (si.cluster_next <= si.highest_bit && si.swap_map[si.cluster_next] == 0)
        offset = si.cluster_next;
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
      if (mine.index == 0) return 0;
      mine.next = uint64_t{mine.index} * SWAPFILE_CLUSTER;
    }
    const uint64_t end = (uint64_t{mine.index} + 1) * SWAPFILE_CLUSTER;
    // Others may have used its slots when they found no cluster of their own.
    while (mine.next < end && si.swap_map[mine.next] != 0) ++mine.next;
    if (mine.next < end) return mine.next++;
    SwapCluster& used_up = si.cluster_info[mine.index];
    used_up.owner = SwapCluster::Owner::none;
    if (used_up.count == 0) push_free_cluster(si, mine.index);
    mine.index = 0;
  }
}

// The slot under the hand, or the next free one above it. Every 256 slots the hand looks for a free stretch from below,
// so that pages that leave together lie together.
uint64_t SwapFiles::scan_swap_map_hand(SwapInfo& si) {
  if (si.cluster_nr > 0) {
    --si.cluster_nr;
    return scan_swap_map(si);
  }
  si.cluster_nr = SWAPFILE_CLUSTER - 1;
  if (si.pages - si.inuse_pages >= SWAPFILE_CLUSTER) {
    uint64_t latency = LATENCY_LIMIT;
    uint64_t run = 0;
    for (uint64_t offset = si.lowest_bit; offset <= si.highest_bit; ++offset) {
      run = si.swap_map[offset] == 0 ? run + 1 : 0;
      if (run == SWAPFILE_CLUSTER) {
        si.cluster_next = offset + 1 - SWAPFILE_CLUSTER;
        break;
      }
      // What was free may not be when the lock is back: at worst the stretch has a gap.
      if (!breathe(si, latency)) return 0;
    }
  }
  return scan_swap_map(si);
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

// The first free slot from cluster_next up, then from lowest_bit; 0 when there is none. While swap is short, slots that
// hold only the cache's copy are freed on the way.
uint64_t SwapFiles::scan_swap_map(SwapInfo& si) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  uint64_t latency = LATENCY_LIMIT;
  const uint64_t start = si.cluster_next;
  for (int lap = 0; lap < 2; ++lap) {
    uint64_t offset = lap == 0 ? std::max(start, si.lowest_bit) : si.lowest_bit;
    while (offset <= si.highest_bit && (lap == 0 || offset < start)) {
      const uint8_t map = si.swap_map[offset];
      if (map == 0) return offset;
      const bool short_of_swap = vm_swap_full();
      if (map == SWAP_HAS_CACHE && short_of_swap && reclaim_ != nullptr) {
        si.lock.unlock();
        const bool freed = reclaim_(reclaim_arg_, swp_entry(si.type, offset));
        si.lock.lock();
        if ((si.flags.load(std::memory_order_relaxed) & SWP_WRITEOK) == 0) return 0;
        if (freed && offset <= si.highest_bit && si.swap_map[offset] == 0) return offset;
      }
      ++offset;
      if (si.cluster_info && !short_of_swap && offset % SWAPFILE_CLUSTER == 0) {
        while (offset <= si.highest_bit && si.cluster_info[offset / SWAPFILE_CLUSTER].count == SWAPFILE_CLUSTER)
          offset += SWAPFILE_CLUSTER;
      }
      if (!breathe(si, latency)) return 0;
    }
  }
  return 0;
}

void SwapFiles::swap_range_alloc(SwapInfo& si, uint64_t offset) {
  si.swap_map[offset] = SWAP_HAS_CACHE;
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
  WEIR_STATE(swap_map, swp_entry(si.type, offset), 0, SWAP_HAS_CACHE);
}

void SwapFiles::swap_range_free(SwapInfo& si, uint64_t offset) {
  si.lowest_bit = std::min(si.lowest_bit, offset);
  si.highest_bit = std::max(si.highest_bit, offset);
  --si.inuse_pages;
  if (si.cluster_info) {
    SwapCluster& cluster = si.cluster_info[offset / SWAPFILE_CLUSTER];
    if (--cluster.count == 0 && cluster.owner == SwapCluster::Owner::none)
      push_free_cluster(si, static_cast<uint32_t>(offset / SWAPFILE_CLUSTER));
  }
  nr_swap_pages_.fetch_add(1, std::memory_order_relaxed);
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

// ------------------------------------------------------------------------------------------------------- users of
// slots

Result<void> SwapFiles::__swap_duplicate(SwpEntry entry, uint8_t usage, const char* who) {
  SwapInfo* si = lookup(entry, who);
  if (si == nullptr) return Errno::inval;
  ScopedLock guard(si->lock);
  if (swp_offset(entry) >= si->max) return Errno::inval;
  uint8_t& map = si->swap_map[swp_offset(entry)];
  const uint8_t old = map;
  const uint8_t users = old & static_cast<uint8_t>(~SWAP_HAS_CACHE);
  if (old == SWAP_MAP_BAD) return Errno::inval;
  if (usage == SWAP_HAS_CACHE) {
    if ((old & SWAP_HAS_CACHE) != 0) return Errno::exist;
    if (users == 0) return Errno::noent;
    map = old | SWAP_HAS_CACHE;
  } else {
    if (old == 0) return Errno::noent;
    if (users == SWAP_MAP_MAX) return Errno::nomem;
    ++map;
  }
  WEIR_STATE(swap_map, entry, old, map);
  return {};
}

Result<void> SwapFiles::swap_duplicate(SwpEntry entry) {
  WEIR_FLOW(entry);
  return __swap_duplicate(entry, 1, "swap_duplicate");
}

Result<void> SwapFiles::swapcache_prepare(SwpEntry entry) {
  WEIR_FLOW(entry);
  return __swap_duplicate(entry, SWAP_HAS_CACHE, "swapcache_prepare");
}

// One user less. The last one leaves SWAP_HAS_CACHE behind, which release() gives back: meanwhile nobody else can take
// the slot.
uint8_t SwapFiles::__swap_entry_free(SwapInfo& si, SwpEntry entry, uint8_t usage) {
  uint8_t left = 0;
  {
    ScopedLock guard(si.lock);
    if (swp_offset(entry) >= si.max) return 0;
    uint8_t& map = si.swap_map[swp_offset(entry)];
    const uint8_t old = map;
    const uint8_t users = old & static_cast<uint8_t>(~SWAP_HAS_CACHE);
    const bool held = usage == SWAP_HAS_CACHE ? (old & SWAP_HAS_CACHE) != 0 : users != 0;
    if (old == SWAP_MAP_BAD || !held) {
      ((LogLine() << "swap_free: Unused swap offset entry ").hex(entry.val) << " map ").hex(old);
      return old;
    }
    left = old - usage;
    map = left != 0 ? left : SWAP_HAS_CACHE;
    WEIR_STATE(swap_map, entry, old, map);
    if (left == 0) si.bdev->slot_free_notify(swp_offset(entry));
  }
  if (left == 0) release(entry);
  return left;
}

void SwapFiles::release(SwpEntry entry) {
  if (release_ != nullptr)
    release_(release_arg_, entry);
  else
    swapcache_free_entries(&entry, 1);
}

uint8_t SwapFiles::swap_free(SwpEntry entry) {
  WEIR_FLOW(entry);
  SwapInfo* si = lookup(entry, "swap_free");
  return si != nullptr ? __swap_entry_free(*si, entry, 1) : 0;
}

void SwapFiles::swapcache_free(SwpEntry entry) {
  WEIR_FLOW(entry);
  if (SwapInfo* si = lookup(entry, "swapcache_free")) __swap_entry_free(*si, entry, SWAP_HAS_CACHE);
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

uint8_t SwapFiles::swap_map_value(SwpEntry entry) {
  SwapInfo* si = entry ? swap_info(swp_type(entry)) : nullptr;
  if (si == nullptr) return 0;
  ScopedLock guard(si->lock);
  return swp_offset(entry) < si->max ? si->swap_map[swp_offset(entry)] : uint8_t{0};
}

int SwapFiles::swp_swapcount(SwpEntry entry) {
  const uint8_t map = swap_map_value(entry);
  return map == SWAP_MAP_BAD ? 0 : map & ~SWAP_HAS_CACHE;
}

uint64_t SwapFiles::find_next_cached(SwapInfo& si, uint64_t offset) {
  ScopedLock guard(si.lock);
  for (++offset; offset < si.max; ++offset)
    if (si.swap_map[offset] == SWAP_HAS_CACHE) return offset;
  return 0;
}

// ---------------------------------------------------------------------------------------------------------------
// survey

void SwapFiles::survey(void (*fail)(void*, const char* id, const char* text), void* arg) {
  int64_t free_slots = 0, all_slots = 0;
  for (const auto& slot : swap_info_) {
    SwapInfo* si = slot.load(std::memory_order_acquire);
    if (si == nullptr || (si->flags.load(std::memory_order_acquire) & SWP_WRITEOK) == 0) continue;
    ScopedLock guard(si->lock);
    uint64_t used = 0, good = 0;
    uint64_t in_cluster = 0, free_clusters = 0;
    for (uint64_t offset = 0; offset < si->max; ++offset) {
      const uint8_t map = si->swap_map[offset];
      const bool bad = map == SWAP_MAP_BAD;
      good += bad ? 0 : 1;
      used += bad || map == 0 ? 0 : 1;
      if (map == 0 && (offset < si->lowest_bit || offset > si->highest_bit))
        fail(arg, "swap_bits", "a free slot lies outside lowest_bit and highest_bit");
      if ((map & COUNT_CONTINUED) != 0) fail(arg, "swap_map", "a count is continued");
      if (!si->cluster_info) continue;
      in_cluster += map != 0 ? 1 : 0;
      const bool last = offset + 1 == si->max || (offset + 1) % SWAPFILE_CLUSTER == 0;
      if (!last) continue;
      if (offset + 1 == si->max && (offset + 1) % SWAPFILE_CLUSTER != 0)
        in_cluster += SWAPFILE_CLUSTER - (offset + 1) % SWAPFILE_CLUSTER;
      const SwapCluster& cluster = si->cluster_info[offset / SWAPFILE_CLUSTER];
      if (cluster.count != in_cluster) fail(arg, "swap_cluster", "a cluster's count is not its used slots");
      free_clusters += in_cluster == 0 && cluster.owner == SwapCluster::Owner::none ? 1 : 0;
      in_cluster = 0;
    }
    if (si->cluster_info) {
      for (uint32_t c = si->free_clusters_head; c != 0; c = si->cluster_info[c].next) {
        if (free_clusters-- == 0) break;
        if (si->cluster_info[c].count != 0) fail(arg, "swap_cluster", "a cluster on the free list has used slots");
      }
      if (free_clusters != 0) fail(arg, "swap_cluster", "the free list is not the free clusters");
    }
    if (used != si->inuse_pages) fail(arg, "swap_inuse", "inuse_pages is not the used slots of the map");
    if (good != si->pages) fail(arg, "swap_pages", "pages is not the good slots of the map");
    free_slots += static_cast<int64_t>(si->pages - si->inuse_pages);
    all_slots += static_cast<int64_t>(si->pages);
  }
  if (free_slots != nr_swap_pages()) fail(arg, "nr_swap_pages", "nr_swap_pages is not the free slots of the areas");
  if (all_slots != total_swap_pages()) fail(arg, "total_swap_pages", "total_swap_pages is not the areas' pages");
}

}  // namespace weir
