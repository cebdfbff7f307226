// Reclaim: balance, decisions page by page, kswapd, throttling, staging, shrinkers (mm/vmscan.cpp).
#include "mm/vmscan.hpp"

#include <gtest/gtest.h>

#include <random>

#include "kernel/freezer.hpp"
#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

using Threads = weir::MachineOptions::Threads;
constexpr ReclaimWorld::Options QUIET{.threads = Threads::none, .page_cluster = 0};
constexpr ReclaimWorld::Options HOST{.threads = Threads::none, .page_cluster = 0, .model = SoftMmu::Model::uffd};

// ---- Formulas -------------------------------------------------------------------------------------------------------

// Row 32: every combination of what a look can find.
TEST(References, ByEveryCombinationOfUse) {
  using enum PageReferences;
  for (const bool swapbacked : {false, true}) {
    for (const bool referenced : {false, true}) {
      for (int ptes = 0; ptes <= 3; ++ptes) {
        for (const uint64_t flags : {uint64_t{0}, uint64_t{VM_EXEC}, uint64_t{VM_LOCKED}}) {
          for (const bool unaged : {false, true}) {
            PageReferences expected = reclaim;
            if (flags == VM_LOCKED)
              expected = reclaim;  // unmapping finds the lock
            else if (unaged)
              expected = aging;
            else if (ptes == 0)
              expected = referenced && !swapbacked ? reclaim_clean : reclaim;
            else if (swapbacked || referenced || ptes > 1 || flags == VM_EXEC)
              expected = activate;
            else
              expected = keep;
            EXPECT_EQ(references_of({.ptes = ptes,
                                     .vm_flags = flags,
                                     .referenced = referenced,
                                     .swapbacked = swapbacked,
                                     .unaged = unaged}),
                      expected)
                << swapbacked << referenced << ptes << flags << unaged;
          }
        }
      }
    }
  }
}

TEST(Balance, InactiveRatioGrowsWithTheRootOfMemory) {
  const int64_t gib = int64_t{1} << (30 - PAGE_SHIFT);
  const std::pair<int64_t, int64_t> table[] = {{0, 1},         {gib - 1, 1},    {gib, 3},         {2 * gib, 4},
                                               {10 * gib, 10}, {100 * gib, 31}, {1024 * gib, 101}};
  for (const auto& [pages, ratio] : table) EXPECT_EQ(inactive_ratio(pages), ratio) << pages;
}

struct BalanceCase {
  const char* what;
  ScanBalanceInput in;
  std::vector<int64_t> nr;  // inactive anon, active anon, inactive file, active file
};

ScanBalanceInput lists(int64_t ia, int64_t aa, int64_t inf, int64_t af) {
  ScanBalanceInput in;
  in.priority = 2;
  in.size[0] = ia, in.size[1] = aa, in.size[2] = inf, in.size[3] = af;
  in.free_pages = 1000, in.high_wmark_pages = 100;
  in.inactive_file_low = true;
  return in;
}

TEST(Balance, ScanCountsByRule) {
  std::vector<BalanceCase> cases;
  const auto add = [&](const char* what, std::vector<int64_t> nr, auto change) {
    ScanBalanceInput in = lists(4000, 4000, 4000, 4000);
    change(in);
    cases.push_back({what, in, std::move(nr)});
  };
  add("no swap: file only", {0, 0, 1000, 1000}, [](auto& in) { in.may_swap = false; });
  add("last priority: all of everything", {4000, 4000, 4000, 4000}, [](auto& in) { in.priority = 0; });
  add("last priority without swappiness: file", {0, 0, 3980, 3980},
      [](auto& in) { in.priority = 0, in.swappiness = 0; });
  add("file and free below the marks: anon only", {1000, 1000, 0, 0},
      [](auto& in) { in.free_pages = 10, in.high_wmark_pages = 8010; });
  add("one page more: not", {298, 298, 696, 696}, [](auto& in) { in.free_pages = 11, in.high_wmark_pages = 8010; });
  add("few inactive anon pages: not", {298, 298, 696, 696},
      [](auto& in) { in.free_pages = 10, in.high_wmark_pages = 8010, in.inactive_anon_low = true; });
  add("enough inactive file pages: file only", {0, 0, 1000, 1000}, [](auto& in) { in.inactive_file_low = false; });
  add("but none at this priority: both", {0, 0, 0, 0},
      [](auto& in) { in.inactive_file_low = false, in.priority = 13; });
  add("swappiness 60", {298, 298, 696, 696}, [](auto&) {});
  add("swappiness 100", {497, 497, 497, 497}, [](auto& in) { in.swappiness = 100; });
  add("swappiness 0", {0, 0, 995, 995}, [](auto& in) { in.swappiness = 0; });
  // Nine of ten anonymous pages had to be put back, one of eight file pages.
  add("rotated pages weigh against their kind", {121, 121, 877, 877}, [](auto& in) {
    in.swappiness = 100, in.stat = {.recent_rotated = {899, 124}, .recent_scanned = {999, 999}};
  });
  for (const BalanceCase& c : cases) {
    const ScanCount got = scan_balance(c.in);
    EXPECT_EQ(std::vector<int64_t>(got.nr, got.nr + 4), c.nr) << c.what;
  }
}

TEST(Balance, SlabPressureIsMeasuredAgainstTheListsThatAreScanned) {
  ScanBalanceInput in = lists(1000, 2000, 4000, 8000);
  EXPECT_EQ(scan_balance(in).lru_pages, 15000);
  in.may_swap = false;
  EXPECT_EQ(scan_balance(in).lru_pages, 12000);
}

// ---- One page at a time ---------------------------------------------------------------------------------------------

