// tests/model/allocation_failure_test.cpp
//
// Every page allocation of every example fails once: the 0th, the 1st, ... until a run in which none is left to fail.
// Whoever asked gets ENOMEM, or somebody is killed by the OOM killer; nothing leaks, no page is lost, the machine
// verifies, and no task sees a content that is not its own.
//
//   test_allocation_failure                          a few of each example
//   WEIR_LONG=1 test_allocation_failure              all of them (a debug build: every fourth, as they are 200,000)
//   WEIR_SCENARIO=FILE WEIR_FAIL=17 test_...         one
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "places.hpp"
#include "sim/simulation.hpp"

namespace weir::sim {
namespace {

std::vector<std::string> scenarios() {
  if (const char* one = std::getenv("WEIR_SCENARIO")) return {one};
  std::vector<std::string> all;
  for (const char* folder : {"/examples", "/examples/flows"})
    for (const auto& entry : std::filesystem::directory_iterator(std::string(WEIR_SOURCE_DIR) + folder))
      if (entry.path().extension() == ".toml") all.push_back(entry.path().string());
  std::sort(all.begin(), all.end());
  return all;
}

struct Failed {
  bool reached = false;  ///< the allocation that was to fail was asked for
  int64_t allocations = 0;
  char why[2000] = {};  ///< empty: as it must be
};

/// What a task may come to when there is no memory for something: its own error, or a kill.
bool allowed(const TaskOutcome& failed, const TaskOutcome& clean) {
  if (failed.fate == TaskOutcome::Fate::killed) return true;
  if (failed.fate == TaskOutcome::Fate::exited && failed.message.empty()) return true;
  if (failed.message.find("ENOMEM") != std::string::npos) return true;
  // mmap of /dev/mem says so whatever the reason (drivers/char/mem.c).
  if (failed.message.find("mmap: EAGAIN") != std::string::npos) return true;
  return failed.fate == clean.fate && failed.code == clean.code && failed.message == clean.message;
}

Failed run(const Scenario& scenario, int64_t fail, const std::vector<TaskOutcome>& clean) {
  Failed failed;
  std::string why;
  try {
    const SimResult result = run_scenario(scenario, {.seed = {}, .record = {}, .kernel = {}, .fail_allocation = fail});
    failed.reached = result.allocations > fail;
    failed.allocations = result.allocations;
    for (const Broken& b : result.broken) why += b.id + ": " + b.text + "\n";
    why += result.deadlock_report;
    // A fork that fails has no child: then there are fewer.
    for (const TaskOutcome& task : result.tasks) {
      const auto same =
          std::find_if(clean.begin(), clean.end(), [&](const TaskOutcome& c) { return c.name == task.name; });
      if (same != clean.end() && !allowed(task, *same)) why += fmt::format("task {}: {}\n", task.name, task.message);
    }
  } catch (const std::exception& e) {
    why = e.what();
  }
  std::strncpy(failed.why, why.c_str(), sizeof failed.why - 1);
  return failed;
}

/// In a process of its own: a crash is a result too.
Failed run_apart(const Scenario& scenario, int64_t fail, const std::vector<TaskOutcome>& clean) {
  int results[2];
  if (pipe(results) != 0) return {.why = "no pipe"};
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    close(results[0]);
    alarm(120);
    const Failed failed = run(scenario, fail, clean);
    (void)!write(results[1], &failed, sizeof failed);
    _exit(0);
  }
  close(results[1]);
  Failed failed;
  char* to = reinterpret_cast<char*>(&failed);
  size_t got = 0;
  for (ssize_t n = 1; n > 0 && got<sizeof failed; got += n> 0 ? static_cast<size_t>(n) : 0)
    n = read(results[0], to + got, sizeof failed - got);
  close(results[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
  }
  if (got == sizeof failed) return failed;
  failed = {};
  std::snprintf(failed.why, sizeof failed.why, "ends with %s", WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "?");
  return failed;
}

TEST(AllocationFailure, LeavesNothingBehindInAnyExample) {
  const bool all = std::getenv("WEIR_LONG") != nullptr;
  constexpr int64_t NEVER = int64_t{1} << 60;
#ifdef WEIR_DEBUG
  constexpr int64_t EACH = 4;
#else
  constexpr int64_t EACH = 1;
#endif
  uint64_t runs = 0, reached = 0, sites = 0, failures = 0;
  for (const std::string& path : scenarios()) {
    const Scenario scenario = load_scenario(path);
    const std::vector<TaskOutcome> clean = run_scenario(scenario, {}).tasks;
    const auto count = run_apart(scenario, NEVER, clean).allocations;
    EXPECT_GT(count, 0) << path;
    sites += static_cast<uint64_t>(count);
    std::vector<int64_t> tries;
    if (const char* one = std::getenv("WEIR_FAIL"))
      tries = {std::atoll(one)};
    else if (all)
      for (int64_t i = 0; i <= count; i += EACH) tries.push_back(i);
    else  // the first ones, where tasks and tables are made; then others, of another kind in each example
      tries = {static_cast<int64_t>(runs % 7), count / 3 + static_cast<int64_t>(runs % 11), count - 1 - count / 5};
    for (const int64_t fail : tries) {
      if (fail < 0) continue;
      const Failed failed = run_apart(scenario, fail, clean);
      ++runs;
      if (failed.reached) ++reached;
      if (failed.why[0] == 0) continue;
      ADD_FAILURE() << "WEIR_SCENARIO=" << path << " WEIR_FAIL=" << fail << ": " << failed.why;
      if (++failures == 10) return;
    }
  }
  std::printf("allocation failures: %lu runs, %lu allocations failed of %lu in all\n", runs, reached, sites);
  EXPECT_GT(reached, 0u);
}

}  // namespace
}  // namespace weir::sim
