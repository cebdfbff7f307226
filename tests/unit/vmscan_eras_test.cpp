// Reclaim and allocation as each kernel does them (mm/vmscan*.cpp, mm/page_alloc*.cpp): what holds under all of them,
// what one alone does, and that no kernel calls another's functions.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "kernel/freezer.hpp"
#include "mm/vmscan.hpp"
#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

using Threads = weir::MachineOptions::Threads;
constexpr KernelEra OLD = KernelEra::linux_2_6_20, MIDDLE = KernelEra::linux_3, NEW = KernelEra::linux_4_14;

class Eras : public testing::TestWithParam<KernelEra> {
 protected:
  /// Two zones, as lists may be theirs.
  static ReclaimWorld::Options quiet(KernelEra kernel, int swappiness = 60) {
    return {.kernel = kernel,
            .dma32_end = Pfn(2048),
            .threads = Threads::none,
            .page_cluster = 0,
            .swappiness = swappiness};
  }
  static ReclaimWorld::Options quiet() { return quiet(GetParam()); }
  /// Until `n` went or it is no use. A list of few pages is not scanned at once by every kernel.
  static int64_t out(ReclaimWorld& w, int64_t n) {
    int64_t got = 0;
    for (int i = 0; i < 12 && got < n; ++i) got += w.reclaim(n - got).v;
    return got;
  }
};

std::string kernel_name(const testing::TestParamInfo<KernelEra>& info) {
  std::string name = "linux_" + std::string(profile_of(info.param).name);
  for (char& c : name)
    if (c == '.') c = '_';
  return name;
}
INSTANTIATE_TEST_SUITE_P(Kernels, Eras, testing::Values(OLD, MIDDLE, NEW), kernel_name);

// ---- What holds under each -----------------------------------------------------------------------------------------

TEST_P(Eras, EverythingGoesOutAndComesBack) {
  ReclaimWorld w(quiet());
  TestDevice& d = w.add_area({.pages = 8192});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr a = w.map(t, 2000);
    w.fill(t, a, 2000, 5);
    for (int i = 0; i < 30 && w.gauge(NodeStat::nr_anon_pages) > 0; ++i) w.reclaim(500);
    EXPECT_EQ(w.gauge(NodeStat::nr_anon_pages), 0);
    EXPECT_EQ(t.mm->rss(RssKind::swapents), 2000);
    EXPECT_EQ(d.written.size(), 2000u);
    EXPECT_EQ(w.broken(), "");
    w.expect(t, a, 2000, 5);
    EXPECT_EQ(w.broken(), "");
  });
}

TEST_P(Eras, ListsAreWhereTheKernelHasThem) {
  ReclaimWorld w(quiet());
  w.run([&] {
    TestDevice& disk = w.add_disk({.pages = 64, .synchronous = false});
    File& f = w.file(disk, 64);
    for (uint64_t i = 0; i < 64; ++i) ASSERT_EQ(w.read_file(f, i), i + 1);
    Task& t = w.task("a");
    const VirtAddr a = w.map(t, 3000);
    w.fill(t, a, 3000, 5);
    w.m().lru.lru_add_drain_all();
    const Profile& profile = w.m().profile;
    int64_t in_zones = 0, file = 0;
    for (const Zone& zone : w.m().node.zones) {
      int64_t here = 0;
      for (unsigned l = 0; l < NR_LRU_LISTS; ++l) here += zone.lruvec.size[l].v;
      EXPECT_EQ(here > 0, profile.zone_lists) << zone_name(zone.type);
      in_zones += here;
      file += zone.lruvec.size[2].v + zone.lruvec.size[3].v;
    }
    for (unsigned l = 2; l < 4; ++l) file += w.m().node.lruvec.size[l].v;
    EXPECT_EQ(in_zones, profile.zone_lists ? 3064 : 0);
    EXPECT_EQ(file, profile.five_lists ? 64 : 0);
    EXPECT_EQ(w.broken(), "");
    if (!profile.zone_lists) return;
    // A page of one zone on the list of the other.
    LruVec& low = w.m().node.zones[0].lruvec;
    LruVec& high = w.m().node.zones[1].lruvec;
    const auto list = static_cast<unsigned>(LruList::active_anon);
    Page& page = low.lists[list].front();
    low.lists[list].pop_front();
    high.lists[list].push_front(page);
    EXPECT_NE(w.broken().find("lru_flags"), std::string::npos);
    high.lists[list].pop_front();
    low.lists[list].push_front(page);
    EXPECT_EQ(w.broken(), "");
  });
}

