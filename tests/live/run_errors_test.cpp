// What cannot work ends with a message that says what, where and how to mend it; and what happens when swap is full.
#include <sys/mount.h>

#include "programs/run_support.hpp"

namespace weir::test {
namespace {

using testing::Test;

/// Runs `weir run OPTIONS -- COMMAND` without --ram and --stats of the helper's own.
Outcome plain(const Command& arguments, const RunWith& with = {}) {
  Command all{weir_command(), "run"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return run(all, with);
}

void expect_refused(const Command& arguments, const std::string& part) {
  const Outcome o = plain(arguments);
  EXPECT_EQ(o.status, 2) << o.err;
  EXPECT_EQ(o.out, "");
  EXPECT_NE(o.err.find(part), std::string::npos) << "wanted \"" << part << "\" in: " << o.err;
}

TEST(RunErrors, BadSizesAreRefused) {
  for (const char* ram : {"", "x", "-5M", "12Q", "0", "1K", "3M", "99999999999999999999G"})
    expect_refused({"--ram", ram, "--", "/bin/echo", "no"}, "--ram");
}

TEST(RunErrors, BadSwapSpecsAreRefused) {
  for (const char* swap :
       {"", "zran", "zram:lz5", "zram:lz4:x", "file:", "file:/tmp:0", "file:/no/such/folder/swap:1M", "disk:/dev/sda"})
    expect_refused({"--ram", "16M", "--swap", swap, "--", "/bin/echo", "no"}, "swap");
  expect_refused({"--ram", "16M", "--swap", "none", "--swap", "zram", "--", "/bin/echo", "no"}, "none");
}

TEST(RunErrors, AMissingProgramIs127AsInAShell) {
  const Outcome o = plain({"--ram", "16M", "--", "/no/such/program"});
  EXPECT_EQ(o.status, 127);
  EXPECT_NE(o.err.find("/no/such/program"), std::string::npos);
}

TEST(RunErrors, AStaticProgramIsRefusedBeforeItStarts) {
  Folder folder;
  std::ofstream(folder / "s.c") << "#include <stdio.h>\nint main(void) { puts(\"ran\"); return 0; }\n";
  const Outcome made = run({"gcc", "-static", "-o", folder / "s", folder / "s.c"});
  if (made.status != 0) GTEST_SKIP() << "no static libc to link with";
  expect_refused({"--ram", "16M", "--", folder / "s"}, "statically linked");
  const Outcome o = plain({"--ram", "16M", "--allow-unmanaged", "--", folder / "s"});
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "ran\n");
  EXPECT_NE(o.err.find("unmanaged"), std::string::npos);
}

TEST(RunErrors, ATextFileIsRefused) {
  Folder folder;
  std::ofstream(folder / "t") << "hello\n";
  chmod((folder / "t").c_str(), 0755);
  expect_refused({"--ram", "16M", "--", folder / "t"}, "neither an ELF program nor a script");
}

TEST(RunErrors, SwapOnATmpfsIsRefused) {
  WEIR_NEEDS_LIVE();
  if (access("/dev/shm", W_OK) != 0) GTEST_SKIP() << "no tmpfs to write to";
  const Outcome o = plain({"--ram", "16M", "--swap", "file:/dev/shm:16M", "--", "/bin/echo", "no"});
  EXPECT_EQ(o.status, 2) << o.err;
  EXPECT_EQ(o.out, "");
  EXPECT_NE(o.err.find("tmpfs"), std::string::npos) << o.err;
}

TEST(RunErrors, WhenRamAndSwapAreFullItIsKilledWithAReport) {
  WEIR_NEEDS_LIVE();
  const WeirOutcome o = weir_run("12M", {program("first_touch"), "128", "2"}, {}, {"--swap", "file:/tmp:16M"});
  EXPECT_EQ(o.status, 137) << o.err;
  EXPECT_EQ(o.out, "");
  for (const char* part :
       {"invoked oom-killer", "Mem-Info", "Free swap", "Out of memory: Kill", "was killed: RAM and swap were full"})
    EXPECT_NE(o.err.find(part), std::string::npos) << part << " in: " << o.err;
  ASSERT_TRUE(o.stats.is_object());
  EXPECT_TRUE(o.stats["processes"][0].value("oom_killed", false));
  EXPECT_GE(o.event("oom_kill"), 1);
}

/// The recording's facts, tasks and number of events, as `weir flow` gives them.
std::string facts_of(const std::string& record) {
  const Outcome flow = run({weir_command(), "flow", "--from", record, "--facts"});
  EXPECT_EQ(flow.status, 0) << flow.err;
  return flow.out;
}

TEST(RunErrors, AKilledProcessLeavesItsLastCountersAndAWholeRecording) {
  WEIR_NEEDS_LIVE();
  Folder folder;
  const std::string record = folder / "r.weir";
  // All threads find out at about the same time, the helper too.
  for (int round = 0; round < 20; ++round) {
    const WeirOutcome o = weir_run("8M", {program("first_touch"), "64", "8"}, {},
                                   {"--quiet", "--swap", "file:/tmp:4M", "--record", record, "--record-events", "16K"});
    ASSERT_EQ(o.status, 137) << "round " << round << ": " << o.err;
    ASSERT_TRUE(o.stats.is_object());
    EXPECT_TRUE(o.stats["processes"][0].value("oom_killed", false)) << "round " << round;
    EXPECT_GE(o.event("oom_kill"), 1) << "round " << round;
    EXPECT_NE(facts_of(record).find("ended: killed: RAM and swap were full\n"), std::string::npos) << "round " << round;
    const Outcome flow = run({weir_command(), "flow", "--from", record, "--function", "oom_kill_process"});
    EXPECT_EQ(flow.status, 0) << "round " << round << ": " << flow.err;
    EXPECT_NE(flow.out.find("oom_kill_process"), std::string::npos) << "round " << round;
    std::filesystem::remove(record);
  }
}

TEST(RunErrors, WhateverSignalEndsTheProgramItsRecordingIsThereUpToTheEnd) {
  WEIR_NEEDS_LIVE();
  Folder folder;
  const std::string record = folder / "r.weir";
  for (const auto& [signal, number] : {std::pair{"SIGSEGV", 11},
                                       {"SIGTERM", 15},
                                       {"SIGABRT", 6},
                                       {"SIGKILL", 9},
                                       {"SIGINT", 2},
                                       {"SIGQUIT", 3},
                                       {"SIGHUP", 1}}) {
    // It fits, so that nobody reclaims; the last that it does is to fill 64 KiB of fresh memory.
    const std::string code = std::string("import mmap, os, signal\n") +
                             "old = bytearray(8000000)\n"
                             "new = mmap.mmap(-1, 65536)\n"
                             "signal.signal(signal." +
                             signal + ", signal.SIG_DFL) if '" + signal +
                             "' != 'SIGKILL' else None\n"
                             "new[:] = bytes(65536)\n"
                             "os.kill(os.getpid(), signal." +
                             signal + ")\n";
    const WeirOutcome o = weir_run("24M", {"/usr/bin/python3", "-c", code}, {},
                                   {"--quiet", "--record", record, "--record-events", "16K"});
    EXPECT_EQ(o.status, 128 + number) << signal << ": " << o.err;
    const std::string facts = facts_of(record);
    EXPECT_NE(facts.find("ended: killed by signal " + std::to_string(number) + " (" + signal + ")\n"),
              std::string::npos)
        << facts;
    const Outcome flow = run({weir_command(), "flow", "--from", record, "--function", "do_anonymous_page"});
    EXPECT_EQ(flow.status, 0) << signal << ": " << flow.err;
    EXPECT_NE(flow.out.find("|-->do_anonymous_page"), std::string::npos) << signal;
    const Outcome page = run({weir_command(), "explore", record, "-o", folder / "r.html"});
    EXPECT_EQ(page.status, 0) << signal << ": " << page.err;
    std::filesystem::remove(record);
  }
}

TEST(RunErrors, AKilledProgramLeavesAPageToStepThrough) {
  WEIR_NEEDS_LIVE();
  Folder folder;
  const std::string page = folder / "r.html";
  const WeirOutcome o =
      weir_run("24M", {"/usr/bin/python3", "-c", "import os; d = bytearray(8000000); os.kill(os.getpid(), 9)"}, {},
               {"--quiet", "--explore", page});
  EXPECT_EQ(o.status, 137) << o.err;
  EXPECT_GT(std::filesystem::file_size(page), 100000u);
}

TEST(RunErrors, EachKilledProcessOfATreeLeavesARecording) {
  WEIR_NEEDS_LIVE();
  Folder folder;
  const std::string record = folder / "r.weir";
  const std::string code =
      "import os\n"
      "child = os.fork()\n"
      "if child == 0:\n"
      "    d = bytearray(8000000)\n"
      "    os.kill(os.getpid(), 9)\n"
      "os.waitpid(child, 0)\n"
      "print(child, flush=True)\n";
  const WeirOutcome o =
      weir_run("24M", {"/usr/bin/python3", "-c", code}, {}, {"--quiet", "--record", record, "--record-events", "16K"});
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(facts_of(record).find("ended: exited\n"), std::string::npos);
  const std::string of_child = facts_of(record + "." + std::to_string(std::stoi(o.out)));
  EXPECT_NE(of_child.find("ended: killed"), std::string::npos) << of_child;
}

TEST(RunErrors, TheRecordingIsOfTheProgramThatRanLast) {
  WEIR_NEEDS_LIVE();
  Folder folder;
  const std::string record = folder / "r.weir";
  const WeirOutcome o = weir_run(
      "24M", {"/bin/sh", "-c", "exec /usr/bin/python3 -c 'import os; d = bytearray(8000000); os.kill(os.getpid(), 9)'"},
      {}, {"--quiet", "--record", record, "--record-events", "16K"});
  EXPECT_EQ(o.status, 137) << o.err;
  const std::string facts = facts_of(record);
  EXPECT_NE(facts.find("ended: killed by signal 9 (SIGKILL)\n"), std::string::npos) << facts;
  EXPECT_NE(facts.find("(python3)"), std::string::npos) << facts;
}

TEST(RunErrors, WithoutSwapItIsKilledAtItsBudget) {
  WEIR_NEEDS_LIVE();
  const WeirOutcome o = weir_run("12M", {program("first_touch"), "64", "1"}, {}, {"--swap", "none"});
  EXPECT_EQ(o.status, 137) << o.err;
  const WeirOutcome fits = weir_run("24M", {program("first_touch"), "8", "1"}, {}, {"--swap", "none"});
  EXPECT_EQ(fits.status, 0) << fits.err;
}

/// Files that a process holds open and that have no name any more, below `folder`.
std::vector<std::string> nameless_files(pid_t pid, const std::string& folder) {
  std::vector<std::string> found;
  std::error_code e;
  for (const auto& task : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task", e))
    for (const auto& fd : std::filesystem::directory_iterator(task.path() / "fd", e)) {
      const std::string target = std::filesystem::read_symlink(fd.path(), e).string();
      if (target.rfind(folder, 0) != 0 || target.find("(deleted)") == std::string::npos) continue;
      struct stat st {};
      if (stat(fd.path().c_str(), &st) == 0 && S_ISREG(st.st_mode))
        found.push_back(target + " " + std::to_string(st.st_mode & 0777));
    }
  return found;
}

TEST(RunErrors, ASwapFileIsPrivateNamelessAndGoneAfterKill9) {
  WEIR_NEEDS_LIVE();
  Folder folder;
  const std::string out = folder / "out", p = program("signals"), spec = "file:" + (folder / "swap") + ":64M";
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(open(out.c_str(), O_WRONLY | O_CREAT, 0600), 1);
    dup2(open("/dev/null", O_WRONLY), 2);
    const std::string weir = weir_command();
    execl(weir.c_str(), weir.c_str(), "run", "--ram", "16M", "--swap", spec.c_str(), "--", p.c_str(), "wait",
          static_cast<char*>(nullptr));
    _exit(127);
  }
  for (int i = 0; i < 1000 && slurp(out) != "ready\n"; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  ASSERT_EQ(slurp(out), "ready\n");
  EXPECT_NE(access((folder / "swap").c_str(), F_OK), 0) << "it still has a name";
  pid_t child = 0;
  std::ifstream("/proc/" + std::to_string(pid) + "/task/" + std::to_string(pid) + "/children") >> child;
  ASSERT_GT(child, 0);
  const std::vector<std::string> files = nameless_files(child, folder.path());
  EXPECT_FALSE(files.empty()) << "no thread holds the swap file";
  for (const std::string& f : files) EXPECT_NE(f.find(" " + std::to_string(0600)), std::string::npos) << f;
  kill(child, SIGKILL);
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 137);
  int left = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    if (entry.path().filename() != "out") ++left;
  EXPECT_EQ(left, 0) << "something stayed in the folder";
}

}  // namespace
}  // namespace weir::test
