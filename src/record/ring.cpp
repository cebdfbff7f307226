// src/record/ring.cpp: see ring.hpp
#include "record/ring.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <ctime>

#include "base/raw_syscall.hpp"
#include "kernel/kernel.hpp"
#include "record/event.hpp"

namespace weir {

namespace {

constexpr uint64_t EVENT_WORDS = sizeof(FlowEvent) / sizeof(uint64_t);
/// A block's header is as large as an event. FILLED counts words from the block's start, header and whole events. BEFORE
/// is the time of the lane's last event in the block before this one. MORE: the lane in the upper 16 bits; below, events
/// that have no slot of their own.
enum Header : uint64_t { SEQUENCE, FILLED, OPEN, BEFORE, MORE };
static_assert(MORE + 1 == EVENT_WORDS);
constexpr unsigned LANE_SHIFT = 48;
constexpr uint64_t MOST_SLOTS = 127;
constexpr uint64_t EVENTS_A_TIME = 32;
/// Lanes beyond share a number with others: then their blocks are told one after the other.
constexpr uint32_t MAX_LANES = 4096;
/// A lane leaves its block when this part of the ring has been taken since.
constexpr uint64_t OVERTAKEN = 4;

/// In the ring a kind has its lower byte; the upper one counts functions left after the event, innermost first, all of
/// which were entered in the same block.
constexpr uint64_t ONE_LEAVE = uint64_t{1} << 40;
constexpr unsigned MOST_LEAVES = 255;
static_assert(FlowEvent::STATE + static_cast<unsigned>(State::count) <= 256 && MOST_SLOTS <= MOST_LEAVES);

/// Kinds of the ring: what became of a page in a row of changes. value = pfn, flags, count; of each what it was in the
/// lower half, what it is in the upper one.
constexpr uint16_t PAGE_FLAGS = 4, PAGE_COUNT = 8, PAGE_BOTH = PAGE_FLAGS | PAGE_COUNT;
static_assert(PAGE_BOTH < FlowEvent::STATE);

std::atomic<uint64_t> last_id{0};

/// Changes by which a page, a slot or a counter passes from one thread to another, under a lock: with the clock at each of
/// them, what a thread did before and what the other does after stand in that order.
constexpr bool passes_on(State what) {
  switch (what) {
    case State::nr_free:
    case State::free_area:
    case State::pcp_count:
    case State::lru:
    case State::swap_map:
    case State::swap_cache:
    case State::pte: return true;
    default: return false;
  }
}

uint64_t ticks() { return __builtin_ia32_rdtsc(); }
uint64_t monotonic_ns() {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<uint64_t>(ts.tv_sec) * 1000000000 + static_cast<uint64_t>(ts.tv_nsec);
}

uint64_t events_without_slot(uint64_t more) { return more & ((uint64_t{1} << LANE_SHIFT) - 1); }

uint64_t load(const uint64_t* word, std::memory_order order = std::memory_order_relaxed) {
  return std::atomic_ref(*const_cast<uint64_t*>(word)).load(order);
}
void store(uint64_t* word, uint64_t value, std::memory_order order = std::memory_order_relaxed) {
  std::atomic_ref(*word).store(value, order);
}

}  // namespace

/// At the ring's start. A block with SEQUENCE n + 1 was the n-th taken.
struct RingMemory {
  static constexpr uint64_t MAGIC = 0x0a676e6972726977;  // "wirring\n"
  uint64_t magic;
  uint64_t slots;  ///< events in a block
  uint64_t nr_blocks;
  uint64_t start_ticks, start_ns;
  alignas(64) std::atomic<uint64_t> taken;  ///< blocks since the start
  std::atomic<uint64_t> events;             ///< of blocks that were filled
  std::atomic<uint64_t> lost;
  std::atomic<uint32_t> lanes;
  alignas(64) FlowNames names;

  /// The i-th of blocks of so many events each.
  [[nodiscard]] uint64_t* block(uint64_t i, uint64_t slots_each) const {
    return reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(this) + sizeof *this) +
           i * (slots_each + 1) * EVENT_WORDS;
  }
  [[nodiscard]] static uint64_t slots_for(uint64_t events) { return std::clamp<uint64_t>(events / 32, 1, MOST_SLOTS); }
  // Half as many again: lanes leave blocks that are not full, and of the oldest ones' time not all is there.
  [[nodiscard]] static uint64_t blocks_for(uint64_t events) {
    const uint64_t full = (events + slots_for(events) - 1) / slots_for(events);
    return full + full / 2 + 2;
  }
  [[nodiscard]] static size_t bytes(uint64_t blocks, uint64_t slots_each);
};

