// Ends as it is told. Usage: signals exit N | kill N | segv | abort | wait  (wait: until SIGTERM or SIGUSR1, then 10 or
// 11)
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t got;
static void on(int s) { got = s; }
int main(int argc, char** argv) {
  if (argc < 2) return 1;
  char* p = malloc(8 << 20);
  memset(p, 1, 8 << 20);
  if (!strcmp(argv[1], "exit")) return atoi(argv[2]);
  if (!strcmp(argv[1], "quick")) _exit(atoi(argv[2]));
  if (!strcmp(argv[1], "kill")) kill(getpid(), atoi(argv[2]));
  if (!strcmp(argv[1], "segv")) *(volatile int*)0 = 1;
  if (!strcmp(argv[1], "abort")) abort();
  if (!strcmp(argv[1], "wait")) {
    signal(SIGTERM, on);
    signal(SIGUSR1, on);
    printf("ready\n");
    fflush(stdout);
    while (!got) usleep(10000);
    return got == SIGTERM ? 10 : 11;
  }
  return 1;
}
