// src/block/sim_disk.cpp: see sim_disk.hpp
#include "block/sim_disk.hpp"

#include <sys/mman.h>

#include <bit>
#include <cstring>
#include <new>

#include "base/flow.hpp"

namespace weir {

namespace {
constexpr size_t TAG_BYTES = sizeof(uint64_t);
}

size_t SimDisk::store_bytes() const {
  const size_t each = options_.content == ContentKind::tags ? TAG_BYTES : PAGE_SIZE;
  return page_align_up(static_cast<uint64_t>(options_.capacity.v) * each);
}

Result<SimDisk*> SimDisk::create(void* place, World& world, const SimDiskOptions& options) {
  if (options.capacity <= PageCount(0) || options.queue_depth == 0 || options.queue_depth > MAX_QUEUE_DEPTH ||
      options.megabytes_per_second == 0)
    return Errno::inval;
  const size_t each = options.content == ContentKind::tags ? TAG_BYTES : PAGE_SIZE;
  void* store = mmap(nullptr, page_align_up(static_cast<uint64_t>(options.capacity.v) * each), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (store == MAP_FAILED) return Errno::nomem;
  return ::new (place) SimDisk(world, options, static_cast<std::byte*>(store));
}

SimDisk::SimDisk(World& world, const SimDiskOptions& options, std::byte* store)
    : world_(world), options_(options), store_(store), page_time_(PAGE_SIZE * 1000 / options.megabytes_per_second) {
  const unsigned places = options_.motion == DiskMotion::rotational ? 1 : options_.queue_depth;
  free_places_ = ~uint64_t{0} >> (MAX_QUEUE_DEPTH - places);
  for (Service& service : services_) {
    service.disk = this;
    service.timer.function = timer_function;
    service.timer.data = &service;
  }
}

SimDisk::~SimDisk() {
  WEIR_BUG_ON(sim_stats_.in_service != 0);
  munmap(store_, store_bytes());
}

const std::byte* SimDisk::stored_bytes(uint64_t index) const {
  WEIR_BUG_ON(options_.content != ContentKind::bytes || index >= static_cast<uint64_t>(options_.capacity.v));
  return store_ + index * PAGE_SIZE;
}

uint64_t SimDisk::stored_tag(uint64_t index) const {
  WEIR_BUG_ON(options_.content != ContentKind::tags || index >= static_cast<uint64_t>(options_.capacity.v));
  uint64_t tag;
  std::memcpy(&tag, store_ + index * TAG_BYTES, TAG_BYTES);
  return tag;
}

bool SimDisk::congested() const {
  ScopedLock guard(lock_);
  return sim_stats_.waiting + sim_stats_.in_service > options_.congested_above;
}

SimDiskStats SimDisk::sim_stats() const {
  ScopedLock guard(lock_);
  return sim_stats_;
}

// ---- The queue ------------------------------------------------------------------------------------------------------

void SimDisk::submit_bio(Bio& bio) {
  WEIR_FLOW(bio.sector, bio.op);
  bio.device = this;
  bio.next = nullptr;
  bio.submitted = world_.now();
  // By the time it is carried out the place is near. Nothing is read: a place outside is no harm.
  if (options_.content == ContentKind::tags) __builtin_prefetch(store_ + bio.sector / SECTORS_PER_PAGE * TAG_BYTES);
  ScopedLock guard(lock_);
  (last_ != nullptr ? last_->next : first_) = &bio;
  last_ = &bio;
  ++sim_stats_.waiting;
  start_waiting();
  const unsigned queued = sim_stats_.waiting + sim_stats_.in_service;
  if (queued > sim_stats_.max_queued) sim_stats_.max_queued = queued;
}

Bio* SimDisk::next_waiting() {
  Bio* best = first_;
  Bio* before_best = nullptr;
  if (options_.motion == DiskMotion::rotational) {
    // C-LOOK: the nearest at or behind the arm, else the one nearest to the start.
    const auto way = [arm = arm_](const Bio* bio) {
      const uint64_t page = bio->sector / SECTORS_PER_PAGE;
      return page >= arm ? page - arm : page + (uint64_t{1} << 63);
    };
    for (Bio *before = first_, *at = first_->next; at != nullptr; before = at, at = at->next) {
      if (way(at) >= way(best)) continue;
      best = at;
      before_best = before;
    }
  }
  (before_best != nullptr ? before_best->next : first_) = best->next;
  if (best == last_) last_ = before_best;
  return best;
}

void SimDisk::start_waiting() {
  while (first_ != nullptr && free_places_ != 0) {
    Service& service = services_[std::countr_zero(free_places_)];
    free_places_ &= free_places_ - 1;
    start(service, *next_waiting());
  }
}

// A seek takes a half of the average plus a share of the way; over random pairs, a third of the disk apart, that
// averages out.
Nanos SimDisk::seek_time(uint64_t from, uint64_t to) const {
  if (from == to) return Nanos(0);
  const uint64_t way = from < to ? to - from : from - to;
  const double share = static_cast<double>(way) / static_cast<double>(options_.capacity.v);
  return options_.seek / 2 + Nanos(static_cast<uint64_t>(static_cast<double>(options_.seek.v) * 1.5 * share));
}

void SimDisk::start(Service& service, Bio& bio) {
  const Nanos now = world_.now();
  const uint64_t page = bio.sector / SECTORS_PER_PAGE;
  Nanos done = now;
  if (bio.op != BioOp::discard) {
    if (channel_free_ < now) channel_free_ = now;
    const Nanos share = page_time_ * bio.bytes / PAGE_SIZE;
    channel_free_ += share;
    sim_stats_.time_in_channel += share;
    done = channel_free_;
  }
  if (options_.motion == DiskMotion::rotational) {
    const Nanos seek = seek_time(arm_, page);
    if (seek != Nanos(0)) ++sim_stats_.seeks;
    done += seek;
    // The latency of a disk that turns is the wait for the sector: nothing when it comes next.
    if (seek != Nanos(0)) done += bio.op == BioOp::read ? options_.read_latency : options_.write_latency;
  } else {
    done += bio.op == BioOp::read ? options_.read_latency : options_.write_latency;
  }
  arm_ = page + 1;
  service.bio = &bio;
  --sim_stats_.waiting;
  ++sim_stats_.in_service;
  world_.timer_arm(service.timer, done - now);
}

// ---- Completion -----------------------------------------------------------------------------------------------------

void SimDisk::timer_function(void* data) {
  auto* service = static_cast<Service*>(data);
  service->disk->complete(*service);
}

void SimDisk::complete(Service& service) {
  Bio& bio = *service.bio;
  // The bytes move when the request ends: until then a write may still be seen not to have happened.
  bio.status = transfer(bio);
  {
    ScopedLock guard(lock_);
    sim_stats_.time_in_queue += world_.now() - bio.submitted;
    service.bio = nullptr;
    free_places_ |= uint64_t{1} << (&service - services_);
    --sim_stats_.in_service;
    start_waiting();
  }
  bio.end_io(bio);
}

Errno SimDisk::transfer(Bio& bio) {
  const auto count = [](std::atomic<uint64_t>& counter) { counter.fetch_add(1, std::memory_order_relaxed); };
  const auto capacity = static_cast<uint64_t>(options_.capacity.v);
  const uint64_t page = bio.sector / SECTORS_PER_PAGE;
  const uint64_t offset = bio.sector % SECTORS_PER_PAGE * SECTOR_SIZE;  // in the page
  const bool whole_blocks = bio.bytes != 0 && bio.bytes % logical_block_size() == 0 && offset + bio.bytes <= PAGE_SIZE;
  const bool inside = whole_blocks && bio.pages <= capacity && page <= capacity - bio.pages;
  const bool tags = options_.content == ContentKind::tags;
  const size_t each = tags ? TAG_BYTES : PAGE_SIZE;
  std::byte* at = store_ + page * each;

  if (bio.op == BioOp::discard) {
    count(stats_.discards);
    if (!inside) return Errno::io;
    std::byte* const end = at + bio.pages * each;
    // Whole pages of the store go back to the host, the edges are cleared.
    auto* const whole = reinterpret_cast<std::byte*>(page_align_up(reinterpret_cast<uintptr_t>(at)));
    auto* const whole_end = reinterpret_cast<std::byte*>(reinterpret_cast<uintptr_t>(end) & PAGE_MASK);
    if (whole >= whole_end) {
      std::memset(at, 0, static_cast<size_t>(end - at));
    } else {
      std::memset(at, 0, static_cast<size_t>(whole - at));
      madvise(whole, static_cast<size_t>(whole_end - whole), MADV_DONTNEED);
      std::memset(whole_end, 0, static_cast<size_t>(end - whole_end));
    }
    return Errno::ok;
  }

  const bool write = bio.op == BioOp::write;
  count(write ? stats_.writes : stats_.reads);
  if (!inside || bio.pages != 1 || bio.content.tagged() != tags) {
    count(write ? stats_.write_errors : stats_.read_errors);
    return Errno::io;
  }
  std::byte* content = tags ? reinterpret_cast<std::byte*>(bio.content.tag) : bio.content.bytes;
  const size_t bytes = tags ? TAG_BYTES : bio.bytes;
  if (!tags) at += offset;
  if (write) {
    std::memcpy(at, content, bytes);
  } else {
    std::memcpy(content, at, bytes);
  }
  return Errno::ok;
}

}  // namespace weir
