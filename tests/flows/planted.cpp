// tests/flows/planted.cpp
//
// A flow, run by a machine with a room in which one state change is left out (CMakeLists.txt says which): the flow is
// seen not to be the documents' any more, and verify() names what does not add up.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "flows/conformance.hpp"
#include "places.hpp"
#include "sim/simulation.hpp"

namespace weir::flows {
namespace {

TEST(PlantedFlow, IsNoticedByTheFlowAndByVerify) {
  const std::string file = testing::TempDir() + "planted-" + std::to_string(getpid()) + ".weir";
  sim::Scenario scenario =
      sim::load_scenario(std::string(WEIR_SOURCE_DIR) + "/examples/flows/" + WEIR_PLANTED_FLOW + ".toml");
  // Verified while the tasks sleep, their pages out.
  std::vector<sim::Step>& steps = scenario.tasks.at(0).steps;
  const auto pause =
      std::find_if(steps.begin(), steps.end(), [](const sim::Step& step) { return step.op == sim::Op::sleep; });
  ASSERT_NE(pause, steps.end());
  sim::Step verify;
  verify.op = sim::Op::verify;
  steps.insert(pause, verify);

  const sim::SimResult result = sim::run_scenario(scenario, {.seed = std::nullopt, .record = file, .kernel = ""});
  const Recording recording = read_recording(file);
  std::remove(file.c_str());
  const Verdict verdict = check(table(), WEIR_PLANTED_FLOW, std::span(&recording, 1));
  EXPECT_FALSE(verdict.conforms) << "a fault in " << WEIR_PLANTED << " goes unnoticed";
  const auto broken = std::find_if(result.broken.begin(), result.broken.end(),
                                   [](const sim::Broken& b) { return b.id == WEIR_PLANTED_INVARIANT; });
  ASSERT_NE(broken, result.broken.end()) << "verify() finds nothing wrong with " << WEIR_PLANTED_INVARIANT;
  std::printf("planted %s: %s; verify: %s\n", WEIR_PLANTED, verdict.report.c_str(), broken->text.c_str());
}

}  // namespace
}  // namespace weir::flows
