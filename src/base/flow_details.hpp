// src/base/flow_details.hpp
//
// Functions so small that a running program cannot afford to have them recorded: they are called by the dozen for each
// page, and what they do is seen in the state changes around them; and decisions that the changes after them repeat. A
// log of everything has them, a live ring has not (FlowSink::details).
#pragma once

#include <cstddef>
#include <string_view>

namespace weir {

inline constexpr std::string_view FLOW_DETAILS[] = {
    // what a page, an entry or a request is
    "PageAnon", "PageDirty", "PageWriteback", "page_has_private", "page_mapping", "page_mapcount", "total_mapcount",
    "page_mapcount_is_zero", "page_to_pgoff", "vma_address", "page_vma_mapped_walk", "page_ref_add", "set_page_private",
    "check_new_page", "swap_address_space", "pte_soft_dirty", "pte_swp_soft_dirty", "pte_swp_mksoft_dirty",
    "pte_mksoft_dirty", "pte_to_swp_entry", "swp_entry_to_pte", "__swp_entry", "__swp_entry_to_pte", "mk_pte",
    "should_defer_flush", "gfp_zone", "gfpflags_to_migratetype", "node_zonelist", "for_next_zone_zonelist_nodemask",
    "__zone_watermark_ok", "inactive_list_is_low", "mm_has_notifiers", "mmu_notifier_invalidate_page",
    "page_lock_anon_vma_read", "rmap_walk_anon", "ptep_test_and_clear_young", "ptep_get_and_clear",
    "zone_watermark_fast", "prepare_alloc_pages", "rmqueue_pcplist", "__rmqueue_pcplist", "free_quarantined",
    "zram_rw_page", "zram_bvec_rw", "zram_bvec_read", "zram_bvec_write", "zcomp_compress", "zcomp_decompress",
    "zs_malloc", "bdev_read_page", "bdev_write_page", "rmap_walk", "page_referenced_one", "set_pte_at", "find_get_page",
    "__add_to_swap_cache", "__delete_from_swap_cache", "swapcache_free", "rmqueue", "__rmqueue", "__rmqueue_smallest",
    "check_pcp_refill", "prep_new_page", "__free_one_page",
    // counters
    "count_vm_event", "__count_zid_vm_events", "inc_mm_counter", "dec_mm_counter", "get_mm_rss", "update_hiwater_rss",
    "__mod_zone_page_state",
    // steps of a list or a tree
    "list_del", "list_first_entry_or_null", "radix_tree_is_internal_node", "radix_tree_exceptional_entry",
    "radix_tree_preload_end", "radix_tree_maybe_preload", "radix_tree_maybe_preload_order", "__radix_tree_create",
    "radix_tree_insert", "__radix_tree_insert", "insert_entries", "node_to_entry", "count_shadow_nodes", "memcpy",
    "zs_map_object"};

/// States: where a page was asked for and found, what was free when that sufficed.
inline constexpr std::string_view FLOW_STATE_DETAILS[] = {"zonelist",   "watermark",    "pcp_hit",    "pcp_miss",
                                                          "buddy_find", "buddy_remove", "slab_object"};

template <std::size_t SIZE>
[[nodiscard]] constexpr bool is_listed(const std::string_view (&list)[SIZE], std::string_view name) {
  for (const std::string_view each : list)
    if (each == name) return true;
  return false;
}
[[nodiscard]] constexpr bool flow_detail(std::string_view function) { return is_listed(FLOW_DETAILS, function); }
[[nodiscard]] constexpr bool flow_state_detail(std::string_view state) { return is_listed(FLOW_STATE_DETAILS, state); }

}  // namespace weir
