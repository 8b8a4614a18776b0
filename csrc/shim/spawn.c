/* From a plan to a running process: clone3, the child's operations, execve. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "shim.h"

static pid_t clone3(uint64_t flags, int *pidfd, int cgroup_fd) {
    struct clone_args args = {
        .flags = flags | CLONE_PIDFD,
        .pidfd = (uint64_t)(uintptr_t)pidfd,
        .exit_signal = SIGCHLD,
    };
    if (cgroup_fd >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)cgroup_fd;
    }
    return (pid_t)syscall(SYS_clone3, &args, sizeof args);
}

/* Ids from `first` inside on are those from `base` on outside. */
static int write_map(pid_t pid, const char *name, uint64_t first, uint64_t base, uint64_t count,
                     struct failure *failure) {
    char path[64], line[96];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    int length = snprintf(line, sizeof line, "%llu %llu %llu\n", (unsigned long long)first,
                          (unsigned long long)base, (unsigned long long)count);
    cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return FAIL(failure, "open", path);
    if (write(fd, line, (size_t)length) != length)
        return FAIL(failure, "write", path);
    return 0;
}

static int open_namespace(pid_t pid, const char *name, int *out, struct failure *failure) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/%s", (int)pid, name);
    *out = open(path, O_RDONLY | O_CLOEXEC);
    return *out < 0 ? FAIL(failure, "open", path) : 0;
}

/* A short-lived child that has namespaces of its own until `hold` is closed. */
static pid_t clone_holder(uint64_t flags, int hold[2], int *pidfd, struct failure *failure) {
    if (pipe2(hold, O_CLOEXEC))
        return FAIL(failure, "pipe2", "namespace holder");
    pid_t pid = clone3(flags, pidfd, -1);
    if (pid == 0) {
        char byte;
        close(hold[1]);
        _exit(read(hold[0], &byte, 1) == 0 ? 0 : 1);
    }
    if (pid < 0) {
        int error = errno;
        close(hold[0]);
        close(hold[1]);
        return fail(failure, "clone3", "namespaces", error);
    }
    return pid;
}

static void end_holder(pid_t pid, int hold[2]) {
    close(hold[0]);
    close(hold[1]);
    waitpid(pid, NULL, 0);
}

/* A holder whose namespaces are the work of `uid`. What a task uses up of inotify, message queues,
 * queued signals and the like is charged beyond its own user namespace to whoever made that
 * (ucounts): made by root, one task could take all that root and every other task have.
 * Capabilities stay meanwhile, since hosts may refuse user namespaces to others. */
static pid_t clone_holder_as(uid_t uid, uint64_t flags, int hold[2], int *pidfd,
                             struct failure *failure) {
    uid_t own = geteuid();
    int bits = prctl(PR_GET_SECUREBITS);
    if (bits < 0 || prctl(PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP))
        return FAIL(failure, "prctl", "PR_SET_SECUREBITS");
    if (syscall(SYS_setresuid, -1, uid, -1))
        return FAIL(failure, "setresuid", "owner of the task's user namespace");
    pid_t pid = clone_holder(flags, hold, pidfd, failure);
    /* Another effective user makes a process dumpable as fs.suid_dumpable says. */
    if (syscall(SYS_setresuid, -1, own, -1) || prctl(PR_SET_SECUREBITS, bits) ||
        prctl(PR_SET_DUMPABLE, 0)) {
        int error = errno;
        if (pid > 0)
            end_holder(pid, hold);
        return fail(failure, "setresuid", "back", error);
    }
    return pid;
}

/* The task's user namespace (ids 0..count-1 are base.. outside) and the network namespace that it
 * owns; open descriptors keep them. */
int create_namespaces(struct shim *shim, uint64_t id_base, uint64_t id_count,
                      struct failure *failure) {
    int hold[2];
    cleanup_close int pidfd = -1;
    pid_t pid =
        clone_holder_as((uid_t)id_base, CLONE_NEWUSER | CLONE_NEWNET, hold, &pidfd, failure);
    if (pid < 0)
        return pid;
    int result = write_map(pid, "uid_map", 0, id_base, id_count, failure);
    if (!result)
        result = write_map(pid, "gid_map", 0, id_base, id_count, failure);
    if (!result)
        result = open_namespace(pid, "user", &shim->userns_fd, failure);
    if (!result)
        result = open_namespace(pid, "net", &shim->netns_fd, failure);
    end_holder(pid, hold);
    return result;
}

/* A user namespace that no process is in: how one owner on disk looks through a mount
 * (mount_setattr(2), "ID-mapped mounts"). */
