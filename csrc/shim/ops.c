/* A function per operation of the child.
 *
 * Before pivot_root, paths are our own (run directory, image mount, cgroupfs). After it, the old
 * root is gone, so no path can reach the host, whatever links an image holds; targets are opened
 * once (openat2 with the RESOLVE_* flags of the plan) and mounted on by descriptor, so there is no
 * window between look and use (CVE-2021-30465, CVE-2025-31133, CVE-2025-52565).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "shim.h"

/* sys/mount.h clashes with linux/mount.h on Debian 12; these are all that is needed of it. */
int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);
#define OLD_MS_REC 16384
#define OLD_MS_PRIVATE (1 << 18)
#define OLD_MNT_DETACH 2

#define KEYCTL_JOIN_SESSION_KEYRING_ 1

static int sys_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve};
    return (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
}

static int sys_open_tree(int dir, const char *path, unsigned flags) {
    return (int)syscall(SYS_open_tree, dir, path, flags | OPEN_TREE_CLOEXEC);
}

static int sys_mount_setattr(int fd, const char *path, unsigned flags, struct mount_attr *attr) {
    return (int)syscall(SYS_mount_setattr, fd, path, flags, attr, sizeof *attr);
}

static int move_mount_onto(int mount_fd, int target_fd) {
    return (int)syscall(SYS_move_mount, mount_fd, "", target_fd, "",
                        MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

static int *slot_of(struct child *child, uint64_t number) {
    return number < MAX_SLOTS ? &child->slots[number] : NULL;
}

/* ---- files and directories ---- */

/* Opens, or creates, the directory `path` (of `length` bytes) component by component; `*out` is an
 * O_PATH descriptor. With RESOLVE_IN_ROOT links are followed inside /, never out of it. */
static int open_directories(const char *path, size_t length, const struct op *op, int *out,
                            struct failure *failure) {
    const struct argument *a = op->arguments;
    uint64_t resolve = a[4].number;
    char prefix[4096];
    cleanup_close int parent = sys_openat2(AT_FDCWD, "/", O_PATH | O_DIRECTORY, 0, 0);
    if (parent < 0)
        return FAIL(failure, "openat2", "/");
    if (length >= sizeof prefix)
        return fail(failure, "openat2", path, ENAMETOOLONG);

    size_t at = 0;
    while (at < length) {
        while (at < length && path[at] == '/')
            at++;
        size_t start = at;
        while (at < length && path[at] != '/')
            at++;
        if (start == at)
            break;
        memcpy(prefix, path, at);
        prefix[at] = '\0';
        int next = sys_openat2(AT_FDCWD, prefix, O_PATH | O_DIRECTORY, 0, resolve);
        if (next < 0 && errno == ENOENT) {
            const char *name = prefix + start;
            if (mkdirat(parent, name, (mode_t)a[1].number))
                return FAIL(failure, "mkdirat", prefix);
            next = sys_openat2(parent, name, O_PATH | O_DIRECTORY, 0, RESOLVE_NO_SYMLINKS);
            if (next >= 0 &&
                fchownat(next, "", (uid_t)a[2].number, (gid_t)a[3].number, AT_EMPTY_PATH)) {
                close(next);
                return FAIL(failure, "fchownat", prefix);
            }
            /* mkdirat obeys the umask; the plan's mode is exact. */
            if (next >= 0 && fchmodat(parent, name, (mode_t)a[1].number, 0)) {
                close(next);
                return FAIL(failure, "fchmodat", prefix);
            }
        }
        if (next < 0)
            return FAIL(failure, "openat2", prefix);
        close(parent);
        parent = next;
    }
    *out = steal_fd(&parent);
    return 0;
}

static int do_mkdir(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct bytes *path = &op->arguments[0].bytes;
    cleanup_close int directory = -1;
    return open_directories(path->data, path->length, op, &directory, failure);
}

static int create_file(int directory, const char *name, uint64_t mode, uint64_t uid, uint64_t gid,
                       int *out) {
    *out =
        openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, (mode_t)mode);
    if (*out < 0)
        return -1;
    return fchown(*out, (uid_t)uid, (gid_t)gid) || fchmod(*out, (mode_t)mode) ? -1 : 0;
}

static int do_touch(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct argument *a = op->arguments;
    const char *path = a[0].bytes.data;
    const char *name = strrchr(path, '/');
    cleanup_close int there = sys_openat2(AT_FDCWD, path, O_PATH, 0, a[4].number);
    if (there >= 0)
        return 0;
    if (errno != ENOENT || !name)
        return FAIL(failure, "openat2", path);
    /* Directories that are missing belong to the same owner and can be searched. */
    struct op parents = *op;
    parents.arguments[1].number = 0755;
    cleanup_close int directory = -1, created = -1;
    if (open_directories(path, (size_t)(name - path), &parents, &directory, failure))
        return -failure->error;
    int result = create_file(directory, name + 1, a[1].number, a[2].number, a[3].number, &created);
    if (result && errno == EEXIST) {
        /* A dangling link of the image: what it points to is not there, so it gives way. */
        if (unlinkat(directory, name + 1, 0))
            return FAIL(failure, "unlinkat", path);
        result = create_file(directory, name + 1, a[1].number, a[2].number, a[3].number, &created);
    }
    return result ? FAIL(failure, "openat", path) : 0;
}

static int do_write_file(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct argument *a = op->arguments;
    cleanup_close int fd = -1;
    if (create_file(AT_FDCWD, a[0].bytes.data, a[1].number, a[2].number, a[3].number, &fd))
        return FAIL(failure, "openat", a[0].bytes.data);
    const char *data = a[4].bytes.data;
    size_t left = a[4].bytes.length;
    while (left) {
        ssize_t wrote = write(fd, data, left);
        if (wrote < 0)
            return FAIL(failure, "write", a[0].bytes.data);
        data += wrote;
        left -= (size_t)wrote;
    }
    return 0;
}

static int do_mknod(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct argument *a = op->arguments;
    const char *path = a[0].bytes.data;
    mode_t old = umask(0);
    int result = mknod(path, (mode_t)a[1].number, makedev(a[2].number, a[3].number));
    umask(old);
    if (result)
        return FAIL(failure, "mknod", path);
    return lchown(path, (uid_t)a[4].number, (gid_t)a[5].number) ? FAIL(failure, "lchown", path) : 0;
}

static int do_symlink(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct argument *a = op->arguments;
    return symlink(a[0].bytes.data, a[1].bytes.data) ? FAIL(failure, "symlink", a[1].bytes.data)
                                                     : 0;
}

/* ---- mounts ---- */

static int do_private_mounts(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    (void)op;
    return mount(NULL, "/", NULL, OLD_MS_REC | OLD_MS_PRIVATE, NULL)
               ? FAIL(failure, "mount", "/ (private)")
               : 0;
}

static int do_open_tree(struct child *child, const struct op *op, struct failure *failure) {
    const struct argument *a = op->arguments;
    const char *path = a[1].bytes.data;
    int *slot = slot_of(child, a[0].number);
    unsigned recursive = a[4].number ? AT_RECURSIVE : 0;
    if (!slot || *slot >= 0)
        return fail(failure, "open_tree", "slot is in use or out of range", EINVAL);
    *slot = sys_open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | AT_SYMLINK_NOFOLLOW | recursive);
    if (*slot < 0)
        return FAIL(failure, "open_tree", path);
    struct mount_attr attr = {.attr_set = a[2].number};
    if (a[3].number > MAX_ID_MAPS + 1 || (a[3].number > 1 && child->id_maps[a[3].number - 2] < 0))
        return fail(failure, "open_tree", "there is no such id map", EINVAL);
    if (a[3].number) {
        attr.attr_set |= MOUNT_ATTR_IDMAP;
        attr.userns_fd =
            (uint64_t)(a[3].number == 1 ? child->shim->userns_fd : child->id_maps[a[3].number - 2]);
    }
    if (attr.attr_set && sys_mount_setattr(*slot, "", AT_EMPTY_PATH | recursive, &attr))
        return FAIL(failure, a[3].number ? "mount_setattr (id-map)" : "mount_setattr", path);
    return 0;
}

