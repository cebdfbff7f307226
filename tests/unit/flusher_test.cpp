// When dirty pages go to the device by themselves, and what holds writers back.
#include "mm/flusher.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "kernel/freezer.hpp"
#include "support/file_fixture.hpp"

namespace weir {
namespace {

using test::FileWorld;
using test::FileWorldOptions;
using test::FlowLog;

constexpr uint64_t MiB = 1 << 20;

void write_pages(FileWorld& w, Inode& inode, uint64_t first, uint64_t pages) {
  File* file = *w.m.files.open(inode);
  const std::vector<std::byte> data(PAGE_SIZE, std::byte{0x5a});
  for (uint64_t i = first; i < first + pages; ++i)
    EXPECT_TRUE(w.m.files.write(*file, i * PAGE_SIZE, data.data(), PAGE_SIZE));
  w.m.files.close(*file);
}

class FlusherTest : public testing::Test {
 protected:
  int64_t nr_dirty() { return w.m.gauge(NodeStat::nr_dirty); }
  FileWorld w{{.flusher = true}};
};

/// Three pages are written to a file at an odd time: they are on the disk 30 seconds later at the earliest.
Inode* expect_written_when_old(FileWorld& w, Nanos latest) {
  Inode* inode = w.make_file(Bytes(0));
  w.run_for(103200_ms);
  const Nanos begin = w.world.now();
  w.run([&] { write_pages(w, *inode, 0, 3); });
  while (w.writes() == 0 && w.world.now() - begin < 60_s) w.run_for(100_ms);
  EXPECT_GE(w.world.now() - begin, 30_s);
  w.world.run_until(begin + latest);
  EXPECT_EQ(w.writes(), 3u);
  EXPECT_EQ(w.m.gauge(NodeStat::nr_dirty), 0);
  EXPECT_EQ(w.m.flusher.dirty_inodes(), 0u);
  return inode;
}

TEST_F(FlusherTest, ADirtyPageIsOnTheDiskWithin35SecondsAndNotBefore30) {
  Inode* inode = expect_written_when_old(w, 35_s);
  EXPECT_EQ(w.on_disk(*inode, 2)[0], std::byte{0x5a});
}

TEST_F(FlusherTest, AFileWrittenToAllTheTimeIsWrittenOutAllTheSame) {
  Inode* inode = w.make_file(Bytes(0));
  w.run([&] {
    for (uint64_t i = 0; i < 100; ++i) {
      write_pages(w, *inode, i, 1);
      w.world.schedule_timeout(1_s);
    }
  });
  // What was written in the first 65 s has been dirty for 35 at least.
  for (uint64_t i = 0; i < 65; ++i) EXPECT_EQ(w.on_disk(*inode, i)[0], std::byte{0x5a}) << i;
}

TEST_F(FlusherTest, WithoutDirtyPagesTheMachineSleeps) {
  w.run_for(1_s);
  const uint64_t switches = w.world.switches();
  w.run_for(1000_s);
  EXPECT_EQ(w.world.switches(), switches);
  Inode* inode = w.make_file(Bytes(0));
  w.run([&] { write_pages(w, *inode, 0, 1); });
  w.run_for(100_s);
  const uint64_t after = w.world.switches();
  w.run_for(1000_s);
  EXPECT_EQ(w.world.switches(), after) << "the page is written, the flusher asleep again";
}

TEST(Flusher, OverTheBackgroundLimitWritingBeginsAtOnceAndEndsBelowIt) {
  FileWorld w({.ram = 128_MiB, .flusher = true});
  Inode* inode = w.make_file(Bytes(0));
  int64_t background = 0;
  w.run([&] {
    background = w.m.writeback.global_dirty_limits().background.v;
    write_pages(w, *inode, 0, static_cast<uint64_t>(background) + 64);
  });
  w.run_for(1_s);
  EXPECT_GT(w.writes(), 0u);
  EXPECT_LE(w.writes(), static_cast<uint64_t>(2 * WRITEBACK_CHUNK)) << "no further than needed";
  w.run([&] { EXPECT_LE(w.m.gauge(NodeStat::nr_dirty), w.m.writeback.global_dirty_limits().background.v); });
  EXPECT_GT(w.m.gauge(NodeStat::nr_dirty), background / 4);
}

TEST_F(FlusherTest, AskedForEverythingItWritesEverythingAtOnce) {
  Inode* first = w.make_file(Bytes(0), 1_MiB);
  Inode* second = w.make_file(Bytes(0), 1_MiB);
  FlowLog log;
  w.world.set_sink(&log);
  w.run([&] {
    write_pages(w, *first, 0, 10);
    write_pages(w, *second, 0, 5);
    w.m.flusher.wakeup(WB_REASON_VMSCAN);
  });
  w.run_for(100_ms);
  w.world.set_sink(nullptr);
  EXPECT_EQ(w.writes(), 15u);
  EXPECT_EQ(nr_dirty(), 0);
  const auto starts = log.states(State::writeback_start);
  ASSERT_EQ(starts.size(), 1u);
  EXPECT_EQ(starts[0].a, static_cast<uint64_t>(WB_REASON_VMSCAN));
  EXPECT_EQ(starts[0].c, 15u);
  EXPECT_EQ(w.m.event(VmEvent::flusher_wakeup), 1u);
}

TEST(Flusher, ALargeFileDoesNotKeepASmallOneWaiting) {
  FileWorld w({.ram = 64_MiB, .flusher = true});
  Inode* large = w.make_file(Bytes(0));
  Inode* small = w.make_file(Bytes(0));
  FlowLog log;
  w.run([&] {
    write_pages(w, *large, 0, 1100);
    write_pages(w, *small, 0, 1);
    w.world.set_sink(&log);
    w.m.flusher.wakeup(WB_REASON_SYNC);
  });
  w.run_for(2_s);
  w.world.set_sink(nullptr);
  std::vector<uint64_t> inodes;
  for (const FlowLog::Entry& e : log.calls("writeback_single_inode")) inodes.push_back(e.a);
  EXPECT_EQ(inodes, (std::vector<uint64_t>{large->ino, small->ino, large->ino}))
      << "1024 pages, then the next one's turn";
  EXPECT_EQ(w.m.gauge(NodeStat::nr_dirty), 0);
}

TEST_F(FlusherTest, PagesThatTheDeviceRefusedAreTriedAgainLater) {
  Inode* inode = w.make_file(Bytes(0));
  w.run([&] { write_pages(w, *inode, 0, 3); });
  w.fail_all();
  w.run_for(36_s);
  EXPECT_EQ(w.writes(), 0u);
  EXPECT_EQ(nr_dirty(), 3);
  EXPECT_EQ(w.m.flusher.dirty_inodes(), 1u);
  w.fail_none();
  w.run_for(36_s);
  EXPECT_EQ(w.writes(), 3u);
  EXPECT_EQ(nr_dirty(), 0);
  w.run([&] {
    File* file = *w.m.files.open(*inode);
    EXPECT_TRUE(w.m.files.fsync(*file));
    w.m.files.close(*file);
  });
}

TEST_F(FlusherTest, AnErrorOfTheFlusherIsReportedByFsync) {
  Inode* inode = w.make_file(Bytes(0));
  File* file = nullptr;
  w.run([&] {
    file = *w.m.files.open(*inode);
    write_pages(w, *inode, 0, 1);
    w.fail_all();
    w.m.flusher.wakeup(WB_REASON_SYNC);
  });
  w.run_for(1_s);
  w.fail_none();
  w.run([&] {
    EXPECT_EQ(w.m.files.fsync(*file).error(), Errno::io);
    EXPECT_TRUE(w.m.files.fsync(*file));
    w.m.files.close(*file);
  });
}

TEST_F(FlusherTest, ADeviceThatTakesNothingIsNotAskedWithoutEnd) {
  Inode* inode = w.make_file(Bytes(0));
  w.fail_all();
  Task task;
  w.spawn(
      "writer",
      [&] {
        task.thread = &current();
        File* file = *w.m.files.open(*inode);
        const std::vector<std::byte> data(PAGE_SIZE);
        uint64_t at = 0;
        while (w.m.files.write(*file, at, data.data(), PAGE_SIZE)) at += PAGE_SIZE;
        EXPECT_LE(nr_dirty(), w.m.writeback.global_dirty_limits().dirty.v + DIRTY_RATELIMIT_PAGES);
        w.m.files.close(*file);
      },
      &task);
  w.run_for(60_s);
  EXPECT_GT(w.m.event(VmEvent::balance_dirty_pause), 100u) << "the writer is held";
  const uint64_t tried = w.faulty->fault_stats().failed;
  w.run_for(10_s);
  EXPECT_LT(w.faulty->fault_stats().failed - tried, 100u * 1100u) << "ten rounds a second at most";
  task.sigkill = true;
  w.world.wake(*task.thread);
  w.run();
  w.fail_none();
}

TEST_F(FlusherTest, StoppedWhileItWritesItEndsAndLeavesTheRestDirty) {
  Inode* inode = w.make_file(Bytes(0));
  w.run([&] {
    write_pages(w, *inode, 0, 200);
    w.m.flusher.wakeup(WB_REASON_SYNC);
    w.world.schedule_timeout(100_us);
    w.m.flusher.stop();
    EXPECT_FALSE(w.m.flusher.has_thread());
    EXPECT_LE(w.m.gauge(NodeStat::nr_dirty) + w.m.gauge(NodeStat::nr_writeback), 200);
    w.m.flusher.start(w.world);
    w.m.flusher.wakeup(WB_REASON_SYNC);
    w.world.schedule_timeout(100_ms);
    EXPECT_EQ(nr_dirty(), 0);
  });
}

TEST_F(FlusherTest, FrozenItWritesNothing) {
  Inode* inode = w.make_file(Bytes(0));
  w.run([&] {
    write_pages(w, *inode, 0, 3);
    freeze_processes(w.world);
  });
  w.run_for(60_s);
  EXPECT_EQ(w.writes(), 0u);
  w.run([&] { thaw_processes(w.world); });
  w.run_for(1_s);
  EXPECT_EQ(w.writes(), 3u);
}

TEST_F(FlusherTest, AnInodeThatGoesWhileItIsWrittenIsWaitedFor) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FileWorld v({.seed = seed, .preempt_one_in = 3, .cpus = 2, .flusher = true});
    for (int t = 0; t < 3; ++t)
      v.spawn("task", [&, t] {
        for (int i = 0; i < 4; ++i) {
          Inode* inode = *v.m.files.create_inode("short", *v.faulty, static_cast<uint64_t>(t) * 100, Bytes(0), 256_KiB);
          write_pages(v, *inode, 0, 20);
          v.m.flusher.wakeup(WB_REASON_SYNC);
          v.world.schedule_timeout(Nanos(seed * 1000 % 50000));
          v.m.files.iput(*inode);
        }
      });
    v.run();
    EXPECT_EQ(v.m.flusher.dirty_inodes(), 0u);
    EXPECT_EQ(v.writes(), 3u * 4 * 20);
  }
}

