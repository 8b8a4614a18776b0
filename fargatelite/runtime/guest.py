"""A process in a container that runs already: what `fargatelite exec` does.

Any process of the host's root may do it, with or without the task's supervisor: the shim starts the
guest, with the container's own environment, which nobody else has. Input and output pass through
pipes or the container's own terminal: no descriptor of the caller gets into the container, where
a file could be opened anew through /proc and a terminal be typed into (TIOCSTI).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import selectors
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence

from fargatelite import names
from fargatelite.errors import ExecFailed, FargateliteError, SandboxFailed, TaskNotFound
from fargatelite.rundir import RunDirectory
from fargatelite.runtime.reasons import describe_failure, start_failure_exit_code
from fargatelite.runtime.record import TaskRecord
from fargatelite.sandbox.compile import complete_guest
from fargatelite.sandbox.plan import Plan, decode_plan, encode_plan
from fargatelite.settings import Settings
from fargatelite.shim import ProcessExited, ProcessFailed, ProcessStarted, Refused, Shim

__all__ = ["GUEST_NUMBER", "choose_container", "run_guest"]

GUEST_NUMBER = 2000  # process numbers in the shim: containers, then health checks, then guests
_CHUNK_BYTES = 65536
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def choose_container(record: TaskRecord, name: str | None) -> int:
    """The number of the container that is meant; the only one when none is named.

    Raises: FargateliteError naming the containers; TaskNotFound for one that does not run.
    """
    known = [container.name for container in record.state.containers]
    if name is None:
        if len(known) > 1:
            raise FargateliteError(
                f"task {record.task_id[:12]} has {len(known)} containers ({', '.join(known)}); "
                "say which with --container"
            )
        name = known[0]
    if name not in known:
        raise FargateliteError(
            f"task {record.task_id[:12]} has no container {name!r}; it has {', '.join(known)}"
        )
    number = known.index(name)
    if record.state.containers[number].last_status != "RUNNING":
        raise TaskNotFound(
            f"container {name} of task {record.task_id[:12]} is "
            f"{record.state.containers[number].last_status}, not RUNNING"
        )
    return number


class _Pump:
    """Copies between the caller's descriptors and the guest's until the guest has ended."""

    def __init__(self, shim: Shim, number: int, plan: Plan) -> None:
        self.shim = shim
        self.number = number
        self.plan = plan
        self.selector = selectors.DefaultSelector()
        self.selector.register(shim, selectors.EVENT_READ, self.on_event)
        self.exit_code: int | None = None
        self.outputs = 0

    def on_event(self) -> None:
        match self.shim.receive(0):
            case None:
                raise SandboxFailed("the task ended")
            case ProcessFailed(number=self.number, failure=failure):
                code = start_failure_exit_code(failure, self.plan)
                raise ExecFailed(describe_failure(failure, self.plan, "exec"), code)
            case Refused(number=self.number, failure=failure):
                raise SandboxFailed(f"exec: {failure.path}: {os.strerror(failure.errno)}")
            case ProcessExited(number=self.number, exit_code=code):
                self.exit_code = code
            case ProcessStarted():
                pass

    def copy(self, source: int, target: int, at_end: Callable[[], None]) -> None:
        """Begins to copy; `at_end` is called once, when all of the source is in the target.

        A target of ours is non-blocking, and what it does not take is kept while the source waits:
        a guest that waits for its reader must not keep us from reading.
        """
        kept = b""

        def read() -> None:
            try:
                data = os.read(source, _CHUNK_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal whose last process is gone
                    raise
                data = b""
            if not data:
                self.selector.unregister(source)
                at_end()
            elif not write(data):
                self.selector.unregister(source)
                self.selector.register(target, selectors.EVENT_WRITE, write_on)

        def write(data: bytes) -> bool:
            nonlocal kept
            view = memoryview(data)
            while view:
                try:
                    view = view[os.write(target, view) :]
                except BlockingIOError:
                    break
                except BrokenPipeError:
                    view = view[:0]  # nobody reads; the source is emptied as into /dev/null
            kept = bytes(view)
            return not kept

        def write_on() -> None:
            if write(kept):
                self.selector.unregister(target)
                self.selector.register(source, selectors.EVENT_READ, read)

        self.selector.register(source, selectors.EVENT_READ, read)

    def run(self) -> int:
        """Until the guest has ended and all its output is copied; its exit code.

        What it left running may hold its pipes: they are not waited for.
        """
        while self.exit_code is None or self.outputs:
            ready = self.selector.select(None if self.exit_code is None else 0.2)
            if self.exit_code is not None and not ready:
                break
            for key, _ in ready:
                key.data()
        return self.exit_code


def _size_of(fd: int) -> tuple[int, int]:
    """Rows and columns; 0 for what is no terminal."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return rows, columns


