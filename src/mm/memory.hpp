// src/mm/memory.hpp
//
// Faults, copying and zapping of page tables. Linux: mm/memory.c 4.14; what 3.x and 2.6.20 do differently is at the
// end (Eras).
//
//   PTE       fault                                  then
//   none      no vm_ops: do_anonymous_page           zero page (read) or a new zeroed page
//   none      vm_ops: do_fault -> read, cow, shared  the file's page, or a copy of it
//   entry     do_swap_page                           the page of the slot
//   offset    until 3.x: do_nonlinear_fault          that page of the file
//   present   write, PTE read-only: do_wp_page       reused if nobody else has it, else copied
//   present   anything else                          old: young again (an access-flag fault)
//                                                    young: hardware is told again
//
// New pages are locked from allocation until hardware has them (update_mmu_cache): between "PTE set, lock dropped" and
// "mapped in hardware" another thread's fault on the same address finds a present PTE, waits for the page lock and
// looks again. Where hardware walks our tables itself (soft), that window is empty.
//
// If hardware does not take a new mapping (ENOMEM, EAGAIN), the PTE stays, valid and old: the next touch is an
// access-flag fault.
#pragma once

#include "mm/rmap.hpp"
#include "mm/swap_state.hpp"

namespace weir {

/// Pages and translations on their way out (munmap, exit, DONTNEED): translations are flushed before frames are freed,
/// and a page is only dirtied when nobody can write to it any more. Linux: struct mmu_gather.
struct MmuGather {
  static constexpr unsigned MAX = 128;
  explicit MmuGather(Mm& of) : mm(&of) {}
  Mm* mm;
  VirtAddr start{~uint64_t{0}}, end{0};  ///< what was cleared since the last flush
  struct Gone {
    Page* page = nullptr;  ///< with the mapping's reference
    VirtAddr address{};
    bool dirty = false;     ///< of a file page
    bool accessed = false;  ///< of a file page
  };
  Gone pages[MAX];
  unsigned nr = 0;
  SwpEntry entries[MAX];
  unsigned nr_entries = 0;
  [[nodiscard]] bool full() const { return nr == MAX || nr_entries == MAX; }
};

class MemoryEra;

class Memory {
 public:
  Memory(PageTables& tables, Vmas& vmas, Rmap& rmap, SwapCache& cache, SwapFiles& swap, Filemap& filemap,
         VmStat& vmstat, Mmu& mmu, KernelEra kernel = DEFAULT_KERNEL);
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  Result<void> init();  ///< the zero page, where the Mmu has one

  /// mmap_sem held for reading; dropped if VM_FAULT_RETRY or VM_FAULT_COMPLETED comes back. VmFault bits. PGFAULT counts
  /// every call, as in 4.14.
  uint32_t handle_mm_fault(VmArea& vma, VirtAddr address, uint32_t flags);

  /// fork: dst gets src's mappings; private writable ones become read-only on both sides. Both mmap_sems held for
  /// writing. Errors: ENOMEM; dst then has some of them.
  Result<void> copy_page_range(VmArea& dst, VmArea& src);
  /// Every page of [start, end) in vma leaves. mmap_sem held; reading suffices. (A fault on its way may then tell
  /// hardware of a PTE that is gone: an Mmu with mappings of its own looks at the PTE again, under the lock that
  /// flush_range takes too.)
  void zap_page_range(VmArea& vma, VirtAddr start, VirtAddr end);
  /// Every PTE of the file's pages in [holebegin, holebegin + holelen) goes, VM_LOCKED or not, and hardware's; holelen
  /// 0: to the end of all files. Byte offsets, whole pages. Private copies go too, or stay. May sleep. Linux 4.14.
  void unmap_mapping_range(AddressSpace& mapping, uint64_t holebegin, uint64_t holelen, EvenCows even_cows);
  /// The same, for who takes what is not its own (the OOM reaper).
  void unmap_page_range(VmArea& vma, VirtAddr start, VirtAddr end);
  /// All VMAs of a dying mm.
  void unmap_vmas(Mm& mm);
  /// Those of a list that left the tree (munmap): one flush for all.
  void unmap_vmas(Mm& mm, VmaList& vmas);
  /// Moves PTEs (mremap): from old to new addresses of the same pages. mmap_sem for writing. Errors: ENOMEM, nothing
  /// moved; also for a page that hardware cannot let go of now (it is pinned).
  Result<void> move_page_tables(VmArea& from, VirtAddr old_addr, VmArea& to, VirtAddr new_addr, uint64_t length);
  /// Rights changed (mprotect): PTEs lose what the VMA no longer grants. mmap_sem for writing.
  void change_protection(VmArea& vma, VirtAddr start, VirtAddr end);

