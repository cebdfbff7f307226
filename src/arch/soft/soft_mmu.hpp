// src/arch/soft/soft_mmu.hpp
//
// Hardware in software: walks the machine's own page tables, keeps a TLB per CPU, sets accessed and dirty bits.
//
//   access --TLB hit--> the frame's place                                        a few nanoseconds
//          --miss--> walk --right there--> accessed (dirty) bit, TLB --> place
//                         --not there--> fault handler (do_page_fault), again
//
// Like hardware, a TLB entry outlives its PTE until it is flushed: who forgets a flush reads and writes a frame that is
// somebody else's by now, and a test sees it. Unlike x86, a hit on a page whose accessed bit was cleared sets it again:
// so what is used is always seen as used, whatever the TLB's size and the order of events.
//
// A write entry is only made with the dirty bit set; so who clears a dirty bit flushes.
//
// Content: `bytes`: 4096 bytes at the frame's place in the arena. `tags`: one 64-bit word a frame, 0 = all zero; an
// access is to that word, whatever the offset in the page.
//
// With Model::uffd hardware is uffd_model.hpp's: a table of its own, told by update_mmu_cache; rights are those of the
// VMA, as the host's own mprotect would have it; no TLB.
//
// For the virtual world: one host thread; between the look into the TLB and the use of what it says nothing else runs.
#pragma once

#include <cstring>

#include "arch/soft/uffd_model.hpp"
#include "block/sim_disk.hpp"
#include "mm/bootmem.hpp"
#include "mm/fault.hpp"
#include "mm/interfaces.hpp"

namespace weir {

class SoftMmu final : public Mmu {
 public:
  enum class Model : uint8_t {
    hardware,  ///< accessed, dirty, write protection, zero page, aliases
    uffd,      ///< none of these: what the host's MMU can do as an architecture
  };
  struct Options {
    ContentKind content = ContentKind::bytes;
    Model model = Model::hardware;
    unsigned cpus = 1;
    UffdModel::Failures failures = {};  ///< of the uffd model
  };
  enum class Access : uint8_t { read = 0, write = 1 };
  using FaultHandler = FaultResult (*)(void* arg, Task& task, VirtAddr address, uint32_t error_code);

  explicit SoftMmu(const Options& options) : Mmu(caps_of(options.model)), options_(options) {
    uffd_.set_failures(options.failures);
  }
  SoftMmu(const SoftMmu&) = delete;
  SoftMmu& operator=(const SoftMmu&) = delete;

  /// Who serves faults. Set before the first access.
  void set_fault_handler(FaultHandler handler, void* arg) { handler_ = handler, handler_arg_ = arg; }
  void set_fault_handler(Fault& fault) {
    set_fault_handler(
        [](void* arg, Task& task, VirtAddr address, uint32_t error_code) {
          return static_cast<Fault*>(arg)->do_page_fault(task, address, error_code);
        },
        &fault);
  }

  // ---- a task's accesses, on the CPU that runs. `done`, or what the fault handler said.
  /// Where the byte at `address` is now (tags: the page's tag), for one load or store, to be made before anything else
  /// runs. Null: the fault handler refused; `result` says how.
  [[gnu::always_inline]] std::byte* access(Task& task, VirtAddr address, Access kind, FaultResult& result) {
    const uint64_t key = key_of(*task.mm, address);
    Entry& e = tlb_[this_cpu()].entries[slot_of(address)];
    if (__builtin_expect(e.key[static_cast<unsigned>(kind)] == key && accessed(*e.pte), 1)) return place_in(e, address);
    return access_slow(task, address, kind, result);
  }
  /// The page is there, readable or writable.
  FaultResult touch(Task& task, VirtAddr address, Access kind) {
    FaultResult result = FaultResult::done;
    (void)access(task, address, kind, result);
    return result;
  }
  /// An object that does not cross a page. bytes only.
  template <class T>
  FaultResult load(Task& task, VirtAddr address, T& value) {
    FaultResult result = FaultResult::done;
    if (const std::byte* place = access(task, address, Access::read, result)) std::memcpy(&value, place, sizeof value);
    return result;
  }
  template <class T>
  FaultResult store(Task& task, VirtAddr address, const T& value) {
    FaultResult result = FaultResult::done;
    if (std::byte* place = access(task, address, Access::write, result)) std::memcpy(place, &value, sizeof value);
    return result;
  }
  /// The page's tag. tags only.
  FaultResult read_tag(Task& task, VirtAddr address, uint64_t& tag) { return load(task, address, tag); }
  FaultResult write_tag(Task& task, VirtAddr address, uint64_t tag) { return store(task, address, tag); }
  /// Any range, page by page. bytes only. What was copied before a refusal stays.
  FaultResult copy_from_user(Task& task, void* to, VirtAddr from, size_t bytes);
  FaultResult copy_to_user(Task& task, VirtAddr to, const void* from, size_t bytes);

