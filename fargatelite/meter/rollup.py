"""Roll-ups: a stopped task's ledger by minute and by hour, in `<task id>.rollup`.

Sums of rows are the sums of the raw data, to the last digit: both are made of the same steps
(`usage`). What cannot be added up (percentiles) is computed once, from the raw data. The file is
written whole and renamed, so that a crash leaves the raw data, or both; rolling up again gives the
same bytes. Once raw segments have been dropped the roll-up is the ledger.

The format to the byte is docs/ledger-format.md.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from fargatelite.errors import StateCorrupt
from fargatelite.meter.ledger import (
    Ledger,
    LedgerHeader,
    MarkType,
    container_name,
    decode_names,
    encode_name,
    list_segments,
    read_task_ledger,
    segment_path,
)
from fargatelite.meter.usage import (
    Bucket,
    ClockStep,
    Profile,
    Spread,
    TaskUsage,
    Traffic,
    Usage,
    bounds_of,
    buckets_of,
    join_buckets,
    measure,
    profile_of,
    traffic_by_hour,
)
from fargatelite.rundir import replace_file

__all__ = [
    "Rollup",
    "drop_raw",
    "encode_rollup",
    "parse_rollup",
    "read_task_usage",
    "remove_ledger",
    "roll_up",
    "rollup_path",
]

ROLLUP_VERSION = 1
_MAGIC = b"FLROLLUP"
_HEADER = struct.Struct("<8sHHIQ32s36sIIIIIIQ128sI")
_ROW_BYTES = 112
_SUMS = struct.Struct("<IBBHQQQQQQIIIIIIQQIIII")
_SUMMARY = struct.Struct("<IBBH10Q20sI")
_TRAFFIC = struct.Struct("<IBBH11Q12sI")
_MARK = struct.Struct("<IBBHIIqQQ68sI")
_NAME_BYTES = 256
_SUMMARY_KIND, _MARK_KIND, _HOUR, _TRAFFIC_KIND, _MINUTE = range(1, 6)
_TASK = 0xFF
_MASK = 2**64 - 1
_KIB = 1024
_US = 1000


class Rollup(Struct, frozen=True, kw_only=True):
    """What a roll-up says. Keys are container names, None the task's own group."""

    header: LedgerHeader
    records: int
    """Of the raw data, damaged ones left out."""
    segments: int
    total: TaskUsage
    minutes: Mapping[str | None, Mapping[int, Bucket]]
    """By minute since the epoch; empty when only the totals were read."""


def _index(container: int | None) -> int:
    return _TASK if container is None else container


def _with_crc(row: bytes) -> bytes:
    return row[:-4] + struct.pack("<I", zlib.crc32(row[:-4]))


def _sums_row(kind: int, minute: int, container: int | None, bucket: Bucket) -> bytes:
    return _with_crc(
        _SUMS.pack(
            minute, kind, _index(container), 0,
            bucket.cpu_ns, bucket.memory_byte_ns & _MASK, bucket.memory_byte_ns >> 64,
            bucket.observed_ns, bucket.estimated_ns, bucket.throttled_ns,
            bucket.samples, bucket.gaps, bucket.periods, bucket.throttled_periods,
            bucket.cpu_max_ns_per_s // _US, bucket.pids_max,
            bucket.memory_max_bytes, bucket.memory_peak_bytes,
            bucket.working_set_max_bytes // _KIB, bucket.rss_max_bytes // _KIB,
            bucket.cache_max_bytes // _KIB, 0,
        )
    )  # fmt: skip


def _bucket(fields: tuple[int, ...]) -> Bucket:
    (cpu, low, high, observed, estimated, throttled, samples, gaps, periods, throttled_periods,
     cpu_max_us, pids, memory_max, peak, working_kib, rss_kib, cache_kib) = fields  # fmt: skip
    return Bucket(
        cpu_ns=cpu,
        memory_byte_ns=high << 64 | low,
        observed_ns=observed,
        estimated_ns=estimated,
        throttled_ns=throttled,
        samples=samples,
        gaps=gaps,
        periods=periods,
        throttled_periods=throttled_periods,
        cpu_max_ns_per_s=cpu_max_us * _US,
        pids_max=pids,
        memory_max_bytes=memory_max,
        memory_peak_bytes=peak,
        working_set_max_bytes=working_kib * _KIB,
        rss_max_bytes=rss_kib * _KIB,
        cache_max_bytes=cache_kib * _KIB,
    )


