// tests/flows/conformance.cpp: see conformance.hpp
#include "flows/conformance.hpp"

#ifndef TOML_HEADER_ONLY
#define TOML_HEADER_ONLY 1
#endif
#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <set>
#include <stdexcept>
#include <unordered_map>

#include "flows/evidence.hpp"
#include "places.hpp"
#include "record/flow_tree.hpp"

namespace weir::flows {

namespace {

// ---- The recording, by name -----------------------------------------------------------------------------------------

constexpr int64_t FOREVER = INT64_MAX;

// An event that can stand for a step: a call, or a state change (which begins and ends at once).
struct Place {
  int32_t tid = 0;
  int64_t begin = 0;
  int64_t end = FOREVER;
  // Of a state change with no call between it and the beginning of the call that it is in: that beginning.
  int64_t opens = -1;
};

class Run {
 public:
  explicit Run(const Recording& recording) : recording_(recording) {
    for (const TaskFlow& task : flow_forest(recording)) {
      int64_t opens = -1;
      for (const FlowItem& item : task.items) {
        if (!item.is_call) {
          const bool first = opens >= 0 && item.parent != FlowItem::NONE && task.items[item.parent].event == opens;
          states_[std::string(recording.state_name(recording.events[item.event]))].push_back(
              {task.tid, item.event, item.event, first ? opens : -1});
          continue;
        }
        opens = -1;
        if (item.event == FlowItem::NONE) continue;  // entered before the recording: not seen to be called
        opens = item.event;
        const Place place{task.tid, item.event, item.leave == FlowItem::NONE ? FOREVER : int64_t{item.leave}};
        calls_[recording.sites[item.site].function].push_back(place);
        all_.push_back(place);
      }
    }
    for (auto& [name, places] : calls_) sort(places);
    sort(all_);
  }

  [[nodiscard]] const std::vector<Place>& calls(const std::string& function) const {
    static const std::vector<Place> none;
    const auto at = calls_.find(function);
    return at == calls_.end() ? none : at->second;
  }
  [[nodiscard]] const std::vector<Place>& all_calls() const { return all_; }

  [[nodiscard]] std::vector<Place> places(const Evidence& evidence) const {
    std::vector<Place> result;
    for (const Alternative& alternative : evidence.alternatives) {
      for (const Place& call : calls(alternative.fn)) result.push_back({call.tid, call.begin, call.begin});
      const auto at = states_.find(alternative.kind);
      if (at == states_.end()) continue;
      for (const Place& place : at->second) {
        const FlowEvent& event = recording_.events[static_cast<size_t>(place.begin)];
        if (std::all_of(alternative.conditions.begin(), alternative.conditions.end(),
                        [&](const Condition& condition) { return condition.holds(event); }))
          result.push_back(place);
      }
    }
    sort(result);
    return result;
  }

 private:
  static void sort(std::vector<Place>& places) {
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.begin < b.begin; });
  }

  const Recording& recording_;
  std::unordered_map<std::string, std::vector<Place>> calls_;
  std::vector<Place> all_;
  std::unordered_map<std::string, std::vector<Place>> states_;
};

const Place* first_after(const std::vector<Place>& places, int64_t after) {
  const auto at =
      std::upper_bound(places.begin(), places.end(), after, [](int64_t n, const Place& p) { return n < p.begin; });
  return at == places.end() ? nullptr : &*at;
}

// ---- One flow against one run ---------------------------------------------------------------------------------------

// A step as it is looked for: the pointer call and its callee's step are one.
struct Wanted {
  const Step* step = nullptr;
  std::string name;                ///< as kernel_order and `when` spell it
  std::vector<std::string> names;  ///< calls that satisfy it
  bool any = false;                ///< any call does
  bool optional = false;
  std::vector<size_t> above;  ///< indices of the steps around it, innermost first
  Evidence evidence;          ///< of a state step
  std::vector<Place> places;  ///< where it could be, in order of begin

  [[nodiscard]] bool is_fn() const { return !step->fn.empty(); }
  [[nodiscard]] std::string text() const {
    if (!is_fn()) return fmt::format("state step \"{}\"", step->state);
    return fmt::format("{} ({}), depth {}", name, step->file, step->depth);
  }
};

// Places where a step, with what is below it, is found.
struct Match : Place {
  int64_t last = 0;  ///< where the last step of its subtree begins
};

struct Node {
  const Wanted* wanted = nullptr;
  bool deferred = false;
  std::vector<size_t> children;
  std::vector<Match> matches;  ///< in order of begin

