"""A task's ephemeral storage: a file system of its own for writable layers and volumes.

Fargate promises `ephemeralStorage` GiB (20 by default) to a task: more gives the writer ENOSPC, and
nobody else notices (contract 4.3). Few hosts have project quotas on, so each task gets an ext4 of
its own in a sparse file: it takes what the task wrote, holds bytes and inodes to the limit, tells
its use by one statfs(2), and goes by an unmount and an unlink, however many files there are. Where
the data root's file system has project quota on, that does the same without a device between
(storage/quota.py).

Measured (Linux 6.18): mkfs 7 ms once per size, then per task a sparse copy 0.4 ms, loop device
0.6 ms, mount 0.8 ms, removal 1 ms. It has no journal: it does not outlive its task, nor a crash.

Nobody but the kernel writes to it: a task has files in it, never its device. And since it is a
device of its own, what the task has written and the disk has not can be bounded for each task.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import msgspec

from fargatelite.errors import HostUnsupported, StorageFailed
from fargatelite.mounts import (
    LOOP_CONTROL,
    MOUNT_ATTR_NOATIME,
    attach_loop,
    mount_filesystem,
    unmount_detached,
)
from fargatelite.names import TaskId
from fargatelite.sparse import copy_data
from fargatelite.storage.quota import enforces_quota, lift_limit, limit_directory

__all__ = [
    "RESERVED_MIB",
    "Backend",
    "StorageUse",
    "bound_unwritten",
    "create_storage",
    "read_use",
    "remove_storage",
]

Backend = Literal["auto", "quota", "loop"]

TEMPLATE_VERSION = 1
RESERVED_MIB = 16
"""Fargate's metadata reports 20,496 MiB for a task of 20 GiB (contract 4.3)."""

_GIB = 2**30
_BYTES_PER_INODE = 16384  # mkfs.ext4's own ratio: 1.3 million files in 20 GiB
_INODE_BYTES = 256
_FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH = (2).to_bytes(4, "little")
_DIRTY_PERCENT = 20  # vm.dirty_ratio's default: of the memory of a machine that is the task's alone
_STRICT = "bdi/strict_limit"
_MKFS = "mkfs.ext4"
_MKFS_DEADLINE_S = 60


class StorageUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a task has written and what it may."""

    used_bytes: int
    size_bytes: int


def _backing(root: Path, task_id: TaskId) -> Path:
    return root / f"{task_id}.ext4"


def _file_bytes(size_bytes: int) -> int:
    """The file for a file system with at least `size_bytes` for data.

    Beside the inodes: two bitmaps of a block each per 128 MiB and group descriptors (less than
    1/2048), and 4,096 blocks that ext4 keeps for itself and RESERVED_MIB as on Fargate.
    """
    inodes = size_bytes // _BYTES_PER_INODE
    return size_bytes + inodes * _INODE_BYTES + size_bytes // 2048 + (16 + RESERVED_MIB) * 2**20


def _ensure_template(cache: Path, size_gib: int) -> Path:
    template = cache / f"ephemeral-{size_gib}-v{TEMPLATE_VERSION}.ext4"
    if template.exists():
        return template
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = template.with_name(f".{template.name}.{os.getpid()}.{os.urandom(4).hex()}")
    size_bytes = size_gib * _GIB
    try:
        with open(fresh, "xb") as file:
            file.truncate(_file_bytes(size_bytes))
        subprocess.run(
            [
                _MKFS, "-q", "-F", "-m", "0", "-N", str(size_bytes // _BYTES_PER_INODE),
                "-I", str(_INODE_BYTES), "-O", "^has_journal,sparse_super2,^resize_inode",
                "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", os.fspath(fresh),
            ],
            check=True, capture_output=True, text=True, timeout=_MKFS_DEADLINE_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        os.rename(fresh, template)
    except FileNotFoundError as error:
        raise HostUnsupported(
            f'{_MKFS} is missing: install e2fsprogs, or set storage_backend = "unlimited"'
        ) from error
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or error
        raise StorageFailed(f"cannot make a file system of {size_gib} GiB: {said}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
    return template


def _copy_sparse(source: Path, target: Path) -> None:
    """Copies data, not holes: 240 KiB of 20 GiB."""
    with open(source, "rb") as read, open(target, "xb") as write:
        copy_data(read.fileno(), write.fileno(), 0, os.fstat(read.fileno()).st_size)


def create_storage(
    root: Path,
    cache: Path,
    mount_point: Path,
    task_id: TaskId,
    size_gib: int,
    backend: Backend = "auto",
) -> None:
    """Makes the task's storage of `size_gib` GiB at `mount_point`; `auto` is a quota where the file
    system there enforces it, else a file system of its own.

    `root` is where the backing files lie (0700), `cache` where templates do. What was made is found
    again by `remove_storage`, whatever failed.
    Raises: HostUnsupported where the host has not what the backend needs; StorageFailed.
    """
    if backend != "loop" and _create_limited(mount_point, size_gib):
        return
    if backend == "quota":
        raise HostUnsupported(
            f"the file system of {mount_point.parent} has no project quota: mount it with the "
            "option prjquota (ext4 needs tune2fs -O project,quota before), or set "
            'storage_backend = "loop"'
        )
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    template = _ensure_template(cache, size_gib)
    backing = _backing(root, task_id)
    try:
        mount_point.mkdir(mode=0o700, parents=True)  # first: gc looks for it
        _copy_sparse(template, backing)
        device, name = attach_loop(backing, read_only=False, direct_io=True)
        try:
            # Without noinit_itable the kernel writes zeros to all inode tables, 320 MiB of 20 GiB,
            # over those of the sparse file: the disk's bandwidth, and bytes that no task wrote.
            mount_filesystem(
                "ext4",
                name,
                mount_point,
                attributes=MOUNT_ATTR_NOATIME,
                flags=("discard", "noinit_itable"),
            )
        finally:
            os.close(device)
    except OSError as error:
        if error.errno == errno.ENODEV or error.filename == LOOP_CONTROL:
            raise HostUnsupported(
                f"this kernel cannot hold tasks to their ephemeralStorage ({error.strerror}): load "
                'the modules loop and ext4, or set storage_backend = "unlimited"',
                errno=error.errno,
            ) from error
        raise StorageFailed(
            f"cannot make the ephemeral storage of {size_gib} GiB ({error.filename or backing}): "
            f"{error.strerror}",
            errno=error.errno,
            path=backing,
        ) from error


def _create_limited(mount_point: Path, size_gib: int) -> bool:
    """Makes the directory under a quota; False, and nothing is made, where there is none."""
    try:
        mount_point.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not enforces_quota(mount_point.parent):
            return False
        mount_point.mkdir(mode=0o700)
        limit_directory(mount_point, size_gib * _GIB, size_gib * _GIB // _BYTES_PER_INODE)
    except OSError as error:
        raise StorageFailed(
            f"cannot hold {mount_point} to {size_gib} GiB by project quota: {error.strerror}",
            errno=error.errno,
            path=mount_point,
        ) from error
    return True


def remove_storage(root: Path, mount_point: Path, task_id: TaskId) -> None:
    """Unmounts and deletes the task's file system; what is not there is no error.

    A directory that was never a mount (a quota, or `storage_backend = "unlimited"`) is deleted file
    by file, its limit first: no writer is left, and a crash meanwhile leaves no number taken.
    Raises: StorageFailed.
    """
    try:
        _forget_unwritten(_backing(root, task_id), mount_point)
        unmount_detached(mount_point)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_backing(root, task_id))
        lift_limit(mount_point)
        shutil.rmtree(mount_point, onerror=_ignore_missing)
    except OSError as error:
        raise StorageFailed(
            f"cannot remove {mount_point}: {error.strerror}", errno=error.errno, path=mount_point
        ) from error


def _forget_unwritten(backing: Path, mount_point: Path) -> None:
    """Shuts a task's file system down, so that its unmount does not write to the disk what is
    deleted a moment later (0.5 s for 700 MB of it, 0.05 s without).

    The device outlives it, and goes to somebody else without the bound.

    Only for a mount whose loop device says that it is over our file: the same call on a directory
    of the host would stop the host's file system. Source: FS_IOC_SHUTDOWN, Linux 6.11; before that
    the same number was EXT4_IOC_SHUTDOWN.
    """
    try:
        fd = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        device = _device_over(backing, fd)
        if device is not None:
            fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, _NO_LOG_FLUSH)
            _lift_bound(device)
    finally:
        os.close(fd)


def _device_over(backing: Path, mounted: int) -> Path | None:
    """The directory in sysfs of the loop device that an open file lies on, if it is over `backing`;
    None on any other file system."""
    number = os.fstat(mounted).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    try:
        is_ours = (device / "loop/backing_file").read_text().rstrip("\n") == os.fspath(backing)
    except FileNotFoundError:
        return None  # no loop device
    return device if is_ours else None


def bound_unwritten(root: Path, mount_point: Path, task_id: TaskId, memory_bytes: int) -> None:
    """Bounds what a task has written and its disk has not to a fifth of its memory, as the kernel
    of a machine of that size would; beyond it the writer waits for the disk.

    For cgroup v1, where the kernel counts this for the whole host only: a task could fill its
    memory with it, and reclaim, which finds nothing else there, has every disk of the host written
    back at once (shrink_inactive_list of mm/vmscan.c), so that other tasks wait for theirs. v2
    holds each group to the same share by itself.

    Does nothing before Linux 6.2, or where the storage is no device of its own.
    Raises: StorageFailed. Source: Documentation/ABI/testing/sysfs-class-bdi.
    """
    bound = memory_bytes * _DIRTY_PERCENT // 100
    fd = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        device = _device_over(_backing(root, task_id), fd)
    finally:
        os.close(fd)
    if device is None or not (device / _STRICT).exists():
        return
    try:
        (device / "bdi/max_bytes").write_text(str(bound))
        (device / _STRICT).write_text("1")
    except OSError as error:
        if error.errno == errno.EINVAL:
            return  # more than the whole host may have: that holds already
        raise StorageFailed(
            f"cannot bound what {mount_point} leaves unwritten: {error.strerror}",
            errno=error.errno,
            path=device,
        ) from error


def _lift_bound(device: Path) -> None:
    if (device / _STRICT).exists():
        (device / _STRICT).write_text("0")
        (device / "bdi/max_ratio").write_text("100")


def _ignore_missing(function: object, path: str, info: tuple[type, BaseException, object]) -> None:
    # overlayfs leaves `work/work` without permission bits, which root does not mind; nothing of a
    # task is read here, only unlinked by descriptor (shutil.rmtree follows no link).
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def read_use(mount_point: Path) -> StorageUse:
    """Use and size of the file system at `mount_point`. Raises: OSError."""
    found = os.statvfs(mount_point)
    return StorageUse(
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        size_bytes=found.f_blocks * found.f_frsize,
    )
