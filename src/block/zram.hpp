// src/block/zram.hpp
//
// zram: a block device whose blocks are compressed pages in the machine's own memory.
//
//   write:  page --one repeated word--> the word, in the slot itself
//                --compresses to 3072 or less--> object of a zsmalloc pool
//                --else--> object of a whole frame ("huge"), the bytes as they are
//   read:   slot --unwritten--> zeros --word--> filled --huge--> copied --object--> decompressed
//
//   slot:   unwritten --write--> word | object --write again--> word | object --slot_free_notify, discard--> unwritten
//
// Served when rw_page returns, never queued. What a write needs is had before the slot changes: a write that fails
// leaves the slot as it was. Nothing but the slot's lock is held while an object is copied, and not even that during
// compression.
//
// Linux: drivers/block/zram/zram_drv.c; counters as in Documentation/blockdev/zram.txt.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.hpp"
#include "base/units.hpp"
#include "block/block.hpp"
#include "block/zcomp.hpp"
#include "block/zsmalloc.hpp"
#include "kernel/locks.hpp"

namespace weir {

struct ZramOptions {
  const char* name = "zram0";  ///< kept by reference
  PageCount capacity{};        ///< disksize
  PageCount mem_limit{};       ///< frames that the pool may hold; 0 = no limit
  PageCount full_at{};         ///< has_room() says no from so many frames on; 0 = from mem_limit on
  ZcompOptions comp{};
};

/// /sys/block/zramN/mm_stat: bytes, but for the counts of pages.
struct ZramMmStat {
  Bytes orig_data_size{};   ///< of the pages stored, one-word pages included
  Bytes compr_data_size{};  ///< of their objects; a one-word page has none
  Bytes mem_used_total{};   ///< frames of the pool, its descriptors included
  Bytes mem_limit{};
  Bytes mem_used_max{};
  uint64_t same_pages = 0;
  uint64_t pages_compacted = 0;  ///< 0: objects never move
  uint64_t huge_pages = 0;
  friend bool operator==(const ZramMmStat&, const ZramMmStat&) = default;
};

/// /sys/block/zramN/io_stat, and the two counts of the older files.
struct ZramIoStat {
  uint64_t num_reads = 0, num_writes = 0;
  uint64_t failed_reads = 0, failed_writes = 0;
  uint64_t invalid_io = 0;  ///< behind the end, or not a page
  uint64_t notify_free = 0;
};

class Zram final : public BlockDevice {
 public:
  /// Bytes of `metadata` that create() needs: the slot table (10 bytes a page of capacity) and the compressor's
  /// streams. 0 when the options are out of range.
  [[nodiscard]] static size_t metadata_needed(const ZramOptions& options);

  /// Makes the device at `place` (sizeof(Zram) bytes, alignof(Zram)). `metadata`: page aligned, zero-filled,
  /// metadata_needed() bytes, outlives it; only the parts of slots in use are ever touched. Errors: EINVAL.
  static Result<Zram*> create(void* place, FrameSource& frames, const ZramOptions& options,
                              std::span<std::byte> metadata);
  /// No request is under way. Gives all memory back.
  ~Zram();
  Zram(const Zram&) = delete;
  Zram& operator=(const Zram&) = delete;

  [[nodiscard]] const char* name() const override { return options_.name; }
  [[nodiscard]] PageCount capacity() const override { return options_.capacity; }
  void submit_bio(Bio& bio) override;
  [[nodiscard]] bool synchronous() const override { return true; }
  /// May sleep for a compressor's stream. Errors: EIO when stored bytes do not decompress to a page or were stored as
  /// the other kind of content; ENOMEM at the limit or without a frame; EINVAL behind the end.
  Result<void> rw_page(BioOp op, uint64_t index, Content content) override { return zram_rw_page(op, index, content); }
  void slot_free_notify(uint64_t index) override { zram_slot_free_notify(index); }
  /// False when the next zspage would not fit below full_at (or the limit). What has a slot already may still be
  /// written, up to the limit: pages that come from here keep their slot, and where else should they go?
  [[nodiscard]] bool has_room() const override;
  [[nodiscard]] bool can_discard() const override { return true; }

