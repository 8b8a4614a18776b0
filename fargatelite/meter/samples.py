"""What a ledger tells of a group, a task or a clock at one moment, whatever its format."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from msgspec import Struct

__all__ = [
    "KIB",
    "Mark",
    "MarkType",
    "NetworkSample",
    "Pressure",
    "Problem",
    "Sample",
    "SampleFlag",
    "SlowSample",
]

KIB = 1024


class SampleFlag(IntFlag):
    """Mirrors enum ledger_flags."""

    GAP_CPU = 1
    GAP_MEMORY = 2
    GAP_PEAK = 4
    GAP_THROTTLED = 8
    GAP_PIDS = 16
    FIRST = 32
    LAST = 64
    EXTRA = 128


class MarkType(IntEnum):
    """Mirrors enum ledger_mark_type."""

    GROUP = 1
    MISSED = 2
    STEP = 3
    SUSPEND = 4


class Sample(Struct, frozen=True, kw_only=True, gc=False):
    """One group at one moment. A value whose GAP flag is set is None, never 0; counters are since
    the group was made."""

    seq: int
    container: int | None
    """Index into `LedgerHeader.containers`; None for the task's own group."""
    flags: SampleFlag
    generation: int
    """Of the container's groups, modulo 256: one that restarts has a new one."""
    wall_ns: int
    monotonic_ns: int
    cpu_usage_ns: int | None
    memory_bytes: int | None
    memory_peak_bytes: int | None
    throttled_ns: int | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    pids: int | None = None
    late_us: int
    """From the second's boundary to the begin of the sweep."""


class SlowSample(Struct, frozen=True, kw_only=True, gc=False):
    """What is read at a slower pace; None for what could not be read."""

    container: int | None
    generation: int
    wall_ns: int
    monotonic_ns: int
    user_ns: int | None
    working_set_bytes: int | None
    """In use without inactive file cache, as ECS reports it."""
    rss_bytes: int | None
    cache_bytes: int | None
    read_bytes: int | None
    write_bytes: int | None


class Pressure(Struct, frozen=True, kw_only=True, gc=False):
    """Stall times (PSI) since the group was made; cgroup v2 only."""

    container: int | None
    generation: int
    wall_ns: int
    cpu_us: int | None
    memory_us: int | None
    memory_full_us: int | None
    io_us: int | None


class NetworkSample(Struct, frozen=True, kw_only=True, gc=False):
    """The task's interfaces without lo, since they were made."""

    wall_ns: int
    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int


class Mark(Struct, frozen=True, kw_only=True, gc=False):
    """Something about the clock or a group. `value` is a group's inode, missed seconds, or ns."""

    kind: int
    """A `MarkType`; readers pass over those that they do not know."""
    container: int | None
    generation: int
    wall_ns: int
    monotonic_ns: int
    value: int


class Problem(Struct, frozen=True, kw_only=True):
    """Damage that was skipped."""

    offset_bytes: int
    reason: str
