"""A task's ledger as data: its header, its records, and what is damaged.

The format to the byte is docs/ledger-format.md and csrc/formats/ledger.h; this module is its only
reader and the writer of its header page. Records are written by the C thread (`sampler`). Reading
never raises for damage in a record: one bad sector must not make a task unbillable, so it is
reported with its place and skipped.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from enum import IntEnum, IntFlag
from pathlib import Path

from msgspec import Struct

from fargatelite.errors import StateCorrupt

__all__ = [
    "FORMAT_VERSION",
    "MAX_CONTAINERS",
    "Ledger",
    "LedgerHeader",
    "Mark",
    "MarkType",
    "NetworkSample",
    "Pressure",
    "Problem",
    "Sample",
    "SampleFlag",
    "SlowSample",
    "container_name",
    "decode_header",
    "encode_header",
    "encode_name",
    "join_segments",
    "list_segments",
    "name_offset",
    "parse_ledger",
    "read_ledger",
    "read_task_ledger",
    "segment_path",
]

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
MAX_CONTAINERS = 15
RECORD_BYTES = 64
KIB = 1024

_MAGIC = b"FLLEDGER"
_HEADER = struct.Struct("<8sHHIQ32s36sIIIB147sI")
_NAME = struct.Struct("<H250sI")
_PREFIX = struct.Struct("<IBBBBQQ")
_SAMPLE = struct.Struct("<IBBBBQQQQIIIIHHI")
_SLOW = struct.Struct("<IBBBBQQQQQIIII")
_PRESSURE = struct.Struct("<IBBBBQQQQQQII")
_NETWORK = struct.Struct("<IBBBBQQQQQQII")
_MARK = struct.Struct("<IBBBBQQIIqQ12sI")
_RECORD_V1 = struct.Struct("<IHHQQQQQQII")
_HEADER_BYTES = 4096
_NAMES_OFFSET = 256
_TASK = 0xFF
_TASK_V1 = 0xFFFF
_KIND_SAMPLE, _KIND_SLOW, _KIND_PRESSURE, _KIND_NETWORK, _KIND_MARK = range(1, 6)
_UNWRITTEN = bytes(RECORD_BYTES)
_UNKNOWN = 2**64 - 1


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


_GAP_STAT, _GAP_USER, _GAP_IO = 1, 2, 4
_V1_GAPS = 7
_V1_SHIFTED = 16 | 32 | 64  # FIRST, LAST, EXTRA stand one bit higher now


class MarkType(IntEnum):
    """Mirrors enum ledger_mark_type."""

    GROUP = 1
    MISSED = 2
    STEP = 3
    SUSPEND = 4


class LedgerHeader(Struct, frozen=True, kw_only=True):
    """The facts of a task that each segment of its ledger opens with."""

    task_id: str
    boot_id: str
    created_at_ns: int
    """Wall clock."""
    cpu_units: int
    """Task size as configured, 1024 to a vCPU; 0 when the definition gives none."""
    memory_mib: int
    slow_every_s: int = 0
    """Pace of slow samples; 0: there are none."""
    cgroup_version: int = 0
    """1 or 2, 0 where the writer did not say."""
    containers: tuple[str, ...] = ()
    """Name of each container index."""


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
    boottime_ns: int
    value: int


class Problem(Struct, frozen=True, kw_only=True):
    """Damage that was skipped."""

    offset_bytes: int
    reason: str


class Ledger(Struct, frozen=True, kw_only=True):
    """All that a segment says, or the segments of a task together."""

    header: LedgerHeader
    samples: tuple[Sample, ...]
    slow: tuple[SlowSample, ...] = ()
    pressure: tuple[Pressure, ...] = ()
    network: tuple[NetworkSample, ...] = ()
    marks: tuple[Mark, ...] = ()
    problems: tuple[Problem, ...]
    next_seq: int
    """Where a writer goes on: behind the last record that is not all zero."""
    version: int = FORMAT_VERSION


def _crc(data: bytes) -> int:
    return zlib.crc32(data[:-4])


def encode_header(header: LedgerHeader) -> bytes:
    """The header page, names included. Raises: ValueError for ids of a wrong length."""
    if len(header.task_id) != 32 or len(header.boot_id) != 36:
        raise ValueError(f"task id {header.task_id!r} or boot id {header.boot_id!r} is malformed")
    fixed = _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        RECORD_BYTES,
        _HEADER_BYTES,
        header.created_at_ns,
        header.task_id.encode(),
        header.boot_id.encode(),
        header.cpu_units,
        header.memory_mib,
        header.slow_every_s,
        header.cgroup_version,
        b"",
        0,
    )
    page = fixed[:-4] + struct.pack("<I", _crc(fixed))
    page += b"".join(encode_name(name) for name in header.containers)
    return page.ljust(_HEADER_BYTES, b"\0")


def encode_name(name: str) -> bytes:
    """A container's name slot. ECS allows 255 characters; ours holds 250 bytes, then it is cut."""
    data = name.encode()[:250].decode(errors="ignore").encode()
    slot = _NAME.pack(len(data), data, 0)
    return slot[:-4] + struct.pack("<I", _crc(slot))


