// src/live/preload/malloc.cpp: the program's heap is jemalloc's, linked into this library; here is what it is told and
// what it lacks.
//
// glibc's own heap would not do: it grows by brk, inside libc, where nothing can be put between.
#include <cstddef>
#include <cstdint>

#include "live/preload/preload.hpp"

extern "C" void* memalign(size_t alignment, size_t size);

// - Two arenas: each keeps pages that it does not use, and RAM is short here.
// - Freed pages go back (MADV_DONTNEED) after a tenth of a second, at once rather than by MADV_FREE: then they take no
// swap.
// - No thread of its own, no huge pages: the machine counts small ones.
extern "C" {
__attribute__((visibility("hidden"))) const char* malloc_conf =
    "narenas:2,background_thread:false,thp:never,metadata_thp:disabled,dirty_decay_ms:100,muzzy_decay_ms:0,lg_tcache_"
    "max:13";
}

WEIR_EXPORT void* pvalloc(size_t size) {
  constexpr size_t PAGE_BYTES = 4096;
  if (size > SIZE_MAX - PAGE_BYTES) {
    errno = ENOMEM;
    return nullptr;
  }
  return memalign(PAGE_BYTES, size == 0 ? PAGE_BYTES : (size + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1));
}
