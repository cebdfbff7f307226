// src/base/radix_tree.cpp: see radix_tree.hpp
#include "base/radix_tree.hpp"

#include <algorithm>
#include <cstring>

#include "base/flow.hpp"

namespace weir {

namespace {

constexpr unsigned PRESENT = RadixTreeNode::PRESENT;
constexpr uint64_t SLOT_MASK = RADIX_TREE_MAP_SIZE - 1;

constexpr uint64_t bit(unsigned slot) { return uint64_t{1} << slot; }
constexpr uint64_t from(unsigned slot) { return ~uint64_t{0} << slot; }

constexpr unsigned slot_of(uint64_t index, unsigned shift) { return static_cast<unsigned>(index >> shift & SLOT_MASK); }

/// The largest index below a node of `shift`. At shift 60 four bits are left for the slot, so the six would overflow.
constexpr uint64_t max_index_of(unsigned shift) {
  const unsigned bits = shift + RADIX_TREE_MAP_SHIFT;
  return bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
}

/// Levels of nodes that a tree needs for `index`: none for 0, which the root itself can hold.
constexpr unsigned height_for(uint64_t index) {
  return (static_cast<unsigned>(std::bit_width(index)) + RADIX_TREE_MAP_SHIFT - 1) / RADIX_TREE_MAP_SHIFT;
}

constexpr unsigned shift_of_height(unsigned height) { return (height - 1) * RADIX_TREE_MAP_SHIFT; }

/// `index` moved to where slot `slot` of a node of `shift` begins, within that node.
constexpr uint64_t move_to(uint64_t index, unsigned shift, unsigned slot) {
  return (index & ~max_index_of(shift)) | uint64_t{slot} << shift;
}

RadixTreeNode* entry_to_node(void* entry) {
  return reinterpret_cast<RadixTreeNode*>(reinterpret_cast<uintptr_t>(entry) & ~RADIX_TREE_INTERNAL_NODE);
}

RadixTreeNode* child(const RadixTreeNode* node, unsigned slot) { return entry_to_node(node->slots[slot]); }

/// A node as an entry of its parent.
void* node_to_entry(RadixTreeNode* node) {
  WEIR_FLOW();
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(node) | RADIX_TREE_INTERNAL_NODE);
}

bool present(const RadixTreeNode* node, unsigned slot) { return (node->marks[PRESENT] & bit(slot)) != 0; }

}  // namespace

bool radix_tree_is_internal_node(const void* entry) {
  WEIR_FLOW();
  return is_internal_node(entry);
}

bool radix_tree_exceptional_entry(const void* entry) {
  WEIR_FLOW();
  return is_exceptional_entry(entry);
}

// ---- Preload -------------------------------------------------------------------------------------------------------

bool RadixPreload::fill(unsigned count) {
  while (nodes_.count < count) {
    RadixTreeNode* node = source_.alloc_node();
    if (node == nullptr) return false;
    node->parent = nodes_.first;
    nodes_.first = node;
    ++nodes_.count;
  }
  return true;
}

RadixTreeNode* RadixPreload::take() {
  RadixTreeNode* node = nodes_.first;
  WEIR_BUG_ON(node == nullptr);
  nodes_.first = node->parent;
  --nodes_.count;
  return node;
}

void RadixPreload::give_back() {
  if (nodes_.count != 0 && source_.keep_spares(nodes_)) nodes_ = {};
  while (nodes_.count != 0) source_.free_node(take());
}

unsigned radix_tree_preload_size(unsigned order, uint64_t max_index) {
  const unsigned height = height_for(max_index);
  if (height == 0) return 0;
  // The worst tree holds one item at index 0, in the root: a chain of nodes down to it ...
  unsigned nodes = height;
  // ... and below the same root a path to the new entries, as many nodes wide as they are.
  for (unsigned level = 0; level + 1 < height; ++level) {
    const unsigned bits = (level + 1) * RADIX_TREE_MAP_SHIFT;
    nodes += order > bits ? 1U << (order - bits) : 1U;
  }
  return nodes;
}

