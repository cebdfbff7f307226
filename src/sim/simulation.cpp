// src/sim/simulation.cpp: see simulation.hpp
#include "sim/simulation.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <nlohmann/json.hpp>

#include "arch/soft/soft_mmu.hpp"
#include "block/fault_injector.hpp"
#include "block/sim_disk.hpp"
#include "block/zram.hpp"
#include "kernel/freezer.hpp"
#include "kernel/virtual/virtual_world.hpp"
#include "mm/machine.hpp"
#include "sim/user_access.hpp"

namespace weir::sim {

namespace {

/// What one touch of memory costs the CPU beyond its faults, and what entering the kernel for a fault costs.
constexpr Nanos TOUCH_COST{60}, FAULT_COST{600};

/// Address space that reads zero and costs only what is used. Given back at the end.
class Mapping {
 public:
  explicit Mapping(size_t bytes) : bytes_(bytes) {
    p_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p_ == MAP_FAILED) throw std::runtime_error(fmt::format("the host has no address space for {} bytes", bytes));
  }
  ~Mapping() { munmap(p_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(p_); }
  [[nodiscard]] std::span<std::byte> span() const { return {data(), bytes_}; }

 private:
  void* p_;
  size_t bytes_;
};

/// Zipf over [0, n): item of rank r with probability ~ 1/(r+1)^theta, ranks spread over the range by a fixed
/// permutation.
class Zipf {
 public:
  Zipf(uint64_t n, double theta) : n_(n), theta_(theta) {
    for (uint64_t i = 1; i <= n; ++i) zeta_ += 1.0 / std::pow(static_cast<double>(i), theta);
    const double zeta2 = 1.0 + std::pow(0.5, theta);
    eta_ = (1 - std::pow(2.0 / static_cast<double>(n), 1 - theta)) / (1 - zeta2 / zeta_);
  }
  uint64_t operator()(double u) const {
    const double uz = u * zeta_;
    uint64_t rank = 0;
    if (uz >= 1.0)
      rank = uz < 1.0 + std::pow(0.5, theta_)
                 ? 1
                 : static_cast<uint64_t>(static_cast<double>(n_) * std::pow(eta_ * u - eta_ + 1, 1 / (1 - theta_)));
    if (rank >= n_) rank = n_ - 1;
    return rank * 0x9e3779b97f4a7c15ull % n_;
  }

