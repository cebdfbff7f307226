// src/mm/shrinker.hpp: a cache of objects that reclaim may ask to give way
#pragma once

#include <atomic>

#include "base/units.hpp"

namespace weir {

inline constexpr int DEFAULT_SEEKS = 2;

/// Object caches that give way under pressure. Linux: struct shrinker.
class Shrinker {
 public:
  virtual PageCount count_objects() = 0;
  /// Returns objects freed; -1: cannot make progress now.
  virtual PageCount scan_objects(PageCount nr) = 0;
  /// What one object costs to make again, in disk seeks: the dearer, the fewer are asked for.
  int seeks = DEFAULT_SEEKS;

 protected:
  ~Shrinker() = default;

 private:
  friend class Vmscan;
  Shrinker* next_ = nullptr;             // shrinker lock
  std::atomic<int64_t> nr_deferred_{0};  ///< asked for and not done yet
};

}  // namespace weir
