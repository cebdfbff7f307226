// The OOM killer (mm/oom_kill.cpp).
#include "mm/oom_kill.hpp"

#include <gtest/gtest.h>

#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

/// Tasks and their memory as numbers: nobody runs.
class OomTest : public testing::Test, private Executioner {
 protected:
  explicit OomTest(KernelEra era = DEFAULT_KERNEL) : oom(tasks, m.pages, m.files, m.vmstat, era) {
    oom.set_executioner(this);
  }
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
  /// The report's line that begins so.
  [[nodiscard]] std::string line(const char* start) const {
    for (const std::string& l : log)
      if (l.rfind(start, 0) == 0) return l;
    return std::string("no line begins with ") + start;
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
  for (const Case& c : cases) EXPECT_EQ(oom.score(add("t", c.usage), total), c.points) << c.usage.adj;
}

TEST_F(OomTest, ATaskWithoutMemoryOrWhoseMemoryIsGoneAlreadyHasNoPoints) {
  Task& gone = add("gone", {.anon = 100});
  Mm* mm = gone.mm;
  gone.mm = nullptr;
  EXPECT_EQ(oom.score(gone, PageCount(1000)), 0);
  gone.mm = mm;
  mm->oom_skip = true;
  EXPECT_EQ(oom.score(gone, PageCount(1000)), 0);
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
  // In exit_mm: on its way still.
  people[0].task->mm = nullptr;
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"first"});
  // Its memory is back.
  people[0].own->oom_skip = true;
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
  bool memdie = false;
  VirtualWorld world({.log = no_log});
  world.spawn(
      "me",
      [&] {
        EXPECT_TRUE(oom.out_of_memory({.gfp = GFP_KERNEL, .order = Order(0)}));
        memdie = current().memdie;
      },
      &me);
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished);
  EXPECT_TRUE(killed.empty());
  EXPECT_TRUE(me.memdie.load());
  EXPECT_TRUE(memdie);
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
  EXPECT_EQ(log[0], std::string("asker invoked oom-killer: gfp_mask=0x") + gfp +
                        "(GFP_KERNEL), nodemask=(null),  order=2, oom_score_adj=5");
  EXPECT_EQ(log[1], "Mem-Info:");
  EXPECT_EQ(line("[ pid ]"), "[ pid ]   uid  tgid total_vm      rss nr_ptes nr_pmds swapents oom_score_adj name");
  EXPECT_EQ(line("[  100]"), "[  100]  1000   100       10       10       0       0        0             5 asker");
  EXPECT_EQ(line("[  101]"), "[  101]  1000   101      960      920       0       3       40             0 victim");
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
    const auto a = static_cast<uint64_t>(oom.score(*people[0].task, oom.totalpages()));
    EXPECT_EQ(trace.of(State::oom_points),
              (std::vector<Trace::StateChange>{{State::oom_points, 100, 3, a}, {State::oom_points, 101, 0, 500}}));
    EXPECT_EQ(trace.of(State::oom_select), (std::vector<Trace::StateChange>{{State::oom_select, 101, 0, 500}}));
    EXPECT_EQ(trace.of(State::oom_kill), (std::vector<Trace::StateChange>{{State::oom_kill, 101, 0, 500}}));
  });
}

// ---- What was asked for ---------------------------------------------------------------------------------------------

TEST_F(OomTest, WhoAsksDiesIfThatIsWanted) {
  Task& me = add("asker", {.anon = 10});
  add("large", {.anon = 900});
  oom.sysctl.oom_kill_allocating_task = true;
  VirtualWorld world({.log = [this](Nanos, const char* text) { log.emplace_back(text); }});
  const auto ask = [&] {
    world.spawn(
        "asker", [&] { oom.out_of_memory({.gfp = GFP_KERNEL, .order = Order(0)}); }, &me);
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished);
  };
  me.oom_score_adj = OOM_SCORE_ADJ_MIN;
  ask();
  EXPECT_EQ(killed, std::vector<std::string>{"large"}) << "who is protected is not asked to";
  people[1].own->oom_skip = true;
  me.oom_score_adj = 0;
  ask();
  EXPECT_EQ(killed, (std::vector<std::string>{"large", "asker"}));
  EXPECT_EQ(line("Out of memory (oom_kill").substr(0, 41), "Out of memory (oom_kill_allocating_task):");
}

TEST_F(OomTest, PanicInPlaceOfAKillIfThatIsWanted) {
  add("large", {.anon = 900});
  oom.sysctl.panic_on_oom = 1;
  EXPECT_FALSE(kill());
  oom.sysctl.panic_on_oom = 2;
  EXPECT_FALSE(kill());
  EXPECT_TRUE(killed.empty());
  EXPECT_EQ(panics, (std::vector<std::string>{"panic_on_oom", "panic_on_oom"}));
  EXPECT_EQ(line("Kernel panic"), "Kernel panic - not syncing: Out of memory: system-wide panic_on_oom is enabled");
  EXPECT_EQ(log.back(), "Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled");
}

