// src/cli/main.cpp
//
// The weir command: finds the verb and hands over. One file a verb.
#include <fmt/format.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "cli/verbs.hpp"

namespace {

constexpr const char* HELP = R"(weir - the Linux memory manager in user space

  weir run   [--ram SIZE] [--swap SPEC]... -- PROGRAM [ARGS]   a program on a memory manager of its own
  weir sim   FILE.toml [--seed N] [--json FILE]                a whole machine in virtual time
  weir flow  ID | --from FILE                                  a call flow, as it really ran
  weir explore RECORDING -o PAGE.html                          a recording as a page to step through

  weir VERB --help   options and examples      weir --version

Examples
  weir run --ram 256M --swap zram -- python3 train.py
  weir sim examples/004.toml
  weir flow add-to-swap
  weir sim examples/000-swap.toml --explore page.html
)";

}  // namespace

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  if (verb == "--version" || verb == "-V" || verb == "version") {
    fmt::print("weir {}\n", WEIR_VERSION);
    return 0;
  }
  if (verb == "--help" || verb == "-h" || verb == "help") {
    std::fputs(HELP, stdout);
    return 0;
  }
  if (verb == "sim") return weir::cli::cmd_sim(argc - 1, argv + 1);
  if (verb == "flow") return weir::cli::cmd_flow(argc - 1, argv + 1);
  if (verb == "run") return weir::cli::cmd_run(argc - 1, argv + 1);
  if (verb == "explore") return weir::cli::cmd_explore(argc - 1, argv + 1);
  if (verb.empty()) {
    std::fputs(HELP, stderr);
    return 2;
  }
  fmt::print(stderr, "weir: there is no verb \"{}\"; `weir --help` lists them\n", verb);
  return 2;
}
