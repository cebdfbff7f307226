// src/live/live_fork.cpp: fork with managed memory. See live_machine.hpp
#include "live/live_parts.hpp"

namespace weir {

void LiveMachine::child_after_fork() {}

pid_t LiveMachine::fork(pid_t (*do_fork)()) { return do_fork(); }

}  // namespace weir
