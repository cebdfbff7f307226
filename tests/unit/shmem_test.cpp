// tests/unit/shmem_test.cpp: files in memory, under each kernel: to swap and back, shared, limited, locked, truncated.
#include <utility>

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

using Sharing = MmapRequest::Sharing;
using enum KernelEra;

constexpr uint64_t MiB = uint64_t{1} << 20;

/// A file of the mount, open; gone at the end.
class ShmFile {
 public:
  ShmFile(Vm& vm, uint64_t pages) : vm_(vm) {
    Result<Inode*> made = vm.machine->shmem.create_inode("file", Bytes(pages << PAGE_SHIFT));
    WEIR_BUG_ON(!made);
    inode = *made;
    Result<File*> opened = vm.machine->shmem.open(*inode);
    WEIR_BUG_ON(!opened);
    file = *opened;
  }
  ~ShmFile() {
    fput(*file);
    vm_.machine->shmem.iput(*inode);
  }
  ShmFile(const ShmFile&) = delete;
  ShmFile& operator=(const ShmFile&) = delete;
  void write(uint64_t index, uint64_t tag) { EXPECT_TRUE(file->f_op->write_tag(*file, index, tag).ok()) << index; }
  uint64_t read(uint64_t index) {
    Result<uint64_t> tag = file->f_op->read_tag(*file, index);
    EXPECT_TRUE(tag.ok()) << index << ": " << errno_name(tag.error());
    return tag ? *tag : ~uint64_t{0};
  }
  ShmemInode& info() const { return static_cast<ShmemInode&>(*inode); }
  Inode* inode = nullptr;
  File* file = nullptr;

 private:
  Vm& vm_;
};

class Shm : public testing::TestWithParam<KernelEra> {
 protected:
  static VmOptions tagged(uint64_t swap = 64 * MiB) {
    VmOptions o;
    o.kernel = GetParam();
    o.swap = Bytes(swap);
    o.content = ContentKind::tags;
    return o;
  }
  static VmOptions bytes() {
    VmOptions o = tagged();
    o.content = ContentKind::bytes;
    return o;
  }
  /// Memory that is wanted again and again pushes all else out.
  static void squeeze(Vm& vm) {
    constexpr uint64_t PAGES = 20 * MiB / PAGE_SIZE;
    Task& hog = vm.task("hog");
    const VirtAddr at = vm.map(hog, PAGES);
    for (uint64_t round = 0; round < 2; ++round)
      for (uint64_t i = 0; i < PAGES; ++i) vm.write(hog, Vm::page_at(at, i), i + 1);
    vm.exit(hog);
  }
};

TEST_P(Shm, AFileLargerThanMemoryKeepsWhatWasWritten) {
  run_vm(tagged(), [](Vm& vm) {
    constexpr uint64_t PAGES = 24 * MiB / PAGE_SIZE;
    vm.machine->shmem.set_max_blocks(PageCount(PAGES));
    ShmFile f(vm, PAGES);
    for (uint64_t i = 0; i < PAGES; ++i) f.write(i, 1000 + i);
    EXPECT_GT(f.info().swapped, 2 * MiB / PAGE_SIZE);
    EXPECT_EQ(vm.faults(), "");
    for (uint64_t i = 0; i < PAGES; ++i) ASSERT_EQ(f.read(i), 1000 + i);
    EXPECT_EQ(f.info().alloced, PAGES);
    EXPECT_GT(vm.event(VmEvent::pswpin), 0u);
    EXPECT_EQ(vm.faults(), "");
  });
}

TEST_P(Shm, AnEmptyFileReadsAsZeroAndTakesNoMemory) {
  run_vm(tagged(), [](Vm& vm) {
    ShmFile f(vm, 1000);
    for (uint64_t i = 0; i < 1000; ++i) ASSERT_EQ(f.read(i), 0u);
    EXPECT_EQ(vm.gauge(NodeStat::nr_shmem), 0);
    EXPECT_EQ(vm.machine->shmem.used_blocks(), PageCount(0));
    EXPECT_EQ(f.file->f_op->read_tag(*f.file, 1000).error(), Errno::noent);
  });
}

TEST_P(Shm, BytesAreReadAsTheyWereWrittenAcrossPages) {
  run_vm(bytes(), [](Vm& vm) {
    ShmFile f(vm, 0);
    std::vector<std::byte> wrote(10000), got(12000);
    for (size_t i = 0; i < wrote.size(); ++i) wrote[i] = static_cast<std::byte>(i * 7);
    EXPECT_EQ(*f.file->f_op->write(*f.file, 3000, wrote.data(), wrote.size()), wrote.size());
    EXPECT_EQ(f.inode->i_size.load(), 13000u);
    EXPECT_EQ(*f.file->f_op->read(*f.file, 2000, got.data(), got.size()), 11000u);
    for (size_t i = 0; i < 1000; ++i) ASSERT_EQ(got[i], std::byte{0}) << i;
    for (size_t i = 0; i < wrote.size(); ++i) ASSERT_EQ(got[1000 + i], wrote[i]) << i;
    EXPECT_EQ(*f.file->f_op->read(*f.file, 13000, got.data(), 1), 0u);
  });
}