/// A machine with one page to reclaim, and what reclaim said about it.
class OnePage : public testing::Test {
 protected:
  /// The reasons for which `page` was kept in one run, by first appearance; "freed" if it went.
  std::vector<std::string> reclaim(ReclaimWorld& w, const Page* page, gfp_t gfp = GFP_HIGHUSER_MOVABLE) {
    const uint64_t pfn = w.m().mem.pfn(page).v;
    w.m().lru.lru_add_drain();  // reclaim drains only when it looks at a list
    Trace trace;
    const ThreadFlagScope reclaiming(PF_MEMALLOC);
    freed = w.m().vmscan.try_to_free_pages(Order(0), gfp).v;
    std::vector<std::string> reasons;
    for (const Trace::StateChange& s : trace.of(State::page_keep)) {
      const std::string name = page_keep_name(static_cast<PageKeep>(s.before));
      if (s.subject == pfn && std::find(reasons.begin(), reasons.end(), name) == reasons.end()) reasons.push_back(name);
    }
    if (page_count(*page) == 0) reasons.push_back("freed");
    written = trace.results_of("swap_writepage");
    references = trace.results_of("page_referenced");
    return reasons;
  }
  static std::string name(PageKeep reason) { return page_keep_name(reason); }
  using Reasons = std::vector<std::string>;
  int64_t freed = 0;
  std::vector<int64_t> written, references;  ///< what swap_writepage and page_referenced returned, as recorded
};

TEST_F(OnePage, AnAnonymousPageIsSwappedOutAndComesBack) {
  ReclaimWorld w(QUIET);
  TestDevice& d = w.add_area({.pages = 64});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    w.make_old(t, at, 1);
    Page* page = w.page_at(t, at);
    EXPECT_EQ(reclaim(w, page), Reasons{"freed"});
    EXPECT_EQ(written, std::vector<int64_t>{0});
    EXPECT_EQ(references.back(), 0);
    EXPECT_TRUE(is_swap_pte(w.pte(t, at)));
    EXPECT_EQ(d.written.size(), 1u);
    EXPECT_EQ(t.mm->rss(RssKind::swapents), 1);
    EXPECT_EQ(w.get(t, at), 42u);
  });
}

TEST_F(OnePage, APageInUseIsActivated) {
  ReclaimWorld w(QUIET);
  w.add_area({.pages = 64});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 2);
    w.fill(t, at, 2, 1);
    w.make_old(t, at, 2);
    Page* page = w.page_at(t, at);
    w.m().lru.lru_add_drain();
    // Both become inactive; then one is used.
    {
      const ThreadFlagScope reclaiming(PF_MEMALLOC);
      page->set(PageFlag::locked);
      Page* other = w.page_at(t, w.at(at, 1));
      other->set(PageFlag::locked);
      EXPECT_EQ(reclaim(w, page), Reasons{name(PageKeep::locked)});
      page->clear(PageFlag::locked);
      other->clear(PageFlag::locked);
    }
    EXPECT_FALSE(page->test(PageFlag::active));
    EXPECT_EQ(w.get(t, at), 1u);
    EXPECT_EQ(reclaim(w, page).at(0), name(PageKeep::referenced));
    EXPECT_EQ(std::count(references.begin(), references.end(), 1), 1);
  });
}

TEST_F(OnePage, AFilePageUsedOnceGetsOneMoreRound) {
  ReclaimWorld w(QUIET);
  w.run([&] {
    TestDevice& disk = w.add_disk({.pages = 64, .synchronous = false});
    File& f = w.file(disk, 1);
    Task& t = w.task("a");
    MmapRequest request{.length = PAGE_SIZE, .prot = VM_READ, .file = &f};
    const VirtAddr at = *w.m().spaces.mmap(*t.mm, request);
    EXPECT_EQ(w.get(t, at), 1u);
    Page* page = w.page_at(t, at);
    w.m().lru.lru_add_drain();
    page->clear(PageFlag::referenced);
    EXPECT_EQ(reclaim(w, page), Reasons{name(PageKeep::referenced_once)});
    EXPECT_FALSE(page->test(PageFlag::active));
    EXPECT_EQ(reclaim(w, page), Reasons{"freed"});
  });
}

TEST_F(OnePage, AFilePageUsedAgainIsActivated) {
  ReclaimWorld w(QUIET);
  w.run([&] {
    TestDevice& disk = w.add_disk({.pages = 64, .synchronous = false});
    File& f = w.file(disk, 1);
    Task& t = w.task("a");
    MmapRequest request{.length = PAGE_SIZE, .prot = VM_READ, .file = &f};
    const VirtAddr at = *w.m().spaces.mmap(*t.mm, request);
    EXPECT_EQ(w.get(t, at), 1u);
    Page* page = w.page_at(t, at);
    w.m().lru.lru_add_drain();
    page->set(PageFlag::referenced);
    EXPECT_EQ(reclaim(w, page).at(0), name(PageKeep::referenced));
  });
}

TEST_F(OnePage, CleanCacheIsDropped) {
  ReclaimWorld w(QUIET);
  w.run([&] {
    TestDevice& disk = w.add_disk({.pages = 64, .synchronous = false});
    File& f = w.file(disk, 1);
    EXPECT_EQ(w.read_file(f, 0), 1u);
    Page* page = w.m().filemap.find_get_page(f.f_inode->i_data, 0);
    w.m().lru.put_page(*page);
    EXPECT_EQ(reclaim(w, page), Reasons{"freed"});
    EXPECT_EQ(f.f_inode->i_data.nrpages, 0u);
    EXPECT_EQ(w.read_file(f, 0), 1u);
    EXPECT_EQ(disk.read.size(), 2u);
  });
}

TEST_F(OnePage, ADirtyFilePageIsLeftToTheFlusher) {
  struct Flusher final : WritebackControlSink {
    int woken = 0;
    void wakeup(int reason) override { woken += reason == WB_REASON_VMSCAN ? 1 : 0; }
  } flusher;
  ReclaimWorld w(QUIET);
  w.run([&] {
    TestDevice& disk = w.add_disk({.pages = 64, .synchronous = false});
    File& f = w.file(disk, 1);
    const uint64_t word = 77;
    ASSERT_TRUE(w.m().files.write(f, 0, reinterpret_cast<const std::byte*>(&word), sizeof word).ok());
    Page* page = w.m().filemap.find_get_page(f.f_inode->i_data, 0);
    w.m().lru.put_page(*page);
    w.m().lru.lru_add_drain();
    w.m().vmscan.set_flusher(&flusher);
    EXPECT_EQ(reclaim(w, page).at(0), name(PageKeep::file_dirty));
    EXPECT_GT(flusher.woken, 0);
    EXPECT_TRUE(disk.written.empty());
    EXPECT_TRUE(page->test(PageFlag::reclaim)) << "wanted back when it is written";
    w.m().vmscan.set_flusher(nullptr);
    ASSERT_TRUE(w.m().files.fsync(f));
    EXPECT_EQ(disk.word(0), 77u);
  });
}

