// src/mm/mmu_notifier.hpp
//
// Listeners on an address space: a second MMU, or an observer, that keeps a table of its own by what it is told.
//
//   one page leaves   PTE changed -> invalidate_page -> PTE lock dropped             (reclaim; must not sleep)
//   a range changes   invalidate_range_start -> PTEs change -> invalidate_range_end  (munmap, fork; may sleep)
//   was it used?      clear_flush_young, test_young: the listener's own accessed bits count as the PTE's
//   the end           release, before the first page goes
//
// A listener fills its table under the PTE's lock and never in a range that is between start and end: then it never
// maps a page that the process does not.
//
// Linux: mm/mmu_notifier.c as it was until 31 August 2017 (invalidate_page), 2.6.27 on. 2.6.20 has none of it.
#pragma once

#include "mm/mm_types.hpp"
#include "mm/pgtable_types.hpp"

namespace weir {

class MmuNotifier {
 public:
  /// PTE's lock held.
  virtual void invalidate_page(Mm& mm, VirtAddr address) = 0;
  virtual void invalidate_range_start(Mm& mm, VirtAddr start, VirtAddr end) = 0;
  virtual void invalidate_range_end(Mm& mm, VirtAddr start, VirtAddr end) = 0;
  /// Was the range used through the listener's table? Its accessed bits there are clear afterwards. PTE's lock held.
  virtual bool clear_flush_young(Mm& mm, VirtAddr start, VirtAddr end) {
    (void)mm, (void)start, (void)end;
    return false;
  }
  /// The same without clearing.
  virtual bool test_young(Mm& mm, VirtAddr address) {
    (void)mm, (void)address;
    return false;
  }
  /// Another page took the old one's place (KSM); a listener that cannot change an entry drops it. PTE's lock held.
  virtual void change_pte(Mm& mm, VirtAddr address, Pte pte) {
    (void)pte;
    invalidate_page(mm, address);
  }
  /// The address space ends, or the listener is unregistered: everything of it goes.
  virtual void release(Mm& mm) = 0;

  std::atomic<MmuNotifier*> next{nullptr};  ///< in Mm::notifiers

 protected:
  ~MmuNotifier() = default;
};

/// Takes mmap_sem for writing: nothing is between start and end then.
void mmu_notifier_register(Mm& mm, MmuNotifier& listener);
/// release() is called unless the address space's end has done so; afterwards nobody calls the listener any more.
/// Sleeps.
void mmu_notifier_unregister(Mm& mm, MmuNotifier& listener);
/// exit_mmap: all listeners are released and gone.
void mmu_notifier_release(Mm& mm);

[[nodiscard]] bool mm_has_notifiers(const Mm& mm);
void mmu_notifier_invalidate_page(Mm& mm, VirtAddr address);
void mmu_notifier_invalidate_range_start(Mm& mm, VirtAddr start, VirtAddr end);
void mmu_notifier_invalidate_range_end(Mm& mm, VirtAddr start, VirtAddr end);
[[nodiscard]] bool mmu_notifier_clear_flush_young(Mm& mm, VirtAddr start, VirtAddr end);
[[nodiscard]] bool mmu_notifier_test_young(Mm& mm, VirtAddr address);
void mmu_notifier_change_pte(Mm& mm, VirtAddr address, Pte pte);

/// Whether anybody listens, unrecorded: what the paths ask that do so only if there is somebody.
[[nodiscard]] inline bool has_listeners(const Mm& mm) {
  return mm.notifiers.load(std::memory_order_acquire) != nullptr;
}

/// A range changes while this lives. Nothing happens if nobody listens.
class ChangingRange {
 public:
  ChangingRange(Mm& mm, VirtAddr start, VirtAddr end)
      : mm_(has_listeners(mm) ? &mm : nullptr), start_(start), end_(end) {
    if (mm_ != nullptr) mmu_notifier_invalidate_range_start(*mm_, start_, end_);
  }
  ~ChangingRange() {
    if (mm_ != nullptr) mmu_notifier_invalidate_range_end(*mm_, start_, end_);
  }
  ChangingRange(const ChangingRange&) = delete;
  ChangingRange& operator=(const ChangingRange&) = delete;

 private:
  Mm* mm_;
  VirtAddr start_, end_;
};

}  // namespace weir
