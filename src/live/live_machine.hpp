// src/live/live_machine.hpp
//
// A machine that runs inside a program and pages a part of the program's memory:
//
//   program thread --map()-----> VMA in the machine; the host's pages become accessible
//                  --touches---> the host's MMU has no page --> SIGBUS (signal) | userfaultfd message (thread)
//                            --> HostWorld::enter --> Machine::do_page_fault --> UffdMmu puts the page in
//                            --> touches again
//
// All managed memory lies in one range of addresses that is reserved and registered with userfaultfd once, at the
// start; what is not mapped in it is PROT_NONE. It is private, anonymous memory, readable and writable: anything else
// is not managed.
//
// create() is ordinary C++. Everything else may be called from any program thread while malloc's or libc's locks are
// held: it allocates nothing, throws nothing and does not change errno. Functions that say Result give the system
// call's errno.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "arch/uffd/uffd_mmu.hpp"
#include "arch/uffd/uffd_open.hpp"
#include "base/result.hpp"
#include "base/units.hpp"
#include "block/zram.hpp"
#include "live/swap_spec.hpp"
#include "mm/types.hpp"

namespace weir {

/// Who serves a fault.
enum class Delivery : uint8_t {
  /// The thread that faults, in a SIGBUS handler. Fast; needs no privilege. The kernel cannot fault for it: a system
  /// call whose buffer
  /// is not present fails with EFAULT (and some have consumed their data by then), so buffers must be made present
  /// first.
  signal,
  /// Threads of the engine. Nothing in the program differs. Needs root, CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1
  /// or an open
  /// /dev/userfaultfd.
  thread,
};

struct LiveOptions {
  Bytes ram{};  ///< at least 4 MiB; everything the engine needs is in it
  std::span<const SwapSpec>
      swap{};  ///< first = used first; looked at during create() alone; may be empty: then what does not fit is killed
  Delivery delivery = Delivery::signal;
  Bytes address_space{uint64_t{1} << 38};  ///< for managed memory; costs nothing until mapped. Less where limits are
  Bytes least_address_space{};             ///< but not less than that, and twice `ram`
  /// Where the last events go: FlowRing::bytes_for(record_events) of zeroes, which outlive the machine and are not part
  /// of `ram`. Empty: no recording. Shared memory is the parent's: do_fork puts other memory in its place in a child.
  std::span<std::byte> ring{};
  uint64_t record_events = 0;
  unsigned fault_threads = 2;   ///< thread delivery: 1…8
  int userfaultfd_device = -1;  ///< an open /dev/userfaultfd that somebody with the right handed over; not closed
  bool quiet_boot = false;      ///< no line on stderr for each swap area
  /// RAM and swap are full, and somebody will be killed for it: can the budget grow? On an engine stack, may sleep; may
  /// call set_ram_inside(), nothing else of the machine. True: it has grown, try again.
  bool (*more_ram)() = nullptr;
  /// RAM and swap are full, the report is out and SIGKILL is next: the last moment to keep counters or the recording.
  /// Once, on an engine stack, maybe with locks of the machine held: may call stats() and write_recording(), nothing
  /// else of the machine.
  void (*before_kill)() = nullptr;
};

/// Why create() refused, for a person: what failed and which setting mends it.
struct LiveError {
  char text[512] = {};
};

/// Counters under their /proc/vmstat and zram names; a snapshot, each number by itself.
struct LiveStats {
  static constexpr unsigned MAX_AREAS = 8;
  uint64_t ram_pages = 0;                  ///< the budget
  uint64_t managed_pages = 0;              ///< of it, what the machine's allocator has to give
  uint64_t mapped_pages = 0;               ///< length of all managed mappings
  uint64_t rss_pages = 0, swap_pages = 0;  ///< resident and swapped out of them
  uint64_t host_resident_pages = 0;        ///< host pages that count against the budget: user pages, staging, the arena
  int64_t node[static_cast<unsigned>(NodeStat::count)] = {};   ///< index: NodeStat; names by stat_name()
  uint64_t event[static_cast<unsigned>(VmEvent::count)] = {};  ///< index: VmEvent; names by event_name()
  int64_t swap_total = 0, swap_free = 0;                       ///< slots
  UffdStats arch;
  struct Area {
    char name[64] = {};
    bool is_zram = false;
    uint64_t pages = 0, used = 0;
    ZramMmStat mm_stat;  ///< zram only
    ZramIoStat io_stat;
    uint64_t reads = 0, writes = 0, read_errors = 0, write_errors = 0;
  } areas[MAX_AREAS];
  unsigned nr_areas = 0;
};

class LiveMachine {
 public:
  /// Reserves memory, opens userfaultfd, boots a machine, takes its swap areas into use, starts its threads. On the
  /// program's stack. Null: see `error`. Several may live in one process.
  [[nodiscard]] static LiveMachine* create(const LiveOptions& options, LiveError& error);
  /// Everything goes, the managed memory included. No other thread is inside or touches it any more.
  static void destroy(LiveMachine* live);
  LiveMachine(const LiveMachine&) = delete;
  LiveMachine& operator=(const LiveMachine&) = delete;

