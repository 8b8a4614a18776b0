"""Where the time of a launch went: named phases with their start and length."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fargatelite.sandbox.plan import Plan, describe_op

__all__ = ["Phase", "Timeline", "read_op_trace"]


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One step: `started_us` since the task was asked for, and how long it took."""

    name: str
    started_us: int
    duration_us: int


class Timeline:
    """Collects the phases of one task; used from several threads (append is atomic)."""

    def __init__(self) -> None:
        self._origin_ns = time.monotonic_ns()
        self.phases: list[Phase] = []

    def now_us(self) -> int:
        """Microseconds since the timeline began."""
        return (time.monotonic_ns() - self._origin_ns) // 1000

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Records the body as one phase, also when it fails."""
        started = self.now_us()
        try:
            yield
        finally:
            self.add(name, started, self.now_us() - started)

    def add(self, name: str, started_us: int, duration_us: int) -> None:
        """Records a phase that was measured elsewhere."""
        self.phases.append(Phase(name=name, started_us=started_us, duration_us=duration_us))


def read_op_trace(path: Path, plan: Plan) -> list[tuple[str, int]]:
    """Operation and microseconds, in order, from what the shim wrote; empty when it wrote nothing.

    Operations of the parent have no time of their own and are left out.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    stamps = struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8])
    rows = []
    previous = stamps[0] if stamps else 0
    for item, stamp in zip(plan, stamps[1:], strict=False):
        if stamp:
            rows.append((describe_op(item), (stamp - previous) // 1000))
            previous = stamp
    return rows