  // Of one task: in order of begin, each with the match of the smallest end at or after it.
  struct Lane {
    std::vector<size_t> at;
    std::vector<size_t> ends_first;
  };
  std::map<int32_t, Lane> lanes;

  void index() {
    for (size_t i = 0; i < matches.size(); ++i) lanes[matches[i].tid].at.push_back(i);
    for (auto& [tid, lane] : lanes) {
      lane.ends_first = lane.at;
      for (size_t i = lane.at.size() - 1; i-- > 0;)
        if (matches[lane.ends_first[i + 1]].end < matches[lane.at[i]].end) lane.ends_first[i] = lane.ends_first[i + 1];
    }
  }
  // Of those of the task that begin after `after`: the one that ends first.
  [[nodiscard]] const Match* ending_first(int32_t tid, int64_t after) const {
    const auto lane = lanes.find(tid);
    if (lane == lanes.end()) return nullptr;
    const auto& at = lane->second.at;
    const auto found =
        std::upper_bound(at.begin(), at.end(), after, [&](int64_t n, size_t i) { return n < matches[i].begin; });
    return found == at.end() ? nullptr : &matches[lane->second.ends_first[static_cast<size_t>(found - at.begin())]];
  }
  // The first, in any task, that begins after `after`.
  [[nodiscard]] const Match* first(int64_t after) const {
    const auto at =
        std::upper_bound(matches.begin(), matches.end(), after, [](int64_t n, const Match& m) { return n < m.begin; });
    return at == matches.end() ? nullptr : &*at;
  }
};

using Names = std::set<std::string>;

class Checker {
 public:
  Checker(const FlowTable& table, const Flow& flow, const Recording& recording)
      : table_(table), flow_(flow), run_(recording) {
    for (const Step& step : flow.steps) add(step);
    for (Wanted& wanted : steps_) {
      wanted.places = find(wanted);
      const bool anywhere = deferred(wanted) || std::any_of(wanted.above.begin(), wanted.above.end(),
                                                            [&](size_t i) { return deferred(steps_[i]); });
      if (anywhere) in_own_context_.insert(wanted.name);
    }
    for (const Step& step : flow.steps)
      if (!step.when.empty()) all_whens_.insert(step.when);
  }

  Verdict run() {
    const bool ok = (flow_.check != Check::order || functions()) && states();
    Verdict verdict{ok, ok ? "" : fmt::format("flow {}: {}", flow_.id, report_)};
    count(verdict);
    return verdict;
  }
  void count(Verdict& verdict) const {
    const Names whens = whens_in_run();
    for (const Wanted& wanted : steps_) {
      if (!required(wanted, whens)) continue;
      Shown& shown = wanted.is_fn() ? verdict.functions : verdict.states;
      ++shown.of;
      if (!wanted.places.empty()) ++shown.shown;
    }
  }

  // What a set wants: name -> whether it is there.
  std::map<std::string, bool> names_of_set() {
    std::map<std::string, bool> result;
    const Names whens = whens_in_run();
    for (const Wanted& wanted : steps_) {
      if (!required(wanted, whens)) continue;
      if (!wanted.is_fn() && !wanted.evidence.unseen.empty()) continue;
      result[wanted.text()] = !wanted.places.empty();
    }
    return result;
  }

 private:
  // -- Steps --

  void add(const Step& step) {
    while (!around_.empty() && steps_[around_.back()].step->depth >= step.depth) around_.pop_back();
    const auto around = std::find_if(around_.rbegin(), around_.rend(), [&](size_t i) { return steps_[i].is_fn(); });
    if (around != around_.rend() && !step.fn.empty() && steps_[*around].step->callee == step.fn) {
      // The same event as the pointer call around it; what is below this step is below that. Required if either is.
      steps_[*around].optional = steps_[*around].optional && step.optional;
      return;
    }
    Wanted wanted;
    wanted.step = &step;
    wanted.optional = step.optional && !has(flow_.shown, step.fn.empty() ? step.state : step.fn);
    wanted.above.assign(around_.rbegin(), around_.rend());
    if (wanted.is_fn()) {
      wanted.name = step.callee.empty() ? step.fn : step.callee;
      wanted.names = step.callee_any ? *step.callee_any : std::vector<std::string>{wanted.name};
      wanted.any = step.callee_any && step.callee_any->empty();
    } else {
      wanted.name = step.state;
      if (!step.callee.empty()) {
        if (has(flow_.not_in_kernel, step.callee))
          wanted.evidence.unseen = "the method is only put in its slot here";
        else
          wanted.evidence.alternatives.push_back({step.callee, "", {}});
      } else if (const auto at = flow_.evidence.find(step.state); at != flow_.evidence.end()) {
        wanted.evidence = Evidence::parse(at->second);
      }
    }
    around_.push_back(steps_.size());
    steps_.push_back(std::move(wanted));
  }

