// src/arch/soft/uffd_model.cpp: see uffd_model.hpp
#include "arch/soft/uffd_model.hpp"

#include <bit>
#include <cstring>

#include "mm/swapops.hpp"

namespace weir {

namespace {

/// Others may run between any two steps of the host's.
void preempt() {
  if (World* w = engine_thread().world) w->preempt_point();
}

}  // namespace

Result<void> UffdModel::attach(MemMap& mem, PageTables& tables, Bootmem& boot, PlaceOf place_of, void* arg,
                               size_t content_bytes) {
  mem_ = &mem;
  tables_ = &tables;
  place_of_ = place_of;
  place_arg_ = arg;
  content_bytes_ = content_bytes;
  const auto frames = static_cast<uint64_t>(mem.frames.v);
  capacity_ = std::bit_ceil(2 * frames);
  shift_ = static_cast<unsigned>(64 - std::countr_zero(capacity_));
  const auto table = [&](uint64_t bytes) { return boot.alloc_bootmem(Bytes(bytes), Bytes(64)); };
  slots_ = reinterpret_cast<Slot*>(WEIR_TRY(table(capacity_ * sizeof(Slot))));
  hashes_ = reinterpret_cast<uint64_t*>(WEIR_TRY(table(frames * 8)));
  resident_ = reinterpret_cast<uint64_t*>(WEIR_TRY(table((frames + 63) / 64 * 8)));
  return {};
}

// ---- The table ------------------------------------------------------------------------------------------------------

UffdModel::Slot* UffdModel::find(uint64_t key) const {
  for (uint64_t i = home(key);; i = (i + 1) & (capacity_ - 1)) {
    if (slots_[i].key == key) return &slots_[i];
    if (slots_[i].key == 0) return nullptr;
  }
}

UffdModel::Slot& UffdModel::insert(uint64_t key) {
  uint64_t i = home(key);
  while (slots_[i].key != 0) i = (i + 1) & (capacity_ - 1);
  slots_[i] = Slot{.key = key};
  return slots_[i];
}

void UffdModel::erase(Slot* slot) {
  // Those behind it move up, unless that would put them before their home.
  uint64_t hole = static_cast<uint64_t>(slot - slots_);
  for (uint64_t i = (hole + 1) & (capacity_ - 1); slots_[i].key != 0; i = (i + 1) & (capacity_ - 1)) {
    const uint64_t from_home = (i - home(slots_[i].key)) & (capacity_ - 1);
    if (from_home < ((i - hole) & (capacity_ - 1))) continue;
    slots_[hole] = slots_[i];
    hole = i;
  }
  slots_[hole] = Slot{};
}

Page* UffdModel::lookup(const Mm& mm, VirtAddr address) const {
  const Slot* slot = find(key_of(mm, address));
  return slot != nullptr ? &mem_->page(Pfn(slot->pfn)) : nullptr;
}

// ---- Host pages -----------------------------------------------------------------------------------------------------

bool UffdModel::has_host_page(const Page& page) const {
  return kind(page) == Kind::mapped || kind(page) == Kind::staged || resident(pfn(page));
}

/// Into place the frame comes with its place's host page; into mapped and staged only without one.
void UffdModel::set_kind(Page& page, Kind to) {
  if (to == Kind::place) set_resident(pfn(page), true);
  const bool before = has_host_page(page);
  const bool elsewhere = to == Kind::mapped || to == Kind::staged;
  WEIR_BUG_ON(elsewhere && resident(pfn(page)));  // two host pages for one frame
  page.arch = static_cast<uint32_t>(to);
  host_pages_ += has_host_page(page);
  host_pages_ -= before;
  WEIR_BUG_ON(host_pages_ > static_cast<uint64_t>(mem_->frames.v));
}

void UffdModel::set_resident(Pfn pfn, bool on) {
  const Page& page = mem_->page(pfn);
  const bool before = has_host_page(page);
  const uint64_t bit = uint64_t{1} << (pfn.v % 64);
  resident_[pfn.v / 64] = on ? resident_[pfn.v / 64] | bit : resident_[pfn.v / 64] & ~bit;
  host_pages_ += has_host_page(page);
  host_pages_ -= before;
}

uint64_t UffdModel::content_hash(const Page& page) const {
  // Of the bytes and of the slot that they are compared with.
  uint64_t hash = page.private_ * 0x9e3779b97f4a7c15ull + 1;
  const std::byte* at = place_of_(place_arg_, pfn(page));
  for (size_t i = 0; i < content_bytes_; i += 8) {
    uint64_t word;
    std::memcpy(&word, at + i, 8);
    hash = std::rotl((hash ^ word) * 0xff51afd7ed558ccdull, 31);
  }
  return hash | 1;
}

bool UffdModel::test_dirty(const Page& page) const {
  WEIR_BUG_ON(kind(page) == Kind::mapped);
  const uint64_t kept = hashes_[pfn(page).v];
  return kept == 0 || kept != content_hash(page);
}

void UffdModel::mark_clean(const Page& page) {
  // A mapped page may be another in a moment.
  hashes_[pfn(page).v] = kind(page) == Kind::mapped ? 0 : content_hash(page);
}

void UffdModel::before_kmap(Page& page) {
  if (page.test(PageFlag::kernel_place)) return;
  WEIR_BUG_ON(kind(page) == Kind::mapped);  // its task may be writing there
  if (kind(page) == Kind::none || kind(page) == Kind::zero) set_kind(page, Kind::place);
}

void UffdModel::cleared(Page& page) {
  WEIR_BUG_ON(kind(page) == Kind::mapped || kind(page) == Kind::staged);
  set_kind(page, Kind::zero);
  set_resident(pfn(page), false);
  std::memset(place_of_(place_arg_, pfn(page)), 0, content_bytes_);
}

// ---- In -------------------------------------------------------------------------------------------------------------

bool UffdModel::fails(uint32_t one_in) {
  if (one_in == 0) return false;
  uint64_t z = (dice_ += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return (z ^ (z >> 31)) % one_in == 0;
}

Pte UffdModel::pte_at(const Mm& mm, VirtAddr address) const {
  const Pte* pte = tables_->walk(mm, address);
  return pte != nullptr ? Pte{__atomic_load_n(&pte->v, __ATOMIC_ACQUIRE)} : Pte{};
}

Result<void> UffdModel::map_in(Mm& mm, VirtAddr address, Page& page) {
  WEIR_BUG_ON(!page.test(PageFlag::locked));
  preempt();
  const Pte pte = pte_at(mm, address);
  if (!pte_present(pte) || pte_pfn(pte) != pfn(page)) return {};  // zapped since
  const uint64_t key = key_of(mm, address);
  Slot* slot = find(key);
  if (slot != nullptr && slot->pfn == pfn(page).v) return {};
  WEIR_BUG_ON(kind(page) == Kind::none);    // undefined bytes for a task
  WEIR_BUG_ON(kind(page) == Kind::mapped);  // a second address for one frame
  if (fails(failures_.again_one_in)) return Errno::again;
  if (fails(failures_.nomem_one_in)) return Errno::nomem;
  if (slot != nullptr) drop(slot);  // what was zapped here is not flushed yet
  set_resident(pfn(page), false);
  set_kind(page, Kind::mapped);
  insert(key).pfn = static_cast<uint32_t>(pfn(page).v);
  WEIR_STATE(map_in, address, pfn(page), 0);
  return {};
}

// ---- Out ------------------------------------------------------------------------------------------------------------

/// The PTE says that hardware should not know the page: it is old, or holds the page's slot.
bool UffdModel::still_maps(const FlushEntry& entry, Purpose purpose) const {
  const Slot* slot = find(key_of(*entry.mm, entry.address));
  if (slot == nullptr || slot->pfn != pfn(*entry.page).v) return false;
  const Pte pte = pte_at(*entry.mm, entry.address);
  if (pte_present(pte)) return !pte_young(pte) && pte_pfn(pte) == pfn(*entry.page);
  if (purpose == Purpose::age) return false;
  return is_swap_pte(pte) && PageSwapCache(*entry.page) && decode_swap_pte(pte).val == entry.page->private_;
}

void UffdModel::move_out(FlushBatch& batch, Purpose purpose) {
  for (unsigned i = 0; i < batch.count; ++i) {
    FlushEntry& entry = batch.entries[i];
    preempt();
    if (entry.page == nullptr || !still_maps(entry, purpose)) continue;
    WEIR_BUG_ON(!entry.page->test(PageFlag::locked));
    Slot* slot = find(key_of(*entry.mm, entry.address));
    if (slot->pins != 0) {
      entry.page = nullptr;
      continue;
    }
    erase(slot);
    set_kind(*entry.page, Kind::staged);
    WEIR_STATE(window_unmap, entry.address, 1, 0);
  }
  batch.count = 0;
  if (quarantine_.size() >= QUARANTINE_BATCH) drain();
}

/// The host page goes, whatever it holds.
void UffdModel::drop(Slot* slot) {
  set_kind(mem_->page(Pfn(slot->pfn)), Kind::none);
  erase(slot);
}

void UffdModel::drop_range(Mm& mm, VirtAddr start, VirtAddr end) {
  const auto drop_stale = [&](uint64_t key) {
    Slot* slot = find(key);
    if (slot == nullptr) return;
    const Pte pte = pte_at(mm, VirtAddr((key & ((uint64_t{1} << VPN_BITS) - 1)) << PAGE_SHIFT));
    // Another thread has faulted here since: its page stays. A swap entry, too, was put there by somebody.
    const bool stale = pte_none(pte) || (pte_present(pte) && pte_pfn(pte).v != slot->pfn);
    if (stale) drop(slot);
  };
  const uint64_t first = key_of(mm, start), last = key_of(mm, end - 1);
  preempt();
  if (last - first < capacity_) {
    for (uint64_t key = first; key <= last; ++key) drop_stale(key);
  } else {
    // Erasing moves entries, never to before the hole: so looking at the same place again sees them all.
    for (uint64_t i = 0; i < capacity_;) {
      const uint64_t key = slots_[i].key;
      if (key >= first && key <= last) drop_stale(key);
      if (slots_[i].key == key) ++i;
    }
  }
  if (quarantine_.size() >= QUARANTINE_BATCH) drain();
}

void UffdModel::mm_destroyed(const Mm& mm) {
  const uint64_t first = mm.id << VPN_BITS, last = first | ((uint64_t{1} << VPN_BITS) - 1);
  for (uint64_t i = 0; i < capacity_; ++i)
    WEIR_BUG_ON(slots_[i].key >= first && slots_[i].key <= last);  // somebody did not flush
}

void UffdModel::pin(const Mm& mm, VirtAddr address) {
  Slot* slot = find(key_of(mm, address));
  WEIR_BUG_ON(slot == nullptr);
  ++slot->pins;
}

void UffdModel::unpin(const Mm& mm, VirtAddr address) {
  Slot* slot = find(key_of(mm, address));
  WEIR_BUG_ON(slot == nullptr || slot->pins == 0);
  --slot->pins;
}

// ---- Frames changing hands ------------------------------------------------------------------------------------------

void UffdModel::arch_alloc_page(Page& page, Order order, gfp_t gfp) {
  for (uint64_t i = 0; i < static_cast<uint64_t>(pages_of(order).v); ++i) {
    Page& p = mem_->page(pfn(page) + PageCount(static_cast<int64_t>(i)));
    if (!gfp.has(__GFP_HIGHMEM)) {
      set_kind(p, Kind::none);
      set_resident(pfn(p), true);
      continue;
    }
    hashes_[pfn(p).v] = 0;
    set_kind(p, Kind::none);
#ifdef WEIR_DEBUG
    std::memset(place_of_(place_arg_, pfn(p)), 0xdb, content_bytes_);
#endif
  }
}

/// The caller may hold a spinlock: only noted down.
bool UffdModel::arch_free_page(Page& page) {
  if (page.test(PageFlag::kernel_place)) return true;
  WEIR_BUG_ON(kind(page) == Kind::mapped);  // a task can still reach it
  if (kind(page) == Kind::staged) {
    quarantine_.push_back(page);
    return false;
  }
  set_kind(page, Kind::none);
  return true;
}

void UffdModel::drain() {
  while (!quarantine_.empty()) {
    Page& page = quarantine_.front();
    quarantine_.pop_front();
    set_kind(page, Kind::none);
    tables_->pages().free_quarantined(page);
  }
}

const char* UffdModel::broken_rule() const {
  uint64_t mapped = 0, counted = 0;
  for (uint64_t i = 0; i < capacity_; ++i) {
    const Slot& slot = slots_[i];
    if (slot.key == 0) continue;
    ++mapped;
    const Page& page = mem_->page(Pfn(slot.pfn));
    if (kind(page) != Kind::mapped) return "uffd: hardware maps a frame that is not mapped";
    if (page_mapcount(page) > 1) return "uffd: a frame is mapped twice";
    // Pinned when it was to leave, it stays in the swap cache until somebody wants it: the pin may be gone by now.
    if (slot.pins == 0 && !page_mapped(page) && !PageSwapCache(page))
      return "uffd: hardware maps a frame that no PTE maps";
  }
  for (uint64_t i = 0; i < static_cast<uint64_t>(mem_->frames.v); ++i) {
    const Page& page = mem_->page(Pfn(i));
    counted += has_host_page(page);
    mapped -= kind(page) == Kind::mapped;
    if (resident(Pfn(i)) && (kind(page) == Kind::mapped || kind(page) == Kind::staged))
      return "uffd: two host pages for a frame";
  }
  if (mapped != 0) return "uffd: a frame is mapped that hardware does not know";
  if (counted != host_pages_) return "uffd: host pages are miscounted";
  return nullptr;
}

}  // namespace weir
