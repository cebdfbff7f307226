// src/mm/fault.cpp: see fault.hpp
#include "mm/fault.hpp"

namespace weir {

namespace {

bool access_error(uint32_t error_code, const VmArea& vma) {
  if ((error_code & PF_WRITE) != 0) return (vma.vm_flags & VM_WRITE) == 0;
  if ((error_code & PF_INSTR) != 0) return (vma.vm_flags & VM_EXEC) == 0;
  return (vma.vm_flags & VM_ACCESS_FLAGS) == 0;
}

bool killed(const Task& task) { return task.sigkill.load(std::memory_order_acquire) || fatal_signal_pending(); }

}  // namespace

Fault::Fault(Memory& memory, Vmas& vmas, Pressure*& pressure, KernelEra kernel)
    : memory_(memory),
      vmas_(vmas),
      pressure_(pressure),
      inner_(inner_of(kernel)),
      first_flags_(first_flags_of(kernel)) {}

/// 2.6.20 has no __do_page_fault.
Fault::Inner Fault::inner_of(KernelEra kernel) {
  return kernel == KernelEra::linux_2_6_20 ? &Fault::serve : &Fault::__do_page_fault;
}

/// In 2.6.20 a fault waits with mmap_sem.
uint32_t Fault::first_flags_of(KernelEra kernel) {
  return kernel == KernelEra::linux_2_6_20 ? FAULT_FLAG_USER : FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_USER;
}

FaultResult Fault::do_page_fault(Task& task, VirtAddr address, uint32_t error_code) {
  WEIR_FLOW(address, error_code);
  WEIR_STATE(fault, address, error_code, 0);
  const FaultResult result = (this->*inner_)(task, address, error_code);
  // The way back to the program is where a fatal signal is seen.
  return killed(task) ? FaultResult::killed : result;
}

FaultResult Fault::__do_page_fault(Task& task, VirtAddr address, uint32_t error_code) {
  WEIR_FLOW(address, error_code);
  return serve(task, address, error_code);
}

FaultResult Fault::serve(Task& task, VirtAddr address, uint32_t error_code) WEIR_NO_THREAD_SAFETY_ANALYSIS {
  Mm& mm = *task.mm;
  uint32_t flags = first_flags_;
  if ((error_code & PF_WRITE) != 0) flags |= FAULT_FLAG_WRITE;
  if ((error_code & PF_INSTR) != 0) flags |= FAULT_FLAG_INSTRUCTION;
  uint32_t major = 0;
  for (;;) {
    mm.mmap_sem.down_read();
    VmArea* vma = vmas_.vma_lookup(mm, address);
    if (vma == nullptr || access_error(error_code, *vma)) {
      mm.mmap_sem.up_read();
      return FaultResult::sigsegv;
    }
    const uint32_t fault = memory_.handle_mm_fault(*vma, address, flags);
    major |= fault & VM_FAULT_MAJOR;
    if ((fault & VM_FAULT_RETRY) != 0) {
      // mmap_sem is dropped. A second time the fault waits with it: what was waited for may be gone again by then, for
      // ever.
      if (killed(task)) return FaultResult::killed;
      flags = (flags & ~FAULT_FLAG_ALLOW_RETRY) | FAULT_FLAG_TRIED;
      continue;
    }
    if ((fault & VM_FAULT_COMPLETED) == 0) mm.mmap_sem.up_read();
    WEIR_STATE(fault_return, address, 0, fault);
    if ((fault & VM_FAULT_KILLED) != 0) return FaultResult::killed;
    if ((fault & VM_FAULT_OOM) != 0) {
      if (killed(task) || pressure_ == nullptr || !pressure_->fault_out_of_memory(task)) return FaultResult::killed;
      if (killed(task)) return FaultResult::killed;
      continue;
    }
    if ((fault & VM_FAULT_SIGBUS) != 0) return FaultResult::sigbus;
    if ((fault & VM_FAULT_SIGSEGV) != 0) return FaultResult::sigsegv;
    (major != 0 ? task.maj_flt : task.min_flt).fetch_add(1, std::memory_order_relaxed);
    return FaultResult::done;
  }
}

}  // namespace weir
