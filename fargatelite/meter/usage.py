"""What a ledger proves was used: sums by container, by minute, and how use was spread. Pure.

Everything is whole numbers that are added up step by step (a step leads from one sample of a group
to the next), so that roll-ups of any length add up to the raw data exactly.

CPU is the growth of each group's cumulative counter, so a gap loses none of it. Memory is the
trapezoid between neighbouring samples of one group; across more than 1.5 s, or a gap, the same line
counts as estimated. A group that lived between two ticks has two samples, taken when it was empty:
its peak is taken for its whole life, an upper bound, estimated too. Time is the monotonic clock's,
so setting the wall clock neither adds nor takes any.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from msgspec import Struct

from fargatelite.meter.ledger import (
    Ledger,
    MarkType,
    Sample,
    SampleFlag,
    container_name,
)

__all__ = [
    "Bucket",
    "ClockStep",
    "Profile",
    "Spread",
    "TaskUsage",
    "Traffic",
    "Usage",
    "bucket_samples",
    "join_buckets",
    "measure",
    "profile_of",
    "summarise",
    "traffic_by_hour",
]

MINUTE_NS = 60_000_000_000
SECOND_NS = 1_000_000_000
_EXPECTED_INTERVAL_NS = 1_500_000_000
"""Samples come every second; a longer step is time that nobody watched."""
_SHORTEST_RATE_NS = 500_000_000
"""Over less than half an interval a rate is noise: an extra sample beside a tick."""


class Bucket(Struct, kw_only=True):
    """Sums of the steps that end in one stretch of time."""

    cpu_ns: int = 0
    memory_byte_ns: int = 0
    observed_ns: int = 0
    estimated_ns: int = 0
    throttled_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    samples: int = 0
    gaps: int = 0
    memory_max_bytes: int = 0
    memory_peak_bytes: int = 0
    cpu_max_ns_per_s: int = 0
    pids_max: int = 0
    working_set_max_bytes: int = 0
    rss_max_bytes: int = 0
    cache_max_bytes: int = 0

    def add(self, other: Bucket) -> None:
        """Takes in what another stretch of time has."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _MAXIMA:
            setattr(self, name, max(getattr(self, name), getattr(other, name)))


_MAXIMA = tuple(name for name in Bucket.__struct_fields__ if "_max" in name or "_peak" in name)
_SUMS = tuple(name for name in Bucket.__struct_fields__ if name not in _MAXIMA)


class Usage(Struct, frozen=True, kw_only=True):
    """What a container or a task really used, from its samples."""

    cpu_ns: int
    """CPU time of all groups that it had (a restarted container has several)."""
    memory_byte_ns: int
    """Memory integrated over time; / 2**30 / 10**9 is GiB-seconds."""
    memory_peak_bytes: int
    observed_ns: int
    """From the first to the last sample, without the time between two groups."""
    estimated_ns: int
    """The part of `observed_ns` whose memory is an estimate: not sampled, or a gap."""
    first_at_ns: int
    """Wall clock."""
    last_at_ns: int
    samples: int
    gaps: int
    """Samples with a CPU or memory value that could not be read."""
    throttled_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    pids_max: int = 0


class Spread(Struct, frozen=True, kw_only=True):
    """Percentiles (nearest rank) of values taken every second."""

    p50: int
    p95: int
    p99: int
    highest: int


class Profile(Struct, frozen=True, kw_only=True):
    """How use was spread over the seconds."""

    cpu_ns_per_s: Spread
    """10**9 is one vCPU."""
    memory_bytes: Spread


class Traffic(Struct, kw_only=True):
    """Growth of the slow counters in one stretch of time; network is the task's only."""

    user_ns: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    received_packets: int = 0
    sent_packets: int = 0
    cpu_stalled_us: int = 0
    memory_stalled_us: int = 0
    memory_full_stalled_us: int = 0
    io_stalled_us: int = 0

    def add(self, other: Traffic) -> None:
        """Takes in what another stretch of time has."""
        for name in Traffic.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class ClockStep(Struct, frozen=True, kw_only=True):
    """The wall clock was set by `value_ns`; `wall_ns` is what it said afterwards."""

    wall_ns: int
    value_ns: int


