// The system calls on address spaces against a flat map: one entry a page, no VMAs.
#include "mm/mmap.hpp"

#include <array>
#include <cstdlib>
#include <optional>
#include <random>
#include <vector>

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

constexpr uint64_t N = 96;                                                 // pages of the window that the model knows
constexpr VirtAddr BASE{(uint64_t{1} << 32) + PMD_SIZE - 40 * PAGE_SIZE};  // it lies across two PTE tables

// ---- The model ------------------------------------------------------------------------------------------------------

struct ModelPage {
  uint64_t prot = 0;
  bool locked = false, seq = false;
  uint64_t content = 0;
  bool operator==(const ModelPage&) const = default;
};

/// An address space as a program sees it.
struct Flat {
  std::array<std::optional<ModelPage>, N> pages;

  void map(uint64_t at, uint64_t n, uint64_t prot) {
    for (uint64_t i = at; i < at + n; ++i) pages[i] = ModelPage{.prot = prot};
  }
  void unmap(uint64_t at, uint64_t n) {
    for (uint64_t i = at; i < at + n; ++i) pages[i].reset();
  }
  bool whole(uint64_t at, uint64_t n) const {
    for (uint64_t i = at; i < at + n; ++i)
      if (i >= N || !pages[i]) return false;
    return true;
  }
  bool empty(uint64_t at, uint64_t n) const {
    for (uint64_t i = at; i < at + n; ++i)
      if (i >= N || pages[i]) return false;
    return true;
  }
};

struct Process {
  Task* task = nullptr;
  Flat flat{};
  bool minimal = true;  ///< no two neighbours could be one
};

class MmapModel {
 public:
  MmapModel(Vm& vm, uint64_t seed) : vm_(vm), random_(seed) { processes_.push_back({.task = &vm.task()}); }

  void run(int steps) {
    for (int i = 0; i < steps && !testing::Test::HasFailure(); ++i) {
      SCOPED_TRACE("step " + std::to_string(i));
      step();
      for (Process& p : processes_) check_vmas(p);
      if (i % 16 == 0) {
        for (Process& p : processes_) check_contents(p);
        EXPECT_EQ(vm_.faults(), "");
      }
    }
    for (Process& p : processes_) check_contents(p);
  }

 private:
  AddressSpaces& spaces() { return vm_.machine->spaces; }
  uint64_t below(uint64_t n) { return random_() % n; }
  static VirtAddr address(uint64_t page) { return BASE + (page << PAGE_SHIFT); }
  uint64_t some_prot() {
    static constexpr uint64_t PROTS[] = {VM_READ | VM_WRITE, VM_READ | VM_WRITE, VM_READ | VM_WRITE, VM_READ, 0};
    return PROTS[below(5)];
  }

