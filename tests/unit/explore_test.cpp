// The explorer's command side: which part of a recording goes into a page, and that what is left out is told exactly.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <random>

#include "explore/page.hpp"
#include "sim/simulation.hpp"
#include "support/machine_look.hpp"

namespace weir::explore {
namespace {

using test::Told;

uint64_t seed() {
  const char* text = std::getenv("WEIR_SEED");
  const uint64_t value = text != nullptr ? std::strtoull(text, nullptr, 0) : 1;
  std::printf("WEIR_SEED=%llu\n", static_cast<unsigned long long>(value));
  return value;
}

/// Three processes that share a page, and a fourth that takes the memory.
const Recording& recorded() {
  static const Recording recording = [] {
    const sim::Scenario scenario = sim::parse_scenario(R"(
[machine]
ram = "4M"
kernel = "2.6.20"
[[disk]]
name = "disk"
size = "16M"
[[swap]]
on = "disk"
disk = "disk"
[[task]]
name = "A"
steps = [
  { op = "mmap", area = "page", size = "4K" },
  { op = "touch", area = "page" },
  { op = "fork", name = "B", steps = [ { op = "sleep", for = "1s" }, { op = "touch", area = "page" } ] },
  { op = "sleep", for = "2s" },
  { op = "touch", area = "page", write = false },
]
[[task]]
name = "hog"
start = "100ms"
steps = [ { op = "mmap", area = "heap", size = "4M" }, { op = "touch", area = "heap" }, { op = "munmap", area = "heap" } ]
)",
                                                       "shared.toml");
    const std::string file = testing::TempDir() + "explore_test.weir";
    (void)sim::run_scenario(scenario, {.seed = {}, .record = file, .kernel = {}});
    Recording read = read_recording(file);
    std::remove(file.c_str());
    return read;
  }();
  return recording;
}

void tell(Told& told, const Recording& recording, const FlowEvent& event) {
  static const std::vector<std::string> names = {
#define X(name) #name,
      WEIR_STATES(X)
#undef X
  };
  if (!event.is_state()) return;
  ASSERT_EQ(recording.states, names);
  told.add(static_cast<State>(event.state()), event.value[0], event.value[1], event.value[2]);
}

/// Walks the whole and the part side by side: after each kept event of some, both tell of the same machine.
void expect_same_machine(const Window& window, size_t looks) {
  const Recording& whole = recorded();
  const Part part = cut(whole, window);
  std::mt19937_64 random(seed());
  Told all(true), some(true);
  auto left_out = part.left_out.begin();
  size_t next = 0, left = 0, looked = 0;
  for (const FlowEvent& event : whole.events) {
    const bool kept =
        next < part.recording.events.size() && left == 0 && !(left_out != part.left_out.end() && left_out->at == next);
    if (left == 0 && !kept && left_out != part.left_out.end() && left_out->at == next) {
      left = left_out->events;
      for (const FlowEvent& change : left_out->changes) tell(some, whole, change);
      ++left_out;
    }
    tell(all, whole, event);
    if (left > 0) {
      if (--left > 0) continue;
      ASSERT_EQ(test::differences(all.look(), some.look()), std::vector<std::string>()) << "before kept event " << next;
      continue;
    }
    if (next == part.recording.events.size()) break;
    ASSERT_EQ(std::memcmp(&event, &part.recording.events[next], sizeof event), 0) << "kept event " << next;
    tell(some, whole, event);
    ++next;
    if (random() % (part.recording.events.size() / looks + 1) != 0) continue;
    ++looked;
    ASSERT_EQ(test::differences(all.look(), some.look()), std::vector<std::string>()) << "after kept event " << next;
  }
  EXPECT_EQ(next, part.recording.events.size());
  EXPECT_GT(looked, 0u);
}

TEST(Explore, APartFindsTheMachineAsItWas) {
  Window window;
  window.around = {"pswpin:1", "swap_write:1"};
  window.radius = 2000;
  expect_same_machine(window, 40);
}

TEST(Explore, OneTasksPartIsToldTheOthersChangesInBrief) {
  Window window;
  window.task = "A";
  expect_same_machine(window, 20);
}

TEST(Explore, TheLifeOfAPageFollowsItThroughProcessesFramesAndSlots) {
  uint64_t address = 0;  // of the only page that ever has two PTEs
  const Recording& recording = recorded();
  std::map<uint64_t, std::set<uint64_t>> mms;
  for (const FlowEvent& e : recording.events)
    if (e.is_state() && recording.state_name(e) == "pte" && e.value[0] >> 48 != 0) {
      const uint64_t at = e.value[0] & 0xffffffffffff;
      if (mms[at].insert(e.value[0] >> 48).second && mms[at].size() == 2) address = at;
    }
  ASSERT_NE(address, 0u);
  Window window;
  window.life = fmt::format("{}:{:#x}", *mms[address].begin(), address);
  const Part part = cut(recording, window);
  EXPECT_LT(part.recording.events.size(), recording.events.size() / 20);
  std::set<std::string> seen;
  for (const FlowEvent& e : part.recording.events)
    seen.insert(e.is_state()   ? std::string(part.recording.state_name(e))
                : e.is_enter() ? part.recording.site(e).function
                               : "");
  for (const char* wanted : {"do_page_fault", "copy_page_range", "mapcount", "shrink_page_list", "add_to_swap",
                             "swap_write", "try_to_unmap", "swap_read", "do_swap_page", "swap_map"})
    EXPECT_TRUE(seen.contains(wanted)) << wanted;
  expect_same_machine(window, 40);
}

TEST(Explore, APartThatIsNotThereIsRefusedInWords) {
  const auto error = [](const Window& window) -> std::string {
    try {
      (void)cut(recorded(), window);
    } catch (const ExploreError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(error({.around = {"no_such"}}),
            "--around no_such: no function and no state of that name is in the recording");
  EXPECT_EQ(error({.around = {"pswpin:0"}}), "--around pswpin:0: after the colon stands which one, from 1");
  EXPECT_THAT(error({.around = {"oom_kill:999"}}), testing::HasSubstr("--around oom_kill:999"));
  EXPECT_EQ(error({.task = "nobody"}), "--task nobody: no task of that name or number is in the recording");
  EXPECT_EQ(error({.life = "heap"}),
            "--life heap: wants an address, 0x7f0000001000, or one address space's, 3:0x7f0000001000");
  EXPECT_EQ(error({.from_ns = UINT64_MAX}), "there is no event in that part of the recording");
}

TEST(Explore, ALongRecordingWantsAPartAndGetsOneFromTheShortcut) {
  Recording longer = recorded();
  const size_t once = longer.events.size();
  while (longer.events.size() <= MAX_EVENTS)
    for (size_t i = 0; i < once; ++i) longer.events.push_back(FlowEvent(longer.events[i]));
  try {
    (void)cut(longer, {});
    FAIL() << "it should have been too long";
  } catch (const ExploreError& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("--around pswpin:1"));
  }
  EXPECT_TRUE(usual_window(recorded()).around.empty());
  const Window window = usual_window(longer);
  EXPECT_EQ(window.around, std::vector<std::string>{"swap_read"});
  EXPECT_LE(cut(longer, window).recording.events.size(), 2 * window.radius + 1);
}

TEST(Explore, ThePageIsAtMostOneMebibyteBesideItsData) {
  const std::string small = page(cut(recorded(), {.around = {"pswpin:1"}, .radius = 1}), "r");
  EXPECT_LT(small.size(), size_t{1} << 20);
  EXPECT_EQ(small.find("<!--RECORDING-->"), std::string::npos);
}

// Bytes that anybody may have written: never a crash, and what cannot be shown is said.
TEST(Explore, DamagedRecordingsAreRefusedOrShownUpToTheBreak) {
  const std::string file = testing::TempDir() + "explore_fuzz.weir";
  std::vector<std::byte> bytes(Recorder::bytes_for(1 << 12)), out;
  {
    const auto log = std::make_unique<Recorder>(bytes, output_to(out));
    Recorder& recorder = *log;
    static constinit const FlowSite site{"f", "f.cpp", "a, g(b, c)"};
    recorder.names().fact("kernel", "4.14");
    recorder.names().fact("scenario", "<script>alert(1)</script>");
    recorder.names().task(0, 1, "<b>task</b>");
    for (uint64_t i = 0; i < 600; ++i) {
      recorder.enter(site, i, 0, 0);
      recorder.state(site, static_cast<State>(i % static_cast<uint64_t>(State::count)), i % 40, i % 6, (i + 1) % 6);
      recorder.leave(site);
    }
    recorder.finish();
  }
  std::mt19937_64 random(seed());
  unsigned refused = 0, broken = 0, whole = 0;
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::byte> damaged = out;
    if (round % 4 == 0) damaged.resize(random() % damaged.size());
    for (uint64_t n = random() % 8; n > 0 && !damaged.empty(); --n) {
      // Headers and lengths are hit more often than events.
      const size_t at = random() % std::min<size_t>(damaged.size(), random() % 2 == 0 ? 4096 : damaged.size());
      damaged[at] = std::byte(random());
    }
    Recording recording = parse(damaged);
    refused += recording.status == Recording::Status::refused;
    broken += recording.status == Recording::Status::broken;
    whole += recording.status == Recording::Status::whole;
    if (recording.status != Recording::Status::whole) {
      EXPECT_NE(recording.problem, "");
    }
    Window windows[4];
    windows[1].around = {"pte:1"}, windows[1].radius = 50;
    windows[2].life = "0x0";
    windows[3].task = "0";
    try {
      const std::string html = page(cut(std::move(recording), windows[round % 4]), "fuzz");
      EXPECT_EQ(html.find("<script>alert"), std::string::npos);
    } catch (const ExploreError&) {
    }
  }
  std::printf("%u refused, %u broken, %u whole\n", refused, broken, whole);
  EXPECT_GT(refused, 0u);
  EXPECT_GT(broken, 0u);
}

}  // namespace
}  // namespace weir::explore
