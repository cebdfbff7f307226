// src/record/reader.hpp
//
// A recording as read back. Nothing in a file is believed: sizes, numbers and names are checked against the bytes that
// are there, so that parse() takes anything (it is what the fuzzer feeds).
//
//   whole     the end mark was found
//   broken    everything up to the break is here; `problem` says where it breaks
//   refused   not a recording of this version: `problem` says what to do; everything else is empty
//
// Ordinary C++: allocates. The recorder is recorder.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "record/event.hpp"

namespace weir {

class FlowRing;
struct FlowOutput;

struct Recording {
  enum class Status : uint8_t { whole, broken, refused };
  struct Site {
    std::string function, file, arguments;  ///< arguments: the expressions as written, comma separated
  };
  struct Task {
    int32_t tid = 0;
    int32_t pid = 0;  ///< 0: not told
    std::string comm;
  };
  struct Fact {
    std::string key, value;
  };
  struct Note {
    uint64_t at = 0;  ///< taken before events[at]; events.size() at the end
    uint64_t time = 0;
    std::string key, text;
  };

  Status status = Status::refused;
  std::string problem;              ///< for a person; empty when whole
  std::vector<FlowEvent> events;    ///< in the order recorded. Every site and state number in them is in the tables
  std::vector<Site> sites;          ///< [id]; [0] is the nameless one
  std::vector<std::string> states;  ///< [number]: the spelling of base/flow.hpp at the time of recording
  std::vector<Task> tasks;          ///< one a tid, in the order first named
  std::vector<Fact> facts;
  std::vector<Note> notes;
  uint64_t first = 0;     ///< number of events[0] since the start: what a ring had overwritten
  uint64_t recorded = 0;  ///< events since the start (0 unless whole)
  uint64_t lost = 0;      ///< missing between the first and the last
  struct Gap {
    size_t at = 0;  ///< before events[at]
    uint64_t missing = 0;
  };
  std::vector<Gap> gaps;  ///< where they are missing, in order

  [[nodiscard]] const Site& site(const FlowEvent& event) const { return sites[event.site]; }
  /// Empty for a number that has no name.
  [[nodiscard]] std::string_view state_name(const FlowEvent& event) const { return states[event.state()]; }
  /// Empty when unknown.
  [[nodiscard]] std::string_view comm(int32_t tid) const;
  [[nodiscard]] std::string_view fact(std::string_view key) const;
};

[[nodiscard]] Recording parse(std::span<const std::byte> bytes);

/// Reads a file. A file that cannot be read is refused, with its name and the host's reason.
[[nodiscard]] Recording read_recording(const std::string& path);

/// Appends a recording's bytes to `bytes`, which outlives it. Allocates: for simulations and tests.
[[nodiscard]] FlowOutput output_to(std::vector<std::byte>& bytes);

/// What a ring holds now.
[[nodiscard]] Recording snapshot(const FlowRing& ring);

}  // namespace weir
