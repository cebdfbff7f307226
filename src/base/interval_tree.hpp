// src/base/interval_tree.hpp
//
// Closed intervals [start, last], found by what they overlap: which mappings of this file cover its page 7?
// A binary tree ordered by start whose nodes also know the largest `last` below them:
//
//                  [4, 9] largest 20                 query [10, 12]:
//                 /                 \                  [4, 9]: largest 20 >= 10, so something may be here
//       [1, 20] largest 20      [6, 7] largest 8       its left:  [1, 20] overlaps
//                                    \                 itself:    9 < 10, no
//                                  [8, 8] largest 8    its right: largest 8 < 10, the whole side is skipped
//
// Intrusive: a node holds an IntervalTreeLink, the tree allocates nothing. Balanced by height (AVL), so it is never
// higher than 1.45 log2(n), and its shape depends on the order of calls alone, never on addresses.
//
//   struct VmaTraits {
//     using Node = VmArea;
//     static uint64_t start(const VmArea& vma) { return vma.vm_pgoff; }
//     static uint64_t last(const VmArea& vma) { return vma.vm_pgoff + vma.pages() - 1; }
//     static IntervalTreeLink& link(VmArea& vma) { return vma.shared; }
//   };
//   IntervalTree<VmaTraits> i_mmap;
//   for (VmArea* vma = i_mmap.iter_first(7, 7); vma != nullptr; vma = i_mmap.iter_next(vma, 7, 7)) ...
//
// Cost: insert and erase O(log n). The first of k overlapping intervals is found in O(log n), all of them in
// O(log n + k log(n / k)): what is visited is they and their ancestors, so neighbours by start cost O(log n + k).
//
// Locking: none here; whoever guards the tree guards the links of its nodes (i_mmap lock, anon_vma lock).
// Linux: include/linux/interval_tree_generic.h, mm/interval_tree.c, 3.7 and later, there on a red-black tree.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/result.hpp"

namespace weir {

/// A node's place in one tree. All-zero: in none.
///
/// In a tree:  height = 1 + max(left's, right's), where "no child" has 0; |left's - right's| <= 1
///             subtree_last = max(last of this node, left's, right's)
///             starts in the left subtree <= this node's start <= starts in the right one; those that start alike are
///             in the order of their insertion
/// The pointers are to nodes, of the type that the tree's Traits say.
struct IntervalTreeLink {
  void* parent = nullptr;
  void* left = nullptr;
  void* right = nullptr;
  uint64_t subtree_last = 0;
  uint8_t height = 0;

  [[nodiscard]] bool linked() const { return height != 0; }
};

/// Traits: Node; start(const Node&), last(const Node&), start <= last, neither changing while in the tree; link(Node&).
/// All-zero is the empty tree.
template <class Traits>
class IntervalTree {
 public:
  using Node = typename Traits::Node;

  IntervalTree() = default;
  IntervalTree(const IntervalTree&) = delete;
  IntervalTree& operator=(const IntervalTree&) = delete;

  [[nodiscard]] bool empty() const { return root_ == nullptr; }

  /// Puts `node` in, after those that start where it starts.
  void insert(Node* node) {
    Node* above = nullptr;
    bool to_left = false;
    for (Node* at = root_; at != nullptr; at = to_left ? left(at) : right(at)) {
      above = at;
      to_left = Traits::start(*node) < Traits::start(*at);
    }
    attach(node, above, to_left);
  }

  /// Puts `node`, which starts where `prev` starts, directly after it. A fork uses it: the child's mapping comes after
  /// the parent's, so a walk that races with the copy of page tables meets the copy last.
  void insert_after(Node* node, Node* prev) {
    WEIR_BUG_ON(Traits::start(*node) != Traits::start(*prev));
    if (right(prev) == nullptr)
      attach(node, prev, false);
    else
      attach(node, leftmost(right(prev)), true);
  }

