/* Runs a command and lets one system call of it, or of any process that comes of it, fail or be its
 * caller's last: the n-th of all those that the chosen program makes.
 *
 * strace(1) counts for each thread of its own (inject=...:when=N), so the n-th call of a program
 * with threads would be as many faults as it has threads. Here one counter stands for all, so
 * exactly one call fails, and points can be enumerated from 1 until none is hit.
 *
 * The driver below it arms and disarms by prctl(2) with an option that no kernel has:
 *   prctl(ARM, n, what, program, call)  count from now; n 0: only count
 *   prctl(DISARM)                       how many were counted
 * `what`: 0 fails with the call's own errno of the table, -1 kills, else this errno.
 * `program`: 0 Python, 1 the shim. `call`: a system call's number, -1 for all of the table.
 * What was hit is written to the report file (number, name, object), or all that was counted if n
 * is 0.
 *
 * Only calls of the table stop a process (seccomp(2), SECCOMP_RET_TRACE). */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARM 0x464c5441
#define DISARM 0x464c5442
#define GET_TERMINAL 0x5401 /* TCGETS of asm-generic/ioctls.h */
#define PATH_BYTES 256

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "x86-64 or aarch64"
#endif

static const struct call {
    int number;
    int error;
    const char *name;
    int path; /* which argument is one, or -1 */
} calls[] = {
#define CALL(name, error, path)                                                                    \
    { SYS_##name, error, #name, path }
    CALL(openat, EMFILE, 1),
    CALL(mkdirat, ENOSPC, 1),
    CALL(linkat, ENOSPC, 3),
    CALL(symlinkat, ENOSPC, 2),
    CALL(unlinkat, EBUSY, 1),
    CALL(fchownat, EPERM, 1),
    CALL(ftruncate, ENOSPC, -1),
    CALL(fallocate, ENOSPC, -1),
    CALL(write, ENOSPC, -1),
    CALL(pwrite64, ENOSPC, -1),
    CALL(sendfile, ENOSPC, -1),
    CALL(copy_file_range, ENOSPC, -1),
    CALL(fsync, EIO, -1),
    CALL(fdatasync, EIO, -1),
    CALL(memfd_create, EMFILE, -1),
    CALL(pipe2, EMFILE, -1),
    CALL(socket, EMFILE, -1),
    CALL(socketpair, EMFILE, -1),
    CALL(bind, EADDRINUSE, -1),
    CALL(listen, EADDRINUSE, -1),
    CALL(connect, ECONNREFUSED, -1),
    CALL(sendto, ENOBUFS, -1),
    CALL(sendmsg, ENOBUFS, -1),
    CALL(recvmsg, ENOMEM, -1),
    CALL(setsockopt, ENOMEM, -1),
    CALL(eventfd2, EMFILE, -1),
    CALL(epoll_create1, EMFILE, -1),
    CALL(epoll_ctl, ENOSPC, -1),
    CALL(timerfd_create, EMFILE, -1),
    CALL(inotify_init1, EMFILE, -1),
    CALL(inotify_add_watch, ENOSPC, 1),
    CALL(pidfd_open, EMFILE, -1),
    CALL(pidfd_send_signal, EPERM, -1),
    CALL(clone, EAGAIN, -1),
    CALL(clone3, EAGAIN, -1),
    CALL(execve, ENOENT, 0),
    CALL(unshare, ENOSPC, -1),
    CALL(setns, EPERM, -1),
    CALL(mount, EIO, 1),
    CALL(umount2, EBUSY, 0),
    CALL(pivot_root, EINVAL, 0),
    CALL(open_tree, EMFILE, 1),
    CALL(move_mount, EBUSY, -1),
    CALL(fsopen, EMFILE, -1),
    CALL(fsconfig, EIO, -1),
    CALL(fsmount, EMFILE, -1),
    CALL(mount_setattr, EINVAL, -1),
    CALL(mknodat, ENOSPC, 1),
    CALL(chdir, EACCES, 0),
    CALL(sethostname, EPERM, -1),
    CALL(prctl, EPERM, -1),
    CALL(seccomp, EINVAL, -1),
    CALL(capset, EPERM, -1),
    CALL(setgroups, EPERM, -1),
    CALL(setresuid, EAGAIN, -1),
    CALL(setresgid, EAGAIN, -1),
    CALL(prlimit64, EPERM, -1),
    CALL(ioctl, EIO, -1),
    CALL(flock, ENOLCK, -1),
    CALL(fcntl, EMFILE, -1),
    CALL(renameat, ENOSPC, 3),
    CALL(kill, EPERM, -1),
    CALL(close_range, EINVAL, -1),
    CALL(setsid, EPERM, -1),
#ifdef __x86_64__
    CALL(open, EMFILE, 0),
    CALL(mkdir, ENOSPC, 0),
    CALL(rmdir, EBUSY, 0),
    CALL(rename, ENOSPC, 1),
    CALL(link, ENOSPC, 1),
    CALL(symlink, ENOSPC, 1),
    CALL(unlink, EBUSY, 0),
    CALL(chmod, EPERM, 0),
    CALL(chown, EPERM, 0),
    CALL(lchown, EPERM, 0),
    CALL(mknod, ENOSPC, 0),
    CALL(fork, EAGAIN, -1),
    CALL(vfork, EAGAIN, -1),
#endif
#undef CALL
};
enum { CALLS = sizeof calls / sizeof *calls };

static struct {
    bool armed;
    long at, what, call, counted;
    unsigned long program;
    FILE *report;
} state;

static void die(const char *what) {
    perror(what);
    exit(120);
}

/* ---- registers ---- */

struct regs {
    struct user_regs_struct all;
};

static void read_regs(pid_t pid, struct regs *regs) {
    struct iovec part = {&regs->all, sizeof regs->all};
    memset(regs, 0, sizeof *regs);
    ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &part);
}

