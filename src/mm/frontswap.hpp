// src/mm/frontswap.hpp
//
// A store before the swap areas: memory that takes pages when it likes to.
//
//   write:  store asked --takes it--> bit of the slot set, the device sees nothing
//                       --refuses---> the device, as without a store
//   read:   bit set --> from the store, which keeps its copy      else the device
//   slot free, or written anew --> the store's copy goes          swapoff --> all of the area's
//
// The slot stays the page's place: a store may refuse at any time, and only what it took is its own. Invariants: a bit
// is set only for a slot in use; frontswap_pages of an area = its bits. Linux: mm/frontswap.c (3.5 and later),
// Documentation/vm.
#pragma once

#include <atomic>

#include "base/flow.hpp"
#include "base/result.hpp"
#include "block/block.hpp"
#include "mm/pgtable_types.hpp"

namespace weir {

/// A store. `content` is the page where it lies now. Linux: struct frontswap_ops.
class FrontswapOps {
 public:
  /// An area of `slots` slots is being taken into use.
  virtual void init(unsigned type, uint64_t slots) = 0;
  /// Takes a copy. Errors: any; then it must hold nothing for the slot. Page locked; may sleep.
  virtual Result<void> store(unsigned type, uint64_t offset, Content content) = 0;
  /// Gives the bytes that it took; it keeps them. Errors: any, the bytes are lost then. Page locked; may sleep.
  virtual Result<void> load(unsigned type, uint64_t offset, Content content) = 0;
  /// Forgets the slot. The area's lock is held.
  virtual void invalidate_page(unsigned type, uint64_t offset) = 0;
  /// Forgets the area.
  virtual void invalidate_area(unsigned type) = 0;

 protected:
  ~FrontswapOps() = default;
};

/// The areas' bits. Each change returns how many are set now.
class FrontswapMaps {
 public:
  [[nodiscard]] virtual bool frontswap_test(unsigned type, uint64_t offset) const = 0;
  virtual uint64_t frontswap_set(unsigned type, uint64_t offset) = 0;
  virtual uint64_t frontswap_clear(unsigned type, uint64_t offset) = 0;

 protected:
  ~FrontswapMaps() = default;
};

class Frontswap {
 public:
  explicit Frontswap(FrontswapMaps& maps) : maps_(maps) {}
  Frontswap(const Frontswap&) = delete;
  Frontswap& operator=(const Frontswap&) = delete;

  /// Before the first swapon; areas taken into use later go through it. Null: none (areas in use keep none).
  void frontswap_register_ops(FrontswapOps* ops) { ops_ = ops; }
  [[nodiscard]] bool enabled() const { return ops_ != nullptr; }
  /// What is stored is written to the device too, and read from the store.
  void frontswap_writethrough(bool on) { writethrough_.store(on, std::memory_order_relaxed); }

  void init(unsigned type, uint64_t slots) {
    if (enabled()) __frontswap_init(type, slots);
  }
  /// True: the device need not be written. An older copy is gone in any case.
  bool store(SwpEntry entry, Content content) { return enabled() && __frontswap_store(entry, content); }
  [[nodiscard]] bool has(SwpEntry entry) const {
    return enabled() && maps_.frontswap_test(swp_type(entry), swp_offset(entry));
  }
  /// The slot's bytes, if the store has them. Errors: ENOENT (it has not), else the store's own.
  Result<void> load(SwpEntry entry, Content content) {
    if (!has(entry)) return Errno::noent;
    return __frontswap_load(entry, content);
  }
  void invalidate_page(unsigned type, uint64_t offset) {
    if (enabled() && maps_.frontswap_test(type, offset)) __frontswap_invalidate_page(type, offset);
  }
  void invalidate_area(unsigned type) {
    if (enabled()) __frontswap_invalidate_area(type);
  }

  struct Stats {
    std::atomic<uint64_t> loads{0}, succ_stores{0}, failed_stores{0}, invalidates{0};
  };
  [[nodiscard]] const Stats& stats() const { return stats_; }

 private:
  void __frontswap_init(unsigned type, uint64_t slots);
  bool __frontswap_store(SwpEntry entry, Content content);
  Result<void> __frontswap_load(SwpEntry entry, Content content);
  void __frontswap_invalidate_page(unsigned type, uint64_t offset);
  void __frontswap_invalidate_area(unsigned type);

  FrontswapMaps& maps_;
  FrontswapOps* ops_ = nullptr;  // set when the machine is wired
  std::atomic<bool> writethrough_{false};
  Stats stats_;
};

}  // namespace weir
