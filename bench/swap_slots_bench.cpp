// What it costs to take a swap slot, from an empty area to one that is nearly full.
#include <algorithm>
#include <vector>

#include "machine.hpp"
#include "table.hpp"

using namespace weir;
using namespace weir::bench;

namespace {

constexpr int64_t SLOTS = 1 << 18;  // 1 GiB
constexpr unsigned BATCH = 64, BATCHES = 24, ROUNDS = 8;

/// A device that nothing is written to.
class Nowhere final : public BlockDevice {
 public:
  [[nodiscard]] const char* name() const override { return "nowhere"; }
  [[nodiscard]] PageCount capacity() const override { return PageCount(SLOTS); }
  [[nodiscard]] bool synchronous() const override { return true; }
  Result<void> rw_page(BioOp op, uint64_t index, Content content) override {
    if (index == 0 && op == BioOp::write) header_.assign(content.bytes, content.bytes + PAGE_SIZE);
    if (index == 0 && op == BioOp::read) std::copy(header_.begin(), header_.end(), content.bytes);
    return {};
  }
  void submit_bio(Bio& bio) override { bio.end_io(bio); }

 private:
  std::vector<std::byte> header_;
};

struct Slots {
  explicit Slots(Machine& machine) : m(machine) {}
  Machine& m;
  std::vector<SwpEntry> used;
  Random random{7};

  SwpEntry take() {
    const SwpEntry entry = m.swap_slots.get_swap_page();
    WEIR_BUG_ON(!entry);
    return entry;
  }
  /// As after a page has been swapped out: one PTE has the slot, the cache has not.
  void settle(SwpEntry entry) {
    WEIR_BUG_ON(!m.swap_files.swap_duplicate(entry));
    m.swap_files.swapcache_free(entry);
  }
  void give(SwpEntry entry) { m.swap_files.swap_free(entry); }
  /// So much of the area is used, the free slots scattered as a long run leaves them.
  void fill_to(double share) {
    const auto want = static_cast<size_t>(share * static_cast<double>(SLOTS));
    while (used.size() < static_cast<size_t>(SLOTS) - 1) {
      const SwpEntry entry = m.swap_slots.get_swap_page();
      if (!entry) break;
      settle(entry);
      used.push_back(entry);
    }
    while (used.size() > want) {
      std::swap(used[random.below(used.size())], used.back());
      give(used.back());
      used.pop_back();
    }
    m.swap_slots.drain_slots_cache();
  }
};

}  // namespace

int main() {
  BenchMachine bench({.ram = 64_MiB, .content = ContentKind::bytes});
  Nowhere device;
  bench.run([&] {
    WEIR_BUG_ON(!bench.machine->swapon.mkswap(device));
    WEIR_BUG_ON(!bench.machine->swapon.swapon(device, 0));
    Slots slots(*bench.machine);
    Table taking("Taking a slot of an area of 1 GiB, by how full it is");
    for (const double share : {0.01, 0.25, 0.50, 0.75, 0.90, 0.99}) {
      Sample sample;
      for (unsigned round = 0; round <= ROUNDS; ++round) {
        slots.fill_to(share);
        std::vector<SwpEntry> got;
        got.reserve(BATCH * BATCHES);
        const Sample s = measure(BATCHES, BATCH, [&] {
          for (unsigned i = 0; i < BATCH; ++i) got.push_back(slots.take());
        });
        for (const SwpEntry entry : got) {
          slots.settle(entry);
          slots.used.push_back(entry);
        }
        if (round > 0) sample.add(s);  // the first one makes caches used to it
      }
      char name[64];
      std::snprintf(name, sizeof name, "%s%.0f %% used", share == 0.01 ? "reference: " : "", share * 100);
      taking.row(name, sample);
    }
    for (const SwpEntry entry : slots.used) slots.give(entry);
    bench.machine->swap_slots.drain_slots_cache();
    WEIR_BUG_ON(!bench.machine->swapon.swapoff(0));
  });
  return 0;
}
