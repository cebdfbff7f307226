// src/kernel/virtual/virtual_world.cpp: see virtual_world.hpp
#include "kernel/virtual/virtual_world.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "kernel/locks.hpp"

namespace weir {

struct VirtualWorld::VThread : Thread {
  // runnable: in its CPU's queue. running: its CPU's `curr`, though another CPU's thread may be executing at the
  // moment.
  enum class State : uint8_t { runnable, running, parked, spinning, ended };
  State state = State::runnable;
  bool wake_pending = false;
  bool timed_out = false;
  Nanos ready_at{0};
  Nanos spent{0};
  EventKey sleep{};  // id 0: no event
  size_t sleep_place = 0;
  const std::atomic<uint32_t>* spins_on = nullptr;
  VThread* stopper = nullptr;  // waits in kthread_stop for it
  VThread* next = nullptr;     // in its CPU's queue
  VThread* prev = nullptr;
  void (*function)(void*) = nullptr;  // what it runs: this, or body
  void* argument = nullptr;
  std::function<void()> body;
  std::unique_ptr<Fiber> fiber;
  VirtualWorld& virtual_world() const { return static_cast<VirtualWorld&>(*world); }
};

struct VirtualWorld::Cpu {
  Nanos clock{0};
  Nanos busy{0};
  Nanos slice_end{0};
  VThread* curr = nullptr;
  VThread* head = nullptr;
  VThread* tail = nullptr;
  unsigned queued = 0;

