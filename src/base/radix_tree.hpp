// src/base/radix_tree.hpp
//
// An array of pointers with 64-bit indices of which few are in use: the page cache of a file, the swap cache.
// Six bits of the index choose a slot in each node; the tree is as high as its largest index asks for.
//
//   root -> node, shift 6, index 0...4095              root -> item              only index 0 is in use: height 0
//             slots[0]  -> node, shift 0, 0...63       root -> node, shift 0     the largest index is 1...63: height 1
//             slots[63] -> node, shift 0, 4032...4095  root -> node, shift 60    ... is 2^60 or more: height 11
//
//   a slot:    ...00  item (a pointer to something aligned to 4)
//              ....10 exceptional entry: a value, not a pointer (a shadow of an evicted page, a swap entry)
//              .....1 internal: a node. Never an item.
//
//   marks:     one bit a slot. PRESENT says that the slot is in use, three tags say what the user says. A tag is set
//              for a child if and only if it is set somewhere below it: "the next dirty page" skips clean subtrees.
//
// Nodes come from a RadixNodeSource, beforehand if the insert must not fail under a lock:
//
//   RadixPreload preload(source);
//   WEIR_TRY_VOID(radix_tree_maybe_preload(preload));   // may sleep, as the source does
//   lock();  tree.radix_tree_insert(index, item, preload);  unlock();
//   radix_tree_preload_end(preload);                    // what was not needed stays for the next, or goes back
//
// Locking: none here. The caller's tree lock guards a tree and its nodes, for reading too: erase frees nodes at once.
//
// Linux: lib/radix-tree.c and include/linux/radix-tree.h, 4.14. Departures: no multi-order entries (a huge page takes
// one entry for each subpage, as in 4.14's swap cache), and an insert that fails has changed nothing.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/result.hpp"

namespace weir {

inline constexpr unsigned RADIX_TREE_MAP_SHIFT = 6;
inline constexpr unsigned RADIX_TREE_MAP_SIZE = 1U << RADIX_TREE_MAP_SHIFT;
/// Nodes from the root to a leaf at most: 64 index bits, 6 a node.
inline constexpr unsigned RADIX_TREE_MAX_PATH = (64 + RADIX_TREE_MAP_SHIFT - 1) / RADIX_TREE_MAP_SHIFT;
inline constexpr unsigned RADIX_TREE_MAX_TAGS = 3;

/// What the page cache says of a page. TOWRITE is a snapshot of DIRTY: a sync ends though the file is written to.
enum RadixTag : uint8_t { PAGECACHE_TAG_DIRTY = 0, PAGECACHE_TAG_WRITEBACK = 1, PAGECACHE_TAG_TOWRITE = 2 };

/// The two low bits of an entry.
inline constexpr uintptr_t RADIX_TREE_INTERNAL_NODE = 1;
inline constexpr uintptr_t RADIX_TREE_EXCEPTIONAL_ENTRY = 2;
/// A value is shifted left by this to make an exceptional entry, so 62 bits are the user's.
inline constexpr unsigned RADIX_TREE_EXCEPTIONAL_SHIFT = 2;

/// What counts as a hole in a search for one.
enum class RadixHole : uint8_t {
  empty,     ///< nothing is stored there
  no_object  ///< nothing or an exceptional entry: what the page cache calls a hole
};

/// One node. From its source to the tree and back it belongs to the tree; its bytes need not be zero on either way.
///
/// In a tree, under the tree lock:
///   marks[m] bit i set  =>  marks[PRESENT] bit i set  <=>  slots[i] != nullptr;  marks[PRESENT] != 0
///   shift > 0:  every slot in use is a child, child->shift = shift - 6, child->parent = this, child->offset = i,
///               marks[tag] bit i = (child->marks[tag] != 0), exceptional = 0
///   shift = 0:  every slot in use is an item, exceptional bit i = (slots[i] is an exceptional entry)
///   parent = nullptr  <=>  this is the root; then marks[PRESENT] != 1: a root that only leads to slot 0 is not kept
struct RadixTreeNode {
  static constexpr unsigned PRESENT = RADIX_TREE_MAX_TAGS;
  static constexpr unsigned MARKS = RADIX_TREE_MAX_TAGS + 1;

