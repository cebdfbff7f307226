// src/block/file_device.cpp: see file_device.hpp
#include "block/file_device.hpp"

#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "base/flow.hpp"
#include "base/raw_syscall.hpp"
#include "kernel/kthread.hpp"

namespace weir {

/// What create() has found out.
struct OpenFile {
  int fd = -1, plain_fd = -1;
  bool own = true;  ///< nobody else has this open file
  PageCount capacity{};
  bool direct = false;
  bool reserved = true;
  bool writable = true;
};

namespace {

static_assert(sizeof(io_uring) <= 256 && alignof(io_uring) <= 8);

io_uring& as_ring(std::byte* storage) { return *reinterpret_cast<io_uring*>(storage); }

/// Right behind it on the device, and the same to be done.
bool follows(const Bio& first, const Bio& second) {
  return first.op == second.op && first.op != BioOp::discard && first.sector + SECTORS_PER_PAGE == second.sector;
}

Errno errno_of(long result) { return result < 0 ? static_cast<Errno>(-result) : Errno::ok; }

// "…path: text", cut to fit.
void explain(FileDeviceError& error, const char* path, const char* text) {
  size_t at = 0;
  const auto append = [&](const char* s) {
    while (*s != 0 && at + 1 < sizeof error.text) error.text[at++] = *s++;
    error.text[at] = 0;
  };
  append(path);
  append(": ");
  append(text);
}

long open_at(const char* path, int flags) { return raw_syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0600); }

/// A new file without a name. Where the file system has no O_TMPFILE: a name that nobody has, gone at once.
long open_unnamed(const char* directory) {
  const long fd = open_at(directory, O_TMPFILE | O_RDWR | O_EXCL);
  if (fd >= 0 || (errno_of(fd) != static_cast<Errno>(EOPNOTSUPP) && fd != -EISDIR)) return fd;
  const long pid = raw_syscall(SYS_getpid);
  for (unsigned attempt = 0; attempt < 100; ++attempt) {
    char name[PATH_MAX];
    size_t at = 0;
    const auto append = [&](const char* s) {
      while (*s != 0 && at + 1 < sizeof name) name[at++] = *s++;
    };
    const auto append_number = [&](unsigned long n) {
      char digits[24];
      size_t i = sizeof digits - 1;
      digits[i] = 0;
      do digits[--i] = static_cast<char>('0' + n % 10);
      while ((n /= 10) != 0);
      append(digits + i);
    };
    append(directory);
    append("/.weir-swap-");
    append_number(static_cast<unsigned long>(pid));
    append("-");
    append_number(attempt);
    if (at + 1 >= sizeof name) return -ENAMETOOLONG;
    name[at] = 0;
    const long made = open_at(name, O_CREAT | O_EXCL | O_RDWR);
    if (made == -EEXIST) continue;
    if (made >= 0) raw_syscall(SYS_unlinkat, AT_FDCWD, name, 0);
    return made;
  }
  return -EEXIST;
}

/// Moves the descriptor up; the lowest number asked for is halved until the host's limit allows it.
int move_up(int fd, int lowest) {
  for (; lowest > fd; lowest /= 2) {
    const long high = raw_syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, lowest);
    if (high < 0) continue;
    raw_syscall(SYS_close, fd);
    return static_cast<int>(high);
  }
  return fd;
}

FileIdentity identity(int fd) {
  struct stat st = {};
  if (raw_syscall(SYS_fstat, fd, &st) != 0) return {};
  return {st.st_dev, st.st_ino};
}

long duplicate(int fd) { return raw_syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3); }

