/* A small service beside neighbours: what each of its requests takes, in microseconds.

   victim REQUESTS [DIRECTORY]: a request is due every 2 ms; it computes for some 100 us, touches
   256 KiB of fresh memory, reads a file that is in the page cache, writes 16 KiB to a new file and
   removes it. A line for each: how long it took from its start, and from when it was due (waking
   up included). Then "done". */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { FRESH_BYTES = 256 << 10, CACHED_BYTES = 1 << 20, WRITTEN_BYTES = 16 << 10, PERIOD_US = 2000 };

static char buffer[CACHED_BYTES];

static double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static uint64_t compute(uint64_t seed) {
    for (int i = 0; i < 60000; i++)
        seed = seed * 6364136223846793005u + 1442695040888963407u;
    return seed;
}

static int serve(uint64_t *state) {
    *state = compute(*state);
    char *fresh =
        mmap(NULL, FRESH_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fresh == MAP_FAILED)
        return -1;
    for (int at = 0; at < FRESH_BYTES; at += 4096)
        fresh[at] = (char)*state;
    munmap(fresh, FRESH_BYTES);
    int fd = open("cached", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, buffer, CACHED_BYTES) != CACHED_BYTES)
        return -1;
    close(fd);
    fd = open("written", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, buffer, WRITTEN_BYTES) != WRITTEN_BYTES)
        return -1;
    close(fd);
    return unlink("written");
}

int main(int argc, char **argv) {
    int requests = argc > 1 ? atoi(argv[1]) : 1000;
    uint64_t state = 1;
    if (chdir(argc > 2 ? argv[2] : "/"))
        return 1;
    int fd = open("cached", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, buffer, CACHED_BYTES) != CACHED_BYTES)
        return 1;
    close(fd);
    double due = now_us();
    for (int i = 0; i < requests; i++) {
        /* After a stall the schedule begins anew: what follows is not late because of it. */
        due = due + PERIOD_US < now_us() ? now_us() : due + PERIOD_US;
        struct timespec at = {(time_t)(due / 1e6), (long)(due * 1e3) % 1000000000L};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
        double started = now_us();
        if (serve(&state))
            return 2;
        double ended = now_us();
        printf("%.1f %.1f\n", ended - started, ended - due);
    }
    printf("done\n");
    return state == 0;
}
