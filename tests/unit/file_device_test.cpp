#include "block/file_device.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernel/host/host_world.hpp"
#include "kernel/virtual/virtual_world.hpp"
#include "places.hpp"

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

  void prepare(BioOp op, uint64_t page, uint32_t pages = 1) {
    bio = {
        .op = op, .sector = page * SECTORS_PER_PAGE, .pages = pages, .content = {.bytes = bytes.data()}, .owner = this};
    bio.end_io = [](Bio& b) {
      auto& request = *static_cast<Request*>(b.owner);
      request.ended = true;
      request.done.wake_all();
    };
    ended = false;
  }
  void submit(FileDevice& device, BioOp op, uint64_t page, uint32_t pages = 1) {
    prepare(op, page, pages);
    device.submit_bio(bio);
  }
  Errno wait() {
    done.wait([&] { return ended.load(); });
    return bio.status;
  }
  Errno run(FileDevice& device, BioOp op, uint64_t page, uint32_t pages = 1) {
    submit(device, op, page, pages);
    return wait();
  }
};

enum class Where { virtual_world, host_world };

void run_in(Where where, std::function<void()> body) {
  if (where == Where::virtual_world) {
    VirtualWorld world({.cpus = 2, .preempt_one_in = 7});
    world.spawn("test", body);
    ASSERT_EQ(world.run(), VirtualWorld::RunState::finished) << world.report();
  } else {
    HostWorld world;
    ASSERT_TRUE(world.start().ok());
    std::thread([&] { world.enter([](void* b) { (*static_cast<std::function<void()>*>(b))(); }, &body); }).join();
  }
}

