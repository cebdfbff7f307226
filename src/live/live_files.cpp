// src/live/live_files.cpp: files mapped into managed memory. See live_machine.hpp
//
//   map_file   fd --opened once more--> FileDevice --> Inode --> File --> VMA; the host's memory becomes accessible
//   a touch    do_page_fault --> filemap_fault: found in the page cache, or read --> UffdMmu maps it, write-protected
//   a store    do_page_fault --> page_mkwrite: dirty --> writable
//   sync_file, flusher, reclaim --> page_mkclean: out of the program's reach --> written by the device's threads
//
// All of it is mm's. Here is only what makes a file of the host's an Inode.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>

#include "arch/uffd/host_calls.hpp"
#include "live/live_parts.hpp"

namespace weir {

namespace {

constexpr uint64_t MAX_FILE_PAGES = LiveMachine::MAX_FILE_BYTES >> PAGE_SHIFT;
/// Threads for a file's I/O.
constexpr unsigned IO_THREADS = 2;

/// What the host says to the same wish for one page: rights, seals, kinds of files, offsets. EBADF, EACCES, EPERM,
/// ENODEV, EOVERFLOW, …
Result<void> host_would_map(int fd, uint64_t offset, int prot, LiveMachine::Sharing sharing) {
  const int flags = sharing == LiveMachine::Sharing::shared ? MAP_SHARED : MAP_PRIVATE | MAP_NORESERVE;
  const long at = raw_syscall(SYS_mmap, 0L, PAGE_SIZE, prot, flags, fd, static_cast<long>(offset));
  if (at < 0 && at > -4096) return static_cast<Errno>(-at);
  raw_syscall(SYS_munmap, at, PAGE_SIZE);
  return {};
}

}  // namespace

/// fn(File&, first page, last page, address, shared) for each part of [start, end) that maps a file; its File stays
/// meanwhile. No lock is held: mappings may come and go. Errors: fn's first; ENOMEM if a part is not mapped, at the end.
template <class Fn>
Result<void> LiveMachine::for_each_file_part(VirtAddr start, VirtAddr end, Fn fn) {
  Parts& p = *parts_;
  Mm& mm = *p.task->mm;
  Errno first = Errno::ok;
  bool hole = false;
  while (start < end) {
    File* file = nullptr;
    VirtAddr from, to;
    uint64_t page = 0;
    bool shared = false;
    {
      ScopedRead reading(mm.mmap_sem);
      const VmArea* vma = p.machine->vmas.find_vma(mm, start);
      if (vma == nullptr || vma->vm_start >= end) {
        hole = true;
        break;
      }
      hole |= vma->vm_start > start;
      from = std::max(start, vma->vm_start);
      to = std::min(end, vma->vm_end);
      if (vma->vm_file != nullptr) {
        file = vma->vm_file;
        get_file(*file);
        page = linear_page_index(*vma, from);
        shared = (vma->vm_flags & VM_SHARED) != 0;
      }
    }
    if (file != nullptr) {
      const Result<void> done = fn(*file, page, page + ((to - from) >> PAGE_SHIFT) - 1, from, shared);
      if (!done && first == Errno::ok) first = done.error();
      fput(*file);
    }
    start = to;
  }
  if (first != Errno::ok) return first;
  if (hole) return Errno::nomem;
  return {};
}

// ---- Files ----------------------------------------------------------------------------------------------------------

/// The place of the file that `fd` has open; layout lock held. Errors: as map_file.
Result<unsigned> LiveMachine::file_of(int fd) {
  Parts& p = *parts_;
  struct stat st = {};
  if (const long failed = raw_syscall(SYS_fstat, fd, &st); failed < 0) return static_cast<Errno>(-failed);
  const FileIdentity wanted{st.st_dev, st.st_ino};
  unsigned free = MAX_FILES;
  for (unsigned i = MAX_FILES; i-- > 0;) {
    if (p.files[i].device == nullptr)
      free = i;
    else if (p.files[i].device->file() == wanted)
      return i;
  }
  if (free == MAX_FILES) return Errno::nfile;
  Parts::MappedFile& file = p.files[free];
  // Kthreads have a copy of the program's descriptors, and keep what they keep open. Those of other files they close
  // (close_program_files), so the flusher comes before the file is open.
  if (!p.has_flusher) p.machine->flusher.start(*p.world);
  p.has_flusher = true;
  (void)p.machine->writeback.wb_of(*reinterpret_cast<const FileDevice*>(file.device_place));
  FileDeviceError why;
  FileDevice* device = WEIR_TRY(FileDevice::create(file.device_place, *p.world,
                                                   {.path = "mapped file",
                                                    .capacity = PageCount(static_cast<int64_t>(MAX_FILE_PAGES)),
                                                    .origin = FileOrigin::descriptor,
                                                    .descriptor = fd,
                                                    .io_threads = IO_THREADS},
                                                   why));
  Result<Inode*> inode = p.machine->files.create_inode("mapped file", *device, 0, Bytes(0), Bytes(MAX_FILE_BYTES));
  if (!inode) {
    device->~FileDevice();
    return inode.error();
  }
  p.world->wait_for_kthread_starts();
  file.device = device;
  file.inode = *inode;
  // Linux's: a page that cannot be written must not keep its memory for ever.
  file.inode->failed_stay_dirty = false;
  return free;
}

/// To mm the file is as long as the furthest mapping of it; where it really ends its device says at each read.
void LiveMachine::grow_file(unsigned nr, uint64_t pages) {
  Inode& inode = *parts_->files[nr].inode;
  if (i_size_pages(inode) >= pages) return;
  inode.valid_pages.store(pages, std::memory_order_release);
  inode.i_size.store(pages << PAGE_SHIFT, std::memory_order_release);
}

/// Files that nobody maps any more go; layout lock held.
void LiveMachine::drop_unused_files() {
  Parts& p = *parts_;
  for (Parts::MappedFile& file : p.files) {
    if (file.device == nullptr || file.inode->i_count.load(std::memory_order_acquire) != 1) continue;
    p.machine->files.iput(*file.inode);
    file.device->~FileDevice();
    file.device = nullptr;
    file.inode = nullptr;
  }
}

void LiveMachine::unmap_all_files() {
  Parts& p = *parts_;
  ScopedLock guard(p.layout);
  if (std::none_of(std::begin(p.files), std::end(p.files), [](const auto& f) { return f.device != nullptr; })) return;
  (void)p.machine->spaces.munmap(*p.task->mm, at(range_), range_bytes_);
  drop_unused_files();
}

// ---- Mappings -------------------------------------------------------------------------------------------------------

Result<void*> LiveMachine::map_file(int fd, uint64_t offset, size_t length, int prot, Sharing sharing) {
  if (length == 0 || offset % PAGE_SIZE != 0) return Errno::inval;
  if (prot != PROT_READ && prot != (PROT_READ | PROT_WRITE)) return Errno::inval;
  if (length > range_bytes_) return Errno::nomem;
  length = page_align_up(length);
  if (offset > MAX_FILE_BYTES || length > MAX_FILE_BYTES - offset) return Errno::overflow;
  const bool to_write = sharing == Sharing::shared && (prot & PROT_WRITE) != 0;
  WEIR_TRY_VOID(host_would_map(fd, offset + length - PAGE_SIZE, prot, sharing));
  return parts_->in_engine([&]() -> Result<void*> {
    Parts& p = *parts_;
    ScopedLock guard(p.layout);
    Mm& mm = *p.task->mm;
    const auto refused = [&](Errno error) {
      drop_unused_files();
      return error;
    };
    const unsigned nr = WEIR_TRY(file_of(fd));
    if (to_write && !p.files[nr].device->writable()) return refused(Errno::busy);
    grow_file(nr, (offset + length) >> PAGE_SHIFT);
    Result<File*> file = p.machine->files.open(*p.files[nr].inode);
    if (!file) return refused(file.error());
    Result<VirtAddr> start = p.machine->spaces.mmap(
        mm, {.length = length,
             .prot = vm_prot(prot),
             .sharing = sharing == Sharing::shared ? MmapRequest::Sharing::shared : MmapRequest::Sharing::private_,
             .extra_flags = VM_NORESERVE,
             .file = *file,
             .pgoff = offset >> PAGE_SHIFT});
    fput(**file);  // the mapping has its own
    if (!start) return refused(start.error());
    Errno error = inside(pointer(*start), length) ? Errno::ok : Errno::nomem;
    // Whatever the rights: a page can only be taken out of memory that is readable and writable. Stores that are not
    // allowed find it write-protected.
    if (error == Errno::ok) {
      if (const long r = host_mprotect(start->v, length, PROT_READ | PROT_WRITE); r != 0)
        error = static_cast<Errno>(-r);
    }
    if (error == Errno::ok)
      error = uffd_register(p.fds.user, pointer(*start), length, UffdFaults::missing_and_protected).error();
    if (error != Errno::ok) {
      (void)p.machine->spaces.munmap(mm, *start, length);
      host_mprotect(start->v, length, PROT_NONE);
      return refused(error);
    }
    return pointer(*start);
  });
}

Result<void> LiveMachine::unmap_file(void* address, size_t length) {
  if (at(address).v % PAGE_SIZE != 0 || length == 0) return Errno::inval;
  length = page_align_up(length);
  if (length == 0 || !inside(address, length)) return Errno::inval;
  return parts_->in_engine([&]() -> Result<void> {
    Parts& p = *parts_;
    Mm& mm = *p.task->mm;
    const VirtAddr start = at(address), end = start + length;
    {
      ScopedRead reading(mm.mmap_sem);
      for (const VmArea* vma = p.machine->vmas.find_vma(mm, start); vma != nullptr && vma->vm_start < end;
           vma = p.machine->vmas.find_vma(mm, vma->vm_end))
        if (vma->vm_file == nullptr) return Errno::inval;
    }
    const Result<void> written =
        for_each_file_part(start, end, [&](File& file, uint64_t first, uint64_t last, VirtAddr, bool shared) {
          return shared ? p.machine->files.fsync_range(file, first, last) : Result<void>();
        });
    ScopedLock guard(p.layout);
    // The machine first: it takes pages that stay in the cache out of memory that is accessible. Who touches one of them
    // now is refused one by one.
    WEIR_TRY_VOID(p.machine->spaces.munmap(mm, start, length));
    p.mmu->keep_range(start, end);
    host_mprotect(start.v, length, PROT_NONE);
    // What serve() has poisoned.
    host::madvise(address, length, MADV_DONTNEED);
    drop_unused_files();
    return written.error() == Errno::nomem ? Result<void>() : written;
  });
}

Result<void> LiveMachine::sync_file(void* address, size_t length, int flags) {
  if (at(address).v % PAGE_SIZE != 0 || (flags & ~(MS_ASYNC | MS_SYNC | MS_INVALIDATE)) != 0) return Errno::inval;
  if ((flags & MS_ASYNC) != 0 && (flags & MS_SYNC) != 0) return Errno::inval;
  length = page_align_up(length);
  if (length == 0) return {};
  if (!inside(address, length)) return Errno::nomem;
  return parts_->in_engine([&]() -> Result<void> {
    Parts& p = *parts_;
    return for_each_file_part(at(address), at(address) + length,
                              [&](File& file, uint64_t first, uint64_t last, VirtAddr, bool shared) -> Result<void> {
                                Inode& inode = *file.f_inode;
                                Result<void> done;
                                if (shared && (flags & MS_SYNC) != 0) {
                                  done = p.machine->files.fsync_range(file, first, last);
                                  const Result<void> flushed = static_cast<FileDevice*>(inode.bdev)->sync();
                                  if (done) done = flushed;
                                }
                                if ((flags & MS_INVALIDATE) != 0) {
                                  // Others hold a page for a moment only: readers, reclaim.
                                  Result<void> dropped;
                                  for (int tries = 0; tries < 10; ++tries) {
                                    dropped = p.machine->files.invalidate_range(inode, first, last);
                                    if (dropped) break;
                                    (void)world().schedule_timeout(1_ms);
                                  }
                                  if (done) done = dropped;
                                }
                                return done;
                              });
  });
}

/// MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED. What is no file takes no notice.
Result<void> LiveMachine::advise_files(VirtAddr start, VirtAddr end, int advice) {
  return parts_->in_engine([&]() -> Result<void> {
    Parts& p = *parts_;
    if (advice != MADV_WILLNEED) {
      ScopedLock guard(p.layout);
      if (!p.has_flusher) return {};  // there was no file yet
      const Advice way = advice == MADV_RANDOM       ? Advice::random
                         : advice == MADV_SEQUENTIAL ? Advice::sequential
                                                     : Advice::normal;
      return p.machine->spaces.madvise(*p.task->mm, start, end - start, way);
    }
    return for_each_file_part(start, end,
                              [&](File& file, uint64_t first, uint64_t last, VirtAddr, bool) -> Result<void> {
                                p.machine->files.force_page_cache_readahead(*file.f_inode, first, last);
                                return {};
                              });
  });
}

}  // namespace weir