/// An open file of its own for what `fd` has open, with the rights of that; where the host refuses (no /proc, rights that
/// have gone since), the same open file, and `own` is false.
long open_again(int fd, bool& own) {
  const long flags = raw_syscall(SYS_fcntl, fd, F_GETFL);
  if (flags < 0) return flags;
  if ((flags & O_PATH) != 0) return -EBADF;
  char path[40] = "/proc/self/fd/";
  size_t at = 14;
  for (int digit = 1'000'000'000; digit > 0; digit /= 10)
    if (fd >= digit || digit == 1) path[at++] = static_cast<char>('0' + fd / digit % 10);
  const long opened = open_at(path, static_cast<int>(flags & O_ACCMODE));
  own = opened >= 0;
  return own ? opened : duplicate(fd);
}

/// A file system whose files are pages of RAM.
bool lies_in_ram(int fd) {
  struct statfs fs = {};
  if (raw_syscall(SYS_fstatfs, fd, &fs) != 0) return false;
  constexpr unsigned long hugetlbfs = 0x958458f6;
  const auto type = static_cast<unsigned long>(fs.f_type) & 0xffffffff;
  return type == TMPFS_MAGIC || type == RAMFS_MAGIC || type == hugetlbfs;
}

/// True when the file system is known not to have what the file still needs. Asked before trying, since trying takes
/// all that there is, from everybody, before it fails.
bool lacks_room(int fd, uint64_t has, uint64_t wanted) {
  struct statfs fs = {};
  if (has >= wanted || raw_syscall(SYS_fstatfs, fd, &fs) != 0 || fs.f_blocks == 0) return false;
  return (wanted - has) / static_cast<uint64_t>(fs.f_bsize) > fs.f_bavail;
}

/// The program's own file: nothing is changed of it. Errors: ENODEV for what cannot be mapped.
Result<void> prepare_theirs(OpenFile& file, const FileDeviceOptions& options, FileDeviceError& error) {
  struct stat st = {};
  if (const long done = raw_syscall(SYS_fstat, file.fd, &st); done < 0) return errno_of(done);
  if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
    explain(error, options.path, "is neither a file nor a block device");
    return Errno::nodev;
  }
  const long flags = raw_syscall(SYS_fcntl, file.fd, F_GETFL);
  // One that appends is the program's own, and writes to the end whatever the offset.
  file.writable = (flags & (O_ACCMODE | O_APPEND)) == O_RDWR;
  file.capacity = options.capacity;
  // Only if the open file is not the program's, whose own reads and writes it would change.
  if (file.own && file.plain_fd >= 0 && options.cache == FileCache::bypass && !lies_in_ram(file.fd))
    file.direct = raw_syscall(SYS_fcntl, file.fd, F_SETFL, flags | O_DIRECT) == 0;
  return {};
}

/// Checks what was opened and gives it its size and room.
Result<void> prepare(OpenFile& file, const FileDeviceOptions& options, FileDeviceError& error) {
  struct stat st = {};
  if (const long done = raw_syscall(SYS_fstat, file.fd, &st); done < 0) {
    explain(error, options.path, "its properties cannot be read");
    return errno_of(done);
  }
  uint64_t size = 0;
  if (S_ISBLK(st.st_mode)) {
    if (const long done = raw_syscall(SYS_ioctl, file.fd, BLKGETSIZE64, &size); done < 0) {
      explain(error, options.path, "the size of the block device cannot be read");
      return errno_of(done);
    }
  } else if (S_ISREG(st.st_mode)) {
    // A block device's own node lies in a tmpfs, and that is all right: only files are asked.
    if (lies_in_ram(file.fd)) {
      explain(error, options.path,
              "lies in RAM (tmpfs, ramfs or hugetlbfs): swapping to it frees nothing. Choose a directory on a disk");
      return Errno::inval;
    }
    size = static_cast<uint64_t>(st.st_size);
  } else {
    explain(error, options.path, "is neither a file nor a block device");
    return Errno::inval;
  }

  uint64_t wanted = bytes_of(options.capacity).v;
  if (options.origin == FileOrigin::existing) {
    if (wanted == 0) wanted = size & PAGE_MASK;
    if (wanted == 0 || wanted > size) {
      explain(error, options.path, "is smaller than the capacity asked for");
      return Errno::inval;
    }
  }
  file.capacity = pages_in(Bytes(wanted));
  if (S_ISREG(st.st_mode)) {
    // Room now, so that no write fails later. Holes of an existing file are filled too.
    long done = lacks_room(file.fd, static_cast<uint64_t>(st.st_blocks) * 512, wanted) ? -ENOSPC : -EINTR;
    while (done == -EINTR) done = raw_syscall(SYS_fallocate, file.fd, 0, 0L, static_cast<long>(wanted));
    if (done == -EOPNOTSUPP || done == -ENOSYS) {
      file.reserved = false;
      done = size < wanted ? raw_syscall(SYS_ftruncate, file.fd, static_cast<long>(wanted)) : 0;
    }
    if (done < 0) {
      explain(error, options.path,
              done == -ENOSPC ? "no room for a file of this size" : "the file's room cannot be reserved");
      return errno_of(done);
    }
  }
  if (options.cache == FileCache::bypass) {
    const long flags = raw_syscall(SYS_fcntl, file.fd, F_GETFL);
    file.direct = flags >= 0 && raw_syscall(SYS_fcntl, file.fd, F_SETFL, flags | O_DIRECT) == 0;
  }
  return {};
}

}  // namespace

