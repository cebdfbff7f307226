// src/block/zcomp.cpp: see zcomp.hpp
#include "block/zcomp.hpp"

#include <lz4.h>
#define ZSTD_STATIC_LINKING_ONLY  // static contexts and their sizes
#include <zstd.h>

#include <new>

#include "base/flow.hpp"

namespace weir {

namespace {

constexpr unsigned MAX_STREAMS = 64;

void spend(Nanos time) {
  if (World* w = engine_thread().world; w != nullptr && time != Nanos(0)) w->spend(time);
}

}  // namespace

const char* compressor_name(Compressor algorithm) { return algorithm == Compressor::lz4 ? "lz4" : "zstd"; }

uint32_t zcomp_default_tag_size(uint64_t tag) {
  if (tag == 0) return 0;
  // splitmix64's finish. The smaller of two uniform sizes, so that the mean is at a third of the range, not at its
  // middle.
  uint64_t h = tag * 0x9e3779b97f4a7c15ull;
  h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9ull;
  h = (h ^ h >> 27) * 0x94d049bb133111ebull;
  h ^= h >> 31;
  constexpr uint32_t least = PAGE_SIZE / 4;
  constexpr uint32_t range = PAGE_SIZE - least + 1;
  const uint32_t a = (h & 0xffffffff) % range, b = (h >> 32) % range;
  return least + (a < b ? a : b);
}

Zcomp::Layout Zcomp::layout_of(const ZcompOptions& options) {
  Layout layout;
  if (options.algorithm == Compressor::lz4) {
    layout.compress = static_cast<size_t>(LZ4_sizeofState());
  } else {
    // For sources of a page, not for the level's largest window: 100 KiB instead of megabytes.
    layout.compress = ZSTD_estimateCCtxSize_usingCParams(ZSTD_getCParams(options.level, PAGE_SIZE, 0));
    layout.decompress = ZSTD_estimateDCtxSize();
  }
  // zstd wants its contexts at multiples of 8.
  layout.compress = (layout.compress + 63) & ~size_t{63};
  layout.decompress = (layout.decompress + 63) & ~size_t{63};
  layout.stride = page_align_up(PAGE_SIZE + layout.compress + layout.decompress + sizeof(ZcompStream));
  return layout;
}

size_t Zcomp::memory_needed(const ZcompOptions& options) {
  if (options.streams == 0 || options.streams > MAX_STREAMS) return 0;
  if (options.algorithm == Compressor::zstd && (options.level > 19 || options.level < ZSTD_minCLevel())) return 0;
  ZcompOptions with_level = options;
  if (with_level.level == 0) with_level.level = 1;
  return layout_of(with_level).stride * options.streams;
}

Zcomp::Zcomp(const ZcompOptions& options, std::span<std::byte> memory) : options_(options), memory_(memory.data()) {
  if (options_.level == 0) options_.level = 1;
  const size_t needed = memory_needed(options_);
  if (needed == 0 || memory.size() < needed || reinterpret_cast<uintptr_t>(memory_) % PAGE_SIZE != 0) return;
  layout_ = layout_of(options_);
  for (unsigned i = 0; i < options_.streams; ++i) {
    ZcompStream* s = ::new (static_cast<void*>(&stream(i))) ZcompStream;
    s->buffer = memory_ + i * layout_.stride;
    s->compress = s->buffer + PAGE_SIZE;
    if (options_.algorithm == Compressor::zstd) {
      s->decompress = s->buffer + PAGE_SIZE + layout_.compress;
      s->compress = ZSTD_initStaticCCtx(s->compress, layout_.compress);
      s->decompress = ZSTD_initStaticDCtx(s->decompress, layout_.decompress);
      if (s->compress == nullptr || s->decompress == nullptr) return;
    }
  }
  streams_ = options_.streams;
}

ZcompStream& Zcomp::stream(unsigned i) const {
  std::byte* end = memory_ + (i + 1) * layout_.stride;
  return *reinterpret_cast<ZcompStream*>(end - sizeof(ZcompStream));
}

ZcompStream* Zcomp::try_get() {
  // This CPU's first: its contexts are likely still in the cache.
  const Thread* thread = engine_thread().thread;
  const unsigned first = thread != nullptr ? thread->cpu.v : 0;
  for (unsigned i = 0; i < streams_; ++i) {
    ZcompStream& s = stream((first + i) % streams_);
    if (!s.busy.load(std::memory_order_relaxed) && !s.busy.exchange(true, std::memory_order_acquire)) return &s;
  }
  return nullptr;
}

ZcompStream& Zcomp::zcomp_stream_get() {
  ZcompStream* s = try_get();
  if (s == nullptr) freed_.wait([&] { return (s = try_get()) != nullptr; });
  return *s;
}

void Zcomp::zcomp_stream_put(ZcompStream& stream) {
  // An exchange, as it keeps the look at the queue behind it: a waiter sees the stream free, or is seen waiting. The
  // queue is only read, so that CPUs do not take its cache line from each other at every page.
  stream.busy.exchange(false, std::memory_order_seq_cst);
  if (!freed_.empty()) freed_.wake_one();
}

uint32_t Zcomp::zcomp_compress(ZcompStream& stream, Content page) {
  WEIR_FLOW();
  spend(options_.compress_time);
  if (page.tagged()) {
    const uint32_t size = options_.tag_size(*page.tag);
    return size > ZRAM_MAX_COMPRESSED ? PAGE_SIZE : size;
  }
  const auto* from = reinterpret_cast<const char*>(page.bytes);
  auto* to = reinterpret_cast<char*>(stream.buffer);
  // Both get room for what is worth keeping only: they give up at the first byte too many.
  if (options_.algorithm == Compressor::lz4) {
    const int size =
        LZ4_compress_fast_extState(stream.compress, from, to, PAGE_SIZE, ZRAM_MAX_COMPRESSED, options_.level);
    return size > 0 ? static_cast<uint32_t>(size) : PAGE_SIZE;
  }
  const size_t size = ZSTD_compressCCtx(static_cast<ZSTD_CCtx*>(stream.compress), to, ZRAM_MAX_COMPRESSED, from,
                                        PAGE_SIZE, options_.level);
  return ZSTD_isError(size) ? PAGE_SIZE : static_cast<uint32_t>(size);
}

Result<void> Zcomp::zcomp_decompress(ZcompStream& stream, uint32_t bytes, std::byte* to) {
  WEIR_FLOW(bytes);
  spend_decompress();
  const auto* from = reinterpret_cast<const char*>(stream.buffer);
  if (options_.algorithm == Compressor::lz4) {
    const int size = LZ4_decompress_safe(from, reinterpret_cast<char*>(to), static_cast<int>(bytes), PAGE_SIZE);
    return size == static_cast<int>(PAGE_SIZE) ? Result<void>() : Errno::io;
  }
  const size_t size = ZSTD_decompressDCtx(static_cast<ZSTD_DCtx*>(stream.decompress), to, PAGE_SIZE, from, bytes);
  return size == PAGE_SIZE ? Result<void>() : Errno::io;
}

void Zcomp::spend_decompress() const { spend(options_.decompress_time); }

}  // namespace weir
