// src/mm/profile.hpp
//
// Whose rules a machine follows: the kernel of an era. Where the eras differ in a number, the number stands here. Where
// they differ in what is done, a room has one policy object for each era, made at boot; there is no "if" on the era
// inside a flow. A function that a profile's kernel does not have is not called under it.
//
//   2.6.20   documents 000 and 001          3.x   document 002 (3.7 to 3.10)          4.14   documents 003 and 004
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace weir {

enum class KernelEra : uint8_t { linux_2_6_20, linux_3, linux_4_14 };

/// Of which shared mappings remap_file_pages makes nonlinear ones; of others, several linear ones. From 2.6.23 on pages
/// that are counted as dirty must be found by their mappings; from 4.0 on there are none.
enum class Nonlinear : uint8_t { of_all_files, of_memory_files, none };

struct Profile {
  KernelEra era;
  const char* name;      ///< as --kernel and scenarios spell it
  bool cold_lists;       ///< per-CPU pages that no cache knows any more have a list of their own (to 2.6.24)
  bool zone_lists;       ///< LRU lists are a zone's (to 4.7), not the node's
  bool five_lists;       ///< anonymous, file and unevictable pages have lists of their own (2.6.28)
  bool watermark_scale;  ///< vm.watermark_scale_factor (4.6)
  bool lazyfree;         ///< MADV_FREE (4.5)
  bool ksm;              ///< equal pages can be merged (2.6.32)
  bool soft_dirty;       ///< PTEs say what was written since clear_refs (3.11)
  bool workingset;       ///< evicted file pages leave a shadow that tells how long ago it was (3.15)
  bool errseq;           ///< each open file is told of a write error (4.13); before, whoever asks first
  unsigned dirty_ratio;  ///< vm.dirty_ratio: 20 percent since 2.6.30
  bool rw_page;          ///< swap pages go to devices that answer at once without a bio (3.16)
  Nonlinear nonlinear;
};

inline constexpr Profile PROFILES[] = {
    {.era = KernelEra::linux_2_6_20,
     .name = "2.6.20",
     .cold_lists = true,
     .zone_lists = true,
     .five_lists = false,
     .watermark_scale = false,
     .lazyfree = false,
     .ksm = false,
     .soft_dirty = false,
     .workingset = false,
     .errseq = false,
     .dirty_ratio = 40,
     .rw_page = false,
     .nonlinear = Nonlinear::of_all_files},
    {.era = KernelEra::linux_3,
     .name = "3.x",
     .cold_lists = false,
     .zone_lists = true,
     .five_lists = true,
     .watermark_scale = false,
     .lazyfree = false,
     .ksm = true,
     .soft_dirty = false,
     .workingset = false,
     .errseq = false,
     .dirty_ratio = 20,
     .rw_page = false,
     .nonlinear = Nonlinear::of_memory_files},
    {.era = KernelEra::linux_4_14,
     .name = "4.14",
     .cold_lists = false,
     .zone_lists = false,
     .five_lists = true,
     .watermark_scale = true,
     .lazyfree = true,
     .ksm = true,
     .soft_dirty = true,
     .workingset = true,
     .errseq = true,
     .dirty_ratio = 20,
     .rw_page = true,
     .nonlinear = Nonlinear::none},
};

[[nodiscard]] constexpr const Profile& profile_of(KernelEra era) { return PROFILES[static_cast<size_t>(era)]; }
static_assert(profile_of(KernelEra::linux_4_14).era == KernelEra::linux_4_14);

/// Null: there is none of that name.
[[nodiscard]] constexpr const Profile* find_profile(std::string_view name) {
  for (const Profile& profile : PROFILES)
    if (name == profile.name) return &profile;
  return nullptr;
}

/// What --kernel takes, for messages.
inline constexpr const char* PROFILE_NAMES = "2.6.20, 3.x, 4.14";

inline constexpr KernelEra DEFAULT_KERNEL = KernelEra::linux_4_14;

}  // namespace weir
