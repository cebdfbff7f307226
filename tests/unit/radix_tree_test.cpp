// The radix tree against a std::map, with nodes that run out when asked to.
#include "base/radix_tree.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/flow.hpp"

namespace weir {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;

constexpr uint64_t LAST = ~uint64_t{0};

/// Nodes full of rubbish; the n-th allocation from now on can be made to fail, and all after it.
class TestNodes final : public RadixNodeSource {
 public:
  ~TestNodes() { EXPECT_TRUE(live_.empty()) << live_.size() << " nodes leaked"; }

  RadixTreeNode* alloc_node() override {
    if (allowed_ == 0) return nullptr;
    --allowed_;
    auto node = std::make_unique<RadixTreeNode>();
    std::memset(static_cast<void*>(node.get()), 0xa5, sizeof *node);
    RadixTreeNode* raw = node.get();
    live_[raw] = std::move(node);
    return raw;
  }
  void free_node(RadixTreeNode* node) override {
    ASSERT_EQ(live_.erase(node), 1U) << "a node that was not out came back";
  }

  void allow(uint64_t count) { allowed_ = count; }
  void allow_all() { allowed_ = LAST; }
  [[nodiscard]] size_t live() const { return live_.size(); }

 private:
  std::map<RadixTreeNode*, std::unique_ptr<RadixTreeNode>> live_;
  uint64_t allowed_ = LAST;
};

/// An item for each n: never null, distinct for n below 2^61.
void* item(uint64_t n) { return reinterpret_cast<void*>(((n & (LAST >> 3)) + 1) << 2); }

Errno insert(RadixTree& tree, uint64_t index, void* what, RadixNodeSource& nodes) {
  RadixPreload none(nodes);
  return tree.radix_tree_insert(index, what, none).error();
}

struct Entry {
  void* what;
  unsigned tags = 0;
  bool operator==(const Entry&) const = default;
};
using Model = std::map<uint64_t, Entry>;

Model contents(const RadixTree& tree) {
  Model all;
  uint64_t before = 0;
  tree.walk([&](uint64_t index, void* what, unsigned tags) {
    EXPECT_TRUE(all.empty() || index > before) << "not ascending at " << index;
    before = index;
    all[index] = {what, tags};
  });
  return all;
}

/// Everything the tree says of itself at once: its rules, its nodes, its entries.
void expect_whole(const RadixTree& tree, const Model& model, const TestNodes& nodes) {
  ASSERT_STREQ(tree.broken_rule(), nullptr);
  ASSERT_EQ(contents(tree), model);
  ASSERT_EQ(tree.empty(), model.empty());
  std::set<const RadixTreeNode*> walked;
  tree.walk_nodes([&](const RadixTreeNode& node) { walked.insert(&node); });
  ASSERT_EQ(walked.size(), tree.node_count());
  ASSERT_EQ(nodes.live(), tree.node_count());
  // No more nodes than the entries ask for: one for each distinct prefix of each level.
  std::set<std::pair<unsigned, uint64_t>> needed;
  for (const auto& [index, entry] : model)
    for (unsigned level = 0; level < tree.height(); ++level)
      needed.insert({level, level == RADIX_TREE_MAX_PATH - 1 ? 0 : index >> (RADIX_TREE_MAP_SHIFT * (level + 1))});
  ASSERT_EQ(tree.node_count(), needed.size());
}

// ---- Small sentences -----------------------------------------------------------------------------------------------

TEST(RadixTree, AllZeroBytesAreAnEmptyTree) {
  RadixTree fresh;
  std::memset(static_cast<void*>(&fresh), 0, sizeof fresh);
  EXPECT_TRUE(fresh.empty());
  EXPECT_EQ(fresh.height(), 0U);
  EXPECT_EQ(fresh.lookup(0), nullptr);
  EXPECT_EQ(fresh.lookup(LAST), nullptr);
  EXPECT_STREQ(fresh.broken_rule(), nullptr);
}

TEST(RadixTree, ANodeIsSmallEnoughForSevenInAPage) { EXPECT_LE(7 * sizeof(RadixTreeNode), 4096U); }

TEST(RadixTree, HeightFollowsTheLargestIndex) {
  const std::vector<std::pair<uint64_t, unsigned>> wanted = {
      {0, 0}, {1, 1}, {63, 1}, {64, 2}, {4095, 2}, {4096, 3}, {(1ULL << 60) - 1, 10}, {1ULL << 60, 11}, {LAST, 11}};
  for (const auto& [index, height] : wanted) {
    SCOPED_TRACE(index);
    TestNodes nodes;
    RadixTree tree;
    ASSERT_EQ(insert(tree, index, item(1), nodes), Errno::ok);
    EXPECT_EQ(tree.height(), height);
    EXPECT_EQ(tree.node_count(), height);
    ASSERT_EQ(insert(tree, 0, item(0), nodes), index == 0 ? Errno::exist : Errno::ok);
    EXPECT_EQ(tree.height(), height);
    EXPECT_EQ(tree.erase(index, nodes), item(1));
    EXPECT_EQ(tree.height(), 0U) << "an item at index 0 needs no node";
    EXPECT_EQ(nodes.live(), 0U);
    EXPECT_EQ(tree.erase(0, nodes), index == 0 ? nullptr : item(0));
    EXPECT_TRUE(tree.empty());
  }
}

TEST(RadixTree, AUsedSlotIsNotOverwritten) {
  TestNodes nodes;
  RadixTree tree;
  for (uint64_t index : {uint64_t{0}, uint64_t{5}, LAST}) {
    ASSERT_EQ(insert(tree, index, item(1), nodes), Errno::ok);
    EXPECT_EQ(insert(tree, index, item(2), nodes), Errno::exist);
    EXPECT_EQ(tree.lookup(index), item(1));
  }
  tree.destroy(nodes);
}

TEST(RadixTree, ReplaceKeepsTagsAndStoresOnlyWhereSomethingIs) {
  TestNodes nodes;
  for (uint64_t index : {uint64_t{0}, uint64_t{70}}) {
    RadixTree tree;
    EXPECT_EQ(tree.replace(index, item(1)), nullptr);
    EXPECT_TRUE(tree.empty());
    ASSERT_EQ(insert(tree, index, item(1), nodes), Errno::ok);
    tree.tag_set(index, PAGECACHE_TAG_WRITEBACK);
    EXPECT_EQ(tree.replace(index, make_exceptional_entry(9)), item(1));
    EXPECT_EQ(tree.replace(index + 1, item(1)), nullptr);
    expect_whole(tree, {{index, {make_exceptional_entry(9), 1U << PAGECACHE_TAG_WRITEBACK}}}, nodes);
    EXPECT_EQ(tree.replace(index, item(3)), make_exceptional_entry(9));
    expect_whole(tree, {{index, {item(3), 1U << PAGECACHE_TAG_WRITEBACK}}}, nodes);
    tree.destroy(nodes);
  }
}

TEST(RadixTree, ExceptionalEntriesCarryValuesOf62Bits) {
  for (uint64_t value : {uint64_t{0}, uint64_t{1}, (uint64_t{1} << 62) - 1}) {
    void* entry = make_exceptional_entry(value);
    EXPECT_TRUE(is_exceptional_entry(entry));
    EXPECT_TRUE(radix_tree_exceptional_entry(entry));
    EXPECT_FALSE(is_internal_node(entry));
    EXPECT_FALSE(radix_tree_is_internal_node(entry));
    EXPECT_EQ(exceptional_value(entry), value);
  }
  EXPECT_FALSE(is_exceptional_entry(item(0)));
  EXPECT_FALSE(is_exceptional_entry(nullptr));
  EXPECT_TRUE(is_internal_node(reinterpret_cast<void*>(3)));
  EXPECT_FALSE(is_exceptional_entry(reinterpret_cast<void*>(3)));
}

TEST(RadixTree, ATagIsGoneWithTheLastItemThatHadIt) {
  TestNodes nodes;
  RadixTree tree;
  for (uint64_t index : {uint64_t{3}, uint64_t{1} << 20, LAST})
    ASSERT_EQ(insert(tree, index, item(index), nodes), Errno::ok);
  EXPECT_EQ(tree.tag_set(3, PAGECACHE_TAG_DIRTY), item(3));
  EXPECT_EQ(tree.tag_set(LAST, PAGECACHE_TAG_DIRTY), item(LAST));
  EXPECT_EQ(tree.tag_clear(7, PAGECACHE_TAG_DIRTY), nullptr);
  EXPECT_TRUE(tree.tag_get(3, PAGECACHE_TAG_DIRTY));
  EXPECT_FALSE(tree.tag_get(3, PAGECACHE_TAG_TOWRITE));
  EXPECT_EQ(tree.erase(3, nodes), item(3));
  EXPECT_TRUE(tree.tagged(PAGECACHE_TAG_DIRTY));
  EXPECT_EQ(tree.tag_clear(LAST, PAGECACHE_TAG_DIRTY), item(LAST));
  EXPECT_FALSE(tree.tagged(PAGECACHE_TAG_DIRTY));
  tree.destroy(nodes);
}

TEST(RadixTree, TagsSurviveGrowthAndShrinking) {
  TestNodes nodes;
  RadixTree tree;
  ASSERT_EQ(insert(tree, 0, make_exceptional_entry(4), nodes), Errno::ok);
  tree.tag_set(0, PAGECACHE_TAG_TOWRITE);
  const Model alone = {{0, {make_exceptional_entry(4), 1U << PAGECACHE_TAG_TOWRITE}}};
  for (uint64_t far : {uint64_t{1}, uint64_t{64}, uint64_t{1} << 40, LAST}) {
    ASSERT_EQ(insert(tree, far, item(far), nodes), Errno::ok);
    Model both = alone;
    both[far] = {item(far), 0};
    expect_whole(tree, both, nodes);
    ASSERT_EQ(tree.erase(far, nodes), item(far));
    expect_whole(tree, alone, nodes);
  }
  tree.destroy(nodes);
}

TEST(RadixTree, GangLookupEndsAtTheLargestIndex) {
  TestNodes nodes;
  RadixTree tree;
  const std::vector<uint64_t> at = {0, 63, 64, 4095, 1ULL << 36, LAST - 64, LAST - 1, LAST};
  for (uint64_t index : at) ASSERT_EQ(insert(tree, index, item(index), nodes), Errno::ok);
  void* results[16];
  uint64_t indices[16];
  ASSERT_EQ(tree.gang_lookup(results, indices, 0, 16), at.size());
  EXPECT_THAT(std::vector<uint64_t>(indices, indices + at.size()), ElementsAreArray(at));
  ASSERT_EQ(tree.gang_lookup(results, indices, 65, 2), 2U);
  EXPECT_THAT(std::vector<uint64_t>(indices, indices + 2), ElementsAre(4095U, 1ULL << 36));
  ASSERT_EQ(tree.gang_lookup(results, nullptr, LAST, 16), 1U);
  EXPECT_EQ(results[0], item(LAST));
  EXPECT_EQ(tree.gang_lookup(results, indices, 0, 0), 0U);
  tree.destroy(nodes);
}

TEST(RadixTree, HolesEndWhereTheScanOrTheIndicesDo) {
  TestNodes nodes;
  RadixTree tree;
  EXPECT_EQ(tree.next_hole(7, 5), 7U);
  EXPECT_EQ(tree.prev_hole(7, 5), 7U);
  for (uint64_t index = 0; index < 200; ++index)
    ASSERT_EQ(insert(tree, index, index == 130 ? make_exceptional_entry(1) : item(index), nodes), Errno::ok);
  for (uint64_t index = LAST - 99; index != 0; ++index) ASSERT_EQ(insert(tree, index, item(1), nodes), Errno::ok);

  EXPECT_EQ(tree.next_hole(0, LAST), 200U);
  EXPECT_EQ(tree.next_hole(0, 200), 200U) << "outside of the scan: none found";
  EXPECT_EQ(tree.next_hole(10, 20), 30U) << "outside of the scan: none found";
  EXPECT_EQ(tree.next_hole(10, 0), 10U);
  EXPECT_EQ(tree.next_hole(0, LAST, RadixHole::no_object), 130U);
  EXPECT_EQ(tree.next_hole(LAST - 50, LAST), 0U) << "ran past the largest index";
  EXPECT_EQ(tree.next_hole(LAST - 50, 20), LAST - 30);

  EXPECT_EQ(tree.prev_hole(LAST, LAST), LAST - 100);
  EXPECT_EQ(tree.prev_hole(LAST, 100), LAST - 100) << "outside of the scan: none found";
  EXPECT_EQ(tree.prev_hole(150, 100, RadixHole::no_object), 130U);
  EXPECT_EQ(tree.prev_hole(150, 10), 140U) << "outside of the scan: none found";
  EXPECT_EQ(tree.prev_hole(150, LAST), LAST) << "ran below index 0";
  EXPECT_EQ(tree.prev_hole(300, LAST), 300U);
  tree.destroy(nodes);
}

TEST(RadixTreeDeathTest, WhatIsNotAnItemIsABug) {
  TestNodes nodes;
  RadixTree tree;
  RadixPreload none(nodes);
  EXPECT_DEATH((void)tree.radix_tree_insert(1, nullptr, none), "BUG");
  EXPECT_DEATH((void)tree.radix_tree_insert(1, reinterpret_cast<void*>(5), none), "radix_tree_is_internal_node");
  EXPECT_DEATH((void)tree.replace(1, nullptr), "BUG");
  EXPECT_DEATH((void)tree.tag_set(1, PAGECACHE_TAG_DIRTY), "BUG");
}

// ---- Preload -------------------------------------------------------------------------------------------------------

TEST(RadixPreload, SizesForTheWorstTree) {
  EXPECT_EQ(radix_tree_preload_size(0, LAST), 2 * RADIX_TREE_MAX_PATH - 1);
  EXPECT_EQ(radix_tree_preload_size(6, LAST), 2 * RADIX_TREE_MAX_PATH - 1);
  EXPECT_EQ(radix_tree_preload_size(9, LAST), 28U) << "Linux's figure for a huge page of 512";
  EXPECT_EQ(radix_tree_preload_size(0, 16383), 5U) << "swap address space of 64 MiB";
  EXPECT_EQ(radix_tree_preload_size(0, 63), 1U);
  EXPECT_EQ(radix_tree_preload_size(0, 0), 0U);
}

/// Trees that differ in what is there before the insert.
std::vector<std::vector<uint64_t>> starting_points(uint64_t max_index) {
  std::vector<std::vector<uint64_t>> all = {{}, {0}, {1}, {max_index}, {0, max_index}};
  for (unsigned bits = 6; bits < 64 && (max_index >> bits) != 0; bits += 6) {
    all.push_back({uint64_t{1} << bits});
    all.push_back({(uint64_t{1} << bits) - 1});
    all.push_back({0, (uint64_t{1} << bits)});
  }
  return all;
}

TEST(RadixPreload, AfterItAnInsertCannotFail) {
  for (uint64_t max_index : {uint64_t{1}, uint64_t{63}, uint64_t{127}, uint64_t{16383}, uint64_t{1} << 32, LAST}) {
    for (unsigned order : {0U, 1U, 6U, 9U}) {
      const uint64_t run = uint64_t{1} << order;
      if (run - 1 > max_index) continue;
      unsigned most = 0;
      for (const auto& before : starting_points(max_index)) {
        std::set<uint64_t> targets = {0, (max_index - (run - 1)) & ~(run - 1)};
        for (unsigned bits = order; bits < 64 && (max_index >> bits) != 0; ++bits) targets.insert(uint64_t{1} << bits);
        for (uint64_t target : targets) {
          if (target > max_index - (run - 1)) continue;
          SCOPED_TRACE(testing::Message() << "max " << max_index << " order " << order << " target " << target);
          TestNodes nodes;
          RadixTree tree;
          for (uint64_t index : before) ASSERT_EQ(insert(tree, index, item(index), nodes), Errno::ok);
          RadixPreload preload(nodes, max_index);
          ASSERT_TRUE(radix_tree_maybe_preload_order(preload, order).ok());
          const unsigned held = preload.held();
          ASSERT_EQ(held, radix_tree_preload_size(order, max_index));
          nodes.allow(0);
          for (uint64_t i = 0; i < run; ++i) {
            const bool used = tree.lookup(target + i) != nullptr;
            ASSERT_EQ(tree.radix_tree_insert(target + i, item(i), preload).error(), used ? Errno::exist : Errno::ok);
          }
          most = std::max(most, held - preload.held());
          radix_tree_preload_end(preload);
          EXPECT_EQ(preload.held(), 0U);
          ASSERT_EQ(nodes.live(), tree.node_count());
          ASSERT_STREQ(tree.broken_rule(), nullptr);
          tree.destroy(nodes);
        }
      }
      EXPECT_EQ(most, radix_tree_preload_size(order, max_index))
          << "more than the worst case is held: max " << max_index << " order " << order;
    }
  }
}

TEST(RadixPreload, HoldsNothingAfterAFailure) {
  for (uint64_t allowed = 0; allowed < 2 * RADIX_TREE_MAX_PATH - 1; ++allowed) {
    TestNodes nodes;
    nodes.allow(allowed);
    RadixPreload preload(nodes);
    EXPECT_EQ(radix_tree_maybe_preload(preload).error(), Errno::nomem);
    EXPECT_EQ(preload.held(), 0U);
    EXPECT_EQ(nodes.live(), 0U);
  }
}

TEST(RadixPreload, GivesBackWhatNobodyEnded) {
  TestNodes nodes;
  {
    RadixPreload preload(nodes);
    ASSERT_TRUE(radix_tree_maybe_preload(preload).ok());
    ASSERT_TRUE(radix_tree_maybe_preload(preload).ok());
    EXPECT_EQ(nodes.live(), 2 * RADIX_TREE_MAX_PATH - 1) << "what is held already counts";
  }
  EXPECT_EQ(nodes.live(), 0U);
}

/// Keeps what preloads leave.
class ThriftyNodes final : public RadixNodeSource {
 public:
  RadixTreeNode* alloc_node() override { return ++allocs, below_.alloc_node(); }
  void free_node(RadixTreeNode* node) override { below_.free_node(node); }
  Chain take_spares() override { return std::exchange(kept, {}); }
  bool keep_spares(Chain spares) override {
    if (kept.count != 0) return false;
    kept = spares;
    return true;
  }
  [[nodiscard]] size_t live() const { return below_.live(); }
  Chain kept;
  unsigned allocs = 0;

