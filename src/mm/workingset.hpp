// src/mm/workingset.hpp
//
// Was a file page that is read again thrown out too early? When reclaim takes one its slot keeps a shadow: the time of
// that, counted in pages that have left the inactive list. Linux: mm/workingset.c 4.14, one node, no groups.
//
//   inactive_age   ... 41 | 42 | 43 | ................ | 97          each eviction, each activation: one more
//                         evicted: shadow 42            read again: 97 - 42 = 55 pages have left meanwhile
//
//   55 <= pages on the active list: with these as well the inactive list would have held it that long. So it is worth
//   as much as what is active, and becomes active at once (WORKINGSET_ACTIVATE). Else it starts inactive.
//
// Shadows cost tree nodes. Nodes that hold nothing else are counted, for each file and together; what is more of them
// than an eighth as many slots as there are file pages is given back under pressure, file by file, the one longest on
// the list first. (Linux keeps the nodes themselves in a list by age.)
#pragma once

#include "mm/address_space.hpp"
#include "mm/mmzone.hpp"
#include "mm/shrinker.hpp"
#include "mm/vmstat.hpp"

namespace weir {

class Workingset final : public Shrinker {
 public:
  Workingset(Node& node, VmStat& vmstat) : node_(node), vmstat_(vmstat) {}
  /// Who gets the nodes back. Set once, before there is a file.
  void set_node_source(RadixNodeSource& source) { source_ = &source; }

  /// tree_lock held; the page leaves its file by reclaim. What its slot shall hold; null where a shadow could not be
  /// accounted for: a tree without a node.
  [[nodiscard]] void* workingset_eviction(const AddressSpace& mapping, const Page& page);
  /// A page comes where `shadow` was. True: it is worth the active list.
  [[nodiscard]] bool workingset_refault(const void* shadow);
  /// A page of the inactive file list became active.
  void workingset_activation(const Page& page);

  /// Around a change of a tree at `index`, tree_lock held: counts nodes that now hold shadows only, or no longer do.
  class Update {
   public:
    Update(Workingset& workingset, AddressSpace& mapping, uint64_t index)
        : workingset_(workingset), mapping_(mapping), index_(index), before_(count()) {}
    ~Update() { workingset_.workingset_update_node(mapping_, count() - before_); }
    Update(const Update&) = delete;

   private:
    /// Of the leaf of index, and of the first: a tree that shrinks or grows to one level may lose or get that.
    [[nodiscard]] int64_t count() const;
    Workingset& workingset_;
    AddressSpace& mapping_;
    const uint64_t index_;
    const int64_t before_;
  };
  /// tree_lock held; the tree is about to be destroyed.
  void forget_mapping(AddressSpace& mapping);

  /// Tree nodes that hold nothing but shadows; how many of them are kept however short memory is.
  [[nodiscard]] PageCount shadow_nodes() const { return PageCount(shadow_nodes_.load(std::memory_order_relaxed)); }
  [[nodiscard]] PageCount max_shadow_nodes() const;

  // Shrinker
  PageCount count_objects() override { return count_shadow_nodes(); }
  PageCount scan_objects(PageCount nr) override { return scan_shadow_nodes(nr); }

 private:
  using Mappings =
      boost::intrusive::list<AddressSpace,
                             boost::intrusive::member_hook<AddressSpace, ListHook, &AddressSpace::shadow_list>,
                             boost::intrusive::constant_time_size<false>>;

  void workingset_update_node(AddressSpace& mapping, int64_t delta);
  PageCount count_shadow_nodes();
  PageCount scan_shadow_nodes(PageCount nr);
  int64_t shadow_lru_isolate(AddressSpace& mapping, int64_t nr, int64_t& visits);

  Node& node_;
  VmStat& vmstat_;
  RadixNodeSource* source_ = nullptr;
  std::atomic<int64_t> shadow_nodes_{0};
  SpinLock lock_{LockRank::leaf};
  Mappings mappings_ WEIR_GUARDED_BY(lock_);  ///< those with such nodes
};

}  // namespace weir
