// src/base/engine_stack.cpp: see engine_stack.hpp
#include "base/engine_stack.hpp"

#include <sys/mman.h>

#include <new>

#include "base/raw_syscall.hpp"
#include "base/result.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace weir {

namespace {
constexpr size_t GUARD = 4096;

// A managed process interposes libc's names; sanitizers must see them.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
uintptr_t reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? 0 : reinterpret_cast<uintptr_t>(p);
}
bool make_writable(uintptr_t start, size_t bytes) {
  return mprotect(reinterpret_cast<void*>(start), bytes, PROT_READ | PROT_WRITE) == 0;
}
void unmap(uintptr_t start, size_t bytes) { munmap(reinterpret_cast<void*>(start), bytes); }
#else
uintptr_t reserve(size_t bytes) {
  const long p = raw_syscall(SYS_mmap, 0, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p < 0 ? 0 : static_cast<uintptr_t>(p);
}
bool make_writable(uintptr_t start, size_t bytes) {
  return raw_syscall(SYS_mprotect, start, bytes, PROT_READ | PROT_WRITE) == 0;
}
void unmap(uintptr_t start, size_t bytes) { raw_syscall(SYS_munmap, start, bytes); }
#endif
}  // namespace

EngineThread* engine_stack_create() {
  // Reserve twice the size, then trim to an aligned stack with its guard page just below.
  const size_t want = 2 * ENGINE_STACK_SIZE + GUARD;
  const uintptr_t start = reserve(want);
  if (start == 0) return nullptr;
  const uintptr_t stack = (start + GUARD + ENGINE_STACK_SIZE - 1) & ~(uintptr_t{ENGINE_STACK_SIZE} - 1);
  if (stack - GUARD > start) unmap(start, stack - GUARD - start);
  const uintptr_t end = stack + ENGINE_STACK_SIZE;
  if (start + want > end) unmap(end, start + want - end);
  if (!make_writable(stack, ENGINE_STACK_SIZE)) {
    unmap(stack - GUARD, ENGINE_STACK_SIZE + GUARD);
    return nullptr;
  }
  return ::new (reinterpret_cast<void*>(stack)) EngineThread{};
}

void engine_stack_destroy(EngineThread* stack) {
  unmap(reinterpret_cast<uintptr_t>(stack) - GUARD, ENGINE_STACK_SIZE + GUARD);
}

// rdi = top of the new stack, rsi = fn, rdx = arg. The old stack pointer is kept in a callee-saved register.
extern "C" [[gnu::visibility("hidden")]] void weir_engine_stack_switch(char* top, void (*fn)(void*), void* arg);
asm(R"(
.text
.hidden weir_engine_stack_switch
.globl weir_engine_stack_switch
.type weir_engine_stack_switch, @function
weir_engine_stack_switch:
  .cfi_startproc
  pushq %rbp
  .cfi_def_cfa_offset 16
  .cfi_offset %rbp, -16
  movq %rsp, %rbp
  .cfi_def_cfa_register %rbp
  movq %rdi, %rsp
  movq %rdx, %rdi
  callq *%rsi
  movq %rbp, %rsp
  popq %rbp
  .cfi_def_cfa %rsp, 8
  retq
  .cfi_endproc
.size weir_engine_stack_switch, .-weir_engine_stack_switch
)");

void engine_stack_call(EngineThread* stack, void (*fn)(void*), void* arg) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  struct Call {
    void (*fn)(void*);
    void* arg;
    void** fake;
    const void* old_bottom = nullptr;
    size_t old_size = 0;
  } call{fn, arg, &fake};
  __sanitizer_start_switch_fiber(&fake, stack, ENGINE_STACK_SIZE);
  weir_engine_stack_switch(
      engine_stack_top(stack),
      [](void* p) {
        auto* c = static_cast<Call*>(p);
        __sanitizer_finish_switch_fiber(nullptr, &c->old_bottom, &c->old_size);
        c->fn(c->arg);
        __sanitizer_start_switch_fiber(nullptr, c->old_bottom, c->old_size);
      },
      &call);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  weir_engine_stack_switch(engine_stack_top(stack), fn, arg);
#endif
}

void run_on_engine_stack(void (*fn)(void*), void* arg) {
  EngineThread* stack = engine_stack_create();
  WEIR_BUG_ON(stack == nullptr);
  engine_stack_call(stack, fn, arg);
  engine_stack_destroy(stack);
}

}  // namespace weir