def _hours(buckets: Mapping[int, Bucket]) -> dict[int, Bucket]:
    hours: dict[int, Bucket] = {}
    for minute, bucket in buckets.items():
        hours.setdefault(minute // 60 * 60, Bucket()).add(bucket)
    return hours


def _marks_row(kind: int, value: int, wall_ns: int, monotonic_ns: int) -> bytes:
    return _with_crc(
        _MARK.pack(0, _MARK_KIND, _TASK, 0, kind, 0, value, wall_ns, monotonic_ns, b"", 0)
    )


def _mark_rows(ledger: Ledger) -> Iterable[bytes]:
    """Each step of the clock; of missed seconds and suspends the sum."""
    for kind in (MarkType.MISSED, MarkType.SUSPEND):
        marks = [mark for mark in ledger.marks if mark.kind == kind]
        if marks:
            total = sum(mark.value for mark in marks)
            yield _marks_row(kind, total, marks[-1].wall_ns, marks[-1].monotonic_ns)
    for mark in ledger.marks:
        if mark.kind == MarkType.STEP:
            yield _marks_row(mark.kind, mark.value, mark.wall_ns, mark.monotonic_ns)


def encode_rollup(ledger: Ledger, segments: int = 1) -> bytes:
    """The file's bytes; the same for the same ledger.

    Raises: ValueError for ids of a wrong length.
    """
    header = ledger.header
    if len(header.task_id) != 32 or len(header.boot_id) != 36:
        raise ValueError(f"task id {header.task_id!r} or boot id {header.boot_id!r} is malformed")
    buckets = buckets_of(ledger)
    profiles = profile_of(ledger)
    rows: list[bytes] = []
    for container, (first_at_ns, last_at_ns) in bounds_of(ledger).items():
        profile = profiles.get(container)
        spreads = (profile.cpu_ns_per_s, profile.memory_bytes) if profile else ()
        values = [
            value
            for spread in spreads
            for value in (spread.p50, spread.p95, spread.p99, spread.highest)
        ] or [_MASK] * 8
        rows.append(
            _with_crc(
                _SUMMARY.pack(
                    0, _SUMMARY_KIND, _index(container), 0, first_at_ns, last_at_ns, *values, b"", 0
                )
            )
        )
    rows += _mark_rows(ledger)
    for container, minutes in buckets.items():
        for hour, bucket in sorted(_hours(minutes).items()):
            rows.append(_sums_row(_HOUR, hour, container, bucket))
    for container, hours in traffic_by_hour(ledger).items():
        for hour, traffic in sorted(hours.items()):
            figures = [getattr(traffic, name) for name in Traffic.__struct_fields__]
            row = _TRAFFIC.pack(hour, _TRAFFIC_KIND, _index(container), 0, *figures, b"", 0)
            rows.append(_with_crc(row))
    totals = len(rows)
    for container, minutes in buckets.items():
        for minute, bucket in sorted(minutes.items()):
            rows.append(_sums_row(_MINUTE, minute, container, bucket))
    records = sum(
        map(len, (ledger.samples, ledger.slow, ledger.pressure, ledger.network, ledger.marks))
    )
    fixed = _HEADER.pack(
        _MAGIC, ROLLUP_VERSION, _ROW_BYTES, len(header.containers), header.created_at_ns,
        header.task_id.encode(), header.boot_id.encode(), header.cpu_units, header.memory_mib,
        len(rows), totals, segments, len(ledger.problems), records, b"", 0,
    )  # fmt: skip
    names = b"".join(encode_name(name) for name in header.containers)
    return _with_crc(fixed) + names + b"".join(rows)


def parse_rollup(data: bytes, path: str = "-", *, totals_only: bool = False) -> Rollup:
    """The roll-up in a file's bytes (its first part suffices for the totals).

    Raises: StateCorrupt for a wrong magic, version or checksum: unlike a ledger it was written
    whole, so that damage is the disk's.
    """
    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise StateCorrupt(f"{path} is not a roll-up of a ledger", path=path)
    (_, version, row_bytes, name_count, created, task_id, boot_id, cpu, memory, row_count, totals,
     segments, damaged, records, _, crc) = _HEADER.unpack_from(data)  # fmt: skip
    if version != ROLLUP_VERSION:
        raise StateCorrupt(
            f"roll-up {path} has version {version}, this fargatelite reads {ROLLUP_VERSION}: use "
            "the one that wrote it",
            path=path,
        )
    base = _HEADER.size + name_count * _NAME_BYTES
    count = totals if totals_only else row_count
    if (
        crc != zlib.crc32(data[: _HEADER.size - 4])
        or row_bytes != _ROW_BYTES
        or len(data) < base + count * _ROW_BYTES
    ):
        raise StateCorrupt(f"roll-up {path} has a damaged header or is cut off", path=path)
    containers, _ = decode_names(data[_HEADER.size : base], name_count, _HEADER.size)
    header = LedgerHeader(
        task_id=task_id.decode(errors="replace"),
        boot_id=boot_id.decode(errors="replace"),
        created_at_ns=created,
        cpu_units=cpu,
        memory_mib=memory,
        containers=containers,
    )
    reader = _RowReader(header)
    for number in range(count):
        offset = base + number * _ROW_BYTES
        row = data[offset : offset + _ROW_BYTES]
        if zlib.crc32(row[:-4]) != int.from_bytes(row[-4:], "little"):
            raise StateCorrupt(f"roll-up {path}: row {number} at {offset} is damaged", path=path)
        reader.add(row)
    return Rollup(
        header=header,
        records=records,
        segments=segments,
        total=reader.total(damaged),
        minutes=reader.minutes,
    )


class _RowReader:
    def __init__(self, header: LedgerHeader) -> None:
        self._header = header
        self.minutes: dict[str | None, dict[int, Bucket]] = {}
        self._hours: dict[str | None, list[Bucket]] = {}
        self._bounds: dict[str | None, tuple[int, int]] = {}
        self._profiles: dict[str | None, Profile] = {}
        self._traffic: dict[str | None, Traffic] = {}
        self._steps: list[ClockStep] = []
        self._missed_s = 0
        self._suspended_ns = 0

    def add(self, row: bytes) -> None:
        kind, container = row[4], row[5]
        name = container_name(self._header, None if container == _TASK else container)
        if kind in (_HOUR, _MINUTE):
            fields = _SUMS.unpack(row)
            bucket = _bucket(fields[4:21])
            if kind == _HOUR:
                self._hours.setdefault(name, []).append(bucket)
            else:
                self.minutes.setdefault(name, {})[fields[0]] = bucket
        elif kind == _SUMMARY_KIND:
            first, last, *values = _SUMMARY.unpack(row)[4:14]
            self._bounds[name] = (first, last)
            if values[0] != _MASK:
                self._profiles[name] = Profile(
                    cpu_ns_per_s=_spread(values[:4]), memory_bytes=_spread(values[4:])
                )
        elif kind == _TRAFFIC_KIND:
            figures = _TRAFFIC.unpack(row)[4:15]
            traffic = Traffic(**dict(zip(Traffic.__struct_fields__, figures, strict=True)))
            known = self._traffic.setdefault(name, traffic)
            if known is not traffic:
                known.add(traffic)
        elif kind == _MARK_KIND:
            mark, _, value, wall_ns, _ = _MARK.unpack(row)[4:9]
            if mark == MarkType.STEP:
                self._steps.append(ClockStep(wall_ns=wall_ns, value_ns=value))
            elif mark == MarkType.MISSED:
                self._missed_s += value
            elif mark == MarkType.SUSPEND:
                self._suspended_ns += value

    def total(self, damaged: int) -> TaskUsage:
        usage: dict[str | None, Usage] = {
            name: join_buckets(buckets, *self._bounds[name])
            for name, buckets in self._hours.items()
            if name in self._bounds
        }
        return TaskUsage(
            usage=usage,
            profiles=self._profiles,
            traffic=self._traffic,
            clock_steps=tuple(self._steps),
            missed_s=self._missed_s,
            suspended_ns=self._suspended_ns,
            damaged=damaged,
        )


def _spread(values: list[int]) -> Spread:
    return Spread(p50=values[0], p95=values[1], p99=values[2], highest=values[3])


def remove_ledger(ledger_path: Path) -> None:
    """Removes all that there is of a task's ledger; nothing is no error."""
    for segment in reversed(list(list_segments(ledger_path))):
        segment.unlink(missing_ok=True)
    rollup_path(ledger_path).unlink(missing_ok=True)
    # Left behind by a writer that died while it began a segment.
    ledger_path.with_suffix(".ledger.next").unlink(missing_ok=True)


def rollup_path(ledger_path: Path) -> Path:
    """Where the roll-up of a ledger lies."""
    return ledger_path.with_suffix(".rollup")


def _is_written(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def roll_up(ledger_path: Path) -> bool:
    """Writes the roll-up of a ledger that nobody writes any more; whether it was written.

    Does nothing when there is no raw data, when it is still being written, or when some of it has
    been dropped already. Raises: StateCorrupt for an unusable header; OSError.
    """
    segments = list(list_segments(ledger_path))
    if not segments or _is_written(segments[-1]):
        return False
    if segment_path(ledger_path, len(segments)).exists():
        return False  # a writer has just gone on in another one
    target = rollup_path(ledger_path)
    try:
        ledger = read_task_ledger(ledger_path)
    except FileNotFoundError:
        return False  # begun, and nothing was written
    data = encode_rollup(ledger, len(segments))
    try:
        before = target.read_bytes()
        if before == data or parse_rollup(before, str(target)).segments > len(segments):
            return False
    except (FileNotFoundError, StateCorrupt):
        pass  # torn by a power cut: the raw data is still there
    # The raw data is still there, but not yet on the disk: a bill outlives a power cut by this.
    replace_file(target, data, sync=True)
    return True


def drop_raw(ledger_path: Path) -> int:
    """Removes the raw segments of a ledger that has been rolled up; how many bytes that frees.

    The last segment goes first: what is left after a crash is fewer segments than the roll-up
    tells of, so that `roll_up` leaves it alone. Raises: StateCorrupt when the roll-up is damaged.
    """
    target = rollup_path(ledger_path)
    try:
        with target.open("rb") as stream:
            parse_rollup(stream.read(), str(target))
            os.fsync(stream.fileno())
    except FileNotFoundError:
        return 0
    freed = 0
    for segment in reversed(list(list_segments(ledger_path))):
        if _is_written(segment):
            break
        freed += segment.stat().st_size
        os.unlink(segment)
    return freed


def read_task_usage(ledger_path: Path) -> TaskUsage:
    """What a task used: from its roll-up where there is one, else from the raw data.

    Raises: FileNotFoundError when there is neither; StateCorrupt.
    """
    target = rollup_path(ledger_path)
    try:
        return _read_total(target)
    except FileNotFoundError:
        return measure(read_task_ledger(ledger_path))
    except StateCorrupt as damaged:
        # A changed bit, or one that an older fargatelite wrote before a power cut.
        try:
            return measure(read_task_ledger(ledger_path))
        except FileNotFoundError:
            raise damaged from None


def _read_total(target: Path) -> TaskUsage:
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(descriptor, 4096)
        if len(data) >= _HEADER.size and data[:8] == _MAGIC:
            fields = _HEADER.unpack_from(data)
            wanted = _HEADER.size + fields[3] * _NAME_BYTES + fields[10] * _ROW_BYTES
            while len(data) < wanted and (more := os.read(descriptor, wanted - len(data))):
                data += more
        return parse_rollup(data, str(target), totals_only=True).total
    finally:
        os.close(descriptor)
