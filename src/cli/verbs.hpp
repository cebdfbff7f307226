// src/cli/verbs.hpp: what main() can hand over to. argv[0] is the verb; the result is the exit status.
#pragma once

#ifndef WEIR_VERSION
#define WEIR_VERSION "0.1.0"
#endif

namespace weir::cli {

int cmd_run(int argc, char** argv);
int cmd_sim(int argc, char** argv);
int cmd_flow(int argc, char** argv);

}  // namespace weir::cli
