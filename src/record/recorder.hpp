// src/record/recorder.hpp
//
// The event log: what WEIR_FLOW and WEIR_STATE say goes into memory that was handed in at the start.
//
//   ring   | ...  n-3 | n-2 | n-1 | oldest | ... |      the last events; write() makes a file of them at any moment
//   full   | written out |  being filled  | free |      every event; whole chunks leave through a FlowOutput
//
// A writer claims number n by one atomic add, fills the event's place and marks it done; there is no lock. A place that
// is still being filled when the ring comes round again is not waited for: the newer event is lost and counted. In full
// mode nothing is lost: a writer that finds no room sends chunks off, or waits for whoever is doing so.
//
// Usable inside a fault: no malloc, no throw, no errno, no lock of mm, no place where the virtual world switches
// threads. Recording therefore changes neither schedule nor counters. The file is described in README.md.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/flow.hpp"
#include "record/event.hpp"

namespace weir {

/// Where a recording's bytes go, in order. `write` takes all of them or returns false; after a false it is not called
/// again.
struct FlowOutput {
  bool (*write)(void* context, const void* bytes, size_t size) = nullptr;
  void* context = nullptr;
};

/// An open file descriptor, by raw system calls.
[[nodiscard]] FlowOutput output_to_fd(int fd);

class Recorder final : public FlowSink {
 public:
  /// Functions and places of state changes that get a name. The house has about 800; what comes later is recorded
  /// nameless.
  static constexpr uint32_t MAX_SITES = 1536;
  /// Tasks that get a name in the log. Events of further tasks are recorded all the same.
  static constexpr uint32_t MAX_TASKS = 1024;
  /// An event and the number that says whether it is whole.
  static constexpr size_t BYTES_AN_EVENT = sizeof(FlowEvent) + sizeof(uint64_t);

  /// Memory for `events` (rounded up to a power of two) and for notes of `notes` bytes together.
  [[nodiscard]] static constexpr size_t bytes_for(size_t events, size_t notes = 0) {
    return std::bit_ceil(events) * BYTES_AN_EVENT + notes;
  }

  /// Ring mode. `memory` is 8-byte aligned, reads as zero (a fresh mapping does; untouched parts stay untouched), holds
  /// at least one event, and outlives this. The events are the largest power of two that fits; what is left holds the
  /// notes.
  explicit Recorder(std::span<std::byte> memory) : Recorder(memory, FlowOutput{}) {}
  /// Full mode: everything goes to `output`, in whatever thread fills a chunk. finish() sends the rest.
  Recorder(std::span<std::byte> memory, FlowOutput output);
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  /// What is true of the whole run: kernel, seed, page_size, ram_pages. The first word for a key stands; true if it
  /// fits.
  bool fact(std::string_view key, std::string_view value);
  /// A snapshot at this moment ("meminfo" and its text). In a ring the oldest give way. False if it is too large to
  /// keep.
  bool note(std::string_view key, std::string_view text);
  /// Names a task. Not needed for its tid and name, which the log takes from its thread; needed for its pid, and after
  /// a change of name.
  void task(int32_t tid, int32_t pid, std::string_view comm);

  /// Ring mode: writes the recording as it is now. Others may go on recording; what they overwrite meanwhile counts as
  /// lost.
  bool write(FlowOutput output) const;
  /// Full mode: sends what is left and the end mark. Nobody records any more. False if the output failed at any time.
  bool finish();

  /// Events since the start, and those of them that were lost on the way (not those that a ring has since overwritten).
  [[nodiscard]] uint64_t recorded() const { return next_.load(std::memory_order_relaxed); }
  [[nodiscard]] uint64_t lost() const { return lost_.load(std::memory_order_relaxed); }
  [[nodiscard]] uint64_t capacity() const { return mask_ + 1; }

  void enter(const FlowSite& site, uint64_t a, uint64_t b, uint64_t c) override;
  void leave(const FlowSite& site) override;
  void state(const FlowSite& site, State what, uint64_t subject, uint64_t before, uint64_t after) override;

 private:
  static constexpr uint32_t SITE_SLOTS = 2048, TASK_SLOTS = 2048;
  static constexpr size_t FACT_BYTES = 2048;

  // One place of the table of sites. `site` is written last: who sees it sees `id`.
  struct SiteSlot {
    std::atomic<const FlowSite*> site{nullptr};
    uint32_t id = 0;
  };
  // tid + 1, so that 0 is empty; written last. The name: side_lock_.
  struct TaskSlot {
    std::atomic<int64_t> key{0};
    int32_t pid = 0;
    bool unsent = false;
    char comm[16] = {};
  };

  class Out;

  void append(uint16_t kind, const FlowSite& site, uint64_t a, uint64_t b, uint64_t c);
  [[nodiscard]] bool claim_in_ring(uint64_t number);
  void wait_for_room(uint64_t number);
  [[nodiscard]] bool read(uint64_t number, FlowEvent& event) const;
  [[nodiscard]] uint16_t site_id(const FlowSite& site);
  [[nodiscard]] uint16_t add_site(const FlowSite& site);
  void see_task(int32_t tid);
  TaskSlot* task_slot(int32_t tid);
  [[nodiscard]] uint64_t* words(uint64_t number) const { return events_ + (number & mask_) * (sizeof(FlowEvent) / 8); }
  [[nodiscard]] std::atomic_ref<uint64_t> progress(uint64_t number) const {
    return std::atomic_ref<uint64_t>(progress_[number & mask_]);
  }

  void send_done_events(bool also_part_of_a_chunk);
  void send_names(Out& out);

  // Set at construction.
  uint64_t* events_ = nullptr;
  uint64_t* progress_ = nullptr;  ///< of each place: 2n+1 event n is being filled in, 2n+2 it is whole
  uint64_t mask_ = 0;
  uint64_t chunk_ = 1;  ///< full mode: events sent off together
  std::byte* notes_ = nullptr;
  size_t notes_size_ = 0;
  FlowOutput output_;

  alignas(64) std::atomic<uint64_t> next_{0};
  alignas(64) std::atomic<uint64_t> lost_{0};

  // Full mode.
  std::atomic<uint64_t> sent_{0};  ///< events below it have left: their places are free. Written under send_lock_
  mutable std::atomic<bool> send_lock_{false};
  bool header_sent_ = false;    ///< send_lock_
  bool output_failed_ = false;  ///< send_lock_
  uint32_t sites_sent_ = 0;     ///< send_lock_
  size_t facts_sent_ = 0;       ///< send_lock_

  // Names. side_lock_ guards adding; looking up needs none.
  mutable std::atomic<bool> side_lock_{false};
  SiteSlot sites_[SITE_SLOTS];
  const FlowSite* site_of_[MAX_SITES + 1] = {};  ///< [id]
  std::atomic<uint32_t> site_count_{0};
  TaskSlot tasks_[TASK_SLOTS];
  std::atomic<uint32_t> task_count_{0};
  bool tasks_unsent_ = false;  ///< side_lock_
  char facts_[FACT_BYTES];     ///< side_lock_: u16 key size, u16 value size, key, value; again
  size_t facts_used_ = 0;      ///< side_lock_
  size_t notes_used_ = 0;      ///< side_lock_
};

}  // namespace weir
