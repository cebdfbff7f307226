// Page tables in motion: copy on write, swap-in, zapping. End states and exact counts.
#include "mm/memory.hpp"

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

constexpr Bytes SWAP = Bytes(uint64_t{16} << 20);

/// Threads on two CPUs with the seed's preemption, so that faults meet at every point.
VmOptions racing(uint64_t seed) { return {.swap = SWAP, .cpus = 2, .seed = seed, .preempt_one_in = 5}; }

uint64_t seeds() { return std::getenv("WEIR_LONG") != nullptr ? 500 : 40; }

// ---- Copy on write --------------------------------------------------------------------------------------------------

TEST(CopyOnWrite, AForkCopiesNoPageAndBothSidesReadTheSame) {
  run_vm({}, [](Vm& vm) {
    Task& parent = vm.task();
    const VirtAddr at = vm.map(parent, 100);
    for (uint64_t i = 0; i < 100; ++i) vm.write(parent, Vm::page_at(at, i), i + 1);
    Task& child = vm.fork(parent);
    EXPECT_EQ(vm.gauge(NodeStat::nr_anon_pages), 100);
    EXPECT_EQ(child.mm->rss(RssKind::anon), 100);
    for (uint64_t i = 0; i < 100; ++i) {
      EXPECT_EQ(vm.read(child, Vm::page_at(at, i)), i + 1);
      EXPECT_EQ(pte_pfn(vm.pte(child, Vm::page_at(at, i))), pte_pfn(vm.pte(parent, Vm::page_at(at, i))));
    }
    EXPECT_EQ(vm.event(VmEvent::pgcow), 0u);
  });
}

TEST(CopyOnWrite, AWriteIsSeenByTheWriterOnly) {
  run_vm({}, [](Vm& vm) {
    Task& parent = vm.task();
    const VirtAddr at = vm.map(parent, 2);
    vm.write(parent, at, 1);
    vm.write(parent, Vm::page_at(at, 1), 2);
    Task& child = vm.fork(parent);
    vm.write(child, at, 10);
    vm.write(parent, Vm::page_at(at, 1), 20);
    EXPECT_EQ(vm.read(parent, at), 1u);
    EXPECT_EQ(vm.read(child, at), 10u);
    EXPECT_EQ(vm.read(parent, Vm::page_at(at, 1)), 20u);
    EXPECT_EQ(vm.read(child, Vm::page_at(at, 1)), 2u);
    EXPECT_EQ(vm.event(VmEvent::pgcow), 2u);
    EXPECT_EQ(vm.gauge(NodeStat::nr_anon_pages), 4);
  });
}

TEST(CopyOnWrite, TheLastOwnerWritesInPlace) {
  run_vm({}, [](Vm& vm) {
    Task& parent = vm.task();
    const VirtAddr at = vm.map(parent, 1);
    vm.write(parent, at, 1);
    Task& child = vm.fork(parent);
    const Pfn frame = pte_pfn(vm.pte(parent, at));
    vm.exit(child);
    vm.write(parent, at, 2);
    EXPECT_EQ(pte_pfn(vm.pte(parent, at)), frame);
    EXPECT_EQ(vm.event(VmEvent::pgreuse), 1u);
    EXPECT_EQ(vm.event(VmEvent::pgcow), 0u);
  });
}

TEST(CopyOnWrite, TheChildOwnsThePageWhenTheParentIsGone) {
  run_vm({}, [](Vm& vm) {
    Task& parent = vm.task();
    const VirtAddr at = vm.map(parent, 1);
    vm.write(parent, at, 1);
    Task& child = vm.fork(parent);
    vm.exit(parent);
    EXPECT_EQ(vm.read(child, at), 1u);
    vm.write(child, at, 2);
    EXPECT_EQ(vm.read(child, at), 2u);
    EXPECT_EQ(vm.event(VmEvent::pgcow), 0u);
    // It hangs on the child's own anchor now.
    VmArea* vma = vm.machine->vmas.vma_lookup(*child.mm, at);
    EXPECT_EQ(page_anon_vma(vm.page(child, at)), vma->anon_vma);
  });
}

