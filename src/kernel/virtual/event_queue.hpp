// src/kernel/virtual/event_queue.hpp
//
// What is to happen and when: sleepers' ends and timers, the earliest first, of equal times the first armed. A binary
// heap; each event knows its place, so that it can be taken out.
#pragma once

#include <compare>
#include <vector>

#include "kernel/kernel.hpp"

namespace weir {

struct EventKey {
  Nanos time{};
  uint64_t id = 0;  ///< order of arming
  auto operator<=>(const EventKey&) const = default;
};

template <class Sleeper>
class EventQueue {
 public:
  struct Event {
    EventKey key;
    Sleeper* thread = nullptr;  ///< one of the two
    Timer* timer = nullptr;
    size_t* place = nullptr;  ///< the owner's; kept while the event is in the queue
  };

  [[nodiscard]] bool empty() const { return heap_.empty(); }
  [[nodiscard]] const Event& front() const { return heap_.front(); }

  void push(const Event& event) {
    heap_.push_back(event);
    up(heap_.size() - 1, event);
  }
  void pop_front() { erase(0); }
  /// The event whose owner's place this is.
  void erase(size_t place) {
    const Event last = heap_.back();
    heap_.pop_back();
    if (place == heap_.size()) return;
    if (place > 0 && last.key < heap_[(place - 1) / 2].key)
      up(place, last);
    else
      down(place, last);
  }

 private:
  void put(size_t place, const Event& event) {
    heap_[place] = event;
    *event.place = place;
  }
  void up(size_t place, const Event& event) {
    for (size_t parent; place > 0 && event.key < heap_[parent = (place - 1) / 2].key; place = parent)
      put(place, heap_[parent]);
    put(place, event);
  }
  void down(size_t place, const Event& event) {
    for (;;) {
      size_t child = 2 * place + 1;
      if (child >= heap_.size()) break;
      if (child + 1 < heap_.size() && heap_[child + 1].key < heap_[child].key) ++child;
      if (event.key < heap_[child].key) break;
      put(place, heap_[child]);
      place = child;
    }
    put(place, event);
  }

  std::vector<Event> heap_;
};

}  // namespace weir