  void step() {
    Process& p = processes_[below(processes_.size())];
    Mm& mm = *p.task->mm;
    const uint64_t at = below(N);
    const uint64_t n = 1 + below(std::min<uint64_t>(N - at, 24));
    const uint64_t bytes = n << PAGE_SHIFT;
    const uint64_t what = below(22);
    switch (what) {
      case 0:
      case 1:
      case 2: {  // mmap
        const uint64_t prot = some_prot();
        Result<VirtAddr> got =
            spaces().mmap(mm, {.addr = address(at), .length = bytes, .prot = prot, .place = MmapRequest::Place::fixed});
        ASSERT_TRUE(got.ok());
        EXPECT_EQ(*got, address(at));
        p.flat.map(at, n, prot);
        break;
      }
      case 3:
      case 4:
        ASSERT_TRUE(spaces().munmap(mm, address(at), bytes).ok());
        p.flat.unmap(at, n);
        break;
      case 5:
      case 6:
      case 7: {  // mprotect: up to the first hole
        const uint64_t prot = some_prot();
        const Result<void> got = spaces().mprotect(mm, address(at), bytes, prot);
        EXPECT_EQ(got.ok(), p.flat.whole(at, n));
        for (uint64_t i = at; i < at + n && p.flat.pages[i]; ++i) p.flat.pages[i]->prot = prot;
        break;
      }
      case 8: {  // madvise(DONTNEED): everything but holes, up to the first locked mapping
        const Result<void> got = spaces().madvise(mm, address(at), bytes, Advice::dontneed);
        Errno expected = Errno::ok;
        for (uint64_t i = at; i < at + n; ++i) {
          if (!p.flat.pages[i]) {
            expected = Errno::nomem;
          } else if (p.flat.pages[i]->locked) {
            expected = Errno::inval;
            break;
          } else {
            p.flat.pages[i]->content = 0;
          }
        }
        EXPECT_EQ(got.error(), expected);
        break;
      }
      case 9: {
        const bool seq = below(2) == 0;
        const Result<void> got = spaces().madvise(mm, address(at), bytes, seq ? Advice::sequential : Advice::normal);
        EXPECT_EQ(got.ok(), p.flat.whole(at, n));
        for (uint64_t i = at; i < at + n; ++i)
          if (p.flat.pages[i]) p.flat.pages[i]->seq = seq;
        break;
      }
      case 10: {  // mlock: pages without rights cannot be faulted in
        const bool lock = below(3) == 0;
        const Result<void> got =
            lock ? spaces().mlock(*p.task, address(at), bytes) : spaces().munlock(*p.task, address(at), bytes);
        bool possible = p.flat.whole(at, n);
        for (uint64_t i = at; i < at + n && p.flat.pages[i]; ++i) {
          p.flat.pages[i]->locked = lock;
          if (lock && p.flat.pages[i]->prot == 0) possible = false;
        }
        EXPECT_EQ(got.ok(), possible);
        break;
      }
      case 11:
      case 12: remap(p, at, n); break;
      case 13:
        if (vm_.options.model == SoftMmu::Model::uffd) break;  // no fork there
        if (processes_.size() < 4) {
          Task& child = vm_.fork(*p.task);
          Process copy{.task = &child, .flat = p.flat, .minimal = p.minimal};
          for (auto& page : copy.flat.pages) {
            if (!page || !page->locked) continue;
            page->locked = false;  // not inherited; what only that kept apart stays apart
            copy.minimal = false;
          }
          processes_.push_back(copy);
        } else {
          const uint64_t victim = below(processes_.size());
          vm_.exit(*processes_[victim].task);
          processes_.erase(processes_.begin() + static_cast<long>(victim));
        }
        break;
      case 14:
        if (const Pte pte = vm_.pte(*p.task, address(at)); pte_present(pte) && !pte_special(pte)) {
          const bool locked = p.flat.pages[at]->locked;
          if (vm_.swap_out(*p.task, address(at))) {
            EXPECT_FALSE(locked);
          }
        }
        break;
      default: {  // a store or a load
        std::optional<ModelPage>& page = p.flat.pages[at];
        if (below(3) != 0) {
          const uint64_t value = random_() | 1;
          const bool allowed = page && (page->prot & VM_WRITE) != 0;
          EXPECT_EQ(vm_.mmu->store(*p.task, address(at), value), allowed ? FaultResult::done : FaultResult::sigsegv);
          if (allowed) page->content = value;
        } else {
          check_page(p, at);
        }
      }
    }
  }

