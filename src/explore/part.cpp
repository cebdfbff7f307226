// src/explore/part.cpp: see part.hpp
#include "explore/part.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <unordered_map>
#include <unordered_set>

#include "mm/pgtable_types.hpp"
#include "mm/swapops.hpp"
#include "mm/types.hpp"

namespace weir::explore {

namespace {

// ---- What remains of the events that are left out
// ---------------------------------------------------------------------

/// How a state's events are told in brief.
enum class Told : uint8_t {
  no,      // it changes nothing that stays
  change,  // the first old value, the last new one
  words,   // the last two values
  lru,     // the last place: lists have an order
  lru_tail,
  owner,  // mm_task: which address space a task has
};

Told told_how(std::string_view state) {
  for (const char* name : {"pte", "mapcount", "page_count", "page_flags", "swap_map", "swap_cache", "page_cache",
                           "nr_free", "free_area", "pcp_count", "zone_mark", "rss", "swap_area"})
    if (state == name) return Told::change;
  for (const char* name : {"page_mapping", "zone_span", "task_comm"})
    if (state == name) return Told::words;
  return state == "lru"        ? Told::lru
         : state == "lru_tail" ? Told::lru_tail
         : state == "mm_task"  ? Told::owner
                               : Told::no;
}

class Brief {
 public:
  explicit Brief(const Recording& recording) {
    for (const std::string& state : recording.states) how_.push_back(told_how(state));
    // The end of a list means nothing in a file that does not name lists.
    if (std::find(how_.begin(), how_.end(), Told::lru) == how_.end())
      std::replace(how_.begin(), how_.end(), Told::lru_tail, Told::no);
    objects_.resize(how_.size());
    const auto number = [&](Told how) {
      const auto at = std::find(how_.begin(), how_.end(), how);
      return static_cast<uint16_t>(at - how_.begin());
    };
    lru_ = number(Told::lru), lru_tail_ = number(Told::lru_tail);
  }

  void add(const FlowEvent& event, bool kept) {
    if (!event.is_state() || how_[event.state()] == Told::no) return;
    const uint16_t state = event.state() == lru_tail_ ? lru_ : event.state();
    const Told how = how_[event.state()];
    // A task's address space is the task's affair.
    const uint64_t subject = how == Told::owner ? std::max(event.value[1], event.value[2]) : event.value[0];
    const auto [at, is_new] = objects_[state].try_emplace(subject);
    Object& object = at->second;
    if (is_new && (how == Told::change || how == Told::lru)) object.now[0] = event.value[1];
    if (!kept && !object.touched) {
      object.touched = true;
      object.then[0] = object.now[0];
      touched_.push_back({state, subject});
    }
    switch (how) {
      case Told::change: object.now[0] = event.value[2]; break;
      case Told::words: object.now[0] = event.value[1], object.now[1] = event.value[2]; break;
      case Told::lru: object.now[0] = event.value[2], object.place = ++newest_; break;
      case Told::lru_tail: object.place = --oldest_; break;
      case Told::owner: object.now[0] = event.value[2] != 0 ? event.value[0] + 1 : 0; break;
      case Told::no: break;
    }
  }

  /// The changes since the last call, and none of them is left to tell.
  std::vector<FlowEvent> changes(uint64_t time) {
    std::vector<FlowEvent> out;
    std::vector<std::pair<uint64_t, const Object*>> listed;
    const auto put = [&](uint16_t state, uint64_t subject, uint64_t before, uint64_t after) {
      FlowEvent event;
      event.time = time;
      event.kind = static_cast<uint16_t>(FlowEvent::STATE + state);
      event.value[0] = subject, event.value[1] = before, event.value[2] = after;
      out.push_back(event);
    };
    for (const auto& [state, subject] : touched_) {
      Object& object = objects_[state].at(subject);
      object.touched = false;
      switch (how_[state]) {
        case Told::change:
          if (object.then[0] != object.now[0]) put(state, subject, object.then[0], object.now[0]);
          break;
        case Told::words: put(state, subject, object.now[0], object.now[1]); break;
        case Told::owner:
          if (object.then[0] == object.now[0]) break;
          if (object.then[0] != 0) put(state, object.then[0] - 1, subject, 0);
          if (object.now[0] != 0) put(state, object.now[0] - 1, 0, subject);
          break;
        default: listed.emplace_back(subject, &object);
      }
    }
    touched_.clear();
    // Whoever came to the new end last is first there; to the old end, last. A page that is on no list has no place.
    std::sort(listed.begin(), listed.end(),
              [](const auto& a, const auto& b) { return std::abs(a.second->place) < std::abs(b.second->place); });
    for (const auto& [pfn, object] : listed) {
      put(lru_, pfn, object->then[0], object->now[0]);
      if (object->place < 0 && object->now[0] < NR_LRU_LISTS) put(lru_tail_, pfn, object->now[0], 0);
    }
    return out;
  }

