// tests/model/script.hpp
//
// What a run of the model test is: a machine (Config) and what its tasks do (Op, in rounds). Both follow from a seed;
// both can be printed and read back, so that a run that fails can be made smaller and kept.
//
//   config seed=17 ram=2048 cpus=2 ...
//   0 mmap 31 2 7          task 0: what numbers mean depends on what there is then, so any line may be left out
//   1 store 9 40 3
//   - round                all tasks end their part, the machine comes to rest and is verified
#pragma once

#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace weir::model {

struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) {
    const uint64_t x = next();
    return n == 0 ? 0 : x % n;
  }
};

// clang-format off
#define WEIR_MODEL_OPS(X)                                                                                              \
  X(round) X(mmap) X(mmap_file) X(munmap) X(mremap) X(mprotect) X(store) X(load) X(dontneed) X(mlock) X(munlock)       \
  X(brk) X(file_read) X(file_write) X(fsync) X(fork) X(birth) X(exit) X(kill) X(kmalloc) X(kfree) X(vmalloc)           \
  X(sleep) X(balloon) X(pin) X(swapoff) X(swapon) X(lazyfree) X(cold) X(pageout)            \
  X(mergeable) X(ksm) X(mmap_shared) X(mlockall) X(munlockall)
// clang-format on
enum class Kind : uint8_t {
#define X(k) k,
  WEIR_MODEL_OPS(X)
#undef X
      count
};
inline const char* const KIND_NAMES[] = {
#define X(k) #k,
    WEIR_MODEL_OPS(X)
#undef X
};

struct Op {
  Kind kind = Kind::round;
  unsigned task = 0;
  uint32_t a = 0, b = 0, c = 0;
};

enum class Swap : uint32_t { none, disk, zram, zram_and_disk };

/// All of it numbers, so that printing and reading are the same for all.
struct Config {
  uint64_t seed = 1;
  uint64_t ram = 2048;  ///< pages
  uint64_t two_zones = 0;
  uint64_t cpus = 1;
  uint64_t preempt = 0;  ///< one in
  uint64_t swap = 1;     ///< Swap
  uint64_t backed = 0;   ///< else tagged
  uint64_t uffd = 0;     ///< the MMU model
  uint64_t tasks = 2;    ///< most at a time
  uint64_t cluster = 3;  ///< vm.page-cluster
  uint64_t swappiness = 60;
  uint64_t io_errors = 0;  ///< percent of requests
  uint64_t no_memory = 0;  ///< percent of the times that memory is short nothing is done about it
  uint64_t pcp = 0;        ///< percpu_pagelist_fraction
  uint64_t kernel = 2;     ///< KernelEra
  uint64_t refusals = 0;   ///< uffd: at one call in so many the host says EAGAIN; ENOMEM 500 times less often

  template <class Fn>
  void each(Fn fn) {
    fn("seed", seed), fn("ram", ram), fn("two_zones", two_zones), fn("cpus", cpus), fn("preempt", preempt),
        fn("swap", swap);
    fn("backed", backed), fn("uffd", uffd), fn("tasks", tasks), fn("cluster", cluster), fn("swappiness", swappiness);
    fn("io_errors", io_errors), fn("no_memory", no_memory), fn("pcp", pcp), fn("refusals", refusals);
    fn("kernel", kernel);
  }
};

struct Script {
  Config config;
  std::vector<Op> ops;
};

/// What goes wrong on purpose.
enum class Mode { plain, failures };

