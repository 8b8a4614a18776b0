"""Client of the C shim: starts one per task, sends plans, receives events.

The shim holds the task's namespaces and processes, so it outlives whoever started it; any process
of the same user can connect to its socket in the run directory later.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import threading
import zlib
from pathlib import Path

import msgspec

from fargatelite.descriptors import move_high
from fargatelite.errors import HostUnsupported, SandboxFailed, StateCorrupt

__all__ = [
    "EXIT_RECORD",
    "ExitRecord",
    "ProcessExited",
    "ProcessFailed",
    "ProcessStarted",
    "ProcessStatus",
    "Ready",
    "Refused",
    "Shim",
    "ShimEvent",
    "exit_code_of",
    "read_exit_records",
]

# csrc/formats/control.h
_MAGIC, _VERSION = 0x43464C46, 1
_REQUEST = struct.Struct("<IHHII")
_EVENT = struct.Struct("<IHHIiQQQiI")
_FAILURE = struct.Struct("<iHH24s200s")
_OUTPUT_BYTES = 4096
_START, _SIGNAL, _STATUS, _SHUTDOWN, _LOG_READ = 1, 2, 3, 4, 5
_START_STREAMS, _START_TERMINAL = 1, 2
_READY, _STARTED, _FAILED, _EXITED, _STATUS_EVENT, _REFUSED = 1, 2, 3, 4, 5, 6

# csrc/formats/exit_record.h
EXIT_RECORD = struct.Struct("<IHHIiiIQQQQQQII")
_EXIT_MAGIC, _EXIT_VERSION = 0x52584C46, 1

_PROGRAM = Path(__file__).parent / "_bin" / "fargatelite-shim"
SOCKET_NAME = "shim.sock"
_READY_TIMEOUT_S = 10.0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Which operation and system call failed, on what; `op_index` is None before the first."""

    errno: int
    op_index: int | None
    op_code: int
    call: str
    path: str


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The task's namespaces are there; the descriptors belong to the receiver."""

    user_namespace: int
    network_namespace: int


class ProcessStarted(msgspec.Struct, frozen=True, kw_only=True):
    """execve succeeded. `setup_ns` is from clone3 until then."""

    number: int
    pid: int
    started_at_ns: int
    setup_ns: int


class ProcessFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The plan failed before execve; the process is gone."""

    number: int
    failure: Failure


class ProcessExited(msgspec.Struct, frozen=True, kw_only=True):
    """The exit record is on disk. `output` is what a captured process wrote."""

    number: int
    pid: int
    exit_code: int
    started_at_ns: int
    stopped_at_ns: int
    output: bytes = b""


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A live process, in answer to `request_status`."""

    number: int
    pid: int
    started_at_ns: int


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A request that the shim could not carry out."""

    number: int
    failure: Failure


ShimEvent = Ready | ProcessStarted | ProcessFailed | ProcessExited | ProcessStatus | Refused


class ExitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One record of the file `exits`."""

    number: int
    pid: int
    exit_code: int
    started_at_ns: int
    stopped_at_ns: int
    user_us: int
    system_us: int
    max_rss_kib: int
    read_bytes: int
    """From disks, by the process and its reaped children."""
    written_bytes: int
    """Likewise; what was made dirty in the page cache is to be written."""
    dropped_log_bytes: int


def exit_code_of(wait_status: int) -> int:
    """A waitpid(2) status as ECS reports it: the exit status, or 128 + signal (contract 3.3)."""
    if os.WIFSIGNALED(wait_status):
        return 128 + os.WTERMSIG(wait_status)
    return os.WEXITSTATUS(wait_status)