TEST_F(OomTest, TheTaskTableCanBeLeftOut) {
  add("large", {.anon = 900});
  oom.sysctl.oom_dump_tasks = false;
  EXPECT_TRUE(kill());
  EXPECT_EQ(line("[ pid ]"), "no line begins with [ pid ]");
  EXPECT_EQ(line("Killed process").substr(0, 26), "Killed process 100 (large)");
}

TEST_F(OomTest, EitherAdjustmentSetsTheOther) {
  Task& t = add("t", {});
  struct Case {
    int32_t score_adj, adj;
  };
  for (const Case& c : {Case{1000, 15}, Case{-1000, -17}, Case{0, 0}, Case{500, 8}, Case{-999, -16}}) {
    ASSERT_TRUE(OomKiller::set_oom_score_adj(t, c.score_adj));
    EXPECT_EQ(t.oom_adj, c.adj) << c.score_adj;
    EXPECT_EQ(t.oom_score_adj, c.score_adj);
  }
  for (const Case& c : {Case{1000, 15}, Case{-1000, -17}, Case{0, 0}, Case{58, 1}, Case{-941, -16}}) {
    ASSERT_TRUE(OomKiller::set_oom_adj(t, c.adj));
    EXPECT_EQ(t.oom_score_adj, c.score_adj) << c.adj;
    EXPECT_EQ(t.oom_adj, c.adj);
  }
  for (const int32_t bad : {-1001, 1001}) EXPECT_EQ(OomKiller::set_oom_score_adj(t, bad).error(), Errno::inval);
  for (const int32_t bad : {-18, 16}) EXPECT_EQ(OomKiller::set_oom_adj(t, bad).error(), Errno::inval);
  EXPECT_EQ(t.oom_adj, -16) << "what is refused changes nothing";
}

TEST_F(OomTest, TheSuperuserHasThreePercentOfItsOwnLess) {
  Task& root = add("root", {.anon = 1000, .adj = 10});
  EXPECT_EQ(oom.score(root, PageCount(100000)), 2000);
  root.uid = 0;
  EXPECT_EQ(oom.score(root, PageCount(100000)), 970 + 1000);
  root.uid = 1000;
  root.cap_effective = CAP_SYS_ADMIN;
  EXPECT_EQ(oom.score(root, PageCount(100000)), 970 + 1000);
}

// ---- 3.x ------------------------------------------------------------------------------------------------------------

class OomTest3 : public OomTest {
 protected:
  OomTest3() : OomTest(KernelEra::linux_3) {}
};

TEST_F(OomTest3, TheSuperuserHasThirtyThousandthsOfMemoryFree) {
  Task& root = add("root", {.anon = 5000});
  EXPECT_EQ(oom.score(root, PageCount(100000)), 5000);
  root.uid = 0;
  EXPECT_EQ(oom.score(root, PageCount(100000)), 2000);
  root.mm->add_mm_counter(RssKind::anon, -3000);
  EXPECT_EQ(oom.score(root, PageCount(100000)), 1);
}

TEST_F(OomTest3, AVictimCountsUntilItHasLeftWhateverBecomesOfItsMemory) {
  add("stuck", {.anon = 900}).memdie = true;
  people[0].own->oom_skip = true;
  add("next", {.anon = 10});
  EXPECT_TRUE(kill());
  EXPECT_TRUE(killed.empty());
}

TEST_F(OomTest3, WhoSharesTheMemoryButIsProtectedLives) {
  Task& leader = add("leader", {.anon = 900});
  add("protected", {}, nullptr, leader.mm).oom_score_adj = OOM_SCORE_ADJ_MIN;
  add("sharer", {}, nullptr, leader.mm);
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, (std::vector<std::string>{"leader", "sharer"}));
}

TEST_F(OomTest3, TheReportHasNoColumnForUpperTables) {
  add("victim", {.anon = 900, .file = 20, .swap = 40, .tables = 3});
  EXPECT_TRUE(kill());
  EXPECT_EQ(line("[ pid ]"), "[ pid ]   uid  tgid total_vm      rss nr_ptes swapents oom_score_adj name");
  EXPECT_EQ(line("[  100]"), "[  100]  1000   100      960      920       3       40             0 victim");
  EXPECT_EQ(line("Killed process"), "Killed process 100 (victim) total-vm:3840kB, anon-rss:3600kB, file-rss:80kB");
}

// ---- 2.6.20 ---------------------------------------------------------------------------------------------------------

