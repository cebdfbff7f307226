// How address spaces begin and end: copies, shortage of memory half way, exact counts after the last exit.
#include <random>

#include "mm/mmap.hpp"
#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

constexpr Bytes SWAP = Bytes(uint64_t{8} << 20);

/// An address space with something of everything.
Task& furnished(Vm& vm, VirtAddr& at) {
  Task& task = vm.task("furnished");
  at = vm.map(task, 60);
  for (uint64_t i = 0; i < 60; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
  for (uint64_t i = 0; i < 60; i += 4) EXPECT_TRUE(vm.swap_out(task, Vm::page_at(at, i)));
  EXPECT_TRUE(vm.machine->spaces.mprotect(*task.mm, Vm::page_at(at, 20), 10 * PAGE_SIZE, VM_READ).ok());
  EXPECT_TRUE(vm.machine->spaces.mlock(task, Vm::page_at(at, 40), 5 * PAGE_SIZE).ok());
  const VirtAddr far = vm.map(task, 600, VM_READ | VM_WRITE, VirtAddr(uint64_t{1} << 33));
  for (uint64_t i = 0; i < 600; i += 50) vm.write(task, Vm::page_at(far, i), 7);
  vm.machine->spaces.brk(*task.mm, task.mm->start_brk + 5 * PAGE_SIZE);
  vm.write(task, task.mm->start_brk, 9);
  return task;
}

TEST(Fork, TheChildHasTheSameMappingsCountsAndContents) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    VirtAddr at;
    Task& parent = furnished(vm, at);
    Task& child = vm.fork(parent);
    EXPECT_EQ(child.mm->map_count, parent.mm->map_count);
    EXPECT_EQ(child.mm->total_vm, parent.mm->total_vm);
    EXPECT_EQ(child.mm->locked_vm, 0);  // locks are not inherited
    EXPECT_EQ(child.mm->brk, parent.mm->brk);
    EXPECT_EQ(child.mm->rss(RssKind::anon), parent.mm->rss(RssKind::anon));
    EXPECT_EQ(child.mm->rss(RssKind::swapents), parent.mm->rss(RssKind::swapents));
    EXPECT_EQ(child.mm->nr_table_pages, parent.mm->nr_table_pages);
    for (uint64_t i = 0; i < 60; ++i) EXPECT_EQ(vm.read(child, Vm::page_at(at, i)), i + 1);
    for (uint64_t i = 0; i < 60; ++i) EXPECT_EQ(vm.read(parent, Vm::page_at(at, i)), i + 1);
    EXPECT_EQ(vm.read(child, child.mm->start_brk), 9u);
  });
}

TEST(Fork, TheChildJoinsTheListOfThoseWithSwapEntries) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    VirtAddr at;
    Task& parent = furnished(vm, at);
    Task& child = vm.fork(parent);
    EXPECT_TRUE(child.mm->on_mmlist);
    Task& other = vm.task();
    EXPECT_FALSE(vm.fork(other).mm->on_mmlist);
  });
}

TEST(Fork, WithoutMemoryItLeavesNothingBehind) {
  // Every allocation of the fork fails once, in turn.
  run_vm({.ram = Bytes(uint64_t{8} << 20), .swap = SWAP}, [](Vm& vm) {
    VirtAddr at;
    Task& parent = furnished(vm, at);
    vm.machine->pages.set_pressure(nullptr);
    int refused = 0;
    for (uint64_t leave = 0;; ++leave) {
      ASSERT_LT(leave, 200u);
      std::vector<Page*> hoard;
      while (Page* page = vm.machine->pages.alloc_page(GFP_KERNEL | __GFP_NOWARN)) hoard.push_back(page);
      for (uint64_t i = 0; i < leave && !hoard.empty(); ++i) {
        vm.machine->pages.__free_pages(*hoard.back(), Order(0));
        hoard.pop_back();
      }
      Result<Mm*> child = vm.machine->spaces.dup_mm(*parent.mm, nullptr);
      for (Page* page : hoard) vm.machine->pages.__free_pages(*page, Order(0));
      if (child) vm.machine->spaces.mmput(**child);
      ASSERT_EQ(vm.faults(), "") << leave;
      if (child) break;
      EXPECT_EQ(child.error(), Errno::nomem);
      ++refused;
    }
    EXPECT_GT(refused, 3);
    for (uint64_t i = 0; i < 60; ++i) EXPECT_EQ(vm.read(parent, Vm::page_at(at, i)), i + 1);
    vm.machine->pages.set_pressure(nullptr);
  });
}