def read_exit_records(path: Path) -> list[ExitRecord]:
    """The records of a task's `exits` file; a torn last one (power loss) is left out.

    Raises: StateCorrupt for a bad magic, version or checksum before the end.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for offset in range(0, len(data) - EXIT_RECORD.size + 1, EXIT_RECORD.size):
        fields = EXIT_RECORD.unpack_from(data, offset)
        if fields[0] != _EXIT_MAGIC or fields[1] != _EXIT_VERSION:
            raise StateCorrupt(
                f"exit record at byte {offset} of {path}: magic {fields[0]:#x} version {fields[1]},"
                f" expected {_EXIT_MAGIC:#x} version {_EXIT_VERSION}",
                path=path,
            )
        if zlib.crc32(data[offset : offset + EXIT_RECORD.size - 4]) != fields[-1]:
            raise StateCorrupt(f"exit record at byte {offset} of {path}: wrong CRC", path=path)
        (_, _, _, number, pid, status, sectors_in, started, stopped, user, system, rss, dropped,
         sectors_out, _) = fields  # fmt: skip
        records.append(
            ExitRecord(
                number=number,
                pid=pid,
                exit_code=exit_code_of(status),
                started_at_ns=started,
                stopped_at_ns=stopped,
                user_us=user,
                system_us=system,
                max_rss_kib=rss,
                read_bytes=sectors_in * 512,
                written_bytes=sectors_out * 512,
                dropped_log_bytes=dropped,
            )
        )
    return records


_program_lock = threading.Lock()
_program_fd = -1


def _sealed_program() -> int:
    """A descriptor of a sealed in-memory copy of the shim, made once per process.

    Nothing that runs in a task can overwrite it, not even through /proc/self/exe (CVE-2019-5736).
    """
    global _program_fd
    with _program_lock:
        if _program_fd < 0:
            try:
                program = _PROGRAM.read_bytes()
            except FileNotFoundError as error:
                raise HostUnsupported(
                    f"the shim is not built: {_PROGRAM} is missing; run `make build`"
                ) from error
            fd = os.memfd_create("fargatelite-shim", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            with memoryview(program) as view:
                written = 0
                while written < len(view):
                    written += os.write(fd, view[written:])
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            _program_fd = _high(fd)  # the child opens it by number, after its dup2 calls
            os.close(fd)
        return _program_fd


def _high(fd: int) -> int:
    """A duplicate above the numbers that the shim expects, so that dup2 cannot overwrite one."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "replace").strip()


def _failure(data: bytes, offset: int) -> Failure:
    error, index, code, call, path = _FAILURE.unpack_from(data, offset)
    return Failure(
        errno=error,
        op_index=None if index == 0xFFFF else index,
        op_code=code,
        call=_text(call),
        path=_text(path),
    )


