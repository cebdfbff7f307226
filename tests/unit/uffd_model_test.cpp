// mm on hardware without accessed and dirty bits, write protection, zero page and aliases: what runs live, in a
// deterministic world.
#include "arch/soft/uffd_model.hpp"

#include <cstdlib>
#include <map>
#include <random>

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

constexpr Bytes SWAP = Bytes(uint64_t{16} << 20);
using Access = SoftMmu::Access;

VmOptions uffd(VmOptions options = {}) {
  if (options.swap.v == 0) options.swap = SWAP;
  options.model = SoftMmu::Model::uffd;
  return options;
}

/// Makes the PTE old and hardware forget it, as reclaim does ahead of the inactive tail. The page's bytes are staged
/// then.
void age(Vm& vm, Task& task, VirtAddr at) {
  Page& page = vm.page(task, at);
  uint64_t flags = 0;
  FlushBatch batch;
  vm.machine->filemap.lock_page(page);
  EXPECT_EQ(vm.machine->rmap.page_referenced(page, &flags, batch), 1);
  EXPECT_EQ(batch.count, 1u);
  vm.machine->mmu.age_batch(batch);
  vm.machine->filemap.unlock_page(page);
}

TEST(UffdModel, AReadOfAnUntouchedPageGetsAPageOfItsOwn) {
  run_vm(uffd(), [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 10);
    for (uint64_t i = 0; i < 10; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), 0u);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 10);
    EXPECT_EQ(vm.event(VmEvent::zero_page_map), 0u);
    EXPECT_TRUE(pte_write(vm.pte(task, at)));  // writable at once: no second fault could make it so
    const uint64_t faults = task.min_flt;
    vm.write(task, at, 1);
    EXPECT_EQ(task.min_flt, faults);
  });
}

TEST(UffdModel, ValidInHardwareIsYoung) {
  run_vm(uffd(), [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 5);
    EXPECT_NE(vm.mmu->uffd().lookup(*task.mm, at), nullptr);
    age(vm, task, at);
    EXPECT_EQ(vm.mmu->uffd().lookup(*task.mm, at), nullptr);
    EXPECT_TRUE(pte_present(vm.pte(task, at)));
    EXPECT_FALSE(pte_young(vm.pte(task, at)));
    const uint64_t faults = task.min_flt;
    EXPECT_EQ(vm.read(task, at), 5u);
    EXPECT_EQ(task.min_flt, faults + 1);
    EXPECT_EQ(task.maj_flt, 0u);
    EXPECT_EQ(vm.event(VmEvent::access_flag_fault), 1u);
    EXPECT_TRUE(pte_young(vm.pte(task, at)));
    EXPECT_NE(vm.mmu->uffd().lookup(*task.mm, at), nullptr);
  });
}

TEST(UffdModel, AFaultOnAYoungPageIsServedAgain) {
  run_vm(uffd(), [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 5);
    const Pte before = vm.pte(task, at);
    EXPECT_EQ(vm.machine->do_page_fault(task, at, PF_USER | PF_WRITE), FaultResult::done);
    EXPECT_EQ(vm.pte(task, at), before);
    EXPECT_EQ(vm.event(VmEvent::access_flag_fault), 0u);
    EXPECT_EQ(vm.read(task, at), 5u);
  });
}

TEST(UffdModel, AnAgedPageIsFreedWithItsRange) {
  run_vm(uffd(), [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 40);
    for (uint64_t i = 0; i < 40; ++i) vm.write(task, Vm::page_at(at, i), i);
    for (uint64_t i = 0; i < 20; ++i) age(vm, task, Vm::page_at(at, i));
    const uint64_t pages = vm.mmu->uffd().host_pages();
    ASSERT_TRUE(vm.machine->spaces.munmap(*task.mm, at, 40 * PAGE_SIZE).ok());
    vm.machine->lru.lru_add_drain_all();
    // Staged pages' frames wait until the host has them back.
    EXPECT_EQ(vm.gauge(NodeStat::nr_quarantined), static_cast<int64_t>(vm.mmu->uffd().quarantined()));
    vm.mmu->flush_quarantine();
    EXPECT_EQ(vm.gauge(NodeStat::nr_quarantined), 0);
    EXPECT_LE(vm.mmu->uffd().host_pages(), pages - 40);
  });
}

TEST(UffdModel, FirstTouchesInARowAreServedTogether) {
  run_vm(uffd(), [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 64);
    const uint64_t faults = task.min_flt;
    for (uint64_t i = 0; i < 64; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), 0u);
    EXPECT_LE(task.min_flt - faults, 16u);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 64);
    // One here, one there: nothing that is not asked for.
    const VirtAddr sparse = vm.map(task, 64);
    for (uint64_t i = 0; i < 64; i += 3) vm.write(task, Vm::page_at(sparse, i), i);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 64 + 22);
  });
}

