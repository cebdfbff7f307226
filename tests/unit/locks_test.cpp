// Locks and wait queues, in both worlds: the same behaviour on fibers under many seeds and on real threads.
#include "kernel/locks.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernel/host/host_world.hpp"
#include "kernel/virtual/virtual_world.hpp"

namespace weir {
namespace {

using Bodies = std::vector<std::function<void()>>;

/// Fibers. run() repeats what `make` sets up under many seeds.
struct Virtual {
  static constexpr int ROUNDS = 20;  // of each body's loop
  static void run(
      const std::function<Bodies()>& make, const std::function<void()>& after = [] {}) {
    for (uint64_t seed = 1; seed <= 200; ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed));
      VirtualWorld world({.seed = seed, .cpus = 1 + static_cast<unsigned>(seed % 4), .preempt_one_in = 3});
      for (auto& body : make()) world.spawn("body", body);
      ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
      after();
    }
  }
};

/// Threads of the host.
struct Host {
  static constexpr int ROUNDS = 2000;
  static void run(
      const std::function<Bodies()>& make, const std::function<void()>& after = [] {}) {
    HostWorld world;
    ASSERT_TRUE(world.start().ok());
    for (int turn = 0; turn < 3; ++turn) {
      Bodies bodies = make();
      std::vector<std::thread> threads;
      for (auto& body : bodies)
        threads.emplace_back([&] { world.enter([](void* b) { (*static_cast<std::function<void()>*>(b))(); }, &body); });
      for (auto& thread : threads) thread.join();
      after();
    }
  }
};

/// A counter that is only right if nobody is inside at the same time.
struct Guarded {
  std::atomic<int> inside{0};
  int total = 0;
  bool violated = false;
  void visit() {
    if (inside.fetch_add(1) != 0) violated = true;
    const int before = total;
    world().preempt_point();
    total = before + 1;
    inside.fetch_sub(1);
  }
};

template <class W>
class Locks : public testing::Test {};
using Worlds = testing::Types<Virtual, Host>;
struct WorldNames {
  template <class W>
  static std::string GetName(int) {
    return std::is_same_v<W, Virtual> ? "Virtual" : "Host";
  }
};
TYPED_TEST_SUITE(Locks, Worlds, WorldNames);

TYPED_TEST(Locks, ASpinLockLetsOneIn) {
  struct State {
    SpinLock lock{LockRank::lru};
    Guarded guarded;
  };
  std::unique_ptr<State> s;
  TypeParam::run(
      [&] {
        s = std::make_unique<State>();
        return Bodies(4, [&] {
          for (int i = 0; i < TypeParam::ROUNDS; ++i) {
            ScopedLock guard(s->lock);
            s->guarded.visit();
          }
        });
      },
      [&] {
        EXPECT_FALSE(s->guarded.violated);
        EXPECT_EQ(s->guarded.total, 4 * TypeParam::ROUNDS);
        EXPECT_FALSE(s->lock.is_locked());
      });
}

TYPED_TEST(Locks, AMutexLetsOneIn) {
  struct State {
    Mutex lock{LockRank::slab_mutex};
    Guarded guarded;
  };
  std::unique_ptr<State> s;
  TypeParam::run(
      [&] {
        s = std::make_unique<State>();
        return Bodies(4, [&] {
          for (int i = 0; i < TypeParam::ROUNDS; ++i) {
            if (i % 8 == 7) {
              while (!s->lock.try_lock()) world().schedule_timeout(1_us);
            } else {
              s->lock.lock();
            }
            s->guarded.visit();
            if (i % 16 == 0) world().schedule_timeout(1_us);
            s->lock.unlock();
          }
        });
      },
      [&] {
        EXPECT_FALSE(s->guarded.violated);
        EXPECT_EQ(s->guarded.total, 4 * TypeParam::ROUNDS);
        EXPECT_FALSE(s->lock.is_locked());
      });
}

TYPED_TEST(Locks, AnRwSemLetsOneWriterInOrReaders) {
  struct State {
    RwSem sem{LockRank::mmap};
    Guarded guarded;
    std::atomic<int> readers{0};
    std::atomic<bool> mixed{false};
  };
  std::unique_ptr<State> s;
  TypeParam::run(
      [&] {
        s = std::make_unique<State>();
        Bodies bodies;
        for (int w = 0; w < 2; ++w) {
          bodies.push_back([&] {
            for (int i = 0; i < TypeParam::ROUNDS; ++i) {
              if (i % 8 == 7) {
                while (!s->sem.down_write_trylock()) world().schedule_timeout(1_us);
              } else {
                s->sem.down_write();
              }
              if (s->readers != 0 || !s->sem.is_write_locked()) s->mixed = true;
              s->guarded.visit();
              s->sem.up_write();
            }
          });
        }
        for (int r = 0; r < 3; ++r) {
          bodies.push_back([&, r] {
            for (int i = 0; i < TypeParam::ROUNDS; ++i) {
              if (i % 8 == 7) {
                while (!s->sem.down_read_trylock()) world().schedule_timeout(1_us);
              } else if (r == 2) {
                s->sem.down_read_overtaking();
              } else {
                s->sem.down_read();
              }
              s->readers.fetch_add(1);
              world().preempt_point();
              if (s->guarded.inside != 0 || s->sem.is_write_locked()) s->mixed = true;
              if (i % 16 == 0) world().schedule_timeout(1_us);
              s->readers.fetch_sub(1);
              s->sem.up_read();
            }
          });
        }
        return bodies;
      },
      [&] {
        EXPECT_FALSE(s->mixed);
        EXPECT_FALSE(s->guarded.violated);
        EXPECT_EQ(s->guarded.total, 2 * TypeParam::ROUNDS);
        EXPECT_FALSE(s->sem.is_locked());
      });
}

