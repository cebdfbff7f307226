// tests/support/file_fixture.hpp
//
// A machine with files but without processes: the page cache, writeback, a simulated disk behind a fault injector, and
// the flusher if wanted.
//
//   FileWorld w({.seed = 3, .preempt_one_in = 5});
//   Inode* inode = w.make_file(64_KiB);
//   w.run([&] { File* file = *w.m.files.open(*inode); ... });
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "block/fault_injector.hpp"
#include "block/sim_disk.hpp"
#include "kernel/virtual/virtual_world.hpp"
#include "mm/filemap_io.hpp"
#include "mm/flusher.hpp"
#include "mm/pgtable.hpp"
#include "support/mm_fixture.hpp"

namespace weir::test {

/// Keeps what is recorded, for tests that ask for order or windows.
class FlowLog final : public FlowSink {
 public:
  struct Entry {
    std::string function;  ///< empty: a state
    State state{};
    uint64_t a = 0, b = 0, c = 0;  ///< arguments; subject, before, after
  };
  void enter(const FlowSite& site, uint64_t a, uint64_t b, uint64_t c) override {
    entries.push_back({.function = site.function, .a = a, .b = b, .c = c});
  }
  void leave(const FlowSite&) override {}
  void state(const FlowSite&, State what, uint64_t subject, uint64_t before, uint64_t after) override {
    entries.push_back({.function = "", .state = what, .a = subject, .b = before, .c = after});
  }
  [[nodiscard]] std::vector<Entry> calls(const std::string& function) const {
    std::vector<Entry> found;
    for (const Entry& e : entries)
      if (e.function == function) found.push_back(e);
    return found;
  }
  [[nodiscard]] std::vector<Entry> states(State what) const {
    std::vector<Entry> found;
    for (const Entry& e : entries)
      if (e.function.empty() && e.state == what) found.push_back(e);
    return found;
  }
  std::vector<Entry> entries;
};

/// Frames whose content is a number each.
class TagMmu final : public Mmu {
 public:
  TagMmu(MemMap& mem, PageCount frames) : Mmu({}), mem_(mem), tags_(static_cast<size_t>(frames.v), 0x7a6d) {}
  Result<void> attach(MemMap&, PageTables&, Bootmem&) override { return {}; }
  Result<void> update_mmu_cache(Mm&, VirtAddr, Pte, Page*) override { return {}; }
  void flush_batch(FlushBatch& batch) override { batch.count = 0; }
  void age_batch(FlushBatch& batch) override { batch.count = 0; }
  bool test_dirty(Page&) override { return true; }
  void mark_clean(Page&) override {}
  void flush_range(Mm&, VirtAddr, VirtAddr) override {}
  void mm_created(Mm&) override {}
  void mm_destroyed(Mm&) override {}
  Content kmap(Page& page) override { return {.tag = &tags_[mem_.pfn(page).v]}; }
  void kunmap(Page&) override {}
  void clear_user_highpage(Page& page) override { tags_[mem_.pfn(page).v] = 0; }
  void copy_user_highpage(Page& to, Page& from) override { tags_[mem_.pfn(to).v] = tags_[mem_.pfn(from).v]; }
  void arch_alloc_page(Page&, Order, gfp_t) override {}
  bool arch_free_page(Page&, Order) override { return true; }
  void flush_quarantine() override {}

 private:
  MemMap& mem_;
  std::vector<uint64_t> tags_;
};

struct FileWorldOptions {
  uint64_t seed = 1;
  uint32_t preempt_one_in = 0;
  unsigned cpus = 1;
  Bytes ram = Bytes(uint64_t{16} << 20);
  ContentKind content = ContentKind::bytes;
  bool flusher = false;
  unsigned bio_pool = 64;
  KernelEra kernel = DEFAULT_KERNEL;
  SimDiskOptions disk{.name = "disk0", .capacity = PageCount(1 << 16)};
};

/// The rooms that files need, over a TestMachine.
class FileMachine : public TestMachine {
 public:
  FileMachine(Bytes ram, unsigned cpus, ContentKind content, KernelEra kernel = DEFAULT_KERNEL, unsigned bio_pool = 64)
      : TestMachine({.ram = ram, .cpus = cpus}),
        tags(mem, content == ContentKind::tags ? layout.end() : PageCount(0)),
        user(content == ContentKind::tags ? static_cast<Mmu&>(tags) : mmu),
        slab(pages, vmstat, cpus),
        tables(pages, vmstat),
        vmalloc(pages, slab, tables, vmstat),
        lru(pages, vmstat, user, cpus),
        filemap(pages, slab, lru, vmstat),
        swap_files(pages, slab, vmalloc, vmstat, cpus),
        bios(pages),
        io(filemap, swap_files, bios, vmstat, user),
        writeback(filemap, vmstat, kernel),
        buffers(filemap, bios, writeback, slab, vmstat, user),
        files(filemap, io, writeback, buffers, slab, vmstat, user, kernel),
        flusher(writeback, vmstat, kernel) {
    slab.kmem_cache_init();
    WEIR_BUG_ON(!lru.init() || !filemap.init() || !bios.init(bio_pool) || !buffers.init() || !files.init());
  }

