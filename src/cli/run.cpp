// src/cli/run.cpp
//
// weir run: starts a program with the preload, stays as its parent, passes signals and the exit status through, and
// reports.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/parse.hpp"
#include "cli/temporary_file.hpp"
#include "cli/verbs.hpp"
#include "live/cgroup.hpp"
#include "live/elf_check.hpp"
#include "live/left_recording.hpp"
#include "live/shared.hpp"
#include "live/swap_spec.hpp"
#include "mm/vmstat.hpp"
#include "record/ring.hpp"

namespace weir::cli {

namespace {

using live::ProcessSlot;
using live::ProcessState;
using live::SharedRun;

/// Bad input, or a host that cannot: said in one line, exit status 2.
struct RunError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct RunOptions {
  Bytes ram{0};
  std::string ram_from;  ///< where the limit came from, for the report
  std::vector<std::string> swaps;
  std::string stats, record, page;
  uint64_t record_events = 0;
  bool quiet = false, allow_unmanaged = false;
  std::vector<std::string> program;
};

/// Room inside a cgroup for what is not managed: code, stacks, libraries' data, page tables.
Bytes head_room(Bytes limit) { return std::max(Bytes(limit.v / 16), 12_MiB); }

std::string human(uint64_t bytes) {
  if (bytes >= uint64_t{10} << 30) return fmt::format("{:.1f}G", static_cast<double>(bytes) / (1 << 30));
  if (bytes >= uint64_t{1} << 20) return fmt::format("{:.1f}M", static_cast<double>(bytes) / (1 << 20));
  return fmt::format("{}K", bytes >> 10);
}

/// Compressed memory, then a nameless file in the temporary folder if that is on a disk.
std::vector<std::string> default_swaps() {
  std::vector<std::string> swaps{"zram"};
  const char* tmp = std::getenv("TMPDIR");
  const std::string folder = tmp != nullptr && *tmp != 0 ? tmp : "/tmp";
  struct statfs fs {};
  if (statfs(folder.c_str(), &fs) == 0 && fs.f_type != TMPFS_MAGIC && fs.f_type != RAMFS_MAGIC &&
      access(folder.c_str(), W_OK) == 0)
    swaps.push_back("file:" + folder);
  return swaps;
}

/// The folder where this command lies.
std::string own_folder() {
  char buffer[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", buffer, sizeof buffer - 1);
  if (n <= 0) throw RunError("/proc/self/exe cannot be read: is /proc mounted?");
  const std::string path(buffer, static_cast<size_t>(n));
  return path.substr(0, path.rfind('/'));
}

std::string preload_library() {
  const std::string folder = own_folder();
  for (const char* place : {"/../lib/libweir-preload.so", "/libweir-preload.so"}) {
    const std::string path = folder + place;
    char real[PATH_MAX];
    if (realpath(path.c_str(), real) != nullptr) return real;
  }
  throw RunError("libweir-preload.so is not beside the command (" + folder + "/../lib): `make build` makes both");
}

RunOptions parse(int argc, char** argv, int& exit_code) {
  RunOptions o;
  CLI::App app{
      "Runs a program with a memory manager of its own: real page faults, reclaim and swap inside the process.",
      "weir run"};
  app.footer(
      "SPEC is zram[:lz4|zstd[:SIZE]], file:PATH[:SIZE] or none; several are used in the order given.\n"
      "SIZE is bytes or 64K, 256M, 4G; for --ram also 50% (of the machine).\n"
      "Without --ram the limit is that of the memory cgroup, less head-room; without --swap it is zram, then a file "
      "where the\n"
      "temporary folder is a disk.\n\n"
      "Examples\n"
      "  weir run --ram 256M --swap zram -- python3 train.py\n"
      "  weir run --ram 1G --swap zram:zstd --swap file:/var/tmp/swap:8G -- ./solve big.in\n"
      "  weir run -- sort huge.txt                      (in a container: its limit, no swap needed)\n"
      "  weir run --ram 64M --explore page.html -- ./prog\n"
      "  weir run --ram 64M --stats s.json --record r.weir -- ./prog && weir flow --from r.weir --function "
      "do_swap_page\n\n"
      "Exit status: the program's, or 128 + the signal that ended it (137 when the budget and all swap were full); 2 "
      "when it was not\n"
      "started.");
  std::string ram;
  std::string events = "64K";
  app.add_option("--ram", ram, "memory for the program's heap and mappings");
  app.add_option("--swap", o.swaps, "where pages go that do not fit")->allow_extra_args(false);
  app.add_option("--stats", o.stats, "writes counters as JSON at the end");
  app.add_option("--record", o.record, "writes the last events of the run, for weir flow and weir explore");
  app.add_option("--explore", o.page, "writes them as a page to step through")->type_name("PAGE.html");
  app.add_option("--record-events", events, "how many events the recording keeps (default 64K)");
  app.add_flag("--quiet", o.quiet, "no report at the end");
  app.add_flag("--allow-unmanaged", o.allow_unmanaged, "if this host or program cannot be managed, run it as it is");
  app.add_option("PROGRAM", o.program, "what to run, after --")->required();
  app.positionals_at_end();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    exit_code = app.exit(e) == 0 ? 0 : 2;
    return o;
  }
  exit_code = -1;

  const std::optional<Bytes> n = parse_size(events);
  if (!n || n->v < 1024 || n->v > (uint64_t{1} << 26))
    throw RunError(fmt::format("--record-events {}: wants 1K to 64M", events));
  if (!o.record.empty() || !o.page.empty()) o.record_events = n->v;
  if (!ram.empty()) {
    const Bytes machine(static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * PAGE_SIZE);
    const std::optional<Bytes> bytes = parse_size(ram, machine);
    if (!bytes) throw RunError(fmt::format("--ram {}: not a size; write 256M, 4G or 50%", ram));
    o.ram = *bytes;
    o.ram_from = "--ram";
  } else {
    const std::optional<live::CgroupLimit> limit = live::memory_limit();
    if (!limit)
      throw RunError(
          "no --ram given, and there is no memory cgroup limit to take it from; say how much, like --ram 256M");
    // The ring lies beside the budget.
    const Bytes room = head_room(limit->limit) + Bytes(o.record_events != 0 ? FlowRing::bytes_for(o.record_events) : 0);
    if (limit->limit < room + 8_MiB)
      throw RunError(fmt::format("the limit in {} is {}: too little to work in", limit->file, human(limit->limit.v)));
    o.ram = limit->limit - room;
    o.ram_from = limit->file;
  }
  if (o.ram < 4_MiB) throw RunError(fmt::format("--ram {}: at least 4M are needed", human(o.ram.v)));
  if (o.swaps.empty()) o.swaps = default_swaps();
  if (o.swaps.size() > live::MAX_SWAP_SPECS)
    throw RunError(fmt::format("--swap: at most {} areas", live::MAX_SWAP_SPECS));
  const std::vector<std::string_view> specs(o.swaps.begin(), o.swaps.end());
  const auto checked = parse_swap_specs(specs, o.ram);
  if (const auto* wrong = std::get_if<SwapSpecError>(&checked)) throw RunError("--swap: " + wrong->text);
  return o;
}

SharedRun& share(const RunOptions& o, int& fd) {
  fd = static_cast<int>(memfd_create("weir-run", MFD_CLOEXEC));
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(live::run_file_bytes(o.record_events))) != 0)
    throw RunError(fmt::format("memfd_create: {}", std::strerror(errno)));
  void* p = mmap(nullptr, sizeof(SharedRun), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) throw RunError(fmt::format("mmap: {}", std::strerror(errno)));
  auto* run = static_cast<SharedRun*>(p);  // fresh file: all zero, which is every atomic's start
  run->magic = live::RUN_MAGIC;
  run->version = live::RUN_VERSION;
  run->size = sizeof(SharedRun);
  run->launcher_pid = getpid();
  run->ram_bytes = o.ram.v & PAGE_MASK;
  run->nr_swaps = static_cast<uint32_t>(o.swaps.size());
  for (size_t i = 0; i < o.swaps.size(); ++i) {
    if (o.swaps[i].size() >= sizeof run->swaps[i]) throw RunError("--swap: the path is too long");
    std::memcpy(run->swaps[i], o.swaps[i].c_str(), o.swaps[i].size() + 1);
  }
  run->allow_unmanaged = o.allow_unmanaged ? 1 : 0;
  run->quiet = o.quiet ? 1 : 0;
  run->record_events = o.record_events;
  if (!o.record.empty()) {
    std::string path = o.record;
    if (path[0] != '/') {
      char cwd[PATH_MAX];
      if (getcwd(cwd, sizeof cwd) == nullptr) throw RunError("--record: the current folder has no name");
      path = std::string(cwd) + "/" + path;
    }
    if (path.size() >= sizeof run->record_path) throw RunError("--record: the path is too long");
    std::memcpy(run->record_path, path.c_str(), path.size() + 1);
  }
  run->frames_left.store(static_cast<int64_t>(run->ram_bytes >> PAGE_SHIFT));
  return *run;
}

