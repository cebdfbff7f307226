// tests/support/swap_fixture.hpp
//
// Machines that swap.
//
//   SwapMachine m;  m.add_area(1024);            the rooms from frames to swapon, no processes
//   ReclaimWorld w({.ram = 16_MiB}, {.seed = 7});  a whole machine with tasks, kswapd and hardware that sets bits in
//   PTEs w.run([&] { Task& t = w.task("a"); ... w.put(t, address, value); ... });
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "arch/soft/soft_mmu.hpp"
#include "kernel/virtual/virtual_world.hpp"
#include "mm/machine.hpp"
#include "support/mm_fixture.hpp"

namespace weir::test {

/// Where a world's log goes when nobody wants to read it.
inline void no_log(Nanos, const char*) {}

/// A device in the test's own memory that does as it is told.
class TestDevice final : public BlockDevice {
 public:
  struct Options {
    const char* name = "test0";
    int64_t pages = 1024;
    bool synchronous = true;
    bool nonrotational = true;
    Nanos latency{};  ///< of a bio; 0: it ends before submit_bio returns
    bool discards = false;
  };
  explicit TestDevice(Options options) : options_(options) {
    store_.resize(static_cast<size_t>(options.pages) * PAGE_SIZE);
  }

  bool room = true;                                      ///< false: has_room says so, and writes get ENOMEM
  std::set<uint64_t> bad;                                ///< pages on which reads and writes fail with EIO
  std::vector<uint64_t> freed;                           ///< slot_free_notify, in order
  std::vector<uint64_t> written, read;                   ///< pages, in order
  std::vector<std::pair<uint64_t, uint64_t>> discarded;  ///< first page, pages
  unsigned in_flight = 0;

  [[nodiscard]] const char* name() const override { return options_.name; }
  [[nodiscard]] PageCount capacity() const override { return PageCount(options_.pages); }
  [[nodiscard]] bool synchronous() const override { return options_.synchronous; }
  [[nodiscard]] bool nonrotational() const override { return options_.nonrotational; }
  [[nodiscard]] bool has_room() const override { return room; }
  [[nodiscard]] bool can_discard() const override { return options_.discards; }
  void slot_free_notify(uint64_t index) override { freed.push_back(index); }
  std::byte* page(uint64_t index) { return store_.data() + index * PAGE_SIZE; }
  [[nodiscard]] uint64_t word(uint64_t index) {
    uint64_t v = 0;
    std::memcpy(&v, page(index), sizeof v);
    return v;
  }

  Result<void> rw_page(BioOp op, uint64_t index, Content content) override {
    if (op == BioOp::write && !room) return Errno::nomem;
    if (const Errno e = transfer(op, index, content); e != Errno::ok) return e;
    return {};
  }
  void submit_bio(Bio& bio) override {
    ++in_flight;
    if (options_.latency == Nanos(0)) return end(bio);
    auto* pending = new Pending{.timer = {}, .bio = &bio, .device = this};
    pending->timer.function = [](void* data) {
      auto* p = static_cast<Pending*>(data);
      Bio& done = *p->bio;
      TestDevice& device = *p->device;
      delete p;
      device.end(done);
    };
    pending->timer.data = pending;
    world().timer_arm(pending->timer, options_.latency);
  }

