// src/mm/verify.cpp
//
// Machine::verify(): the machine as it is, counted again from nothing and compared with what it believes.
//
// A full scan of page tables, swap maps, trees and lists. Nothing else may run meanwhile. Every invariant has an id;
// the test plants for each a fault that must trip it. Takes no lock but those that surveys of other rooms take.
#include <cstring>

#include "mm/machine.hpp"

namespace weir {

namespace {

// X(id, what holds)
#define WEIR_INVARIANTS(X)                                                                                             \
  X(frame_state, "each frame is in exactly one state: free, per-CPU, quarantined, balloon, or owned")                  \
  X(frame_lost, "a frame that is not free belongs to somebody: to the kernel, a PTE, a tree or a pagevec")             \
  X(buddy, "free areas: every block whole, aligned, counted; merged with its buddy where that is free")                \
  X(free_count, "a zone's nr_free = pages on its free lists")                                                          \
  X(mapcount, "_mapcount + 1 = PTEs that map the page")                                                                \
  X(refcount, "_refcount = mappings + cache + pagevecs + buffers, and > 0 for an owned page")                          \
  X(anon_mapping, "an anonymous page's VMA is linked to the AnonVma its mapping names, at the page's index")           \
  X(rmap, "the reverse map of a page finds every PTE that maps it, each once")                                         \
  X(file_mapping, "a file page is mapped by VMAs of its file, at its index; i_mmap holds exactly those VMAs")          \
  X(pte_target, "a present PTE maps an owned user page (or the zero page)")                                            \
  X(pfn_map,                                                                                                           \
    "a VM_PFNMAP VMA has special PTEs of frames that the kernel keeps, and copies of them; else only the zero page "   \
    "is special")                                                                                                      \
  X(nonlinear,                                                                                                         \
    "a PTE with a file offset lies in a VM_NONLINEAR VMA; such VMAs, and no others, are on their file's list")         \
  X(pte_in_vma, "every PTE that is not none lies in a VMA of its Mm")                                                  \
  X(pte_rights, "a PTE lets write only where its VMA does, and never to a page of a private file mapping")             \
  X(kernel_pte, "the kernel's PTEs map frames of vmalloc, each once, and every such frame has one")                    \
  X(swap_users, "swap_map counts = PTEs that hold the slot")                                                           \
  X(swap_has_cache, "SWAP_HAS_CACHE iff the slot is in the swap cache or held by a slots cache")                       \
  X(swap_inuse, "inuse_pages = slots that are neither free nor bad; nr_swap_pages = the rest")                         \
  X(swap_cache_page, "a page in the swap cache has the flag, the entry it is under, and backs swap")                   \
  X(page_cache_page, "a page in a file's tree has that mapping and index; nrpages = the tree's pages")                 \
  X(dirty_tags, "in a file's tree the tags DIRTY and WRITEBACK are where PG_dirty and PG_writeback are")               \
  X(wb_stat, "a device's counts of dirty pages and of pages under writeback = those of its files; none elsewhere")     \
  X(shadows, "a file's tree holds nrexceptional shadows, untagged; shadow_nodes = nodes that hold nothing else; sums") \
  X(lru_size, "LRU list length = its size = the node's counter")                                                       \
  X(mlocked, "PG_mlocked: a VM_LOCKED VMA maps the page; an unevictable page is PG_mlocked or its file is locked")     \
  X(lru_flags, "a page on an LRU list has PG_lru, the flags of that list, and is of its zone; off them not")           \
  X(rss, "an Mm's rss = its PTEs by kind; swapents = its swap PTEs")                                                   \
  X(table_pages, "an Mm's table pages = tables found; NR_PAGETABLE = their sum")                                       \
  X(pgd_list, "the list of top tables holds those of all Mms, and nothing else")                                       \
  X(ksm, "a merged page is mapped read-only and its node knows its frame; pages_shared, pages_sharing = a recount")    \
  X(mm_refs, "an Mm's mm_users = the tasks that have it; mm_count = 1 + OOM victims that count on it, KSM")            \
  X(oom_victim, "a task that counts on a dying mm (oom_mm) was chosen to die, and has no other mm")                    \
  X(vma_tree, "VMAs ascend, do not overlap, map_count, total_vm and locked_vm are their sums")                         \
  X(vmstat, "nr_anon_pages, nr_mapped, nr_file_pages, nr_dirty, nr_swapcached, nr_mlock, nr_shmem = a recount")        \
  X(shmem, "a memory file's counts = its pages and swap entries; with entries it is on the swaplist; the limit's sum") \
  X(isolated, "at rest no page is isolated from the LRU or counted as under writeback")                                \
  X(zspages, "nr_zspages = frames that belong to zram pools")                                                          \
  X(buffers, "PG_private: a ring of buffers of one size that covers the page, in order; all there are are in one")     \
  X(buffer_dirty, "a dirty buffer's page is dirty")                                                                    \
  X(buffer_idle, "at rest no buffer is locked, in use or under I/O")                                                   \
  X(page_lock, "at rest no page is locked or under writeback")                                                         \
  X(writable_shared, "an anonymous page mapped writable has one mapping")

// What the surveys of other rooms report under ids of their own: PageAllocator, Slab, SwapFiles.
constexpr const char* SURVEYED[] = {
    "buddy-head",
    "buddy-aligned",
    "buddy-zone",
    "buddy-merged",
    "buddy-count",
    "zone-nr-free",
    "pcp-page",
    "pcp-zone",
    "pcp-count",
    "vmstat-nr-free",
    "balloon-page",
    "balloon-count",
    "slab-list",
    "slab-freelist",
    "slab-page",
    "slab-count",
    "slab-free-objects",
    "vmstat-slab-reclaimable",
    "vmstat-slab-unreclaimable",
    "swap_bits",
    "swap_map",
    "swap_cluster",
    "swap_pages",
    "nr_swap_pages",
    "total_swap_pages",
    "swap_discard",
    "frontswap",
};
constexpr unsigned NR_SURVEYED = sizeof SURVEYED / sizeof *SURVEYED;

enum class Inv : unsigned {
#define X(id, what) id,
  WEIR_INVARIANTS(X)
#undef X
      count
};
constexpr const char* IDS[] = {
#define X(id, what) #id,
    WEIR_INVARIANTS(X)
#undef X
};
constexpr const char* WHAT[] = {
#define X(id, what) what,
    WEIR_INVARIANTS(X)  // NOLINT(bugprone-suspicious-missing-comma): a sentence may be two lines
#undef X
};

/// What the scan finds of one frame.
struct FrameCount {
  int32_t mapped = 0;      ///< PTEs
  uint8_t on_lru = 0;      ///< LRU lists it is on
  uint8_t in_tree = 0;     ///< trees it is in
  uint8_t writable = 0;    ///< some PTE lets write
  uint8_t free_state = 0;  ///< + 1 for each free block it is in, + 2 for each per-CPU list, 4 balloon, 8 quarantined
  uint8_t kernel = 0;      ///< PTEs of the kernel
  uint8_t locked = 0;      ///< some VM_LOCKED VMA maps it
};

class Scan {
 public:
  Scan(Machine& m, std::span<std::byte> scratch, VerifySink& sink) : m_(m), sink_(sink) {
    const auto frames = static_cast<size_t>(m.mem.frames.v);
    frames_ = reinterpret_cast<FrameCount*>(scratch.data());
    std::memset(static_cast<void*>(frames_), 0, frames * sizeof(FrameCount));
    auto* at = scratch.data() + frames * sizeof(FrameCount);
    for (unsigned type = 0; type < MAX_SWAPFILES; ++type) {
      const SwapInfo* si = m.swap_files.swap_info(type);
      slots_[type] = nullptr;
      if (si == nullptr) continue;
      slots_[type] = reinterpret_cast<SlotCount*>(at);
      std::memset(static_cast<void*>(at), 0, si->max * sizeof(SlotCount));
      at += si->max * sizeof(SlotCount);
    }
    WEIR_BUG_ON(at > scratch.data() + scratch.size());
  }

