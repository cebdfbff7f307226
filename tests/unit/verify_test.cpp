// tests/unit/verify_test.cpp
//
// For each invariant of Machine::verify() a fault, planted by hand into a machine that is in order: verify() must name
// that invariant (it may name others too), and find nothing once the fault is taken out again.
#include "mm/flat_fs.hpp"
#include "mm/mem.hpp"
#include "support/machine_fixture.hpp"

namespace weir::test {
namespace {

using Undo = std::function<void()>;

/// A machine with something of everything, and where to find it.
struct Populated {
  MachineFixture m{{.ram = 16_MiB,
                    .dma32_end = Pfn(2048),
                    .threads = weir::MachineOptions::Threads::none,
                    .page_cluster = 0,
                    .swaps = {{SwapKind::zram, 2_MiB}, {SwapKind::disk, 16_MiB}},
                    .disk = 8_MiB}};
  static constexpr uint64_t BIG = 4000;  // pages, of 4096 there are
  Task* parent = nullptr;
  Task* child = nullptr;
  VirtAddr heap, shared, privately, big;
  File* file = nullptr;
  File* shm = nullptr;         // a file in memory, some of it in swap
  VirtAddr area;               // of vmalloc
  std::unique_ptr<FlatFs> fs;  // on a disk of its own window behind the file
  std::unique_ptr<MemDevice> device;
  VirtAddr window;  // mapped from it

  Populated() {
    m.in_a_thread("setup", [this] {
      m.machine->pages.set_percpu_pagelist_fraction(64);  // small zones keep no per-CPU lists by themselves
      fs = std::make_unique<FlatFs>(m.machine->files);
      ASSERT_TRUE(fs->mkfs(*m.file_device, 1024, 2).ok());
      file = &m.make_file("file", 64, 64, FlatFs::table_pages(1024, 2));
      device = std::make_unique<MemDevice>(m.machine->files, m.machine->memory, m.machine->pages, *m.mmu);
      ASSERT_TRUE(device->init("window", 16_KiB).ok());
      Shmem& shmem = m.machine->shmem;
      Result<Inode*> inode = shmem.create_inode("shm", 64_KiB);
      Result<File*> opened = inode ? shmem.open(**inode) : inode.error();
      ASSERT_TRUE(opened.ok());
      shmem.iput(**inode);  // the file has its own
      shm = *opened;
      for (uint64_t i = 0; i < 16; ++i) ASSERT_TRUE(shmem.write_tag(*shm, i, i + 1).ok());
      Result<VirtAddr> vm = m.machine->vmalloc.vmalloc(64_KiB);
      ASSERT_TRUE(vm.ok());
      area = *vm;
      ASSERT_NE(m.machine->pages.balloon_inflate(PageCount(4)).v, 0);
    });
    parent = &m.task();
    m.run([this] {
      // Every second object is free again: slabs that are neither full nor empty.
      std::vector<void*> objects;
      for (int i = 0; i < 400; ++i) objects.push_back(m.machine->slab.kmalloc(512, GFP_KERNEL));
      for (size_t i = 0; i < objects.size(); i += 2) m.machine->slab.kfree(objects[i]);
      big = m.map(BIG);
      for (uint64_t i = 0; i < BIG; ++i) m.put(m.page_at(big, i), mixed(i));
      for (uint64_t i = 0; i < 32; ++i) EXPECT_EQ(m.get(m.page_at(big, i)), mixed(i));
      heap = m.map(16);
      for (uint64_t i = 0; i < 16; ++i) m.put(m.page_at(heap, i), i + 1);
      EXPECT_TRUE(m.machine->spaces.mlock(*parent, heap, 4 * PAGE_SIZE).ok());
      child = m.fork(*parent);
      ASSERT_NE(child, nullptr);
      shared = m.map_file(*file, 8, MmapRequest::Sharing::shared);
      privately = m.map_file(*file, 8, MmapRequest::Sharing::private_);
      for (uint64_t i = 0; i < 4; ++i) (void)m.get(m.page_at(privately, i));
      for (uint64_t i = 0; i < 4; ++i) (void)m.get(m.page_at(shared, i));
      m.put(shared, 99);
      File* opened = *device->open();
      window = m.map_file(*opened, 4, MmapRequest::Sharing::shared);
      fput(*opened);  // the mapping has its own
      BufferHead* bh = *m.machine->buffers.__bread(*fs->bd_inode(), 0);
      Buffers::brelse(*bh);
      // Pages on per-CPU lists.
      std::vector<Page*> pages;
      for (int i = 0; i < 20; ++i) pages.push_back(m.machine->pages.alloc_page(GFP_HIGHUSER));
      for (Page* page : pages) m.machine->pages.__free_pages(*page, Order(0));
    });
  }
  ~Populated() {
    m.in_a_thread("free", [this] {
      m.machine->vmalloc.vfree(area);
      fput(*shm);
      EXPECT_TRUE(m.machine->spaces.munmap(*parent->mm, window, 4 * PAGE_SIZE).ok());
      device->exit();
      fs->umount();
    });
    // The objects of kmalloc and the balloon stay; nobody asks for them.
  }

