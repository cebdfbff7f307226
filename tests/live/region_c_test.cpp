// tests/live/region_c_test.cpp: the C interface of regions.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>

#include "weir/weir.h"

namespace {

constexpr uint64_t MiB = uint64_t{1} << 20;

TEST(RegionC, create_use_count_destroy) {
  weir_region_options o;
  weir_region_options_init(&o);
  o.size = 32 * MiB;
  o.ram = 8 * MiB;
  const char* const swap[] = {"zram"};
  o.swap = swap;
  o.nr_swap = 1;
  char why[512];
  weir_region* region = weir_region_create(&o, why, sizeof why);
  ASSERT_NE(region, nullptr) << why;
  EXPECT_EQ(weir_region_size(region), 32 * MiB);
  auto* data = static_cast<char*>(weir_region_data(region));
  for (uint64_t at = 0; at < 32 * MiB; at += 4096) std::memset(data + at, static_cast<int>(at >> 12), 64);
  for (uint64_t at = 0; at < 32 * MiB; at += 4096) ASSERT_EQ(data[at + 63], static_cast<char>(at >> 12));
  weir_region_statistics s = {};
  EXPECT_EQ(weir_region_stats(region, &s), EINVAL) << "struct_size was not set";
  s.struct_size = sizeof s;
  ASSERT_EQ(weir_region_stats(region, &s), 0);
  EXPECT_EQ(s.ram_pages, 2048u);
  EXPECT_GT(s.pswpout, 2048u);
  EXPECT_GT(s.zram_orig_data_size, 0u);
  EXPECT_EQ(s.resident_pages + s.swapped_pages, 8192u);
  EXPECT_EQ(weir_region_discard(region, 0, 32 * MiB), 0);
  ASSERT_EQ(weir_region_stats(region, &s), 0);
  EXPECT_EQ(s.resident_pages + s.swapped_pages, 0u);
  EXPECT_EQ(data[4096], 0);
  EXPECT_EQ(weir_region_discard(region, 1, 4096), EINVAL);
  EXPECT_EQ(weir_region_discard(region, 31 * MiB, 2 * MiB), ENOMEM);
  EXPECT_EQ(weir_region_populate(region, 0, MiB, 1), 0);
  weir_region_destroy(region);
  weir_region_destroy(nullptr);
}

TEST(RegionC, options_that_were_not_initialized_are_refused) {
  weir_region_options o = {};
  char why[64];
  EXPECT_EQ(weir_region_create(&o, why, sizeof why), nullptr);
  EXPECT_THAT(why, testing::HasSubstr("struct_size"));
  EXPECT_EQ(weir_region_create(nullptr, nullptr, 0), nullptr);
}

}  // namespace
