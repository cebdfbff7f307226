// A recording is exact: what its events say of page tables, frames, lists, swap and zones is what the machine is, at
// any event. The steps are drawn by WEIR_SEED (printed).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <utility>

#include "places.hpp"
#include "sim/simulation.hpp"
#include "support/machine_look.hpp"

namespace weir::test {
namespace {

/// Hears every event, keeps what they say, and at chosen ones looks at the machine itself.
class Watcher final : public FlowSink {
 public:
  explicit Watcher(bool zone_lists) : told_(zone_lists) {}

  void look_at_steps(std::set<uint64_t> steps) { steps_ = std::move(steps); }
  void booted(Machine& machine) { machine_ = &machine, first_ = events_; }
  [[nodiscard]] uint64_t events() const { return events_; }
  [[nodiscard]] uint64_t first() const { return first_; }
  [[nodiscard]] uint64_t looks() const { return looks_; }

  void enter(const FlowSite& site, uint64_t, uint64_t, uint64_t) override { next(site, nullptr); }
  void leave(const FlowSite& site) override { next(site, nullptr); }
  void state(const FlowSite& site, State what, uint64_t subject, uint64_t before, uint64_t after) override {
    told_.add(what, subject, before, after);
    next(site, &what);
  }

 private:
  static const char* state_name(State what) {
    static constexpr const char* NAMES[] = {
#define X(name) #name,
        WEIR_STATES(X)
#undef X
    };
    return NAMES[static_cast<size_t>(what)];
  }

  void next(const FlowSite& site, const State* what) {
    const unsigned again = std::exchange(look_again_, 0u);
    if ((!steps_.contains(events_++) && again == 0) || machine_ == nullptr) return;
    ++looks_;
    const std::vector<std::string> found = differences(look_at(*machine_), told_.look());
    // A page's flag or mapping and the cache it joins, a list and the end of it, a task and its address space, are one
    // change and several events: what differs counts if it still does three events later.
    const bool one_change = std::all_of(found.begin(), found.end(), [](const std::string& text) {
      return text.starts_with("swap_cache") || text.starts_with("page_cache") || text.starts_with("lru") ||
             text.starts_with("task");
    });
    if (!found.empty() && one_change && again != 1) {
      look_again_ = again == 0 ? 3 : again - 1;
      return;
    }
    for (size_t i = 0; i < found.size() && i < 5; ++i)
      ADD_FAILURE() << "after event " << events_ - 1 << " (" << (what != nullptr ? state_name(*what) : "a call")
                    << " in " << site.function << ", " << site.file << "): " << found[i];
  }

  Told told_;
  Machine* machine_ = nullptr;
  std::set<uint64_t> steps_;
  unsigned look_again_ = 0;  ///< at so many events more
  uint64_t events_ = 0, first_ = 0, looks_ = 0;
};

uint64_t seed() {
  const char* text = std::getenv("WEIR_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 0) : 1;
}

void expect_exact(const std::string& example, bool zone_lists) {
  const sim::Scenario scenario = sim::load_scenario(std::string(WEIR_SOURCE_DIR) + "/examples/" + example + ".toml");
  const auto run = [&](Watcher& watcher) {
    sim::SimOptions options;
    options.sink = &watcher;
    options.booted = [&](Machine& machine) { watcher.booted(machine); };
    const sim::SimResult result = sim::run_scenario(scenario, options);
    for (const sim::Broken& b : result.broken) ADD_FAILURE() << b.id << ": " << b.text;
  };
  Watcher count(zone_lists);
  run(count);
  std::mt19937_64 random(seed());
  std::set<uint64_t> steps;
  while (steps.size() < 200) steps.insert(count.first() + random() % (count.events() - count.first()));
  Watcher watcher(zone_lists);
  watcher.look_at_steps(steps);
  run(watcher);
  EXPECT_EQ(watcher.events(), count.events()) << "the same seed, another run";
  std::printf("%s: %llu events, %llu looked at, WEIR_SEED=%llu\n", example.c_str(),
              static_cast<unsigned long long>(watcher.events()), static_cast<unsigned long long>(watcher.looks()),
              static_cast<unsigned long long>(seed()));
}

TEST(Recording, IsExactForTheSharedPageOfDocument001) { expect_exact("001", true); }
TEST(Recording, IsExactForSwappingInDocument000) { expect_exact("000-swap", true); }
TEST(Recording, IsExactForTheOomKillerOfDocument000) { expect_exact("000-oom", true); }
TEST(Recording, IsExactForTheNineBoxesOfDocument004) { expect_exact("004", false); }

}  // namespace
}  // namespace weir::test