TEST_F(OnePage, AQueuedWriteIsFreedByALaterScanAndNotBeforeItsEnd) {
  ReclaimWorld w(QUIET);
  TestDevice& d = w.add_area({.pages = 64, .synchronous = false, .latency = 10_ms});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    w.make_old(t, at, 1);
    Page* page = w.page_at(t, at);
    EXPECT_EQ(reclaim(w, page), Reasons{name(PageKeep::write_started)});
    EXPECT_EQ(d.in_flight, 1u);
    EXPECT_EQ(reclaim(w, page), Reasons{name(PageKeep::under_writeback)});
    EXPECT_TRUE(PageSwapCache(*page));
    EXPECT_FALSE(page->test(PageFlag::writeback))
        << "all that was met is being written: the scan waited for the device";
    w.m().lru.lru_add_drain();
    EXPECT_FALSE(page->test(PageFlag::active)) << "back at the inactive tail";
    EXPECT_EQ(reclaim(w, page), Reasons{"freed"});
    EXPECT_EQ(w.event(VmEvent::swap_clean_drop), 1u);
    EXPECT_EQ(w.get(t, at), 42u);
  });
}

TEST_F(OnePage, AFaultDuringTheWriteFindsThePage) {
  ReclaimWorld w(QUIET);
  TestDevice& d = w.add_area({.pages = 64, .synchronous = false, .latency = 10_ms});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    w.make_old(t, at, 1);
    Page* page = w.page_at(t, at);
    reclaim(w, page);
    w.put(t, at, 43);
    EXPECT_EQ(w.page_at(t, at), page);
    EXPECT_TRUE(d.read.empty());
    world().schedule_timeout(20_ms);
    w.make_old(t, at, 1);
    w.reclaim(10);
    world().schedule_timeout(20_ms);
    w.reclaim(10);
    EXPECT_EQ(w.get(t, at), 43u);
  });
}

TEST_F(OnePage, WithoutASlotThePageStaysActive) {
  ReclaimWorld w(QUIET);
  w.add_area({.pages = 10});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr full = w.map(t, 9);
    w.fill(t, full, 9, 1);
    w.make_old(t, full, 9);
    EXPECT_EQ(w.reclaim(9).v, 9);
    EXPECT_EQ(w.m().vmscan.zone_reclaimable_pages().v, 0);
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    w.make_old(t, at, 1);
    Page* page = w.page_at(t, at);
    EXPECT_EQ(reclaim(w, page), Reasons{}) << "without a free slot nobody looks at anonymous pages";
    EXPECT_EQ(freed, 0);
    EXPECT_EQ(w.page_at(t, at), page);
  });
}

TEST_F(OnePage, ADeviceWithoutRoomKeepsThePageAndTheNextGoesElsewhere) {
  ReclaimWorld w(QUIET);
  TestDevice& zram = w.add_area({.name = "zram0", .pages = 2000}, 10);
  TestDevice& disk = w.add_area({.name = "disk0", .pages = 2000}, 1);
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 400);
    w.fill(t, at, 100, 1);
    w.make_old(t, at, 100);
    w.reclaim(50);  // the CPU has slots of zram at hand
    EXPECT_GT(zram.written.size(), 0u);
    zram.room = false;
    for (uint64_t i = 100; i < 400; ++i) w.put(t, w.at(at, i), 1 + i);
    w.make_old(t, at, 400);
    const size_t before = zram.written.size();
    w.reclaim(250);
    EXPECT_EQ(zram.written.size(), before);
    EXPECT_GT(disk.written.size(), 100u);
    EXPECT_EQ(w.broken(), "");
    w.expect(t, at, 400, 1);
  });
}

TEST_F(OnePage, APageReadFromADeviceWithoutRoomGoesElsewhereNextTime) {
  ReclaimWorld w(QUIET);
  TestDevice& zram = w.add_area({.name = "zram0", .pages = 2000}, 10);
  TestDevice& disk = w.add_area({.name = "disk0", .pages = 2000}, 1);
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 20);
    w.fill(t, at, 20, 1);
    w.make_old(t, at, 20);
    EXPECT_EQ(w.reclaim(20).v, 20);
    const size_t written = zram.written.size();
    zram.room = false;
    w.expect(t, at, 20, 1);
    for (uint64_t i = 0; i < 20; ++i) w.put(t, w.at(at, i), 100 + i);
    w.make_old(t, at, 20);
    const auto gone = static_cast<size_t>(w.reclaim(20).v);
    EXPECT_GE(gone, 16u) << "they are tied to the full device";
    EXPECT_EQ(zram.written.size(), written);
    EXPECT_EQ(disk.written.size(), gone);
    EXPECT_EQ(w.broken(), "");
    w.expect(t, at, 20, 100);
  });
}

TEST_F(OnePage, ADirtyPageWhoseDeviceHasFilledUpTakesASlotElsewhere) {
  ReclaimWorld w(QUIET);
  TestDevice& zram = w.add_area({.name = "zram0", .pages = 2000}, 10);
  TestDevice& disk = w.add_area({.name = "disk0", .pages = 2000}, 1);
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 20);
    w.fill(t, at, 20, 1);
    w.make_old(t, at, 20);
    EXPECT_EQ(w.reclaim(20).v, 20);
    w.expect(t, at, 20, 1);  // back, with copies in their slots
    const size_t written = zram.written.size();
    for (uint64_t i = 0; i < 20; ++i) w.page_at(t, w.at(at, i))->set(PageFlag::dirty);
    zram.room = false;
    w.make_old(t, at, 20);
    const auto gone = static_cast<size_t>(w.reclaim(20).v);
    EXPECT_GE(gone, 16u);
    EXPECT_EQ(zram.written.size(), written);
    EXPECT_EQ(disk.written.size(), gone);
    EXPECT_EQ(w.broken(), "");
    w.expect(t, at, 20, 1);
  });
}