// ---- Making and ending ----------------------------------------------------------------------------------------------

Result<FileDevice*> FileDevice::create(void* place, World& world, const FileDeviceOptions& options,
                                       FileDeviceError& error) {
  error = {};
  constexpr PageCount most{int64_t{1} << 50};  // its bytes are a number
  if (options.path == nullptr || options.capacity < PageCount(0) || options.capacity > most ||
      (options.capacity == PageCount(0) && options.origin != FileOrigin::existing) || options.io_threads == 0 ||
      options.io_threads > MAX_IO_THREADS || options.queue_depth == 0 || options.queue_depth > 1024 ||
      (options.origin == FileOrigin::descriptor && options.engine != FileEngine::kthreads)) {
    explain(error, options.path != nullptr ? options.path : "swap file", "options out of range");
    return Errno::inval;
  }
  OpenFile file;
  long fd = -1;
  switch (options.origin) {
    case FileOrigin::create: fd = open_at(options.path, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW); break;
    case FileOrigin::unnamed: fd = open_unnamed(options.path); break;
    case FileOrigin::existing: fd = open_at(options.path, O_RDWR); break;
    case FileOrigin::descriptor: fd = open_again(options.descriptor, file.own); break;
  }
  if (fd < 0) {
    explain(error, options.path, options.origin == FileOrigin::existing ? "cannot be opened" : "cannot be created");
    return errno_of(fd);
  }
  file.fd = move_up(static_cast<int>(fd), options.lowest_descriptor);
  const bool theirs = options.origin == FileOrigin::descriptor;
  if (theirs) {
    bool plain_own = true;
    const long plain = open_again(options.descriptor, plain_own);
    if (plain >= 0) file.plain_fd = move_up(static_cast<int>(plain), options.lowest_descriptor);
  }
  Result<void> ready = theirs ? prepare_theirs(file, options, error) : prepare(file, options, error);
  const bool ours = options.origin == FileOrigin::create;
  if (ours && (!ready || options.after_open == FileName::unlink)) raw_syscall(SYS_unlinkat, AT_FDCWD, options.path, 0);
  if (!ready) {
    raw_syscall(SYS_close, file.fd);
    if (file.plain_fd >= 0) raw_syscall(SYS_close, file.plain_fd);
    return ready.error();
  }

  auto* device = ::new (place) FileDevice(world, options, file);
  Result<void> started = device->start();
  if (!started) {
    explain(error, options.path, "no I/O thread can be started");
    device->~FileDevice();
    if (ours && options.after_open == FileName::keep) raw_syscall(SYS_unlinkat, AT_FDCWD, options.path, 0);
    return started.error();
  }
  return device;
}

