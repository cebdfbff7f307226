// tests/support/mm_fixture.hpp
//
// A small machine without processes: an arena, zones, the page allocator, slab, and an architecture that does nothing.
//
//   TestMachine m({.ram = 64_MiB, .cpus = 2});
//   Page* page = m.pages.alloc_page(GFP_KERNEL);
//   run_world({.seed = 7}, [&] { ... may sleep ... });
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernel/virtual/virtual_world.hpp"
#include "mm/page_alloc.hpp"
#include "mm/slab.hpp"

namespace weir::test {

/// Frames' bytes are at their places and nothing is ever mapped in hardware. Counts what it is asked; may hold frames
/// back.
class FakeMmu final : public Mmu {
 public:
  explicit FakeMmu(MemMap& mem) : Mmu({}), mem_(mem) {}
  Caps& capabilities = caps_;
  bool hold_back = false;  ///< arch_free_page answers false
  std::vector<Page*> quarantine;
  PageAllocator* pages = nullptr;  ///< who gets the quarantine back
  unsigned flush_quarantine_calls = 0;
  uint64_t arch_allocs = 0, arch_frees = 0, cleared = 0;

  Result<void> attach(MemMap&, PageTables&, Bootmem&) override { return {}; }
  Result<void> update_mmu_cache(Mm&, VirtAddr, Pte, Page*) override { return {}; }
  void flush_batch(FlushBatch& batch) override { batch.count = 0; }
  void age_batch(FlushBatch& batch) override { batch.count = 0; }
  bool test_dirty(Page&) override { return true; }
  void mark_clean(Page&) override {}
  void flush_range(Mm&, VirtAddr, VirtAddr) override {}
  void mm_created(Mm&) override {}
  void mm_destroyed(Mm&) override {}
  Content kmap(Page& page) override { return {.bytes = mem_.page_address(page)}; }
  void kunmap(Page&) override {}
  void clear_user_highpage(Page& page) override {
    ++cleared;
    std::memset(mem_.page_address(page), 0, PAGE_SIZE);
  }
  void copy_user_highpage(Page& to, Page& from) override {
    std::memcpy(mem_.page_address(to), mem_.page_address(from), PAGE_SIZE);
  }
  void arch_alloc_page(Page&, Order, gfp_t) override { ++arch_allocs; }
  bool arch_free_page(Page& page, Order) override {
    ++arch_frees;
    if (hold_back) quarantine.push_back(&page);
    return !hold_back;
  }
  void flush_quarantine() override {
    ++flush_quarantine_calls;
    std::vector<Page*> held;
    held.swap(quarantine);
    for (Page* page : held) pages->free_quarantined(*page);
  }

