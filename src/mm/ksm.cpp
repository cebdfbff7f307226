// src/mm/ksm.cpp: see ksm.hpp
#include "mm/ksm.hpp"

#include <cstring>

#include "kernel/freezer.hpp"

namespace weir {

namespace {

/// A node's page says so in its mapping.
uintptr_t mapping_of(const KsmStableNode& node) { return reinterpret_cast<uintptr_t>(&node) | PAGE_MAPPING_KSM; }
KsmStableNode& node_of(const Page& kpage) {
  return *reinterpret_cast<KsmStableNode*>(kpage.mapping.load(std::memory_order_acquire) & ~PAGE_MAPPING_KSM);
}

constexpr gfp_t GFP_SCAN = GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN;

bool ksm_test_exit(const Mm& mm) { return mm.mm_users.load(std::memory_order_acquire) == 0; }

}  // namespace

Ksm::Ksm(Memory& memory, Vmas& vmas, Rmap& rmap, SwapCache& cache, Slab& slab, Mmu& mmu, const Profile& profile)
    : memory_(memory),
      vmas_(vmas),
      rmap_(rmap),
      cache_(cache),
      filemap_(memory.filemap()),
      slab_(slab),
      mmu_(mmu),
      profile_(profile) {}

Result<void> Ksm::init() {
  slot_cache_ = WEIR_TRY(slab_.kmem_cache_create("ksm_mm_slot", sizeof(KsmMmSlot), {}));
  item_cache_ = WEIR_TRY(slab_.kmem_cache_create("ksm_rmap_item", sizeof(KsmRmapItem), {}));
  node_cache_ = WEIR_TRY(slab_.kmem_cache_create("ksm_stable_node", sizeof(KsmStableNode), {}));
  rmap_.set_ksm(this);
  return {};
}

bool Ksm::possible() const {
  const Mmu::Caps caps = mmu_.caps();
  return profile_.ksm && caps.has_write_protect && caps.has_alias;
}

Ksm::Stats Ksm::stats() const {
  const int64_t shared = pages_shared_.load(), sharing = pages_sharing_.load(), unshared = pages_unshared_.load();
  const int64_t rest = rmap_items_.load() - shared - sharing - unshared;
  return {.pages_shared = shared,
          .pages_sharing = sharing,
          .pages_unshared = unshared,
          .pages_volatile = rest > 0 ? rest : 0,
          .full_scans = full_scans_.load()};
}

// ---- ksmd -----------------------------------------------------------------------------------------------------------

Result<void> Ksm::set_run(Run run, World* world) {
  if (run != Run::stop && !possible()) return Errno::nosys;
  if (run == Run::merge) {
    ScopedLock guard(mutex_);
    if (thread_.load() != nullptr || world == nullptr) return {};
    world_ = world;
    thread_.store(kthread_run(*world, &ksm_scan_thread, this, "ksmd"), std::memory_order_release);
    return {};
  }
  if (Thread* thread = thread_.exchange(nullptr)) world_->kthread_stop(*thread);
  ScopedLock guard(mutex_);
  if (run == Run::unmerge) WEIR_TRY_VOID(unmerge_and_remove_all_rmap_items());
  remove_dead_slots();
  return {};
}

void Ksm::ksm_scan_thread(void* arg) {
  WEIR_FLOW();
  Ksm& self = *static_cast<Ksm*>(arg);
  while (!kthread_should_stop()) {
    try_to_freeze();
    self.ksm_do_scan(self.pages_to_scan_.load(std::memory_order_relaxed));
    const auto pause = Nanos(int64_t{1000000} * self.sleep_millisecs_.load(std::memory_order_relaxed));
    (void)self.wait_.wait_timeout(pause, [] { return kthread_should_stop(); });
  }
}

void Ksm::ksm_do_scan(unsigned count) {
  WEIR_FLOW(count);
  ScopedLock guard(mutex_);
  // Who exited while another scan was under way could not take its slot along.
  remove_dead_slots();
  for (; count > 0; --count) {
    Page* page = nullptr;
    KsmRmapItem* item = scan_get_next_rmap_item(page);
    if (item == nullptr) return;
    cmp_and_merge_page(*page, *item);
    filemap_.lru().put_page(*page);
    if (World* w = engine_thread().world) w->cond_resched();
  }
}

/// The next page to look at, with a reference, and its item. Null: a scan of everything is over, or there is no memory.
KsmRmapItem* Ksm::scan_get_next_rmap_item(Page*& page) {
  if (cursor_ == nullptr) {
    {
      ScopedLock list(mmlist_lock_);
      cursor_ = slots_;
    }
    if (cursor_ == nullptr) return nullptr;
    // Pages on their way to a list have references that nobody can explain.
    filemap_.lru().lru_add_drain_all();
    // What was in the unstable tree may have changed: it is made anew.
    unstable_.clear();
    ++seqnr_;
    pages_unshared_.store(0);
    cursor_address_ = VirtAddr(0);
    cursor_link_ = &cursor_->rmap_list;
  }
  while (cursor_ != nullptr) {
    KsmMmSlot& slot = *cursor_;
    Mm& mm = *slot.mm;
    {
      ScopedRead guard(mm.mmap_sem);
      for (VmArea* vma = ksm_test_exit(mm) ? nullptr : vmas_.find_vma(mm, cursor_address_); vma != nullptr;
           vma = vmas_.next(mm, *vma)) {
        if ((vma->vm_flags & VM_MERGEABLE) == 0 || vma->anon_vma == nullptr) continue;
        if (cursor_address_ < vma->vm_start) cursor_address_ = vma->vm_start;
        while ((cursor_address_ = memory_.tables().next_table(mm, cursor_address_, vma->vm_end)) < vma->vm_end) {
          const VirtAddr address = cursor_address_;
          page = follow_page(mm, address);
          if (page == nullptr) {
            cursor_address_ = address + PAGE_SIZE;
            continue;
          }
          KsmRmapItem* item = get_next_rmap_item(slot, address);
          if (item == nullptr) {
            filemap_.lru().put_page(*page);
            return nullptr;
          }
          cursor_link_ = &item->next;
          cursor_address_ = address + PAGE_SIZE;
          return item;
        }
      }
      remove_trailing_rmap_items(slot, cursor_link_);
    }
    cursor_ = slot.next;
    cursor_address_ = VirtAddr(0);
    cursor_link_ = cursor_ != nullptr ? &cursor_->rmap_list : nullptr;
    if (ksm_test_exit(mm)) remove_slot(slot);
  }
  full_scans_.fetch_add(1);
  return nullptr;
}

/// The item of this address, made if need be. Those of addresses that were passed over go.
KsmRmapItem* Ksm::get_next_rmap_item(KsmMmSlot& slot, VirtAddr address) {
  while (KsmRmapItem* item = *cursor_link_) {
    if (item->address == address) return item;
    if (item->address > address) break;
    *cursor_link_ = item->next;
    remove_rmap_item_from_tree(*item);
    rmap_items_.fetch_sub(1);
    slab_.destroy(*item_cache_, item);
  }
  auto* item = slab_.create<KsmRmapItem>(*item_cache_, GFP_SCAN);
  if (item == nullptr) return nullptr;
  rmap_items_.fetch_add(1);
  item->slot = &slot;
  item->address = address;
  item->next = *cursor_link_;
  *cursor_link_ = item;
  return item;
}

/// The ordinary anonymous page that is mapped there, with a reference. mmap_sem held.
Page* Ksm::follow_page(Mm& mm, VirtAddr address) {
  PteLock pte = memory_.tables().pte_offset_map_lock(mm, address);
  if (!pte) return nullptr;
  Page* page = memory_.vm_normal_page(*pte);
  if (page == nullptr || !PageAnon(*page)) return nullptr;
  PageAllocator::get_page(*page);
  return page;
}

VmArea* Ksm::find_mergeable_vma(Mm& mm, VirtAddr address) {
  if (ksm_test_exit(mm)) return nullptr;
  VmArea* vma = vmas_.vma_lookup(mm, address);
  return vma != nullptr && (vma->vm_flags & VM_MERGEABLE) != 0 && vma->anon_vma != nullptr ? vma : nullptr;
}

Page* Ksm::get_mergeable_page(KsmRmapItem& item) {
  Mm& mm = *item.slot->mm;
  ScopedRead guard(mm.mmap_sem);
  return find_mergeable_vma(mm, item.address) != nullptr ? follow_page(mm, item.address) : nullptr;
}

// ---- Content --------------------------------------------------------------------------------------------------------

uint64_t Ksm::calc_checksum(Page& page) {
  constexpr uint64_t PRIME = 0x9e3779b97f4a7c15ull;
  const Content content = mmu_.kmap(page);
  uint64_t h = PRIME;
  if (content.tagged()) {
    h = (*content.tag + h) * PRIME;
    h ^= h >> 29;
  } else {
    for (size_t i = 0; i < PAGE_SIZE; i += sizeof(uint64_t)) {
      uint64_t word;
      std::memcpy(&word, content.bytes + i, sizeof word);
      h = (h ^ word) * PRIME;
      h ^= h >> 29;
    }
  }
  mmu_.kunmap(page);
  return h;
}

bool Ksm::pages_identical(Page& a, Page& b) {
  const Content ca = mmu_.kmap(a);
  const Content cb = mmu_.kmap(b);
  const bool same = ca.tagged() ? *ca.tag == *cb.tag : std::memcmp(ca.bytes, cb.bytes, PAGE_SIZE) == 0;
  mmu_.kunmap(b);
  mmu_.kunmap(a);
  return same;
}

// ---- The trees ------------------------------------------------------------------------------------------------------

/// The node's page with a reference; null if it was freed: the node is then gone too.
Page* Ksm::get_ksm_page(KsmStableNode& node) {
  Page& page = pages().mem().page(node.pfn);
  while (page.mapping.load(std::memory_order_acquire) == mapping_of(node)) {
    // Without a reference it is being freed, or only looked at for that: until its mapping changes nobody knows.
    if (!PageAllocator::get_page_unless_zero(page)) {
      if (World* w = engine_thread().world) w->schedule_timeout(Nanos(1000));
      continue;
    }
    if (page.mapping.load(std::memory_order_acquire) == mapping_of(node)) return &page;
    filemap_.lru().put_page(page);
  }
  remove_node_from_stable_tree(node);
  return nullptr;
}

/// Nobody else can get at the node any more: its page is free.
void Ksm::remove_node_from_stable_tree(KsmStableNode& node) {
  while (!node.items.empty()) {
    KsmRmapItem& item = node.items.front();
    node.items.pop_front();
    (node.items.empty() ? pages_shared_ : pages_sharing_).fetch_sub(1);
    rmap_.put_anon_vma(*item.anon_vma);
    item.anon_vma = nullptr;
    item.head = nullptr;
    item.where = KsmRmapItem::Where::nowhere;
  }
  stable_.erase(StableTree::s_iterator_to(node));
  slab_.destroy(*node_cache_, &node);
}

/// A merged page of this content, or this page itself if it is one; with a reference.
Page* Ksm::stable_tree_search(Page& page, uint64_t hash) {
  WEIR_FLOW(pages().mem().pfn(page));
  if (PageKsm(page)) {
    PageAllocator::get_page(page);
    return &page;
  }
  for (auto it = stable_.lower_bound(hash); it != stable_.end() && it->hash == hash;) {
    KsmStableNode& node = *it++;
    Page* kpage = get_ksm_page(node);
    if (kpage == nullptr) continue;
    if (pages_identical(page, *kpage)) return kpage;
    filemap_.lru().put_page(*kpage);
  }
  return nullptr;
}

/// The page, locked, mapped once and write-protected, becomes a merged one. False: no memory.
bool Ksm::stable_tree_insert(Page& kpage, uint64_t hash) {
  WEIR_FLOW(pages().mem().pfn(kpage));
  auto* node = slab_.create<KsmStableNode>(*node_cache_, GFP_SCAN);
  if (node == nullptr) return false;
  node->hash = hash;
  node->pfn = pages().mem().pfn(kpage);
  stable_.insert(*node);
  kpage.set_mapping(mapping_of(*node), kpage.index);
  return true;
}

/// The item's PTE maps the merged page.
void Ksm::stable_tree_append(KsmRmapItem& item, Page& kpage) {
  WEIR_FLOW(pages().mem().pfn(kpage));
  filemap_.lock_page(kpage);
  KsmStableNode& node = node_of(kpage);
  (node.items.empty() ? pages_shared_ : pages_sharing_).fetch_add(1);
  item.where = KsmRmapItem::Where::stable;
  item.head = &node;
  node.items.push_back(item);
  filemap_.unlock_page(kpage);
}

/// Another item whose page has this content, and that page with a reference; else the item goes into the tree.
KsmRmapItem* Ksm::unstable_tree_search_insert(KsmRmapItem& item, Page& page, Page*& tree_page) {
  WEIR_FLOW(pages().mem().pfn(page));
  for (auto it = unstable_.lower_bound(item.checksum); it != unstable_.end() && it->checksum == item.checksum; ++it) {
    Page* other = get_mergeable_page(*it);
    if (other == nullptr) continue;
    // A page shared by fork has one frame already.
    if (other != &page && pages_identical(page, *other)) {
      tree_page = other;
      return &*it;
    }
    filemap_.lru().put_page(*other);
  }
  item.where = KsmRmapItem::Where::unstable;
  item.seqnr = seqnr_;
  unstable_.insert(item);
  pages_unshared_.fetch_add(1);
  return nullptr;
}

void Ksm::remove_rmap_item_from_tree(KsmRmapItem& item) {
  if (item.where == KsmRmapItem::Where::stable) {
    KsmStableNode& node = *item.head;
    if (Page* kpage = get_ksm_page(node)) {
      filemap_.lock_page(*kpage);
      node.items.erase(KsmStableNode::Items::s_iterator_to(item));
      filemap_.unlock_page(*kpage);
      (node.items.empty() ? pages_shared_ : pages_sharing_).fetch_sub(1);
      rmap_.put_anon_vma(*item.anon_vma);
      item.anon_vma = nullptr;
      item.head = nullptr;
      filemap_.lru().put_page(*kpage);
    }
  } else if (item.where == KsmRmapItem::Where::unstable && item.seqnr == seqnr_) {
    unstable_.erase(UnstableTree::s_iterator_to(item));
    pages_unshared_.fetch_sub(1);
  }
  item.where = KsmRmapItem::Where::nowhere;
}

void Ksm::remove_trailing_rmap_items(KsmMmSlot&, KsmRmapItem** link) {
  while (KsmRmapItem* item = *link) {
    *link = item->next;
    remove_rmap_item_from_tree(*item);
    rmap_items_.fetch_sub(1);
    slab_.destroy(*item_cache_, item);
  }
}

// ---- Merging --------------------------------------------------------------------------------------------------------

void Ksm::cmp_and_merge_page(Page& page, KsmRmapItem& item) {
  WEIR_FLOW(pages().mem().pfn(page));
  // A page that a fork has brought, or one merged before, and still the one of its item.
  if (item.where == KsmRmapItem::Where::stable && PageKsm(page) &&
      page.mapping.load(std::memory_order_acquire) == mapping_of(*item.head))
    return;
  remove_rmap_item_from_tree(item);

  const uint64_t checksum = calc_checksum(page);
  if (Page* kpage = stable_tree_search(page, checksum)) {
    if (try_to_merge_with_ksm_page(item, page, kpage)) stable_tree_append(item, *kpage);
    filemap_.lru().put_page(*kpage);
    return;
  }
  // What changes all the time is not worth a try.
  if (!item.checked || item.checksum != checksum) {
    item.checksum = checksum;
    item.checked = true;
    return;
  }

  Page* tree_page = nullptr;
  KsmRmapItem* tree_item = unstable_tree_search_insert(item, page, tree_page);
  if (tree_item == nullptr) return;
  // Either may become the merged page, if it is mapped once.
  KsmRmapItem* first = &item;
  KsmRmapItem* second = tree_item;
  Page* kpage = &page;
  Page* other = tree_page;
  if (page_mapcount(*kpage) != 1) {
    std::swap(first, second);
    std::swap(kpage, other);
  }
  if (try_to_merge_with_ksm_page(*first, *kpage, nullptr)) {
    remove_rmap_item_from_tree(*tree_item);  // the unstable one
    stable_tree_append(*first, *kpage);
    if (try_to_merge_with_ksm_page(*second, *other, kpage)) stable_tree_append(*second, *kpage);
  }
  filemap_.lru().put_page(*tree_page);
}

/// The item's page takes `kpage`'s place; with none it becomes a merged page itself. True: done, and the item has its
/// AnonVma.
bool Ksm::try_to_merge_with_ksm_page(KsmRmapItem& item, Page& page, Page* kpage) {
  Mm& mm = *item.slot->mm;
  ScopedRead guard(mm.mmap_sem);
  VmArea* vma = find_mergeable_vma(mm, item.address);
  if (vma == nullptr || !try_to_merge_one_page(*vma, item.address, page, kpage)) return false;
  item.anon_vma = vma->anon_vma;
  rmap_.get_anon_vma(*item.anon_vma);
  return true;
}

bool Ksm::try_to_merge_one_page(VmArea& vma, VirtAddr address, Page& page, Page* kpage) {
  if (&page == kpage) return true;  // a merged page that came by fork
  if (!PageAnon(page) || PageKsm(page) || (vma.vm_flags & VM_LOCKED) != 0) return false;
  // Of two pages the second is only tried.
  if (kpage != nullptr) filemap_.lock_page(*kpage);
  bool merged = false;
  if (filemap_.trylock_page(page)) {
    Pte pte;
    ChangingRange changing(*vma.vm_mm, address, address + PAGE_SIZE);
    if (PageAnon(page) && !PageKsm(page) && write_protect_page(vma, address, page, pte)) {
      if (kpage == nullptr) {
        if (page_mapcount(page) == 1) {
          // Whoever writes from now on copies.
          merged = stable_tree_insert(page, calc_checksum(page));
          if (merged) {
            filemap_.lru().mark_page_accessed(page);
            page.set(PageFlag::dirty);
          }
        }
      } else if (PageKsm(*kpage) && pages_identical(page, *kpage)) {
        merged = replace_page(vma, address, page, *kpage, pte);
      }
    }
    filemap_.unlock_page(page);
  }
  if (kpage != nullptr) filemap_.unlock_page(*kpage);
  return merged;
}

/// The page, locked, is mapped there, read-only for hardware too. False: it is not, or somebody works with it.
bool Ksm::write_protect_page(VmArea& vma, VirtAddr address, Page& page, Pte& pte) {
  WEIR_FLOW(address);
  Mm& mm = *vma.vm_mm;
  PageTables& tables = memory_.tables();
  FlushBatch batch;
  {
    PteLock ptl = tables.pte_offset_map_lock(mm, address);
    if (!ptl || memory_.vm_normal_page(*ptl) != &page) return false;
    const bool swapped = PageSwapCache(page);
    // The scan's reference is one more.
    if (page_mapcount(page) + 1 + (swapped ? 1 : 0) != page_count(page)) return false;
    if (pte_write(*ptl) || pte_dirty(*ptl)) {
      const Pte was = tables.ptep_clear_flush(mm, address, ptl.get());
      if (pte_dirty(was)) rmap_.set_page_dirty(page);
      tables.set_pte_at(mm, address, ptl.get(), pte_mkclean(pte_wrprotect(was)));
      batch.add(mm, address, &page);
    }
    pte = *ptl;
  }
  mmu_.flush_batch(batch);
  return true;
}

/// Both pages locked, of equal content: the PTE maps kpage from now on.
bool Ksm::replace_page(VmArea& vma, VirtAddr address, Page& page, Page& kpage, Pte orig_pte) {
  WEIR_FLOW(address, pages().mem().pfn(page), pages().mem().pfn(kpage));
  Mm& mm = *vma.vm_mm;
  PageTables& tables = memory_.tables();
  FlushBatch batch;
  {
    PteLock ptl = tables.pte_offset_map_lock(mm, address);
    if (!ptl || pte_mkold(*ptl) != pte_mkold(orig_pte)) return false;
    PageAllocator::get_page(kpage);
    rmap_.page_add_anon_rmap(kpage, vma, address);
    tables.ptep_clear_flush(mm, address, ptl.get());
    Pte pte = mk_pte(pages().mem().pfn(kpage), vma);
    if (is_soft_dirty(orig_pte)) pte = Pte{pte.v | _PAGE_SOFT_DIRTY};
    tables.set_pte_at(mm, address, ptl.get(), pte);
    rmap_.page_remove_rmap(page);
    if (has_listeners(mm)) mmu_notifier_change_pte(mm, address, pte);
    batch.add(mm, address, &page);
  }
  mmu_.flush_batch(batch);
  if (!page_mapped(page)) cache_.try_to_free_swap(page);
  filemap_.lru().put_page(page);
  return true;
}

// ---- Taking apart ---------------------------------------------------------------------------------------------------

/// The PTE gets a page of its own, if it maps a merged one. mmap_sem held.
Result<void> Ksm::break_ksm(VmArea& vma, VirtAddr address) {
  WEIR_FLOW(address);
  for (;;) {
    Page* page = follow_page(*vma.vm_mm, address);
    if (page == nullptr) return {};
    const bool merged = PageKsm(*page);
    filemap_.lru().put_page(*page);
    if (!merged) return {};
    if ((memory_.break_cow(vma, address) & VM_FAULT_OOM) != 0) return Errno::nomem;
  }
}

Result<void> Ksm::unmerge_ksm_pages(VmArea& vma, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(start, end);
  Mm& mm = *vma.vm_mm;
  for (VirtAddr a = memory_.tables().next_table(mm, start, end); a < end;
       a = memory_.tables().next_table(mm, a + PAGE_SIZE, end))
    WEIR_TRY_VOID(break_ksm(vma, a));
  return {};
}

Result<void> Ksm::unmerge_and_remove_all_rmap_items() {
  for (KsmMmSlot* slot = slots_; slot != nullptr; slot = slot->next) {
    Mm& mm = *slot->mm;
    ScopedRead guard(mm.mmap_sem);
    if (!ksm_test_exit(mm))
      for (VmArea& vma : mm.mmap)
        if ((vma.vm_flags & VM_MERGEABLE) != 0 && vma.anon_vma != nullptr)
          WEIR_TRY_VOID(unmerge_ksm_pages(vma, vma.vm_start, vma.vm_end));
    remove_trailing_rmap_items(*slot, &slot->rmap_list);
  }
  cursor_ = nullptr;
  // Nodes whose pages are still on their way (in the swap cache, say) stay until those are gone.
  for (auto it = stable_.begin(); it != stable_.end();)
    if (Page* page = get_ksm_page(*it++)) filemap_.lru().put_page(*page);
  return {};
}

// ---- Address spaces -------------------------------------------------------------------------------------------------

Result<void> Ksm::__ksm_enter(Mm& mm) {
  WEIR_FLOW(mm);
  auto* slot = slab_.create<KsmMmSlot>(*slot_cache_, GFP_KERNEL);
  if (slot == nullptr) return Errno::nomem;
  slot->mm = &mm;
  mm.mm_count.fetch_add(1, std::memory_order_acq_rel);
  mm.ksm_slot = slot;
  ScopedLock list(mmlist_lock_);
  slot->next = slots_;
  slots_ = slot;
  return {};
}

Result<void> Ksm::ksm_madvise(VmArea& vma, VirtAddr start, VirtAddr end, bool mergeable, uint64_t& flags) {
  WEIR_FLOW(start, end, mergeable);
  if (!possible()) return Errno::inval;
  if (mergeable) {
    if ((flags & (VM_MERGEABLE | VM_SHARED | VM_MAYSHARE | VM_IO | VM_DONTEXPAND)) != 0) return {};
    if (vma.vm_mm->ksm_slot == nullptr) WEIR_TRY_VOID(__ksm_enter(*vma.vm_mm));
    flags |= VM_MERGEABLE;
    return {};
  }
  if ((flags & VM_MERGEABLE) == 0) return {};
  if (vma.anon_vma != nullptr) WEIR_TRY_VOID(unmerge_ksm_pages(vma, start, end));
  flags &= ~VM_MERGEABLE;
  return {};
}

Result<void> Ksm::ksm_fork(Mm& mm, Mm& old) { return old.ksm_slot != nullptr ? __ksm_enter(mm) : Result<void>(); }

void Ksm::ksm_exit(Mm& mm) {
  if (mm.ksm_slot == nullptr) return;
  WEIR_FLOW(mm);
  // If a scan is under way it finds the slot itself; waiting for it here could be waiting for memory that this exit
  // frees.
  if (!mutex_.try_lock()) return;
  remove_slot(*mm.ksm_slot);
  mutex_.unlock();
}

/// mutex_ held; the slot's address space has no users.
void Ksm::remove_slot(KsmMmSlot& slot) {
  remove_trailing_rmap_items(slot, &slot.rmap_list);
  if (cursor_ == &slot) {
    cursor_ = slot.next;
    cursor_address_ = VirtAddr(0);
    cursor_link_ = cursor_ != nullptr ? &cursor_->rmap_list : nullptr;
  }
  {
    ScopedLock list(mmlist_lock_);
    KsmMmSlot** link = &slots_;
    while (*link != &slot) link = &(*link)->next;
    *link = slot.next;
  }
  Mm& mm = *slot.mm;
  mm.ksm_slot = nullptr;
  slab_.destroy(*slot_cache_, &slot);
  mmdrop_(mmdrop_arg_, mm);
}

void Ksm::remove_dead_slots() {
  for (KsmMmSlot* slot = slots_; slot != nullptr;) {
    KsmMmSlot* next = slot->next;
    if (ksm_test_exit(*slot->mm)) remove_slot(*slot);
    slot = next;
  }
}

// ---- What other rooms ask -------------------------------------------------------------------------------------------

void Ksm::for_each_ksm_mapping(Page& page, bool (*fn)(VmArea& vma, VirtAddr address, void* arg), void* arg) {
  KsmStableNode& node = node_of(page);
  // First where ksmd put it, then the forks of those.
  for (const bool forks : {false, true}) {
    for (KsmRmapItem& item : node.items) {
      struct Visit {
        const KsmRmapItem& item;
        bool forks;
        bool (*fn)(VmArea&, VirtAddr, void*);
        void* arg;
        bool go_on = true;
      } visit{item, forks, fn, arg};
      rmap_.for_each_vma_of(
          *item.anon_vma, 0, ~uint64_t{0},
          [](VmArea& vma, void* v) {
            auto& at = *static_cast<Visit*>(v);
            if (!vma.contains(at.item.address) || (vma.vm_mm == at.item.slot->mm) == at.forks) return true;
            return at.go_on = at.fn(vma, at.item.address, at.arg);
          },
          &visit);
      if (!visit.go_on) return;
    }
  }
}

Page* Ksm::ksm_might_need_to_copy(Page& page, VmArea& vma, VirtAddr address) {
  WEIR_FLOW(pages().mem().pfn(page), address);
  if (PageKsm(page)) return &page;
  // A page that nobody maps belongs to whoever maps it first.
  if (!PageAnon(page) || !page_mapped(page)) return &page;
  const AnonVma* anon_vma = page_anon_vma(page);
  if (vma.anon_vma != nullptr && anon_vma->root == vma.anon_vma->root && page.index == linear_page_index(vma, address))
    return &page;
  if (!page.test(PageFlag::uptodate)) return &page;  // the caller reports it

  Page* fresh = pages().alloc_pages(GFP_HIGHUSER_MOVABLE, Order(0));
  if (fresh == nullptr) return nullptr;
  filemap_.__set_page_locked(*fresh);
  mmu_.copy_user_highpage(*fresh, page);
  fresh->set(PageFlag::dirty);
  fresh->set(PageFlag::uptodate);
  return fresh;
}

void Ksm::recount(int64_t& shared, int64_t& sharing) const {
  shared = sharing = 0;
  for (const KsmStableNode& node : stable_) {
    const auto items = static_cast<int64_t>(node.items.size());
    if (items == 0) continue;
    ++shared;
    sharing += items - 1;
  }
}

}  // namespace weir