 private:
  uint64_t n_;
  double theta_, zeta_ = 0, eta_ = 0;
};

/// A probability, as the injector takes it: percents, of one in so many requests where it is below one percent.
FaultAttr fault_attr(double probability) {
  FaultAttr attr;
  attr.probability = std::max(1u, static_cast<uint32_t>(std::lround(probability * 100)));
  if (probability < 0.01) attr.interval = static_cast<uint32_t>(std::lround(std::min(0.01 / probability, 4e9)));
  return attr;
}

struct FileModel {
  File* file = nullptr;
  Inode* inode = nullptr;
  std::vector<uint64_t> expected;  ///< content word of each page
  std::vector<uint32_t> changing;  ///< odd while a store is under way: loads that overlap it are not compared
};

struct Area {
  VirtAddr start{};
  uint64_t pages = 0;
  std::vector<uint64_t> expected;  ///< content word; anonymous pages begin at 0
  FileModel* file = nullptr;
  uint64_t file_page = 0;
  bool shared = false;
  std::vector<bool> own;  ///< private file mapping: the page has been written here
  bool heap = false;
};

struct KernelObjects {
  std::vector<void*> objects;
  VirtAddr vm{};
};

/// What a task's program knows of itself.
struct Program {
  Task* task = nullptr;
  std::map<std::string, Area> areas;
  uint64_t random = 0;
  size_t outcome = 0;
  uint64_t next() {
    uint64_t z = (random += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  double real() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
};

/// How a program ends before its last step.
struct Ended {
  TaskOutcome::Fate fate;
  int code = 0;
  std::string message;
};

class Simulation final : private VerifySink, private Executioner {
 public:
  Simulation(const Scenario& scenario, const SimOptions& options)
      : s_(scenario),
        options_(options),
        seed_(options.seed.value_or(scenario.seed)),
        profile_(*find_profile(options.kernel.empty() ? scenario.kernel : options.kernel)) {}

  SimResult run();

 private:
  void broken(const char* id, const char* what, uint64_t subject, uint64_t expected, uint64_t found) override {
    if (result_.broken.size() < 100)
      result_.broken.push_back(
          {id, fmt::format("{} (subject {:#x}: expected {:#x}, found {:#x})", what, subject, expected, found)});
  }
  // Executioner: a killed task ends at its next step, a panic ends the run.
  void deliver_sigkill(Task&) override {}
  void panic(const char* why) override {
    result_.panic = why;
    world_->halt();
  }
  void content_broken(const std::string& where, uint64_t expected, std::optional<uint64_t> found) {
    if (result_.broken.size() < 100)
      result_.broken.push_back({"content", fmt::format("{}: expected {:#x}, found {}", where, expected,
                                                       found ? fmt::format("{:#x}", *found) : "bytes of no page")});
  }

  void boot();
  void make_disks();
  void make_swaps();
  void make_files();
  void arm_disks();
  void start_task(const TaskConfig& config);
  void run_program(Program& program, const std::vector<Step>& steps);
  void run_steps(Program& program, const std::vector<Step>& steps);
  void run_step(Program& program, const Step& step);
  void touch(Program& program, const Step& step);
  void touch_page(Program& program, const std::string& name, Area& area, uint64_t page, bool write);
  void file_io(Program& program, const Step& step);
  void fork(Program& program, const Step& step);
  Result<void> write_file_page(FileModel& file, uint64_t page, uint64_t content);
  /// Nothing in the option: bytes of no page.
  Result<std::optional<uint64_t>> read_file_page(FileModel& file, uint64_t page);
  void survive(Program& program);
  void come_to_rest();
  void verify();
  Area& area_of(Program& program, const Step& step);
  FileModel& file_of(const std::string& name);
  void collect();
  void log(Nanos t, const char* line);

  template <class T>
  T must(Result<T> r, const Step& step, const char* what) {
    if (!r)
      throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: {}: {}", step.line, what, errno_name(r.error()))};
    return std::move(*r);
  }
  void must(Result<void> r, const Step& step, const char* what) {
    if (!r)
      throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: {}: {}", step.line, what, errno_name(r.error()))};
  }
  template <class T>
  T boot_must(Result<T> r, const std::string& what) {
    if (!r) throw ScenarioError(fmt::format("{}: {}: {}", s_.path, what, errno_name(r.error())));
    return std::move(*r);
  }

  const Scenario& s_;
  SimOptions options_;
  uint64_t seed_;
  const Profile& profile_;
  SimResult result_;
  std::unique_ptr<Mapping> arena_, machine_place_, scratch_, record_memory_;
  std::unique_ptr<SoftMmu> mmu_;
  std::unique_ptr<Recorder> recorder_;
  int record_fd_ = -1;
  std::unique_ptr<VirtualWorld> world_;
  Machine* machine_ = nullptr;
  std::unique_ptr<UserAccess> user_;
  /// Before the disk itself stand those that fail its reads and writes on purpose, if any.
  struct Disk {
    std::unique_ptr<Mapping> place;
    SimDisk* sim = nullptr;
    std::unique_ptr<FaultInjector> read_faults, write_faults;
    BlockDevice* device = nullptr;
    uint64_t used_pages = 0;
  };
  std::map<std::string, Disk> disks_;
  /// A window of a disk that a swap area lies in.
  class Window final : public BlockDevice {
   public:
    Window(BlockDevice& below, std::string name, uint64_t first, uint64_t pages)
        : below_(below), name_(std::move(name)), first_(first), pages_(pages) {}
    const char* name() const override { return name_.c_str(); }
    PageCount capacity() const override { return PageCount(static_cast<int64_t>(pages_)); }
    void submit_bio(Bio& bio) override {
      bio.sector += first_ * SECTORS_PER_PAGE;
      below_.submit_bio(bio);
    }
    bool can_discard() const override { return below_.can_discard(); }
    bool nonrotational() const override { return below_.nonrotational(); }
    bool congested() const override { return below_.congested(); }

   private:
    BlockDevice& below_;
    std::string name_;
    uint64_t first_, pages_;
  };
  std::vector<std::unique_ptr<Window>> windows_;
  struct ZramDevice {
    std::string name;
    std::unique_ptr<Mapping> place, metadata;
    Zram* zram = nullptr;
  };
  std::vector<std::unique_ptr<ZramDevice>> zrams_;
  struct SwapDevice {
    BlockDevice* device;
    int priority;
  };
  std::vector<SwapDevice> swaps_;  ///< as the scenario lists them
  std::map<std::string, FileModel> files_;
  std::map<std::string, KernelObjects> kernel_objects_;
  static constexpr size_t LOG_LINES = 1000;
  std::deque<std::string> last_lines_;
  uint64_t lines_left_out_ = 0;
  uint64_t next_content_ = 0;
  XXH64_hash_t contents_digest_ = 0;
};

void Simulation::boot() {
  const auto ram_pages = pages_in(s_.ram);
  MachineOptions o;
  o.kernel = profile_.era;
  o.layout.nr_ranges = 1;
  o.layout.ranges[0] = {Pfn(0), ram_pages};
  if (s_.dma32.v != 0) o.layout.dma32_end = Pfn(0) + pages_in(s_.dma32);
  o.cpus = s_.cpus;
  o.swappiness = s_.swappiness;
  o.page_cluster = s_.page_cluster;
  o.min_free_kbytes = s_.min_free_kbytes;
  o.watermark_scale_factor = s_.watermark_scale_factor;
  o.dirty_background_ratio = s_.dirty_background_ratio;
  o.dirty_ratio = s_.dirty_ratio;
  arena_ = std::make_unique<Mapping>(s_.ram.v);
  machine_place_ = std::make_unique<Mapping>(sizeof(Machine));
  SoftMmu::Options mo;
  mo.content = s_.content == ContentMode::tagged ? ContentKind::tags : ContentKind::bytes;
  mo.model = s_.mmu == MmuModel::uffd ? SoftMmu::Model::uffd : SoftMmu::Model::hardware;
  mo.cpus = s_.cpus;
  mmu_ = std::make_unique<SoftMmu>(mo);
  machine_ = boot_must(Machine::create(machine_place_->data(), *world_, *mmu_, arena_->data(), o),
                       "the machine does not boot");
  machine_->set_executioner(this);
  user_ = std::make_unique<UserAccess>(*mmu_, s_.content);
  mmu_->set_fault_handler(
      [](void* self, Task& task, VirtAddr address, uint32_t error_code) {
        auto* simulation = static_cast<Simulation*>(self);
        simulation->world_->spend(FAULT_COST);
        return simulation->machine_->do_page_fault(task, address, error_code);
      },
      this);
}

void Simulation::make_disks() {
  for (const DiskConfig& d : s_.disks) {
    Disk disk;
    SimDiskOptions o;
    o.name = d.name.c_str();
    o.capacity = pages_in(d.size);
    o.content = s_.content == ContentMode::tagged ? ContentKind::tags : ContentKind::bytes;
    o.read_latency = d.read_latency;
    o.write_latency = d.write_latency;
    o.megabytes_per_second = std::max<uint64_t>(1, d.bandwidth.v / 1000000);
    o.queue_depth = std::min(d.queue_depth, 64u);
    disk.place = std::make_unique<Mapping>(sizeof(SimDisk));
    disk.sim = boot_must(SimDisk::create(disk.place->data(), *world_, o), "disk " + d.name);
    disk.device = disk.sim;
    const auto injector = [&](bool reads) {
      FaultInjectorOptions f;
      f.seed = seed_ * 2 + (reads ? 1 : 0) + disks_.size() * 0x9e3779b9;
      f.fail_ops = {.read = reads, .write = !reads};
      auto made = std::make_unique<FaultInjector>(*world_, *disk.device, f);
      disk.device = made.get();
      return made;
    };
    if (d.read_error > 0) disk.read_faults = injector(true);
    if (d.write_error > 0) disk.write_faults = injector(false);
    disks_.emplace(d.name, std::move(disk));
  }
}

void Simulation::make_swaps() {
  int order = 100;
  for (const SwapConfig& w : s_.swaps) {
    const int priority = w.priority >= 0 ? w.priority : order--;
    BlockDevice* device = nullptr;
    if (w.kind == SwapConfig::Kind::disk) {
      Disk& disk = disks_.at(w.disk);
      const auto capacity = static_cast<uint64_t>(disk.device->capacity().v);
      const uint64_t pages = w.size.v != 0 ? static_cast<uint64_t>(pages_in(w.size).v) : capacity - disk.used_pages;
      if (disk.used_pages + pages > capacity)
        throw ScenarioError(
            fmt::format("{}:{}: swap on {}: {} pages do not fit, {} of {} are taken: give the disk a larger size",
                        s_.path, w.line, w.disk, pages, disk.used_pages, capacity));
      windows_.push_back(std::make_unique<Window>(*disk.device, w.disk + "-swap", disk.used_pages, pages));
      disk.used_pages += pages;
      device = windows_.back().get();
    } else {
      auto z = std::make_unique<ZramDevice>();
      z->name = fmt::format("zram{}", zrams_.size());
      ZramOptions o;
      o.name = z->name.c_str();
      o.capacity = pages_in(w.size.v != 0 ? w.size : s_.ram);
      if (w.mem_limit) o.mem_limit = pages_in(*w.mem_limit);
      o.comp.algorithm = w.algorithm == "zstd" ? Compressor::zstd : Compressor::lz4;
      z->place = std::make_unique<Mapping>(sizeof(Zram));
      z->metadata = std::make_unique<Mapping>(Zram::metadata_needed(o));
      z->zram = boot_must(Zram::create(z->place->data(), machine_->pool_frames, o, z->metadata->span()), z->name);
      device = z->zram;
      zrams_.push_back(std::move(z));
    }
    const Result<void> made = machine_->swapon.mkswap(*device);
    if (!made)
      throw ScenarioError(
          fmt::format("{}:{}: mkswap {}: {}", s_.path, w.line, device->name(), errno_name(made.error())));
    swaps_.push_back({device, priority});
    boot_must(machine_->swapon.swapon(*device, priority), fmt::format("line {}: swapon {}", w.line, device->name()));
  }
}

void Simulation::make_files() {
  for (const FileConfig& f : s_.files) {
    Disk& disk = disks_.at(f.disk);
    const uint64_t max_pages = page_align_up(f.max_size.v) >> PAGE_SHIFT;
    if (disk.used_pages + max_pages > static_cast<uint64_t>(disk.device->capacity().v))
      throw ScenarioError(fmt::format("{}:{}: file {}: does not fit on disk {}: give the disk a larger size", s_.path,
                                      f.line, f.name, f.disk));
    FileModel model;
    model.inode = boot_must(machine_->files.create_inode(f.name.c_str(), *disk.device, disk.used_pages, Bytes(0),
                                                         Bytes(max_pages << PAGE_SHIFT)),
                            "file " + f.name);
    model.file = boot_must(machine_->files.open(*model.inode), "file " + f.name);
    disk.used_pages += max_pages;
    model.expected.assign(max_pages, 0);
    model.changing.assign(max_pages, 0);
    files_.emplace(f.name, std::move(model));
    // The file's first content goes the way every content goes: written, then synced and dropped from memory.
    FileModel& m = files_.at(f.name);
    for (uint64_t page = 0; page < page_align_up(f.size.v) >> PAGE_SHIFT; ++page) {
      m.expected[page] = ++next_content_;
      const Result<void> wrote = write_file_page(m, page, m.expected[page]);
      if (!wrote) throw ScenarioError(fmt::format("{}: file {}: {}", s_.path, f.name, errno_name(wrote.error())));
    }
    const Result<void> synced = machine_->files.fsync(*m.file);
    if (!synced) throw ScenarioError(fmt::format("{}: file {}: {}", s_.path, f.name, errno_name(synced.error())));
    machine_->files.invalidate(*m.inode);
  }
}

/// Disks fail from here on: what sets the machine up is served.
void Simulation::arm_disks() {
  for (const DiskConfig& d : s_.disks) {
    Disk& disk = disks_.at(d.name);
    if (disk.read_faults) disk.read_faults->set_fail(fault_attr(d.read_error));
    if (disk.write_faults) disk.write_faults->set_fail(fault_attr(d.write_error));
  }
}

FileModel& Simulation::file_of(const std::string& name) {
  const auto it = files_.find(name);
  if (it == files_.end()) throw Ended{TaskOutcome::Fate::exited, 1, "there is no [[file]] named \"" + name + "\""};
  return it->second;
}

Area& Simulation::area_of(Program& program, const Step& step) {
  const auto it = program.areas.find(step.area);
  if (it == program.areas.end())
    throw Ended{TaskOutcome::Fate::exited, 1,
                fmt::format("line {}: the task has no area \"{}\"", step.line, step.area)};
  return it->second;
}

void Simulation::survive(Program& program) {
  if (program.task->sigkill.load()) throw Ended{TaskOutcome::Fate::killed, 137, "killed"};
}

void Simulation::start_task(const TaskConfig& config) {
  auto program = std::make_shared<Program>();
  program->task = boot_must(machine_->task_create(config.name.c_str(), nullptr), "task " + config.name);
  program->task->oom_score_adj.store(config.oom_score_adj);
  program->random = seed_ * 0x100000001b3ull + static_cast<uint64_t>(program->task->pid);
  program->outcome = result_.tasks.size();
  result_.tasks.push_back({.name = config.name, .pid = program->task->pid, .message = {}});
  Thread* thread = world_->spawn(
      config.name.c_str(),
      [this, program, &config] {
        if (config.start.v != 0) world_->schedule_timeout(config.start);
        run_program(*program, config.steps);
      },
      program->task);
  program->task->thread = thread;
  if (recorder_) recorder_->task(thread->tid, program->task->pid, config.name);
}

void Simulation::run_program(Program& program, const std::vector<Step>& steps) {
  TaskOutcome::Fate fate = TaskOutcome::Fate::exited;
  int code = 0;
  std::string message;
  try {
    run_steps(program, steps);
  } catch (const Ended& e) {
    fate = e.fate;
    code = e.code;
    message = e.message;
  }
  // What is still mapped goes into the digest: the final memory. A killed task's contents are not looked at: it may not
  // fault any more.
  if (fate == TaskOutcome::Fate::exited) {
    try {
      for (auto& [name, area] : program.areas)
        for (uint64_t page = 0; page < area.pages; ++page) touch_page(program, name, area, page, false);
    } catch (const Ended& e) {
      fate = e.fate;
      code = e.code;
      message = e.message;
    }
  }
  TaskOutcome& outcome = result_.tasks[program.outcome];
  outcome.fate = fate;
  outcome.code = code;
  outcome.message = message;
  outcome.min_flt = program.task->min_flt.load();
  outcome.maj_flt = program.task->maj_flt.load();
  program.task->thread = nullptr;
  // The rest of the exit is done by the machine, as the dying task.
  Task* task = program.task;
  program.task = nullptr;
  machine_->task_exit(*task, code);
  current().task = nullptr;
  outcome.ended = world_->now();
}

void Simulation::run_steps(Program& program, const std::vector<Step>& steps) {
  for (const Step& step : steps) {
    survive(program);
    run_step(program, step);
  }
}

void Simulation::run_step(Program& program, const Step& step) {
  Mm& mm = *program.task->mm;
  const auto whole = [&](Area& area, uint64_t& first, uint64_t& pages) {
    first = step.from.v >> PAGE_SHIFT;
    pages = step.size.v != 0 ? page_align_up(step.size.v) >> PAGE_SHIFT : area.pages - std::min(first, area.pages);
    if (first + pages > area.pages)
      throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: behind the end of \"{}\"", step.line, step.area)};
  };
  switch (step.op) {
    case Op::mmap:
    case Op::malloc: {
      WEIR_STATE(user_request, 0, step.op == Op::malloc ? 2 : 0, step.size.v);
      MmapRequest request;
      request.length = page_align_up(step.size.v);
      Area area;
      area.start = must(machine_->spaces.mmap(mm, request), step, "mmap");
      area.pages = request.length >> PAGE_SHIFT;
      area.expected.assign(area.pages, 0);
      program.areas[step.area] = std::move(area);
      break;
    }
    case Op::mmap_file: {
      FileModel& file = file_of(step.name);
      MmapRequest request;
      request.length = page_align_up(step.size.v);
      request.file = file.file;
      request.pgoff = step.from.v >> PAGE_SHIFT;
      request.prot = step.write ? VM_READ | VM_WRITE : VM_READ;
      request.sharing = step.shared ? MmapRequest::Sharing::shared : MmapRequest::Sharing::private_;
      Area area;
      area.start = must(machine_->spaces.mmap(mm, request), step, "mmap");
      area.pages = request.length >> PAGE_SHIFT;
      area.expected.assign(area.pages, 0);
      area.own.assign(area.pages, false);
      area.file = &file;
      area.file_page = request.pgoff;
      area.shared = step.shared;
      program.areas[step.area] = std::move(area);
      break;
    }
    case Op::brk: {
      const VirtAddr old = machine_->spaces.brk(mm, VirtAddr(0));
      const VirtAddr want = old + page_align_up(step.size.v);
      if (machine_->spaces.brk(mm, want) < want)
        throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: brk: ENOMEM", step.line)};
      Area area;
      area.start = VirtAddr(page_align_up(old.v));
      area.pages = (want.v - area.start.v) >> PAGE_SHIFT;
      area.expected.assign(area.pages, 0);
      area.heap = true;
      program.areas[step.area] = std::move(area);
      break;
    }
    case Op::munmap: {
      Area& area = area_of(program, step);
      must(machine_->spaces.munmap(mm, area.start, area.pages << PAGE_SHIFT), step, "munmap");
      program.areas.erase(step.area);
      break;
    }
    case Op::madvise: {
      Area& area = area_of(program, step);
      uint64_t first = 0, pages = 0;
      whole(area, first, pages);
      must(machine_->spaces.madvise(mm, area.start + (first << PAGE_SHIFT), pages << PAGE_SHIFT, Advice::dontneed),
           step, "madvise");
      for (uint64_t i = first; i < first + pages; ++i) {
        area.expected[i] = 0;
        if (area.file != nullptr) area.own[i] = false;
      }
      break;
    }
    case Op::mlock:
    case Op::munlock: {
      Area& area = area_of(program, step);
      uint64_t first = 0, pages = 0;
      whole(area, first, pages);
      must(machine_->spaces.mlock(*program.task, area.start + (first << PAGE_SHIFT), pages << PAGE_SHIFT,
                                  step.op == Op::mlock ? AddressSpaces::Lock::yes : AddressSpaces::Lock::no),
           step, "mlock");
      break;
    }
    case Op::touch: touch(program, step); break;
    case Op::read:
    case Op::write: file_io(program, step); break;
    case Op::fsync: must(machine_->files.fsync(*file_of(step.area).file), step, "fsync"); break;
    case Op::fork: fork(program, step); break;
    case Op::sleep: world_->schedule_timeout(step.time); break;
    case Op::exit: throw Ended{TaskOutcome::Fate::exited, step.code, ""};
    case Op::repeat:
      for (uint64_t i = 0; i < step.count; ++i) run_steps(program, step.body);
      break;
    case Op::kmalloc: {
      KernelObjects& k = kernel_objects_[step.area];
      for (uint64_t i = 0; i < step.count; ++i) {
        void* p = machine_->slab.kmalloc(step.size.v, GFP_KERNEL);
        if (p == nullptr) throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: kmalloc: ENOMEM", step.line)};
        k.objects.push_back(p);
      }
      break;
    }
    case Op::kfree: {
      for (void* p : kernel_objects_[step.area].objects) machine_->slab.kfree(p);
      kernel_objects_.erase(step.area);
      break;
    }
    case Op::vmalloc:
      kernel_objects_[step.area].vm = must(machine_->vmalloc.vmalloc(step.size), step, "vmalloc");
      break;
    case Op::vfree:
      machine_->vmalloc.vfree(kernel_objects_[step.area].vm);
      kernel_objects_.erase(step.area);
      break;
    case Op::ram: machine_->set_ram(pages_in(step.size)); break;
    case Op::swapon:
    case Op::swapoff: {
      if (step.count >= swaps_.size())
        throw Ended{TaskOutcome::Fate::exited, 1,
                    fmt::format("line {}: there is no [[swap]] {}", step.line, step.count)};
      const SwapDevice& swap = swaps_[step.count];
      if (step.op == Op::swapon) {
        must(machine_->swapon.swapon(*swap.device, swap.priority), step, "swapon");
        break;
      }
      unsigned type = 0;
      while (type < MAX_SWAPFILES && (machine_->swap_files.swap_info(type) == nullptr ||
                                      machine_->swap_files.swap_info(type)->bdev != swap.device))
        ++type;
      must(machine_->swapon.swapoff(type), step, "swapoff");
      break;
    }
    case Op::verify:
      freeze_processes(*world_);
      come_to_rest();
      verify();
      thaw_processes(*world_);
      break;
  }
}

void Simulation::touch_page(Program& program, const std::string& name, Area& area, uint64_t page, bool write) {
  const VirtAddr address = area.start + (page << PAGE_SHIFT);
  FaultResult r = FaultResult::done;
  FileModel* file = area.file;
  const uint64_t at = area.file_page + page;
  const bool of_file = file != nullptr && (area.shared || !area.own[page]);
  std::optional<uint64_t> found;
  uint64_t expected = 0;
  bool compare = true;
  if (write) {
    const uint64_t content = ++next_content_;
    if (file != nullptr && area.shared) ++file->changing[at];
    r = user_->store(*program.task, address, content);
    if (r == FaultResult::done) {
      if (file != nullptr && area.shared)
        file->expected[at] = content;
      else {
        area.expected[page] = content;
        if (file != nullptr) area.own[page] = true;
      }
    }
    if (file != nullptr && area.shared) ++file->changing[at];
  } else {
    const uint32_t before = of_file && at < file->changing.size() ? file->changing[at] : 0;
    expected = of_file ? file->expected[at] : area.expected[page];
    r = user_->load(*program.task, address, found);
    compare = !of_file || ((before & 1) == 0 && file->changing[at] == before);
  }
  world_->spend(TOUCH_COST);
  switch (r) {
    case FaultResult::done: break;
    case FaultResult::killed: throw Ended{TaskOutcome::Fate::killed, 137, "killed"};
    case FaultResult::sigsegv:
      throw Ended{TaskOutcome::Fate::segv, 139, fmt::format("SIGSEGV at {:#x} ({} page {})", address.v, name, page)};
    case FaultResult::sigbus:
      throw Ended{TaskOutcome::Fate::bus, 135, fmt::format("SIGBUS at {:#x} ({} page {})", address.v, name, page)};
  }
  if (!write && compare) {
    ++result_.contents_checked;
    if (!found || *found != expected)
      content_broken(fmt::format("task {} area {} page {}", result_.tasks[program.outcome].name, name, page), expected,
                     found);
    contents_digest_ = XXH64(&expected, sizeof expected, contents_digest_ + page);
  }
  world_->cond_resched();
}

void Simulation::touch(Program& program, const Step& step) {
  Area& area = area_of(program, step);
  const uint64_t first = step.from.v >> PAGE_SHIFT;
  const uint64_t pages =
      step.size.v != 0 ? page_align_up(step.size.v) >> PAGE_SHIFT : area.pages - std::min(first, area.pages);
  if (pages == 0 || first + pages > area.pages)
    throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: behind the end of \"{}\"", step.line, step.area)};
  const uint64_t count = step.count != 0 ? step.count : pages;
  std::optional<Zipf> zipf;
  if (step.pattern == Pattern::zipf) zipf.emplace(pages, step.theta == 1.0 ? 0.999 : step.theta);
  const auto hot_pages = std::max<uint64_t>(1, static_cast<uint64_t>(static_cast<double>(pages) * step.hot_share));
  for (uint64_t i = 0; i < count; ++i) {
    survive(program);
    uint64_t page = 0;
    switch (step.pattern) {
      case Pattern::sequential: page = i % pages; break;
      case Pattern::random: page = program.next() % pages; break;
      case Pattern::zipf: page = (*zipf)(program.real()); break;
      case Pattern::hot:
        page = program.real() < step.hot_probability ? program.next() % hot_pages : program.next() % pages;
        break;
    }
    touch_page(program, step.area, area, first + page, step.write);
    if (step.time.v != 0) world_->schedule_timeout(step.time);
  }
}

