// src/cli/verbs.hpp: what main() can hand over to. argv[0] is the verb; the result is the exit status.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "mm/profile.hpp"

#ifndef WEIR_VERSION
#define WEIR_VERSION "0.1.0"
#endif

namespace weir::cli {

int cmd_run(int argc, char** argv);
int cmd_sim(int argc, char** argv);
int cmd_flow(int argc, char** argv);
int cmd_explore(int argc, char** argv);

/// --explore of the verbs that record: the page of what was recorded just now, or of the part that is usually looked
/// for. Says what it left out on standard error. Throws std::runtime_error.
void explore_recording(const std::string& recording_file, const std::string& page);

/// --kernel of the verbs that run a machine, or another option that takes a profile.
inline CLI::Option* add_kernel_option(CLI::App& app, std::string& kernel, const std::string& meaning,
                                      const char* name = "--kernel") {
  return app.add_option(name, kernel, meaning)->type_name("2.6.20|3.x|4.14")->check([](const std::string& name) {
    return find_profile(name) != nullptr ? std::string() : std::string("there are the profiles ") + PROFILE_NAMES;
  });
}

}  // namespace weir::cli
