"""What a report shows, as data: curves, events, phases and the bill. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from msgspec import Struct

from fargatelite.billing.bill import Bill
from fargatelite.meter.ledger import Ledger, Sample, container_name
from fargatelite.meter.usage import Bucket, TaskUsage

__all__ = ["Curve", "Moment", "PhaseBar", "ReportData", "curves_of", "curves_of_minutes"]

POINTS = 480
"""Of a curve; more do not show on a page 960 pixels wide."""
_SECOND_NS = 1_000_000_000
_MINUTE_NS = 60 * _SECOND_NS
_LONGEST_STEP_NS = 120 * _SECOND_NS


class Curve(Struct, frozen=True, kw_only=True):
    """One group over time. Points are (ns since the report's begin, value); None breaks the line:
    nobody measured."""

    name: str | None
    cpu_vcpu: tuple[tuple[int, float | None], ...]
    memory_bytes: tuple[tuple[int, float | None], ...]
    throttled_share: tuple[tuple[int, float | None], ...]


class Moment(Struct, frozen=True, kw_only=True):
    """Something that happened. `weight` 2 gets a line in the curves."""

    at_ns: int
    """Since the report's begin."""
    subject: str
    text: str
    kind: str
    """`pull`, `start`, `health`, `oom`, `stop`, `clock` or `other`."""
    weight: int = 1


class PhaseBar(Struct, frozen=True, kw_only=True):
    """A phase of the launch or the removal."""

    name: str
    started_us: int
    duration_us: int


class ReportData(Struct, frozen=True, kw_only=True):
    """All of a page."""

    task_id: str
    family: str
    revision: int
    status: str
    stop_reason: str
    cluster: str
    region: str
    begin_at_ns: int
    """Wall clock."""
    length_ns: int
    cpu_units: int
    memory_mib: int
    curves: tuple[Curve, ...]
    moments: tuple[Moment, ...]
    phases: tuple[PhaseBar, ...]
    bill: Bill
    used: TaskUsage | None
    is_by_minute: bool
    """The curves are of roll-ups: samples have been dropped."""
    tags: Mapping[str, str] = {}


def _thin(
    points: list[tuple[int, float | None]], *, highest: bool
) -> tuple[tuple[int, float | None], ...]:
    """At most POINTS points, each the mean (or the highest) of its neighbours."""
    if len(points) <= POINTS:
        return tuple(points)
    size = -(-len(points) // POINTS)
    thinned: list[tuple[int, float | None]] = []
    for at in range(0, len(points), size):
        part = points[at : at + size]
        values = [value for _, value in part if value is not None]
        middle = part[len(part) // 2][0]
        if not values:
            thinned.append((middle, None))
        else:
            thinned.append((middle, max(values) if highest else sum(values) / len(values)))
    return tuple(thinned)


def curves_of(ledger: Ledger, begin_at_ns: int) -> tuple[Curve, ...]:
    """A curve for each container and the task, from samples."""
    by_container: dict[int | None, list[Sample]] = {}
    for sample in ledger.samples:
        by_container.setdefault(sample.container, []).append(sample)
    base_ns = _monotonic_begin(ledger, begin_at_ns)
    curves = []
    for container, samples in sorted(
        by_container.items(), key=lambda item: (item[0] is None, item[0] or 0)
    ):
        cpu: list[tuple[int, float | None]] = []
        throttled: list[tuple[int, float | None]] = []
        memory: list[tuple[int, float | None]] = [
            (sample.monotonic_ns - base_ns, sample.memory_bytes) for sample in samples
        ]
        for before, after in itertools.pairwise(samples):
            step_ns = after.monotonic_ns - before.monotonic_ns
            at_ns = after.monotonic_ns - base_ns
            if after.generation != before.generation or step_ns > _LONGEST_STEP_NS:
                cpu.append((at_ns, None))
            elif (
                step_ns > _SECOND_NS // 2
                and after.cpu_usage_ns is not None
                and before.cpu_usage_ns is not None
            ):
                cpu.append((at_ns, (after.cpu_usage_ns - before.cpu_usage_ns) / step_ns))
                if after.periods is not None and before.periods is not None:
                    periods = after.periods - before.periods
                    held = (after.throttled_periods or 0) - (before.throttled_periods or 0)
                    throttled.append((at_ns, held / periods if periods > 0 else 0.0))
        curves.append(
            Curve(
                name=container_name(ledger.header, container),
                cpu_vcpu=_thin(cpu, highest=False),
                memory_bytes=_thin(memory, highest=True),
                throttled_share=_thin(throttled, highest=False),
            )
        )
    return tuple(curves)


def _monotonic_begin(ledger: Ledger, begin_at_ns: int) -> int:
    """What the monotonic clock said when the wall clock said `begin_at_ns`."""
    if not ledger.samples:
        return 0
    first = ledger.samples[0]
    return first.monotonic_ns - (first.wall_ns - begin_at_ns)


def curves_of_minutes(
    minutes: Mapping[str | None, Mapping[int, Bucket]], begin_at_ns: int
) -> tuple[Curve, ...]:
    """Likewise from a roll-up: CPU is the mean of a minute, memory its highest."""

    def points(
        rows: Iterable[tuple[int, float | None]], *, highest: bool
    ) -> tuple[tuple[int, float | None], ...]:
        middle_ns = _MINUTE_NS // 2 - begin_at_ns
        found = [(minute * _MINUTE_NS + middle_ns, value) for minute, value in rows]
        return _thin(found, highest=highest)

    curves = []
    for name, buckets in sorted(minutes.items(), key=lambda item: (item[0] is None, item[0])):
        rows = sorted(buckets.items())
        curves.append(
            Curve(
                name=name,
                cpu_vcpu=points(
                    (
                        (minute, item.cpu_ns / item.observed_ns if item.observed_ns else None)
                        for minute, item in rows
                    ),
                    highest=False,
                ),
                memory_bytes=points(
                    ((minute, item.memory_max_bytes) for minute, item in rows), highest=True
                ),
                throttled_share=points(
                    (
                        (minute, item.throttled_periods / item.periods if item.periods else 0.0)
                        for minute, item in rows
                    ),
                    highest=False,
                ),
            )
        )
    return tuple(curves)