static unsigned long argument(const struct regs *regs, int n) {
#ifdef __x86_64__
    const unsigned long values[] = {regs->all.rdi, regs->all.rsi, regs->all.rdx,
                                    regs->all.r10, regs->all.r8,  regs->all.r9};
    return values[n];
#else
    return regs->all.regs[n];
#endif
}

static long number_of(const struct regs *regs) {
#ifdef __x86_64__
    return (long)regs->all.orig_rax;
#else
    return (long)regs->all.regs[8];
#endif
}

/* The call is not made; its caller gets `result`. */
static void skip(pid_t pid, struct regs *regs, long result) {
    struct iovec part = {&regs->all, sizeof regs->all};
#ifdef __x86_64__
    regs->all.orig_rax = (unsigned long)-1;
    regs->all.rax = (unsigned long)result;
#else
    int none = -1;
    struct iovec call = {&none, sizeof none};
    regs->all.regs[0] = (unsigned long)result;
    ptrace(PTRACE_SETREGSET, pid, NT_ARM_SYSTEM_CALL, &call);
#endif
    ptrace(PTRACE_SETREGSET, pid, NT_PRSTATUS, &part);
}

/* ---- the decision ---- */

static bool is_of_program(pid_t pid, unsigned long program) {
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/%d/exe", pid);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0)
        return false;
    name[length] = 0;
    return strstr(name, program ? "memfd:fargatelite-shim" : "/python") != NULL;
}

static pid_t process_of(pid_t thread) {
    char path[64], line[256];
    pid_t process = thread;
    snprintf(path, sizeof path, "/proc/%d/status", thread);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "Tgid: %d", &process) == 1)
            break;
    if (file)
        fclose(file);
    return process;
}

static void describe(const struct call *call, pid_t pid, const struct regs *regs) {
    char path[PATH_BYTES] = "";
    if (call->path >= 0) {
        struct iovec ours = {path, sizeof path - 1};
        struct iovec theirs = {(void *)argument(regs, call->path), sizeof path - 1};
        /* A string may end just before a page that is not there. */
        if (process_vm_readv(pid, &ours, 1, &theirs, 1, 0) < 0) {
            size_t left = 4096 - ((uintptr_t)theirs.iov_base & 4095);
            if (left < theirs.iov_len)
                ours.iov_len = theirs.iov_len = left;
            process_vm_readv(pid, &ours, 1, &theirs, 1, 0);
        }
    } else if (call->number == SYS_write || call->number == SYS_fsync ||
               call->number == SYS_ioctl || call->number == SYS_fdatasync ||
               call->number == SYS_ftruncate) {
        char link[64];
        snprintf(link, sizeof link, "/proc/%d/fd/%lu", pid, argument(regs, 0));
        if (readlink(link, path, sizeof path - 1) < 0)
            path[0] = 0;
    }
    fprintf(state.report, "%d %s %s\n", call->number, call->name, path);
}

