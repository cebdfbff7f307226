// src/cli/flow.cpp
//
// weir flow: a recording in the documents' notation. Exit status: 0, 1 when the recording is broken (what there is is
// shown), 2 when there is nothing to show.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "cli/temporary_file.hpp"
#include "cli/verbs.hpp"
#include "explore/styles.hpp"
#include "record/flow_diff.hpp"
#include "record/flow_json.hpp"
#include "record/flow_tree.hpp"
#include "sim/simulation.hpp"

namespace weir::cli {

namespace {

void print_facts(const Recording& recording) {
  for (const Recording::Fact& fact : recording.facts) fmt::print("{}: {}\n", fact.key, fact.value);
  fmt::print("events: {}, from number {} on, {} lost\n", recording.events.size(), recording.first, recording.lost);
  for (const Recording::Task& task : recording.tasks)
    fmt::print("task {} ({}), pid {}\n", task.tid, task.comm, task.pid);
  for (const Recording::Note& note : recording.notes)
    fmt::print("{} before event {}, at {} ns:\n{}{}", note.key, note.at, note.time, note.text,
               note.text.empty() || note.text.back() == '\n' ? "" : "\n");
}

/// examples/flows beside the command's tree: where it was built, or where it is installed.
std::filesystem::path flow_folder() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  for (const char* place : {"../../../examples/flows", "../share/weir/examples/flows"})
    if (std::filesystem::is_directory(self / place, error)) return (self / place).lexically_normal();
  throw sim::ScenarioError("examples/flows is not beside the command (" + self.string() +
                           "); run it from its build tree");
}

std::string flow_ids() {
  std::vector<std::string> ids;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(flow_folder(), error))
    if (entry.path().extension() == ".toml") ids.push_back(entry.path().stem().string());
  std::sort(ids.begin(), ids.end());
  return fmt::format("{}", fmt::join(ids, ", "));
}

/// Runs the flow's scenario with a recording. What is not asked for otherwise: the calls of the function that the
/// scenario names.
void run_flow(const std::string& id, std::optional<uint64_t> seed, const std::string& kernel, const std::string& file,
              FlowPrint& how) {
  const std::filesystem::path path = flow_folder() / (id + ".toml");
  if (id.find('/') != std::string::npos || !std::filesystem::exists(path))
    throw sim::ScenarioError("there is no flow \"" + id + "\"; there are: " + flow_ids());
  const sim::Scenario scenario = sim::load_scenario(path.string());
  const sim::SimResult result = sim::run_scenario(scenario, {.seed = seed, .record = file, .kernel = kernel});
  for (const sim::Broken& b : result.broken) fmt::print(stderr, "weir flow: broken {}: {}\n", b.id, b.text);
  if (how.function.empty()) how.function = scenario.show;
  if (how.first == UINT64_MAX) how.first = 120;
}

/// Columns of the terminal; 160 where there is none.
unsigned terminal_width() {
  if (const char* columns = std::getenv("COLUMNS"); columns != nullptr && std::atoi(columns) > 0)
    return static_cast<unsigned>(std::atoi(columns));
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 160;
}

/// The flow under two kernels, side by side. 0: they are alike, 1: they differ, 2: one of them cannot be had.
int diff_kernels(const std::string& id, std::optional<uint64_t> seed, const std::string& kernel,
                 const std::string& other, FlowPrint how) {
  std::string text[2], title[2];
  how.results = Shown::no;  // frames and slots are other ones
  const std::string kernels[2] = {kernel, other};
  for (int i = 0; i < 2; ++i) {
    const TemporaryFile file;
    run_flow(id, seed, kernels[i], file.path(), how);
    const Recording recording = read_recording(file.path());
    if (recording.status == Recording::Status::refused) throw sim::ScenarioError(recording.problem);
    text[i] = print_flow(recording, how);
    for (const Recording::Fact& fact : recording.facts)
      if (fact.key == "kernel") title[i] = "kernel " + fact.value;
    if (text[i].empty())
      fmt::print(stderr, "weir flow: {}: nothing in it is asked for; --function says another call\n", title[i]);
  }
  const FlowDiff diff = diff_flows(text[0], text[1], title[0], title[1], terminal_width());
  std::fputs(diff.text.c_str(), stdout);
  return diff.differ ? 1 : 0;
}

}  // namespace

