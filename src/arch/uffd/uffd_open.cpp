// src/arch/uffd/uffd_open.cpp: see uffd_open.hpp
#include "arch/uffd/uffd_open.hpp"

#include "arch/uffd/host_calls.hpp"

namespace weir {

namespace {

constexpr int FLAGS = O_CLOEXEC | O_NONBLOCK;

long ask_device(int device) { return raw_syscall(SYS_ioctl, device, abi::IOC_NEW, FLAGS); }

/// A descriptor for faults of the host's own accesses too.
long open_plain(int device) {
  long fd = -EPERM;
  if (device >= 0) fd = ask_device(device);
  if (fd < 0) {
    const long own = raw_syscall(SYS_openat, AT_FDCWD, "/dev/userfaultfd", O_RDWR | O_CLOEXEC, 0);
    if (own >= 0) {
      fd = ask_device(static_cast<int>(own));
      raw_syscall(SYS_close, own);
    }
  }
  if (fd < 0) fd = raw_syscall(SYS_userfaultfd, FLAGS);
  return fd;
}

}  // namespace

int move_descriptor_up(int fd) {
  for (int lowest = LOWEST_DESCRIPTOR; lowest > fd; lowest /= 2) {
    const long high = raw_syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, lowest);
    if (high < 0) continue;
    raw_syscall(SYS_close, fd);
    return static_cast<int>(high);
  }
  return fd;
}

Result<int> uffd_open(UffdDelivery delivery, int device, UffdOpenError& error) {
  // Who raises signals sees user accesses only, and for those nobody needs a privilege.
  long fd =
      delivery == UffdDelivery::signal ? raw_syscall(SYS_userfaultfd, FLAGS | abi::USER_MODE_ONLY) : open_plain(device);
  if (delivery == UffdDelivery::signal && fd == -EINVAL) fd = open_plain(device);  // before 5.11
  if (fd < 0) {
    if (fd == -ENOSYS) {
      error = {"this host has no userfaultfd",
               "a kernel with CONFIG_USERFAULTFD is needed; in a container, a seccomp profile that allows userfaultfd"};
    } else if (fd == -EMFILE || fd == -ENFILE) {
      error = {"no file descriptor is left", "raise the limit on open files (ulimit -n)"};
    } else if (delivery == UffdDelivery::signal) {
      error = {"the host forbids userfaultfd",
               "in a container, use a seccomp profile that allows userfaultfd (docker run --security-opt seccomp=...)"};
    } else {
      error = {
          "no permission for userfaultfd with faults of system calls",
          "run as root, or set vm.unprivileged_userfaultfd=1 (sysctl), or give the user read and write permission on "
          "/dev/userfaultfd; or choose signal delivery, which needs no permission"};
    }
    return static_cast<Errno>(-fd);
  }

  const uint64_t wanted = abi::FEATURE_EXACT_ADDRESS | abi::FEATURE_MOVE |
                          (delivery == UffdDelivery::signal ? abi::FEATURE_MISSING_SIGBUS : 0);
  uffdio_api api{.api = UFFD_API, .features = wanted | abi::FEATURE_POISON, .ioctls = 0};
  long done = host::ioctl(static_cast<int>(fd), UFFDIO_API, &api);
  if (done < 0) {  // one refusal uses up the descriptor's only chance on old hosts, so that a new one asks for less
    raw_syscall(SYS_close, fd);
    fd = delivery == UffdDelivery::signal ? raw_syscall(SYS_userfaultfd, FLAGS | abi::USER_MODE_ONLY)
                                          : open_plain(device);
    if (fd < 0) return static_cast<Errno>(-fd);
    api = {.api = UFFD_API, .features = wanted, .ioctls = 0};
    done = host::ioctl(static_cast<int>(fd), UFFDIO_API, &api);
  }
  if (done < 0) {
    raw_syscall(SYS_close, fd);
    error = {"this kernel is too old: it has no UFFDIO_MOVE", "Linux 6.8 or newer is needed"};
    return static_cast<Errno>(-done);
  }
  return move_descriptor_up(static_cast<int>(fd));
}

Result<void> uffd_register(int fd, const void* start, size_t length, UffdFaults faults) {
  uffdio_register r{.range = {.start = reinterpret_cast<uint64_t>(start), .len = length},
                    .mode = UFFDIO_REGISTER_MODE_MISSING |
                            (faults == UffdFaults::missing_and_protected ? UFFDIO_REGISTER_MODE_WP : 0),
                    .ioctls = 0};
  const long done = host::ioctl(fd, UFFDIO_REGISTER, &r);
  if (done < 0) return static_cast<Errno>(-done);
  return {};
}

void uffd_close(int fd) {
  if (fd >= 0) raw_syscall(SYS_close, fd);
}

}  // namespace weir