TEST_P(Eras, WhatIsReclaimedIsFree) {
  ReclaimWorld w(quiet());
  w.run([&] {
    TestDevice& disk = w.add_disk({.pages = 2048, .synchronous = false});
    File& f = w.file(disk, 2048);
    for (uint64_t i = 0; i < 2048; ++i) ASSERT_EQ(w.read_file(f, i), i + 1);
    w.m().pages.drain_all_pages();
    const int64_t before = w.m().pages.nr_free_pages().v;
    const int64_t got = w.reclaim(700).v;
    w.m().slab.shrink_all();
    w.m().pages.drain_all_pages();
    EXPECT_GE(got, 700);
    // Radix-tree nodes whose pages went are free too.
    EXPECT_GE(w.m().pages.nr_free_pages().v - before, got);
    EXPECT_LE(w.m().pages.nr_free_pages().v - before, got + 32);
    EXPECT_EQ(w.event(VmEvent::pgsteal_direct), static_cast<uint64_t>(got));
  });
}

TEST_P(Eras, AnAllocationLargerThanWhatIsFreeSucceedsWhileCacheIsClean) {
  ReclaimWorld w(quiet());
  w.run([&] {
    TestDevice& disk = w.add_disk({.pages = 8192, .synchronous = false});
    File& f = w.file(disk, 8192);
    for (uint64_t i = 0; i < 8192; ++i) ASSERT_EQ(w.read_file(f, i), i + 1);
    Task& t = w.task("a");
    const VirtAddr a = w.map(t, 2500);
    w.fill(t, a, 2500, 9);
    w.expect(t, a, 2500, 9);
    EXPECT_EQ(w.event(VmEvent::oom_kill), 0u);
    EXPECT_GT(w.event(VmEvent::allocstall), 0u);
  });
}

TEST_P(Eras, ASharedPageIsUnmappedEverywhereAndReadOnce) {
  ReclaimWorld w(quiet());
  TestDevice& d = w.add_area({.pages = 64});
  w.run([&] {
    Task& a = w.task("a");
    const VirtAddr at = w.map(a, 1);
    w.put(a, at, 42);
    Task& b = w.fork(a);
    Task& c = w.fork(b);
    for (Task* t : {&a, &b, &c}) w.make_old(*t, at, 1);
    EXPECT_EQ(page_mapcount(*w.page_at(a, at)), 3);
    EXPECT_EQ(out(w, 1), 1);
    const SwpEntry entry = decode_swap_pte(w.pte(a, at));
    for (Task* t : {&a, &b, &c}) EXPECT_EQ(decode_swap_pte(w.pte(*t, at)), entry);
    EXPECT_EQ(w.m().swap_files.swp_swapcount(entry), 3);
    EXPECT_EQ(d.written.size(), 1u);
    for (Task* t : {&a, &b, &c}) EXPECT_EQ(w.get(*t, at), 42u);
    EXPECT_EQ(d.read.size(), 1u);
    w.put(b, at, 43);
    EXPECT_EQ(w.get(a, at), 42u);
    EXPECT_EQ(w.get(b, at), 43u);
    EXPECT_EQ(w.get(c, at), 42u);
  });
}

