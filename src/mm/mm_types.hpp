// src/mm/mm_types.hpp
//
// Address spaces and tasks as data. Linux: include/linux/mm_types.h, sched.h (what mm looks at).
#pragma once

#include <boost/intrusive/set.hpp>
#include <cstring>

#include "base/interval_tree.hpp"
#include "kernel/locks.hpp"
#include "mm/types.hpp"

namespace weir {

struct File;
struct AnonVmaChain;
class VmOps;
class MmuNotifier;
struct KsmMmSlot;

using SetHook = boost::intrusive::set_member_hook<boost::intrusive::link_mode<boost::intrusive::normal_link>>;

/// One mapping [vm_start, vm_end). Fields are guarded by mm->mmap_sem; those that place it in a reverse map (vm_start,
/// vm_end, vm_pgoff) change only with that map's lock held too.
struct VmArea {
  VirtAddr vm_start{}, vm_end{};
  Mm* vm_mm = nullptr;
  SetHook rb;               ///< in Mm::mmap
  uint64_t vm_flags = 0;    ///< VmFlag
  uint64_t vm_pgoff = 0;    ///< offset in pages in vm_file; anonymous: vm_start / 4096 at creation
  File* vm_file = nullptr;  ///< counted
  VmOps* vm_ops = nullptr;  ///< null: anonymous
  AnonVma* anon_vma =
      nullptr;  ///< set at the first anonymous fault; mmap_sem, and page_table_lock when a fault sets it
  AnonVmaChain* chains = nullptr;  ///< singly linked through AnonVmaChain::next_of_vma, last linked first; as anon_vma
  ListHook anon_vma_node;          ///< 2.6.20: on the list of its AnonVma; that one's lock
  ListHook detached;               ///< on munmap's or exit's list of VMAs that have left the tree
  IntervalTreeLink shared;         ///< in AddressSpace::i_mmap, if vm_file; i_mmap lock
  bool on_nonlinear = false;       ///< on that list; i_mmap lock
  uint64_t unmap_cursor = 0;       ///< VM_NONLINEAR: page where reclaim goes on unmapping; raced on without harm
  ListHook nonlinear;              ///< VM_NONLINEAR: in AddressSpace::i_mmap_nonlinear in place of that; i_mmap lock
  [[nodiscard]] uint64_t pages() const { return (vm_end - vm_start) >> PAGE_SHIFT; }
  [[nodiscard]] bool contains(VirtAddr a) const { return a >= vm_start && a < vm_end; }
  [[nodiscard]] bool anonymous() const { return vm_ops == nullptr; }
};

/// VMAs that have left the tree, on their way to be freed.
using VmaList = boost::intrusive::list<VmArea, boost::intrusive::member_hook<VmArea, ListHook, &VmArea::detached>,
                                       boost::intrusive::constant_time_size<false>>;

/// A file's mappings whose PTEs may map any page of it.
using VmaNonlinearList =
    boost::intrusive::list<VmArea, boost::intrusive::member_hook<VmArea, ListHook, &VmArea::nonlinear>,
                           boost::intrusive::constant_time_size<false>>;

/// A file's mappings by the pages of it that they cover: AddressSpace::i_mmap.
struct VmaSharedTraits {
  using Node = VmArea;
  static uint64_t start(const VmArea& v) { return v.vm_pgoff; }
  static uint64_t last(const VmArea& v) { return v.vm_pgoff + v.pages() - 1; }
  static IntervalTreeLink& link(VmArea& v) { return v.shared; }
};
using VmaFileTree = IntervalTree<VmaSharedTraits>;

struct VmAreaStart {
  using type = VirtAddr;
  const VirtAddr& operator()(const VmArea& v) const { return v.vm_start; }
};
using VmaTree = boost::intrusive::set<VmArea, boost::intrusive::member_hook<VmArea, SetHook, &VmArea::rb>,
                                      boost::intrusive::key_of_value<VmAreaStart>>;

/// The linear page offset of an address in a VMA: what rmap keys pages by.
[[nodiscard]] inline uint64_t linear_page_index(const VmArea& vma, VirtAddr address) {
  return ((address - vma.vm_start) >> PAGE_SHIFT) + vma.vm_pgoff;
}

/// An address space.
/// Invariants: rss_stat[k] = a scan of the page tables; map_count = size of mmap; total_vm = sum of the VMAs' pages.
struct Mm {
  uint64_t id = 0;  ///< small number for people and logs; immutable
  RwSem mmap_sem{LockRank::mmap};
  SpinLock page_table_lock{LockRank::mm_page_table};  ///< upper levels of the tables; anon_vma of VMAs
  std::byte* pgd = nullptr;                           ///< top table's place; immutable from pgd_alloc to pgd_free
  VmaTree mmap;                                       // mmap_sem
  std::atomic<VmArea*> vmacache{nullptr};  ///< last found; cleared by whoever changes the tree (mmap_sem write)
  std::atomic<int32_t> mm_users{1};        ///< tasks and temporary users (mmget); 0: exit_mmap runs
  std::atomic<int32_t> mm_count{1};        ///< references to the struct (mm_users count as one)
  int32_t map_count = 0;                   // mmap_sem
  int64_t total_vm = 0;                    ///< pages; mmap_sem
  int64_t locked_vm = 0;                   // mmap_sem
  uint64_t def_flags = 0;                  ///< what new VMAs get too: VM_LOCKED (mlockall); mmap_sem
  WorldAtomic<int64_t> rss_stat[static_cast<unsigned>(RssKind::count)] = {};
  std::atomic<int64_t> hiwater_rss{0};
  std::atomic<int64_t> nr_table_pages{0};  ///< page-table pages of all levels
  std::atomic<int64_t> nr_ptes{0};         ///< of the lowest level
  VirtAddr start_brk{}, brk{};             // mmap_sem
  VirtAddr mmap_base{};                    ///< top of the mmap area; areas are placed downwards from here
  /// No hole between here and mmap_base is larger than cached_hole_size. mmap_sem for writing
  VirtAddr free_area_cache{};
  uint64_t cached_hole_size = 0;
  VirtAddr task_size{};  ///< first address that is not the user's
  ListHook mmlist;       ///< in the list of Mms with swap entries; mmlist lock
  std::atomic<bool> on_mmlist{false};
  std::atomic<bool> oom_skip{false};  ///< nothing more will come of killing for it: reaped, emptied, or out of reach
  ListHook reaped_next;               ///< in the reaper's queue; its lock
  int32_t reaped_pid = 0;             ///< whose victim it is in that queue, for messages
  std::atomic<MmuNotifier*> notifiers{nullptr};  ///< who is told of changes; written under page_table_lock
  std::atomic<int32_t> notifying{0};             ///< who reads that list just now
  KsmMmSlot* ksm_slot = nullptr;                 ///< it has mergeable mappings; set under mmap_sem, cleared by ksm
  void* arch = nullptr;                          ///< the Mmu's own
  /// Rows of first touches: the page expected next << 8 | pages mapped last. Hints, raced on without harm.
  std::atomic<uint64_t> touch_rows[4] = {};
  std::atomic<uint32_t> next_touch_row{0};
  Task* owner = nullptr;  ///< whose address space it was first; for messages and charging

