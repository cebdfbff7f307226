// src/mm/mmu_notifier.cpp: see mmu_notifier.hpp
//
// The list of an Mm is read without a lock: who reads it is counted in Mm::notifying, and who takes a listener off
// waits until nobody reads. (Linux uses SRCU.)
#include "mm/mmu_notifier.hpp"

#include "kernel/kernel.hpp"

namespace weir {

namespace {

template <class Fn>
void for_each_listener(Mm& mm, Fn fn) {
  mm.notifying.fetch_add(1, std::memory_order_seq_cst);
  for (MmuNotifier* n = mm.notifiers.load(std::memory_order_seq_cst); n != nullptr;
       n = n->next.load(std::memory_order_acquire))
    fn(*n);
  mm.notifying.fetch_sub(1, std::memory_order_seq_cst);
}

void wait_until_nobody_reads(Mm& mm) {
  while (mm.notifying.load(std::memory_order_seq_cst) != 0)
    if (World* w = engine_thread().world) w->schedule_timeout(Nanos(100000));
}

/// Takes it off; false if it was not on the list.
bool unlink(Mm& mm, MmuNotifier& listener) {
  ScopedLock guard(mm.page_table_lock);
  std::atomic<MmuNotifier*>* link = &mm.notifiers;
  for (MmuNotifier* n = link->load(); n != nullptr; link = &n->next, n = link->load()) {
    if (n != &listener) continue;
    link->store(n->next.load(), std::memory_order_seq_cst);
    return true;
  }
  return false;
}

void __mmu_notifier_invalidate_page(Mm& mm, VirtAddr address) {
  WEIR_FLOW(mm, address);
  for_each_listener(mm, [&](MmuNotifier& n) { n.invalidate_page(mm, address); });
}

void __mmu_notifier_invalidate_range_start(Mm& mm, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(mm, start, end);
  for_each_listener(mm, [&](MmuNotifier& n) { n.invalidate_range_start(mm, start, end); });
}

void __mmu_notifier_invalidate_range_end(Mm& mm, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(mm, start, end);
  for_each_listener(mm, [&](MmuNotifier& n) { n.invalidate_range_end(mm, start, end); });
}

}  // namespace

void mmu_notifier_register(Mm& mm, MmuNotifier& listener) {
  WEIR_FLOW(mm);
  ScopedWrite guard(mm.mmap_sem);
  ScopedLock list(mm.page_table_lock);
  listener.next.store(mm.notifiers.load(), std::memory_order_release);
  mm.notifiers.store(&listener, std::memory_order_seq_cst);
}

void mmu_notifier_unregister(Mm& mm, MmuNotifier& listener) {
  WEIR_FLOW(mm);
  if (!unlink(mm, listener)) return;
  listener.release(mm);
  wait_until_nobody_reads(mm);
}

void mmu_notifier_release(Mm& mm) {
  WEIR_FLOW(mm);
  while (MmuNotifier* first = mm.notifiers.load(std::memory_order_acquire)) {
    if (!unlink(mm, *first)) continue;
    first->release(mm);
  }
  wait_until_nobody_reads(mm);
}

bool mm_has_notifiers(const Mm& mm) {
  WEIR_FLOW(mm);
  return has_listeners(mm);
}

void mmu_notifier_invalidate_page(Mm& mm, VirtAddr address) {
  WEIR_FLOW(mm, address);
  if (mm_has_notifiers(mm)) __mmu_notifier_invalidate_page(mm, address);
}

void mmu_notifier_invalidate_range_start(Mm& mm, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(mm, start, end);
  if (mm_has_notifiers(mm)) __mmu_notifier_invalidate_range_start(mm, start, end);
}

void mmu_notifier_invalidate_range_end(Mm& mm, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(mm, start, end);
  if (mm_has_notifiers(mm)) __mmu_notifier_invalidate_range_end(mm, start, end);
}

bool mmu_notifier_clear_flush_young(Mm& mm, VirtAddr start, VirtAddr end) {
  WEIR_FLOW(mm, start, end);
  bool young = false;
  for_each_listener(mm, [&](MmuNotifier& n) { young |= n.clear_flush_young(mm, start, end); });
  return young;
}

bool mmu_notifier_test_young(Mm& mm, VirtAddr address) {
  WEIR_FLOW(mm, address);
  bool young = false;
  for_each_listener(mm, [&](MmuNotifier& n) { young |= n.test_young(mm, address); });
  return young;
}

void mmu_notifier_change_pte(Mm& mm, VirtAddr address, Pte pte) {
  WEIR_FLOW(mm, address, pte);
  for_each_listener(mm, [&](MmuNotifier& n) { n.change_pte(mm, address, pte); });
}

}  // namespace weir