Result<void> RadixPreload::reserve(unsigned order) {
  if (nodes_.count == 0) nodes_ = source_.take_spares();
  if (fill(radix_tree_preload_size(order, max_index_))) return {};
  give_back();
  return Errno::nomem;
}

Result<void> radix_tree_maybe_preload_order(RadixPreload& preload, unsigned order) {
  WEIR_FLOW(order);
  return preload.reserve(order);
}

Result<void> radix_tree_maybe_preload(RadixPreload& preload) {
  WEIR_FLOW();
  return preload.reserve(0);
}

Result<void> radix_tree_preload(RadixPreload& preload) {
  WEIR_FLOW();
  return preload.reserve(0);
}

void radix_tree_preload_end(RadixPreload& preload) {
  WEIR_FLOW(preload.held());
  preload.give_back();
}

// ---- Insert --------------------------------------------------------------------------------------------------------

Result<void> RadixTree::radix_tree_insert(uint64_t index, void* item, RadixPreload& preload) {
  WEIR_FLOW(index);
  return __radix_tree_insert(index, item, preload);
}

Result<void> RadixTree::__radix_tree_insert(uint64_t index, void* item, RadixPreload& preload) {
  WEIR_FLOW(index);
  WEIR_BUG_ON(item == nullptr || radix_tree_is_internal_node(item));
  const Place place = WEIR_TRY(__radix_tree_create(index, preload));
  return insert_entries(place, item);
}

RadixTreeNode* RadixTree::make_node(RadixPreload& preload, unsigned shift, RadixTreeNode* parent, unsigned offset) {
  RadixTreeNode* node = preload.take();
  std::memset(static_cast<void*>(node), 0, sizeof *node);
  node->shift = static_cast<uint8_t>(shift);
  node->parent = parent;
  node->offset = static_cast<uint8_t>(offset);
  ++nodes_;
  return node;
}

/// The slot of `index`, in use or not, with every node on the way to it. All that it takes is at hand before the first
/// node is linked, so a failure leaves no empty path behind.
Result<RadixTree::Place> RadixTree::__radix_tree_create(uint64_t index, RadixPreload& preload) {
  WEIR_FLOW(index);
  const unsigned have = height();
  const unsigned wanted = root_ == nullptr || height_for(index) > have ? height_for(index) : have;

  // The way as far as it is there.
  RadixTreeNode* node = wanted == have ? root_node() : nullptr;
  while (node != nullptr && node->shift != 0 && present(node, slot_of(index, node->shift)))
    node = child(node, slot_of(index, node->shift));

  unsigned missing = 0;
  if (node != nullptr)
    missing = node->shift / RADIX_TREE_MAP_SHIFT;
  else if (root_ == nullptr)
    missing = wanted;
  else if (wanted > have)
    // The old tree comes to lie below slot 0 of the new root, and `index` below another: they share the root alone.
    missing = (wanted - have) + (wanted - 1);
  if (!preload.fill(missing)) return Errno::nomem;

  if (node == nullptr) {
    if (wanted != have) grow(wanted, preload);
    node = root_node();
    if (node == nullptr) return Place{nullptr, &root_, 0};
  }
  while (node->shift != 0) {
    const unsigned slot = slot_of(index, node->shift);
    if (!present(node, slot)) {
      node->slots[slot] = node_to_entry(make_node(preload, node->shift - RADIX_TREE_MAP_SHIFT, node, slot));
      node->marks[PRESENT] |= bit(slot);
    }
    node = child(node, slot);
  }
  const unsigned slot = slot_of(index, 0);
  return Place{node, &node->slots[slot], slot};
}

