// src/record/recorder.cpp: see recorder.hpp
#include "record/recorder.hpp"

#include <algorithm>

#include "kernel/kernel.hpp"

namespace weir {

namespace {
uint64_t now() {
  const World* world = engine_thread().world;
  return world != nullptr ? world->now().v : 0;
}
}  // namespace

Recorder::Recorder(std::span<std::byte> memory, FlowOutput output) : output_(output) {
  WEIR_BUG_ON(reinterpret_cast<uintptr_t>(memory.data()) % alignof(uint64_t) != 0);
  WEIR_BUG_ON(memory.size() < BYTES_AN_EVENT);
  const size_t capacity = std::bit_floor(memory.size() / BYTES_AN_EVENT);
  mask_ = capacity - 1;
  // A quarter: while one is written out, three take what others record. A block's size is 32 bits.
  chunk_ = std::clamp<uint64_t>(capacity / 4, 1, 1u << 20);
  events_ = reinterpret_cast<uint64_t*>(memory.data());
  done_ = events_ + capacity * (sizeof(FlowEvent) / 8);
}

// ---- Recording ------------------------------------------------------------------------------------------------------

void Recorder::enter(const FlowSite& site, uint64_t a, uint64_t b, uint64_t c) {
  append(FlowEvent::ENTER, site, a, b, c);
}
void Recorder::leave(const FlowSite& site) { append(FlowEvent::LEAVE, site, 0, 0, 0); }
void Recorder::leave_with(const FlowSite& site, uint64_t result) { append(FlowEvent::LEAVE, site, result, 1, 0); }
void Recorder::state(const FlowSite& site, State what, uint64_t subject, uint64_t before, uint64_t after) {
  append(static_cast<uint16_t>(FlowEvent::STATE + static_cast<uint16_t>(what)), site, subject, before, after);
}

[[gnu::always_inline]] inline void Recorder::append(uint16_t kind, const FlowSite& site, uint64_t a, uint64_t b,
                                                    uint64_t c) {
  const Thread* thread = engine_thread().thread;
  const int32_t tid = thread != nullptr ? thread->tid : 0;
  const uint64_t id = names_.site_id(site);
  names_.see_task(tid, thread, 0);
  const uint64_t time = now();
  const uint64_t number = next_.fetch_add(1, std::memory_order_relaxed);
  if (number - sent_.load(std::memory_order_acquire) > mask_) wait_for_room(number);
  uint64_t* to = words(number);
  to[0] = time;
  to[1] = static_cast<uint32_t>(tid) | uint64_t{kind} << 32 | id << 48;
  to[2] = a;
  to[3] = b;
  to[4] = c;
  done(number).store(number + 1, std::memory_order_release);
  if (((number + 1) & (chunk_ - 1)) == 0) send_done_events(false);
}

[[gnu::noinline]] void Recorder::wait_for_room(uint64_t number) {
  for (unsigned spins = 0; number - sent_.load(std::memory_order_acquire) > mask_; relax(spins)) send_done_events(true);
}

bool Recorder::note(std::string_view key, std::string_view text) {
  constexpr size_t LIMIT = 1u << 24;  // far beyond any /proc file, far below a block's 32 bits
  if (key.size() > LIMIT || text.size() > LIMIT) return false;
  const uint64_t number = recorded(), time = now();
  send_done_events(true);
  SideLock guard(send_lock_);
  FlowWriter out(output_failed_ ? FlowOutput{} : output_);
  send_names(out);
  const auto key_size = static_cast<uint32_t>(key.size()), text_size = static_cast<uint32_t>(text.size());
  out.block(BLOCK_NOTE, sizeof number + sizeof time + sizeof key_size + sizeof text_size + key_size + text_size);
  out.value(number);
  out.value(time);
  out.value(key_size);
  out.value(text_size);
  out.bytes(key.data(), key_size);
  out.bytes(text.data(), text_size);
  if (!out.flush()) output_failed_ = true;
  return !output_failed_;
}

// ---- Writing out ----------------------------------------------------------------------------------------------------

void Recorder::send_names(FlowWriter& out) {
  if (!header_sent_) out.header();
  header_sent_ = true;
  const std::span<const std::byte> known = names_.blocks();
  out.bytes(known.data() + names_sent_, known.size() - names_sent_);
  names_sent_ = known.size();
}

// Sends what is whole, in order, up to the first event that is still being filled in: whole chunks, or everything.
[[gnu::noinline]] void Recorder::send_done_events(bool also_part_of_a_chunk) {
  SideLock guard(send_lock_);
  uint64_t from = sent_.load(std::memory_order_relaxed);
  uint64_t to = from;
  while (to - from <= mask_ && done(to).load(std::memory_order_acquire) == to + 1) ++to;
  if (!also_part_of_a_chunk) to &= ~(chunk_ - 1);
  if (to <= from) return;
  FlowWriter out(output_failed_ ? FlowOutput{} : output_);
  send_names(out);
  const uint64_t whole = to - from;
  while (from < to) {
    const uint64_t run = std::min({to - from, capacity() - (from & mask_), uint64_t{1} << 20});
    out.events(from, words(from), run);
    from += run;
  }
  if (!out.flush()) {
    output_failed_ = true;
    lost_.fetch_add(whole, std::memory_order_relaxed);
  }
  sent_.store(to, std::memory_order_release);
}

bool Recorder::finish() {
  send_done_events(true);
  SideLock guard(send_lock_);
  FlowWriter out(output_failed_ ? FlowOutput{} : output_);
  send_names(out);
  out.done(recorded());
  if (!out.flush()) output_failed_ = true;
  return !output_failed_;
}

}  // namespace weir
