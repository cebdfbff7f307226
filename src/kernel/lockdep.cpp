// src/kernel/lockdep.cpp
//
// The lock table at work: names of ranks in every build; in debug builds each thread keeps the list of what it holds,
// and
//
//   blocking acquire of L:  every held lock has a smaller rank, or the same where the table lets the rank nest; L is
//   not held;
//                           L may sleep only while no spinning lock is held
//   trylock:                only noted down
//   might_sleep:            no spinning lock is held
//
// A violation prints both locks and what the thread holds, and aborts.
//
// Page locks are not in a thread's list, as another thread may release them: they are in one table, lock -> holder, and
// the thread has only their number. Linux: kernel/locking/lockdep.c, which learns the order; ours is written down.
#include <cstring>

#include "base/raw_syscall.hpp"
#include "kernel/locks.hpp"

namespace weir {

namespace {

struct RankInfo {
  const char* name;
  LockKind kind;
  LockNesting nesting;
};

constexpr RankInfo RANKS[] = {
#define X(name, kind, nesting, what) {#name, LockKind::kind, LockNesting::nesting},
    WEIR_LOCK_TABLE(X)
#undef X
};

}  // namespace

const char* lock_rank_name(LockRank rank) {
  return rank < LockRank::count ? RANKS[static_cast<unsigned>(rank)].name : "?";
}

#ifdef WEIR_DEBUG

namespace {

const RankInfo& info(LockRank rank) { return RANKS[static_cast<unsigned>(rank)]; }

// ---- Reports: raw writes, no allocation ----------------------------------------------------------------------------

class Report {
 public:
  Report& operator<<(const char* text) {
    while (*text != 0 && at_ < sizeof text_ - 1) text_[at_++] = *text++;
    return *this;
  }
  Report& operator<<(const void* p) {
    char hex[19] = "0x";
    int n = 2;
    auto v = reinterpret_cast<uintptr_t>(p);
    int shift = 60;
    while (shift > 0 && (v >> shift) == 0) shift -= 4;
    for (; shift >= 0; shift -= 4) hex[n++] = "0123456789abcdef"[(v >> shift) & 15];
    hex[n] = 0;
    return *this << static_cast<const char*>(hex);
  }
  Report& operator<<(int32_t v) {
    char dec[12];
    int n = sizeof dec;
    dec[--n] = 0;
    uint32_t u = v < 0 ? -static_cast<uint32_t>(v) : static_cast<uint32_t>(v);
    do dec[--n] = static_cast<char>('0' + u % 10);
    while ((u /= 10) != 0);
    if (v < 0) dec[--n] = '-';
    return *this << static_cast<const char*>(dec + n);
  }
  Report& lock(const void* lock, LockRank rank) {
    return *this << "`" << lock_rank_name(rank) << "` ("
                 << (info(rank).kind == LockKind::spinning ? "spinning" : "sleeping") << ", " << lock << ")";
  }
  void write() {
    if (at_ == 0 || text_[at_ - 1] != '\n') *this << "\n";
    raw_syscall(SYS_write, 2, text_, at_);
  }

 private:
  char text_[4096] = {};
  size_t at_ = 0;
};

[[noreturn]] void fail(Report& report, const Thread& t) {
  report << "\nweir: lockdep: thread " << (t.comm[0] != 0 ? t.comm : "?") << " (tid " << t.tid << ") holds:";
  for (unsigned i = 0; i < t.held_count; ++i) {
    report << "\nweir: lockdep:   ";
    report.lock(t.held[i].lock, t.held[i].rank);
  }
  if (const int32_t pages = t.page_locks.load(std::memory_order_relaxed); pages > 0)
    report << "\nweir: lockdep:   " << pages << " page lock(s)";
  if (t.held_count == 0 && t.page_locks.load(std::memory_order_relaxed) <= 0) report << " nothing";
  report.write();
  bug("lockdep", "lockdep.cpp", __LINE__);
}

// ---- Page locks: lock -> holder ------------------------------------------------------------------------------------

/// Open addressing with linear probing; a lock that finds no place within PROBES is not tracked.
class PageLocks {
 public:
  void insert(const void* lock, Thread& t) {
    Guard guard(busy_);
    Entry* free = nullptr;
    for (unsigned i = 0; i < PROBES; ++i) {
      Entry& e = at(lock, i);
      if (e.lock == lock) {  // its page was given up while locked: the address has a new life
        set(e, lock, t);
        return;
      }
      if (e.lock == nullptr && free == nullptr) free = &e;
    }
    if (free != nullptr) set(*free, lock, t);
  }
  void erase(const void* lock) {
    Guard guard(busy_);
    if (Entry* e = find(lock)) clear(*e);
  }
  [[nodiscard]] Thread* holder(const void* lock) {
    Guard guard(busy_);
    Entry* e = find(lock);
    return e != nullptr ? e->thread : nullptr;
  }
  void forget(Thread& t) {
    Guard guard(busy_);
    for (Entry& e : entries_)
      if (e.lock != nullptr && e.thread == &t) clear(e);
  }

