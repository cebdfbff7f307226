// tests/unit/simulation_test.cpp
//
// Scenarios, run: the same seed gives the same run to the last bit, every example is clean, 004.toml passes every box
// of its document, faulty disks lose nothing.
#include "sim/simulation.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <span>

#include "places.hpp"
#include "record/reader.hpp"

namespace weir::sim {
namespace {

using testing::HasSubstr;

struct Ran {
  SimResult result;
  std::string json;
  std::string recording;  // the file's bytes
};

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

enum class Keep { result, recording };
Ran run(const Scenario& scenario, std::optional<uint64_t> seed = {}, Keep keep = Keep::result) {
  SimOptions options;
  options.seed = seed;
  if (keep == Keep::recording) options.record = testing::TempDir() + "simulation-" + std::to_string(getpid()) + ".weir";
  Ran ran;
  ran.result = run_scenario(scenario, options);
  ran.json = to_json(ran.result);
  if (keep == Keep::recording) {
    ran.recording = bytes_of(options.record);
    EXPECT_GT(ran.recording.size(), 1000u);
    std::remove(options.record.c_str());
  }
  return ran;
}
std::string broken(const SimResult& r) {
  std::string all;
  for (const Broken& b : r.broken) all += b.id + ": " + b.text + "\n";
  return all + r.deadlock_report;
}
const TaskOutcome& task(const SimResult& r, const std::string& name) {
  for (const TaskOutcome& t : r.tasks)
    if (t.name == name) return t;
  ADD_FAILURE() << "no task " << name;
  static const TaskOutcome none;
  return none;
}
uint64_t lines_with(const SimResult& r, const std::string& text) {
  return static_cast<uint64_t>(std::count_if(r.log.begin(), r.log.end(),
                                             [&](const std::string& l) { return l.find(text) != std::string::npos; }));
}
std::string example(const std::string& name) { return std::string(WEIR_SOURCE_DIR) + "/examples/" + name; }

/// Two tasks on two CPUs and too little memory, a file, a fork.
constexpr const char* BUSY = R"(
[machine]
ram = "4M"
cpus = 2
preempt-one-in = 16
%
[[disk]]
name = "d"
[[swap]]
on = "disk"
disk = "d"
size = "12M"
[[file]]
name = "f"
disk = "d"
size = "1M"
[[task]]
name = "a"
steps = [
  { op = "mmap", area = "heap", size = "4M" },
  { op = "touch", area = "heap" },
  { op = "fork", name = "c", steps = [ { op = "touch", area = "heap", pattern = "random", count = 200 } ] },
  { op = "touch", area = "heap", pattern = "zipf", count = 500 },
]
[[task]]
name = "b"
steps = [
  { op = "mmap-file", area = "window", file = "f", size = "1M", shared = true },
  { op = "touch", area = "window", pattern = "random", count = 200 },
  { op = "write", file = "f", size = "512K" },
  { op = "read", file = "f", size = "1M" },
  { op = "fsync", file = "f" },
]
)";
Scenario busy(const std::string& machine = "") {
  std::string text = BUSY;
  text.replace(text.find('%'), 1, machine);
  return parse_scenario(text, "busy.toml");
}

TEST(Simulation, TheSameSeedIsTheSameRunToTheLastBit) {
  for (const char* content : {"content = \"tagged\"", "content = \"backed\""}) {
    const Scenario s = busy(content);
    const Ran first = run(s, 7, Keep::recording);
    const Recording read = parse(std::as_bytes(std::span(first.recording)));
    EXPECT_EQ(read.status, Recording::Status::whole) << read.problem;
    const Ran second = run(s, 7, Keep::recording);
    EXPECT_EQ(broken(first.result), "");
    EXPECT_EQ(first.json, second.json);
    EXPECT_EQ(first.result.digest, second.result.digest);
    EXPECT_TRUE(first.recording == second.recording) << "recordings of one seed differ";
    EXPECT_GT(first.result.contents_checked, 1000u);
    EXPECT_GT(first.result.vmstat.at("pswpin"), 0u);
  }
}

TEST(Simulation, AnotherSeedIsAnotherRunAndNothingBreaks) {
  const Scenario s = busy();
  const Ran first = run(s, 1, Keep::recording);
  std::set<std::string> digests = {first.result.digest};
  for (uint64_t seed = 2; seed <= 5; ++seed) {
    const Ran other = run(s, seed, Keep::recording);
    EXPECT_EQ(broken(other.result), "") << "seed " << seed;
    EXPECT_FALSE(first.recording == other.recording) << "seed " << seed;
    digests.insert(other.result.digest);
  }
  EXPECT_EQ(digests.size(), 5u);
}

TEST(Simulation, OutOfMemoryWithoutAKillableTaskIsAPanicThatEndsTheRun) {
  const Scenario s = parse_scenario(R"(
[machine]
ram = "4M"
[[task]]
name = "protected"
oom_score_adj = -1000
steps = [ { op = "mmap", area = "heap", size = "16M" }, { op = "touch", area = "heap" } ]
)",
                                    "panic.toml");
  const Ran first = run(s, 1, Keep::recording);
  EXPECT_EQ(first.result.panic, "Out of memory and no killable processes");
  EXPECT_EQ(broken(first.result), "");
  EXPECT_EQ(task(first.result, "protected").fate, TaskOutcome::Fate::stuck);
  EXPECT_EQ(first.result.vmstat.at("oom_kill"), 0u);
  EXPECT_GT(first.result.vmstat.at("pgfault"), 500u);
  EXPECT_EQ(lines_with(first.result, "Kernel panic - not syncing: Out of memory and no killable processes"), 1u);
  EXPECT_THAT(summary(first.result), HasSubstr("Kernel panic - not syncing: Out of memory and no killable processes"));
  EXPECT_THAT(first.json, HasSubstr("\"panic\": \"Out of memory and no killable processes\""));
  EXPECT_EQ(parse(std::as_bytes(std::span(first.recording))).status, Recording::Status::whole);
  const Ran second = run(s, 1, Keep::recording);
  EXPECT_EQ(first.json, second.json);
  EXPECT_TRUE(first.recording == second.recording);
}

