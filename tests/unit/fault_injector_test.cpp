#include "block/fault_injector.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "block/sim_disk.hpp"
#include "kernel/virtual/virtual_world.hpp"

namespace weir {
namespace {

// ---- When -----------------------------------------------------------------------------------------------------------

std::string decisions(FaultAttr attr, int requests, uint64_t seed = 1) {
  std::string which;
  uint64_t count = 0;
  for (int i = 0; i < requests; ++i) which += should_fail(attr, PAGE_SIZE, count, seed) ? 'x' : '.';
  return which;
}

TEST(FaultAttr, WithoutProbabilityNothingFails) { EXPECT_EQ(decisions({}, 10), ".........."); }

TEST(FaultAttr, AHundredPercentFailsAll) { EXPECT_EQ(decisions({.probability = 100}, 5), "xxxxx"); }

TEST(FaultAttr, TimesIsAnEnd) { EXPECT_EQ(decisions({.times = 2, .probability = 100}, 5), "xx..."); }

TEST(FaultAttr, IntervalCounts) { EXPECT_EQ(decisions({.interval = 3, .probability = 100}, 9), "..x..x..x"); }

TEST(FaultAttr, SpaceIsUsedUpFirst) {
  EXPECT_EQ(decisions({.space = 3 * PAGE_SIZE, .probability = 100}, 6), "...xxx");
  EXPECT_EQ(decisions({.times = 1, .space = PAGE_SIZE, .interval = 2, .probability = 100}, 7), "..x....");
}

TEST(FaultAttr, ProbabilityIsInPercentAndTheSeedDecides) {
  const std::string once = decisions({.probability = 30}, 10000, 5);
  EXPECT_NEAR(static_cast<double>(std::count(once.begin(), once.end(), 'x')), 3000, 150);
  EXPECT_EQ(once, decisions({.probability = 30}, 10000, 5));
  EXPECT_NE(once, decisions({.probability = 30}, 10000, 6));
}

// ---- What -----------------------------------------------------------------------------------------------------------

class Rig {
 public:
  explicit Rig(FaultInjectorOptions options, uint64_t seed = 1)
      : world({.seed = seed, .cpus = 2, .preempt_one_in = 5}) {
    disk = *SimDisk::create(place_, world, {.capacity = PageCount(1000), .content = ContentKind::tags});
    injector = std::make_unique<FaultInjector>(world, *disk, options);
  }
  ~Rig() {
    injector.reset();
    disk->~SimDisk();
  }
  struct Request {
    Bio bio;
    uint64_t tag = 0;
    int ended = 0;
    Nanos ended_at{};
    Rig* rig = nullptr;
  };
  Request& submit(BioOp op, uint64_t page, uint64_t tag = 0) {
    requests.push_back(std::make_unique<Request>());
    Request& r = *requests.back();
    r.rig = this;
    r.tag = tag;
    r.bio = {.op = op, .sector = page * SECTORS_PER_PAGE, .content = {.tag = &r.tag}, .owner = &r};
    r.bio.end_io = end_io;
    injector->submit_bio(r.bio);
    return r;
  }
  static void end_io(Bio& bio) {
    auto& request = *static_cast<Request*>(bio.owner);
    ++request.ended;
    request.ended_at = request.rig->world.now();
    request.rig->order.push_back(bio.sector / SECTORS_PER_PAGE);
    request.rig->done.wake_all();
  }
  void wait_for_all() {
    done.wait([&] {
      for (const auto& r : requests)
        if (r->ended == 0) return false;
      return true;
    });
  }
  template <class Body>
  void run(Body body) {
    world.spawn("test", [&] {
      body();
      wait_for_all();
    });
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
    for (const auto& r : requests) {
      EXPECT_EQ(r->ended, 1);
      EXPECT_EQ(r->bio.end_io, end_io);
      EXPECT_EQ(r->bio.owner, r.get());
    }
  }

  VirtualWorld world;
  SimDisk* disk = nullptr;
  std::unique_ptr<FaultInjector> injector;
  std::vector<std::unique_ptr<Request>> requests;
  std::vector<uint64_t> order;
  WaitQueue done;