TYPED_TEST(Locks, ReadersAreInsideTogether) {
  struct State {
    RwSem sem{LockRank::mmap};
    Completion in[2];
  };
  std::unique_ptr<State> s;
  TypeParam::run([&] {
    s = std::make_unique<State>();
    Bodies bodies;
    for (int i = 0; i < 2; ++i) {
      bodies.push_back([&, i] {
        ScopedRead guard(s->sem);
        s->in[i].complete();
        s->in[1 - i].wait();
      });
    }
    return bodies;
  });
}

TYPED_TEST(Locks, AWriterIsNotStarvedByReaders) {
  struct State {
    RwSem sem{LockRank::mmap};
    std::atomic<int> inside{0};
    std::atomic<bool> written{false};
  };
  std::unique_ptr<State> s;
  TypeParam::run([&] {
    s = std::make_unique<State>();
    // Readers leave only while another one is inside, until the writer is known to want in: never is it free by chance.
    Bodies bodies(3, [&] {
      while (!s->written) {
        s->sem.down_read();
        s->inside.fetch_add(1);
        world().schedule_timeout(1_us);
        s->inside.fetch_sub(1);
        s->sem.up_read();
      }
    });
    bodies.push_back([&] {
      ScopedWrite guard(s->sem);
      EXPECT_EQ(s->inside, 0);
      s->written = true;
    });
    return bodies;
  });
}

TYPED_TEST(Locks, AnOvertakingReaderPassesAWaitingWriter) {
  struct State {
    RwSem sem{LockRank::mmap};
    Completion inside, overtaken;
  };
  std::unique_ptr<State> s;
  TypeParam::run([&] {
    s = std::make_unique<State>();
    return Bodies{
        [&] {  // waits inside for what the third one does
          ScopedRead guard(s->sem);
          s->inside.complete();
          s->overtaken.wait();
        },
        [&] {
          s->inside.wait();
          ScopedWrite guard(s->sem);
          EXPECT_TRUE(s->overtaken.done());
        },
        [&] {
          s->inside.wait();
          s->sem.down_read_overtaking();
          s->overtaken.complete();
          s->sem.up_read();
        },
    };
  });
}

TYPED_TEST(Locks, AWakeBeforeTheParkIsNotLost) {
  struct State {
    std::atomic<Thread*> sleeper{nullptr};
    std::atomic<bool> woken{false};
  };
  std::unique_ptr<State> s;
  TypeParam::run([&] {
    s = std::make_unique<State>();
    return Bodies{
        [&] {
          s->sleeper = &current();
          while (!s->woken) world().schedule();
        },
        [&] {
          while (s->sleeper == nullptr) world().schedule_timeout(1_us);
          s->woken = true;
          world().wake(*s->sleeper);
        },
    };
  });
}

TYPED_TEST(Locks, SleepersAreWokenInTheOrderTheyCame) {
  constexpr int N = 5;
  struct State {
    WaitQueue queue;
    std::atomic<int> looked[N]{};  // how often its predicate was asked: the second time it is in the queue
    std::atomic<int> woken{0};
    int order[N]{};
  };
  std::unique_ptr<State> s;
  auto until = [](auto pred) {
    while (!pred()) world().schedule_timeout(1_us);
  };
  TypeParam::run(
      [&] {
        s = std::make_unique<State>();
        Bodies bodies;
        for (int i = 0; i < N; ++i) {
          bodies.push_back([&, i] {
            if (i > 0) until([&] { return s->looked[i - 1] >= 2; });
            s->queue.wait([&] { return s->looked[i].fetch_add(1) >= 2; });
            s->order[s->woken] = i;
            s->woken.fetch_add(1);
          });
        }
        bodies.push_back([&] {
          until([&] { return s->looked[N - 1] >= 2; });
          for (int i = 0; i < N; ++i) {
            s->queue.wake_one();
            until([&] { return s->woken == i + 1; });
          }
        });
        return bodies;
      },
      [&] {
        for (int i = 0; i < N; ++i) EXPECT_EQ(s->order[i], i);
      });
}

