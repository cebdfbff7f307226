// tests/model/run.hpp
//
// A script, run on a machine and, step by step, on a plain reference: maps from page to content and rights. What tasks
// read, and which errors they get, must agree; at each round's end verify() must find nothing.
//
//   reference:   task --> {page number --> rights, file and offset (or none), own content}
//                file --> {content of each page}        (shared memory is a file that only its mappings know)
//
// Where two tasks change one file page at the same time the reference keeps out of the way: pages that somebody is
// changing are not written by others, and what is read meanwhile is not compared.
#pragma once

#include <xxhash.h>

#include <array>
#include <cstring>
#include <deque>
#include <optional>
#include <set>

#include "model/script.hpp"
#include "support/machine_fixture.hpp"

namespace weir::model {

using test::FixtureOptions;
using test::MachineFixture;
using test::SwapKind;

/// A page's content: eight parts of 512 bytes, each made from a word. Tagged: the first word.
inline constexpr unsigned PARTS = 8;
inline constexpr size_t PART_BYTES = PAGE_SIZE / PARTS;
using Words = std::array<uint64_t, PARTS>;

/// Half of it random, half one word: it compresses about as programs' memory does. 0 is zeros.
inline void fill_part(uint64_t word, std::byte* to) {
  uint64_t words[PART_BYTES / 8];
  Random r{word};
  for (size_t i = 0; i < PART_BYTES / 8; ++i) words[i] = word == 0 || i == 0 || i >= PART_BYTES / 16 ? word : r.next();
  std::memcpy(to, words, PART_BYTES);
}

/// One mapped page, as the reference sees it.
struct RefPage {
  uint64_t prot = 0;
  int file = -1;  ///< -1: anonymous
  uint64_t pgoff = 0;
  bool shared = false;
  bool own = false;  ///< of a private file mapping: has content of its own
  bool locked = false;
  bool lazy = false;    ///< may be gone (MADV_FREE): zeros then
  uint8_t unknown = 0;  ///< parts whose content is learnt at the next look
  bool vague = false;   ///< whether it is the file's or its own is not known
  Words words{};
  [[nodiscard]] bool files() const { return file >= 0 && !own; }
};

struct RefFile {
  RefFile(uint64_t pages_now, uint64_t most)
      : size(pages_now * PARTS), max_pages(most), pages(most), changing(most), unknown(most) {}
  File* file = nullptr;  ///< null: shared memory without a file
  uint64_t size;         ///< in parts
  uint64_t max_pages;
  uint32_t resizing = 0;  ///< odd while somebody may be moving the end
  std::vector<Words> pages;
  std::vector<uint32_t> changing;  ///< odd while somebody changes the page
  std::vector<uint8_t> unknown;
  [[nodiscard]] uint64_t size_pages() const { return (size + PARTS - 1) / PARTS; }
  /// Parts of a page that lie behind the end of the file: a mapping may write them, and nobody says what they are
  /// later.
  [[nodiscard]] uint8_t behind_end(uint64_t page) const {
    if (size >= (page + 1) * PARTS) return 0;
    return size <= page * PARTS ? 0xff : static_cast<uint8_t>(0xff << (size - page * PARTS));
  }
};

struct RefTask {
  Task* task = nullptr;
  std::string name;
  std::map<uint64_t, RefPage> pages;  // by page number
  uint64_t brk = 0, start_brk = 0;    // page numbers
  bool may_die = false;               // somebody sent it a kill
  bool locks_future = false;          // mlockall(MCL_FUTURE)
  bool gone = false;
};

struct Totals {
  uint64_t ops = 0, touches = 0, compared = 0, verified = 0, kills = 0, errors = 0;
  uint64_t swapoffs = 0, merged = 0, shared = 0;  // shared: loads and stores of shared memory
  uint64_t pswpin = 0, pswpout = 0, pgpgin = 0, pgpgout = 0, cow = 0, faults = 0, oom = 0, scans = 0;
  void add(const Totals& o) {
    ops += o.ops, touches += o.touches, compared += o.compared, verified += o.verified, kills += o.kills,
        errors += o.errors, swapoffs += o.swapoffs, merged += o.merged, shared += o.shared;
    pswpin += o.pswpin, pswpout += o.pswpout, pgpgin += o.pgpgin, pgpgout += o.pgpgout, cow += o.cow,
        faults += o.faults, oom += o.oom, scans += o.scans;
  }
};

/// Stands between the allocator and reclaim: now and then it does nothing, and the allocation fails.
class LazyPressure final : public Pressure {
 public:
  LazyPressure(Pressure& real, uint64_t percent, uint64_t seed) : real_(real), percent_(percent), random_{seed} {}
  PageCount try_to_free_pages(Order order, gfp_t gfp) override {
    return lazy() ? PageCount(0) : real_.try_to_free_pages(order, gfp);
  }
  void wakeup_kswapd(ZoneType classzone, Order order) override {
    if (!lazy()) real_.wakeup_kswapd(classzone, order);
  }
  bool out_of_memory(const OomControl& control) override {
    return random_.below(16) == 0 && real_.out_of_memory(control);
  }
  [[nodiscard]] PageCount zone_reclaimable_pages() const override { return real_.zone_reclaimable_pages(); }
  bool active = true;

 private:
  bool lazy() { return active && random_.below(100) < percent_; }
  Pressure& real_;
  uint64_t percent_;
  Random random_;
};

class Run {
 public:
  explicit Run(const Script& script) : script_(script), c_(script.config), choice_{script.config.seed ^ 0xabcdef} {}

  /// Empty, or what went wrong.
  std::string run() {
    m_ = std::make_unique<MachineFixture>(options());
    m_->machine->pages.set_percpu_pagelist_fraction(static_cast<unsigned>(c_.pcp));
    m_->in_a_thread("setup", [this] { set_up(); });
    size_t at = 0;
    while (failure_.empty() && at < script_.ops.size()) {
      size_t end = at;
      while (end < script_.ops.size() && script_.ops[end].kind != Kind::round) ++end;
      round(at, end);
      at = end + 1;
    }
    if (failure_.empty()) finish();
    if (!failure_.empty()) {
      m_->abandon();
      (void)m_.release();  // it may be in any state: left to the end of the process
      return failure_;
    }
    m_.reset();
    return failure_;
  }

  Totals totals;

 private:
  [[nodiscard]] bool tagged() const { return c_.backed == 0; }
  [[nodiscard]] unsigned parts() const { return tagged() ? 1 : PARTS; }
  [[nodiscard]] bool failures() const { return c_.io_errors != 0 || c_.no_memory != 0 || c_.refusals != 0; }
  [[nodiscard]] Swap swap() const { return static_cast<Swap>(c_.swap); }

  template <class... Args>
  void fail(const char* format, Args... args) {
    if (!failure_.empty()) return;
    char text[400];
    std::snprintf(text, sizeof text, format, args...);
    failure_ = text;
  }

