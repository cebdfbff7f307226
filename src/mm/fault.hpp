// src/mm/fault.hpp
//
// The architecture's entry to a fault. Linux: arch/x86/mm/fault.c.
#pragma once

#include "mm/memory.hpp"

namespace weir {

enum class FaultResult : uint8_t {
  done,      ///< repeat the access
  sigsegv,   ///< no VMA, or no right
  sigbus,    ///< behind the end of a file, or the page could not be read
  killed,    ///< the task got a fatal signal (the OOM killer's, say)
};

/// What the hardware says of a fault. Linux: X86_PF_*.
enum FaultError : uint32_t { PF_PROT = 1, PF_WRITE = 2, PF_USER = 4, PF_INSTR = 16 };

class Fault {
 public:
  Fault(Memory& memory, Vmas& vmas, VmStat& vmstat, Pressure*& pressure);
  /// Runs until the access can be repeated or the task must be told. Takes mmap_sem for reading; holds nothing on return.
  FaultResult do_page_fault(Task& task, VirtAddr address, uint32_t error_code);

 private:
  Memory& memory_;
  Vmas& vmas_;
  VmStat& vmstat_;
  Pressure*& pressure_;
};

}  // namespace weir