// ---- the child and its signals
volatile sig_atomic_t child_pid = 0;

void forward(int signal) {
  const int e = errno;
  if (child_pid > 0) kill(static_cast<pid_t>(child_pid), signal);
  errno = e;
}

/// Signals sent to the launcher alone go on to the program; those of the terminal reach it anyway, and must not end the
/// launcher first.
void pass_signals() {
  struct sigaction sa {};
  sa.sa_handler = forward;
  sa.sa_flags = SA_RESTART;
  for (const int s : {SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGCONT}) sigaction(s, &sa, nullptr);
  sa.sa_handler = SIG_IGN;
  for (const int s : {SIGINT, SIGQUIT}) sigaction(s, &sa, nullptr);
}

/// Of a program that could not write it itself.
void write_recordings(const SharedRun& run, int fd, int wait_status) {
  const std::string ended = WIFSIGNALED(wait_status) ? fmt::format("killed by signal {} (SIG{})", WTERMSIG(wait_status),
                                                                   sigabbrev_np(WTERMSIG(wait_status)))
                                                     : fmt::format("exited {}", WEXITSTATUS(wait_status));
  for (const ProcessSlot& slot : run.slots) {
    const int32_t pid = slot.pid.load();
    if (pid == 0) continue;
    const bool first = pid == run.slots[0].pid.load();
    if (!live::write_left_recording(run, fd, slot, pid,
                                    first ? std::string_view(ended) : "killed, or running when weir run ended"))
      fmt::print(stderr, "weir run: --record {}: cannot be written\n", live::record_path(run, pid).text);
  }
}

