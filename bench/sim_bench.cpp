// Page faults of a simulated machine: tagged, 64 MiB, nothing recorded. Beside them faults of the host's kernel, which
// never reclaims for them.
//
// "reclaim" touches four times the RAM, so that nearly every fault takes a page from another place: its frame is found
// by vmscan, its content written to swap and, where it had been there before, read back.
#include <cstdlib>
#include <cstring>

#include "machine.hpp"
#include "table.hpp"

using namespace weir;
using namespace weir::bench;

namespace {

constexpr unsigned BATCHES = 200;
constexpr uint64_t FAULTS = 2000;  // a batch

Sample host_faults() {
  HostMemory memory(FAULTS << PAGE_SHIFT);
  return measure(BATCHES, FAULTS, [&] {
    madvise(memory.data(), memory.size(), MADV_DONTNEED);
    for (uint64_t i = 0; i < FAULTS; ++i) std::memset(memory.data() + (i << PAGE_SHIFT), 1, 8);
  });
}

struct Run {
  const char* name;
  SwapKind swap;
  uint64_t over_ram_percent;  ///< how much is touched
  bool random;
  bool write;
  bool fresh = false;  ///< a batch's pages are given back before it, wherever they are, and come as new ones
};

/// The machine's faults, counted by itself; touches that hit cost time too but are not counted.
void simulated(Table& table, const Run& run) {
  BenchMachine m({.swap = run.swap});
  const uint64_t pages = (uint64_t{64} << 20) / PAGE_SIZE * run.over_ram_percent / 100;
  Sample sample;
  uint64_t in = 0, out = 0, faults_of_all = 0;
  m.run([&] {
    const VirtAddr base = m.map(Bytes(pages << PAGE_SHIFT));
    Random random;
    uint64_t next = 0;
    const auto touch = [&] {
      const uint64_t page = run.random ? random.below(pages) : next;
      next = next + 1 < pages ? next + 1 : 0;
      const FaultResult r = m.mmu.touch(m.task(), base + (page << PAGE_SHIFT),
                                        run.write ? SoftMmu::Access::write : SoftMmu::Access::read);
      WEIR_BUG_ON(r != FaultResult::done);
    };
    const auto faults = [&] { return m.mmu.stats().faults; };
    // Every page exists, and has gone out where it had to, before time is taken.
    for (uint64_t i = 0; i < pages; ++i) {
      const FaultResult r = m.mmu.touch(m.task(), base + (i << PAGE_SHIFT), SoftMmu::Access::write);
      WEIR_BUG_ON(r != FaultResult::done);
    }
    if (run.over_ram_percent > 100)
      for (uint64_t i = 0; i < pages; ++i) touch();
    const uint64_t in_before = m.event(VmEvent::pswpin), out_before = m.event(VmEvent::pswpout),
                   faults_before = faults();
    sample = measure(BATCHES, FAULTS, [&] {
      if (run.fresh) {
        if (next + FAULTS > pages) next = 0;
        const VirtAddr start = base + (next << PAGE_SHIFT);
        WEIR_BUG_ON(!m.machine->spaces.madvise(*m.task().mm, start, FAULTS << PAGE_SHIFT, Advice::dontneed));
      }
      const uint64_t until = faults() + FAULTS;
      while (faults() < until) touch();
    });
    faults_of_all = faults() - faults_before;
    in = m.event(VmEvent::pswpin) - in_before;
    out = m.event(VmEvent::pswpout) - out_before;
  });
  table.row(run.name, sample);
  if (run.swap != SwapKind::nothing)
    std::printf("%44s %.2f pages in, %.2f out a fault\n", "",
                static_cast<double>(in) / static_cast<double>(faults_of_all),
                static_cast<double>(out) / static_cast<double>(faults_of_all));
}

}  // namespace

int main(int argc, char** argv) {
  const char* only = argc > 1 ? argv[1] : "";
  Table table(
      "Page faults: tagged machine of 64 MiB against the host's kernel (target with reclaim: 1 million a second)");
  table.row("reference: the host's anonymous faults", host_faults());
  for (const Run& run : {
           Run{"anonymous, no reclaim", SwapKind::nothing, 50, false, true, true},
           Run{"reclaim, disk, 4 x RAM, new pages", SwapKind::disk, 400, false, true, true},
           Run{"reclaim, disk, 4 x RAM, random, write", SwapKind::disk, 400, true, true},
           Run{"reclaim, disk, 4 x RAM, random, read", SwapKind::disk, 400, true, false},
           Run{"reclaim, disk, 4 x RAM, in order, write", SwapKind::disk, 400, false, true},
           Run{"reclaim, zram, 1.5 x RAM, random, write", SwapKind::zram, 150, true, true},
       })
    if (std::strstr(run.name, only) != nullptr) simulated(table, run);
  return 0;
}