/// Makes the tree `wanted` levels high. What it held goes below slot 0 of the new root.
void RadixTree::grow(unsigned wanted, RadixPreload& preload) {
  if (root_ == nullptr) {
    root_ = node_to_entry(make_node(preload, shift_of_height(wanted), nullptr, 0));
    return;
  }
  for (unsigned have = height(); have < wanted; ++have) {
    RadixTreeNode* root = make_node(preload, shift_of_height(have + 1), nullptr, 0);
    root->slots[0] = root_;
    root->marks[PRESENT] = bit(0);
    for (unsigned tag = 0; tag < RADIX_TREE_MAX_TAGS; ++tag) root->marks[tag] = root_tags_ >> tag & 1;
    if (RadixTreeNode* below = root_node())
      below->parent = root;
    else
      root->exceptional = is_exceptional_entry(root_) ? bit(0) : 0;
    root_ = node_to_entry(root);
  }
}

Result<void> RadixTree::insert_entries(const Place& place, void* item) {
  WEIR_FLOW(place.offset);
  if (*place.slot != nullptr) return Errno::exist;
  *place.slot = item;
  if (place.node != nullptr) {
    place.node->marks[PRESENT] |= bit(place.offset);
    if (radix_tree_exceptional_entry(item)) place.node->exceptional |= bit(place.offset);
  }
  return {};
}

// ---- One entry -----------------------------------------------------------------------------------------------------

RadixTreeNode* RadixTree::root_node() const { return is_internal_node(root_) ? entry_to_node(root_) : nullptr; }

unsigned RadixTree::height() const {
  const RadixTreeNode* root = root_node();
  return root == nullptr ? 0 : root->shift / RADIX_TREE_MAP_SHIFT + 1;
}

/// The leaf that has a slot for `index`; null when there is none, or when the tree has no node.
RadixTreeNode* RadixTree::find_leaf(uint64_t index) const {
  RadixTreeNode* node = root_node();
  if (node == nullptr || index > max_index_of(node->shift)) return nullptr;
  while (node->shift != 0) {
    void* entry = node->slots[slot_of(index, node->shift)];
    if (entry == nullptr) return nullptr;
    node = entry_to_node(entry);
  }
  return node;
}

void* RadixTree::lookup(uint64_t index) const {
  if (!is_internal_node(root_)) return index == 0 ? root_ : nullptr;
  const RadixTreeNode* leaf = find_leaf(index);
  return leaf == nullptr ? nullptr : leaf->slots[slot_of(index, 0)];
}

void* RadixTree::replace(uint64_t index, void* item) {
  WEIR_BUG_ON(item == nullptr || is_internal_node(item));
  if (!is_internal_node(root_)) {
    if (index != 0 || root_ == nullptr) return nullptr;
    void* old = root_;
    root_ = item;
    return old;
  }
  RadixTreeNode* leaf = find_leaf(index);
  const unsigned slot = slot_of(index, 0);
  if (leaf == nullptr || !present(leaf, slot)) return nullptr;
  void* old = leaf->slots[slot];
  leaf->slots[slot] = item;
  leaf->exceptional = (leaf->exceptional & ~bit(slot)) | (is_exceptional_entry(item) ? bit(slot) : 0);
  return old;
}

void* RadixTree::erase(uint64_t index, RadixNodeSource& source) {
  if (!is_internal_node(root_)) {
    if (index != 0) return nullptr;
    void* old = root_;
    root_ = nullptr;
    root_tags_ = 0;
    return old;
  }
  RadixTreeNode* leaf = find_leaf(index);
  const unsigned slot = slot_of(index, 0);
  if (leaf == nullptr || !present(leaf, slot)) return nullptr;
  void* old = leaf->slots[slot];
  for (unsigned tag = 0; tag < RADIX_TREE_MAX_TAGS; ++tag) clear_tag_upwards(leaf, slot, tag);
  leaf->slots[slot] = nullptr;
  leaf->marks[PRESENT] &= ~bit(slot);
  leaf->exceptional &= ~bit(slot);
  give_up_empty(leaf, source);
  return old;
}

