// tests/live/region_test.cpp: weir::Region as a program sees it, on the host's real MMU.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>
#include <vector>

#include "weir/weir.hpp"

namespace {

using testing::HasSubstr;
using weir::Region;
using weir::RegionDelivery;
using weir::RegionOptions;

constexpr uint64_t MiB = uint64_t{1} << 20;
constexpr size_t PAGE = 4096;
constexpr size_t WORDS = PAGE / 8;
constexpr uint64_t RAM = 16 * MiB, SIZE = 64 * MiB, PAGES = SIZE / PAGE;

bool userfaultfd_for_system_calls() {
  static const bool can = [] {
    auto r = Region::create({.size = MiB, .ram = 8 * MiB, .delivery = RegionDelivery::thread});
    return r.has_value();
  }();
  return can;
}

Region must_create(const RegionOptions& options) {
  auto region = Region::create(options);
  if (!region) {
    ADD_FAILURE() << region.error();
    std::abort();
  }
  return std::move(*region);
}

/// The words of a page that holds `value`: random, zero, one word, or three quarters of one word, by the page's number.
struct Pattern {
  static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  }
  static uint64_t word(uint64_t page, uint64_t value, size_t i) {
    switch (page % 4) {
      case 0: return mix((page << 32) + value * WORDS + i + 1);
      case 1: return 0;
      case 2: return value ^ page;
      default: return i < WORDS / 4 ? mix(page * value + i) : value;
    }
  }
  static void fill(uint64_t* at, uint64_t page, uint64_t value) {
    for (size_t i = 0; i < WORDS; ++i) at[i] = word(page, value, i);
  }
  static bool holds(const uint64_t* at, uint64_t page, uint64_t value) {
    for (size_t i = 0; i < WORDS; ++i)
      if (at[i] != word(page, value, i)) return false;
    return true;
  }
};

uint64_t* page_at(const Region& region, uint64_t page) { return static_cast<uint64_t*>(region.data()) + page * WORDS; }

template <class Fn>
void on_threads(unsigned n, Fn fn) {
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < n; ++i) threads.emplace_back([=] { fn(i); });
  for (std::thread& t : threads) t.join();
}

uint64_t resident_bytes() {
  long total = 0, resident = 0;
  FILE* f = std::fopen("/proc/self/statm", "r");
  if (std::fscanf(f, "%ld %ld", &total, &resident) != 2) resident = 0;
  std::fclose(f);
  return static_cast<uint64_t>(resident) * PAGE;
}

/// The highest resident size of the process while it lives, as the host counts it.
class PeakWatch {
 public:
  PeakWatch()
      : thread_([this] {
          while (!stop_.load()) {
            peak_ = std::max(peak_.load(), resident_bytes());
            usleep(500);
          }
        }) {}
  uint64_t stop() {
    stop_ = true;
    thread_.join();
    return peak_;
  }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> peak_{0};
  std::thread thread_;
};

struct Case {
  RegionDelivery delivery;
  unsigned threads;
};

std::string case_name(const testing::TestParamInfo<Case>& info) {
  return std::string(info.param.delivery == RegionDelivery::signal ? "signal" : "thread") +
         std::to_string(info.param.threads);
}

class RegionWays : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (GetParam().delivery == RegionDelivery::thread && !userfaultfd_for_system_calls())
      GTEST_SKIP() << "no permission for thread delivery";
  }
  Region create(uint64_t size = SIZE, uint64_t ram = RAM) {
    return must_create(
        {.size = size, .ram = ram, .swap = {"zram", "file:/var/tmp:128M"}, .delivery = GetParam().delivery});
  }
};

TEST_P(RegionWays, holds_four_times_its_ram_and_stays_within_it) {
  const uint64_t before = resident_bytes();
  Region region = create();
  PeakWatch watch;
  on_threads(GetParam().threads, [&](unsigned t) {
    for (uint64_t page = t; page < PAGES; page += GetParam().threads) Pattern::fill(page_at(region, page), page, 1);
  });
  std::atomic<uint64_t> wrong{0};
  on_threads(GetParam().threads, [&](unsigned t) {
    std::mt19937_64 random(t + 1);
    for (uint64_t n = 0; n < PAGES / GetParam().threads; ++n) {
      const uint64_t page = random() % PAGES;
      if (!Pattern::holds(page_at(region, page), page, 1)) ++wrong;
    }
    for (uint64_t page = t; page < PAGES; page += GetParam().threads)
      if (!Pattern::holds(page_at(region, page), page, 1)) ++wrong;
  });
  const uint64_t peak = watch.stop();
  const weir::RegionStats s = region.stats();
  EXPECT_EQ(wrong, 0u);
  EXPECT_GE(s.pswpout, s.ram_pages) << "the region was not short of memory: nothing was shown";
  EXPECT_LE(peak - before, RAM + 4 * MiB);
  EXPECT_LE(s.host_resident_pages, s.ram_pages);
}

