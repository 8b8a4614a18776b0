/* The control socket: requests in, events out. A client that does not read is dropped, never
 * waited for; all that an event says is also on disk or asked for again with REQUEST_STATUS. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "shim.h"

void control_event(const struct process *process, uint16_t type, struct event *event) {
    memset(event, 0, sizeof *event);
    event->magic = CONTROL_MAGIC;
    event->version = CONTROL_VERSION;
    event->type = type;
    if (process) {
        event->process = process->number;
        event->pid = process->pid;
        event->started_at_ns = process->started_at_ns;
        event->setup_ns = process->setup_ns;
        if (process->failed)
            event->failure = process->failure;
    }
}

static int send_event(int fd, const struct event *event, const char *output, const int *descriptors,
                      size_t descriptor_count) {
    char control[CMSG_SPACE(2 * sizeof(int))] = {0};
    struct iovec parts[2] = {{(void *)event, sizeof *event}, {(void *)output, event->output_bytes}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = output ? 2 : 1};
    if (descriptor_count) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(descriptor_count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(descriptor_count * sizeof(int));
        memcpy(CMSG_DATA(header), descriptors, descriptor_count * sizeof(int));
    }
    return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

void control_drop(struct shim *shim, int connection) {
    close_descriptor(&shim->connections[connection]); /* leaves the epoll set by being closed */
    processes_end_guests(shim, connection);
    for (int i = 0; i < MAX_CONNECTIONS; i++)
        if (shim->connections[i] >= 0)
            return;
    processes_release(shim);
}

void control_broadcast(struct shim *shim, const struct event *event, const char *output) {
    for (int i = 0; i < MAX_CONNECTIONS; i++)
        if (shim->connections[i] >= 0 && send_event(shim->connections[i], event, output, NULL, 0))
            control_drop(shim, i);
}

void control_send_ready(struct shim *shim, int fd) {
    struct event event;
    int descriptors[2] = {shim->userns_fd, shim->netns_fd};
    control_event(NULL, EVENT_READY, &event);
    /* A lost READY shows at the client as a closed connection. */
    if (send_event(fd, &event, NULL, descriptors, 2))
        for (int i = 0; i < MAX_CONNECTIONS; i++)
            if (shim->connections[i] == fd)
                control_drop(shim, i);
}

static void refuse(struct shim *shim, int connection, const struct request *request,
                   const char *call, const char *object, int error) {
    struct event event;
    control_event(NULL, EVENT_REFUSED, &event);
    event.process = request->process;
    event.failure.op_index = 0xffff;
    fail(&event.failure, call, object, error);
    if (send_event(shim->connections[connection], &event, NULL, NULL, 0))
        control_drop(shim, connection);
}

void control_accept(struct shim *shim) {
    struct ucred peer;
    socklen_t length = sizeof peer;
    cleanup_close int fd = accept4(shim->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return; /* the client went away between connect and accept */
    /* The run directory is 0700; this holds even if somebody opened it up. */
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) || peer.uid != geteuid())
        return;
    for (int i = 0; i < MAX_CONNECTIONS; i++)
        if (shim->connections[i] < 0) {
            struct epoll_event event = {.events = EPOLLIN, .data.u64 = 100 + (uint64_t)i};
            if (epoll_ctl(shim->epoll_fd, EPOLL_CTL_ADD, fd, &event))
                return;
            shim->connections[i] = steal_fd(&fd);
            return;
        }
}

static void do_start(struct shim *shim, int connection, const struct request *request,
                     const int *fds) {
    struct failure failure = {.op_index = 0xffff};
    struct start_request start = {.flags = request->value, .connection = connection};
    const uint32_t wanted = start.flags == START_STREAMS    ? 3
                            : start.flags == START_TERMINAL ? 1
                                                            : 0;
    if (start.flags > START_TERMINAL || fds[0] < 0 || (wanted && fds[wanted] < 0)) {
        refuse(shim, connection, request, "start", "plan or streams are missing", EBADMSG);
        return;
    }
    memcpy(start.fds, fds + 1, sizeof start.fds);
    if (process_start(shim, request->process, fds[0], &start, &failure)) {
        struct event event;
        control_event(NULL, EVENT_FAILED, &event);
        event.process = request->process;
        event.failure = failure;
        control_broadcast(shim, &event, NULL);
    }
}

static void do_signal(struct shim *shim, int connection, const struct request *request) {
    struct process *process = process_find(shim, request->process);
    if (!process)
        refuse(shim, connection, request, "signal", "no such process", ESRCH);
    else if (syscall(SYS_pidfd_send_signal, process->pidfd, request->value, NULL, 0))
        refuse(shim, connection, request, "pidfd_send_signal", "process", errno);
}

static void do_status(struct shim *shim, int connection) {
    for (size_t i = 0; i < MAX_PROCESSES && shim->connections[connection] >= 0; i++) {
        struct event event;
        if (!shim->processes[i].used)
            continue;
        control_event(&shim->processes[i], EVENT_STATUS, &event);
        if (send_event(shim->connections[connection], &event, NULL, NULL, 0))
            control_drop(shim, connection);
    }
    if (shim->connections[connection] >= 0)
        control_send_ready(shim, shim->connections[connection]);
}

static void dispatch(struct shim *shim, int connection, const struct request *request,
                     const int *fds) {
    switch (request->type) {
    case REQUEST_START:
        do_start(shim, connection, request, fds);
        return;
    case REQUEST_SIGNAL:
        do_signal(shim, connection, request);
        return;
    case REQUEST_STATUS:
        do_status(shim, connection);
        return;
    case REQUEST_LOG_READ: {
        struct process *process = process_find(shim, request->process);
        if (process) /* else it has ended, and waits for nothing */
            process_log_read(shim, process, request->value);
        return;
    }
    case REQUEST_SHUTDOWN:
        if (process_count(shim) == 0)
            _exit(0);
        refuse(shim, connection, request, "shutdown", "processes live", EBUSY);
        return;
    }
    refuse(shim, connection, request, "request", "unknown type", EBADMSG);
}

void control_receive(struct shim *shim, int connection) {
    struct request request;
    char control[CMSG_SPACE((1 + MAX_START_FDS) * sizeof(int))];
    struct iovec part = {&request, sizeof request};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    ssize_t got = recvmsg(shim->connections[connection], &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        control_drop(shim, connection);
        return;
    }
    int fds[1 + MAX_START_FDS] = {-1, -1, -1, -1};
    size_t received = 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
            if (received < 1 + MAX_START_FDS)
                fds[received++] = fd;
            else
                close(fd);
        }
    }
    if (got != sizeof request || request.magic != CONTROL_MAGIC ||
        request.version != CONTROL_VERSION) {
        struct request nothing = {0};
        refuse(shim, connection, &nothing, "request", "not a request of version 1", EPROTO);
    } else {
        dispatch(shim, connection, &request, fds);
    }
    for (size_t i = 0; i < received; i++)
        close(fds[i]);
}
