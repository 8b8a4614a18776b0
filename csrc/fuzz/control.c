/* libFuzzer: the shim's control messages, through a socket as they come; the first byte says how
 * many descriptors come along. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../shim/shim.h"

int fail(struct failure *failure, const char *call, const char *object, int error) {
    snprintf(failure->call, sizeof failure->call, "%s", call);
    snprintf(failure->object, sizeof failure->object, "%s", object);
    failure->error = error;
    return -error;
}

struct process *process_find(struct shim *shim, uint32_t number) {
    return number == 7 ? &shim->processes[0] : NULL;
}

size_t process_count(const struct shim *shim) {
    return shim->processes[0].used; /* one lives: a shutdown is refused */
}

void process_log_read(struct shim *shim, struct process *process, uint64_t bytes) {
    (void)shim;
    process->unread_bytes -= bytes < process->unread_bytes ? bytes : process->unread_bytes;
}

void processes_release(struct shim *shim) {
    (void)shim;
}

void processes_end_guests(struct shim *shim, int connection) {
    (void)shim;
    (void)connection;
}

/* Every descriptor that is handed on is open. */
int process_start(struct shim *shim, uint32_t number, int plan_fd,
                  const struct start_request *request, struct failure *failure) {
    (void)shim;
    (void)number;
    uint32_t wanted = request->flags == START_STREAMS ? 3 : request->flags == START_TERMINAL;
    if (fcntl(plan_fd, F_GETFD) < 0)
        abort();
    for (uint32_t i = 0; i < wanted; i++)
        if (fcntl(request->fds[i], F_GETFD) < 0)
            abort();
    return fail(failure, "start", "not here", EBADMSG);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct shim shim;
    int ends[2], null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (size < 2 || null < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends)) {
        close(null);
        return 0;
    }
    for (int i = 0; i < MAX_CONNECTIONS; i++)
        shim.connections[i] = -1;
    shim.connections[0] = ends[0];
    shim.userns_fd = shim.netns_fd = null;
    shim.processes[0] = (struct process){.used = true, .number = 7, .pidfd = -1};
    size_t count = data[0] % 9;
    char control[CMSG_SPACE(8 * sizeof(int))] = {0};
    struct iovec part = {(void *)(data + 1), size - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(count * sizeof(int));
        for (size_t i = 0; i < count; i++)
            memcpy(CMSG_DATA(header) + i * sizeof(int), &null, sizeof null);
    }
    if (sendmsg(ends[1], &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        control_receive(&shim, 0);
    close(ends[1]);
    if (shim.connections[0] >= 0)
        close(shim.connections[0]);
    close(null);
    /* A descriptor that leaks shows as a number that grows. */
    int probe = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (probe > 100)
        abort();
    close(probe);
    return 0;
}