TEST_P(RegionWays, random_stores_are_all_found_again) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Region region = create(SIZE / 2, RAM / 2);
  constexpr uint64_t pages = PAGES / 2;
  std::vector<uint64_t> expected(pages, 0);
  std::atomic<uint64_t> wrong{0};
  on_threads(GetParam().threads, [&](unsigned t) {
    std::mt19937_64 random(seed + t);
    const uint64_t mine = pages / GetParam().threads;
    for (uint64_t step = 0; step < 30000 / GetParam().threads; ++step) {
      const uint64_t page = t * mine + random() % mine;
      uint64_t* at = page_at(region, page);
      const size_t word = Pattern::mix(page) % (WORDS - 1);
      if (at[word] != expected[page] || at[WORDS - 1] != expected[page]) ++wrong;
      switch (random() % 8) {
        case 0:
          if (region.discard(page * PAGE, PAGE) != 0) ++wrong;
          expected[page] = 0;
          break;
        case 1:
        case 2:
        case 3:
          expected[page] = random();
          at[word] = expected[page];
          at[WORDS - 1] = expected[page];
          break;
        default: break;
      }
    }
  });
  EXPECT_EQ(wrong, 0u);
}

TEST_P(RegionWays, pages_given_up_while_others_touch_them_read_zero_or_new) {
  Region region = create(16 * MiB, 8 * MiB);
  constexpr uint64_t pages = 16 * MiB / PAGE;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> wrong{0};
  std::thread discarder([&] {
    std::mt19937_64 random(7);
    while (!stop) {
      const uint64_t first = random() % pages, n = std::min<uint64_t>(1 + random() % 300, pages - first);
      if (region.discard(first * PAGE, n * PAGE) != 0) ++wrong;
    }
  });
  on_threads(GetParam().threads, [&](unsigned t) {
    std::mt19937_64 random(t + 9);
    for (int step = 0; step < 20000; ++step) {
      // Each thread's own words: whatever they read is a page given up, or what they wrote last or before.
      const uint64_t page = random() % pages;
      std::atomic_ref<uint64_t> word(page_at(region, page)[t]);
      const uint64_t found = word.load();
      if (found != 0 && found != (page << 8 | (t + 1))) ++wrong;
      word.store(page << 8 | (t + 1));
    }
  });
  stop = true;
  discarder.join();
  EXPECT_EQ(wrong, 0u);
}

TEST_P(RegionWays, pages_that_a_pipe_holds_keep_their_bytes) {
  Region region = create();
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  constexpr uint64_t held = 8;
  for (uint64_t page = 0; page < held; ++page) Pattern::fill(page_at(region, page * 4), page * 4, 5);
  for (uint64_t page = 0; page < held; ++page) {
    iovec v{page_at(region, page * 4), PAGE};
    ASSERT_EQ(vmsplice(pipe_fds[1], &v, 1, 0), static_cast<ssize_t>(PAGE));
  }
  // Everything else pushes them out, and new bytes come to be in their frames.
  for (uint64_t page = 64; page < PAGES; ++page) Pattern::fill(page_at(region, page), page, 6);
  for (uint64_t page = 0; page < held; ++page) {
    uint64_t got[WORDS];
    ASSERT_EQ(read(pipe_fds[0], got, PAGE), static_cast<ssize_t>(PAGE));
    EXPECT_TRUE(Pattern::holds(got, page * 4, 5)) << "page " << page;
    EXPECT_TRUE(Pattern::holds(page_at(region, page * 4), page * 4, 5)) << "page " << page;
  }
  close(pipe_fds[0]);
  close(pipe_fds[1]);
}

TEST_P(RegionWays, populated_buffers_serve_system_calls) {
  Region region = create(MiB, 8 * MiB);
  ASSERT_EQ(region.populate(0, MiB, true), 0);
  const int fd = open("/proc/self/exe", O_RDONLY);
  ASSERT_GE(fd, 0);
  const ssize_t n = read(fd, region.data(), 256 * 1024);
  EXPECT_EQ(n, 256 * 1024);
  EXPECT_EQ(std::memcmp(region.data(), "\177ELF", 4), 0);
  close(fd);
}

