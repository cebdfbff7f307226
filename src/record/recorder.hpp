// src/record/recorder.hpp
//
// A log of every event: a simulation's, and a test's. (The last events of a live process: ring.hpp.)
//
//   | written out |  being filled  | free |      whole chunks leave through a FlowOutput
//
// A writer claims number n by one atomic add, fills the event's place and marks it done; there is no lock. Nothing is
// lost: a writer that finds no room sends chunks off, or waits for whoever is doing so.
//
// No malloc, no throw, no errno, no lock of mm, no place where the virtual world switches threads. Recording therefore
// changes neither schedule nor counters. The file is described in README.md.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/flow.hpp"
#include "record/event.hpp"
#include "record/names.hpp"
#include "record/output.hpp"

namespace weir {

class Recorder final : public FlowSink {
 public:
  /// An event and the number that says whether it is whole.
  static constexpr size_t BYTES_AN_EVENT = sizeof(FlowEvent) + sizeof(uint64_t);

  /// Memory for `events`, rounded up to a power of two.
  [[nodiscard]] static constexpr size_t bytes_for(size_t events) { return std::bit_ceil(events) * BYTES_AN_EVENT; }

  /// Everything goes to `output`, in whatever thread fills a chunk; finish() sends the rest. `memory` is 8-byte
  /// aligned, reads as zero, holds at least one event, and outlives this. The events in it are the largest power of two
  /// that fits.
  Recorder(std::span<std::byte> memory, FlowOutput output);
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  [[nodiscard]] FlowNames& names() { return names_; }
  /// A snapshot at this moment ("meminfo" and its text). False if it is too large, or the output failed.
  bool note(std::string_view key, std::string_view text);

  /// Sends what is left and the end mark. Nobody records any more. False if the output failed at any time.
  bool finish();

  /// Events since the start, and those of them that were lost because the output failed.
  [[nodiscard]] uint64_t recorded() const { return next_.load(std::memory_order_relaxed); }
  [[nodiscard]] uint64_t lost() const { return lost_.load(std::memory_order_relaxed); }
  [[nodiscard]] uint64_t capacity() const { return mask_ + 1; }

  void enter(const FlowSite& site, uint64_t a, uint64_t b, uint64_t c) override;
  void leave(const FlowSite& site) override;
  void leave_with(const FlowSite& site, uint64_t result) override;
  void state(const FlowSite& site, State what, uint64_t subject, uint64_t before, uint64_t after) override;

 private:
  void append(uint16_t kind, const FlowSite& site, uint64_t a, uint64_t b, uint64_t c);
  void wait_for_room(uint64_t number);
  [[nodiscard]] uint64_t* words(uint64_t number) const { return events_ + (number & mask_) * (sizeof(FlowEvent) / 8); }
  [[nodiscard]] std::atomic_ref<uint64_t> done(uint64_t number) const {
    return std::atomic_ref<uint64_t>(done_[number & mask_]);
  }

  void send_done_events(bool also_part_of_a_chunk);
  void send_names(FlowWriter& out);

  // Set at construction.
  uint64_t* events_ = nullptr;
  uint64_t* done_ = nullptr;  ///< of each place: n + 1: event n is whole
  uint64_t mask_ = 0;
  uint64_t chunk_ = 1;  ///< events sent off together
  FlowOutput output_;

  alignas(64) std::atomic<uint64_t> next_{0};
  alignas(64) std::atomic<uint64_t> lost_{0};
  std::atomic<uint64_t> sent_{0};  ///< events below it have left: their places are free. Written under send_lock_
  std::atomic<bool> send_lock_{false};
  bool header_sent_ = false;    ///< send_lock_
  bool output_failed_ = false;  ///< send_lock_
  size_t names_sent_ = 0;       ///< send_lock_: bytes of names_.blocks()
  FlowNames names_;
};

}  // namespace weir
