// src/mm/rmap.hpp
//
// From a page to every PTE that maps it.
//
//   anonymous: page->mapping = AnonVma | 1, index = linear page offset
//              the AnonVma holds chains to all VMAs that may map it
//              address = vm_start + (index - vm_pgoff) × 4096; outside the VMA: skip
//   file:      page->mapping = AddressSpace, whose i_mmap holds all VMAs of the file
//
//        parent's VMA ──chain── AnonVma P (root) ──chain──┐        a page that the child made hangs on C and is looked
//                                                         │        for in one VMA; one from before the fork hangs on P
//        child's VMA ───chain── AnonVma C (parent P)      │        and is looked for in both
//             └───────────────chain────────────────────────┘
//
// How long an AnonVma lives: each VMA that is linked to it and each child family holds it by refcount. A page does not.
// A walk therefore takes its own reference, under a lock (life_lock_) that the last reference needs too: as long as the
// page is mapped some linked VMA holds the AnonVma, and that VMA's unlinking, which comes after the unmapping, must
// pass the same lock. (Linux reaches the same without a lock by RCU and type-stable slabs.)
//
// That is 3.x and 4.14. In 2.6.20 a family has one AnonVma with a list of all its VMAs (rmap_era.hpp says what
// differs).
//
// Linux: mm/rmap.c 4.14 (anon_vma_chain, interval trees), 3.x, 2.6.20.
#pragma once

#include "mm/filemap.hpp"
#include "mm/mmu_notifier.hpp"
#include "mm/pgtable.hpp"
#include "mm/profile.hpp"
#include "mm/swapfile.hpp"
#include "mm/swapops.hpp"
#include "mm/vma.hpp"

namespace weir {

/// Links one VMA to one AnonVma; in the AnonVma's interval tree and on the VMA's list.
struct AnonVmaChain {
  VmArea* vma = nullptr;
  AnonVma* anon_vma = nullptr;
  AnonVmaChain* next_of_vma = nullptr;  ///< newest AnonVma first; mmap_sem + root's lock
  IntervalTreeLink link;                // root's lock
};

struct AnonVmaTraits {
  using Node = AnonVmaChain;
  static uint64_t start(const AnonVmaChain& c) { return c.vma->vm_pgoff; }
  static uint64_t last(const AnonVmaChain& c) { return c.vma->vm_pgoff + c.vma->pages() - 1; }
  static IntervalTreeLink& link(AnonVmaChain& c) { return c.link; }
};

/// The VMAs of a fork family (2.6.20).
using AnonVmaHead =
    boost::intrusive::list<VmArea, boost::intrusive::member_hook<VmArea, ListHook, &VmArea::anon_vma_node>,
                           boost::intrusive::constant_time_size<false>>;

struct AnonVma {
  AnonVma* root = nullptr;           ///< whose lock guards the whole family; immutable
  RwSem rwsem{LockRank::anon_vma};   ///< used on the root only
  WorldAtomic<int32_t> refcount{1};  ///< linked VMAs (as one), walks; a root also one a family below it
  AnonVma* parent = nullptr;         ///< a root's is itself
  /// Children + VMAs whose anon_vma is this; a root counts as a child of its own. Below 2 and without VMAs, it may be
  /// given to a forked VMA instead of a new one: or a chain of forks whose parents exit would grow without end. Root's
  /// lock
  int32_t degree = 1;
  IntervalTree<AnonVmaTraits> rb_root;  // root's lock
  AnonVmaHead head;                     ///< 2.6.20: in place of the tree; its own lock
};

class RmapEra;
struct RmapWalk;

/// What the reverse map and faults ask of KSM, which lies above them.
class KsmHooks {
 public:
  /// Every place where the merged page may be mapped; fn returns false to end it. Page locked.
  virtual void for_each_ksm_mapping(Page& page, bool (*fn)(VmArea& vma, VirtAddr address, void* arg), void* arg) = 0;
  /// The page of a slot, locked, is about to be mapped there: itself, or if it belongs to another family or index a
  /// locked copy. Null: no memory.
  virtual Page* ksm_might_need_to_copy(Page& page, VmArea& vma, VirtAddr address) = 0;

 protected:
  ~KsmHooks() = default;
};

enum class TryToUnmap : uint8_t { success, fail };
/// Is this mapping, made now, the only one there will be of the page (so that it may belong to the VMA's own AnonVma)?
enum class Exclusive : uint8_t { no, yes };

/// Peak RSS is taken down before RSS falls.
void update_hiwater_rss(Mm& mm);

class Rmap final : private LockedMappings {
 public:
  Rmap(PageTables& tables, Slab& slab, Filemap& filemap, SwapFiles& swap, VmStat& vmstat, Mmu& mmu,
       KernelEra kernel = DEFAULT_KERNEL);
  Rmap(const Rmap&) = delete;
  Rmap& operator=(const Rmap&) = delete;
  Result<void> init();

