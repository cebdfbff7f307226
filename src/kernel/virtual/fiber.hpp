// src/kernel/virtual/fiber.hpp
//
// A flow of execution on an engine stack of its own, switched to by hand (Boost.Context). Every switch is announced to
// the address and thread sanitizers.
//
//   main --switch_to(a)--> a --switch_to(b)--> b --switch_to(main)--> main
//
// One fiber stands for the stack that the host thread came with (`adopt`): it has no stack of its own here.
#pragma once

#include "base/engine_stack.hpp"

namespace weir {

class Fiber {
 public:
  using Entry = void (*)(void* arg);

  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  /// Nobody runs on it. What lies on its stack is dropped as it is.
  ~Fiber() { destroy(); }

  /// Gives it a stack, entry(arg) as what it does, and keeps both for reuse(). entry never returns: it switches away
  /// for good. False when the host has no memory.
  [[nodiscard]] bool create(Entry entry, void* arg);
  /// Makes a fiber that ended (or never ran) new: the same stack, from the top.
  void reuse();
  void destroy();
  /// This fiber is the stack that the caller runs on.
  void adopt();

  [[nodiscard]] EngineThread* stack() const { return stack_; }

  /// Leaves `from`, which is what runs now, and goes on in `to`. Returns when somebody switches back.
  static void switch_to(Fiber& from, Fiber& to);
  /// The same, never to return: the last thing `from` does.
  [[noreturn]] static void end_in(Fiber& from, Fiber& to);

 private:
  static void enter(void* from_context, void* from);
  void arrive(void* from_context, Fiber& from);
  void leave(Fiber& to, bool for_good);

  EngineThread* stack_ = nullptr;
  Entry entry_ = nullptr;
  void* arg_ = nullptr;
  void* context_ = nullptr;
  // The sanitizers' view of it.
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void* tsan_ = nullptr;
};

}  // namespace weir
