// tests/support/machine_fixture.hpp
//
// A whole machine with what a scenario may give it: disks that can fail, swap on disks and in zram, files, tasks that
// run at the same time.
//
//   MachineFixture m({.ram = 16_MiB, .swaps = {{SwapKind::zram, 16_MiB}}});
//   m.run([&] { const VirtAddr at = m.map(10);  m.store(at, 7); });   // as m.task()
//   m.spawn(m.new_task("reader"), [&] { ... });
//   m.spawn(m.new_task("writer"), [&] { ... });
//   m.join();                                                         // both have ended
//                                       // at the end: tasks exit, kthreads stop, verify() finds nothing
//
// vm_fixture.hpp is the smaller one: one thread, kthreads off.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "arch/soft/soft_mmu.hpp"
#include "block/fault_injector.hpp"
#include "block/sim_disk.hpp"
#include "block/zram.hpp"
#include "kernel/freezer.hpp"
#include "kernel/virtual/virtual_world.hpp"
#include "mm/machine.hpp"
#include "support/mm_fixture.hpp"

namespace weir::test {

enum class SwapKind : uint8_t { disk, zram, zram_zstd };

struct SwapOptions {
  SwapKind kind = SwapKind::disk;
  Bytes size = Bytes(uint64_t{16} << 20);
  Bytes mem_limit{0};  ///< of a zram's pool; 0: none
};

struct FixtureOptions {
  KernelEra kernel = DEFAULT_KERNEL;
  Bytes ram = Bytes(uint64_t{16} << 20);
  Pfn dma32_end{uint64_t{1} << 20};  ///< lower it to have two zones
  unsigned cpus = 1;
  uint64_t seed = 1;
  uint32_t preempt_one_in = 0;
  ContentKind content = ContentKind::bytes;
  SoftMmu::Model model = SoftMmu::Model::hardware;
  UffdModel::Failures uffd_failures = {};
  weir::MachineOptions::Threads threads = weir::MachineOptions::Threads::all;
  int swappiness = 60;
  unsigned page_cluster = 3;
  std::vector<SwapOptions> swaps = {};
  Bytes disk{0};  ///< for files
  Nanos disk_latency = 80_us;
};

/// Keeps what verify() finds.
struct Findings final : VerifySink {
  std::vector<std::string> ids;
  std::string text;
  void broken(const char* id, const char* what, uint64_t subject, uint64_t expected, uint64_t found) override {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.emplace_back(id);
    char line[320];
    std::snprintf(line, sizeof line, "%s: %s (subject %#lx, expected %#lx, found %#lx)\n", id, what, subject, expected,
                  found);
    if (text.size() < 4000) text += line;
  }
  [[nodiscard]] bool has(std::string_view id) const { return std::find(ids.begin(), ids.end(), id) != ids.end(); }
};

class MachineFixture {
 public:
  explicit MachineFixture(const FixtureOptions& options = {})
      : options(options),
        world({.seed = options.seed,
               .cpus = options.cpus,
               .preempt_one_in = options.preempt_one_in,
               .log = [this](Nanos, const char* line) { log.emplace_back(line); }}),
        arena_(pages_in(options.ram)) {
    in_a_thread("boot", [this] { boot(); });
  }

  /// Everything goes in good order, and nothing may be left over.
  ~MachineFixture() {
    if (abandoned_) return;
    in_a_thread("end", [this] {
      while (!tasks_.empty()) exit(*tasks_.back());
      for (File* file : files_) machine->files.close(*file);
      for (Inode* inode : inodes_) machine->files.iput(*inode);
      machine->shutdown();
      EXPECT_EQ(verify(), "");
      EXPECT_EQ(gauge(NodeStat::nr_anon_pages), 0);
      EXPECT_EQ(gauge(NodeStat::nr_mapped), 0);
      machine->~Machine();
      for (auto& s : swaps) s->zram.reset();
      for (auto& s : swaps) s->disk.reset();
      file_disk.reset();
    });
  }
  MachineFixture(const MachineFixture&) = delete;
  MachineFixture& operator=(const MachineFixture&) = delete;