Result<void> Simulation::write_file_page(FileModel& file, uint64_t page, uint64_t content) {
  if (s_.content == ContentMode::tagged) return machine_->files.write_tag(*file.file, page, content);
  std::byte bytes[PAGE_SIZE];
  fill_page(content, bytes);
  Result<uint64_t> wrote = machine_->files.write(*file.file, page << PAGE_SHIFT, bytes, PAGE_SIZE);
  if (!wrote) return wrote.error();
  return *wrote == PAGE_SIZE ? Result<void>() : Result<void>(Errno::intr);
}

Result<std::optional<uint64_t>> Simulation::read_file_page(FileModel& file, uint64_t page) {
  if (s_.content == ContentMode::tagged) {
    Result<uint64_t> tag = machine_->files.read_tag(*file.file, page);
    if (!tag) return tag.error();
    return std::optional<uint64_t>(*tag);
  }
  std::byte bytes[PAGE_SIZE];
  Result<uint64_t> got = machine_->files.read(*file.file, page << PAGE_SHIFT, bytes, PAGE_SIZE);
  if (!got) return got.error();
  if (*got != PAGE_SIZE) return Errno::intr;
  return content_of(bytes);
}

void Simulation::file_io(Program& program, const Step& step) {
  FileModel& file = file_of(step.area);
  const uint64_t first = step.from.v >> PAGE_SHIFT, pages = page_align_up(step.size.v) >> PAGE_SHIFT;
  if (first + pages > file.expected.size())
    throw Ended{TaskOutcome::Fate::exited, 1,
                fmt::format("line {}: behind the end of file \"{}\"", step.line, step.area)};
  for (uint64_t n = 0; n < step.count; ++n) {
    for (uint64_t page = first; page < first + pages; ++page) {
      survive(program);
      if (step.op == Op::write) {
        const uint64_t content = ++next_content_;
        ++file.changing[page];
        const Result<void> r = write_file_page(file, page, content);
        if (r) file.expected[page] = content;
        ++file.changing[page];
        if (!r && r.error() == Errno::intr) survive(program);
        must(r, step, "write");
      } else {
        const uint32_t before = file.changing[page];
        const uint64_t expected = file.expected[page];
        Result<std::optional<uint64_t>> r = read_file_page(file, page);
        if (!r && r.error() == Errno::intr) survive(program);
        const std::optional<uint64_t> found = must(std::move(r), step, "read");
        if ((before & 1) == 0 && file.changing[page] == before) {
          ++result_.contents_checked;
          if (!found || *found != expected)
            content_broken(fmt::format("file {} page {}", step.area, page), expected, found);
        }
      }
      world_->spend(TOUCH_COST);
      world_->cond_resched();
    }
  }
}

