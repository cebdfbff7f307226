// tests/unit/buffer_test.cpp
//
// Blocks of a device through its cache, files of small blocks, and the flat file system that stands on both: one read
// for each block, buffers that go only when nobody needs them, a table that has what fsync promised.
#include "mm/buffer.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

#include "mm/flat_fs.hpp"
#include "support/machine_fixture.hpp"

namespace weir::test {
namespace {

constexpr uint32_t SIZES[] = {512, 1024, 2048, 4096};

FixtureOptions with_disk(KernelEra kernel = DEFAULT_KERNEL) {
  return {.kernel = kernel, .ram = 16_MiB, .swaps = {{}}, .disk = 8_MiB};
}

/// A mounted file system on the fixture's disk.
struct Mounted {
  MachineFixture& m;
  std::unique_ptr<FlatFs> fs = std::make_unique<FlatFs>(m.machine->files);
  Mounted(MachineFixture& fixture, uint32_t block_size, uint32_t files = 8) : m(fixture) {
    EXPECT_TRUE(fs->mkfs(*m.file_device, block_size, files).ok());
  }
  ~Mounted() { fs->umount(); }
  Buffers& buffers() { return m.machine->buffers; }
  Inode& bdev() { return *fs->bd_inode(); }
  uint64_t reads() { return m.file_disk->stats().reads.load(); }
  uint64_t writes() { return m.file_disk->stats().writes.load(); }
  BufferHead& bread(uint64_t block) {
    Result<BufferHead*> bh = buffers().__bread(bdev(), block);
    WEIR_BUG_ON(!bh);
    return **bh;
  }
  void put_word(uint64_t block, uint64_t word) {
    BufferHead& bh = bread(block);
    buffers().fill_with_word(bh, word);
    buffers().mark_buffer_dirty(bh);
    EXPECT_TRUE(buffers().sync_dirty_buffer(bh).ok());
    Buffers::brelse(bh);
  }
  uint64_t word_at(uint64_t block) {
    BufferHead& bh = bread(block);
    const uint64_t word = buffers().word_of(bh);
    Buffers::brelse(bh);
    return word;
  }
};

TEST(Buffer, ABlockIsReadOnceAndAloneWhateverItsSize) {
  for (const uint32_t size : SIZES) {
    MachineFixture m(with_disk());
    m.run([&] {
      Mounted on(m, size);
      constexpr uint64_t FAR = 512;  // behind the table
      for (uint64_t i = 0; i < 8; ++i) on.put_word(FAR + i, 1000 + i);
      on.fs->flush_blockdev();
      EXPECT_EQ(m.machine->buffers.nr_buffer_heads(), 0) << size;
      const uint64_t before = on.reads();
      for (int twice = 0; twice < 2; ++twice)
        for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(on.word_at(FAR + i), 1000 + i) << size;
      EXPECT_EQ(on.reads() - before, 8u) << size;
    });
  }
}

TEST(Buffer, NeighboursOnAPageDoNotTouchEachOther) {
  MachineFixture m(with_disk());
  m.run([&] {
    Mounted on(m, 512);
    for (uint64_t i = 0; i < 8; ++i) on.put_word(800 + i, i + 1);
    const uint64_t writes = on.writes();
    on.put_word(803, 99);
    EXPECT_EQ(on.writes() - writes, 1u);
    on.fs->flush_blockdev();
    for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(on.word_at(800 + i), i == 3 ? 99 : i + 1);
  });
}

TEST(Buffer, ADirtyBlockGoesOutWithItsPageAndOnlyIt) {
  MachineFixture m(with_disk());
  m.run([&] {
    Mounted on(m, 1024);
    (void)on.word_at(400), (void)on.word_at(401);
    BufferHead& bh = on.bread(402);
    on.buffers().fill_with_word(bh, 7);
    on.buffers().mark_buffer_dirty(bh);
    Buffers::brelse(bh);
    EXPECT_EQ(m.gauge(NodeStat::nr_dirty), 1);
    const uint64_t writes = on.writes();
    m.machine->files.filemap_write_and_wait_range(on.bdev().i_data, 0, ~uint64_t{0});
    EXPECT_EQ(on.writes() - writes, 1u);
    EXPECT_EQ(m.gauge(NodeStat::nr_dirty), 0);
    on.fs->flush_blockdev();
    EXPECT_EQ(on.word_at(402), 7u);
  });
}

TEST(Buffer, OnlyBuffersThatNobodyNeedsAreFreed) {
  MachineFixture m(with_disk());
  m.run([&] {
    Mounted on(m, 1024);
    BufferHead& bh = on.bread(400);
    Page& page = *bh.b_page;
    Filemap& filemap = m.machine->filemap;
    const auto released = [&] {
      filemap.lock_page(page);
      const bool gone = on.buffers().try_to_release_page(page, GFP_KERNEL);
      filemap.unlock_page(page);
      return gone;
    };
    EXPECT_FALSE(released()) << "in use";
    on.buffers().fill_with_word(bh, 5);
    on.buffers().mark_buffer_dirty(bh);
    BufferHead* const head = page_buffers(page);
    PageAllocator::get_page(page);
    Buffers::brelse(bh);
    EXPECT_FALSE(released()) << "dirty";
    EXPECT_EQ(page_buffers(page), head);
    BufferHead& again = on.bread(400);
    EXPECT_TRUE(on.buffers().sync_dirty_buffer(again).ok());
    Buffers::brelse(again);
    EXPECT_TRUE(page.test(PageFlag::dirty)) << "its one dirty buffer was written, the page does not know";
    EXPECT_TRUE(released());
    EXPECT_FALSE(page.test(PageFlag::private_));
    EXPECT_FALSE(page.test(PageFlag::dirty));
    EXPECT_EQ(m.gauge(NodeStat::nr_dirty), 0);
    m.machine->lru.put_page(page);
  });
}

TEST(Buffer, ErrorsAreToldAndWhatWasNotWrittenStays) {
  MachineFixture m(with_disk());
  m.run([&] {
    Mounted on(m, 1024);
    on.put_word(400, 1);
    FaultAttr all;
    all.probability = 100;
    BufferHead& bh = on.bread(400);
    on.buffers().fill_with_word(bh, 2);
    on.buffers().mark_buffer_dirty(bh);
    m.file_faults->set_fail(all);
    EXPECT_EQ(on.buffers().sync_dirty_buffer(bh).error(), Errno::io);
    EXPECT_TRUE(bh.test(BufferFlag::dirty));
    EXPECT_EQ(on.buffers().__bread(on.bdev(), 600).error(), Errno::io);
    m.file_faults->set_fail({});
    EXPECT_TRUE(on.buffers().sync_dirty_buffer(bh).ok());
    Buffers::brelse(bh);
    on.fs->flush_blockdev();
    EXPECT_EQ(on.word_at(400), 2u);
    EXPECT_EQ(on.buffers().__bread(on.bdev(), uint64_t{1} << 40).error(), Errno::inval);
  });
}

// A page leaves the cache while one of its buffers is used: it keeps its buffers until reclaim comes.
TEST(Buffer, APageThatLeftTheCacheIsReclaimedWhenItsUserIsGone) {
  for (const Profile& profile : PROFILES) {
    MachineFixture m(with_disk(profile.era));
    Page* page = nullptr;
    const auto press = [&] {
      const VirtAddr at = m.map(5000);  // more than there is
      for (uint64_t i = 0; i < 5000; ++i) m.put(m.page_at(at, i), i);
      EXPECT_TRUE(m.machine->spaces.munmap(*current().task->mm, at, 5000 * PAGE_SIZE).ok());
    };
    std::unique_ptr<Mounted> on;
    m.run([&] {
      on = std::make_unique<Mounted>(m, 1024);
      BufferHead& bh = on->bread(400);
      page = bh.b_page;
      on->fs->flush_blockdev();
      EXPECT_EQ(Filemap::file_mapping(*page), nullptr);
      EXPECT_TRUE(page->test(PageFlag::private_));
      on->buffers().fill_with_word(bh, 77);
      on->buffers().mark_buffer_dirty(bh);
      EXPECT_TRUE(page->test(PageFlag::dirty));
      press();
      EXPECT_TRUE(page->test(PageFlag::private_)) << "in use, dirty";
      EXPECT_TRUE(on->buffers().sync_dirty_buffer(bh).ok());
      EXPECT_TRUE(page->test(PageFlag::dirty)) << "a dirty page whose buffers are clean";
      Buffers::brelse(bh);
      EXPECT_EQ(on->word_at(400), 77u) << "read anew, into another page";
    });
    m.run([&] {
      // The first look finds it referenced; then one page of a file alone is looked at only when all are.
      for (int i = 0; i < 3; ++i) {
        press();
        (void)m.machine->vmscan.shrink_all_memory(PageCount(1000000));
      }
      EXPECT_FALSE(page->test(PageFlag::private_)) << profile.name;
      EXPECT_EQ(page_count(*page), 0) << profile.name;
      on.reset();
    });
  }
}

TEST(Buffer, WithoutMemoryForBuffersMoreIsFreedAndItGoesOn) {
  for (const Profile& profile : PROFILES) {
    MachineFixture m(with_disk(profile.era));
    m.run([&] {
      Mounted on(m, 512);
      const VirtAddr at = m.map(1000);
      for (uint64_t i = 0; i < 1000; ++i) m.put(m.page_at(at, i), i + 1);
      ASSERT_TRUE(m.machine->slab.set_failslab("buffer_head", 3));
      EXPECT_FALSE(m.machine->slab.set_failslab("no such cache", 1));
      const uint64_t before = m.event(VmEvent::pgscan_direct);
      EXPECT_EQ(on.word_at(800), 0u);
      EXPECT_GT(m.event(VmEvent::pgscan_direct), before) << profile.name;
      // Only 4.14 tells how long its tasks wait for that.
      EXPECT_EQ(m.task().freepages_count > 0, profile.era == KernelEra::linux_4_14);
    });
  }
}

// ---- Files ----------------------------------------------------------------------------------------------------------

TEST(FlatFs, KeepsFilesAndTheirSizes) {
  for (const uint32_t size : SIZES) {
    MachineFixture m(with_disk());
    m.run([&] {
      auto fs = std::make_unique<FlatFs>(m.machine->files);
      FilemapIo& files = m.machine->files;
      EXPECT_EQ(fs->mount(*m.file_device, size).error(), Errno::inval) << "an empty disk";
      ASSERT_TRUE(fs->mkfs(*m.file_device, size, 2).ok());
      Inode* a = *fs->create("a", 64_KiB);
      Inode* b = *fs->create("b", 128_KiB);
      EXPECT_EQ(fs->create("c", 4_KiB).error(), Errno::nospc) << "the table is full";
      File* in_a = *files.open(*a);
      File* in_b = *files.open(*b);
      const std::string text = "what fsync promised";
      const auto* bytes = reinterpret_cast<const std::byte*>(text.data());
      for (File* file : {in_a, in_b}) EXPECT_EQ(*files.write(*file, 5000, bytes, text.size()), text.size());
      EXPECT_TRUE(files.fsync(*in_a).ok());
      const std::vector<std::byte> tail(72);
      EXPECT_EQ(*files.write(*in_b, 131'000, tail.data(), tail.size()), tail.size());
      for (File* file : {in_a, in_b}) files.close(*file);
      for (Inode* inode : {a, b}) files.iput(*inode);  // the last close writes lengths too
      fs->umount();

      ASSERT_TRUE(fs->mount(*m.file_device, size).ok());
      EXPECT_EQ(fs->iget(2, "?").error(), Errno::noent);
      a = *fs->iget(0, "a");
      b = *fs->iget(1, "b");
      EXPECT_EQ(a->i_size.load(), 5000 + text.size());
      EXPECT_EQ(b->i_size.load(), 131'072u);
      in_a = *files.open(*a);
      std::string back(text.size(), '?');
      EXPECT_EQ(*files.read(*in_a, 5000, reinterpret_cast<std::byte*>(back.data()), back.size()), back.size());
      EXPECT_EQ(back, text);
      char hole = '?';
      EXPECT_EQ(*files.read(*in_a, 4999, reinterpret_cast<std::byte*>(&hole), 1), 1u);
      EXPECT_EQ(hole, 0);
      files.close(*in_a);
      for (Inode* inode : {a, b}) files.iput(*inode);
      fs->umount();
    });
  }
}

TEST(FlatFs, RefusesWhatItCannotHold) {
  MachineFixture m(with_disk());
  m.run([&] {
    FlatFs fs(m.machine->files);
    EXPECT_EQ(fs.mkfs(*m.file_device, 3000, 2).error(), Errno::inval);
    EXPECT_EQ(fs.mkfs(*m.file_device, 256, 2).error(), Errno::inval);
    EXPECT_EQ(fs.mkfs(*m.file_device, 8192, 2).error(), Errno::inval);
    EXPECT_EQ(fs.mkfs(*m.file_device, 0, 2).error(), Errno::inval);
    EXPECT_EQ(fs.mkfs(*m.file_device, 512, 0).error(), Errno::inval);
    EXPECT_EQ(fs.mkfs(*m.file_device, 4096, 2000).error(), Errno::nospc);
    ASSERT_TRUE(fs.mkfs(*m.file_device, 512, 2).ok());
    EXPECT_EQ(fs.create("too large", 8_MiB).error(), Errno::nospc);
    EXPECT_EQ(fs.create("nothing", Bytes(0)).error(), Errno::fbig);
    fs.umount();
  });
}

// Random reads, writes and stores to a file of small blocks, in less memory than it has; what is read is the model's,
// and so is what lies on the disk after fsync.
TEST(FlatFs, AFileOfSmallBlocksReadsAsItWasWrittenWhateverReclaimDoes) {
  for (const Profile& profile : PROFILES) {
    for (const uint64_t seed : {1, 2, 3}) {
      SCOPED_TRACE(std::string(profile.name) + " seed " + std::to_string(seed));
      MachineFixture m({.kernel = profile.era,
                        .ram = 8_MiB,
                        .cpus = 2,
                        .seed = seed,
                        .preempt_one_in = 16,
                        .swaps = {{}},
                        .disk = 16_MiB});
      constexpr uint64_t PAGES = 2500;
      std::map<uint64_t, uint64_t> model;
      m.run([&] {
        FlatFs fs(m.machine->files);
        FilemapIo& files = m.machine->files;
        ASSERT_TRUE(fs.mkfs(*m.file_device, seed == 1 ? 512 : 1024, 1).ok());
        Inode* inode = *fs.create("f", Bytes(PAGES << PAGE_SHIFT));
        File* file = *files.open(*inode);
        for (uint64_t i = 0; i < PAGES; ++i) {
          model[i] = i + 1;
          ASSERT_TRUE(files.write_tag(*file, i, i + 1).ok());
        }
        const VirtAddr at = m.map_file(*file, PAGES, MmapRequest::Sharing::shared);
        std::mt19937_64 random(seed);
        for (uint64_t n = 0; n < 4000; ++n) {
          const uint64_t page = random() % PAGES;
          switch (random() % 5) {
            case 0:
              model[page] = 10'000 + n;
              ASSERT_TRUE(files.write_tag(*file, page, 10'000 + n).ok());
              break;
            case 1:
              model[page] = 10'000 + n;
              m.put(m.page_at(at, page), 10'000 + n);
              break;
            case 2: ASSERT_EQ(m.get(m.page_at(at, page)), model[page]); break;
            case 3: ASSERT_EQ(*files.read_tag(*file, page), model[page]); break;
            case 4:
              if (random() % 64 == 0) fs.flush_blockdev();
              if (random() % 128 == 0) {
                ASSERT_TRUE(files.fsync(*file).ok());
              }
              break;
          }
        }
        EXPECT_TRUE(m.machine->spaces.munmap(*current().task->mm, at, PAGES << PAGE_SHIFT).ok());
        EXPECT_TRUE(files.fsync(*file).ok());
        for (const auto& [page, word] : model) {
          uint64_t there = 0;
          std::memcpy(&there, m.file_disk->stored_bytes(inode->first_page + page), sizeof there);
          ASSERT_EQ(there, word) << page;
        }
        files.close(*file);
        files.iput(*inode);
        fs.umount();
      });
    }
  }
}

}  // namespace
}  // namespace weir::test
