// src/mm/slab_debug.cpp: poison and red zones, what /proc/slabinfo shows, the survey; see slab.hpp
#include <cstring>

#include "mm/slab.hpp"

namespace weir {

// ---- Poison and red zones -------------------------------------------------------------------------------------------

/// The object leaves: nobody may have written to it since it was freed.
void Slab::debug_check_alloc(const KmemCache& cache, void* object) const {
  auto* bytes = static_cast<std::byte*>(object);
  uint64_t before, after;
  std::byte* const end = bytes + ((size_t{cache.object_size} + 7) & ~size_t{7});
  std::memcpy(&before, bytes - sizeof before, sizeof before);
  std::memcpy(&after, end, sizeof after);
  if (before != RED_INACTIVE || after != RED_INACTIVE)
    bug("slab: a free object's red zone was overwritten", __FILE__, __LINE__);
  for (uint32_t i = 0; i + 1 < cache.object_size; ++i)
    if (bytes[i] != std::byte{POISON_FREE}) bug("slab: use after free", __FILE__, __LINE__);
  if (bytes[cache.object_size - 1] != std::byte{POISON_END}) bug("slab: use after free", __FILE__, __LINE__);
  std::memcpy(bytes - sizeof RED_ACTIVE, &RED_ACTIVE, sizeof RED_ACTIVE);
  std::memcpy(end, &RED_ACTIVE, sizeof RED_ACTIVE);
  std::memset(bytes, POISON_INUSE, cache.object_size);
}

/// The object comes back: it was handed out, and its owner kept to it.
void Slab::debug_check_free(const KmemCache& cache, void* object) const {
  auto* bytes = static_cast<std::byte*>(object);
  std::byte* const end = bytes + ((size_t{cache.object_size} + 7) & ~size_t{7});
  uint64_t before, after;
  std::memcpy(&before, bytes - sizeof before, sizeof before);
  std::memcpy(&after, end, sizeof after);
  if (before == RED_INACTIVE && after == RED_INACTIVE) bug("slab: double free", __FILE__, __LINE__);
  if (before != RED_ACTIVE || after != RED_ACTIVE)
    bug("slab: an object was written beyond its end", __FILE__, __LINE__);
  debug_poison(cache, object);
}

void Slab::debug_poison(const KmemCache& cache, void* object) const {
  auto* bytes = static_cast<std::byte*>(object);
  std::memcpy(bytes - sizeof RED_INACTIVE, &RED_INACTIVE, sizeof RED_INACTIVE);
  std::memcpy(bytes + ((size_t{cache.object_size} + 7) & ~size_t{7}), &RED_INACTIVE, sizeof RED_INACTIVE);
  std::memset(bytes, POISON_FREE, cache.object_size - 1);
  bytes[cache.object_size - 1] = std::byte{POISON_END};
}

// ---- Slabinfo and survey --------------------------------------------------------------------------------------------

Slab::CacheInfo Slab::info(KmemCache& cache) const {
  CacheInfo info{};
  info.name = cache.name;
  info.objsize = cache.object_size;
  info.size = cache.size;
  info.objperslab = cache.num;
  info.pagesperslab = 1u << cache.gfporder;
  info.limit = cache.limit;
  info.batchcount = cache.batchcount;
  info.reclaimable = cache.reclaimable;
  for (unsigned cpu = 0; cpu < cpus_; ++cpu)
    if (ArrayCache* array = cache.cpu_cache[cpu]) {
      ScopedLock guard(array->lock);
      info.cached += array->avail;
    }
  ScopedLock list(cache.list_lock);
  info.num_slabs = cache.num_slabs;
  info.active_slabs = cache.num_slabs - cache.free_slabs;
  info.num_objs = cache.num_slabs * cache.num;
  info.active_objs = info.num_objs - cache.free_objects;
  return info;
}

void Slab::for_each_cache(void (*fn)(void*, const CacheInfo&), void* arg) {
  ScopedLock guard(slab_mutex_);
  for (KmemCache& cache : caches_) fn(arg, info(cache));
}

void Slab::survey(void (*fail)(void*, const char*, const char*), void* arg) {
  const auto expect = [&](bool good, const char* id, const char* text) {
    if (!good) fail(arg, id, text);
  };
  ScopedLock guard(slab_mutex_);
  int64_t reclaimable = 0, unreclaimable = 0;
  for (KmemCache& cache : caches_) {
    ScopedLock list(cache.list_lock);
    uint64_t slabs = 0, free_slabs = 0, free_objects = 0;
    const auto walk = [&](const PageList& which, uint32_t least, uint32_t most) {
      for (const Page& slab : which) {
        ++slabs;
        free_slabs += slab_active(slab) == 0 ? 1 : 0;
        free_objects += cache.num - slab_active(slab);
        expect(slab_active(slab) >= least && slab_active(slab) <= most, "slab-list",
               "a slab is on a list that its objects do not fit");
        uint64_t seen[4] = {};  // enough to notice a doubled index in most slabs
        for (uint32_t place = slab_active(slab); place < cache.num; ++place) {
          const uint32_t index = free_index(cache, slab, place);
          const bool fresh = index < cache.num && (index >= 256 || (seen[index / 64] >> (index % 64) & 1) == 0);
          expect(fresh, "slab-freelist", "a slab's list of free objects names one twice or one that is not there");
          if (index < 256) seen[index / 64] |= uint64_t{1} << (index % 64);
        }
        for (size_t i = 0; i < size_t{1} << cache.gfporder; ++i) {
          const Page& page = *(&slab + i);
          expect(page.test(PageFlag::slab) &&
                     page.mapping.load(std::memory_order_relaxed) == reinterpret_cast<uintptr_t>(&cache),
                 "slab-page", "a slab's page does not know its cache");
        }
      }
    };
    walk(cache.slabs_full, cache.num, cache.num);
    walk(cache.slabs_partial, 1, cache.num - 1);
    walk(cache.slabs_free, 0, 0);
    expect(slabs == cache.num_slabs && free_slabs == cache.free_slabs, "slab-count",
           "a cache's slabs are not those on its lists");
    expect(free_objects == cache.free_objects, "slab-free-objects",
           "a cache's free objects are not those of its slabs");
    (cache.reclaimable ? reclaimable : unreclaimable) += static_cast<int64_t>(slabs << cache.gfporder);
  }
  expect(reclaimable == vmstat_.node_page_state(NodeStat::nr_slab_reclaimable), "vmstat-slab-reclaimable",
         "nr_slab_reclaimable is not the sum over the caches");
  expect(unreclaimable == vmstat_.node_page_state(NodeStat::nr_slab_unreclaimable), "vmstat-slab-unreclaimable",
         "nr_slab_unreclaimable is not the sum over the caches");
}

}  // namespace weir
