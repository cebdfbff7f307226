// src/mm/machine.cpp: boot, tasks, shutdown. See machine.hpp
#include "mm/machine.hpp"

#include <cstring>
#include <new>

namespace weir {

Machine::Machine(World& w, Mmu& m, const MachineOptions& options)
    : world(w),
      mmu(m),
      profile(profile_of(options.kernel)),
      pages(mem, node, vmstat, mmu, options.cpus, options.kernel),
      slab(pages, vmstat, options.cpus),
      tables(pages, vmstat),
      vmalloc(pages, slab, tables, vmstat),
      workingset(node, vmstat),
      lru(pages, vmstat, mmu, options.cpus, options.kernel),
      filemap(pages, slab, lru, vmstat),
      swap_files(pages, slab, vmalloc, vmstat, options.cpus, options.kernel),
      swap_slots(swap_files, vmstat, options.cpus),
      bios(pages),
      page_io(filemap, swap_files, bios, vmstat, mmu, profile),
      swap_cache(filemap, swap_files, swap_slots, page_io, vmstat, mmu, options.kernel),
      vmas(slab),
      rmap(tables, slab, filemap, swap_files, vmstat, mmu, options.kernel),
      memory(tables, vmas, rmap, swap_cache, swap_files, filemap, vmstat, mmu, options.kernel),
      ksm(memory, vmas, rmap, swap_cache, slab, mmu, profile),
      fault(memory, vmas, pressure_, options.kernel),
      spaces(memory, fault, vmas, rmap, tables, swap_files, slab, vmstat, mmu, profile),
      writeback(filemap, vmstat, options.kernel),
      buffers(filemap, bios, writeback, slab, vmstat, mmu, options.kernel),
      files(filemap, page_io, writeback, buffers, slab, vmstat, mmu, options.kernel),
      shmem(swap_cache, swap_files, page_io, files, writeback, slab, vmstat, profile),
      flusher(writeback, vmstat, options.kernel),
      vmscan(node, pages, lru, rmap, filemap, swap_files, swap_cache, writeback, buffers, vmstat, mmu, options.kernel),
      swapon(swap_files, swap_cache, swap_slots, vmstat),
      oom(tasks, pages, swap_files, vmstat, options.kernel),
      oom_reaper(spaces, memory),
      exit(tasks, spaces),
      pool_frames(pages),
      options_(options) {}

Result<Machine*> Machine::create(void* place, World& world, Mmu& mmu, std::byte* arena, const MachineOptions& options) {
  if (options.cpus == 0 || options.cpus > MAX_CPUS) return Errno::inval;
  auto* machine = ::new (place) Machine(world, mmu, options);
  if (const Result<void> up = machine->boot(arena, options); !up) {
    machine->~Machine();
    return up.error();
  }
  return machine;
}

Result<void> Machine::boot(std::byte* arena, const MachineOptions& options) {
  WEIR_TRY_VOID(Bootmem::init(bootmem, mem, arena, options.layout));
  WEIR_TRY_VOID(mmu.attach(mem, tables, bootmem));
  pages.init(bootmem, options.layout);
  if (options.min_free_kbytes != 0) pages.set_min_free_kbytes(options.min_free_kbytes);
  pages.set_watermark_scale_factor(options.watermark_scale_factor);
  slab.kmem_cache_init();
  WEIR_TRY_VOID(tables.init());
  vmalloc.init();
  WEIR_TRY_VOID(filemap.init());
  WEIR_TRY_VOID(lru.init());
  WEIR_TRY_VOID(swap_slots.init());
  WEIR_TRY_VOID(bios.init(options.bio_pool));
  WEIR_TRY_VOID(vmas.init());
  WEIR_TRY_VOID(rmap.init());
  WEIR_TRY_VOID(memory.init());
  WEIR_TRY_VOID(ksm.init());
  WEIR_TRY_VOID(spaces.init());
  spaces.set_ksm(ksm);
  ksm.set_mmdrop([](void* arg, Mm& mm) { static_cast<AddressSpaces*>(arg)->mmdrop(mm); }, &spaces);
  WEIR_TRY_VOID(buffers.init());
  WEIR_TRY_VOID(files.init());
  WEIR_TRY_VOID(shmem.init());
  spaces.set_shmem(shmem);
  spaces.set_vmscan(vmscan);
  swapon.set_address_spaces(spaces, tables, rmap);
  swapon.set_shmem(shmem);
  if (!profile.lazyfree) spaces.set_newest_advice(profile.ksm ? Advice::unmergeable : Advice::dontneed);
  task_cache_ = WEIR_TRY(slab.kmem_cache_create("task_struct", sizeof(Task), {}));

  if (profile.workingset) {
    lru.set_workingset(&workingset);
    filemap.set_workingset(&workingset);
    vmscan.register_shrinker(workingset);
  }
  writeback.set_ratios(options.dirty_background_ratio,
                       options.dirty_ratio != 0 ? options.dirty_ratio : profile.dirty_ratio);
  writeback.set_flusher(&flusher);
  writeback.set_mapped_pages(this);
  swap_cache.set_page_cluster(options.page_cluster);
  vmscan.set_swappiness(options.swappiness);
  vmscan.set_flusher(&flusher);
  oom.set_executioner(this);
  oom.set_reaper(&oom_reaper);
  pressure_ = this;
  pages.set_pressure(this);

  if (options.threads != MachineOptions::Threads::none) WEIR_TRY_VOID(vmscan.kswapd_run(world));
  if (options.threads == MachineOptions::Threads::all) {
    flusher.start(world);
    if (oom.reaps()) WEIR_TRY_VOID(oom_reaper.start(world));
  }
  return {};
}

void Machine::shutdown() {
  oom_reaper.stop();
  swap_files.stop_discard();
  (void)ksm.set_run(Ksm::Run::stop, nullptr);
  flusher.stop();
  if (options_.threads != MachineOptions::Threads::none) vmscan.kswapd_stop();
  // Pages whose owner has gone may still be on their way to a device. Nobody starts another write.
  while (bios.in_flight() != 0) (void)world.schedule_timeout(1_ms);
  std::atomic_thread_fence(std::memory_order_acquire);
  pages.set_pressure(nullptr);
}

Result<Task*> Machine::task_create(const char* comm, Task* parent) {
  Task* task = slab.create<Task>(*task_cache_, GFP_KERNEL);
  if (task == nullptr) return Errno::nomem;
  Result<Mm*> mm = spaces.mm_alloc(task);
  if (!mm) {
    slab.destroy(*task_cache_, task);
    return mm.error();
  }
  task->pid = next_pid_.fetch_add(1, std::memory_order_relaxed);
  set_task_comm(*task, comm);
  task->mm = *mm;
  WEIR_STATE(mm_task, **mm, 0, task->pid);
  task->start_time = world.now();
  task->parent = parent;
  tasks.add(*task);
  return task;
}

Result<Task*> Machine::task_fork(Task& parent) {
  Task* task = slab.create<Task>(*task_cache_, GFP_KERNEL);
  if (task == nullptr) return Errno::nomem;
  Result<Mm*> mm = spaces.fork(*parent.mm, task);
  if (!mm) {
    slab.destroy(*task_cache_, task);
    return mm.error();
  }
  task->pid = next_pid_.fetch_add(1, std::memory_order_relaxed);
  set_task_comm(*task, parent.comm);
  task->mm = *mm;
  WEIR_STATE(mm_task, **mm, 0, task->pid);
  task->start_time = world.now();
  task->parent = &parent;
  task->oom_score_adj.store(parent.oom_score_adj.load(std::memory_order_relaxed), std::memory_order_relaxed);
  task->oom_adj.store(parent.oom_adj.load(std::memory_order_relaxed), std::memory_order_relaxed);
  task->nice = parent.nice;
  task->uid = parent.uid;
  task->cap_effective = parent.cap_effective;
  tasks.add(*task);
  return task;
}

void Machine::task_exit(Task& task, int code) {
  exit.do_exit(task, code);
  slab.destroy(*task_cache_, &task);
}

void Machine::task_kill(Task& task) {
  task.sigkill.store(true, std::memory_order_release);
  if (task.thread != nullptr) world.wake(*task.thread);
}

void Machine::deliver_sigkill(Task& task) {
  if (task.thread != nullptr) world.wake(*task.thread);
  if (outer_executioner_ != nullptr) outer_executioner_->deliver_sigkill(task);
}

void Machine::panic(const char* why) {
  if (outer_executioner_ != nullptr) outer_executioner_->panic(why);
  bug(why, __FILE__, __LINE__);
}

int Machine::page_mkclean(Page& page) {
  FlushBatch batch;
  const int dirty = rmap.page_mkclean(page, batch);
  mmu.flush_batch(batch);
  return dirty;
}

PageCount Machine::set_ram(PageCount target) {
  for (int tries = 0; tries < 16; ++tries) {
    const PageCount now = pages.managed_pages();
    if (now == target) break;
    if (now < target) {
      if (pages.balloon_deflate(target - now).v == 0) break;
      continue;
    }
    const PageCount excess = now - target;
    const PageCount taken = pages.balloon_inflate(excess);
    if (taken < excess && vmscan.shrink_all_memory(excess - taken).v == 0 && taken.v == 0) break;
  }
  return pages.managed_pages();
}

}  // namespace weir
