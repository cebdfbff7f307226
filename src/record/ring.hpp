// src/record/ring.hpp
//
// The last events of a live process, at a cost that the process can bear. The ring is blocks of 127 events; each engine
// stack fills one of its own, so that an event is a few plain stores and threads do not meet:
//
//   | names | block n+1 | block n+2, lane 0: ....... | block n-3, lane 2: ....  | ... | block n, lane 1: ... |
//                 ^ oldest: the next to be taken          ^ still being filled: passed over
//
// A lane that has filled its block takes the oldest; so does one that has been slow and would soon be the oldest itself.
// The clock (the time-stamp counter) is read where something passes from one thread to another under a lock, for the
// 32nd event without one, and when the thread has been away; those between bear the time of the last one that has it.
// That a function is left is counted in the event before; changes of one page's flags and count in a row are one. The
// functions and states of base/flow_details.hpp and some page flags (mm/types.cpp) are left out. Writing out merges the
// lanes by time and makes the file of README.md.
//
// Everything lies in one piece of memory without a pointer in it. Where that is shared, whoever maps it writes the
// recording of a process that has died: an event counts from the moment that it is whole.
//
// Usable inside a fault: no malloc, no throw, no errno, no lock of mm.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/flow.hpp"
#include "record/names.hpp"
#include "record/output.hpp"

namespace weir {

struct RingMemory;

class FlowRing final : public FlowSink {
 public:
  /// Memory for at least `events`; those that take no event of their own come on top.
  [[nodiscard]] static size_t bytes_for(uint64_t events);

  /// `memory` is page-aligned, reads as zero (untouched parts stay untouched), and outlives this; its size is one that
  /// bytes_for() gave, for `events`.
  FlowRing(std::span<std::byte> memory, uint64_t events);
  FlowRing(const FlowRing&) = delete;
  FlowRing& operator=(const FlowRing&) = delete;
  /// In a forked child, which has memory of its own in the same place, zeroed: its recording begins here. Nobody
  /// records.
  void restart();

  [[nodiscard]] FlowNames& names();
  /// The pid of tasks that are named from now on.
  void set_process(int32_t pid) { process_ = pid; }
  [[nodiscard]] std::span<const std::byte> memory() const { return memory_; }

  /// Events since the start, and those of them that found no block.
  [[nodiscard]] uint64_t recorded() const;
  [[nodiscard]] uint64_t lost() const;

  void enter(const FlowSite& site, uint64_t a, uint64_t b, uint64_t c) override;
  void leave(const FlowSite& site) override;
  void leave_with(const FlowSite& site, uint64_t result) override;
  void state(const FlowSite& site, State what, uint64_t subject, uint64_t before, uint64_t after) override;

 private:
  void page(const FlowSite& site, uint16_t kind, uint64_t pfn, uint64_t change);
  static void one_more(const FlowLane& lane);
  static void look_at_clock(FlowLane& lane);
  bool go_on(EngineThread& here);
  bool next_block(FlowLane& lane);
  void append(uint16_t kind, const FlowSite& site, uint64_t a, uint64_t b, uint64_t c);
  void append_slowly(uint16_t kind, const FlowSite& site, uint64_t a, uint64_t b, uint64_t c);
  static void put(FlowLane& lane, uint16_t kind, uint64_t id, uint64_t a, uint64_t b, uint64_t c);

  std::span<std::byte> memory_;
  RingMemory* ring_ = nullptr;  ///< at its start
  uint64_t slots_ = 0;          ///< events in a block
  uint64_t nr_blocks_ = 0;
  uint64_t id_ = 0;  ///< of all rings of the process, this one since its last start
  int32_t process_ = 0;
};

/// Has a FlowRing begun in this memory? Not before, and not in memory of zeroes.
[[nodiscard]] bool is_ring(std::span<const std::byte> memory);

/// Writes a ring's recording as it is now, times from its start on; `ended` becomes the fact of that name, if it is not empty. The ring may be
/// another process's: nothing in it is believed. Others may go on recording; of what they overwrite meanwhile nothing
/// is written. False: the output failed, or this is no ring.
bool write_ring(std::span<const std::byte> memory, std::string_view ended, FlowOutput output);

}  // namespace weir
