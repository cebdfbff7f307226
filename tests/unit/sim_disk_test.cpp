#include "block/sim_disk.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernel/virtual/virtual_world.hpp"

namespace weir {
namespace {

/// A disk in a world, and the requests that a test makes of it.
class Disk {
 public:
  explicit Disk(SimDiskOptions options, VirtualWorld::Options world_options = {}) : world(world_options) {
    if (options.capacity == PageCount(0)) options.capacity = PageCount(1000);
    disk = *SimDisk::create(place_, world, options);
  }
  ~Disk() { disk->~SimDisk(); }

  struct Request {
    Bio bio;
    alignas(8) std::byte bytes[PAGE_SIZE];
    uint64_t tag = 0;
    bool ended = false;
    Nanos submitted{}, ended_at{};
    Disk* disk = nullptr;
  };
  Request& submit(BioOp op, uint64_t page, uint64_t fill = 0, uint64_t sector_in_page = 0, uint32_t bytes = PAGE_SIZE) {
    requests.push_back(std::make_unique<Request>());
    Request& r = *requests.back();
    r.disk = this;
    r.tag = fill;
    std::memset(r.bytes, static_cast<int>(fill), PAGE_SIZE);
    r.bio = {.op = op, .sector = page * SECTORS_PER_PAGE + sector_in_page, .bytes = bytes, .owner = &r};
    r.bio.content = tags ? Content{.tag = &r.tag} : Content{.bytes = r.bytes};
    r.bio.end_io = [](Bio& bio) {
      auto& request = *static_cast<Request*>(bio.owner);
      ASSERT_FALSE(request.ended);
      request.ended = true;
      request.ended_at = request.disk->world.now();
      request.disk->order.push_back(bio.sector / SECTORS_PER_PAGE);
      request.disk->done.wake_all();
    };
    r.submitted = world.now();
    disk->submit_bio(r.bio);
    return r;
  }
  void wait_for_all() {
    done.wait([&] {
      for (const auto& r : requests)
        if (!r->ended) return false;
      return true;
    });
  }
  /// Runs `body` in a thread of the world.
  template <class Body>
  void run(Body body) {
    world.spawn("test", [&] {
      body();
      wait_for_all();
    });
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
  }

  VirtualWorld world;
  SimDisk* disk = nullptr;
  bool tags = false;
  std::vector<std::unique_ptr<Request>> requests;
  std::vector<uint64_t> order;  // pages, as their requests ended
  WaitQueue done;

