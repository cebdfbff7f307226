// bench/rmap_bench.cpp: what sharing costs.
//
// Fork: per page of a parent of which half is in swap, by its size. Per page it must not cost more for a large one.
// Reclaim: per mapping of pages that 1, 10 and 100 address spaces share; it must grow with the mappings only.
//
//   bench_rmap [MIB]      the largest parent (1024)
#include <cstdlib>

#include "machine.hpp"
#include "table.hpp"

using namespace weir;
using namespace weir::bench;

namespace {

void touch_all(BenchMachine& m, VirtAddr base, uint64_t pages) {
  for (uint64_t i = 0; i < pages; ++i)
    WEIR_BUG_ON(m.mmu.touch(m.task(), base + (i << PAGE_SHIFT), SoftMmu::Access::write) != FaultResult::done);
}

void fork_half_swapped(Table& table, uint64_t mib) {
  const Bytes size(mib << 20);
  BenchMachine m({.ram = Bytes(size.v + size.v / 2), .swap = SwapKind::disk, .swap_size = size});
  const uint64_t pages = size.v >> PAGE_SHIFT;
  Sample sample;
  int64_t swapped = 0;
  m.run([&] {
    touch_all(m, m.map(size), pages);
    Mm& mm = *m.task().mm;
    while (mm.rss(RssKind::swapents) < static_cast<int64_t>(pages / 2))
      if (m.machine->vmscan.shrink_all_memory(PageCount(static_cast<int64_t>(pages / 2) - mm.rss(RssKind::swapents)))
              .v == 0)
        break;
    swapped = mm.rss(RssKind::swapents);
    for (unsigned i = 0; i < 10; ++i) {
      Task* child = nullptr;
      sample.add(measure(1, pages, [&] {
        Result<Task*> made = m.machine->task_fork(m.task());
        WEIR_BUG_ON(!made);
        child = *made;
      }));
      m.machine->task_exit(*child, 0);
    }
  });
  char name[80];
  std::snprintf(name, sizeof name, "%lu MiB, %ld %% in swap", mib, 100 * swapped / static_cast<int64_t>(pages));
  table.row(name, sample);
}

void reclaim_shared(Table& table, unsigned mappings) {
  constexpr uint64_t PAGES = 2048;
  BenchMachine m({.ram = Bytes(uint64_t{64} << 20), .swap = SwapKind::disk});
  Sample sample;
  int64_t left = 0;
  m.run([&] {
    touch_all(m, m.map(Bytes(PAGES << PAGE_SHIFT)), PAGES);
    std::vector<Task*> children;
    for (unsigned i = 1; i < mappings; ++i) {
      Result<Task*> made = m.machine->task_fork(m.task());
      WEIR_BUG_ON(!made);
      children.push_back(*made);
    }
    sample = measure(1, PAGES * mappings, [&] {
      for (int tries = 0; tries < 20 && m.task().mm->rss(RssKind::anon) > 0; ++tries)
        (void)m.machine->vmscan.shrink_all_memory(PageCount(m.task().mm->rss(RssKind::anon)));
    });
    left = m.task().mm->rss(RssKind::anon);
    for (Task* child : children) m.machine->task_exit(*child, 0);
  });
  char name[80];
  std::snprintf(name, sizeof name, "%u mappings a page%s", mappings, left != 0 ? " (not all went)" : "");
  table.row(name, sample);
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t largest = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1024;
  {
    Table table("Fork, ns a page of the parent (aim: 1 GiB at most 1.5 x 64 MiB)");
    for (uint64_t mib = 64; mib <= largest; mib *= 4) fork_half_swapped(table, mib);
  }
  {
    Table table("Reclaim of shared anonymous pages, ns a mapping (aim: does not grow)");
    for (unsigned mappings : {1u, 10u, 100u}) reclaim_shared(table, mappings);
  }
  return 0;
}