TEST_F(OnePage, APageThatItsFullDeviceRefusedLeavesItsSlotWhenItIsTouched) {
  ReclaimWorld w(QUIET);
  TestDevice& zram = w.add_area({.name = "zram0", .pages = 2000}, 10);
  TestDevice& disk = w.add_area({.name = "disk0", .pages = 2000}, 1);
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    w.make_old(t, at, 1);
    // Room when a slot is asked for, none when it is written to.
    class FillsUp final : public BlockDevice {
     public:
      explicit FillsUp(TestDevice& d) : d_(d) {}
      [[nodiscard]] const char* name() const override { return d_.name(); }
      [[nodiscard]] PageCount capacity() const override { return d_.capacity(); }
      [[nodiscard]] bool synchronous() const override { return true; }
      [[nodiscard]] bool has_room() const override { return d_.room; }
      void submit_bio(Bio&) override {}
      Result<void> rw_page(BioOp op, uint64_t index, Content content) override {
        if (op == BioOp::write) d_.room = false;
        return d_.rw_page(op, index, content);
      }

     private:
      TestDevice& d_;
    } filling(zram);
    w.m().swap_files.swap_info(0)->bdev = &filling;
    EXPECT_EQ(w.reclaim(1).v, 0);
    EXPECT_TRUE(is_swap_pte(w.pte(t, at)));
    EXPECT_EQ(w.get(t, at), 42u);
    w.make_old(t, at, 1);
    EXPECT_EQ(w.reclaim(1).v, 1);
    EXPECT_EQ(disk.written.size(), 1u);
    w.m().swap_files.swap_info(0)->bdev = &zram;
    EXPECT_EQ(w.broken(), "");
    EXPECT_EQ(w.get(t, at), 42u);
  });
}

TEST_F(OnePage, AWriteThatFindsNoRoomLeavesThePageDirtyAndWhole) {
  ReclaimWorld w(QUIET);
  TestDevice& zram = w.add_area({.pages = 64});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    w.make_old(t, at, 1);
    Page* page = w.page_at(t, at);
    // The hint says that there is room; the write finds that there is none.
    class Full final : public BlockDevice {
     public:
      explicit Full(TestDevice& d) : d_(d) {}
      bool full = true;
      [[nodiscard]] const char* name() const override { return d_.name(); }
      [[nodiscard]] PageCount capacity() const override { return d_.capacity(); }
      [[nodiscard]] bool synchronous() const override { return true; }
      void submit_bio(Bio&) override {}
      Result<void> rw_page(BioOp op, uint64_t index, Content content) override {
        if (full && op == BioOp::write) return Errno::nomem;
        return d_.rw_page(op, index, content);
      }

     private:
      TestDevice& d_;
    } full(zram);
    w.m().swap_files.swap_info(0)->bdev = &full;
    EXPECT_EQ(reclaim(w, page).at(0), name(PageKeep::no_room));
    EXPECT_EQ(w.event(VmEvent::pgactivate), 1u);
    EXPECT_TRUE(page->test(PageFlag::dirty));
    EXPECT_TRUE(is_swap_pte(w.pte(t, at)));
    EXPECT_EQ(w.broken(), "");
    EXPECT_EQ(w.get(t, at), 42u);
    EXPECT_EQ(w.page_at(t, at), page) << "no I/O needed";
    full.full = false;
    w.make_old(t, at, 1);
    EXPECT_EQ(w.reclaim(1).v, 1);
    w.m().swap_files.swap_info(0)->bdev = &zram;
    EXPECT_EQ(w.get(t, at), 42u);
  });
}

TEST_F(OnePage, AFailedWriteKeepsThePage) {
  for (const bool synchronous : {true, false}) {
    ReclaimWorld w(QUIET);
    TestDevice& d = w.add_area({.pages = 64, .synchronous = synchronous, .latency = 100_us});
    w.run([&] {
      for (uint64_t i = 1; i < 64; ++i) d.bad.insert(i);
      Task& t = w.task("a");
      const VirtAddr at = w.map(t, 1);
      w.put(t, at, 42);
      w.make_old(t, at, 1);
      Page* page = w.page_at(t, at);
      EXPECT_EQ(reclaim(w, page).at(0), name(synchronous ? PageKeep::write_failed : PageKeep::write_started));
      // Of a write that is under way the device tells later.
      EXPECT_EQ(written.at(0), synchronous ? -static_cast<int64_t>(Errno::io) : 0);
      world().schedule_timeout(1_ms);
      EXPECT_GT(w.event(VmEvent::swap_write_error), 0u);
      EXPECT_TRUE(page->test(PageFlag::dirty));
      EXPECT_EQ(w.get(t, at), 42u);
      EXPECT_EQ(w.page_at(t, at), page);
    });
  }
}

TEST_F(OnePage, APageThatSomebodyHoldsIsKept) {
  ReclaimWorld w(QUIET);
  TestDevice& d = w.add_area({.pages = 64});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    w.make_old(t, at, 1);
    Page* page = w.page_at(t, at);
    PageAllocator::get_page(*page);
    EXPECT_EQ(reclaim(w, page).at(0), name(PageKeep::in_use));
    EXPECT_TRUE(d.written.empty()) << "a write would be for nothing";
    w.m().lru.put_page(*page);
    EXPECT_EQ(w.get(t, at), 42u);
  });
}

TEST_F(OnePage, WithoutTheRightToIoAnonymousPagesStay) {
  ReclaimWorld w(QUIET);
  w.add_area({.pages = 64});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    w.make_old(t, at, 1);
    EXPECT_EQ(reclaim(w, w.page_at(t, at), GFP_NOIO), Reasons{name(PageKeep::no_io)});
    EXPECT_EQ(reclaim(w, w.page_at(t, at), GFP_NOFS), Reasons{"freed"}) << "swap is no file system";
  });
}

TEST_F(OnePage, ALockedMappingIsFoundAndThePageCulled) {
  ReclaimWorld w(QUIET);
  w.add_area({.pages = 64});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    w.make_old(t, at, 1);
    Page* page = w.page_at(t, at);
    // mlock that has set the VMA's flag and not come to the page yet.
    VmArea* vma = w.m().vmas.vma_lookup(*t.mm, at);
    vma->vm_flags |= VM_LOCKED;
    EXPECT_EQ(reclaim(w, page).at(0), name(PageKeep::not_unmapped));
    EXPECT_TRUE(page->test(PageFlag::mlocked));
    EXPECT_EQ(w.gauge(NodeStat::nr_unevictable), 1);
    EXPECT_EQ(w.pte(t, at), w.pte(t, at));
    EXPECT_EQ(w.page_at(t, at), page);
    vma->vm_flags &= ~uint64_t{VM_LOCKED};
    w.m().lru.munlock_vma_page(*page);
  });
}

