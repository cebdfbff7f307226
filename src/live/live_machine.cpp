// src/live/live_machine.cpp: a machine inside a program: made, entered, taken down. See live_machine.hpp
#include "live/live_machine.hpp"

#include <limits.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "arch/uffd/host_calls.hpp"
#include "arch/uffd/uffd_open.hpp"
#include "live/live_parts.hpp"

namespace weir {

namespace {

constexpr size_t WINDOW = size_t{1} << UffdMmu::WINDOW_SHIFT;
/// Of what the machine has to give, for compressed pages: so that the working set keeps frames while there is another
/// place for pages, and reclaim keeps some where there is not.
constexpr int64_t ZRAM_PERCENT = 60, ZRAM_PERCENT_ALONE = 85;
/// Where there is another place, beyond that only for pages that have a slot here and are on their way out.
constexpr int64_t ZRAM_PERCENT_OVER = 70;
/// And so much for everything else: a small share is better used for the pages that are worked on.
constexpr PageCount ROOM_TO_WORK = pages_in(4_MiB);
struct PoolLimits {
  PageCount all{},
      steer{};  ///< of one pool: what it may hold; from where on pages go elsewhere (0: nowhere else to go)
};
PoolLimits pool_limits(unsigned zrams, unsigned areas, PageCount managed) {
  if (zrams == 0) return {};
  const auto percent = [&](int64_t n) { return PageCount(managed.v * n / 100 / zrams); };
  if (zrams == areas) return {percent(ZRAM_PERCENT_ALONE), PageCount(0)};
  const int64_t most = std::max((managed - ROOM_TO_WORK).v, managed.v / 8) / zrams;
  return {std::min(percent(ZRAM_PERCENT_OVER), PageCount(most + most / 8)),
          std::min(percent(ZRAM_PERCENT), PageCount(most))};
}
/// Of the budget, for what is not in the arena: engine stacks, this object, descriptors of the host's.
constexpr size_t ENGINE_OVERHEAD = 768 << 10;

void explain(LiveError& error, const char* what, const char* remedy) {
  std::snprintf(error.text, sizeof error.text, "%s: %s", what, remedy);
}
void explain(LiveError& error, const char* what, Errno e) {
  std::snprintf(error.text, sizeof error.text, "%s: %s", what, errno_name(e));
}

char* reserve(size_t bytes, int prot) {
  void* p = ::mmap(nullptr, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<char*>(p);
}

/// Address space of `bytes`, aligned to a window.
char* reserve_windows(size_t bytes, int prot) {
  char* p = reserve(bytes + WINDOW, prot);
  if (p == nullptr) return nullptr;
  const auto at = reinterpret_cast<uintptr_t>(p);
  const uintptr_t start = (at + WINDOW - 1) & ~(WINDOW - 1);
  if (start > at) ::munmap(p, start - at);
  ::munmap(reinterpret_cast<void*>(start + bytes), at + WINDOW - start);
  return reinterpret_cast<char*>(start);
}

bool prot_valid(int prot) { return (prot & ~(PROT_READ | PROT_WRITE)) == 0; }

}  // namespace

/// OOM, or somebody's SIGKILL. The report is printed already. One thread ends the process; others that find the task
/// killed wait for that here, or the last counters and the recording would be cut off.
void LiveMachine::die() {
  uint32_t nobody = 0;
  const auto me = static_cast<uint32_t>(raw_syscall(SYS_gettid));
  if (parts_->dying.compare_exchange_strong(nobody, me, std::memory_order_acq_rel)) {
    if (options_.before_kill != nullptr) options_.before_kill();
    raw_syscall(SYS_kill, raw_syscall(SYS_getpid), SIGKILL);
  }
  for (;;) raw_syscall(SYS_pause);
}

// ---- Starting -------------------------------------------------------------------------------------------------------

void LiveMachine::Parts::deliver_sigkill(Task&) {}  // who runs in the engine finds Task::sigkill on the way out
PageCount LiveMachine::Parts::try_to_free_pages(Order order, gfp_t gfp) {
  return machine->pressure().try_to_free_pages(order, gfp);
}
void LiveMachine::Parts::wakeup_kswapd(ZoneType classzone, Order order) {
  machine->pressure().wakeup_kswapd(classzone, order);
}
bool LiveMachine::Parts::out_of_memory(const OomControl& control) {
  if (live.options_.more_ram != nullptr && !fatal_signal_pending() && live.options_.more_ram()) return true;
  return machine->pressure().out_of_memory(control);
}
PageCount LiveMachine::Parts::zone_reclaimable_pages() const { return machine->pressure().zone_reclaimable_pages(); }
void LiveMachine::Parts::panic(const char* why) { bug(why, __FILE__, __LINE__); }

namespace {

/// What the swap areas need of the machine's own memory.
size_t zram_metadata(const LiveOptions& options, unsigned cpus, ZramOptions* zram) {
  size_t total = 0;
  for (size_t i = 0; i < options.swap.size(); ++i) {
    const SwapSpec& spec = options.swap[i];
    if (spec.kind != SwapSpec::Kind::zram) continue;
    const Bytes size = spec.size.v != 0 ? spec.size : options.ram * 4;
    zram[i] = {.name = "zram",
               .capacity = pages_in(size),
               .mem_limit = PageCount(0),  // set when the machine is up
               .comp = {.algorithm = spec.algorithm, .streams = std::clamp(cpus, 1u, 64u)}};
    total += page_align_up(Zram::metadata_needed(zram[i]));
  }
  return total;
}

}  // namespace

void LiveMachine::Parts::close_program_files(void* arg) {
  const Parts& p = *static_cast<Parts*>(arg);
  const Files& fds = p.fds;
  // A kthread's table is a copy of the program's. What is in it for nobody would keep pipes open for ever; the log
  // stays.
  const int first = std::min({fds.user, fds.staging, fds.stop >= 0 ? fds.stop : fds.user});
  raw_syscall(SYS_close, 0);
  raw_syscall(SYS_close, 1);
  if (first > 3) raw_syscall(SYS_close_range, 3u, static_cast<unsigned>(first - 1), 0);
  for (const MappedFile& file : p.files)
    if (file.device != nullptr) file.device->close_copies();
}

Result<void> LiveMachine::open_descriptors(Files& fds, const char* range, size_t range_bytes, const char* staging,
                                           size_t staging_bytes, UffdOpenError& error) {
  const UffdDelivery delivery = options_.delivery == Delivery::signal ? UffdDelivery::signal : UffdDelivery::message;
  fds.user = WEIR_TRY(uffd_open(delivery, options_.userfaultfd_device, error));
  // Nobody but the engine touches staging: an access to an empty slot is a bug that shows as SIGBUS.
  fds.staging = WEIR_TRY(uffd_open(UffdDelivery::signal, -1, error));
  if (options_.delivery == Delivery::thread) {
    const long fd = raw_syscall(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) return static_cast<Errno>(-fd);
    fds.stop = move_descriptor_up(static_cast<int>(fd));
  }
  error = {"managed memory cannot be registered with userfaultfd", "raise vm.max_map_count, or see the kernel's log"};
  WEIR_TRY_VOID(uffd_register(fds.user, range, range_bytes));
  return uffd_register(fds.staging, staging, staging_bytes);
}

LiveMachine* LiveMachine::create(const LiveOptions& options, LiveError& error) {
  error = {};
  if (options.ram < 4_MiB) {
    explain(error, "the RAM budget is too small", "4M is the least that the engine can work in");
    return nullptr;
  }
  if (options.swap.size() > LiveStats::MAX_AREAS) {
    explain(error, "too many swap areas", "8 is the most");
    return nullptr;
  }
  if (options.fault_threads == 0 || options.fault_threads > 8) {
    explain(error, "fault_threads is out of range", "1 to 8");
    return nullptr;
  }

  char* control = reserve(page_align_up(sizeof(LiveMachine)) + page_align_up(sizeof(Parts)), PROT_READ | PROT_WRITE);
  if (control == nullptr) {
    explain(error, "the host has no memory", "see ulimit -v and vm.overcommit_memory");
    return nullptr;
  }
  auto* live = ::new (static_cast<void*>(control)) LiveMachine;
  live->options_ = options;
  live->parts_ = ::new (static_cast<void*>(control + page_align_up(sizeof(LiveMachine)))) Parts(*live);
  if (live->start(options, error)) return live;
  destroy(live);
  return nullptr;
}

bool LiveMachine::start(const LiveOptions& options, LiveError& error) {
  Parts& p = *parts_;
  p.frames = pages_in(options.ram);
  const auto frames = static_cast<uint64_t>(p.frames.v);

  // Address space. Limits (ulimit -v) may not allow much: then less is reserved.
  p.arena_bytes = frames << PAGE_SHIFT;
  p.staging_bytes = page_align_up((frames + UffdMmu::SLACK) << PAGE_SHIFT);
  p.arena = reserve(p.arena_bytes, PROT_READ | PROT_WRITE);
  p.staging = reserve_windows(p.staging_bytes, PROT_READ | PROT_WRITE);
  range_bytes_ = (options.address_space.v + WINDOW - 1) & ~(WINDOW - 1);
  const size_t least = std::max(2 * options.ram.v, options.least_address_space.v + WINDOW - 1) & ~(WINDOW - 1);
  while ((range_ = reserve_windows(range_bytes_, PROT_NONE)) == nullptr && range_bytes_ > least)
    range_bytes_ = std::max(range_bytes_ / 2 & ~(WINDOW - 1), least);
  if (p.arena == nullptr || p.staging == nullptr || range_ == nullptr) {
    if (range_ == nullptr) range_bytes_ = 0;
    explain(error, "the host has no address space", "see ulimit -v and vm.overcommit_memory");
    return false;
  }
  for (const auto& [at, bytes] :
       {std::pair{p.arena, p.arena_bytes}, {p.staging, p.staging_bytes}, {range_, range_bytes_}}) {
    host::madvise(at, bytes, MADV_NOHUGEPAGE);
  }

  UffdOpenError why{};
  if (const Result<void> open = open_descriptors(p.fds, range_, range_bytes_, p.staging, p.staging_bytes, why); !open) {
    std::snprintf(error.text, sizeof error.text, "%s (%s): %s", why.what, errno_name(open.error()), why.remedy);
    return false;
  }

  if (!options.ring.empty())
    p.ring = ::new (static_cast<void*>(p.ring_place)) FlowRing(options.ring, options.record_events);

  p.world = ::new (static_cast<void*>(p.world_place)) HostWorld({
      .files = HostWorld::KthreadFiles::own,
      .kthread_start = Parts::close_program_files,
      .kthread_start_data = &p,
  });
  if (const Result<void> started = p.world->start(); !started) {
    explain(error, "the engine's threads cannot be started", started.error());
    p.world = nullptr;
    return false;
  }
  if (p.ring != nullptr) p.world->set_sink(p.ring);

  UffdMmu::Options mmu{.staging = reinterpret_cast<std::byte*>(p.staging),
                       .staging_slots = static_cast<uint32_t>(p.staging_bytes >> PAGE_SHIFT),
                       .start = reinterpret_cast<uint64_t>(range_),
                       .end = reinterpret_cast<uint64_t>(range_) + range_bytes_};
  if (::getrandom(mmu.secret, sizeof mmu.secret, 0) != sizeof mmu.secret) mmu.secret[0] = p.world->now().v;
  p.zram_bytes = zram_metadata(options, p.world->nr_cpus(), p.zram_options);
  mmu.reserve = p.zram_bytes + ENGINE_OVERHEAD + page_align_up(sizeof(Parts));
  if (mmu.reserve + (2 << 20) > options.ram.v) {
    explain(error, "the RAM budget is too small for the engine's own tables", "raise it, or make zram's size smaller");
    return false;
  }
  p.mmu = ::new (static_cast<void*>(p.mmu_place)) UffdMmu(mmu);
  p.mmu->set_descriptors(
      {.user = p.fds.user, .staging = p.fds.staging, .must_wake = options.delivery == Delivery::thread});

  struct Call {
    LiveMachine& live;
    LiveError& error;
    bool ok = false;
  } call{*this, error};
  p.world->mute(options.quiet_boot);
  p.world->enter(
      [](void* arg) {
        auto& c = *static_cast<Call*>(arg);
        c.ok = c.live.boot(c.error);
      },
      &call);
  p.world->mute(false);
  options_.swap = {};  // the caller's
  if (!call.ok) return false;
  if (!start_fault_threads()) {
    explain(error, "the engine's threads cannot be started", "raise the limit on threads (ulimit -u)");
    return false;
  }
  return register_machine(error);
}

/// On an engine stack.
bool LiveMachine::boot(LiveError& error) {
  Parts& p = *parts_;
  MachineOptions o;
  o.layout.ranges[0] = {Pfn(0), p.frames};
  o.layout.nr_ranges = 1;
  o.layout.dma32_end = Pfn(0);  // no device here has a short arm
  o.cpus = std::min(p.world->nr_cpus(), MAX_CPUS);
  o.threads = MachineOptions::Threads::kswapd;  // flushers come with the first file
  bool disk = false;
  for (const SwapSpec& spec : options_.swap) disk = disk || spec.kind == SwapSpec::Kind::file;
  // Where a fault is dear, pages in a row come together from zram too; in a small machine fewer, as what is read for
  // nothing pushes out what is needed. Else, where reading ahead saves no seek, it costs a decompression.
  const unsigned dear = options_.ram < 32_MiB ? 4 : 5;
  o.page_cluster = options_.delivery == Delivery::thread ? dear : disk ? 3 : 0;
  Result<Machine*> machine =
      Machine::create(p.machine_place, *p.world, *p.mmu, reinterpret_cast<std::byte*>(p.arena), o);
  if (!machine) {
    explain(error, "the RAM budget is too small for the machine to start", machine.error());
    return false;
  }
  p.machine = *machine;
  p.boot_managed = p.machine->pages.managed_pages();
  p.mmu->booted(p.machine->pages);
  p.machine->set_executioner(&p);
  p.machine->pages.set_pressure(&p);

  char comm[16] = "program";
  raw_syscall(SYS_prctl, 16 /* PR_GET_NAME */, comm);
  Result<Task*> task = p.machine->task_create(comm, nullptr);
  if (!task) {
    explain(error, "the machine has no memory for its task", task.error());
    return false;
  }
  p.task = *task;
  if (p.ring != nullptr) name_recording();
  Mm& mm = *p.task->mm;
  mm.mmap_base = VirtAddr(reinterpret_cast<uint64_t>(range_) + range_bytes_);
  mm.task_size = mm.mmap_base;
  mm.free_area_cache = mm.mmap_base;
  p.mmu->mm_created(mm);
  // Up to here copies save compressing a page anew; beyond, the frames that they take are worth more.
  if (!disk) p.machine->swap_files.set_copies_limit(PageCount(p.frames.v / 4));
  return start_swap(error);
}

bool LiveMachine::start_swap(LiveError& error) {
  Parts& p = *parts_;
  std::byte* metadata = p.mmu->reserve().data();
  for (const SwapSpec& spec : options_.swap) p.nr_zrams += spec.kind == SwapSpec::Kind::zram ? 1 : 0;
  for (size_t i = 0; i < options_.swap.size(); ++i) {
    const SwapSpec& spec = options_.swap[i];
    Parts::Area& area = p.areas[p.nr_areas];
    BlockDevice* device = nullptr;
    if (spec.kind == SwapSpec::Kind::zram) {
      std::snprintf(area.name, sizeof area.name, "zram%u", p.nr_areas);
      p.zram_options[i].name = area.name;
      const PoolLimits limits = pool_limits(p.nr_zrams, static_cast<unsigned>(options_.swap.size()), p.boot_managed);
      p.zram_options[i].mem_limit = limits.all;
      p.zram_options[i].full_at = limits.steer;
      const size_t bytes = Zram::metadata_needed(p.zram_options[i]);
      if (bytes == 0) {
        explain(error, area.name, "its size is out of range");
        return false;
      }
      Result<Zram*> zram = Zram::create(area.zram_place, p.machine->pool_frames, p.zram_options[i], {metadata, bytes});
      if (!zram) {
        explain(error, area.name, zram.error());
        return false;
      }
      metadata += page_align_up(bytes);
      area.zram = *zram;
      device = *zram;
    } else {
      std::snprintf(area.name, sizeof area.name, "%s", spec.path.c_str());
      FileDeviceOptions file{.path = area.name};
      struct stat st;
      const bool there = ::stat(area.name, &st) == 0;
      if (there && S_ISDIR(st.st_mode)) {
        file.origin = FileOrigin::unnamed;
      } else if (there && S_ISBLK(st.st_mode)) {
        file.origin = FileOrigin::existing;
      } else {
        file.origin = FileOrigin::create;
        file.after_open = FileName::unlink;
      }
      // The program may change its folder before it forks.
      const std::string folder =
          file.origin == FileOrigin::unnamed ? spec.path : spec.path.substr(0, spec.path.rfind('/') + 1);
      char absolute[PATH_MAX];
      if (::realpath(folder.empty() ? "." : folder.c_str(), absolute) != nullptr)
        std::snprintf(area.folder, sizeof area.folder, "%.255s", absolute);
      file.capacity = pages_in(spec.size);
      if (spec.size.v == 0 && file.origin != FileOrigin::existing) file.capacity = pages_in(options_.ram * 4);
      FileDeviceError why;
      Result<FileDevice*> made = FileDevice::create(area.file_place, *p.world, file, why);
      if (!made) {
        std::snprintf(error.text, sizeof error.text, "swap file %s (%s)", why.text, errno_name(made.error()));
        return false;
      }
      area.file = *made;
      device = *made;
    }
    ++p.nr_areas;
    Result<void> header = p.machine->swapon.mkswap(*device);
    if (!header) {
      explain(error, area.name, header.error());
      return false;
    }
    Result<unsigned> type = p.machine->swapon.swapon(*device, SWAP_PRIO_AUTO);
    if (!type) {
      explain(error, area.name, type.error());
      return false;
    }
    area.type = *type;
  }
  return true;
}

void LiveMachine::destroy(LiveMachine* live) {
  Parts& p = *live->parts_;
  live->unregister_machine();
  if (p.world != nullptr) {
    live->stop_fault_threads();
    if (p.machine != nullptr) {
      p.world->enter(
          [](void* arg) {
            Parts& parts = *static_cast<Parts*>(arg);
            parts.live.unmap_all_files();
            parts.machine->shutdown();
            // What kswapd has sent off still points into the machine.
            while (parts.machine->vmstat.node_page_state(NodeStat::nr_writeback) > 0) world().schedule_timeout(1_ms);
            for (unsigned i = 0; i < parts.nr_areas; ++i)
              if (parts.areas[i].file != nullptr) parts.areas[i].file->~FileDevice();
          },
          &p);
    }
    p.world->set_sink(nullptr);
    p.world->stop();
    p.world->~HostWorld();
  }
  uffd_close(p.fds.user);
  uffd_close(p.fds.staging);
  uffd_close(p.fds.stop);
  if (live->range_ != nullptr) ::munmap(live->range_, live->range_bytes_);
  if (p.arena != nullptr) ::munmap(p.arena, p.arena_bytes);
  if (p.staging != nullptr) ::munmap(p.staging, p.staging_bytes);
  ::munmap(live, page_align_up(sizeof(LiveMachine)) + page_align_up(sizeof(Parts)));
}

// ---- Faults ---------------------------------------------------------------------------------------------------------

/// On an engine stack. False: the program is to get SIGBUS for it.
bool LiveMachine::serve(uint64_t address, uint32_t error_code) {
  Parts& p = *parts_;
  const uint64_t page = address & PAGE_MASK;
  switch (p.machine->do_page_fault(*p.task, VirtAddr(address), error_code)) {
    case FaultResult::done: return true;
    case FaultResult::killed: die();
    case FaultResult::sigbus: return false;
    case FaultResult::sigsegv: refuse(page, error_code); return true;
  }
  return false;
}

/// Mapped in the host and not in the machine, or with other rights: the access, repeated, is refused by the host itself.
void LiveMachine::refuse(uint64_t page, uint32_t error_code) {
  Parts& p = *parts_;
  bool readable = false;
  if ((error_code & PF_WRITE) != 0) {
    Mm& mm = *p.task->mm;
    ScopedRead reading(mm.mmap_sem);
    const VmArea* vma = p.machine->vmas.vma_lookup(mm, VirtAddr(page));
    readable = vma != nullptr && (vma->vm_flags & VM_READ) != 0;
  }
  host_mprotect(page, PAGE_SIZE, readable ? PROT_READ : PROT_NONE);
}

bool LiveMachine::serve_signal(uint64_t address, uint32_t error_code) {
  struct Call {
    LiveMachine& live;
    uint64_t address;
    uint32_t error_code;
    bool served = false;
  } call{*this, address, error_code};
  parts_->world->enter(
      [](void* arg) {
        auto& c = *static_cast<Call*>(arg);
        c.served = c.live.serve(c.address, c.error_code);
      },
      &call, parts_->task);
  return call.served;
}

namespace {
/// What a fault thread sleeps on. A message wakes one of the threads that sleep, not all of them as poll() would have
/// it. -1: the host has no descriptor left.
int epoll_of_faults(const LiveMachine::Files& fds) {
  const auto epoll = static_cast<int>(raw_syscall(SYS_epoll_create1, EPOLL_CLOEXEC));
  if (epoll < 0) return -1;
  epoll_event fault{.events = EPOLLIN | EPOLLEXCLUSIVE, .data = {}}, stop{.events = EPOLLIN, .data = {}};
  if (raw_syscall(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, fds.user, &fault) == 0 &&
      raw_syscall(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, fds.stop, &stop) == 0)
    return epoll;
  raw_syscall(SYS_close, epoll);
  return -1;
}
}  // namespace

void LiveMachine::fault_thread(void* arg) {
  auto& live = *static_cast<LiveMachine*>(arg);
  Parts& p = *live.parts_;
  Thread& self = current();
  self.task = p.task;
  if (p.ring != nullptr) p.ring->names().task(self.tid, p.task->pid, self.comm);
  self.flags |= PF_HAS_FILES;  // started after the swap areas
  const int epoll = epoll_of_faults(p.fds);
  while (!kthread_should_stop()) {
    uffd_msg message{};
    const long n = raw_syscall(SYS_read, p.fds.user, &message, sizeof message);
    if (n == -EAGAIN && epoll >= 0) {
      epoll_event event;
      raw_syscall(SYS_epoll_wait, epoll, &event, 1, -1);
      continue;
    }
    if (n == -EAGAIN) {
      pollfd fds[2] = {{p.fds.user, POLLIN, 0}, {p.fds.stop, POLLIN, 0}};
      raw_syscall(SYS_poll, fds, 2, -1);
      continue;
    }
    if (n == -EINTR) continue;
    if (n != sizeof message) bug("reading faults from userfaultfd", __FILE__, __LINE__);
    if (message.event != UFFD_EVENT_PAGEFAULT) continue;
    const uint64_t address = message.arg.pagefault.address;
    const bool write = (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0;
    {
      KthreadPass pass;
      if (!live.serve(address, PF_USER | (write ? PF_WRITE : 0u))) {
        abi::UffdPoison poison{.start = address & PAGE_MASK, .len = PAGE_SIZE, .mode = 0, .updated = 0};
        if (host::ioctl(p.fds.user, abi::IOC_POISON, &poison) < 0) {
          world().printk(
              "a page cannot be read back, and this kernel (before 6.6) has no way to tell the thread alone");
          p.live.die();
        }
      }
      p.mmu->wake(VirtAddr(address));
    }
  }
  if (epoll >= 0) raw_syscall(SYS_close, epoll);
  self.task = nullptr;
}

bool LiveMachine::start_fault_threads() {
  if (options_.delivery != Delivery::thread) return true;
  struct Call {
    LiveMachine& live;
    bool ok = true;
  } call{*this};
  parts_->world->enter(
      [](void* arg) {
        auto& c = *static_cast<Call*>(arg);
        Parts& p = *c.live.parts_;
        for (unsigned i = 0; i < c.live.options_.fault_threads; ++i) {
          p.fault_threads[i] = kthread_run(*p.world, fault_thread, &c.live, "weir-fault");
          if (p.fault_threads[i] == nullptr) c.ok = false;
        }
      },
      &call);
  return call.ok;
}

void LiveMachine::stop_fault_threads() {
  Parts& p = *parts_;
  if (p.fds.stop >= 0) {
    const uint64_t one = 1;
    for (Thread* t : p.fault_threads)
      if (t != nullptr) t->should_stop.store(true, std::memory_order_release);
    raw_syscall(SYS_write, p.fds.stop, &one, sizeof one);
  }
  for (Thread*& t : p.fault_threads) {
    if (t != nullptr) p.world->kthread_stop(*t);
    t = nullptr;
  }
}

// ---- Managed memory -------------------------------------------------------------------------------------------------

bool LiveMachine::inside(const void* address, size_t length) const {
  return contains(address) && length <= static_cast<size_t>(range_ + range_bytes_ - static_cast<const char*>(address));
}

Result<void*> LiveMachine::map(size_t length, int prot, Place place, void* address) {
  if (length == 0 || !prot_valid(prot)) return Errno::inval;
  length = page_align_up(length);
  const bool fixed = place == Place::fixed || place == Place::fixed_noreplace;
  if (length == 0 || length > range_bytes_) return Errno::nomem;
  if (fixed && (!inside(address, length) || (at(address).v & ~PAGE_MASK) != 0)) return Errno::inval;
  if (place == Place::hint && !inside(address, length)) place = Place::anywhere;
  return parts_->in_engine([&]() -> Result<void*> {
    Parts& p = *parts_;
    ScopedLock guard(p.layout);
    Mm& mm = *p.task->mm;
    if (place == Place::fixed_noreplace) {
      ScopedRead reading(mm.mmap_sem);
      if (p.machine->vmas.find_vma_intersection(mm, at(address), at(address) + length) != nullptr) return Errno::exist;
    }
    MmapRequest request{
        .addr = place == Place::anywhere ? VirtAddr(0) : at(address), .length = length, .prot = vm_prot(prot)};
    if (fixed) request.place = MmapRequest::Place::fixed;
    request.extra_flags = VM_NORESERVE;
    const VirtAddr start = WEIR_TRY(p.machine->spaces.mmap(mm, request));
    Errno refused = Errno::ok;
    if (!inside(pointer(start), length)) {
      refused = Errno::nomem;
    } else if (const long r = host_mprotect(start.v, length, prot); r != 0) {
      refused = static_cast<Errno>(-r);
    }
    if (refused != Errno::ok) {
      (void)p.machine->spaces.munmap(mm, start, length);
      return refused;
    }
    return pointer(start);
  });
}

Result<void> LiveMachine::unmap(void* address, size_t length) {
  if ((at(address).v & ~PAGE_MASK) != 0 || length == 0) return Errno::inval;
  length = page_align_up(length);
  if (!inside(address, length)) return Errno::inval;
  return parts_->in_engine([&]() -> Result<void> {
    Parts& p = *parts_;
    ScopedLock guard(p.layout);
    // The host first: from now on nobody gets there, and the place may be handed out again as soon as the machine has
    // it back.
    host_mprotect(at(address).v, length, PROT_NONE);
    return p.machine->spaces.munmap(*p.task->mm, at(address), length);
  });
}

Result<void*> LiveMachine::remap(void* address, size_t old_length, size_t new_length, int flags, void* fixed) {
  old_length = page_align_up(old_length);
  new_length = page_align_up(new_length);
  if ((flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED)) != 0 || old_length == 0 || new_length == 0 ||
      !inside(address, old_length))
    return Errno::inval;
  const bool is_fixed = (flags & MREMAP_FIXED) != 0;
  if (is_fixed && !inside(fixed, new_length)) return Errno::inval;
  const int prot = WEIR_TRY(protection(at(address)));
  if ((prot & PROT_EXEC) != 0) {
    // Code cannot move as long as it is code.
    WEIR_TRY_VOID(protect(address, old_length, PROT_READ | PROT_WRITE));
    Result<void*> now = remap(address, old_length, new_length, flags, fixed);
    const Result<void> back = now ? protect(*now, new_length, prot) : protect(address, old_length, prot);
    if (now && !back) return back.error();
    return now;
  }
  return parts_->in_engine([&]() -> Result<void*> {
    Parts& p = *parts_;
    ScopedLock guard(p.layout);
    Mm& mm = *p.task->mm;
    const VirtAddr now = WEIR_TRY(p.machine->spaces.mremap(
        mm, at(address), old_length, new_length,
        (flags & MREMAP_MAYMOVE) != 0 ? AddressSpaces::MayMove::yes : AddressSpaces::MayMove::no,
        is_fixed ? at(fixed) : VirtAddr(0)));
    if (!inside(pointer(now), new_length)) {
      // Outside what is reserved: the machine's idea of free addresses ends where its range does, so this is a bug.
      bug("mremap left the managed range", __FILE__, __LINE__);
    }
    if (now == at(address)) {
      if (new_length > old_length) host_mprotect(now.v + old_length, new_length - old_length, prot);
      if (new_length < old_length) host_mprotect(now.v + new_length, old_length - new_length, PROT_NONE);
    } else {
      host_mprotect(now.v, new_length, prot);
      host_mprotect(at(address).v, old_length, PROT_NONE);
    }
    return pointer(now);
  });
}

Result<void> LiveMachine::populate(void* address, size_t length, bool write) {
  if (length == 0) return {};
  if (!inside(address, length)) return Errno::fault;
  return parts_->in_engine([&]() -> Result<void> {
    Parts& p = *parts_;
    const VirtAddr end = at(address) + length;
    for (VirtAddr a = at(address).page(); a < end; a = a + PAGE_SIZE) {
      const Pte* pte = p.machine->tables.walk(*p.task->mm, a);
      const Pte now = pte != nullptr ? Pte{__atomic_load_n(&pte->v, __ATOMIC_ACQUIRE)} : Pte{};
      if (pte_present(now) && pte_young(now) && (!write || pte_write(now))) continue;
      switch (p.machine->do_page_fault(*p.task, a, PF_USER | (write ? PF_WRITE : 0u))) {
        case FaultResult::done: break;
        case FaultResult::killed: die();
        default: return Errno::fault;
      }
    }
    return {};
  });
}

Result<void> LiveMachine::give_up(void* address, size_t length) {
  length = page_align_up(length);
  if ((at(address).v & ~PAGE_MASK) != 0 || length == 0 || !inside(address, length)) return Errno::inval;
  return parts_->in_engine([&]() -> Result<void> {
    Parts& p = *parts_;
    ScopedLock guard(p.layout);
    // A mapping without rights that nothing merges with keeps the place from being handed out.
    MmapRequest request{.addr = at(address),
                        .length = length,
                        .prot = 0,
                        .place = MmapRequest::Place::fixed,
                        .extra_flags = VM_IO | VM_DONTEXPAND};
    WEIR_TRY(p.machine->spaces.mmap(*p.task->mm, request));
    return {};
  });
}

// ---- What it does ---------------------------------------------------------------------------------------------------

void LiveMachine::stats(LiveStats& out) {
  // before_kill() of the thread that ends the process: on an engine stack already.
  if (const uint32_t dying = parts_->dying.load(std::memory_order_acquire);
      dying != 0 && dying == static_cast<uint32_t>(raw_syscall(SYS_gettid)))
    return count(out);
  (void)parts_->in_engine([&]() -> Result<void> {
    count(out);
    return {};
  });
}

void LiveMachine::count(LiveStats& out) {
  Parts& p = *parts_;
  out = {};
  out.ram_pages = static_cast<uint64_t>(p.frames.v);
  out.managed_pages = static_cast<uint64_t>(p.machine->pages.managed_pages().v);
  const Mm& mm = *p.task->mm;
  out.mapped_pages = static_cast<uint64_t>(mm.total_vm);
  out.rss_pages = static_cast<uint64_t>(mm.get_mm_rss());
  out.swap_pages = static_cast<uint64_t>(mm.rss(RssKind::swapents));
  for (unsigned i = 0; i < static_cast<unsigned>(NodeStat::count); ++i)
    out.node[i] = p.machine->vmstat.node_page_state(static_cast<NodeStat>(i));
  for (unsigned i = 0; i < static_cast<unsigned>(VmEvent::count); ++i)
    out.event[i] = p.machine->vmstat.event(static_cast<VmEvent>(i));
  out.host_resident_pages = p.mmu->resident_pages();
  out.swap_total = p.machine->swap_files.total_swap_pages();
  out.swap_free = p.machine->swap_files.nr_swap_pages();
  out.arch = p.mmu->stats();
  out.nr_areas = p.nr_areas;
  for (unsigned i = 0; i < p.nr_areas; ++i) {
    Parts::Area& from = p.areas[i];
    LiveStats::Area& to = out.areas[i];
    std::memcpy(to.name, from.name, sizeof to.name - 1);
    to.is_zram = from.zram != nullptr;
    if (const SwapInfo* si = p.machine->swap_files.swap_info(from.type)) {
      to.pages = si->pages;
      to.used = __atomic_load_n(&si->inuse_pages, __ATOMIC_RELAXED);
    }
    if (from.zram != nullptr) {
      to.mm_stat = from.zram->mm_stat();
      to.io_stat = from.zram->io_stat();
    }
    const DeviceStats& device = from.zram != nullptr ? from.zram->stats() : from.file->stats();
    to.reads = device.reads.load(std::memory_order_relaxed);
    to.writes = device.writes.load(std::memory_order_relaxed);
    to.read_errors = device.read_errors.load(std::memory_order_relaxed);
    to.write_errors = device.write_errors.load(std::memory_order_relaxed);
  }
}

/// What is true of the whole run, and whose it is; in the thread that the process begins with.
void LiveMachine::name_recording() {
  Parts& p = *parts_;
  FlowNames& names = p.ring->names();
  char text[48];
  const auto number = [&](const char* key, unsigned long long value) {
    std::snprintf(text, sizeof text, "%llu", value);
    names.fact(key, text);
  };
  names.fact("kernel", "4.14");
  names.fact("world", "live");
  number("ram_pages", static_cast<unsigned long long>(p.frames.v));
  number("page_size", PAGE_SIZE);
  std::snprintf(text, sizeof text, "%llu %d %.16s", static_cast<unsigned long long>(p.task->mm->id), p.task->pid,
                p.task->comm);
  names.fact("process", text);
  p.ring->set_process(p.task->pid);
  names.task(current().tid, p.task->pid, p.task->comm);
}

Result<void> LiveMachine::write_recording(int fd, std::string_view ended) {
  if (parts_->ring == nullptr) return Errno::noent;
  if (!write_ring(parts_->ring->memory(), ended, output_to_fd(fd))) return Errno::io;
  return {};
}

Bytes LiveMachine::set_ram(Bytes ram) {
  return *parts_->in_engine([&]() -> Result<Bytes> { return set_ram_inside(ram); });
}

Bytes LiveMachine::set_ram_inside(Bytes ram) {
  Parts& p = *parts_;
  // What boot keeps is part of the budget.
  const PageCount boot = p.frames - p.boot_managed;
  // The pools' part goes with it: what they hold cannot be squeezed out later.
  const PoolLimits limits = pool_limits(p.nr_zrams, p.nr_areas, pages_in(ram) - boot);
  for (unsigned i = 0; i < p.nr_areas; ++i)
    if (p.areas[i].zram != nullptr) p.areas[i].zram->set_mem_limit(limits.all, limits.steer);
  return bytes_of(p.machine->set_ram(pages_in(ram) - boot) + boot);
}

namespace {
class PrintingSink final : public VerifySink {
 public:
  void broken(const char* id, const char* what, uint64_t subject, uint64_t expected, uint64_t found) override {
    ++count;
    LogLine() << "verify: " << id << ": " << what << " (subject " << subject << ", expected " << expected << ", found "
              << found << ")";
  }
  unsigned count = 0;
};
class HostPages final : public UffdMmu::VerifyHost {
 public:
  HostPages(Machine& machine, Mm& mm, PrintingSink& sink) : machine_(machine), mm_(mm), sink_(sink) {}
  void broken(const char* what, uint64_t pfn, uint64_t expected, uint64_t found) override {
    sink_.broken("host-pages", what, pfn, expected, found);
  }
  [[nodiscard]] bool managed(VirtAddr address) override {
    ScopedRead reading(mm_.mmap_sem);
    const VmArea* vma = machine_.vmas.vma_lookup(mm_, address);
    return vma == nullptr || (vma->vm_flags & VM_IO) == 0;
  }