TEST_P(Shm, TheLimitOfTheMountRefusesMore) {
  run_vm(tagged(), [](Vm& vm) {
    EXPECT_EQ(vm.machine->shmem.max_blocks().v, vm.machine->pages.managed_pages().v / 2);
    vm.machine->shmem.set_max_blocks(PageCount(10));
    ShmFile f(vm, 100);
    for (uint64_t i = 0; i < 10; ++i) f.write(i, i + 1);
    EXPECT_EQ(f.file->f_op->write_tag(*f.file, 10, 1).error(), Errno::nospc);
    Task& task = vm.task();
    const VirtAddr at = vm.map_file(task, *f.file, 100, Sharing::shared);
    EXPECT_EQ(vm.read(task, at), 1u);
    EXPECT_EQ(vm.mmu->store(task, Vm::page_at(at, 50), 1), FaultResult::sigbus);
    EXPECT_TRUE(f.file->f_op->truncate(*f.inode, Bytes(5 * PAGE_SIZE)).ok());
    EXPECT_EQ(vm.machine->shmem.used_blocks(), PageCount(5));
    f.write(50, 51);
    vm.exit(task);
  });
}

TEST_P(Shm, TruncationFreesPagesAndSlotsAndUnmaps) {
  run_vm(tagged(), [](Vm& vm) {
    ShmFile f(vm, 64);
    Task& task = vm.task();
    const VirtAddr at = vm.map_file(task, *f.file, 64, Sharing::shared);
    for (uint64_t i = 0; i < 64; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    squeeze(vm);
    EXPECT_EQ(f.info().swapped, 64u);
    for (uint64_t i = 0; i < 32; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i * 2)), i * 2 + 1);
    EXPECT_TRUE(f.file->f_op->truncate(*f.inode, Bytes(10 * PAGE_SIZE)).ok());
    EXPECT_EQ(f.info().alloced, 10u);
    EXPECT_EQ(vm.mmu->store(task, Vm::page_at(at, 10), 1), FaultResult::sigbus);
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 9)), 10u);
    EXPECT_EQ(vm.faults(), "");
    EXPECT_TRUE(f.file->f_op->truncate(*f.inode, Bytes(64 * PAGE_SIZE)).ok());
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 10)), 0u);
    vm.exit(task);
  });
}

TEST_P(Shm, WhatLiesBehindTheEndInTheLastPageNeverComesToLight) {
  run_vm(bytes(), [](Vm& vm) {
    ShmFile f(vm, 1);
    Task& task = vm.task();
    const VirtAddr at = vm.map_file(task, *f.file, 1, Sharing::shared);
    EXPECT_TRUE(f.file->f_op->truncate(*f.inode, Bytes(100)).ok());
    vm.write(task, at + 200, 7);
    EXPECT_TRUE(f.file->f_op->truncate(*f.inode, Bytes(PAGE_SIZE)).ok());
    EXPECT_EQ(vm.read(task, at + 200), 0u);
    vm.exit(task);
  });
}

TEST_P(Shm, SharedMemoryIsOneForParentAndChildAlsoOutInSwap) {
  run_vm(tagged(), [](Vm& vm) {
    Task& parent = vm.task("parent");
    Result<VirtAddr> mapped =
        vm.machine->spaces.mmap(*parent.mm, {.length = 32 * PAGE_SIZE, .sharing = Sharing::shared});
    ASSERT_TRUE(mapped.ok()) << errno_name(mapped.error());
    const VirtAddr at = *mapped;
    for (uint64_t i = 0; i < 32; ++i) vm.write(parent, Vm::page_at(at, i), 100 + i);
    Task& child = vm.fork(parent);
    EXPECT_EQ(vm.read(child, at), 100u);
    vm.write(child, at, 200);
    EXPECT_EQ(vm.read(parent, at), 200u);
    EXPECT_EQ(&vm.page(parent, at), &vm.page(child, at));
    squeeze(vm);
    EXPECT_FALSE(pte_present(vm.pte(parent, at)));
    vm.write(parent, Vm::page_at(at, 1), 300);
    EXPECT_EQ(vm.read(child, Vm::page_at(at, 1)), 300u);
    EXPECT_EQ(vm.read(child, Vm::page_at(at, 31)), 131u);
    EXPECT_EQ(vm.faults(), "");
    vm.exit(parent);
    EXPECT_EQ(vm.read(child, at), 200u);
    vm.exit(child);
    EXPECT_EQ(vm.gauge(NodeStat::nr_shmem), 0);
  });
}

