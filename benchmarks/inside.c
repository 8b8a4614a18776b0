/* What a process gets of the machine: `inside WORK` prints how often it could
 * do it in a second.
 *
 * syscall: getppid(2); fork: fork, exit, wait; loopback: one byte there and
 * back over TCP, both ends on one CPU; write: 64 KiB blocks into a new file of
 * 64 MiB here, synced at the end, in MiB; open: the program's file opened, read
 * and closed; cpu: rounds of arithmetic.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void need(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static volatile uint64_t sink;
static const char *own_path;

static void do_syscall(void) {
    syscall(SYS_getppid);
}

static void do_cpu(void) {
    uint64_t value = sink + 1;
    for (int round = 0; round < 1000; round++)
        value = value * 6364136223846793005u + 1442695040888963407u;
    sink = value;
}

static void do_fork(void) {
    pid_t pid = fork();
    need(pid >= 0, "fork");
    if (pid == 0)
        _exit(0);
    need(waitpid(pid, NULL, 0) == pid, "waitpid");
}

static void do_open(void) {
    char text[256];
    int fd = open(own_path, O_RDONLY | O_CLOEXEC);
    need(fd >= 0, own_path);
    need(read(fd, text, sizeof text) > 0, "read");
    close(fd);
}

static int peer = -1;

static void start_echo(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    need(bind(listener, (struct sockaddr *)&address, length) == 0, "bind");
    need(listen(listener, 1) == 0, "listen");
    need(getsockname(listener, (struct sockaddr *)&address, &length) == 0, "getsockname");
    /* Else the scheduler decides, now so and now so, whether each byte wakes another CPU up: three
     * to four times the cost of all that is measured here. */
    cpu_set_t one_cpu;
    CPU_ZERO(&one_cpu);
    CPU_SET(sched_getcpu(), &one_cpu);
    need(sched_setaffinity(0, sizeof one_cpu, &one_cpu) == 0, "sched_setaffinity");
    if (fork() == 0) {
        int client = accept(listener, NULL, NULL);
        char byte;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        while (read(client, &byte, 1) == 1 && write(client, &byte, 1) == 1) {
        }
        _exit(0);
    }
    peer = socket(AF_INET, SOCK_STREAM, 0);
    need(connect(peer, (struct sockaddr *)&address, length) == 0, "connect");
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void do_loopback(void) {
    char byte = 1;
    need(write(peer, &byte, 1) == 1 && read(peer, &byte, 1) == 1, "echo");
}

static double write_mib_s(void) {
    enum { BLOCK = 1 << 16, BLOCKS = 1 << 10 };
    static char block[BLOCK];
    double started = now_s();
    int fd = open("inside.tmp", O_CREAT | O_TRUNC | O_WRONLY, 0600);
    need(fd >= 0, "inside.tmp");
    for (int number = 0; number < BLOCKS; number++)
        need(write(fd, block, BLOCK) == BLOCK, "write");
    need(fsync(fd) == 0, "fsync");
    close(fd);
    double spent = now_s() - started;
    unlink("inside.tmp");
    return BLOCKS / 16.0 / spent;
}

int main(int count, char **words) {
    static const struct {
        const char *name;
        void (*work)(void);
    } works[] = {{"syscall", do_syscall},
                 {"cpu", do_cpu},
                 {"fork", do_fork},
                 {"open", do_open},
                 {"loopback", do_loopback}};
    need(count == 2, "one argument");
    own_path = words[0];
    if (strcmp(words[1], "write") == 0) {
        printf("%.3f\n", write_mib_s());
        return 0;
    }
    for (size_t index = 0; index < sizeof works / sizeof works[0]; index++) {
        if (strcmp(words[1], works[index].name) != 0)
            continue;
        if (works[index].work == do_loopback)
            start_echo();
        uint64_t done = 0;
        double started = now_s(), spent;
        do {
            for (int number = 0; number < 100; number++)
                works[index].work();
            done += 100;
            spent = now_s() - started;
        } while (spent < 0.5);
        printf("%.3f\n", (double)done / spent);
        return 0;
    }
    fprintf(stderr, "unknown work %s\n", words[1]);
    return 1;
}
