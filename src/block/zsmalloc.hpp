// src/block/zsmalloc.hpp
//
// zsmalloc: memory for objects of 32 to 4096 bytes, most of them half a page, out of single frames.
//
//   zs_malloc(1400) --> class 1408 --> a zspage of 1 to 4 frames in a row, filled without regard to their edges:
//
//     |     frame 17      |     frame 99      |     frame 4       |     (any three frames)
//     |  obj 0  |  obj 1  |  obj 2  |  ...              |  obj 7  |w|
//                      ^^ crosses an edge: zs_map_object gives it in two pieces
//
//   zspage: not there --alloc_zspage--> almost empty <--> almost full <--> full     (empty: frames given back)
//
// A class's zspages have the number of frames that wastes least; classes of which a zspage holds equally many objects
// are one class. An object never moves: there is no compaction (pages_compacted stays 0), so a handle is the place
// itself and mapping takes no lock.
//
// Linux: mm/zsmalloc.c. There descriptors come from slab caches; here they lie in frames of the same source, and are
// counted.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/result.hpp"
#include "base/units.hpp"
#include "block/block.hpp"
#include "kernel/locks.hpp"

namespace weir {

inline constexpr uint32_t ZS_MIN_ALLOC_SIZE = 32;
inline constexpr uint32_t ZS_MAX_ALLOC_SIZE = PAGE_SIZE;
/// Linux's: PAGE_SIZE / 256. Coarser wastes in the object, finer makes classes of which each holds a half-filled
/// zspage.
inline constexpr uint32_t ZS_SIZE_CLASS_DELTA = 16;
inline constexpr uint32_t ZS_SIZE_CLASSES = (ZS_MAX_ALLOC_SIZE - ZS_MIN_ALLOC_SIZE) / ZS_SIZE_CLASS_DELTA + 1;
inline constexpr uint32_t ZS_MAX_PAGES_PER_ZSPAGE = 4;

/// Names an object of a pool; 0 names none. Frame of the descriptor, descriptor, object: no address, so that it may be
/// recorded.
using ZsHandle = Unit<struct ZsHandleTag, uint64_t>;

/// Where an object's bytes are: one piece, or two when it crosses a frame's edge.
struct ZsObject {
  std::byte* head = nullptr;
  uint32_t head_bytes = 0;
  std::byte* tail = nullptr;  ///< null: all is in head
  uint32_t tail_bytes = 0;

  void copy_in(const std::byte* from) const {
    std::memcpy(head, from, head_bytes);
    if (tail != nullptr) std::memcpy(tail, from + head_bytes, tail_bytes);
  }
  void copy_out(std::byte* to) const {
    std::memcpy(to, head, head_bytes);
    if (tail != nullptr) std::memcpy(to + head_bytes, tail, tail_bytes);
  }
};

/// A pool counted anew by a walk over all its zspages: what the counters must be.
struct ZsRecount {
  PageCount pages{};  ///< frames held: objects' and descriptors'
  uint64_t zspages = 0;
  uint64_t objects = 0;
  uint64_t free_objects = 0;  ///< room in zspages that are there
  uint64_t broken = 0;        ///< zspages whose free list, group or count is wrong
  friend bool operator==(const ZsRecount&, const ZsRecount&) = default;
};

class ZsPool {
 public:
  /// `frames` outlives this. Holds nothing yet.
  explicit ZsPool(FrameSource& frames);
  /// Every object has been freed.
  ~ZsPool();
  ZsPool(const ZsPool&) = delete;
  ZsPool& operator=(const ZsPool&) = delete;

  /// Room for `size` bytes, content undefined. Never sleeps. Takes: class lock; frames are got with none held.
  /// Errors: EINVAL (0 or more than a page), ENOMEM (no frame, or the limit).
  Result<ZsHandle> zs_malloc(uint32_t size);
  /// Any context that may take a class lock. An emptied zspage's frames go back before it returns.
  void zs_free(ZsHandle handle);
  /// The first `bytes` of the object, no more than were asked for. Valid until zs_free; takes no lock. Who writes or
  /// frees an object while another reads it is the owner's affair.
  [[nodiscard]] ZsObject zs_map_object(ZsHandle handle, uint32_t bytes) const;

  /// Frames held, descriptors included.
  [[nodiscard]] PageCount zs_get_total_pages() const { return PageCount(total_pages_.load(std::memory_order_relaxed)); }
  /// zs_malloc does not take the pool above so many frames; 0 = no limit. What is above it already stays.
  void set_limit(PageCount pages) { limit_.store(pages.v, std::memory_order_relaxed); }
  [[nodiscard]] PageCount limit() const { return PageCount(limit_.load(std::memory_order_relaxed)); }