void Simulation::fork(Program& program, const Step& step) {
  Result<Task*> child = machine_->task_fork(*program.task);
  Task* task = must(std::move(child), step, "fork");
  auto copy = std::make_shared<Program>();
  copy->task = task;
  copy->areas = program.areas;
  copy->random = program.next();
  copy->outcome = result_.tasks.size();
  std::strncpy(task->comm, step.name.c_str(), sizeof task->comm - 1);
  result_.tasks.push_back({.name = step.name, .pid = task->pid, .message = {}});
  Thread* thread = world_->spawn(
      step.name.c_str(), [this, copy, &step] { run_program(*copy, step.body); }, task);
  task->thread = thread;
  if (recorder_) recorder_->task(thread->tid, task->pid, step.name);
}

/// Waits until no request is under way and no kthread has anything in its hands: verify() wants that. No task may run
/// meanwhile.
void Simulation::come_to_rest() {
  const auto gauge = [&](NodeStat s) { return machine_->vmstat.node_page_state(s); };
  const auto busy = [&] {
    if (gauge(NodeStat::nr_writeback) != 0 || gauge(NodeStat::nr_isolated_anon) != 0 ||
        gauge(NodeStat::nr_isolated_file) != 0)
      return true;
    for (const auto& [name, disk] : disks_)
      if (disk.sim->sim_stats().waiting + disk.sim->sim_stats().in_service != 0) return true;
    return false;
  };
  while (busy()) world_->schedule_timeout(1_ms);
}

