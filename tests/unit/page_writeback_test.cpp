// Limits, accounting, pauses, and what is written in which order.
#include "mm/page_writeback.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "support/file_fixture.hpp"

namespace weir {
namespace {

using test::FileWorld;
using test::FlowLog;

/// Counts what it is asked; `on_wake` stands for the flusher's work.
class FakeFlusher final : public WritebackControlSink {
 public:
  void wakeup(int reason) override {
    reasons.push_back(reason);
    if (on_wake) on_wake();
  }
  void mark_inode_dirty(Inode& inode) override { dirty.push_back(&inode); }
  [[nodiscard]] bool has_thread() const override { return thread; }
  std::vector<int> reasons;
  std::vector<Inode*> dirty;
  std::function<void()> on_wake;
  bool thread = true;
};

/// Notes what is written; ends each write when told to.
class FakeOps final : public AddressSpaceOps {
 public:
  explicit FakeOps(test::FileMachine& machine) : m(machine) {}
  Result<void> writepage(Page& page, WritebackControl& wbc) override {
    written.push_back(page.index);
    if (on_write) on_write(page);
    if (refuse) {
      m.writeback.redirty_page_for_writepage(wbc, page);
      return Errno::again;
    }
    m.filemap.set_page_writeback(page);
    m.filemap.unlock_page(page);
    under_way.push_back(&page);
    if (end_at_once) end_all();
    return {};
  }
  Result<void> readpage(AddressSpace&, Page&) override { return Errno::io; }
  bool set_page_dirty(Page& page) override {
    return m.writeback.__set_page_dirty_nobuffers(page, *Filemap::file_mapping(page));
  }
  void end_all() {
    std::vector<Page*> pages;
    pages.swap(under_way);
    for (Page* page : pages) m.filemap.end_page_writeback(*page);
  }
  test::FileMachine& m;
  std::vector<uint64_t> written;
  std::vector<Page*> under_way;
  std::function<void(Page&)> on_write;
  bool refuse = false, end_at_once = true;
};

class PageWritebackTest : public testing::Test {
 protected:
  void SetUp() override {
    w.m.writeback.set_flusher(&flusher);
    mapping.a_ops = &ops;
    w.run([&] { mapping.wb = &wb().wb_of(*w.faulty); });
  }
  void TearDown() override {
    w.run([&] {
      ops.end_all();
      Truncate truncate(w.m.filemap, wb(), w.m.buffers, w.m.user);
      truncate.truncate_inode_pages(mapping, 0);
    });
    w.m.writeback.set_mapped_pages(nullptr);
    w.m.writeback.set_flusher(&w.m.flusher);
  }
  PageWriteback& wb() { return w.m.writeback; }
  Page& cached(uint64_t index) {
    Page* page = w.m.pages.alloc_page(GFP_HIGHUSER_MOVABLE);
    WEIR_BUG_ON(page == nullptr || !w.m.filemap.add_to_page_cache_lru(*page, mapping, index, GFP_KERNEL));
    w.m.filemap.unlock_page(*page);
    w.m.lru.put_page(*page);
    return *page;
  }
  Page& dirtied(uint64_t index) {
    Page& page = cached(index);
    ops.set_page_dirty(page);
    return page;
  }
  PageCount write(SyncMode mode, int64_t nr, uint64_t start = 0, uint64_t end = ~uint64_t{0}) {
    WritebackControl wbc;
    wbc.nr_to_write = nr;
    wbc.sync_mode = mode;
    wbc.range_start = start;
    wbc.range_end = end;
    return wb().write_cache_pages(mapping, wbc);
  }
  int64_t nr_dirty() { return w.m.gauge(NodeStat::nr_dirty); }
  /// Nobody dirtied these, but the limits cannot tell.
  void pretend_dirty(int64_t pages) {
    w.m.vmstat.mod_node_page_state(NodeStat::nr_dirty, pages);
    mapping.wb->reclaimable += pages;
  }

