// src/mm/workingset.cpp: see workingset.hpp
#include "mm/workingset.hpp"

namespace weir {

namespace {

constexpr unsigned NODES_SHIFT = 6;  // a shadow: inactive_age, node
constexpr uint64_t EVICTION_MASK = ~uint64_t{0} >> (RADIX_TREE_EXCEPTIONAL_SHIFT + NODES_SHIFT);
/// Looks at a leaf that may be given back; among so many there is one.
constexpr int64_t VISITS_PER_NODE = 16;

bool holds_shadows_only(const RadixTreeNode* leaf) {
  return leaf != nullptr && leaf->marks[RadixTreeNode::PRESENT] == leaf->exceptional;
}

}  // namespace

void* Workingset::workingset_eviction(const AddressSpace& mapping, const Page& page) {
  WEIR_FLOW(page.index);
  LruVec& lruvec = node_.lruvec;
  const uint64_t eviction = lruvec.inactive_age.fetch_add(1, std::memory_order_relaxed) + 1;
  if (mapping.page_tree.height() == 0) return nullptr;
  return make_exceptional_entry((eviction & EVICTION_MASK) << NODES_SHIFT | node_.id.v);
}

bool Workingset::workingset_refault(const void* shadow) {
  const uint64_t eviction = exceptional_value(shadow) >> NODES_SHIFT;
  LruVec& lruvec = node_.lruvec;
  const uint64_t refault = lruvec.inactive_age.load(std::memory_order_relaxed);
  // The age may have gone round; what is longer ago than that is taken for recent.
  const uint64_t refault_distance = (refault - eviction) & EVICTION_MASK;
  WEIR_FLOW(refault_distance);
  vmstat_.count_vm_event(VmEvent::workingset_refault);
  if (refault_distance > static_cast<uint64_t>(lruvec.size_racy(LruList::active_file))) return false;
  vmstat_.count_vm_event(VmEvent::workingset_activate);
  return true;
}

void Workingset::workingset_activation(const Page& page) {
  WEIR_FLOW(page.index);
  node_.lruvec.inactive_age.fetch_add(1, std::memory_order_relaxed);
}

// ---- Nodes that hold shadows only ----------------------------------------------------------------------------------

int64_t Workingset::Update::count() const {
  const RadixTree& tree = mapping_.page_tree;
  const RadixTreeNode* leaf = tree.leaf_of(index_);
  const RadixTreeNode* first = tree.leaf_of(0);
  return (holds_shadows_only(leaf) ? 1 : 0) + (first != leaf && holds_shadows_only(first) ? 1 : 0);
}

void Workingset::workingset_update_node(AddressSpace& mapping, int64_t delta) {
  if (delta == 0) return;
  const uint64_t before = mapping.shadow_nodes;
  mapping.shadow_nodes = before + static_cast<uint64_t>(delta);
  shadow_nodes_.fetch_add(delta, std::memory_order_relaxed);
  if (before != 0 && mapping.shadow_nodes != 0) return;
  ScopedLock guard(lock_);
  if (before == 0)
    mappings_.push_back(mapping);
  else
    mappings_.erase(mappings_.iterator_to(mapping));
}

void Workingset::forget_mapping(AddressSpace& mapping) {
  workingset_update_node(mapping, -static_cast<int64_t>(mapping.shadow_nodes));
}

PageCount Workingset::max_shadow_nodes() const {
  // What is farther away than the active list is long does not count, and no list is longer than the cache. Nodes are
  // rarely full: an eighth of each slot in use is allowed for.
  const int64_t cache = node_.lruvec.size_racy(LruList::active_file) + node_.lruvec.size_racy(LruList::inactive_file);
  return PageCount(cache >> (RADIX_TREE_MAP_SHIFT - 3));
}

PageCount Workingset::count_shadow_nodes() {
  WEIR_FLOW();
  const PageCount nodes = shadow_nodes(), allowed = max_shadow_nodes();
  return nodes > allowed ? nodes - allowed : PageCount(0);
}

/// tree_lock held. Gives up to `nr` nodes of one file back, from where the last call ended. Returns how many.
int64_t Workingset::shadow_lru_isolate(AddressSpace& mapping, int64_t nr, int64_t& visits) {
  WEIR_FLOW(mapping.host_ino, nr);
  int64_t freed = 0;
  while (freed < nr && visits > 0 && mapping.shadow_nodes != 0) {
    --visits;
    void* entry;
    uint64_t index;
    if (mapping.page_tree.gang_lookup(&entry, &index, mapping.shadow_cursor, 1) == 0) {
      mapping.shadow_cursor = 0;
      continue;
    }
    mapping.shadow_cursor = (index | (RADIX_TREE_MAP_SIZE - 1)) + 1;  // past the largest index: 0
    const RadixTreeNode* leaf = mapping.page_tree.leaf_of(index);
    if (!holds_shadows_only(leaf)) continue;
    // The node goes with the last of them.
    Update update(*this, mapping, index);
    const uint64_t base = index & ~uint64_t{RADIX_TREE_MAP_SIZE - 1};
    for (uint64_t left = leaf->exceptional; left != 0; left &= left - 1) {
      (void)mapping.page_tree.erase(base + static_cast<unsigned>(std::countr_zero(left)), *source_);
      --mapping.nrexceptional;
    }
    vmstat_.count_vm_event(VmEvent::workingset_nodereclaim);
    ++freed;
  }
  return freed;
}

PageCount Workingset::scan_shadow_nodes(PageCount nr) {
  WEIR_FLOW(nr);
  int64_t freed = 0;
  for (int64_t visits = nr.v * VISITS_PER_NODE; freed < nr.v && visits > 0; --visits) {
    AddressSpace* mapping;
    {
      ScopedLock guard(lock_);
      if (mappings_.empty()) break;
      mapping = &mappings_.front();
      // The file cannot go while it is on the list, nor leave the list while its tree is locked. Its lock comes before
      // ours.
      mappings_.pop_front();
      mappings_.push_back(*mapping);
      if (!mapping->tree_lock.try_lock()) continue;
    }
    freed += shadow_lru_isolate(*mapping, nr.v - freed, visits);
    mapping->tree_lock.unlock();
  }
  return PageCount(freed);
}

}  // namespace weir
