// Swapped-out memory in all the ways a program comes at it. Usage: memory_calls MIB. Prints one line a check; exits 1
// when one is wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static int bad;
static void check(const char* what, int ok) {
  printf("%s: %s\n", what, ok ? "ok" : "WRONG");
  if (!ok) bad = 1;
}

static size_t bytes;
static unsigned char* block;
static unsigned char* other;
static unsigned char byte_at(size_t i, unsigned salt) {
  return (unsigned char)((i * 2654435761u >> 7) + i / 4096 + salt);
}
static void fill(unsigned char* p, size_t n, unsigned salt) {
  for (size_t i = 0; i < n; ++i) p[i] = byte_at(i, salt);
}
static int same(const unsigned char* p, size_t n, unsigned salt) {
  for (size_t i = 0; i < n; ++i)
    if (p[i] != byte_at(i, salt)) {
      printf("at %zu: %u, not %u\n", i, p[i], byte_at(i, salt));
      return 0;
    }
  return 1;
}
// Everything else is touched, so that what was before goes out.
static void push_out(void) {
  for (size_t i = 0; i < bytes; i += 64) other[i] = (unsigned char)(i / 4096 + i);
}

static sigjmp_buf back;
static void* volatile fault_at;
static volatile int fault_code, fault_signal;
static void on_fault(int s, siginfo_t* i, void* u) {
  (void)u;
  fault_signal = s;
  fault_at = i->si_addr;
  fault_code = i->si_code;
  siglongjmp(back, 1);
}

