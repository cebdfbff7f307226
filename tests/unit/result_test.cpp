#include "base/result.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <utility>

namespace weir {
namespace {

/// Counts how many are alive.
struct Counted {
  explicit Counted(int* alive) : alive_(alive) { ++*alive_; }
  Counted(Counted&& other) noexcept : alive_(other.alive_) { ++*alive_; }
  Counted(const Counted&) = delete;
  ~Counted() { --*alive_; }
  int* alive_;
};

Result<int> half(int n) {
  if (n % 2 != 0) return Errno::inval;
  return n / 2;
}
Result<int> quarter(int n) { return WEIR_TRY(half(WEIR_TRY(half(n)))); }
Result<void> check_even(int n) {
  WEIR_TRY_VOID(half(n));
  return {};
}
Result<std::unique_ptr<int>> boxed(int n) {
  auto box = std::make_unique<int>(WEIR_TRY(half(n)));
  return box;
}

TEST(Result, IsAValueOrAnErrno) {
  Result<int> good = half(8);
  ASSERT_TRUE(good.ok());
  EXPECT_TRUE(static_cast<bool>(good));
  EXPECT_EQ(*good, 4);
  EXPECT_EQ(good.error(), Errno::ok);

  Result<int> bad = half(7);
  EXPECT_FALSE(bad.ok());
  EXPECT_EQ(bad.error(), Errno::inval);
}

TEST(Result, TryPassesTheErrnoOnAndTheValueThrough) {
  EXPECT_EQ(*quarter(8), 2);
  EXPECT_EQ(quarter(6).error(), Errno::inval);
  EXPECT_TRUE(check_even(2).ok());
  EXPECT_EQ(check_even(3).error(), Errno::inval);
  EXPECT_EQ(**boxed(10), 5);
  EXPECT_EQ(boxed(1).error(), Errno::inval);
}

TEST(Result, DestroysExactlyWhatItHolds) {
  int alive = 0;
  {
    Result<Counted> first{Counted(&alive)};
    EXPECT_EQ(alive, 1);
    Result<Counted> second = std::move(first);
    EXPECT_EQ(alive, 2) << "the one moved from is still an object";
    Result<Counted> none = Errno::nomem;
    Result<Counted> moved = std::move(none);
    EXPECT_EQ(moved.error(), Errno::nomem);
    EXPECT_EQ(alive, 2);
  }
  EXPECT_EQ(alive, 0);
}

TEST(Result, OfNothingIsOkUnlessToldOtherwise) {
  EXPECT_TRUE(Result<void>().ok());
  const Result<void> failed = Errno::again;
  EXPECT_FALSE(failed);
  EXPECT_EQ(failed.error(), Errno::again);
}

TEST(Result, IsMovedAndNeverCopied) {
  static_assert(!std::is_copy_constructible_v<Result<int>>);
  static_assert(std::is_nothrow_move_constructible_v<Result<int>>);
  static_assert(!std::is_convertible_v<Result<int>, bool>, "only where a condition is asked for");
}

TEST(Errno, EachHasItsOwnName) {
  std::set<std::string> names;
  unsigned named = 0;
  for (int number = 0; number < 200; ++number) {
    const std::string name = errno_name(static_cast<Errno>(number));
    if (name == "E?") continue;
    ++named;
    names.insert(name);
  }
  EXPECT_EQ(names.size(), named);
  EXPECT_STREQ(errno_name(Errno::nomem), "ENOMEM");
  EXPECT_STREQ(errno_name(Errno::exist), "EEXIST");
  EXPECT_STREQ(errno_name(Errno::ok), "0");
}

TEST(BugDeathTest, SaysWhatAndWhere) {
  EXPECT_DEATH(WEIR_BUG_ON(1 + 1 == 2), "weir: BUG: 1 \\+ 1 == 2 at .*result_test.cpp:[0-9]+");
  WEIR_BUG_ON(false);
}

#ifdef WEIR_DEBUG
TEST(ResultDeathTest, AValueThatIsNotThereIsABug) { EXPECT_DEATH((void)half(1).value(), "BUG"); }
#endif

}  // namespace
}  // namespace weir