FileDevice::FileDevice(World& world, const FileDeviceOptions& options, const OpenFile& file)
    : world_(world),
      options_(options),
      fd_(file.fd),
      plain_fd_(file.plain_fd),
      capacity_(file.capacity),
      direct_(file.direct),
      reserved_(file.reserved),
      writable_(file.writable),
      engine_(options.engine),
      file_(identity(file.fd)) {}

FileDevice::~FileDevice() {
  // The last request's end_io may be what let the device's last user go: its kthread is still on the way out.
  if (!idle()) idle_.wait([this] { return idle(); });
  stop();
  // The program may have closed it long ago, and have something of its own there.
  if (identity(fd_) == file_) raw_syscall(SYS_close, fd_);
  if (plain_fd_ >= 0 && identity(plain_fd_) == file_) raw_syscall(SYS_close, plain_fd_);
}

void FileDevice::close_copies() const {
  for (const int fd : {fd_, plain_fd_})
    if (fd >= 0 && identity(fd) == file_) raw_syscall(SYS_close, fd);
}

Result<void> FileDevice::sync() const {
  if (identity(fd_) != file_) return Errno::badf;
  return errno_of(raw_syscall(SYS_fdatasync, fd_));
}

bool FileDevice::start_ring() {
  io_uring& ring = *::new (static_cast<void*>(ring_)) io_uring{};
  if (io_uring_queue_init(options_.queue_depth, &ring, IORING_SETUP_CLAMP) != 0) return false;
  has_ring_ = true;
  ring.ring_fd = move_up(ring.ring_fd, options_.lowest_descriptor);
  ring.enter_ring_fd = ring.ring_fd;
  ring_file_ = identity(ring.ring_fd);
  return true;
}

int FileDevice::ring_descriptor() const { return has_ring_ ? reinterpret_cast<const io_uring*>(ring_)->ring_fd : -1; }

Result<void> FileDevice::start() {
  if (engine_ == FileEngine::io_uring && !start_ring()) engine_ = FileEngine::kthreads;
  // The ring and the file are open: kthreads that start now have both in their tables.
  switch (engine_) {
    case FileEngine::synchronous: return {};
    case FileEngine::kthreads:
      for (unsigned i = 0; i < options_.io_threads; ++i) threads_[i] = kthread_run(world_, io_thread, this, "weir-io");
      // Fewer do, none does not.
      return threads_[0] != nullptr ? Result<void>() : Errno::again;
    case FileEngine::io_uring:
      threads_[0] = kthread_run(world_, submitter_thread, this, "weir-io-submit");
      threads_[1] = kthread_run(world_, completer_thread, this, "weir-io-done");
      return threads_[0] != nullptr && threads_[1] != nullptr ? Result<void>() : Errno::again;
  }
  return Errno::inval;
}

void FileDevice::stop() {
  // The submitter before the completer: what it still puts into the ring is waited for.
  for (Thread*& thread : threads_) {
    if (thread != nullptr) world_.kthread_stop(*thread);
    thread = nullptr;
  }
  if (has_ring_) {
    unmap_ring();
    if (const int fd = ring_descriptor(); identity(fd) == ring_file_) raw_syscall(SYS_close, fd);
  }
  has_ring_ = false;
}

void FileDevice::unmap_ring() {
  const io_uring& ring = as_ring(ring_);
  raw_syscall(SYS_munmap, ring.sq.sqes, ring.sq.ring_entries * sizeof(io_uring_sqe));
  raw_syscall(SYS_munmap, ring.sq.ring_ptr, ring.sq.ring_sz);
  if (ring.cq.ring_ptr != ring.sq.ring_ptr) raw_syscall(SYS_munmap, ring.cq.ring_ptr, ring.cq.ring_sz);
}

