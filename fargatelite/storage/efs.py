"""File systems of EFS: a directory of this host for each, or an NFSv4 export, as configured.

They outlive tasks and are shared by them, and what is in them was written by tasks. So a
`rootDirectory` is resolved by the kernel below the file system's top (a link in there leads
nowhere), and what it led to is bound, by descriptor, to a mount point that nothing is deleted
below: removal is an unmount and an rmdir, never a walk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

from fargatelite.errors import StorageFailed
from fargatelite.mounts import bind_descriptor, mount_filesystem, unmount_detached
from fargatelite.names import TaskId
from fargatelite.paths import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, open_path
from fargatelite.settings import EfsAccessPoint, EfsFileSystem, Settings
from fargatelite.taskdef.fields import EfsVolume

__all__ = ["is_nfs", "mount_efs", "mounted_at", "owner_of", "unmount_all"]

_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_NFS_OPTIONS = (
    ("vers", "4.1"), ("rsize", "1048576"), ("wsize", "1048576"), ("timeo", "600"), ("retrans", "2"),
)  # fmt: skip
"""What EFS' mount helper asks for; `hard` is the kernel's default."""


def _failed(
    volume: str, efs: EfsVolume, detail: str, error: OSError | None = None
) -> StorageFailed:
    return StorageFailed(
        f"failed to set up the EFS volume {volume} ({efs.file_system_id}): {detail}",
        errno=error.errno if error is not None else None,
    )


def _access_point(settings: Settings, volume: str, efs: EfsVolume) -> EfsAccessPoint | None:
    """Raises: StorageFailed for one that the configuration does not have."""
    wanted = efs.authorization_config.access_point_id if efs.authorization_config else None
    if wanted is None:
        return None
    for system in settings.efs:
        for point in system.access_points:
            if system.file_system_id == efs.file_system_id and point.access_point_id == wanted:
                return point
    raise _failed(
        volume, efs,
        f"access point {wanted} is not known here: name it in [[efs]] of the configuration file",
    )  # fmt: skip


def owner_of(settings: Settings, volume: str, efs: EfsVolume) -> tuple[int, int] | None:
    """The uid and gid that an access point enforces. Raises: StorageFailed."""
    point = _access_point(settings, volume, efs)
    return (point.uid, point.gid) if point is not None else None


def mounted_at(settings: Settings, task_id: TaskId, volume: str) -> Path:
    """Where a task's volume is mounted."""
    return settings.efs_mounts / task_id / volume


def _system_of(settings: Settings, efs: EfsVolume) -> EfsFileSystem:
    """What stands for a file system of EFS; by default a directory of ours."""
    return next(
        (item for item in settings.efs if item.file_system_id == efs.file_system_id),
        EfsFileSystem(file_system_id=efs.file_system_id),
    )


def is_nfs(settings: Settings, efs: EfsVolume) -> bool:
    """Whether an export of NFS stands for it."""
    return _system_of(settings, efs).nfs is not None


def _open_top(settings: Settings, efs: EfsVolume, mount_point: Path) -> int:
    """The file system's own root directory."""
    system = _system_of(settings, efs)
    if system.nfs is not None:
        host, _, path = system.nfs.partition(":")
        target = mount_point.with_name(f"{mount_point.name}.nfs")
        target.mkdir(mode=0o700)
        address = socket.getaddrinfo(host, 2049, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        mount_filesystem(
            "nfs4", f"{host}:{path}", target, options=(*_NFS_OPTIONS, ("addr", str(address)))
        )
        return os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if system.directory is not None:
        return os.open(system.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    directory = settings.efs_directories / efs.file_system_id
    settings.efs_directories.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o755, exist_ok=True)  # a new file system of EFS is root's, 0755
    return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _open_root(top: int, efs: EfsVolume, point: EfsAccessPoint | None) -> int:
    """The directory to mount. An access point's is made at its first use, as EFS makes it, with
    what is missing above it."""
    path = point.root_directory if point is not None else efs.root_directory
    try:
        return open_path(top, path or "/", os.O_DIRECTORY, _IN_ROOT)
    except FileNotFoundError:
        if point is None:
            raise
    parent, _, name = path.rstrip("/").rpartition("/")
    above = _open_above(top, parent, point)
    try:
        return _make_directory(above, name, point)
    finally:
        os.close(above)


def _open_above(top: int, path: str, point: EfsAccessPoint) -> int:
    """The directory that an access point's lies in; made where it is not there."""
    try:
        return open_path(top, path or "/", os.O_DIRECTORY, _IN_ROOT)
    except FileNotFoundError:
        parent, _, name = path.rpartition("/")
    above = _open_above(top, parent, point)
    try:
        return _make_directory(above, name, point)
    finally:
        os.close(above)


def _make_directory(above: int, name: str, point: EfsAccessPoint) -> int:
    try:
        os.mkdir(name, 0o700, dir_fd=above)
    except FileExistsError:  # another task makes it at this moment
        return open_path(above, name, os.O_DIRECTORY | os.O_NOFOLLOW, _IN_ROOT)
    os.chown(name, point.uid, point.gid, dir_fd=above, follow_symlinks=False)
    made = open_path(above, name, os.O_DIRECTORY | os.O_NOFOLLOW, _IN_ROOT)
    os.chmod(f"/proc/self/fd/{made}", int(point.permissions, 8))
    return made


def mount_efs(settings: Settings, task_id: TaskId, volume: str, efs: EfsVolume) -> None:
    """Mounts a volume of a task at `mounted_at`; `unmount_all` finds what was made.

    Raises: StorageFailed naming the file system and what is wrong with it.
    """
    mount_point = mounted_at(settings, task_id, volume)
    point = _access_point(settings, volume, efs)
    try:
        mount_point.mkdir(mode=0o700, parents=True)
        top = _open_top(settings, efs, mount_point)
        try:
            root = _open_root(top, efs, point)
            try:
                bind_descriptor(root, mount_point)
            finally:
                os.close(root)
        finally:
            os.close(top)
    except OSError as error:
        if error.errno == errno.ENODEV:
            detail = "this kernel has no NFS: load the module nfsv4, or name a directory instead"
        else:
            detail = f"{error.strerror}" + (f": {error.filename}" if error.filename else "")
        raise _failed(volume, efs, detail, error) from error


def unmount_all(settings: Settings, task_id: TaskId) -> None:
    """Unmounts a task's file systems of EFS; that there are none is no error. Raises: StorageFailed
    for one that does not go: then its mount point stays, with all that is in it."""
    directory = settings.efs_mounts / task_id
    try:
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(directory.iterdir()):  # `volume` before `volume.nfs`
                while unmount_detached(entry):
                    pass
                entry.rmdir()
            directory.rmdir()
            settings.efs_mounts.rmdir()
    except OSError as error:
        if error.errno == errno.ENOTEMPTY and error.filename == os.fspath(settings.efs_mounts):
            return  # other tasks have theirs
        raise StorageFailed(
            f"cannot unmount {error.filename or directory}: {error.strerror}", errno=error.errno
        ) from error
