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
//     static IntervalTreeLink<VmArea>& link(VmArea& vma) { return vma.shared; }
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
template <class T>
struct IntervalTreeLink {
  T* parent = nullptr;
  T* left = nullptr;
  T* right = nullptr;
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
    Node* parent = nullptr;
    bool to_left = false;
    for (Node* at = root_; at != nullptr; at = to_left ? link(at).left : link(at).right) {
      parent = at;
      to_left = Traits::start(*node) < Traits::start(*at);
    }
    attach(node, parent, to_left);
  }

  /// Puts `node`, which starts where `prev` starts, directly after it. A fork uses it: the child's mapping comes after
  /// the parent's, so a walk that races with the copy of page tables meets the copy last.
  void insert_after(Node* node, Node* prev) {
    WEIR_BUG_ON(Traits::start(*node) != Traits::start(*prev));
    if (link(prev).right == nullptr)
      attach(node, prev, false);
    else
      attach(node, leftmost(link(prev).right), true);
  }

  /// Takes `node`, which is in this tree, out. Its link is all-zero afterwards.
  void erase(Node* node) {
    Link& gone = link(node);
    WEIR_BUG_ON(!gone.linked());
    if (gone.left == nullptr || gone.right == nullptr) {
      Node* below = gone.left != nullptr ? gone.left : gone.right;
      Node* parent = gone.parent;
      replace_child(parent, node, below);
      if (below != nullptr) link(below).parent = parent;
      fix_up(parent, nullptr);
    } else {
      // The next in order has no left child: it leaves its place and takes this one's.
      Node* next = leftmost(gone.right);
      Node* changed = next;
      if (next != gone.right) {
        changed = link(next).parent;
        link(changed).left = link(next).right;
        if (link(next).right != nullptr) link(link(next).right).parent = changed;
        link(next).right = gone.right;
        link(gone.right).parent = next;
      }
      link(next).left = gone.left;
      link(gone.left).parent = next;
      link(next).parent = gone.parent;
      // What the ancestors saw at this place, for fix_up to compare with.
      link(next).height = gone.height;
      link(next).subtree_last = gone.subtree_last;
      replace_child(gone.parent, node, next);
      fix_up(changed, next);
    }
    gone = Link{};
  }

  /// The first node, by start, that overlaps [start, last]; null when none does.
  [[nodiscard]] Node* iter_first(uint64_t start, uint64_t last) const {
    if (root_ == nullptr || link(root_).subtree_last < start) return nullptr;
    return first_below(root_, start, last);
  }

  /// The next one after `node`, which iter_first or iter_next returned for the same [start, last] and which is still in
  /// the tree.
  [[nodiscard]] Node* iter_next(Node* node, uint64_t start, uint64_t last) const {
    Node* right = link(node).right;
    if (right != nullptr && link(right).subtree_last >= start) return first_below(right, start, last);
    for (;;) {
      // Upwards until we come from the left; what is there comes next in order.
      Node* from;
      do {
        from = node;
        node = link(from).parent;
        if (node == nullptr) return nullptr;
      } while (link(node).right == from);
      if (Traits::start(*node) > last) return nullptr;
      if (Traits::last(*node) >= start) return node;
      right = link(node).right;
      if (right != nullptr && link(right).subtree_last >= start) return first_below(right, start, last);
    }
  }

  /// All nodes in order, for verify().
  [[nodiscard]] Node* first() const { return root_ == nullptr ? nullptr : leftmost(root_); }
  [[nodiscard]] Node* next(Node* node) const {
    if (link(node).right != nullptr) return leftmost(link(node).right);
    for (;;) {
      Node* from = node;
      node = link(from).parent;
      if (node == nullptr || link(node).left == from) return node;
    }
  }

  /// The first rule of IntervalTreeLink's that does not hold; null when all do. For verify().
  [[nodiscard]] const char* broken_rule() const {
    if (root_ != nullptr && link(root_).parent != nullptr) return "interval: the root has a parent";
    Node* before = nullptr;
    for (Node* node = first(); node != nullptr; before = node, node = next(node)) {
      const Link& at = link(node);
      if (Traits::start(*node) > Traits::last(*node)) return "interval: last lies before start";
      if (before != nullptr && Traits::start(*before) > Traits::start(*node)) return "interval: out of order";
      for (Node* below : {at.left, at.right})
        if (below != nullptr && link(below).parent != node) return "interval: a child has another parent";
      const int left = height(at.left);
      const int right = height(at.right);
      if (at.height != 1 + std::max(left, right)) return "interval: height is wrong";
      if (left - right > 1 || right - left > 1) return "interval: out of balance";
      if (at.subtree_last != last_below(node)) return "interval: subtree_last is wrong";
    }
    return nullptr;
  }

 private:
  using Link = IntervalTreeLink<Node>;

  static Link& link(Node* node) { return Traits::link(*node); }
  static int height(Node* node) { return node == nullptr ? 0 : link(node).height; }

  static Node* leftmost(Node* node) {
    while (link(node).left != nullptr) node = link(node).left;
    return node;
  }

  /// subtree_last as it should be.
  static uint64_t last_below(Node* node) {
    uint64_t last = Traits::last(*node);
    for (Node* below : {link(node).left, link(node).right})
      if (below != nullptr) last = std::max(last, link(below).subtree_last);
    return last;
  }

  /// The first node at or below `node` that overlaps, given that something there ends at or after `start`.
  static Node* first_below(Node* node, uint64_t start, uint64_t last) {
    for (;;) {
      const Link& at = link(node);
      if (at.left != nullptr && link(at.left).subtree_last >= start) {
        // Something on the left ends late enough. If that starts too late, so does everything to the right of it.
        node = at.left;
        continue;
      }
      if (Traits::start(*node) > last) return nullptr;
      if (Traits::last(*node) >= start) return node;
      if (at.right == nullptr || link(at.right).subtree_last < start) return nullptr;
      node = at.right;
    }
  }

  void replace_child(Node* parent, Node* old_child, Node* new_child) {
    if (parent == nullptr)
      root_ = new_child;
    else if (link(parent).left == old_child)
      link(parent).left = new_child;
    else
      link(parent).right = new_child;
  }

  void attach(Node* node, Node* parent, bool to_left) {
    Link& at = link(node);
    WEIR_BUG_ON(at.linked());
    WEIR_BUG_ON(Traits::start(*node) > Traits::last(*node));
    at = Link{parent, nullptr, nullptr, Traits::last(*node), 1};
    if (parent == nullptr)
      root_ = node;
    else
      (to_left ? link(parent).left : link(parent).right) = node;
    fix_up(parent, nullptr);
  }

  /// Height and subtree_last of `node` from its children.
  static void update(Node* node) {
    Link& at = link(node);
    at.height = static_cast<uint8_t>(1 + std::max(height(at.left), height(at.right)));
    at.subtree_last = last_below(node);
  }

  /// `node` goes below its right child, which is returned in its place; its own fields are right afterwards.
  Node* rotate_left(Node* node) {
    Node* up = link(node).right;
    link(node).right = link(up).left;
    if (link(up).left != nullptr) link(link(up).left).parent = node;
    link(up).left = node;
    put_above(up, node);
    return up;
  }
  Node* rotate_right(Node* node) {
    Node* up = link(node).left;
    link(node).left = link(up).right;
    if (link(up).right != nullptr) link(link(up).right).parent = node;
    link(up).right = node;
    put_above(up, node);
    return up;
  }
  void put_above(Node* up, Node* node) {
    Node* parent = link(node).parent;
    link(up).parent = parent;
    replace_child(parent, node, up);
    link(node).parent = up;
    update(node);
    update(up);
  }

  /// Makes `node`'s fields right and the subtree balanced; returns who is its root then.
  Node* rebalance(Node* node) {
    update(node);
    const Link& at = link(node);
    const int tilt = height(at.left) - height(at.right);
    if (tilt > 1) {
      if (height(link(at.left).left) < height(link(at.left).right)) rotate_left(at.left);
      return rotate_right(node);
    }
    if (tilt < -1) {
      if (height(link(at.right).right) < height(link(at.right).left)) rotate_right(at.right);
      return rotate_left(node);
    }
    return node;
  }

  /// Repairs `node` and its ancestors after a change below, at least up to `through` (null: no such node), and no
  /// further than the change is seen.
  void fix_up(Node* node, Node* through) {
    while (node != nullptr) {
      const uint8_t height_before = link(node).height;
      const uint64_t last_before = link(node).subtree_last;
      if (node == through) through = nullptr;
      Node* top = rebalance(node);
      if (through == nullptr && link(top).height == height_before && link(top).subtree_last == last_before) return;
      node = link(top).parent;
    }
  }

  Node* root_ = nullptr;
};

}  // namespace weir
