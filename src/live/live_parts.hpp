// src/live/live_parts.hpp: what a LiveMachine is made of; for the live_*.cpp only.
#pragma once

#include <sys/mman.h>
#include <sys/stat.h>

#include <new>
#include <utility>

#include "arch/uffd/uffd_mmu.hpp"
#include "arch/uffd/uffd_open.hpp"
#include "base/raw_syscall.hpp"
#include "block/file_device.hpp"
#include "kernel/host/host_world.hpp"
#include "live/live_machine.hpp"
#include "mm/machine.hpp"
#include "record/ring.hpp"

namespace weir {

inline VirtAddr at(const void* address) { return VirtAddr(reinterpret_cast<uint64_t>(address)); }
inline void* pointer(VirtAddr address) { return reinterpret_cast<void*>(address.v); }
inline uint64_t vm_prot(int prot) {
  return ((prot & PROT_READ) != 0 ? uint64_t{VM_READ} : 0) |
         ((prot & PROT_WRITE) != 0 ? uint64_t{VM_WRITE | VM_READ} : 0) |
         ((prot & PROT_EXEC) != 0 ? uint64_t{VM_EXEC | VM_READ} : 0);
}
inline long host_mprotect(uint64_t start, uint64_t length, int prot) {
  return raw_syscall(SYS_mprotect, start, length, prot);
}

/// Lies in memory of its own, mapped by create(). Set up in this order, taken down in the other.
struct LiveMachine::Parts final : Executioner, Pressure {
  explicit Parts(LiveMachine& l) : live(l) {}
  void deliver_sigkill(Task& task) override;
  void panic(const char* why) override;
  // The machine's, but that the budget may grow before anybody is killed.
  PageCount try_to_free_pages(Order order, gfp_t gfp) override;
  void wakeup_kswapd(ZoneType classzone, Order order) override;
  bool out_of_memory(const OomControl& control) override;
  [[nodiscard]] PageCount zone_reclaimable_pages() const override;
  /// The task has got a fatal signal, and its thread is outside.
  [[noreturn]] void enter_and_die() {
    for (;;) world->enter([](void* l) { static_cast<LiveMachine*>(l)->die(); }, &live);
  }

  /// Runs fn() in the engine for a program thread, and gives back what it returns.
  template <class Fn>
  auto in_engine(Fn fn) {
    using R = decltype(fn());
    alignas(R) std::byte place[sizeof(R)];
    struct Call {
      Fn& fn;
      std::byte* place;
    } call{fn, place};
    world->enter(
        [](void* arg) {
          auto& c = *static_cast<Call*>(arg);
          ::new (static_cast<void*>(c.place)) R(c.fn());
        },
        &call, task);
    if (task->sigkill.load(std::memory_order_acquire)) enter_and_die();
    return R(std::move(*std::launder(reinterpret_cast<R*>(place))));
  }

  /// First in each kthread: what it does not need of the program's descriptors.
  static void close_program_files(void* parts);

  LiveMachine& live;
  PageCount frames{};
  PageCount boot_managed{};  ///< what the allocator had to give at the start
  char* arena = nullptr;
  char* staging = nullptr;
  size_t arena_bytes = 0, staging_bytes = 0;
  Files fds;
  FlowRing* ring = nullptr;
  HostWorld* world = nullptr;
  UffdMmu* mmu = nullptr;
  Machine* machine = nullptr;
  Task* task = nullptr;  ///< the program: all its threads are one task
  Thread* fault_threads[8] = {};
  std::atomic<uint32_t> dying{0};  ///< id of the thread that ends the process
  /// Mappings change in the machine and in the host under this one.
  Mutex layout{LockRank::layout};

  size_t zram_bytes = 0;
  ZramOptions zram_options[LiveStats::MAX_AREAS];
  struct Area {
    alignas(Zram) std::byte zram_place[sizeof(Zram)];
    alignas(FileDevice) std::byte file_place[sizeof(FileDevice)];
    Zram* zram = nullptr;
    FileDevice* file = nullptr;
    unsigned type = 0;
    int copy = -1;          ///< during a fork
    char folder[256] = {};  ///< where a forked child's copy is made
    char name[256] = {};
  } areas[LiveStats::MAX_AREAS];
  unsigned nr_areas = 0, nr_zrams = 0;

  /// Files that are mapped; layout lock. As many as writeback tells devices apart: a place's flusher stays with it.
  struct MappedFile {
    alignas(FileDevice) std::byte device_place[sizeof(FileDevice)];
    FileDevice* device = nullptr;  ///< null: the place is free
    Inode* inode = nullptr;        ///< with a reference
  } files[MAX_FILES];
  static_assert(MAX_FILES < MAX_BDIS);
  bool has_flusher = false;  // layout lock

  alignas(FlowRing) std::byte ring_place[sizeof(FlowRing)];
  alignas(HostWorld) std::byte world_place[sizeof(HostWorld)];
  alignas(UffdMmu) std::byte mmu_place[sizeof(UffdMmu)];
  alignas(Machine) std::byte machine_place[sizeof(Machine)];
};

}  // namespace weir
