// src/live/preload/budget.cpp: --ram is the budget of the whole process tree; here is how processes share it.
//
//   frames_left + frames of all slots = the budget
//
// The first process takes all. One that starts later takes what is left, and asks (SharedRun::bell) when that is too
// little: others then give what they do not use, and, when that is not enough, what they hold beyond an equal share. A
// forked child begins with a copy of its parent's share: the pages are shared too. That puts frames_left below zero
// until both have shrunk, which they do when the child is still there after FORK_GRACE: most children exec or exit
// before.
#include "live/preload/preload.hpp"

namespace weir::live::preload {

namespace {

constexpr int64_t MIN_FRAMES =
    (8 << 20) / 4096;  // with less a machine has little beside its own tables; 4 MiB is the least it starts with
constexpr uint64_t FORK_GRACE_NS = 50'000'000, START_WAIT_NS = 100'000'000;

uint64_t grace_until = 0;
uint64_t last_out = 0;
LiveStats stats;

uint64_t now_ns() {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<uint64_t>(ts.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(ts.tv_nsec);
}

int64_t total() { return static_cast<int64_t>(run->ram_bytes / 4096); }

void note_overrun() {
  const int64_t over = -run->frames_left.load();
  int64_t most = run->frames_over.load();
  while (over > most && !run->frames_over.compare_exchange_weak(most, over)) {
  }
}

/// Up to `wanted` of what is left.
int64_t take(int64_t wanted) {
  int64_t left = run->frames_left.load();
  for (;;) {
    const int64_t got = left < wanted ? left : wanted;
    if (got <= 0) return 0;
    if (run->frames_left.compare_exchange_weak(left, left - got)) return got;
  }
}

void ring() {
  run->bell.fetch_add(1);
  sys::call(SYS_futex, sys::arg(&run->bell), FUTEX_WAKE, INT32_MAX);
}

struct Others {
  int64_t living = 0;  // managed processes, this one too
  bool want = false;
};

/// Looks at all slots; what the dead held goes back.
Others look() {
  Others o;
  for (ProcessSlot& s : run->slots) {
    const int32_t pid = s.pid.load();
    if (pid == 0) break;
    if (s.ended.load() != 0 || s.state.load() != static_cast<uint32_t>(ProcessState::managed)) continue;
    if (&s != slot && sys::call(SYS_kill, pid, 0) == -ESRCH) {
      if (s.ended.exchange(1) == 0) run->frames_left.fetch_add(s.frames.exchange(0));
      continue;
    }
    ++o.living;
    if (&s != slot && s.wants.load() != 0) o.want = true;
  }
  return o;
}

/// The share becomes `frames`, or what can be reached; the difference goes to or comes from what is left (already taken
/// by the caller).
void set_share(int64_t frames) {
  const int64_t before = slot->frames.load();
  const auto reached = static_cast<int64_t>(machine->set_ram(Bytes(static_cast<uint64_t>(frames) * 4096)).v / 4096);
  slot->frames.store(reached);
  if (frames < before) {
    run->frames_left.fetch_add(before - reached);
  } else if (reached < frames) {
    run->frames_left.fetch_add(frames - reached);
  }
}

void shrink(int64_t mine, int64_t goal, int64_t floor) {
  if (goal < floor) goal = floor;
  if (goal < mine) set_share(goal);
}

}  // namespace

void budget_start() {
  int64_t got = take(total());
  if (got < total()) {
    // Others are there. An eighth of the whole lets a program begin; it gets more when it needs more.
    int64_t enough = total() / 8 > MIN_FRAMES ? total() / 8 : MIN_FRAMES;
    if (enough > total()) enough = total();
    const uint64_t end = now_ns() + START_WAIT_NS;
    slot->wants.store(1);
    while (got < enough && now_ns() < end) {
      (void)look();
      ring();
      const timespec pause{0, 1'000'000};
      sys::call(SYS_nanosleep, sys::arg(&pause), 0);
      got += take(enough - got);
    }
    slot->wants.store(0);
    const int64_t least = total() < MIN_FRAMES ? total() : MIN_FRAMES;
    if (got < least) {
      run->frames_left.fetch_sub(least - got);
      got = least;
      note_overrun();
    }
  }
  slot->frames.store(got);
  if (got < total()) set_share(got);
}

void budget_forked() {
  const int64_t share = slot->frames.load();  // still the parent's slot
  slot = claim_slot();
  if (slot == nullptr) {
    say("too many processes at a time: a run holds at most 256");
    for (;;) sys::call(SYS_exit_group, 2);
  }
  run->processes.fetch_add(1);
  slot->frames.store(share);
  slot->state.store(static_cast<uint32_t>(ProcessState::managed));
  run->frames_left.fetch_sub(share);
  grace_until = now_ns() + FORK_GRACE_NS;
  last_out = 0;
}

void budget_tick() {
  if (slot->ended.load() != 0) return;
  const int64_t mine = slot->frames.load();
  const int64_t left = run->frames_left.load();
  const bool alone = mine == total() && left == 0;
  const Others others = alone ? Others{1, false} : look();
  if (others.living <= 1 && mine == total()) return;
  machine->stats(stats);
  const int64_t free = stats.node[static_cast<unsigned>(NodeStat::nr_free_pages)];
  const uint64_t out = stats.event[static_cast<unsigned>(VmEvent::pswpout)];
  const bool swaps = out != last_out;
  last_out = out;

  const int64_t fair = total() / (others.living > 0 ? others.living : 1) > MIN_FRAMES
                           ? total() / (others.living > 0 ? others.living : 1)
                           : MIN_FRAMES;
  const int64_t idle = free - mine / 8 > 0 ? free - mine / 8 : 0;
  // What zram holds cannot leave, and something must be left to work with.
  const int64_t pool = stats.node[static_cast<unsigned>(NodeStat::nr_zspages)];
  const int64_t floor = MIN_FRAMES + 2 * pool;
  if (run->frames_left.load() < 0) {
    // In debt, by a fork or by a start when nobody gave.
    note_overrun();
    const int64_t goal = mine - idle < fair ? mine - idle : fair;
    if (now_ns() >= grace_until) shrink(mine, goal, floor);
    return;
  }
  if (others.want && idle > 0 && mine - idle >= floor) {
    set_share(mine - idle);
  } else if (others.want && mine > fair) {
    // Half of the way at a time: it costs swapping.
    shrink(mine, mine - (mine - fair + 1) / 2, floor);
  } else if (mine < total() && swaps && free < mine / 8) {
    slot->wants.store(1);
    const int64_t more = take(mine / 2 > MIN_FRAMES ? mine / 2 : MIN_FRAMES);
    if (more != 0) {
      set_share(mine + more);
    } else if (mine < fair) {
      ring();
    }
    return;
  }
  slot->wants.store(0);
}

void budget_end() { run->frames_left.fetch_add(slot->frames.exchange(0)); }

}  // namespace weir::live::preload
