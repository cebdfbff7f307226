// The simulated world: time, order, determinism, deadlocks.
#include "kernel/virtual/virtual_world.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "kernel/locks.hpp"

namespace weir {
namespace {

using RunState = VirtualWorld::RunState;

TEST(VirtualWorld, RunsAThreadToItsEnd) {
  VirtualWorld world;
  bool ran = false;
  world.spawn("one", [&] { ran = &weir::world() == &world && std::string(current().comm) == "one"; });
  EXPECT_EQ(world.run(), RunState::finished);
  EXPECT_TRUE(ran);
}

TEST(VirtualWorld, TimePassesOnlyWhenSpentOrSlept) {
  VirtualWorld world;
  std::vector<Nanos> seen;
  world.spawn("one", [&] {
    seen.push_back(world.now());
    world.cond_resched();
    seen.push_back(world.now());
    world.spend(700_ns);
    seen.push_back(world.now());
    EXPECT_FALSE(world.schedule_timeout(5_us));
    seen.push_back(world.now());
  });
  EXPECT_EQ(world.run(), RunState::finished);
  EXPECT_EQ(seen, (std::vector<Nanos>{0_ns, 0_ns, 700_ns, 5700_ns}));
}

TEST(VirtualWorld, AWakeBeforeTheParkIsNotLost) {
  VirtualWorld world;
  world.spawn("one", [&] {
    world.wake(current());
    world.schedule();
    world.wake(current());
    EXPECT_TRUE(world.schedule_timeout(1_s));
    EXPECT_EQ(world.now(), 0_ns);
  });
  EXPECT_EQ(world.run(), RunState::finished);
}

TEST(VirtualWorld, TwoWakesBeforeTheParkAreOne) {
  VirtualWorld world;
  world.spawn("one", [&] {
    world.wake(current());
    world.wake(current());
    world.schedule();
    EXPECT_FALSE(world.schedule_timeout(1_us));
  });
  EXPECT_EQ(world.run(), RunState::finished);
}

TEST(VirtualWorld, SleepersComeBackInTheOrderOfTheirTimes) {
  VirtualWorld world;
  std::vector<int> order;
  for (int i : {3, 1, 4, 1, 5, 9, 2, 6}) {
    world.spawn("sleeper", [&, i] {
      world.schedule_timeout(Nanos(static_cast<uint64_t>(i) * 1000));
      order.push_back(i);
    });
  }
  EXPECT_EQ(world.run(), RunState::finished);
  EXPECT_EQ(order, (std::vector<int>{1, 1, 2, 3, 4, 5, 6, 9}));
  EXPECT_EQ(world.now(), 9_us);
}

TEST(VirtualWorld, CpusWorkAtTheSameTime) {
  auto elapsed = [](unsigned cpus) {
    VirtualWorld world({.cpus = cpus});
    for (int i = 0; i < 4; ++i) {
      world.spawn("worker", [&] {
        for (int k = 0; k < 100; ++k) {
          world.spend(10_us);
          world.cond_resched();
        }
      });
    }
    EXPECT_EQ(world.run(), RunState::finished);
    return world.now();
  };
  EXPECT_EQ(elapsed(1), 4_ms);
  EXPECT_EQ(elapsed(2), 2_ms);
  EXPECT_EQ(elapsed(4), 1_ms);
}

TEST(VirtualWorld, TheCpuThatIsFurthestBehindGoesNext) {
  VirtualWorld world({.cpus = 2});
  std::vector<std::pair<Nanos, int>> steps;
  for (int i = 0; i < 2; ++i) {
    world.spawn("worker", [&, i] {
      for (int k = 0; k < 6; ++k) {
        steps.emplace_back(world.now(), i);
        world.spend(i == 0 ? 30_ns : 20_ns);
        world.preempt_point();
      }
    });
  }
  world.run();
  EXPECT_TRUE(std::is_sorted(steps.begin(), steps.end(), [](auto& a, auto& b) { return a.first < b.first; }));
  EXPECT_EQ(steps.size(), 12u);
}

TEST(VirtualWorld, ACpuRunsAheadOfOthersByTheSkewAtMost) {
  auto run = [](Nanos skew, uint64_t& switches) {
    VirtualWorld world({.cpus = 3, .skew = skew});
    Nanos at[3]{};
    uint64_t furthest = 0;
    for (int i = 0; i < 3; ++i) {
      world.spawn("worker", [&, i] {
        for (int k = 0; k < 1000; ++k) {
          at[i] = world.now();
          for (Nanos other : at)
            if (at[i] > other) furthest = std::max(furthest, (at[i] - other).v);
          world.spend(Nanos(90 + static_cast<uint64_t>(i)));
          world.preempt_point();
        }
        at[i] = Nanos(~uint64_t{0});
      });
    }
    EXPECT_EQ(world.run(), RunState::finished);
    switches = world.switches();
    return furthest;
  };
  uint64_t often, seldom;
  EXPECT_LE(run(0_ns, often), 92u);
  EXPECT_LE(run(1_us, seldom), 1092u);
  EXPECT_LT(seldom * 5, often);
}

TEST(VirtualWorld, TheSeedFindsARace) {
  for (unsigned cpus : {1u, 2u, 4u}) {
    int found = 0;
    for (uint64_t seed = 1; seed <= 200; ++seed) {
      VirtualWorld world({.seed = seed, .cpus = cpus, .preempt_one_in = 4});
      int counter = 0;
      for (int i = 0; i < 4; ++i) {
        world.spawn("racer", [&] {
          for (int k = 0; k < 3; ++k) {
            const int before = counter;
            world.preempt_point();
            counter = before + 1;
            world.preempt_point();
          }
        });
      }
      EXPECT_EQ(world.run(), RunState::finished);
      if (counter != 12) ++found;
    }
    EXPECT_GT(found, 100) << cpus << " CPUs";
  }
}

TEST(VirtualWorld, ASliceEndsWhenOthersWait) {
  VirtualWorld world({.slice = 1_ms});
  std::vector<int> order;
  for (int i = 0; i < 2; ++i) {
    world.spawn("worker", [&, i] {
      for (int k = 0; k < 4; ++k) {
        order.push_back(i);
        world.spend(500_us);
        world.cond_resched();
      }
    });
  }
  world.run();
  EXPECT_EQ(order, (std::vector<int>{0, 0, 1, 1, 0, 0, 1, 1}));
}

TEST(VirtualWorld, AThreadThatIsNotParkedKeepsItsCpu) {
  VirtualWorld world({.cpus = 4, .preempt_one_in = 2});
  for (int i = 0; i < 12; ++i) {
    world.spawn("worker", [&] {
      const CpuId cpu = current().cpu;
      for (int k = 0; k < 200; ++k) {
        world.spend(10_us);
        world.cond_resched();
        EXPECT_EQ(current().cpu, cpu);
      }
    });
  }
  EXPECT_EQ(world.run(), RunState::finished);
  EXPECT_EQ(
      world.busy_time(CpuId(0)) + world.busy_time(CpuId(1)) + world.busy_time(CpuId(2)) + world.busy_time(CpuId(3)),
      24_ms);
}

TEST(VirtualWorld, CpuTimeIsCountedPerThread) {
  VirtualWorld world;
  for (uint64_t i = 1; i < 4; ++i) {
    world.spawn("worker", [&, i] {
      for (int k = 0; k < 10; ++k) {
        world.spend(Nanos(i * 1000));
        world.schedule_timeout(3_us);
      }
      EXPECT_EQ(world.cpu_time(current()), Nanos(i * 10000));
    });
  }
  EXPECT_EQ(world.run(), RunState::finished);
}

/// Who ran when: a mix of everything that decides it.
std::vector<std::pair<int, uint64_t>> trace(uint64_t seed, unsigned cpus = 3) {
  VirtualWorld world({.seed = seed, .cpus = cpus, .preempt_one_in = 3});
  std::vector<std::pair<int, uint64_t>> steps;
  SpinLock spin(LockRank::lru);
  Mutex mutex(LockRank::slab_mutex);
  RwSem sem(LockRank::mmap);
  WaitQueue queue;
  int turns = 0;
  for (int i = 0; i < 7; ++i) {
    world.spawn("mixed", [&, i] {
      for (int k = 0; k < 30; ++k) {
        steps.emplace_back(i, world.now().v);
        switch ((i + k) % 6) {
          case 0: {
            ScopedLock guard(spin);
            world.spend(100_ns);
            break;
          }
          case 1: {
            ScopedLock guard(mutex);
            world.spend(300_ns);
            world.schedule_timeout(1_us);
            break;
          }
          case 2: {
            ScopedRead guard(sem);
            world.spend(200_ns);
            world.cond_resched();
            break;
          }
          case 3: {
            ScopedWrite guard(sem);
            world.spend(50_ns);
            break;
          }
          case 4: {
            const int mine = turns;
            (void)queue.wait_timeout(Nanos(world.random() % 3000), [&] { return turns != mine; });
            break;
          }
          case 5:
            ++turns;
            queue.wake_all();
            break;
        }
      }
    });
  }
  EXPECT_EQ(world.run(), RunState::finished);
  steps.emplace_back(-1, world.now().v);
  return steps;
}

TEST(VirtualWorld, OneSeedOneOrder) {
  for (uint64_t seed = 1; seed <= 50; ++seed) EXPECT_EQ(trace(seed), trace(seed)) << "seed " << seed;
}

TEST(VirtualWorld, EachSeedHasItsOwnOrder) {
  std::set<std::vector<std::pair<int, uint64_t>>> orders;
  for (uint64_t seed = 1; seed <= 50; ++seed) orders.insert(trace(seed, 1));
  EXPECT_EQ(orders.size(), 50u);
}

TEST(VirtualWorld, WithoutPreemptionNobodyIsInterrupted) {
  VirtualWorld world({.preempt_one_in = 0});
  SpinLock lock(LockRank::lru);
  std::vector<int> order;
  for (int i = 0; i < 3; ++i) {
    world.spawn("worker", [&, i] {
      for (int k = 0; k < 3; ++k) {
        ScopedLock guard(lock);
        order.push_back(i);
      }
    });
  }
  world.run();
  EXPECT_EQ(order, (std::vector<int>{0, 0, 0, 1, 1, 1, 2, 2, 2}));
}

TEST(VirtualWorld, ThreadsThatWaitForEverAreADeadlockAndNamed) {
  VirtualWorld world;
  Mutex a(LockRank::swapon);
  WaitQueue never;
  world.kthread_create([](void*) { weir::world().schedule(); }, nullptr, "kswapd0");
  world.spawn("left", [&] {
    ScopedLock one(a);
    world.schedule_timeout(1_us);
    never.wait([] { return false; });
  });
  world.spawn("right", [&] { a.lock(); });
  EXPECT_EQ(world.run(), RunState::deadlock);
  EXPECT_NE(world.report().find("at 0.001000 ms"), std::string::npos) << world.report();
  EXPECT_NE(world.report().find("left (tid 3): parked"), std::string::npos) << world.report();
  EXPECT_NE(world.report().find("right (tid 4): parked"), std::string::npos) << world.report();
  EXPECT_NE(world.report().find("kswapd0 (tid 2): parked, a kthread"), std::string::npos) << world.report();
#ifdef WEIR_DEBUG
  EXPECT_NE(world.report().find("left (tid 3): parked, holds or waits for: swapon"), std::string::npos)
      << world.report();
#endif
}

TEST(VirtualWorld, AWakeFromOutsideEndsADeadlock) {
  VirtualWorld world;
  Thread* thread = world.spawn("waiter", [&] { world.schedule(); });
  EXPECT_EQ(world.run(), RunState::deadlock);
  world.wake(*thread);
  EXPECT_EQ(world.run(), RunState::finished);
}

TEST(VirtualWorld, RunUntilStopsTheClockThere) {
  VirtualWorld world;
  int ticks = 0;
  world.spawn("ticker", [&] {
    for (;;) {
      world.schedule_timeout(10_us);
      ++ticks;
    }
  });
  EXPECT_EQ(world.run_until(35_us), RunState::time_reached);
  EXPECT_EQ(ticks, 3);
  EXPECT_EQ(world.now(), 35_us);
  EXPECT_EQ(world.run_until(40_us), RunState::time_reached);
  EXPECT_EQ(ticks, 4);
}

TEST(VirtualWorld, RunUntilInterruptsABusyThread) {
  VirtualWorld world;
  int rounds = 0;
  world.spawn("busy", [&] {
    for (;; ++rounds) {
      world.spend(10_us);
      world.cond_resched();
    }
  });
  EXPECT_EQ(world.run_until(1_ms), RunState::time_reached);
  EXPECT_EQ(rounds, 100);
  EXPECT_EQ(world.run_until(2_ms), RunState::time_reached);
  EXPECT_EQ(rounds, 200);
}

// ---- Timers ----

struct Note {
  std::vector<std::pair<int, Nanos>>* log;
  int number;
  Timer timer{};
  void arm(World& world, Nanos delay) {
    timer.data = this;
    timer.function = [](void* data) {
      auto* self = static_cast<Note*>(data);
      self->log->emplace_back(self->number, weir::world().now());
    };
    world.timer_arm(timer, delay);
  }
};

TEST(VirtualWorld, TimersRunInTheOrderOfTheirTimesThenOfArming) {
  VirtualWorld world;
  std::vector<std::pair<int, Nanos>> log;
  Note a{&log, 1}, b{&log, 2}, c{&log, 3}, d{&log, 4};
  world.spawn("main", [&] {
    a.arm(world, 5_us);
    b.arm(world, 2_us);
    c.arm(world, 5_us);
    d.arm(world, 1_us);
    world.schedule_timeout(10_us);
  });
  EXPECT_EQ(world.run(), RunState::finished);
  EXPECT_EQ(log, (std::vector<std::pair<int, Nanos>>{{4, 1_us}, {2, 2_us}, {1, 5_us}, {3, 5_us}}));
}

TEST(VirtualWorld, ATimerInterruptsABusyThread) {
  VirtualWorld world;
  std::vector<std::pair<int, Nanos>> log;
  Note a{&log, 1};
  world.spawn("busy", [&] {
    a.arm(world, 25_us);
    for (int k = 0; k < 10; ++k) {
      world.spend(10_us);
      world.preempt_point();
    }
  });
  world.run();
  EXPECT_EQ(log, (std::vector<std::pair<int, Nanos>>{{1, 30_us}}));
}

TEST(VirtualWorld, ACancelledTimerDoesNotRun) {
  VirtualWorld world;
  std::vector<std::pair<int, Nanos>> log;
  Note a{&log, 1}, b{&log, 2};
  world.spawn("main", [&] {
    a.arm(world, 1_us);
    b.arm(world, 2_us);
    world.timer_cancel(a.timer);
    world.schedule_timeout(5_us);
    EXPECT_FALSE(a.timer.armed);
  });
  world.run();
  EXPECT_EQ(log, (std::vector<std::pair<int, Nanos>>{{2, 2_us}}));
}

TEST(VirtualWorld, ArmingAgainMovesATimer) {
  VirtualWorld world;
  std::vector<std::pair<int, Nanos>> log;
  Note a{&log, 1};
  world.spawn("main", [&] {
    a.arm(world, 1_us);
    a.arm(world, 7_us);
    world.schedule_timeout(10_us);
  });
  world.run();
  EXPECT_EQ(log, (std::vector<std::pair<int, Nanos>>{{1, 7_us}}));
}

TEST(VirtualWorld, CancellingWaitsForAFunctionThatRuns) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    VirtualWorld world({.seed = seed, .cpus = 2, .preempt_one_in = 2});
    struct Box {
      SpinLock lock{LockRank::lru};
      bool inside = false;
    } box;
    Timer timer{.function =
                    [](void* data) {
                      auto* b = static_cast<Box*>(data);
                      b->inside = true;
                      for (int i = 0; i < 5; ++i) ScopedLock guard(b->lock);
                      b->inside = false;
                    },
                .data = &box};
    world.spawn("main", [&] {
      world.timer_arm(timer, 1_us);
      for (int i = 0; i < 10; ++i) {
        world.spend(200_ns);
        world.preempt_point();
      }
      world.timer_cancel(timer);
      EXPECT_FALSE(box.inside) << "seed " << seed;
    });
    EXPECT_EQ(world.run(), RunState::finished) << "seed " << seed << ": " << world.report();
  }
}