  [[nodiscard]] bool required(const Wanted& wanted, const Names& whens) const {
    if (wanted.optional || has(flow_.without, wanted.name)) return false;
    if (!wanted.step->when.empty() && !whens.contains(wanted.step->when)) return false;
    if (!wanted.is_fn()) return true;
    return table_.has_effect(wanted.name) && !has(flow_.not_in_kernel, wanted.step->fn) &&
           !has(flow_.not_in_kernel, wanted.name);
  }
  [[nodiscard]] bool unplaced(const Wanted& wanted) const {
    return has(flow_.unplaced, wanted.step->fn) || has(flow_.unplaced, wanted.name);
  }
  [[nodiscard]] bool deferred(const Wanted& wanted) const {
    return wanted.is_fn() ? has(flow_.deferred, wanted.step->fn) || has(flow_.deferred, wanted.name)
                          : wanted.evidence.elsewhere;
  }
  [[nodiscard]] Names whens_in_run() const {
    Names names = all_whens_;
    std::erase_if(names, [&](const std::string& name) { return run_.calls(name).empty(); });
    return names;
  }

  [[nodiscard]] std::vector<Place> find(const Wanted& wanted) const {
    if (!wanted.is_fn()) return run_.places(wanted.evidence);
    if (wanted.any) return run_.all_calls();
    std::vector<Place> result;
    for (const std::string& name : wanted.names)
      result.insert(result.end(), run_.calls(name).begin(), run_.calls(name).end());
    std::sort(result.begin(), result.end(), [](const Place& a, const Place& b) { return a.begin < b.begin; });
    return result;
  }

  bool fail(std::string why) {
    if (report_.empty()) report_ = std::move(why);
    return false;
  }
  bool missing(const Wanted& wanted) {
    if (wanted.is_fn()) return fail(wanted.text() + " is missing: never called");
    if (!wanted.step->callee.empty())
      return fail(wanted.text() + " is missing: " + wanted.step->callee + " is never called");
    const auto evidence = flow_.evidence.find(wanted.step->state);
    if (evidence == flow_.evidence.end())
      return fail(wanted.text() + " has no entry in states.toml: say there what shows it");
    return fail(wanted.text() + " is missing: nothing shows it (" + evidence->second + ")");
  }

  // -- Functions --

  bool functions() {
    const Names whens = whens_in_run();
    const std::vector<size_t> in_order = ordered(whens);
    for (size_t i = 0; i < steps_.size(); ++i) {
      const Wanted& wanted = steps_[i];
      const bool placed = std::find(in_order.begin(), in_order.end(), i) != in_order.end();
      if (wanted.is_fn() && required(wanted, whens) && !placed && wanted.places.empty()) return missing(wanted);
    }
    return flow_.nesting ? nested(whens) : unnested(whens);
  }

  // The steps that are looked for in order, in the order that holds.
  [[nodiscard]] std::vector<size_t> ordered(const Names& whens) const {
    std::vector<size_t> result;
    auto wants = [&](const Wanted& wanted) { return required(wanted, whens) && !unplaced(wanted); };
    if (!flow_.kernel_order) {
      std::set<size_t> chosen;
      for (size_t i = 0; i < steps_.size(); ++i) {
        if (!wants(steps_[i]) || !(steps_[i].is_fn() || in_forest(steps_[i]))) continue;
        chosen.insert(i);
        // What is required because of the step around it lies below that step.
        for (const size_t above : steps_[i].above)
          if (steps_[above].is_fn() && steps_[above].name == steps_[i].step->when) chosen.insert(above);
      }
      return {chosen.begin(), chosen.end()};
    }
    // A name may stand in several steps: its n-th place in the list is its n-th step, as far as there are so many.
    std::map<std::string, size_t> seen;
    const auto& list =
        flow_.shown.empty() || flow_.kernel_order_all.empty() ? *flow_.kernel_order : flow_.kernel_order_all;
    for (const std::string& name : list) {
      size_t skip = seen[name]++;
      std::optional<size_t> found;
      for (size_t i = 0; i < steps_.size(); ++i) {
        if (!steps_[i].is_fn() || (steps_[i].name != name && steps_[i].step->fn != name) || !wants(steps_[i])) continue;
        found = i;
        if (skip-- == 0) break;
      }
      if (found) result.push_back(*found);
    }
    return result;
  }
  // State steps that have a place among the functions, and something that shows them.
  [[nodiscard]] bool in_forest(const Wanted& wanted) const {
    return !flow_.kernel_order && wanted.step->callee.empty() && wanted.evidence.unseen.empty();
  }

