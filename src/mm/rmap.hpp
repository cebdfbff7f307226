// src/mm/rmap.hpp
//
// From a page to every PTE that maps it.
//
//   anonymous: page->mapping = AnonVma | 1, index = linear page offset; the AnonVma holds chains to all VMAs that may
//   map it
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
// Linux: mm/rmap.c 4.14 (anon_vma_chain, interval trees).
#pragma once

#include "mm/filemap.hpp"
#include "mm/pgtable.hpp"
#include "mm/swapfile.hpp"
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

struct AnonVma {
  AnonVma* root = nullptr;           ///< whose lock guards the whole family; immutable
  RwSem rwsem{LockRank::anon_vma};   ///< used on the root only
  std::atomic<int32_t> refcount{1};  ///< linked VMAs (as one), walks; a root also one a family below it
  AnonVma* parent = nullptr;         ///< a root's is itself
  /// Children + VMAs whose anon_vma is this; a root counts as a child of its own. Below 2 and without VMAs, it may be
  /// given to a forked VMA instead of a new one: or a chain of forks whose parents exit would grow without end. Root's
  /// lock
  int32_t degree = 1;
  IntervalTree<AnonVmaTraits> rb_root;  // root's lock
};

/// How a walk over a page's mappings goes. Linux: struct rmap_walk_control.
struct RmapWalkControl {
  void* arg = nullptr;
  /// False ends the walk.
  bool (*rmap_one)(Page& page, VmArea& vma, VirtAddr address, void* arg) = nullptr;
  /// True ends the walk: asked after each mapping.
  bool (*done)(Page& page) = nullptr;
  /// True skips the VMA.
  bool (*invalid_vma)(VmArea& vma, void* arg) = nullptr;
};

enum class TryToUnmap : uint8_t { success, fail };
/// Is this mapping, made now, the only one there will be of the page (so that it may belong to the VMA's own AnonVma)?
enum class Exclusive : uint8_t { no, yes };

/// Peak RSS is taken down before RSS falls.
void update_hiwater_rss(Mm& mm);

class Rmap final : private LockedMappings {
 public:
  Rmap(PageTables& tables, Slab& slab, Filemap& filemap, SwapFiles& swap, VmStat& vmstat, Mmu& mmu);
  Result<void> init();

  // ---- anchors
  /// vma gets an anon_vma (its own or a mergeable neighbour's). mmap_sem for reading suffices. Errors: ENOMEM.
  Result<void> anon_vma_prepare(VmArea& vma, VmArea* mergeable_neighbour);
  /// dst, in no AnonVma, is linked wherever src is (split, merge, move). Errors: ENOMEM, nothing changed.
  Result<void> anon_vma_clone(VmArea& dst, VmArea& src);
  /// The same, and an anon_vma of dst's own, child of src's (fork). Errors: ENOMEM, nothing changed.
  Result<void> anon_vma_fork(VmArea& dst, VmArea& src);
  void unlink_anon_vmas(VmArea& vma);
  /// Into i_mmap of its file, if it has one; in fork after the VMA it was copied from.
  void vma_link_file(VmArea& vma, VmArea* after = nullptr);
  void vma_unlink_file(VmArea& vma);
  /// i_mmap and anon_vma locks of the VMA for writing: no walk sees its PTEs while they move.
  void take_rmap_locks(VmArea& vma);
  void drop_rmap_locks(VmArea& vma);

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
  void rmap_walk(Page& page, RmapWalkControl& control);
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

  /// Address of `page` in `vma`, or none (-EFAULT as VirtAddr(~0)).
  [[nodiscard]] static VirtAddr vma_address(const Page& page, const VmArea& vma);
  /// A dirty bit that left a PTE goes to the page. Page locked, or referenced.
  void set_page_dirty(Page& page);

 private:
  friend class VmaUpdate;
  struct Walk;  // what the callbacks work with

  // anchors
  AnonVma* anon_vma_alloc();
  void put_anon_vma(AnonVma& anon_vma);
  AnonVma* page_get_anon_vma(Page& page);
  AnonVma* page_lock_anon_vma_read(Page& page);
  void page_unlock_anon_vma_read(AnonVma& anon_vma);
  void anon_vma_chain_link(VmArea& vma, AnonVmaChain& chain, AnonVma& anon_vma);
  AnonVmaChain* alloc_chains(unsigned n);
  void free_chains(AnonVmaChain* chains);
  enum class Reuse : uint8_t { no, yes };
  Result<void> clone_chains(VmArea& dst, VmArea& src, Reuse reuse);
  static void anon_vma_interval_tree_pre_update_vma(VmArea& vma);
  static void anon_vma_interval_tree_post_update_vma(VmArea& vma);
  void page_set_anon_rmap(Page& page, VmArea& vma, VirtAddr address, Exclusive exclusive);
  void page_remove_file_rmap(Page& page);
  void record_mapcount(const Page& page, int32_t before, int32_t after);

  // walks
  void rmap_walk_anon(Page& page, RmapWalkControl& control);
  void rmap_walk_file(Page& page, RmapWalkControl& control);
  PteLock page_vma_mapped_walk(Page& page, VmArea& vma, VirtAddr address);
  static bool page_referenced_one(Page& page, VmArea& vma, VirtAddr address, void* arg);
  static bool try_to_unmap_one(Page& page, VmArea& vma, VirtAddr address, void* arg);
  static bool try_to_munlock_one(Page& page, VmArea& vma, VirtAddr address, void* arg);
  static bool page_mkclean_one(Page& page, VmArea& vma, VirtAddr address, void* arg);
  static bool invalid_mkclean_vma(VmArea& vma, void* arg);
  static bool page_mapcount_is_zero(Page& page);
  static bool should_defer_flush(const Mm& mm);

  PageTables& tables_;
  Slab& slab_;
  Filemap& filemap_;
  SwapFiles& swap_;
  VmStat& vmstat_;
  Mmu& mmu_;
  SpinLock life_lock_{LockRank::leaf};  ///< a walk's first reference against the last one's going
  KmemCache* anon_vma_cache_ = nullptr;
  KmemCache* chain_cache_ = nullptr;
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
  VmArea& vma_;
  VmArea* other_;
  AddressSpace* mapping_ = nullptr;
  AnonVma* root_ = nullptr;
  bool other_file_ = true;
};

}  // namespace weir
