// src/arch/uffd/uffd_mmu.hpp
//
// The host's MMU as an architecture: no accessed bit, no dirty bit, no direct map of user frames, write protection for
// files' pages alone. A user frame is a token; its host page is in one place at a time, and Page::arch says where:
//
//   none, zero       --update_mmu_cache: COPY-->                   mapped
//   none             --kmap to fill-->                             bounce | place
//   bounce | place   --update_mmu_cache: COPY (place: MOVE)-->     mapped
//   mapped           --age_batch, flush_batch: MOVE-->             staged
//   mapped, a file's --kmap, keep_batch: MOVE-->                   staged
//   staged           --update_mmu_cache: COPY-->                   mapped        the slot is given back soon
//   staged           --freed-->  quarantined  --DONTNEED in batches-->  free
//   mapped           --flush_range: DONTNEED-->                    none
//
//   none     content undefined; zero: content is zeros; neither has a host page
//   bounce   a pool of pages from bootmem: hot, never unmapped. What is read into one is mapped by a COPY, which needs
//            no TLB shootdown; a MOVE does as soon as a second thread of the program runs. So the pool holds what
//            readahead has under way
//   place    the frame's place in the arena, as for kernel use; a free frame may have it resident
//   staged   a slot of the staging mapping: old pages, pages being written out. Never written to again: pipes and
//            sockets may hold them
//
// Invariant: each frame accounts for at most one host page. What is given back late is: a slot left behind by a COPY,
// of which there are at most SLACK and for which frames are kept back at boot.
//
// Locks: a window lock (2 MiB of addresses, hashed) is held over each host call on user addresses. Under it the PTE is
// read again: the page-table lock was dropped since, and DONTNEED or another fault may have come between. Who changes
// PTEs and then waits for the window lock (flush_range) finds what was mapped by those who read the PTE before.
//
// What the host refuses to move (a page pinned for I/O, or in memory that is not readable and writable now) stays
// mapped; Mmu::captured says so.
//
// A file's page is mapped at one address. A PTE that is not writable maps it write-protected (COPY with the flag; a
// MOVE would drop it), so that the first store faults; what is to be written out is moved out first. It leaves `mapped`
// under the window lock of its address, in the hands of who has the page lock, or of who zaps the range and has not.
#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernel/locks.hpp"
#include "mm/interfaces.hpp"
#include "mm/page_alloc.hpp"
#include "mm/pgtable.hpp"

namespace weir {

/// Counters; each by itself.
struct UffdStats {
  uint64_t copies = 0, zero_copies = 0;   ///< pages mapped in by UFFDIO_COPY; of them zero-filled
  uint64_t staged_back = 0;               ///< of `copies`, from staging: aged pages that were touched again
  uint64_t place_moves = 0;               ///< pages moved in from their place
  uint64_t moves = 0, moved_pages = 0;    ///< MOVE calls out, pages they took
  uint64_t pinned = 0;                    ///< times a page could not be moved out
  uint64_t cow_breaks = 0;                ///< runs shared by fork that had to be copied before they could be moved
  uint64_t flush_skipped = 0, again = 0;  ///< entries that had changed meanwhile; EAGAIN from the host
  uint64_t stale = 0;                     ///< host pages that were still there when their successor came
  uint64_t clean = 0, dirty = 0;          ///< answers of test_dirty
  uint64_t quarantine_flushes = 0, quarantined_pages = 0;
  uint64_t staged = 0, slack = 0;  ///< now: frames in staging; slots left behind
};

/// How bytes get from and to the host's page tables: descriptors and what they may do. Set before the Mmu is used; a
/// forked child sets it anew.
struct UffdDescriptors {
  int user = -1;  ///< managed addresses
  int staging = -1;
  bool must_wake = false;  ///< threads may sleep in a fault (thread delivery)
};

class UffdMmu final : public Mmu {
 public:
  /// Bounce pages: one frame in 64, within these.
  static constexpr unsigned MIN_BOUNCE_PAGES = 64, MAX_BOUNCE_PAGES = 1024;
  static constexpr unsigned WINDOW_SHIFT = 21;
  static constexpr unsigned NR_WINDOW_LOCKS = 256;
  static constexpr unsigned QUARANTINE_BATCH = 32;
  /// A fault costs 5 to 50 us, a page mapped with it 1.5.
  static constexpr unsigned FAULT_AROUND = 32;

  struct Options {
    std::byte* staging = nullptr;  ///< address space of `staging_slots` pages, registered with UffdDescriptors::staging
    uint32_t staging_slots = 0;    ///< at least the machine's frames + SLACK
    uint64_t start = 0, end = 0;   ///< managed addresses
    size_t reserve = 0;            ///< bytes that the embedder takes from the machine's memory: reserve()
    uint64_t secret[2] = {};       ///< key of the hashes
  };
  /// Slots that may be left behind by a COPY before they are given back, and frames kept back for them.
  static constexpr uint32_t SLACK = 128;

