// src/arch/soft/soft_mmu.cpp: see soft_mmu.hpp
#include "arch/soft/soft_mmu.hpp"

namespace weir {

namespace {

/// Sets bits in a present entry as hardware does: in one step, and only if the entry is still what was looked at.
bool set_bits(const Mm& mm, VirtAddr address, Pte* ptep, Pte seen, uint64_t bits) {
  if ((seen.v & bits) == bits) return true;
  uint64_t expected = seen.v;
  if (!__atomic_compare_exchange_n(&ptep->v, &expected, seen.v | bits, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
    return false;
  WEIR_STATE(pte, pte_subject(mm, address.page()), seen, Pte{seen.v | bits});
  return true;
}

}  // namespace

Mmu::Caps SoftMmu::caps_of(Model model) {
  if (model != Model::uffd) return {};
  return {.has_accessed = false,
          .has_dirty = false,
          .has_write_protect = false,
          .has_zero_page = false,
          .has_alias = false,
          .maps_files = false,
          .tracks_host_pages = true,
          .fault_around = 8};
}

Result<void> SoftMmu::attach(MemMap& mem, PageTables& tables, Bootmem& boot) {
  if (options_.cpus == 0 || options_.cpus > MAX_CPUS) return Errno::inval;
  mem_ = &mem;
  tables_ = &tables;
  if (options_.content == ContentKind::tags)
    tags_ = reinterpret_cast<uint64_t*>(WEIR_TRY(
        boot.alloc_bootmem(Bytes(static_cast<uint64_t>(mem.frames.v) * sizeof(uint64_t)), Bytes(sizeof(uint64_t)))));
  if (!is_uffd()) return {};
  return uffd_.attach(
      mem, tables, boot, [](void* self, Pfn pfn) { return static_cast<SoftMmu*>(self)->place_of(pfn); }, this,
      options_.content == ContentKind::tags ? sizeof(uint64_t) : PAGE_SIZE);
}

// ---- Accesses -------------------------------------------------------------------------------------------------------

std::byte* SoftMmu::access_slow(Task& task, VirtAddr address, Access kind, FaultResult& result) {
  if (is_uffd()) return access_uffd(task, address, kind, result);
  const Mm& mm = *task.mm;
  if (Entry& e = tlb_[this_cpu()].entries[slot_of(address)];
      e.key[static_cast<unsigned>(kind)] == key_of(mm, address)) {
    auto* ptep = const_cast<Pte*>(e.pte);
    const Pte now{__atomic_load_n(&ptep->v, __ATOMIC_ACQUIRE)};
    if (!pte_present(now) || place_of(pte_pfn(now)) != e.place)
      ++stats_.stale_hits;
    else
      set_bits(mm, address, ptep, now, _PAGE_ACCESSED);
    return place_in(e, address);
  }
  for (;;) {
    uint32_t error_code = PF_USER | (kind == Access::write ? PF_WRITE : 0u);
    if (const Entry* e = walk(mm, address, kind, error_code)) return place_in(*e, address);
    ++stats_.faults;
    result = handler_(handler_arg_, task, address, error_code);
    if (result != FaultResult::done) return nullptr;
  }
}

std::byte* SoftMmu::access_uffd(Task& task, VirtAddr address, Access kind, FaultResult& result) {
  Mm& mm = *task.mm;
  const uint64_t right = kind == Access::write ? VM_WRITE : VM_ACCESS_FLAGS;
  for (;;) {
    // The host's own mappings have the VMAs' rights.
    auto vma = mm.mmap.upper_bound(address);
    const bool allowed = vma != mm.mmap.begin() && (--vma)->contains(address) && (vma->vm_flags & right) != 0;
    if (allowed) {
      if (const Page* page = uffd_.lookup(mm, address)) {
        std::byte* place = place_of(mem_->pfn(page));
        return options_.content == ContentKind::bytes ? place + (address.v & ~PAGE_MASK) : place;
      }
    }
    ++stats_.faults;
    result = handler_(handler_arg_, task, address, PF_USER | (kind == Access::write ? PF_WRITE : 0u));
    if (result != FaultResult::done) return nullptr;
  }
}

/// The tables say yes: an entry of this CPU's TLB. Null: a fault, of which `error_code` then says more.
SoftMmu::Entry* SoftMmu::walk(const Mm& mm, VirtAddr address, Access kind, uint32_t& error_code) {
  if (address >= mm.task_size) return nullptr;
  Pte* ptep = tables_->pte_offset(mm, address);
  if (ptep == nullptr) return nullptr;
  for (;;) {
    const Pte pte{__atomic_load_n(&ptep->v, __ATOMIC_ACQUIRE)};
    if (!pte_present(pte)) return nullptr;
    if (!pte_user(pte) || (kind == Access::write && !pte_write(pte))) {
      error_code |= PF_PROT;
      return nullptr;
    }
    const bool writes = kind == Access::write;
    if (!set_bits(mm, address, ptep, pte, writes ? _PAGE_ACCESSED | _PAGE_DIRTY | _PAGE_SOFT_DIRTY : _PAGE_ACCESSED))
      continue;
    ++stats_.fills;
    Entry& e = tlb_[this_cpu()].entries[slot_of(address)];
    const uint64_t key = key_of(mm, address);
    e.key[static_cast<unsigned>(Access::read)] = key;
    e.key[static_cast<unsigned>(Access::write)] = writes || (pte_write(pte) && pte_dirty(pte)) ? key : 0;
    e.place = place_of(pte_pfn(pte));
    e.pte = ptep;
    return &e;
  }
}

FaultResult SoftMmu::copy_from_user(Task& task, void* to, VirtAddr from, size_t bytes) {
  auto* out = static_cast<std::byte*>(to);
  while (bytes > 0) {
    const size_t n = std::min<size_t>(bytes, PAGE_SIZE - (from.v & ~PAGE_MASK));
    FaultResult result = FaultResult::done;
    const std::byte* place = access(task, from, Access::read, result);
    if (place == nullptr) return result;
    std::memcpy(out, place, n);
    out += n, from = from + n, bytes -= n;
  }
  return FaultResult::done;
}

FaultResult SoftMmu::copy_to_user(Task& task, VirtAddr to, const void* from, size_t bytes) {
  const auto* in = static_cast<const std::byte*>(from);
  while (bytes > 0) {
    const size_t n = std::min<size_t>(bytes, PAGE_SIZE - (to.v & ~PAGE_MASK));
    FaultResult result = FaultResult::done;
    std::byte* place = access(task, to, Access::write, result);
    if (place == nullptr) return result;
    std::memcpy(place, in, n);
    in += n, to = to + n, bytes -= n;
  }
  return FaultResult::done;
}

bool SoftMmu::tlb_holds(const Mm& mm, VirtAddr address) const {
  for (unsigned cpu = 0; cpu < options_.cpus; ++cpu)
    if (tlb_[cpu].entries[slot_of(address)].key[0] == key_of(mm, address)) return true;
  return false;
}

// ---- Flushing -------------------------------------------------------------------------------------------------------

void SoftMmu::flush_one(const Mm& mm, VirtAddr address) {
  const uint64_t key = key_of(mm, address);
  for (unsigned cpu = 0; cpu < options_.cpus; ++cpu) {
    Entry& e = tlb_[cpu].entries[slot_of(address)];
    if (e.key[0] == key) e = Entry{};
  }
}

void SoftMmu::flush_batch(FlushBatch& batch) {
  if (is_uffd()) return uffd_.move_out(batch, UffdModel::Purpose::flush);
  for (unsigned i = 0; i < batch.count; ++i) flush_one(*batch.entries[i].mm, batch.entries[i].address);
  batch.count = 0;
}

void SoftMmu::age_batch(FlushBatch& batch) {
  if (is_uffd()) return uffd_.move_out(batch, UffdModel::Purpose::age);
  flush_batch(batch);
}

void SoftMmu::flush_range(Mm& mm, VirtAddr start, VirtAddr end) {
  if (is_uffd()) return uffd_.drop_range(mm, start, end);
  if (((end - start) >> PAGE_SHIFT) <= TLB_ENTRIES) {
    for (VirtAddr a = start.page(); a < end; a = a + PAGE_SIZE) flush_one(mm, a);
    return;
  }
  const uint64_t first = key_of(mm, start);
  const uint64_t last = key_of(mm, end - 1);
  for (unsigned cpu = 0; cpu < options_.cpus; ++cpu)
    for (Entry& e : tlb_[cpu].entries)
      if (e.key[0] >= first && e.key[0] <= last) e = Entry{};
}

Result<void> SoftMmu::update_mmu_cache(Mm& mm, VirtAddr address, Pte, Page* page) {
  return is_uffd() && page != nullptr ? uffd_.map_in(mm, address, *page) : Result<void>();  // else the walk finds it
}

void SoftMmu::mm_created(Mm& mm) { WEIR_BUG_ON(mm.id == 0 || mm.id >> (64 - VPN_BITS) != 0); }

void SoftMmu::mm_destroyed(Mm& mm) {
  if (is_uffd()) return uffd_.mm_destroyed(mm);
  flush_range(mm, VirtAddr(0), VirtAddr(uint64_t{1} << (VPN_BITS + PAGE_SHIFT)));
}

// ---- Content --------------------------------------------------------------------------------------------------------

Content SoftMmu::kmap(Page& page) {
  if (is_uffd()) uffd_.before_kmap(page);
  if (options_.content == ContentKind::tags) return {.tag = tags_ + mem_->pfn(page).v};
  return {.bytes = mem_->page_address(page)};
}

void SoftMmu::kunmap(Page&) {}

void SoftMmu::clear_user_highpage(Page& page) {
  if (is_uffd()) return uffd_.cleared(page);
  if (options_.content == ContentKind::tags)
    tags_[mem_->pfn(page).v] = 0;
  else
    std::memset(mem_->page_address(page), 0, PAGE_SIZE);
}

void SoftMmu::copy_user_highpage(Page& to, Page& from) {
  if (is_uffd()) {
    uffd_.before_kmap(from);
    uffd_.before_kmap(to);
  }
  if (options_.content == ContentKind::tags)
    tags_[mem_->pfn(to).v] = tags_[mem_->pfn(from).v];
  else
    std::memcpy(mem_->page_address(to), mem_->page_address(from), PAGE_SIZE);
}

// With dirty bits in the PTEs and frames that have no other place there is nothing to be asked.
bool SoftMmu::captured(Page& page) { return !is_uffd() || uffd_.captured(page); }
bool SoftMmu::test_dirty(Page& page) { return !is_uffd() || uffd_.test_dirty(page); }
void SoftMmu::mark_clean(Page& page) {
  if (is_uffd()) uffd_.mark_clean(page);
}
void SoftMmu::arch_alloc_page(Page& page, Order order, gfp_t gfp) {
  if (is_uffd()) uffd_.arch_alloc_page(page, order, gfp);
}
bool SoftMmu::arch_free_page(Page& page, Order order) {
  WEIR_BUG_ON(is_uffd() && order.v != 0 && !page.test(PageFlag::kernel_place));
  return !is_uffd() || uffd_.arch_free_page(page);
}
void SoftMmu::flush_quarantine() {
  if (is_uffd()) uffd_.drain();
}

}  // namespace weir
