// src/sim/user_access.hpp
//
// A simulated task's loads and stores: one word of content a page, whatever the machine keeps (tags, or bytes made from
// the word).
#pragma once

#include <optional>

#include "arch/soft/soft_mmu.hpp"
#include "sim/scenario.hpp"

namespace weir::sim {

/// A page's bytes for a content word: half random, half one repeated word, so that they compress about as programs'
/// pages do. 0 is the zero page.
void fill_page(uint64_t content, std::byte* page);
/// The word that a page of bytes was made from; nothing if the bytes are not such a page.
[[nodiscard]] std::optional<uint64_t> content_of(const std::byte* page);

class UserAccess {
 public:
  UserAccess(SoftMmu& mmu, ContentMode mode) : mmu_(mmu), mode_(mode) {}

  /// One store: the page's content becomes `content`. One load: what it is. The fault handler runs as often as it
  /// takes.
  FaultResult store(Task& task, VirtAddr page, uint64_t content);
  FaultResult load(Task& task, VirtAddr page, std::optional<uint64_t>& content);

 private:
  SoftMmu& mmu_;
  ContentMode mode_;
};

}  // namespace weir::sim