class OomTest2 : public OomTest {
 protected:
  OomTest2() : OomTest(KernelEra::linux_2_6_20) {}
  int64_t points(Task& task, Nanos now = Nanos(0)) {
    int64_t found = -1;
    VirtualWorld world({.log = no_log});
    world.spawn("asker", [&] {
      world.schedule_timeout(now);
      found = oom.score(task, PageCount(0));
    });
    EXPECT_EQ(world.run(), VirtualWorld::RunState::finished);
    return found;
  }
};

TEST_F(OomTest2, PointsBeginWithWhatIsMappedNotWithWhatIsInMemory) {
  Task& t = add("t", {.anon = 10, .swap = 1000, .tables = 50});
  t.mm->total_vm = 4000;
  EXPECT_EQ(points(t), 4000);
}

TEST_F(OomTest2, HalfOfEachChildCounts) {
  Task& t = add("t", {.anon = 100});
  add("child", {.anon = 41}, &t);
  add("another", {.anon = 10}, &t);
  add("thread", {}, &t, t.mm);
  add("stranger", {.anon = 1000});
  EXPECT_EQ(points(t), 100 + (41 / 2 + 1) + (10 / 2 + 1));
}

TEST_F(OomTest2, EachFactorOfThePoints) {
  struct Case {
    const char* what;
    int64_t points;
    uint64_t cpu = 0, age = 0;  // seconds
    int32_t nice = 0, adj = 0;
    uint32_t uid = 1000, caps = 0;
  };
  const Case cases[] = {
      {.what = "nothing", .points = 10000},
      {.what = "7 s of CPU are not a unit of 8", .points = 10000, .cpu = 7},
      {.what = "8 s: the root of 1", .points = 10000, .cpu = 8},
      {.what = "32 s: the root of 4", .points = 5000, .cpu = 32},
      {.what = "71 s: the root of 8, rounded down", .points = 5000, .cpu = 71},
      {.what = "800 s: the root of 100", .points = 1000, .cpu = 800},
      {.what = "1024 s of life", .points = 10000, .age = 1024},
      {.what = "16 times that: the fourth root", .points = 5000, .age = 16 * 1024},
      {.what = "81 times that", .points = 3333, .age = 81 * 1024},
      {.what = "both", .points = 2500, .cpu = 32, .age = 16 * 1024},
      {.what = "niced", .points = 20000, .nice = 1},
      {.what = "not niced", .points = 10000, .nice = -5},
      {.what = "the superuser, who may do raw I/O too", .points = 625, .uid = 0},
      {.what = "admin", .points = 2500, .caps = CAP_SYS_ADMIN},
      {.what = "resources", .points = 2500, .caps = CAP_SYS_RESOURCE},
      {.what = "raw I/O", .points = 2500, .caps = CAP_SYS_RAWIO},
      {.what = "shifted up", .points = 10000 << 15, .adj = 15},
      {.what = "shifted down", .points = 10000 >> 3, .adj = -3},
      {.what = "shifted away", .points = 0, .adj = -16},
  };
  for (const Case& c : cases) {
    Task& t = add("t", {});
    t.mm->total_vm = 10000;
    t.cpu_time = Nanos(c.cpu * 1'000'000'000);
    t.nice = c.nice;
    t.oom_adj = c.adj;
    t.uid = c.uid;
    t.cap_effective = c.caps;
    EXPECT_EQ(points(t, Nanos(c.age * 1'000'000'000)), c.points) << c.what;
  }
}

TEST_F(OomTest2, TheFirstChildDiesInsteadOfItsParentHoweverSmall) {
  Task& parent = add("parent", {.anon = 900});
  add("disabled child", {.anon = 800}, &parent).oom_adj = OOM_DISABLE;
  add("child", {.anon = 1}, &parent);
  add("larger child", {.anon = 300}, &parent);
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"child"});
}

TEST_F(OomTest2, WhoIsDisabledOrSharesMemoryWithSomebodyDisabledLives) {
  Task& shared = add("sharer", {.anon = 900});
  add("disabled", {.anon = 800}, nullptr, shared.mm).oom_adj = OOM_DISABLE;
  add("alone", {.anon = 700}).oom_adj = OOM_DISABLE;
  add("small", {.anon = 1});
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"small"});
}

TEST_F(OomTest2, SomebodyDiesEvenWithoutAPoint) {
  add("nothing", {}).oom_adj = -16;
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"nothing"});
}

TEST_F(OomTest2, SwapoffIsTheFirstCandidate) {
  add("large", {.anon = 900});
  add("swapoff", {.anon = 1}).oom_origin = true;
  EXPECT_TRUE(kill());
  EXPECT_EQ(killed, std::vector<std::string>{"swapoff"});
}