 private:
  alignas(SimDisk) std::byte place_[sizeof(SimDisk)];
};

TEST(FaultInjector, WithoutFaultsItIsTheInnerDevice) {
  Rig rig({});
  rig.run([&] {
    rig.submit(BioOp::write, 7, 42);
    rig.wait_for_all();
    const auto& read = rig.submit(BioOp::read, 7);
    rig.wait_for_all();
    EXPECT_EQ(read.tag, 42u);
    EXPECT_EQ(read.bio.status, Errno::ok);
  });
  EXPECT_EQ(rig.injector->capacity(), rig.disk->capacity());
  EXPECT_STREQ(rig.injector->name(), rig.disk->name());
}

TEST(FaultInjector, AFailedWriteNeverReachesTheDevice) {
  Rig rig({.fail = {.times = 1, .probability = 100}, .fail_ops = {.read = false}});
  rig.run([&] {
    const auto& read = rig.submit(BioOp::read, 7);
    rig.wait_for_all();
    EXPECT_EQ(read.bio.status, Errno::ok);
    const auto& failed = rig.submit(BioOp::write, 7, 42);
    rig.wait_for_all();
    EXPECT_EQ(failed.bio.status, Errno::io);
    EXPECT_EQ(rig.disk->stored_tag(7), 0u);
    const auto& again = rig.submit(BioOp::write, 7, 42);
    rig.wait_for_all();
    EXPECT_EQ(again.bio.status, Errno::ok);
    EXPECT_EQ(rig.disk->stored_tag(7), 42u);
  });
  EXPECT_EQ(rig.injector->fault_stats().failed, 1u);
  EXPECT_EQ(rig.injector->stats().write_errors, 1u);
  EXPECT_EQ(rig.disk->stats().writes, 1u);
}

TEST(FaultInjector, DelayedRequestsEndLaterAndOutOfOrder) {
  Rig rig({.delay = {.probability = 50}, .shortest = 1_ms, .longest = 9_ms});
  rig.run([&] {
    for (uint64_t i = 0; i < 40; ++i) rig.submit(BioOp::read, i);
  });
  const FaultInjectorStats stats = rig.injector->fault_stats();
  EXPECT_GT(stats.delayed, 10u);
  EXPECT_EQ(stats.held, 0u);
  EXPECT_FALSE(std::is_sorted(rig.order.begin(), rig.order.end()));
  EXPECT_GT(rig.world.now(), 1_ms);
}

TEST(FaultInjector, ALateCompletionTellsOfWhatHasLongHappened) {
  Rig rig({.late = {.probability = 100}, .late_ops = {.read = false}, .shortest = 5_ms, .longest = 5_ms});
  rig.run([&] {
    const auto& write = rig.submit(BioOp::write, 7, 42);
    EXPECT_FALSE(rig.done.wait_timeout(4_ms, [&] { return write.ended != 0; }));
    EXPECT_EQ(rig.disk->stored_tag(7), 42u);
    rig.wait_for_all();
    EXPECT_EQ(write.bio.status, Errno::ok);
  });
  EXPECT_EQ(rig.injector->fault_stats().late, 1u);
}

TEST(FaultInjector, WhenAllPlacesAreTakenRequestsPass) {
  Rig rig({.delay = {.probability = 100}, .late = {.probability = 100}, .shortest = 5_ms, .longest = 5_ms});
  rig.run([&] {
    for (uint64_t i = 0; i < FaultInjector::MAX_HELD + 6; ++i) rig.submit(BioOp::read, i);
    EXPECT_EQ(rig.injector->fault_stats().not_held, 6u);
    EXPECT_EQ(rig.injector->fault_stats().held, FaultInjector::MAX_HELD);
  });
}

TEST(FaultInjector, TheSeedDecidesAll) {
  const auto trace = [](uint64_t seed) {
    Rig rig({.seed = seed, .fail = {.probability = 20}, .delay = {.probability = 40}, .late = {.probability = 40}});
    rig.run([&] {
      for (uint64_t i = 0; i < 50; ++i) rig.submit(i % 2 == 0 ? BioOp::read : BioOp::write, i);
    });
    std::string log;
    for (const auto& r : rig.requests)
      log += std::string(errno_name(r->bio.status)) + "@" + std::to_string(r->ended_at.v) + " ";
    return log;
  };
  EXPECT_EQ(trace(3), trace(3));
  EXPECT_NE(trace(3), trace(4));
}

/// A device that is done when it returns.
class InstantDevice final : public BlockDevice {
 public:
  [[nodiscard]] const char* name() const override { return "instant"; }
  [[nodiscard]] PageCount capacity() const override { return PageCount(8); }
  void submit_bio(Bio& bio) override { bio.end_io(bio); }
  [[nodiscard]] bool synchronous() const override { return true; }
  Result<void> rw_page(BioOp, uint64_t, Content) override { return ++served, Result<void>(); }
  int served = 0;
};

TEST(FaultInjector, SynchronousDevicesFailToo) {
  VirtualWorld world;
  InstantDevice instant;
  FaultInjector injector(world, instant,
                         {.fail = {.interval = 2, .probability = 100},
                          .error = Errno::nomem,
                          .delay = {.probability = 100},
                          .shortest = 3_us,
                          .longest = 3_us});
  ASSERT_TRUE(injector.synchronous());
  world.spawn("test", [&] {
    uint64_t tag = 0;
    EXPECT_EQ(injector.rw_page(BioOp::read, 0, {.tag = &tag}).error(), Errno::ok);
    EXPECT_EQ(injector.rw_page(BioOp::write, 0, {.tag = &tag}).error(), Errno::nomem);
    EXPECT_EQ(instant.served, 1);
    EXPECT_EQ(weir::world().now(), 3_us);
  });
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished);
}

}  // namespace
}  // namespace weir
