// tests/unit/record_test.cpp: recorder, file and reader
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#include "kernel/kernel.hpp"
#include "places.hpp"
#include "record/reader.hpp"
#include "record/recorder.hpp"
#include "record/ring.hpp"

// Sites stand in lambdas, as threads run those; their names do not matter here.
// NOLINTBEGIN(bugprone-lambda-function-name)
namespace weir {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// A world with a clock and nothing else: each look takes 1 ns.
class Clock final : public World {
 public:
  Clock() : World(HostThreads::one) { turn_.resched_at = Nanos(0); }
  mutable uint64_t time = 0;
  [[nodiscard]] Nanos now() const override { return Nanos(++time); }
  void spend(Nanos) override {}
  void schedule() override {}
  bool schedule_timeout(Nanos) override { return false; }
  void wake(Thread&) override {}
  void cond_resched() override {}
  void spin_wait(std::atomic<uint32_t>&) override {}
  void spin_wake(std::atomic<uint32_t>&) override {}
  Thread* kthread_create(void (*)(void*), void*, const char*) override { return nullptr; }
  void kthread_stop(Thread&) override {}
  void timer_arm(Timer&, Nanos) override {}
  void timer_cancel(Timer&) override {}
  [[nodiscard]] unsigned nr_cpus() const override { return 1; }
  uint64_t random() override { return 4; }
  void printk(const char*) override {}

 protected:
  void preempt() override { ADD_FAILURE() << "recording switched threads"; }
};

// Memory that reads as zero and is aligned.
std::vector<uint64_t> zeroes(size_t bytes) { return std::vector<uint64_t>((bytes + 7) / 8); }
std::span<std::byte> span_of(std::vector<uint64_t>& words) { return std::as_writable_bytes(std::span(words)); }

// The test's thread becomes thread `tid` of `world` and records into `sink`, until the end of the scope.
class Records {
 public:
  Records(FlowSink* sink, World* world, int32_t tid, const char* comm) : saved_(engine_thread()) {
    thread_.tid = tid;
    std::snprintf(thread_.comm, sizeof thread_.comm, "%s", comm);
    engine_thread().sink = sink;
    engine_thread().world = world;
    engine_thread().thread = &thread_;
    engine_thread().lane.interrupt();
  }
  ~Records() {
    engine_thread().sink = saved_.sink;
    engine_thread().world = saved_.world;
    engine_thread().thread = saved_.thread;
    engine_thread().lane.interrupt();
  }
  Records(const Records&) = delete;
  Records& operator=(const Records&) = delete;

 private:
  EngineThread saved_;
  Thread thread_;
};

[[gnu::noinline]] void inner(uint64_t entry) {
  WEIR_FLOW(entry);
  WEIR_STATE(swap_map, entry, 2, 1);
}
[[gnu::noinline]] void outer(uint64_t address, uint64_t entry) {
  WEIR_FLOW(address, entry);
  inner(entry);
}

std::string told(const Recording& recording) {
  std::ostringstream out;
  for (const FlowEvent& event : recording.events) {
    if (event.is_state())
      out << recording.state_name(event) << ' ' << event.value[0] << ' ' << event.value[1] << ' ' << event.value[2];
    else
      out << (event.is_enter() ? '+' : '-') << recording.site(event).function;
    out << '@' << event.tid << '\n';
  }
  return out.str();
}

/// A ring in memory of its own.
struct Ring {
  explicit Ring(uint64_t events)
      : bytes(FlowRing::bytes_for(events)),
        memory(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)),
        ring(std::make_unique<FlowRing>(span(), events)) {}
  ~Ring() { munmap(memory, bytes); }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  [[nodiscard]] std::span<std::byte> span() const { return {static_cast<std::byte*>(memory), bytes}; }

  size_t bytes;
  void* memory;
  std::unique_ptr<FlowRing> ring;
};

/// A recorder, and what it has sent off.
struct Log {
  explicit Log(size_t events = 64)
      : memory(zeroes(Recorder::bytes_for(events))),
        recorder(std::make_unique<Recorder>(span_of(memory), output_to(bytes))) {}
  Recording read() {
    EXPECT_TRUE(recorder->finish());
    return parse(bytes);
  }
  Recorder* operator->() { return recorder.get(); }