 private:
  alignas(SimDisk) std::byte place_[sizeof(SimDisk)];
};

// 100 MB/s: a page takes 40.96 us of the channel.
constexpr SimDiskOptions PLAIN = {.read_latency = 100_us, .write_latency = 200_us, .megabytes_per_second = 100};

TEST(SimDisk, ARequestTakesItsTransferAndItsLatency) {
  Disk disk(PLAIN);
  disk.run([&] {
    const auto& read = disk.submit(BioOp::read, 3);
    disk.wait_for_all();
    EXPECT_EQ(read.ended_at - read.submitted, 100_us + Nanos(40960));
    const auto& write = disk.submit(BioOp::write, 3);
    disk.wait_for_all();
    EXPECT_EQ(write.ended_at - write.submitted, 200_us + Nanos(40960));
  });
}

// A part of a page moves alone, and takes its share of the channel.
TEST(SimDisk, PartsOfPagesAreServedInSectors) {
  Disk disk(PLAIN);
  disk.run([&] {
    disk.submit(BioOp::write, 3, 0xaa);
    disk.wait_for_all();
    const auto& part = disk.submit(BioOp::write, 3, 0xbb, 2, 1024);
    disk.wait_for_all();
    EXPECT_EQ(part.ended_at - part.submitted, 200_us + Nanos(40960 / 4));
    const auto& whole = disk.submit(BioOp::read, 3);
    const auto& sector = disk.submit(BioOp::read, 3, 0x11, 3, 512);
    disk.wait_for_all();
    for (size_t i = 0; i < PAGE_SIZE; ++i)
      ASSERT_EQ(whole.bytes[i], i >= 1024 && i < 2048 ? std::byte{0xbb} : std::byte{0xaa}) << i;
    EXPECT_EQ(sector.bytes[511], std::byte{0xbb});
    EXPECT_EQ(sector.bytes[512], std::byte{0x11}) << "not asked for";
    // No whole sectors, or over the page's end.
    for (const auto& [at, bytes] : {std::pair<uint64_t, uint32_t>{0, 0}, {0, 100}, {7, 1024}, {0, 8192}}) {
      const auto& refused = disk.submit(BioOp::read, 3, 0, at, bytes);
      disk.wait_for_all();
      EXPECT_EQ(refused.bio.status, Errno::io) << at << " " << bytes;
    }
    EXPECT_EQ(disk.disk->logical_block_size(), 512u);
  });
}

TEST(SimDisk, BandwidthBoundsManyRequestsAtOnce) {
  Disk disk(PLAIN);
  disk.run([&] {
    for (uint64_t i = 0; i < 32; ++i) disk.submit(BioOp::read, i);
    disk.wait_for_all();
    EXPECT_EQ(disk.world.now(), 100_us + Nanos(40960) * 32);
  });
}

TEST(SimDisk, QueueDepthBoundsWhatIsServedAtOnce) {
  SimDiskOptions options = PLAIN;
  options.megabytes_per_second = 1000000;  // 4 ns a page
  options.queue_depth = 4;
  Disk disk(options);
  disk.run([&] {
    for (uint64_t i = 0; i < 12; ++i) disk.submit(BioOp::read, i);
    EXPECT_EQ(disk.disk->sim_stats().in_service, 4u);
    EXPECT_EQ(disk.disk->sim_stats().waiting, 8u);
    disk.wait_for_all();
    EXPECT_GE(disk.world.now(), 300_us);
    EXPECT_LT(disk.world.now(), 301_us);
    EXPECT_EQ(disk.disk->sim_stats().max_queued, 12u);
  });
}

TEST(SimDisk, AFastReadPassesASlowWrite) {
  Disk disk(PLAIN);
  disk.run([&] {
    disk.submit(BioOp::write, 1);
    disk.submit(BioOp::read, 2);
  });
  EXPECT_EQ(disk.order, (std::vector<uint64_t>{2, 1}));
}

TEST(SimDisk, ItIsCongestedAboveTheLimit) {
  SimDiskOptions options = PLAIN;
  options.congested_above = 5;
  options.queue_depth = 2;
  Disk disk(options);
  disk.run([&] {
    for (uint64_t i = 0; i < 5; ++i) disk.submit(BioOp::write, i);
    EXPECT_FALSE(disk.disk->congested());
    disk.submit(BioOp::write, 5);
    EXPECT_TRUE(disk.disk->congested());
    disk.wait_for_all();
    EXPECT_FALSE(disk.disk->congested());
  });
}

TEST(SimDisk, ATurningDiskServesInTheDirectionOfTravelAndSeeksOnlyForJumps) {
  SimDiskOptions options = PLAIN;
  options.motion = DiskMotion::rotational;
  Disk disk(options);
  disk.run([&] {
    for (uint64_t page : {500, 10, 900, 501, 200, 11}) disk.submit(BioOp::read, page);
  });
  // The first starts at once; from 501 on upwards, then from the start again.
  EXPECT_EQ(disk.order, (std::vector<uint64_t>{500, 501, 900, 10, 11, 200}));
  EXPECT_EQ(disk.disk->sim_stats().seeks, 4u);
  EXPECT_FALSE(disk.disk->nonrotational());
}

TEST(SimDisk, RandomSeeksTakeTheAverageThatTheOptionsSay) {
  SimDiskOptions options = PLAIN;
  options.motion = DiskMotion::rotational;
  options.read_latency = Nanos(0);
  options.megabytes_per_second = 1000000;
  options.seek = 10_ms;
  Disk disk(options);
  std::mt19937_64 random(1);
  disk.run([&] {
    for (int i = 0; i < 2000; ++i) {
      disk.submit(BioOp::read, random() % 1000);
      disk.wait_for_all();
      disk.requests.clear();
    }
  });
  EXPECT_NEAR(static_cast<double>(disk.world.now().v) / 2000, 10e6, 0.3e6);
}

TEST(SimDisk, WhatWasWrittenIsRead) {
  for (bool tags : {false, true}) {
    SimDiskOptions options = PLAIN;
    options.content = tags ? ContentKind::tags : ContentKind::bytes;
    Disk disk(options);
    disk.tags = tags;
    std::mt19937_64 random(2);
    std::map<uint64_t, uint64_t> model;
    disk.run([&] {
      for (int step = 0; step < 2000; ++step) {
        const uint64_t page = random() % 100;
        switch (random() % 5) {
          case 0: {
            disk.submit(BioOp::discard, page);
            disk.wait_for_all();
            model.erase(page);
            break;
          }
          case 1:
          case 2: {
            const uint64_t fill = random() % 256;
            disk.submit(BioOp::write, page, fill);
            disk.wait_for_all();
            model[page] = fill;
            break;
          }
          default: {
            const auto& read = disk.submit(BioOp::read, page, 0x77);
            disk.wait_for_all();
            const uint64_t expected = model.contains(page) ? model[page] : 0;
            if (tags) {
              ASSERT_EQ(read.tag, expected);
              ASSERT_EQ(disk.disk->stored_tag(page), expected);
            } else {
              for (std::byte b : read.bytes) ASSERT_EQ(static_cast<uint64_t>(b), expected);
            }
          }
        }
        disk.requests.clear();
      }
    });
  }
}

TEST(SimDisk, ALongDiscardClearsExactlyItsPages) {
  SimDiskOptions options = PLAIN;
  options.content = ContentKind::tags;
  options.capacity = PageCount(4000);
  Disk disk(options);
  disk.tags = true;
  disk.run([&] {
    for (uint64_t page = 0; page < 4000; ++page) disk.submit(BioOp::write, page, page + 1);
    disk.wait_for_all();
    disk.submit(BioOp::discard, 100);
    disk.wait_for_all();
    EXPECT_EQ(disk.disk->stored_tag(100), 0u);
    Disk::Request wide;
    wide.disk = &disk;
    wide.bio = {.op = BioOp::discard, .sector = 301 * SECTORS_PER_PAGE, .pages = 3000, .owner = &wide};
    wide.bio.end_io = [](Bio& bio) {
      auto& request = *static_cast<Disk::Request*>(bio.owner);
      request.ended = true;
      request.disk->done.wake_all();
    };
    disk.disk->submit_bio(wide.bio);
    disk.done.wait([&] { return wide.ended; });
    EXPECT_EQ(wide.bio.status, Errno::ok);
    for (uint64_t page = 0; page < 4000; ++page)
      ASSERT_EQ(disk.disk->stored_tag(page), page == 100 || (page >= 301 && page < 3301) ? 0 : page + 1) << page;
  });
}

TEST(SimDisk, BehindTheEndIsAnIoError) {
  Disk disk(PLAIN);
  disk.run([&] {
    const auto& read = disk.submit(BioOp::read, 1000);
    const auto& write = disk.submit(BioOp::write, ~uint64_t{0} / SECTORS_PER_PAGE);
    disk.wait_for_all();
    EXPECT_EQ(read.bio.status, Errno::io);
    EXPECT_EQ(write.bio.status, Errno::io);
    EXPECT_EQ(disk.disk->stats().read_errors, 1u);
    EXPECT_EQ(disk.disk->stats().write_errors, 1u);
  });
}

/// Requests a second: 256 reads at once, in order or anywhere.
double reads_a_second(const DiskPreset& kind, bool random) {
  Disk d({.capacity = PageCount(100'000),
          .read_latency = kind.read_latency,
          .write_latency = kind.write_latency,
          .megabytes_per_second = kind.megabytes_per_second,
          .queue_depth = kind.queue_depth,
          .motion = kind.motion,
          .seek = kind.seek});
  std::mt19937_64 rng(1);
  d.run([&] {
    for (uint64_t i = 0; i < 256; ++i) {
      d.submit(BioOp::read, random ? rng() % 100'000 : i);
      // Random ones come one by one: a queue would put them in order.
      if (random && kind.motion == DiskMotion::rotational) d.wait_for_all();
    }
  });
  return 256 / (static_cast<double>(d.world.now().v) / 1e9);
}

TEST(SimDisk, DisksOfAKindDoWhatTheirKindDoes) {
  const auto kind = [](std::string_view name) {
    return *std::find_if(std::begin(DISK_PRESETS), std::end(DISK_PRESETS),
                         [&](const DiskPreset& p) { return name == p.name; });
  };
  const double spinning = reads_a_second(kind("spinning"), true), ssd = reads_a_second(kind("ssd"), true),
               nvme = reads_a_second(kind("nvme"), true);
  std::printf("random reads a second: spinning %.0f, ssd %.0f, nvme %.0f\n", spinning, ssd, nvme);
  EXPECT_NEAR(spinning, 1000 / (8 + 4.17), 10);
  EXPECT_GT(ssd, 80'000);
  EXPECT_GT(nvme, 400'000);
  EXPECT_GT(reads_a_second(kind("spinning"), false), 30'000) << "in order it does not seek";
}

TEST(SimDisk, OptionsOutOfRangeAreRefused) {
  VirtualWorld world;
  alignas(SimDisk) std::byte place[sizeof(SimDisk)];
  EXPECT_EQ(SimDisk::create(place, world, {}).error(), Errno::inval);
  EXPECT_EQ(SimDisk::create(place, world, {.capacity = PageCount(1), .queue_depth = 65}).error(), Errno::inval);
  EXPECT_EQ(SimDisk::create(place, world, {.capacity = PageCount(1), .megabytes_per_second = 0}).error(), Errno::inval);
}

TEST(SimDisk, TheSameSeedGivesTheSameTimes) {
  const auto ends = [](uint64_t seed) {
    SimDiskOptions options = PLAIN;
    options.queue_depth = 3;
    Disk disk(options, {.seed = seed, .cpus = 2, .preempt_one_in = 4});
    std::string log;
    for (int t = 0; t < 3; ++t) {
      disk.world.spawn("user", [&, t] {
        std::mt19937_64 random(t);
        for (int i = 0; i < 20; ++i) {
          disk.submit(random() % 2 == 0 ? BioOp::read : BioOp::write, random() % 1000);
          weir::world().spend(Nanos(random() % 50000));
          disk.wait_for_all();
        }
      });
    }
    EXPECT_EQ(disk.world.run(), VirtualWorld::RunState::finished);
    for (const auto& r : disk.requests)
      log += std::to_string(r->submitted.v) + "-" + std::to_string(r->ended_at.v) + " ";
    return log;
  };
  EXPECT_EQ(ends(1), ends(1));
  EXPECT_EQ(ends(2), ends(2));
}

}  // namespace
}  // namespace weir