TEST_P(Eras, APageThatSomebodyHoldsStays) {
  ReclaimWorld w(quiet());
  TestDevice& d = w.add_area({.pages = 64});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    w.make_old(t, at, 1);
    Page* page = w.page_at(t, at);
    PageAllocator::get_page(*page);
    EXPECT_EQ(out(w, 1), 0);
    EXPECT_TRUE(d.written.empty()) << "a write would be for nothing";
    w.m().lru.put_page(*page);
    EXPECT_EQ(w.get(t, at), 42u);
  });
}

TEST_P(Eras, AFailedWriteKeepsThePage) {
  for (const bool synchronous : {true, false}) {
    ReclaimWorld w(quiet());
    TestDevice& d = w.add_area({.pages = 64, .synchronous = synchronous, .latency = 100_us});
    w.run([&] {
      for (uint64_t i = 1; i < 64; ++i) d.bad.insert(i);
      Task& t = w.task("a");
      const VirtAddr at = w.map(t, 1);
      w.put(t, at, 42);
      w.make_old(t, at, 1);
      Page* page = w.page_at(t, at);
      for (int i = 0; i < 8; ++i) {
        w.reclaim(1);
        world().schedule_timeout(1_ms);
      }
      EXPECT_GT(w.event(VmEvent::swap_write_error), 0u);
      EXPECT_GT(page_count(*page), 0);
      EXPECT_EQ(w.get(t, at), 42u);
      EXPECT_EQ(w.page_at(t, at), page);
    });
  }
}

TEST_P(Eras, LockedPagesSurviveAnyPressure) {
  ReclaimWorld w(quiet());
  w.add_area({.pages = 8192});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr locked = w.map(t, 100);
    w.fill(t, locked, 100, 1);
    ASSERT_TRUE(w.m().spaces.mlock(t, locked, 100 << PAGE_SHIFT));
    std::vector<Page*> pages;
    for (uint64_t i = 0; i < 100; ++i) pages.push_back(w.page_at(t, w.at(locked, i)));
    const VirtAddr a = w.map(t, 5000);
    w.fill(t, a, 5000, 9);
    for (int i = 0; i < 5; ++i) w.reclaim(4000);
    EXPECT_EQ(w.gauge(NodeStat::nr_unevictable), GetParam() == OLD ? 0 : 100);
    for (uint64_t i = 0; i < 100; ++i) EXPECT_EQ(w.page_at(t, w.at(locked, i)), pages[i]);
    ASSERT_TRUE(w.m().spaces.munlock(t, locked, 100 << PAGE_SHIFT));
    w.m().lru.lru_add_drain();
    EXPECT_EQ(w.gauge(NodeStat::nr_unevictable), 0);
    w.make_old(t, locked, 100);
    // A page that is freed gives hope for its zone again.
    for (Zone& zone : w.m().node.zones) zone.all_unreclaimable = false, zone.pages_scanned = 0;
    for (int i = 0; i < 10; ++i) w.reclaim(4000);
    EXPECT_EQ(w.page_at(t, locked), nullptr);
    w.expect(t, locked, 100, 1);
  });
}