  struct SlotCount {
    uint16_t users = 0;
    uint8_t cached = 0;
  };

  unsigned run() {
    scan_free();
    m_.tasks.for_each([&](Task& task) {
      if (task.mm != nullptr && task.mm->owner == &task) scan_mm(*task.mm);
      const bool victim = task.memdie.load();
      expect(Inv::oom_victim,
             task.oom_mm == nullptr ? !victim || task.mm == nullptr
                                    : victim && (task.mm == nullptr || task.mm == task.oom_mm),
             static_cast<uint64_t>(task.pid), 1, 0);
    });
    scan_kernel_tables();
    check_pgd_list();
    scan_trees();
    scan_lru();
    check_frames();
    check_i_mmap();
    check_swap();
    check_ksm();
    check_vmstat();
    return broken_;
  }

 private:
  void expect(Inv inv, bool holds, uint64_t subject, uint64_t expected, uint64_t found) {
    if (holds) return;
    ++broken_;
    const auto i = static_cast<unsigned>(inv);
    sink_.broken(IDS[i], WHAT[i], subject, expected, found);
  }
  void equal(Inv inv, uint64_t subject, int64_t expected, int64_t found) {
    expect(inv, expected == found, subject, static_cast<uint64_t>(expected), static_cast<uint64_t>(found));
  }
  FrameCount& count_of(Pfn pfn) { return frames_[pfn.v]; }
  [[nodiscard]] bool is_zero_page(Pfn pfn) const {
    return m_.memory.zero_page() != nullptr && m_.mem.pfn(m_.memory.zero_page()) == pfn;
  }

