// src/live/elf_check.hpp
//
// Can this program be managed at all? Looked at before it starts, so that what cannot work ends with a clear message.
#pragma once

#include <string>

namespace weir::live {

struct ProgramCheck {
  std::string path;     ///< as it will be executed; empty when it was not found
  std::string problem;  ///< why it cannot be managed; empty: it can
};

/// Finds `program` as execvp would and looks into it: a dynamically linked 64-bit x86 ELF, or a script whose
/// interpreter is one; not set-user-ID (the loader would drop LD_PRELOAD).
ProgramCheck check_program(const std::string& program);

}  // namespace weir::live