  explicit UffdMmu(const Options& options)
      : Mmu({.has_accessed = false,
             .has_dirty = false,
             .has_write_protect = false,
             .has_zero_page = false,
             .has_alias = false,
             .maps_files = true,
             .tracks_host_pages = true,
             .fault_around = FAULT_AROUND}),
        options_(options) {}
  UffdMmu(const UffdMmu&) = delete;
  UffdMmu& operator=(const UffdMmu&) = delete;

  void set_descriptors(const UffdDescriptors& fds) { fds_ = fds; }
  /// The machine is up: quarantined frames go back to `pages`; places that boot has touched are looked up.
  void booted(PageAllocator& pages);
  /// Memory of the machine for the embedder: Options::reserve bytes, page aligned, zero. From attach() on.
  [[nodiscard]] std::span<std::byte> reserve() const { return reserve_; }
  /// Takes the pages of files out of an unmapped range: their bytes may not have come out yet, and the range is about to
  /// be made inaccessible.
  void keep_range(VirtAddr start, VirtAddr end);
  [[nodiscard]] UffdStats stats() const;
  /// In a forked child: whoever held a lock is not here.
  void forget_waiters();
  /// Wakes threads that wait for the page of `address`, if threads can.
  void wake(VirtAddr address);

  /// What verify() found, and which addresses are the program's own (LiveMachine::give_up).
  class VerifyHost {
   public:
    virtual void broken(const char* what, uint64_t pfn, uint64_t expected, uint64_t found) = 0;
    [[nodiscard]] virtual bool managed(VirtAddr address) = 0;

   protected:
    ~VerifyHost() = default;
  };
  /// Host pages counted by the host against what Page::arch says. Nobody else is in the machine. Returns how many
  /// frames differ.
  unsigned verify(VerifyHost& host);
  /// Host pages resident now in the arena, the managed range and staging together.
  [[nodiscard]] uint64_t resident_pages() const;

  Result<void> attach(MemMap& mem, PageTables& tables, Bootmem& boot) override;
  Result<void> update_mmu_cache(Mm& mm, VirtAddr address, Pte pte, Page* page) override;
  void flush_batch(FlushBatch& batch) override;
  void age_batch(FlushBatch& batch) override;
  bool captured(Page& page) override;
  bool test_dirty(Page& page) override;
  void mark_clean(Page& page) override;
  void flush_range(Mm& mm, VirtAddr start, VirtAddr end) override;
  void keep_batch(FlushBatch& batch) override;
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
  // Page::arch: kind in the upper 3 bits, bounce page or slot below.
  enum class Kind : uint32_t { none, zero, bounce, place, mapped, staged };
  static constexpr uint32_t INDEX_BITS = 29, INDEX_MASK = (1u << INDEX_BITS) - 1;
  static uint32_t arch(const Page& page) { return __atomic_load_n(&page.arch, __ATOMIC_ACQUIRE); }
  static Kind kind(const Page& page) { return static_cast<Kind>(arch(page) >> INDEX_BITS); }
  static uint32_t index(const Page& page) { return arch(page) & INDEX_MASK; }
  static void set(Page& page, Kind kind, uint32_t index = 0) {
    __atomic_store_n(&page.arch, static_cast<uint32_t>(kind) << INDEX_BITS | index, __ATOMIC_RELEASE);
  }

  struct Hash {
    uint64_t low = 0, high = 0;  ///< both 0: none
    friend bool operator==(const Hash&, const Hash&) = default;
  };
  enum class Purpose : uint8_t { age, flush };
  enum class Stores : uint8_t { free, fault };

  [[nodiscard]] Mutex& window(VirtAddr address) { return windows_[(address.v >> WINDOW_SHIFT) % NR_WINDOW_LOCKS].lock; }
  [[nodiscard]] std::byte* slot_address(uint32_t slot) const {
    return options_.staging + (uint64_t{slot} << PAGE_SHIFT);
  }
  [[nodiscard]] std::byte* bounce_address(uint32_t i) const { return bounce_ + (uint64_t{i} << PAGE_SHIFT); }
  [[nodiscard]] uint64_t pfn(const Page& page) const { return mem_->pfn(page).v; }

  // where bytes are
  [[nodiscard]] std::byte* bytes(Page& page) const;  ///< null: none, zero, mapped
  [[nodiscard]] bool take_bounce(uint32_t& i);
  void give_bounce(uint32_t i);
  [[nodiscard]] bool resident(uint64_t pfn) const;
  void set_resident(uint64_t pfn, bool on);
  void drop_place(Page& page);
  [[nodiscard]] Hash hash_of(const Page& page, const std::byte* at) const;