void Simulation::verify() {
  const size_t bytes = machine_->verify_scratch_bytes();
  scratch_ = std::make_unique<Mapping>(std::max<size_t>(bytes, 1));
  machine_->verify(scratch_->span(), *this);
  ++result_.verified;
}

void Simulation::collect() {
  for (unsigned i = 0; i < static_cast<unsigned>(NodeStat::count); ++i)
    result_.vmstat[stat_name(static_cast<NodeStat>(i))] =
        static_cast<uint64_t>(machine_->vmstat.node_page_state(static_cast<NodeStat>(i)));
  for (unsigned i = 0; i < static_cast<unsigned>(VmEvent::count); ++i)
    result_.vmstat[event_name(static_cast<VmEvent>(i))] = machine_->vmstat.event(static_cast<VmEvent>(i));
  result_.vmstat["nr_free_pages"] = static_cast<uint64_t>(machine_->pages.nr_free_pages().v);
  for (const auto& z : zrams_) {
    const ZramMmStat m = z->zram->mm_stat();
    const ZramIoStat io = z->zram->io_stat();
    result_.zram[z->name] = {{"orig_data_size", m.orig_data_size.v}, {"compr_data_size", m.compr_data_size.v},
                             {"mem_used_total", m.mem_used_total.v}, {"mem_limit", m.mem_limit.v},
                             {"mem_used_max", m.mem_used_max.v},     {"same_pages", m.same_pages},
                             {"huge_pages", m.huge_pages},           {"num_reads", io.num_reads},
                             {"num_writes", io.num_writes},          {"failed_writes", io.failed_writes}};
  }
  XXH64_hash_t h = XXH64(&contents_digest_, sizeof contents_digest_, seed_);
  for (const auto& [name, value] : result_.vmstat) h = XXH64(&value, sizeof value, XXH64(name.data(), name.size(), h));
  for (const TaskOutcome& t : result_.tasks) {
    const uint64_t v[] = {static_cast<uint64_t>(t.pid),
                          static_cast<uint64_t>(t.fate),
                          static_cast<uint64_t>(t.code),
                          t.ended.v,
                          t.min_flt,
                          t.maj_flt};
    h = XXH64(v, sizeof v, h);
  }
  const uint64_t end[] = {result_.time.v, world_->switches(), recorder_ ? recorder_->recorded() : 0};
  result_.digest = fmt::format("{:016x}", XXH64(end, sizeof end, h));
}

