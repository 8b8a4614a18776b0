"""A directory that is held to a size by project quota: no file system of its own, no loop device.

A project is a number that every file below a directory inherits; the file system counts what it has
and refuses more. The writer gets ENOSPC on XFS and EDQUOT on ext4: the kernel says it so, and
nobody stands between the two to translate. statfs(2) below the directory tells limit and use.

A task cannot leave its project: only the host's user namespace may change it, a hard link or rename
into another project is EXDEV, and overlayfs writes without the capability that ignores quotas
(CAP_SYS_RESOURCE, taken away in fs/overlayfs/super.c).

Source: quotactl_fd(2), Linux 5.14; include/uapi/linux/{quota,dqblk_xfs,fs}.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = ["enforces_quota", "lift_limit", "limit_directory"]

_libc = ctypes.CDLL(None, use_errno=True)

_SYS_QUOTACTL_FD = 443  # the same on x86-64 and arm64 (asm-generic/unistd.h)
_PRJQUOTA = 2
_Q_GETQUOTA, _Q_SETQUOTA, _Q_XGETQSTAT = 0x800007, 0x800008, 0x5805
_PROJECTS_ARE_HELD = 1 << 5  # FS_QUOTA_PDQ_ENFD: limits, not only counted
_XSTAT_BYTES = 80
_LIMITS = struct.Struct("=8QI4x")
"""struct if_dqblk: hard and soft blocks of 1 KiB, bytes used; hard, soft and used inodes; times."""
_SET_BLOCKS, _SET_INODES = 1, 4

_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
_ATTRIBUTES = struct.Struct("=5I8x")
"""struct fsxattr: flags, extent size, extents, project, size for copies on write."""
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT

_FIRST_PROJECT, _PROJECTS = 1 << 30, 1 << 30
"""Ours are above what people write into /etc/projects, and what kubelet and Docker count up."""


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _quotactl(fd: int, command: int, project: int, data: bytearray) -> None:
    address = (ctypes.c_char * len(data)).from_buffer(data)
    result = _libc.syscall(
        ctypes.c_long(_SYS_QUOTACTL_FD), ctypes.c_uint(fd),
        ctypes.c_uint(command << 8 | _PRJQUOTA), ctypes.c_uint(project), address,
    )  # fmt: skip
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"quota of project {project}")


def enforces_quota(directory: Path) -> bool:
    """Whether the directory's file system holds projects to limits; its own word, in 10 us.

    Raises: OSError for a directory that is not there.
    """
    state = bytearray(_XSTAT_BYTES)
    with _opened(directory) as fd:
        try:
            _quotactl(fd, _Q_XGETQSTAT, 0, state)
        except OSError:
            return False  # no such call, no quota in this kernel, none on this file system
    return bool(struct.unpack_from("=H", state, 2)[0] & _PROJECTS_ARE_HELD)


def limit_directory(directory: Path, size_bytes: int, files: int) -> None:
    """Holds an empty directory to `size_bytes` and `files`. Raises: OSError."""
    with _opened(directory) as fd:
        project = _unused_project(fd)
        flags, extent, extents, _, copies = _read_attributes(fd)
        fcntl.ioctl(
            fd, _FS_IOC_FSSETXATTR,
            _ATTRIBUTES.pack(flags | _INHERIT, extent, extents, project, copies),
        )  # fmt: skip
        _set_limits(fd, project, size_bytes // 1024, files)


def lift_limit(directory: Path) -> None:
    """Forgets the limit of a directory that `limit_directory` has held; any other is left alone.

    Raises: OSError.
    """
    try:
        with _opened(directory) as fd, _opened(directory.parent) as parent:
            project = _project_of(fd)
            if project is not None and project != _project_of(parent):
                _set_limits(fd, project, 0, 0)
    except FileNotFoundError:
        return


def _project_of(fd: int) -> int | None:
    """The project that new files in the directory get, if it is one of ours."""
    try:
        flags, _, _, project, _ = _read_attributes(fd)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return None  # this file system has no projects
        raise
    ours = flags & _INHERIT and _FIRST_PROJECT <= project < _FIRST_PROJECT + _PROJECTS
    return project if ours else None


def _read_attributes(fd: int) -> tuple[int, int, int, int, int]:
    answer = fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_ATTRIBUTES.size))
    flags, extent, extents, project, copies = _ATTRIBUTES.unpack(answer)
    return flags, extent, extents, project, copies


def _unused_project(fd: int) -> int:
    """A project without files and limits: by chance, so that two launches at once need no lock."""
    while True:
        project = random.randrange(_FIRST_PROJECT, _FIRST_PROJECT + _PROJECTS)  # noqa: S311 no secret
        found = bytearray(_LIMITS.size)
        try:
            _quotactl(fd, _Q_GETQUOTA, project, found)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return project  # XFS has never heard of it
            raise
        if not any(_LIMITS.unpack(found)[:6]):
            return project


def _set_limits(fd: int, project: int, blocks: int, files: int) -> None:
    limits = _LIMITS.pack(blocks, 0, 0, files, 0, 0, 0, 0, _SET_BLOCKS | _SET_INODES)
    _quotactl(fd, _Q_SETQUOTA, project, bytearray(limits))
