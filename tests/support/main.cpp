// main() of every test executable: the tests run on an engine stack, where `current` is found by masking the stack
// pointer, as it is in a machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/engine_stack.hpp"

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);  // GoogleTest's too
  int status = 1;
  weir::run_on_engine_stack([](void* arg) { *static_cast<int*>(arg) = RUN_ALL_TESTS(); }, &status);
  return status;
}
