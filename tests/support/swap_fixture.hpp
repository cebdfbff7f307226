// tests/support/swap_fixture.hpp
//
// Machines that swap.
//
//   SwapMachine m;  m.add_area(1024);            the rooms from frames to swapon, no processes
//   ReclaimWorld w({.ram = 16_MiB}, {.seed = 7});  a whole machine with tasks, kswapd and hardware that sets bits in
//   PTEs w.run([&] { Task& t = w.task("a"); ... w.store(t, address, value); ... });
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

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
  };
  explicit TestDevice(Options options) : options_(options) {
    store_.resize(static_cast<size_t>(options.pages) * PAGE_SIZE);
  }

  bool room = true;                     ///< false: has_room says so, and writes get ENOMEM
  std::set<uint64_t> bad;               ///< pages on which reads and writes fail with EIO
  std::vector<uint64_t> freed;          ///< slot_free_notify, in order
  std::vector<uint64_t> written, read;  ///< pages, in order
  unsigned in_flight = 0;

  [[nodiscard]] const char* name() const override { return options_.name; }
  [[nodiscard]] PageCount capacity() const override { return PageCount(options_.pages); }
  [[nodiscard]] bool synchronous() const override { return options_.synchronous; }
  [[nodiscard]] bool nonrotational() const override { return options_.nonrotational; }
  [[nodiscard]] bool has_room() const override { return room; }
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
        io(filemap, files, vmstat, mmu),
        cache(filemap, files, slots, io, vmstat, mmu),
        swapon(files, cache, slots, vmstat) {
    slab.kmem_cache_init();
    WEIR_BUG_ON(!tables.init());
    vmalloc.init();
    WEIR_BUG_ON(!lru.init() || !filemap.init() || !slots.init() || !io.init(16));
  }

  Slab slab;
  PageTables tables;
  Vmalloc vmalloc;
  Lru lru;
  Filemap filemap;
  SwapFiles files;
  SwapSlots slots;
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

/// Hardware that walks the machine's tables itself and sets young and dirty; or, with capabilities taken away, knows
/// only what it was told (update_mmu_cache) until it is told otherwise, and keeps a copy of what lies in each slot.
class HardwareMmu final : public Mmu {
 public:
  Caps capabilities;
  MemMap* mem = nullptr;
  std::set<const Page*> pinned;  ///< cannot be aged
  uint64_t flushes = 0, flushed = 0, ages = 0, aged = 0, dirty_tests = 0;
  std::set<std::pair<Mm*, uint64_t>> valid;

  [[nodiscard]] bool knows(Mm& mm, VirtAddr a) const {
    return capabilities.has_accessed || valid.count({&mm, a.page().v}) != 0;
  }
  [[nodiscard]] Caps caps() const override { return capabilities; }
  Result<void> attach(MemMap& m, PageTables&, Bootmem&) override {
    mem = &m;
    return {};
  }
  Result<void> update_mmu_cache(Mm& mm, VirtAddr address, Pte, Page*) override {
    valid.insert({&mm, address.page().v});
    return {};
  }
  void flush_batch(FlushBatch& batch) override {
    ++flushes;
    for (unsigned i = 0; i < batch.count; ++i) valid.erase({batch.entries[i].mm, batch.entries[i].address.page().v});
    flushed += batch.count;
    batch.count = 0;
  }
  void age_batch(FlushBatch& batch) override {
    ++ages;
    for (unsigned i = 0; i < batch.count; ++i) {
      FlushEntry& e = batch.entries[i];
      if (pinned.count(e.page) != 0) {
        e.page = nullptr;
        continue;
      }
      valid.erase({e.mm, e.address.page().v});
      ++aged;
    }
    batch.count = 0;
  }
  bool test_dirty(Page& page) override {
    ++dirty_tests;
    const auto it = slots_.find(page.private_);
    return it == slots_.end() || std::memcmp(it->second.data(), mem->page_address(page), PAGE_SIZE) != 0;
  }
  void mark_clean(Page& page) override {
    const auto* bytes = reinterpret_cast<const char*>(mem->page_address(page));
    slots_[page.private_] = std::string(bytes, PAGE_SIZE);
  }
  void flush_range(Mm& mm, VirtAddr start, VirtAddr end) override {
    for (auto it = valid.lower_bound({&mm, start.v}); it != valid.end() && it->first == &mm && it->second < end.v;)
      it = valid.erase(it);
  }
  void mm_created(Mm&) override {}
  void mm_destroyed(Mm&) override {}
  Content kmap(Page& page) override { return {.bytes = mem->page_address(page)}; }
  void kunmap(Page&) override {}
  void clear_user_highpage(Page& page) override { std::memset(mem->page_address(page), 0, PAGE_SIZE); }
  void copy_user_highpage(Page& to, Page& from) override {
    std::memcpy(mem->page_address(to), mem->page_address(from), PAGE_SIZE);
  }
  void arch_alloc_page(Page&, Order, gfp_t) override {}
  bool arch_free_page(Page&, Order) override { return true; }
  void flush_quarantine() override {}

