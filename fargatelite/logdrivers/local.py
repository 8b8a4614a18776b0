"""Reads the log files that shims write (CRI format, csrc/shim/streams.c), also while they grow and
are rotated.

`web.log` is the file being written. At its bound the shim renames it to `web.log.<place>`, the
place of its first byte among all bytes ever written (csrc/shim/logfile.c), and removes the oldest.
A reader that keeps up loses nothing, since a file that it has open stays readable; one that does
not is told how many bytes it has missed.
"""

from __future__ import annotations

import datetime
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

__all__ = ["LogLine", "LogTail", "log_path", "parse_log_line", "read_log"]

_CHUNK_BYTES = 256 * 1024
_SECOND_NS = 1_000_000_000


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


@functools.lru_cache(maxsize=4)  # thousands of records share a second; strptime takes 8 us
def _parse_second(text: bytes) -> int:
    parsed = datetime.datetime.strptime(text.decode(), "%Y-%m-%dT%H:%M:%S")
    return int(parsed.replace(tzinfo=datetime.UTC).timestamp())


def parse_log_line(container: str, line: bytes) -> LogLine | None:
    """One line of a log file; None for one that a full disk tore."""
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr") or parts[2] not in (b"F", b"P"):
        return None
    stamp = parts[0]
    if len(stamp) != 30 or stamp[-1:] != b"Z":
        return None
    try:
        at_ns = _parse_second(stamp[:19]) * _SECOND_NS + int(stamp[20:29])
    except (ValueError, UnicodeDecodeError):
        return None
    return LogLine(
        container=container,
        at_ns=at_ns,
        stream=parts[1].decode(),
        is_partial=parts[2] == b"P",
        text=parts[3],
    )


class LogTail:
    """What has been read of one container's log. Use from one thread."""

    def __init__(self, container: str, path: Path) -> None:
        self.container = container
        self._path = path
        self._fd = -1
        self._is_current = False
        self._place = 0  # of the next byte to read, among all ever written
        self._rest = b""
        self._rotated_name = re.compile(re.escape(path.name) + r"\.(\d{20})", re.ASCII)
        self.missed_bytes = 0
        """Rotated away before they were read."""

    @property
    def place(self) -> int:
        """How much of all that was ever written is behind this reader, missed bytes included."""
        return self._place

    @property
    def parsed_place(self) -> int:
        """Where the first record begins that has not been returned."""
        return self._place - len(self._rest)

    def go_to(self, place: int) -> None:
        """Goes on where an earlier reader was; before the first read. A place beyond all that was
        written is the end."""
        current = self._open(self._path)  # first, as in _open_next
        try:
            begin = 0
            for at, name in self._rotated():
                fd = self._open(self._path.with_name(name))
                size = os.fstat(fd).st_size if fd >= 0 else 0
                if at < place < at + size:
                    self._begin_within(fd, place, at)
                    return
                if fd >= 0:
                    os.close(fd)
                if at >= place:
                    self._place = place
                    return
                begin = at + size
            self._place = max(begin, place)
            if current >= 0 and place > begin:
                place = min(place, begin + os.fstat(current).st_size)
                self._begin_within(current, place, begin, is_current=True)
                current = -1
        finally:
            if current >= 0:
                os.close(current)

    def _begin_within(self, fd: int, place: int, begin: int, *, is_current: bool = False) -> None:
        os.lseek(fd, place - begin, os.SEEK_SET)
        self._fd, self._is_current, self._place = fd, is_current, place

    def read(self) -> Iterator[LogLine]:
        """All records that are there."""
        while (lines := self.read_some()) is not None:
            yield from lines

    def read_some(self) -> list[LogLine] | None:
        """Some records, perhaps none; None when there is nothing more to read at this moment."""
        while True:
            if self._fd < 0 and not self._open_next():
                return None
            # Before the read: what the shim writes to a file it writes before it renames it, so an
            # end of file after the rename is the end.
            is_complete = not self._is_current or self._is_renamed()
            chunk = os.read(self._fd, _CHUNK_BYTES)
            if chunk:
                return self._parse(chunk)
            if not is_complete:
                return None
            self.close()

    def _parse(self, chunk: bytes) -> list[LogLine]:
        self._place += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        parsed = (parse_log_line(self.container, line) for line in lines)
        return [line for line in parsed if line is not None]

    def _is_renamed(self) -> bool:
        ours = os.fstat(self._fd)
        try:
            current = os.lstat(self._path)
        except FileNotFoundError:
            return True  # between rename and creation
        return (ours.st_dev, ours.st_ino) != (current.st_dev, current.st_ino)

    def _rotated(self) -> list[tuple[int, str]]:
        """Rotated files that begin here or later, oldest first."""
        found = []
        for name in os.listdir(self._path.parent):
            match = self._rotated_name.fullmatch(name)
            if match is not None and int(match[1]) >= self._place:
                found.append((int(match[1]), name))
        return sorted(found)

    def _open_next(self) -> bool:
        """Opens the file with the next byte, or, when that is gone, the oldest that there is."""
        while True:
            # First the current one: if it is renamed before the look at the others, it is among
            # them; if not, it is the one that follows on what was read.
            current = self._open(self._path)
            rotated = self._rotated() if current >= 0 or self._path.parent.is_dir() else []
            if not rotated:
                self._fd, self._is_current = current, True
                return current >= 0
            if current >= 0:
                os.close(current)
            place, name = rotated[0]
            self._fd, self._is_current = self._open(self._path.with_name(name)), False
            if self._fd >= 0:
                self.missed_bytes += place - self._place
                self._place = place
                return True

    @staticmethod
    def _open(path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return -1

    def close(self) -> None:
        """Closes the file; a torn record at its end is no record."""
        self._rest = b""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_log(records: Path, task_id: str, container: str) -> Iterator[LogLine]:
    """All records that are kept of a container's log, oldest first; none when it has no log."""
    tail = LogTail(container, log_path(records, task_id, container))
    try:
        yield from tail.read()
    finally:
        tail.close()
