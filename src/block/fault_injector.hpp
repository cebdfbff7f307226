// src/block/fault_injector.hpp
//
// A device that fails on purpose: it stands before another one and decides, request by request.
//
//   submit_bio --should_fail(fail)--> EIO, the inner device sees nothing
//              --should_fail(delay)--> held --timer--> inner device        a request may pass another on its way in
//   end_io     --should_fail(late)---> held --timer--> the submitter       completions come out of order
//
// Everything it does is a function of the seed and of the order of requests.
//
// Linux: lib/fault-inject.c (FaultAttr is its struct fault_attr), fail_make_request; Documentation/fault-injection.
#pragma once

#include <cstdint>

#include "base/result.hpp"
#include "base/units.hpp"
#include "block/block.hpp"
#include "kernel/locks.hpp"

namespace weir {

/// When to inject. All four must agree, in this order.
struct FaultAttr {
  int64_t times = -1;        ///< so many at most; -1 = no end
  int64_t space = 0;         ///< bytes that pass first
  uint32_t interval = 1;     ///< every so-manieth request that gets here
  uint32_t probability = 0;  ///< percent of those; 0 = never
};

/// splitmix64: the next number of a seed.
[[nodiscard]] uint64_t fault_random(uint64_t& seed);

/// Decides for one request of `size` bytes. `count` and `seed` are the caller's, with `attr` under one lock.
[[nodiscard]] bool should_fail(FaultAttr& attr, uint64_t size, uint64_t& count, uint64_t& seed);

/// Which operations a fault is meant for.
struct FaultOps {
  bool read = true;
  bool write = true;
  bool discard = false;
  [[nodiscard]] bool has(BioOp op) const { return op == BioOp::read ? read : op == BioOp::write ? write : discard; }
};

struct FaultInjectorOptions {
  uint64_t seed = 1;
  FaultAttr fail{};
  FaultOps fail_ops{};
  Errno error = Errno::io;
  /// Requests that reach the inner device later, by shortest…longest.
  FaultAttr delay{};
  FaultOps delay_ops{};
  /// Requests that are done, but whose submitter hears of it later, by shortest…longest.
  FaultAttr late{};
  FaultOps late_ops{};
  Nanos shortest = 10_us;
  Nanos longest = 2_ms;
};

struct FaultInjectorStats {
  uint64_t failed = 0, delayed = 0, late = 0;
  uint64_t not_held = 0;  ///< should have been held, but all places were taken: passed on at once
  unsigned held = 0;      ///< now
};

/// stats() counts requests as they come and the errors made here; the inner device counts its own.
class FaultInjector final : public BlockDevice {
 public:
  /// Requests that can be held at once.
  static constexpr unsigned MAX_HELD = 64;

  /// `inner` outlives this. Made in place: neither copied nor moved.
  FaultInjector(World& world, BlockDevice& inner, const FaultInjectorOptions& options);
  /// No request is under way.
  ~FaultInjector();
  FaultInjector(const FaultInjector&) = delete;
  FaultInjector& operator=(const FaultInjector&) = delete;

  [[nodiscard]] const char* name() const override { return inner_.name(); }
  [[nodiscard]] PageCount capacity() const override { return inner_.capacity(); }
  [[nodiscard]] uint32_t logical_block_size() const override { return inner_.logical_block_size(); }
  void submit_bio(Bio& bio) override;
  [[nodiscard]] bool synchronous() const override { return inner_.synchronous(); }
  /// Faults as above; a delay is time that the CPU spends.
  Result<void> rw_page(BioOp op, uint64_t index, Content content) override;
  void slot_free_notify(uint64_t index) override { inner_.slot_free_notify(index); }
  [[nodiscard]] bool has_room() const override { return inner_.has_room(); }
  [[nodiscard]] bool can_discard() const override { return inner_.can_discard(); }
  [[nodiscard]] bool nonrotational() const override { return inner_.nonrotational(); }
  [[nodiscard]] bool congested() const override { return inner_.congested(); }

  [[nodiscard]] FaultInjectorStats fault_stats() const;
  /// From the next request on: other faults, the same seed's next numbers.
  void set_fail(const FaultAttr& fail);
  void set_delay(const FaultAttr& delay);
  void set_late(const FaultAttr& late);

 private:
  // A request waiting for its timer, on its way in or out; or, while the inner device has it, what was the submitter's
  // in it. `taken` is guarded by lock_; the rest belongs to whoever moves the request on.
  struct Held {
    bool taken = false;
    enum class Step : uint8_t { to_inner, in_inner, to_submitter } step = Step::to_inner;
    Timer timer;
    FaultInjector* injector = nullptr;
    Bio* bio = nullptr;
    void (*end_io)(Bio& bio) = nullptr;
    void* owner = nullptr;
    Nanos late_by{};  // 0: not late
  };
  struct Fault {
    FaultAttr attr;
    uint64_t count = 0;
  };

  Held* take_place() WEIR_REQUIRES(lock_);
  void put_place(Held& held);
  [[nodiscard]] bool decide(Fault& fault, uint64_t size) WEIR_REQUIRES(lock_);
  [[nodiscard]] Nanos random_delay() WEIR_REQUIRES(lock_);
  void count(BioOp op, bool failed);
  void to_inner(Held& held);
  static void inner_end_io(Bio& bio);
  static void timer_function(void* data);

  World& world_;
  BlockDevice& inner_;
  const FaultInjectorOptions options_;
  mutable SpinLock lock_{LockRank::device};
  uint64_t seed_ WEIR_GUARDED_BY(lock_);
  Fault fail_ WEIR_GUARDED_BY(lock_), delay_ WEIR_GUARDED_BY(lock_), late_ WEIR_GUARDED_BY(lock_);
  FaultInjectorStats fault_stats_ WEIR_GUARDED_BY(lock_);
  Held held_[MAX_HELD];
};

}  // namespace weir
