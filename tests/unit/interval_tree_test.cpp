// The interval tree against a plain list that is searched from end to end.
#include "base/interval_tree.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <list>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace weir {
namespace {

using testing::ElementsAre;

constexpr uint64_t LAST = ~uint64_t{0};

struct Interval {
  uint64_t start = 0;
  uint64_t last = 0;
  unsigned id = 0;
  IntervalTreeLink link = {};
  uint64_t seen_in = 0;  // the search that touched this node last
};

/// Which nodes a search touches, and how often it touches any.
struct Touches {
  uint64_t search = 1;
  uint64_t nodes = 0;
  uint64_t accesses = 0;
  void start() { ++search, nodes = 0, accesses = 0; }
};
Touches touches;

struct IntervalTraits {
  using Node = Interval;
  static uint64_t start(const Interval& node) { return node.start; }
  static uint64_t last(const Interval& node) { return node.last; }
  static IntervalTreeLink& link(Interval& node) {
    ++touches.accesses;
    if (node.seen_in != touches.search) {
      node.seen_in = touches.search;
      ++touches.nodes;
    }
    return node.link;
  }
};
using Tree = IntervalTree<IntervalTraits>;

std::vector<unsigned> overlapping(const Tree& tree, uint64_t start, uint64_t last) {
  std::vector<unsigned> ids;
  for (Interval* node = tree.iter_first(start, last); node != nullptr; node = tree.iter_next(node, start, last))
    ids.push_back(node->id);
  return ids;
}

std::vector<unsigned> all_ids(const Tree& tree) {
  std::vector<unsigned> ids;
  for (Interval* node = tree.first(); node != nullptr; node = tree.next(node)) ids.push_back(node->id);
  return ids;
}

/// Height of the root: the deepest of the tree's paths.
unsigned height_of(const Tree& tree) {
  unsigned height = 0;
  for (Interval* node = tree.first(); node != nullptr; node = tree.next(node))
    height = std::max<unsigned>(height, node->link.height);
  return height;
}

/// What a tree should hold, in the order in which it should be walked.
class Model {
 public:
  void insert(Interval* node) {
    order_.insert(
        std::find_if(order_.begin(), order_.end(), [&](const Interval* other) { return other->start > node->start; }),
        node);
  }
  void insert_after(Interval* node, Interval* prev) {
    order_.insert(std::next(std::find(order_.begin(), order_.end(), prev)), node);
  }
  void erase(Interval* node) { order_.remove(node); }
  [[nodiscard]] std::vector<unsigned> overlapping(uint64_t start, uint64_t last) const {
    std::vector<unsigned> ids;
    for (const Interval* node : order_)
      if (node->start <= last && node->last >= start) ids.push_back(node->id);
    return ids;
  }
  [[nodiscard]] std::vector<unsigned> all_ids() const { return overlapping(0, LAST); }