  void scan_free() {
    const auto report = [](void* arg, const char* id, const char* text) {
      auto* self = static_cast<Scan*>(arg);
      ++self->broken_;
      self->sink_.broken(id, text, 0, 0, 0);
    };
    m_.pages.survey(report, this);
    m_.slab.survey(report, this);
    m_.swap_files.survey(report, this);
    for (Zone& zone : m_.node.zones) {
      if (!zone.populated()) continue;
      int64_t free = 0;
      for (unsigned order = 0; order < MAX_ORDER; ++order) {
        uint64_t blocks = 0;
        for (PageList& list : zone.free_area[order].free_list) {
          for (Page& page : list) {
            ++blocks;
            const Pfn pfn = m_.mem.pfn(page);
            expect(Inv::buddy,
                   page.test(PageFlag::buddy) && page.private_ == order && (pfn.v & ((1u << order) - 1)) == 0, pfn.v,
                   order, page.private_);
            for (uint64_t i = 0; i < (uint64_t{1} << order); ++i) frames_[pfn.v + i].free_state += 1;
          }
        }
        equal(Inv::buddy, order, static_cast<int64_t>(zone.free_area[order].nr_free), static_cast<int64_t>(blocks));
        free += static_cast<int64_t>(blocks) << order;
      }
      equal(Inv::free_count, static_cast<uint64_t>(zone.type), free, zone.nr_free.load());
      for (unsigned n = 0; n < zone.nr_pcp; ++n)
        for (PageList& list : zone.pcp[n].lists)
          for (Page& page : list) count_of(m_.mem.pfn(page)).free_state += 2;
    }
    for (int64_t i = 0; i < m_.mem.frames.v; ++i) {
      const Pfn pfn(static_cast<uint64_t>(i));
      const Page& page = m_.mem.page(pfn);
      if (page.test(PageFlag::balloon))
        for (uint64_t n = 0; n < (uint64_t{1} << page.private_); ++n) count_of(Pfn(pfn.v + n)).free_state += 4;
      else if (PageAllocator::is_quarantined(page))
        count_of(pfn).free_state += 8;
    }
  }

  // One level of an Mm's tables, the entries of a PTE table included. Returns table pages found.
  int64_t scan_level(Mm& mm, const Pte* table, unsigned shift, uint64_t base) {
    int64_t tables = 1;
    for (uint64_t i = 0; i < PTRS_PER_TABLE; ++i) {
      const Pte entry = table[i];
      if (pte_none(entry)) continue;
      const uint64_t address = base + (i << shift);
      if (shift == PAGE_SHIFT)
        scan_pte(mm, VirtAddr(address), entry);
      else
        tables += scan_level(mm, reinterpret_cast<const Pte*>(m_.mem.address(pte_pfn(entry))), shift - 9, address);
    }
    return tables;
  }

  void scan_pte(Mm& mm, VirtAddr address, Pte pte) {
    VmArea* vma = m_.vmas.vma_lookup(mm, address);
    expect(Inv::pte_in_vma, vma != nullptr, address.v, 1, 0);
    if (vma != nullptr && pte_present(pte) && pte_write(pte))
      expect(Inv::pte_rights, (vma->vm_flags & VM_WRITE) != 0, address.v, 0, pte.v);
    if (is_file_pte(pte)) {
      expect(Inv::nonlinear, vma != nullptr && (vma->vm_flags & VM_NONLINEAR) != 0, address.v, 1, pte.v);
      return;
    }
    if (!pte_present(pte)) {
      const SwpEntry entry = decode_swap_pte(pte);
      ++rss_[static_cast<unsigned>(RssKind::swapents)];
      SlotCount* slot = slot_of(entry);
      expect(Inv::swap_users, slot != nullptr, entry.val, 1, 0);
      if (slot != nullptr) ++slot->users;
      return;
    }
    const Pfn pfn = pte_pfn(pte);
    expect(Inv::pte_target, m_.mem.valid(pfn), address.v, 0, pfn.v);
    if (!m_.mem.valid(pfn)) return;
    const bool pfn_map = vma != nullptr && (vma->vm_flags & VM_PFNMAP) != 0;
    if (pte_special(pte) && !is_zero_page(pfn)) {
      expect(Inv::pfn_map, pfn_map && count_of(pfn).free_state == 0 && !m_.mem.page(pfn).test(PageFlag::lru), address.v,
             1, pte.v);
      return;
    }
    expect(Inv::pfn_map, !pfn_map || PageAnon(m_.mem.page(pfn)), address.v, 0, pte.v);
    if (is_zero_page(pfn)) {
      expect(Inv::pte_target, !pte_write(pte), address.v, 0, pte.v);
      return;
    }
    Page& page = m_.mem.page(pfn);
    FrameCount& frame = count_of(pfn);
    ++frame.mapped;
    if (pte_write(pte)) frame.writable = 1;
    if (vma != nullptr && (vma->vm_flags & VM_LOCKED) != 0) frame.locked = 1;
    if (PageAnon(page)) {
      ++rss_[static_cast<unsigned>(RssKind::anon)];
      if (vma != nullptr) {
        if (PageKsm(page)) {
          const uintptr_t node = page.mapping.load() & ~PAGE_MAPPING_KSM;
          const bool known = m_.mem.is_kernel_address(reinterpret_cast<const void*>(node)) &&
                             reinterpret_cast<const KsmStableNode*>(node)->pfn == pfn;
          expect(Inv::ksm, known && !pte_write(pte), address.v, 1, page.mapping.load());
          return;
        }
        expect(Inv::anon_mapping, m_.rmap.linked(*vma, page_anon_vma(page)), address.v, 0, pfn.v);
        equal(Inv::anon_mapping, address.v, static_cast<int64_t>(linear_page_index(*vma, address)),
              static_cast<int64_t>(page.index));
      }
    } else {
      ++rss_[static_cast<unsigned>(mm_counter(page))];
      if (vma == nullptr) return;
      if (vma->vm_file == nullptr) {
        expect(Inv::file_mapping, false, address.v, 0, page.mapping.load());
        return;
      }
      expect(Inv::file_mapping, page.mapping.load() == reinterpret_cast<uintptr_t>(&vma->vm_file->f_inode->i_data),
             address.v, 0, pfn.v);
      if ((vma->vm_flags & VM_NONLINEAR) == 0)
        equal(Inv::file_mapping, address.v, static_cast<int64_t>(linear_page_index(*vma, address)),
              static_cast<int64_t>(page.index));
      expect(Inv::pte_rights, (vma->vm_flags & VM_SHARED) != 0 || !pte_write(pte), address.v, 0, pte.v);
    }
  }

