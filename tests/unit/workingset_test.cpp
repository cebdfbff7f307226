// Shadows of evicted file pages: refault distance, activation, what they cost (mm/workingset.cpp).
#include "mm/workingset.hpp"

#include <gtest/gtest.h>

#include "support/machine_fixture.hpp"

namespace weir::test {
namespace {

constexpr uint64_t RAM_PAGES = 4096;

class WorkingsetTest : public testing::Test {
 protected:
  struct Counts {
    uint64_t read = 0, refaults = 0, activated = 0;
  };
  static FixtureOptions machine_of(KernelEra kernel) {
    FixtureOptions o;
    o.kernel = kernel;
    o.ram = Bytes(RAM_PAGES << PAGE_SHIFT);
    o.content = ContentKind::tags;
    o.disk = Bytes(uint64_t{1} << 30);
    return o;
  }
  static uint64_t reads(const MachineFixture& m) { return m.file_disk->stats().reads.load(); }
  /// Pages [from, from + n), one request each: one use of each page.
  static void read(MachineFixture& m, File& file, uint64_t n, uint64_t from = 0) {
    for (uint64_t i = from; i < from + n; ++i)
      ASSERT_TRUE(m.machine->files.read(file, i << PAGE_SHIFT, nullptr, PAGE_SIZE));
  }
  static int64_t size(const MachineFixture& m, NodeStat list) { return m.gauge(list); }
};

TEST_F(WorkingsetTest, AnEvictedPageLeavesAShadowThatTheNextReadUses) {
  MachineFixture m(machine_of(KernelEra::linux_4_14));
  m.run([&] {
    File& file = m.make_file("file", 2 * RAM_PAGES, 2 * RAM_PAGES);
    AddressSpace& mapping = file.f_inode->i_data;
    read(m, file, RAM_PAGES);
    EXPECT_GT(mapping.nrexceptional, 0u);
    EXPECT_GE(mapping.nrexceptional + mapping.nrpages, RAM_PAGES) << "readahead is ahead";
    const uint64_t shadows = mapping.nrexceptional;
    EXPECT_EQ(m.event(VmEvent::workingset_refault), 0u);
    file.ra_pages = 0;
    read(m, file, 1);
    EXPECT_EQ(m.event(VmEvent::workingset_refault), 1u);
    // All of memory has been read since: too long ago for an active list that is empty.
    EXPECT_EQ(m.event(VmEvent::workingset_activate), 0u);
    EXPECT_LE(mapping.nrexceptional, shadows);
  });
}

TEST_F(WorkingsetTest, WhatComesBackWithinTheActiveListsLengthIsActiveAtOnce) {
  MachineFixture m(machine_of(KernelEra::linux_4_14));
  m.run([&] {
    File& hot = m.make_file("hot", 1500, 1500);
    File& file = m.make_file("file", 2 * RAM_PAGES, 2 * RAM_PAGES);
    read(m, hot, 1500), read(m, hot, 1500), read(m, hot, 1500);
    m.machine->lru.lru_add_drain_all();
    EXPECT_GT(size(m, NodeStat::nr_active_file), 1400);
    // A little more than fits beside it, read from the start again: the first were evicted a short while ago.
    uint64_t n = 0;
    while (file.f_inode->i_data.nrexceptional < 200) read(m, file, 64, n), n += 64;
    file.ra_pages = 0;
    read(m, file, 50);
    EXPECT_EQ(m.event(VmEvent::workingset_refault), 50u);
    EXPECT_EQ(m.event(VmEvent::workingset_activate), 50u);
    Page* page = m.machine->filemap.find_get_page(file.f_inode->i_data, 0);
    ASSERT_NE(page, nullptr);
    EXPECT_TRUE(page->test(PageFlag::active));
    m.machine->lru.put_page(*page);
  });
}

TEST_F(WorkingsetTest, WhoOverwritesAPageDoesNotAskForIt) {
  MachineFixture m(machine_of(KernelEra::linux_4_14));
  m.run([&] {
    File& file = m.make_file("file", 2 * RAM_PAGES, 2 * RAM_PAGES);
    read(m, file, RAM_PAGES);
    for (uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(m.machine->files.write_tag(file, i, i));
    EXPECT_EQ(m.event(VmEvent::workingset_refault), 0u);
  });
}

TEST_F(WorkingsetTest, OlderKernelsLeaveNone) {
  for (const KernelEra kernel : {KernelEra::linux_2_6_20, KernelEra::linux_3}) {
    MachineFixture m(machine_of(kernel));
    m.run([&] {
      File& file = m.make_file("file", 2 * RAM_PAGES, 2 * RAM_PAGES);
      read(m, file, RAM_PAGES), read(m, file, RAM_PAGES);
      EXPECT_EQ(file.f_inode->i_data.nrexceptional, 0u);
      EXPECT_EQ(m.event(VmEvent::workingset_refault), 0u);
    });
  }
}

// What is used twice stays, however much is read once.
TEST_F(WorkingsetTest, AStreamDoesNotEvictTheWorkingSet) {
  for (const KernelEra kernel : {KernelEra::linux_3, KernelEra::linux_4_14}) {
    MachineFixture m(machine_of(kernel));
    m.run([&] {
      constexpr uint64_t SET = 1500, STREAM = 10 * RAM_PAGES;
      File& set = m.make_file("set", SET, SET);
      File& stream = m.make_file("stream", STREAM, STREAM);
      read(m, set, SET), read(m, set, SET), read(m, set, SET);
      uint64_t lost = 0;
      for (uint64_t at = 0; at < STREAM; at += RAM_PAGES) {
        read(m, stream, RAM_PAGES, at);
        const uint64_t before = reads(m);
        read(m, set, SET);
        lost += reads(m) - before;
      }
      std::printf("stream of %lu pages beside a set of %lu, kernel %s: %lu of %lu reads of the set missed\n", STREAM,
                  SET, m.machine->profile.name, lost, SET * 10);
      EXPECT_LT(lost, SET * 10 / 100);
    });
  }
}

// A new working set takes the place of one that nobody uses any more, though it is larger than the inactive list.
TEST_F(WorkingsetTest, ACycleThatTheInactiveListCannotHoldBecomesHits) {
  uint64_t missed[2];
  for (const KernelEra kernel : {KernelEra::linux_3, KernelEra::linux_4_14}) {
    MachineFixture m(machine_of(kernel));
    m.run([&] {
      constexpr uint64_t OLD = 1900, CYCLE = 2300;
      File& old = m.make_file("old", OLD, OLD);
      File& cycle = m.make_file("cycle", CYCLE, CYCLE);
      cycle.ra_pages = 0;
      read(m, old, OLD), read(m, old, OLD), read(m, old, OLD);
      for (int round = 0; round < 8; ++round) read(m, cycle, CYCLE);
      const uint64_t before = reads(m);
      read(m, cycle, CYCLE);
      missed[kernel == KernelEra::linux_4_14] = reads(m) - before;
      std::printf("cycle of %lu pages, kernel %s: %lu misses in the ninth round; refaults %lu, activated %lu\n", CYCLE,
                  m.machine->profile.name, reads(m) - before, m.event(VmEvent::workingset_refault),
                  m.event(VmEvent::workingset_activate));
    });
  }
  EXPECT_GT(missed[0], 2000u);
  EXPECT_LT(missed[1], 230u);
}

TEST_F(WorkingsetTest, ACycleLargerThanMemoryIsNotTakenForAWorkingSet) {
  MachineFixture m(machine_of(KernelEra::linux_4_14));
  m.run([&] {
    constexpr uint64_t CYCLE = 3 * RAM_PAGES;
    File& cycle = m.make_file("cycle", CYCLE, CYCLE);
    for (int round = 0; round < 3; ++round) read(m, cycle, CYCLE);
    EXPECT_GT(m.event(VmEvent::workingset_refault), CYCLE);
    EXPECT_LT(m.event(VmEvent::workingset_activate), CYCLE / 100);
  });
}

TEST_F(WorkingsetTest, ShadowsAreBounded) {
  MachineFixture m(machine_of(KernelEra::linux_4_14));
  m.run([&] {
    constexpr uint64_t PAGES = 100'000;
    File& first = m.make_file("first", PAGES, PAGES);
    File& second = m.make_file("second", PAGES, PAGES);
    for (uint64_t at = 0; at < PAGES; at += 1000) {
      read(m, first, 1000, at), read(m, second, 1000, at);
      // Under pressure all the time: what is above the bound goes within a few rounds.
      ASSERT_LE(m.machine->workingset.shadow_nodes().v, 2 * m.machine->workingset.max_shadow_nodes().v + 128) << at;
    }
    EXPECT_GT(m.event(VmEvent::workingset_nodereclaim), 1500u);
    const auto nodes = static_cast<uint64_t>(m.machine->workingset.shadow_nodes().v);
    EXPECT_GT(nodes, 0u);
    EXPECT_LE(first.f_inode->i_data.nrexceptional + second.f_inode->i_data.nrexceptional, (nodes + 130) * 64);
  });
}

TEST_F(WorkingsetTest, TruncationAndInvalidationTakeShadowsAlong) {
  MachineFixture m(machine_of(KernelEra::linux_4_14));
  m.run([&] {
    File& file = m.make_file("file", 2 * RAM_PAGES, 2 * RAM_PAGES);
    AddressSpace& mapping = file.f_inode->i_data;
    read(m, file, 2 * RAM_PAGES);
    const uint64_t shadows = mapping.nrexceptional;
    ASSERT_GT(shadows, 2000u);
    ASSERT_GT(m.machine->workingset.shadow_nodes().v, 0);
    ASSERT_TRUE(m.machine->files.truncate(*file.f_inode, Bytes(1000 << PAGE_SHIFT)));
    EXPECT_LE(mapping.nrexceptional, 1000u);
    EXPECT_GT(mapping.nrexceptional, 0u);
    (void)m.machine->files.invalidate(*file.f_inode);
    EXPECT_EQ(mapping.nrexceptional, 0u);
    EXPECT_EQ(m.machine->workingset.shadow_nodes().v, 0);
    EXPECT_EQ(mapping.page_tree.node_count(), 0u);
  });
}

}  // namespace
}  // namespace weir::test
