// src/mm/swapfile_unuse.hpp
//
// swapon and swapoff. Linux: mm/swapfile.c (swapon, try_to_unuse). swapoff under load comes with its row; here the area must be
// empty or small enough to be read back.
#pragma once

#include "mm/swap_state.hpp"

namespace weir {

/// Page 0 of an area: magic "SWAPSPACE2" at 4086. Layout as in Linux's union swap_header; made by mkswap.
struct SwapHeader {
  char bootbits[1024];
  uint32_t version;     ///< 1
  uint32_t last_page;   ///< last usable slot
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

inline constexpr int SWAP_PRIO_AUTO = -1;  ///< each area below the one before it, from -2 down

class SwapOn {
 public:
  SwapOn(SwapFiles& swap, SwapCache& cache, SwapSlots& slots, VmStat& vmstat);
  /// Writes a fresh header (what mkswap does). Errors: EINVAL (smaller than 10 pages), EIO.
  Result<void> mkswap(BlockDevice& device);
  /// Reads and checks the header, makes the map, takes the area into use. prio 0…32767 or SWAP_PRIO_AUTO.
  /// Errors: EINVAL (header), EBUSY (in use), EPERM (too many areas), ENOMEM, EIO.
  Result<unsigned> swapon(BlockDevice& device, int prio);
  /// Errors: EINVAL, ENOMEM (contents do not fit), EIO.
  Result<void> swapoff(unsigned type);

 private:
  SwapFiles& swap_;
  SwapCache& cache_;
  SwapSlots& slots_;
  VmStat& vmstat_;
};

}  // namespace weir
