// src/base/boost_assert.cpp
//
// What Boost's assertions lead to: a broken invariant like any other. libc's assert() would allocate.
#include <boost/assert.hpp>

#include "base/result.hpp"

namespace boost {

void assertion_failed(const char* what, const char* /*function*/, const char* file, long line) {
  weir::bug(what, file, static_cast<int>(line));
}

void assertion_failed_msg(const char* what, const char* /*message*/, const char* /*function*/, const char* file,
                          long line) {
  weir::bug(what, file, static_cast<int>(line));
}

}  // namespace boost
