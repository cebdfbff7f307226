#include "block/zram.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernel/virtual/virtual_world.hpp"
#include "support/frame_source.hpp"

namespace weir {
namespace {

using PageBytes = std::array<std::byte, PAGE_SIZE>;

struct alignas(PAGE_SIZE) Buffer {
  PageBytes bytes;
};

/// A zram device with all that it stands on.
class Device {
 public:
  explicit Device(ZramOptions options, PageCount frames = PageCount(8192)) : frames_(frames) {
    if (options.capacity == PageCount(0)) options.capacity = PageCount(1024);
    bytes_ = Zram::metadata_needed(options);
    metadata_ =
        static_cast<std::byte*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    zram_ = *Zram::create(place_, frames_, options, {metadata_, bytes_});
  }
  ~Device() {
    zram_->~Zram();
    EXPECT_EQ(frames_.out(), PageCount(0)) << "frames not given back";
    munmap(metadata_, bytes_);
  }
  Zram* operator->() { return zram_; }
  Zram& operator*() { return *zram_; }
  TestFrameSource& frames() { return frames_; }

  Errno write(uint64_t index, const PageBytes& page) {
    auto buffer = std::make_unique<Buffer>(Buffer{page});
    return zram_->rw_page(BioOp::write, index, {.bytes = buffer->bytes.data()}).error();
  }
  Result<PageBytes> read(uint64_t index) {
    auto buffer = std::make_unique<Buffer>();
    buffer->bytes.fill(std::byte{0xa5});
    Result<void> done = zram_->rw_page(BioOp::read, index, {.bytes = buffer->bytes.data()});
    if (!done) return done.error();
    return PageBytes(buffer->bytes);
  }
  Errno write_tag(uint64_t index, uint64_t tag) { return zram_->rw_page(BioOp::write, index, {.tag = &tag}).error(); }
  Result<uint64_t> read_tag(uint64_t index) {
    uint64_t tag = 0xa5a5;
    Result<void> done = zram_->rw_page(BioOp::read, index, {.tag = &tag});
    if (!done) return done.error();
    return uint64_t{tag};
  }

