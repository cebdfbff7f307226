// src/sim/simulation_program.cpp: what the tasks of a simulation do, step by step. See simulation_machine.hpp
#include <cmath>
#include <cstring>

#include "sim/simulation_machine.hpp"

namespace weir::sim {

namespace {

/// What pages that need not differ are filled with: from here on, out of reach of those that count up.
constexpr uint64_t COMMON_CONTENTS = uint64_t{1} << 62;

/// Zipf over [0, n), n > 0: item of rank r with probability ~ 1/(r+1)^theta, ranks spread over the range by a fixed
/// permutation.
class Zipf {
 public:
  Zipf(uint64_t n, double theta) : n_(n), theta_(theta) {
    for (uint64_t i = 1; i <= n; ++i) zeta_ += 1.0 / std::pow(static_cast<double>(i), theta);
    const double zeta2 = 1.0 + std::pow(0.5, theta);
    eta_ = (1 - std::pow(2.0 / static_cast<double>(n), 1 - theta)) / (1 - zeta2 / zeta_);
  }
  uint64_t operator()(double u) const {
    const double uz = u * zeta_;
    uint64_t rank = 0;
    if (uz >= 1.0)
      rank = uz < 1.0 + std::pow(0.5, theta_)
                 ? 1
                 : static_cast<uint64_t>(static_cast<double>(n_) * std::pow(eta_ * u - eta_ + 1, 1 / (1 - theta_)));
    if (rank >= n_) rank = n_ - 1;
    return rank * 0x9e3779b97f4a7c15ull % n_;  // NOLINT(clang-analyzer-core.DivideZero): n_ > 0
  }

