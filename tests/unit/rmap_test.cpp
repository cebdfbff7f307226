// From a page to its PTEs: against a scan of all page tables, through fork, split, merge, move and exit.
#include "mm/rmap.hpp"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

constexpr Bytes SWAP = Bytes(uint64_t{8} << 20);
constexpr VirtAddr BASE{uint64_t{1} << 32};

using Place = std::pair<uint64_t, uint64_t>;  // mm id, address
using Places = std::multiset<Place>;

/// Every PTE that maps the page, found by the reverse map.
Places by_rmap(Vm& vm, Page& page) {
  Places places;
  vm.machine->rmap.for_each_mapping(
      page,
      [](VmArea& vma, VirtAddr address, void* arg) {
        static_cast<Places*>(arg)->emplace(vma.vm_mm->id, address.v);
        return true;
      },
      &places);
  return places;
}

/// The same by looking at every PTE of every task.
std::map<uint64_t, Places> by_scan(Vm& vm) {
  std::map<uint64_t, Places> found;
  std::vector<Mm*> spaces;
  vm.machine->tasks.for_each([&](Task& task) { spaces.push_back(task.mm); });
  for (Mm* mm : spaces)
    vm.machine->tables.for_each_pte(*mm, VirtAddr(0), USER_PGTABLES_CEILING, [&](VirtAddr address, Pte* pte) {
      if (pte_present(*pte) && !pte_special(*pte)) found[pte_pfn(*pte).v].emplace(mm->id, address.v);
    });
  return found;
}

void expect_rmap_is_the_scan(Vm& vm) {
  for (auto& [pfn, places] : by_scan(vm)) {
    Page& page = vm.machine->mem.page(Pfn(pfn));
    ASSERT_EQ(by_rmap(vm, page), places) << "pfn " << pfn;
    ASSERT_EQ(page_mapcount(page), static_cast<int32_t>(places.size()));
  }
}

/// The same behaviour under the rules of each kernel.
class RmapOf : public testing::TestWithParam<KernelEra> {};
INSTANTIATE_TEST_SUITE_P(Kernels, RmapOf,
                         testing::Values(KernelEra::linux_2_6_20, KernelEra::linux_3, KernelEra::linux_4_14),
                         [](const testing::TestParamInfo<KernelEra>& info) {
                           std::string name = profile_of(info.param).name;
                           std::replace(name.begin(), name.end(), '.', '_');
                           return "Linux_" + name;
                         });