  [[nodiscard]] int64_t rss(RssKind k) const {
    return rss_stat[static_cast<unsigned>(k)].load(std::memory_order_relaxed);
  }
  /// get_mm_rss: resident pages of all kinds.
  [[nodiscard]] int64_t get_mm_rss() const { return rss(RssKind::file) + rss(RssKind::anon) + rss(RssKind::shmem); }
  void add_mm_counter(RssKind k, int64_t n) {
    rss_stat[static_cast<unsigned>(k)].fetch_add(n, std::memory_order_relaxed);
    if (k != RssKind::swapents) WEIR_STATE(rss, id, get_mm_rss() - n, get_mm_rss());
  }
  void inc_mm_counter(RssKind k) {
    WEIR_FLOW(id, k);
    add_mm_counter(k, 1);
  }
  void dec_mm_counter(RssKind k) {
    WEIR_FLOW(id, k);
    add_mm_counter(k, -1);
  }
};
/// What a mapping of the page counts as. (Before 4.5 a memory file's page counts as a file's.)
[[nodiscard]] inline RssKind mm_counter(const Page& page) {
  if (PageAnon(page)) return RssKind::anon;
  return PageSwapBacked(page) ? RssKind::shmem : RssKind::file;
}
[[nodiscard]] inline uint64_t flow_value_of(const Mm& mm) { return mm.id; }
[[nodiscard]] inline uint64_t flow_value_of(const VmArea& vma) { return vma.vm_start.v; }

/// Which PTE: how `pte` names it in a recording.
[[nodiscard]] inline uint64_t pte_subject(const Mm& mm, VirtAddr address) {
  return mm.id << 48 | (address.v & ((uint64_t{1} << 48) - 1));
}

/// What the OOM reaper has before it.
using MmReapList = boost::intrusive::list<Mm, boost::intrusive::member_hook<Mm, ListHook, &Mm::reaped_next>,
                                          boost::intrusive::constant_time_size<false>>;
using MmList = boost::intrusive::list<Mm, boost::intrusive::member_hook<Mm, ListHook, &Mm::mmlist>,
                                      boost::intrusive::constant_time_size<false>>;

/// What faults, sleeps and is killed.
struct Task {
  int32_t pid = 0;
  char comm[16] = {};
  Mm* mm = nullptr;                       ///< null once exit_mm has run; tasklist lock for others' reads
  Task* parent = nullptr;                 // tasklist lock
  ListHook tasks;                         ///< in TaskList; tasklist lock
  std::atomic<int32_t> oom_score_adj{0};  ///< -1000 never … 1000 first. 2.6.36 and later
  std::atomic<int32_t> oom_adj{0};        ///< -17 never … 15 first: a shift of the points. Before 2.6.36
  int32_t nice = 0;
  uint32_t uid = 1000;         ///< 0: the superuser
  uint32_t cap_effective = 0;  ///< Capability bits; the superuser has them all
  Nanos start_time{};
  Nanos cpu_time{};                  ///< of its threads that have ended
  std::atomic<bool> sigkill{false};  ///< a fatal signal is pending
  /// Chosen by the OOM killer: may use the reserves to die. Stands for all threads of the task. Linux:
  /// tsk_is_oom_victim.
  std::atomic<bool> memdie{false};
  Mm* oom_mm =
      nullptr;  ///< what the victim's death will give back, even after exit_mm; counted (mmgrab). Tasklist lock
  std::atomic<bool> exiting{false};
  std::atomic<bool> oom_origin{false};  ///< swapoff: first candidate
  std::atomic<uint64_t> maj_flt{0}, min_flt{0};
  Thread* thread = nullptr;  ///< to be woken by a kill; null if it has none of its own
  uint64_t nr_dirtied = 0;   ///< pages dirtied since the last balance_dirty_pages; its own thread only, as the next
  uint64_t nr_dirtied_pause = 32;  ///< after so many it looks at the limits (3.2)
  Nanos dirty_paused_when{};       ///< until when its dirtying is paid for by pauses (3.2)
  // Waits for pages to be freed; its own thread only. Linux: struct task_delay_info.
  Nanos freepages_start{}, freepages_delay{};
  uint32_t freepages_count = 0;
  int exit_code = 0;
};
using TaskListT = boost::intrusive::list<Task, boost::intrusive::member_hook<Task, ListHook, &Task::tasks>,
                                         boost::intrusive::constant_time_size<false>>;

/// Whose thread this is; null if it is no task's. Linux: current.
[[nodiscard]] inline Task* current_task() {
  const Thread* thread = engine_thread().thread;
  return thread != nullptr ? thread->task : nullptr;
}

/// Names a task; what does not fit is cut off.
inline void set_task_comm(Task& task, const char* comm) {
  std::memset(task.comm, 0, sizeof task.comm);
  std::memcpy(task.comm, comm, strnlen(comm, sizeof task.comm - 1));
  uint64_t words[2];
  std::memcpy(words, task.comm, sizeof words);
  WEIR_STATE(task_comm, task.pid, words[0], words[1]);
}

/// Bits of Task::cap_effective. Values of Linux.
enum Capability : uint32_t { CAP_SYS_RAWIO = 1u << 17, CAP_SYS_ADMIN = 1u << 21, CAP_SYS_RESOURCE = 1u << 24 };
[[nodiscard]] inline bool capable(const Task& task, Capability cap) {
  return task.uid == 0 || (task.cap_effective & cap) != 0;
}

/// The running thread belongs to a victim of the OOM killer, whoever picked it and however long ago.
[[nodiscard]] inline bool current_is_oom_victim() {
  const Thread* t = engine_thread().thread;
  return t != nullptr && t->task != nullptr && t->task->memdie.load(std::memory_order_acquire);
}

[[nodiscard]] inline bool fatal_signal_pending() {
  const Thread* t = engine_thread().thread;
  return t != nullptr && t->task != nullptr && t->task->sigkill.load(std::memory_order_acquire);
}

}  // namespace weir
