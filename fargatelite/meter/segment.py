"""Opens and locks the segment of a ledger that is to be written on.

Later segments are begun by the C thread (csrc/meter/segment.c), by the same rule about locks.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from msgspec import Struct, structs

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
        seen = _read_before(path, header.task_id)
        last = _read_segment(ledger.segment_path(path, number))
        if last is None and os.fstat(descriptor).st_size:
            goes_on = False
        else:
            goes_on = last is None or (last.version, last.header.boot_id) == (
                ledger.FORMAT_VERSION,
                header.boot_id,
            )
        containers = header.containers if seen is None else seen.header.containers
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
            groups=_newest_groups(seen),
        )
    except BaseException:
        os.close(descriptor)
        raise


def _read_before(path: Path, task_id: str) -> ledger.Ledger | None:
    """What the task's ledger says so far. Raises: StateCorrupt for another task's."""
    if path.stat().st_size == 0 and not ledger.segment_path(path, 1).exists():
        return None
    seen = ledger.read_task_ledger(path)
    if seen.header.task_id != task_id:
        raise StateCorrupt(
            f"ledger {path} is of task {seen.header.task_id}, not {task_id}", path=path
        )
    return seen


def _read_segment(path: Path) -> ledger.Ledger | None:
    """None when its header is not there or damaged."""
    try:
        return ledger.read_ledger(path)
    except StateCorrupt:
        return None


def _lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise TaskBusy(f"another process writes ledger {path}", path=path) from error
    return descriptor


def _newest_groups(seen: ledger.Ledger | None) -> dict[int, tuple[int, int]]:
    groups: dict[int, tuple[int, int]] = {}
    if seen is None:
        return groups
    for mark in seen.marks:
        if mark.kind == ledger.MarkType.GROUP:
            index = ledger.TASK_INDEX if mark.container is None else mark.container
            groups[index] = (mark.generation, mark.value)
    for sample in seen.samples:  # where a mark is damaged the generation is still taken
        index = ledger.TASK_INDEX if sample.container is None else sample.container
        if groups.get(index, (None,))[0] != sample.generation:
            groups[index] = (sample.generation, -1)
    return groups