  std::vector<std::byte> bytes;
  std::vector<uint64_t> memory;
  std::unique_ptr<Recorder> recorder;
};

TEST(Recorder, GivesBackWhatHappenedInOrderWithNamesAndTimes) {
  Clock clock;
  Log log;
  FlowNames& names = log->names();
  EXPECT_TRUE(names.fact("kernel", "4.14"));
  EXPECT_TRUE(names.fact("seed", "7"));
  EXPECT_FALSE(names.fact("kernel", "2.6.20"));
  names.task(3, 30, "writer");
  {
    Records here(log.recorder.get(), &clock, 3, "ignored");
    outer(0x1000, 66);
    EXPECT_TRUE(log->note("meminfo", "MemFree: 1 kB\n"));
    outer(0x2000, 67);
  }
  const Recording recording = log.read();
  EXPECT_EQ(recording.status, Recording::Status::whole) << recording.problem;
  EXPECT_EQ(told(recording),
            "+outer@3\n+inner@3\nswap_map 66 2 1@3\n-inner@3\n-outer@3\n"
            "+outer@3\n+inner@3\nswap_map 67 2 1@3\n-inner@3\n-outer@3\n");
  EXPECT_EQ(recording.site(recording.events[0]).file, "record_test.cpp");
  EXPECT_EQ(recording.site(recording.events[0]).arguments, "address, entry");
  EXPECT_THAT(recording.events[0].value, ElementsAre(0x1000, 66, 0));
  for (size_t i = 1; i < recording.events.size(); ++i)
    EXPECT_LT(recording.events[i - 1].time, recording.events[i].time);
  EXPECT_EQ(recording.fact("kernel"), "4.14") << "the first word stands";
  EXPECT_EQ(recording.fact("seed"), "7");
  EXPECT_EQ(recording.comm(3), "writer");
  EXPECT_EQ(recording.tasks[0].pid, 30);
  ASSERT_EQ(recording.notes.size(), 1u);
  EXPECT_EQ(recording.notes[0].at, 5u);
  EXPECT_EQ(recording.notes[0].key + "=" + recording.notes[0].text, "meminfo=MemFree: 1 kB\n");
  EXPECT_EQ(recording.recorded, 10u);
  EXPECT_EQ(recording.lost, 0u);
}

TEST(Recorder, AResultIsToldWhereTheFunctionGivesOne) {
  const auto both = [](FlowSink* sink) {
    Records here(sink, nullptr, 1, "t");
    const auto finds = [](uint64_t key) {
      WEIR_FLOW(key);
      WEIR_RETURN(key + 1);
    };
    EXPECT_EQ(finds(41), 42u);
    inner(7);
  };
  Log log;
  both(log.recorder.get());
  Ring ring(64);
  both(ring.ring.get());
  for (const Recording& recording : {log.read(), snapshot(*ring.ring)}) {
    ASSERT_EQ(recording.events.size(), 5u);
    EXPECT_TRUE(recording.events[1].is_leave());
    EXPECT_THAT(recording.events[1].value, ElementsAre(42, 1, 0));
    EXPECT_TRUE(recording.events[4].is_leave());
    EXPECT_THAT(recording.events[4].value, ElementsAre(0, 0, 0)) << "this one gives none";
  }
}

TEST(Recorder, TakesATasksNameFromItsThread) {
  Log log;
  {
    Records here(log.recorder.get(), nullptr, 2048 + 9, "kswapd0");
    inner(1);
  }
  {
    Records here(log.recorder.get(), nullptr, 9, "reader");  // falls on the same place of the table
    inner(1);
  }
  const Recording recording = log.read();
  EXPECT_EQ(recording.comm(2048 + 9), "kswapd0");
  EXPECT_EQ(recording.comm(9), "reader");
  EXPECT_EQ(recording.tasks.size(), 2u);
}