TEST_P(RmapOf, FindsWhatAScanOfAllTablesFinds) {
  const uint64_t seeds = std::getenv("WEIR_LONG") != nullptr ? 200 : 15;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm({.kernel = GetParam(), .swap = SWAP, .disk = Bytes(uint64_t{4} << 20)}, [seed](Vm& vm) {
      std::mt19937_64 random(seed);
      const auto below = [&](uint64_t n) { return random() % n; };
      Result<Inode*> inode =
          vm.machine->files.create_inode("f", *vm.file_disk, 0, Bytes(64 * PAGE_SIZE), Bytes(64 * PAGE_SIZE));
      ASSERT_TRUE(inode.ok());
      Result<File*> file = vm.machine->files.open(**inode);
      ASSERT_TRUE(file.ok());
      AddressSpaces& spaces = vm.machine->spaces;
      std::vector<Task*> tasks{&vm.task()};
      constexpr uint64_t N = 64;
      for (int step = 0; step < 400 && !testing::Test::HasFailure(); ++step) {
        Task& task = *tasks[below(tasks.size())];
        const uint64_t at = below(N);
        const uint64_t n = 1 + below(N - at);
        const VirtAddr start = Vm::page_at(BASE, at);
        switch (below(14)) {
          case 0: vm.map(task, n, VM_READ | VM_WRITE, start); break;
          case 1:
            ASSERT_TRUE(spaces
                            .mmap(*task.mm, {.addr = start,
                                             .length = n << PAGE_SHIFT,
                                             .sharing = below(2) == 0 ? MmapRequest::Sharing::shared
                                                                      : MmapRequest::Sharing::private_,
                                             .place = MmapRequest::Place::fixed,
                                             .file = *file,
                                             .pgoff = below(64 - n + 1)})
                            .ok());
            break;
          case 2: ASSERT_TRUE(spaces.munmap(*task.mm, start, n << PAGE_SHIFT).ok()); break;
          case 3:
            (void)spaces.mprotect(*task.mm, start, n << PAGE_SHIFT, below(2) == 0 ? VM_READ : VM_READ | VM_WRITE);
            break;
          case 4: {
            const VirtAddr to = Vm::page_at(BASE, N + below(N));
            (void)spaces.mremap(*task.mm, start, n << PAGE_SHIFT, n << PAGE_SHIFT, AddressSpaces::MayMove::yes, to);
            break;
          }
          case 5:
            if (tasks.size() < 8) tasks.push_back(&vm.fork(task));
            break;
          case 6:
            if (tasks.size() > 1) {
              vm.exit(task);
              std::erase(tasks, &task);
            }
            break;
          case 7:
            if (const Pte pte = vm.pte(task, start);
                pte_present(pte) && !pte_special(pte) && PageAnon(vm.page(task, start)))
              EXPECT_TRUE(vm.swap_out(task, start));
            break;
          default:
            (void)vm.mmu->touch(task, Vm::page_at(BASE, below(2 * N)),
                                below(2) == 0 ? SoftMmu::Access::read : SoftMmu::Access::write);
        }
        if (step % 8 == 0) expect_rmap_is_the_scan(vm);
      }
      expect_rmap_is_the_scan(vm);
      EXPECT_EQ(vm.faults(), "");
      vm.exit_all();
      EXPECT_TRUE((*inode)->i_data.i_mmap.empty());
      vm.machine->files.close(**file);
      vm.machine->files.iput(**inode);
    });
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Rmap, APageHasNoAddressOutsideItsMapping) {
  VmArea vma;
  vma.vm_start = VirtAddr(0x100000);
  vma.vm_end = VirtAddr(0x104000);
  vma.vm_pgoff = 50;
  Page page;
  for (uint64_t index = 48; index < 58; ++index) {
    page.index = index;
    const VirtAddr expected =
        index >= 50 && index < 54 ? VirtAddr(0x100000 + (index - 50) * PAGE_SIZE) : VirtAddr(~uint64_t{0});
    EXPECT_EQ(Rmap::vma_address(page, vma), expected);
  }
}

TEST(Rmap, ForksWhoseParentsExitDoNotPileUpAnchors) {
  run_vm({}, [](Vm& vm) {
    Task* task = &vm.task();
    const VirtAddr at = vm.map(*task, 4);
    vm.write(*task, at, 1);
    for (int generation = 0; generation < 50; ++generation) {
      Task& child = vm.fork(*task);
      vm.write(child, Vm::page_at(at, 1), 2);
      vm.exit(*task);
      task = &child;
      unsigned chains = 0;
      VmArea* vma = vm.machine->vmas.vma_lookup(*task->mm, at);
      for (AnonVmaChain* c = vma->chains; c != nullptr; c = c->next_of_vma) ++chains;
      EXPECT_LE(chains, 3u) << generation;
    }
    EXPECT_EQ(vm.read(*task, at), 1u);
  });
}

// ---- document 001 ---------------------------------------------------------------------------------------------------

