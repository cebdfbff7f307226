// src/explore/part.hpp
//
// Which part of a recording a page shows, and what the machine was where that part begins or goes on: what is left out
// is told in brief, by the changes that remain of it.
//
//   events      | . . . . . |a b c| . . . |d e f| . . |
//   kept                     a b c         d e f
//   left out    3 changes ^         ^ 1 change           so that a and d find the machine as it was
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "record/reader.hpp"

namespace weir::explore {

/// Past this a page would take long to open: a part is to be asked for.
inline constexpr uint64_t MAX_EVENTS = 1'000'000;

struct ExploreError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// All that is asked for holds together.
struct Window {
  /// Each STATE or FUNCTION[:N], near its Nth occurrence (1: the first), or an event's number. What is near any of
  /// them.
  std::vector<std::string> around{};
  uint64_t radius = 20'000;  ///< so many events before and after
  std::string task{};        ///< only this task's calls and changes: a tid or a name
  std::string
      life{};  ///< only what concerns the page at this address (0x...) in any process, or in this one's mm (3:0x...)
  std::optional<uint64_t> from_ns{};  ///< from this time on
  std::optional<uint64_t> to_ns{};    ///< up to this time
};

struct Part {
  struct LeftOut {
    size_t at = 0;  ///< before recording.events[at]
    uint64_t events = 0;
    std::vector<FlowEvent> changes;  ///< what remains of them, in an order that leads there
  };
  Recording recording;  ///< its events are those that are kept; `first`: number of the first of them
  std::vector<LeftOut> left_out;
};

/// Throws ExploreError when there is nothing, or more than MAX_EVENTS.
[[nodiscard]] Part cut(Recording recording, const Window& window);

/// What a page shows that nobody has chosen a part for: everything, if it fits; else what is around the first page that
/// comes back from swap, the first kill, the first reclaim, or the end.
[[nodiscard]] Window usual_window(const Recording& recording);

}  // namespace weir::explore
