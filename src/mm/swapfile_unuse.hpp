// src/mm/swapfile_unuse.hpp
//
// swapon and swapoff. Linux: mm/swapfile.c 4.14 (swapon, swapoff), and mkswap(8).
//
//   swapon:   type number -> claim the device -> header of page 0 checked -> map (bad slots marked) -> spaces -> on
//   swapoff:  enough memory? -> leaves the lists -> slots caches emptied -> try_to_unuse -> map and type free
//
//   try_to_unuse, for each slot in use:
//     read into the swap cache -> every Mm of the mmlist: PTEs with the entry -> the page -> out of the cache
//     killed (EINTR), no memory (ENOMEM), unreadable (EIO): the area takes part again, with its priority;
//     what is back is back
//
// In a tagged simulation a page is one number, so the header is one too: a magic number and the last page. It has no
// list of bad pages.
#pragma once

#include "mm/mmap.hpp"
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

// swapon's flags. A device that cannot discard is used without.
inline constexpr uint32_t SWAP_FLAG_DISCARD = 0x10000;        ///< both of the following, if neither is given
inline constexpr uint32_t SWAP_FLAG_DISCARD_ONCE = 0x20000;   ///< the whole area, now; page 0 stays
inline constexpr uint32_t SWAP_FLAG_DISCARD_PAGES = 0x40000;  ///< clusters of 256 slots as they become free
inline constexpr uint32_t SWAP_FLAGS_VALID = SWAP_FLAG_DISCARD | SWAP_FLAG_DISCARD_ONCE | SWAP_FLAG_DISCARD_PAGES;

class SwapOn {
 public:
  SwapOn(SwapFiles& swap, SwapCache& cache, SwapSlots& slots, VmStat& vmstat);
  /// Where swapped pages are used: without it swapoff gives up with EBUSY when a PTE holds a slot of the area.
  void set_address_spaces(AddressSpaces& spaces, PageTables& tables, Rmap& rmap) {
    spaces_ = &spaces, tables_ = &tables, rmap_ = &rmap;
  }
  /// Memory files, which use slots too.
  void set_shmem(Shmem& shmem) { shmem_ = &shmem; }
  /// Writes a fresh header (what mkswap does). Errors: EINVAL (smaller than 10 pages), EBUSY (in use), ENOMEM, EIO.
  /// Sleeps.
  Result<void> mkswap(BlockDevice& device);
  /// Reads and checks the header, makes the map, takes the area into use. prio 0…32767 or SWAP_PRIO_AUTO. Returns the
  /// type. Errors: EINVAL (header, priority, unknown flags, a device of no pages), EBUSY (in use), EPERM (too many
  /// areas), ENOMEM, EIO. Sleeps.
  Result<unsigned> swapon(BlockDevice& device, int prio, uint32_t flags = 0);
  /// Brings everything back that is in the area, and gives it up. Errors: EINVAL (no such area), ENOMEM (what is there
  /// cannot all have room elsewhere, or memory ran out on the way), EINTR (the caller is being killed), EIO (a slot
  /// cannot be read; its users keep it). The area is in use as before then. Sleeps.
  Result<void> swapoff(unsigned type);

 private:
  /// What a header says, once it is found good.
  struct HeaderInfo {
    uint64_t maxpages = 0;
    uint32_t nr_badpages = 0;
    const uint32_t* badpages = nullptr;  // in the header's page
  };
  Result<BlockDevice*> file_open_name(BlockDevice& device);
  Result<void> claim_swapfile(SwapInfo& si, BlockDevice& device);
  Result<void> transfer_header(BlockDevice& device, BioOp op, const Content& content);
  Result<Page*> read_mapping_page(BlockDevice& device, Content& content);
  Result<HeaderInfo> read_swap_header(BlockDevice& device, const Content& content);
  void setup_discard(SwapInfo& si, uint32_t flags);
  void discard_swap(SwapInfo& si);
  void print_added(const SwapInfo& si);
  [[nodiscard]] bool vm_enough_memory(uint64_t pages) const;

  Result<void> try_to_unuse(SwapInfo& si);
  Result<void> unuse_slot(SwpEntry entry, Mm*& start_mm);
  bool unuse_mm(Mm& mm, SwpEntry entry, Page& page);
  bool unuse_vma(VmArea& vma, SwpEntry entry, Page& page);
  bool unuse_merged_pte(VmArea& vma, VirtAddr address, SwpEntry entry, Page& page);
  bool unuse_pte_range(VmArea& vma, VirtAddr start, VirtAddr end, SwpEntry entry, Page& page);
  bool unuse_pte(VmArea& vma, VirtAddr address, Pte* ptep, SwpEntry entry, Page& page);

  SwapFiles& swap_;
  SwapCache& cache_;
  SwapSlots& slots_;
  VmStat& vmstat_;
  AddressSpaces* spaces_ = nullptr;
  PageTables* tables_ = nullptr;
  Rmap* rmap_ = nullptr;
  Shmem* shmem_ = nullptr;
  Mutex swapon_mutex_{LockRank::swapon};  // one swapon or swapoff at a time
};

}  // namespace weir
