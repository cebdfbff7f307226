// tests/unit/scenario_test.cpp
//
// What a scenario file may say; and that every wrong one is refused with file, line and what would be right.
#include "sim/scenario.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "mm/mm_types.hpp"

namespace weir::sim {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

std::string refusal(const std::string& text) {
  try {
    (void)parse_scenario(text, "bad.toml");
  } catch (const ScenarioError& e) {
    return e.what();
  }
  return "accepted";
}

constexpr const char* TASK = "[[task]]\nname = \"t\"\nsteps = []\n";

TEST(Scenario, DefaultsAreThoseOfTheManual) {
  const Scenario s = parse_scenario(TASK, "x.toml");
  EXPECT_EQ(s.ram, 64_MiB);
  EXPECT_EQ(s.cpus, 1u);
  EXPECT_EQ(s.seed, 1u);
  EXPECT_EQ(s.kernel, "4.14");
  EXPECT_EQ(s.content, ContentMode::tagged);
  EXPECT_EQ(s.mmu, MmuModel::hardware);
  EXPECT_EQ(s.preempt_one_in, 64u);
  EXPECT_EQ(s.sysctl.at("vm.swappiness"), 60);
  EXPECT_EQ(s.sysctl.at("vm.page-cluster"), 3);
  EXPECT_EQ(s.sysctl.at("vm.dirty_background_ratio"), 10);
  EXPECT_EQ(s.sysctl.at("vm.dirty_ratio"), 20);
  EXPECT_FALSE(s.end.has_value());
  ASSERT_EQ(s.tasks.size(), 1u);
  EXPECT_EQ(s.tasks[0].name, "t");
}

TEST(Scenario, ADiskOfAKindIsAsItIsSoldButForWhatIsSaid) {
  const Scenario s = parse_scenario(std::string(R"(
[[disk]]
name = "hdd"
kind = "spinning"
bandwidth = "100M"
[[disk]]
name = "flash"
kind = "nvme"
)") + TASK,
                                    "x.toml");
  ASSERT_EQ(s.disks.size(), 2u);
  EXPECT_TRUE(s.disks[0].rotational);
  EXPECT_EQ(s.disks[0].seek, 8_ms);
  EXPECT_EQ(s.disks[0].bandwidth, 100_MiB);
  EXPECT_FALSE(s.disks[1].rotational);
  EXPECT_EQ(s.disks[1].queue_depth, 64u);
  EXPECT_EQ(s.disks[1].write_latency, 20_us);
}

TEST(Scenario, TheDirtyRatioIsTheKernels) {
  const auto ratio = [](const std::string& head) {
    return parse_scenario(head + TASK, "x.toml").sysctl.at("vm.dirty_ratio");
  };
  EXPECT_EQ(ratio("[machine]\nkernel = \"2.6.20\"\n"), 40);
  EXPECT_EQ(ratio("[machine]\nkernel = \"3.x\"\n"), 20);
  EXPECT_EQ(ratio("[machine]\nkernel = \"2.6.20\"\n[sysctl]\n\"vm.dirty_ratio\" = 15\n"), 15);
}

TEST(Scenario, EverythingIsRead) {
  const Scenario s = parse_scenario(R"(
title = "all"
end = "3s"
[machine]
ram = "32M"
dma32 = "50%"
cpus = 4
seed = 9
content = "backed"
mmu = "uffd"
preempt-one-in = 8
[sysctl]
"vm.swappiness" = 10
"vm.page-cluster" = 0
"vm.min_free_kbytes" = 512
"vm.watermark_scale_factor" = 50
"vm.dirty_background_ratio" = 5
"vm.dirty_ratio" = 15
[[disk]]
name = "d"
size = "100M"
read-latency = "1ms"
write-latency = "2ms"
bandwidth = "20M"
queue-depth = 4
read-error = 0.25
write-error = 1
[[swap]]
on = "disk"
disk = "d"
size = "16M"
priority = 5
[[swap]]
on = "zram"
algorithm = "zstd"
mem-limit = "25%"
[[file]]
name = "f"
disk = "d"
size = "1M"
max-size = "2M"
[[task]]
name = "t"
start = "10ms"
oom_score_adj = -17
steps = [
  { op = "mmap", area = "a", size = "50%" },
  { op = "repeat", times = 3, steps = [ { op = "touch", area = "a", pattern = "zipf", theta = 0.5, count = 7, think = "1us", write = false } ] },
  { op = "fork", name = "c", steps = [ { op = "munmap", area = "a" }, { op = "exit", code = 3 } ] },
  { op = "mmap-file", area = "m", file = "f", shared = true, size = "64K" },
  { op = "write", file = "f", from = "4K", size = "8K", count = 2 },
]
)",
                                    "x.toml");
  EXPECT_EQ(s.title, "all");
  EXPECT_EQ(*s.end, 3_s);
  EXPECT_EQ(s.dma32, 16_MiB);
  EXPECT_EQ(s.cpus, 4u);
  EXPECT_EQ(s.content, ContentMode::backed);
  EXPECT_EQ(s.mmu, MmuModel::uffd);
  EXPECT_EQ(s.sysctl.at("vm.swappiness"), 10);
  EXPECT_EQ(s.sysctl.at("vm.min_free_kbytes"), 512);
  ASSERT_EQ(s.disks.size(), 1u);
  EXPECT_EQ(s.disks[0].write_latency, 2_ms);
  EXPECT_EQ(s.disks[0].queue_depth, 4u);
  EXPECT_EQ(s.disks[0].read_error, 0.25);
  EXPECT_EQ(s.disks[0].write_error, 1.0);
  ASSERT_EQ(s.swaps.size(), 2u);
  EXPECT_EQ(s.swaps[0].priority, 5);
  EXPECT_EQ(s.swaps[1].algorithm, "zstd");
  EXPECT_EQ(*s.swaps[1].mem_limit, 8_MiB);
  EXPECT_EQ(s.files[0].max_size, 2_MiB);
  const TaskConfig& t = s.tasks.at(0);
  EXPECT_EQ(t.oom_score_adj, -17);
  ASSERT_EQ(t.steps.size(), 5u);
  EXPECT_EQ(t.steps[0].size, 16_MiB);
  EXPECT_EQ(t.steps[1].count, 3u);
  EXPECT_EQ(t.steps[1].body.at(0).pattern, Pattern::zipf);
  EXPECT_FALSE(t.steps[1].body.at(0).write);
  EXPECT_EQ(t.steps[2].body.at(1).code, 3);
  EXPECT_TRUE(t.steps[3].shared);
  EXPECT_EQ(t.steps[4].count, 2u);
}