// The documents' case: A, B, C share a page that is swapped out. B reads it in and writes: B gets a new page; A and C
// still have the slot and later read the old bytes.
TEST(CopyOnWrite, AWriterOfASharedSlotGetsANewPageAndTheOthersKeepTheSlot) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& a = vm.task("A");
    const VirtAddr at = vm.map(a, 1);
    vm.write(a, at, 42);
    Task& b = vm.fork(a);
    Task& c = vm.fork(a);
    ASSERT_TRUE(vm.swap_out(a, at));
    const SwpEntry slot = decode_swap_pte(vm.pte(a, at));
    for (Task* t : {&a, &b, &c}) {
      EXPECT_EQ(decode_swap_pte(vm.pte(*t, at)), slot);
      EXPECT_EQ(t->mm->rss(RssKind::anon), 0);
      EXPECT_EQ(t->mm->rss(RssKind::swapents), 1);
    }
    EXPECT_EQ(vm.machine->swap_files.swp_swapcount(slot), 3);

    vm.write(b, at, 43);
    EXPECT_EQ(vm.machine->swap_files.swp_swapcount(slot), 2);
    EXPECT_EQ(decode_swap_pte(vm.pte(a, at)), slot);
    EXPECT_EQ(decode_swap_pte(vm.pte(c, at)), slot);
    EXPECT_EQ(vm.read(b, at), 43u);
    EXPECT_EQ(vm.read(a, at), 42u);
    EXPECT_EQ(vm.read(c, at), 42u);
    EXPECT_EQ(b.maj_flt, 1u);
    EXPECT_EQ(a.maj_flt, 0u);  // the page was still in the swap cache
  });
}

TEST(CopyOnWrite, NoReaderSeesTheOldPageAfterTheNewOneWasWritten) {
  // Two threads of one process on two CPUs after a fork: one counts up in a page, the other must never see it go back.
  for (uint64_t seed = 1; seed <= seeds(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm(racing(seed), [](Vm& vm) {
      Task& parent = vm.task();
      const VirtAddr at = vm.map(parent, 8);
      for (uint64_t i = 0; i < 8; ++i) vm.write(parent, Vm::page_at(at, i), 1);
      vm.machine->spaces.mmget(*parent.mm);  // a second thread uses it
      vm.fork(parent);
      uint64_t written = 1;
      vm.spawn([&] {
        for (uint64_t i = 0; i < 8; ++i) vm.write(parent, Vm::page_at(at, i), 2), written = i + 2;
      });
      vm.spawn([&] {
        for (int round = 0; round < 20; ++round) {
          const uint64_t done = written - 1;
          for (uint64_t i = 0; i < 8; ++i) {
            const uint64_t value = vm.read(parent, Vm::page_at(at, i));
            if (i < done) {
              EXPECT_EQ(value, 2u);
            }
            vm.world.preempt_point();
          }
        }
      });
      vm.join();
      vm.machine->spaces.mmput(*parent.mm);
    });
    if (HasFailure()) return;
  }
}

// ---- Swap-in --------------------------------------------------------------------------------------------------------

TEST(SwapIn, BytesComeBackAndTheFaultIsMajor) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 50);
    for (uint64_t i = 0; i < 50; ++i) vm.write(task, Vm::page_at(at, i), i + 100);
    const uint64_t faults = task.min_flt;
    for (uint64_t i = 0; i < 50; ++i) ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, i)));
    EXPECT_EQ(task.mm->rss(RssKind::anon), 0);
    EXPECT_EQ(task.mm->rss(RssKind::swapents), 50);
    for (uint64_t i = 0; i < 50; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 100);
    EXPECT_EQ(task.maj_flt, 50u);
    EXPECT_EQ(task.min_flt, faults);
    EXPECT_EQ(vm.event(VmEvent::pgmajfault), 50u);
    EXPECT_EQ(vm.event(VmEvent::pswpin), 50u);
    EXPECT_EQ(vm.event(VmEvent::pswpout), 50u);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 50);
    EXPECT_EQ(task.mm->rss(RssKind::swapents), 0);
  });
}

TEST(SwapIn, AReadKeepsTheSlotAndASecondSwapOutNeedsNoWrite) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 9);
    ASSERT_TRUE(vm.swap_out(task, at));
    EXPECT_EQ(vm.read(task, at), 9u);
    EXPECT_TRUE(PageSwapCache(vm.page(task, at)));
    EXPECT_FALSE(vm.page(task, at).test(PageFlag::dirty));
    EXPECT_FALSE(pte_write(vm.pte(task, at)));
  });
}

