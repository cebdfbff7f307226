// The software MMU's hit path, beside plain loads and stores of the same places (target: 50 million hits a second).
#include <vector>

#include "machine.hpp"
#include "table.hpp"

using namespace weir;
using namespace weir::bench;

namespace {

constexpr unsigned BATCHES = 300;
constexpr uint64_t ACCESSES = 100000;  // a batch

/// Offsets of 8-byte words in `pages` pages.
std::vector<uint32_t> offsets(uint64_t pages, bool random) {
  Random r;
  std::vector<uint32_t> all(4096);
  for (size_t i = 0; i < all.size(); ++i)
    all[i] = static_cast<uint32_t>(random ? r.below(pages * PAGE_SIZE / 8) * 8 : i * 8 % (pages * PAGE_SIZE));
  return all;
}

}  // namespace

int main() {
  BenchMachine m({.content = ContentKind::bytes});
  HostMemory plain(256 * PAGE_SIZE);
  for (size_t i = 0; i < plain.size(); i += PAGE_SIZE) plain.data()[i] = std::byte{1};
  m.run([&] {
    const VirtAddr base = m.map(Bytes(256 * PAGE_SIZE));
    for (uint64_t i = 0; i < 256; ++i) WEIR_BUG_ON(m.mmu.store(m.task(), base + i * PAGE_SIZE, i) != FaultResult::done);
    Table table("Software MMU, hits against plain accesses (target: 50 million a second)");
    struct Pattern {
      const char* name;
      uint64_t pages;
      bool random;
    };
    const auto run = [&](const Pattern& pattern, auto access) {
      const std::vector<uint32_t> at = offsets(pattern.pages, pattern.random);
      return measure(BATCHES, ACCESSES, [&] {
        for (uint64_t i = 0; i < ACCESSES; ++i) access(at[i % at.size()]);
      });
    };
    constexpr Pattern PATTERNS[] = {
        {"one page, in order", 1, false}, {"16 pages, random", 16, true}, {"256 pages, random", 256, true}};
    for (const Pattern& p : PATTERNS)
      table.row((&p == PATTERNS ? "reference: plain load, " : "plain load, ") + std::string(p.name),
                run(p, [&](uint32_t offset) {
                  uint64_t value;
                  std::memcpy(&value, plain.data() + offset, sizeof value);
                  keep(value);
                }));
    for (const Pattern& p : PATTERNS)
      table.row("hit, load, " + std::string(p.name), run(p, [&](uint32_t offset) {
                  uint64_t value = 0;
                  keep(m.mmu.load(m.task(), base + offset, value));
                  keep(value);
                }));
    for (const Pattern& p : PATTERNS)
      table.row("hit, store, " + std::string(p.name),
                run(p, [&](uint32_t offset) { keep(m.mmu.store(m.task(), base + offset, uint64_t{offset})); }));
  });
  return 0;
}
