// bench/unmap_bench.cpp: three ways of taking pages away from a program so that their bytes can be read, kept, and
// given up.
//
//   move      UFFDIO_MOVE of each run of present pages to staging (Linux 6.8); then DONTNEED of staging
//   mremap    mremap(FIXED | DONTUNMAP) of the whole window to staging (5.7); then DONTNEED of staging
//   protect   UFFDIO_WRITEPROTECT of the window, bytes read in place, then process_madvise(DONTNEED) of the pages
//             (6.13)
//
// Each takes windows of 32, 64 and 512 pages, all present or every second one (which is what is left of a region under
// random access), with and without a second thread that keeps a CPU busy in the same process: then every unmapping
// interrupts that CPU. Microseconds a page: until the page is out of reach, and with its bytes hashed and its frame
// given back. What moves a page that the kernel has pinned loses data, so only ways that refuse, or need not move, may
// be chosen: move refuses (EBUSY), mremap does not.
//
//   bench_unmap [MIB]
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "arch/uffd/host_calls.hpp"
#include "arch/uffd/linux_abi.hpp"

namespace {

using namespace weir;

constexpr size_t PAGE = 4096;

double now() {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<double>(ts.tv_sec) + static_cast<double>(ts.tv_nsec) * 1e-9;
}

[[noreturn]] void fail(const char* what, long result) {
  std::fprintf(stderr, "bench_unmap: %s: %s\n", what, std::strerror(static_cast<int>(-result)));
  std::exit(1);
}
void must(const char* what, long result) {
  if (result < 0) fail(what, result);
}

char* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail("mmap", -ENOMEM);
  madvise(p, bytes, MADV_NOHUGEPAGE);
  return static_cast<char*>(p);
}

struct Host {
  int user = -1, staging = -1;
  char *memory = nullptr, *to = nullptr;
  size_t bytes = 0;
};

constexpr uint64_t FEATURE_WP = 1;

int open_uffd() {
  const long fd = raw_syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | abi::USER_MODE_ONLY);
  must("userfaultfd", fd);
  uffdio_api api{
      .api = UFFD_API, .features = abi::FEATURE_MOVE | FEATURE_WP | abi::FEATURE_MISSING_SIGBUS, .ioctls = 0};
  must("UFFDIO_API", host::ioctl(static_cast<int>(fd), UFFDIO_API, &api));
  return static_cast<int>(fd);
}

void register_range(int fd, char* at, size_t bytes) {
  uffdio_register r{.range = {.start = reinterpret_cast<uint64_t>(at), .len = bytes},
                    .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
                    .ioctls = 0};
  must("UFFDIO_REGISTER", host::ioctl(fd, UFFDIO_REGISTER, &r));
}

enum class Way { move, mremap, protect };
const char* name(Way w) { return w == Way::move ? "move" : w == Way::mremap ? "mremap" : "protect"; }

struct Runs {
  std::vector<iovec> at;  // in the window's own addresses
};

/// Fills the window at `base`, all of it or every second page.
size_t fill(const Host& h, char* base, size_t pages, bool every_second, Runs& runs, const char* source) {
  runs.at.clear();
  size_t n = 0;
  for (size_t i = 0; i < pages; i += every_second ? 2 : 1) {
    uffdio_copy copy{.dst = reinterpret_cast<uint64_t>(base + i * PAGE),
                     .src = reinterpret_cast<uint64_t>(source),
                     .len = PAGE,
                     .mode = 0,
                     .copy = 0};
    must("UFFDIO_COPY", host::ioctl(h.user, UFFDIO_COPY, &copy));
    ++n;
    char* at = base + i * PAGE;
    if (!runs.at.empty() && static_cast<char*>(runs.at.back().iov_base) + runs.at.back().iov_len == at)
      runs.at.back().iov_len += PAGE;
    else
      runs.at.push_back({at, PAGE});
  }
  return n;
}

uint64_t hash_all(const Runs& runs, ptrdiff_t shift) {
  uint64_t h = 0;
  for (const iovec& v : runs.at)
    for (size_t at = 0; at < v.iov_len; at += PAGE) h ^= XXH3_64bits(static_cast<char*>(v.iov_base) + shift + at, PAGE);
  return h;
}

struct Cost {
  double out = 0, whole = 0;
};

