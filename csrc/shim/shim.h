/* The shim: holds the processes of one task, interprets plans, knows no policy.
 *
 * Reading order: main.c (the loop), control.c (messages), plan.c (decoder), spawn.c (clone3 to
 * exec), ops.c (a function per operation), streams.c and logfile.c (logs). Before the first
 * container every failure is fatal and reported; after it none is.
 */
#ifndef FARGATELITE_SHIM_H
#define FARGATELITE_SHIM_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "control.h"
#include "exit_record.h"
#include "plan_ops.h"

#define MAX_PROCESSES                                                                              \
    64                    /* 10 containers (contract 8.4) and health checks and execs beside them  \
                           */
#define MAX_CONNECTIONS 8 /* the supervisor, and commands that look */
#define MAX_SLOTS 256     /* mounts cloned before pivot_root: image, files, groups, volumes */
#define MAX_ID_MAPS 16    /* owners of directories from outside: EFS access points */
#define MAX_ARGUMENTS 6   /* of one operation */
#define MAX_LISTED 65536  /* strings of all lists of a plan: argv and environment */
#define STREAM_BUFFER 65536
#define TRACE_BYTES ((PLAN_MAX_OPS + 1) * sizeof(uint64_t))

#define cleanup_close __attribute__((cleanup(close_descriptor)))

static inline void close_descriptor(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static inline int steal_fd(int *fd) {
    int stolen = *fd;
    *fd = -1;
    return stolen;
}

struct bytes {
    const char *data; /* strings end with a NUL that `length` does not count */
    uint32_t length;
};

/* One decoded argument; which member holds depends on the kind in plan_ops.h. */
struct argument {
    uint64_t number;
    struct bytes bytes;
    char **list; /* NULL-terminated */
    uint32_t list_length;
};

struct op {
    uint16_t code;
    uint16_t index;
    struct argument arguments[MAX_ARGUMENTS];
};

/* A plan in memory. All strings point into `buffer`; all lists into `listed`. */
struct plan {
    char *buffer;
    size_t buffer_bytes;
    char **listed;
    struct op *ops;
    uint16_t op_count;
};

/* A bounded log (logfile.c). */
struct log_file {
    int directory;
    int fd;
    char name[NAME_MAX - 21]; /* rotated files have a dot and 20 digits more */
    uint64_t begin;           /* place of the current file's first byte among all ever written */
    uint64_t bytes;           /* in the current file */
    uint64_t max_bytes;       /* of one file; 0: no bound */
    uint64_t max_files;       /* with the current one */
};

struct process {
    bool used;
    uint32_t number;
    pid_t pid;
    int pidfd;
    int status_fd;   /* failure of the child, or end of file at execve */
    int streams[2];  /* read ends: stdout, stderr; or the terminal in the first */
    int stdin_fd;    /* write end of a stdin that is kept open */
    int terminal_fd; /* where the child sends its terminal's master */
    struct log_file log;
    uint64_t hold_bytes;   /* 0: never wait for a reader of the log */
    uint64_t unread_bytes; /* written to the log, and not yet told to be read */
    bool is_held;          /* its streams are not read until the log is */
    bool running;          /* execve succeeded */
    bool failed;           /* `failure` holds */
    struct failure failure;
    struct plan plan; /* for exec_in: its environment may hold secrets, which are nowhere else */
    int connection;   /* whose guest it is, which goes with it; -1: nobody's */
    bool is_guest;    /* started by a command that looks in: it has no exit record */
    uint64_t started_at_ns;
    uint64_t setup_ns;
    uint64_t cloned_monotonic_ns;
    uint64_t dropped_log_bytes;
    char *captured;  /* NULL: not captured */
    uint64_t *trace; /* shared with the child: start, then the end of each operation; or NULL */
    int trace_fd;
    uint16_t trace_count;
    uint32_t captured_limit;
    uint32_t captured_bytes;
};

struct shim {
    int epoll_fd;
    int listen_fd;
    int run_fd; /* the task's run directory */
    int exits_fd;
    int null_fd;
    int pidns_fd; /* our own, to come back after entering a container's */
    int userns_fd;
    int netns_fd;
    int connections[MAX_CONNECTIONS];
    struct process processes[MAX_PROCESSES];
};

/* Fills a failure; evaluates to -errno, so that a failing call is one line. */
#define FAIL(failure_, call_, object_) fail((failure_), (call_), (object_), errno)
int fail(struct failure *failure, const char *call, const char *object, int error);

/* Descriptors that came with a request to start, in the order of start_flags; -1: none. */
#define MAX_START_FDS 3
struct start_request {
    uint32_t flags;
    int connection; /* who asked */
    int fds[MAX_START_FDS];
};

uint64_t wall_ns(void);
uint64_t monotonic_ns(void);

/* plan.c */
int plan_load(int fd, struct plan *plan, struct failure *failure);
int plan_decode(struct plan *plan, struct failure *failure);
void plan_free(struct plan *plan);
bool op_is_child(uint16_t code);

/* spawn.c */
int create_namespaces(struct shim *shim, uint64_t id_base, uint64_t id_count,
                      struct failure *failure);
int spawn_process(struct shim *shim, const struct plan *plan, const struct start_request *request,
                  struct process *process, struct failure *failure);
int receive_descriptor(int socket);

/* ops.c: executes one child operation. */
struct child {
    const struct shim *shim;
    int terminal_fd;    /* socket for the terminal's master; -1: nobody wants one */
    const int *id_maps; /* MAX_ID_MAPS descriptors, -1: none */
    int slots[MAX_SLOTS];
};
int child_execute(struct child *child, const struct op *op, struct failure *failure);

/* init.c: the two operations that make a PID 1. */
int do_init(struct child *child, const struct op *op, struct failure *failure);
int do_pause(struct child *child, const struct op *op, struct failure *failure);

/* exec.c */
int do_exec(struct child *child, const struct op *op, struct failure *failure);
int do_exec_in(struct child *child, const struct op *op, struct failure *failure);

/* terminal.c */
int do_terminal(struct child *child, const struct op *op, struct failure *failure);

/* logfile.c */
int log_open(struct log_file *log, int base, const char *path, uint64_t max_bytes,
             uint64_t max_files, struct failure *failure);
size_t log_write(struct log_file *log, const struct iovec *vectors, int count, size_t total);
void log_close(struct log_file *log);

/* streams.c */
void stream_read(struct process *process, int stream, bool drain);

/* control.c */
void control_accept(struct shim *shim);
void control_receive(struct shim *shim, int connection);
void control_drop(struct shim *shim, int connection);
void control_broadcast(struct shim *shim, const struct event *event, const char *output);
void control_send_ready(struct shim *shim, int fd);
void control_event(const struct process *process, uint16_t type, struct event *event);

/* main.c */
struct process *process_find(struct shim *shim, uint32_t number);
int process_start(struct shim *shim, uint32_t number, int plan_fd,
                  const struct start_request *request, struct failure *failure);
size_t process_count(const struct shim *shim);
void process_log_read(struct shim *shim, struct process *process, uint64_t bytes);
void processes_end_guests(struct shim *shim, int connection);
void processes_release(struct shim *shim);

#endif
