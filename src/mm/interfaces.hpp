// src/mm/interfaces.hpp
//
// What the memory manager asks of what lies around it:
//
//   Mmu        the architecture: makes the hardware follow the machine's page tables, knows where user bytes are
//   Pressure   the upper rooms that make memory: reclaim and the OOM killer, as the allocator sees them
//
// Both are also where a test puts its fake.
#pragma once

#include "block/block.hpp"
#include "mm/pgtable_types.hpp"

namespace weir {

class Bootmem;
class PageTables;

/// One mapping that was taken out of a page table and that hardware may still know.
struct FlushEntry {
  Mm* mm = nullptr;
  VirtAddr address{};
  Page* page = nullptr;  ///< the frame that was mapped; null when only the translation counts
};

/// Translations to be flushed together: filled under page-table locks, handed to Mmu::flush_batch after they are
/// dropped. Lives on the stack of whoever unmaps. When full the filler flushes first (under no spinlock).
struct FlushBatch {
  static constexpr unsigned CAPACITY = 64;
  union {
    FlushEntry entries[CAPACITY];  ///< the first `count`; the others are not initialised, as most batches stay short
  };
  unsigned count = 0;
  FlushBatch() {}
  [[nodiscard]] bool full() const { return count == CAPACITY; }
  void add(Mm& mm, VirtAddr address, Page* page) {
    WEIR_DEBUG_BUG_ON(full());
    entries[count++] = {&mm, address, page};
  }
};

/// The architecture. The machine's page tables are the truth; an Mmu makes the hardware follow, and answers where a
/// user frame's bytes are. Except where said, functions are called with no spinlock held; the page lock of `page` is
/// held where a page is given. mm asks for capabilities, never for a name.
class Mmu {
 public:
  struct Caps {
    bool has_accessed =
        true;               ///< hardware sets young. If not: valid in hardware = young, old = made absent by age_batch
    bool has_dirty = true;  ///< hardware sets dirty. If not: dirty is computed by test_dirty after flush_batch
    bool has_write_protect = true;  ///< a mapped page may be read-only. If not: no copy-on-write inside the machine
    bool has_zero_page = true;      ///< one frame may back many read-only mappings
    bool has_alias = true;          ///< one frame at several addresses
    /// Files can be mapped shared: their pages, if no others, may be read-only. Without has_alias a page is mapped at
    /// one address at a time, and a fault at another takes it away from there.
    bool maps_files = true;
    bool tracks_host_pages =
        false;  ///< frames have host pages elsewhere than at their place: arch_alloc/free_page are wanted
    /// A fault costs more than mapping a page: with the page that is asked for, neighbours within so many pages are
    /// mapped that need no I/O. 1: only what is asked for.
    unsigned fault_around = 1;
  };
  [[nodiscard]] const Caps& caps() const { return caps_; }
  /// Boot: bootmem is up, the allocator is not. What the Mmu needs for every frame (tags, hashes) it takes from `boot`;
  /// `tables` it may walk from now on. Errors: ENOMEM.
  virtual Result<void> attach(MemMap& mem, PageTables& tables, Bootmem& boot) = 0;

  // ---- the hardware's view
  /// A PTE became present or more permissive (map in, or the page's bytes come back after an access-flag fault). Called
  /// after the page-table lock is dropped, page locked. Errors: ENOMEM, EAGAIN (address space is being changed: retry
  /// the fault).
  virtual Result<void> update_mmu_cache(Mm& mm, VirtAddr address, Pte pte, Page* page) = 0;
  /// The translations in `batch` must be gone from hardware when this returns; afterwards their pages' bytes no longer
  /// change and kmap finds them. Empties the batch. All pages locked.
  virtual void flush_batch(FlushBatch& batch) = 0;
  /// Only where !has_accessed: the PTEs were made old; makes hardware fault on the next touch (bytes go to staging).
  /// Empties the batch. A page that cannot be made old now (pinned) stays valid; `entries[i].page` is then set to null.
  virtual void age_batch(FlushBatch& batch) = 0;
  /// Asked after flush_batch of a page that is to be written out or freed: are its bytes out of reach of the task's
  /// stores? False: the host holds the page where it is (pinned for I/O), so it stays as it is, dirty, in the swap
  /// cache; its next fault or reclaim tries again.
  virtual bool captured(Page& page) {
    (void)page;
    return true;
  }
  /// Only where !has_dirty: page unmapped and flushed; are its bytes other than those kept with its swap slot? No slot
  /// content = true.
  virtual bool test_dirty(Page& page) = 0;
  /// Only where !has_dirty: the page's bytes are now what is in its slot (written out, or read in).
  virtual void mark_clean(Page& page) = 0;
  /// An address range of `mm` leaves (munmap, exit, DONTNEED): every translation in it, present or aged. PTEs are
  /// already cleared and their pages still referenced by the caller.
  virtual void flush_range(Mm& mm, VirtAddr start, VirtAddr end) = 0;
  /// Only where !has_alias, before flush_range: the pages in `batch`, a file's, were mapped in a range that leaves, and
  /// outlive it with what was stored there. Their PTEs are cleared. Referenced, not locked. Empties the batch.
  virtual void keep_batch(FlushBatch& batch) { batch.count = 0; }
  virtual void mm_created(Mm& mm) = 0;
  virtual void mm_destroyed(Mm& mm) = 0;

  // ---- bytes of user frames
  /// Where the page's bytes are now, for reading or for filling. Not mapped writable by a task meanwhile (or the caller
  /// accepts a torn read). Valid until kunmap.
  virtual Content kmap(Page& page) = 0;
  virtual void kunmap(Page& page) = 0;
  /// The content becomes all zero / that of `from`.
  virtual void clear_user_highpage(Page& page) = 0;
  virtual void copy_user_highpage(Page& to, Page& from) = 0;

  // ---- frames changing hands (only where tracks_host_pages)
  /// Called by the allocator for each block it hands out.
  virtual void arch_alloc_page(Page& page, Order order, gfp_t gfp) = 0;
  /// Called for each freed block before it can be handed out again. False: the host page is not given back yet; the
  /// frame is quarantined by the arch, which later calls PageAllocator::free_quarantined.
  virtual bool arch_free_page(Page& page, Order order) = 0;
  /// Gives quarantined frames back now. Called when an allocation reaches the min watermark.
  virtual void flush_quarantine() = 0;

 protected:
  explicit Mmu(const Caps& caps) : caps_(caps) {}
  ~Mmu() = default;

  Caps caps_;  ///< immutable once the machine is made
};

/// Why and for whom memory is made.
struct OomControl {
  gfp_t gfp{};
  Order order{};
};

/// What the page allocator asks of the rooms above it when free memory is short.
class Pressure {
 public:
  /// Direct reclaim. Returns pages reclaimed (0: no progress). The caller has set PF_MEMALLOC.
  virtual PageCount try_to_free_pages(Order order, gfp_t gfp) = 0;
  /// Wakes kswapd if the node is not balanced.
  virtual void wakeup_kswapd(ZoneType classzone, Order order) = 0;
  /// True if somebody was killed, is dying or memory came back: the allocation tries again.
  virtual bool out_of_memory(const OomControl& control) = 0;
  /// A fault got no memory, what the allocator tried for it being over. False: the task must die.
  virtual bool fault_out_of_memory(Task& task) {
    (void)task;
    return false;
  }
  /// Pages that reclaim might still free (LRU sizes; anonymous ones only while there is swap).
  [[nodiscard]] virtual PageCount zone_reclaimable_pages() const = 0;

 protected:
  ~Pressure() = default;
};

}  // namespace weir
