// src/cli/explore.cpp
//
// weir explore: a recording as a page to step through. Exit status: 0; 1 when the recording is broken (the page shows
// what there is); 2 when there is nothing to show.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>

#include "cli/verbs.hpp"
#include "explore/page.hpp"

namespace weir::cli {

namespace {

Recording read(const std::string& file) {
  Recording recording = read_recording(file);
  if (recording.status == Recording::Status::refused) throw explore::ExploreError(recording.problem);
  if (recording.events.empty())
    throw explore::ExploreError(recording.problem.empty() ? file + ": nothing was recorded" : recording.problem);
  return recording;
}

void write(explore::Part part, const std::string& title, const std::string& page) {
  std::ofstream out(page, std::ios::binary);
  out << explore::page(std::move(part), title);
  out.close();
  if (!out) throw explore::ExploreError(fmt::format("{}: cannot be written", page));
}

}  // namespace

void explore_recording(const std::string& recording_file, const std::string& page) {
  Recording recording = read(recording_file);
  const explore::Window window = explore::usual_window(recording);
  const size_t events = recording.events.size();
  explore::Part part = explore::cut(std::move(recording), window);
  if (!window.around.empty())
    fmt::print(
        stderr,
        "weir: {}: {} of {} events, around {}; `--record FILE`, then `weir explore FILE --help` for other parts\n",
        page, part.recording.events.size(), events, window.around.front());
  write(std::move(part), page, page);
}

int cmd_explore(int argc, char** argv) {
  CLI::App app{"Makes a page of a recording: step through it, see what changed, look for why.", "weir explore"};
  app.footer(
      "Examples\n"
      "  weir sim examples/004.toml --record run.weir && weir explore run.weir -o run.html --around oom_kill:1\n"
      "  weir run --ram 64M --record r.weir -- ./prog; weir explore r.weir -o r.html\n"
      "  weir explore run.weir -o run.html --task kswapd0 --from-time 0.5 --to-time 0.6\n"
      "  weir explore run.weir -o run.html --life 1:0x7ffff7ffe000\n"
      "\nThe page needs no network and no server. Where it shows a part, what is left out is told by the changes that "
      "remain\n"
      "of it, so that the machine is what it was.\n"
      "Exit status: 0; 1 when the recording is broken (the page shows what there is); 2 when there is nothing to "
      "show.");
  std::string file, out, title;
  explore::Window window;
  double from = -1, to = -1;
  app.add_option("RECORDING", file, "what --record wrote")->required();
  app.add_option("-o,--output", out, "the page")->type_name("FILE")->required();
  app.add_option("--title", title, "the page's title (default: the recording's)");
  auto* around =
      app.add_option("--around", window.around,
                     "only what is near the Nth occurrence of a function or state (pswpin, pswpout and pgfault "
                     "too), or near an event's number; several: what is near any of them")
          ->type_name("NAME[:N]|NUMBER")
          ->allow_extra_args(false);
  app.add_option("--radius", window.radius, "how near: so many events before and after")
      ->needs(around)
      ->capture_default_str();
  app.add_option("--task", window.task, "only this task's calls and changes: a tid or a name");
  app.add_option(
         "--life", window.life,
         "only what concerns the page at this address, of one address space or of any, through frames and slots")
      ->type_name("[MM:]ADDRESS");
  app.add_option("--from-time", from, "from this second of the machine's clock on")->type_name("SECONDS");
  app.add_option("--to-time", to, "up to this second")->type_name("SECONDS");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  if (from >= 0) window.from_ns = static_cast<uint64_t>(from * 1e9);
  if (to >= 0) window.to_ns = static_cast<uint64_t>(to * 1e9);
  try {
    Recording recording = read(file);
    const Recording::Status status = recording.status;
    if (!recording.problem.empty()) fmt::print(stderr, "weir explore: {}\n", recording.problem);
    if (!title.empty()) std::erase_if(recording.facts, [](const auto& fact) { return fact.key == "scenario"; });
    write(explore::cut(std::move(recording), window), title.empty() ? file : title, out);
    return status == Recording::Status::broken ? 1 : 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "weir explore: {}\n", e.what());
    return 2;
  }
}

}  // namespace weir::cli
