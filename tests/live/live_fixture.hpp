// tests/live/live_fixture.hpp: a live machine for each test, that is as it should be when the test ends.
#pragma once

#include <gtest/gtest.h>

#include <string_view>
#include <vector>

#include "live/live_machine.hpp"

namespace weir::test {

/// Test: testing::Test, or one with parameters.
template <class Test>
class LiveFixture : public Test {
 protected:
  /// In place of the machine there is. `o`: all but ram, swap and delivery. Skips where the host has no delivery by
  /// thread.
  void make(const std::vector<std::string_view>& swap, Bytes ram, Delivery delivery, LiveOptions o = {}) {
    if (live != nullptr) LiveMachine::destroy(live);
    specs_ = std::get<std::vector<SwapSpec>>(parse_swap_specs(swap, ram));
    o.ram = ram;
    o.swap = specs_;
    o.delivery = delivery;
    LiveError error;
    live = LiveMachine::create(o, error);
    if (live == nullptr && delivery == Delivery::thread) GTEST_SKIP() << error.text;
    ASSERT_NE(live, nullptr) << error.text;
  }
  void TearDown() override {
    if (live == nullptr) return;
    EXPECT_EQ(live->verify(), 0u);
    LiveMachine::destroy(live);
  }
  LiveStats stats() {
    LiveStats s;
    live->stats(s);
    return s;
  }
  uint64_t event(VmEvent e) { return stats().event[static_cast<unsigned>(e)]; }
  int64_t node(NodeStat which) { return stats().node[static_cast<unsigned>(which)]; }

  LiveMachine* live = nullptr;

 private:
  std::vector<SwapSpec> specs_;
};

inline std::string delivery_name(const testing::TestParamInfo<Delivery>& info) {
  return info.param == Delivery::signal ? "signal" : "thread";
}

}  // namespace weir::test