TEST(UffdModel, PagesThatWereReadAheadComeWithTheFault) {
  run_vm(uffd({.page_cluster = 3}), [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 64);
    for (uint64_t i = 0; i < 64; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    for (uint64_t i = 0; i < 64; ++i) ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, i)));
    const uint64_t faults = task.min_flt + task.maj_flt;
    for (uint64_t i = 0; i < 64; ++i) {
      EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
      vm.world.schedule_timeout(
          100_ms);  // the disk is done with the window: what is still being read is not waited for
    }
    EXPECT_LE(task.min_flt + task.maj_flt - faults, 32u);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 64);
    EXPECT_EQ(task.mm->rss(RssKind::swapents), 0);
  });
}

TEST(UffdModel, InARowOfWindowsTheNextIsReadBeforeItIsAskedFor) {
  run_vm(uffd({.page_cluster = 3}), [](Vm& vm) {
    Task& task = vm.task();
    constexpr uint64_t PAGES = 256;
    const VirtAddr at = vm.map(task, PAGES);
    for (uint64_t i = 0; i < PAGES; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    for (uint64_t i = 0; i < PAGES; ++i) ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, i)));
    const auto read = [&](uint64_t i) {
      EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
      vm.world.schedule_timeout(100_ms);  // the disk is done with what was asked for
    };
    for (uint64_t i = 0; i < 64; ++i) read(i);
    const uint64_t major = task.maj_flt, minor = task.min_flt;
    for (uint64_t i = 64; i < PAGES; ++i) read(i);
    EXPECT_EQ(task.maj_flt, major) << "nobody waits for the disk any more";
    EXPECT_LE(task.min_flt - minor, (PAGES - 64) / 6) << "rows of eight are mapped but for their last";
    EXPECT_EQ(task.mm->rss(RssKind::swapents), 0);
  });
}

TEST(UffdModel, WhatIsReadHereAndThereIsNotReadOn) {
  run_vm(uffd({.page_cluster = 3}), [](Vm& vm) {
    Task& task = vm.task();
    constexpr uint64_t PAGES = 512;
    const VirtAddr at = vm.map(task, PAGES);
    for (uint64_t i = 0; i < PAGES; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    for (uint64_t i = 0; i < PAGES; ++i) ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, i)));
    // The first fault reads a window, and its last page is asked for: a row of one.
    for (const uint64_t i : {8ul, 15ul, 200ul, 207ul, 100ul, 107ul, 400ul, 407ul}) {
      EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
      vm.world.schedule_timeout(100_ms);
    }
    EXPECT_LE(vm.event(VmEvent::pswpin), 4 * 8u);
  });
}

TEST(UffdModel, DirtyIsWhatDiffersFromTheSlot) {
  run_vm(uffd(), [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 5);
    ASSERT_TRUE(vm.swap_out(task, at));
    EXPECT_EQ(vm.read(task, at), 5u);
    Page& page = vm.page(task, at);
    EXPECT_TRUE(PageSwapCache(page));
    const auto unmap = [&] {
      FlushBatch batch;
      vm.machine->filemap.lock_page(page);
      EXPECT_EQ(vm.machine->rmap.try_to_unmap(page, batch), TryToUnmap::success);
      vm.machine->mmu.flush_batch(batch);
      const bool dirty = vm.machine->mmu.test_dirty(page);
      vm.machine->filemap.unlock_page(page);
      return dirty;
    };
    EXPECT_FALSE(unmap());
    EXPECT_EQ(vm.read(task, at), 5u);
    vm.write(task, at + 8, 6);  // no fault tells of it
    EXPECT_TRUE(unmap());
    EXPECT_EQ(vm.read(task, at + 8), 6u);
  });
}

TEST(UffdModel, APinnedPageStaysWhereItIsAndKeepsItsBytes) {
  run_vm(uffd(), [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 5);
    Page& page = vm.page(task, at);
    vm.mmu->uffd().pin(*task.mm, at);
    EXPECT_FALSE(vm.swap_out(task, at));
    EXPECT_FALSE(vm.machine->mmu.captured(page));
    vm.write(task, at, 6);  // hardware still has it, no fault
    vm.mmu->uffd().unpin(*task.mm, at);
    EXPECT_EQ(vm.machine->do_page_fault(task, at, PF_USER), FaultResult::done);
    EXPECT_EQ(vm.read(task, at), 6u);
    ASSERT_TRUE(vm.swap_out(task, at));
    EXPECT_EQ(vm.read(task, at), 6u);
  });
}

