// src/mm/page_content.cpp: see page_content.hpp
#include "mm/page_content.hpp"

#include <cstring>

namespace weir {

namespace {

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

/// Bytes [offset, offset + n) of a page whose words are all `tag`.
void tag_to_bytes(uint64_t tag, uint32_t offset, std::byte* to, uint64_t n) {
  for (uint64_t i = 0; i < n; ++i) to[i] = static_cast<std::byte>(tag >> ((offset + i) % 8 * 8));
}

/// The tag of a page of tag `old` after [offset, offset + n) was overwritten with `from` (null: with who knows what).
/// The one word's value, if the page consists of one word now; else a value that depends on all that it should.
uint64_t bytes_to_tag(uint64_t old, uint32_t offset, const std::byte* from, uint64_t n) {
  if (from != nullptr && n == PAGE_SIZE) {
    uint64_t word;
    std::memcpy(&word, from, sizeof word);
    bool alike = true;
    for (uint64_t i = sizeof word; i < n && alike; i += sizeof word)
      alike = std::memcmp(from + i, &word, sizeof word) == 0;
    if (alike) return word;
    old = 0;
  }
  uint64_t tag = mix(old ^ (uint64_t{offset} << 32 | n));
  for (uint64_t i = 0; from != nullptr && i < n; ++i) tag = (tag ^ static_cast<uint64_t>(from[i])) * 0x100000001b3ull;
  return mix(tag) | 1;  // 0 is the zero page's
}

}  // namespace

void copy_from_page(Mmu& mmu, Page& page, uint32_t offset, std::byte* to, uint64_t n) {
  const Content content = mmu.kmap(page);
  if (content.tagged())
    tag_to_bytes(*content.tag, offset, to, n);
  else
    std::memcpy(to, content.bytes + offset, n);
  mmu.kunmap(page);
}

void copy_to_page(Mmu& mmu, Page& page, uint32_t offset, uint64_t n, const PageSource& source, uint64_t done) {
  const Content content = mmu.kmap(page);
  if (content.tagged()) {
    *content.tag = source.tag != nullptr
                       ? *source.tag
                       : bytes_to_tag(*content.tag, offset, source.from != nullptr ? source.from + done : nullptr, n);
  } else if (source.tag != nullptr) {
    tag_to_bytes(*source.tag, offset, content.bytes + offset, n);
  } else {
    WEIR_BUG_ON(source.from == nullptr);
    std::memcpy(content.bytes + offset, source.from + done, n);
  }
  mmu.kunmap(page);
}

uint64_t tag_of_page(Mmu& mmu, Page& page) {
  const Content content = mmu.kmap(page);
  uint64_t tag = 0;
  if (content.tagged())
    tag = *content.tag;
  else
    std::memcpy(&tag, content.bytes, sizeof tag);
  mmu.kunmap(page);
  return tag;
}

void zero_page_range(Mmu& mmu, Page& page, uint32_t offset, uint64_t n) {
  const Content content = mmu.kmap(page);
  if (!content.tagged()) {
    std::memset(content.bytes + offset, 0, n);
  } else if (n == PAGE_SIZE) {
    *content.tag = 0;
  }
  mmu.kunmap(page);
}

}  // namespace weir
