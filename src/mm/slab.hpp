// src/mm/slab.hpp
//
// Object caches: kmalloc and kmem_cache_*.
//
//   kmalloc(size) --> class cache --> this CPU's array --empty--> partial slab --none--> free slab --none--> new slab
//   kfree(object) --> this CPU's array --full--> a batch back to its slabs --many free--> empty slabs to the allocator
//
// One node, so there is no array shared between CPUs and no array for objects of other nodes.
// Linux: mm/slab.c, mm/slab_common.c, 4.14.
#pragma once

#include "mm/page_alloc.hpp"
#include "mm/slab_def.hpp"

namespace weir {

inline constexpr size_t KMALLOC_MAX_SIZE = PAGE_SIZE << (MAX_ORDER - 1);
inline constexpr size_t KMALLOC_MIN_SIZE = 32;
/// kmalloc(0): an object without bytes. May be freed, must not be touched.
inline void* const ZERO_SIZE_PTR = reinterpret_cast<void*>(16);

/// What a debug cache writes into its objects, and around them.
enum : uint8_t {
  POISON_INUSE = 0x5a,  ///< handed out, not yet written by its owner
  POISON_FREE = 0x6b,
  POISON_END = 0xa5,  ///< last byte of a free object
};
inline constexpr uint64_t RED_INACTIVE = 0x09f911029d74e35bull, RED_ACTIVE = 0xd84156c5635688c0ull;

class Slab {
 public:
  Slab(PageAllocator& pages, VmStat& vmstat, unsigned cpus);
  /// kmalloc caches: 32, 64, 96, 128, 192, 256, … 4 MiB.
  void kmem_cache_init();

  enum class Reclaimable : uint8_t { no, yes };
  struct CacheOptions {
    uint32_t align = 8;  ///< a power of two, at most a page
    Reclaimable reclaimable = Reclaimable::no;
    /// Poison 0x6b/0x5a/0xa5 and red zones; checked at free and alloc. What they find is a bug.
    bool debug = false;
  };
  /// `name` must outlive the cache. Errors: ENOMEM, EINVAL (size 0 or above 4 MiB). May sleep.
  Result<KmemCache*> kmem_cache_create(const char* name, uint32_t size, CacheOptions options);
  /// Errors: EBUSY while objects live. May sleep.
  Result<void> kmem_cache_destroy(KmemCache& cache);
  /// Null when no memory. Content undefined unless __GFP_ZERO. Sleeps with __GFP_DIRECT_RECLAIM only.
  [[nodiscard]] void* kmem_cache_alloc(KmemCache& cache, gfp_t gfp);
  /// `object` is of this cache. Never sleeps.
  void kmem_cache_free(KmemCache& cache, void* object);

  /// Null when no memory or above 4 MiB. A block of a page or more is aligned to a page, smaller ones to 8 bytes.
  [[nodiscard]] void* kmalloc(size_t size, gfp_t gfp);
  [[nodiscard]] void* kzalloc(size_t size, gfp_t gfp) { return kmalloc(size, gfp | __GFP_ZERO); }
  /// Null is allowed.
  void kfree(void* object);
  /// What the class really gives for this object.
  [[nodiscard]] size_t ksize(const void* object) const;
  /// The class that serves this size; null above 4 MiB.
  [[nodiscard]] KmemCache* kmalloc_slab(size_t size) const;
  /// Gives empty slabs back. Returns pages.
  PageCount kmem_cache_shrink(KmemCache& cache);
  PageCount shrink_all();
  /// The periodic pass of one CPU: arrays that nobody touched since last time lose a fifth, free lists that nobody
  /// touched some slabs. Gives up when the list of caches is in use.
  void cache_reap(CpuId cpu);

  /// Typed: constructs and destroys T in a cache made for it.
  template <class T, class... Args>
  [[nodiscard]] T* create(KmemCache& cache, gfp_t gfp, Args&&... args) {
    void* p = kmem_cache_alloc(cache, gfp);
    return p != nullptr ? ::new (p) T(static_cast<Args&&>(args)...) : nullptr;
  }
  template <class T>
  void destroy(KmemCache& cache, T* object) {
    object->~T();
    kmem_cache_free(cache, object);
  }

