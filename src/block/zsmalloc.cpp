// src/block/zsmalloc.cpp: see zsmalloc.hpp
#include "block/zsmalloc.hpp"

#include <new>

#include "base/flow.hpp"

namespace weir {

namespace {

struct ClassShape {
  uint16_t size = 0;
  uint16_t objects = 0;  // in a zspage
  uint8_t frames = 0;    // of a zspage
  uint8_t merged = 0;    // the class that serves this one's objects
};

// The shapes of all classes. Chosen once, by the compiler.
constexpr auto make_shapes() {
  std::array<ClassShape, ZS_SIZE_CLASSES> shapes{};
  for (uint32_t i = 0; i < ZS_SIZE_CLASSES; ++i) {
    ClassShape& s = shapes[i];
    s.size = static_cast<uint16_t>(ZS_MIN_ALLOC_SIZE + i * ZS_SIZE_CLASS_DELTA);
    uint64_t least = ~uint64_t{0};
    for (uint32_t frames = 1; frames <= ZS_MAX_PAGES_PER_ZSPAGE; ++frames) {
      // Waste a frame, compared without dividing. At a tie the smaller zspage: it runs empty sooner.
      const uint64_t waste = frames * PAGE_SIZE % s.size * (12 / frames);
      if (waste < least) {
        least = waste;
        s.frames = static_cast<uint8_t>(frames);
      }
    }
    s.objects = static_cast<uint16_t>(s.frames * PAGE_SIZE / s.size);
  }
  // Equal frames and equally many objects: the larger class serves the smaller one at no cost, and there are fewer
  // half-filled zspages.
  for (uint32_t i = ZS_SIZE_CLASSES; i-- > 0;) {
    ClassShape& s = shapes[i];
    s.merged = static_cast<uint8_t>(i);
    if (i + 1 < ZS_SIZE_CLASSES && shapes[i + 1].frames == s.frames && shapes[i + 1].objects == s.objects)
      s.merged = shapes[i + 1].merged;
  }
  return shapes;
}
constexpr std::array<ClassShape, ZS_SIZE_CLASSES> SHAPES = make_shapes();

constexpr uint8_t class_for(uint32_t size) {
  if (size <= ZS_MIN_ALLOC_SIZE) return SHAPES[0].merged;
  return SHAPES[(size - ZS_MIN_ALLOC_SIZE + ZS_SIZE_CLASS_DELTA - 1) / ZS_SIZE_CLASS_DELTA].merged;
}

// A handle's parts, low to high: object + 1 (so that no handle is 0), descriptor, descriptor's frame.
constexpr unsigned OBJECT_BITS = 16;
constexpr unsigned DESCRIPTOR_BITS = 8;

}  // namespace

uint32_t ZsPool::zs_object_size(uint32_t size) { return SHAPES[class_for(size)].size; }
uint32_t ZsPool::zs_pages_per_zspage(uint32_t size) { return SHAPES[class_for(size)].frames; }
uint32_t ZsPool::zs_objs_per_zspage(uint32_t size) { return SHAPES[class_for(size)].objects; }

ZsPool::ZsPool(FrameSource& frames) : frames_(frames) {}

ZsPool::~ZsPool() { WEIR_BUG_ON(zs_get_total_pages() != PageCount(0)); }

ZsHandle ZsPool::handle_of(const Zspage* zspage, uint32_t object) const {
  Block* block = block_of(zspage);
  const auto index = static_cast<uint64_t>(zspage - descriptors(block));
  return ZsHandle(block->frame.v << (OBJECT_BITS + DESCRIPTOR_BITS) | index << OBJECT_BITS | (object + 1));
}

ZsPool::Zspage* ZsPool::zspage_of(ZsHandle handle) const {
  std::byte* place = frames_.frame_bytes(Pfn(handle.v >> (OBJECT_BITS + DESCRIPTOR_BITS)));
  const uint64_t index = handle.v >> OBJECT_BITS & ((1u << DESCRIPTOR_BITS) - 1);
  return descriptors(reinterpret_cast<Block*>(place)) + index;
}

// Objects start at multiples of 16, so the link never crosses an edge.
uint16_t* ZsPool::link_of(const Zspage* zspage, uint32_t object) const {
  const uint64_t offset = uint64_t{object} * SHAPES[zspage->cls].size;
  return reinterpret_cast<uint16_t*>(frames_.frame_bytes(Pfn(zspage->frames[offset / PAGE_SIZE])) + offset % PAGE_SIZE);
}

// ---- Frames ---------------------------------------------------------------------------------------------------------

Result<Pfn> ZsPool::get_frame() {
  // Counted before it is there: the limit holds even while several ask at once.
  const int64_t total = total_pages_.fetch_add(1, std::memory_order_relaxed) + 1;
  const int64_t limit = limit_.load(std::memory_order_relaxed);
  if (limit != 0 && total > limit) {
    total_pages_.fetch_sub(1, std::memory_order_relaxed);
    return Errno::nomem;
  }
  Result<Pfn> frame = frames_.get_frame();
  if (!frame) {
    total_pages_.fetch_sub(1, std::memory_order_relaxed);
    return frame.error();
  }
  WEIR_BUG_ON(frame->v > UINT32_MAX);  // 16 TiB of RAM: a descriptor keeps 32 bits
  return *frame;
}

void ZsPool::put_frame(Pfn frame) {
  frames_.put_frame(frame);
  total_pages_.fetch_sub(1, std::memory_order_relaxed);
}

ZsPool::Zspage* ZsPool::take_descriptor(Block* fresh) {
  ScopedLock guard(blocks_lock_);
  Block* block = room_;
  if (block == nullptr) {
    if (fresh == nullptr) return nullptr;
    block = fresh;
    block->next = blocks_;
    if (blocks_ != nullptr) blocks_->prev = block;
    blocks_ = block;
    room_ = block;
  }
  Zspage* zspage = block->free;
  if (zspage != nullptr) {
    block->free = zspage->next;
  } else {
    zspage = descriptors(block) + block->fresh++;
  }
  if (++block->used == DESCRIPTORS) {
    room_ = block->next_room;
    if (room_ != nullptr) room_->prev_room = nullptr;
  }
  // Stays 0 until alloc_zspage has all frames: a walk sees no half-made zspage.
  zspage->nr_frames = 0;
  return zspage;
}

Result<ZsPool::Zspage*> ZsPool::alloc_descriptor() {
  if (Zspage* zspage = take_descriptor(nullptr); zspage != nullptr) return zspage;
  const Pfn frame = WEIR_TRY(get_frame());
  Block* block = ::new (frames_.frame_bytes(frame)) Block{frame, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 0};
  Zspage* zspage = take_descriptor(block);
  // Another thread made room meanwhile. A block of which nothing is used must not stay: nobody would give it back.
  if (block_of(zspage) != block) put_frame(frame);
  return zspage;
}

void ZsPool::free_descriptor(Zspage* zspage) {
  Block* block = block_of(zspage);
  {
    ScopedLock guard(blocks_lock_);
    zspage->nr_frames = 0;
    zspage->next = block->free;
    block->free = zspage;
    if (block->used-- == DESCRIPTORS) {
      block->prev_room = nullptr;
      block->next_room = room_;
      if (room_ != nullptr) room_->prev_room = block;
      room_ = block;
    }
    if (block->used != 0) return;
    (block->prev != nullptr ? block->prev->next : blocks_) = block->next;
    if (block->next != nullptr) block->next->prev = block->prev;
    (block->prev_room != nullptr ? block->prev_room->next_room : room_) = block->next_room;
    if (block->next_room != nullptr) block->next_room->prev_room = block->prev_room;
  }
  put_frame(block->frame);
}

Result<ZsPool::Zspage*> ZsPool::alloc_zspage(uint8_t cls) {
  Zspage* zspage = WEIR_TRY(alloc_descriptor());
  const uint32_t want = SHAPES[cls].frames;
  for (uint32_t i = 0; i < want; ++i) {
    Result<Pfn> frame = get_frame();
    if (!frame) {
      while (i-- > 0) put_frame(Pfn(zspage->frames[i]));
      free_descriptor(zspage);
      return frame.error();
    }
    zspage->frames[i] = static_cast<uint32_t>(frame->v);
  }
  zspage->next = zspage->prev = nullptr;
  zspage->inuse = 0;
  zspage->free_head = Zspage::NO_OBJECT;
  zspage->fresh = 0;
  zspage->cls = cls;
  zspage->group = ZS_FULL;  // on no list
  zspage->nr_frames = static_cast<uint8_t>(want);
  return zspage;
}

void ZsPool::free_zspage(Zspage* zspage) {
  for (uint32_t i = 0; i < zspage->nr_frames; ++i) put_frame(Pfn(zspage->frames[i]));
  free_descriptor(zspage);
}

// ---- Fullness -------------------------------------------------------------------------------------------------------

ZsPool::Fullness ZsPool::get_fullness_group(const Zspage* zspage) {
  const uint32_t all = SHAPES[zspage->cls].objects;
  if (zspage->inuse == all) return ZS_FULL;
  // Linux's fullness_threshold_frac: up to three quarters is almost empty.
  return zspage->inuse <= 3 * all / 4 ? ZS_ALMOST_EMPTY : ZS_ALMOST_FULL;
}

void ZsPool::insert_zspage(SizeClass& size_class, Zspage* zspage, Fullness group) {
  zspage->group = group;
  if (group == ZS_FULL) return;
  Zspage*& head = size_class.lists[group];
  zspage->prev = nullptr;
  zspage->next = head;
  if (head != nullptr) head->prev = zspage;
  head = zspage;
}

void ZsPool::remove_zspage(SizeClass& size_class, Zspage* zspage) {
  if (zspage->group == ZS_FULL) return;
  (zspage->prev != nullptr ? zspage->prev->next : size_class.lists[zspage->group]) = zspage->next;
  if (zspage->next != nullptr) zspage->next->prev = zspage->prev;
}

void ZsPool::fix_fullness_group(SizeClass& size_class, Zspage* zspage) {
  const Fullness group = get_fullness_group(zspage);
  if (group == zspage->group) return;
  remove_zspage(size_class, zspage);
  insert_zspage(size_class, zspage, group);
}

// ---- Objects --------------------------------------------------------------------------------------------------------

uint32_t ZsPool::obj_malloc(Zspage* zspage) {
  ++zspage->inuse;
  if (zspage->free_head == Zspage::NO_OBJECT) return zspage->fresh++;
  const uint32_t object = zspage->free_head;
  zspage->free_head = *link_of(zspage, object);
  return object;
}

Result<ZsHandle> ZsPool::zs_malloc(uint32_t size) {
  WEIR_FLOW(size);
  if (size == 0 || size > ZS_MAX_ALLOC_SIZE) return Errno::inval;
  const uint8_t cls = class_for(size);
  SizeClass& size_class = classes_[cls];
  {
    ScopedLock guard(size_class.lock);
    Zspage* zspage = size_class.lists[ZS_ALMOST_FULL];
    if (zspage == nullptr) zspage = size_class.lists[ZS_ALMOST_EMPTY];
    if (zspage != nullptr) {
      const uint32_t object = obj_malloc(zspage);
      ++size_class.objects;
      fix_fullness_group(size_class, zspage);
      return handle_of(zspage, object);
    }
  }
  // Two threads may come here and make one zspage each: the second one is filled later, or runs empty.
  Zspage* zspage = WEIR_TRY(alloc_zspage(cls));
  ScopedLock guard(size_class.lock);
  const uint32_t object = obj_malloc(zspage);
  ++size_class.objects;
  ++size_class.zspages;
  insert_zspage(size_class, zspage, get_fullness_group(zspage));
  return handle_of(zspage, object);
}

void ZsPool::zs_free(ZsHandle handle) {
  WEIR_FLOW(handle);
  Zspage* zspage = zspage_of(handle);
  const auto object = static_cast<uint16_t>((handle.v & ((1u << OBJECT_BITS) - 1)) - 1);
  SizeClass& size_class = classes_[zspage->cls];
  {
    ScopedLock guard(size_class.lock);
    WEIR_BUG_ON(zspage->nr_frames == 0 || zspage->inuse == 0 || object >= zspage->fresh);
    *link_of(zspage, object) = zspage->free_head;
    zspage->free_head = object;
    --zspage->inuse;
    --size_class.objects;
    if (zspage->inuse != 0) {
      fix_fullness_group(size_class, zspage);
      return;
    }
    remove_zspage(size_class, zspage);
    --size_class.zspages;
  }
  free_zspage(zspage);
}

ZsObject ZsPool::zs_map_object(ZsHandle handle, uint32_t bytes) const {
  WEIR_FLOW(handle, bytes);
  const Zspage* zspage = zspage_of(handle);
  const uint32_t object = (handle.v & ((1u << OBJECT_BITS) - 1)) - 1;
  const uint32_t size = SHAPES[zspage->cls].size;
  WEIR_DEBUG_BUG_ON(zspage->nr_frames == 0 || bytes > size);
  const uint64_t offset = uint64_t{object} * size;
  const uint32_t frame = offset / PAGE_SIZE;
  const uint32_t within = offset % PAGE_SIZE;
  ZsObject mapped;
  mapped.head = frames_.frame_bytes(Pfn(zspage->frames[frame])) + within;
  mapped.head_bytes = bytes;
  if (within + bytes > PAGE_SIZE) {
    mapped.head_bytes = PAGE_SIZE - within;
    mapped.tail = frames_.frame_bytes(Pfn(zspage->frames[frame + 1]));
    mapped.tail_bytes = bytes - mapped.head_bytes;
  }
  return mapped;
}

// ---- Counting -------------------------------------------------------------------------------------------------------

ZsRecount ZsPool::recount() const {
  ZsRecount sum;
  std::array<std::array<uint64_t, ZS_LISTS>, ZS_SIZE_CLASSES> listed{};  // zspages that should be on each list
  {
    ScopedLock guard(blocks_lock_);
    for (Block* block = blocks_; block != nullptr; block = block->next) {
      sum.pages += PageCount(1);
      for (uint32_t i = 0; i < block->fresh; ++i) {
        const Zspage* zspage = descriptors(block) + i;
        if (zspage->nr_frames == 0) continue;
        const uint32_t all = SHAPES[zspage->cls].objects;
        sum.pages += PageCount(zspage->nr_frames);
        ++sum.zspages;
        sum.objects += zspage->inuse;
        sum.free_objects += all - zspage->inuse;
        uint32_t free = 0;
        for (uint32_t o = zspage->free_head; o != Zspage::NO_OBJECT && free <= all; o = *link_of(zspage, o)) ++free;
        const Fullness group = get_fullness_group(zspage);
        if (zspage->inuse == 0 || zspage->fresh > all || zspage->inuse != zspage->fresh - free ||
            zspage->group != group)
          ++sum.broken;
        if (group != ZS_FULL) ++listed[zspage->cls][group];
      }
    }
  }
  for (uint32_t cls = 0; cls < ZS_SIZE_CLASSES; ++cls) {
    ScopedLock guard(classes_[cls].lock);
    for (uint32_t group = 0; group < ZS_LISTS; ++group) {
      uint64_t found = 0;
      for (const Zspage* zspage = classes_[cls].lists[group]; zspage != nullptr; zspage = zspage->next) {
        if (zspage->cls != cls || zspage->group != group) ++sum.broken;
        ++found;
      }
      if (found != listed[cls][group]) ++sum.broken;
    }
  }
  return sum;
}

ZsRecount ZsPool::counters() const {
  ZsRecount sum;
  sum.pages = zs_get_total_pages();
  for (uint32_t cls = 0; cls < ZS_SIZE_CLASSES; ++cls) {
    ScopedLock guard(classes_[cls].lock);
    sum.zspages += classes_[cls].zspages;
    sum.objects += classes_[cls].objects;
    sum.free_objects += classes_[cls].zspages * SHAPES[cls].objects - classes_[cls].objects;
  }
  return sum;
}

}  // namespace weir
