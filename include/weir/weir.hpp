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
#include <cstring>
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

/// A mapped file: weir_region_map_file and the functions there. Unmaps itself. Moves; does not copy. Not longer than its
/// Region.
class MappedFile {
 public:
  ~MappedFile() { (void)close(); }
  MappedFile(MappedFile&& other) noexcept
      : region_(std::exchange(other.region_, nullptr)), data_(other.data_), size_(other.size_) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(region_, other.region_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] std::span<std::byte> bytes() const {
    return {static_cast<std::byte*>(data_), static_cast<size_t>(size_)};
  }
  /// 0 or an errno. MS_SYNC, MS_ASYNC, MS_INVALIDATE; MADV_….
  int sync(int flags) { return weir_region_sync_file(region_, data_, size_, flags); }
  int advise(int advice) { return weir_region_advise_file(region_, data_, size_, advice); }
  /// Unmaps. 0, or the errno of a write that nobody was told of.
  int close() {
    weir_region* region = std::exchange(region_, nullptr);
    return region != nullptr ? weir_region_unmap_file(region, data_, size_) : 0;
  }

 private:
  friend class Region;
  MappedFile(weir_region* region, void* data, uint64_t size) : region_(region), data_(data), size_(size) {}
  weir_region* region_;
  void* data_;
  uint64_t size_;
};

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
  /// prot, flags: mmap(2)'s. `size` in bytes.
  [[nodiscard]] Expected<MappedFile> map_file(int fd, uint64_t offset, uint64_t size, int prot, int flags) {
    void* data = nullptr;
    if (const int refused = weir_region_map_file(region_, fd, offset, size, prot, flags, &data))
      return Expected<MappedFile>::failure(std::strerror(refused));
    return MappedFile(region_, data, size);
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
