// tests/model/planted.cpp
//
// The model test, linked with a room in which one line was changed for the worse (CMakeLists.txt says which): it must
// notice.
#include "model/child.hpp"

namespace weir::model {
namespace {

TEST(Planted, IsNoticed) {
  constexpr unsigned SEEDS = 40;
  unsigned noticed = 0;
  uint64_t first = 0;
  std::string how;
  for (uint64_t seed = 1; seed <= SEEDS; ++seed) {
    const Outcome outcome = run_in_child(script_of(seed, Mode::plain, false), 20);
    if (outcome.good) continue;
    if (noticed++ == 0) {
      first = seed;
      how = outcome.text.substr(0, 160);
      std::replace(how.begin(), how.end(), '\n', ' ');
    }
    if (noticed == 5) break;
  }
  std::printf("planted %s: noticed, first with seed %lu: %s\n", WEIR_PLANTED, first, how.c_str());
  EXPECT_GT(noticed, 0u) << "a fault in " << WEIR_PLANTED << " goes unnoticed";
}

}  // namespace
}  // namespace weir::model