  /// mremap of [at, at + n), which Linux wants in one mapping.
  void remap(Process& p, uint64_t at, uint64_t n) {
    Mm& mm = *p.task->mm;
    const uint64_t new_n = 1 + below(24);
    const bool may_move = below(3) != 0;
    const bool fixed = may_move && below(2) == 0;
    const uint64_t to = below(N);
    if (fixed && to + new_n > N) return;
    if (!fixed && at + new_n > N) return;
    VmArea* vma = vm_.machine->vmas.vma_lookup(mm, address(at));
    const uint64_t old_in_one = std::min(n, new_n);
    const bool one = vma != nullptr && address(at + (new_n > n || fixed ? old_in_one : 1)) <= vma->vm_end;
    const bool known = vma != nullptr;
    const bool grows = one && address(at + n) == vma->vm_end && p.flat.empty(at + n, new_n > n ? new_n - n : 0);
    if (!fixed && may_move && new_n > n) return;  // where it goes is get_unmapped_area's business: see Mremap tests
    const Result<void> got = [&]() -> Result<void> {
      Result<VirtAddr> r = spaces().mremap(mm, address(at), n << PAGE_SHIFT, new_n << PAGE_SHIFT,
                                           may_move ? AddressSpaces::MayMove::yes : AddressSpaces::MayMove::no,
                                           fixed ? address(to) : VirtAddr(0));
      if (!r) return r.error();
      EXPECT_EQ(*r, fixed ? address(to) : address(at));
      return {};
    }();
    if (fixed) {
      const bool overlaps = to < at + n && at < to + new_n;
      const bool ok = !overlaps && one;
      EXPECT_EQ(got.ok(), ok) << errno_name(got.error());
      if (!ok) return;
      std::vector<ModelPage> moved;
      for (uint64_t i = 0; i < old_in_one; ++i) moved.push_back(*p.flat.pages[at + i]);
      const ModelPage kind = moved[0];
      p.flat.unmap(to, new_n);
      p.flat.unmap(at, n);
      for (uint64_t i = 0; i < new_n; ++i)
        p.flat.pages[to + i] =
            i < old_in_one ? moved[i] : ModelPage{.prot = kind.prot, .locked = kind.locked, .seq = kind.seq};
      return;
    }
    if (new_n <= n) {
      EXPECT_EQ(got.ok(), known);
      if (known) p.flat.unmap(at + new_n, n - new_n);
      return;
    }
    EXPECT_EQ(got.ok(), grows);
    if (!grows) return;
    const ModelPage kind = *p.flat.pages[at];
    for (uint64_t i = at + n; i < at + new_n; ++i)
      p.flat.pages[i] = ModelPage{.prot = kind.prot, .locked = kind.locked, .seq = kind.seq};
  }

  void check_page(Process& p, uint64_t at) {
    const std::optional<ModelPage>& page = p.flat.pages[at];
    uint64_t value = 0;
    const FaultResult got = vm_.mmu->load(*p.task, address(at), value);
    EXPECT_EQ(got, page && page->prot != 0 ? FaultResult::done : FaultResult::sigsegv) << "page " << at;
    if (got == FaultResult::done && page) {
      EXPECT_EQ(value, page->content) << "page " << at;
    }
  }
  void check_contents(Process& p) {
    for (uint64_t i = 0; i < N; ++i) check_page(p, i);
  }

