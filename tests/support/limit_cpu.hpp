// tests/support/limit_cpu.hpp: for processes that a test starts for what may hang
#pragma once

#include <sys/resource.h>

namespace weir {

/// The process ends by SIGXCPU when it has used so many seconds of processor time; a busy host does not make it end.
inline void limit_cpu(unsigned seconds) {
  const rlimit limit{.rlim_cur = seconds, .rlim_max = seconds + 5};
  setrlimit(RLIMIT_CPU, &limit);
}

}  // namespace weir