INSTANTIATE_TEST_SUITE_P(Deliveries, RegionWays,
                         testing::Values(Case{RegionDelivery::signal, 1}, Case{RegionDelivery::signal, 4},
                                         Case{RegionDelivery::thread, 1}, Case{RegionDelivery::thread, 3}),
                         case_name);

TEST(Region, reads_zero_before_it_is_written) {
  Region region = must_create({.size = 4 * MiB, .ram = 8 * MiB});
  const auto* words = static_cast<const uint64_t*>(region.data());
  for (size_t i = 0; i < 4 * MiB / 8; i += 64) ASSERT_EQ(words[i], 0u);
}

TEST(Region, several_at_once_do_not_disturb_each_other) {
  std::vector<Region> regions;
  for (int i = 0; i < 3; ++i)
    regions.push_back(must_create({.size = 32 * MiB,
                                   .ram = 8 * MiB,
                                   .swap = {"zram:zstd", "file:/var/tmp:128M"},
                                   .delivery = RegionDelivery::signal}));
  on_threads(3, [&](unsigned t) {
    for (uint64_t page = 0; page < 32 * MiB / PAGE; ++page) Pattern::fill(page_at(regions[t], page), page, t + 1);
  });
  std::atomic<uint64_t> wrong{0};
  on_threads(3, [&](unsigned t) {
    for (uint64_t page = 0; page < 32 * MiB / PAGE; ++page)
      if (!Pattern::holds(page_at(regions[(t + 1) % 3], page), page, (t + 1) % 3 + 1)) ++wrong;
  });
  EXPECT_EQ(wrong, 0u);
}

TEST(Region, leaves_nothing_behind_when_it_is_destroyed) {
  must_create({.size = 16 * MiB, .ram = 8 * MiB});
  const auto maps = [] {
    std::ifstream f("/proc/self/maps");
    std::string line;
    size_t n = 0;
    while (std::getline(f, line)) ++n;
    return n;
  };
  const auto open_files = [] {
    int n = 0;
    for (int fd = 0; fd < 1024; ++fd)
      if (fcntl(fd, F_GETFD) >= 0) ++n;
    return n;
  };
  const size_t maps_before = maps();
  const int files_before = open_files();
  for (int i = 0; i < 5; ++i) {
    Region region = must_create({.size = 16 * MiB, .ram = 8 * MiB, .swap = {"zram", "file:/var/tmp:128M"}});
    for (uint64_t page = 0; page < 16 * MiB / PAGE; ++page) Pattern::fill(page_at(region, page), page, 1);
  }
  EXPECT_LE(maps(), maps_before + 2);
  EXPECT_EQ(open_files(), files_before);
}

// System calls into missing pages are thread delivery's.
TEST(Region, direct_reads_from_a_file_arrive_whole) {
  if (!userfaultfd_for_system_calls()) GTEST_SKIP() << "no permission for thread delivery";
  char name[] = "/var/tmp/weir-region-XXXXXX";
  const int fd = mkstemp(name);
  ASSERT_GE(fd, 0);
  constexpr uint64_t file_pages = 1024;
  std::vector<uint64_t> bytes(file_pages * WORDS);
  for (uint64_t page = 0; page < file_pages; ++page) Pattern::fill(&bytes[page * WORDS], page * 4, page);
  ASSERT_EQ(write(fd, bytes.data(), file_pages * PAGE), static_cast<ssize_t>(file_pages * PAGE));
  ASSERT_EQ(fsync(fd), 0);
  const int direct = open(name, O_RDONLY | O_DIRECT);
  unlink(name);
  if (direct < 0) GTEST_SKIP() << "no O_DIRECT here";

  Region region = must_create(
      {.size = SIZE, .ram = RAM, .swap = {"zram", "file:/var/tmp:128M"}, .delivery = RegionDelivery::thread});
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> wrong{0};
  std::thread pressure([&] {
    for (uint64_t page = PAGES / 2; !stop; page = page + 1 < PAGES ? page + 1 : PAGES / 2)
      Pattern::fill(page_at(region, page), page, 3);
  });
  on_threads(3, [&](unsigned t) {
    std::mt19937_64 random(t);
    for (int round = 0; round < 60; ++round) {
      const uint64_t from = random() % (file_pages - 16),
                     to = t * 2700 + random() % (2700 - 16);  // apart from each other and from the pressure
      const ssize_t n = pread(direct, page_at(region, to), 16 * PAGE, static_cast<off_t>(from * PAGE));
      if (n != static_cast<ssize_t>(16 * PAGE)) {
        ++wrong;
        continue;
      }
      for (uint64_t page = 0; page < 16; ++page)
        if (!Pattern::holds(page_at(region, to + page), (from + page) * 4, from + page)) ++wrong;
    }
  });
  stop = true;
  pressure.join();
  EXPECT_EQ(wrong, 0u);
  close(direct);
  close(fd);
}

