// src/live/shared.hpp
//
// What the launcher and the processes of a run share: one memory file, mapped by all of them.
//
//   launcher: makes it, writes the options, starts the program with WEIR_RUN=/proc/<launcher>/fd/<n>
//   process:  reads the options, claims a ProcessSlot, keeps its counters there as it goes
//   launcher: at the end reads all slots: so a process that was killed has left its counters too
//
// When a recording is wanted, a ring for each slot lies behind the SharedRun in the file (live/left_recording.hpp): a
// process that is killed has left its last events as well.
//
// Plain data and atomics only; every process has its own mapping at its own address.
#pragma once

#include <atomic>
#include <cstdint>

#include "mm/types.hpp"

namespace weir::live {

inline constexpr uint64_t RUN_MAGIC = 0x6e75722d72696577;  // "weir-run"
inline constexpr uint32_t RUN_VERSION = 4;
inline constexpr unsigned MAX_PROCESSES = 256;
inline constexpr unsigned MAX_SWAP_SPECS = 4;
inline constexpr unsigned NR_EVENTS = static_cast<unsigned>(VmEvent::count);
inline constexpr unsigned NR_GAUGES = static_cast<unsigned>(NodeStat::count);

/// One process's counters, as its machine has them. Written by that process alone, read when it is gone (or at any
/// time: each number by itself is whole).
struct ProcessStats {
  std::atomic<int64_t> gauges[NR_GAUGES];
  std::atomic<uint64_t> events[NR_EVENTS];
  std::atomic<uint64_t> nr_free_pages, managed_pages, swap_total_pages, swap_free_pages;
  // zram mm_stat, summed over the process's zram areas
  std::atomic<uint64_t> orig_data_size, compr_data_size, mem_used_total, mem_used_max, same_pages, huge_pages;
  std::atomic<uint64_t> uffd_copies, uffd_staged_back, uffd_place_moves, uffd_moves, uffd_moved_pages;  ///< UffdStats
  std::atomic<uint64_t> file_swap_bytes;  ///< bytes in file areas now
  std::atomic<uint64_t> managed_bytes;    ///< address space under management
  std::atomic<uint64_t> resident_peak;    ///< most frames in use at once, in pages
  std::atomic<uint64_t> rss_anon_kb, unmanaged_kb,
      unmanaged_peak_kb;  ///< private anonymous memory; that outside management
};

enum class ProcessState : uint32_t { none, starting, managed, unmanaged, oom_killed };

/// A process of the run, living or not: who is short of slots or frames takes those of a process that is gone.
///
///   frames of all slots + SharedRun::frames_left = the budget (while no move of frames is under way)
struct ProcessSlot {
  std::atomic<int32_t> pid;     ///< 0: free
  std::atomic<uint32_t> state;  ///< ProcessState
  char comm[16];
  std::atomic<int64_t> frames;     ///< of the run's budget, held by this process
  std::atomic<uint32_t> wants;     ///< Need: it could use more frames than it holds
  std::atomic<int64_t> can_give;   ///< frames that it could do without
  std::atomic<uint32_t> answered;  ///< the last SharedRun::bell at which it had nothing to give
  std::atomic<uint32_t> ended;     ///< 1: the process, or its program (exec), is over; its counters are final
  ProcessStats stats;
};

struct SharedRun {
  uint64_t magic;
  uint32_t version;
  uint32_t size;  ///< sizeof(SharedRun): both sides must agree
  int32_t launcher_pid;
  // ---- options
  uint64_t ram_bytes;
  uint32_t nr_swaps;
  char swaps[MAX_SWAP_SPECS][512];  ///< as on the command line, checked by the launcher
  uint32_t allow_unmanaged;
  uint32_t quiet;
  uint64_t record_events;  ///< events of a ring; 0: no recording
  char record_path[512];   ///< of the first process; others append ".PID"
  // ---- the run
  std::atomic<int64_t>
      frames_left;  ///< of the budget, held by nobody; below zero after a fork, until shares have shrunk
  std::atomic<int64_t> frames_over;                ///< the most that frames_left was below zero
  std::atomic<uint64_t> moves_begun, moves_ended;  ///< of frames between slots and frames_left
  std::atomic<uint32_t> bell;       ///< futex: counts up when a process wants frames; all helper threads sleep on it
  std::atomic<uint32_t> processes;  ///< that ever had a machine
  std::atomic<uint32_t> failed;     ///< a process could not be managed; why: message
  char message[1024];
  ProcessStats retired;  ///< counters of processes whose slots have been used again: events only
  std::atomic<uint32_t> nr_retired;
  ProcessSlot slots[MAX_PROCESSES];
};

inline constexpr const char* RUN_VARIABLE = "WEIR_RUN";

}  // namespace weir::live
