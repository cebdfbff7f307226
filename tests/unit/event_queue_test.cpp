// The virtual world's events: which comes next, whatever was armed and taken back before.
#include "kernel/virtual/event_queue.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace weir {
namespace {

struct Sleeper {
  EventKey key;
  size_t place = 0;
};
using Queue = EventQueue<Sleeper>;

TEST(EventQueue, TheEarliestFirstAndOfEqualTimesTheFirstArmed) {
  Queue queue;
  Sleeper sleepers[] = {{{Nanos(7), 1}}, {{Nanos(3), 2}}, {{Nanos(7), 3}}, {{Nanos(3), 4}}, {{Nanos(1), 5}}};
  for (Sleeper& s : sleepers) queue.push({.key = s.key, .thread = &s, .place = &s.place});
  for (const uint64_t id : {5, 2, 4, 1, 3}) {
    EXPECT_EQ(queue.front().key.id, id);
    queue.pop_front();
  }
  EXPECT_TRUE(queue.empty());
}

TEST(EventQueue, IsASortedMapWhateverIsTakenOutOfItsMiddle) {
  const unsigned seed = 4711;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  Queue queue;
  std::vector<Sleeper> sleepers(200);
  std::map<EventKey, Sleeper*> model;
  uint64_t id = 0;
  for (int step = 0; step < 20000; ++step) {
    Sleeper& s = sleepers[random() % sleepers.size()];
    if (model.erase(s.key) != 0) {
      queue.erase(s.place);
    } else {
      s.key = {Nanos(random() % 50), ++id};
      queue.push({.key = s.key, .thread = &s, .place = &s.place});
      model[s.key] = &s;
    }
    if (step % 7 == 0 && !model.empty()) {
      ASSERT_EQ(queue.front().thread, model.begin()->second) << step;
      queue.pop_front();
      model.erase(model.begin());
    }
    ASSERT_EQ(queue.empty(), model.empty());
    if (!model.empty()) {
      ASSERT_EQ(queue.front().thread, model.begin()->second) << step;
    }
  }
}

}  // namespace
}  // namespace weir
