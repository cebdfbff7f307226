// What a hit in the page cache costs: find_get_page and put_page of pages of a file that is cached whole.
#include <vector>

#include "machine.hpp"
#include "table.hpp"

using namespace weir;
using namespace weir::bench;

namespace {

constexpr uint64_t PAGES = (uint64_t{64} << 20) / PAGE_SIZE, LOOKUPS = 1 << 16;
constexpr unsigned BATCHES = 64;

/// Index of the i-th lookup.
std::vector<uint32_t> order(bool random) {
  std::vector<uint32_t> indices(LOOKUPS);
  Random next(3);
  for (uint64_t i = 0; i < LOOKUPS; ++i) indices[i] = static_cast<uint32_t>(random ? next.below(PAGES) : i % PAGES);
  return indices;
}

}  // namespace

int main() {
  BenchMachine bench({.ram = 256_MiB});
  HostMemory place(sizeof(SimDisk));
  SimDisk* disk = nullptr;
  bench.run([&] {
    Machine& m = *bench.machine;
    Result<SimDisk*> made = SimDisk::create(
        place.data(), bench.world, {.name = "disk", .capacity = PageCount(PAGES), .content = ContentKind::tags});
    WEIR_BUG_ON(!made);
    disk = *made;
    Result<Inode*> inode = m.files.create_inode("file", *disk, 0, Bytes(PAGES * PAGE_SIZE), Bytes(PAGES * PAGE_SIZE));
    WEIR_BUG_ON(!inode);
    AddressSpace& mapping = (*inode)->i_data;
    m.files.force_page_cache_readahead(**inode, 0, PAGES - 1);
    // The same without a tree: an array of pages, each counted up and down.
    std::vector<Page*> array(PAGES);
    for (uint64_t i = 0; i < PAGES; ++i) {
      array[i] = m.filemap.find_get_page(mapping, i);
      WEIR_BUG_ON(array[i] == nullptr);
      m.filemap.wait_on_page_locked(*array[i]);
      m.lru.put_page(*array[i]);
    }
    Table table("A hit in the page cache, a file of 64 MiB");
    const std::vector<uint32_t> in_order = order(false), random = order(true);
    for (const bool tree : {false, true}) {
      for (const auto* indices : {&in_order, &random}) {
        const auto lookups = [&] {
          for (const uint32_t index : *indices) {
            Page* page = array[index];
            if (tree)
              page = m.filemap.find_get_page(mapping, index);
            else
              PageAllocator::get_page(*page);
            keep(page);
            m.lru.put_page(*page);
          }
        };
        const std::string what = indices == &in_order ? "in order" : "random";
        lookups();
        table.row((tree ? "find_get_page, put_page, " : "reference: an array, counted, ") + what,
                  measure(BATCHES, LOOKUPS, lookups));
      }
    }
    m.files.iput(**inode);
    disk->~SimDisk();
  });
  return 0;
}