  /// [address, address + size) of vma, nothing mapped there yet, maps the frames from pfn on, as the VMA allows. They
  /// are the caller's; they have no reverse map and are not counted. The VMA is VM_PFNMAP from now on. mmap_sem for
  /// writing. Errors: ENOMEM, some may be mapped; EINVAL for a part of a private mapping.
  Result<void> remap_pfn_range(VmArea& vma, VirtAddr address, Pfn pfn, uint64_t size);

  /// [start, start + size) of a nonlinear vma: what is mapped goes, and pages of the file from pgoff on come at their
  /// faults. mmap_sem for writing. Errors: ENOMEM, some of it done.
  Result<void> generic_file_remap_pages(VmArea& vma, VirtAddr start, uint64_t size, uint64_t pgoff);
  /// Pages [first, last] of the file leave a range of a nonlinear vma, and come back to the same addresses at their
  /// next faults. mmap_sem or i_mmap lock held.
  void zap_nonlinear_range(VmArea& vma, VirtAddr start, VirtAddr end, uint64_t first, uint64_t last);

  /// The page that is mapped there, present and read-only, is copied for this address (KSM). mmap_sem held. VmFault
  /// bits.
  uint32_t break_cow(VmArea& vma, VirtAddr address);

  [[nodiscard]] Page* zero_page() const { return zero_page_; }
  [[nodiscard]] Filemap& filemap() const { return filemap_; }
  [[nodiscard]] SwapCache& cache() const { return cache_; }
  [[nodiscard]] PageTables& tables() const { return tables_; }
  /// The page that a PTE maps and counts: null for none, swap entries, the zero page, devices' frames.
  [[nodiscard]] Page* vm_normal_page(Pte pte) const {
    return pte_present(pte) && !pte_special(pte) ? &tables_.pages().mem().page(pte_pfn(pte)) : nullptr;
  }

 private:
  friend class MemoryEra;

  /// One fault on its way. Linux: struct vm_fault.
  struct FaultContext {
    VmArea& vma;
    Mm& mm;
    VirtAddr address;      ///< page aligned
    uint32_t flags;        ///< FaultFlag
    uint64_t pgoff = 0;    ///< which page of the file
    Pte orig_pte{};        ///< what the fault was decided on
    Page* page = nullptr;  ///< the file's page: locked, referenced
    Page* cow_page = nullptr;
    [[nodiscard]] bool write() const { return (flags & FAULT_FLAG_WRITE) != 0; }
  };

  uint32_t handle_pte_fault(FaultContext& ctx);
  uint32_t do_anonymous_page(FaultContext& ctx);
  uint32_t file_fault(FaultContext& ctx);
  uint32_t read_fault(FaultContext& ctx);
  uint32_t cow_fault(FaultContext& ctx);
  uint32_t shared_fault(FaultContext& ctx);
  uint32_t ask_owner(FaultContext& ctx);
  uint32_t map_file_page(FaultContext& ctx);
  uint32_t set_file_pte(FaultContext& ctx, Page& page, PteLock& ptl, Pte& entry);
  uint32_t ask_mkwrite(FaultContext& ctx);
  uint32_t may_become_writable(FaultContext& ctx);
  uint32_t do_swap_page(FaultContext& ctx);
  uint32_t do_wp_page(FaultContext& ctx, PteLock ptl);
  [[nodiscard]] bool unmap_elsewhere(Page& page);
  uint32_t copy_unmapped(FaultContext& ctx, Page& page);
  uint32_t copy_page(FaultContext& ctx, Page* old_page);
  Pte reuse_page(FaultContext& ctx, PteLock& ptl);
  uint32_t reuse_shared_page(FaultContext& ctx, Page& page, PteLock ptl);
  uint32_t present_fault(FaultContext& ctx, PteLock ptl);

  // memory_around.cpp
  void swap_around(FaultContext& ctx);
  void map_cached(FaultContext& ctx, Page& page);
  [[nodiscard]] Page* cached_at(const FaultContext& ctx, Pte& pte);
  void file_around(FaultContext& ctx);
  bool map_cached_file_page(FaultContext& at, Page& page);
  void anonymous_around(FaultContext& ctx);
  bool map_anonymous(FaultContext& ctx, Page& page, uint32_t& ret);