 private:
  std::map<uint64_t, std::string> slots_;
};

/// A whole machine: tasks, areas, kswapd. At the end verify() must find nothing.
class ReclaimWorld {
 public:
  struct Options {
    Bytes ram = Bytes(uint64_t{16} << 20);
    unsigned cpus = 1;
    weir::MachineOptions::Threads threads = weir::MachineOptions::Threads::kswapd;
    unsigned page_cluster = 3;
    int swappiness = 60;
    Mmu::Caps caps{};
  };
  explicit ReclaimWorld(Options options) : ReclaimWorld(options, VirtualWorld::Options{}) {}
  ReclaimWorld(Options options, VirtualWorld::Options world_options)
      : arena(pages_in(options.ram)), world(with_log(std::move(world_options), options.cpus)) {
    mmu.capabilities = options.caps;
    weir::MachineOptions o;
    o.layout.ranges[0] = {Pfn(0), pages_in(options.ram)};
    o.layout.nr_ranges = 1;
    o.cpus = options.cpus;
    o.threads = options.threads;
    o.page_cluster = options.page_cluster;
    o.swappiness = options.swappiness;
    run([&] {
      Result<Machine*> made = Machine::create(place_, world, mmu, arena.base(), o);
      WEIR_BUG_ON(!made);
      machine_ = *made;
    });
  }
  ~ReclaimWorld() {
    run([&] {
      while (!tasks_.empty()) exit(*tasks_.back());
    });
    world.run_until(world.now() + 2_s);  // I/O ends, kswapd falls asleep
    run([&] {
      EXPECT_EQ(broken(), "");
      machine_->shutdown();
    });
    machine_->~Machine();
  }

  Arena arena;
  HardwareMmu mmu;
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
  /// One access by a program: hardware's walk, else the fault, until it is done or refused.
  FaultResult access(Task& task, VirtAddr address, bool write, const std::function<void(std::byte*)>& fn) {
    for (;;) {
      Mm& mm = *task.mm;
      Pte* table = m().tables.pte_table(mm, address);
      Pte* pte = table != nullptr ? table + (address.v >> PAGE_SHIFT) % PTRS_PER_TABLE : nullptr;
      const bool present = pte != nullptr && pte_present(*pte);
      if (present && (!write || pte_write(*pte)) && mmu.knows(mm, address)) {
        if (mmu.capabilities.has_accessed) pte->v |= _PAGE_ACCESSED;
        if (write && mmu.capabilities.has_dirty) pte->v |= _PAGE_DIRTY;
        fn(m().mem.address(pte_pfn(*pte)) + (address.v & ~PAGE_MASK));
        return FaultResult::done;
      }
      const uint32_t code = PF_USER | (write ? PF_WRITE : 0u) | (present ? PF_PROT : 0u);
      if (const FaultResult r = m().do_page_fault(task, address, code); r != FaultResult::done) return r;
    }
  }
  FaultResult store(Task& task, VirtAddr address, uint64_t value) {
    return access(task, address, true, [&](std::byte* at) { std::memcpy(at, &value, sizeof value); });
  }
  FaultResult load(Task& task, VirtAddr address, uint64_t& value) {
    return access(task, address, false, [&](std::byte* at) { std::memcpy(&value, at, sizeof value); });
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
    std::vector<std::byte> scratch(m().verify_scratch_bytes());
    m().verify(scratch, sink);
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
};

}  // namespace weir::test
