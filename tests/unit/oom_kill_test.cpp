// The OOM killer (mm/oom_kill.cpp).
#include "mm/oom_kill.hpp"

#include <gtest/gtest.h>

#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

/// Tasks and their memory as numbers: nobody runs.
class OomTest : public testing::Test, private Executioner {
 protected:
  OomTest() : oom(tasks, m.pages, m.files, m.vmstat) { oom.set_executioner(this); }
  ~OomTest() override {
    for (auto& p : people) tasks.remove(*p.task);
  }
  struct Person {
    std::unique_ptr<Mm> own;
    std::unique_ptr<Task> task;
  };
  struct Usage {
    int64_t anon = 0, file = 0, swap = 0, tables = 0;
    int32_t adj = 0;
  };
  Task& add(const char* comm, Usage usage, Task* parent = nullptr, Mm* shared = nullptr) {
    Person p{shared == nullptr ? std::make_unique<Mm>() : nullptr, std::make_unique<Task>()};
    Task& task = *p.task;
    task.pid = static_cast<int32_t>(100 + people.size());
    std::strncpy(task.comm, comm, sizeof task.comm - 1);
    task.mm = shared != nullptr ? shared : p.own.get();
    task.parent = parent;
    task.oom_score_adj = usage.adj;
    task.mm->add_mm_counter(RssKind::anon, usage.anon);
    task.mm->add_mm_counter(RssKind::file, usage.file);
    task.mm->add_mm_counter(RssKind::swapents, usage.swap);
    task.mm->nr_table_pages += usage.tables;
    task.mm->total_vm += usage.anon + usage.file + usage.swap;
    tasks.add(task);
    people.push_back(std::move(p));
    return task;
  }
  bool kill(gfp_t gfp = GFP_KERNEL) {
    bool result = false;
    run_world(
        {}, [&] { result = oom.out_of_memory({.gfp = gfp, .order = Order(0)}); }, &log);
    return result;
  }
  void deliver_sigkill(Task& task) override {
    EXPECT_TRUE(task.sigkill.load());
    killed.push_back(task.comm);
  }
  void panic(const char* why) override { panics.emplace_back(why); }

  SwapMachine m;
  TaskList tasks;
  OomKiller oom;
  std::vector<Person> people;
  std::vector<std::string> killed, panics, log;
};

TEST_F(OomTest, PointsAreWhatTheTaskHoldsAndTheAdjustment) {
  const PageCount total(100000);
  struct Case {
    Usage usage;
    int64_t points;
  };
  const Case cases[] = {
      {{.anon = 1000, .file = 200, .swap = 300, .tables = 7}, 1507},
      {{.anon = 1000, .adj = 10}, 2000},
      {{.anon = 1000, .adj = -5}, 500},
      {{.anon = 1000, .adj = -10}, 1},
      {{.anon = 1000, .adj = -999}, 1},
      {{.anon = 1000, .adj = -1000}, 0},
      {{.anon = 1000, .adj = 1000}, 101000},
      {{}, 1},
  };
  for (const Case& c : cases) EXPECT_EQ(oom.oom_badness(add("t", c.usage), total), c.points) << c.usage.adj;
}

TEST_F(OomTest, ATaskWithoutMemoryOrWhoseMemoryIsGoneAlreadyHasNoPoints) {
  Task& gone = add("gone", {.anon = 100});
  Mm* mm = gone.mm;
  gone.mm = nullptr;
  EXPECT_EQ(oom.oom_badness(gone, PageCount(1000)), 0);
  gone.mm = mm;
  mm->oom_skip = true;
  EXPECT_EQ(oom.oom_badness(gone, PageCount(1000)), 0);
}

TEST_F(OomTest, TotalpagesIsMemoryAndSwap) {
  run_world({.log = no_log}, [&] { m.add_area({.pages = 1001}); });
  EXPECT_EQ(oom.totalpages(), m.pages.managed_pages() + PageCount(1000));
}

TEST_F(OomTest, TheLargestDies) {
  add("small", {.anon = 10});
  Task& large = add("large", {.anon = 500, .swap = 500});
  add("larger in memory", {.anon = 900});
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"large"});
  EXPECT_TRUE(large.memdie.load());
  EXPECT_EQ(m.event(VmEvent::oom_kill), 1u);
}

TEST_F(OomTest, OfEqualsTheFirstDies) {
  add("first", {.anon = 10});
  add("second", {.anon = 10});
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"first"});
}

