// Page tables: how many, for whom, and that they all come back.
#include "mm/pgtable.hpp"

#include <random>
#include <set>

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

constexpr uint64_t PUD = uint64_t{1} << 30, PGD = uint64_t{1} << 39;

/// A bare Mm over a TestMachine: tables without mappings.
struct Tables {
  TestMachine machine;
  PageTables tables{machine.pages, machine.vmstat};
  Mm mm;
  Tables() { EXPECT_TRUE(tables.pgd_alloc(mm).ok()); }
  ~Tables() {
    tables.free_pgtables(mm, VirtAddr(0), VirtAddr(uint64_t{1} << 47), VirtAddr(0), VirtAddr(uint64_t{1} << 47));
    EXPECT_EQ(mm.nr_table_pages, 1);
    tables.pgd_free(mm);
    EXPECT_EQ(machine.vmstat.node_page_state(NodeStat::nr_page_table_pages), 0);
    EXPECT_EQ(machine.faults(), "");
  }
};

TEST(PageTables, ANewAddressSpaceHasItsTopTableOnly) {
  Tables t;
  EXPECT_EQ(t.mm.nr_table_pages, 1);
  EXPECT_EQ(t.tables.walk(t.mm, VirtAddr(0x1000)), nullptr);
  EXPECT_FALSE(t.tables.pte_offset_map_lock(t.mm, VirtAddr(0x1000)));
}

TEST(PageTables, PagesApartNeedExactlyTheTablesOfTheirSpans) {
  for (const uint64_t apart : {PAGE_SIZE, 64 * PAGE_SIZE, PMD_SIZE, 8 * PMD_SIZE, PUD, 3 * PUD, PGD}) {
    Tables t;
    std::set<uint64_t> ptes, pmds, puds;
    for (uint64_t i = 0; i < 20; ++i) {
      const VirtAddr address{i * apart};
      ASSERT_TRUE(t.tables.pte_alloc(t.mm, address).ok());
      ptes.insert(address.v / PMD_SIZE), pmds.insert(address.v / PUD), puds.insert(address.v / PGD);
    }
    EXPECT_EQ(t.mm.nr_table_pages, static_cast<int64_t>(1 + ptes.size() + pmds.size() + puds.size())) << apart;
  }
}

TEST(PageTables, TablePagesAreZeroedAndMarked) {
  Tables t;
  PteLock pte = t.tables.pte_alloc_map_lock(t.mm, VirtAddr(5 * PAGE_SIZE));
  ASSERT_TRUE(pte);
  const Pte* first = t.tables.pte_table(t.mm, VirtAddr(0));
  EXPECT_EQ(first + 5, pte.get());
  for (unsigned i = 0; i < PTRS_PER_TABLE; ++i) EXPECT_TRUE(pte_none(first[i]));
  EXPECT_TRUE(t.machine.mem.virt_to_page(first).test(PageFlag::table));
}

TEST(PageTables, TheLockIsThatOfTheTable) {
  Tables t;
  ASSERT_TRUE(t.tables.pte_alloc(t.mm, VirtAddr(0)).ok());
  ASSERT_TRUE(t.tables.pte_alloc(t.mm, VirtAddr(PMD_SIZE)).ok());
  PteLock one = t.tables.pte_offset_map_lock(t.mm, VirtAddr(0));
  PteLock other = t.tables.pte_offset_map_lock(t.mm, VirtAddr(PMD_SIZE));  // would never return if it were the same
  EXPECT_TRUE(one && other);
}

TEST(PageTables, TablesThatANeighbourNeedsStay) {
  Tables t;
  // [0, 1 MiB) and [1 MiB, 2 MiB) share all their tables; [4 MiB, 5 MiB) the upper ones.
  ASSERT_TRUE(t.tables.pte_alloc(t.mm, VirtAddr(0)).ok());
  ASSERT_TRUE(t.tables.pte_alloc(t.mm, VirtAddr(2 * PMD_SIZE)).ok());
  EXPECT_EQ(t.mm.nr_table_pages, 5);
  const VirtAddr half{PMD_SIZE / 2};
  t.tables.free_pgtables(t.mm, VirtAddr(0), half, VirtAddr(0), half);
  EXPECT_EQ(t.mm.nr_table_pages, 5);
  t.tables.free_pgtables(t.mm, half, VirtAddr(PMD_SIZE), VirtAddr(0), VirtAddr(2 * PMD_SIZE));
  EXPECT_EQ(t.mm.nr_table_pages, 4);
  EXPECT_NE(t.tables.walk(t.mm, VirtAddr(2 * PMD_SIZE)), nullptr);
  t.tables.free_pgtables(t.mm, VirtAddr(2 * PMD_SIZE), VirtAddr(3 * PMD_SIZE), VirtAddr(0), VirtAddr(PGD));
  EXPECT_EQ(t.mm.nr_table_pages, 1);
}

