// src/record/flow_diff.cpp: see flow_diff.hpp
#include "record/flow_diff.hpp"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <vector>

namespace weir {

namespace {

constexpr size_t MOST_LINES = 4000;
constexpr unsigned LEAST_COLUMN = 20;

struct Line {
  std::string text;  ///< as it is shown
  std::string key;   ///< what makes it like another
};

std::vector<Line> lines_of(std::string_view text) {
  std::vector<Line> lines;
  while (!text.empty() && lines.size() < MOST_LINES) {
    const size_t end = std::min(text.find('\n'), text.size());
    Line line;
    for (const char c : text.substr(0, end)) line.text += c == '\t' ? std::string("  ") : std::string(1, c);
    text.remove_prefix(std::min(end + 1, text.size()));
    // A word that begins with a digit is a number; a name may have digits in it.
    bool in_word = false, number = false;
    for (const char c : line.text) {
      const bool word = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
      if (word && !in_word) {
        number = std::isdigit(static_cast<unsigned char>(c)) != 0;
        if (number) line.key += '#';
      }
      in_word = word;
      if (!word || !number) line.key += c;
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

/// The text in exactly `columns`, cut or filled.
std::string column(std::string_view text, unsigned columns) {
  std::string out;
  unsigned used = 0;
  for (size_t at = 0; at < text.size();) {
    size_t next = at + 1;
    while (next < text.size() && (static_cast<unsigned char>(text[next]) & 0xc0) == 0x80) ++next;
    if (used == columns) {
      while (!out.empty() && (static_cast<unsigned char>(out.back()) & 0xc0) == 0x80) out.pop_back();
      if (!out.empty()) out.back() = '~';
      return out;
    }
    out += text.substr(at, next - at);
    ++used;
    at = next;
  }
  out.append(columns - used, ' ');
  return out;
}

}  // namespace

FlowDiff diff_flows(std::string_view left, std::string_view right, std::string_view left_title,
                    std::string_view right_title, unsigned width) {
  const std::vector<Line> a = lines_of(left), b = lines_of(right);
  const unsigned half = std::max(LEAST_COLUMN, width < 3 ? 0 : (width - 3) / 2);

  // longest[i][j]: lines in common of a from i and b from j on.
  const size_t stride = b.size() + 1;
  std::vector<uint16_t> longest((a.size() + 1) * stride, 0);
  for (size_t i = a.size(); i-- > 0;)
    for (size_t j = b.size(); j-- > 0;)
      longest[i * stride + j] = a[i].key == b[j].key
                                    ? static_cast<uint16_t>(longest[(i + 1) * stride + j + 1] + 1)
                                    : std::max(longest[(i + 1) * stride + j], longest[i * stride + j + 1]);

  FlowDiff result;
  const auto row = [&](std::string_view l, char mark, std::string_view r) {
    std::string line = column(l, half) + ' ' + mark + ' ' + column(r, half);
    line.resize(line.find_last_not_of(' ') + 1);
    result.text += line + '\n';
    if (mark != ' ') result.differ = true;
  };
  row(left_title, ' ', right_title);
  for (size_t i = 0, j = 0; i < a.size() || j < b.size();) {
    if (i < a.size() && j < b.size() && a[i].key == b[j].key) {
      row(a[i++].text, ' ', b[j++].text);
    } else if (j == b.size() || (i < a.size() && longest[(i + 1) * stride + j] >= longest[i * stride + j + 1])) {
      row(a[i++].text, '<', "");
    } else {
      row("", '>', b[j++].text);
    }
  }
  return result;
}

}  // namespace weir