// Programs that need more than there is, on several CPUs, with queued and synchronous swap, with and (4.14) without
// accessed bits: every byte is what its owner wrote last, and verify() finds every count as it should be.
TEST_P(Eras, RandomProgramsKeepTheirBytes) {
  const uint64_t seeds = GetParam() == NEW ? 12 : 4;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ReclaimWorld::Options o = quiet();
    if (GetParam() == NEW && seed % 3 == 0) o.model = SoftMmu::Model::uffd;
    o.cpus = 1 + static_cast<unsigned>(seed % 3);
    o.threads = Threads::kswapd;
    o.page_cluster = static_cast<unsigned>(seed % 4);
    ReclaimWorld w(o, {.seed = seed, .preempt_one_in = 5});
    w.add_area({.pages = 3000, .synchronous = seed % 2 == 0, .latency = 40_us}, seed % 2 == 0 ? 5 : 1);
    w.add_area({.pages = 6000, .synchronous = false, .nonrotational = false, .latency = 100_us}, 1);
    std::vector<Task*> tasks;
    w.run([&] {
      for (int i = 0; i < 3; ++i) tasks.push_back(&w.task("t"));
    });
    for (Task* t : tasks) {
      w.spawn(*t, [&w, t, seed] {
        std::mt19937_64 rng(seed * 100 + static_cast<uint64_t>(t->pid));
        constexpr uint64_t N = 1900;
        const VirtAddr a = w.map(*t, N);
        std::vector<uint64_t> model(N, 0);
        for (int i = 0; i < 9000; ++i) {
          // Mostly in a window that moves, sometimes anywhere.
          const uint64_t page = rng() % 4 != 0 ? (static_cast<uint64_t>(i) / 5 + rng() % 300) % N : rng() % N;
          if (rng() % 3 != 0) {
            model[page] = rng();
            w.put(*t, w.at(a, page), model[page]);
          } else {
            ASSERT_EQ(w.get(*t, w.at(a, page)), model[page]) << "page " << page;
          }
          if (i % 16 == 0) world().spend(5_us);
        }
        for (uint64_t p = 0; p < N; ++p) ASSERT_EQ(w.get(*t, w.at(a, p)), model[p]) << "page " << p;
      });
    }
    w.run();
    EXPECT_GT(w.event(VmEvent::pswpout), 1000u);
    EXPECT_EQ(w.event(VmEvent::oom_kill), 0u);
  }
}

TEST_P(Eras, KswapdKeepsUpWithASteadyLoad) {
  ReclaimWorld::Options o = quiet();
  o.cpus = 2;
  o.threads = Threads::kswapd;
  ReclaimWorld w(o, {.slice = 20_us});
  w.add_area({.pages = 30000});
  Task* t = nullptr;
  w.run([&] { t = &w.task("a"); });
  w.spawn(*t, [&] {
    const VirtAddr a = w.map(*t, 9000);
    for (uint64_t i = 0; i < 9000; ++i) {
      w.put(*t, w.at(a, i), i);
      // Slowly: in a machine this small the older kernels nap for 100 ms after each batch.
      world().schedule_timeout(10_ms);
    }
  });
  w.run();
  EXPECT_GT(w.event(VmEvent::pgsteal_kswapd), 4000u);
  EXPECT_LT(w.event(VmEvent::pgsteal_direct), w.event(VmEvent::pgsteal_kswapd) / 10);
  for (const Zone& zone : w.m().node.zones) EXPECT_GE(zone.nr_free.load(), zone.wmark(Watermark::min));
}

TEST_P(Eras, WhereNothingCanBeReclaimedItSaysSoWhileKswapdSleeps) {
  ReclaimWorld::Options o = quiet();
  o.threads = Threads::kswapd;
  ReclaimWorld w(o);
  w.run([&] {
    // Most of memory is free: enough for kswapd to sleep on, whatever somebody wants to have in one piece.
    Task& t = w.task("a");
    w.fill(t, w.map(t, 20), 20, 1);
    w.m().lru.lru_add_drain_all();
    PageCount got{1};
    for (int i = 0; i < 20 && got.v > 0; ++i) got = w.m().vmscan.try_to_free_pages(Order(1), GFP_KERNEL);
    EXPECT_EQ(got, PageCount(0)) << "or an allocation asks for ever";
  });
}

