// src/sim/simulation.hpp
//
// A scenario, run: a machine on virtual time, its disks, files and tasks. Same scenario and seed: the same counters,
// recording and final memory, bit for bit.
//
// Every page that a task writes gets a content of its own, remembered outside the machine; every load is compared with
// it. So a lost, stale or mixed-up page shows as a broken "content".
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "record/recorder.hpp"
#include "sim/scenario.hpp"

namespace weir {
class Machine;
}

namespace weir::sim {

struct Broken {
  std::string id, text;
};

/// What became of a task.
struct TaskOutcome {
  std::string name;
  int pid = 0;
  enum class Fate { exited, killed, segv, bus, stuck } fate = Fate::stuck;
  int code = 0;
  Nanos ended{};
  uint64_t min_flt = 0, maj_flt = 0;
  std::string message;  ///< why, where a step failed
};

struct SimResult {
  std::string scenario, title;
  uint64_t seed = 0;
  Nanos time{};
  bool deadlock = false;
  std::string deadlock_report;
  std::string panic;  ///< why the machine stopped for good; empty if it did not
  std::vector<TaskOutcome> tasks;
  std::vector<Broken> broken;                                   ///< invariants and contents; empty on a good run
  std::map<std::string, uint64_t> vmstat;                       ///< /proc/vmstat names: gauges and events
  std::map<std::string, std::map<std::string, uint64_t>> zram;  ///< by device
  std::map<std::string, int64_t> ksm;                           ///< /sys/kernel/mm/ksm names; empty: nothing scanned
  std::vector<std::string> log;                                 ///< the kernel's log, with times
  uint64_t verified = 0;                                        ///< how often verify() ran
  uint64_t contents_checked = 0;
  int64_t allocations = 0;  ///< with SimOptions::fail_allocation: how many there were up to the one that failed
  std::string digest;       ///< of counters, contents, fates, and how many switches and events there were
};

struct SimOptions {
  std::optional<uint64_t> seed;  ///< in place of the scenario's
  std::string record;            ///< file for the whole recording; empty: none
  std::string kernel;            ///< a profile's name, in place of the scenario's; empty: the scenario's
  /// The page allocation after so many others fails, counted from when the tasks start.
  std::optional<int64_t> fail_allocation = {};
  FlowSink* sink = nullptr;  ///< who hears every event where there is no file
  /// Given the machine as soon as it has booted; it stays what it is to the end of the run.
  std::function<void(Machine&)> booted = {};
};

/// Runs it to the end. Throws ScenarioError for what cannot be set up (a swap area larger than its disk, say).
SimResult run_scenario(const Scenario& scenario, const SimOptions& options);

/// For people: a page of text. For programs: JSON.
std::string summary(const SimResult& result);
std::string to_json(const SimResult& result);

}  // namespace weir::sim
