// src/live/preload/memory.cpp: the calls that make, change and unmake mappings.
//
// Managed is private anonymous memory that the program maps without naming a place outside the managed range. A range
// that a call names may consist of pieces:
//
//   | host's | managed | host's: was managed, the program put a file there | managed | host's |
//
// Each piece goes to whom it belongs.
#include <stdarg.h>
#include <sys/mman.h>

#include "arch/uffd/linux_abi.hpp"
#include "live/preload/preload.hpp"

namespace weir::live::preload {

namespace {

constexpr uintptr_t PAGE_BYTES = 4096;

uintptr_t round_up(uintptr_t n) { return (n + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1); }

/// Parts of the managed range that belong to the host for good. Appended under the lock, read without one.
struct HostPart {
  std::atomic<uintptr_t> start{0}, end{0};
};
constexpr unsigned MAX_HOST_PARTS = 8192;
HostPart host_parts[MAX_HOST_PARTS];
std::atomic<unsigned> nr_host_parts{0};
std::atomic<uint32_t> parts_lock{0};

struct Piece {
  uintptr_t start = 0, end = 0;
  bool managed = false;
};

/// The first piece of [start, end).
Piece first_piece(uintptr_t start, uintptr_t end) {
  const auto from = reinterpret_cast<uintptr_t>(machine->range());
  const uintptr_t to = from + machine->range_bytes();
  if (start < from) return {start, end < from ? end : from, false};
  if (start >= to) return {start, end, false};
  uintptr_t limit = end < to ? end : to;
  const unsigned n = nr_host_parts.load(std::memory_order_acquire);
  for (unsigned i = 0; i < n; ++i) {
    const uintptr_t a = host_parts[i].start.load(std::memory_order_relaxed),
                    b = host_parts[i].end.load(std::memory_order_acquire);
    if (start >= a && start < b) return {start, limit < b ? limit : b, false};
    if (a > start && a < limit) limit = a;
  }
  return {start, limit, true};
}

bool touches_managed(uintptr_t start, uintptr_t end) {
  for (uintptr_t at = start; at < end;) {
    const Piece piece = first_piece(at, end);
    if (piece.managed) return true;
    at = piece.end;
  }
  return false;
}

bool all_managed(uintptr_t start, uintptr_t end) {
  const Piece piece = first_piece(start, end);
  return piece.managed && piece.end == end;
}

/// A named range that a call may be about: page aligned at its start, not empty, not past the end of the address space.
bool is_range(uintptr_t start, size_t length) {
  return (start & (PAGE_BYTES - 1)) == 0 && length != 0 && length <= (uintptr_t{1} << 47) &&
         start <= (uintptr_t{1} << 47);
}

/// Runs `managed(address, length)` or `host(address, length)` on every piece; both return 0 or -errno. The first error
/// is the result, but all pieces are served.
template <class Managed, class Host>
long each_piece(uintptr_t start, uintptr_t end, Managed managed, Host host) {
  long result = 0;
  for (uintptr_t at = start; at < end;) {
    const Piece piece = first_piece(at, end);
    const long r = piece.managed ? managed(reinterpret_cast<void*>(piece.start), piece.end - piece.start)
                                 : host(static_cast<long>(piece.start), static_cast<long>(piece.end - piece.start));
    if (r != 0 && result == 0) result = r;
    at = piece.end;
  }
  return result;
}

template <class T>
long errno_of(const Result<T>& r) {
  return r ? 0 : -static_cast<long>(r.error());
}

/// The managed pieces of the range become the host's.
long give_up(uintptr_t start, uintptr_t end) {
  lock_memory();
  long result = 0;
  for (uintptr_t at = start; at < end && result == 0;) {
    const Piece piece = first_piece(at, end);
    at = piece.end;
    if (!piece.managed) continue;
    const unsigned n = nr_host_parts.load(std::memory_order_relaxed);
    HostPart* part = nullptr;
    for (unsigned i = 0; i < n && part == nullptr; ++i)
      if (host_parts[i].end.load(std::memory_order_relaxed) == piece.start) part = &host_parts[i];
    if (part == nullptr && n == MAX_HOST_PARTS) {
      result = -ENOMEM;
      break;
    }
    result = errno_of(machine->give_up(reinterpret_cast<void*>(piece.start), piece.end - piece.start));
    if (result != 0) break;
    if (part != nullptr) {
      part->end.store(piece.end, std::memory_order_release);
    } else {
      host_parts[n].start.store(piece.start, std::memory_order_relaxed);
      host_parts[n].end.store(piece.end, std::memory_order_relaxed);
      nr_host_parts.store(n + 1, std::memory_order_release);
    }
  }
  unlock_memory();
  return result;
}

long host_mmap(uintptr_t address, size_t length, int prot, int flags, int fd, int64_t offset) {
  return sys::call(SYS_mmap, static_cast<long>(address), static_cast<long>(length), prot, flags, fd, offset);
}

/// Protection as the machine knows it: what can be written or executed can be read.
int machine_prot(int prot) { return (prot & (PROT_WRITE | PROT_EXEC)) != 0 ? prot | PROT_READ : prot; }

constexpr int MAP_FIXED_KINDS = MAP_FIXED | MAP_FIXED_NOREPLACE;

/// Memory that the machine can hold: private, anonymous, not executable, and nothing that promises more than pages.
bool can_manage(int prot, int flags) {
  constexpr int TYPE = 0x0f;
  if ((flags & TYPE) != MAP_PRIVATE || (flags & MAP_ANONYMOUS) == 0) return false;
  if ((flags & (MAP_STACK | MAP_GROWSDOWN | MAP_HUGETLB | MAP_LOCKED | MAP_32BIT)) != 0) return false;
  return (prot & ~(PROT_READ | PROT_WRITE)) == 0;
}

long do_mmap(uintptr_t address, size_t length, int prot, int flags, int fd, int64_t offset) {
  if (machine == nullptr || length == 0 || length > (uintptr_t{1} << 47))
    return host_mmap(address, length, prot, flags, fd, offset);
  const uintptr_t end = address + round_up(length);
  const bool manage = can_manage(prot, flags);
  if ((flags & MAP_FIXED_KINDS) == 0) {
    if (!manage) {
      // A hint inside the range would not be followed: the range is taken.
      return host_mmap(address, length, prot, flags, fd, offset);
    }
    const bool hint = address != 0 && machine->contains(reinterpret_cast<void*>(address));
    Result<void*> r =
        machine->map(length, machine_prot(prot), hint ? LiveMachine::Place::hint : LiveMachine::Place::anywhere,
                     reinterpret_cast<void*>(address & ~(PAGE_BYTES - 1)));
    return r ? static_cast<long>(reinterpret_cast<uintptr_t>(*r)) : errno_of(r);
  }
  if (!is_range(address, length) || !touches_managed(address, end))
    return host_mmap(address, length, prot, flags, fd, offset);
  const bool replace = (flags & MAP_FIXED_NOREPLACE) == 0;
  if (manage && all_managed(address, end)) {
    Result<void*> r = machine->map(length, machine_prot(prot),
                                   replace ? LiveMachine::Place::fixed : LiveMachine::Place::fixed_noreplace,
                                   reinterpret_cast<void*>(address));
    return r ? static_cast<long>(address) : errno_of(r);
  }
  if (!replace) return -EEXIST;
  if (manage) {
    // Half in the range, half out of it.
    const long r = each_piece(
        address, end,
        [&](void* at, size_t n) {
          return errno_of(machine->map(n, machine_prot(prot), LiveMachine::Place::fixed, at));
        },
        [&](long at, long n) {
          const long m = host_mmap(static_cast<uintptr_t>(at), static_cast<size_t>(n), prot, flags, -1, 0);
          return m == at ? 0 : m;
        });
    return r == 0 ? static_cast<long>(address) : r;
  }
  if (const long r = give_up(address, end); r != 0) return r;
  return host_mmap(address, length, prot, flags, fd, offset);
}

long do_mremap(uintptr_t old, size_t old_length, size_t length, int flags, uintptr_t fixed) {
  auto host = [&] {
    return sys::call(SYS_mremap, static_cast<long>(old), static_cast<long>(old_length), static_cast<long>(length),
                     flags, static_cast<long>(fixed));
  };
  if (machine == nullptr || !is_range(old, length)) return host();
  const bool to_fixed = (flags & MREMAP_FIXED) != 0;
  const uintptr_t old_end = old + round_up(old_length);
  const bool from_managed =
      old_length != 0 ? touches_managed(old, old_end) : machine->contains(reinterpret_cast<void*>(old));
  if (to_fixed && (!is_range(fixed, length) || (flags & MREMAP_MAYMOVE) == 0)) return -EINVAL;
  const uintptr_t fixed_end = to_fixed ? fixed + round_up(length) : 0;
  if (!from_managed) {
    if (to_fixed && touches_managed(fixed, fixed_end)) {
      if (const long r = give_up(fixed, fixed_end); r != 0) return r;
    }
    return host();
  }
  // Kinds of moving that make no new mapping of private memory, and ranges of several kinds.
  if (old_length == 0 || (flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED)) != 0) return -EINVAL;
  if (!all_managed(old, old_end)) return -EFAULT;
  if (!to_fixed || all_managed(fixed, fixed_end)) {
    Result<void*> r =
        machine->remap(reinterpret_cast<void*>(old), old_length, length, flags, reinterpret_cast<void*>(fixed));
    return r ? static_cast<long>(reinterpret_cast<uintptr_t>(*r)) : errno_of(r);
  }
  // Out of the range: the bytes go, the mapping cannot.
  const long at = do_mmap(fixed, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (at < 0 && at > -4096) return at;
  __builtin_memcpy(reinterpret_cast<void*>(fixed), reinterpret_cast<void*>(old),
                   old_length < length ? old_length : length);
  (void)machine->unmap(reinterpret_cast<void*>(old), old_length);
  return at;
}

long do_mprotect(uintptr_t address, size_t length, int prot) {
  auto host = [&](long at, long n) { return sys::call(SYS_mprotect, at, n, prot); };
  const uintptr_t end = address + round_up(length);
  if (machine == nullptr || !is_range(address, length) || !touches_managed(address, end))
    return host(static_cast<long>(address), static_cast<long>(length));
  return each_piece(
      address, end,
      [&](void* at, size_t n) -> long {
        if ((prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC)) != 0) return -EINVAL;
        return errno_of(machine->protect(at, n, machine_prot(prot)));
      },
      host);
}

/// Advice that Linux knows for private anonymous memory; others are EINVAL, also where the machine would not listen to
/// them.
bool is_advice(int advice) {
  constexpr int LAST = 25;  // MADV_COLLAPSE
  return (advice >= MADV_NORMAL && advice <= MADV_DONTNEED) || (advice >= MADV_FREE && advice <= LAST);
}

long do_madvise(uintptr_t address, size_t length, int advice) {
  auto host = [&](long at, long n) { return sys::call(SYS_madvise, at, n, advice); };
  const uintptr_t end = address + round_up(length);
  if (machine == nullptr || !is_range(address, length) || !touches_managed(address, end))
    return host(static_cast<long>(address), static_cast<long>(length));
  if (!is_advice(advice)) return -EINVAL;
  return each_piece(
      address, end,
      [&](void* at, size_t n) -> long {
        // These are only touching, page by page: the host does that, and the faults come here.
        if (advice == abi::ADVICE_POPULATE_READ || advice == abi::ADVICE_POPULATE_WRITE)
          return host(static_cast<long>(reinterpret_cast<uintptr_t>(at)), static_cast<long>(n));
        return errno_of(machine->advise(at, n, advice));
      },
      host);
}

/// mlock's ranges need not be aligned.
template <class Managed, class Host>
long do_mlock(const void* address, size_t length, Managed managed, Host host) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(address) & ~(PAGE_BYTES - 1);
  const size_t whole = round_up(length + (reinterpret_cast<uintptr_t>(address) - start));
  if (machine == nullptr || whole < length || !is_range(start, whole) || !touches_managed(start, start + whole))
    return host(static_cast<long>(reinterpret_cast<uintptr_t>(address)), static_cast<long>(length));
  return each_piece(start, start + whole, managed, host);
}

}  // namespace

