// Memory across fork while it is swapped out. Usage: forks MIB ROUNDS. Both sides write after each fork; grandchildren
// too.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static size_t words;
static uint64_t* data;
static uint64_t value(size_t i, uint64_t salt) { return (i + 1) * 0x9e3779b97f4a7c15ull ^ salt * 0x100000001b3ull; }
static void fill(uint64_t salt, size_t step) {
  for (size_t i = 0; i < words; i += step) data[i] = value(i, salt);
}
static int wrong(uint64_t salt, size_t step, uint64_t rest) {
  for (size_t i = 0; i < words; ++i) {
    uint64_t want = value(i, i % step == 0 ? salt : rest);
    if (data[i] != want) {
      fprintf(stderr, "%d: word %zu of page %zu: %lx, not %lx\n", getpid(), i, i / 512, data[i], want);
      return 1;
    }
  }
  return 0;
}
static int grandchild(uint64_t salt, size_t step, uint64_t rest) {
  pid_t p = fork();
  if (p == 0) {
    int bad = wrong(salt, step, rest);
    fill(99, 1);
    _exit(bad || wrong(99, 1, 99));
  }
  int st;
  waitpid(p, &st, 0);
  return st != 0 || wrong(salt, step, rest);
}
static volatile int stop;
static uint64_t* busy_words;
static void* busy(void* arg) {
  // Keeps reclaim going while the others fork.
  size_t n = words / 4;
  for (uint64_t round = 0; !stop; ++round)
    for (size_t i = 0; i < n && !stop; i += 256) busy_words[i] = round + i;
  return arg;
}

int main(int argc, char** argv) {
  words = ((size_t)(argc > 1 ? atoi(argv[1]) : 32) << 20) / 8;
  int rounds = argc > 2 ? atoi(argv[2]) : 3, bad = 0;
  data = malloc(words * 8);
  busy_words = malloc(words * 2);
  fill(1, 1);
  uint64_t rest = 1;
  pthread_t t;
  pthread_create(&t, 0, busy, 0);
  for (int round = 0; round < rounds; ++round) {
    uint64_t mine = 10 + (uint64_t)round, childs = 50 + (uint64_t)round;
    fflush(stdout);
    pid_t p = fork();
    if (p == 0) {
      int b = wrong(rest, 1, rest);  // memory as of the fork, not what the parent writes now
      fill(childs, 3);
      b |= wrong(childs, 3, rest);
      if (round == 0) b |= grandchild(childs, 3, rest);
      b |= wrong(childs, 3, rest);
      _exit(b);
    }
    fill(mine, 1);
    bad |= wrong(mine, 1, mine);
    int st = 0;
    waitpid(p, &st, 0);
    printf("round %d: child %s, parent %s\n", round, st == 0 ? "right" : "WRONG",
           wrong(mine, 1, mine) ? "WRONG" : "right");
    bad |= st != 0;
    rest = mine;
  }
  stop = 1;
  pthread_join(t, 0);
  return bad;
}