 private:
  std::list<Interval*> order_;
};

// ---- Small sentences -----------------------------------------------------------------------------------------------

TEST(IntervalTree, AllZeroBytesAreAnEmptyTreeAndAFreeLink) {
  Tree tree;
  std::memset(static_cast<void*>(&tree), 0, sizeof tree);
  EXPECT_TRUE(tree.empty());
  EXPECT_EQ(tree.first(), nullptr);
  EXPECT_EQ(tree.iter_first(0, LAST), nullptr);
  EXPECT_STREQ(tree.broken_rule(), nullptr);

  Interval one{.start = 3, .last = 5, .id = 1};
  std::memset(static_cast<void*>(&one.link), 0, sizeof one.link);
  tree.insert(&one);
  EXPECT_TRUE(one.link.linked());
  tree.erase(&one);
  EXPECT_FALSE(one.link.linked());
  EXPECT_TRUE(tree.empty());
}

TEST(IntervalTree, BothEndsBelongToAnInterval) {
  Tree tree;
  Interval one{.start = 10, .last = 20, .id = 1};
  tree.insert(&one);
  EXPECT_THAT(overlapping(tree, 0, 9), ElementsAre());
  EXPECT_THAT(overlapping(tree, 0, 10), ElementsAre(1));
  EXPECT_THAT(overlapping(tree, 15, 15), ElementsAre(1));
  EXPECT_THAT(overlapping(tree, 20, LAST), ElementsAre(1));
  EXPECT_THAT(overlapping(tree, 21, LAST), ElementsAre());
}

TEST(IntervalTree, TheWholeRangeAndItsEndsAreIntervals) {
  Tree tree;
  Interval nodes[] = {
      {.start = 0, .last = LAST, .id = 0}, {.start = LAST, .last = LAST, .id = 1}, {.start = 0, .last = 0, .id = 2}};
  for (Interval& node : nodes) tree.insert(&node);
  EXPECT_THAT(overlapping(tree, 0, 0), ElementsAre(0, 2));
  EXPECT_THAT(overlapping(tree, 5, 5), ElementsAre(0));
  EXPECT_THAT(overlapping(tree, LAST, LAST), ElementsAre(0, 1));
  EXPECT_THAT(overlapping(tree, 0, LAST), ElementsAre(0, 2, 1));
}

TEST(IntervalTree, EqualStartsStayInTheOrderOfInsertion) {
  Tree tree;
  std::deque<Interval> nodes;
  std::vector<unsigned> want;
  for (unsigned i = 0; i < 100; ++i) {
    nodes.push_back({.start = 7, .last = 7 + (i * 37) % 50, .id = i});
    tree.insert(&nodes.back());
    want.push_back(i);
  }
  EXPECT_EQ(overlapping(tree, 7, 7), want);
  EXPECT_STREQ(tree.broken_rule(), nullptr);
}

TEST(IntervalTree, InsertAfterComesBetweenItsParentAndTheNext) {
  Tree tree;
  Interval nodes[] = {{.start = 7, .last = 9, .id = 0},
                      {.start = 7, .last = 9, .id = 1},
                      {.start = 7, .last = 8, .id = 2},
                      {.start = 7, .last = 30, .id = 3}};
  tree.insert(&nodes[0]);
  tree.insert(&nodes[1]);
  tree.insert_after(&nodes[2], &nodes[0]);
  tree.insert_after(&nodes[3], &nodes[0]);
  EXPECT_THAT(all_ids(tree), ElementsAre(0, 3, 2, 1));
  EXPECT_THAT(overlapping(tree, 10, 10), ElementsAre(3));
}

TEST(IntervalTree, HeightIsLogarithmicHoweverTheyCome) {
  for (const char* order : {"ascending", "descending", "equal", "zigzag"}) {
    SCOPED_TRACE(order);
    Tree tree;
    std::vector<Interval> nodes(10000);
    for (unsigned i = 0; i < nodes.size(); ++i) {
      const uint64_t start = order[0] == 'a'   ? i
                             : order[0] == 'd' ? nodes.size() - i
                             : order[0] == 'e' ? 5
                                               : (i % 2 != 0 ? i : nodes.size() * 2 - i);
      nodes[i] = {.start = start, .last = start + i % 3, .id = i};
      tree.insert(&nodes[i]);
    }
    EXPECT_LE(height_of(tree), 1.45 * std::log2(nodes.size() + 2));
    for (unsigned i = 0; i < 9000; ++i) tree.erase(&nodes[i]);
    EXPECT_STREQ(tree.broken_rule(), nullptr);
    EXPECT_LE(height_of(tree), 1.45 * std::log2(1002));
  }
}

TEST(IntervalTreeDeathTest, MisuseIsABug) {
  Tree tree;
  Interval one{.start = 3, .last = 5};
  Interval other{.start = 4, .last = 5};
  Interval inside_out{.start = 6, .last = 5};
  tree.insert(&one);
  EXPECT_DEATH(tree.insert(&one), "BUG");
  EXPECT_DEATH(tree.erase(&other), "BUG");
  EXPECT_DEATH(tree.insert(&inside_out), "BUG");
  EXPECT_DEATH(tree.insert_after(&other, &one), "BUG");
}

// ---- Against a list ------------------------------------------------------------------------------------------------

void run_model(uint64_t seed, uint64_t range, unsigned max_log_length) {
  std::mt19937_64 random(seed);
  Tree tree;
  Model model;
  std::vector<Interval> nodes(300);
  std::vector<Interval*> out;
  std::vector<Interval*> in;
  for (unsigned i = 0; i < nodes.size(); ++i) {
    nodes[i].id = i;
    out.push_back(&nodes[i]);
  }
  for (unsigned step = 0; step < 4000; ++step) {
    SCOPED_TRACE(testing::Message() << "step " << step);
    const bool growing = step / 700 % 2 == 0;
    if (!out.empty() && (in.empty() || random() % 3 < (growing ? 2U : 1U))) {
      std::swap(out[random() % out.size()], out.back());
      Interval* node = out.back();
      out.pop_back();
      if (!in.empty() && random() % 4 == 0) {
        Interval* prev = in[random() % in.size()];
        node->start = prev->start;
        node->last = std::max(node->start, node->start + (random() >> (63 - random() % max_log_length)));
        tree.insert_after(node, prev);
        model.insert_after(node, prev);
      } else {
        node->start = range == 0 ? random() : random() % range;
        const uint64_t length = random() >> (63 - random() % max_log_length);
        node->last = LAST - node->start < length ? LAST : node->start + length;
        tree.insert(node);
        model.insert(node);
      }
      in.push_back(node);
    } else {
      std::swap(in[random() % in.size()], in.back());
      Interval* node = in.back();
      in.pop_back();
      tree.erase(node);
      model.erase(node);
      out.push_back(node);
      ASSERT_FALSE(node->link.linked());
    }
    uint64_t start = range == 0 ? random() : random() % (range + range / 4);
    const uint64_t length = random() % 3 == 0 ? 0 : random() >> (63 - random() % max_log_length);
    const uint64_t last = LAST - start < length ? LAST : start + length;
    ASSERT_EQ(overlapping(tree, start, last), model.overlapping(start, last)) << '[' << start << ", " << last << ']';
    if (step % 20 == 0) {
      ASSERT_STREQ(tree.broken_rule(), nullptr);
      ASSERT_EQ(all_ids(tree), model.all_ids());
      ASSERT_LE(height_of(tree), 1.45 * std::log2(in.size() + 2));
    }
  }
  while (!in.empty()) {
    tree.erase(in.back());
    in.pop_back();
  }
  EXPECT_TRUE(tree.empty());
}

TEST(IntervalTreeModel, AgreesWithAListSearchedFromEndToEnd) {
  const uint64_t seeds = std::getenv("WEIR_LONG") != nullptr ? 200 : 6;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    for (const auto& [range, max_log_length] :
         std::vector<std::pair<uint64_t, unsigned>>{{10, 3}, {300, 1}, {300, 6}, {300, 9}, {100000, 12}, {0, 63}}) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", range " << range << ", lengths to 2^" << max_log_length);
      ASSERT_NO_FATAL_FAILURE(run_model(seed, range, max_log_length));
    }
  }
}

