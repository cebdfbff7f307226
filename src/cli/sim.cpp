// src/cli/sim.cpp
//
// weir sim: runs a scenario and prints what became of it. Exit status: 0, 1 when an invariant does not hold or the
// machine panics, 2 for bad input.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <optional>

#include "base/parse.hpp"
#include "cli/temporary_file.hpp"
#include "cli/verbs.hpp"
#include "sim/simulation.hpp"

namespace weir::cli {

int cmd_sim(int argc, char** argv) {
  CLI::App app{
      "Runs a machine in virtual time, as a scenario says. The same scenario and seed give the same run, bit for bit.",
      "weir sim"};
  app.footer(
      "Examples\n"
      "  weir sim examples/004.toml\n"
      "  weir sim examples/004.toml --seed 7 --json out.json\n"
      "  weir sim examples/004.toml --record run.weir && weir flow --from run.weir --function do_swap_page\n"
      "  weir sim examples/000-swap.toml --explore page.html\n"
      "\nExit status: 0; 1 when an invariant does not hold or the machine panics; 2 when the scenario cannot be run.");
  std::string file, json, record, page, kernel;
  uint64_t seed = 0;
  bool quiet = false;
  app.add_option("FILE", file, "scenario (TOML; see docs/scenario.md)")->required();
  auto* seed_option =
      app.add_option("--seed", seed, "decides every choice that is left open, in place of the scenario's seed");
  app.add_option("--json", json, "writes the result as JSON (\"-\": standard output, and nothing else there)");
  app.add_option("--record", record, "writes every event, for weir flow and weir explore");
  app.add_option("--explore", page, "writes the run as a page to step through")->type_name("PAGE.html");
  add_kernel_option(app, kernel, "whose rules hold, in place of the scenario's profile");
  app.add_flag("--quiet", quiet, "prints nothing but what is broken");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : 2;
  }
  try {
    const sim::Scenario scenario = sim::load_scenario(file);
    sim::SimOptions options;
    if (seed_option->count() != 0) options.seed = seed;
    std::optional<TemporaryFile> temporary;
    if (!page.empty() && record.empty()) record = temporary.emplace().path();
    options.record = record;
    options.kernel = kernel;
    const sim::SimResult result = sim::run_scenario(scenario, options);
    if (json == "-") {
      std::fputs(sim::to_json(result).c_str(), stdout);
    } else {
      if (!quiet) {
        for (const std::string& line : result.log) fmt::print("{}\n", line);
        if (!result.log.empty()) fmt::print("\n");
        std::fputs(sim::summary(result).c_str(), stdout);
      }
      if (!json.empty()) {
        std::ofstream out(json, std::ios::binary);
        out << sim::to_json(result);
        out.close();
        if (!out) throw sim::ScenarioError("--json " + json + ": cannot be written");
      }
    }
    if (!page.empty()) explore_recording(record, page);
    if (!result.panic.empty()) fmt::print(stderr, "weir sim: Kernel panic - not syncing: {}\n", result.panic);
    for (const sim::Broken& b : result.broken) fmt::print(stderr, "weir sim: broken {}: {}\n", b.id, b.text);
    return result.panic.empty() && result.broken.empty() ? 0 : 1;
  } catch (const std::exception& e) {
    fmt::print(stderr, "weir sim: {}\n", e.what());
    return 2;
  }
}

}  // namespace weir::cli
