// src/base/result.cpp: see result.hpp
#include "base/result.hpp"

#include <csignal>
#include <cstring>

#include "base/raw_syscall.hpp"

namespace weir {

const char* errno_name(Errno e) {
  switch (e) {
    case Errno::ok: return "0";
    case Errno::perm: return "EPERM";
    case Errno::noent: return "ENOENT";
    case Errno::srch: return "ESRCH";
    case Errno::intr: return "EINTR";
    case Errno::io: return "EIO";
    case Errno::nxio: return "ENXIO";
    case Errno::badf: return "EBADF";
    case Errno::again: return "EAGAIN";
    case Errno::nomem: return "ENOMEM";
    case Errno::acces: return "EACCES";
    case Errno::fault: return "EFAULT";
    case Errno::busy: return "EBUSY";
    case Errno::exist: return "EEXIST";
    case Errno::nodev: return "ENODEV";
    case Errno::inval: return "EINVAL";
    case Errno::nfile: return "ENFILE";
    case Errno::fbig: return "EFBIG";
    case Errno::nospc: return "ENOSPC";
    case Errno::nosys: return "ENOSYS";
    case Errno::overflow: return "EOVERFLOW";
    case Errno::opnotsupp: return "EOPNOTSUPP";
    case Errno::timedout: return "ETIMEDOUT";
  }
  return "E?";
}

void bug(const char* what, const char* file, int line) {
  // Raw writes only: the thread may hold the program's malloc lock, and its stack may be a small one.
  auto say = [](const char* text) { raw_syscall(SYS_write, 2, text, std::strlen(text)); };
  char digits[12];
  int at = sizeof digits;
  digits[--at] = 0;
  do {
    digits[--at] = static_cast<char>('0' + line % 10);
    line /= 10;
  } while (line > 0 && at > 0);
  say("weir: BUG: ");
  say(what);
  say(" at ");
  say(file);
  say(":");
  say(digits + at);
  say("\n");
  // The kernel's struct sigaction, all zero: SIG_DFL, no flags, no mask.
  const uint64_t default_action[4] = {};
  const uint64_t abort_only = uint64_t{1} << (SIGABRT - 1);
  raw_syscall(SYS_rt_sigaction, SIGABRT, default_action, nullptr, sizeof abort_only);
  raw_syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, &abort_only, nullptr, sizeof abort_only);
  raw_syscall(SYS_tgkill, raw_syscall(SYS_getpid), raw_syscall(SYS_gettid), SIGABRT);
  for (;;) raw_syscall(SYS_exit_group, 134);
}

}  // namespace weir
