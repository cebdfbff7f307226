// tests/model/fsx_test.cpp
//
// The file exerciser (fsx.hpp) on a simulated machine with little memory, under each kernel, and, unchanged, on the
// host's own files.
//
//   test_fsx                   some seeds; more: fsx_seeds.hpp
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/child.hpp"
#include "model/fsx_machine.hpp"
#include "model/fsx_seeds.hpp"

namespace weir::model {
namespace {

TEST(Fsx, AMachinesFileIsAByteArrayAndWhatFsyncPromisedIsOnTheDisk) {
  run_seeds("a machine", 200, [](uint64_t seed, FsxTotals& all) { return machine_run(seed, Disk::sound, all); });
}

TEST(Fsx, SoItIsWhereTheDiskFails) {
  run_seeds("a failing disk", 200, [](uint64_t seed, FsxTotals& all) { return machine_run(seed, Disk::failing, all); });
}

// ---- The host's own

class HostFile final : public FsxTarget {
 public:
  explicit HostFile(uint64_t max_bytes) : max_(max_bytes) {
    std::string name = testing::TempDir() + "weir-fsx-XXXXXX";
    fd_ = mkstemp(name.data());
    EXPECT_GE(fd_, 0);
    unlink(name.c_str());
    shared_ = map(MAP_SHARED);
    private__ = map(MAP_PRIVATE);
  }
  ~HostFile() override {
    munmap(shared_, max_), munmap(private__, max_);
    ::close(fd_);
  }
  HostFile(const HostFile&) = delete;

  Result<uint64_t> read(uint64_t pos, std::byte* to, uint64_t n) override {
    const ssize_t done = pread(fd_, to, n, static_cast<off_t>(pos));
    return done < 0 ? Result<uint64_t>(last_error()) : Result<uint64_t>(static_cast<uint64_t>(done));
  }
  Result<uint64_t> write(uint64_t pos, const std::byte* from, uint64_t n) override {
    const ssize_t done = pwrite(fd_, from, n, static_cast<off_t>(pos));
    return done < 0 ? Result<uint64_t>(last_error()) : Result<uint64_t>(static_cast<uint64_t>(done));
  }
  Errno truncate(uint64_t size) override { return result(ftruncate(fd_, static_cast<off_t>(size))); }
  Errno punch(uint64_t pos, uint64_t n) override {
    return result(::fallocate(fd_, 2 | 1, static_cast<off_t>(pos), static_cast<off_t>(n)));  // PUNCH_HOLE, KEEP_SIZE
  }
  Errno allocate(uint64_t pos, uint64_t n) override {
    return result(::fallocate(fd_, 0, static_cast<off_t>(pos), static_cast<off_t>(n)));
  }
  Errno fsync() override { return result(::fdatasync(fd_)); }
  Errno load(Map map, uint64_t pos, std::byte* to, uint64_t n) override {
    std::memcpy(to, (map == Map::shared ? shared_ : private__) + pos, n);
    return Errno::ok;
  }
  Errno store(Map map, uint64_t pos, const std::byte* from, uint64_t n) override {
    std::memcpy((map == Map::shared ? shared_ : private__) + pos, from, n);
    return Errno::ok;
  }
  void remap() override {
    munmap(private__, max_);
    private__ = map(MAP_PRIVATE);
  }
  void drop_caches() override { (void)posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }
  void idle(uint64_t) override {}

 private:
  static Errno last_error() { return static_cast<Errno>(errno); }
  static Errno result(int r) { return r == 0 ? Errno::ok : last_error(); }
  std::byte* map(int sharing) const {
    void* at = mmap(nullptr, max_, PROT_READ | PROT_WRITE, sharing, fd_, 0);
    EXPECT_NE(at, MAP_FAILED);
    return static_cast<std::byte*>(at);
  }
  uint64_t max_;
  int fd_ = -1;
  std::byte *shared_ = nullptr, *private__ = nullptr;
};

TEST(Fsx, AndSoAreTheHostsFiles) {
  run_seeds("the host", 30, [](uint64_t seed, FsxTotals& all) {
    const FsxOptions options{.seed = seed};
    Fsx fsx(options, 1);
    HostFile target(options.max_bytes);
    for (int step = 0; step < 500; ++step) fsx.step(0, target);
    fsx.compare_all(target);
    all.add(fsx.totals);
    return fsx.failure();
  });
}

}  // namespace
}  // namespace weir::model
