// src/kernel/freezer.cpp: see freezer.hpp
//
// Frozen threads hang in a lock-free stack of nodes on their own stacks. Whoever empties it owns all nodes and lets all
// of them go; one that should stay frozen hangs itself up again. So no lock is needed, and a thread that leaves early
// (it is being stopped) empties the stack too.
#include "kernel/freezer.hpp"

namespace weir {

struct FrozenThread {
  Thread* thread;
  FrozenThread* next = nullptr;
  std::atomic<bool> let_go{false};
};

namespace {

void let_all_go(World& world) {
  FrozenThread* node = world.freezer.frozen.exchange(nullptr, std::memory_order_acq_rel);
  while (node != nullptr) {
    FrozenThread* next = node->next;
    Thread* thread = node->thread;
    node->let_go.store(true, std::memory_order_release);  // the node is gone from here on
    world.wake(*thread);
    node = next;
  }
}

}  // namespace

bool freezing_slow_path(const Thread& p) {
  WEIR_FLOW(p.tid);
  if ((p.flags & PF_NOFREEZE) != 0 || p.memdie.load(std::memory_order_acquire)) return false;
  return p.world->freezer.freezing.load(std::memory_order_acquire);
}

bool __refrigerator() {
  World& w = world();
  Thread& self = current();
  bool was_frozen = false;
  w.freezer.nr_frozen.fetch_add(1, std::memory_order_acq_rel);
  while (freezing_slow_path(self) && !kthread_should_stop()) {
    was_frozen = true;
    FrozenThread node{&self};
    node.next = w.freezer.frozen.load(std::memory_order_relaxed);
    while (!w.freezer.frozen.compare_exchange_weak(node.next, &node, std::memory_order_seq_cst)) {
    }
    // Hung up before this look, or a thaw just now would miss us.
    if (!w.freezer.freezing.load(std::memory_order_seq_cst)) let_all_go(w);
    while (!node.let_go.load(std::memory_order_acquire)) {
      if (kthread_should_stop()) let_all_go(w);
      w.schedule();
    }
  }
  w.freezer.nr_frozen.fetch_sub(1, std::memory_order_acq_rel);
  return was_frozen;
}

void freeze_processes(World& world) {
  WEIR_FLOW();
  world.freezer.freezing.store(true, std::memory_order_seq_cst);
}

void thaw_processes(World& world) {
  WEIR_FLOW();
  world.freezer.freezing.store(false, std::memory_order_seq_cst);
  let_all_go(world);
}

}  // namespace weir