Result<void> FileDevice::restart_in_child(int descriptor) {
  WEIR_BUG_ON(under_way_.load(std::memory_order_relaxed) != 0);
  for (Thread*& thread : threads_) thread = nullptr;
  {
    ScopedLock guard(lock_);
    waking_ = false;
  }
  to_serve_.forget_waiters();
  to_complete_.forget_waiters();
  idle_.forget_waiters();
  // Unmapped but not closed: the number may be anything in this table by now.
  if (has_ring_) unmap_ring();
  has_ring_ = false;
  fd_ = descriptor;
  file_ = identity(fd_);
  engine_ = options_.engine;
  return start();
}

// ---- Requests -------------------------------------------------------------------------------------------------------

bool FileDevice::congested() const {
  return waiting_.load(std::memory_order_relaxed) + under_way_.load(std::memory_order_relaxed) >
         options_.congested_above;
}

/// False: the request has ended already.
bool FileDevice::accept(Bio& bio) {
  bio.device = this;
  bio.next = nullptr;
  bio.submitted = world_.now();
  const auto capacity = static_cast<uint64_t>(capacity_.v);
  if (bio.op == BioOp::discard) {
    stats_.discards.fetch_add(1, std::memory_order_relaxed);
    const uint64_t page = bio.sector / SECTORS_PER_PAGE;
    const bool inside = bio.sector % SECTORS_PER_PAGE == 0 && bio.pages <= capacity && page <= capacity - bio.pages;
    if (can_discard() && inside) return true;
    bio.status = can_discard() ? Errno::io : Errno::ok;
    bio.end_io(bio);
    return false;
  }
  (bio.op == BioOp::write ? stats_.writes : stats_.reads).fetch_add(1, std::memory_order_relaxed);
  if (bio.content.tagged() || bio.pages != 1 || bio.sector % SECTORS_PER_PAGE != 0 ||
      bio.sector / SECTORS_PER_PAGE >= capacity) {
    end(bio, bio.content.tagged() ? Errno::inval : Errno::io);
    return false;
  }
  return true;
}

/// n accepted ones, linked.
void FileDevice::queue(Bio& first, Bio& last, unsigned n) {
  bool wake = true;
  {
    ScopedLock guard(lock_);
    (last_ != nullptr ? last_->next : first_) = &first;
    last_ = &last;
    waiting_.fetch_add(n, std::memory_order_release);
    // Who is on the way sees these too, and wakes the next if there is more than it takes.
    if (engine_ == FileEngine::kthreads) wake = !waking_;
    waking_ = true;
  }
  if (wake) to_serve_.wake_one();
}

void FileDevice::submit_bio(Bio& bio) {
  WEIR_FLOW(bio.sector, bio.op);
  if (!accept(bio)) return;
  if (engine_ == FileEngine::synchronous)
    end(bio, finish_transfer(bio, transfer(bio, 0)));
  else
    queue(bio, bio, 1);
}

void FileDevice::submit_bios(Bio* first) {
  WEIR_FLOW(first->sector, first->op);
  const Thread* thread = engine_thread().thread;
  const bool kthreads = engine_ == FileEngine::kthreads && thread != nullptr;
  const bool theirs = options_.origin == FileOrigin::descriptor;
  const bool here = kthreads && !theirs && (thread->flags & PF_HAS_FILES) != 0;
  const bool as_program = kthreads && theirs && (thread->flags & PF_KTHREAD) == 0;
  Bio* run[MAX_RUN];
  unsigned n = 0;
  const auto pass_on = [&] {
    if (n == 0) return;
    if (as_program && read_as_program(run, n)) {
      n = 0;
      return;
    }
    if (here) {
      under_way_.fetch_add(n, std::memory_order_relaxed);
      serve(run, n);
    } else {
      for (unsigned i = 0; i + 1 < n; ++i) run[i]->next = run[i + 1];
      queue(*run[0], *run[n - 1], n);
    }
    n = 0;
  };
  while (first != nullptr) {
    Bio& bio = *first;
    first = bio.next;
    if (engine_ == FileEngine::synchronous) {
      submit_bio(bio);
      continue;
    }
    if (!accept(bio)) continue;
    if (n == MAX_RUN || ((here || as_program) && n != 0 && !follows(*run[n - 1], bio))) pass_on();
    run[n++] = &bio;
  }
  pass_on();
}

