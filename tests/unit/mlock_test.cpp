// Memory that stays (mm/mlock.cpp): what is culled to the unevictable list, and what brings it back.
#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

using Lock = AddressSpaces::Lock;
using LockFuture = AddressSpaces::LockFuture;
constexpr Bytes SWAP{uint64_t{8} << 20};

class Mlock : public testing::Test {
 protected:
  static bool unevictable(Vm& vm, Task& task, VirtAddr at) {
    vm.machine->lru.lru_add_drain_all();
    const Page& page = vm.page(task, at);
    EXPECT_EQ(page.test(PageFlag::unevictable), page.test(PageFlag::mlocked));
    return page.test(PageFlag::unevictable);
  }
  static void lock(Vm& vm, Task& task, VirtAddr at, uint64_t pages, Lock how = Lock::yes) {
    EXPECT_TRUE(vm.machine->spaces.mlock2(task, at, pages << PAGE_SHIFT, how).ok());
  }
  static void unlock(Vm& vm, Task& task, VirtAddr at, uint64_t pages) {
    EXPECT_TRUE(vm.machine->spaces.munlock(task, at, pages << PAGE_SHIFT).ok());
  }
  static uint64_t culled(Vm& vm) { return vm.event(VmEvent::unevictable_pgs_culled); }
  static uint64_t rescued(Vm& vm) { return vm.event(VmEvent::unevictable_pgs_rescued); }
};

TEST_F(Mlock, MunlockRescues) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 4);
    lock(vm, task, at, 4);
    for (uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(unevictable(vm, task, Vm::page_at(at, i)));
    EXPECT_EQ(vm.gauge(NodeStat::nr_unevictable), 4);
    unlock(vm, task, at, 3);
    for (uint64_t i = 0; i < 3; ++i) EXPECT_FALSE(unevictable(vm, task, Vm::page_at(at, i)));
    EXPECT_TRUE(unevictable(vm, task, Vm::page_at(at, 3)));
    EXPECT_EQ(rescued(vm), 3u);
    EXPECT_EQ(vm.event(VmEvent::unevictable_pgs_munlocked), 3u);
    EXPECT_EQ(vm.faults(), "");
  });
}

TEST_F(Mlock, APageThatAnotherMappingLocksToStays) {
  run_vm({.disk = SWAP}, [](Vm& vm) {
    Machine& m = *vm.machine;
    Inode* inode = *m.files.create_inode("file", *vm.file_disk, 0, Bytes(8 << PAGE_SHIFT), Bytes(8 << PAGE_SHIFT));
    File* file = *m.files.open(*inode);
    Task& a = vm.task("a");
    Task& b = vm.task("b");
    const VirtAddr in_a = vm.map_file(a, *file, 1, MmapRequest::Sharing::shared);
    const VirtAddr in_b = vm.map_file(b, *file, 1, MmapRequest::Sharing::shared);
    lock(vm, a, in_a, 1);
    lock(vm, b, in_b, 1);
    EXPECT_EQ(&vm.page(a, in_a), &vm.page(b, in_b));
    unlock(vm, a, in_a, 1);
    EXPECT_TRUE(unevictable(vm, a, in_a)) << "b's lock holds";
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 1);
    EXPECT_EQ(vm.faults(), "");
    vm.exit(b);
    EXPECT_FALSE(unevictable(vm, a, in_a));
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 0);
    EXPECT_EQ(vm.faults(), "");
    vm.exit(a);
    m.files.close(*file);
    m.files.iput(*inode);
  });
}

TEST_F(Mlock, ALockedTasksEndRescuesWhatItsChildStillHas) {
  for (const bool unmap_only : {false, true}) {
    run_vm({.swap = SWAP}, [unmap_only](Vm& vm) {
      Task& parent = vm.task("parent");
      const VirtAddr at = vm.map(parent, 2);
      lock(vm, parent, at, 2);
      Task& child = vm.fork(parent);
      EXPECT_EQ(child.mm->locked_vm, 0) << "locks are not inherited";
      EXPECT_TRUE(unevictable(vm, child, at));
      if (unmap_only)
        EXPECT_TRUE(vm.machine->spaces.munmap(*parent.mm, at, 2 << PAGE_SHIFT).ok());
      else
        vm.exit(parent);
      EXPECT_FALSE(unevictable(vm, child, at));
      EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 0);
      EXPECT_EQ(rescued(vm), 2u);
      EXPECT_TRUE(vm.swap_out(child, at));
    });
  }
}