 private:
  uint64_t n_;
  double theta_, zeta_ = 0, eta_ = 0;
};

AddressSpaces::Lock lock_of(const Step& step) {
  return step.onfault ? AddressSpaces::Lock::onfault : AddressSpaces::Lock::yes;
}

}  // namespace

FileModel& Simulation::file_of(const std::string& name) {
  const auto it = files_.find(name);
  if (it == files_.end()) throw Ended{TaskOutcome::Fate::exited, 1, "there is no [[file]] named \"" + name + "\""};
  return it->second;
}

Area& Simulation::area_of(Program& program, const Step& step) {
  const auto it = program.areas.find(step.area);
  if (it == program.areas.end())
    throw Ended{TaskOutcome::Fate::exited, 1,
                fmt::format("line {}: the task has no area \"{}\"", step.line, step.area)};
  return it->second;
}

void Simulation::survive(Program& program) {
  if (program.task->sigkill.load()) throw Ended{TaskOutcome::Fate::killed, 137, "killed"};
}

void Simulation::start_task(const TaskConfig& config) {
  auto program = std::make_shared<Program>();
  program->task = boot_must(machine_->task_create(config.name.c_str(), nullptr), "task " + config.name);
  if (config.oom_adj != 0)
    (void)OomKiller::set_oom_adj(*program->task, config.oom_adj);
  else
    (void)OomKiller::set_oom_score_adj(*program->task, config.oom_score_adj);
  program->task->nice = config.nice;
  program->task->uid = config.uid;
  program->random = seed_ * 0x100000001b3ull + static_cast<uint64_t>(program->task->pid);
  program->outcome = result_.tasks.size();
  result_.tasks.push_back({.name = config.name, .pid = program->task->pid, .message = {}});
  alive_.push_back(program->task);
  Thread* thread = world_->spawn(
      config.name.c_str(),
      [this, program, &config] {
        if (config.start.v != 0) world_->schedule_timeout(config.start);
        run_program(*program, config.steps);
      },
      program->task);
  program->task->thread = thread;
  if (recorder_) recorder_->names().task(thread->tid, program->task->pid, config.name);
}

void Simulation::run_program(Program& program, const std::vector<Step>& steps) {
  TaskOutcome::Fate fate = TaskOutcome::Fate::exited;
  int code = 0;
  std::string message;
  try {
    run_steps(program, steps);
  } catch (const Ended& e) {
    fate = e.fate;
    code = e.code;
    message = e.message;
  }
  // What is still mapped goes into the digest: the final memory. A killed task's contents are not looked at: it may not
  // fault any more.
  if (fate == TaskOutcome::Fate::exited) {
    try {
      for (auto& [name, area] : program.areas)
        for (uint64_t page = 0; page < area.pages; ++page) touch_page(program, name, area, page, std::nullopt);
    } catch (const Ended& e) {
      fate = e.fate;
      code = e.code;
      message = e.message;
    }
  }
  TaskOutcome& outcome = result_.tasks[program.outcome];
  outcome.fate = fate;
  outcome.code = code;
  outcome.message = message;
  outcome.min_flt = program.task->min_flt.load();
  outcome.maj_flt = program.task->maj_flt.load();
  program.task->thread = nullptr;
  program.task->cpu_time = world_->cpu_time(current());
  alive_[program.outcome] = nullptr;
  // The rest of the exit is done by the machine, as the dying task.
  Task* task = program.task;
  program.task = nullptr;
  machine_->task_exit(*task, code);
  current().task = nullptr;
  result_.tasks[program.outcome].ended = world_->now();
  ended_.wake_all();
}

void Simulation::run_steps(Program& program, const std::vector<Step>& steps) {
  for (const Step& step : steps) {
    survive(program);
    run_step(program, step);
  }
  survive(program);
}

void Simulation::run_step(Program& program, const Step& step) {
  Mm& mm = *program.task->mm;
  const auto whole = [&](Area& area, uint64_t& first, uint64_t& pages) {
    first = step.from.v >> PAGE_SHIFT;
    pages = step.size.v != 0 ? page_align_up(step.size.v) >> PAGE_SHIFT : area.pages - std::min(first, area.pages);
    if (first + pages > area.pages)
      throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: behind the end of \"{}\"", step.line, step.area)};
  };
  switch (step.op) {
    case Op::mmap:
    case Op::malloc: {
      WEIR_STATE(user_request, 0, step.op == Op::malloc ? 2 : 0, step.size.v);
      MmapRequest request;
      request.length = page_align_up(step.size.v);
      if (step.shared) request.sharing = MmapRequest::Sharing::shared;
      Area area;
      area.start = must(machine_->spaces.mmap(mm, request), step, "mmap");
      area.pages = request.length >> PAGE_SHIFT;
      area.expected.assign(area.pages, 0);
      if (step.shared) {
        area.shared = true;
        area.own.assign(area.pages, false);
        area.file = &shared_memory_.emplace_back();
        area.file->expected.assign(area.pages, 0);
        area.file->changing.assign(area.pages, 0);
      }
      program.areas[step.area] = std::move(area);
      break;
    }
    case Op::mmap_file: map_file(program, step, file_of(step.name)); break;
    case Op::mmap_device: map_file(program, step, devices_.at(step.name).model); break;
    case Op::brk: {
      const VirtAddr old = machine_->spaces.brk(mm, VirtAddr(0));
      const VirtAddr want = old + page_align_up(step.size.v);
      if (machine_->spaces.brk(mm, want) < want)
        throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: brk: ENOMEM", step.line)};
      Area area;
      area.start = VirtAddr(page_align_up(old.v));
      area.pages = (want.v - area.start.v) >> PAGE_SHIFT;
      area.expected.assign(area.pages, 0);
      area.heap = true;
      program.areas[step.area] = std::move(area);
      break;
    }
    case Op::munmap: {
      Area& area = area_of(program, step);
      must(machine_->spaces.munmap(mm, area.start, area.pages << PAGE_SHIFT), step, "munmap");
      program.areas.erase(step.area);
      break;
    }
    case Op::madvise: {
      Area& area = area_of(program, step);
      uint64_t first = 0, pages = 0;
      whole(area, first, pages);
      const auto advice = static_cast<Advice>(step.value);
      must(machine_->spaces.madvise(mm, area.start + (first << PAGE_SHIFT), pages << PAGE_SHIFT, advice), step,
           "madvise");
      if (advice == Advice::free) area.lazy.resize(area.pages, false);
      for (uint64_t i = first; i < first + pages; ++i) {
        if (advice == Advice::free) area.lazy[i] = true;
        if (advice != Advice::dontneed) continue;
        area.expected[i] = 0;
        if (area.file != nullptr) area.own[i] = false;
      }
      break;
    }
    case Op::mlock:
    case Op::mlock2:
    case Op::munlock: {
      Area& area = area_of(program, step);
      uint64_t first = 0, pages = 0;
      whole(area, first, pages);
      const VirtAddr start = area.start + (first << PAGE_SHIFT);
      AddressSpaces& spaces = machine_->spaces;
      if (step.op == Op::mlock2)
        must(spaces.mlock2(*program.task, start, pages << PAGE_SHIFT, lock_of(step)), step, "mlock2");
      else if (step.op == Op::mlock)
        must(spaces.mlock(*program.task, start, pages << PAGE_SHIFT), step, "mlock");
      else
        must(spaces.munlock(*program.task, start, pages << PAGE_SHIFT), step, "munlock");
      break;
    }
    case Op::mlockall: {
      using Future = AddressSpaces::LockFuture;
      const AddressSpaces::Lock current = step.current ? lock_of(step) : AddressSpaces::Lock::no;
      const Future future = !step.future ? Future::no : step.onfault ? Future::onfault : Future::yes;
      must(machine_->spaces.mlockall(*program.task, current, future), step, "mlockall");
      break;
    }
    case Op::munlockall: must(machine_->spaces.munlockall(*program.task), step, "munlockall"); break;
    case Op::touch: touch(program, step); break;
    case Op::read:
    case Op::write: file_io(program, step); break;
    case Op::fsync: {
      File& file = *file_of(step.area).file;
      must(file.f_op->fsync(file), step, "fsync");
      break;
    }
    case Op::truncate: truncate(step); break;
    case Op::fallocate: {
      FileModel& file = file_of(step.area);
      const auto call = [&](uint32_t mode) {
        return file.file->f_op->fallocate(*file.inode, mode, step.from.v, step.size.v);
      };
      if (!step.punch) {
        must(call(0), step, "fallocate");
        break;
      }
      const uint64_t first = step.from.v >> PAGE_SHIFT;
      empty_pages(step, first, first + (step.size.v >> PAGE_SHIFT),
                  [&] { return call(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE); });
      break;
    }
    case Op::drop_caches:
      machine_->files.for_each_inode([&](Inode& inode) { machine_->files.invalidate(inode); });
      break;
    case Op::shm_lock:
    case Op::shm_unlock:
      machine_->shmem.shmem_lock(*file_of(step.area).inode,
                                 step.op == Op::shm_lock ? Shmem::ShmLock::lock : Shmem::ShmLock::unlock);
      break;
    case Op::flush_disk:
      if (FlatFs* fs = disks_.at(step.name).fs.get()) fs->flush_blockdev();  // else no file is on it
      break;
    case Op::fail_slab:
      if (!machine_->slab.set_failslab(step.name.c_str(), static_cast<unsigned>(step.count)))
        throw Ended{TaskOutcome::Fate::exited, 1,
                    fmt::format("line {}: there is no slab cache \"{}\"", step.line, step.name)};
      break;
    case Op::fork: fork(program, step); break;
    case Op::sleep: world_->schedule_timeout(step.time); break;
    case Op::exit: throw Ended{TaskOutcome::Fate::exited, step.code, ""};
    case Op::repeat:
      for (uint64_t i = 0; i < step.count; ++i) run_steps(program, step.body);
      break;
    case Op::kmalloc: {
      KernelObjects& k = kernel_objects_[step.area];
      for (uint64_t i = 0; i < step.count; ++i) {
        void* p = machine_->slab.kmalloc(step.size.v, GFP_KERNEL);
        if (p == nullptr) throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: kmalloc: ENOMEM", step.line)};
        k.objects.push_back(p);
      }
      break;
    }
    case Op::kfree: {
      for (void* p : kernel_objects_[step.area].objects) machine_->slab.kfree(p);
      kernel_objects_.erase(step.area);
      break;
    }
    case Op::vmalloc:
      kernel_objects_[step.area].vm = must(machine_->vmalloc.vmalloc(step.size), step, "vmalloc");
      break;
    case Op::vfree:
      machine_->vmalloc.vfree(kernel_objects_[step.area].vm);
      kernel_objects_.erase(step.area);
      break;
    case Op::ram: machine_->set_ram(pages_in(step.size)); break;
    case Op::mremap: mremap(program, step); break;
    case Op::remap_file_pages: remap_file_pages(program, step); break;
    case Op::mprotect: {
      Area& area = area_of(program, step);
      uint64_t first = 0, pages = 0;
      whole(area, first, pages);
      must(machine_->spaces.mprotect(mm, area.start + (first << PAGE_SHIFT), pages << PAGE_SHIFT,
                                     static_cast<uint64_t>(step.value)),
           step, "mprotect");
      break;
    }
    case Op::wait: wait_for_children(program); break;
    case Op::kill: kill(step.name); break;
    case Op::swapon:
    case Op::swapoff:
    case Op::mem_limit: swap_step(step); break;
    case Op::sysctl: must(set_sysctl(step.name, step.value), step, step.name.c_str()); break;
    case Op::oom_score_adj:
      must(OomKiller::set_oom_score_adj(*program.task, static_cast<int32_t>(step.value)), step, "oom_score_adj");
      break;
    case Op::oom_adj:
      must(OomKiller::set_oom_adj(*program.task, static_cast<int32_t>(step.value)), step, "oom_adj");
      break;
    case Op::nice: program.task->nice = static_cast<int32_t>(step.value); break;
    case Op::compute: {
      constexpr Nanos SLICE = 1_ms;
      for (Nanos left = step.time; left.v != 0;) {
        survive(program);
        const Nanos now = std::min(left, SLICE);
        world_->spend(now);
        left = left - now;
        world_->cond_resched();
      }
      break;
    }
    case Op::hang: {
      // In the kernel, for something that does not come: a signal does not help.
      const Nanos end = world_->now() + step.time;
      while (world_->now() < end) world_->schedule_timeout(end - world_->now());
      break;
    }
    case Op::verify:
      freeze_processes(*world_);
      world_->schedule_timeout(120_ms);  // who is in congestion_wait meets the freezer
      come_to_rest();
      verify();
      thaw_processes(*world_);
      break;
  }
}

