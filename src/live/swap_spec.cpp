// src/live/swap_spec.cpp: see swap_spec.hpp
#include "live/swap_spec.hpp"

#include <fmt/format.h>

#include "base/parse.hpp"

namespace weir {

namespace {

constexpr std::string_view FORMS = "zram[:lz4|zstd[:SIZE]], file:PATH[:SIZE] or none";
constexpr Bytes LEAST = 1_MiB;

using Parsed = std::variant<std::vector<SwapSpec>, SwapSpecError>;

SwapSpecError refuse(std::string_view text, const std::string& why) {
  return {fmt::format("swap '{}': {}", text, why)};
}

/// Nothing if it is no size.
std::optional<Bytes> size_of(std::string_view text, Bytes ram) { return parse_size(text, ram); }

std::variant<Bytes, SwapSpecError> checked_size(std::string_view spec, std::string_view text, Bytes ram) {
  const std::optional<Bytes> size = size_of(text, ram);
  if (!size)
    return refuse(spec, fmt::format("'{}' is not a size; write 256M, 4G or a share of the RAM like 200%", text));
  if (*size < LEAST) return refuse(spec, fmt::format("{} is too small; 1M is the least", text));
  if (*size > Bytes(uint64_t{1} << 46)) return refuse(spec, fmt::format("{} is too large; 64T is the most", text));
  return Bytes(size->v & PAGE_MASK);
}

Parsed parse_zram(std::string_view spec, std::string_view rest, Bytes ram) {
  SwapSpec area;
  if (rest.empty()) return std::vector{area};
  const size_t colon = rest.find(':');
  const std::string_view algorithm = rest.substr(0, colon);
  if (algorithm == "zstd") {
    area.algorithm = Compressor::zstd;
  } else if (algorithm != "lz4") {
    return refuse(spec, fmt::format("'{}' is no compressor; lz4 (fast) or zstd (dense)", algorithm));
  }
  if (colon == std::string_view::npos) return std::vector{area};
  auto size = checked_size(spec, rest.substr(colon + 1), ram);
  if (auto* error = std::get_if<SwapSpecError>(&size)) return *error;
  area.size = std::get<Bytes>(size);
  return std::vector{area};
}

Parsed parse_file(std::string_view spec, std::string_view rest, Bytes ram) {
  SwapSpec area;
  area.kind = SwapSpec::Kind::file;
  // What follows the last colon is a size only if it looks like one: paths may have colons.
  const size_t colon = rest.rfind(':');
  std::string_view path = rest;
  if (colon != std::string_view::npos && rest.find('/', colon) == std::string_view::npos) {
    const std::string_view size = rest.substr(colon + 1);
    if (!size.empty() && size[0] >= '0' && size[0] <= '9') {
      auto checked = checked_size(spec, size, ram);
      if (auto* error = std::get_if<SwapSpecError>(&checked)) return *error;
      area.size = std::get<Bytes>(checked);
      path = rest.substr(0, colon);
    }
  }
  if (path.empty())
    return refuse(spec, "the path is missing; write file:PATH, where PATH is a directory on a disk or a new file");
  if (path.size() > 250) return refuse(spec, "the path is longer than 250 characters");
  area.path = path;
  return std::vector{area};
}

}  // namespace

Parsed parse_swap_spec(std::string_view text, Bytes ram) {
  if (text == "none") return std::vector<SwapSpec>{};
  const size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  const std::string_view rest = colon == std::string_view::npos ? std::string_view{} : text.substr(colon + 1);
  if (colon != std::string_view::npos && rest.empty())
    return refuse(text, fmt::format("nothing follows the colon; write {}", FORMS));
  if (kind == "zram") return parse_zram(text, rest, ram);
  if (kind == "file") return parse_file(text, rest, ram);
  return refuse(text, fmt::format("'{}' is no kind of swap; write {}", kind, FORMS));
}

Parsed parse_swap_specs(std::span<const std::string_view> texts, Bytes ram) {
  if (texts.empty()) return std::vector{SwapSpec{}};
  std::vector<SwapSpec> all;
  for (const std::string_view text : texts) {
    if (text == "none" && texts.size() > 1) return refuse(text, "stands alone; leave the other areas out, or this one");
    auto parsed = parse_swap_spec(text, ram);
    if (auto* error = std::get_if<SwapSpecError>(&parsed)) return *error;
    for (SwapSpec& area : std::get<std::vector<SwapSpec>>(parsed)) all.push_back(std::move(area));
  }
  return all;
}

}  // namespace weir