TEST(Scenario, StepsOnTheMachineAndOnTheTaskItself) {
  const Scenario s = parse_scenario(R"(
[sysctl]
"vm.panic_on_oom" = 2
"vm.oom_dump_tasks" = 0
[[swap]]
on = "zram"
name = "z"
off = true
[[swap]]
on = "zram"
[[task]]
name = "t"
oom_adj = -17
nice = 5
uid = 0
steps = [
  { op = "mmap", area = "a", size = "64K" },
  { op = "mprotect", area = "a", rights = "r", from = "4K", size = "8K" },
  { op = "mremap", area = "a", size = "128K" },
  { op = "swapon", swap = "z", priority = 7 },
  { op = "mem-limit", swap = "z", size = "1M" },
  { op = "swapoff", swap = "swap1" },
  { op = "sysctl", name = "vm.swappiness", value = 100 },
  { op = "oom_score_adj", value = -999 },
  { op = "oom_adj", value = 15 },
  { op = "nice", value = 19 },
  { op = "compute", for = "2s" },
  { op = "hang", for = "3s" },
  { op = "fork", name = "c", steps = [ { op = "kill", task = "t" } ] },
  { op = "wait" },
]
)",
                                    "x.toml");
  EXPECT_EQ(s.sysctl.at("vm.panic_on_oom"), 2);
  EXPECT_EQ(s.sysctl.at("vm.oom_dump_tasks"), 0);
  ASSERT_EQ(s.swaps.size(), 2u);
  EXPECT_TRUE(s.swaps[0].off);
  EXPECT_EQ(s.swaps[0].name, "z");
  EXPECT_EQ(s.swaps[1].name, "swap1");
  const TaskConfig& t = s.tasks.at(0);
  EXPECT_EQ(t.oom_adj, -17);
  EXPECT_EQ(t.nice, 5);
  EXPECT_EQ(t.uid, 0u);
  ASSERT_EQ(t.steps.size(), 14u);
  EXPECT_EQ(t.steps[1].value, int64_t{VM_READ});
  EXPECT_EQ(t.steps[3].value, 7);
  EXPECT_EQ(t.steps[4].size, 1_MiB);
  EXPECT_EQ(t.steps[6].name, "vm.swappiness");
  EXPECT_EQ(t.steps[6].value, 100);
  EXPECT_EQ(t.steps[7].value, -999);
  EXPECT_EQ(t.steps[11].time, 3_s);
  EXPECT_EQ(t.steps[12].body.at(0).name, "t");
}

