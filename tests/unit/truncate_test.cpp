// tests/unit/truncate_test.cpp
//
// A file that gets shorter under its mappings: nothing behind the new end stays mapped, neither the file's pages nor
// private copies of them, neither in memory nor in swap, neither locked nor not.
#include "mm/truncate.hpp"

#include <gtest/gtest.h>

#include "support/vm_fixture.hpp"

namespace weir::test {
namespace {

using Sharing = MmapRequest::Sharing;

/// A file whose page i holds i + 1, all of it on its disk and nothing in memory.
struct CutFile {
  Vm& vm;
  Inode* inode = nullptr;
  File* file = nullptr;
  CutFile(Vm& in, uint64_t pages) : vm(in) {
    inode = *vm.machine->files.create_inode("f", *vm.file_disk, 0, Bytes(0), Bytes(pages << PAGE_SHIFT));
    file = *vm.machine->files.open(*inode);
    for (uint64_t i = 0; i < pages; ++i) EXPECT_TRUE(vm.machine->files.write_tag(*file, i, i + 1).ok());
    EXPECT_TRUE(vm.machine->files.fsync(*file).ok());
    vm.machine->lru.lru_add_drain_all();
    EXPECT_EQ(vm.machine->files.invalidate(*inode), pages);
  }
  ~CutFile() {
    vm.exit_all();
    vm.machine->files.close(*file);
    vm.machine->files.iput(*inode);
  }
  void cut(uint64_t bytes) { EXPECT_TRUE(vm.machine->files.truncate(*inode, Bytes(bytes)).ok()); }
  FaultResult touch(Task& task, VirtAddr at, uint64_t page, SoftMmu::Access access = SoftMmu::Access::read) {
    return vm.mmu->touch(task, Vm::page_at(at, page), access);
  }
};

VmOptions with_disks() {
  return {.swap = Bytes(uint64_t{4} << 20), .disk = Bytes(uint64_t{4} << 20), .content = ContentKind::tags};
}

TEST(Truncate, PrivateCopiesBehindTheNewEndGo) {
  run_vm(with_disks(), [](Vm& vm) {
    CutFile f(vm, 8);
    Task& parent = vm.task();
    const VirtAddr at = vm.map_file(parent, *f.file, 6, Sharing::private_, VM_READ | VM_WRITE, 2);  // file pages 2 to 7
    for (uint64_t i = 0; i < 5; ++i) vm.write(parent, Vm::page_at(at, i), 100 + i);
    EXPECT_EQ(vm.read(parent, Vm::page_at(at, 5)), 8u);
    Task& child = vm.fork(parent);
    vm.write(child, Vm::page_at(at, 4), 204);
    ASSERT_TRUE(vm.swap_out(parent, Vm::page_at(at, 3)));  // shared with the child
    EXPECT_EQ(parent.mm->rss(RssKind::swapents), 1);

    f.cut(4 * PAGE_SIZE + 10);  // page 4, the mapping's third, is half inside
    for (Task* task : {&parent, &child}) {
      for (uint64_t i = 3; i < 6; ++i) {
        EXPECT_TRUE(pte_none(vm.pte(*task, Vm::page_at(at, i)))) << i;
        EXPECT_EQ(f.touch(*task, at, i), FaultResult::sigbus) << i;
        EXPECT_EQ(f.touch(*task, at, i, SoftMmu::Access::write), FaultResult::sigbus) << i;
      }
      for (uint64_t i = 0; i < 3; ++i) EXPECT_EQ(vm.read(*task, Vm::page_at(at, i)), 100 + i);
      EXPECT_EQ(task->mm->rss(RssKind::anon), 3);
      EXPECT_EQ(task->mm->rss(RssKind::swapents), 0);
    }
    EXPECT_EQ(vm.faults(), "");

    f.cut(8 * PAGE_SIZE);  // longer again: what was there does not come back
    for (uint64_t i = 3; i < 6; ++i) EXPECT_EQ(vm.read(parent, Vm::page_at(at, i)), 0u) << i;
  });
}

TEST(Truncate, LockedPagesGoToo) {
  run_vm(with_disks(), [](Vm& vm) {
    CutFile f(vm, 8);
    Task& task = vm.task();
    const VirtAddr shared = vm.map_file(task, *f.file, 8, Sharing::shared);
    const VirtAddr copies = vm.map_file(task, *f.file, 8, Sharing::private_);
    for (uint64_t i = 0; i < 8; ++i) vm.write(task, Vm::page_at(shared, i), 50 + i);
    AddressSpaces& spaces = vm.machine->spaces;
    for (VirtAddr at : {shared, copies}) ASSERT_TRUE(spaces.mlock(task, at, 8 * PAGE_SIZE).ok());
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 16);

    f.cut(3 * PAGE_SIZE);
    EXPECT_EQ(vm.gauge(NodeStat::nr_mlock), 6);
    vm.machine->lru.lru_add_drain_all();
    EXPECT_EQ(vm.gauge(NodeStat::nr_unevictable), 6);
    EXPECT_EQ(vm.gauge(NodeStat::nr_file_pages), 3);
    EXPECT_EQ(task.mm->rss(RssKind::file), 3);
    EXPECT_EQ(task.mm->rss(RssKind::anon), 3);
    for (VirtAddr at : {shared, copies}) {
      for (uint64_t i = 0; i < 3; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), 50 + i);
      for (uint64_t i = 3; i < 8; ++i) EXPECT_EQ(f.touch(task, at, i), FaultResult::sigbus) << i;
    }
  });
}

