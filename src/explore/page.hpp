// src/explore/page.hpp
//
// The explorer: a recording as one page that needs nothing else. The page was bundled into the command when that was
// built (src/explore/web); the recording goes into it compressed. Everything that is drawn the page reads from the
// recording itself.
#pragma once

#include <string>

#include "explore/part.hpp"

namespace weir::explore {

/// The page. `title`: for a recording that has no name of its own.
[[nodiscard]] std::string page(Part part, const std::string& title);

}  // namespace weir::explore
