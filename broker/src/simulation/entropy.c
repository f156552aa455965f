/* Loaded before libc: the same "random" bytes for the same seed, in each thread from the beginning. Hash maps, ids and
 * timers of the standard library and of every crate get their randomness from here. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

static __thread uint64_t state;
static __thread int begun;

static uint64_t next(void) {
  if (!begun) {
    const char *seed = getenv("MILLRACE_SIMULATION_SEED");
    state = seed ? strtoull(seed, NULL, 10) : 0;
    begun = 1;
  }
  /* SplitMix64 */
  uint64_t mixed = (state += 0x9e3779b97f4a7c15u);
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
  return mixed ^ (mixed >> 31);
}

ssize_t getrandom(void *buffer, size_t length, unsigned int flags) {
  (void)flags;
  for (size_t done = 0; done < length; done += 8) {
    uint64_t word = next();
    memcpy((char *)buffer + done, &word, length - done < 8 ? length - done : 8);
  }
  return (ssize_t)length;
}

int getentropy(void *buffer, size_t length) {
  getrandom(buffer, length, 0);
  return 0;
}