TYPED_TEST(Locks, OnlyThoseWhoWaitForTheKeyAreWoken) {
  struct State {
    WaitQueue queue;
    int keys[2]{};
    std::atomic<bool> open[2]{};
    std::atomic<int> looked[2]{};
  };
  std::unique_ptr<State> s;
  TypeParam::run([&] {
    s = std::make_unique<State>();
    Bodies bodies;
    for (int i = 0; i < 2; ++i) {
      bodies.push_back([&, i] {
        s->queue.wait(
            [&] {
              s->looked[i].fetch_add(1);
              return s->open[i].load();
            },
            &s->keys[i]);
      });
    }
    bodies.push_back([&] {
      while (s->looked[0] < 2 || s->looked[1] < 2) world().schedule_timeout(1_us);
      s->open[1] = true;
      s->queue.wake_all(&s->keys[0]);
      s->queue.wake_all(&s->keys[0]);
      EXPECT_EQ(s->looked[1], 2);
      s->queue.wake_all(&s->keys[1]);
      s->open[0] = true;
      s->queue.wake_all();
    });
    return bodies;
  });
}

TYPED_TEST(Locks, WakingOneAtATimeServesEveryWaiter) {
  // A semaphore: a wake that hits one who no longer needs it must reach the next.
  struct State {
    std::atomic<int> tokens{0};
    std::atomic<int> waiting{6};
    WaitQueue queue;
    bool take() {
      int n = tokens;
      while (n > 0)
        if (tokens.compare_exchange_weak(n, n - 1)) return true;
      return false;
    }
  };
  std::unique_ptr<State> s;
  TypeParam::run([&] {
    s = std::make_unique<State>();
    Bodies bodies;
    for (int i = 0; i < 6; ++i) {
      bodies.push_back([&, i] {
        for (int k = 0; k < 10; ++k) {
          if (i % 3 == 0) {  // impatient ones in between
            while (!s->queue.wait_timeout(1_us, [&] { return s->take(); })) {
            }
          } else {
            s->queue.wait([&] { return s->take(); });
          }
        }
      });
    }
    for (int p = 0; p < 2; ++p) {
      bodies.push_back([&] {
        for (int k = 0; k < 30; ++k) {
          s->tokens.fetch_add(1);
          s->queue.wake_one();
          if (k % 5 == 0) world().schedule_timeout(2_us);
        }
      });
    }
    return bodies;
  });
}

TYPED_TEST(Locks, WaitingEndsWithTheTimeOrWithTheWake) {
  struct State {
    WaitQueue queue;
    std::atomic<bool> open{false};
  };
  std::unique_ptr<State> s;
  TypeParam::run([&] {
    s = std::make_unique<State>();
    return Bodies{
        [&] {
          EXPECT_FALSE(s->queue.wait_timeout(1_us, [] { return false; }));
          EXPECT_TRUE(s->queue.empty());
          EXPECT_TRUE(s->queue.wait_timeout(3600_s, [&] { return s->open.load(); }));
        },
        [&] {
          world().schedule_timeout(5_us);
          s->open = true;
          s->queue.wake_all();
        },
    };
  });
}

TYPED_TEST(Locks, ScheduleTimeoutSaysWhetherItWasWoken) {
  struct State {
    std::atomic<Thread*> sleeper{nullptr};
  };
  std::unique_ptr<State> s;
  TypeParam::run([&] {
    s = std::make_unique<State>();
    return Bodies{
        [&] {
          EXPECT_FALSE(world().schedule_timeout(1_us));
          s->sleeper = &current();
          EXPECT_TRUE(world().schedule_timeout(3600_s));
        },
        [&] {
          while (s->sleeper == nullptr) world().schedule_timeout(1_us);
          world().wake(*s->sleeper);
        },
    };
  });
}

TYPED_TEST(Locks, ACompletionLetsEveryWaiterGo) {
  struct State {
    Completion done;
    std::atomic<int> through{0};
  };
  std::unique_ptr<State> s;
  TypeParam::run(
      [&] {
        s = std::make_unique<State>();
        Bodies bodies(20, [&] {  // more than one batch of wakes
          s->done.wait();
          s->through.fetch_add(1);
        });
        bodies.push_back([&] { s->done.complete(); });
        return bodies;
      },
      [&] { EXPECT_EQ(s->through, 20); });
}

TEST(Locks, AFlagScopeRestoresWhatWasThere) {
  VirtualWorld world;
  world.spawn("one", [] {
    current().flags = PF_KSWAPD;
    {
      ThreadFlagScope scope(PF_MEMALLOC | PF_KSWAPD);
      EXPECT_EQ(current().flags, PF_MEMALLOC | PF_KSWAPD);
    }
    EXPECT_EQ(current().flags, uint32_t{PF_KSWAPD});
  });
  EXPECT_EQ(world.run(), VirtualWorld::RunState::finished);
}

}  // namespace
}  // namespace weir