void Simulation::map_file(Program& program, const Step& step, FileModel& file) {
  MmapRequest request;
  request.length = page_align_up(step.size.v);
  request.file = file.file;
  request.pgoff = step.from.v >> PAGE_SHIFT;
  request.prot = step.write ? VM_READ | VM_WRITE : VM_READ;
  request.sharing = step.shared ? MmapRequest::Sharing::shared : MmapRequest::Sharing::private_;
  Area area;
  area.start = must(machine_->spaces.mmap(*program.task->mm, request), step, "mmap");
  area.pages = request.length >> PAGE_SHIFT;
  area.expected.assign(area.pages, 0);
  area.own.assign(area.pages, false);
  area.file = &file;
  area.file_page = request.pgoff;
  area.shared = step.shared;
  program.areas[step.area] = std::move(area);
}

void Simulation::swap_step(const Step& step) {
  SwapArea& area = swap_areas_.at(step.name);
  if (step.op == Op::mem_limit) return area.zram->set_mem_limit(pages_in(step.size));
  if (step.op == Op::swapoff) {
    if (!area.type) throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: swapoff: EINVAL", step.line)};
    must(machine_->swapon.swapoff(*area.type), step, "swapoff");
    area.type.reset();
    return;
  }
  const int priority = step.value >= 0 ? static_cast<int>(step.value) : area.priority;
  area.type = must(machine_->swapon.swapon(*area.device, priority), step, "swapon");
}

