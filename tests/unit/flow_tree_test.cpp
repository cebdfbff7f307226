// tests/unit/flow_tree_test.cpp: recordings as trees, as text and as JSON
#include "record/flow_tree.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "flows/synthetic.hpp"
#include "record/flow_json.hpp"

namespace weir {
namespace {

using testing::HasSubstr;

// The styles that a command would take from mm.
FlowStyles styles() {
  FlowStyles styles;
  styles.pte = [](uint64_t pte) {
    return pte == 0 ? std::string("none") : (pte & 1) != 0 ? "pfn " + std::to_string(pte >> 12) : "swap";
  };
  styles.swap_entry = [](uint64_t entry) {
    return "(" + std::to_string(entry & 31) + "," + std::to_string(entry >> 5) + ")";
  };
  return styles;
}

std::string print(std::string_view script, FlowPrint how = {}) {
  how.styles = styles();
  return print_flow(recording_of(script), how);
}

constexpr std::string_view SWAP_IN = R"(
  do_page_fault {
    handle_mm_fault {
      do_swap_page {
        lookup_swap_cache { }
        pte 0x7f0000001000 0x5404 0x11061
        swap_free { swap_map 1344 2 1 }
      }
    }
    fault_return 0x7f0000001000 0 4
  })";

TEST(FlowTree, PrintsTheDocumentsNotation) {
  EXPECT_EQ(print(SWAP_IN),
            "task 1 (task1)\n"
            "|-->do_page_fault //(do_page_fault.cpp)\n"
            "\t|-->handle_mm_fault //(handle_mm_fault.cpp)\n"
            "\t\t|-->do_swap_page //(do_swap_page.cpp)\n"
            "\t\t\t|-->lookup_swap_cache //(lookup_swap_cache.cpp)\n"
            "\t\t\t|   pte 0x7f0000001000 of mm 0: swap -> pfn 17\n"
            "\t\t\t|-->swap_free //(swap_free.cpp)\n"
            "\t\t\t\t|   swap_map (0,42): 2 -> 1\n"
            "\t|   fault_return 0x7f0000001000: 0x4\n");
}

TEST(FlowTree, ShowsWhatIsAskedFor) {
  EXPECT_EQ(print(SWAP_IN, {.function = "swap_free"}),
            "task 1 (task1)\n|-->swap_free //(swap_free.cpp)\n\t|   swap_map (0,42): 2 -> 1\n");
  EXPECT_EQ(print(SWAP_IN, {.depth = 1, .states = Shown::no}),
            "task 1 (task1)\n"
            "|-->do_page_fault //(do_page_fault.cpp)\n"
            "\t|-->handle_mm_fault //(handle_mm_fault.cpp)\n"
            "\t\t|   3 calls below\n");
  EXPECT_EQ(print(SWAP_IN, {.first = 2, .times = Shown::yes}),
            "task 1 (task1)\n"
            "|-->do_page_fault //(do_page_fault.cpp) @0\n"
            "\t|-->handle_mm_fault //(handle_mm_fault.cpp) @10\n");
  EXPECT_EQ(print("a { } @2 b { } @1 c { }", {.task = "2"}), "task 2 (task2)\n|-->b //(b.cpp)\n");
  EXPECT_EQ(print("a { } @2 b { } @1 c { }", {.task = "task1", .function = "c"}), "task 1 (task1)\n|-->c //(c.cpp)\n");
  EXPECT_EQ(print("a { } @2 b { } @1 c { }", {.task = "3"}), "");
}

TEST(FlowTree, ShowsTheSurroundingsOfAnEvent) {
  EXPECT_EQ(print("a { b { } c { d { } rss 1 2 3 } e { } }", {.around = 6, .radius = 1}),
            "task 1 (task1)\n"
            "|-->a //(a.cpp)\n"
            "\t|-->c //(c.cpp)\n"
            "\t\t|   rss mm 1: 2 -> 3\n");
}

TEST(FlowTree, EveryTaskHasItsOwnNesting) {
  EXPECT_EQ(print("a { @2 kswapd { @1 b { } @2 x { } @1 } @2"),
            "task 1 (task1)\n|-->a //(a.cpp)\n\t|-->b //(b.cpp)\n"
            "task 2 (task2)\n|-->kswapd //(kswapd.cpp) (running when it ended)\n\t|-->x //(x.cpp)\n");
}

TEST(FlowTree, ACallWhoseBeginningIsGoneEnclosesWhatCameBefore) {
  EXPECT_EQ(print("inner { } }middle x { } }outer last { }"),
            "task 1 (task1)\n"
            "|-->outer //(outer.cpp) (running when the recording began)\n"
            "\t|-->middle //(middle.cpp) (running when the recording began)\n"
            "\t\t|-->inner //(inner.cpp)\n"
            "\t|-->x //(x.cpp)\n"
            "|-->last //(last.cpp)\n");
}

TEST(FlowTree, AnEndThatWasLostIsSuppliedByTheNextOneAround) {
  EXPECT_EQ(print("a { b { c { }a d { }"),
            "task 1 (task1)\n|-->a //(a.cpp)\n\t|-->b //(b.cpp)\n\t\t|-->c //(c.cpp)\n|-->d //(d.cpp)\n");
}

TEST(FlowTree, ItemsKnowTheirSubtreeAndTheirEnd) {
  const auto forest = flow_forest(recording_of("a { b { rss 1 0 0 } } c {"));
  ASSERT_EQ(forest.size(), 1u);
  const auto& items = forest[0].items;
  ASSERT_EQ(items.size(), 4u);
  EXPECT_EQ(items[0].end, 3u);
  EXPECT_EQ(items[0].leave, 4u);
  EXPECT_EQ(items[1].parent, 0u);
  EXPECT_EQ(items[1].leave, 3u);
  EXPECT_FALSE(items[2].is_call);
  EXPECT_EQ(items[2].depth, 2u);
  EXPECT_EQ(items[3].leave, FlowItem::NONE);
  EXPECT_EQ(items[3].parent, FlowItem::NONE);
}

TEST(FlowTree, EveryStateHasWordsOfItsOwn) {
  Recording recording = recording_of("");
  FlowEvent event;
  for (size_t i = 0; i < recording.states.size(); ++i) {
    event.kind = static_cast<uint16_t>(FlowEvent::STATE + i);
    event.value[0] = 101;
    event.value[1] = 2;
    event.value[2] = 103;
    const std::string text = describe_state(recording, event, styles());
    EXPECT_THAT(text, testing::StartsWith(recording.states[i] + " "));
    EXPECT_THAT(text, testing::Not(HasSubstr("{"))) << "a place that is not filled in";
    EXPECT_THAT(text, testing::MatchesRegex(".*[0-9].*"));
  }
  recording.states.push_back("from_the_future");
  event.kind = static_cast<uint16_t>(FlowEvent::STATE + recording.states.size() - 1);
  EXPECT_EQ(describe_state(recording, event), "from_the_future 101: 2 -> 103");
}

TEST(FlowTree, StatesSayNamesAndSignsWhereNumbersWouldNot) {
  auto words = [](std::string_view script) {
    return print(script).substr(std::string_view("task 1 (task1)\n|   ").size());
  };
  EXPECT_EQ(words("user_request 4096 1 8192"), "user_request brk at 0x1000: 8192 bytes\n");
  EXPECT_EQ(words("user_request 4096 9 8192"), "user_request 9 at 0x1000: 8192 bytes\n");
  EXPECT_EQ(words("swap_cache 33 0 18"), "swap_cache (1,1): none -> pfn 17\n");
  EXPECT_EQ(words("oom_points 7 18446744073709551599 3"), "oom_points pid 7: adj -17, 3 points\n");
}

TEST(FlowTree, NamesArguments) {
  Recording recording = recording_of("f {");
  recording.sites[recording.events[0].site].arguments = "address, flags & mask(a, b), x[1, 2], fourth";
  recording.events[0].value[0] = 0x7f1000;
  recording.events[0].value[1] = 5;
  EXPECT_EQ(describe_arguments(recording, recording.events[0]), "address=0x7f1000, flags & mask(a, b)=5, x[1, 2]=0");
  EXPECT_EQ(
      print_flow(recording, {.arguments = Shown::yes}),
      "task 1 (task1)\n|-->f(address=0x7f1000, flags & mask(a, b)=5, x[1, 2]=0) //(f.cpp) (running when it ended)\n");
  recording.sites[recording.events[0].site].arguments =
      "filemap_.pages().mem().pfn(page), ctx.address, file.f_inode->ino";
  EXPECT_EQ(describe_arguments(recording, recording.events[0]), "pfn=0x7f1000, address=5, ino=0");
  recording.sites[recording.events[0].site].arguments = "held_, a - b, f(x, g(y))";
  EXPECT_EQ(describe_arguments(recording, recording.events[0]), "held=0x7f1000, a - b=5, f(x, g(y))=0");
  recording.sites[recording.events[0].site].arguments = ",,)((";
  EXPECT_EQ(describe_arguments(recording, recording.events[0]), "=0x7f1000, =5, )((=0");
}

TEST(FlowTree, GivesTheSameAsJson) {
  const nlohmann::json json = flow_json(recording_of("a { b { } rss 1 2 18446744073709551615"), styles());
  EXPECT_EQ(json["status"], "whole");
  ASSERT_EQ(json["tasks"].size(), 1u);
  EXPECT_EQ(json["tasks"][0]["comm"], "task1");
  const auto& items = json["tasks"][0]["items"];
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(items[0]["call"], "a");
  EXPECT_TRUE(items[0]["leave"].is_null());
  EXPECT_EQ(items[1]["depth"], 1);
  EXPECT_EQ(items[1]["leave"], 2);
  EXPECT_EQ(items[2]["state"], "rss");
  EXPECT_EQ(items[2]["before"], 2);
  EXPECT_EQ(items[2]["after"], "18446744073709551615");
  EXPECT_EQ(items[2]["text"], "rss mm 1: 2 -> 18446744073709551615");

  Recording bad = recording_of("a { }");
  bad.sites[1].function = "\xff\xfe";
  EXPECT_THAT(flow_json_text(bad), HasSubstr("\"call\":\"\xef\xbf\xbd"));
}

TEST(FlowTree, AnyOrderOfEventsMakesATree) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 300; ++round) {
    Recording recording = recording_of("a { } b { } c { } rss 0 0 0");
    const std::vector<FlowEvent> kinds = recording.events;
    recording.events.clear();
    for (int i = 0; i < 200; ++i) {
      recording.events.push_back(kinds[random() % kinds.size()]);
      recording.events.back().tid = static_cast<int32_t>(random() % 3);
    }
    for (const TaskFlow& task : flow_forest(recording)) {
      for (uint32_t i = 0; i < task.items.size(); ++i) {
        const FlowItem& item = task.items[i];
        ASSERT_GT(item.end, i);
        ASSERT_LE(item.end, task.items.size());
        if (item.parent == FlowItem::NONE) {
          ASSERT_EQ(item.depth, 0u);
        } else {
          ASSERT_LT(item.parent, i);
          ASSERT_EQ(task.items[item.parent].depth + 1, item.depth);
          ASSERT_LE(item.end, task.items[item.parent].end);
        }
      }
    }
    ASSERT_FALSE(print_flow(recording, {.depth = 3, .around = 100}).empty());
  }
}

}  // namespace
}  // namespace weir
