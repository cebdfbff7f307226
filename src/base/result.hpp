// src/base/result.hpp
//
// How a call says that it failed: a kernel errno beside the value. Nothing in the engine throws.
//
//   Result<Page*> page = alloc();          // a value or an errno, never both
//   if (!page) return page.error();        // passes the errno on
//   Page* p = WEIR_TRY(alloc());           // the same in one line
#pragma once

#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

namespace weir {

/// Error numbers of Linux on x86-64, as positive values. `ok` means "no error".
enum class Errno : int32_t {
  ok = 0,
  perm = 1,
  noent = 2,
  srch = 3,
  intr = 4,
  io = 5,
  nxio = 6,
  badf = 9,
  again = 11,
  nomem = 12,
  acces = 13,
  fault = 14,
  busy = 16,
  exist = 17,
  nodev = 19,
  inval = 22,
  nfile = 23,
  fbig = 27,
  nospc = 28,
  nosys = 38,
  overflow = 75,
  opnotsupp = 95,
  timedout = 110,
};

/// The kernel's spelling of `e` ("ENOMEM"), "E?" for a number that has no name here.
[[nodiscard]] const char* errno_name(Errno e);

/// A broken invariant: prints `what`, file and line on standard error by a raw system call and aborts. Never allocates.
[[noreturn]] void bug(const char* what, const char* file, int line);

#define WEIR_BUG_ON(cond)                                                      \
  do {                                                                         \
    if (__builtin_expect(!!(cond), 0)) ::weir::bug(#cond, __FILE__, __LINE__); \
  } while (0)

/// Checked only where WEIR_DEBUG is set; for conditions on hot paths.
#ifdef WEIR_DEBUG
#define WEIR_DEBUG_BUG_ON(cond) WEIR_BUG_ON(cond)
#else
#define WEIR_DEBUG_BUG_ON(cond) \
  do {                          \
  } while (0)
#endif

/// A `T` or an errno. T must be nothrow movable.
template <class T>
class [[nodiscard]] Result {
  static_assert(!std::is_same_v<T, Errno>, "Result<void> carries a bare errno");

 public:
  using value_type = T;
  Result(T value) : value_(std::move(value)), error_(Errno::ok) {}
  Result(Errno error) : empty_{}, error_(error) { WEIR_DEBUG_BUG_ON(error == Errno::ok); }
  Result(Result&& other) noexcept : empty_{}, error_(other.error_) {
    if (error_ == Errno::ok) ::new (static_cast<void*>(&value_)) T(std::move(other.value_));
  }
  Result(const Result&) = delete;
  Result& operator=(Result&&) = delete;
  ~Result() {
    if (error_ == Errno::ok) value_.~T();
  }

  [[nodiscard]] bool ok() const { return error_ == Errno::ok; }
  explicit operator bool() const { return ok(); }
  [[nodiscard]] Errno error() const { return error_; }
  [[nodiscard]] T& value() {
    WEIR_DEBUG_BUG_ON(!ok());
    return value_;
  }
  T& operator*() { return value(); }
  T* operator->() { return &value(); }

 private:
  union {
    char empty_;
    T value_;
  };
  Errno error_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Errno error) : error_(error) {}
  [[nodiscard]] bool ok() const { return error_ == Errno::ok; }
  explicit operator bool() const { return ok(); }
  [[nodiscard]] Errno error() const { return error_; }
  /// As a result in a recording: what the kernel returns, 0 or a negative errno.
  [[nodiscard]] friend uint64_t flow_value_of(const Result& result) {
    return static_cast<uint64_t>(-static_cast<int64_t>(result.error_));
  }

 private:
  Errno error_ = Errno::ok;
};

#define WEIR_TRY(expr)                                      \
  ({                                                        \
    auto weir_try_result_ = (expr);                         \
    if (!weir_try_result_) return weir_try_result_.error(); \
    std::move(weir_try_result_.value());                    \
  })

#define WEIR_TRY_VOID(expr)                                 \
  do {                                                      \
    auto weir_try_result_ = (expr);                         \
    if (!weir_try_result_) return weir_try_result_.error(); \
  } while (0)

}  // namespace weir