TEST(Simulation, RecordingDoesNotChangeTheRun) {
  const Scenario s = busy();
  Ran with = run(s, 3, Keep::recording);
  Ran without = run(s, 3);
  EXPECT_EQ(with.result.vmstat, without.result.vmstat);
  EXPECT_EQ(with.result.time, without.result.time);
}

TEST(Simulation, EveryExampleIsClean) {
  unsigned n = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(example(""))) {
    if (entry.path().extension() != ".toml") continue;
    ++n;
    const SimResult r = run(load_scenario(entry.path().string())).result;
    EXPECT_EQ(broken(r), "") << entry.path();
    EXPECT_FALSE(r.deadlock) << entry.path();
    for (const TaskOutcome& t : r.tasks) {
      EXPECT_NE(t.fate, TaskOutcome::Fate::segv) << entry.path() << " " << t.name << ": " << t.message;
      EXPECT_NE(t.fate, TaskOutcome::Fate::bus) << entry.path() << " " << t.name << ": " << t.message;
      if (t.fate == TaskOutcome::Fate::exited) {
        EXPECT_EQ(t.message, "") << entry.path() << " " << t.name;
      }
    }
  }
  EXPECT_GE(n, 14u);
}

TEST(Simulation, Document004PassesEachOfItsNineBoxes) {
  // What a recording would hold, without the file of 700 MB.
  struct Names final : FlowSink {
    std::set<const FlowSite*> sites;
    void enter(const FlowSite& site, uint64_t, uint64_t, uint64_t) override { sites.insert(&site); }
    void leave(const FlowSite&) override {}
    void state(const FlowSite&, State, uint64_t, uint64_t, uint64_t) override {}
  } names;
  SimOptions options;
  options.sink = &names;
  const SimResult r = run_scenario(load_scenario(example("004.toml")), options);
  EXPECT_EQ(broken(r), "");
  std::set<std::string> ran_functions;
  for (const FlowSite* site : names.sites) ran_functions.insert(site->function);
  const auto passed = [&](const char* box, std::initializer_list<const char*> functions) {
    for (const char* f : functions) EXPECT_TRUE(ran_functions.contains(f)) << box << ": " << f << " never ran";
  };
  passed("1 requests", {"kmalloc", "vmalloc", "mmap", "brk"});
  passed("2 page allocation",
         {"alloc_pages", "__alloc_pages_nodemask", "get_page_from_freelist", "rmqueue", "__alloc_pages_slowpath"});
  passed("3 slab", {"slab_alloc", "cache_alloc_refill", "cache_grow_begin", "kfree"});
  passed("4 mmap and faults",
         {"do_mmap", "do_page_fault", "handle_mm_fault", "do_anonymous_page", "do_wp_page", "do_munmap"});
  passed("5 page cache", {"add_to_page_cache_lru", "filemap_fault", "page_cache_sync_readahead"});
  passed("6 dirty pages", {"balance_dirty_pages", "wb_writeback"});
  passed("7 reclaim", {"kswapd", "balance_pgdat", "try_to_free_pages", "shrink_page_list"});
  passed("8 swap", {"add_to_swap", "swap_writepage", "do_swap_page", "swap_readpage"});
  passed("9 the OOM killer", {"out_of_memory", "oom_kill_process"});

  const auto& v = r.vmstat;
  EXPECT_GT(v.at("pgalloc_dma32"), 0u);
  EXPECT_GT(v.at("pgalloc_normal"), 0u);
  EXPECT_GT(v.at("balance_dirty_pause"), 0u) << "no writer was slowed";
  EXPECT_GT(v.at("nr_written"), 4000u) << "the log's 16 MiB";
  EXPECT_GT(v.at("pgsteal_kswapd"), 0u);
  EXPECT_GT(v.at("pgsteal_direct"), 0u);
  EXPECT_GT(v.at("pswpout"), 1000u);
  EXPECT_GT(v.at("pswpin"), 1000u);
  EXPECT_EQ(v.at("oom_kill"), 1u);
  for (const char* name : {"driver", "files", "worker", "child"})
    EXPECT_EQ(task(r, name).fate, TaskOutcome::Fate::exited) << name;
  EXPECT_EQ(task(r, "hog").fate, TaskOutcome::Fate::killed);
  EXPECT_EQ(task(r, "hog").code, 137);
  EXPECT_EQ(lines_with(r, "hog invoked oom-killer"), 1u);
  EXPECT_EQ(lines_with(r, "Killed process"), 1u);
}

