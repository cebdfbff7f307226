// tests/flows/conformance.hpp
//
// Does a run do what the documents say? flows.toml holds every flow of the documents, step by step; states.toml says by
// which state changes each step in words is seen. A recording conforms when the flow's steps are in it:
//
//   flows.toml:  |-->a                 recording:  a ............................... leaves
//                	|-->b                            x ......... leaves
//                	|-->c                                b . leaves       c . leaves
//
// What lies between (x here) does not matter: b is below a, and c comes after b, not inside it.
//
//   EXPECT_TRUE(conforms("kswapd", recording));
//
// The rule, from the head of flows.toml ("The check"), and how it is read here:
// - R, the required functions: those that are not optional, in the kernel of the era, not without effect, and whose
//   `when` occurred. A pointer call and its callee's step are one event.
// - order, nesting compared: R is a forest. Each of its nodes has an event of its name; a child's event lies in its
//   parent's call, in the same task; siblings do not overlap and stand in order. Several roots are successive contexts:
//   only their beginnings are ordered. A `deferred` step begins in any task after the call above it began. State steps
//   without a kernel_order are leaves of the forest; where a document draws one beside a function it may also happen
//   inside, and where it draws a function below one, that function may itself record it before it calls anything.
// - order, nesting not compared: the names, in kernel_order, begin in this order.
// - One root: some call of the root must hold all of it, and every `when` that occurs below a finished call of the root
//   must occur in one that holds all; so a second way through the flow is checked as well. Several roots: the whole run
//   counts.
// - kernel_order_all: first occurrences below the same call of the root, but for those of `earlier_too`.
// - set: each name occurs, in one run or several. state: state steps only.
// - States with a kernel_order (or of a state flow): in their own order, anywhere in the run.
// - A state step with a `callee` is seen by that function's being called.
//
// `shown` in states.toml lists optional steps that the run must show; they count as required. `without` lists steps of
// systems that are not there yet; they are not required. `earlier_too` lists functions that the kernel also calls
// before their place in kernel_order_all: they have it in kernel_order only.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "record/reader.hpp"

namespace weir::flows {

[[nodiscard]] inline bool has(const std::vector<std::string>& list, std::string_view name) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

struct Step {
  std::string fn;  ///< or
  std::string state;
  std::string file;
  unsigned depth = 0;
  bool optional = false;
  std::string callee;
  std::optional<std::vector<std::string>> callee_any;  ///< empty: any function
  std::string kernel_name;
  std::string when;
};

enum class Check { order, set, state };

/// One [[flow]] of flows.toml.
struct Flow {
  std::string id, profile;
  Check check = Check::order;
  bool nesting = true;  ///< compared: seed_vs_kernel does not hold "order"
  std::optional<std::vector<std::string>> kernel_order;
  std::vector<std::string> kernel_order_all;
  std::optional<std::vector<std::string>> kernel_states;
  std::vector<std::string> not_in_kernel, deferred, unplaced;
  std::string continues, at;
  std::vector<Step> steps;

  // From states.toml.
  std::map<std::string, std::string> evidence;  ///< state step -> what shows it
  std::vector<std::string> shown;
  std::vector<std::string> without;
  std::vector<std::string> earlier_too;
};

/// The two tables. Throws with place and remedy when they do not fit together.
class FlowTable {
 public:
  FlowTable(const std::string& flows_toml, const std::string& states_toml);

  [[nodiscard]] const Flow& flow(std::string_view id) const;
  [[nodiscard]] const std::vector<Flow>& flows() const { return flows_; }
  [[nodiscard]] bool has_effect(std::string_view fn) const;

  /// The flow as the document draws it: it and the flows that continue it or that it continues, spliced at their steps.
  [[nodiscard]] std::vector<Step> whole(std::string_view id) const;

 private:
  std::vector<Flow> flows_;
  std::vector<std::string> no_effect_;
};

/// Lines of held.txt: flows that tests hold. Words after '#' are comments.
[[nodiscard]] std::vector<std::string> held(const std::string& path);

/// Required steps that occur, of those that there are.
struct Shown {
  unsigned shown = 0, of = 0;
};

struct Verdict {
  bool conforms = false;
  std::string report;  ///< which step is missing or out of place; empty if none is
  Shown functions = {}, states = {};
};

/// What a flow requires whatever happens in its run: functions, states.
[[nodiscard]] std::pair<unsigned, unsigned> required_steps(const FlowTable& table, const Flow& flow);

/// Several recordings: a set may need several runs; of the other kinds one of them must conform.
[[nodiscard]] Verdict check(const FlowTable& table, std::string_view id, std::span<const Recording> runs);

/// The project's own tables, read once.
[[nodiscard]] const FlowTable& table();
[[nodiscard]] testing::AssertionResult conforms(std::string_view id, const Recording& run);
[[nodiscard]] testing::AssertionResult conforms(std::string_view id, std::span<const Recording> runs);

}  // namespace weir::flows
