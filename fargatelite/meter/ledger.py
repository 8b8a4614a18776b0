"""A task's ledger as data: its header, its samples, what is damaged, and the use that they prove.

The format to the byte is csrc/formats/ledger.h; this module is its only reader and the writer of
its header page. Records are written by the C thread (`sampler`). Reading never raises for damage in
a record: one bad sector must not make a task unbillable, so it is reported with its place.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Mapping
from enum import IntFlag
from pathlib import Path

from msgspec import Struct, structs

from fargatelite.errors import StateCorrupt

__all__ = [
    "FORMAT_VERSION",
    "MAX_CONTAINERS",
    "Ledger",
    "LedgerHeader",
    "Problem",
    "Sample",
    "SampleFlag",
    "Usage",
    "decode_header",
    "encode_header",
    "encode_name",
    "name_offset",
    "parse_ledger",
    "read_ledger",
    "summarise",
]

FORMAT_VERSION = 1
MAX_CONTAINERS = 15

_MAGIC = b"FLLEDGER"
_HEADER = struct.Struct("<8sHHIQ32s36sII152sI")
_NAME = struct.Struct("<H250sI")
_RECORD = struct.Struct("<IHHQQQQQQII")
_HEADER_BYTES = 4096
_NAMES_OFFSET = 256
_TASK = 0xFFFF
_UNWRITTEN = bytes(_RECORD.size)
_EXPECTED_INTERVAL_NS = 1_500_000_000
"""Samples come every second; a longer step is time that nobody watched."""


class SampleFlag(IntFlag):
    """Mirrors enum ledger_flags."""

    GAP_CPU = 1
    GAP_MEMORY = 2
    GAP_PEAK = 4
    LATE = 8
    FIRST = 16
    LAST = 32
    EXTRA = 64


class LedgerHeader(Struct, frozen=True, kw_only=True):
    """The facts of a task that its ledger opens with."""

    task_id: str
    boot_id: str
    created_at_ns: int
    """Wall clock."""
    cpu_units: int
    """Task size as configured, 1024 to a vCPU; 0 when the definition gives none."""
    memory_mib: int
    containers: tuple[str, ...] = ()
    """Name of each container index."""


class Sample(Struct, frozen=True, kw_only=True, gc=False):
    """One group at one moment. A counter whose GAP flag is set is None, never 0."""

    seq: int
    container: int | None
    """Index into `LedgerHeader.containers`; None for the task's own group."""
    flags: SampleFlag
    wall_ns: int
    monotonic_ns: int
    cpu_usage_ns: int | None
    memory_bytes: int | None
    memory_peak_bytes: int | None
    group_id: int
    late_us: int


class Problem(Struct, frozen=True, kw_only=True):
    """Damage that was skipped."""

    offset_bytes: int
    reason: str


class Ledger(Struct, frozen=True, kw_only=True):
    """All that a file says."""

    header: LedgerHeader
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    next_seq: int
    """Where a writer goes on: behind the last record that is not all zero."""


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


def _crc(data: bytes) -> int:
    return zlib.crc32(data[:-4])


def encode_header(header: LedgerHeader) -> bytes:
    """The header page, names included. Raises: ValueError for ids of a wrong length."""
    if len(header.task_id) != 32 or len(header.boot_id) != 36:
        raise ValueError(f"task id {header.task_id!r} or boot id {header.boot_id!r} is malformed")
    fixed = _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        _RECORD.size,
        _HEADER_BYTES,
        header.created_at_ns,
        header.task_id.encode(),
        header.boot_id.encode(),
        header.cpu_units,
        header.memory_mib,
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


def name_offset(index: int) -> int:
    """Where in the file the slot of container `index` begins."""
    return _NAMES_OFFSET + index * _NAME.size


