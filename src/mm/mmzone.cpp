// src/mm/mmzone.cpp: see mmzone.hpp
#include "mm/mmzone.hpp"

namespace weir {

const char* zone_name(ZoneType type) {
  switch (type) {
    case ZoneType::DMA32: return "DMA32";
    case ZoneType::NORMAL: return "Normal";
    case ZoneType::count: break;
  }
  return "none";
}

Zone* for_next_zone_zonelist_nodemask(const Zonelist& zonelist, ZoneType highest, unsigned& at) {
  WEIR_FLOW(highest, at);
  for (; at < zonelist.count; ++at)
    if (zonelist.zones[at]->type <= highest) return zonelist.zones[at];
  return nullptr;
}

}  // namespace weir