 private:
  struct Pending {
    Timer timer;
    Bio* bio;
    TestDevice* device;
  };
  void end(Bio& bio) {
    if (bio.op == BioOp::discard) {
      discarded.emplace_back(bio.sector / SECTORS_PER_PAGE, bio.pages);
      std::memset(page(bio.sector / SECTORS_PER_PAGE), 0xdd, bio.pages * PAGE_SIZE);
      --in_flight;
      return bio.end_io(bio);
    }
    bio.status = transfer(bio.op, bio.sector / SECTORS_PER_PAGE, bio.content);
    --in_flight;
    bio.end_io(bio);
  }
  Errno transfer(BioOp op, uint64_t index, Content content) {
    if (index >= static_cast<uint64_t>(options_.pages) || bad.count(index) != 0) return Errno::io;
    if (op == BioOp::write) {
      std::memcpy(page(index), content.bytes, PAGE_SIZE);
      written.push_back(index);
    } else {
      std::memcpy(content.bytes, page(index), PAGE_SIZE);
      read.push_back(index);
    }
    return Errno::ok;
  }
  Options options_;
  std::vector<std::byte> store_;
};

/// The rooms from frames to swapon.
class SwapMachine : public TestMachine {
 public:
  explicit SwapMachine(MachineOptions options = {.ram = Bytes(uint64_t{16} << 20)})
      : TestMachine(options),
        slab(pages, vmstat, options.cpus),
        tables(pages, vmstat),
        vmalloc(pages, slab, tables, vmstat),
        lru(pages, vmstat, mmu, options.cpus),
        filemap(pages, slab, lru, vmstat),
        files(pages, slab, vmalloc, vmstat, options.cpus),
        slots(files, vmstat, options.cpus),
        bios(pages),
        io(filemap, files, bios, vmstat, mmu),
        cache(filemap, files, slots, io, vmstat, mmu),
        swapon(files, cache, slots, vmstat) {
    slab.kmem_cache_init();
    WEIR_BUG_ON(!tables.init());
    vmalloc.init();
    WEIR_BUG_ON(!lru.init() || !filemap.init() || !slots.init() || !bios.init(16));
  }

  Slab slab;
  PageTables tables;
  Vmalloc vmalloc;
  Lru lru;
  Filemap filemap;
  SwapFiles files;
  SwapSlots slots;
  BioSet bios;
  PageIo io;
  SwapCache cache;
  SwapOn swapon;
  std::vector<std::unique_ptr<TestDevice>> devices;

  /// mkswap and swapon of a new device. Returns it; its type is type_of(it).
  TestDevice& add_area(TestDevice::Options options, int prio = SWAP_PRIO_AUTO) {
    devices.push_back(std::make_unique<TestDevice>(options));
    TestDevice& device = *devices.back();
    const Result<void> made = swapon.mkswap(device);
    WEIR_BUG_ON(!made);
    const Result<unsigned> on = swapon.swapon(device, prio);
    WEIR_BUG_ON(!on);
    device.written.clear();
    device.read.clear();
    return device;
  }
  [[nodiscard]] unsigned type_of(const BlockDevice& device) const {
    for (unsigned type = 0; type < MAX_SWAPFILES; ++type)
      if (const SwapInfo* si = files.swap_info(type); si != nullptr && si->bdev == &device) return type;
    return MAX_SWAPFILES;
  }
  /// A page as swap-out finds it: anonymous, uptodate, locked, on the LRU or not, its word `value`.
  Page& anon_page(uint64_t value) {
    Page* page = pages.alloc_page(GFP_HIGHUSER_MOVABLE);
    WEIR_BUG_ON(page == nullptr);
    filemap.__set_page_locked(*page);
    page->set(PageFlag::swapbacked);
    page->set(PageFlag::uptodate);
    std::memset(mem.page_address(*page), 0, PAGE_SIZE);
    std::memcpy(mem.page_address(*page), &value, sizeof value);
    return *page;
  }
  [[nodiscard]] uint64_t word(const Page& page) const {
    uint64_t v = 0;
    std::memcpy(&v, mem.page_address(page), sizeof v);
    return v;
  }
  [[nodiscard]] int64_t gauge(NodeStat s) const { return vmstat.node_page_state(s); }
  [[nodiscard]] uint64_t event(VmEvent e) const { return vmstat.event(e); }
  /// What a recount of the areas finds wrong; empty if nothing.
  [[nodiscard]] std::string swap_faults() {
    std::string found;
    files.survey([](void* arg, const char* id,
                    const char* text) { *static_cast<std::string*>(arg) += std::string(id) + ": " + text + "\n"; },
                 &found);
    return found;
  }
};

/// A whole machine: tasks, areas, kswapd. At the end verify() must find nothing.
class ReclaimWorld {
 public:
  struct Options {
    Bytes ram = Bytes(uint64_t{16} << 20);
    unsigned cpus = 1;
    KernelEra kernel = DEFAULT_KERNEL;
    Pfn dma32_end{uint64_t{1} << 20};  ///< lower it to have two zones
    weir::MachineOptions::Threads threads = weir::MachineOptions::Threads::kswapd;
    unsigned page_cluster = 3;
    int swappiness = 60;
    SoftMmu::Model model = SoftMmu::Model::hardware;
  };
  explicit ReclaimWorld(Options options) : ReclaimWorld(options, VirtualWorld::Options{}) {}
  ReclaimWorld(Options options, VirtualWorld::Options world_options)
      : arena(pages_in(options.ram)),
        mmu(new SoftMmu({.model = options.model, .cpus = options.cpus})),
        world(with_log(std::move(world_options), options.cpus)) {
    weir::MachineOptions o;
    o.layout.ranges[0] = {Pfn(0), pages_in(options.ram)};
    o.layout.nr_ranges = 1;
    o.layout.dma32_end = options.dma32_end;
    o.kernel = options.kernel;
    o.cpus = options.cpus;
    o.threads = options.threads;
    o.page_cluster = options.page_cluster;
    o.swappiness = options.swappiness;
    run([&] {
      Result<Machine*> made = Machine::create(place_, world, *mmu, arena.base(), o);
      WEIR_BUG_ON(!made);
      machine_ = *made;
      mmu->set_fault_handler(machine_->fault);
    });
  }
  ~ReclaimWorld() {
    run([&] {
      while (!tasks_.empty()) exit(*tasks_.back());
      for (File* file : files_) machine_->files.close(*file);
      for (Inode* inode : inodes_) machine_->files.iput(*inode);
    });
    world.run_until(world.now() + 2_s);  // I/O ends, kswapd falls asleep
    run([&] {
      EXPECT_EQ(broken(), "");
      machine_->shutdown();
    });
    machine_->~Machine();
  }

