// src/mm/swapfile_unuse.cpp: areas come and go. See swapfile_unuse.hpp
#include "mm/swapfile_unuse.hpp"

#include <algorithm>
#include <cstring>

namespace weir {

namespace {

constexpr char SWAP_MAGIC[11] = "SWAPSPACE2";

// The header of a tagged simulation: 24 bits say that it is one ("SWP"), 40 bits are the last page.
constexpr uint64_t TAG_MAGIC = 0x535750;
constexpr unsigned TAG_MAGIC_SHIFT = 40;
constexpr uint64_t TAG_LAST_PAGE_MASK = (uint64_t{1} << TAG_MAGIC_SHIFT) - 1;

constexpr uint64_t make_tag(uint64_t last_page) { return TAG_MAGIC << TAG_MAGIC_SHIFT | last_page; }

/// What an entry can address: its offset shares 64 bits of a PTE with nine others.
constexpr uint64_t MAX_SWAP_OFFSET = (uint64_t{1} << (64 - 9)) - 1;

int memcmp(const char* a, const char* b, size_t n) {
  WEIR_FLOW(n);
  return std::memcmp(a, b, n);
}

}  // namespace

SwapOn::SwapOn(SwapFiles& swap, SwapCache& cache, SwapSlots& slots, VmStat&)
    : swap_(swap), cache_(cache), slots_(slots) {}

// One page, now.
Result<void> SwapOn::transfer_header(BlockDevice& device, BioOp op, const Content& content) {
  if (device.synchronous()) return device.rw_page(op, 0, content);
  struct Wait {
    Bio bio;
    Completion done;
  } wait;
  wait.bio.op = op;
  wait.bio.content = content;
  wait.bio.owner = &wait;
  wait.bio.end_io = [](Bio& bio) { static_cast<Wait*>(bio.owner)->done.complete(); };
  device.submit_bio(wait.bio);
  wait.done.wait();
  if (wait.bio.status != Errno::ok) return wait.bio.status;
  return {};
}

Result<void> SwapOn::claim_swapfile(SwapInfo& si, BlockDevice& device) {
  WEIR_FLOW(si.type);
  for (unsigned type = 0; type < MAX_SWAPFILES; ++type) {
    const SwapInfo* other = swap_.swap_info(type);
    if (other != nullptr && other->bdev == &device) return Errno::busy;
  }
  si.bdev = &device;
  return {};
}

/// Page 0 of the device, in a frame of its own: kmap'ed, to be given back by kunmap and put_page.
Result<Page*> SwapOn::read_mapping_page(BlockDevice& device, Content& content) {
  WEIR_FLOW();
  Page* page = swap_.pages().alloc_page(GFP_HIGHUSER | __GFP_ZERO);
  if (page == nullptr) return Errno::nomem;
  content = cache_.mmu().kmap(*page);
  if (const Result<void> read = transfer_header(device, BioOp::read, content); !read) {
    cache_.mmu().kunmap(*page);
    cache_.filemap().lru().put_page(*page);
    return read.error();
  }
  return page;
}

Result<void> SwapOn::mkswap(BlockDevice& device) {
  const auto pages = static_cast<uint64_t>(device.capacity().v);
  if (device.capacity().v < MIN_SWAP_PAGES) return Errno::inval;
  ScopedLock guard(swapon_mutex_);
  for (unsigned type = 0; type < MAX_SWAPFILES; ++type) {
    const SwapInfo* si = swap_.swap_info(type);
    if (si != nullptr && si->bdev == &device) return Errno::busy;
  }
  Page* page = swap_.pages().alloc_page(GFP_HIGHUSER | __GFP_ZERO);
  if (page == nullptr) return Errno::nomem;
  const Content content = cache_.mmu().kmap(*page);
  const uint64_t last_page = std::min<uint64_t>(pages - 1, ~uint32_t{0});
  if (content.tagged()) {
    *content.tag = make_tag(std::min(pages - 1, TAG_LAST_PAGE_MASK));
  } else {
    auto& header = *reinterpret_cast<SwapHeader*>(content.bytes);
    header.version = 1;
    header.last_page = static_cast<uint32_t>(last_page);
    std::memcpy(header.magic, SWAP_MAGIC, sizeof header.magic);
  }
  const Result<void> written = transfer_header(device, BioOp::write, content);
  cache_.mmu().kunmap(*page);
  cache_.filemap().lru().put_page(*page);
  if (!written) return Errno::io;
  return {};
}

Result<SwapOn::HeaderInfo> SwapOn::read_swap_header(BlockDevice& device, const Content& content) {
  WEIR_FLOW();
  HeaderInfo info;
  uint64_t last_page = 0;
  if (content.tagged()) {
    if (*content.tag >> TAG_MAGIC_SHIFT != TAG_MAGIC) {
      LogLine() << "Unable to find swap-space signature";
      return Errno::inval;
    }
    last_page = *content.tag & TAG_LAST_PAGE_MASK;
  } else {
    auto& header = *reinterpret_cast<SwapHeader*>(content.bytes);
    if (memcmp(header.magic, SWAP_MAGIC, sizeof header.magic) != 0) {
      LogLine() << "Unable to find swap-space signature";
      return Errno::inval;
    }
    // Made on a machine of the other byte order.
    if (header.version == __builtin_bswap32(1)) {
      header.version = 1;
      header.last_page = __builtin_bswap32(header.last_page);
      header.nr_badpages = __builtin_bswap32(header.nr_badpages);
      if (header.nr_badpages > MAX_SWAP_BADPAGES) return Errno::inval;
      for (uint32_t i = 0; i < header.nr_badpages; ++i) header.badpages[i] = __builtin_bswap32(header.badpages[i]);
    }
    if (header.version != 1) {
      LogLine() << "Unable to handle swap header version " << header.version;
      return Errno::inval;
    }
    last_page = header.last_page;
    if (header.nr_badpages > MAX_SWAP_BADPAGES) return Errno::inval;
    info.nr_badpages = header.nr_badpages;
    info.badpages = header.badpages;
  }
  if (last_page == 0) {
    LogLine() << "Empty swap-file";
    return Errno::inval;
  }
  info.maxpages = std::min(last_page, MAX_SWAP_OFFSET) + 1;
  if (info.maxpages <= last_page)
    LogLine() << "Truncating oversized swap area, only using " << info.maxpages << " of " << last_page + 1 << " pages";
  const auto capacity = static_cast<uint64_t>(device.capacity().v);
  if (capacity < info.maxpages) {
    LogLine() << "Swap area shorter than signature indicates";
    return Errno::inval;
  }
  for (uint32_t i = 0; i < info.nr_badpages; ++i)
    if (info.badpages[i] == 0 || info.badpages[i] > last_page) return Errno::inval;
  return info;
}

void SwapOn::print_added(const SwapInfo& si) {
  LogLine() << "Adding " << (si.pages << (PAGE_SHIFT - 10)) << "k swap on " << si.bdev->name()
            << ".  Priority:" << int32_t{si.prio} << ((si.flags & SWP_SOLIDSTATE) != 0 ? " SS" : "");
}

Result<unsigned> SwapOn::swapon(BlockDevice& device, int prio) {
  WEIR_FLOW(prio);
  if (prio < SWAP_PRIO_AUTO || prio > SWAP_PRIO_MAX) return Errno::inval;
  ScopedLock guard(swapon_mutex_);
  Result<SwapInfo*> got = swap_.alloc_swap_info();
  if (!got) return got.error();
  SwapInfo& si = **got;
  const auto give_up = [&](Errno why) {
    swap_.release_swap_info(si);
    return why;
  };
  if (const Result<void> claimed = claim_swapfile(si, device); !claimed) return give_up(claimed.error());
  Content content;
  Result<Page*> page = read_mapping_page(device, content);
  if (!page) return give_up(page.error() == Errno::nomem ? Errno::nomem : Errno::io);
  const Result<void> made = [&]() -> Result<void> {
    Result<HeaderInfo> header = read_swap_header(device, content);
    if (!header) return header.error();
    si.flags.fetch_or(SWP_BLKDEV | (device.nonrotational() ? SWP_SOLIDSTATE : 0u), std::memory_order_release);
    const Result<void> map = swap_.setup_swap_map(si, header->maxpages, header->badpages, header->nr_badpages);
    if (map.error() == Errno::inval) LogLine() << "Empty swap-file";
    if (!map) return map.error();
    return cache_.init_swap_address_space(si.type, si.max);
  }();
  cache_.mmu().kunmap(**page);
  cache_.filemap().lru().put_page(**page);
  if (!made) return give_up(made.error());
  swap_.enable_swap_info(si, prio);
  slots_.reenable_swap_slots_cache();
  print_added(si);
  return si.type;
}

Result<void> SwapOn::swapoff(unsigned type) {
  WEIR_FLOW(type);
  ScopedLock guard(swapon_mutex_);
  SwapInfo* si = swap_.swap_info(type);
  if (si == nullptr) return Errno::inval;
  const int prio = si->prio;
  swap_.disable_swap_info(*si);
  slots_.disable_swap_slots_cache();
  // Pages back in memory whose slot no PTE holds: their copies go with the area.
  for (uint64_t offset = 0; (offset = swap_.find_next_cached(*si, offset)) != 0;)
    cache_.__try_to_reclaim_swap(swp_entry(type, offset));
  const bool in_use = [&] {
    ScopedLock area(si->lock);
    return si->inuse_pages != 0;
  }();
  if (in_use) {
    swap_.reinsert_swap_info(*si, prio);
    slots_.reenable_swap_slots_cache();
    LogLine() << "swapoff: pages are swapped out to " << si->bdev->name();
    return Errno::busy;
  }
  cache_.exit_swap_address_space(type);
  swap_.release_swap_info(*si);
  for (unsigned other = 0; other < MAX_SWAPFILES; ++other) {
    if (swap_.swap_info(other) == nullptr) continue;
    slots_.reenable_swap_slots_cache();
    break;
  }
  return {};
}

}  // namespace weir
