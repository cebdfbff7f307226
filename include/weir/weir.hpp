// include/weir/weir.hpp
//
// More memory than RAM, from C++. See weir.h, of which this is a thin cover.
//
//   weir::Expected<weir::Region> region = weir::Region::create({.size = 4ull << 30, .ram = 1ull << 30, .swap = {"zram",
//   "file:/var/tmp"}}); if (!region) throw std::runtime_error(region.error()); auto* a =
//   static_cast<double*>(region->data());
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "weir/weir.h"

namespace weir {

/// A T, or why there is none: a sentence for a person.
template <class T>
class [[nodiscard]] Expected {
 public:
  Expected(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  static Expected failure(std::string why) { return Expected(std::in_place_index<1>, std::move(why)); }

  [[nodiscard]] bool has_value() const { return state_.index() == 0; }
  explicit operator bool() const { return has_value(); }
  /// Throws std::bad_variant_access where there is none.
  [[nodiscard]] T& value() & { return std::get<0>(state_); }
  [[nodiscard]] T&& value() && { return std::get<0>(std::move(state_)); }
  [[nodiscard]] T& operator*() { return *std::get_if<0>(&state_); }
  [[nodiscard]] T* operator->() { return std::get_if<0>(&state_); }
  [[nodiscard]] const std::string& error() const { return std::get<1>(state_); }

 private:
  Expected(std::in_place_index_t<1> i, std::string why) : state_(i, std::move(why)) {}
  std::variant<T, std::string> state_;
};

enum class RegionDelivery { signal = WEIR_DELIVERY_SIGNAL, thread = WEIR_DELIVERY_THREAD };

struct RegionOptions {
  uint64_t size = 0;                ///< bytes
  uint64_t ram = 0;                 ///< bytes, at least 4 MiB
  std::vector<std::string> swap{};  ///< as weir_region_options::swap; empty: zram
  RegionDelivery delivery = RegionDelivery::signal;
};

using RegionStats = weir_region_statistics;

/// Owns its memory. Moves; does not copy.
class Region {
 public:
  [[nodiscard]] static Expected<Region> create(const RegionOptions& options) {
    std::vector<const char*> swap;
    for (const std::string& s : options.swap) swap.push_back(s.c_str());
    weir_region_options c;
    weir_region_options_init(&c);
    c.size = options.size;
    c.ram = options.ram;
    c.swap = swap.empty() ? nullptr : swap.data();
    c.nr_swap = static_cast<unsigned>(swap.size());
    c.delivery = static_cast<int>(options.delivery);
    char why[512];
    if (weir_region* region = weir_region_create(&c, why, sizeof why)) return Region(region);
    return Expected<Region>::failure(why);
  }
  ~Region() { weir_region_destroy(region_); }
  Region(Region&& other) noexcept : region_(std::exchange(other.region_, nullptr)) {}
  Region& operator=(Region&& other) noexcept {
    std::swap(region_, other.region_);
    return *this;
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  [[nodiscard]] void* data() const { return weir_region_data(region_); }
  [[nodiscard]] uint64_t size() const { return weir_region_size(region_); }
  [[nodiscard]] std::span<std::byte> bytes() const {
    return {static_cast<std::byte*>(data()), static_cast<size_t>(size())};
  }
  /// 0 or an errno; see weir.h.
  int discard(uint64_t offset, uint64_t length) { return weir_region_discard(region_, offset, length); }
  int populate(uint64_t offset, uint64_t length, bool for_writing) {
    return weir_region_populate(region_, offset, length, for_writing ? 1 : 0);
  }
  [[nodiscard]] RegionStats stats() const {
    RegionStats s{};
    s.struct_size = sizeof s;
    weir_region_stats(region_, &s);
    return s;
  }

 private:
  explicit Region(weir_region* region) : region_(region) {}
  weir_region* region_;
};

}  // namespace weir
