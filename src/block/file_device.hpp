// src/block/file_device.hpp
//
// A real file or partition as a device: a swap file, live and in backed simulations; or a file of the program's that is
// mapped (FileOrigin::descriptor), which keeps its own length: what lies behind its end reads as zero in its last page,
// is an error behind that, and is never written.
//
//   synchronous:  submit_bio: pread/pwrite --> end_io                                       simulations: deterministic
//   kthreads:     submit_bio --> queue --> one of the I/O kthreads: preadv/pwritev of neighbours --> end_io
//   io_uring:     submit_bio --> queue --> submitter kthread: ring --> completer kthread --> end_io
//
// Whose descriptor? A kthread of the host world has a descriptor table of its own, a copy made when it starts. The file
// (and the ring) is opened first, then the kthreads start: they keep it whatever the program does to its own table
// afterwards. So live, I/O is issued by kthreads only: the device's, or a fault thread that waits for it
// (submit_bios). `synchronous` issues it in the submitter's thread, whose
// program may have closed the number and opened something else under it: never live.
//
// Linux: the block layer below submit_bio; the file itself stands for the disk.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/result.hpp"
#include "base/units.hpp"
#include "block/block.hpp"
#include "kernel/locks.hpp"

namespace weir {

enum class FileEngine : uint8_t { synchronous, kthreads, io_uring };
enum class FileOrigin : uint8_t {
  create,      ///< a new file at `path`, mode 0600; EEXIST if there is one
  unnamed,     ///< a new file without a name in the directory `path`: gone when the last user is
  existing,    ///< the file or block device at `path`
  descriptor,  ///< what FileDeviceOptions::descriptor has open, opened once more. Its length is what it is at the time
               ///< of each request. Only by kthreads
};
enum class FileCache : uint8_t {
  bypass,  ///< O_DIRECT where the file system has it: the host must not keep in RAM what was put out of RAM
  use,
};
enum class FileName : uint8_t { keep, unlink };

enum class FileDiscard : uint8_t {
  ignore,  ///< the room stays reserved: no later write fails for want of it
  punch,   ///< a hole, where the file system can: the host has the room back, and a later write may find none. Not by
           ///< io_uring
};

struct FileDeviceOptions {
  const char* path = nullptr;  ///< kept by reference; also the device's name
  PageCount capacity{};        ///< existing: 0 = all of it; descriptor: where requests end at the latest
  FileOrigin origin = FileOrigin::create;
  int descriptor = -1;
  FileName after_open = FileName::keep;  ///< of a created file; unlink: a crash leaves nothing behind
  FileCache cache = FileCache::bypass;
  FileEngine engine = FileEngine::kthreads;
  FileDiscard discard = FileDiscard::ignore;
  unsigned io_threads = 4;         ///< kthreads: requests under way at once, 1…16
  unsigned queue_depth = 64;       ///< io_uring: the same, 1…1024
  unsigned congested_above = 113;  ///< requests queued or under way; Linux's 7/8 of nr_requests 128
  /// Descriptors are put at this number or above, out of the way of programs that count on low ones. Less where the
  /// limit is lower.
  int lowest_descriptor = 900;
};

/// Why create() refused, for a person; empty when it did not.
struct FileDeviceError {
  char text[240] = {};
};

/// What a descriptor stands for: a number can be closed and given out again behind our back.
struct FileIdentity {
  uint64_t device = 0, inode = 0;
  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

struct OpenFile;

class FileDevice final : public BlockDevice {
 public:
  /// Opens or makes the file, reserves its room and starts the kthreads; the device is made at `place`
  /// (sizeof(FileDevice), alignof(FileDevice)). May sleep. Errors: the host's errno (ENOENT, EACCES, EEXIST, ENOSPC
  /// when the room is not there, …); EINVAL for a file that lies in RAM (tmpfs, ramfs, hugetlbfs: swapping there frees
  /// nothing), that is no file or block device, or is too small; EAGAIN when no kthread can be had. io_uring that the
  /// host refuses becomes kthreads; engine() tells.
  static Result<FileDevice*> create(void* place, World& world, const FileDeviceOptions& options,
                                    FileDeviceError& error);
  /// Nobody submits any more. Waits for what is under way, stops the kthreads and closes the file. Not while holding
  /// the gate for writing: the kthreads could not finish.
  ~FileDevice();
  FileDevice(const FileDevice&) = delete;
  FileDevice& operator=(const FileDevice&) = delete;

  [[nodiscard]] const char* name() const override { return options_.path; }
  [[nodiscard]] PageCount capacity() const override { return capacity_; }
  /// Content must be bytes, page aligned. A discard does what `discard` says; a file system that has no holes says
  /// EOPNOTSUPP, and nothing has changed. status: EIO for requests behind the end or cut short, EINVAL for tagged
  /// content, else the host's errno.
  void submit_bio(Bio& bio) override;
  /// By this thread if it is one of the engine's that has the file (PF_HAS_FILES), or if it reads a file of the
  /// program's and is the program's.
  void submit_bios(Bio* first) override;
  void queue_bios(Bio* first) override;
  [[nodiscard]] bool batches() const override { return engine_ == FileEngine::kthreads; }
  [[nodiscard]] bool foreign() const override { return options_.origin == FileOrigin::descriptor; }
  [[nodiscard]] bool congested() const override;
  [[nodiscard]] bool can_discard() const override {
    return options_.discard == FileDiscard::punch && engine_ != FileEngine::io_uring;
  }

