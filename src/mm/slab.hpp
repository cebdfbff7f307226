// src/mm/slab.hpp
//
// Object caches: kmalloc and kmem_cache_*.
//
//   kmalloc(size) --> class cache --> this CPU's array --empty--> partial slab --none--> free slab --none--> new slab (alloc_pages)
//
// Linux: mm/slab.c, mm/slab_common.c, 4.14.
#pragma once

#include "mm/page_alloc.hpp"

namespace weir {

class Slab {
 public:
  Slab(PageAllocator& pages, VmStat& vmstat, unsigned cpus);
  /// kmalloc caches: 32, 64, 96, 128, 192, 256, … 4 MiB.
  void kmem_cache_init();

  enum class Reclaimable : uint8_t { no, yes };
  struct CacheOptions {
    uint32_t align = 8;
    Reclaimable reclaimable = Reclaimable::no;
    /// Poison 0x6b/0x5a/0xa5 and red zones; checked at free and alloc.
    bool debug = false;
  };
  /// `name` must outlive the cache. Errors: ENOMEM, EINVAL (size 0 or above 4 MiB).
  Result<KmemCache*> kmem_cache_create(const char* name, uint32_t size, CacheOptions options);
  /// Errors: EBUSY while objects live.
  Result<void> kmem_cache_destroy(KmemCache& cache);
  /// Null when no memory. Content undefined unless __GFP_ZERO.
  [[nodiscard]] void* kmem_cache_alloc(KmemCache& cache, gfp_t gfp);
  void kmem_cache_free(KmemCache& cache, void* object);

  [[nodiscard]] void* kmalloc(size_t size, gfp_t gfp);
  [[nodiscard]] void* kzalloc(size_t size, gfp_t gfp) { return kmalloc(size, gfp | __GFP_ZERO); }
  void kfree(void* object);
  /// What the class really gives for this object.
  [[nodiscard]] size_t ksize(const void* object) const;
  /// Gives empty slabs back. Returns pages.
  PageCount kmem_cache_shrink(KmemCache& cache);
  PageCount shrink_all();

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

 private:
  PageAllocator& pages_;
  VmStat& vmstat_;
  unsigned cpus_;
};

}  // namespace weir