/// After a slot of `node` became free: frees empty nodes upwards, then roots that only lead to slot 0.
void RadixTree::give_up_empty(RadixTreeNode* node, RadixNodeSource& source) {
  while (node->marks[PRESENT] == 0) {
    RadixTreeNode* parent = node->parent;
    const unsigned offset = node->offset;
    source.free_node(node);
    --nodes_;
    if (parent == nullptr) {
      root_ = nullptr;  // the tags went with the last item
      return;
    }
    parent->slots[offset] = nullptr;
    parent->marks[PRESENT] &= ~bit(offset);
    node = parent;
  }
  if (node->parent != nullptr) return;
  while (node != nullptr && node->marks[PRESENT] == bit(0)) {
    // Every mark of the root is a mark of slot 0, so root_tags_ stays right.
    root_ = node->slots[0];
    source.free_node(node);
    --nodes_;
    node = root_node();
    if (node != nullptr) node->parent = nullptr;
  }
}

// ---- Tags ----------------------------------------------------------------------------------------------------------

void* RadixTree::tag_set(uint64_t index, RadixTag tag) {
  void* item = lookup(index);
  WEIR_BUG_ON(item == nullptr);
  for (RadixTreeNode* node = root_node(); node != nullptr;) {
    const unsigned slot = slot_of(index, node->shift);
    node->marks[tag] |= bit(slot);
    node = node->shift != 0 ? child(node, slot) : nullptr;
  }
  root_tags_ = static_cast<uint8_t>(root_tags_ | 1U << tag);
  return item;
}

void* RadixTree::tag_clear(uint64_t index, RadixTag tag) {
  if (!is_internal_node(root_)) {
    if (index != 0 || root_ == nullptr) return nullptr;
    root_tags_ = static_cast<uint8_t>(root_tags_ & ~(1U << tag));
    return root_;
  }
  RadixTreeNode* leaf = find_leaf(index);
  const unsigned slot = slot_of(index, 0);
  if (leaf == nullptr || !present(leaf, slot)) return nullptr;
  clear_tag_upwards(leaf, slot, tag);
  return leaf->slots[slot];
}

/// Clears the bit of one slot, and of the nodes above as long as it was the last below them.
void RadixTree::clear_tag_upwards(RadixTreeNode* leaf, unsigned offset, unsigned tag) {
  for (RadixTreeNode* node = leaf; node != nullptr; node = node->parent) {
    if ((node->marks[tag] & bit(offset)) == 0) return;
    node->marks[tag] &= ~bit(offset);
    if (node->marks[tag] != 0) return;
    offset = node->offset;
  }
  root_tags_ = static_cast<uint8_t>(root_tags_ & ~(1U << tag));
}

bool RadixTree::tag_get(uint64_t index, RadixTag tag) const {
  if (!is_internal_node(root_)) return index == 0 && tagged(tag);
  const RadixTreeNode* leaf = find_leaf(index);
  return leaf != nullptr && (leaf->marks[tag] & bit(slot_of(index, 0))) != 0;
}

// ---- Many entries --------------------------------------------------------------------------------------------------

/// Moves `index` to the first entry at or after it that has `mark`, and returns its leaf; null when there is none.
/// Only for a tree with nodes.
const RadixTreeNode* RadixTree::seek(uint64_t& index, unsigned mark) const {
  const RadixTreeNode* node = root_node();
  if (index > max_index_of(node->shift)) return nullptr;
  for (;;) {
    const unsigned here = slot_of(index, node->shift);
    uint64_t left = node->marks[mark] & from(here);
    if ((left & bit(here)) == 0) {
      // Not on the way that the index points: upwards until something is left to the right of us.
      while (left == 0) {
        if (node->parent == nullptr) return nullptr;
        left = node->parent->marks[mark] & from(node->offset) & ~bit(node->offset);
        node = node->parent;
      }
      index = move_to(index, node->shift, static_cast<unsigned>(std::countr_zero(left)));
    }
    if (node->shift == 0) return node;
    node = child(node, slot_of(index, node->shift));
  }
}