def decode_header(page: bytes, path: str) -> tuple[LedgerHeader, tuple[Problem, ...]]:
    """The header and damaged name slots (their container is called `#<index>`).

    Raises: StateCorrupt for a wrong magic, version, size or checksum.
    """
    if len(page) < _HEADER_BYTES:
        raise StateCorrupt(f"ledger {path} ends in its header ({len(page)} bytes)", path=path)
    fixed = page[: _HEADER.size]
    magic, version, record_bytes, header_bytes, created, task_id, boot_id, cpu, memory, _, crc = (
        _HEADER.unpack(fixed)
    )
    if magic != _MAGIC:
        raise StateCorrupt(f"{path} is not a ledger (magic {magic!r})", path=path)
    if version != FORMAT_VERSION:
        raise StateCorrupt(
            f"ledger {path} has version {version}, this fargatelite reads {FORMAT_VERSION}",
            path=path,
        )
    if crc != _crc(fixed) or (record_bytes, header_bytes) != (_RECORD.size, _HEADER_BYTES):
        raise StateCorrupt(f"ledger {path} has a damaged header", path=path)
    names: list[str] = []
    problems: list[Problem] = []
    for index in range(MAX_CONTAINERS):
        offset = name_offset(index)
        slot = page[offset : offset + _NAME.size]
        if not any(slot):
            break
        length, data, slot_crc = _NAME.unpack(slot)
        if slot_crc != _crc(slot):
            problems.append(Problem(offset_bytes=offset, reason=f"name of container {index}"))
            names.append(f"#{index}")
        else:
            names.append(data[:length].decode(errors="replace"))
    header = LedgerHeader(
        task_id=task_id.decode(errors="replace"),
        boot_id=boot_id.decode(errors="replace"),
        created_at_ns=created,
        cpu_units=cpu,
        memory_mib=memory,
        containers=tuple(names),
    )
    return header, tuple(problems)


