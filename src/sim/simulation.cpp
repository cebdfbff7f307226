// src/sim/simulation.cpp: the machine of a simulation. See simulation.hpp, simulation_machine.hpp
#include "sim/simulation.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

#include "sim/simulation_machine.hpp"

namespace weir::sim {

namespace {

/// A probability, as the injector takes it: percents, of one in so many requests where it is below one percent.
FaultAttr fault_attr(double probability) {
  FaultAttr attr;
  attr.probability = std::max(1u, static_cast<uint32_t>(std::lround(probability * 100)));
  if (probability < 0.01) attr.interval = static_cast<uint32_t>(std::lround(std::min(0.01 / probability, 4e9)));
  return attr;
}

}  // namespace

void Simulation::boot() {
  const auto ram_pages = pages_in(s_.ram);
  MachineOptions o;
  o.kernel = profile_.era;
  o.layout.nr_ranges = 1;
  o.layout.ranges[0] = {Pfn(0), ram_pages};
  if (s_.dma32.v != 0) o.layout.dma32_end = Pfn(0) + pages_in(s_.dma32);
  o.cpus = s_.cpus;
  const auto sysctl = [&](const char* name) { return s_.sysctl.at(name); };
  o.swappiness = static_cast<int>(sysctl("vm.swappiness"));
  o.page_cluster = static_cast<unsigned>(sysctl("vm.page-cluster"));
  o.min_free_kbytes = static_cast<uint64_t>(sysctl("vm.min_free_kbytes"));
  o.watermark_scale_factor = static_cast<unsigned>(sysctl("vm.watermark_scale_factor"));
  o.dirty_background_ratio = background_ratio_ = static_cast<unsigned>(sysctl("vm.dirty_background_ratio"));
  o.dirty_ratio = dirty_ratio_ = static_cast<unsigned>(sysctl("vm.dirty_ratio"));
  arena_ = std::make_unique<Mapping>(s_.ram.v);
  machine_place_ = std::make_unique<Mapping>(sizeof(Machine));
  SoftMmu::Options mo;
  mo.content = s_.content == ContentMode::tagged ? ContentKind::tags : ContentKind::bytes;
  mo.model = s_.mmu == MmuModel::uffd ? SoftMmu::Model::uffd : SoftMmu::Model::hardware;
  mo.cpus = s_.cpus;
  mmu_ = std::make_unique<SoftMmu>(mo);
  machine_ = boot_must(Machine::create(machine_place_->data(), *world_, *mmu_, arena_->data(), o),
                       "the machine does not boot");
  if (options_.booted) options_.booted(*machine_);
  machine_->set_executioner(this);
  for (const char* name : {"vm.panic_on_oom", "vm.oom_kill_allocating_task", "vm.oom_dump_tasks", "ksm.pages_to_scan",
                           "ksm.sleep_millisecs", "ksm.run"})
    boot_must(set_sysctl(name, sysctl(name)), name);
  user_ = std::make_unique<UserAccess>(*mmu_, s_.content);
  mmu_->set_fault_handler(
      [](void* self, Task& task, VirtAddr address, uint32_t error_code) {
        auto* simulation = static_cast<Simulation*>(self);
        simulation->world_->spend(FAULT_COST);
        return simulation->machine_->do_page_fault(task, address, error_code);
      },
      this);
}

Result<void> Simulation::set_sysctl(const std::string& name, int64_t value) {
  Machine& m = *machine_;
  const auto number = static_cast<unsigned>(value);
  if (name == "vm.swappiness") m.vmscan.set_swappiness(static_cast<int>(value));
  if (name == "vm.page-cluster") m.swap_cache.set_page_cluster(number);
  if (name == "vm.min_free_kbytes" && value != 0) m.pages.set_min_free_kbytes(number);
  if (name == "vm.watermark_scale_factor") m.pages.set_watermark_scale_factor(number);
  if (name == "vm.dirty_background_ratio") m.writeback.set_ratios(background_ratio_ = number, dirty_ratio_);
  if (name == "vm.dirty_ratio") m.writeback.set_ratios(background_ratio_, dirty_ratio_ = number);
  if (name == "vm.panic_on_oom") m.oom.sysctl.panic_on_oom = static_cast<int>(value);
  if (name == "vm.oom_kill_allocating_task") m.oom.sysctl.oom_kill_allocating_task = value != 0;
  if (name == "vm.oom_dump_tasks") m.oom.sysctl.oom_dump_tasks = value != 0;
  if (name == "ksm.pages_to_scan") m.ksm.set_pages_to_scan(number);
  if (name == "ksm.sleep_millisecs") m.ksm.set_sleep_millisecs(number);
  if (name == "ksm.run" && value != 0) ksm_has_run_ = true;
  if (name == "ksm.run") return m.ksm.set_run(static_cast<Ksm::Run>(value), world_.get());
  return {};
}

/// The machine goes no further, and can be looked at as it is.
void Simulation::panic(const char* why) {
  result_.panic = why;
  world_->halt();
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
    o.motion = d.rotational ? DiskMotion::rotational : DiskMotion::none;
    if (d.rotational) o.seek = d.seek;
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
    SwapArea area{.device = device,
                  .zram = w.kind == SwapConfig::Kind::zram ? zrams_.back()->zram : nullptr,
                  .priority = priority,
                  .type = std::nullopt};
    if (!w.off)
      area.type = boot_must(machine_->swapon.swapon(*device, priority),
                            fmt::format("line {}: swapon {}", w.line, device->name()));
    swap_areas_.emplace(w.name, area);
  }
}

