// tests/support/vm_fixture.hpp
//
// A whole machine on soft hardware, in a virtual world: processes that map, touch, fork and die.
//
//   run_vm({.ram = 16_MiB, .swap = 16_MiB}, [](Vm& vm) {
//     Task& task = vm.task();
//     const VirtAddr at = vm.map(task, 10);
//     vm.write(task, at, 7);
//   });                                          // at the end: all tasks exit, verify() finds nothing
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "arch/soft/soft_mmu.hpp"
#include "block/sim_disk.hpp"
#include "kernel/virtual/virtual_world.hpp"
#include "mm/machine.hpp"
#include "support/mm_fixture.hpp"

namespace weir::test {

struct VmOptions {
  KernelEra kernel = DEFAULT_KERNEL;
  Bytes ram = Bytes(uint64_t{16} << 20);
  Bytes swap{0};  ///< a simulated disk of this size, on
  Bytes disk{0};  ///< another one, for files
  unsigned cpus = 1;
  uint64_t seed = 1;
  uint32_t preempt_one_in = 0;
  ContentKind content = ContentKind::bytes;
  SoftMmu::Model model = SoftMmu::Model::hardware;
  UffdModel::Failures failures = {};
  weir::MachineOptions::Threads threads = weir::MachineOptions::Threads::none;
  unsigned page_cluster = 0;  ///< no readahead: faults are counted exactly
};

class Vm {
 public:
  Vm(VirtualWorld& world, const VmOptions& options)
      : world(world), options(options), arena_(pages_in(options.ram)), mmu(new SoftMmu(mmu_options(options))) {
    weir::MachineOptions o;
    o.kernel = options.kernel;
    o.layout.ranges[0] = {Pfn(0), pages_in(options.ram)};
    o.layout.nr_ranges = 1;
    o.cpus = options.cpus;
    o.page_cluster = options.page_cluster;
    o.threads = options.threads;
    Result<Machine*> made = Machine::create(place_->bytes, world, *mmu, arena_.base(), o);
    WEIR_BUG_ON(!made);
    machine = *made;
    mmu->set_fault_handler(machine->fault);
    if (options.swap.v != 0) {
      swap_disk = make_disk("swap", options.swap, swap_place_);
      WEIR_BUG_ON(!machine->swapon.mkswap(*swap_disk));
      WEIR_BUG_ON(!machine->swapon.swapon(*swap_disk, SWAP_PRIO_AUTO));
    }
    if (options.disk.v != 0) file_disk = make_disk("disk", options.disk, disk_place_);
  }
  ~Vm() {
    machine->shutdown();
    machine->~Machine();
    if (swap_disk != nullptr) swap_disk->~SimDisk();
    if (file_disk != nullptr) file_disk->~SimDisk();
  }

  // ---- tasks
  Task& task(const char* comm = "task") {
    Result<Task*> made = machine->task_create(comm, nullptr);
    WEIR_BUG_ON(!made);
    tasks_.push_back(*made);
    return **made;
  }
  Task& fork(Task& parent) {
    Result<Task*> made = machine->task_fork(parent);
    WEIR_BUG_ON(!made);
    tasks_.push_back(*made);
    return **made;
  }
  void exit(Task& task) {
    std::erase(tasks_, &task);
    machine->task_exit(task, 0);
  }
  void exit_all() {
    while (!tasks_.empty()) exit(*tasks_.back());
  }
  /// Another thread that runs `fn` (as `task`, if it is given); join() waits for all of them.
  void spawn(std::function<void()> fn, Task* task = nullptr) {
    ++running_;
    world.spawn(
        "thread",
        [this, fn = std::move(fn)] {
          fn();
          if (--running_ == 0) done_.wake_all();
        },
        task);
  }
  void join() {
    done_.wait([this] { return running_ == 0; });
  }

