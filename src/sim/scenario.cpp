// src/sim/scenario.cpp: TOML to Scenario. See scenario.hpp
#include "sim/scenario.hpp"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "base/parse.hpp"
#include "block/sim_disk.hpp"
#include "mm/inode.hpp"
#include "mm/mmap.hpp"
#include "mm/oom_kill.hpp"
#include "mm/profile.hpp"
#include "mm/swapfile_unuse.hpp"

namespace weir::sim {

namespace {

const std::map<std::string, Op, std::less<>> OPS = {
    {"mmap", Op::mmap},
    {"mmap-file", Op::mmap_file},
    {"munmap", Op::munmap},
    {"brk", Op::brk},
    {"malloc", Op::malloc},
    {"touch", Op::touch},
    {"read", Op::read},
    {"write", Op::write},
    {"fsync", Op::fsync},
    {"truncate", Op::truncate},
    {"fallocate", Op::fallocate},
    {"drop-caches", Op::drop_caches},
    {"madvise", Op::madvise},
    {"mlock", Op::mlock},
    {"mlock2", Op::mlock2},
    {"munlock", Op::munlock},
    {"mlockall", Op::mlockall},
    {"munlockall", Op::munlockall},
    {"fork", Op::fork},
    {"sleep", Op::sleep},
    {"exit", Op::exit},
    {"repeat", Op::repeat},
    {"kmalloc", Op::kmalloc},
    {"kfree", Op::kfree},
    {"vmalloc", Op::vmalloc},
    {"vfree", Op::vfree},
    {"verify", Op::verify},
    {"ram", Op::ram},
    {"mremap", Op::mremap},
    {"mprotect", Op::mprotect},
    {"wait", Op::wait},
    {"kill", Op::kill},
    {"swapon", Op::swapon},
    {"swapoff", Op::swapoff},
    {"sysctl", Op::sysctl},
    {"oom_score_adj", Op::oom_score_adj},
    {"oom_adj", Op::oom_adj},
    {"nice", Op::nice},
    {"compute", Op::compute},
    {"hang", Op::hang},
    {"mem-limit", Op::mem_limit},
    {"shm-lock", Op::shm_lock},
    {"shm-unlock", Op::shm_unlock},
    {"mmap-device", Op::mmap_device},
    {"remap-file-pages", Op::remap_file_pages},
    {"flush-disk", Op::flush_disk},
    {"fail-slab", Op::fail_slab},
};
const std::map<std::string, Advice, std::less<>> ADVICES = {
    {"normal", Advice::normal},
    {"random", Advice::random},
    {"sequential", Advice::sequential},
    {"willneed", Advice::willneed},
    {"dontneed", Advice::dontneed},
    {"free", Advice::free},
    {"cold", Advice::cold},
    {"pageout", Advice::pageout},
    {"mergeable", Advice::mergeable},
    {"unmergeable", Advice::unmergeable},
};
const std::map<std::string, int64_t, std::less<>> RIGHTS = {{"none", 0}, {"r", VM_READ}, {"rw", VM_READ | VM_WRITE}};
const std::map<std::string, Pattern, std::less<>> PATTERNS = {
    {"sequential", Pattern::sequential}, {"random", Pattern::random}, {"zipf", Pattern::zipf}, {"hot", Pattern::hot}};

template <class Map>
std::string keys_of(const Map& map) {
  std::string all;
  for (const auto& [name, value] : map) all += (all.empty() ? "" : ", ") + std::string(name);
  return all;
}

/// One table of the file: every key is asked for once, what was not asked for is an error.
class Table {
 public:
  Table(const toml::table& table, const std::string& file, std::string what)
      : table_(table), file_(file), what_(std::move(what)) {}

  [[noreturn]] void fail(const std::string& key, const std::string& why) const {
    const toml::node* node = table_.get(key);
    const auto line = node != nullptr ? node->source().begin.line : table_.source().begin.line;
    throw ScenarioError(fmt::format("{}:{}: {}: {}{}", file_, line, what_, key.empty() ? "" : key + ": ", why));
  }
  [[nodiscard]] int line() const { return static_cast<int>(table_.source().begin.line); }