size_t RingMemory::bytes(uint64_t blocks, uint64_t slots_each) {
  return sizeof(RingMemory) + blocks * (slots_each + 1) * sizeof(FlowEvent);
}

size_t FlowRing::bytes_for(uint64_t events) {
  return (RingMemory::bytes(RingMemory::blocks_for(events), RingMemory::slots_for(events)) + 4095) & ~size_t{4095};
}

FlowRing::FlowRing(std::span<std::byte> memory, uint64_t events)
    : memory_(memory),
      ring_(reinterpret_cast<RingMemory*>(memory.data())),
      slots_(RingMemory::slots_for(events)),
      nr_blocks_(RingMemory::blocks_for(events)) {
  WEIR_BUG_ON(reinterpret_cast<uintptr_t>(memory.data()) % alignof(RingMemory) != 0);
  WEIR_BUG_ON(memory.size() < bytes_for(events));
  details = false;
  restart();
}

void FlowRing::restart() {
  id_ = last_id.fetch_add(1, std::memory_order_relaxed) + 1;
  ring_->slots = slots_;
  ring_->nr_blocks = nr_blocks_;
  ring_->start_ticks = ticks();
  ring_->start_ns = monotonic_ns();
  ring_->magic = RingMemory::MAGIC;
}

FlowNames& FlowRing::names() { return ring_->names; }
uint64_t FlowRing::lost() const { return ring_->lost.load(std::memory_order_relaxed); }

uint64_t FlowRing::recorded() const {
  uint64_t events = ring_->events.load(std::memory_order_relaxed);
  for (uint64_t i = 0; i < nr_blocks_; ++i) {
    const uint64_t* block = ring_->block(i, slots_);
    if (load(block + OPEN) != 0)
      events += load(block + FILLED) / EVENT_WORDS - 1 + events_without_slot(load(block + MORE));
  }
  return events;
}

// ---- Recording ------------------------------------------------------------------------------------------------------

void FlowRing::enter(const FlowSite& site, uint64_t a, uint64_t b, uint64_t c) {
  append(FlowEvent::ENTER, site, a, b, c);
}

void FlowRing::leave(const FlowSite& site) {
  FlowLane& lane = engine_thread().lane;
  if (__builtin_expect(lane.calls == 0 || lane.ring != id_, 0)) return append_slowly(FlowEvent::LEAVE, site, 0, 0, 0);
  --lane.calls;
  uint64_t* middle = lane.at - EVENT_WORDS + 1;
  store(middle, *middle + ONE_LEAVE);
  one_more(lane);
}

void FlowRing::leave_with(const FlowSite& site, uint64_t result) { append(FlowEvent::LEAVE, site, result, 1, 0); }

void FlowRing::state(const FlowSite& site, State what, uint64_t subject, uint64_t before, uint64_t after) {
  if (what == State::page_flags) return page(site, PAGE_FLAGS, subject, before | after << 32);
  if (what == State::page_count) return page(site, PAGE_COUNT, subject, before | after << 32);
  FlowLane& lane = engine_thread().lane;
  if (passes_on(what) && lane.at != lane.stop) look_at_clock(lane);
  append(static_cast<uint16_t>(FlowEvent::STATE + static_cast<uint16_t>(what)), site, subject, before, after);
}

/// A page's flags or count, from what is in the lower half of `change` to what is in the upper one.
void FlowRing::page(const FlowSite& site, uint16_t kind, uint64_t pfn, uint64_t change) {
  const FlowLane& lane = engine_thread().lane;
  uint64_t* last = lane.at - EVENT_WORDS;
  if (lane.ring == id_ && lane.block != nullptr && last != lane.block && last[2] == pfn) {
    const auto was = static_cast<uint8_t>(last[1] >> 32);
    uint64_t* part = last + (kind == PAGE_FLAGS ? 3 : 4);
    if (was == kind || was == PAGE_BOTH) {
      if (*part >> 32 == static_cast<uint32_t>(change))
        return store(part, static_cast<uint32_t>(*part) | change >> 32 << 32);
    } else if (was == (PAGE_BOTH ^ kind)) {
      store(part, change);
      store(last + 1, last[1] | uint64_t{kind} << 32, std::memory_order_release);
      return one_more(lane);
    }
  }
  append(kind, site, pfn, kind == PAGE_FLAGS ? change : 0, kind == PAGE_COUNT ? change : 0);
}