class TaskUsage(Struct, frozen=True, kw_only=True):
    """All that a bill, a report or an export needs of a ledger, raw or rolled up.

    Keys are container names, None the task's own group.
    """

    usage: Mapping[str | None, Usage]
    profiles: Mapping[str | None, Profile]
    traffic: Mapping[str | None, Traffic]
    clock_steps: tuple[ClockStep, ...] = ()
    missed_s: int = 0
    """Seconds without a sweep; their memory is estimated, of their CPU time nothing is lost."""
    suspended_ns: int = 0
    damaged: int = 0
    """Places in the ledger that could not be read."""


def _groups(ledger: Ledger) -> dict[int | None, list[list[Sample]]]:
    """Samples of each container's groups, in their order: a new generation is a new group."""
    found: dict[int | None, list[list[Sample]]] = {}
    for sample in ledger.samples:
        groups = found.setdefault(sample.container, [])
        if not groups or groups[-1][-1].generation != sample.generation:
            groups.append([])
        groups[-1].append(sample)
    return found


def bucket_samples(samples: list[Sample], buckets: dict[int, Bucket]) -> None:
    """Adds one group's life to buckets by the minute (since the epoch) in which a step ends."""
    known = [sample for sample in samples if sample.memory_bytes is not None]
    life_peak = max(
        max(sample.memory_peak_bytes or 0, sample.memory_bytes or 0) for sample in samples
    )
    whole_life = len(samples) == 2 and SampleFlag.LAST in samples[1].flags
    cpu_ns = throttled_ns = periods = throttled_periods = 0
    before: Sample | None = None  # the last one with a memory value
    last: Sample | None = None
    for sample in samples:
        minute = sample.wall_ns // MINUTE_NS
        bucket = buckets.get(minute)
        if bucket is None:
            bucket = buckets[minute] = Bucket()
        bucket.samples += 1
        step_ns = max(0, sample.monotonic_ns - last.monotonic_ns) if last is not None else 0
        bucket.observed_ns += step_ns
        if sample.cpu_usage_ns is None or sample.memory_bytes is None:
            bucket.gaps += 1
        if sample.cpu_usage_ns is not None and sample.cpu_usage_ns > cpu_ns:
            grown = sample.cpu_usage_ns - cpu_ns
            bucket.cpu_ns += grown
            cpu_ns = sample.cpu_usage_ns
            if last is not None and step_ns >= _SHORTEST_RATE_NS:
                bucket.cpu_max_ns_per_s = max(bucket.cpu_max_ns_per_s, grown * SECOND_NS // step_ns)
        if sample.throttled_ns is not None:
            bucket.throttled_ns += max(0, sample.throttled_ns - throttled_ns)
            bucket.periods += max(0, (sample.periods or 0) - periods)
            bucket.throttled_periods += max(0, (sample.throttled_periods or 0) - throttled_periods)
            throttled_ns = max(throttled_ns, sample.throttled_ns)
            periods = max(periods, sample.periods or 0)
            throttled_periods = max(throttled_periods, sample.throttled_periods or 0)
        bucket.pids_max = max(bucket.pids_max, sample.pids or 0)
        bucket.memory_peak_bytes = max(
            bucket.memory_peak_bytes, sample.memory_peak_bytes or 0, sample.memory_bytes or 0
        )
        if not known:
            bucket.estimated_ns += step_ns
        elif sample.memory_bytes is not None:
            bucket.memory_max_bytes = max(bucket.memory_max_bytes, sample.memory_bytes)
            if before is None:
                # Before the first known value it is held: nobody knows better.
                head_ns = max(0, sample.monotonic_ns - samples[0].monotonic_ns)
                bucket.memory_byte_ns += sample.memory_bytes * head_ns
                bucket.estimated_ns += head_ns
            else:
                _add_memory(bucket, before, sample, life_peak if whole_life else None)
            before = sample
        last = sample
    if known and last is not None and known[-1] is not last:
        tail_ns = max(0, last.monotonic_ns - known[-1].monotonic_ns)
        bucket = buckets[last.wall_ns // MINUTE_NS]
        bucket.memory_byte_ns += (known[-1].memory_bytes or 0) * tail_ns
        bucket.estimated_ns += tail_ns


def _add_memory(bucket: Bucket, before: Sample, after: Sample, life_peak: int | None) -> None:
    step_ns = max(0, after.monotonic_ns - before.monotonic_ns)
    if life_peak is not None:
        bucket.memory_byte_ns += life_peak * step_ns
        bucket.estimated_ns += step_ns
        return
    assert before.memory_bytes is not None
    assert after.memory_bytes is not None
    bucket.memory_byte_ns += (before.memory_bytes + after.memory_bytes) * step_ns // 2
    if step_ns > _EXPECTED_INTERVAL_NS:
        bucket.estimated_ns += step_ns


def buckets_of(ledger: Ledger) -> dict[int | None, dict[int, Bucket]]:
    """By container index, then by minute; with the maxima of slow samples."""
    found: dict[int | None, dict[int, Bucket]] = {}
    for container, groups in _groups(ledger).items():
        buckets = found.setdefault(container, {})
        for samples in groups:
            bucket_samples(samples, buckets)
    for slow in ledger.slow:
        bucket = found.setdefault(slow.container, {}).setdefault(
            slow.wall_ns // MINUTE_NS, Bucket()
        )
        bucket.working_set_max_bytes = max(
            bucket.working_set_max_bytes, slow.working_set_bytes or 0
        )
        bucket.rss_max_bytes = max(bucket.rss_max_bytes, slow.rss_bytes or 0)
        bucket.cache_max_bytes = max(bucket.cache_max_bytes, slow.cache_bytes or 0)
    return found


def join_buckets(buckets: Iterable[Bucket], first_at_ns: int, last_at_ns: int) -> Usage:
    """The sum of stretches of time as a use."""
    parts = list(buckets)
    if len(parts) == 1:  # nearly all tasks have one hour
        total = parts[0]
    else:
        total = Bucket()
        for bucket in parts:
            total.add(bucket)
    return Usage(
        cpu_ns=total.cpu_ns,
        memory_byte_ns=total.memory_byte_ns,
        memory_peak_bytes=total.memory_peak_bytes,
        observed_ns=total.observed_ns,
        estimated_ns=total.estimated_ns,
        first_at_ns=first_at_ns,
        last_at_ns=last_at_ns,
        samples=total.samples,
        gaps=total.gaps,
        throttled_ns=total.throttled_ns,
        periods=total.periods,
        throttled_periods=total.throttled_periods,
        pids_max=total.pids_max,
    )


def bounds_of(ledger: Ledger) -> dict[int | None, tuple[int, int]]:
    """Wall clock of the earliest and latest sample by container index."""
    found: dict[int | None, tuple[int, int]] = {}
    for sample in ledger.samples:
        first, last = found.get(sample.container, (sample.wall_ns, sample.wall_ns))
        found[sample.container] = (min(first, sample.wall_ns), max(last, sample.wall_ns))
    return found


def summarise(ledger: Ledger) -> Mapping[str | None, Usage]:
    """Use by container name, and by None for the task's own group, when it was sampled."""
    bounds = bounds_of(ledger)
    return {
        container_name(ledger.header, container): join_buckets(buckets.values(), *bounds[container])
        for container, buckets in buckets_of(ledger).items()
        if container in bounds
    }


def _spread(values: list[int]) -> Spread:
    values.sort()
    at = [values[max(0, -(-len(values) * percent // 100) - 1)] for percent in (50, 95, 99)]
    return Spread(p50=at[0], p95=at[1], p99=at[2], highest=values[-1])


def profile_of(ledger: Ledger) -> dict[int | None, Profile]:
    """How use was spread over the seconds, by container index; without those never seen twice."""
    found: dict[int | None, Profile] = {}
    for container, groups in _groups(ledger).items():
        rates: list[int] = []
        memory: list[int] = []
        for samples in groups:
            known = [sample for sample in samples if sample.cpu_usage_ns is not None]
            steps = [
                (after.monotonic_ns - before.monotonic_ns,
                 (after.cpu_usage_ns or 0) - (before.cpu_usage_ns or 0))
                for before, after in itertools.pairwise(known)
            ]  # fmt: skip
            # A life shorter than an interval has no other rate than that over all of it.
            shortest = _SHORTEST_RATE_NS if len(steps) > 1 else 1
            rates += [
                max(0, cpu) * SECOND_NS // time_ns for time_ns, cpu in steps if time_ns >= shortest
            ]
            memory += [sample.memory_bytes for sample in samples if sample.memory_bytes is not None]
            if len(samples) == 2 and SampleFlag.LAST in samples[1].flags:
                memory.append(max(sample.memory_peak_bytes or 0 for sample in samples))
        if rates and memory:
            found[container] = Profile(cpu_ns_per_s=_spread(rates), memory_bytes=_spread(memory))
    return found


class _Growth:
    """How much cumulative counters of one group have grown since they were last seen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int | None], tuple[int, int]] = {}

    def take(self, name: str, container: int | None, generation: int, value: int | None) -> int:
        if value is None:
            return 0
        known, base = self._seen.get((name, container), (generation, 0))
        if known != generation:
            base = 0
        self._seen[name, container] = (generation, max(base, value))
        return max(0, value - base)


def traffic_by_hour(ledger: Ledger) -> dict[int | None, dict[int, Traffic]]:
    """By container index, then by the hour (in minutes since the epoch) of the slow sample."""
    found: dict[int | None, dict[int, Traffic]] = {}
    growth = _Growth()

    def at(container: int | None, wall_ns: int) -> Traffic:
        hour = wall_ns // MINUTE_NS // 60 * 60
        return found.setdefault(container, {}).setdefault(hour, Traffic())

    for slow in ledger.slow:
        traffic = at(slow.container, slow.wall_ns)
        for name in ("user_ns", "read_bytes", "write_bytes"):
            value: int | None = getattr(slow, name)
            grown = growth.take(name, slow.container, slow.generation, value)
            setattr(traffic, name, getattr(traffic, name) + grown)
    for stall in ledger.pressure:
        traffic = at(stall.container, stall.wall_ns)
        for name in ("cpu", "memory", "memory_full", "io"):
            value = getattr(stall, f"{name}_us")
            grown = growth.take(f"{name}_us", stall.container, stall.generation, value)
            member = f"{name}_stalled_us"
            setattr(traffic, member, getattr(traffic, member) + grown)
    for network in ledger.network:
        traffic = at(None, network.wall_ns)
        for name in ("received_bytes", "sent_bytes", "received_packets", "sent_packets"):
            grown = growth.take(name, None, 0, getattr(network, name))
            setattr(traffic, name, getattr(traffic, name) + grown)
    return found


def measure(ledger: Ledger) -> TaskUsage:
    """All of it, from the raw data."""
    header = ledger.header
    totals: dict[str | None, Traffic] = {}
    for container, hours in traffic_by_hour(ledger).items():
        total = totals.setdefault(container_name(header, container), Traffic())
        for traffic in hours.values():
            total.add(traffic)
    return TaskUsage(
        usage=summarise(ledger),
        profiles={
            container_name(header, container): profile
            for container, profile in profile_of(ledger).items()
        },
        traffic=totals,
        clock_steps=tuple(
            ClockStep(wall_ns=mark.wall_ns, value_ns=mark.value)
            for mark in ledger.marks
            if mark.kind == MarkType.STEP
        ),
        missed_s=sum(mark.value for mark in ledger.marks if mark.kind == MarkType.MISSED),
        suspended_ns=sum(mark.value for mark in ledger.marks if mark.kind == MarkType.SUSPEND),
        damaged=len(ledger.problems),
    )
