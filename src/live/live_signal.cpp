// src/live/live_signal.cpp: the process's SIGBUS handler, and which machine an address belongs to. See live_machine.hpp
#include <ucontext.h>

#include <cstring>

#include "kernel/host/sys.hpp"
#include "live/live_parts.hpp"

namespace weir {

namespace {

constexpr int BUS_ADRERR_ = 2;  // a page that nobody has brought: si_code of a missing page, unlike a poisoned one's
constexpr unsigned MAX_MACHINES = 16;

std::atomic<LiveMachine*> machines[MAX_MACHINES];

/// The handler to which everything goes that is not ours. All signals are blocked by who holds the lock.
std::atomic<bool> next_lock{false};
struct sigaction next_handler;

class NextLock {
 public:
  NextLock() : mask_(sys::set_signal_mask(sys::ALL_SIGNALS)) {
    while (next_lock.exchange(true, std::memory_order_acquire)) raw_syscall(SYS_sched_yield);
  }
  ~NextLock() {
    next_lock.store(false, std::memory_order_release);
    sys::set_signal_mask(mask_);
  }
  NextLock(const NextLock&) = delete;
  NextLock& operator=(const NextLock&) = delete;

 private:
  sys::SignalMask mask_;
};

struct KernelSigaction {
  void* handler;
  unsigned long flags;
  void (*restorer)();
  unsigned long mask;
};
constexpr unsigned long SA_RESTORER_ = 0x04000000;

extern "C" [[gnu::visibility("hidden")]] void weir_live_restorer();
asm(R"(
.text
.hidden weir_live_restorer
.globl weir_live_restorer
.type weir_live_restorer, @function
weir_live_restorer:
  movl $15, %eax
  syscall
.size weir_live_restorer, .-weir_live_restorer
)");

void set_default() {
  KernelSigaction a{reinterpret_cast<void*>(SIG_DFL), SA_RESTORER_, weir_live_restorer, 0};
  raw_syscall(SYS_rt_sigaction, SIGBUS, &a, nullptr, 8);
}

LiveMachine* machine_of(const void* address) {
  for (std::atomic<LiveMachine*>& m : machines)
    if (LiveMachine* live = m.load(std::memory_order_acquire); live != nullptr && live->contains(address)) return live;
  return nullptr;
}

/// Not ours: as if our handler were not there.
void pass_on(int signal, siginfo_t* info, void* context) {
  struct sigaction next;
  {
    NextLock guard;
    next = next_handler;
    if ((next.sa_flags & static_cast<int>(SA_RESETHAND)) != 0) next_handler.sa_handler = SIG_DFL;
  }
  const bool sent = info->si_code <= 0;  // by kill(), not by an access
  if ((next.sa_flags & SA_SIGINFO) != 0) {
    next.sa_sigaction(signal, info, context);
  } else if (next.sa_handler == SIG_IGN && sent) {
    return;
  } else if (next.sa_handler == SIG_DFL || next.sa_handler == SIG_IGN) {
    set_default();  // an access is repeated and ends the process
    if (sent) raw_syscall(SYS_tgkill, raw_syscall(SYS_getpid), raw_syscall(SYS_gettid), SIGBUS);
  } else {
    next.sa_handler(signal);
  }
}

void on_sigbus(int signal, siginfo_t* info, void* context) {
  if (!LiveMachine::handle_sigbus(info, context)) pass_on(signal, info, context);
}

bool install_handler() {
  KernelSigaction ours{reinterpret_cast<void*>(on_sigbus), SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTORER_,
                       weir_live_restorer, 0};
  KernelSigaction before{};
  if (raw_syscall(SYS_rt_sigaction, SIGBUS, &ours, &before, 8) != 0) return false;
  if (before.handler == reinterpret_cast<void*>(on_sigbus)) return true;
  NextLock guard;
  next_handler = {};
  next_handler.sa_sigaction = reinterpret_cast<void (*)(int, siginfo_t*, void*)>(before.handler);
  next_handler.sa_flags = static_cast<int>(before.flags & ~SA_RESTORER_);
  std::memcpy(&next_handler.sa_mask, &before.mask, 8);
  return true;
}

}  // namespace

bool LiveMachine::handle_sigbus(siginfo_t* info, void* ucontext) {
  if (info->si_code != BUS_ADRERR_) return false;
  LiveMachine* live = machine_of(info->si_addr);
  if (live == nullptr || live->options_.delivery != Delivery::signal) return false;
  // x86-64: the second bit of a page fault's error code says that it was a store.
  const auto error = static_cast<uint64_t>(static_cast<ucontext_t*>(ucontext)->uc_mcontext.gregs[REG_ERR]);
  return live->serve_signal(reinterpret_cast<uint64_t>(info->si_addr), PF_USER | ((error & 2) != 0 ? PF_WRITE : 0u));
}

void LiveMachine::set_next_sigbus_handler(const struct sigaction* now, struct sigaction* before) {
  struct sigaction copy {};
  struct sigaction was;
  if (now != nullptr) copy = *now;  // before the lock: it may lie in managed memory
  {
    NextLock guard;
    was = next_handler;
    if (now != nullptr) next_handler = copy;
  }
  if (before != nullptr) *before = was;
}

bool LiveMachine::register_machine(LiveError& error) {
  if (options_.delivery == Delivery::signal && !install_handler()) {
    std::strcpy(error.text, "the handler for SIGBUS cannot be set: is sigaction forbidden by a seccomp filter?");
    return false;
  }
  for (std::atomic<LiveMachine*>& m : machines) {
    LiveMachine* none = nullptr;
    if (m.compare_exchange_strong(none, this, std::memory_order_release)) return true;
  }
  std::strcpy(error.text, "too many machines in one process: 16 is the most");
  return false;
}

void LiveMachine::unregister_machine() {
  for (std::atomic<LiveMachine*>& m : machines) {
    LiveMachine* self = this;
    m.compare_exchange_strong(self, nullptr, std::memory_order_release);
  }
}

LiveMachine* LiveMachine::nth(unsigned i) {
  return i < MAX_MACHINES ? machines[i].load(std::memory_order_acquire) : nullptr;
}
unsigned LiveMachine::most_machines() { return MAX_MACHINES; }

}  // namespace weir
