// tests/model/child.hpp
//
// Runs a script in a process of its own, so that a broken assertion, a crash or a hang is a result like others; and
// makes a script that fails smaller.
#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "model/run.hpp"
#include "support/limit_cpu.hpp"

namespace weir::model {

struct Outcome {
  bool good = false;
  std::string text;  ///< what went wrong
  Totals totals;
};

inline Outcome run_in_child(const Script& script, unsigned seconds = 120) {
  int results[2], errors[2];
  if (pipe(results) != 0 || pipe(errors) != 0) return {false, "no pipe", {}};
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    close(results[0]), close(errors[0]);
    dup2(errors[1], 2);
    dup2(errors[1], 1);
    limit_cpu(seconds);
    const testing::TestResult& result = *testing::UnitTest::GetInstance()->current_test_info()->result();
    const int failures_before = result.total_part_count();
    Run run(script);
    std::string failure = run.run();
    if (failure.empty() && result.total_part_count() != failures_before)
      failure = "the machine is not clean at the end";
    const char verdict = failure.empty() ? 'y' : 'n';
    (void)!write(results[1], &verdict, 1);
    (void)!write(results[1], &run.totals, sizeof run.totals);
    (void)!write(results[1], failure.data(), failure.size());
    std::fflush(nullptr);
    _exit(0);
  }
  close(results[1]), close(errors[1]);
  std::string from[2];
  pollfd fds[2] = {{results[0], POLLIN, 0}, {errors[0], POLLIN, 0}};
  for (int open = 2; open > 0;) {
    if (poll(fds, 2, -1) < 0) continue;
    for (int i = 0; i < 2; ++i) {
      if (fds[i].fd < 0 || fds[i].revents == 0) continue;
      char buffer[4096];
      const ssize_t n = read(fds[i].fd, buffer, sizeof buffer);
      if (n > 0) {
        if (from[i].size() < 100000) from[i].append(buffer, static_cast<size_t>(n));
      } else {
        close(fds[i].fd);
        fds[i].fd = -1;
        --open;
      }
    }
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
  }
  Outcome out;
  if (from[0].size() > sizeof(Totals)) {
    std::memcpy(static_cast<void*>(&out.totals), from[0].data() + 1, sizeof(Totals));
    out.good = from[0][0] == 'y';
    out.text = from[0].substr(1 + sizeof(Totals));
  }
  if (WIFSIGNALED(status)) {
    out.good = false;
    out.text += WTERMSIG(status) == SIGXCPU ? "hangs" : std::string("ends with ") + strsignal(WTERMSIG(status));
  }
  if (!out.good && !from[1].empty()) out.text += "\n" + from[1].substr(0, 3000);
  return out;
}

/// A smaller script that fails too: rounds, then runs of lines, then single lines are left out; then the machine is
/// made simpler. Stops after about `seconds`.
inline Script shrink(Script script, unsigned seconds) {
  const time_t end = time(nullptr) + seconds;
  const auto fails = [&](const Script& s) { return time(nullptr) < end && !run_in_child(s, 20).good; };
  for (size_t chunk = script.ops.size() / 2; chunk > 0 && time(nullptr) < end; chunk /= 2)
    for (size_t at = 0; at < script.ops.size() && time(nullptr) < end;) {
      Script less = script;
      const auto from = less.ops.begin() + static_cast<ptrdiff_t>(at);
      less.ops.erase(from, from + static_cast<ptrdiff_t>(std::min(chunk, less.ops.size() - at)));
      if (fails(less))
        script = std::move(less);
      else
        at += chunk;
    }
  const auto simpler = [&](uint64_t Config::*field, uint64_t value) {
    if (script.config.*field == value) return;
    Script less = script;
    less.config.*field = value;
    if (fails(less)) script = std::move(less);
  };
  simpler(&Config::preempt, 0);
  simpler(&Config::cpus, 1);
  simpler(&Config::two_zones, 0);
  simpler(&Config::pcp, 0);
  simpler(&Config::cluster, 0);
  simpler(&Config::io_errors, 0);
  simpler(&Config::no_memory, 0);
  simpler(&Config::tasks, 1);
  simpler(&Config::backed, 0);
  return script;
}

[[nodiscard]] inline uint64_t number_from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != 0 ? std::strtoull(text, nullptr, 10) : otherwise;
}

/// "N": 1 to N; "A-B": A to B.
[[nodiscard]] inline std::pair<uint64_t, uint64_t> range_from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == 0) return {1, otherwise};
  char* rest = nullptr;
  const uint64_t number = std::strtoull(text, &rest, 10);
  if (*rest != '-') return {1, number};
  return {number, std::strtoull(rest + 1, nullptr, 10)};
}

/// Is there a uffd model in the software MMU?
[[nodiscard]] inline bool uffd_model_is_there() {
  return !std::make_unique<SoftMmu>(SoftMmu::Options{.model = SoftMmu::Model::uffd})->caps().has_write_protect;
}

}  // namespace weir::model