  // ---- managed memory: as the system calls of the same name, on private anonymous mappings. Lengths are rounded up to
  // pages.
  enum class Place : uint8_t { anywhere, hint, fixed, fixed_noreplace };
  /// prot: PROT_NONE, PROT_READ, PROT_READ|PROT_WRITE. Errors: ENOMEM; EINVAL (PROT_EXEC, 0 bytes, a fixed place
  /// outside contains()); EEXIST.
  Result<void*> map(size_t length, int prot, Place place = Place::anywhere, void* address = nullptr);
  /// All or a part of mappings; what is not mapped is no error.
  Result<void> unmap(void* address, size_t length);
  /// flags: MREMAP_MAYMOVE, MREMAP_FIXED (`fixed` is then in contains()). Errors: ENOMEM, EFAULT, EINVAL.
  Result<void*> remap(void* address, size_t old_length, size_t new_length, int flags, void* fixed = nullptr);
  /// As map()'s prot, and with PROT_READ also PROT_EXEC: that comes in at once. Memory that is not readable and writable,
  /// or is executable, stays resident while it is so.
  Result<void> protect(void* address, size_t length, int prot);
  /// MADV_DONTNEED at once; MADV_FREE is taken as a hint that need not be followed, and others too, but for what
  /// changes what a program sees (MADV_WIPEONFORK, MADV_DONTFORK, MADV_REMOVE: EINVAL). Of files: MADV_NORMAL,
  /// MADV_RANDOM, MADV_SEQUENTIAL say how far is read ahead, MADV_WILLNEED reads.
  Result<void> advise(void* address, size_t length, int advice);
  /// Brings everything in and keeps it. Errors: ENOMEM. Executable memory stays also when it is unlocked.
  Result<void> lock(void* address, size_t length);
  Result<void> unlock(void* address, size_t length);
  /// Makes the pages present, for system-call buffers under signal delivery; they may leave again. Errors: EFAULT (not
  /// mapped).
  Result<void> populate(void* address, size_t length, bool write);
  /// The caller is about to map something of its own (a file, shared memory) over this part of the range with
  /// MAP_FIXED: whatever was managed there goes, and the place is never used for managed memory again. Errors: ENOMEM.
  Result<void> give_up(void* address, size_t length);
  /// In the reserved range, mapped or not. Any thread, any time; in signal handlers too.
  [[nodiscard]] bool contains(const void* address) const {
    return static_cast<const char*>(address) >= range_ && static_cast<const char*>(address) < range_ + range_bytes_;
  }
  [[nodiscard]] void* range() const { return range_; }
  [[nodiscard]] size_t range_bytes() const { return range_bytes_; }

  // ---- files (live_files.cpp). What is mapped is the machine's own page cache; a file is told by device and inode, and
  // all its mappings here share its pages. Addresses and offsets are page aligned.
  static constexpr unsigned MAX_FILES = 15;  ///< mapped at a time
  static constexpr uint64_t MAX_FILE_BYTES = uint64_t{1} << 46;
  enum class Sharing : uint8_t { shared, private_ };
  /// prot: PROT_READ, PROT_READ|PROT_WRITE. Behind the file's end, and where it cannot be read, an access is SIGBUS. `fd`
  /// may be closed afterwards. Errors: mmap's EACCES, EBADF, ENODEV, EINVAL, EOVERFLOW, ENOMEM; ENFILE (too many files),
  /// EBUSY (to be written, and mapped already by a descriptor that cannot write), EAGAIN (no thread for its I/O).
  Result<void*> map_file(int fd, uint64_t offset, size_t length, int prot, Sharing sharing);
  /// What was stored in shared mappings is written first. Errors: EIO, ENOSPC, …: what the file refused and this mapping
  /// was not told of yet; it is unmapped nevertheless. EINVAL: a part of it is no file, nothing is done.
  Result<void> unmap_file(void* address, size_t length);
  /// msync. MS_SYNC: what was stored is on the disk. MS_ASYNC: nothing, flushers write. MS_INVALIDATE: pages that are
  /// clean leave, and are read anew. Errors: EIO, ENOSPC, …: as unmap_file; EINVAL; ENOMEM (a part is not mapped).
  Result<void> sync_file(void* address, size_t length, int flags);