/// Of a long log the beginning and the end are kept.
void Simulation::log(Nanos t, const char* line) {
  std::string text = fmt::format("[{:5}.{:06}] {}", t.v / 1000000000, t.v / 1000 % 1000000, line);
  if (result_.log.size() < LOG_LINES) return result_.log.push_back(std::move(text));
  last_lines_.push_back(std::move(text));
  if (last_lines_.size() <= LOG_LINES) return;
  last_lines_.pop_front();
  ++lines_left_out_;
}

SimResult Simulation::run() {
  result_.scenario = s_.path;
  result_.title = s_.title;
  result_.seed = seed_;

  VirtualWorld::Options wo;
  wo.seed = seed_;
  wo.cpus = s_.cpus;
  wo.preempt_one_in = s_.preempt_one_in;
  wo.log = [this](Nanos t, const char* line) { log(t, line); };
  world_ = std::make_unique<VirtualWorld>(wo);

  if (!options_.record.empty()) {
    record_fd_ = ::open(options_.record.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (record_fd_ < 0) throw ScenarioError(fmt::format("--record {}: {}", options_.record, std::strerror(errno)));
    record_memory_ = std::make_unique<Mapping>(Recorder::bytes_for(1 << 16, 1 << 16));
    recorder_ = std::make_unique<Recorder>(record_memory_->span(), output_to_fd(record_fd_));
    recorder_->fact("kernel", profile_.name);
    recorder_->fact("seed", std::to_string(seed_));
    recorder_->fact("page_size", "4096");
    recorder_->fact("ram_pages", std::to_string(pages_in(s_.ram).v));
    recorder_->fact("scenario", s_.title.empty() ? s_.path : s_.title);
    world_->set_sink(recorder_.get());
  } else if (options_.sink != nullptr) {
    world_->set_sink(options_.sink);
  }

  // Boot, disks, swap and files in a thread of their own: exceptions cannot cross from one fiber's stack to another.
  std::string failure;
  const auto run_thread = [&](const char* name, const std::function<void()>& fn) {
    world_->spawn(name, [&failure, fn] {
      try {
        fn();
      } catch (const std::exception& e) {
        failure = e.what();
      }
    });
  };
  run_thread("boot", [&] {
    boot();
    make_disks();
    make_swaps();
    make_files();
    arm_disks();
  });
  VirtualWorld::RunState state = world_->run();
  if (!failure.empty()) throw ScenarioError(failure);
  if (state == VirtualWorld::RunState::finished) {
    // The scenario's times count from here.
    run_thread("init", [&] {
      for (const TaskConfig& task : s_.tasks) start_task(task);
    });
    state = s_.end ? world_->run_until(world_->now() + *s_.end) : world_->run();
    if (!failure.empty()) throw ScenarioError(failure);
  }
  if (state == VirtualWorld::RunState::deadlock) {
    result_.deadlock = true;
    result_.deadlock_report = world_->report();
    result_.broken.push_back({"deadlock", "threads wait, and nothing will ever wake them"});
  }
  result_.time = world_->now();

  // Stopped in the middle of things, by time or by a panic, the machine is left as it is: its threads run no further,
  // and only rest can be verified.
  const auto cut_short = [](VirtualWorld::RunState s) {
    return s == VirtualWorld::RunState::time_reached || s == VirtualWorld::RunState::halted;
  };
  if (!cut_short(state)) {
    const bool orderly = state == VirtualWorld::RunState::finished;
    world_->spawn("shutdown", [this, orderly] {
      if (orderly) come_to_rest();
      machine_->shutdown();
      if (orderly) verify();
      collect();
    });
    state = world_->run();
    if (state == VirtualWorld::RunState::deadlock && !result_.deadlock) {
      result_.deadlock = true;
      result_.deadlock_report = world_->report();
      result_.broken.push_back({"deadlock", "the machine does not shut down"});
    }
  }
  if (cut_short(state)) collect();
  if (recorder_) {
    world_->set_sink(nullptr);
    const bool whole = recorder_->finish();
    ::close(record_fd_);
    if (!whole) throw ScenarioError(fmt::format("--record {}: the file could not be written whole", options_.record));
  }
  if (lines_left_out_ != 0) result_.log.push_back(fmt::format("... {} lines left out ...", lines_left_out_));
  for (std::string& line : last_lines_) result_.log.push_back(std::move(line));
  return std::move(result_);
}

const char* fate_name(TaskOutcome::Fate fate) {
  switch (fate) {
    case TaskOutcome::Fate::exited: return "exited";
    case TaskOutcome::Fate::killed: return "killed";
    case TaskOutcome::Fate::segv: return "SIGSEGV";
    case TaskOutcome::Fate::bus: return "SIGBUS";
    case TaskOutcome::Fate::stuck: return "running";
  }
  return "?";
}

}  // namespace