  SlotCount* slot_of(SwpEntry entry) {
    const unsigned type = swp_type(entry);
    if (type >= MAX_SWAPFILES || slots_[type] == nullptr) return nullptr;
    const SwapInfo* si = m_.swap_files.swap_info(type);
    return swp_offset(entry) < si->max ? &slots_[type][swp_offset(entry)] : nullptr;
  }

  /// Those of tasks; the reaper may have one more reference to what it was given.
  void scan_mm_refs(const Mm& mm) {
    int64_t users = 0, victims = 0;
    for (const Task& task : m_.tasks.list()) {
      if (task.mm == &mm) ++users;
      if (task.oom_mm == &mm) ++victims;
    }
    equal(Inv::mm_refs, mm.id, users, mm.mm_users.load());
    const int64_t count = mm.mm_count.load();
    const int64_t known = 1 + victims + (mm.ksm_slot != nullptr ? 1 : 0);
    expect(Inv::mm_refs, count == known || (mm.reaped_pid != 0 && count == known + 1), mm.id,
           static_cast<uint64_t>(known), static_cast<uint64_t>(count));
  }

  void scan_mm(Mm& mm) {
    scan_mm_refs(mm);
    int64_t maps = 0, pages = 0, locked = 0;
    uint64_t last_end = 0;
    for (VmArea& vma : mm.mmap) {
      expect(Inv::vma_tree, vma.vm_start.v >= last_end && vma.vm_start < vma.vm_end && vma.vm_mm == &mm, vma.vm_start.v,
             last_end, vma.vm_end.v);
      last_end = vma.vm_end.v;
      ++maps;
      pages += static_cast<int64_t>(vma.pages());
      if ((vma.vm_flags & VM_LOCKED) != 0) locked += static_cast<int64_t>(vma.pages());
      if (vma.vm_file != nullptr) {
        ++file_vmas_;
        expect(Inv::nonlinear, vma.on_nonlinear == ((vma.vm_flags & VM_NONLINEAR) != 0), vma.vm_start.v,
               vma.vm_flags & VM_NONLINEAR, vma.on_nonlinear);
        if ((vma.vm_flags & VM_NONLINEAR) != 0) continue;
        const VmaFileTree& tree = vma.vm_file->f_inode->i_data.i_mmap;
        VmArea* found = tree.iter_first(vma.vm_pgoff, vma.vm_pgoff);
        while (found != nullptr && found != &vma) found = tree.iter_next(found, vma.vm_pgoff, vma.vm_pgoff);
        expect(Inv::file_mapping, found != nullptr, vma.vm_start.v, 1, 0);
      }
    }
    equal(Inv::vma_tree, mm.id, maps, mm.map_count);
    equal(Inv::vma_tree, mm.id, pages, mm.total_vm);
    equal(Inv::vma_tree, mm.id, locked, mm.locked_vm);
    for (int64_t& n : rss_) n = 0;
    const int64_t tables = mm.pgd != nullptr ? scan_level(mm, reinterpret_cast<const Pte*>(mm.pgd), 39, 0) : 0;
    tables_ += tables;
    equal(Inv::table_pages, mm.id, tables, mm.nr_table_pages.load());
    for (const RssKind k : {RssKind::file, RssKind::anon, RssKind::swapents, RssKind::shmem})
      equal(Inv::rss, mm.id * 10 + static_cast<uint64_t>(k), rss_[static_cast<unsigned>(k)], mm.rss(k));
  }

