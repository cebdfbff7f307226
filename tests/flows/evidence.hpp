// tests/flows/evidence.hpp
//
// What shows a state step, as states.toml writes it:
//
//   "swap_map after > before | swap_slot elsewhere"   "fn wakeup_kswapd"   "pte before & 1 == 1, after & 1 == 0"
#pragma once

#include <cctype>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/flow.hpp"
#include "record/event.hpp"

namespace weir::flows {

struct Operand {
  enum class What { number, subject, before, after } what = What::number;
  uint64_t number = 0;
  uint64_t mask = UINT64_MAX;

  [[nodiscard]] uint64_t of(const FlowEvent& event) const {
    return mask & (what == What::number ? number : event.value[static_cast<int>(what) - 1]);
  }
};

struct Condition {
  Operand left, right;
  std::string op;

  [[nodiscard]] bool holds(const FlowEvent& event) const {
    const uint64_t l = left.of(event), r = right.of(event);
    if (op == "==") return l == r;
    if (op == "!=") return l != r;
    if (op == "<") return l < r;
    if (op == "<=") return l <= r;
    if (op == ">") return l > r;
    return l >= r;
  }
};

struct Alternative {
  std::string fn;  // or
  std::string kind;
  std::vector<Condition> conditions;
};

struct Evidence {
  std::vector<Alternative> alternatives;
  bool elsewhere = false;  // in any task
  std::string unseen;      // why nothing in a recording can show the step

  /// Throws with the text and what is wrong in it.
  static Evidence parse(const std::string& text);
};

class EvidenceParser {
 public:
  explicit EvidenceParser(const std::string& text) : text_(text) {
    for (size_t at = 0; at < text.size();) {
      const auto word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
      size_t end = at + 1;
      if (text[at] == ' ') {
        at = end;
        continue;
      }
      if (word(text[at]))
        while (end < text.size() && word(text[end])) ++end;
      else if (end < text.size() && text[end] == '=' &&
               std::string_view("=!<>").find(text[at]) != std::string_view::npos)
        ++end;
      tokens_.push_back(text.substr(at, end - at));
      at = end;
    }
  }

  Evidence run() {
    Evidence evidence;
    do {
      evidence.alternatives.push_back(alternative());
    } while (eat("|"));
    evidence.elsewhere = eat("elsewhere");
    if (at_ != tokens_.size()) fail("'" + tokens_[at_] + "' is not understood");
    return evidence;
  }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    throw std::runtime_error("evidence \"" + text_ + "\": " + why);
  }

  [[nodiscard]] std::string_view peek() const { return at_ < tokens_.size() ? std::string_view(tokens_[at_]) : ""; }
  bool eat(std::string_view token) {
    if (peek() != token) return false;
    ++at_;
    return true;
  }
  std::string word() {
    if (peek().empty()) fail("ends too early");
    return tokens_[at_++];
  }

  Alternative alternative() {
    Alternative result;
    std::string first = word();
    if (first == "fn") {
      result.fn = word();
      return result;
    }
    static const std::set<std::string, std::less<>> kinds = {
#define X(name) #name,
        WEIR_STATES(X)
#undef X
    };
    if (!kinds.contains(first)) fail("no state change is called '" + first + "' (base/flow.hpp lists them)");
    result.kind = std::move(first);
    if (!peek().empty() && peek() != "|" && peek() != "elsewhere") {
      do {
        result.conditions.push_back(condition());
      } while (eat(","));
    }
    return result;
  }

  Condition condition() {
    Condition result;
    result.left = operand();
    result.op = word();
    static const std::set<std::string, std::less<>> ops = {"==", "!=", "<", "<=", ">", ">="};
    if (!ops.contains(result.op)) fail("'" + result.op + "' does not compare");
    result.right = operand();
    return result;
  }

  Operand operand() {
    Operand result;
    const std::string name = word();
    if (name == "subject")
      result.what = Operand::What::subject;
    else if (name == "before")
      result.what = Operand::What::before;
    else if (name == "after")
      result.what = Operand::What::after;
    else
      result.number = number(name);
    if (eat("&")) result.mask = number(word());
    return result;
  }

  [[nodiscard]] uint64_t number(const std::string& text) const {
    size_t used = 0;
    uint64_t value = 0;
    try {
      value = std::stoull(text, &used, 0);
    } catch (const std::exception&) {
    }
    if (used == 0 || used != text.size()) fail("'" + text + "' is no number, subject, before or after");
    return value;
  }

  const std::string& text_;
  std::vector<std::string> tokens_;
  size_t at_ = 0;
};

inline Evidence Evidence::parse(const std::string& text) {
  constexpr std::string_view UNSEEN = "unseen: ";
  if (text.starts_with(UNSEEN)) {
    Evidence evidence;
    evidence.unseen = text.substr(UNSEEN.size());
    return evidence;
  }
  return EvidenceParser(text).run();
}

}  // namespace weir::flows
