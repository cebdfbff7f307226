// src/live/preload/helper.cpp: one thread that looks at the process now and then.
//
// It keeps the counters in the slot fresh (a killed process leaves them there) and the share of RAM right. A raw clone
// with its own TLS block and descriptor table, no signals: the program does not see it but in /proc.
#include <dirent.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "live/preload/preload.hpp"

// kernel/host's: a clone that calls fn(arg) on the new stack and ends with it.
extern "C" [[gnu::visibility("hidden")]] long weir_host_clone(uint64_t flags, void* stack, int32_t* parent_tid,
                                                              std::atomic<uint32_t>* child_tid, void* tls,
                                                              void (*fn)(void*), void* arg);

namespace weir::live::preload {

namespace {

constexpr size_t STACK = 128 << 10, TLS_BELOW = 56 << 10, TLS_ABOVE = 8 << 10;
char* area = nullptr;  // stack, then TLS; a forked child's helper uses it again

std::atomic<uint32_t> publish_lock{0};  // around the stores alone: its holder never waits, in the engine least of all
bool published_last = false;            // publish_lock

/// RssAnon of /proc/self/status, in KiB; 0 when it cannot be read.
uint64_t rss_anon_kb() {
  char text[2048];
  const long fd = sys::call(SYS_openat, AT_FDCWD, sys::arg("/proc/self/status"), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  const long n = sys::call(SYS_read, fd, sys::arg(text), sizeof text - 1);
  sys::call(SYS_close, fd);
  if (n <= 0) return 0;
  text[n] = 0;
  const char* at = strstr(text, "RssAnon:");
  if (at == nullptr) return 0;
  uint64_t kb = 0;
  for (at += 8; *at == ' ' || *at == '\t'; ++at) {
  }
  for (; *at >= '0' && *at <= '9'; ++at) kb = kb * 10 + static_cast<uint64_t>(*at - '0');
  return kb;
}

/// The program's pipes are not to stay open because of a copy in this thread's table. What the engine reclaims with
/// stays: shrinking the share means moving pages out.
void close_what_is_the_programs() {
  const long list =
      sys::call(SYS_openat, AT_FDCWD, sys::arg("/proc/thread-self/fd"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (list < 0) return;
  char entries[2048] = {};
  for (long n; (n = sys::call(SYS_getdents64, list, sys::arg(entries), sizeof entries)) > 0;) {
    for (long at = 0; at < n;) {
      const auto* entry = reinterpret_cast<const dirent64*>(entries + at);
      at += entry->d_reclen;
      long fd = 0;
      for (const char* p = entry->d_name; *p >= '0' && *p <= '9'; ++p) fd = fd * 10 + (*p - '0');
      if (entry->d_name[0] == '.' || fd == list) continue;
      char target[32] = {};
      (void)sys::call(SYS_readlinkat, list, sys::arg(entry->d_name), sys::arg(target), sizeof target - 1);
      if (strncmp(target, "anon_inode:[userfaultfd]", 24) != 0) sys::call(SYS_close, fd);
    }
  }
  sys::call(SYS_close, list);
}

void helper_main(void*) {
  sys::call(SYS_prctl, PR_SET_NAME, sys::arg("weir-helper"));
  close_what_is_the_programs();
  uint64_t pause_ms = 5;
  for (;;) {
    const uint32_t bell = run->bell.load();
    timespec pause{static_cast<time_t>(pause_ms / 1000), static_cast<long>(pause_ms % 1000 * 1000000)};
    sys::call(SYS_futex, sys::arg(&run->bell), FUTEX_WAIT, bell, sys::arg(&pause));
    const uint32_t rung = run->bell.load();
    publish(Counters::now);
    if (budget_tick(rung))
      pause_ms = 5;
    else if (pause_ms < 100)
      pause_ms += pause_ms / 2;
  }
}

}  // namespace

void publish(Counters when) {
  LiveStats s;
  machine->stats(s);  // may not return: a thread that finds its process killed ends in there
  const auto free = static_cast<uint64_t>(s.node[static_cast<unsigned>(NodeStat::nr_free_pages)]);
  const uint64_t in_use = s.managed_pages > free ? s.managed_pages - free : 0;
  const uint64_t anon = rss_anon_kb();
  const uint64_t managed = s.host_resident_pages * (PAGE_SIZE >> 10);
  const uint64_t unmanaged = anon > managed ? anon - managed : 0;
  ProcessStats& out = slot->stats;
  auto put = [](auto& to, uint64_t v) {
    to.store(static_cast<std::remove_cvref_t<decltype(to.load())>>(v), std::memory_order_relaxed);
  };
  auto raise = [](std::atomic<uint64_t>& to, uint64_t v) {
    if (v > to.load(std::memory_order_relaxed)) to.store(v, std::memory_order_relaxed);
  };

  while (publish_lock.exchange(1, std::memory_order_acquire) != 0) sys::call(SYS_sched_yield);
  if (published_last && when == Counters::now) {
    // A snapshot from before the end.
    publish_lock.store(0, std::memory_order_release);
    return;
  }
  published_last = when == Counters::last;
  for (unsigned i = 0; i < NR_GAUGES; ++i) put(out.gauges[i], static_cast<uint64_t>(s.node[i]));
  for (unsigned i = 0; i < NR_EVENTS; ++i) put(out.events[i], s.event[i]);
  put(out.nr_free_pages, free);
  put(out.managed_pages, s.managed_pages);
  put(out.swap_total_pages, static_cast<uint64_t>(s.swap_total));
  put(out.swap_free_pages, static_cast<uint64_t>(s.swap_free));
  uint64_t orig = 0, compr = 0, used = 0, used_max = 0, same = 0, huge = 0, file_bytes = 0;
  for (unsigned i = 0; i < s.nr_areas; ++i) {
    const LiveStats::Area& a = s.areas[i];
    if (!a.is_zram) {
      file_bytes += a.used * PAGE_SIZE;
      continue;
    }
    orig += a.mm_stat.orig_data_size.v;
    compr += a.mm_stat.compr_data_size.v;
    used += a.mm_stat.mem_used_total.v;
    used_max += a.mm_stat.mem_used_max.v;
    same += a.mm_stat.same_pages;
    huge += a.mm_stat.huge_pages;
  }
  put(out.orig_data_size, orig);
  put(out.compr_data_size, compr);
  put(out.mem_used_total, used);
  put(out.mem_used_max, used_max);
  put(out.same_pages, same);
  put(out.huge_pages, huge);
  put(out.uffd_copies, s.arch.copies);
  put(out.uffd_staged_back, s.arch.staged_back);
  put(out.uffd_place_moves, s.arch.place_moves);
  put(out.uffd_moves, s.arch.moves);
  put(out.uffd_moved_pages, s.arch.moved_pages);
  put(out.file_swap_bytes, file_bytes);
  put(out.managed_bytes, s.mapped_pages * PAGE_SIZE);
  raise(out.resident_peak, in_use);
  put(out.rss_anon_kb, anon);
  put(out.unmanaged_kb, unmanaged);
  raise(out.unmanaged_peak_kb, unmanaged);
  publish_lock.store(0, std::memory_order_release);
}

void start_helper() {
  publish_lock.store(0);
  published_last = false;
  if (area == nullptr) {
    const long p = sys::call(SYS_mmap, 0, STACK + TLS_BELOW + TLS_ABOVE, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p < 0 && p > -4096) return;  // then counters come at the end only, and the share of RAM stays what it is
    area = reinterpret_cast<char*>(p);
  }
  // The head of a thread descriptor, as libc's code expects it: itself at 0 and 16, guards at 40 and 48.
  char* tp = area + STACK + TLS_BELOW;
  uint64_t stack_guard, pointer_guard;
  asm("movq %%fs:40, %0" : "=r"(stack_guard));
  asm("movq %%fs:48, %0" : "=r"(pointer_guard));
  memcpy(tp, &tp, 8);
  memcpy(tp + 16, &tp, 8);
  memcpy(tp + 40, &stack_guard, 8);
  memcpy(tp + 48, &pointer_guard, 8);
  static int32_t tid;
  static std::atomic<uint32_t> alive;
  const uint64_t flags =
      CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID;
  const sys::SignalMask mask = sys::set_signal_mask(sys::ALL_SIGNALS);
  (void)weir_host_clone(flags, area + STACK, &tid, &alive, tp, helper_main, nullptr);
  sys::set_signal_mask(mask);
}

}  // namespace weir::live::preload