  TagMmu tags;
  Mmu& user;
  Slab slab;
  PageTables tables;
  Vmalloc vmalloc;
  Lru lru;
  Filemap filemap;
  SwapFiles swap_files;
  BioSet bios;
  PageIo io;
  PageWriteback writeback;
  Buffers buffers;
  FilemapIo files;
  Flusher flusher;

  [[nodiscard]] int64_t gauge(NodeStat s) const { return vmstat.node_page_state(s); }
  [[nodiscard]] uint64_t event(VmEvent e) const { return vmstat.event(e); }
};

class FileWorld {
 public:
  explicit FileWorld(FileWorldOptions options = {})
      : world({.seed = options.seed, .cpus = options.cpus, .preempt_one_in = options.preempt_one_in, .log = {}}),
        m(options.ram, options.cpus, options.content, options.kernel, options.bio_pool) {
    options.disk.content = options.content;
    Result<SimDisk*> made = SimDisk::create(disk_place_, world, options.disk);
    WEIR_BUG_ON(!made);
    disk = *made;
    faulty.emplace(world, *disk, FaultInjectorOptions{.seed = options.seed});
    m.writeback.set_flusher(&m.flusher);
    if (options.flusher) run([&] { m.flusher.start(world); });
  }
  /// Files are put, the flusher is stopped; then nothing of a file may be left.
  ~FileWorld() {
    run([&] {
      for (Inode* inode : inodes_) m.files.iput(*inode);
      m.flusher.stop();
      m.lru.lru_add_drain_all();
    });
    world.run_until(world.now() + 1_s);
    EXPECT_EQ(m.gauge(NodeStat::nr_file_pages), 0);
    EXPECT_EQ(m.gauge(NodeStat::nr_dirty), 0);
    EXPECT_EQ(m.gauge(NodeStat::nr_writeback), 0);
    EXPECT_EQ(m.gauge(NodeStat::nr_inactive_file) + m.gauge(NodeStat::nr_active_file), 0);
    EXPECT_EQ(m.faults(), "");
    EXPECT_EQ(m.bios.in_flight(), 0u);
    faulty.reset();
    disk->~SimDisk();
  }

  /// Runs fn in a thread of its own until all that were spawned have ended.
  void run(std::function<void()> fn) {
    world.spawn("test", std::move(fn));
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
  }
  void spawn(const char* comm, std::function<void()> fn, Task* task = nullptr) {
    world.spawn(comm, std::move(fn), task);
  }
  void run() { ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report(); }
  void run_for(Nanos time) { world.run_until(world.now() + time); }

  /// A file on the disk, by default in the first free place. Put at the end.
  Inode* make_file(Bytes size, Bytes max = Bytes(uint64_t{64} << 20)) {
    Inode* made = nullptr;
    run([&] {
      Result<Inode*> inode = m.files.create_inode("file", *faulty, next_page_, size, max);
      WEIR_BUG_ON(!inode);
      made = *inode;
    });
    next_page_ += max.v >> PAGE_SHIFT;
    inodes_.push_back(made);
    return made;
  }
  /// It is put by the test itself.
  void forget(Inode* inode) { std::erase(inodes_, inode); }
  [[nodiscard]] const std::byte* on_disk(const Inode& inode, uint64_t index) const {
    return disk->stored_bytes(inode.first_page + index);
  }
  /// What lies on the disk before the test begins.
  void put_on_disk(const Inode& inode, uint64_t index, int value) {
    std::memset(const_cast<std::byte*>(on_disk(inode, index)), value, PAGE_SIZE);
  }
  [[nodiscard]] uint64_t reads() const { return disk->stats().reads.load(); }
  [[nodiscard]] uint64_t writes() const { return disk->stats().writes.load(); }
  void fail_all() { faulty->set_fail({.probability = 100}); }
  void fail_none() { faulty->set_fail({}); }

 private:
  alignas(SimDisk) std::byte disk_place_[sizeof(SimDisk)];
  std::vector<Inode*> inodes_;
  uint64_t next_page_ = 0;

 public:
  VirtualWorld world;
  FileMachine m;
  SimDisk* disk = nullptr;
  std::optional<FaultInjector> faulty;
};

/// Errno of a Result, ok included.
template <class T>
[[nodiscard]] Errno error_of(const Result<T>& result) {
  return result.error();
}

}  // namespace weir::test