TEST_F(Mlock, AWriteToASharedLockedPageLocksTheCopyAndRescuesTheOriginal) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& parent = vm.task("parent");
    const VirtAddr at = vm.map(parent, 1);
    vm.write(parent, at, 7);
    lock(vm, parent, at, 1);
    Task& child = vm.fork(parent);
    Page& original = vm.page(parent, at);
    vm.write(parent, at, 8);
    EXPECT_NE(&vm.page(parent, at), &original);
    EXPECT_TRUE(unevictable(vm, parent, at));
    EXPECT_FALSE(unevictable(vm, child, at));
    EXPECT_EQ(&vm.page(child, at), &original);
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 1);
    EXPECT_EQ(vm.read(child, at), 7u);
    EXPECT_EQ(vm.read(parent, at), 8u);
    EXPECT_EQ(vm.faults(), "");
  });
}

TEST_F(Mlock, TheLastLockedUnmapRescuesAPageOfTheCache) {
  run_vm({.disk = SWAP}, [](Vm& vm) {
    Machine& m = *vm.machine;
    Inode* inode = *m.files.create_inode("file", *vm.file_disk, 0, Bytes(8 << PAGE_SHIFT), Bytes(8 << PAGE_SHIFT));
    File* file = *m.files.open(*inode);
    Task& task = vm.task();
    const VirtAddr at = vm.map_file(task, *file, 2, MmapRequest::Sharing::shared);
    lock(vm, task, at, 2);
    Page& page = vm.page(task, at);
    EXPECT_TRUE(unevictable(vm, task, at));
    EXPECT_TRUE(m.spaces.munmap(*task.mm, at, 2 << PAGE_SHIFT).ok());
    m.lru.lru_add_drain_all();
    EXPECT_TRUE(page.test(PageFlag::lru));
    EXPECT_FALSE(page.test(PageFlag::unevictable));
    EXPECT_EQ(vm.gauge(NodeStat::nr_unevictable), 0);
    EXPECT_EQ(vm.faults(), "");
    m.files.close(*file);
    m.files.iput(*inode);
  });
}

TEST_F(Mlock, TruncateTakesLockedPagesToo) {
  run_vm({.disk = SWAP}, [](Vm& vm) {
    Machine& m = *vm.machine;
    Inode* inode = *m.files.create_inode("file", *vm.file_disk, 0, Bytes(8 << PAGE_SHIFT), Bytes(8 << PAGE_SHIFT));
    File* file = *m.files.open(*inode);
    Task& task = vm.task();
    const VirtAddr at = vm.map_file(task, *file, 4, MmapRequest::Sharing::shared);
    lock(vm, task, at, 4);
    EXPECT_EQ(vm.gauge(NodeStat::nr_unevictable), 4);
    EXPECT_TRUE(m.files.truncate(*inode, Bytes(PAGE_SIZE)).ok());
    EXPECT_EQ(vm.gauge(NodeStat::nr_unevictable), 1);
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 1);
    EXPECT_EQ(vm.event(VmEvent::unevictable_pgs_cleared), 3u);
    EXPECT_TRUE(pte_none(vm.pte(task, Vm::page_at(at, 2))));
    EXPECT_EQ(vm.faults(), "");
    vm.exit(task);
    m.files.close(*file);
    m.files.iput(*inode);
  });
}

