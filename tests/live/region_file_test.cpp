// tests/live/region_file_test.cpp: files mapped into a weir::Region.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "weir/weir.hpp"

namespace {

using weir::MappedFile;
using weir::Region;
using weir::RegionDelivery;

constexpr uint64_t MiB = uint64_t{1} << 20;
constexpr size_t PAGE = 4096;
constexpr uint64_t RAM = 16 * MiB;

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
std::byte byte_of(uint64_t seed, uint64_t at) {
  return static_cast<std::byte>(mix(seed * 0x9e3779b97f4a7c15ull + at / 8) >> at % 8 * 8);
}

/// A file of the host's without a name, its bytes byte_of(seed, position).
class HostFile {
 public:
  explicit HostFile(uint64_t size, uint64_t seed = 1, const char* folder = "/var/tmp") {
    std::string name = std::string(folder) + "/weir-region-file-XXXXXX";
    fd_ = mkstemp(name.data());
    EXPECT_GE(fd_, 0);
    name_ = name;
    std::vector<std::byte> some(MiB);
    for (uint64_t at = 0; at < size; at += some.size()) {
      const size_t n = std::min<uint64_t>(some.size(), size - at);
      for (size_t i = 0; i < n; ++i) some[i] = byte_of(seed, at + i);
      EXPECT_EQ(pwrite(fd_, some.data(), n, static_cast<off_t>(at)), static_cast<ssize_t>(n));
    }
  }
  ~HostFile() {
    ::close(fd_);
    unlink(name_.c_str());
  }
  HostFile(const HostFile&) = delete;
  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] const char* name() const { return name_.c_str(); }
  [[nodiscard]] std::vector<std::byte> bytes(uint64_t at, size_t n) const {
    std::vector<std::byte> out(n);
    const ssize_t got = pread(fd_, out.data(), n, static_cast<off_t>(at));
    out.resize(got < 0 ? 0 : static_cast<size_t>(got));
    return out;
  }
  [[nodiscard]] std::byte byte(uint64_t at) const { return bytes(at, 1).at(0); }

 private:
  int fd_ = -1;
  std::string name_;
};

bool userfaultfd_for_system_calls() {
  static const bool can = [] {
    return Region::create({.size = MiB, .ram = 8 * MiB, .delivery = RegionDelivery::thread}).has_value();
  }();
  return can;
}

class RegionFile : public testing::TestWithParam<RegionDelivery> {
 protected:
  void SetUp() override {
    if (GetParam() == RegionDelivery::thread && !userfaultfd_for_system_calls())
      GTEST_SKIP() << "no permission for thread delivery";
  }
  static Region create(uint64_t ram = RAM) {
    auto region =
        Region::create({.size = 32 * MiB, .ram = ram, .swap = {"zram", "file:/var/tmp:128M"}, .delivery = GetParam()});
    if (!region) {
      ADD_FAILURE() << region.error();
      std::abort();
    }
    return std::move(*region);
  }
  static MappedFile must_map(Region& region, int fd, uint64_t offset, uint64_t size, int prot, int flags) {
    auto mapped = region.map_file(fd, offset, size, prot, flags);
    if (!mapped) {
      ADD_FAILURE() << mapped.error();
      std::abort();
    }
    return std::move(*mapped);
  }
};

INSTANTIATE_TEST_SUITE_P(, RegionFile, testing::Values(RegionDelivery::signal, RegionDelivery::thread),
                         [](const auto& info) { return info.param == RegionDelivery::signal ? "signal" : "thread"; });

constexpr int RW = PROT_READ | PROT_WRITE;

TEST_P(RegionFile, four_times_the_ram_is_read_and_every_byte_is_the_files) {
  constexpr uint64_t SIZE = 64 * MiB;
  HostFile file(SIZE);
  Region region = create();
  MappedFile mapped = must_map(region, file.fd(), 0, SIZE, PROT_READ, MAP_SHARED);
  uint64_t wrong = 0;
  for (uint64_t at = 0; at < SIZE; ++at) wrong += mapped.bytes()[at] != byte_of(1, at) ? 1 : 0;
  std::mt19937_64 random(1);
  for (int i = 0; i < 20000; ++i) {
    const uint64_t at = random() % SIZE;
    wrong += mapped.bytes()[at] != byte_of(1, at) ? 1 : 0;
  }
  EXPECT_EQ(wrong, 0u);
  const auto s = region.stats();
  EXPECT_LE(s.host_resident_pages, RAM / PAGE);
  EXPECT_GT(s.pgsteal_kswapd + s.pgsteal_direct, SIZE / PAGE / 2);
}

TEST_P(RegionFile, stores_are_in_the_file_after_msync_and_after_unmapping) {
  constexpr uint64_t SIZE = 48 * MiB;
  HostFile file(SIZE);
  Region region = create();
  {
    MappedFile mapped = must_map(region, file.fd(), 0, SIZE, RW, MAP_SHARED);
    for (uint64_t at = 0; at < SIZE; at += PAGE) mapped.bytes()[at + at / PAGE % PAGE] = byte_of(2, at);
    EXPECT_EQ(mapped.sync(MS_SYNC), 0);
    uint64_t wrong = 0;
    for (uint64_t at = 0; at < SIZE; at += PAGE) wrong += file.byte(at + at / PAGE % PAGE) != byte_of(2, at) ? 1 : 0;
    EXPECT_EQ(wrong, 0u);
    EXPECT_EQ(region.stats().dirty_pages, 0u);
    for (uint64_t at = 0; at < SIZE; at += PAGE) mapped.bytes()[at + at / PAGE % PAGE] = byte_of(3, at);
    EXPECT_EQ(mapped.close(), 0);
  }
  uint64_t wrong = 0;
  for (uint64_t page = 0; page < SIZE; page += PAGE) {
    const std::vector<std::byte> now = file.bytes(page, PAGE);
    for (uint64_t i = 0; i < PAGE; ++i)
      wrong += now[i] != (i == page / PAGE % PAGE ? byte_of(3, page) : byte_of(1, page + i)) ? 1 : 0;
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(region.stats().file_pages, 0u);
}

}  // namespace
