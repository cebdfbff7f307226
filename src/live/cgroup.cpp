// src/live/cgroup.cpp: see cgroup.hpp
#include "live/cgroup.hpp"

#include <fstream>
#include <sstream>

namespace weir::live {

namespace {

// "No limit" is "max" in version 2 and a number near 2^63 in version 1.
constexpr uint64_t NO_LIMIT = uint64_t{1} << 60;

std::optional<uint64_t> number_in(const std::string& path) {
  std::ifstream in(path);
  uint64_t v = 0;
  if (!(in >> v)) return {};
  return v;
}

void tightest(std::optional<CgroupLimit>& best, const std::string& limit_file, const std::string& usage_file) {
  const std::optional<uint64_t> limit = number_in(limit_file);
  if (!limit || *limit >= NO_LIMIT) return;
  if (best && best->limit.v <= *limit) return;
  best = CgroupLimit{Bytes(*limit), Bytes(number_in(usage_file).value_or(0)), limit_file};
}

}  // namespace

std::optional<CgroupLimit> memory_limit(const std::string& proc, const std::string& sys) {
  std::optional<CgroupLimit> best;
  std::ifstream groups(proc + "/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    // "4:memory:/path" (version 1) or "0::/path" (version 2)
    const size_t first = line.find(':'), second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool v2 = controllers.empty();
    if (!v2 && ("," + controllers + ",").find(",memory,") == std::string::npos) continue;
    for (;;) {
      if (path == "/") path.clear();
      if (v2) {
        for (const char* root : {"/fs/cgroup", "/fs/cgroup/unified"})
          tightest(best, sys + root + path + "/memory.max", sys + root + path + "/memory.current");
      } else {
        tightest(best, sys + "/fs/cgroup/memory" + path + "/memory.limit_in_bytes",
                 sys + "/fs/cgroup/memory" + path + "/memory.usage_in_bytes");
      }
      if (path.empty()) break;
      path = path.substr(0, path.rfind('/'));
    }
  }
  return best;
}

}  // namespace weir::live