TEST(Simulation, OtherSeedsOf004AreClean) {
  const Scenario s = load_scenario(example("004.toml"));
  for (uint64_t seed = 100; seed < 104; ++seed) {
    const SimResult r = run(s, seed).result;
    EXPECT_EQ(broken(r), "") << "seed " << seed;
    EXPECT_EQ(task(r, "hog").fate, TaskOutcome::Fate::killed) << "seed " << seed;
  }
}

std::string faulty(const std::string& errors, const std::string& content) {
  return "[machine]\nram = \"8M\"\ncpus = 2\ncontent = \"" + content + "\"\n[[disk]]\nname = \"d\"\n" + errors +
         "\n[[swap]]\non = \"disk\"\ndisk = \"d\"\nsize = \"24M\"\n"
         "[[task]]\nname = \"a\"\nsteps = [\n"
         "  { op = \"mmap\", area = \"heap\", size = \"10M\" },\n  { op = \"touch\", area = \"heap\" },\n"
         "  { op = \"touch\", area = \"heap\", pattern = \"random\", count = 6000 },\n  { op = \"touch\", area = "
         "\"heap\", write = false },\n]\n";
}

TEST(Simulation, APageThatCannotBeWrittenToSwapStaysInMemory) {
  for (const char* content : {"tagged", "backed"}) {
    const SimResult r = run(parse_scenario(faulty("write-error = 0.2", content), "x.toml")).result;
    EXPECT_EQ(broken(r), "");
    EXPECT_EQ(task(r, "a").fate, TaskOutcome::Fate::exited) << task(r, "a").message;
    EXPECT_GT(r.vmstat.at("swap_write_error"), 10u);
    EXPECT_GT(r.vmstat.at("pswpout"), 100u);
    EXPECT_GT(r.contents_checked, 2500u) << "every page was looked at";
    EXPECT_GT(lines_with(r, "Write-error on swap-device (d-swap:"), 0u);
  }
}

/// Swap that takes nothing is no swap: the task is killed, with a report, and nothing is lost on the way there.
TEST(Simulation, SwapThatTakesNothingEndsInAKill) {
  const SimResult r = run(parse_scenario(faulty("write-error = 1", "tagged"), "x.toml")).result;
  EXPECT_EQ(broken(r), "");
  EXPECT_EQ(task(r, "a").fate, TaskOutcome::Fate::killed);
  EXPECT_EQ(r.vmstat.at("oom_kill"), 1u);
  EXPECT_GT(lines_with(r, "invoked oom-killer"), 0u);
}