  // ---- memory
  VirtAddr map(Task& task, uint64_t pages, uint64_t prot = VM_READ | VM_WRITE, VirtAddr fixed = VirtAddr(0)) {
    MmapRequest request{.addr = fixed, .length = pages << PAGE_SHIFT, .prot = prot};
    if (fixed.v != 0) request.place = MmapRequest::Place::fixed;
    Result<VirtAddr> at = machine->spaces.mmap(*task.mm, request);
    EXPECT_TRUE(at.ok()) << errno_name(at.error());
    return at ? *at : VirtAddr(0);
  }
  VirtAddr map_file(Task& task, File& file, uint64_t pages, MmapRequest::Sharing sharing,
                    uint64_t prot = VM_READ | VM_WRITE, uint64_t pgoff = 0) {
    Result<VirtAddr> at = machine->spaces.mmap(
        *task.mm, {.length = pages << PAGE_SHIFT, .prot = prot, .sharing = sharing, .file = &file, .pgoff = pgoff});
    EXPECT_TRUE(at.ok()) << errno_name(at.error());
    return at ? *at : VirtAddr(0);
  }
  /// One word: a page's tag, or 8 bytes at the address.
  void write(Task& task, VirtAddr at, uint64_t value) { EXPECT_EQ(mmu->store(task, at, value), FaultResult::done); }
  uint64_t read(Task& task, VirtAddr at) {
    uint64_t value = ~uint64_t{0};
    EXPECT_EQ(mmu->load(task, at, value), FaultResult::done);
    return value;
  }
  /// What the page's PTE is now; pte_none if there is no table.
  Pte pte(Task& task, VirtAddr at) {
    const Pte* p = machine->tables.walk(*task.mm, at);
    return p != nullptr ? *p : Pte{};
  }
  Page& page(Task& task, VirtAddr at) {
    WEIR_BUG_ON(!pte_present(pte(task, at)));
    return machine->mem.page(pte_pfn(pte(task, at)));
  }
  static VirtAddr page_at(VirtAddr base, uint64_t i) { return base + (i << PAGE_SHIFT); }

  // ---- reclaim by hand: one page, all phases
  /// The page of a PTE goes to its slot and is freed. True if it went.
  bool swap_out(Task& task, VirtAddr at) { return reclaim(page(task, at)); }
  bool reclaim(Page& page);

  // ---- proof
  uint64_t event(VmEvent e) const { return machine->vmstat.event(e); }
  int64_t gauge(NodeStat s) const { return machine->vmstat.node_page_state(s); }
  /// What verify() finds; empty if nothing.
  std::string faults() {
    struct Sink final : VerifySink {
      std::string text;
      void broken(const char* id, const char* what, uint64_t subject, uint64_t expected, uint64_t found) override {
        char line[256];
        std::snprintf(line, sizeof line, "%s: %s (subject %#lx, expected %ld, found %ld)\n", id, what, subject,
                      static_cast<int64_t>(expected), static_cast<int64_t>(found));
        if (text.size() < 4000) text += line;
      }
    } sink;
    // At rest: no I/O is under way, and kswapd has no page in its hands.
    if (options.threads != weir::MachineOptions::Threads::none) world.schedule_timeout(Nanos(10000000));
    while (gauge(NodeStat::nr_writeback) != 0 || gauge(NodeStat::nr_isolated_anon) != 0 ||
           gauge(NodeStat::nr_isolated_file) != 0 || reading())
      world.schedule_timeout(Nanos(1000000));
    machine->lru.lru_add_drain_all();
    std::vector<std::byte> scratch(machine->verify_scratch_bytes());
    machine->verify(scratch, sink);
    if (options.model == SoftMmu::Model::uffd)
      if (const char* rule = mmu->uffd().broken_rule()) sink.text += rule;
    return sink.text;
  }

  /// Reads (of readahead) are under way.
  bool reading() const {
    for (const SimDisk* disk : {swap_disk, file_disk})
      if (disk != nullptr && disk->sim_stats().waiting + disk->sim_stats().in_service != 0) return true;
    return false;
  }

  VirtualWorld& world;
  VmOptions options;

 private:
  Arena arena_;

