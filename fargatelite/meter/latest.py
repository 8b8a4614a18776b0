"""The newest values of a ledger that is being written, without reading all of it.

A ledger is allocated in steps, so its end is zero: where the records end is found by bisection.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from fargatelite.meter.ledger import (
    FORMAT_VERSION,
    RECORD_BYTES,
    Ledger,
    LedgerHeader,
    NetworkSample,
    Pressure,
    Sample,
    SlowSample,
    container_name,
    decode_header,
    join_segments,
    list_segments,
    parse_ledger,
)

__all__ = ["Latest", "read_latest"]

_HEADER_BYTES = 4096
_TAIL_S = 90
"""More than a minute: each group's sample is told in detail once in it."""
_UNWRITTEN = bytes(RECORD_BYTES)


class Latest(Struct, frozen=True, kw_only=True):
    """The newest of each kind; keys are container names, None the task's own group."""

    samples: Mapping[str | None, Sample]
    slow: Mapping[str | None, SlowSample]
    pressure: Mapping[str | None, Pressure]
    network: NetworkSample | None


def read_latest(ledger_path: Path) -> Latest:
    """The newest values of a task's ledger.

    Raises: FileNotFoundError when there is none; StateCorrupt for an unusable header.
    """
    segments = list(list_segments(ledger_path))
    if not segments:
        raise FileNotFoundError(2, "no ledger", str(ledger_path))
    ledger = _read_tail(segments[-1])
    if len(segments) > 1 and _is_begun(ledger):
        before = _read_tail(segments[-2])
        if before.header.boot_id == ledger.header.boot_id:
            ledger = join_segments([before, ledger])
    header = ledger.header
    return Latest(
        samples={container_name(header, item.container): item for item in ledger.samples},
        slow={container_name(header, item.container): item for item in ledger.slow},
        pressure={container_name(header, item.container): item for item in ledger.pressure},
        network=ledger.network[-1] if ledger.network else None,
    )


def _is_begun(ledger: Ledger) -> bool:
    """Whether a segment is so new that not all of the slow kinds are in it."""
    header = ledger.header
    if not ledger.samples:
        return True
    lived_ns = ledger.samples[-1].wall_ns - ledger.samples[0].wall_ns
    return lived_ns < 2 * header.slow_every_s * 1_000_000_000


def _tail_records(header: LedgerHeader) -> int:
    """So many have a minute of every group, and the slow kinds at their pace."""
    slow_s = header.slow_every_s
    seconds = _TAIL_S + slow_s
    of_a_group = 2 * seconds + (3 * seconds // slow_s if slow_s else 0)
    return of_a_group * (len(header.containers) + 1)


def _read_tail(path: Path) -> Ledger:
    """A segment's header and last records. Places in it are not the file's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size <= _HEADER_BYTES:
            return parse_ledger(os.pread(descriptor, size, 0), str(path))
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped:
            header = mapped[:_HEADER_BYTES]
            described, version, _ = decode_header(header, str(path))
            if version != FORMAT_VERSION:
                return parse_ledger(mapped[:], str(path))
            low, high = 0, (size - _HEADER_BYTES) // RECORD_BYTES
            while low < high:
                middle = (low + high) // 2
                at = _HEADER_BYTES + middle * RECORD_BYTES
                if mapped[at : at + RECORD_BYTES] == _UNWRITTEN:
                    high = middle
                else:
                    low = middle + 1
            first = max(0, low - _tail_records(described))
            start = _HEADER_BYTES + first * RECORD_BYTES
            tail = mapped[start : _HEADER_BYTES + low * RECORD_BYTES]
        return parse_ledger(header + tail, str(path), first_seq=first)
    finally:
        os.close(descriptor)