TEST_P(Shm, PagesThatWereOnlyReadAndAllReclaimedLeaveNothingToCount) {
  run_vm(tagged(), [](Vm& vm) {
    Task& task = vm.task();
    Result<VirtAddr> at = vm.machine->spaces.mmap(*task.mm, {.length = 32 * PAGE_SIZE, .sharing = Sharing::shared});
    ASSERT_TRUE(at.ok()) << errno_name(at.error());
    for (uint64_t i = 0; i < 32; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(*at, i)), 0u);
    squeeze(vm);
    EXPECT_FALSE(pte_present(vm.pte(task, *at)));
    // The last mapping goes, and the file with it, of which no page is left.
    vm.exit(task);
    EXPECT_EQ(vm.gauge(NodeStat::nr_shmem), 0);
  });
}

TEST_P(Shm, ATaskThatWasKilledGetsNoPageOfIt) {
  run_vm(tagged(), [](Vm& vm) {
    Task& task = vm.task();
    Result<VirtAddr> at = vm.machine->spaces.mmap(*task.mm, {.length = PAGE_SIZE, .sharing = Sharing::shared});
    ASSERT_TRUE(at.ok()) << errno_name(at.error());
    Task* const before = std::exchange(current().task, &task);
    vm.machine->task_kill(task);
    EXPECT_EQ(vm.mmu->store(task, *at, 1), FaultResult::killed);
    current().task = before;
    vm.exit(task);
  });
}

TEST_P(Shm, APrivateMappingCopiesThePageAndTheFileKeepsIts) {
  run_vm(tagged(), [](Vm& vm) {
    ShmFile f(vm, 4);
    f.write(2, 22);
    Task& task = vm.task();
    const VirtAddr at = vm.map_file(task, *f.file, 4, Sharing::private_);
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 2)), 22u);
    vm.write(task, Vm::page_at(at, 2), 23);
    EXPECT_EQ(f.read(2), 22u);
    squeeze(vm);
    EXPECT_EQ(f.read(2), 22u);
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 2)), 23u);
    vm.exit(task);
  });
}

TEST_P(Shm, SwapoffBringsAllBackIntoTheFile) {
  run_vm(tagged(), [](Vm& vm) {
    ShmFile f(vm, 200), other(vm, 50);
    for (uint64_t i = 0; i < 200; ++i) f.write(i, i + 1);
    for (uint64_t i = 0; i < 50; ++i) other.write(i, i + 1001);
    squeeze(vm);
    EXPECT_EQ(f.info().swapped, 200u);
    EXPECT_EQ(other.info().swapped, 50u);
    ASSERT_TRUE(vm.machine->swapon.swapoff(0).ok());
    EXPECT_EQ(f.info().swapped, 0u);
    EXPECT_EQ(vm.gauge(NodeStat::nr_shmem), 250);
    EXPECT_EQ(vm.faults(), "");
    for (uint64_t i = 0; i < 200; ++i) ASSERT_EQ(f.read(i), i + 1);
    for (uint64_t i = 0; i < 50; ++i) ASSERT_EQ(other.read(i), i + 1001);
  });
}

TEST_P(Shm, ALockedFileStaysInMemoryUntilItIsUnlocked) {
  run_vm(tagged(), [](Vm& vm) {
    ShmFile f(vm, 100);
    for (uint64_t i = 0; i < 100; ++i) f.write(i, i + 1);
    vm.machine->shmem.shmem_lock(*f.inode, Shmem::ShmLock::lock);
    squeeze(vm);
    EXPECT_EQ(f.info().swapped, 0u);
    if (vm.machine->profile.five_lists) {
      EXPECT_EQ(vm.machine->lru.lru_size(LruList::unevictable), PageCount(100));
    }
    EXPECT_EQ(vm.faults(), "");
    vm.machine->shmem.shmem_lock(*f.inode, Shmem::ShmLock::unlock);
    vm.machine->lru.lru_add_drain_all();
    EXPECT_EQ(vm.machine->lru.lru_size(LruList::unevictable), PageCount(0));
    squeeze(vm);
    EXPECT_EQ(f.info().swapped, 100u);
    for (uint64_t i = 0; i < 100; ++i) ASSERT_EQ(f.read(i), i + 1);
  });
}