  std::string text(const std::string& key, std::optional<std::string> fallback) {
    return get<std::string>(key, std::move(fallback), "a string");
  }
  bool boolean(const std::string& key, bool fallback) { return get<bool>(key, fallback, "true or false"); }
  int64_t integer(const std::string& key, std::optional<int64_t> fallback, int64_t least, int64_t most) {
    const int64_t v = get<int64_t>(key, fallback, "a whole number");
    if (v < least || v > most) fail(key, fmt::format("{} is not in {} … {}", v, least, most));
    return v;
  }
  double real(const std::string& key, double fallback, double least, double most) {
    used_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) return fallback;
    const std::optional<double> v = node->value<double>();
    if (!v || *v < least || *v > most) fail(key, fmt::format("wants a number from {} to {}", least, most));
    return *v;
  }
  Bytes size(const std::string& key, std::optional<Bytes> fallback, Bytes whole = Bytes(0)) {
    used_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) {
      if (!fallback) fail("", "\"" + key + "\" is missing (a size, like \"64M\")");
      return *fallback;
    }
    if (const auto n = node->value_exact<int64_t>(); n && *n >= 0) return Bytes(static_cast<uint64_t>(*n));
    const auto s = node->value_exact<std::string>();
    const std::optional<Bytes> bytes = s ? parse_size(*s, whole) : std::nullopt;
    if (!bytes) fail(key, std::string("wants a size, like \"64M\" or \"4G\"") + (whole.v != 0 ? " or \"50%\"" : ""));
    return *bytes;
  }
  Nanos time(const std::string& key, std::optional<Nanos> fallback) {
    used_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) {
      if (!fallback) fail("", "\"" + key + "\" is missing (a time, like \"200ms\")");
      return *fallback;
    }
    const auto s = node->value_exact<std::string>();
    const std::optional<Nanos> t = s ? parse_duration(*s) : std::nullopt;
    if (!t) fail(key, "wants a time, like \"200ms\", \"50us\" or \"2s\"");
    return *t;
  }
  template <class Map>
  typename Map::mapped_type choice(const std::string& key, const Map& map, std::optional<std::string> fallback) {
    const std::string v = text(key, std::move(fallback));
    const auto it = map.find(v);
    if (it == map.end()) fail(key, fmt::format("\"{}\" is none of: {}", v, keys_of(map)));
    return it->second;
  }
  [[nodiscard]] bool has(const std::string& key) const { return table_.contains(key); }
  const toml::array* array(const std::string& key) {
    used_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) return nullptr;
    if (!node->is_array()) fail(key, "wants an array");
    return node->as_array();
  }
  const toml::table* table(const std::string& key) {
    used_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) return nullptr;
    if (!node->is_table()) fail(key, "wants a table");
    return node->as_table();
  }
  /// Throws for every key that nobody asked for.
  void done() const {
    for (const auto& [key, node] : table_)
      if (!used_.contains(std::string(key.str()))) fail(std::string(key.str()), "is not a key that is known here");
  }

 private:
  template <class T>
  T get(const std::string& key, std::optional<T> fallback, const char* wanted) {
    used_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) {
      if (!fallback) fail("", fmt::format("\"{}\" is missing ({})", key, wanted));
      return *fallback;
    }
    const std::optional<T> v = node->value_exact<T>();
    if (!v) fail(key, std::string("wants ") + wanted);
    return *v;
  }

  const toml::table& table_;
  const std::string& file_;
  std::string what_;
  std::set<std::string> used_;
};

std::vector<Step> steps_of(Table& owner, const std::string& key, const std::string& file, Bytes ram, int depth);