  [[nodiscard]] unsigned load() const { return queued + (curr != nullptr ? 1 : 0); }
  void push_back(VThread& t) {
    t.state = VThread::State::runnable;
    t.next = nullptr;
    t.prev = tail;
    (tail != nullptr ? tail->next : head) = &t;
    tail = &t;
    ++queued;
  }
  void push_front(VThread& t) {
    t.state = VThread::State::runnable;
    t.prev = nullptr;
    t.next = head;
    (head != nullptr ? head->prev : tail) = &t;
    head = &t;
    ++queued;
  }
  void remove(VThread& t) {
    (t.prev != nullptr ? t.prev->next : head) = t.next;
    (t.next != nullptr ? t.next->prev : tail) = t.prev;
    t.next = t.prev = nullptr;
    --queued;
  }
};

// ---- Threads -------------------------------------------------------------------------------------------------------

VirtualWorld::VirtualWorld() : VirtualWorld(Options{}) {}

VirtualWorld::VirtualWorld(Options options)
    : World(HostThreads::one), options_(std::move(options)), dice_{options_.seed}, random_{~options_.seed} {
  WEIR_BUG_ON(options_.cpus == 0);
  cpus_.resize(options_.cpus);
  throw_dice();
  softirq_ = &new_thread("ksoftirqd", PF_KTHREAD | PF_NOFREEZE, nullptr);
  softirq_->function = softirq;
  softirq_->argument = this;
  softirq_->state = VThread::State::parked;
}

VirtualWorld::~VirtualWorld() {
  WEIR_BUG_ON(running_ != nullptr);
  for (auto& t : threads_) lockdep_forget(*t);
}

VirtualWorld::VThread& VirtualWorld::new_thread(const char* comm, uint32_t flags, Task* task) {
  VThread* t;
  if (!free_.empty()) {
    t = free_.back();
    free_.pop_back();
    std::unique_ptr<Fiber> fiber = std::move(t->fiber);
    t->~VThread();
    ::new (static_cast<void*>(t)) VThread;
    t->fiber = std::move(fiber);
    t->fiber->reuse();
  } else {
    threads_.push_back(std::make_unique<VThread>());
    t = threads_.back().get();
    t->fiber = std::make_unique<Fiber>();
    WEIR_BUG_ON(!t->fiber->create(thread_entry, t));
  }
  t->world = this;
  t->task = task;
  t->flags = flags;
  t->tid = next_tid_++;
  std::snprintf(t->comm, sizeof t->comm, "%s", comm);
  t->stack = t->fiber->stack();
  t->stack->world = this;
  t->stack->thread = t;
  t->stack->sink = sink_;
  return *t;
}

Thread* VirtualWorld::spawn(const char* comm, std::function<void()> fn, Task* task) {
  VThread& t = new_thread(comm, 0, task);
  t.body = std::move(fn);
  ++live_users_;
  make_runnable(t, turn_.now);
  return &t;
}

Thread* VirtualWorld::spawn(const char* comm, void (*fn)(void*), void* arg, Task* task) {
  VThread& t = new_thread(comm, 0, task);
  t.function = fn;
  t.argument = arg;
  ++live_users_;
  make_runnable(t, turn_.now);
  return &t;
}

Thread* VirtualWorld::kthread_create(void (*fn)(void*), void* data, const char* name) {
  VThread& t = new_thread(name, PF_KTHREAD, nullptr);
  t.function = fn;
  t.argument = data;
  make_runnable(t, turn_.now);
  return &t;
}

void VirtualWorld::thread_entry(void* arg) {
  VThread& t = *static_cast<VThread*>(arg);
  t.virtual_world().reap();
  if (t.function != nullptr) {
    t.function(t.argument);
  } else {
    t.body();
    t.body = nullptr;
  }
  lockdep_thread_idle(t);
  t.virtual_world().thread_end(t);
}

void VirtualWorld::thread_end(VThread& t) {
  save_clock();
  t.state = VThread::State::ended;
  cpus_[t.cpu.v].curr = nullptr;
  if ((t.flags & PF_KTHREAD) == 0) --live_users_;
  if (t.stopper != nullptr && t.stopper->state == VThread::State::parked) make_runnable(*t.stopper, turn_.now);
  dead_ = &t;
  VThread* next = pick_next();
  running_ = nullptr;
  if (next == nullptr) {
    turn_.resched_at = NEVER;
    Fiber::end_in(*t.fiber, main_);
  }
  ++switches_;
  running_ = next;
  turn_.now = cpus_[next->cpu.v].clock;
  set_resched(OrderRule::strict);
  Fiber::end_in(*t.fiber, *next->fiber);
}

/// Called on arriving anywhere: nobody stands on the dead one's stack any more. A kthread stays until it is stopped.
void VirtualWorld::reap() {
  if (dead_ != nullptr && (dead_->flags & PF_KTHREAD) == 0) release(*dead_);
  dead_ = nullptr;
}

void VirtualWorld::release(VThread& t) {
  lockdep_forget(t);
  free_.push_back(&t);
}

void VirtualWorld::kthread_stop(Thread& thread) {
  auto& t = static_cast<VThread&>(thread);
  t.should_stop.store(true, std::memory_order_release);
  wake(t);
  if (running_ != nullptr) {
    WEIR_BUG_ON(running_ == &t);
    t.stopper = running_;
    while (t.state != VThread::State::ended) schedule();
  } else {
    drive(NEVER, [&t] { return t.state == VThread::State::ended; });
    if (t.state != VThread::State::ended) {
      describe_waiters();
      printk(report_.c_str());
      bug("a kthread does not stop", "virtual_world.cpp", __LINE__);
    }
  }
  release(t);
}

bool VirtualWorld::shutdown() {
  WEIR_BUG_ON(running_ != nullptr);
  for (;;) {
    VThread* youngest = nullptr;
    for (auto& t : threads_) {
      const bool gone = std::find(free_.begin(), free_.end(), t.get()) != free_.end();
      if (gone || (t->flags & PF_KTHREAD) == 0 || t.get() == softirq_) continue;
      if (youngest == nullptr || t->tid > youngest->tid) youngest = t.get();
    }
    if (youngest == nullptr) return true;
    youngest->should_stop.store(true, std::memory_order_release);
    wake(*youngest);
    drive(NEVER, [youngest] { return youngest->state == VThread::State::ended; });
    if (youngest->state != VThread::State::ended) {
      describe_waiters();
      return false;
    }
    release(*youngest);
  }
}

void VirtualWorld::set_sink(FlowSink* sink) {
  sink_ = sink;
  for (auto& t : threads_) t->stack->sink = sink;
}

Nanos VirtualWorld::cpu_time(const Thread& thread) const { return static_cast<const VThread&>(thread).spent; }
Nanos VirtualWorld::busy_time(CpuId cpu) const { return cpus_[cpu.v].busy; }

// ---- The scheduler -------------------------------------------------------------------------------------------------

void VirtualWorld::save_clock() {
  if (running_ != nullptr) cpus_[running_->cpu.v].clock = turn_.now;
}

/// When `cpu`, which has something to run, would go on.
Nanos VirtualWorld::start_of(const Cpu& cpu) const {
  return cpu.curr != nullptr ? cpu.clock : std::max(cpu.clock, cpu.head->ready_at);
}

/// Puts a thread that waited, or is new, into the queue of the least loaded CPU: its own if that is one of them,
/// otherwise the one with the lowest number.
void VirtualWorld::make_runnable(VThread& t, Nanos at) {
  unsigned least = cpus_[t.cpu.v].load();
  for (unsigned i = 0; i < cpus_.size(); ++i) {
    if (cpus_[i].load() >= least) continue;
    least = cpus_[i].load();
    t.cpu = CpuId(static_cast<uint16_t>(i));
  }
  t.ready_at = at;
  Cpu& cpu = cpus_[t.cpu.v];
  cpu.push_back(t);
  if (running_ == nullptr) return;
  if (cpu.curr == running_) {
    turn_.resched_at = std::min(turn_.resched_at, cpu.slice_end);
  } else if (cpu.curr == nullptr) {
    turn_.resched_at = std::min(turn_.resched_at, start_of(cpu) + options_.skew + Nanos(1));
  }
}

/// The softirq thread goes before whatever its CPU does: an idle CPU, else the one that is furthest behind.
void VirtualWorld::raise_softirq(Nanos at) {
  if (softirq_->state != VThread::State::parked) return;
  unsigned best = 0;
  for (unsigned i = 1; i < cpus_.size(); ++i) {
    const Cpu &a = cpus_[i], &b = cpus_[best];
    if (b.load() == 0) break;
    if (a.load() == 0 || start_of(a) < start_of(b)) best = i;
  }
  Cpu& cpu = cpus_[best];
  if (cpu.curr != nullptr) {
    cpu.push_front(*cpu.curr);
    cpu.curr = nullptr;
  }
  softirq_->cpu = CpuId(static_cast<uint16_t>(best));
  softirq_->ready_at = at;
  cpu.push_front(*softirq_);
}

void VirtualWorld::put_on(Cpu& cpu, VThread& t) {
  cpu.remove(t);
  cpu.clock = std::max(cpu.clock, t.ready_at);
  cpu.slice_end = cpu.clock + options_.slice;
  cpu.curr = &t;
  t.state = VThread::State::running;
}

/// Lets all events happen that come first, then says who executes next; null when run() is to return.
VirtualWorld::VThread* VirtualWorld::pick_next() {
  if (halted_) {
    stop_reason_ = StopReason::halted;
    return nullptr;
  }
  for (;;) {
    if ((*done_)()) {
      stop_reason_ = StopReason::done;
      return nullptr;
    }
    Cpu* first = nullptr;
    Nanos start = NEVER;
    for (Cpu& cpu : cpus_) {
      if (cpu.load() == 0) continue;
      const Nanos its_start = start_of(cpu);
      if (first == nullptr || its_start < start) {
        first = &cpu;
        start = its_start;
      }
    }
    Events* events = events_.empty() || events_.front().key.time > start ? nullptr : &events_;
    // A deferrable timer waits until a CPU is awake.
    if (first != nullptr && !deferrable_.empty() && deferrable_.front().key.time <= start &&
        (events == nullptr || deferrable_.front().key < events->front().key))
      events = &deferrable_;
    const Nanos when = events != nullptr ? events->front().key.time : start;
    if (events == nullptr && first == nullptr) {
      stop_reason_ = StopReason::idle;
      return nullptr;
    }
    if (when > limit_) {
      stop_reason_ = StopReason::limit;
      return nullptr;
    }
    if (events != nullptr) {
      fire(*events, events == &deferrable_ ? start : when);
      continue;
    }
    if (first->curr == nullptr) put_on(*first, *first->head);
    return first->curr;
  }
}

void VirtualWorld::fire(Events& events, Nanos at) {
  const Events::Event event = events.front();
  events.pop_front();
  if (event.thread != nullptr) {
    event.thread->sleep = {};
    event.thread->timed_out = true;
    make_runnable(*event.thread, at);
    return;
  }
  event.timer->id = 0;
  event.timer->next = nullptr;
  (due_tail_ != nullptr ? due_tail_->next : due_) = event.timer;
  due_tail_ = event.timer;
  raise_softirq(at);
}

/// The seed's choice: one of all others that could run now without passing an event; null when there is none.
VirtualWorld::VThread* VirtualWorld::draw() {
  Nanos latest = std::min(limit_, turn_.now + options_.slice);
  if (!events_.empty()) latest = std::min(latest, events_.front().key.time);
  auto each = [&](auto visit) {
    for (Cpu& cpu : cpus_) {
      if (cpu.curr != nullptr && cpu.curr != running_ && cpu.clock <= latest) visit(cpu, *cpu.curr);
      for (VThread* t = cpu.head; t != nullptr; t = t->next)
        if (std::max(cpu.clock, t->ready_at) <= latest) visit(cpu, *t);
    }
  };
  uint64_t count = 0;
  each([&](Cpu&, VThread&) { ++count; });
  if (count == 0) return nullptr;
  uint64_t left = dice_.below(count);
  VThread* chosen = nullptr;
  Cpu* its_cpu = nullptr;
  each([&](Cpu& cpu, VThread& t) {
    if (left-- != 0) return;
    chosen = &t;
    its_cpu = &cpu;
  });
  if (chosen != its_cpu->curr) {
    if (its_cpu->curr != nullptr) its_cpu->push_back(*its_cpu->curr);
    put_on(*its_cpu, *chosen);
  }
  return chosen;
}

void VirtualWorld::throw_dice() {
  const uint64_t n = options_.preempt_one_in;
  turn_.countdown = n == 0 ? ~uint64_t{0} : 1 + dice_.below(2 * n - 1);
}

/// Until when a preemption point has nothing to decide.
void VirtualWorld::set_resched(OrderRule rule) {
  Nanos at = limit_ == NEVER ? NEVER : limit_ + Nanos(1);
  if (!events_.empty()) at = std::min(at, events_.front().key.time);
  if (!deferrable_.empty()) at = std::min(at, deferrable_.front().key.time);
  const Cpu& own = cpus_[running_->cpu.v];
  if (own.queued > 0) at = std::min(at, own.slice_end);
  if (rule == OrderRule::strict) {
    for (const Cpu& cpu : cpus_)
      if (&cpu != &own && cpu.load() > 0) at = std::min(at, start_of(cpu) + options_.skew + Nanos(1));
  }
  turn_.resched_at = at;
}

/// Goes on in `next` (null: in run()). Returns when the caller's own turn comes again.
void VirtualWorld::dispatch(VThread* next, OrderRule rule) {
  VThread* previous = running_;
  running_ = next;
  if (next != nullptr) {
    turn_.now = cpus_[next->cpu.v].clock;
    set_resched(rule);
    if (next == previous) return;
    ++switches_;
  } else {
    turn_.resched_at = NEVER;
  }
  Fiber::switch_to(previous != nullptr ? *previous->fiber : main_, next != nullptr ? *next->fiber : main_);
  reap();
}

/// The running thread has stopped running (its state says why): somebody else's turn.
void VirtualWorld::switch_away() {
  save_clock();
  cpus_[running_->cpu.v].curr = nullptr;
  dispatch(pick_next(), OrderRule::strict);
}

void VirtualWorld::preempt() {
  const bool dice_fell = turn_.countdown == 0;
  if (dice_fell) throw_dice();
  if (running_ == nullptr) return;
  save_clock();
  if (dice_fell) {
    if (VThread* chosen = draw()) {
      dispatch(chosen, OrderRule::as_drawn);
      return;
    }
  }
  Cpu& cpu = cpus_[running_->cpu.v];
  if (turn_.now >= cpu.slice_end) {
    cpu.slice_end = turn_.now + options_.slice;
    if (cpu.queued > 0) {
      cpu.push_back(*running_);
      cpu.curr = nullptr;
    }
  }
  dispatch(pick_next(), OrderRule::strict);
}

void VirtualWorld::drive(Nanos limit, const std::function<bool()>& done) {
  WEIR_BUG_ON(running_ != nullptr);
  report_.clear();
  limit_ = limit;
  done_ = &done;
  main_.adopt();
  if (VThread* next = pick_next()) dispatch(next, OrderRule::strict);
  done_ = nullptr;
  limit_ = NEVER;
}

VirtualWorld::RunState VirtualWorld::run() {
  drive(NEVER, [this] { return live_users_ == 0; });
  if (stop_reason_ == StopReason::halted) return RunState::halted;
  if (stop_reason_ == StopReason::done) return RunState::finished;
  describe_waiters();
  return RunState::deadlock;
}

VirtualWorld::RunState VirtualWorld::run_until(Nanos time) {
  drive(time, [] { return false; });
  if (stop_reason_ == StopReason::halted) return RunState::halted;
  turn_.now = std::max(turn_.now, time);
  if (live_users_ == 0) return RunState::finished;
  if (stop_reason_ == StopReason::limit) return RunState::time_reached;
  describe_waiters();
  return RunState::deadlock;
}

void VirtualWorld::halt() {
  WEIR_BUG_ON(running_ == nullptr);
  halted_ = true;
  running_->state = VThread::State::parked;
  switch_away();
  bug("a halted world goes on", __FILE__, __LINE__);
}

void VirtualWorld::describe_waiters() {
  char line[128];
  std::snprintf(line, sizeof line, "at %llu.%06llu ms nothing can run and no event is pending",
                turn_.now.v / 1000000ull, turn_.now.v % 1000000ull);
  report_ = line;
  for (auto& t : threads_) {
    const bool spins = t->state == VThread::State::spinning;
    if ((t->state != VThread::State::parked && !spins) || t.get() == softirq_) continue;
    std::snprintf(line, sizeof line, "\n  %s (tid %d): %s%s", t->comm, t->tid,
                  spins ? "waits for a spinlock" : "parked", (t->flags & PF_KTHREAD) != 0 ? ", a kthread" : "");
    report_ += line;
    for (unsigned i = 0; i < t->held_count; ++i) {
      report_ += i == 0 ? ", holds or waits for: " : ", ";
      report_ += lock_rank_name(t->held[i].rank);
    }
  }
}

// ---- What threads call ---------------------------------------------------------------------------------------------

void VirtualWorld::spend(Nanos cpu_time) {
  if (running_ == nullptr) return;
  turn_.now += cpu_time;
  running_->spent += cpu_time;
  cpus_[running_->cpu.v].busy += cpu_time;
}

void VirtualWorld::schedule() {
  WEIR_BUG_ON(running_ == nullptr);
  might_sleep();
  VThread& t = *running_;
  if (!t.wake_pending) {
    t.state = VThread::State::parked;
    switch_away();
  }
  t.wake_pending = false;
}

bool VirtualWorld::schedule_timeout(Nanos delay) {
  WEIR_BUG_ON(running_ == nullptr);
  might_sleep();
  VThread& t = *running_;
  t.timed_out = false;
  if (!t.wake_pending) {
    const Nanos end = delay > NEVER - turn_.now ? NEVER : turn_.now + delay;
    t.sleep = {end, next_event_id_++};
    events_.push({.key = t.sleep, .thread = &t, .place = &t.sleep_place});
    t.state = VThread::State::parked;
    switch_away();
  }
  const bool woken = !t.timed_out || t.wake_pending;
  t.wake_pending = false;
  return woken;
}

void VirtualWorld::cancel_sleep(VThread& t) {
  if (t.sleep.id == 0) return;
  events_.erase(t.sleep_place);
  t.sleep = {};
}

void VirtualWorld::wake(Thread& thread) {
  auto& t = static_cast<VThread&>(thread);
  if (t.state == VThread::State::parked) {
    cancel_sleep(t);
    make_runnable(t, turn_.now);
  } else if (t.state != VThread::State::ended) {
    t.wake_pending = true;
  }
  preempt_point();
}

void VirtualWorld::cond_resched() {
  might_sleep();
  preempt_point();
}

void VirtualWorld::spin_wait(std::atomic<uint32_t>& word) {
  if (word.load(std::memory_order_relaxed) != 2) return;
  if (running_ == nullptr) bug("a lock is wanted between runs that a thread holds", "virtual_world.cpp", __LINE__);
  running_->state = VThread::State::spinning;
  running_->spins_on = &word;
  spinning_.push_back(running_);
  switch_away();
}

void VirtualWorld::spin_wake(std::atomic<uint32_t>& word) {
  auto it = std::find_if(spinning_.begin(), spinning_.end(), [&](const VThread* t) { return t->spins_on == &word; });
  if (it == spinning_.end()) return;
  VThread& t = **it;
  spinning_.erase(it);
  t.spins_on = nullptr;
  // It never left its CPU, and goes first there.
  t.ready_at = turn_.now;
  Cpu& cpu = cpus_[t.cpu.v];
  cpu.push_front(t);
  if (running_ != nullptr && cpu.curr == nullptr)
    turn_.resched_at = std::min(turn_.resched_at, start_of(cpu) + options_.skew + Nanos(1));
}

// ---- Timers --------------------------------------------------------------------------------------------------------

void VirtualWorld::timer_arm(Timer& timer, Nanos delay) {
  if (timer.armed) {
    if (timer.id != 0) (timer.deferrable ? deferrable_ : events_).erase(timer.place);  // else it is due
    unqueue_due(timer);
  }
  timer.armed = true;
  timer.expires = delay > NEVER - turn_.now ? NEVER : turn_.now + delay;
  timer.id = next_event_id_++;
  (timer.deferrable ? deferrable_ : events_)
      .push({.key = {timer.expires, timer.id}, .timer = &timer, .place = &timer.place});
  if (running_ != nullptr) turn_.resched_at = std::min(turn_.resched_at, timer.expires);
}

void VirtualWorld::unqueue_due(Timer& timer) {
  Timer* before = nullptr;
  for (Timer* t = due_; t != nullptr; before = t, t = t->next) {
    if (t != &timer) continue;
    (before != nullptr ? before->next : due_) = t->next;
    if (due_tail_ == t) due_tail_ = before;
    t->next = nullptr;
    return;
  }
}

void VirtualWorld::timer_cancel(Timer& timer) {
  if (timer.armed) {
    if (timer.id != 0) (timer.deferrable ? deferrable_ : events_).erase(timer.place);  // else it is due
    unqueue_due(timer);
    timer.armed = false;
  }
  if (running_ == softirq_) return;  // a function that cancels its own timer
  while (running_timer_ == &timer) spin_wait(timer_busy_);
}

void VirtualWorld::softirq(void* arg) {
  auto& w = *static_cast<VirtualWorld*>(arg);
  for (;;) {
    while (Timer* timer = w.due_) {
      w.due_ = timer->next;
      if (w.due_ == nullptr) w.due_tail_ = nullptr;
      timer->next = nullptr;
      timer->armed = false;
      w.running_timer_ = timer;
      w.timer_busy_.store(2, std::memory_order_relaxed);
      ++w.softirq_->spin_depth;  // might_sleep() tells
      timer->function(timer->data);
      --w.softirq_->spin_depth;
      w.running_timer_ = nullptr;
      w.timer_busy_.store(0, std::memory_order_relaxed);
      for (size_t waiters = w.spinning_.size(); waiters > 0; --waiters) w.spin_wake(w.timer_busy_);
    }
    w.schedule();
  }
}

void VirtualWorld::printk(const char* text) {
  if (options_.log) {
    options_.log(turn_.now, text);
  } else {
    std::fprintf(stderr, "[%5llu.%06llu] %s\n", turn_.now.v / 1000000000ull, turn_.now.v / 1000ull % 1000000ull, text);
  }
}

}  // namespace weir
