"""A task's ledger as data: its header, its records, and what is damaged.

The format to the byte is docs/ledger-format.md and csrc/formats/ledger.h; this module is its only
reader (records are decoded in `records` and `old_records`) and the writer of its header page.
Records are written by the C thread (`sampler`). Reading never raises for damage in a record: one
bad sector must not make a task unbillable, so it is reported with its place and skipped.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct, structs

from fargatelite.errors import StateCorrupt
from fargatelite.meter.old_records import OLD_RECORD_BYTES, OldRecords
from fargatelite.meter.records import RECORD_BYTES, TASK_INDEX, Records
from fargatelite.meter.samples import (
    KIB,
    Mark,
    MarkType,
    NetworkSample,
    Pressure,
    Problem,
    Sample,
    SampleFlag,
    SlowSample,
)

__all__ = [
    "FORMAT_VERSION",
    "KIB",
    "MAX_CONTAINERS",
    "RECORD_BYTES",
    "TASK_INDEX",
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
    "parse_ledger",
    "read_ledger",
    "read_task_ledger",
    "segment_path",
]

FORMAT_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)
MAX_CONTAINERS = 15

_MAGIC = b"FLLEDGER"
_HEADER = struct.Struct("<8sHHIQ32s36sIIIB147sI")
_NAME = struct.Struct("<H250sI")
_HEADER_BYTES = 4096
_NAMES_OFFSET = 256


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


def _record_bytes(version: int) -> int:
    return RECORD_BYTES if version == FORMAT_VERSION else OLD_RECORD_BYTES


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
            f"{READABLE_VERSIONS[0]} to {READABLE_VERSIONS[-1]}: use the one that wrote it",
            path=path,
        )
    sizes = (_record_bytes(version), _HEADER_BYTES)
    if crc != _crc(fixed) or (record_bytes, header_bytes) != sizes:
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


def parse_ledger(data: bytes, path: str = "-", *, first_seq: int = 0) -> Ledger:
    """Parses a whole segment, or its header and the records from `first_seq` on.

    What the first records then say depends on what came before: they count once they do not.
    """
    header, version, damaged_names = decode_header(data[:_HEADER_BYTES], path)
    problems = list(damaged_names)
    records = Records() if version == FORMAT_VERSION else OldRecords(version)
    size = _record_bytes(version)
    unwritten = bytes(size)
    next_seq, lost = first_seq, 0
    for number in range((len(data) - _HEADER_BYTES) // size):
        seq = first_seq + number
        offset = _HEADER_BYTES + number * size
        raw = data[offset : offset + size]
        if raw == unwritten:
            continue
        if seq > next_seq:
            reason = f"records {next_seq} to {seq - 1} are missing"
            problems.append(Problem(offset_bytes=offset - (seq - next_seq) * size, reason=reason))
            lost += seq - next_seq
        next_seq = seq + 1
        wrong = records.check(seq, raw)
        if wrong is not None:
            lost += 1
        else:
            if lost:
                records.lose(lost)
                lost = 0
            wrong = records.add(seq, raw)
            if wrong is not None and first_seq:
                continue  # nothing is damaged: it was not read
        if wrong is not None:
            problems.append(Problem(offset_bytes=offset, reason=wrong))
    rest = (len(data) - _HEADER_BYTES) % size
    if rest and any(data[-rest:]):  # else the file ends in a record that is not written yet
        reason = f"{rest} bytes at the end"
        problems.append(Problem(offset_bytes=len(data) - rest, reason=reason))
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
    """All segments of a task as one ledger. One whose header is unusable is a problem of it; one
    that was begun and never written on (a kill, a full disk, a power cut) holds nothing.

    Raises: FileNotFoundError when there is none; StateCorrupt when none is usable; OSError.
    """
    segments: list[Ledger] = []
    unusable: list[Problem] = []
    error: StateCorrupt | None = None
    for segment in list_segments(path):
        data = segment.read_bytes()
        if not data:
            continue
        try:
            segments.append(parse_ledger(data, os.fspath(segment)))
        except StateCorrupt as found:
            error = found if any(data) else error
            unusable.append(Problem(offset_bytes=0, reason=str(found)))
    if not segments:
        raise error if error is not None else FileNotFoundError(2, "no ledger", str(path))
    joined = join_segments(segments)
    return structs.replace(joined, problems=(*joined.problems, *unusable)) if unusable else joined


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
