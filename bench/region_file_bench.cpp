// bench/region_file_bench.cpp: reading a file that is larger than the RAM, through a Region or the host's own mmap.
//
//   bench_region_file --file PATH --backend region|mmap --advice normal|random --pattern ur|sr|zr
//                     [--threads N] [--ram MIB] [--seconds S] [--delivery signal|thread]
//
// One access is a load of 8 bytes; u: pages uniformly at random, z: zipf with exponent 0.99, its pages scattered over
// the file, s: one after the other, each thread its part. All pages are touched once without advice, then accesses are
// made for half of `seconds`, counted for `seconds`, and timed one by one for half as long; those that take more than a
// microsecond are faults. One line of JSON.
// run_region_file_bench.py runs it beside mmap in a memory cgroup.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <x86intrin.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>

#include "table.hpp"
#include "weir/weir.hpp"

namespace {

using weir::bench::seconds_of;

constexpr uint64_t PAGE = 4096;

struct Settings {
  std::string file, backend = "region", advice = "normal", pattern = "ur", delivery = "signal";
  unsigned threads = 1;
  uint64_t ram = uint64_t{256} << 20;
  double seconds = 3;
};

uint64_t next(uint64_t& state) {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

/// Ranks from 0 on, the k-th as often as 1 / (k + 1)^0.99 (Gray and others, SIGMOD 1994).
class Zipf {
 public:
  explicit Zipf(uint64_t n) : n_(static_cast<double>(n)) {
    for (uint64_t i = 1; i <= n; ++i) zeta_ += 1 / std::pow(static_cast<double>(i), THETA);
    const double zeta2 = 1 + std::pow(0.5, THETA);
    eta_ = (1 - std::pow(2 / n_, 1 - THETA)) / (1 - zeta2 / zeta_);
  }
  [[nodiscard]] uint64_t rank(uint64_t random) const {
    const double u = static_cast<double>(random >> 11) * 0x1p-53, uz = u * zeta_;
    if (uz < 1) return 0;
    if (uz < 1 + std::pow(0.5, THETA)) return 1;
    return static_cast<uint64_t>((n_ - 1) * std::pow(eta_ * u - eta_ + 1, 1 / (1 - THETA)));
  }

 private:
  static constexpr double THETA = 0.99;
  double n_, zeta_ = 0, eta_ = 0;
};

struct Counted {
  uint64_t accesses = 0;
  std::vector<double> slow;  // microseconds of accesses above 1
};

Counted run(const char* memory, uint64_t pages, const Settings& s, const Zipf& zipf, unsigned thread, uint64_t seed,
            const std::atomic<bool>& stop, double us_per_tick) {
  Counted c;
  uint64_t state = (seed * 64 + thread) * 0x9e3779b97f4a7c15ull | 1, sink = 0;
  const uint64_t part = pages / s.threads;
  uint64_t at = 0;
  unsigned aux = 0;
  while (!stop.load(std::memory_order_relaxed)) {
    for (int i = 0; i < 16; ++i) {
      const uint64_t r = next(state);
      uint64_t page = 0;
      switch (s.pattern[0]) {
        case 'u': page = (r >> 20) % pages; break;
        case 'z': page = zipf.rank(r) * 0x9e3779b1 % pages; break;
        default: page = thread * part + at++ % part; break;
      }
      const auto* word = reinterpret_cast<const volatile uint64_t*>(memory + page * PAGE + (r & 511) * 8);
      if (us_per_tick == 0) {
        sink += *word;
      } else {
        const uint64_t before = __rdtscp(&aux);
        sink += *word;
        const double us = static_cast<double>(__rdtscp(&aux) - before) * us_per_tick;
        if (us > 1) c.slow.push_back(us);
      }
      ++c.accesses;
    }
  }
  if (sink == 42) std::putchar(0);
  return c;
}

Counted run_all(const char* memory, uint64_t pages, const Settings& s, const Zipf& zipf, uint64_t seed, double seconds,
                double us_per_tick, double* wall, double* cpu) {
  std::atomic<bool> stop{false};
  std::vector<Counted> parts(s.threads);
  const double start = seconds_of(CLOCK_MONOTONIC), cpu_start = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < s.threads; ++t)
    threads.emplace_back([&, t] { parts[t] = run(memory, pages, s, zipf, t, seed, stop, us_per_tick); });
  usleep(static_cast<useconds_t>(seconds * 1e6));
  stop = true;
  for (std::thread& t : threads) t.join();
  *wall = seconds_of(CLOCK_MONOTONIC) - start;
  *cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_start;
  Counted sum;
  for (const Counted& c : parts) {
    sum.accesses += c.accesses;
    sum.slow.insert(sum.slow.end(), c.slow.begin(), c.slow.end());
  }
  return sum;
}

double microseconds_per_tick() {
  unsigned aux = 0;
  const double start = seconds_of(CLOCK_MONOTONIC);
  const uint64_t ticks = __rdtscp(&aux);
  while (seconds_of(CLOCK_MONOTONIC) - start < 0.05) {
  }
  return (seconds_of(CLOCK_MONOTONIC) - start) * 1e6 / static_cast<double>(__rdtscp(&aux) - ticks);
}

double percentile(std::vector<double>& v, double q) {
  if (v.empty()) return 0;
  const auto at = std::min(v.size() - 1, static_cast<size_t>(static_cast<double>(v.size()) * q));
  std::nth_element(v.begin(), v.begin() + static_cast<ptrdiff_t>(at), v.end());
  return v[at];
}

Settings parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i], value = argv[i + 1];
    if (key == "--file")
      s.file = value;
    else if (key == "--backend")
      s.backend = value;
    else if (key == "--advice")
      s.advice = value;
    else if (key == "--pattern")
      s.pattern = value;
    else if (key == "--delivery")
      s.delivery = value;
    else if (key == "--threads")
      s.threads = static_cast<unsigned>(std::stoul(value));
    else if (key == "--ram")
      s.ram = std::stoull(value) << 20;
    else if (key == "--seconds")
      s.seconds = std::stod(value);
    else {
      std::fprintf(stderr, "bench_region_file: %s?\n", key.c_str());
      std::exit(2);
    }
  }
  return s;
}

}  // namespace