TEST_P(Eras, FrozenKswapdDoesNothing) {
  ReclaimWorld::Options o = quiet();
  o.threads = Threads::kswapd;
  ReclaimWorld w(o);
  w.add_area({.pages = 8192});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr a = w.map(t, 1000);
    w.fill(t, a, 1000, 1);
    freeze_processes(world());
    std::vector<Page*> hoard;
    Zone& zone = w.m().node.zones[1];
    {
      const ThreadFlagScope may_use_reserves(PF_MEMALLOC);
      while (zone.nr_free.load() >= zone.wmark(Watermark::low))
        hoard.push_back(w.m().pages.alloc_page(GFP_NOWAIT & ~__GFP_KSWAPD_RECLAIM));
    }
    w.m().vmscan.wakeup_kswapd(ZoneType::NORMAL, Order(0));
    world().schedule_timeout(1_s);
    EXPECT_EQ(w.event(VmEvent::pgscan_kswapd), 0u);
    EXPECT_EQ(nr_frozen(world()), 1u);
    thaw_processes(world());
    world().schedule_timeout(1_s);
    w.m().vmscan.wakeup_kswapd(ZoneType::NORMAL, Order(0));
    world().schedule_timeout(1_s);
    EXPECT_GT(w.event(VmEvent::pgsteal_kswapd), 0u);
    for (Page* page : hoard) w.m().lru.put_page(*page);
    w.m().pages.drain_all_pages();
  });
}

// ---- What one does -------------------------------------------------------------------------------------------------

// Who writes a file's dirty pages: whoever finds them (2.6.20), kswapd in need (3.x), the flusher first (4.14).
TEST_P(Eras, ADirtyFilePageMetByDirectReclaim) {
  ReclaimWorld w(quiet());
  w.run([&] {
    TestDevice& disk = w.add_disk({.pages = 64, .synchronous = false});
    File& f = w.file(disk, 1);
    const uint64_t word = 77;
    ASSERT_TRUE(w.m().files.write(f, 0, reinterpret_cast<const std::byte*>(&word), sizeof word).ok());
    w.m().vmscan.set_flusher(nullptr);
    for (int i = 0; i < 6; ++i) {
      w.reclaim(1);
      world().schedule_timeout(1_ms);
    }
    EXPECT_EQ(disk.written.empty(), GetParam() != OLD);
    ASSERT_TRUE(w.m().files.fsync(f));
    EXPECT_EQ(disk.word(0), 77u);
  });
}