int start_and_wait(const RunOptions& o, const std::string& path, SharedRun& run, int fd) {
  const std::string preload = preload_library();
  const char* others = std::getenv("LD_PRELOAD");
  const std::string list = others != nullptr && *others != 0 ? preload + ":" + others : preload;
  const std::string place = fmt::format("/proc/{}/fd/{}", getpid(), fd);
  std::vector<char*> argv;
  for (const std::string& a : o.program) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  sigset_t all, old;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, &old);
  const pid_t pid = ::fork();
  if (pid < 0) throw RunError(fmt::format("fork: {}", std::strerror(errno)));
  if (pid == 0) {
    setenv("LD_PRELOAD", list.c_str(), 1);
    setenv(live::RUN_VARIABLE, place.c_str(), 1);
    sigprocmask(SIG_SETMASK, &old, nullptr);
    execv(path.c_str(), argv.data());
    fmt::print(stderr, "weir run: {}: {}\n", path, std::strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
  }
  child_pid = pid;
  pass_signals();
  sigprocmask(SIG_SETMASK, &old, nullptr);
  for (;;) {
    int status = 0;
    const pid_t done = waitpid(pid, &status, WUNTRACED);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) throw RunError(fmt::format("waitpid: {}", std::strerror(errno)));
    if (WIFSTOPPED(status)) {
      // Job control: stop as the program did, go on when it is told to.
      kill(getpid(), SIGSTOP);
      kill(pid, SIGCONT);
      continue;
    }
    if (o.record_events != 0) write_recordings(run, fd, status);
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    return 128 + WTERMSIG(status);
  }
}

// ---- the report
template <class Fn>
void each_process(SharedRun& run, Fn fn) {
  for (ProcessSlot& slot : run.slots)
    if (slot.state.load() != 0) fn(slot);
}

nlohmann::ordered_json vmstat_of(const live::ProcessStats& s) {
  nlohmann::ordered_json j;
  for (unsigned i = 0; i < live::NR_GAUGES; ++i) j[stat_name(static_cast<NodeStat>(i))] = s.gauges[i].load();
  j["nr_free_pages"] = s.nr_free_pages.load();
  for (unsigned i = 0; i < live::NR_EVENTS; ++i) j[event_name(static_cast<VmEvent>(i))] = s.events[i].load();
  return j;
}

nlohmann::ordered_json zram_of(const live::ProcessStats& s) {
  return {{"orig_data_size", s.orig_data_size.load()}, {"compr_data_size", s.compr_data_size.load()},
          {"mem_used_total", s.mem_used_total.load()}, {"mem_used_max", s.mem_used_max.load()},
          {"same_pages", s.same_pages.load()},         {"huge_pages", s.huge_pages.load()}};
}

