// Equal pages become one frame, and everybody still reads what he wrote.
#include "mm/ksm.hpp"

#include <map>
#include <random>
#include <set>

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

constexpr Bytes SWAP = Bytes(uint64_t{8} << 20);

void scan(Vm& vm, unsigned cycles) {
  Ksm& ksm = vm.machine->ksm;
  const uint64_t until = ksm.stats().full_scans + cycles;
  for (int batch = 0; ksm.stats().full_scans < until; ++batch) {
    ASSERT_LT(batch, 1000) << "nothing is mergeable";
    ksm.ksm_do_scan(100);
  }
}

void mergeable(Vm& vm, Task& task, VirtAddr at, uint64_t pages, Advice advice = Advice::mergeable) {
  ASSERT_TRUE(vm.machine->spaces.madvise(*task.mm, at, pages << PAGE_SHIFT, advice).ok());
}

std::set<uint64_t> frames(Vm& vm, Task& task, VirtAddr at, uint64_t pages) {
  std::set<uint64_t> found;
  for (uint64_t i = 0; i < pages; ++i) found.insert(pte_pfn(vm.pte(task, Vm::page_at(at, i))).v);
  return found;
}

class KsmOf : public testing::TestWithParam<KernelEra> {};
INSTANTIATE_TEST_SUITE_P(Kernels, KsmOf, testing::Values(KernelEra::linux_3, KernelEra::linux_4_14),
                         [](const testing::TestParamInfo<KernelEra>& info) {
                           return info.param == KernelEra::linux_3 ? "Linux_3_x" : "Linux_4_14";
                         });

TEST_P(KsmOf, EqualPagesBecomeOneFrameAndAWriteTakesOneOut) {
  run_vm({.kernel = GetParam()}, [](Vm& vm) {
    constexpr uint64_t N = 20;
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, N);
    for (uint64_t i = 0; i < N; ++i) vm.write(task, Vm::page_at(at, i), 7);
    const VirtAddr unasked = vm.map(task, 1, VM_READ | VM_WRITE, VirtAddr(uint64_t{1} << 33));
    vm.write(task, unasked, 7);
    mergeable(vm, task, at, N);
    const int64_t anon = vm.gauge(NodeStat::nr_anon_pages);
    scan(vm, 3);
    Ksm::Stats stats = vm.machine->ksm.stats();
    EXPECT_EQ(stats.pages_shared, 1);
    EXPECT_EQ(stats.pages_sharing, static_cast<int64_t>(N) - 1);
    EXPECT_EQ(vm.gauge(NodeStat::nr_anon_pages), anon - static_cast<int64_t>(N) + 1);
    EXPECT_EQ(frames(vm, task, at, N).size(), 1u);
    EXPECT_EQ(page_mapcount(vm.page(task, at)), static_cast<int32_t>(N));
    EXPECT_EQ(task.mm->rss(RssKind::anon), static_cast<int64_t>(N) + 1);
    EXPECT_EQ(vm.faults(), "");

    vm.write(task, Vm::page_at(at, 3), 8);
    EXPECT_EQ(frames(vm, task, at, N).size(), 2u);
    for (uint64_t i = 0; i < N; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i == 3 ? 8u : 7u);
    scan(vm, 2);
    stats = vm.machine->ksm.stats();
    EXPECT_EQ(stats.pages_shared, 1);
    EXPECT_EQ(stats.pages_sharing, static_cast<int64_t>(N) - 2);
    EXPECT_EQ(stats.pages_unshared, 1);
  });
}

// The node of a merged page is the first of its cache: it takes a page from the allocator.
TEST_P(KsmOf, WithoutMemoryForANodePagesStayAsTheyWere) {
  run_vm({.kernel = GetParam(), .swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 2);
    for (uint64_t i = 0; i < 2; ++i) vm.write(task, Vm::page_at(at, i), 7);
    mergeable(vm, task, at, 2);
    scan(vm, 1);
    vm.machine->pages.fail_page_alloc(0);
    scan(vm, 1);
    EXPECT_LT(vm.machine->pages.fail_page_alloc(-1), 0) << "nothing was refused";
    EXPECT_EQ(vm.machine->ksm.stats().pages_shared, 0);
    for (uint64_t i = 0; i < 2; ++i) EXPECT_FALSE(PageKsm(vm.page(task, Vm::page_at(at, i))));
    EXPECT_EQ(vm.faults(), "");
    scan(vm, 2);
    EXPECT_EQ(vm.machine->ksm.stats().pages_shared, 1);
    for (uint64_t i = 0; i < 2; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), 7u);
  });
}

