// What a program says of its memory (mm/madvise.cpp): memory that may go, is cold, shall go out.
#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

constexpr Bytes SWAP{uint64_t{8} << 20};
constexpr uint64_t N = 40;

class Madvise : public testing::Test {
 protected:
  static Result<void> advise(Vm& vm, Task& task, VirtAddr at, uint64_t pages, Advice advice) {
    return vm.machine->spaces.madvise(*task.mm, at, pages << PAGE_SHIFT, advice);
  }
  static VirtAddr filled(Vm& vm, Task& task, uint64_t pages = N) {
    const VirtAddr at = vm.map(task, pages);
    for (uint64_t i = 0; i < pages; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    vm.machine->lru.lru_add_drain_all();
    return at;
  }
  static int64_t reclaim(Vm& vm, int64_t n) {
    vm.machine->lru.lru_add_drain_all();
    return vm.machine->vmscan.shrink_all_memory(PageCount(n)).v;
  }
  static LruList list_of(Vm& vm, Task& task, VirtAddr at) {
    vm.machine->lru.lru_add_drain_all();
    return vm.machine->lru.page_lru(vm.page(task, at));
  }
};

TEST_F(Madvise, FreedPagesAreDroppedUnwrittenAndReadAsZero) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = filled(vm, task);
    ASSERT_TRUE(advise(vm, task, at, N, Advice::free).ok());
    EXPECT_EQ(list_of(vm, task, at), LruList::inactive_file);
    EXPECT_FALSE(vm.page(task, at).test(PageFlag::swapbacked));
    EXPECT_EQ(vm.event(VmEvent::pglazyfree), N);
    EXPECT_EQ(vm.read(task, at), 1u) << "until memory is short";
    EXPECT_EQ(vm.faults(), "");
    for (int i = 0; i < 4; ++i) reclaim(vm, N);
    EXPECT_EQ(vm.event(VmEvent::pglazyfreed), N);
    EXPECT_EQ(vm.event(VmEvent::pswpout), 0u);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 0);
    EXPECT_EQ(task.mm->rss(RssKind::swapents), 0);
    for (uint64_t i = 0; i < N; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), 0u);
  });
}

TEST_F(Madvise, APageWrittenAfterItWasFreedIsKept) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = filled(vm, task);
    ASSERT_TRUE(advise(vm, task, at, N, Advice::free).ok());
    for (uint64_t i = 0; i < N; i += 2) vm.write(task, Vm::page_at(at, i), 1000 + i);
    for (int i = 0; i < 6; ++i) reclaim(vm, N);
    EXPECT_EQ(vm.event(VmEvent::pglazyfreed), N / 2);
    EXPECT_EQ(vm.faults(), "");
    for (uint64_t i = 0; i < N; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i % 2 == 0 ? 1000 + i : 0);
  });
}

TEST_F(Madvise, FreeGivesUpSwapSlots) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = filled(vm, task, 4);
    ASSERT_TRUE(vm.swap_out(task, at));
    ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, 1)));
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 1)), 2u);
    EXPECT_TRUE(PageSwapCache(vm.page(task, Vm::page_at(at, 1))));
    ASSERT_TRUE(advise(vm, task, at, 4, Advice::free).ok());
    EXPECT_EQ(task.mm->rss(RssKind::swapents), 0);
    EXPECT_TRUE(pte_none(vm.pte(task, at)));
    EXPECT_FALSE(PageSwapCache(vm.page(task, Vm::page_at(at, 1))));
    EXPECT_EQ(vm.read(task, at), 0u);
    EXPECT_EQ(list_of(vm, task, Vm::page_at(at, 1)), LruList::inactive_file);
  });
}

TEST_F(Madvise, WhatAChildSharesIsNotLostToIt) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& parent = vm.task("parent");
    const VirtAddr at = filled(vm, parent);
    Task& child = vm.fork(parent);
    ASSERT_TRUE(advise(vm, parent, at, N, Advice::free).ok());
    for (int i = 0; i < 6; ++i) reclaim(vm, 2 * N);
    EXPECT_EQ(vm.faults(), "");
    for (uint64_t i = 0; i < N; ++i) EXPECT_EQ(vm.read(child, Vm::page_at(at, i)), i + 1);
  });
}

