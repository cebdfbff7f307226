// Counters and their names.
#include "mm/vmstat.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "support/mm_fixture.hpp"

namespace weir {
namespace {

using test::TestMachine;
using test::Trace;

TEST(VmStat, EveryCounterHasANameOfItsOwn) {
  std::set<std::string> names;
  for (unsigned i = 0; i < static_cast<unsigned>(NodeStat::count); ++i)
    EXPECT_TRUE(names.insert(stat_name(static_cast<NodeStat>(i))).second) << i;
  for (unsigned i = 0; i < static_cast<unsigned>(VmEvent::count); ++i)
    EXPECT_TRUE(names.insert(event_name(static_cast<VmEvent>(i))).second) << i;
  EXPECT_STREQ(stat_name(NodeStat::nr_free_pages), "nr_free_pages");
  EXPECT_STREQ(event_name(VmEvent::pgfault), "pgfault");
  EXPECT_STREQ(stat_name(NodeStat::count), "none");
}

TEST(VmStat, GaugesRiseAndFallAndEventsOnlyGrow) {
  VmStat stat;
  stat.inc_node_page_state(NodeStat::nr_mapped);
  stat.mod_node_page_state(NodeStat::nr_mapped, 9);
  stat.dec_node_page_state(NodeStat::nr_mapped);
  EXPECT_EQ(stat.node_page_state(NodeStat::nr_mapped), 9);
  stat.count_vm_event(VmEvent::pgfault);
  stat.count_vm_events(VmEvent::pgfault, 4);
  EXPECT_EQ(stat.event(VmEvent::pgfault), 5u);
}

TEST(VmStat, FreePagesAreTheSumOfWhatWasRecorded) {
  TestMachine m;
  int64_t expected = m.vmstat.node_page_state(NodeStat::nr_free_pages);
  const uint64_t allocated = m.vmstat.event(VmEvent::pgalloc_dma32), freed = m.vmstat.event(VmEvent::pgfree);
  Trace trace;
  std::vector<Page*> pages;
  for (int i = 0; i < 500; ++i) pages.push_back(m.pages.alloc_page(GFP_KERNEL));
  for (Page* page : pages) m.pages.__free_pages(*page, Order(0));
  for (const auto& change : trace.of(State::nr_free)) {
    EXPECT_EQ(static_cast<int64_t>(change.before), expected);
    expected = static_cast<int64_t>(change.after);
  }
  EXPECT_EQ(m.vmstat.node_page_state(NodeStat::nr_free_pages), expected);
  EXPECT_EQ(m.pages.nr_free_pages().v, expected);
  EXPECT_EQ(m.vmstat.event(VmEvent::pgalloc_dma32) - allocated, trace.of(State::page_alloced).size());
  EXPECT_EQ(m.vmstat.event(VmEvent::pgfree) - freed, trace.of(State::page_freed).size());
}

}  // namespace
}  // namespace weir