 private:
  TestFrameSource frames_;
  std::byte* metadata_ = nullptr;
  size_t bytes_ = 0;
  alignas(Zram) std::byte place_[sizeof(Zram)];
  Zram* zram_ = nullptr;
};

PageBytes word_page(uint64_t word) {
  PageBytes page;
  for (size_t at = 0; at < PAGE_SIZE; at += 8) std::memcpy(&page[at], &word, 8);
  return page;
}

PageBytes random_page(std::mt19937_64& random) {
  PageBytes page;
  for (size_t at = 0; at < PAGE_SIZE; at += 8) {
    const uint64_t word = random();
    std::memcpy(&page[at], &word, 8);
  }
  return page;
}

PageBytes text_page(std::mt19937_64& random) {
  static constexpr const char* WORDS[] = {"page ", "frame ",  "slot ",   "reclaim ", "the ",
                                          "of ",   "writes ", "kswapd ", "\n"};
  std::string text;
  while (text.size() < PAGE_SIZE) text += WORDS[random() % std::size(WORDS)];
  PageBytes page;
  std::memcpy(page.data(), text.data(), PAGE_SIZE);
  return page;
}

/// The first `share` of the page is noise.
PageBytes mixed_page(std::mt19937_64& random, double share) {
  PageBytes page = random_page(random);
  std::memset(&page[static_cast<size_t>(share * PAGE_SIZE)], 0x20, PAGE_SIZE - static_cast<size_t>(share * PAGE_SIZE));
  return page;
}

class ZramCompressors : public testing::TestWithParam<Compressor> {};
INSTANTIATE_TEST_SUITE_P(All, ZramCompressors, testing::Values(Compressor::lz4, Compressor::zstd),
                         [](const auto& info) { return compressor_name(info.param); });

TEST_P(ZramCompressors, PagesOfAllKindsComeBackAsTheyWere) {
  std::mt19937_64 random(1);
  Device zram({.comp = {.algorithm = GetParam()}});
  std::vector<PageBytes> pages = {word_page(0), word_page(0x0123456789abcdef), random_page(random), text_page(random)};
  for (int i = 0; i < 40; ++i) pages.push_back(mixed_page(random, i / 40.0));
  PageBytes last_differs = word_page(7);
  last_differs[PAGE_SIZE - 9] = std::byte{1};
  pages.push_back(last_differs);
  PageBytes first_differs = word_page(7);
  first_differs[3] = std::byte{1};
  pages.push_back(first_differs);
  for (size_t i = 0; i < pages.size(); ++i) ASSERT_EQ(zram.write(i, pages[i]), Errno::ok);
  for (size_t i = 0; i < pages.size(); ++i) {
    Result<PageBytes> page = zram.read(i);
    ASSERT_TRUE(page.ok());
    ASSERT_TRUE(*page == pages[i]) << "page " << i;
  }
  EXPECT_EQ(zram->mm_stat(), zram->recount());
}

TEST(Zram, AnUnwrittenSlotReadsZeros) {
  Device zram({});
  EXPECT_TRUE(*zram.read(5) == word_page(0));
  EXPECT_EQ(zram->mm_stat(), ZramMmStat{});
}

TEST(Zram, APageOfOneWordTakesNoMemory) {
  Device zram({});
  ASSERT_EQ(zram.write(0, word_page(0)), Errno::ok);
  ASSERT_EQ(zram.write(1, word_page(0xfeedfacecafebeef)), Errno::ok);
  EXPECT_EQ(zram.frames().out(), PageCount(0));
  EXPECT_EQ(zram->mm_stat(), (ZramMmStat{.orig_data_size = Bytes(8192), .same_pages = 2}));
  EXPECT_TRUE(*zram.read(1) == word_page(0xfeedfacecafebeef));
}

TEST(Zram, APageAboveThreeQuartersIsStoredRaw) {
  std::mt19937_64 random(2);
  Device zram({});
  const PageBytes noise = random_page(random);
  const PageBytes half = mixed_page(random, 0.5);
  ASSERT_EQ(zram.write(0, noise), Errno::ok);
  EXPECT_EQ(zram->mm_stat().huge_pages, 1u);
  EXPECT_EQ(zram->mm_stat().compr_data_size, Bytes(PAGE_SIZE));
  ASSERT_EQ(zram.write(1, half), Errno::ok);
  EXPECT_EQ(zram->mm_stat().huge_pages, 1u);
  EXPECT_LE(zram->mm_stat().compr_data_size, Bytes(PAGE_SIZE + ZRAM_MAX_COMPRESSED));
  ASSERT_EQ(zram.write(0, half), Errno::ok);
  EXPECT_EQ(zram->mm_stat().huge_pages, 0u);
  EXPECT_TRUE(*zram.read(0) == half);
}

TEST(Zram, AFreedSlotGivesItsMemoryBackAtOnce) {
  std::mt19937_64 random(3);
  Device zram({});
  for (uint64_t i = 0; i < 100; ++i) ASSERT_EQ(zram.write(i, mixed_page(random, 0.4)), Errno::ok);
  const PageCount full = zram.frames().out();
  for (uint64_t i = 0; i < 50; ++i) zram->slot_free_notify(i);
  EXPECT_LE(zram.frames().out(), full / 2 + PageCount(5));
  EXPECT_TRUE(*zram.read(10) == word_page(0));
  for (uint64_t i = 0; i < 100; ++i) zram->slot_free_notify(i);  // some of them twice
  EXPECT_EQ(zram.frames().out(), PageCount(0));
  EXPECT_EQ(zram->io_stat().notify_free, 150u);
  ZramMmStat empty = zram->mm_stat();
  EXPECT_EQ(empty.mem_used_max, bytes_of(full));
  empty.mem_used_max = Bytes(0);
  EXPECT_EQ(empty, ZramMmStat{});
}

TEST(Zram, AtTheLimitAWriteFailsAndTheSlotKeepsItsContent) {
  std::mt19937_64 random(4);
  Device zram({.mem_limit = PageCount(20)});
  uint64_t stored = 0;
  PageBytes page = random_page(random);
  while (zram.write(stored, page) == Errno::ok) {
    ASSERT_LT(++stored, 100u);
    EXPECT_EQ(zram->has_room(), stored + 1 <= 15) << stored;  // a zspage and descriptors more would fit
  }
  EXPECT_EQ(stored, 19u);  // and a frame of descriptors
  EXPECT_FALSE(zram->has_room());
  EXPECT_EQ(zram.frames().max_out(), PageCount(20));
  EXPECT_EQ(zram.write(0, random_page(random)), Errno::nomem);
  EXPECT_TRUE(*zram.read(0) == page);
  EXPECT_EQ(zram->io_stat().failed_writes, 2u);
  EXPECT_EQ(zram->mm_stat(), zram->recount());
  EXPECT_EQ(zram->mm_stat().mem_limit, Bytes(20 * PAGE_SIZE));

  ASSERT_EQ(zram.write(0, word_page(9)), Errno::ok) << "a word needs no room";
  for (uint64_t i = 0; i < 8; ++i) zram->slot_free_notify(i);
  EXPECT_TRUE(zram->has_room());
  EXPECT_EQ(zram.write(50, page), Errno::ok);
}

TEST(Zram, WithoutAFrameAWriteFailsAndNothingIsLost) {
  std::mt19937_64 random(5);
  Device zram({});
  const PageBytes old = mixed_page(random, 0.3);
  ASSERT_EQ(zram.write(0, old), Errno::ok);
  for (int64_t n = 0; n < 3; ++n) {
    zram.frames().fail_after(n);
    const Errno error = zram.write(0, mixed_page(random, 0.6));
    zram.frames().fail_after(-1);
    EXPECT_EQ(zram->mm_stat(), zram->recount());
    if (error == Errno::ok) break;
    EXPECT_EQ(error, Errno::nomem);
    EXPECT_TRUE(*zram.read(0) == old);
  }
}

TEST(Zram, BehindTheEndIsInvalid) {
  Device zram({.capacity = PageCount(8)});
  EXPECT_EQ(zram.write(8, word_page(1)), Errno::inval);
  EXPECT_EQ(zram.read(8).error(), Errno::inval);
  zram->slot_free_notify(8);
  EXPECT_EQ(zram->io_stat().invalid_io, 2u);
  EXPECT_EQ(zram->mm_stat(), ZramMmStat{});
}

TEST(Zram, ABioIsServedBeforeSubmitReturns) {
  std::mt19937_64 random(6);
  Device zram({.capacity = PageCount(8)});
  const auto buffer = std::make_unique<Buffer>(Buffer{text_page(random)});
  int ended = 0;
  Bio bio{.op = BioOp::write, .sector = 3 * SECTORS_PER_PAGE, .content = {.bytes = buffer->bytes.data()}};
  bio.end_io = [](Bio& b) { ++*static_cast<int*>(b.owner); };
  bio.owner = &ended;
  zram->submit_bio(bio);
  EXPECT_EQ(ended, 1);
  EXPECT_EQ(bio.status, Errno::ok);
  EXPECT_TRUE(*zram.read(3) == buffer->bytes);

  bio.op = BioOp::discard;
  bio.sector = 0;
  bio.pages = 100;  // cut at the end
  zram->submit_bio(bio);
  EXPECT_EQ(bio.status, Errno::ok);
  EXPECT_EQ(zram.frames().out(), PageCount(0));

  bio.op = BioOp::read;
  bio.pages = 1;
  bio.sector = 8 * SECTORS_PER_PAGE;
  zram->submit_bio(bio);
  EXPECT_EQ(bio.status, Errno::io);
  EXPECT_EQ(ended, 3);
}

TEST(Zram, StoredBytesThatDoNotDecompressAreAnError) {
  std::mt19937_64 random(7);
  for (Compressor algorithm : {Compressor::lz4, Compressor::zstd}) {
    Device zram({.comp = {.algorithm = algorithm}}, PageCount(8));
    ASSERT_EQ(zram.write(0, text_page(random)), Errno::ok);
    // One object in a zspage of its own: whatever of the eight frames is not its descriptor may be overwritten.
    for (uint64_t pfn = 7; pfn < 15; ++pfn) {
      std::byte* frame = zram.frames().frame_bytes(Pfn(pfn));
      uint64_t own;
      std::memcpy(&own, frame, sizeof own);
      if (own != pfn) std::memset(frame, 0xff, PAGE_SIZE);
    }
    EXPECT_EQ(zram.read(0).error(), Errno::io);
    EXPECT_EQ(zram->io_stat().failed_reads, 1u);
  }
}

TEST(Zram, OptionsOutOfRangeAreRefused) {
  EXPECT_EQ(Zram::metadata_needed({.capacity = PageCount(0)}), 0u);
  EXPECT_EQ(Zram::metadata_needed({.capacity = PageCount(1), .comp = {.streams = 0}}), 0u);
  EXPECT_EQ(Zram::metadata_needed({.capacity = PageCount(1), .comp = {.algorithm = Compressor::zstd, .level = 20}}),
            0u);
  TestFrameSource frames{PageCount(1)};
  alignas(Zram) static std::byte place[sizeof(Zram)];
  EXPECT_EQ(Zram::create(place, frames, {.capacity = PageCount(1)}, {}).error(), Errno::inval);
}

TEST(Zram, EveryZstdLevelFitsItsContext) {
  std::mt19937_64 random(8);
  for (int level = -5; level <= 19; ++level) {
    Device zram({.comp = {.algorithm = Compressor::zstd, .level = level}});
    const PageBytes page = text_page(random);
    ASSERT_EQ(zram.write(0, page), Errno::ok);
    EXPECT_EQ(zram->mm_stat().huge_pages, 0u) << "level " << level;
    EXPECT_TRUE(*zram.read(0) == page) << "level " << level;
  }
}

TEST(Zram, CountersEqualARecountAfterAnyOperations) {
  for (Compressor algorithm : {Compressor::lz4, Compressor::zstd}) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      SCOPED_TRACE(std::string(compressor_name(algorithm)) + ", seed " + std::to_string(seed));
      std::mt19937_64 random(seed);
      Device zram({.capacity = PageCount(128), .mem_limit = PageCount(100), .comp = {.algorithm = algorithm}});
      std::map<uint64_t, PageBytes> model;
      for (int step = 0; step < 3000; ++step) {
        const uint64_t index = random() % 128;
        switch (random() % 8) {
          case 0:
            zram->slot_free_notify(index);
            model.erase(index);
            break;
          case 1:
          case 2:
          case 3: {
            Result<PageBytes> page = zram.read(index);
            ASSERT_TRUE(page.ok());
            const auto known = model.find(index);
            ASSERT_TRUE(*page == (known != model.end() ? known->second : word_page(0))) << "step " << step;
            break;
          }
          default: {
            PageBytes page;
            switch (random() % 4) {
              case 0: page = word_page(random() % 3); break;
              case 1: page = text_page(random); break;
              case 2: page = random_page(random); break;
              default: page = mixed_page(random, static_cast<double>(random() % 100) / 100); break;
            }
            const Errno error = zram.write(index, page);
            if (error == Errno::ok) {
              model[index] = page;
            } else {
              ASSERT_EQ(error, Errno::nomem);
            }
          }
        }
        if (step % 100 == 0) {
          const ZramMmStat counted = zram->recount();
          ASSERT_EQ(zram->mm_stat(), counted);
          ASSERT_EQ(counted.orig_data_size, Bytes(model.size() * PAGE_SIZE));
          ASSERT_EQ(counted.mem_used_total, bytes_of(zram.frames().out()));
          ASSERT_LE(counted.mem_used_total, counted.mem_used_max);
          ASSERT_LE(counted.mem_used_max, bytes_of(zram.frames().max_out()));
          ASSERT_EQ(zram->pool().recount().broken, 0u);
        }
      }
    }
  }
}

