// Hardware in software: what a TLB keeps and forgets, which bits it sets, where content is.
#include "arch/soft/soft_mmu.hpp"

#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

using Access = SoftMmu::Access;

// ---- Accessed and dirty ---------------------------------------------------------------------------------------------

TEST(SoftMmu, AReadSetsAccessedAWriteSetsDirty) {
  run_vm({}, [](Vm& vm) {
    Task& a = vm.task();
    const VirtAddr at = vm.map(a, 1);
    vm.write(a, at, 1);
    Task& b = vm.fork(a);  // PTEs of a copy are old; the parent's are dirty
    EXPECT_FALSE(pte_young(vm.pte(b, at)));
    vm.read(b, at);
    EXPECT_TRUE(pte_young(vm.pte(b, at)));
    vm.exit(a);
    Pte* pte = vm.machine->tables.pte_offset(*b.mm, at);
    vm.machine->tables.ptep_modify(*b.mm, at, pte, [](Pte p) { return pte_mkwrite(pte_mkclean(p)); });
    vm.mmu->flush_range(*b.mm, at, at + PAGE_SIZE);
    vm.read(b, at);
    EXPECT_FALSE(pte_dirty(vm.pte(b, at)));
    vm.write(b, at, 2);
    EXPECT_TRUE(pte_dirty(vm.pte(b, at)));
  });
}

TEST(SoftMmu, AUseThroughTheTlbIsSeenAsAUse) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 1);
    Pte* pte = vm.machine->tables.pte_offset(*task.mm, at);
    for (int round = 0; round < 3; ++round) {
      EXPECT_TRUE(vm.machine->tables.ptep_test_and_clear_young(*task.mm, at, pte));
      const uint64_t fills = vm.mmu->stats().fills;
      vm.read(task, at);
      EXPECT_TRUE(pte_young(*pte));
      EXPECT_EQ(vm.mmu->stats().fills, fills);
    }
  });
}

// ---- The TLB --------------------------------------------------------------------------------------------------------

TEST(SoftMmu, ASecondAccessNeedsNoWalk) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 300);
    for (uint64_t i = 0; i < 300; ++i) vm.write(task, Vm::page_at(at, i), i);
    const uint64_t fills = vm.mmu->stats().fills;
    for (uint64_t i = 0; i < 300; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i);
    EXPECT_EQ(vm.mmu->stats().fills, fills);
  });
}

TEST(SoftMmu, WhoForgetsToFlushReadsTheOldFrame) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 2);
    vm.write(task, at, 1);
    vm.write(task, Vm::page_at(at, 1), 2);
    // The PTEs change places, and nobody tells hardware.
    Pte* first = vm.machine->tables.pte_offset(*task.mm, at);
    std::swap(first[0], first[1]);
    EXPECT_EQ(vm.read(task, at), 1u);
    EXPECT_EQ(vm.mmu->stats().stale_hits, 0u);
    // With the accessed bit off the hit is looked at more closely, and known as stale.
    first[0] = pte_mkold(first[0]);
    EXPECT_EQ(vm.read(task, at), 1u);
    EXPECT_EQ(vm.mmu->stats().stale_hits, 1u);
    EXPECT_FALSE(pte_young(first[0]));
    FlushBatch batch;
    batch.add(*task.mm, at, nullptr);
    batch.add(*task.mm, Vm::page_at(at, 1), nullptr);
    vm.mmu->flush_batch(batch);
    EXPECT_EQ(batch.count, 0u);
    EXPECT_EQ(vm.read(task, at), 2u);
    std::swap(first[0], first[1]);
    vm.mmu->flush_range(*task.mm, at, Vm::page_at(at, 2));
  });
}

TEST(SoftMmu, AFlushReachesEveryCpu) {
  run_vm({.cpus = 4}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 1);
    unsigned seen = 0;
    for (int i = 0; i < 4; ++i)
      vm.spawn([&] {
        seen |= 1u << current().cpu.v;
        vm.read(task, at);
        vm.world.spend(Nanos(1000000));  // so that the next one runs elsewhere
        vm.world.cond_resched();
      });
    vm.join();
    EXPECT_GT(__builtin_popcount(seen), 1);
    vm.mmu->flush_range(*task.mm, at, at + PAGE_SIZE);
    EXPECT_FALSE(vm.mmu->tlb_holds(*task.mm, at));
  });
}

TEST(SoftMmu, AddressSpacesDoNotShareTranslations) {
  run_vm({}, [](Vm& vm) {
    Task& a = vm.task();
    Task& b = vm.task();
    const VirtAddr at{uint64_t{1} << 32};
    vm.map(a, 1, VM_READ | VM_WRITE, at);
    vm.map(b, 1, VM_READ | VM_WRITE, at);
    vm.write(a, at, 1);
    vm.write(b, at, 2);
    EXPECT_EQ(vm.read(a, at), 1u);
    EXPECT_EQ(vm.read(b, at), 2u);
  });
}