Step step_of(const toml::node& node, const std::string& file, Bytes ram, int depth) {
  if (!node.is_table())
    throw ScenarioError(fmt::format("{}:{}: a step is a table, like {{ op = \"touch\", area = \"heap\" }}", file,
                                    node.source().begin.line));
  Table t(*node.as_table(), file, "step");
  Step s;
  s.line = t.line();
  s.op = t.choice("op", OPS, std::nullopt);
  const std::optional<Bytes> none;
  const Bytes all{0};
  switch (s.op) {
    case Op::mmap:
    case Op::malloc:
    case Op::vmalloc:
      s.area = t.text("area", std::nullopt);
      s.size = t.size("size", none, ram);
      if (s.op == Op::mmap) s.shared = t.boolean("shared", false);
      break;
    case Op::brk:
      s.area = t.text("area", "heap");
      s.size = t.size("size", none, ram);
      break;
    case Op::mmap_file:
      s.area = t.text("area", std::nullopt);
      s.name = t.text("file", std::nullopt);
      s.from = t.size("from", all);
      s.size = t.size("size", none, ram);
      s.shared = t.boolean("shared", false);
      s.write = t.boolean("write", true);
      break;
    case Op::mmap_device:
      s.area = t.text("area", std::nullopt);
      s.name = t.text("device", std::nullopt);
      s.from = t.size("from", all);
      s.size = t.size("size", none, ram);
      s.shared = t.boolean("shared", true);
      break;
    case Op::remap_file_pages:
      s.area = t.text("area", std::nullopt);
      s.from = t.size("from", all);
      s.size = t.size("size", none);
      s.to = t.size("to", none);
      break;
    case Op::flush_disk: s.name = t.text("disk", std::nullopt); break;
    case Op::fail_slab:
      s.name = t.text("cache", std::nullopt);
      s.count = static_cast<uint64_t>(t.integer("times", 1, 1, 1000000));
      break;
    case Op::munmap:
    case Op::mlock:
    case Op::mlock2:
    case Op::munlock:
    case Op::madvise:
      s.area = t.text("area", std::nullopt);
      s.from = t.size("from", all);
      s.size = t.size("size", all);
      if (s.op == Op::madvise) s.value = static_cast<int64_t>(t.choice("advice", ADVICES, "dontneed"));
      if (s.op == Op::mlock2) s.onfault = t.boolean("onfault", true);
      break;
    case Op::mlockall:
      s.current = t.boolean("current", true);
      s.future = t.boolean("future", false);
      s.onfault = t.boolean("onfault", false);
      if (!s.current && !s.future) t.fail("current", "nothing is locked: give current or future");
      break;
    case Op::vfree:
    case Op::kfree: s.area = t.text("area", std::nullopt); break;
    case Op::touch:
      s.area = t.text("area", std::nullopt);
      s.from = t.size("from", all);
      s.size = t.size("size", all);
      s.write = t.boolean("write", true);
      s.pattern = t.choice("pattern", PATTERNS, "sequential");
      s.count = static_cast<uint64_t>(t.integer("count", 0, 0, INT64_MAX));
      s.theta = t.real("theta", 0.99, 0.01, 5.0);
      s.hot_share = t.real("hot-share", 0.1, 0.0001, 1.0);
      s.hot_probability = t.real("hot-probability", 0.9, 0.0, 1.0);
      s.time = t.time("think", Nanos(0));
      s.values = static_cast<uint64_t>(t.integer("values", 0, 0, INT64_MAX));
      break;
    case Op::read:
    case Op::write:
      s.area = t.text("file", std::nullopt);
      s.from = t.size("from", all);
      s.size = t.size("size", none, ram);
      s.count = static_cast<uint64_t>(t.integer("count", 1, 1, 1000000));
      break;
    case Op::truncate:
      s.area = t.text("file", std::nullopt);
      s.size = t.size("size", none, ram);
      if (s.size.v % PAGE_SIZE != 0) t.fail("size", "whole pages: a multiple of 4K");
      break;
    case Op::fallocate:
      s.area = t.text("file", std::nullopt);
      s.from = t.size("from", all);
      s.size = t.size("size", none, ram);
      s.punch = t.boolean("punch", false);
      if (s.punch && (s.from.v | s.size.v) % PAGE_SIZE != 0) t.fail("size", "a hole is whole pages: a multiple of 4K");
      break;
    case Op::fsync:
    case Op::shm_lock:
    case Op::shm_unlock: s.area = t.text("file", std::nullopt); break;
    case Op::fork:
      s.name = t.text("name", "child");
      s.body = steps_of(t, "steps", file, ram, depth);
      break;
    case Op::repeat:
      s.count = static_cast<uint64_t>(t.integer("times", std::nullopt, 1, 1000000));
      s.body = steps_of(t, "steps", file, ram, depth);
      break;
    case Op::sleep: s.time = t.time("for", std::nullopt); break;
    case Op::exit: s.code = static_cast<int>(t.integer("code", 0, 0, 255)); break;
    case Op::kmalloc:
      s.area = t.text("area", std::nullopt);
      s.size = t.size("size", none);
      s.count = static_cast<uint64_t>(t.integer("count", 1, 1, 10000000));
      break;
    case Op::ram: s.size = t.size("size", none, ram); break;
    case Op::verify:
    case Op::munlockall:
    case Op::drop_caches:
    case Op::wait: break;
    case Op::mremap:
      s.area = t.text("area", std::nullopt);
      s.size = t.size("size", none, ram);
      if (s.size.v == 0) t.fail("size", "an area has at least a page");
      break;
    case Op::mprotect:
      s.area = t.text("area", std::nullopt);
      s.from = t.size("from", all);
      s.size = t.size("size", all);
      s.value = t.choice("rights", RIGHTS, std::nullopt);
      break;
    case Op::kill: s.name = t.text("task", std::nullopt); break;
    case Op::swapon:
      s.name = t.text("swap", std::nullopt);
      s.value = t.integer("priority", -1, -1, SWAP_PRIO_MAX);
      break;
    case Op::swapoff: s.name = t.text("swap", std::nullopt); break;
    case Op::mem_limit:
      s.name = t.text("swap", std::nullopt);
      s.size = t.size("size", none, ram);
      break;
    case Op::sysctl: {
      s.name = t.text("name", std::nullopt);
      const Sysctl* found = nullptr;
      std::string names;
      for (const Sysctl& one : SYSCTLS) {
        if (s.name == one.name) found = &one;
        names += (names.empty() ? "" : ", ") + std::string(one.name);
      }
      if (found == nullptr) t.fail("name", "is one of: " + names);
      s.value = t.integer("value", std::nullopt, found->least, found->most);
      break;
    }
    case Op::oom_score_adj: s.value = t.integer("value", std::nullopt, OOM_SCORE_ADJ_MIN, OOM_SCORE_ADJ_MAX); break;
    case Op::oom_adj: s.value = t.integer("value", std::nullopt, OOM_DISABLE, OOM_ADJUST_MAX); break;
    case Op::nice: s.value = t.integer("value", std::nullopt, -20, 19); break;
    case Op::compute:
    case Op::hang: s.time = t.time("for", std::nullopt); break;
  }
  t.done();
  return s;
}

