// Processes that a managed program makes: their memory is as of the fork, never zeros, whoever writes then.
#include "programs/run_support.hpp"

namespace weir::test {
namespace {

int64_t frames(uint64_t mib) { return static_cast<int64_t>(mib * MIB / 4096); }

TEST(RunFork, ChildrenAndGrandchildrenSeeMemoryAsOfTheFork) {
  WEIR_NEEDS_LIVE();
  const Command forks{program("forks"), "20", "2"};
  const Outcome native = run(forks);
  ASSERT_EQ(native.status, 0) << native.out << native.err;
  const WeirOutcome managed = weir_run("24M", forks, {}, {"--swap", "file:/tmp:256M"});
  EXPECT_EQ(managed.status, 0) << managed.err;
  EXPECT_EQ(managed.out, native.out);
  EXPECT_GE(managed.event("pswpout"), frames(24));
  ASSERT_TRUE(managed.stats.is_object());
  EXPECT_EQ(managed.stats["nr_processes"], 4);
  EXPECT_EQ(managed.stats["lost_budget_pages"], 0);
}

TEST(RunFork, PythonForksWithItsHeapSwappedOut) {
  WEIR_NEEDS_LIVE();
  const Command python{"/usr/bin/python3", "-c",
                       "import os, sys\n"
                       "a = [str(i) * 3 for i in range(200000)]\n"
                       "total = sum(map(len, a))\n"
                       "for n in range(3):\n"
                       "    r, w = os.pipe()\n"
                       "    p = os.fork()\n"
                       "    if p == 0:\n"
                       "        a[::7] = ['child'] * len(a[::7])\n"
                       "        os.write(w, str(sum(map(len, a))).encode())\n"
                       "        os._exit(n)\n"
                       "    os.close(w)\n"
                       "    a[::5] = [str(n)] * len(a[::5])\n"
                       "    print(n, os.read(r, 100), sum(map(len, a)), os.waitpid(p, 0)[1])\n"};
  const Outcome native = run(python);
  ASSERT_EQ(native.status, 0) << native.err;
  const WeirOutcome managed = weir_run("16M", python, {}, {"--swap", "zram", "--swap", "file:/tmp:256M"});
  EXPECT_EQ(managed.status, 0) << managed.err;
  EXPECT_EQ(managed.out, native.out);
}

TEST(RunFork, AShellPipelineOfManagedProcesses) {
  WEIR_NEEDS_LIVE();
  const Command shell{
      "sh", "-c",
      "seq 200000 | sort -r | (read a; echo $a; tail -n 1); (exit 3); echo $?; x=$(echo sub; exit 4); echo $x $?"};
  const Outcome native = run(shell);
  const WeirOutcome managed = weir_run("24M", shell);
  EXPECT_EQ(managed.out, native.out) << managed.err;
  EXPECT_EQ(managed.status, native.status);
  ASSERT_TRUE(managed.stats.is_object());
  EXPECT_EQ(managed.stats["lost_budget_pages"], 0);
  // Each fork copies a shell that uses little: nothing like a second budget.
  EXPECT_LE(managed.stats["over_budget_pages"], frames(12)) << managed.err;
}

TEST(RunFork, ProcessesShareTheBudget) {
  WEIR_NEEDS_LIVE();
  const Cgroup group;
  WEIR_NEEDS_CGROUP(group);
  const std::string touch = program("first_touch");
  const WeirOutcome managed = weir_run("32M", {"sh", "-c", touch + " 48 1 & " + touch + " 48 1 & wait"},
                                       {.cgroup = &group}, {"--swap", "file:/tmp:256M"});
  const Outcome native = run({"sh", "-c", touch + " 48 1; " + touch + " 48 1"});
  EXPECT_EQ(managed.out, native.out) << managed.err;
  EXPECT_EQ(managed.status, 0);
  EXPECT_GE(managed.event("pswpout"), frames(32));
  EXPECT_LE(group.peak(), (32 + 24) * MIB) << "32M for both, and room for what is not managed";
}

}  // namespace
}  // namespace weir::test
