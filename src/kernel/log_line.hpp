// src/kernel/log_line.hpp
//
// A line of the kernel's log, put together without a library: the thread may run where its TLS is missing.
//
//   LogLine() << "Free swap  = " << kb << "kB";
#pragma once

#include "kernel/kernel.hpp"

namespace weir {

/// Printed when it ends, by the world of the thread it ends in; without one nowhere. Cut to 255 bytes.
class LogLine {
 public:
  LogLine() = default;
  LogLine(const LogLine&) = delete;
  LogLine& operator=(const LogLine&) = delete;
  ~LogLine();
  LogLine& operator<<(const char* text);
  LogLine& operator<<(int64_t v);
  LogLine& operator<<(uint64_t v) { return number(v, 10); }
  LogLine& operator<<(int32_t v) { return *this << int64_t{v}; }
  LogLine& operator<<(uint32_t v) { return number(v, 10); }
  LogLine& hex(uint64_t v) { return number(v, 16); }
  /// Right-aligned in `width`, for tables.
  LogLine& column(int64_t v, unsigned width);

 private:
  LogLine& number(uint64_t v, unsigned base);
  char text_[256];
  size_t at_ = 0;
};

}  // namespace weir