  // ---- tasks and threads
  /// The first task.
  Task& task() { return *tasks_.front(); }
  Task& new_task(const char* comm) {
    Task* made = nullptr;
    in_a_thread("make", [&] { made = &make_task(comm); });
    return *made;
  }
  /// In a thread already.
  Task& make_task(const char* comm, Task* parent = nullptr) {
    Result<Task*> made = machine->task_create(comm, parent);
    WEIR_BUG_ON(!made);
    tasks_.push_back(*made);
    return **made;
  }
  /// A task made by somebody else is the fixture's from now on: it exits at the end.
  Task& own(Task& task) {
    tasks_.push_back(&task);
    return task;
  }
  /// Null when there is no memory for it. In a thread already.
  Task* fork(Task& parent) {
    Result<Task*> made = machine->task_fork(parent);
    if (!made) return nullptr;
    tasks_.push_back(*made);
    return *made;
  }
  void exit(Task& task) {
    std::erase(tasks_, &task);
    task.thread = nullptr;
    machine->task_exit(task, 0);
  }
  /// A thread that runs `fn` as `task` from the next join() on. It must not exit its task; see leave().
  void spawn(Task& task, std::function<void()> fn) {
    Task* t = &task;
    Thread* thread = world.spawn(
        task.comm,
        [this, t, fn = std::move(fn)] {
          fn();
          if (std::find(tasks_.begin(), tasks_.end(), t) != tasks_.end()) t->thread = nullptr;
          current().task = nullptr;
        },
        t);
    task.thread = thread;
  }
  /// The running thread's own task exits.
  void leave(Task& task) {
    exit(task);
    current().task = nullptr;
  }
  /// Until all threads have ended.
  void join() { ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report(); }
  /// As the first task, to its end; verify() then finds nothing.
  void run(std::function<void()> fn) {
    spawn(task(), std::move(fn));
    join();
    in_a_thread("verify", [this] { at_rest([this] { EXPECT_EQ(verify(), ""); }); });
  }
  /// `fn` in a thread that is no task's, to its end.
  void in_a_thread(const char* comm, std::function<void()> fn) {
    world.spawn(comm, std::move(fn));
    const VirtualWorld::RunState state = world.run();
    if (state != VirtualWorld::RunState::finished) {
      abandoned_ = true;
      deadlock = world.report();
      ADD_FAILURE() << "deadlock:\n" << deadlock;
    }
  }
  [[nodiscard]] const std::vector<Task*>& tasks() const { return tasks_; }

  // ---- memory of the task whose thread this is
  VirtAddr map(uint64_t pages, uint64_t prot = VM_READ | VM_WRITE) {
    Result<VirtAddr> at = machine->spaces.mmap(*current().task->mm, {.length = pages << PAGE_SHIFT, .prot = prot});
    EXPECT_TRUE(at.ok()) << errno_name(at.error());
    return at ? *at : VirtAddr(0);
  }
  VirtAddr map_file(File& file, uint64_t pages, MmapRequest::Sharing sharing, uint64_t prot = VM_READ | VM_WRITE,
                    uint64_t pgoff = 0) {
    Result<VirtAddr> at = machine->spaces.mmap(
        *current().task->mm,
        {.length = pages << PAGE_SHIFT, .prot = prot, .sharing = sharing, .file = &file, .pgoff = pgoff});
    EXPECT_TRUE(at.ok()) << errno_name(at.error());
    return at ? *at : VirtAddr(0);
  }
  static VirtAddr page_at(VirtAddr base, uint64_t i) { return base + (i << PAGE_SHIFT); }
  /// One word: a page's tag, or 8 bytes at the address.
  FaultResult store(VirtAddr at, uint64_t value) { return mmu->store(*current().task, at, value); }
  FaultResult load(VirtAddr at, uint64_t& value) { return mmu->load(*current().task, at, value); }
  /// The same where nothing can go wrong.
  void put(VirtAddr at, uint64_t value) { EXPECT_EQ(store(at, value), FaultResult::done); }
  uint64_t get(VirtAddr at) {
    uint64_t value = ~uint64_t{0};
    EXPECT_EQ(load(at, value), FaultResult::done);
    return value;
  }
  Pte* pte_of(Task& task, VirtAddr at) { return const_cast<Pte*>(machine->tables.walk(*task.mm, at)); }
  Page& page_of(Task& task, VirtAddr at) {
    const Pte* pte = pte_of(task, at);
    WEIR_BUG_ON(pte == nullptr || !pte_present(*pte));
    return machine->mem.page(pte_pfn(*pte));
  }