TEST_F(FlusherTest, AnInodeInTheFlushersHandsIsNotForgottenUntilItLetsGo) {
  Inode* inode = w.make_file(Bytes(0));
  Nanos forgotten{};
  w.run([&] {
    write_pages(w, *inode, 0, 3);
    Page* page = w.m.filemap.find_lock_page(inode->i_data, 1);
    w.m.flusher.wakeup(WB_REASON_SYNC);
    w.world.schedule_timeout(1_ms);  // it waits for the page now
    w.spawn("forgetter", [&] {
      w.m.flusher.forget_inode(*inode);
      forgotten = w.world.now();
    });
    w.world.schedule_timeout(5_ms);
    EXPECT_EQ(forgotten, 0_ns);
    w.m.filemap.unlock_page(*page);
    w.m.lru.put_page(*page);
  });
  EXPECT_GT(forgotten, 0_ns);
}

TEST_F(FlusherTest, WhatIsDirtiedWhileItsFileIsWrittenIsAsYoungAsThat) {
  Inode* inode = w.make_file(Bytes(0));
  w.run([&] {
    write_pages(w, *inode, 0, 2);
    w.world.schedule_timeout(20_s);
    Page* page = w.m.filemap.find_lock_page(inode->i_data, 1);
    w.m.flusher.wakeup(WB_REASON_SYNC);
    w.world.schedule_timeout(1_ms);
    EXPECT_EQ(w.writes(), 1u);
    w.spawn("writer", [&] { write_pages(w, *inode, 0, 1); });
    w.world.schedule_timeout(1_ms);
    w.m.filemap.unlock_page(*page);
    w.m.lru.put_page(*page);
  });
  w.run_for(29_s);
  EXPECT_EQ(w.writes(), 2u);
  w.run_for(7_s);
  EXPECT_EQ(w.writes(), 3u);
}

