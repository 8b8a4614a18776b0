"""Numbers of file descriptors: what stays open while a task lives makes room below 1024.

libnftables waits for the kernel with select(2), whose sets end at FD_SETSIZE; glibc aborts the
whole process when a descriptor has a number beyond (fd_set(3type), __fdelt_chk). A task holds some
25 descriptors, so that 40 tasks are enough.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource

__all__ = ["FD_SETSIZE", "allow_many", "can_open_low", "move_high"]

FD_SETSIZE = 1024


def allow_many() -> None:
    """Lets this process have as many open as it may allow itself, for one that is ours alone: a
    shell's 1,024 are 40 tasks. Programs that it starts have it too (getrlimit(2))."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def move_high(descriptor: int) -> int:
    """The same open file under a number from FD_SETSIZE on; `descriptor` is closed. Where the
    process may have no such number (RLIMIT_NOFILE), `descriptor` itself. Closed on exec either way:
    one that came through a socket is not by itself (recvmsg(2), MSG_CMSG_CLOEXEC)."""
    try:
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FD_SETSIZE)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EMFILE):
            os.set_inheritable(descriptor, False)
            return descriptor
        raise
    os.close(descriptor)
    return moved


def can_open_low() -> bool:
    """Whether the next descriptor has a number that select(2) takes, with some to spare for other
    threads."""
    descriptor = os.open("/", os.O_PATH | os.O_CLOEXEC)
    os.close(descriptor)
    return descriptor < FD_SETSIZE - 64
