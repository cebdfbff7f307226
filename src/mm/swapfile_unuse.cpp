// src/mm/swapfile_unuse.cpp: areas come and go. See swapfile_unuse.hpp
#include "mm/swapfile_unuse.hpp"

#include <algorithm>
#include <cstring>

namespace weir {

namespace {

constexpr char SWAP_MAGIC[11] = "SWAPSPACE2";

// The header of a tagged simulation: 24 bits say that it is one ("SWP"), 40 bits are the last page.
constexpr uint64_t TAG_MAGIC = 0x535750;
constexpr unsigned TAG_MAGIC_SHIFT = 40;
constexpr uint64_t TAG_LAST_PAGE_MASK = (uint64_t{1} << TAG_MAGIC_SHIFT) - 1;

constexpr uint64_t make_tag(uint64_t last_page) { return TAG_MAGIC << TAG_MAGIC_SHIFT | last_page; }

/// What an entry can address: its offset shares 64 bits of a PTE with nine others.
constexpr uint64_t MAX_SWAP_OFFSET = (uint64_t{1} << (64 - 9)) - 1;

int memcmp(const char* a, const char* b, size_t n) {
  WEIR_FLOW(n);
  return std::memcmp(a, b, n);
}

}  // namespace

SwapOn::SwapOn(SwapFiles& swap, SwapCache& cache, SwapSlots& slots, VmStat& vmstat)
    : swap_(swap), cache_(cache), slots_(slots), vmstat_(vmstat) {}

// One page, now.
Result<void> SwapOn::transfer_header(BlockDevice& device, BioOp op, const Content& content) {
  if (device.synchronous()) return device.rw_page(op, 0, content);
  struct Wait {
    Bio bio;
    Completion done;
  } wait;
  wait.bio.op = op;
  wait.bio.content = content;
  wait.bio.owner = &wait;
  wait.bio.end_io = [](Bio& bio) { static_cast<Wait*>(bio.owner)->done.complete(); };
  device.submit_bio(wait.bio);
  wait.done.wait();
  if (wait.bio.status != Errno::ok) return wait.bio.status;
  return {};
}

/// The device is there and has room for an area.
Result<BlockDevice*> SwapOn::file_open_name(BlockDevice& device) {
  WEIR_FLOW();
  if (device.capacity() <= PageCount(0)) return Errno::inval;
  return &device;
}

Result<void> SwapOn::claim_swapfile(SwapInfo& si, BlockDevice& device) {
  WEIR_FLOW(si.type);
  for (unsigned type = 0; type < MAX_SWAPFILES; ++type) {
    const SwapInfo* other = swap_.swap_info(type);
    if (other != nullptr && other->bdev == &device) return Errno::busy;
  }
  si.bdev = &device;
  return {};
}

/// Page 0 of the device, in a frame of its own: kmap'ed, to be given back by kunmap and put_page.
Result<Page*> SwapOn::read_mapping_page(BlockDevice& device, Content& content) {
  WEIR_FLOW();
  Page* page = swap_.pages().alloc_page(GFP_HIGHUSER | __GFP_ZERO);
  if (page == nullptr) return Errno::nomem;
  content = cache_.mmu().kmap(*page);
  if (const Result<void> read = transfer_header(device, BioOp::read, content); !read) {
    cache_.mmu().kunmap(*page);
    cache_.filemap().lru().put_page(*page);
    return read.error();
  }
  return page;
}

Result<void> SwapOn::mkswap(BlockDevice& device) {
  const auto pages = static_cast<uint64_t>(device.capacity().v);
  if (device.capacity().v < MIN_SWAP_PAGES) return Errno::inval;
  ScopedLock guard(swapon_mutex_);
  for (unsigned type = 0; type < MAX_SWAPFILES; ++type) {
    const SwapInfo* si = swap_.swap_info(type);
    if (si != nullptr && si->bdev == &device) return Errno::busy;
  }
  Page* page = swap_.pages().alloc_page(GFP_HIGHUSER | __GFP_ZERO);
  if (page == nullptr) return Errno::nomem;
  const Content content = cache_.mmu().kmap(*page);
  const uint64_t last_page = std::min<uint64_t>(pages - 1, ~uint32_t{0});
  if (content.tagged()) {
    *content.tag = make_tag(std::min(pages - 1, TAG_LAST_PAGE_MASK));
  } else {
    auto& header = *reinterpret_cast<SwapHeader*>(content.bytes);
    header.version = 1;
    header.last_page = static_cast<uint32_t>(last_page);
    std::memcpy(header.magic, SWAP_MAGIC, sizeof header.magic);
  }
  const Result<void> written = transfer_header(device, BioOp::write, content);
  cache_.mmu().kunmap(*page);
  cache_.filemap().lru().put_page(*page);
  if (!written) return Errno::io;
  return {};
}

Result<SwapOn::HeaderInfo> SwapOn::read_swap_header(BlockDevice& device, const Content& content) {
  WEIR_FLOW();
  HeaderInfo info;
  uint64_t last_page = 0;
  if (content.tagged()) {
    if (*content.tag >> TAG_MAGIC_SHIFT != TAG_MAGIC) {
      LogLine() << "Unable to find swap-space signature";
      return Errno::inval;
    }
    last_page = *content.tag & TAG_LAST_PAGE_MASK;
  } else {
    auto& header = *reinterpret_cast<SwapHeader*>(content.bytes);
    if (memcmp(header.magic, SWAP_MAGIC, sizeof header.magic) != 0) {
      LogLine() << "Unable to find swap-space signature";
      return Errno::inval;
    }
    // Made on a machine of the other byte order.
    if (header.version == __builtin_bswap32(1)) {
      header.version = 1;
      header.last_page = __builtin_bswap32(header.last_page);
      header.nr_badpages = __builtin_bswap32(header.nr_badpages);
      if (header.nr_badpages > MAX_SWAP_BADPAGES) return Errno::inval;
      for (uint32_t i = 0; i < header.nr_badpages; ++i) header.badpages[i] = __builtin_bswap32(header.badpages[i]);
    }
    if (header.version != 1) {
      LogLine() << "Unable to handle swap header version " << header.version;
      return Errno::inval;
    }
    last_page = header.last_page;
    if (header.nr_badpages > MAX_SWAP_BADPAGES) return Errno::inval;
    info.nr_badpages = header.nr_badpages;
    info.badpages = header.badpages;
  }
  if (last_page == 0) {
    LogLine() << "Empty swap-file";
    return Errno::inval;
  }
  info.maxpages = std::min(last_page, MAX_SWAP_OFFSET) + 1;
  if (info.maxpages <= last_page)
    LogLine() << "Truncating oversized swap area, only using " << info.maxpages << " of " << last_page + 1 << " pages";
  const auto capacity = static_cast<uint64_t>(device.capacity().v);
  if (capacity < info.maxpages) {
    LogLine() << "Swap area shorter than signature indicates";
    return Errno::inval;
  }
  for (uint32_t i = 0; i < info.nr_badpages; ++i)
    if (info.badpages[i] == 0 || info.badpages[i] > last_page) return Errno::inval;
  return info;
}

void SwapOn::print_added(const SwapInfo& si) {
  LogLine() << "Adding " << (si.pages << (PAGE_SHIFT - 10)) << "k swap on " << si.bdev->name()
            << ".  Priority:" << int32_t{si.prio} << ((si.flags & SWP_SOLIDSTATE) != 0 ? " SS" : "")
            << ((si.flags & SWP_DISCARDABLE) != 0 ? "D" : "") << ((si.flags & SWP_AREA_DISCARD) != 0 ? "s" : "")
            << ((si.flags & SWP_PAGE_DISCARD) != 0 ? "c" : "");
}

/// What of the flags the device can do.
void SwapOn::setup_discard(SwapInfo& si, uint32_t flags) {
  if ((flags & SWAP_FLAGS_VALID) == 0 || !si.bdev->can_discard()) return;
  uint32_t wanted = SWP_DISCARDABLE;
  const bool both = (flags & (SWAP_FLAG_DISCARD_ONCE | SWAP_FLAG_DISCARD_PAGES)) == 0;
  if (both || (flags & SWAP_FLAG_DISCARD_ONCE) != 0) wanted |= SWP_AREA_DISCARD;
  // By clusters, so only where there are any.
  if (si.cluster_info && (both || (flags & SWAP_FLAG_DISCARD_PAGES) != 0)) wanted |= SWP_PAGE_DISCARD;
  si.flags.fetch_or(wanted, std::memory_order_release);
}

/// All of the area but the header. In pieces: others share the device.
void SwapOn::discard_swap(SwapInfo& si) {
  WEIR_FLOW(si.type);
  constexpr uint64_t PIECE = 64 * SWAPFILE_CLUSTER;
  for (uint64_t first = 1; first < si.max; first += PIECE)
    swap_.discard_slots(si, first, std::min(PIECE, si.max - first));
}

Result<unsigned> SwapOn::swapon(BlockDevice& device, int prio, uint32_t flags) {
  WEIR_FLOW(prio, flags);
  if (prio < SWAP_PRIO_AUTO || prio > SWAP_PRIO_MAX || (flags & ~SWAP_FLAGS_VALID) != 0) return Errno::inval;
  ScopedLock guard(swapon_mutex_);
  Result<SwapInfo*> got = swap_.alloc_swap_info();
  if (!got) return got.error();
  SwapInfo& si = **got;
  const auto give_up = [&](Errno why) {
    swap_.release_swap_info(si);
    return why;
  };
  INIT_WORK(si.discard_work.work, SwapFiles::swap_discard_work);
  if (const Result<BlockDevice*> opened = file_open_name(device); !opened) return give_up(opened.error());
  if (const Result<void> claimed = claim_swapfile(si, device); !claimed) return give_up(claimed.error());
  Content content;
  Result<Page*> page = read_mapping_page(device, content);
  if (!page) return give_up(page.error() == Errno::nomem ? Errno::nomem : Errno::io);
  const Result<void> made = [&]() -> Result<void> {
    Result<HeaderInfo> header = read_swap_header(device, content);
    if (!header) return header.error();
    si.flags.fetch_or(SWP_BLKDEV | (device.nonrotational() && swap_.has_clusters() ? SWP_SOLIDSTATE : 0u),
                      std::memory_order_release);
    const Result<void> map = swap_.setup_swap_map(si, header->maxpages, header->badpages, header->nr_badpages);
    if (map.error() == Errno::inval) LogLine() << "Empty swap-file";
    if (!map) return map.error();
    return cache_.add_area(si.type, si.max);
  }();
  cache_.mmu().kunmap(**page);
  cache_.filemap().lru().put_page(**page);
  if (!made) return give_up(made.error());
  setup_discard(si, flags);
  if ((si.flags & SWP_AREA_DISCARD) != 0) discard_swap(si);
  // Without the kthread whoever needs a cluster discards it.
  if ((si.flags & SWP_PAGE_DISCARD) != 0 && engine_thread().world != nullptr) (void)swap_.start_discard(world());
  swap_.frontswap().init(si.type, si.max);
  swap_.enable_swap_info(si, prio);
  slots_.reenable_swap_slots_cache();
  print_added(si);
  return si.type;
}

/// Could `pages` more be had, if what can go went? Linux: __vm_enough_memory, its guess.
bool SwapOn::vm_enough_memory(uint64_t pages) const {
  const PageCount have = swap_.pages().nr_free_pages() + PageCount(vmstat_.node_page_state(NodeStat::nr_file_pages)) -
                         PageCount(vmstat_.node_page_state(NodeStat::nr_swapcached)) -
                         PageCount(vmstat_.node_page_state(NodeStat::nr_shmem)) + PageCount(swap_.nr_swap_pages()) -
                         swap_.pages().totalreserve_pages();
  return have.v > static_cast<int64_t>(pages);
}

Result<void> SwapOn::swapoff(unsigned type) {
  WEIR_FLOW(type);
  ScopedLock guard(swapon_mutex_);
  SwapInfo* si = swap_.swap_info(type);
  if (si == nullptr) return Errno::inval;
  if (!vm_enough_memory(si->pages)) return Errno::nomem;
  const int prio = si->prio;
  swap_.disable_swap_info(*si);
  slots_.disable_swap_slots_cache();
  Task* task = current_task();
  // Who asks for so much memory is the first to go when there is none.
  if (task != nullptr) task->oom_origin.store(true, std::memory_order_release);
  const Result<void> unused = try_to_unuse(*si);
  if (task != nullptr) task->oom_origin.store(false, std::memory_order_release);
  if (!unused) {
    swap_.reinsert_swap_info(*si, prio);
    slots_.reenable_swap_slots_cache();
    LogLine() << "swapoff: " << si->bdev->name() << " stays in use: " << errno_name(unused.error());
    return unused.error();
  }
  swap_.flush_discard(*si);
  swap_.frontswap().invalidate_area(type);
  cache_.remove_area(type);
  swap_.release_swap_info(*si);
  for (unsigned other = 0; other < MAX_SWAPFILES; ++other) {
    if (swap_.swap_info(other) == nullptr) continue;
    slots_.reenable_swap_slots_cache();
    break;
  }
  return {};
}

// ---- Bringing slots back --------------------------------------------------------------------------------------------

bool SwapOn::unuse_pte(VmArea& vma, VirtAddr address, Pte* ptep, SwpEntry entry, Page& page) {
  WEIR_FLOW(address, entry);
  Mm& mm = *vma.vm_mm;
  mm.dec_mm_counter(RssKind::swapents);
  mm.inc_mm_counter(RssKind::anon);
  PageAllocator::get_page(page);
  // Old: nobody has asked for it. Hardware that keeps no old pages learns of it at the next access.
  Pte pte = pte_mkold(mk_pte(swap_.pages().mem().pfn(page), vma));
  if (is_soft_dirty(Pte{__atomic_load_n(&ptep->v, __ATOMIC_RELAXED)})) pte = Pte{pte.v | _PAGE_SOFT_DIRTY};
  if (!cache_.mmu().caps().has_write_protect) pte = maybe_mkwrite(pte, vma);
  if (PageSwapCache(page)) {
    rmap_->page_add_anon_rmap(page, vma, address);
  } else {  // a copy
    rmap_->page_add_new_anon_rmap(page, vma, address);
    cache_.filemap().lru().lru_cache_add_active_or_unevictable(page, vma);
  }
  tables_->set_pte_at(mm, address, ptep, pte);
  swap_.swap_free(entry);
  return true;
}

bool SwapOn::unuse_pte_range(VmArea& vma, VirtAddr start, VirtAddr end, SwpEntry entry, Page& page) {
  const Pte wanted = swp_entry_to_pte(entry);
  Mm& mm = *vma.vm_mm;
  bool merged = false;
  for (VirtAddr a = tables_->next_table(mm, start, end); a < end; a = tables_->next_table(mm, a, end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, end);
    {
      PteLock first = tables_->pte_offset_map_lock(mm, a);
      for (Pte* pte = first.get(); a < stop; a = a + PAGE_SIZE, ++pte) {
        if (without_soft_dirty(Pte{__atomic_load_n(&pte->v, __ATOMIC_RELAXED)}) != wanted) continue;
        if (mm.ksm_slot == nullptr) return unuse_pte(vma, a, pte, entry, page);
        merged = true;
        break;
      }
    }
    if (merged) return unuse_merged_pte(vma, a, entry, page);
    if (engine_thread().world != nullptr) world().cond_resched();
  }
  return false;
}

/// The slot may be shared by address spaces that have nothing else in common (KSM): then each gets a page of its own.
bool SwapOn::unuse_merged_pte(VmArea& vma, VirtAddr address, SwpEntry entry, Page& page) {
  Page* fitting = rmap_->ksm()->ksm_might_need_to_copy(page, vma, address);
  if (fitting == nullptr) return false;
  PteLock pte = tables_->pte_offset_map_lock(*vma.vm_mm, address);
  const bool there = pte && without_soft_dirty(*pte) == swp_entry_to_pte(entry);
  if (there) (void)unuse_pte(vma, address, pte.get(), entry, *fitting);
  pte.unlock();
  if (fitting != &page) {
    cache_.filemap().unlock_page(*fitting);
    cache_.filemap().lru().put_page(*fitting);
  }
  return there;
}

/// An entry stands at most once in an address space, unless its page was moved there twice: one PTE at a time.
bool SwapOn::unuse_vma(VmArea& vma, SwpEntry entry, Page& page) {
  WEIR_FLOW(vma, entry);
  // Mapped somewhere already: then it can lie at one address only.
  if (PageAnon(page) && vma.vm_mm->ksm_slot == nullptr) {
    const VirtAddr address = Rmap::vma_address(page, vma);
    if (address == VirtAddr(~uint64_t{0})) return false;
    return unuse_pte_range(vma, address, address + PAGE_SIZE, entry, page);
  }
  return unuse_pte_range(vma, vma.vm_start, vma.vm_end, entry, page);
}

/// Page locked; it may be unlocked for a while. True: a PTE of mm had the entry.
bool SwapOn::unuse_mm(Mm& mm, SwpEntry entry, Page& page) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  WEIR_FLOW(mm, entry);
  WEIR_STATE(unuse, mm.id, entry, 0);
  if (!mm.mmap_sem.down_read_trylock()) {
    // mmap_sem comes before the page lock.
    cache_.filemap().lru().activate_page(page);
    cache_.filemap().unlock_page(page);
    mm.mmap_sem.down_read();
    cache_.filemap().lock_page(page);
  }
  bool found = false;
  // While the lock was gone somebody may have taken the page out of the cache: then the slot has no user any more.
  if (PageSwapCache(page) && page.private_ == entry.val)
    for (VmArea& vma : mm.mmap)
      if (vma.anon_vma != nullptr && unuse_vma(vma, entry, page)) {
        found = true;
        break;
      }
  mm.mmap_sem.up_read();
  // Not to leave again at once, for another area.
  if (found) cache_.filemap().lru().activate_page(page);
  return found;
}

