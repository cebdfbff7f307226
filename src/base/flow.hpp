// src/base/flow.hpp
//
// The door of the recording, for every floor: a function says that it is entered, a state change says what became of
// what. Where that goes is a FlowSink (record/ writes it to a log). With recording off each costs one load and a
// predicted branch.
//
//   Page* do_x(...) {
//     WEIR_FLOW(address, entry);                        // entered; left when the scope ends. Recorded as __func__.
//     WEIR_STATE(swap_map, entry.val, before, after);   // subject, old, new
//     WEIR_RETURN(page);                                // in place of return, where what it returns matters
//   }
#pragma once

#include <cstdint>
#include <string_view>
#include <type_traits>

#include "base/engine_stack.hpp"
#include "base/flow_details.hpp"

namespace weir {

/// State changes and decisions that the documents name. The spelling here is the spelling in logs and on the command
/// line. subject/old/new per kind: see record/README.md (made from this list).
// clang-format off
#define WEIR_STATES(X)                                                                           \
  /* allocation */                                                                               \
  X(zonelist)          /* zone id first tried; -, order */                                       \
  X(watermark)         /* zone id; mark, free pages */                                           \
  X(watermark_low)     /* zone id; mark, free pages: the check failed */                         \
  X(pcp_hit)           /* pfn; pages on the list before, after */                                \
  X(pcp_miss)          /* zone id; 0, order: goes to the buddy lists */                          \
  X(buddy_find)        /* pfn; wanted order, order found */                                      \
  X(buddy_remove)      /* pfn; free blocks of the order before, after */                         \
  X(buddy_split)       /* pfn of the upper half; order of the block split, order of each half */ \
  X(buddy_merge)       /* pfn; order before, after */                                            \
  X(page_alloced)      /* pfn; 0, order */                                                       \
  X(page_freed)        /* pfn; order, free pages of the zone after */                            \
  X(nr_free)           /* zone id; before, after */                                              \
  X(free_area)         /* zone id << 8 | order; free blocks before, after */                     \
  X(pcp_count)         /* zone id << 16 | CPU; pages on its lists before, after */               \
  X(zone_span)         /* zone id; first pfn, pages */                                           \
  X(zone_mark)         /* zone id << 8 | mark (0 min 1 low 2 high); before, after */             \
  X(kmem_cache_select) /* object size of the class; bytes asked, 0 */                            \
  X(slab_empty)        /* cache object size; 0, 0 */                                             \
  X(slab_new)          /* pfn; objects, colour */                                                \
  X(slab_object)       /* object pfn; offset in page, size */                                    \
  X(vmalloc_area)      /* start address; 0, bytes */                                             \
  X(reclaim_fruitless) /* order; loops before, after */                                          \
  /* address spaces */                                                                           \
  X(user_request)    /* address; kind (0 mmap 1 brk 2 malloc 3 file), bytes */                   \
  X(vma_create)      /* start; 0, end */                                                         \
  X(vma_extend)      /* start; old end, new end */                                               \
  X(vma_remove)      /* start; old end, 0 */                                                     \
  X(fault)           /* address; error code, 0 */                                                \
  X(fault_anonymous) /* address; 0, flags */                                                     \
  X(fault_file)      /* address; 0, flags */                                                     \
  X(fault_return)    /* address; 0, VM_FAULT bits */                                             \
  X(pte)             /* mm id << 48 | address; old PTE, new PTE */                               \
  X(mapcount)        /* pfn; old, new (mappings) */                                              \
  X(page_count)      /* pfn; old, new */                                                         \
  X(page_mapping)    /* pfn; index, kind (0 none 1 file 2 anonymous 4 merged) */                 \
  X(rss)             /* mm id; old, new */                                                       \
  X(mm_task)         /* mm id; pid before, pid after (0: none): whose address space it is */     \
  X(task_comm)       /* pid; the 16 bytes of its name */                                         \
  /* lru, reclaim */                                                                             \
  X(lru)           /* pfn; old list, new list (NR_LRU_LISTS = none) */                           \
  X(lru_tail)      /* pfn; list, 0: it lies at the old end of the list */                        \
  X(page_flags)    /* pfn; old, new */                                                           \
  X(reclaim_start) /* reason (0 direct 1 kswapd 2 limit); priority, nr to reclaim */             \
  X(scan_lru)      /* list; nr to scan, taken */                                                 \
  X(drop_clean)    /* pfn; index, 0 */                                                           \
  X(write_dirty)   /* pfn; index, 0: a file page goes to its file */                             \
  X(page_keep)     /* pfn; reason, 0 */                                                          \
  /* swap */                                                                                     \
  X(swap_slot)  /* entry; 0, pfn or 0: a slot is taken */                                        \
  X(swap_map)   /* entry; old, new */                                                            \
  X(swap_cache) /* entry; old pfn + 1 or 0, new pfn + 1 or 0 */                                  \
  X(swap_write) /* entry; pfn, 0: bytes leave for the area */                                    \
  X(swap_read)  /* entry; pfn, 0 */                                                              \
  X(swap_area)  /* type; 0, pages: on or off */                                                  \
  X(unuse)           /* mm id; entry, 0: swapoff looks for it there */                           \
  X(swap_lowest_bit) /* type; old, new: no free slot lies below */                               \
  X(swap_highest_bit) /* type; old, new: no free slot lies above */                              \
  X(swap_space)      /* type; first slot, last slot: an address space of the swap cache has its methods */ \
  X(tree_init)       /* 0; items in the tree, its allocation mask */                             \
  X(swap_discard)    /* type; first slot, slots: the device is told that they hold nothing */    \
  X(frontswap)       /* entry; 0 stored 1 refused 2 loaded 3 dropped, pages of the area in the store */ \
  X(io_done)    /* sector; pfn, errno */                                                         \
  X(zram_store) /* index; bytes before (4096), bytes after */                                    \
  /* files */                                                                                    \
  X(file_request)      /* inode; kind (0 read 1 write 2 fault), index */                         \
  X(page_cache_find)   /* inode; index, pfn + 1 or 0 */                                          \
  X(page_cache_read)   /* inode; index, pfn: read from disk */                                   \
  X(page_cache)        /* inode << 48 | index; old pfn + 1 or 0, new pfn + 1 or 0 */             \
  X(page_cache_return) /* inode; index, pfn */                                                   \
  X(page_dirtied)      /* pfn; index, 0 */                                                       \
  X(dirty_count)       /* 0; old, new NR_FILE_DIRTY */                                           \
  X(dirty_pause)       /* tid; 0, ns */                                                          \
  X(writeback_start)   /* reason; 0, pages */                                                    \
  X(buffer)            /* pfn << 8 | sector in the page; b_state before, after */                \
  X(page_orphan)       /* pfn; 0 met by reclaim 1 its buffers were clean, is it dirty? */        \
  /* killing */                                                                                  \
  X(oom_points) /* pid; adj, points */                                                           \
  X(oom_select) /* pid; 0, points */                                                             \
  X(oom_kill)   /* pid; 0, pages */                                                              \
  X(oom_reap)   /* pid; rss before, after */                                                     \
  X(task_exit)  /* pid; rss, 0 */                                                                \
  /* live */                                                                                     \
  X(window_unmap) /* address; pages, ways */                                                     \
  X(map_in)       /* address; pfn, 0 copy 1 zero 2 staged */
// clang-format on

enum class State : uint16_t {
#define X(name) name,
  WEIR_STATES(X)
#undef X
      count
};

/// One place that records: data in the binary. `file` is the base name.
struct FlowSite {
  const char* function;
  const char* file;
  const char* arguments;  ///< the expressions, comma separated, as written
  /// Of the process's sites, from 1 on by first use; 0: not used yet. A sink's own: by atomic_ref.
  mutable uint32_t number = 0;
};

[[nodiscard]] constexpr const char* base_name(const char* path) {
  const char* last = path;
  for (const char* p = path; *p != 0; ++p)
    if (*p == '/') last = p + 1;
  return last;
}

/// Takes events. Implementations never allocate, never sleep, never take a lock of mm.
class FlowSink {
 public:
  virtual void enter(const FlowSite& site, uint64_t a, uint64_t b, uint64_t c) = 0;
  virtual void leave(const FlowSite& site) = 0;
  /// In place of leave() for a function that said what it returns.
  virtual void leave_with(const FlowSite& site, uint64_t /*result*/) { leave(site); }
  virtual void state(const FlowSite& site, State what, uint64_t subject, uint64_t before, uint64_t after) = 0;