/// What was entered, one line a function, a tab for each function around it; and the stored sizes.
class Tree final : public FlowSink {
 public:
  Tree() : saved_(engine_thread().sink) { engine_thread().sink = this; }
  ~Tree() { engine_thread().sink = saved_; }
  void enter(const FlowSite& site, uint64_t, uint64_t, uint64_t) override {
    text.append(depth_++, '\t');
    text += std::string(site.function) + " (" + site.file + ")\n";
  }
  void leave(const FlowSite&) override { --depth_; }
  void state(const FlowSite&, State what, uint64_t subject, uint64_t before, uint64_t after) override {
    ASSERT_EQ(what, State::zram_store);
    stored.push_back({subject, before, after});
  }
  std::string text;
  std::vector<std::array<uint64_t, 3>> stored;

 private:
  FlowSink* saved_;
  size_t depth_ = 0;
};

TEST(Zram, AWriteIsRecordedFunctionByFunction) {
  std::mt19937_64 random(10);
  Device zram({});
  const PageBytes text = text_page(random);
  {
    Tree tree;
    ASSERT_EQ(zram.write(3, text), Errno::ok);
    EXPECT_EQ(tree.text,
              "zram_rw_page (zram_drv.cpp)\n"
              "\tzram_bvec_rw (zram_drv.cpp)\n"
              "\t\tzram_bvec_write (zram_drv.cpp)\n"
              "\t\t\t__zram_bvec_write (zram_drv.cpp)\n"
              "\t\t\t\tzcomp_compress (zcomp.cpp)\n"
              "\t\t\t\tzs_malloc (zsmalloc.cpp)\n"
              "\t\t\t\tzs_map_object (zsmalloc.cpp)\n"
              "\t\t\t\tmemcpy (zram_drv.cpp)\n");
    EXPECT_EQ(tree.stored, (std::vector<std::array<uint64_t, 3>>{{3, 4096, zram->mm_stat().compr_data_size.v}}));
  }
  Tree tree;
  ASSERT_TRUE(zram.read(3).ok());
  EXPECT_EQ(tree.text,
            "zram_rw_page (zram_drv.cpp)\n"
            "\tzram_bvec_rw (zram_drv.cpp)\n"
            "\t\tzram_bvec_read (zram_drv.cpp)\n"
            "\t\t\tzs_map_object (zsmalloc.cpp)\n"
            "\t\t\tzcomp_decompress (zcomp.cpp)\n");
}