  // in
  Result<void> copy_in(VirtAddr address, const std::byte* from, Stores stores);
  Result<void> try_copy_in(VirtAddr address, const std::byte* from, Stores stores);
  Result<void> place_in(VirtAddr address, Page& page, Stores stores);
  Result<void> protect(VirtAddr address, Stores stores);

  // out
  void move_out(FlushBatch& batch, Purpose purpose);
  [[nodiscard]] bool still_maps(const FlushEntry& entry, Purpose purpose) const;
  [[nodiscard]] bool mapped_at(const Page& page, VirtAddr address) const;
  void take_back(Page& page);
  void take_back_at(Page& page, VirtAddr address);
  void move_run(FlushEntry* const* run, unsigned n);
  void stay(FlushEntry& entry);
  [[nodiscard]] bool stale(Mm& mm, VirtAddr at) const;
  using WindowPages = std::bitset<1 << (WINDOW_SHIFT - PAGE_SHIFT)>;
  static size_t in_window(VirtAddr at) { return (at.v >> PAGE_SHIFT) % WindowPages().size(); }
  void take_back_gone(VirtAddr start, VirtAddr stop, const WindowPages& gone);
  void drop(VirtAddr start, uint64_t length);
  [[nodiscard]] unsigned take_slots(unsigned wanted, uint32_t& first);
  void give_slots(uint32_t first, unsigned n);
  [[nodiscard]] bool slot_taken(uint32_t slot) const WEIR_REQUIRES(staging_lock_);
  void mark_slot(uint32_t slot, bool taken) WEIR_REQUIRES(staging_lock_);
  void leave_behind(uint32_t slot);
  void give_to_host(std::byte* const* pages, unsigned n);
  void drain();

  Options options_;
  UffdDescriptors fds_;
  unsigned char secret_[192] = {};  // the hashes' key, stretched
  MemMap* mem_ = nullptr;
  PageTables* tables_ = nullptr;
  PageAllocator* pages_ = nullptr;  // set by booted()
  Mm* mm_ = nullptr;
  std::span<std::byte> reserve_;

  // Side tables, from bootmem: [frame].
  Hash* hashes_ = nullptr;                      // page lock
  std::atomic<uint64_t>* mapped_at_ = nullptr;  // where a mapped page is; page lock
  std::atomic<uint64_t>* resident_ = nullptr;   // bitmap: the place has a host page
  std::atomic<bool> maps_files_{false};         // a file's page has been mapped
  std::byte* bounce_ = nullptr;
  std::byte* zero_ = nullptr;                                               // a page of zeros
  uint32_t nr_bounce_ = 0;                                                  // a multiple of 64
  std::array<std::atomic<uint64_t>, MAX_BOUNCE_PAGES / 64> bounce_free_{};  // bitmap

  struct alignas(64) Window {
    Mutex lock{LockRank::window};
  };
  std::array<Window, NR_WINDOW_LOCKS> windows_;

  // Staging slots: bitmap, 1 = taken. Handed out upwards in runs; the search starts behind the last run and stays below
  // slots_used_, which grows when the slots below it are mostly taken: few slots in use, few of the host's page-table
  // pages.
  SpinLock staging_lock_{LockRank::arch};
  uint64_t* slot_map_ WEIR_GUARDED_BY(staging_lock_) = nullptr;
  uint32_t next_slot_ WEIR_GUARDED_BY(staging_lock_) = 0;
  uint32_t slots_limit_ WEIR_GUARDED_BY(staging_lock_) = 0;
  uint32_t slots_taken_ WEIR_GUARDED_BY(staging_lock_) = 0;

  // Freed frames whose host page lies in staging, linked by lru; slots left behind by COPY.
  SpinLock quarantine_lock_{LockRank::arch};
  PageList quarantine_ WEIR_GUARDED_BY(quarantine_lock_);
  std::array<uint32_t, SLACK> left_ WEIR_GUARDED_BY(quarantine_lock_) = {};
  uint32_t nr_left_ WEIR_GUARDED_BY(quarantine_lock_) = 0;
  uint32_t draining_left_ WEIR_GUARDED_BY(quarantine_lock_) = 0;  // taken out of left_, host pages not gone yet
  std::atomic<uint32_t> nr_quarantined_{0};
  std::atomic<bool> many_at_once_{true};  // the host takes several runs in one call

  struct Counters {
    std::atomic<uint64_t> copies{0}, zero_copies{0}, staged_back{0}, place_moves{0}, moves{0}, moved_pages{0},
        pinned{0}, cow_breaks{0}, flush_skipped{0}, again{0}, stale{0}, clean{0}, dirty{0}, quarantine_flushes{0},
        quarantined_pages{0};
  };
  Counters n_;
};

}  // namespace weir
