// bench/table.hpp
//
// Time by batches of operations, and a table of it. Every row has a ratio against the table's first row, the reference,
// which is measured in the same run: figures of different days and machines do not compare, ratios do.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

namespace weir::bench {

inline double seconds_of(clockid_t clock) {
  timespec ts{};
  clock_gettime(clock, &ts);
  return static_cast<double>(ts.tv_sec) + static_cast<double>(ts.tv_nsec) * 1e-9;
}

/// Nanoseconds an operation, one value a batch.
struct Sample {
  std::vector<double> batches;
  std::vector<double> cpu;
  double cpu_seconds = 0;  ///< of all of them

  [[nodiscard]] double mean() const {
    return std::accumulate(batches.begin(), batches.end(), 0.0) / static_cast<double>(batches.size());
  }
  [[nodiscard]] double median() const { return at(0.5, batches); }
  [[nodiscard]] double p99() const { return at(0.99, batches); }
  [[nodiscard]] double cpu_median() const { return at(0.5, cpu); }
  void add(const Sample& more) {
    batches.insert(batches.end(), more.batches.begin(), more.batches.end());
    cpu.insert(cpu.end(), more.cpu.begin(), more.cpu.end());
    cpu_seconds += more.cpu_seconds;
  }

 private:
  static double at(double share, std::vector<double> sorted) {
    std::sort(sorted.begin(), sorted.end());
    return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1))];
  }
};

/// Calls fn() `batches` times; each call does `operations`.
template <class Fn>
Sample measure(unsigned batches, uint64_t operations, Fn fn) {
  Sample sample;
  sample.batches.reserve(batches);
  sample.cpu.reserve(batches);
  const double each = 1e9 / static_cast<double>(operations);
  for (unsigned i = 0; i < batches; ++i) {
    const double start = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    fn();
    const double spent = seconds_of(CLOCK_THREAD_CPUTIME_ID) - cpu;
    sample.batches.push_back((seconds_of(CLOCK_MONOTONIC) - start) * each);
    sample.cpu.push_back(spent * each);
    sample.cpu_seconds += spent;
  }
  return sample;
}

class Table {
 public:
  explicit Table(const char* title) {
    std::printf("\n%s\n%-44s %9s %9s %9s %9s %9s %7s %8s\n", title, "", "mean ns", "median", "p99", "CPU ns", "M/s CPU",
                "CPU s", "x ref");
  }
  void row(const std::string& name, const Sample& sample) {
    if (reference_ == 0) reference_ = sample.cpu_median();
    std::printf("%-44s %9.1f %9.1f %9.1f %9.1f %9.2f %7.2f %8.2f\n", name.c_str(), sample.mean(), sample.median(),
                sample.p99(), sample.cpu_median(), 1e3 / sample.cpu_median(), sample.cpu_seconds,
                sample.cpu_median() / reference_);
    std::fflush(stdout);
  }

 private:
  double reference_ = 0;  ///< CPU time of the first row
};

/// Keeps the compiler from leaving out what makes `value`.
template <class T>
void keep(const T& value) {
  asm volatile("" : : "r,m"(value) : "memory");
}

/// xorshift64*: the same pages in every run.
class Random {
 public:
  explicit Random(uint64_t seed = 1) : x_(seed) {}
  uint64_t operator()() {
    x_ ^= x_ >> 12;
    x_ ^= x_ << 25;
    x_ ^= x_ >> 27;
    return x_ * 0x2545f4914f6cdd1dull;
  }
  uint64_t below(uint64_t n) { return (static_cast<unsigned __int128>((*this)()) * n) >> 64; }

 private:
  uint64_t x_;
};

}  // namespace weir::bench