static int create_id_map(const struct argument *a, int *out, struct failure *failure) {
    int hold[2];
    cleanup_close int pidfd = -1;
    pid_t pid = clone_holder(CLONE_NEWUSER, hold, &pidfd, failure);
    if (pid < 0)
        return pid;
    int result = write_map(pid, "uid_map", a[1].number, a[2].number, 1, failure);
    if (!result)
        result = write_map(pid, "gid_map", a[3].number, a[4].number, 1, failure);
    if (!result)
        result = open_namespace(pid, "user", out, failure);
    end_holder(pid, hold);
    return result;
}

/* What the parent's operations ask for. */
struct request_parts {
    uint64_t flags;
    const char *cgroup;
    const char *log;
    uint64_t log_max_bytes;
    uint64_t log_max_files;
    uint64_t log_hold_bytes;
    const char *trace;
    uint64_t capture_bytes;
    bool has_owner;
    bool has_stdin;
    bool has_terminal;
    uid_t stream_uid;
    gid_t stream_gid;
    const struct process *join;
    int id_maps[MAX_ID_MAPS];
};

static void close_id_maps(struct request_parts *parts) {
    for (int i = 0; i < MAX_ID_MAPS; i++)
        close_descriptor(&parts->id_maps[i]);
}

static int read_parent_ops(struct shim *shim, const struct plan *plan, struct request_parts *parts,
                           struct failure *failure) {
    for (uint16_t i = 0; i < plan->op_count; i++) {
        const struct op *op = &plan->ops[i];
        const struct argument *a = op->arguments;
        if (op->code == OP_TERMINAL)
            parts->has_terminal = true;
        if (op_is_child(op->code))
            continue;
        failure->op_index = i;
        failure->op_code = op->code;
        switch (op->code) {
        case OP_NAMESPACES:
            parts->flags = a[0].number;
            parts->cgroup = a[1].bytes.length ? a[1].bytes.data : NULL;
            break;
        case OP_JOIN_PID:
            parts->join = process_find(shim, (uint32_t)a[0].number);
            if (!parts->join || !parts->join->running)
                return fail(failure, "join_pid", "process to join is not running", ESRCH);
            break;
        case OP_LOG:
            parts->log = a[0].bytes.data;
            parts->log_max_bytes = a[1].number;
            parts->log_max_files = a[2].number;
            break;
        case OP_LOG_HOLD:
            parts->log_hold_bytes = a[0].number;
            break;
        case OP_TRACE:
            parts->trace = a[0].bytes.data;
            break;
        case OP_CAPTURE:
            if (a[0].number > EVENT_OUTPUT_BYTES)
                return fail(failure, "capture", "more than an event can carry", E2BIG);
            parts->capture_bytes = a[0].number;
            break;
        case OP_STDIN:
            parts->has_stdin = true;
            break;
        case OP_ID_MAP:
            if (a[0].number >= MAX_ID_MAPS || parts->id_maps[a[0].number] >= 0)
                return fail(failure, "id_map", "number is in use or out of range", EINVAL);
            if (create_id_map(a, &parts->id_maps[a[0].number], failure))
                return -failure->error;
            break;
        case OP_STREAMS:
            parts->has_owner = true;
            parts->stream_uid = (uid_t)a[0].number;
            parts->stream_gid = (gid_t)a[1].number;
            break;
        }
    }
    failure->op_index = 0xffff;
    failure->op_code = 0;
    return 0;
}

/* A program that opens /dev/stdout (nginx's access log is a link to it) opens the pipe's inode
 * anew, so the pipe must belong to the container's user, not to us. */
static int make_stream(const struct request_parts *parts, int ends[2], struct failure *failure) {
    if (pipe2(ends, O_CLOEXEC))
        return FAIL(failure, "pipe2", "stream");
    if (parts->has_owner && fchown(ends[1], parts->stream_uid, parts->stream_gid))
        return FAIL(failure, "fchown", "stream");
    if (fcntl(ends[0], F_SETFL, O_NONBLOCK))
        return FAIL(failure, "fcntl", "stream");
    return 0;
}