TEST_F(Mlock, OnFaultLocksWhatIsThereAndTheRestAsItComes) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 4);
    vm.write(task, at, 1);
    lock(vm, task, at, 4, Lock::onfault);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 1) << "nothing is brought in";
    EXPECT_TRUE(unevictable(vm, task, at));
    vm.write(task, Vm::page_at(at, 1), 2);
    EXPECT_TRUE(unevictable(vm, task, Vm::page_at(at, 1)));
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 2);
    unlock(vm, task, at, 4);
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 0);
    EXPECT_EQ(task.mm->locked_vm, 0);
  });
}

TEST_F(Mlock, AllOfATaskNowAndLater) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    AddressSpaces& spaces = vm.machine->spaces;
    Task& task = vm.task();
    EXPECT_EQ(spaces.mlockall(task, Lock::no, LockFuture::no).error(), Errno::inval);
    const VirtAddr before = vm.map(task, 3);
    const VirtAddr forbidden = vm.map(task, 1, 0);
    ASSERT_TRUE(spaces.mlockall(task, Lock::yes, LockFuture::yes).ok());
    EXPECT_EQ(task.mm->rss(RssKind::anon), 3);
    EXPECT_EQ(task.mm->locked_vm, 4);
    engine_thread().thread->task = &task;
    const VirtAddr later = vm.map(task, 2);
    EXPECT_EQ(task.mm->locked_vm, 6);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 5) << "it is there when mmap returns";
    Result<VirtAddr> moved =
        spaces.mremap(*task.mm, later, 2 * PAGE_SIZE, 5 * PAGE_SIZE, AddressSpaces::MayMove::yes);
    ASSERT_TRUE(moved.ok());
    EXPECT_EQ(task.mm->rss(RssKind::anon), 8) << "so is what mremap adds";
    const VirtAddr end = spaces.brk(*task.mm, task.mm->brk + 3 * PAGE_SIZE);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 11) << "and what brk adds";
    EXPECT_TRUE(unevictable(vm, task, end - PAGE_SIZE));
    engine_thread().thread->task = nullptr;
    EXPECT_TRUE(unevictable(vm, task, before));
    EXPECT_TRUE(unevictable(vm, task, *moved));
    EXPECT_TRUE(pte_none(vm.pte(task, forbidden)));
    Task& child = vm.fork(task);
    EXPECT_EQ(child.mm->def_flags, 0u);
    EXPECT_EQ(child.mm->locked_vm, 0);
    vm.exit(child);
    ASSERT_TRUE(spaces.munlockall(task).ok());
    EXPECT_EQ(task.mm->locked_vm, 0);
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 0);
    vm.map(task, 2);
    EXPECT_EQ(task.mm->locked_vm, 0) << "nor what comes later";
    EXPECT_TRUE(vm.swap_out(task, before));
  });
}