  void scan_kernel_tables() {
    const Mm& kernel = m_.tables.init_mm();
    const int64_t tables = kernel.pgd != nullptr ? scan_kernel_level(reinterpret_cast<const Pte*>(kernel.pgd), 39) : 0;
    equal(Inv::table_pages, kernel.id, tables, kernel.nr_table_pages.load());
    tables_ += tables;
  }
  int64_t scan_kernel_level(const Pte* table, unsigned shift) {
    int64_t tables = 1;
    for (uint64_t i = 0; i < PTRS_PER_TABLE; ++i) {
      const Pte entry = table[i];
      if (pte_none(entry)) continue;
      if (shift != PAGE_SHIFT) {
        tables += scan_kernel_level(reinterpret_cast<const Pte*>(m_.mem.address(pte_pfn(entry))), shift - 9);
      } else if (pte_present(entry) && m_.mem.valid(pte_pfn(entry))) {
        ++count_of(pte_pfn(entry)).kernel;
      } else {
        expect(Inv::kernel_pte, false, i, 0, entry.v);
      }
    }
    return tables;
  }
  void check_pgd_list() {
    int64_t listed = 0, pgds = 0;
    m_.tables.for_each_pgd([&](Page& page) {
      ++listed;
      expect(Inv::pgd_list, page.test(PageFlag::table), m_.mem.pfn(page).v, 1, page.flags.load());
    });
    m_.tasks.for_each([&](Task& task) {
      if (task.mm == nullptr || task.mm->owner != &task || task.mm->pgd == nullptr) return;
      ++pgds;
      bool on_it = false;
      m_.tables.for_each_pgd([&](Page& page) { on_it |= m_.mem.page_address(page) == task.mm->pgd; });
      expect(Inv::pgd_list, on_it, task.mm->id, 1, 0);
    });
    equal(Inv::pgd_list, 0, pgds, listed);
  }
  void check_i_mmap() {
    int64_t linked = 0;
    const auto count = [&](Inode& inode) {
      const VmaFileTree& tree = inode.i_data.i_mmap;
      for (VmArea* vma = tree.first(); vma != nullptr; vma = tree.next(vma)) ++linked;
      linked += static_cast<int64_t>(inode.i_data.i_mmap_nonlinear.size());
    };
    m_.files.for_each_inode(count);
    m_.shmem.for_each_inode(count);
    equal(Inv::file_mapping, 0, file_vmas_, linked);
  }

  /// Returns the swap entries in it: a memory file's.
  uint64_t scan_tree(AddressSpace& mapping, unsigned type, bool swap) {
    uint64_t found = 0, entries = 0;
    mapping.page_tree.walk([&](uint64_t index, void* item, unsigned tags) {
      if (is_exceptional_entry(item)) {
        ++entries;
        if (!mapping.no_writeback_tags) {
          expect(Inv::shadows, tags == 0, index, 0, tags);
          return;
        }
        const SwpEntry entry{exceptional_value(item)};
        SlotCount* slot = slot_of(entry);
        expect(Inv::swap_users, slot != nullptr, entry.val, 1, 0);
        if (slot != nullptr) ++slot->users;
        return;
      }
      Page& page = *static_cast<Page*>(item);
      const Pfn pfn = m_.mem.pfn(page);
      FrameCount& frame = count_of(pfn);
      ++frame.in_tree;
      ++file_pages_;
      ++found;
      if (swap) ++swap_cached_;
      if (swap) {
        const SwpEntry entry{page.private_};
        expect(Inv::swap_cache_page,
               PageSwapCache(page) && PageSwapBacked(page) && entry == m_.swap_cache.entry_at(type, index), pfn.v,
               index, page.private_);
        if (SlotCount* slot = slot_of(entry)) ++slot->cached;
      } else {
        expect(Inv::page_cache_page,
               page.mapping.load() == reinterpret_cast<uintptr_t>(&mapping) && page.index == index, pfn.v, index,
               page.index);
        if (PageSwapBacked(page)) ++shmem_;
        if (mapping.no_writeback_tags) return;
        if (page.test(PageFlag::dirty)) ++dirty_;
        const RadixTree& tree = mapping.page_tree;
        expect(Inv::dirty_tags, tree.tag_get(index, PAGECACHE_TAG_DIRTY) == page.test(PageFlag::dirty), pfn.v,
               page.test(PageFlag::dirty), index);
        expect(Inv::dirty_tags, tree.tag_get(index, PAGECACHE_TAG_WRITEBACK) == page.test(PageFlag::writeback), pfn.v,
               page.test(PageFlag::writeback), index);
      }
    });
    equal(swap ? Inv::swap_cache_page : Inv::page_cache_page, 0, static_cast<int64_t>(found),
          static_cast<int64_t>(mapping.nrpages));
    if (!swap && !mapping.no_writeback_tags)
      equal(Inv::shadows, mapping.host_ino, static_cast<int64_t>(entries), static_cast<int64_t>(mapping.nrexceptional));
    return entries;
  }