TEST(VirtualWorld, ADeferrableTimerDoesNotWakeAnIdleMachine) {
  VirtualWorld world;
  std::vector<std::pair<int, Nanos>> log;
  Note a{&log, 1};
  a.timer.deferrable = true;
  world.spawn("main", [&] {
    a.arm(world, 2_us);
    world.schedule_timeout(50_us);
  });
  EXPECT_EQ(world.run_until(40_us), RunState::time_reached);
  EXPECT_TRUE(log.empty());
  EXPECT_EQ(world.run(), RunState::finished);
  EXPECT_EQ(log, (std::vector<std::pair<int, Nanos>>{{1, 50_us}}));
}

// ---- Kthreads ----

TEST(VirtualWorld, AKthreadIsStoppedAfterItsFunctionReturned) {
  for (bool inside : {true, false}) {
    VirtualWorld world;
    bool ended = false;
    Thread* kthread = world.kthread_create(
        [](void* data) {
          EXPECT_EQ(current().flags & PF_KTHREAD, PF_KTHREAD);
          while (!kthread_should_stop()) weir::world().schedule();
          weir::world().spend(1_ms);
          *static_cast<bool*>(data) = true;
        },
        &ended, "worker");
    if (inside) {
      world.spawn("main", [&] {
        world.schedule_timeout(1_us);
        world.kthread_stop(*kthread);
        EXPECT_TRUE(ended);
      });
      EXPECT_EQ(world.run(), RunState::finished);
    } else {
      world.kthread_stop(*kthread);
    }
    EXPECT_TRUE(ended);
  }
}