TEST_P(Shm, WithoutSwapPagesStayDirtyInMemory) {
  run_vm(tagged(0), [](Vm& vm) {
    ShmFile f(vm, 100);
    for (uint64_t i = 0; i < 100; ++i) f.write(i, i + 1);
    for (uint64_t i = 0; i < 100; ++i) {
      Page* page = vm.machine->filemap.find_lock_page(f.inode->i_data, i);
      ASSERT_NE(page, nullptr);
      EXPECT_TRUE(page->test(PageFlag::dirty));
      WritebackControl wbc;
      EXPECT_EQ(f.inode->i_data.a_ops->writepage(*page, wbc).error(), Errno::again);
      EXPECT_TRUE(page->test(PageFlag::dirty));
      vm.machine->filemap.unlock_page(*page);
      vm.machine->lru.put_page(*page);
    }
    for (uint64_t i = 0; i < 100; ++i) ASSERT_EQ(f.read(i), i + 1);
  });
}

TEST_P(Shm, APageThatWasOnlyReadIsDroppedAndTheFileForgetsIt) {
  run_vm(tagged(), [](Vm& vm) {
    ShmFile f(vm, 10);
    Task& task = vm.task();
    const VirtAddr at = vm.map_file(task, *f.file, 10, Sharing::shared);
    for (uint64_t i = 0; i < 10; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), 0u);
    EXPECT_EQ(vm.machine->shmem.used_blocks(), PageCount(10));
    squeeze(vm);
    EXPECT_EQ(vm.gauge(NodeStat::nr_shmem), 0);
    EXPECT_EQ(f.info().swapped, 0u);
    vm.write(task, at, 5);  // whatever happens next in the file counts anew
    EXPECT_EQ(vm.faults(), "");
    vm.exit(task);
    EXPECT_EQ(f.read(0), 5u);
    EXPECT_TRUE(f.file->f_op->truncate(*f.inode, Bytes(0)).ok());
    EXPECT_EQ(vm.machine->shmem.used_blocks(), PageCount(0));
  });
}

TEST_P(Shm, ThreadsThatWantTheSamePageReadItOnce) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(seed);
    VmOptions o = tagged();
    o.cpus = 4;
    o.seed = seed;
    o.preempt_one_in = 8;
    run_vm(o, [](Vm& vm) {
      ShmFile f(vm, 8);
      for (uint64_t i = 0; i < 8; ++i) f.write(i, i + 1);
      squeeze(vm);
      ASSERT_EQ(f.info().swapped, 8u);
      const uint64_t before = vm.event(VmEvent::pswpin);
      for (int t = 0; t < 4; ++t)
        vm.spawn([&] {
          for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(f.read(i), i + 1);
        });
      vm.join();
      EXPECT_EQ(vm.event(VmEvent::pswpin) - before, 8u);
    });
  }
}

TEST_P(Shm, WritersReclaimTruncationAndSwapoffAtOnceLoseNothing) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE(seed);
    VmOptions o = tagged();
    o.cpus = 4;
    o.seed = seed;
    o.preempt_one_in = 16;
    run_vm(o, [](Vm& vm) {
      constexpr uint64_t PAGES = 600;
      ShmFile f(vm, PAGES), cut(vm, PAGES);
      for (uint64_t i = 0; i < PAGES; ++i) f.write(i, i + 1), cut.write(i, i + 1);
      vm.spawn([&] { squeeze(vm); });
      vm.spawn([&] {
        for (uint64_t i = 0; i < PAGES; ++i) f.write(i, i + 5000);
      });
      vm.spawn([&] {
        for (uint64_t i = PAGES; i-- > 0;) {
          const uint64_t got = f.read(i);
          EXPECT_TRUE(got == i + 1 || got == i + 5000) << i << ": " << got;
        }
      });
      vm.spawn([&] {
        for (uint64_t pages = PAGES; pages > 100; pages -= 50) {
          EXPECT_TRUE(cut.file->f_op->truncate(*cut.inode, Bytes((pages - 50) << PAGE_SHIFT)).ok());
          world().schedule_timeout(100_us);
        }
      });
      vm.join();
      ASSERT_TRUE(vm.machine->swapon.swapoff(0).ok());
      for (uint64_t i = 0; i < PAGES; ++i) ASSERT_EQ(f.read(i), i + 5000);
      for (uint64_t i = 0; i < 100; ++i) ASSERT_EQ(cut.read(i), i + 1);
      EXPECT_EQ(cut.info().alloced, 100u);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, Shm, testing::Values(linux_2_6_20, linux_3, linux_4_14), [](const auto& tested) {
  return std::string(tested.param == linux_2_6_20 ? "v2_6_20" : tested.param == linux_3 ? "v3" : "v4_14");
});

}  // namespace
}  // namespace weir::test
