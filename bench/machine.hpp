// bench/machine.hpp
//
// A machine on soft hardware in virtual time, one CPU, nobody preempted, nothing recorded, with one task.
#pragma once

#include <sys/mman.h>

#include <functional>
#include <memory>

#include "arch/soft/soft_mmu.hpp"
#include "block/sim_disk.hpp"
#include "block/zram.hpp"
#include "kernel/virtual/virtual_world.hpp"
#include "mm/machine.hpp"

namespace weir::bench {

/// Address space that costs what is touched.
class HostMemory {
 public:
  explicit HostMemory(size_t bytes) : bytes_(bytes) {
    p_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    WEIR_BUG_ON(p_ == MAP_FAILED);
  }
  ~HostMemory() { munmap(p_, bytes_); }
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(p_); }
  [[nodiscard]] size_t size() const { return bytes_; }

 private:
  void* p_;
  size_t bytes_;
};

enum class SwapKind : uint8_t { nothing, disk, zram };

struct BenchMachineOptions {
  Bytes ram{uint64_t{64} << 20};
  ContentKind content = ContentKind::tags;
  SwapKind swap = SwapKind::nothing;
  Bytes swap_size{uint64_t{1} << 30};
  unsigned page_cluster = 3;
};

class BenchMachine {
 public:
  explicit BenchMachine(const BenchMachineOptions& options)
      : world({.seed = 1, .cpus = 1, .preempt_one_in = 0, .log = [](Nanos, const char*) {}}),
        mmu(SoftMmu::Options{.content = options.content}),
        arena_(options.ram.v),
        machine_place_(sizeof(Machine)) {
    run([&] { boot(options); });
  }
  ~BenchMachine() {
    run([&] {
      task_->thread = nullptr;
      machine->task_exit(*task_, 0);
      machine->shutdown();
      machine->~Machine();
      if (zram_ != nullptr) zram_->~Zram();
      if (disk_ != nullptr) disk_->~SimDisk();
    });
  }
  BenchMachine(const BenchMachine&) = delete;
  BenchMachine& operator=(const BenchMachine&) = delete;

  /// As the task, to its end.
  void run(std::function<void()> fn) {
    Thread* thread = world.spawn(
        "bench",
        [&] {
          fn();
          current().task = nullptr;
        },
        task_);
    if (task_ != nullptr) task_->thread = thread;
    WEIR_BUG_ON(world.run() != VirtualWorld::RunState::finished);
  }
  [[nodiscard]] Task& task() { return *task_; }
  VirtAddr map(Bytes bytes) {
    Result<VirtAddr> at = machine->spaces.mmap(*task_->mm, {.length = bytes.v, .prot = VM_READ | VM_WRITE});
    WEIR_BUG_ON(!at);
    return *at;
  }
  [[nodiscard]] uint64_t event(VmEvent e) const { return machine->vmstat.event(e); }

  VirtualWorld world;
  SoftMmu mmu;
  Machine* machine = nullptr;

 private:
  void boot(const BenchMachineOptions& options) {
    MachineOptions o;
    o.layout.ranges[0] = {Pfn(0), pages_in(options.ram)};
    o.layout.nr_ranges = 1;
    o.page_cluster = options.page_cluster;
    Result<Machine*> made = Machine::create(machine_place_.data(), world, mmu, arena_.data(), o);
    WEIR_BUG_ON(!made);
    machine = *made;
    mmu.set_fault_handler(machine->fault);
    BlockDevice* device = nullptr;
    if (options.swap == SwapKind::disk) {
      disk_place_ = std::make_unique<HostMemory>(sizeof(SimDisk));
      Result<SimDisk*> disk =
          SimDisk::create(disk_place_->data(), world,
                          {.name = "swap", .capacity = pages_in(options.swap_size), .content = options.content});
      WEIR_BUG_ON(!disk);
      device = disk_ = *disk;
    } else if (options.swap == SwapKind::zram) {
      const ZramOptions z{.capacity = pages_in(options.swap_size)};
      zram_place_ = std::make_unique<HostMemory>(sizeof(Zram));
      zram_metadata_ = std::make_unique<HostMemory>(Zram::metadata_needed(z));
      Result<Zram*> zram =
          Zram::create(zram_place_->data(), machine->pool_frames, z, {zram_metadata_->data(), zram_metadata_->size()});
      WEIR_BUG_ON(!zram);
      device = zram_ = *zram;
    }
    if (device != nullptr) {
      WEIR_BUG_ON(!machine->swapon.mkswap(*device));
      WEIR_BUG_ON(!machine->swapon.swapon(*device, -1));
    }
    Result<Task*> task = machine->task_create("bench", nullptr);
    WEIR_BUG_ON(!task);
    task_ = *task;
  }

  HostMemory arena_, machine_place_;
  std::unique_ptr<HostMemory> disk_place_, zram_place_, zram_metadata_;
  SimDisk* disk_ = nullptr;
  Zram* zram_ = nullptr;
  Task* task_ = nullptr;
};

}  // namespace weir::bench