int cmd_flow(int argc, char** argv) {
  CLI::App app{"Prints a recording as call trees: who called whom, and what changed.", "weir flow"};
  app.footer(
      "Examples\n"
      "  weir sim examples/004.toml --record run.weir\n"
      "  weir flow --from run.weir --function do_swap_page --first 40\n"
      "  weir flow --from run.weir --task kswapd0 --depth 3 --no-states\n"
      "  weir flow --from run.weir --around 1200 --radius 30 --arguments --times\n"
      "  weir flow swap-out --kernel 2.6.20 --diff 4.14 --no-states\n"
      "\nExit status: 0; with --diff 1 when they differ; 1 when the recording is broken (what there is is shown); 2 "
      "when there is nothing to show.");
  std::string from;
  FlowPrint how;
  uint32_t around = 0;
  bool no_states = false, all_states = false, arguments = false, times = false, json = false, facts = false;
  std::string id, record, kernel, diff;
  uint64_t seed = 0;
  auto* id_option =
      app.add_option("ID", id, "a flow of the documents: runs examples/flows/ID.toml and shows what it recorded");
  auto* from_option =
      app.add_option("--from", from, "a recording that is there already")->type_name("FILE")->excludes(id_option);
  auto* seed_option = app.add_option("--seed", seed, "with ID: in place of the scenario's seed")->needs(id_option);
  auto* record_option =
      app.add_option("--record", record, "with ID: keeps the recording")->type_name("FILE")->needs(id_option);
  add_kernel_option(app, kernel, "with ID: whose rules hold, in place of the scenario's profile")->needs(id_option);
  auto* diff_option =
      add_kernel_option(app, diff, "with ID: this kernel's flow beside that of --kernel; what only one has is marked",
                        "--diff")
          ->needs(id_option);
  app.add_option("--task", how.task, "only this task: a tid or a name");
  app.add_option("--function", how.function, "only calls of this function, with what is below them");
  app.add_option("--depth", how.depth, "levels of calls below each root; deeper ones are counted")
      ->capture_default_str();
  app.add_option("--first", how.first, "so many lines")->type_name("N");
  auto* around_option =
      app.add_option("--around", around, "only what is near this event (its number in the recording)");
  app.add_option("--radius", how.radius, "how near: so many events before and after")
      ->needs(around_option)
      ->capture_default_str();
  auto* no_states_flag = app.add_flag("--no-states", no_states, "calls only, not what changed");
  app.add_flag("--all-states", all_states, "also the bookkeeping: page flags and counts, free lists, per-CPU lists")
      ->excludes(no_states_flag);
  app.add_flag("--arguments", arguments, "with the calls' arguments");
  app.add_flag("--times", times, "with times, in nanoseconds of the machine's clock");
  auto* facts_flag = app.add_flag(
      "--facts", facts, "what the recording says of the machine, its tasks and its snapshots, in place of the trees");
  auto* json_flag = app.add_flag("--json", json, "everything as JSON, in place of the trees")->excludes(facts_flag);
  diff_option->excludes(facts_flag)->excludes(json_flag)->excludes(record_option);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  if (around_option->count() != 0) how.around = around;
  how.states = no_states ? Shown::no : Shown::yes;
  how.bookkeeping = all_states ? Shown::yes : Shown::no;
  how.arguments = arguments ? Shown::yes : Shown::no;
  how.times = times ? Shown::yes : Shown::no;
  how.styles = explore::mm_styles();

  if (id_option->count() == 0 && from_option->count() == 0) {
    fmt::print(stderr, "weir flow: wants a flow's ID or --from FILE; there are: {}\n", flow_ids());
    return 2;
  }
  if (!diff.empty()) {
    try {
      return diff_kernels(id, seed_option->count() != 0 ? std::optional<uint64_t>(seed) : std::nullopt, kernel, diff,
                          how);
    } catch (const std::exception& e) {
      fmt::print(stderr, "weir flow: {}\n", e.what());
      return 2;
    }
  }
  std::optional<TemporaryFile> temporary;
  if (id_option->count() != 0) {
    try {
      from = record.empty() ? temporary.emplace().path() : record;
      run_flow(id, seed_option->count() != 0 ? std::optional<uint64_t>(seed) : std::nullopt, kernel, from, how);
    } catch (const std::exception& e) {
      fmt::print(stderr, "weir flow: {}\n", e.what());
      return 2;
    }
  }
  const Recording recording = read_recording(from);
  temporary.reset();
  if (recording.status == Recording::Status::refused) {
    fmt::print(stderr, "weir flow: {}\n", recording.problem);
    return 2;
  }
  int status = 0;
  if (json) {
    std::fputs(flow_json_text(recording, how.styles).c_str(), stdout);
  } else if (facts) {
    print_facts(recording);
  } else {
    const std::string text = print_flow(recording, how);
    std::fputs(text.c_str(), stdout);
    if (text.empty()) {
      fmt::print(stderr, "weir flow: {}: nothing in it is asked for; --facts lists its tasks\n", from);
      status = 2;
    }
  }
  if (recording.lost > 0) fmt::print(stderr, "weir flow: {}: {} events are missing in between\n", from, recording.lost);
  if (!recording.problem.empty()) fmt::print(stderr, "weir flow: {}\n", recording.problem);
  return recording.status == Recording::Status::broken ? 1 : status;
}

}  // namespace weir::cli
