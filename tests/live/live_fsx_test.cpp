// tests/live/live_fsx_test.cpp: the file exerciser (model/fsx.hpp) on a real file that is mapped into a live machine
// with little memory. What is not done by a store goes to the file itself: before that what was stored is synced, and
// afterwards the mappings are told (MS_INVALIDATE).
//
//   test_live_fsx              some seeds; more: model/fsx_seeds.hpp
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <memory>

#include "live/host_file.hpp"
#include "live/live_fixture.hpp"
#include "model/fsx_seeds.hpp"

namespace weir::model {
namespace {

using test::HostFile;
using Sharing = LiveMachine::Sharing;

/// Little, so that pages come and go. Where writes fail enough that what could not be written stays to be written.
constexpr Bytes RAM = 8_MiB, RAM_TO_KEEP = 32_MiB;
constexpr uint64_t BALLAST_PAGES = 2000;

/// The process's writes to files fail while it says so, everywhere or behind a position.
void set_failing(rlim_t from) {
  static const rlim_t most = [] {
    rlimit now{};
    getrlimit(RLIMIT_FSIZE, &now);
    return now.rlim_max;
  }();
  const rlimit limit{std::min(from, most), most};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

class LiveFile final : public FsxTarget {
 public:
  LiveFile(LiveMachine& live, const HostFile& file, uint64_t max_bytes, bool may_fail)
      : live_(live), file_(file), max_(max_bytes), may_fail_(may_fail) {
    shared_ = map(Sharing::shared);
    private__ = map(Sharing::private_);
    ballast_ = static_cast<std::byte*>(*live.map(BALLAST_PAGES << PAGE_SHIFT, PROT_READ | PROT_WRITE));
  }
  ~LiveFile() override {
    set_failing(RLIM_INFINITY);
    EXPECT_TRUE(live_.unmap_file(private__, max_));
    (void)live_.unmap_file(shared_, max_);
    EXPECT_TRUE(live_.unmap(ballast_, BALLAST_PAGES << PAGE_SHIFT));
  }
  LiveFile(const LiveFile&) = delete;
  LiveFile& operator=(const LiveFile&) = delete;

  Result<uint64_t> read(uint64_t pos, std::byte* to, uint64_t n) override {
    if (other_way()) {
      n = pos < file_.size() ? std::min(n, file_.size() - pos) : 0;
      std::memcpy(to, shared_ + pos, n);
      return n;
    }
    if (const Errno e = sync(pos, n, MS_SYNC); e != Errno::ok) return e;
    const ssize_t done = pread(file_.fd(), to, n, static_cast<off_t>(pos));
    return done < 0 ? Result<uint64_t>(last_error()) : Result<uint64_t>(static_cast<uint64_t>(done));
  }
  Result<uint64_t> write(uint64_t pos, const std::byte* from, uint64_t n) override {
    const uint64_t size = file_.size();
    if (pos + n <= size && other_way()) {
      std::memcpy(shared_ + pos, from, n);
      return n;
    }
    uint64_t written = 0;
    const Errno e = around(std::min(pos, size), pos + n, [&] {
      const ssize_t done = pwrite(file_.fd(), from, n, static_cast<off_t>(pos));
      if (done < 0) return last_error();
      written = static_cast<uint64_t>(done);
      return Errno::ok;
    });
    return e == Errno::ok ? Result<uint64_t>(written) : Result<uint64_t>(e);
  }
  Errno truncate(uint64_t size) override {
    const uint64_t old = file_.size();
    const Errno e =
        around(std::min(size, old), max_, [&] { return result(ftruncate(file_.fd(), static_cast<off_t>(size))); });
    // As far as the file goes its private copies go with it.
    if (e == Errno::ok && size < old && page_align_up(size) < max_) {
      EXPECT_TRUE(live_.advise(private__ + page_align_up(size), max_ - page_align_up(size), MADV_DONTNEED));
    }
    return e;
  }
  Errno punch(uint64_t pos, uint64_t n) override {
    return around(pos, pos + n, [&] {
      return result(fallocate(file_.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(pos),
                              static_cast<off_t>(n)));
    });
  }
  Errno allocate(uint64_t pos, uint64_t n) override {
    return around(file_.size(), max_,
                  [&] { return result(fallocate(file_.fd(), 0, static_cast<off_t>(pos), static_cast<off_t>(n))); });
  }
  Errno fsync() override { return sync(0, max_, MS_SYNC); }
  Errno load(Map map, uint64_t pos, std::byte* to, uint64_t n) override {
    std::memcpy(to, (map == Map::shared ? shared_ : private__) + pos, n);
    return Errno::ok;
  }
  Errno store(Map map, uint64_t pos, const std::byte* from, uint64_t n) override {
    std::memcpy((map == Map::shared ? shared_ : private__) + pos, from, n);
    return Errno::ok;
  }
  void remap() override {
    EXPECT_TRUE(live_.unmap_file(private__, max_));
    private__ = map(Sharing::private_);
  }
  void drop_caches() override { (void)sync(0, max_, MS_INVALIDATE); }
  void idle(uint64_t what) override {
    if (may_fail_ && what % 16 == 0) return set_failing(what / 16 % 3 == 0 ? what / 64 % max_ : RLIM_INFINITY);
    const int advice[] = {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED};
    if (what % 16 == 1) return (void)live_.advise(shared_, max_, advice[what / 16 % 4]);
    // Memory that the program wants for something else.
    const uint64_t first = what / 16 % BALLAST_PAGES;
    for (uint64_t i = first; i < std::min(first + 400, BALLAST_PAGES); ++i)
      ballast_[i << PAGE_SHIFT] = static_cast<std::byte>(what);
  }

 private:
  std::byte* map(Sharing sharing) {
    Result<void*> at = live_.map_file(file_.fd(), 0, max_, PROT_READ | PROT_WRITE, sharing);
    EXPECT_TRUE(at) << errno_name(at.error());
    return static_cast<std::byte*>(*at);
  }
  bool other_way() { return (++turn_ & 1) != 0; }
  static Errno last_error() { return errno == EFBIG ? Errno::io : static_cast<Errno>(errno); }
  static Errno result(int r) { return r == 0 ? Errno::ok : last_error(); }
  Errno sync(uint64_t from, uint64_t n, int flags) {
    const uint64_t start = from & PAGE_MASK;
    if (n == 0 || start >= max_) return Errno::ok;
    const Errno e = live_.sync_file(shared_ + start, std::min(from + n, max_) - start, flags).error();
    return e == Errno::fbig ? Errno::io : e;
  }
  /// change() of the file's bytes [from, to), of which nothing is in memory alone before, and nothing old after it.
  template <class Fn>
  Errno around(uint64_t from, uint64_t to, Fn change) {
    if (const Errno e = sync(from, to - from, MS_SYNC); e != Errno::ok) return e;
    const Errno e = change();
    if (const Errno dropped = sync(from, to - from, MS_INVALIDATE); dropped != Errno::ok)
      ADD_FAILURE() << "MS_INVALIDATE: " << errno_name(dropped);
    return e;
  }

  LiveMachine& live_;
  const HostFile& file_;
  const uint64_t max_;
  const bool may_fail_;
  unsigned turn_ = 0;
  std::byte *shared_ = nullptr, *private__ = nullptr, *ballast_ = nullptr;
};

class LiveFsx : public test::LiveFixture<testing::TestWithParam<Delivery>> {
 protected:
  void SetUp() override { signal(SIGXFSZ, SIG_IGN); }
  void make(Bytes ram) { LiveFixture::make({"zram"}, ram, GetParam(), {.quiet_boot = true}); }
  void TearDown() override {
    LiveFixture::TearDown();
    signal(SIGXFSZ, SIG_DFL);
  }
  std::string run(uint64_t seed, bool may_fail, FsxTotals& all) {
    const FsxOptions options{.seed = seed, .max_bytes = (40 + seed % 40) << PAGE_SHIFT, .may_fail = may_fail};
    Fsx fsx(options, 1);
    const HostFile file(0);
    {
      LiveFile target(*live, file, options.max_bytes, may_fail);
      const auto look = [&] {
        const std::vector<std::byte> disk = file.bytes(0, options.max_bytes);
        fsx.look_at_disk([&](uint64_t at) { return at < disk.size() ? disk[at] : std::byte{0}; });
      };
      for (int step = 0; step < 300; ++step) {
        fsx.step(0, target);
        if (step % 30 == 0) look();
      }
      set_failing(RLIM_INFINITY);
      fsx.compare_all(target);
      (void)target.fsync();  // tells what failed earlier
      EXPECT_EQ(target.fsync(), Errno::ok);
      look();
    }
    all.add(fsx.totals);
    std::string found = fsx.failure();
    if (const unsigned broken = live->verify(); broken != 0) found += " verify: " + std::to_string(broken);
    return found;
  }
};

INSTANTIATE_TEST_SUITE_P(, LiveFsx, testing::Values(Delivery::signal, Delivery::thread), test::delivery_name);

TEST_P(LiveFsx, a_mapped_file_is_a_byte_array_and_what_msync_promised_is_on_the_disk) {
  make(RAM);
  if (live == nullptr) return;
  run_seeds("a mapped file", 15, [this](uint64_t seed, FsxTotals& all) { return run(seed, false, all); });
}

TEST_P(LiveFsx, so_it_is_where_writes_fail) {
  make(RAM_TO_KEEP);
  if (live == nullptr) return;
  run_seeds("failing writes", 15, [this](uint64_t seed, FsxTotals& all) { return run(seed, true, all); });
}

}  // namespace
}  // namespace weir::model
