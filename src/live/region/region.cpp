// src/live/region/region.cpp: the library for programs. See include/weir/weir.h
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "live/live_machine.hpp"
#include "weir/weir.h"

// A forked child has no region: it may not even take it down.
struct weir_region {
  pid_t owner;
  weir::LiveMachine* live;
  std::byte* data;
  uint64_t size;
};

namespace {

using namespace weir;

/// Addresses for mapped files, where limits allow it.
constexpr Bytes FILE_SPACE{uint64_t{1} << 40};

void explain(char* error, size_t size, const char* text) {
  if (error == nullptr || size == 0) return;
  std::strncpy(error, text, size - 1);
  error[size - 1] = 0;
}

weir_region* create(const weir_region_options& o, char* error, size_t error_size) {
  if (o.size == 0 || o.size > uint64_t{1} << 46) {
    explain(error, error_size, "size: the region is empty or larger than 64 TiB");
    return nullptr;
  }
  std::vector<std::string_view> texts;
  for (unsigned i = 0; o.swap != nullptr && i < o.nr_swap; ++i) texts.emplace_back(o.swap[i]);
  auto swap = parse_swap_specs(texts, Bytes(o.ram));
  if (auto* why = std::get_if<SwapSpecError>(&swap)) {
    explain(error, error_size, why->text.c_str());
    return nullptr;
  }
  if (o.delivery != WEIR_DELIVERY_SIGNAL && o.delivery != WEIR_DELIVERY_THREAD) {
    explain(error, error_size, "delivery: neither WEIR_DELIVERY_SIGNAL nor WEIR_DELIVERY_THREAD");
    return nullptr;
  }
  const uint64_t size = page_align_up(o.size);
  LiveOptions options;
  options.ram = Bytes(o.ram);
  options.swap = std::get<std::vector<SwapSpec>>(swap);
  options.delivery = o.delivery == WEIR_DELIVERY_THREAD ? Delivery::thread : Delivery::signal;
  options.address_space = Bytes(size) + FILE_SPACE;
  options.least_address_space = Bytes(size);
  LiveError why;
  LiveMachine* live = LiveMachine::create(options, why);
  if (live == nullptr) {
    explain(error, error_size, why.text);
    return nullptr;
  }
  Result<void*> data = live->map(size, PROT_READ | PROT_WRITE);
  if (!data) {
    LiveMachine::destroy(live);
    explain(error, error_size,
            "the host has no address space for a region of this size: see ulimit -v and vm.overcommit_memory");
    return nullptr;
  }
  // Pages that are not in RAM would read zero in a child of fork(): no memory is better than wrong memory.
  ::madvise(live->range(), live->range_bytes(), MADV_DONTFORK);
  return new weir_region{::getpid(), live, static_cast<std::byte*>(*data), o.size};
}

/// 0, or why [offset, offset + length) is no part of it.
int check(const weir_region* region, uint64_t offset, uint64_t length) {
  if (region == nullptr) return EINVAL;
  return offset > region->size || length > region->size - offset ? ENOMEM : 0;
}

}  // namespace