 public:
  std::unique_ptr<SoftMmu> mmu;
  Machine* machine = nullptr;
  SimDisk* swap_disk = nullptr;
  SimDisk* file_disk = nullptr;

 private:
  static SoftMmu::Options mmu_options(const VmOptions& o) {
    SoftMmu::Options options;
    options.content = o.content;
    options.model = o.model;
    options.cpus = o.cpus;
    options.failures = o.failures;
    return options;
  }
  template <class T>
  struct Place {
    alignas(T) std::byte bytes[sizeof(T)];
  };
  SimDisk* make_disk(const char* name, Bytes size, const std::unique_ptr<Place<SimDisk>>& place) {
    SimDiskOptions o;
    o.name = name;
    o.capacity = pages_in(size);
    o.content = options.content;
    Result<SimDisk*> disk = SimDisk::create(place->bytes, world, o);
    WEIR_BUG_ON(!disk);
    return *disk;
  }
  std::unique_ptr<Place<Machine>> place_{new Place<Machine>};
  std::unique_ptr<Place<SimDisk>> swap_place_{new Place<SimDisk>}, disk_place_{new Place<SimDisk>};
  std::vector<Task*> tasks_;
  unsigned running_ = 0;
  WaitQueue done_;
};

/// What shrink_page_list does to one page, step by step.
inline bool Vm::reclaim(Page& page) {
  Machine& m = *machine;
  m.lru.lru_add_drain_all();
  m.filemap.lock_page(page);
  PageAllocator::get_page(page);
  FlushBatch batch;
  uint64_t vm_flags = 0;
  (void)m.rmap.page_referenced(page, &vm_flags, batch);  // reclaimed all the same
  m.mmu.age_batch(batch);
  bool gone = !PageAnon(page) || PageSwapCache(page) || m.swap_cache.add_to_swap(page);
  if (gone) gone = m.rmap.try_to_unmap(page, batch) == TryToUnmap::success;
  m.mmu.flush_batch(batch);
  if (gone && PageAnon(page)) gone = m.mmu.captured(page);
  if (gone && PageAnon(page) && (page.test_and_clear(PageFlag::dirty) || !m.mmu.caps().has_dirty)) {
    WritebackControl wbc;
    (void)m.page_io.swap_writepage(page, wbc);  // unlocks
    m.filemap.wait_on_page_writeback(page);
    m.filemap.lock_page(page);
    gone = page.test(PageFlag::uptodate) && !page.test(PageFlag::dirty);
  }
  if (gone && PageSwapCache(page)) m.swap_cache.delete_from_swap_cache(page);
  m.filemap.unlock_page(page);
  m.lru.put_page(page);
  return gone;
}

/// Boots, runs `fn` in a thread, lets every task exit, and looks whether anything is left.
inline void run_vm(const VmOptions& options, std::function<void(Vm&)> fn) {
  std::string log;
  VirtualWorld world({.seed = options.seed,
                      .cpus = options.cpus,
                      .preempt_one_in = options.preempt_one_in,
                      .log = [&log](Nanos, const char* text) { log += std::string(text) + "\n"; }});
  std::unique_ptr<Vm> vm;
  world.spawn("test", [&] {
    vm = std::make_unique<Vm>(world, options);
    fn(*vm);
    EXPECT_EQ(vm->faults(), "");
    vm->exit_all();
    EXPECT_EQ(vm->faults(), "");
    EXPECT_EQ(vm->gauge(NodeStat::nr_anon_pages), 0);
    EXPECT_EQ(vm->gauge(NodeStat::nr_mapped), 0);
    // A copy whose page lock somebody had when its last user went stays in the swap cache, for reclaim to find.
    SwapFiles& swap = vm->machine->swap_files;
    EXPECT_EQ(swap.total_swap_pages() - swap.nr_swap_pages(), static_cast<int64_t>(vm->machine->swap_slots.held(0)) +
                                                                  vm->machine->swap_cache.total_swapcache_pages().v);
    vm.reset();
  });
  EXPECT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report() << log;
}

}  // namespace weir::test
