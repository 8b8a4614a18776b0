/* A FireLens router for tests: shows its configuration, listens where the configuration says, and
 * prints what comes in hexadecimal, a line per connection. Ends at SIGTERM once all is read. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static volatile sig_atomic_t is_over;

static void on_term(int number) {
    (void)number;
    is_over = 1;
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/var/run/fluent.sock"};
    struct sigaction action = {.sa_handler = on_term};
    sigaction(SIGTERM, &action, NULL);
    FILE *config = fopen(argc > 1 ? argv[1] : "", "r");
    if (!config)
        return 2;
    for (int letter; (letter = fgetc(config)) != EOF;)
        putchar(letter);
    printf("SECRET %s\n", getenv("api_key_1") ? getenv("api_key_1") : "none");
    fflush(stdout);
    int listening = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 8))
        return 3;
    struct pollfd fds[8] = {{.fd = listening, .events = POLLIN}};
    nfds_t count = 1;
    for (;;) {
        int ready = poll(fds, count, is_over ? 0 : -1);
        if (ready == 0)
            return 0;
        if (ready < 0 && errno != EINTR)
            return 4;
        if (ready < 0)
            continue;
        if (fds[0].revents & POLLIN && count < 8)
            fds[count++] = (struct pollfd){.fd = accept(listening, NULL, NULL), .events = POLLIN};
        for (nfds_t i = 1; i < count; i++) {
            unsigned char data[65536];
            if (!(fds[i].revents & (POLLIN | POLLHUP)))
                continue;
            ssize_t got = read(fds[i].fd, data, sizeof data);
            if (got <= 0) {
                close(fds[i].fd);
                fds[i] = fds[--count];
                break;
            }
            printf("DATA %d ", fds[i].fd);
            for (ssize_t at = 0; at < got; at++)
                printf("%02x", data[at]);
            putchar('\n');
            fflush(stdout);
        }
    }
}