  void* slots[RADIX_TREE_MAP_SIZE];
  uint64_t marks[MARKS];
  uint64_t exceptional;
  RadixTreeNode* parent;  ///< outside a tree: the next node of a preload
  uint8_t shift;          ///< index bits below this node's own six
  uint8_t offset;         ///< the slot in parent

  [[nodiscard]] unsigned count() const { return static_cast<unsigned>(std::popcount(marks[PRESENT])); }
};
static_assert(sizeof(RadixTreeNode) <= 576, "seven nodes fill a page");

/// Where nodes come from. Whether alloc_node may sleep is the caller's choice of source.
class RadixNodeSource {
 public:
  /// A node, its bytes anything. Null when there is none.
  virtual RadixTreeNode* alloc_node() = 0;
  virtual void free_node(RadixTreeNode* node) = 0;

  /// Nodes linked by parent.
  struct Chain {
    RadixTreeNode* first = nullptr;
    unsigned count = 0;
  };
  /// What earlier preloads did not need, if the source keeps it: the next one need not ask for as much.
  virtual Chain take_spares() { return {}; }
  /// `spares` is not empty. False: the source does not keep them, they are to be freed.
  virtual bool keep_spares(Chain spares) {
    (void)spares;
    return false;
  }

 protected:
  ~RadixNodeSource() = default;
};

/// Nodes taken beforehand, so that an insert under a lock cannot fail. On the stack of who inserts. What is not needed
/// stays with the source for the next, where it can (the kernel's radix_tree_preloads).
class RadixPreload {
 public:
  /// `source` outlives this. No entry of the tree, old or new, may be above `max_index` at the time of the insert. A
  /// tree known to be low needs few nodes: 5 instead of 21 for the 16384 slots of a swap address space.
  explicit RadixPreload(RadixNodeSource& source, uint64_t max_index = ~uint64_t{0})
      : source_(source), max_index_(max_index) {}
  RadixPreload(const RadixPreload&) = delete;
  RadixPreload& operator=(const RadixPreload&) = delete;
  /// Gives back what radix_tree_preload_end did not.
  ~RadixPreload() { give_back(); }

  [[nodiscard]] unsigned held() const { return nodes_.count; }

 private:
  friend class RadixTree;
  friend Result<void> radix_tree_maybe_preload_order(RadixPreload& preload, unsigned order);
  friend Result<void> radix_tree_maybe_preload(RadixPreload& preload);
  friend Result<void> radix_tree_preload(RadixPreload& preload);
  friend void radix_tree_preload_end(RadixPreload& preload);

  /// Takes from the source until `count` are held; false when it has no more (what was got stays).
  bool fill(unsigned count);
  Result<void> reserve(unsigned order);
  RadixTreeNode* take();
  void give_back();

