// tests/unit/swap_spec_test.cpp
#include "live/swap_spec.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace {

using namespace weir;
using testing::AllOf;
using testing::HasSubstr;

constexpr Bytes RAM = 64_MiB;

std::vector<SwapSpec> parsed(std::string_view text) {
  auto r = parse_swap_spec(text, RAM);
  if (auto* e = std::get_if<SwapSpecError>(&r)) ADD_FAILURE() << e->text;
  return std::get<std::vector<SwapSpec>>(r);
}
std::string refused(std::string_view text) {
  auto r = parse_swap_spec(text, RAM);
  auto* e = std::get_if<SwapSpecError>(&r);
  return e != nullptr ? e->text : "parsed";
}

SwapSpec zram(Compressor algorithm, Bytes size) {
  return {.kind = SwapSpec::Kind::zram, .algorithm = algorithm, .size = size};
}
SwapSpec file(const char* path, Bytes size) { return {.kind = SwapSpec::Kind::file, .path = path, .size = size}; }

TEST(SwapSpec, zram_with_and_without_what_may_be_left_out) {
  EXPECT_EQ(parsed("zram"), std::vector{zram(Compressor::lz4, Bytes(0))});
  EXPECT_EQ(parsed("zram:zstd"), std::vector{zram(Compressor::zstd, Bytes(0))});
  EXPECT_EQ(parsed("zram:lz4:256M"), std::vector{zram(Compressor::lz4, 256_MiB)});
  EXPECT_EQ(parsed("zram:lz4:150%"), std::vector{zram(Compressor::lz4, 96_MiB)});
}

TEST(SwapSpec, a_file_s_path_may_have_colons) {
  EXPECT_EQ(parsed("file:/var/tmp"), std::vector{file("/var/tmp", Bytes(0))});
  EXPECT_EQ(parsed("file:/var/tmp:4G"), std::vector{file("/var/tmp", 4_GiB)});
  EXPECT_EQ(parsed("file:/a:b/c"), std::vector{file("/a:b/c", Bytes(0))});
  EXPECT_EQ(parsed("file:/a:b:2M"), std::vector{file("/a:b", 2_MiB)});
  EXPECT_EQ(parsed("file:/a:b"), std::vector{file("/a:b", Bytes(0))});
}

TEST(SwapSpec, none_is_no_area_and_nothing_is_zram) {
  EXPECT_TRUE(parsed("none").empty());
  auto all = parse_swap_specs({}, RAM);
  EXPECT_EQ(std::get<std::vector<SwapSpec>>(all), std::vector{zram(Compressor::lz4, Bytes(0))});
  const std::string_view both[] = {"zram", "file:/var/tmp:8M"};
  auto two = parse_swap_specs(both, RAM);
  EXPECT_EQ(std::get<std::vector<SwapSpec>>(two),
            (std::vector{zram(Compressor::lz4, Bytes(0)), file("/var/tmp", 8_MiB)}));
  const std::string_view contradiction[] = {"zram", "none"};
  auto none = parse_swap_specs(contradiction, RAM);
  EXPECT_THAT(std::get<SwapSpecError>(none).text, HasSubstr("stands alone"));
}

TEST(SwapSpec, errors_say_what_where_and_how_to_mend_it) {
  EXPECT_THAT(refused(""), AllOf(HasSubstr("''"), HasSubstr("file:PATH")));
  EXPECT_THAT(refused("disk:/x"), AllOf(HasSubstr("'disk'"), HasSubstr("zram[:lz4|zstd")));
  EXPECT_THAT(refused("zram:"), HasSubstr("nothing follows the colon"));
  EXPECT_THAT(refused("zram:lzo"), AllOf(HasSubstr("'lzo'"), HasSubstr("lz4")));
  EXPECT_THAT(refused("zram:lz4:much"), AllOf(HasSubstr("'much'"), HasSubstr("256M")));
  EXPECT_THAT(refused("zram:lz4:4K"), HasSubstr("too small"));
  EXPECT_THAT(refused("zram:lz4:99999T"), HasSubstr("too large"));
  EXPECT_THAT(refused("file:"), HasSubstr("nothing follows"));
  EXPECT_THAT(refused("file::8M"), HasSubstr("path is missing"));
  EXPECT_THAT(refused("file:/x:8Q"), HasSubstr("not a size"));
}

}  // namespace