  // ---- anchors
  /// vma gets an anon_vma (its own or a mergeable neighbour's). mmap_sem for reading suffices. Errors: ENOMEM.
  Result<void> anon_vma_prepare(VmArea& vma, VmArea* mergeable_neighbour);
  /// dst, in no AnonVma, is linked wherever src is (split, merge, move). Errors: ENOMEM, nothing changed.
  Result<void> anon_vma_clone(VmArea& dst, VmArea& src);
  /// The same, and an anon_vma of dst's own, child of src's (fork). Errors: ENOMEM, nothing changed.
  Result<void> anon_vma_fork(VmArea& dst, VmArea& src);
  void unlink_anon_vmas(VmArea& vma);
  /// `next` became part of `vma` and goes: as unlink_anon_vmas(next).
  void anon_vma_merge(VmArea& vma, VmArea& next);
  /// A page that hangs on `anon_vma` is looked for in `vma`.
  [[nodiscard]] bool linked(const VmArea& vma, const AnonVma* anon_vma) const;
  /// Whose lock guards the anonymous half of the VMA's reverse map; null if it has none.
  [[nodiscard]] static AnonVma* root_of(const VmArea& vma) {
    return vma.anon_vma != nullptr ? vma.anon_vma->root : nullptr;
  }
  /// Into i_mmap of its file, if it has one; in fork after the VMA it was copied from.
  void vma_link_file(VmArea& vma, VmArea* after = nullptr);
  void vma_unlink_file(VmArea& vma);
  /// A shared mapping of a file becomes VM_NONLINEAR: it is found no more by the pages that it covers. mmap_sem for
  /// writing.
  void make_nonlinear(VmArea& vma);
  /// i_mmap and anon_vma locks of the VMA for writing: no walk sees its PTEs while they move.
  void take_rmap_locks(VmArea& vma);
  void drop_rmap_locks(VmArea& vma);

  void set_ksm(KsmHooks* ksm) { ksm_ = ksm; }
  [[nodiscard]] KsmHooks* ksm() const { return ksm_; }
  void get_anon_vma(AnonVma& anon_vma) { anon_vma.refcount.fetch_add(1, std::memory_order_acq_rel); }
  void put_anon_vma(AnonVma& anon_vma);
  /// Every VMA that pages of the AnonVma with an index of [first, last] may be in, its family locked; fn returns false
  /// to end it. The caller holds a reference.
  void for_each_vma_of(AnonVma& anon_vma, uint64_t first, uint64_t last, bool (*fn)(VmArea& vma, void* arg), void* arg);

  // ---- mapping and unmapping of one PTE's worth; PTE lock held
  void page_add_new_anon_rmap(Page& page, VmArea& vma, VirtAddr address);
  void page_add_anon_rmap(Page& page, VmArea& vma, VirtAddr address, Exclusive exclusive = Exclusive::no);
  void page_add_file_rmap(Page& page);
  /// A further mapping of a page already mapped (fork).
  void page_dup_rmap(Page& page);
  void page_remove_rmap(Page& page);
  /// The page, mapped here alone, now belongs to this VMA's own anon_vma (after a COW reuse). Page locked.
  void page_move_anon_rmap(Page& page, VmArea& vma);

  // ---- walks; page locked
  /// Mappings that were young; they are old now. vm_flags: union of flags of the VMAs that map it; VM_LOCKED ends the
  /// walk. Where !has_accessed: those made old are put into `batch` (the caller hands it to Mmu::age_batch; a full one
  /// goes there from here).
  int page_referenced(Page& page, uint64_t* vm_flags, FlushBatch& batch);
  /// Takes every PTE away: anonymous ones get the page's swap entry. fail: a VM_LOCKED mapping, or memory for a count
  /// is missing; PTEs already changed stay valid swap entries. Hardware is flushed by the caller: batch ->
  /// Mmu::flush_batch (a full one from here).
  /// An anonymous page without PG_swapbacked (MADV_FREE) gets no entry: its PTEs go, unless it was written since; then
  /// it is as before.
  TryToUnmap try_to_unmap(Page& page, FlushBatch& batch);
  /// A page that is being munlocked: a VM_LOCKED mapping of it that is left makes it PG_mlocked again. Page locked.
  void try_to_munlock(Page& page) override;
  /// For a file page about to be written: every PTE clean and write-protected. Returns how many were dirty.
  int page_mkclean(Page& page, FlushBatch& batch);

  /// Every PTE that the reverse map finds for the page; fn returns false to end it. Not recorded, takes no lock: for
  /// verify() and tests, when nothing else runs.
  void for_each_mapping(const Page& page, bool (*fn)(VmArea& vma, VirtAddr address, void* arg), void* arg) const;