  /// Takes `node`, which is in this tree, out. Its link is all-zero afterwards.
  void erase(Node* node) {
    WEIR_BUG_ON(!link(node).linked());
    if (left(node) == nullptr || right(node) == nullptr) {
      Node* below = left(node) != nullptr ? left(node) : right(node);
      Node* above = parent(node);
      replace_child(above, node, below);
      fix_up(above, nullptr);
    } else {
      // The next in order has no left child: it leaves its place and takes this one's.
      Node* next = leftmost(right(node));
      Node* changed = next;
      if (next != right(node)) {
        changed = parent(next);
        set_left(changed, right(next));
        set_right(next, right(node));
      }
      set_left(next, left(node));
      replace_child(parent(node), node, next);
      // What the ancestors saw at this place, for fix_up to compare with.
      link(next).height = link(node).height;
      link(next).subtree_last = link(node).subtree_last;
      fix_up(changed, next);
    }
    link(node) = IntervalTreeLink{};
  }

  /// The first node, by start, that overlaps [start, last]; null when none does.
  [[nodiscard]] Node* iter_first(uint64_t start, uint64_t last) const {
    return ends_at_or_after(root_, start) ? first_below(root_, start, last) : nullptr;
  }

  /// The next one after `node`, which iter_first or iter_next returned for the same [start, last] and which is still in
  /// the tree.
  [[nodiscard]] Node* iter_next(Node* node, uint64_t start, uint64_t last) const {
    for (;;) {
      if (ends_at_or_after(right(node), start)) return first_below(right(node), start, last);
      node = next_above(node);
      if (node == nullptr || Traits::start(*node) > last) return nullptr;
      if (Traits::last(*node) >= start) return node;
    }
  }

  /// All nodes in order, for verify().
  [[nodiscard]] Node* first() const { return root_ == nullptr ? nullptr : leftmost(root_); }
  [[nodiscard]] Node* next(Node* node) const {
    return right(node) != nullptr ? leftmost(right(node)) : next_above(node);
  }

  /// The first rule of IntervalTreeLink's that does not hold; null when all do. For verify().
  [[nodiscard]] const char* broken_rule() const {
    if (root_ != nullptr && parent(root_) != nullptr) return "interval: the root has a parent";
    // Parents first: where a child is walked to, it is known to lead back.
    for (Node* node = root_; node != nullptr; node = next_downwards(node)) {
      for (Node* below : {left(node), right(node)})
        if (below != nullptr && parent(below) != node) return "interval: a child has another parent";
      const int tilt = height(left(node)) - height(right(node));
      if (tilt < -1 || tilt > 1) return "interval: out of balance";
      if (height(node) != height_below(node)) return "interval: height is wrong";
      if (Traits::start(*node) > Traits::last(*node)) return "interval: last lies before start";
      if (link(node).subtree_last != last_below(node)) return "interval: subtree_last is wrong";
    }
    Node* before = nullptr;
    for (Node* node = first(); node != nullptr; before = node, node = next(node))
      if (before != nullptr && Traits::start(*before) > Traits::start(*node)) return "interval: out of order";
    return nullptr;
  }

 private:
  static IntervalTreeLink& link(Node* node) { return Traits::link(*node); }
  static Node* parent(Node* node) { return static_cast<Node*>(link(node).parent); }
  static Node* left(Node* node) { return static_cast<Node*>(link(node).left); }
  static Node* right(Node* node) { return static_cast<Node*>(link(node).right); }
  static int height(Node* node) { return node == nullptr ? 0 : link(node).height; }

  static void set_left(Node* node, Node* child) {
    link(node).left = child;
    if (child != nullptr) link(child).parent = node;
  }
  static void set_right(Node* node, Node* child) {
    link(node).right = child;
    if (child != nullptr) link(child).parent = node;
  }
  /// `new_child`, if there is one, hangs where `old_child` hung; a null `above` is the place above the root.
  void replace_child(Node* above, Node* old_child, Node* new_child) {
    if (above == nullptr) {
      root_ = new_child;
      if (new_child != nullptr) link(new_child).parent = nullptr;
    } else if (left(above) == old_child) {
      set_left(above, new_child);
    } else {
      set_right(above, new_child);
    }
  }