// What is called what, and below what, changed; what is locked did not.
TEST_F(Mlock, EachKernelCallsItsOwnFunctions) {
  using Lines = std::vector<std::string>;
  struct Case {
    KernelEra kernel;
    Lines lock, unlock, all, none;
    Errno onfault;
  };
  const Case cases[] = {
      {KernelEra::linux_2_6_20,
       {"mlock", " do_mlock", "  mlock_fixup", " make_pages_present"},
       {"munlock", " do_mlock", "  mlock_fixup"},
       {"mlockall", " do_mlockall", "  mlock_fixup", " make_pages_present"},
       {"munlockall", " do_mlockall", "  mlock_fixup"},
       Errno::nosys},
      {KernelEra::linux_3,
       {"mlock", " do_mlock", "  mlock_fixup", " __mm_populate"},
       {"munlock", " do_mlock", "  mlock_fixup", "   munlock_vma_pages_range"},
       {"mlockall", " do_mlockall", "  mlock_fixup", " __mm_populate"},
       {"munlockall", " do_mlockall", "  mlock_fixup", "   munlock_vma_pages_range"},
       Errno::nosys},
      {KernelEra::linux_4_14,
       {"mlock", " do_mlock", "  apply_vma_lock_flags", "   mlock_fixup", "  __mm_populate"},
       {"munlock", " apply_vma_lock_flags", "  mlock_fixup", "   munlock_vma_pages_range"},
       {"mlockall", " apply_mlockall_flags", "  mlock_fixup", " __mm_populate"},
       {"munlockall", " apply_mlockall_flags", "  mlock_fixup", "   munlock_vma_pages_range"},
       Errno::ok},
  };
  const Lines names = {"mlock",
                       "munlock",
                       "mlockall",
                       "munlockall",
                       "do_mlock",
                       "do_mlockall",
                       "mlock_fixup",
                       "make_pages_present",
                       "apply_vma_lock_flags",
                       "__mm_populate",
                       "apply_mlockall_flags",
                       "munlock_vma_pages_range"};
  for (const Case& c : cases) {
    SCOPED_TRACE(profile_of(c.kernel).name);
    run_vm({.kernel = c.kernel, .swap = SWAP}, [&](Vm& vm) {
      AddressSpaces& spaces = vm.machine->spaces;
      Task& task = vm.task();
      const VirtAddr at = vm.map(task, 4);
      const auto run = [&](const std::function<Result<void>()>& fn) {
        Trace trace;
        EXPECT_TRUE(fn().ok());
        return trace.tree(names);
      };
      EXPECT_EQ(run([&] { return spaces.mlock(task, at, 4 * PAGE_SIZE); }), c.lock);
      EXPECT_EQ(task.mm->rss(RssKind::anon), 4);
      EXPECT_EQ(task.mm->locked_vm, 4);
      EXPECT_EQ(run([&] { return spaces.munlock(task, at, 4 * PAGE_SIZE); }), c.unlock);
      EXPECT_EQ(run([&] { return spaces.mlockall(task, Lock::yes, LockFuture::no); }), c.all);
      EXPECT_EQ(run([&] { return spaces.munlockall(task); }), c.none);
      EXPECT_EQ(task.mm->locked_vm, 0);
      EXPECT_EQ(spaces.mlock2(task, at, PAGE_SIZE, Lock::onfault).error(), c.onfault);
      EXPECT_EQ(spaces.mlockall(task, Lock::onfault, LockFuture::no).error(),
                c.onfault == Errno::ok ? Errno::ok : Errno::inval);
    });
  }
}

// Several threads lock, unlock, unmap, fork and write at the same time, while pages are reclaimed: a page is PG_mlocked
// only as long as a locked VMA maps it.
TEST_F(Mlock, NoPageIsStrandedUnderManySchedules) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm({.swap = SWAP, .cpus = 2, .seed = seed, .preempt_one_in = 4}, [seed](Vm& vm) {
      AddressSpaces& spaces = vm.machine->spaces;
      Task& task = vm.task();
      Task& other = vm.fork(task);
      const VirtAddr at = vm.map(task, 16);
      for (uint64_t i = 0; i < 16; ++i) vm.write(task, Vm::page_at(at, i), i);
      vm.exit(other);
      std::vector<Task*> children;
      for (int t = 0; t < 3; ++t) {
        vm.spawn([&vm, &spaces, &task, &children, at, seed, t] {
          uint64_t random = seed * 1000 + static_cast<uint64_t>(t);
          for (int i = 0; i < 25; ++i) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            const VirtAddr where = Vm::page_at(at, random >> 33 & 15);
            const uint64_t bytes = 3 * PAGE_SIZE;
            switch (random >> 60 & 7) {
              case 0: (void)spaces.mlock(task, where, bytes); break;
              case 1: (void)spaces.mlock2(task, where, bytes, Lock::onfault); break;
              case 2:
              case 3: (void)spaces.munlock(task, where, bytes); break;
              case 4:
                if (children.size() < 3) children.push_back(&vm.fork(task));
                break;
              case 5: (void)vm.mmu->store(task, where, random); break;
              case 6: {
                const ThreadFlagScope reclaiming(PF_MEMALLOC);
                (void)vm.machine->vmscan.shrink_all_memory(PageCount(4));
                break;
              }
              default: world().spend(2_us);
            }
          }
        });
      }
      vm.join();
      EXPECT_EQ(vm.faults(), "");
    });
  }
}

}  // namespace
}  // namespace weir::test
