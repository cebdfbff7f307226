// src/live/preload/preload.hpp
//
// What `weir run` puts into a program, before libc (LD_PRELOAD): a machine, and the calls that lead to it.
//
//   loader --> start.cpp: WEIR_RUN? --> SharedRun, a slot in it, a LiveMachine with thread delivery
//   program --> malloc (jemalloc, in this library) --> mmap --> memory.cpp --> LiveMachine
//           --> fork --> fork.cpp --> LiveMachine::fork          exec --> the new program starts here again
//   helper thread (helper.cpp): counters to the slot, the process's share of the run's RAM
//
// Without WEIR_RUN everything here passes through. The library is marked initfirst: its constructor runs before all
// others, so what they allocate is managed already.
//
// Calls come from the program's threads, under any lock of libc or malloc: nothing here allocates but what start()
// does.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>

#include "kernel/host/sys.hpp"
#include "live/live_machine.hpp"
#include "live/shared.hpp"

#define WEIR_EXPORT extern "C" __attribute__((visibility("default")))

namespace weir::live::preload {

/// Null: this process is not managed. Set once, before the program runs.
extern LiveMachine* machine;
extern SharedRun* run;
/// This process's; a forked child gets its own.
extern ProcessSlot* slot;

/// A system call's result as libc gives it: -1 and errno for errors.
inline long libc_result(long r) {
  if (r >= 0 || r < -4095) return r;
  errno = static_cast<int>(-r);
  return -1;
}

/// One line on the program's stderr, "weir: " before it.
void say(const char* text);
/// The same with a "%s" or two: snprintf's rules.
[[gnu::format(printf, 1, 2)]] void sayf(const char* format, ...);

// ---- start.cpp
/// A slot of `run` for a process; null when all are taken by living processes.
ProcessSlot* take_slot(int32_t pid);
/// In a forked child, before anything is recorded: its own ring in the place of its parent's.
void take_ring_in_child(const ProcessSlot& child);
/// The slot bears this process's name.
void name_slot(ProcessSlot& s);
/// Last counters and the recording: before the process ends. Any thread; when several come, all return after the last
/// counters and the recording are written, once.
void finish();

// ---- memory.cpp
/// Held by whoever changes what of the managed range is not managed; fork takes it.
void lock_memory();
void unlock_memory();

// ---- helper.cpp
/// Starts the helper thread: counters every tenth of a second, the share of RAM when it must change.
void start_helper();
enum class Counters : uint8_t { now, last };
/// Counters to the slot. After the last ones older snapshots are dropped. In a process that is being killed only the
/// thread that ends it comes back from here.
void publish(Counters when);

// ---- budget.cpp
/// This process's share of RAM to begin with. Waits for others to give, a second at most.
void budget_start();
/// Before a fork, lock_memory() held: a slot and a share for the child. False: no slot.
bool budget_fork();
/// After it, in the parent: the child's process id, or -1.
void budget_fork_done(int32_t child);
/// The child's slot, in both.
const ProcessSlot& budget_child();
/// After it, in the child: slot and share are its own.
void budget_forked();
/// RAM and swap are full, on an engine stack: true if others gave.
bool budget_before_oom();
/// From time to time, by the helper thread; `bell`: SharedRun::bell when it woke up. True: it should look again soon.
bool budget_tick(uint32_t bell);
/// The process ends: what it held is for others.
void budget_end();
/// A process that is over: what its slot holds is for others.
void budget_reclaim(ProcessSlot& s);

}  // namespace weir::live::preload