  FixtureOptions options() {
    FixtureOptions o;
    o.ram = Bytes(c_.ram << PAGE_SHIFT);
    if (c_.two_zones != 0) o.dma32_end = Pfn(uint64_t{1} << (MAX_ORDER - 1));
    o.cpus = static_cast<unsigned>(c_.cpus);
    o.seed = c_.seed;
    o.kernel = static_cast<KernelEra>(c_.kernel);
    o.preempt_one_in = static_cast<uint32_t>(c_.preempt);
    o.content = tagged() ? ContentKind::tags : ContentKind::bytes;
    o.model = c_.uffd != 0 ? SoftMmu::Model::uffd : SoftMmu::Model::hardware;
    if (c_.refusals != 0)
      o.uffd_failures = {.again_one_in = static_cast<uint32_t>(c_.refusals),
                         .nomem_one_in = static_cast<uint32_t>(c_.refusals * 500),
                         .seed = c_.seed};
    o.swappiness = static_cast<int>(c_.swappiness);
    o.page_cluster = static_cast<unsigned>(c_.cluster);
    const Bytes ram = o.ram;
    switch (swap()) {
      case Swap::none: break;
      case Swap::disk: o.swaps = {{SwapKind::disk, Bytes(ram.v * 2)}}; break;
      case Swap::zram: o.swaps = {{c_.seed % 3 == 0 ? SwapKind::zram_zstd : SwapKind::zram, ram}}; break;
      case Swap::zram_and_disk:
        o.swaps = {{SwapKind::zram, ram, Bytes(ram.v / 8)}, {SwapKind::disk, Bytes(ram.v * 3 / 2)}};
        break;
    }
    budget_ = budget(~0u);
    o.disk = Bytes(uint64_t{4} << 20);
    return o;
  }

  /// What tasks may have together, in pages, while these swap areas (a bit each) are on.
  [[nodiscard]] uint64_t budget(unsigned on) const {
    const uint64_t none = c_.ram * 45 / 100;
    switch (swap()) {
      case Swap::none: return none;
      case Swap::disk: return (on & 1) != 0 ? c_.ram * 2 : none;
      case Swap::zram: return (on & 1) != 0 ? c_.ram * 85 / 100 : none;
      case Swap::zram_and_disk:
        if ((on & 3) == 3) return c_.ram * 150 / 100;
        return (on & 2) != 0 ? c_.ram : none;
    }
    return none;
  }
  [[nodiscard]] unsigned areas_on() const {
    unsigned on = 0;
    for (size_t i = 0; i < m_->swaps.size(); ++i) on |= m_->swaps[i]->type ? 1u << i : 0;
    return on;
  }

  void set_up() {
    for (uint64_t i = 0; i < DISK_FILES; ++i) {
      RefFile& f = files_.emplace_back(100 + 60 * i, 200 + 100 * i);
      f.file = &m_->make_file(i == 0 ? "one" : "two", f.size / PARTS, f.max_pages);
    }
    adopt_task(m_->task(), "t1");
    while (alive() < c_.tasks) adopt_task(m_->make_task("t"), "t" + std::to_string(tasks_.size() + 1));
    if (c_.no_memory != 0) {
      lazy_ = std::make_unique<LazyPressure>(m_->machine->pressure(), c_.no_memory, c_.seed);
      m_->machine->pages.set_pressure(lazy_.get());
    }
    set_io_errors(c_.io_errors);
  }
  void set_io_errors(uint64_t percent) {
    const FaultAttr attr{.probability = static_cast<uint32_t>(percent)};
    for (auto& s : m_->swaps)
      if (s->faults) s->faults->set_fail(attr);
    m_->file_faults->set_fail(attr);
  }
  RefTask& adopt_task(Task& task, std::string name) {
    auto t = std::make_unique<RefTask>();
    t->task = &task;
    t->name = std::move(name);
    t->brk = t->start_brk = task.mm->brk.v >> PAGE_SHIFT;
    tasks_.push_back(std::move(t));
    return *tasks_.back();
  }
  [[nodiscard]] uint64_t alive() const {
    uint64_t n = 0;
    for (const auto& t : tasks_) n += t->gone ? 0 : 1;
    return n;
  }