  [[nodiscard]] ZramMmStat mm_stat() const;
  [[nodiscard]] ZramIoStat io_stat() const;
  [[nodiscard]] Compressor comp_algorithm() const { return comp_.options().algorithm; }
  void set_mem_limit(PageCount pages, PageCount full_at = {}) {
    pool_.set_limit(pages);
    full_at_.store(full_at.v, std::memory_order_relaxed);
  }
  /// mem_used_max starts anew from what is used now.
  void mem_used_max_reset();
  /// Frees every slot. Counters of I/O stay.
  void zram_reset_device();

  [[nodiscard]] const ZsPool& pool() const { return pool_; }
  /// mm_stat by a walk over all slots and the pool; equal to mm_stat() at rest, mem_used_max taken from it.
  [[nodiscard]] ZramMmStat recount() const;

 private:
  // What a slot's 16 bits say; its 64 are the word, or the object's handle.
  // Invariant: 0 = unwritten; a word has SAME and size 0; an object has size 1…4096, and 4096 means huge.
  enum SlotFlag : uint16_t {
    ZRAM_SIZE_MASK = 0x1fff,
    ZRAM_SAME = 0x2000,
    ZRAM_TAGGED = 0x4000,  // content is a tag: the word itself, or the first 8 bytes of the object
  };
  struct Slot {
    uint64_t value = 0;
    uint16_t state = 0;
    [[nodiscard]] uint32_t size() const { return state & ZRAM_SIZE_MASK; }
    [[nodiscard]] bool same() const { return (state & ZRAM_SAME) != 0; }
    [[nodiscard]] bool tagged() const { return (state & ZRAM_TAGGED) != 0; }
    [[nodiscard]] bool compressed() const { return size() != 0 && size() != PAGE_SIZE && !tagged(); }
  };
  struct alignas(64) SlotLock {
    SpinLock lock{LockRank::zram_slot};
  };

  Zram(FrameSource& frames, const ZramOptions& options, std::span<std::byte> metadata);

  void zram_make_request(Bio& bio);
  void __zram_make_request(Bio& bio, uint64_t index);
  Result<void> zram_rw_page(BioOp op, uint64_t index, Content content);
  Result<void> rw_in_range(BioOp op, uint64_t index, Content content);
  Result<void> zram_bvec_rw(BioOp op, uint64_t index, Content content);
  Result<void> zram_bvec_read(uint64_t index, Content content);
  Result<void> zram_bvec_write(uint64_t index, Content content);
  Result<void> __zram_bvec_write(uint64_t index, Content content);
  /// What the slot says; its object, if of the same kind as `content`, copied there or, compressed, into the stream's
  /// buffer.
  Slot fetch_slot(uint64_t index, Content content, ZcompStream* stream);
  /// Puts `comp_len` bytes into an object: the step of the write path that Linux's memcpy is.
  static void memcpy(const ZsObject& object, const std::byte* from, uint32_t comp_len);
  void zram_slot_free_notify(uint64_t index);
  void zram_bio_discard(uint64_t index, uint64_t pages);
  void zram_free_page(uint64_t index) WEIR_REQUIRES(slot_lock(index));
  void update_used_max(int64_t pages);

  [[nodiscard]] SpinLock& slot_lock(uint64_t index) const { return slot_locks_[index % slot_locks_.size()].lock; }
  [[nodiscard]] Slot slot(uint64_t index) const {
    return {values_[index], states_[index].load(std::memory_order_relaxed)};
  }
  void set_slot(uint64_t index, Slot slot) WEIR_REQUIRES(slot_lock(index));

  ZramOptions options_;
  ZsPool pool_;
  Zcomp comp_;
  // [0, capacity): guarded by slot_lock(index). A state may be read without, as a hint.
  uint64_t* values_;
  std::atomic<uint16_t>* states_;
  std::atomic<int64_t> full_at_{0};
  std::atomic<uint64_t> pages_stored_{0}, compr_data_size_{0}, same_pages_{0}, huge_pages_{0};
  std::atomic<int64_t> max_used_pages_{0};
  std::atomic<uint64_t> invalid_io_{0}, notify_free_{0};
  mutable std::array<SlotLock, 64> slot_locks_;
};

}  // namespace weir