void Simulation::mremap(Program& program, const Step& step) {
  Area& area = area_of(program, step);
  const uint64_t pages = page_align_up(step.size.v) >> PAGE_SHIFT;
  area.start = must(machine_->spaces.mremap(*program.task->mm, area.start, area.pages << PAGE_SHIFT,
                                            pages << PAGE_SHIFT, AddressSpaces::MayMove::yes),
                    step, "mremap");
  area.pages = pages;
  area.expected.resize(pages, 0);
  if (pages < area.lazy.size()) area.lazy.resize(pages);
  if (area.file != nullptr) area.own.resize(pages, false);
  if (area.order.empty()) return;
  area.order.resize(std::min<uint64_t>(pages, area.order.size()));
  while (area.order.size() < pages) area.order.push_back(area.file_page + area.order.size());
}

void Simulation::remap_file_pages(Program& program, const Step& step) {
  Area& area = area_of(program, step);
  const uint64_t first = step.from.v >> PAGE_SHIFT, pages = page_align_up(step.size.v) >> PAGE_SHIFT;
  const uint64_t to = step.to.v >> PAGE_SHIFT;
  if (first + pages > area.pages || (area.file != nullptr && to + pages > area.file->expected.size()))
    throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: behind the end of \"{}\"", step.line, step.area)};
  must(machine_->spaces.remap_file_pages(*program.task->mm, area.start + (first << PAGE_SHIFT), pages << PAGE_SHIFT, 0,
                                         to),
       step, "remap_file_pages");
  while (area.order.size() < area.pages) area.order.push_back(area.file_page + area.order.size());
  for (uint64_t i = 0; i < pages; ++i) area.order[first + i] = to + i;
}

