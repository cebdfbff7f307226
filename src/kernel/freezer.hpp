// src/kernel/freezer.hpp
//
// While a machine is frozen its kthreads stop at the next place where they look, and go on when it is thawed:
//
//   try_to_freeze() --nobody freezes--> false, after one load
//                   --frozen----------> parked until thaw_processes() --> true
//
// Freezing does not wake who sleeps: it meets the freezer when it next has work.
// Linux: include/linux/freezer.h, kernel/freezer.c; here one flag a world, in place of one for users and one for
// kthreads.
#pragma once

#include "kernel/locks.hpp"

namespace weir {

/// Is `p` to freeze? Not PF_NOFREEZE, not one that the OOM killer chose: its memory is waited for.
[[nodiscard]] bool freezing_slow_path(const Thread& p);

/// Any freeze in progress that concerns `p`?
[[nodiscard]] inline bool freezing(const Thread& p) {
  WEIR_FLOW(p.tid);
  if (__builtin_expect(!p.world->freezer.freezing.load(std::memory_order_acquire), 1)) return false;
  return freezing_slow_path(p);
}

/// Parks the current thread while it is to freeze, or until it is asked to stop. True if it was parked.
bool __refrigerator();

/// try_to_freeze() for who knows that no lock is held.
inline bool try_to_freeze_unsafe() {
  WEIR_FLOW();
  might_sleep();
  if (__builtin_expect(!freezing(current()), 1)) return false;
  return __refrigerator();
}

/// Stops here while the machine is frozen. True if it was: what the caller knew before is old. No lock may be held.
inline bool try_to_freeze() {
  WEIR_FLOW();
  lockdep_thread_idle(current());
  return try_to_freeze_unsafe();
}

/// From now on threads stop where they look. Any context; does not wait for them (nr_frozen tells).
void freeze_processes(World& world);
/// All go on.
void thaw_processes(World& world);
/// How many are parked in the freezer.
[[nodiscard]] inline unsigned nr_frozen(const World& world) {
  return world.freezer.nr_frozen.load(std::memory_order_acquire);
}

}  // namespace weir