TEST_F(FlusherTest, NoDirtyPageIsForgottenByARace) {
  // Writers dirty pages while the flusher takes the same inodes off its list.
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FileWorld v({.seed = seed, .preempt_one_in = 3, .cpus = 2, .flusher = true});
    Inode* inode = v.make_file(Bytes(0));
    for (uint64_t t = 0; t < 2; ++t)
      v.spawn("writer", [&, t] {
        for (uint64_t i = 0; i < 30; ++i) {
          write_pages(v, *inode, i * 2 + t, 1);
          if (i % 4 == 0) v.m.flusher.wakeup(WB_REASON_SYNC);
          v.world.schedule_timeout(Nanos(1000 + seed * 997 % 20000));
        }
      });
    v.run();
    EXPECT_EQ(v.m.gauge(NodeStat::nr_dirty) > 0, v.m.flusher.dirty_inodes() > 0);
    v.run_for(36_s);
    EXPECT_EQ(v.m.gauge(NodeStat::nr_dirty), 0);
    EXPECT_EQ(v.m.flusher.dirty_inodes(), 0u);
  }
}

// ---- Throttling, with a real device behind it

/// Writers against a disk; what was dirty at most, in pages above the limit.
struct Throttled {
  int64_t most_over = INT64_MIN;
  Nanos time{};
  uint64_t pauses = 0;
};
Throttled throttle(unsigned writers, uint64_t megabytes_per_second, uint64_t pages_each,
                   KernelEra kernel = KernelEra::linux_4_14) {
  FileWorldOptions options{.ram = 32_MiB, .flusher = true, .kernel = kernel};
  options.disk = {.name = "slow", .capacity = PageCount(1 << 18), .megabytes_per_second = megabytes_per_second};
  FileWorld w(options);
  std::vector<Inode*> inodes;
  for (unsigned i = 0; i < writers; ++i) inodes.push_back(w.make_file(Bytes(0), Bytes(pages_each * PAGE_SIZE)));
  Throttled result;
  std::vector<Task> tasks(writers);
  const Nanos begin = w.world.now();
  for (unsigned t = 0; t < writers; ++t)
    w.spawn(
        "writer",
        [&, t] {
          File* file = *w.m.files.open(*inodes[t]);
          const std::vector<std::byte> data(PAGE_SIZE);
          for (uint64_t i = 0; i < pages_each; ++i) {
            EXPECT_TRUE(w.m.files.write(*file, i * PAGE_SIZE, data.data(), PAGE_SIZE));
            w.world.spend(2_us);  // what copying a page costs
            const int64_t dirty = w.m.gauge(NodeStat::nr_dirty) + w.m.gauge(NodeStat::nr_writeback);
            result.most_over = std::max(result.most_over, dirty - w.m.writeback.global_dirty_limits().dirty.v);
            // There is no reclaim here: what is clean goes.
            if (i % 64 == 0)
              for (Inode* inode : inodes) w.m.files.invalidate(*inode);
          }
          w.m.files.close(*file);
        },
        &tasks[t]);
  w.run();
  result.time = w.world.now() - begin;
  result.pauses = w.m.event(VmEvent::balance_dirty_pause);
  return result;
}

