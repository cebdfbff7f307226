// tests/flows/flows_test.cpp
//
// Each held flow of the documents (held.txt), run on its scenario (examples/flows/ID.toml) and compared, step by step,
// with what the recording says; a flow of all eras under every profile.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <string>

#include "flows/conformance.hpp"
#include "mm/profile.hpp"
#include "places.hpp"
#include "record/reader.hpp"
#include "sim/simulation.hpp"

namespace weir::flows {
namespace {

const std::string FOLDER = std::string(WEIR_SOURCE_DIR) + "/tests/flows/";

/// What was shown of each flow; printed at the end, for `make conformance`.
class Totals final : public testing::Environment {
 public:
  static void add(const std::string& id, const std::string& kernel, const Verdict& verdict) {
    fmt::print("conformance  {:<28} {:<7} function steps {:>2}/{:<2}  state steps {:>2}/{:<2}{}\n", id, kernel,
               verdict.functions.shown, verdict.functions.of, verdict.states.shown, verdict.states.of,
               verdict.conforms ? "" : "  DOES NOT CONFORM");
    shown()[id] = verdict;  // of several profiles the last
  }
  void TearDown() override {
    if (shown().empty()) return;
    Shown functions, states;
    for (const auto& [id, verdict] : shown()) {
      functions.shown += verdict.functions.shown;
      states.shown += verdict.states.shown;
      functions.of += verdict.functions.of;
      states.of += verdict.states.of;
    }
    unsigned all_functions = 0, all_states = 0;
    for (const Flow& flow : table().flows()) {
      const auto [f, s] = required_steps(table(), flow);
      all_functions += f;
      all_states += s;
    }
    fmt::print("conformance  {} of {} flows: function steps {}/{} (of {} in all), state steps {}/{} (of {} in all)\n",
               shown().size(), table().flows().size(), functions.shown, functions.of, all_functions, states.shown,
               states.of, all_states);
  }

 private:
  static std::map<std::string, Verdict>& shown() {
    static std::map<std::string, Verdict> all;
    return all;
  }
};
[[maybe_unused]] const auto* const TOTALS = testing::AddGlobalTestEnvironment(new Totals);

class HeldFlow : public testing::TestWithParam<std::string> {
 protected:
  static void run(const std::string& id, const std::string& kernel) {
    const std::string file = testing::TempDir() + "flow-" + id + "-" + std::to_string(getpid()) + ".weir";
    const sim::Scenario scenario = sim::load_scenario(std::string(WEIR_SOURCE_DIR) + "/examples/flows/" + id + ".toml");
    const sim::SimResult result = sim::run_scenario(scenario, {.seed = std::nullopt, .record = file, .kernel = kernel});
    for (const sim::Broken& b : result.broken) ADD_FAILURE() << b.id << ": " << b.text;
    // Nothing in these scenarios is meant to fail but the hog that the OOM killer takes.
    for (const sim::TaskOutcome& t : result.tasks)
      if (t.name != "hog") {
        EXPECT_EQ(t.message, "") << t.name;
      }
    const Recording recording = read_recording(file);
    std::remove(file.c_str());
    const Verdict verdict = check(table(), id, std::span(&recording, 1));
    EXPECT_TRUE(verdict.conforms) << verdict.report;
    Totals::add(id, kernel.empty() ? scenario.kernel : kernel, verdict);
  }
};

TEST_P(HeldFlow, RunsAsTheDocumentsSay) {
  const std::string& id = GetParam();
  if (table().flow(id).profile != "any") return run(id, "");
  for (const Profile& profile : PROFILES) {
    SCOPED_TRACE(profile.name);
    run(id, profile.name);
  }
}

INSTANTIATE_TEST_SUITE_P(Documents, HeldFlow, testing::ValuesIn(held(FOLDER + "held.txt")),
                         [](const testing::TestParamInfo<std::string>& info) {
                           std::string name = info.param;
                           for (char& c : name)
                             if (c == '-') c = '_';
                           return name;
                         });

// A flow is run by the kernel that its document describes.
TEST(HeldFlows, RunUnderTheProfileOfTheirEra) {
  for (const std::string& id : held(FOLDER + "held.txt")) {
    const std::string& profile = table().flow(id).profile;
    if (profile == "any") continue;
    EXPECT_EQ(sim::load_scenario(std::string(WEIR_SOURCE_DIR) + "/examples/flows/" + id + ".toml").kernel, profile)
        << id;
  }
}

}  // namespace
}  // namespace weir::flows
