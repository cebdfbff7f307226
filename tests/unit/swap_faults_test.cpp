// Swap on a device that fails, delays and lets requests pass one another: nothing is lost but what the device lost, and
// that is reported.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string_view>

#include "block/fault_injector.hpp"
#include "support/swap_fixture.hpp"

namespace weir::test {
namespace {

using Threads = weir::MachineOptions::Threads;

struct Case {
  KernelEra kernel;
  uint64_t seed;
};

class SwapFaults : public testing::TestWithParam<Case> {
 protected:
  static constexpr uint64_t PAGES = 400;
  SwapFaults()
      : w({.cpus = 2, .kernel = GetParam().kernel, .threads = Threads::none},
          {.seed = GetParam().seed, .cpus = 2, .preempt_one_in = 64}) {}
  void on(FaultInjectorOptions faults) {
    faults.seed = GetParam().seed;
    faults.delay = {.probability = 30};
    faults.late = {.probability = 30};
    disk = std::make_unique<TestDevice>(
        TestDevice::Options{.pages = 2048, .synchronous = false, .nonrotational = false, .latency = 40_us});
    injector = std::make_unique<FaultInjector>(w.world, *disk, faults);
    w.run([&] {
      WEIR_BUG_ON(!w.m().swapon.mkswap(*injector));
      WEIR_BUG_ON(!w.m().swapon.swapon(*injector, SWAP_PRIO_AUTO));
    });
  }
  void push_out(Task& t, VirtAddr base) {
    for (int i = 0; i < 2; ++i) {
      w.make_old(t, base, PAGES);
      w.reclaim(PAGES);
    }
  }
  ReclaimWorld w;
  std::unique_ptr<TestDevice> disk;
  std::unique_ptr<FaultInjector> injector;
};

TEST_P(SwapFaults, DelaysAndFailedWritesLoseNothing) {
  on({});
  w.run([&] {
    injector->set_fail({.probability = 20});
    Task& t = w.task("a");
    const VirtAddr base = w.map(t, PAGES);
    for (uint64_t round = 0; round < 4; ++round) {
      injector->set_fail({.probability = 20});
      w.fill(t, base, PAGES, round * 1000);
      push_out(t, base);
      weir::world().schedule_timeout(20_ms);
      injector->set_fail({});
      w.expect(t, base, PAGES, round * 1000);
    }
    EXPECT_GT(w.event(VmEvent::swap_write_error), 0u);
    EXPECT_EQ(w.event(VmEvent::swap_write_error), w.m().swap_files.swap_info(0)->write_errors.load());
    EXPECT_GT(injector->fault_stats().delayed, 0u);
    EXPECT_GT(injector->fault_stats().late, 0u);
    weir::world().schedule_timeout(50_ms);
    EXPECT_EQ(w.broken(), "");
    ASSERT_TRUE(w.m().swapon.swapoff(0).ok());
    w.expect(t, base, PAGES, 3000);
  });
}

TEST_P(SwapFaults, AReadThatFailsIsReportedAndIsAllThatIsLost) {
  on({});
  w.run([&] {
    Task& t = w.task("a");
    const VirtAddr base = w.map(t, PAGES);
    w.fill(t, base, PAGES, 5);
    Task& child = w.fork(t);
    push_out(t, base);
    weir::world().schedule_timeout(20_ms);
    std::map<uint64_t, uint64_t> page_in;  // slot -> page
    for (uint64_t i = 0; i < PAGES; ++i)
      if (const Pte pte = w.pte(t, ReclaimWorld::at(base, i)); is_swap_pte(pte))
        page_in[swp_offset(decode_swap_pte(pte))] = i;
    EXPECT_GT(page_in.size(), PAGES / 2);
    injector->set_fail({.probability = 10});
    std::set<uint64_t> lost;
    for (Task* task : {&t, &child})
      for (uint64_t i = 0; i < PAGES; ++i) {
        uint64_t value = 0;
        const FaultResult result = w.load(*task, ReclaimWorld::at(base, i), value);
        if (result == FaultResult::done) {
          EXPECT_EQ(value, 5 + i);
        } else {
          EXPECT_EQ(result, FaultResult::sigbus);
          EXPECT_TRUE(lost.insert(i).second || task == &child);
        }
      }
    // What the kernel's log tells is what is lost, for both.
    std::set<uint64_t> told;
    constexpr std::string_view SAYS = "Read-error on swap-device (";
    for (const std::string& line : w.log)
      if (line.starts_with(SAYS))
        told.insert(page_in.at(std::stoull(line.substr(line.find(':') + 1)) / SECTORS_PER_PAGE));
    EXPECT_FALSE(lost.empty());
    EXPECT_EQ(lost, told);
    EXPECT_EQ(w.event(VmEvent::swap_read_error), w.m().swap_files.swap_info(0)->read_errors.load());
    injector->set_fail({});
    weir::world().schedule_timeout(50_ms);
    EXPECT_EQ(w.broken(), "");
    w.exit(child);
    w.exit(t);
    ASSERT_TRUE(w.m().swapon.swapoff(0).ok());
  });
  const auto lines = std::count_if(w.log.begin(), w.log.end(),
                                   [](const std::string& line) { return line.find("Read-error on swap-device") == 0; });
  EXPECT_EQ(static_cast<uint64_t>(lines), w.event(VmEvent::swap_read_error));
}

INSTANTIATE_TEST_SUITE_P(Kernels, SwapFaults,
                         testing::Values(Case{KernelEra::linux_2_6_20, 1}, Case{KernelEra::linux_3, 2},
                                         Case{KernelEra::linux_4_14, 3}, Case{KernelEra::linux_4_14, 4}),
                         [](const testing::TestParamInfo<Case>& info) {
                           std::string name = profile_of(info.param.kernel).name;
                           for (char& c : name)
                             if (c == '.') c = '_';
                           return "of_" + name + "_seed_" + std::to_string(info.param.seed);
                         });

}  // namespace
}  // namespace weir::test
