// What was written since the last look: exactly that, in memory, on its way and in swap.
#include <random>
#include <set>

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

constexpr Bytes SWAP = Bytes(uint64_t{8} << 20);
using Clear = AddressSpaces::ClearRefs;

std::set<uint64_t> soft_dirty(Vm& vm, Task& task, VirtAddr base, uint64_t pages) {
  std::set<uint64_t> found;
  for (uint64_t i = 0; i < pages; ++i)
    if ((vm.machine->spaces.pagemap(*task.mm, Vm::page_at(base, i)) & PM_SOFT_DIRTY) != 0) found.insert(i);
  return found;
}

TEST(SoftDirty, ExactlyTheWrittenPagesAreReported) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm({.swap = SWAP}, [seed](Vm& vm) {
      std::mt19937_64 random(seed);
      constexpr uint64_t N = 50;
      Task& task = vm.task();
      const VirtAddr at = vm.map(task, N);
      for (uint64_t i = 0; i < N; i += 2) vm.write(task, Vm::page_at(at, i), i + 1);
      Task& child = vm.fork(task);  // some pages are shared
      for (int round = 0; round < 5; ++round) {
        ASSERT_TRUE(vm.machine->spaces.clear_refs_write(*task.mm, Clear::soft_dirty).ok());
        EXPECT_EQ(soft_dirty(vm, task, at, N), std::set<uint64_t>());
        std::set<uint64_t> written;
        for (int step = 0; step < 60; ++step) {
          const uint64_t i = random() % N;
          const VirtAddr page = Vm::page_at(at, i);
          switch (random() % 4) {
            case 0:
              vm.write(task, page, 7);
              written.insert(i);
              break;
            case 1:
              if (const Pte pte = vm.pte(task, page); pte_present(pte) && !pte_special(pte))
                (void)vm.swap_out(task, page);
              break;
            case 2: vm.write(child, page, 9); break;
            default: vm.read(task, page);
          }
        }
        EXPECT_EQ(soft_dirty(vm, task, at, N), written) << "round " << round;
        EXPECT_EQ(vm.faults(), "");
      }
    });
  }
}

TEST(SoftDirty, ABitSurvivesSwapOutAndIn) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 2);
    vm.write(task, at, 1);
    vm.write(task, Vm::page_at(at, 1), 1);
    ASSERT_TRUE(vm.machine->spaces.clear_refs_write(*task.mm, Clear::soft_dirty).ok());
    vm.write(task, at, 2);
    ASSERT_TRUE(vm.swap_out(task, at));
    ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, 1)));
    EXPECT_EQ(soft_dirty(vm, task, at, 2), (std::set<uint64_t>{0}));
    const uint64_t entry = vm.machine->spaces.pagemap(*task.mm, at);
    EXPECT_EQ(entry & (PM_SWAP | PM_PRESENT), PM_SWAP);
    EXPECT_EQ(vm.read(task, at), 2u);
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 1)), 1u);
    EXPECT_EQ(soft_dirty(vm, task, at, 2), (std::set<uint64_t>{0}));
    // Cleared while it is out.
    ASSERT_TRUE(vm.swap_out(task, at));
    ASSERT_TRUE(vm.machine->spaces.clear_refs_write(*task.mm, Clear::soft_dirty).ok());
    EXPECT_EQ(vm.read(task, at), 2u);
    EXPECT_EQ(soft_dirty(vm, task, at, 2), std::set<uint64_t>());
  });
}

TEST(SoftDirty, NewGrownAndMovedMappingsStartSoftDirty) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    AddressSpaces& spaces = vm.machine->spaces;
    const VirtAddr base{uint64_t{1} << 32};
    vm.map(task, 4, VM_READ | VM_WRITE, base);
    EXPECT_EQ(soft_dirty(vm, task, base, 4).size(), 4u);
    ASSERT_TRUE(spaces.clear_refs_write(*task.mm, Clear::soft_dirty).ok());
    EXPECT_EQ(soft_dirty(vm, task, base, 4).size(), 0u);
    // One with a neighbour: all of the merged mapping is new.
    vm.map(task, 4, VM_READ | VM_WRITE, Vm::page_at(base, 4));
    EXPECT_EQ(soft_dirty(vm, task, base, 8).size(), 8u);
    ASSERT_TRUE(spaces.clear_refs_write(*task.mm, Clear::soft_dirty).ok());
    vm.write(task, base, 1);
    ASSERT_TRUE(spaces.clear_refs_write(*task.mm, Clear::soft_dirty).ok());
    const VirtAddr moved = base + (uint64_t{1} << 30);
    ASSERT_TRUE(spaces.mremap(*task.mm, base, PAGE_SIZE, PAGE_SIZE, AddressSpaces::MayMove::yes, moved).ok());
    EXPECT_EQ(soft_dirty(vm, task, moved, 1).size(), 1u);
  });
}

TEST(SoftDirty, IsRefusedWhereItCannotBe) {
  run_vm({.kernel = KernelEra::linux_2_6_20}, [](Vm& vm) {
    EXPECT_EQ(vm.machine->spaces.clear_refs_write(*vm.task().mm, Clear::soft_dirty).error(), Errno::nosys);
  });
  run_vm({.model = SoftMmu::Model::uffd}, [](Vm& vm) {
    EXPECT_EQ(vm.machine->spaces.clear_refs_write(*vm.task().mm, Clear::soft_dirty).error(), Errno::nosys);
    EXPECT_EQ(vm.machine->spaces.clear_refs_write(*vm.task().mm, Clear::all).error(), Errno::inval);
  });
}

}  // namespace
}  // namespace weir::test
