"""The supervisor of detached tasks and of those that lost theirs: one process per run root, there
while there are such tasks.

A caller hands it a request over a socket in the run root (0700) and gets an answer once the task's
run directory is there; from then on the task is like any other: its files tell how it is, and a
file in its run directory asks it to stop. Nobody starts the supervisor by hand, and it ends by
itself a moment after its last task.

There is never a second one: it holds a lock for as long as it lives. Whoever finds no socket starts
one and tries again; one that starts beside another sees the lock and leaves. One that ends takes
its socket away first, so that a request that it no longer reads is refused, not lost.

It runs with the environment of the process that started it: AWS_* variables of later callers do not
reach it, which `docs/configuration.md` says.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from fargatelite.cgroups.detect import detect_driver
from fargatelite.descriptors import allow_many
from fargatelite.errors import (
    ConfigurationInvalid,
    FargateliteError,
    StateCorrupt,
    TaskBusy,
    TaskNotFound,
)
from fargatelite.rundir import RunDirectory, ensure_private_directory
from fargatelite.runtime.execute import SupervisedTask
from fargatelite.runtime.record import TaskRecord, read_record
from fargatelite.runtime.remote import is_one_lost
from fargatelite.runtime.request import TaskRequest, adopt_task, start_task
from fargatelite.runtime.trace import Timeline
from fargatelite.settings import Settings

__all__ = ["ensure_supervised", "start_detached"]

PROTOCOL_VERSION = 2  # 2: settings and requests tell how long a launch waits for capacity
LINGER_S = 2.0
"""How long it stays without a task: the next `run --detach` of a script finds it there."""

_NO_REQUEST = "a request that is none"
_ATTEMPTS = 10  # of a caller that meets supervisors which are about to end
_ANSWER_S = 30.0
_LOCK_WAIT_S, _LOCK_LOOK_S = 20.0, 0.05
_MAX_LOG_BYTES = 1 << 20
_MAX_MESSAGE_BYTES = 8 << 20  # a definition has 64 KiB, overrides 8 KiB where Fargate's bound holds


class _Order(msgspec.Struct, frozen=True, kw_only=True):
    """`request` None: adopt all tasks of the run root that nobody supervises."""

    version: int = PROTOCOL_VERSION
    settings: Settings
    request: TaskRequest | None = None


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """What every version's order has."""

    version: int


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`error` None: the task has begun."""

    error: str | None = None


def _socket_path(settings: Settings) -> Path:
    return Path(settings.run_root) / "supervisor.sock"


# ---- the caller's side ----


def _connect(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(_ANSWER_S)
    try:
        # By the directory's descriptor: a path in a socket address has 107 bytes at most (unix(7)).
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
    except OSError as error:
        connection.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            return None
        raise
    return connection


def _ask(connection: socket.socket, message: bytes) -> _Answer | None:
    """None: it ended before it read the request, or without an answer."""
    with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(len(message).to_bytes(4, "little") + message)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        if answer:
            return msgspec.json.decode(answer, type=_Answer)
    return None


def _start_supervisor(settings: Settings) -> None:
    """Starts a process and waits until it listens, or has seen that another one does."""
    ready, tell = os.pipe2(os.O_CLOEXEC)
    package = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    try:
        with open(Path(settings.run_root) / "supervisor.log", "ab") as log:
            if log.tell() > _MAX_LOG_BYTES:
                log.truncate(0)
            # A session of its own: a terminal that is closed does not take the tasks with it. What
            # is waited for is its first process, which leaves the second to init.
            subprocess.run(
                [sys.executable, "-m", "fargatelite.runtime.detached", settings.run_root,
                 str(tell)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                pass_fds=(tell,), start_new_session=True, cwd="/", check=True,
                env=os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
    finally:
        os.close(tell)
    with open(ready, "rb") as end:
        end.read()  # to the end of file: it has closed its side


def _order(settings: Settings, request: TaskRequest | None) -> None:
    ensure_private_directory(Path(settings.data_root))
    ensure_private_directory(Path(settings.run_root))
    path = _socket_path(settings)
    message = msgspec.json.encode(_Order(settings=settings, request=request))
    for _ in range(_ATTEMPTS):
        connection = _connect(path)
        if connection is None:
            _start_supervisor(settings)
            continue
        answer = _ask(connection, message)
        if answer is None:
            continue
        if answer.error is not None:
            raise FargateliteError(answer.error + _advice_on(answer.error))
        return
    raise ConfigurationInvalid(
        f"no supervisor answers at {path}; see supervisor.log beside it", path=path
    )


def _advice_on(error: str) -> str:
    """What to do about a supervisor of another version; version 1 knew no other."""
    if error.startswith(_NO_REQUEST) or " speaks version " in error:
        return (
            "; it is of another version of fargatelite: it ends with its last task, or kill it "
            "(SIGKILL), and the next command has its tasks adopted by this version"
        )
    return ""


def start_detached(settings: Settings, request: TaskRequest) -> TaskRecord:
    """Has the run root's supervisor start a task; returns its record once it has begun.

    Raises: FargateliteError with the supervisor's words; ConfigurationInvalid when none can be
        started.
    """
    _order(settings, request)
    return read_record(settings, request.task_id)


def ensure_supervised(settings: Settings) -> None:
    """Has the run root's supervisor adopt the tasks that have lost theirs; nothing happens when
    there are none.

    Raises: FargateliteError naming a task that cannot be adopted; ConfigurationInvalid.
    """
    if is_one_lost(settings):
        _order(settings, None)


# ---- the supervisor's side ----


class _Service:
    """Accepts requests until there is nothing left to do."""

    def __init__(self, run_root: Path) -> None:
        self._run_root = run_root
        self._path = run_root / "supervisor.sock"
        self._tasks = 0
        self._changed = threading.Condition()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_ending = False

    def serve(self, listener: socket.socket) -> None:
        """Until `LINGER_S` have passed without a task, or a signal asks to end."""
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            idle_since = time.monotonic()
            while not self._is_ending:
                with self._changed:
                    if self._tasks:
                        idle_since = time.monotonic()
                        left = None
                    else:
                        left = idle_since + LINGER_S - time.monotonic()
                if left is not None and left <= 0:
                    return
                for key, _ in selector.select(left):
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        self._answer(connection)
                    else:
                        os.eventfd_read(self._wake)
                        idle_since = time.monotonic()

    def end(self) -> None:
        """Asks `serve` to return; from a signal handler."""
        self._is_ending = True
        os.eventfd_write(self._wake, 1)

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(_ANSWER_S)
            try:
                answer = self._start(_receive(connection))
            except (FargateliteError, OSError) as error:
                answer = _Answer(error=str(error))
            with contextlib.suppress(OSError):  # who asked has gone; the task has begun
                connection.sendall(msgspec.json.encode(answer))

    def _start(self, message: bytes) -> _Answer:
        try:
            version = msgspec.json.decode(message, type=_Head).version
            if version != PROTOCOL_VERSION:
                raise StateCorrupt(
                    f"the supervisor of {self._run_root} speaks version {PROTOCOL_VERSION}, the "
                    f"request has {version}"
                )
            order = msgspec.json.decode(message, type=_Order)
        except msgspec.MsgspecError as error:
            raise StateCorrupt(f"{_NO_REQUEST}: {error}") from error
        if order.request is None:
            return self._adopt(order.settings)
        request = order.request
        supervised = self._count(
            lambda: start_task(
                order.settings, request, Timeline(), on_finished=self._finished, has_known_id=True
            )
        )
        assert supervised is not None
        # Until its first state is written, nobody else could find it.
        with supervised.changed:
            supervised.changed.wait_for(
                lambda: supervised.run.read_state() is not None or supervised.is_finished, _ANSWER_S
            )
        return _Answer()

    def _count(self, begin: Callable[[], SupervisedTask | None]) -> SupervisedTask | None:
        """Counts a task from before it begins, so that the process stays for it."""
        with self._changed:
            self._tasks += 1
        supervised = None
        try:
            supervised = begin()
        finally:
            if supervised is None:
                self._finished()
        return supervised

    def _adopt(self, settings: Settings) -> _Answer:
        failures = []
        for run in RunDirectory.list_all(settings.runs):
            try:
                self._count(functools.partial(adopt_task, settings, run, self._finished))
            except (TaskBusy, TaskNotFound):
                continue  # somebody else was faster, or it has ended
            except (FargateliteError, OSError) as error:
                failures.append(f"task {run.task_id[:12]}: {error}")
        return _Answer(error="; ".join(failures) or None)

    def _finished(self) -> None:
        with self._changed:
            self._tasks -= 1
        os.eventfd_write(self._wake, 1)


def _receive(connection: socket.socket) -> bytes:
    head = _receive_exactly(connection, 4)
    size = int.from_bytes(head, "little")
    if size > _MAX_MESSAGE_BYTES:
        raise StateCorrupt(f"a request of {size} bytes; at most {_MAX_MESSAGE_BYTES}")
    return _receive_exactly(connection, size)


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise StateCorrupt("a request that ends early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _take_lock(root: Path) -> bool:
    """The lock of this run root's supervisor, kept until this process ends; False when another one
    has it and listens. One that is about to end, which may take as long as its tasks take to stop,
    is waited for."""
    lock = os.open(root / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if (root / "supervisor.sock").exists() or time.monotonic() > deadline:
                os.close(lock)
                return False
            time.sleep(_LOCK_LOOK_S)  # flock(2) has no time-out of its own
        else:
            return True


def main(run_root: str, ready: int) -> None:
    """The supervisor process: listens, tells `ready`, serves, and takes its socket away."""
    if os.fork():
        os._exit(0)
    root = Path(run_root)
    if not _take_lock(root):
        return
    from fargatelite.host import forbid_core_dumps

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    forbid_core_dumps()
    allow_many()
    try:
        detect_driver().shelter(os.getpid())
    except FargateliteError as error:
        logging.warning("the supervisor stays in its caller's cgroup: %s", error)
    service = _Service(root)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.end())
    os.chdir(root)  # short relative names: a socket's path has 107 bytes at most
    fresh = f".supervisor.{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind(fresh)
        os.chmod(fresh, 0o600)
        listener.listen(64)
        os.rename(fresh, "supervisor.sock")
        os.close(ready)
        try:
            service.serve(listener)
        finally:
            os.unlink("supervisor.sock")
    # Tasks that are still there, when a signal ended it, are stopped at exit (runtime.supervise).


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
