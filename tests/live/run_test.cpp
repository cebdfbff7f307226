// Programs under `weir run`, from outside: what they print, how they end, what passes through.
#include <future>

#include "programs/run_support.hpp"

namespace weir::test {
namespace {

/// Pages of a --ram given in MiB.
int64_t frames(uint64_t mib) { return static_cast<int64_t>(mib * MIB / 4096); }

TEST(Run, PythonPrintsTheSameWithMoreThanItsRamSwappedOut) {
  WEIR_NEEDS_LIVE();
  const Command python{"/usr/bin/python3", "-c",
                       "a = [str(i) * 3 for i in range(250000)]\n"
                       "d = {x: i for i, x in enumerate(a)}\n"
                       "print(len(d), sum(d[x] for x in a), sum(map(len, a)))\n"};
  const Outcome native = run(python);
  ASSERT_EQ(native.status, 0) << native.err;
  const Cgroup group((16 + 24) * MIB);
  const WeirOutcome managed =
      weir_run("16M", python, {.cgroup = group.made() ? &group : nullptr}, {"--swap", "file:/tmp:256M"});
  EXPECT_EQ(managed.status, 0) << managed.err;
  EXPECT_EQ(managed.out, native.out);
  EXPECT_GE(managed.event("pswpout"), frames(16)) << managed.err;
  EXPECT_LT(managed.stats.value("unmanaged_anon_share", 1.0), 0.5);
}

TEST(Run, SwappedOutMemoryIsThereForEveryCall) {
  WEIR_NEEDS_LIVE();
  const Command calls{program("memory_calls"), "24"};
  const Outcome native = run(calls);
  ASSERT_EQ(native.status, 0) << native.out;
  const WeirOutcome managed = weir_run("12M", calls, {}, {"--swap", "file:/tmp:256M"});
  EXPECT_EQ(managed.out, native.out);
  EXPECT_EQ(managed.status, 0) << managed.err;
  EXPECT_GE(managed.event("pswpout"), frames(12));
}

TEST(Run, CodeThatAProgramMakesRunsFromSwap) {
  WEIR_NEEDS_LIVE();
  const Command command{program("code"), "48"};
  const Outcome native = run(command);
  ASSERT_EQ(native.status, 0) << native.err;
  const WeirOutcome managed = weir_run("16M", command, {}, {"--swap", "zram", "--swap", "file:/tmp:256M"});
  EXPECT_EQ(managed.status, 0) << managed.err;
  EXPECT_EQ(managed.out, native.out);
  EXPECT_GE(managed.event("pswpin"), frames(48 - 16)) << managed.err;
}

TEST(Run, ThreadsThatTouchFreshMemoryAtOnce) {
  WEIR_NEEDS_LIVE();
  const Command threads{program("first_touch"), "64", "8"};
  const Outcome native = run(threads);
  const WeirOutcome managed = weir_run("16M", threads, {}, {"--swap", "file:/tmp:256M"});
  EXPECT_EQ(managed.out, native.out) << managed.err;
  EXPECT_EQ(managed.status, 0);
  EXPECT_GE(managed.event("pswpout"), frames(16));
}

TEST(Run, AProgramMayCloseAllDescriptors) {
  WEIR_NEEDS_LIVE();
  const WeirOutcome managed = weir_run("12M", {program("close_all"), "32"}, {}, {"--swap", "file:/tmp:256M"});
  EXPECT_EQ(managed.out, "0 words wrong\n") << managed.err;
  EXPECT_EQ(managed.status, 0);
  EXPECT_GE(managed.event("pswpout"), frames(12));
}

TEST(Run, ExecTakesArgumentsFromSwappedOutMemoryAndTheNewProgramIsManaged) {
  WEIR_NEEDS_LIVE();
  const Command self{program("exec_self"), "24"};
  const Outcome native = run(self);
  const WeirOutcome managed = weir_run("12M", self, {}, {"--swap", "file:/tmp:256M"});
  EXPECT_EQ(managed.out, native.out) << managed.err;
  EXPECT_EQ(managed.status, 3);
  ASSERT_TRUE(managed.stats.is_object());
  EXPECT_EQ(managed.stats["nr_processes"], 3);
  for (const auto& process : managed.stats["processes"]) EXPECT_TRUE(process.value("managed", false)) << process;
}

TEST(Run, ExitStatusAndSignalsPassThrough) {
  WEIR_NEEDS_LIVE();
  const std::string p = program("signals");
  EXPECT_EQ(weir_run("16M", {p, "exit", "0"}).status, 0);
  EXPECT_EQ(weir_run("16M", {p, "exit", "42"}).status, 42);
  EXPECT_EQ(weir_run("16M", {p, "quick", "7"}).status, 7);
  EXPECT_EQ(weir_run("16M", {p, "kill", "9"}).status, 128 + 9);
  EXPECT_EQ(weir_run("16M", {p, "kill", "15"}).status, 128 + 15);
  EXPECT_EQ(weir_run("16M", {p, "segv"}).status, 128 + 11);
  EXPECT_EQ(weir_run("16M", {p, "abort"}).status, 128 + 6);
}

TEST(Run, ASignalToTheLauncherReachesTheProgram) {
  WEIR_NEEDS_LIVE();
  for (const auto& [signal, status] : {std::pair{SIGTERM, 10}, {SIGUSR1, 11}}) {
    Folder folder;
    const std::string out = folder / "out", p = program("signals");
    const pid_t pid = fork();
    if (pid == 0) {
      const int o = open(out.c_str(), O_WRONLY | O_CREAT, 0600);
      dup2(o, 1);
      dup2(open("/dev/null", O_WRONLY), 2);
      const std::string weir = weir_command();
      execl(weir.c_str(), weir.c_str(), "run", "--ram", "16M", "--swap", "zram", "--", p.c_str(), "wait",
            static_cast<char*>(nullptr));
      _exit(127);
    }
    for (int i = 0; i < 1000 && slurp(out) != "ready\n"; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    kill(pid, signal);
    int got = 0;
    waitpid(pid, &got, 0);
    EXPECT_TRUE(WIFEXITED(got));
    EXPECT_EQ(WEXITSTATUS(got), status);
  }
}

TEST(Run, StandardStreamsPassThrough) {
  WEIR_NEEDS_LIVE();
  Folder folder;
  std::ofstream(folder / "in") << "one\ntwo\nthree\n";
  const WeirOutcome managed =
      weir_run("16M", {"sh", "-c", "cat; echo aside >&2; cat /dev/null | wc -c"}, {.input = folder / "in"});
  EXPECT_EQ(managed.out, "one\ntwo\nthree\n0\n");
  EXPECT_NE(managed.err.find("aside\n"), std::string::npos);
  EXPECT_NE(managed.err.find("weir: sh exited 0"), std::string::npos) << managed.err;
}

TEST(Run, TheReportOfAPipelineIsShort) {
  WEIR_NEEDS_LIVE();
  const std::string touch = program("first_touch");
  const WeirOutcome managed =
      weir_run("16M", {"sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo $i | cat; done; " + touch + " 24 1"}, {},
               {"--swap", "file:/tmp:128M"});
  ASSERT_EQ(managed.status, 0) << managed.err;
  EXPECT_NE(managed.err.find("weir: first_touch ("), std::string::npos) << managed.err;
  EXPECT_NE(managed.err.find(" more process"), std::string::npos) << managed.err;
  EXPECT_LE(std::count(managed.err.begin(), managed.err.end(), '\n'), 12) << managed.err;
}

TEST(Run, QuietSaysNothing) {
  WEIR_NEEDS_LIVE();
  const WeirOutcome managed = weir_run("16M", {"/bin/true"}, {}, {"--quiet", "--swap", "zram"});
  EXPECT_EQ(managed.status, 0);
  EXPECT_EQ(managed.err, "");
}

TEST(Run, ARecordingShowsReclaimAndSwapIn) {
  WEIR_NEEDS_LIVE();
  Folder folder;
  const std::string record = folder / "r.weir";
  // Takes fresh memory and looks at old to its last moment: the ring holds both.
  const Command python{"/usr/bin/python3", "-c",
                       "import os\n"
                       "a = []\n"
                       "for i in range(6000):\n"
                       "    a.append(bytes([i % 251 + 1]) * 9000)\n"
                       "    assert a[i * 7 % len(a)][5] == i * 7 % len(a) % 251 + 1\n"
                       "os._exit(0)\n"};
  const WeirOutcome managed =
      weir_run("24M", python, {}, {"--swap", "file:/tmp:256M", "--record", record, "--record-events", "128K"});
  ASSERT_EQ(managed.status, 0) << managed.err;
  for (const char* name : {"shrink_page_list", "add_to_swap", "do_swap_page"}) {
    const Outcome flow = run({weir_command(), "flow", "--from", record, "--function", name});
    EXPECT_EQ(flow.status, 0) << flow.err;
    EXPECT_NE(flow.out.find(name), std::string::npos) << name;
  }
}

/// What a run of read_back at a quarter of its memory counts.
class RunReadBack : public testing::Test {
 protected:
  void read_back(const char* order, const char* rounds, const Command& swap, const char* every = "3") {
    WEIR_NEEDS_LIVE();
    const Command command{program("read_back"), "48", order, rounds, every};
    const Outcome native = run(command);
    ASSERT_EQ(native.status, 0) << native.err;
    managed = weir_run("12M", command, {}, swap);
    EXPECT_EQ(managed.status, 0) << managed.err;
    EXPECT_EQ(managed.out, native.out);
    ASSERT_GE(managed.event("pswpout"), frames(12)) << managed.err;
  }
  /// Pages that a window of readahead has on average, the one asked for among them.
  [[nodiscard]] double window() const {
    const double windows = static_cast<double>(managed.event("swap_ra_window"));
    return windows == 0 ? 1 : static_cast<double>(managed.event("swap_ra")) / windows + 1;
  }
  WeirOutcome managed;
};

TEST_F(RunReadBack, SlotsComeFromTheCacheAndInClusters) {
  ASSERT_NO_FATAL_FAILURE(read_back("in_order", "1", {"--swap", "file:/tmp:256M"}));
  // 48 MiB went out: 64 slots at a time, from clusters of 256.
  const int64_t refills = managed.event("swap_slots_refill"), cached = managed.event("swap_slots_cached");
  EXPECT_GE(cached, frames(48 - 12)) << managed.stats["vmstat"];
  EXPECT_GE(refills, cached / 64);
  EXPECT_GE(managed.event("swap_cluster"), frames(48 - 12) / 256);
  EXPECT_LE(managed.event("swap_cluster"), frames(256) / 256);
}

TEST_F(RunReadBack, ReadaheadFollowsTheOrderOfReading) {
  ASSERT_NO_FATAL_FAILURE(read_back("in_order", "2", {"--swap", "file:/tmp:256M"}));
  const double in_order = window();
  EXPECT_GE(in_order, 4) << managed.stats["vmstat"];
  EXPECT_GT(managed.event("swap_ra_hit"), 0);
  // Windows of 16 pages, and most are read before they are asked for.
  EXPECT_LT(managed.event("pgmajfault"), managed.event("pswpin") / 24) << managed.stats["vmstat"];
  ASSERT_NO_FATAL_FAILURE(read_back("at_random", "2", {"--swap", "file:/tmp:256M"}));
  EXPECT_LE(window(), in_order / 2) << managed.stats["vmstat"];
}

// Three rounds, of which each reads what does not fit; nothing is written but the first time.
TEST_F(RunReadBack, PagesThatWereOnlyReadLeaveWithoutBeingWritten) {
  using Case = std::pair<const char*, const char*>;
  for (const auto& [swap, every] : {Case{"file:/tmp:256M", "3"}, Case{"zram:lz4:256M", "512"}}) {
    SCOPED_TRACE(swap);
    ASSERT_NO_FATAL_FAILURE(read_back("in_order", "3", {"--swap", swap}, every));
    EXPECT_GE(managed.event("swap_clean_drop"), 2 * frames(48 - 12)) << managed.stats["vmstat"];
    EXPECT_LT(managed.event("pswpout"), frames(2 * 48)) << managed.stats["vmstat"];
  }
}

TEST_F(RunReadBack, CopiesGoWithTheReadOnceZramTakesAQuarterOfRam) {
  ASSERT_NO_FATAL_FAILURE(read_back("in_order", "3", {"--swap", "zram:lz4:256M"}, "14"));
  EXPECT_GT(managed.stats["zram"]["mem_used_max"], 3 * MIB);
  EXPECT_LT(managed.event("swap_clean_drop"), frames(48 - 12)) << managed.stats["vmstat"];
}

// A page that is moved to its address costs a TLB shootdown, a copied one does not.
TEST_F(RunReadBack, WhatReadaheadBringsIsCopiedIn) {
  ASSERT_NO_FATAL_FAILURE(read_back("in_order", "2", {"--swap", "file:/tmp:256M"}));
  const nlohmann::json uffd = managed.stats["processes"][0]["uffd"];
  EXPECT_GE(uffd["copies"], managed.event("pswpin")) << uffd;
  EXPECT_LT(uffd["place_moves"], managed.event("pswpin") / 4) << uffd;
  EXPECT_GE(uffd["moved_pages"], managed.event("pswpout")) << uffd;
}

TEST_F(RunReadBack, CopiesInZramGoFirstWhenItIsFull) {
  ASSERT_NO_FATAL_FAILURE(read_back("in_order", "2", {"--swap", "zram", "--swap", "file:/tmp:256M"}));
  EXPECT_GT(managed.event("swap_clean_drop"), 0) << managed.stats["vmstat"];
  EXPECT_GT(managed.event("swap_copy_freed"), 0) << managed.stats["vmstat"];
}

TEST(Run, StatsHaveTheNamesOfProc) {
  WEIR_NEEDS_LIVE();
  const WeirOutcome managed = weir_run("16M", {program("first_touch"), "32", "1"});
  ASSERT_TRUE(managed.stats.is_object());
  for (const char* name : {"pswpin", "pswpout", "pgfault", "pgmajfault", "nr_free_pages", "nr_active_anon"})
    EXPECT_TRUE(managed.stats["vmstat"].contains(name)) << name;
  for (const char* name : {"orig_data_size", "compr_data_size", "mem_used_total", "mem_used_max", "same_pages"})
    EXPECT_TRUE(managed.stats["zram"].contains(name)) << name;
  EXPECT_EQ(managed.stats["ram_bytes"], 16 * MIB);
  EXPECT_EQ(managed.stats["exit_status"], 0);
  EXPECT_TRUE(managed.stats.contains("unmanaged_anon_share"));
}

}  // namespace
}  // namespace weir::test