extern "C" {

void weir_region_options_init(weir_region_options* options) {
  *options = {};
  options->struct_size = sizeof *options;
}

weir_region* weir_region_create(const weir_region_options* options, char* error, size_t error_size) {
  if (options == nullptr || options->struct_size < sizeof(weir_region_options)) {
    explain(error, error_size, "options: struct_size is not set; call weir_region_options_init() first");
    return nullptr;
  }
  try {
    return create(*options, error, error_size);
  } catch (const std::exception& e) {
    explain(error, error_size, e.what());
    return nullptr;
  }
}

void weir_region_destroy(weir_region* region) {
  if (region == nullptr || region->owner != ::getpid()) return;
  LiveMachine::destroy(region->live);
  delete region;
}

void* weir_region_data(const weir_region* region) { return region->data; }
uint64_t weir_region_size(const weir_region* region) { return region->size; }

int weir_region_discard(weir_region* region, uint64_t offset, uint64_t length) {
  if (const int refused = check(region, offset, length)) return refused;
  return static_cast<int>(region->live->advise(region->data + offset, length, MADV_DONTNEED).error());
}

int weir_region_populate(weir_region* region, uint64_t offset, uint64_t length, int for_writing) {
  if (const int refused = check(region, offset, length)) return refused;
  return static_cast<int>(region->live->populate(region->data + offset, length, for_writing != 0).error());
}

int weir_region_map_file(weir_region* region, int fd, uint64_t offset, uint64_t length, int prot, int flags,
                         void** address) {
  if (region == nullptr || address == nullptr) return EINVAL;
  if (flags != MAP_SHARED && flags != MAP_PRIVATE) return EINVAL;
  Result<void*> mapped = region->live->map_file(
      fd, offset, length, prot, flags == MAP_SHARED ? LiveMachine::Sharing::shared : LiveMachine::Sharing::private_);
  if (mapped) *address = *mapped;
  return static_cast<int>(mapped.error());
}

int weir_region_unmap_file(weir_region* region, void* address, uint64_t length) {
  if (region == nullptr) return EINVAL;
  return static_cast<int>(region->live->unmap_file(address, length).error());
}

int weir_region_sync_file(weir_region* region, void* address, uint64_t length, int flags) {
  if (region == nullptr) return EINVAL;
  return static_cast<int>(region->live->sync_file(address, length, flags).error());
}

int weir_region_advise_file(weir_region* region, void* address, uint64_t length, int advice) {
  if (region == nullptr) return EINVAL;
  switch (advice) {
    case MADV_NORMAL:
    case MADV_RANDOM:
    case MADV_SEQUENTIAL:
    case MADV_WILLNEED:
    case MADV_DONTNEED:
    case MADV_POPULATE_READ:
    case MADV_POPULATE_WRITE: return static_cast<int>(region->live->advise(address, length, advice).error());
    default: return EINVAL;
  }
}

int weir_region_stats(weir_region* region, weir_region_statistics* out) {
  if (region == nullptr || out == nullptr || out->struct_size < sizeof(weir_region_statistics)) return EINVAL;
  LiveStats s;
  region->live->stats(s);
  const auto event = [&](VmEvent e) { return s.event[static_cast<unsigned>(e)]; };
  const size_t struct_size = out->struct_size;
  *out = {};
  out->struct_size = struct_size;
  out->ram_pages = s.ram_pages;
  out->host_resident_pages = s.host_resident_pages;
  out->resident_pages = s.rss_pages;
  out->swapped_pages = s.swap_pages;
  out->free_pages = static_cast<uint64_t>(s.node[static_cast<unsigned>(NodeStat::nr_free_pages)]);
  out->pgfault = event(VmEvent::pgfault);
  out->pgmajfault = event(VmEvent::pgmajfault);
  out->pswpin = event(VmEvent::pswpin);
  out->pswpout = event(VmEvent::pswpout);
  out->pgscan_kswapd = event(VmEvent::pgscan_kswapd);
  out->pgscan_direct = event(VmEvent::pgscan_direct);
  out->pgsteal_kswapd = event(VmEvent::pgsteal_kswapd);
  out->pgsteal_direct = event(VmEvent::pgsteal_direct);
  out->allocstall = event(VmEvent::allocstall);
  out->access_flag_fault = event(VmEvent::access_flag_fault);
  out->swap_clean_drop = event(VmEvent::swap_clean_drop);
  out->pinned = s.arch.pinned;
  const auto pages = [&](NodeStat which) {
    return static_cast<uint64_t>(std::max<int64_t>(s.node[static_cast<unsigned>(which)], 0));
  };
  out->file_pages = pages(NodeStat::nr_file_pages);
  out->dirty_pages = pages(NodeStat::nr_dirty);
  out->writeback_pages = pages(NodeStat::nr_writeback);
  out->swap_total_pages = static_cast<uint64_t>(s.swap_total);
  out->swap_free_pages = static_cast<uint64_t>(s.swap_free);
  for (unsigned i = 0; i < s.nr_areas; ++i) {
    out->zram_orig_data_size += s.areas[i].mm_stat.orig_data_size.v;
    out->zram_compr_data_size += s.areas[i].mm_stat.compr_data_size.v;
    out->zram_mem_used_total += s.areas[i].mm_stat.mem_used_total.v;
  }
  return 0;
}

}  // extern "C"
