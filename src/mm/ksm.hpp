// src/mm/ksm.hpp
//
// Kernel samepage merging: anonymous pages of equal content, in mappings that asked for it, become one frame.
//
//   a page is met          its content changed since the last scan?   remembered, later
//   equal to a merged one  (stable tree)                              its PTE maps that frame, read-only, its own goes
//   equal to another one   (unstable tree, made anew each scan)       one of them is made a merged page, then as above
//   a write                do_wp_page                                 always a copy; the merged page stays for others
//
// A merged page's mapping is its stable node | 3. The node has an item for each PTE that ksmd made map it; forks of
// those address spaces are found through the item's AnonVma at the same address, so a mapping that moves (mremap) is
// unmerged first. A frame that was swapped out comes back as an ordinary page: whose anon_vma or index does not fit the
// one who faults on its slot gets a copy (ksm_might_need_to_copy).
//
//   pages_shared    merged frames in use                 pages_unshared   alone in the unstable tree
//   pages_sharing   PTEs beyond one a frame: the saving  pages_volatile   changed too often to be tried
//
// Linux orders both trees by content; here by a hash of it, and content decides among equals. A page that is mapped
// more than once is not made a merged page: its other mappings may lie at other addresses.
//
// Off until run is 1. Only where hardware has write protection and aliases. Linux: mm/ksm.c, 2.6.32 and later.
#pragma once

#include "mm/memory.hpp"

namespace weir {

struct KsmRmapItem;

/// An address space with mergeable mappings.
struct KsmMmSlot {
  Mm* mm = nullptr;  ///< with a reference (mm_count)
  KsmMmSlot* next = nullptr;
  KsmRmapItem* rmap_list = nullptr;  ///< by address
};

/// A merged page. Its list is guarded by the page's lock.
struct KsmStableNode;

/// One place that ksmd has looked at.
struct KsmRmapItem {
  KsmMmSlot* slot = nullptr;
  KsmRmapItem* next = nullptr;  ///< of the slot
  VirtAddr address{};
  uint64_t checksum = 0;  ///< of the content at the last look
  bool checked = false;   ///< there was one
  enum class Where : uint8_t { nowhere, unstable, stable } where = Where::nowhere;
  uint64_t seqnr = 0;           ///< unstable: of which scan's tree
  AnonVma* anon_vma = nullptr;  ///< stable: with a reference
  KsmStableNode* head = nullptr;
  SetHook node;     ///< in the unstable tree
  ListHook linked;  ///< on the node's list
};

struct KsmStableNode {
  uint64_t hash = 0;
  Pfn pfn{};
  SetHook node;
  using Items =
      boost::intrusive::list<KsmRmapItem, boost::intrusive::member_hook<KsmRmapItem, ListHook, &KsmRmapItem::linked>,
                             boost::intrusive::constant_time_size<false>>;
  Items items;
};

class Ksm final : public KsmHooks {
 public:
  Ksm(Memory& memory, Vmas& vmas, Rmap& rmap, SwapCache& cache, Slab& slab, Mmu& mmu, const Profile& profile);
  Result<void> init();
  /// How a reference to an Mm is given back.
  void set_mmdrop(void (*fn)(void* arg, Mm& mm), void* arg) { mmdrop_ = fn, mmdrop_arg_ = arg; }

  // ---- /sys/kernel/mm/ksm
  enum class Run : uint8_t { stop = 0, merge = 1, unmerge = 2 };
  /// 1 starts ksmd (in `world`, where there is one), 0 stops it, 2 stops it and takes every merged page apart. Sleeps.
  /// Errors: ENOSYS, ENOMEM (while taking apart; try again).
  Result<void> set_run(Run run, World* world);
  void set_pages_to_scan(unsigned pages) { pages_to_scan_.store(pages, std::memory_order_relaxed); }
  void set_sleep_millisecs(unsigned ms) { sleep_millisecs_.store(ms, std::memory_order_relaxed); }
  struct Stats {
    int64_t pages_shared, pages_sharing, pages_unshared, pages_volatile;
    uint64_t full_scans;
  };
  [[nodiscard]] Stats stats() const;
  /// One batch of ksmd's work, by whoever calls. Sleeps.
  void ksm_do_scan(unsigned pages);

  // ---- address spaces
  /// MADV_MERGEABLE, MADV_UNMERGEABLE for [start, end) of vma: `flags` become what the VMA's are to be. mmap_sem for
  /// writing. Errors: EINVAL (not here), ENOMEM.
  Result<void> ksm_madvise(VmArea& vma, VirtAddr start, VirtAddr end, bool mergeable, uint64_t& flags);
  Result<void> ksm_fork(Mm& mm, Mm& old);
  /// The last user is gone and so are the pages.
  void ksm_exit(Mm& mm);

