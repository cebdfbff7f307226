// src/block/zcomp.hpp
//
// The compressor behind zram: an algorithm, and as many streams as pages may be worked on at once.
//
//   stream = zcomp_stream_get()   this CPU's, another's, or a wait until one is put back
//   zcomp_compress(stream, page)  --> bytes in stream.buffer, or PAGE_SIZE: "not worth it, store the page itself"
//
// A stream holds a codec's contexts and one page-aligned page. They lie in memory handed in at construction: neither
// lz4 nor zstd allocates here. In a tagged simulation nothing is compressed: the size is a pure function of the tag.
//
// Linux: drivers/block/zram/zcomp.c.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.hpp"
#include "base/units.hpp"
#include "block/block.hpp"
#include "kernel/locks.hpp"

namespace weir {

enum class Compressor : uint8_t { lz4, zstd };

/// "lz4", "zstd".
[[nodiscard]] const char* compressor_name(Compressor algorithm);

/// A page that does not shrink to this is stored as it is: mapping it costs nothing then, and the object would waste
/// the fourth quarter of its zspage anyway. Linux's max_zpage_size.
inline constexpr uint32_t ZRAM_MAX_COMPRESSED = PAGE_SIZE / 4 * 3;

/// What a page with this tag compresses to, 1…4096 bytes; 0: all of it is one repeated word. Always the same for a tag.
using TagSize = uint32_t (*)(uint64_t tag);

/// Tag 0 is a zero page; any other tag gives 25 % to 100 % of a page by its hash, half a page on average.
[[nodiscard]] uint32_t zcomp_default_tag_size(uint64_t tag);

struct ZcompOptions {
  Compressor algorithm = Compressor::lz4;
  /// lz4: acceleration, 1 = densest; 0 = 1. zstd: level, 1…19 or negative; 0 = 1 (zstd's own 3 is too slow for a
  /// fault).
  int level = 0;
  /// Pages that can be worked on at once, 1…64: one a CPU.
  unsigned streams = 1;
  TagSize tag_size = zcomp_default_tag_size;
  /// What a simulated CPU spends on a page (World::spend; nothing live). lz4's on a machine of 2020, for
  /// half-compressible pages.
  Nanos compress_time = 3_us;
  Nanos decompress_time = 1_us;
};

/// Contexts for one page at a time. `busy` is its lock; all else belongs to whoever holds it.
struct ZcompStream {
  std::byte* buffer = nullptr;  ///< PAGE_SIZE bytes, page aligned
  void* compress = nullptr;
  void* decompress = nullptr;
  std::atomic<bool> busy{false};
};

class Zcomp {
 public:
  /// Bytes that `options` need; 0 when they are out of range.
  [[nodiscard]] static size_t memory_needed(const ZcompOptions& options);

  /// `memory`: page aligned, memory_needed() bytes, outlives this. Check usable() before use.
  Zcomp(const ZcompOptions& options, std::span<std::byte> memory);
  Zcomp(const Zcomp&) = delete;
  Zcomp& operator=(const Zcomp&) = delete;
  /// False: the options or the memory do not do.
  [[nodiscard]] bool usable() const { return streams_ != 0; }
  [[nodiscard]] const ZcompOptions& options() const { return options_; }

  /// A stream for this thread alone. Sleeps when all are taken: hold no spinlock.
  [[nodiscard]] ZcompStream& zcomp_stream_get();
  void zcomp_stream_put(ZcompStream& stream);

  /// Compresses a page. Returns the bytes now in stream.buffer (of a tagged page: that would be), or PAGE_SIZE when
  /// they would be more than ZRAM_MAX_COMPRESSED; the buffer is then undefined.
  [[nodiscard]] uint32_t zcomp_compress(ZcompStream& stream, Content page);
  /// The first `bytes` of stream.buffer become the page at `to`. Error: EIO unless they give exactly a page.
  Result<void> zcomp_decompress(ZcompStream& stream, uint32_t bytes, std::byte* to);
  /// Time that a simulated CPU needs for a decompression; zcomp_decompress does it itself, a tagged read has nothing
  /// else.
  void spend_decompress() const;

 private:
  struct Layout {
    size_t compress = 0, decompress = 0, stride = 0;  // bytes
  };
  [[nodiscard]] static Layout layout_of(const ZcompOptions& options);
  [[nodiscard]] ZcompStream& stream(unsigned i) const;
  [[nodiscard]] ZcompStream* try_get();

  ZcompOptions options_;
  Layout layout_;
  std::byte* memory_;
  unsigned streams_ = 0;  // 0 until all contexts are made
  WaitQueue freed_;
};

}  // namespace weir