TEST(Simulation, APageThatCannotBeReadFromSwapIsSigbusForItsToucher) {
  for (const char* content : {"tagged", "backed"}) {
    std::string text = faulty("read-error = 0.1", content);
    // Somebody who never needs swap goes on.
    text +=
        "[[task]]\nname = \"small\"\nsteps = [ { op = \"mmap\", area = \"s\", size = \"16K\" }, { op = \"mlock\", area "
        "= \"s\" },\n"
        "  { op = \"sleep\", for = \"300ms\" }, { op = \"touch\", area = \"s\" } ]\n";
    const SimResult r = run(parse_scenario(text, "x.toml")).result;
    EXPECT_EQ(broken(r), "");
    EXPECT_EQ(task(r, "a").fate, TaskOutcome::Fate::bus);
    EXPECT_EQ(task(r, "a").code, 135);
    EXPECT_THAT(task(r, "a").message, HasSubstr("SIGBUS at 0x"));
    EXPECT_EQ(task(r, "small").fate, TaskOutcome::Fate::exited) << task(r, "small").message;
    EXPECT_GT(r.vmstat.at("swap_read_error"), 0u);
    EXPECT_GT(lines_with(r, "Read-error on swap-device (d-swap:"), 0u);
  }
}

TEST(Simulation, AFileOnAFaultyDiskKeepsWhatWasWritten) {
  const SimResult r = run(parse_scenario(R"(
[machine]
ram = "8M"
[[disk]]
name = "d"
write-error = 0.1
[[file]]
name = "f"
disk = "d"
size = "4M"
[[task]]
name = "a"
steps = [
  { op = "write", file = "f", size = "4M" },
  { op = "read", file = "f", size = "4M" },
  { op = "write", file = "f", size = "4M" },
  { op = "read", file = "f", size = "4M" },
]
)",
                                         "x.toml"))
                          .result;
  EXPECT_EQ(broken(r), "");
  EXPECT_EQ(task(r, "a").fate, TaskOutcome::Fate::exited) << task(r, "a").message;
  EXPECT_EQ(task(r, "a").message, "");
  EXPECT_EQ(r.contents_checked, 2048u);
}

/// The MMU that a live run has: no accessed and dirty bits, no write protection, no page in two places.
TEST(Simulation, TheUffdModelSwapsToo) {
  for (const char* content : {"tagged", "backed"}) {
    std::string text = faulty("", content);
    text.replace(text.find("cpus"), 0, "mmu = \"uffd\"\n");
    const SimResult r = run(parse_scenario(text, "x.toml")).result;
    EXPECT_EQ(broken(r), "");
    EXPECT_EQ(task(r, "a").fate, TaskOutcome::Fate::exited) << task(r, "a").message;
    EXPECT_EQ(task(r, "a").message, "");
    EXPECT_GT(r.vmstat.at("pswpin"), 1000u);
    EXPECT_GT(r.vmstat.at("pswpout"), 1000u);
    EXPECT_GT(r.vmstat.at("access_flag_fault") + r.vmstat.at("window_unmap"), 0u);
  }
}

TEST(Simulation, AStepMayVerify) {
  Scenario s = parse_scenario(faulty("", "backed"), "x.toml");
  Step verify;
  verify.op = Op::verify;
  s.tasks[0].steps.push_back(verify);
  const SimResult r = run(s).result;
  EXPECT_EQ(broken(r), "");
  EXPECT_EQ(r.verified, 2u);
}

TEST(Simulation, ItStopsWhenItIsTold) {
  Scenario s = busy();
  Step sleep;
  sleep.op = Op::sleep;
  sleep.time = 1_s;
  s.tasks.push_back({.name = "sleeper", .steps = {sleep}});
  s.end = 50_ms;
  const SimResult r = run(s).result;
  EXPECT_GE(r.time, 50_ms);
  EXPECT_LT(r.time, 1_s);
  EXPECT_EQ(broken(r), "");
  EXPECT_EQ(task(r, "sleeper").fate, TaskOutcome::Fate::stuck);
}

