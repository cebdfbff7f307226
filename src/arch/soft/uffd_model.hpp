// src/arch/soft/uffd_model.hpp
//
// What a host's userfaultfd can do as an MMU, in software: no accessed bit, no dirty bit, no write protection, no
// aliases, and user frames whose bytes are not at their place. So that the rules by which mm lives on such hardware are
// tested where everything is deterministic. The live architecture is arch/uffd; this is neither it nor the host under
// it, but both as mm sees them.
//
//   frame    none --clear--> zero --\                    none: content undefined; zero: zeros. No host page
//            none --kmap, fill--> place --map_in--> mapped --move_out--> staged --map_in--> mapped
//            staged --freed--> quarantined --drain--> none          mapped --range dropped--> none
//
// Hardware is a table of its own, (mm, page) --> frame: valid there = young. A touch of anything else faults.
//
// Invariant: a frame has at most one host page: resident at its place, or mapped, or staged. Host pages of all frames
// <= frames. What breaks it, or reads a mapped frame's bytes, or maps undefined bytes, is a bug that stops the machine.
//
// Failures on request: EAGAIN and ENOMEM from map_in, pages that are pinned and cannot be moved.
#pragma once

#include "mm/bootmem.hpp"
#include "mm/pgtable.hpp"

namespace weir {

class UffdModel {
 public:
  struct Failures {
    uint32_t again_one_in = 0;  ///< map_in says EAGAIN at one call in so many; 0: never
    uint32_t nomem_one_in = 0;
    uint64_t seed = 1;
  };
  /// Where a frame's content is, for reading and writing: the place's bytes, or its tag.
  using PlaceOf = std::byte* (*)(void* arg, Pfn pfn);

  void set_failures(const Failures& failures) { failures_ = failures, dice_ = failures.seed; }
  /// `content_bytes`: 4096, or 8 for tags.
  Result<void> attach(MemMap& mem, PageTables& tables, Bootmem& boot, PlaceOf place_of, void* arg,
                      size_t content_bytes);

  /// The frame that hardware knows at the address; null if it faults there.
  [[nodiscard]] Page* lookup(const Mm& mm, VirtAddr address) const;
  /// The page lock is held. Looks at the PTE again: if it maps the page no more, nothing is done.
  Result<void> map_in(Mm& mm, VirtAddr address, Page& page);
  enum class Purpose : uint8_t { age, flush };
  /// Out of hardware, into staging, where the PTE says so; entries of pages that are pinned get a null page.
  void move_out(FlushBatch& batch, Purpose purpose);
  /// What hardware still has of the range and no PTE stands for.
  void drop_range(Mm& mm, VirtAddr start, VirtAddr end);
  void mm_destroyed(const Mm& mm);

  [[nodiscard]] bool captured(const Page& page) const { return kind(page) != Kind::mapped; }
  [[nodiscard]] bool test_dirty(const Page& page) const;
  void mark_clean(const Page& page);
  void before_kmap(Page& page);
  void cleared(Page& page);
  void arch_alloc_page(Page& page, Order order, gfp_t gfp);
  bool arch_free_page(Page& page);
  void drain();

  /// Host pages that somebody holds for I/O: they cannot be moved.
  void pin(const Mm& mm, VirtAddr address);
  void unpin(const Mm& mm, VirtAddr address);

  /// Host pages now: at places, mapped, staged.
  [[nodiscard]] uint64_t host_pages() const { return host_pages_; }
  [[nodiscard]] uint64_t quarantined() const { return quarantine_.size(); }
  /// At rest: hardware has what young PTEs say, and pinned pages; each frame's state fits. The first rule that does not
  /// hold, or null.
  [[nodiscard]] const char* broken_rule() const;

 private:
  enum class Kind : uint32_t { none, zero, place, mapped, staged };
  struct Slot {
    uint64_t key = 0;  ///< mm id and page number; 0: empty
    uint32_t pfn = 0;
    uint32_t pins = 0;
  };
  static constexpr unsigned VPN_BITS = 36;
  static constexpr uint64_t QUARANTINE_BATCH = 32;

  static Kind kind(const Page& page) { return static_cast<Kind>(page.arch); }
  static uint64_t key_of(const Mm& mm, VirtAddr address) { return (mm.id << VPN_BITS) | (address.v >> PAGE_SHIFT); }
  [[nodiscard]] bool has_host_page(const Page& page) const;
  void set_kind(Page& page, Kind kind);
  [[nodiscard]] Pfn pfn(const Page& page) const { return mem_->pfn(page); }
  [[nodiscard]] Pte pte_at(const Mm& mm, VirtAddr address) const;
  [[nodiscard]] bool resident(Pfn pfn) const { return (resident_[pfn.v / 64] >> (pfn.v % 64) & 1) != 0; }
  void set_resident(Pfn pfn, bool on);
  [[nodiscard]] uint64_t content_hash(const Page& page) const;
  [[nodiscard]] bool still_maps(const FlushEntry& entry, Purpose purpose) const;
  [[nodiscard]] bool fails(uint32_t one_in);

  // The table: open addressing, linear probing.
  [[nodiscard]] uint64_t home(uint64_t key) const { return (key * 0x9e3779b97f4a7c15ull) >> shift_; }
  [[nodiscard]] Slot* find(uint64_t key) const;
  Slot& insert(uint64_t key);
  void erase(Slot* slot);
  void drop(Slot* slot);

  MemMap* mem_ = nullptr;
  PageTables* tables_ = nullptr;
  PlaceOf place_of_ = nullptr;
  void* place_arg_ = nullptr;
  size_t content_bytes_ = 0;
  Slot* slots_ = nullptr;
  uint64_t capacity_ = 0;
  unsigned shift_ = 0;
  uint64_t* hashes_ = nullptr;    ///< [frame]: of the content that its slot has; 0: none
  uint64_t* resident_ = nullptr;  ///< bitmap: the place has a host page
  uint64_t host_pages_ = 0;
  boost::intrusive::list<Page, boost::intrusive::member_hook<Page, ListHook, &Page::lru>> quarantine_;
  Failures failures_;
  uint64_t dice_ = 1;
};

}  // namespace weir