TEST(Recorder, EverythingGoesOut) {
  Clock clock;
  auto memory = zeroes(Recorder::bytes_for(8));
  std::vector<std::byte> bytes;
  const auto recorder = std::make_unique<Recorder>(span_of(memory), output_to(bytes));
  recorder->names().fact("seed", "1");
  Records here(recorder.get(), &clock, 1, "t");
  for (uint64_t i = 0; i < 1000; ++i) {
    WEIR_STATE(rss, i, 0, 0);
    if (i == 500) recorder->note("half", "way");
  }
  ASSERT_TRUE(recorder->finish());
  const Recording recording = parse(bytes);
  EXPECT_EQ(recording.status, Recording::Status::whole) << recording.problem;
  ASSERT_EQ(recording.events.size(), 1000u);
  for (uint64_t i = 0; i < 1000; ++i) EXPECT_EQ(recording.events[i].value[0], i);
  EXPECT_EQ(recording.fact("seed"), "1");
  ASSERT_EQ(recording.notes.size(), 1u);
  EXPECT_EQ(recording.notes[0].at, 501u);
}

TEST(Recorder, AnOutputThatFailsIsToldAndNothingMoreIsSent) {
  auto memory = zeroes(Recorder::bytes_for(4));
  int calls = 0;
  const FlowOutput full{[](void* context, const void*, size_t) { return ++*static_cast<int*>(context) < 3; }, &calls};
  const auto recorder = std::make_unique<Recorder>(span_of(memory), full);
  Records here(recorder.get(), nullptr, 1, "t");
  for (uint64_t i = 0; i < 100; ++i) WEIR_STATE(rss, i, 0, 0);
  EXPECT_FALSE(recorder->finish());
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(recorder->recorded(), 100u);
  EXPECT_GT(recorder->lost(), 90u);
}

TEST(Recorder, TwoInOneProcessKeepApart) {
  Log a, b;
  for (int i = 0; i < 3; ++i) {
    Records here(a.recorder.get(), nullptr, 1, "a");
    outer(1, 2);
    Records there(b.recorder.get(), nullptr, 2, "b");
    inner(3);
  }
  const Recording in_a = a.read(), in_b = b.read();
  EXPECT_EQ(in_a.events.size(), 15u);
  EXPECT_EQ(in_b.events.size(), 9u);
  // Numbers of sites are each recorder's own, by first use.
  EXPECT_EQ(in_a.sites[1].function, "outer");
  EXPECT_EQ(in_b.sites[1].function, "inner");
  EXPECT_EQ(in_a.comm(2), "");
}

TEST(Recorder, TheSameRunGivesTheSameBytes) {
  auto run = [] {
    Clock clock;
    Log log;
    log->names().fact("seed", "9");
    for (int32_t tid : {5, 1, 2053}) {
      Records here(log.recorder.get(), &clock, tid, "t");
      outer(1, 2);
      log->note("n", "v");
    }
    EXPECT_TRUE(log->finish());
    return log.bytes;
  };
  EXPECT_EQ(run(), run());
}

TEST(Recorder, MoreSitesThanItCanNameAreRecordedNameless) {
  Log log(4096);
  static std::vector<FlowSite> sites(FlowNames::MAX_SITES + 10, FlowSite{"f", "f.cpp", ""});
  for (const FlowSite& site : sites) log->enter(site, 0, 0, 0);
  const Recording recording = log.read();
  EXPECT_EQ(recording.status, Recording::Status::whole) << recording.problem;
  EXPECT_EQ(recording.sites.size(), FlowNames::MAX_SITES + 1);
  EXPECT_EQ(recording.events[FlowNames::MAX_SITES - 1].site, FlowNames::MAX_SITES);
  EXPECT_EQ(recording.events[FlowNames::MAX_SITES].site, 0);
}

TEST(Recorder, MoreTasksThanItCanNameAreRecordedAllTheSame) {
  Log log(2048);
  static constinit const FlowSite site{"f", "f.cpp", ""};
  for (int32_t tid = 1; tid <= 2000; ++tid) {
    Records here(log.recorder.get(), nullptr, tid * 7, "t");
    log->enter(site, 0, 0, 0);
  }
  const Recording recording = log.read();
  EXPECT_EQ(recording.events.size(), 2000u);
  EXPECT_EQ(recording.events[1999].tid, 14000);
  EXPECT_EQ(recording.tasks.size(), FlowNames::MAX_TASKS);
}

// ---- A ring ----

