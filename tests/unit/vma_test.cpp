// VMAs in their tree: lookup, and places for new ones, against the plainest search there is.
#include "mm/vma.hpp"

#include <map>
#include <random>

#include "support/mm_fixture.hpp"

namespace weir::test {
namespace {

struct Areas {
  TestMachine machine;
  Slab slab{machine.pages, machine.vmstat, 1};
  Vmas vmas{slab};
  Mm mm;
  Areas() {
    slab.kmem_cache_init();
    EXPECT_TRUE(vmas.init().ok());
    mm.task_size = VirtAddr(uint64_t{1} << 30);
    mm.mmap_base = VirtAddr((uint64_t{1} << 30) - (uint64_t{1} << 24));
  }
  ~Areas() {
    while (!mm.mmap.empty()) drop(*mm.mmap.begin());
    EXPECT_EQ(mm.map_count, 0);
    EXPECT_EQ(mm.total_vm, 0);
    EXPECT_EQ(mm.locked_vm, 0);
  }
  VmArea& add(uint64_t start, uint64_t end, uint64_t flags = VM_READ) {
    VmArea* vma = vmas.alloc(GFP_KERNEL);
    vma->vm_start = VirtAddr(start);
    vma->vm_end = VirtAddr(end);
    vma->vm_flags = flags;
    vmas.insert(mm, *vma);
    return *vma;
  }
  void drop(VmArea& vma) {
    vmas.remove(mm, vma);
    vmas.free(vma);
  }
};

TEST(Vma, FindGivesTheFirstThatEndsAbove) {
  Areas a;
  VmArea& low = a.add(0x10000, 0x14000);
  VmArea& high = a.add(0x20000, 0x21000);
  EXPECT_EQ(a.vmas.find_vma(a.mm, VirtAddr(0)), &low);
  EXPECT_EQ(a.vmas.find_vma(a.mm, VirtAddr(0x10000)), &low);
  EXPECT_EQ(a.vmas.find_vma(a.mm, VirtAddr(0x13fff)), &low);
  EXPECT_EQ(a.vmas.find_vma(a.mm, VirtAddr(0x14000)), &high);
  EXPECT_EQ(a.vmas.find_vma(a.mm, VirtAddr(0x21000)), nullptr);
  EXPECT_EQ(a.vmas.vma_lookup(a.mm, VirtAddr(0x14000)), nullptr);
  EXPECT_EQ(a.vmas.vma_lookup(a.mm, VirtAddr(0x20fff)), &high);
  EXPECT_EQ(a.vmas.find_vma_intersection(a.mm, VirtAddr(0x14000), VirtAddr(0x20000)), nullptr);
  EXPECT_EQ(a.vmas.find_vma_intersection(a.mm, VirtAddr(0x14000), VirtAddr(0x20001)), &high);
  EXPECT_EQ(a.vmas.find_vma_prev(a.mm, VirtAddr(0x20000)), &low);
  EXPECT_EQ(a.vmas.find_vma_prev(a.mm, VirtAddr(0x10000)), nullptr);
  EXPECT_EQ(a.vmas.next(a.mm, low), &high);
  EXPECT_EQ(a.vmas.prev(a.mm, high), &low);
  EXPECT_EQ(a.vmas.next(a.mm, high), nullptr);
}

TEST(Vma, TheLastOneFoundIsForgottenWhenItGoes) {
  Areas a;
  VmArea& vma = a.add(0x10000, 0x14000);
  EXPECT_EQ(a.vmas.find_vma(a.mm, VirtAddr(0x11000)), &vma);
  EXPECT_EQ(a.mm.vmacache.load(), &vma);
  a.drop(vma);
  EXPECT_EQ(a.vmas.find_vma(a.mm, VirtAddr(0x11000)), nullptr);
}

TEST(Vma, CountsFollowInsertResizeAndRemove) {
  Areas a;
  VmArea& vma = a.add(0x10000, 0x14000, VM_READ | VM_LOCKED);
  EXPECT_EQ(a.mm.map_count, 1);
  EXPECT_EQ(a.mm.total_vm, 4);
  EXPECT_EQ(a.mm.locked_vm, 4);
  a.vmas.resize(a.mm, vma, VirtAddr(0xf000), VirtAddr(0x12000));
  EXPECT_EQ(a.mm.total_vm, 3);
  EXPECT_EQ(a.mm.locked_vm, 3);
}

TEST(Vma, PlacesAreTopDownFirstFitWhateverCameAndWent) {
  // The plain search: from the top downwards, the first hole that is large enough.
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    std::mt19937_64 random(seed);
    Areas a;
    std::map<uint64_t, VmArea*> areas;
    const auto plain = [&](uint64_t length) -> uint64_t {
      uint64_t top = a.mm.mmap_base.v;
      for (auto it = areas.rbegin(); it != areas.rend(); ++it) {
        if (it->second->vm_start.v >= top) continue;
        const uint64_t bottom = std::min(top, it->second->vm_end.v);
        if (top - bottom >= length) return top - length;
        top = std::min(top, it->second->vm_start.v);
      }
      return top >= MMAP_MIN_ADDR.v + length ? top - length : 0;
    };
    for (int step = 0; step < 3000; ++step) {
      const uint64_t length = (1 + random() % (random() % 4 == 0 ? 2000 : 30)) << PAGE_SHIFT;
      if (random() % 5 < 3) {
        const uint64_t expected = plain(length);
        Result<VirtAddr> place = a.vmas.get_unmapped_area(a.mm, VirtAddr(0), length);
        ASSERT_EQ(place.ok(), expected != 0) << "seed " << seed << " step " << step;
        if (!place) continue;
        ASSERT_EQ(place->v, expected) << "seed " << seed << " step " << step;
        if (random() % 10 != 0) areas[expected] = &a.add(expected, expected + length);
      } else if (random() % 8 == 0) {
        // A fixed place, anywhere that is free.
        const uint64_t at = MMAP_MIN_ADDR.v + (random() % 0x3f000 << PAGE_SHIFT);
        if (a.vmas.find_vma_intersection(a.mm, VirtAddr(at), VirtAddr(at + length)) == nullptr)
          areas[at] = &a.add(at, at + length);
      } else if (!areas.empty()) {
        auto gone = std::next(areas.begin(), static_cast<long>(random() % areas.size()));
        a.drop(*gone->second);
        areas.erase(gone);
      }
    }
  }
}

TEST(Vma, AFreeHintIsTakenAndATakenOneIsNot) {
  Areas a;
  a.add(0x200000, 0x300000);
  EXPECT_EQ(*a.vmas.get_unmapped_area(a.mm, VirtAddr(0x100000), 0x100000), VirtAddr(0x100000));
  EXPECT_EQ(*a.vmas.get_unmapped_area(a.mm, VirtAddr(0x100000), 0x101000), a.mm.mmap_base - 0x101000);
  EXPECT_EQ(*a.vmas.get_unmapped_area(a.mm, VirtAddr(0x1000), 0x1000), a.mm.mmap_base - 0x1000);  // below mmap_min_addr
  EXPECT_EQ(a.vmas.get_unmapped_area(a.mm, VirtAddr(0), uint64_t{1} << 31).error(), Errno::nomem);
}

}  // namespace
}  // namespace weir::test