// The order of flow "buffer-direct-reclaim", as far as it holds without buffers, trace points and delay accounting.
TEST_F(OnePage, DirectReclaimRunsInTheKernelsOrder) {
  struct Objects final : Shrinker {
    PageCount count_objects() override { return PageCount(10); }
    PageCount scan_objects(PageCount n) override { return n; }
  } objects;
  ReclaimWorld w(QUIET);
  w.add_area({.pages = 64});
  w.run([&] {
    w.m().vmscan.register_shrinker(objects);
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    w.make_old(t, at, 1);
    w.m().lru.lru_add_drain();
    {
      // To the inactive list.
      w.page_at(t, at)->set(PageFlag::locked);
      reclaim(w, w.page_at(t, at));
      w.page_at(t, at)->clear(PageFlag::locked);
    }
    Trace trace;
    const ThreadFlagScope reclaiming(PF_MEMALLOC);
    EXPECT_EQ(w.m().vmscan.try_to_free_pages(Order(0), GFP_HIGHUSER).v, 1);
    const std::vector<std::string> order = {"try_to_free_pages",    "throttle_direct_reclaim",
                                            "do_try_to_free_pages", "shrink_zones",
                                            "shrink_node",          "shrink_node_memcg",
                                            "shrink_list",          "shrink_inactive_list",
                                            "lru_add_drain",        "isolate_lru_pages",
                                            "shrink_page_list",     "add_to_swap",
                                            "try_to_unmap",         "pageout",
                                            "swap_writepage",       "try_to_free_swap",
                                            "__swap_writepage",     "free_hot_cold_page_list",
                                            "inactive_list_is_low", "shrink_slab",
                                            "do_shrink_slab"};
    size_t found = 0;
    int depth = 0;
    for (const Trace::Function& f : trace.functions) {
      if (found < order.size() && f.name == order[found]) {
        ++found;
        depth = f.depth;
      }
    }
    EXPECT_EQ(found, order.size()) << "missing: " << (found < order.size() ? order[found] : "");
    EXPECT_EQ(depth, 5) << "do_shrink_slab below shrink_slab below shrink_node";
    w.m().vmscan.unregister_shrinker(objects);
  });
}

// ---- Whole machines -------------------------------------------------------------------------------------------------

TEST(Reclaim, EverythingGoesOutAndComesBack) {
  for (const SoftMmu::Model model : {SoftMmu::Model::hardware, SoftMmu::Model::uffd}) {
    ReclaimWorld w({.threads = Threads::none, .model = model});
    TestDevice& d = w.add_area({.pages = 8192});
    w.run([&] {
      Task& t = w.task("a");
      const VirtAddr a = w.map(t, 2000);
      w.fill(t, a, 2000, 5);
      for (int i = 0; i < 10; ++i) w.reclaim(500);
      EXPECT_EQ(w.gauge(NodeStat::nr_anon_pages), 0);
      EXPECT_EQ(t.mm->rss(RssKind::swapents), 2000);
      EXPECT_EQ(w.broken(), "");
      d.written.clear();
      w.expect(t, a, 2000, 5);
      for (int i = 0; i < 10; ++i) w.reclaim(500);
      EXPECT_TRUE(d.written.empty()) << "read back and not written to: dropped";
      EXPECT_EQ(w.event(VmEvent::swap_clean_drop), 2000u);
      w.expect(t, a, 2000, 5);
    });
  }
}

TEST(Reclaim, AStreamDoesNotEvictWhatIsUsedTwice) {
  ReclaimWorld w(QUIET);
  w.run([&] {
    TestDevice& small = w.add_disk({.pages = 300, .synchronous = false});
    TestDevice& large = w.add_disk({.pages = 9000, .synchronous = false});
    File& set = w.file(small, 300);
    for (int round = 0; round < 3; ++round)
      for (uint64_t i = 0; i < 300; ++i) ASSERT_EQ(w.read_file(set, i), i + 1);
    w.m().lru.lru_add_drain();
    small.read.clear();
    File& stream = w.file(large, 9000);
    for (uint64_t i = 0; i < 9000; ++i) ASSERT_EQ(w.read_file(stream, i), i + 1);
    EXPECT_GT(w.event(VmEvent::pgsteal_direct), 4000u);
    for (uint64_t i = 0; i < 300; ++i) ASSERT_EQ(w.read_file(set, i), i + 1);
    EXPECT_TRUE(small.read.empty());
  });
}

TEST(Reclaim, SwappinessZeroSwapsNothingWhileThereIsCache) {
  uint64_t swapped[2] = {};
  for (const int swappiness : {0, 100}) {
    ReclaimWorld w({.threads = Threads::none, .page_cluster = 0, .swappiness = swappiness});
    w.add_area({.pages = 8192});
    w.run([&] {
      TestDevice& disk = w.add_disk({.pages = 1200, .synchronous = false});
      Task& t = w.task("a");
      const VirtAddr a = w.map(t, 1200);
      w.fill(t, a, 1200, 9);
      w.make_old(t, a, 1200);
      File& f = w.file(disk, 1200);
      for (int round = 0; round < 3; ++round)
        for (uint64_t i = 0; i < 1200; ++i) ASSERT_EQ(w.read_file(f, i), i + 1);
      w.reclaim(600);
      swapped[swappiness / 100] = w.event(VmEvent::pswpout);
    });
  }
  EXPECT_EQ(swapped[0], 0u);
  EXPECT_GT(swapped[1], 150u);
}

TEST(Reclaim, AStaleTranslationIsNeverUsed) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    ReclaimWorld w({.cpus = 2}, {.seed = seed, .preempt_one_in = 3});
    w.add_area({.pages = 8192, .synchronous = seed % 2 == 0, .latency = 30_us});
    std::vector<Task*> tasks;
    VirtAddr at;
    w.run([&] {
      for (int i = 0; i < 2; ++i) tasks.push_back(&w.task("t"));
    });
    for (Task* t : tasks) {
      w.spawn(*t, [&w, t] {
        const VirtAddr a = w.map(*t, 3000);
        for (int round = 0; round < 2; ++round) {
          for (uint64_t i = 0; i < 3000; ++i) {
            w.put(*t, w.at(a, i), i * 7 + static_cast<uint64_t>(round));
            world().spend(1_us);
          }
          for (uint64_t i = 0; i < 3000; ++i) ASSERT_EQ(w.get(*t, w.at(a, i)), i * 7 + static_cast<uint64_t>(round));
        }
      });
    }
    w.run();
    EXPECT_EQ(w.mmu->stats().stale_hits, 0u);
  }
}