void FileDevice::queue_bios(Bio* first) {
  WEIR_FLOW(first->sector, first->op);
  Bio* head = nullptr;
  Bio* last = nullptr;
  unsigned n = 0;
  while (first != nullptr) {
    Bio& bio = *first;
    first = bio.next;
    if (engine_ == FileEngine::synchronous) {
      submit_bio(bio);
    } else if (accept(bio)) {
      (head != nullptr ? last->next : head) = &bio;
      last = &bio;
      ++n;
    }
  }
  if (n != 0) queue(*head, *last, n);
}

/// Neighbours, by a thread with the program's descriptors, of which it may close any at any time: so the file is known
/// by its identity, before and after. False: nothing has happened, the device's threads are to do it.
bool FileDevice::read_as_program(Bio* const* run, unsigned n) {
  if (run[0]->op != BioOp::read || identity(fd_) != file_) return false;
  iovec parts[MAX_RUN];
  for (unsigned i = 0; i < n; ++i) parts[i] = {run[i]->content.bytes, PAGE_SIZE};
  const long r = raw_syscall(SYS_preadv, fd_, parts, static_cast<long>(n), static_cast<long>(run[0]->sector * 512), 0L);
  if (r != static_cast<long>(uint64_t{n} << PAGE_SHIFT) || identity(fd_) != file_) return false;
  while (n > 0) end(*run[--n], Errno::ok);
  return true;
}

/// The first of the queue and its neighbours.
unsigned FileDevice::take_waiting(Bio** run, unsigned most) {
  unsigned n = 0;
  bool more = false;
  {
    ScopedLock guard(lock_);
    while (n < most && first_ != nullptr && (n == 0 || follows(*run[n - 1], *first_))) {
      Bio* bio = first_;
      first_ = bio->next;
      if (first_ == nullptr) last_ = nullptr;
      bio->next = nullptr;
      run[n++] = bio;
    }
    // In this order: whoever adds the two up never sees fewer than there are.
    under_way_.fetch_add(n, std::memory_order_relaxed);
    waiting_.fetch_sub(n, std::memory_order_relaxed);
    more = waking_ = first_ != nullptr;
  }
  if (more && engine_ == FileEngine::kthreads) to_serve_.wake_one();
  return n;
}

/// A run of neighbours, under way: one call for all. What that leaves undone is done one by one.
void FileDevice::serve(Bio* const* run, unsigned n) {
  if (at_the_end(run, n)) {
    for (unsigned i = 0; i < n; ++i) complete(*run[i], transfer_at_the_end(*run[i]));
    return;
  }
  uint64_t done = 0;
  if (n > 1) {
    iovec parts[MAX_RUN];
    for (unsigned i = 0; i < n; ++i) parts[i] = {run[i]->content.bytes, PAGE_SIZE};
    const long r = raw_syscall(run[0]->op == BioOp::write ? SYS_pwritev : SYS_preadv, fd_, parts, n,
                               static_cast<long>(run[0]->sector * 512), 0L);
    // The last first: who waits for the first page finds the others there too.
    if (r == static_cast<long>(uint64_t{n} << PAGE_SHIFT)) {
      while (n > 0) complete(*run[--n], Errno::ok);
      return;
    }
    if (r > 0) done = static_cast<uint64_t>(r);
  }
  for (unsigned i = 0; i < n; ++i) {
    const bool whole = done >= PAGE_SIZE;
    if (whole) done -= PAGE_SIZE;
    Errno status = whole ? Errno::ok : finish_transfer(*run[i], transfer(*run[i], 0));
    // Not aligned enough for O_DIRECT here.
    if (status == Errno::inval && plain_fd_ >= 0) status = transfer_at_the_end(*run[i]);
    complete(*run[i], status);
    if (!whole) done = 0;
  }
}