  /// The nodes of a file's tree that hold shadows only.
  int64_t scan_shadow_nodes(const AddressSpace& mapping) {
    int64_t nodes = 0;
    mapping.page_tree.walk_nodes([&](const RadixTreeNode& node) {
      nodes += node.shift == 0 && node.marks[RadixTreeNode::PRESENT] == node.exceptional ? 1 : 0;
    });
    equal(Inv::shadows, mapping.host_ino, nodes, static_cast<int64_t>(mapping.shadow_nodes));
    return nodes;
  }

  void scan_trees() {
    m_.swap_cache.for_each_space([&](unsigned type, AddressSpace& space) { scan_tree(space, type, true); });
    int64_t shadow_nodes = 0;
    m_.files.for_each_inode([&](Inode& inode) {
      scan_tree(inode.i_data, 0, false);
      shadow_nodes += scan_shadow_nodes(inode.i_data);
    });
    m_.writeback.for_each_wb([&](const BdiWriteback& wb) {
      int64_t dirty = 0, writeback = 0;
      m_.files.for_each_inode([&](Inode& inode) {
        if (inode.i_data.wb != &wb) return;
        inode.i_data.page_tree.walk([&](uint64_t, const void*, unsigned tags) {
          dirty += tags >> PAGECACHE_TAG_DIRTY & 1;
          writeback += tags >> PAGECACHE_TAG_WRITEBACK & 1;
        });
      });
      equal(Inv::wb_stat, 0, dirty, wb.reclaimable.load());
      equal(Inv::wb_stat, 0, writeback, wb.writeback.load());
    });
    equal(Inv::shadows, 0, shadow_nodes, m_.workingset.shadow_nodes().v);
    int64_t used = 0;
    m_.shmem.for_each_inode([&](ShmemInode& inode) {
      const auto entries = static_cast<int64_t>(scan_tree(inode.i_data, 0, false));
      equal(Inv::shmem, inode.ino, entries, static_cast<int64_t>(inode.swapped));
      // Reclaim drops pages that were only read, and the file learns of it at its next count.
      const auto pages = static_cast<int64_t>(inode.i_data.nrpages);
      expect(Inv::shmem, static_cast<int64_t>(inode.alloced) >= entries + pages, inode.ino,
             static_cast<uint64_t>(entries + pages), inode.alloced);
      expect(Inv::shmem, entries == 0 || inode.on_swaplist, inode.ino, 1, 0);
      if (inode.limited) used += static_cast<int64_t>(inode.alloced);
    });
    equal(Inv::shmem, 0, used, m_.shmem.used_blocks().v);
  }

  void scan_lru() {
    int64_t total[NR_LRU_LISTS] = {};
    const auto scan = [&](LruVec& lruvec) {
      for (unsigned l = 0; l < NR_LRU_LISTS; ++l) {
        const auto list = static_cast<LruList>(l);
        int64_t length = 0;
        for (Page& page : lruvec.lists[l]) {
          ++length;
          ++count_of(m_.mem.pfn(page)).on_lru;
          const bool its_list =
              page.test(PageFlag::lru) && m_.lru.page_lru(page) == list && &m_.lru.lruvec_of(page) == &lruvec;
          expect(Inv::lru_flags, its_list, m_.mem.pfn(page).v, l, page.flags.load());
        }
        equal(Inv::lru_size, l, length, lruvec.size[l].v);
        total[l] += length;
      }
    };
    scan(m_.node.lruvec);
    for (Zone& zone : m_.node.zones) scan(zone.lruvec);
    for (unsigned l = 0; l < NR_LRU_LISTS; ++l) {
      const auto stat = static_cast<NodeStat>(static_cast<unsigned>(NodeStat::nr_inactive_anon) + l);
      equal(Inv::lru_size, l, total[l], m_.vmstat.node_page_state(stat));
    }
  }

  /// What it finds are PTEs that map the page: as many as the scan found are the same ones.
  [[nodiscard]] int64_t found_by_rmap(const Page& page) const {
    int64_t found = 0;
    m_.rmap.for_each_mapping(
        page, [](VmArea&, VirtAddr, void* arg) { return ++*static_cast<int64_t*>(arg), true; }, &found);
    return found;
  }

  // A frame of the kernel's, whatever for. Of a block only the first frame says so.
  [[nodiscard]] static bool is_kernels(const Page& page) {
    return page.test(PageFlag::slab) || page.test(PageFlag::table) || page.test(PageFlag::vmalloc) ||
           page.test(PageFlag::zram) || page.test(PageFlag::reserved) || page.test(PageFlag::kernel_place);
  }