Cost measure(Host& h, Way way, size_t window, bool every_second) {
  std::vector<char> source(PAGE, 7);
  double out = 0, whole = 0;
  size_t pages = 0;
  uint64_t sink = 0;
  Runs runs;
  const size_t windows = std::max<size_t>(h.bytes / PAGE / window, 1);
  const double end = now() + 0.35;
  for (size_t i = 0; now() < end; ++i) {
    char* base = h.memory + i % windows * window * PAGE;
    pages += fill(h, base, window, every_second, runs, source.data());
    const ptrdiff_t shift = h.to - base;
    const double start = now();
    double gone = 0;
    switch (way) {
      case Way::move:
        for (const iovec& v : runs.at) {
          abi::UffdMove m{.dst = reinterpret_cast<uint64_t>(v.iov_base) + static_cast<uint64_t>(shift),
                          .src = reinterpret_cast<uint64_t>(v.iov_base),
                          .len = v.iov_len,
                          .mode = 0,
                          .move = 0};
          must("UFFDIO_MOVE", host::ioctl(h.staging, abi::IOC_MOVE, &m));
        }
        gone = now();
        sink ^= hash_all(runs, shift);
        must("DONTNEED", host::madvise(h.to, window * PAGE, MADV_DONTNEED));
        break;
      case Way::mremap: {
        const long r = raw_syscall(SYS_mremap, base, window * PAGE, window * PAGE,
                                   MREMAP_MAYMOVE | MREMAP_FIXED | abi::REMAP_DONTUNMAP, h.to);
        if (r < 0 && r > -4096) fail("mremap", r);
        gone = now();
        sink ^= hash_all(runs, shift);
        must("DONTNEED", host::madvise(h.to, window * PAGE, MADV_DONTNEED));
        break;
      }
      case Way::protect: {
        uffdio_writeprotect wp{.range = {.start = reinterpret_cast<uint64_t>(base), .len = window * PAGE},
                               .mode = UFFDIO_WRITEPROTECT_MODE_WP};
        must("UFFDIO_WRITEPROTECT", host::ioctl(h.user, UFFDIO_WRITEPROTECT, &wp));
        gone = now();
        sink ^= hash_all(runs, 0);
        for (size_t at = 0; at < runs.at.size(); at += 512)
          must("process_madvise", raw_syscall(SYS_process_madvise, abi::PIDFD_SELF, runs.at.data() + at,
                                              std::min<size_t>(512, runs.at.size() - at), MADV_DONTNEED, 0));
        break;
      }
    }
    const double done = now();
    out += gone - start;
    whole += done - start;
  }
  if (sink == 42) std::putchar(0);
  return {out * 1e6 / static_cast<double>(pages), whole * 1e6 / static_cast<double>(pages)};
}

}  // namespace

int main(int argc, char** argv) {
  Host h;
  h.bytes = (argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 64) << 20;
  h.memory = reserve(h.bytes);
  h.to = reserve(512 * PAGE);
  h.user = open_uffd();
  h.staging = open_uffd();
  register_range(h.user, h.memory, h.bytes);

  std::printf(
      "us a page: until out of reach / with hashing and giving back\n\n| way | pages | present | alone | second thread "
      "busy |\n| --- | --- | --- | --- | --- |\n");
  for (const Way way : {Way::move, Way::mremap, Way::protect}) {
    if (way == Way::move) register_range(h.staging, h.to, 512 * PAGE);
    if (way == Way::mremap) {
      munmap(h.to, 512 * PAGE);
      h.to = reserve(512 * PAGE);
    }
    for (const size_t window : {size_t{32}, size_t{64}, size_t{512}}) {
      for (const bool every_second : {false, true}) {
        Cost cost[2];
        for (const bool busy : {false, true}) {
          std::atomic<bool> stop{false};
          std::thread other;
          if (busy)
            other = std::thread([&] {
              while (!stop.load(std::memory_order_relaxed)) __builtin_ia32_pause();
            });
          cost[busy ? 1 : 0] = measure(h, way, window, every_second);
          stop = true;
          if (busy) other.join();
        }
        std::printf("| %s | %zu | %s | %.2f / %.2f | %.2f / %.2f |\n", name(way), window,
                    every_second ? "every second" : "all", cost[0].out, cost[0].whole, cost[1].out, cost[1].whole);
        std::fflush(stdout);
      }
    }
  }
}
