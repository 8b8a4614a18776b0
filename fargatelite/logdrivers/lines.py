"""Puts lines together again from the pieces that the shim read, and cuts those that are too long.

The shim writes what a read(2) gave it; a line ends with its newline or at 16 KiB, where Fargate's
own logger (and Docker's) cuts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from fargatelite.logdrivers.driver import LogRecord, Partial
from fargatelite.logdrivers.local import LogLine

__all__ = ["MAX_LINE_BYTES", "LineAssembler", "cut_text"]

MAX_LINE_BYTES = 16 * 1024


def cut_text(data: bytes, limit: int) -> int:
    """Where to cut so that at most `limit` bytes come before, and no UTF-8 character is cut."""
    if len(data) <= limit:
        return len(data)
    for at in range(limit, max(0, limit - 4), -1):
        if data[at] & 0xC0 != 0x80:
            return at
    return limit  # no UTF-8 at all


class _Unfinished:
    """A line whose newline is still to come."""

    def __init__(self, at_ns: int) -> None:
        self.at_ns = at_ns
        self.id = ""
        self.ordinal = 0
        self.data = b""


class LineAssembler:
    """One container's streams."""

    def __init__(self) -> None:
        self._unfinished: dict[str, _Unfinished] = {}

    @property
    def is_between_lines(self) -> bool:
        """Whether no line is unfinished."""
        return not self._unfinished

    def feed(self, line: LogLine) -> Iterator[LogRecord]:
        """The records that this piece completes."""
        if (
            not line.is_partial
            and len(line.text) <= MAX_LINE_BYTES
            and line.stream not in self._unfinished
        ):
            yield LogRecord(at_ns=line.at_ns, stream=line.stream, text=line.text)
            return
        state = self._unfinished.setdefault(line.stream, _Unfinished(line.at_ns))
        state.data += line.text
        while len(state.data) > MAX_LINE_BYTES:
            at = cut_text(state.data, MAX_LINE_BYTES)
            yield self._piece(line.stream, state, state.data[:at], is_last=False)
            state.data = state.data[at:]
        if not line.is_partial:
            del self._unfinished[line.stream]
            yield self._end(line.stream, state)

    def flush(self) -> Iterator[LogRecord]:
        """What has no newline and will get none."""
        for stream, state in self._unfinished.items():
            if state.data:
                yield self._end(stream, state)
        self._unfinished.clear()

    def _end(self, stream: str, state: _Unfinished) -> LogRecord:
        if state.ordinal:
            return self._piece(stream, state, state.data, is_last=True)
        return LogRecord(at_ns=state.at_ns, stream=stream, text=state.data)

    def _piece(self, stream: str, state: _Unfinished, text: bytes, *, is_last: bool) -> LogRecord:
        state.id = state.id or os.urandom(32).hex()  # Docker's form
        state.ordinal += 1
        partial = Partial(id=state.id, ordinal=state.ordinal, is_last=is_last)
        return LogRecord(at_ns=state.at_ns, stream=stream, text=text, partial=partial)