TEST(DirtyThrottle, DirtyIsNeverAboveTheLimitByMoreThanABatch) {
  for (const KernelEra kernel : {KernelEra::linux_2_6_20, KernelEra::linux_3, KernelEra::linux_4_14}) {
    for (unsigned writers : {1u, 2u, 5u}) {
      const Throttled t = throttle(writers, 40, 8000 / writers, kernel);
      std::printf("kernel %s, %u writers: at most %ld pages above the limit, %lu pauses, %.2f s\n",
                  profile_of(kernel).name, writers, t.most_over, t.pauses, static_cast<double>(t.time.v) / 1e9);
      EXPECT_LE(t.most_over, static_cast<int64_t>(writers * DIRTY_RATELIMIT_PAGES));
      // In 2.6.20 a writer that has written its share goes on.
      if (kernel != KernelEra::linux_2_6_20) {
        EXPECT_GT(t.pauses, 0u);
      }
    }
  }
}

TEST(DirtyThrottle, WritersGetTheDevicesSpeedAndNotLess) {
  // 8000 pages at 40 MB/s take 0.82 s. About 1500 of them may be dirty in the end.
  const Throttled t = throttle(1, 40, 8000);
  const double device_seconds = 8000.0 * 4096 / 40e6;
  EXPECT_LT(static_cast<double>(t.time.v) / 1e9, device_seconds * 1.25);
  EXPECT_GT(static_cast<double>(t.time.v) / 1e9, device_seconds * 0.6);
}