TEST(FlowRing, KeepsTheLastEvents) {
  Ring ring(160);
  Records here(ring.ring.get(), nullptr, 1, "t");
  for (uint64_t i = 0; i < 1000; ++i) WEIR_STATE(rss, i, 0, 0);
  const Recording recording = snapshot(*ring.ring);
  EXPECT_EQ(recording.status, Recording::Status::whole) << recording.problem;
  ASSERT_GE(recording.events.size(), 160u);
  ASSERT_LE(recording.events.size(), 260u);
  for (size_t i = 0; i < recording.events.size(); ++i)
    EXPECT_EQ(recording.events[i].value[0], 1000 - recording.events.size() + i);
  EXPECT_EQ(recording.first, 1000 - recording.events.size());
  EXPECT_EQ(recording.recorded, 1000u);
  EXPECT_EQ(recording.lost, 0u);
}

TEST(FlowRing, AMillionEventsTakeLessThan64MiB) { EXPECT_LE(FlowRing::bytes_for(1'000'000), size_t{64} << 20); }

TEST(FlowRing, TellsCallsAsALogDoes) {
  // Deep and shallow ones, over the ends of blocks.
  const auto calls = [](FlowSink* sink) {
    Records here(sink, nullptr, 1, "t");
    struct Walk {
      static void down(uint64_t depth) {
        WEIR_FLOW(depth);
        if (depth > 0) down(depth - 1);
        if (depth % 3 == 0) WEIR_STATE(rss, depth, 0, 0);
      }
    };
    for (uint64_t depth = 0; depth < 40; ++depth) Walk::down(depth);
  };
  Log log(4096);
  Ring ring(4096);
  calls(log.recorder.get());
  calls(ring.ring.get());
  EXPECT_EQ(told(snapshot(*ring.ring)), told(log.read()));
  EXPECT_EQ(ring.ring->recorded(), log->recorded());
}

TEST(FlowRing, LeavesOutDetails) {
  Ring ring(64);
  Records here(ring.ring.get(), nullptr, 1, "t");
  struct Small {
    static void count_vm_event() { WEIR_FLOW(); }
  };
  Small::count_vm_event();
  WEIR_STATE(zonelist, 1, 0, 0);
  inner(3);
  EXPECT_EQ(told(snapshot(*ring.ring)), "+inner@1\nswap_map 3 2 1@1\n-inner@1\n");
}

TEST(FlowRing, TellsAPagesChangesInARowAsOneOfItsFlagsAndOneOfItsCount) {
  Ring ring(64);
  Records here(ring.ring.get(), nullptr, 1, "t");
  WEIR_STATE(page_flags, 5, 0, 1);
  WEIR_STATE(page_flags, 5, 1, 3);
  WEIR_STATE(page_flags, 6, 8, 9);
  WEIR_STATE(page_count, 6, 1, 2);
  WEIR_STATE(page_flags, 6, 9, 1);
  WEIR_STATE(page_count, 6, 2, 3);
  inner(7);
  WEIR_STATE(page_count, 6, 3, 2);
  EXPECT_EQ(told(snapshot(*ring.ring)),
            "page_flags 5 0 3@1\npage_flags 6 8 1@1\npage_count 6 1 3@1\n"
            "+inner@1\nswap_map 7 2 1@1\n-inner@1\npage_count 6 3 2@1\n");
  EXPECT_EQ(ring.ring->recorded(), 7u);
}