TEST_P(KsmOf, AMergedPageOfManyTasksGoesToOneSlotAndComesBackRight) {
  run_vm({.kernel = GetParam(), .swap = SWAP}, [](Vm& vm) {
    std::vector<std::pair<Task*, VirtAddr>> places;
    for (uint64_t i = 0; i < 5; ++i) {
      Task& task = vm.task();
      const VirtAddr at = vm.map(task, 2, VM_READ | VM_WRITE, VirtAddr((i + 1) << 32));
      vm.write(task, at, 42);
      mergeable(vm, task, at, 2);
      places.emplace_back(&task, at);
    }
    scan(vm, 3);
    Page& page = vm.page(*places[0].first, places[0].second);
    ASSERT_EQ(page_mapcount(page), 5);
    ASSERT_TRUE(PageKsm(page));
    ASSERT_TRUE(vm.reclaim(page));
    const SwpEntry entry = decode_swap_pte(vm.pte(*places[0].first, places[0].second));
    for (auto [task, at] : places) EXPECT_EQ(decode_swap_pte(vm.pte(*task, at)), entry);
    EXPECT_EQ(vm.machine->swap_files.swp_swapcount(entry), 5);
    const uint64_t read = vm.event(VmEvent::pswpin);
    for (auto [task, at] : places) EXPECT_EQ(vm.read(*task, at), 42u);
    EXPECT_EQ(vm.event(VmEvent::pswpin), read + 1);
    // Each but the first, whose page it became, has a copy.
    std::set<uint64_t> own;
    for (auto [task, at] : places) own.insert(pte_pfn(vm.pte(*task, at)).v);
    EXPECT_EQ(own.size(), places.size());
    EXPECT_EQ(vm.faults(), "");
    scan(vm, 3);
    EXPECT_EQ(page_mapcount(vm.page(*places[0].first, places[0].second)), 5);
  });
}

TEST_P(KsmOf, ForksAreFoundThroughTheirParents) {
  run_vm({.kernel = GetParam(), .swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 4);
    for (uint64_t i = 0; i < 4; ++i) vm.write(task, Vm::page_at(at, i), 7);
    mergeable(vm, task, at, 4);
    scan(vm, 3);
    Task& child = vm.fork(task);
    Page& page = vm.page(task, at);
    EXPECT_EQ(page_mapcount(page), 8);
    ASSERT_TRUE(vm.reclaim(page));
    for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(vm.read(child, Vm::page_at(at, i)), 7u);
    vm.exit(task);
    for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(vm.read(child, Vm::page_at(at, i)), 7u);
    scan(vm, 3);
    EXPECT_EQ(frames(vm, child, at, 4).size(), 1u);
  });
}

TEST_P(KsmOf, UnmergingGivesEverybodyAPageOfHisOwn) {
  run_vm({.kernel = GetParam()}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 8);
    for (uint64_t i = 0; i < 8; ++i) vm.write(task, Vm::page_at(at, i), 7);
    mergeable(vm, task, at, 8);
    scan(vm, 3);
    ASSERT_TRUE(vm.machine->spaces.mprotect(*task.mm, at, PAGE_SIZE, 0).ok());  // no access at all
    mergeable(vm, task, at, 4, Advice::unmergeable);
    EXPECT_EQ(frames(vm, task, at, 4).size(), 4u);
    EXPECT_EQ(frames(vm, task, at, 8).size(), 5u);
    ASSERT_TRUE(vm.machine->ksm.set_run(Ksm::Run::unmerge, nullptr).ok());
    EXPECT_EQ(frames(vm, task, at, 8).size(), 8u);
    const Ksm::Stats stats = vm.machine->ksm.stats();
    EXPECT_EQ(stats.pages_shared, 0);
    EXPECT_EQ(stats.pages_sharing, 0);
    ASSERT_TRUE(vm.machine->spaces.mprotect(*task.mm, at, PAGE_SIZE, VM_READ).ok());
    for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), 7u);
  });
}