 private:
  struct Object {
    uint64_t now[2] = {0, 0};
    uint64_t then[1] = {0};  // before the events that are left out
    int64_t place = 0;       // lru: when it came to the new end (above 0) or to the old one
    bool touched = false;
  };
  std::vector<Told> how_;                                      // [state]
  std::vector<std::unordered_map<uint64_t, Object>> objects_;  // [state]
  std::vector<std::pair<uint16_t, uint64_t>> touched_;
  uint16_t lru_ = 0, lru_tail_ = 0;
  int64_t newest_ = 0, oldest_ = 0;
};

// ---- What is kept
// -------------------------------------------------------------------------------------------------------

/// "pswpin:3" -> the event of the third of that name.
size_t find_event(const Recording& recording, const std::string& around) {
  uint64_t number = 0;
  const char* end = around.data() + around.size();
  if (const auto [at, error] = std::from_chars(around.data(), end, number); error == std::errc() && at == end) {
    if (number < recording.first || number - recording.first >= recording.events.size())
      throw ExploreError(fmt::format("--around {}: the recording has events {} to {}", around, recording.first,
                                     recording.first + recording.events.size() - 1));
    return number - recording.first;
  }
  std::string name = around;
  uint64_t wanted = 1;
  if (const size_t colon = around.rfind(':'); colon != std::string::npos) {
    const auto [at, error] = std::from_chars(around.data() + colon + 1, end, wanted);
    if (error != std::errc() || at != end || wanted == 0)
      throw ExploreError(fmt::format("--around {}: after the colon stands which one, from 1", around));
    name = around.substr(0, colon);
  }
  // vmstat's names for what the recording names as state changes.
  if (name == "pswpin") name = "swap_read";
  if (name == "pswpout") name = "swap_write";
  if (name == "pgfault") name = "fault";
  uint64_t seen = 0;
  for (size_t i = 0; i < recording.events.size(); ++i) {
    const FlowEvent& e = recording.events[i];
    const bool hit =
        e.is_state() ? recording.state_name(e) == name : e.is_enter() && recording.site(e).function == name;
    if (hit && ++seen == wanted) return i;
  }
  throw ExploreError(fmt::format("--around {}: {}", around,
                                 seen == 0 ? "no function and no state of that name is in the recording"
                                           : fmt::format("there are only {}", seen)));
}

using Kept = std::vector<bool>;

void keep_task(const Recording& recording, const std::string& task, Kept& kept) {
  std::unordered_set<int32_t> tids;
  for (const Recording::Task& t : recording.tasks)
    if (t.comm == task || std::to_string(t.tid) == task) tids.insert(t.tid);
  if (tids.empty())
    throw ExploreError(fmt::format("--task {}: no task of that name or number is in the recording", task));
  for (size_t i = 0; i < kept.size(); ++i)
    if (!tids.contains(recording.events[i].tid)) kept[i] = false;
}

/// The page at an address, through frames and slots: what its PTEs map, until that is free, the slots that hold its
/// bytes, and the PTEs of others that share them.
class Life {
 public:
  /// mm 0: in whatever address space.
  Life(const Recording& recording, uint64_t mm, uint64_t address) : mm_(mm), address_(address & LOW48 & PAGE_MASK) {
    for (const std::string& state : recording.states) names_.push_back(kind_of(state));
    for (const Recording::Task& task : recording.tasks) pid_of_[task.tid] = static_cast<uint64_t>(task.pid);
  }