/// A new file's inode, on a disk.
Inode* Simulation::make_inode(const FileConfig& f, uint64_t max_pages) {
  Disk& disk = disks_.at(f.disk);
  const Bytes max_bytes(max_pages << PAGE_SHIFT);
  const auto config =
      std::find_if(s_.disks.begin(), s_.disks.end(), [&](const DiskConfig& d) { return d.name == f.disk; });
  const auto block_size = static_cast<uint32_t>(config->block_size.v);
  if (block_size != 0 && disk.fs == nullptr) {
    const auto files =
        std::count_if(s_.files.begin(), s_.files.end(), [&](const FileConfig& o) { return o.disk == f.disk; });
    disk.fs = std::make_unique<FlatFs>(machine_->files);
    boot_must(disk.fs->mkfs(*disk.device, block_size, static_cast<uint32_t>(files)), "mkfs on " + f.disk);
    disk.used_pages = FlatFs::table_pages(block_size, static_cast<uint32_t>(files));
  }
  if (disk.used_pages + max_pages > static_cast<uint64_t>(disk.device->capacity().v))
    throw ScenarioError(fmt::format("{}:{}: file {}: does not fit on disk {}: give the disk a larger size", s_.path,
                                    f.line, f.name, f.disk));
  const uint64_t first = disk.used_pages;
  disk.used_pages += max_pages;
  if (disk.fs != nullptr) return boot_must(disk.fs->create(f.name.c_str(), max_bytes), "file " + f.name);
  return boot_must(machine_->files.create_inode(f.name.c_str(), *disk.device, first, Bytes(0), max_bytes),
                   "file " + f.name);
}

void Simulation::make_devices() {
  for (const DeviceConfig& d : s_.devices) {
    Device& device = devices_[d.name];
    device.memory = std::make_unique<MemDevice>(machine_->files, machine_->memory, machine_->pages, *mmu_);
    boot_must(device.memory->init(d.name.c_str(), d.size), "device " + d.name);
    device.model.file = boot_must(device.memory->open(), "device " + d.name);
    device.model.inode = device.model.file->f_inode;
    const auto pages = static_cast<size_t>(device.memory->size().v);
    device.model.expected.assign(pages, 0);
    device.model.changing.assign(pages, 0);
  }
}

void Simulation::make_files() {
  for (const FileConfig& f : s_.files) {
    const uint64_t max_pages = page_align_up(f.max_size.v) >> PAGE_SHIFT;
    FileModel model;
    if (f.tmpfs) {
      model.inode = boot_must(machine_->shmem.create_inode(f.name.c_str(), f.size), "file " + f.name);
      model.file = boot_must(machine_->shmem.open(*model.inode), "file " + f.name);
    } else {
      model.inode = make_inode(f, max_pages);
      model.file = boot_must(machine_->files.open(*model.inode), "file " + f.name);
    }
    model.expected.assign(max_pages, 0);
    model.changing.assign(max_pages, 0);
    files_.emplace(f.name, std::move(model));
    if (f.tmpfs) continue;  // empty: it reads as zero
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

/// Waits until no request is under way and no kthread has anything in its hands: verify() wants that. No task may run
/// meanwhile.
void Simulation::come_to_rest() {
  const auto gauge = [&](NodeStat s) { return machine_->vmstat.node_page_state(s); };
  const auto busy = [&] {
    if (machine_->oom_reaper.busy()) return true;
    if (gauge(NodeStat::nr_writeback) != 0 || gauge(NodeStat::nr_isolated_anon) != 0 ||
        gauge(NodeStat::nr_isolated_file) != 0)
      return true;
    for (const auto& [name, disk] : disks_)
      if (disk.sim->sim_stats().waiting + disk.sim->sim_stats().in_service != 0) return true;
    return false;
  };
  while (busy()) world_->schedule_timeout(1_ms);
  if (ksm_has_run_) machine_->ksm.ksm_do_scan(0);  // a scan under way ends
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
  const Ksm::Stats ksm = machine_->ksm.stats();
  if (ksm.full_scans != 0)
    result_.ksm = {{"pages_shared", ksm.pages_shared},
                   {"pages_sharing", ksm.pages_sharing},
                   {"pages_unshared", ksm.pages_unshared},
                   {"pages_volatile", ksm.pages_volatile},
                   {"full_scans", static_cast<int64_t>(ksm.full_scans)}};
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
    record_memory_ = std::make_unique<Mapping>(Recorder::bytes_for(1 << 16));
    recorder_ = std::make_unique<Recorder>(record_memory_->span(), output_to_fd(record_fd_));
    recorder_->names().fact("kernel", profile_.name);
    recorder_->names().fact("seed", std::to_string(seed_));
    recorder_->names().fact("page_size", "4096");
    recorder_->names().fact("ram_pages", std::to_string(pages_in(s_.ram).v));
    recorder_->names().fact("scenario", s_.title.empty() ? s_.path : s_.title);
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
    make_devices();
    arm_disks();
  });
  VirtualWorld::RunState state = world_->run();
  if (!failure.empty()) throw ScenarioError(failure);
  if (state == VirtualWorld::RunState::finished) {
    // The scenario's times count from here.
    run_thread("init", [&] {
      for (const TaskConfig& task : s_.tasks) start_task(task);
      if (options_.fail_allocation) machine_->pages.fail_page_alloc(*options_.fail_allocation);
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
      if (options_.fail_allocation)
        result_.allocations = *options_.fail_allocation - machine_->pages.fail_page_alloc(-1);
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

SimResult run_scenario(const Scenario& scenario, const SimOptions& options) {
  return Simulation(scenario, options).run();
}

}  // namespace weir::sim
