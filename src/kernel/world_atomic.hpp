// src/kernel/world_atomic.hpp
//
// An atomic that belongs to a world. Where one host thread runs the world, nothing can come between a load and the
// store after it, so a read-modify-write is just these two; else it is the hardware's. Loads and stores are
// std::atomic's.
//
// Only for what engine threads of that one world change: who runs elsewhere has no world to ask.
#pragma once

#include <atomic>

#include "kernel/kernel.hpp"

namespace weir {

/// Is this code's host thread the only one that runs its world?
[[nodiscard]] inline bool one_host_thread() {
  const World* w = engine_thread().world;
  return w != nullptr && w->one_host_thread();
}

template <class T>
class WorldAtomic : public std::atomic<T> {
  using Base = std::atomic<T>;

 public:
  using Base::Base;
  using Base::operator=;

  T exchange(T to, std::memory_order order = std::memory_order_seq_cst) {
    return one_host_thread() ? replaced(to) : Base::exchange(to, order);
  }
  bool compare_exchange_strong(T& expected, T to, std::memory_order order = std::memory_order_seq_cst) {
    return one_host_thread() ? replaced_if(expected, to) : Base::compare_exchange_strong(expected, to, order);
  }
  bool compare_exchange_weak(T& expected, T to, std::memory_order order = std::memory_order_seq_cst) {
    return one_host_thread() ? replaced_if(expected, to) : Base::compare_exchange_weak(expected, to, order);
  }
  template <class N>  // ptrdiff_t where T is a pointer
  T fetch_add(N n, std::memory_order order = std::memory_order_seq_cst) {
    return one_host_thread() ? replaced(static_cast<T>(now() + n)) : Base::fetch_add(n, order);
  }
  template <class N>
  T fetch_sub(N n, std::memory_order order = std::memory_order_seq_cst) {
    return one_host_thread() ? replaced(static_cast<T>(now() - n)) : Base::fetch_sub(n, order);
  }
  T fetch_or(T bits, std::memory_order order = std::memory_order_seq_cst) {
    return one_host_thread() ? replaced(static_cast<T>(now() | bits)) : Base::fetch_or(bits, order);
  }
  T fetch_and(T bits, std::memory_order order = std::memory_order_seq_cst) {
    return one_host_thread() ? replaced(static_cast<T>(now() & bits)) : Base::fetch_and(bits, order);
  }

 private:
  [[nodiscard]] T now() const { return this->load(std::memory_order_relaxed); }
  T replaced(T to) {
    const T before = now();
    this->store(to, std::memory_order_relaxed);
    return before;
  }
  bool replaced_if(T& expected, T to) {
    const T before = now();
    if (before == expected) {
      this->store(to, std::memory_order_relaxed);
      return true;
    }
    expected = before;
    return false;
  }
};

}  // namespace weir
