// Sizes and times as people write them.
#include "base/parse.hpp"

#include <gtest/gtest.h>

namespace weir {
namespace {

TEST(ParseSize, TakesBinarySuffixesInEitherCaseWithOrWithoutB) {
  for (const char* text : {"64M", "64m", "64MB", "64MiB", "67108864", "67108864B", "65536k"})
    EXPECT_EQ(parse_size(text).value_or(Bytes(0)).v, uint64_t{64} << 20) << text;
  EXPECT_EQ(parse_size("1.5G").value_or(Bytes(0)).v, (uint64_t{3} << 30) / 2);
  EXPECT_EQ(parse_size("16T").value_or(Bytes(0)).v, uint64_t{16} << 40);
}

TEST(ParseSize, APercentageNeedsAWhole) {
  EXPECT_EQ(parse_size("50%", Bytes(1000)).value_or(Bytes(0)).v, 500u);
  EXPECT_EQ(parse_size("12.5%", Bytes(1000)).value_or(Bytes(0)).v, 125u);
  EXPECT_FALSE(parse_size("50%").has_value());
}

TEST(ParseSize, RefusesWhatIsNoSize) {
  for (const char* text :
       {"", "M", "-1", "1x", "1.M", "64 M", "99999999999999999999", "99999999999T", "1MM", "0x10", "1%%"})
    EXPECT_FALSE(parse_size(text, Bytes(100)).has_value()) << text;
}

TEST(ParseDuration, TakesUnitsAndBareSeconds) {
  EXPECT_EQ(parse_duration("2").value_or(Nanos(0)).v, 2000000000u);
  EXPECT_EQ(parse_duration("200ms").value_or(Nanos(0)).v, 200000000u);
  EXPECT_EQ(parse_duration("1.5us").value_or(Nanos(0)).v, 1500u);
  EXPECT_EQ(parse_duration("7ns").value_or(Nanos(0)).v, 7u);
  EXPECT_FALSE(parse_duration("7h").has_value());
  EXPECT_FALSE(parse_duration("").has_value());
}

}  // namespace
}  // namespace weir
