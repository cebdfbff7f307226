// src/arch/uffd/uffd_mmu_verify.cpp: the host's own count of pages against what Page::arch says. See uffd_mmu.hpp
#include "arch/uffd/host_calls.hpp"
#include "arch/uffd/uffd_mmu.hpp"
#include "mm/swapops.hpp"

namespace weir {

namespace {

/// Calls fn(first + i) for each page of [first, first + n) that has a host page.
template <class Fn>
void for_each_present(const std::byte* first, uint64_t n, Fn fn) {
  unsigned char present[512] = {};
  for (uint64_t at = 0; at < n; at += sizeof present) {
    const uint64_t some = n - at < sizeof present ? n - at : sizeof present;
    if (host::mincore(first + (at << PAGE_SHIFT), some << PAGE_SHIFT, present) != 0)
      continue;  // not mapped in the host
    for (uint64_t i = 0; i < some; ++i)
      if ((present[i] & 1) != 0) fn(at + i);
  }
}

}  // namespace

uint64_t UffdMmu::resident_pages() const {
  uint64_t n = 0;
  const auto one = [&](uint64_t) { ++n; };
  for_each_present(mem_->arena, static_cast<uint64_t>(mem_->frames.v), one);
  for_each_present(options_.staging, options_.staging_slots, one);
  if (mm_ == nullptr) return n;
  const VirtAddr end(options_.end);
  for (VirtAddr a = tables_->next_table(*mm_, VirtAddr(options_.start), end); a < end;
       a = tables_->next_table(*mm_, a, end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, end);
    for_each_present(reinterpret_cast<const std::byte*>(a.v), (stop - a) >> PAGE_SHIFT, one);
    a = stop;
  }
  return n;
}

unsigned UffdMmu::verify(VerifyHost& host) {
  unsigned broken = 0;
  const auto report = [&](const char* what, uint64_t pfn, uint64_t expected, uint64_t found) {
    ++broken;
    if (broken <= 20) host.broken(what, pfn, expected, found);
  };
  const auto frames = static_cast<uint64_t>(mem_->frames.v);

  // Places. A kernel page may be untouched, so that the bit may be set without a host page, never the other way round.
  for_each_present(mem_->arena, frames, [&](uint64_t n) {
    if (!resident(n) && !mem_->page(Pfn(n)).test(PageFlag::reserved) && kind(mem_->page(Pfn(n))) != Kind::none)
      report("a place has a host page that nobody knows of", n, 0, 1);
  });

  // Staging: as many host pages as taken slots, and each slot one frame's or left behind.
  uint64_t taken = 0, staged = 0;
  {
    ScopedLock guard(staging_lock_);
    taken = slots_taken_;
  }
  for (uint64_t n = 0; n < frames; ++n) {
    const Page& page = mem_->page(Pfn(n));
    if (page.test(PageFlag::reserved) || page.test(PageFlag::buddy) || page.test(PageFlag::pcp) ||
        page_count(page) == 0) {
      if (!PageAllocator::is_quarantined(page)) continue;
    }
    if (page.test(PageFlag::kernel_place)) continue;
    if (kind(page) == Kind::staged) {
      ++staged;
      unsigned char present = 0;
      weir::host::mincore(slot_address(index(page)), PAGE_SIZE, &present);
      if ((present & 1) == 0) report("a staged frame's slot is empty", n, 1, 0);
    }
    if (kind(page) == Kind::mapped && mm_ != nullptr) {
      const VirtAddr at(mapped_at_[n].load(std::memory_order_relaxed));
      const Pte* pte = tables_->walk(*mm_, at);
      const bool ours = pte != nullptr && pte_present(*pte) && pte_pfn(*pte) == Pfn(n);
      unsigned char present = 0;
      weir::host::mincore(reinterpret_cast<void*>(at.v), PAGE_SIZE, &present);
      if (ours && (present & 1) == 0) report("a mapped frame has no host page", n, 1, 0);
      if (resident(n)) report("a mapped frame has a host page at its place, too", n, 0, 1);
    }
  }
  uint64_t left = 0;
  {
    ScopedLock guard(quarantine_lock_);
    left = nr_left_ + draining_left_;
  }
  if (staged + left != taken)
    report("staging slots taken are not frames staged and slots left behind", 0, staged + left, taken);
  uint64_t in_staging = 0;
  for_each_present(options_.staging, options_.staging_slots, [&](uint64_t) { ++in_staging; });
  if (in_staging > taken) report("host pages in staging that no slot accounts for", 0, taken, in_staging);

  // User addresses: a host page belongs to the frame that is mapped there.
  if (mm_ != nullptr) {
    const VirtAddr end(options_.end);
    for (VirtAddr a = tables_->next_table(*mm_, VirtAddr(options_.start), end); a < end;
         a = tables_->next_table(*mm_, a, end)) {
      const VirtAddr stop = PageTables::pmd_addr_end(a, end);
      for_each_present(reinterpret_cast<const std::byte*>(a.v), (stop - a) >> PAGE_SHIFT, [&](uint64_t i) {
        const VirtAddr at = a + (i << PAGE_SHIFT);
        const Pte pte = *tables_->walk(*mm_, at);
        if (pte_present(pte) && kind(mem_->page(pte_pfn(pte))) == Kind::mapped &&
            mapped_at_[pte_pfn(pte).v].load(std::memory_order_relaxed) == at.v)
          return;
        if (is_swap_pte(pte)) {  // held by the host after its PTE had become a swap entry
          for (uint64_t n = 0; n < frames; ++n) {
            const Page& page = mem_->page(Pfn(n));
            if (kind(page) == Kind::mapped && mapped_at_[n].load(std::memory_order_relaxed) == at.v &&
                PageSwapCache(page))
              return;
          }
        }
        if (host.managed(at)) report("a host page at a user address that no frame accounts for", at.v, 0, pte.v);
      });
      a = stop;
    }
  }
  return broken;
}

}  // namespace weir
