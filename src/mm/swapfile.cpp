// src/mm/swapfile.cpp: swap maps, clusters, areas by priority. See swapfile.hpp
#include "mm/swapfile.hpp"

#include <algorithm>
#include <iterator>

namespace weir {

SwapFiles::SwapFiles(PageAllocator& pages, Slab& slab, Vmalloc& vmalloc, VmStat& vmstat, unsigned cpus,
                     KernelEra kernel)
    : pages_(pages), slab_(slab), vmalloc_(vmalloc), vmstat_(vmstat), cpus_(cpus == 0 ? 1 : cpus), frontswap_(*this) {
  switch (kernel) {
    case KernelEra::linux_2_6_20: era_ = swapfiles_2_6_20(era_place_, *this); break;
    case KernelEra::linux_3: era_ = swapfiles_3(era_place_, *this); break;
    case KernelEra::linux_4_14: era_ = swapfiles_4_14(era_place_, *this); break;
  }
  traits_ = era_->traits();
}

// ---- Large arrays ---------------------------------------------------------------------------------------------------

template <class T>
Result<void> SwapFiles::make(PagedArray<T>& array, uint64_t n) {
  const uint64_t pages = (n + PagedArray<T>::PER_PAGE - 1) / PagedArray<T>::PER_PAGE;
  WEIR_BUG_ON(pages == 0);
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

// ---- Areas ----------------------------------------------------------------------------------------------------------

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
    fresh->discard_work.files = this;
    fresh->discard_work.area = fresh;
    SwapInfo* none = nullptr;
    if (!swap_info_[type].compare_exchange_strong(none, fresh, std::memory_order_acq_rel)) slab_.kfree(place);
  }
}