TEST(DirtyThrottle, AWriterThatTheDeviceKeepsUpWithNeverPauses) {
  FileWorld w({.ram = 32_MiB, .flusher = true});
  Inode* inode = w.make_file(Bytes(0));
  Task task;
  w.spawn(
      "writer",
      [&] {
        for (uint64_t i = 0; i < 4000; ++i) {
          write_pages(w, *inode, i, 1);
          w.world.spend(50_us);  // 80 MB/s, a sixth of what the disk takes
          if (i % 64 == 0) w.m.files.invalidate(*inode);
        }
      },
      &task);
  w.run();
  EXPECT_EQ(w.m.event(VmEvent::balance_dirty_pause), 0u);
}

TEST(DirtyThrottle, ItHoldsInAnySchedule) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FileWorldOptions options{.seed = seed, .preempt_one_in = 20, .cpus = 4, .ram = 16_MiB, .flusher = true};
    options.disk = {.name = "slow", .capacity = PageCount(1 << 18), .megabytes_per_second = 20};
    FileWorld w(options);
    std::vector<Inode*> inodes;
    std::vector<Task> tasks(4);
    for (int i = 0; i < 4; ++i) inodes.push_back(w.make_file(Bytes(0), Bytes(4 * MiB)));
    int64_t most_over = INT64_MIN;
    for (unsigned t = 0; t < 4; ++t)
      w.spawn(
          "writer",
          [&, t] {
            for (uint64_t i = 0; i < 400; ++i) {
              write_pages(w, *inodes[t], i, 1);
              const int64_t dirty = w.m.gauge(NodeStat::nr_dirty) + w.m.gauge(NodeStat::nr_writeback);
              most_over = std::max(most_over, dirty - w.m.writeback.global_dirty_limits().dirty.v);
              if (i % 16 == 0) w.m.files.invalidate(*inodes[t]);
            }
          },
          &tasks[t]);
    w.run();
    EXPECT_LE(most_over, static_cast<int64_t>(4 * DIRTY_RATELIMIT_PAGES));
    EXPECT_GT(w.m.event(VmEvent::balance_dirty_pause), 0u);
  }
}

