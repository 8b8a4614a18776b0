"""A task's run directory: layout, state replaced whole, the supervisor's lock, the event log.

::

    <run root>/tasks/<task id>/
        lock         flock(2) held by the process that supervises the task
        state.json   {"version": 1, ...}, replaced by rename
        requests/stop.json  a stop that another process asked for, replaced by rename; in a
                     directory of its own, which the supervisor watches
        size         CPU units and MiB that it takes of the host's capacity, where that is bounded;
                     not there while it waits for room (runtime.capacity)
        sent/<container>  {"version": 1, "place": ...}: how far its log driver has sent its log; not
                     in the directory itself, where each change wakes whoever waits for the task
        exits        exit records, written by the shim
        shim.sock    the shim's control socket
        guest-<container>.plan  how `exec` gets into a container (sandbox/compile.py)
        files/       hosts, hostname, resolv.conf of the task

It is recorded before anything else of a task exists, and removed after everything else is gone, so
that `gc` finds all that a crash leaves. Files are written by us only and read back with O_NOFOLLOW.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fargatelite.descriptors import move_high
from fargatelite.errors import ConfigurationInvalid, StateCorrupt, TaskBusy, TaskNotFound
from fargatelite.names import TaskId, parse_task_id

__all__ = [
    "DesiredStop",
    "RunDirectory",
    "ensure_private_directory",
    "replace_file",
    "sync_directory",
]

STATE_NAME, DESIRED_NAME, EXITS_NAME = "state.json", "requests/stop.json", "exits"
SIZE_NAME = "size"
SENT_VERSION = 1
_REMOVED, _NEW = ".removed-", ".new-"  # no task id begins so


def ensure_private_directory(path: Path) -> Path:
    """Creates a directory of ours with mode 0700; an existing one must belong to us.

    Raises: ConfigurationInvalid for one of another user or one that others can enter
        (CVE-2021-41091: setuid files of images within reach of any user of the host).
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
    except OSError as error:
        raise ConfigurationInvalid(
            f"cannot create {path}: {error.strerror}; run as root, or choose another root with "
            "--data-root and --run-root",
            errno=error.errno,
            path=path,
        ) from error
    if info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise ConfigurationInvalid(
            f"{path} must belong to uid {os.geteuid()} with mode 0700, it has uid {info.st_uid} "
            f"and mode {info.st_mode & 0o7777:o}",
            path=path,
        )
    return path


