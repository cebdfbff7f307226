// Faults on private memory: who gets which page, what is counted, what is refused.
#include "mm/fault.hpp"

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

TEST(Fault, MappingAllocatesNoPage) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const int64_t free = vm.machine->pages.nr_free_pages().v;
    vm.map(task, 1000);
    EXPECT_EQ(task.mm->get_mm_rss(), 0);
    EXPECT_LE(free - vm.machine->pages.nr_free_pages().v, 1);  // a slab for VMAs at most
  });
}

TEST(Fault, ReadingAThousandUntouchedPagesUsesOneFrame) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1000);
    EXPECT_EQ(vm.read(task, at), 0u);
    vm.read(task, Vm::page_at(at, 999));
    const int64_t tables = task.mm->nr_table_pages;
    const int64_t free = vm.machine->pages.nr_free_pages().v;
    for (uint64_t i = 0; i < 1000; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), 0u);
    EXPECT_EQ(vm.machine->pages.nr_free_pages().v, free - (task.mm->nr_table_pages - tables));
    EXPECT_EQ(task.mm->get_mm_rss(), 0);
    EXPECT_EQ(vm.event(VmEvent::zero_page_map), 1000u);
    EXPECT_EQ(vm.event(VmEvent::pgfault), 1000u);
    EXPECT_EQ(task.min_flt, 1000u);
    EXPECT_EQ(task.maj_flt, 0u);
  });
}

TEST(Fault, WritingAThousandPagesUsesAThousandZeroedFrames) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1000);
    for (uint64_t i = 0; i < 1000; ++i) vm.write(task, Vm::page_at(at, i) + 8, i + 1);
    for (uint64_t i = 0; i < 1000; ++i) {
      EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), 0u);
      EXPECT_EQ(vm.read(task, Vm::page_at(at, i) + 8), i + 1);
    }
    EXPECT_EQ(task.mm->rss(RssKind::anon), 1000);
    EXPECT_EQ(vm.gauge(NodeStat::nr_anon_pages), 1000);
    EXPECT_EQ(vm.event(VmEvent::pgfault), 1000u);
    vm.machine->lru.lru_add_drain_all();
    EXPECT_EQ(vm.gauge(NodeStat::nr_active_anon), 1000);
  });
}

TEST(Fault, WritingAfterReadingReplacesTheZeroPage) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 2);
    vm.read(task, at);
    EXPECT_TRUE(pte_special(vm.pte(task, at)));
    vm.write(task, at, 5);
    EXPECT_EQ(vm.read(task, at), 5u);
    EXPECT_FALSE(pte_special(vm.pte(task, at)));
    EXPECT_EQ(task.mm->rss(RssKind::anon), 1);
    EXPECT_EQ(vm.event(VmEvent::pgcow), 1u);
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 1)), 0u);
  });
}

TEST(Fault, OutsideEveryMappingIsASegmentationFault) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 4);
    EXPECT_EQ(vm.mmu->touch(task, at - 1, SoftMmu::Access::read), FaultResult::sigsegv);
    EXPECT_EQ(vm.mmu->touch(task, Vm::page_at(at, 4), SoftMmu::Access::write), FaultResult::sigsegv);
    EXPECT_EQ(vm.mmu->touch(task, VirtAddr(0), SoftMmu::Access::read), FaultResult::sigsegv);
    EXPECT_EQ(vm.mmu->touch(task, VirtAddr(~uint64_t{0}), SoftMmu::Access::read), FaultResult::sigsegv);
    EXPECT_EQ(task.min_flt, 0u);
  });
}

TEST(Fault, WithoutTheRightIsASegmentationFault) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr readable = vm.map(task, 1, VM_READ);
    const VirtAddr none = vm.map(task, 1, 0);
    EXPECT_EQ(vm.read(task, readable), 0u);
    EXPECT_EQ(vm.mmu->touch(task, readable, SoftMmu::Access::write), FaultResult::sigsegv);
    EXPECT_EQ(vm.mmu->touch(task, none, SoftMmu::Access::read), FaultResult::sigsegv);
  });
}

TEST(Fault, AKilledTaskDoesNotGetItsPage) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.machine->task_kill(task);
    EXPECT_EQ(vm.mmu->touch(task, at, SoftMmu::Access::write), FaultResult::killed);
  });
}

}  // namespace
}  // namespace weir::test