TEST_P(KsmOf, KsmdMergesInTheBackground) {
  run_vm({.kernel = GetParam()}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 50);
    for (uint64_t i = 0; i < 50; ++i) vm.write(task, Vm::page_at(at, i), i % 2 + 1);
    mergeable(vm, task, at, 50);
    EXPECT_EQ(frames(vm, task, at, 50).size(), 50u);  // off by default
    Ksm& ksm = vm.machine->ksm;
    ASSERT_TRUE(ksm.set_run(Ksm::Run::merge, &vm.world).ok());
    while (ksm.stats().full_scans < 4) vm.world.schedule_timeout(Nanos(20000000));
    ASSERT_TRUE(ksm.set_run(Ksm::Run::stop, nullptr).ok());
    EXPECT_EQ(frames(vm, task, at, 50).size(), 2u);
    EXPECT_EQ(ksm.stats().pages_shared, 2);
    EXPECT_EQ(ksm.stats().pages_sharing, 48);
  });
}

TEST(Ksm, IsRefusedWhereItCannotBe) {
  run_vm({.kernel = KernelEra::linux_2_6_20},
         [](Vm& vm) { EXPECT_EQ(vm.machine->ksm.set_run(Ksm::Run::merge, nullptr).error(), Errno::nosys); });
  run_vm({.model = SoftMmu::Model::uffd}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    EXPECT_EQ(vm.machine->spaces.madvise(*task.mm, at, PAGE_SIZE, Advice::mergeable).error(), Errno::inval);
    EXPECT_EQ(vm.machine->ksm.set_run(Ksm::Run::merge, nullptr).error(), Errno::nosys);
  });
}