std::vector<Step> steps_of(Table& owner, const std::string& key, const std::string& file, Bytes ram, int depth) {
  if (depth > 16) owner.fail(key, "steps are nested more than 16 deep");
  std::vector<Step> steps;
  const toml::array* list = owner.array(key);
  if (list == nullptr) owner.fail("", "\"" + key + "\" is missing (an array of steps)");
  for (const toml::node& node : *list) steps.push_back(step_of(node, file, ram, depth + 1));
  return steps;
}

template <class Fn>
void each(Table& root, const std::string& key, const std::string& file, Fn fn) {
  const toml::array* list = root.array(key);
  if (list == nullptr) return;
  for (const toml::node& node : *list) {
    if (!node.is_table()) root.fail(key, "wants tables: [[" + key + "]]");
    Table t(*node.as_table(), file, key);
    fn(t);
    t.done();
  }
}

/// Everything that kmalloc and vmalloc name, in whatever task: the kernel's memory is everybody's.
void kernel_areas(const std::vector<Step>& steps, std::set<std::string>& names) {
  for (const Step& step : steps) {
    if (step.op == Op::kmalloc || step.op == Op::vmalloc) names.insert(step.area);
    kernel_areas(step.body, names);
  }
}

/// The names of all tasks, forked ones too.
void task_names(const std::vector<Step>& steps, std::set<std::string>& names) {
  for (const Step& step : steps) {
    if (step.op == Op::fork) names.insert(step.name);
    task_names(step.body, names);
  }
}