/// What the host's page tables were made to do: pages copied in (of them back from staging), moved in one by one, and
/// moved out in runs.
nlohmann::ordered_json uffd_of(const live::ProcessStats& s) {
  return {{"copies", s.uffd_copies.load()},
          {"staged_back", s.uffd_staged_back.load()},
          {"place_moves", s.uffd_place_moves.load()},
          {"moves", s.uffd_moves.load()},
          {"moved_pages", s.uffd_moved_pages.load()}};
}

void write_stats(const RunOptions& o, SharedRun& run, int status) {
  nlohmann::ordered_json j;
  j["program"] = o.program;
  j["exit_status"] = status;
  j["ram_bytes"] = run.ram_bytes;
  j["swap"] = o.swaps;
  nlohmann::ordered_json vmstat = nlohmann::ordered_json::object(), zram = nlohmann::ordered_json::object();
  uint64_t anon = 0, unmanaged = 0;
  j["processes"] = nlohmann::ordered_json::array();
  each_process(run, [&](ProcessSlot& slot) {
    nlohmann::ordered_json p;
    p["pid"] = slot.pid.load();
    p["comm"] = std::string(slot.comm, strnlen(slot.comm, sizeof slot.comm));
    p["managed"] = slot.state.load() == static_cast<uint32_t>(ProcessState::managed) ||
                   slot.state.load() == static_cast<uint32_t>(ProcessState::oom_killed);
    p["oom_killed"] = slot.state.load() == static_cast<uint32_t>(ProcessState::oom_killed);
    p["vmstat"] = vmstat_of(slot.stats);
    p["zram"] = zram_of(slot.stats);
    p["uffd"] = uffd_of(slot.stats);
    p["resident_peak_pages"] = slot.stats.resident_peak.load();
    p["managed_bytes"] = slot.stats.managed_bytes.load();
    p["rss_anon_kb"] = slot.stats.rss_anon_kb.load();
    p["unmanaged_anon_kb"] = slot.stats.unmanaged_kb.load();
    p["unmanaged_anon_peak_kb"] = slot.stats.unmanaged_peak_kb.load();
    anon += slot.stats.rss_anon_kb.load();
    unmanaged += slot.stats.unmanaged_kb.load();
    for (auto& [name, value] : p["vmstat"].items())
      vmstat[name] = vmstat.value(name, int64_t{0}) + value.get<int64_t>();
    for (auto& [name, value] : p["zram"].items()) zram[name] = zram.value(name, uint64_t{0}) + value.get<uint64_t>();
    j["processes"].push_back(std::move(p));
  });
  // Of processes whose places had to be used again, the events are left.
  for (unsigned i = 0; i < live::NR_EVENTS; ++i) {
    const char* name = event_name(static_cast<VmEvent>(i));
    vmstat[name] = vmstat.value(name, int64_t{0}) + static_cast<int64_t>(run.retired.events[i].load());
  }
  j["nr_processes"] = run.processes.load();
  j["over_budget_pages"] = run.frames_over.load();
  // Of the budget's frames, those that nobody has: 0, or the shares' sum is wrong.
  int64_t lost = static_cast<int64_t>(run.ram_bytes >> PAGE_SHIFT) - run.frames_left.load();
  for (const ProcessSlot& slot : run.slots) lost -= slot.frames.load();
  j["lost_budget_pages"] = lost;
  j["vmstat"] = std::move(vmstat);
  j["zram"] = std::move(zram);
  j["unmanaged_anon_share"] = anon != 0 ? static_cast<double>(unmanaged) / static_cast<double>(anon) : 0.0;
  std::ofstream out(o.stats, std::ios::binary);
  out << j.dump(2) << "\n";
  out.close();
  if (!out) fmt::print(stderr, "weir run: --stats {}: cannot be written\n", o.stats);
}

uint64_t event_of(const live::ProcessStats& s, VmEvent e) { return s.events[static_cast<unsigned>(e)].load(); }

