// Work queues, in both worlds.
#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "kernel/host/host_world.hpp"
#include "kernel/virtual/virtual_world.hpp"
#include "kernel/workqueue.hpp"

namespace weir {
namespace {

struct Counter {
  DelayedWork delayed;
  std::atomic<int> runs{0};
  std::atomic<bool> hold{false};  // the function waits while this is set
  std::atomic<bool> inside{false};
  Workqueue* again = nullptr;  // the function queues itself there
  WorkStruct& work() { return delayed.work; }
  static void run(WorkStruct* work) {
    auto& c = reinterpret_cast<Counter&>(to_delayed_work(*work));
    c.inside = true;
    while (c.hold) world().schedule_timeout(1_us);
    c.runs.fetch_add(1);
    if (c.again != nullptr) c.again->queue_delayed_work(c.delayed, c.runs % 2 == 0 ? 1_us : 0_us);
    c.inside = false;
  }
  Counter() { INIT_DELAYED_WORK(delayed, run); }
};

template <class Pred>
void until(Pred pred) {
  while (!pred()) world().schedule_timeout(1_us);
}

/// A queue on whose kthread a first item is held, so that others stay in the queue.
struct Held {
  Workqueue wq;
  Counter first;
  Held() {
    EXPECT_TRUE(wq.start(world(), "events").ok());
    first.hold = true;
    wq.queue_work(first.work());
    until([&] { return first.inside.load(); });
  }
  ~Held() {
    first.hold = false;
    wq.stop();
  }
};

void queued_twice_runs_once() {
  Held held;
  Counter c;
  EXPECT_TRUE(held.wq.queue_work(c.work()));
  EXPECT_FALSE(held.wq.queue_work(c.work()));
  EXPECT_TRUE(work_pending(c.work()));
  held.first.hold = false;
  EXPECT_TRUE(held.wq.flush_work(c.work()));
  EXPECT_EQ(c.runs, 1);
  EXPECT_FALSE(work_pending(c.work()));
}

void queued_while_running_runs_once_more() {
  Held held;
  EXPECT_TRUE(held.wq.queue_work(held.first.work()));
  EXPECT_FALSE(held.wq.queue_work(held.first.work()));
  held.first.hold = false;
  held.wq.flush_workqueue();
  EXPECT_EQ(held.first.runs, 2);
}

void items_run_in_order_and_flush_waits_for_all_before_it() {
  static std::atomic<int> order;
  struct Item {
    WorkStruct work;
    int ran_as = -1;
  } items[10];
  order = 0;
  {
    Held held;
    for (Item& item : items) {
      INIT_WORK(item.work, [](WorkStruct* w) { reinterpret_cast<Item*>(w)->ran_as = order.fetch_add(1); });
      held.wq.queue_work(item.work);
    }
    held.first.hold = false;
    held.wq.flush_workqueue();
    for (int i = 0; i < 10; ++i) EXPECT_EQ(items[i].ran_as, i);
  }
}

void flushing_what_is_neither_queued_nor_running_is_nothing() {
  Held held;
  Counter c;
  EXPECT_FALSE(held.wq.flush_work(c.work()));
}

void a_cancelled_item_does_not_run() {
  Held held;
  Counter c, later;
  held.wq.queue_work(c.work());
  held.wq.queue_work(later.work());
  EXPECT_TRUE(held.wq.cancel_work_sync(c.work()));
  EXPECT_FALSE(held.wq.cancel_work_sync(c.work()));
  held.first.hold = false;
  held.wq.flush_workqueue();
  EXPECT_EQ(c.runs, 0);
  EXPECT_EQ(later.runs, 1);
  EXPECT_TRUE(held.wq.queue_work(c.work()));
}

void cancelling_waits_for_one_that_runs() {
  Workqueue wq;
  EXPECT_TRUE(wq.start(world(), "events").ok());
  for (int i = 0; i < 20; ++i) {
    Counter c;  // gone at the end of the turn: nobody may touch it any more
    wq.queue_work(c.work());
    if (i % 2 == 0) world().schedule_timeout(1_us);
    wq.cancel_work_sync(c.work());
    EXPECT_FALSE(c.inside);
    EXPECT_FALSE(work_pending(c.work()));
  }
  wq.stop();
}

void delayed_work_runs_after_its_time() {
  Workqueue wq;
  EXPECT_TRUE(wq.start(world(), "events").ok());
  Counter c;
  const Nanos before = world().now();
  EXPECT_TRUE(wq.queue_delayed_work(c.delayed, 100_us));
  EXPECT_FALSE(wq.queue_delayed_work(c.delayed, 100_us));
  EXPECT_FALSE(wq.queue_work(c.work()));
  until([&] { return c.runs == 1; });
  EXPECT_GE((world().now() - before).v, (100_us).v);
  wq.stop();
}

void delayed_work_is_cancelled_in_its_delay() {
  Workqueue wq;
  EXPECT_TRUE(wq.start(world(), "events").ok());
  Counter c;
  wq.queue_delayed_work(c.delayed, 3600_s);
  EXPECT_TRUE(wq.cancel_delayed_work_sync(c.delayed));
  EXPECT_FALSE(wq.cancel_delayed_work_sync(c.delayed));
  EXPECT_EQ(c.runs, 0);
  wq.stop();
}

void a_delay_can_be_cut_short() {
  Workqueue wq;
  EXPECT_TRUE(wq.start(world(), "events").ok());
  Counter c;
  wq.queue_delayed_work(c.delayed, 3600_s);
  EXPECT_TRUE(wq.mod_delayed_work(c.delayed, 1_us));
  until([&] { return c.runs == 1; });
  wq.queue_delayed_work(c.delayed, 3600_s);
  EXPECT_TRUE(wq.mod_delayed_work(c.delayed, 0_us));
  until([&] { return c.runs == 2; });
  EXPECT_TRUE(wq.flush_work(c.work()) || !work_pending(c.work()));
  EXPECT_FALSE(wq.mod_delayed_work(c.delayed, 0_us));
  until([&] { return c.runs == 3; });
  wq.stop();
}

void one_that_queues_itself_again_is_cancelled() {
  Workqueue wq;
  EXPECT_TRUE(wq.start(world(), "reaper").ok());
  for (int i = 0; i < 10; ++i) {
    Counter c;
    c.again = &wq;
    wq.queue_delayed_work(c.delayed, 1_us);
    until([&] { return c.runs > i; });
    wq.cancel_delayed_work_sync(c.delayed);
    const int runs = c.runs;
    wq.flush_workqueue();
    EXPECT_EQ(c.runs, runs);
  }
  wq.stop();
}

void stopping_runs_what_is_queued() {
  Counter c[5];
  {
    Held held;
    for (auto& one : c) held.wq.queue_work(one.work());
  }
  for (auto& one : c) EXPECT_EQ(one.runs, 1);
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

#define BOTH_WORLDS(name, body)                              \
  TEST(Workqueue, name##Virtual) { in_virtual_world(body); } \
  TEST(Workqueue, name##Host) { in_host_world(body); }

BOTH_WORLDS(QueuedTwiceRunsOnce, queued_twice_runs_once)
BOTH_WORLDS(QueuedWhileRunningRunsOnceMore, queued_while_running_runs_once_more)
BOTH_WORLDS(ItemsRunInOrder, items_run_in_order_and_flush_waits_for_all_before_it)
BOTH_WORLDS(FlushingWhatIsNotQueuedIsNothing, flushing_what_is_neither_queued_nor_running_is_nothing)
BOTH_WORLDS(ACancelledItemDoesNotRun, a_cancelled_item_does_not_run)
BOTH_WORLDS(CancellingWaitsForOneThatRuns, cancelling_waits_for_one_that_runs)
BOTH_WORLDS(DelayedWorkRunsAfterItsTime, delayed_work_runs_after_its_time)
BOTH_WORLDS(DelayedWorkIsCancelledInItsDelay, delayed_work_is_cancelled_in_its_delay)
BOTH_WORLDS(ADelayCanBeCutShort, a_delay_can_be_cut_short)
BOTH_WORLDS(OneThatQueuesItselfAgainIsCancelled, one_that_queues_itself_again_is_cancelled)
BOTH_WORLDS(StoppingRunsWhatIsQueued, stopping_runs_what_is_queued)

TEST(Workqueue, DeferrableWorkRunsAtTheNextWakeUp) {
  VirtualWorld world;
  Counter c;
  Workqueue wq;
  world.spawn("main", [&] {
    EXPECT_TRUE(wq.start(world, "events").ok());
    INIT_DEFERRABLE_WORK(c.delayed, Counter::run);
    wq.queue_delayed_work(c.delayed, 2_ms);
    world.schedule_timeout(10_ms);
    EXPECT_EQ(c.runs, 0);
    wq.flush_work(c.work());
    world.schedule_timeout(1_ms);
    EXPECT_EQ(c.runs, 1);
    wq.stop();
  });
  EXPECT_EQ(world.run_until(9_ms), VirtualWorld::RunState::time_reached);
  EXPECT_EQ(c.runs, 0);
  EXPECT_EQ(world.run(), VirtualWorld::RunState::finished);
}

}  // namespace
}  // namespace weir
