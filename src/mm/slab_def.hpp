// src/mm/slab_def.hpp
//
// A cache of equal objects, as data.
//
//   KmemCache ── cpu_cache[cpu]: up to `limit` free objects, last in first out
//             └─ slabs_full, slabs_partial, slabs_free: slabs by how many of their objects are handed out
//
//   a slab, 2^gfporder pages:   | colour | object 0 | object 1 | … | object num-1 | rest | index array |
//
// A slab has no descriptor of its own; what must be known of it is in its first Page:
//   mapping   the cache (on every page of the slab, so that kfree finds it from any object)
//   private_  objects handed out (low half), bytes of colour before object 0 (high half)
//   index     num <= 16: which objects are free, four bits each
// The order of free objects is an index array: entries [handed out, num) are the free ones. Up to 16 of them fit into
// Page::index; more lie at the slab's end, 2 bytes each. So a large object is never in the way of its slab's own data,
// and nothing is kept off-slab.
//
// Linux: include/linux/slab_def.h, mm/slab.h; 4.14.
#pragma once

#include "kernel/locks.hpp"
#include "mm/mmzone.hpp"

namespace weir {

/// Free objects at hand, for one CPU. Lies in a kmalloc object, `entry` right behind it.
struct alignas(void*) ArrayCache {
  SpinLock lock{LockRank::slab};
  // Guarded by lock. Invariant: avail <= limit; entry[0, avail) are free objects, counted as handed out by their slabs.
  uint32_t avail = 0;
  uint32_t limit = 1;       // immutable
  uint32_t batchcount = 1;  // immutable; <= limit
  bool touched = false;     ///< used since cache_reap looked last

  [[nodiscard]] void** entry() { return reinterpret_cast<void**>(this + 1); }
};

struct KmemCache {
  // Immutable once the cache is made.
  const char* name = nullptr;
  uint32_t object_size = 0;  ///< what was asked for
  uint32_t size = 0;         ///< what one object takes, red zones and alignment included
  uint32_t align = 8;
  uint32_t left = 0;     ///< bytes of red zone before the object
  uint32_t num = 0;      ///< objects a slab
  uint32_t colours = 0;  ///< different places for object 0, colour_off apart
  uint32_t colour_off = 64;
  uint8_t gfporder = 0;
  bool reclaimable = false;
  bool debug = false;
  uint32_t limit = 1, batchcount = 1;
  int64_t free_limit = 0;  ///< free objects above it take their empty slabs with them
  ArrayCache* cpu_cache[MAX_CPUS] = {};
  // A cache is used before arrays can be had: then all CPUs share this one of a single object.
  struct {
    ArrayCache array;
    void* entry = nullptr;
  } boot;
  static_assert(sizeof boot == sizeof(ArrayCache) + sizeof(void*));

  SpinLock list_lock{LockRank::slab};
  // Guarded by list_lock. Invariants: free_objects = num × num_slabs - Σ handed out; num_slabs = Σ lengths of the
  // lists; on slabs_full all are handed out, on slabs_free none.
  PageList slabs_full, slabs_partial, slabs_free;
  uint64_t num_slabs = 0;
  uint64_t free_slabs = 0;
  uint64_t free_objects = 0;
  uint32_t colour_next = 0;
  bool free_touched = false;  ///< an empty slab was taken since cache_reap looked last

  ListHook caches;  ///< under slab_mutex
};
[[nodiscard]] inline uint64_t flow_value_of(const KmemCache& cache) { return cache.object_size; }

// A slab's first page: objects handed out, bytes of colour.
[[nodiscard]] inline uint32_t slab_active(const Page& slab) { return static_cast<uint32_t>(slab.private_); }
[[nodiscard]] inline uint32_t slab_colour(const Page& slab) { return static_cast<uint32_t>(slab.private_ >> 32); }
inline void set_slab_active(Page& slab, uint32_t n) { slab.private_ = (slab.private_ & ~uint64_t{0xffffffff}) | n; }

using KmemCacheList =
    boost::intrusive::list<KmemCache, boost::intrusive::member_hook<KmemCache, ListHook, &KmemCache::caches>,
                           boost::intrusive::constant_time_size<false>>;

}  // namespace weir