  // ---- files: on the file disk, one behind the other. In a thread.
  /// `from`: not before that page.
  File& make_file(const char* name, uint64_t pages, uint64_t max_pages, uint64_t from = 0) {
    file_disk_used_ = std::max(file_disk_used_, from);
    Result<Inode*> inode = machine->files.create_inode(name, *file_device, file_disk_used_, Bytes(pages << PAGE_SHIFT),
                                                       Bytes(max_pages << PAGE_SHIFT));
    WEIR_BUG_ON(!inode);
    file_disk_used_ += max_pages;
    inodes_.push_back(*inode);
    Result<File*> file = machine->files.open(**inode);
    WEIR_BUG_ON(!file);
    files_.push_back(*file);
    return **file;
  }

  // ---- proof
  [[nodiscard]] uint64_t event(VmEvent e) const { return machine->vmstat.event(e); }
  [[nodiscard]] int64_t gauge(NodeStat s) const { return machine->vmstat.node_page_state(s); }
  /// What verify() finds now; nobody else runs.
  Findings find() {
    Findings findings;
    std::vector<uint64_t> scratch(machine->verify_scratch_bytes() / sizeof(uint64_t) + 1);
    machine->verify(std::as_writable_bytes(std::span(scratch)), findings);
    if (options.model == SoftMmu::Model::uffd) {
      if (const char* rule = mmu->uffd().broken_rule()) findings.broken("uffd", rule, 0, 0, 0);
      if (mmu->uffd().host_pages() > static_cast<uint64_t>(machine->mem.frames.v))
        findings.broken("uffd-bound", "more host pages than frames", 0, static_cast<uint64_t>(machine->mem.frames.v),
                        mmu->uffd().host_pages());
    }
    return findings;
  }
  std::string verify() { return find().text; }
  /// Runs `fn` when no kthread is anywhere inside the machine and no request is under way. False: that does not happen.
  /// In a thread; no other may run.
  bool at_rest(const std::function<void()>& fn) {
    freeze_processes(world);
    machine->ksm.ksm_do_scan(0);  // a scan under way ends, and those that are gone are forgotten
    uint64_t before = ~uint64_t{0};
    bool quiet = false, rests = false;
    for (int i = 0; i < 20000 && !rests; ++i) {
      // Who has not met the freezer yet may sleep for a tenth of a second: congestion_wait.
      world.schedule_timeout(quiet ? 120_ms : 2_ms);
      const uint64_t now = activity();
      const bool busy = gauge(NodeStat::nr_writeback) != 0 || gauge(NodeStat::nr_isolated_anon) != 0 ||
                        gauge(NodeStat::nr_isolated_file) != 0 || requests_under_way() != 0 ||
                        machine->oom_reaper.busy();
      const bool was_quiet = quiet;
      quiet = !busy && now == before;
      rests = quiet && was_quiet;
      before = now;
    }
    if (rests) fn();
    thaw_processes(world);
    return rests;
  }
  /// The world and all in it are left as they are: for a machine that is broken.
  void abandon() { abandoned_ = true; }

  FixtureOptions options;
  std::vector<std::string> log;
  std::string deadlock;
  VirtualWorld world;

 private:
  Arena arena_;

 public:
  std::unique_ptr<SoftMmu> mmu;
  Machine* machine = nullptr;
  struct DiskDelete {
    void operator()(SimDisk* disk) const { disk->~SimDisk(); }
  };
  struct ZramDelete {
    void operator()(Zram* zram) const { zram->~Zram(); }
  };
  using DiskPtr = std::unique_ptr<SimDisk, DiskDelete>;
  struct Swap {
    std::unique_ptr<Arena> place, metadata;
    DiskPtr disk;
    std::unique_ptr<Zram, ZramDelete> zram;
    std::unique_ptr<FaultInjector> faults;  ///< of disks
    BlockDevice* device = nullptr;
    std::optional<unsigned> type = {};  ///< while it is on
  };
  std::vector<std::unique_ptr<Swap>> swaps;
  DiskPtr file_disk;
  std::unique_ptr<FaultInjector> file_faults;
  BlockDevice* file_device = nullptr;