TEST(SwapIn, AWriteByTheOnlyUserGivesUpTheSlot) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 9);
    ASSERT_TRUE(vm.swap_out(task, at));
    vm.write(task, at + 8, 10);
    EXPECT_FALSE(PageSwapCache(vm.page(task, at)));
    EXPECT_TRUE(vm.page(task, at).test(PageFlag::dirty));
    EXPECT_EQ(vm.read(task, at), 9u);
    EXPECT_EQ(vm.read(task, at + 8), 10u);
    EXPECT_EQ(vm.event(VmEvent::pgcow), 0u);
  });
}

TEST(SwapIn, AReadThenAWriteReusesThePage) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 9);
    ASSERT_TRUE(vm.swap_out(task, at));
    vm.read(task, at);
    const Pfn frame = pte_pfn(vm.pte(task, at));
    vm.write(task, at, 11);
    EXPECT_EQ(pte_pfn(vm.pte(task, at)), frame);
    EXPECT_FALSE(PageSwapCache(vm.page(task, at)));
    EXPECT_EQ(vm.read(task, at), 11u);
  });
}

TEST(SwapIn, ThreadsThatWantTheSamePageReadItOnce) {
  for (uint64_t seed = 1; seed <= seeds(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    // A writer gives the slot up a moment before its PTE says so: who looks there in between reads it once more, finds
    // another PTE and drops what was read. So does Linux.
    const bool writes = seed % 2 == 0;
    run_vm(racing(seed), [writes](Vm& vm) {
      Task& task = vm.task();
      const VirtAddr at = vm.map(task, 4);
      for (uint64_t i = 0; i < 4; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
      for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, i)));
      for (int thread = 0; thread < 3; ++thread)
        vm.spawn([&, thread] {
          for (uint64_t i = 0; i < 4; ++i) {
            if (writes && thread == 0) vm.write(task, Vm::page_at(at, i) + 8, i);
            EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
          }
        });
      vm.join();
      EXPECT_GE(vm.event(VmEvent::pswpin), 4u);
      EXPECT_LE(vm.event(VmEvent::pswpin), writes ? 12u : 4u);
      EXPECT_EQ(vm.gauge(NodeStat::nr_anon_pages), 4);
    });
    if (HasFailure()) return;
  }
}

TEST(SwapIn, TheAddressSpaceIsNotHeldWhileThePageIsRead) {
  // A second thread maps memory while the first waits for the disk.
  run_vm({.swap = SWAP, .cpus = 2}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 3);
    ASSERT_TRUE(vm.swap_out(task, at));
    Nanos read_at{0}, mapped_at{0};
    vm.spawn([&] {
      EXPECT_EQ(vm.read(task, at), 3u);
      read_at = vm.world.now();
    });
    vm.spawn([&] {
      while (!vm.reading()) vm.world.schedule_timeout(Nanos(100));
      vm.map(task, 10);
      mapped_at = vm.world.now();
      EXPECT_TRUE(vm.reading());
    });
    vm.join();
    EXPECT_LT(mapped_at, read_at);
    EXPECT_EQ(task.maj_flt, 1u);
    EXPECT_EQ(vm.event(VmEvent::pgfault), 3u);  // the first write, and the swap-in twice: 4.14 counts a retry again
  });
}

TEST(SwapIn, APageThatCannotBeReadIsABusError) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 3);
    ASSERT_TRUE(vm.swap_out(task, at));
    // It is in the cache, not uptodate, as after a read error.
    const SwpEntry entry = decode_swap_pte(vm.pte(task, at));
    Page* page = vm.machine->swap_cache.read_swap_cache_async(entry, GFP_HIGHUSER_MOVABLE);
    ASSERT_NE(page, nullptr);
    vm.machine->filemap.wait_on_page_locked(*page);
    page->clear(PageFlag::uptodate);
    EXPECT_EQ(vm.mmu->touch(task, at, SoftMmu::Access::read), FaultResult::sigbus);
    EXPECT_EQ(decode_swap_pte(vm.pte(task, at)), entry);
    page->set(PageFlag::uptodate);
    EXPECT_EQ(vm.read(task, at), 3u);
    vm.machine->lru.put_page(*page);
  });
}

// ---- Races of faults ------------------------------------------------------------------------------------------------