  /// Nothing is queued or under way. Holding the gate for writing, nothing is under way, but something may be queued.
  [[nodiscard]] bool idle() const {
    return waiting_.load(std::memory_order_acquire) + under_way_.load(std::memory_order_acquire) == 0;
  }

  /// Requests that a kthread has taken and that have not ended.
  [[nodiscard]] unsigned under_way() const { return under_way_.load(std::memory_order_acquire); }

  /// What is in use, which may be less than was asked for.
  [[nodiscard]] FileEngine engine() const { return engine_; }
  [[nodiscard]] bool direct() const { return direct_; }
  /// False: the file system cannot reserve room, and a write may yet fail with ENOSPC.
  [[nodiscard]] bool room_reserved() const { return reserved_; }
  /// The descriptors, for whoever manages the process's table; ring: -1 without one.
  [[nodiscard]] int descriptor() const { return fd_; }
  [[nodiscard]] FileIdentity file() const { return file_; }
  /// FileOrigin::descriptor: may it be written?
  [[nodiscard]] bool writable() const { return writable_; }
  /// What was written is on the disk (fdatasync). By a thread of the program. Errors: the host's; EBADF if the program
  /// has closed the descriptor.
  Result<void> sync() const;
  /// In a thread with descriptors of its own, copied while this device was there: those of it are closed.
  void close_copies() const;
  [[nodiscard]] int ring_descriptor() const;

  /// In the child of a fork that was made under the gate: forgets the kthreads and the ring, which are the parent's,
  /// and starts its own on `descriptor`, the child's for the same file. Serves what was queued. Closes nothing. Errors:
  /// EAGAIN.
  Result<void> restart_in_child(int descriptor);

 private:
  static constexpr unsigned MAX_IO_THREADS = 16;
  static constexpr unsigned MAX_RUN = 32;  ///< neighbours in one call

  FileDevice(World& world, const FileDeviceOptions& options, const OpenFile& file);
  Result<void> start();
  void stop();
  [[nodiscard]] bool start_ring();
  void unmap_ring();

  static void io_thread(void* self);
  static void submitter_thread(void* self);
  static void completer_thread(void* self);
  [[nodiscard]] bool accept(Bio& bio);
  void queue(Bio& first, Bio& last, unsigned n);
  [[nodiscard]] unsigned take_waiting(Bio** run, unsigned most);
  void serve(Bio* const* run, unsigned n);
  [[nodiscard]] bool read_as_program(Bio* const* run, unsigned n);
  void fill_ring();
  /// The host's result of reading or writing from byte `done` on: bytes, or -errno.
  [[nodiscard]] long transfer(const Bio& bio, uint64_t done) const;
  /// Goes on until the page is complete or an error comes; `result` is that of the first try.
  [[nodiscard]] Errno finish_transfer(const Bio& bio, long result) const;
  [[nodiscard]] bool at_the_end(Bio* const* run, unsigned n) const;
  [[nodiscard]] Errno transfer_at_the_end(const Bio& bio) const;
  void end(Bio& bio, Errno status);
  void complete(Bio& bio, Errno status);

  World& world_;
  const FileDeviceOptions options_;
  int fd_;
  const int plain_fd_;  ///< descriptor: through the host's cache, for a part of a page. -1: none
  const PageCount capacity_;
  const bool direct_;
  const bool reserved_;
  const bool writable_;
  FileEngine engine_;
  Thread* threads_[MAX_IO_THREADS] = {};  // kthreads; io_uring: submitter, completer

  SpinLock lock_{LockRank::device};
  Bio* first_ WEIR_GUARDED_BY(lock_) = nullptr;
  Bio* last_ WEIR_GUARDED_BY(lock_) = nullptr;
  bool waking_ WEIR_GUARDED_BY(lock_) = false;  // kthreads: one was woken and has not come yet, or all are at work
  std::atomic<unsigned> waiting_{0};            // in the list
  std::atomic<unsigned> under_way_{0};          // taken from it, not ended
  std::atomic<unsigned> in_ring_{0};  // of those, what the host has: written by the submitter and the completer
  WaitQueue to_serve_;                // I/O kthreads and the submitter
  WaitQueue to_complete_;             // the completer: the ring holds something
  WaitQueue idle_;                    // the destructor
  alignas(8) std::byte ring_[256];    // struct io_uring
  bool has_ring_ = false;
  FileIdentity file_, ring_file_;  // what the descriptors were when they were opened
};

}  // namespace weir
