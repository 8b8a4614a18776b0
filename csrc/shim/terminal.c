/* The pseudo terminal of a container (pseudoTerminal, exec --tty).
 *
 * It comes from the container's own devpts, so that ttyname(3) works inside and no terminal of the
 * host is ever in a container's hands. The slave is opened through the master (TIOCGPTPEER), never
 * by a path that the container could have changed (CVE-2025-52565).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include "shim.h"

static int send_descriptor(int socket, int fd) {
    char control[CMSG_SPACE(sizeof fd)] = {0}, byte = 0;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    return sendmsg(socket, &message, MSG_NOSIGNAL) == 1 ? 0 : -1;
}

/* The descriptor that waits in `socket`, non-blocking and close-on-exec; -1 when there is none. */
int receive_descriptor(int socket) {
    char control[CMSG_SPACE(sizeof(int))], byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    if (recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1)
        return -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
        return -1;
    int fd;
    memcpy(&fd, CMSG_DATA(header), sizeof fd);
    if (fcntl(fd, F_SETFL, O_NONBLOCK)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* /dev/console, as Docker has it. A container that runs already (exec) has its own. */
static int bind_console(int slave, struct failure *failure) {
    cleanup_close int target =
        openat(AT_FDCWD, "/dev/console", O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (target < 0)
        return errno == EEXIST ? 0 : FAIL(failure, "openat", "/dev/console");
    cleanup_close int clone =
        (int)syscall(SYS_open_tree, slave, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    if (clone < 0)
        return FAIL(failure, "open_tree", "terminal");
    return syscall(SYS_move_mount, clone, "", target, "",
                   MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
               ? FAIL(failure, "move_mount", "/dev/console")
               : 0;
}

int do_terminal(struct child *child, const struct op *op, struct failure *failure) {
    const struct argument *a = op->arguments;
    int unlocked = 0;
    struct statfs info;
    struct open_how how = {.flags = O_RDWR | O_NOCTTY | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
    cleanup_close int master =
        (int)syscall(SYS_openat2, AT_FDCWD, "/dev/pts/ptmx", &how, sizeof how);
    if (master < 0)
        return FAIL(failure, "openat2", "/dev/pts/ptmx");
    /* exec comes into a file system that its container may have changed. */
    if (fstatfs(master, &info))
        return FAIL(failure, "fstatfs", "/dev/pts/ptmx");
    if (info.f_type != DEVPTS_SUPER_MAGIC)
        return fail(failure, "fstatfs", "/dev/pts/ptmx is in no devpts", ENODEV);
    if (ioctl(master, TIOCSPTLCK, &unlocked))
        return FAIL(failure, "ioctl (TIOCSPTLCK)", "terminal");
    cleanup_close int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0)
        return FAIL(failure, "ioctl (TIOCGPTPEER)", "terminal");
    if (fchown(slave, (uid_t)a[0].number, (gid_t)a[1].number) || fchmod(slave, 0620))
        return FAIL(failure, "fchown", "terminal");
    struct winsize size = {.ws_row = (unsigned short)a[2].number,
                           .ws_col = (unsigned short)a[3].number};
    if (size.ws_row && size.ws_col && ioctl(slave, TIOCSWINSZ, &size))
        return FAIL(failure, "ioctl (TIOCSWINSZ)", "terminal");
    if (bind_console(slave, failure))
        return -failure->error;
    if (setsid() < 0)
        return FAIL(failure, "setsid", "terminal");
    for (int fd = 0; fd < 3; fd++)
        if (dup2(slave, fd) < 0)
            return FAIL(failure, "dup2", "standard streams");
    if (ioctl(0, TIOCSCTTY, 0))
        return FAIL(failure, "ioctl (TIOCSCTTY)", "terminal");
    if (send_descriptor(child->terminal_fd, master))
        return FAIL(failure, "sendmsg", "terminal");
    return 0;
}
