// Lockdep: what it reports, in both worlds. Debug builds only: elsewhere there is nothing to test.
#include <gtest/gtest.h>

#ifdef WEIR_DEBUG

#include <functional>
#include <string>

#include "kernel/freezer.hpp"
#include "kernel/host/host_world.hpp"
#include "kernel/locks.hpp"
#include "kernel/virtual/virtual_world.hpp"

#ifdef __clang__
#pragma clang diagnostic ignored "-Wthread-safety-analysis"  // which is right: these tests do it wrong on purpose
#endif

namespace weir {
namespace {

struct Virtual {
  static void run(std::function<void()> body) {
    VirtualWorld world;
    world.spawn("tester", std::move(body));
    EXPECT_EQ(world.run(), VirtualWorld::RunState::finished);
  }
};

struct Host {
  static void run(std::function<void()> body) {
    HostWorld world;
    ASSERT_TRUE(world.start().ok());
    world.enter([](void* b) { (*static_cast<std::function<void()>*>(b))(); }, &body);
  }
};

template <class W>
class Lockdep : public testing::Test {};
using Worlds = testing::Types<Virtual, Host>;
struct WorldNames {
  template <class W>
  static std::string GetName(int) {
    return std::is_same_v<W, Virtual> ? "Virtual" : "Host";
  }
};
TYPED_TEST_SUITE(Lockdep, Worlds, WorldNames);

TYPED_TEST(Lockdep, ReportsAWrongOrderWithBothLocks) {
  EXPECT_DEATH(
      TypeParam::run([] {
        SpinLock lru(LockRank::lru), page_table(LockRank::page_table);
        lru.lock();
        page_table.lock();
      }),
      "wrong order: taking `page_table` \\(spinning, 0x[0-9a-f]+\\) while holding `lru` \\(spinning, 0x[0-9a-f]+\\)");
}

TYPED_TEST(Lockdep, ReportsTwoOfARankThatDoesNotNest) {
  EXPECT_DEATH(TypeParam::run([] {
                 SpinLock a(LockRank::zone), b(LockRank::zone);
                 a.lock();
                 b.lock();
               }),
               "taking `zone` .* while holding `zone` .*two of this rank do not nest");
}

TYPED_TEST(Lockdep, ReportsALockTakenTwice) {
  EXPECT_DEATH(TypeParam::run([] {
                 Mutex a(LockRank::anon_vma);
                 a.lock();
                 a.lock();
               }),
               "taking `anon_vma` .* which it already holds");
}

TYPED_TEST(Lockdep, ReportsSleepingUnderASpinlock) {
  EXPECT_DEATH(TypeParam::run([] {
                 SpinLock lock(LockRank::lru);
                 lock.lock();
                 world().schedule_timeout(1_us);
               }),
               "sleeping under a spinlock(.|\n)*holds:(.|\n)*`lru`");
}

TYPED_TEST(Lockdep, ReportsAMutexUnderASpinlock) {
  EXPECT_DEATH(TypeParam::run([] {
                 SpinLock lock(LockRank::vmalloc);
                 Mutex slots(LockRank::swap_slots);
                 lock.lock();
                 slots.lock();
               }),
               "sleeping under a spinlock: taking `swap_slots`");
}

TYPED_TEST(Lockdep, ReportsAWaitUnderASpinlockEvenIfNothingIsWaitedFor) {
  EXPECT_DEATH(TypeParam::run([] {
                 SpinLock lock(LockRank::lru);
                 WaitQueue queue;
                 lock.lock();
                 queue.wait([] { return true; });
               }),
               "sleeping under a spinlock");
}

TYPED_TEST(Lockdep, ReportsALockThatIsNotHeld) {
  EXPECT_DEATH(TypeParam::run([] {
                 Mutex lock(LockRank::oom);
                 lock.unlock();
               }),
               "releasing `oom` .* which it does not hold");
}

TYPED_TEST(Lockdep, ReportsAThreadThatEndsWithALock) {
  EXPECT_DEATH(TypeParam::run([] {
                 static Mutex lock(LockRank::oom);
                 lock.lock();
               }),
               "leaves with locks held(.|\n)*`oom`");
}

TYPED_TEST(Lockdep, ReportsATimerThatSleeps) {
  EXPECT_DEATH(TypeParam::run([] {
                 Timer timer{.function = [](void*) { world().schedule_timeout(1_us); }};
                 world().timer_arm(timer, 1_us);
                 for (;;) world().schedule_timeout(1_s);
               }),
               "sleeping in a timer's function");
}

TYPED_TEST(Lockdep, ReportsFreezingWithALock) {
  EXPECT_DEATH(TypeParam::run([] {
                 Mutex lock(LockRank::oom);
                 lock.lock();
                 try_to_freeze();
               }),
               "leaves with locks held");
}

TYPED_TEST(Lockdep, AcceptsTheOrderOfTheTable) {
  TypeParam::run([] {
    RwSem mmap(LockRank::mmap), child(LockRank::mmap);
    Mutex anon(LockRank::anon_vma);
    SpinLock page_table(LockRank::page_table), second(LockRank::page_table), lru(LockRank::lru);
    ScopedWrite a(mmap);
    ScopedWrite b(child);
    ScopedLock c(anon);
    ScopedLock d(page_table);
    ScopedLock e(second);
    ScopedLock f(lru);
    EXPECT_TRUE(lockdep_holds(&mmap) && lockdep_holds(&lru));
  });
}

TYPED_TEST(Lockdep, ATrylockIsNeverAViolationButIsHeld) {
  TypeParam::run([] {
    SpinLock lru(LockRank::lru), page_table(LockRank::page_table);
    lru.lock();
    EXPECT_TRUE(page_table.try_lock());
    EXPECT_TRUE(lockdep_holds(&page_table));
    page_table.unlock();
    lru.unlock();
    EXPECT_FALSE(lockdep_holds(&page_table));
  });
}

TYPED_TEST(Lockdep, LocksAreReleasedInAnyOrder) {
  TypeParam::run([] {
    SpinLock a(LockRank::page_table), b(LockRank::lru), c(LockRank::zone);
    a.lock();
    b.lock();
    c.lock();
    b.unlock();
    a.unlock();
    EXPECT_TRUE(lockdep_holds(&c));
    c.unlock();
    world().schedule_timeout(1_us);
  });
}

// ---- The page lock: a bit that another thread may clear ----

/// As lock_page() and unlock_page() use lockdep.
void lock_page(int* page) {
  lockdep_acquire(page, LockRank::page);
  lockdep_acquire_try(page, LockRank::page);
}

TYPED_TEST(Lockdep, ReportsMmapLockUnderAPageLock) {
  EXPECT_DEATH(TypeParam::run([] {
                 int page = 0;
                 RwSem mmap(LockRank::mmap);
                 lock_page(&page);
                 mmap.down_read();
               }),
               "taking `mmap` .* while holding `page`");
}

TYPED_TEST(Lockdep, ReportsAPageLockedTwice) {
  EXPECT_DEATH(TypeParam::run([] {
                 int page = 0;
                 lock_page(&page);
                 lock_page(&page);
               }),
               "taking `page` .* which it already holds");
}

TYPED_TEST(Lockdep, APageHandedToTheIoIsNoLongerHeld) {
  TypeParam::run([] {
    int page = 0;
    RwSem mmap(LockRank::mmap);
    lock_page(&page);
    EXPECT_TRUE(lockdep_holds(&page));
    lockdep_release_any(&page, LockRank::page);  // submitted
    EXPECT_FALSE(lockdep_holds(&page));
    ScopedRead guard(mmap);
    lockdep_release_any(&page, LockRank::page);  // completed
  });
}

TYPED_TEST(Lockdep, AThreadMayHoldAWholeBatchOfPages) {
  TypeParam::run([] {
    int pages[100];
    for (int& page : pages) lockdep_acquire_try(&page, LockRank::page);
    EXPECT_EQ(current().page_locks, 100);
    for (int& page : pages) lockdep_release(&page, LockRank::page);
    EXPECT_EQ(current().page_locks, 0);
  });
}

TEST(Lockdep, AnotherThreadMayUnlockAPage) {
  VirtualWorld world;
  int page = 0;
  Thread* locker = world.spawn("locker", [&] {
    lock_page(&page);
    world.schedule();
    RwSem mmap(LockRank::mmap);
    ScopedRead guard(mmap);
  });
  world.spawn("completer", [&] {
    EXPECT_FALSE(lockdep_holds(&page));
    lockdep_release_any(&page, LockRank::page);
    world.wake(*locker);
  });
  EXPECT_EQ(world.run(), VirtualWorld::RunState::finished);
}

TEST(Lockdep, EveryRankHasAName) {
  EXPECT_STREQ(lock_rank_name(LockRank::gate), "gate");
  EXPECT_STREQ(lock_rank_name(LockRank::leaf), "leaf");
  EXPECT_STREQ(lock_rank_name(LockRank::count), "?");
}

}  // namespace
}  // namespace weir

#endif  // WEIR_DEBUG