// ---- Tagged ---------------------------------------------------------------------------------------------------------

TEST(ZramTagged, ATagComesBackAndItsSizeIsAFunctionOfIt) {
  Device zram({.comp = {.tag_size = [](uint64_t tag) { return static_cast<uint32_t>(tag); }}});
  ASSERT_EQ(zram.write_tag(0, 100), Errno::ok);
  ASSERT_EQ(zram.write_tag(1, 3072), Errno::ok);
  EXPECT_EQ(zram->mm_stat().compr_data_size, Bytes(3172));
  ASSERT_EQ(zram.write_tag(2, 3073), Errno::ok);
  EXPECT_EQ(zram->mm_stat().compr_data_size, Bytes(3172 + 4096));
  EXPECT_EQ(zram->mm_stat().huge_pages, 1u);
  ASSERT_EQ(zram.write_tag(3, 0), Errno::ok);
  EXPECT_EQ(zram->mm_stat().same_pages, 1u);
  for (const auto& [index, tag] : std::map<uint64_t, uint64_t>{{0, 100}, {1, 3072}, {2, 3073}, {3, 0}, {4, 0}})
    EXPECT_EQ(*zram.read_tag(index), tag);
  EXPECT_EQ(zram->mm_stat(), zram->recount());
}

TEST(ZramTagged, TheDefaultSizesAreAboutHalfAPage) {
  uint64_t sum = 0;
  for (uint64_t tag = 1; tag <= 100000; ++tag) {
    const uint32_t size = zcomp_default_tag_size(tag);
    ASSERT_GE(size, PAGE_SIZE / 4);
    ASSERT_LE(size, PAGE_SIZE);
    sum += size;
  }
  EXPECT_NEAR(static_cast<double>(sum) / 100000, PAGE_SIZE / 2.0, 20);
  EXPECT_EQ(zcomp_default_tag_size(0), 0u);
}