  FileWorld w{{.ram = 128_MiB}};
  FakeFlusher flusher;
  FakeOps ops{w.m};
  AddressSpace mapping;
};

// ---- Limits

TEST_F(PageWritebackTest, LimitsAreSharesOfWhatCouldBeDirty) {
  w.run([&] {
    const int64_t memory = wb().global_dirtyable_memory().v;
    EXPECT_EQ(memory, w.m.pages.nr_free_pages().v - w.m.pages.totalreserve_pages().v + 1);
    EXPECT_EQ(wb().global_dirty_limits().background.v, memory / 10);
    EXPECT_EQ(wb().global_dirty_limits().dirty.v, memory / 5);
    wb().set_ratios(30, 60);
    EXPECT_EQ(wb().global_dirty_limits().dirty.v, memory * 60 / 100);
    wb().set_ratios(60, 50);  // the background must come first
    EXPECT_EQ(wb().global_dirty_limits().background.v, memory * 50 / 100 / 2);
  });
}

TEST_F(PageWritebackTest, PageCacheCountsAsDirtyableKernelMemoryDoesNot) {
  w.run([&] {
    const int64_t before = wb().global_dirtyable_memory().v;
    std::vector<Page*> kernel;
    for (int i = 0; i < 256; ++i) kernel.push_back(w.m.pages.alloc_page(GFP_KERNEL));
    const int64_t taken = before - wb().global_dirtyable_memory().v;
    EXPECT_NEAR(static_cast<double>(taken), 256, 64) << "but for what a per-CPU list holds";
    const int64_t between = wb().global_dirtyable_memory().v;
    for (uint64_t i = 0; i < 256; ++i) cached(i);
    w.m.lru.lru_add_drain_all();
    EXPECT_NEAR(static_cast<double>(wb().global_dirtyable_memory().v), static_cast<double>(between), 64);
    for (Page* p : kernel) w.m.lru.put_page(*p);
  });
}

TEST_F(PageWritebackTest, WhoWritesForOthersMayGoAQuarterHigher) {
  w.run([&] {
    const DirtyLimits normal = wb().global_dirty_limits();
    ThreadFlagScope less(PF_LESS_THROTTLE);
    EXPECT_EQ(wb().global_dirty_limits().dirty.v, normal.dirty.v + normal.dirty.v / 4);
    EXPECT_EQ(wb().global_dirty_limits().background.v, normal.background.v + normal.background.v / 4);
  });
}

TEST_F(PageWritebackTest, ANodeHasRoomForDirtyPagesUpToTheLimit) {
  w.run([&] {
    const int64_t limit = wb().global_dirty_limits().dirty.v;
    pretend_dirty(limit);
    EXPECT_TRUE(wb().node_dirty_ok());
    pretend_dirty(1);
    EXPECT_FALSE(wb().node_dirty_ok());
    pretend_dirty(-limit - 1);
  });
}

// ---- Clean and dirty

TEST_F(PageWritebackTest, APageIsDirtyOnceTaggedCountedAndItsInodeListed) {
  Inode* inode = w.make_file(64_KiB);
  mapping.host = inode;
  w.run([&] {
    Page& page = cached(5);
    EXPECT_TRUE(ops.set_page_dirty(page));
    EXPECT_FALSE(ops.set_page_dirty(page));
    EXPECT_EQ(nr_dirty(), 1);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_dirtied), 1);
    EXPECT_EQ(flusher.dirty, std::vector<Inode*>{inode});
    {
      ScopedLock guard(mapping.tree_lock);
      EXPECT_TRUE(mapping.page_tree.tag_get(5, PAGECACHE_TAG_DIRTY));
    }
    w.m.filemap.lock_page(page);
    EXPECT_TRUE(wb().clear_page_dirty_for_io(page));
    EXPECT_FALSE(wb().clear_page_dirty_for_io(page));
    EXPECT_EQ(nr_dirty(), 0);
    w.m.filemap.unlock_page(page);
  });
  mapping.host = nullptr;
}