/// Three processes, one page, three addresses of it; it goes to one slot, and one of them comes back and writes.
TEST_P(RmapOf, SharingSurvivesSwapAsTheDocumentTellsIt) {
  run_vm({.kernel = GetParam(), .swap = SWAP}, [](Vm& vm) {
    AddressSpaces& spaces = vm.machine->spaces;
    Task& a = vm.task("A");
    const VirtAddr at_a = vm.map(a, 1, VM_READ | VM_WRITE, BASE + 0x4000);
    vm.write(a, at_a, 0x5a);
    Task& b = vm.fork(a);
    Task& c = vm.fork(b);
    const VirtAddr at_b = BASE + 0x9000, at_c = BASE + 0x7000;
    ASSERT_TRUE(spaces.mremap(*b.mm, at_a, PAGE_SIZE, PAGE_SIZE, AddressSpaces::MayMove::yes, at_b).ok());
    ASSERT_TRUE(spaces.mremap(*c.mm, at_a, PAGE_SIZE, PAGE_SIZE, AddressSpaces::MayMove::yes, at_c).ok());
    Page& p = vm.page(a, at_a);
    EXPECT_EQ(&vm.page(b, at_b), &p);
    EXPECT_EQ(&vm.page(c, at_c), &p);
    EXPECT_EQ(page_mapcount(p), 3);
    EXPECT_EQ(by_rmap(vm, p), (Places{{a.mm->id, at_a.v}, {b.mm->id, at_b.v}, {c.mm->id, at_c.v}}));

    // Out: one slot, one write, three PTEs that name it.
    const uint64_t written = vm.event(VmEvent::pswpout);
    ASSERT_TRUE(vm.swap_out(a, at_a));
    EXPECT_EQ(vm.event(VmEvent::pswpout), written + 1);
    const SwpEntry s42 = decode_swap_pte(vm.pte(a, at_a));
    EXPECT_EQ(vm.pte(b, at_b), vm.pte(a, at_a));
    EXPECT_EQ(vm.pte(c, at_c), vm.pte(a, at_a));
    EXPECT_EQ(vm.machine->swap_files.swp_swapcount(s42), 3);
    EXPECT_EQ(vm.faults(), "");

    // In 2.6.20 the cache counts as a user.
    const uint64_t cached = GetParam() == KernelEra::linux_2_6_20 ? 1 : 0;
    // B touches: one read; the others still wait on the slot.
    const uint64_t read = vm.event(VmEvent::pswpin);
    EXPECT_EQ(vm.read(b, at_b), 0x5au);
    EXPECT_EQ(vm.event(VmEvent::pswpin), read + 1);
    EXPECT_EQ(vm.machine->swap_files.swp_swapcount(s42), cached + 2);
    Page& p1 = vm.page(b, at_b);
    EXPECT_TRUE(PageSwapCache(p1));

    // B writes: a copy; P' stays in the swap cache for A and C.
    vm.write(b, at_b, 0xb);
    Page& p2 = vm.page(b, at_b);
    EXPECT_NE(&p2, &p1);
    EXPECT_EQ(page_mapcount(p1), 0);
    EXPECT_TRUE(PageSwapCache(p1));
    EXPECT_FALSE(PageSwapCache(p2));
    EXPECT_EQ(decode_swap_pte(vm.pte(a, at_a)), s42);
    EXPECT_EQ(decode_swap_pte(vm.pte(c, at_c)), s42);
    EXPECT_EQ(vm.machine->swap_files.swp_swapcount(s42), cached + 2);
    EXPECT_EQ(vm.faults(), "");

    // Who comes later reads the old bytes, without another read of the device.
    EXPECT_EQ(vm.read(a, at_a), 0x5au);
    EXPECT_EQ(vm.read(c, at_c), 0x5au);
    EXPECT_EQ(vm.read(b, at_b), 0xbu);
    EXPECT_EQ(vm.event(VmEvent::pswpin), read + 1);
  });
}

TEST_P(RmapOf, AFamilyOfAnyDepthSharesOneSlot) {
  run_vm({.kernel = GetParam(), .ram = Bytes(uint64_t{32} << 20), .swap = SWAP}, [](Vm& vm) {
    std::vector<Task*> line{&vm.task()};
    const VirtAddr at = vm.map(*line[0], 2);
    vm.write(*line[0], at, 7);
    for (int generation = 0; generation < 20; ++generation) {
      line.push_back(&vm.fork(*line.back()));
      vm.write(*line.back(), Vm::page_at(at, 1), 100 + line.size());  // a page of its own in each
    }
    Page& page = vm.page(*line[0], at);
    EXPECT_EQ(page_mapcount(page), 21);
    EXPECT_EQ(by_rmap(vm, page).size(), 21u);
    ASSERT_TRUE(vm.reclaim(page));
    const Pte entry = vm.pte(*line[0], at);
    for (Task* t : line) EXPECT_EQ(vm.pte(*t, at), entry);
    EXPECT_EQ(vm.machine->swap_files.swp_swapcount(decode_swap_pte(entry)), 21);
    // The middle of the line dies; the ends still share.
    for (size_t i = 5; i < 15; ++i) vm.exit(*line[i]);
    EXPECT_EQ(vm.machine->swap_files.swp_swapcount(decode_swap_pte(entry)), 11);
    const uint64_t read = vm.event(VmEvent::pswpin);
    EXPECT_EQ(vm.read(*line[20], at), 7u);
    EXPECT_EQ(vm.read(*line[0], at), 7u);
    EXPECT_EQ(&vm.page(*line[20], at), &vm.page(*line[0], at));
    EXPECT_EQ(vm.event(VmEvent::pswpin), read + 1);
    EXPECT_EQ(by_rmap(vm, vm.page(*line[0], at)).size(), 2u);
  });
}