/// All tasks of that name that are there.
void Simulation::kill(const std::string& name) {
  for (size_t i = 0; i < alive_.size(); ++i)
    if (alive_[i] != nullptr && result_.tasks[i].name == name) machine_->task_kill(*alive_[i]);
}

void Simulation::wait_for_children(Program& program) {
  ended_.wait([&] {
    return program.task->sigkill.load() || std::all_of(program.children.begin(), program.children.end(),
                                                       [&](size_t child) { return result_.tasks[child].ended.v != 0; });
  });
}

void Simulation::touch_page(Program& program, const std::string& name, Area& area, uint64_t page,
                            std::optional<uint64_t> store) {
  const VirtAddr address = area.start + (page << PAGE_SHIFT);
  FaultResult r = FaultResult::done;
  FileModel* file = area.file;
  const uint64_t at = area.page_of_file(page);
  const bool of_file = file != nullptr && (area.shared || !area.own[page]);
  std::optional<uint64_t> found;
  uint64_t expected = 0;
  bool compare = true;
  const bool write = store.has_value();
  if (write) {
    const uint64_t content = *store;
    if (file != nullptr && area.shared) ++file->changing[at];
    r = user_->store(*program.task, address, content);
    if (r == FaultResult::done) {
      if (file != nullptr && area.shared)
        file->expected[at] = content;
      else {
        area.expected[page] = content;
        if (page < area.lazy.size()) area.lazy[page] = false;
        if (file != nullptr) area.own[page] = true;
      }
    }
    if (file != nullptr && area.shared) ++file->changing[at];
  } else {
    const uint32_t before = of_file && at < file->changing.size() ? file->changing[at] : 0;
    expected = of_file ? file->expected[at] : area.expected[page];
    r = user_->load(*program.task, address, found);
    compare = !of_file || ((before & 1) == 0 && file->changing[at] == before);
  }
  world_->spend(TOUCH_COST);
  switch (r) {
    case FaultResult::done: break;
    case FaultResult::killed: throw Ended{TaskOutcome::Fate::killed, 137, "killed"};
    case FaultResult::sigsegv:
      throw Ended{TaskOutcome::Fate::segv, 139, fmt::format("SIGSEGV at {:#x} ({} page {})", address.v, name, page)};
    case FaultResult::sigbus:
      throw Ended{TaskOutcome::Fate::bus, 135, fmt::format("SIGBUS at {:#x} ({} page {})", address.v, name, page)};
  }
  if (!write && found && *found == 0 && page < area.lazy.size() && area.lazy[page]) {
    // It has gone, and stays so.
    expected = area.expected[page] = 0;
    area.lazy[page] = false;
  }
  if (!write && compare) {
    ++result_.contents_checked;
    if (!found || *found != expected)
      content_broken(fmt::format("task {} area {} page {}", result_.tasks[program.outcome].name, name, page), expected,
                     found);
    contents_digest_ = XXH64(&expected, sizeof expected, contents_digest_ + page);
  }
  world_->cond_resched();
}