  /// Bytes that an object of `size` occupies: its class's size.
  [[nodiscard]] static uint32_t zs_object_size(uint32_t size);
  /// Frames of a zspage of the class that serves `size`.
  [[nodiscard]] static uint32_t zs_pages_per_zspage(uint32_t size);
  /// Objects in one zspage of that class.
  [[nodiscard]] static uint32_t zs_objs_per_zspage(uint32_t size);

  /// Only while nobody allocates or frees.
  [[nodiscard]] ZsRecount recount() const;
  /// The counters as they stand; equal to recount() at rest.
  [[nodiscard]] ZsRecount counters() const;

 private:
  // Which list a zspage is on. Allocation fills the almost full first, so that the almost empty may run empty.
  enum Fullness : uint8_t { ZS_ALMOST_FULL, ZS_ALMOST_EMPTY, ZS_LISTS, ZS_FULL = ZS_LISTS };

  // A descriptor. Immutable while it lives: frames, nr_frames, cls. The rest is guarded by the class's lock.
  // Invariant: inuse = fresh - length of the free list; nr_frames == 0 means the descriptor itself is free.
  struct Zspage {
    static constexpr uint16_t NO_OBJECT = 0xffff;
    uint32_t frames[ZS_MAX_PAGES_PER_ZSPAGE];
    Zspage* next;  // in the class's list; in a free descriptor: the block's next free one
    Zspage* prev;
    uint16_t inuse;
    uint16_t free_head;  // last freed object, whose first two bytes hold the one freed before it
    uint16_t fresh;      // objects [fresh, all) were never used, so a new zspage's frames need no writing
    uint8_t cls;
    uint8_t nr_frames : 4;
    uint8_t group : 4;
  };
  static_assert(sizeof(Zspage) == 40);

  // A frame of descriptors; this at its front. Guarded by blocks_lock_.
  struct Block {
    Pfn frame;
    Block *next, *prev;            // all blocks
    Block *next_room, *prev_room;  // those with a free descriptor
    Zspage* free;
    uint16_t used;
    uint16_t fresh;
  };
  static constexpr uint32_t DESCRIPTORS = (PAGE_SIZE - sizeof(Block)) / sizeof(Zspage);
  static_assert(DESCRIPTORS <= 255);

  struct alignas(64) SizeClass {
    mutable SpinLock lock{LockRank::zram_pool};
    Zspage* lists[ZS_LISTS] WEIR_GUARDED_BY(lock) = {};
    uint64_t zspages WEIR_GUARDED_BY(lock) = 0;
    uint64_t objects WEIR_GUARDED_BY(lock) = 0;
  };

  [[nodiscard]] static Block* block_of(const Zspage* zspage) {
    return reinterpret_cast<Block*>(reinterpret_cast<uintptr_t>(zspage) & PAGE_MASK);
  }
  [[nodiscard]] static Zspage* descriptors(Block* block) { return reinterpret_cast<Zspage*>(block + 1); }
  [[nodiscard]] ZsHandle handle_of(const Zspage* zspage, uint32_t object) const;
  [[nodiscard]] Zspage* zspage_of(ZsHandle handle) const;
  [[nodiscard]] uint16_t* link_of(const Zspage* zspage, uint32_t object) const;

  Result<Zspage*> alloc_zspage(uint8_t cls);
  void free_zspage(Zspage* zspage);
  Result<Zspage*> alloc_descriptor();
  /// A free descriptor; of `fresh`, which then joins the blocks, if no other has one. Null if there is neither.
  [[nodiscard]] Zspage* take_descriptor(Block* fresh);
  void free_descriptor(Zspage* zspage);
  Result<Pfn> get_frame();
  void put_frame(Pfn frame);

  uint32_t obj_malloc(Zspage* zspage);
  [[nodiscard]] static Fullness get_fullness_group(const Zspage* zspage);
  void insert_zspage(SizeClass& size_class, Zspage* zspage, Fullness group) WEIR_REQUIRES(size_class.lock);
  void remove_zspage(SizeClass& size_class, Zspage* zspage) WEIR_REQUIRES(size_class.lock);
  void fix_fullness_group(SizeClass& size_class, Zspage* zspage) WEIR_REQUIRES(size_class.lock);

  FrameSource& frames_;
  std::atomic<int64_t> total_pages_{0};
  std::atomic<int64_t> limit_{0};
  mutable SpinLock blocks_lock_{LockRank::zram_pool};
  Block* blocks_ WEIR_GUARDED_BY(blocks_lock_) = nullptr;
  Block* room_ WEIR_GUARDED_BY(blocks_lock_) = nullptr;
  std::array<SizeClass, ZS_SIZE_CLASSES> classes_;
};

}  // namespace weir
