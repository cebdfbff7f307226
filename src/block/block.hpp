// src/block/block.hpp
//
// Where pages' bytes go: a request (Bio) and what serves it (BlockDevice). block/ knows bytes or a content tag and
// where to get frames for itself (FrameSource); it knows no page, no area, no address.
//
//   submit_bio(bio) --> device queue --> served --> bio.end_io(bio)      asynchronous: disks, files
//   rw_page(...)                                                         synchronous: zram; done when it returns
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/result.hpp"
#include "base/units.hpp"

namespace weir {

/// Sectors are 512 bytes; a page is 8.
inline constexpr uint64_t SECTOR_SIZE = 512, SECTORS_PER_PAGE = 8;

/// A page's content where it lies now: 4096 bytes, or in a tagged simulation one number that stands for them (0 = all
/// zero). Exactly one is set.
struct Content {
  std::byte* bytes = nullptr;
  uint64_t* tag = nullptr;
  [[nodiscard]] bool tagged() const { return tag != nullptr; }
};

enum class BioOp : uint8_t { read, write, discard };

class BlockDevice;

/// One page to read or write, or a part of one where the device has smaller blocks; or a run of pages to discard. The
/// submitter's until end_io.
struct Bio {
  BioOp op = BioOp::read;
  Errno status = Errno::ok;            ///< set by the device before end_io
  uint64_t sector = 0;                 ///< first sector; a multiple of 8, or of what `bytes` are
  uint32_t bytes = PAGE_SIZE;          ///< of a read or write; less than a page: one of the device's blocks or more
  uint32_t pages = 1;                  ///< > 1 only for discard
  Content content{};                   ///< stays valid and, for a write, unchanged until end_io
  void (*end_io)(Bio& bio) = nullptr;  ///< called once, in any thread, possibly before submit_bio returns; must not
                                       ///< sleep. The device is done with the bio then: it may be used again at once
  void* owner = nullptr;               ///< the submitter's own
  BlockDevice* device = nullptr;       ///< set by submit_bio
  Bio* next = nullptr;                 ///< the device's own while queued
  Nanos submitted{};                   ///< the device's own
};

/// Counters every device keeps.
struct DeviceStats {
  std::atomic<uint64_t> reads{0}, writes{0}, discards{0}, read_errors{0}, write_errors{0};
};

class BlockDevice {
 public:
  /// "disk0", "zram0", a file's path: for /proc/swaps and messages.
  [[nodiscard]] virtual const char* name() const = 0;
  [[nodiscard]] virtual PageCount capacity() const = 0;
  /// The smallest request that it serves, in bytes. 512: a part of a page may be read and written.
  [[nodiscard]] virtual uint32_t logical_block_size() const { return PAGE_SIZE; }
  /// Queues the request. Never fails: errors come with end_io. Never allocates from the machine (but zram's pool).
  virtual void submit_bio(Bio& bio) = 0;
  /// A list, linked by `next`, that the submitter is going to wait for: the same as submitting them one after another,
  /// but neighbours may be served together, and by this thread. Sleeps. Worth making a list for where batches() says
  /// so.
  virtual void submit_bios(Bio* first) {
    while (first != nullptr) {
      Bio& bio = *first;
      first = bio.next;
      submit_bio(bio);
    }
  }
  [[nodiscard]] virtual bool batches() const { return false; }
  /// The program's: how long it takes, and whether it ever answers, nobody knows. Who faults waits for it without
  /// mmap_sem, and it has its share of the dirty pages and no more (Linux: BDI_CAP_STRICTLIMIT, as FUSE's).
  [[nodiscard]] virtual bool foreign() const { return false; }
  /// The same for a list that nobody waits for: not by this thread.
  virtual void queue_bios(Bio* first) {
    while (first != nullptr) {
      Bio& bio = *first;
      first = bio.next;
      submit_bio(bio);
    }
  }
  /// True if rw_page serves requests at once, without waiting for a device (zram; it may sleep for a compressor's
  /// stream).
  [[nodiscard]] virtual bool synchronous() const { return false; }
  /// Synchronous devices only: reads or writes page `index` now. Errors: EIO; ENOMEM when the pool is at its limit or
  /// no frame can be had; EINVAL behind the end.
  virtual Result<void> rw_page(BioOp op, uint64_t index, Content content) {
    (void)op, (void)index, (void)content;
    return Errno::nosys;
  }
  /// The slot's content is no longer wanted (swap_slot_free_notify). zram gives its memory back at once. Any context.
  virtual void slot_free_notify(uint64_t index) { (void)index; }
  /// False while a write would fail for want of room: swap-out then takes another area. A hint.
  [[nodiscard]] virtual bool has_room() const { return true; }
  [[nodiscard]] virtual bool can_discard() const { return false; }
  /// A device without seek time: swap uses free clusters instead of a moving hand.
  [[nodiscard]] virtual bool nonrotational() const { return true; }
  /// More requests queued than it can serve soon (bdi_write_congested).
  [[nodiscard]] virtual bool congested() const { return false; }
  [[nodiscard]] const DeviceStats& stats() const { return stats_; }

 protected:
  ~BlockDevice() = default;
  DeviceStats stats_;
};

/// Frames for a device that keeps its bytes in the machine's own memory (zram's pool). Implemented by mm; counted
/// against RAM; may not take the last half of the min reserve.
class FrameSource {
 public:
  /// A frame, content undefined. Never sleeps, never reclaims. Errors: ENOMEM.
  virtual Result<Pfn> get_frame() = 0;
  virtual void put_frame(Pfn frame) = 0;
  /// Where the frame's 4096 bytes are: kernel memory is real in both worlds.
  [[nodiscard]] virtual std::byte* frame_bytes(Pfn frame) = 0;

 protected:
  ~FrameSource() = default;
};

}  // namespace weir
