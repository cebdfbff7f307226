// src/record/recorder.cpp: see recorder.hpp
#include "record/recorder.hpp"

#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

#include "kernel/kernel.hpp"

namespace weir {

namespace {

// Not libc's: that one writes errno, and a preload may stand in front of it.
long raw_syscall3(long number, long a, long b, long c) {
  long result;
  asm volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
}

void relax(unsigned& spins) {
  if (++spins % 64 == 0)
    raw_syscall3(SYS_sched_yield, 0, 0, 0);
  else
    __builtin_ia32_pause();
}

// Not kernel/'s SpinLock: that is a place where the virtual world may switch threads, and recording must not change a
// schedule.
class SideLock {
 public:
  explicit SideLock(std::atomic<bool>& word) : word_(word) {
    for (unsigned spins = 0; word_.exchange(true, std::memory_order_acquire);) relax(spins);
  }
  ~SideLock() { word_.store(false, std::memory_order_release); }
  SideLock(const SideLock&) = delete;
  SideLock& operator=(const SideLock&) = delete;

 private:
  std::atomic<bool>& word_;
};

uint64_t now() {
  const World* world = engine_thread().world;
  return world != nullptr ? world->now().v : 0;
}

void copy_name(char (&to)[16], std::string_view from) {
  std::memset(to, 0, sizeof to);
  std::memcpy(to, from.data(), std::min(from.size(), sizeof to - 1));
}

constexpr const char* STATE_NAMES[] = {
#define X(name) #name,
    WEIR_STATES(X)
#undef X
};

struct NoteHeader {
  uint64_t number;  // of the next event
  uint64_t time;
  uint32_t key_size;
  uint32_t text_size;
};
constexpr size_t note_room(const NoteHeader& note) {
  return (sizeof note + note.key_size + note.text_size + 7) & ~size_t{7};
}

}  // namespace

FlowOutput output_to_fd(int fd) {
  return {[](void* context, const void* bytes, size_t size) {
            constexpr long EINTR_ = -4, EAGAIN_ = -11;
            const long fd = static_cast<long>(reinterpret_cast<intptr_t>(context));
            unsigned spins = 0;
            for (const char* at = static_cast<const char*>(bytes); size > 0;) {
              const long done = raw_syscall3(SYS_write, fd, reinterpret_cast<long>(at), static_cast<long>(size));
              if (done == EINTR_ || done == EAGAIN_) {
                relax(spins);
                continue;
              }
              if (done <= 0) return false;
              at += done;
              size -= static_cast<size_t>(done);
            }
            return true;
          },
          reinterpret_cast<void*>(static_cast<intptr_t>(fd))};
}

// Gathers small pieces, so that a table of names is a few writes.
class Recorder::Out {
 public:
  explicit Out(FlowOutput output) : output_(output), ok_(output.write != nullptr) {}

  void bytes(const void* from, size_t size) {
    if (size > sizeof buffer_ - used_) flush();
    if (size > sizeof buffer_) {
      if (ok_) ok_ = output_.write(output_.context, from, size);
      return;
    }
    std::memcpy(buffer_ + used_, from, size);
    used_ += size;
  }
  template <class T>
  void value(T x) {
    bytes(&x, sizeof x);
  }
  void block(uint32_t tag, size_t size) { value(BlockHeader{tag, static_cast<uint32_t>(size)}); }
  bool flush() {
    if (ok_ && used_ > 0) ok_ = output_.write(output_.context, buffer_, used_);
    used_ = 0;
    return ok_;
  }

  void header() {
    value(RecordingHeader{});
    size_t size = 0;
    for (const char* name : STATE_NAMES) size += std::strlen(name) + 1;
    block(BLOCK_STATES, size);
    for (const char* name : STATE_NAMES) bytes(name, std::strlen(name) + 1);
  }
  void site(uint32_t id, const FlowSite& site) {
    const size_t function = std::strlen(site.function) + 1, file = std::strlen(site.file) + 1,
                 arguments = std::strlen(site.arguments) + 1;
    block(BLOCK_SITE, sizeof(uint16_t) + function + file + arguments);
    value(static_cast<uint16_t>(id));
    bytes(site.function, function);
    bytes(site.file, file);
    bytes(site.arguments, arguments);
  }
  void task(int32_t tid, int32_t pid, const char (&comm)[16]) {
    block(BLOCK_TASK, sizeof tid + sizeof pid + sizeof comm);
    value(tid);
    value(pid);
    bytes(comm, sizeof comm);
  }
  void facts(const char* from, size_t size) {
    if (size == 0) return;
    block(BLOCK_FACT, size);
    bytes(from, size);
  }
  void note(const NoteHeader& note, const void* key, const void* text) {
    block(BLOCK_NOTE, sizeof note + note.key_size + note.text_size);
    value(note);
    bytes(key, note.key_size);
    bytes(text, note.text_size);
  }
  void events(uint64_t first, const void* from, size_t count) {
    block(BLOCK_EVENTS, sizeof first + count * sizeof(FlowEvent));
    value(first);
    bytes(from, count * sizeof(FlowEvent));
  }
  void done(uint64_t recorded) {
    block(BLOCK_DONE, sizeof recorded);
    value(recorded);
  }

