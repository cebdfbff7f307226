// A fault in the memory manager is noticed live: tests of test_run, with the command as it is built and with one whose
// preload has a wrong line in mm/swapfile (CMakeLists.txt says which).
#include "programs/run_support.hpp"

namespace weir::test {
namespace {

/// One case of test_run, with the command of this build folder.
Outcome run_case(const std::string& name, const std::string& folder) {
  return run({build_dir() + "/tests/live/test_run", "--gtest_filter=" + name},
             {.env = {"WEIR_BUILD_DIR=" + folder}, .limit_seconds = 120});
}

class Planted : public testing::TestWithParam<const char*> {};

TEST_P(Planted, ASwapCountThatIsForgottenIsNoticed) {
  WEIR_NEEDS_LIVE();
  const Outcome plain = run_case(GetParam(), build_dir());
  EXPECT_EQ(plain.status, 0) << plain.out << plain.err;
  const Outcome faulty = run_case(GetParam(), build_dir() + "/planted/swap_duplicate");
  EXPECT_EQ(faulty.status, 1) << "a fault in src/mm/swapfile goes unnoticed, or it hangs\n" << faulty.out << faulty.err;
  EXPECT_NE(faulty.out.find(std::string("[  FAILED  ] ") + GetParam()), std::string::npos) << faulty.out;
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Planted, testing::Values("Run.SwappedOutMemoryIsThereForEveryCall", "Run.ThreadsThatTouchFreshMemoryAtOnce"),
    [](const testing::TestParamInfo<const char*>& info) { return std::string(info.param).substr(4); });

}  // namespace
}  // namespace weir::test
