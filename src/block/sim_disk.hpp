// src/block/sim_disk.hpp
//
// A simulated disk on the world's clock.
//
//   submit_bio --> waiting (FIFO; rotational: by position) --a place is free--> in service --timer--> end_io
//
//   a request's time in service =  wait for the channel  +  page / bandwidth  +  [seek]  +  latency
//                                  one after another        in the channel       \_ with others, up to queue_depth _/
//
// So throughput is the smaller of bandwidth and queue_depth / latency, and requests of different latency finish out of
// order. A rotational disk has one arm: one request at a time, the next in the direction of travel first (C-LOOK); a
// request that starts where the last one ended does not seek.
//
// Content lies outside the machine's RAM: bytes, or 8 bytes a page in a tagged simulation. Only what was written costs
// memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.hpp"
#include "base/units.hpp"
#include "block/block.hpp"
#include "kernel/locks.hpp"

namespace weir {

enum class ContentKind : uint8_t { bytes, tags };
enum class DiskMotion : uint8_t { none, rotational };

struct SimDiskOptions {
  const char* name = "disk0";  ///< kept by reference
  PageCount capacity{};
  ContentKind content = ContentKind::bytes;
  Nanos read_latency = 80_us;  ///< a SATA flash disk's, as the other values
  Nanos write_latency = 50_us;
  uint64_t megabytes_per_second = 500;  ///< 10^6 bytes; both directions share it
  unsigned queue_depth = 32;            ///< requests in service at once, 1…64
  DiskMotion motion = DiskMotion::none;
  Nanos seek = 8_ms;               ///< rotational: of an average seek, a third of the way
  unsigned congested_above = 113;  ///< requests waiting or in service; Linux's 7/8 of nr_requests 128
};

/// Disks as they are sold: round figures of data sheets of the 2010s.
struct DiskPreset {
  const char* name;
  DiskMotion motion;
  Nanos read_latency, write_latency;  ///< rotational: half a turn
  Nanos seek;
  uint64_t megabytes_per_second;
  unsigned queue_depth;
};
inline constexpr DiskPreset DISK_PRESETS[] = {
    // 7200 turns a minute, SATA
    {"spinning", DiskMotion::rotational, Nanos(4'170'000), Nanos(4'170'000), 8_ms, 150, 32},
    // flash behind SATA: what the bus lets through, 32 commands at once
    {"ssd", DiskMotion::none, 80_us, 50_us, Nanos(0), 500, 32},
    // flash behind PCIe: writes end in its memory
    {"nvme", DiskMotion::none, 80_us, 20_us, Nanos(0), 3000, 64},
};

struct SimDiskStats {
  unsigned waiting = 0, in_service = 0;
  unsigned max_queued = 0;  ///< most that ever waited or were in service
  uint64_t seeks = 0;
  Nanos time_in_queue{};  ///< sum over all requests of submit to end
  Nanos time_in_channel{};
};

class SimDisk final : public BlockDevice {
 public:
  /// Makes the disk at `place` (sizeof(SimDisk) bytes, alignof(SimDisk)); reads as zeros. Errors: EINVAL for options
  /// out of range, ENOMEM when the host has no address space.
  static Result<SimDisk*> create(void* place, World& world, const SimDiskOptions& options);
  /// No request is under way.
  ~SimDisk();
  SimDisk(const SimDisk&) = delete;
  SimDisk& operator=(const SimDisk&) = delete;

  [[nodiscard]] const char* name() const override { return options_.name; }
  [[nodiscard]] PageCount capacity() const override { return options_.capacity; }
  /// A tag stands for a whole page.
  [[nodiscard]] uint32_t logical_block_size() const override {
    return options_.content == ContentKind::tags ? PAGE_SIZE : SECTOR_SIZE;
  }
  /// end_io comes from a timer with EIO for a request behind the end or of the other kind of content. Any context.
  void submit_bio(Bio& bio) override;
  [[nodiscard]] bool can_discard() const override { return options_.motion == DiskMotion::none; }
  [[nodiscard]] bool nonrotational() const override { return options_.motion == DiskMotion::none; }
  [[nodiscard]] bool congested() const override;
  [[nodiscard]] SimDiskStats sim_stats() const;

  /// What lies on the disk now, for tests and dumps: no time passes. `index` below capacity.
  [[nodiscard]] const std::byte* stored_bytes(uint64_t index) const;
  [[nodiscard]] uint64_t stored_tag(uint64_t index) const;

 private:
  static constexpr unsigned MAX_QUEUE_DEPTH = 64;
  struct Service {
    Timer timer;
    Bio* bio = nullptr;
    SimDisk* disk = nullptr;
  };

  SimDisk(World& world, const SimDiskOptions& options, std::byte* store);

  static void timer_function(void* data);
  void complete(Service& service);
  void start_waiting() WEIR_REQUIRES(lock_);
  Bio* next_waiting() WEIR_REQUIRES(lock_);
  void start(Service& service, Bio& bio) WEIR_REQUIRES(lock_);
  [[nodiscard]] Nanos seek_time(uint64_t from, uint64_t to) const;
  Errno transfer(Bio& bio);
  [[nodiscard]] size_t store_bytes() const;

  World& world_;
  const SimDiskOptions options_;
  std::byte* const store_;
  const Nanos page_time_;  // of a page in the channel; a part of one takes its share
  mutable SpinLock lock_{LockRank::device};
  // A place is free only while nobody waits.
  Bio* first_ WEIR_GUARDED_BY(lock_) = nullptr;
  Bio* last_ WEIR_GUARDED_BY(lock_) = nullptr;
  Service services_[MAX_QUEUE_DEPTH] WEIR_GUARDED_BY(lock_);  // the first queue_depth are used
  uint64_t free_places_ WEIR_GUARDED_BY(lock_) = 0;           // a bit for each service without a bio
  Nanos channel_free_ WEIR_GUARDED_BY(lock_){};               // when the channel has carried all that was started
  uint64_t arm_ WEIR_GUARDED_BY(lock_) = 0;                   // page behind the last one started
  SimDiskStats sim_stats_ WEIR_GUARDED_BY(lock_);
};

}  // namespace weir
