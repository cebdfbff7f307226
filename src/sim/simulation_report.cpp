// src/sim/simulation_report.cpp: a result as text and JSON. See simulation.hpp
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "sim/simulation.hpp"

namespace weir::sim {

namespace {

const char* fate_name(TaskOutcome::Fate fate) {
  switch (fate) {
    case TaskOutcome::Fate::exited: return "exited";
    case TaskOutcome::Fate::killed: return "killed";
    case TaskOutcome::Fate::segv: return "SIGSEGV";
    case TaskOutcome::Fate::bus: return "SIGBUS";
    case TaskOutcome::Fate::stuck: return "running";
  }
  return "?";
}

}  // namespace

std::string summary(const SimResult& r) {
  std::string out;
  out += fmt::format("{}\nseed {}  virtual time {:.6f} s  digest {}\n\n", r.title.empty() ? r.scenario : r.title,
                     r.seed, static_cast<double>(r.time.v) / 1e9, r.digest);
  out += fmt::format("{:<16} {:>5} {:<9} {:>4} {:>12} {:>10} {:>10}  {}\n", "task", "pid", "fate", "code", "ended (s)",
                     "min_flt", "maj_flt", "");
  for (const TaskOutcome& t : r.tasks)
    out += fmt::format("{:<16} {:>5} {:<9} {:>4} {:>12.6f} {:>10} {:>10}  {}\n", t.name, t.pid, fate_name(t.fate),
                       t.code, static_cast<double>(t.ended.v) / 1e9, t.min_flt, t.maj_flt, t.message);
  out += "\n";
  for (const auto& [name, value] : r.vmstat)
    if (value != 0) out += fmt::format("{:<32} {:>14}\n", name, static_cast<int64_t>(value));
  for (const auto& [device, stats] : r.zram)
    for (const auto& [name, value] : stats) out += fmt::format("{:<32} {:>14}\n", device + "." + name, value);
  for (const auto& [name, value] : r.ksm) out += fmt::format("{:<32} {:>14}\n", "ksm." + name, value);
  out += fmt::format("\ncontents compared {}, machine verified {} time{}\n", r.contents_checked, r.verified,
                     r.verified == 1 ? "" : "s");
  if (!r.panic.empty()) out += fmt::format("\nKernel panic - not syncing: {}\n", r.panic);
  if (r.deadlock) out += "\nDEADLOCK\n" + r.deadlock_report + "\n";
  for (const Broken& b : r.broken) out += fmt::format("BROKEN {}: {}\n", b.id, b.text);
  return out;
}

std::string to_json(const SimResult& r) {
  nlohmann::ordered_json j;
  j["scenario"] = r.scenario;
  j["title"] = r.title;
  j["seed"] = r.seed;
  j["time_ns"] = r.time.v;
  j["digest"] = r.digest;
  j["tasks"] = nlohmann::ordered_json::array();
  for (const TaskOutcome& t : r.tasks)
    j["tasks"].push_back({{"name", t.name},
                          {"pid", t.pid},
                          {"fate", fate_name(t.fate)},
                          {"code", t.code},
                          {"ended_ns", t.ended.v},
                          {"min_flt", t.min_flt},
                          {"maj_flt", t.maj_flt},
                          {"message", t.message}});
  for (const auto& [name, value] : r.vmstat) j["vmstat"][name] = static_cast<int64_t>(value);
  for (const auto& [device, stats] : r.zram)
    for (const auto& [name, value] : stats) j["zram"][device][name] = value;
  for (const auto& [name, value] : r.ksm) j["ksm"][name] = value;
  j["contents_checked"] = r.contents_checked;
  j["verified"] = r.verified;
  j["deadlock"] = r.deadlock;
  j["panic"] = r.panic;
  j["broken"] = nlohmann::ordered_json::array();
  for (const Broken& b : r.broken) j["broken"].push_back({{"id", b.id}, {"text", b.text}});
  j["log"] = r.log;
  return j.dump(2) + "\n";
}

}  // namespace weir::sim