 private:
  TestNodes below_;
};

TEST(RadixPreload, TakesWhatAnEarlierOneDidNotNeed) {
  ThriftyNodes nodes;
  RadixTree tree;
  constexpr unsigned WORST = 2 * RADIX_TREE_MAX_PATH - 1;
  for (uint64_t index : {1, 70}) {  // a leaf; then a root and a second leaf
    const unsigned kept = nodes.kept.count, allocs = nodes.allocs;
    RadixPreload preload(nodes);
    ASSERT_TRUE(radix_tree_maybe_preload(preload).ok());
    EXPECT_EQ(nodes.allocs - allocs, WORST - kept);
    EXPECT_EQ(preload.held(), WORST);
    ASSERT_TRUE(tree.radix_tree_insert(index, item(index), preload).ok());
    RadixPreload second(nodes, 63);
    ASSERT_TRUE(radix_tree_maybe_preload(second).ok());
    EXPECT_EQ(second.held(), 1U) << "nothing is kept while the first has it";
    radix_tree_preload_end(preload);
    EXPECT_EQ(preload.held(), 0U);
    EXPECT_EQ(nodes.kept.count, WORST - (index == 1 ? 1 : 2));
    radix_tree_preload_end(second);
    EXPECT_EQ(second.held(), 0U) << "one chain is kept, the other goes back";
    EXPECT_EQ(nodes.live(), nodes.kept.count + (index == 1 ? 1 : 3));
  }
  tree.destroy(nodes);
  for (RadixNodeSource::Chain rest = nodes.take_spares(); rest.count != 0; --rest.count)
    nodes.free_node(std::exchange(rest.first, rest.first->parent));
  EXPECT_EQ(nodes.live(), 0U);
}

TEST(RadixPreload, AnInsertThatFindsNoNodeChangesNothing) {
  unsigned failures = 0;
  for (const auto& before : starting_points(LAST)) {
    for (uint64_t target : {uint64_t{0}, uint64_t{2}, uint64_t{65}, uint64_t{5000}, uint64_t{1} << 45, LAST - 1}) {
      TestNodes nodes;
      RadixTree tree;
      for (uint64_t index : before) {
        ASSERT_EQ(insert(tree, index, item(index), nodes), Errno::ok);
        tree.tag_set(index, PAGECACHE_TAG_DIRTY);
      }
      const Model was = contents(tree);
      for (uint64_t allowed = 0;; ++allowed) {
        SCOPED_TRACE(testing::Message() << "target " << target << ", failing node " << allowed);
        nodes.allow(allowed);
        const Errno result = insert(tree, target, item(target), nodes);
        nodes.allow_all();
        if (result != Errno::nomem) {
          EXPECT_EQ(result, was.contains(target) ? Errno::exist : Errno::ok);
          break;
        }
        ++failures;
        expect_whole(tree, was, nodes);
      }
      tree.destroy(nodes);
    }
  }
  EXPECT_GT(failures, 500U);
}

// ---- What is recorded ----------------------------------------------------------------------------------------------

class Calls final : public FlowSink {
 public:
  Calls() { engine_thread().sink = this; }
  ~Calls() { engine_thread().sink = nullptr; }
  void enter(const FlowSite& site, uint64_t, uint64_t, uint64_t) override {
    text += std::string(depth++, '.') + site.function + " ";
  }
  void leave(const FlowSite&) override { --depth; }
  void state(const FlowSite&, State, uint64_t, uint64_t, uint64_t) override {}
  unsigned depth = 0;
  std::string text;
};

TEST(RadixTreeFlow, AnInsertIsRecordedAsLinuxNestsIt) {
  TestNodes nodes;
  RadixTree tree;
  std::string text;
  {
    Calls calls;
    RadixPreload preload(nodes, 63);
    ASSERT_TRUE(radix_tree_maybe_preload_order(preload, 0).ok());
    ASSERT_TRUE(tree.radix_tree_insert(5, item(5), preload).ok());
    ASSERT_TRUE(tree.radix_tree_insert(6, item(6), preload).ok());
    radix_tree_preload_end(preload);
    (void)tree.lookup(5);
    (void)tree.next_hole(5, 9);
    text = calls.text;
  }
  EXPECT_EQ(text,
            "radix_tree_maybe_preload_order "
            "radix_tree_insert .__radix_tree_insert ..radix_tree_is_internal_node ..__radix_tree_create "
            "...node_to_entry ..insert_entries ...radix_tree_exceptional_entry "
            "radix_tree_insert .__radix_tree_insert ..radix_tree_is_internal_node ..__radix_tree_create "
            "..insert_entries ...radix_tree_exceptional_entry "
            "radix_tree_preload_end ");
  tree.destroy(nodes);
}

// ---- Against a map -------------------------------------------------------------------------------------------------

/// Where a run's indices lie.
enum class Spread { dense, sparse, clustered, ends };

uint64_t pick_index(std::mt19937_64& random, Spread spread) {
  switch (spread) {
    case Spread::dense: return random() % 400;
    case Spread::sparse: return random() >> random() % 64;
    case Spread::clustered: return (random() % 6 << (12 * (random() % 5))) + random() % 70;
    case Spread::ends: return random() % 2 != 0 ? random() % 130 : LAST - random() % 130;
  }
  return 0;
}

uint64_t model_next_hole(const Model& model, uint64_t index, uint64_t max_scan, RadixHole hole) {
  for (uint64_t i = 0; i < max_scan; ++i, ++index) {
    if (i != 0 && index == 0) return 0;
    const auto it = model.find(index);
    if (it == model.end() || (hole == RadixHole::no_object && is_exceptional_entry(it->second.what))) return index;
  }
  return index;
}

uint64_t model_prev_hole(const Model& model, uint64_t index, uint64_t max_scan, RadixHole hole) {
  for (uint64_t i = 0; i < max_scan; ++i, --index) {
    if (i != 0 && index == LAST) return LAST;
    const auto it = model.find(index);
    if (it == model.end() || (hole == RadixHole::no_object && is_exceptional_entry(it->second.what))) return index;
  }
  return index;
}

void run_model(uint64_t seed, Spread spread, unsigned steps) {
  std::mt19937_64 random(seed);
  TestNodes nodes;
  RadixTree tree;
  Model model;
  uint64_t serial = 0;
  for (unsigned step = 0; step < steps; ++step) {
    SCOPED_TRACE(testing::Message() << "step " << step);
    uint64_t index = pick_index(random, spread);
    // Half of the time something that is there.
    if (random() % 2 != 0 && !model.empty()) {
      auto it = model.lower_bound(index);
      index = it == model.end() ? model.begin()->first : it->first;
    }
    const auto it = model.find(index);
    const bool there = it != model.end();
    const RadixTag tag = static_cast<RadixTag>(random() % RADIX_TREE_MAX_TAGS);
    const bool growing = step / 500 % 2 == 0;
    ++serial;
    void* const fresh = random() % 4 == 0 ? make_exceptional_entry(serial) : item(serial);
    switch (random() % 10) {
      case 0:
      case 1:
      case 2:
        if (!growing) {
          ASSERT_EQ(tree.erase(index, nodes), there ? it->second.what : nullptr);
          model.erase(index);
          break;
        }
        [[fallthrough]];
      case 3: {
        RadixPreload preload(nodes);
        const uint64_t mode = random() % 3;
        ASSERT_TRUE(mode != 1 || radix_tree_maybe_preload(preload).ok());
        if (mode == 2) nodes.allow(random() % 12);  // may fail
        const Errno result = tree.radix_tree_insert(index, fresh, preload).error();
        nodes.allow_all();
        radix_tree_preload_end(preload);
        if (mode == 2 && result == Errno::nomem) {
          ASSERT_FALSE(there) << "a slot in use lacks no node";
          break;
        }
        ASSERT_EQ(result, there ? Errno::exist : Errno::ok);
        if (!there) model[index] = {fresh, 0};
        break;
      }
      case 4:
        ASSERT_EQ(tree.erase(index, nodes), there ? it->second.what : nullptr);
        model.erase(index);
        break;
      case 5:
        ASSERT_EQ(tree.replace(index, fresh), there ? it->second.what : nullptr);
        if (there) it->second.what = fresh;
        break;
      case 6:
      case 7:
        if (!there) break;
        ASSERT_EQ(tree.tag_set(index, tag), it->second.what);
        it->second.tags |= 1U << tag;
        break;
      case 8:
        ASSERT_EQ(tree.tag_clear(index, tag), there ? it->second.what : nullptr);
        if (there) it->second.tags &= ~(1U << tag);
        break;
      case 9: {
        const unsigned max = static_cast<unsigned>(random() % 40);
        const bool tagged = random() % 2 != 0;
        std::vector<std::pair<uint64_t, void*>> want;
        bool any = false;
        for (const auto& [at, entry] : model) {
          if (tagged && (entry.tags >> tag & 1) == 0) continue;
          any = true;
          if (at >= index && want.size() < max) want.push_back({at, entry.what});
        }
        if (tagged) {
          ASSERT_EQ(tree.tagged(tag), any);
        }
        void* results[40];
        uint64_t indices[40];
        const unsigned found = tagged ? tree.gang_lookup_tag(results, indices, index, max, tag)
                                      : tree.gang_lookup(results, indices, index, max);
        std::vector<std::pair<uint64_t, void*>> got;
        for (unsigned i = 0; i < found; ++i) got.push_back({indices[i], results[i]});
        ASSERT_EQ(got, want);
        const uint64_t scan = random() % 500;
        const RadixHole hole = random() % 2 != 0 ? RadixHole::empty : RadixHole::no_object;
        ASSERT_EQ(tree.next_hole(index, scan, hole), model_next_hole(model, index, scan, hole));
        ASSERT_EQ(tree.prev_hole(index, scan, hole), model_prev_hole(model, index, scan, hole));
        break;
      }
    }
    const uint64_t probe = pick_index(random, spread);
    const auto at = model.find(probe);
    ASSERT_EQ(tree.lookup(probe), at == model.end() ? nullptr : at->second.what);
    ASSERT_EQ(tree.tag_get(probe, tag), at != model.end() && (at->second.tags >> tag & 1) != 0);
    ASSERT_EQ(nodes.live(), tree.node_count());
    if (step % 50 == 0) {
      ASSERT_NO_FATAL_FAILURE(expect_whole(tree, model, nodes));
    }
  }
  ASSERT_NO_FATAL_FAILURE(expect_whole(tree, model, nodes));
  if (seed % 2 == 0) {
    tree.destroy(nodes);
  } else {
    for (const auto& [index, entry] : model) ASSERT_EQ(tree.erase(index, nodes), entry.what);
  }
  EXPECT_TRUE(tree.empty());
  EXPECT_EQ(nodes.live(), 0U);
}

TEST(RadixTreeModel, AgreesWithAMap) {
  const uint64_t seeds = std::getenv("WEIR_LONG") != nullptr ? 400 : 10;
  for (uint64_t seed = 1; seed <= seeds; ++seed)
    for (Spread spread : {Spread::dense, Spread::sparse, Spread::clustered, Spread::ends}) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", spread " << static_cast<int>(spread));
      ASSERT_NO_FATAL_FAILURE(run_model(seed, spread, 3000));
    }
}

