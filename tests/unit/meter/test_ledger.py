"""The ledger's format, its damage, and the arithmetic of use."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.errors import StateCorrupt
from fargatelite.meter.ledger import (
    RECORD_BYTES,
    LedgerHeader,
    SampleFlag,
    encode_header,
    parse_ledger,
    read_ledger,
    read_task_ledger,
)
from fargatelite.meter.rollup import roll_up
from fargatelite.meter.usage import summarise
from tests.fixtures.ledgers import TASK, LedgerWriter

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


class record:
    """A sample; memory in KiB. The number is the reader's help only: they are in this order."""

    def __init__(
        self,
        number: int,
        container: int = 0,
        *,
        at_ns: int = 0,
        cpu_ns: int = 0,
        memory: int = 0,
        peak: int = 0,
        generation: int = 0,
        flags: int = 0,
    ) -> None:
        self.container, self.at_ns, self.cpu_ns, self.memory = container, at_ns, cpu_ns, memory
        self.peak, self.generation, self.flags = peak, generation, flags


def written(*records: record) -> LedgerWriter:
    writer = LedgerWriter(HEADER.task_id, HEADER.containers)
    for item in records:
        writer.sample(item.at_ns, container=item.container, cpu_ns=item.cpu_ns,
                      memory_kib=item.memory, peak_kib=item.peak, generation=item.generation,
                      flags=item.flags)  # fmt: skip
    return writer


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
        (8, b"\x04\0", "has version 4, this fargatelite reads 1 to 3"),
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
    # A clock, a base, and five samples.
    records = written(*(record(seq, at_ns=seq * SECOND_NS, cpu_ns=seq) for seq in range(5))).records
    damaged = bytearray(records[4])
    damaged[15] ^= 1
    records[4] = bytes(damaged)
    records[5] = bytes(RECORD_BYTES)
    data = encode_header(HEADER) + b"".join(records) + bytes(10 * RECORD_BYTES) + b"tail"
    ledger = parse_ledger(data)
    assert [(sample.seq, sample.cpu_usage_ns) for sample in ledger.samples] == [
        (2, 0), (3, 1), (6, 4),
    ]  # fmt: skip
    assert [(problem.offset_bytes, problem.reason) for problem in ledger.problems] == [
        (4096 + 4 * 28, "record 4: wrong checksum"),
        (4096 + 5 * 28, "records 5 to 5 are missing"),
        (4096 + 17 * 28, "4 bytes at the end"),
    ]
    assert ledger.next_seq == 7


def test_a_record_counts_at_its_own_place_only() -> None:
    records = written(*(record(seq, at_ns=seq * SECOND_NS, cpu_ns=seq) for seq in range(5))).records
    records[3], records[4] = records[4], records[3]
    ledger = parse_ledger(encode_header(HEADER) + b"".join(records))
    assert [sample.cpu_usage_ns for sample in ledger.samples] == [0, 3, 4]
    assert [problem.offset_bytes for problem in ledger.problems] == [4096 + 3 * 28, 4096 + 4 * 28]


def test_every_flipped_bit_is_found() -> None:
    """And none of them makes a value up: what is read is a part of what was written."""
    writer = written(
        record(0, cpu_ns=2**40 - 5, memory=100, peak=300),
        record(1, at_ns=SECOND_NS, cpu_ns=2**40 + 5, memory=400),
        record(2, at_ns=2 * SECOND_NS, cpu_ns=2**40 + 9, memory=400, generation=1),
        record(3, at_ns=3 * SECOND_NS, cpu_ns=2**40 + 10, memory=400, generation=1),
    )
    data = writer.encode()
    whole = {(s.cpu_usage_ns, s.memory_bytes, s.wall_ns) for s in parse_ledger(data).samples}
    assert [cpu for cpu, _, _ in sorted(whole)] == [2**40 + grown for grown in (-5, 5, 9, 10)]
    for bit in range((len(data) - 4096) * 8):
        damaged = bytearray(data)
        damaged[4096 + bit // 8] ^= 1 << bit % 8
        ledger = parse_ledger(bytes(damaged))
        assert ledger.problems[0].offset_bytes == 4096 + bit // 8 // 28 * 28
        assert {(s.cpu_usage_ns, s.memory_bytes, s.wall_ns) for s in ledger.samples} < whole


def test_behind_much_damage_low_bits_alone_say_nothing() -> None:
    """A counter may have grown by more than they hold; the next detailed sample counts again."""
    writer = written(
        *(record(seq, at_ns=seq * SECOND_NS, cpu_ns=seq * 4 * SECOND_NS) for seq in range(70))
    )
    assert writer.records[63][4] >> 4 == 2  # a minute later: a base again (and a clock)
    records = [*writer.records[:5], *[bytes([1] * 28)] * 5, *writer.records[10:]]
    ledger = parse_ledger(encode_header(HEADER) + b"".join(records))
    seconds = [sample.monotonic_ns // SECOND_NS for sample in ledger.samples]
    assert seconds == [0, 1, 2, *range(60, 70)]
    assert [s.cpu_usage_ns for s in ledger.samples] == [s * 4 * SECOND_NS for s in seconds]
    assert len(ledger.problems) == 5 + 52  # each of them has its place


@given(st.binary(max_size=600), st.integers(0, 4096 + 300))
def test_no_damage_makes_reading_fail_unless_in_the_header(noise: bytes, at: int) -> None:
    data = bytearray(written(*(record(seq) for seq in range(5))).encode())
    data[at : at + len(noise)] = noise
    if at >= 256:
        ledger = parse_ledger(bytes(data))
        assert len(ledger.samples) <= 5 + len(noise) // 28
    else:
        with contextlib.suppress(StateCorrupt):
            parse_ledger(bytes(data))


def summary(*records: record):  # type: ignore[no-untyped-def]
    return summarise(parse_ledger(written(*records).encode()))


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
    usages = summary(record(0, TASK, cpu_ns=7), record(1, 9, cpu_ns=8))
    assert usages[None].cpu_ns == 7
    assert usages["#9"].cpu_ns == 8


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 2**32 - 1)), min_size=2, max_size=40)
)
def test_integral_lies_between_least_and_most(steps: list[tuple[int, int]]) -> None:
    at_ns, records = 0, []
    for seq, (step_ns, memory) in enumerate(steps):
        at_ns += step_ns // 1000 * 1000
        records.append(record(seq, at_ns=at_ns, memory=memory))
    usage = summary(*records)["web"]
    least = min(memory for _, memory in steps) * KIB
    most = max(memory for _, memory in steps) * KIB
    rounding = len(steps)
    assert least * usage.observed_ns - rounding <= usage.memory_byte_ns <= most * usage.observed_ns


@pytest.mark.parametrize("content", [b"", bytes(4096)], ids=["empty", "zeros"])
def test_a_ledger_that_was_begun_and_never_written_holds_nothing(
    tmp_path: Path, content: bytes
) -> None:
    """A kill or a full disk between its creation and its first page, or a power cut before that
    page was on the disk: then the task has a charge and unknown usage, not an error."""
    path = tmp_path / f"{'0' * 32}.ledger"
    path.write_bytes(content)
    with pytest.raises(FileNotFoundError):
        read_task_ledger(path)
    assert roll_up(path) is False