// No function of the core is recorded under a kernel that does not have it.
TEST_P(Eras, NoKernelCallsAnothersFunctions) {
  const std::set<std::string> of_old = {"__alloc_pages", "lru_cache_add_active", "remove_mapping",
                                        "page_mapping_inuse"};
  const std::set<std::string> of_middle = {"shrink_lruvec",     "wake_all_kswapd",      "should_alloc_retry",
                                           "rmv_page_order",    "inactive_file_is_low", "__alloc_pages_high_priority",
                                           "lru_cache_add_lru", "zone_balanced",        "high_wmark_pages"};
  const std::set<std::string> of_new = {"shrink_node",           "shrink_node_memcg",
                                        "kswapd_shrink_node",    "prepare_alloc_pages",
                                        "zone_watermark_fast",   "rmqueue",
                                        "rmqueue_pcplist",       "__rmqueue_pcplist",
                                        "should_reclaim_retry",  "lru_cache_add_active_or_unevictable",
                                        "check_new_page",        "do_shrink_slab",
                                        "__count_zid_vm_events", "deactivate_page",
                                        "mark_page_lazyfree"};
  const std::set<std::string> after_old = {"page_check_references",
                                           "get_scan_count",
                                           "shrink_list",
                                           "do_try_to_free_pages",
                                           "__remove_mapping",
                                           "putback_inactive_pages",
                                           "kswapd_try_to_sleep",
                                           "throttle_direct_reclaim",
                                           "__rmqueue_smallest",
                                           "__rmqueue_fallback",
                                           "__alloc_pages_nodemask",
                                           "__alloc_pages_slowpath",
                                           "free_hot_cold_page_list",
                                           "move_active_pages_to_lru",
                                           "mlock_vma_page",
                                           "putback_lru_page",
                                           "add_page_to_unevictable_list",
                                           "inactive_list_is_low"};
  ReclaimWorld::Options o = quiet();
  o.threads = Threads::kswapd;
  ReclaimWorld w(o);
  w.add_area({.pages = 8192, .synchronous = false, .latency = 20_us});
  std::set<std::string> seen;
  w.run([&] {
    Trace trace;
    TestDevice& disk = w.add_disk({.pages = 512, .synchronous = false});
    File& f = w.file(disk, 512);
    Task& t = w.task("a");
    const VirtAddr locked = w.map(t, 8);
    (void)w.m().spaces.mlock(t, locked, 8 << PAGE_SHIFT);
    const VirtAddr a = w.map(t, 5000);
    for (uint64_t i = 0; i < 5000; ++i) {
      w.put(t, w.at(a, i), i);
      if (i % 10 == 0) (void)w.read_file(f, i / 10);
    }
    (void)w.m().spaces.munlock(t, locked, 8 << PAGE_SHIFT);
    for (const Trace::Function& fn : trace.functions) seen.insert(fn.name);
  });
  const auto none_of = [&](const std::set<std::string>& names) {
    for (const std::string& name : names) EXPECT_EQ(seen.count(name), 0u) << name;
  };
  const auto some_of = [&](const std::set<std::string>& names) {
    int n = 0;
    for (const std::string& name : names) n += static_cast<int>(seen.count(name));
    EXPECT_GT(n, 1);
  };
  if (GetParam() != OLD) none_of(of_old);
  if (GetParam() != MIDDLE) none_of(of_middle);
  if (GetParam() != NEW) none_of(of_new);
  if (GetParam() == OLD) none_of(after_old);
  some_of(GetParam() == OLD ? of_old : GetParam() == MIDDLE ? of_middle : of_new);
}

// ---- Formulas ------------------------------------------------------------------------------------------------------

TEST(Linux_2_6_20, ColdPagesHaveListsOfTheirOwn) {
  ReclaimWorld w({.ram = Bytes(uint64_t{64} << 20), .kernel = OLD, .threads = Threads::none});
  w.run([&] {
    PageAllocator& pages = w.m().pages;
    Zone& zone = w.m().node.zones[0];
    ASSERT_EQ(zone.nr_pcp, 2u);
    PerCpuPages &hot = zone.pcp[0], &cold = zone.pcp[1];
    ASSERT_GT(hot.batch, 1);
    EXPECT_EQ(hot.high, 6 * hot.batch);
    EXPECT_EQ(cold.high, 2 * hot.batch);
    EXPECT_EQ(cold.batch, hot.batch / 2);

    Page* first = pages.alloc_page(GFP_HIGHUSER);
    Page* second = pages.alloc_page(GFP_HIGHUSER);
    const int32_t before = hot.count;
    for (Page* page : {first, second}) {
      ASSERT_TRUE(PageAllocator::put_page_testzero(*page));
      pages.free_hot_cold_page(*page, Temperature::cold);
    }
    EXPECT_EQ(hot.count, before);
    EXPECT_EQ(cold.count, 2);
    EXPECT_EQ(w.broken(), "");
    EXPECT_EQ(pages.alloc_page(GFP_HIGHUSER | __GFP_COLD), second);
    EXPECT_EQ(cold.count, 1);
    Page* warm = pages.alloc_page(GFP_HIGHUSER);
    EXPECT_NE(warm, first);
    EXPECT_EQ(cold.count, 1);
    for (Page* page : {second, warm}) w.m().lru.put_page(*page);
    pages.drain_all_pages();
    EXPECT_EQ(hot.count + cold.count, 0);
  });
}

