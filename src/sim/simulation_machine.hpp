// src/sim/simulation_machine.hpp
//
// A simulation from inside: the machine that is made of a scenario, and what its programs know of themselves.
//
//   simulation.cpp          the machine: boot, devices, files; from the first task to the last; counters
//   simulation_program.cpp  the programs: a task's steps
//   simulation_report.cpp   the result as text and JSON
#pragma once

#include <sys/mman.h>
#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include <deque>
#include <functional>

#include "arch/soft/soft_mmu.hpp"
#include "block/fault_injector.hpp"
#include "block/sim_disk.hpp"
#include "block/zram.hpp"
#include "kernel/freezer.hpp"
#include "kernel/virtual/virtual_world.hpp"
#include "mm/flat_fs.hpp"
#include "mm/machine.hpp"
#include "mm/mem.hpp"
#include "sim/simulation.hpp"
#include "sim/user_access.hpp"

namespace weir::sim {

/// What one touch of memory costs the CPU beyond its faults, and what entering the kernel for a fault costs.
inline constexpr Nanos TOUCH_COST{60}, FAULT_COST{600};

/// Address space that reads zero and costs only what is used. Given back at the end.
class Mapping {
 public:
  explicit Mapping(size_t bytes) : bytes_(bytes) {
    p_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p_ == MAP_FAILED) throw std::runtime_error(fmt::format("the host has no address space for {} bytes", bytes));
  }
  ~Mapping() { munmap(p_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(p_); }
  [[nodiscard]] std::span<std::byte> span() const { return {data(), bytes_}; }

 private:
  void* p_;
  size_t bytes_;
};

struct FileModel {
  File* file = nullptr;
  Inode* inode = nullptr;
  std::vector<uint64_t> expected;  ///< content word of each page
  std::vector<uint32_t> changing;  ///< odd while a store is under way: loads that overlap it are not compared
};

struct Area {
  VirtAddr start{};
  uint64_t pages = 0;
  std::vector<uint64_t> expected;  ///< content word; anonymous pages begin at 0
  FileModel* file = nullptr;
  uint64_t file_page = 0;
  std::vector<uint64_t> order;  ///< after remap_file_pages: which page of the file each is; empty: one behind the other
  /// Which page of the file, if there is one, a page of the area is.
  [[nodiscard]] uint64_t page_of_file(uint64_t page) const { return order.empty() ? file_page + page : order[page]; }
  bool shared = false;
  std::vector<bool> lazy;  ///< after madvise free: until the next store a load may find zero; empty: none
  std::vector<bool> own;   ///< private file mapping: the page has been written here
  bool heap = false;
};

struct KernelObjects {
  std::vector<void*> objects;
  VirtAddr vm{};
};

/// What a task's program knows of itself.
struct Program {
  Task* task = nullptr;
  std::map<std::string, Area> areas;
  uint64_t random = 0;
  size_t outcome = 0;
  std::vector<size_t> children;  ///< their outcomes
  uint64_t next() {
    uint64_t z = (random += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  double real() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
};

/// How a program ends before its last step.
struct Ended {
  TaskOutcome::Fate fate;
  int code = 0;
  std::string message;
};

class Simulation final : private VerifySink, private Executioner {
 public:
  Simulation(const Scenario& scenario, const SimOptions& options)
      : s_(scenario),
        options_(options),
        seed_(options.seed.value_or(scenario.seed)),
        profile_(*find_profile(options.kernel.empty() ? scenario.kernel : options.kernel)) {}

  SimResult run();

 private:
  void broken(const char* id, const char* what, uint64_t subject, uint64_t expected, uint64_t found) override {
    if (result_.broken.size() < 100)
      result_.broken.push_back(
          {id, fmt::format("{} (subject {:#x}: expected {:#x}, found {:#x})", what, subject, expected, found)});
  }
  void deliver_sigkill(Task&) override {}  // it sees it where it survives, or at the end of its fault
  void panic(const char* why) override;
  void content_broken(const std::string& where, uint64_t expected, std::optional<uint64_t> found) {
    if (result_.broken.size() < 100)
      result_.broken.push_back({"content", fmt::format("{}: expected {:#x}, found {}", where, expected,
                                                       found ? fmt::format("{:#x}", *found) : "bytes of no page")});
  }

  void boot();
  void make_disks();
  void make_swaps();
  void make_files();
  Inode* make_inode(const FileConfig& config, uint64_t max_pages);
  void make_devices();
  void map_file(Program& program, const Step& step, FileModel& file);
  void arm_disks();
  void start_task(const TaskConfig& config);
  void run_program(Program& program, const std::vector<Step>& steps);
  void run_steps(Program& program, const std::vector<Step>& steps);
  void run_step(Program& program, const Step& step);
  void touch(Program& program, const Step& step);
  /// Stores that content, or loads.
  void touch_page(Program& program, const std::string& name, Area& area, uint64_t page, std::optional<uint64_t> store);
  void file_io(Program& program, const Step& step);
  void truncate(const Step& step);
  void empty_pages(const Step& step, uint64_t first, uint64_t end, const std::function<Result<void>()>& call);
  void fork(Program& program, const Step& step);
  Result<void> write_file_page(FileModel& file, uint64_t page, uint64_t content);
  /// Nothing in the option: bytes of no page.
  Result<std::optional<uint64_t>> read_file_page(FileModel& file, uint64_t page);
  void swap_step(const Step& step);
  void mremap(Program& program, const Step& step);
  void remap_file_pages(Program& program, const Step& step);
  void kill(const std::string& name);
  void wait_for_children(Program& program);
  Result<void> set_sysctl(const std::string& name, int64_t value);
  void survive(Program& program);
  void come_to_rest();
  void verify();
  Area& area_of(Program& program, const Step& step);
  FileModel& file_of(const std::string& name);
  void collect();
  void log(Nanos t, const char* line);

  template <class T>
  T must(Result<T> r, const Step& step, const char* what) {
    if (!r)
      throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: {}: {}", step.line, what, errno_name(r.error()))};
    return std::move(*r);
  }
  void must(Result<void> r, const Step& step, const char* what) {
    if (!r)
      throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: {}: {}", step.line, what, errno_name(r.error()))};
  }
  template <class T>
  T boot_must(Result<T> r, const std::string& what) {
    if (!r) throw ScenarioError(fmt::format("{}: {}: {}", s_.path, what, errno_name(r.error())));
    return std::move(*r);
  }
  void boot_must(Result<void> r, const std::string& what) {
    if (!r) throw ScenarioError(fmt::format("{}: {}: {}", s_.path, what, errno_name(r.error())));
  }

  const Scenario& s_;
  SimOptions options_;
  uint64_t seed_;
  const Profile& profile_;
  SimResult result_;
  std::unique_ptr<Mapping> arena_, machine_place_, scratch_, record_memory_;
  std::unique_ptr<SoftMmu> mmu_;
  std::unique_ptr<Recorder> recorder_;
  int record_fd_ = -1;
  std::unique_ptr<VirtualWorld> world_;
  Machine* machine_ = nullptr;
  std::unique_ptr<UserAccess> user_;
  /// Before the disk itself stand those that fail its reads and writes on purpose, if any.
  struct Disk {
    std::unique_ptr<Mapping> place;
    SimDisk* sim = nullptr;
    std::unique_ptr<FaultInjector> read_faults, write_faults;
    BlockDevice* device = nullptr;
    uint64_t used_pages = 0;
    std::unique_ptr<FlatFs> fs;  ///< with a block-size: knows where its files are
  };
  std::map<std::string, Disk> disks_;
  struct Device {
    std::unique_ptr<MemDevice> memory;
    FileModel model;
  };
  std::map<std::string, Device> devices_;
  /// A window of a disk that a swap area lies in.
  class Window final : public BlockDevice {
   public:
    Window(BlockDevice& below, std::string name, uint64_t first, uint64_t pages)
        : below_(below), name_(std::move(name)), first_(first), pages_(pages) {}
    const char* name() const override { return name_.c_str(); }
    PageCount capacity() const override { return PageCount(static_cast<int64_t>(pages_)); }
    void submit_bio(Bio& bio) override {
      bio.sector += first_ * SECTORS_PER_PAGE;
      below_.submit_bio(bio);
    }
    bool can_discard() const override { return below_.can_discard(); }
    bool nonrotational() const override { return below_.nonrotational(); }
    bool congested() const override { return below_.congested(); }

   private:
    BlockDevice& below_;
    std::string name_;
    uint64_t first_, pages_;
  };
  std::vector<std::unique_ptr<Window>> windows_;
  struct ZramDevice {
    std::string name;
    std::unique_ptr<Mapping> place, metadata;
    Zram* zram = nullptr;
  };
  std::vector<std::unique_ptr<ZramDevice>> zrams_;
  struct SwapArea {
    BlockDevice* device = nullptr;
    Zram* zram = nullptr;
    int priority = SWAP_PRIO_AUTO;
    std::optional<unsigned> type;  ///< while it is on
  };
  std::map<std::string, SwapArea> swap_areas_;
  std::vector<Task*> alive_;  ///< by outcome; null: ended
  WaitQueue ended_;
  unsigned background_ratio_ = 0, dirty_ratio_ = 0;
  bool ksm_has_run_ = false;
  std::map<std::string, FileModel> files_;
  std::deque<FileModel> shared_memory_;  ///< what shared mappings without a file hold
  std::map<std::string, KernelObjects> kernel_objects_;
  static constexpr size_t LOG_LINES = 1000;
  std::deque<std::string> last_lines_;
  uint64_t lines_left_out_ = 0;
  uint64_t next_content_ = 0;
  XXH64_hash_t contents_digest_ = 0;
};

}  // namespace weir::sim
