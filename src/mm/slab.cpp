// src/mm/slab.cpp: see slab.hpp, and slab_def.hpp for what a slab looks like. Poison, slabinfo, survey: slab_debug.cpp
#include "mm/slab.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <string_view>

namespace weir {

namespace {

constexpr uint32_t NIBBLES = 16;  ///< free indices that fit into Page::index

/// Free objects one CPU keeps: many of the small ones, hardly any of those that are a burden.
uint32_t array_limit(uint32_t size) {
  if (size > 131072) return 1;
  if (size > PAGE_SIZE) return 8;
  if (size > 1024) return 24;
  return size > 256 ? 54 : 120;
}

struct Estimate {
  uint32_t num;
  uint64_t left_over;
};
Estimate cache_estimate(unsigned order, uint32_t size) {
  const uint64_t space = PAGE_SIZE << order;
  uint64_t num = space / size;
  if (num > NIBBLES) num = std::max<uint64_t>(space / (size + sizeof(uint16_t)), NIBBLES);
  return {static_cast<uint32_t>(num), space - num * size - (num > NIBBLES ? num * sizeof(uint16_t) : 0)};
}

}  // namespace

Slab::Slab(PageAllocator& pages, VmStat& vmstat, unsigned cpus)
    : pages_(pages), mem_(pages.mem()), vmstat_(vmstat), cpus_(cpus) {
  WEIR_BUG_ON(cpus == 0 || cpus > MAX_CPUS);
}

// ---- Caches ---------------------------------------------------------------------------------------------------------

void Slab::kmem_cache_init() {
  struct Class {
    uint32_t size;
    const char* name;
  };
  static constexpr Class classes[] = {
      {32, "kmalloc-32"},           {64, "kmalloc-64"},           {96, "kmalloc-96"},
      {128, "kmalloc-128"},         {192, "kmalloc-192"},         {256, "kmalloc-256"},
      {512, "kmalloc-512"},         {1024, "kmalloc-1024"},       {2048, "kmalloc-2048"},
      {4096, "kmalloc-4096"},       {8192, "kmalloc-8192"},       {16384, "kmalloc-16384"},
      {32768, "kmalloc-32768"},     {65536, "kmalloc-65536"},     {131072, "kmalloc-131072"},
      {262144, "kmalloc-262144"},   {524288, "kmalloc-524288"},   {1048576, "kmalloc-1048576"},
      {2097152, "kmalloc-2097152"}, {4194304, "kmalloc-4194304"},
  };
  ScopedLock guard(slab_mutex_);
  WEIR_BUG_ON(!set_up(cache_cache_, "kmem_cache", sizeof(KmemCache), {.align = 64}));
  caches_.push_back(cache_cache_);
  for (const Class& c : classes) {
    auto* cache = create<KmemCache>(cache_cache_, GFP_NOWAIT);
    WEIR_BUG_ON(cache == nullptr);
    WEIR_BUG_ON(!set_up(*cache, c.name, c.size, {}));
    caches_.push_back(*cache);
    if (c.size == 96)
      kmalloc_96_ = cache;
    else if (c.size == 192)
      kmalloc_192_ = cache;
    else
      kmalloc_caches_[std::bit_width(c.size) - 1] = cache;
  }
  // Only now can arrays be had: they are kmalloc objects.
  for (KmemCache& cache : caches_) WEIR_BUG_ON(!enable_cpucache(cache));
}

/// Sizes of a new cache. Errors: EINVAL.
Result<void> Slab::set_up(KmemCache& cache, const char* name, uint32_t size, CacheOptions options) const {
  if (size == 0 || size > KMALLOC_MAX_SIZE) return Errno::inval;
  if (options.align == 0 || !std::has_single_bit(options.align) || options.align > PAGE_SIZE) return Errno::inval;
  cache.name = name;
  cache.object_size = size;
  cache.align = std::max<uint32_t>(options.align, 8);
  cache.reclaimable = options.reclaimable == Reclaimable::yes;
  cache.debug = options.debug;
  uint64_t whole = size;
  if (cache.debug) {
    cache.left = cache.align;  // the word before the object is the red zone; the object stays aligned
    whole = cache.left + ((uint64_t{size} + 7) & ~uint64_t{7}) + sizeof(uint64_t);
  }
  whole = (whole + cache.align - 1) & ~uint64_t{cache.align - 1};
  if (whole > KMALLOC_MAX_SIZE) return Errno::inval;
  cache.size = static_cast<uint32_t>(whole);

  // The smallest slab that wastes no more than an eighth. Beyond two pages only what does not fit: high orders are
  // dear. Reclaimable caches keep to the smallest, which is soonest empty.
  const unsigned max_order = pages_.managed_pages() > pages_in(32_MiB) ? 1 : 0;
  for (unsigned order = 0; order < MAX_ORDER; ++order) {
    const Estimate e = cache_estimate(order, cache.size);
    if (e.num == 0) continue;
    cache.gfporder = static_cast<uint8_t>(order);
    cache.num = e.num;
    cache.colour_off = std::max<uint32_t>(cache.align, 64);
    cache.colours = static_cast<uint32_t>(e.left_over / cache.colour_off);
    if (cache.reclaimable || order >= max_order || e.left_over * 8 <= PAGE_SIZE << order) break;
  }
  cache.limit = array_limit(cache.size);
  cache.batchcount = (cache.limit + 1) / 2;
  cache.free_limit = int64_t{1 + cpus_} * cache.batchcount + cache.num;
  return {};
}

/// An array for each CPU in place of the one for all. Errors: ENOMEM.
Result<void> Slab::enable_cpucache(KmemCache& cache) {
  for (unsigned cpu = 0; cpu < cpus_; ++cpu) {
    void* memory = kmalloc(sizeof(ArrayCache) + cache.limit * sizeof(void*), GFP_KERNEL);
    if (memory == nullptr) return Errno::nomem;
    auto* array = ::new (memory) ArrayCache;
    array->limit = cache.limit;
    array->batchcount = cache.batchcount;
    __atomic_store_n(&cache.cpu_cache[cpu], array, __ATOMIC_RELEASE);
  }
  drain_array(cache, cache.boot.array, 1);
  return {};
}

Result<KmemCache*> Slab::kmem_cache_create(const char* name, uint32_t size, CacheOptions options) {
  WEIR_FLOW(size, options.align);
  auto* cache = create<KmemCache>(cache_cache_, GFP_KERNEL);
  if (cache == nullptr) return Errno::nomem;
  Result<void> made = set_up(*cache, name, size, options);
  if (made) made = enable_cpucache(*cache);
  if (!made) {
    drop_arrays(*cache);
    destroy(cache_cache_, cache);
    return made.error();
  }
  ScopedLock guard(slab_mutex_);
  caches_.push_back(*cache);
  return cache;
}

Result<void> Slab::kmem_cache_destroy(KmemCache& cache) {
  WEIR_FLOW(cache);
  {
    ScopedLock guard(slab_mutex_);
    __kmem_cache_shrink(cache);
    {
      ScopedLock list(cache.list_lock);
      if (cache.num_slabs != 0) return Errno::busy;
    }
    caches_.erase(KmemCacheList::s_iterator_to(cache));
  }
  drop_arrays(cache);
  destroy(cache_cache_, &cache);
  return {};
}

void Slab::drop_arrays(KmemCache& cache) {
  for (ArrayCache*& array : cache.cpu_cache) {
    if (array != nullptr) {
      array->~ArrayCache();
      kfree(array);
    }
    array = nullptr;
  }
}

ArrayCache& Slab::this_cpu_array(KmemCache& cache) const {
  const Thread* thread = engine_thread().thread;
  const unsigned cpu = thread != nullptr && thread->cpu.v < cpus_ ? thread->cpu.v : 0;
  ArrayCache* array = __atomic_load_n(&cache.cpu_cache[cpu], __ATOMIC_ACQUIRE);
  return array != nullptr ? *array : cache.boot.array;
}

// ---- Inside one slab ------------------------------------------------------------------------------------------------

Page& Slab::slab_of(const KmemCache& cache, const void* object) const {
  const Pfn pfn = mem_.pfn(mem_.virt_to_page(object));
  return mem_.page(Pfn(pfn.v & ~((uint64_t{1} << cache.gfporder) - 1)));
}

KmemCache& Slab::cache_of(const void* object) const {
  if (!mem_.is_kernel_address(object)) bug("slab: the address is not in the machine's memory", __FILE__, __LINE__);
  const Page& page = mem_.virt_to_page(object);
  if (!page.test(PageFlag::slab)) bug("slab: the address is not in a slab", __FILE__, __LINE__);
  return *reinterpret_cast<KmemCache*>(page.mapping.load(std::memory_order_relaxed));
}

std::byte* Slab::object_at(const KmemCache& cache, const Page& slab, uint32_t index) const {
  return mem_.page_address(slab) + slab_colour(slab) + size_t{index} * cache.size + cache.left;
}

uint32_t Slab::index_of(const KmemCache& cache, const Page& slab, const void* object) const {
  const auto offset = static_cast<uint64_t>(static_cast<const std::byte*>(object) - object_at(cache, slab, 0));
  if (offset % cache.size != 0 || offset / cache.size >= cache.num)
    bug("slab: the address is not an object's first byte", __FILE__, __LINE__);
  return static_cast<uint32_t>(offset / cache.size);
}

uint16_t* Slab::index_array(const KmemCache& cache, const Page& slab) const {
  return reinterpret_cast<uint16_t*>(mem_.page_address(slab) + (PAGE_SIZE << cache.gfporder)) - cache.num;
}

uint32_t Slab::free_index(const KmemCache& cache, const Page& slab, uint32_t place) const {
  if (cache.num <= NIBBLES) return static_cast<uint32_t>(slab.index >> (4 * place)) & 15;
  return index_array(cache, slab)[place];
}

void Slab::set_free_index(const KmemCache& cache, Page& slab, uint32_t place, uint32_t index) const {
  if (cache.num <= NIBBLES)
    slab.index = (slab.index & ~(uint64_t{15} << (4 * place))) | uint64_t{index} << (4 * place);
  else
    index_array(cache, slab)[place] = static_cast<uint16_t>(index);
}

/// To the list of slabs that are as full as this one has become.
void Slab::fixup_slab_list(KmemCache& cache, Page& slab) {
  if (slab_active(slab) == cache.num)
    cache.slabs_full.push_front(slab);
  else
    cache.slabs_partial.push_front(slab);
}

// ---- Allocation -----------------------------------------------------------------------------------------------------

void* Slab::kmem_cache_alloc(KmemCache& cache, gfp_t gfp) {
  WEIR_FLOW(cache, gfp);
  return slab_alloc(cache, gfp);
}

bool Slab::should_failslab(const KmemCache& cache) {
  WEIR_FLOW(cache);
  if (failslab_times_.fetch_sub(1, std::memory_order_relaxed) > 1) return true;
  failslab_cache_.store(nullptr, std::memory_order_relaxed);
  return true;
}

bool Slab::set_failslab(const char* cache, unsigned times) {
  ScopedLock guard(slab_mutex_);
  for (KmemCache& one : caches_) {
    if (std::string_view(one.name) != cache) continue;
    failslab_times_.store(times, std::memory_order_relaxed);
    failslab_cache_.store(times != 0 ? &one : nullptr, std::memory_order_relaxed);
    return true;
  }
  return false;
}

void* Slab::slab_alloc(KmemCache& cache, gfp_t gfp) {
  WEIR_FLOW(cache, gfp);
  if (gfp.has(__GFP_DIRECT_RECLAIM)) might_sleep();
  if (__builtin_expect(failslab_cache_.load(std::memory_order_relaxed) == &cache, 0) && should_failslab(cache))
    return nullptr;
  void* object = nullptr;
  {
    ArrayCache& array = this_cpu_array(cache);
    ScopedLock guard(array.lock);
    if (array.avail > 0) {
      array.touched = true;
      object = array.entry()[--array.avail];
    }
  }
  if (object == nullptr) object = cache_alloc_refill(cache, gfp);
  if (object == nullptr) return nullptr;
  if (cache.debug) debug_check_alloc(cache, object);
  if (gfp.has(__GFP_ZERO)) std::memset(object, 0, cache.object_size);
  WEIR_STATE(slab_object, mem_.pfn(mem_.virt_to_page(object)), reinterpret_cast<uintptr_t>(object) % PAGE_SIZE,
             cache.object_size);
  return object;
}

/// From partial slabs, then from empty ones, then from a new one.
void* Slab::cache_alloc_refill(KmemCache& cache, gfp_t gfp) {
  WEIR_FLOW(cache, gfp);
  {
    ArrayCache& array = this_cpu_array(cache);
    ScopedLock guard(array.lock);
    if (array.avail == 0) {
      ScopedLock list(cache.list_lock);
      while (array.avail < array.batchcount) {
        Page* slab = nullptr;
        if (!cache.slabs_partial.empty()) {
          slab = &cache.slabs_partial.front();
          cache.slabs_partial.pop_front();
        } else if (!cache.slabs_free.empty()) {
          slab = &cache.slabs_free.front();
          cache.slabs_free.pop_front();
          --cache.free_slabs;
          cache.free_touched = true;
        } else {
          break;
        }
        alloc_block(cache, array, *slab);
        fixup_slab_list(cache, *slab);
      }
    }
    if (array.avail > 0) {
      array.touched = true;
      return array.entry()[--array.avail];
    }
  }

  WEIR_STATE(slab_empty, cache, 0, 0);
  Page* slab = cache_grow_begin(cache, gfp);  // may sleep: no lock is held
  ArrayCache& array = this_cpu_array(cache);  // perhaps on another CPU now
  ScopedLock guard(array.lock);
  if (slab != nullptr) {
    ScopedLock list(cache.list_lock);
    cache_grow_end(cache, *slab);
    if (array.avail == 0) alloc_block(cache, array, *slab);
    if (slab_active(*slab) == 0) {
      cache.slabs_free.push_front(*slab);
      ++cache.free_slabs;
    } else {
      fixup_slab_list(cache, *slab);
    }
  }
  if (array.avail == 0) return nullptr;
  array.touched = true;
  return array.entry()[--array.avail];
}

/// Hands objects of `slab` to the array, up to a batch. The slab is on no list.
void Slab::alloc_block(KmemCache& cache, ArrayCache& array, Page& slab) {
  uint32_t n = slab_active(slab);
  while (n < cache.num && array.avail < array.batchcount) {
    array.entry()[array.avail++] = object_at(cache, slab, free_index(cache, slab, n++));
    --cache.free_objects;
  }
  set_slab_active(slab, n);
}

/// A new slab, on no list and not yet counted. Null: no memory.
Page* Slab::cache_grow_begin(KmemCache& cache, gfp_t gfp) {
  WEIR_FLOW(cache, gfp);
  Page* slab = kmem_getpages(cache, gfp);
  if (slab == nullptr) return nullptr;
  uint32_t colour;
  {
    // Slabs begin at different offsets, or the same object of each would fall on the same cache lines.
    ScopedLock list(cache.list_lock);
    colour = cache.colour_next;
    cache.colour_next = colour < cache.colours ? colour + 1 : 0;
  }
  slab->private_ = uint64_t{colour * cache.colour_off} << 32;
  slab->index = 0;
  for (uint32_t i = 0; i < cache.num; ++i) set_free_index(cache, *slab, i, i);
  if (cache.debug)
    for (uint32_t i = 0; i < cache.num; ++i) debug_poison(cache, object_at(cache, *slab, i));
  WEIR_STATE(slab_new, mem_.pfn(slab), cache.num, colour);
  return slab;
}

void Slab::cache_grow_end(KmemCache& cache, Page&) {
  ++cache.num_slabs;
  cache.free_objects += cache.num;
}

Page* Slab::kmem_getpages(KmemCache& cache, gfp_t gfp) {
  WEIR_FLOW(cache, gfp);
  gfp_t flags = gfp & ~(__GFP_ZERO | __GFP_HIGHMEM | __GFP_MOVABLE | __GFP_RECLAIMABLE);
  if (cache.reclaimable) flags = flags | __GFP_RECLAIMABLE;
  Page* slab = pages_.alloc_pages(flags, Order(cache.gfporder));
  if (slab == nullptr) return nullptr;
  const size_t pages = size_t{1} << cache.gfporder;
  vmstat_.mod_node_page_state(cache.reclaimable ? NodeStat::nr_slab_reclaimable : NodeStat::nr_slab_unreclaimable,
                              static_cast<int64_t>(pages));
  for (size_t i = 0; i < pages; ++i) {
    Page& page = *(slab + i);
    page.mapping.store(reinterpret_cast<uintptr_t>(&cache), std::memory_order_relaxed);
    page.set(PageFlag::slab);
  }
  return slab;
}

// ---- Freeing --------------------------------------------------------------------------------------------------------

void Slab::kmem_cache_free(KmemCache& cache, void* object) {
  WEIR_FLOW(cache);
  if (&cache_of(object) != &cache) bug("kmem_cache_free: the object is of another cache", __FILE__, __LINE__);
#ifdef WEIR_DEBUG
  (void)index_of(cache, slab_of(cache, object), object);  // otherwise noticed when it goes back to its slab
#endif
  if (cache.debug) debug_check_free(cache, object);
  PageList empty;
  {
    ArrayCache& array = this_cpu_array(cache);
    ScopedLock guard(array.lock);
    array.touched = true;
    if (array.avail == array.limit) cache_flusharray(cache, array, empty);
    array.entry()[array.avail++] = object;
  }
  slabs_destroy(cache, empty);
}

/// The array is full: its oldest batch goes back to the slabs.
void Slab::cache_flusharray(KmemCache& cache, ArrayCache& array, PageList& empty) {
  const uint32_t count = array.batchcount;
  {
    ScopedLock list(cache.list_lock);
    free_block(cache, array.entry(), count, empty);
  }
  array.avail -= count;
  std::memmove(array.entry(), array.entry() + count, array.avail * sizeof(void*));
}

/// Objects go back to their slabs. Empty slabs beyond free_limit are moved to `empty`, for when no lock is held.
void Slab::free_block(KmemCache& cache, void** objects, uint32_t count, PageList& empty) {
  for (uint32_t i = 0; i < count; ++i) {
    Page& slab = slab_of(cache, objects[i]);
    const uint32_t index = index_of(cache, slab, objects[i]);
    const uint32_t n = slab_active(slab);
    WEIR_BUG_ON(n == 0);
#ifdef WEIR_DEBUG
    for (uint32_t place = n; place < cache.num; ++place)
      if (free_index(cache, slab, place) == index) bug("slab: the object is free already", __FILE__, __LINE__);
#endif
    set_free_index(cache, slab, n - 1, index);
    set_slab_active(slab, n - 1);
    ++cache.free_objects;
    cache.slabs_free.erase(PageList::s_iterator_to(slab));  // whichever it is on: the lists keep no length
    if (n == 1) {
      cache.slabs_free.push_front(slab);
      ++cache.free_slabs;
    } else {
      cache.slabs_partial.push_back(slab);
    }
  }
  while (static_cast<int64_t>(cache.free_objects) > cache.free_limit && !cache.slabs_free.empty()) {
    Page& slab = cache.slabs_free.back();
    cache.slabs_free.pop_back();
    empty.push_back(slab);
    --cache.free_slabs;
    --cache.num_slabs;
    cache.free_objects -= cache.num;
  }
}

void Slab::slabs_destroy(KmemCache& cache, PageList& empty) {
  while (!empty.empty()) {
    Page& slab = empty.front();
    empty.pop_front();
    slab_destroy(cache, slab);
  }
}

/// An empty slab that is on no list goes back to the page allocator.
void Slab::slab_destroy(KmemCache& cache, Page& slab) {
  WEIR_FLOW(cache, mem_.pfn(slab));
  if (cache.debug)
    for (uint32_t i = 0; i < cache.num; ++i) debug_check_alloc(cache, object_at(cache, slab, i));
  kmem_freepages(cache, slab);
}

void Slab::kmem_freepages(KmemCache& cache, Page& slab) {
  WEIR_FLOW(cache, mem_.pfn(slab));
  const size_t pages = size_t{1} << cache.gfporder;
  vmstat_.mod_node_page_state(cache.reclaimable ? NodeStat::nr_slab_reclaimable : NodeStat::nr_slab_unreclaimable,
                              -static_cast<int64_t>(pages));
  slab.index = 0;
  slab.private_ = 0;
  for (size_t i = 0; i < pages; ++i) {
    Page& page = *(&slab + i);
    page.mapping.store(0, std::memory_order_relaxed);
    page.clear(PageFlag::slab);
  }
  pages_.__free_pages(slab, Order(cache.gfporder));
}

/// Up to so many empty slabs go back, oldest first. Returns how many.
uint64_t Slab::drain_freelist(KmemCache& cache, uint64_t slabs) {
  WEIR_FLOW(cache, slabs);
  uint64_t freed = 0;
  for (; freed < slabs; ++freed) {
    Page* slab;
    {
      ScopedLock list(cache.list_lock);
      if (cache.slabs_free.empty()) break;
      slab = &cache.slabs_free.back();
      cache.slabs_free.pop_back();
      --cache.free_slabs;
      --cache.num_slabs;
      cache.free_objects -= cache.num;
    }
    slab_destroy(cache, *slab);
  }
  return freed;
}

/// The oldest `count` objects of the array go back to their slabs.
void Slab::drain_array(KmemCache& cache, ArrayCache& array, uint32_t count) {
  PageList empty;
  {
    ScopedLock guard(array.lock);
    count = std::min(count, array.avail);
    if (count > 0) {
      {
        ScopedLock list(cache.list_lock);
        free_block(cache, array.entry(), count, empty);
      }
      array.avail -= count;
      std::memmove(array.entry(), array.entry() + count, array.avail * sizeof(void*));
    }
  }
  slabs_destroy(cache, empty);
}

PageCount Slab::__kmem_cache_shrink(KmemCache& cache) {
  uint64_t before;
  {
    ScopedLock list(cache.list_lock);
    before = cache.num_slabs;
  }
  for (unsigned cpu = 0; cpu < cpus_; ++cpu)
    if (cache.cpu_cache[cpu] != nullptr) drain_array(cache, *cache.cpu_cache[cpu], cache.limit);
  drain_freelist(cache, ~uint64_t{0});
  ScopedLock list(cache.list_lock);
  const uint64_t gone = before > cache.num_slabs ? before - cache.num_slabs : 0;
  return PageCount(static_cast<int64_t>(gone << cache.gfporder));
}

PageCount Slab::kmem_cache_shrink(KmemCache& cache) {
  WEIR_FLOW(cache);
  return __kmem_cache_shrink(cache);
}

PageCount Slab::shrink_all() {
  ScopedLock guard(slab_mutex_);
  PageCount freed{};
  for (KmemCache& cache : caches_) freed += __kmem_cache_shrink(cache);
  return freed;
}

void Slab::cache_reap(CpuId cpu) {
  WEIR_FLOW(cpu);
  if (!slab_mutex_.try_lock()) return;
  for (KmemCache& cache : caches_) {
    ArrayCache* array = cpu.v < cpus_ ? cache.cpu_cache[cpu.v] : nullptr;
    if (array != nullptr) {
      uint32_t drain = 0;
      {
        ScopedLock guard(array->lock);
        if (array->touched)
          array->touched = false;
        else if (array->avail > 0)
          drain = std::min((array->limit + 4) / 5, (array->avail + 1) / 2);
      }
      if (drain > 0) drain_array(cache, *array, drain);
    }
    bool idle;
    {
      ScopedLock list(cache.list_lock);
      idle = !cache.free_touched;
      cache.free_touched = false;
    }
    if (idle) drain_freelist(cache, (static_cast<uint64_t>(cache.free_limit) + 5 * cache.num - 1) / (5 * cache.num));
  }
  slab_mutex_.unlock();
}

// ---- kmalloc --------------------------------------------------------------------------------------------------------

KmemCache* Slab::kmalloc_slab(size_t size) const {
  WEIR_FLOW(size);
  if (size > KMALLOC_MAX_SIZE) return nullptr;
  KmemCache* cache;
  if (size > 64 && size <= 96)
    cache = kmalloc_96_;
  else if (size > 128 && size <= 192)
    cache = kmalloc_192_;
  else
    cache =
        kmalloc_caches_[size <= KMALLOC_MIN_SIZE ? KMALLOC_SHIFT_LOW : static_cast<unsigned>(std::bit_width(size - 1))];
  WEIR_STATE(kmem_cache_select, *cache, size, 0);
  return cache;
}

void* Slab::kmalloc(size_t size, gfp_t gfp) {
  WEIR_FLOW(size, gfp);
  return __kmalloc(size, gfp);
}

void* Slab::__kmalloc(size_t size, gfp_t gfp) {
  WEIR_FLOW(size, gfp);
  return __do_kmalloc(size, gfp);
}

void* Slab::__do_kmalloc(size_t size, gfp_t gfp) {
  WEIR_FLOW(size, gfp);
  if (size == 0) return ZERO_SIZE_PTR;
  KmemCache* cache = kmalloc_slab(size);
  return cache != nullptr ? slab_alloc(*cache, gfp) : nullptr;
}

void Slab::kfree(void* object) {
  if (object == nullptr || object == ZERO_SIZE_PTR) return;
  WEIR_FLOW();
  kmem_cache_free(cache_of(object), object);
}

size_t Slab::ksize(const void* object) const {
  return object == nullptr || object == ZERO_SIZE_PTR ? 0 : cache_of(object).object_size;
}

}  // namespace weir