  Arena arena;
  std::unique_ptr<SoftMmu> mmu;
  std::vector<std::string> log;
  VirtualWorld world;
  std::vector<std::unique_ptr<TestDevice>> devices;

  Machine& m() { return *machine_; }
  void run(std::function<void()> fn) {
    world.spawn("test", std::move(fn));
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
  }
  /// Runs fn in a thread of `task`. run() makes it go.
  void spawn(Task& task, std::function<void()> fn) {
    task.thread = world.spawn(
        task.comm,
        [this, &task, fn = std::move(fn)] {
          fn();
          task.thread = nullptr;
        },
        &task);
  }
  void run() { ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report(); }

  TestDevice& add_area(TestDevice::Options options, int prio = SWAP_PRIO_AUTO) {
    devices.push_back(std::make_unique<TestDevice>(options));
    TestDevice& device = *devices.back();
    run([&] {
      const Result<void> made = m().swapon.mkswap(device);
      WEIR_BUG_ON(!made);
      const Result<unsigned> on = m().swapon.swapon(device, prio);
      WEIR_BUG_ON(!on);
    });
    device.written.clear();
    device.read.clear();
    return device;
  }

  // ---- inside a thread of the world
  Task& task(const char* comm, Task* parent = nullptr) {
    Result<Task*> made = m().task_create(comm, parent);
    WEIR_BUG_ON(!made);
    tasks_.push_back(*made);
    return **made;
  }
  Task& fork(Task& parent) {
    Result<Task*> made = m().task_fork(parent);
    WEIR_BUG_ON(!made);
    tasks_.push_back(*made);
    return **made;
  }
  void exit(Task& task) {
    std::erase(tasks_, &task);
    m().task_exit(task, 0);
  }
  VirtAddr map(Task& task, uint64_t pages, uint64_t extra_flags = 0) {
    MmapRequest request;
    request.length = pages << PAGE_SHIFT;
    request.extra_flags = extra_flags;
    Result<VirtAddr> at = m().spaces.mmap(*task.mm, request);
    WEIR_BUG_ON(!at);
    return *at;
  }
  FaultResult store(Task& task, VirtAddr address, uint64_t value) { return mmu->store(task, address, value); }
  FaultResult load(Task& task, VirtAddr address, uint64_t& value) { return mmu->load(task, address, value); }
  /// The same where nothing can go wrong.
  void put(Task& task, VirtAddr address, uint64_t value) { ASSERT_EQ(store(task, address, value), FaultResult::done); }
  uint64_t get(Task& task, VirtAddr address) {
    uint64_t value = ~uint64_t{0};
    EXPECT_EQ(load(task, address, value), FaultResult::done);
    return value;
  }
  static VirtAddr at(VirtAddr base, uint64_t page) { return base + (page << PAGE_SHIFT); }
  /// Word i + seed in page i of n.
  void fill(Task& task, VirtAddr base, uint64_t n, uint64_t seed) {
    for (uint64_t i = 0; i < n; ++i) put(task, at(base, i), seed + i);
  }
  void expect(Task& task, VirtAddr base, uint64_t n, uint64_t seed) {
    for (uint64_t i = 0; i < n; ++i) ASSERT_EQ(get(task, at(base, i)), seed + i) << "page " << i;
  }
  /// Every page of n forgotten by hardware as used, as time would do it.
  void make_old(Task& task, VirtAddr base, uint64_t n) {
    for (uint64_t i = 0; i < n; ++i)
      if (PteLock pte = m().tables.pte_offset_map_lock(*task.mm, at(base, i)); pte && pte_present(*pte))
        m().tables.ptep_test_and_clear_young(*task.mm, at(base, i), pte.get());
  }
  /// Out to swap, or off the page cache, as many of n as go.
  PageCount reclaim(int64_t n) {
    m().lru.lru_add_drain();
    return m().vmscan.shrink_all_memory(PageCount(n));
  }
  /// A file of `pages` pages on `device`, its page i beginning with word i + 1. Put at the end.
  File& file(TestDevice& device, uint64_t pages) {
    for (uint64_t i = 0; i < pages; ++i) {
      const uint64_t word = i + 1;
      std::memcpy(device.page(i), &word, sizeof word);
    }
    Result<Inode*> inode =
        m().files.create_inode("file", device, 0, Bytes(pages << PAGE_SHIFT), Bytes(pages << PAGE_SHIFT));
    WEIR_BUG_ON(!inode);
    inodes_.push_back(*inode);
    Result<File*> file = m().files.open(**inode);
    WEIR_BUG_ON(!file);
    files_.push_back(*file);
    return **file;
  }
  /// The word at the beginning of the file's page.
  uint64_t read_file(File& file, uint64_t page) {
    uint64_t word = 0;
    const Result<uint64_t> got =
        m().files.read(file, page << PAGE_SHIFT, reinterpret_cast<std::byte*>(&word), sizeof word);
    EXPECT_TRUE(got.ok());
    return word;
  }
  /// A device for files: no swap.
  TestDevice& add_disk(TestDevice::Options options) {
    devices.push_back(std::make_unique<TestDevice>(options));
    return *devices.back();
  }
  [[nodiscard]] Pte pte(Task& task, VirtAddr address) {
    const Pte* p = m().tables.walk(*task.mm, address);
    return p != nullptr ? *p : Pte{};
  }
  [[nodiscard]] Page* page_at(Task& task, VirtAddr address) {
    const Pte p = pte(task, address);
    return pte_present(p) ? &m().mem.page(pte_pfn(p)) : nullptr;
  }
  /// What verify() finds; empty if nothing.
  [[nodiscard]] std::string broken() {
    struct Sink final : VerifySink {
      std::string text;
      void broken(const char* id, const char* what, uint64_t subject, uint64_t expected, uint64_t found) override {
        text += std::string(id) + " (" + what + "): " + std::to_string(subject) + ": " + std::to_string(expected) +
                " expected, " + std::to_string(found) + " found\n";
      }
    } sink;
    // At rest: what is on its way to a device arrives first.
    if (engine_thread().world == &world)
      while (m().vmstat.node_page_state(NodeStat::nr_writeback) != 0) world.schedule_timeout(1_ms);
    std::vector<std::byte> scratch(m().verify_scratch_bytes());
    m().verify(scratch, sink);
    if (!mmu->caps().has_accessed)
      if (const char* rule = mmu->uffd().broken_rule()) sink.text += std::string("hardware: ") + rule + "\n";
    return sink.text;
  }
  [[nodiscard]] int64_t gauge(NodeStat s) { return m().vmstat.node_page_state(s); }
  [[nodiscard]] uint64_t event(VmEvent e) { return m().vmstat.event(e); }

 private:
  VirtualWorld::Options with_log(VirtualWorld::Options options, unsigned cpus) {
    options.cpus = cpus;
    options.log = [this](Nanos, const char* text) { log.emplace_back(text); };
    return options;
  }
  alignas(Machine) std::byte place_[sizeof(Machine)];
  Machine* machine_ = nullptr;
  std::vector<Task*> tasks_;
  std::vector<File*> files_;
  std::vector<Inode*> inodes_;
};

}  // namespace weir::test
