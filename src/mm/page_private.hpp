// src/mm/page_private.hpp
//
// Page::private_ and page flags, by their recorded names. Linux: include/linux/mm.h, page-flags.h.
#pragma once

#include "mm/types.hpp"

namespace weir {

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "mm.h"
inline void set_page_private(Page& page, uint64_t value) {
  WEIR_FLOW(value);
  page.private_ = value;
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "page-flags.h"
/// Does a file system keep something with the page: buffers? They have one reference to it.
[[nodiscard]] inline bool page_has_private(const Page& page) {
  WEIR_FLOW(page.index);
  return page.test(PageFlag::private_);
}
/// Questions that documents' flows name, for a recording to show. (There is a class PageWriteback.)
namespace page_flags {
[[nodiscard]] inline bool PageWriteback(const Page& page) {
  WEIR_FLOW(page.index);
  return page.test(PageFlag::writeback);
}
[[nodiscard]] inline bool PageDirty(const Page& page) {
  WEIR_FLOW(page.index);
  return page.test(PageFlag::dirty);
}
}  // namespace page_flags
#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE ::weir::base_name(__FILE__)

}  // namespace weir