/// A step names what an earlier step of its task (or of the task that it was forked from) has made.
void check_names(const Scenario& s, const std::vector<Step>& steps, std::set<std::string>& areas,
                 const std::set<std::string>& kernel, const std::set<std::string>& tasks) {
  const auto fail = [&](const Step& step, const std::string& why) {
    throw ScenarioError(fmt::format("{}:{}: step: {}", s.path, step.line, why));
  };
  const auto known_file = [&](const Step& step, const std::string& name) {
    if (std::none_of(s.files.begin(), s.files.end(), [&](const FileConfig& f) { return f.name == name; }))
      fail(step, "there is no [[file]] named \"" + name + "\"");
  };
  for (const Step& step : steps) {
    switch (step.op) {
      case Op::mmap_device:
        if (std::none_of(s.devices.begin(), s.devices.end(),
                         [&](const DeviceConfig& d) { return d.name == step.name; }))
          fail(step, "there is no [[device]] named \"" + step.name + "\"");
        areas.insert(step.area);
        break;
      case Op::flush_disk:
        if (std::none_of(s.disks.begin(), s.disks.end(),
                         [&](const DiskConfig& d) { return d.name == step.name && d.block_size.v != 0; }))
          fail(step, "there is no [[disk]] named \"" + step.name + "\" with a block-size");
        break;
      case Op::mmap_file: known_file(step, step.name); [[fallthrough]];
      case Op::mmap:
      case Op::malloc:
      case Op::brk: areas.insert(step.area); break;
      case Op::read:
      case Op::write:
      case Op::truncate:
      case Op::fallocate:
      case Op::fsync: known_file(step, step.area); break;
      case Op::shm_lock:
      case Op::shm_unlock:
        if (std::none_of(s.files.begin(), s.files.end(),
                         [&](const FileConfig& f) { return f.name == step.area && f.tmpfs; }))
          fail(step, "there is no [[file]] named \"" + step.area + "\" with tmpfs = true");
        break;
      case Op::touch:
      case Op::munmap:
      case Op::madvise:
      case Op::mlock:
      case Op::mlock2:
      case Op::munlock:
      case Op::mremap:
      case Op::mprotect:
      case Op::remap_file_pages:
        if (!areas.contains(step.area))
          fail(step,
               "the task has no area \"" + step.area + "\" yet: mmap, malloc, brk, mmap-file or mmap-device makes one");
        break;
      case Op::kfree:
      case Op::vfree:
        if (!kernel.contains(step.area)) fail(step, "nothing makes \"" + step.area + "\": kmalloc or vmalloc does");
        break;
      case Op::fork: {
        std::set<std::string> inherited = areas;
        check_names(s, step.body, inherited, kernel, tasks);
        break;
      }
      case Op::repeat: check_names(s, step.body, areas, kernel, tasks); break;
      case Op::kill:
        if (!tasks.contains(step.name)) fail(step, "there is no task \"" + step.name + "\"");
        break;
      case Op::swapon:
      case Op::swapoff:
      case Op::mem_limit: {
        const auto it =
            std::find_if(s.swaps.begin(), s.swaps.end(), [&](const SwapConfig& w) { return w.name == step.name; });
        if (it == s.swaps.end()) fail(step, "there is no [[swap]] named \"" + step.name + "\"");
        if (step.op == Op::mem_limit && it->kind != SwapConfig::Kind::zram)
          fail(step, "\"" + step.name + "\" is on a disk: zram has a mem-limit");
        break;
      }
      default: break;
    }
  }
}

