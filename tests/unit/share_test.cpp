// Shares of a run's RAM: the rules alone, and many processes that follow them.
#include "live/share.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace weir::live {
namespace {

constexpr int64_t TOTAL = 16384;

TEST(Share, AForkIsPaidForByWhatIsLeftThenByTheParentsFreeFrames) {
  // Half of 10000 in use: the child needs 5000 and a reserve.
  const ForkShares left = fork_shares(6000, 10000, 5000);
  EXPECT_EQ(left.child, 5000 + RESERVE_FRAMES);
  EXPECT_EQ(left.from_left, left.child);
  EXPECT_EQ(left.from_parent + left.debt, 0);

  const ForkShares both = fork_shares(1000, 10000, 5000);
  EXPECT_EQ(both.from_left, 1000);
  EXPECT_EQ(both.from_parent, both.child - 1000);
  EXPECT_EQ(both.debt, 0);

  const ForkShares full = fork_shares(0, 10000, 0);
  EXPECT_EQ(full.child, 10000);
  EXPECT_EQ(full.debt, 10000) << "all of it is in use, and shared until one of them writes";
  EXPECT_EQ(fork_shares(-500, 10000, 0).debt, 10000) << "a debt is nothing to take from";
}

TEST(Share, ADebtIsRepaidByWhatIsFreeAtOnceAndByTheRestAfterTheGrace) {
  ShareView v{.total = TOTAL, .left = -4000, .mine = 10000, .free = 2000, .fixed = 1000, .living = 2, .grace = true};
  const int64_t idle = share_idle(v, Need::more);
  EXPECT_GT(idle, 0);
  EXPECT_EQ(next_share(v).goal, 10000 - idle);
  v.grace = false;
  EXPECT_EQ(next_share(v).goal, TOTAL / 2) << "down to an equal share, which pays for the most of it";
  v.left = -100;
  EXPECT_EQ(next_share(v).goal, 9900) << "no more than the debt";
}

TEST(Share, NobodyGivesWhatCannotLeave) {
  for (const Need need : {Need::none, Need::more, Need::dying})
    for (const bool rests : {false, true})
      for (const int64_t left : {int64_t{0}, int64_t{-9000}}) {
        const ShareView v{.total = TOTAL,
                          .left = left,
                          .mine = 9000,
                          .free = 300,
                          .fixed = 7000,
                          .pool = 6000,
                          .living = 4,
                          .others = need,
                          .rests = rests};
        EXPECT_GE(next_share(v).goal, std::min<int64_t>(9000, 7000 + RESERVE_FRAMES + 6000 / 8));
      }
}

TEST(Share, OneThatWouldBeKilledGetsMoreThanOneThatSwaps) {
  const ShareView busy{
      .total = TOTAL, .mine = TOTAL / 2, .free = 100, .fixed = 1000, .living = 2, .others = Need::more};
  EXPECT_EQ(next_share(busy).goal, busy.mine) << "it holds an equal share and works with it";
  ShareView asked = busy;
  asked.others = Need::dying;
  EXPECT_LT(next_share(asked).goal, busy.mine);
  asked.own = Need::dying;
  EXPECT_EQ(next_share(asked).goal, busy.mine) << "two that would be killed have nothing for each other";
  ShareView resting = busy;
  resting.rests = true;
  EXPECT_LT(next_share(resting).goal, busy.mine);
}

TEST(Share, OneThatSwapsAsksForMoreAndTwoDoNotTakeFromEachOther) {
  ShareView v{.total = TOTAL, .mine = 4000, .free = 10, .fixed = 500, .living = 2, .swaps = true};
  EXPECT_EQ(next_share(v).need, Need::more);
  EXPECT_EQ(next_share(v).goal, 6000);
  v.mine = TOTAL;
  EXPECT_EQ(next_share(v).goal, TOTAL);
  v.mine = TOTAL / 2 + 1;
  v.others = Need::more;
  EXPECT_LE(next_share(v).goal, v.mine);
}

/// A process of the simulation: what it uses is what its tables, its pool and its pages take.
struct Process {
  int64_t share = 0, used = 0, fixed = 0;
  Need need = Need::none;
};

struct Tree {
  int64_t left = TOTAL;
  std::vector<Process> all;
  [[nodiscard]] int64_t sum() const {
    int64_t n = left;
    for (const Process& p : all) n += p.share;
    return n;
  }
  /// One look of one process; `wants`: pages that it works on.
  void tick(Process& p, int64_t wants, bool rests) {
    ShareView v{.total = TOTAL,
                .left = left,
                .mine = p.share,
                .free = p.share - p.used,
                .fixed = p.fixed,
                .living = static_cast<int64_t>(all.size()),
                .own = p.need,
                .swaps = !rests && wants > p.used,
                .rests = rests};
    for (const Process& o : all)
      if (&o != &p) v.others = std::max(v.others, o.need);
    const ShareMove move = next_share(v);
    ASSERT_GE(move.goal, std::min(p.share, p.fixed)) << "what cannot leave is given away";
    p.need = move.need;
    if (move.goal < p.share) {
      left += p.share - move.goal;
      p.share = move.goal;
      p.used = std::min(p.used, p.share);
    } else {
      const int64_t got = std::clamp<int64_t>(left, 0, move.goal - p.share);
      left -= got;
      p.share += got;
    }
    if (!rests) p.used = std::clamp(wants, p.fixed, p.share);
  }
};

TEST(Share, ProcessesThatForkWorkAndEndKeepTheSumAndPayTheirDebts) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    Tree tree;
    tree.all.push_back({.share = TOTAL, .used = 600, .fixed = 500});
    tree.left = 0;
    for (int step = 0; step < 400; ++step) {
      const auto i = static_cast<size_t>(below(static_cast<int64_t>(tree.all.size())));
      const int64_t what = below(20);
      if (what == 0 && tree.all.size() < 6) {
        Process& parent = tree.all[i];
        const ForkShares f = fork_shares(tree.left, parent.share, parent.share - parent.used);
        parent.share -= f.from_parent;
        tree.left -= f.from_left + f.debt;
        const Process child{.share = f.child, .used = parent.used, .fixed = parent.fixed};
        tree.all.push_back(child);
      } else if (what == 1 && tree.all.size() > 1) {
        tree.left += tree.all[i].share;
        tree.all.erase(tree.all.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        tree.tick(tree.all[i], 500 + below(TOTAL), below(3) == 0);
      }
      ASSERT_EQ(tree.sum(), TOTAL);
    }
    // All look a few times, and all that is owed is paid.
    for (int round = 0; round < 100; ++round)
      for (Process& p : tree.all) tree.tick(p, p.used, false);
    EXPECT_GE(tree.left, 0);
    EXPECT_EQ(tree.sum(), TOTAL);
  }
}

}  // namespace
}  // namespace weir::live