// ---- Two devices

/// What writers on a fast disk and, perhaps, on a slow one have written in `seconds`, in pages, once the estimates have
/// had 15 s to settle.
struct Written {
  uint64_t fast = 0, slow = 0;
};
Written write_on_two_disks(KernelEra kernel, bool slow_too, uint64_t seconds) {
  FileWorld w({.ram = 32_MiB,
               .flusher = true,
               .bio_pool = 512,
               .kernel = kernel,
               .disk = {.name = "fast", .capacity = PageCount(1 << 16), .megabytes_per_second = 50}});
  alignas(SimDisk) std::byte place[sizeof(SimDisk)];
  SimDisk* slow = *SimDisk::create(
      place, w.world, {.name = "slow", .capacity = PageCount(1 << 16), .megabytes_per_second = 1, .queue_depth = 1});
  Inode* fast_file = w.make_file(Bytes(0));
  Inode* slow_file = nullptr;
  w.run([&] { slow_file = *w.m.files.create_inode("slow", *slow, 0, Bytes(0), 64_MiB); });
  const Nanos begin = w.world.now() + 15_s, end = begin + Nanos(seconds * 1'000'000'000);
  Written written;
  std::vector<Task> tasks(2);
  const auto writer = [&](Inode& inode, uint64_t& count) {
    File* file = *w.m.files.open(inode);
    const std::vector<std::byte> data(PAGE_SIZE);
    for (uint64_t i = 0; w.world.now() < end; ++i) {
      EXPECT_TRUE(w.m.files.write(*file, i % (1 << 14) * PAGE_SIZE, data.data(), PAGE_SIZE));
      if (w.world.now() >= begin) ++count;
      w.world.spend(20_us);
      if (i % 64 == 0) w.m.files.invalidate(inode);
    }
    w.m.files.close(*file);
  };
  w.spawn(
      "fast", [&] { writer(*fast_file, written.fast); }, &tasks[0]);
  if (slow_too)
    w.spawn(
        "slow", [&] { writer(*slow_file, written.slow); }, &tasks[1]);
  w.run();
  w.run([&] {
    w.m.files.iput(*slow_file);
    w.m.files.iput(*fast_file);
    w.m.flusher.stop();
  });
  w.forget(fast_file);
  while (slow->sim_stats().in_service != 0) w.run_for(1_s);
  slow->~SimDisk();
  return written;
}

TEST(PerDevice, ASlowDeviceSlowsOnlyItsWriter) {
  constexpr KernelEra KERNEL = KernelEra::linux_4_14;
  constexpr uint64_t SECONDS = 10;
  const Written alone = write_on_two_disks(KERNEL, false, SECONDS), both = write_on_two_disks(KERNEL, true, SECONDS);
  std::printf("in %lu s %lu pages alone on the fast disk; beside a slow one %lu, and %lu there\n", SECONDS, alone.fast,
              both.fast, both.slow);
  EXPECT_GT(both.fast, alone.fast * 7 / 10);
  // 1 MB/s at most; less while what was dirtied before goes out.
  EXPECT_LT(both.slow, SECONDS * 1'200'000 / PAGE_SIZE);
  EXPECT_GT(both.slow, SECONDS * 1'000'000 / PAGE_SIZE / 3);
}

// ---- 2.6.20

TEST(Pdflush, DirtyPagesAreOnTheDiskWithin35SecondsAndNotBefore30) {
  FileWorld w({.flusher = true, .kernel = KernelEra::linux_2_6_20});
  expect_written_when_old(w, 36_s);
  const uint64_t after = w.world.switches();
  w.run_for(1000_s);
  EXPECT_LE(w.world.switches() - after, 20u) << "asleep";
}

TEST(Pdflush, TheWriterItselfWritesAboveTheLimit) {
  FileWorldOptions options{.ram = 16_MiB, .kernel = KernelEra::linux_2_6_20};  // no threads at all
  FileWorld w(options);
  Inode* inode = w.make_file(Bytes(0));
  Task task;
  w.spawn(
      "writer",
      [&] {
        const auto limit = static_cast<uint64_t>(w.m.writeback.global_dirty_limits().dirty.v);
        for (uint64_t i = 0; i < limit; ++i) write_pages(w, *inode, i, 1);
        EXPECT_EQ(w.writes(), 0u);
        write_pages(w, *inode, limit, 100);
      },
      &task);
  w.run();
  w.run_for(1_s);
  EXPECT_GE(w.writes(), 48u);
  EXPECT_LE(w.writes(), 48u * 13);
}

TEST(Pdflush, OneThreadMoreWhenAllAreBusyForASecondOneLessWhenOneHasNothingToDoForAsLong) {
  FileWorld w({.ram = 64_MiB, .flusher = true, .kernel = KernelEra::linux_2_6_20});
  constexpr unsigned DISKS = 10;
  std::vector<std::unique_ptr<std::byte[]>> places;
  std::vector<SimDisk*> disks;
  std::vector<Inode*> files;
  for (unsigned i = 0; i < DISKS; ++i) {
    places.push_back(std::make_unique<std::byte[]>(sizeof(SimDisk) + alignof(SimDisk)));
    void* at = places.back().get();
    size_t room = sizeof(SimDisk) + alignof(SimDisk);
    std::align(alignof(SimDisk), sizeof(SimDisk), at, room);
    disks.push_back(*SimDisk::create(at, w.world,
                                     {.name = "slow",
                                      .capacity = PageCount(1 << 12),
                                      .write_latency = 50_ms,
                                      .queue_depth = 1,
                                      .congested_above = 1}));
    w.run([&] { files.push_back(*w.m.files.create_inode("f", *disks[i], 0, Bytes(0), 4_MiB)); });
  }
  EXPECT_EQ(w.m.flusher.nr_threads(), Flusher::MIN_PDFLUSH_THREADS);
  w.run([&] {
    for (Inode* file : files) write_pages(w, *file, 0, 60);
  });
  const Nanos begin = w.world.now();
  unsigned most = 0;
  while (w.world.now() - begin < 12_s) {
    w.run([&] { w.m.flusher.wakeup(WB_REASON_SYNC); });
    w.run_for(100_ms);
    const unsigned threads = w.m.flusher.nr_threads();
    most = std::max(most, threads);
    ASSERT_LE(threads, Flusher::MIN_PDFLUSH_THREADS + (w.world.now() - begin).v / 1'000'000'000 + 1);
  }
  std::printf("pdflush: at most %u threads\n", most);
  EXPECT_GT(most, Flusher::MIN_PDFLUSH_THREADS);
  EXPECT_LE(most, Flusher::MAX_PDFLUSH_THREADS);
  // All is written; now and then there is a little to do.
  w.run_for(60_s);
  EXPECT_EQ(w.m.gauge(NodeStat::nr_dirty), 0);
  for (int i = 0; i < 100; ++i) {
    w.run([&] { w.m.flusher.wakeup(WB_REASON_SYNC); });
    w.run_for(200_ms);
  }
  EXPECT_EQ(w.m.flusher.nr_threads(), Flusher::MIN_PDFLUSH_THREADS);
  w.run([&] {
    for (Inode* file : files) w.m.files.iput(*file);
  });
  w.run([&] { w.m.flusher.stop(); });
  for (SimDisk* disk : disks) disk->~SimDisk();
}

}  // namespace
}  // namespace weir
