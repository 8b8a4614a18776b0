/* The last step of a process: execve, by candidates of the plan or as a guest of a running process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "shim.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* What no program may inherit, and what binds its life to ours. */
static int detach(struct failure *failure) {
    /* All descriptors of ours are O_CLOEXEC; this is for one that a later change forgets. */
    if (syscall(SYS_close_range, 3, ~0U, 1U << 2 /* CLOSE_RANGE_CLOEXEC */) && errno != ENOSYS &&
        errno != EPERM)
        return FAIL(failure, "close_range", "descriptors");
    /* The container dies with its shim. After setresuid, which clears it (prctl(2)). */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
        return FAIL(failure, "prctl", "PR_SET_PDEATHSIG");
    return 0;
}

/* Whether another candidate may do; as execvp(3): go on after EACCES, but remember it. */
static bool goes_on(int *error) {
    if (errno == ENOENT || errno == ENOTDIR)
        return true;
    *error = errno;
    return errno == EACCES;
}

int do_exec(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct argument *a = op->arguments;
    int error = ENOENT;
    if (detach(failure))
        return -failure->error;
    for (uint32_t i = 0; i < a[2].list_length; i++) {
        execve(a[2].list[i], a[0].list, a[1].list);
        if (!goes_on(&error))
            break;
    }
    return fail(failure, "execve", a[0].list_length ? a[0].list[0] : "", error);
}

static const struct argument *environment_of(const struct process *process) {
    const struct op *last = &process->plan.ops[process->plan.op_count - 1];
    return last->code == OP_EXEC ? &last->arguments[1] : NULL;
}

static bool has_name(const char *variable, const char *other) {
    size_t length = strcspn(variable, "=");
    return strncmp(variable, other, length) == 0 && other[length] == '=';
}

/* The environment of `base`, then the variables of `more`, which win. Freed by execve. */
static char **merge(const struct argument *base, const struct argument *more) {
    char **merged = calloc((size_t)base->list_length + more->list_length + 1, sizeof *merged);
    size_t count = 0;
    if (!merged)
        return NULL;
    for (uint32_t i = 0; i < base->list_length; i++) {
        bool is_replaced = false;
        for (uint32_t j = 0; j < more->list_length; j++)
            is_replaced |= has_name(more->list[j], base->list[i]);
        if (!is_replaced)
            merged[count++] = base->list[i];
    }
    for (uint32_t i = 0; i < more->list_length; i++)
        merged[count++] = more->list[i];
    return merged;
}

static const char *path_of(char **environment) {
    for (; *environment; environment++)
        if (strncmp(*environment, "PATH=", 5) == 0)
            return *environment + 5;
    return DEFAULT_PATH;
}

int do_exec_in(struct child *child, const struct op *op, struct failure *failure) {
    const struct argument *a = op->arguments;
    const struct process *process = process_find((struct shim *)child->shim, (uint32_t)a[0].number);
    const struct argument *base = process ? environment_of(process) : NULL;
    int error = ENOENT;
    if (!base || !a[1].list_length)
        return fail(failure, "exec_in", "process whose environment is wanted is gone", ESRCH);
    const char *program = a[1].list[0];
    char **environment = merge(base, &a[2]);
    if (!environment)
        return FAIL(failure, "calloc", "environment");
    if (detach(failure))
        return -failure->error;
    if (strchr(program, '/')) {
        execve(program, a[1].list, environment);
        return FAIL(failure, "execve", program);
    }
    for (const char *at = path_of(environment);; at++) {
        char candidate[PATH_MAX];
        size_t length = strcspn(at, ":");
        int made = snprintf(candidate, sizeof candidate, "%.*s/%s", (int)length, at, program);
        if (length && made > 0 && (size_t)made < sizeof candidate) {
            execve(candidate, a[1].list, environment);
            if (!goes_on(&error))
                break;
        }
        at += length;
        if (!*at)
            break;
    }
    return fail(failure, "execve", program, error);
}