// ---- Faults that are not ours, and ends -----------------------------------------------------------------------------

sigjmp_buf back;
std::atomic<void*> bus_address{nullptr};

TEST(Region, a_bus_error_elsewhere_goes_to_the_handler_that_was_there_before) {
  struct sigaction mine {
  }, before{};
  mine.sa_flags = SA_SIGINFO;
  mine.sa_sigaction = [](int, siginfo_t* info, void*) {
    bus_address = info->si_addr;
    siglongjmp(back, 1);
  };
  // In a child: what is installed before the first region counts.
  (void)before;
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGBUS, SIG_DFL);
    sigaction(SIGBUS, &mine, nullptr);
    Region region = must_create({.size = MiB, .ram = 8 * MiB});
    page_at(region, 3)[0] = 1;
    FILE* empty = std::tmpfile();
    auto* p = static_cast<volatile char*>(mmap(nullptr, PAGE, PROT_READ, MAP_SHARED, fileno(empty), 0));
    if (sigsetjmp(back, 1) == 0) {
      (void)*p;
      _exit(1);
    }
    _exit(bus_address == p && page_at(region, 3)[0] == 1 ? 0 : 2);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

std::string killed_by_oom(RegionDelivery delivery, int* status) {
  int fds[2];
  if (pipe(fds) != 0) return "";
  const pid_t child = fork();
  if (child == 0) {
    dup2(fds[1], 2);
    close(fds[0]);
    Region region = must_create({.size = SIZE, .ram = RAM, .swap = {"zram:lz4:8M"}, .delivery = delivery});
    for (uint64_t page = 0; page < PAGES; ++page) Pattern::fill(page_at(region, page), 0, page + 1);
    _exit(0);
  }
  close(fds[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(fds[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  close(fds[0]);
  waitpid(child, status, 0);
  return text;
}

TEST(Region, full_ram_and_full_swap_end_with_a_report_and_a_kill) {
  for (const RegionDelivery delivery : {RegionDelivery::signal, RegionDelivery::thread}) {
    if (delivery == RegionDelivery::thread && !userfaultfd_for_system_calls()) continue;
    int status = 0;
    const std::string text = killed_by_oom(delivery, &status);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
    EXPECT_THAT(text, HasSubstr("invoked oom-killer"));
    EXPECT_THAT(text, HasSubstr("Killed process"));
  }
}

TEST(Region, a_forked_child_has_no_region_rather_than_a_wrong_one) {
  Region region = must_create({.size = 16 * MiB, .ram = 8 * MiB});
  for (uint64_t page = 0; page < 16 * MiB / PAGE; ++page) Pattern::fill(page_at(region, page), 3, page + 1);
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGSEGV, SIG_DFL);
    volatile uint64_t* at = page_at(region, 0);
    {
      Region mine = std::move(region);  // taken down here without a word
    }
    (void)*at;
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status)) << status;
  for (uint64_t page = 0; page < 16 * MiB / PAGE; ++page)
    ASSERT_TRUE(Pattern::holds(page_at(region, page), 3, page + 1));
}

TEST(Region, works_in_the_least_memory_there_is) {
  Region region = must_create({.size = 8 * MiB, .ram = 4 * MiB});
  for (uint64_t page = 0; page < 8 * MiB / PAGE; ++page) Pattern::fill(page_at(region, page), 2, page);
  for (uint64_t page = 0; page < 8 * MiB / PAGE; ++page) ASSERT_TRUE(Pattern::holds(page_at(region, page), 2, page));
}

TEST(Region, what_cannot_be_is_refused_with_a_remedy) {
  const auto why = [](const RegionOptions& o) {
    auto r = Region::create(o);
    return r ? std::string("created") : r.error();
  };
  EXPECT_THAT(why({.size = 0, .ram = RAM}), HasSubstr("size"));
  EXPECT_THAT(why({.size = SIZE, .ram = MiB}), HasSubstr("4M"));
  EXPECT_THAT(why({.size = SIZE, .ram = RAM, .swap = {"zrma"}}), HasSubstr("'zrma' is no kind of swap"));
  EXPECT_THAT(why({.size = SIZE, .ram = RAM, .swap = {"file:/dev/shm:16M"}}), HasSubstr("lies in RAM"));
  EXPECT_THAT(why({.size = SIZE, .ram = RAM, .swap = {"file:/nowhere/at/all"}}), HasSubstr("cannot be created"));
}

}  // namespace
