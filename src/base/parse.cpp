// src/base/parse.cpp: see parse.hpp
#include "base/parse.hpp"

namespace weir {

namespace {

struct Number {
  uint64_t whole = 0;
  uint64_t millionths = 0;  // the part behind the point
  std::string_view rest;
};

std::optional<Number> number(std::string_view text) {
  Number n;
  size_t at = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    if (__builtin_mul_overflow(n.whole, 10, &n.whole)) return {};
    if (__builtin_add_overflow(n.whole, static_cast<uint64_t>(text[at] - '0'), &n.whole)) return {};
    ++at;
  }
  if (at == 0) return {};
  if (at < text.size() && text[at] == '.') {
    ++at;
    uint64_t place = 100000;
    const size_t first = at;
    for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at, place /= 10)
      n.millionths += place * static_cast<uint64_t>(text[at] - '0');
    if (at == first) return {};
  }
  n.rest = text.substr(at);
  return n;
}

std::optional<uint64_t> scaled(const Number& n, uint64_t unit) {
  uint64_t whole = 0;
  if (__builtin_mul_overflow(n.whole, unit, &whole)) return {};
  // The largest unit is 2^40: less than 10^6 of them, in millionths, fit.
  if (__builtin_add_overflow(whole, n.millionths * unit / 1000000, &whole)) return {};
  return whole;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

std::optional<Bytes> parse_size(std::string_view text, Bytes whole) {
  const std::optional<Number> n = number(text);
  if (!n) return {};
  std::string_view rest = n->rest;
  if (rest == "%") {
    if (whole.v == 0) return {};
    const unsigned __int128 millionths = static_cast<unsigned __int128>(n->whole) * 1000000 + n->millionths;
    const unsigned __int128 bytes = millionths * whole.v / 100000000;
    if (bytes > UINT64_MAX) return {};
    return Bytes(static_cast<uint64_t>(bytes));
  }
  unsigned shift = 0;
  if (!rest.empty()) {
    switch (lower(rest[0])) {
      case 'b': break;
      case 'k': shift = 10; break;
      case 'm': shift = 20; break;
      case 'g': shift = 30; break;
      case 't': shift = 40; break;
      default: return {};
    }
    if (shift != 0) rest.remove_prefix(1);
    const bool ends_in_b = (rest.size() == 1 && lower(rest[0]) == 'b') ||
                           (rest.size() == 2 && lower(rest[0]) == 'i' && lower(rest[1]) == 'b');
    if (!rest.empty() && !ends_in_b) return {};
  }
  const std::optional<uint64_t> bytes = scaled(*n, uint64_t{1} << shift);
  if (!bytes) return {};
  return Bytes(*bytes);
}

std::optional<Nanos> parse_duration(std::string_view text) {
  const std::optional<Number> n = number(text);
  if (!n) return {};
  uint64_t unit = 0;
  if (n->rest.empty() || n->rest == "s")
    unit = 1000000000;
  else if (n->rest == "ms")
    unit = 1000000;
  else if (n->rest == "us")
    unit = 1000;
  else if (n->rest == "ns")
    unit = 1;
  else if (n->rest == "min")
    unit = 60000000000;
  else
    return {};
  const std::optional<uint64_t> ns = scaled(*n, unit);
  if (!ns) return {};
  return Nanos(*ns);
}

}  // namespace weir