  void cow_user_page(Page& to, Page& from);
  uint32_t make_known(FaultContext& ctx, Pte pte, Page& page);
  [[nodiscard]] bool lock_page_or_retry(Page& page, Mm& mm, uint32_t flags);
  [[nodiscard]] bool lock_still_page(Page& page, Mm& mm, uint32_t flags);
  void wait_for_its_disk(Page& page, Mm& mm);
  [[nodiscard]] Result<void> anon_vma_prepare(VmArea& vma);
  [[nodiscard]] VmArea* mergeable_neighbour(VmArea& vma) const;
  [[nodiscard]] Page* alloc_locked_page();
  void unlock_put(Page& page);
  [[nodiscard]] uint32_t dirty_shared_page(FaultContext& ctx, Page& page);

  // memory_nonlinear.cpp
  bool install_file_pte(VmArea& vma, VirtAddr address, uint64_t pgoff);

  // memory_remap.cpp
  Result<void> remap_pud_range(VmArea& vma, Pte* pgd, VirtAddr address, VirtAddr end, Pfn pfn);
  Result<void> remap_pmd_range(VmArea& vma, Pte* pud, VirtAddr address, VirtAddr end, Pfn pfn);
  Result<void> remap_pte_range(VmArea& vma, Pte* pmd, VirtAddr address, VirtAddr end, Pfn pfn);
  [[nodiscard]] bool is_zero_page(Pte pte) const {
    return zero_page_ != nullptr && pte_pfn(pte) == tables_.pages().mem().pfn(zero_page_);
  }

  // memory_ranges.cpp
  void tlb_flush_mmu(MmuGather& gather);
  void keep_file_pages(MmuGather& gather);
  void zap_pte_range(MmuGather& gather, VmArea& vma, VirtAddr start, VirtAddr end, EvenCows even_cows = EvenCows::yes);
  void zap_pte(MmuGather& gather, VmArea& vma, VirtAddr address, Pte* pte, EvenCows even_cows);
  Result<void> copy_one_pte(VmArea& dst, VmArea& src, VirtAddr address, Pte* dst_pte, Pte* src_pte);
  [[nodiscard]] bool make_absent(Mm& mm, VirtAddr start, VirtAddr end);
  void move_ptes(VmArea& from, VirtAddr old_addr, VirtAddr old_end, VirtAddr new_addr);

  PageTables& tables_;
  Vmas& vmas_;
  Rmap& rmap_;
  SwapCache& cache_;
  SwapFiles& swap_;
  Filemap& filemap_;
  VmStat& vmstat_;
  Mmu& mmu_;
  Mmu::Caps caps_;
  Page* zero_page_ = nullptr;

 public:
  static constexpr size_t ERA_BYTES = 32;

 private:
  alignas(16) std::byte era_place_[ERA_BYTES];
  MemoryEra* era_ = nullptr;  ///< in era_place_; immutable
};

// ---- Eras -----------------------------------------------------------------------------------------------------------
//
// What the kernels do differently in a fault: into which functions it is cut, and a few steps. One object for each
// machine, made at boot. What is done is Memory's; an era's function says its own name and calls it.
//
//            2.6.20                          3.x                                     4.14
//   entry    __handle_mm_fault               -                                       __handle_mm_fault
//   zeroed   alloc_zeroed_user_highpage      ..._movable                             ..._movable
//   file     do_no_page                      do_linear_fault -> __do_fault           do_fault -> do_read_fault, …
//   nonlinear  do_file_page                  do_nonlinear_fault -> __do_fault        -
//   write    do_wp_page                      do_wp_page                              do_wp_page -> wp_page_copy, …

class MemoryEra {
 public:
  explicit MemoryEra(Memory& memory) : memory_(memory) {}
  MemoryEra(const MemoryEra&) = delete;
  MemoryEra& operator=(const MemoryEra&) = delete;

  using Context = Memory::FaultContext;