TEST(RmapOf2_6_20, WhatWasUsedSinceTheLastLookIsNotUnmapped) {
  run_vm({.kernel = KernelEra::linux_2_6_20, .swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 1);
    Page& page = vm.page(task, at);
    vm.machine->filemap.lock_page(page);
    ASSERT_TRUE(vm.machine->swap_cache.add_to_swap(page));
    FlushBatch batch;
    EXPECT_EQ(vm.machine->rmap.try_to_unmap(page, batch), TryToUnmap::fail);
    EXPECT_TRUE(pte_present(vm.pte(task, at)));
    EXPECT_EQ(vm.machine->rmap.try_to_unmap(page, batch), TryToUnmap::success);
    vm.machine->mmu.flush_batch(batch);
    vm.machine->filemap.unlock_page(page);
  });
}

// ---- page_referenced ------------------------------------------------------------------------------------------------

int referenced(Vm& vm, Page& page, uint64_t* flags = nullptr) {
  uint64_t ignored = 0;
  FlushBatch batch;
  vm.machine->filemap.lock_page(page);
  const int n = vm.machine->rmap.page_referenced(page, flags != nullptr ? flags : &ignored, batch);
  vm.machine->filemap.unlock_page(page);
  EXPECT_EQ(batch.count, 0u);  // hardware has accessed bits: nothing to be aged
  return n;
}

TEST(PageReferenced, CountsMappingsUsedSinceTheLastLook) {
  run_vm({}, [](Vm& vm) {
    Task& a = vm.task();
    const VirtAddr at = vm.map(a, 1);
    vm.write(a, at, 1);
    Page& page = vm.page(a, at);
    EXPECT_EQ(referenced(vm, page), 1);
    EXPECT_EQ(referenced(vm, page), 0);
    Task& b = vm.fork(a);
    Task& c = vm.fork(a);
    EXPECT_EQ(referenced(vm, page), 0);  // a copied PTE is old
    vm.read(b, at);
    vm.read(c, at);
    EXPECT_EQ(referenced(vm, page), 2);
    vm.read(a, at);  // through a TLB entry made long ago
    EXPECT_EQ(referenced(vm, page), 1);
    EXPECT_EQ(referenced(vm, page), 0);
  });
}

TEST(PageReferenced, ALockedMappingEndsTheWalkAndAReaderInSequenceDoesNotCount) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 2);
    vm.write(task, at, 1);
    vm.write(task, Vm::page_at(at, 1), 1);
    ASSERT_TRUE(vm.machine->spaces.madvise(*task.mm, at, PAGE_SIZE, Advice::sequential).ok());
    EXPECT_EQ(referenced(vm, vm.page(task, at)), 0);
    EXPECT_FALSE(pte_young(vm.pte(task, at)));
    ASSERT_TRUE(vm.machine->spaces.mlock(task, Vm::page_at(at, 1), PAGE_SIZE).ok());
    uint64_t flags = 0;
    EXPECT_EQ(referenced(vm, vm.page(task, Vm::page_at(at, 1)), &flags), 0);
    EXPECT_NE(flags & VM_LOCKED, 0u);
  });
}

// ---- try_to_unmap ---------------------------------------------------------------------------------------------------