TEST(ZramTagged, BytesAndTagsAreNotTakenForEachOther) {
  std::mt19937_64 random(9);
  Device zram({});
  ASSERT_EQ(zram.write_tag(0, 1), Errno::ok);
  EXPECT_EQ(zram.read(0).error(), Errno::io);
  ASSERT_EQ(zram.write(1, text_page(random)), Errno::ok);
  EXPECT_EQ(zram.read_tag(1).error(), Errno::io);
  ASSERT_EQ(zram.write(2, random_page(random)), Errno::ok);
  EXPECT_EQ(zram.read_tag(2).error(), Errno::io);
  ASSERT_EQ(zram.write_tag(3, 0), Errno::ok);
  EXPECT_EQ(zram.read(3).error(), Errno::io);
}

// ---- Host threads, no world -----------------------------------------------------------------------------------------

TEST(ZramThreads, ThreadsThatWriteReadAndFreeTheSameSlotsSeeOnlyWholePages) {
  constexpr int THREADS = 4;
  Device zram({.capacity = PageCount(8), .comp = {.streams = THREADS}});
  std::mt19937_64 random(1);
  const std::vector<PageBytes> pages = {mixed_page(random, 0.2),
                                        mixed_page(random, 0.5),
                                        mixed_page(random, 0.6),
                                        random_page(random),
                                        word_page(5),
                                        word_page(0)};
  std::atomic<int> torn{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < THREADS; ++t) {
    threads.emplace_back([&, t] {
      auto body = [&] {
        std::mt19937_64 own(t);
        for (int step = 0; step < 3000; ++step) {
          const uint64_t index = own() % 8;
          switch (own() % 4) {
            case 0: zram->slot_free_notify(index); break;
            case 1: torn += zram.write(index, pages[own() % pages.size()]) != Errno::ok; break;
            default: {
              Result<PageBytes> page = zram.read(index);
              torn += !page.ok() || std::find(pages.begin(), pages.end(), *page) == pages.end();
            }
          }
        }
      };
      run_on_engine_stack([](void* fn) { (*static_cast<decltype(body)*>(fn))(); }, &body);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(torn, 0);
  EXPECT_EQ(zram->mm_stat(), zram->recount());
  EXPECT_EQ(zram->pool().recount(), zram->pool().counters());
}

// ---- In a world -----------------------------------------------------------------------------------------------------

TEST(ZramWorld, CompressingTakesTheCpuTimeThatTheOptionsSay) {
  VirtualWorld world({.cpus = 1});
  Device zram({.comp = {.compress_time = 5_us, .decompress_time = 2_us}});
  world.spawn("swap", [&] {
    ASSERT_EQ(zram.write_tag(0, 1), Errno::ok);
    EXPECT_EQ(weir::world().now(), 5_us);
    ASSERT_TRUE(zram.read_tag(0).ok());
    EXPECT_EQ(weir::world().now(), 7_us);
    ASSERT_EQ(zram.write_tag(0, 0), Errno::ok);  // one word: found without compressing
    EXPECT_EQ(weir::world().now(), 7_us);
  });
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished);
}

TEST(ZramWorld, OneStreamServesManyThreadsUnderAnySchedule) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    VirtualWorld world({.seed = seed, .cpus = 3, .preempt_one_in = 3});
    Device zram({.capacity = PageCount(64), .comp = {.streams = 1}});
    int right = 0;
    for (uint64_t t = 0; t < 4; ++t) {
      world.spawn("swap", [&, t] {
        std::mt19937_64 random(seed * 10 + t);
        std::map<uint64_t, PageBytes> model;
        for (int step = 0; step < 30; ++step) {
          const uint64_t index = t * 16 + random() % 16;
          if (random() % 2 == 0) {
            const PageBytes page = random() % 4 == 0 ? word_page(random()) : mixed_page(random, 0.5);
            EXPECT_EQ(zram.write(index, page), Errno::ok);
            model[index] = page;
          } else if (model.contains(index)) {
            Result<PageBytes> page = zram.read(index);
            right += page.ok() && *page == model[index];
            EXPECT_TRUE(page.ok() && *page == model[index]);
          }
        }
      });
    }
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
    EXPECT_GT(right, 5);
    EXPECT_EQ(zram->mm_stat(), zram->recount());
  }
}

TEST(ZramWorld, AReadSeesTheOldPageTheNewOneOrZerosWhileOthersWriteAndFree) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    VirtualWorld world({.seed = seed, .cpus = 3, .preempt_one_in = 2});
    Device zram({.capacity = PageCount(4), .comp = {.streams = 2}});
    std::mt19937_64 random(seed);
    const std::vector<PageBytes> pages = {mixed_page(random, 0.3), mixed_page(random, 0.6), random_page(random),
                                          word_page(5)};
    world.spawn("writer", [&] {
      for (int step = 0; step < 40; ++step) EXPECT_EQ(zram.write(0, pages[step % pages.size()]), Errno::ok);
    });
    world.spawn("freer", [&] {
      for (int step = 0; step < 40; ++step) zram->slot_free_notify(0);
    });
    world.spawn("reader", [&] {
      for (int step = 0; step < 40; ++step) {
        Result<PageBytes> page = zram.read(0);
        ASSERT_TRUE(page.ok());
        bool known = *page == word_page(0);
        for (const PageBytes& one : pages) known = known || *page == one;
        EXPECT_TRUE(known);
      }
    });
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
    EXPECT_EQ(zram->mm_stat(), zram->recount());
  }
}

}  // namespace
}  // namespace weir