TEST(Simulation, WhatDoesNotFitIsRefusedWithItsLine) {
  const auto refusal = [](const std::string& text) -> std::string {
    try {
      (void)run_scenario(parse_scenario(text, "bad.toml"), {});
    } catch (const ScenarioError& e) {
      return e.what();
    }
    return "ran";
  };
  const std::string task = "[[task]]\nname = \"t\"\nsteps = []\n";
  EXPECT_THAT(
      refusal("[[disk]]\nname = \"d\"\nsize = \"1M\"\n[[swap]]\non = \"disk\"\ndisk = \"d\"\nsize = \"2M\"\n" + task),
      HasSubstr("bad.toml:4: swap on d: 512 pages do not fit, 0 of 256 are taken: give the disk a larger size"));
  EXPECT_THAT(
      refusal("[[disk]]\nname = \"d\"\nsize = \"1M\"\n[[file]]\nname = \"f\"\ndisk = \"d\"\nsize = \"2M\"\n" + task),
      HasSubstr("bad.toml:4: file f: does not fit on disk d: give the disk a larger size"));
  EXPECT_THAT(refusal("[machine]\nram = \"4M\"\ndma32 = \"4M\"\n" + task), HasSubstr("ran"));
}

/// The checks themselves: content that the machine changed behind a task's back is found.
TEST(Simulation, ContentsAreReallyCompared) {
  const SimResult r = run(busy()).result;
  EXPECT_GT(r.contents_checked, 1500u);
  EXPECT_EQ(r.verified, 1u);
}

// ---- Steps on the machine and on other tasks ------------------------------------------------------------------------

SimResult run_text(const std::string& text, const std::string& kernel = "") {
  return run_scenario(parse_scenario(text, "x.toml"), {.seed = {}, .record = {}, .kernel = kernel});
}
using Fate = TaskOutcome::Fate;

TEST(Simulation, AKilledTaskDiesAndItsParentNoticesThatItsChildrenAreGone) {
  const SimResult r = run_text(R"(
[[task]]
name = "parent"
steps = [
  { op = "fork", name = "child", steps = [ { op = "sleep", for = "100s" } ] },
  { op = "fork", name = "child", steps = [ { op = "sleep", for = "100s" } ] },
  { op = "wait" },
]
[[task]]
name = "killer"
start = "1s"
steps = [ { op = "kill", task = "child" } ]
)");
  EXPECT_EQ(broken(r), "");
  ASSERT_EQ(r.tasks.size(), 4u);
  for (const TaskOutcome& t : r.tasks) EXPECT_EQ(t.fate, t.name == "child" ? Fate::killed : Fate::exited) << t.name;
  EXPECT_GE(task(r, "parent").ended, 1_s);
  EXPECT_LT(task(r, "parent").ended, 2_s);
}

TEST(Simulation, SwapAreasComeAndGo) {
  const SimResult r = run_text(R"(
[machine]
ram = "8M"
[[swap]]
on = "zram"
name = "z"
size = "4M"
off = true
[[task]]
name = "t"
steps = [
  { op = "mmap", area = "a", size = "1M" },
  { op = "touch", area = "a" },
  { op = "swapon", swap = "z", priority = 9 },
  { op = "mem-limit", swap = "z", size = "1M" },
  { op = "sysctl", name = "vm.swappiness", value = 100 },
  { op = "swapoff", swap = "z" },
  { op = "swapon", swap = "z" },
  { op = "touch", area = "a", write = false },
]
)");
  EXPECT_EQ(broken(r), "");
  EXPECT_EQ(task(r, "t").message, "");
  EXPECT_EQ(r.zram.at("zram0").at("mem_limit"), (1_MiB).v);
}

TEST(Simulation, MovedAndProtectedAreasKeepTheirContents) {
  const SimResult r = run_text(R"(
[[task]]
name = "t"
steps = [
  { op = "mmap", area = "a", size = "1M" },
  { op = "mmap", area = "b", size = "1M" },
  { op = "touch", area = "a" },
  { op = "touch", area = "b" },
  { op = "mremap", area = "a", size = "3M" },
  { op = "mremap", area = "b", size = "512K" },
  { op = "touch", area = "a", from = "2M" },
  { op = "mprotect", area = "a", rights = "r", size = "1M" },
  { op = "touch", area = "a", write = false },
  { op = "touch", area = "b", write = false },
  { op = "touch", area = "a", from = "1M" },
  { op = "touch", area = "a" },
]
)");
  EXPECT_EQ(broken(r), "");
  EXPECT_EQ(task(r, "t").fate, Fate::segv) << "the last store is to what may only be read";
}