void Simulation::touch(Program& program, const Step& step) {
  Area& area = area_of(program, step);
  const uint64_t first = step.from.v >> PAGE_SHIFT;
  const uint64_t pages =
      step.size.v != 0 ? page_align_up(step.size.v) >> PAGE_SHIFT : area.pages - std::min(first, area.pages);
  if (pages == 0 || first + pages > area.pages)
    throw Ended{TaskOutcome::Fate::exited, 1, fmt::format("line {}: behind the end of \"{}\"", step.line, step.area)};
  const uint64_t count = step.count != 0 ? step.count : pages;
  std::optional<Zipf> zipf;
  if (step.pattern == Pattern::zipf) zipf.emplace(pages, step.theta == 1.0 ? 0.999 : step.theta);
  const auto hot_pages = std::max<uint64_t>(1, static_cast<uint64_t>(static_cast<double>(pages) * step.hot_share));
  for (uint64_t i = 0; i < count; ++i) {
    survive(program);
    uint64_t page = 0;
    switch (step.pattern) {
      case Pattern::sequential: page = i % pages; break;
      case Pattern::random: page = program.next() % pages; break;
      case Pattern::zipf: page = (*zipf)(program.real()); break;
      case Pattern::hot:
        page = program.real() < step.hot_probability ? program.next() % hot_pages : program.next() % pages;
        break;
    }
    std::optional<uint64_t> store;
    if (step.write) store = step.values != 0 ? COMMON_CONTENTS + page % step.values : ++next_content_;
    touch_page(program, step.area, area, first + page, store);
    if (step.time.v != 0) world_->schedule_timeout(step.time);
  }
}

Result<void> Simulation::write_file_page(FileModel& file, uint64_t page, uint64_t content) {
  if (s_.content == ContentMode::tagged) return file.file->f_op->write_tag(*file.file, page, content);
  std::byte bytes[PAGE_SIZE];
  fill_page(content, bytes);
  Result<uint64_t> wrote = file.file->f_op->write(*file.file, page << PAGE_SHIFT, bytes, PAGE_SIZE);
  if (!wrote) return wrote.error();
  return *wrote == PAGE_SIZE ? Result<void>() : Result<void>(Errno::intr);
}

Result<std::optional<uint64_t>> Simulation::read_file_page(FileModel& file, uint64_t page) {
  if (s_.content == ContentMode::tagged) {
    Result<uint64_t> tag = file.file->f_op->read_tag(*file.file, page);
    if (!tag) return tag.error();
    return std::optional<uint64_t>(*tag);
  }
  std::byte bytes[PAGE_SIZE];
  Result<uint64_t> got = file.file->f_op->read(*file.file, page << PAGE_SHIFT, bytes, PAGE_SIZE);
  if (!got) return got.error();
  if (*got != PAGE_SIZE) return Errno::intr;
  return content_of(bytes);
}

