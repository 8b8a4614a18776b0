"""The end of a ledger that is being written, and ledgers of version 1."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from fargatelite.errors import StateCorrupt
from fargatelite.meter.latest import read_latest
from fargatelite.meter.ledger import SampleFlag, parse_ledger, read_ledger, segment_path
from fargatelite.meter.usage import measure, summarise
from tests.fixtures.ledgers import BOOT_ID, LedgerWriter, write_busy_hour

TASK_ID = "0123456789abcdef" * 2
VERSION_2 = Path(__file__).parents[2] / "fixtures" / "version2.ledger"


@pytest.mark.parametrize("seconds", [0, 1, 700, 4000])
@pytest.mark.parametrize("unwritten", [0, 28, 65536])
def test_the_end_is_found_behind_what_is_not_written_yet(
    tmp_path: Path, seconds: int, unwritten: int
) -> None:
    path = tmp_path / "t.ledger"
    write_busy_hour(path, TASK_ID, seconds=seconds)
    path.write_bytes(path.read_bytes() + bytes(unwritten))
    whole, latest = read_ledger(path), read_latest(path)
    assert set(latest.samples) == {"web", "worker", None}
    for index, name in ((0, "web"), (1, "worker"), (None, None)):
        expected = [item for item in whole.samples if item.container == index][-1]
        assert latest.samples[name] == expected
    assert latest.slow[None] == whole.slow[-1]
    assert latest.network == whole.network[-1]


def test_the_newest_segment_tells(tmp_path: Path) -> None:
    """And the one before it, while the newest does not have all kinds yet; not that of a boot
    before."""
    path = tmp_path / "t.ledger"
    write_busy_hour(path, TASK_ID, seconds=5)
    writer = LedgerWriter(TASK_ID, ("web", "worker"))
    writer.sample(6_000_000_000, cpu_ns=123)
    segment_path(path, 1).write_bytes(writer.encode())
    latest = read_latest(path)
    assert latest.samples[None].cpu_usage_ns == 123
    assert latest.samples["web"] == read_ledger(path).samples[-3]
    assert latest.network is not None
    writer = LedgerWriter(TASK_ID)
    writer.header = structs.replace(writer.header, boot_id="0" * 36)
    segment_path(path, 1).write_bytes(writer.encode())
    assert read_latest(path).samples == {}
    with pytest.raises(FileNotFoundError):
        read_latest(tmp_path / "other.ledger")
    path.write_bytes(b"FLLEDGER")
    segment_path(path, 1).unlink()
    with pytest.raises(StateCorrupt):
        read_latest(path)


def version_1(*rows: tuple[int, ...]) -> bytes:
    """Container, flags, time, CPU, memory, group."""
    fixed = struct.pack(
        "<8sHHIQ32s36sII152s", b"FLLEDGER", 1, 64, 4096, 1, TASK_ID.encode(), BOOT_ID.encode(),
        256, 512, b"",
    )  # fmt: skip
    page = (fixed + struct.pack("<I", zlib.crc32(fixed))).ljust(4096, b"\0")
    for seq, (container, flags, at_ns, cpu_ns, memory, group_id) in enumerate(rows):
        raw = struct.pack("<IHHQQQQQQI", seq, container, flags, at_ns, at_ns, cpu_ns, memory,
                          memory, group_id, 7)  # fmt: skip
        page += raw + struct.pack("<I", zlib.crc32(raw))
    return page


def test_version_1_is_still_read() -> None:
    ledger = parse_ledger(
        version_1(
            (0xFFFF, 16, 0, 0, 4096, 9),
            (0, 16 | 64, 0, 5, 4096, 1),
            (0, 32 | 64, 10**9, 100, 8192, 1),
            (0, 16 | 64, 2 * 10**9, 7, 4096, 2),
            (0, 1 | 32, 3 * 10**9, 0, 4096, 2),
        )
    )
    assert ledger.version == 1
    assert [sample.generation for sample in ledger.samples] == [0, 0, 0, 1, 1]
    assert ledger.samples[0].flags == SampleFlag.FIRST
    assert ledger.samples[2].flags == SampleFlag.LAST | SampleFlag.EXTRA
    usage = summarise(ledger)["#0"]
    assert (usage.cpu_ns, usage.gaps) == (107, 1)
    assert ledger.samples[0].throttled_ns is None


def test_version_2_is_still_read() -> None:
    """A segment that its writer wrote, with a step of the clock, missed seconds, a container that
    came back and all slow kinds; what was read of it then."""
    ledger = read_ledger(VERSION_2)
    assert (ledger.version, ledger.problems, len(ledger.samples)) == (2, (), 46)
    used = measure(ledger)
    found = msgspec.to_builtins(
        {
            **{
                kind: {name or "": value for name, value in getattr(used, kind).items()}
                for kind in ("usage", "profiles", "traffic")
            },
            "clock_steps": list(used.clock_steps),
            "missed_s": used.missed_s,
            "suspended_ns": used.suspended_ns,
        }
    )
    assert found == msgspec.json.decode(VERSION_2.with_suffix(".json").read_bytes())
    assert read_latest(VERSION_2).samples["web"] == ledger.samples[-2]


def test_damage_in_version_2_is_found() -> None:
    data = bytearray(VERSION_2.read_bytes())
    data[4096 + 64 * 30 + 5] ^= 1
    ledger = parse_ledger(bytes(data))
    assert [problem.offset_bytes for problem in ledger.problems] == [4096 + 64 * 30]
