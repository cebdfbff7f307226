// src/record/flow_tree.hpp
//
// Who called whom, and what changed: a recording as trees, one forest a task, printed in the documents' notation.
//
//   enter a  enter b  state  leave b  leave a        |-->a //(file.cpp)
//                                                    	|-->b //(file.cpp)
//                                                    		|   pte 0x7f1000: swap(0,42) -> pfn 17 rw dirty young
//
// A ring begins in the middle: a call whose leave is there and whose enter is not encloses everything before that
// leave. Where events were lost a leave may not fit: then every call above its own on the stack has ended too.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "record/reader.hpp"

namespace weir {

/// A call or a state change of one task. In a vector they stand in the order in which they began: a call, then its
/// subtree.
struct FlowItem {
  static constexpr uint32_t NONE = UINT32_MAX;
  uint32_t event =
      NONE;  ///< index of the enter or the state change; NONE: the call was running when the recording began
  uint32_t leave = NONE;   ///< index of the event that ended the call; NONE: it was running when the recording ended
  uint32_t parent = NONE;  ///< index of the item around this one; NONE: a root
  uint32_t end = 0;        ///< index past the last item of the subtree
  uint32_t depth = 0;
  uint16_t site = 0;
  bool is_call = false;
};

struct TaskFlow {
  int32_t tid = 0;
  std::vector<FlowItem> items;
};

/// One forest a task, tasks in the order of their first event.
[[nodiscard]] std::vector<TaskFlow> flow_forest(const Recording& recording);

/// What record/ cannot know: how the memory manager packs its values. A null leaves the number (hexadecimal).
struct FlowStyles {
  std::string (*pte)(uint64_t) = nullptr;
  std::string (*swap_entry)(uint64_t) = nullptr;
  std::string (*lru_list)(uint64_t) = nullptr;
  std::string (*page_flags)(uint64_t) = nullptr;
  std::string (*fault_result)(uint64_t) = nullptr;
};

/// A state change in words: "swap_map (0,42): 2 -> 1". `event` is one of `recording`'s state changes.
[[nodiscard]] std::string describe_state(const Recording& recording, const FlowEvent& event,
                                         const FlowStyles& styles = {});

/// A call's arguments: "address=0x7f1000, entry=0x42". As many as were recorded (three) and are named.
[[nodiscard]] std::string describe_arguments(const Recording& recording, const FlowEvent& event);

/// What a call returned: "VM_FAULT_MAJOR", "pfn 17". `leave` is one of `recording`'s; empty where the function did not say.
[[nodiscard]] std::string describe_result(const Recording& recording, const FlowEvent& leave,
                                          const FlowStyles& styles = {});

enum class Shown : bool { no, yes };

struct FlowPrint {
  std::string task = {};  ///< only this task: a tid or a name; empty: all
  std::string function =
      {};               ///< only calls of this function with what is below them, each as a root; empty: everything
  uint32_t depth = 64;  ///< levels of calls below a root that are shown; deeper ones are counted
  uint64_t first = UINT64_MAX;          ///< so many lines
  std::optional<uint32_t> around = {};  ///< only events within `radius` of this one, and the calls they are in
  uint32_t radius = 20;
  Shown states = Shown::yes;
  Shown bookkeeping = Shown::no;  ///< with states: flags, counts, free lists too
  Shown arguments = Shown::no;
  Shown results = Shown::yes;  ///< where a function said what it returns
  Shown times = Shown::no;
  FlowStyles styles = {};
};

/// The forest as text. Each task's part begins with a line "task TID (COMM)".
[[nodiscard]] std::string print_flow(const Recording& recording, const FlowPrint& how = {});

}  // namespace weir