/// Its PTE holds a swap entry, hardware still has it: the move must take it along, or the old address goes on leading
/// to it.
TEST(UffdModel, WhatWasPinnedOnItsWayOutMovesWithItsMapping) {
  run_vm(uffd(), [](Vm& vm) {
    Task& task = vm.task();
    AddressSpaces& spaces = vm.machine->spaces;
    const VirtAddr at = vm.map(task, 1);
    (void)vm.map(task, 1, VM_READ | VM_WRITE, at + PAGE_SIZE);  // no room to grow in place
    EXPECT_TRUE(spaces.mprotect(*task.mm, at + PAGE_SIZE, PAGE_SIZE, VM_READ).ok());
    vm.write(task, at, 5);
    vm.mmu->uffd().pin(*task.mm, at);
    EXPECT_FALSE(vm.swap_out(task, at));
    EXPECT_TRUE(is_swap_pte(vm.pte(task, at)));
    const auto move = [&] {
      return spaces.mremap(*task.mm, at, PAGE_SIZE, 2 * PAGE_SIZE, AddressSpaces::MayMove::yes);
    };
    EXPECT_EQ(move().error(), Errno::nomem) << "a device works on it where it is";
    vm.write(task, at, 6);
    vm.mmu->uffd().unpin(*task.mm, at);
    Result<VirtAddr> moved = move();
    ASSERT_TRUE(moved.ok());
    EXPECT_EQ(vm.mmu->uffd().lookup(*task.mm, at), nullptr);
    EXPECT_EQ(vm.read(task, *moved), 6u);
    EXPECT_EQ(vm.mmu->uffd().broken_rule(), nullptr);
  });
}

TEST(UffdModel, SharedMappingsAndForksAreRefused) {
  run_vm(uffd({.disk = Bytes(uint64_t{1} << 20)}), [](Vm& vm) {
    Inode* inode = *vm.machine->files.create_inode("f", *vm.file_disk, 0, Bytes(PAGE_SIZE), Bytes(PAGE_SIZE));
    File* file = *vm.machine->files.open(*inode);
    Task& task = vm.task();
    EXPECT_EQ(
        vm.machine->spaces.mmap(*task.mm, {.length = PAGE_SIZE, .sharing = MmapRequest::Sharing::shared, .file = file})
            .error(),
        Errno::nosys);
    // A private mapping has its copy from the first touch on.
    const VirtAddr at = vm.map_file(task, *file, 1, MmapRequest::Sharing::private_);
    EXPECT_EQ(vm.read(task, at), 0u);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 1);
    vm.write(task, at, 3);
    EXPECT_EQ(vm.read(task, at), 3u);
    vm.exit_all();
    vm.machine->files.close(*file);
    vm.machine->files.iput(*inode);
  });
}

TEST(UffdModel, MovedMappingsKeepTheirPages) {
  run_vm(uffd(), [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 30);
    for (uint64_t i = 0; i < 30; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    for (uint64_t i = 0; i < 30; i += 3) age(vm, task, Vm::page_at(at, i));
    for (uint64_t i = 1; i < 30; i += 3) ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, i)));
    Result<VirtAddr> moved = vm.machine->spaces.mremap(*task.mm, at, 30 * PAGE_SIZE, 60 * PAGE_SIZE,
                                                       AddressSpaces::MayMove::yes, VirtAddr(uint64_t{1} << 33));
    ASSERT_TRUE(moved.ok());
    for (uint64_t i = 0; i < 30; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(*moved, i)), i + 1);
    EXPECT_EQ(vm.mmu->touch(task, at, Access::read), FaultResult::sigsegv);
  });
}

TEST(UffdModel, RightsTakenAndGivenBackLoseNothing) {
  run_vm(uffd(), [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 3);
    for (uint64_t i = 0; i < 3; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    AddressSpaces& spaces = vm.machine->spaces;
    ASSERT_TRUE(spaces.mprotect(*task.mm, at, 3 * PAGE_SIZE, 0).ok());
    EXPECT_EQ(vm.mmu->touch(task, at, Access::read), FaultResult::sigsegv);
    ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, 1)));
    ASSERT_TRUE(spaces.mprotect(*task.mm, at, 3 * PAGE_SIZE, VM_READ).ok());
    for (uint64_t i = 0; i < 3; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
    EXPECT_EQ(vm.mmu->touch(task, at, Access::write), FaultResult::sigsegv);
    ASSERT_TRUE(spaces.mprotect(*task.mm, at, 3 * PAGE_SIZE, VM_READ | VM_WRITE).ok());
    for (uint64_t i = 0; i < 3; ++i) vm.write(task, Vm::page_at(at, i), i + 11);
    for (uint64_t i = 0; i < 3; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 11);
  });
}

