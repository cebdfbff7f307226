// src/mm/swap.cpp: LRU lists, pagevecs, references
#include "mm/swap.hpp"

#include <iterator>

#include "mm/mm_types.hpp"
#include "mm/workingset.hpp"

namespace weir {

namespace {

constexpr NodeStat lru_stat(LruList list) {
  return static_cast<NodeStat>(static_cast<unsigned>(NodeStat::nr_inactive_anon) + static_cast<unsigned>(list));
}
static_assert(lru_stat(LruList::active_anon) == NodeStat::nr_active_anon);
static_assert(lru_stat(LruList::inactive_file) == NodeStat::nr_inactive_file);
static_assert(lru_stat(LruList::active_file) == NodeStat::nr_active_file);
static_assert(lru_stat(LruList::unevictable) == NodeStat::nr_unevictable);

}  // namespace

Lru::Lru(PageAllocator& pages, VmStat& vmstat, Mmu&, unsigned cpus, KernelEra kernel)
    : pages_(pages),
      vmstat_(vmstat),
      profile_(profile_of(kernel)),
      era_(LruEra::of(kernel)),
      cpus_(cpus == 0 ? 1 : cpus) {
  for (Zone& zone : pages.node().zones) zone.lruvec.zone = &zone;
}

Result<void> Lru::init() {
  uint8_t order = 0;
  while ((PAGE_SIZE << order) < cpus_ * sizeof(PerCpu)) ++order;
  std::byte* place = pages_.get_zeroed_pages(GFP_KERNEL, Order(order));
  if (place == nullptr) return Errno::nomem;
  auto* percpu = reinterpret_cast<PerCpu*>(place);
  for (unsigned i = 0; i < cpus_; ++i) ::new (static_cast<void*>(percpu + i)) PerCpu();
  percpu_ = percpu;
  return {};
}

Lru::PerCpu& Lru::this_cpu() const {
  const Thread* thread = engine_thread().thread;
  return percpu_[thread == nullptr ? 0 : thread->cpu.v % cpus_];
}

// ---- Lists ----------------------------------------------------------------------------------------------------------

LruList Lru::page_lru(const Page& page) const {
  if (page.test(PageFlag::unevictable)) return LruList::unevictable;
  const bool active = page.test(PageFlag::active);
  if (page_is_file_cache(page) == 0) return active ? LruList::active_anon : LruList::inactive_anon;
  return active ? LruList::active_file : LruList::inactive_file;
}

void Lru::link(Page& page, LruList list, End end) {
  LruVec& lruvec = lruvec_of(page);
  const unsigned i = static_cast<unsigned>(list);
  if (end == End::head)
    lruvec.lists[i].push_front(page);
  else
    lruvec.lists[i].push_back(page);
  if (list == LruList::inactive_anon && end == End::head && aging_hand_ == nullptr) aging_hand_ = &page;
  __atomic_store_n(&lruvec.size[i].v, lruvec.size[i].v + 1, __ATOMIC_RELAXED);
  vmstat_.inc_node_page_state(lru_stat(list));
}

void Lru::unlink(Page& page, LruList list) {
  LruVec& lruvec = lruvec_of(page);
  const unsigned i = static_cast<unsigned>(list);
  if (&page == aging_hand_) advance_aging_hand();
  lruvec.lists[i].erase(PageList::s_iterator_to(page));
  __atomic_store_n(&lruvec.size[i].v, lruvec.size[i].v - 1, __ATOMIC_RELAXED);
  vmstat_.dec_node_page_state(lru_stat(list));
}

// One page towards the head.
void Lru::advance_aging_hand() {
  PageList& list = lruvec_of(*aging_hand_).lists[static_cast<unsigned>(LruList::inactive_anon)];
  const auto at = PageList::s_iterator_to(*aging_hand_);
  aging_hand_ = at == list.begin() ? nullptr : &*std::prev(at);
}

unsigned Lru::pages_to_age(Page** pages, unsigned max) {
  ScopedLock guard(node().lru_lock);
  unsigned n = 0;
  while (n < max && aging_hand_ != nullptr) {
    Page& page = *aging_hand_;
    advance_aging_hand();
    if (!page.test(PageFlag::aged) && PageAllocator::get_page_unless_zero(page)) pages[n++] = &page;
  }
  return n;
}

void Lru::add_page_to_lru_list(Page& page, LruList list) {
  link(page, list, End::head);
  WEIR_STATE(lru, pages_.mem().pfn(page), LruList::count, list);
}

void Lru::add_page_to_lru_list_tail(Page& page, LruList list) {
  link(page, list, End::tail);
  WEIR_STATE(lru, pages_.mem().pfn(page), LruList::count, list);
  WEIR_STATE(lru_tail, pages_.mem().pfn(page), list, 0);
}

void Lru::del_page_from_lru_list(Page& page, LruList list) {
  unlink(page, list);
  WEIR_STATE(lru, pages_.mem().pfn(page), list, LruList::count);
}

void Lru::move_page(Page& page, LruList from, LruList to, End end) {
  unlink(page, from);
  link(page, to, end);
  WEIR_STATE(lru, pages_.mem().pfn(page), from, to);
  if (end == End::tail) WEIR_STATE(lru_tail, pages_.mem().pfn(page), to, 0);
}

void Lru::update_page_reclaim_stat(const Page& page, unsigned file, bool rotated) {
  ZoneReclaimStat& stat = lruvec_of(page).reclaim_stat;
  ++stat.recent_scanned[file];
  if (rotated) ++stat.recent_rotated[file];
}

PageCount Lru::lru_size(LruList list) const { return PageCount(vmstat_.node_page_state(lru_stat(list))); }

// ---- Pagevecs -------------------------------------------------------------------------------------------------------

// What a batch does with one page; lru_lock held. A page may have been isolated, freed to one holder or moved since it
// was put into the batch, so its flags are looked at again.
void Lru::move_fn(Batch batch, Page& page) {
  switch (batch) {
    case Batch::add: {
      WEIR_DEBUG_BUG_ON(page.test(PageFlag::lru));
      page.set(PageFlag::lru);
      const LruList list = page_lru(page);
      add_page_to_lru_list(page, list);
      if (list != LruList::unevictable) update_page_reclaim_stat(page, page_is_file_cache(page), is_active_lru(list));
      return;
    }
    case Batch::activate: {
      if (!page.test(PageFlag::lru) || page.test(PageFlag::active) || page.test(PageFlag::unevictable)) return;
      const LruList from = page_lru(page);
      page.set(PageFlag::active);
      // Where old pages were made absent ahead of the inactive tail, an active page starts over.
      clear_page_aged(page);
      move_page(page, from, page_lru(page), End::head);
      vmstat_.count_vm_event(VmEvent::pgactivate);
      update_page_reclaim_stat(page, page_is_file_cache(page), true);
      return;
    }
    case Batch::rotate: {
      if (!page.test(PageFlag::lru) || page.test(PageFlag::unevictable)) return;
      const LruList from = page_lru(page);
      page.clear(PageFlag::active);
      move_page(page, from, page_lru(page), End::tail);
      vmstat_.count_vm_event(VmEvent::pgrotated);
      return;
    }
    case Batch::deactivate: {
      if (!page.test(PageFlag::lru) || !page.test(PageFlag::active) || page.test(PageFlag::unevictable)) return;
      const LruList from = page_lru(page);
      page.clear(PageFlag::active);
      page.clear(PageFlag::referenced);
      move_page(page, from, page_lru(page), End::head);
      vmstat_.count_vm_event(VmEvent::pgdeactivate);
      update_page_reclaim_stat(page, page_is_file_cache(page), false);
      return;
    }
    case Batch::lazyfree: {
      if (!page.test(PageFlag::lru) || page.test(PageFlag::unevictable) || !lazyfree_candidate(page)) return;
      const LruList from = page_lru(page);
      page.clear(PageFlag::active);
      page.clear(PageFlag::referenced);
      clear_page_aged(page);
      page.clear(PageFlag::swapbacked);
      move_page(page, from, page_lru(page), End::head);
      vmstat_.count_vm_event(VmEvent::pglazyfree);
      update_page_reclaim_stat(page, 1, false);
      return;
    }
    case Batch::count: break;
  }
}

// The CPU's lock held. Moves the batch's pages and leaves them in `done` for their references to be dropped without the
// lock.
unsigned Lru::pagevec_flush(Batch batch, Pagevec& vec, Page** done) {
  if (vec.nr == 0) return 0;
  const unsigned n = vec.nr;
  {
    ScopedLock guard(node().lru_lock);
    for (unsigned i = 0; i < n; ++i) move_fn(batch, *vec.pages[i]);
  }
  for (unsigned i = 0; i < n; ++i) done[i] = vec.pages[i];
  vec.nr = 0;
  return n;
}

void Lru::pagevec_add(Batch batch, Page& page) {
  if (percpu_ == nullptr) {
    ScopedLock guard(node().lru_lock);
    move_fn(batch, page);
    return;
  }
  PageAllocator::get_page(page);
  Page* done[PAGEVEC_SIZE];
  unsigned n = 0;
  {
    PerCpu& cpu = this_cpu();
    ScopedLock guard(cpu.lock);
    Pagevec& vec = cpu.vec[static_cast<unsigned>(batch)];
    vec.pages[vec.nr++] = &page;
    if (vec.nr == PAGEVEC_SIZE) n = pagevec_flush(batch, vec, done);
  }
  release_pages(done, n);
}

void Lru::drain_cpu(PerCpu& cpu) {
  for (unsigned b = 0; b < NR_BATCHES; ++b) {
    Page* done[PAGEVEC_SIZE];
    unsigned n = 0;
    {
      ScopedLock guard(cpu.lock);
      n = pagevec_flush(static_cast<Batch>(b), cpu.vec[b], done);
    }
    release_pages(done, n);
  }
}

void Lru::lru_add_drain() {
  WEIR_FLOW();
  if (percpu_ != nullptr) drain_cpu(this_cpu());
}

void Lru::lru_add_drain_all() {
  WEIR_FLOW();
  if (percpu_ == nullptr) return;
  for (unsigned i = 0; i < cpus_; ++i) drain_cpu(percpu_[i]);
}

unsigned Lru::in_pagevecs(const Page& page) const {
  unsigned found = 0;
  for (unsigned i = 0; percpu_ != nullptr && i < cpus_; ++i) {
    ScopedLock guard(percpu_[i].lock);
    for (const Pagevec& vec : percpu_[i].vec)
      for (unsigned k = 0; k < vec.nr; ++k) found += vec.pages[k] == &page;
  }
  return found;
}

void Lru::lru_cache_add(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  clear_page_aged(page);
  pagevec_add(Batch::add, page);
}

void Lru::lru_cache_add_anon(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  clear_page_aged(page);
  pagevec_add(Batch::add, page);
}

void Lru::lru_cache_add_file(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  clear_page_aged(page);
  pagevec_add(Batch::add, page);
}

void Lru::lru_cache_add_active(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  clear_page_aged(page);
  page.set(PageFlag::active);
  pagevec_add(Batch::add, page);
}

void Lru::lru_cache_add_lru(Page& page, LruList list) {
  WEIR_FLOW(pages_.mem().pfn(page), list);
  clear_page_aged(page);
  if (is_active_lru(list)) page.set(PageFlag::active);
  pagevec_add(Batch::add, page);
}

void Lru::lru_cache_add_active_or_unevictable(Page& page, const VmArea& vma) {
  WEIR_FLOW(pages_.mem().pfn(page), vma.vm_start);
  if ((vma.vm_flags & VM_LOCKED) == 0) {
    page.set(PageFlag::active);
    lru_cache_add(page);
    return;
  }
  add_new_mlocked_page(page);
}

void Lru::add_new_mlocked_page(Page& page) {
  if (!page.test_and_set(PageFlag::mlocked)) {
    vmstat_.inc_node_page_state(NodeStat::nr_mlock);
    vmstat_.count_vm_event(VmEvent::unevictable_pgs_mlocked);
  }
  add_page_to_unevictable_list(page);
}

void Lru::add_page_to_unevictable_list(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  clear_page_aged(page);
  ScopedLock guard(node().lru_lock);
  page.clear(PageFlag::active);
  page.set(PageFlag::unevictable);
  page.set(PageFlag::lru);
  add_page_to_lru_list(page, LruList::unevictable);
}

void Lru::activate_page(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  if (page.test(PageFlag::lru) && !page.test(PageFlag::active) && !page.test(PageFlag::unevictable))
    pagevec_add(Batch::activate, page);
}

void Lru::deactivate_page(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  if (page.test(PageFlag::lru) && page.test(PageFlag::active) && !page.test(PageFlag::unevictable))
    pagevec_add(Batch::deactivate, page);
}

bool Lru::lazyfree_candidate(const Page& page) {
  return PageAnon(page) && PageSwapBacked(page) && !PageSwapCache(page);
}

void Lru::mark_page_lazyfree(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  if (page.test(PageFlag::lru) && !page.test(PageFlag::unevictable) && lazyfree_candidate(page))
    pagevec_add(Batch::lazyfree, page);
}

// The page is not on a list: perhaps it waits in this CPU's pagevec, then it goes to the active list from there. A page
// in another CPU's pagevec is left alone: its flag cannot be set without knowing that it is not being isolated.
bool Lru::__lru_cache_activate_page(Page& page) {
  if (percpu_ == nullptr) return false;
  PerCpu& cpu = this_cpu();
  ScopedLock guard(cpu.lock);
  const Pagevec& vec = cpu.vec[static_cast<unsigned>(Batch::add)];
  for (unsigned i = vec.nr; i-- > 0;) {
    if (vec.pages[i] != &page) continue;
    page.set(PageFlag::active);
    return true;
  }
  return false;
}

void Lru::mark_page_accessed(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  if (!page.test(PageFlag::referenced)) {
    page.set(PageFlag::referenced);
    return;
  }
  if (page.test(PageFlag::active) || page.test(PageFlag::unevictable)) return;
  if (page.test(PageFlag::lru))
    activate_page(page);
  else
    __lru_cache_activate_page(page);
  page.clear(PageFlag::referenced);
  if (workingset_ != nullptr && page_is_file_cache(page) != 0) workingset_->workingset_activation(page);
}

void Lru::rotate_reclaimable_page(Page& page) {
  if (page.test(PageFlag::locked) || page.test(PageFlag::dirty) || page.test(PageFlag::unevictable) ||
      !page.test(PageFlag::lru))
    return;
  pagevec_add(Batch::rotate, page);
}

// ---- New pages, by kernel ------------------------------------------------------------------------------------------

namespace {

class LruEra_2_6_20 final : public LruEra {
  void add_new_user_page(Lru& lru, Page& page, const VmArea&) const override { lru.lru_cache_add_active(page); }
  void add_new_cache_page(Lru& lru, Page& page) const override { lru.lru_cache_add(page); }
};

class LruEra_3 final : public LruEra {
  void add_new_user_page(Lru& lru, Page& page, const VmArea& vma) const override {
    if ((vma.vm_flags & VM_LOCKED) != 0)
      lru.add_new_mlocked_page(page);
    else
      lru.lru_cache_add_lru(page, LruList::active_anon);
  }
  void add_new_cache_page(Lru& lru, Page& page) const override { lru.lru_cache_add_file(page); }
};

class LruEra_4_14 final : public LruEra {
  void add_new_user_page(Lru& lru, Page& page, const VmArea& vma) const override {
    lru.lru_cache_add_active_or_unevictable(page, vma);
  }
  void add_new_cache_page(Lru& lru, Page& page) const override { lru.lru_cache_add_file(page); }
};

}  // namespace

const LruEra& LruEra::of(KernelEra kernel) {
  static constexpr LruEra_2_6_20 era_2_6_20;
  static constexpr LruEra_3 era_3;
  static constexpr LruEra_4_14 era_4_14;
  switch (kernel) {
    case KernelEra::linux_2_6_20: return era_2_6_20;
    case KernelEra::linux_3: return era_3;
    case KernelEra::linux_4_14: break;
  }
  return era_4_14;
}

// ---- References -----------------------------------------------------------------------------------------------------

// Count is 0: nobody can find the page but a list walker, who skips a page that get_page_unless_zero refuses.
void Lru::__page_cache_release(Page& page) {
  if (page.test(PageFlag::lru)) {
    ScopedLock guard(node().lru_lock);
    WEIR_BUG_ON(!page.test(PageFlag::lru));
    del_page_from_lru_list(page, page_lru(page));
    page.clear(PageFlag::lru);
  }
  page.clear(PageFlag::active);
  page.clear(PageFlag::unevictable);
  clear_page_aged(page);
  if (page.test_and_clear(PageFlag::mlocked)) vmstat_.dec_node_page_state(NodeStat::nr_mlock);
}

void Lru::put_page(Page& page) {
  if (!PageAllocator::put_page_testzero(page)) return;
  __page_cache_release(page);
  pages_.free_hot_cold_page(page);
}

void Lru::release_pages(Page** pages, unsigned count) {
  PageList to_free;
  for (unsigned i = 0; i < count; ++i) {
    if (!PageAllocator::put_page_testzero(*pages[i])) continue;
    __page_cache_release(*pages[i]);
    to_free.push_back(*pages[i]);
  }
  if (!to_free.empty()) pages_.free_hot_cold_page_list(to_free);
}

// ---- Single pages off and back --------------------------------------------------------------------------------------

Result<void> Lru::isolate_lru_page(Page& page) {
  ScopedLock guard(node().lru_lock);
  if (!page.test(PageFlag::lru)) return Errno::busy;
  PageAllocator::get_page(page);
  del_page_from_lru_list(page, page_lru(page));
  page.clear(PageFlag::lru);
  return {};
}

void Lru::putback_lru_page(Page& page) {
  WEIR_FLOW(pages_.mem().pfn(page));
  const bool was_unevictable = page.test(PageFlag::unevictable);
  bool evictable = false;
  for (;;) {
    evictable = page_evictable(page);
    if (evictable) {
      page.clear(PageFlag::unevictable);
      lru_cache_add(page);
      break;
    }
    add_page_to_unevictable_list(page);
    // munlock may have come between the test and the list: then nobody else would ever look at the page again.
    if (!page_evictable(page) || !isolate_lru_page(page)) break;
    put_page(page);
  }
  if (was_unevictable && evictable) vmstat_.count_vm_event(VmEvent::unevictable_pgs_rescued);
  if (!was_unevictable && !evictable) vmstat_.count_vm_event(VmEvent::unevictable_pgs_culled);
  put_page(page);
}

void Lru::mlock_vma_page(Page& page) {
  if (!profile_.five_lists) return;  // locked pages stay where they are, and are put back each scan
  WEIR_FLOW(pages_.mem().pfn(page));
  if (page.test_and_set(PageFlag::mlocked)) return;
  vmstat_.inc_node_page_state(NodeStat::nr_mlock);
  vmstat_.count_vm_event(VmEvent::unevictable_pgs_mlocked);
  // Not on a list: whoever has it off, or the pagevec, leaves it to reclaim to find.
  if (isolate_lru_page(page)) putback_lru_page(page);
}

void Lru::munlock_vma_page(Page& page) {
  if (!profile_.five_lists) return;  // locked pages stay where they are, and are put back each scan
  WEIR_FLOW(pages_.mem().pfn(page));
  if (!page.test_and_clear(PageFlag::mlocked)) return;
  vmstat_.dec_node_page_state(NodeStat::nr_mlock);
  if (!isolate_lru_page(page)) {
    // On its way to a list, or off it in somebody's hands: who puts it back looks at the flag.
    vmstat_.count_vm_event(page.test(PageFlag::unevictable) ? VmEvent::unevictable_pgs_stranded
                                                            : VmEvent::unevictable_pgs_munlocked);
    if (page_mapcount(page) > 1 && locked_mappings_ != nullptr) locked_mappings_->try_to_munlock(page);
    return;
  }
  if (page_mapcount(page) > 1 && locked_mappings_ != nullptr) locked_mappings_->try_to_munlock(page);
  if (!page.test(PageFlag::mlocked)) vmstat_.count_vm_event(VmEvent::unevictable_pgs_munlocked);
  putback_lru_page(page);
}

void Lru::clear_page_mlock(Page& page) {
  if (!profile_.five_lists) return;  // locked pages stay where they are, and are put back each scan
  WEIR_FLOW(pages_.mem().pfn(page));
  if (!page.test_and_clear(PageFlag::mlocked)) return;
  vmstat_.dec_node_page_state(NodeStat::nr_mlock);
  vmstat_.count_vm_event(VmEvent::unevictable_pgs_cleared);
  if (isolate_lru_page(page))
    putback_lru_page(page);
  else if (page.test(PageFlag::unevictable))
    vmstat_.count_vm_event(VmEvent::unevictable_pgs_stranded);
}

}  // namespace weir