TEST_F(OomTest2, WhileSomebodyExitsNobodyIsKilled) {
  add("exiting", {.anon = 1}).exiting = true;
  add("large", {.anon = 900});
  EXPECT_TRUE(kill());
  EXPECT_TRUE(killed.empty());
}

TEST_F(OomTest2, TheReportHasNoTaskTable) {
  add("large", {.anon = 900}).oom_adj = 1;
  EXPECT_TRUE(kill());
  EXPECT_EQ(log[0].substr(log[0].size() - 23), ", order=0, oomkilladj=0");
  EXPECT_EQ(line("Mem-info:"), "Mem-info:");
  EXPECT_EQ(line("Out of memory:"), "Out of memory: kill process 100 (large) score 1800 or a child");
  EXPECT_EQ(line("Killed process"), "Killed process 100 (large)");
  EXPECT_EQ(line("["), "no line begins with [");
}

TEST_F(OomTest2, AFaultWithoutMemoryKillsWhoTookIt) {
  Task& me = add("me", {.anon = 1});
  add("large", {.anon = 900});
  run_world(
      {}, [&] { EXPECT_FALSE(oom.fault_out_of_memory(me)); }, &log);
  EXPECT_EQ(killed, std::vector<std::string>{"me"});
  EXPECT_EQ(log, std::vector<std::string>{"VM: killing process me"});
}

TEST_F(OomTest3, AFaultWithoutMemoryAsksForTheWorst) {
  Task& me = add("me", {.anon = 1});
  add("large", {.anon = 900});
  run_world(
      {}, [&] { EXPECT_TRUE(oom.fault_out_of_memory(me)); }, &log);
  EXPECT_EQ(killed, std::vector<std::string>{"large"});
}

// ---- Whole machines -------------------------------------------------------------------------------------------------

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

// A victim that hangs: nobody else is killed for it, its memory comes back by the reaper.
TEST(Oom, TheMemoryOfAVictimThatHangsIsReaped) {
  ReclaimWorld w({.threads = weir::MachineOptions::Threads::all});
  Task* stuck = nullptr;
  Task* other = nullptr;
  w.run([&] { stuck = &w.task("stuck"), other = &w.task("other"); });
  int64_t locked = 0, left = -1;
  w.spawn(*stuck, [&] {
    const VirtAddr a = w.map(*stuck, 2500), b = w.map(*stuck, 100);
    ASSERT_TRUE(w.m().spaces.mlock(*stuck, b, 100 * PAGE_SIZE));
    w.fill(*stuck, a, 2500, 1);
    locked = stuck->mm->locked_vm;
    const Nanos end = world().now() + 20_s;
    while (world().now() < end) world().schedule_timeout(1_s);  // whoever wakes it
    left = stuck->mm->rss(RssKind::anon);
    current().task = nullptr;
    w.exit(*stuck);
  });
  w.spawn(*other, [&] {
    world().schedule_timeout(1_s);
    const VirtAddr a = w.map(*other, 2400);
    w.fill(*other, a, 2400, 5);
    EXPECT_LT(world().now(), 3_s) << "it did not wait for the one that hangs";
    for (uint64_t p = 0; p < 2400; ++p) ASSERT_NE(w.get(*other, w.at(a, p)), 0u);
  });
  w.run();
  EXPECT_EQ(locked, 100);
  EXPECT_EQ(left, 100) << "locked pages stay, everything else is gone";
  EXPECT_EQ(w.event(VmEvent::oom_kill), 1u);
}

// The tasklist lock is all that a kill takes, and the victim may be in the middle of an allocation of its own.
TEST(Oom, AVictimThatAnotherThreadPickedHasTheReservesAtOnce) {
  ReclaimWorld w({.threads = weir::MachineOptions::Threads::none});
  Task* victim = nullptr;
  w.run([&] {
    victim = &w.task("victim");
    w.map(*victim, 10);
  });
  int64_t refused_at = -1;
  w.spawn(*victim, [&] {
    PageAllocator& pages = w.m().pages;
    std::vector<Page*> taken;
    const auto take = [&] {
      while (Page* page = pages.alloc_page(GFP_NOWAIT | __GFP_NOWARN)) taken.push_back(page);
      return pages.nr_free_pages().v;
    };
    const int64_t before = take();
    world().schedule_timeout(1_s);  // the other one picks us
    refused_at = take();
    EXPECT_LT(refused_at, before * 3 / 4) << "half of the reserve is a victim's";
    for (Page* page : taken) pages.__free_pages(*page, Order(0));
  });
  w.world.spawn("killer", [&] {
    world().schedule_timeout(10_ms);
    EXPECT_TRUE(w.m().oom.out_of_memory({.gfp = GFP_KERNEL, .order = Order(0)}));
  });
  w.run();
  EXPECT_GE(refused_at, 0);
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
