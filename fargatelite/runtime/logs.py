"""Reads the log files that shims write (CRI format, see csrc/shim/streams.c), also while they grow.

Following waits on inotify(7), never by polling.
"""

from __future__ import annotations

import datetime
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

__all__ = ["LogFollower", "LogLine", "log_path", "parse_log_line", "read_log"]

_CHUNK_BYTES = 256 * 1024


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One record: `text` without newline; `is_partial` when the line goes on in the next record of
    the same stream."""

    container: str
    at_ns: int
    stream: str
    is_partial: bool
    text: bytes


def log_path(records: Path, task_id: str, container: str) -> Path:
    """The log file of a container, live or stopped."""
    return records / task_id / "logs" / f"{container}.log"


def parse_log_line(container: str, line: bytes) -> LogLine | None:
    """One line of a log file; None for one that a full disk tore."""
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr") or parts[2] not in (b"F", b"P"):
        return None
    stamp = parts[0]
    if len(stamp) != 30 or stamp[-1:] != b"Z":
        return None
    try:
        seconds = datetime.datetime.strptime(stamp[:19].decode(), "%Y-%m-%dT%H:%M:%S")
        nanoseconds = int(stamp[20:29])
    except (ValueError, UnicodeDecodeError):
        return None
    whole = int(seconds.replace(tzinfo=datetime.UTC).timestamp())
    return LogLine(
        container=container,
        at_ns=whole * 1_000_000_000 + nanoseconds,
        stream=parts[1].decode(),
        is_partial=parts[2] == b"P",
        text=parts[3],
    )


class _Tail:
    """What has been read of one file."""

    def __init__(self, container: str, path: Path) -> None:
        self.container = container
        self.path = path
        self._fd = -1
        self._rest = b""

    def read(self) -> Iterator[LogLine]:
        if self._fd < 0:
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return
        while chunk := os.read(self._fd, _CHUNK_BYTES):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                parsed = parse_log_line(self.container, line)
                if parsed is not None:
                    yield parsed

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_log(records: Path, task_id: str, container: str) -> Iterator[LogLine]:
    """All records of a container's log so far, oldest first; none when it has no log."""
    tail = _Tail(container, log_path(records, task_id, container))
    try:
        yield from tail.read()
    finally:
        tail.close()


class LogFollower:
    """New records of several containers of a task, as they are written.

    `fileno()` is readable when `read_new` may have something.
    """

    def __init__(self, records: Path, task_id: str, containers: tuple[str, ...]) -> None:
        import inotify_simple

        directory = records / task_id / "logs"
        self._tails = [_Tail(name, log_path(records, task_id, name)) for name in containers]
        self._inotify = inotify_simple.INotify(nonblocking=True)
        flags = inotify_simple.flags
        self._inotify.add_watch(os.fspath(directory), flags.MODIFY | flags.CREATE)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return int(self._inotify.fileno())

    def read_new(self) -> Iterator[LogLine]:
        """Records written since the last call, per container in order."""
        self._inotify.read(timeout=0)  # the events only say that something is there
        for tail in self._tails:
            yield from tail.read()

    def follow(self, is_over: Callable[[], bool], wake_fd: int) -> Iterator[LogLine]:
        """Records until `is_over()`; `wake_fd` becomes readable when that may have changed."""
        while True:
            last = is_over()  # before the read: what was written until then is in it
            yield from self.read_new()
            if last:
                return
            select.select([self.fileno(), wake_fd], [], [])

    def close(self) -> None:
        """Closes all files."""
        self._inotify.close()
        for tail in self._tails:
            tail.close()