Result<void> SwapFiles::setup_swap_map(SwapInfo& si, uint64_t maxpages, const uint32_t* badpages,
                                       unsigned nr_badpages) {
  if (maxpages < 2) return Errno::inval;
  const bool solid_state = (si.flags.load(std::memory_order_relaxed) & SWP_SOLIDSTATE) != 0;
  const uint64_t clusters = (maxpages + SWAPFILE_CLUSTER - 1) / SWAPFILE_CLUSTER;
  const bool wide = traits_.cache_is_a_user;
  Result<void> made = wide ? make(si.swap_map16, maxpages) : make(si.swap_map, maxpages);
  if (made && !wide) {
    const uint64_t map_pages = (maxpages + PagedArray<uint8_t>::PER_PAGE - 1) / PagedArray<uint8_t>::PER_PAGE;
    si.continuations = static_cast<SwapContinuation**>(slab_.kzalloc(map_pages * sizeof(void*), GFP_KERNEL));
    if (si.continuations == nullptr) made = Errno::nomem;
  }
  if (made && frontswap_.enabled()) made = make(si.frontswap_map, (maxpages + 63) / 64);
  if (made && solid_state) {
    made = [&]() -> Result<void> {
      WEIR_TRY_VOID(make(si.cluster_info, clusters));
      si.percpu_cluster = static_cast<PerCpuCluster*>(slab_.kzalloc(cpus_ * sizeof(PerCpuCluster), GFP_KERNEL));
      if (si.percpu_cluster == nullptr) return Errno::nomem;
      return {};
    }();
  }
  if (made) {
    set_map(si, 0, bad_value());
    uint64_t bad = 1;
    for (unsigned i = 0; i < nr_badpages; ++i) {
      bad += map_at(si, badpages[i]) != bad_value() ? 1 : 0;
      set_map(si, badpages[i], bad_value());
    }
    si.pages = maxpages - bad;
    if (si.pages == 0) made = Errno::inval;
  }
  if (!made) {
    free(si.swap_map);
    free(si.swap_map16);
    free(si.cluster_info);
    free(si.frontswap_map);
    slab_.kfree(si.continuations);
    si.continuations = nullptr;
    slab_.kfree(si.percpu_cluster);
    si.percpu_cluster = nullptr;
    return made.error();
  }
  si.max = maxpages;
  si.inuse_pages = 0;
  WEIR_STATE(swap_lowest_bit, si.type, 0, 1);
  si.lowest_bit = 1;
  WEIR_STATE(swap_highest_bit, si.type, 0, maxpages - 1);
  si.highest_bit = maxpages - 1;
  si.cluster_next = 1;
  si.copy_hand = 1;
  si.cluster_nr = 0;
  si.free_clusters_head = si.free_clusters_tail = 0;
  si.discard_clusters_head = si.discard_clusters_tail = 0;
  si.frontswap_pages.store(0, std::memory_order_relaxed);
  if (solid_state) {
    ScopedLock guard(si.lock);
    for (uint64_t c = 0; c < clusters; ++c) {
      SwapCluster& cluster = si.cluster_info[c];
      cluster = {};
      for (uint64_t slot = c * SWAPFILE_CLUSTER; slot < (c + 1) * SWAPFILE_CLUSTER; ++slot)
        cluster.count += slot >= maxpages || map_at(si, slot) != 0 ? 1 : 0;
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
  PagedArray<uint16_t> map16;
  PagedArray<SwapCluster> clusters;
  PagedArray<std::atomic<uint64_t>> frontswap_map;
  SwapContinuation** continuations = nullptr;
  uint64_t nr_chains = 0;
  {
    // Who still holds a stale entry of this area finds max = 0 under the lock.
    ScopedLock guard(si.lock);
    std::swap(map, si.swap_map);
    std::swap(map16, si.swap_map16);
    std::swap(clusters, si.cluster_info);
    std::swap(frontswap_map, si.frontswap_map);
    std::swap(continuations, si.continuations);
    nr_chains = (si.max + PagedArray<uint8_t>::PER_PAGE - 1) / PagedArray<uint8_t>::PER_PAGE;
    si.max = si.pages = si.lowest_bit = si.highest_bit = 0;
  }
  free(map);
  free(map16);
  free(clusters);
  free(frontswap_map);
  free_swap_count_continuations(continuations, nr_chains);
  slab_.kfree(si.percpu_cluster);
  si.percpu_cluster = nullptr;
  si.bdev = nullptr;
  ScopedLock guard(swap_lock_);
  si.flags.store(0, std::memory_order_release);
}

// ---- Discard --------------------------------------------------------------------------------------------------------

void SwapFiles::discard_slots(SwapInfo& si, uint64_t first, uint64_t n) {
  WEIR_STATE(swap_discard, si.type, first, n);
  struct Wait {
    Bio bio;
    Completion done;
  } wait;
  wait.bio.op = BioOp::discard;
  wait.bio.sector = first * SECTORS_PER_PAGE;
  wait.bio.pages = static_cast<uint32_t>(n);
  wait.bio.owner = &wait;
  wait.bio.end_io = [](Bio& bio) { static_cast<Wait*>(bio.owner)->done.complete(); };
  si.bdev->submit_bio(wait.bio);
  wait.done.wait();
}

Result<void> SwapFiles::start_discard(World& world) {
  if (discarding_) return {};
  WEIR_TRY_VOID(discard_queue_.start(world, "kdiscardd"));
  discarding_ = true;
  return {};
}

void SwapFiles::stop_discard() {
  if (discarding_) discard_queue_.stop();
  discarding_ = false;
}

void SwapFiles::flush_discard(SwapInfo& si) {
  if (discarding_) discard_queue_.flush_work(si.discard_work.work);
  ScopedLock guard(si.lock);
  if (si.cluster_info) swap_do_scheduled_discard(si);
}

// ---- Maps of frontswap ----------------------------------------------------------------------------------------------

bool SwapFiles::frontswap_test(unsigned type, uint64_t offset) const {
  const SwapInfo* si = swap_info(type);
  if (si == nullptr || !si->frontswap_map || offset >= si->max) return false;
  return (si->frontswap_map[offset / 64].load(std::memory_order_acquire) >> (offset % 64) & 1) != 0;
}

uint64_t SwapFiles::frontswap_set(unsigned type, uint64_t offset) {
  SwapInfo& si = *swap_info(type);
  si.frontswap_map[offset / 64].fetch_or(uint64_t{1} << (offset % 64), std::memory_order_acq_rel);
  return si.frontswap_pages.fetch_add(1, std::memory_order_relaxed) + 1;
}

uint64_t SwapFiles::frontswap_clear(unsigned type, uint64_t offset) {
  SwapInfo& si = *swap_info(type);
  si.frontswap_map[offset / 64].fetch_and(~(uint64_t{1} << (offset % 64)), std::memory_order_acq_rel);
  return si.frontswap_pages.fetch_sub(1, std::memory_order_relaxed) - 1;
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

Mm* SwapFiles::mmlist_next(const Mm* after) {
  ScopedLock guard(mmlist_lock_);
  auto it = after == nullptr ? mmlist_.begin() : std::next(MmList::s_iterator_to(*const_cast<Mm*>(after)));
  for (; it != mmlist_.end(); ++it) {
    // mmget_not_zero: what is going takes its entries along.
    int32_t users = it->mm_users.load(std::memory_order_acquire);
    while (users > 0 && !it->mm_users.compare_exchange_weak(users, users + 1, std::memory_order_acq_rel)) {
    }
    if (users > 0) return &*it;
  }
  return nullptr;
}

// ---- Survey ---------------------------------------------------------------------------------------------------------

void SwapFiles::survey(void (*fail)(void*, const char* id, const char* text), void* arg) {
  int64_t free_slots = 0, all_slots = 0;
  for (const auto& slot : swap_info_) {
    SwapInfo* si = slot.load(std::memory_order_acquire);
    if (si == nullptr || (si->flags.load(std::memory_order_acquire) & SWP_WRITEOK) == 0) continue;
    ScopedLock guard(si->lock);
    uint64_t used = 0, good = 0;
    uint64_t in_cluster = 0, free_clusters = 0, stored = 0;
    for (uint64_t offset = 0; offset < si->max; ++offset) {
      const uint16_t map = map_at(*si, offset);
      const bool bad = map == bad_value();
      good += bad ? 0 : 1;
      used += bad || map == 0 ? 0 : 1;
      if (si->frontswap_map && frontswap_test(si->type, offset)) {
        ++stored;
        if (bad || map == 0) fail(arg, "frontswap", "the store keeps a page of a free slot");
      }
      if (map == 0 && (offset < si->lowest_bit || offset > si->highest_bit))
        fail(arg, "swap_bits", "a free slot lies outside lowest_bit and highest_bit");
      if (si->swap_map && !continued_right(*si, offset))
        fail(arg, "swap_map", "COUNT_CONTINUED where nothing continues, or the reverse");
      if (!si->cluster_info) continue;
      in_cluster += map != 0 ? 1 : 0;
      const bool last = offset + 1 == si->max || (offset + 1) % SWAPFILE_CLUSTER == 0;
      if (!last) continue;
      if (offset + 1 == si->max && (offset + 1) % SWAPFILE_CLUSTER != 0)
        in_cluster += SWAPFILE_CLUSTER - (offset + 1) % SWAPFILE_CLUSTER;
      const SwapCluster& cluster = si->cluster_info[offset / SWAPFILE_CLUSTER];
      if (cluster.count != in_cluster) fail(arg, "swap_cluster", "a cluster's count is not its used slots");
      free_clusters += in_cluster == 0 && cluster.owner == SwapCluster::Owner::none ? 1 : 0;
      if (in_cluster != 0 && cluster.owner == SwapCluster::Owner::discard)
        fail(arg, "swap_discard", "a cluster that waits to be discarded has used slots");
      in_cluster = 0;
    }
    if (si->cluster_info) {
      for (uint32_t c = si->free_clusters_head; c != 0; c = si->cluster_info[c].next) {
        if (free_clusters-- == 0) break;
        if (si->cluster_info[c].count != 0) fail(arg, "swap_cluster", "a cluster on the free list has used slots");
      }
      if (free_clusters != 0) fail(arg, "swap_cluster", "the free list is not the free clusters");
    }
    if (stored != si->frontswap_pages.load(std::memory_order_relaxed))
      fail(arg, "frontswap", "frontswap_pages is not the bits of frontswap_map");
    if (used != si->inuse_pages) fail(arg, "swap_inuse", "inuse_pages is not the used slots of the map");
    if (good != si->pages) fail(arg, "swap_pages", "pages is not the good slots of the map");
    free_slots += static_cast<int64_t>(si->pages - si->inuse_pages);
    all_slots += static_cast<int64_t>(si->pages);
  }
  if (free_slots != nr_swap_pages()) fail(arg, "nr_swap_pages", "nr_swap_pages is not the free slots of the areas");
  if (all_slots != total_swap_pages()) fail(arg, "total_swap_pages", "total_swap_pages is not the areas' pages");
}

}  // namespace weir