/// One slot. `start_mm`, held, is where the last one was found: neighbours in an area are often neighbours in memory.
Result<void> SwapOn::unuse_slot(SwpEntry entry, Mm*& start_mm) {
  Filemap& filemap = cache_.filemap();
  // The last user of an Mm takes its mmap_sem, which comes before the page lock.
  const auto put = [&](Page& locked, Mm& mm) {
    filemap.unlock_page(locked);
    spaces_->mmput(mm);
    filemap.lock_page(locked);
  };
  Page* page = cache_.read_swap_cache_async(entry, GFP_HIGHUSER_MOVABLE);
  if (page == nullptr) {
    // Free by now, or on its way to being: the next look says.
    if (swap_.swp_swapcount(entry) == 0) return {};
    return Errno::nomem;
  }
  filemap.lock_page(*page);
  // A read that failed leaves a slot with users as it is: what the device may yet give back is not given up.
  Result<void> done;
  if (PageSwapCache(*page) && page->private_ == entry.val) {
    filemap.wait_on_page_writeback(*page);
    if (!page->test(PageFlag::uptodate) && cache_.slot_users(entry, *page) != 0) done = Errno::io;
    if (done && shmem_ != nullptr && swap_.may_be_shmem(entry)) shmem_->shmem_unuse(entry, *page);
    if (done && spaces_ != nullptr) {
      if (start_mm != &tables_->init_mm()) unuse_mm(*start_mm, entry, *page);
      Mm* prev = nullptr;
      while (cache_.slot_users(entry, *page) != 0 && !fatal_signal_pending()) {
        Mm* mm = swap_.mmlist_next(prev);
        if (prev != nullptr) put(*page, *prev);
        prev = mm;
        if (mm == nullptr) break;
        if (mm == start_mm || !unuse_mm(*mm, entry, *page)) continue;
        spaces_->mmget(*mm);
        put(*page, *start_mm);
        start_mm = mm;
      }
      if (prev != nullptr) put(*page, *prev);
    }
    if (PageSwapCache(*page) && page->private_ == entry.val && cache_.page_swapcount(*page) == 0) {
      filemap.wait_on_page_writeback(*page);
      page->set(PageFlag::dirty);
      cache_.delete_from_swap_cache(*page);
    }
  }
  filemap.unlock_page(*page);
  filemap.lru().put_page(*page);
  return done;
}

Result<void> SwapOn::try_to_unuse(SwapInfo& si) {
  WEIR_FLOW(si.type);
  Mm* start_mm = nullptr;
  if (spaces_ != nullptr) {
    start_mm = &tables_->init_mm();
    WEIR_STATE(unuse, start_mm->id, swp_entry(si.type, 0), 0);
    spaces_->mmget(*start_mm);
  }
  Result<void> done;
  uint64_t before = 0;
  for (uint64_t offset = 0; done && (offset = swap_.find_next_to_unuse(si, offset)) != 0; before = offset) {
    if (fatal_signal_pending()) {
      done = Errno::intr;
      break;
    }
    const SwpEntry entry = swp_entry(si.type, offset);
    done = unuse_slot(entry, start_mm);
    if (!done) break;
    if (swap_.swp_swapcount(entry) != 0 && spaces_ == nullptr) done = Errno::busy;
    // A slot that stays in use is held by somebody who is about to end or to move on (an Mm that is going, a page that
    // is just leaving the cache). They need time.
    if (offset <= before && engine_thread().world != nullptr) world().schedule_timeout(100_us);
  }
  if (start_mm != nullptr) spaces_->mmput(*start_mm);
  return done;
}

}  // namespace weir
