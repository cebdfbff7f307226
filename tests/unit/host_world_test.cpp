// The live world: real threads inside a program. Behaviour that it shares with the virtual world is in locks_test and
// the kernel_*_tests.
#include "kernel/host/host_world.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "kernel/host/sys.hpp"
#include "kernel/workqueue.hpp"

#if defined(__SANITIZE_THREAD__)
#define WEIR_TSAN 1
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define WEIR_LIBC_KTHREADS 1
#endif

namespace weir {
namespace {

class Host : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(world_.start().ok()); }
  void enter(std::function<void()> body) {
    world_.enter([](void* b) { (*static_cast<std::function<void()>*>(b))(); }, &body);
  }
  void enter_exclusive(std::function<void()> body) {
    world_.enter_exclusive([](void* b) { (*static_cast<std::function<void()>*>(b))(); }, &body);
  }
  HostWorld world_;
};

uint64_t blocked_signals() {
  uint64_t mask = 0;
  sys::call(SYS_rt_sigprocmask, 0, 0, sys::arg(&mask), sizeof mask);
  return mask;
}

constexpr uint64_t UNBLOCKABLE = 1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1);

// ---- Entering ----

TEST_F(Host, EnteringGivesAThreadOnAnEngineStack) {
  Task* task = reinterpret_cast<Task*>(0x1000);
  struct Seen {
    World* world;
    Task* task;
    int32_t tid;
    uint32_t flags;
  } seen{};
  world_.enter(
      [](void* p) {
        auto& s = *static_cast<Seen*>(p);
        s = {&world(), current().task, current().tid, current().flags};
      },
      &seen, task);
  EXPECT_EQ(seen.world, &world_);
  EXPECT_EQ(seen.task, task);
  EXPECT_EQ(seen.tid, gettid());
  EXPECT_EQ(seen.flags, 0u);
}

TEST_F(Host, SignalsAreBlockedInsideAndAsBeforeAfterwards) {
  const uint64_t before = blocked_signals();
  enter([] { EXPECT_EQ(blocked_signals() | UNBLOCKABLE, ~uint64_t{0}); });
  EXPECT_EQ(blocked_signals(), before);
}

TEST_F(Host, TheSamePlaceIsUsedAgain) {
  std::set<EngineThread*> stacks;
  for (int i = 0; i < 100; ++i) enter([&] { stacks.insert(current().stack); });
  EXPECT_EQ(stacks.size(), 1u);
}

HostWorld* world_of_handler = nullptr;
std::atomic<int> handled{0};

TEST_F(Host, IsEnteredFromASignalHandler) {
  world_of_handler = &world_;
  handled = 0;
  struct sigaction action {
  }, before{};
  action.sa_handler = [](int) { world_of_handler->enter([](void*) { handled = current().tid; }, nullptr); };
  sigaction(SIGUSR1, &action, &before);
  raise(SIGUSR1);
  EXPECT_EQ(handled, gettid());
  // One that comes while inside waits for the end.
  handled = 0;
  enter([] {
    raise(SIGUSR1);
    EXPECT_EQ(handled, 0);
  });
  EXPECT_EQ(handled, gettid());
  sigaction(SIGUSR1, &before, nullptr);
}

TEST_F(Host, EnteringTwiceIsABug) {
  EXPECT_DEATH(enter([this] { enter([] {}); }), "BUG: on_engine_stack");
}