  RadixNodeSource& source_;
  uint64_t max_index_;
  RadixNodeSource::Chain nodes_;
};

/// Nodes that inserting 2^order entries at a naturally aligned index can take at most, if no index of the tree, the new
/// ones included, is above max_index.
[[nodiscard]] unsigned radix_tree_preload_size(unsigned order, uint64_t max_index);

/// Fills `preload` for inserting 2^order entries at a naturally aligned index. May sleep, as its source does.
/// Errors: ENOMEM; then nothing is held.
Result<void> radix_tree_maybe_preload_order(RadixPreload& preload, unsigned order);
/// The same for one entry.
Result<void> radix_tree_maybe_preload(RadixPreload& preload);
/// The same by the name of kernels before 3.12.
Result<void> radix_tree_preload(RadixPreload& preload);
/// Leaves the nodes that were not needed to their source: for the next preload, or gives them back.
void radix_tree_preload_end(RadixPreload& preload);

/// Is `entry` a node rather than an item? Recorded; see is_internal_node.
[[nodiscard]] bool radix_tree_is_internal_node(const void* entry);
/// Is `entry` a value rather than a pointer? Recorded; see is_exceptional_entry.
[[nodiscard]] bool radix_tree_exceptional_entry(const void* entry);

/// The same questions, not recorded: for loops and lookups.
[[nodiscard]] inline bool is_internal_node(const void* entry) {
  return (reinterpret_cast<uintptr_t>(entry) & RADIX_TREE_INTERNAL_NODE) != 0;
}
[[nodiscard]] inline bool is_exceptional_entry(const void* entry) {
  return (reinterpret_cast<uintptr_t>(entry) & (RADIX_TREE_INTERNAL_NODE | RADIX_TREE_EXCEPTIONAL_ENTRY)) ==
         RADIX_TREE_EXCEPTIONAL_ENTRY;
}

/// A value of at most 62 bits as an entry, and back.
[[nodiscard]] inline void* make_exceptional_entry(uint64_t value) {
  return reinterpret_cast<void*>((value << RADIX_TREE_EXCEPTIONAL_SHIFT) | RADIX_TREE_EXCEPTIONAL_ENTRY);
}
[[nodiscard]] inline uint64_t exceptional_value(const void* entry) {
  return reinterpret_cast<uintptr_t>(entry) >> RADIX_TREE_EXCEPTIONAL_SHIFT;
}

/// All-zero is the empty tree. Nothing here sleeps, except that an insert whose preload is short asks the source.
/// A tree that goes away must be empty: only its user knows where its nodes came from.
class RadixTree {
 public:
  RadixTree() = default;
  RadixTree(const RadixTree&) = delete;
  RadixTree& operator=(const RadixTree&) = delete;

  /// Stores `item` (not null, bit 0 clear) at `index`, untagged. Takes nodes from `preload`, then from its source.
  /// Errors: EEXIST when the slot is in use, ENOMEM when neither has a node. In both cases the tree is as before.
  Result<void> radix_tree_insert(uint64_t index, void* item, RadixPreload& preload);

  /// The item at `index`, null when there is none.
  [[nodiscard]] void* lookup(uint64_t index) const;

  /// Takes the item out with its tags and returns it; null when there was none. Empty nodes then go to `source`.
  void* erase(uint64_t index, RadixNodeSource& source);

  /// Puts `item` in the place of the one at `index`, whose tags stay, and returns that one. Null when there was none;
  /// then nothing is stored. Needs no node.
  void* replace(uint64_t index, void* item);

  /// Tags the item at `index`, which must be there, and returns it.
  void* tag_set(uint64_t index, RadixTag tag);
  /// Takes the tag away; returns the item, null when there is none.
  void* tag_clear(uint64_t index, RadixTag tag);
  [[nodiscard]] bool tag_get(uint64_t index, RadixTag tag) const;
  /// Does any item have the tag?
  [[nodiscard]] bool tagged(RadixTag tag) const { return (root_tags_ >> tag & 1) != 0; }

  /// Up to `max` items from index `first` on, by ascending index; returns how many. `indices` may be null.
  unsigned gang_lookup(void** results, uint64_t* indices, uint64_t first, unsigned max) const;
  /// The same of the items with `tag`.
  unsigned gang_lookup_tag(void** results, uint64_t* indices, uint64_t first, unsigned max, RadixTag tag) const;

  /// The lowest hole in [index, index + max_scan). When there is none, index + max_scan; 0 when the scan ran past the
  /// largest index.
  [[nodiscard]] uint64_t next_hole(uint64_t index, uint64_t max_scan, RadixHole hole = RadixHole::empty) const;
  /// The highest hole in (index - max_scan, index]. When there is none, index - max_scan; ~0 when the scan ran below 0.
  [[nodiscard]] uint64_t prev_hole(uint64_t index, uint64_t max_scan, RadixHole hole = RadixHole::empty) const;

