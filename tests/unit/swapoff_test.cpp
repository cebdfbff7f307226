// swapoff: what was swapped out comes back (mm/swapfile_unuse.cpp, try_to_unuse).
#include <gtest/gtest.h>

#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

using Threads = weir::MachineOptions::Threads;

struct Off {
  ReclaimWorld w;
  TestDevice& d;
  explicit Off(ReclaimWorld::Options options = {.threads = Threads::none}, VirtualWorld::Options world = {},
               TestDevice::Options device = {.pages = 4096})
      : w(options, std::move(world)), d(w.add_area(device)) {}
  int64_t used() { return w.m().swap_files.total_swap_pages() - w.m().swap_files.nr_swap_pages(); }
  Errno off(unsigned type = 0) { return w.m().swapon.swapoff(type).error(); }
  /// `pages` of t from `base` on, out to the area.
  void push_out(Task& t, VirtAddr base, uint64_t pages) {
    w.make_old(t, base, pages);
    w.reclaim(static_cast<int64_t>(pages));
    w.make_old(t, base, pages);
    w.reclaim(static_cast<int64_t>(pages));
  }
};

TEST(Swapoff, EverythingIsReadableAfterwardsWithoutASingleRead) {
  Off o;
  o.w.run([&] {
    Task& t = o.w.task("a");
    const VirtAddr base = o.w.map(t, 500);
    o.w.fill(t, base, 500, 7);
    o.push_out(t, base, 500);
    EXPECT_GT(o.used(), 300);
    EXPECT_EQ(o.off(), Errno::ok);
    EXPECT_EQ(o.w.m().swap_files.swap_info(0), nullptr);
    EXPECT_EQ(o.w.m().swap_files.total_swap_pages(), 0);
    EXPECT_EQ(t.mm->rss(RssKind::swapents), 0);
    EXPECT_EQ(t.mm->rss(RssKind::anon), 500);
    EXPECT_EQ(o.w.gauge(NodeStat::nr_swapcached), 0);
    EXPECT_EQ(o.w.broken(), "");
    const size_t reads = o.d.read.size();
    const uint64_t major = o.w.event(VmEvent::pgmajfault);
    o.w.expect(t, base, 500, 7);
    EXPECT_EQ(o.d.read.size(), reads);
    EXPECT_EQ(o.w.event(VmEvent::pgmajfault), major);
  });
}

TEST(Swapoff, AFamilySharesItsPagesAgain) {
  Off o;
  o.w.run([&] {
    Task& parent = o.w.task("parent");
    const VirtAddr base = o.w.map(parent, 100);
    o.w.fill(parent, base, 100, 1);
    o.push_out(parent, base, 100);
    // More of them than a slot's byte can count.
    std::vector<Task*> children;
    for (int i = 0; i < 80; ++i) children.push_back(&o.w.fork(parent));
    const Pte pte = o.w.pte(parent, base);
    ASSERT_TRUE(is_swap_pte(pte));
    EXPECT_EQ(o.w.m().swap_files.swp_swapcount(decode_swap_pte(pte)), 81u);
    EXPECT_EQ(o.w.broken(), "");
    EXPECT_EQ(o.off(), Errno::ok);
    Page* page = o.w.page_at(parent, base);
    ASSERT_NE(page, nullptr);
    EXPECT_EQ(page_mapcount(*page), 81);
    for (Task* child : children) EXPECT_EQ(o.w.page_at(*child, base), page);
    EXPECT_EQ(o.w.broken(), "");
    o.w.put(*children[5], base, 99);
    EXPECT_EQ(o.w.get(parent, base), 1u);
    EXPECT_EQ(o.w.get(*children[6], base), 1u);
    EXPECT_EQ(o.w.get(*children[5], base), 99u);
  });
}