def decode_names(slots: bytes, count: int, base: int) -> tuple[tuple[str, ...], list[Problem]]:
    """Up to `count` name slots; one that is damaged is called `#<index>`. `base` is their place."""
    names: list[str] = []
    problems: list[Problem] = []
    for index in range(count):
        slot = slots[index * _NAME.size : (index + 1) * _NAME.size]
        if not any(slot):
            break
        length, data, slot_crc = _NAME.unpack(slot)
        if slot_crc != _crc(slot):
            offset = base + index * _NAME.size
            problems.append(Problem(offset_bytes=offset, reason=f"name of container {index}"))
            names.append(f"#{index}")
        else:
            names.append(data[:length].decode(errors="replace"))
    return tuple(names), problems


def name_offset(index: int) -> int:
    """Where in the file the slot of container `index` begins."""
    return _NAMES_OFFSET + index * _NAME.size


def container_name(header: LedgerHeader, index: int | None) -> str | None:
    """The name of a container index, None for the task itself."""
    if index is None:
        return None
    return header.containers[index] if index < len(header.containers) else f"#{index}"


def decode_header(page: bytes, path: str) -> tuple[LedgerHeader, int, tuple[Problem, ...]]:
    """The header, its format version, and damaged name slots.

    Raises: StateCorrupt for a wrong magic, version, size or checksum.
    """
    if len(page) < _HEADER_BYTES:
        raise StateCorrupt(f"ledger {path} ends in its header ({len(page)} bytes)", path=path)
    fixed = page[: _HEADER.size]
    (magic, version, record_bytes, header_bytes, created, task_id, boot_id, cpu, memory, slow,
     cgroup_version, _, crc) = _HEADER.unpack(fixed)  # fmt: skip
    if magic != _MAGIC:
        raise StateCorrupt(f"{path} is not a ledger (magic {magic!r})", path=path)
    if version not in READABLE_VERSIONS:
        raise StateCorrupt(
            f"ledger {path} has version {version}, this fargatelite reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}: use the one that wrote it",
            path=path,
        )
    if crc != _crc(fixed) or (record_bytes, header_bytes) != (RECORD_BYTES, _HEADER_BYTES):
        raise StateCorrupt(f"ledger {path} has a damaged header", path=path)
    names, problems = decode_names(page[_NAMES_OFFSET:], MAX_CONTAINERS, _NAMES_OFFSET)
    header = LedgerHeader(
        task_id=task_id.decode(errors="replace"),
        boot_id=boot_id.decode(errors="replace"),
        created_at_ns=created,
        cpu_units=cpu,
        memory_mib=memory,
        slow_every_s=slow,
        cgroup_version=cgroup_version,
        containers=names,
    )
    return header, version, tuple(problems)