static int do_move_mount(struct child *child, const struct op *op, struct failure *failure) {
    const struct argument *a = op->arguments;
    const char *path = a[1].bytes.data;
    int *slot = slot_of(child, a[0].number);
    if (!slot || *slot < 0)
        return fail(failure, "move_mount", "slot is empty or out of range", EINVAL);
    cleanup_close int target = sys_openat2(AT_FDCWD, path, O_PATH, 0, a[2].number);
    if (target < 0)
        return FAIL(failure, "openat2", path);
    if (move_mount_onto(*slot, target))
        return FAIL(failure, "move_mount", path);
    close_descriptor(slot);
    return 0;
}

/* The kernel's own words about a refused mount are better than EINVAL. */
static int fail_context(struct failure *failure, int context, const char *call, const char *what) {
    int error = errno;
    char text[FAILURE_OBJECT_BYTES];
    ssize_t got = read(context, text, sizeof text - 1);
    if (got > 0) {
        text[got] = '\0';
        return fail(failure, call, text, error);
    }
    return fail(failure, call, what, error);
}

static int do_mount(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct argument *a = op->arguments;
    const char *type = a[0].bytes.data, *path = a[2].bytes.data;
    cleanup_close int target = sys_openat2(AT_FDCWD, path, O_PATH | O_DIRECTORY, 0, a[4].number);
    if (target < 0)
        return FAIL(failure, "openat2", path);
    cleanup_close int context = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
    if (context < 0)
        return FAIL(failure, "fsopen", type);
    if (a[1].bytes.length &&
        syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "source", a[1].bytes.data, 0))
        return fail_context(failure, context, "fsconfig", "source");
    for (uint32_t i = 0; i < a[5].list_length; i++) {
        char *option = a[5].list[i];
        char *value = strchr(option, '=');
        if (value)
            *value++ = '\0'; /* our copy of the plan, used once */
        if (syscall(SYS_fsconfig, context, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, option,
                    value, 0))
            return fail_context(failure, context, "fsconfig", option);
    }
    if (syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
        return fail_context(failure, context, "fsconfig (create)", type);
    cleanup_close int made =
        (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, (unsigned)a[3].number);
    if (made < 0)
        return fail_context(failure, context, "fsmount", type);
    return move_mount_onto(made, target) ? FAIL(failure, "move_mount", path) : 0;
}

