// tests/model/model_test.cpp
//
// Random operations on a machine and on a plain reference (run.hpp); whatever they do, what tasks see must be the same.
//
//   test_model                         some seeds of each kind
//   WEIR_LONG=1 test_model             10,000 of each, of 2,000 operations
//   WEIR_SEEDS=500 WEIR_OPS=2000 ...   so many
//   WEIR_SEEDS=501-1000 ...            these, so that a long run can be done in parts
//   WEIR_SEED=17 test_model            one seed (both kinds)
//   WEIR_SCRIPT=FILE test_model        a script as a failing run prints it
#include <fstream>

#include "model/child.hpp"

namespace weir::model {
namespace {

void report(const char* what, const Script& script, const Outcome& outcome) {
  const Script small = shrink(script, 90);
  const Outcome again = run_in_child(small);
  ADD_FAILURE() << what << ", seed " << script.config.seed << ": " << outcome.text
                << "\n\nmade smaller (save it, WEIR_SCRIPT=FILE runs it): " << again.text << "\n"
                << print(small);
}

void run_seeds(Mode mode, const char* what, uint64_t seeds) {
  const bool uffd = uffd_model_is_there();
  const bool all_night = std::getenv("WEIR_LONG") != nullptr;
  auto [first, last] = range_from_environment("WEIR_SEEDS", all_night ? 10000 : seeds);
  const uint64_t ops = number_from_environment("WEIR_OPS", all_night ? 2000 : 0);
  if (std::getenv("WEIR_SEED") != nullptr) first = last = number_from_environment("WEIR_SEED", 1);
  Totals all;
  unsigned failed = 0;
  uint64_t ran = 0;
  for (uint64_t seed = first; seed <= last && failed < 3; ++seed) {
    const Script script = script_of(seed, mode, uffd, ops);
    const Outcome outcome = run_in_child(script);
    ++ran;
    all.add(outcome.totals);
    if (outcome.good) continue;
    ++failed;
    report(what, script, outcome);
  }
  std::printf(
      "model, %s: seeds %lu-%lu (%lu ran, uffd model %s): %lu operations, %lu touches, %lu compared, verified %lu "
      "times; "
      "faults %lu cow %lu pswpin %lu pswpout %lu pgpgin %lu pgpgout %lu scanned %lu; killed %lu oom %lu errors %lu "
      "swapoff %lu merged %lu shared %lu\n",
      what, first, last, ran, uffd ? "too" : "not there", all.ops, all.touches, all.compared, all.verified, all.faults,
      all.cow, all.pswpin, all.pswpout, all.pgpgin, all.pgpgout, all.scans, all.kills, all.oom, all.errors,
      all.swapoffs, all.merged, all.shared);
  if (ran < 20) return;
  // A run that tests nothing must not pass.
  EXPECT_GT(all.pswpin, 1000u);
  EXPECT_GT(all.cow, 100u);
  EXPECT_GT(all.pgpgout, 1000u);
  EXPECT_GT(all.merged, 100u);
  EXPECT_GT(all.shared, 1000u);
}

TEST(Model, AgreesWithTheReference) { run_seeds(Mode::plain, "plain", 150); }
TEST(Model, AgreesWhereDevicesFailAndMemoryIsRefused) { run_seeds(Mode::failures, "failures", 100); }

TEST(Model, ReplaysAScript) {
  const char* file = std::getenv("WEIR_SCRIPT");
  std::string text;
  if (file != nullptr) {
    std::ifstream in(file);
    text.assign(std::istreambuf_iterator<char>(in), {});
    ASSERT_FALSE(text.empty()) << file;
  } else {
    text = print(script_of(1, Mode::plain, false));
  }
  const Script script = parse(text);
  EXPECT_EQ(print(parse(print(script))), print(script));
  const Outcome outcome = run_in_child(script);
  EXPECT_TRUE(outcome.good) << outcome.text;
}

}  // namespace
}  // namespace weir::model
