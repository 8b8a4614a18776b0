"""Copies files into and out of a running container, without running anything of it.

The container is hostile and may change its tree while we read it. So every step goes by descriptor:
names inside are resolved by the kernel below the container's root (openat2 with RESOLVE_IN_ROOT and
without magic links), what a name led to is looked at before it is opened (a fifo or a device is
never), and what is written on the host is created anew below directories that we have just made,
following no link and without setuid bits (CVE-2018-15664, CVE-2019-14271, CVE-2019-1002101).
"""

from __future__ import annotations

import errno
import os
import posixpath
import select
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fargatelite import names
from fargatelite.errors import CopyFailed, TaskNotFound
from fargatelite.paths import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    open_path,
)
from fargatelite.runtime.record import TaskRecord
from fargatelite.sparse import copy_data

__all__ = ["Copied", "copy_in", "copy_out"]

MAX_DEPTH = 128
"""Directories within directories: two descriptors each, of the 1,024 that a process has."""

_CHUNK_BYTES = 1 << 20
_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_ONE_NAME = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS  # with O_NOFOLLOW: a link itself


class Copied(NamedTuple):
    """What was copied, and what was left out because it is no file, directory or link."""

    files: int
    skipped: tuple[str, ...]


def _reopen(fd: int, flags: int) -> int:
    """Opens what an O_PATH descriptor stands for."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK)


@contextmanager
def _container_root(record: TaskRecord, name: str) -> Iterator[int]:
    """The container's root directory; it stays its root when the container ends meanwhile."""
    state = record.state.container(name)
    if state.last_status != "RUNNING" or state.pid is None:
        raise TaskNotFound(
            f"container {name} of task {record.task_id[:12]} is {state.last_status}, not RUNNING"
        )
    gone = TaskNotFound(f"container {name} of task {record.task_id[:12]} is gone")
    group = names.cgroup_path(names.parse_task_id(record.task_id), name)
    try:
        pidfd = os.pidfd_open(state.pid)
    except ProcessLookupError as error:
        raise gone from error
    root = -1
    try:
        # The pid may be somebody else's by now: a process of the container is in its group.
        groups = Path(f"/proc/{state.pid}/cgroup").read_text().splitlines()
        if not any(line.endswith(f"/{group}") for line in groups):
            raise gone
        root = os.open(f"/proc/{state.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if select.select([pidfd], [], [], 0)[0]:
            raise gone
        yield root
    except (FileNotFoundError, ProcessLookupError) as error:
        if root >= 0:
            raise
        raise gone from error
    finally:
        os.close(pidfd)
        if root >= 0:
            os.close(root)


def _copy_contents(source: int, target: int) -> None:
    """A regular file's bytes, its holes kept; also of one in /proc, which claims to be empty."""
    size = os.fstat(source).st_size
    if size:
        copy_data(source, target, 0, size)
        return
    while data := os.read(source, _CHUNK_BYTES):
        _write(target, data)


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


class _Copy:
    """One tree from a source directory to a target directory, both open."""

    def __init__(self, owner: Callable[[os.stat_result], tuple[int, int]], mode_mask: int) -> None:
        self._owner = owner
        self._mode_mask = mode_mask
        self.files = 0
        self.skipped: list[str] = []

    def entry(self, found: int, shown: str, directory: int, name: str, depth: int) -> None:
        """What the O_PATH descriptor `found` is, as `name` in `directory`."""
        info = os.fstat(found)
        if stat.S_ISREG(info.st_mode):
            self._file(found, info, directory, name)
        elif stat.S_ISDIR(info.st_mode):
            self._directory(found, info, shown, directory, name, depth)
        elif stat.S_ISLNK(info.st_mode):
            self._link(os.readlink("", dir_fd=found), info, directory, name)
        else:
            self.skipped.append(shown)
            return
        self.files += 1

    def _file(self, found: int, info: os.stat_result, directory: int, name: str) -> None:
        temporary = f".{os.urandom(8).hex()}.copy"
        source = _reopen(found, os.O_RDONLY)
        try:
            target = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600, dir_fd=directory,
            )  # fmt: skip
            try:
                _copy_contents(source, target)
                os.fchown(target, *self._owner(info))
                os.fchmod(target, info.st_mode & self._mode_mask)
                os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
                os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                os.unlink(temporary, dir_fd=directory)
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _link(self, to: str, info: os.stat_result, directory: int, name: str) -> None:
        temporary = f".{os.urandom(8).hex()}.copy"
        os.symlink(to, temporary, dir_fd=directory)
        try:
            os.chown(temporary, *self._owner(info), dir_fd=directory, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.unlink(temporary, dir_fd=directory)
            raise

    def _directory(
        self, found: int, info: os.stat_result, shown: str, directory: int, name: str, depth: int
    ) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=directory)
            is_new = True
        except FileExistsError:
            is_new = False
        below = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
        )
        try:
            self.contents(found, shown, below, depth)
            if is_new:
                os.fchown(below, *self._owner(info))
                os.fchmod(below, info.st_mode & self._mode_mask)
                os.utime(below, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(below)

    def contents(self, found: int, shown: str, directory: int, depth: int) -> None:
        """All that is in a directory."""
        if depth >= MAX_DEPTH:
            raise CopyFailed(f"{shown} lies more than {MAX_DEPTH} directories deep", path=shown)
        source = _reopen(found, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in sorted(os.listdir(source)):
                path = posixpath.join(shown, name)
                try:
                    entry = open_path(source, name, os.O_NOFOLLOW, _ONE_NAME)
                except FileNotFoundError:
                    continue  # removed meanwhile
                try:
                    self.entry(entry, path, directory, name, depth + 1)
                finally:
                    os.close(entry)
        finally:
            os.close(source)


def _failed(action: str, path: str, error: OSError) -> CopyFailed:
    detail = f" ({error.filename})" if error.filename and str(error.filename) != path else ""
    return CopyFailed(
        f"cannot {action} {path}: {error.strerror}{detail}", errno=error.errno, path=path
    )


def _split(path: str) -> tuple[str, bool]:
    """The path without its end, and whether it asks for a directory's contents (`DIR/.`)."""
    contents = path.endswith("/.") or path == "."
    return posixpath.normpath(path or "/"), contents


def copy_out(record: TaskRecord, container: str, path: str, local: str) -> Copied:
    """Copies `path` of a container to the host, as `cp -r`: into `local` where that is a directory.

    Relative paths begin at the container's root. Links are copied as links; devices, fifos and
    sockets are left out. What is made belongs to the caller and has no setuid bit.
    Raises: CopyFailed; TaskNotFound for a container that does not run.
    """
    inside, contents = _split(path)
    work = _Copy(lambda info: (os.geteuid(), os.getegid()), 0o777)
    target = Path(local)
    with _container_root(record, container) as root:
        try:
            found = open_path(root, inside, os.O_NOFOLLOW, _IN_ROOT)
        except OSError as error:
            raise _failed(f"read from container {container}", path, error) from error
        try:
            if contents or target.is_dir():
                parent, name = target, posixpath.basename(inside) or "."
            else:
                parent, name = target.parent, target.name
            if contents:
                target.mkdir(exist_ok=True)
            directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if contents or name == ".":
                    work.contents(found, inside, directory, 0)
                else:
                    work.entry(found, inside, directory, name, 0)
            finally:
                os.close(directory)
        except OSError as error:
            raise _failed("write", local, error) from error
        finally:
            os.close(found)
    return Copied(work.files, tuple(work.skipped))


def _open_target(root: int, inside: str, source_name: str) -> tuple[int, str]:
    """The directory of the container to write in, and the name to write: an existing directory
    takes the source's name, as with cp."""
    try:
        return open_path(root, inside, os.O_DIRECTORY, _IN_ROOT), source_name
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
    parent, name = posixpath.split(inside)
    return open_path(root, parent or "/", os.O_DIRECTORY, _IN_ROOT), name


def copy_in(record: TaskRecord, container: str, local: str, path: str, uid_base: int) -> Copied:
    """Copies a file or directory of the host into a container, as `cp -r`; it belongs to the
    container's root. `uid_base` is that one's id on the host.

    A name that exists is replaced, never written through: a link that the container laid there
    leads nowhere. Raises: CopyFailed; TaskNotFound for a container that does not run.
    """
    source, contents = Path(local), local.endswith("/.")
    inside, _ = _split(path)
    work = _Copy(lambda info: (uid_base, uid_base), 0o7777)
    with _container_root(record, container) as root:
        try:
            found = os.open(source, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise _failed("read", local, error) from error
        try:
            directory, name = _open_target(root, inside, source.name)
            try:
                if contents:
                    work.contents(found, local, directory, 0)
                else:
                    work.entry(found, local, directory, name, 0)
            finally:
                os.close(directory)
        except OSError as error:
            raise _failed(f"write in container {container}", path, error) from error
        finally:
            os.close(found)
    return Copied(work.files, tuple(work.skipped))
