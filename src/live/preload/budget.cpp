// src/live/preload/budget.cpp: --ram is the budget of the whole process tree; here is how processes share it.
//
//   frames_left + frames of all slots = the budget
//
// What a process should hold is share.hpp's to say. The first one takes all. One that starts later takes what is left
// and asks for more when that is too little; so does one that swaps, and one that would be killed. To ask is to set
// `wants` and ring SharedRun::bell: the helper threads of the others look, give, or answer that they have nothing.
//
// A forked child's share is set aside before the fork. Pages that parent and child share are counted in both: that may
// put frames_left below zero, until both have shrunk (share.hpp).
#include "live/preload/preload.hpp"
#include "live/share.hpp"

namespace weir::live::preload {

namespace {

/// For a start: how long others may take to give what lets it begin well; what it needs at all; before a kill.
constexpr uint64_t START_WAIT_NS = 100'000'000, LEAST_WAIT_NS = 1'000'000'000, DYING_WAIT_NS = 3'000'000'000;
constexpr uint64_t FORK_GRACE_NS = 5'000'000;
constexpr uint64_t REST_NS = 200'000'000;
constexpr uint64_t ASK_AGAIN_NS = 5'000'000;

std::atomic<uint64_t> grace_until{0};
uint64_t last_out = 0, last_faults = 0, last_fault_ns = 0;
/// This process's share changes under it. Never held over a fork.
std::atomic<uint32_t> share_lock{0};
ProcessSlot* child_slot = nullptr;  // between budget_fork and budget_forked; lock_memory

struct ShareLock {
  ShareLock() {
    while (share_lock.exchange(1, std::memory_order_acquire) != 0) sys::call(SYS_sched_yield);
  }
  ~ShareLock() { share_lock.store(0, std::memory_order_release); }
};

/// Frames are on their way between a slot and frames_left: their sum is not looked at.
struct Moving {
  Moving() { run->moves_begun.fetch_add(1); }
  ~Moving() { run->moves_ended.fetch_add(1); }
};

uint64_t now_ns() {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<uint64_t>(ts.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(ts.tv_nsec);
}

void nap() {
  const timespec pause{0, 500'000};
  sys::call(SYS_nanosleep, sys::arg(&pause), 0);
}

int64_t total() { return static_cast<int64_t>(run->ram_bytes / 4096); }
Bytes bytes_of_frames(int64_t frames) { return Bytes(static_cast<uint64_t>(frames) * 4096); }

void note_overrun() {
  const int64_t over = -run->frames_left.load();
  int64_t most = run->frames_over.load();
  while (over > most && !run->frames_over.compare_exchange_weak(most, over)) {
  }
}

/// Up to `wanted` of what is left goes to the slot.
int64_t take(ProcessSlot& to, int64_t wanted) {
  const Moving moving;
  int64_t left = run->frames_left.load();
  for (;;) {
    const int64_t got = left < wanted ? left : wanted;
    if (got <= 0) return 0;
    if (!run->frames_left.compare_exchange_weak(left, left - got)) continue;
    to.frames.fetch_add(got);
    return got;
  }
}

/// The same, what is not left is a debt.
void overdraw(ProcessSlot& to, int64_t frames) {
  if (frames <= 0) return;
  {
    const Moving moving;
    run->frames_left.fetch_sub(frames);
    to.frames.fetch_add(frames);
  }
  note_overrun();
}

void give(ProcessSlot& from, int64_t frames) {
  const Moving moving;
  from.frames.fetch_sub(frames);
  run->frames_left.fetch_add(frames);
}

uint32_t ring() {
  const uint32_t rung = run->bell.fetch_add(1) + 1;
  sys::call(SYS_futex, sys::arg(&run->bell), FUTEX_WAKE, INT32_MAX);
  return rung;
}

struct Others {
  int64_t living = 0;  // managed processes, this one too
  Need need = Need::none;
  int64_t can_give = 0;
  bool all_answered = true;  // nobody has more to give since the bell `rung`
};

/// Looks at all slots; what the dead held goes back.
Others look(uint32_t rung = 0) {
  Others o;
  for (ProcessSlot& s : run->slots) {
    const int32_t pid = s.pid.load();
    if (pid == 0) break;
    if (s.ended.load() != 0) continue;
    if (&s != slot && sys::call(SYS_kill, pid, 0) == -ESRCH) {
      if (s.ended.exchange(1) == 0) budget_reclaim(s);
      continue;
    }
    if (s.state.load() != static_cast<uint32_t>(ProcessState::managed)) continue;
    ++o.living;
    if (&s == slot) continue;
    if (const auto need = static_cast<Need>(s.wants.load()); need > o.need) o.need = need;
    o.can_give += s.can_give.load();
    if (static_cast<int32_t>(s.answered.load() - rung) < 0) o.all_answered = false;
  }
  return o;
}

/// The machine follows slot->frames, which has grown; what it cannot use goes back. Share lock held.
template <class SetRam>
void grow(SetRam set_ram) {
  const int64_t frames = slot->frames.load();
  const auto reached = static_cast<int64_t>(set_ram(bytes_of_frames(frames)).v / 4096);
  if (reached < frames) give(*slot, frames - reached);
}

/// The machine shrinks to `goal`, or as far as it gets; what is free then is given. Share lock held.
int64_t shrink(int64_t goal) {
  const int64_t before = slot->frames.load();
  const auto reached = static_cast<int64_t>(machine->set_ram(bytes_of_frames(goal)).v / 4096);
  if (reached < before) give(*slot, before - reached);
  overdraw(*slot, reached - before);
  return before - reached;
}

Bytes set_ram(Bytes ram) { return machine->set_ram(ram); }

ShareView view_of(const LiveStats& s, const Others& others) {
  const auto gauge = [&](NodeStat n) { return s.node[static_cast<unsigned>(n)]; };
  ShareView v;
  v.total = total();
  v.left = run->frames_left.load();
  v.mine = slot->frames.load();
  v.free = gauge(NodeStat::nr_free_pages);
  v.fixed = v.mine - v.free - gauge(NodeStat::nr_active_anon) - gauge(NodeStat::nr_inactive_anon) -
            gauge(NodeStat::nr_isolated_anon);
  if (v.fixed < 0) v.fixed = 0;
  v.pool = gauge(NodeStat::nr_zspages);
  v.living = others.living;
  v.others = others.need;
  v.own = static_cast<Need>(slot->wants.load());
  return v;
}

/// Frames in all slots and those left are the budget: looked at when nothing is under way.
void check_sum() {
  const uint64_t ended = run->moves_ended.load();
  const uint64_t begun = run->moves_begun.load();
  if (begun != ended) return;
  [[maybe_unused]] int64_t sum = run->frames_left.load();
  for (const ProcessSlot& s : run->slots) sum += s.frames.load();
  if (run->moves_begun.load() != begun) return;
  WEIR_DEBUG_BUG_ON(sum != total());
}

}  // namespace

void budget_reclaim(ProcessSlot& s) {
  const Moving moving;
  run->frames_left.fetch_add(s.frames.exchange(0));
}

void budget_start() {
  if (take(*slot, total()) == total()) return;
  // Others are there. An eighth of the whole lets a program begin; it gets more when it needs more.
  LiveStats s;
  machine->stats(s);
  const int64_t used = total() - s.node[static_cast<unsigned>(NodeStat::nr_free_pages)];
  const int64_t least = std::min(total(), used + WORK_FRAMES / 2);
  const int64_t enough = std::min(total(), std::max(total() / 8, used + WORK_FRAMES));
  const uint64_t start = now_ns();
  Need need = Need::more;
  uint64_t asked = 0;
  uint32_t rung = 0;
  for (uint64_t now = start; now - start < LEAST_WAIT_NS; now = now_ns()) {
    const bool answered = asked != 0 && look(rung).all_answered;
    const int64_t got = slot->frames.load();
    const bool waited = answered || now - start >= START_WAIT_NS;
    if (got >= enough || (got >= least && waited) || (need == Need::dying && answered)) break;
    if (need == Need::more && waited) {
      need = Need::dying;
      asked = 0;
    }
    slot->wants.store(static_cast<uint32_t>(need));
    if (asked == 0 || now - asked >= ASK_AGAIN_NS) {
      rung = ring();
      asked = now;
    }
    nap();
    (void)take(*slot, enough - slot->frames.load());
  }
  slot->wants.store(0);
  overdraw(*slot, least - slot->frames.load());
  (void)shrink(slot->frames.load());
}

bool budget_fork() {
  child_slot = take_slot(static_cast<int32_t>(sys::call(SYS_getpid)));
  if (child_slot == nullptr) return false;
  const ShareLock lock;
  LiveStats s;
  machine->stats(s);
  const int64_t mine = slot->frames.load();
  ForkShares f = fork_shares(run->frames_left.load(), mine, s.node[static_cast<unsigned>(NodeStat::nr_free_pages)]);
  int64_t got = take(*child_slot, f.child);
  if (got < f.child && f.from_parent > 0) {
    (void)shrink(mine - std::min(f.from_parent, f.child - got));
    got += take(*child_slot, f.child - got);
  }
  if (got == f.child) return true;
  grace_until.store(now_ns() + FORK_GRACE_NS);
  overdraw(*child_slot, f.child - got);
  return true;
}

void budget_fork_done(int32_t child) {
  ProcessSlot& s = *child_slot;
  child_slot = nullptr;
  if (child > 0) {
    int32_t mine = static_cast<int32_t>(sys::call(SYS_getpid));
    s.pid.compare_exchange_strong(mine, child);
    if (run->frames_left.load() < 0) ring();
  } else if (s.ended.exchange(1) == 0) {
    budget_reclaim(s);
  }
}

const ProcessSlot& budget_child() { return *child_slot; }

void budget_forked() {
  share_lock.store(0);
  slot = child_slot;
  child_slot = nullptr;
  slot->pid.store(static_cast<int32_t>(sys::call(SYS_getpid)));
  name_slot(*slot);
  run->processes.fetch_add(1);
  slot->state.store(static_cast<uint32_t>(ProcessState::managed));
  last_out = last_faults = 0;
  (void)shrink(slot->frames.load());
}

bool budget_before_oom() {
  if (slot->ended.load() != 0 || slot->frames.load() >= total()) return false;
  const int64_t mine = slot->frames.load();
  const uint64_t start = now_ns();
  uint64_t asked = 0;
  uint32_t rung = 0;
  bool more = false;
  slot->wants.store(static_cast<uint32_t>(Need::dying));
  for (uint64_t now = start; !more && now - start < DYING_WAIT_NS; now = now_ns()) {
    const bool last = asked != 0 && look(rung).all_answered;
    {
      const ShareLock lock;
      // The helper thread may have been faster.
      more = slot->frames.load() > mine;
      if (!more && take(*slot, std::min(std::max(mine / 8, RESERVE_FRAMES), total() - mine)) > 0) {
        grow([](Bytes ram) { return machine->set_ram_inside(ram); });
        more = true;
      }
    }
    if (more || last) break;
    if (asked == 0 || now - asked >= ASK_AGAIN_NS) {
      rung = ring();
      asked = now;
    }
    nap();
  }
  slot->wants.store(0);
  return more;
}

bool budget_tick(uint32_t bell) {
  if (slot->ended.load() != 0) return false;
  const Others others = look();
  if (others.living <= 1 && slot->frames.load() == total() && run->frames_left.load() == 0) return false;
  check_sum();
  LiveStats s;
  machine->stats(s);
  const ShareLock lock;
  if (slot->ended.load() != 0) return false;
  ShareView v = view_of(s, others);
  const uint64_t now = now_ns();
  const uint64_t out = s.event[static_cast<unsigned>(VmEvent::pswpout)];
  const uint64_t faults = s.event[static_cast<unsigned>(VmEvent::pgfault)];
  v.swaps = out != last_out;
  if (faults != last_faults) last_fault_ns = now;
  v.rests = now - last_fault_ns >= REST_NS;
  v.grace = now < grace_until.load();
  last_out = out;
  last_faults = faults;
  if (v.left < 0) note_overrun();

  const ShareMove move = next_share(v);
  slot->can_give.store(share_can_give(v));
  if (v.own != Need::dying) slot->wants.store(static_cast<uint32_t>(move.need));
  int64_t given = 0;
  if (move.goal < v.mine) {
    given = shrink(move.goal);
  } else if (move.goal > v.mine) {
    const int64_t got = take(*slot, move.goal - v.mine);
    if (got > 0) grow(set_ram);
    if (got < move.goal - v.mine && (v.mine < share_fair(v) || others.can_give > RESERVE_FRAMES)) ring();
  }
  if (given <= 0) slot->answered.store(bell);
  return v.left < 0 || v.others != Need::none || v.swaps;
}

// Without the share's lock: in a process that is being killed its holder may never come back. A move of this slot that
// is still under way leaves it below zero, and the sum right.
void budget_end() { budget_reclaim(*slot); }

}  // namespace weir::live::preload