TEST(PageTables, RandomRangesComeAndGoWithoutALostTable) {
  // Ranges as mappings: none overlap; each goes with its neighbours as floor and ceiling.
  std::mt19937_64 random(7);
  Tables t;
  std::map<uint64_t, uint64_t> ranges;
  for (int step = 0; step < 3000; ++step) {
    const uint64_t start = (random() % (1 << 12)) << (PAGE_SHIFT + random() % 20);
    const uint64_t end = start + ((1 + random() % 700) << PAGE_SHIFT);
    auto next = ranges.lower_bound(start);
    const bool free =
        (next == ranges.end() || next->first >= end) && (next == ranges.begin() || std::prev(next)->second <= start);
    if (free && ranges.size() < 12) {
      ranges[start] = end;
      for (uint64_t a = start; a < end; a += PAGE_SIZE * 100) ASSERT_TRUE(t.tables.pte_alloc(t.mm, VirtAddr(a)).ok());
    } else if (!ranges.empty()) {
      auto gone = std::next(ranges.begin(), static_cast<long>(random() % ranges.size()));
      const uint64_t floor = gone == ranges.begin() ? 0 : std::prev(gone)->second;
      const uint64_t ceiling = std::next(gone) == ranges.end() ? uint64_t{1} << 47 : std::next(gone)->first;
      t.tables.free_pgtables(t.mm, VirtAddr(gone->first), VirtAddr(gone->second), VirtAddr(floor), VirtAddr(ceiling));
      ranges.erase(gone);
    }
    if (ranges.empty()) {
      EXPECT_EQ(t.mm.nr_table_pages, 1);
    }
  }
  for (auto& [start, end] : ranges)
    for (uint64_t a = start; a < end; a += PAGE_SIZE * 100) EXPECT_NE(t.tables.walk(t.mm, VirtAddr(a)), nullptr);
}

TEST(PageTables, NextTableSkipsWhatIsNotThere) {
  Tables t;
  const VirtAddr end{uint64_t{1} << 47};
  EXPECT_EQ(t.tables.next_table(t.mm, VirtAddr(0), end), end);
  const VirtAddr there{77 * PGD + 5 * PUD + 9 * PMD_SIZE};
  ASSERT_TRUE(t.tables.pte_alloc(t.mm, there + 3 * PAGE_SIZE).ok());
  EXPECT_EQ(t.tables.next_table(t.mm, VirtAddr(0), end), there);
  EXPECT_EQ(t.tables.next_table(t.mm, there + PAGE_SIZE, end), there + PAGE_SIZE);
  EXPECT_EQ(t.tables.next_table(t.mm, there + PMD_SIZE, end), end);
  unsigned visited = 0;
  t.tables.for_each_pte(t.mm, VirtAddr(0), end, [&](VirtAddr, Pte*) { ++visited; });
  EXPECT_EQ(visited, PTRS_PER_TABLE);
}

TEST(PageTables, WithoutMemoryNothingIsLeftHalfMade) {
  run_vm({.ram = Bytes(uint64_t{4} << 20)}, [](Vm& vm) {
    Task& task = vm.task();
    std::vector<Page*> hoard;
    vm.machine->pages.set_pressure(nullptr);
    while (Page* page = vm.machine->pages.alloc_page(GFP_KERNEL | __GFP_NOWARN)) hoard.push_back(page);
    uint64_t made = 0;
    while (vm.machine->tables.pte_alloc(*task.mm, VirtAddr(made * PGD)).ok()) ++made;
    for (Page* page : hoard) vm.machine->pages.__free_pages(*page, Order(0));
    int64_t found = 1;
    for (uint64_t i = 0; i <= made; ++i) {
      EXPECT_EQ(vm.machine->tables.walk(*task.mm, VirtAddr(i * PGD)) != nullptr, i < made);
      found += i < made ? 3 : 0;
    }
    EXPECT_GE(task.mm->nr_table_pages, found);      // the path that failed may have its upper part,
    EXPECT_LE(task.mm->nr_table_pages, found + 2);  // which serves the next try
    ASSERT_TRUE(vm.machine->tables.pte_alloc(*task.mm, VirtAddr(made * PGD)).ok());
    EXPECT_EQ(task.mm->nr_table_pages, found + 3);
  });
}

// ---- Accessors ------------------------------------------------------------------------------------------------------

TEST(Pte, AccessorsChangeTheirBitsAndNoOthers) {
  Tables t;
  Mm& mm = t.mm;
  const VirtAddr at{7 * PAGE_SIZE};
  PteLock pte = t.tables.pte_alloc_map_lock(mm, at);
  const Pte full = pte_mkdirty(pte_mkwrite(pfn_pte(Pfn(1234))));
  t.tables.set_pte_at(mm, at, pte.get(), full);
  EXPECT_EQ(*pte, full);
  t.tables.ptep_set_wrprotect(mm, at, pte.get());
  EXPECT_EQ(*pte, pte_wrprotect(full));
  EXPECT_TRUE(t.tables.ptep_test_and_clear_young(mm, at, pte.get()));
  EXPECT_FALSE(t.tables.ptep_test_and_clear_young(mm, at, pte.get()));
  EXPECT_EQ(*pte, pte_mkold(pte_wrprotect(full)));
  EXPECT_TRUE(t.tables.ptep_set_access_flags(mm, at, pte.get(), pte_mkyoung(*pte)));
  EXPECT_FALSE(t.tables.ptep_set_access_flags(mm, at, pte.get(), pte_mkyoung(*pte)));
  EXPECT_TRUE(t.tables.ptep_set_access_flags(mm, at, pte.get(), full));
  EXPECT_EQ(*pte, full);
  EXPECT_EQ(t.tables.ptep_clear_flush(mm, at, pte.get()), full);
  EXPECT_TRUE(pte_none(*pte));
}

TEST(Pte, AMappingWithoutRightsIsPresentButNotAccessible) {
  VmArea none, readable;
  readable.vm_flags = VM_READ;
  EXPECT_TRUE(pte_present(mk_pte(Pfn(5), none)));
  EXPECT_FALSE(pte_user(mk_pte(Pfn(5), none)));
  EXPECT_TRUE(pte_user(mk_pte(Pfn(5), readable)));
  EXPECT_FALSE(pte_write(mk_pte(Pfn(5), readable)));
  EXPECT_EQ(pte_pfn(mk_pte(Pfn(5), none)), Pfn(5));
}

}  // namespace
}  // namespace weir::test
