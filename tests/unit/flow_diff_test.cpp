// Two flows side by side (record/flow_diff.cpp).
#include "record/flow_diff.hpp"

#include <gtest/gtest.h>

namespace weir {
namespace {

TEST(FlowDiff, EqualTreesDoNotDiffer) {
  const FlowDiff d = diff_flows("|-->a\n\t|-->b\n", "|-->a\n\t|-->b\n", "old", "new", 43);
  EXPECT_FALSE(d.differ);
  EXPECT_EQ(d.text,
            "old                    new\n"
            "|-->a                  |-->a\n"
            "  |-->b                  |-->b\n");
}

TEST(FlowDiff, WhatOnlyOneHasIsMarked) {
  const FlowDiff d = diff_flows("|-->a\n\t|-->b\n\t|-->d\n", "|-->a\n\t|-->c\n\t|-->d\n", "old", "new", 43);
  EXPECT_TRUE(d.differ);
  EXPECT_EQ(d.text,
            "old                    new\n"
            "|-->a                  |-->a\n"
            "  |-->b              <\n"
            "                     >   |-->c\n"
            "  |-->d                  |-->d\n");
}

TEST(FlowDiff, NumbersAreARunsOwnButNotThoseInNames) {
  EXPECT_FALSE(diff_flows("task 3 (a)\n|   pte 0x7f00: pfn 17 -> swap(0,42)\n",
                          "task 12 (a)\n|   pte 0x8f00: pfn 9 -> swap(1,7)\n", "", "", 80)
                   .differ);
  EXPECT_TRUE(diff_flows("|-->vm1\n", "|-->vm2\n", "", "", 80).differ);
}

TEST(FlowDiff, LongLinesAreCutToHalfOfTheTerminal) {
  const std::string line = "|-->" + std::string(200, 'x') + "\n";
  for (const unsigned width : {0u, 40u, 80u, 133u}) {
    const FlowDiff d = diff_flows(line, line, "a", "b", width);
    EXPECT_FALSE(d.differ);
    const size_t half = std::max(20u, width < 3 ? 0 : (width - 3) / 2);
    const std::string row = d.text.substr(d.text.find('\n') + 1);
    EXPECT_EQ(row.size(), half * 2 + 3 + 1);
    EXPECT_EQ(row[half - 1], '~');
  }
}

TEST(FlowDiff, OneMayBeEmpty) {
  EXPECT_TRUE(diff_flows("", "|-->a\n", "", "", 80).differ);
  EXPECT_FALSE(diff_flows("", "", "", "", 80).differ);
}

TEST(FlowDiff, CharactersOfSeveralBytesAreOneColumn) {
  const FlowDiff d = diff_flows("äöü\n", "äöü\n", "", "", 43);
  EXPECT_EQ(d.text, "\näöü                    äöü\n");
}

}  // namespace
}  // namespace weir