TEST_F(PageWritebackTest, APageThatLeftItsFileIsNotDirtiedAnyMore) {
  w.run([&] {
    Page& page = cached(5);
    PageAllocator::get_page(page);
    w.m.filemap.lock_page(page);
    w.m.filemap.delete_from_page_cache(page);
    w.m.filemap.unlock_page(page);
    w.m.lru.put_page(page);
    EXPECT_FALSE(wb().__set_page_dirty_nobuffers(page, mapping));
    EXPECT_FALSE(page.test(PageFlag::dirty));
    EXPECT_EQ(nr_dirty(), 0);
    w.m.lru.put_page(page);
  });
}

TEST_F(PageWritebackTest, TruncationTakesADirtyPageOutOfTheCount) {
  w.run([&] {
    dirtied(1);
    dirtied(2);
    EXPECT_EQ(nr_dirty(), 2);
    Truncate truncate(w.m.filemap, wb(), w.m.buffers, w.m.user);
    truncate.truncate_inode_pages(mapping, 2 * PAGE_SIZE);
    EXPECT_EQ(nr_dirty(), 1);
  });
}

TEST_F(PageWritebackTest, WhatWasStoredThroughAMappingIsWrittenToo) {
  struct FakeMapped final : MappedFilePages {
    int page_mkclean(Page&) override {
      ++cleaned;
      return dirty_ptes;
    }
    void unmap_mapping_range(AddressSpace&, uint64_t, uint64_t, EvenCows) override {}
    int cleaned = 0, dirty_ptes = 0;
  } mapped;
  wb().set_mapped_pages(&mapped);
  w.run([&] {
    Page& page = cached(5);
    w.m.filemap.lock_page(page);
    EXPECT_FALSE(wb().clear_page_dirty_for_io(page));
    EXPECT_EQ(mapped.cleaned, 0) << "it is not mapped";
    page._mapcount.store(0);
    EXPECT_FALSE(wb().clear_page_dirty_for_io(page));
    EXPECT_EQ(mapped.cleaned, 1);
    mapped.dirty_ptes = 1;
    EXPECT_TRUE(wb().clear_page_dirty_for_io(page));
    EXPECT_EQ(nr_dirty(), 0);
    page._mapcount.store(-1);
    w.m.filemap.unlock_page(page);
  });
}

TEST_F(PageWritebackTest, AnAnonymousPagesDirtyFlagIsNobodysAccount) {
  w.run([&] {
    Page* page = w.m.pages.alloc_page(GFP_HIGHUSER_MOVABLE);
    w.m.filemap.lock_page(*page);
    page->set(PageFlag::dirty);
    EXPECT_TRUE(wb().clear_page_dirty_for_io(*page));
    EXPECT_EQ(nr_dirty(), 0);
    w.m.filemap.unlock_page(*page);
    w.m.lru.put_page(*page);
  });
}

// ---- Throttling

TEST_F(PageWritebackTest, BelowFreerunNobodyPauses) {
  w.run([&] {
    const DirtyLimits limits = wb().global_dirty_limits();
    pretend_dirty((limits.background.v + limits.dirty.v) / 2);
    wb().balance_dirty_pages(mapping);
    EXPECT_EQ(w.world.now(), 0_ns);
    EXPECT_EQ(flusher.reasons, std::vector<int>{WB_REASON_BACKGROUND}) << "it is over the background limit";
    pretend_dirty(-nr_dirty());
    flusher.reasons.clear();
    wb().balance_dirty_pages(mapping);
    EXPECT_TRUE(flusher.reasons.empty());
  });
}

TEST(PositionRatio, IsTwoAtFreerunOneHalfWayToTheLimitAndNothingThere) {
  EXPECT_NEAR(static_cast<double>(pos_ratio_polynom(1500, 1000, 2000)), 2048, 12);
  EXPECT_EQ(pos_ratio_polynom(1500, 1500, 2000), 1024);
  EXPECT_LE(pos_ratio_polynom(1500, 2000, 2000), 12);
  int64_t last = 3000;
  for (int64_t dirty = 1000; dirty <= 2000; dirty += 10) {
    const int64_t ratio = pos_ratio_polynom(1500, dirty, 2000);
    EXPECT_LE(ratio, last) << dirty;
    last = ratio;
  }
  // Around the middle a little more or less is let pass: a cubic is flat there.
  EXPECT_NEAR(static_cast<double>(pos_ratio_polynom(1500, 1600, 2000)), 1024, 10);
}