TEST(SoftMmu, FlushingALargeRangeTakesThatRangeOnly) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at{uint64_t{1} << 32};
    vm.map(task, 4000, VM_READ | VM_WRITE, at);
    vm.write(task, at, 1);
    vm.write(task, Vm::page_at(at, 3900), 2);
    Task& other = vm.task();
    vm.map(other, 1, VM_READ | VM_WRITE, Vm::page_at(at, 5));
    vm.write(other, Vm::page_at(at, 5), 3);
    vm.mmu->flush_range(*task.mm, Vm::page_at(at, 1), Vm::page_at(at, 3950));
    EXPECT_TRUE(vm.mmu->tlb_holds(*task.mm, at));
    EXPECT_FALSE(vm.mmu->tlb_holds(*task.mm, Vm::page_at(at, 3900)));
    EXPECT_TRUE(vm.mmu->tlb_holds(*other.mm, Vm::page_at(at, 5)));
  });
}

// ---- Content --------------------------------------------------------------------------------------------------------

TEST(SoftMmu, CopiesCrossPages) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 5);
    std::vector<uint8_t> out(3 * PAGE_SIZE + 123), in(out.size());
    std::iota(out.begin(), out.end(), 7);
    ASSERT_EQ(vm.mmu->copy_to_user(task, at + 1000, out.data(), out.size()), FaultResult::done);
    ASSERT_EQ(vm.mmu->copy_from_user(task, in.data(), at + 1000, in.size()), FaultResult::done);
    EXPECT_EQ(in, out);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 4);
    EXPECT_EQ(vm.mmu->copy_to_user(task, Vm::page_at(at, 4), out.data(), out.size()), FaultResult::sigsegv);
    EXPECT_EQ(vm.mmu->copy_from_user(task, in.data(), at - 10, 20), FaultResult::sigsegv);
  });
}

TEST(SoftMmu, ATaggedFrameHasOneWordThatIsZeroWhenNew) {
  run_vm({.content = ContentKind::tags}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 3);
    EXPECT_EQ(vm.read(task, at), 0u);
    vm.write(task, at + 100, 77);
    EXPECT_EQ(vm.read(task, at), 77u);
    EXPECT_EQ(vm.read(task, at + 4000), 77u);
    const Content content = vm.mmu->kmap(vm.page(task, at));
    EXPECT_EQ(*content.tag, 77u);
    Task& child = vm.fork(task);
    vm.write(child, at, 78);
    EXPECT_EQ(vm.read(task, at), 77u);
    EXPECT_EQ(vm.read(child, at), 78u);
    ASSERT_TRUE(vm.machine->spaces.madvise(*task.mm, at, PAGE_SIZE, Advice::dontneed).ok());
    vm.write(task, Vm::page_at(at, 1), 0);
    EXPECT_EQ(vm.read(task, at), 0u);
  });
}

TEST(SoftMmu, TheSameSeedGivesTheSameMachine) {
  // Threads that fault, fork and reclaim under preemption: counters and every frame's place are a function of the seed.
  const auto digest = [](uint64_t seed) {
    uint64_t result = 0;
    run_vm({.ram = Bytes(uint64_t{4} << 20),
            .swap = Bytes(uint64_t{16} << 20),
            .cpus = 2,
            .seed = seed,
            .preempt_one_in = 20},
           [&result](Vm& vm) {
             Task& task = vm.task();
             const VirtAddr at = vm.map(task, 1500);
             for (uint64_t thread = 0; thread < 2; ++thread)
               vm.spawn(
                   [&vm, &task, at, thread] {
                     for (uint64_t i = 0; i < 1500; ++i) vm.write(task, Vm::page_at(at, i * 7 % 1500) + 8 * thread, i);
                   },
                   &task);
             vm.join();
             for (uint64_t i = 0; i < 1500; ++i) result = result * 1000003 + vm.pte(task, Vm::page_at(at, i)).v;
             for (unsigned e = 0; e < static_cast<unsigned>(VmEvent::count); ++e)
               result = result * 1000003 + vm.event(static_cast<VmEvent>(e));
             result = result * 1000003 + vm.world.now().v;
           });
    return result;
  };
  EXPECT_EQ(digest(1), digest(1));
  EXPECT_EQ(digest(2), digest(2));
  EXPECT_NE(digest(1), digest(2));
}

}  // namespace
}  // namespace weir::test