/// `ops`: at least so many operations; 0: as the seed says, about 300.
inline Script script_of(uint64_t seed, Mode mode, bool uffd_there, uint64_t ops_wanted = 0) {
  Random r{seed * 0x100000001b3ull + static_cast<uint64_t>(mode)};
  Script s;
  Config& c = s.config;
  c.seed = seed;
  c.ram = 1024 + r.below(3) * 512;
  c.two_zones = r.below(2);
  if (c.two_zones != 0 && c.ram <= 1024) c.ram = 1536;
  c.cpus = 1 + r.below(4);
  c.preempt = uint64_t{4} << r.below(6);
  c.swap = r.below(8) == 0 ? 0 : 1 + r.below(3);
  c.backed = r.below(2);
  c.uffd = r.below(4) == 0 && uffd_there ? 1 : 0;
  c.tasks = r.below(2) == 0 ? 1 + r.below(4) : 1 + r.below(8);
  // The older kernels have no hardware but their own.
  c.kernel = r.below(2) == 0 || c.uffd != 0 ? 2 : r.below(3);
  c.cluster = r.below(2) == 0 ? 3 : r.below(5);
  c.swappiness = r.below(3) == 0 ? 1 + r.below(100) : 60;  // with 0 mapped file pages may stay and a task be killed
  c.pcp = r.below(2) == 0 ? 0 : 32 + r.below(200);
  if (mode == Mode::failures) {
    c.io_errors = r.below(3) == 0 ? 0 : 1 + r.below(8);
    c.no_memory = c.io_errors == 0 || r.below(2) == 0 ? 1 + r.below(30) : 0;
    if (c.uffd != 0) c.refusals = 2 + r.below(60);
  }
  // How often each kind is drawn. Each seed leaves some kinds out, so that others meet more often.
  std::vector<std::pair<Kind, unsigned>> weights = {
      {Kind::mmap, 14},   {Kind::mmap_file, 8},   {Kind::munmap, 5},     {Kind::mremap, 4},     {Kind::mprotect, 6},
      {Kind::store, 30},  {Kind::load, 25},       {Kind::dontneed, 4},   {Kind::mlock, 3},      {Kind::munlock, 3},
      {Kind::brk, 4},     {Kind::file_read, 6},   {Kind::file_write, 6}, {Kind::fsync, 2},      {Kind::fork, 4},
      {Kind::birth, 2},   {Kind::exit, 2},        {Kind::kill, 1},       {Kind::kmalloc, 3},    {Kind::kfree, 2},
      {Kind::vmalloc, 1}, {Kind::sleep, 4},       {Kind::balloon, 1},    {Kind::pin, 3},        {Kind::swapoff, 2},
      {Kind::swapon, 3},  {Kind::lazyfree, 4},    {Kind::cold, 2},       {Kind::pageout, 3},    {Kind::mergeable, 4},
      {Kind::ksm, 5},     {Kind::mmap_shared, 6}, {Kind::mlockall, 1},   {Kind::munlockall, 2},
  };
  unsigned all = 0;
  for (auto& [kind, weight] : weights) {
    const bool always = kind == Kind::mmap || kind == Kind::store || kind == Kind::load;
    if (!always && r.below(4) == 0) weight = 0;
    all += weight;
  }
  const uint64_t rounds = 8 + r.below(10);
  for (uint64_t n = 0; n < rounds || s.ops.size() - n < ops_wanted; ++n) {
    const uint64_t ops = 10 + r.below(30);
    for (uint64_t i = 0; i < ops; ++i) {
      uint64_t at = r.below(all);
      size_t which = 0;
      while (at >= weights[which].second) at -= weights[which++].second;
      s.ops.push_back({weights[which].first, static_cast<unsigned>(r.below(8)), static_cast<uint32_t>(r.next()),
                       static_cast<uint32_t>(r.next()), static_cast<uint32_t>(r.next())});
    }
    s.ops.push_back({});
  }
  return s;
}

inline std::string print(Script s) {
  std::ostringstream out;
  out << "config";
  s.config.each([&](const char* name, uint64_t value) { out << ' ' << name << '=' << value; });
  out << '\n';
  for (const Op& op : s.ops) {
    if (op.kind == Kind::round)
      out << "- round\n";
    else
      out << op.task << ' ' << KIND_NAMES[static_cast<unsigned>(op.kind)] << ' ' << op.a << ' ' << op.b << ' ' << op.c
          << '\n';
  }
  return out.str();
}

/// Reads what print() printed; lines it does not know are passed over.
inline Script parse(const std::string& text) {
  Script s;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string first;
    words >> first;
    if (first == "config") {
      std::map<std::string, uint64_t> values;
      for (std::string pair; words >> pair;)
        if (const size_t eq = pair.find('='); eq != std::string::npos)
          values[pair.substr(0, eq)] = std::stoull(pair.substr(eq + 1));
      s.config.each([&](const char* name, uint64_t& value) {
        if (values.contains(name)) value = values[name];
      });
    } else if (first == "-") {
      s.ops.push_back({});
    } else if (!first.empty() && first.find_first_not_of("0123456789") == std::string::npos) {
      std::string name;
      Op op;
      op.task = static_cast<unsigned>(std::stoul(first));
      words >> name >> op.a >> op.b >> op.c;
      for (unsigned k = 0; k < static_cast<unsigned>(Kind::count); ++k)
        if (name == KIND_NAMES[k]) op.kind = static_cast<Kind>(k);
      s.ops.push_back(op);
    }
  }
  return s;
}

}  // namespace weir::model