TEST(PositionRatio, ADeviceWithMoreThanItsShareIsSlowedAndOneWithHardlyAnyIsNot) {
  const auto ratio = [](int64_t dirty, int64_t wb_thresh, int64_t wb_dirty) {
    return wb_position_ratio({.thresh = 2000,
                              .bg_thresh = 0,
                              .dirty = dirty,
                              .wb_thresh = wb_thresh,
                              .wb_dirty = wb_dirty,
                              .write_bw = 100});
  };
  EXPECT_EQ(ratio(2000, 2000, 2000), 0) << "at the limit, whoever it is";
  const int64_t fair = ratio(1500, 1000, 750);
  EXPECT_NEAR(static_cast<double>(fair), 1024, 30);
  EXPECT_LT(ratio(1500, 1000, 1400), fair / 2);
  EXPECT_GE(ratio(1500, 1000, 300), fair * 3 / 2);
  EXPECT_GE(ratio(1500, 1000, 10), fair * 8);
}

TEST(PositionRatio, AStrictDeviceStopsAtItsShareHoweverLittleOthersHave) {
  const auto control = [](int64_t wb_dirty) {
    return DirtyControl{.thresh = 2000,
                        .bg_thresh = 1000,
                        .dirty = wb_dirty,
                        .wb_thresh = 200,
                        .wb_bg_thresh = 100,
                        .wb_dirty = wb_dirty,
                        .strict = true};
  };
  EXPECT_TRUE(control(150).runs_free());
  EXPECT_FALSE(control(151).runs_free());
  EXPECT_EQ(wb_position_ratio(control(200)), 0);
  EXPECT_NEAR(static_cast<double>(wb_position_ratio(control(175))), 1024, 40) << "half way from free to its share";
  EXPECT_EQ(wb_position_ratio(control(5)), 2048) << "enough to keep it busy";
  DirtyControl full = control(5);
  full.dirty = 2000;
  EXPECT_EQ(wb_position_ratio(full), 0) << "the limit of all is one for it too";
  full.strict = false;
  full.dirty = 1000;
  EXPECT_TRUE(full.runs_free());
}

// 1000 pages were dirtied at once; the device takes 25600 a second: the writer is 39 ms ahead.
TEST_F(PageWritebackTest, AWriterPausesForWhatItIsAhead) {
  Task task;
  FlowLog log;
  w.world.set_sink(&log);
  w.spawn(
      "writer",
      [&] {
        const DirtyLimits limits = wb().global_dirty_limits();
        const int64_t setpoint = (limits.dirty.v + (limits.dirty.v + limits.background.v) / 2) / 2;
        pretend_dirty(setpoint);
        task.dirty_paused_when = w.world.now();
        wb().balance_dirty_pages(mapping, PageCount(500));
        pretend_dirty(-setpoint);
      },
      &task);
  w.run();
  w.world.set_sink(nullptr);
  const std::vector<FlowLog::Entry> pauses = log.states(State::dirty_pause);
  ASSERT_EQ(pauses.size(), 1u);
  EXPECT_NEAR(static_cast<double>(pauses[0].c) / 1e6, 500.0 / 25.6, 4.0);
}

TEST_F(PageWritebackTest, AboveTheLimitNobodyGoesOnUntilItIsBelow) {
  w.run([&] {
    const int64_t dirty = wb().global_dirty_limits().dirty.v + 10;
    pretend_dirty(dirty);
    w.spawn("disk", [&] {
      w.world.schedule_timeout(1500_ms);
      pretend_dirty(-dirty);
    });
    wb().balance_dirty_pages(mapping);
    EXPECT_GE(w.world.now(), 1500_ms);
    EXPECT_LE(w.world.now(), 1500_ms + MAX_PAUSE);
  });
}