  /// The first of the machine's Pages, so that a page finds its number itself; bootmem says it. Null: what a page says
  /// of itself (flags, count) is not recorded.
  const void* mem_map = nullptr;
  /// Are the functions and states of flow_details.hpp told as well?
  bool details = true;

 protected:
  ~FlowSink() = default;
};

/// How an argument becomes a number in the log. Unit types, integers, enums and pointers to things with a pfn() or id.
template <class T>
[[nodiscard]] constexpr uint64_t flow_value(const T& x) {
  if constexpr (requires { flow_value_of(x); }) {
    return flow_value_of(x);  // found by ADL: a room's own spelling
  } else if constexpr (requires { x.v; }) {
    return static_cast<uint64_t>(x.v);
  } else {
    return static_cast<uint64_t>(x);
  }
}

enum class FlowLevel : uint8_t { step, detail };

template <FlowLevel LEVEL>
class FlowScope {
 public:
  FlowScope(const FlowScope&) = delete;
  FlowScope& operator=(const FlowScope&) = delete;
  template <class... Args>
  [[gnu::always_inline]] explicit FlowScope(const FlowSite& site, const Args&... args)
      : site_(site), sink_(engine_thread().sink) {
    if (__builtin_expect(sink_ != nullptr, 0)) {
      if (LEVEL == FlowLevel::detail && !sink_->details) {
        sink_ = nullptr;
        return;
      }
      const uint64_t v[3 + sizeof...(args)] = {flow_value(args)...};
      sink_->enter(site_, v[0], v[1], v[2]);
    }
  }
  [[gnu::always_inline]] ~FlowScope() {
    if (__builtin_expect(sink_ == nullptr, 1)) return;
    if (has_result_)
      sink_->leave_with(site_, result_);
    else
      sink_->leave(site_);
  }
  template <class T>
  [[nodiscard]] [[gnu::always_inline]] T returns(T value) {
    if (__builtin_expect(sink_ != nullptr, 0)) {
      result_ = flow_value(value);
      has_result_ = true;
    }
    return value;
  }

