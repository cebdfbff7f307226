// A second MMU that knows only what it is told: it never maps a page that the process does not.
#include "mm/mmu_notifier.hpp"

#include <map>
#include <random>
#include <set>

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

constexpr Bytes SWAP = Bytes(uint64_t{8} << 20);

/// A table of its own for one address space.
class Mirror final : public MmuNotifier {
 public:
  explicit Mirror(Vm& vm, Mm& mm) : vm_(vm), mm_(mm) {}

  void invalidate_page(Mm&, VirtAddr address) override {
    ++told;
    table.erase(address.v);
    young.erase(address.v);
  }
  void invalidate_range_start(Mm&, VirtAddr start, VirtAddr end) override {
    ++told;
    changing.emplace(start.v, end.v);
    table.erase(table.lower_bound(start.v), table.lower_bound(end.v));
    young.erase(young.lower_bound(start.v), young.lower_bound(end.v));
  }
  void invalidate_range_end(Mm&, VirtAddr start, VirtAddr end) override {
    const auto it = changing.find({start.v, end.v});
    ASSERT_NE(it, changing.end());
    changing.erase(it);
  }
  bool clear_flush_young(Mm&, VirtAddr start, VirtAddr end) override {
    bool was = false;
    for (auto it = young.lower_bound(start.v); it != young.end() && *it < end.v; it = young.erase(it)) was = true;
    return was;
  }
  bool test_young(Mm&, VirtAddr address) override { return young.contains(address.v); }
  void release(Mm&) override {
    table.clear();
    released = true;
  }

  /// A fault of the second MMU: takes over what the process has there.
  void fill(VirtAddr address) {
    PteLock pte = vm_.machine->tables.pte_offset_map_lock(mm_, address);
    if (!pte || !pte_present(*pte) || released) return;
    for (const auto& [start, end] : changing)
      if (address.v >= start && address.v < end) return;
    table[address.v] = pte_pfn(*pte).v;
    young.insert(address.v);
  }
  /// Each entry is the process's own, at this moment.
  void expect_subset() {
    std::vector<uint64_t> addresses;
    for (const auto& [address, pfn] : table) addresses.push_back(address);
    for (const uint64_t address : addresses) {
      PteLock pte = vm_.machine->tables.pte_offset_map_lock(mm_, VirtAddr(address));
      const auto it = table.find(address);  // it may have left while we waited for the lock
      if (it == table.end()) continue;
      ASSERT_TRUE(pte && pte_present(*pte)) << std::hex << address;
      ASSERT_EQ(pte_pfn(*pte).v, it->second) << std::hex << address;
    }
  }

  std::map<uint64_t, uint64_t> table;
  std::set<uint64_t> young;
  std::multiset<std::pair<uint64_t, uint64_t>> changing;
  uint64_t told = 0;
  bool released = false;

 private:
  Vm& vm_;
  Mm& mm_;
};

