// tests/unit/fremap_test.cpp
//
// remap_file_pages: whatever a kernel makes of it, an address shows the page of the file that was said, through
// reclaim, fork, mprotect, mremap and truncation.
#include <gtest/gtest.h>

#include <random>

#include "support/machine_fixture.hpp"

namespace weir::test {
namespace {

using Sharing = MmapRequest::Sharing;

enum class Kind { memory_file, disk_file };
struct Case {
  KernelEra kernel;
  Kind kind;
};
std::string name_of(const testing::TestParamInfo<Case>& info) {
  std::string name = profile_of(info.param.kernel).name;
  for (char& c : name)
    if (c == '.') c = '_';
  return "Linux_" + name + (info.param.kind == Kind::memory_file ? "_memory" : "_disk");
}

class RemapFilePages : public testing::TestWithParam<Case> {
 protected:
  /// fn with a file whose page i holds i + 1.
  void with_file(uint64_t pages, const FixtureOptions& more,
                 const std::function<void(MachineFixture& m, File& file)>& fn) {
    FixtureOptions o = more;
    o.kernel = GetParam().kernel;
    o.swaps = {{}};
    o.disk = 16_MiB;
    MachineFixture m(o);
    m.run([&] {
      const bool memory = GetParam().kind == Kind::memory_file;
      File* file = nullptr;
      if (memory) {
        file = *m.machine->shmem.shmem_file_setup("f", Bytes(pages << PAGE_SHIFT));
      } else {
        file = &m.make_file("f", pages, pages);
      }
      for (uint64_t i = 0; i < pages; ++i) ASSERT_TRUE(file->f_op->write_tag(*file, i, i + 1).ok());
      fn(m, *file);
      if (memory) fput(*file);
    });
  }
  static Result<void> remap(MachineFixture& m, VirtAddr at, uint64_t page, uint64_t pages, uint64_t pgoff,
                            uint64_t prot = 0) {
    return m.machine->spaces.remap_file_pages(*current().task->mm, m.page_at(at, page), pages << PAGE_SHIFT, prot,
                                              pgoff);
  }
  static bool nonlinear() {
    switch (profile_of(GetParam().kernel).nonlinear) {
      case Nonlinear::of_all_files: return true;
      case Nonlinear::of_memory_files: return GetParam().kind == Kind::memory_file;
      case Nonlinear::none: return false;
    }
    return false;
  }
};

class RemapDiskFilePages : public RemapFilePages {};

TEST_P(RemapFilePages, ShowsThePagesThatWereSaid) {
  with_file(16, {.ram = 8_MiB}, [](MachineFixture& m, File& file) {
    Mm& mm = *current().task->mm;
    const VirtAddr at = m.map_file(file, 8, Sharing::shared);
    for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(m.get(m.page_at(at, i)), i + 1);
    EXPECT_TRUE(remap(m, at, 0, 8, 0).ok()) << "as it was";
    EXPECT_EQ(mm.map_count, 1);
    EXPECT_TRUE(remap(m, at, 2, 3, 10).ok());
    EXPECT_TRUE(remap(m, at, 7, 1, 0).ok());
    const uint64_t wanted[] = {1, 2, 11, 12, 13, 6, 7, 1};
    for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(m.get(m.page_at(at, i)), wanted[i]) << i;
    m.put(m.page_at(at, 7), 100);
    EXPECT_EQ(m.get(at), 100u) << "the same page at two addresses";
    EXPECT_EQ(*file.f_op->read_tag(file, 0), 100u);
    EXPECT_EQ(mm.map_count, nonlinear() ? 1 : 4);
    const bool flag = (m.machine->vmas.vma_lookup(mm, at)->vm_flags & VM_NONLINEAR) != 0;
    EXPECT_EQ(flag, nonlinear());
    EXPECT_TRUE(m.at_rest([&] { EXPECT_EQ(m.verify(), ""); }));
    EXPECT_TRUE(m.machine->spaces.munmap(mm, at, 8 * PAGE_SIZE).ok());
  });
}

TEST_P(RemapFilePages, RefusesWhatItCannotDo) {
  with_file(16, {.ram = 8_MiB}, [](MachineFixture& m, File& file) {
    Mm& mm = *current().task->mm;
    const VirtAddr at = m.map_file(file, 8, Sharing::shared);
    const VirtAddr own = m.map_file(file, 8, Sharing::private_);
    const VirtAddr anonymous = m.map(8);
    EXPECT_EQ(remap(m, at, 0, 8, 1, VM_READ).error(), Errno::inval) << "a right";
    EXPECT_EQ(remap(m, at, 0, 0, 1).error(), Errno::inval) << "nothing";
    EXPECT_EQ(remap(m, at, 0, 9, 1).error(), Errno::inval) << "more than the mapping";
    EXPECT_EQ(remap(m, at, 0, 8, ~uint64_t{0} - 3).error(), Errno::inval) << "an offset past all files";
    EXPECT_EQ(remap(m, own, 0, 8, 1).error(), Errno::inval);
    EXPECT_EQ(remap(m, anonymous, 0, 8, 1).error(), Errno::inval);
    EXPECT_EQ(remap(m, VirtAddr(uint64_t{1} << 46), 0, 8, 1).error(), Errno::inval);
    for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(m.get(m.page_at(at, i)), i + 1);
    // Behind the end of the file is where any mapping may look, and none may touch.
    EXPECT_TRUE(remap(m, at, 0, 1, 99).ok());
    uint64_t value = 0;
    EXPECT_EQ(m.load(at, value), FaultResult::sigbus);
    EXPECT_TRUE(m.machine->spaces.munmap(mm, at, 8 * PAGE_SIZE).ok());
    EXPECT_TRUE(m.machine->spaces.munmap(mm, own, 8 * PAGE_SIZE).ok());
  });
}

TEST_P(RemapFilePages, TruncationTakesThePageWhereverItIsMapped) {
  with_file(16, {.ram = 8_MiB}, [](MachineFixture& m, File& file) {
    const VirtAddr at = m.map_file(file, 8, Sharing::shared);
    EXPECT_TRUE(remap(m, at, 0, 4, 8).ok());
    for (uint64_t i = 0; i < 8; ++i) m.put(m.page_at(at, i), 50 + i);
    ASSERT_TRUE(file.f_op->truncate(*file.f_inode, Bytes(10 * PAGE_SIZE)).ok());
    uint64_t value = 0;
    for (uint64_t i = 0; i < 8; ++i) {
      const bool gone = i == 2 || i == 3;  // pages 10 and 11
      EXPECT_EQ(m.load(m.page_at(at, i), value), gone ? FaultResult::sigbus : FaultResult::done) << i;
      if (!gone) {
        EXPECT_EQ(value, 50 + i);
      }
    }
    EXPECT_TRUE(m.at_rest([&] { EXPECT_EQ(m.verify(), ""); }));
    EXPECT_TRUE(m.machine->spaces.munmap(*current().task->mm, at, 8 * PAGE_SIZE).ok());
  });
}

// Random remaps, stores, loads, advice, rights and moves in less memory than the file has, beside a child that has the
// same mapping: an address always shows the model's page.
TEST_P(RemapFilePages, AgreesWithAModelWhateverHappens) {
  constexpr uint64_t FILE_PAGES = 1200, AREA = 1000;
  for (const uint64_t seed : {1, 2, 3}) {
    SCOPED_TRACE(seed);
    with_file(
        FILE_PAGES, {.ram = 5_MiB, .cpus = 2, .seed = seed, .preempt_one_in = 16}, [&](MachineFixture& m, File& file) {
          Mm& mm = *current().task->mm;
          m.machine->shmem.set_max_blocks(PageCount(FILE_PAGES));
          AddressSpaces& spaces = m.machine->spaces;
          VirtAddr at = m.map_file(file, AREA, Sharing::shared);
          std::vector<uint64_t> content(FILE_PAGES), order(AREA);
          for (uint64_t i = 0; i < FILE_PAGES; ++i) content[i] = i + 1;
          for (uint64_t i = 0; i < AREA; ++i) order[i] = i;
          std::mt19937_64 random(seed);
          for (uint64_t n = 0; n < 6000; ++n) {
            const uint64_t page = random() % AREA;
            const uint64_t pages = 1 + random() % std::min<uint64_t>(AREA - page, 16);
            switch (random() % 40) {
              case 0: {
                const uint64_t to = random() % (FILE_PAGES - pages);
                // A range over several mappings is refused: then nothing has changed.
                if (remap(m, at, page, pages, to))
                  for (uint64_t i = 0; i < pages; ++i) order[page + i] = to + i;
                break;
              }
              case 1:
                ASSERT_TRUE(spaces.madvise(mm, m.page_at(at, page), pages << PAGE_SHIFT, Advice::dontneed).ok());
                break;
              case 2:
                ASSERT_TRUE(spaces.mprotect(mm, m.page_at(at, page), pages << PAGE_SHIFT, VM_READ).ok());
                ASSERT_TRUE(spaces.mprotect(mm, m.page_at(at, page), pages << PAGE_SHIFT, VM_READ | VM_WRITE).ok());
                break;
              case 3:
                if (random() % 16 != 0) break;
                if (Result<VirtAddr> moved =
                        spaces.mremap(mm, at, AREA << PAGE_SHIFT, AREA << PAGE_SHIFT, AddressSpaces::MayMove::yes,
                                      VirtAddr((uint64_t{1} << 32) + (n << 24))))
                  at = *moved;
                break;
              case 4:
                if (random() % 16 == 0) {
                  Task* child = m.fork(m.task());
                  if (child == nullptr) break;
                  EXPECT_TRUE(m.at_rest([&] { EXPECT_EQ(m.verify(), ""); }));
                  m.exit(*child);
                }
                break;
              default:
                if (random() % 2 == 0)
                  m.put(m.page_at(at, page), content[order[page]] = 10'000 + n);
                else
                  ASSERT_EQ(m.get(m.page_at(at, page)), content[order[page]]) << "step " << n << " page " << page;
            }
          }
          for (uint64_t i = 0; i < AREA; ++i) ASSERT_EQ(m.get(m.page_at(at, i)), content[order[i]]) << i;
          EXPECT_TRUE(spaces.munmap(mm, at, AREA << PAGE_SHIFT).ok());
          for (uint64_t i = 0; i < FILE_PAGES; ++i) ASSERT_EQ(*file.f_op->read_tag(file, i), content[i]) << i;
        });
  }
}

// What a mapping in an order of its own stores is on the disk after fsync.
TEST_P(RemapDiskFilePages, FsyncFindsWhatWasStored) {
  with_file(16, {.ram = 8_MiB}, [](MachineFixture& m, File& file) {
    const VirtAddr at = m.map_file(file, 8, Sharing::shared);
    EXPECT_TRUE(remap(m, at, 0, 4, 12).ok());
    for (uint64_t round = 0; round < 3; ++round) {
      for (uint64_t i = 0; i < 4; ++i) m.put(m.page_at(at, i), 100 * round + i);
      EXPECT_TRUE(file.f_op->fsync(file).ok());
      for (uint64_t i = 0; i < 4; ++i) {
        uint64_t there = 0;
        std::memcpy(&there, m.file_disk->stored_bytes(file.f_inode->first_page + 12 + i), sizeof there);
        EXPECT_EQ(there, 100 * round + i);
      }
    }
    EXPECT_TRUE(m.machine->spaces.munmap(*current().task->mm, at, 8 * PAGE_SIZE).ok());
  });
}

INSTANTIATE_TEST_SUITE_P(Kernels, RemapDiskFilePages,
                         testing::Values(Case{KernelEra::linux_2_6_20, Kind::disk_file},
                                         Case{KernelEra::linux_3, Kind::disk_file},
                                         Case{KernelEra::linux_4_14, Kind::disk_file}),
                         name_of);
INSTANTIATE_TEST_SUITE_P(
    Kernels, RemapFilePages,
    testing::Values(Case{KernelEra::linux_2_6_20, Kind::memory_file}, Case{KernelEra::linux_2_6_20, Kind::disk_file},
                    Case{KernelEra::linux_3, Kind::memory_file}, Case{KernelEra::linux_3, Kind::disk_file},
                    Case{KernelEra::linux_4_14, Kind::memory_file}, Case{KernelEra::linux_4_14, Kind::disk_file}),
    name_of);

}  // namespace
}  // namespace weir::test
