// src/mm/bio.cpp: see bio.hpp
#include "mm/bio.hpp"

#include <new>

namespace weir {

Result<void> BioSet::init(unsigned pool_size) {
  if (pool_size == 0) return Errno::inval;
  constexpr unsigned per_page = PAGE_SIZE / sizeof(PageBio);
  for (unsigned made = 0; made < pool_size; made += per_page) {
    std::byte* place = pages_.get_zeroed_page(GFP_KERNEL);
    if (place == nullptr) return Errno::nomem;
    ScopedLock guard(lock_);
    for (unsigned i = 0; i < per_page; ++i) {
      auto* bio = ::new (static_cast<void*>(place + i * sizeof(PageBio))) PageBio();
      bio->set = this;
      bio->next_free = free_;
      free_ = bio;
    }
    nr_free_ += per_page;
    wake_from_ = nr_free_ / 8;
  }
  return {};
}

void BioSet::bio_put(PageBio& bio) {
  in_flight_.fetch_sub(1, std::memory_order_relaxed);
  bool enough;
  {
    ScopedLock guard(lock_);
    bio.next_free = free_;
    free_ = &bio;
    enough = ++nr_free_ >= wake_from_;
  }
  // Who waited goes on with several, not with each one that comes back. All come back, so the rest is reached.
  if (enough) wait_.wake_one();
}

PageBio& BioSet::bio_alloc(BioUnplug unplug) {
  WEIR_FLOW();
  return bio_alloc_bioset(unplug);
}

PageBio& BioSet::bio_alloc_bioset(BioUnplug unplug) {
  WEIR_FLOW();
  PageBio& bio = mempool_alloc(unplug);
  bio.bio = Bio();
  return bio;
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "mempool.cpp"
PageBio& BioSet::mempool_alloc(BioUnplug unplug) {
  WEIR_FLOW();
  PageBio* bio = nullptr;
  const auto take = [&]() WEIR_NO_THREAD_SAFETY_ANALYSIS {
    if (bio != nullptr) return true;
    ScopedLock guard(lock_);
    bio = free_;
    if (bio == nullptr) return false;
    free_ = bio->next_free;
    --nr_free_;
    return true;
  };
  // Completions need nothing to give theirs back, so this ends.
  if (!take()) {
    if (unplug.fn != nullptr) unplug.fn(unplug.arg);
    wait_.wait(take);
  }
  in_flight_.fetch_add(1, std::memory_order_relaxed);
  return *bio;
}

}  // namespace weir