static int do_pivot_root(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const char *root = op->arguments[0].bytes.data;
    if (chdir(root))
        return FAIL(failure, "chdir", root);
    /* "." twice: the old root is stacked on the new one, then detached (pivot_root(2), NOTES). */
    if (syscall(SYS_pivot_root, ".", "."))
        return FAIL(failure, "pivot_root", root);
    if (umount2(".", OLD_MNT_DETACH))
        return FAIL(failure, "umount2", "old root");
    return chdir("/") ? FAIL(failure, "chdir", "/") : 0;
}

/* An empty read-only directory, or the null device of our own making, over `path`. */
static int do_mask(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const char *path = op->arguments[0].bytes.data;
    struct stat info;
    cleanup_close int target = sys_openat2(AT_FDCWD, path, O_PATH, 0, RESOLVE_NO_SYMLINKS);
    if (target < 0)
        return errno == ENOENT ? 0 : FAIL(failure, "openat2", path); /* not on this kernel */
    if (fstat(target, &info))
        return FAIL(failure, "fstat", path);
    cleanup_close int cover = -1;
    if (S_ISDIR(info.st_mode)) {
        cleanup_close int context = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
        if (context < 0 || syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "mode", "555", 0) ||
            syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "nr_inodes", "1", 0) ||
            syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
            return FAIL(failure, "fsconfig", path);
        cover = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC,
                             MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
                                 MOUNT_ATTR_NOEXEC);
        if (cover < 0)
            return FAIL(failure, "fsmount", path);
    } else {
        cover = sys_open_tree(AT_FDCWD, "/dev/null", OPEN_TREE_CLONE | AT_SYMLINK_NOFOLLOW);
        if (cover < 0)
            return FAIL(failure, "open_tree", "/dev/null");
        /* CVE-2025-31133: be sure that it is the device. */
        if (fstat(cover, &info))
            return FAIL(failure, "fstat", "/dev/null");
        if (!S_ISCHR(info.st_mode) || info.st_rdev != makedev(1, 3))
            return fail(failure, "fstat", "/dev/null is not the null device", ENODEV);
    }
    return move_mount_onto(cover, target) ? FAIL(failure, "move_mount", path) : 0;
}