  /// The page has PG_private.
  void check_buffers(const Page& page) {
    const uint64_t pfn = m_.mem.pfn(page).v;
    const BufferHead* head = page_buffers(page);
    const BufferHead* bh = head;
    uint32_t covered = 0;
    do {
      const bool known = m_.mem.is_kernel_address(bh);
      expect(Inv::buffers,
             known && bh->b_page == &page && bh->b_size == head->b_size && bh->b_offset == covered && bh->b_size != 0,
             pfn, covered, known ? bh->b_offset : 0);
      if (!known || bh->b_size == 0) return;
      ++buffers_;
      covered += bh->b_size;
      expect(Inv::buffer_dirty, !bh->test(BufferFlag::dirty) || page.test(PageFlag::dirty), pfn, 1, bh->b_offset);
      constexpr uint32_t BUSY = BufferHead::bit(BufferFlag::lock) | BufferHead::bit(BufferFlag::async_read) |
                                BufferHead::bit(BufferFlag::async_write);
      expect(Inv::buffer_idle, bh->b_count.load() == 0 && (bh->b_state.load() & BUSY) == 0, pfn, 0, bh->b_state.load());
      bh = bh->b_this_page;
    } while (bh != head && covered < PAGE_SIZE);
    expect(Inv::buffers, bh == head && covered == PAGE_SIZE, pfn, PAGE_SIZE, covered);
  }

  void check_frames() {
    bool in_kernel_block = false;  // the frame belongs to a block whose first frame is the kernel's
    for (int64_t i = 0; i < m_.mem.frames.v; ++i) {
      const Pfn pfn(static_cast<uint64_t>(i));
      Page& page = m_.mem.page(pfn);
      FrameCount& frame = count_of(pfn);
      const bool used = frame.mapped != 0 || frame.on_lru != 0 || frame.in_tree != 0;
      expect(Inv::kernel_pte, frame.kernel == (page.test(PageFlag::vmalloc) ? 1 : 0), pfn.v,
             page.test(PageFlag::vmalloc), frame.kernel);
      if (page.test(PageFlag::zram)) ++zspages_;
      if (page.test(PageFlag::mlocked)) ++mlocked_;
      if (frame.free_state != 0) {
        const bool one =
            frame.free_state == 1 || frame.free_state == 2 || frame.free_state == 4 || frame.free_state == 8;
        expect(Inv::frame_state, one && page_count(page) == 0 && !used && frame.kernel == 0, pfn.v, frame.free_state,
               page.flags.load());
        in_kernel_block = false;
        continue;
      }
      if (!used) {
        const bool head = page_count(page) > 0 || is_kernels(page);
        const auto pagevecs = static_cast<int32_t>(m_.lru.in_pagevecs(page));
        if (head && is_kernels(page) && pagevecs == 0) {
          in_kernel_block = true;
        } else if (head) {
          // A user page between homes: only pagevecs have it. The zero page is held by the machine.
          in_kernel_block = false;
          // One that has left its file may have buffers.
          const int32_t buffers = page.test(PageFlag::private_) ? 1 : 0;
          if (buffers != 0) check_buffers(page);
          if (!is_zero_page(pfn))
            expect(Inv::frame_lost, page_count(page) == pagevecs + buffers, pfn.v, static_cast<uint64_t>(pagevecs),
                   static_cast<uint64_t>(page_count(page)));
        } else {
          expect(Inv::frame_lost, in_kernel_block && page.flags.load() == 0, pfn.v, 0, page.flags.load());
        }
        expect(Inv::lru_flags, !page.test(PageFlag::lru), pfn.v, 0, page.flags.load());
        continue;
      }
      in_kernel_block = false;
      const auto pagevecs = static_cast<int32_t>(m_.lru.in_pagevecs(page));
      equal(Inv::mapcount, pfn.v, frame.mapped, page_mapcount(page));
      // Forks of a merged page's mappings are found again by the next scan.
      if (frame.mapped > 0 && !PageKsm(page)) equal(Inv::rmap, pfn.v, frame.mapped, found_by_rmap(page));
      if (page.test(PageFlag::private_)) check_buffers(page);
      const int32_t explained = frame.mapped + frame.in_tree + pagevecs + (page.test(PageFlag::private_) ? 1 : 0);
      expect(Inv::refcount, page_count(page) == explained, pfn.v, static_cast<uint64_t>(explained),
             static_cast<uint64_t>(page_count(page)));
      expect(Inv::lru_flags, frame.on_lru == (page.test(PageFlag::lru) ? 1 : 0), pfn.v, page.test(PageFlag::lru),
             frame.on_lru);
      expect(Inv::page_lock, !page.test(PageFlag::locked) && !page.test(PageFlag::writeback), pfn.v, 0,
             page.flags.load());
      expect(Inv::swap_cache_page, frame.in_tree <= 1 && (!PageSwapCache(page) || frame.in_tree == 1), pfn.v, 1,
             frame.in_tree);
      expect(Inv::mlocked, !page.test(PageFlag::mlocked) || frame.locked != 0, pfn.v, 1, frame.locked);
      expect(Inv::mlocked, !page.test(PageFlag::unevictable) || !Lru::page_evictable(page), pfn.v, 1, 0);
      if (frame.mapped > 0) {
        if (PageAnon(page))
          ++anon_;
        else
          ++mapped_file_;
        if (PageAnon(page) && frame.writable != 0)
          expect(Inv::writable_shared, frame.mapped == 1, pfn.v, 1, static_cast<uint64_t>(frame.mapped));
      }
    }
  }