  static constexpr VirtAddr NO_ADDRESS{~uint64_t{0}};
  /// Address of `page` in `vma`, or NO_ADDRESS.
  [[nodiscard]] static VirtAddr vma_address(const Page& page, const VmArea& vma);
  /// A dirty bit that left a PTE goes to the page. Page locked, or referenced.
  void set_page_dirty(Page& page);

 private:
  friend class VmaUpdate;
  friend class RmapEra;

  AnonVma* anon_vma_alloc();
  AnonVma* page_get_anon_vma(Page& page);
  void page_set_anon_rmap(Page& page, VmArea& vma, VirtAddr address, Exclusive exclusive);
  void remove_file_rmap(Page& page);
  void record_mapcount(const Page& page, int32_t before, int32_t after);

  PageTables& tables_;
  Slab& slab_;
  Filemap& filemap_;
  SwapFiles& swap_;
  VmStat& vmstat_;
  Mmu& mmu_;
  SpinLock life_lock_{LockRank::leaf};  ///< a walk's first reference against the last one's going
  KmemCache* anon_vma_cache_ = nullptr;
  KmemCache* chain_cache_ = nullptr;
  KsmHooks* ksm_ = nullptr;

 public:
  static constexpr size_t ERA_BYTES = 32;

 private:
  alignas(16) std::byte era_place_[ERA_BYTES];
  RmapEra* era_ = nullptr;  ///< in era_place_; immutable
};

/// A change of vm_start, vm_end or vm_pgoff of one VMA or of two that belong together: while it lives they are in no
/// interval tree, and the locks of those trees are held. mmap_sem for writing. Linux: the middle of __vma_adjust.
class VmaUpdate {
 public:
  VmaUpdate(Rmap& rmap, VmArea& vma, VmArea* other);
  ~VmaUpdate();
  VmaUpdate(const VmaUpdate&) = delete;
  VmaUpdate& operator=(const VmaUpdate&) = delete;
  /// `other` leaves: it does not come back into its file's tree.
  void other_leaves() { other_file_ = false; }

 private:
  RmapEra& era_;
  VmArea& vma_;
  VmArea* other_;
  AddressSpace* mapping_ = nullptr;
  AnonVma* root_ = nullptr;
  bool other_file_ = true;
};

// ---- Eras -----------------------------------------------------------------------------------------------------------
//
// What the kernels do differently in the reverse map: how VMAs hang on an AnonVma, and by which functions a page's
// mappings are walked. One object for each machine, made at boot.
//
//   2.6.20   one AnonVma for a whole fork family, all of whose VMAs are on its list      rmap_2_6_20.cpp
//   3.x      chains and interval trees; try_to_unmap_anon, try_to_unmap_file, …          rmap_chains.cpp, rmap_3.cpp
//   4.14     chains and interval trees; rmap_walk with callbacks                         rmap_chains.cpp, rmap_4_14.cpp
//
//
// Here too: what their walks do alike to one PTE once it is found.

/// A walk on its way: what it was asked and what it has found.
struct RmapWalk {
  FlushBatch& batch;
  uint64_t vm_flags = 0;
  int count = 0;        ///< references, cleaned PTEs
  int32_t left = 0;     ///< mappings not seen yet
  bool failed = false;  ///< a mapping that must stay
};

/// Questions that the documents' flows name, asked through functions of those names so that a recording shows them.
struct recorded {
  static bool PageAnon(const Page& page);
  static AddressSpace* page_mapping(const Page& page);
  static uint64_t page_to_pgoff(const Page& page);
  static int32_t page_mapcount(const Page& page);
  static int32_t total_mapcount(const Page& page);
  static VmArea* vma_interval_tree_iter_first(const VmaFileTree& tree, uint64_t start, uint64_t last);
  static VmArea* vma_interval_tree_iter_next(const VmaFileTree& tree, VmArea* vma, uint64_t start, uint64_t last);
};

class RmapEra {
 public:
  explicit RmapEra(Rmap& rmap) : rmap_(rmap) {}
  RmapEra(const RmapEra&) = delete;
  RmapEra& operator=(const RmapEra&) = delete;

