// src/record/names.cpp: see names.hpp
#include "record/names.hpp"

#include <algorithm>
#include <cstring>

#include "kernel/kernel.hpp"
#include "record/event.hpp"
#include "record/output.hpp"

namespace weir {

namespace {

/// Of all recorders of the process: the next site's number.
std::atomic<uint32_t> next_number{1};

std::byte* put(std::byte* to, const void* from, size_t size) {
  std::memcpy(to, from, size);
  return to + size;
}
std::byte* put(std::byte* to, std::string_view text) { return put(to, text.data(), text.size()); }

}  // namespace

/// A block's header in place, and room for its payload behind it; null when all is full. Becomes part of blocks() by
/// the caller's store to used_.
std::byte* FlowNames::room_for(uint32_t tag, size_t bytes) {
  const uint32_t used = used_.load(std::memory_order_relaxed);
  if (bytes > BYTES - sizeof(BlockHeader) || used > BYTES - sizeof(BlockHeader) - bytes) return nullptr;
  const BlockHeader header{tag, static_cast<uint32_t>(bytes)};
  return put(blocks_ + used, &header, sizeof header);
}

[[gnu::noinline]] uint16_t FlowNames::add_site(const FlowSite& site) {
  if (nr_sites_.load(std::memory_order_relaxed) == MAX_SITES) return 0;
  SideLock guard(lock_);
  std::atomic_ref<uint32_t> number(site.number);
  if (number.load(std::memory_order_relaxed) == 0) {
    // Another recorder may be faster; then this number is nobody's.
    uint32_t none = 0;
    number.compare_exchange_strong(none, next_number.fetch_add(1, std::memory_order_relaxed),
                                   std::memory_order_relaxed);
  }
  const uint32_t mine = number.load(std::memory_order_relaxed);
  if (mine >= MAX_NUMBERS) return 0;
  if (const uint16_t id = ids_[mine].load(std::memory_order_relaxed); id != 0) return id;
  const auto id = static_cast<uint16_t>(nr_sites_.load(std::memory_order_relaxed) + 1);
  if (id > MAX_SITES) return 0;
  const std::string_view function(site.function, std::strlen(site.function) + 1),
      file(site.file, std::strlen(site.file) + 1), arguments(site.arguments, std::strlen(site.arguments) + 1);
  std::byte* to = room_for(BLOCK_SITE, sizeof id + function.size() + file.size() + arguments.size());
  if (to == nullptr) return 0;
  to = put(put(put(put(to, &id, sizeof id), function), file), arguments);
  used_.store(static_cast<uint32_t>(to - blocks_), std::memory_order_release);
  nr_sites_.store(id, std::memory_order_release);
  ids_[mine].store(id, std::memory_order_release);
  return id;
}

[[gnu::noinline]] void FlowNames::add_task(int32_t tid, const Thread* thread, int32_t process) {
  const TaskSlot* slot = task_slot(tid);
  if (slot == nullptr || slot->key.load(std::memory_order_acquire) != 0) return;
  if (nr_tasks_.load(std::memory_order_relaxed) == MAX_TASKS) return;
  if (thread == nullptr) return task(tid, 0, "");
  task(tid, thread->task != nullptr ? process : 0, {thread->comm, strnlen(thread->comm, sizeof thread->comm)});
}

// The task's slot, or the empty one where it belongs; null when the table is full and does not know it.
FlowNames::TaskSlot* FlowNames::task_slot(int32_t tid) {
  for (uint32_t i = 0; i < TASK_SLOTS; ++i) {
    TaskSlot& slot = tasks_[(static_cast<uint32_t>(tid) + i) % TASK_SLOTS];
    const int64_t key = slot.key.load(std::memory_order_acquire);
    if (key == int64_t{tid} + 1 || key == 0) return &slot;
  }
  return nullptr;
}

void FlowNames::task(int32_t tid, int32_t pid, std::string_view comm) {
  SideLock guard(lock_);
  TaskSlot* slot = task_slot(tid);
  const bool is_new = slot != nullptr && slot->key.load(std::memory_order_relaxed) == 0;
  const uint32_t nr = nr_tasks_.load(std::memory_order_relaxed);
  if (slot == nullptr || (is_new && nr == MAX_TASKS)) return;
  char name[16] = {};
  std::memcpy(name, comm.data(), std::min(comm.size(), sizeof name - 1));
  std::byte* to = room_for(BLOCK_TASK, sizeof tid + sizeof pid + sizeof name);
  if (to == nullptr) return;
  if (pid != 0) slot->pid = pid;
  to = put(put(put(to, &tid, sizeof tid), &slot->pid, sizeof slot->pid), name, sizeof name);
  used_.store(static_cast<uint32_t>(to - blocks_), std::memory_order_release);
  if (is_new) nr_tasks_.store(nr + 1, std::memory_order_relaxed);
  slot->key.store(int64_t{tid} + 1, std::memory_order_release);
}

bool FlowNames::fact(std::string_view key, std::string_view value) {
  if (key.size() > UINT16_MAX || value.size() > UINT16_MAX) return false;
  SideLock guard(lock_);
  const std::span<const std::byte> known = blocks();
  for (size_t at = 0; at + sizeof(BlockHeader) <= known.size();) {
    BlockHeader header;
    std::memcpy(&header, known.data() + at, sizeof header);
    at += sizeof header;
    uint16_t size = 0;
    if (header.tag == BLOCK_FACT) std::memcpy(&size, known.data() + at, sizeof size);
    if (size == key.size() && std::memcmp(known.data() + at + 2 * sizeof size, key.data(), size) == 0 &&
        header.tag == BLOCK_FACT)
      return false;
    at += header.bytes;
  }
  const uint16_t sizes[2] = {static_cast<uint16_t>(key.size()), static_cast<uint16_t>(value.size())};
  std::byte* to = room_for(BLOCK_FACT, sizeof sizes + key.size() + value.size());
  if (to == nullptr) return false;
  to = put(put(put(to, sizes, sizeof sizes), key), value);
  used_.store(static_cast<uint32_t>(to - blocks_), std::memory_order_release);
  return true;
}

}  // namespace weir
