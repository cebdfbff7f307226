// bench/region_bench.cpp: touching a region that is larger than its RAM; or plain memory, for the kernel's own swap
// under a limit.
//
//   bench_region --backend region|plain --pattern ur|uw|sr|sw [--threads N] [--size MIB] [--ram MIB] [--seconds S]
//   [--delivery signal|thread]
//                [--swap SPEC]...
//
// A page's first half is random, the rest one word, so that it compresses to a little more than half. One access is a
// load (r) or store (w) of 8 bytes in the page's first half; u: pages uniformly at random, s: one after the other, each
// thread its part. First everything is written once and touched for a while; then accesses are counted for `seconds`;
// then they are timed one by one for as long, and those that take more than a microsecond count as faults. One line of
// JSON. run_region_bench.py runs it beside the kernel's zram.
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <x86intrin.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "weir/weir.hpp"

namespace {

constexpr size_t PAGE = 4096;

struct Settings {
  std::string backend = "region", pattern = "ur";
  unsigned threads = 1;
  uint64_t size = uint64_t{512} << 20, ram = uint64_t{256} << 20;
  double seconds = 3;
  weir::RegionDelivery delivery = weir::RegionDelivery::signal;
  std::vector<std::string> swap;
};

double seconds_of(clockid_t clock) {
  timespec ts{};
  clock_gettime(clock, &ts);
  return static_cast<double>(ts.tv_sec) + static_cast<double>(ts.tv_nsec) * 1e-9;
}

uint64_t next(uint64_t& state) {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

/// Which page is touched next: nothing but registers.
class Walk {
 public:
  Walk(const Settings& s, unsigned thread, uint64_t seed)
      : random_(s.pattern[0] == 'u'),
        first_(thread * pages(s) / s.threads),
        count_(pages(s) / s.threads),
        all_(pages(s)),
        state_(seed) {}
  uint64_t step() {
    const uint64_t r = next(state_);
    if (random_) return (r >> 20) % all_ * PAGE + (r & 255) * 8;
    const uint64_t page = first_ + at_;
    at_ = at_ + 1 == count_ ? 0 : at_ + 1;
    return page * PAGE + (r & 255) * 8;
  }
  static uint64_t pages(const Settings& s) { return s.size / PAGE; }

 private:
  bool random_;
  uint64_t first_, count_, all_, at_ = 0, state_;
};

struct Counted {
  uint64_t accesses = 0;
  std::vector<float> slow;  // microseconds of accesses above 1
};

uint64_t access(char* memory, uint64_t at, bool write, uint64_t value) {
  auto* word = reinterpret_cast<volatile uint64_t*>(memory + at);
  if (!write) return *word;
  *word = value;
  return 0;
}

Counted run(char* memory, const Settings& s, unsigned thread, uint64_t seed, std::atomic<bool>& stop, bool timed,
            double us_per_tick) {
  Counted c;
  Walk walk(s, thread, seed);
  const bool write = s.pattern[1] == 'w';
  uint64_t sink = 0;
  unsigned aux = 0;
  while (!stop.load(std::memory_order_relaxed)) {
    for (int i = 0; i < 64; ++i) {
      const uint64_t at = walk.step();
      if (!timed) {
        sink += access(memory, at, write, seed + c.accesses);
      } else {
        const uint64_t before = __rdtscp(&aux);
        sink += access(memory, at, write, seed + c.accesses);
        const double us = static_cast<double>(__rdtscp(&aux) - before) * us_per_tick;
        if (us > 1 && c.slow.size() < 20000000) c.slow.push_back(static_cast<float>(us));
      }
      ++c.accesses;
    }
  }
  if (sink == 42) std::putchar(0);
  return c;
}

Counted run_all(char* memory, const Settings& s, double seconds, bool timed, double us_per_tick, uint64_t seed,
                double* wall, double* cpu) {
  std::atomic<bool> stop{false};
  std::vector<Counted> parts(s.threads);
  const double start = seconds_of(CLOCK_MONOTONIC), cpu_start = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < s.threads; ++t)
    threads.emplace_back(
        [&, t] { parts[t] = run(memory, s, t, (seed + t) * 0x9e3779b97f4a7c15ull | 1, stop, timed, us_per_tick); });
  while (seconds_of(CLOCK_MONOTONIC) - start < seconds) {
    timespec ms{0, 5000000};
    nanosleep(&ms, nullptr);
  }
  stop = true;
  for (std::thread& t : threads) t.join();
  *wall = seconds_of(CLOCK_MONOTONIC) - start;
  *cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_start;
  Counted sum;
  for (Counted& c : parts) {
    sum.accesses += c.accesses;
    sum.slow.insert(sum.slow.end(), c.slow.begin(), c.slow.end());
  }
  return sum;
}

double percentile(std::vector<float>& v, double q) {
  if (v.empty()) return 0;
  const auto at = std::min(v.size() - 1, static_cast<size_t>(static_cast<double>(v.size()) * q));
  std::nth_element(v.begin(), v.begin() + static_cast<ptrdiff_t>(at), v.end());
  return v[at];
}

double microseconds_per_tick() {
  unsigned aux = 0;
  const double start = seconds_of(CLOCK_MONOTONIC);
  const uint64_t ticks = __rdtscp(&aux);
  while (seconds_of(CLOCK_MONOTONIC) - start < 0.05) {
  }
  return (seconds_of(CLOCK_MONOTONIC) - start) * 1e6 / static_cast<double>(__rdtscp(&aux) - ticks);
}

Settings parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i], value = argv[i + 1];
    if (key == "--backend")
      s.backend = value;
    else if (key == "--pattern")
      s.pattern = value;
    else if (key == "--threads")
      s.threads = static_cast<unsigned>(std::stoul(value));
    else if (key == "--size")
      s.size = std::stoull(value) << 20;
    else if (key == "--ram")
      s.ram = std::stoull(value) << 20;
    else if (key == "--seconds")
      s.seconds = std::stod(value);
    else if (key == "--delivery")
      s.delivery = value == "thread" ? weir::RegionDelivery::thread : weir::RegionDelivery::signal;
    else if (key == "--swap")
      s.swap.push_back(value);
    else {
      std::fprintf(stderr, "bench_region: %s?\n", key.c_str());
      std::exit(2);
    }
  }
  return s;
}

}  // namespace