TEST(Linux_2_6_20, SwapTendency) {
  struct Row {
    int prev, priority;
    int64_t mapped_percent;
    int swappiness;
    int64_t tendency;
  };
  const Row rows[] = {
      {12, 12, 0, 60, 60},  {12, 12, 80, 60, 100}, {12, 12, 78, 60, 99}, {12, 12, 100, 60, 110}, {12, 12, 100, 0, 50},
      {12, 6, 0, 60, 61},   {12, 2, 0, 60, 85},    {12, 1, 0, 60, 110},  {1, 12, 0, 60, 110},    {12, 0, 0, 0, 100},
      {12, 1, 100, 0, 100}, {12, 12, 0, 100, 100}, {3, 5, 50, 60, 97},
  };
  for (const Row& r : rows)
    EXPECT_EQ(swap_tendency_2_6_20(r.prev, r.priority, r.mapped_percent * 10, 1000, r.swappiness), r.tendency)
        << r.prev << ' ' << r.priority << ' ' << r.mapped_percent << ' ' << r.swappiness;
}

// Mapped pages are spared while there is cache to take and the pressure is low.
TEST(Linux_2_6_20, MappedPagesAreSparedUntilPressureIsHigh) {
  ReclaimWorld w({.kernel = OLD, .threads = Threads::none, .page_cluster = 0});
  w.add_area({.pages = 8192});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr a = w.map(t, 600);
    w.fill(t, a, 600, 9);
    w.make_old(t, a, 600);
    TestDevice& disk = w.add_disk({.pages = 2500, .synchronous = false});
    File& f = w.file(disk, 2500);
    for (uint64_t i = 0; i < 2500; ++i) ASSERT_EQ(w.read_file(f, i), i + 1);
    EXPECT_GE(w.reclaim(1000).v, 1000);
    EXPECT_EQ(w.event(VmEvent::pswpout), 0u) << "nothing mapped was taken";
    while (w.gauge(NodeStat::nr_anon_pages) > 0 && w.event(VmEvent::pgscan_direct) < 100000) w.reclaim(400);
    EXPECT_EQ(w.gauge(NodeStat::nr_anon_pages), 0);
    w.expect(t, a, 600, 9);
  });
}

TEST(OldKernels, BlocksOfEachOrderMustLeaveTheirShare) {
  Zone zone;
  zone.managed_pages = 4096;
  const auto set = [&](std::initializer_list<uint64_t> blocks) {
    int64_t free = 0;
    unsigned order = 0;
    for (const uint64_t n : blocks) {
      zone.free_area[order].nr_free = n;
      free += static_cast<int64_t>(n << order++);
    }
    zone.nr_free = free;
  };
  const auto ok = [&](uint8_t order, int64_t mark, uint32_t flags = 0) {
    const bool old = linux_2_6_20::zone_watermark_ok(zone, Order(order), mark, ZoneType::DMA32, flags);
    EXPECT_EQ(old, linux_3::zone_watermark_ok(zone, Order(order), mark, ZoneType::DMA32, flags));
    return old;
  };
  set({65});
  EXPECT_TRUE(ok(0, 64));
  set({64});
  EXPECT_FALSE(ok(0, 64)) << "exactly the mark is too little";
  EXPECT_TRUE(ok(0, 64, ALLOC_HARDER));
  EXPECT_TRUE(ok(0, 126, ALLOC_HIGH));
  EXPECT_FALSE(ok(0, 128, ALLOC_HIGH));
  zone.lowmem_reserve[0] = 1;
  set({65});
  EXPECT_FALSE(ok(0, 64));
  zone.lowmem_reserve[0] = 0;
  // Order 2: 100 pages, of which 60 are single: 100 - 3 - 60 = 37 > 32, and 37 - 16 in pairs = 21 > 16.
  set({60, 8, 6});
  EXPECT_TRUE(ok(2, 64));
  set({60, 12, 4});
  EXPECT_FALSE(ok(2, 64)) << "too many of them in pairs";
  set({200});
  EXPECT_FALSE(ok(1, 64));
}

}  // namespace
}  // namespace weir::test