class _Records:
    """Collects the records of one segment."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.slow: list[SlowSample] = []
        self.pressure: list[Pressure] = []
        self.network: list[NetworkSample] = []
        self.marks: list[Mark] = []
        self._groups: dict[int, tuple[int, int]] = {}

    def add(self, raw: bytes) -> None:
        """One whole record of version 2; kinds of later writers are passed over."""
        kind = raw[4]
        if kind == _KIND_SAMPLE:
            self.samples.append(_sample(raw))
        elif kind == _KIND_SLOW:
            self.slow.append(_slow(raw))
        elif kind == _KIND_PRESSURE:
            self.pressure.append(_pressure(raw))
        elif kind == _KIND_NETWORK:
            wall, _, *figures, _, _ = _NETWORK.unpack(raw)[5:]
            self.network.append(
                NetworkSample(
                    wall_ns=wall,
                    received_bytes=figures[0],
                    sent_bytes=figures[1],
                    received_packets=figures[2],
                    sent_packets=figures[3],
                )
            )
        elif kind == _KIND_MARK:
            self.marks.append(_mark(raw))

    def add_v1(self, raw: bytes) -> None:
        """One whole record of version 1: a group's inode tells its generation."""
        seq, container, bits, wall, monotonic, cpu, memory, peak, group_id, late_us, _ = (
            _RECORD_V1.unpack(raw)
        )
        known = self._groups.get(container)
        if known is None or known[0] != group_id:
            known = (group_id, known[1] + 1 if known else 0)
            self._groups[container] = known
        index = None if container == _TASK_V1 else container
        flags = SampleFlag(bits & _V1_GAPS | (bits & _V1_SHIFTED) << 1)
        if SampleFlag.FIRST in flags:
            self.marks.append(
                Mark(
                    kind=MarkType.GROUP,
                    container=index,
                    generation=known[1] % 256,
                    wall_ns=wall,
                    monotonic_ns=monotonic,
                    boottime_ns=0,
                    value=group_id,
                )
            )
        self.samples.append(
            Sample(
                seq=seq,
                container=index,
                flags=flags,
                generation=known[1] % 256,
                wall_ns=wall,
                monotonic_ns=monotonic,
                cpu_usage_ns=None if flags & SampleFlag.GAP_CPU else cpu,
                memory_bytes=None if flags & SampleFlag.GAP_MEMORY else memory,
                memory_peak_bytes=None if flags & SampleFlag.GAP_PEAK else peak,
                late_us=late_us,
            )
        )


def _index(container: int) -> int | None:
    return None if container == _TASK else container


_FLAGS = tuple(SampleFlag(bits) for bits in range(256))


def _sample(raw: bytes) -> Sample:
    (seq, _, container, bits, generation, wall, monotonic, cpu, throttled, memory_kib, peak_kib,
     periods, throttled_periods, pids, late_100us, _) = _SAMPLE.unpack(raw)  # fmt: skip
    has_throttling = not bits & 8
    return Sample(
        seq=seq,
        container=None if container == _TASK else container,
        flags=_FLAGS[bits],
        generation=generation,
        wall_ns=wall,
        monotonic_ns=monotonic,
        cpu_usage_ns=None if bits & 1 else cpu,
        memory_bytes=None if bits & 2 else memory_kib * KIB,
        memory_peak_bytes=None if bits & 4 else peak_kib * KIB,
        throttled_ns=throttled if has_throttling else None,
        periods=periods if has_throttling else None,
        throttled_periods=throttled_periods if has_throttling else None,
        pids=None if bits & 16 else pids,
        late_us=late_100us * 100,
    )


def _slow(raw: bytes) -> SlowSample:
    (_, _, container, bits, generation, wall, monotonic, user, read, write, working_kib, rss_kib,
     cache_kib, _) = _SLOW.unpack(raw)  # fmt: skip
    return SlowSample(
        container=_index(container),
        generation=generation,
        wall_ns=wall,
        monotonic_ns=monotonic,
        user_ns=None if bits & _GAP_USER else user,
        working_set_bytes=None if bits & _GAP_STAT else working_kib * KIB,
        rss_bytes=None if bits & _GAP_STAT else rss_kib * KIB,
        cache_bytes=None if bits & _GAP_STAT else cache_kib * KIB,
        read_bytes=None if bits & _GAP_IO else read,
        write_bytes=None if bits & _GAP_IO else write,
    )


def _pressure(raw: bytes) -> Pressure:
    _, _, container, _, generation, wall, _, *times, _, _ = _PRESSURE.unpack(raw)
    known = [None if value == _UNKNOWN else value for value in times]
    return Pressure(
        container=_index(container),
        generation=generation,
        wall_ns=wall,
        cpu_us=known[0],
        memory_us=known[1],
        memory_full_us=known[2],
        io_us=known[3],
    )