void lock_memory() {
  while (parts_lock.exchange(1, std::memory_order_acquire) != 0) sys::call(SYS_sched_yield);
}

void unlock_memory() { parts_lock.store(0, std::memory_order_release); }

}  // namespace weir::live::preload

// ---- What the program calls ----------------------------------------------------------------------------------------

using namespace weir::live::preload;
using weir::sys::call;

WEIR_EXPORT void* mmap(void* address, size_t length, int prot, int flags, int fd, off_t offset) noexcept {
  return reinterpret_cast<void*>(
      libc_result(do_mmap(reinterpret_cast<uintptr_t>(address), length, prot, flags, fd, offset)));
}

WEIR_EXPORT void* mmap64(void* address, size_t length, int prot, int flags, int fd, off64_t offset) noexcept {
  return reinterpret_cast<void*>(
      libc_result(do_mmap(reinterpret_cast<uintptr_t>(address), length, prot, flags, fd, offset)));
}

WEIR_EXPORT int munmap(void* address, size_t length) noexcept {
  auto host = [](long at, long n) { return call(SYS_munmap, at, n); };
  const auto start = reinterpret_cast<uintptr_t>(address);
  const uintptr_t end = start + round_up(length);
  if (machine == nullptr || !is_range(start, length) || !touches_managed(start, end))
    return static_cast<int>(libc_result(host(static_cast<long>(start), static_cast<long>(length))));
  return static_cast<int>(libc_result(each_piece(
      start, end, [](void* at, size_t n) { return errno_of(machine->unmap(at, n)); }, host)));
}

