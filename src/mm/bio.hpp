// src/mm/bio.hpp
//
// Requests for pages from a pool that was filled at boot: submitting never fails for want of memory, it waits for a
// request to come back. Linux: block/bio.c, mm/mempool.c.
//
//   bio_alloc -> bio_alloc_bioset -> mempool_alloc --pool empty--> waits    bio_put: back; some free: wakes one
#pragma once

#include "block/block.hpp"
#include "kernel/locks.hpp"
#include "mm/page_alloc.hpp"

namespace weir {

class BioSet;

/// A request of the pool with what its end needs to know; the fields from `io` on are its user's.
struct PageBio {
  Bio bio;
  BioSet* set = nullptr;
  PageBio* next_free = nullptr;
  void* io = nullptr;
  Page* page = nullptr;
  void (*done)(Page&, Errno, void*) = nullptr;
  void* owner = nullptr;
};

/// What a caller that has requests in hand does before it waits for one: submits them.
struct BioUnplug {
  void (*fn)(void* arg) = nullptr;
  void* arg = nullptr;
};

class BioSet {
 public:
  explicit BioSet(PageAllocator& pages) : pages_(pages) {}
  BioSet(const BioSet&) = delete;
  BioSet& operator=(const BioSet&) = delete;
  /// Makes at least so many. Errors: ENOMEM, EINVAL (0).
  Result<void> init(unsigned pool_size);

  /// A request, new. Sleeps while the pool is empty.
  [[nodiscard]] PageBio& bio_alloc(BioUnplug unplug = {});
  /// Any context.
  void bio_put(PageBio& bio);

  /// Requests that are out, for shutdown and tests.
  [[nodiscard]] unsigned in_flight() const { return in_flight_.load(std::memory_order_relaxed); }

 private:
  PageBio& bio_alloc_bioset(BioUnplug unplug);
  PageBio& mempool_alloc(BioUnplug unplug);

  PageAllocator& pages_;
  SpinLock lock_{LockRank::leaf};
  PageBio* free_ WEIR_GUARDED_BY(lock_) = nullptr;
  unsigned nr_free_ WEIR_GUARDED_BY(lock_) = 0;
  unsigned wake_from_ = 0;  ///< so many are free before a waiter is woken: an eighth of the pool
  WaitQueue wait_;
  WorldAtomic<unsigned> in_flight_{0};
};

}  // namespace weir