  /// Does the event concern it?
  bool concerns(const FlowEvent& e) {
    if (!e.is_state()) return false;
    switch (names_[e.state()]) {
      case Name::pte: {
        if (e.value[0] >> 48 == 0) return false;
        if (is_the_address(e.value[0]) || followed(e.value[1]) || followed(e.value[2])) ptes_.insert(e.value[0]);
        if (!ptes_.contains(e.value[0])) return false;
        follow(e.value[2]);
        return true;
      }
      case Name::frame: return frames_.contains(e.value[0]);
      case Name::count:
        if (!frames_.contains(e.value[0])) return false;
        if (e.value[2] == 0) frames_.erase(e.value[0]);
        return true;
      case Name::slot_taken:  // for which frame
        if (frames_.contains(e.value[2])) slots_.insert(e.value[0]);
        return slots_.contains(e.value[0]);
      case Name::slot: return slots_.contains(e.value[0]);
      case Name::swap_map:
        if (!slots_.contains(e.value[0])) return false;
        if (e.value[2] == 0) slots_.erase(e.value[0]);
        return true;
      case Name::swap_cache: {
        const uint64_t pfn = std::max(e.value[1], e.value[2]) - 1;
        const bool ours = slots_.contains(e.value[0]) || frames_.contains(pfn);
        if (ours) slots_.insert(e.value[0]), frames_.insert(pfn);
        return ours;
      }
      case Name::fault: {
        const auto pid = pid_of_.find(e.tid);
        const auto mm = pid == pid_of_.end() ? mm_of_.end() : mm_of_.find(pid->second);
        const uint64_t subject = (mm == mm_of_.end() ? 0 : mm->second << 48) | (e.value[0] & LOW48 & PAGE_MASK);
        return is_the_address(subject) || ptes_.contains(subject);
      }
      case Name::owner:
        if (e.value[2] != 0) mm_of_[e.value[2]] = e.value[0];
        return true;
      case Name::end: return true;
      case Name::other: return false;
    }
    return false;
  }

 private:
  static constexpr uint64_t LOW48 = (uint64_t{1} << 48) - 1;
  enum class Name : uint8_t { other, pte, frame, count, slot, slot_taken, swap_map, swap_cache, fault, owner, end };
  static Name kind_of(std::string_view state) {
    for (const char* name : {"mapcount", "page_flags", "page_mapping", "lru", "lru_tail", "page_keep", "page_freed"})
      if (state == name) return Name::frame;
    for (const char* name : {"swap_write", "swap_read", "frontswap"})
      if (state == name) return Name::slot;
    for (const char* name : {"fault", "fault_anonymous", "fault_return"})
      if (state == name) return Name::fault;
    for (const char* name : {"task_exit", "oom_kill", "oom_select"})
      if (state == name) return Name::end;
    return state == "pte"          ? Name::pte
           : state == "swap_slot"  ? Name::slot_taken
           : state == "mm_task"    ? Name::owner
           : state == "page_count" ? Name::count
           : state == "swap_map"   ? Name::swap_map
           : state == "swap_cache" ? Name::swap_cache
                                   : Name::other;
  }
  [[nodiscard]] bool is_the_address(uint64_t subject) const {
    return (subject & LOW48 & PAGE_MASK) == address_ && (mm_ == 0 || subject >> 48 == mm_);
  }
  [[nodiscard]] bool followed(uint64_t value) const {
    const Pte pte{value};
    if (pte_none(pte) || is_file_pte(pte)) return false;
    return is_swap_pte(pte) ? slots_.contains(decode_swap_pte(pte).val) : frames_.contains(pte_pfn(pte).v);
  }
  void follow(uint64_t value) {
    const Pte pte{value};
    if (pte_none(pte) || is_file_pte(pte)) return;
    if (pte_present(pte) && pte_special(pte)) return;  // the zero page is everybody's
    if (is_swap_pte(pte))
      slots_.insert(decode_swap_pte(pte).val);
    else
      frames_.insert(pte_pfn(pte).v);
  }

