// src/record/names.hpp
//
// What a recording calls things: functions, tasks, facts of the run. They are kept as the blocks of the file that they
// will be, one behind the other, so that writing them out is copying:
//
//   | TASK 5 | SITE 1 do_page_fault | SITE 2 handle_mm_fault | FACT kernel 4.14 | ...        | room |
//                                                                                      ^ used
//
// No pointer in it: a process may write what another one, which has died, has put into memory that both map.
//
// Looking up takes no lock. No malloc, no throw.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/flow.hpp"

namespace weir {

struct Thread;

/// Memory of zeroes is one without names.
class FlowNames {
 public:
  /// Functions and places of state changes that get a name. The house has about 800; what comes later is recorded
  /// nameless.
  static constexpr uint32_t MAX_SITES = 1536;
  /// Tasks that get a name. Events of further tasks are recorded all the same.
  static constexpr uint32_t MAX_TASKS = 1024;

  /// The site's number in this recording: from 1 on by first use, so that the same run gives the same file. 0: it has
  /// no name.
  [[nodiscard]] [[gnu::always_inline]] uint16_t site_id(const FlowSite& site) {
    const uint16_t id = known_id(site);
    return __builtin_expect(id != 0, 1) ? id : add_site(site);
  }
  /// The same, but 0 for one that has not been used yet.
  [[nodiscard]] [[gnu::always_inline]] uint16_t known_id(const FlowSite& site) const {
    const uint32_t number = std::atomic_ref(site.number).load(std::memory_order_relaxed);
    return number < MAX_NUMBERS ? ids_[number].load(std::memory_order_acquire) : 0;
  }
  [[nodiscard]] uint32_t nr_sites() const { return nr_sites_.load(std::memory_order_acquire); }

  /// At an event of a thread: it gets its thread's name if it has none yet. `process`: the pid of the one that all
  /// threads with a task belong to; 0: not told.
  [[gnu::always_inline]] void see_task(int32_t tid, const Thread* thread, int32_t process) {
    if (tasks_[static_cast<uint32_t>(tid) % TASK_SLOTS].key.load(std::memory_order_relaxed) != int64_t{tid} + 1)
      add_task(tid, thread, process);
  }
  /// Names a task; again after a change of name. pid 0: the one it had.
  void task(int32_t tid, int32_t pid, std::string_view comm);

  /// What is true of the whole run: kernel, seed, page_size, ram_pages. The first word for a key stands; true if it is
  /// kept.
  bool fact(std::string_view key, std::string_view value);

  /// The blocks that are whole. What follows them later follows here.
  [[nodiscard]] std::span<const std::byte> blocks() const {
    const uint32_t used = used_.load(std::memory_order_acquire);
    return {blocks_, used < BYTES ? used : BYTES};
  }

 private:
  static constexpr uint32_t TASK_SLOTS = 2048, MAX_NUMBERS = 16384, BYTES = 256 << 10;

  // Written last: who sees the key finds the name.
  struct TaskSlot {
    std::atomic<int64_t> key{0};  // tid + 1; 0: empty
    int32_t pid = 0;
  };

  uint16_t add_site(const FlowSite& site);
  void add_task(int32_t tid, const Thread* thread, int32_t process);
  TaskSlot* task_slot(int32_t tid);
  std::byte* room_for(uint32_t tag, size_t bytes);

  std::atomic<bool> lock_{false};  ///< adding
  std::atomic<uint32_t> used_{0};
  std::atomic<uint32_t> nr_sites_{0};
  std::atomic<uint32_t> nr_tasks_{0};
  std::atomic<uint16_t> ids_[MAX_NUMBERS] = {};  ///< by FlowSite::number; 0: not seen, or nameless
  TaskSlot tasks_[TASK_SLOTS];
  std::byte blocks_[BYTES];
};

}  // namespace weir
