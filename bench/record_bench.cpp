// What a ring recorder costs a live program: two live machines of 32 MiB with zram, alike but for the ring, in one
// process. Stores to 64 MiB, random or page after page, a batch to one, a batch to the other; CPU time of all threads,
// kswapd among them. And what is paid where nothing is recorded: a test at each place that could.
#include <sys/mman.h>

#include <array>
#include <cstring>

#include "live/live_machine.hpp"
#include "machine.hpp"
#include "record/ring.hpp"
#include "table.hpp"

using namespace weir;
using namespace weir::bench;

namespace {

constexpr unsigned BATCHES = 60;
constexpr uint64_t STORES = 8000;            // a batch
constexpr uint64_t RECORD_EVENTS = 1 << 16;  // as `weir run --record` has it
constexpr uint64_t PAGES = (uint64_t{64} << 20) / PAGE_SIZE;

enum class Stores : uint8_t { random, in_order };

class Program {
 public:
  Program(Delivery delivery, Stores order, uint64_t events) : ring_(FlowRing::bytes_for(RECORD_EVENTS)), order_(order) {
    SwapSpec zram{};
    zram.kind = SwapSpec::Kind::zram;
    LiveOptions o;
    o.ram = 32_MiB;
    o.swap = {&zram, 1};
    o.delivery = delivery;
    o.quiet_boot = true;
    if (events != 0) o.ring = {ring_.data(), ring_.size()};
    o.record_events = events;
    LiveError error;
    live_ = LiveMachine::create(o, error);
    if (live_ == nullptr) std::printf("%s\n", error.text);
    WEIR_BUG_ON(live_ == nullptr);
    Result<void*> memory = live_->map(PAGES << PAGE_SHIFT, PROT_READ | PROT_WRITE);
    WEIR_BUG_ON(!memory);
    memory_ = static_cast<char*>(*memory);
    for (uint64_t page = 0; page < PAGES; ++page)
      for (uint64_t i = 0; i < PAGE_SIZE; i += 8) std::memcpy(memory_ + page * PAGE_SIZE + i, &page, 8);
  }
  ~Program() { LiveMachine::destroy(live_); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void batch() {
    for (uint64_t i = 0; i < STORES; ++i) {
      next_ = order_ == Stores::random ? random_.below(PAGES) : (next_ + 1) % PAGES;
      memory_[(next_ << PAGE_SHIFT) + 8 * (i % 8)] ^= 1;
    }
  }
  [[nodiscard]] uint64_t moved() {
    LiveStats s;
    live_->stats(s);
    return s.event[static_cast<unsigned>(VmEvent::pswpin)] + s.event[static_cast<unsigned>(VmEvent::pswpout)];
  }

 private:
  HostMemory ring_;
  LiveMachine* live_ = nullptr;
  char* memory_ = nullptr;
  Stores order_;
  uint64_t next_ = 0;
  Random random_;
};

/// Nanoseconds of a store where nothing is recorded.
double compare(Delivery delivery, Stores order, const char* title) {
  Program off(delivery, order, 0), on(delivery, order, RECORD_EVENTS);
  Sample samples[2];
  const uint64_t before[2] = {off.moved(), on.moved()};
  for (unsigned i = 0; i < BATCHES; ++i)
    for (Program* program : {&off, &on}) {
      const double each = 1e9 / static_cast<double>(STORES);
      const double start = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
      program->batch();
      const double spent = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
      Sample& sample = samples[program == &on];
      sample.batches.push_back((seconds_of(CLOCK_MONOTONIC) - start) * each);
      sample.cpu.push_back(spent * each);
      sample.cpu_seconds += spent;
    }
  Table table(title);
  table.row("nothing recorded", samples[0]);
  table.row("the last 64K events in a ring", samples[1]);
  for (const uint64_t moved : {off.moved() - before[0], on.moved() - before[1]})
    std::printf("%44s %.2f pages in and out a store\n", "", static_cast<double>(moved) / (BATCHES * STORES));
  return samples[0].cpu_median();
}

/// Counts the places that are passed.
class Places final : public FlowSink {
 public:
  uint64_t count = 0;
  void enter(const FlowSite&, uint64_t, uint64_t, uint64_t) override { ++count; }
  void leave(const FlowSite&) override { ++count; }
  void state(const FlowSite&, State, uint64_t, uint64_t, uint64_t) override { ++count; }
};

/// Places passed by a store in order, in a simulated machine like the live ones.
double places_a_store() {
  Places places;  // outlives the machine: kthreads leave functions at its end
  BenchMachine m({.ram = 32_MiB, .content = ContentKind::bytes, .swap = SwapKind::zram});
  VirtAddr base{};
  const auto round = [&] {
    for (uint64_t i = 0; i < PAGES; ++i)
      WEIR_BUG_ON(m.mmu.store(m.task(), base + (i << PAGE_SHIFT), i) != FaultResult::done);
  };
  m.run([&] {
    base = m.map(Bytes(PAGES << PAGE_SHIFT));
    round();
    round();
  });
  m.world.set_sink(&places);
  m.run(round);
  m.world.set_sink(nullptr);
  return static_cast<double>(places.count) / PAGES;
}

/// In a loop that does nothing else, a call with a place and a state change, and the same call without.
[[gnu::noinline]] void recorded(uint64_t i) {
  WEIR_FLOW(i);
  keep(i);
  WEIR_STATE(swap_map, i, 1, 2);
}
[[gnu::noinline]] void unrecorded(uint64_t i) { keep(i); }

void off(double store) {
  constexpr uint64_t CALLS = 1'000'000;
  Sample without, with;
  run_on_engine_stack(
      [](void* arg) {
        const auto run = [](void (*call)(uint64_t)) {
          return measure(BATCHES, CALLS, [&] {
            for (uint64_t i = 0; i < CALLS; ++i) call(i);
          });
        };
        auto** samples = static_cast<Sample**>(arg);
        *samples[0] = run(unrecorded);
        *samples[1] = run(recorded);
      },
      std::array{&without, &with}.data());
  Table table(
      "Recording that is off: a call that could record its entry, its end and a change, against one that cannot");
  table.row("no place to record", without);
  table.row("three places", with);
  const double places = places_a_store(), each = (with.cpu_median() - without.cpu_median()) / 3;
  std::printf("%44s %.0f places a store in order, %.2f ns each: %.1f %% of its time\n", "", places, each,
              100 * places * each / store);
}

}  // namespace

int main() {
  compare(Delivery::signal, Stores::random,
          "Random stores, twice the RAM, zram; faults served by the thread that faults");
  compare(Delivery::thread, Stores::random, "The same, faults served by the engine's threads, as `weir run` does");
  off(compare(Delivery::thread, Stores::in_order, "Stores in order, as `weir run` serves them"));
  return 0;
}
