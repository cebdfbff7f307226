// src/record/flow_json.hpp
//
// A recording as JSON, for pages and other programs:
//
//   { "status", "problem", "first", "lost", "facts": {key: value},
//     "notes": [{at, time, key, text}],
//     "tasks": [{tid, pid, comm, "items": [
//        {depth, call, file, event, time, leave, arguments, result},    event, time: absent if it ran before; leave: null
//        {depth, state, subject, before, after, text, event, time} ]}] }
//
// Items stand in a flat list in the order in which they began: a tree as deep as a call chain would break readers that
// recurse. A call without a leave is still running. Numbers of 64 bits are strings where they may pass 2^53.
//
// A header, because it throws where record/'s library does not.
#pragma once

#include <nlohmann/json.hpp>

#include "record/flow_tree.hpp"

namespace weir {

[[nodiscard]] inline nlohmann::json flow_json(const Recording& recording, const FlowStyles& styles = {}) {
  using nlohmann::json;
  auto number = [](uint64_t x) -> json {
    if (x < uint64_t{1} << 53) return x;
    return std::to_string(x);
  };
  auto task_of = [&](int32_t tid) {
    for (const Recording::Task& task : recording.tasks)
      if (task.tid == tid) return task;
    return Recording::Task{tid, 0, ""};
  };
  static constexpr const char* STATUS[] = {"whole", "broken", "refused"};

  json facts = json::object(), notes = json::array(), tasks = json::array();
  for (const Recording::Fact& fact : recording.facts) facts[fact.key] = fact.value;
  for (const Recording::Note& note : recording.notes)
    notes.push_back({{"at", note.at}, {"time", number(note.time)}, {"key", note.key}, {"text", note.text}});
  for (const TaskFlow& flow : flow_forest(recording)) {
    json items = json::array();
    for (const FlowItem& item : flow.items) {
      json out{{"depth", item.depth}};
      if (item.event != FlowItem::NONE) {
        out["event"] = item.event;
        out["time"] = number(recording.events[item.event].time);
      }
      if (item.is_call) {
        const Recording::Site& site = recording.sites[item.site];
        out["call"] = site.function;
        out["file"] = site.file;
        out["leave"] = item.leave != FlowItem::NONE ? json(item.leave) : json(nullptr);
        if (item.event != FlowItem::NONE)
          out["arguments"] = describe_arguments(recording, recording.events[item.event]);
        if (item.leave != FlowItem::NONE)
          if (std::string result = describe_result(recording, recording.events[item.leave], styles); !result.empty())
            out["result"] = std::move(result);
      } else {
        const FlowEvent& event = recording.events[item.event];
        out["state"] = recording.state_name(event);
        out["subject"] = number(event.value[0]);
        out["before"] = number(event.value[1]);
        out["after"] = number(event.value[2]);
        out["text"] = describe_state(recording, event, styles);
      }
      items.push_back(std::move(out));
    }
    const Recording::Task task = task_of(flow.tid);
    tasks.push_back({{"tid", flow.tid}, {"pid", task.pid}, {"comm", task.comm}, {"items", std::move(items)}});
  }
  return {{"status", STATUS[static_cast<int>(recording.status)]},
          {"problem", recording.problem},
          {"first", number(recording.first)},
          {"lost", number(recording.lost)},
          {"facts", std::move(facts)},
          {"notes", std::move(notes)},
          {"tasks", std::move(tasks)}};
}

/// Its text, in one line. Names that are not UTF-8 get replacement characters.
[[nodiscard]] inline std::string flow_json_text(const Recording& recording, const FlowStyles& styles = {}) {
  return flow_json(recording, styles).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace weir