Scenario scenario_of(const toml::table& tree, const std::string& file) {
  Scenario s;
  s.path = file;
  Table root(tree, file, "scenario");
  s.title = root.text("title", "");
  s.show = root.text("show", "");
  if (root.has("end")) s.end = root.time("end", std::nullopt);

  if (const toml::table* m = root.table("machine")) {
    Table t(*m, file, "machine");
    s.ram = t.size("ram", s.ram);
    if (s.ram < 4_MiB) t.fail("ram", "a machine needs at least 4M");
    s.dma32 = t.size("dma32", Bytes(0), s.ram);
    if (s.dma32.v % (4_MiB).v != 0) t.fail("dma32", "a zone ends at a multiple of 4M");
    s.cpus = static_cast<unsigned>(t.integer("cpus", 1, 1, 64));
    s.seed = static_cast<uint64_t>(t.integer("seed", 1, 0, INT64_MAX));
    s.kernel = t.text("kernel", "4.14");
    if (find_profile(s.kernel) == nullptr) t.fail("kernel", std::string("there are the profiles ") + PROFILE_NAMES);
    s.content = t.choice(
        "content", std::map<std::string, ContentMode>{{"tagged", ContentMode::tagged}, {"backed", ContentMode::backed}},
        "tagged");
    s.mmu = t.choice("mmu", std::map<std::string, MmuModel>{{"hardware", MmuModel::hardware}, {"uffd", MmuModel::uffd}},
                     "hardware");
    s.preempt_one_in = static_cast<unsigned>(t.integer("preempt-one-in", 64, 0, 1 << 30));
    t.done();
  }
  for (const Sysctl& one : SYSCTLS) s.sysctl[one.name] = one.fallback;
  s.sysctl["vm.dirty_ratio"] = find_profile(s.kernel)->dirty_ratio;
  if (const toml::table* c = root.table("sysctl")) {
    Table t(*c, file, "sysctl");
    for (const Sysctl& one : SYSCTLS) s.sysctl[one.name] = t.integer(one.name, s.sysctl[one.name], one.least, one.most);
    t.done();
  }
  each(root, "disk", file, [&](Table& t) {
    DiskConfig d;
    d.name = t.text("name", std::nullopt);
    d.size = t.size("size", d.size);
    if (d.size.v < PAGE_SIZE) t.fail("size", "a disk has at least a page, 4K");
    if (t.has("kind")) {
      std::map<std::string, const DiskPreset*> kinds;
      for (const DiskPreset& preset : DISK_PRESETS) kinds[preset.name] = &preset;
      const DiskPreset& kind = *t.choice("kind", kinds, std::nullopt);
      d.read_latency = kind.read_latency;
      d.write_latency = kind.write_latency;
      d.bandwidth = Bytes(kind.megabytes_per_second * 1000000);
      d.queue_depth = kind.queue_depth;
      d.rotational = kind.motion == DiskMotion::rotational;
      d.seek = kind.seek;
    }
    d.read_latency = t.time("read-latency", d.read_latency);
    d.write_latency = t.time("write-latency", d.write_latency);
    d.bandwidth = t.size("bandwidth", d.bandwidth);
    if (d.bandwidth.v < 1000000) t.fail("bandwidth", "a second at least 1M");
    d.queue_depth = static_cast<unsigned>(t.integer("queue-depth", d.queue_depth, 1, 64));
    d.read_error = t.real("read-error", 0, 0, 1);
    d.write_error = t.real("write-error", 0, 0, 1);
    d.block_size = t.size("block-size", d.block_size);
    if (const uint64_t b = d.block_size.v; t.has("block-size") && (b < 512 || b > PAGE_SIZE || (b & (b - 1)) != 0))
      t.fail("block-size", "is one of: 512, 1K, 2K, 4K");
    if (s.content == ContentMode::tagged && d.block_size.v != 0 && d.block_size.v != PAGE_SIZE)
      t.fail("block-size", "a tagged page is one block, 4K: smaller ones want content = \"backed\"");
    for (const DiskConfig& other : s.disks)
      if (other.name == d.name) t.fail("name", "two disks are named \"" + d.name + "\"");
    s.disks.push_back(d);
  });
  const auto known_disk = [&](Table& t, const std::string& name) {
    if (std::none_of(s.disks.begin(), s.disks.end(), [&](const DiskConfig& d) { return d.name == name; }))
      t.fail("disk", "there is no [[disk]] named \"" + name + "\"");
  };
  each(root, "swap", file, [&](Table& t) {
    SwapConfig w;
    w.line = t.line();
    w.kind = t.choice(
        "on",
        std::map<std::string, SwapConfig::Kind>{{"zram", SwapConfig::Kind::zram}, {"disk", SwapConfig::Kind::disk}},
        std::nullopt);
    if (w.kind == SwapConfig::Kind::disk) {
      w.disk = t.text("disk", std::nullopt);
      known_disk(t, w.disk);
      if (std::any_of(s.disks.begin(), s.disks.end(),
                      [&](const DiskConfig& d) { return d.name == w.disk && d.block_size.v != 0; }))
        t.fail("disk", "\"" + w.disk + "\" has a block-size: it holds files only");
    } else {
      w.algorithm = t.text("algorithm", "lz4");
      if (w.algorithm != "lz4" && w.algorithm != "zstd") t.fail("algorithm", "is one of: lz4, zstd");
      if (t.has("mem-limit")) w.mem_limit = t.size("mem-limit", std::nullopt, s.ram);
    }
    w.size = t.size("size", Bytes(0), s.ram);
    if (t.has("size") && w.size < Bytes(static_cast<uint64_t>(MIN_SWAP_PAGES) << PAGE_SHIFT))
      t.fail("size", "a swap area has at least 10 pages, 40K");
    if (s.swaps.size() == MAX_SWAPFILES) t.fail("", fmt::format("a machine has at most {} swap areas", MAX_SWAPFILES));
    w.priority = static_cast<int>(t.integer("priority", -1, -1, SWAP_PRIO_MAX));
    w.off = t.boolean("off", false);
    w.name = t.text("name", fmt::format("swap{}", s.swaps.size()));
    for (const SwapConfig& other : s.swaps)
      if (other.name == w.name) t.fail("name", "two swap areas are named \"" + w.name + "\"");
    s.swaps.push_back(w);
  });
  each(root, "file", file, [&](Table& t) {
    FileConfig f;
    f.line = t.line();
    f.name = t.text("name", std::nullopt);
    if (f.name.empty() || f.name.size() >= sizeof Inode::name)
      t.fail("name", fmt::format("wants 1 to {} characters", sizeof Inode::name - 1));
    for (const FileConfig& other : s.files)
      if (other.name == f.name) t.fail("name", "two files are named \"" + f.name + "\"");
    f.tmpfs = t.boolean("tmpfs", false);
    if (!f.tmpfs) {
      f.disk = t.text("disk", std::nullopt);
      known_disk(t, f.disk);
    }
    f.size = t.size("size", std::nullopt, s.ram);
    f.max_size = t.size("max-size", f.size, s.ram);
    if (f.max_size < f.size) t.fail("max-size", "is smaller than size");
    if (f.max_size.v == 0) t.fail("size", "a file that is empty and may not grow is of no use: give it a max-size");
    s.files.push_back(f);
  });
  each(root, "device", file, [&](Table& t) {
    DeviceConfig d;
    d.name = t.text("name", std::nullopt);
    if (d.name.empty() || d.name.size() >= sizeof Inode::name)
      t.fail("name", fmt::format("wants 1 to {} characters", sizeof Inode::name - 1));
    for (const DeviceConfig& other : s.devices)
      if (other.name == d.name) t.fail("name", "two devices are named \"" + d.name + "\"");
    d.size = t.size("size", std::nullopt, s.ram);
    if (d.size.v < PAGE_SIZE || d.size > 4_MiB) t.fail("size", "a device has 4K to 4M");
    s.devices.push_back(d);
  });
  each(root, "task", file, [&](Table& t) {
    TaskConfig k;
    k.name = t.text("name", std::nullopt);
    k.start = t.time("start", Nanos(0));
    k.oom_score_adj = static_cast<int>(t.integer("oom_score_adj", 0, OOM_SCORE_ADJ_MIN, OOM_SCORE_ADJ_MAX));
    k.oom_adj = static_cast<int>(t.integer("oom_adj", 0, OOM_DISABLE, OOM_ADJUST_MAX));
    if (t.has("oom_adj") && t.has("oom_score_adj")) t.fail("oom_adj", "each sets the other: give one of them");
    k.nice = static_cast<int>(t.integer("nice", 0, -20, 19));
    k.uid = static_cast<unsigned>(t.integer("uid", 1000, 0, 65535));
    k.steps = steps_of(t, "steps", file, s.ram, 0);
    s.tasks.push_back(std::move(k));
  });
  root.done();
  std::set<std::string> kernel, tasks;
  for (const TaskConfig& task : s.tasks) {
    kernel_areas(task.steps, kernel);
    tasks.insert(task.name);
    task_names(task.steps, tasks);
  }
  for (const TaskConfig& task : s.tasks) {
    std::set<std::string> areas;
    check_names(s, task.steps, areas, kernel, tasks);
  }
  if (s.tasks.empty()) throw ScenarioError(file + ": there is no [[task]]: nothing would happen");
  return s;
}

}  // namespace

Scenario parse_scenario(const std::string& text, const std::string& name) {
  try {
    return scenario_of(toml::parse(text, name), name);
  } catch (const toml::parse_error& e) {
    throw ScenarioError(fmt::format("{}:{}: {}", name, e.source().begin.line, std::string(e.description())));
  }
}

Scenario load_scenario(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw ScenarioError(path + ": cannot be opened; `weir sim` wants a scenario file (see examples/)");
  std::ostringstream text;
  text << in.rdbuf();
  return parse_scenario(text.str(), path);
}

}  // namespace weir::sim
