// src/sim/user_access.cpp: see user_access.hpp
#include "sim/user_access.hpp"

#include <cstring>

namespace weir::sim {

namespace {

constexpr size_t WORDS = PAGE_SIZE / sizeof(uint64_t);

uint64_t mix(uint64_t z) {
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

}  // namespace

void fill_page(uint64_t content, std::byte* page) {
  if (content == 0) {
    std::memset(page, 0, PAGE_SIZE);
    return;
  }
  uint64_t words[WORDS];
  words[0] = content;
  for (size_t i = 1; i < WORDS; ++i) words[i] = i < WORDS / 2 ? mix(content + i) : content;
  std::memcpy(page, words, PAGE_SIZE);
}

std::optional<uint64_t> content_of(const std::byte* page) {
  uint64_t content = 0;
  std::memcpy(&content, page, sizeof content);
  std::byte expected[PAGE_SIZE];
  fill_page(content, expected);
  if (std::memcmp(expected, page, PAGE_SIZE) != 0) return {};
  return content;
}

FaultResult UserAccess::store(Task& task, VirtAddr page, uint64_t content) {
  if (mode_ == ContentMode::tagged) return mmu_.write_tag(task, page, content);
  std::byte bytes[PAGE_SIZE];
  fill_page(content, bytes);
  return mmu_.copy_to_user(task, page, bytes, PAGE_SIZE);
}

FaultResult UserAccess::load(Task& task, VirtAddr page, std::optional<uint64_t>& content) {
  if (mode_ == ContentMode::tagged) {
    uint64_t tag = 0;
    const FaultResult r = mmu_.read_tag(task, page, tag);
    content = tag;
    return r;
  }
  std::byte bytes[PAGE_SIZE];
  const FaultResult r = mmu_.copy_from_user(task, bytes, page, PAGE_SIZE);
  if (r == FaultResult::done) content = content_of(bytes);
  return r;
}

}  // namespace weir::sim
