// src/mm/swapfile_unuse.hpp
//
// swapon and swapoff. Linux: mm/swapfile.c 4.14 (swapon, swapoff), and mkswap(8).
//
//   swapon:   type number -> claim the device -> page 0 -> header checked -> map (bad slots marked) -> spaces -> takes
//   part swapoff:  leaves the lists -> slots caches emptied -> copies that only the cache keeps go -> any slot left:
//   EBUSY, takes part again
//
// swapoff under load (every slot read back into the page tables that hold it) comes with its row.
//
// In a tagged simulation a page is one number, so the header is one too: a magic number and the last page. It has no
// list of bad pages.
#pragma once

#include "mm/swap_state.hpp"

namespace weir {

/// Page 0 of an area: magic "SWAPSPACE2" at 4086. Layout as in Linux's union swap_header; made by mkswap.
struct SwapHeader {
  char bootbits[1024];
  uint32_t version;    ///< 1
  uint32_t last_page;  ///< last usable slot
  uint32_t nr_badpages;
  uint8_t sws_uuid[16];
  uint8_t sws_volume[16];
  uint32_t padding[117];
  uint32_t badpages[637];
  char fill[2];
  char magic[10];
};
static_assert(sizeof(SwapHeader) == 4096);
inline constexpr unsigned MAX_SWAP_BADPAGES = 637;
/// What mkswap refuses to go below: an area that could not hold more than a few clusters' crumbs.
inline constexpr int64_t MIN_SWAP_PAGES = 10;

inline constexpr int SWAP_PRIO_AUTO = -1;  ///< each area below the one before it, from -2 down
inline constexpr int SWAP_PRIO_MAX = 32767;

class SwapOn {
 public:
  SwapOn(SwapFiles& swap, SwapCache& cache, SwapSlots& slots, VmStat& vmstat);
  /// Writes a fresh header (what mkswap does). Errors: EINVAL (smaller than 10 pages), EBUSY (in use), ENOMEM, EIO.
  /// Sleeps.
  Result<void> mkswap(BlockDevice& device);
  /// Reads and checks the header, makes the map, takes the area into use. prio 0…32767 or SWAP_PRIO_AUTO. Returns the
  /// type. Errors: EINVAL (header, priority), EBUSY (in use), EPERM (too many areas), ENOMEM, EIO. Sleeps.
  Result<unsigned> swapon(BlockDevice& device, int prio);
  /// Errors: EINVAL (no such area), EBUSY (pages are swapped out there; nothing has changed). Sleeps.
  Result<void> swapoff(unsigned type);

 private:
  /// What a header says, once it is found good.
  struct HeaderInfo {
    uint64_t maxpages = 0;
    uint32_t nr_badpages = 0;
    const uint32_t* badpages = nullptr;  // in the header's page
  };
  Result<void> claim_swapfile(SwapInfo& si, BlockDevice& device);
  Result<void> transfer_header(BlockDevice& device, BioOp op, const Content& content);
  Result<Page*> read_mapping_page(BlockDevice& device, Content& content);
  Result<HeaderInfo> read_swap_header(BlockDevice& device, const Content& content);
  void print_added(const SwapInfo& si);

  SwapFiles& swap_;
  SwapCache& cache_;
  SwapSlots& slots_;
  Mutex swapon_mutex_{LockRank::swapon};  // one swapon or swapoff at a time
};

}  // namespace weir
