#include "block/file_device.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernel/virtual/virtual_world.hpp"

namespace weir {
namespace {

constexpr const char* RAM_DIRECTORY = "/dev/shm";

std::string own_name(const std::string& directory) {
  static int count = 0;
  return directory + "/weir-file-test-" + std::to_string(getpid()) + "-" + std::to_string(++count);
}

/// A path on a disk, and nothing there afterwards.
class TestPath {
 public:
  TestPath() : path_(own_name(WEIR_BUILD_DIR)) {}
  ~TestPath() { std::filesystem::remove(path_); }
  [[nodiscard]] const char* c_str() const { return path_.c_str(); }
  [[nodiscard]] bool exists() const { return std::filesystem::exists(path_); }

 private:
  std::string path_;
};

struct Request {
  Bio bio;
  alignas(PAGE_SIZE) std::array<std::byte, PAGE_SIZE> bytes{};
  std::atomic<bool> ended{false};
  WaitQueue done;

  void submit(FileDevice& device, BioOp op, uint64_t page) {
    bio = {.op = op, .sector = page * SECTORS_PER_PAGE, .content = {.bytes = bytes.data()}, .owner = this};
    bio.end_io = [](Bio& b) {
      auto& request = *static_cast<Request*>(b.owner);
      request.ended = true;
      request.done.wake_all();
    };
    ended = false;
    device.submit_bio(bio);
  }
  Errno wait() {
    done.wait([&] { return ended.load(); });
    return bio.status;
  }
  Errno run(FileDevice& device, BioOp op, uint64_t page) {
    submit(device, op, page);
    return wait();
  }
};

/// Runs `body` with a device of these options in a thread of a world.
template <class Body>
void with_device(FileDeviceOptions options, Body body) {
  VirtualWorld world({.cpus = 2, .preempt_one_in = 7});
  world.spawn("test", [&] {
    alignas(FileDevice) static std::byte place[sizeof(FileDevice)];
    FileDeviceError error;
    Result<FileDevice*> device = FileDevice::create(place, weir::world(), options, error);
    ASSERT_TRUE(device.ok()) << errno_name(device.error()) << " " << error.text;
    EXPECT_STREQ(error.text, "");
    body(**device);
    (*device)->~FileDevice();
  });
  ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
}

Errno refused(FileDeviceOptions options, std::string* text = nullptr) {
  VirtualWorld world;
  Errno result = Errno::ok;
  world.spawn("test", [&] {
    alignas(FileDevice) static std::byte place[sizeof(FileDevice)];
    FileDeviceError error;
    Result<FileDevice*> device = FileDevice::create(place, weir::world(), options, error);
    result = device.error();
    if (device.ok()) (*device)->~FileDevice();
    EXPECT_NE(std::string(error.text), "");
    if (text != nullptr) *text = error.text;
  });
  EXPECT_EQ(world.run(), VirtualWorld::RunState::finished);
  return result;
}

std::string engine_name(const testing::TestParamInfo<FileEngine>& info) {
  constexpr const char* NAMES[] = {"synchronous", "kthreads", "io_uring"};
  return NAMES[static_cast<int>(info.param)];
}

class FileDeviceEngines : public testing::TestWithParam<FileEngine> {};
INSTANTIATE_TEST_SUITE_P(All, FileDeviceEngines,
                         testing::Values(FileEngine::synchronous, FileEngine::kthreads, FileEngine::io_uring),
                         engine_name);

TEST_P(FileDeviceEngines, WhatWasWrittenIsReadAndLiesInTheFileAtItsPlace) {
  TestPath path;
  with_device({.path = path.c_str(), .capacity = PageCount(64), .engine = GetParam()}, [&](FileDevice& device) {
    if (device.engine() != GetParam()) GTEST_SKIP() << "the host has no io_uring";
    std::mt19937_64 random(1);
    std::map<uint64_t, std::byte> model;
    std::vector<std::unique_ptr<Request>> requests;
    for (int i = 0; i < 16; ++i) requests.push_back(std::make_unique<Request>());
    for (int round = 0; round < 20; ++round) {
      // Sixteen requests at once, each for its own page.
      const uint64_t first = random() % 48;
      for (uint64_t i = 0; i < requests.size(); ++i) {
        const bool write = random() % 2 == 0;
        const auto fill = static_cast<std::byte>(random());
        requests[i]->bytes.fill(fill);
        if (write) model[first + i] = fill;
        requests[i]->submit(device, write ? BioOp::write : BioOp::read, first + i);
      }
      for (uint64_t i = 0; i < requests.size(); ++i) {
        ASSERT_EQ(requests[i]->wait(), Errno::ok);
        const std::byte expected = model.contains(first + i) ? model[first + i] : std::byte{0};
        ASSERT_EQ(std::count(requests[i]->bytes.begin(), requests[i]->bytes.end(), expected), int{PAGE_SIZE});
      }
    }
    EXPECT_FALSE(device.congested());
    EXPECT_EQ(device.stats().reads + device.stats().writes, 320u);

    const int fd = open(path.c_str(), O_RDONLY);
    std::array<std::byte, PAGE_SIZE> bytes;
    for (const auto& [page, fill] : model) {
      ASSERT_EQ(pread(fd, bytes.data(), PAGE_SIZE, static_cast<off_t>(page * PAGE_SIZE)), int{PAGE_SIZE});
      ASSERT_EQ(std::count(bytes.begin(), bytes.end(), fill), int{PAGE_SIZE});
    }
    close(fd);
  });
}

TEST_P(FileDeviceEngines, RequestsThatMakeNoSenseEndWithAnError) {
  TestPath path;
  with_device({.path = path.c_str(), .capacity = PageCount(8), .engine = GetParam()}, [&](FileDevice& device) {
    Request request;
    EXPECT_EQ(request.run(device, BioOp::read, 8), Errno::io);
    EXPECT_EQ(request.run(device, BioOp::write, 1 << 20), Errno::io);
    EXPECT_EQ(request.run(device, BioOp::discard, 0), Errno::ok);
    uint64_t tag = 1;
    request.bio.op = BioOp::write;
    request.bio.content = {.tag = &tag};
    request.ended = false;
    device.submit_bio(request.bio);
    EXPECT_EQ(request.wait(), Errno::inval);
    EXPECT_EQ(device.stats().read_errors, 1u);
    EXPECT_EQ(device.stats().write_errors, 2u);
  });
}

TEST_P(FileDeviceEngines, AFileThatShrankIsAnIoError) {
  TestPath path;
  with_device({.path = path.c_str(), .capacity = PageCount(8), .engine = GetParam()}, [&](FileDevice& device) {
    ASSERT_EQ(truncate(path.c_str(), 4 * PAGE_SIZE), 0);
    Request request;
    EXPECT_EQ(request.run(device, BioOp::read, 3), Errno::ok);
    EXPECT_EQ(request.run(device, BioOp::read, 4), Errno::io);
  });
}

TEST(FileDevice, ANewFileIsPrivateReservedAndDirect) {
  TestPath path;
  with_device({.path = path.c_str(), .capacity = PageCount(256)}, [&](FileDevice& device) {
    struct stat st;
    ASSERT_EQ(stat(path.c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 07777, 0600u);
    EXPECT_EQ(st.st_size, 256 * 4096);
    EXPECT_TRUE(!device.room_reserved() || st.st_blocks * 512 >= 256 * 4096);
    const int flags = fcntl(device.descriptor(), F_GETFL);
    EXPECT_EQ((flags & O_DIRECT) != 0, device.direct());
    EXPECT_EQ(fcntl(device.descriptor(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    EXPECT_GE(device.descriptor(), 100);
    EXPECT_STREQ(device.name(), path.c_str());
    EXPECT_EQ(device.capacity(), PageCount(256));
  });
  EXPECT_TRUE(path.exists());
}

TEST(FileDevice, AnUnlinkedOrUnnamedFileLeavesNothing) {
  TestPath path;
  const FileDeviceOptions unlinked = {.path = path.c_str(), .capacity = PageCount(8), .after_open = FileName::unlink};
  const FileDeviceOptions unnamed = {.path = WEIR_BUILD_DIR, .capacity = PageCount(8), .origin = FileOrigin::unnamed};
  for (const FileDeviceOptions& options : {unlinked, unnamed}) {
    with_device(options, [&](FileDevice& device) {
      EXPECT_FALSE(path.exists());
      struct stat st;
      ASSERT_EQ(fstat(device.descriptor(), &st), 0);
      EXPECT_EQ(st.st_nlink, 0u);
      EXPECT_EQ(st.st_mode & 0777, 0600u);
      Request request;
      request.bytes.fill(std::byte{9});
      EXPECT_EQ(request.run(device, BioOp::write, 7), Errno::ok);
    });
  }
}

TEST(FileDevice, AnExistingFileIsTakenWithItsSize) {
  TestPath path;
  EXPECT_EQ(refused({.path = path.c_str(), .origin = FileOrigin::existing}), Errno::noent);
  {
    const int fd = open(path.c_str(), O_CREAT | O_RDWR, 0600);
    ASSERT_EQ(ftruncate(fd, 10 * 4096 + 17), 0);
    close(fd);
  }
  with_device({.path = path.c_str(), .origin = FileOrigin::existing},
              [](FileDevice& device) { EXPECT_EQ(device.capacity(), PageCount(10)); });
  std::string text;
  EXPECT_EQ(refused({.path = path.c_str(), .capacity = PageCount(11), .origin = FileOrigin::existing}, &text), Errno::inval);
  EXPECT_NE(text.find("smaller"), std::string::npos) << text;
  EXPECT_EQ(refused({.path = path.c_str(), .capacity = PageCount(1)}), Errno::exist);
  EXPECT_TRUE(path.exists());
}

TEST(FileDevice, AFileInRamIsRefusedAndRemoved) {
  struct statfs fs;
  if (statfs(RAM_DIRECTORY, &fs) != 0 || fs.f_type != 0x01021994) GTEST_SKIP() << "no tmpfs";
  const std::string path = own_name(RAM_DIRECTORY);
  std::string text;
  EXPECT_EQ(refused({.path = path.c_str(), .capacity = PageCount(8)}, &text), Errno::inval);
  EXPECT_NE(text.find("RAM"), std::string::npos) << text;
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(FileDevice, WithoutRoomOnTheDiskNothingIsLeft) {
  TestPath path;
  struct statfs fs;
  ASSERT_EQ(statfs(WEIR_BUILD_DIR, &fs), 0);
  const auto free_pages = static_cast<int64_t>(fs.f_bavail * static_cast<uint64_t>(fs.f_bsize) / PAGE_SIZE);
  std::string text;
  EXPECT_EQ(refused({.path = path.c_str(), .capacity = PageCount(free_pages * 2)}, &text), Errno::nospc);
  EXPECT_NE(text, "");
  EXPECT_FALSE(path.exists());
}

TEST(FileDevice, WhatIsNeitherFileNorDiskIsRefused) {
  EXPECT_EQ(refused({.path = "/dev/null", .origin = FileOrigin::existing}), Errno::inval);
  EXPECT_EQ(refused({.path = "/nowhere/at/all", .capacity = PageCount(1)}), Errno::noent);
  EXPECT_EQ(refused({.path = "x", .capacity = PageCount(1), .io_threads = 0}), Errno::inval);
}

}  // namespace
}  // namespace weir
