// src/base/engine_stack.hpp
//
// Engine code runs only on engine stacks:
//
//   low                                                          high
//   | guard page | EngineThread |  ... stack grows down ...          |
//   ^ aligned to ENGINE_STACK_SIZE (the guard lies below it)
//
// so `current`, who is running, is found by masking the stack pointer, as Linux's thread_info was. There is no
// thread_local: live, the thread that faults may run with a TLS page missing.
//
// The size is address space: only touched pages cost memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weir {

inline constexpr size_t ENGINE_STACK_SIZE = size_t{256} << 10;

class World;
struct Thread;
class FlowSink;
/// Where this stack's events go in a ring (record/ring.hpp); of other sinks' business nothing is here.
struct FlowLane {
  uint64_t ring = 0;          ///< which ring the rest is about; 0: none
  uint64_t* block = nullptr;  ///< this lane's, with room from `at` to `end`
  uint64_t* at = nullptr;
  uint64_t* end = nullptr;
  uint64_t* stop = nullptr;  ///< where the block ends, or the clock is to be read
  uint64_t time = 0;         ///< of the last event
  uint32_t calls = 0;        ///< entered in this block and not left
  uint32_t number = 0;       ///< among the ring's lanes
  int32_t tid = 0;

  /// Time has passed without events, or another thread runs here: the next event looks.
  void interrupt() { stop = at; }
};

/// What lies at the bottom of every engine stack. Immutable while code runs there, but for `sink` and `lane`.
struct EngineThread {
  static constexpr uint64_t MAGIC = 0x7765697273746b31;  // "weirstk1"
  uint64_t magic = MAGIC;
  /// Where function entries and state changes are recorded; null when recording is off.
  FlowSink* sink = nullptr;
  /// The kernel/ world that runs this stack, and the thread that runs on it; null on a bare stack (tests of base/).
  World* world = nullptr;
  Thread* thread = nullptr;
  FlowLane lane;
};

/// The bottom of the stack this code runs on. Only on an engine stack.
[[gnu::always_inline]] inline EngineThread& engine_thread() {
  uintptr_t sp;
  asm("mov %%rsp, %0" : "=r"(sp));
  return *reinterpret_cast<EngineThread*>(sp & ~(uintptr_t{ENGINE_STACK_SIZE} - 1));
}

/// Reserves a stack (guard page below it) and puts an EngineThread at its bottom. Null when the host has no memory.
[[nodiscard]] EngineThread* engine_stack_create();
/// Gives it back. Nobody runs on it any more.
void engine_stack_destroy(EngineThread* stack);
/// First address above the stack.
[[nodiscard]] inline char* engine_stack_top(EngineThread* stack) {
  return reinterpret_cast<char*>(stack) + ENGINE_STACK_SIZE;
}

/// Runs fn(arg) on the given engine stack and comes back. The caller's stack may be any. Must not throw through.
void engine_stack_call(EngineThread* stack, void (*fn)(void*), void* arg);

/// Runs fn(arg) on a fresh bare engine stack: how a test's main() gets a `current`. Not for live code (it maps memory).
void run_on_engine_stack(void (*fn)(void*), void* arg);

}  // namespace weir