TEST(Truncate, OneFilePageGoesAndPrivateCopiesStay) {
  run_vm(with_disks(), [](Vm& vm) {
    CutFile f(vm, 4);
    Task& task = vm.task();
    const VirtAddr shared = vm.map_file(task, *f.file, 4, Sharing::shared);
    const VirtAddr copies = vm.map_file(task, *f.file, 4, Sharing::private_);
    for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(shared, i)), i + 1);
    vm.write(task, copies, 70);
    vm.write(task, Vm::page_at(copies, 1), 71);
    EXPECT_EQ(vm.read(task, Vm::page_at(copies, 2)), 3u);
    ASSERT_TRUE(vm.swap_out(task, Vm::page_at(copies, 1)));
    vm.machine->memory.unmap_mapping_range(f.inode->i_data, PAGE_SIZE, 2 * PAGE_SIZE, EvenCows::no);
    EXPECT_TRUE(pte_present(vm.pte(task, shared)));
    EXPECT_TRUE(pte_none(vm.pte(task, Vm::page_at(shared, 1))));
    EXPECT_TRUE(pte_none(vm.pte(task, Vm::page_at(shared, 2))));
    EXPECT_TRUE(pte_present(vm.pte(task, Vm::page_at(shared, 3))));
    EXPECT_TRUE(is_swap_pte(vm.pte(task, Vm::page_at(copies, 1))));
    EXPECT_TRUE(pte_none(vm.pte(task, Vm::page_at(copies, 2))));
    EXPECT_EQ(vm.read(task, copies), 70u);
    EXPECT_EQ(vm.read(task, Vm::page_at(copies, 1)), 71u);
    EXPECT_EQ(vm.read(task, Vm::page_at(copies, 2)), 3u);
  });
}