TEST(VirtualWorld, ShutdownStopsKthreadsYoungestFirst) {
  VirtualWorld world;
  static std::vector<std::string> ended;
  ended.clear();
  for (const char* name : {"first", "second", "third"}) {
    world.kthread_create(
        [](void*) {
          while (!kthread_should_stop()) weir::world().schedule();
          ended.push_back(current().comm);
        },
        nullptr, name);
  }
  EXPECT_TRUE(world.shutdown());
  EXPECT_EQ(ended, (std::vector<std::string>{"third", "second", "first"}));
}

TEST(VirtualWorld, ADroppedWorldRunsNobodyAgain) {
  bool again = false;
  {
    VirtualWorld world;
    world.kthread_create([](void*) { weir::world().schedule(); }, nullptr, "kthread");
    world.spawn("waiter", [&] {
      world.schedule();
      again = true;
    });
    EXPECT_EQ(world.run(), RunState::deadlock);
  }
  EXPECT_FALSE(again);
}

TEST(VirtualWorld, HaltedItNeverRunsAgain) {
  VirtualWorld w({.cpus = 2, .log = [](Nanos, const char*) {}});
  int others = 0;
  w.spawn("halts", [&] {
    world().schedule_timeout(5_ms);
    w.halt();
  });
  w.spawn("other", [&] {
    for (;; ++others) world().schedule_timeout(1_ms);
  });
  EXPECT_EQ(w.run(), RunState::halted);
  const int until_then = others;
  EXPECT_GT(until_then, 0);
  EXPECT_EQ(w.now(), 5_ms);
  EXPECT_EQ(w.run(), RunState::halted);
  EXPECT_EQ(w.run_until(1_s), RunState::halted);
  EXPECT_EQ(w.now(), 5_ms);
  EXPECT_EQ(others, until_then);
}