 private:
  static constexpr unsigned SIZE = 8192, PROBES = 64;
  struct Entry {
    const void* lock;
    Thread* thread;
  };
  struct Guard {
    explicit Guard(std::atomic<bool>& busy) : busy_(busy) {
      while (busy_.exchange(true, std::memory_order_acquire)) __builtin_ia32_pause();
    }
    ~Guard() { busy_.store(false, std::memory_order_release); }
    std::atomic<bool>& busy_;
  };
  Entry& at(const void* lock, unsigned i) {
    return entries_[((reinterpret_cast<uintptr_t>(lock) * 0x9e3779b97f4a7c15ull >> 40) + i) % SIZE];
  }
  Entry* find(const void* lock) {
    for (unsigned i = 0; i < PROBES; ++i)
      if (Entry& e = at(lock, i); e.lock == lock) return &e;
    return nullptr;
  }
  static void set(Entry& e, const void* lock, Thread& t) {
    if (e.lock != nullptr) clear(e);
    e = {lock, &t};
    t.page_locks.fetch_add(1, std::memory_order_relaxed);
  }
  static void clear(Entry& e) {
    e.thread->page_locks.fetch_sub(1, std::memory_order_relaxed);
    e = {};
  }
  std::atomic<bool> busy_{false};
  Entry entries_[SIZE] = {};
};

constinit PageLocks page_locks;

void note(Thread& t, const void* lock, LockRank rank) {
  if (rank == LockRank::page) {
    page_locks.insert(lock, t);
    return;
  }
  if (t.held_count == MAX_HELD_LOCKS) {
    Report report;
    report << "weir: lockdep: more than " << int32_t{MAX_HELD_LOCKS} << " locks held when taking ";
    report.lock(lock, rank);
    fail(report, t);
  }
  t.held[t.held_count++] = {lock, rank};
  if (info(rank).kind == LockKind::spinning) ++t.spin_depth;
}

void check_against(const Thread& t, const void* lock, LockRank rank, const void* held, LockRank held_rank) {
  const char* why = nullptr;
  if (held != nullptr && held == lock) {
    why = ", which it already holds";
  } else if (held_rank > rank) {
    why = ": the table has them the other way round";
  } else if (held_rank == rank && info(rank).nesting == LockNesting::none) {
    why = ": two of this rank do not nest";
  }
  if (why == nullptr) return;
  Report report;
  report << "weir: lockdep: wrong order: taking ";
  report.lock(lock, rank) << " while holding ";
  report.lock(held, held_rank) << why;
  fail(report, t);
}

}  // namespace

void lockdep_acquire(const void* lock, LockRank rank) {
  Thread* t = engine_thread().thread;
  if (t == nullptr) return;
  for (unsigned i = 0; i < t->held_count; ++i) check_against(*t, lock, rank, t->held[i].lock, t->held[i].rank);
  if (t->page_locks.load(std::memory_order_relaxed) > 0) {
    const bool again = rank == LockRank::page && page_locks.holder(lock) == t;
    check_against(*t, lock, rank, again ? lock : nullptr, LockRank::page);
  }
  if (info(rank).kind == LockKind::sleeping && t->spin_depth > 0) {
    Report report;
    report << "weir: lockdep: sleeping under a spinlock: taking ";
    report.lock(lock, rank);
    fail(report, *t);
  }
  // A page lock counts as held when it is, not while it is waited for: its holder is looked up by the lock.
  if (rank != LockRank::page) note(*t, lock, rank);
}

void lockdep_acquire_try(const void* lock, LockRank rank) {
  if (Thread* t = engine_thread().thread) note(*t, lock, rank);
}

void lockdep_release(const void* lock, LockRank rank) {
  Thread* t = engine_thread().thread;
  if (t == nullptr) return;
  if (rank == LockRank::page) {
    page_locks.erase(lock);
    return;
  }
  for (unsigned i = t->held_count; i-- > 0;) {
    if (t->held[i].lock != lock) continue;
    for (unsigned k = i + 1; k < t->held_count; ++k) t->held[k - 1] = t->held[k];
    t->held[--t->held_count] = {};
    if (info(rank).kind == LockKind::spinning) --t->spin_depth;
    return;
  }
  Report report;
  report << "weir: lockdep: releasing ";
  report.lock(lock, rank) << ", which it does not hold";
  fail(report, *t);
}

void lockdep_release_any(const void* lock, LockRank rank) {
  if (rank == LockRank::page) {
    page_locks.erase(lock);
  } else {
    lockdep_release(lock, rank);
  }
}

void might_sleep() {
  Thread* t = engine_thread().thread;
  if (t == nullptr || t->spin_depth == 0) return;
  Report report;
  bool spinning_held = false;
  for (unsigned i = 0; i < t->held_count; ++i) spinning_held |= info(t->held[i].rank).kind == LockKind::spinning;
  report << (spinning_held ? "weir: lockdep: sleeping under a spinlock"
                           : "weir: lockdep: sleeping in a timer's function");
  fail(report, *t);
}

bool lockdep_holds(const void* lock) {
  Thread* t = engine_thread().thread;
  if (t == nullptr) return true;
  for (unsigned i = 0; i < t->held_count; ++i)
    if (t->held[i].lock == lock) return true;
  return page_locks.holder(lock) == t;
}

void lockdep_thread_idle(Thread& t) {
  if (t.held_count == 0 && t.page_locks.load(std::memory_order_relaxed) <= 0) return;
  Report report;
  report << "weir: lockdep: a thread leaves with locks held";
  fail(report, t);
}

void lockdep_forget(Thread& t) {
  if (t.page_locks.load(std::memory_order_relaxed) > 0) page_locks.forget(t);
  t.held_count = 0;
  t.spin_depth = 0;
}

#endif  // WEIR_DEBUG

}  // namespace weir
