// tests/model/allocation_failure_test.cpp
//
// Every site of every example that allocates pages fails: at its first allocation, its second, fourth, eighth ... A site is
// the recorded functions that are open when the page is asked for, so that the same function fails once for each way into
// it. Whoever asked gets ENOMEM, or somebody is killed by the OOM killer; nothing leaks, no page is lost, the machine
// verifies, and no task sees a content that is not its own.
//
//   test_allocation_failure                          a few sites of each example
//   WEIR_LONG=1 test_allocation_failure              all of them
//   WEIR_LONG=every test_allocation_failure          each single allocation; 460,000 runs, hours
//   WEIR_SCENARIO=FILE WEIR_FAIL=17 test_...         one
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/engine_stack.hpp"
#include "base/flow.hpp"
#include "mm/types.hpp"
#include "places.hpp"
#include "sim/simulation.hpp"
#include "support/limit_cpu.hpp"

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

/// Hears a whole run and tells its allocations apart by the functions that are open.
class Sites final : public FlowSink {
 public:
  void enter(const FlowSite& site, uint64_t a, uint64_t, uint64_t) override {
    std::vector<uint64_t>& open = open_[&engine_thread()];
    const uint64_t outside = open.empty() ? 0 : open.back();
    open.push_back((outside ^ reinterpret_cast<uintptr_t>(&site)) * 0x9e3779b97f4a7c15 ^ outside >> 29);
    if (std::strcmp(site.function, "should_fail_alloc_page") != 0 || (a & __GFP_NOFAIL.v) != 0) return;
    ++sites_[open.back()];
    // 1, 2, 4, 8, ...
    if (std::has_single_bit(sites_[open.back()])) tries_.push_back(allocations_);
    ++allocations_;
  }
  void leave(const FlowSite&) override { open_[&engine_thread()].pop_back(); }
  void state(const FlowSite&, State, uint64_t, uint64_t, uint64_t) override {}

  [[nodiscard]] uint64_t sites() const { return sites_.size(); }
  /// Which allocations of the run have their turn.
  [[nodiscard]] const std::vector<int64_t>& tries() const { return tries_; }
  [[nodiscard]] int64_t allocations() const { return allocations_; }

 private:
  std::unordered_map<const EngineThread*, std::vector<uint64_t>> open_;
  std::unordered_map<uint64_t, uint64_t> sites_;  ///< how many allocations each has made
  std::vector<int64_t> tries_;
  int64_t allocations_ = 0;
};

struct Failed {
  bool reached = false;  ///< the allocation that was to fail was asked for
  char why[2000] = {};   ///< empty: as it must be
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
    limit_cpu(120);
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
  const char* text = std::getenv("WEIR_LONG");
  const bool all = text != nullptr, every = all && std::strcmp(text, "every") == 0;
  constexpr int64_t NEVER = int64_t{1} << 60;
  uint64_t runs = 0, reached = 0, sites = 0, allocations = 0, failures = 0;
  for (const std::string& path : scenarios()) {
    const Scenario scenario = load_scenario(path);
    const std::vector<TaskOutcome> clean = run_scenario(scenario, {}).tasks;
    Sites heard;
    run_scenario(scenario,
                 {.seed = {}, .record = {}, .kernel = {}, .fail_allocation = NEVER, .sink = &heard, .booted = {}});
    EXPECT_GT(heard.allocations(), 0) << path;
    sites += heard.sites();
    allocations += static_cast<uint64_t>(heard.allocations());
    std::vector<int64_t> tries = heard.tries();
    if (const char* one = std::getenv("WEIR_FAIL")) {
      tries = {std::atoll(one)};
    } else if (every) {
      tries.resize(static_cast<size_t>(heard.allocations()));
      std::iota(tries.begin(), tries.end(), 0);
    } else if (!all) {  // one of the first, where tasks and tables are made; others of another kind in each example
      const size_t n = tries.size();
      tries = {tries[runs % 7 % n], tries[(n / 3 + runs % 11) % n], tries[n - 1 - n / 5]};
    }
    for (const int64_t fail : tries) {
      const Failed failed = run_apart(scenario, fail, clean);
      ++runs;
      if (failed.reached) ++reached;
      if (failed.why[0] == 0) continue;
      ADD_FAILURE() << "WEIR_SCENARIO=" << path << " WEIR_FAIL=" << fail << ": " << failed.why;
      if (++failures == 10) return;
    }
  }
  std::printf("allocation failures: %lu runs, %lu allocations failed of %lu in all, which come from %lu sites\n", runs,
              reached, allocations, sites);
  EXPECT_GT(reached, 0u);
}

}  // namespace
}  // namespace weir::sim
