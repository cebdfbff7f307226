// What an allocation does when memory is short: who is woken, who reclaims, who is killed, who fails.
#include <gmock/gmock.h>

#include <functional>

#include "mm/frame_source.hpp"
#include "mm/mm_types.hpp"
#include "support/mm_fixture.hpp"

namespace weir {
namespace {

using test::MachineOptions;
using test::run_world;
using test::TestMachine;
using test::Trace;
using testing::Contains;
using testing::ElementsAre;
using testing::IsEmpty;

/// The rooms above, written down: each call is one word in `calls`.
class FakePressure final : public Pressure {
 public:
  std::vector<std::string> calls;
  std::function<PageCount(Order, gfp_t)> reclaim = [](Order, gfp_t) { return PageCount(0); };
  std::function<bool()> kill = [] { return false; };
  std::function<void()> kswapd = [] {};
  PageCount reclaimable{0};
  bool saw_memalloc = true;

  PageCount try_to_free_pages(Order order, gfp_t gfp) override {
    say("reclaim");
    saw_memalloc &= (current_flags() & PF_MEMALLOC) != 0;
    return reclaim(order, gfp);
  }
  void wakeup_kswapd(ZoneType, Order) override {
    say("kswapd");
    kswapd();
  }
  bool out_of_memory(const OomControl&) override {
    say("kill");
    return kill();
  }
  [[nodiscard]] PageCount zone_reclaimable_pages() const override { return reclaimable; }

  [[nodiscard]] long count(const std::string& word) const { return std::count(calls.begin(), calls.end(), word); }

