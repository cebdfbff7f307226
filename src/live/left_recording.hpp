// src/live/left_recording.hpp
//
// Where a run's rings lie, and the recordings of processes that could not write theirs:
//
//   | SharedRun | ring of slot 0 | ring of slot 1 | ...        one sparse file in memory; untouched rings cost nothing
//
// A process that ends by itself, or by the out-of-memory killer, writes its recording and gives its ring's memory back.
// After any other end the ring is still there: the launcher writes it, or who takes the slot next.
//
// For the launcher and for the preload: no malloc, no throw, raw system calls.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "live/shared.hpp"

namespace weir::live {

/// Of the run's file, with its rings.
[[nodiscard]] size_t run_file_bytes(uint64_t record_events);

/// Maps a slot's ring, at `at` in place of what is there if not null. Empty: not possible.
[[nodiscard]] std::span<std::byte> map_ring(const SharedRun& run, int run_fd, const ProcessSlot& slot,
                                            void* at = nullptr);
void unmap_ring(std::span<std::byte> ring);
/// Its memory goes back to the host; it reads as zero for all who map it.
void give_back_ring(std::span<std::byte> ring);

/// Where the recording of the slot's process goes. Room for record_path and a number.
struct RecordPath {
  char text[sizeof SharedRun::record_path + 16];
};
[[nodiscard]] RecordPath record_path(const SharedRun& run, int32_t pid);
/// Opens it for writing: a descriptor, or -errno.
[[nodiscard]] long create_recording(const RecordPath& path);

/// Writes what a process that is gone has left in its slot's ring, and gives the ring back; does nothing if it has left
/// none. `ended`: how it ended. False: there is one, and it cannot be written.
bool write_left_recording(const SharedRun& run, int run_fd, const ProcessSlot& slot, int32_t pid,
                          std::string_view ended);

}  // namespace weir::live
