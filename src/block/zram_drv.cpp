// src/block/zram_drv.cpp: see zram.hpp
#include <cstring>
#include <new>

#include "base/flow.hpp"
#include "block/zram.hpp"

namespace weir {

namespace {

/// The device is full a zspage and a frame of descriptors before its limit: the next object may need as much.
constexpr PageCount ROOM{ZS_MAX_PAGES_PER_ZSPAGE + 1};

uint64_t load_word(const std::byte* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

/// True when the page is one repeated word.
bool page_same_filled(const std::byte* page, uint64_t& element) {
  const uint64_t first = load_word(page);
  // Most pages differ at once, or at their end.
  if (load_word(page + PAGE_SIZE - sizeof first) != first) return false;
  for (size_t at = 0; at < PAGE_SIZE; at += 64) {
    uint64_t differs = 0;
    for (size_t i = 0; i < 64; i += 8) differs |= load_word(page + at + i) ^ first;
    if (differs != 0) return false;
  }
  element = first;
  return true;
}

void zram_fill_page(std::byte* page, uint64_t element) {
  if (element == 0) {
    std::memset(page, 0, PAGE_SIZE);
    return;
  }
  for (size_t at = 0; at < PAGE_SIZE; at += sizeof element) std::memcpy(page + at, &element, sizeof element);
}

size_t table_bytes(PageCount capacity) {
  return page_align_up(static_cast<uint64_t>(capacity.v) * (sizeof(uint64_t) + sizeof(uint16_t)));
}

}  // namespace

size_t Zram::metadata_needed(const ZramOptions& options) {
  const size_t streams = Zcomp::memory_needed(options.comp);
  if (options.capacity <= PageCount(0) || options.mem_limit < PageCount(0) || options.comp.tag_size == nullptr ||
      streams == 0)
    return 0;
  return table_bytes(options.capacity) + streams;
}

Result<Zram*> Zram::create(void* place, FrameSource& frames, const ZramOptions& options,
                           std::span<std::byte> metadata) {
  const size_t needed = metadata_needed(options);
  if (needed == 0 || metadata.size() < needed || reinterpret_cast<uintptr_t>(metadata.data()) % PAGE_SIZE != 0)
    return Errno::inval;
  Zram* zram = ::new (place) Zram(frames, options, metadata);
  if (zram->comp_.usable()) return zram;
  zram->~Zram();
  return Errno::inval;
}

Zram::Zram(FrameSource& frames, const ZramOptions& options, std::span<std::byte> metadata)
    : options_(options),
      pool_(frames),
      comp_(options.comp, metadata.subspan(table_bytes(options.capacity))),
      values_(reinterpret_cast<uint64_t*>(metadata.data())),
      states_(reinterpret_cast<std::atomic<uint16_t>*>(values_ + options.capacity.v)) {
  set_mem_limit(options.mem_limit, options.full_at);
}

Zram::~Zram() { zram_reset_device(); }

// ---- Requests -------------------------------------------------------------------------------------------------------

void Zram::submit_bio(Bio& bio) {
  bio.device = this;
  zram_make_request(bio);
}

void Zram::zram_make_request(Bio& bio) {
  WEIR_FLOW(bio.sector, bio.op);
  const uint64_t index = bio.sector / SECTORS_PER_PAGE;
  if (bio.sector % SECTORS_PER_PAGE != 0 || (bio.pages != 1 && bio.op != BioOp::discard)) {
    invalid_io_.fetch_add(1, std::memory_order_relaxed);
    bio.status = Errno::io;
    bio.end_io(bio);
    return;
  }
  __zram_make_request(bio, index);
}

void Zram::__zram_make_request(Bio& bio, uint64_t index) {
  WEIR_FLOW(index, bio.op);
  if (bio.op == BioOp::discard) {
    zram_bio_discard(index, bio.pages);
    bio.status = Errno::ok;
  } else {
    const Errno error = rw_in_range(bio.op, index, bio.content).error();
    bio.status = error == Errno::inval ? Errno::io : error;
  }
  bio.end_io(bio);
}

Result<void> Zram::zram_rw_page(BioOp op, uint64_t index, Content content) {
  WEIR_FLOW(index, op);
  return rw_in_range(op, index, content);
}

Result<void> Zram::rw_in_range(BioOp op, uint64_t index, Content content) {
  if (index >= static_cast<uint64_t>(options_.capacity.v) || op == BioOp::discard) {
    invalid_io_.fetch_add(1, std::memory_order_relaxed);
    return Errno::inval;
  }
  return zram_bvec_rw(op, index, content);
}

Result<void> Zram::zram_bvec_rw(BioOp op, uint64_t index, Content content) {
  WEIR_FLOW(index, op);
  const bool write = op == BioOp::write;
  (write ? stats_.writes : stats_.reads).fetch_add(1, std::memory_order_relaxed);
  Result<void> done = write ? zram_bvec_write(index, content) : zram_bvec_read(index, content);
  if (!done) (write ? stats_.write_errors : stats_.read_errors).fetch_add(1, std::memory_order_relaxed);
  return done;
}

Zram::Slot Zram::fetch_slot(uint64_t index, Content content, ZcompStream* stream) {
  ScopedLock guard(slot_lock(index));
  const Slot found = slot(index);
  if (found.size() == 0 || found.tagged() != content.tagged()) return found;
  const ZsHandle handle(found.value);
  if (content.tagged()) {
    *content.tag = load_word(pool_.zs_map_object(handle, sizeof(uint64_t)).head);
  } else if (!found.compressed()) {
    pool_.zs_map_object(handle, PAGE_SIZE).copy_out(content.bytes);
  } else if (stream != nullptr) {
    // Copied, not decompressed, under the lock: the object may be freed right after. Copying is a small part of
    // decompressing, and an object that crosses frames has to be put together anyway.
    pool_.zs_map_object(handle, found.size()).copy_out(stream->buffer);
  }
  return found;
}

Result<void> Zram::zram_bvec_read(uint64_t index, Content content) {
  WEIR_FLOW(index);
  // Getting a stream may sleep, so it is had before the slot's lock; the look without the lock says whether it will be
  // needed.
  ZcompStream* stream = slot(index).compressed() ? &comp_.zcomp_stream_get() : nullptr;
  Slot found = fetch_slot(index, content, stream);
  if (found.compressed() && stream == nullptr) {  // written between the two looks
    stream = &comp_.zcomp_stream_get();
    found = fetch_slot(index, content, stream);
  }

  Errno error = Errno::ok;
  if (found.state != 0 && found.tagged() != content.tagged()) {
    error = Errno::io;
  } else if (found.size() == 0) {
    if (content.tagged()) {
      *content.tag = found.value;
    } else {
      zram_fill_page(content.bytes, found.value);
    }
  } else if (found.tagged()) {
    comp_.spend_decompress();
  } else if (found.compressed()) {
    WEIR_DEBUG_BUG_ON(stream == nullptr);  // got before this look, or after the first
    error = comp_.zcomp_decompress(*stream, found.size(), content.bytes).error();
  }
  if (stream != nullptr) comp_.zcomp_stream_put(*stream);
  return error;
}

Result<void> Zram::zram_bvec_write(uint64_t index, Content content) {
  WEIR_FLOW(index);
  // A request is always a whole page here; Linux reads and merges the rest of a partial one at this place.
  return __zram_bvec_write(index, content);
}

Result<void> Zram::__zram_bvec_write(uint64_t index, Content content) {
  WEIR_FLOW(index);
  Slot next;
  if (content.tagged()) {
    next.state = ZRAM_TAGGED;
    if (comp_.options().tag_size(*content.tag) == 0) {
      next.value = *content.tag;
      next.state |= ZRAM_SAME;
    }
  } else if (page_same_filled(content.bytes, next.value)) {
    next.state = ZRAM_SAME;
  }

  if (!next.same()) {
    ZcompStream& stream = comp_.zcomp_stream_get();
    const uint32_t size = comp_.zcomp_compress(stream, content);
    Result<ZsHandle> handle = pool_.zs_malloc(size);
    if (!handle) {
      comp_.zcomp_stream_put(stream);
      return handle.error();
    }
    update_used_max(pool_.zs_get_total_pages().v);
    if (content.tagged()) {
      // Only the tag is written: the rest of the object stands for bytes that nobody has.
      memcpy(pool_.zs_map_object(*handle, sizeof(uint64_t)), reinterpret_cast<const std::byte*>(content.tag),
             sizeof(uint64_t));
    } else {
      memcpy(pool_.zs_map_object(*handle, size), size == PAGE_SIZE ? content.bytes : stream.buffer, size);
    }
    comp_.zcomp_stream_put(stream);
    next.value = handle->v;
    next.state = static_cast<uint16_t>(next.state | size);
  }

  {
    ScopedLock guard(slot_lock(index));
    zram_free_page(index);
    set_slot(index, next);
  }
  WEIR_STATE(zram_store, index, PAGE_SIZE, next.size());
  return {};
}

void Zram::memcpy(const ZsObject& object, const std::byte* from, uint32_t comp_len) {
  WEIR_FLOW(comp_len);
  object.copy_in(from);
}

// ---- Slots ----------------------------------------------------------------------------------------------------------

void Zram::set_slot(uint64_t index, Slot slot) {
  values_[index] = slot.value;
  states_[index].store(slot.state, std::memory_order_relaxed);
  pages_stored_.fetch_add(1, std::memory_order_relaxed);
  if (slot.same()) {
    same_pages_.fetch_add(1, std::memory_order_relaxed);
  } else {
    compr_data_size_.fetch_add(slot.size(), std::memory_order_relaxed);
    if (slot.size() == PAGE_SIZE) huge_pages_.fetch_add(1, std::memory_order_relaxed);
  }
}

void Zram::zram_free_page(uint64_t index) {
  const Slot old = slot(index);
  if (old.state == 0) return;
  values_[index] = 0;
  states_[index].store(0, std::memory_order_relaxed);
  pages_stored_.fetch_sub(1, std::memory_order_relaxed);
  if (old.same()) {
    same_pages_.fetch_sub(1, std::memory_order_relaxed);
    return;
  }
  compr_data_size_.fetch_sub(old.size(), std::memory_order_relaxed);
  if (old.size() == PAGE_SIZE) huge_pages_.fetch_sub(1, std::memory_order_relaxed);
  pool_.zs_free(ZsHandle(old.value));
}

void Zram::zram_slot_free_notify(uint64_t index) {
  WEIR_FLOW(index);
  if (index >= static_cast<uint64_t>(options_.capacity.v)) return;
  notify_free_.fetch_add(1, std::memory_order_relaxed);
  ScopedLock guard(slot_lock(index));
  zram_free_page(index);
}

void Zram::zram_bio_discard(uint64_t index, uint64_t pages) {
  const auto capacity = static_cast<uint64_t>(options_.capacity.v);
  stats_.discards.fetch_add(1, std::memory_order_relaxed);
  const uint64_t end = pages < capacity && index < capacity - pages ? index + pages : capacity;
  for (; index < end; ++index) {
    // An unwritten slot's state is enough to see that: a write that comes now is later than the discard.
    if (states_[index].load(std::memory_order_relaxed) == 0) continue;
    ScopedLock guard(slot_lock(index));
    zram_free_page(index);
  }
}

void Zram::zram_reset_device() {
  const auto capacity = static_cast<uint64_t>(options_.capacity.v);
  for (uint64_t index = 0; index < capacity && pages_stored_.load(std::memory_order_relaxed) != 0; ++index) {
    ScopedLock guard(slot_lock(index));
    zram_free_page(index);
  }
}

// ---- Figures --------------------------------------------------------------------------------------------------------

bool Zram::has_room() const {
  const PageCount full_at(full_at_.load(std::memory_order_relaxed));
  const PageCount limit = full_at != PageCount(0) ? full_at : pool_.limit();
  return limit == PageCount(0) || pool_.zs_get_total_pages() + ROOM <= limit;
}

void Zram::update_used_max(int64_t pages) {
  int64_t max = max_used_pages_.load(std::memory_order_relaxed);
  while (pages > max && !max_used_pages_.compare_exchange_weak(max, pages, std::memory_order_relaxed)) {
  }
}

void Zram::mem_used_max_reset() { max_used_pages_.store(pool_.zs_get_total_pages().v, std::memory_order_relaxed); }

ZramMmStat Zram::mm_stat() const {
  const auto load = [](const auto& counter) { return counter.load(std::memory_order_relaxed); };
  return {
      .orig_data_size = Bytes(load(pages_stored_) * PAGE_SIZE),
      .compr_data_size = Bytes(load(compr_data_size_)),
      .mem_used_total = bytes_of(pool_.zs_get_total_pages()),
      .mem_limit = bytes_of(pool_.limit()),
      .mem_used_max = bytes_of(PageCount(load(max_used_pages_))),
      .same_pages = load(same_pages_),
      .pages_compacted = 0,
      .huge_pages = load(huge_pages_),
  };
}

ZramIoStat Zram::io_stat() const {
  return {
      .num_reads = stats_.reads.load(std::memory_order_relaxed),
      .num_writes = stats_.writes.load(std::memory_order_relaxed),
      .failed_reads = stats_.read_errors.load(std::memory_order_relaxed),
      .failed_writes = stats_.write_errors.load(std::memory_order_relaxed),
      .invalid_io = invalid_io_.load(std::memory_order_relaxed),
      .notify_free = notify_free_.load(std::memory_order_relaxed),
  };
}

ZramMmStat Zram::recount() const {
  ZramMmStat sum = mm_stat();
  sum.orig_data_size = sum.compr_data_size = Bytes(0);
  sum.same_pages = sum.huge_pages = 0;
  for (uint64_t index = 0; index < static_cast<uint64_t>(options_.capacity.v); ++index) {
    const Slot s = slot(index);
    if (s.state == 0) continue;
    sum.orig_data_size += Bytes(PAGE_SIZE);
    sum.compr_data_size += Bytes(s.size());
    sum.same_pages += s.same();
    sum.huge_pages += s.size() == PAGE_SIZE;
  }
  sum.mem_used_total = bytes_of(pool_.recount().pages);
  return sum;
}

}  // namespace weir