 private:
  void say(const char* word) {
    if (calls.empty() || calls.back() != word || calls.size() < 1000) calls.emplace_back(word);
  }
};

/// A machine whose free memory is at the min watermark, with a way to give some back.
struct ShortMachine : TestMachine {
  explicit ShortMachine(MachineOptions options = {}) : TestMachine(options) {
    pages.set_pressure(&pressure);
    for (size_t before = 1; before != taken.size();) {
      before = taken.size();
      pages.drain_all_pages();
      while (Page* page = pages.alloc_page(__GFP_HIGHMEM | __GFP_MOVABLE | __GFP_NOWARN)) taken.push_back(page);
    }
  }
  PageCount give(size_t n) {
    size_t given = 0;
    for (; given < n && !taken.empty(); ++given) {
      pages.__free_pages(*taken.back(), Order(0));
      taken.pop_back();
    }
    pages.drain_all_pages();
    return PageCount(static_cast<int64_t>(given));
  }
  FakePressure pressure;
  std::vector<Page*> taken;
};

constexpr gfp_t QUIET = GFP_KERNEL | __GFP_NOWARN;

TEST(Slowpath, MemoryAboveTheLowMarkWakesNobody) {
  TestMachine m;
  FakePressure pressure;
  m.pages.set_pressure(&pressure);
  run_world({}, [&] { EXPECT_NE(m.pages.alloc_page(GFP_KERNEL), nullptr); });
  EXPECT_THAT(pressure.calls, IsEmpty());
}

TEST(Slowpath, BelowTheLowMarkKswapdIsWokenAndTheMinMarkServes) {
  ShortMachine m;
  m.give(static_cast<size_t>(m.zone(ZoneType::DMA32).pcp->batch) + 3);
  run_world({}, [&] { EXPECT_NE(m.pages.alloc_page(GFP_KERNEL), nullptr); });
  EXPECT_THAT(m.pressure.calls, ElementsAre("kswapd"));
}

TEST(Slowpath, AtTheMinMarkTheCallerReclaims) {
  ShortMachine m;
  m.pressure.reclaim = [&](Order, gfp_t) { return m.give(32); };
  run_world({}, [&] {
    EXPECT_NE(m.pages.alloc_page(GFP_KERNEL), nullptr);
    EXPECT_EQ(current().flags & PF_MEMALLOC, 0u);
  });
  EXPECT_THAT(m.pressure.calls, ElementsAre("kswapd", "kswapd", "reclaim"));
  EXPECT_TRUE(m.pressure.saw_memalloc);
}

TEST(Slowpath, TheOrderIsTheDocuments) {
  ShortMachine m;
  m.pressure.reclaim = [&](Order, gfp_t) { return m.give(32); };
  run_world({}, [&] {
    Trace trace;
    EXPECT_NE(m.pages.alloc_page(GFP_KERNEL), nullptr);
    EXPECT_THAT(trace.tree({"alloc_pages", "__alloc_pages_nodemask", "get_page_from_freelist", "__alloc_pages_slowpath",
                            "__alloc_pages_direct_reclaim", "__perform_reclaim"}),
                ElementsAre("alloc_pages", " __alloc_pages_nodemask", "  get_page_from_freelist",
                            "  __alloc_pages_slowpath", "   get_page_from_freelist", "   get_page_from_freelist",
                            "   __alloc_pages_direct_reclaim", "    __perform_reclaim", "    get_page_from_freelist"));
    EXPECT_FALSE(trace.of(State::watermark_low).empty());
  });
}

TEST(Slowpath, AnAtomicRequestNeverSleepsAndNeverReclaims) {
  ShortMachine m;
  m.pressure.reclaim = [&](Order, gfp_t) { return m.give(32); };
  SpinLock lock(LockRank::tree);
  run_world({}, [&] {
    const ScopedLock guard(lock);  // lockdep would object to any sleep
    while (m.pages.alloc_page(GFP_ATOMIC | __GFP_NOWARN) != nullptr) {
    }
  });
  EXPECT_EQ(m.pressure.count("reclaim") + m.pressure.count("kill"), 0);
  EXPECT_GT(m.pressure.count("kswapd"), 0);
}

TEST(Slowpath, ARequestWithoutKswapdWakesNobody) {
  ShortMachine m;
  run_world({}, [&] { EXPECT_EQ(m.pages.alloc_page(__GFP_NOWARN), nullptr); });
  EXPECT_THAT(m.pressure.calls, IsEmpty());
}

TEST(Slowpath, ReclaimIsTriedSixteenTimesInVainBeforeSomebodyIsKilled) {
  ShortMachine m;
  m.pressure.reclaimable = PageCount(100000);  // says that there is a lot to get, and never gets any
  bool killed = false;
  m.pressure.kill = [&] {
    killed = true;
    m.give(200);
    return true;
  };
  std::vector<Trace::StateChange> fruitless;
  run_world({}, [&] {
    Trace trace;
    EXPECT_NE(m.pages.alloc_page(GFP_KERNEL), nullptr);
    fruitless = trace.of(State::reclaim_fruitless);
  });
  EXPECT_TRUE(killed);
  EXPECT_EQ(m.pressure.count("reclaim"), MAX_RECLAIM_RETRIES + 1);
  EXPECT_EQ(m.pressure.count("kill"), 1);
  ASSERT_EQ(fruitless.size(), static_cast<size_t>(MAX_RECLAIM_RETRIES + 1));
  EXPECT_EQ(fruitless.back(), (Trace::StateChange{State::reclaim_fruitless, 0, 16, 17}));
}

TEST(Slowpath, WithNothingLeftToReclaimTheKillComesAtOnce) {
  ShortMachine m;
  m.pressure.kill = [&] {
    m.give(200);
    return true;
  };
  run_world({}, [&] { EXPECT_NE(m.pages.alloc_page(GFP_KERNEL), nullptr); });
  EXPECT_EQ(m.pressure.count("reclaim"), 1);
  EXPECT_EQ(m.pressure.count("kill"), 1);
}

TEST(Slowpath, ProgressStartsTheCountAgain) {
  ShortMachine m;
  m.pressure.reclaimable = PageCount(100000);
  int round = 0;
  m.pressure.reclaim = [&](Order, gfp_t) {
    ++round;
    if (round == 30) return m.give(100);
    return PageCount(round % 10 == 0 ? 1 : 0);  // progress that somebody else ate
  };
  run_world({}, [&] { EXPECT_NE(m.pages.alloc_page(GFP_KERNEL), nullptr); });
  EXPECT_EQ(round, 30);
  EXPECT_EQ(m.pressure.count("kill"), 0);
}

TEST(Slowpath, WhenTheKillerFindsNobodyTheRequestFails) {
  ShortMachine m;
  run_world({}, [&] { EXPECT_EQ(m.pages.alloc_page(QUIET), nullptr); });
  EXPECT_EQ(m.pressure.count("kill"), 1);
}

TEST(Slowpath, NoretryNeverKillsAndTriesReclaimOnce) {
  ShortMachine m;
  m.pressure.reclaimable = PageCount(100000);
  run_world({}, [&] { EXPECT_EQ(m.pages.alloc_page(QUIET | __GFP_NORETRY), nullptr); });
  EXPECT_EQ(m.pressure.count("reclaim"), 1);
  EXPECT_EQ(m.pressure.count("kill"), 0);
}

TEST(Slowpath, RetryMayfailTriesHardAndNeverKills) {
  ShortMachine m;
  m.pressure.reclaimable = PageCount(100000);
  run_world({}, [&] { EXPECT_EQ(m.pages.alloc_page(QUIET | __GFP_RETRY_MAYFAIL), nullptr); });
  EXPECT_EQ(m.pressure.count("reclaim"), MAX_RECLAIM_RETRIES + 1);
  EXPECT_EQ(m.pressure.count("kill"), 0);
}

TEST(Slowpath, ACostlyOrderFailsAfterOneReclaim) {
  ShortMachine m;
  m.pressure.reclaimable = PageCount(100000);
  m.pressure.reclaim = [](Order, gfp_t) { return PageCount(1); };
  run_world({}, [&] { EXPECT_EQ(m.pages.alloc_pages(QUIET, Order(4)), nullptr); });
  EXPECT_EQ(m.pressure.count("reclaim"), 1);
  EXPECT_EQ(m.pressure.count("kill"), 0);
}

TEST(Slowpath, NofailNeverReturnsNull) {
  ShortMachine m;
  int kills = 0;
  m.pressure.kill = [&] {
    if (++kills == 5) m.give(200);
    return false;  // even when the killer gives up
  };
  run_world({}, [&] { EXPECT_NE(m.pages.alloc_page(QUIET | __GFP_NOFAIL), nullptr); });
  EXPECT_GT(kills, 0);
}

TEST(Slowpath, NofailOfAKillMayTakeTheReserves) {
  ShortMachine m;
  m.pressure.kill = [&] { return true; };
  run_world({}, [&] { EXPECT_NE(m.pages.alloc_page(QUIET | __GFP_NOFAIL), nullptr); });
  EXPECT_EQ(m.pressure.count("kill"), 1);
}

TEST(Slowpath, ALowZoneIsNotWorthAProcess) {
  MachineOptions options;
  options.ram = 64_MiB;
  options.dma32_end = Pfn(4096);
  TestMachine m(options);
  FakePressure pressure;
  m.pages.set_pressure(&pressure);
  while (m.pages.alloc_page(__GFP_DMA32 | __GFP_NOWARN) != nullptr) {
  }
  run_world({}, [&] { EXPECT_EQ(m.pages.alloc_page(QUIET | __GFP_DMA32), nullptr); });
  EXPECT_EQ(pressure.count("kill"), 0);
}

TEST(Slowpath, AVictimTakesItsShareOfTheReservesAndThenGivesUp) {
  ShortMachine m;
  m.pressure.reclaimable = PageCount(0);
  m.pressure.kill = [&] { return true; };  // "somebody is dying": it is the caller
  run_world({}, [&] {
    Task victim;
    victim.memdie = true;  // by another thread, say
    current().task = &victim;
    int got = 0;
    while (m.pages.alloc_page(QUIET) != nullptr) ++got;
    EXPECT_GT(got, 50);
    EXPECT_EQ(m.pages.alloc_page(QUIET | __GFP_NOMEMALLOC), nullptr);
    current().task = nullptr;
  });
}

TEST(Slowpath, ReclaimDoesNotReclaim) {
  ShortMachine m;
  m.pressure.reclaim = [&](Order, gfp_t) {
    // Inside reclaim the reserves are open, to their end, and nobody reclaims again.
    while (m.pages.alloc_page(QUIET) != nullptr) {
    }
    return PageCount(0);
  };
  run_world({}, [&] { EXPECT_EQ(m.pages.alloc_page(QUIET | __GFP_NORETRY), nullptr); });
  EXPECT_EQ(m.pressure.count("reclaim"), 1);
  EXPECT_EQ(m.pages.nr_free_pages().v, 0);
}

TEST(Slowpath, WhoMayNotDoIoPassesThatOn) {
  ShortMachine m;
  gfp_t seen{};
  m.pressure.reclaim = [&](Order, gfp_t gfp) {
    seen = gfp;
    return m.give(32);
  };
  run_world({}, [&] {
    const ThreadFlagScope no_io(PF_MEMALLOC_NOIO);
    EXPECT_NE(m.pages.alloc_page(GFP_KERNEL), nullptr);
  });
  EXPECT_EQ(seen, GFP_NOIO);
}

TEST(Slowpath, FreedPagesOnOtherCpusListsAreFound) {
  MachineOptions options;
  options.ram = 1_GiB;
  options.cpus = 2;
  ShortMachine m(options);
  // Reclaim frees a few pages: they stay on this CPU's lists, of another type, where the request does not look.
  m.pressure.reclaim = [&](Order, gfp_t) {
    for (int i = 0; i < 64; ++i) {
      m.pages.__free_pages(*m.taken.back(), Order(0));
      m.taken.pop_back();
    }
    return PageCount(64);
  };
  run_world({}, [&] { EXPECT_NE(m.pages.alloc_page(QUIET | __GFP_NORETRY), nullptr); });
  EXPECT_EQ(m.pressure.count("reclaim"), 1);
}

TEST(Slowpath, OnlyOneKillsAtATime) {
  ShortMachine m({.cpus = 2});
  int inside = 0, most = 0;
  m.pressure.kill = [&] {
    most = std::max(most, ++inside);
    (void)world().schedule_timeout(10_ms);
    --inside;
    m.give(300);
    return true;
  };
  VirtualWorld world({.seed = 3, .cpus = 2, .preempt_one_in = 3});
  int got = 0;
  for (int i = 0; i < 6; ++i) world.spawn("victim", [&] { got += m.pages.alloc_page(QUIET) != nullptr ? 1 : 0; });
  EXPECT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
  EXPECT_EQ(most, 1);
  EXPECT_EQ(got, 6);
}

TEST(Slowpath, AFailureIsSaidOnce) {
  ShortMachine m;
  std::vector<std::string> log;
  run_world(
      {}, [&] { EXPECT_EQ(m.pages.alloc_pages(GFP_KERNEL | __GFP_NORETRY, Order(2)), nullptr); }, &log);
  ASSERT_FALSE(log.empty());
  char expected[96];
  std::snprintf(expected, sizeof expected, "test: page allocation failure. order:%d, mode:0x%x", 2,
                (GFP_KERNEL | __GFP_NORETRY).v);
  EXPECT_EQ(log[0], expected);
  EXPECT_EQ(log[1], "Mem-Info:");
  EXPECT_EQ(std::count_if(log.begin(), log.end(),
                          [](const std::string& l) { return l.find("allocation failure") != l.npos; }),
            1);
  EXPECT_THAT(log, Contains(testing::HasSubstr("Node 0 DMA32 free:")));
}

TEST(Slowpath, NowarnSaysNothingAndAFloodIsHeldBack) {
  ShortMachine m;
  std::vector<std::string> log;
  run_world(
      {},
      [&] {
        EXPECT_EQ(m.pages.alloc_page(GFP_NOWAIT | __GFP_NOWARN), nullptr);
        EXPECT_TRUE(log.empty());
        for (int i = 0; i < 100; ++i) EXPECT_EQ(m.pages.alloc_page(GFP_NOWAIT), nullptr);
      },
      &log);
  EXPECT_EQ(std::count_if(log.begin(), log.end(),
                          [](const std::string& l) { return l.find("allocation failure") != l.npos; }),
            10);
}

TEST(Slowpath, WithoutAWorldARequestFailsQuietly) {
  TestMachine m;
  while (m.pages.alloc_page(GFP_KERNEL) != nullptr) {
  }
  EXPECT_EQ(m.pages.alloc_page(GFP_KERNEL), nullptr);
}

TEST(PoolFrames, KeepToTheirHalfOfTheReserve) {
  ShortMachine m;
  PoolFrames frames(m.pages);
  run_world({}, [&] {
    current().flags |= PF_MEMALLOC;  // as when reclaim swaps out to zram
    std::vector<Pfn> got;
    for (;;) {
      Result<Pfn> frame = frames.get_frame();
      if (!frame) {
        EXPECT_EQ(frame.error(), Errno::nomem);
        break;
      }
      got.push_back(*frame);
      frames.frame_bytes(*frame)[0] = std::byte{1};
    }
    const int64_t min = m.zone(ZoneType::DMA32).wmark(Watermark::min);
    EXPECT_NEAR(static_cast<double>(m.pages.nr_free_pages().v), static_cast<double>(min - min / 2), 4.0);
    EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_zspages), static_cast<int64_t>(got.size()));
    for (Pfn frame : got) frames.put_frame(frame);
    EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_zspages), 0);
  });
  EXPECT_THAT(m.pressure.calls, IsEmpty());
}

}  // namespace
}  // namespace weir