int main(int argc, char** argv) {
  const Settings s = parse(argc, argv);
  const int fd = open(s.file.c_str(), O_RDONLY);
  struct stat st {};
  if (fd < 0 || fstat(fd, &st) != 0 || st.st_size < static_cast<off_t>(PAGE)) {
    std::fprintf(stderr, "bench_region_file: %s cannot be read\n", s.file.c_str());
    return 1;
  }
  (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  const uint64_t size = static_cast<uint64_t>(st.st_size) / PAGE * PAGE;
  const int advice = s.advice == "random" ? MADV_RANDOM : MADV_NORMAL;
  std::optional<weir::Region> region;
  std::optional<weir::MappedFile> mapped;
  const char* memory = nullptr;
  if (s.backend == "region") {
    auto made = weir::Region::create(
        {.size = PAGE,
         .ram = s.ram,
         .swap = {"none"},
         .delivery = s.delivery == "thread" ? weir::RegionDelivery::thread : weir::RegionDelivery::signal});
    if (!made) {
      std::fprintf(stderr, "bench_region_file: %s\n", made.error().c_str());
      return 1;
    }
    region.emplace(std::move(*made));
    auto file = region->map_file(fd, 0, size, PROT_READ, MAP_SHARED);
    if (!file) {
      std::fprintf(stderr, "bench_region_file: %s\n", file.error().c_str());
      return 1;
    }
    mapped.emplace(std::move(*file));
    memory = static_cast<const char*>(mapped->data());
  } else {
    void* p = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) return 1;
    memory = static_cast<const char*>(p);
  }
  uint64_t sum = 0;
  for (uint64_t at = 0; at < size; at += PAGE) sum += static_cast<unsigned char>(memory[at]);
  if (sum == 42) std::putchar(0);
  if ((mapped ? mapped->advise(advice) : madvise(const_cast<char*>(memory), size, advice)) != 0) return 1;
  const Zipf zipf(size / PAGE);
  double wall = 0, cpu = 0, unused = 0;
  (void)run_all(memory, size / PAGE, s, zipf, 1, s.seconds / 2, 0, &unused, &unused);
  const Counted counted = run_all(memory, size / PAGE, s, zipf, 2, s.seconds, 0, &wall, &cpu);
  Counted timed = run_all(memory, size / PAGE, s, zipf, 3, s.seconds / 2, microseconds_per_tick(), &unused, &unused);
  const double n = static_cast<double>(counted.accesses), slow = static_cast<double>(timed.slow.size());
  double mean = 0;
  for (const double us : timed.slow) mean += us / slow;
  std::printf(
      "{\"backend\": \"%s\", \"advice\": \"%s\", \"pattern\": \"%s\", \"threads\": %u, \"us_per_access\": %.3f, "
      "\"cpu_us_per_access\": %.3f, \"faults_per_access\": %.4f, \"fault_mean\": %.2f, \"fault_p50\": %.2f, "
      "\"fault_p99\": %.2f}\n",
      s.backend.c_str(), s.advice.c_str(), s.pattern.c_str(), s.threads, wall * 1e6 * s.threads / n, cpu * 1e6 / n,
      slow / static_cast<double>(timed.accesses), mean, percentile(timed.slow, 0.5), percentile(timed.slow, 0.99));
  return 0;
}