static int do_readonly(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const char *path = op->arguments[0].bytes.data;
    unsigned recursive = op->arguments[1].number ? AT_RECURSIVE : 0;
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
    if (strcmp(path, "/") == 0)
        return sys_mount_setattr(AT_FDCWD, "/", recursive, &attr)
                   ? FAIL(failure, "mount_setattr", "/ (read-only)")
                   : 0;
    cleanup_close int target = sys_openat2(AT_FDCWD, path, O_PATH, 0, RESOLVE_NO_SYMLINKS);
    if (target < 0)
        return errno == ENOENT ? 0 : FAIL(failure, "openat2", path); /* not on this kernel */
    cleanup_close int clone =
        sys_open_tree(target, "", OPEN_TREE_CLONE | AT_EMPTY_PATH | recursive);
    if (clone < 0)
        return FAIL(failure, "open_tree", path);
    if (sys_mount_setattr(clone, "", AT_EMPTY_PATH | recursive, &attr))
        return FAIL(failure, "mount_setattr", path);
    return move_mount_onto(clone, target) ? FAIL(failure, "move_mount", path) : 0;
}

/* ---- namespaces, groups, limits ---- */

static int do_join_cgroup(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const char *path = op->arguments[0].bytes.data;
    cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return FAIL(failure, "open", path);
    return write(fd, "0\n", 2) == 2 ? 0 : FAIL(failure, "write", path);
}

static int do_join_network(struct child *child, const struct op *op, struct failure *failure) {
    (void)op;
    return setns(child->shim->netns_fd, CLONE_NEWNET) ? FAIL(failure, "setns", "network namespace")
                                                      : 0;
}

static int do_join_process(struct child *child, const struct op *op, struct failure *failure) {
    const struct process *process =
        process_find((struct shim *)child->shim, (uint32_t)op->arguments[0].number);
    if (!process)
        return fail(failure, "join_process", "process to join is gone", ESRCH);
    return setns(process->pidfd, (int)op->arguments[1].number)
               ? FAIL(failure, "setns", "namespaces of the process to join")
               : 0;
}

static int do_sysctl(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct bytes *value = &op->arguments[1].bytes;
    const char *path = op->arguments[0].bytes.data;
    cleanup_close int fd = sys_openat2(AT_FDCWD, path, O_WRONLY, 0, RESOLVE_NO_SYMLINKS);
    if (fd < 0)
        return FAIL(failure, "openat2", path);
    return write(fd, value->data, value->length) == (ssize_t)value->length
               ? 0
               : FAIL(failure, "write", path);
}

static int do_unshare(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    return unshare((int)op->arguments[0].number) ? FAIL(failure, "unshare", "namespaces") : 0;
}

static int do_user_namespace(struct child *child, const struct op *op, struct failure *failure) {
    (void)op;
    return setns(child->shim->userns_fd, CLONE_NEWUSER) ? FAIL(failure, "setns", "user namespace")
                                                        : 0;
}