// ---- Every rule of verify() is tripped by a planted fault ----------------------------------------------------------

/// The tree's own three fields, to damage them.
struct TreeImage {
  void* root;
  uint32_t nodes;
  uint8_t tags;
};

class RadixTreeFault : public testing::Test {
 protected:
  void SetUp() override {
    for (uint64_t index : {3, 4, 70, 5000}) ASSERT_EQ(insert(tree_, index, item(index), nodes_), Errno::ok);
    (void)tree_.replace(4, make_exceptional_entry(1));
    tree_.tag_set(70, PAGECACHE_TAG_DIRTY);
    ASSERT_STREQ(tree_.broken_rule(), nullptr);
    tree_.walk_nodes([&](const RadixTreeNode& node) { path_.push_back(const_cast<RadixTreeNode*>(&node)); });
    // root (shift 12), inner (shift 6), leaf 0...63, leaf 64...127, and two nodes down to 5000
    ASSERT_EQ(path_.size(), 6U);
    std::memcpy(&image_, static_cast<void*>(&tree_), sizeof image_);
  }
  void TearDown() override { tree_.destroy(nodes_); }

  /// Damages *field, looks, and puts it right again.
  template <class T>
  void plant(T& field, T bad, const char* rule) {
    const T good = field;
    field = bad;
    std::memcpy(static_cast<void*>(&tree_), &image_, sizeof image_);
    const char* broken = tree_.broken_rule();
    EXPECT_STREQ(broken, rule);
    if (broken != nullptr) killed_.insert(broken);
    field = good;
    std::memcpy(static_cast<void*>(&tree_), &image_, sizeof image_);
    ASSERT_STREQ(tree_.broken_rule(), nullptr);
  }

