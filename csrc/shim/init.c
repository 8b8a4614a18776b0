/* PID 1 of a container (initProcessEnabled) or of a task (pidMode task): reaps whoever is orphaned,
 * forwards signals, and ends as its main process does.
 *
 * It has the container's user, filter and capabilities by then. Its memory is a copy of the shim's,
 * which stays out of reach: not dumpable, so neither ptrace nor /proc/1/mem open to anybody without
 * privileges in the host's user namespace.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "shim.h"

#define SIGNAL_BASE 128 /* an exit status for a death by signal, as shells and tini have it */

/* Reaps all that has ended; whether `main_process` was among them. */
static bool reap(pid_t main_process, int *status) {
    bool ended = false;
    for (;;) {
        int found = 0;
        pid_t pid = waitpid(-1, &found, WNOHANG);
        if (pid <= 0)
            return ended;
        if (pid == main_process) {
            *status = found;
            ended = true;
        }
    }
}

static void run_init(pid_t main_process) {
    sigset_t all;
    int status = 0;
    sigfillset(&all); /* blocked already: nothing is lost between fork and here */
    syscall(SYS_close_range, 3, ~0U, 0);
    prctl(PR_SET_NAME, "init", 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    for (;;) {
        int number = sigwaitinfo(&all, NULL);
        if (number == SIGCHLD || number < 0) {
            if (reap(main_process, &status) && main_process > 0)
                _exit(WIFSIGNALED(status) ? SIGNAL_BASE + WTERMSIG(status) : WEXITSTATUS(status));
        } else if (main_process > 0) {
            kill(main_process, number);
        }
    }
}

static void block_signals(sigset_t *old) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, old);
}

int do_init(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    (void)op;
    sigset_t old;
    block_signals(&old);
    pid_t pid = fork();
    if (pid < 0)
        return FAIL(failure, "fork", "process beside init");
    if (pid > 0)
        run_init(pid);
    if (isatty(STDIN_FILENO)) {
        /* The terminal's signals go to the main process, not to init (tcsetpgrp(3)). */
        setpgid(0, 0);
        if (tcsetpgrp(STDIN_FILENO, getpgrp()))
            return FAIL(failure, "tcsetpgrp", "terminal");
    }
    sigprocmask(SIG_SETMASK, &old, NULL);
    return 0;
}

int do_pause(struct child *child, const struct op *op, struct failure *failure) {
    (void)op;
    sigset_t old;
    block_signals(&old);
    for (int fd = 0; fd < 3; fd++)
        if (dup2(child->shim->null_fd, fd) < 0)
            return FAIL(failure, "dup2", "standard streams");
    run_init(0);
    return 0;
}