TEST(TryToUnmap, EveryPteOfASharedPageHoldsItsEntryAfterwards) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& parent = vm.task();
    const VirtAddr at = vm.map(parent, 1);
    vm.write(parent, at, 1);
    std::vector<Task*> tasks{&parent};
    for (int i = 0; i < 20; ++i) tasks.push_back(&vm.fork(parent));
    Page& page = vm.page(parent, at);
    EXPECT_EQ(page_mapcount(page), 21);
    vm.read(parent, at);
    vm.machine->lru.lru_add_drain_all();
    vm.machine->filemap.lock_page(page);
    ASSERT_TRUE(vm.machine->swap_cache.add_to_swap(page));
    const SwpEntry entry{page.private_};
    FlushBatch batch;
    EXPECT_EQ(vm.machine->rmap.try_to_unmap(page, batch), TryToUnmap::success);
    EXPECT_EQ(batch.count, 21u);
    for (unsigned i = 0; i < batch.count; ++i) EXPECT_EQ(batch.entries[i].page, &page);
    EXPECT_TRUE(vm.mmu->tlb_holds(*parent.mm, at));  // the flush is the caller's, and still to come
    vm.machine->mmu.flush_batch(batch);
    EXPECT_FALSE(vm.mmu->tlb_holds(*parent.mm, at));
    EXPECT_EQ(page_mapcount(page), 0);
    EXPECT_EQ(vm.machine->swap_files.swp_swapcount(entry), 21);
    for (Task* t : tasks) {
      EXPECT_EQ(decode_swap_pte(vm.pte(*t, at)), entry);
      EXPECT_EQ(t->mm->rss(RssKind::anon), 0);
      EXPECT_EQ(t->mm->rss(RssKind::swapents), 1);
      EXPECT_EQ(t->mm->hiwater_rss, 1);
      EXPECT_TRUE(t->mm->on_mmlist);
    }
    EXPECT_TRUE(page.test(PageFlag::dirty));
    vm.machine->filemap.unlock_page(page);
  });
}

TEST(TryToUnmap, MoreMappersThanABatchHoldsAreFlushedOnTheWay) {
  run_vm({.ram = Bytes(uint64_t{32} << 20), .disk = Bytes(uint64_t{1} << 20)}, [](Vm& vm) {
    Result<Inode*> inode = vm.machine->files.create_inode("f", *vm.file_disk, 0, Bytes(PAGE_SIZE), Bytes(PAGE_SIZE));
    Result<File*> file = vm.machine->files.open(**inode);
    Task& task = vm.task();
    std::vector<VirtAddr> places;
    for (uint64_t i = 0; i < FlushBatch::CAPACITY + 10; ++i) {
      places.push_back(vm.map_file(task, **file, 1, MmapRequest::Sharing::shared, VM_READ));
      vm.read(task, places.back());
    }
    Page& page = vm.page(task, places[0]);
    FlushBatch batch;
    vm.machine->filemap.lock_page(page);
    EXPECT_EQ(vm.machine->rmap.try_to_unmap(page, batch), TryToUnmap::success);
    EXPECT_EQ(batch.count, 10u);
    vm.machine->mmu.flush_batch(batch);
    vm.machine->filemap.unlock_page(page);
    EXPECT_EQ(task.mm->rss(RssKind::file), 0);
    for (VirtAddr at : places) EXPECT_FALSE(vm.mmu->tlb_holds(*task.mm, at));
    vm.exit_all();
    vm.machine->files.close(**file);
    vm.machine->files.iput(**inode);
  });
}

TEST(TryToUnmap, ALockedMapperKeepsThePageAndItsPte) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& a = vm.task();
    const VirtAddr at = vm.map(a, 1);
    vm.write(a, at, 1);
    Task& b = vm.fork(a);
    ASSERT_TRUE(vm.machine->spaces.mprotect(*b.mm, at, PAGE_SIZE, VM_READ).ok());
    ASSERT_TRUE(vm.machine->spaces.mlock(b, at, PAGE_SIZE).ok());
    EXPECT_FALSE(vm.swap_out(b, at));
    EXPECT_TRUE(pte_present(vm.pte(b, at)));
    EXPECT_EQ(vm.read(a, at), 1u);
    EXPECT_EQ(vm.read(b, at), 1u);
  });
}

TEST(TryToUnmap, MoreMappingsThanACountHoldsAllGoAndAllComeBack) {
  run_vm({.ram = Bytes(uint64_t{32} << 20), .swap = SWAP}, [](Vm& vm) {
    Task& parent = vm.task();
    const VirtAddr at = vm.map(parent, 1);
    vm.write(parent, at, 1);
    std::vector<Task*> tasks{&parent};
    for (int i = 0; i < SWAP_MAP_MAX + 5; ++i) tasks.push_back(&vm.fork(parent));
    EXPECT_TRUE(vm.swap_out(parent, at));
    for (Task* t : tasks) EXPECT_FALSE(pte_present(vm.pte(*t, at)));
    EXPECT_EQ(vm.machine->swap_files.swp_swapcount(decode_swap_pte(vm.pte(parent, at))),
              static_cast<int>(tasks.size()));
    EXPECT_EQ(vm.faults(), "");
    for (Task* t : tasks) EXPECT_EQ(vm.read(*t, at), 1u);
  });
}