/// The last event counts for one more.
void FlowRing::one_more(const FlowLane& lane) {
  uint64_t* more = lane.block + MORE;
  store(more, *more + 1);
}

[[gnu::always_inline]] inline void FlowRing::look_at_clock(FlowLane& lane) {
  lane.time = ticks();
  lane.stop = std::min(lane.end, lane.at + EVENTS_A_TIME * EVENT_WORDS);
}

/// The lane has room.
[[gnu::always_inline]] inline void FlowRing::put(FlowLane& lane, uint16_t kind, uint64_t id, uint64_t a, uint64_t b,
                                                 uint64_t c) {
  uint64_t* to = lane.at;
  uint64_t* block = lane.block;
  store(to, lane.time);
  store(to + 1, static_cast<uint32_t>(lane.tid) | uint64_t{kind} << 32 | id << 48);
  store(to + 2, a);
  store(to + 3, b);
  store(to + 4, c);
  lane.at = to + EVENT_WORDS;
  if (kind == FlowEvent::ENTER) ++lane.calls;
  if (kind == FlowEvent::LEAVE && lane.calls > 0) --lane.calls;
  store(block + FILLED, static_cast<uint64_t>(to + EVENT_WORDS - block), std::memory_order_release);
}

[[gnu::always_inline]] inline void FlowRing::append(uint16_t kind, const FlowSite& site, uint64_t a, uint64_t b,
                                                    uint64_t c) {
  FlowLane& lane = engine_thread().lane;
  const uint16_t id = ring_->names.known_id(site);
  if (__builtin_expect(lane.at == lane.stop || lane.ring != id_ || id == 0, 0))
    return append_slowly(kind, site, a, b, c);
  put(lane, kind, id, a, b, c);
}

[[gnu::noinline]] void FlowRing::append_slowly(uint16_t kind, const FlowSite& site, uint64_t a, uint64_t b,
                                               uint64_t c) {
  EngineThread& here = engine_thread();
  const bool stopped = here.lane.at == here.lane.stop || here.lane.ring != id_;
  if (!stopped || go_on(here)) put(here.lane, kind, ring_->names.site_id(site), a, b, c);
}

/// Where a lane stops: room for the next event, who runs here, and what time it is. False, and the event is lost:
/// there is no room.
bool FlowRing::go_on(EngineThread& here) {
  FlowLane& lane = here.lane;
  // A block is taken for others by its age: what is in it must not be much younger.
  if ((lane.ring != id_ || lane.at == lane.end ||
       ring_->taken.load(std::memory_order_relaxed) - load(lane.block + SEQUENCE) > nr_blocks_ / OVERTAKEN) &&
      !next_block(lane))
    return false;
  const int32_t tid = here.thread != nullptr ? here.thread->tid : 0;
  if (tid != lane.tid || lane.at == lane.block + EVENT_WORDS) {
    lane.tid = tid;
    ring_->names.see_task(tid, here.thread, process_);
  }
  look_at_clock(lane);
  return true;
}

/// The oldest block that nobody fills. False, and the event is lost: other lanes have them all.
bool FlowRing::next_block(FlowLane& lane) {
  if (lane.ring != id_) {
    lane = {};
    lane.ring = id_;
    lane.number = ring_->lanes.fetch_add(1, std::memory_order_relaxed);
  } else if (lane.block != nullptr) {
    const auto filled = static_cast<uint64_t>(lane.at - lane.block) / EVENT_WORDS - 1;
    ring_->events.fetch_add(filled + events_without_slot(lane.block[MORE]), std::memory_order_relaxed);
    store(lane.block + OPEN, 0, std::memory_order_release);
  }
  lane.block = lane.at = lane.end = lane.stop = nullptr;
  lane.calls = 0;
  for (uint64_t tries = 0; tries < nr_blocks_; ++tries) {
    const uint64_t number = ring_->taken.fetch_add(1, std::memory_order_relaxed);
    uint64_t* block = ring_->block(number % nr_blocks_, slots_);
    if (std::atomic_ref(block[OPEN]).exchange(1, std::memory_order_acquire) != 0) continue;
    if (load(block + SEQUENCE) > number) {
      // This thread slept for a whole round: what is there is newer.
      store(block + OPEN, 0, std::memory_order_release);
      continue;
    }
    store(block + SEQUENCE, 0, std::memory_order_seq_cst);
    store(block + FILLED, EVENT_WORDS, std::memory_order_release);
    store(block + BEFORE, lane.time, std::memory_order_release);
    store(block + MORE, uint64_t{lane.number % MAX_LANES} << LANE_SHIFT, std::memory_order_release);
    store(block + SEQUENCE, number + 1, std::memory_order_release);
    lane.block = block;
    lane.at = block + EVENT_WORDS;
    lane.end = block + (slots_ + 1) * EVENT_WORDS;
    return true;
  }
  ring_->lost.fetch_add(1, std::memory_order_relaxed);
  return false;
}

