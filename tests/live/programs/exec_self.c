// exec from a managed program, with arguments that are swapped out. Usage: exec_self MIB [GENERATION]
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char** argv) {
  int generation = argc > 2 ? atoi(argv[2]) : 0;
  size_t n = (size_t)(argc > 1 ? atoi(argv[1]) : 32) << 20;
  if (argc > 3)
    printf("generation %d, argument of %zu bytes, %s\n", generation, strlen(argv[3]),
           strspn(argv[3], "x") == strlen(argv[3]) ? "right" : "WRONG");
  fflush(stdout);
  char* text = malloc(100001);
  memset(text, 'x', 100000);
  text[100000] = 0;
  char* more = malloc(n);
  for (size_t i = 0; i < n; ++i) more[i] = (char)(i * 7 + i / 4096);
  char next[16];
  snprintf(next, sizeof next, "%d", generation + 1);
  if (generation < 2) execl(argv[0], argv[0], argv[1], next, text, (char*)0);
  return 3;
}