def _mark(raw: bytes) -> Mark:
    (_, _, container, _, generation, wall, monotonic, kind, _, value, boottime, _, _) = (
        _MARK.unpack(raw)
    )
    return Mark(
        kind=kind,
        container=_index(container),
        generation=generation,
        wall_ns=wall,
        monotonic_ns=monotonic,
        boottime_ns=boottime,
        value=value,
    )


def parse_ledger(data: bytes, path: str = "-", *, first_seq: int = 0) -> Ledger:
    """Parses a whole segment, or its header and the records from `first_seq` on."""
    header, version, damaged_names = decode_header(data[:_HEADER_BYTES], path)
    problems = list(damaged_names)
    records = _Records()
    add = records.add_v1 if version == 1 else records.add
    next_seq = first_seq
    crc32, stored_crc = zlib.crc32, struct.Struct("<I").unpack_from
    for number in range((len(data) - _HEADER_BYTES) // RECORD_BYTES):
        seq = first_seq + number
        offset = _HEADER_BYTES + number * RECORD_BYTES
        raw = data[offset : offset + RECORD_BYTES]
        if raw == _UNWRITTEN:
            continue
        if seq > next_seq:
            problems.append(
                Problem(
                    offset_bytes=_HEADER_BYTES + (next_seq - first_seq) * RECORD_BYTES,
                    reason=f"records {next_seq} to {seq - 1} are missing",
                )
            )
        next_seq = seq + 1
        said = stored_crc(raw)[0]
        if stored_crc(raw, RECORD_BYTES - 4)[0] != crc32(raw[:-4]):
            problems.append(Problem(offset_bytes=offset, reason=f"record {seq}: wrong checksum"))
        elif said != seq:
            problems.append(Problem(offset_bytes=offset, reason=f"record {seq} says {said}"))
        else:
            add(raw)
    if rest := (len(data) - _HEADER_BYTES) % RECORD_BYTES:
        problems.append(Problem(offset_bytes=len(data) - rest, reason=f"{rest} bytes at the end"))
    return Ledger(
        header=header,
        samples=tuple(records.samples),
        slow=tuple(records.slow),
        pressure=tuple(records.pressure),
        network=tuple(records.network),
        marks=tuple(records.marks),
        problems=tuple(problems),
        next_seq=next_seq,
        version=version,
    )


def read_ledger(path: str | os.PathLike[str]) -> Ledger:
    """Reads a segment, also one that is being written.

    Raises: StateCorrupt when the header is unusable; OSError when the file cannot be read.
    """
    return parse_ledger(Path(path).read_bytes(), os.fspath(path))


def segment_path(path: Path, number: int) -> Path:
    """Segment `number` of the ledger `<task id>.ledger`, which is segment 0."""
    return path.with_suffix(f".{number}.ledger") if number else path


def list_segments(path: Path) -> Iterator[Path]:
    """The segments of a ledger that are there, in their order."""
    number = 0
    while (segment := segment_path(path, number)).exists():
        yield segment
        number += 1


def read_task_ledger(path: Path) -> Ledger:
    """All segments of a task as one ledger.

    Raises: FileNotFoundError when there is none; see `read_ledger`.
    """
    segments = [read_ledger(segment) for segment in list_segments(path)]
    if not segments:
        raise FileNotFoundError(2, "no ledger", str(path))
    return join_segments(segments)


def join_segments(segments: Sequence[Ledger]) -> Ledger:
    """Segments of one task as one ledger; the last one has the names of all containers."""
    if len(segments) == 1:
        return segments[0]
    return Ledger(
        header=segments[-1].header,
        samples=tuple(item for segment in segments for item in segment.samples),
        slow=tuple(item for segment in segments for item in segment.slow),
        pressure=tuple(item for segment in segments for item in segment.pressure),
        network=tuple(item for segment in segments for item in segment.network),
        marks=tuple(item for segment in segments for item in segment.marks),
        problems=tuple(
            Problem(offset_bytes=item.offset_bytes, reason=f"segment {number}: {item.reason}")
            for number, segment in enumerate(segments)
            for item in segment.problems
        ),
        next_seq=segments[-1].next_seq,
        version=segments[-1].version,
    )
