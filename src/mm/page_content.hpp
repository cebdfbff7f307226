// src/mm/page_content.hpp
//
// The bytes of a user page, read and written by the machine: file contents on their way from and to a task.
//
// A content tag stands for a page whose 512 words all have that value; so bytes and tags can be read and written in
// both kinds of machine, and whole pages of one value come back as they went.
#pragma once

#include "mm/interfaces.hpp"

namespace weir {

/// What is written: bytes, or a tag that stands for them. Neither: unknown bytes (where pages are tagged).
struct PageSource {
  const std::byte* from = nullptr;
  const uint64_t* tag = nullptr;
};

/// Bytes [offset, offset + n) of the page go to `to`.
void copy_from_page(Mmu& mmu, Page& page, uint32_t offset, std::byte* to, uint64_t n);
/// Bytes [offset, offset + n) of the page become those of `source` from its byte `done` on.
void copy_to_page(Mmu& mmu, Page& page, uint32_t offset, uint64_t n, const PageSource& source, uint64_t done);
/// The page's tag; where it has bytes, its first word.
[[nodiscard]] uint64_t tag_of_page(Mmu& mmu, Page& page);
/// Bytes [offset, offset + n) of a page become zero. A tagged page has no bytes: it becomes zero as a whole or not at
/// all.
void zero_page_range(Mmu& mmu, Page& page, uint32_t offset, uint64_t n);
/// The same of bytes [offset, 4096).
inline void zero_page_tail(Mmu& mmu, Page& page, uint32_t offset) {
  zero_page_range(mmu, page, offset, PAGE_SIZE - offset);
}

}  // namespace weir
