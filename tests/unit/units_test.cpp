#include "base/units.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <type_traits>

namespace weir {
namespace {

using namespace weir::literals;

// What does not compile is half of what the units are for.
template <class A, class B>
concept Addable = requires(A a, B b) {
  a + b;
};
template <class A, class B>
concept Subtractable = requires(A a, B b) {
  a - b;
};
template <class A, class B>
concept Comparable = requires(A a, B b) {
  a < b;
};

static_assert(Addable<Pfn, PageCount> && !Addable<Pfn, Pfn> && !Addable<Pfn, Bytes> && !Addable<Pfn, uint64_t>);
static_assert(Subtractable<Pfn, Pfn> && !Subtractable<Pfn, VirtAddr>);
static_assert(Addable<Bytes, Bytes> && !Addable<Bytes, PageCount> && !Addable<Bytes, Nanos>);
static_assert(Addable<VirtAddr, uint64_t> && !Addable<VirtAddr, VirtAddr>);
static_assert(!Addable<Order, Order> && !Addable<NodeId, NodeId>);
static_assert(Comparable<Pfn, Pfn> && !Comparable<Pfn, VirtAddr> && !Comparable<Bytes, PageCount>);
static_assert(!std::is_convertible_v<uint64_t, Pfn> && !std::is_convertible_v<Pfn, uint64_t>);
static_assert(!std::is_convertible_v<Bytes, PageCount> && !std::is_constructible_v<Bytes, PageCount>);

static_assert(sizeof(Pfn) == 8 && sizeof(Order) == 1 && sizeof(NodeId) == 1 && sizeof(CpuId) == 2);
static_assert(std::is_trivially_copyable_v<Pfn> && std::is_trivially_copyable_v<PageCount>);

TEST(Units, StartAtZero) {
  EXPECT_EQ(Pfn{}.v, 0U);
  EXPECT_EQ(PageCount{}.v, 0);
}

TEST(Units, FramesAndPageCountsMeet) {
  EXPECT_EQ(Pfn(100) + PageCount(28), Pfn(128));
  EXPECT_EQ(Pfn(100) + PageCount(-1), Pfn(99));
  EXPECT_EQ(Pfn(100) - Pfn(128), PageCount(-28)) << "distances have a sign";
  EXPECT_LT(Pfn(1), Pfn(2));
}

TEST(Units, CountsAddUp) {
  PageCount pages(3);
  pages += PageCount(4);
  pages -= PageCount(10);
  EXPECT_EQ(pages, PageCount(-3));
  EXPECT_EQ(PageCount(3) * 5, PageCount(15));
  EXPECT_EQ(PageCount(16) / 5, PageCount(3));
  EXPECT_EQ(Nanos(5) - Nanos(2), Nanos(3));
}

TEST(Units, AddressesKnowTheirPage) {
  EXPECT_EQ(VirtAddr(0x12345).page(), VirtAddr(0x12000));
  EXPECT_EQ(VirtAddr(0x12345) - VirtAddr(0x12000), 0x345U);
  EXPECT_EQ(VirtAddr(0x12000) + 0x345, VirtAddr(0x12345));
  EXPECT_EQ(VirtAddr(0x12345) - 0x345, VirtAddr(0x12000));
  EXPECT_EQ(VirtAddr(~uint64_t{0}).page(), VirtAddr(PAGE_MASK));
}

TEST(Units, PagesBytesAndOrdersConvert) {
  EXPECT_EQ(pages_of(Order(0)), PageCount(1));
  EXPECT_EQ(pages_of(Order(10)), PageCount(1024));
  EXPECT_EQ(bytes_of(PageCount(3)), Bytes(12288));
  EXPECT_EQ(pages_in(Bytes(12287)), PageCount(2)) << "whole pages only";
  EXPECT_EQ(pages_in(256_MiB), PageCount(65536));
  EXPECT_EQ(page_align_up(0), 0U);
  EXPECT_EQ(page_align_up(1), PAGE_SIZE);
  EXPECT_EQ(page_align_up(PAGE_SIZE), PAGE_SIZE);
}

TEST(Units, LiteralsSayTheirUnit) {
  EXPECT_EQ(4_KiB, Bytes(4096));
  EXPECT_EQ(2_MiB, Bytes(2097152));
  EXPECT_EQ(1_GiB, 1024_MiB);
  EXPECT_EQ(1_s, 1000_ms);
  EXPECT_EQ(1_ms, 1000_us);
  EXPECT_EQ(1_us, 1000_ns);
}

}  // namespace
}  // namespace weir