int main(int argc, char** argv) {
  bytes = (size_t)(argc > 1 ? atoi(argv[1]) : 32) << 20;
  block = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  other = malloc(bytes);
  check("fresh memory is zero", block[0] == 0 && block[bytes - 1] == 0 && block[bytes / 2 + 123] == 0);
  fill(block, bytes, 1);
  push_out();
  check("comes back as it was", same(block, bytes, 1));

  // System calls into and from pages that are out.
  char path[] = "/tmp/weir-calls-XXXXXX";
  int fd = mkstemp(path);
  unlink(path);
  push_out();
  check("write() from swapped-out memory", write(fd, block, 8 << 20) == 8 << 20);
  push_out();
  check("pread() into swapped-out memory", pread(fd, block + (8 << 20) + 100, 4 << 20, 0) == 4 << 20 &&
                                               memcmp(block, block + (8 << 20) + 100, 4 << 20) == 0);
  fill(block, bytes, 1);
  push_out();
  struct iovec v[3] = {{block + 5000, 10000}, {block + (1 << 20) + 7, 40000}, {block + (3 << 20), 1}};
  check("preadv() over several", preadv(fd, v, 3, 0) == 50001);
  fill(block, bytes, 1);
  int pair[2];
  socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
  push_out();
  check("send() of a datagram", send(pair[0], block + 4000, 6000, 0) == 6000);
  push_out();
  check("recv() of a datagram", recv(pair[1], other + (2 << 20) + 4000, 8192, 0) == 6000 &&
                                    memcmp(other + (2 << 20) + 4000, block + 4000, 6000) == 0);
  int pipes[2];
  check("pipe() into swapped-out memory",
        pipe((int*)(block + (6 << 20) + 4092)) == 0 && memcpy(pipes, block + (6 << 20) + 4092, 8) != 0);
  push_out();
  pid_t child = fork();
  if (child == 0) _exit(7);
  int* status = (int*)(block + (7 << 20));
  check("wait4() writes its status", waitpid(child, status, 0) == child && WEXITSTATUS(*status) == 7);
  fill(block, bytes, 1);

  // Unmapping, protecting, moving.
  push_out();
  check("munmap of a middle", munmap(block + (4 << 20), 1 << 20) == 0);
  check("neighbours stay", same(block, 4 << 20, 1) && block[(5 << 20) + 17] == byte_at((5 << 20) + 17, 1));
  unsigned char* again =
      mmap(block + (4 << 20), 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  check("mapped again at its place, zero", again == block + (4 << 20) && again[0] == 0 && again[(1 << 20) - 1] == 0);
  fill(block, bytes, 1);
  check("madvise(DONTNEED) zeroes",
        madvise(block + (2 << 20), 1 << 20, MADV_DONTNEED) == 0 && block[2 << 20] == 0 && block[(3 << 20) - 1] == 0);
  check("and nothing beside",
        block[(2 << 20) - 1] == byte_at((2 << 20) - 1, 1) && block[3 << 20] == byte_at(3 << 20, 1));
  unsigned char* grown = mmap(0, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  fill(grown, 4 << 20, 2);
  push_out();
  grown = mremap(grown, 4 << 20, 24 << 20, MREMAP_MAYMOVE);
  check("mremap grows and keeps", grown != MAP_FAILED && same(grown, 4 << 20, 2) && grown[(24 << 20) - 1] == 0);
  grown = mremap(grown, 24 << 20, 1 << 20, 0);
  check("mremap shrinks", grown != MAP_FAILED && same(grown, 1 << 20, 2));
  unsigned char* heap = malloc(1 << 20);
  fill(heap, 1 << 20, 3);
  for (size_t n = 2; n <= 16; n *= 2) {
    push_out();
    heap = realloc(heap, n << 20);
  }
  check("realloc keeps", same(heap, 1 << 20, 3));

  struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &sa, 0);
  sigaction(SIGBUS, &sa, 0);
  fill(block, 1 << 20, 4);
  push_out();
  check("mprotect(READ)", mprotect(block, 1 << 20, PROT_READ) == 0 && same(block, 1 << 20, 4));
  if (sigsetjmp(back, 1) == 0) block[5000] = 1;
  check("a write to it is SIGSEGV there", fault_signal == SIGSEGV && fault_at == block + 5000);
  fault_signal = 0;
  push_out();
  check("mprotect(NONE)", mprotect(block, 1 << 20, PROT_NONE) == 0);
  if (sigsetjmp(back, 1) == 0) (void)*(volatile unsigned char*)(block + 9000);
  check("a read of it is SIGSEGV there", fault_signal == SIGSEGV && fault_at == block + 9000);
  check("mprotect(READ|WRITE) gives it back",
        mprotect(block, 1 << 20, PROT_READ | PROT_WRITE) == 0 && same(block, 1 << 20, 4));
  fault_signal = 0;
  munmap(block + (1 << 20), 1 << 20);
  if (sigsetjmp(back, 1) == 0) block[(1 << 20) + 77] = 1;
  check("unmapped memory is SIGSEGV there", fault_signal == SIGSEGV && fault_at == block + (1 << 20) + 77);
  fault_signal = 0;
  if (sigsetjmp(back, 1) == 0) *(volatile int*)8 = 1;
  check("a null pointer is SIGSEGV", fault_signal == SIGSEGV && fault_at == (void*)8);

  // Errors are the system calls' own.
  errno = 0;
  check("mmap of nothing is EINVAL",
        mmap(0, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL);
  check("munmap of an odd address is EINVAL", munmap(block + 1, 4096) == -1 && errno == EINVAL);
  check("madvise with nonsense is EINVAL", madvise(block, 4096, 12345) == -1 && errno == EINVAL);
  check("mprotect of a hole is ENOMEM", mprotect(block, 4 << 20, PROT_READ | PROT_WRITE) == -1 && errno == ENOMEM);
  check("mremap of a hole is EFAULT",
        mremap(block + (1 << 20), 4096, 8192, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);

  // A file put over a managed place, and taken away again.
  block[(3 << 20) - 1] = 41;
  block[4 << 20] = 42;
  unsigned char* over = mmap(block + (3 << 20), 1 << 20, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
  check("a file mapped over it", over == block + (3 << 20) && over[1000] == byte_at(1000, 1));
  check("munmap of the file", munmap(over, 1 << 20) == 0);
  check("what is beside it stays", block[4 << 20] == 42 && block[(3 << 20) - 1] == 41);
  check("mlock, munlock", mlock(grown, 1 << 20) == 0 && same(grown, 1 << 20, 2) && munlock(grown, 1 << 20) == 0);
  printf("%s\n", bad ? "SOME WRONG" : "all as it should be");
  return bad;
}