static void on_call(pid_t pid) {
    struct regs regs;
    read_regs(pid, &regs);
    long number = number_of(&regs);
    if (number == SYS_prctl && argument(&regs, 0) == ARM) {
        state.armed = true;
        state.counted = 0;
        state.at = (long)argument(&regs, 1);
        state.what = (long)argument(&regs, 2);
        state.program = argument(&regs, 3);
        state.call = (long)argument(&regs, 4);
        if (ftruncate(fileno(state.report), 0))
            die("report");
        rewind(state.report);
        skip(pid, &regs, 0);
        return;
    }
    if (number == SYS_prctl && argument(&regs, 0) == DISARM) {
        state.armed = false;
        fflush(state.report);
        skip(pid, &regs, state.counted);
        return;
    }
    /* open() of Python asks whether it is a terminal, whatever the answer. */
    if (number == SYS_ioctl && argument(&regs, 1) == GET_TERMINAL)
        return;
    if (!state.armed || (state.call >= 0 && state.call != number) ||
        !is_of_program(pid, state.program))
        return;
    for (int i = 0; i < CALLS; i++) {
        const struct call *call = &calls[i];
        if (call->number != number)
            continue;
        state.counted++;
        if (!state.at || state.counted == state.at)
            describe(call, pid, &regs);
        if (state.counted != state.at)
            return;
        fflush(state.report);
        if (state.what == -1)
            kill(process_of(pid), SIGKILL);
        else
            skip(pid, &regs, state.what ? -state.what : -call->error);
        return;
    }
}

/* ---- ptrace ---- */

static void install_filter(void) {
    struct sock_filter code[CALLS + 6];
    unsigned short n = 0;
    code[n++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[n++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < CALLS; i++)
        code[n++] = (struct sock_filter)BPF_JUMP(
            BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i].number, (unsigned char)(CALLS - i), 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    struct sock_fprog program = {n, code};
    /* With CAP_SYS_ADMIN, and so without no_new_privs, which containers would inherit. */
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
        die("seccomp");
}

int main(int argc, char **argv) {
    int go[2], code = 1;
    if (argc < 3) {
        fprintf(stderr, "usage: %s REPORT COMMAND...\n", argv[0]);
        return 2;
    }
    state.report = fopen(argv[1], "we");
    if (!state.report || pipe2(go, O_CLOEXEC))
        die(argv[1]);
    pid_t first = fork();
    if (first < 0)
        die("fork");
    if (!first) {
        char byte;
        close(go[1]);
        if (read(go[0], &byte, 1) != 1)
            _exit(121);
        install_filter();
        execvp(argv[2], argv + 2);
        die(argv[2]);
    }
    close(go[0]);
    long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                   PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SEIZE, first, 0, options))
        die("PTRACE_SEIZE");
    if (write(go[1], "", 1) != 1)
        die("go");
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0) {
            if (errno == EINTR)
                continue;
            break; /* nobody is left */
        }
        if (!WIFSTOPPED(status)) {
            if (pid == first)
                code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            continue;
        }
        int event = status >> 16, number = WSTOPSIG(status);
        if (event == PTRACE_EVENT_SECCOMP)
            on_call(pid);
        if (event == PTRACE_EVENT_STOP && number != SIGTRAP) {
            ptrace(PTRACE_LISTEN, pid, 0, 0); /* a group-stop */
            continue;
        }
        /* ESRCH: it was killed meanwhile, which the next wait tells. */
        ptrace(PTRACE_CONT, pid, 0, event ? 0 : (long)number);
    }
    return code;
}
