// look SCENARIO NUMBERS OUT [full]: runs the scenario, looks at the machine after each event of the file NUMBERS, and
// writes a line of JSON for each look: the parts of the machine, each as a digest, or with "full" as text.
// tests/explore_test.py holds the explorer's page to them.
#include <fstream>
#include <iostream>

#include "base/engine_stack.hpp"
#include "sim/simulation.hpp"
#include "support/machine_look.hpp"

namespace weir::test {
namespace {

class Looker final : public FlowSink {
 public:
  Looker(std::vector<uint64_t> numbers, const std::string& out, bool full)
      : numbers_(std::move(numbers)), out_(out, std::ios::binary), full_(full) {}
  void booted(Machine& machine) { machine_ = &machine; }
  void enter(const FlowSite&, uint64_t, uint64_t, uint64_t) override { next(); }
  void leave(const FlowSite&) override { next(); }
  void state(const FlowSite&, State, uint64_t, uint64_t, uint64_t) override { next(); }
  [[nodiscard]] bool done() const { return at_ == numbers_.size() && out_.good(); }

 private:
  void next() {
    const uint64_t number = events_++;
    if (at_ == numbers_.size() || numbers_[at_] != number) return;
    ++at_;
    nlohmann::ordered_json line;
    line["number"] = number;
    if (machine_ != nullptr)
      for (const auto& [name, text] : parts(look_at(*machine_))) line[name] = full_ ? text : digest(text);
    out_ << line.dump() << "\n";
  }

  // FNV-1a twice, so that the page has it without arithmetic of 64 bits.
  static std::string digest(const std::string& text) {
    uint32_t a = 0x811c9dc5, b = 0x01234567;
    for (const char c : text) {
      a = (a ^ static_cast<uint8_t>(c)) * 16777619u;
      b = (b ^ static_cast<uint8_t>(c)) * 16777619u;
    }
    return fmt::format("{:08x}{:08x}", a, b);
  }

  static std::map<std::string, std::string> parts(const Look& look) {
    std::map<std::string, std::string> out;
    std::string& ptes = out["ptes"];
    for (const auto& [key, pte] : look.ptes) ptes += fmt::format("{} {}\n", key, pte);
    std::string& frames = out["frames"];
    for (const auto& [pfn, f] : look.frames)
      frames += fmt::format("{} {} {} {} {}\n", pfn, f.mapcount, f.count, f.flags, f.mapping);
    std::string& lru = out["lru"];
    for (const auto& [key, pfns] : look.lru) {
      lru += fmt::format("{}:", key.first * 8 + key.second);
      for (const uint64_t pfn : pfns) lru += fmt::format(" {}", pfn);
      lru += "\n";
    }
    const auto numbers = [&](const char* name, const auto& map) {
      std::string& text = out[name];
      for (const auto& [key, value] : map) text += fmt::format("{} {}\n", key, value);
    };
    numbers("swap_map", look.swap_map);
    numbers("swap_cache", look.swap_cache);
    numbers("page_cache", look.page_cache);
    numbers("nr_free", look.nr_free);
    numbers("free_area", look.free_area);
    numbers("pcp", look.pcp);
    numbers("marks", look.marks);
    numbers("rss", look.rss);
    numbers("tasks", look.tasks);
    return out;
  }

  std::vector<uint64_t> numbers_;  // ascending
  size_t at_ = 0;
  std::ofstream out_;
  bool full_;
  Machine* machine_ = nullptr;
  uint64_t events_ = 0;
};

int run(int argc, char** argv) {
  if (argc < 4) return 2;
  std::vector<uint64_t> numbers;
  std::ifstream in(argv[2]);
  for (uint64_t n = 0; in >> n;) numbers.push_back(n);
  Looker looker(numbers, argv[3], argc > 4);
  sim::SimOptions options;
  options.sink = &looker;
  options.booted = [&](Machine& machine) { looker.booted(machine); };
  (void)sim::run_scenario(sim::load_scenario(argv[1]), options);
  return looker.done() ? 0 : 1;
}

}  // namespace
}  // namespace weir::test

int main(int argc, char** argv) {
  try {
    return weir::test::run(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << "look: " << e.what() << "\n";
    return 1;
  }
}