TEST(MmuNotifier, AMirrorNeverMapsWhatTheProcessDoesNot) {
  const uint64_t seeds = std::getenv("WEIR_LONG") != nullptr ? 300 : 30;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const KernelEra kernel = seed % 2 == 0 ? KernelEra::linux_3 : KernelEra::linux_4_14;
    run_vm({.kernel = kernel, .swap = SWAP, .cpus = 2, .seed = seed, .preempt_one_in = 5}, [seed](Vm& vm) {
      Task& task = vm.task();
      constexpr uint64_t N = 24;
      const VirtAddr base{uint64_t{1} << 32};
      vm.map(task, N, VM_READ | VM_WRITE, base);
      for (uint64_t i = 0; i < N; ++i) vm.write(task, Vm::page_at(base, i), i);
      Mirror mirror(vm, *task.mm);
      mmu_notifier_register(*task.mm, mirror);
      bool over = false;
      vm.spawn([&] {
        std::mt19937_64 random(seed);
        while (!over && !testing::Test::HasFatalFailure()) {
          mirror.fill(Vm::page_at(base, random() % (2 * N)));
          mirror.expect_subset();
          vm.world.schedule_timeout(Nanos(1000));
        }
      });
      vm.spawn([&] {
        std::mt19937_64 random(seed + 1000);
        for (int step = 0; step < 150; ++step) {
          const uint64_t at = random() % N;
          const uint64_t n = 1 + random() % (N - at);
          const VirtAddr start = Vm::page_at(base, at);
          AddressSpaces& spaces = vm.machine->spaces;
          switch (random() % 9) {
            case 0: (void)spaces.munmap(*task.mm, start, n << PAGE_SHIFT); break;
            case 1: vm.map(task, n, VM_READ | VM_WRITE, start); break;
            case 2:
              (void)spaces.mprotect(*task.mm, start, n << PAGE_SHIFT, random() % 2 == 0 ? VM_READ : VM_READ | VM_WRITE);
              break;
            case 3: (void)spaces.madvise(*task.mm, start, n << PAGE_SHIFT, Advice::dontneed); break;
            case 4:
              (void)spaces.mremap(*task.mm, start, n << PAGE_SHIFT, n << PAGE_SHIFT, AddressSpaces::MayMove::yes,
                                  Vm::page_at(base, N + random() % N));
              break;
            case 5: {
              Task& child = vm.fork(task);
              (void)vm.mmu->touch(task, start, SoftMmu::Access::write);
              vm.exit(child);
              break;
            }
            case 6:
              if (const Pte pte = vm.pte(task, start); pte_present(pte) && !pte_special(pte))
                (void)vm.swap_out(task, start);
              break;
            default:
              (void)vm.mmu->touch(task, start, random() % 2 == 0 ? SoftMmu::Access::read : SoftMmu::Access::write);
          }
        }
        over = true;
      });
      vm.join();
      mirror.expect_subset();
      EXPECT_GT(mirror.told, 0u);
      EXPECT_TRUE(mirror.changing.empty());
      vm.exit(task);
      EXPECT_TRUE(mirror.released);
      EXPECT_TRUE(mirror.table.empty());
    });
    if (testing::Test::HasFailure()) return;
  }
}

TEST(MmuNotifier, UseThroughTheMirrorIsUseOfThePage) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 1);
    Page& page = vm.page(task, at);
    Mirror mirror(vm, *task.mm);
    mmu_notifier_register(*task.mm, mirror);
    const auto referenced = [&] {
      uint64_t flags = 0;
      FlushBatch batch;
      vm.machine->filemap.lock_page(page);
      const int n = vm.machine->rmap.page_referenced(page, &flags, batch);
      vm.machine->filemap.unlock_page(page);
      return n;
    };
    EXPECT_EQ(referenced(), 1);
    EXPECT_EQ(referenced(), 0);
    mirror.fill(at);
    EXPECT_TRUE(mmu_notifier_test_young(*task.mm, at));
    EXPECT_EQ(referenced(), 1);
    EXPECT_EQ(referenced(), 0);
    mmu_notifier_unregister(*task.mm, mirror);
    EXPECT_TRUE(mirror.released);
  });
}

TEST(MmuNotifier, WhoLeftIsToldNothingAnyMore) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 4);
    for (uint64_t i = 0; i < 4; ++i) vm.write(task, Vm::page_at(at, i), i);
    Mirror first(vm, *task.mm), second(vm, *task.mm);
    mmu_notifier_register(*task.mm, first);
    mmu_notifier_register(*task.mm, second);
    ASSERT_TRUE(vm.swap_out(task, at));
    EXPECT_EQ(first.told, 1u);
    EXPECT_EQ(second.told, 1u);
    mmu_notifier_unregister(*task.mm, first);
    ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, 1)));
    EXPECT_EQ(first.told, 1u);
    EXPECT_EQ(second.told, 2u);
    mmu_notifier_unregister(*task.mm, second);
    EXPECT_FALSE(has_listeners(*task.mm));
  });
}

}  // namespace
}  // namespace weir::test
