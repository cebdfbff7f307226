// src/live/preload/start.cpp: from the loader to a managed process, and its end.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "live/left_recording.hpp"
#include "live/preload/preload.hpp"
#include "record/ring.hpp"

namespace weir::live::preload {

LiveMachine* machine = nullptr;
SharedRun* run = nullptr;
ProcessSlot* slot = nullptr;

namespace {

// Whose recording is being written, and is written: `slot`'s when it is this process's, which a forked child's is not.
std::atomic<ProcessSlot*> recording{nullptr}, recorded{nullptr};
char run_place[64];         // of the run's file
std::span<std::byte> ring;  // this process's; empty: nothing is recorded

/// This process cannot be managed: the launcher and the user hear why, and it ends unless that was asked for.
void refuse(const char* why) {
  if (run != nullptr) {
    uint32_t none = 0;
    if (run->failed.compare_exchange_strong(none, 1)) {
      strncpy(run->message, why, sizeof run->message - 1);
    }
    if (slot != nullptr) {
      slot->state.store(static_cast<uint32_t>(ProcessState::unmanaged));
      slot->ended.store(1);
    }
    if (run->allow_unmanaged != 0) {
      sayf("%s; running it unmanaged, as --allow-unmanaged says", why);
      run = nullptr;
      return;
    }
  }
  say(why);
  _exit(2);
}

/// A descriptor of the run's file, or -errno: the launcher has ended, or is another user's.
long open_run_file() { return sys::call(SYS_openat, AT_FDCWD, sys::arg(run_place), O_RDWR | O_CLOEXEC); }

bool open_run(const char* place) {
  strncpy(run_place, place, sizeof run_place - 1);
  const long fd = open_run_file();
  if (fd < 0) {
    sayf(
        "%s cannot be opened (error %ld): the `weir run` that this process belongs to has ended, or it runs as another "
        "user now",
        place, -fd);
    return false;
  }
  struct stat st {};
  void* p = MAP_FAILED;
  if (fstat(static_cast<int>(fd), &st) == 0 && st.st_size >= static_cast<off_t>(sizeof(SharedRun)))
    p = mmap(nullptr, sizeof(SharedRun), PROT_READ | PROT_WRITE, MAP_SHARED, static_cast<int>(fd), 0);
  sys::call(SYS_close, fd);
  if (p == MAP_FAILED) {
    sayf("%s is not the shared file of a `weir run` of this version: command and preload are of different builds",
         place);
    return false;
  }
  auto* r = static_cast<SharedRun*>(p);
  if (r->magic != RUN_MAGIC || r->version != RUN_VERSION || r->size != sizeof(SharedRun)) {
    sayf("%s is not the shared file of a `weir run` of this version: command and preload are of different builds",
         place);
    munmap(p, sizeof(SharedRun));
    return false;
  }
  run = r;
  return true;
}

const char* find_variable(char** env, const char* name) {
  const size_t n = strlen(name);
  for (; env != nullptr && *env != nullptr; ++env)
    if (strncmp(*env, name, n) == 0 && (*env)[n] == '=') return *env + n + 1;
  return nullptr;
}

/// Its counters are added to those of the run, what it recorded is written, and it is free.
void retire(ProcessSlot& s, int32_t pid) {
  if (const long fd = run->record_events != 0 ? open_run_file() : -1; fd >= 0) {
    (void)write_left_recording(*run, static_cast<int>(fd), s, pid, "killed");
    sys::call(SYS_close, fd);
  }
  for (unsigned i = 0; i < NR_EVENTS; ++i) run->retired.events[i].fetch_add(s.stats.events[i].load());
  run->nr_retired.fetch_add(1);
  memset(static_cast<void*>(&s.stats), 0, sizeof s.stats);
  s.ended.store(0);
  s.wants.store(0);
  s.can_give.store(0);
  s.answered.store(run->bell.load());
  budget_reclaim(s);
}

bool is_gone(int32_t pid) { return sys::call(SYS_kill, pid, 0) == -ESRCH; }

/// RAM and swap are full; the report is on stderr.
void before_kill() {
  slot->state.store(static_cast<uint32_t>(ProcessState::oom_killed));
  finish();
}

LiveMachine* create_machine(LiveError& error) {
  std::string_view specs[MAX_SWAP_SPECS];
  for (unsigned i = 0; i < run->nr_swaps; ++i) specs[i] = run->swaps[i];
  const auto parsed = parse_swap_specs(std::span(specs, run->nr_swaps), Bytes(run->ram_bytes));
  if (const auto* wrong = std::get_if<SwapSpecError>(&parsed)) {
    snprintf(error.text, sizeof error.text, "--swap: %s", wrong->text.c_str());
    return nullptr;
  }
  const auto& areas = std::get<std::vector<SwapSpec>>(parsed);
  LiveOptions options;
  options.ram = Bytes(run->ram_bytes);
  options.swap = areas;
  options.delivery = Delivery::thread;
  options.quiet_boot = true;
  options.before_kill = before_kill;
  options.more_ram = budget_before_oom;
  options.ring = ring;
  options.record_events = run->record_events;
  return LiveMachine::create(options, error);
}

/// A slot's ring, empty, at `at` if not null. No bytes: the launcher's file is out of reach.
std::span<std::byte> take_ring(const ProcessSlot& s, void* at = nullptr) {
  const long fd = open_run_file();
  if (fd < 0) return {};
  const std::span<std::byte> taken = map_ring(*run, static_cast<int>(fd), s, at);
  sys::call(SYS_close, fd);
  if (!taken.empty()) give_back_ring(taken);
  return taken;
}

void write_recording() {
  const RecordPath path = record_path(*run, slot->pid.load());
  const long fd = create_recording(path);
  if (fd < 0) {
    sayf("--record %s: cannot be written (error %ld)", path.text, -fd);
    return;
  }
  const bool killed = slot->state.load() == static_cast<uint32_t>(ProcessState::oom_killed);
  if (!machine->write_recording(static_cast<int>(fd), killed ? "killed: RAM and swap were full" : "exited"))
    sayf("--record %s: cannot be written", path.text);
  sys::call(SYS_close, fd);
  give_back_ring(ring);
}

// First of all constructors: the library is initfirst, and this is the first of its own. libc's environ is not set yet.
__attribute__((constructor(101))) void start(int, char**, char** env) {
  const char* place = find_variable(env, RUN_VARIABLE);
  if (place == nullptr || *place == 0) return;
  if (environ == nullptr) environ = env;
  if (!open_run(place)) _exit(2);
  const auto pid = static_cast<int32_t>(sys::call(SYS_getpid));
  // The program before an exec of this process is over. The recording is that of the last one.
  for (ProcessSlot& s : run->slots) {
    if (s.pid.load() != pid || s.ended.exchange(1) != 0) continue;
    budget_reclaim(s);
    if (run->record_events == 0) continue;
    unmap_ring(take_ring(s));
  }
  slot = take_slot(pid);
  if (slot == nullptr) return refuse("too many processes at a time: a run holds at most 256");
  if (run->record_events != 0) ring = take_ring(*slot);
  LiveError error;
  LiveMachine* made = create_machine(error);
  if (made == nullptr) return refuse(error.text);
  machine = made;
  name_slot(*slot);
  run->processes.fetch_add(1);
  budget_start();
  slot->state.store(static_cast<uint32_t>(ProcessState::managed));
  start_helper();
}

__attribute__((destructor)) void end() { finish(); }

}  // namespace

void say(const char* text) {
  char line[1200];
  size_t n = 0;
  for (const char* p = "weir: "; *p != 0; ++p) line[n++] = *p;
  for (; *text != 0 && n < sizeof line - 1; ++text) line[n++] = *text;
  line[n++] = '\n';
  sys::call(SYS_write, 2, sys::arg(line), static_cast<long>(n));
}

void sayf(const char* format, ...) {
  char text[1100];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  say(text);
}

ProcessSlot* take_slot(int32_t pid) {
  ProcessSlot* mine = nullptr;
  for (ProcessSlot& s : run->slots) {
    int32_t none = 0;
    if (s.pid.compare_exchange_strong(none, pid)) {
      mine = &s;
      break;
    }
  }
  for (unsigned i = 0; mine == nullptr && i < MAX_PROCESSES; ++i) {
    ProcessSlot& s = run->slots[i];
    int32_t old = s.pid.load();
    // The first slot is the first program's; its recording has the plain name.
    if (i == 0 || (s.ended.load() == 0 && !is_gone(old))) continue;
    const int32_t gone = old;
    if (!s.pid.compare_exchange_strong(old, pid)) continue;
    retire(s, gone);
    mine = &s;
  }
  if (mine != nullptr) mine->state.store(static_cast<uint32_t>(ProcessState::starting));
  return mine;
}

void name_slot(ProcessSlot& s) {
  const long fd = sys::call(SYS_openat, AT_FDCWD, sys::arg("/proc/self/comm"), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  const long n = sys::call(SYS_read, fd, sys::arg(s.comm), sizeof s.comm - 1);
  if (n > 0) s.comm[n - 1] = 0;
  sys::call(SYS_close, fd);
}

void take_ring_in_child(const ProcessSlot& child) {
  if (ring.empty()) return;
  if (!take_ring(child, ring.data()).empty()) return;
  // Then what it records is for itself alone.
  sys::call(SYS_mmap, sys::arg(ring.data()), static_cast<long>(ring.size()), PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

void finish() {
  if (machine == nullptr) return;
  // Who gets no further than this is a thread of a killed process: another one writes what is left to write.
  publish(Counters::last);
  if (recording.exchange(slot) != slot) {
    if (!ring.empty() && slot->pid.load() == sys::call(SYS_getpid)) write_recording();
    recorded.store(slot);
  }
  // Writing enters no engine, so it ends.
  while (recorded.load() != slot) sys::call(SYS_sched_yield);
  if (slot->ended.exchange(1) == 0) budget_end();
}

}  // namespace weir::live::preload

using namespace weir::live::preload;

WEIR_EXPORT void _exit(int status) {
  finish();
  for (;;) weir::sys::call(SYS_exit_group, status);
}

WEIR_EXPORT void _Exit(int status) noexcept { _exit(status); }