SimResult run_scenario(const Scenario& scenario, const SimOptions& options) {
  return Simulation(scenario, options).run();
}

std::string summary(const SimResult& r) {
  std::string out;
  out += fmt::format("{}\nseed {}  virtual time {:.6f} s  digest {}\n\n", r.title.empty() ? r.scenario : r.title,
                     r.seed, static_cast<double>(r.time.v) / 1e9, r.digest);
  out += fmt::format("{:<16} {:>5} {:<9} {:>4} {:>12} {:>10} {:>10}  {}\n", "task", "pid", "fate", "code", "ended (s)",
                     "min_flt", "maj_flt", "");
  for (const TaskOutcome& t : r.tasks)
    out += fmt::format("{:<16} {:>5} {:<9} {:>4} {:>12.6f} {:>10} {:>10}  {}\n", t.name, t.pid, fate_name(t.fate),
                       t.code, static_cast<double>(t.ended.v) / 1e9, t.min_flt, t.maj_flt, t.message);
  out += "\n";
  for (const auto& [name, value] : r.vmstat)
    if (value != 0) out += fmt::format("{:<32} {:>14}\n", name, static_cast<int64_t>(value));
  for (const auto& [device, stats] : r.zram)
    for (const auto& [name, value] : stats) out += fmt::format("{:<32} {:>14}\n", device + "." + name, value);
  out += fmt::format("\ncontents compared {}, machine verified {} time{}\n", r.contents_checked, r.verified,
                     r.verified == 1 ? "" : "s");
  if (!r.panic.empty()) out += fmt::format("\nKernel panic - not syncing: {}\n", r.panic);
  if (r.deadlock) out += "\nDEADLOCK\n" + r.deadlock_report + "\n";
  for (const Broken& b : r.broken) out += fmt::format("BROKEN {}: {}\n", b.id, b.text);
  return out;
}

