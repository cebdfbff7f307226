// Frames handed out and taken back: buddy lists, per-CPU lists, zones, migrate types, the balloon.
#include "mm/page_alloc.hpp"

#include <gmock/gmock.h>

#include <map>
#include <random>
#include <set>

#include "support/mm_fixture.hpp"

namespace weir {
namespace {

using test::TestMachine;
using testing::ElementsAreArray;

TEST(PageAlloc, APageComesClean) {
  TestMachine m;
  Page* page = m.pages.alloc_page(GFP_KERNEL | __GFP_ZERO);
  ASSERT_NE(page, nullptr);
  EXPECT_EQ(page_count(*page), 1);
  EXPECT_EQ(page_mapcount(*page), 0);
  EXPECT_EQ(page->flags.load(), flag_bit(PageFlag::kernel_place));
  const std::byte* bytes = m.mem.page_address(*page);
  EXPECT_TRUE(std::all_of(bytes, bytes + PAGE_SIZE, [](std::byte b) { return b == std::byte{0}; }));
  m.pages.__free_pages(*page, Order(0));
  EXPECT_EQ(m.faults(), "");
}
}  // namespace
}  // namespace weir