def replace_file(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Replaces a file whole: readers see the old or the new content, never a part.

    `sync` makes the content durable before the rename, and then the rename, for what a power loss
    must not take.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(fd)
        os.rename(temporary, path)
        if sync:
            sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class DesiredStop(msgspec.Struct, frozen=True, kw_only=True):
    """A stop that was asked for through the file system."""

    version: int = 1
    stop_code: str
    reason: str


class _Sent(msgspec.Struct, frozen=True, kw_only=True):
    version: int = SENT_VERSION
    place: int


class RunDirectory:
    """One task's run directory."""

    def __init__(self, runs: Path, task_id: TaskId) -> None:
        self.task_id = task_id
        self.path = runs / task_id
        self._lock_fd = -1

    @classmethod
    def create(cls, runs: Path, task_id: TaskId) -> RunDirectory:
        """Makes the directory of a new task and takes its lock.

        It comes into sight whole: for one without a lock somebody would have it adopted or removed.
        """
        ensure_private_directory(runs.parent)
        ensure_private_directory(runs)
        directory = cls(runs, task_id)
        place = directory.path
        directory.path = place.with_name(_NEW + task_id)
        with _flocked(runs, fcntl.LOCK_SH):
            directory.path.mkdir(mode=0o700)
            try:
                (directory.path / "files").mkdir(mode=0o755)
                (directory.path / "requests").mkdir(mode=0o700)
                directory.lock()
                os.rename(directory.path, place)
            except BaseException:
                directory.unlock()
                _remove_tree(directory.path)
                raise
        directory.path = place
        return directory

    @classmethod
    def list_all(cls, runs: Path) -> Iterator[RunDirectory]:
        """All run directories; names that are no task id are not ours and left alone."""
        try:
            names = sorted(os.listdir(runs))
        except FileNotFoundError:
            return
        for name in names:
            with contextlib.suppress(StateCorrupt):
                yield cls(runs, parse_task_id(name))

    def lock(self) -> None:
        """Takes the supervisor's lock; it is gone with this process.

        Raises: TaskBusy when another process has it, TaskNotFound when the task is gone.
        """
        try:
            fd = os.open(
                self.path / "lock",
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o600,
            )
        except FileNotFoundError as error:
            raise TaskNotFound(f"task {self.task_id} is gone") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise TaskBusy(f"task {self.task_id} is supervised by another process") from error
        # It may have been removed between open and flock: then the lock is nobody's.
        if not self._is_at_its_place(fd):
            os.close(fd)
            raise TaskNotFound(f"task {self.task_id} is gone")
        self._lock_fd = move_high(fd)

    def _is_at_its_place(self, fd: int) -> bool:
        try:
            found = os.stat(self.path / "lock", follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(fd))

    def is_supervised(self) -> bool:
        """Whether a process holds the lock (this one included)."""
        if self._lock_fd >= 0:
            return True
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _read(self, name: str) -> bytes | None:
        try:
            fd = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            return file.read()

    @property
    def requests(self) -> Path:
        """What other processes ask of the supervisor; a file moved to here is a request."""
        return self.path / "requests"

    def write_size(self, cpu_units: int, memory_mib: int) -> None:
        """Records how much of the host's capacity the task takes (runtime.capacity)."""
        replace_file(self.path / SIZE_NAME, b"%d %d" % (cpu_units, memory_mib))

    def read_size(self) -> tuple[int, int]:
        """CPU units and MiB; zeros for a directory without a task yet, or that is gone."""
        cpu_units, memory_mib = map(int, (self._read(SIZE_NAME) or b"0 0").split())
        return cpu_units, memory_mib

    def write_sent(self, container: str, place: int) -> None:
        """Records how far a container's log has been sent; it survives this process, as all here,
        not the machine. Raises: OSError."""
        (self.path / "sent").mkdir(mode=0o700, exist_ok=True)
        replace_file(self.path / "sent" / container, msgspec.json.encode(_Sent(place=place)))

    def read_sent(self, container: str) -> int | None:
        """What `write_sent` wrote; None when nobody sends that log, or a version that did not write
        this does. Raises: StateCorrupt."""
        data = self._read(f"sent/{container}")
        if data is None:
            return None
        path = self.path / "sent" / container
        try:
            found = msgspec.json.decode(data, type=_Sent)
        except msgspec.MsgspecError as error:
            raise StateCorrupt(f"{path}: {error}", path=path) from error
        if found.version != SENT_VERSION or found.place < 0:
            raise StateCorrupt(
                f"{path} is of version {found.version} with place {found.place}, this reads "
                f"{SENT_VERSION}",
                path=path,
            )
        return found.place

    def write_guest_plan(self, container: str, data: bytes) -> None:
        """Records how to get into a container that is about to start."""
        replace_file(self.path / f"guest-{container}.plan", data)

    def read_guest_plan(self, container: str) -> bytes | None:
        """What `write_guest_plan` wrote; None when the container never started."""
        return self._read(f"guest-{container}.plan")

    def write_state(self, data: bytes) -> None:
        """Replaces the recorded state."""
        replace_file(self.path / STATE_NAME, data)

    def read_state(self) -> bytes | None:
        """The recorded state; None when there is none yet or the task is gone."""
        return self._read(STATE_NAME)

    def request_stop(self, desired: DesiredStop) -> None:
        """Records that the task shall stop; its supervisor watches for this file.

        Raises: TaskNotFound when the task is gone.
        """
        try:
            replace_file(self.path / DESIRED_NAME, msgspec.json.encode(desired))
        except FileNotFoundError as error:
            raise TaskNotFound(f"task {self.task_id} is gone") from error

    def read_desired(self) -> DesiredStop | None:
        """The stop that was asked for, None when there was none.

        Raises: StateCorrupt.
        """
        data = self._read(DESIRED_NAME)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=DesiredStop)
        except msgspec.MsgspecError as error:
            path = self.path / DESIRED_NAME
            raise StateCorrupt(f"{path}: {error}", path=path) from error

    def remove(self) -> None:
        """Removes the directory and lets go of the lock; the last step of a task's removal.

        It goes out of sight whole: one without its lock file would look abandoned to others.
        """
        removed = self.path.with_name(_REMOVED + self.task_id)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, removed)
        _remove_tree(removed)
        self.unlock()

    @classmethod
    def sweep_removed(cls, runs: Path) -> None:
        """Removes what a process left that was killed in `remove`, or in `create`; the latter not
        while somebody else is in it."""
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(runs)
            for name in names:
                if name.startswith(_REMOVED):
                    _remove_tree(runs / name)
            if any(name.startswith(_NEW) for name in names):
                with (
                    contextlib.suppress(BlockingIOError),
                    _flocked(runs, fcntl.LOCK_EX | fcntl.LOCK_NB),
                ):
                    for name in os.listdir(runs):
                        if name.startswith(_NEW):
                            _remove_tree(runs / name)

    def unlock(self) -> None:
        """Lets go of the lock without removing anything."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


@contextlib.contextmanager
def _flocked(directory: Path, how: int) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=False, onerror=_ignore_missing)


def _ignore_missing(function: object, path: str, info: tuple[type, BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]
