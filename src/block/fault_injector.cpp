// src/block/fault_injector.cpp: see fault_injector.hpp
#include "block/fault_injector.hpp"

namespace weir {

uint64_t fault_random(uint64_t& seed) {
  uint64_t z = seed += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

bool should_fail(FaultAttr& attr, uint64_t size, uint64_t& count, uint64_t& seed) {
  if (attr.probability == 0 || attr.times == 0) return false;
  if (attr.space > 0) {
    attr.space -= static_cast<int64_t>(size);
    return false;
  }
  if (attr.interval > 1 && ++count % attr.interval != 0) return false;
  if (attr.probability < 100 && fault_random(seed) % 100 >= attr.probability) return false;
  if (attr.times > 0) --attr.times;
  return true;
}

FaultInjector::FaultInjector(World& world, BlockDevice& inner, const FaultInjectorOptions& options)
    : world_(world),
      inner_(inner),
      options_(options),
      seed_(options.seed),
      fail_{options.fail},
      delay_{options.delay},
      late_{options.late} {
  for (Held& held : held_) {
    held.injector = this;
    held.timer.function = timer_function;
    held.timer.data = &held;
  }
}

FaultInjector::~FaultInjector() { WEIR_BUG_ON(fault_stats_.held != 0); }

FaultInjectorStats FaultInjector::fault_stats() const {
  ScopedLock guard(lock_);
  return fault_stats_;
}

void FaultInjector::set_fail(const FaultAttr& fail) {
  ScopedLock guard(lock_);
  fail_ = {fail};
}

void FaultInjector::set_delay(const FaultAttr& delay) {
  ScopedLock guard(lock_);
  delay_ = {delay};
}

void FaultInjector::set_late(const FaultAttr& late) {
  ScopedLock guard(lock_);
  late_ = {late};
}

bool FaultInjector::decide(Fault& fault, uint64_t size) { return should_fail(fault.attr, size, fault.count, seed_); }

Nanos FaultInjector::random_delay() {
  const uint64_t range = options_.longest.v - options_.shortest.v + 1;
  return options_.longest <= options_.shortest ? options_.shortest
                                               : options_.shortest + Nanos(fault_random(seed_) % range);
}

void FaultInjector::count(BioOp op, bool failed) {
  switch (op) {
    case BioOp::read:
      stats_.reads.fetch_add(1, std::memory_order_relaxed);
      if (failed) stats_.read_errors.fetch_add(1, std::memory_order_relaxed);
      break;
    case BioOp::write:
      stats_.writes.fetch_add(1, std::memory_order_relaxed);
      if (failed) stats_.write_errors.fetch_add(1, std::memory_order_relaxed);
      break;
    case BioOp::discard: stats_.discards.fetch_add(1, std::memory_order_relaxed); break;
  }
}

FaultInjector::Held* FaultInjector::take_place() {
  for (Held& held : held_) {
    if (held.taken) continue;
    held.taken = true;
    ++fault_stats_.held;
    return &held;
  }
  ++fault_stats_.not_held;
  return nullptr;
}

void FaultInjector::put_place(Held& held) {
  ScopedLock guard(lock_);
  held.taken = false;
  --fault_stats_.held;
}

// ---- Requests -------------------------------------------------------------------------------------------------------

void FaultInjector::submit_bio(Bio& bio) {
  const uint64_t size = bio.pages * PAGE_SIZE;
  bool fail = false;
  Held* held = nullptr;
  Nanos delay{}, late{};
  {
    // All is decided now, whenever it happens: what is drawn from the seed depends on the order of requests alone.
    ScopedLock guard(lock_);
    fail = options_.fail_ops.has(bio.op) && decide(fail_, size);
    if (fail) {
      ++fault_stats_.failed;
    } else {
      if (options_.delay_ops.has(bio.op) && decide(delay_, size)) delay = random_delay();
      if (options_.late_ops.has(bio.op) && decide(late_, size)) late = random_delay();
      if (delay != Nanos(0) || late != Nanos(0)) held = take_place();
      if (held != nullptr) {
        fault_stats_.delayed += delay != Nanos(0);
        fault_stats_.late += late != Nanos(0);
        held->step = delay != Nanos(0) ? Held::Step::to_inner : Held::Step::in_inner;
        held->bio = &bio;
        held->late_by = late;
      }
    }
  }
  count(bio.op, fail);
  if (fail) {
    bio.device = this;
    bio.status = options_.error;
    bio.end_io(bio);
  } else if (held == nullptr) {
    inner_.submit_bio(bio);
  } else if (delay != Nanos(0)) {
    world_.timer_arm(held->timer, delay);
  } else {
    to_inner(*held);
  }
}

void FaultInjector::to_inner(Held& held) {
  Bio& bio = *held.bio;
  if (held.late_by == Nanos(0)) {
    put_place(held);
  } else {
    held.step = Held::Step::in_inner;
    held.end_io = bio.end_io;
    held.owner = bio.owner;
    bio.end_io = inner_end_io;
    bio.owner = &held;
  }
  inner_.submit_bio(bio);
}

void FaultInjector::inner_end_io(Bio& bio) {
  Held& held = *static_cast<Held*>(bio.owner);
  bio.end_io = held.end_io;
  bio.owner = held.owner;
  held.step = Held::Step::to_submitter;
  held.injector->world_.timer_arm(held.timer, held.late_by);
}

void FaultInjector::timer_function(void* data) {
  Held& held = *static_cast<Held*>(data);
  if (held.step == Held::Step::to_inner) {
    held.injector->to_inner(held);
    return;
  }
  Bio& bio = *held.bio;
  held.injector->put_place(held);
  bio.end_io(bio);
}

Result<void> FaultInjector::rw_page(BioOp op, uint64_t index, Content content) {
  bool fail = false;
  Nanos delay{};
  {
    ScopedLock guard(lock_);
    fail = options_.fail_ops.has(op) && decide(fail_, PAGE_SIZE);
    fault_stats_.failed += fail;
    if (!fail && options_.delay_ops.has(op) && decide(delay_, PAGE_SIZE)) {
      delay = random_delay();
      ++fault_stats_.delayed;
    }
  }
  count(op, fail);
  if (fail) return options_.error;
  if (delay != Nanos(0)) world_.spend(delay);
  return inner_.rw_page(op, index, content);
}

}  // namespace weir