TEST_F(PageWritebackTest, AKilledTaskIsNotHeld) {
  Task task;
  const int64_t dirty = 1 << 20;
  w.spawn(
      "writer",
      [&] {
        task.thread = &current();
        pretend_dirty(dirty);
        wb().balance_dirty_pages(mapping);
        EXPECT_EQ(w.world.now(), 700_ms);
        pretend_dirty(-dirty);
      },
      &task);
  w.spawn("killer", [&] {
    w.world.schedule_timeout(700_ms);
    task.sigkill = true;
    w.world.wake(*task.thread);
  });
  w.run();
}

TEST_F(PageWritebackTest, ATaskLooksAtTheLimitsEvery32PagesAndMoreOftenAboveThem) {
  Task task;
  FlowLog log;
  w.world.set_sink(&log);
  w.spawn(
      "writer",
      [&] {
        for (uint64_t i = 0; i < 64; ++i) {
          dirtied(i);
          wb().balance_dirty_pages_ratelimited(mapping);
        }
        EXPECT_EQ(log.calls("balance_dirty_pages").size(), 2u);
        const int64_t over = wb().global_dirty_limits().dirty.v;
        pretend_dirty(over);
        flusher.on_wake = [&] { pretend_dirty(-nr_dirty() / 2); };
        for (uint64_t i = 64; i < 64 + 32; ++i) {
          dirtied(i);
          wb().balance_dirty_pages_ratelimited(mapping);
        }
        log.entries.clear();
        flusher.on_wake = nullptr;
        pretend_dirty(1 << 20);
        wb().set_ratios(0, 0);
        task.sigkill = true;  // it must not stay there
        wb().balance_dirty_pages(mapping);
        for (uint64_t i = 200; i < 200 + 32; ++i) {
          dirtied(i);
          wb().balance_dirty_pages_ratelimited(mapping);
        }
        EXPECT_EQ(log.calls("balance_dirty_pages").size(), 1u + 4u);
      },
      &task);
  w.run();
  w.world.set_sink(nullptr);
  // The gauge was played with: what is dirty is counted anew.
  w.run([&] {
    wb().set_ratios(10, 20);
    int64_t really = 0;
    Page* pages[256];
    const unsigned n = w.m.filemap.find_get_pages(mapping, 0, 256, pages);
    for (unsigned i = 0; i < n; ++i) really += pages[i]->test(PageFlag::dirty);
    w.m.lru.release_pages(pages, n);
    pretend_dirty(really - nr_dirty());
  });
}

TEST_F(PageWritebackTest, ManyTasksWithFewPagesEachAreSeenTogether) {
  FlowLog log;
  w.world.set_sink(&log);
  std::vector<Task> tasks(40);
  for (uint64_t t = 0; t < tasks.size(); ++t)
    w.spawn(
        "writer",
        [&, t] {
          for (uint64_t i = 0; i < 8; ++i) {
            dirtied(t * 100 + i);
            wb().balance_dirty_pages_ratelimited(mapping);
          }
        },
        &tasks[t]);
  w.run();
  w.world.set_sink(nullptr);
  EXPECT_GE(log.calls("balance_dirty_pages").size(), 2u);
}

TEST_F(PageWritebackTest, WhereThereIsNoFlusherTheWriterWrites) {
  flusher.thread = false;
  w.run([&] {
    for (uint64_t i = 0; i < 100; ++i) dirtied(i);
    // 50 above the limit: 48 pages, a pause, 48 more; then it is below, but above freerun: the rest.
    const int64_t others = wb().global_dirty_limits().dirty.v - 50;
    pretend_dirty(others);
    wb().balance_dirty_pages(mapping, PageCount(1));
    pretend_dirty(-others);
    EXPECT_GT(w.m.event(VmEvent::balance_dirty_pause), 1u);
  });
  EXPECT_EQ(ops.written.size(), 100u);
}

// ---- 2.6.20