  struct Stats {
    uint64_t fills = 0;       ///< TLB entries made
    uint64_t faults = 0;      ///< calls of the fault handler
    uint64_t stale_hits = 0;  ///< hits on entries whose PTE maps that frame no more: a flush is still to come
  };
  [[nodiscard]] const Stats& stats() const { return stats_; }
  [[nodiscard]] ContentKind content() const { return options_.content; }
  /// Does a TLB hold a translation of the address?
  [[nodiscard]] bool tlb_holds(const Mm& mm, VirtAddr address) const;

  /// The uffd model, for pins, counts and proof.
  [[nodiscard]] UffdModel& uffd() { return uffd_; }

  // ---- Mmu
  Result<void> attach(MemMap& mem, PageTables& tables, Bootmem& boot) override;
  Result<void> update_mmu_cache(Mm& mm, VirtAddr address, Pte pte, Page* page) override;
  void flush_batch(FlushBatch& batch) override;
  void age_batch(FlushBatch& batch) override;
  bool captured(Page& page) override;
  bool test_dirty(Page& page) override;
  void mark_clean(Page& page) override;
  void flush_range(Mm& mm, VirtAddr start, VirtAddr end) override;
  void mm_created(Mm& mm) override;
  void mm_destroyed(Mm& mm) override;
  Content kmap(Page& page) override;
  void kunmap(Page& page) override;
  void clear_user_highpage(Page& page) override;
  void copy_user_highpage(Page& to, Page& from) override;
  void arch_alloc_page(Page& page, Order order, gfp_t gfp) override;
  bool arch_free_page(Page& page, Order order) override;
  void flush_quarantine() override;

 private:
  static constexpr unsigned TLB_ENTRIES = 512;  ///< direct mapped; a large L2 TLB of x86
  static constexpr unsigned VPN_BITS = 36;

  /// key[read], key[write] = the translation's key where it allows that, else 0. Mm ids begin at 1, so 0 is no key.
  struct Entry {
    uint64_t key[2] = {0, 0};
    std::byte* place = nullptr;  ///< the frame's bytes, or its tag
    const Pte* pte = nullptr;
  };
  struct Tlb {
    Entry entries[TLB_ENTRIES];
  };

  static uint64_t key_of(const Mm& mm, VirtAddr address) { return (mm.id << VPN_BITS) | (address.v >> PAGE_SHIFT); }
  static unsigned slot_of(VirtAddr address) { return (address.v >> PAGE_SHIFT) & (TLB_ENTRIES - 1); }
  [[nodiscard]] std::byte* place_in(const Entry& e, VirtAddr address) const {
    return e.place + (options_.content == ContentKind::bytes ? address.v & ~PAGE_MASK : 0);
  }
  static unsigned this_cpu() {
    const Thread* thread = engine_thread().thread;
    return thread != nullptr ? thread->cpu.v : 0;
  }
  static bool accessed(const Pte& pte) { return (__atomic_load_n(&pte.v, __ATOMIC_RELAXED) & _PAGE_ACCESSED) != 0; }

  std::byte* access_slow(Task& task, VirtAddr address, Access kind, FaultResult& result);
  std::byte* access_uffd(Task& task, VirtAddr address, Access kind, FaultResult& result);
  static Caps caps_of(Model model);
  [[nodiscard]] bool is_uffd() const { return options_.model == Model::uffd; }
  Entry* walk(const Mm& mm, VirtAddr address, Access kind, uint32_t& error_code);
  [[nodiscard]] std::byte* place_of(Pfn pfn) const {
    return options_.content == ContentKind::bytes ? mem_->address(pfn) : reinterpret_cast<std::byte*>(tags_ + pfn.v);
  }
  void flush_one(const Mm& mm, VirtAddr address);

  Options options_;
  MemMap* mem_ = nullptr;
  PageTables* tables_ = nullptr;
  uint64_t* tags_ = nullptr;  ///< [frame]
  FaultHandler handler_ = nullptr;
  void* handler_arg_ = nullptr;
  Stats stats_;
  UffdModel uffd_;
  Tlb tlb_[MAX_CPUS];
};

}  // namespace weir
