// tests/live/host_file.hpp: files of the host's whose bytes are known.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

namespace weir::test {

/// The byte at `at` of what `seed` stands for.
inline std::byte byte_of(uint64_t seed, uint64_t at) {
  uint64_t x = seed * 0x9e3779b97f4a7c15ull + at / 8;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<std::byte>((x ^ (x >> 31)) >> at % 8 * 8);
}

/// A new file of `size` bytes, byte_of(seed, position); gone with this.
class HostFile {
 public:
  explicit HostFile(uint64_t size, uint64_t seed = 1, const std::string& folder = "/var/tmp")
      : name_(folder + "/weir-file-XXXXXX") {
    fd_ = mkstemp(name_.data());
    EXPECT_GE(fd_, 0);
    std::vector<std::byte> some(1 << 20);
    for (uint64_t at = 0; at < size; at += some.size()) {
      const size_t n = std::min<uint64_t>(some.size(), size - at);
      for (size_t i = 0; i < n; ++i) some[i] = byte_of(seed, at + i);
      EXPECT_EQ(pwrite(fd_, some.data(), n, static_cast<off_t>(at)), static_cast<ssize_t>(n));
    }
  }
  ~HostFile() {
    ::close(fd_);
    unlink(name_.c_str());
  }
  HostFile(const HostFile&) = delete;
  HostFile& operator=(const HostFile&) = delete;

  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] const char* name() const { return name_.c_str(); }
  [[nodiscard]] uint64_t size() const { return static_cast<uint64_t>(lseek(fd_, 0, SEEK_END)); }
  /// Fewer at the end.
  [[nodiscard]] std::vector<std::byte> bytes(uint64_t at, size_t n) const {
    std::vector<std::byte> out(n);
    const ssize_t got = pread(fd_, out.data(), n, static_cast<off_t>(at));
    out.resize(got < 0 ? 0 : static_cast<size_t>(got));
    return out;
  }
  [[nodiscard]] std::byte byte(uint64_t at) const { return bytes(at, 1).at(0); }

 private:
  std::string name_;
  int fd_ = -1;
};

}  // namespace weir::test
