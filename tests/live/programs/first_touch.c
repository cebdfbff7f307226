// Threads that touch fresh memory at full speed, then read it all again. Usage: first_touch MIB THREADS
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static size_t pages_each;
static uint64_t sum(unsigned char* p, unsigned id) {
  uint64_t s = 0;
  for (size_t i = 0; i < pages_each; ++i) {
    uint64_t* w = (uint64_t*)(p + i * 4096);
    if (w[0] != i * 31 + id || w[511] != i * 17 + id) {
      printf("thread %u page %zu: %lu %lu\n", id, i, w[0], w[511]);
      exit(1);
    }
    s += w[0] ^ w[511];
  }
  return s;
}
static void* work(void* arg) {
  unsigned id = (unsigned)(uintptr_t)arg;
  unsigned char* p = mmap(0, pages_each * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (size_t i = 0; i < pages_each; ++i) {
    uint64_t* w = (uint64_t*)(p + i * 4096);
    w[0] = i * 31 + id;
    w[511] = i * 17 + id;
    for (int k = 1; k < 400; k += 7) w[k] = (i * 2654435761u + (unsigned)k) * 0x9e3779b97f4a7c15ull;
  }
  return (void*)(uintptr_t)sum(p, id);
}
int main(int argc, char** argv) {
  unsigned n = argc > 2 ? (unsigned)atoi(argv[2]) : 4;
  pages_each = ((size_t)(argc > 1 ? atoi(argv[1]) : 64) << 20) / 4096 / n;
  pthread_t t[64];
  for (unsigned i = 0; i < n && i < 64; ++i) pthread_create(&t[i], 0, work, (void*)(uintptr_t)i);
  uint64_t total = 0;
  for (unsigned i = 0; i < n && i < 64; ++i) {
    void* r;
    pthread_join(t[i], &r);
    total += (uintptr_t)r;
  }
  printf("%lu\n", total);
  return 0;
}