def _resize(master: int, like: int) -> None:
    with contextlib.suppress(OSError):  # not a terminal: the size stays as it is
        size = fcntl.ioctl(like, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)


@contextlib.contextmanager
def _raw_terminal(fd: int) -> Iterator[None]:
    try:
        before = termios.tcgetattr(fd)
    except termios.error:
        yield  # not a terminal
        return
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals(actions: dict[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    before = {number: signal.signal(number, lambda n, _: actions[signal.Signals(n)]())
              for number in actions}  # fmt: skip
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_with_terminal(pump: _Pump, data: bytes, stdin: int | None, stdout: int) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pump.shim.start_process(pump.number, data, terminal=theirs.fileno())
        theirs.close()
        _, received, _, _ = socket.recv_fds(ours, 1, 1)
    if not received:
        pump.run()  # it failed before it had a terminal: its event says why
        raise SandboxFailed("exec: no terminal came")
    (master,) = received[:1]
    try:
        os.set_blocking(master, False)
        pump.outputs = 1

        def ended() -> None:
            pump.outputs = 0

        pump.copy(master, stdout, ended)
        with contextlib.ExitStack() as stack:
            if stdin is not None:
                pump.copy(stdin, master, lambda: None)
                stack.enter_context(_raw_terminal(stdin))
            stack.enter_context(_signals({signal.SIGWINCH: lambda: _resize(master, stdout)}))
            return pump.run()
    finally:
        os.close(master)


def _run_with_pipes(
    pump: _Pump, data: bytes, stdin: int | None, stdout: int, stderr: int, owner: tuple[int, int]
) -> int:
    with contextlib.ExitStack() as stack:

        def pipe() -> tuple[int, int]:
            ends = os.pipe2(os.O_CLOEXEC)
            for end in ends:
                # The guest may open /dev/stdout anew, which asks for the pipe's owner.
                os.fchown(end, *owner)
            return ends

        if stdin is None:
            in_read = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        else:
            in_read, in_write = pipe()
            os.set_blocking(in_write, False)
        out_read, out_write = pipe()
        err_read, err_write = pipe()
        pump.shim.start_process(pump.number, data, streams=(in_read, out_write, err_write))
        for end in (in_read, out_write, err_write):
            os.close(end)
        for source, target in ((out_read, stdout), (err_read, stderr)):
            stack.callback(os.close, source)
            pump.outputs += 1

            def ended() -> None:
                pump.outputs -= 1

            pump.copy(source, target, ended)
        if stdin is not None:
            pump.copy(stdin, in_write, lambda: os.close(in_write))

        def forward(number: signal.Signals) -> Callable[[], None]:
            return lambda: pump.shim.signal_process(pump.number, number)

        stack.enter_context(_signals({number: forward(number) for number in _FORWARDED}))
        return pump.run()


def run_guest(
    settings: Settings,
    record: TaskRecord,
    container: str | None,
    argv: Sequence[str],
    *,
    interactive: bool = False,
    terminal: bool = False,
    environment: Sequence[str] = (),
    force: bool = False,
) -> int:
    """Runs a command in a container and returns its exit code; from the main thread.

    Uses this process's standard streams: stdin only when `interactive`. `environment` (NAME=value)
    goes over the container's own. `force`: also where the task was not started with
    enableExecuteCommand.
    Raises: TaskNotFound for a task or container that does not run; ExecFailed when the program
        could not be started; FargateliteError.
    """
    if not record.facts.enable_execute_command and not force:
        # ExecuteCommand's InvalidParameterException has these words.
        raise FargateliteError(
            "the execute command failed because execute command was not enabled when the task was "
            "run: run it with --enable-execute-command, or use --force on your own host"
        )
    number = choose_container(record, container)
    run = RunDirectory(settings.runs, names.parse_task_id(record.task_id))
    template = run.read_guest_plan(record.state.containers[number].name)
    try:
        shim = Shim.connect(run.path)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise TaskNotFound(f"task {record.task_id[:12]} is gone") from error
    if template is None:
        raise TaskNotFound(f"task {record.task_id[:12]} is gone")
    plan = complete_guest(
        decode_plan(template), number, tuple(argv), tuple(environment),
        terminal=_size_of(sys.stdout.fileno()) if terminal else None,
    )  # fmt: skip
    pump = _Pump(shim, GUEST_NUMBER + secrets.randbelow(2**31 - GUEST_NUMBER), plan)
    stdin = sys.stdin.fileno() if interactive else None
    try:
        if terminal:
            return _run_with_terminal(pump, encode_plan(plan), stdin, sys.stdout.fileno())
        streams = next(item for item in plan if item.name == "streams")
        uid, gid = (int(value) for value in streams.values if isinstance(value, int))
        return _run_with_pipes(
            pump, encode_plan(plan), stdin, sys.stdout.fileno(), sys.stderr.fileno(), (uid, gid)
        )
    finally:
        pump.selector.close()
        shim.close()
