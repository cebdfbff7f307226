// src/mm/machine.hpp
//
// Everything of one running memory manager, wired. There are no globals: a process can hold many machines.
//
//   Machine::create(place, world, mmu, arena, options):
//     bootmem -> page allocator -> slab -> page tables -> … -> kswapd, flusher
//
// Who may call: any engine thread of its world, unless said otherwise.
#pragma once

#include <span>

#include "mm/exit.hpp"
#include "mm/filemap_io.hpp"
#include "mm/flusher.hpp"
#include "mm/frame_source.hpp"
#include "mm/ksm.hpp"
#include "mm/oom_reaper.hpp"
#include "mm/profile.hpp"
#include "mm/shmem.hpp"
#include "mm/swapfile_unuse.hpp"
#include "mm/vmscan.hpp"

namespace weir {

struct MachineOptions {
  KernelEra kernel = DEFAULT_KERNEL;
  ZoneLayout layout;
  unsigned cpus = 1;
  int swappiness = 60;
  unsigned page_cluster = 3;     ///< log2 of the swap readahead window
  uint64_t min_free_kbytes = 0;  ///< 0: from the size, as Linux does
  unsigned watermark_scale_factor = 10;
  unsigned dirty_background_ratio = 10;
  unsigned dirty_ratio = 0;  ///< 0: the kernel's
  unsigned bio_pool = 256;
  enum class Threads : uint8_t { none, kswapd, all } threads = Threads::all;
};

/// What verify() found. Implementations keep or print it.
class VerifySink {
 public:
  /// An invariant (by id, see verify.cpp's table) does not hold.
  virtual void broken(const char* id, const char* what, uint64_t subject, uint64_t expected, uint64_t found) = 0;

 protected:
  ~VerifySink() = default;
};

class Machine final : private Pressure, private Executioner, private MappedFilePages {
 public:
  /// Boots a machine in `place` (sizeof(Machine) bytes, aligned). `arena`: layout.end() pages of reserved address
  /// space, reading zero. Runs on an engine thread of `world`. Errors: ENOMEM, EINVAL (layout, options).
  static Result<Machine*> create(void* place, World& world, Mmu& mmu, std::byte* arena, const MachineOptions& options);
  /// Stops kthreads. No task runs in it any more. The arena is the caller's.
  void shutdown();

  // ---- tasks
  /// A task with an empty address space. Errors: ENOMEM.
  Result<Task*> task_create(const char* comm, Task* parent);
  /// fork: a child with a copy of the parent's address space. Errors: ENOMEM, ENOSYS (the Mmu has no write protection).
  Result<Task*> task_fork(Task& parent);
  /// The task's address space goes (if nobody shares it), then the task. Called by the task's own thread or when none
  /// runs.
  void task_exit(Task& task, int code);
  /// kill -9: marks it and wakes it; it dies at its next fault or system call.
  void task_kill(Task& task);
  void set_executioner(Executioner* e) { outer_executioner_ = e; }

  /// Who makes memory when it is short: what the allocator was given. For a test that stands between the two.
  [[nodiscard]] Pressure& pressure() { return *this; }

  FaultResult do_page_fault(Task& task, VirtAddr address, uint32_t error_code) {
    return fault.do_page_fault(task, address, error_code);
  }

  /// Changes the frames in circulation (the balloon): to `pages` managed. Returns what is reached after reclaiming; may
  /// sleep.
  PageCount set_ram(PageCount pages);

  // ---- proof
  [[nodiscard]] size_t verify_scratch_bytes();
  /// Checks every invariant by a full scan. Nothing else may run in the machine; all pagevecs and caches are looked
  /// through, not drained. Returns the number of broken invariants.
  unsigned verify(std::span<std::byte> scratch, VerifySink& sink);
  /// The number of invariants that verify() knows, and their ids.
  static unsigned invariant_count();
  static const char* invariant_id(unsigned i);

 private:
  Machine(World& world, Mmu& mmu, const MachineOptions& options);
  Result<void> boot(std::byte* arena, const MachineOptions& options);

  // Pressure
  PageCount try_to_free_pages(Order order, gfp_t gfp) override { return vmscan.try_to_free_pages(order, gfp); }
  void wakeup_kswapd(ZoneType classzone, Order order) override { vmscan.wakeup_kswapd(classzone, order); }
  bool out_of_memory(const OomControl& control) override { return oom.out_of_memory(control); }
  bool fault_out_of_memory(Task& task) override { return oom.fault_out_of_memory(task); }
  [[nodiscard]] PageCount zone_reclaimable_pages() const override { return vmscan.zone_reclaimable_pages(); }
  // Executioner
  void deliver_sigkill(Task& task) override;
  void panic(const char* why) override;
  // MappedFilePages
  int page_mkclean(Page& page) override;
  void unmap_mapping_range(AddressSpace& mapping, uint64_t holebegin, uint64_t holelen, EvenCows even_cows) override {
    memory.unmap_mapping_range(mapping, holebegin, holelen, even_cows);
  }

 public:
  // Rooms, lowest first: each is given only rooms above itself in this list.
  World& world;
  Mmu& mmu;
  const Profile& profile;
  MemMap mem;
  VmStat vmstat;
  Node node;
  Bootmem bootmem;
  PageAllocator pages;
  Slab slab;
  PageTables tables;
  Vmalloc vmalloc;
  Workingset workingset;
  Lru lru;
  Filemap filemap;
  SwapFiles swap_files;
  SwapSlots swap_slots;
  BioSet bios;
  PageIo page_io;
  SwapCache swap_cache;
  Vmas vmas;
  Rmap rmap;
  Memory memory;
  Ksm ksm;
  Fault fault;
  AddressSpaces spaces;
  PageWriteback writeback;
  Buffers buffers;
  FilemapIo files;
  Shmem shmem;
  Flusher flusher;
  Vmscan vmscan;
  SwapOn swapon;
  TaskList tasks;
  OomKiller oom;
  OomReaper oom_reaper;
  Exit exit;
  PoolFrames pool_frames;

 private:
  Pressure* pressure_ = nullptr;
  Executioner* outer_executioner_ = nullptr;
  KmemCache* task_cache_ = nullptr;
  std::atomic<int32_t> next_pid_{1};
  MachineOptions options_;
};

}  // namespace weir