static int do_hostname(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct bytes *name = &op->arguments[0].bytes;
    return sethostname(name->data, name->length) ? FAIL(failure, "sethostname", name->data) : 0;
}

static int do_rlimit(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct argument *a = op->arguments;
    struct rlimit limit = {a[1].number, a[2].number};
    char object[64];
    snprintf(object, sizeof object, "resource %d, soft %llu, hard %llu", (int)a[0].number,
             (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
    return setrlimit((__rlimit_resource_t)a[0].number, &limit) ? FAIL(failure, "setrlimit", object)
                                                               : 0;
}

static int do_keyring(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    (void)op;
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING_, NULL) >= 0 || errno == ENOSYS)
        return 0; /* a kernel without keys has no keyring to leak */
    return FAIL(failure, "keyctl", "session keyring");
}

/* ---- privileges ---- */

static int do_seccomp(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct bytes *program = &op->arguments[0].bytes;
    if (!program->length || program->length % sizeof(struct sock_filter))
        return fail(failure, "seccomp", "program length", EINVAL);
    struct sock_fprog filter = {
        .len = (unsigned short)(program->length / sizeof(struct sock_filter)),
        .filter = (struct sock_filter *)program->data,
    };
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter)
               ? FAIL(failure, "seccomp", "filter")
               : 0;
}

/* Source: Documentation/admin-guide/LSM/apparmor.rst; aa_change_onexec(2), aa_change_profile(2).
 * attr/apparmor came with Linux 5.8; before, attr is that of the first such module. */
static int do_apparmor(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const char *profile = op->arguments[0].bytes.data;
    int now = op->arguments[1].number != 0;
    const char *path = now ? "/proc/self/attr/apparmor/current" : "/proc/self/attr/apparmor/exec";
    cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    struct statfs info;
    if (fd < 0)
        return FAIL(failure, "open", path);
    if (fstatfs(fd, &info))
        return FAIL(failure, "fstatfs", path);
    if (info.f_type != PROC_SUPER_MAGIC) /* CVE-2019-16884: an image with a /proc of its own */
        return fail(failure, "fstatfs", "attr/apparmor is in no procfs", ENODEV);
    char text[256];
    int length = snprintf(text, sizeof text, "%s %s", now ? "changeprofile" : "exec", profile);
    if (length < 0 || length >= (int)sizeof text)
        return fail(failure, "write", "profile name", ENAMETOOLONG);
    return write(fd, text, (size_t)length) == length ? 0 : FAIL(failure, "write", path);
}

static int do_bounding(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    for (unsigned long capability = 0; capability < 64; capability++) {
        int set = prctl(PR_CAPBSET_READ, capability, 0, 0, 0);
        if (set < 0)
            break; /* beyond the last capability of this kernel */
        if (set && !(op->arguments[0].number >> capability & 1) &&
            prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
            return FAIL(failure, "prctl", "PR_CAPBSET_DROP");
    }
    return 0;
}

static int do_user(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct argument *a = op->arguments;
    gid_t groups[1024];
    size_t count = a[2].bytes.length / sizeof *groups;
    if (a[2].bytes.length % sizeof *groups || count > sizeof groups / sizeof *groups)
        return fail(failure, "setgroups", "number of groups", EINVAL);
    memcpy(groups, a[2].bytes.data, count * sizeof *groups);
    if (setgroups(count, groups))
        return FAIL(failure, "setgroups", "supplementary groups");
    if (setresgid((gid_t)a[1].number, (gid_t)a[1].number, (gid_t)a[1].number))
        return FAIL(failure, "setresgid", "group id");
    if (setresuid((uid_t)a[0].number, (uid_t)a[0].number, (uid_t)a[0].number))
        return FAIL(failure, "setresuid", "user id");
    return 0;
}

static int do_capabilities(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const struct argument *a = op->arguments;
    uint64_t permitted = a[0].number, inheritable = a[1].number;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {
        {(uint32_t)permitted, (uint32_t)permitted, (uint32_t)inheritable},
        {(uint32_t)(permitted >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)},
    };
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
        return FAIL(failure, "prctl", "PR_CAP_AMBIENT_CLEAR_ALL");
    if (syscall(SYS_capset, &header, data))
        return FAIL(failure, "capset", "capabilities");
    for (unsigned long capability = 0; capability < 64; capability++)
        if (a[2].number >> capability & 1 &&
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0))
            return FAIL(failure, "prctl", "PR_CAP_AMBIENT_RAISE");
    return 0;
}

