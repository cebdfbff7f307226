// src/kernel/kthread.hpp
//
// Kernel threads. Linux: include/linux/kthread.h. Included by kernel.hpp.
#pragma once

#include "kernel/kernel.hpp"

namespace weir {

/// Creates and starts (the worlds' kthread_create starts at once). Null when no thread can be had.
inline Thread* kthread_run(World& world, void (*fn)(void*), void* data, const char* name) {
  WEIR_FLOW();
  return world.kthread_create(fn, data, name);
}

/// True once somebody wants the current kthread to return: asked between two pieces of work.
[[nodiscard]] inline bool kthread_should_stop() { return current().should_stop.load(std::memory_order_acquire); }

}  // namespace weir
