// tests/model/fsx_machine.hpp
//
// The file exerciser (fsx.hpp) on a simulated machine with little memory.
#pragma once

#include "model/fsx.hpp"
#include "support/machine_fixture.hpp"

namespace weir::model {

using test::MachineFixture;

class MachineFile final : public FsxTarget {
 public:
  MachineFile(MachineFixture& m, Task& task, Inode& inode, uint64_t max_bytes, VirtAddr ballast, uint64_t ballast_pages)
      : m_(m),
        task_(task),
        file_(**m.machine->files.open(inode)),
        pages_(max_bytes >> PAGE_SHIFT),
        ballast_(ballast),
        ballast_pages_(ballast_pages) {}
  /// As the task.
  void map() {
    shared_ = m_.map_file(file_, pages_, MmapRequest::Sharing::shared);
    private__ = m_.map_file(file_, pages_, MmapRequest::Sharing::private_);
  }
  void close() { m_.machine->files.close(file_); }

  Result<uint64_t> read(uint64_t pos, std::byte* to, uint64_t n) override {
    return m_.machine->files.read(file_, pos, to, n);
  }
  Result<uint64_t> write(uint64_t pos, const std::byte* from, uint64_t n) override {
    return m_.machine->files.write(file_, pos, from, n);
  }
  Errno truncate(uint64_t size) override { return m_.machine->files.truncate(*file_.f_inode, Bytes(size)).error(); }
  Errno punch(uint64_t pos, uint64_t n) override {
    return m_.machine->files.fallocate(*file_.f_inode, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, pos, n).error();
  }
  Errno allocate(uint64_t pos, uint64_t n) override {
    return m_.machine->files.fallocate(*file_.f_inode, 0, pos, n).error();
  }
  Errno fsync() override { return m_.machine->files.fsync(file_).error(); }
  uint64_t valid_bytes() override { return file_.f_inode->valid_pages.load() << PAGE_SHIFT; }
  Errno load(Map map, uint64_t pos, std::byte* to, uint64_t n) override {
    return errno_of(m_.mmu->copy_from_user(task_, to, at(map, pos), n));
  }
  Errno store(Map map, uint64_t pos, const std::byte* from, uint64_t n) override {
    return errno_of(m_.mmu->copy_to_user(task_, at(map, pos), from, n));
  }
  void remap() override {
    EXPECT_TRUE(m_.machine->spaces.munmap(*task_.mm, private__, pages_ << PAGE_SHIFT));
    private__ = m_.map_file(file_, pages_, MmapRequest::Sharing::private_);
  }
  void drop_caches() override { (void)m_.machine->files.invalidate(*file_.f_inode); }
  void idle(uint64_t what) override {
    if (what % 32 == 0) return (void)m_.world.schedule_timeout(6_s);  // the flusher's turn
    if (what % 4 == 0) return (void)m_.world.schedule_timeout(Nanos(what / 4 % 3'000'000));
    // Memory that the program wants for something else.
    const uint64_t first = what / 4 % ballast_pages_;
    for (uint64_t i = first; i < std::min(first + 60, ballast_pages_); ++i)
      (void)m_.store(MachineFixture::page_at(ballast_, i), what);
  }

 private:
  [[nodiscard]] VirtAddr at(Map map, uint64_t pos) const { return (map == Map::shared ? shared_ : private__) + pos; }
  static Errno errno_of(FaultResult r) {
    switch (r) {
      case FaultResult::done: return Errno::ok;
      case FaultResult::sigbus: return Errno::io;
      case FaultResult::sigsegv: return Errno::fault;
      case FaultResult::killed: return Errno::intr;
    }
    return Errno::inval;
  }
  MachineFixture& m_;
  Task& task_;
  File& file_;
  uint64_t pages_;
  VirtAddr ballast_, shared_{}, private__{};
  uint64_t ballast_pages_;
};

enum class Disk : uint8_t { sound, failing };

/// Empty, or what went wrong.
inline std::string machine_run(uint64_t seed, Disk disk, FsxTotals& totals) {
  Random random{seed};
  const auto era = static_cast<KernelEra>(seed % 3);
  // Before 4.13 one of two syncs that run together is told of an error, and the other promises what is not so.
  const bool alone = disk == Disk::failing && !profile_of(era).errseq;
  const auto workers = static_cast<unsigned>(alone ? 1 : 1 + random.below(4));
  const FsxOptions options{.seed = seed,
                           .max_bytes = (40 + random.below(40)) << PAGE_SHIFT,
                           .may_fail = disk == Disk::failing,
                           .behind_end = true};
  auto fixture = std::make_unique<MachineFixture>(
      test::FixtureOptions{.kernel = era,
                           .ram = Bytes(uint64_t{4} << 20),
                           .cpus = static_cast<unsigned>(1 + random.below(2)),
                           .seed = seed,
                           .preempt_one_in = random.below(3) == 0 ? 0 : static_cast<uint32_t>(4u << random.below(5)),
                           .swaps = {{test::SwapKind::disk, Bytes(uint64_t{8} << 20)}},
                           .disk = Bytes(uint64_t{1} << 20)});
  MachineFixture& m = *fixture;
  Fsx fsx(options, workers);
  Inode* inode = nullptr;
  const uint64_t ballast_pages = (500 + random.below(500)) / workers;
  m.in_a_thread("setup", [&] {
    inode = m.make_file("file", 0, options.max_bytes >> PAGE_SHIFT).f_inode;
    for (unsigned i = 1; i < workers; ++i) m.make_task("worker");
    if (disk == Disk::failing) m.file_faults->set_fail({.probability = static_cast<uint32_t>(1 + random.below(10))});
  });
  const uint64_t steps = 250 / workers;
  unsigned busy = workers;
  const std::vector<Task*> tasks = m.tasks();
  for (unsigned i = 0; i < workers; ++i)
    m.spawn(*tasks[i], [&, i] {
      MachineFile target(m, *tasks[i], *inode, options.max_bytes, m.map(ballast_pages), ballast_pages);
      target.map();
      for (uint64_t step = 0; step < steps; ++step) fsx.step(i, target);
      if (--busy == 0) {
        m.file_faults->set_fail({});
        fsx.compare_all(target);
        target.fsync();  // tells what failed earlier
        if (const Errno e = target.fsync(); e != Errno::ok) ADD_FAILURE() << "fsync at the end: " << errno_name(e);
      }
      target.close();
    });
  // The power fails at any time: what would be found?
  const auto look = [&] {
    fsx.look_at_disk(
        [&](uint64_t at) { return m.file_disk->stored_bytes(inode->first_page + (at >> PAGE_SHIFT))[at % PAGE_SIZE]; });
  };
  m.world.spawn("power", [&] {
    Random when{seed + 1};
    for (unsigned looks = 0; looks < 12 && busy > 0; ++looks) {
      const uint64_t longest = when.below(3) == 0 ? 1'000'000'000 : 10'000'000;
      m.world.schedule_timeout(Nanos(when.below(longest)));
      look();
    }
  });
  if (m.world.run() != VirtualWorld::RunState::finished) {
    m.abandon();
    (void)fixture.release();
    return "deadlock:\n" + m.world.report();
  }
  look();
  totals.add(fsx.totals);
  std::string found = fsx.failure();
  m.in_a_thread("verify", [&] {
    if (!m.at_rest([&] { found += m.verify(); })) found += "the machine does not come to rest";
  });
  if (!found.empty()) {
    m.abandon();
    (void)fixture.release();  // it may be in any state: left to the end of the process
  }
  return found;
}

}  // namespace weir::model
