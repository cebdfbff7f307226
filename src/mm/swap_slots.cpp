// src/mm/swap_slots.cpp: free slots at hand. See swap_slots.hpp
#include "mm/swap_slots.hpp"

#include <algorithm>

namespace weir {

SwapSlots::SwapSlots(SwapFiles& areas, VmStat& vmstat, unsigned cpus)
    : areas_(areas), vmstat_(vmstat), cpus_(cpus == 0 ? 1 : cpus) {
  areas_.set_release([](void* self, SwpEntry entry) { static_cast<SwapSlots*>(self)->free_swap_slot(entry); }, this);
}

Result<void> SwapSlots::init() {
  void* place = areas_.slab().kzalloc(cpus_ * sizeof(PerCpu), GFP_KERNEL);
  if (place == nullptr) return Errno::nomem;
  auto* percpu = static_cast<PerCpu*>(place);
  for (unsigned i = 0; i < cpus_; ++i) ::new (static_cast<void*>(percpu + i)) PerCpu();
  percpu_ = percpu;
  return {};
}

SwapSlots::PerCpu& SwapSlots::this_cpu() const {
  const Thread* thread = engine_thread().thread;
  return percpu_[thread == nullptr ? 0 : thread->cpu.v % cpus_];
}

// Switches the caches off while slots are few (hidden in a cache they would be nobody's) and on again when they are
// many.
bool SwapSlots::check_cache_active() {
  if (percpu_ == nullptr || !enabled_.load(std::memory_order_acquire)) return false;
  const int64_t free_slots = areas_.nr_swap_pages();
  if (!active_.load(std::memory_order_acquire)) {
    if (free_slots > int64_t{cpus_} * THRESHOLD_ACTIVATE_SWAP_SLOTS_CACHE)
      active_.store(true, std::memory_order_release);
  } else if (free_slots < int64_t{cpus_} * THRESHOLD_DEACTIVATE_SWAP_SLOTS_CACHE) {
    active_.store(false, std::memory_order_release);
    drain_slots_cache();
  }
  return active_.load(std::memory_order_acquire);
}

bool SwapSlots::refill_swap_slots_cache(PerCpu& cpu) {
  if (!in_use()) return false;
  cpu.next = 0;
  cpu.filled = areas_.get_swap_pages(SWAP_SLOTS_CACHE_SIZE, cpu.slots);
  if (cpu.filled > 0) vmstat_.count_vm_event(VmEvent::swap_slots_refill);
  return cpu.filled > 0;
}

void SwapSlots::give_back_alloc(PerCpu& cpu) {
  if (cpu.next < cpu.filled) areas_.swapcache_free_entries(cpu.slots + cpu.next, cpu.filled - cpu.next);
  cpu.next = cpu.filled = 0;
}

SwpEntry SwapSlots::get_swap_page(const Page* page) {
  const uint64_t pfn = page != nullptr ? areas_.pages().mem().pfn(page).v : 0;
  WEIR_FLOW(pfn);
  SwpEntry entry;
  if (check_cache_active()) {
    PerCpu& cpu = this_cpu();
    ScopedLock guard(cpu.alloc_lock);
    if (cpu.next < cpu.filled && !areas_.has_room(cpu.slots[cpu.next])) give_back_alloc(cpu);
    if (cpu.next < cpu.filled || refill_swap_slots_cache(cpu)) entry = cpu.slots[cpu.next++];
    if (entry) vmstat_.count_vm_event(VmEvent::swap_slots_cached);
  }
  // The last slots of a nearly full area are handed out one by one, or the caches would hide them.
  if (!entry) (void)areas_.get_swap_pages(1, &entry);
  if (entry) WEIR_STATE(swap_slot, entry, 0, pfn);
  WEIR_RETURN(entry);
}

void SwapSlots::free_swap_slot(SwpEntry entry) {
  WEIR_FLOW(entry);
  if (percpu_ == nullptr || !in_use()) {
    areas_.swapcache_free_entries(&entry, 1);
    return;
  }
  SwpEntry full[SWAP_SLOTS_CACHE_SIZE];
  unsigned n = 0;
  {
    PerCpu& cpu = this_cpu();
    ScopedLock guard(cpu.free_lock);
    cpu.slots_ret[cpu.n_ret++] = entry;
    // A drain may have passed between the question above and the lock: then nothing may stay here.
    if (cpu.n_ret == SWAP_SLOTS_CACHE_SIZE || !in_use()) {
      n = cpu.n_ret;
      std::copy(cpu.slots_ret, cpu.slots_ret + n, full);
      cpu.n_ret = 0;
    }
  }
  if (n > 0) areas_.swapcache_free_entries(full, n);
}

void SwapSlots::drain_slots_cache() {
  WEIR_FLOW();
  for (unsigned i = 0; percpu_ != nullptr && i < cpus_; ++i) {
    PerCpu& cpu = percpu_[i];
    {
      ScopedLock guard(cpu.alloc_lock);
      give_back_alloc(cpu);
    }
    SwpEntry held[SWAP_SLOTS_CACHE_SIZE];
    unsigned n = 0;
    {
      ScopedLock guard(cpu.free_lock);
      n = cpu.n_ret;
      std::copy(cpu.slots_ret, cpu.slots_ret + n, held);
      cpu.n_ret = 0;
    }
    if (n > 0) areas_.swapcache_free_entries(held, n);
  }
}

void SwapSlots::disable_swap_slots_cache() {
  if (!areas_.has_slots_cache()) return;
  enabled_.store(false, std::memory_order_release);
  drain_slots_cache();
}

void SwapSlots::reenable_swap_slots_cache() {
  if (percpu_ != nullptr && areas_.has_slots_cache()) enabled_.store(true, std::memory_order_release);
}

uint64_t SwapSlots::held(unsigned type) {
  uint64_t found = 0;
  for (unsigned i = 0; percpu_ != nullptr && i < cpus_; ++i) {
    PerCpu& cpu = percpu_[i];
    ScopedLock guard(cpu.alloc_lock);
    for (unsigned k = cpu.next; k < cpu.filled; ++k) found += swp_type(cpu.slots[k]) == type;
    ScopedLock ret(cpu.free_lock);
    for (unsigned k = 0; k < cpu.n_ret; ++k) found += swp_type(cpu.slots_ret[k]) == type;
  }
  return found;
}

bool SwapSlots::holds(SwpEntry entry) {
  for (unsigned i = 0; percpu_ != nullptr && i < cpus_; ++i) {
    PerCpu& cpu = percpu_[i];
    ScopedLock guard(cpu.alloc_lock);
    if (std::find(cpu.slots + cpu.next, cpu.slots + cpu.filled, entry) != cpu.slots + cpu.filled) return true;
    ScopedLock ret(cpu.free_lock);
    if (std::find(cpu.slots_ret, cpu.slots_ret + cpu.n_ret, entry) != cpu.slots_ret + cpu.n_ret) return true;
  }
  return false;
}

}  // namespace weir
