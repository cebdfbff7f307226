// A program that closes every descriptor but its output, with memory swapped out before and after. Usage: close_all MIB
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char** argv) {
  size_t n = ((size_t)(argc > 1 ? atoi(argv[1]) : 32) << 20) / 8;
  uint64_t* a = malloc(n * 8);
  for (size_t i = 0; i < n; ++i) a[i] = i * 0x9e3779b97f4a7c15ull;
  if (close_range(3, ~0u, 0) != 0) perror("close_range");
  uint64_t bad = 0;
  for (int round = 0; round < 3; ++round)
    for (size_t i = 0; i < n; ++i) {
      if (a[i] != i * 0x9e3779b97f4a7c15ull + (uint64_t)round) ++bad;
      ++a[i];
    }
  printf("%lu words wrong\n", bad);
  return bad != 0;
}