  struct Forest {
    std::vector<Node> nodes;
    std::vector<size_t> roots;
  };

  [[nodiscard]] Forest forest(const Names& whens) const {
    Forest result;
    std::map<size_t, size_t> node_of;  // step -> node
    for (const size_t index : ordered(whens)) {
      const Wanted& wanted = steps_[index];
      const size_t node = result.nodes.size();
      result.nodes.emplace_back();
      result.nodes[node].wanted = &wanted;
      result.nodes[node].deferred = deferred(wanted);
      bool placed = false;
      for (const size_t above : wanted.above) {
        if (const auto parent = node_of.find(above); parent != node_of.end() && steps_[above].is_fn()) {
          result.nodes[parent->second].children.push_back(node);
          placed = true;
          break;
        }
        // Below a context that is not looked for itself: not in the task of what is above that.
        if (deferred(steps_[above])) result.nodes[node].deferred = true;
      }
      if (!placed) result.roots.push_back(node);
      node_of.emplace(index, node);
    }
    return result;
  }

  // Fills in where each node is found. Children come after their parent in `nodes`.
  void match(Forest& forest) const {
    for (size_t i = forest.nodes.size(); i-- > 0;) {
      Node& node = forest.nodes[i];
      for (const Place& place : node.wanted->places) {
        Match match{place, place.begin};
        if (holds(forest, node, match, nullptr)) node.matches.push_back(match);
      }
      node.index();
    }
  }

  // Whether the node's children are found in order inside `match`. If not, `failed` becomes the first that is not.
  bool holds(const Forest& forest, const Node& node, Match& match, size_t* failed) const {
    int64_t calls_after = match.begin;   // a call begins after the call before it was left
    int64_t begins_after = match.begin;  // a state change comes after the step before it has begun
    int64_t opens_after = match.begin;   // a call drawn below the state change before it: or is the one that it opens
    const Wanted* state = nullptr;
    for (const size_t child : node.children) {
      const Node& below = forest.nodes[child];
      const Match* found = nullptr;
      if (below.deferred) {
        found = below.first(match.begin);
      } else if (below.wanted->is_fn()) {
        found = below.ending_first(match.tid,
                                   std::max(calls_after, is_below(*below.wanted, state) ? opens_after : begins_after));
        if (found != nullptr && found->begin > match.end) found = nullptr;
        if (found != nullptr) {
          begins_after = std::max(begins_after, found->begin);
          calls_after = found->end;
          state = nullptr;
        }
      } else {
        found = below.ending_first(match.tid, begins_after);
        if (found != nullptr && found->begin > match.end) found = nullptr;
        if (found != nullptr) {
          opens_after = found->opens >= 0 ? std::max(begins_after, found->opens - 1) : found->begin;
          begins_after = found->begin;
          state = below.wanted;
        }
      }
      if (found == nullptr) {
        if (failed != nullptr) *failed = child;
        return false;
      }
      match.last = std::max(match.last, found->last);
    }
    return true;
  }

  [[nodiscard]] bool is_below(const Wanted& wanted, const Wanted* above) const {
    return above != nullptr &&
           std::any_of(wanted.above.begin(), wanted.above.end(), [&](size_t i) { return &steps_[i] == above; });
  }