TEST(Race, ThreadsFaultingOneRangeLeaveOnePageEachAndOneTable) {
  for (uint64_t seed = 1; seed <= seeds(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm(racing(seed), [](Vm& vm) {
      Task& task = vm.task();
      const VirtAddr at = vm.map(task, 16, VM_READ | VM_WRITE, VirtAddr(uint64_t{1} << 32));
      for (uint64_t thread = 0; thread < 3; ++thread)
        vm.spawn([&, thread] {
          for (uint64_t i = 0; i < 16; ++i) vm.write(task, Vm::page_at(at, i) + 8 * thread, i + 1);
        });
      vm.join();
      EXPECT_EQ(task.mm->rss(RssKind::anon), 16);
      EXPECT_EQ(task.mm->nr_table_pages, 4);
      for (uint64_t i = 0; i < 16; ++i)
        for (uint64_t thread = 0; thread < 3; ++thread)
          EXPECT_EQ(vm.read(task, Vm::page_at(at, i) + 8 * thread), i + 1);
    });
    if (HasFailure()) return;
  }
}

TEST(Race, DontneedDuringFaultsLosesNoFrame) {
  for (uint64_t seed = 1; seed <= seeds(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run_vm(racing(seed), [](Vm& vm) {
      Task& task = vm.task();
      const VirtAddr at = vm.map(task, 8);
      vm.spawn([&] {
        for (uint64_t i = 0; i < 64; ++i) vm.write(task, Vm::page_at(at, i % 8), i + 1);
      });
      vm.spawn([&] {
        for (int i = 0; i < 16; ++i)
          EXPECT_TRUE(vm.machine->spaces.madvise(*task.mm, at, 8 << PAGE_SHIFT, Advice::dontneed).ok());
      });
      vm.join();
    });
    if (HasFailure()) return;
  }
}

// ---- Files ----------------------------------------------------------------------------------------------------------

/// A file of `pages` pages, each with its number + 1 in front, and nothing of it in memory.
struct MappedFile {
  Vm& vm;
  Inode* inode = nullptr;
  File* file = nullptr;
  MappedFile(Vm& in, uint64_t pages) : vm(in) {
    inode = *vm.machine->files.create_inode("f", *vm.file_disk, 0, Bytes(0), Bytes(pages << PAGE_SHIFT));
    file = *vm.machine->files.open(*inode);
    for (uint64_t i = 0; i < pages; ++i) EXPECT_TRUE(vm.machine->files.write_tag(*file, i, i + 1).ok());
    EXPECT_TRUE(vm.machine->files.fsync(*file).ok());
    vm.machine->lru.lru_add_drain_all();
    EXPECT_EQ(vm.machine->files.invalidate(*inode), pages);
  }
  ~MappedFile() {
    vm.exit_all();
    vm.machine->files.close(*file);
    vm.machine->files.iput(*inode);
  }
  uint64_t read(uint64_t page) {
    Result<uint64_t> tag = vm.machine->files.read_tag(*file, page);
    EXPECT_TRUE(tag.ok()) << errno_name(tag.error());
    return tag ? *tag : 0;
  }
};
VmOptions with_disk() { return {.disk = Bytes(uint64_t{4} << 20), .content = ContentKind::tags}; }
using Sharing = MmapRequest::Sharing;

TEST(FileFault, MappedContentIsTheFiles) {
  run_vm(with_disk(), [](Vm& vm) {
    MappedFile f(vm, 40);
    Task& task = vm.task();
    const VirtAddr shared = vm.map_file(task, *f.file, 30, Sharing::shared, VM_READ, 5);
    const VirtAddr priv = vm.map_file(task, *f.file, 30, Sharing::private_, VM_READ, 10);
    for (uint64_t i = 0; i < 30; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(shared, i)), i + 6);
    for (uint64_t i = 0; i < 30; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(priv, i)), i + 11);
    EXPECT_EQ(task.mm->rss(RssKind::file), 60);
    EXPECT_EQ(vm.gauge(NodeStat::nr_mapped), 35);
    EXPECT_EQ(task.maj_flt, vm.event(VmEvent::pgmajfault));
    EXPECT_GE(task.maj_flt, 1u);
    EXPECT_EQ(task.maj_flt + task.min_flt, 60u);
  });
}