  // ---- faults, signal delivery
  /// For a SIGBUS handler that is not ours: serves the fault if it is one of any LiveMachine's. True: return and the
  /// access is repeated. create() installs a handler that does this and passes everything else to the handler that was
  /// there before.
  static bool handle_sigbus(siginfo_t* info, void* ucontext);
  /// Somebody set a handler for SIGBUS: what sigaction() would have installed and returned, without the engine's being
  /// lost.
  static void set_next_sigbus_handler(const struct sigaction* now, struct sigaction* before);

  // ---- fork
  /// Forks while nobody is inside any LiveMachine: `do_fork` is _Fork() or a raw clone(SIGCHLD), called on an engine
  /// stack with all signals blocked: it must not run handlers of the program. Returns its result, in both processes.
  /// The child has its own userfaultfd, its memory as of the fork, its own kthreads and copies of the swap files before
  /// this returns. -1 with errno EAGAIN: no room for a copy.
  static pid_t fork(pid_t (*do_fork)());

  // ---- what it does
  void stats(LiveStats& out);
  [[nodiscard]] Delivery delivery() const { return options_.delivery; }
  /// The recording so far; `ended`, if not empty, says in it how the program ended. Errors: ENOENT (no ring), EIO.
  Result<void> write_recording(int fd, std::string_view ended = {});
  /// Every invariant of the machine and of its host pages, at rest: nobody else may run in it; what is being read or
  /// written is waited for. Prints what is broken; returns how many.
  unsigned verify();
  /// Lower or raise the budget, not above what create() was given. Returns what is reached, in bytes.
  Bytes set_ram(Bytes ram);
  /// The same from LiveOptions::more_ram.
  Bytes set_ram_inside(Bytes ram);

  /// The engine's descriptors, for whoever manages the process's table. -1: not open.
  struct Files {
    int user = -1, staging = -1, stop = -1;
  };

 private:
  struct Parts;
  LiveMachine() = default;
  ~LiveMachine() = default;

  bool start(const LiveOptions& options, LiveError& error);
  bool boot(LiveError& error);
  bool start_swap(LiveError& error);
  Result<void> open_descriptors(Files& fds, const char* range, size_t range_bytes, const char* staging,
                                size_t staging_bytes, UffdOpenError& error);
  bool start_fault_threads();
  void stop_fault_threads();
  static void fault_thread(void* live);
  bool serve(uint64_t address, uint32_t error_code);
  bool serve_signal(uint64_t address, uint32_t error_code);
  [[nodiscard]] bool inside(const void* address, size_t length) const;
  void refuse(uint64_t page, uint32_t error_code);
  // live_protect.cpp
  template <class Fn>
  Result<void> for_each_part(VirtAddr start, VirtAddr end, Fn fn);
  Result<int> protection(VirtAddr address);
  Result<void> set_protection(VirtAddr start, VirtAddr end, int prot);
  Result<void> discard(VirtAddr start, VirtAddr end, uint64_t though);
  // live_files.cpp
  Result<unsigned> file_of(int fd);
  void grow_file(unsigned nr, uint64_t pages);
  Result<void> advise_files(VirtAddr start, VirtAddr end, int advice);
  void drop_unused_files();
  void unmap_all_files();
  template <class Fn>
  Result<void> for_each_file_part(VirtAddr start, VirtAddr end, Fn fn);
  void count(LiveStats& out);
  void name_recording();
  [[noreturn]] void die();

  // live_signal.cpp
  bool register_machine(LiveError& error);
  void unregister_machine();
  static LiveMachine* nth(unsigned i);
  static unsigned most_machines();
  // live_fork.cpp
  static pid_t fork_from(unsigned i, pid_t (*do_fork)());
  bool before_fork();
  void parent_after_fork();
  void child_after_fork();
  long copy_swap_file(unsigned i);

  char* range_ = nullptr;
  size_t range_bytes_ = 0;
  LiveOptions options_;
  Parts* parts_ = nullptr;
};

}  // namespace weir