  bool nested(const Names& whens) {
    const Forest base = forest({});
    const bool one_root =
        base.roots.size() == 1 && base.nodes[base.roots[0]].wanted->is_fn() && forest(all_whens_).roots.size() == 1;
    if (one_root)
      return each_way(*base.nodes[base.roots[0]].wanted, [this](const Names& ways, const std::vector<Place>& calls) {
        Forest tried = forest(ways);
        match(tried);
        const Node& root = tried.nodes[tried.roots[0]];
        auto holds = [&](const Place& call) {
          const Match* found = root.first(call.begin - 1);
          return found != nullptr && found->begin == call.begin && order_all_below(call);
        };
        return std::any_of(calls.begin(), calls.end(), holds) || explain(tried, tried.roots[0], calls);
      });

    Forest whole = forest(whens);
    match(whole);
    int64_t after = -1;
    int64_t opens = -1;  // the call that the state change before opens
    const Wanted* before = nullptr;
    for (const size_t root : whole.roots) {
      const Node& node = whole.nodes[root];
      if (node.matches.empty()) return explain(whole, root, node.wanted->places);
      const Match* found = node.first(after);
      if (opens >= 0 && is_below(*node.wanted, before))
        if (const Match* opened = node.first(opens - 1); opened != nullptr && opened->begin == opens) found = opened;
      if (found == nullptr)
        return fail(fmt::format("{} is out of place: not after {}", node.wanted->text(), before->text()));
      after = std::max(after, found->last);
      opens = found->opens;
      before = node.wanted;
    }
    return order_all_somewhere();
  }

  // Groups the calls of the root by which `when` occurs below them. `holds` says whether one of a group has everything
  // in place; a `when` that occurs below a finished call must occur in a group that holds.
  template <class Holds>
  bool each_way(const Wanted& root, Holds holds) {
    if (root.places.empty()) return missing(root);
    std::map<Names, std::vector<Place>> ways;
    for (const Place& call : root.places) ways[whens_below(call)].push_back(call);
    Names wanted, covered;
    bool any = false;
    std::string why;
    for (const auto& [names, calls] : ways) {
      const bool finished =
          std::any_of(calls.begin(), calls.end(), [](const Place& call) { return call.end != FOREVER; });
      if (finished) wanted.insert(names.begin(), names.end());
      report_.clear();
      if (holds(names, calls)) {
        any = true;
        covered.insert(names.begin(), names.end());
      } else {
        why = report_;
      }
    }
    report_.clear();
    if (!any) return fail(why);
    for (const std::string& name : wanted)
      if (!covered.contains(name)) return fail(fmt::format("{} occurs, but wherever it does, {}", name, why));
    return true;
  }

  [[nodiscard]] Names whens_below(const Place& call) const {
    Names names = all_whens_;
    std::erase_if(names, [&](const std::string& name) { return !first_below(name, call); });
    return names;
  }

  // Where the function is first called below the call; if it runs in a context of its own, anywhere after the call
  // begins.
  [[nodiscard]] std::optional<int64_t> first_below(const std::string& name, const Place& call) const {
    const bool anywhere = in_own_context_.contains(name);
    const std::vector<Place>& calls = run_.calls(name);
    const Place* found = first_after(calls, call.begin - 1);
    for (; found != nullptr && found != calls.data() + calls.size(); ++found) {
      if (anywhere) return found->begin;
      if (found->begin > call.end) break;
      if (found->tid == call.tid) return found->begin;
    }
    return std::nullopt;
  }

  bool order_all_below(const Place& call) {
    int64_t last = -1;
    std::string before;
    std::set<std::string> seen;
    for (const std::string& name : flow_.kernel_order_all) {
      if (!seen.insert(name).second || has(flow_.unplaced, name) || has(flow_.earlier_too, name)) continue;
      const auto first = first_below(name, call);
      if (!first) continue;
      if (*first < last) return fail(fmt::format("{} is out of place: it is first called before {}", name, before));
      last = *first;
      before = name;
    }
    return true;
  }
  bool order_all_somewhere() {
    if (flow_.kernel_order_all.empty()) return true;
    const std::vector<Place>& calls = run_.calls(flow_.kernel_order_all[0]);
    return calls.empty() ||
           std::any_of(calls.begin(), calls.end(), [&](const Place& call) { return order_all_below(call); });
  }

  // Names in order, without nesting. One root: below one call of it.
  bool unnested(const Names& whens) {
    const std::vector<size_t> base = ordered({});
    if (base.empty()) return true;
    const bool one_root =
        steps_[base[0]].is_fn() && steps_[base[0]].step->depth == 0 && flow_.deferred.empty() &&
        std::all_of(base.begin() + 1, base.end(), [&](size_t i) { return steps_[i].step->depth > 0; });
    if (!one_root) return sequence(ordered(whens), std::nullopt) && order_all_somewhere();
    return each_way(steps_[base[0]], [this](const Names& ways, const std::vector<Place>& calls) {
      const std::vector<size_t> list = ordered(ways);
      return std::any_of(calls.begin(), calls.end(),
                         [&](const Place& call) { return sequence(list, call) && order_all_below(call); });
    });
  }

