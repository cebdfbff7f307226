// src/kernel/lock_table.hpp
//
// The one table of locks: who may be taken inside whom. Lockdep (debug builds, both worlds) reads it at run time,
// docs/architecture.md prints it.
//
// A lock may be taken only while every lock already held by the thread has a smaller rank; locks of one rank may nest
// only where the table says so (then in address order, or by trylock). A trylock is never an order violation.
#pragma once

#include <cstdint>

namespace weir {

enum class LockKind : uint8_t { sleeping, spinning };
enum class LockNesting : uint8_t { none, allowed };

// X(name, kind, nesting within the rank, what it guards)
#define WEIR_LOCK_TABLE(X)                                                                                             \
  X(gate, sleeping, none, "entry to the engine: readers are faults and reclaim, writers are fork, set-up, the report") \
  X(layout, sleeping, none, "live: mappings change in the machine and in the host together")                           \
  X(swapon, sleeping, none, "one swapon or swapoff at a time")                                                         \
  X(oom, sleeping, none, "one out_of_memory at a time")                                                                \
  X(ksm, sleeping, none, "ksmd's scan, its trees and lists")                                                           \
  X(inode, sleeping, none, "a file's size and its writers")                                                            \
  X(mmap, sleeping, allowed, "VMA tree of an Mm (nests parent, child in fork)")                                        \
  X(slab_mutex, sleeping, none, "list of kmem_caches")                                                                 \
  X(shrinker, sleeping, none, "list of shrinkers")                                                                     \
  X(page, sleeping, allowed, "PG_locked: identity and content of a page (a second page only by trylock or when new)")  \
  X(shmem_swaplist, sleeping, none, "list of memory files that have pages in swap")                                    \
  X(i_mmap, sleeping, none, "interval tree of a file's mappings")                                                      \
  X(anon_vma, sleeping, allowed, "interval tree of an anon_vma (root lock; nests only in fork and split)")             \
  X(window, sleeping, none, "uffd: host calls on one window of user addresses; the PTE is read again under it")        \
  X(vmalloc, spinning, none, "vmalloc address ranges")                                                                 \
  X(page_table, spinning, allowed, "entries of one PTE page; nests parent, child in copy_page_range")                  \
  X(mm_page_table, spinning, none, "upper levels of one Mm's page tables")                                             \
  X(mmlist, spinning, none, "list of Mms that have swap entries")                                                      \
  X(tasklist, spinning, none, "list of tasks, their signals")                                                          \
  X(writeback, spinning, none, "dirty inode lists, work queue of a flusher")                                           \
  X(swap_slots, sleeping, none, "one CPU's swap slots cache")                                                          \
  X(swap_lock, spinning, none, "lists of swap areas by priority")                                                      \
  X(swap_area, spinning, none, "swap_map, clusters and counters of one area")                                          \
  X(pagevec, spinning, none, "one CPU's pagevecs")                                                                     \
  X(lru, spinning, none, "LRU lists and reclaim statistics of a node")                                                 \
  X(buffers, spinning, none, "which buffers a page has")                                                               \
  X(tree, spinning, none, "radix tree of an address_space, swap cache included")                                       \
  X(slab, spinning, allowed, "per-CPU array, then node lists, of a kmem_cache")                                        \
  X(zram_slot, spinning, none, "one zram slot")                                                                        \
  X(zram_pool, spinning, none, "one size class of a zram pool")                                                        \
  X(pcp, spinning, none, "one CPU's page lists of a zone")                                                             \
  X(zone, spinning, none, "free areas of a zone")                                                                      \
  X(arch, spinning, none, "an Mmu's own state: staging, queues")                                                       \
  X(device, spinning, none, "queue of a block device")                                                                 \
  X(workqueue, spinning, none, "queue of a workqueue")                                                                 \
  X(wait_queue, spinning, none, "one wait queue")                                                                      \
  X(kernel, spinning, none, "a world's own lists: timers, threads")                                                    \
  X(record, spinning, none, "the event ring")                                                                          \
  X(leaf, spinning, none, "taken last, nothing inside")

enum class LockRank : uint8_t {
#define X(name, kind, nesting, what) name,
  WEIR_LOCK_TABLE(X)
#undef X
      count
};

}  // namespace weir
