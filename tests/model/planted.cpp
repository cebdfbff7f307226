// tests/model/planted.cpp
//
// The model test, or the file exerciser (WEIR_PLANTED_FSX), linked with a room in which one line was changed for the worse (CMakeLists.txt says which): it must
// notice.
#include "model/child.hpp"
#include "model/fsx_machine.hpp"

namespace weir::model {
namespace {

/// Empty, or what went wrong.
std::string run(uint64_t seed) {
#ifdef WEIR_PLANTED_FSX
  FsxTotals totals;
  return machine_run(seed, Disk::sound, totals);
#else
  const Outcome outcome = run_in_child(script_of(seed, Mode::plain, false), 20);
  return outcome.good ? "" : outcome.text;
#endif
}

TEST(Planted, IsNoticed) {
  constexpr unsigned SEEDS = 40;
  unsigned noticed = 0;
  uint64_t first = 0;
  std::string how;
  for (uint64_t seed = 1; seed <= SEEDS; ++seed) {
    const std::string found = run(seed);
    if (found.empty()) continue;
    if (noticed++ == 0) {
      first = seed;
      how = found.substr(0, 160);
      std::replace(how.begin(), how.end(), '\n', ' ');
    }
    if (noticed == 5) break;
  }
  std::printf("planted %s: noticed, first with seed %lu: %s\n", WEIR_PLANTED, first, how.c_str());
  EXPECT_GT(noticed, 0u) << "a fault in " << WEIR_PLANTED << " goes unnoticed";
}

}  // namespace
}  // namespace weir::model
