// src/mm/fault.hpp
//
// The architecture's entry to a fault.
//
//   do_page_fault --> VMA? right? --> handle_mm_fault --RETRY--> again, once without dropping mmap_sem
//                     └ no: sigsegv              └--OOM--> Pressure::fault_out_of_memory, again or killed
//
// Linux: arch/x86/mm/fault.c 4.14.
#pragma once

#include "mm/memory.hpp"

namespace weir {

enum class FaultResult : uint8_t {
  done,     ///< repeat the access
  sigsegv,  ///< no VMA, or no right
  sigbus,   ///< behind the end of a file, or the page could not be read
  killed,   ///< the task got a fatal signal (the OOM killer's, say), or there is no memory and nobody to kill
};

/// What the hardware says of a fault. Linux: X86_PF_*.
enum FaultError : uint32_t { PF_PROT = 1, PF_WRITE = 2, PF_USER = 4, PF_INSTR = 16 };

class Fault {
 public:
  Fault(Memory& memory, Vmas& vmas, Pressure*& pressure, KernelEra kernel = DEFAULT_KERNEL);
  /// Runs until the access can be repeated or the task must be told. Takes mmap_sem for reading; holds nothing on
  /// return.
  FaultResult do_page_fault(Task& task, VirtAddr address, uint32_t error_code);

 private:
  /// The way from do_page_fault to the work: an era's kernel has a function between them, or not.
  using Inner = FaultResult (Fault::*)(Task& task, VirtAddr address, uint32_t error_code);
  static Inner inner_of(KernelEra kernel);
  static uint32_t first_flags_of(KernelEra kernel);
  FaultResult __do_page_fault(Task& task, VirtAddr address, uint32_t error_code);
  FaultResult serve(Task& task, VirtAddr address, uint32_t error_code);

  Memory& memory_;
  Vmas& vmas_;
  Pressure*& pressure_;
  Inner inner_;
  uint32_t first_flags_;  ///< of a fault's first try
};

}  // namespace weir