TEST_F(Madvise, FreeIsForPrivateAnonymousMemoryThatIsNotLocked) {
  run_vm({.swap = SWAP, .disk = SWAP}, [](Vm& vm) {
    Machine& m = *vm.machine;
    Inode* inode = *m.files.create_inode("file", *vm.file_disk, 0, Bytes(8 << PAGE_SHIFT), Bytes(8 << PAGE_SHIFT));
    File* file = *m.files.open(*inode);
    Task& task = vm.task();
    const VirtAddr mapped = vm.map_file(task, *file, 2, MmapRequest::Sharing::private_);
    EXPECT_EQ(advise(vm, task, mapped, 2, Advice::free).error(), Errno::inval);
    const VirtAddr at = filled(vm, task, 2);
    ASSERT_TRUE(m.spaces.mlock(task, at, 2 << PAGE_SHIFT).ok());
    for (const Advice advice : {Advice::free, Advice::dontneed, Advice::cold, Advice::pageout})
      EXPECT_EQ(advise(vm, task, at, 2, advice).error(), Errno::inval);
    EXPECT_EQ(vm.read(task, at), 1u);
    vm.exit(task);
    m.files.close(*file);
    m.files.iput(*inode);
  });
}

TEST_F(Madvise, ColdPagesGoFirst) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr warm = filled(vm, task);
    const VirtAddr cold = filled(vm, task);
    EXPECT_EQ(list_of(vm, task, cold), LruList::active_anon);
    ASSERT_TRUE(advise(vm, task, cold, N, Advice::cold).ok());
    EXPECT_EQ(list_of(vm, task, cold), LruList::inactive_anon);
    EXPECT_EQ(list_of(vm, task, warm), LruList::active_anon);
    EXPECT_EQ(vm.event(VmEvent::pgdeactivate), N);
    EXPECT_GT(reclaim(vm, 8), 0);
    for (uint64_t i = 0; i < 8; ++i) {
      EXPECT_TRUE(is_swap_pte(vm.pte(task, Vm::page_at(cold, i))));
      EXPECT_TRUE(pte_present(vm.pte(task, Vm::page_at(warm, i))));
    }
    for (uint64_t i = 0; i < N; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(cold, i)), i + 1);
  });
}

TEST_F(Madvise, PageoutSendsUsedPagesOutAtOnce) {
  for (const SoftMmu::Model model : {SoftMmu::Model::hardware, SoftMmu::Model::uffd}) {
    run_vm({.swap = SWAP, .model = model}, [](Vm& vm) {
      Task& task = vm.task();
      const VirtAddr at = filled(vm, task);
      ASSERT_TRUE(advise(vm, task, at, N, Advice::pageout).ok());
      while (vm.gauge(NodeStat::nr_writeback) != 0) vm.world.schedule_timeout(1_ms);
      EXPECT_EQ(task.mm->rss(RssKind::swapents), static_cast<int64_t>(N));
      EXPECT_EQ(vm.faults(), "");
      for (uint64_t i = 0; i < N; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
    });
  }
}

TEST_F(Madvise, SharedPagesAreNotSentOutForOneOfTheirUsers) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& parent = vm.task("parent");
    const VirtAddr at = filled(vm, parent, 4);
    vm.fork(parent);
    ASSERT_TRUE(advise(vm, parent, at, 4, Advice::pageout).ok());
    EXPECT_EQ(parent.mm->rss(RssKind::swapents), 0);
  });
}

TEST_F(Madvise, WhereNothingTellsOfWritesFreedPagesGoAtOnce) {
  run_vm({.swap = SWAP, .model = SoftMmu::Model::uffd}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = filled(vm, task);
    ASSERT_TRUE(advise(vm, task, at, N, Advice::free).ok());
    EXPECT_EQ(task.mm->rss(RssKind::anon), 0);
    EXPECT_EQ(vm.read(task, at), 0u);
  });
}

TEST_F(Madvise, AHoleIsSaidAndTheRestDone) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = filled(vm, task, 6);
    ASSERT_TRUE(vm.machine->spaces.munmap(*task.mm, Vm::page_at(at, 2), PAGE_SIZE).ok());
    EXPECT_EQ(advise(vm, task, at, 6, Advice::free).error(), Errno::nomem);
    EXPECT_EQ(list_of(vm, task, Vm::page_at(at, 5)), LruList::inactive_file);
    EXPECT_EQ(advise(vm, task, at + 1, 1, Advice::cold).error(), Errno::inval);
  });
}

}  // namespace
}  // namespace weir::test