TEST_P(KsmOf, WhateverHappensEverybodyReadsWhatHeWrote) {
  const uint64_t seeds = std::getenv("WEIR_LONG") != nullptr ? 300 : 20;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm({.kernel = GetParam(), .swap = SWAP}, [seed](Vm& vm) {
      std::mt19937_64 random(seed);
      constexpr uint64_t N = 24;
      const VirtAddr base{uint64_t{1} << 32};
      using Contents = std::map<uint64_t, uint64_t>;  // page -> word; unmapped: absent
      std::vector<std::pair<Task*, Contents>> tasks;
      const auto start_task = [&] {
        Task& task = vm.task();
        vm.map(task, N, VM_READ | VM_WRITE, base);
        mergeable(vm, task, base, N);
        Contents contents;
        for (uint64_t i = 0; i < N; ++i) contents[i] = 0;
        tasks.emplace_back(&task, contents);
      };
      start_task();
      start_task();
      AddressSpaces& spaces = vm.machine->spaces;
      for (int step = 0; step < 400 && !testing::Test::HasFailure(); ++step) {
        auto& [task, contents] = tasks[random() % tasks.size()];
        const uint64_t i = random() % N;
        const uint64_t n = 1 + random() % std::min<uint64_t>(6, N - i);
        const VirtAddr at = Vm::page_at(base, i);
        switch (random() % 16) {
          case 0:
            if (tasks.size() < 5) {
              Task& child = vm.fork(*task);
              Contents copy = contents;
              tasks.emplace_back(&child, copy);
            }
            break;
          case 1:
            if (tasks.size() > 1) {
              vm.exit(*task);
              tasks.erase(std::find_if(tasks.begin(), tasks.end(), [t = task](const auto& x) { return x.first == t; }));
            }
            break;
          case 2:
            ASSERT_TRUE(spaces.munmap(*task->mm, at, n << PAGE_SHIFT).ok());
            for (uint64_t k = i; k < i + n; ++k) contents.erase(k);
            break;
          case 3:
            vm.map(*task, n, VM_READ | VM_WRITE, at);
            mergeable(vm, *task, at, n);
            for (uint64_t k = i; k < i + n; ++k) contents[k] = 0;
            break;
          case 4: {
            const uint64_t to = random() % N;
            if (to + n > N || (to < i + n && i < to + n)) break;
            if (!spaces.mremap(*task->mm, at, n << PAGE_SHIFT, n << PAGE_SHIFT, AddressSpaces::MayMove::yes,
                               Vm::page_at(base, to)))
              break;
            for (uint64_t k = 0; k < n; ++k) {
              contents[to + k] = contents[i + k];
              contents.erase(i + k);
            }
            break;
          }
          case 5: (void)spaces.madvise(*task->mm, at, n << PAGE_SHIFT, Advice::unmergeable); break;
          case 6:
          case 7: (void)spaces.madvise(*task->mm, at, n << PAGE_SHIFT, Advice::mergeable); break;
          case 8:
          case 9:
            if (const Pte pte = vm.pte(*task, at); pte_present(pte) && !pte_special(pte)) (void)vm.swap_out(*task, at);
            break;
          case 10:
          case 11: scan(vm, 1); break;
          default:
            if (contents.contains(i)) {
              const uint64_t word = random() % 3;
              vm.write(*task, at, word);
              contents[i] = word;
            }
        }
        if (step % 16 == 0) {
          ASSERT_EQ(vm.faults(), "") << "step " << step;
          for (auto& [t, c] : tasks)
            for (auto& [k, word] : c) ASSERT_EQ(vm.read(*t, Vm::page_at(base, k)), word) << "step " << step;
        }
      }
      ASSERT_TRUE(vm.machine->ksm.set_run(Ksm::Run::unmerge, nullptr).ok());
      for (auto& [t, c] : tasks)
        for (auto& [k, word] : c) ASSERT_EQ(vm.read(*t, Vm::page_at(base, k)), word);
    });
    if (testing::Test::HasFailure()) return;
  }
}

TEST_P(KsmOf, KsmdWorksWhileOthersWriteForkAndReclaim) {
  for (uint64_t seed = 1; seed <= 15; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm({.kernel = GetParam(), .swap = SWAP, .cpus = 2, .seed = seed, .preempt_one_in = 6}, [seed](Vm& vm) {
      Task& task = vm.task();
      constexpr uint64_t N = 12;
      const VirtAddr at = vm.map(task, N);
      for (uint64_t i = 0; i < N; ++i) vm.write(task, Vm::page_at(at, i), 1);
      mergeable(vm, task, at, N);
      bool over = false;
      vm.spawn([&] {
        while (!over) {
          vm.machine->ksm.ksm_do_scan(20);
          vm.world.schedule_timeout(Nanos(1000));
        }
      });
      vm.spawn([&] {
        std::mt19937_64 random(seed);
        std::vector<uint64_t> words(N, 1);
        for (int step = 0; step < 120; ++step) {
          const uint64_t i = random() % N;
          switch (random() % 5) {
            case 0:
            case 1:
              words[i] = random() % 2;
              vm.write(task, Vm::page_at(at, i), words[i]);
              break;
            case 2:
              if (random() % 4 == 0) {
                Task& child = vm.fork(task);
                for (uint64_t k = 0; k < N; ++k) EXPECT_EQ(vm.read(child, Vm::page_at(at, k)), words[k]);
                vm.write(child, at, 9);
                vm.exit(child);
              }
              break;
            case 3:
              if (const Pte pte = vm.pte(task, Vm::page_at(at, i)); pte_present(pte) && !pte_special(pte)) {
                Page& page = vm.page(task, Vm::page_at(at, i));
                if (PageAllocator::get_page_unless_zero(page)) {
                  if (PageAnon(page) && page_mapped(page)) (void)vm.reclaim(page);
                  vm.machine->lru.put_page(page);
                }
              }
              break;
            default: EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), words[i]);
          }
        }
        over = true;
      });
      vm.join();
    });
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace weir::test