struct Bad {
  const char* text;
  int line;
  const char* says;
};

TEST(Scenario, EveryWrongOneIsRefusedWithPlaceAndRemedy) {
  const Bad table[] = {
      {"title = [", 1, ""},
      {"titel = \"x\"\n", 1, "titel: is not a key that is known here"},
      {"[machine]\nram = \"2M\"\n", 2, "ram: a machine needs at least 4M"},
      {"[machine]\nram = \"lots\"\n", 2, "ram: wants a size, like \"64M\" or \"4G\""},
      {"[machine]\nram = -4096\n", 2, "ram: wants a size"},
      {"[machine]\nram = \"64M\"\ndma32 = \"30M\"\n", 3, "dma32: a zone ends at a multiple of 4M"},
      {"[machine]\nram = \"64M\"\ncpus = 0\n", 3, "cpus: 0 is not in 1 … 64"},
      {"[machine]\ncpus = 65\n", 2, "cpus: 65 is not in 1 … 64"},
      {"[machine]\ncpus = \"two\"\n", 2, "cpus: wants a whole number"},
      {"[machine]\nkernel = \"2.4\"\n", 2, "kernel: there are the profiles 2.6.20, 3.x, 4.14"},
      {"[machine]\ncontent = \"bytes\"\n", 2, "content: \"bytes\" is none of: backed, tagged"},
      {"[machine]\nmmu = \"arm\"\n", 2, "mmu: \"arm\" is none of: hardware, uffd"},
      {"[machine]\nnodes = 2\n", 2, "nodes: is not a key that is known here"},
      {"[sysctl]\n\"vm.swappiness\" = 101\n", 2, "vm.swappiness: 101 is not in 0 … 100"},
      {"[sysctl]\nswappiness = 10\n", 2, "swappiness: is not a key that is known here"},
      {"end = \"soon\"\n", 1, "end: wants a time, like \"200ms\", \"50us\" or \"2s\""},
      {"[[disk]]\nsize = \"1M\"\n", 1, "\"name\" is missing (a string)"},
      {"[[disk]]\nname = \"d\"\nsize = 0\n", 3, "size: a disk has at least a page, 4K"},
      {"[[disk]]\nname = \"d\"\nread-error = 1.5\n", 3, "read-error: wants a number from 0 to 1"},
      {"[[disk]]\nname = \"d\"\nqueue-depth = 1000\n", 3, "queue-depth: 1000 is not in 1 … 64"},
      {"[[disk]]\nname = \"d\"\nbandwidth = \"1K\"\n", 3, "bandwidth: a second at least 1M"},
      {"[[disk]]\nname = \"d\"\n[[disk]]\nname = \"d\"\n", 4, "name: two disks are named \"d\""},
      {"[disk]\nname = \"d\"\n", 1, "disk: wants an array"},
      {"[[swap]]\nsize = \"1M\"\n", 1, "\"on\" is missing"},
      {"[[swap]]\non = \"tape\"\n", 2, "on: \"tape\" is none of: disk, zram"},
      {"[[swap]]\non = \"disk\"\ndisk = \"d\"\n", 3, "disk: there is no [[disk]] named \"d\""},
      {"[[swap]]\non = \"zram\"\nalgorithm = \"lzo\"\n", 3, "algorithm: is one of: lz4, zstd"},
      {"[[swap]]\non = \"zram\"\ndisk = \"d\"\n", 3, "disk: is not a key that is known here"},
      {"[[swap]]\non = \"zram\"\nsize = \"20K\"\n", 3, "size: a swap area has at least 10 pages, 40K"},
      {"[[swap]]\non = \"zram\"\npriority = 40000\n", 3, "priority: 40000 is not in -1 … 32767"},
      {"[[disk]]\nname = \"d\"\n[[file]]\nname = \"f\"\ndisk = \"d\"\n", 3,
       "\"size\" is missing (a size, like \"64M\")"},
      {"[[disk]]\nname = \"d\"\n[[file]]\nname = \"f\"\ndisk = \"d\"\nsize = \"8K\"\nmax-size = \"4K\"\n", 7,
       "max-size: is smaller than size"},
      {"[[disk]]\nname = \"d\"\n[[file]]\nname = \"f\"\ndisk = \"d\"\nsize = 0\n", 6,
       "size: a file that is empty and may not grow"},
      {"[[disk]]\nname = \"d\"\n[[file]]\nname = \"f\"\ndisk = \"d\"\nsize = 1\n[[file]]\nname = \"f\"\ndisk = "
       "\"d\"\nsize = 1\n",
       8, "name: two files are named \"f\""},
      {"[[disk]]\nname = \"d\"\n[[file]]\nname = \"a-name-of-more-than-thirty-one-characters\"\ndisk = \"d\"\nsize = "
       "1\n",
       4, "name: wants 1 to 31 characters"},
      {"[[task]]\nname = \"t\"\n", 1, "\"steps\" is missing (an array of steps)"},
      {"[[task]]\nname = \"t\"\noom_score_adj = 2000\nsteps = []\n", 3, "oom_score_adj: 2000 is not in -1000 … 1000"},
      {"[[task]]\nname = \"t\"\nsteps = [ 3 ]\n", 3, "a step is a table, like { op = \"touch\", area = \"heap\" }"},
      {"[[task]]\nname = \"t\"\nsteps = [\n {},\n]\n", 4, "\"op\" is missing"},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"jump\" },\n]\n", 4, "op: \"jump\" is none of: brk, "},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"mmap\", area = \"a\" },\n]\n", 4, "\"size\" is missing"},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"mmap\", area = \"a\", size = \"4K\", colour = 1 },\n]\n", 4,
       "colour: is not a key that is known here"},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"touch\", area = \"a\" },\n]\n", 4,
       "the task has no area \"a\" yet: mmap, malloc, brk, mmap-file or mmap-device makes one"},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"read\", file = \"f\", size = \"4K\" },\n]\n", 4,
       "there is no [[file]] named \"f\""},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"fork\", steps = [\n  { op = \"munmap\", area = \"x\" } ] },\n]\n",
       5, "the task has no area \"x\" yet"},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"kfree\", area = \"x\" },\n]\n", 4,
       "nothing makes \"x\": kmalloc or vmalloc does"},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"mmap\", area = \"a\", size = 1 },\n { op = \"madvise\", area = "
       "\"a\", advice = \"keep\" },\n]\n",
       5, "advice: \"keep\" is none of: cold, dontneed, free, mergeable, normal, pageout, "},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"mmap\", area = \"a\", size = 1 },\n { op = \"touch\", area = "
       "\"a\", pattern = \"spiral\" },\n]\n",
       5, "pattern: \"spiral\" is none of: hot, random, sequential, zipf"},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"sleep\" },\n]\n", 4,
       "\"for\" is missing (a time, like \"200ms\")"},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"repeat\", times = 0, steps = [] },\n]\n", 4,
       "times: 0 is not in 1 … 1000000"},
      {"[[task]]\nname = \"t\"\noom_adj = 3\noom_score_adj = 5\nsteps = []\n", 3, "oom_adj: each sets the other"},
      {"[[task]]\nname = \"t\"\noom_adj = -18\nsteps = []\n", 3, "oom_adj: -18 is not in -17 … 15"},
      {"[[swap]]\non = \"zram\"\n[[swap]]\non = \"zram\"\nname = \"swap0\"\n", 5,
       "name: two swap areas are named \"swap0\""},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"swapoff\", swap = \"z\" },\n]\n", 4,
       "there is no [[swap]] named \"z\""},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"kill\", task = \"u\" },\n]\n", 4, "there is no task \"u\""},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"sysctl\", name = \"vm.swappines\", value = 1 },\n]\n", 4,
       "name: is one of: vm.swappiness, "},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"sysctl\", name = \"vm.panic_on_oom\", value = 3 },\n]\n", 4,
       "value: 3 is not in 0 … 2"},
      {"[[disk]]\nname = \"d\"\nblock-size = \"3K\"\n", 3, "block-size: is one of: 512, 1K, 2K, 4K"},
      {"[[disk]]\nname = \"d\"\nblock-size = \"1K\"\n", 3, "smaller ones want content = \"backed\""},
      {"[[disk]]\nname = \"d\"\nblock-size = \"4K\"\n[[swap]]\non = \"disk\"\ndisk = \"d\"\n", 6,
       "disk: \"d\" has a block-size: it holds files only"},
      {"[[disk]]\nname = \"d\"\n[[task]]\nname = \"t\"\nsteps = [\n { op = \"flush-disk\", disk = \"d\" },\n]\n", 6,
       "there is no [[disk]] named \"d\" with a block-size"},
      {"[[device]]\nname = \"w\"\nsize = \"5M\"\n", 3, "size: a device has 4K to 4M"},
      {"[[device]]\nname = \"w\"\nsize = \"4K\"\n[[device]]\nname = \"w\"\nsize = \"4K\"\n", 5,
       "name: two devices are named \"w\""},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"mmap-device\", area = \"a\", device = \"w\", size = 1 },\n]\n", 4,
       "there is no [[device]] named \"w\""},
      {"[[task]]\nname = \"t\"\nsteps = [\n { op = \"remap-file-pages\", area = \"a\", size = 1, to = 0 },\n]\n", 4,
       "the task has no area \"a\" yet"},
  };
  for (const Bad& bad : table) {
    const std::string said = refusal(bad.text);
    EXPECT_THAT(said, AllOf(StartsWith("bad.toml:" + std::to_string(bad.line) + ":"), HasSubstr(bad.says))) << bad.text;
  }
}

TEST(Scenario, WithoutATaskNothingWouldHappen) {
  EXPECT_THAT(refusal("[machine]\nram = \"8M\"\n"), HasSubstr("there is no [[task]]"));
}

TEST(Scenario, DeepNestingIsRefused) {
  std::string steps = "{ op = \"exit\" }";
  for (int i = 0; i < 40; ++i) steps = "{ op = \"repeat\", times = 1, steps = [ " + steps + " ] }";
  EXPECT_THAT(refusal("[[task]]\nname = \"t\"\nsteps = [ " + steps + " ]\n"),
              HasSubstr("steps are nested more than 16 deep"));
}

TEST(Scenario, AFileThatIsNotThereIsNamed) {
  try {
    (void)load_scenario("/nowhere/x.toml");
    FAIL();
  } catch (const ScenarioError& e) {
    EXPECT_THAT(e.what(), AllOf(HasSubstr("/nowhere/x.toml"), HasSubstr("cannot be opened")));
  }
}

}  // namespace
}  // namespace weir::sim