 private:
  Machine& machine_;
  Mm& mm_;
  PrintingSink& sink_;
};
}  // namespace

unsigned LiveMachine::verify() {
  Parts& p = *parts_;
  struct Call {
    Parts& p;
    unsigned broken = 0;
    bool done = false;
  } call{p};
  const auto check = [](void* arg) {
    auto& c = *static_cast<Call*>(arg);
    // What kthreads have sent off ends outside.
    if (c.p.machine->bios.in_flight() != 0) return;
    c.done = true;
    const size_t bytes = page_align_up(c.p.machine->verify_scratch_bytes());
    const long scratch = raw_syscall(SYS_mmap, 0L, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
    if (scratch < 0 && scratch > -4096) return;
    PrintingSink sink;
    c.broken = c.p.machine->verify({reinterpret_cast<std::byte*>(scratch), bytes}, sink);
    raw_syscall(SYS_munmap, scratch, bytes);
    HostPages host(*c.p.machine, *c.p.task->mm, sink);
    c.broken += c.p.mmu->verify(host);
  };
  for (;;) {
    p.world->enter_exclusive(check, &call, p.task);
    if (call.done) return call.broken;
    p.world->enter([](void*) { (void)world().schedule_timeout(1_ms); }, nullptr, p.task);
  }
}

}  // namespace weir
