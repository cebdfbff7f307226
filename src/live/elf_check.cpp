// src/live/elf_check.cpp: see elf_check.hpp
#include "live/elf_check.hpp"

#include <elf.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

namespace weir::live {

namespace {

std::string find_in_path(const std::string& program) {
  if (program.find('/') != std::string::npos) return access(program.c_str(), F_OK) == 0 ? program : "";
  const char* path = std::getenv("PATH");
  std::istringstream dirs(path != nullptr ? path : "/usr/local/bin:/usr/bin:/bin");
  std::string dir;
  while (std::getline(dirs, dir, ':')) {
    std::string full = (dir.empty() ? "." : dir) + "/" + program;
    struct stat st {};
    if (stat(full.c_str(), &st) == 0 && S_ISREG(st.st_mode) && access(full.c_str(), X_OK) == 0) return full;
  }
  return "";
}

std::string check_file(const std::string& path, int depth) {
  struct stat st {};
  if (stat(path.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) return path + " is not a file";
  if (access(path.c_str(), X_OK) != 0) return path + " may not be executed (chmod +x?)";
  if ((st.st_mode & (S_ISUID | S_ISGID)) != 0 && geteuid() != 0)
    return path + " is set-user-ID: the loader ignores LD_PRELOAD for it, so it cannot be managed";
  std::ifstream in(path, std::ios::binary);
  std::string head(256, '\0');
  in.read(head.data(), static_cast<std::streamsize>(head.size()));
  head.resize(static_cast<size_t>(in.gcount()));
  if (head.rfind("#!", 0) == 0) {
    if (depth > 4) return path + ": scripts name each other as interpreters";
    std::istringstream line(head.substr(2, head.find('\n') - 2));
    std::string interpreter, argument;
    line >> interpreter >> argument;
    if (interpreter.empty()) return path + ": its first line names no interpreter";
    // "#!/usr/bin/env python3": env hands over by exec; what counts is what it finds.
    if (interpreter.size() > 4 && interpreter.compare(interpreter.size() - 4, 4, "/env") == 0 && !argument.empty() &&
        argument[0] != '-') {
      const std::string found = find_in_path(argument);
      if (found.empty()) return path + ": its interpreter " + argument + " is not on the PATH";
      return check_file(found, depth + 1);
    }
    return check_file(interpreter, depth + 1);
  }
  if (head.size() < sizeof(Elf64_Ehdr) || std::memcmp(head.data(), ELFMAG, SELFMAG) != 0)
    return path + " is neither an ELF program nor a script";
  Elf64_Ehdr eh;
  std::memcpy(&eh, head.data(), sizeof eh);
  if (eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_machine != EM_X86_64)
    return path + " is not a 64-bit x86 program; only those can be managed";
  if (eh.e_phnum > 512 || eh.e_phentsize != sizeof(Elf64_Phdr))
    return path + " has a program header table that makes no sense";
  std::vector<Elf64_Phdr> headers(eh.e_phnum);
  in.clear();
  in.seekg(static_cast<std::streamoff>(eh.e_phoff));
  in.read(reinterpret_cast<char*>(headers.data()), static_cast<std::streamsize>(headers.size() * sizeof(Elf64_Phdr)));
  if (!in) return path + " ends before its program headers";
  for (const Elf64_Phdr& ph : headers)
    if (ph.p_type == PT_INTERP) return "";
  return path +
         " is statically linked: weir enters a program through the dynamic loader (LD_PRELOAD), so it cannot be "
         "managed";
}

}  // namespace

ProgramCheck check_program(const std::string& program) {
  ProgramCheck check;
  check.path = find_in_path(program);
  if (check.path.empty()) {
    check.problem = program + ": not found" + (program.find('/') == std::string::npos ? " on the PATH" : "");
    return check;
  }
  check.problem = check_file(check.path, 0);
  return check;
}

}  // namespace weir::live