TEST_F(Host, ManyMoreThreadsThanStacksGetIn) {
  std::atomic<int> inside{0};
  std::vector<std::thread> threads;
  threads.reserve(60);
  for (int i = 0; i < 60; ++i) {
    threads.emplace_back([&] {
      enter([&] {
        inside.fetch_add(1);
        while (inside < 60) world().schedule_timeout(10_us);  // all at the same time
      });
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(inside, 60);
}

// ---- The gate ----

TEST_F(Host, EntriesAreInsideTogetherAnExclusiveOneIsAlone) {
  std::atomic<int> inside{0}, alone{0};
  std::atomic<bool> violated{false};
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) {
        if (t == 0) {
          enter_exclusive([&] {
            if (inside != 0 || alone.fetch_add(1) != 0) violated = true;
            alone.fetch_sub(1);
          });
        } else {
          enter([&] {
            inside.fetch_add(1);
            if (alone != 0) violated = true;
            inside.fetch_sub(1);
          });
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_FALSE(violated);
}

TEST_F(Host, AnExclusiveEntryComesBetweenTwoPassesOfAKthread) {
  struct Shared {
    std::atomic<bool> in_pass{false};
    std::atomic<int> passes{0};
  } shared;
  Thread* kthread = world_.kthread_create(
      [](void* p) {
        auto& s = *static_cast<Shared*>(p);
        while (!kthread_should_stop()) {
          {
            KthreadPass pass;
            s.in_pass = true;
            KthreadPass inner;
            world().schedule_timeout(20_us);
            s.passes.fetch_add(1);
            s.in_pass = false;
          }
          world().schedule_timeout(20_us);
        }
      },
      &shared, "kswapd0");
  for (int i = 0; i < 50; ++i)
    enter_exclusive([&] {
      EXPECT_FALSE(shared.in_pass);
      const int passes = shared.passes;
      world().schedule_timeout(30_us);
      EXPECT_EQ(shared.passes, passes);
    });
  enter([&] { world().kthread_stop(*kthread); });
}

TEST_F(Host, AKthreadWorksForSomebodyInsideWhileAnExclusiveEntryWaits) {
  // The one inside waits for work that a kthread does; a fork waits for the one inside.
  Workqueue wq;
  WorkStruct work;
  INIT_WORK(work, [](WorkStruct*) {});
  std::atomic<bool> inside{false}, exclusive{false};
  enter([&] { EXPECT_TRUE(wq.start(world_, "events").ok()); });
  std::thread forker([&] {
    while (!inside) std::this_thread::yield();
    enter_exclusive([&] { exclusive = true; });
  });
  enter([&] {
    inside = true;
    for (int i = 0; i < 50; ++i) {
      world().schedule_timeout(10_us);
      wq.queue_work(work);
      wq.flush_work(work);
    }
    EXPECT_FALSE(exclusive);
  });
  forker.join();
  EXPECT_TRUE(exclusive);
  enter([&] { wq.stop(); });
}

// ---- Kthreads ----

TEST_F(Host, AKthreadIsAThreadOfItsOwnWithItsName) {
  struct Seen {
    int32_t tid, own_tid;
    uint32_t flags;
    char comm[16];
    bool stopped;
  } seen{};
  Thread* kthread = world_.kthread_create(
      [](void* p) {
        auto& s = *static_cast<Seen*>(p);
        s.tid = current().tid;
        s.own_tid = sys::gettid();
        s.flags = current().flags;
        const long fd = sys::call(SYS_open, sys::arg("/proc/thread-self/comm"), O_RDONLY);
        sys::call(SYS_read, fd, sys::arg(s.comm), sizeof s.comm);
        sys::call(SYS_close, fd);
        while (!kthread_should_stop()) world().schedule();
        s.stopped = true;
      },
      &seen, "kswapd0 with a name that is too long");
  ASSERT_NE(kthread, nullptr);
  EXPECT_EQ(world_.nr_kthreads(), 2u);
  enter([&] { world().kthread_stop(*kthread); });
  EXPECT_TRUE(seen.stopped);
  EXPECT_EQ(seen.tid, seen.own_tid);
  EXPECT_NE(seen.tid, gettid());
  EXPECT_EQ(seen.flags, uint32_t{PF_KTHREAD});
  EXPECT_EQ(std::string(seen.comm, sizeof seen.comm), "kswapd0 with a \n");
  EXPECT_EQ(world_.nr_kthreads(), 1u);
}

TEST_F(Host, AKthreadThatReturnedCanStillBeStopped) {
  std::atomic<bool> ended{false};
  Thread* kthread = world_.kthread_create([](void* p) { *static_cast<std::atomic<bool>*>(p) = true; }, &ended, "short");
  while (!ended) std::this_thread::yield();
  world_.kthread_stop(*kthread);
  EXPECT_EQ(world_.nr_kthreads(), 1u);
}

TEST_F(Host, SignalsAreBlockedInKthreads) {
  uint64_t mask = 0;
  Thread* kthread =
      world_.kthread_create([](void* p) { *static_cast<uint64_t*>(p) = blocked_signals(); }, &mask, "blocked");
  world_.kthread_stop(*kthread);
  EXPECT_EQ(mask | UNBLOCKABLE, ~uint64_t{0});
  EXPECT_NE(blocked_signals() | UNBLOCKABLE, ~uint64_t{0});
}

TEST_F(Host, AKthreadHasItsOwnDescriptorTable) {
  struct Files {
    int fd;
    std::atomic<bool> closed{false};
    long read_back = 0;
  } files;
  files.fd = memfd_create("swap", 0);
  ASSERT_EQ(write(files.fd, "bytes", 5), 5);
  Thread* kthread = world_.kthread_create(
      [](void* p) {
        auto& f = *static_cast<Files*>(p);
        while (!f.closed) world().schedule();
        char buffer[8];
        f.read_back = sys::call(SYS_pread64, f.fd, sys::arg(buffer), 5, 0);
        sys::call(SYS_close, f.fd);
      },
      &files, "ioworker");
  // What a daemon does, but for the ones that this test needs.
  ASSERT_EQ(close_range(static_cast<unsigned>(files.fd), static_cast<unsigned>(files.fd), 0), 0);
  files.closed = true;
  world_.wake(*kthread);
  world_.kthread_stop(*kthread);
  EXPECT_EQ(files.read_back, 5);
}

TEST(HostFiles, KthreadsMayShareTheTable) {
  HostWorld world({.files = HostWorld::KthreadFiles::shared});
  ASSERT_TRUE(world.start().ok());
  long opened = -1;
  Thread* kthread = world.kthread_create(
      [](void* p) { *static_cast<long*>(p) = sys::call(SYS_open, sys::arg("/dev/null"), O_RDONLY); }, &opened,
      "opener");
  world.kthread_stop(*kthread);
  ASSERT_GE(opened, 0);
  EXPECT_EQ(close(static_cast<int>(opened)), 0);
}

TEST(HostFiles, EveryKthreadFirstCallsTheHook) {
  std::atomic<int> calls{0};
  HostWorld world({.kthread_start = [](void* p) { static_cast<std::atomic<int>*>(p)->fetch_add(1); },
                   .kthread_start_data = &calls});
  ASSERT_TRUE(world.start().ok());
  Thread* kthread = world.kthread_create([](void*) {}, nullptr, "hooked");
  world.kthread_stop(*kthread);
  while (calls < 2) std::this_thread::yield();  // the timer thread's too
}

#ifndef WEIR_LIBC_KTHREADS  // there kthreads are libc's own threads
TEST_F(Host, AnErrnoThatAKthreadSetsIsNobodyElses) {
  errno = 77;
  Thread* kthread = world_.kthread_create([](void*) { (void)!::write(-1, "", 1); }, nullptr, "failing");
  world_.kthread_stop(*kthread);
  EXPECT_EQ(errno, 77);
}
#endif

TEST_F(Host, ThereAreSixtyFourKthreads) {
  std::vector<Thread*> kthreads;
  for (;;) {
    Thread* t = world_.kthread_create(
        [](void*) {
          while (!kthread_should_stop()) world().schedule();
        },
        nullptr, "many");
    if (t == nullptr) break;
    kthreads.push_back(t);
  }
  EXPECT_EQ(kthreads.size(), HostWorld::MAX_KTHREADS - 1u);  // one runs the timers
  for (Thread* t : kthreads) world_.kthread_stop(*t);
  Thread* again = world_.kthread_create([](void*) {}, nullptr, "again");
  ASSERT_NE(again, nullptr);
  world_.kthread_stop(*again);
}

// ---- Timers ----

struct Note {
  std::atomic<int>* next;
  std::atomic<int> ran_as{-1};
  Timer timer{};
  void arm(World& w, Nanos delay) {
    timer.data = this;
    timer.function = [](void* p) {
      auto& n = *static_cast<Note*>(p);
      n.ran_as = n.next->fetch_add(1);
    };
    w.timer_arm(timer, delay);
  }
};

TEST_F(Host, TimersRunInTheOrderOfTheirTimes) {
  std::atomic<int> next{0};
  Note a{&next}, b{&next}, c{&next}, never{&next};
  enter([&] {
    a.arm(world_, 3_ms);
    never.arm(world_, 2_ms);
    b.arm(world_, 1_ms);
    c.arm(world_, 3600_s);
    c.arm(world_, 2_ms);
    world_.timer_cancel(never.timer);
    while (next < 3) world_.schedule_timeout(100_us);
  });
  EXPECT_EQ(b.ran_as, 0);
  EXPECT_EQ(c.ran_as, 1);
  EXPECT_EQ(a.ran_as, 2);
  EXPECT_EQ(never.ran_as, -1);
}

TEST_F(Host, CancellingWaitsForAFunctionThatRuns) {
  struct Box {
    std::atomic<bool> inside{false}, began{false};
  };
  enter([&] {
    for (int i = 0; i < 200; ++i) {
      Box box;  // gone at the end of the turn
      Timer timer{.function =
                      [](void* p) {
                        auto& b = *static_cast<Box*>(p);
                        b.inside = true;
                        b.began = true;
                        for (int k = 0; k < 1000; ++k) __builtin_ia32_pause();
                        b.inside = false;
                      },
                  .data = &box};
      world_.timer_arm(timer, Nanos(static_cast<uint64_t>(i) * 500));
      if (i % 2 == 0) {
        while (!box.began) world_.schedule_timeout(1_us);
      }
      world_.timer_cancel(timer);
      EXPECT_FALSE(box.inside);
    }
  });
}

// ---- fork ----

#ifndef WEIR_TSAN
TEST_F(Host, TheChildOfAForkHasAWorkingWorld) {
  Workqueue wq;
  WorkStruct work;
  static std::atomic<int> runs;
  runs = 0;
  INIT_WORK(work, [](WorkStruct*) { runs.fetch_add(1); });
  enter([&] {
    ASSERT_TRUE(wq.start(world_, "events").ok());
    wq.queue_work(work);
    wq.flush_work(work);
  });
  // Others want in at the time of the fork; in the child they are not there.
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  others.reserve(3);
  for (int i = 0; i < 3; ++i)
    others.emplace_back([&] {
      while (!stop) enter([] { world().schedule_timeout(1_us); });
    });
  for (int turn = 0; turn < 20; ++turn) {
    long child = -1;
    enter_exclusive([&] {
      child = sys::call(SYS_clone, SIGCHLD);
      if (child != 0) return;
      if (!world_.restart_after_fork().ok()) sys::call(SYS_exit_group, 2);
      wq.forget_thread();
      if (!wq.start(world_, "events").ok()) sys::call(SYS_exit_group, 3);
    });
    if (child == 0) {
      // A program's thread goes on: enters, has timers, kthreads, the gate.
      world_.enter(
          [](void* p) {
            auto& q = *static_cast<Workqueue*>(p);
            static WorkStruct again;
            INIT_WORK(again, [](WorkStruct*) { runs.fetch_add(1); });
            q.queue_work(again);
            q.flush_work(again);
            static std::atomic<bool> rang{false};
            static Timer timer{.function = [](void*) { rang = true; }};
            world().timer_arm(timer, 10_us);
            while (!rang) world().schedule_timeout(10_us);
          },
          &wq);
      world_.enter_exclusive([](void*) {}, nullptr);
      sys::call(SYS_exit_group, runs == 2 && world_.nr_kthreads() == 2 ? 0 : 1);
    }
    ASSERT_GT(child, 0);
    int status = -1;
    ASSERT_EQ(waitpid(static_cast<pid_t>(child), &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  stop = true;
  for (auto& other : others) other.join();
  enter([&] { wq.stop(); });
}
#endif

// ---- The rest ----

struct Names final : FlowSink {
  std::atomic<int> entered{0};
  void enter(const FlowSite&, uint64_t, uint64_t, uint64_t) override { entered.fetch_add(1); }
  void leave(const FlowSite&) override {}
  void state(const FlowSite&, State, uint64_t, uint64_t, uint64_t) override {}
};

TEST_F(Host, TheSinkIsSeenByEntriesAndKthreads) {
  Names names;
  world_.set_sink(&names);
  auto start = [](void*) {
    if (Thread* t = kthread_run(
            world(), [](void*) {}, nullptr, "one"))
      world().kthread_stop(*t);
  };
  world_.enter(start, nullptr);
  Thread* kthread = world_.kthread_create(start, nullptr, "starter");
  world_.kthread_stop(*kthread);
  EXPECT_EQ(names.entered, 2);
  world_.set_sink(nullptr);
}

TEST_F(Host, PrintkIsOneLineOnStandardError) {
  testing::internal::CaptureStderr();
  world_.printk("Out of memory");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "weir: Out of memory\n");
}

TEST_F(Host, ThereIsACpu) {
  EXPECT_GE(world_.nr_cpus(), 1u);
  enter([&] { EXPECT_LT(current().cpu.v, world_.nr_cpus()); });
}

constinit HostWorld constant;

TEST(HostStatic, AWorldNeedsNoConstructionAtRunTime) {
  ASSERT_TRUE(constant.start().ok());
  constant.stop();
}

TEST_F(Host, AWorldCanBeStartedAgain) {
  world_.stop();
  ASSERT_TRUE(world_.start().ok());
  bool ran = false;
  enter([&] { ran = true; });
  EXPECT_TRUE(ran);
}

}  // namespace
}  // namespace weir
