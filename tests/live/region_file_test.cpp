// tests/live/region_file_test.cpp: files in regions, by the C++ and the C interface. What mappings do: live_file_test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <thread>

#include "live/host_file.hpp"
#include "weir/weir.hpp"

namespace {

using weir::MappedFile;
using weir::Region;
using weir::test::byte_of;
using weir::test::HostFile;

constexpr uint64_t MiB = uint64_t{1} << 20;
constexpr size_t PAGE = 4096;
constexpr int READ = PROT_READ, WRITE = PROT_READ | PROT_WRITE;

Region must_create() {
  auto region = Region::create({.size = 16 * MiB, .ram = 8 * MiB});
  if (!region) {
    ADD_FAILURE() << region.error();
    std::abort();
  }
  return std::move(*region);
}

TEST(RegionFile, map_store_sync_close) {
  constexpr uint64_t SIZE = 24 * MiB;
  HostFile file(SIZE);
  Region region = must_create();
  auto mapped = region.map_file(file.fd(), 0, SIZE, WRITE, MAP_SHARED);
  ASSERT_TRUE(mapped) << mapped.error();
  EXPECT_EQ(mapped->size(), SIZE);
  for (uint64_t page = 0; page < SIZE; page += PAGE) {
    ASSERT_EQ(mapped->bytes()[page + 1], byte_of(1, page + 1));
    mapped->bytes()[page] = byte_of(2, page);
    region.bytes()[page % region.size()] = std::byte{1};
  }
  const weir::RegionStats s = region.stats();
  EXPECT_GT(s.file_pages, 0u);
  EXPECT_LE(s.host_resident_pages, s.ram_pages);
  EXPECT_EQ(mapped->advise(MADV_SEQUENTIAL), 0);
  EXPECT_EQ(mapped->advise(MADV_WIPEONFORK), EINVAL);
  EXPECT_EQ(mapped->sync(MS_SYNC), 0);
  EXPECT_EQ(region.stats().dirty_pages, 0u);
  for (uint64_t page = 0; page < SIZE; page += PAGE) ASSERT_EQ(file.byte(page), byte_of(2, page));
  EXPECT_EQ(mapped->close(), 0);
  EXPECT_EQ(mapped->close(), 0) << "once";
  EXPECT_EQ(region.stats().file_pages, 0u);
  const auto refused = region.map_file(-1, 0, PAGE, READ, MAP_SHARED);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error(), std::strerror(EBADF));
}

TEST(RegionFile, two_regions_on_one_file_see_what_the_other_has_synced) {
  HostFile file(64 * PAGE);
  Region a = must_create(), b = must_create();
  auto in_a = a.map_file(file.fd(), 0, 64 * PAGE, WRITE, MAP_SHARED);
  auto in_b = b.map_file(file.fd(), 0, 64 * PAGE, READ, MAP_SHARED);
  ASSERT_TRUE(in_a && in_b);
  EXPECT_EQ(in_b->bytes()[3 * PAGE], byte_of(1, 3 * PAGE));
  in_a->bytes()[3 * PAGE] = std::byte{77};
  EXPECT_EQ(in_a->sync(MS_SYNC), 0);
  EXPECT_EQ(in_b->sync(MS_INVALIDATE), 0);
  EXPECT_EQ(in_b->bytes()[3 * PAGE], std::byte{77});
}

TEST(RegionFile, a_region_that_goes_writes_what_was_stored) {
  HostFile file(64 * PAGE);
  {
    Region region = must_create();
    void* at = nullptr;
    auto mapped = region.map_file(file.fd(), PAGE, 8 * PAGE, WRITE, MAP_SHARED);
    ASSERT_TRUE(mapped);
    at = mapped->data();
    static_cast<std::byte*>(at)[5] = std::byte{9};
    // Moved, the mapping goes with its new owner, before the region.
    const MappedFile owner = std::move(*mapped);
    EXPECT_EQ(owner.data(), at);
  }
  EXPECT_EQ(file.byte(PAGE + 5), std::byte{9});
}