TEST_F(OomTest, TheAdjustmentChoosesAndProtects) {
  add("protected", {.anon = 3000, .adj = -1000});
  add("large", {.anon = 900});
  add("volunteer", {.anon = 1, .adj = 1000});
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"volunteer"});
}

TEST_F(OomTest, TheWorstChildWithMemoryOfItsOwnDiesInsteadOfItsParent) {
  Task& parent = add("parent", {.anon = 900});
  add("thread", {}, &parent, parent.mm);
  add("child", {.anon = 100}, &parent);
  add("larger child", {.anon = 300}, &parent);
  add("protected child", {.anon = 800, .adj = -1000}, &parent);
  add("stranger", {.anon = 700});
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"larger child"});
}

TEST_F(OomTest, EverybodyWhoSharesTheMemoryDies) {
  Task& leader = add("leader", {.anon = 900});
  add("other", {.anon = 100});
  add("sharer", {}, nullptr, leader.mm);
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, (std::vector<std::string>{"leader", "sharer"}));
}

TEST_F(OomTest, WhileAVictimDiesNobodyElseIsKilled) {
  add("first", {.anon = 900});
  add("second", {.anon = 800});
  EXPECT_TRUE(kill());
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"first"});
  // It has exited.
  people[0].task->mm = nullptr;
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, (std::vector<std::string>{"first", "second"}));
}

TEST_F(OomTest, AVictimThatCannotGiveAnythingBackIsPassedOver) {
  add("stuck", {.anon = 900}).mm->oom_skip = true;
  people[0].task->memdie = true;
  add("next", {.anon = 10});
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"next"});
}

TEST_F(OomTest, AChosenTaskThatExitsAlreadyIsOnlyLetThrough) {
  Task& large = add("large", {.anon = 900});
  add("small", {.anon = 10});
  large.exiting = true;
  log.clear();
  EXPECT_TRUE(kill());
  EXPECT_TRUE(killed.empty());
  EXPECT_TRUE(large.memdie.load());
  EXPECT_TRUE(log.empty()) << "nothing to tell anybody";
}

TEST_F(OomTest, WhoAsksForAllOfMemoryBackIsTheFirstCandidate) {
  add("large", {.anon = 900});
  add("swapoff", {.anon = 1}).oom_origin = true;
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"swapoff"});
}

TEST_F(OomTest, ADyingTaskGetsTheReservesItself) {
  Task& me = add("me", {.anon = 10});
  add("large", {.anon = 900});
  me.sigkill = true;
  uint32_t flags = 0;
  VirtualWorld world({.log = no_log});
  world.spawn(
      "me",
      [&] {
        EXPECT_TRUE(oom.out_of_memory({.gfp = GFP_KERNEL, .order = Order(0)}));
        flags = current().flags;
      },
      &me);
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished);
  EXPECT_TRUE(killed.empty());
  EXPECT_TRUE(me.memdie.load());
  EXPECT_NE(flags & TIF_MEMDIE, 0u);
}

TEST_F(OomTest, WhoMayNotEnterAFileSystemKillsNobody) {
  add("large", {.anon = 900});
  EXPECT_TRUE(kill(GFP_NOFS));
  EXPECT_TRUE(killed.empty());
}

TEST_F(OomTest, WithoutAVictimTheMachinePanics) {
  add("protected", {.anon = 900, .adj = -1000});
  EXPECT_FALSE(kill());
  EXPECT_TRUE(killed.empty());
  EXPECT_EQ(panics, std::vector<std::string>{"Out of memory and no killable processes"});
}