// ---- kswapd ---------------------------------------------------------------------------------------------------------

/// Frames held by nobody in particular.
struct Hoard {
  explicit Hoard(ReclaimWorld& world) : w(world) {}
  ~Hoard() { give_back(); }
  /// Until the zone has no more than `free` free pages. Uses the reserves.
  void until(int64_t free) {
    const ThreadFlagScope may_use_reserves(PF_MEMALLOC);
    while (zone().nr_free.load() > free) {
      Page* page = w.m().pages.alloc_page(GFP_NOWAIT & ~__GFP_KSWAPD_RECLAIM);
      WEIR_BUG_ON(page == nullptr);
      pages.push_back(page);
    }
  }
  void give_back() {
    for (Page* page : pages) w.m().lru.put_page(*page);
    pages.clear();
    w.m().pages.drain_all_pages();
  }
  Zone& zone() { return w.m().node.zones[0]; }
  ReclaimWorld& w;
  std::vector<Page*> pages;
};

TEST(Kswapd, ItIsWokenAtLowAndWorksToHigh) {
  ReclaimWorld w({});
  w.add_area({.pages = 8192});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr a = w.map(t, 2000);
    w.fill(t, a, 2000, 1);
    Hoard hoard(w);
    const int64_t low = hoard.zone().wmark(Watermark::low);
    hoard.until(low + 100);
    world().schedule_timeout(1_s);
    const uint64_t runs = w.event(VmEvent::pageoutrun);
    // Down to the mark by ordinary allocations.
    while (hoard.zone().nr_free.load() > low + 40) hoard.pages.push_back(w.m().pages.alloc_page(GFP_HIGHUSER));
    world().schedule_timeout(1_s);
    EXPECT_EQ(w.event(VmEvent::pageoutrun), runs) << "not below the mark yet";
    while (w.event(VmEvent::pageoutrun) == runs && hoard.pages.size() < 4000) {
      hoard.pages.push_back(w.m().pages.alloc_page(GFP_HIGHUSER));
      world().schedule_timeout(1_us);
      EXPECT_GE(hoard.zone().nr_free.load(), low - 40);
    }
    world().schedule_timeout(1_s);
    EXPECT_GE(hoard.zone().nr_free.load(), hoard.zone().wmark(Watermark::high));
    EXPECT_GT(w.event(VmEvent::pgsteal_kswapd), 0u);
    EXPECT_EQ(w.event(VmEvent::allocstall), 0u);
    hoard.give_back();
    w.expect(t, a, 2000, 1);
  });
}

TEST(Kswapd, UnderASteadyLoadNobodyElseReclaims) {
  ReclaimWorld w({.cpus = 2}, {.slice = 20_us});
  w.add_area({.pages = 30000});
  Task* t = nullptr;
  w.run([&] { t = &w.task("a"); });
  int64_t least = int64_t{1} << 40;
  w.spawn(*t, [&] {
    const VirtAddr a = w.map(*t, 20000);
    for (uint64_t i = 0; i < 20000; ++i) {
      w.put(*t, w.at(a, i), i);
      least = std::min(least, w.m().node.zones[0].nr_free.load());
      world().spend(2_us);
    }
  });
  w.run();
  EXPECT_EQ(w.event(VmEvent::allocstall), 0u);
  EXPECT_EQ(w.event(VmEvent::pgsteal_direct), 0u);
  EXPECT_GT(w.event(VmEvent::pgsteal_kswapd), 10000u);
  EXPECT_GE(least, w.m().node.zones[0].wmark(Watermark::min));
}

TEST(Kswapd, AfterSixteenFailuresItGivesUpUntilSomebodyMakesProgress) {
  ReclaimWorld w({});
  w.run([&] {
    // Nothing that could be reclaimed: no swap, no cache.
    Hoard hoard(w);
    const int64_t low = hoard.zone().wmark(Watermark::low);
    hoard.until(low - 10);
    for (int i = 0; i < 40; ++i) {
      w.m().vmscan.wakeup_kswapd(ZoneType::DMA32, Order(0));
      world().schedule_timeout(200_ms);
    }
    EXPECT_EQ(w.m().node.kswapd_failures.load(), MAX_RECLAIM_RETRIES);
    const uint64_t runs = w.event(VmEvent::pageoutrun);
    EXPECT_EQ(runs, static_cast<uint64_t>(MAX_RECLAIM_RETRIES));
    w.m().vmscan.wakeup_kswapd(ZoneType::DMA32, Order(0));
    world().schedule_timeout(1_s);
    EXPECT_EQ(w.event(VmEvent::pageoutrun), runs);
    hoard.give_back();
    TestDevice& disk = w.add_disk({.pages = 64, .synchronous = false});
    File& f = w.file(disk, 64);
    for (uint64_t i = 0; i < 64; ++i) w.read_file(f, i);
    EXPECT_GT(w.reclaim(10).v, 0);
    EXPECT_EQ(w.m().node.kswapd_failures.load(), 0);
  });
}

TEST(Kswapd, ItIsStartedOnceAndNamedAfterItsNode) {
  ReclaimWorld w({});
  w.run([&] {
    EXPECT_STREQ(w.m().node.kswapd->comm, "kswapd0");
    Thread* first = w.m().node.kswapd;
    ASSERT_TRUE(w.m().vmscan.kswapd_run(world()));
    EXPECT_EQ(w.m().node.kswapd, first);
  });
}

// ---- Throttling -----------------------------------------------------------------------------------------------------

