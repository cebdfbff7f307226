// src/kernel/host/host_world.cpp: see host_world.hpp
#include "kernel/host/host_world.hpp"

#include <linux/sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <x86intrin.h>

#include <cstring>
#include <new>

#include "kernel/host/sys.hpp"

// Sanitizers must know their threads, so there kthreads are libc's.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define WEIR_LIBC_KTHREADS 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define WEIR_LIBC_KTHREADS 1
#endif
#ifdef WEIR_LIBC_KTHREADS
#include <pthread.h>
#endif

namespace weir {

struct HostThread : Thread {
  // What it sleeps on: EMPTY, or NOTIFIED by a wake that nobody slept through, or PARKED.
  static constexpr uint32_t EMPTY = 0, NOTIFIED = 1, PARKED = 2;
  std::atomic<uint32_t> park{EMPTY};
  // Kthreads: not 0 until the thread's last use of its stack; the host clears it and wakes who waits.
  std::atomic<uint32_t> alive{0};
  std::atomic<uint32_t> started{0};               ///< kthread_start has been called
  std::atomic<uint32_t> next_free{0};             // index + 1 in its pool
  std::atomic<EngineThread*> own_stack{nullptr};  // stays with the place
  char* tls = nullptr;
  void (*function)(void*) = nullptr;
  void* argument = nullptr;
  HostWorld* host = nullptr;
#ifdef WEIR_LIBC_KTHREADS
  pthread_t pthread{};
#endif
};

namespace {

// Below the thread pointer lies what linked-in code has as static TLS (libc's errno among it), above it libc's own
// thread descriptor, of which nothing but the head is filled in.
constexpr size_t TLS_BELOW = 56 << 10, TLS_ABOVE = 8 << 10;

char* map(size_t bytes) {
  const long p = sys::call(SYS_mmap, 0, static_cast<long>(bytes), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p < 0 && p > -4096 ? nullptr : reinterpret_cast<char*>(p);
}

void unmap(void* p, size_t bytes) { sys::call(SYS_munmap, sys::arg(p), static_cast<long>(bytes)); }

constexpr size_t AREA = sizeof(HostThread) * (HostWorld::MAX_KTHREADS + HostWorld::MAX_ENTERED);

}  // namespace

// ---- Pools ---------------------------------------------------------------------------------------------------------

void HostWorld::Pool::fill(const HostThread* except) {
  uint32_t next = 0;
  for (unsigned i = size; i-- > 0;) {
    if (&slots[i] == except) continue;
    slots[i].next_free.store(next, std::memory_order_relaxed);
    next = i + 1;
  }
  const uint64_t tag = (head.load(std::memory_order_relaxed) >> 32) + 1;
  head.store(tag << 32 | next, std::memory_order_release);
}

HostThread* HostWorld::Pool::take() {
  uint64_t h = head.load(std::memory_order_acquire);
  for (;;) {
    const auto first = static_cast<uint32_t>(h);
    if (first == 0) return nullptr;
    const uint64_t next = ((h >> 32) + 1) << 32 | slots[first - 1].next_free.load(std::memory_order_relaxed);
    if (head.compare_exchange_weak(h, next, std::memory_order_acquire)) return &slots[first - 1];
  }
}

void HostWorld::Pool::give(HostThread& t) {
  const auto index = static_cast<uint32_t>(&t - slots);
  uint64_t h = head.load(std::memory_order_relaxed);
  do t.next_free.store(static_cast<uint32_t>(h), std::memory_order_relaxed);
  while (!head.compare_exchange_weak(h, ((h >> 32) + 1) << 32 | (index + 1), std::memory_order_release));
}

/// A place that was taken: fields as new, a stack under it. False when the host has no memory.
bool HostWorld::prepare(HostThread& t) {
  EngineThread* stack = t.own_stack.load(std::memory_order_relaxed);
  if (stack == nullptr) {
    stack = engine_stack_create();
    if (stack == nullptr) return false;
    t.own_stack.store(stack, std::memory_order_release);
  }
  t.world = this;
  t.host = this;
  t.stack = stack;
  t.task = nullptr;
  t.flags = 0;
  t.comm[0] = 0;
  t.cpu = cpu_hint();
  t.should_stop.store(false, std::memory_order_relaxed);
  t.journal_info = nullptr;
  t.park.store(HostThread::EMPTY, std::memory_order_relaxed);
  stack->world = this;
  stack->thread = &t;
  stack->lane.interrupt();
  stack->sink = sink_.load(std::memory_order_acquire);
  return true;
}

Result<void> HostWorld::start() {
  WEIR_BUG_ON(area_ != nullptr);
  uint64_t cpus[16] = {};  // 1024 CPUs
  const long bytes = sys::call(SYS_sched_getaffinity, 0, sizeof cpus, sys::arg(cpus));
  nr_cpus_ = 0;
  for (long i = 0; i < bytes / 8; ++i) nr_cpus_ += static_cast<unsigned>(__builtin_popcountll(cpus[i]));
  if (nr_cpus_ == 0) nr_cpus_ = 1;

  char* area = map(AREA);
  if (area == nullptr) return Errno::nomem;
  area_ = area;
  kthreads_.slots = reinterpret_cast<HostThread*>(area);
  kthreads_.size = MAX_KTHREADS;
  entries_.slots = kthreads_.slots + MAX_KTHREADS;
  entries_.size = MAX_ENTERED;
  // Zeroed memory is a HostThread but for what the constructor sets: nothing that is not zero.
  for (unsigned i = 0; i < MAX_KTHREADS + MAX_ENTERED; ++i) ::new (static_cast<void*>(&kthreads_.slots[i])) HostThread;
  kthreads_.fill(nullptr);
  entries_.fill(nullptr);
  for (unsigned i = 0; i < options_.entry_stacks && i < MAX_ENTERED; ++i) {
    if (!prepare(entries_.slots[i])) {
      stop();
      return Errno::nomem;
    }
  }
  timer_thread_ = kthread_create(timer_main, this, "ktimerd");
  if (timer_thread_ == nullptr) {
    stop();
    return Errno::again;
  }
  return {};
}

void HostWorld::stop() {
  if (area_ == nullptr) return;
  if (timer_thread_ != nullptr) kthread_stop(*timer_thread_);
  timer_thread_ = nullptr;
  WEIR_BUG_ON(nr_kthreads() != 0);
  for (unsigned i = 0; i < MAX_KTHREADS + MAX_ENTERED; ++i) {
    HostThread& t = kthreads_.slots[i];
    lockdep_forget(t);
    if (EngineThread* stack = t.own_stack.load(std::memory_order_relaxed)) engine_stack_destroy(stack);
    if (t.tls != nullptr) unmap(t.tls, TLS_BELOW + TLS_ABOVE);
  }
  unmap(area_, AREA);
  area_ = nullptr;
}

// ---- Entering ------------------------------------------------------------------------------------------------------

bool HostWorld::on_engine_stack() const {
  uintptr_t sp;
  asm("mov %%rsp, %0" : "=r"(sp));
  auto* bottom = reinterpret_cast<EngineThread*>(sp & ~(uintptr_t{ENGINE_STACK_SIZE} - 1));
  // Places are used from the first on, so that few are looked at.
  for (unsigned i = 0; i < MAX_ENTERED; ++i) {
    const EngineThread* stack = entries_.slots[i].own_stack.load(std::memory_order_acquire);
    if (stack == bottom) return true;
    if (stack == nullptr) break;
  }
  for (unsigned i = 0; i < MAX_KTHREADS; ++i) {
    const EngineThread* stack = kthreads_.slots[i].own_stack.load(std::memory_order_acquire);
    if (stack == bottom) return true;
    if (stack == nullptr) break;
  }
  return false;
}

HostThread& HostWorld::take_entry() {
  for (;;) {
    const uint32_t given = entry_given_.load(std::memory_order_acquire);
    if (HostThread* t = entries_.take()) {
      if (prepare(*t)) return *t;
      // No memory for one more stack: one that is in use will do when it is free.
      entries_.give(*t);
    }
    entry_waiters_.fetch_add(1, std::memory_order_seq_cst);
    if (entry_given_.load(std::memory_order_seq_cst) == given) sys::futex_wait(entry_given_, given);
    entry_waiters_.fetch_sub(1, std::memory_order_relaxed);
  }
}

void HostWorld::give_entry(HostThread& t) {
  t.stack->sink = nullptr;
  entries_.give(t);
  entry_given_.fetch_add(1, std::memory_order_seq_cst);
  if (entry_waiters_.load(std::memory_order_seq_cst) != 0) sys::futex_wake(entry_given_, 1);
}

struct HostWorld::Call {
  HostWorld& world;
  void (*fn)(void*);
  void* arg;
  Gate gate;
};

void HostWorld::do_enter(void (*fn)(void*), void* arg, Task* task, Gate gate) {
  const sys::SignalMask mask = sys::set_signal_mask(sys::ALL_SIGNALS);
  WEIR_BUG_ON(on_engine_stack());
  HostThread& t = take_entry();
  t.task = task;
  t.tid = sys::gettid();
  Call call{*this, fn, arg, gate};
  engine_stack_call(
      t.stack,
      [](void* p) {
        auto& c = *static_cast<Call*>(p);
        if (c.gate == Gate::shared) {
          c.world.gate_.down_read();
          c.fn(c.arg);
          c.world.gate_.up_read();
        } else {
          c.world.gate_.down_write();
          c.fn(c.arg);
          c.world.gate_.up_write();
        }
        lockdep_thread_idle(current());
      },
      &call);
  give_entry(t);
  sys::set_signal_mask(mask);
}

Result<void> HostWorld::restart_after_fork() {
  forget_kthreads();
  Thread& self = current();
  self.tid = sys::gettid();
  entries_.fill(static_cast<HostThread*>(&self));
  entry_waiters_.store(0, std::memory_order_relaxed);
  gate_.forget_waiters();
  timer_lock_.forget_holder();
  freezer.frozen.store(nullptr, std::memory_order_relaxed);
  freezer.nr_frozen.store(0, std::memory_order_relaxed);
  timer_thread_ = kthread_create(timer_main, this, "ktimerd");
  if (timer_thread_ == nullptr) return Errno::again;
  return {};
}

void HostWorld::forget_kthreads() {
  for (unsigned i = 0; i < MAX_KTHREADS; ++i) {
    lockdep_forget(kthreads_.slots[i]);
    kthreads_.slots[i].alive.store(0, std::memory_order_relaxed);
  }
  kthreads_.fill(nullptr);
  nr_kthreads_.store(0, std::memory_order_relaxed);
  timer_thread_ = nullptr;
}

void HostWorld::set_sink(FlowSink* sink) {
  sink_.store(sink, std::memory_order_release);
  for (unsigned i = 0; area_ != nullptr && i < MAX_KTHREADS + MAX_ENTERED; ++i) {
    if (EngineThread* stack = kthreads_.slots[i].own_stack.load(std::memory_order_acquire))
      std::atomic_ref(stack->sink).store(sink, std::memory_order_release);
  }
}

// ---- Kthreads ------------------------------------------------------------------------------------------------------

// clone with a function to call on the new stack: rdi flags, rsi stack, rdx parent_tid, rcx child_tid, r8 tls, r9 fn,
// then arg.
extern "C" [[gnu::visibility("hidden")]] long weir_host_clone(uint64_t flags, void* stack, int32_t* parent_tid,
                                                              std::atomic<uint32_t>* child_tid, void* tls,
                                                              void (*fn)(void*), void* arg);
asm(R"(
.text
.hidden weir_host_clone
.globl weir_host_clone
.type weir_host_clone, @function
weir_host_clone:
  .cfi_startproc
  movq 8(%rsp), %rax
  subq $16, %rsi
  movq %r9, 0(%rsi)
  movq %rax, 8(%rsi)
  movq %rcx, %r10
  movl $56, %eax
  syscall
  testq %rax, %rax
  jz 1f
  retq
1:
  .cfi_undefined %rip
  xorl %ebp, %ebp
  popq %rax
  popq %rdi
  callq *%rax
  movl $60, %eax
  xorl %edi, %edi
  syscall
  hlt
  .cfi_endproc
.size weir_host_clone, .-weir_host_clone
)");

void HostWorld::kthread_main(void* arg) {
  auto& t = *static_cast<HostThread*>(arg);
  HostWorld& w = *t.host;
  sys::call(SYS_prctl, PR_SET_NAME, sys::arg(t.comm));
  if (w.options_.kthread_start != nullptr) w.options_.kthread_start(w.options_.kthread_start_data);
  t.started.store(1, std::memory_order_release);
  sys::futex_wake(t.started, 1);
  t.function(t.argument);
  // The host does so later than it says that the thread is gone: who waits for that may want to unmount.
  if (w.options_.files == KthreadFiles::own) sys::call(SYS_close_range, 0, ~0u, 0);
  lockdep_thread_idle(t);
}

#ifdef WEIR_LIBC_KTHREADS

int32_t HostWorld::clone_kthread(HostThread& t) {
  auto body = [](void* arg) -> void* {
    auto& self = *static_cast<HostThread*>(arg);
    self.tid = sys::gettid();
    sys::set_signal_mask(sys::ALL_SIGNALS);  // libc let in signals of its own
    if (self.host->options_.files == KthreadFiles::own) sys::call(SYS_unshare, CLONE_FILES);
    self.alive.store(2, std::memory_order_release);
    sys::futex_wake(self.alive, 1);
    engine_stack_call(self.stack, kthread_main, &self);
    return nullptr;
  };
  if (pthread_create(&t.pthread, nullptr, body, &t) != 0) return -1;
  // As with clone, its descriptor table is that of this moment.
  while (t.alive.load(std::memory_order_acquire) == 1) sys::futex_wait(t.alive, 1);
  return 1;
}

#else

int32_t HostWorld::clone_kthread(HostThread& t) {
  if (t.tls == nullptr) {
    t.tls = map(TLS_BELOW + TLS_ABOVE);
    if (t.tls == nullptr) return -1;
  }
  // The head of a thread descriptor on x86-64: itself at 0 and 16, "many threads" at 24, stack and pointer guards at
  // 40, 48.
  char* tp = t.tls + TLS_BELOW;
  uint64_t stack_guard, pointer_guard;
  asm("movq %%fs:40, %0" : "=r"(stack_guard));
  asm("movq %%fs:48, %0" : "=r"(pointer_guard));
  std::memcpy(tp, &tp, 8);
  std::memcpy(tp + 16, &tp, 8);
  const int many = 1;
  std::memcpy(tp + 24, &many, sizeof many);
  std::memcpy(tp + 40, &stack_guard, 8);
  std::memcpy(tp + 48, &pointer_guard, 8);

  uint64_t flags = CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
                   CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
  if (options_.files == KthreadFiles::shared) flags |= CLONE_FILES;
  return static_cast<int32_t>(
      weir_host_clone(flags, engine_stack_top(t.stack), &t.tid, &t.alive, tp, kthread_main, &t));
}

#endif

Thread* HostWorld::kthread_create(void (*fn)(void*), void* data, const char* name) {
  HostThread* t = kthreads_.take();
  if (t == nullptr) return nullptr;
  if (!prepare(*t)) {
    kthreads_.give(*t);
    return nullptr;
  }
  t->flags = PF_KTHREAD;
  for (unsigned i = 0; i + 1 < sizeof t->comm && name[i] != 0; ++i) {
    t->comm[i] = name[i];
    t->comm[i + 1] = 0;
  }
  t->function = fn;
  t->argument = data;
  t->alive.store(1, std::memory_order_relaxed);
  t->started.store(0, std::memory_order_relaxed);
  nr_kthreads_.fetch_add(1, std::memory_order_relaxed);
  // The clone inherits the mask: no handler of the program ever runs in a kthread.
  const sys::SignalMask mask = sys::set_signal_mask(sys::ALL_SIGNALS);
  const int32_t tid = clone_kthread(*t);
  sys::set_signal_mask(mask);
  if (tid > 0) return t;
  nr_kthreads_.fetch_sub(1, std::memory_order_relaxed);
  kthreads_.give(*t);
  return nullptr;
}

void HostWorld::wait_for_kthread_starts() {
  for (unsigned i = 0; i < MAX_KTHREADS; ++i) {
    HostThread& t = kthreads_.slots[i];
    while (t.alive.load(std::memory_order_acquire) != 0 && t.started.load(std::memory_order_acquire) == 0)
      sys::futex_wait(t.started, 0);
  }
}

void HostWorld::kthread_stop(Thread& thread) {
  auto& t = static_cast<HostThread&>(thread);
  t.should_stop.store(true, std::memory_order_release);
  wake(t);
#ifdef WEIR_LIBC_KTHREADS
  pthread_join(t.pthread, nullptr);
#else
  // The host's wake on exit is not a private one.
  while (const uint32_t alive = t.alive.load(std::memory_order_acquire))
    sys::call(SYS_futex, sys::arg(&t.alive), FUTEX_WAIT, static_cast<long>(alive), 0);
#endif
  lockdep_forget(t);
  nr_kthreads_.fetch_sub(1, std::memory_order_relaxed);
  kthreads_.give(t);
}

// ---- Sleeping and waking -------------------------------------------------------------------------------------------

Nanos HostWorld::now() const {
  // libc's clock_gettime is the host's vDSO: no lock, no allocation, and errno untouched as this clock exists.
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return Nanos(static_cast<uint64_t>(ts.tv_sec) * 1000000000 + static_cast<uint64_t>(ts.tv_nsec));
}

CpuId HostWorld::cpu_hint() const {
  // Linux keeps the CPU's number in the limit of a segment that user space may ask for: cheaper than a system call.
  uint32_t limit = 0;
  bool valid;
  asm volatile("lsl %2, %0" : "+r"(limit), "=@ccz"(valid) : "r"(0x7b));
  return CpuId(static_cast<uint16_t>(valid ? (limit & 0xfff) % nr_cpus_ : 0));
}

void HostWorld::schedule() {
  might_sleep();
  auto& t = static_cast<HostThread&>(current());
  uint32_t seen = HostThread::EMPTY;
  if (t.park.compare_exchange_strong(seen, HostThread::PARKED, std::memory_order_acquire)) {
    do sys::futex_wait(t.park, HostThread::PARKED);
    while (t.park.load(std::memory_order_acquire) == HostThread::PARKED);
  }
  t.park.exchange(HostThread::EMPTY, std::memory_order_acquire);
  t.cpu = cpu_hint();
  t.stack->lane.interrupt();
}

bool HostWorld::schedule_timeout(Nanos delay) {
  might_sleep();
  auto& t = static_cast<HostThread&>(current());
  // A day is for ever here; it keeps the sum far from overflowing.
  const Nanos end = now() + (delay < Nanos(86400ull * 1000000000) ? delay : Nanos(86400ull * 1000000000));
  uint32_t seen = HostThread::EMPTY;
  if (t.park.compare_exchange_strong(seen, HostThread::PARKED, std::memory_order_acquire)) {
    long result;
    do result = sys::futex_wait(t.park, HostThread::PARKED, &end);
    while (result != -110 /* ETIMEDOUT */ && t.park.load(std::memory_order_acquire) == HostThread::PARKED);
  }
  const bool woken = t.park.exchange(HostThread::EMPTY, std::memory_order_acquire) == HostThread::NOTIFIED;
  t.cpu = cpu_hint();
  t.stack->lane.interrupt();
  return woken;
}

void HostWorld::wake(Thread& thread) {
  auto& t = static_cast<HostThread&>(thread);
  if (t.park.exchange(HostThread::NOTIFIED, std::memory_order_release) == HostThread::PARKED)
    sys::futex_wake(t.park, 1);
}

void HostWorld::spin_wait(std::atomic<uint32_t>& word) {
  // Long enough for a holder that runs, short enough for one that was preempted.
  for (int i = 0; i < 100; ++i) {
    if (word.load(std::memory_order_relaxed) == 0) return;
    __builtin_ia32_pause();
  }
  sys::futex_wait(word, 2);
}

void HostWorld::spin_wake(std::atomic<uint32_t>& word) { sys::futex_wake(word, 1); }

// ---- Timers --------------------------------------------------------------------------------------------------------

void HostWorld::timer_arm(Timer& timer, Nanos delay) {
  bool first;
  {
    ScopedLock guard(timer_lock_);
    if (timer.armed) unlink(timer);
    timer.armed = true;
    timer.expires = now() + delay;
    Timer** at = &timers_;
    while (*at != nullptr && (*at)->expires <= timer.expires) at = &(*at)->next;
    timer.next = *at;
    *at = &timer;
    first = timers_ == &timer;
  }
  if (first && timer_thread_ != nullptr) wake(*timer_thread_);
}

void HostWorld::unlink(Timer& timer) {
  Timer** at = &timers_;
  while (*at != &timer) at = &(*at)->next;
  *at = timer.next;
  timer.next = nullptr;
  timer.armed = false;
}

void HostWorld::timer_cancel(Timer& timer) {
  {
    ScopedLock guard(timer_lock_);
    if (timer.armed) unlink(timer);
  }
  if (&current() == timer_thread_) return;  // a function that cancels its own timer
  for (;;) {
    const uint32_t runs = timer_runs_.load(std::memory_order_acquire);
    if (running_timer_.load(std::memory_order_acquire) != &timer) return;
    sys::futex_wait(timer_runs_, runs);
  }
}

/// Runs what is due. How long until the next one; 0 when one more is due.
Nanos HostWorld::run_timers() {
  KthreadPass pass;
  Timer* timer;
  {
    ScopedLock guard(timer_lock_);
    timer = timers_;
    if (timer == nullptr) return Nanos(~uint64_t{0});
    const Nanos time = now();
    if (timer->expires > time) return timer->expires - time;
    unlink(*timer);
    running_timer_.store(timer, std::memory_order_relaxed);
  }
  Thread& self = current();
  ++self.spin_depth;  // might_sleep() tells
  timer->function(timer->data);
  --self.spin_depth;
  running_timer_.store(nullptr, std::memory_order_release);
  timer_runs_.fetch_add(1, std::memory_order_release);
  sys::futex_wake(timer_runs_, INT32_MAX);
  return Nanos(0);
}

void HostWorld::timer_main(void* world) {
  auto& w = *static_cast<HostWorld*>(world);
  while (!kthread_should_stop()) {
    const Nanos delay = w.run_timers();
    if (delay == Nanos(~uint64_t{0})) {
      w.schedule();
    } else if (delay.v != 0) {
      (void)w.schedule_timeout(delay);
    }
  }
}

// ---- The rest ------------------------------------------------------------------------------------------------------

uint64_t HostWorld::random() {
  uint64_t z = __rdtsc() * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

void HostWorld::printk(const char* text) {
  if (muted_.load(std::memory_order_relaxed)) return;
  // One write, so that lines of several threads and processes do not mix.
  char line[1024];
  size_t n = 0;
  auto put = [&](const char* s) {
    while (*s != 0 && n < sizeof line - 1) line[n++] = *s++;
  };
  put("weir: ");
  put(text);
  line[n++] = '\n';
  sys::call(SYS_write, 2, sys::arg(line), static_cast<long>(n));
}

}  // namespace weir
