// src/live/left_recording.cpp: see left_recording.hpp
#include "live/left_recording.hpp"

#include <fcntl.h>
#include <sys/mman.h>

#include <cstdio>

#include "base/raw_syscall.hpp"
#include "record/ring.hpp"

namespace weir::live {

namespace {
constexpr size_t FIRST_RING = page_align_up(sizeof(SharedRun));
}  // namespace

size_t run_file_bytes(uint64_t record_events) {
  return FIRST_RING + (record_events != 0 ? MAX_PROCESSES * FlowRing::bytes_for(record_events) : 0);
}

std::span<std::byte> map_ring(const SharedRun& run, int run_fd, const ProcessSlot& slot, void* at) {
  const size_t bytes = FlowRing::bytes_for(run.record_events);
  const auto index = static_cast<size_t>(&slot - run.slots);
  const long p = raw_syscall(SYS_mmap, at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | (at != nullptr ? MAP_FIXED : 0),
                             run_fd, FIRST_RING + index * bytes);
  if (p < 0 && p > -4096) return {};
  return {reinterpret_cast<std::byte*>(p), bytes};
}

void unmap_ring(std::span<std::byte> ring) { raw_syscall(SYS_munmap, ring.data(), ring.size()); }

void give_back_ring(std::span<std::byte> ring) { raw_syscall(SYS_madvise, ring.data(), ring.size(), MADV_REMOVE); }

RecordPath record_path(const SharedRun& run, int32_t pid) {
  RecordPath path;
  if (pid == run.slots[0].pid.load())
    std::snprintf(path.text, sizeof path.text, "%s", run.record_path);
  else
    std::snprintf(path.text, sizeof path.text, "%s.%d", run.record_path, static_cast<int>(pid));
  return path;
}

long create_recording(const RecordPath& path) {
  return raw_syscall(SYS_openat, AT_FDCWD, path.text, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
}

bool write_left_recording(const SharedRun& run, int run_fd, const ProcessSlot& slot, int32_t pid,
                          std::string_view ended) {
  const std::span<std::byte> ring = map_ring(run, run_fd, slot);
  if (ring.empty()) return false;
  bool written = true;
  if (is_ring(ring)) {
    const long fd = create_recording(record_path(run, pid));
    written = fd >= 0 && write_ring(ring, ended, output_to_fd(static_cast<int>(fd)));
    if (fd >= 0) raw_syscall(SYS_close, fd);
    give_back_ring(ring);
  }
  unmap_ring(ring);
  return written;
}

}  // namespace weir::live
