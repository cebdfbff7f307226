// src/mm/oom_reaper.hpp
//
// A kthread that takes the memory of OOM victims that do not come to their end: they hang in I/O, say.
//
//   wake_oom_reaper: queued --> oom_reap_task: mmap_sem to be had?
//                                 no:   10 times 0.1 s later
//                                 yes:  private anonymous memory goes, but what is locked --> Mm::oom_skip: the killer
//                                       may look at others
//
// exit_mmap sets oom_skip too, with mmap_sem held for writing: the two never work on one Mm at a time.
// Linux: mm/oom_kill.c 4.14. Earlier profiles have none.
#pragma once

#include "mm/mmap.hpp"
#include "mm/oom_kill.hpp"

namespace weir {

class OomReaper final : public ReapsVictims {
 public:
  OomReaper(AddressSpaces& spaces, Memory& memory) : spaces_(spaces), memory_(memory) {}
  /// Errors: ENOMEM, no thread.
  Result<void> start(World& world);
  /// Waits for what it is doing; what is queued is left to the victims.
  void stop();
  void wake_oom_reaper(Task& victim) override;
  /// It has something in its hands or before it: an Mm that nobody else may have any more.
  [[nodiscard]] bool busy() const { return pending_.load(std::memory_order_acquire) != 0; }

 private:
  static void oom_reaper(void* self);
  void oom_reap_task(Mm& mm);
  bool __oom_reap_task_mm(Mm& mm);
  Mm* next();
  void done_with(Mm& mm);

  AddressSpaces& spaces_;
  Memory& memory_;
  Thread* thread_ = nullptr;
  SpinLock lock_{LockRank::leaf};
  MmReapList queue_ WEIR_GUARDED_BY(lock_);  // each counted (mmgrab)
  std::atomic<int32_t> pending_{0};          ///< queued, or in work
  WaitQueue wait_;
};

}  // namespace weir