TEST(FileFault, APrivateWriteNeverReachesTheFile) {
  run_vm(with_disk(), [](Vm& vm) {
    MappedFile f(vm, 4);
    Task& task = vm.task();
    const VirtAddr at = vm.map_file(task, *f.file, 4, Sharing::private_);
    vm.write(task, at, 100);  // nothing was there: the copy is made at once
    vm.read(task, Vm::page_at(at, 1));
    vm.write(task, Vm::page_at(at, 1), 101);  // the file's page was mapped: copy on write
    EXPECT_EQ(vm.event(VmEvent::pgcow), 1u);
    EXPECT_EQ(vm.read(task, at), 100u);
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 1)), 101u);
    EXPECT_EQ(f.read(0), 1u);
    EXPECT_EQ(f.read(1), 2u);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 2);
    EXPECT_EQ(task.mm->rss(RssKind::file), 0);
    // As anonymous memory the copies survive the file's page.
    vm.machine->files.invalidate(*f.inode);
    EXPECT_EQ(vm.read(task, at), 100u);
  });
}

TEST(FileFault, ASharedWriteReachesTheFileAndOtherMappings) {
  run_vm(with_disk(), [](Vm& vm) {
    MappedFile f(vm, 4);
    Task& a = vm.task();
    Task& b = vm.task();
    const VirtAddr at_a = vm.map_file(a, *f.file, 4, Sharing::shared);
    const VirtAddr at_b = vm.map_file(b, *f.file, 4, Sharing::shared, VM_READ);
    vm.write(a, at_a, 50);
    EXPECT_EQ(vm.read(b, at_b), 50u);
    EXPECT_EQ(f.read(0), 50u);
    EXPECT_TRUE(vm.page(a, at_a).test(PageFlag::dirty));
    EXPECT_TRUE(vm.machine->files.fsync(*f.file).ok());
    vm.exit_all();
    vm.machine->lru.lru_add_drain_all();
    vm.machine->files.invalidate(*f.inode);
    EXPECT_EQ(f.read(0), 50u);
  });
}

/// File operations that count.
class Counting final : public VmOps {
 public:
  explicit Counting(VmOps& inner) : inner_(inner) {}
  uint32_t fault(FaultRequest& request) override { return ++faults, inner_.fault(request); }
  [[nodiscard]] bool has_page_mkwrite() const override { return true; }
  uint32_t page_mkwrite(FaultRequest& request) override { return ++mkwrites, inner_.page_mkwrite(request); }
  void balance_dirty(File& file) override { ++balanced, inner_.balance_dirty(file); }
  int faults = 0, mkwrites = 0, balanced = 0;

 private:
  VmOps& inner_;
};

TEST(FileFault, TheOwnerIsAskedOnceForEachPageThatBecomesDirty) {
  run_vm(with_disk(), [](Vm& vm) {
    Counting ops(vm.machine->files);
    MappedFile f(vm, 4);
    f.file->f_vm_ops = &ops;
    Task& task = vm.task();
    const VirtAddr at = vm.map_file(task, *f.file, 4, Sharing::shared);
    vm.read(task, at);
    EXPECT_EQ(ops.mkwrites, 0);
    for (int i = 0; i < 5; ++i) vm.write(task, at, 60);
    EXPECT_EQ(ops.mkwrites, 1);
    vm.write(task, Vm::page_at(at, 1), 61);
    EXPECT_EQ(ops.mkwrites, 2);
    EXPECT_EQ(ops.balanced, 2);
    EXPECT_TRUE(vm.machine->files.fsync(*f.file).ok());  // clean and write-protected again
    vm.read(task, at);
    EXPECT_EQ(ops.mkwrites, 2);
    vm.write(task, at, 62);
    EXPECT_EQ(ops.mkwrites, 3);
    EXPECT_EQ(f.read(0), 62u);
    EXPECT_TRUE(vm.machine->files.fsync(*f.file).ok());
  });
}

TEST(FileFault, BehindTheEndIsABusError) {
  run_vm(with_disk(), [](Vm& vm) {
    MappedFile f(vm, 2);
    Task& task = vm.task();
    const VirtAddr at = vm.map_file(task, *f.file, 4, Sharing::shared);
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 1)), 2u);
    EXPECT_EQ(vm.mmu->touch(task, Vm::page_at(at, 2), SoftMmu::Access::read), FaultResult::sigbus);
    EXPECT_EQ(vm.mmu->touch(task, Vm::page_at(at, 3), SoftMmu::Access::write), FaultResult::sigbus);
  });
}