// ---- Writing out ----------------------------------------------------------------------------------------------------

namespace {

class RingFile {
 public:
  RingFile(const RingMemory& ring, FlowOutput output) : ring_(ring), out_(output) {}

  bool write(size_t bytes, std::string_view ended) {
    nr_blocks_ = ring_.nr_blocks;
    slots_ = ring_.slots;
    if (slots_ == 0 || slots_ > MOST_SLOTS || nr_blocks_ > bytes || RingMemory::bytes(nr_blocks_, slots_) > bytes)
      return false;
    nr_lanes_ = std::min(ring_.lanes.load(std::memory_order_acquire), MAX_LANES);
    // An event may be one of flags and one of a count; and others may go on recording while this is read twice.
    totals_mask_ = std::bit_ceil(4 * nr_blocks_ * slots_ + 1) - 1;
    const size_t room = (totals_mask_ + 1) * sizeof *totals_ + nr_lanes_ * sizeof *lanes_ + nr_blocks_ * sizeof *next_;
    const long memory =
        raw_syscall(SYS_mmap, 0, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory < 0 && memory > -4096) return false;
    totals_ = reinterpret_cast<Total*>(memory);
    lanes_ = reinterpret_cast<Lane*>(totals_ + totals_mask_ + 1);
    next_ = reinterpret_cast<uint32_t*>(lanes_ + nr_lanes_);
    tell(ended);
    raw_syscall(SYS_munmap, memory, room);
    return out_.flush();
  }

 private:
  static constexpr uint32_t NONE = UINT32_MAX;
  struct Lane {
    uint32_t first, last;  // blocks, in the order in which they were filled
    uint64_t next;         // in the first one, the event after `event`
    FlowEvent event;
    uint16_t calls[MOST_SLOTS];  // sites of those entered in the first one and not left
    uint16_t nr_calls;
  };

  [[nodiscard]] const uint64_t* block(uint64_t i) const { return ring_.block(i, slots_); }
  [[nodiscard]] uint64_t filled(uint64_t i) const {
    const uint64_t events = load(block(i) + FILLED, std::memory_order_acquire) / EVENT_WORDS;
    return std::min(events > 0 ? events - 1 : 0, slots_);
  }

  /// Each lane's blocks, oldest first: those of the last round, and older ones that their lanes still fill. What a lane
  /// did before its first one is gone: so nothing is told of any lane up to then.
  void line_up() {
    for (uint32_t i = 0; i < nr_lanes_; ++i)
      lanes_[i] = {.first = NONE, .last = NONE, .next = 0, .event = {}, .calls = {}, .nr_calls = 0};
    gone_ = 0;
    for (uint64_t number = taken_ > nr_blocks_ ? taken_ - nr_blocks_ : 0; number < taken_; ++number) {
      const uint64_t i = number % nr_blocks_;
      const uint64_t sequence = load(block(i) + SEQUENCE, std::memory_order_acquire);
      const uint64_t lane = load(block(i) + MORE, std::memory_order_acquire) >> LANE_SHIFT;
      if (sequence == 0 || sequence > number + 1 || lane >= nr_lanes_) continue;
      Lane& l = lanes_[lane];
      if (l.first == NONE) gone_ = std::max(gone_, load(block(i) + BEFORE));
      if (filled(i) == 0) continue;
      next_[i] = NONE;
      (l.first == NONE ? l.first : next_[l.last]) = static_cast<uint32_t>(i);
      l.last = static_cast<uint32_t>(i);
    }
    nr_heads_ = 0;
    for (uint32_t i = 0; i < nr_lanes_; ++i)
      if (Lane lane = lanes_[i]; advance(lane)) lanes_[nr_heads_++] = lane;
  }

