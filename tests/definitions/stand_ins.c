/* Programs that sidecars' images have and this host has not, as far as a task notices them: each
 * speaks what its neighbours say to it, and no more. The name that it is called by says which.
 *
 *   redis-server [PORT]          RESP2: PING, SET and GET of one value
 *   redis-cli [-p PORT] WORD...  sends one command, prints the reply; exit code 1 for an error
 *   udp-daemon PORT              prints each datagram as a line (X-Ray's 2000, DogStatsD's 8125)
 *   udp-send PORT TEXT           sends one datagram to loopback
 *   forward PORT TO              a proxy: passes connections on to loopback's port TO
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { WORDS = 8, WORD = 256 };

static _Noreturn void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void end(int number) {
    (void)number;
    _exit(0); /* as a container's PID 1 it would otherwise ignore SIGTERM */
}

static struct sockaddr_in loopback(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int open_socket(int type, const char *port, int to_listen) {
    struct sockaddr_in address = loopback(port);
    int yes = 1, fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket");
    if (!to_listen) {
        if (connect(fd, (struct sockaddr *)&address, sizeof address))
            fail(port);
        return fd;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) ||
        (type == SOCK_STREAM && listen(fd, 16)))
        fail(port);
    return fd;
}

/* One command: an array of bulk strings. Its number of words, or -1 at the end. */
static int read_command(FILE *in, char words[WORDS][WORD]) {
    int count, size;
    if (fscanf(in, "*%d\r\n", &count) != 1 || count < 1 || count > WORDS)
        return -1;
    for (int at = 0; at < count; at++) {
        if (fscanf(in, "$%d\r\n", &size) != 1 || size < 0 || size >= WORD ||
            fread(words[at], 1, (size_t)size, in) != (size_t)size)
            return -1;
        words[at][size] = 0;
        if (fgetc(in) != '\r' || fgetc(in) != '\n')
            return -1;
    }
    return count;
}

static _Noreturn void redis_server(const char *port) {
    static char words[WORDS][WORD], name[WORD], value[WORD];
    int server = open_socket(SOCK_STREAM, port, 1);
    printf("Ready to accept connections tcp\n");
    fflush(stdout);
    for (;;) {
        int fd = accept4(server, NULL, NULL, SOCK_CLOEXEC), count;
        FILE *in = fd < 0 ? NULL : fdopen(fd, "r");
        if (!in)
            fail("accept");
        while ((count = read_command(in, words)) > 0) {
            if (!strcasecmp(words[0], "PING")) {
                dprintf(fd, "+PONG\r\n");
            } else if (!strcasecmp(words[0], "SET") && count == 3) {
                strcpy(name, words[1]);
                strcpy(value, words[2]);
                dprintf(fd, "+OK\r\n");
            } else if (!strcasecmp(words[0], "GET") && count == 2) {
                if (strcmp(name, words[1]))
                    dprintf(fd, "$-1\r\n");
                else
                    dprintf(fd, "$%zu\r\n%s\r\n", strlen(value), value);
            } else {
                dprintf(fd, "-ERR unknown command '%s'\r\n", words[0]);
            }
        }
        fclose(in);
    }
}

static int redis_cli(int argc, char **argv) {
    const char *port = "6379";
    int at = 1, size = 0;
    if (argc > 2 && !strcmp(argv[1], "-p"))
        port = argv[2], at = 3;
    int fd = open_socket(SOCK_STREAM, port, 0);
    dprintf(fd, "*%d\r\n", argc - at);
    for (; at < argc; at++)
        dprintf(fd, "$%zu\r\n%s\r\n", strlen(argv[at]), argv[at]);
    FILE *in = fdopen(fd, "r");
    char line[512];
    if (!in || !fgets(line, sizeof line, in))
        fail("no reply");
    if (line[0] == '$' && (size = atoi(line + 1)) >= 0 && !fgets(line + 1, sizeof line - 1, in))
        fail("no value");
    line[strcspn(line, "\r\n")] = 0;
    puts(line[0] == '$' && size < 0 ? "(nil)" : line + 1);
    return line[0] == '-';
}

static int udp_daemon(const char *port) {
    int fd = open_socket(SOCK_DGRAM, port, 1);
    char datagram[65536];
    ssize_t size;
    printf("listening on udp %s\n", port);
    fflush(stdout);
    while ((size = recv(fd, datagram, sizeof datagram, 0)) >= 0) {
        for (ssize_t at = 0; at < size; at++)
            if (datagram[at] == '\n')
                datagram[at] = ' ';
        printf("received %.*s\n", (int)size, datagram);
        fflush(stdout);
    }
    return 1;
}

/* One connection: both directions until one side closes. */
static int pass_on(int client, const char *to) {
    struct pollfd ends[2] = {{.fd = client, .events = POLLIN},
                             {.fd = open_socket(SOCK_STREAM, to, 0), .events = POLLIN}};
    char bytes[65536];
    for (;;) {
        if (poll(ends, 2, -1) < 0)
            fail("poll");
        for (int at = 0; at < 2; at++) {
            ssize_t size = ends[at].revents ? read(ends[at].fd, bytes, sizeof bytes) : -1;
            if (ends[at].revents && size <= 0)
                return 0;
            if (size > 0 && write(ends[!at].fd, bytes, (size_t)size) != size)
                return 1;
        }
    }
}

static _Noreturn void forward(const char *port, const char *to) {
    struct sockaddr_in any = loopback(port);
    any.sin_addr.s_addr = htonl(INADDR_ANY);
    int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), client;
    signal(SIGCHLD, SIG_IGN);
    if (bind(server, (struct sockaddr *)&any, sizeof any) || listen(server, 16))
        fail(port);
    while ((client = accept4(server, NULL, NULL, SOCK_CLOEXEC)) >= 0)
        if (fork() == 0)
            _exit(pass_on(client, to));
        else
            close(client);
    fail("accept");
}

int main(int argc, char **argv) {
    const char *called = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    signal(SIGTERM, end);
    if (!strcmp(called, "redis-server"))
        redis_server(argc > 1 ? argv[1] : "6379");
    if (!strcmp(called, "redis-cli") && argc > 1)
        return redis_cli(argc, argv);
    if (!strcmp(called, "udp-daemon") && argc == 2)
        return udp_daemon(argv[1]);
    if (!strcmp(called, "udp-send") && argc == 3)
        return send(open_socket(SOCK_DGRAM, argv[1], 0), argv[2], strlen(argv[2]), 0) < 0;
    if (!strcmp(called, "forward") && argc == 3)
        forward(argv[1], argv[2]);
    fprintf(stderr, "%s: usage\n", called);
    return 2;
}