TEST(VirtualWorld, ThreadsAreReused) {
  VirtualWorld world;
  std::set<Thread*> seen;
  world.spawn("main", [&] {
    for (int i = 0; i < 1000; ++i) {
      seen.insert(world.spawn("child", [] {}));
      world.schedule_timeout(1_us);
    }
  });
  EXPECT_EQ(world.run(), RunState::finished);
  EXPECT_EQ(seen.size(), 1u);
}

TEST(VirtualWorld, PrintkGoesToTheLogWithItsTime) {
  std::vector<std::pair<Nanos, std::string>> lines;
  VirtualWorld world({.log = [&](Nanos when, const char* text) { lines.emplace_back(when, text); }});
  world.spawn("main", [&] {
    world.spend(3_us);
    world.printk("Out of memory");
  });
  world.run();
  EXPECT_EQ(lines, (std::vector<std::pair<Nanos, std::string>>{{3_us, "Out of memory"}}));
}

// ---- Recording ----

struct Names final : FlowSink {
  std::vector<std::string> seen;
  void enter(const FlowSite& site, uint64_t, uint64_t, uint64_t) override {
    seen.push_back(std::string(site.function) + " //(" + site.file + ")");
  }
  void leave(const FlowSite&) override {}
  void state(const FlowSite&, State, uint64_t, uint64_t, uint64_t) override {}
};

TEST(VirtualWorld, TheSinkIsSeenByThreadsOldAndNew) {
  VirtualWorld world;
  Names names;
  auto start = [&] {
    Thread* t = kthread_run(
        world, [](void*) {}, nullptr, "kswapd0");
    world.kthread_stop(*t);
  };
  world.spawn("old", start);
  world.set_sink(&names);
  world.spawn("new", start);
  EXPECT_EQ(world.run(), RunState::finished);
  EXPECT_EQ(names.seen, (std::vector<std::string>{"kthread_run //(kthread.hpp)", "kthread_run //(kthread.hpp)"}));
}

}  // namespace
}  // namespace weir