TEST(UffdModel, MoreThanRamRunsThroughReclaim) {
  for (const auto content : {ContentKind::tags, ContentKind::bytes}) {
    run_vm(uffd({.ram = Bytes(uint64_t{4} << 20), .swap = Bytes(uint64_t{32} << 20), .content = content}), [](Vm& vm) {
      Task& task = vm.task();
      const VirtAddr at = vm.map(task, 4000);
      for (uint64_t i = 0; i < 4000; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
      for (uint64_t i = 0; i < 4000; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
      for (uint64_t i = 0; i < 4000; i += 2) vm.write(task, Vm::page_at(at, i), i + 7);
      for (uint64_t i = 0; i < 4000; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i % 2 == 0 ? i + 7 : i + 1);
      EXPECT_GT(vm.event(VmEvent::pswpout), 3000u);
      EXPECT_LE(vm.mmu->uffd().host_pages(), uint64_t{1024});
    });
  }
}

/// Threads, kswapd, failures of the host: whatever happens, each thread reads what it wrote.
void hammer(Vm& vm, uint64_t seed) {
  Task& task = vm.task();
  constexpr uint64_t N = 900;
  const VirtAddr at = vm.map(task, 3 * N);
  for (uint64_t thread = 0; thread < 3; ++thread)
    vm.spawn(
        [&vm, &task, at, thread, seed] {
          std::mt19937_64 random(seed * 3 + thread);
          std::map<uint64_t, uint64_t> mine;
          const VirtAddr own = Vm::page_at(at, thread * N);
          for (int step = 0; step < 3000; ++step) {
            const uint64_t page = random() % N;
            const VirtAddr where = Vm::page_at(own, page);
            switch (random() % 16) {
              default: vm.write(task, where, mine[page] = random() | 1); break;
              case 0:
              case 1:
              case 2:
              case 3:
              case 4:
              case 5:
              case 6: EXPECT_EQ(vm.read(task, where), mine[page]); break;
              case 7: {
                const uint64_t n = std::min<uint64_t>(1 + random() % 20, N - page);
                EXPECT_TRUE(vm.machine->spaces.madvise(*task.mm, where, n << PAGE_SHIFT, Advice::dontneed).ok());
                for (uint64_t i = 0; i < n; ++i) mine[page + i] = 0;
                break;
              }
            }
            if (testing::Test::HasFailure()) return;
          }
        },
        &task);
  vm.join();
  EXPECT_LE(vm.mmu->uffd().host_pages(), static_cast<uint64_t>(vm.machine->mem.frames.v));
}

TEST(UffdModel, ThreadsUnderPressureReadWhatTheyWrote) {
  const uint64_t seeds = std::getenv("WEIR_LONG") != nullptr ? 60 : 6;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm(uffd({.ram = Bytes(uint64_t{6} << 20),
                 .swap = Bytes(uint64_t{32} << 20),
                 .cpus = 2,
                 .seed = seed,
                 .preempt_one_in = 10,
                 .content = ContentKind::tags,
                 .failures = {.again_one_in = 50, .nomem_one_in = 0, .seed = seed},
                 .threads = weir::MachineOptions::Threads::kswapd}),
           [seed](Vm& vm) { hammer(vm, seed); });
    if (testing::Test::HasFailure()) return;
  }
}

TEST(UffdModel, TheSameOnHardwareThatHasEverything) {
  const uint64_t seeds = std::getenv("WEIR_LONG") != nullptr ? 60 : 6;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm({.ram = Bytes(uint64_t{6} << 20),
            .swap = Bytes(uint64_t{32} << 20),
            .cpus = 2,
            .seed = seed,
            .preempt_one_in = 10,
            .content = ContentKind::tags,
            .threads = weir::MachineOptions::Threads::kswapd},
           [seed](Vm& vm) { hammer(vm, seed); });
    if (testing::Test::HasFailure()) return;
  }
}

TEST(UffdModel, WhenHardwareTakesNoNewPageNothingIsLost) {
  run_vm(uffd({.failures = {.again_one_in = 2, .seed = 3}}), [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 100);
    for (uint64_t i = 0; i < 100; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    for (uint64_t i = 0; i < 100; ++i) age(vm, task, Vm::page_at(at, i));
    for (uint64_t i = 0; i < 100; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 100);
  });
}

}  // namespace
}  // namespace weir::test