 private:
  const FlowSite& site_;
  FlowSink* sink_;
  uint64_t result_ = 0;
  bool has_result_ = false;
};

/// The file that a function is recorded under. A room whose functions stand in several files says after its includes
/// which one the kernel has them in: #undef WEIR_FLOW_FILE, #define WEIR_FLOW_FILE "vmscan.cpp".
#define WEIR_FLOW_FILE ::weir::base_name(__FILE__)

#define WEIR_FLOW(...)                                                                             \
  static constinit const ::weir::FlowSite weir_flow_site_{__func__, WEIR_FLOW_FILE, #__VA_ARGS__}; \
  static constexpr ::weir::FlowLevel weir_flow_level_ =                                            \
      ::weir::flow_detail(__func__) ? ::weir::FlowLevel::detail : ::weir::FlowLevel::step;         \
  ::weir::FlowScope<weir_flow_level_> weir_flow_scope_(weir_flow_site_ __VA_OPT__(, ) __VA_ARGS__)

/// In place of `return value` in a function with a WEIR_FLOW, where what it returns matters.
#define WEIR_RETURN(...) return weir_flow_scope_.returns(__VA_ARGS__)

#define WEIR_STATE(what, subject, before, after)                                                \
  do {                                                                                          \
    constexpr bool weir_detail_ = ::weir::flow_state_detail(#what);                             \
    if (::weir::FlowSink* weir_sink_ = ::weir::engine_thread().sink;                            \
        __builtin_expect(weir_sink_ != nullptr, 0) && (!weir_detail_ || weir_sink_->details)) { \
      static constinit const ::weir::FlowSite weir_state_site_{__func__, WEIR_FLOW_FILE, ""};   \
      weir_sink_->state(weir_state_site_, ::weir::State::what, ::weir::flow_value(subject),     \
                        ::weir::flow_value(before), ::weir::flow_value(after));                 \
    }                                                                                           \
  } while (0)

}  // namespace weir