WEIR_EXPORT void* mremap(void* old, size_t old_length, size_t length, int flags, ...) noexcept {
  uintptr_t fixed = 0;
  if ((flags & MREMAP_FIXED) != 0) {
    va_list arguments;
    va_start(arguments, flags);
    fixed = reinterpret_cast<uintptr_t>(va_arg(arguments, void*));
    va_end(arguments);
  }
  return reinterpret_cast<void*>(
      libc_result(do_mremap(reinterpret_cast<uintptr_t>(old), old_length, length, flags, fixed)));
}

WEIR_EXPORT int mprotect(void* address, size_t length, int prot) noexcept {
  return static_cast<int>(libc_result(do_mprotect(reinterpret_cast<uintptr_t>(address), length, prot)));
}

WEIR_EXPORT int madvise(void* address, size_t length, int advice) noexcept {
  return static_cast<int>(libc_result(do_madvise(reinterpret_cast<uintptr_t>(address), length, advice)));
}

WEIR_EXPORT int mlock(const void* address, size_t length) noexcept {
  return static_cast<int>(libc_result(do_mlock(
      address, length, [](void* at, size_t n) { return errno_of(machine->lock(at, n)); },
      [](long at, long n) { return call(SYS_mlock, at, n); })));
}

WEIR_EXPORT int mlock2(const void* address, size_t length, unsigned flags) noexcept {
  // MLOCK_ONFAULT asks for less than what it gets: pages that come in at once.
  return static_cast<int>(libc_result(do_mlock(
      address, length, [](void* at, size_t n) { return errno_of(machine->lock(at, n)); },
      [flags](long at, long n) { return call(SYS_mlock2, at, n, static_cast<long>(flags)); })));
}

WEIR_EXPORT int munlock(const void* address, size_t length) noexcept {
  return static_cast<int>(libc_result(do_mlock(
      address, length, [](void* at, size_t n) { return errno_of(machine->unlock(at, n)); },
      [](long at, long n) { return call(SYS_munlock, at, n); })));
}

WEIR_EXPORT int mlockall(int flags) noexcept {
  // The host would fill the whole managed range with pages. Refused as it is to who has not the right, which programs
  // expect.
  if (machine != nullptr) return static_cast<int>(libc_result(-EPERM));
  return static_cast<int>(libc_result(call(SYS_mlockall, flags)));
}

WEIR_EXPORT int munlockall() noexcept {
  if (machine != nullptr) (void)machine->unlock(machine->range(), machine->range_bytes());
  return static_cast<int>(libc_result(call(SYS_munlockall)));
}
