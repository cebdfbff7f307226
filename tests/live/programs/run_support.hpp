// tests/live/programs/run_support.hpp
//
// For tests that run real programs under `weir run` and look from outside: a memory cgroup around the run, its peak,
// the counters that the run left, the output against a native run.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "places.hpp"

namespace weir::test {

using Command = std::vector<std::string>;
inline constexpr uint64_t MIB = uint64_t{1} << 20;

inline std::string build_dir() {
  const char* given = std::getenv("WEIR_BUILD_DIR");
  return given != nullptr ? given : WEIR_BUILD_DIR;
}

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

/// A folder on a disk, gone at the end.
class Folder {
 public:
  Folder() {
    char name[] = "/tmp/weir-test-XXXXXX";
    path_ = mkdtemp(name) != nullptr ? name : "";
  }
  ~Folder() {
    std::error_code e;
    std::filesystem::remove_all(path_, e);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// A memory cgroup (version 1 or 2), removed with whatever still runs in it.
class Cgroup {
 public:
  /// limit 0: none, it only measures. Not made where the host does not let us: made() tells.
  explicit Cgroup(uint64_t limit = 0) {
    static int n = 0;
    const std::string name = "weir-test-" + std::to_string(getpid()) + "-" + std::to_string(n++);
    for (const auto& [root, v2] :
         {std::pair<std::string, bool>{"/sys/fs/cgroup/memory/", false}, {"/sys/fs/cgroup/", true}}) {
      const std::string probe = v2 ? root + "cgroup.controllers" : root + "memory.limit_in_bytes";
      if (access(probe.c_str(), F_OK) != 0 || mkdir((root + name).c_str(), 0755) != 0) continue;
      path_ = root + name;
      v2_ = v2;
      const bool limited = limit == 0 || v2 ? true : put("memory.limit_in_bytes", std::to_string(limit));
      if (limit != 0 && v2) {
        if (!put("memory.max", std::to_string(limit))) drop();
        put("memory.swap.max", "0");
      } else if (!limited) {
        drop();
      } else if (limit != 0) {
        put("memory.memsw.limit_in_bytes", std::to_string(limit));  // where the kernel counts swap
        put("memory.swappiness", "0");
      }
      if (made()) return;
    }
  }
  ~Cgroup() { drop(); }
  Cgroup(const Cgroup&) = delete;
  Cgroup& operator=(const Cgroup&) = delete;

  [[nodiscard]] bool made() const { return !path_.empty(); }
  [[nodiscard]] std::string procs() const { return path_ + "/cgroup.procs"; }
  /// Most memory at any time, page cache included.
  [[nodiscard]] uint64_t peak() const {
    const std::string text = slurp(path_ + (v2_ ? "/memory.peak" : "/memory.max_usage_in_bytes"));
    return text.empty() ? 0 : std::stoull(text);
  }

 private:
  bool put(const char* file, const std::string& value) const {
    std::ofstream out(path_ + "/" + file);
    out << value;
    out.close();
    return static_cast<bool>(out);
  }
  void drop() {
    if (path_.empty()) return;
    for (int i = 0; i < 200 && rmdir(path_.c_str()) != 0; ++i) {
      std::ifstream in(procs());
      for (pid_t pid; in >> pid;) kill(pid, SIGKILL);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    path_.clear();
  }

  std::string path_;
  bool v2_ = false;
};

struct Outcome {
  int status = -1;  ///< as the shell shows it: 128 + signal
  std::string out, err;
  double seconds = 0;
};

struct RunWith {
  const Cgroup* cgroup = nullptr;
  std::string input{};             ///< file for standard input; empty: /dev/null
  std::vector<std::string> env{};  ///< "NAME=value"
  unsigned limit_seconds = 300;
};

/// Runs a command to its end.
inline Outcome run(const Command& command, const RunWith& with = {}) {
  Folder folder;
  const std::string out = folder / "out", err = folder / "err";
  const std::string procs = with.cgroup != nullptr ? with.cgroup->procs() : "";
  const auto begin = std::chrono::steady_clock::now();
  std::vector<char*> argv;
  for (const std::string& a : command) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    if (!procs.empty()) {
      const int fd = open(procs.c_str(), O_WRONLY);
      if (fd < 0 || write(fd, "0", 1) != 1) _exit(125);
      close(fd);
    }
    const int in = open(with.input.empty() ? "/dev/null" : with.input.c_str(), O_RDONLY);
    const int o = open(out.c_str(), O_WRONLY | O_CREAT, 0600), e = open(err.c_str(), O_WRONLY | O_CREAT, 0600);
    dup2(in, 0);
    dup2(o, 1);
    dup2(e, 2);
    for (const std::string& v : with.env) putenv(const_cast<char*>(v.c_str()));
    execvp(argv[0], argv.data());
    _exit(127);
  }
  Outcome result;
  int status = 0;
  for (;;) {
    const pid_t done = waitpid(pid, &status, WNOHANG);
    if (done == pid) break;
    const std::chrono::duration<double> past = std::chrono::steady_clock::now() - begin;
    if (past.count() > with.limit_seconds) {
      kill(pid, SIGTERM);
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      kill(pid, SIGKILL);
      waitpid(pid, &status, 0);
      result.err = "(took longer than " + std::to_string(with.limit_seconds) + " s) ";
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(past.count() < 0.1 ? 1 : 10));
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = slurp(out);
  result.err += slurp(err);
  return result;
}

inline std::string weir_command() { return build_dir() + "/bin/weir"; }

struct WeirOutcome : Outcome {
  nlohmann::json stats;
  [[nodiscard]] int64_t event(const char* name) const {
    return stats.is_object() ? stats["vmstat"].value(name, int64_t{-1}) : -1;
  }
};

/// `weir run --ram ram --swap … --stats … -- command`.
inline WeirOutcome weir_run(const std::string& ram, const Command& command, const RunWith& with = {},
                            const Command& options = {"--swap", "zram"}) {
  Folder folder;
  Command all{weir_command(), "run", "--ram", ram, "--stats", folder / "stats"};
  all.insert(all.end(), options.begin(), options.end());
  all.push_back("--");
  all.insert(all.end(), command.begin(), command.end());
  WeirOutcome result;
  static_cast<Outcome&>(result) = run(all, with);
  result.stats = nlohmann::json::parse(slurp(folder / "stats"), nullptr, false);
  return result;
}

/// The C program tests/live/programs/NAME.c, compiled when it is newer than what is there.
inline std::string program(const std::string& name) {
  const std::string source = std::string(WEIR_SOURCE_DIR) + "/tests/live/programs/" + name + ".c";
  const std::string folder = build_dir() + "/tests/live/programs";
  std::string binary = folder + "/" + name;
  std::error_code e;
  std::filesystem::create_directories(folder, e);
  struct stat s {
  }, b{};
  if (stat(source.c_str(), &s) == 0 && stat(binary.c_str(), &b) == 0 && b.st_mtime > s.st_mtime) return binary;
  const Outcome made = run({"gcc", "-O1", "-g", "-std=gnu11", "-Wall", "-pthread", "-o", binary, source});
  EXPECT_EQ(made.status, 0) << made.err;
  return binary;
}

/// Why programs cannot be managed on this host; empty when they can. Asked once.
inline const std::string& no_live() {
  static const std::string why = [] {
    const WeirOutcome o = weir_run("16M", {"/bin/true"});
    return o.status == 0 ? std::string() : "weir run does not work on this host: " + o.err;
  }();
  return why;
}

/// What `need` is about is the host's to allow; the code's own failures are no reason to skip.
inline bool host_lacks_userfaultfd() {
  return access("/dev/userfaultfd", F_OK) != 0 && access("/proc/sys/vm/unprivileged_userfaultfd", F_OK) != 0;
}

#define WEIR_NEEDS_LIVE()                                                            \
  do {                                                                               \
    if (weir::test::host_lacks_userfaultfd()) GTEST_SKIP() << "no userfaultfd here"; \
    ASSERT_EQ(weir::test::no_live(), "");                                            \
  } while (0)

#define WEIR_NEEDS_CGROUP(group) \
  if (!(group).made()) GTEST_SKIP() << "no memory cgroup can be made here (needs root and the memory controller)"

}  // namespace weir::test