// A stack of its own that records.
class Lane {
 public:
  explicit Lane(FlowSink* sink) : stack_(engine_stack_create()) { stack_->sink = sink; }
  ~Lane() { engine_stack_destroy(stack_); }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;
  void run(const std::function<void()>& fn) {
    engine_stack_call(
        stack_, [](void* arg) { (*static_cast<const std::function<void()>*>(arg))(); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  EngineThread* stack_;
};

TEST(FlowRing, APageIsToldByTheSumOfItsChangesWhateverTheirOrder) {
  Ring ring(4096);
  Lane a(ring.ring.get()), b(ring.ring.get());
  a.run([] {
    WEIR_STATE(page_count, 5, 0, 1);
    WEIR_STATE(rss, 1, 0, 0);
    WEIR_STATE(page_count, 5, 1, 2);
  });
  b.run([] { WEIR_STATE(page_count, 5, 2, 3); });
  // With the time of a's last look at the clock: it is told before b's change.
  a.run([] {
    WEIR_STATE(rss, 2, 0, 0);
    WEIR_STATE(page_count, 5, 3, 2);
  });
  b.run([] {
    WEIR_STATE(rss, 3, 0, 0);
    WEIR_STATE(page_count, 5, 2, 1);
  });
  EXPECT_EQ(told(snapshot(*ring.ring)),
            "page_count 5 0 1@0\nrss 1 0 0@0\npage_count 5 1 2@0\nrss 2 0 0@0\npage_count 5 2 1@0\n"
            "page_count 5 1 2@0\nrss 3 0 0@0\npage_count 5 2 1@0\n");
}

TEST(FlowRing, WhatIsToldOfOneThreadIsToldOfAll) {
  Ring ring(1000);
  Lane fast(ring.ring.get()), slow(ring.ring.get());
  uint64_t n = 0;
  const auto count = [&n] {
    WEIR_STATE(nr_free, 0, n, n + 1);
    ++n;
  };
  for (int round = 0; round < 1000; ++round) {
    slow.run(count);
    for (int i = 0; i < 1 + round % 37; ++i) fast.run(count);
    if (round % 100 != 99) continue;
    const Recording recording = snapshot(*ring.ring);
    ASSERT_GE(recording.events.size(), std::min<uint64_t>(n, 1000));
    for (size_t i = 0; i < recording.events.size(); ++i)
      ASSERT_EQ(recording.events[i].value[1], n - recording.events.size() + i);
  }
}

TEST(FlowRing, TimesAreTheHostsFromItsStartOnAndNeverGoBack) {
  const auto now = [] { return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()); };
  const uint64_t begin = now();
  Ring ring(256);
  Records here(ring.ring.get(), nullptr, 1, "t");
  for (uint64_t i = 0; i < 100; ++i) inner(i);
  const Recording recording = snapshot(*ring.ring);
  constexpr uint64_t SLACK = 1'000'000;  // two clocks
  EXPECT_LE(recording.events.back().time, now() - begin + SLACK);
  for (size_t i = 1; i < recording.events.size(); ++i)
    EXPECT_LE(recording.events[i - 1].time, recording.events[i].time);
}

TEST(FlowRing, WritesToADescriptorAndSaysHowTheProgramEnded) {
  const int fd = memfd_create("recording", 0);
  ASSERT_GE(fd, 0);
  Ring ring(4096);
  {
    Records here(ring.ring.get(), nullptr, 1, "t");
    for (uint64_t i = 0; i < 4096; ++i) WEIR_STATE(rss, i, 0, 0);
  }
  ASSERT_TRUE(write_ring(ring.span(), "killed by signal 9", output_to_fd(fd)));
  const Recording recording = read_recording("/proc/self/fd/" + std::to_string(fd));
  EXPECT_EQ(recording.status, Recording::Status::whole) << recording.problem;
  EXPECT_EQ(told(recording), told(snapshot(*ring.ring)));
  EXPECT_EQ(recording.fact("ended"), "killed by signal 9");
  close(fd);
  EXPECT_FALSE(write_ring(ring.span(), "", output_to_fd(fd)));
}

TEST(FlowRing, AProcessThatIsKilledLeavesItToWhoeverMapsIt) {
  Ring ring(4096);
  const pid_t child = ::fork();
  if (child == 0) {
    Records here(ring.ring.get(), nullptr, 7, "killed");
    outer(1, 2);
    raise(SIGKILL);
  }
  ASSERT_GT(child, 0);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  const Recording recording = snapshot(*ring.ring);
  EXPECT_EQ(recording.status, Recording::Status::whole) << recording.problem;
  EXPECT_EQ(told(recording), "+outer@7\n+inner@7\nswap_map 2 2 1@7\n-inner@7\n-outer@7\n");
  EXPECT_EQ(recording.comm(7), "killed");
}

TEST(FlowRing, BeginsAnewInAForkedChild) {
  Ring ring(64);
  Records here(ring.ring.get(), nullptr, 1, "t");
  outer(1, 2);
  std::memset(ring.memory, 0, ring.bytes);
  EXPECT_FALSE(is_ring(ring.span()));
  ring.ring->restart();
  inner(3);
  EXPECT_EQ(told(snapshot(*ring.ring)), "+inner@1\nswap_map 3 2 1@1\n-inner@1\n");
}

TEST(FlowRing, DamageInItsMemoryDoesNoHarm) {
  Ring ring(512);
  Records here(ring.ring.get(), nullptr, 1, "t");
  for (uint64_t i = 0; i < 400; ++i) outer(i, i);
  const std::vector<std::byte> good(ring.span().begin(), ring.span().end());
  std::mt19937_64 random(20240502);  // the same bytes each time
  for (int round = 0; round < 300; ++round) {
    std::vector<std::byte> bytes = good;
    for (int i = 0; i < 200; ++i) bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    // Numbers at the start, too.
    for (int i = 0; i < 3; ++i) bytes[8 + random() % 120] = static_cast<std::byte>(random());
    Ring damaged(512);
    std::memcpy(damaged.memory, bytes.data(), bytes.size());
    std::vector<std::byte> out;
    (void)write_ring(damaged.span(), "", output_to(out));
    if (!out.empty()) (void)parse(out);
  }
  EXPECT_FALSE(write_ring(std::span(good).first(100), "", FlowOutput{}));
}

// ---- Real threads ----

void on_engine_stack(const std::function<void()>& fn) {
  run_on_engine_stack([](void* arg) { (*static_cast<const std::function<void()>*>(arg))(); },
                      const_cast<void*>(static_cast<const void*>(&fn)));
}

TEST(FlowRing, ThreadsRecordAtOnceAndEachOnesOrderStands) {
  constexpr int THREADS = 4;
  constexpr uint64_t EACH = 20000;
  Ring ring(THREADS * EACH * 2);
  const auto& recorder = ring.ring;
  std::vector<std::thread> threads;
  for (int32_t tid = 1; tid <= THREADS; ++tid)
    threads.emplace_back([&recorder, tid] {
      on_engine_stack([&] {
        Records here(recorder.get(), nullptr, tid, "worker");
        for (uint64_t i = 0; i < EACH; ++i) WEIR_STATE(rss, tid, i, i ^ 0x5555);
      });
    });
  for (std::thread& thread : threads) thread.join();
  const Recording recording = snapshot(*recorder);
  EXPECT_EQ(recording.events.size(), THREADS * EACH);
  EXPECT_EQ(recorder->lost(), 0u);
  std::map<int32_t, uint64_t> next;
  for (const FlowEvent& event : recording.events) {
    ASSERT_EQ(event.value[0], static_cast<uint64_t>(event.tid));
    ASSERT_EQ(event.value[1], next[event.tid]++);
    ASSERT_EQ(event.value[2], event.value[1] ^ 0x5555);
  }
}

TEST(FlowRing, ThreadsThatChangeOnePageAtOnceDoNotContradictEachOther) {
  constexpr int THREADS = 4;
  constexpr uint64_t EACH = 20000;
  Ring ring(THREADS * EACH * 2);
  std::atomic<uint64_t> count{1}, flags{0};
  std::vector<std::thread> threads;
  for (int32_t tid = 1; tid <= THREADS; ++tid)
    threads.emplace_back([&, tid] {
      on_engine_stack([&] {
        Records here(ring.ring.get(), nullptr, tid, "worker");
        for (uint64_t i = 0; i < EACH / 4; ++i) {
          const uint64_t got = count.fetch_add(1);
          WEIR_STATE(page_count, 5, got, got + 1);
          const uint64_t mine = uint64_t{1} << tid, set = flags.fetch_xor(mine);
          WEIR_STATE(page_flags, 5, set, set ^ mine);
          inner(i);
          const uint64_t put = count.fetch_sub(1);
          WEIR_STATE(page_count, 5, put, put - 1);
        }
      });
    });
  for (std::thread& thread : threads) thread.join();
  const Recording recording = snapshot(*ring.ring);
  std::map<std::string_view, std::pair<uint64_t, uint64_t>> told;  // first and last value
  for (const FlowEvent& event : recording.events) {
    const std::string_view name = event.is_state() ? recording.state_name(event) : "";
    if (name != "page_flags" && name != "page_count") continue;
    const auto [page, first] = told.try_emplace(name, event.value[1], event.value[1]);
    ASSERT_EQ(event.value[1], page->second.second);
    page->second.second = event.value[2];
  }
  ASSERT_EQ(told.size(), 2u);
  for (const auto& [name, values] : told) EXPECT_EQ(values.first, values.second) << name;
}

TEST(FlowRing, ReadWhileThreadsWriteItShowsNoMixedEvent) {
  Ring ring(256);  // small: writers are always about to take what is read
  const auto& recorder = ring.ring;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int32_t tid = 1; tid <= 2; ++tid)
    threads.emplace_back([&recorder, &stop, tid] {
      on_engine_stack([&] {
        Records here(recorder.get(), nullptr, tid, "worker");
        for (uint64_t i = 0; !stop; ++i) WEIR_STATE(rss, tid, i, i * 3);
      });
    });
  size_t seen = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(300);
  // At least until something was seen: where the writers have the CPUs to themselves a snapshot may find nothing whole.
  while (seen == 0 || std::chrono::steady_clock::now() < end) {
    const Recording recording = snapshot(*recorder);
    for (const FlowEvent& event : recording.events) {
      ASSERT_EQ(event.value[0], static_cast<uint64_t>(event.tid));
      ASSERT_EQ(event.value[2], event.value[1] * 3);
    }
    ASSERT_LE(recording.events.size(), 400u);
    seen += recording.events.size();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_LT(recorder->lost(), recorder->recorded() / 2);
}

TEST(Recorder, ThreadsLoseNothing) {
  constexpr int THREADS = 3;
  constexpr uint64_t EACH = 20000;
  auto memory = zeroes(Recorder::bytes_for(256));
  std::vector<std::byte> bytes;
  const auto recorder = std::make_unique<Recorder>(span_of(memory), output_to(bytes));
  std::vector<std::thread> threads;
  for (int32_t tid = 1; tid <= THREADS; ++tid)
    threads.emplace_back([&recorder, tid] {
      on_engine_stack([&] {
        Records here(recorder.get(), nullptr, tid, "worker");
        for (uint64_t i = 0; i < EACH; ++i) WEIR_STATE(rss, tid, i, 0);
      });
    });
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(recorder->finish());
  const Recording recording = parse(bytes);
  EXPECT_EQ(recording.status, Recording::Status::whole) << recording.problem;
  EXPECT_EQ(recording.events.size(), THREADS * EACH);
  EXPECT_EQ(recording.lost, 0u);
  std::map<int32_t, uint64_t> next;
  for (const FlowEvent& event : recording.events) ASSERT_EQ(event.value[1], next[event.tid]++);
}

// ---- Files that are not as they should be ----

std::vector<std::byte> example() {
  Clock clock;
  Log log(256);
  log->names().fact("seed", "9");
  Records here(log.recorder.get(), &clock, 1, "t");
  for (int i = 0; i < 40; ++i) outer(1, 2);
  log->note("meminfo", "MemFree: 1 kB\n");
  EXPECT_TRUE(log->finish());
  return log.bytes;
}

TEST(Reader, ACutFileIsShownUpToTheBreak) {
  const std::vector<std::byte> bytes = example();
  const Recording whole = parse(bytes);
  ASSERT_EQ(whole.status, Recording::Status::whole) << whole.problem;
  ASSERT_EQ(whole.events.size(), 200u);
  size_t most = 0;
  for (size_t size = sizeof(RecordingHeader); size < bytes.size(); ++size) {
    const Recording cut = parse(std::span(bytes).first(size));
    ASSERT_EQ(cut.status, Recording::Status::broken) << size;
    ASSERT_THAT(cut.problem, HasSubstr("cut short"));
    ASSERT_GE(cut.events.size(), most);
    most = cut.events.size();
    for (size_t i = 0; i < most; ++i) ASSERT_EQ(std::memcmp(&cut.events[i], &whole.events[i], sizeof(FlowEvent)), 0);
  }
  EXPECT_EQ(most, 200u) << "without its end mark a file still has all its events";
}

TEST(Reader, WhatIsNoRecordingIsRefusedWithAWord) {
  EXPECT_THAT(parse({}).problem, HasSubstr("empty"));
  std::vector<std::byte> bytes(100, std::byte{'x'});
  EXPECT_EQ(parse(bytes).status, Recording::Status::refused);
  EXPECT_THAT(parse(bytes).problem, HasSubstr("not a recording"));
  EXPECT_THAT(read_recording("/nonexistent/r.rec").problem, HasSubstr("/nonexistent/r.rec: No such file"));
  EXPECT_THAT(read_recording("/").problem, HasSubstr("/: Is a directory"));
}

TEST(Reader, AForeignVersionIsRefusedWithARemedy) {
  std::vector<std::byte> bytes = example();
  bytes[8] = std::byte{2};
  const Recording recording = parse(bytes);
  EXPECT_EQ(recording.status, Recording::Status::refused);
  EXPECT_TRUE(recording.events.empty());
  EXPECT_THAT(recording.problem, HasSubstr("format 2"));
  EXPECT_THAT(recording.problem, HasSubstr("record it anew"));
}

TEST(Reader, ABlockItDoesNotKnowIsPassedOver) {
  std::vector<std::byte> bytes = example();
  const BlockHeader future{block_tag("WHAT"), 5};
  std::byte block[sizeof future + 5] = {};
  std::memcpy(block, &future, sizeof future);
  bytes.insert(bytes.begin() + sizeof(RecordingHeader), block, block + sizeof block);
  const Recording recording = parse(bytes);
  EXPECT_EQ(recording.status, Recording::Status::whole) << recording.problem;
  EXPECT_EQ(recording.events.size(), 200u);
}

TEST(Reader, NamesCannotDriveATerminal) {
  Log log;
  log->names().task(1, 0, "a\x1b[2Jb");
  EXPECT_EQ(log.read().comm(1), "a?[2Jb");
}

// Whatever the bytes: no crash (sanitizers watch), and every number in an event leads to a name.
void is_sound(const Recording& recording) {
  for (const FlowEvent& event : recording.events) {
    ASSERT_LT(event.site, recording.sites.size());
    if (event.is_state()) {
      ASSERT_LT(event.state(), recording.states.size());
    }
  }
  for (const Recording::Note& note : recording.notes) ASSERT_LE(note.at, recording.events.size());
  ASSERT_EQ(recording.problem.empty(), recording.status == Recording::Status::whole);
}

TEST(Reader, HostileBytesDoNoHarm) {
  const std::vector<std::byte> good = example();
  std::mt19937_64 random(20240501);  // the same bytes each time
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> bytes = good;
    for (int i = static_cast<int>(random() % 6); i >= 0; --i) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0: bytes[at] = static_cast<std::byte>(random()); break;
        case 1: bytes[at] = std::byte{0xff}; break;
        case 2:
          bytes.erase(bytes.begin() + static_cast<ptrdiff_t>(at),
                      bytes.begin() + static_cast<ptrdiff_t>(std::min(at + random() % 9, bytes.size())));
          break;
        default: bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), random() % 9, std::byte{0});
      }
    }
    const Recording recording = parse(bytes);
    if (recording.status == Recording::Status::whole && !recording.problem.empty())
      continue;  // bytes after the end mark
    is_sound(recording);
    ASSERT_FALSE(testing::Test::HasFatalFailure()) << "round " << round;
  }
}

TEST(Reader, AHugeCountInASmallFileTakesNoMemory) {
  const std::vector<std::byte> good = example();
  for (size_t at = sizeof(RecordingHeader); at + 4 < good.size(); ++at) {
    std::vector<std::byte> bytes = good;
    std::memset(bytes.data() + at, 0xff, 4);
    const Recording recording = parse(bytes);
    EXPECT_LE(recording.events.capacity(), 2 * good.size() / sizeof(FlowEvent));
  }
}

TEST(RecordReadme, ListsEveryState) {
  std::ifstream file(std::string(WEIR_SOURCE_DIR) + "/src/record/README.md");
  const std::string readme((std::istreambuf_iterator<char>(file)), {});
#define X(name) EXPECT_THAT(readme, HasSubstr("| `" #name "` |"));
  WEIR_STATES(X)
#undef X
}

}  // namespace
}  // namespace weir
// NOLINTEND(bugprone-lambda-function-name)