unsigned RadixTree::gang(void** results, uint64_t* indices, uint64_t first, unsigned max, unsigned mark) const {
  unsigned found = 0;
  for (uint64_t index = first; found < max;) {
    const RadixTreeNode* leaf = seek(index, mark);
    if (leaf == nullptr) break;
    for (uint64_t left = leaf->marks[mark] & from(slot_of(index, 0)); left != 0 && found < max; left &= left - 1) {
      const unsigned slot = static_cast<unsigned>(std::countr_zero(left));
      results[found] = leaf->slots[slot];
      if (indices != nullptr) indices[found] = move_to(index, 0, slot);
      ++found;
    }
    index = (index | SLOT_MASK) + 1;
    if (index == 0) break;
  }
  return found;
}

unsigned RadixTree::gang_lookup(void** results, uint64_t* indices, uint64_t first, unsigned max) const {
  if (is_internal_node(root_)) return gang(results, indices, first, max, PRESENT);
  if (root_ == nullptr || first != 0 || max == 0) return 0;
  results[0] = root_;
  if (indices != nullptr) indices[0] = 0;
  return 1;
}

unsigned RadixTree::gang_lookup_tag(void** results, uint64_t* indices, uint64_t first, unsigned max,
                                    RadixTag tag) const {
  if (!tagged(tag)) return 0;
  if (is_internal_node(root_)) return gang(results, indices, first, max, tag);
  return gang_lookup(results, indices, first, max);
}

// ---- Holes ---------------------------------------------------------------------------------------------------------

namespace {
/// The slots of a leaf that are not holes.
uint64_t taken(const RadixTreeNode* leaf, RadixHole hole) {
  return hole == RadixHole::empty ? leaf->marks[PRESENT] : leaf->marks[PRESENT] & ~leaf->exceptional;
}
}  // namespace

uint64_t RadixTree::next_hole(uint64_t index, uint64_t max_scan, RadixHole hole) const {
  const RadixTreeNode* root = root_node();
  for (uint64_t at = index, left = max_scan;;) {
    if (left == 0) return at;
    uint64_t filled = 0;
    if (root != nullptr) {
      if (const RadixTreeNode* leaf = find_leaf(at)) filled = taken(leaf, hole);
    } else if (root_ != nullptr && at <= SLOT_MASK) {
      filled = hole == RadixHole::no_object && is_exceptional_entry(root_) ? 0 : bit(0);
    }
    const unsigned slot = slot_of(at, 0);
    const uint64_t holes = ~filled & from(slot);
    const uint64_t step = (holes == 0 ? RADIX_TREE_MAP_SIZE : static_cast<unsigned>(std::countr_zero(holes))) - slot;
    if (holes != 0 || step >= left) return at + std::min(step, left);
    at += step;
    left -= step;
    if (at == 0) return 0;
  }
}

uint64_t RadixTree::prev_hole(uint64_t index, uint64_t max_scan, RadixHole hole) const {
  const RadixTreeNode* root = root_node();
  for (uint64_t at = index, left = max_scan;;) {
    if (left == 0) return at;
    uint64_t filled = 0;
    if (root != nullptr) {
      if (const RadixTreeNode* leaf = find_leaf(at)) filled = taken(leaf, hole);
    } else if (root_ != nullptr && at <= SLOT_MASK) {
      filled = hole == RadixHole::no_object && is_exceptional_entry(root_) ? 0 : bit(0);
    }
    const unsigned slot = slot_of(at, 0);
    const uint64_t holes = ~filled & ~(from(slot) << 1);
    const uint64_t step = holes == 0 ? slot + 1 : slot - (63 - static_cast<unsigned>(std::countl_zero(holes)));
    if (holes != 0 || step >= left) return at - std::min(step, left);
    at -= step;
    left -= step;
    if (at == ~uint64_t{0}) return at;
  }
}

// ---- The whole tree ------------------------------------------------------------------------------------------------