TEST(Swapoff, WithoutRoomForWhatIsThereItIsRefusedAndChangesNothing) {
  Off o({.ram = Bytes(uint64_t{8} << 20), .threads = Threads::none}, {}, {.pages = 8192});
  o.w.run([&] {
    Task& t = o.w.task("a");
    const VirtAddr base = o.w.map(t, 4000);
    o.w.fill(t, base, 4000, 7);
    const int64_t used = o.used();
    EXPECT_GT(used, 2000);
    EXPECT_EQ(o.off(), Errno::nomem);
    EXPECT_EQ(o.used(), used);
    EXPECT_EQ(o.w.m().swap_files.swap_info(0)->prio, -2);
    EXPECT_EQ(o.w.broken(), "");
    o.w.expect(t, base, 4000, 7);
  });
}

TEST(Swapoff, ToAnotherAreaWhenMemoryIsShort) {
  Off o({.ram = Bytes(uint64_t{8} << 20), .threads = Threads::none}, {}, {.pages = 4096});
  TestDevice& other = o.w.add_area({.name = "other", .pages = 8192}, 0);
  o.w.run([&] {
    EXPECT_EQ(o.off(1), Errno::ok);  // so that all goes to the first
    Task& t = o.w.task("a");
    const VirtAddr base = o.w.map(t, 3500);
    o.w.fill(t, base, 3500, 7);
    EXPECT_GT(o.used(), 1500);
    ASSERT_TRUE(o.w.m().swapon.swapon(other, 0).ok());
    EXPECT_EQ(o.off(0), Errno::ok);
    EXPECT_FALSE(other.written.empty());
    EXPECT_EQ(o.w.broken(), "");
    o.w.expect(t, base, 3500, 7);
  });
}

TEST(Swapoff, WhoeverIsKilledMeanwhileLeavesTheAreaInUse) {
  Off o({.threads = Threads::none}, {}, {.pages = 4096, .synchronous = false, .latency = 200_us});
  Task* off = nullptr;
  Task* t = nullptr;
  VirtAddr base;
  o.w.run([&] {
    t = &o.w.task("a");
    off = &o.w.task("swapoff");
    base = o.w.map(*t, 500);
    o.w.fill(*t, base, 500, 7);
    o.push_out(*t, base, 500);
  });
  Errno result = Errno::ok;
  o.w.spawn(*off, [&] { result = o.off(); });
  o.w.spawn(*t, [&] {
    world().schedule_timeout(5_ms);
    EXPECT_TRUE(off->oom_origin.load());
    o.w.m().task_kill(*off);
  });
  o.w.run();
  EXPECT_EQ(result, Errno::intr);
  EXPECT_FALSE(off->oom_origin.load());
  o.w.run([&] {
    EXPECT_EQ(o.w.broken(), "");
    EXPECT_GT(o.used(), 0);
    EXPECT_LT(o.used(), 400);
    EXPECT_EQ(o.w.m().swap_files.swap_info(0)->prio, -2);
    o.w.expect(*t, base, 500, 7);
    o.push_out(*t, base, 500);
    EXPECT_GT(o.used(), 300) << "it takes pages again";
    EXPECT_EQ(o.off(), Errno::ok);
    o.w.expect(*t, base, 500, 7);
  });
}

TEST(Swapoff, ASlotThatCannotBeReadKeepsTheAreaAndIsReported) {
  Off o;
  o.w.run([&] {
    Task& t = o.w.task("a");
    const VirtAddr base = o.w.map(t, 200);
    o.w.fill(t, base, 200, 7);
    o.push_out(t, base, 200);
    const Pte pte = o.w.pte(t, ReclaimWorld::at(base, 50));
    ASSERT_TRUE(is_swap_pte(pte));
    const uint64_t lost = swp_offset(decode_swap_pte(pte));
    o.d.bad.insert(lost);
    EXPECT_EQ(o.off(), Errno::io);
    EXPECT_EQ(o.w.m().swap_files.swap_info(0)->read_errors.load(), 1u);
    EXPECT_EQ(o.w.broken(), "");
    for (uint64_t i = 0; i < 200; ++i) {
      if (i == 50) continue;
      ASSERT_EQ(o.w.get(t, ReclaimWorld::at(base, i)), 7 + i);
    }
    // Whoever gives up the page gives up the slot; then the area can go.
    ASSERT_TRUE(o.w.m().spaces.munmap(*t.mm, base, 200 * PAGE_SIZE).ok());
    EXPECT_EQ(o.off(), Errno::ok);
  });
  EXPECT_NE(std::find_if(o.w.log.begin(), o.w.log.end(),
                         [](const std::string& line) { return line.find("Read-error on swap-device") == 0; }),
            o.w.log.end());
}

