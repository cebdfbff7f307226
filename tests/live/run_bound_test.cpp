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

TEST(RunBound, ATreeThatForksStaysWithinTheBudget) {
  WEIR_NEEDS_LIVE();
  {
    const Cgroup probe;
    WEIR_NEEDS_CGROUP(probe);
  }
  // Four workers with a heap of their own and the parent's, which they look at and write to here and there.
  const auto command = [](const char* items, const char* parents) {
    return Command{"/usr/bin/python3", "-c",
                   "import multiprocessing as mp\n"
                   "base = [str(i) * 2 for i in range(" +
                       std::string(parents) +
                       ")]\n"
                       "def work(n):\n"
                       "    mine = [str(i) * (n + 2) for i in range(" +
                       items +
                       ")]\n"
                       "    base[::9] = ['x'] * len(base[::9])\n"
                       "    return sum(map(len, mine)) + sum(map(len, base))\n"
                       "if __name__ == '__main__':\n"
                       "    mp.set_start_method('fork')\n"
                       "    with mp.Pool(4) as pool:\n"
                       "        print(pool.map(work, range(8), 1))\n"};
  };
  constexpr uint64_t RAM = 80, PROCESSES = 5;  // they need some 35M each
  const Command small = command("10", "10"), large = command("350000", "60000");
  const Outcome native = run(large);
  ASSERT_EQ(native.status, 0) << native.err;
  uint64_t outside = 0;
  {
    (void)run(small);
    const Cgroup group;
    ASSERT_EQ(run(small, {.cgroup = &group}).status, 0);
    outside = group.peak();
  }
  const Cgroup group;
  const WeirOutcome o =
      weir_run(std::to_string(RAM) + "M", large, {.cgroup = &group}, {"--swap", "zram", "--swap", "file:/tmp:512M"});
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, native.out) << o.err;
  EXPECT_GT(o.event("pswpout"), 0);
  EXPECT_LE(group.peak(), RAM * MIB + outside + PROCESSES * 8 * MIB)
      << group.peak() / 1024 << "K against " << RAM << "M + " << outside / 1024 << "K + 8M for each of " << PROCESSES;
  std::printf("  peak %luK of %luM + %luK outside, native %.1f s, managed %.1f s, %ld out, %ld over\n",
              group.peak() / 1024, RAM, outside / 1024, native.seconds, o.seconds, o.event("pswpout"),
              o.stats.value("over_budget_pages", int64_t{-1}));
}

}  // namespace
}  // namespace weir::test