TEST_F(OomTest, TheReportTellsWhoAskedWhatThereWasAndWhoDied) {
  Task& me = add("asker", {.anon = 10, .adj = 5});
  add("victim", {.anon = 900, .file = 20, .swap = 40, .tables = 3});
  const int64_t total = oom.totalpages().v;
  VirtualWorld world({.log = [this](Nanos, const char* text) { log.emplace_back(text); }});
  world.spawn(
      "asker", [&] { oom.out_of_memory({.gfp = GFP_KERNEL, .order = Order(2)}); }, &me);
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished);
  ASSERT_GE(log.size(), 10u);
  char gfp[16];
  std::snprintf(gfp, sizeof gfp, "%x", GFP_KERNEL.v);
  EXPECT_EQ(log[0], std::string("asker invoked oom-killer: gfp_mask=0x") + gfp + ", order=2, oom_score_adj=5");
  EXPECT_EQ(log[1], "Mem-Info:");
  const auto line = [&](const char* start) {
    for (const std::string& l : log)
      if (l.rfind(start, 0) == 0) return l;
    return std::string("no line begins with ") + start;
  };
  EXPECT_EQ(line("[  pid]"), "[  pid] total_vm      rss nr_ptes swapents oom_score_adj name");
  EXPECT_EQ(line("[  100]"), "[  100]       10       10       0        0             5 asker");
  EXPECT_EQ(line("[  101]"), "[  101]      960      920       3       40             0 victim");
  EXPECT_EQ(line("Out of memory:"), "Out of memory: Kill process 101 (victim) score " +
                                        std::to_string(963 * 1000 / total) + " or sacrifice child");
  EXPECT_EQ(line("Killed process"),
            "Killed process 101 (victim) total-vm:3840kB, anon-rss:3600kB, file-rss:80kB, shmem-rss:0kB");
}

TEST_F(OomTest, PointsAndChoiceAreRecorded) {
  add("a", {.anon = 10, .adj = 3});
  add("b", {.anon = 500});
  run_world({.log = no_log}, [&] {
    Trace trace;
    oom.out_of_memory({.gfp = GFP_KERNEL, .order = Order(0)});
    EXPECT_EQ(trace.tree({"out_of_memory", "select_bad_process", "oom_kill_process"}),
              (std::vector<std::string>{"out_of_memory", " select_bad_process", " oom_kill_process"}));
    const auto a = static_cast<uint64_t>(oom.oom_badness(*people[0].task, oom.totalpages()));
    EXPECT_EQ(trace.of(State::oom_points),
              (std::vector<Trace::StateChange>{{State::oom_points, 100, 3, a}, {State::oom_points, 101, 0, 500}}));
    EXPECT_EQ(trace.of(State::oom_select), (std::vector<Trace::StateChange>{{State::oom_select, 101, 0, 500}}));
    EXPECT_EQ(trace.of(State::oom_kill), (std::vector<Trace::StateChange>{{State::oom_kill, 101, 0, 500}}));
  });
}

// ---------------------------------------------------------------------------------------------------------- whole
// machines

// Programs that together need more than there is: the largest dies, its memory comes back, the others keep their bytes.
TEST(Oom, TheOthersGoOnWhenTheLargestIsKilled) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ReclaimWorld w({.cpus = 2}, {.seed = seed, .preempt_one_in = seed % 2 == 0 ? 10u : 0u});
    w.add_area({.pages = 500});
    std::vector<Task*> tasks;
    w.run([&] {
      for (const char* name : {"small", "middle", "large"}) tasks.push_back(&w.task(name));
    });
    const uint64_t pages[] = {300, 900, 20000};
    bool survived[3] = {};
    for (size_t i = 0; i < 3; ++i) {
      w.spawn(*tasks[i], [&, i] {
        Task& t = *tasks[i];
        const VirtAddr a = w.map(t, pages[i]);
        for (uint64_t p = 0; p < pages[i]; ++p) {
          const FaultResult r = w.store(t, w.at(a, p), p * 3 + i);
          if (r != FaultResult::done) {
            EXPECT_EQ(r, FaultResult::killed);
            current().task = nullptr;
            w.exit(t);
            return;
          }
          world().spend(1_us);
        }
        for (int round = 0; round < 3; ++round) {
          for (uint64_t p = 0; p < pages[i]; ++p) ASSERT_EQ(w.get(t, w.at(a, p)), p * 3 + i);
          world().schedule_timeout(5_ms);
        }
        survived[i] = true;
      });
    }
    w.run();
    EXPECT_TRUE(survived[0]);
    EXPECT_TRUE(survived[1]);
    EXPECT_FALSE(survived[2]);
    EXPECT_EQ(w.event(VmEvent::oom_kill), 1u);
  }
}

TEST(Oom, NobodyIsKilledWhileSwapHasRoom) {
  ReclaimWorld w({.threads = weir::MachineOptions::Threads::none});
  w.add_area({.pages = 9000});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr a = w.map(t, 10000);
    w.fill(t, a, 10000, 1);
    EXPECT_EQ(w.event(VmEvent::oom_kill), 0u);
    EXPECT_GT(w.event(VmEvent::pswpout), 6000u);
  });
}

}  // namespace
}  // namespace weir::test