  /// One line of /proc/slabinfo. Objects in CPU arrays count as active there, as in the kernel; `cached` says how many
  /// those are.
  struct CacheInfo {
    const char* name;
    uint64_t active_objs, num_objs, cached;
    uint32_t objsize, size, objperslab, pagesperslab;
    uint32_t limit, batchcount;
    uint64_t active_slabs, num_slabs;
    bool reclaimable;
  };
  [[nodiscard]] CacheInfo info(KmemCache& cache) const;
  /// In the order in which they were made. Takes slab_mutex.
  void for_each_cache(void (*fn)(void* arg, const CacheInfo& info), void* arg);
  /// Fault injection: the next `times` allocations from that cache fail. Linux: failslab with cache-filter. False:
  /// there is no such cache. Takes slab_mutex.
  bool set_failslab(const char* cache, unsigned times);
  /// For verify(): walks every slab; a bug found is reported through `fail(id, text)`.
  void survey(void (*fail)(void*, const char* id, const char* text), void* arg);

 private:
  static constexpr unsigned KMALLOC_SHIFT_LOW = 5, KMALLOC_SHIFT_HIGH = PAGE_SHIFT + MAX_ORDER - 1;

  [[nodiscard]] void* __kmalloc(size_t size, gfp_t gfp);
  [[nodiscard]] void* __do_kmalloc(size_t size, gfp_t gfp);
  [[nodiscard]] void* slab_alloc(KmemCache& cache, gfp_t gfp);
  [[nodiscard]] bool should_failslab(const KmemCache& cache);
  [[nodiscard]] void* cache_alloc_refill(KmemCache& cache, gfp_t gfp);
  [[nodiscard]] Page* cache_grow_begin(KmemCache& cache, gfp_t gfp);
  [[nodiscard]] Page* kmem_getpages(KmemCache& cache, gfp_t gfp);
  void cache_grow_end(KmemCache& cache, Page& slab) WEIR_REQUIRES(cache.list_lock);
  void alloc_block(KmemCache& cache, ArrayCache& array, Page& slab) WEIR_REQUIRES(cache.list_lock, array.lock);
  void fixup_slab_list(KmemCache& cache, Page& slab) WEIR_REQUIRES(cache.list_lock);

  void cache_flusharray(KmemCache& cache, ArrayCache& array, PageList& empty) WEIR_REQUIRES(array.lock);
  void free_block(KmemCache& cache, void** objects, uint32_t count, PageList& empty) WEIR_REQUIRES(cache.list_lock);
  void slabs_destroy(KmemCache& cache, PageList& empty);
  void slab_destroy(KmemCache& cache, Page& slab);
  void kmem_freepages(KmemCache& cache, Page& slab);
  uint64_t drain_freelist(KmemCache& cache, uint64_t slabs);
  void drain_array(KmemCache& cache, ArrayCache& array, uint32_t count);
  PageCount __kmem_cache_shrink(KmemCache& cache);

  [[nodiscard]] Result<void> set_up(KmemCache& cache, const char* name, uint32_t size, CacheOptions options) const;
  [[nodiscard]] Result<void> enable_cpucache(KmemCache& cache);
  void drop_arrays(KmemCache& cache);
  [[nodiscard]] ArrayCache& this_cpu_array(KmemCache& cache) const;
  [[nodiscard]] Page& slab_of(const KmemCache& cache, const void* object) const;
  [[nodiscard]] KmemCache& cache_of(const void* object) const;
  [[nodiscard]] std::byte* object_at(const KmemCache& cache, const Page& slab, uint32_t index) const;
  [[nodiscard]] uint32_t index_of(const KmemCache& cache, const Page& slab, const void* object) const;
  [[nodiscard]] uint32_t free_index(const KmemCache& cache, const Page& slab, uint32_t place) const;
  void set_free_index(const KmemCache& cache, Page& slab, uint32_t place, uint32_t index) const;
  [[nodiscard]] uint16_t* index_array(const KmemCache& cache, const Page& slab) const;
  void debug_check_alloc(const KmemCache& cache, void* object) const;
  void debug_poison(const KmemCache& cache, void* object) const;
  void debug_check_free(const KmemCache& cache, void* object) const;

  PageAllocator& pages_;  // immutable
  MemMap& mem_;           // immutable
  VmStat& vmstat_;        // immutable
  unsigned cpus_;         // immutable
  Mutex slab_mutex_{LockRank::slab_mutex};
  KmemCacheList caches_ WEIR_GUARDED_BY(slab_mutex_);
  std::atomic<KmemCache*> failslab_cache_{nullptr};
  std::atomic<unsigned> failslab_times_{0};
  KmemCache cache_cache_;                                   ///< the cache of caches
  KmemCache* kmalloc_caches_[KMALLOC_SHIFT_HIGH + 1] = {};  // immutable after init; by log2 of the size
  KmemCache* kmalloc_96_ = nullptr;
  KmemCache* kmalloc_192_ = nullptr;
};

}  // namespace weir