  /// The leaf that has a slot for `index`; null when there is none, or when the tree has no node.
  [[nodiscard]] const RadixTreeNode* leaf_of(uint64_t index) const { return find_leaf(index); }

  [[nodiscard]] bool empty() const { return root_ == nullptr; }
  /// Nodes the tree holds.
  [[nodiscard]] uint32_t node_count() const { return nodes_; }
  /// Levels of nodes: 0 (nothing, or one item at index 0) to RADIX_TREE_MAX_PATH.
  [[nodiscard]] unsigned height() const;

  /// Calls on_item(index, item, tags) for every item by ascending index; bit t of `tags` is tag t. It must not change
  /// the tree.
  template <class OnItem>
  void walk(OnItem&& on_item) const {
    if (root_ == nullptr) return;
    if (!is_internal_node(root_)) {
      on_item(uint64_t{0}, root_, unsigned{root_tags_});
      return;
    }
    for (uint64_t index = 0;;) {
      const RadixTreeNode* leaf = seek(index, RadixTreeNode::PRESENT);
      if (leaf == nullptr) return;
      const uint64_t base = index & ~uint64_t{RADIX_TREE_MAP_SIZE - 1};
      for (uint64_t left = leaf->marks[RadixTreeNode::PRESENT]; left != 0; left &= left - 1) {
        const unsigned slot = static_cast<unsigned>(std::countr_zero(left));
        unsigned tags = 0;
        for (unsigned tag = 0; tag < RADIX_TREE_MAX_TAGS; ++tag)
          tags |= static_cast<unsigned>(leaf->marks[tag] >> slot & 1) << tag;
        on_item(base + slot, leaf->slots[slot], tags);
      }
      index = base + RADIX_TREE_MAP_SIZE;
      if (index == 0) return;
    }
  }
  /// Calls on_node(node) for every node, parents first: who accounts for the frames that nodes lie in.
  template <class OnNode>
  void walk_nodes(OnNode&& on_node) const {
    const RadixTreeNode* node = root_node();
    while (node != nullptr) {
      on_node(*node);
      node = node_after(node);
    }
  }
  /// The first rule of RadixTreeNode's, or of the tree's, that does not hold; null when all do. For verify().
  [[nodiscard]] const char* broken_rule() const;

  /// Gives every node back and is empty. The items are the user's to release, before this.
  void destroy(RadixNodeSource& source);

 private:
  struct Place {
    RadixTreeNode* node;  // null: the root itself is the slot
    void** slot;
    unsigned offset;
  };

  Result<void> __radix_tree_insert(uint64_t index, void* item, RadixPreload& preload);
  Result<Place> __radix_tree_create(uint64_t index, RadixPreload& preload);
  static Result<void> insert_entries(const Place& place, void* item);

  [[nodiscard]] RadixTreeNode* root_node() const;
  [[nodiscard]] RadixTreeNode* find_leaf(uint64_t index) const;
  [[nodiscard]] const RadixTreeNode* seek(uint64_t& index, unsigned mark) const;
  [[nodiscard]] static const RadixTreeNode* node_after(const RadixTreeNode* node);
  unsigned gang(void** results, uint64_t* indices, uint64_t first, unsigned max, unsigned mark) const;
  void grow(unsigned wanted, RadixPreload& preload);
  RadixTreeNode* make_node(RadixPreload& preload, unsigned shift, RadixTreeNode* parent, unsigned offset);
  void clear_tag_upwards(RadixTreeNode* leaf, unsigned offset, unsigned tag);
  void give_up_empty(RadixTreeNode* node, RadixNodeSource& source);

  void* root_ = nullptr;   // null, an item of index 0, or a node
  uint32_t nodes_ = 0;     // = nodes reached from root_
  uint8_t root_tags_ = 0;  // bit t = some item has tag t
};
static_assert(sizeof(RadixTree) == 16);

}  // namespace weir