  /// From handle_mm_fault to handle_pte_fault.
  virtual uint32_t dispatch(Context& ctx) = 0;
  /// A user page, locked, its content all zero. Null: no memory.
  [[nodiscard]] virtual Page* zeroed_page(Context& ctx) = 0;
  virtual uint32_t file_fault(Context& ctx) = 0;
  /// Neither none nor present: does the PTE say which page of the file belongs there? (Until 3.x.)
  [[nodiscard]] virtual bool pte_file(Pte pte) const {
    (void)pte;
    return false;
  }
  virtual uint32_t nonlinear_fault(Context& ctx) {
    (void)ctx;
    return VM_FAULT_SIGBUS;
  }
  /// do_swap_page has found or read the page, not locked yet.
  virtual void swapped_in(Page& page) { (void)page; }
  /// The page of a slot, or a copy of it for this address. Null: no memory.
  [[nodiscard]] virtual Page* fitting(Page& page, VmArea& vma, VirtAddr address) {
    return memory_.rmap_.ksm()->ksm_might_need_to_copy(page, vma, address);
  }
  /// What the PTE that the page is mapped by takes over from the swap PTE, and a moved one on its way.
  [[nodiscard]] virtual Pte restored(Pte pte, Pte swap_pte) const {
    (void)swap_pte;
    return pte;
  }
  [[nodiscard]] virtual Pte moved(Pte pte) const { return pte; }
  /// What an entry of the top table covers.
  virtual Result<void> remap_below_pgd(VmArea& vma, Pte* pgd, VirtAddr address, VirtAddr end, Pfn pfn) {
    return memory_.remap_pud_range(vma, pgd, address, end, pfn);
  }
  /// The page is mapped again.
  virtual void mapped_again(Page& page) { (void)page; }
  /// The page, mapped by this VMA alone, is about to be written in place. Locked.
  virtual void own(Page& page, VmArea& vma) { memory_.rmap_.page_move_anon_rmap(page, vma); }

  // What only 4.14 has as functions.
  virtual uint32_t read_fault(Context& ctx) { return memory_.read_fault(ctx); }
  virtual uint32_t cow_fault(Context& ctx) { return memory_.cow_fault(ctx); }
  virtual uint32_t shared_fault(Context& ctx) { return memory_.shared_fault(ctx); }
  virtual uint32_t ask_owner(Context& ctx) { return memory_.ask_owner(ctx); }
  virtual uint32_t map_file_page(Context& ctx) { return memory_.map_file_page(ctx); }
  virtual uint32_t set_file_pte(Context& ctx, Page& page, PteLock& ptl, Pte& entry) {
    return memory_.set_file_pte(ctx, page, ptl, entry);
  }
  virtual uint32_t ask_mkwrite(Context& ctx) { return memory_.ask_mkwrite(ctx); }
  [[nodiscard]] virtual uint32_t dirty_shared_page(Context& ctx, Page& page) {
    return memory_.dirty_shared_page(ctx, page);
  }
  virtual uint32_t copy_page(Context& ctx, Page* old_page) { return memory_.copy_page(ctx, old_page); }
  virtual Pte reuse_page(Context& ctx, PteLock& ptl) { return memory_.reuse_page(ctx, ptl); }
  virtual uint32_t reuse_shared_page(Context& ctx, Page& page, PteLock ptl) {
    return memory_.reuse_shared_page(ctx, page, std::move(ptl));
  }

 protected:
  ~MemoryEra() = default;
  // What the eras' files use of Memory.
  [[nodiscard]] PageAllocator& pages() const { return memory_.tables_.pages(); }
  [[nodiscard]] Lru& lru() const { return memory_.filemap_.lru(); }
  [[nodiscard]] Pfn pfn(const Page& page) const { return pages().mem().pfn(page); }
  uint32_t handle_pte_fault(Context& ctx) { return memory_.handle_pte_fault(ctx); }
  /// handle_pte_fault where the path down to the PTE is made before the PTE is looked at (until 4.8).
  uint32_t make_path_and_handle(Context& ctx) {
    return memory_.tables_.pte_alloc(ctx.mm, ctx.address) ? memory_.handle_pte_fault(ctx) : VM_FAULT_OOM;
  }
  uint32_t memory_file_fault(Context& ctx) { return memory_.file_fault(ctx); }
  /// A page just allocated (or null): locked and zeroed.
  Page* prepare_zeroed(Page* page);

  Memory& memory_;
};

/// Makes the era's object in `place` (Memory::ERA_BYTES).
MemoryEra* memory_2_6_20(void* place, Memory& memory);
MemoryEra* memory_3(void* place, Memory& memory);
MemoryEra* memory_4_14(void* place, Memory& memory);

}  // namespace weir