TEST(DirtyLimits2620, AreSharesOfMemoryAndLessTheMoreIsMapped) {
  FileWorld w({.ram = 128_MiB, .kernel = KernelEra::linux_2_6_20});
  w.run([&] {
    const int64_t memory = w.m.pages.managed_pages().v;
    const auto percent = [&](int64_t mapped_percent) {
      w.m.vmstat.mod_node_page_state(NodeStat::nr_anon_pages, memory * mapped_percent / 100);
      const DirtyLimits limits = w.m.writeback.global_dirty_limits();
      w.m.vmstat.mod_node_page_state(NodeStat::nr_anon_pages, -(memory * mapped_percent / 100));
      return std::pair((limits.background.v * 100 + memory / 2) / memory, (limits.dirty.v * 100 + memory / 2) / memory);
    };
    using Percent = std::pair<int64_t, int64_t>;
    EXPECT_EQ(percent(0), (Percent{10, 40}));
    EXPECT_EQ(percent(20), (Percent{10, 40}));
    EXPECT_EQ(percent(50), (Percent{10, 25}));
    EXPECT_EQ(percent(81), (Percent{5, 10})) << "background stays below";
    EXPECT_EQ(percent(100), (Percent{2, 5})) << "5 percent whatever is mapped";
  });
}

// ---- Writing

TEST_F(PageWritebackTest, PagesAreWrittenByIndex) {
  w.run([&] {
    for (uint64_t i : {900, 3, 64, 1, 63}) dirtied(i);
    cached(2);
    EXPECT_EQ(write(SyncMode::none, 100).v, 5);
  });
  EXPECT_EQ(ops.written, (std::vector<uint64_t>{1, 3, 63, 64, 900}));
  EXPECT_EQ(nr_dirty(), 0);
}

TEST_F(PageWritebackTest, NoMoreIsWrittenThanAskedForAndOnlyInTheRange) {
  w.run([&] {
    for (uint64_t i = 0; i < 50; ++i) dirtied(i);
    EXPECT_EQ(write(SyncMode::none, 7).v, 7);
    EXPECT_EQ(ops.written.size(), 7u);
    ops.written.clear();
    EXPECT_EQ(write(SyncMode::all, 1, 20, 30).v, 11) << "a sync writes all of its range";
    EXPECT_EQ(ops.written.front(), 20u);
    EXPECT_EQ(ops.written.back(), 30u);
  });
}

TEST_F(PageWritebackTest, ACyclicWriteGoesOnWhereTheLastOneEnded) {
  w.run([&] {
    for (uint64_t i = 0; i < 10; ++i) dirtied(i);
    WritebackControl wbc;
    wbc.range_cyclic = true;
    wbc.nr_to_write = 4;
    wb().write_cache_pages(mapping, wbc);
    for (uint64_t i = 0; i < 4; ++i) {
      Page* page = w.m.filemap.find_get_page(mapping, i);
      ops.set_page_dirty(*page);
      w.m.lru.put_page(*page);
    }
    wbc.nr_to_write = 8;
    wb().write_cache_pages(mapping, wbc);
  });
  EXPECT_EQ(ops.written, (std::vector<uint64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1}));
}

TEST_F(PageWritebackTest, ASyncEndsThoughTheFileIsWrittenToMeanwhile) {
  uint64_t next = 100;
  w.run([&] {
    for (uint64_t i = 0; i < 20; ++i) dirtied(i);
    ops.on_write = [&](Page&) { dirtied(next++); };
    EXPECT_EQ(write(SyncMode::all, 1).v, 20);
  });
  EXPECT_EQ(ops.written.size(), 20u);
  EXPECT_EQ(nr_dirty(), 20);
}

TEST_F(PageWritebackTest, ASyncWaitsForAWriteUnderWayAndWritesThePageAgain) {
  ops.end_at_once = false;
  w.run([&] {
    Page& page = dirtied(4);
    write(SyncMode::none, 1);
    ops.set_page_dirty(page);
    EXPECT_EQ(write(SyncMode::none, 1).v, 0) << "others pass over it";
    w.spawn("disk", [&] {
      w.world.schedule_timeout(3_ms);
      ops.end_all();
    });
    EXPECT_EQ(write(SyncMode::all, 1).v, 1);
    EXPECT_EQ(w.world.now(), 3_ms);
  });
  EXPECT_EQ(ops.written, (std::vector<uint64_t>{4, 4}));
}

