// src/sim/scenario.hpp
//
// A machine and what happens on it, as a TOML file says it. docs/scenario.md describes the format; examples/ has many.
//
//   [machine]  ram, cpus, seed, content, mmu …     [sysctl]  vm.swappiness …      [[disk]] [[swap]] [[file]]
//   [[task]]   name, start,
//              steps = [ { op = "mmap", area = "heap", size = "32M" }, { op = "touch", area = "heap" }, … ]
#pragma once

#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/units.hpp"

namespace weir::sim {

/// A scenario that cannot be run: what() says file, line, what is wrong and what would be right.
struct ScenarioError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class ContentMode { tagged, backed };
enum class MmuModel { hardware, uffd };

struct DiskConfig {
  std::string name;
  Bytes size{uint64_t{1} << 30};
  Nanos read_latency{80000}, write_latency{80000};
  Bytes bandwidth{uint64_t{500} << 20};  ///< a second
  unsigned queue_depth = 32;
  bool rotational = false;
  Nanos seek{};                            ///< rotational: of an average seek
  double read_error = 0, write_error = 0;  ///< probability of EIO a request
  Bytes block_size{0};                     ///< 0: no file system's table on it; else of its blocks
};

struct SwapConfig {
  int line = 0;
  std::string name;  ///< of swapon and swapoff; "swap0", "swap1" ... in order of appearance
  bool off = false;  ///< made, but left for a swapon step
  enum class Kind { zram, disk } kind = Kind::disk;
  std::string disk;                ///< kind disk: its name
  std::string algorithm = "lz4";   ///< kind zram
  Bytes size{0};                   ///< 0: disk: the rest of it; zram: the machine's RAM
  std::optional<Bytes> mem_limit;  ///< zram: of the pool
  int priority = -1;               ///< -1: in order of appearance
};

struct FileConfig {
  int line = 0;
  std::string name, disk;
  bool tmpfs = false;  ///< in memory and swap; no disk
  Bytes size{0};       ///< at the start (content: every page's own)
  Bytes max_size{0};   ///< may grow so far; 0: size
};

/// Memory of a device, to be mapped.
struct DeviceConfig {
  std::string name;
  Bytes size{0};
};

enum class Op {
  mmap,
  mmap_file,
  munmap,
  brk,
  malloc,
  touch,
  read,
  write,
  fsync,
  truncate,
  fallocate,
  drop_caches,
  madvise,
  mlock,
  mlock2,
  munlock,
  mlockall,
  munlockall,
  fork,
  sleep,
  exit,
  repeat,
  kmalloc,
  kfree,
  vmalloc,
  vfree,
  verify,
  ram,
  mremap,
  mprotect,
  wait,
  kill,
  swapon,
  swapoff,
  sysctl,
  oom_score_adj,
  oom_adj,
  nice,
  compute,
  hang,
  mem_limit,
  shm_lock,
  shm_unlock,
  mmap_device,
  remap_file_pages,
  flush_disk,
  fail_slab,
};
enum class Pattern { sequential, random, zipf, hot };

struct Step {
  Op op = Op::exit;
  int line = 0;
  std::string area;  ///< or the file's name
  Bytes size{0}, from{0};
  Bytes to{0};                                           ///< remap_file_pages: where in the file
  bool write = true;                                     ///< touch: store or load
  bool shared = false;                                   ///< mmap, mmap_file, mmap_device
  bool punch = false;                                    ///< fallocate
  bool onfault = false, current = true, future = false;  ///< mlock2, mlockall
  Pattern pattern = Pattern::sequential;
  uint64_t count = 0;   ///< touches (0: once a page); objects; times
  uint64_t values = 0;  ///< touch: so many different contents, the same for all tasks; 0: each store its own
  double theta = 0.99;  ///< zipf
  double hot_share = 0.1, hot_probability = 0.9;
  Nanos time{0};  ///< sleep; think time a touch
  int code = 0;
  int64_t value =
      0;             ///< sysctl, oom_score_adj, oom_adj, nice; swapon: priority; mprotect: VmFlag bits; madvise: Advice
  std::string name;  ///< fork: the child's; kill: the task's; swap areas; sysctl; disks, devices, slab caches
  std::vector<Step> body;  ///< fork: what the child does; repeat
};

struct TaskConfig {
  std::string name;
  Nanos start{0};
  int oom_score_adj = 0, oom_adj = 0;  ///< at most one of them is given
  int nice = 0;
  unsigned uid = 1000;  ///< 0: the superuser
  std::vector<Step> steps;
};

/// What [sysctl] and the step of that name take; ksm.*: files of /sys/kernel/mm/ksm.
struct Sysctl {
  const char* name;
  int64_t fallback, least, most;
};
inline constexpr Sysctl SYSCTLS[] = {
    {"vm.swappiness", 60, 0, 100},
    {"vm.page-cluster", 3, 0, 6},
    {"vm.min_free_kbytes", 0, 0, 1 << 20},
    {"vm.watermark_scale_factor", 10, 1, 1000},
    {"vm.dirty_background_ratio", 10, 0, 100},
    {"vm.dirty_ratio", 20, 0, 100},
    {"vm.panic_on_oom", 0, 0, 2},
    {"vm.oom_kill_allocating_task", 0, 0, 1},
    {"vm.oom_dump_tasks", 1, 0, 1},
    {"ksm.run", 0, 0, 2},
    {"ksm.pages_to_scan", 100, 1, 1 << 20},
    {"ksm.sleep_millisecs", 20, 0, 1 << 20},
};

struct Scenario {
  std::string path;
  std::string title;
  std::string show;  ///< the function whose calls `weir flow` prints; empty: all
  // [machine]
  Bytes ram{uint64_t{64} << 20};
  Bytes dma32{0};  ///< size of zone DMA32; 0: as hardware has it (4 GiB)
  unsigned cpus = 1;
  uint64_t seed = 1;
  std::string kernel = "4.14";
  ContentMode content = ContentMode::tagged;
  MmuModel mmu = MmuModel::hardware;
  unsigned preempt_one_in = 64;           ///< 0: threads switch only where they sleep
  std::map<std::string, int64_t> sysctl;  ///< all of SYSCTLS

  std::vector<DiskConfig> disks;
  std::vector<SwapConfig> swaps;
  std::vector<FileConfig> files;
  std::vector<DeviceConfig> devices;
  std::vector<TaskConfig> tasks;
  std::optional<Nanos> end;  ///< stop then, whatever runs
};

/// Reads a scenario. Unknown keys are errors. Throws ScenarioError.
Scenario load_scenario(const std::string& path);
Scenario parse_scenario(const std::string& text, const std::string& name);

}  // namespace weir::sim