  bool sequence(const std::vector<size_t>& list, const std::optional<Place>& call) {
    int64_t after = call ? call->begin - 1 : -1;
    const Wanted* before = nullptr;
    for (const size_t index : list) {
      const Wanted& wanted = steps_[index];
      const std::vector<Place>& at = wanted.places;
      if (at.empty()) return missing(wanted);
      const Place* found = first_after(at, after);
      while (call && found != nullptr && found != at.data() + at.size() && found->tid != call->tid) ++found;
      if (found == nullptr || found == at.data() + at.size() || (call && found->begin > call->end))
        return fail(fmt::format("{} is out of place: not after {}", wanted.text(),
                                before != nullptr ? before->text() : "the start"));
      after = found->begin;
      before = &wanted;
    }
    return true;
  }

  // Why the node is at none of the places: says which step below it is to blame.
  bool explain(const Forest& forest, size_t index, const std::vector<Place>& at) {
    const Node& node = forest.nodes[index];
    if (at.empty()) return missing(*node.wanted);
    for (const size_t child : node.children)
      if (forest.nodes[child].matches.empty()) return explain(forest, child, forest.nodes[child].wanted->places);
    if (!report_.empty()) return false;  // everything is there: kernel_order_all has spoken
    // Each child is found somewhere. The call that comes furthest tells most.
    size_t best = 0, blamed = node.children.empty() ? 0 : node.children[0];
    Place where = at[0];
    for (const Place& place : at) {
      Match match{place, place.begin};
      size_t failed = 0;
      if (holds(forest, node, match, &failed)) continue;
      const auto come =
          static_cast<size_t>(std::find(node.children.begin(), node.children.end(), failed) - node.children.begin());
      if (come < best) continue;
      best = come;
      blamed = failed;
      where = place;
    }
    const Node& child = forest.nodes[blamed];
    const bool inside = std::any_of(child.matches.begin(), child.matches.end(), [&](const Match& m) {
      return m.tid == where.tid && m.begin > where.begin && m.begin < where.end;
    });
    if (child.deferred)
      return fail(fmt::format("{} is out of place: it never begins after {}", child.wanted->text(), node.wanted->name));
    if (!inside)
      return fail(
          fmt::format("{} is out of place: it occurs, but not below {}", child.wanted->text(), node.wanted->name));
    return fail(fmt::format("{} is out of place: below {} it does not come after {} has ended", child.wanted->text(),
                            node.wanted->name, forest.nodes[node.children[best - 1]].wanted->name));
  }

  // -- States --

  bool states() {
    const Names whens = whens_in_run();
    // With neither kernel_order nor a state flow they have been looked for among the functions.
    const bool among_functions = flow_.check == Check::order && !flow_.kernel_order;
    std::vector<const Wanted*> list;
    auto take = [&](const Wanted& wanted) {
      if (!wanted.is_fn() && required(wanted, whens) && wanted.evidence.unseen.empty()) list.push_back(&wanted);
    };
    if (flow_.kernel_states) {
      for (const std::string& name : *flow_.kernel_states)
        for (const Wanted& wanted : steps_)
          if (wanted.name == name) take(wanted);
    } else {
      for (const Wanted& wanted : steps_) take(wanted);
    }
    int64_t after = -1;
    const Wanted* before = nullptr;
    for (const Wanted* wanted : list) {
      const std::vector<Place>& at = wanted->places;
      if (at.empty()) return missing(*wanted);
      if (among_functions || !wanted->step->callee.empty() || flow_.check == Check::set) continue;
      const Place* found = first_after(at, after);
      if (found == nullptr)
        return fail(fmt::format("{} is out of place: not after {}", wanted->text(), before->text()));
      after = found->begin;
      before = wanted;
    }
    return true;
  }

  const FlowTable& table_;
  const Flow& flow_;
  Run run_;
  std::vector<Wanted> steps_;
  std::vector<size_t> around_;  // while the steps are read: those around the next one
  Names all_whens_;
  Names in_own_context_;  // deferred steps and what is below them
  std::string report_;    // the first thing that is wrong
};

// ---- The tables -----------------------------------------------------------------------------------------------------

std::string text_of(const toml::table& from, std::string_view key) { return from[key].value_or(std::string()); }