  static Node* leftmost(Node* node) {
    while (left(node) != nullptr) node = left(node);
    return node;
  }
  /// The nearest ancestor on whose left side `node` lies: what follows when everything to its right is done.
  static Node* next_above(Node* node) {
    for (;;) {
      Node* from = node;
      node = parent(from);
      if (node == nullptr || left(node) == from) return node;
    }
  }

  /// The node after `node` when parents come first.
  static Node* next_downwards(Node* node) {
    if (left(node) != nullptr) return left(node);
    for (Node* from = nullptr; node != nullptr; from = node, node = parent(node))
      if (right(node) != nullptr && right(node) != from) return right(node);
    return nullptr;
  }

  static bool ends_at_or_after(Node* subtree, uint64_t start) {
    return subtree != nullptr && link(subtree).subtree_last >= start;
  }
  /// The first node at or below `node` that overlaps, given that something there ends at or after `start`.
  static Node* first_below(Node* node, uint64_t start, uint64_t last) {
    for (;;) {
      if (ends_at_or_after(left(node), start)) {
        // Something on the left ends late enough. If that starts too late, so does everything to the right of it.
        node = left(node);
        continue;
      }
      if (Traits::start(*node) > last) return nullptr;
      if (Traits::last(*node) >= start) return node;
      node = right(node);
      if (!ends_at_or_after(node, start)) return nullptr;
    }
  }

  void attach(Node* node, Node* above, bool to_left) {
    WEIR_BUG_ON(link(node).linked());
    WEIR_BUG_ON(Traits::start(*node) > Traits::last(*node));
    link(node) = {above, nullptr, nullptr, Traits::last(*node), 1};
    if (above == nullptr)
      root_ = node;
    else if (to_left)
      set_left(above, node);
    else
      set_right(above, node);
    fix_up(above, nullptr);
  }

  // What a node's fields should be, given that its children's are right.
  static int height_below(Node* node) { return 1 + std::max(height(left(node)), height(right(node))); }
  static uint64_t last_below(Node* node) {
    uint64_t last = Traits::last(*node);
    if (left(node) != nullptr) last = std::max(last, link(left(node)).subtree_last);
    if (right(node) != nullptr) last = std::max(last, link(right(node)).subtree_last);
    return last;
  }
  static void update(Node* node) {
    link(node).height = static_cast<uint8_t>(height_below(node));
    link(node).subtree_last = last_below(node);
  }

  /// `node` goes below its right (left) child, which is returned in its place.
  Node* rotate_left(Node* node) {
    Node* up = right(node);
    replace_child(parent(node), node, up);
    set_right(node, left(up));
    set_left(up, node);
    update(node);
    update(up);
    return up;
  }
  Node* rotate_right(Node* node) {
    Node* up = left(node);
    replace_child(parent(node), node, up);
    set_left(node, right(up));
    set_right(up, node);
    update(node);
    update(up);
    return up;
  }

  /// Makes `node`'s fields right and the subtree balanced; returns who is its root then.
  Node* rebalance(Node* node) {
    const int tilt = height(left(node)) - height(right(node));
    if (tilt > 1) {
      Node* side = left(node);
      if (height(left(side)) < height(right(side))) rotate_left(side);
      return rotate_right(node);
    }
    if (tilt < -1) {
      Node* side = right(node);
      if (height(right(side)) < height(left(side))) rotate_right(side);
      return rotate_left(node);
    }
    update(node);
    return node;
  }

  /// Repairs `node` and its ancestors after a change below, at least up to `through` (null: no such node), and no
  /// further than the change is seen.
  void fix_up(Node* node, Node* through) {
    while (node != nullptr) {
      const int height_before = height(node);
      const uint64_t last_before = link(node).subtree_last;
      if (node == through) through = nullptr;
      node = rebalance(node);
      if (through == nullptr && height(node) == height_before && link(node).subtree_last == last_before) return;
      node = parent(node);
    }
  }

  Node* root_ = nullptr;
};

}  // namespace weir
