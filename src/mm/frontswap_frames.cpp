// src/mm/frontswap_frames.cpp: see frontswap_frames.hpp
#include "mm/frontswap_frames.hpp"

#include <algorithm>
#include <cstring>

namespace weir {

namespace {

bool one_word(const std::byte* bytes, uint64_t& word) {
  std::memcpy(&word, bytes, sizeof word);
  return std::memcmp(bytes, bytes + sizeof word, PAGE_SIZE - sizeof word) == 0;
}

}  // namespace

FrontswapFrames::~FrontswapFrames() {
  for (unsigned type = 0; type < MAX_SWAPFILES; ++type) invalidate_area(type);
}

void FrontswapFrames::init(unsigned type, uint64_t slots) {
  invalidate_area(type);
  const uint64_t chunks = (slots + PER_CHUNK - 1) / PER_CHUNK;
  auto** table = static_cast<Kept**>(slab_.kzalloc(chunks * sizeof(void*), GFP_KERNEL));
  // Without a table every page of the area is refused.
  if (table != nullptr) areas_[type] = {table, chunks};
}

FrontswapFrames::Kept* FrontswapFrames::find(unsigned type, uint64_t offset) {
  const Area& area = areas_[type];
  Kept* chunk = offset / PER_CHUNK < area.nr_chunks ? area.chunks[offset / PER_CHUNK] : nullptr;
  return chunk != nullptr ? chunk + offset % PER_CHUNK : nullptr;
}

void FrontswapFrames::drop(Kept& kept) {
  // Tables come zeroed, which the analyzer does not see. NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult)
  if (kept.kind == Kept::Kind::frame) {
    frames_.put_frame(Pfn(kept.value));
    held_.fetch_sub(1, std::memory_order_relaxed);
  }
  kept = {};
}

Result<void> FrontswapFrames::store(unsigned type, uint64_t offset, Content content) {
  Area& area = areas_[type];
  if (offset / PER_CHUNK >= area.nr_chunks) return Errno::nomem;
  Kept*& chunk = area.chunks[offset / PER_CHUNK];
  if (chunk == nullptr) {
    auto* made = static_cast<Kept*>(slab_.kzalloc(PER_CHUNK * sizeof(Kept), GFP_NOWAIT | __GFP_NOWARN));
    if (made == nullptr) return Errno::nomem;
    {
      ScopedLock guard(lock_);
      if (chunk == nullptr) std::swap(chunk, made);
    }
    slab_.kfree(made);
  }
  Kept next{Kept::Kind::word, content.tagged() ? *content.tag : 0};
  if (!content.tagged() && !one_word(content.bytes, next.value)) {
    if (held_.fetch_add(1, std::memory_order_relaxed) >= limit_.v) {
      held_.fetch_sub(1, std::memory_order_relaxed);
      return Errno::nomem;
    }
    Result<Pfn> frame = frames_.get_frame();
    if (!frame) {
      held_.fetch_sub(1, std::memory_order_relaxed);
      return frame.error();
    }
    std::memcpy(frames_.frame_bytes(*frame), content.bytes, PAGE_SIZE);
    next = {Kept::Kind::frame, frame->v};
  }
  // The page lock keeps others from the slot.
  drop(chunk[offset % PER_CHUNK]);
  chunk[offset % PER_CHUNK] = next;
  return {};
}

Result<void> FrontswapFrames::load(unsigned type, uint64_t offset, Content content) {
  const Kept* kept = find(type, offset);
  if (kept == nullptr || kept->kind == Kept::Kind::nothing) return Errno::io;
  if (content.tagged()) {
    *content.tag = kept->value;
  } else if (kept->kind == Kept::Kind::frame) {
    std::memcpy(content.bytes, frames_.frame_bytes(Pfn(kept->value)), PAGE_SIZE);
  } else {
    for (size_t at = 0; at < PAGE_SIZE; at += sizeof kept->value)
      std::memcpy(content.bytes + at, &kept->value, sizeof kept->value);
  }
  return {};
}

void FrontswapFrames::invalidate_page(unsigned type, uint64_t offset) {
  if (Kept* kept = find(type, offset)) drop(*kept);
}

void FrontswapFrames::invalidate_area(unsigned type) {
  Area area;
  std::swap(area, areas_[type]);
  for (uint64_t c = 0; c < area.nr_chunks; ++c) {
    for (uint64_t i = 0; area.chunks[c] != nullptr && i < PER_CHUNK; ++i) drop(area.chunks[c][i]);
    slab_.kfree(area.chunks[c]);
  }
  slab_.kfree(area.chunks);
}

}  // namespace weir