  /// The VMAs say what the flat map says, are sorted and apart, and no two neighbours could be one.
  void check_vmas(Process& p) {
    Mm& mm = *p.task->mm;
    std::array<std::optional<ModelPage>, N> found;
    VmArea* before = nullptr;
    int64_t locked = 0;
    for (VmArea& vma : mm.mmap) {
      ASSERT_LT(vma.vm_start, vma.vm_end);
      if ((vma.vm_flags & VM_LOCKED) != 0) locked += static_cast<int64_t>(vma.pages());
      if (before != nullptr) {
        ASSERT_LE(before->vm_end, vma.vm_start);
        const bool touch = before->vm_end == vma.vm_start && before->vm_flags == vma.vm_flags &&
                           before->vm_pgoff + before->pages() == vma.vm_pgoff;
        const bool both = before->anon_vma != nullptr && vma.anon_vma != nullptr;
        const VmArea* anchored = before->anon_vma != nullptr ? before : &vma;
        const bool anchors = both ? before->anon_vma == vma.anon_vma
                                  : anchored->chains == nullptr || anchored->chains->next_of_vma == nullptr;
        EXPECT_FALSE(p.minimal && touch && anchors)
            << "two VMAs at page " << ((vma.vm_start - BASE) >> PAGE_SHIFT) << " could be one";
      }
      before = &vma;
      for (VirtAddr a = vma.vm_start; a < vma.vm_end; a = a + PAGE_SIZE) {
        ASSERT_TRUE(a >= BASE && a < address(N));
        found[(a - BASE) >> PAGE_SHIFT] = ModelPage{.prot = vma.vm_flags & VM_ACCESS_FLAGS,
                                                    .locked = (vma.vm_flags & VM_LOCKED) != 0,
                                                    .seq = (vma.vm_flags & VM_SEQ_READ) != 0};
      }
    }
    EXPECT_EQ(mm.locked_vm, locked);
    for (uint64_t i = 0; i < N; ++i) {
      std::optional<ModelPage> expected = p.flat.pages[i];
      if (expected) expected->content = 0;
      EXPECT_EQ(found[i].has_value(), expected.has_value()) << "page " << i;
      if (found[i] && expected) {
        EXPECT_TRUE(*found[i] == *expected) << "page " << i;
      }
    }
  }

  Vm& vm_;
  std::mt19937_64 random_;
  std::vector<Process> processes_;
};

TEST(MmapModel, EveryCallDoesToTheVmasWhatItDoesToAFlatMap) {
  const uint64_t seeds = std::getenv("WEIR_LONG") != nullptr ? 400 : 30;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm({.swap = Bytes(uint64_t{8} << 20), .content = seed % 2 == 0 ? ContentKind::bytes : ContentKind::tags},
           [seed](Vm& vm) { MmapModel(vm, seed).run(600); });
    if (testing::Test::HasFailure()) return;
  }
}

TEST(MmapModel, TheSameOnHardwareThatHasNeitherBitsNorProtection) {
  const uint64_t seeds = std::getenv("WEIR_LONG") != nullptr ? 200 : 20;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm({.swap = Bytes(uint64_t{8} << 20),
            .content = seed % 2 == 0 ? ContentKind::bytes : ContentKind::tags,
            .model = SoftMmu::Model::uffd,
            .failures = {.again_one_in = 5, .seed = seed}},
           [seed](Vm& vm) { MmapModel(vm, seed).run(600); });
    if (testing::Test::HasFailure()) return;
  }
}

// ---- Single calls ---------------------------------------------------------------------------------------------------

unsigned count(Task& task) { return static_cast<unsigned>(task.mm->map_count); }

TEST(Mmap, NeighboursWithEqualRightsAreOneMapping) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 3, VM_READ | VM_WRITE, BASE);
    vm.map(task, 3, VM_READ | VM_WRITE, Vm::page_at(at, 6));
    EXPECT_EQ(count(task), 2u);
    vm.map(task, 3, VM_READ | VM_WRITE, Vm::page_at(at, 3));
    EXPECT_EQ(count(task), 1u);
    vm.map(task, 3, VM_READ, Vm::page_at(at, 3));
    EXPECT_EQ(count(task), 3u);
  });
}

TEST(Mmap, NewMappingsGrowDownwardsIntoOne) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr first = vm.map(task, 10);
    for (int i = 1; i <= 20; ++i) EXPECT_EQ(vm.map(task, 10), first - i * 10 * PAGE_SIZE);
    EXPECT_EQ(count(task), 1u);
    EXPECT_EQ(first + 10 * PAGE_SIZE, task.mm->mmap_base);
  });
}

