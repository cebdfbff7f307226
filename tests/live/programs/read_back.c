// Fills memory, then only reads it. Usage: read_back MIB in_order|at_random ROUNDS [EVERY]
// Each EVERYth word (3) is like no other.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const size_t pages = ((size_t)atoi(argv[1]) << 20) / 4096;
  const size_t every = argc > 4 ? (size_t)atoi(argv[4]) : 3;
  const int at_random = strcmp(argv[2], "at_random") == 0;
  uint64_t* p = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return 2;
  for (size_t i = 0; i < pages; ++i)
    for (size_t k = 0; k < 512; ++k) p[i * 512 + k] = k % every != 0 ? i : (i * 512 + k) * 0x9e3779b97f4a7c15ull;
  uint64_t sum = 0, x = 88172645463325252ull;
  for (int round = 0; round < atoi(argv[3]); ++round)
    for (size_t n = 0; n < pages; ++n) {
      x ^= x << 13, x ^= x >> 7, x ^= x << 17;
      const size_t i = at_random ? x % pages : n;
      sum = sum * 31 + p[i * 512 + 1] + p[i * 512 + 510];
    }
  printf("%016lx\n", sum);
  return 0;
}
