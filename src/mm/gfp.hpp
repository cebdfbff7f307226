// src/mm/gfp.hpp
//
// What allocation flags mean: which zone at most, which list of zones, which kind of page, which rights.
//
//   GFP_HIGHUSER_MOVABLE --gfp_zone--> NORMAL --node_zonelist--> NORMAL, DMA32
//                        --gfpflags_to_migratetype--> movable
//
// Linux: include/linux/gfp.h, include/linux/sched/mm.h, mm/internal.h.
#pragma once

#include "mm/mmzone.hpp"

namespace weir {

/// How get_page_from_freelist looks at a zone. The lowest two bits choose the watermark. Values of 4.14.
enum AllocFlag : uint32_t {
  ALLOC_WMARK_MIN = static_cast<uint32_t>(Watermark::min),
  ALLOC_WMARK_LOW = static_cast<uint32_t>(Watermark::low),
  ALLOC_WMARK_HIGH = static_cast<uint32_t>(Watermark::high),
  ALLOC_NO_WATERMARKS = 0x04,  ///< all of it: who allocates here is freeing memory
  ALLOC_WMARK_MASK = ALLOC_NO_WATERMARKS - 1,
  ALLOC_OOM = 0x08,     ///< a victim of the OOM killer on its way out: half of what is left
  ALLOC_HARDER = 0x10,  ///< cannot wait: a quarter off
  ALLOC_HIGH = 0x20,    ///< __GFP_HIGH: half off
  ALLOC_POOL = 0x100,   ///< __GFP_POOL: half off, and never more (weir's own)
};

/// Highest zone that may serve the request. Everybody can address everything, but for who asks for DMA32.
[[nodiscard]] inline ZoneType gfp_zone(gfp_t gfp) {
  WEIR_FLOW(gfp);
  return gfp.has(__GFP_DMA32) ? ZoneType::DMA32 : ZoneType::NORMAL;
}

[[nodiscard]] inline const Zonelist& node_zonelist(const Node& node, gfp_t gfp) {
  WEIR_FLOW(node.id, gfp);
  return node.zonelist;
}

/// Pages of one kind are kept together in pageblocks, so that what can be moved or dropped leaves large holes.
[[nodiscard]] inline MigrateType gfpflags_to_migratetype(gfp_t gfp) {
  WEIR_FLOW(gfp);
  if (gfp.has(__GFP_MOVABLE)) return MigrateType::movable;
  return gfp.has(__GFP_RECLAIMABLE) ? MigrateType::reclaimable : MigrateType::unmovable;
}

/// Flags of the running thread; a bare engine stack has no thread and no rights.
[[nodiscard]] inline uint32_t current_flags() {
  const Thread* thread = engine_thread().thread;
  return thread != nullptr ? thread->flags : 0;
}

/// What the running thread may not do now (start I/O, enter a file system) is taken off the request.
[[nodiscard]] inline gfp_t current_gfp_context(gfp_t gfp) {
  const uint32_t flags = current_flags();
  if ((flags & PF_MEMALLOC_NOIO) != 0) return gfp & ~(__GFP_IO | __GFP_FS);
  if ((flags & PF_MEMALLOC_NOFS) != 0) return gfp & ~__GFP_FS;
  return gfp;
}

}  // namespace weir
