// src/kernel/log_line.cpp: see log_line.hpp
#include "kernel/log_line.hpp"

#include <algorithm>

namespace weir {

LogLine::~LogLine() {
  text_[at_] = 0;
  if (engine_thread().world != nullptr) world().printk(text_);
}

LogLine& LogLine::operator<<(const char* text) {
  while (*text != 0 && at_ < sizeof text_ - 1) text_[at_++] = *text++;
  return *this;
}

LogLine& LogLine::operator<<(int64_t v) {
  if (v < 0) *this << "-";
  return number(v < 0 ? -static_cast<uint64_t>(v) : static_cast<uint64_t>(v), 10);
}

LogLine& LogLine::column(int64_t v, unsigned width) {
  const size_t start = at_;
  *this << v;
  const size_t used = at_ - start;
  if (used >= width || start + width >= sizeof text_) return *this;
  std::copy_backward(text_ + start, text_ + at_, text_ + start + width);
  std::fill(text_ + start, text_ + start + (width - used), ' ');
  at_ = start + width;
  return *this;
}

LogLine& LogLine::number(uint64_t v, unsigned base) {
  char digits[24];
  char* p = digits + sizeof digits;
  *--p = 0;
  do *--p = "0123456789abcdef"[v % base];
  while ((v /= base) != 0);
  return *this << static_cast<const char*>(p);
}

}  // namespace weir
