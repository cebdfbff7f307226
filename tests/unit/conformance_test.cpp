// tests/unit/conformance_test.cpp: the checker that holds runs to the documents' flows, on recordings written by hand
#include "flows/conformance.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flows/synthetic.hpp"
#include "places.hpp"

namespace weir::flows {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

// One flow named "f" with these keys and steps, and what shows its states.
FlowTable table_of(const std::string& keys, const std::string& steps, const std::string& evidence = "") {
  return FlowTable("no_effect = [ { fn = \"hint\", why = \"\" } ]\n[[flow]]\nid = \"f\"\n" + keys + "\nsteps = [\n" +
                       steps + "\n]\n",
                   evidence.empty() ? "" : "[f]\n" + evidence);
}

std::string wrong_in(const FlowTable& table, std::string_view script) {
  const Recording run = recording_of(script);
  return check(table, "f", std::span(&run, 1)).report;
}

// |-->a        |-->a
//     |-->b         |-->b |-->c
constexpr const char* A_BC = R"(
  { fn = "a", file = "x", depth = 0 },
  { fn = "b", file = "x", depth = 1 },
  { fn = "c", file = "x", depth = 1 },
  { fn = "d", file = "x", depth = 2 },
)";

TEST(Conformance, OrderWantsEachStepInItsPlace) {
  const FlowTable table = table_of("check = \"order\"", A_BC);
  EXPECT_THAT(wrong_in(table, "a { b { } c { d { } } }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "x { a { y { b { z { } } } c { y { d { } } } } }"), IsEmpty())
      << "what lies between does not matter";
  EXPECT_THAT(wrong_in(table, "b { } a { c { } b { } c { d { } b { } } } d { }"), IsEmpty()) << "nor what comes before";

  EXPECT_THAT(wrong_in(table, "a { b { } d { } }"), HasSubstr("c (x), depth 1 is missing: never called"));
  EXPECT_THAT(wrong_in(table, "b { } c { d { } }"), HasSubstr("a (x), depth 0 is missing"));
  EXPECT_THAT(wrong_in(table, "a { c { d { } } b { } }"),
              HasSubstr("c (x), depth 1 is out of place: below a it does not come after b"));
  EXPECT_THAT(wrong_in(table, "a { b { } c { } d { } }"),
              HasSubstr("d (x), depth 2 is out of place: it occurs, but not below c"));
  EXPECT_THAT(wrong_in(table, "a { b { c { d { } } } }"),
              HasSubstr("c (x), depth 1 is out of place: below a it does not come after b"));
  EXPECT_THAT(wrong_in(table, "a { b { } } c { d { } }"),
              HasSubstr("c (x), depth 1 is out of place: it occurs, but not below a"));
}

TEST(Conformance, APlaceIsLookedForInEveryCall) {
  const FlowTable table = table_of("check = \"order\"", A_BC);
  EXPECT_THAT(wrong_in(table, "a { b { } } a { c { d { } } } a { b { } c { d { } } } a { }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "a { b { } } a { c { d { } } }"), HasSubstr("out of place"))
      << "half in one call and half in another";
  EXPECT_THAT(wrong_in(table, "a { a { b { } } c { d { } } }"), IsEmpty()) << "a function may be within itself";
}

TEST(Conformance, TasksAreKeptApart) {
  const FlowTable table = table_of("check = \"order\"", A_BC);
  EXPECT_THAT(wrong_in(table, "a { b { } @2 c { d { } } @1 }"), HasSubstr("not below a"));
  EXPECT_THAT(wrong_in(table, "a { @2 x { @1 b { } c { @2 } @1 d { } } }"), IsEmpty());
}

TEST(Conformance, AnUnfinishedCallStillHoldsWhatIsBelowIt) {
  const FlowTable table = table_of("check = \"order\"", A_BC);
  EXPECT_THAT(wrong_in(table, "a { b { } c { d {"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "b { } }a a { c { d { } }"), HasSubstr("b (x), depth 1 is out of place"))
      << "what was running when the recording began was not seen to be called";
}

TEST(Conformance, OptionalStepsAndStepsWithoutEffectAreNotRequired) {
  const FlowTable table = table_of("check = \"order\"\nnot_in_kernel = [\"never\"]", R"(
    { fn = "a", file = "x", depth = 0 },
    { fn = "maybe", file = "x", depth = 1, optional = true },
    { fn = "b", file = "x", depth = 2 },
    { fn = "hint", file = "x", depth = 1 },
    { fn = "never", file = "x", depth = 1, kernel_name = "instead" },
    { fn = "c", file = "x", depth = 2 },
  )");
  EXPECT_THAT(wrong_in(table, "a { b { } c { } }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "a { maybe { b { } } c { } }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "a { b { c { } } }"), HasSubstr("c (x)"));
}

TEST(Conformance, WhenMakesAStepRequiredWhereItsConditionOccurs) {
  const FlowTable table = table_of("check = \"order\"", R"(
    { fn = "a", file = "x", depth = 0 },
    { fn = "slow", file = "x", depth = 1, optional = true },
    { fn = "work", file = "x", depth = 2, when = "slow" },
    { fn = "b", file = "x", depth = 1 },
  )");
  EXPECT_THAT(wrong_in(table, "a { b { } }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "a { slow { work { } } b { } }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "a { slow { } b { } }"), HasSubstr("work (x), depth 2 is missing"));
  EXPECT_THAT(wrong_in(table, "a { slow { } work { } b { } }"),
              HasSubstr("work (x), depth 2 is out of place: it occurs, but not below slow"));
  EXPECT_THAT(wrong_in(table, "a { b { } slow { work { } } }"), HasSubstr("b (x)")) << "the slow way has its place too";
  // Both ways in one run: each must be right somewhere.
  EXPECT_THAT(wrong_in(table, "a { b { } } a { slow { work { } } b { } }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "a { b { } } a { slow { } b { } }"),
              HasSubstr("slow occurs, but wherever it does, work (x), depth 2 is missing"));
  EXPECT_THAT(wrong_in(table, "a { b { } } a { slow {"), IsEmpty()) << "a call that is not finished proves nothing";
  EXPECT_THAT(wrong_in(table, "slow { } a { b { } }"), IsEmpty()) << "not in this flow";
}

TEST(Conformance, APointerCallIsItsCallee) {
  const FlowTable table = table_of("check = \"order\"", R"(
    { fn = "walk", file = "x", depth = 0 },
    { state = "ops.one = do_one", depth = 1, callee = "do_one" },
    { fn = "ops->one", file = "x", depth = 1, callee = "do_one" },
    { fn = "do_one", file = "x", depth = 2 },
    { fn = "leaf", file = "x", depth = 3 },
    { fn = "vma->fault", file = "x", depth = 1, callee_any = ["file_fault", "shm_fault"] },
    { fn = "mn->told", file = "x", depth = 1, callee_any = [] },
  )");
  EXPECT_THAT(wrong_in(table, "walk { do_one { leaf { } } shm_fault { } anything { } }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "walk { leaf { } file_fault { } anything { } }"),
              HasSubstr("do_one (x), depth 1 is missing"));
  EXPECT_THAT(wrong_in(table, "walk { do_one { leaf { } } other_fault { } anything { } }"),
              HasSubstr("vma->fault (x)"));
  EXPECT_THAT(wrong_in(table, "walk { do_one { leaf { } } file_fault { } }"), HasSubstr("mn->told (x)"));
}

TEST(Conformance, ADeferredStepRunsInAContextOfItsOwn) {
  const FlowTable table = table_of("check = \"order\"\ndeferred = [\"thread\"]", R"(
    { fn = "start", file = "x", depth = 0 },
    { fn = "create", file = "x", depth = 1 },
    { fn = "thread", file = "x", depth = 2 },
    { fn = "loop", file = "x", depth = 3 },
    { fn = "last", file = "x", depth = 1 },
  )");
  EXPECT_THAT(wrong_in(table, "start { create { } last { } } @2 thread { loop { }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "start { create { @2 thread { @1 } last { } } @2 loop {"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "@2 thread { loop { } @1 start { create { } last { } }"),
              HasSubstr("thread (x), depth 2 is out of place: it never begins after create"));
  EXPECT_THAT(wrong_in(table, "start { create { } last { } } @2 thread { @3 loop { }"), HasSubstr("loop (x), depth 3"));
}

TEST(Conformance, UnplacedNamesMayOccurAnywhere) {
  const FlowTable table = table_of("check = \"order\"\nunplaced = [\"again\"]", R"(
    { fn = "a", file = "x", depth = 0 },
    { fn = "again", file = "x", depth = 1 },
    { fn = "b", file = "x", depth = 2 },
  )");
  EXPECT_THAT(wrong_in(table, "again { } a { b { } }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "a { b { } }"), HasSubstr("again (x), depth 1 is missing"));
}

TEST(Conformance, KernelOrderOverridesTheFilesOrder) {
  const std::string steps = R"(
    { fn = "a", file = "x", depth = 0 },
    { fn = "b", file = "x", depth = 1 },
    { fn = "c", file = "x", depth = 1 },
    { fn = "b", file = "x", depth = 1 },
    { fn = "late", file = "x", depth = 1, optional = true },
  )";
  const FlowTable nested = table_of("check = \"order\"\nkernel_order = [\"a\", \"c\", \"b\", \"b\"]", steps);
  EXPECT_THAT(wrong_in(nested, "a { c { } b { } b { } }"), IsEmpty());
  EXPECT_THAT(wrong_in(nested, "a { b { } c { } b { } }"), HasSubstr("b (x), depth 1 is out of place"))
      << "twice in the list, twice in the run";
  EXPECT_THAT(wrong_in(nested, "a { c { b { } } b { } }"), HasSubstr("b (x), depth 1 is out of place"));

  const FlowTable unnested =
      table_of("check = \"order\"\nseed_vs_kernel = [\"order\"]\nkernel_order = [\"a\", \"c\", \"b\", \"b\"]", steps);
  EXPECT_THAT(wrong_in(unnested, "a { c { b { b { } } } }"), IsEmpty()) << "only beginnings are ordered";
  EXPECT_THAT(wrong_in(unnested, "a { b { } c { } b { } }"), HasSubstr("b (x), depth 1 is out of place: not after b"));
  EXPECT_THAT(wrong_in(unnested, "a { c { b { } } } b { }"), HasSubstr("out of place")) << "one root holds it all";

  const FlowTable all =
      table_of("check = \"order\"\nkernel_order = [\"a\", \"c\"]\nkernel_order_all = [\"a\", \"late\", \"c\"]", steps);
  EXPECT_THAT(wrong_in(all, "late { } a { b { } b { } c { } }"), IsEmpty());
  EXPECT_THAT(wrong_in(all, "a { b { } b { } late { } c { } late { } }"), IsEmpty());
  EXPECT_THAT(wrong_in(all, "a { b { } b { } c { } late { } }"),
              HasSubstr("c is out of place: it is first called before late"));
  const FlowTable earlier =
      table_of("check = \"order\"\nkernel_order = [\"a\", \"c\"]\nkernel_order_all = [\"a\", \"late\", \"c\"]", steps,
               "earlier_too = [\"c\"]\n");
  EXPECT_THAT(wrong_in(earlier, "a { b { } b { } c { } late { } }"), IsEmpty());
}

TEST(Conformance, SeveralRootsAreSuccessiveContexts) {
  const FlowTable table = table_of("check = \"order\"", R"(
    { fn = "a", file = "x", depth = 0 },
    { fn = "b", file = "x", depth = 0 },
    { fn = "c", file = "x", depth = 0 },
  )");
  EXPECT_THAT(wrong_in(table, "a { b { c { } } }"), IsEmpty()) << "a chain of arrows";
  EXPECT_THAT(wrong_in(table, "a { } @2 b { } @3 c { }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "a { } c { } b { }"), HasSubstr("c (x), depth 0 is out of place: not after b"));
}

TEST(Conformance, ASetWantsEachNameInOneRunOrSeveral) {
  const FlowTable table = table_of("check = \"set\"\nordered = false", A_BC);
  EXPECT_THAT(wrong_in(table, "d { } b { a { } } c { }"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "d { } b { a { } }"), HasSubstr("c (x), depth 1 is missing"));
  const Recording runs[] = {recording_of("a { } b { }"), recording_of("c { } d { }")};
  EXPECT_TRUE(check(table, "f", runs).conforms);
}

TEST(Conformance, StatesAreSeenByTheirEvidence) {
  const std::string steps = R"(
    { fn = "a", file = "x", depth = 0 },
    { state = "the count goes up", depth = 1 },
    { fn = "b", file = "x", depth = 1 },
    { state = "it is done", depth = 0 },
  )";
  const std::string evidence =
      "\"the count goes up\" = \"swap_map after > before, subject != 0 | fn count_up\"\n\"it is done\" = "
      "\"page_freed\"\n";
  const FlowTable among = table_of("check = \"order\"", steps, evidence);
  EXPECT_THAT(wrong_in(among, "a { swap_map 1 0 1 b { } } page_freed 0 0 0"), IsEmpty());
  EXPECT_THAT(wrong_in(among, "a { count_up { } b { } } page_freed 0 0 0"), IsEmpty());
  EXPECT_THAT(wrong_in(among, "a { swap_map 1 2 1 b { } } page_freed 0 0 0"),
              HasSubstr("state step \"the count goes up\" is missing: nothing shows it"));
  EXPECT_THAT(wrong_in(among, "a { swap_map 0 0 1 b { } } page_freed 0 0 0"), HasSubstr("the count goes up"));
  EXPECT_THAT(wrong_in(among, "a { b { } swap_map 1 0 1 } page_freed 0 0 0"),
              HasSubstr("b (x), depth 1 is out of place"));
  EXPECT_THAT(wrong_in(among, "swap_map 1 0 1 a { b { } } page_freed 0 0 0"), HasSubstr("not below a"));
  EXPECT_THAT(wrong_in(among, "page_freed 0 0 0 a { swap_map 1 0 1 b { } }"),
              HasSubstr("state step \"it is done\" is out of place"));

  const FlowTable apart = table_of(
      "check = \"order\"\nkernel_order = [\"a\", \"b\"]\nkernel_states = [\"it is done\", \"the count goes up\"]",
      steps, evidence);
  EXPECT_THAT(wrong_in(apart, "page_freed 0 0 0 a { b { } } swap_map 1 0 1"), IsEmpty());
  EXPECT_THAT(wrong_in(apart, "a { b { swap_map 1 0 1 } } page_freed 0 0 0"), HasSubstr("the count goes up"));

  const FlowTable only = table_of("check = \"state\"", steps, evidence);
  EXPECT_THAT(wrong_in(only, "swap_map 1 0 1 page_freed 0 0 0"), IsEmpty()) << "no function is required";

  EXPECT_THAT(wrong_in(table_of("check = \"state\"", steps), "x { }"), HasSubstr("has no entry in states.toml"));
  EXPECT_THAT(wrong_in(table_of("check = \"state\"", steps,
                                "\"the count goes up\" = \"unseen: a word of prose\"\n\"it is done\" = \"page_freed\""),
                       "page_freed 0 0 0"),
              IsEmpty());
}

TEST(Conformance, AFunctionDrawnBelowAStateMayRecordItItself) {
  const std::string evidence = "\"trap\" = \"fault\"\n\"back\" = \"fault_return\"";
  const std::string roots = R"(
    { state = "trap", depth = 0 },
    { fn = "handle", file = "x", depth = 1 },
    { fn = "inner", file = "x", depth = 2 },
    { state = "back", depth = 0 },
  )";
  const FlowTable at_root = table_of("check = \"order\"", roots, evidence);
  EXPECT_THAT(wrong_in(at_root, "fault 1 0 0 handle { inner { } } fault_return 1 0 0"), IsEmpty());
  EXPECT_THAT(wrong_in(at_root, "handle { rss 0 0 0 fault 1 0 0 inner { } fault_return 1 0 0 }"), IsEmpty());
  EXPECT_THAT(wrong_in(at_root, "handle { inner { } fault 1 0 0 fault_return 1 0 0 }"),
              HasSubstr("handle (x), depth 1 is out of place"));
  EXPECT_THAT(wrong_in(at_root, "handle { inner { fault 1 0 0 } fault_return 1 0 0 }"),
              HasSubstr("handle (x), depth 1 is out of place"));

  const FlowTable inside = table_of("check = \"order\"", R"(
    { fn = "top", file = "x", depth = 0 },
    { state = "trap", depth = 1 },
    { fn = "handle", file = "x", depth = 2 },
    { state = "back", depth = 1 },
  )",
                                    evidence);
  EXPECT_THAT(wrong_in(inside, "top { fault 1 0 0 handle { } fault_return 1 0 0 }"), IsEmpty());
  EXPECT_THAT(wrong_in(inside, "top { handle { fault 1 0 0 fault_return 1 0 0 } }"), IsEmpty());
  EXPECT_THAT(wrong_in(inside, "top { handle { other { } fault 1 0 0 fault_return 1 0 0 } }"),
              HasSubstr("handle (x), depth 2 is out of place"));
}

TEST(Conformance, AStateElsewhereHappensInAnyTaskOnceItsCallHasBegun) {
  const FlowTable table = table_of("check = \"order\"", R"(
    { fn = "a", file = "x", depth = 0 },
    { state = "written", depth = 1 },
  )",
                                   "\"written\" = \"io_done elsewhere\"");
  EXPECT_THAT(wrong_in(table, "a { } @2 io_done 0 0 0"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "@2 io_done 0 0 0 @1 a { }"), HasSubstr("it never begins after a"));
}

TEST(Conformance, BitsOfAValueCanBeAsked) {
  const FlowTable table = table_of("check = \"state\"", "{ state = \"swapped\", depth = 0 },",
                                   "\"swapped\" = \"pte before & 1 == 1, after & 0x1 == 0, after != 0\"");
  EXPECT_THAT(wrong_in(table, "pte 0x1000 0x5067 0x5400"), IsEmpty());
  EXPECT_THAT(wrong_in(table, "pte 0x1000 0x5067 0"), HasSubstr("swapped"));
  EXPECT_THAT(wrong_in(table, "pte 0x1000 0x5400 0x5067"), HasSubstr("swapped"));
}

TEST(Conformance, WhatARunMustShowIsRequired) {
  const std::string steps = R"(
    { fn = "a", file = "x", depth = 0 },
    { fn = "maybe", file = "x", depth = 1, optional = true },
    { state = "went well", depth = 1, optional = true },
  )";
  EXPECT_THAT(wrong_in(table_of("check = \"order\"", steps), "a { }"), IsEmpty());
  const FlowTable table =
      table_of("check = \"order\"", steps, "shown = [\"maybe\", \"went well\"]\n\"went well\" = \"rss\"");
  EXPECT_THAT(wrong_in(table, "a { }"), HasSubstr("is missing"));
  EXPECT_THAT(wrong_in(table, "a { rss 0 0 0 maybe { } }"), HasSubstr("went well"));
  EXPECT_THAT(wrong_in(table, "a { maybe { } rss 0 0 0 }"), IsEmpty());
}

TEST(Conformance, ARecordingWithGapsProvesNothing) {
  const FlowTable table = table_of("check = \"order\"", A_BC);
  Recording run = recording_of("a { b { } c { d { } } }");
  run.lost = 1;
  EXPECT_THAT(check(table, "f", std::span(&run, 1)).report, HasSubstr("gaps"));
  EXPECT_THAT(check(table, "f", {}).report, HasSubstr("no run"));
}

TEST(Conformance, TablesThatDoNotFitAreRefusedWithAWord) {
  auto refusal = [](const std::string& flows, const std::string& states) {
    try {
      const FlowTable table(flows, states);
      return std::string("none");
    } catch (const std::exception& e) {
      return std::string(e.what());
    }
  };
  const std::string flow = "[[flow]]\nid = \"f\"\ncheck = \"state\"\nsteps = [ { state = \"s\", depth = 0 } ]\n";
  EXPECT_EQ(refusal(flow, "[f]\n\"s\" = \"rss\""), "none");
  EXPECT_THAT(refusal(flow, "[g]\n\"s\" = \"rss\""), HasSubstr("flow g: states.toml has it, flows.toml does not"));
  EXPECT_THAT(refusal(flow, "[f]\n\"t\" = \"rss\""), HasSubstr("\"t\" in states.toml is no state step"));
  EXPECT_THAT(refusal(flow, "[f]\nshown = [\"t\"]"), HasSubstr("wants \"t\" shown"));
  EXPECT_THAT(refusal(flow, "[f]\n\"s\" = \"no_such_state\""), HasSubstr("no state change is called 'no_such_state'"));
  EXPECT_THAT(refusal(flow, "[f]\n\"s\" = \"rss after\""), HasSubstr("ends too early"));
  EXPECT_THAT(refusal(flow, "[f]\n\"s\" = \"rss after ~ 1\""), HasSubstr("'~' does not compare"));
  EXPECT_THAT(refusal(flow, "[f]\n\"s\" = \"rss after > much\""), HasSubstr("'much' is no number"));
  EXPECT_THAT(refusal(flow, "[f]\n\"s\" = \"rss after > 1 rss\""), HasSubstr("'rss' is not understood"));
  EXPECT_THAT(refusal("[[flow]]\nid = \"f\"\ncheck = \"maybe\"\n", ""), HasSubstr("check is \"maybe\""));
  EXPECT_THAT(
      refusal(flow + "[[flow]]\nid = \"g\"\ncheck = \"state\"\ncontinues = \"f\"\nat = \"s\"\nsteps = []\n", ""),
      HasSubstr("flow g: it should begin with s"));
}

// ---- The project's own tables ----

TEST(FlowTables, EveryHeldFlowIsInTheTableAndHasEvidenceForItsStates) {
  const std::vector<std::string> ids = held(std::string(WEIR_SOURCE_DIR) + "/tests/flows/held.txt");
  EXPECT_GE(ids.size(), 13u);
  EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), ids.size()) << "a flow stands twice";
  for (const std::string& id : ids) {
    const Flow& flow = table().flow(id);
    for (const Step& step : flow.steps) {
      if (!step.state.empty() && step.callee.empty()) {
        EXPECT_TRUE(flow.evidence.contains(step.state)) << id << ": " << step.state;
      }
    }
  }
}

TEST(FlowTables, NoFlowHoldsInAnEmptyRun) {
  const Recording nothing = recording_of("");
  for (const std::string& id : held(std::string(WEIR_SOURCE_DIR) + "/tests/flows/held.txt"))
    EXPECT_FALSE(conforms(id, nothing)) << id;
}

TEST(FlowTables, FlowsThatContinueOthersAreSplicedIn) {
  const std::vector<Step> steps = table().whole("kmalloc");
  EXPECT_EQ(steps.size(), table().flow("kernel-request").steps.size() - 1 + table().flow("kmalloc").steps.size());
  EXPECT_EQ(steps[0].fn, "kmalloc");
  EXPECT_EQ(steps[1].state, "select SLAB cache (kmalloc-XX)");
  const std::vector<Step> deep = table().whole("alloc-slowpath-4-14");
  EXPECT_EQ(deep[0].fn, "mmap_mem") << "the chain of remap-pfn-range, alloc-fastpath, alloc-slowpath-4-14";
  const auto slow =
      std::find_if(deep.begin(), deep.end(), [](const Step& step) { return step.fn == "__alloc_pages_slowpath"; });
  EXPECT_EQ(slow->depth, 13u);
}

// A run that does just what the flow's tree says, but for one function, whose callees its caller then calls. Deferred
// steps run in task 2.
std::string drawn(const Flow& flow, const std::string& without) {
  std::string script, other;
  struct Open {
    unsigned depth;
    std::string* where;  // null: drawn by nobody
  };
  std::vector<Open> open;
  auto close = [&](unsigned depth) {
    for (; !open.empty() && open.back().depth >= depth; open.pop_back())
      if (open.back().where != nullptr) *open.back().where += "} ";
  };
  std::string pending;  // the callee of the pointer call just drawn
  for (const Step& step : flow.steps) {
    close(step.depth);
    std::string* where = &script;
    for (const Open& around : open)
      if (around.where == &other) where = &other;
    if (has(flow.deferred, step.fn)) where = &other;
    const std::string name = step.callee.empty() ? step.fn : step.callee;
    const bool same = !step.fn.empty() && step.fn == pending;
    if (step.fn.empty() || same || name == without) {
      open.push_back({step.depth, nullptr});
    } else {
      *where += name + " { ";
      open.push_back({step.depth, where});
    }
    if (!step.fn.empty()) pending = step.callee;
  }
  close(0);
  return script + "@2 " + other;
}

TEST(FlowTables, ARunThatDoesJustWhatAFlowSaysConformsAndOneThatLeavesOutAStepDoesNot) {
  int flows = 0, steps = 0;
  for (const Flow& flow : table().flows()) {
    const bool in_words = std::any_of(flow.steps.begin(), flow.steps.end(), [](const Step& step) {
      return !step.state.empty() && step.callee.empty() && !step.optional;
    });
    if (flow.check != Check::order || flow.kernel_order || in_words) continue;
    ++flows;
    const testing::AssertionResult whole = conforms(flow.id, recording_of(drawn(flow, "")));
    EXPECT_TRUE(whole) << drawn(flow, "");
    for (const Step& step : flow.steps) {
      if (step.fn.empty() || step.optional || !table().has_effect(step.fn) || has(flow.not_in_kernel, step.fn))
        continue;
      if (has(flow.unplaced, step.fn) || has(flow.without, step.fn)) continue;
      ++steps;
      const std::string name = step.callee.empty() ? step.fn : step.callee;
      EXPECT_FALSE(conforms(flow.id, recording_of(drawn(flow, name)))) << flow.id << " without " << name;
    }
  }
  EXPECT_GE(flows, 25);
  EXPECT_GE(steps, 100);
}

// Runs of flows of the table as a kernel would show them, then with one thing wrong.
TEST(HeldFlows, Kswapd) {
  constexpr std::string_view RUN =
      "kswapd_run { kthread_run { } } @2 kswapd { try_to_freeze { } balance_pgdat { kswapd_shrink_node { shrink_node { "
      "} } }";
  EXPECT_TRUE(conforms("kswapd", recording_of(RUN)));
  EXPECT_FALSE(conforms(
      "kswapd",
      recording_of(
          "kswapd_run { kthread_run { } } @2 kswapd { balance_pgdat { kswapd_shrink_node { } shrink_node { } }")));
  EXPECT_FALSE(conforms(
      "kswapd",
      recording_of("kswapd_run { kthread_run { } } @2 balance_pgdat { kswapd_shrink_node { shrink_node { } } }")));
}

TEST(HeldFlows, AddToSwap) {
  constexpr std::string_view CACHE =
      "add_to_swap_cache { radix_tree_maybe_preload_order { } __add_to_swap_cache { page_ref_add { } "
      "swap_address_space { } "
      "radix_tree_insert { __radix_tree_insert { radix_tree_is_internal_node { } __radix_tree_create { } "
      "insert_entries { } } } } "
      "radix_tree_preload_end { } }";
  EXPECT_TRUE(conforms("add-to-swap", recording_of("shrink_page_list { add_to_swap { get_swap_page { } " +
                                                   std::string(CACHE) + " } }")));
  EXPECT_THAT(
      std::string(conforms("add-to-swap", recording_of("add_to_swap { " + std::string(CACHE) + " get_swap_page { } }"))
                      .message()),
      HasSubstr("add_to_swap_cache (swap_state), depth 1 is out of place: below add_to_swap it does not come after "
                "get_swap_page"));
}

TEST(HeldFlows, OomAndAnonymousFault) {
  EXPECT_TRUE(conforms("anon-fault-4-14", recording_of("handle_mm_fault { do_anonymous_page { } }")));
  EXPECT_TRUE(conforms("oom-4-14", recording_of("out_of_memory { select_bad_process { } oom_kill_process { } }")));
  EXPECT_FALSE(conforms("oom-4-14", recording_of("out_of_memory { oom_kill_process { } select_bad_process { } }")));
  EXPECT_FALSE(conforms("oom-4-14", recording_of("out_of_memory { select_bad_process { oom_kill_process { } } }")));
}

TEST(HeldFlows, Requests) {
  EXPECT_TRUE(conforms("user-request", recording_of("mmap { user_request 0x1000 0 8192 vma_create 0x1000 0 0x3000 }")));
  EXPECT_FALSE(
      conforms("user-request", recording_of("mmap { vma_create 0x1000 0 0x3000 user_request 0x1000 0 8192 }")));
  EXPECT_TRUE(
      conforms("kernel-request", recording_of("kmalloc { kmem_cache_select 64 50 0 slab_object 5 64 64 } vmalloc { "
                                              "vmalloc_area 0x9000 0 8192 alloc_pages { page_alloced 7 0 0 } }")));
  EXPECT_TRUE(conforms(
      "kmalloc", recording_of("kmalloc { kmem_cache_select 64 50 0 slab_empty 64 0 0 alloc_pages { } slab_new 5 64 0 "
                              "slab_object 5 64 64 }")));
  EXPECT_FALSE(conforms(
      "kmalloc",
      recording_of("kmalloc { slab_empty 64 0 0 slab_new 5 64 0 slab_object 5 64 64 kmem_cache_select 64 50 0 }")));
  EXPECT_FALSE(conforms(
      "kmalloc",
      recording_of("kmalloc { kmem_cache_select 32 50 0 slab_empty 64 0 0 slab_new 5 64 0 slab_object 5 64 64 }")))
      << "a class that is too small";
}

TEST(HeldFlows, AllocPath) {
  constexpr std::string_view FAST =
      "alloc_pages { zonelist 1 0 0 get_page_from_freelist { watermark 1 10 90 pcp_hit 5 3 2 } page_alloced 5 0 0 } ";
  constexpr std::string_view MISS =
      "alloc_pages { zonelist 1 0 0 get_page_from_freelist { watermark 1 10 80 pcp_miss 1 0 0 buddy_find 8 0 2 "
      "buddy_remove 8 1 0 "
      "buddy_split 10 2 1 buddy_split 9 1 0 } page_alloced 8 0 0 } ";
  constexpr std::string_view SHORT =
      "alloc_pages { get_page_from_freelist { watermark_low 1 10 9 } wakeup_kswapd { } try_to_free_pages { "
      "reclaim_start 0 12 32 "
      "page_freed 5 0 12 } get_page_from_freelist { watermark 1 5 12 pcp_hit 5 2 1 } page_alloced 5 0 0 } ";
  auto run = [](std::initializer_list<std::string_view> parts) {
    std::string all;
    for (const std::string_view part : parts) all += part;
    return recording_of(all);
  };
  EXPECT_TRUE(conforms("alloc-path", run({FAST, MISS, SHORT})));
  EXPECT_THAT(std::string(conforms("alloc-path", run({FAST, MISS})).message()),
              HasSubstr("\"not enough memory?\" is missing"));
  EXPECT_THAT(std::string(conforms("alloc-path", run({FAST, SHORT, MISS})).message()), HasSubstr("is out of place"));
}

TEST(HeldFlows, MmapBrkFault) {
  constexpr std::string_view FAULT =
      "fault 0x1000 6 0 do_page_fault { handle_mm_fault { fault_anonymous 0x1000 0 1 alloc_pages { } pte 0x1000 0 "
      "0x5067 } } fault_return 0x1000 0 0";
  EXPECT_TRUE(
      conforms("mmap-brk-fault", recording_of("brk { vma_extend 0x1000 0x1000 0x2000 } " + std::string(FAULT))));
  EXPECT_TRUE(conforms("mmap-brk-fault", recording_of("mmap { } " + std::string(FAULT))))
      << "only brk must show its VMA";
  EXPECT_THAT(std::string(conforms("mmap-brk-fault", recording_of("brk { } " + std::string(FAULT))).message()),
              HasSubstr("create / extend VMA"));
  EXPECT_FALSE(
      conforms("mmap-brk-fault",
               recording_of("fault 0x1000 6 0 do_page_fault { } handle_mm_fault { } fault_return 0x1000 0 0")));
}

TEST(HeldFlows, FilesReclaimAndSwap) {
  EXPECT_TRUE(conforms(
      "page-cache-read",
      recording_of("read { file_request 2 0 0 page_cache_find 2 0 0 page_cache_read 2 0 9 page_cache_return 2 0 9 "
                   "file_request 2 0 0 page_cache_find 2 0 10 page_cache_read 2 1 7 page_cache_return 2 0 9 }")));
  EXPECT_TRUE(conforms("dirty-throttle", recording_of("page_dirtied 5 0 0 dirty_count 0 3 4 balance_dirty_pages { }")));
  EXPECT_FALSE(
      conforms("dirty-throttle", recording_of("balance_dirty_pages { } page_dirtied 5 0 0 dirty_count 0 3 4")));
  EXPECT_FALSE(
      conforms("dirty-throttle", recording_of("page_dirtied 5 0 0 dirty_count 0 4 3 balance_dirty_pages { }")));
  EXPECT_TRUE(conforms(
      "reclaim",
      recording_of(
          "watermark_low 1 10 9 shrink { reclaim_start 0 12 32 scan_lru 0 32 32 drop_clean 5 0 0 write_dirty 6 0 0 "
          "swap_write 66 7 0 } page_freed 5 0 11")));
  EXPECT_TRUE(conforms(
      "swap-system",
      recording_of("swap_slot 66 0 0 pte 0x1000 0x5067 0 pte 0x1000 0 0x5400 swap_write 66 5 0 page_freed 5 0 9")));
  EXPECT_FALSE(conforms(
      "swap-system",
      recording_of("swap_slot 66 0 0 swap_write 66 5 0 pte 0x1000 0x5067 0 pte 0x1000 0 0x5400 page_freed 5 0 9")))
      << "the kernel's order, not the picture's";
}

}  // namespace
}  // namespace weir::flows