static int do_no_new_privileges(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    (void)op;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? FAIL(failure, "prctl", "PR_SET_NO_NEW_PRIVS")
                                                  : 0;
}

/* ---- the last steps ---- */

static int do_chdir(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    const char *path = op->arguments[0].bytes.data;
    return chdir(path) ? FAIL(failure, "chdir", path) : 0;
}

static int do_workdir(struct child *child, const struct op *op, struct failure *failure) {
    char where[4096];
    if (do_chdir(child, op, failure))
        return -failure->error;
    /* CVE-2024-21626: a directory outside of / reads as "(unreachable)...". */
    if (syscall(SYS_getcwd, where, sizeof where) < 0)
        return FAIL(failure, "getcwd", op->arguments[0].bytes.data);
    return where[0] == '/' ? 0 : fail(failure, "getcwd", "working directory is outside /", EPERM);
}

static int do_umask(struct child *child, const struct op *op, struct failure *failure) {
    (void)child;
    (void)failure;
    umask((mode_t)op->arguments[0].number);
    return 0;
}

typedef int execute_fn(struct child *, const struct op *, struct failure *);

static execute_fn *const functions[] = {
    [OP_JOIN_CGROUP] = do_join_cgroup,
    [OP_JOIN_NETWORK] = do_join_network,
    [OP_JOIN_PROCESS] = do_join_process,
    [OP_UNSHARE] = do_unshare,
    [OP_PRIVATE_MOUNTS] = do_private_mounts,
    [OP_OPEN_TREE] = do_open_tree,
    [OP_MOVE_MOUNT] = do_move_mount,
    [OP_MOUNT] = do_mount,
    [OP_CHDIR] = do_chdir,
    [OP_PIVOT_ROOT] = do_pivot_root,
    [OP_MKDIR] = do_mkdir,
    [OP_MKNOD] = do_mknod,
    [OP_SYMLINK] = do_symlink,
    [OP_WRITE_FILE] = do_write_file,
    [OP_MASK] = do_mask,
    [OP_READONLY] = do_readonly,
    [OP_TOUCH] = do_touch,
    [OP_HOSTNAME] = do_hostname,
    [OP_RLIMIT] = do_rlimit,
    [OP_KEYRING] = do_keyring,
    [OP_USER_NAMESPACE] = do_user_namespace,
    [OP_SECCOMP] = do_seccomp,
    [OP_APPARMOR] = do_apparmor,
    [OP_BOUNDING] = do_bounding,
    [OP_USER] = do_user,
    [OP_CAPABILITIES] = do_capabilities,
    [OP_NO_NEW_PRIVILEGES] = do_no_new_privileges,
    [OP_UMASK] = do_umask,
    [OP_WORKDIR] = do_workdir,
    [OP_EXEC] = do_exec,
    [OP_EXEC_IN] = do_exec_in,
    [OP_SYSCTL] = do_sysctl,
    [OP_INIT] = do_init,
    [OP_PAUSE] = do_pause,
    [OP_TERMINAL] = do_terminal,
};

int child_execute(struct child *child, const struct op *op, struct failure *failure) {
    if (op->code >= sizeof functions / sizeof *functions || !functions[op->code])
        return fail(failure, "execute", "operation without a function", ENOSYS);
    return functions[op->code](child, op, failure);
}
