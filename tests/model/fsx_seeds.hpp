// tests/model/fsx_seeds.hpp: a file exerciser's runs, seed by seed.
//
//   WEIR_LONG=1              10,000 of each kind      WEIR_SEEDS=500   so many      WEIR_SEED=17   one
//   WEIR_SOAK_SECONDS=3600   of each kind as many as that takes, with a line a minute
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "model/child.hpp"
#include "model/fsx.hpp"

namespace weir::model {

/// run(seed, totals) says what went wrong, or nothing.
template <class Run>
void run_seeds(const char* what, uint64_t seeds, Run&& run) {
  using Clock = std::chrono::steady_clock;
  const uint64_t soak = number_from_environment("WEIR_SOAK_SECONDS", 0);
  uint64_t first = 1;
  uint64_t last = number_from_environment("WEIR_SEEDS", std::getenv("WEIR_LONG") != nullptr ? 10000 : seeds);
  if (soak != 0) last = ~uint64_t{0};
  if (std::getenv("WEIR_SEED") != nullptr) first = last = number_from_environment("WEIR_SEED", 1);
  FsxTotals all;
  unsigned failed = 0;
  uint64_t seed = first;
  const Clock::time_point end = Clock::now() + std::chrono::seconds(soak);
  Clock::time_point told = Clock::now();
  const auto tell = [&] {
    std::printf(
        "fsx, %s: seeds %lu-%lu: %lu operations, %lu bytes compared, %lu errors, %lu fsyncs, %lu looks at the disk"
        " (%lu bytes promised)\n",
        what, first, seed - 1, all.ops, all.compared, all.errors, all.synced, all.looks, all.promised);
    std::fflush(stdout);
  };
  // What a run finds by itself is a failure of the test at once.
  const testing::TestResult& so_far = *testing::UnitTest::GetInstance()->current_test_info()->result();
  for (; seed <= last && failed < 3 && (soak == 0 || Clock::now() < end); ++seed) {
    if (soak != 0 && Clock::now() - told >= std::chrono::minutes(1)) {
      tell();
      told = Clock::now();
    }
    const int before = so_far.total_part_count();
    const std::string found = run(seed, all);
    if (found.empty() && so_far.total_part_count() == before) continue;
    ADD_FAILURE() << what << ", seed " << seed << ": " << found;
    ++failed;
  }
  tell();
  if (seed - first <= 20) return;
  EXPECT_GT(all.compared, 1'000'000u);  // a run that tests nothing must not pass
}

}  // namespace weir::model
