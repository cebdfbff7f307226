// The freezer: kthreads stop where they look, in both worlds.
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "kernel/freezer.hpp"
#include "kernel/host/host_world.hpp"
#include "kernel/virtual/virtual_world.hpp"

namespace weir {
namespace {

/// A kthread that counts, as kswapd balances: it sleeps, looks at the freezer, works.
struct Worker {
  WaitQueue wait;
  std::atomic<int> asked{0};
  std::atomic<int> done{0};
  std::atomic<int> thawed{0};
  static void main(void* data) {
    auto& w = *static_cast<Worker*>(data);
    while (!kthread_should_stop()) {
      w.wait.wait([&] { return w.done < w.asked || kthread_should_stop(); });
      if (try_to_freeze()) {
        w.thawed.fetch_add(1);
        continue;
      }
      if (w.done < w.asked) w.done.fetch_add(1);
    }
  }
  void ask() {
    asked.fetch_add(1);
    wait.wake_all();
  }
};

template <class Pred>
void until(Pred pred) {
  while (!pred()) world().schedule_timeout(1_us);
}

void a_frozen_worker_does_nothing_until_thawed() {
  Worker w;
  Thread* kthread = kthread_run(world(), Worker::main, &w, "kswapd0");
  w.ask();
  until([&] { return w.done == 1; });

  freeze_processes(world());
  w.ask();
  until([&] { return nr_frozen(world()) == 1; });
  w.ask();
  for (int i = 0; i < 5; ++i) world().schedule_timeout(1_us);
  EXPECT_EQ(w.done, 1);
  EXPECT_EQ(w.thawed, 0);

  thaw_processes(world());
  until([&] { return w.done == 3; });
  EXPECT_EQ(w.thawed, 1);
  EXPECT_EQ(nr_frozen(world()), 0u);
  world().kthread_stop(*kthread);
}

void a_frozen_worker_can_be_stopped() {
  Worker w[3];
  Thread* kthreads[3];
  for (int i = 0; i < 3; ++i) kthreads[i] = kthread_run(world(), Worker::main, &w[i], "frozen");
  freeze_processes(world());
  for (auto& one : w) one.ask();
  until([&] { return nr_frozen(world()) == 3; });
  world().kthread_stop(*kthreads[1]);
  until([&] { return nr_frozen(world()) == 2; });  // the others froze again
  EXPECT_EQ(w[0].done + w[1].done + w[2].done, 0);
  thaw_processes(world());
  until([&] { return w[0].done == 1 && w[2].done == 1; });
  world().kthread_stop(*kthreads[0]);
  world().kthread_stop(*kthreads[2]);
}

void freezing_and_thawing_over_and_over_loses_nobody() {
  Worker w[3];
  Thread* kthreads[3];
  for (int i = 0; i < 3; ++i) kthreads[i] = kthread_run(world(), Worker::main, &w[i], "worker");
  for (int turn = 0; turn < 50; ++turn) {
    freeze_processes(world());
    for (auto& one : w) one.ask();
    if (turn % 3 == 0) world().schedule_timeout(1_us);
    thaw_processes(world());
    if (turn % 7 == 0) until([&] { return w[turn % 3].done == turn + 1; });
  }
  for (int i = 0; i < 3; ++i) {
    until([&] { return w[i].done == 50; });
    world().kthread_stop(*kthreads[i]);
  }
  EXPECT_EQ(nr_frozen(world()), 0u);
}

void in_virtual_world(void (*body)()) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    VirtualWorld world({.seed = seed, .cpus = 1 + static_cast<unsigned>(seed % 3), .preempt_one_in = 3});
    world.spawn("main", body);
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
  }
}

void in_host_world(void (*body)()) {
  HostWorld world;
  ASSERT_TRUE(world.start().ok());
  world.enter([](void* p) { (*static_cast<void (**)()>(p))(); }, &body);
}

TEST(Freezer, AFrozenWorkerDoesNothingUntilThawedVirtual) {
  in_virtual_world(a_frozen_worker_does_nothing_until_thawed);
}
TEST(Freezer, AFrozenWorkerDoesNothingUntilThawedHost) { in_host_world(a_frozen_worker_does_nothing_until_thawed); }
TEST(Freezer, AFrozenWorkerCanBeStoppedVirtual) { in_virtual_world(a_frozen_worker_can_be_stopped); }
TEST(Freezer, AFrozenWorkerCanBeStoppedHost) { in_host_world(a_frozen_worker_can_be_stopped); }
TEST(Freezer, FreezingAndThawingLosesNobodyVirtual) {
  in_virtual_world(freezing_and_thawing_over_and_over_loses_nobody);
}
TEST(Freezer, FreezingAndThawingLosesNobodyHost) { in_host_world(freezing_and_thawing_over_and_over_loses_nobody); }

TEST(Freezer, SomeAreLeftAlone) {
  VirtualWorld world;
  world.spawn("main", [&] {
    freeze_processes(world);
    current().flags = PF_NOFREEZE;
    EXPECT_FALSE(try_to_freeze());
    current().flags = 0;
    current().memdie = true;
    EXPECT_FALSE(try_to_freeze());
  });
  EXPECT_EQ(world.run(), VirtualWorld::RunState::finished);
}

struct Names final : FlowSink {
  std::vector<std::string> seen;
  int depth = 0;
  void enter(const FlowSite& site, uint64_t, uint64_t, uint64_t) override {
    seen.push_back(std::string(static_cast<size_t>(depth++), ' ') + site.function + " //(" + site.file + ")");
  }
  void leave(const FlowSite&) override { --depth; }
  void state(const FlowSite&, State, uint64_t, uint64_t, uint64_t) override {}
};

TEST(Freezer, IsRecordedAsTheKernelCallsIt) {
  VirtualWorld world;
  Names names;
  world.set_sink(&names);
  freeze_processes(world);
  world.spawn("main", [&] {
    current().flags = PF_NOFREEZE;
    try_to_freeze();
  });
  world.run();
  EXPECT_EQ(names.seen,
            (std::vector<std::string>{"try_to_freeze //(freezer.hpp)", " try_to_freeze_unsafe //(freezer.hpp)",
                                      "  freezing //(freezer.hpp)", "   freezing_slow_path //(freezer.cpp)"}));
}

}  // namespace
}  // namespace weir