TEST_F(PageWritebackTest, ARefusedPageStaysDirtyUnlockedAndTagged) {
  ops.refuse = true;
  w.run([&] {
    Page& page = dirtied(4);
    EXPECT_EQ(write(SyncMode::none, 1).v, 0);
    EXPECT_FALSE(page.test(PageFlag::locked));
    EXPECT_TRUE(page.test(PageFlag::dirty));
    EXPECT_EQ(nr_dirty(), 1);
    EXPECT_EQ(w.m.gauge(NodeStat::nr_dirtied), 1) << "it was dirtied once";
    ops.refuse = false;
    EXPECT_EQ(write(SyncMode::none, 1).v, 1);
  });
}

TEST_F(PageWritebackTest, DirtiersAndWritersInAnyOrderKeepFlagTagAndCountTogether) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FileWorld v({.seed = seed, .preempt_one_in = 3, .cpus = 2});
    FakeFlusher quiet;
    v.m.writeback.set_flusher(&quiet);
    FakeOps theirs(v.m);
    theirs.end_at_once = false;
    AddressSpace space;
    space.a_ops = &theirs;
    v.run([&] {
      for (uint64_t i = 0; i < 8; ++i) {
        Page* page = v.m.pages.alloc_page(GFP_HIGHUSER_MOVABLE);
        WEIR_BUG_ON(!v.m.filemap.add_to_page_cache_lru(*page, space, i, GFP_KERNEL));
        v.m.filemap.unlock_page(*page);
        v.m.lru.put_page(*page);
      }
    });
    int busy = 4;
    for (int t = 0; t < 2; ++t)
      v.spawn("dirtier", [&, t] {
        for (uint64_t i = 0; i < 60; ++i) {
          Page* page = v.m.filemap.find_lock_page(space, (i * 7 + static_cast<uint64_t>(t)) % 8);
          theirs.set_page_dirty(*page);
          v.m.filemap.unlock_page(*page);
          v.m.lru.put_page(*page);
          v.world.cond_resched();
        }
        --busy;
      });
    for (int t = 0; t < 2; ++t)
      v.spawn("writer", [&, t] {
        for (int i = 0; i < 15; ++i) {
          WritebackControl wbc;
          wbc.nr_to_write = 5;
          wbc.sync_mode = t == 0 ? SyncMode::none : SyncMode::all;
          v.m.writeback.write_cache_pages(space, wbc);
          v.world.cond_resched();
        }
        --busy;
      });
    v.spawn("disk", [&] {
      while (busy > 0) {
        theirs.end_all();
        v.world.schedule_timeout(1_us);
      }
      theirs.end_all();
    });
    v.run();
    v.run([&] {
      int64_t dirty = 0;
      for (uint64_t i = 0; i < 8; ++i) {
        Page* page = v.m.filemap.find_get_page(space, i);
        ScopedLock guard(space.tree_lock);
        EXPECT_EQ(page->test(PageFlag::dirty), space.page_tree.tag_get(i, PAGECACHE_TAG_DIRTY)) << i;
        EXPECT_FALSE(space.page_tree.tag_get(i, PAGECACHE_TAG_TOWRITE) && !page->test(PageFlag::dirty)) << i;
        dirty += page->test(PageFlag::dirty);
        WEIR_BUG_ON(PageAllocator::put_page_testzero(*page));
      }
      EXPECT_EQ(v.m.gauge(NodeStat::nr_dirty), dirty);
      Truncate truncate(v.m.filemap, v.m.writeback, v.m.buffers, v.m.user);
      truncate.truncate_inode_pages(space, 0);
    });
    v.m.writeback.set_flusher(&v.m.flusher);
  }
}

}  // namespace
}  // namespace weir