  // ---- KsmHooks
  void for_each_ksm_mapping(Page& page, bool (*fn)(VmArea& vma, VirtAddr address, void* arg), void* arg) override;
  Page* ksm_might_need_to_copy(Page& page, VmArea& vma, VirtAddr address) override;

  /// Counts the trees again. For verify().
  void recount(int64_t& shared, int64_t& sharing) const;

 private:
  struct StableHash {
    using type = uint64_t;
    const uint64_t& operator()(const KsmStableNode& n) const { return n.hash; }
  };
  struct UnstableHash {
    using type = uint64_t;
    const uint64_t& operator()(const KsmRmapItem& i) const { return i.checksum; }
  };
  using StableTree =
      boost::intrusive::multiset<KsmStableNode,
                                 boost::intrusive::member_hook<KsmStableNode, SetHook, &KsmStableNode::node>,
                                 boost::intrusive::key_of_value<StableHash>>;
  using UnstableTree =
      boost::intrusive::multiset<KsmRmapItem, boost::intrusive::member_hook<KsmRmapItem, SetHook, &KsmRmapItem::node>,
                                 boost::intrusive::key_of_value<UnstableHash>>;

  static void ksm_scan_thread(void* self);
  [[nodiscard]] bool possible() const;
  Result<void> __ksm_enter(Mm& mm);

  // the scan; mutex_ held
  KsmRmapItem* scan_get_next_rmap_item(Page*& page);
  KsmRmapItem* get_next_rmap_item(KsmMmSlot& slot, VirtAddr address);
  void cmp_and_merge_page(Page& page, KsmRmapItem& item);
  Page* stable_tree_search(Page& page, uint64_t hash);
  bool stable_tree_insert(Page& kpage, uint64_t hash);
  void stable_tree_append(KsmRmapItem& item, Page& kpage);
  KsmRmapItem* unstable_tree_search_insert(KsmRmapItem& item, Page& page, Page*& tree_page);
  bool try_to_merge_with_ksm_page(KsmRmapItem& item, Page& page, Page* kpage);
  bool try_to_merge_one_page(VmArea& vma, VirtAddr address, Page& page, Page* kpage);
  bool write_protect_page(VmArea& vma, VirtAddr address, Page& page, Pte& pte);
  bool replace_page(VmArea& vma, VirtAddr address, Page& page, Page& kpage, Pte orig_pte);
  Result<void> break_ksm(VmArea& vma, VirtAddr address);
  Result<void> unmerge_ksm_pages(VmArea& vma, VirtAddr start, VirtAddr end);
  Result<void> unmerge_and_remove_all_rmap_items();
  void remove_rmap_item_from_tree(KsmRmapItem& item);
  void remove_trailing_rmap_items(KsmMmSlot& slot, KsmRmapItem** link);
  void remove_node_from_stable_tree(KsmStableNode& node);
  void remove_slot(KsmMmSlot& slot);
  void remove_dead_slots();

  [[nodiscard]] Page* get_ksm_page(KsmStableNode& node);
  [[nodiscard]] Page* get_mergeable_page(KsmRmapItem& item);
  [[nodiscard]] Page* follow_page(Mm& mm, VirtAddr address);
  [[nodiscard]] VmArea* find_mergeable_vma(Mm& mm, VirtAddr address);
  [[nodiscard]] uint64_t calc_checksum(Page& page);
  [[nodiscard]] bool pages_identical(Page& a, Page& b);
  [[nodiscard]] PageAllocator& pages() const { return memory_.tables().pages(); }

  Memory& memory_;
  Vmas& vmas_;
  Rmap& rmap_;
  SwapCache& cache_;
  Filemap& filemap_;
  Slab& slab_;
  Mmu& mmu_;
  const Profile& profile_;
  void (*mmdrop_)(void* arg, Mm& mm) = nullptr;
  void* mmdrop_arg_ = nullptr;
  KmemCache* slot_cache_ = nullptr;
  KmemCache* item_cache_ = nullptr;
  KmemCache* node_cache_ = nullptr;

  Mutex mutex_{LockRank::ksm};  ///< scanning, and all that takes nodes and items away
  SpinLock mmlist_lock_{LockRank::leaf};
  KsmMmSlot* slots_ = nullptr;  ///< written under both locks but for the entry of a new one, at its head
  StableTree stable_;
  UnstableTree unstable_;
  // Where the scan is.
  KsmMmSlot* cursor_ = nullptr;
  KsmRmapItem** cursor_link_ = nullptr;
  VirtAddr cursor_address_{};
  uint64_t seqnr_ = 1;

  std::atomic<Thread*> thread_{nullptr};
  World* world_ = nullptr;
  WaitQueue wait_;
  std::atomic<unsigned> pages_to_scan_{100}, sleep_millisecs_{20};
  std::atomic<int64_t> pages_shared_{0}, pages_sharing_{0}, pages_unshared_{0}, rmap_items_{0};
  std::atomic<uint64_t> full_scans_{0};
};

}  // namespace weir