// ---- How much a search looks at ------------------------------------------------------------------------------------

/// The most that one search of several touches.
struct Cost {
  double first = 0;     // nodes touched for the first one (or none), over log2(n)
  double each = 0;      // nodes touched beside the ways there and back, over how many were found
  double accesses = 0;  // accesses to any node, over nodes touched
};

Cost cost_of(const Tree& tree, size_t n, const std::vector<std::pair<uint64_t, uint64_t>>& queries) {
  Cost worst;
  const double log_n = std::log2(n + 1);
  for (const auto& [start, last] : queries) {
    touches.start();
    (void)tree.iter_first(start, last);
    worst.first = std::max(worst.first, static_cast<double>(touches.nodes) / log_n);
    touches.start();
    const size_t found = overlapping(tree, start, last).size();
    worst.accesses =
        std::max(worst.accesses, static_cast<double>(touches.accesses) / static_cast<double>(touches.nodes));
    // The way to the first one and the way back after the last: 1.45 log2(n) nodes and a child beside each.
    const double ways = 2 * 2 * 1.45 * log_n;
    if (static_cast<double>(touches.nodes) > ways)
      worst.each = std::max(worst.each, (static_cast<double>(touches.nodes) - ways) / std::max<double>(1, found));
  }
  return worst;
}

std::vector<std::pair<uint64_t, uint64_t>> points(uint64_t range, unsigned count) {
  std::vector<std::pair<uint64_t, uint64_t>> queries;
  for (unsigned i = 0; i < count; ++i) queries.push_back({range / count * i, range / count * i});
  return queries;
}

