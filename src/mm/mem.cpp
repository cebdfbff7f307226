// src/mm/mem.cpp: see mem.hpp
#include "mm/mem.hpp"

#include <cstring>

namespace weir {

Result<void> MemDevice::init(const char* name, Bytes size) {
  const int64_t wanted = pages_in(size).v;
  if (wanted <= 0 || wanted > int64_t{1} << (MAX_ORDER - 1)) return Errno::inval;
  while (this->size().v < wanted) ++order_.v;
  first_ = pages_.alloc_pages(GFP_KERNEL, order_);
  if (first_ == nullptr) return Errno::nomem;
  for (int64_t i = 0; i < this->size().v; ++i) mmu_.clear_user_highpage(*(first_ + i));
  std::strncpy(inode_.name, name, sizeof inode_.name - 1);
  inode_.i_data.host = &inode_;
  files_.inode_sb_list_add(inode_);
  return {};
}

void MemDevice::exit() {
  WEIR_BUG_ON(!inode_.i_data.i_mmap.empty());
  files_.inode_sb_list_del(inode_);
  pages_.__free_pages(*first_, order_);
}

Result<File*> MemDevice::open() {
  File* file = WEIR_TRY(files_.alloc_file(inode_, *this, *this));
  file->release = [](void* self, File& f) {
    auto& device = *static_cast<MemDevice*>(self);
    device.inode_.i_count.fetch_sub(1, std::memory_order_relaxed);
    device.files_.free_file(f);
  };
  file->owner = this;
  return file;
}

/// Errors: EINVAL (behind the end), ENOSYS (hardware has no aliases), EAGAIN (no memory for tables).
Result<void> MemDevice::mmap_mem(File&, VmArea& vma) {
  WEIR_FLOW(vma.vm_start, vma.vm_pgoff, vma.pages());
  const auto frames = static_cast<uint64_t>(size().v);
  if (vma.vm_pgoff > frames || vma.pages() > frames - vma.vm_pgoff) return Errno::inval;
  if (!mmu_.caps().has_alias) return Errno::nosys;
  const Pfn pfn(pages_.mem().pfn(first_).v + vma.vm_pgoff);
  if (!memory_.remap_pfn_range(vma, vma.vm_start, pfn, vma.vm_end - vma.vm_start)) return Errno::again;
  return {};
}

}  // namespace weir
