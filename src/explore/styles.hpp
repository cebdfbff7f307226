// src/explore/styles.hpp
//
// How the memory manager packs the values of its recordings, in words: PTEs, swap entries, lists, flags, fault results.
#pragma once

#include "record/flow_tree.hpp"

namespace weir::explore {

[[nodiscard]] FlowStyles mm_styles();

}  // namespace weir::explore
