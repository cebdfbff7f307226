// tests/flows/flows_test.cpp
//
// Each held flow of the documents, run on its scenario (examples/flows/ID.toml) and compared, step by step, with what
// the recording says.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "flows/conformance.cpp"
#include "record/reader.hpp"
#include "sim/simulation.hpp"

namespace weir::flows {
namespace {

class HeldFlow : public testing::TestWithParam<const char*> {};

TEST_P(HeldFlow, RunsAsTheDocumentsSay) {
  const std::string id = GetParam();
  const std::string file = testing::TempDir() + "flow-" + id + "-" + std::to_string(getpid()) + ".weir";
  const sim::Scenario scenario = sim::load_scenario(std::string(WEIR_SOURCE_DIR) + "/examples/flows/" + id + ".toml");
  sim::SimOptions options;
  options.record = file;
  const sim::SimResult result = sim::run_scenario(scenario, options);
  for (const sim::Broken& b : result.broken) ADD_FAILURE() << b.id << ": " << b.text;
  // Nothing in these scenarios is meant to fail but the hog that the OOM killer takes.
  for (const sim::TaskOutcome& t : result.tasks)
    if (t.name != "hog") {
      EXPECT_EQ(t.message, "") << t.name;
    }
  const Recording recording = read_recording(file);
  std::remove(file.c_str());
  EXPECT_TRUE(conforms(id, recording));
}

INSTANTIATE_TEST_SUITE_P(Documents, HeldFlow,
                         testing::Values("kswapd", "anon-fault-4-14", "add-to-swap", "oom-4-14", "user-request",
                                         "kernel-request", "alloc-path", "kmalloc", "mmap-brk-fault", "page-cache-read",
                                         "dirty-throttle", "reclaim", "swap-system", "swap-cache-ops", "swapoff",
                                         "swapon", "swap-address-space-init", "zram-write"),
                         [](const testing::TestParamInfo<const char*>& info) {
                           std::string name = info.param;
                           for (char& c : name)
                             if (c == '-') c = '_';
                           return name;
                         });

}  // namespace
}  // namespace weir::flows
