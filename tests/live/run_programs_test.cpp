// Real programs at a half and a quarter of the memory that they need: the same output as natively, inside a cgroup that
// would kill them if they took more, and at least as much swapped out as the RAM holds.
#include "programs/run_support.hpp"

namespace weir::test {
namespace {

bool long_run() { return std::getenv("WEIR_LONG") != nullptr; }

struct Share {
  const char* name;
  unsigned parts;  // RAM = need / parts
};

class RunPrograms : public testing::TestWithParam<Share> {
 protected:
  /// Native and managed; `need` MiB is what the program uses natively. Output must be equal, or `same` says so.
  void compare(const Command& command, uint64_t need, int times = 1, const RunWith& with = {}) {
    WEIR_NEEDS_LIVE();
    const uint64_t ram = need / GetParam().parts;
    const Outcome native = run(command, with);
    ASSERT_EQ(native.status, 0) << native.err;
    // Page cache goes when the group is full, anonymous memory cannot: what is over the budget is killed.
    const Cgroup group((ram + 24) * MIB);
    RunWith inside = with;
    inside.cgroup = group.made() ? &group : nullptr;
    const WeirOutcome managed = weir_run(std::to_string(ram) + "M", command, inside,
                                         {"--swap", "zram", "--swap", "file:/tmp:" + std::to_string(need * 4) + "M"});
    EXPECT_EQ(managed.status, 0) << managed.err;
    EXPECT_TRUE(managed.out == native.out) << "output differs\n" << managed.err;
    EXPECT_GE(managed.event("pswpout"), static_cast<int64_t>(ram * MIB / 4096) * times) << managed.err;
    std::printf("  %s of %luM: %.1f s natively, %.1f s managed, %ld pages out, %ld in\n", GetParam().name, need,
                native.seconds, managed.seconds, managed.event("pswpout"), managed.event("pswpin"));
  }
};

TEST_P(RunPrograms, Python) {
  compare({"/usr/bin/python3", "-c",
           "import hashlib\n"
           "n = 400000\n"
           "a = [str(i) * 3 for i in range(n)]\n"
           "d = {x: i for i, x in enumerate(a[:100000])}\n"
           "h = hashlib.sha256()\n"
           "for x in a: h.update(x.encode())\n"
           "del a\n"
           "print(len(d), sum(d.values()), h.hexdigest())\n"},
          60);
}

TEST_P(RunPrograms, Sort) {
  const uint64_t mib = long_run() ? 200 : 40;
  Folder folder;
  {
    // Runs that are sorted each, as a log of several sources is: lines of 64 characters, the newline among them.
    std::ofstream out(folder / "in");
    uint64_t x = 88172645463325252ull;
    const uint64_t lines = mib * MIB / 64, run_length = lines / 16;
    for (uint64_t i = 0; i < lines; ++i) {
      x ^= x << 13, x ^= x >> 7, x ^= x << 17;
      char line[80];
      out.write(line, std::snprintf(line, sizeof line, "%012lu %016lx%016lx%018lu\n", (i % run_length) * 16 + x % 16, x,
                                    x * 31, i));
    }
  }
  // One thread and a buffer for all of it, so that it does its own sorting in memory instead of temporary files.
  compare({"sort", "--parallel=1", "-S", std::to_string(mib * 4) + "M", folder / "in"}, mib * 9 / 5, 1,
          {.env = {"LC_ALL=C"}});
}

TEST_P(RunPrograms, Sqlite) {
  Folder folder;
  const char* update = long_run() ? "UPDATE t SET body = body || id WHERE id % 5 = 0;\n" : "";
  std::ofstream(folder / "q.sql")
      << "PRAGMA cache_size=-4000000;\n"
         "CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, body TEXT);\n"
         "INSERT INTO t SELECT value, (value * 2654435761) % 1000003, printf('%d %s %.120c', value, hex(value * 7919), "
         "'x') "
         "|| printf('%x%x', value * 31, value * 17) FROM generate_series(1, 250000);\n"
         "SELECT count(*), sum(k), sum(length(body)) FROM t;\n"
      << update << "SELECT k % 7, count(*), sum(length(body)), max(substr(body, 3, 9)) FROM t GROUP BY 1 ORDER BY 1;\n";
  compare({"sqlite3", ":memory:"}, 56, 1, {.input = folder / "q.sql"});
}

TEST_P(RunPrograms, SqliteJoinsAtRandom) {
  Folder folder;
  const int rows = long_run() ? 1000000 : 200000;
  std::ofstream(folder / "q.sql")
      << "PRAGMA cache_size=-4000000;\n"
         "CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, body TEXT);\n"
         "INSERT INTO t SELECT value, value * 7919 % 1000003, printf('%d %.160c %x', value, 'y', value * 7919) "
         "FROM generate_series(1, "
      << rows << ");\n"
      << "CREATE TABLE u AS SELECT value AS id, value * 2654435761 % " << rows
      << " + 1 AS other FROM generate_series(1, " << rows / 5 << ");\n"
      << "SELECT count(*), sum(t.k), sum(length(t.body)), sum(unicode(substr(t.body, 3))) FROM u JOIN t ON t.id = "
         "u.other;\n";
  compare({"sqlite3", ":memory:"}, rows / 4900, 1, {.input = folder / "q.sql"});
}

TEST_P(RunPrograms, Gcc) {
  Folder folder;
  {
    std::ofstream out(folder / "big.cpp");
    out << "#include <map>\n#include <string>\n#include <vector>\n";
    for (int i = 0; i < (long_run() ? 680 : 50); ++i)
      out << "struct S" << i
          << " { std::map<std::string, std::vector<int>> m; int f(int x) { for (auto& [k, v] : m) for (int& e : v) x = "
             "x * "
          << i + 3 << " + e + (int)k.size(); return x; } };\nint g" << i << "(S" << i
          << "& s, int x) { return s.f(x) + s.f(x + " << i << "); }\n";
  }
  const std::string object = folder / "big.o";
  // Somewhat less than it takes natively, so that as much as half of that has to leave.
  compare({"sh", "-c", "g++ -O1 -fno-ident -c -o " + object + " " + (folder / "big.cpp") + " && sha256sum < " + object},
          long_run() ? 260 : 64);
}

TEST_P(RunPrograms, StressNgVerifiesWhatItWrote) {
  if (access("/usr/bin/stress-ng", X_OK) != 0) GTEST_SKIP() << "stress-ng is not installed";
  WEIR_NEEDS_LIVE();
  const uint64_t need = 160, ram = need / GetParam().parts;
  Folder folder;
  // A tenth more than `need`, as its methods write the whole area five times in the first ops: ten times half of it.
  const Command stress{"stress-ng",   "--vm",
                       "2",           "--vm-bytes",
                       "176m",        "--vm-method",
                       "all",         "--verify",
                       "--vm-ops",    long_run() ? "4000" : GetParam().parts == 2 ? "1200" : "800",
                       "--vm-keep",   "--oomable",
                       "--temp-path", folder.path(),
                       "--timeout",   "600"};
  const Outcome native = run(stress);
  ASSERT_EQ(native.status, 0) << native.err;
  const Cgroup group((ram + 32) * MIB);
  const WeirOutcome managed = weir_run(std::to_string(ram) + "M", stress, {.cgroup = group.made() ? &group : nullptr},
                                       {"--swap", "zram", "--swap", "file:/tmp:512M"});
  EXPECT_EQ(managed.status, 0) << managed.out << managed.err;
  EXPECT_EQ((managed.out + managed.err).find("fail:"), std::string::npos) << managed.out << managed.err;
  EXPECT_GE(managed.event("pswpout"), static_cast<int64_t>(ram * MIB / 4096) * 10) << managed.err;
  std::printf("  %s of %luM: %.1f s natively, %.1f s managed, %ld pages out, %ld in, %ld over\n", GetParam().name, need,
              native.seconds, managed.seconds, managed.event("pswpout"), managed.event("pswpin"),
              managed.stats.value("over_budget_pages", int64_t{-1}));
}

INSTANTIATE_TEST_SUITE_P(Ram, RunPrograms, testing::Values(Share{"half", 2}, Share{"quarter", 4}),
                         [](const testing::TestParamInfo<Share>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace weir::test
