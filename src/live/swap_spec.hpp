// src/live/swap_spec.hpp
//
// Swap areas as people write them:
//
//   zram[:lz4|zstd[:SIZE]]   compressed pages inside the RAM budget; SIZE: what may be stored, before compression
//   file:PATH[:SIZE]         PATH a directory: a nameless file in it
//                            a new name: made with mode 0600 and unlinked at once
//                            a block device: used as it is
//   none                     no swap; alone
//
// SIZE: 4096, 256M, 4G, or a share of the RAM budget: 200%. Ordinary C++: used before an engine runs.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/units.hpp"
#include "block/zcomp.hpp"

namespace weir {

struct SwapSpec {
  enum class Kind : uint8_t { zram, file };
  Kind kind = Kind::zram;
  Compressor algorithm = Compressor::lz4;  ///< zram
  std::string path{};                      ///< file
  /// Bytes; 0: the default. zram: 4 times the RAM, of which the pool takes at most 60 % of the memory, 85 % where there
  /// is no other area. file: 4 times the RAM; a block device: all of it.
  Bytes size{};
  friend bool operator==(const SwapSpec&, const SwapSpec&) = default;
};

/// Why a specification was refused, for a person: what, where, and how to mend it.
struct SwapSpecError {
  std::string text;
};

/// The areas of one `--swap` option; `none` is an empty list. `ram`: what a share is a share of.
[[nodiscard]] std::variant<std::vector<SwapSpec>, SwapSpecError> parse_swap_spec(std::string_view text, Bytes ram);
/// The same for several options, first = used first. `none` beside others is refused. No option at all: zram.
[[nodiscard]] std::variant<std::vector<SwapSpec>, SwapSpecError> parse_swap_specs(
    std::span<const std::string_view> texts, Bytes ram);

}  // namespace weir