  // ---- rounds
  void round(size_t from, size_t to) {
    std::vector<RefTask*> live;
    for (auto& t : tasks_)
      if (!t->gone) live.push_back(t.get());
    if (live.empty()) {
      m_->in_a_thread("birth", [this] {
        Result<Task*> made = m_->machine->task_create("t", nullptr);
        if (made) adopt_task(m_->own(**made), "t" + std::to_string(tasks_.size() + 1));
      });
      for (auto& t : tasks_)
        if (!t->gone) live.push_back(t.get());
      if (live.empty()) return;
    }
    size_t busy = live.size();
    for (size_t i = 0; i < live.size(); ++i) {
      RefTask* t = live[i];
      m_->spawn(*t->task, [this, t, i, n = live.size(), from, to, &busy] {
        for (size_t at = from; at < to && failure_.empty() && !t->gone; ++at) {
          if (script_.ops[at].task % n != i) continue;
          now_ = at;
          ++totals.ops;
          step(*t, script_.ops[at]);
          if (!t->gone && !dying(*t)) glance(*t);
          if (!t->gone) reap(*t);
        }
        --busy;
        // Who is killed now has an exit to make: where there is no reaper, others wait for its memory. Not for ever: a
        // deadlock shall be found.
        for (int ms = 0; ms < 60'000 && busy != 0 && failure_.empty() && !t->gone && !reap(*t); ++ms)
          world().schedule_timeout(1_ms);
      });
    }
    if (m_->world.run() != VirtualWorld::RunState::finished) {
      fail("deadlock:");
      failure_ += m_->world.report();
      return;
    }
    if (failure_.empty()) rest();
  }
  void rest() {
    m_->in_a_thread("rest", [this] {
      std::string found;
      if (!m_->at_rest([&] { found = m_->verify(); })) return fail("the machine does not come to rest");
      ++totals.verified;
      totals.merged += static_cast<uint64_t>(m_->machine->ksm.stats().pages_sharing);
      if (!found.empty()) {
        fail("verify:");
        failure_ += "\n" + found;
      }
    });
  }
  void finish() {
    // Nothing fails any more: whatever was written must be there.
    set_io_errors(0);
    if (lazy_) lazy_->active = false;
    if (lazy_) m_->machine->pages.set_pressure(&m_->machine->pressure());
    for (auto& t : tasks_) {
      if (t->gone) continue;
      RefTask* task = t.get();
      m_->spawn(*t->task, [this, task] {
        std::vector<uint64_t> all;
        for (const auto& [vpn, page] : task->pages) all.push_back(vpn);
        for (uint64_t vpn : all)
          if (failure_.empty() && !task->gone) touch(*task, vpn, false, 0, 0), reap(*task);
      });
      if (m_->world.run() != VirtualWorld::RunState::finished) return fail("deadlock at the end");
    }
    if (!failure_.empty()) return;
    m_->in_a_thread("files", [this] {
      for (unsigned i = 0; i < DISK_FILES; ++i) {
        RefFile& f = disk_file(i);
        (void)m_->machine->files.fsync(*f.file);  // tells what failed earlier
        const Result<void> synced = m_->machine->files.fsync(*f.file);
        if (!synced) return fail("fsync at the end: %s", errno_name(synced.error()));
        for (uint64_t page = 0; page < f.size_pages(); ++page) read_file(f, page * PARTS, PARTS);
      }
      for (auto& [p, size] : objects_) m_->machine->slab.kfree(p);
      for (VirtAddr area : areas_) m_->machine->vmalloc.vfree(area);
      if (ballooned_ != 0) (void)m_->machine->set_ram(PageCount(m_->machine->pages.managed_pages().v + ballooned_));
    });
    if (failure_.empty()) rest();
    const VmStat& v = m_->machine->vmstat;
    totals.pswpin = v.event(VmEvent::pswpin), totals.pswpout = v.event(VmEvent::pswpout);
    totals.pgpgin = v.event(VmEvent::pgpgin), totals.pgpgout = v.event(VmEvent::pgpgout);
    totals.cow = v.event(VmEvent::pgcow), totals.faults = v.event(VmEvent::pgfault),
    totals.oom = v.event(VmEvent::oom_kill);
    totals.scans = v.event(VmEvent::pgscan_direct) + v.event(VmEvent::pgscan_kswapd);
  }

  /// A task that was killed dies. One that nobody may have killed is a failure.
  bool reap(RefTask& t) {
    if (!t.task->sigkill.load()) return false;
    if (!t.may_die && !failures())
      fail("%s was killed; there was memory for all: %ld free, %ld slots", t.name.c_str(),
           m_->machine->pages.nr_free_pages().v, m_->machine->swap_files.nr_swap_pages());
    ++totals.kills;
    leave(t);
    return true;
  }
  void leave(RefTask& t) {
    t.gone = true;
    t.pages.clear();
    m_->leave(*t.task);
  }
  [[nodiscard]] static bool dying(const RefTask& t) { return t.task->sigkill.load(); }

  // ---- the reference's sums
  [[nodiscard]] uint64_t promised() const {
    uint64_t n = 0;
    std::set<int> shared;  // memory, of which all counts as long as a page of it is mapped
    for (const auto& t : tasks_)
      for (const auto& [vpn, page] : t->pages) {
        if (page.file < 0 || (!page.shared && (page.own || (page.prot & VM_WRITE) != 0 || c_.uffd != 0))) ++n;
        if (page.file >= static_cast<int>(DISK_FILES)) shared.insert(page.file);
      }
    for (const int file : shared) n += files_[static_cast<size_t>(file)].max_pages;
    return n + reserved_;
  }
  [[nodiscard]] uint64_t locked() const {
    uint64_t n = 0;
    for (const auto& t : tasks_)
      for (const auto& [vpn, page] : t->pages) n += page.locked ? 1 : 0;
    return n + reserved_locked_;
  }
  [[nodiscard]] bool may_lock(uint64_t pages) const { return locked() + pages <= c_.ram / 10; }
  /// Room for so many pages more. Held until the end of the step: other tasks' steps run meanwhile.
  struct Reserve {
    uint64_t& sum;
    uint64_t n;
    Reserve(uint64_t& of, uint64_t pages) : sum(of), n(pages) { sum += n; }
    ~Reserve() { sum -= n; }
    Reserve(const Reserve&) = delete;
  };

  // ---- steps
  static constexpr unsigned DISK_FILES = 2;
  [[nodiscard]] RefFile& disk_file(uint32_t which) { return files_[which % DISK_FILES]; }

  struct Range {
    uint64_t start = 0, pages = 0;
    [[nodiscard]] VirtAddr address() const { return VirtAddr(start << PAGE_SHIFT); }
    [[nodiscard]] uint64_t bytes() const { return pages << PAGE_SHIFT; }
  };
  /// Somewhere at what is mapped; may begin before it and go on behind it.
  std::optional<Range> range_of(const RefTask& t, const Op& op, uint64_t most) {
    if (t.pages.empty()) return {};
    auto it = t.pages.begin();
    std::advance(it, op.a % t.pages.size());
    Range r{it->first, 1 + op.b % most};
    if (op.c % 8 == 0) r.start -= 1 + op.c / 8 % 3;
    return r;
  }
  static uint64_t prot_of(uint32_t c) {
    constexpr uint64_t RIGHTS[] = {VM_READ | VM_WRITE, VM_READ | VM_WRITE, VM_READ, 0};
    return RIGHTS[c % 4];
  }
  [[nodiscard]] static bool all_free(const RefTask& t, uint64_t start, uint64_t pages) {
    const auto it = t.pages.lower_bound(start);
    return it == t.pages.end() || it->first >= start + pages;
  }
  static void erase(RefTask& t, uint64_t start, uint64_t pages) {
    t.pages.erase(t.pages.lower_bound(start), t.pages.lower_bound(start + pages));
  }
  /// What did not succeed may have been done in part: the reference takes over rights and what is mapped at all.
  void learn(RefTask& t, uint64_t start, uint64_t pages) {
    for (auto it = t.pages.lower_bound(start); it != t.pages.end() && it->first < start + pages;) {
      const VmArea* vma = m_->machine->vmas.vma_lookup(*t.task->mm, VirtAddr(it->first << PAGE_SHIFT));
      if (vma == nullptr) {
        it = t.pages.erase(it);
        continue;
      }
      it->second.prot = vma->vm_flags & VM_ACCESS_FLAGS;
      it->second.locked = (vma->vm_flags & VM_LOCKED) != 0;
      if (it->second.file >= 0 && !it->second.shared && !it->second.own) it->second.vague = true;
      ++it;
    }
  }
  /// True if the result is the one expected, or one that a failing machine may give (then the reference has learnt).
  bool as_expected(RefTask& t, const char* what, Errno expected, Errno found, const Range& r) {
    if (dying(t)) return false;
    if (found == expected) return true;
    if (failures() && (found == Errno::nomem || found == Errno::intr)) {
      ++totals.errors;
      learn(t, r.start, r.pages);
      return false;
    }
    fail("%s %s [%#lx, +%lu pages): %s instead of %s", t.name.c_str(), what, r.start, r.pages, errno_name(found),
         errno_name(expected));
    return false;
  }
  template <class T>
  static Errno error_of(const Result<T>& r) {
    return r ? Errno::ok : r.error();
  }

  void step(RefTask& t, const Op& op) {
    AddressSpaces& spaces = m_->machine->spaces;
    Mm& mm = *t.task->mm;
    switch (op.kind) {
      case Kind::mmap: {
        uint64_t pages = 1 + op.a % (op.b % 3 == 0 ? 1000 : 60);
        if (promised() + pages > budget_) return;
        Reserve hold(reserved_, pages);
        MmapRequest request{.length = pages << PAGE_SHIFT,
                            .prot = op.b % 8 == 1 ? prot_of(op.b / 8) : VM_READ | VM_WRITE};
        if (op.c % 5 == 0)
          if (const auto r = range_of(t, op, 40)) {
            request.addr = r->address();
            request.place = MmapRequest::Place::fixed;
          }
        put_mapping(t, request, RefPage{.prot = request.prot});
        return;
      }
      case Kind::mmap_file: {
        RefFile& f = disk_file(op.a);
        const uint64_t pages = 1 + op.b % 40;
        const bool shared = op.c % 2 == 0 && c_.uffd == 0;
        const uint64_t pgoff = (op.c >> 3) % f.max_pages;
        const uint64_t prot = prot_of(op.c >> 1);
        if (!shared && promised() + pages > budget_) return;
        Reserve hold(reserved_, pages);
        MmapRequest request{.length = pages << PAGE_SHIFT,
                            .prot = prot,
                            .sharing = shared ? MmapRequest::Sharing::shared : MmapRequest::Sharing::private_,
                            .file = f.file,
                            .pgoff = pgoff};
        put_mapping(
            t, request,
            RefPage{.prot = prot, .file = static_cast<int>(op.a % DISK_FILES), .pgoff = pgoff, .shared = shared});
        return;
      }
      case Kind::mmap_shared: {
        const uint64_t pages = 1 + op.a % (op.b % 4 == 0 ? 400 : 60);
        if (c_.uffd != 0 || promised() + pages > budget_) return;
        Reserve hold(reserved_, pages);
        const int file = static_cast<int>(files_.size());
        files_.emplace_back(pages, pages);
        const uint64_t prot = op.b % 8 == 1 ? prot_of(op.b / 8) : VM_READ | VM_WRITE;
        put_mapping(t, {.length = pages << PAGE_SHIFT, .prot = prot, .sharing = MmapRequest::Sharing::shared},
                    RefPage{.prot = prot, .file = file, .shared = true});
        return;
      }
      case Kind::munmap: {
        const auto r = range_of(t, op, 50);
        if (!r) return;
        if (as_expected(t, "munmap", Errno::ok, error_of(spaces.munmap(mm, r->address(), r->bytes())), *r))
          erase(t, r->start, r->pages);
        return;
      }
      case Kind::mremap: return mremap(t, op);
      case Kind::mprotect: {
        const auto r = range_of(t, op, 40);
        if (!r) return;
        const uint64_t prot = prot_of(op.c >> 4);
        uint64_t more = 0;
        for (auto it = t.pages.lower_bound(r->start); it != t.pages.end() && it->first < r->start + r->pages; ++it)
          more += it->second.file >= 0 ? 1 : 0;
        if ((prot & VM_WRITE) != 0 && promised() + more > budget_) return;
        Reserve hold(reserved_, more);
        const uint64_t end = first_hole(t, *r);
        const Errno expected = end < r->start + r->pages ? Errno::nomem : Errno::ok;
        const bool lucky =
            as_expected(t, "mprotect", expected, error_of(spaces.mprotect(mm, r->address(), r->bytes(), prot)), *r);
        if (!lucky) return;
        if (expected == Errno::nomem && failures()) return learn(t, r->start, r->pages);
        for (uint64_t vpn = r->start; vpn < end; ++vpn) t.pages[vpn].prot = prot;
        return;
      }
      case Kind::store:
      case Kind::load: {
        const auto r = range_of(t, op, op.c % 4 == 1 ? 1500 : 60);
        if (!r) return;
        const uint8_t mask = op.c % 3 == 0 ? static_cast<uint8_t>(1u << (op.c / 3 % PARTS)) : 0xff;
        for (uint64_t vpn = r->start; vpn < r->start + r->pages && failure_.empty() && !dying(t); ++vpn) {
          touch(t, vpn, op.kind == Kind::store, tagged() ? 0xff : mask, word_of(op));
          m_->world.cond_resched();
        }
        return;
      }
      case Kind::dontneed: {
        const auto r = range_of(t, op, 60);
        if (!r) return;
        Errno expected = Errno::ok;
        std::vector<uint64_t> gone;
        for (uint64_t vpn = r->start; vpn < r->start + r->pages; ++vpn) {
          const auto it = t.pages.find(vpn);
          if (it == t.pages.end()) {
            expected = Errno::nomem;
          } else if (it->second.locked) {
            expected = Errno::inval;
            break;
          } else {
            gone.push_back(vpn);
          }
        }
        if (!as_expected(t, "madvise", expected,
                         error_of(spaces.madvise(mm, r->address(), r->bytes(), Advice::dontneed)), *r))
          return;
        for (const uint64_t vpn : gone) {
          RefPage& page = t.pages[vpn];
          page.own = page.vague = page.lazy = false;
          page.unknown = 0;
          page.words = {};
        }
        return;
      }
      case Kind::lazyfree: return advise(t, op, Advice::free);
      case Kind::cold: return advise(t, op, Advice::cold);
      case Kind::pageout: return advise(t, op, Advice::pageout);
      case Kind::mergeable: return mergeable(t, op);
      case Kind::ksm: return ksm(op);
      case Kind::mlock: return mlock(t, op);
      case Kind::mlockall: return mlockall(t, op);
      case Kind::munlockall: {
        t.locks_future = false;
        if (as_expected(t, "munlockall", Errno::ok, error_of(spaces.munlockall(*t.task)), everything(t)))
          for (auto& [vpn, page] : t.pages) page.locked = false;
        return;
      }
      case Kind::munlock: {
        const auto r = range_of(t, op, 60);
        if (!r) return;
        const uint64_t end = first_hole(t, *r);
        const Errno expected = end < r->start + r->pages ? Errno::nomem : Errno::ok;
        if (!as_expected(t, "munlock", expected, error_of(spaces.munlock(*t.task, r->address(), r->bytes())), *r))
          return;
        if (expected == Errno::nomem && failures()) return learn(t, r->start, r->pages);
        for (uint64_t vpn = r->start; vpn < end; ++vpn) t.pages[vpn].locked = false;
        return;
      }
      case Kind::brk: return brk(t, op);
      case Kind::file_read: {
        RefFile& f = disk_file(op.a);
        const uint64_t unit = tagged() ? PARTS : 1;
        const uint64_t from = op.b % (f.max_pages * PARTS / unit) * unit;
        read_file(f, from, (1 + op.c % (tagged() ? 16 : 80)) * unit);
        return;
      }
      case Kind::file_write: return write_file(t, op);
      case Kind::fsync: {
        const Result<void> r = m_->machine->files.fsync(*disk_file(op.a).file);
        if (!r && !dying(t) && !(c_.io_errors != 0 && r.error() == Errno::io) &&
            !(failures() && r.error() == Errno::nomem))
          fail("%s fsync: %s", t.name.c_str(), errno_name(r.error()));
        return;
      }
      case Kind::fork: return fork(t);
      case Kind::birth: {
        if (alive() + births_ >= c_.tasks) return;
        ++births_;
        Result<Task*> made = m_->machine->task_create("t", nullptr);
        --births_;
        if (made)
          adopt_task(m_->own(**made), "t" + std::to_string(tasks_.size() + 1));
        else if (!failures() && !dying(t))
          fail("no memory for a task");
        return;
      }
      case Kind::exit:
        if (alive() > 1 && op.a % 2 == 0) leave(t);
        return;
      case Kind::kill: {
        RefTask& victim = *tasks_[op.a % tasks_.size()];
        if (victim.gone || alive() < 2) return;
        victim.may_die = true;
        m_->machine->task_kill(*victim.task);
        return;
      }
      case Kind::kmalloc: {
        for (uint64_t i = 0; i < 1 + op.a % 60; ++i) {
          const size_t size = op.b % 4 == 0 ? 1 + op.b / 4 % 8192 : 1 + op.b / 4 % 600;
          if (kernel_bytes_ + size > (c_.ram << PAGE_SHIFT) / 24) return;
          void* p = m_->machine->slab.kmalloc(size, GFP_KERNEL);
          if (p == nullptr) {
            if (!failures() && !dying(t)) fail("kmalloc(%zu): no memory", size);
            return;
          }
          std::memset(p, static_cast<int>(size & 0xff), size);
          objects_.push_back({static_cast<std::byte*>(p), size});
          kernel_bytes_ += size;
        }
        return;
      }
      case Kind::kfree:
        for (uint64_t i = 0; i < 1 + op.a % 60 && !objects_.empty(); ++i) {
          std::swap(objects_[(op.b + i * 7) % objects_.size()], objects_.back());
          auto [p, size] = objects_.back();
          objects_.pop_back();
          for (size_t k = 0; k < size; ++k)
            if (p[k] != static_cast<std::byte>(size & 0xff))
              return fail("an object of %zu bytes was overwritten at %zu", size, k);
          kernel_bytes_ -= size;
          m_->machine->slab.kfree(p);
        }
        return;
      case Kind::vmalloc: {
        if (areas_.size() > 3) {
          const VirtAddr area = areas_.back();
          areas_.pop_back();
          m_->machine->vmalloc.vfree(area);
          return;
        }
        Result<VirtAddr> area = m_->machine->vmalloc.vmalloc(Bytes(1 + op.a % 40000));
        if (area)
          areas_.push_back(*area);
        else if (!failures() && !dying(t))
          fail("vmalloc: %s", errno_name(area.error()));
        return;
      }
      case Kind::sleep: m_->world.schedule_timeout(Nanos(op.a % 16 == 0 ? 6'000'000'000 : op.a % 3'000'000)); return;
      case Kind::pin: return pin(t, op);
      case Kind::balloon: {
        if (swap() != Swap::disk || areas_on() == 0 || changing_swap_) return;
        const int64_t now = m_->machine->pages.managed_pages().v;
        const int64_t pages = ballooned_ != 0 ? -ballooned_ : static_cast<int64_t>(c_.ram / 16);
        ballooned_ += pages;
        const int64_t reached = m_->machine->set_ram(PageCount(now - pages)).v;
        ballooned_ += now - pages - reached;  // what it did not reach
        return;
      }
      case Kind::swapoff: return swapoff(t, op);
      case Kind::swapon: return swapon(t, op);
      case Kind::round:
      case Kind::count: return;
    }
  }

  [[nodiscard]] static uint64_t first_hole(const RefTask& t, const Range& r) {
    uint64_t vpn = r.start;
    for (auto it = t.pages.find(vpn); it != t.pages.end() && it->first == vpn && vpn < r.start + r.pages; ++it) ++vpn;
    return vpn;
  }

  void put_mapping(RefTask& t, const MmapRequest& request, RefPage page) {
    const uint64_t pages = request.length >> PAGE_SHIFT;
    page.locked = t.locks_future;
    if (page.locked && !may_lock(pages)) return;
    Reserve hold(reserved_locked_, page.locked ? pages : 0);
    page.vague = page.locked && copied_by_mlock(page);
    Result<VirtAddr> at = m_->machine->spaces.mmap(*t.task->mm, request);
    if (dying(t)) return;
    if (!at) {
      if (failures() && at.error() == Errno::nomem) {
        ++totals.errors;
        if (request.place == MmapRequest::Place::fixed) learn(t, request.addr.v >> PAGE_SHIFT, pages);
        return;
      }
      return fail("%s mmap %lu pages: %s", t.name.c_str(), pages, errno_name(at.error()));
    }
    const uint64_t start = at->v >> PAGE_SHIFT;
    if ((at->v & ~PAGE_MASK) != 0) return fail("mmap gave %#lx", at->v);
    if (request.place == MmapRequest::Place::fixed) {
      if (*at != request.addr) return fail("mmap at %#lx gave %#lx", request.addr.v, at->v);
      erase(t, start, pages);
    } else if (!all_free(t, start, pages)) {
      return fail("%s mmap of %lu pages gave %#lx, where something is", t.name.c_str(), pages, at->v);
    }
    for (uint64_t i = 0; i < pages; ++i) {
      t.pages.emplace(start + i, page);
      if (page.file >= 0) ++page.pgoff;
    }
  }

  /// Most pages have a content of their own; some are zeros, some of a few that many have.
  uint64_t word_of(const Op& op) {
    if (op.c % 16 == 5) return 0;
    return op.c % 16 < 2 ? 1 + op.c / 16 % 3 : ++next_word_;
  }
  /// After each step: any page of the task holds what it should.
  void glance(RefTask& t) {
    if (t.pages.empty() || !failure_.empty()) return;
    auto it = t.pages.begin();
    std::advance(it, choice_.below(t.pages.size()));
    touch(t, it->first, false, 0, 0);
  }

  [[nodiscard]] bool has_ksm() const {
    return c_.uffd == 0 && static_cast<KernelEra>(c_.kernel) != KernelEra::linux_2_6_20;
  }
  /// No page changes its content.
  void mergeable(RefTask& t, const Op& op) {
    const auto r = range_of(t, op, 200);
    if (!r || !has_ksm()) return;
    const Advice advice = op.c % 5 == 0 ? Advice::unmergeable : Advice::mergeable;
    const Errno expected = first_hole(t, *r) < r->start + r->pages ? Errno::nomem : Errno::ok;
    (void)as_expected(t, "madvise", expected,
                      error_of(m_->machine->spaces.madvise(*t.task->mm, r->address(), r->bytes(), advice)), *r);
  }
  /// ksmd works, or somebody does its work, or what was merged is taken apart.
  void ksm(const Op& op) {
    if (!has_ksm()) return;
    Ksm& ksm = m_->machine->ksm;
    const unsigned what = op.a % 8;
    if (what > 2) return ksm.ksm_do_scan(1 + op.b % 400);
    ksm.set_pages_to_scan(1 + op.b % 200);
    const Result<void> run = ksm.set_run(static_cast<Ksm::Run>(what), &m_->world);
    if (!run && !failures() && !fatal_signal_pending()) fail("ksm run %u: %s", what, errno_name(run.error()));
  }

  /// free, cold, pageout: no page changes its content, but for those that may be gone.
  void advise(RefTask& t, const Op& op, Advice advice) {
    const auto r = range_of(t, op, 60);
    if (!r || static_cast<KernelEra>(c_.kernel) != KernelEra::linux_4_14) return;
    Errno expected = Errno::ok;
    std::vector<uint64_t> may_go;
    for (uint64_t vpn = r->start; vpn < r->start + r->pages; ++vpn) {
      const auto it = t.pages.find(vpn);
      if (it == t.pages.end()) {
        expected = Errno::nomem;
      } else if (it->second.locked || (advice == Advice::free && it->second.file >= 0)) {
        expected = Errno::inval;
        break;
      } else {
        may_go.push_back(vpn);
      }
    }
    // They may go as soon as the call goes on, and whatever comes of it.
    if (advice == Advice::free)
      for (const uint64_t vpn : may_go) t.pages[vpn].lazy = true;
    (void)as_expected(t, "madvise", expected,
                      error_of(m_->machine->spaces.madvise(*t.task->mm, r->address(), r->bytes(), advice)), *r);
  }

  void mremap(RefTask& t, const Op& op) {
    const auto r = range_of(t, op, 30);
    if (!r) return;
    const uint64_t pages = 1 + op.c / 16 % 50;
    const bool may_move = op.c % 3 != 0;
    const uint64_t extra = pages > r->pages ? pages - r->pages : 0;
    if (promised() + extra > budget_) return;
    const auto first = t.pages.find(r->start);
    const bool stays = first != t.pages.end() && first->second.locked;
    if (stays && !may_lock(extra)) return;
    Reserve hold(reserved_, extra);
    Reserve hold_locked(reserved_locked_, stays ? extra : 0);
    Machine& machine = *m_->machine;
    Mm& mm = *t.task->mm;
    const VmArea* vma = machine.vmas.vma_lookup(mm, r->address());
    const bool in_one = vma != nullptr && vma->vm_end >= r->address() + r->bytes();
    Errno expected = Errno::ok;
    if (first == t.pages.end() || (extra != 0 && !in_one))
      expected = Errno::fault;
    else if (extra != 0 && !may_move && !all_free(t, r->start + r->pages, extra))
      expected = Errno::nomem;
    // The reference knows no VMAs, but that one of the machine's covers only pages that are alike.
    if (in_one && first != t.pages.end()) {
      const RefPage& like = first->second;
      for (uint64_t i = 1; i < r->pages; ++i) {
        const auto it = t.pages.find(r->start + i);
        if (it == t.pages.end() || it->second.prot != like.prot || it->second.file != like.file ||
            it->second.locked != like.locked || it->second.shared != like.shared ||
            (like.file >= 0 && it->second.pgoff != like.pgoff + i))
          return fail("%s: a VMA covers pages %#lx and %#lx, which differ", t.name.c_str(), r->start, r->start + i);
      }
    }
    Result<VirtAddr> at = machine.spaces.mremap(mm, r->address(), r->bytes(), pages << PAGE_SHIFT,
                                                may_move ? AddressSpaces::MayMove::yes : AddressSpaces::MayMove::no);
    if (!as_expected(t, "mremap", expected, error_of(at), {r->start, std::max(r->pages, pages)}) ||
        expected != Errno::ok)
      return;
    const uint64_t start = at->v >> PAGE_SHIFT;
    if (extra == 0) {
      if (start != r->start)
        return fail("%s mremap to fewer pages moved %#lx to %#lx", t.name.c_str(), r->start, start);
      return erase(t, r->start + pages, r->pages - pages);
    }
    const bool room = all_free(t, r->start + r->pages, extra);
    if (start == r->start ? !room : !may_move || !all_free(t, start, pages))
      return fail("%s mremap of %#lx to %lu pages gave %#lx, where something is", t.name.c_str(), r->start, pages,
                  start);
    std::vector<RefPage> moved;
    for (uint64_t i = 0; i < r->pages; ++i) moved.push_back(t.pages[r->start + i]);
    RefPage fresh = moved.front();
    fresh.own = fresh.lazy = false;
    fresh.vague = fresh.locked && copied_by_mlock(fresh);
    fresh.unknown = 0;
    fresh.words = {};
    erase(t, r->start, r->pages);
    for (uint64_t i = 0; i < pages; ++i) {
      fresh.pgoff = moved.front().pgoff + i;
      t.pages.emplace(start + i, i < r->pages ? moved[i] : fresh);
    }
  }

  /// A private page of a file that may be written.
  [[nodiscard]] bool copied_by_mlock(const RefPage& page) const {
    return page.file >= 0 && !page.shared && ((page.prot & VM_WRITE) != 0 || c_.uffd != 0);
  }

  void mlock(RefTask& t, const Op& op) {
    const auto r = range_of(t, op, 40);
    if (!r || !may_lock(r->pages)) return;
    Reserve hold(reserved_locked_, r->pages);
    const uint64_t end = first_hole(t, *r);
    const bool hole = end < r->start + r->pages;
    Errno expected = hole ? Errno::nomem : Errno::ok;
    for (uint64_t vpn = r->start; vpn < end; ++vpn) t.pages[vpn].locked = true;
    bool moving = false;  // the end of a file moves: whether its pages are there is anybody's guess
    if (!hole) {
      for (uint64_t vpn = r->start; vpn < end; ++vpn) {
        RefPage& page = t.pages[vpn];
        if (page.prot == 0) expected = Errno::nomem;
        if (page.files()) {
          RefFile& f = files_[static_cast<size_t>(page.file)];
          if ((f.resizing & 1) != 0) moving = true;
          if (page.pgoff >= f.size_pages()) expected = Errno::nomem;
        }
        if (expected != Errno::ok) break;
        if (copied_by_mlock(page) && !page.own) page.vague = true;
      }
    }
    std::vector<uint32_t> sizes;
    for (RefFile& f : files_) sizes.push_back(f.resizing);
    const Errno found = error_of(m_->machine->spaces.mlock(*t.task, r->address(), r->bytes()));
    for (size_t i = 0; i < sizes.size(); ++i) moving |= files_[i].resizing != sizes[i];
    if (dying(t)) return;
    if (moving && (found == Errno::nomem || found == Errno::ok)) {
      learn(t, r->start, r->pages);
      return;
    }
    // An error of the device or no memory: all are VM_LOCKED, some are not there.
    if (as_expected(t, "mlock", expected, found, *r) && hole && failures()) learn(t, r->start, r->pages);
    for (auto it = t.pages.lower_bound(r->start); it != t.pages.end() && it->first < r->start + r->pages; ++it)
      if (it->second.vague && copied_by_mlock(it->second) && found == Errno::ok) {
        it->second.vague = false;
        it->second.own = true;
        it->second.unknown = 0xff;
      }
  }

  [[nodiscard]] static Range everything(const RefTask& t) {
    if (t.pages.empty()) return {};
    const uint64_t first = t.pages.begin()->first;
    return {first, t.pages.rbegin()->first + 1 - first};
  }
  void mlockall(RefTask& t, const Op& op) {
    const bool current = op.a % 4 != 0, future = op.a % 4 < 2;
    if (current && !may_lock(t.pages.size())) return;
    Reserve hold(reserved_locked_, current ? t.pages.size() : 0);
    t.locks_future = future;
    // What cannot be brought in is left out, and nobody says what that is.
    for (auto& [vpn, page] : t.pages) {
      if (!current) break;
      page.locked = true;
      if (copied_by_mlock(page) && !page.own) page.vague = true;
    }
    const Errno found =
        error_of(m_->machine->spaces.mlockall(*t.task, current ? AddressSpaces::Lock::yes : AddressSpaces::Lock::no,
                                              future ? AddressSpaces::LockFuture::yes : AddressSpaces::LockFuture::no));
    (void)as_expected(t, "mlockall", Errno::ok, found, everything(t));
  }

  /// What a device works on cannot be moved meanwhile: some of the task's pages, while others go on.
  void pin(RefTask& t, const Op& op) {
    const auto r = range_of(t, op, 12);
    if (!r || c_.uffd == 0) return;
    std::vector<VirtAddr> pinned;
    for (uint64_t vpn = r->start; vpn < r->start + r->pages && failure_.empty() && !dying(t); ++vpn) {
      touch(t, vpn, false, 0, 0);
      const VirtAddr at(vpn << PAGE_SHIFT);
      if (m_->mmu->uffd().lookup(*t.task->mm, at) == nullptr) continue;
      m_->mmu->uffd().pin(*t.task->mm, at);
      pinned.push_back(at);
    }
    m_->world.schedule_timeout(Nanos(op.b % 2'000'000));
    for (const VirtAddr at : pinned) m_->mmu->uffd().unpin(*t.task->mm, at);
  }

  /// Only while what there is fits in what stays; nobody is promised more meanwhile.
  void swapoff(RefTask& t, const Op& op) {
    if (m_->swaps.empty() || changing_swap_ || ballooned_ != 0) return;
    const size_t which = op.a % m_->swaps.size();
    MachineFixture::Swap& area = *m_->swaps[which];
    const uint64_t less = budget(areas_on() & ~(1u << which));
    if (!area.type || promised() + locked() > less) return;
    changing_swap_ = true;
    budget_ = less;
    const Errno e = error_of(m_->machine->swapon.swapoff(*area.type));
    if (e == Errno::ok) {
      area.type.reset();
      ++totals.swapoffs;
    } else {
      budget_ = budget(areas_on());
      ++totals.errors;
      // Memory may be short for a moment: then the area stays as it was.
      const bool excused = dying(t) || e == Errno::nomem || e == Errno::busy || (c_.io_errors != 0 && e == Errno::io);
      if (!excused) fail("%s swapoff: %s", t.name.c_str(), errno_name(e));
    }
    changing_swap_ = false;
  }
  void swapon(RefTask& t, const Op& op) {
    if (m_->swaps.empty() || changing_swap_) return;
    MachineFixture::Swap& area = *m_->swaps[op.a % m_->swaps.size()];
    if (area.type) return;
    changing_swap_ = true;
    Result<unsigned> on = m_->machine->swapon.swapon(*area.device, op.b % 2 == 0 ? -1 : static_cast<int>(op.b % 100));
    if (on)
      area.type = *on;
    else if (!dying(t) && !failures())
      fail("%s swapon: %s", t.name.c_str(), errno_name(on.error()));
    budget_ = budget(areas_on());
    changing_swap_ = false;
  }

  void brk(RefTask& t, const Op& op) {
    Mm& mm = *t.task->mm;
    const uint64_t heap = t.brk - t.start_brk;
    const bool grows = op.a % 3 != 0 || heap == 0;
    const uint64_t n = 1 + op.b % 100;
    const uint64_t want = grows ? t.brk + n : t.brk - std::min(n, heap);
    if (grows && (promised() + n > budget_ || (t.locks_future && !may_lock(n)))) return;
    Reserve hold(reserved_, grows ? n : 0);
    Reserve hold_locked(reserved_locked_, grows && t.locks_future ? n : 0);
    const uint64_t expected = !grows || all_free(t, t.brk, n + 1) ? want : t.brk;
    const uint64_t found = m_->machine->spaces.brk(mm, VirtAddr(want << PAGE_SHIFT)).v >> PAGE_SHIFT;
    if (dying(t)) return;
    if (found != expected && !(failures() && found == t.brk))
      return fail("%s brk(%#lx): %#lx instead of %#lx", t.name.c_str(), want, found, expected);
    if (found > t.brk)
      for (uint64_t vpn = t.brk; vpn < found; ++vpn)
        t.pages.emplace(vpn, RefPage{.prot = VM_READ | VM_WRITE, .locked = t.locks_future});
    else
      erase(t, found, t.brk - found);
    t.brk = found;
  }

  void fork(RefTask& t) {
    if (alive() + births_ >= c_.tasks) return;
    uint64_t more = 0;
    for (const auto& [vpn, page] : t.pages) more += page.file < 0 || !page.shared ? 1 : 0;
    if (promised() + more > budget_) return;
    Reserve hold(reserved_, more);
    ++births_;
    Result<Task*> child = m_->machine->task_fork(*t.task);
    --births_;
    if (c_.uffd != 0) {
      if (child || child.error() != Errno::nosys) fail("fork where nothing can be write-protected");
      return;
    }
    if (!child) {
      if (!failures() && !dying(t)) fail("%s fork: %s", t.name.c_str(), errno_name(child.error()));
      ++totals.errors;
      return;
    }
    RefTask& copy = adopt_task(m_->own(**child), "t" + std::to_string(tasks_.size() + 1));
    copy.pages = t.pages;
    for (auto& [vpn, page] : copy.pages) page.locked = false;
    copy.brk = t.brk;
    copy.start_brk = t.start_brk;
  }

  // ---- content
  [[nodiscard]] bool same(const std::byte* bytes, uint64_t word) {
    std::byte expected[PART_BYTES];
    fill_part(word, expected);
    return std::memcmp(bytes, expected, PART_BYTES) == 0;
  }
  /// Compares what was read with the words; learns unknown parts.
  void compare(const char* who, uint64_t where, const Words& found, const std::byte* bytes, Words& words,
               uint8_t& unknown, uint8_t skip = 0) {
    ++totals.compared;
    for (unsigned p = 0; p < parts(); ++p) {
      if ((skip >> p & 1) != 0 && !tagged()) continue;
      if (bytes != nullptr && !same(bytes + p * PART_BYTES, found[p]))
        return fail("%s page %#lx part %u: bytes of no content, the first word is %#lx", who, where, p, found[p]);
      if ((unknown >> p & 1) != 0) {
        words[p] = found[p];
        unknown = static_cast<uint8_t>(unknown & ~(1u << p));
      } else if (found[p] != words[p]) {
        return fail("%s page %#lx part %u: %#lx instead of %#lx", who, where, p, found[p], words[p]);
      }
    }
  }

  void touch(RefTask& t, uint64_t vpn, bool write, uint8_t mask, uint64_t word) {
    ++totals.touches;
    const VirtAddr address(vpn << PAGE_SHIFT);
    auto it = t.pages.find(vpn);
    RefPage* page = it != t.pages.end() ? &it->second : nullptr;
    RefFile* f = page != nullptr && page->file >= 0 ? &files_[static_cast<size_t>(page->file)] : nullptr;
    const bool of_file = f != nullptr && !page->own;
    const uint64_t at = page != nullptr ? page->pgoff : 0;
    const bool in_file = f != nullptr && at < f->max_pages;
    uint32_t before = 0, resizing = 0;
    FaultResult expected = FaultResult::done;
    if (page == nullptr || (write ? (page->prot & VM_WRITE) == 0 : page->prot == 0))
      expected = FaultResult::sigsegv;
    else if (of_file && at >= f->size_pages())
      expected = FaultResult::sigbus;
    if (of_file) {
      resizing = f->resizing;
      if (in_file) before = f->changing[at];
      if (write && page->shared && in_file && (before & 1) != 0) return;  // somebody else is changing it
    }
    // Behind the end too: the end may move before the store comes.
    const bool shared_write = write && of_file && page->shared && in_file && expected != FaultResult::sigsegv;
    const uint8_t behind = shared_write ? f->behind_end(at) : uint8_t{0};
    if (shared_write) ++f->changing[at];
    Words found{};
    std::byte bytes[PAGE_SIZE];
    FaultResult r = FaultResult::done;
    if (tagged()) {
      r = write ? m_->mmu->write_tag(*t.task, address, word) : m_->mmu->read_tag(*t.task, address, found[0]);
    } else if (write) {
      unsigned first = 0, last = PARTS - 1;
      if (mask != 0xff)
        while ((mask >> first & 1) == 0) ++first;
      if (mask != 0xff) last = first;
      for (unsigned p = first; p <= last; ++p) fill_part(word, bytes + p * PART_BYTES);
      r = m_->mmu->copy_to_user(*t.task, address + first * PART_BYTES, bytes + first * PART_BYTES,
                                (last - first + 1) * PART_BYTES);
    } else {
      r = m_->mmu->copy_from_user(*t.task, bytes, address, PAGE_SIZE);
      for (unsigned p = 0; p < PARTS; ++p) std::memcpy(&found[p], bytes + p * PART_BYTES, sizeof found[p]);
    }
    if (r == FaultResult::done && shared_write) {
      for (unsigned p = 0; p < parts(); ++p)
        if ((mask >> p & 1) != 0) f->pages[at][p] = word;
      // Behind the end, while the end moves, it may be cleared after the store.
      f->unknown[at] = static_cast<uint8_t>((f->unknown[at] & ~mask) | (mask & behind));
    }
    if (shared_write) ++f->changing[at];
    if (r == FaultResult::killed || dying(t)) {
      if (!dying(t)) fail("%s: killed by nobody at %#lx", t.name.c_str(), address.v);
      return;
    }
    if (r != expected) {
      const bool resized = of_file && ((resizing & 1) != 0 || f->resizing != resizing);
      // A private copy stays when the file shrinks to before it: truncation takes only the file's own pages.
      if (page != nullptr && page->vague && r == FaultResult::done && expected == FaultResult::sigbus) return;
      if (resized && (r == FaultResult::sigbus || r == FaultResult::done)) {
        if (!page->shared && (write || c_.uffd != 0)) page->vague = true;
        return;
      }
      if (c_.io_errors != 0 && expected == FaultResult::done && r == FaultResult::sigbus) {
        ++totals.errors;
        return;
      }
      return fail("%s %s of %#lx: %s instead of %s", t.name.c_str(), write ? "store" : "load", address.v, name(r),
                  name(expected));
    }
    if (r != FaultResult::done) return;
    if (f != nullptr && f->file == nullptr) ++totals.shared;
    if (write) {
      if (f != nullptr && page->shared) return;
      if (of_file && mask != 0xff) {
        // The rest was copied from the file in the course of the store.
        page->words = f->pages[at];
        page->unknown = (before & 1) != 0 || f->changing[at] != before ? 0xff : f->unknown[at] | f->behind_end(at);
      }
      // The rest of it is what it was, or zeros.
      if (page->lazy && mask != 0xff) page->unknown = 0xff;
      page->lazy = false;
      if (mask == 0xff) page->unknown = 0;
      if (mask == 0xff) page->vague = false;
      if (f != nullptr) page->own = true;
      for (unsigned p = 0; p < parts(); ++p)
        if ((mask >> p & 1) != 0) {
          page->words[p] = word;
          page->unknown = static_cast<uint8_t>(page->unknown & ~(1u << p));
        }
      return;
    }
    if (page->vague) return;
    if (page->lazy && std::all_of(found.begin(), found.begin() + parts(), [](uint64_t w) { return w == 0; })) {
      page->words = {};
      page->unknown = 0;
      page->lazy = false;
    }
    if (of_file && c_.uffd != 0) {
      // Where no page may be mapped twice, a look is a copy.
      page->own = true;
      page->words = f->pages[at];
      page->unknown = (before & 1) != 0 || f->changing[at] != before ? 0xff : f->unknown[at] | f->behind_end(at);
      compare(t.name.c_str(), vpn, found, tagged() ? nullptr : bytes, page->words, page->unknown);
    } else if (of_file) {
      if ((before & 1) != 0 || f->changing[at] != before) return;
      compare(t.name.c_str(), vpn, found, tagged() ? nullptr : bytes, f->pages[at], f->unknown[at], f->behind_end(at));
    } else {
      compare(t.name.c_str(), vpn, found, tagged() ? nullptr : bytes, page->words, page->unknown);
    }
  }
  static const char* name(FaultResult r) {
    switch (r) {
      case FaultResult::done: return "done";
      case FaultResult::killed: return "killed";
      case FaultResult::sigsegv: return "SIGSEGV";
      case FaultResult::sigbus: return "SIGBUS";
    }
    return "?";
  }

  /// `from` and `n` in parts.
  void read_file(RefFile& f, uint64_t from, uint64_t n) {
    const uint64_t end = std::min(from + n, f.max_pages * PARTS);
    std::vector<uint32_t> before;
    for (uint64_t page = from / PARTS; page * PARTS < end; ++page) before.push_back(f.changing[page]);
    const uint32_t resizing = f.resizing;
    const uint64_t size = f.size;
    const auto quiet = [&](uint64_t page) {
      const uint32_t b = before[page - from / PARTS];
      return (b & 1) == 0 && f.changing[page] == b;
    };
    const auto resized = [&] { return (resizing & 1) != 0 || f.resizing != resizing; };
    const auto excused = [&](Errno e) {
      const Task* me = current().task;
      return (me != nullptr && me->sigkill.load()) || (c_.io_errors != 0 && e == Errno::io) ||
             (failures() && e == Errno::nomem);
    };
    if (tagged()) {
      for (uint64_t page = from / PARTS; page * PARTS < end; ++page) {
        Result<uint64_t> tag = m_->machine->files.read_tag(*f.file, page);
        if (!tag) {
          if (excused(tag.error()) || resized() || (tag.error() == Errno::noent && page >= f.size_pages())) continue;
          return fail("read of file page %lu: %s", page, errno_name(tag.error()));
        }
        if (page >= f.size_pages()) {
          if (!resized()) return fail("read of file page %lu, behind the end", page);
          continue;
        }
        Words found{};
        found[0] = *tag;
        if (quiet(page)) compare("file", page, found, nullptr, f.pages[page], f.unknown[page]);
      }
      return;
    }
    std::vector<std::byte> bytes((end - from) * PART_BYTES);
    Result<uint64_t> got = m_->machine->files.read(*f.file, from * PART_BYTES, bytes.data(), bytes.size());
    if (!got) {
      if (!excused(got.error())) fail("read of file part %lu: %s", from, errno_name(got.error()));
      return;
    }
    const uint64_t expected = from >= size ? 0 : std::min(end, size) - from;
    if (*got != expected * PART_BYTES && !resized() && !(*got < expected * PART_BYTES && excused(Errno::io)) &&
        !(*got < expected * PART_BYTES && excused(Errno::nomem)))
      return fail("read of file part %lu: %lu bytes instead of %lu", from, *got, expected * PART_BYTES);
    for (uint64_t p = 0; p < *got / PART_BYTES; ++p) {
      const uint64_t page = (from + p) / PARTS, part = (from + p) % PARTS;
      if (!quiet(page)) continue;
      uint64_t word = 0;
      std::memcpy(&word, bytes.data() + p * PART_BYTES, sizeof word);
      if (!same(bytes.data() + p * PART_BYTES, word))
        return fail("file page %lu part %lu: bytes of no content, the first word is %#lx", page, part, word);
      if ((f.unknown[page] >> part & 1) != 0) {
        f.unknown[page] = static_cast<uint8_t>(f.unknown[page] & ~(1u << part));
        f.pages[page][part] = word;
      }
      if (word != f.pages[page][part])
        return fail("file page %lu part %lu: %#lx instead of %#lx", page, part, word, f.pages[page][part]);
      ++totals.compared;
    }
  }

  void write_file(RefTask& t, const Op& op) {
    RefFile& f = disk_file(op.a);
    const uint64_t unit = tagged() ? PARTS : 1;
    const uint64_t from = op.b % (f.max_pages * PARTS / unit) * unit;
    const uint64_t n = (1 + op.c % (tagged() ? 12 : 60)) * unit;
    const uint64_t end = std::min(from + n, f.max_pages * PARTS);
    for (uint64_t page = from / PARTS; page * PARTS < end; ++page)
      if ((f.changing[page] & 1) != 0) return;
    // Growing files fill what lies between: one at a time, so that the reference knows the end.
    const bool grows = end > f.size;
    if (grows && (f.resizing & 1) != 0) return;
    for (uint64_t page = from / PARTS; page * PARTS < end; ++page) ++f.changing[page];
    if (grows) ++f.resizing;
    if (grows && f.size % PARTS != 0) f.unknown[f.size / PARTS] |= f.behind_end(f.size / PARTS);
    const uint64_t word = ++next_word_;
    uint64_t done = 0;
    Errno error = Errno::ok;
    if (tagged()) {
      for (uint64_t page = from / PARTS; page * PARTS < end && error == Errno::ok; ++page) {
        error = error_of(m_->machine->files.write_tag(*f.file, page, word + page));
        if (error == Errno::ok) {
          f.pages[page][0] = word + page;
          f.unknown[page] = 0;
          done += PARTS;
        }
      }
    } else {
      std::vector<std::byte> bytes((end - from) * PART_BYTES);
      for (uint64_t p = 0; p < end - from; ++p) fill_part(word + p, bytes.data() + p * PART_BYTES);
      Result<uint64_t> wrote = m_->machine->files.write(*f.file, from * PART_BYTES, bytes.data(), bytes.size());
      error = error_of(wrote);
      if (wrote) done = *wrote / PART_BYTES;
      if (done != end - from && error == Errno::ok) error = Errno::intr;  // what stopped it is not said
      for (uint64_t p = 0; p < done; ++p) {
        const uint64_t page = (from + p) / PARTS;
        f.pages[page][(from + p) % PARTS] = word + p;
        f.unknown[page] = static_cast<uint8_t>(f.unknown[page] & ~(1u << (from + p) % PARTS));
      }
    }
    next_word_ += end - from + 64;
    if (error == Errno::ok) {
      f.size = std::max(f.size, end);
    } else {
      // The file is as long as it was. What others stored behind that end meanwhile is gone.
      f.size = f.file->f_inode->i_size.load() / PART_BYTES;
      for (uint64_t page = f.size_pages(); page < f.max_pages; ++page) f.pages[page] = {}, f.unknown[page] = 0;
    }
    if (grows) ++f.resizing;
    for (uint64_t page = from / PARTS; page * PARTS < end; ++page) ++f.changing[page];
    if (error == Errno::ok || dying(t)) return;
    ++totals.errors;
    if (!failures())
      fail("%s write of file part %lu: %lu of %lu parts, %s", t.name.c_str(), from, done, end - from,
           errno_name(error));
  }

  const Script& script_;
  Config c_;
  Random choice_;
  std::string failure_;
  size_t now_ = 0;
  std::unique_ptr<MachineFixture> m_;
  std::unique_ptr<LazyPressure> lazy_;
  std::vector<std::unique_ptr<RefTask>> tasks_;
  std::deque<RefFile> files_;  // DISK_FILES, then shared memory
  std::vector<std::pair<std::byte*, size_t>> objects_;
  std::vector<VirtAddr> areas_;
  uint64_t kernel_bytes_ = 0, budget_ = 0, reserved_ = 0, reserved_locked_ = 0, births_ = 0;
  uint64_t next_word_ = 0;
  int64_t ballooned_ = 0;
  bool changing_swap_ = false;
};

}  // namespace weir::model
