/* One shim per task: parent of its containers, keeper of its namespaces, writer of its logs and
 * exit records.
 *
 *     fargatelite-shim ID_BASE ID_COUNT    descriptors: 3 control, 4 listening socket, 5 run
 * directory
 *
 * It is started from a sealed memfd (CVE-2019-5736), reads no configuration and no JSON, and ends
 * when nobody is connected and nothing runs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "shim.h"

enum { CONTROL_FD = 3, LISTEN_FD = 4, RUN_FD = 5 };

/* epoll data: what a descriptor is. Connections are 100 + i; of process i it is 1000 + 8 i + kind.
 */
enum { DATA_LISTEN = 1, DATA_CONNECTION = 100, DATA_PROCESS = 1000 };
enum {
    KIND_STDOUT = 0,
    KIND_STDERR = 1,
    KIND_STATUS = 2,
    KIND_PIDFD = 3,
    KIND_TERMINAL = 4,
    KINDS = 8
};

int fail(struct failure *failure, const char *call, const char *object, int error) {
    failure->error = error;
    snprintf(failure->call, sizeof failure->call, "%s", call);
    snprintf(failure->object, sizeof failure->object, "%s", object);
    return -error;
}

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t wall_ns(void) {
    return clock_ns(CLOCK_REALTIME);
}

uint64_t monotonic_ns(void) {
    return clock_ns(CLOCK_MONOTONIC);
}

