// The bound: whatever a program does, the memory that its cgroup is charged for stays within --ram, what is not managed
// of it (measured natively), and 8 MiB.
#include "programs/run_support.hpp"

namespace weir::test {
namespace {

TEST(RunBound, PeakOfTheCgroupStaysWithinTheBudget) {
  WEIR_NEEDS_LIVE();
  {
    const Cgroup probe;
    WEIR_NEEDS_CGROUP(probe);
  }
  const std::string touch = program("first_touch");
  constexpr uint64_t RAM = 24;
  struct Case {
    const char* name;
    Command command, small;  // small: the same program with next to nothing to manage
  };
  const std::vector<Case> cases{
      {"eight threads, first touch", {touch, "96", "8"}, {touch, "1", "8"}},
      {"two threads, first touch", {touch, "64", "2"}, {touch, "1", "2"}},
      {"python",
       {"/usr/bin/python3", "-c", "a=[str(i)*3 for i in range(900000)]\nprint(sum(map(len,a)))"},
       {"/usr/bin/python3", "-c", "print(1)"}},
  };
  const int rounds = std::getenv("WEIR_LONG") != nullptr ? 20 : 5;
  for (const Case& c : cases) {
    uint64_t outside = 0;
    {
      (void)run(c.small);
      const Cgroup group;
      ASSERT_EQ(run(c.small, {.cgroup = &group}).status, 0) << c.name;
      outside = group.peak();
    }
    for (int round = 0; round < rounds; ++round) {
      const Cgroup group;
      const WeirOutcome o = weir_run("24M", c.command, {.cgroup = &group}, {"--swap", "file:/tmp:512M"});
      ASSERT_EQ(o.status, 0) << c.name << ": " << o.err;
      EXPECT_GE(o.event("pswpout"), static_cast<int64_t>(RAM * MIB / 4096)) << c.name;
      EXPECT_LE(group.peak(), RAM * MIB + outside + 8 * MIB)
          << c.name << ", round " << round << ": " << group.peak() / 1024 << "K against 24M + " << outside / 1024
          << "K + 8M";
    }
  }
}

}  // namespace
}  // namespace weir::test
