// src/record/flow_diff.hpp
//
// Two printed flows (flow_tree.hpp) side by side, a line beside its like:
//
//   kernel 2.6.20                  kernel 4.14
//   |-->shrink_page_list           |-->shrink_page_list
//     |-->try_to_unmap_anon      <
//                                >   |-->rmap_walk_anon
#pragma once

#include <string>
#include <string_view>

namespace weir {

struct FlowDiff {
  std::string text;
  bool differ = false;
};

/// Lines are alike when they are the same but for numbers: frames, addresses and thread ids are a run's own. `width`:
/// columns of the terminal; what does not fit in half of them is cut. Of each text the first 4,000 lines count.
[[nodiscard]] FlowDiff diff_flows(std::string_view left, std::string_view right, std::string_view left_title,
                                  std::string_view right_title, unsigned width);

}  // namespace weir