// Tasks fault, write, fork and exit while the area goes; whatever the interleaving, nothing is lost.
TEST(Swapoff, UnderLoad) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Off o({.ram = Bytes(uint64_t{16} << 20), .cpus = 4, .threads = Threads::none},
          {.seed = seed, .cpus = 4, .preempt_one_in = 16},
          {.pages = 4096, .synchronous = seed % 2 == 0, .latency = seed % 2 == 0 ? Nanos(0) : 50_us});
    constexpr uint64_t PAGES = 120;
    std::vector<Task*> tasks;
    std::vector<VirtAddr> base(4);
    o.w.run([&] {
      for (int i = 0; i < 4; ++i) {
        tasks.push_back(&o.w.task("worker"));
        base[static_cast<size_t>(i)] = o.w.map(*tasks.back(), PAGES);
        o.w.fill(*tasks.back(), base[static_cast<size_t>(i)], PAGES, static_cast<uint64_t>(i) * 1000);
      }
      for (size_t i = 0; i < 4; ++i) o.push_out(*tasks[i], base[i], PAGES);
      EXPECT_GT(o.used(), 200);
    });
    Errno result = Errno::inval;
    for (size_t i = 0; i < 4; ++i) {
      o.w.spawn(*tasks[i], [&, i] {
        uint64_t random = seed * 77 + i;
        for (int step = 0; step < 60; ++step) {
          random = random * 6364136223846793005ull + 1442695040888963407ull;
          const uint64_t page = (random >> 33) % PAGES;
          const VirtAddr at = ReclaimWorld::at(base[i], page);
          if (step % 20 == 7) {
            Task& child = o.w.fork(*tasks[i]);
            EXPECT_EQ(o.w.get(child, at) % 1000, page);
            o.w.exit(child);
          } else if (step % 3 == 0) {
            o.w.put(*tasks[i], at, i * 1000 + page);
          } else {
            EXPECT_EQ(o.w.get(*tasks[i], at), i * 1000 + page);
          }
          world().spend(3_us);
        }
      });
    }
    o.w.world.spawn("swapoff", [&] { result = o.off(); });
    o.w.run();
    EXPECT_EQ(result, Errno::ok);
    o.w.run([&] {
      EXPECT_EQ(o.w.m().swap_files.swap_info(0), nullptr);
      EXPECT_EQ(o.w.broken(), "");
      for (size_t i = 0; i < 4; ++i) o.w.expect(*tasks[i], base[i], PAGES, i * 1000);
    });
  }
}

// Each allocation on the way fails once, until none does: the area is in use as before, or gone.
TEST(Swapoff, WithoutMemoryOnTheWayItGivesUpOrSucceedsAndLosesNothing) {
  Off o;
  o.w.run([&] {
    Task& t = o.w.task("a");
    const VirtAddr base = o.w.map(t, 60);
    o.w.fill(t, base, 60, 3);
    o.push_out(t, base, 60);
    std::vector<Page*> all;
    while (Page* page = o.w.m().pages.alloc_page(GFP_ATOMIC | __GFP_NOWARN | __GFP_NORETRY)) all.push_back(page);
    // None is left: reading back fails, and one by one frames come free.
    size_t tries = 0;
    for (Errno e = o.off(); e != Errno::ok; e = o.off()) {
      ASSERT_EQ(e, Errno::nomem);
      ASSERT_EQ(o.w.broken().find("swap"), std::string::npos) << o.w.broken();
      ASSERT_LT(++tries, 400u);
      for (int i = 0; i < 4 && !all.empty(); ++i) {
        o.w.m().pages.__free_pages(*all.back(), Order(0));
        all.pop_back();
      }
    }
    EXPECT_GT(tries, 0u);
    for (Page* page : all) o.w.m().pages.__free_pages(*page, Order(0));
    o.w.expect(t, base, 60, 3);
  });
}

}  // namespace
}  // namespace weir::test