TEST(Mmap, PagesKeepTheirMappingThroughSplitAndMerge) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 9);
    for (uint64_t i = 0; i < 9; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    AddressSpaces& spaces = vm.machine->spaces;
    ASSERT_TRUE(spaces.mprotect(*task.mm, Vm::page_at(at, 3), 3 * PAGE_SIZE, VM_READ).ok());
    EXPECT_EQ(count(task), 3u);
    EXPECT_EQ(vm.mmu->touch(task, Vm::page_at(at, 4), SoftMmu::Access::write), FaultResult::sigsegv);
    for (uint64_t i = 0; i < 9; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
    ASSERT_TRUE(spaces.mprotect(*task.mm, Vm::page_at(at, 3), 3 * PAGE_SIZE, VM_READ | VM_WRITE).ok());
    EXPECT_EQ(count(task), 1u);
    for (uint64_t i = 0; i < 9; ++i) vm.write(task, Vm::page_at(at, i), i + 11);
    EXPECT_EQ(vm.event(VmEvent::pgcow), 0u);
  });
}

TEST(Mmap, WithoutRightsNothingIsReachableAndNothingIsLost) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 5);
    ASSERT_TRUE(vm.machine->spaces.mprotect(*task.mm, at, PAGE_SIZE, 0).ok());
    EXPECT_EQ(vm.mmu->touch(task, at, SoftMmu::Access::read), FaultResult::sigsegv);
    ASSERT_TRUE(vm.machine->spaces.mprotect(*task.mm, at, PAGE_SIZE, VM_READ).ok());
    EXPECT_EQ(vm.read(task, at), 5u);
  });
}

TEST(Mmap, ArgumentsAreChecked) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    AddressSpaces& spaces = vm.machine->spaces;
    Mm& mm = *task.mm;
    using Place = MmapRequest::Place;
    EXPECT_EQ(spaces.mmap(mm, {.length = 0}).error(), Errno::inval);
    EXPECT_EQ(spaces.mmap(mm, {.addr = VirtAddr(0x100001), .length = 4096, .place = Place::fixed}).error(),
              Errno::inval);
    EXPECT_EQ(spaces.mmap(mm, {.addr = VirtAddr(0x1000), .length = 4096, .place = Place::fixed}).error(), Errno::perm);
    EXPECT_EQ(spaces.mmap(mm, {.addr = mm.task_size - 4096, .length = 8192, .place = Place::fixed}).error(),
              Errno::nomem);
    EXPECT_EQ(spaces.mmap(mm, {.length = mm.task_size.v}).error(), Errno::nomem);
    EXPECT_EQ(spaces.mmap(mm, {.length = ~uint64_t{0}}).error(), Errno::nomem);
    EXPECT_EQ(spaces.munmap(mm, VirtAddr(1), 4096).error(), Errno::inval);
    EXPECT_EQ(spaces.munmap(mm, BASE, 0).error(), Errno::inval);
    EXPECT_EQ(spaces.munmap(mm, BASE, ~uint64_t{0}).error(), Errno::inval);
    EXPECT_TRUE(spaces.munmap(mm, BASE, 4096).ok());
    EXPECT_EQ(spaces.mprotect(mm, VirtAddr(1), 4096, VM_READ).error(), Errno::inval);
    EXPECT_EQ(spaces.mprotect(mm, BASE, 4096, VM_READ).error(), Errno::nomem);
    EXPECT_EQ(spaces.madvise(mm, VirtAddr(1), 4096, Advice::dontneed).error(), Errno::inval);
    EXPECT_EQ(spaces.mlock(task, BASE, 4096).error(), Errno::nomem);
    EXPECT_EQ(count(task), 0u);
  });
}

TEST(Mmap, TheNumberOfMappingsIsLimited) {
  run_vm({.ram = Bytes(uint64_t{64} << 20)}, [](Vm& vm) {
    Task& task = vm.task();
    AddressSpaces& spaces = vm.machine->spaces;
    const VirtAddr at = vm.map(task, 2 * sysctl_max_map_count + 10);
    // Every second page gets other rights: two mappings more each time, until the limit.
    uint64_t i = 0;
    while (spaces.mprotect(*task.mm, Vm::page_at(at, 2 * i + 1), PAGE_SIZE, VM_READ).ok()) ++i;
    EXPECT_GE(task.mm->map_count, sysctl_max_map_count - 1);
    EXPECT_LE(task.mm->map_count, sysctl_max_map_count + 1);
    // A hole in the middle of a mapping would be one more; what takes a whole one away is possible.
    EXPECT_EQ(spaces.munmap(*task.mm, Vm::page_at(at, 2 * i + 4), PAGE_SIZE).error(), Errno::nomem);
    EXPECT_TRUE(spaces.munmap(*task.mm, at, PAGE_SIZE).ok());
  });
}