  // ---- anchors: contracts as those of Rmap's functions
  virtual Result<void> anon_vma_prepare(VmArea& vma, VmArea* mergeable_neighbour) = 0;
  virtual Result<void> anon_vma_clone(VmArea& dst, VmArea& src) = 0;
  virtual Result<void> anon_vma_fork(VmArea& dst, VmArea& src) = 0;
  virtual void unlink_anon_vmas(VmArea& vma) = 0;
  virtual void anon_vma_merge(VmArea& vma, VmArea& next) = 0;
  /// The VMA's range changes: before and after, root locked for writing.
  virtual void pre_update_vma(VmArea& vma) = 0;
  virtual void post_update_vma(VmArea& vma) = 0;
  /// The AnonVma that a page mapped in `vma` is to hang on.
  [[nodiscard]] virtual AnonVma* anchor(const VmArea& vma, Exclusive exclusive) const = 0;
  /// A page that hangs on `anon_vma` is looked for in `vma`.
  [[nodiscard]] virtual bool linked(const VmArea& vma, const AnonVma* anon_vma) const = 0;
  /// Every VMA that an anonymous page with an index of [first, last] may be in; fn returns false to end it. Family
  /// locked. Not recorded.
  virtual void for_each_vma(AnonVma& anon_vma, uint64_t first, uint64_t last, bool (*fn)(VmArea& vma, void* arg),
                            void* arg) const = 0;

  // ---- walks
  virtual void page_referenced(Page& page, RmapWalk& walk) = 0;
  virtual void try_to_unmap(Page& page, RmapWalk& walk) = 0;
  virtual void page_mkclean(Page& page, RmapWalk& walk) = 0;
  /// The page is marked again if a locked mapping has it.
  virtual void try_to_munlock(Page& page, RmapWalk& walk) = 0;
  /// The PTE that unmapping leaves behind, of one that was `was`.
  [[nodiscard]] virtual Pte swap_pte(SwpEntry entry, Pte was) const {
    (void)was;
    return swp_entry_to_pte(entry);
  }
  /// The PTE changed, or is gone: whoever has a table of its own learns it. PTE's lock held.
  virtual void changed(Mm& mm, VirtAddr address) { mmu_notifier_invalidate_page(mm, address); }
  virtual void page_remove_file_rmap(Page& page) { remove_file_rmap(page); }

 protected:
  ~RmapEra() = default;

  // What the eras' files use of Rmap.
  [[nodiscard]] PageTables& tables() const { return rmap_.tables_; }
  [[nodiscard]] Mmu& mmu() const { return rmap_.mmu_; }
  [[nodiscard]] Lru& lru() const { return rmap_.filemap_.lru(); }
  [[nodiscard]] KsmHooks* ksm() const { return rmap_.ksm_; }
  [[nodiscard]] Slab& slab() const { return rmap_.slab_; }
  [[nodiscard]] KmemCache& chain_cache() const { return *rmap_.chain_cache_; }
  [[nodiscard]] Pfn pfn(const Page& page) const { return tables().pages().mem().pfn(page); }
  void remove_file_rmap(Page& page) { rmap_.remove_file_rmap(page); }
  AnonVma* anon_vma_alloc() { return rmap_.anon_vma_alloc(); }
  void put_anon_vma(AnonVma& anon_vma) { rmap_.put_anon_vma(anon_vma); }
  /// The page's AnonVma with a reference and its family locked, or null.
  AnonVma* lock_family_of(Page& page);
  void unlock_family(AnonVma& anon_vma);
  /// The PTE, locked, if it maps the page.
  [[nodiscard]] PteLock pte_of(const Page& page, const VmArea& vma, VirtAddr address) const;

  // What is done to one PTE; false: the walk is over.
  /// Room in the batch for one more, where the walk makes PTEs old for hardware that has no accessed bits.
  void room_to_age(RmapWalk& walk);
  void room_to_flush(RmapWalk& walk);
  bool referenced_pte(Page& page, VmArea& vma, VirtAddr address, PteLock pte, RmapWalk& walk);
  bool unmap_pte(Page& page, VmArea& vma, VirtAddr address, PteLock pte, RmapWalk& walk);
  /// The PTE maps the page: if its VMA is locked, so is the page.
  bool munlock_pte(Page& page, const VmArea& vma) {
    if ((vma.vm_flags & VM_LOCKED) == 0) return true;
    lru().mlock_vma_page(page);
    return false;
  }
  void mkclean_pte(Page& page, VmArea& vma, VirtAddr address, PteLock pte, RmapWalk& walk);

  // Mappings of the page's file that are nonlinear (until 3.x); i_mmap locked.
  /// Nobody knows where they map the page: so as many of their mappings go as it has left, whatever pages these are of,
  /// and those that are young stay.
  void unmap_nonlinear(Page& page, AddressSpace& mapping);
  /// All their PTEs are looked at. (2.6.20 forgets them.)
  void mkclean_nonlinear(Page& page, AddressSpace& mapping, RmapWalk& walk);

  Rmap& rmap_;

 private:
  void try_to_unmap_cluster(VmArea& vma, VirtAddr start, VirtAddr end, int32_t& mapcount);
};

/// Makes the era's object in `place` (Rmap::ERA_BYTES).
RmapEra* rmap_2_6_20(void* place, Rmap& rmap);
RmapEra* rmap_3(void* place, Rmap& rmap);
RmapEra* rmap_4_14(void* place, Rmap& rmap);

}  // namespace weir