  /// The lane's next event. False: there is none, or the block has been taken for others meanwhile.
  bool read(Lane& lane) const {
    const uint64_t* from = block(lane.first);
    const uint64_t sequence = load(from + SEQUENCE, std::memory_order_acquire);
    if (sequence == 0 || sequence > taken_ || lane.next >= filled(lane.first)) return false;
    uint64_t copy[EVENT_WORDS];
    for (uint64_t i = 0; i < EVENT_WORDS; ++i)
      copy[i] = load(from + (lane.next + 1) * EVENT_WORDS + i, std::memory_order_acquire);
    if (load(from + SEQUENCE) != sequence) return false;
    std::memcpy(&lane.event, copy, sizeof lane.event);
    ++lane.next;
    return true;
  }

  /// To the next event of those to tell. False: the lane has no more.
  static constexpr auto NOBODY = [](const FlowEvent&) {};
  bool advance(Lane& lane) const {
    while (lane.first != NONE) {
      if (read(lane)) {
        if (lane.event.time > gone_) return true;
        expand(lane, NOBODY);
      } else {
        lane.first = next_[lane.first];
        lane.next = 0;
        lane.nr_calls = 0;
      }
    }
    return false;
  }

  static FlowEvent page_event(FlowEvent event, State what, uint64_t change) {
    event.kind = static_cast<uint16_t>(FlowEvent::STATE + static_cast<uint16_t>(what));
    event.value[1] = static_cast<uint32_t>(change);
    event.value[2] = change >> 32;
    return event;
  }

  /// Tells fn the lane's event and those that it counts for, as the file has them.
  template <class Fn>
  static void expand(Lane& lane, Fn fn) {
    FlowEvent event = lane.event;
    const unsigned leaves = event.kind >> 8;
    event.kind &= 0xff;
    if (event.is_enter() && lane.nr_calls < MOST_SLOTS) lane.calls[lane.nr_calls++] = event.site;
    if (event.is_leave() && lane.nr_calls > 0) --lane.nr_calls;
    if (event.is_enter() || event.is_leave() ||
        (event.is_state() && event.state() < static_cast<uint16_t>(State::count)))
      fn(event);
    if (event.kind == PAGE_FLAGS || event.kind == PAGE_BOTH) fn(page_event(event, State::page_flags, event.value[1]));
    if (event.kind == PAGE_COUNT || event.kind == PAGE_BOTH) fn(page_event(event, State::page_count, event.value[2]));
    for (unsigned i = 0; i < leaves && lane.nr_calls > 0; ++i) {
      const uint16_t site = lane.calls[--lane.nr_calls];
      fn(FlowEvent{.time = event.time, .tid = event.tid, .kind = FlowEvent::LEAVE, .site = site});
    }
  }

  /// Tells fn every event, of all lanes by time. Where times are alike, one lane's go together.
  template <class Fn>
  void merge(Fn fn) {
    line_up();
    while (nr_heads_ > 0) {
      uint32_t now = 0;
      uint64_t until = UINT64_MAX;  // the next of another lane
      for (uint32_t i = 1; i < nr_heads_; ++i) {
        if (lanes_[i].event.time < lanes_[now].event.time) {
          until = lanes_[now].event.time;
          now = i;
        } else {
          until = std::min(until, lanes_[i].event.time);
        }
      }
      bool more = true;
      do {
        expand(lanes_[now], fn);
        more = advance(lanes_[now]);
      } while (more && lanes_[now].event.time <= until);
      if (!more) lanes_[now] = lanes_[--nr_heads_];
    }
  }

  /// Threads change a page's flags and count at the same moment, without a lock: each change is right, their order in
  /// the ring need not be. So a page is told by the sum of its changes, from where most of them say that it began.
  struct Total {
    uint64_t key;  // 0: empty
    uint32_t sum, start, votes;
    bool told;
  };
  [[nodiscard]] static bool adds_up(const FlowEvent& event) {
    return event.is_state() && (event.state() == static_cast<uint16_t>(State::page_flags) ||
                                event.state() == static_cast<uint16_t>(State::page_count));
  }
  [[nodiscard]] static bool is_count(const FlowEvent& event) {
    return event.state() == static_cast<uint16_t>(State::page_count);
  }
  /// The value, moved as far as from `from` to `to`.
  [[nodiscard]] static uint32_t moved(const FlowEvent& event, uint32_t value, uint64_t from, uint64_t to) {
    return is_count(event) ? value + static_cast<uint32_t>(to - from) : value ^ static_cast<uint32_t>(from ^ to);
  }
  [[nodiscard]] Total& total(const FlowEvent& event) {
    const uint64_t key = event.value[0] << 1 | is_count(event);
    uint64_t i = key & totals_mask_;
    while (totals_[i].key != 0 && totals_[i].key != key + 1) i = (i + 1) & totals_mask_;
    totals_[i].key = key + 1;
    return totals_[i];
  }
  void vote(const FlowEvent& event) {
    if (!adds_up(event)) return;
    Total& page = total(event);
    const uint32_t start = moved(event, static_cast<uint32_t>(event.value[1]), page.sum, 0);
    if (page.votes == 0) page.start = start;
    page.start == start ? ++page.votes : --page.votes;
    page.sum = moved(event, page.sum, event.value[1], event.value[2]);
  }
  void add_up(FlowEvent& event) {
    if (!adds_up(event)) return;
    Total& page = total(event);
    if (!page.told) page.sum = page.start;
    // Nobody else has a page whose count is 0.
    if (is_count(event) && event.value[1] == 0) page.sum = 0;
    page.told = true;
    const uint32_t was = page.sum;
    page.sum = moved(event, was, event.value[1], event.value[2]);
    event.value[1] = was;
    event.value[2] = page.sum;
  }