class Throttle : public testing::Test {
 protected:
  /// kswapd stands still, half of the reserve is gone, and a task wants memory.
  void set_up(std::function<void(Hoard&)> then) {
    w.add_area({.pages = 8192});
    w.run([&] {
      task = &w.task("a");
      const VirtAddr a = w.map(*task, 500);
      w.fill(*task, a, 500, 1);
      freeze_processes(world());
      Hoard hoard(w);
      hoard.until(hoard.zone().wmark(Watermark::min) / 2 - 1);
      w.spawn(*task, [&] {
        const ThreadFlagScope reclaiming(PF_MEMALLOC);
        result = w.m().vmscan.try_to_free_pages(Order(0), GFP_HIGHUSER).v;
        returned = true;
      });
      world().schedule_timeout(10_s);
      EXPECT_FALSE(returned);
      EXPECT_EQ(w.event(VmEvent::pgscan_direct_throttle), 1u);
      then(hoard);
      world().schedule_timeout(3_s);
      EXPECT_TRUE(returned);
      thaw_processes(world());
      hoard.give_back();
    });
  }
  ReclaimWorld w{ReclaimWorld::Options{}};
  Task* task = nullptr;
  bool returned = false;
  int64_t result = 0;
};

TEST_F(Throttle, AllocatorsWaitAtHalfTheReserveAndGoOnWhenItRises) {
  set_up([&](Hoard& hoard) { hoard.give_back(); });
  EXPECT_GT(result, 0);
}

TEST_F(Throttle, AKilledOneLeavesAtOnceAndCallsItProgress) {
  set_up([&](Hoard&) { w.m().task_kill(*task); });
  EXPECT_EQ(result, 1);
  EXPECT_EQ(w.event(VmEvent::pgsteal_direct), 0u);
}

TEST_F(Throttle, AKernelThreadIsNotHeldUp) {
  w.add_area({.pages = 8192});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr a = w.map(t, 500);
    w.fill(t, a, 500, 1);
    w.reclaim(40);  // below half of the reserve the swap cache's tree gets no new frames
    freeze_processes(world());
    Hoard hoard(w);
    hoard.until(hoard.zone().wmark(Watermark::min) / 2 - 1);
    const ThreadFlagScope kernel(PF_KTHREAD | PF_MEMALLOC);
    EXPECT_GT(w.m().vmscan.try_to_free_pages(Order(0), GFP_HIGHUSER).v, 0);
    EXPECT_EQ(w.event(VmEvent::pgscan_direct_throttle), 0u);
    thaw_processes(world());
  });
}

// ---- Without accessed and dirty bits --------------------------------------------------------------------------------

TEST(Staging, RunsAheadOfTheTailWithinItsShare) {
  ReclaimWorld w(HOST);
  w.add_area({.pages = 8192});
  w.run([&] {
    w.m().vmscan.set_staging_share(16);
    Task& t = w.task("a");
    const VirtAddr a = w.map(t, 3000);
    w.fill(t, a, 3000, 5);
    w.reclaim(300);
    const int64_t share = w.m().pages.managed_pages().v / 16;
    EXPECT_GT(w.m().lru.nr_aged().v, share / 2);
    EXPECT_LT(w.m().lru.nr_aged().v, share + SWAP_CLUSTER_MAX);
    int64_t staged = 0;
    for (uint64_t i = 0; i < 3000; ++i) {
      const Pte pte = w.pte(t, w.at(a, i));
      if (!pte_present(pte)) continue;
      EXPECT_EQ(pte_young(pte), w.mmu->uffd().lookup(*t.mm, w.at(a, i)) != nullptr) << "old is absent in hardware";
      staged += pte_young(pte) ? 0 : 1;
    }
    EXPECT_EQ(staged, w.m().lru.nr_aged().v);
    w.expect(t, a, 3000, 5);
  });
}

TEST(Staging, ATouchTakesAStagedPageBackAndItStays) {
  ReclaimWorld w(HOST);
  w.add_area({.pages = 8192});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr a = w.map(t, 2000);
    w.fill(t, a, 2000, 5);
    w.reclaim(200);
    std::vector<uint64_t> staged;
    for (uint64_t i = 0; i < 2000; ++i)
      if (Page* page = w.page_at(t, w.at(a, i)); page != nullptr && page->test(PageFlag::aged)) staged.push_back(i);
    ASSERT_GT(staged.size(), 50u);
    const uint64_t faults = w.event(VmEvent::access_flag_fault);
    for (size_t k = 0; k < 50; ++k) EXPECT_EQ(w.get(t, w.at(a, staged[k])), 5 + staged[k]);
    EXPECT_EQ(w.event(VmEvent::access_flag_fault), faults + 50);
    EXPECT_EQ(w.event(VmEvent::pswpin), 0u);
    w.reclaim(300);
    for (size_t k = 0; k < 50; ++k) {
      Page* page = w.page_at(t, w.at(a, staged[k]));
      ASSERT_NE(page, nullptr) << "used since it was staged";
      EXPECT_TRUE(page->test(PageFlag::active));
    }
  });
}

TEST(Staging, APageThatComesToTheTailUnagedIsAgedThenAndKeptForARound) {
  ReclaimWorld w(HOST);
  w.add_area({.pages = 64});
  w.run([&] {
    w.m().vmscan.set_staging_share(1u << 31);  // nothing is staged ahead
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 42);
    Page* page = w.page_at(t, at);
    Trace trace;
    for (int i = 0; i < 3 && w.page_at(t, at) != nullptr; ++i) w.reclaim(1);
    std::vector<PageKeep> reasons;
    for (const auto& s : trace.of(State::page_keep)) reasons.push_back(static_cast<PageKeep>(s.before));
    EXPECT_EQ(reasons, std::vector<PageKeep>{PageKeep::aging});
    EXPECT_EQ(page_count(*page), 0) << "the next round took it";
    EXPECT_EQ(w.get(t, at), 42u);
  });
}

TEST(Staging, APinnedPageStaysInMemoryUnwritten) {
  ReclaimWorld w(HOST);
  TestDevice& d = w.add_area({.pages = 8192});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr a = w.map(t, 200);
    w.fill(t, a, 200, 5);
    Page* pinned = w.page_at(t, w.at(a, 50));
    w.mmu->uffd().pin(*t.mm, w.at(a, 50));
    for (int i = 0; i < 5; ++i) w.reclaim(200);
    EXPECT_EQ(d.written.size(), 199u);
    EXPECT_GT(page_count(*pinned), 0);
    // The device that pinned it, or the task, goes on writing there.
    w.put(t, w.at(a, 50), 4711);
    EXPECT_TRUE(d.read.empty());
    EXPECT_EQ(w.get(t, w.at(a, 50)), 4711u);
    w.mmu->uffd().unpin(*t.mm, w.at(a, 50));
    w.put(t, w.at(a, 50), 55);
    w.expect(t, a, 200, 5);
  });
}