// ---- brk ------------------------------------------------------------------------------------------------------------

TEST(Brk, TheHeapGrowsAndShrinksAsOneMapping) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    AddressSpaces& spaces = vm.machine->spaces;
    const VirtAddr start = task.mm->start_brk;
    EXPECT_EQ(spaces.brk(*task.mm, VirtAddr(0)), start);
    for (uint64_t i = 1; i <= 50; ++i) EXPECT_EQ(spaces.brk(*task.mm, start + i * 1000), start + i * 1000);
    EXPECT_EQ(count(task), 1u);
    EXPECT_EQ(task.mm->total_vm, 13);
    vm.write(task, start + 49000 / 8 * 8, 3);
    EXPECT_EQ(spaces.brk(*task.mm, start + 10), start + 10);
    EXPECT_EQ(task.mm->total_vm, 1);
    EXPECT_EQ(task.mm->get_mm_rss(), 0);
    EXPECT_EQ(spaces.brk(*task.mm, start - 1), start + 10);
  });
}

TEST(Brk, APageStaysFreeBelowTheNextMapping) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr start = task.mm->start_brk;
    vm.map(task, 1, VM_READ, start + 10 * PAGE_SIZE);
    EXPECT_EQ(vm.machine->spaces.brk(*task.mm, start + 10 * PAGE_SIZE), start);
    EXPECT_EQ(vm.machine->spaces.brk(*task.mm, start + 9 * PAGE_SIZE), start + 9 * PAGE_SIZE);
  });
}

// ---- mremap ---------------------------------------------------------------------------------------------------------

TEST(Mremap, AMappingThatCannotGrowMovesWithItsPages) {
  run_vm({.swap = Bytes(uint64_t{8} << 20)}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 600, VM_READ | VM_WRITE, BASE);
    vm.map(task, 1, VM_READ, Vm::page_at(at, 600));
    for (uint64_t i = 0; i < 600; i += 2) vm.write(task, Vm::page_at(at, i), i + 1);
    for (uint64_t i = 0; i < 600; i += 10) ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, i)));
    const uint64_t faults = vm.event(VmEvent::pgfault);
    EXPECT_EQ(
        vm.machine->spaces.mremap(*task.mm, at, 600 * PAGE_SIZE, 700 * PAGE_SIZE, AddressSpaces::MayMove::no).error(),
        Errno::nomem);
    Result<VirtAddr> moved =
        vm.machine->spaces.mremap(*task.mm, at, 600 * PAGE_SIZE, 700 * PAGE_SIZE, AddressSpaces::MayMove::yes);
    ASSERT_TRUE(moved.ok());
    EXPECT_NE(*moved, at);
    EXPECT_EQ(vm.event(VmEvent::pgfault), faults);  // no page was touched
    EXPECT_EQ(task.mm->rss(RssKind::anon), 240);
    EXPECT_EQ(task.mm->rss(RssKind::swapents), 60);
    for (uint64_t i = 0; i < 700; ++i)
      EXPECT_EQ(vm.read(task, Vm::page_at(*moved, i)), i % 2 == 0 && i < 600 ? i + 1 : 0);
    EXPECT_EQ(vm.mmu->touch(task, at, SoftMmu::Access::read), FaultResult::sigsegv);
    // Reclaim finds the pages at their new place.
    for (uint64_t i = 2; i < 600; i += 20) ASSERT_TRUE(vm.swap_out(task, Vm::page_at(*moved, i)));
    for (uint64_t i = 2; i < 600; i += 20) EXPECT_EQ(vm.read(task, Vm::page_at(*moved, i)), i + 1);
  });
}

