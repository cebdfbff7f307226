// src/mm/rmap_chains.hpp
//
// VMAs and AnonVmas linked many to many, each AnonVma with an interval tree: 3.x and 4.14.
#pragma once

#include "mm/rmap.hpp"

namespace weir {

class RmapChains : public RmapEra {
 public:
  Result<void> anon_vma_prepare(VmArea& vma, VmArea* mergeable_neighbour) override;
  Result<void> anon_vma_clone(VmArea& dst, VmArea& src) override;
  Result<void> anon_vma_fork(VmArea& dst, VmArea& src) override;
  void unlink_anon_vmas(VmArea& vma) override;
  void anon_vma_merge(VmArea& vma, VmArea& next) override;
  void pre_update_vma(VmArea& vma) override;
  void post_update_vma(VmArea& vma) override;
  [[nodiscard]] AnonVma* anchor(const VmArea& vma, Exclusive exclusive) const override;
  [[nodiscard]] bool linked(const VmArea& vma, const AnonVma* anon_vma) const override;
  void for_each_vma(AnonVma& anon_vma, uint64_t first, uint64_t last, bool (*fn)(VmArea& vma, void* arg),
                    void* arg) const override;

 protected:
  /// Whether an ancestor that nobody uses any more may be a forked VMA's own AnonVma (since 4.0).
  enum class Reuse : uint8_t { no, yes };
  RmapChains(Rmap& rmap, Reuse reuse) : RmapEra(rmap), reuse_(reuse) {}
  ~RmapChains() = default;
  AnonVma* page_lock_anon_vma_read(Page& page);
  void page_unlock_anon_vma_read(AnonVma& anon_vma);

 private:
  void anon_vma_chain_link(VmArea& vma, AnonVmaChain& chain, AnonVma& anon_vma);
  AnonVmaChain* alloc_chains(unsigned n);
  void free_chains(AnonVmaChain* chains);
  Result<void> clone_chains(VmArea& dst, VmArea& src, Reuse reuse);

  Reuse reuse_;
};

}  // namespace weir