void Simulation::file_io(Program& program, const Step& step) {
  FileModel& file = file_of(step.area);
  const uint64_t first = step.from.v >> PAGE_SHIFT, pages = page_align_up(step.size.v) >> PAGE_SHIFT;
  if (first + pages > file.expected.size())
    throw Ended{TaskOutcome::Fate::exited, 1,
                fmt::format("line {}: behind the end of file \"{}\"", step.line, step.area)};
  for (uint64_t n = 0; n < step.count; ++n) {
    for (uint64_t page = first; page < first + pages; ++page) {
      survive(program);
      if (step.op == Op::write) {
        const uint64_t content = ++next_content_;
        ++file.changing[page];
        const Result<void> r = write_file_page(file, page, content);
        if (r) file.expected[page] = content;
        ++file.changing[page];
        if (!r && r.error() == Errno::intr) survive(program);
        must(r, step, "write");
      } else {
        const uint32_t before = file.changing[page];
        const uint64_t expected = file.expected[page];
        Result<std::optional<uint64_t>> r = read_file_page(file, page);
        if (!r && r.error() == Errno::intr) survive(program);
        const std::optional<uint64_t> found = must(std::move(r), step, "read");
        if ((before & 1) == 0 && file.changing[page] == before) {
          ++result_.contents_checked;
          if (!found || *found != expected)
            content_broken(fmt::format("file {} page {}", step.area, page), expected, found);
        }
      }
      world_->spend(TOUCH_COST);
      world_->cond_resched();
    }
  }
}

/// `call` makes pages [first, end) of a file zero, or takes them off. What is read meanwhile is not compared.
void Simulation::empty_pages(const Step& step, uint64_t first, uint64_t end,
                             const std::function<Result<void>()>& call) {
  FileModel& file = file_of(step.area);
  end = std::min<uint64_t>(end, file.expected.size());
  for (uint64_t page = first; page < end; ++page) ++file.changing[page];
  Result<void> done = call();
  for (uint64_t page = first; page < end; ++page) {
    if (done) file.expected[page] = 0;
    ++file.changing[page];
  }
  must(done, step, step.op == Op::truncate ? "truncate" : "fallocate");
}

void Simulation::truncate(const Step& step) {
  FileModel& file = file_of(step.area);
  const VmaFileTree& mappings = file.inode->i_data.i_mmap;
  for (VmArea* vma = mappings.first(); vma != nullptr; vma = mappings.next(vma))
    if ((vma->vm_flags & VM_SHARED) == 0)
      throw Ended{TaskOutcome::Fate::exited, 1,
                  fmt::format("line {}: \"{}\" is mapped privately: what becomes of the copies is not followed",
                              step.line, step.area)};
  empty_pages(step, step.size.v >> PAGE_SHIFT, ~uint64_t{0},
              [&] { return file.file->f_op->truncate(*file.inode, step.size); });
}

void Simulation::fork(Program& program, const Step& step) {
  Result<Task*> child = machine_->task_fork(*program.task);
  Task* task = must(std::move(child), step, "fork");
  auto copy = std::make_shared<Program>();
  copy->task = task;
  copy->areas = program.areas;
  copy->random = program.next();
  copy->outcome = result_.tasks.size();
  set_task_comm(*task, step.name.c_str());
  result_.tasks.push_back({.name = step.name, .pid = task->pid, .message = {}});
  alive_.push_back(task);
  program.children.push_back(copy->outcome);
  Thread* thread = world_->spawn(
      step.name.c_str(), [this, copy, &step] { run_program(*copy, step.body); }, task);
  task->thread = thread;
  if (recorder_) recorder_->names().task(thread->tid, task->pid, step.name);
}

}  // namespace weir::sim