TEST(Mremap, ArgumentsAreChecked) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    AddressSpaces& spaces = vm.machine->spaces;
    using MayMove = AddressSpaces::MayMove;
    const VirtAddr at = vm.map(task, 10, VM_READ, BASE);
    vm.map(task, 10, VM_READ | VM_WRITE, Vm::page_at(at, 10));
    Mm& mm = *task.mm;
    EXPECT_EQ(spaces.mremap(mm, at + 1, 4096, 8192, MayMove::yes).error(), Errno::inval);
    EXPECT_EQ(spaces.mremap(mm, at, 4096, 0, MayMove::yes).error(), Errno::inval);
    EXPECT_EQ(spaces.mremap(mm, Vm::page_at(at, 30), 4096, 8192, MayMove::yes).error(), Errno::fault);
    EXPECT_EQ(spaces.mremap(mm, at, 11 * PAGE_SIZE, 20 * PAGE_SIZE, MayMove::yes).error(), Errno::fault);
    EXPECT_EQ(spaces.mremap(mm, at, PAGE_SIZE, PAGE_SIZE, MayMove::no, Vm::page_at(at, 40)).error(), Errno::inval);
    EXPECT_EQ(spaces.mremap(mm, at, 10 * PAGE_SIZE, 10 * PAGE_SIZE, MayMove::yes, Vm::page_at(at, 5)).error(),
              Errno::inval);
    EXPECT_EQ(count(task), 2u);
  });
}

// ---- mlock ----------------------------------------------------------------------------------------------------------

TEST(Mlock, LockedPagesArePresentUnevictableAndStay) {
  run_vm({.swap = Bytes(uint64_t{8} << 20)}, [](Vm& vm) {
    Task& task = vm.task();
    AddressSpaces& spaces = vm.machine->spaces;
    const VirtAddr at = vm.map(task, 10);
    for (uint64_t i = 0; i < 5; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    ASSERT_TRUE(vm.swap_out(task, at));
    ASSERT_TRUE(spaces.mlock(task, at, 10 * PAGE_SIZE).ok());
    EXPECT_EQ(task.mm->rss(RssKind::anon), 10);
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 10);
    vm.machine->lru.lru_add_drain_all();
    EXPECT_EQ(vm.gauge(NodeStat::nr_unevictable), 10);
    for (uint64_t i = 0; i < 10; ++i) EXPECT_FALSE(vm.swap_out(task, Vm::page_at(at, i)));
    for (uint64_t i = 0; i < 10; ++i) EXPECT_TRUE(pte_present(vm.pte(task, Vm::page_at(at, i))));
    EXPECT_EQ(vm.machine->spaces.madvise(*task.mm, at, PAGE_SIZE, Advice::dontneed).error(), Errno::inval);
    ASSERT_TRUE(spaces.munlock(task, at, 10 * PAGE_SIZE).ok());
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 0);
    for (uint64_t i = 0; i < 10; ++i) EXPECT_TRUE(vm.swap_out(task, Vm::page_at(at, i)));
    for (uint64_t i = 0; i < 5; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
  });
}

TEST(Mlock, AnUnmappedLockedMappingLeavesNoLockedPage) {
  run_vm({}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 10);
    ASSERT_TRUE(vm.machine->spaces.mlock(task, at, 10 * PAGE_SIZE).ok());
    ASSERT_TRUE(vm.machine->spaces.munmap(*task.mm, Vm::page_at(at, 2), 3 * PAGE_SIZE).ok());
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 7);
    EXPECT_EQ(task.mm->locked_vm, 7);
    vm.exit(task);
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 0);
  });
}

}  // namespace
}  // namespace weir::test