TEST(Simulation, WhatMayGoGoesAndWhatIsStoredAfterwardsStays) {
  const SimResult r = run_text(R"(
[machine]
ram = "8M"
[[swap]]
on = "zram"
size = "8M"
[[task]]
name = "t"
steps = [
  { op = "mmap", area = "a", size = "3M" },
  { op = "touch", area = "a" },
  { op = "madvise", area = "a", advice = "free", size = "2M" },
  { op = "touch", area = "a", size = "1M" },
  { op = "madvise", area = "a", advice = "pageout", from = "2M" },
  { op = "mmap", area = "b", size = "6M" },
  { op = "touch", area = "b" },
  { op = "madvise", area = "b", advice = "cold" },
  { op = "touch", area = "a", write = false },
  { op = "touch", area = "a" },
  { op = "touch", area = "a", write = false },
]
)");
  EXPECT_EQ(broken(r), "");
  EXPECT_EQ(task(r, "t").message, "");
}

TEST(Simulation, APanicStopsTheMachineWhereItIs) {
  const std::string text = R"(
[machine]
ram = "8M"
[sysctl]
"vm.panic_on_oom" = 1
[[task]]
name = "other"
steps = [ { op = "sleep", for = "100s" } ]
[[task]]
name = "hog"
steps = [ { op = "mmap", area = "a", size = "16M" }, { op = "touch", area = "a" } ]
)";
  for (const char* kernel : {"2.6.20", "3.x", "4.14"}) {
    SCOPED_TRACE(kernel);
    const SimResult r = run_text(text, kernel);
    EXPECT_EQ(r.panic, "panic_on_oom");
    EXPECT_EQ(broken(r), "");
    EXPECT_LT(r.time, 100_s);
    EXPECT_EQ(task(r, "other").fate, Fate::stuck);
    EXPECT_THAT(summary(r), HasSubstr("Kernel panic - not syncing: panic_on_oom"));
    EXPECT_THAT(to_json(r), HasSubstr("\"panic\": \"panic_on_oom\""));
  }
}

TEST(Simulation, WhoDiesFollowsTheKernel) {
  // By memory the hog, by what is mapped the one that has mapped and not touched.
  const std::string text = R"(
[machine]
ram = "8M"
[[task]]
name = "mapped"
steps = [ { op = "mmap", area = "a", size = "64M" }, { op = "sleep", for = "10s" } ]
[[task]]
name = "superuser"
uid = 0
steps = [ { op = "mmap", area = "a", size = "100M" }, { op = "sleep", for = "10s" } ]
[[task]]
name = "hog"
start = "1ms"
steps = [ { op = "mmap", area = "a", size = "16M" }, { op = "touch", area = "a" } ]
)";
  const SimResult modern = run_text(text, "4.14"), old = run_text(text, "2.6.20");
  EXPECT_EQ(task(modern, "mapped").fate, Fate::exited);
  EXPECT_EQ(task(modern, "superuser").fate, Fate::exited);
  EXPECT_EQ(task(modern, "hog").fate, Fate::killed);
  EXPECT_EQ(task(old, "mapped").fate, Fate::killed);
  EXPECT_EQ(broken(modern) + broken(old), "");
}

TEST(Simulation, AVictimThatHangsIsReapedIn414AndWaitedForBefore) {
  const Scenario scenario = load_scenario(std::string(WEIR_SOURCE_DIR) + "/examples/oom-reaper.toml");
  for (const char* kernel : {"3.x", "4.14"}) {
    SCOPED_TRACE(kernel);
    const SimResult r = run_scenario(scenario, {.seed = {}, .record = {}, .kernel = kernel});
    EXPECT_EQ(broken(r), "");
    EXPECT_EQ(task(r, "stuck").fate, Fate::killed);
    EXPECT_EQ(task(r, "program").fate, Fate::exited);
    EXPECT_EQ(task(r, "program").ended > 30_s, kernel == std::string("3.x"));
    EXPECT_EQ(r.vmstat.at("oom_kill"), 1u);
  }
}

}  // namespace
}  // namespace weir::sim