 private:
  MemMap& mem_;
};

/// Reserved, unpopulated memory aligned to the largest block.
class Arena {
 public:
  explicit Arena(PageCount frames) : size_(bytes_of(frames).v + ALIGN) {
    raw_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    WEIR_BUG_ON(raw_ == MAP_FAILED);
    madvise(raw_, size_, MADV_NOHUGEPAGE);  // one touched Page must not make 2 MiB of mem_map resident
    base_ = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(raw_) + ALIGN - 1) & ~(ALIGN - 1));
  }
  ~Arena() { munmap(raw_, size_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  [[nodiscard]] std::byte* base() const { return base_; }

 private:
  static constexpr size_t ALIGN = size_t{4} << 20;
  size_t size_;
  void* raw_;
  std::byte* base_;
};

struct MachineOptions {
  Bytes ram = Bytes(uint64_t{64} << 20);
  unsigned cpus = 1;
  Pfn dma32_end{uint64_t{1} << 20};  ///< lower it to have a NORMAL zone in a small machine
  ZoneLayout layout{};               ///< if it has ranges, it is taken instead of `ram`
  bool tracks_host_pages = false;
};

[[nodiscard]] inline ZoneLayout layout_of(const MachineOptions& options) {
  if (options.layout.nr_ranges > 0) return options.layout;
  ZoneLayout layout;
  layout.ranges[0] = {Pfn(0), pages_in(options.ram)};
  layout.nr_ranges = 1;
  layout.dma32_end = options.dma32_end;
  return layout;
}

class TestMachine {
 public:
  explicit TestMachine(MachineOptions options = {})
      : layout(layout_of(options)),
        arena(layout.end()),
        mmu(mem),
        pages(mem, node, vmstat, mmu, options.cpus),
        slab(pages, vmstat, options.cpus) {
    mmu.capabilities.tracks_host_pages = options.tracks_host_pages;
    mmu.pages = &pages;
    WEIR_BUG_ON(!Bootmem::init(boot, mem, arena.base(), layout));
    pages.init(boot, layout);
    slab.kmem_cache_init();
  }

  ZoneLayout layout;
  Arena arena;
  MemMap mem;
  Node node;
  VmStat vmstat;
  FakeMmu mmu;
  Bootmem boot;
  PageAllocator pages;
  Slab slab;

  [[nodiscard]] Zone& zone(ZoneType type) { return node.zones[static_cast<unsigned>(type)]; }
  /// Free blocks of each order in a zone, per-CPU lists drained: "buddyinfo".
  [[nodiscard]] std::vector<uint64_t> buddyinfo(ZoneType type) {
    pages.drain_all_pages();
    std::vector<uint64_t> counts;
    for (const FreeArea& area : zone(type).free_area) counts.push_back(area.nr_free);
    return counts;
  }
  /// What the allocator's survey finds wrong; empty if nothing.
  [[nodiscard]] std::string faults() {
    std::string found;
    pages.survey([](void* arg, const char* id,
                    const char* text) { *static_cast<std::string*>(arg) += std::string(id) + ": " + text + "\n"; },
                 &found);
    return found;
  }
};

/// What the running stack records while this lives: functions with their depth, states with their numbers.
class Trace final : public FlowSink {
 public:
  struct Function {
    int depth;
    std::string name;
    uint64_t a, b, c;
  };
  struct StateChange {
    State what;
    uint64_t subject, before, after;
    bool operator==(const StateChange&) const = default;
  };
  Trace() : thread_(engine_thread()), saved_(thread_.sink) { thread_.sink = this; }
  ~Trace() { thread_.sink = saved_; }
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  std::vector<Function> functions;
  std::vector<StateChange> states;
  std::vector<std::pair<std::string, int64_t>> results;  ///< of functions that say what they return, as they do

  void enter(const FlowSite& site, uint64_t a, uint64_t b, uint64_t c) override {
    functions.push_back({depth_++, site.function, a, b, c});
  }
  void leave(const FlowSite&) override { --depth_; }
  void leave_with(const FlowSite& site, uint64_t result) override {
    results.emplace_back(site.function, static_cast<int64_t>(result));
    --depth_;
  }
  void state(const FlowSite&, State what, uint64_t subject, uint64_t before, uint64_t after) override {
    states.push_back({what, subject, before, after});
  }
  [[nodiscard]] size_t count(std::string_view name) const {
    return static_cast<size_t>(
        std::count_if(functions.begin(), functions.end(), [&](const Function& f) { return f.name == name; }));
  }
  [[nodiscard]] std::vector<int64_t> results_of(std::string_view name) const {
    std::vector<int64_t> found;
    for (const auto& [function, result] : results)
      if (function == name) found.push_back(result);
    return found;
  }
  [[nodiscard]] std::vector<StateChange> of(State what) const {
    std::vector<StateChange> found;
    for (const StateChange& s : states)
      if (s.what == what) found.push_back(s);
    return found;
  }
  /// "alloc_pages 0", "__alloc_pages_nodemask 1", …: the tree, one line a call; only the names given, if any are.
  [[nodiscard]] std::vector<std::string> tree(std::vector<std::string> only = {}) const {
    std::vector<std::string> lines;
    for (const Function& f : functions)
      if (only.empty() || std::find(only.begin(), only.end(), f.name) != only.end())
        lines.push_back(std::string(static_cast<size_t>(f.depth), ' ') + f.name);
    return lines;
  }

 private:
  EngineThread& thread_;
  FlowSink* saved_;
  int depth_ = 0;
};

/// Runs `fn` in a thread of a virtual world until it has ended. What is printed goes to `log`, if there is one.
inline void run_world(VirtualWorld::Options options, std::function<void()> fn,
                      std::vector<std::string>* log = nullptr) {
  if (log != nullptr) options.log = [log](Nanos, const char* text) { log->push_back(text); };
  VirtualWorld world(std::move(options));
  world.spawn("test", std::move(fn));
  EXPECT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
}

}  // namespace weir::test