/// The run, neighbours, reaches to the end of a file that has one, or behind it.
bool FileDevice::at_the_end(Bio* const* run, unsigned n) const {
  if (options_.origin != FileOrigin::descriptor) return false;
  struct stat st = {};
  if (raw_syscall(SYS_fstat, fd_, &st) != 0) return true;
  return !S_ISBLK(st.st_mode) &&
         (run[0]->sector * 512) + (uint64_t{n} << PAGE_SHIFT) > static_cast<uint64_t>(st.st_size);
}

/// Page by page, as far as the file goes. A page behind it cannot be read, and what is written there was cut off.
Errno FileDevice::transfer_at_the_end(const Bio& bio) const {
  struct stat st = {};
  if (const long failed = raw_syscall(SYS_fstat, fd_, &st); failed < 0) return errno_of(failed);
  const uint64_t offset = bio.sector * 512, size = static_cast<uint64_t>(st.st_size);
  const bool write = bio.op == BioOp::write;
  const uint64_t bytes = offset < size ? std::min<uint64_t>(size - offset, PAGE_SIZE) : 0;
  if (bytes == 0) return write ? Errno::ok : Errno::io;
  int fd = bytes < PAGE_SIZE && plain_fd_ >= 0 ? plain_fd_ : fd_;
  uint64_t done = 0;
  while (done < bytes) {
    const long r = raw_syscall(write ? SYS_pwrite64 : SYS_pread64, fd, bio.content.bytes + done, bytes - done,
                               static_cast<long>(offset + done));
    if (r == -EINTR || r == -EAGAIN) continue;
    if (r == -EINVAL && fd != plain_fd_ && plain_fd_ >= 0) {
      fd = plain_fd_;
      continue;
    }
    if (r < 0) return errno_of(r);
    if (r == 0) break;  // shorter by now
    done += static_cast<uint64_t>(r);
  }
  if (done == 0 && !write) return Errno::io;
  if (!write) std::memset(bio.content.bytes + done, 0, PAGE_SIZE - done);
  return Errno::ok;
}

void FileDevice::end(Bio& bio, Errno status) {
  if (status != Errno::ok && bio.op != BioOp::discard)
    (bio.op == BioOp::write ? stats_.write_errors : stats_.read_errors).fetch_add(1, std::memory_order_relaxed);
  bio.status = status;
  bio.end_io(bio);
}

void FileDevice::complete(Bio& bio, Errno status) {
  end(bio, status);
  under_way_.fetch_sub(1, std::memory_order_release);
  if (idle()) idle_.wake_all();
}

long FileDevice::transfer(const Bio& bio, uint64_t done) const {
  const auto offset = static_cast<long>(bio.sector * 512 + done);
  if (bio.op == BioOp::discard)
    return raw_syscall(SYS_fallocate, fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
                       static_cast<long>(uint64_t{bio.pages} << PAGE_SHIFT));
  return raw_syscall(bio.op == BioOp::write ? SYS_pwrite64 : SYS_pread64, fd_, bio.content.bytes + done,
                     PAGE_SIZE - done, offset);
}

Errno FileDevice::finish_transfer(const Bio& bio, long result) const {
  for (uint64_t done = 0;;) {
    if (result > 0) {
      done += static_cast<uint64_t>(result);
      if (done == PAGE_SIZE) return Errno::ok;
    } else if (result == 0) {
      if (bio.op == BioOp::discard) return Errno::ok;
      return Errno::io;  // the file became shorter
    } else if (result != -EINTR && result != -EAGAIN) {
      return errno_of(result);
    }
    result = transfer(bio, done);
  }
}

// ---- Kthreads -------------------------------------------------------------------------------------------------------