def parse_ledger(data: bytes, path: str = "-") -> Ledger:
    """Parses a whole file; see `read_ledger`."""
    header, damaged_names = decode_header(data[:_HEADER_BYTES], path)
    problems = list(damaged_names)
    samples: list[Sample] = []
    next_seq = 0
    body = memoryview(data)[_HEADER_BYTES:]
    for seq in range(len(body) // _RECORD.size):
        raw = bytes(body[seq * _RECORD.size : (seq + 1) * _RECORD.size])
        if raw == _UNWRITTEN:
            continue
        offset = _HEADER_BYTES + seq * _RECORD.size
        if seq > next_seq:
            problems.append(
                Problem(
                    offset_bytes=_HEADER_BYTES + next_seq * _RECORD.size,
                    reason=f"records {next_seq} to {seq - 1} are missing",
                )
            )
        next_seq = seq + 1
        stored = _RECORD.unpack(raw)
        if stored[-1] != _crc(raw):
            problems.append(Problem(offset_bytes=offset, reason=f"record {seq}: wrong checksum"))
        elif stored[0] != seq:
            problems.append(Problem(offset_bytes=offset, reason=f"record {seq} says {stored[0]}"))
        else:
            samples.append(_sample(stored))
    if rest := len(body) % _RECORD.size:
        problems.append(Problem(offset_bytes=len(data) - rest, reason=f"{rest} bytes at the end"))
    return Ledger(
        header=header, samples=tuple(samples), problems=tuple(problems), next_seq=next_seq
    )


def read_ledger(path: str | os.PathLike[str]) -> Ledger:
    """Reads a ledger, also one that is being written.

    Raises: StateCorrupt when the header is unusable; OSError when the file cannot be read.
    """
    return parse_ledger(Path(path).read_bytes(), os.fspath(path))


def _sample(stored: tuple[int, ...]) -> Sample:
    seq, container, flag_bits, wall, monotonic, cpu, memory, peak, group_id, late_us, _ = stored
    flags = SampleFlag(flag_bits)
    return Sample(
        seq=seq,
        container=None if container == _TASK else container,
        flags=flags,
        wall_ns=wall,
        monotonic_ns=monotonic,
        cpu_usage_ns=None if flags & SampleFlag.GAP_CPU else cpu,
        memory_bytes=None if flags & SampleFlag.GAP_MEMORY else memory,
        memory_peak_bytes=None if flags & SampleFlag.GAP_PEAK else peak,
        group_id=group_id,
        late_us=late_us,
    )


def summarise(ledger: Ledger) -> Mapping[str | None, Usage]:
    """Use by container name, and by None for the task's own group, when it was sampled.

    CPU is the last value of each group's cumulative counter, so a gap loses none of it. Memory is
    the trapezoid between neighbouring samples of one group; across more than 1.5 s, or a gap, the
    same line counts as estimated. A group that lived between two ticks has two samples, taken when
    it was empty: its peak is taken for its whole life, an upper bound, estimated too.
    """
    by_container: dict[int | None, dict[int, list[Sample]]] = {}
    for sample in ledger.samples:
        groups = by_container.setdefault(sample.container, {})
        groups.setdefault(sample.group_id, []).append(sample)
    usages: dict[str | None, Usage] = {}
    for container, groups in by_container.items():
        parts = [_summarise_group(samples) for samples in groups.values()]
        usages[_name(ledger.header, container)] = _join(parts)
    return usages


def _name(header: LedgerHeader, container: int | None) -> str | None:
    if container is None:
        return None
    return header.containers[container] if container < len(header.containers) else f"#{container}"


def _summarise_group(samples: list[Sample]) -> Usage:
    cpu = [sample.cpu_usage_ns for sample in samples if sample.cpu_usage_ns is not None]
    known = [sample for sample in samples if sample.memory_bytes is not None]
    peaks = [sample.memory_peak_bytes or 0 for sample in samples]
    peak_bytes = max([*peaks, *(sample.memory_bytes or 0 for sample in samples)])
    byte_ns = estimated_ns = 0
    whole_life = len(samples) == 2 and bool(samples[1].flags & SampleFlag.LAST)
    for before, after in itertools.pairwise(known):
        assert before.memory_bytes is not None
        assert after.memory_bytes is not None
        step_ns = max(0, after.monotonic_ns - before.monotonic_ns)
        if whole_life:
            byte_ns += peak_bytes * step_ns
            estimated_ns += step_ns
        else:
            byte_ns += (before.memory_bytes + after.memory_bytes) * step_ns // 2
            if step_ns > _EXPECTED_INTERVAL_NS:
                estimated_ns += step_ns
    observed_ns = max(0, samples[-1].monotonic_ns - samples[0].monotonic_ns)
    if known:
        # Before the first known value and after the last one it is held: nobody knows better.
        head_ns = known[0].monotonic_ns - samples[0].monotonic_ns
        tail_ns = samples[-1].monotonic_ns - known[-1].monotonic_ns
        byte_ns += (known[0].memory_bytes or 0) * head_ns + (known[-1].memory_bytes or 0) * tail_ns
        estimated_ns += head_ns + tail_ns
    else:
        estimated_ns = observed_ns
    gap = SampleFlag.GAP_CPU | SampleFlag.GAP_MEMORY
    return Usage(
        cpu_ns=max(cpu, default=0),
        memory_byte_ns=byte_ns,
        memory_peak_bytes=peak_bytes,
        observed_ns=observed_ns,
        estimated_ns=estimated_ns,
        first_at_ns=samples[0].wall_ns,
        last_at_ns=samples[-1].wall_ns,
        samples=len(samples),
        gaps=sum(1 for sample in samples if sample.flags & gap),
    )


def _join(parts: list[Usage]) -> Usage:
    first = parts[0]
    return structs.replace(
        first,
        cpu_ns=sum(part.cpu_ns for part in parts),
        memory_byte_ns=sum(part.memory_byte_ns for part in parts),
        memory_peak_bytes=max(part.memory_peak_bytes for part in parts),
        observed_ns=sum(part.observed_ns for part in parts),
        estimated_ns=sum(part.estimated_ns for part in parts),
        first_at_ns=min(part.first_at_ns for part in parts),
        last_at_ns=max(part.last_at_ns for part in parts),
        samples=sum(part.samples for part in parts),
        gaps=sum(part.gaps for part in parts),
    )
