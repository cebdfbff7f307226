// tests/live/live_file.hpp: a live machine to map files into, and what its tests ask of bytes.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "live/host_file.hpp"
#include "live/live_fixture.hpp"

namespace weir::test {

constexpr size_t PAGE = 4096;
constexpr int READ = PROT_READ, WRITE = PROT_READ | PROT_WRITE;

/// A machine for each test, in both deliveries where the host allows it; all is as it should be when it ends.
class LiveFile : public LiveFixture<testing::TestWithParam<Delivery>> {
 protected:
  static constexpr Bytes RAM = 16_MiB;
  void SetUp() override { make({"zram", "file:/var/tmp:64M"}, RAM, GetParam(), {.quiet_boot = true}); }

  std::byte* map(const HostFile& file, uint64_t offset, size_t length, int prot = WRITE,
                 LiveMachine::Sharing sharing = LiveMachine::Sharing::shared) {
    Result<void*> mapped = live->map_file(file.fd(), offset, length, prot, sharing);
    EXPECT_TRUE(mapped) << errno_name(mapped.error());
    return mapped ? static_cast<std::byte*>(*mapped) : nullptr;
  }
  Errno sync(void* at, size_t length, int flags = MS_SYNC) { return live->sync_file(at, length, flags).error(); }
  Errno unmap(void* at, size_t length) { return live->unmap_file(at, length).error(); }
  /// Bytes of [at, at + n) that are not those of `seed` from `pos` on.
  static uint64_t wrong(const std::byte* at, uint64_t n, uint64_t pos, uint64_t seed = 1) {
    uint64_t found = 0;
    for (uint64_t i = 0; i < n; ++i) found += at[i] != byte_of(seed, pos + i) ? 1 : 0;
    return found;
  }
  static uint64_t wrong(const HostFile& file, uint64_t pos, uint64_t n, uint64_t seed) {
    const std::vector<std::byte> now = file.bytes(pos, n);
    return wrong(now.data(), now.size(), pos, seed) + (n - now.size());
  }
  static void store(std::byte* at, uint64_t n, uint64_t pos, uint64_t seed) {
    for (uint64_t i = 0; i < n; ++i) at[i] = byte_of(seed, pos + i);
  }
  /// Anonymous memory that pushes everything else out.
  void press() {
    const size_t bytes = 2 * RAM.v;
    Result<void*> at = live->map(bytes, WRITE);
    ASSERT_TRUE(at);
    for (size_t i = 0; i < bytes; i += PAGE) static_cast<std::byte*>(*at)[i] = std::byte{1};
    ASSERT_TRUE(live->unmap(*at, bytes));
  }
};

}  // namespace weir::test