 private:
  template <class T>
  static std::unique_ptr<Arena> place_for() {
    return std::make_unique<Arena>(PageCount(static_cast<int64_t>(sizeof(T) / PAGE_SIZE + 1)));
  }
  DiskPtr make_disk(const char* name, Bytes size, std::unique_ptr<Arena>& place) {
    place = place_for<SimDisk>();
    Result<SimDisk*> made = SimDisk::create(place->base(), world,
                                            {.name = name,
                                             .capacity = pages_in(size),
                                             .content = options.content,
                                             .read_latency = options.disk_latency,
                                             .write_latency = options.disk_latency});
    WEIR_BUG_ON(!made);
    return DiskPtr(*made);
  }
  void boot() {
    SoftMmu::Options mo;
    mo.content = options.content;
    mo.model = options.model;
    mo.cpus = options.cpus;
    mo.failures = options.uffd_failures;
    mmu = std::make_unique<SoftMmu>(mo);
    weir::MachineOptions o;
    o.kernel = options.kernel;
    o.layout.ranges[0] = {Pfn(0), pages_in(options.ram)};
    o.layout.nr_ranges = 1;
    o.layout.dma32_end = options.dma32_end;
    o.cpus = options.cpus;
    o.swappiness = options.swappiness;
    o.page_cluster = options.page_cluster;
    o.threads = options.threads;
    machine_place_ = place_for<Machine>();
    Result<Machine*> made = Machine::create(machine_place_->base(), world, *mmu, arena_.base(), o);
    WEIR_BUG_ON(!made);
    machine = *made;
    mmu->set_fault_handler(machine->fault);
    for (const SwapOptions& s : options.swaps) {
      auto swap = std::make_unique<Swap>();
      BlockDevice* device = nullptr;
      if (s.kind == SwapKind::disk) {
        swap->disk = make_disk("swap", s.size, swap->place);
        swap->faults = std::make_unique<FaultInjector>(world, *swap->disk, FaultInjectorOptions{.seed = options.seed});
        device = swap->faults.get();
      } else {
        ZramOptions z;
        z.capacity = pages_in(s.size);
        z.mem_limit = pages_in(s.mem_limit);
        z.comp.algorithm = s.kind == SwapKind::zram ? Compressor::lz4 : Compressor::zstd;
        const size_t bytes = Zram::metadata_needed(z);
        swap->metadata = std::make_unique<Arena>(PageCount(static_cast<int64_t>(bytes / PAGE_SIZE + 1)));
        swap->place = place_for<Zram>();
        Result<Zram*> zram =
            Zram::create(swap->place->base(), machine->pool_frames, z, {swap->metadata->base(), bytes});
        WEIR_BUG_ON(!zram);
        swap->zram.reset(*zram);
        device = *zram;
      }
      WEIR_BUG_ON(!machine->swapon.mkswap(*device));
      Result<unsigned> on = machine->swapon.swapon(*device, -1);
      WEIR_BUG_ON(!on);
      swap->device = device;
      swap->type = *on;
      swaps.push_back(std::move(swap));
    }
    if (options.disk.v != 0) {
      file_disk = make_disk("disk", options.disk, file_place_);
      file_faults = std::make_unique<FaultInjector>(world, *file_disk, FaultInjectorOptions{.seed = options.seed + 1});
      file_device = file_faults.get();
    }
    make_task("task");
  }
  /// Changes with whatever kthreads do.
  [[nodiscard]] uint64_t activity() const {
    uint64_t sum = 0;
    for (unsigned e = 0; e < static_cast<unsigned>(VmEvent::count); ++e) sum += event(static_cast<VmEvent>(e));
    return sum;
  }
  [[nodiscard]] unsigned requests_under_way() const {
    unsigned n = 0;
    const auto add = [&](const SimDisk* disk, const FaultInjector* faults) {
      if (disk != nullptr) n += disk->sim_stats().waiting + disk->sim_stats().in_service;
      if (faults != nullptr) n += faults->fault_stats().held;
    };
    for (const auto& s : swaps) add(s->disk.get(), s->faults.get());
    add(file_disk.get(), file_faults.get());
    return n;
  }

  std::unique_ptr<Arena> machine_place_, file_place_;
  std::vector<Task*> tasks_;
  std::vector<File*> files_;
  std::vector<Inode*> inodes_;
  uint64_t file_disk_used_ = 0;
  bool abandoned_ = false;
};

}  // namespace weir::test
