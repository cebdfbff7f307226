// Makes code and calls it, as a JIT does. Usage: code MIB. One half of it cannot be written while it runs, the other can.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

// mov eax, value; ret
static void write_code(unsigned char* at, uint32_t value) {
  at[0] = 0xb8;
  memcpy(at + 1, &value, sizeof value);
  at[5] = 0xc3;
}

static uint32_t call(unsigned char* at) {
  uint32_t (*code)(void);
  memcpy(&code, &at, sizeof code);
  return code();
}

static void must(int ok, const char* what) {
  if (ok) return;
  perror(what);
  exit(1);
}

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const size_t pages = ((size_t)atoi(argv[1]) << 20) / PAGE, half = pages / 2;
  unsigned char* p = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  must(p != MAP_FAILED, "mmap");
  for (size_t i = 0; i < pages; ++i) {
    for (size_t k = 6; k + 4 <= PAGE; k += 97) memcpy(p + i * PAGE + k, &k, 4);
    write_code(p + i * PAGE, (uint32_t)i);
  }
  unsigned char* q = p + half * PAGE;
  const size_t code = pages / 16;
  must(mprotect(p, code * PAGE, PROT_READ | PROT_EXEC) == 0, "mprotect rx");
  must(mprotect(q, code * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0, "mprotect rwx");
  uint64_t sum = 0;
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < code; ++i) sum = sum * 31 + call(p + i * PAGE);
    for (size_t i = 0; i < code; ++i) {
      sum = sum * 31 + call(q + i * PAGE);
      write_code(q + i * PAGE, (uint32_t)(sum >> 7));
    }
    for (size_t i = 0; i < pages; ++i) sum = sum * 31 + p[i * PAGE + 1];
  }
  // Moved, given back, and data again.
  unsigned char* moved = mremap(q, code * PAGE, 2 * code * PAGE, MREMAP_MAYMOVE);
  must(moved != MAP_FAILED && moved != q, "mremap");
  for (size_t i = 0; i < code; ++i) sum = sum * 31 + call(moved + i * PAGE);
  must(madvise(moved, code * PAGE, MADV_DONTNEED) == 0, "madvise rwx");
  for (size_t i = 0; i < code * PAGE; i += 512) must(moved[i] == 0, "zero");
  must(mprotect(p, code / 2 * PAGE, PROT_NONE) == 0, "mprotect none");
  must(madvise(p, code / 2 * PAGE, MADV_DONTNEED) == 0, "madvise none");
  must(mprotect(p, code * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect rw");
  for (size_t i = 0; i < code / 2 * PAGE; i += 512) must(p[i] == 0, "zero");
  for (size_t i = code + 1; i < half; ++i) sum = sum * 31 + p[i * PAGE + 1];
  for (size_t i = code / 2; i < code; ++i) sum = sum * 31 + p[i * PAGE + 1];
  printf("%016lx\n", sum);
  return 0;
}
