// src/kernel/virtual/fiber.cpp: see fiber.hpp
#include "kernel/virtual/fiber.hpp"

#include <boost/context/detail/fcontext.hpp>

#include "base/result.hpp"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WEIR_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define WEIR_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define WEIR_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define WEIR_TSAN 1
#endif

#ifdef WEIR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef WEIR_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace weir {

namespace bc = boost::context::detail;

// Between the announcement and the jump the thread sanitizer believes in the new fiber while the old one still runs:
// the functions on that way are not instrumented, or their returns would be counted on the wrong stack.
#ifdef WEIR_TSAN
#define WEIR_SWITCHES __attribute__((no_sanitize("thread")))
#else
#define WEIR_SWITCHES
#endif

bool Fiber::create(Entry entry, void* arg) {
  WEIR_BUG_ON(stack_ != nullptr);
  stack_ = engine_stack_create();
  if (stack_ == nullptr) return false;
  bottom_ = stack_;
  size_ = ENGINE_STACK_SIZE;
  entry_ = entry;
  arg_ = arg;
  reuse();
  return true;
}

void Fiber::reuse() {
#ifdef WEIR_ASAN
  // The frames that it left for good are still marked.
  ASAN_UNPOISON_MEMORY_REGION(stack_, ENGINE_STACK_SIZE);
#endif
#ifdef WEIR_TSAN
  if (tsan_ != nullptr) __tsan_destroy_fiber(tsan_);
  tsan_ = __tsan_create_fiber(0);
#endif
  fake_stack_ = nullptr;
  context_ =
      bc::make_fcontext(engine_stack_top(stack_), ENGINE_STACK_SIZE, [](bc::transfer_t t) { enter(t.fctx, t.data); });
}

void Fiber::destroy() {
  if (stack_ == nullptr) return;
#ifdef WEIR_ASAN
  ASAN_UNPOISON_MEMORY_REGION(stack_, ENGINE_STACK_SIZE);
#endif
#ifdef WEIR_TSAN
  if (tsan_ != nullptr) __tsan_destroy_fiber(tsan_);
  tsan_ = nullptr;
#endif
  engine_stack_destroy(stack_);
  stack_ = nullptr;
}

void Fiber::adopt() {
#ifdef WEIR_TSAN
  tsan_ = __tsan_get_current_fiber();
#endif
}

WEIR_SWITCHES void Fiber::leave([[maybe_unused]] Fiber& to, [[maybe_unused]] bool for_good) {
#ifdef WEIR_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, to.bottom_, to.size_);
#endif
#ifdef WEIR_TSAN
  __tsan_switch_to_fiber(to.tsan_, 0);
#endif
}

WEIR_SWITCHES void Fiber::arrive(void* from_context, Fiber& from) {
  from.context_ = from_context;
#ifdef WEIR_ASAN
  // Where the adopted stack lies is learned here, each time it is left.
  __sanitizer_finish_switch_fiber(fake_stack_, &from.bottom_, &from.size_);
#endif
}

// What travels with a switch.
namespace {
struct Switch {
  Fiber* from;
  Fiber* to;
};
}  // namespace

WEIR_SWITCHES void Fiber::enter(void* from_context, void* data) {
  const Switch s = *static_cast<Switch*>(data);
  s.to->arrive(from_context, *s.from);
  s.to->entry_(s.to->arg_);
  bug("a fiber's entry returned", "fiber.cpp", __LINE__);
}

WEIR_SWITCHES void Fiber::switch_to(Fiber& from, Fiber& to) {
  Switch s{&from, &to};
  from.leave(to, false);
  const bc::transfer_t t = bc::jump_fcontext(to.context_, &s);
  from.arrive(t.fctx, *static_cast<Switch*>(t.data)->from);
}

WEIR_SWITCHES void Fiber::end_in(Fiber& from, Fiber& to) {
  Switch s{&from, &to};
  from.leave(to, true);
  bc::jump_fcontext(to.context_, &s);
  bug("a fiber that ended was switched to", "fiber.cpp", __LINE__);
}

}  // namespace weir