  uint64_t mm_, address_;
  std::vector<Name> names_;
  std::unordered_set<uint64_t> ptes_, frames_, slots_;
  std::unordered_map<int32_t, uint64_t> pid_of_;
  std::unordered_map<uint64_t, uint64_t> mm_of_;
};

/// The events that concern the page, and the calls they are in; of small calls everything.
void keep_life(const Recording& recording, const std::string& text, Kept& kept) {
  uint64_t mm = 0, address = 0;
  const char* end = text.data() + text.size();
  const char* from = text.data();
  const size_t colon = text.find(':');
  bool good = true;
  if (colon != std::string::npos) {
    const auto [at, error] = std::from_chars(from, from + colon, mm);
    good = error == std::errc() && at == from + colon && mm != 0;
    from += colon + 1;
  }
  if (std::string_view(from, end).starts_with("0x")) from += 2;
  const auto [at, error] = std::from_chars(from, end, address, 16);
  if (!good || error != std::errc() || at != end)
    throw ExploreError(
        fmt::format("--life {}: wants an address, 0x7f0000001000, or one address space's, 3:0x7f0000001000", text));

  Life life(recording, mm, address);
  Kept wanted(kept.size(), false);
  struct Open {
    size_t enter;
    bool concerned = false;  // some event directly in it is wanted
    bool holds = false;      // some event below is wanted
  };
  std::unordered_map<int32_t, std::vector<Open>> open;
  bool any = false;
  constexpr size_t SMALL = 120;
  for (size_t i = 0; i < kept.size(); ++i) {
    const FlowEvent& e = recording.events[i];
    std::vector<Open>& calls = open[e.tid];
    if (e.is_enter()) {
      calls.push_back({i});
    } else if (e.is_leave()) {
      if (calls.empty()) continue;
      const Open call = calls.back();
      calls.pop_back();
      if (!call.holds) continue;
      wanted[call.enter] = wanted[i] = true;
      if (call.concerned && i - call.enter <= SMALL)
        for (size_t k = call.enter; k < i; ++k)
          if (recording.events[k].tid == e.tid) wanted[k] = true;
      if (!calls.empty()) calls.back().holds = true;
    } else if (life.concerns(e)) {
      any = wanted[i] = true;
      if (!calls.empty()) calls.back().concerned = calls.back().holds = true;
    }
  }
  for (const auto& [tid, calls] : open)
    for (const Open& call : calls)
      if (call.holds) wanted[call.enter] = true;
  if (!any) throw ExploreError(fmt::format("--life {}: nothing in the recording concerns that address", text));
  for (size_t i = 0; i < kept.size(); ++i) kept[i] = kept[i] && wanted[i];
}

}  // namespace

Part cut(Recording recording, const Window& window) {
  const size_t size = recording.events.size();
  Kept kept(size, window.around.empty());
  for (const std::string& around : window.around) {
    const size_t at = find_event(recording, around);
    for (size_t i = at > window.radius ? at - window.radius : 0; i < size && i <= at + window.radius; ++i)
      kept[i] = true;
  }
  for (size_t i = 0; i < size; ++i) {
    const uint64_t time = recording.events[i].time;
    if ((window.from_ns && time < *window.from_ns) || (window.to_ns && time > *window.to_ns)) kept[i] = false;
  }
  if (!window.task.empty()) keep_task(recording, window.task, kept);
  if (!window.life.empty()) keep_life(recording, window.life, kept);
  const auto count = static_cast<uint64_t>(std::count(kept.begin(), kept.end(), true));
  if (count == 0) throw ExploreError("there is no event in that part of the recording");
  if (count > MAX_EVENTS)
    throw ExploreError(
        fmt::format("{} events are more than a page holds ({}): ask for a part, with --around pswpin:1, --task NAME, "
                    "--life ADDRESS, or --from-time and --to-time",
                    count, MAX_EVENTS));

  Part part;
  std::vector<FlowEvent> events;
  events.reserve(count);
  std::vector<Recording::Gap> gaps;
  Brief brief(recording);
  uint64_t left_out = 0, missing = 0;
  auto gap = recording.gaps.begin();
  for (size_t i = 0; i < recording.events.size(); ++i) {
    const FlowEvent& event = recording.events[i];
    if (gap != recording.gaps.end() && gap->at == i)
      missing += gap->missing, gaps.push_back({events.size(), (gap++)->missing});
    if (kept[i] && left_out > 0) {
      part.left_out.push_back({events.size(), left_out, brief.changes(event.time)});
      left_out = 0;
    }
    brief.add(event, kept[i]);
    if (!kept[i]) {
      ++left_out;
      continue;
    }
    if (events.empty()) recording.first += i + missing;
    events.push_back(event);
  }
  recording.gaps = std::move(gaps);
  recording.events = std::move(events);
  part.recording = std::move(recording);
  return part;
}

Window usual_window(const Recording& recording) {
  Window window;
  if (recording.events.size() <= MAX_EVENTS) return window;
  for (const char* name : {"swap_read", "oom_kill", "reclaim_start"}) {
    for (const FlowEvent& event : recording.events) {
      if (!event.is_state() || recording.state_name(event) != name) continue;
      window.around = {name};
      return window;
    }
  }
  window.around = {std::to_string(recording.first + recording.events.size() - 1)};
  return window;
}

}  // namespace weir::explore