TEST(RegionFile, the_least_ram_is_enough_to_store_to_a_file_many_times_as_large) {
  constexpr uint64_t SIZE = 32 * MiB;
  HostFile file(SIZE);
  auto region = Region::create({.size = MiB, .ram = 4 * MiB, .swap = {"none"}});
  ASSERT_TRUE(region) << region.error();
  auto mapped = region->map_file(file.fd(), 0, SIZE, WRITE, MAP_SHARED);
  ASSERT_TRUE(mapped) << mapped.error();
  std::thread other([&] {
    for (uint64_t page = 0; page < SIZE; page += 2 * PAGE) mapped->bytes()[page] = byte_of(2, page);
  });
  for (uint64_t page = PAGE; page < SIZE; page += 2 * PAGE) mapped->bytes()[page] = byte_of(2, page);
  other.join();
  for (uint64_t page = 0; page < SIZE; page += PAGE) {
    ASSERT_EQ(mapped->bytes()[page], byte_of(2, page));
    ASSERT_EQ(mapped->bytes()[page + 1], byte_of(1, page + 1));
  }
  EXPECT_EQ(mapped->close(), 0);
  for (uint64_t page = 0; page < SIZE; page += PAGE) ASSERT_EQ(file.byte(page), byte_of(2, page));
}

TEST(RegionFileC, map_sync_advise_unmap_and_what_is_refused) {
  HostFile file(64 * PAGE);
  weir_region_options o;
  weir_region_options_init(&o);
  o.size = MiB;
  o.ram = 8 * MiB;
  char why[512];
  weir_region* region = weir_region_create(&o, why, sizeof why);
  ASSERT_NE(region, nullptr) << why;
  void* at = nullptr;
  EXPECT_EQ(weir_region_map_file(nullptr, file.fd(), 0, PAGE, READ, MAP_SHARED, &at), EINVAL);
  EXPECT_EQ(weir_region_map_file(region, file.fd(), 0, PAGE, READ, MAP_SHARED, nullptr), EINVAL);
  EXPECT_EQ(weir_region_map_file(region, file.fd(), 0, PAGE, READ, MAP_SHARED | MAP_FIXED, &at), EINVAL);
  EXPECT_EQ(weir_region_map_file(region, file.fd(), 7, PAGE, READ, MAP_SHARED, &at), EINVAL);
  EXPECT_EQ(at, nullptr);
  ASSERT_EQ(weir_region_map_file(region, file.fd(), 0, 64 * PAGE, WRITE, MAP_SHARED, &at), 0);
  auto* bytes = static_cast<std::byte*>(at);
  EXPECT_EQ(bytes[PAGE], byte_of(1, PAGE));
  bytes[PAGE] = std::byte{3};
  EXPECT_EQ(weir_region_sync_file(region, at, 64 * PAGE, MS_SYNC), 0);
  EXPECT_EQ(file.byte(PAGE), std::byte{3});
  EXPECT_EQ(weir_region_sync_file(region, at, 64 * PAGE, MS_SYNC | MS_ASYNC), EINVAL);
  EXPECT_EQ(weir_region_advise_file(region, at, 64 * PAGE, MADV_WILLNEED), 0);
  EXPECT_EQ(weir_region_unmap_file(region, bytes + 1, PAGE), EINVAL);
  EXPECT_EQ(weir_region_unmap_file(region, weir_region_data(region), PAGE), EINVAL);
  // A part, then all.
  EXPECT_EQ(weir_region_unmap_file(region, bytes + 8 * PAGE, 8 * PAGE), 0);
  EXPECT_EQ(bytes[7 * PAGE], byte_of(1, 7 * PAGE));
  EXPECT_EQ(bytes[16 * PAGE], byte_of(1, 16 * PAGE));
  EXPECT_EQ(weir_region_sync_file(region, at, 64 * PAGE, MS_SYNC), ENOMEM);
  EXPECT_EQ(weir_region_unmap_file(region, at, 64 * PAGE), 0);
  weir_region_destroy(region);
}

}  // namespace