  TestNodes nodes_;
  RadixTree tree_;
  std::vector<RadixTreeNode*> path_;
  TreeImage image_ = {};
  std::set<std::string> killed_;
};

TEST_F(RadixTreeFault, EachRuleIsTripped) {
  RadixTreeNode& root = *path_[0];
  RadixTreeNode& inner = *path_[1];
  RadixTreeNode& leaf = *path_[2];
  RadixTreeNode& tagged = *path_[3];
  constexpr unsigned PRESENT = RadixTreeNode::PRESENT;
  void* const none = nullptr;

  plant(leaf.marks[PRESENT], uint64_t{0}, "radix: a node is empty");
  plant(leaf.exceptional, leaf.exceptional | 1, "radix: an exceptional bit without an entry");
  plant(inner.exceptional, uint64_t{1}, "radix: an exceptional bit above the leaves");
  plant(tagged.marks[0], tagged.marks[0] | 1, "radix: a tag without an entry");
  plant(leaf.slots[3], none, "radix: a slot in use is not marked present");
  plant(leaf.slots[9], item(1), "radix: a slot in use is not marked present");
  plant(leaf.slots[3], reinterpret_cast<void*>(5), "radix: an item above the leaves, or a node in a leaf");
  plant(inner.slots[0], item(1), "radix: an item above the leaves, or a node in a leaf");
  plant(leaf.slots[4], item(4), "radix: an exceptional bit does not say what is stored");
  plant(leaf.exceptional, uint64_t{0}, "radix: an exceptional bit does not say what is stored");
  plant(leaf.parent, &root, "radix: a child does not know its place");
  plant(tagged.offset, uint8_t{2}, "radix: a child does not know its place");
  plant(leaf.shift, uint8_t{6}, "radix: a child is at the wrong height");
  plant(tagged.marks[0], uint64_t{0}, "radix: a tag does not say what is below");
  plant(inner.marks[2], uint64_t{1}, "radix: a tag does not say what is below");
  plant(root.parent, &inner, "radix: the root has a parent");
  plant(root.shift, uint8_t{13}, "radix: no such height");
  plant(root.shift, uint8_t{66}, "radix: no such height");
  plant(root.marks[PRESENT], uint64_t{1}, "radix: the root only leads to slot 0");
  plant(image_.tags, uint8_t{0}, "radix: the tree's tags differ from its root's");
  plant(image_.nodes, image_.nodes + 1, "radix: nodes are counted that are not there");
  {
    TreeImage empty = {nullptr, 0, 1};
    RadixTree wrong;
    std::memcpy(static_cast<void*>(&wrong), &empty, sizeof empty);
    EXPECT_STREQ(wrong.broken_rule(), "radix: an empty tree is tagged");
    if (wrong.broken_rule() != nullptr) killed_.insert(wrong.broken_rule());
    empty = {item(1), 1, 0};
    std::memcpy(static_cast<void*>(&wrong), &empty, sizeof empty);
    EXPECT_STREQ(wrong.broken_rule(), "radix: nodes are counted that are not there");
  }
  EXPECT_EQ(killed_.size(), 16U);
  std::printf("invariants %zu/16 killed\n", killed_.size());
}

}  // namespace
}  // namespace weir
