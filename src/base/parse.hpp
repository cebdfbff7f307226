// src/base/parse.hpp
//
// Sizes and times as people write them: 4096, 64K, 256M, 4G, 1.5G, 50%; 10s, 200ms, 50us, 7ns. Suffixes are binary, in
// either case, with or without "B" or "iB".
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/units.hpp"

namespace weir {

/// Bytes, or nothing if `text` is not a size. "N%" is a share of `whole` (nothing if whole is 0). No sign, no overflow.
[[nodiscard]] std::optional<Bytes> parse_size(std::string_view text, Bytes whole = Bytes(0));
/// Nanoseconds, or nothing. A bare number is seconds.
[[nodiscard]] std::optional<Nanos> parse_duration(std::string_view text);

}  // namespace weir
