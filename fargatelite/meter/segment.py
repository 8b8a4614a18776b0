"""Opens and locks the segment of a ledger that is to be written on.

Later segments are begun by the C thread (csrc/meter/segment.c), by the same rule about locks.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from msgspec import Struct, structs

from fargatelite.descriptors import move_high
from fargatelite.errors import StateCorrupt, TaskBusy
from fargatelite.meter import ledger

__all__ = ["OpenedSegment", "open_segment"]


class OpenedSegment(Struct, frozen=True, kw_only=True):
    """A locked segment that is to be written on."""

    descriptor: int
    number: int
    next_seq: int
    containers: tuple[str, ...]
    groups: dict[int, tuple[int, int]]
    """Newest generation and inode of each container index."""


def open_segment(path: Path, header: ledger.LedgerHeader) -> OpenedSegment:
    """A segment is of one boot and one version: the last one is gone on with, or a new one begun,
    also behind one whose header is damaged."""
    number, descriptor = 0, _lock(path)
    try:
        # The lock of one is kept until the next is locked: whoever comes next waits, and who writes
        # begins a new segment before it lets go of the full one.
        while ledger.segment_path(path, number + 1).exists():
            number += 1
            following = _lock(ledger.segment_path(path, number))
            os.close(descriptor)
            descriptor = following
        segments = _NewestFirst(path, number)
        last = segments.last
        if segments.header is not None and segments.header.task_id != header.task_id:
            raise StateCorrupt(
                f"ledger {path} is of task {segments.header.task_id}, not {header.task_id}",
                path=path,
            )
        goes_on = os.fstat(descriptor).st_size == 0 or (
            last is not None
            and (last.version, last.header.boot_id) == (ledger.FORMAT_VERSION, header.boot_id)
        )
        containers = (segments.header or header).containers
        if not goes_on:
            number += 1
            following = _lock(ledger.segment_path(path, number))
            os.close(descriptor)
            descriptor, last = following, None
        if last is None:
            page = ledger.encode_header(structs.replace(header, containers=containers))
            os.pwrite(descriptor, page, 0)
        return OpenedSegment(
            descriptor=descriptor,
            number=number,
            next_seq=0 if last is None else last.next_seq,
            containers=containers,
            groups=segments.groups,
        )
    except BaseException:
        os.close(descriptor)
        raise


class _NewestFirst:
    """What the segments say that a writer must know: the last one nearly always says all."""

    def __init__(self, path: Path, number: int) -> None:
        self.last: ledger.Ledger | None = None
        """None when its header is not there or damaged."""
        self.header: ledger.LedgerHeader | None = None
        """Of the newest that has one."""
        self.groups: dict[int, tuple[int, int]] = {}
        """Newest generation and inode of each container index."""
        error: StateCorrupt | None = None
        for older in range(number, -1, -1):
            segment = ledger.segment_path(path, older)
            try:
                found = ledger.read_ledger(segment)
            except StateCorrupt as reason:
                error = reason if segment.stat().st_size else error
                continue
            if older == number:
                self.last = found
            self.header = self.header or found.header
            self.groups = _newest_groups(found) | self.groups
            if len(self.groups) > len(self.header.containers):  # and the task's own
                break
        if self.header is None and error is not None:
            raise error


def _lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = move_high(os.open(path, flags, 0o600))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise TaskBusy(f"another process writes ledger {path}", path=path) from error
    return descriptor


def _newest_groups(seen: ledger.Ledger) -> dict[int, tuple[int, int]]:
    groups: dict[int, tuple[int, int]] = {}
    for mark in seen.marks:
        if mark.kind == ledger.MarkType.GROUP:
            index = ledger.TASK_INDEX if mark.container is None else mark.container
            groups[index] = (mark.generation, mark.value)
    for sample in seen.samples:  # where a mark is damaged the generation is still taken
        index = ledger.TASK_INDEX if sample.container is None else sample.container
        if groups.get(index, (None,))[0] != sample.generation:
            groups[index] = (sample.generation, -1)
    return groups