// Tasks store through private and shared mappings while the file shrinks and grows: when it has shrunk, nothing behind
// its end is mapped, whoever was in a fault just then.
TEST(Truncate, AFaultThatRunsMeanwhileLeavesNoCopyBehindTheEnd) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    VmOptions options = with_disks();
    options.seed = seed;
    options.cpus = 2;
    options.preempt_one_in = 6;
    run_vm(options, [&](Vm& vm) {
      constexpr uint64_t PAGES = 16;
      CutFile f(vm, PAGES);
      std::vector<std::pair<Task*, VirtAddr>> mappings;
      for (Sharing sharing : {Sharing::private_, Sharing::private_, Sharing::shared}) {
        Task& task = vm.task();
        mappings.emplace_back(&task, vm.map_file(task, *f.file, PAGES, sharing));
      }
      bool over = false;
      for (const auto& mapping : mappings)
        vm.spawn(
            [&, mapping] {
              const auto [task, at] = mapping;
              for (uint64_t i = 0; !over; i = (i * 5 + 3) % PAGES) {
                const FaultResult r = f.touch(*task, at, i, SoftMmu::Access::write);
                EXPECT_TRUE(r == FaultResult::done || r == FaultResult::sigbus);
                vm.world.spend(Nanos(700));
                vm.world.cond_resched();
              }
            },
            mapping.first);
      for (uint64_t round = 0; round < 6; ++round) {
        vm.world.schedule_timeout(Nanos(20000));
        const uint64_t end = (round * 7 + seed) % PAGES;
        f.cut(end << PAGE_SHIFT);
        for (const auto& [task, at] : mappings)
          for (uint64_t i = end; i < PAGES; ++i) EXPECT_TRUE(pte_none(vm.pte(*task, Vm::page_at(at, i)))) << i;
        f.cut(PAGES << PAGE_SHIFT);
      }
      over = true;
      vm.join();
    });
  }
}

TEST(Truncate, WhatOthersHaveWrittenIsReadAnewAndWhatWasStoredHereStays) {
  run_vm(with_disks(), [](Vm& vm) {
    CutFile f(vm, 8);
    Task& task = vm.task();
    const VirtAddr at = vm.map_file(task, *f.file, 8, Sharing::shared, VM_READ | VM_WRITE);
    const VirtAddr own = vm.map_file(task, *f.file, 8, Sharing::private_, VM_READ | VM_WRITE);
    for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(vm.read(task, Vm::page_at(at, i)), i + 1);
    vm.write(task, Vm::page_at(at, 2), 100);
    vm.write(task, Vm::page_at(own, 3), 200);
    // The same place on the disk by another way.
    Inode* others =
        *vm.machine->files.create_inode("g", *vm.file_disk, 0, Bytes(8 << PAGE_SHIFT), Bytes(8 << PAGE_SHIFT));
    File* writer = *vm.machine->files.open(*others);
    for (const uint64_t i : {1, 2, 3}) EXPECT_TRUE(vm.machine->files.write_tag(*writer, i, 50 + i).ok());
    vm.machine->files.close(*writer);
    vm.machine->files.iput(*others);

    EXPECT_TRUE(vm.machine->files.invalidate_range(*f.inode, 1, 5).ok());
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 1)), 51u);
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 2)), 100u) << "dirty";
    EXPECT_EQ(vm.read(task, Vm::page_at(at, 3)), 53u);
    EXPECT_EQ(vm.read(task, Vm::page_at(own, 3)), 200u) << "a copy";
    EXPECT_EQ(vm.read(task, Vm::page_at(own, 1)), 51u);
    EXPECT_EQ(vm.faults(), "");
  });
}

TEST(Truncate, APageInUseIsNotReadAnewAndThatIsSaid) {
  run_vm(with_disks(), [](Vm& vm) {
    CutFile f(vm, 4);
    EXPECT_EQ(*vm.machine->files.read_tag(*f.file, 2), 3u);
    Page* page = vm.machine->filemap.find_get_page(f.inode->i_data, 2);
    ASSERT_NE(page, nullptr);
    EXPECT_EQ(vm.machine->files.invalidate_range(*f.inode, 0, 3).error(), Errno::busy);
    vm.machine->lru.put_page(*page);
    EXPECT_TRUE(vm.machine->files.invalidate_range(*f.inode, 0, 3).ok());
    EXPECT_EQ(vm.machine->filemap.find_get_page(f.inode->i_data, 2), nullptr);
  });
}

}  // namespace
}  // namespace weir::test