TEST(IntervalTreeCost, LogNAndAConstantForEachFound) {
  for (unsigned n : {64U, 1024U, 16384U, 65536U}) {
    std::mt19937_64 random(n);
    // How mappings of one file lie: all of it each; windows side by side; windows anywhere; a library's few segments.
    for (const char* layout : {"whole file", "side by side", "anywhere", "segments"}) {
      std::vector<Interval> nodes(n);
      Tree tree;
      for (unsigned i = 0; i < n; ++i) {
        const uint64_t at = layout[0] == 'w'                       ? 0
                            : layout[0] == 's' && layout[1] == 'i' ? uint64_t{i} * 16
                            : layout[0] == 'a'                     ? random() % (uint64_t{n} * 16)
                                                                   : random() % 5 * (uint64_t{n} * 4);
        const uint64_t length = layout[0] == 'w' ? uint64_t{n} * 16 : layout[1] == 'e' ? uint64_t{n} * 4 : 16;
        nodes[i] = {.start = at, .last = at + length - 1, .id = i};
      }
      std::shuffle(nodes.begin(), nodes.end(), random);
      for (Interval& node : nodes) tree.insert(&node);
      const Cost cost = cost_of(tree, n, points(uint64_t{n} * 16, 200));
      SCOPED_TRACE(testing::Message() << n << " intervals, " << layout);
      EXPECT_LE(cost.first, 2 * 1.45);
      EXPECT_LE(cost.each, 1.1);
      EXPECT_LE(cost.accesses, 8);
    }
  }
}

TEST(IntervalTreeCost, ScatteredLongOnesCostTheirWaysOnly) {
  // k long intervals among n short ones, all in the way of a query at the very end: the bound is k log2(n / k), not k.
  for (unsigned n : {1024U, 65536U}) {
    for (unsigned k : {1U, 16U, 256U}) {
      std::vector<Interval> nodes(n);
      Tree tree;
      for (unsigned i = 0; i < n; ++i) {
        nodes[i] = {.start = i, .last = i % (n / k) == n / k / 2 ? n : i, .id = i};
        tree.insert(&nodes[i]);
      }
      touches.start();
      ASSERT_EQ(overlapping(tree, n, n).size(), k);
      EXPECT_LE(touches.nodes, 2 * k * (1.45 * std::log2(n / k) + 2) + 2 * 1.45 * std::log2(n)) << n << ", " << k;
    }
  }
}

TEST(IntervalTreeCost, InsertAndEraseTouchOneWay) {
  std::mt19937_64 random(3);
  std::vector<Interval> nodes(65536);
  Tree tree;
  uint64_t most = 0;
  for (unsigned i = 0; i < nodes.size(); ++i) {
    nodes[i] = {.start = random() % 100000, .last = 0, .id = i};
    nodes[i].last = nodes[i].start + random() % 50;
    touches.start();
    tree.insert(&nodes[i]);
    most = std::max(most, touches.nodes);
  }
  for (unsigned i = 0; i < nodes.size(); i += 2) {
    touches.start();
    tree.erase(&nodes[i]);
    most = std::max(most, touches.nodes);
  }
  // A node of the way, its other child, and that one's children when it is rotated.
  EXPECT_LE(most, 3 * 1.45 * std::log2(nodes.size()) + 8);
}

// ---- Every rule of verify() is tripped by a planted fault ----------------------------------------------------------

TEST(IntervalTreeFault, EachRuleIsTripped) {
  Tree tree;
  std::vector<Interval> nodes(15);
  for (unsigned i = 0; i < nodes.size(); ++i) {
    nodes[i] = {.start = i * 10, .last = i * 10 + 5, .id = i};
    tree.insert(&nodes[i]);
  }
  std::set<std::string> killed;
  const auto plant = [&](auto& field, auto bad, const char* rule) {
    const auto good = field;
    field = bad;
    const char* broken = tree.broken_rule();
    EXPECT_STREQ(broken, rule);
    if (broken != nullptr) killed.insert(broken);
    field = good;
    ASSERT_STREQ(tree.broken_rule(), nullptr);
  };
  // 15 in ascending order: 7 at the root, 3 and 11 below.
  ASSERT_EQ(nodes[7].link.height, 4);
  plant(nodes[7].link.parent, static_cast<void*>(&nodes[3]), "interval: the root has a parent");
  plant(nodes[14].last, uint64_t{0}, "interval: last lies before start");
  plant(nodes[3].start, uint64_t{5}, "interval: out of order");
  plant(nodes[12].link.parent, static_cast<void*>(&nodes[11]), "interval: a child has another parent");
  plant(nodes[7].link.height, uint8_t{5}, "interval: height is wrong");
  plant(nodes[13].link.height, uint8_t{4}, "interval: out of balance");
  plant(nodes[7].link.subtree_last, uint64_t{100}, "interval: subtree_last is wrong");
  EXPECT_EQ(killed.size(), 7U);
  std::printf("invariants %zu/7 killed\n", killed.size());
}

}  // namespace
}  // namespace weir