 private:
  FlowOutput output_;
  bool ok_;
  size_t used_ = 0;
  char buffer_[4096];
};

Recorder::Recorder(std::span<std::byte> memory, FlowOutput output) : output_(output) {
  WEIR_BUG_ON(reinterpret_cast<uintptr_t>(memory.data()) % alignof(uint64_t) != 0);
  WEIR_BUG_ON(memory.size() < BYTES_AN_EVENT);
  const size_t capacity = std::bit_floor(memory.size() / BYTES_AN_EVENT);
  mask_ = capacity - 1;
  // A quarter: while one is written out, three take what others record. A block's size is 32 bits.
  chunk_ = std::clamp<uint64_t>(capacity / 4, 1, 1u << 20);
  events_ = reinterpret_cast<uint64_t*>(memory.data());
  progress_ = events_ + capacity * (sizeof(FlowEvent) / 8);
  notes_ = reinterpret_cast<std::byte*>(progress_ + capacity);
  notes_size_ = (memory.size() - capacity * BYTES_AN_EVENT) & ~size_t{7};
}

// ---- Recording ------------------------------------------------------------------------------------------------------

void Recorder::enter(const FlowSite& site, uint64_t a, uint64_t b, uint64_t c) {
  append(FlowEvent::ENTER, site, a, b, c);
}
void Recorder::leave(const FlowSite& site) { append(FlowEvent::LEAVE, site, 0, 0, 0); }
void Recorder::state(const FlowSite& site, State what, uint64_t subject, uint64_t before, uint64_t after) {
  append(static_cast<uint16_t>(FlowEvent::STATE + static_cast<uint16_t>(what)), site, subject, before, after);
}

[[gnu::always_inline]] inline void Recorder::append(uint16_t kind, const FlowSite& site, uint64_t a, uint64_t b,
                                                    uint64_t c) {
  const Thread* thread = engine_thread().thread;
  const int32_t tid = thread != nullptr ? thread->tid : 0;
  const uint64_t id = site_id(site);
  see_task(tid);
  const uint64_t time = now();
  const uint64_t number = next_.fetch_add(1, std::memory_order_relaxed);
  if (output_.write == nullptr) {
    if (!claim_in_ring(number)) {
      lost_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
  } else if (number - sent_.load(std::memory_order_acquire) > mask_) {
    wait_for_room(number);
  }
  // Release, which costs nothing here: a reader that meets one of these words also meets the mark set before them.
  const uint64_t middle = static_cast<uint32_t>(tid) | uint64_t{kind} << 32 | id << 48;
  uint64_t* to = words(number);
  std::atomic_ref(to[0]).store(time, std::memory_order_release);
  std::atomic_ref(to[1]).store(middle, std::memory_order_release);
  std::atomic_ref(to[2]).store(a, std::memory_order_release);
  std::atomic_ref(to[3]).store(b, std::memory_order_release);
  std::atomic_ref(to[4]).store(c, std::memory_order_release);
  progress(number).store(2 * number + 2, std::memory_order_release);
  if (output_.write != nullptr && ((number + 1) & (chunk_ - 1)) == 0) send_done_events(false);
}

// Takes the place of an older event that is whole. If that one is still being filled in, or a newer one was faster
// (this thread slept a whole round), the event is lost: mixing two would be worse.
[[gnu::always_inline]] inline bool Recorder::claim_in_ring(uint64_t number) {
  std::atomic_ref<uint64_t> mark = progress(number);
  uint64_t seen = mark.load(std::memory_order_relaxed);
  return seen % 2 == 0 && seen <= 2 * number &&
         mark.compare_exchange_strong(seen, 2 * number + 1, std::memory_order_acquire, std::memory_order_relaxed);
}

[[gnu::noinline]] void Recorder::wait_for_room(uint64_t number) {
  for (unsigned spins = 0; number - sent_.load(std::memory_order_acquire) > mask_; relax(spins)) send_done_events(true);
}

bool Recorder::read(uint64_t number, FlowEvent& event) const {
  if (progress(number).load(std::memory_order_acquire) != 2 * number + 2) return false;
  uint64_t copy[sizeof event / 8];
  for (size_t i = 0; i < std::size(copy); ++i)
    copy[i] = std::atomic_ref(words(number)[i]).load(std::memory_order_acquire);
  if (progress(number).load(std::memory_order_relaxed) != 2 * number + 2) return false;
  std::memcpy(&event, copy, sizeof event);
  return true;
}

// ---- Names ----------------------------------------------------------------------------------------------------------

namespace {
uint32_t site_hash(const FlowSite* site) {
  return static_cast<uint32_t>((reinterpret_cast<uintptr_t>(site) >> 3) * 0x9e3779b97f4a7c15ull >> 53);
}
}  // namespace

// Numbers go by first use, not by address: the same run gives the same file.
[[gnu::always_inline]] inline uint16_t Recorder::site_id(const FlowSite& site) {
  for (uint32_t at = site_hash(&site);; ++at) {
    const SiteSlot& slot = sites_[at % SITE_SLOTS];
    const FlowSite* seen = slot.site.load(std::memory_order_acquire);
    if (seen == &site) return static_cast<uint16_t>(slot.id);
    if (seen == nullptr) return add_site(site);  // a quarter of the slots is always empty
  }
}

[[gnu::noinline]] uint16_t Recorder::add_site(const FlowSite& site) {
  if (site_count_.load(std::memory_order_relaxed) == MAX_SITES) return 0;
  SideLock guard(side_lock_);
  uint32_t at = site_hash(&site);
  for (;; ++at) {
    const FlowSite* seen = sites_[at % SITE_SLOTS].site.load(std::memory_order_relaxed);
    if (seen == &site) return static_cast<uint16_t>(sites_[at % SITE_SLOTS].id);
    if (seen == nullptr) break;
  }
  const uint32_t id = site_count_.load(std::memory_order_relaxed) + 1;
  if (id > MAX_SITES) return 0;
  SiteSlot& slot = sites_[at % SITE_SLOTS];
  slot.id = id;
  site_of_[id] = &site;
  site_count_.store(id, std::memory_order_release);
  slot.site.store(&site, std::memory_order_release);
  return static_cast<uint16_t>(id);
}

[[gnu::always_inline]] inline void Recorder::see_task(int32_t tid) {
  if (tasks_[static_cast<uint32_t>(tid) % TASK_SLOTS].key.load(std::memory_order_relaxed) != int64_t{tid} + 1) {
    const Thread* thread = engine_thread().thread;
    const TaskSlot* slot = task_slot(tid);
    if (slot != nullptr && slot->key.load(std::memory_order_acquire) == 0 &&
        task_count_.load(std::memory_order_relaxed) < MAX_TASKS)
      task(tid, 0, thread != nullptr ? std::string_view(thread->comm, strnlen(thread->comm, sizeof thread->comm)) : "");
  }
}

// The task's slot, or the empty one where it belongs; null when the table is full and does not know it.
[[gnu::noinline]] Recorder::TaskSlot* Recorder::task_slot(int32_t tid) {
  for (uint32_t i = 0; i < TASK_SLOTS; ++i) {
    TaskSlot& slot = tasks_[(static_cast<uint32_t>(tid) + i) % TASK_SLOTS];
    const int64_t key = slot.key.load(std::memory_order_acquire);
    if (key == int64_t{tid} + 1 || key == 0) return &slot;
  }
  return nullptr;
}

void Recorder::task(int32_t tid, int32_t pid, std::string_view comm) {
  SideLock guard(side_lock_);
  TaskSlot* slot = task_slot(tid);
  const bool is_new = slot != nullptr && slot->key.load(std::memory_order_relaxed) == 0;
  if (slot == nullptr || (is_new && task_count_.load(std::memory_order_relaxed) == MAX_TASKS)) return;
  if (is_new) task_count_.fetch_add(1, std::memory_order_relaxed);
  if (pid != 0) slot->pid = pid;
  copy_name(slot->comm, comm);
  slot->unsent = true;
  tasks_unsent_ = true;
  slot->key.store(int64_t{tid} + 1, std::memory_order_release);
}

bool Recorder::fact(std::string_view key, std::string_view value) {
  SideLock guard(side_lock_);
  for (size_t at = 0; at < facts_used_;) {
    uint16_t sizes[2];
    std::memcpy(sizes, facts_ + at, sizeof sizes);
    if (std::string_view(facts_ + at + sizeof sizes, sizes[0]) == key) return false;
    at += sizeof sizes + sizes[0] + sizes[1];
  }
  const size_t room = FACT_BYTES - facts_used_;
  if (key.size() > room || value.size() > room || 2 * sizeof(uint16_t) + key.size() + value.size() > room) return false;
  const uint16_t sizes[2] = {static_cast<uint16_t>(key.size()), static_cast<uint16_t>(value.size())};
  char* to = facts_ + facts_used_;
  std::memcpy(to, sizes, sizeof sizes);
  std::memcpy(to + sizeof sizes, key.data(), key.size());
  std::memcpy(to + sizeof sizes + key.size(), value.data(), value.size());
  facts_used_ += sizeof sizes + key.size() + value.size();
  return true;
}

bool Recorder::note(std::string_view key, std::string_view text) {
  constexpr size_t LIMIT = 1u << 24;  // far beyond any /proc file, far below a block's 32 bits
  if (key.size() > LIMIT || text.size() > LIMIT) return false;
  const NoteHeader header{recorded(), now(), static_cast<uint32_t>(key.size()), static_cast<uint32_t>(text.size())};
  if (output_.write != nullptr) {
    send_done_events(true);
    SideLock guard(send_lock_);
    Out out(output_failed_ ? FlowOutput{} : output_);
    send_names(out);
    out.note(header, key.data(), text.data());
    if (!out.flush()) output_failed_ = true;
    return !output_failed_;
  }
  const size_t room = note_room(header);
  if (room > notes_size_) return false;
  SideLock guard(side_lock_);
  // The oldest give way, whole ones at a time.
  size_t drop = 0;
  while (notes_used_ - drop + room > notes_size_) {
    NoteHeader oldest;
    std::memcpy(&oldest, notes_ + drop, sizeof oldest);
    drop += note_room(oldest);
  }
  std::memmove(notes_, notes_ + drop, notes_used_ - drop);
  notes_used_ -= drop;
  std::byte* to = notes_ + notes_used_;
  std::memcpy(to, &header, sizeof header);
  std::memcpy(to + sizeof header, key.data(), key.size());
  std::memcpy(to + sizeof header + key.size(), text.data(), text.size());
  notes_used_ += room;
  return true;
}

// ---- Writing out ----------------------------------------------------------------------------------------------------

bool Recorder::write(FlowOutput output) const {
  WEIR_BUG_ON(output_.write != nullptr);
  const uint64_t end = next_.load(std::memory_order_acquire);
  const uint64_t begin = end > capacity() ? end - capacity() : 0;
  Out out(output);
  out.header();
  FlowEvent batch[64];
  size_t count = 0;
  uint32_t sites_written = 0;
  {
    SideLock guard(side_lock_);
    out.facts(facts_, facts_used_);
    for (const TaskSlot& slot : tasks_)
      if (const int64_t key = slot.key.load(std::memory_order_relaxed); key != 0)
        out.task(static_cast<int32_t>(key - 1), slot.pid, slot.comm);
    for (size_t at = 0; at < notes_used_;) {
      NoteHeader note;
      std::memcpy(&note, notes_ + at, sizeof note);
      out.note(note, notes_ + at + sizeof note, notes_ + at + sizeof note + note.key_size);
      at += note_room(note);
    }
  }
  auto send = [&](uint64_t next) {
    // After the events were copied: a site has its name before an event bears its number.
    for (const uint32_t known = site_count_.load(std::memory_order_acquire); sites_written < known;) {
      ++sites_written;
      out.site(sites_written, *site_of_[sites_written]);
    }
    if (count > 0) out.events(next - count, batch, count);
    count = 0;
  };
  for (uint64_t number = begin; number < end; ++number) {
    if (read(number, batch[count])) {
      if (++count == std::size(batch)) send(number + 1);
    } else {
      send(number);  // a block of events has no gap inside
    }
  }
  send(end);
  out.done(end);
  return out.flush();
}

void Recorder::send_names(Out& out) {
  if (!header_sent_) out.header();
  header_sent_ = true;
  for (const uint32_t known = site_count_.load(std::memory_order_acquire); sites_sent_ < known;) {
    ++sites_sent_;
    out.site(sites_sent_, *site_of_[sites_sent_]);
  }
  SideLock guard(side_lock_);
  out.facts(facts_ + facts_sent_, facts_used_ - facts_sent_);
  facts_sent_ = facts_used_;
  if (!tasks_unsent_) return;
  tasks_unsent_ = false;
  for (TaskSlot& slot : tasks_) {
    if (!slot.unsent) continue;
    slot.unsent = false;
    out.task(static_cast<int32_t>(slot.key.load(std::memory_order_relaxed) - 1), slot.pid, slot.comm);
  }
}

// Sends what is whole, in order, up to the first event that is still being filled in: whole chunks, or everything.
[[gnu::noinline]] void Recorder::send_done_events(bool also_part_of_a_chunk) {
  SideLock guard(send_lock_);
  uint64_t from = sent_.load(std::memory_order_relaxed);
  uint64_t to = from;
  while (to - from <= mask_ && progress(to).load(std::memory_order_acquire) == 2 * to + 2) ++to;
  if (!also_part_of_a_chunk) to &= ~(chunk_ - 1);
  if (to <= from) return;
  Out out(output_failed_ ? FlowOutput{} : output_);
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
  Out out(output_failed_ ? FlowOutput{} : output_);
  send_names(out);
  out.done(recorded());
  if (!out.flush()) output_failed_ = true;
  return !output_failed_;
}

}  // namespace weir
