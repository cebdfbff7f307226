// tests/flows/synthetic.hpp
//
// Recordings written by hand, for tests of what reads them.
//
//   recording_of("do_swap_page { lookup_swap_cache { } swap_map 66 2 1 } @2 kswapd {")
//
//   name {         the function is entered       }   the innermost call of the task is left
//   KIND s b a     a state change of the innermost function: subject, old, new; decimal or 0x
//   @2             what follows happens in task 2 (until then: task 1)
//   }name          a call of this name is left, entered or not
//
// Every event takes 10 ns. Files are "name.cpp" with the function's name.
#pragma once

#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "base/flow.hpp"
#include "record/reader.hpp"

namespace weir {

class Script {
 public:
  Recording run(std::string_view script) {
    recording_.status = Recording::Status::whole;
    recording_.sites.push_back({});
#define X(name) recording_.states.emplace_back(#name);
    WEIR_STATES(X)
#undef X
    std::istringstream words{std::string(script)};
    for (std::string word; words >> word;) {
      if (word[0] == '@') {
        tid_ = std::stoi(word.substr(1));
      } else if (word[0] == '}') {
        leave(word.substr(1));
      } else if (const uint16_t kind = state(word); kind != 0) {
        FlowEvent& event = add(kind, stack_[tid_].empty() ? "-" : stack_[tid_].back());
        for (uint64_t& value : event.value) {
          words >> word;
          value = std::stoull(word, nullptr, 0);
        }
      } else {
        std::string brace;
        if (!(words >> brace) || brace != "{")
          throw std::runtime_error("script: '" + word + "' is no state change and has no '{'");
        stack_[tid_].push_back(word);
        add(FlowEvent::ENTER, word);
      }
    }
    recording_.recorded = recording_.events.size();
    return std::move(recording_);
  }

 private:
  uint16_t state(const std::string& word) const {
    for (size_t i = 0; i < recording_.states.size(); ++i)
      if (recording_.states[i] == word) return static_cast<uint16_t>(FlowEvent::STATE + i);
    return 0;
  }
  void leave(std::string name) {
    auto& stack = stack_[tid_];
    if (name.empty()) {
      if (stack.empty()) throw std::runtime_error("script: a '}' too many");
      name = stack.back();
      stack.pop_back();
    }
    add(FlowEvent::LEAVE, name);
  }
  FlowEvent& add(uint16_t kind, const std::string& function) {
    const auto [at, is_new] = sites_.try_emplace(function, static_cast<uint16_t>(recording_.sites.size()));
    if (is_new) recording_.sites.push_back({function, function + ".cpp", ""});
    if (recording_.comm(tid_).empty()) recording_.tasks.push_back({tid_, tid_, "task" + std::to_string(tid_)});
    FlowEvent event;
    event.time = 10 * recording_.events.size();
    event.tid = tid_;
    event.kind = kind;
    event.site = at->second;
    recording_.events.push_back(event);
    return recording_.events.back();
  }

  Recording recording_;
  std::map<std::string, uint16_t> sites_;
  std::map<int32_t, std::vector<std::string>> stack_;
  int32_t tid_ = 1;
};

inline Recording recording_of(std::string_view script) { return Script().run(script); }

}  // namespace weir