static uint32_t crc32_ieee(const void *data, size_t length) {
    const unsigned char *byte = data;
    uint32_t crc = ~0u;
    while (length--) {
        crc ^= *byte++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

struct process *process_find(struct shim *shim, uint32_t number) {
    for (size_t i = 0; i < MAX_PROCESSES; i++)
        if (shim->processes[i].used && shim->processes[i].number == number)
            return &shim->processes[i];
    return NULL;
}

size_t process_count(const struct shim *shim) {
    size_t count = 0;
    for (size_t i = 0; i < MAX_PROCESSES; i++)
        count += shim->processes[i].used;
    return count;
}

static void process_clear(struct process *process) {
    memset(process, 0, sizeof *process);
    process->pidfd = process->status_fd = process->trace_fd = -1;
    process->log.fd = process->log.directory = -1;
    process->streams[0] = process->streams[1] = process->stdin_fd = process->terminal_fd = -1;
}

static void process_free(struct process *process) {
    close_descriptor(&process->pidfd);
    close_descriptor(&process->status_fd);
    log_close(&process->log);
    close_descriptor(&process->trace_fd);
    if (process->trace)
        munmap(process->trace, TRACE_BYTES);
    close_descriptor(&process->streams[0]);
    close_descriptor(&process->streams[1]);
    close_descriptor(&process->stdin_fd);
    close_descriptor(&process->terminal_fd);
    free(process->captured);
    plan_free(&process->plan);
    process_clear(process);
}

static int watch(struct shim *shim, int fd, uint64_t data, struct failure *failure) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = data};
    return epoll_ctl(shim->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? FAIL(failure, "epoll_ctl", "add")
                                                                : 0;
}

static int watch_process(struct shim *shim, size_t index, struct failure *failure) {
    struct process *process = &shim->processes[index];
    const int fds[] = {process->streams[0], process->streams[1], process->status_fd, process->pidfd,
                       process->terminal_fd};
    for (size_t kind = 0; kind < sizeof fds / sizeof *fds; kind++)
        if (fds[kind] >= 0 && watch(shim, fds[kind], DATA_PROCESS + index * KINDS + kind, failure))
            return -failure->error;
    return 0;
}

int process_start(struct shim *shim, uint32_t number, int plan_fd,
                  const struct start_request *request, struct failure *failure) {
    size_t index = 0;
    if (process_find(shim, number))
        return fail(failure, "start", "process number is in use", EEXIST);
    while (index < MAX_PROCESSES && shim->processes[index].used)
        index++;
    if (index == MAX_PROCESSES)
        return fail(failure, "start", "too many processes in this task", EAGAIN);

    struct process *process = &shim->processes[index];
    process_clear(process);
    int result = plan_load(plan_fd, &process->plan, failure);
    if (!result) {
        process->used = true;
        process->number = number;
        process->is_guest = request->flags != 0;
        process->connection = process->is_guest ? request->connection : -1;
        result = spawn_process(shim, &process->plan, request, process, failure);
        if (!result)
            result = watch_process(shim, index, failure);
        if (result && process->pid > 0) {
            kill(process->pid, SIGKILL);
            waitpid(process->pid, NULL, 0);
        }
    }
    if (result)
        process_free(process);
    return result;
}

/* A trace is for a person who looks on: one that cannot be written is shorter, nothing else. */
static void write_trace(struct process *process) {
    size_t length = (process->trace_count + 1u) * sizeof *process->trace;
    if (process->trace && write(process->trace_fd, process->trace, length) != (ssize_t)length)
        process->trace_count = 0;
    close_descriptor(&process->trace_fd);
}

/* The child's failure, or end of file: execve closed the pipe, the program runs. */
static void on_status(struct shim *shim, struct process *process) {
    struct event event;
    ssize_t got = read(process->status_fd, &process->failure, sizeof process->failure);
    close_descriptor(&process->status_fd);
    write_trace(process);
    if (got == (ssize_t)sizeof process->failure) {
        process->failed = true;
        return; /* told when the child has been reaped */
    }
    process->running = true;
    process->setup_ns = monotonic_ns() - process->cloned_monotonic_ns;
    control_event(process, EVENT_STARTED, &event);
    control_broadcast(shim, &event, NULL);
}

/* The child's terminal: its output is the process's stdout from here on. */
static void on_terminal(struct shim *shim, struct process *process) {
    struct failure failure;
    int master = receive_descriptor(process->terminal_fd);
    close_descriptor(&process->terminal_fd);
    if (master < 0)
        return; /* the child failed before; its failure says why */
    close_descriptor(&process->streams[0]);
    process->streams[0] = master;
    size_t index = (size_t)(process - shim->processes);
    if (watch(shim, master, DATA_PROCESS + index * KINDS + KIND_STDOUT, &failure))
        close_descriptor(&process->streams[0]);
}

static uint32_t saturate(long value) {
    return (uint64_t)value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

static void write_exit_record(struct shim *shim, const struct process *process, int status,
                              uint64_t stopped_at_ns, const struct rusage *usage) {
    struct exit_record record = {
        .magic = EXIT_RECORD_MAGIC,
        .version = EXIT_RECORD_VERSION,
        .length = sizeof record,
        .process = process->number,
        .pid = process->pid,
        .wait_status = status,
        .started_at_ns = process->started_at_ns,
        .stopped_at_ns = stopped_at_ns,
        .user_us = (uint64_t)usage->ru_utime.tv_sec * 1000000u + (uint64_t)usage->ru_utime.tv_usec,
        .system_us =
            (uint64_t)usage->ru_stime.tv_sec * 1000000u + (uint64_t)usage->ru_stime.tv_usec,
        .max_rss_kib = (uint64_t)usage->ru_maxrss,
        .read_sectors = saturate(usage->ru_inblock),
        .written_sectors = saturate(usage->ru_oublock),
        .dropped_log_bytes = process->dropped_log_bytes,
    };
    record.crc32 = crc32_ieee(&record, offsetof(struct exit_record, crc32));
    /* After the first container nothing is fatal: a disk that is full loses the record, not the
     * task; the event still tells the exit to whoever is connected. */
    if (write(shim->exits_fd, &record, sizeof record) == (ssize_t)sizeof record)
        fdatasync(shim->exits_fd);
}

static void on_exit_of(struct shim *shim, struct process *process) {
    struct rusage usage = {0};
    struct event event;
    int status = 0;
    uint64_t stopped_at_ns = wall_ns();
    if (wait4(process->pid, &status, WNOHANG, &usage) != process->pid)
        return;
    if (process->status_fd >= 0)
        on_status(shim, process);
    if (process->terminal_fd >= 0)
        on_terminal(shim, process);
    stream_read(process, 0, true);
    stream_read(process, 1, true);
    if (process->failed) {
        control_event(process, EVENT_FAILED, &event);
        event.stopped_at_ns = stopped_at_ns;
        control_broadcast(shim, &event, NULL);
    } else {
        /* Health checks and guests are no part of the task's record. */
        if (!process->captured && !process->is_guest)
            write_exit_record(shim, process, status, stopped_at_ns, &usage);
        control_event(process, EVENT_EXITED, &event);
        event.stopped_at_ns = stopped_at_ns;
        event.wait_status = status;
        event.output_bytes = process->captured_bytes;
        control_broadcast(shim, &event, process->captured);
    }
    process_free(process);
}

/* Stops reading a process's streams: its pipes fill, and then its writes wait. Taken out of the set
 * rather than silenced, since epoll reports a hang-up whatever it was asked for. */
static void hold(struct shim *shim, struct process *process) {
    for (int stream = 0; stream < 2; stream++)
        if (process->streams[stream] >= 0)
            epoll_ctl(shim->epoll_fd, EPOLL_CTL_DEL, process->streams[stream], NULL);
    process->is_held = true;
}

static void release(struct shim *shim, struct process *process) {
    struct failure failure;
    size_t index = (size_t)(process - shim->processes);
    process->is_held = false;
    for (size_t stream = 0; stream < 2; stream++)
        if (process->streams[stream] >= 0 &&
            watch(shim, process->streams[stream], DATA_PROCESS + index * KINDS + stream, &failure))
            close_descriptor(&process->streams[stream]);
}

/* Somebody has read so much more of the log. */
void process_log_read(struct shim *shim, struct process *process, uint64_t bytes) {
    /* What it read of the run before a restart is not this run's. */
    process->unread_bytes -= bytes < process->unread_bytes ? bytes : process->unread_bytes;
    if (process->is_held && process->unread_bytes <= process->hold_bytes / 2)
        release(shim, process);
}

/* Nobody is left who looks in: what was started for that ends, as a session's programs do. */
void processes_end_guests(struct shim *shim, int connection) {
    for (size_t i = 0; i < MAX_PROCESSES; i++) {
        struct process *process = &shim->processes[i];
        if (!process->used || !process->is_guest || process->connection != connection)
            continue;
        process->connection = -1;
        syscall(SYS_pidfd_send_signal, process->pidfd, SIGKILL, NULL, 0);
    }
}

/* Nobody is left who could read: nothing waits for that. */
void processes_release(struct shim *shim) {
    for (size_t i = 0; i < MAX_PROCESSES; i++) {
        shim->processes[i].hold_bytes = 0;
        if (shim->processes[i].used && shim->processes[i].is_held)
            release(shim, &shim->processes[i]);
    }
}

static void on_process(struct shim *shim, uint64_t data) {
    struct process *process = &shim->processes[data / KINDS];
    if (!process->used)
        return; /* an event of the same batch that freed it */
    switch (data % KINDS) {
    case KIND_STDOUT:
    case KIND_STDERR:
        stream_read(process, (int)(data % KINDS), false);
        if (process->hold_bytes && process->unread_bytes > process->hold_bytes && !process->is_held)
            hold(shim, process);
        return;
    case KIND_STATUS:
        if (process->status_fd >= 0)
            on_status(shim, process);
        return;
    case KIND_PIDFD:
        on_exit_of(shim, process);
        return;
    case KIND_TERMINAL:
        if (process->terminal_fd >= 0)
            on_terminal(shim, process);
        return;
    }
}

static bool is_needed(const struct shim *shim) {
    if (process_count(shim))
        return true;
    for (int i = 0; i < MAX_CONNECTIONS; i++)
        if (shim->connections[i] >= 0)
            return true;
    return false;
}

static void loop(struct shim *shim) {
    while (is_needed(shim)) {
        struct epoll_event events[32];
        int count = epoll_wait(shim->epoll_fd, events, 32, -1);
        /* Streams first: what a process wrote is in the log before its exit is told. */
        for (int pass = 0; pass < 2; pass++)
            for (int i = 0; i < count; i++) {
                uint64_t data = events[i].data.u64;
                bool is_exit = data >= DATA_PROCESS && (data - DATA_PROCESS) % KINDS == KIND_PIDFD;
                if (is_exit != (pass == 1))
                    continue;
                if (data == DATA_LISTEN)
                    control_accept(shim);
                else if (data >= DATA_PROCESS)
                    on_process(shim, data - DATA_PROCESS);
                else if (shim->connections[data - DATA_CONNECTION] >= 0)
                    control_receive(shim, (int)(data - DATA_CONNECTION));
            }
    }
}

static int prepare(struct shim *shim, char **argv, struct failure *failure) {
    uint64_t id_base = strtoull(argv[1], NULL, 10), id_count = strtoull(argv[2], NULL, 10);
    /* Out of a task's reach: no ptrace, no /proc/<pid>/mem or fd, no core dump. */
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
        return FAIL(failure, "prctl", "PR_SET_DUMPABLE");
    /* A program that embeds the library may have opened descriptors without O_CLOEXEC. */
    if (syscall(SYS_close_range, RUN_FD + 1, ~0U, 0))
        return FAIL(failure, "close_range", "inherited descriptors");
    for (int fd = CONTROL_FD; fd <= RUN_FD; fd++)
        if (fcntl(fd, F_SETFD, FD_CLOEXEC))
            return FAIL(failure, "fcntl", "inherited descriptor");
    shim->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (shim->null_fd < 0)
        return FAIL(failure, "open", "/dev/null");
    shim->pidns_fd = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
    if (shim->pidns_fd < 0)
        return FAIL(failure, "open", "/proc/self/ns/pid");
    shim->exits_fd =
        openat(RUN_FD, "exits", O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (shim->exits_fd < 0)
        return FAIL(failure, "openat", "exits");
    shim->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (shim->epoll_fd < 0)
        return FAIL(failure, "epoll_create1", "loop");
    if (watch(shim, LISTEN_FD, DATA_LISTEN, failure) ||
        watch(shim, CONTROL_FD, DATA_CONNECTION, failure))
        return -failure->error;
    return create_namespaces(shim, id_base, id_count, failure);
}

int main(int argc, char **argv) {
    static struct shim shim;
    struct failure failure = {.op_index = 0xffff};
    if (argc != 3) {
        fputs("fargatelite-shim is started by fargatelite, not by hand\n", stderr);
        return 2;
    }
    /* Executed by descriptor, it would be called after the descriptor's number in ps(1). */
    prctl(PR_SET_NAME, "fargatelite-shi");
    setsid();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    shim.listen_fd = LISTEN_FD;
    shim.run_fd = RUN_FD;
    shim.userns_fd = shim.netns_fd = -1;
    shim.connections[0] = CONTROL_FD;
    for (int i = 1; i < MAX_CONNECTIONS; i++)
        shim.connections[i] = -1;
    for (size_t i = 0; i < MAX_PROCESSES; i++)
        process_clear(&shim.processes[i]);
    if (prepare(&shim, argv, &failure)) {
        struct event event;
        control_event(NULL, EVENT_FAILED, &event);
        event.process = ~0u;
        event.failure = failure;
        control_broadcast(&shim, &event, NULL);
        return 1;
    }
    control_send_ready(&shim, CONTROL_FD);
    loop(&shim);
    return 0;
}
