// src/live/cgroup.hpp
//
// The memory limit that this process already lives under: of its memory cgroup, version 1 or 2, and of the groups above
// it.
#pragma once

#include <optional>
#include <string>

#include "base/units.hpp"

namespace weir::live {

struct CgroupLimit {
  Bytes limit{};
  Bytes used{};      ///< by the group that sets the limit, now
  std::string file;  ///< where the limit stands
};

/// The tightest limit above this process, or nothing when there is none. `proc` and `sys` are "/proc" and "/sys" but in
/// tests.
std::optional<CgroupLimit> memory_limit(const std::string& proc = "/proc", const std::string& sys = "/sys");

}  // namespace weir::live
