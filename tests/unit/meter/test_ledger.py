"""The ledger's format, its damage, and the arithmetic of use."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.errors import StateCorrupt
from fargatelite.meter.ledger import (
    LedgerHeader,
    SampleFlag,
    encode_header,
    parse_ledger,
    read_ledger,
)
from fargatelite.meter.usage import summarise

HEADER = LedgerHeader(
    task_id="0123456789abcdef" * 2,
    boot_id="8a3c1c9e-7a0f-4b1e-9f0c-5d1c2b3a4f5e",
    created_at_ns=1_700_000_000_000_000_000,
    cpu_units=256,
    memory_mib=512,
    containers=("web", "prøbe"),
)
SECOND_NS = 1_000_000_000
KIB = 1024


def seal(raw: bytes) -> bytes:
    return raw + struct.pack("<I", zlib.crc32(raw))


def record(
    seq: int,
    container: int = 0,
    *,
    at_ns: int = 0,
    cpu_ns: int = 0,
    memory: int = 0,
    peak: int = 0,
    generation: int = 0,
    flags: int = 0,
) -> bytes:
    """A sample; memory in KiB."""
    prefix = struct.pack("<IBBBBQQ", seq, 1, container, flags, generation, at_ns, at_ns)
    return seal(prefix + struct.pack("<QQIIIIHH", cpu_ns, 0, memory, peak, 0, 0, 0, 0))


def mark(seq: int, kind: int, value: int, *, at_ns: int = 0) -> bytes:
    prefix = struct.pack("<IBBBBQQ", seq, 5, 0xFF, 0, 0, at_ns, at_ns)
    return seal(prefix + struct.pack("<IIqQ12s", kind, 0, value, at_ns, b""))


def test_header_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    path.write_bytes(encode_header(HEADER))
    ledger = read_ledger(path)
    assert ledger.header == HEADER
    assert (ledger.samples, ledger.problems, ledger.next_seq) == ((), (), 0)


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"NOTMINE!", "not a ledger"),
        (8, b"\x03\0", "has version 3, this fargatelite reads 1 and 2"),
        (30, b"?", "damaged header"),
    ],
)
def test_wrong_header_is_refused(offset: int, data: bytes, message: str) -> None:
    page = bytearray(encode_header(HEADER))
    page[offset : offset + len(data)] = data
    with pytest.raises(StateCorrupt, match=message):
        parse_ledger(bytes(page))


def test_short_file_is_refused() -> None:
    with pytest.raises(StateCorrupt, match="ends in its header"):
        parse_ledger(b"FLLEDGER")


def test_damage_is_reported_with_its_place_and_skipped() -> None:
    records = [record(seq, cpu_ns=seq) for seq in range(5)]
    damaged = bytearray(records[2])
    damaged[30] ^= 1
    records[2] = bytes(damaged)
    records[3] = bytes(64)
    data = encode_header(HEADER) + b"".join(records) + bytes(640) + b"tail"
    ledger = parse_ledger(data)
    assert [sample.seq for sample in ledger.samples] == [0, 1, 4]
    assert [(problem.offset_bytes, problem.reason) for problem in ledger.problems] == [
        (4096 + 128, "record 2: wrong checksum"),
        (4096 + 192, "records 3 to 3 are missing"),
        (4096 + 960, "4 bytes at the end"),
    ]
    assert ledger.next_seq == 5


@given(st.binary(max_size=600), st.integers(0, 4096 + 300))
def test_no_damage_makes_reading_fail_unless_in_the_header(noise: bytes, at: int) -> None:
    data = bytearray(encode_header(HEADER) + b"".join(record(seq) for seq in range(5)))
    data[at : at + len(noise)] = noise
    if at >= 256:
        ledger = parse_ledger(bytes(data))
        assert len(ledger.samples) <= 5 + len(noise) // 64
    else:
        with contextlib.suppress(StateCorrupt):
            parse_ledger(bytes(data))


def summary(*records: bytes):  # type: ignore[no-untyped-def]
    return summarise(parse_ledger(encode_header(HEADER) + b"".join(records)))


def test_memory_is_the_trapezoid() -> None:
    usage = summary(
        record(0, memory=100),
        record(1, at_ns=SECOND_NS, memory=300),
        record(2, at_ns=2 * SECOND_NS, memory=300),
    )["web"]
    assert usage.memory_byte_ns == (200 + 300) * KIB * SECOND_NS
    assert (usage.observed_ns, usage.estimated_ns, usage.memory_peak_bytes) == (
        2 * SECOND_NS,
        0,
        300 * KIB,
    )


def test_unwatched_time_is_estimated_and_loses_no_cpu() -> None:
    usage = summary(
        record(0, memory=100, cpu_ns=5),
        record(1, at_ns=10 * SECOND_NS, memory=100, cpu_ns=9_000),
    )["web"]
    assert usage.cpu_ns == 9_000
    assert usage.memory_byte_ns == 1_000 * KIB * SECOND_NS
    assert usage.estimated_ns == 10 * SECOND_NS


def test_gap_is_not_a_zero() -> None:
    usage = summary(
        record(0, memory=100, cpu_ns=5),
        record(1, at_ns=SECOND_NS, flags=SampleFlag.GAP_CPU | SampleFlag.GAP_MEMORY),
        record(2, at_ns=2 * SECOND_NS, memory=100, cpu_ns=50),
    )["web"]
    assert usage.memory_byte_ns == 200 * KIB * SECOND_NS
    assert (usage.cpu_ns, usage.gaps, usage.estimated_ns) == (50, 1, 2 * SECOND_NS)


def test_restarted_container_adds_its_groups() -> None:
    usage = summary(
        record(0, cpu_ns=5, generation=0),
        record(1, at_ns=SECOND_NS, cpu_ns=100, generation=0),
        record(2, at_ns=5 * SECOND_NS, cpu_ns=300, generation=1),
        record(3, at_ns=6 * SECOND_NS, cpu_ns=400, generation=1),
    )["web"]
    assert usage.cpu_ns == 500
    assert usage.observed_ns == 2 * SECOND_NS


def test_life_between_two_ticks_takes_its_peak() -> None:
    usage = summary(
        record(0, 1),
        record(1, 1, at_ns=SECOND_NS // 10, peak=1000, flags=SampleFlag.LAST),
    )["prøbe"]
    assert usage.memory_byte_ns == 1000 * KIB * SECOND_NS // 10
    assert usage.estimated_ns == SECOND_NS // 10


def test_task_and_unnamed_containers() -> None:
    usages = summary(record(0, 0xFF, cpu_ns=7), record(1, 9, cpu_ns=8))
    assert usages[None].cpu_ns == 7
    assert usages["#9"].cpu_ns == 8


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 2**32 - 1)), min_size=2, max_size=40)
)
def test_integral_lies_between_least_and_most(steps: list[tuple[int, int]]) -> None:
    at_ns, records = 0, []
    for seq, (step_ns, memory) in enumerate(steps):
        at_ns += step_ns
        records.append(record(seq, at_ns=at_ns, memory=memory))
    usage = summary(*records)["web"]
    least = min(memory for _, memory in steps) * KIB
    most = max(memory for _, memory in steps) * KIB
    rounding = len(steps)
    assert least * usage.observed_ns - rounding <= usage.memory_byte_ns <= most * usage.observed_ns