/// The node after `node` when parents come first and children by slot.
const RadixTreeNode* RadixTree::node_after(const RadixTreeNode* node) {
  uint64_t left = node->shift != 0 ? node->marks[PRESENT] : 0;
  while (left == 0) {
    if (node->parent == nullptr) return nullptr;
    left = node->parent->marks[PRESENT] & from(node->offset) & ~bit(node->offset);
    node = node->parent;
  }
  return child(node, static_cast<unsigned>(std::countr_zero(left)));
}

namespace {
/// Checks a node by itself and against its children, which may then be walked to.
const char* broken_rule_of(const RadixTreeNode& node) {
  if (node.marks[PRESENT] == 0) return "radix: a node is empty";
  if ((node.exceptional & ~node.marks[PRESENT]) != 0) return "radix: an exceptional bit without an entry";
  if (node.shift != 0 && node.exceptional != 0) return "radix: an exceptional bit above the leaves";
  for (unsigned tag = 0; tag < RADIX_TREE_MAX_TAGS; ++tag)
    if ((node.marks[tag] & ~node.marks[PRESENT]) != 0) return "radix: a tag without an entry";
  for (unsigned i = 0; i < RADIX_TREE_MAP_SIZE; ++i) {
    if (present(&node, i) != (node.slots[i] != nullptr)) return "radix: a slot in use is not marked present";
    if (!present(&node, i)) continue;
    if (is_internal_node(node.slots[i]) != (node.shift != 0))
      return "radix: an item above the leaves, or a node in a leaf";
    if (node.shift == 0) {
      if (is_exceptional_entry(node.slots[i]) != ((node.exceptional & bit(i)) != 0))
        return "radix: an exceptional bit does not say what is stored";
      continue;
    }
    const RadixTreeNode& below = *child(&node, i);
    if (below.parent != &node || below.offset != i) return "radix: a child does not know its place";
    if (below.shift + RADIX_TREE_MAP_SHIFT != node.shift) return "radix: a child is at the wrong height";
    for (unsigned tag = 0; tag < RADIX_TREE_MAX_TAGS; ++tag)
      if (((node.marks[tag] & bit(i)) != 0) != (below.marks[tag] != 0))
        return "radix: a tag does not say what is below";
  }
  return nullptr;
}
}  // namespace

const char* RadixTree::broken_rule() const {
  const RadixTreeNode* root = root_node();
  if (root == nullptr) {
    if (nodes_ != 0) return "radix: nodes are counted that are not there";
    return root_ == nullptr && root_tags_ != 0 ? "radix: an empty tree is tagged" : nullptr;
  }
  if (root->parent != nullptr) return "radix: the root has a parent";
  if (root->shift % RADIX_TREE_MAP_SHIFT != 0 || root->shift > shift_of_height(RADIX_TREE_MAX_PATH))
    return "radix: no such height";
  if (root->marks[PRESENT] == bit(0)) return "radix: the root only leads to slot 0";
  for (unsigned tag = 0; tag < RADIX_TREE_MAX_TAGS; ++tag)
    if (((root_tags_ >> tag & 1) != 0) != (root->marks[tag] != 0))
      return "radix: the tree's tags differ from its root's";
  uint32_t count = 0;
  for (const RadixTreeNode* node = root; node != nullptr; node = node_after(node)) {
    if (const char* broken = broken_rule_of(*node)) return broken;
    ++count;
  }
  return count == nodes_ ? nullptr : "radix: nodes are counted that are not there";
}

void RadixTree::destroy(RadixNodeSource& source) {
  RadixTreeNode* node = root_node();
  while (node != nullptr) {
    if (node->shift != 0 && node->marks[PRESENT] != 0) {
      const unsigned slot = static_cast<unsigned>(std::countr_zero(node->marks[PRESENT]));
      node->marks[PRESENT] &= node->marks[PRESENT] - 1;
      node = child(node, slot);
      continue;
    }
    RadixTreeNode* parent = node->parent;
    source.free_node(node);
    node = parent;
  }
  root_ = nullptr;
  root_tags_ = 0;
  nodes_ = 0;
}

}  // namespace weir