TEST(FileFault, AMappingKeepsItsFile) {
  run_vm(with_disk(), [](Vm& vm) {
    Task& task = vm.task();
    VirtAddr at;
    {
      Inode* inode = *vm.machine->files.create_inode("f", *vm.file_disk, 0, Bytes(0), Bytes(4 << PAGE_SHIFT));
      File* file = *vm.machine->files.open(*inode);
      ASSERT_TRUE(vm.machine->files.write_tag(*file, 0, 5).ok());
      at = vm.map_file(task, *file, 1, Sharing::shared);
      vm.machine->files.close(*file);
      vm.machine->files.iput(*inode);
    }
    EXPECT_EQ(vm.read(task, at), 5u);
    vm.write(task, at, 6);
    // The last reference: the file is written out and gone.
    ASSERT_TRUE(vm.machine->spaces.munmap(*task.mm, at, PAGE_SIZE).ok());
    EXPECT_EQ(vm.gauge(NodeStat::nr_file_pages), 0);
  });
}

TEST(FileFault, AForkedMappingKeepsItsCopiesAndReadsTheRestFromTheFile) {
  run_vm(with_disk(), [](Vm& vm) {
    MappedFile f(vm, 4);
    Task& parent = vm.task();
    const VirtAddr at = vm.map_file(parent, *f.file, 4, Sharing::private_);
    vm.write(parent, at, 100);
    vm.read(parent, Vm::page_at(at, 1));
    Task& child = vm.fork(parent);
    vm.write(parent, at, 200);
    vm.write(child, Vm::page_at(at, 1), 300);
    EXPECT_EQ(vm.read(child, at), 100u);
    EXPECT_EQ(vm.read(parent, Vm::page_at(at, 1)), 2u);
    EXPECT_EQ(vm.read(child, Vm::page_at(at, 2)), 3u);
    EXPECT_EQ(f.read(0), 1u);
    EXPECT_EQ(f.read(1), 2u);
  });
}

// ---- Zapping --------------------------------------------------------------------------------------------------------

TEST(Zap, DontneedGivesZeroesAfterwards) {
  run_vm({.swap = SWAP}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 300);
    for (uint64_t i = 0; i < 300; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    for (uint64_t i = 0; i < 300; i += 3) ASSERT_TRUE(vm.swap_out(task, Vm::page_at(at, i)));
    EXPECT_TRUE(vm.machine->spaces.madvise(*task.mm, at, 300 << PAGE_SHIFT, Advice::dontneed).ok());
    EXPECT_EQ(task.mm->get_mm_rss(), 0);
    EXPECT_EQ(task.mm->rss(RssKind::swapents), 0);
    EXPECT_EQ(task.mm->hiwater_rss, 300);
    for (uint64_t i = 0; i < 300; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), 0u);
  });
}

TEST(Zap, AFrameIsNotReusedWhileAnotherCpuMayStillReachIt) {
  run_vm({.cpus = 2}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 1);
    vm.write(task, at, 77);
    EXPECT_TRUE(vm.mmu->tlb_holds(*task.mm, at));
    EXPECT_TRUE(vm.machine->spaces.munmap(*task.mm, at, PAGE_SIZE).ok());
    EXPECT_FALSE(vm.mmu->tlb_holds(*task.mm, at));
    EXPECT_EQ(vm.mmu->touch(task, at, SoftMmu::Access::read), FaultResult::sigsegv);
  });
}

// ---- Memory pressure in a fault -------------------------------------------------------------------------------------

TEST(Pressure, ATaskThatNeedsMoreThanThereIsIsKilledAndLeavesNothing) {
  run_vm({.ram = Bytes(uint64_t{4} << 20)}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 4096);
    FaultResult result = FaultResult::done;
    vm.spawn(
        [&] {
          for (uint64_t i = 0; i < 4096 && result == FaultResult::done; ++i)
            result = vm.mmu->touch(task, Vm::page_at(at, i), SoftMmu::Access::write);
        },
        &task);
    vm.join();
    EXPECT_EQ(result, FaultResult::killed);
    EXPECT_EQ(vm.event(VmEvent::oom_kill), 1u);
  });
}

TEST(Pressure, WithSwapTheSameTaskRunsThrough) {
  run_vm({.ram = Bytes(uint64_t{4} << 20), .swap = Bytes(uint64_t{32} << 20)}, [](Vm& vm) {
    Task& task = vm.task();
    const VirtAddr at = vm.map(task, 4096);
    for (uint64_t i = 0; i < 4096; ++i) vm.write(task, Vm::page_at(at, i), i + 1);
    for (uint64_t i = 0; i < 4096; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
    EXPECT_GT(vm.event(VmEvent::pswpout), 3000u);
  });
}

}  // namespace
}  // namespace weir::test