/// Runs `body` with a device of these options in a thread of a world.
template <class Body>
void with_device(FileDeviceOptions options, Body body, Where where = Where::virtual_world) {
  run_in(where, [&] {
    alignas(FileDevice) static std::byte place[sizeof(FileDevice)];
    FileDeviceError error;
    Result<FileDevice*> device = FileDevice::create(place, weir::world(), options, error);
    ASSERT_TRUE(device.ok()) << errno_name(device.error()) << " " << error.text;
    EXPECT_STREQ(error.text, "");
    body(**device);
    (*device)->~FileDevice();
  });
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

struct Setting {
  FileEngine engine;
  Where where;
};
std::string setting_name(const testing::TestParamInfo<Setting>& info) {
  constexpr const char* ENGINES[] = {"synchronous", "kthreads", "io_uring"};
  return std::string(ENGINES[static_cast<int>(info.param.engine)]) +
         (info.param.where == Where::virtual_world ? "_virtual" : "_host");
}

class FileDeviceEngines : public testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(All, FileDeviceEngines,
                         testing::Values(Setting{FileEngine::synchronous, Where::virtual_world},
                                         Setting{FileEngine::kthreads, Where::virtual_world},
                                         Setting{FileEngine::io_uring, Where::virtual_world},
                                         Setting{FileEngine::kthreads, Where::host_world},
                                         Setting{FileEngine::io_uring, Where::host_world}),
                         setting_name);

TEST_P(FileDeviceEngines, WhatWasWrittenIsReadAndLiesInTheFileAtItsPlace) {
  TestPath path;
  with_device(
      {.path = path.c_str(), .capacity = PageCount(64), .engine = GetParam().engine},
      [&](FileDevice& device) {
        if (device.engine() != GetParam().engine) GTEST_SKIP() << "the host has no io_uring";
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
      },
      GetParam().where);
}

// In and out of order, with gaps and with one behind the end; by the device's threads and by the submitter's own.
TEST_P(FileDeviceEngines, AListOfRequestsIsServedLikeSingleOnes) {
  TestPath path;
  with_device(
      {.path = path.c_str(), .capacity = PageCount(64), .engine = GetParam().engine},
      [&](FileDevice& device) {
        if (device.engine() != GetParam().engine) GTEST_SKIP() << "the host has no io_uring";
        Request filler;
        for (uint64_t page = 0; page < 64; ++page) {
          filler.bytes.fill(static_cast<std::byte>(page + 1));
          ASSERT_EQ(filler.run(device, BioOp::write, page), Errno::ok);
        }
        const std::vector<uint64_t> pages{3, 4, 5, 9, 10, 8, 63, 64, 20, 21, 22, 23};
        for (const uint32_t flag : {0u, static_cast<uint32_t>(PF_HAS_FILES)}) {
          const ThreadFlagScope scope(flag);
          std::vector<std::unique_ptr<Request>> requests;
          for (const uint64_t page : pages) {
            Request& r = *requests.emplace_back(std::make_unique<Request>());
            r.prepare(BioOp::read, page);
            if (requests.size() > 1) requests[requests.size() - 2]->bio.next = &r.bio;
          }
          device.submit_bios(&requests[0]->bio);
          for (size_t i = 0; i < pages.size(); ++i) {
            ASSERT_EQ(requests[i]->wait(), pages[i] < 64 ? Errno::ok : Errno::io);
            if (pages[i] == 64) continue;
            const auto expected = static_cast<std::byte>(pages[i] + 1);
            EXPECT_EQ(std::count(requests[i]->bytes.begin(), requests[i]->bytes.end(), expected), int{PAGE_SIZE});
          }
        }
        EXPECT_EQ(device.stats().read_errors, 2u);
      },
      GetParam().where);
}

TEST(FileDevice, AFileOfTheProgramsKeepsItsLength) {
  for (const Where where : {Where::virtual_world, Where::host_world}) {
    TestPath path;
    const int fd = open(path.c_str(), O_CREAT | O_RDWR, 0600);
    ASSERT_GE(fd, 0);
    const std::string text(PAGE_SIZE + 100, 'a');
    ASSERT_EQ(pwrite(fd, text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
    with_device(
        {.path = "theirs", .capacity = PageCount(1000), .origin = FileOrigin::descriptor, .descriptor = fd},
        [&](FileDevice& device) {
          close(fd);
          EXPECT_TRUE(device.writable());
          EXPECT_EQ(device.capacity(), PageCount(1000));
          Request request;
          EXPECT_EQ(request.run(device, BioOp::read, 0), Errno::ok);
          EXPECT_EQ(request.bytes[PAGE_SIZE - 1], std::byte{'a'});
          request.bytes.fill(std::byte{9});
          EXPECT_EQ(request.run(device, BioOp::read, 1), Errno::ok);
          EXPECT_EQ(request.bytes[99], std::byte{'a'});
          EXPECT_EQ(request.bytes[100], std::byte{0}) << "behind the end";
          EXPECT_EQ(request.bytes[PAGE_SIZE - 1], std::byte{0});
          EXPECT_EQ(request.run(device, BioOp::read, 2), Errno::io);

          request.bytes.fill(std::byte{'b'});
          EXPECT_EQ(request.run(device, BioOp::write, 1), Errno::ok);
          EXPECT_EQ(request.run(device, BioOp::write, 2), Errno::ok) << "of what was cut off nothing is kept";
          EXPECT_EQ(std::filesystem::file_size(path.c_str()), PAGE_SIZE + 100);
          EXPECT_EQ(request.run(device, BioOp::read, 1), Errno::ok);
          EXPECT_EQ(request.bytes[99], std::byte{'b'});
          EXPECT_TRUE(device.sync().ok());

          std::filesystem::resize_file(path.c_str(), 4 * PAGE_SIZE);
          EXPECT_EQ(request.run(device, BioOp::write, 3), Errno::ok);
          EXPECT_EQ(request.run(device, BioOp::read, 2), Errno::ok);
          EXPECT_EQ(request.bytes[0], std::byte{0});
          std::filesystem::resize_file(path.c_str(), 10);
          EXPECT_EQ(request.run(device, BioOp::read, 1), Errno::io);
          EXPECT_EQ(request.run(device, BioOp::read, 0), Errno::ok);
          EXPECT_EQ(request.bytes[9], std::byte{'a'});
          EXPECT_EQ(request.bytes[10], std::byte{0});
        },
        where);
  }
}

TEST(FileDevice, OnlyWhatCanBeMappedIsAFileOfThePrograms) {
  const int folder = open(WEIR_BUILD_DIR, O_RDONLY | O_DIRECTORY);
  const FileDeviceOptions options{
      .path = "theirs", .capacity = PageCount(8), .origin = FileOrigin::descriptor, .descriptor = folder};
  EXPECT_EQ(refused(options), Errno::nodev);
  close(folder);
  EXPECT_EQ(refused(options), Errno::badf);
  FileDeviceOptions rings = options;
  rings.engine = FileEngine::io_uring;
  EXPECT_EQ(refused(rings), Errno::inval);
}

TEST_P(FileDeviceEngines, RequestsThatMakeNoSenseEndWithAnError) {
  TestPath path;
  with_device(
      {.path = path.c_str(), .capacity = PageCount(8), .engine = GetParam().engine},
      [&](FileDevice& device) {
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
      },
      GetParam().where);
}

TEST_P(FileDeviceEngines, ADiscardMakesAHoleWhereThatIsWanted) {
  TestPath path;
  with_device(
      {.path = path.c_str(), .capacity = PageCount(64), .engine = GetParam().engine, .discard = FileDiscard::punch},
      [&](FileDevice& device) {
        if (!device.can_discard()) return;
        const auto blocks = [&] {
          struct stat st {};
          EXPECT_EQ(stat(path.c_str(), &st), 0);
          EXPECT_EQ(st.st_size, off_t{64 * PAGE_SIZE});
          return st.st_blocks;
        };
        Request request;
        for (uint64_t page = 0; page < 64; ++page) ASSERT_EQ(request.run(device, BioOp::write, page), Errno::ok);
        const auto before = blocks();
        if (request.run(device, BioOp::discard, 16, 32) != Errno::ok) return;  // a file system without holes
        EXPECT_LE(blocks(), before - 32 * 8);
        EXPECT_EQ(request.run(device, BioOp::discard, 40, 32), Errno::io) << "behind the end";
      },
      GetParam().where);
}

TEST_P(FileDeviceEngines, AFileThatShrankIsAnIoError) {
  TestPath path;
  with_device(
      {.path = path.c_str(), .capacity = PageCount(8), .engine = GetParam().engine},
      [&](FileDevice& device) {
        ASSERT_EQ(truncate(path.c_str(), 4 * PAGE_SIZE), 0);
        Request request;
        EXPECT_EQ(request.run(device, BioOp::read, 3), Errno::ok);
        EXPECT_EQ(request.run(device, BioOp::read, 4), Errno::io);
      },
      GetParam().where);
}

TEST(FileDevice, IoGoesOnWhenTheProgramHasClosedTheDescriptors) {
  for (FileEngine engine : {FileEngine::kthreads, FileEngine::io_uring}) {
    TestPath path;
    std::array<int, 2> numbers{};
    with_device(
        {.path = path.c_str(), .capacity = PageCount(8), .engine = engine},
        [&](FileDevice& device) {
          const int ring = device.ring_descriptor();
          // What a program may do: close all, and open something else under the same number.
          const int other = open("/dev/null", O_RDWR | O_CLOEXEC);
          ASSERT_EQ(dup2(other, device.descriptor()), device.descriptor());
          ASSERT_TRUE(ring < 0 || dup2(other, ring) == ring);
          close(other);
          Request request;
          request.bytes.fill(std::byte{0x5a});
          EXPECT_EQ(request.run(device, BioOp::write, 3), Errno::ok);
          request.bytes.fill(std::byte{0});
          EXPECT_EQ(request.run(device, BioOp::read, 3), Errno::ok);
          EXPECT_EQ(std::count(request.bytes.begin(), request.bytes.end(), std::byte{0x5a}), int{PAGE_SIZE});
          numbers = {device.descriptor(), ring};
        },
        Where::host_world);
    for (int number : numbers) {
      EXPECT_TRUE(number < 0 || fcntl(number, F_GETFD) >= 0) << "the program's own file was closed";
      close(number);
    }
  }
}

TEST(FileDevice, ManyThreadsSubmitAtOnce) {
  for (FileEngine engine : {FileEngine::kthreads, FileEngine::io_uring}) {
    TestPath path;
    HostWorld world;
    ASSERT_TRUE(world.start().ok());
    alignas(FileDevice) static std::byte place[sizeof(FileDevice)];
    FileDevice* device = nullptr;
    const auto inside = [&](std::function<void()> body) {
      world.enter([](void* b) { (*static_cast<std::function<void()>*>(b))(); }, &body);
    };
    std::thread([&] {
      inside([&] {
        FileDeviceError error;
        device = *FileDevice::create(
            place, world, {.path = path.c_str(), .capacity = PageCount(256), .engine = engine, .queue_depth = 4},
            error);
      });
    }).join();
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (int round = 0; round < 20; ++round) {
          inside([&] {
            std::vector<std::unique_ptr<Request>> requests;
            for (uint64_t i = 0; i < 8; ++i) {
              requests.push_back(std::make_unique<Request>());
              requests[i]->bytes.fill(static_cast<std::byte>(round * 16 + i));
              requests[i]->submit(*device, BioOp::write, t * 64 + i);
            }
            for (auto& r : requests) wrong += r->wait() != Errno::ok;
            for (uint64_t i = 0; i < 8; ++i) {
              requests[i]->bytes.fill(std::byte{0xff});
              wrong += requests[i]->run(*device, BioOp::read, t * 64 + i) != Errno::ok;
              wrong += std::count(requests[i]->bytes.begin(), requests[i]->bytes.end(),
                                  static_cast<std::byte>(round * 16 + i)) != int{PAGE_SIZE};
            }
          });
        }
      });
    }
    // Meanwhile: whoever has the gate for writing finds nothing under way, though something may be queued.
    std::function<void()> look = [&] { wrong += device->under_way() != 0; };
    for (int i = 0; i < 20; ++i)
      std::thread([&] {
        world.enter_exclusive([](void* b) { (*static_cast<std::function<void()>*>(b))(); }, &look);
      }).join();
    for (std::thread& thread : threads) thread.join();
    std::thread([&] { inside([&] { device->~FileDevice(); }); }).join();
    EXPECT_EQ(wrong, 0);
  }
}

