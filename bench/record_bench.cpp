// What a ring recorder costs a live program: two live machines of 32 MiB with zram, alike but for the ring, in one
// process. Random stores to 64 MiB, a batch to one, a batch to the other; CPU time of all threads, kswapd among them.
#include <sys/mman.h>

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

class Program {
 public:
  Program(Delivery delivery, uint64_t events) : ring_(FlowRing::bytes_for(RECORD_EVENTS)) {
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
    for (uint64_t i = 0; i < STORES; ++i) memory_[(random_.below(PAGES) << PAGE_SHIFT) + 8 * (i % 8)] ^= 1;
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
  Random random_;
};

void compare(Delivery delivery, const char* title) {
  Program off(delivery, 0), on(delivery, RECORD_EVENTS);
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
}

}  // namespace

int main() {
  compare(Delivery::signal, "Random stores, twice the RAM, zram; faults served by the thread that faults");
  compare(Delivery::thread, "The same, faults served by the engine's threads, as `weir run` does");
  return 0;
}
