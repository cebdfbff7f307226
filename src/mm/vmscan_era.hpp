// src/mm/vmscan_era.hpp: what each kernel's own reclaim implements; only the files of vmscan include it
#pragma once

#include "mm/inode.hpp"
#include "mm/page_private.hpp"
#include "mm/vmscan.hpp"

namespace weir {

/// A file's page, locked, on a disk that may never answer: reclaim takes other pages, and does not wait for that disk.
[[nodiscard]] inline bool on_foreign_disk(const Page& page) {
  const AddressSpace* mapping = Filemap::file_mapping(page);
  return mapping != nullptr && mapping->host != nullptr && mapping->host->bdev != nullptr &&
         mapping->host->bdev->foreign();
}

struct Vmscan::Era {
  explicit Era(Vmscan& vmscan) : self(vmscan) {}

  // ---- who reclaims
  virtual PageCount try_to_free_pages(Order order, gfp_t gfp) = 0;
  /// For a shrinking budget: sc.nr_to_reclaim pages, from anywhere.
  virtual PageCount shrink_all(ScanControl& sc) = 0;
  virtual void wakeup_kswapd(ZoneType classzone, Order order) = 0;
  virtual void kswapd_loop() = 0;

  // ---- one page of shrink_page_list
  /// The page lock, if nobody has it.
  [[nodiscard]] virtual bool lock(Page& page) { return self.filemap_.trylock_page(page); }
  virtual References references(Page& page, FlushBatch& aged) = 0;
  /// The page is under writeback; it is kept, and unlocked.
  virtual void under_writeback(Page& page, Stat& stat) = 0;
  /// Is a dirty page of a file left to others? keep, activate: yes, and where it goes; go_on: no.
  virtual Candidate::Verdict dirty_file_page(Page& page, const ScanControl& sc) = 0;
  /// Does it have buffers?
  [[nodiscard]] virtual bool has_private(const Page& page) { return page_has_private(page); }
  virtual bool remove_mapping(AddressSpace& mapping, Page& page) = 0;
  /// The page stays in memory: what of its slot?
  virtual void activated(Page& page) = 0;
  /// Pages that nobody has any more, linked by lru.
  virtual void free_pages(PageList& pages) = 0;

  // ---- after a batch of an inactive list, and slab caches
  virtual void after_batch(const Stat& stat, int64_t taken, const ScanControl& sc) = 0;
  virtual int64_t shrink_one_cache(Shrinker& shrinker, int64_t nr_scanned, int64_t nr_eligible) = 0;
  // Around the scan of one of them: trace points (3.1 and later).
#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE "vmscan.h"
  virtual void trace_mm_shrink_slab_start(int64_t freeable, int64_t delta, int64_t total) {
    WEIR_FLOW(freeable, delta, total);
  }
  virtual void trace_mm_shrink_slab_end(int64_t freed, int64_t left) { WEIR_FLOW(freed, left); }
#undef WEIR_FLOW_FILE
#define WEIR_FLOW_FILE ::weir::base_name(__FILE__)

  static void place(Vmscan& self, KernelEra kernel);
  static void place_2_6_20(Vmscan& self);
  static void place_3(Vmscan& self);
  static void place_4_14(Vmscan& self);

  Vmscan& self;

 protected:
  ~Era() = default;

  static bool current_is_kswapd() { return (current_flags() & PF_KSWAPD) != 0; }
  static void cond_resched() {
    if (engine_thread().world != nullptr) world().cond_resched();
  }
  [[nodiscard]] static int64_t list_pages(const Zone& zone, bool active) {
    return zone.lruvec.size_racy(active ? LruList::active_anon : LruList::inactive_anon) +
           zone.lruvec.size_racy(active ? LruList::active_file : LruList::inactive_file);
  }
  [[nodiscard]] static int64_t lru_pages(const Zone& zone) { return list_pages(zone, true) + list_pages(zone, false); }
  [[nodiscard]] Thread* kthread() const { return self.node_.kswapd; }
};

}  // namespace weir