  void check_swap() {
    int64_t left = 0;
    for (unsigned type = 0; type < MAX_SWAPFILES; ++type) {
      SwapInfo* si = m_.swap_files.swap_info(type);
      if (si == nullptr) continue;
      uint64_t used = 0, held = 0;
      for (uint64_t offset = 1; offset < si->max; ++offset) {
        const SwpEntry entry = swp_entry(type, offset);
        const uint16_t map = m_.swap_files.swap_map_value(entry);
        const SlotCount& slot = slots_[type][offset];
        if (map == m_.swap_files.bad_value()) {
          expect(Inv::swap_users, slot.users == 0 && slot.cached == 0, entry.val, 0, slot.users);
          continue;
        }
        if (map != 0) ++used;
        if (m_.swap_files.cache_is_a_user()) {
          equal(Inv::swap_users, entry.val, map, slot.users + slot.cached);
          continue;
        }
        equal(Inv::swap_users, entry.val, static_cast<int64_t>(m_.swap_files.swp_swapcount(entry)), slot.users);
        if ((map & SWAP_HAS_CACHE) != 0 && slot.cached == 0) ++held;
        expect(Inv::swap_has_cache, slot.cached == 0 || (map & SWAP_HAS_CACHE) != 0, entry.val, 1, map);
      }
      equal(Inv::swap_has_cache, type, static_cast<int64_t>(m_.swap_slots.held(type)), static_cast<int64_t>(held));
      equal(Inv::swap_inuse, type, static_cast<int64_t>(used), static_cast<int64_t>(si->inuse_pages));
      left += static_cast<int64_t>(si->pages - used);
    }
    equal(Inv::swap_inuse, MAX_SWAPFILES, left, m_.swap_files.nr_swap_pages());
  }

  void check_ksm() {
    int64_t shared = 0, sharing = 0;
    m_.ksm.recount(shared, sharing);
    equal(Inv::ksm, 0, shared, m_.ksm.stats().pages_shared);
    equal(Inv::ksm, 1, sharing, m_.ksm.stats().pages_sharing);
  }

  void check_vmstat() {
    equal(Inv::table_pages, ~uint64_t{0}, tables_, m_.vmstat.node_page_state(NodeStat::nr_page_table_pages));
    const auto stat = [&](NodeStat s, int64_t found) {
      equal(Inv::vmstat, static_cast<uint64_t>(s), found, m_.vmstat.node_page_state(s));
    };
    stat(NodeStat::nr_anon_pages, anon_);
    stat(NodeStat::nr_mapped, mapped_file_);
    stat(NodeStat::nr_file_pages, file_pages_);
    stat(NodeStat::nr_dirty, dirty_);
    stat(NodeStat::nr_swapcached, swap_cached_);
    stat(NodeStat::nr_mlock, mlocked_);
    stat(NodeStat::nr_shmem, shmem_);
    for (const NodeStat s : {NodeStat::nr_isolated_anon, NodeStat::nr_isolated_file, NodeStat::nr_writeback})
      equal(Inv::isolated, static_cast<uint64_t>(s), 0, m_.vmstat.node_page_state(s));
    equal(Inv::buffers, 0, buffers_, m_.buffers.nr_buffer_heads());
    equal(Inv::zspages, 0, zspages_, m_.vmstat.node_page_state(NodeStat::nr_zspages));
  }

  Machine& m_;
  VerifySink& sink_;
  FrameCount* frames_ = nullptr;
  SlotCount* slots_[MAX_SWAPFILES];
  int64_t rss_[static_cast<unsigned>(RssKind::count)] = {};
  int64_t tables_ = 0, file_pages_ = 0, swap_cached_ = 0, dirty_ = 0, anon_ = 0, mapped_file_ = 0;
  int64_t file_vmas_ = 0, zspages_ = 0, mlocked_ = 0, shmem_ = 0, buffers_ = 0;
  unsigned broken_ = 0;
};

}  // namespace

size_t Machine::verify_scratch_bytes() {
  size_t bytes = static_cast<size_t>(mem.frames.v) * sizeof(FrameCount);
  for (unsigned type = 0; type < MAX_SWAPFILES; ++type)
    if (const SwapInfo* si = swap_files.swap_info(type)) bytes += si->max * sizeof(Scan::SlotCount);
  return bytes;
}

unsigned Machine::verify(std::span<std::byte> scratch, VerifySink& sink) { return Scan(*this, scratch, sink).run(); }

unsigned Machine::invariant_count() { return static_cast<unsigned>(Inv::count) + NR_SURVEYED; }
const char* Machine::invariant_id(unsigned i) {
  constexpr auto own = static_cast<unsigned>(Inv::count);
  if (i < own) return IDS[i];
  return i < invariant_count() ? SURVEYED[i - own] : "";
}

}  // namespace weir