  void names(size_t& told) {
    const std::span<const std::byte> blocks = ring_.names.blocks();
    out_.bytes(blocks.data() + told, blocks.size() - told);
    told = blocks.size();
  }

  void tell(std::string_view ended) {
    taken_ = ring_.taken.load(std::memory_order_acquire);
    const double dt = static_cast<double>(ticks() - ring_.start_ticks);
    const double ns_a_tick = dt > 0 ? static_cast<double>(monotonic_ns() - ring_.start_ns) / dt : 1;
    uint64_t recorded = ring_.events.load(std::memory_order_relaxed), kept = 0;
    for (uint64_t i = 0; i < nr_blocks_; ++i)
      if (load(block(i) + OPEN) != 0) recorded += filled(i) + events_without_slot(load(block(i) + MORE));
    merge([&](const FlowEvent& event) {
      vote(event);
      ++kept;
    });
    uint64_t next = recorded > kept ? recorded - kept : 0;

    out_.header();
    size_t names_told = 0;
    names(names_told);
    if (!ended.empty()) {
      constexpr std::string_view KEY = "ended";
      const uint16_t sizes[2] = {KEY.size(), static_cast<uint16_t>(ended.size())};
      out_.block(BLOCK_FACT, sizeof sizes + KEY.size() + ended.size());
      out_.value(sizes);
      out_.bytes(KEY.data(), KEY.size());
      out_.bytes(ended.data(), ended.size());
    }
    FlowEvent batch[256];
    size_t count = 0;
    uint64_t last = 0;  // times never go back
    const auto send = [&] {
      // After the events were copied: a site has its name before an event bears its number.
      const uint32_t sites = ring_.names.nr_sites();
      names(names_told);
      for (size_t i = 0; i < count; ++i)
        if (batch[i].site > sites) batch[i].site = 0;
      if (count > 0) out_.events(next, batch, count);
      next += count;
      count = 0;
    };
    merge([&](FlowEvent event) {
      const uint64_t since = event.time > ring_.start_ticks ? event.time - ring_.start_ticks : 0;
      last = std::max(last, static_cast<uint64_t>(static_cast<double>(since) * ns_a_tick));
      event.time = last;
      add_up(event);
      batch[count++] = event;
      if (count == std::size(batch)) send();
    });
    send();
    out_.done(std::max(next, recorded));
  }

  const RingMemory& ring_;
  FlowWriter out_;
  uint64_t nr_blocks_ = 0, slots_ = 0;
  uint64_t taken_ = 0;
  uint32_t nr_lanes_ = 0, nr_heads_ = 0;
  Lane* lanes_ = nullptr;     // in line_up() all of them, then those that have events
  uint32_t* next_ = nullptr;  // [block]: the lane's next one
  uint64_t gone_ = 0;         // up to this time events are missing
  Total* totals_ = nullptr;   // hashed, a power of two of them
  uint64_t totals_mask_ = 0;
};

}  // namespace

bool is_ring(std::span<const std::byte> memory) {
  return memory.size() >= sizeof(RingMemory) &&
         reinterpret_cast<const RingMemory*>(memory.data())->magic == RingMemory::MAGIC;
}

bool write_ring(std::span<const std::byte> memory, std::string_view ended, FlowOutput output) {
  if (!is_ring(memory)) return false;
  return RingFile(*reinterpret_cast<const RingMemory*>(memory.data()), output).write(memory.size(), ended);
}

}  // namespace weir