std::vector<std::string> list_of(const toml::table& from, std::string_view key) {
  std::vector<std::string> result;
  if (const toml::array* list = from[key].as_array())
    for (const toml::node& item : *list) result.push_back(item.value_or(std::string()));
  return result;
}

std::optional<std::vector<std::string>> list_if_any(const toml::table& from, std::string_view key) {
  if (!from.contains(key)) return std::nullopt;
  return list_of(from, key);
}

[[noreturn]] void wrong(const std::string& flow, const std::string& why) {
  throw std::runtime_error("flow " + flow + ": " + why);
}

Step step_of(const toml::table& from) {
  Step step;
  step.fn = text_of(from, "fn");
  step.state = text_of(from, "state");
  step.file = text_of(from, "file");
  step.depth = from["depth"].value_or(0u);
  step.optional = from["optional"].value_or(false);
  step.callee = text_of(from, "callee");
  step.callee_any = list_if_any(from, "callee_any");
  step.kernel_name = text_of(from, "kernel_name");
  step.when = text_of(from, "when");
  return step;
}

Flow flow_of(const toml::table& from) {
  Flow flow;
  flow.id = text_of(from, "id");
  flow.profile = text_of(from, "profile");
  const std::string check = text_of(from, "check");
  if (check != "order" && check != "set" && check != "state")
    wrong(flow.id, "check is \"" + check + "\"; order, set or state");
  flow.check = check == "order" ? Check::order : check == "set" ? Check::set : Check::state;
  flow.nesting = !has(list_of(from, "seed_vs_kernel"), "order");
  flow.kernel_order = list_if_any(from, "kernel_order");
  flow.kernel_order_all = list_of(from, "kernel_order_all");
  flow.kernel_states = list_if_any(from, "kernel_states");
  flow.not_in_kernel = list_of(from, "not_in_kernel");
  flow.deferred = list_of(from, "deferred");
  flow.unplaced = list_of(from, "unplaced");
  flow.continues = text_of(from, "continues");
  flow.at = text_of(from, "at");
  if (const toml::array* steps = from["steps"].as_array())
    for (const toml::node& step : *steps) flow.steps.push_back(step_of(*step.as_table()));
  return flow;
}

}  // namespace

FlowTable::FlowTable(const std::string& flows_toml, const std::string& states_toml) {
  const toml::table flows = toml::parse(std::string_view(flows_toml), std::string_view("flows.toml"));
  const toml::table states = toml::parse(std::string_view(states_toml), std::string_view("states.toml"));
  if (const toml::array* list = flows["no_effect"].as_array())
    for (const toml::node& item : *list) no_effect_.push_back(text_of(*item.as_table(), "fn"));
  if (const toml::array* list = flows["flow"].as_array())
    for (const toml::node& item : *list) flows_.push_back(flow_of(*item.as_table()));

  for (const Flow& it : flows_) {
    if (it.continues.empty()) continue;
    const Flow& above = flow(it.continues);
    const auto at =
        std::count_if(above.steps.begin(), above.steps.end(), [&](const Step& step) { return step.fn == it.at; });
    if (at != 1 || it.steps.empty() || it.steps[0].fn != it.at)
      wrong(it.id, "it should begin with " + it.at + " and " + it.continues + " should name that once");
  }
  for (const auto& [key, node] : states) {
    const std::string id(key.str());
    const auto at = std::find_if(flows_.begin(), flows_.end(), [&](const Flow& it) { return it.id == id; });
    const toml::table* entry = node.as_table();
    if (at == flows_.end() || entry == nullptr) wrong(id, "states.toml has it, flows.toml does not");
    auto named = [&](const std::string& name, bool fn_too) {
      return std::any_of(at->steps.begin(), at->steps.end(),
                         [&](const Step& step) { return step.state == name || (fn_too && step.fn == name); });
    };
    at->shown = list_of(*entry, "shown");
    at->without = list_of(*entry, "without");
    at->earlier_too = list_of(*entry, "earlier_too");
    for (const std::string& name : at->without)
      if (!named(name, true)) wrong(id, "states.toml does without \"" + name + "\", which is no step of it");
    for (const std::string& name : at->earlier_too)
      if (!has(at->kernel_order_all, name))
        wrong(id, "states.toml knows \"" + name + "\" earlier too, which kernel_order_all does not name");
    for (const std::string& name : at->shown)
      if (!named(name, true)) wrong(id, "states.toml wants \"" + name + "\" shown, which is no step of it");
    for (const auto& [step, evidence] : *entry) {
      if (step.str() == "shown" || step.str() == "without" || step.str() == "earlier_too") continue;
      if (!named(std::string(step.str()), false))
        wrong(id, "\"" + std::string(step.str()) + "\" in states.toml is no state step of it");
      at->evidence[std::string(step.str())] = evidence.value_or(std::string());
      (void)Evidence::parse(at->evidence[std::string(step.str())]);  // throws if it is not understood
    }
  }
}

