// src/mm/flat_fs.cpp: see flat_fs.hpp
#include "mm/flat_fs.hpp"

#include <algorithm>

namespace weir {

namespace {

constexpr uint64_t MAGIC = 0x464c4154;  // "FLAT"
constexpr unsigned SIZE_BITS = 40;
constexpr uint64_t SIZE_MASK = (uint64_t{1} << SIZE_BITS) - 1;

constexpr uint64_t extent_block(uint32_t record) { return 1 + uint64_t{record} * 2; }
constexpr uint64_t length_block(uint32_t record) { return extent_block(record) + 1; }
constexpr uint64_t first_of(uint64_t extent) { return extent >> 32; }
constexpr uint64_t pages_of(uint64_t extent) { return extent & UINT32_MAX; }

}  // namespace

// ---- The table ------------------------------------------------------------------------------------------------------

Result<uint64_t> FlatFs::read_word(uint64_t block) {
  BufferHead* bh = WEIR_TRY(buffers_.__bread(*bd_inode_, block));
  const uint64_t word = buffers_.word_of(*bh);
  Buffers::brelse(*bh);
  return word;
}

/// It is on the device when this returns.
Result<void> FlatFs::write_word(uint64_t block, uint64_t word) {
  BufferHead* bh = WEIR_TRY(buffers_.__bread(*bd_inode_, block));
  Result<void> written;
  if (buffers_.word_of(*bh) != word) {
    buffers_.fill_with_word(*bh, word);
    buffers_.mark_buffer_dirty(*bh);
    written = buffers_.sync_dirty_buffer(*bh);
  }
  Buffers::brelse(*bh);
  return written;
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "block_dev.cpp"
Result<void> FlatFs::bdget(BlockDevice& device, uint32_t block_size) {
  WEIR_FLOW(block_size);
  if (block_size == 0) return Errno::inval;
  const Bytes all(static_cast<uint64_t>(device.capacity().v) << PAGE_SHIFT);
  bd_inode_ = WEIR_TRY(files_.create_inode(device.name(), device, 0, all, all, block_size));
  return {};
}

void FlatFs::sync_blockdev() {
  WEIR_FLOW(bd_inode_->ino);
  files_.filemap_write_and_wait_range(bd_inode_->i_data, 0, ~uint64_t{0});
}

void FlatFs::kill_bdev() {
  WEIR_FLOW(bd_inode_->ino);
  files_.truncate_inode_pages(bd_inode_->i_data);
}

#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "flat_fs.cpp"
void FlatFs::flush_blockdev() {
  sync_blockdev();
  kill_bdev();
}

Result<void> FlatFs::mkfs(BlockDevice& device, uint32_t block_size, uint32_t max_files) {
  if (max_files == 0 || max_files > UINT32_MAX / 2) return Errno::inval;
  WEIR_TRY_VOID(bdget(device, block_size));
  Result<void> done;
  if (table_pages(block_size, max_files) >= static_cast<uint64_t>(device.capacity().v)) done = Errno::nospc;
  for (uint32_t record = 0; record < max_files && done; ++record) done = write_word(extent_block(record), 0);
  if (done) done = write_word(0, MAGIC << 32 | max_files);
  umount();
  return done ? mount(device, block_size) : done;
}

Result<void> FlatFs::mount(BlockDevice& device, uint32_t block_size) {
  WEIR_BUG_ON(bd_inode_ != nullptr);
  WEIR_TRY_VOID(bdget(device, block_size));
  Result<uint64_t> super = read_word(0);
  if (super && *super >> 32 == MAGIC) {
    max_files_ = static_cast<uint32_t>(*super);
    return {};
  }
  umount();
  return super ? Errno::inval : super.error();
}

void FlatFs::umount() {
  files_.iput(*bd_inode_);
  bd_inode_ = nullptr;
}

// ---- Files ----------------------------------------------------------------------------------------------------------

Result<Inode*> FlatFs::create(const char* name, Bytes max_bytes) {
  const uint64_t pages = page_align_up(max_bytes.v) >> PAGE_SHIFT;
  if (pages == 0 || pages >= uint64_t{1} << (64 - SIZE_BITS)) return Errno::fbig;
  uint32_t record = 0;
  {
    ScopedLock guard(table_);
    uint64_t first = table_pages(bd_inode_->block_size, max_files_);
    bool found = false;
    for (uint32_t i = 0; i < max_files_; ++i) {
      const uint64_t extent = WEIR_TRY(read_word(extent_block(i)));
      first = std::max(first, first_of(extent) + pages_of(extent));
      if (extent == 0 && !found) {
        record = i;
        found = true;
      }
    }
    if (!found || first + pages > static_cast<uint64_t>(bd_inode_->bdev->capacity().v)) return Errno::nospc;
    WEIR_TRY_VOID(write_word(length_block(record), 0));
    WEIR_TRY_VOID(write_word(extent_block(record), first << 32 | pages));
  }
  return iget(record, name);
}

Result<Inode*> FlatFs::iget(uint32_t record, const char* name) {
  WEIR_FLOW(record);
  if (record >= max_files_) return Errno::noent;
  const uint64_t extent = WEIR_TRY(read_word(extent_block(record)));
  if (extent == 0) return Errno::noent;
  const uint64_t length = WEIR_TRY(read_word(length_block(record)));
  // A table whose blocks are a page each has files that need no buffers: a page is a block.
  const uint32_t block_size = bd_inode_->block_size < PAGE_SIZE ? bd_inode_->block_size : 0;
  Inode* inode = WEIR_TRY(files_.create_inode(name, *bd_inode_->bdev, first_of(extent), Bytes(length & SIZE_MASK),
                                              Bytes(pages_of(extent) << PAGE_SHIFT), block_size));
  inode->valid_pages.store(length >> SIZE_BITS, std::memory_order_relaxed);
  inode->i_sb = this;
  inode->record = record;
  return inode;
}

Result<void> FlatFs::write_inode(Inode& inode) {
  WEIR_FLOW(inode.ino, inode.record);
  const uint64_t size = inode.i_size.load(std::memory_order_acquire);
  return write_word(length_block(inode.record), inode.valid_pages.load(std::memory_order_acquire) << SIZE_BITS | size);
}

}  // namespace weir
