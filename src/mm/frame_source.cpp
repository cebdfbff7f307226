// src/mm/frame_source.cpp: see frame_source.hpp
#include "mm/frame_source.hpp"

namespace weir {

Result<Pfn> PoolFrames::get_frame() {
  Page* page = pages_.alloc_page(__GFP_POOL | __GFP_NOWARN);
  if (page == nullptr) return Errno::nomem;
  page->set(PageFlag::zram);
  pages_.vmstat().inc_node_page_state(NodeStat::nr_zspages);
  return pages_.mem().pfn(page);
}

void PoolFrames::put_frame(Pfn frame) {
  Page& page = pages_.mem().page(frame);
  WEIR_BUG_ON(!page.test_and_clear(PageFlag::zram));
  pages_.vmstat().dec_node_page_state(NodeStat::nr_zspages);
  pages_.__free_pages(page, Order(0));
}

}  // namespace weir