int main(int argc, char** argv) {
  const Settings s = parse(argc, argv);
  std::optional<weir::Region> region;
  char* memory = nullptr;
  if (s.backend == "region") {
    auto made = weir::Region::create({.size = s.size, .ram = s.ram, .swap = s.swap, .delivery = s.delivery});
    if (!made) {
      std::fprintf(stderr, "bench_region: %s\n", made.error().c_str());
      return 1;
    }
    region.emplace(std::move(*made));
    memory = static_cast<char*>(region->data());
  } else {
    void* p = mmap(nullptr, s.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return 1;
    madvise(p, s.size, MADV_NOHUGEPAGE);
    memory = static_cast<char*>(p);
  }
  uint64_t state = 88172645463325252ull;
  const double fill_start = seconds_of(CLOCK_MONOTONIC);
  for (uint64_t page = 0; page < s.size / PAGE; ++page) {
    auto* words = reinterpret_cast<uint64_t*>(memory + page * PAGE);
    for (int i = 0; i < 256; ++i) words[i] = next(state);
    for (int i = 256; i < 512; ++i) words[i] = page;
  }
  const double fill = seconds_of(CLOCK_MONOTONIC) - fill_start;

  const double tick = microseconds_per_tick();
  double wall = 0, cpu = 0, wall_timed = 0, cpu_timed = 0;
  run_all(memory, s, std::min(1.5, s.seconds), false, tick, 1, &wall, &cpu);
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  const uint64_t majors_before = region ? region->stats().pgmajfault : static_cast<uint64_t>(before.ru_majflt);
  const Counted plain = run_all(memory, s, s.seconds, false, tick, 100, &wall, &cpu);
  getrusage(RUSAGE_SELF, &after);
  const uint64_t majors =
      (region ? region->stats().pgmajfault : static_cast<uint64_t>(after.ru_majflt)) - majors_before;
  Counted timed = run_all(memory, s, s.seconds, true, tick, 200, &wall_timed, &cpu_timed);
  double sum = 0;
  for (const float us : timed.slow) sum += us;

  const double thread_us = wall * s.threads * 1e6;
  std::printf(
      "{\"backend\": \"%s\", \"pattern\": \"%s\", \"threads\": %u, \"fill_us_per_page\": %.2f, \"accesses\": %llu, "
      "\"us_per_access\": %.3f, "
      "\"faults_per_access\": %.4f, \"us_per_fault\": %.2f, \"cpu_us_per_fault\": %.2f, \"fault_mean\": %.2f, "
      "\"fault_p50\": %.2f, "
      "\"fault_p90\": %.2f, \"fault_p99\": %.1f, \"fault_p999\": %.1f, \"cpu_seconds\": %.2f, \"wall_seconds\": %.2f",
      s.backend.c_str(), s.pattern.c_str(), s.threads, fill * 1e6 * PAGE / static_cast<double>(s.size),
      static_cast<unsigned long long>(plain.accesses), thread_us / static_cast<double>(plain.accesses),
      static_cast<double>(majors) / static_cast<double>(plain.accesses),
      majors != 0 ? thread_us / static_cast<double>(majors) : 0.0,
      majors != 0 ? cpu * 1e6 / static_cast<double>(majors) : 0.0,
      timed.slow.empty() ? 0.0 : sum / static_cast<double>(timed.slow.size()), percentile(timed.slow, .5),
      percentile(timed.slow, .9), percentile(timed.slow, .99), percentile(timed.slow, .999), cpu, wall);
  if (region) {
    const weir::RegionStats r = region->stats();
    std::printf(
        ", \"resident_mib\": %.1f, \"host_resident_mib\": %.1f, \"zram_mib\": %.1f, \"pswpin\": %llu, \"pswpout\": "
        "%llu, "
        "\"access_flag_fault\": %llu, \"swap_clean_drop\": %llu, \"allocstall\": %llu",
        static_cast<double>(r.resident_pages) / 256, static_cast<double>(r.host_resident_pages) / 256,
        static_cast<double>(r.zram_mem_used_total) / (1 << 20), static_cast<unsigned long long>(r.pswpin),
        static_cast<unsigned long long>(r.pswpout), static_cast<unsigned long long>(r.access_flag_fault),
        static_cast<unsigned long long>(r.swap_clean_drop), static_cast<unsigned long long>(r.allocstall));
  }
  std::printf("}\n");
}