TEST(FileDevice, AForkedChildGoesOnWithKthreadsOfItsOwn) {
  for (FileEngine engine : {FileEngine::kthreads, FileEngine::io_uring}) {
    TestPath path;
    HostWorld world;
    ASSERT_TRUE(world.start().ok());
    alignas(FileDevice) static std::byte place[sizeof(FileDevice)];
    FileDevice* device = nullptr;
    pid_t child = -1;
    Errno error = Errno::ok;
    static Request request;
    std::function<void()> make = [&] {
      FileDeviceError text;
      device =
          *FileDevice::create(place, world, {.path = path.c_str(), .capacity = PageCount(8), .engine = engine}, text);
      request.bytes.fill(std::byte{1});
      error = request.run(*device, BioOp::write, 0);
    };
    std::function<void()> fork_inside = [&] {
      child = fork();
      if (child != 0) return;
      if (!world.restart_after_fork().ok() || !device->restart_in_child(device->descriptor()).ok()) _exit(1);
    };
    std::function<void()> write_child = [&] {
      if (request.run(*device, BioOp::read, 0) != Errno::ok || request.bytes[0] != std::byte{1}) _exit(2);
      request.bytes.fill(std::byte{2});
      if (request.run(*device, BioOp::write, 1) != Errno::ok) _exit(3);
      device->~FileDevice();
      _exit(0);
    };
    std::function<void()> read_parent = [&] {
      error = request.run(*device, BioOp::read, 1);
      device->~FileDevice();
    };
    const auto call = [](void* b) { (*static_cast<std::function<void()>*>(b))(); };
    std::thread([&] {
      world.enter(call, &make);
      world.enter_exclusive(call, &fork_inside);
      if (child == 0) world.enter(call, &write_child);
      int status = -1;
      EXPECT_EQ(waitpid(child, &status, 0), child);
      EXPECT_TRUE(WIFEXITED(status));
      EXPECT_EQ(WEXITSTATUS(status), 0);
      world.enter(call, &read_parent);
    }).join();
    EXPECT_EQ(error, Errno::ok);
    EXPECT_EQ(request.bytes[0], std::byte{2});
  }
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
  EXPECT_EQ(refused({.path = path.c_str(), .capacity = PageCount(11), .origin = FileOrigin::existing}, &text),
            Errno::inval);
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