const Flow& FlowTable::flow(std::string_view id) const {
  const auto at = std::find_if(flows_.begin(), flows_.end(), [&](const Flow& flow) { return flow.id == id; });
  if (at == flows_.end()) wrong(std::string(id), "not in flows.toml");
  return *at;
}

bool FlowTable::has_effect(std::string_view fn) const { return !has(no_effect_, fn); }

std::vector<Step> FlowTable::whole(std::string_view id) const {
  const Flow* top = &flow(id);
  while (!top->continues.empty()) top = &flow(top->continues);
  const std::function<std::vector<Step>(const Flow&)> splice = [&](const Flow& from) {
    std::vector<Step> result;
    for (const Step& step : from.steps) {
      const auto below = std::find_if(flows_.begin(), flows_.end(), [&](const Flow& it) {
        return it.continues == from.id && !step.fn.empty() && it.at == step.fn;
      });
      if (below == flows_.end()) {
        result.push_back(step);
        continue;
      }
      for (Step spliced : splice(*below)) {
        spliced.depth += step.depth;
        result.push_back(std::move(spliced));
      }
    }
    return result;
  };
  return splice(*top);
}

std::vector<std::string> held(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + " cannot be read");
  std::vector<std::string> ids;
  for (std::string line; std::getline(file, line);) {
    line.resize(std::min(line.size(), line.find('#')));
    std::erase_if(line, [](unsigned char c) { return std::isspace(c) != 0; });
    if (!line.empty()) ids.push_back(line);
  }
  return ids;
}

Verdict check(const FlowTable& table, std::string_view id, std::span<const Recording> runs) {
  const Flow& flow = table.flow(id);
  if (runs.empty()) return {false, fmt::format("flow {}: no run to look at", flow.id)};
  for (const Recording& run : runs)
    if (run.status != Recording::Status::whole || run.lost > 0)
      return {false,
              fmt::format("flow {}: the recording has gaps: {} events are lost. {}", flow.id, run.lost, run.problem)};
  if (flow.check == Check::set) {
    std::map<std::string, bool> there;
    for (const Recording& run : runs)
      for (const auto& [name, seen] : Checker(table, flow, run).names_of_set()) there[name] = there[name] || seen;
    Verdict verdict{true, ""};
    for (const Recording& run : runs) {
      Verdict one;
      Checker(table, flow, run).count(one);
      if (one.functions.shown > verdict.functions.shown) verdict.functions = one.functions;
      if (one.states.of != 0) verdict.states = one.states;
    }
    for (const auto& [name, seen] : there)
      if (!seen)
        return {false, fmt::format("flow {}: {} is missing", flow.id, name), verdict.functions, verdict.states};
    return verdict;
  }
  Verdict verdict;
  for (const Recording& run : runs) {
    Verdict next = Checker(table, flow, run).run();
    if (next.conforms) return next;
    if (verdict.report.empty()) verdict = std::move(next);
  }
  return verdict;
}

std::pair<unsigned, unsigned> required_steps(const FlowTable& table, const Flow& flow) {
  static const Recording nothing;
  Verdict verdict;
  Checker(table, flow, nothing).count(verdict);
  return {verdict.functions.of, verdict.states.of};
}

const FlowTable& table() {
  auto read = [](const std::string& name) {
    const std::string path = std::string(WEIR_SOURCE_DIR) + "/tests/flows/" + name;
    std::ifstream file(path);
    if (!file) throw std::runtime_error(path + " cannot be read");
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  static const FlowTable the_table(read("flows.toml"), read("states.toml"));
  return the_table;
}

testing::AssertionResult conforms(std::string_view id, const Recording& run) {
  return conforms(id, std::span(&run, 1));
}

testing::AssertionResult conforms(std::string_view id, std::span<const Recording> runs) {
  const Verdict verdict = check(table(), id, runs);
  return verdict.conforms ? testing::AssertionSuccess() : testing::AssertionFailure() << verdict.report;
}

}  // namespace weir::flows
