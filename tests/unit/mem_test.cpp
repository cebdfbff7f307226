// tests/unit/mem_test.cpp
//
// Memory of a device, mapped: one for all who map it, there without a fault, and out of reach of reclaim, fork's
// copying, advice and locks.
#include "mm/mem.hpp"

#include <gtest/gtest.h>

#include "support/machine_fixture.hpp"

namespace weir::test {
namespace {

using Sharing = MmapRequest::Sharing;

struct Window {
  MachineFixture& m;
  MemDevice device{m.machine->files, m.machine->memory, m.machine->pages, *m.mmu};
  File* file = nullptr;
  explicit Window(MachineFixture& fixture, Bytes size = 64_KiB) : m(fixture) {
    EXPECT_TRUE(device.init("window", size).ok());
    file = *device.open();
  }
  ~Window() {
    fput(*file);
    device.exit();
  }
  Result<VirtAddr> map(uint64_t pages, Sharing sharing, uint64_t pgoff = 0, uint64_t flags = 0) {
    return m.machine->spaces.mmap(
        *current().task->mm,
        {.length = pages << PAGE_SHIFT, .sharing = sharing, .extra_flags = flags, .file = file, .pgoff = pgoff});
  }
  void unmap(VirtAddr at, uint64_t pages) {
    EXPECT_TRUE(m.machine->spaces.munmap(*current().task->mm, at, pages << PAGE_SHIFT).ok());
  }
};

void with_window(KernelEra kernel, const std::function<void(MachineFixture& m, Window& w)>& fn) {
  MachineFixture m({.kernel = kernel, .ram = 8_MiB, .swaps = {{}}});
  m.run([&] {
    Window w(m);
    fn(m, w);
  });
}

TEST(RemapPfnRange, IsThereWithoutAFaultAndOneForAll) {
  for (const Profile& profile : PROFILES) {
    with_window(profile.era, [](MachineFixture& m, Window& w) {
      const VirtAddr a = *w.map(16, Sharing::shared);
      const VirtAddr b = *w.map(4, Sharing::shared, 8);
      const uint64_t faults = m.event(VmEvent::pgfault);
      for (uint64_t i = 0; i < 16; ++i) m.put(m.page_at(a, i), i + 1);
      for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(m.get(m.page_at(b, i)), 9 + i);
      EXPECT_EQ(m.event(VmEvent::pgfault), faults);
      EXPECT_EQ(current().task->mm->get_mm_rss(), 0);
      const Pte pte = *m.pte_of(m.task(), a);
      EXPECT_TRUE(pte_special(pte) && pte_write(pte));
      EXPECT_EQ(page_mapcount(m.machine->mem.page(pte_pfn(pte))), 0);
      const VmArea& vma = *m.machine->vmas.vma_lookup(*current().task->mm, a);
      constexpr uint64_t FLAGS = VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP;
      EXPECT_EQ(vma.vm_flags & FLAGS, FLAGS);
      EXPECT_TRUE(m.at_rest([&] { EXPECT_EQ(m.verify(), ""); }));
      w.unmap(m.page_at(a, 3), 2);  // a hole
      uint64_t value = 0;
      EXPECT_EQ(m.load(m.page_at(a, 3), value), FaultResult::sigsegv);
      EXPECT_EQ(m.get(m.page_at(a, 5)), 6u);
      w.unmap(a, 16);
      w.unmap(b, 4);
    });
  }
}

TEST(RemapPfnRange, ReclaimLeavesItAlone) {
  for (const Profile& profile : PROFILES) {
    with_window(profile.era, [](MachineFixture& m, Window& w) {
      const VirtAddr at = *w.map(16, Sharing::shared);
      for (uint64_t i = 0; i < 16; ++i) m.put(m.page_at(at, i), i + 1);
      const Pte before = *m.pte_of(m.task(), at);
      const VirtAddr hog = m.map(2500);
      for (uint64_t i = 0; i < 2500; ++i) m.put(m.page_at(hog, i), i);
      EXPECT_GT(m.event(VmEvent::pswpout), 0u);
      EXPECT_EQ(*m.pte_of(m.task(), at), before);
      for (uint64_t i = 0; i < 16; ++i) EXPECT_EQ(m.get(m.page_at(at, i)), i + 1);
      w.unmap(at, 16);
    });
  }
}

TEST(RemapPfnRange, AChildHasItTooAndAPrivateMappingItsCopies) {
  for (const Profile& profile : PROFILES) {
    MachineFixture m({.kernel = profile.era, .ram = 8_MiB, .swaps = {{}}});
    std::unique_ptr<Window> w;
    VirtAddr shared, own;
    Task* child = nullptr;
    m.run([&] {
      w = std::make_unique<Window>(m);
      shared = *w->map(8, Sharing::shared);
      own = *w->map(8, Sharing::private_);
      for (uint64_t i = 0; i < 8; ++i) m.put(m.page_at(shared, i), i + 1);
      m.put(own, 50);  // a copy
      EXPECT_EQ(m.get(shared), 1u);
      EXPECT_EQ(m.get(m.page_at(own, 1)), 2u);
      EXPECT_EQ(current().task->mm->rss(RssKind::anon), 1);
      child = m.fork(m.task());
      ASSERT_NE(child, nullptr);
      m.put(m.page_at(shared, 2), 33);
      m.put(m.page_at(own, 2), 51);
    });
    m.spawn(*child, [&] {
      EXPECT_EQ(m.get(m.page_at(shared, 2)), 33u) << "as its parent stored it";
      EXPECT_EQ(m.get(m.page_at(own, 2)), 33u) << "the device's: the parent's copy is its own";
      EXPECT_EQ(m.get(own), 50u) << "copied before the fork";
      m.put(m.page_at(shared, 3), 34);
    });
    m.join();
    m.run([&] {
      EXPECT_EQ(m.get(m.page_at(shared, 3)), 34u);
      m.exit(*child);
      w->unmap(shared, 8);
      w->unmap(own, 8);
      w.reset();
    });
  }
}

TEST(RemapPfnRange, AdviceLocksAndGrowthDoNotApply) {
  with_window(DEFAULT_KERNEL, [](MachineFixture& m, Window& w) {
    AddressSpaces& spaces = m.machine->spaces;
    Mm& mm = *current().task->mm;
    const VirtAddr at = *w.map(4, Sharing::shared, 0, VM_LOCKED);
    m.put(at, 5);
    EXPECT_EQ(mm.locked_vm, 0) << "not with a lock of the mapping's own";
    for (const Advice advice : {Advice::dontneed, Advice::free, Advice::pageout})
      EXPECT_EQ(spaces.madvise(mm, at, 4 * PAGE_SIZE, advice).error(), Errno::inval);
    EXPECT_TRUE(spaces.mlock(m.task(), at, 4 * PAGE_SIZE).ok()) << "without effect";
    EXPECT_EQ(mm.locked_vm, 0);
    EXPECT_EQ(spaces.mremap(mm, at, 4 * PAGE_SIZE, 8 * PAGE_SIZE, AddressSpaces::MayMove::yes).error(), Errno::fault);
    // Taken away and given back, the right to write is there again.
    EXPECT_TRUE(spaces.mprotect(mm, at, 4 * PAGE_SIZE, VM_READ).ok());
    EXPECT_EQ(m.store(at, 6), FaultResult::sigsegv);
    EXPECT_TRUE(spaces.mprotect(mm, at, 4 * PAGE_SIZE, VM_READ | VM_WRITE).ok());
    m.put(at, 7);
    EXPECT_EQ(m.get(at), 7u);
    // Moved, it shows the same frames.
    const VirtAddr moved =
        *spaces.mremap(mm, at, 4 * PAGE_SIZE, 4 * PAGE_SIZE, AddressSpaces::MayMove::yes, VirtAddr(uint64_t{1} << 32));
    EXPECT_EQ(m.get(moved), 7u);
    w.unmap(moved, 4);
  });
}

TEST(RemapPfnRange, RefusesWhatLiesOutside) {
  with_window(DEFAULT_KERNEL, [](MachineFixture& m, Window& w) {
    const int64_t maps = current().task->mm->map_count;
    EXPECT_EQ(w.map(17, Sharing::shared).error(), Errno::inval);
    EXPECT_EQ(w.map(1, Sharing::shared, 16).error(), Errno::inval);
    EXPECT_EQ(w.map(2, Sharing::private_, 15).error(), Errno::inval);
    EXPECT_EQ(w.map(1, Sharing::shared, ~uint64_t{0} >> 13).error(), Errno::inval);
    EXPECT_EQ(current().task->mm->map_count, maps);
    EXPECT_EQ(w.file->f_op->truncate(*w.file->f_inode, 4_KiB).error(), Errno::inval);
    MemDevice other(m.machine->files, m.machine->memory, m.machine->pages, *m.mmu);
    EXPECT_EQ(other.init("large", 8_MiB).error(), Errno::inval);
    EXPECT_EQ(other.init("none", Bytes(0)).error(), Errno::inval);
  });
}

// No memory for a table: nothing is left of the mapping.
TEST(RemapPfnRange, LeavesNothingBehindWithoutMemoryForTables) {
  MachineFixture m({.ram = 8_MiB});
  m.run([&] {
    Window w(m);
    bool mapped = false;
    for (int64_t n = 0; n < 20 && !mapped; ++n) {
      m.machine->pages.fail_page_alloc(n);
      Result<VirtAddr> at = w.map(16, Sharing::shared);
      m.machine->pages.fail_page_alloc(-1);
      mapped = at.ok();
      if (mapped)
        w.unmap(*at, 16);
      else
        EXPECT_TRUE(at.error() == Errno::again || at.error() == Errno::nomem) << errno_name(at.error());
      EXPECT_EQ(current().task->mm->map_count, 0);
      EXPECT_TRUE(m.at_rest([&] { EXPECT_EQ(m.verify(), ""); }));
    }
    EXPECT_TRUE(mapped);
  });
}

}  // namespace
}  // namespace weir::test
