// src/base/units.hpp
//
// Strong types for the numbers that a memory manager must never mix up: frames, addresses, page counts, bytes, orders.
// Arithmetic that makes sense is there (a Pfn plus a PageCount is a Pfn); anything else does not compile.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>

namespace weir {

inline constexpr unsigned PAGE_SHIFT = 12;
inline constexpr uint64_t PAGE_SIZE = uint64_t{1} << PAGE_SHIFT;
inline constexpr uint64_t PAGE_MASK = ~(PAGE_SIZE - 1);

/// A value of unit Tag. Explicit to make, explicit to read (`.v`).
template <class Tag, class Rep>
struct Unit {
  using rep = Rep;
  Rep v{};
  constexpr Unit() = default;
  constexpr explicit Unit(Rep value) : v(value) {}
  friend constexpr auto operator<=>(Unit, Unit) = default;
};

/// Units of which there can be more or fewer: sums and differences stay in the unit.
template <class Tag, class Rep>
struct CountUnit : Unit<Tag, Rep> {
  using Unit<Tag, Rep>::Unit;
  constexpr CountUnit operator+(CountUnit o) const { return CountUnit(this->v + o.v); }
  constexpr CountUnit operator-(CountUnit o) const { return CountUnit(this->v - o.v); }
  constexpr CountUnit operator*(Rep n) const { return CountUnit(this->v * n); }
  constexpr CountUnit operator/(Rep n) const { return CountUnit(this->v / n); }
  constexpr CountUnit& operator+=(CountUnit o) { return this->v += o.v, *this; }
  constexpr CountUnit& operator-=(CountUnit o) { return this->v -= o.v, *this; }
  friend constexpr auto operator<=>(CountUnit, CountUnit) = default;
};

/// A number of 4 KiB pages. Signed, as differences and scan debts are.
using PageCount = CountUnit<struct PageCountTag, int64_t>;
/// Bytes.
using Bytes = CountUnit<struct BytesTag, uint64_t>;
/// Nanoseconds of the machine's clock: virtual time in a simulation, CLOCK_MONOTONIC live.
using Nanos = CountUnit<struct NanosTag, uint64_t>;

/// log2 of a block's size in pages, 0…MAX_ORDER-1.
using Order = Unit<struct OrderTag, uint8_t>;
using NodeId = Unit<struct NodeIdTag, uint8_t>;
using CpuId = Unit<struct CpuIdTag, uint16_t>;

/// Number of a page frame: the frame's place is arena + pfn × 4096.
struct Pfn : Unit<struct PfnTag, uint64_t> {
  using Unit::Unit;
  constexpr Pfn operator+(PageCount n) const { return Pfn(v + static_cast<uint64_t>(n.v)); }
  constexpr PageCount operator-(Pfn o) const { return PageCount(static_cast<int64_t>(v - o.v)); }
  friend constexpr auto operator<=>(Pfn, Pfn) = default;
};

/// An address of a task's address space. Never dereferenced in mm.
struct VirtAddr : Unit<struct VirtAddrTag, uint64_t> {
  using Unit::Unit;
  constexpr VirtAddr operator+(uint64_t bytes) const { return VirtAddr(v + bytes); }
  constexpr VirtAddr operator-(uint64_t bytes) const { return VirtAddr(v - bytes); }
  constexpr uint64_t operator-(VirtAddr o) const { return v - o.v; }
  [[nodiscard]] constexpr VirtAddr page() const { return VirtAddr(v & PAGE_MASK); }
  friend constexpr auto operator<=>(VirtAddr, VirtAddr) = default;
};

[[nodiscard]] constexpr PageCount pages_of(Order order) { return PageCount(int64_t{1} << order.v); }
[[nodiscard]] constexpr Bytes bytes_of(PageCount n) { return Bytes(static_cast<uint64_t>(n.v) << PAGE_SHIFT); }
[[nodiscard]] constexpr PageCount pages_in(Bytes b) { return PageCount(static_cast<int64_t>(b.v >> PAGE_SHIFT)); }
[[nodiscard]] constexpr uint64_t page_align_up(uint64_t v) { return (v + PAGE_SIZE - 1) & PAGE_MASK; }

inline namespace literals {
constexpr Bytes operator""_KiB(unsigned long long n) { return Bytes(n << 10); }
constexpr Bytes operator""_MiB(unsigned long long n) { return Bytes(n << 20); }
constexpr Bytes operator""_GiB(unsigned long long n) { return Bytes(n << 30); }
constexpr Nanos operator""_ns(unsigned long long n) { return Nanos(n); }
constexpr Nanos operator""_us(unsigned long long n) { return Nanos(n * 1000); }
constexpr Nanos operator""_ms(unsigned long long n) { return Nanos(n * 1000000); }
constexpr Nanos operator""_s(unsigned long long n) { return Nanos(n * 1000000000); }
}  // namespace literals

}  // namespace weir