// A request under way is inside the gate, by its kthread's pass: a fork finds none. One that waits in the queue may be
// there when a process forks; then both serve it, from equal bytes to the same place.

void FileDevice::io_thread(void* self) {
  auto& device = *static_cast<FileDevice*>(self);
  for (;;) {
    device.to_serve_.wait(
        [&] { return device.waiting_.load(std::memory_order_acquire) != 0 || kthread_should_stop(); });
    if (device.waiting_.load(std::memory_order_acquire) == 0 && kthread_should_stop()) return;
    KthreadPass pass;
    Bio* run[MAX_RUN];
    if (const unsigned n = device.take_waiting(run, MAX_RUN); n != 0) device.serve(run, n);
  }
}

void FileDevice::submitter_thread(void* self) {
  auto& device = *static_cast<FileDevice*>(self);
  const auto waiting = [&] { return device.waiting_.load(std::memory_order_acquire); };
  const auto under_way = [&] { return device.under_way_.load(std::memory_order_acquire); };
  for (;;) {
    device.to_serve_.wait([&] { return waiting() != 0 || kthread_should_stop(); });
    if (waiting() == 0) return;
    // One pass until the ring is empty. It covers what the completer does.
    KthreadPass pass;
    do {
      device.fill_ring();
      device.to_serve_.wait(
          [&] { return under_way() == 0 || (waiting() != 0 && under_way() < device.options_.queue_depth); });
    } while (under_way() != 0);
  }
}

void FileDevice::fill_ring() {
  io_uring& ring = as_ring(ring_);
  unsigned taken = 0;
  while (under_way_.load(std::memory_order_acquire) < options_.queue_depth) {
    Bio* bio = nullptr;
    if (take_waiting(&bio, 1) == 0) break;
    // There is always one: all earlier entries were submitted, and the ring holds queue_depth of them.
    io_uring_sqe* sqe = io_uring_get_sqe(&ring);
    WEIR_BUG_ON(sqe == nullptr);
    if (bio->op == BioOp::write) {
      io_uring_prep_write(sqe, fd_, bio->content.bytes, PAGE_SIZE, bio->sector * 512);
    } else {
      io_uring_prep_read(sqe, fd_, bio->content.bytes, PAGE_SIZE, bio->sector * 512);
    }
    io_uring_sqe_set_data(sqe, bio);
    ++taken;
  }
  while (taken != 0) {
    const int submitted = io_uring_submit(&ring);
    if (submitted > 0) {
      // Counted when the host has them: the completer, once it waits there, is woken by nothing else.
      taken -= static_cast<unsigned>(submitted);
      in_ring_.fetch_add(static_cast<unsigned>(submitted), std::memory_order_release);
      to_complete_.wake_one();
    } else {
      // The host is short of memory or of room for completions: both get better with time.
      WEIR_BUG_ON(submitted < 0 && submitted != -EAGAIN && submitted != -EBUSY && submitted != -EINTR);
      world().schedule_timeout(100_us);
    }
  }
}

void FileDevice::completer_thread(void* self) {
  auto& device = *static_cast<FileDevice*>(self);
  io_uring& ring = as_ring(device.ring_);
  for (;;) {
    device.to_complete_.wait(
        [&] { return device.in_ring_.load(std::memory_order_acquire) != 0 || kthread_should_stop(); });
    if (device.in_ring_.load(std::memory_order_acquire) == 0) return;
    io_uring_cqe* cqe = nullptr;
    if (io_uring_wait_cqe(&ring, &cqe) != 0) continue;
    auto& bio = *static_cast<Bio*>(io_uring_cqe_get_data(cqe));
    const long result = cqe->res;
    io_uring_cqe_seen(&ring, cqe);
    device.in_ring_.fetch_sub(1, std::memory_order_relaxed);
    device.complete(bio, device.finish_transfer(bio, result));
    device.to_serve_.wake_one();
  }
}

}  // namespace weir
