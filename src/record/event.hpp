// src/record/event.hpp
//
// One event as it lies in a recorder's memory and in a file, 40 bytes, little-endian:
//
//   | time 8 | tid 4 | kind 2 | site 2 | value[0] 8 | value[1] 8 | value[2] 8 |
//
// and the numbers of the file around it (README.md draws the whole).
#pragma once

#include <bit>
#include <cstdint>

namespace weir {

static_assert(std::endian::native == std::endian::little, "recordings are written as they lie in memory");

struct FlowEvent {
  /// Kinds. A state change is STATE + its number among the file's state names.
  static constexpr uint16_t ENTER = 1, LEAVE = 2, STATE = 16;

  uint64_t time = 0;  ///< ns of the machine's clock
  int32_t tid = 0;
  uint16_t kind = 0;
  uint16_t site = 0;       ///< number among the file's sites; 0: the recorder knew too many
  uint64_t value[3] = {};  ///< ENTER: arguments; LEAVE: result, has one, 0; a state change: subject, before, after

  [[nodiscard]] bool is_enter() const { return kind == ENTER; }
  [[nodiscard]] bool is_leave() const { return kind == LEAVE; }
  [[nodiscard]] bool is_state() const { return kind >= STATE; }
  [[nodiscard]] uint16_t state() const { return static_cast<uint16_t>(kind - STATE); }
};
static_assert(sizeof(FlowEvent) == 40);

/// Opens every recording.
struct RecordingHeader {
  static constexpr uint64_t MAGIC = 0x0a63657272696577;  // "weirrec\n"
  static constexpr uint32_t VERSION = 1;
  uint64_t magic = MAGIC;
  uint32_t version = VERSION;
  uint32_t event_size = sizeof(FlowEvent);
};
static_assert(sizeof(RecordingHeader) == 16);

/// What follows the header: blocks, each a tag, the bytes of its payload, and the payload.
struct BlockHeader {
  uint32_t tag = 0;
  uint32_t bytes = 0;
};

[[nodiscard]] constexpr uint32_t block_tag(const char (&name)[5]) {
  return static_cast<uint32_t>(name[0]) | static_cast<uint32_t>(name[1]) << 8 | static_cast<uint32_t>(name[2]) << 16 |
         static_cast<uint32_t>(name[3]) << 24;
}
inline constexpr uint32_t BLOCK_STATES = block_tag("STAT"), BLOCK_SITE = block_tag("SITE"),
                          BLOCK_TASK = block_tag("TASK"), BLOCK_FACT = block_tag("FACT"),
                          BLOCK_NOTE = block_tag("NOTE"), BLOCK_EVENTS = block_tag("EVNT"),
                          BLOCK_DONE = block_tag("DONE");

}  // namespace weir