  static uint64_t mixed(uint64_t i) { return (i + 1) * 0x9e3779b97f4a7c15ull; }
  Machine& machine() { return *m.machine; }
  Zone& zone(ZoneType type) { return machine().node.zones[static_cast<unsigned>(type)]; }
  /// A resident page of the parent alone.
  Page& own_page() { return m.page_of(*parent, resident()); }
  VirtAddr resident() {
    for (uint64_t i = BIG; i-- > 0;) {
      const Pte* pte = m.pte_of(*parent, m.page_at(big, i));
      if (pte != nullptr && pte_present(*pte) && machine().mem.page(pte_pfn(*pte)).test(PageFlag::lru))
        return m.page_at(big, i);
    }
    ADD_FAILURE() << "nothing is resident";
    return big;
  }
  /// A page that is on an LRU list and not in the swap cache.
  Page& file_page() { return m.page_of(*parent, m.page_at(shared, 1)); }
  SwpEntry swapped(uint8_t without_cache = 0) {
    for (uint64_t i = 0; i < BIG; ++i) {
      const Pte* pte = m.pte_of(*parent, m.page_at(big, i));
      if (pte == nullptr || !is_swap_pte(*pte)) continue;
      const SwpEntry entry = decode_swap_pte(*pte);
      if (without_cache == 0 || (map_of(entry) & SWAP_HAS_CACHE) == 0) return entry;
    }
    ADD_FAILURE() << "nothing is swapped out";
    return {};
  }
  uint8_t& map_of(SwpEntry entry) { return info(entry).swap_map[swp_offset(entry)]; }
  SwapInfo& info(SwpEntry entry) { return *machine().swap_files.swap_info(swp_type(entry)); }
  SwapInfo& disk_area() { return *machine().swap_files.swap_info(1); }
  BufferHead& buffer() {
    Page* page = m.machine->filemap.find_get_page(fs->bd_inode()->i_data, 0);
    WEIR_BUG_ON(page == nullptr || !page->test(PageFlag::private_));
    (void)PageAllocator::put_page_testzero(*page);
    return *page_buffers(*page);
  }
  Page& swap_cache_page() {
    Page* found = nullptr;
    machine().swap_cache.for_each_space([&](unsigned, AddressSpace& space) {
      space.page_tree.walk([&](uint64_t, void* item, unsigned) {
        if (!is_exceptional_entry(item)) found = static_cast<Page*>(item);
      });
    });
    WEIR_BUG_ON(found == nullptr);
    return *found;
  }
  struct FreeBlock {
    Page* page;
    Zone* zone;
    unsigned order, type;
    PageList& list() const { return zone->free_area[order].free_list[type]; }
  };
  /// A free block for which `wanted(block)` holds.
  template <class Fn>
  FreeBlock free_block(Fn wanted) {
    for (Zone& z : machine().node.zones)
      for (unsigned o = 0; o < MAX_ORDER; ++o)
        for (unsigned t = 0; t < MIGRATE_PCPTYPES; ++t)
          for (Page& page : z.free_area[o].free_list[t])
            if (const FreeBlock b{&page, &z, o, t}; wanted(b)) return b;
    WEIR_BUG_ON(true);
    return {};
  }
  FreeBlock free_block() {
    return free_block([](const FreeBlock&) { return true; });
  }
  struct PcpPage {
    Page* page;
    Zone* zone;
    PageList* list;
  };
  PcpPage pcp_page() {
    for (Zone& z : machine().node.zones)
      for (PageList& list : z.pcp[0].lists)
        if (!list.empty()) return {&list.front(), &z, &list};
    WEIR_BUG_ON(true);
    return {};
  }
  Page& balloon_page() {
    for (int64_t i = 0; i < machine().mem.frames.v; ++i)
      if (Page& page = machine().mem.page(Pfn(static_cast<uint64_t>(i))); page.test(PageFlag::balloon)) return page;
    WEIR_BUG_ON(true);
    return machine().mem.page(Pfn(0));
  }
  KmemCache& cache() { return *machine().slab.kmalloc_slab(512); }
  Page& partial_slab() {
    WEIR_BUG_ON(cache().slabs_partial.empty());
    return cache().slabs_partial.front();
  }
  VmArea& vma(VirtAddr at) { return *machine().vmas.vma_lookup(*parent->mm, at); }
};

template <class T>
Undo change(T& field, std::type_identity_t<T> value) {
  const T before = field;
  field = value;
  return [&field, before] { field = before; };
}
template <class T>
Undo add(std::atomic<T>& field, std::type_identity_t<T> n) {
  field.fetch_add(n);
  return [&field, n] { field.fetch_sub(n); };
}
Undo flag_off(Page& page, PageFlag flag) {
  WEIR_BUG_ON(!page.test_and_clear(flag));
  return [&page, flag] { page.set(flag); };
}
Undo flag_on(Page& page, PageFlag flag) {
  WEIR_BUG_ON(page.test_and_set(flag));
  return [&page, flag] { page.clear(flag); };
}
Undo gauge(Populated& p, NodeStat stat) {
  p.machine().vmstat.inc_node_page_state(stat);
  return [&p, stat] { p.machine().vmstat.dec_node_page_state(stat); };
}
/// The page goes from one list to another; back to the first's head.
Undo move(Page& page, PageList& from, PageList& to) {
  from.erase(PageList::s_iterator_to(page));
  to.push_front(page);
  return [&page, &from, &to] {
    to.erase(PageList::s_iterator_to(page));
    from.push_front(page);
  };
}
Undo both(Undo a, Undo b) {
  return [a = std::move(a), b = std::move(b)] { b(), a(); };
}

struct Plant {
  const char* id;
  Undo (*plant)(Populated& p);
};

const Plant PLANTS[] = {
    // ---- frames and the allocator
    {"frame_state", [](Populated& p) { return add(p.free_block().page->_refcount, 1); }},
    {"frame_lost",
     [](Populated& p) -> Undo {
       Page* page = p.machine().pages.alloc_page(GFP_HIGHUSER);
       WEIR_BUG_ON(page == nullptr);
       return [&p, page] { p.machine().pages.__free_pages(*page, Order(0)); };
     }},
    {"buddy",
     [](Populated& p) {
       const auto b = p.free_block();
       return change(b.zone->free_area[b.order].nr_free, b.zone->free_area[b.order].nr_free + 1);
     }},
    {"free_count", [](Populated& p) { return add(p.free_block().zone->nr_free, 1); }},
    {"buddy-head",
     [](Populated& p) {
       const auto b = p.free_block();
       return change(b.page->private_, b.order + 1);
     }},
    {"buddy-aligned",
     [](Populated& p) {
       const auto b = p.free_block([&](const Populated::FreeBlock& x) {
         return x.order + 1 < MAX_ORDER && (p.machine().mem.pfn(x.page).v >> x.order & 1) != 0;
       });
       return move(*b.page, b.list(), b.zone->free_area[b.order + 1].free_list[b.type]);
     }},
    {"buddy-zone",
     [](Populated& p) {
       const auto b = p.free_block();
       Zone& other = p.zone(b.zone->type == ZoneType::NORMAL ? ZoneType::DMA32 : ZoneType::NORMAL);
       return move(*b.page, b.list(), other.free_area[b.order].free_list[b.type]);
     }},
    {"buddy-merged",
     [](Populated& p) -> Undo {
       const auto b = p.free_block([](const Populated::FreeBlock& x) { return x.order > 0; });
       Page& upper = *(b.page + (size_t{1} << (b.order - 1)));
       PageList& halves = b.zone->free_area[b.order - 1].free_list[b.type];
       Undo lower_back = both(change(b.page->private_, b.order - 1), move(*b.page, b.list(), halves));
       upper.set(PageFlag::buddy);
       upper.private_ = b.order - 1;
       halves.push_front(upper);
       return [&upper, &halves, lower_back] {
         halves.erase(PageList::s_iterator_to(upper));
         upper.private_ = 0;
         upper.clear(PageFlag::buddy);
         lower_back();
       };
     }},
    {"buddy-count",
     [](Populated& p) {
       const auto b = p.free_block();
       return change(b.zone->free_area[b.order].nr_free, b.zone->free_area[b.order].nr_free - 1);
     }},
    {"zone-nr-free", [](Populated& p) { return add(p.zone(ZoneType::DMA32).nr_free, -1); }},
    {"pcp-page", [](Populated& p) { return change(p.pcp_page().page->private_, 3); }},
    {"pcp-zone",
     [](Populated& p) {
       const auto pcp = p.pcp_page();
       Zone& other = p.zone(pcp.zone->type == ZoneType::NORMAL ? ZoneType::DMA32 : ZoneType::NORMAL);
       return move(*pcp.page, *pcp.list, other.pcp[0].lists[0]);
     }},
    {"pcp-count",
     [](Populated& p) {
       PerCpuPages& pcp = p.pcp_page().zone->pcp[0];
       return change(pcp.count, pcp.count + 1);
     }},
    {"vmstat-nr-free", [](Populated& p) { return gauge(p, NodeStat::nr_free_pages); }},
    {"balloon-page",
     [](Populated& p) {
       Page& page = p.balloon_page();
       return change(page.private_, page.private_ ^ 1);
     }},
    {"balloon-count",
     [](Populated& p) -> Undo {
       using Links = PageList::node_algorithms;
       auto* node = PageList::value_traits::to_node_ptr(p.balloon_page());
       auto* next = PageList::node_traits::get_next(node);
       Links::unlink(node);
       return [node, next] { Links::link_before(next, node); };
     }},
    {"kernel_pte",
     [](Populated& p) {
       const Pte* pte = p.machine().tables.walk(p.machine().tables.init_mm(), p.area);
       return flag_off(p.machine().mem.page(pte_pfn(*pte)), PageFlag::vmalloc);
     }},
    {"zspages", [](Populated& p) { return gauge(p, NodeStat::nr_zspages); }},

    // ---- pages, PTEs, VMAs
    {"mapcount", [](Populated& p) { return add(p.own_page()._mapcount, 1); }},
    {"refcount", [](Populated& p) { return add(p.own_page()._refcount, 1); }},
    {"anon_mapping",
     [](Populated& p) {
       Page& page = p.own_page();
       return change(page.index, page.index + 1);
     }},
    {"rmap",
     [](Populated& p) -> Undo {
       // A VMA that has left its family's tree.
       AnonVmaChain& chain = *p.vma(p.resident()).chains;
       chain.anon_vma->rb_root.erase(&chain);
       return [&chain] { chain.anon_vma->rb_root.insert(&chain); };
     }},
    {"file_mapping", [](Populated& p) { return change(p.vma(p.shared).vm_pgoff, 1); }},
    {"pte_target",
     [](Populated& p) { return change(*p.m.pte_of(*p.parent, p.resident()), pfn_pte(Pfn(uint64_t{1} << 30))); }},
    {"pte_in_vma",
     [](Populated& p) {
       VmArea& v = p.vma(p.heap);
       return change(v.vm_end, v.vm_end - PAGE_SIZE);
     }},
    {"pte_rights",
     [](Populated& p) {
       VmArea& v = p.vma(p.shared);
       return change(v.vm_flags, v.vm_flags & ~uint64_t{VM_WRITE});
     }},
    {"pfn_map",
     [](Populated& p) {
       Pte& pte = *p.m.pte_of(*p.parent, p.window);
       return change(pte, Pte{pte.v & ~_PAGE_SPECIAL});
     }},
    {"nonlinear",
     [](Populated& p) {
       // Nothing is mapped there.
       return change(*p.m.pte_of(*p.parent, p.m.page_at(p.shared, 7)), pgoff_to_pte(3));
     }},
    {"writable_shared",
     [](Populated& p) {
       Pte& pte = *p.m.pte_of(*p.parent, p.m.page_at(p.heap, 8));
       return change(pte, pte_mkwrite(pte));
     }},
    {"page_lock", [](Populated& p) { return flag_on(p.own_page(), PageFlag::locked); }},
    {"rss", [](Populated& p) { return add(p.parent->mm->rss_stat[static_cast<unsigned>(RssKind::anon)], 1); }},
    {"table_pages", [](Populated& p) { return add(p.child->mm->nr_table_pages, 1); }},
    {"mm_refs", [](Populated& p) { return add(p.child->mm->mm_users, 1); }},
    {"oom_victim",
     [](Populated& p) -> Undo {
       p.child->memdie = true;
       return [&p] { p.child->memdie = false; };
     }},
    {"pgd_list",
     [](Populated& p) -> Undo {
       PageList& list = p.machine().tables.pgd_list();
       Page& pgd = list.front();
       list.pop_front();
       return [&list, &pgd] { list.push_front(pgd); };
     }},
    {"ksm",
     [](Populated& p) -> Undo {
       Page& page = p.own_page();
       page.mapping.fetch_or(PAGE_MAPPING_KSM);
       return [&page] { page.mapping.fetch_and(~uintptr_t{2}); };
     }},
    {"vma_tree", [](Populated& p) { return change(p.parent->mm->map_count, p.parent->mm->map_count + 1); }},
    {"vmstat", [](Populated& p) { return gauge(p, NodeStat::nr_anon_pages); }},
    {"isolated", [](Populated& p) { return gauge(p, NodeStat::nr_isolated_anon); }},

    // ---- the LRU, files
    {"lru_size",
     [](Populated& p) {
       PageCount& n = p.machine().node.lruvec.size[0];
       return change(n, n + PageCount(1));
     }},
    {"mlocked", [](Populated& p) { return flag_on(p.own_page(), PageFlag::mlocked); }},
    {"lru_flags", [](Populated& p) { return flag_off(p.own_page(), PageFlag::lru); }},
    {"page_cache_page",
     [](Populated& p) {
       uint64_t& n = p.file->f_inode->i_data.nrpages;
       return change(n, n + 1);
     }},
    {"wb_stat", [](Populated& p) { return add(p.file->f_inode->i_data.wb->reclaimable, 1); }},
    {"shadows",
     [](Populated& p) {
       uint64_t& n = p.file->f_inode->i_data.nrexceptional;
       return change(n, n + 1);
     }},
    {"dirty_tags", [](Populated& p) { return flag_on(p.file_page(), PageFlag::dirty); }},

    {"buffers", [](Populated& p) { return change(p.buffer().b_this_page->b_offset, 0); }},
    {"buffer_dirty",
     [](Populated& p) -> Undo {
       BufferHead& bh = p.buffer();
       bh.b_state.fetch_or(BufferHead::bit(BufferFlag::dirty));
       return [&bh] { bh.b_state.fetch_and(~BufferHead::bit(BufferFlag::dirty)); };
     }},
    {"buffer_idle", [](Populated& p) { return add(p.buffer().b_count, 1); }},

    // ---- swap
    {"swap_users",
     [](Populated& p) {
       uint8_t& map = p.map_of(p.swapped());
       return change(map, map + 1);
     }},
    {"swap_has_cache",
     [](Populated& p) {
       uint8_t& map = p.map_of(p.swapped(1));
       return change(map, map | SWAP_HAS_CACHE);
     }},
    {"swap_inuse", [](Populated& p) { return change(p.disk_area().inuse_pages, p.disk_area().inuse_pages + 1); }},
    {"swap_cache_page", [](Populated& p) { return flag_off(p.swap_cache_page(), PageFlag::swapcache); }},
    {"swap_bits", [](Populated& p) { return change(p.disk_area().lowest_bit, p.disk_area().highest_bit + 1); }},
    {"swap_map",
     [](Populated& p) {
       uint8_t& map = p.map_of(p.swapped());
       return change(map, map | COUNT_CONTINUED);
     }},
    {"swap_cluster",
     [](Populated& p) {
       SwapCluster& c = p.disk_area().cluster_info[0];
       return change(c.count, static_cast<uint16_t>(c.count + 1));
     }},
    {"swap_pages", [](Populated& p) { return change(p.disk_area().pages, p.disk_area().pages + 1); }},
    {"nr_swap_pages", [](Populated& p) { return change(p.disk_area().pages, p.disk_area().pages - 1); }},
    {"swap_discard",
     [](Populated& p) { return change(p.disk_area().cluster_info[0].owner, SwapCluster::Owner::discard); }},
    {"frontswap", [](Populated& p) { return add(p.disk_area().frontswap_pages, 1); }},
    {"total_swap_pages", [](Populated& p) { return change(p.disk_area().pages, p.disk_area().pages - 1); }},

    {"shmem",
     [](Populated& p) {
       auto& inode = static_cast<ShmemInode&>(*p.shm->f_inode);
       WEIR_BUG_ON(inode.swapped == 0);
       return change(inode.swapped, inode.swapped + 1);
     }},

    // ---- slab
    {"slab-list", [](Populated& p) { return move(p.partial_slab(), p.cache().slabs_partial, p.cache().slabs_full); }},
    {"slab-freelist", [](Populated& p) { return change(p.partial_slab().index, 0); }},
    {"slab-page", [](Populated& p) { return flag_off(p.partial_slab(), PageFlag::slab); }},
    {"slab-count", [](Populated& p) { return change(p.cache().num_slabs, p.cache().num_slabs + 1); }},
    {"slab-free-objects", [](Populated& p) { return change(p.cache().free_objects, p.cache().free_objects + 1); }},
    {"vmstat-slab-reclaimable", [](Populated& p) { return gauge(p, NodeStat::nr_slab_reclaimable); }},
    {"vmstat-slab-unreclaimable", [](Populated& p) { return gauge(p, NodeStat::nr_slab_unreclaimable); }},
};

TEST(Verify, EveryInvariantHasAPlantedFaultThatTripsIt) {
  Populated p;
  Findings now;
  const auto look = [&] { p.m.in_a_thread("look", [&] { now = p.m.find(); }); };
  look();
  ASSERT_EQ(now.text, "") << "before anything was planted";

  unsigned killed = 0;
  std::vector<std::string> planted;
  for (const Plant& plant : PLANTS) {
    SCOPED_TRACE(plant.id);
    Undo undo;
    p.m.in_a_thread("plant", [&] { undo = plant.plant(p); });
    look();
    planted.emplace_back(plant.id);
    if (now.has(plant.id)) ++killed;
    EXPECT_TRUE(now.has(plant.id)) << "found instead:\n" << now.text;
    p.m.in_a_thread("undo", [&] { undo(); });
    look();
    ASSERT_EQ(now.text, "") << "after the fault was taken out";
  }
  for (unsigned i = 0; i < Machine::invariant_count(); ++i)
    EXPECT_NE(std::find(planted.begin(), planted.end(), Machine::invariant_id(i)), planted.end())
        << Machine::invariant_id(i) << " has no planted fault";
  EXPECT_EQ(planted.size(), Machine::invariant_count());
  std::printf("invariants %u/%u killed\n", killed, Machine::invariant_count());
}

/// At rest in the middle of things too, not only when all is over.
TEST(Verify, FindsNothingInAMachineThatWorks) {
  MachineFixture m(
      {.ram = 8_MiB, .cpus = 2, .seed = 5, .preempt_one_in = 32, .swaps = {{SwapKind::disk, 16_MiB}}, .disk = 4_MiB});
  File* file = nullptr;
  m.in_a_thread("file", [&] { file = &m.make_file("file", 256, 256); });
  VirtAddr heap, window;
  m.run([&] {
    heap = m.map(3000);
    window = m.map_file(*file, 256, MmapRequest::Sharing::shared);
  });
  for (uint64_t round = 0; round < 3; ++round) {
    m.run([&] {
      for (uint64_t i = 0; i < 3000; ++i) m.put(m.page_at(heap, i), round * 10000 + i);
      for (uint64_t i = 0; i < 256; ++i) m.put(m.page_at(window, i), round * 1000 + i);
    });
    m.run([&] {
      for (uint64_t i = 0; i < 3000; i += 7) EXPECT_EQ(m.get(m.page_at(heap, i)), round * 10000 + i);
      for (uint64_t i = 0; i < 256; ++i) EXPECT_EQ(m.get(m.page_at(window, i)), round * 1000 + i);
    });
  }
  EXPECT_GT(m.event(VmEvent::pswpin), 0u);
  EXPECT_GT(m.event(VmEvent::pgpgout), 0u);
}

}  // namespace
}  // namespace weir::test