TEST_P(RmapOf, WalksMeetForksAndExits) {
  // One thread takes pages away while others fork, write, read and exit.
  const uint64_t seeds = std::getenv("WEIR_LONG") != nullptr ? 300 : 30;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm({.kernel = GetParam(), .swap = SWAP, .cpus = 2, .seed = seed, .preempt_one_in = 7}, [](Vm& vm) {
      Task& task = vm.task();
      const VirtAddr at = vm.map(task, 8);
      for (uint64_t i = 0; i < 8; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
      std::vector<Page*> pages;
      for (uint64_t i = 0; i < 8; ++i) pages.push_back(&vm.page(task, Vm::page_at(at, i)));
      for (Page* p : pages) PageAllocator::get_page(*p);
      bool over = false;
      vm.spawn([&] {
        for (int round = 0; round < 10 && !over; ++round)
          for (Page* p : pages) {
            uint64_t flags = 0;
            FlushBatch batch;
            Machine& m = *vm.machine;
            m.filemap.lock_page(*p);
            (void)m.rmap.page_referenced(*p, &flags, batch);
            if (PageSwapCache(*p) || (page_mapped(*p) && m.swap_cache.add_to_swap(*p)))
              (void)m.rmap.try_to_unmap(*p, batch);
            m.mmu.flush_batch(batch);
            m.filemap.unlock_page(*p);
          }
      });
      vm.spawn([&] {
        for (int round = 0; round < 6; ++round) {
          Task& child = vm.fork(task);
          for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(vm.read(child, Vm::page_at(at, i)) % 100, i + 1);
          vm.write(child, at, 201);
          vm.exit(child);
        }
        over = true;
      });
      vm.spawn([&] {
        for (uint64_t i = 0; i < 40; ++i) {
          EXPECT_EQ(vm.read(task, Vm::page_at(at, i % 8)) % 100, i % 8 + 1);
          vm.write(task, Vm::page_at(at, i % 8), 100 + i % 8 + 1);
        }
      });
      vm.join();
      for (Page* p : pages) vm.machine->lru.put_page(*p);
    });
    if (testing::Test::HasFailure()) return;
  }
}

// ---- page_mkclean ---------------------------------------------------------------------------------------------------

TEST(PageMkclean, AWriterOfASharedPageFaultsAgainAndAPrivateOneDoesNot) {
  run_vm({.disk = Bytes(uint64_t{1} << 20)}, [](Vm& vm) {
    Result<Inode*> inode = vm.machine->files.create_inode("f", *vm.file_disk, 0, Bytes(PAGE_SIZE), Bytes(PAGE_SIZE));
    Result<File*> file = vm.machine->files.open(**inode);
    Task& a = vm.task();
    Task& b = vm.task();
    const VirtAddr at_a = vm.map_file(a, **file, 1, MmapRequest::Sharing::shared);
    const VirtAddr at_b = vm.map_file(b, **file, 1, MmapRequest::Sharing::shared);
    vm.write(a, at_a, 1);
    EXPECT_EQ(vm.read(b, at_b), 1u);
    Page& page = vm.page(a, at_a);
    FlushBatch batch;
    vm.machine->filemap.lock_page(page);
    EXPECT_EQ(vm.machine->rmap.page_mkclean(page, batch), 1);
    vm.machine->mmu.flush_batch(batch);
    EXPECT_EQ(vm.machine->rmap.page_mkclean(page, batch), 0);
    vm.machine->filemap.unlock_page(page);
    EXPECT_FALSE(pte_write(vm.pte(a, at_a)));
    EXPECT_FALSE(pte_dirty(vm.pte(a, at_a)));
    const uint64_t faults = a.min_flt;
    vm.write(a, at_a, 2);
    EXPECT_EQ(a.min_flt, faults + 1);
    EXPECT_EQ(vm.read(b, at_b), 2u);
    vm.exit_all();
    vm.machine->files.close(**file);
    vm.machine->files.iput(**inode);
  });
}

}  // namespace
}  // namespace weir::test