TEST(Fork, IsRefusedWhereHardwareCannotWriteProtect) {
  run_vm({.model = SoftMmu::Model::uffd}, [](Vm& vm) {
    Task& task = vm.task();
    EXPECT_EQ(vm.machine->spaces.dup_mm(*task.mm, nullptr).error(), Errno::nosys);
  });
}

TEST(Exit, EverythingComesBack) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    int64_t free[3];
    for (int64_t& now : free) {
      VirtAddr at;
      Task& parent = furnished(vm, at);
      Task& child = vm.fork(parent);
      Task& grandchild = vm.fork(child);
      vm.write(grandchild, at, 1);
      vm.write(child, Vm::page_at(at, 1), 1);
      vm.exit(child);
      vm.exit(parent);
      EXPECT_EQ(vm.read(grandchild, Vm::page_at(at, 5)), 6u);
      vm.exit(grandchild);
      vm.machine->swap_slots.drain_slots_cache();
      vm.machine->slab.shrink_all();
      vm.machine->pages.drain_all_pages();
      now = vm.machine->pages.nr_free_pages().v;
      EXPECT_EQ(vm.machine->swap_files.nr_swap_pages(), vm.machine->swap_files.total_swap_pages());
      EXPECT_EQ(vm.gauge(NodeStat::nr_page_table_pages), vm.machine->tables.init_mm().nr_table_pages);
    }
    EXPECT_EQ(free[1], free[0]);  // what the first round left are caches' slabs
    EXPECT_EQ(free[2], free[0]);
  });
}

TEST(Exit, AStructIsUsedAgainUnderANewNumber) {
  run_vm({}, [](Vm& vm) {
    Task& a = vm.task();
    const uint64_t id = a.mm->id;
    const VirtAddr at = vm.map(a, 1);
    vm.write(a, at, 1);
    vm.exit(a);
    Task& b = vm.task();
    EXPECT_NE(b.mm->id, id);
    // Nothing of the old one is reached through the new one.
    EXPECT_EQ(vm.mmu->touch(b, at, SoftMmu::Access::read), FaultResult::sigsegv);
  });
}

TEST(Counters, RssAndSwapEqualAScanAtEveryMoment) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm({.swap = SWAP}, [seed](Vm& vm) {
      std::mt19937_64 random(seed);
      Task& task = vm.task();
      const VirtAddr at = vm.map(task, 40);
      for (int step = 0; step < 300; ++step) {
        const VirtAddr page = Vm::page_at(at, random() % 40);
        switch (random() % 4) {
          case 0: vm.read(task, page); break;
          case 1: vm.write(task, page, 1); break;
          case 2:
            if (const Pte pte = vm.pte(task, page); pte_present(pte) && !pte_special(pte)) {
              EXPECT_TRUE(vm.swap_out(task, page));
            }
            break;
          case 3:
            if (random() % 4 == 0) {
              EXPECT_TRUE(vm.machine->spaces.madvise(*task.mm, page, PAGE_SIZE, Advice::dontneed).ok());
            }
        }
        int64_t anon = 0, swapped = 0;
        vm.machine->tables.for_each_pte(*task.mm, at, Vm::page_at(at, 40), [&](VirtAddr, Pte* pte) {
          if (pte_none(*pte)) return;
          if (!pte_present(*pte))
            ++swapped;
          else if (!pte_special(*pte))
            ++anon;
        });
        ASSERT_EQ(task.mm->rss(RssKind::anon), anon);
        ASSERT_EQ(task.mm->rss(RssKind::swapents), swapped);
      }
    });
  }
}

}  // namespace
}  // namespace weir::test