/// A line for each process of a tree that swapped, those that did so most first; the rest in one.
void report_processes(SharedRun& run, uint64_t processes) {
  constexpr size_t MOST_LINES = 6;
  std::vector<const ProcessSlot*> swapped;
  each_process(run, [&](const ProcessSlot& slot) {
    if (event_of(slot.stats, VmEvent::pswpout) != 0) swapped.push_back(&slot);
  });
  std::sort(swapped.begin(), swapped.end(), [](const ProcessSlot* a, const ProcessSlot* b) {
    return event_of(a->stats, VmEvent::pswpout) > event_of(b->stats, VmEvent::pswpout);
  });
  const size_t lines = std::min(swapped.size(), MOST_LINES);
  for (size_t i = 0; i < lines; ++i) {
    const ProcessSlot& s = *swapped[i];
    fmt::print(stderr, "weir: {} ({}) · pages out {}, in {}{}\n",
               std::string_view(s.comm, strnlen(s.comm, sizeof s.comm)), s.pid.load(),
               event_of(s.stats, VmEvent::pswpout), event_of(s.stats, VmEvent::pswpin),
               s.state.load() == static_cast<uint32_t>(ProcessState::oom_killed) ? " · killed" : "");
  }
  if (processes > lines)
    fmt::print(stderr, "weir: and {} more process{}{}\n", processes - lines, processes - lines == 1 ? "" : "es",
               swapped.size() > lines || run.nr_retired.load() != 0 ? ""
               : processes - lines == 1                             ? " that did not swap"
                                                                    : ", none of which swapped");
}

void report(const RunOptions& o, SharedRun& run, int status) {
  uint64_t in = 0, out = 0, major = 0, faults = 0, orig = 0, used = 0, unmanaged = 0;
  bool killed = false;
  const uint64_t processes = run.processes.load();
  if (processes == 0) return;
  auto add = [&](const live::ProcessStats& s) {
    in += event_of(s, VmEvent::pswpin);
    out += event_of(s, VmEvent::pswpout);
    major += event_of(s, VmEvent::pgmajfault);
    faults += event_of(s, VmEvent::pgfault);
  };
  each_process(run, [&](ProcessSlot& slot) {
    add(slot.stats);
    orig = std::max(orig, slot.stats.orig_data_size.load());
    used = std::max(used, slot.stats.mem_used_max.load());
    unmanaged = std::max(unmanaged, slot.stats.unmanaged_peak_kb.load());
    killed |= slot.state.load() == static_cast<uint32_t>(ProcessState::oom_killed);
  });
  add(run.retired);
  fmt::print(stderr, "weir: {} {} · RAM {} ({})\n", o.program[0],
             killed         ? "was killed: RAM and swap were full"
             : status < 128 ? fmt::format("exited {}", status)
                            : fmt::format("ended by signal {}", status - 128),
             human(run.ram_bytes), o.ram_from);
  fmt::print(stderr, "weir: faults {} minor, {} major · pages out {} ({}), in {} ({})\n",
             faults - std::min(major, faults), major, out, human(out * PAGE_SIZE), in, human(in * PAGE_SIZE));
  if (used != 0) fmt::print(stderr, "weir: zram took at most {} · held {} at the end\n", human(used), human(orig));
  if (processes > 1) report_processes(run, processes);
  fmt::print(stderr, "weir: {} process{} · private memory outside management at most {}{}\n", processes,
             processes == 1 ? "" : "es", human(unmanaged << 10), processes == 1 ? "" : " in one");
  if (const int64_t over = run.frames_over.load(); over > 0)
    // Both count a page that they share; the host holds it once, until one of them writes to it.
    fmt::print(stderr,
               "weir: shares were {} over the budget at most, for moments: forks (a page that parent and child share "
               "counts in both) and starts\n",
               human(static_cast<uint64_t>(over) * PAGE_SIZE));
}

}  // namespace

int cmd_run(int argc, char** argv) {
  try {
    int exit_code = -1;
    RunOptions o = parse(argc, argv, exit_code);
    if (exit_code >= 0) return exit_code;
    std::optional<TemporaryFile> temporary;
    if (!o.page.empty() && o.record.empty()) o.record = temporary.emplace().path();
    const live::ProgramCheck check = live::check_program(o.program[0]);
    if (check.path.empty()) {
      fmt::print(stderr, "weir run: {}\n", check.problem);
      return 127;
    }
    if (!check.problem.empty()) {
      if (!o.allow_unmanaged) throw RunError(check.problem + " (--allow-unmanaged runs it as it is)");
      fmt::print(stderr, "weir run: {}; running it unmanaged\n", check.problem);
    }
    int fd = -1;
    SharedRun& run = share(o, fd);
    const int status = start_and_wait(o, check.path, run, fd);
    if (run.failed.load() != 0) {
      // The process said so itself, in its own words; here only the status is put right.
      if (!o.allow_unmanaged && run.processes.load() == 0) return 2;
    }
    if (!o.stats.empty()) write_stats(o, run, status);
    if (!o.quiet) report(o, run, status);
    if (!o.page.empty()) explore_recording(o.record, o.page);
    return status;
  } catch (const std::runtime_error& e) {
    fmt::print(stderr, "weir run: {}\n", e.what());
    return 2;
  }
}

}  // namespace weir::cli
