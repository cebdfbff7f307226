// src/mm/frontswap.cpp: see frontswap.hpp
#include "mm/frontswap.hpp"

namespace weir {

namespace {
enum class Event : uint8_t { stored, refused, loaded, dropped };
void count(std::atomic<uint64_t>& counter) { counter.fetch_add(1, std::memory_order_relaxed); }
}  // namespace

void Frontswap::__frontswap_init(unsigned type, uint64_t slots) {
  WEIR_FLOW(type, slots);
  ops_->init(type, slots);
}

bool Frontswap::__frontswap_store(SwpEntry entry, Content content) {
  WEIR_FLOW(entry);
  const unsigned type = swp_type(entry);
  const uint64_t offset = swp_offset(entry);
  // Whatever comes of the new page, the old one is not to be read again.
  if (maps_.frontswap_test(type, offset)) {
    maps_.frontswap_clear(type, offset);
    ops_->invalidate_page(type, offset);
  }
  if (!ops_->store(type, offset, content)) {
    count(stats_.failed_stores);
    WEIR_STATE(frontswap, entry, Event::refused, 0);
    return false;
  }
  const uint64_t pages = maps_.frontswap_set(type, offset);
  count(stats_.succ_stores);
  WEIR_STATE(frontswap, entry, Event::stored, pages);
  return !writethrough_.load(std::memory_order_relaxed);
}

Result<void> Frontswap::__frontswap_load(SwpEntry entry, Content content) {
  WEIR_FLOW(entry);
  WEIR_TRY_VOID(ops_->load(swp_type(entry), swp_offset(entry), content));
  count(stats_.loads);
  WEIR_STATE(frontswap, entry, Event::loaded, 0);
  return {};
}

void Frontswap::__frontswap_invalidate_page(unsigned type, uint64_t offset) {
  WEIR_FLOW(type, offset);
  ops_->invalidate_page(type, offset);
  const uint64_t pages = maps_.frontswap_clear(type, offset);
  count(stats_.invalidates);
  WEIR_STATE(frontswap, swp_entry(type, offset), Event::dropped, pages);
}

void Frontswap::__frontswap_invalidate_area(unsigned type) {
  WEIR_FLOW(type);
  ops_->invalidate_area(type);
}

}  // namespace weir