std::string to_json(const SimResult& r) {
  nlohmann::ordered_json j;
  j["scenario"] = r.scenario;
  j["title"] = r.title;
  j["seed"] = r.seed;
  j["time_ns"] = r.time.v;
  j["digest"] = r.digest;
  j["tasks"] = nlohmann::ordered_json::array();
  for (const TaskOutcome& t : r.tasks)
    j["tasks"].push_back({{"name", t.name},
                          {"pid", t.pid},
                          {"fate", fate_name(t.fate)},
                          {"code", t.code},
                          {"ended_ns", t.ended.v},
                          {"min_flt", t.min_flt},
                          {"maj_flt", t.maj_flt},
                          {"message", t.message}});
  for (const auto& [name, value] : r.vmstat) j["vmstat"][name] = static_cast<int64_t>(value);
  for (const auto& [device, stats] : r.zram)
    for (const auto& [name, value] : stats) j["zram"][device][name] = value;
  j["contents_checked"] = r.contents_checked;
  j["verified"] = r.verified;
  j["deadlock"] = r.deadlock;
  j["panic"] = r.panic;
  j["broken"] = nlohmann::ordered_json::array();
  for (const Broken& b : r.broken) j["broken"].push_back({{"id", b.id}, {"text", b.text}});
  j["log"] = r.log;
  return j.dump(2) + "\n";
}

}  // namespace weir::sim