class Shim:
    """A connection to one task's shim. Use from one thread; `fileno()` is for a selector."""

    def __init__(self, connection: socket.socket, pid: int | None) -> None:
        self._connection = socket.socket(fileno=move_high(connection.detach()))
        self.pid = pid
        """Process id when this process is its parent, else None."""

    @classmethod
    def start(cls, run_directory: Path, id_base: int, id_count: int) -> Shim:
        """Starts a shim for a run directory; its first event is `Ready` or `ProcessFailed`.

        `id_base`, `id_count`: the host's ids of the task's user namespace.
        Raises: HostUnsupported when the shim is not built; OSError.
        """
        program = _sealed_program()
        with contextlib.ExitStack() as stack:

            def closing(fd: int) -> int:
                stack.callback(os.close, fd)
                return fd

            directory = closing(os.open(run_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            ours, theirs = socket.socketpair(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
            )
            stack.enter_context(theirs)
            listening = stack.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            )
            # Through /proc/self/fd: a socket address holds 107 bytes, a run root may be longer.
            listening.bind(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
            listening.listen(8)
            null = closing(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            inherited = [
                (closing(_high(null)), 0),
                (closing(_high(null)), 1),
                (closing(_high(null)), 2),
                (closing(_high(theirs.fileno())), 3),
                (closing(_high(listening.fileno())), 4),
                (closing(_high(directory)), 5),
            ]
            # posix_spawn is vfork and exec: 0.4 ms whatever the size of this process (design).
            pid = os.posix_spawn(
                f"/proc/self/fd/{program}",
                ["fargatelite-shim", str(id_base), str(id_count)],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, source, to) for source, to in inherited],
            )
        return cls(ours, pid)

    @classmethod
    def connect(cls, run_directory: Path) -> Shim:
        """Connects to the shim of a run directory.

        Raises: FileNotFoundError or ConnectionRefusedError when there is none.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        directory = os.open(run_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        except OSError:
            connection.close()
            raise
        finally:
            os.close(directory)
        return cls(connection, None)

    def fileno(self) -> int:
        """The connection's descriptor; readable when `receive` has something."""
        return self._connection.fileno()

    def _request(
        self, kind: int, number: int = 0, value: int = 0, descriptors: tuple[int, ...] = ()
    ) -> None:
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            if descriptors
            else []
        )
        message = _REQUEST.pack(_MAGIC, _VERSION, kind, number, value)
        self._connection.sendmsg([message], ancillary, socket.MSG_NOSIGNAL)

    def start_process(
        self,
        number: int,
        plan: bytes,
        *,
        streams: tuple[int, int, int] | None = None,
        terminal: int | None = None,
    ) -> None:
        """Asks to start a process; answered by ProcessStarted or ProcessFailed.

        `streams`: descriptors of its stdin, stdout and stderr, instead of pipes and a log;
        `terminal`: a Unix socket that gets the master of the plan's terminal.
        The plan travels as a memfd: it may hold secrets (environment), so it touches no disk.
        """
        flags = _START_STREAMS if streams is not None else 0
        more: tuple[int, ...] = streams or ()
        if terminal is not None:
            flags, more = _START_TERMINAL, (terminal,)
        fd = os.memfd_create("plan", os.MFD_CLOEXEC)
        try:
            os.write(fd, plan)
            self._request(_START, number, flags, (fd, *more))
        finally:
            os.close(fd)

    def signal_process(self, number: int, signal: int) -> None:
        """Sends a signal to a process by its pidfd; a process that is gone answers `Refused`."""
        self._request(_SIGNAL, number, signal)

    def tell_log_read(self, number: int, count: int) -> None:
        """Tells that `count` (below 2^32) more bytes of a process's log were read; one that waits
        for that (operation `log_hold`) goes on. From any thread.

        Raises: BlockingIOError when the shim is behind with its requests; OSError when it is gone.
        """
        message = _REQUEST.pack(_MAGIC, _VERSION, _LOG_READ, number, count)
        self._connection.sendmsg([message], [], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def request_status(self) -> None:
        """Asks for one ProcessStatus per live process, then Ready."""
        self._request(_STATUS)

    def shut_down(self) -> None:
        """Asks the shim to end; refused while processes live."""
        self._request(_SHUTDOWN)

    def receive(self, timeout_s: float | None = None) -> ShimEvent | None:
        """The next event; None when the shim is gone.

        Raises: TimeoutError; StateCorrupt for a message that is not of this version.
        """
        self._connection.settimeout(timeout_s)
        try:
            data, ancillary, _, _ = self._connection.recvmsg(
                _EVENT.size + _FAILURE.size + _OUTPUT_BYTES, socket.CMSG_SPACE(8)
            )
        except ConnectionResetError:
            return None
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % 4])
        descriptors = array.array("i", [move_high(fd) for fd in descriptors])
        if not data:
            return None
        return self._decode(data, list(descriptors))

    @staticmethod
    def _decode(data: bytes, descriptors: list[int]) -> ShimEvent:
        header = _EVENT.size
        if len(data) < header + _FAILURE.size:
            raise StateCorrupt(f"the shim sent {len(data)} bytes, not an event")
        magic, version, kind, number, pid, started, stopped, setup, status, output = (
            _EVENT.unpack_from(data)
        )
        if magic != _MAGIC or version != _VERSION:
            raise StateCorrupt(f"the shim speaks version {version}, this is version {_VERSION}")
        match kind:
            case 1 if len(descriptors) == 2:
                return Ready(user_namespace=descriptors[0], network_namespace=descriptors[1])
            case 2:
                return ProcessStarted(number=number, pid=pid, started_at_ns=started, setup_ns=setup)
            case 3:
                return ProcessFailed(number=number, failure=_failure(data, header))
            case 4:
                return ProcessExited(
                    number=number,
                    pid=pid,
                    exit_code=exit_code_of(status),
                    started_at_ns=started,
                    stopped_at_ns=stopped,
                    output=data[header + _FAILURE.size :][:output],
                )
            case 5:
                return ProcessStatus(number=number, pid=pid, started_at_ns=started)
            case 6:
                return Refused(number=number, failure=_failure(data, header))
        raise StateCorrupt(f"the shim sent an event of unknown type {kind}")

    def wait_ready(self) -> Ready:
        """The first event of a shim that was just started.

        Raises: SandboxFailed when it could not make the namespaces; TimeoutError.
        """
        match self.receive(_READY_TIMEOUT_S):
            case Ready() as ready:
                return ready
            case ProcessFailed(failure=failure):
                # ENOSPC is user.max_user_namespaces (user_namespaces(7)), EINVAL a kernel without.
                lacks_user = failure.errno in (errno.ENOSPC, errno.EINVAL)
                hint = "allow user namespaces (sysctl user.max_user_namespaces)" * lacks_user
                raise SandboxFailed(
                    f"cannot prepare the task's namespaces: {failure.call} {failure.path}: "
                    f"{os.strerror(failure.errno)}; {hint or 'see `fargatelite check`'}",
                    call=failure.call,
                    errno=failure.errno,
                    path=failure.path,
                )
        raise SandboxFailed('the shim ended before it was ready; see "fargatelite check"')

    def close(self) -> None:
        """Closes the connection, and reaps the shim when it is our child and gone or going.

        A shim without connections and processes ends at once, so this does not block for long.
        """
        self._connection.close()

    def abort(self) -> None:
        """Ends a shim that this process started, and with it (PR_SET_PDEATHSIG) all of its
        processes: of a task that could not be provisioned."""
        self.close()
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)  # ours and not reaped: nobody else has the number
            self.reap()

    def reap(self) -> None:
        """Waits for the end of a shim that this process started; call after `close`."""
        if self.pid is not None:
            with contextlib.suppress(ChildProcessError):  # reaped by the embedding program
                os.waitpid(self.pid, 0)
            self.pid = None