static void reset_signals(void) {
    sigset_t none;
    for (int number = 1; number < NSIG; number++)
        signal(number,
               SIG_DFL); /* KILL, STOP and the two of glibc refuse: nothing to reset there */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* In the child: never returns. Only async-signal-safe calls: the plan is decoded, memory is there.
 */
static void run_child(struct shim *shim, const struct plan *plan, uint64_t *trace,
                      const int streams[3], const int *id_maps, int terminal, int status) {
    struct failure failure = {.op_index = 0xffff};
    struct child child = {.shim = shim, .terminal_fd = terminal, .id_maps = id_maps};
    int result = 0;
    for (int i = 0; i < MAX_SLOTS; i++)
        child.slots[i] = -1;
    reset_signals();
    if (dup2(streams[0], 0) < 0 || dup2(streams[1], 1) < 0 || dup2(streams[2], 2) < 0)
        result = FAIL(&failure, "dup2", "standard streams");
    for (uint16_t i = 0; !result && i < plan->op_count; i++) {
        const struct op *op = &plan->ops[i];
        if (!op_is_child(op->code))
            continue;
        failure.op_index = i;
        failure.op_code = op->code;
        /* execve does not come back: its time is that of its start. */
        if (trace && op->code == OP_EXEC)
            trace[i + 1] = monotonic_ns();
        result = child_execute(&child, op, &failure);
        if (trace)
            trace[i + 1] = monotonic_ns();
    }
    /* execve does not return on success, so this is a failure; a write below PIPE_BUF is whole. */
    ssize_t wrote = write(status, &failure, sizeof failure);
    _exit(wrote == (ssize_t)sizeof failure ? 125 : 124);
}

/* Starts `process` as the plan says. On return 0 it is cloned and on its way; its failure or its
 * execve arrives on process->status_fd. */
int spawn_process(struct shim *shim, const struct plan *plan, const struct start_request *request,
                  struct process *process, struct failure *failure) {
    __attribute__((cleanup(close_id_maps))) struct request_parts parts = {0};
    cleanup_close int cgroup_fd = -1;
    cleanup_close int in_read = -1, out_write = -1, err_write = -1, status_write = -1;
    cleanup_close int terminal_end = -1;
    int streams[3] = {shim->null_fd, -1, -1};
    int terminal = -1;
    int ends[2];

    for (int i = 0; i < MAX_ID_MAPS; i++)
        parts.id_maps[i] = -1;
    if (read_parent_ops(shim, plan, &parts, failure))
        return -failure->error;
    if (parts.log) {
        if (log_open(&process->log, shim->run_fd, parts.log, parts.log_max_bytes,
                     parts.log_max_files, failure))
            return -failure->error;
        process->hold_bytes = parts.log_hold_bytes;
    }
    if (parts.capture_bytes) {
        process->captured = malloc(parts.capture_bytes);
        if (!process->captured)
            return FAIL(failure, "malloc", "captured output");
        process->captured_limit = (uint32_t)parts.capture_bytes;
    }
    if (parts.trace) {
        process->trace_fd = openat(shim->run_fd, parts.trace,
                                   O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (process->trace_fd < 0)
            return FAIL(failure, "openat", parts.trace);
        process->trace =
            mmap(NULL, TRACE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (process->trace == MAP_FAILED) {
            process->trace = NULL;
            return FAIL(failure, "mmap", "trace");
        }
        process->trace_count = plan->op_count;
    }
    if (parts.cgroup && (cgroup_fd = open(parts.cgroup, O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0)
        return FAIL(failure, "open", parts.cgroup);
    if (request->flags & START_STREAMS) {
        memcpy(streams, request->fds, sizeof streams);
    } else {
        if (make_stream(&parts, ends, failure))
            return -failure->error;
        process->streams[0] = ends[0];
        streams[1] = out_write = ends[1];
        if (make_stream(&parts, ends, failure))
            return -failure->error;
        process->streams[1] = ends[0];
        streams[2] = err_write = ends[1];
        if (parts.has_stdin) {
            if (pipe2(ends, O_CLOEXEC))
                return FAIL(failure, "pipe2", "stdin");
            streams[0] = in_read = ends[0];
            process->stdin_fd = ends[1];
            if (parts.has_owner && fchown(in_read, parts.stream_uid, parts.stream_gid))
                return FAIL(failure, "fchown", "stdin");
        }
    }
    if (request->flags & START_TERMINAL) {
        terminal = request->fds[0];
    } else if (parts.has_terminal) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends))
            return FAIL(failure, "socketpair", "terminal");
        process->terminal_fd = ends[0];
        terminal = terminal_end = ends[1];
    }
    if (pipe2(ends, O_CLOEXEC))
        return FAIL(failure, "pipe2", "status");
    process->status_fd = ends[0];
    status_write = ends[1];

    if (parts.join && setns(parts.join->pidfd, CLONE_NEWPID))
        return FAIL(failure, "setns", "pid namespace of the process to join");
    process->started_at_ns = wall_ns();
    process->cloned_monotonic_ns = monotonic_ns();
    if (process->trace)
        process->trace[0] = process->cloned_monotonic_ns;
    process->pid = clone3(parts.flags, &process->pidfd, cgroup_fd);
    if (process->pid == 0)
        run_child(shim, plan, process->trace, streams, parts.id_maps, terminal, status_write);
    int error = errno;
    if (parts.join && setns(shim->pidns_fd, CLONE_NEWPID))
        return FAIL(failure, "setns", "own pid namespace"); /* cannot fail: it is our own */
    if (process->pid < 0)
        return fail(failure, "clone3", parts.cgroup ? parts.cgroup : "process", error);
    return 0;
}
