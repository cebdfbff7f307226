// What zram adds to its compressor: pages stored and loaded, beside the same codec alone into buffers of its own.
#include <lz4.h>
#include <zstd.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "block/zram.hpp"
#include "machine.hpp"
#include "table.hpp"

using namespace weir;
using namespace weir::bench;

namespace {

constexpr unsigned PAGES = 4096;
constexpr unsigned BATCH = 64;  // pages
constexpr unsigned ROUNDS = 6;
constexpr size_t SLOT = 4608;  // of one compressed page in the codec's own buffer: above LZ4_compressBound(4096)

/// Frames as cheap as a per-CPU list's.
class Frames final : public FrameSource {
 public:
  explicit Frames(uint64_t n) : memory_(n << PAGE_SHIFT) {
    for (uint64_t i = 0; i < n; ++i) free_.push_back(i);
    // Frames of a machine that has run for a while are in no order.
    Random random;
    for (uint64_t i = n; i > 1; --i) std::swap(free_[i - 1], free_[random.below(i)]);
    std::memset(memory_.data(), 0, memory_.size());
  }
  Result<Pfn> get_frame() override {
    if (free_.empty()) return Errno::nomem;
    const uint64_t frame = free_.back();
    free_.pop_back();
    return Pfn(frame);
  }
  void put_frame(Pfn frame) override { free_.push_back(frame.v); }
  std::byte* frame_bytes(Pfn frame) override { return memory_.data() + (frame.v << PAGE_SHIFT); }

 private:
  HostMemory memory_;
  std::vector<uint64_t> free_;
};

enum class Kind : uint8_t { half_noise, words };

void fill(Kind kind, std::byte* page, Random& random) {
  for (size_t i = 0; i < PAGE_SIZE; i += 8) {
    uint64_t word;
    if (kind == Kind::half_noise) {
      word = i % 64 < 32 ? random() : 0;
    } else {
      // Pointers into one heap and small numbers.
      word = random.below(1000) + (random.below(2) != 0 ? 0x7f0000000000 : 0);
    }
    std::memcpy(page + i, &word, sizeof word);
  }
}

struct Codec {
  explicit Codec(Compressor which)
      : which_(which), lz4_(static_cast<size_t>(LZ4_sizeofState())), in_(ZSTD_createCCtx()), out_(ZSTD_createDCtx()) {}
  ~Codec() {
    ZSTD_freeCCtx(in_);
    ZSTD_freeDCtx(out_);
  }
  Codec(const Codec&) = delete;
  Codec& operator=(const Codec&) = delete;
  size_t compress(const std::byte* from, char* to) {
    if (which_ == Compressor::lz4)
      return static_cast<size_t>(
          LZ4_compress_fast_extState(lz4_.data(), reinterpret_cast<const char*>(from), to, PAGE_SIZE, SLOT, 1));
    return ZSTD_compressCCtx(in_, to, SLOT, from, PAGE_SIZE, 1);
  }
  void decompress(const char* from, size_t bytes, std::byte* to) {
    if (which_ == Compressor::lz4) {
      keep(LZ4_decompress_safe(from, reinterpret_cast<char*>(to), static_cast<int>(bytes), PAGE_SIZE));
    } else {
      keep(ZSTD_decompressDCtx(out_, to, PAGE_SIZE, from, bytes));
    }
  }

 private:
  Compressor which_;
  std::vector<char> lz4_;
  ZSTD_CCtx* in_;
  ZSTD_DCtx* out_;
};

void compare(Compressor which, Kind kind, const char* what) {
  HostMemory pages(size_t{PAGES} << PAGE_SHIFT), loaded(size_t{PAGES} << PAGE_SHIFT);
  Random random;
  for (unsigned i = 0; i < PAGES; ++i) fill(kind, pages.data() + i * PAGE_SIZE, random);
  std::memset(loaded.data(), 0, loaded.size());

  Frames frames(PAGES * 2);
  const ZramOptions options{.capacity = PageCount(PAGES), .comp = {.algorithm = which}};
  HostMemory place(sizeof(Zram)), metadata(Zram::metadata_needed(options));
  Result<Zram*> made = Zram::create(place.data(), frames, options, {metadata.data(), metadata.size()});
  WEIR_BUG_ON(!made);
  Zram& zram = **made;
  Codec codec(which);
  HostMemory kept(size_t{PAGES} * SLOT);
  std::vector<size_t> sizes(PAGES);

  // The first round makes caches and branch predictors used to it; then by turns, so that a busy host disturbs all
  // alike.
  Sample codec_in, codec_out, store, load;
  const auto all = [&](auto fn) {
    unsigned at = 0;
    return measure(PAGES / BATCH, BATCH, [&] {
      for (unsigned i = 0; i < BATCH; ++i) fn(at++);
    });
  };
  for (unsigned round = 0; round <= ROUNDS; ++round) {
    const Sample a = all([&](unsigned i) {
      sizes[i] = codec.compress(pages.data() + i * PAGE_SIZE, reinterpret_cast<char*>(kept.data()) + i * SLOT);
    });
    const Sample b = all([&](unsigned i) {
      codec.decompress(reinterpret_cast<char*>(kept.data()) + i * SLOT, sizes[i], loaded.data() + i * PAGE_SIZE);
    });
    const Sample c =
        all([&](unsigned i) { WEIR_BUG_ON(!zram.rw_page(BioOp::write, i, {.bytes = pages.data() + i * PAGE_SIZE})); });
    const Sample d =
        all([&](unsigned i) { WEIR_BUG_ON(!zram.rw_page(BioOp::read, i, {.bytes = loaded.data() + i * PAGE_SIZE})); });
    WEIR_BUG_ON(std::memcmp(pages.data(), loaded.data(), pages.size()) != 0);
    if (round > 0) codec_in.add(a), codec_out.add(b), store.add(c), load.add(d);
    if (round % 2 != 0)
      for (unsigned i = 0; i < PAGES; ++i) zram.slot_free_notify(i);
    if (round == ROUNDS) {
      const ZramMmStat stat = zram.mm_stat();
      std::printf("\n%s, %s: compressed to %.2f, with the pool's frames %.2f of their size", compressor_name(which),
                  what, static_cast<double>(stat.compr_data_size.v) / static_cast<double>(stat.orig_data_size.v),
                  static_cast<double>(stat.mem_used_total.v) / static_cast<double>(stat.orig_data_size.v));
    }
  }
  const std::string name = std::string(compressor_name(which)) + ", " + what;
  Table in(("Storing: " + name).c_str());
  in.row("reference: the codec alone", codec_in);
  in.row("zram", store);
  Table out(("Loading: " + name).c_str());
  out.row("reference: the codec alone", codec_out);
  out.row("zram", load);
  zram.~Zram();
}

}  // namespace

int main() {
  run_on_engine_stack(
      [](void*) {
        for (const Compressor which : {Compressor::lz4, Compressor::zstd}) {
          compare(which, Kind::half_noise, "half noise");
          compare(which, Kind::words, "pointers and small numbers");
        }
      },
      nullptr);
  return 0;
}