TEST(Staging, BytesThatDifferFromTheSlotAreWrittenAndOthersAreNot) {
  ReclaimWorld w(HOST);
  TestDevice& d = w.add_area({.pages = 64});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    const auto out = [&] {
      d.written.clear();
      for (int i = 0; i < 5 && w.page_at(t, at) != nullptr; ++i) w.reclaim(1);
      EXPECT_EQ(w.page_at(t, at), nullptr);
      return d.written.size();
    };
    w.put(t, at, 1);
    EXPECT_EQ(out(), 1u);
    EXPECT_EQ(w.get(t, at), 1u);
    EXPECT_EQ(out(), 0u) << "only read";
    uint64_t value = 0;
    EXPECT_EQ(w.load(t, at, value), FaultResult::done);
    w.put(t, at, 2);
    EXPECT_EQ(out(), 1u);
    EXPECT_EQ(w.get(t, at), 2u);
    w.put(t, at, 3);
    w.put(t, at, 2);
    const size_t written = out();
    EXPECT_EQ(w.get(t, at), 2u) << written;
  });
}

// What the Mmu remembers of a slot is its last user's, and may be equal to the next one's bytes by chance.
TEST(Staging, ANewUserOfASlotIsWrittenThoughTheBytesAreThoseOfTheLast) {
  ReclaimWorld w(HOST);
  TestDevice& d = w.add_area({.pages = 10});
  w.run([&] {
    for (int round = 0; round < 30; ++round) {
      Task& t = w.task("a");
      const VirtAddr at = w.map(t, 1);
      w.put(t, at, 7);
      for (int i = 0; i < 5 && w.page_at(t, at) != nullptr; ++i) w.reclaim(1);
      ASSERT_EQ(w.page_at(t, at), nullptr);
      // The device forgets a slot when its last user goes, as zram does.
      ASSERT_EQ(w.get(t, at), 7u) << "round " << round;
      w.exit(t);
      for (const uint64_t slot : d.freed) std::memset(d.page(slot), 0, PAGE_SIZE);
      d.freed.clear();
    }
  });
}

TEST(Staging, AFailedWriteIsNotMistakenForACleanPage) {
  ReclaimWorld w(HOST);
  TestDevice& d = w.add_area({.pages = 64, .synchronous = false, .latency = 50_us});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr at = w.map(t, 1);
    w.put(t, at, 7);
    for (uint64_t i = 1; i < 64; ++i) d.bad.insert(i);
    for (int i = 0; i < 5; ++i) {
      w.reclaim(1);
      world().schedule_timeout(1_ms);
    }
    EXPECT_GT(w.event(VmEvent::swap_write_error), 0u);
    d.bad.clear();
    EXPECT_EQ(w.get(t, at), 7u);
    for (int i = 0; i < 10 && (w.page_at(t, at) != nullptr || w.gauge(NodeStat::nr_swapcached) != 0); ++i) {
      w.reclaim(1);
      world().schedule_timeout(1_ms);
    }
    EXPECT_EQ(w.page_at(t, at), nullptr);
    EXPECT_EQ(w.get(t, at), 7u);
  });
}

// ---- Shrinkers ------------------------------------------------------------------------------------------------------

struct TestShrinker final : Shrinker {
  explicit TestShrinker(int64_t n) : objects(n) {}
  int64_t objects, asked = 0;
  PageCount count_objects() override { return PageCount(objects); }
  PageCount scan_objects(PageCount n) override {
    asked += n.v;
    return PageCount(0);  // nothing goes, so that the base stays
  }
};

TEST(Shrinkers, AreAskedInProportionToWhatWasScanned) {
  ReclaimWorld w(QUIET);
  TestShrinker normal(100000), dear(100000), empty(0);
  dear.seeks = 8;
  w.run([&] {
    TestDevice& disk = w.add_disk({.pages = 3000, .synchronous = false});
    File& f = w.file(disk, 3000);
    for (uint64_t i = 0; i < 3000; ++i) w.read_file(f, i);
    w.m().lru.lru_add_drain();
    for (TestShrinker* s : {&normal, &dear, &empty}) w.m().vmscan.register_shrinker(*s);
    const int64_t lru = w.gauge(NodeStat::nr_inactive_file) + w.gauge(NodeStat::nr_active_file);
    w.reclaim(400);
    const double share = static_cast<double>(w.event(VmEvent::pgscan_direct)) / static_cast<double>(lru);
    EXPECT_NEAR(static_cast<double>(normal.asked) / 100000, 2 * share, share);
    EXPECT_NEAR(static_cast<double>(dear.asked) / static_cast<double>(normal.asked), 0.25, 0.05);
    EXPECT_EQ(empty.asked, 0);
    EXPECT_EQ(w.event(VmEvent::slabs_scanned), static_cast<uint64_t>(normal.asked + dear.asked));
    for (TestShrinker* s : {&normal, &dear, &empty}) w.m().vmscan.unregister_shrinker(*s);
    const int64_t asked = normal.asked;
    w.reclaim(400);
    EXPECT_EQ(normal.asked, asked);
  });
}

TEST(Shrinkers, LessThanABatchIsOwedToTheNextRun) {
  ReclaimWorld w(QUIET);
  TestShrinker s(1000);
  w.run([&] {
    TestDevice& disk = w.add_disk({.pages = 3000, .synchronous = false});
    File& f = w.file(disk, 3000);
    for (uint64_t i = 0; i < 3000; ++i) w.read_file(f, i);
    w.m().vmscan.register_shrinker(s);
    int runs = 0;
    while (s.asked == 0 && runs < 50) {
      w.reclaim(32);
      ++runs;
    }
    EXPECT_GT(runs, 1);
    EXPECT_LT(runs, 20);
    EXPECT_EQ(s.asked % SHRINK_BATCH, 0);
    w.m().vmscan.unregister_shrinker(s);
  });
}

}  // namespace
}  // namespace weir::test
