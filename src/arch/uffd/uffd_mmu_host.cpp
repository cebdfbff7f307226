// src/arch/uffd/uffd_mmu_host.cpp: pages into and out of the host's page tables. See uffd_mmu.hpp
#include <algorithm>

#include "arch/uffd/host_calls.hpp"
#include "arch/uffd/uffd_mmu.hpp"
#include "mm/address_space.hpp"
#include "mm/swapops.hpp"
#include "mm/vmstat.hpp"

namespace weir {

namespace {

void count(std::atomic<uint64_t>& counter, uint64_t n = 1) { counter.fetch_add(n, std::memory_order_relaxed); }

/// What no rule covers: going on would lose somebody's bytes.
[[noreturn]] void refused(const char* call, long error, const char* file, int line) {
  if (error == -EBADF)
    bug("a userfaultfd of weir's is gone: the program has closed a descriptor that is not its own", file, line);
  char text[96];
  size_t at = 0;
  for (const char* p = call; *p != 0 && at < 60; ++p) text[at++] = *p;
  for (const char* p = ": the host refused with errno "; *p != 0; ++p) text[at++] = *p;
  long n = -error;
  if (n >= 100) text[at++] = static_cast<char>('0' + n / 100 % 10);
  if (n >= 10) text[at++] = static_cast<char>('0' + n / 10 % 10);
  text[at++] = static_cast<char>('0' + n % 10);
  text[at] = 0;
  bug(text, file, line);
}

/// How often the host may say "again" before that is an answer.
constexpr int PATIENCE = 1000;

void yield() { raw_syscall(SYS_sched_yield); }

Pte load(const Pte* pte) { return pte == nullptr ? Pte{} : Pte{__atomic_load_n(&pte->v, __ATOMIC_ACQUIRE)}; }

}  // namespace

// ---- In -------------------------------------------------------------------------------------------------------------

void UffdMmu::wake(VirtAddr address) {
  if (!fds_.must_wake) return;
  uffdio_range range{.start = address.page().v, .len = PAGE_SIZE};
  host::ioctl(fds_.user, UFFDIO_WAKE, &range);
}

/// Window lock held; the PTE stands for a page that hardware does not have. After an error nothing is mapped there.
/// Errors: EAGAIN (the mapping is not there, or is being changed), ENOMEM.
Result<void> UffdMmu::copy_in(VirtAddr address, const std::byte* from, Stores stores) {
  const Result<void> copied = try_copy_in(address, from, stores);
  if (!copied) host::madvise(reinterpret_cast<void*>(address.v), PAGE_SIZE, MADV_DONTNEED);
  return copied;
}

Result<void> UffdMmu::try_copy_in(VirtAddr address, const std::byte* from, Stores stores) {
  for (int tries = 0;; ++tries) {
    uffdio_copy copy{.dst = address.v,
                     .src = reinterpret_cast<uint64_t>(from),
                     .len = PAGE_SIZE,
                     .mode = stores == Stores::fault ? UFFDIO_COPY_MODE_WP : 0,
                     .copy = 0};
    const long r = host::ioctl(fds_.user, UFFDIO_COPY, &copy);
    if (r == 0) return {};
    switch (-r) {
      case EAGAIN:
        count(n_.again);
        if (tries == PATIENCE) return Errno::again;
        yield();
        break;
      case ENOENT:  // unmapped under our feet: the access, repeated, finds out for itself
      case ESRCH:   // the process is going
        return Errno::again;
      case ENOMEM: return Errno::nomem;
      case EEXIST:
        // From before the PTE was cleared, by somebody whose flush_range is still to come.
        count(n_.stale);
        if (tries == PATIENCE)
          refused("UFFDIO_COPY: something is mapped again and again where a page was to come back", r, __FILE__,
                  __LINE__);
        drop(address, PAGE_SIZE);
        break;
      default: refused("UFFDIO_COPY", r, __FILE__, __LINE__);
    }
  }
}

/// The host page at the frame's place becomes the one at `address`. Window lock held. Errors as copy_in.
Result<void> UffdMmu::place_in(VirtAddr address, Page& page, Stores stores) {
  const uint64_t n = pfn(page);
  for (int tries = 0; stores == Stores::free && resident(n) && tries < PATIENCE; ++tries) {
    abi::UffdMove move{.dst = address.v,
                       .src = reinterpret_cast<uint64_t>(mem_->page_address(page)),
                       .len = PAGE_SIZE,
                       .mode = 0,
                       .move = 0};
    const long r = host::ioctl(fds_.user, abi::IOC_MOVE, &move);
    if (r == 0) {
      set_resident(n, false);
      count(n_.place_moves);
      return {};
    }
    if (r != -EAGAIN) break;  // shared by fork, other rights than the arena's, something stale there: copied instead
    count(n_.again);
    yield();
  }
  WEIR_TRY_VOID(copy_in(address, mem_->page_address(page), stores));
  count(n_.copies);
  drop_place(page);
  return {};
}

/// The host page at `address`, a file's, becomes writable or write-protected. Window lock held. Errors: EAGAIN.
Result<void> UffdMmu::protect(VirtAddr address, Stores stores) {
  for (int tries = 0;; ++tries) {
    uffdio_writeprotect wp{.range = {.start = address.v, .len = PAGE_SIZE},
                           .mode = stores == Stores::fault ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
    const long r = host::ioctl(fds_.user, UFFDIO_WRITEPROTECT, &wp);
    if (r == 0) return {};
    if (r == -ENOENT || r == -ESRCH) return Errno::again;  // unmapped under our feet
    if (r != -EAGAIN) refused("UFFDIO_WRITEPROTECT", r, __FILE__, __LINE__);
    count(n_.again);
    if (tries == PATIENCE) return Errno::again;
    yield();
  }
}

Result<void> UffdMmu::update_mmu_cache(Mm& mm, VirtAddr address, Pte pte, Page* page) {
  WEIR_FLOW(address, pte);
  if (page == nullptr) return {};
  WEIR_DEBUG_BUG_ON(!page->test(PageFlag::locked));
  const bool file = !PageAnon(*page);
  const Stores stores = file && !pte_write(pte) ? Stores::fault : Stores::free;
  if (file) maps_files_.store(true, std::memory_order_release);
  // A range that it was mapped in is being zapped.
  if (file && !mapped_at(*page, address)) take_back(*page);
  ScopedLock guard(window(address));
  const Pte now = load(tables_->walk(mm, address));
  // Taken away again since: DONTNEED, or it never was ours.
  if (!pte_present(now) || pte_pfn(now) != mem_->pfn(*page)) return {};

  std::atomic<uint64_t>& at = mapped_at_[pfn(*page)];
  uint64_t way = 0;
  switch (kind(*page)) {
    case Kind::mapped:
      if (at.load(std::memory_order_relaxed) == address.v) {
        if (file) WEIR_TRY_VOID(protect(address, stores));
        wake(address);
        return {};
      }
      // mremap, and the host held the page where it was.
      WEIR_TRY_VOID(copy_in(address, reinterpret_cast<const std::byte*>(at.load(std::memory_order_relaxed)), stores));
      host::madvise(reinterpret_cast<void*>(at.load(std::memory_order_relaxed)), PAGE_SIZE, MADV_DONTNEED);
      count(n_.copies);
      break;
    case Kind::none:
    case Kind::zero:
      WEIR_TRY_VOID(copy_in(address, zero_, stores));
      count(n_.copies);
      count(n_.zero_copies);
      way = 1;
      break;
    case Kind::bounce:
      WEIR_TRY_VOID(copy_in(address, bytes(*page), stores));
      count(n_.copies);
      give_bounce(index(*page));
      break;
    case Kind::place: WEIR_TRY_VOID(place_in(address, *page, stores)); break;
    case Kind::staged: {
      WEIR_TRY_VOID(copy_in(address, bytes(*page), stores));
      count(n_.copies);
      count(n_.staged_back);
      leave_behind(index(*page));
      way = 2;
      break;
    }
  }
  at.store(address.v, std::memory_order_relaxed);  // before the kind: keep_batch has no page lock
  set(*page, Kind::mapped);
  WEIR_STATE(map_in, address, mem_->pfn(*page), way);
  (void)way;
  return {};
}

// ---- Out ------------------------------------------------------------------------------------------------------------

/// Window lock held: is the entry still what it was when it was put into the batch?
bool UffdMmu::still_maps(const FlushEntry& entry, Purpose purpose) const {
  if (!mapped_at(*entry.page, entry.address)) return false;
  const Pte pte = load(tables_->walk(*entry.mm, entry.address));
  const bool here = pte_present(pte) && pte_pfn(pte) == mem_->pfn(*entry.page);
  if (here) return !pte_young(pte);
  if (purpose == Purpose::age) return false;
  if (!PageAnon(*entry.page)) return true;
  return is_swap_pte(pte) && PageSwapCache(*entry.page) && decode_swap_pte(pte).val == entry.page->private_;
}

/// The host does not let go of it.
void UffdMmu::stay(FlushEntry& entry) {
  count(n_.pinned);
  entry.page = nullptr;
}

/// Moves pages of neighbouring addresses to staging, as many as the host lets go of. Window lock held.
void UffdMmu::move_run(FlushEntry* const* run, unsigned n) {
  unsigned done = 0;
  bool broke_sharing = false, drained = false;
  int patience = PATIENCE;
  while (done < n) {
    uint32_t first = 0;
    const unsigned got = take_slots(n - done, first);
    if (got == 0) {
      if (drained) {
        for (; done < n; ++done) stay(*run[done]);
        return;
      }
      drain();
      drained = true;
      continue;
    }
    unsigned used = 0;
    while (used < got && done < n) {
      const VirtAddr from = run[done]->address;
      const uint64_t length = uint64_t{std::min(got - used, n - done)} << PAGE_SHIFT;
      abi::UffdMove move{.dst = reinterpret_cast<uint64_t>(slot_address(first + used)),
                         .src = from.v,
                         .len = length,
                         .mode = 0,
                         .move = 0};
      const long r = host::ioctl(fds_.staging, abi::IOC_MOVE, &move);
      count(n_.moves);
      const auto moved = static_cast<unsigned>((r == 0          ? length
                                                : move.move > 0 ? static_cast<uint64_t>(move.move)
                                                                : 0) >>
                                               PAGE_SHIFT);
      for (unsigned i = 0; i < moved; ++i) set(*run[done + i]->page, Kind::staged, first + used + i);
      WEIR_STATE(window_unmap, from, moved, 0);
      count(n_.moved_pages, moved);
      done += moved;
      used += moved;
      if (r == 0 || moved != 0) continue;
      switch (-r) {
        case EAGAIN:
          count(n_.again);
          if (--patience == 0) {
            stay(*run[done++]);
            patience = PATIENCE;
          } else {
            yield();
          }
          break;
        case EBUSY:
          if (!broke_sharing && PageAnon(*run[done]->page)) {
            // Shared with another process since a fork, perhaps: a write makes the page this one's own.
            host::madvise(reinterpret_cast<void*>(from.v), length, abi::ADVICE_POPULATE_WRITE);
            broke_sharing = true;
            count(n_.cow_breaks);
          } else {
            stay(*run[done++]);
          }
          break;
        case EINVAL:  // rights other than staging's
        case ENOMEM:
        case ESRCH: stay(*run[done++]); break;
        case ENOENT: refused("UFFDIO_MOVE: a page is gone that was mapped", r, __FILE__, __LINE__);
        case EEXIST: refused("UFFDIO_MOVE: a staging slot is not empty", r, __FILE__, __LINE__);
        default: refused("UFFDIO_MOVE", r, __FILE__, __LINE__);
      }
    }
    if (used < got) give_slots(first + used, got - used);
  }
}

void UffdMmu::move_out(FlushBatch& batch, Purpose purpose) {
  FlushEntry* order[FlushBatch::CAPACITY];
  unsigned n = 0;
  for (unsigned i = 0; i < batch.count; ++i)
    if (batch.entries[i].page != nullptr) order[n++] = &batch.entries[i];
  std::sort(order, order + n, [](const FlushEntry* a, const FlushEntry* b) { return a->address < b->address; });

  for (unsigned i = 0; i < n;) {
    Mutex& lock = window(order[i]->address);
    ScopedLock guard(lock);
    const uint64_t in_window = order[i]->address.v >> WINDOW_SHIFT;
    while (i < n && order[i]->address.v >> WINDOW_SHIFT == in_window) {
      if (!still_maps(*order[i], purpose)) {
        count(n_.flush_skipped);
        ++i;
        continue;
      }
      unsigned end = i + 1;
      while (end < n && order[end]->address == order[end - 1]->address + PAGE_SIZE &&
             order[end]->address.v >> WINDOW_SHIFT == in_window && still_maps(*order[end], purpose))
        ++end;
      move_run(order + i, end - i);
      i = end;
    }
  }
  if (pages_ != nullptr && n != 0) {
    pages_->vmstat().count_vm_event(VmEvent::window_unmap);
    pages_->vmstat().count_vm_events(VmEvent::window_unmap_pages, n);
  }
}

void UffdMmu::flush_batch(FlushBatch& batch) {
  move_out(batch, Purpose::flush);
  batch.count = 0;
  if (nr_quarantined_.load(std::memory_order_relaxed) >= QUARANTINE_BATCH) drain();
}

void UffdMmu::age_batch(FlushBatch& batch) {
  move_out(batch, Purpose::age);
  batch.count = 0;
  if (nr_quarantined_.load(std::memory_order_relaxed) >= QUARANTINE_BATCH) drain();
}

bool UffdMmu::mapped_at(const Page& page, VirtAddr address) const {
  return kind(page) == Kind::mapped && mapped_at_[pfn(page)].load(std::memory_order_relaxed) == address.v;
}

bool UffdMmu::captured(Page& page) {
  if (kind(page) != Kind::mapped) return true;
  const bool file = !PageAnon(page);
  if ((page_mapped(page) && !file) || mm_ == nullptr) return false;
  FlushEntry entry{mm_, VirtAddr(mapped_at_[pfn(page)].load(std::memory_order_relaxed)), &page};
  ScopedLock guard(window(entry.address));
  if (file) {
    if (kind(page) != Kind::mapped) return true;  // its range was zapped
    const Pte pte = load(tables_->walk(*mm_, entry.address));
    if (pte_present(pte) && pte_pfn(pte) == mem_->pfn(page) && pte_write(pte)) return false;
  } else if (!still_maps(entry, Purpose::flush)) {
    // No PTE leads to it any more: its bytes were given up with the range, and are nobody's.
    set(page, Kind::zero);
    return true;
  }
  FlushEntry* const run[] = {&entry};
  move_run(run, 1);
  return kind(page) != Kind::mapped;
}

/// A file's page, locked: its bytes are not the program's any more, whatever PTEs say.
void UffdMmu::take_back(Page& page) {
  if (kind(page) != Kind::mapped) return;
  const VirtAddr address(mapped_at_[pfn(page)].load(std::memory_order_relaxed));
  ScopedLock guard(window(address));
  // Who zaps its range may have been faster.
  if (kind(page) == Kind::mapped) take_back_at(page, address);
}

/// Window lock held. A page that the host does not let go of is copied: what a device still writes to it is lost.
void UffdMmu::take_back_at(Page& page, VirtAddr address) {
  FlushEntry entry{mm_, address, &page};
  FlushEntry* const run[] = {&entry};
  move_run(run, 1);
  if (kind(page) != Kind::mapped) return;
  uint32_t slot = 0;
  for (int tries = 0; take_slots(1, slot) == 0; ++tries) {
    if (tries == PATIENCE) bug("no staging slot for a file's page", __FILE__, __LINE__);
    drain();
  }
  uffdio_copy copy{
      .dst = reinterpret_cast<uint64_t>(slot_address(slot)), .src = address.v, .len = PAGE_SIZE, .mode = 0, .copy = 0};
  for (int tries = 0;; ++tries) {
    const long r = host::ioctl(fds_.staging, UFFDIO_COPY, &copy);
    if (r == 0) break;
    if (r != -EAGAIN || tries == PATIENCE) refused("UFFDIO_COPY to staging", r, __FILE__, __LINE__);
    yield();
  }
  drop(address, PAGE_SIZE);
  set(page, Kind::staged, slot);
}

// Runs of neighbours as in move_out; what the host holds is copied.
void UffdMmu::keep_batch(FlushBatch& batch) {
  const unsigned n = batch.count;
  Page* pages[FlushBatch::CAPACITY];
  for (unsigned i = 0; i < n; ++i) pages[i] = batch.entries[i].page;
  move_out(batch, Purpose::flush);
  for (unsigned i = 0; i < n; ++i) {
    const FlushEntry& entry = batch.entries[i];
    if (entry.page != nullptr) continue;  // moved, or mapped again by a fault since
    ScopedLock guard(window(entry.address));
    if (mapped_at(*pages[i], entry.address)) take_back_at(*pages[i], entry.address);
  }
  batch.count = 0;
}

/// Window lock held. The host page at `at`, if there is one, is not the one that its PTE stands for now: the range was
/// zapped, and nobody has come to the address since. (A swap entry is somebody: put there after a new page had been,
/// whose host page may be there still.)
bool UffdMmu::stale(Mm& mm, VirtAddr at) const {
  const Pte pte = load(tables_->walk(mm, at));
  if (pte_none(pte)) return true;
  if (!pte_present(pte)) return false;
  const Page& page = mem_->page(pte_pfn(pte));
  return kind(page) != Kind::mapped || mapped_at_[pte_pfn(pte).v].load(std::memory_order_relaxed) != at.v;
}

// Others may fault in the range meanwhile (DONTNEED holds mmap_sem for reading): what they have put there since the
// PTEs were cleared stays.
void UffdMmu::flush_range(Mm& mm, VirtAddr start, VirtAddr end) {
  for (VirtAddr a = tables_->next_table(mm, start, end); a < end; a = tables_->next_table(mm, a, end)) {
    const VirtAddr stop = PageTables::pmd_addr_end(a, end);
    ScopedLock guard(window(a));
    WindowPages gone;
    for (VirtAddr at = a; at < stop; at = at + PAGE_SIZE) gone[in_window(at)] = stale(mm, at);
    take_back_gone(a, stop, gone);
    while (a < stop) {
      VirtAddr to = a;
      while (to < stop && gone[in_window(to)]) to = to + PAGE_SIZE;
      if (to > a) drop(a, to - a);
      a = to < stop ? to + PAGE_SIZE : stop;
    }
  }
  if (nr_quarantined_.load(std::memory_order_relaxed) >= QUARANTINE_BATCH) drain();
}

/// Window lock held; [start, stop) lies in it. No PTE leads to the addresses that are gone, but a file's page may be there
/// still: whoever cleared its PTE, by the reverse map, has not come to its bytes yet.
void UffdMmu::take_back_gone(VirtAddr start, VirtAddr stop, const WindowPages& gone) {
  if (!maps_files_.load(std::memory_order_acquire) || gone.none()) return;
  const auto frames = static_cast<uint64_t>(mem_->frames.v);
  for (uint64_t n = 0; n < frames; ++n) {
    const VirtAddr at(mapped_at_[n].load(std::memory_order_relaxed));
    if (at < start || at >= stop || !gone[in_window(at)]) continue;
    Page& page = mem_->page(Pfn(n));
    if (mapped_at(page, at) && file_mapping(page) != nullptr) take_back_at(page, at);
  }
}

void UffdMmu::keep_range(VirtAddr start, VirtAddr end) {
  for (VirtAddr a = start; a < end;) {
    const VirtAddr stop = std::min(end, VirtAddr(((a.v >> WINDOW_SHIFT) + 1) << WINDOW_SHIFT));
    ScopedLock guard(window(a));
    WindowPages gone;
    gone.set();
    take_back_gone(a, stop, gone);
    a = stop;
  }
}

/// Window lock held.
void UffdMmu::drop(VirtAddr start, uint64_t length) {
  const long r = host::madvise(reinterpret_cast<void*>(start.v), length, MADV_DONTNEED);
  // ENOMEM: a part of it is not mapped any more.
  if (r != 0 && r != -ENOMEM) refused("MADV_DONTNEED", r, __FILE__, __LINE__);
}

// ---- Staging slots --------------------------------------------------------------------------------------------------

bool UffdMmu::slot_taken(uint32_t slot) const { return (slot_map_[slot / 64] >> (slot % 64) & 1) != 0; }

void UffdMmu::mark_slot(uint32_t slot, bool taken) {
  const uint64_t bit = uint64_t{1} << (slot % 64);
  slot_map_[slot / 64] = taken ? slot_map_[slot / 64] | bit : slot_map_[slot / 64] & ~bit;
}

/// The first run of free slots behind the one taken last; fewer than wanted if it is short. 0: none is free.
unsigned UffdMmu::take_slots(unsigned wanted, uint32_t& first) {
  ScopedLock guard(staging_lock_);
  while (slots_taken_ + wanted > slots_limit_ / 4 * 3 && slots_limit_ < options_.staging_slots)
    slots_limit_ = static_cast<uint32_t>(std::min<uint64_t>(uint64_t{slots_limit_} * 2, options_.staging_slots));
  if (slots_taken_ >= slots_limit_) return 0;
  uint32_t at = next_slot_ < slots_limit_ ? next_slot_ : 0;
  while (slot_taken(at)) {
    if (at % 64 == 0 && slot_map_[at / 64] == ~uint64_t{0})
      at += 64;
    else
      ++at;
    if (at >= slots_limit_) at = 0;
  }
  first = at;
  unsigned got = 0;
  while (got < wanted && at < slots_limit_ && !slot_taken(at)) {
    mark_slot(at++, true);
    ++got;
  }
  slots_taken_ += got;
  next_slot_ = at;
  return got;
}

void UffdMmu::give_slots(uint32_t first, unsigned n) {
  ScopedLock guard(staging_lock_);
  for (unsigned i = 0; i < n; ++i) mark_slot(first + i, false);
  slots_taken_ -= n;
}

/// A COPY has taken the slot's bytes to the program; its host page goes back with others, at most SLACK at a time.
void UffdMmu::leave_behind(uint32_t slot) {
  bool room = false, many = false;
  {
    ScopedLock guard(quarantine_lock_);
    if (nr_left_ + draining_left_ < SLACK) {
      left_[nr_left_++] = slot;
      room = true;
      many = nr_left_ >= SLACK / 2;
    }
  }
  if (!room) {
    std::byte* const page = slot_address(slot);
    give_to_host(&page, 1);
    give_slots(slot, 1);
  }
  if (many) drain();
}

/// Sorted. As few calls as there are runs, or one for all where the host has that.
void UffdMmu::give_to_host(std::byte* const* pages, unsigned n) {
  iovec runs[64];
  unsigned nr_runs = 0;
  const auto flush = [&] {
    if (nr_runs > 1 && many_at_once_.load(std::memory_order_relaxed)) {
      size_t total = 0;
      for (unsigned i = 0; i < nr_runs; ++i) total += runs[i].iov_len;
      const long r = raw_syscall(SYS_process_madvise, abi::PIDFD_SELF, runs, nr_runs, MADV_DONTNEED, 0);
      if (r == static_cast<long>(total)) {
        nr_runs = 0;
        return;
      }
      many_at_once_.store(false, std::memory_order_relaxed);
    }
    for (unsigned i = 0; i < nr_runs; ++i)
      if (const long r = host::madvise(runs[i].iov_base, runs[i].iov_len, MADV_DONTNEED); r != 0)
        refused("MADV_DONTNEED on staging", r, __FILE__, __LINE__);
    nr_runs = 0;
  };
  for (unsigned i = 0; i < n; ++i) {
    if (nr_runs != 0 && static_cast<std::byte*>(runs[nr_runs - 1].iov_base) + runs[nr_runs - 1].iov_len == pages[i]) {
      runs[nr_runs - 1].iov_len += PAGE_SIZE;
      continue;
    }
    if (nr_runs == 64) flush();
    runs[nr_runs++] = {pages[i], PAGE_SIZE};
  }
  flush();
}

/// Everything in quarantine now, and what COPYs left behind, goes back to the host.
void UffdMmu::drain() {
  struct Item {
    uint32_t slot;
    Page* page;  // null: left behind
  };
  for (;;) {
    Item items[SLACK];
    unsigned n = 0, left = 0;
    {
      ScopedLock guard(quarantine_lock_);
      while (nr_left_ != 0 && n < SLACK) {
        items[n++] = {left_[--nr_left_], nullptr};
        ++left;
      }
      draining_left_ += left;
      while (!quarantine_.empty() && n < SLACK) {
        Page& page = quarantine_.front();
        quarantine_.pop_front();
        items[n++] = {index(page), &page};
      }
      nr_quarantined_.fetch_sub(n - left, std::memory_order_relaxed);
    }
    if (n == 0) return;
    std::sort(items, items + n, [](const Item& a, const Item& b) { return a.slot < b.slot; });
    std::byte* host_pages[SLACK];
    for (unsigned i = 0; i < n; ++i) host_pages[i] = slot_address(items[i].slot);
    give_to_host(host_pages, n);
    for (unsigned i = 0; i < n;) {
      unsigned end = i + 1;
      while (end < n && items[end].slot == items[end - 1].slot + 1) ++end;
      give_slots(items[i].slot, end - i);
      i = end;
    }
    {
      ScopedLock guard(quarantine_lock_);
      draining_left_ -= left;
    }
    count(n_.quarantine_flushes);
    count(n_.quarantined_pages, n - left);
    for (unsigned i = 0; i < n; ++i) {
      if (items[i].page == nullptr) continue;
      set(*items[i].page, Kind::none);
      pages_->free_quarantined(*items[i].page);
    }
  }
}

}  // namespace weir
