"""A thousand random lives, with restarts, gaps, clock steps, crashes and damage: what the package
says of each is what a plain reader of the format says, raw and rolled up."""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path

import pytest

from fargatelite.billing.bill import BillableLife, compute_bill
from fargatelite.billing.prices import load_price_book
from fargatelite.meter.ledger import read_task_ledger, segment_path
from fargatelite.meter.rollup import (
    drop_raw,
    encode_rollup,
    parse_rollup,
    read_task_usage,
    roll_up,
    rollup_path,
)
from fargatelite.meter.usage import measure, summarise
from tests.fixtures import plain_bill, plain_ledger
from tests.fixtures.ledgers import (
    EXTRA,
    FIRST,
    GAP_MEMORY,
    LAST,
    SECOND_NS,
    START_NS,
    TASK,
    LedgerWriter,
    write_busy_hour,
)

LIVES = 1000
NAMES = ("web", "worker", "sidecar")


def live(path: Path, chance: random.Random) -> tuple[int, int]:
    """Writes a random life; begin and end of its charge by its wall clock."""
    task_id = f"{chance.getrandbits(128):032x}"
    names = NAMES[: chance.randint(1, 3)]
    writer = LedgerWriter(task_id, names)
    seconds = chance.choice([0, 1, 5, 20, 59, 60])
    cpu = dict.fromkeys(range(len(names)), 0)
    total, generation = 0, dict.fromkeys(range(len(names)), 0)
    at_ns = chance.randrange(SECOND_NS)
    segments = []
    for second in range(seconds + 2):
        flags = FIRST | EXTRA if second == 0 else LAST | EXTRA if second == seconds + 1 else 0
        for container in range(len(names)):
            if flags == 0 and chance.random() < 0.01:  # it restarts: a new group, counted anew
                generation[container] = (generation[container] + 1) % 256
                cpu[container] = 0
            grown = chance.randrange(SECOND_NS)
            cpu[container] += grown
            total += grown
            writer.sample(
                at_ns, container=container, cpu_ns=cpu[container],
                memory_kib=chance.randrange(2**22), peak_kib=chance.randrange(2**22),
                generation=generation[container],
                flags=flags | (GAP_MEMORY if chance.random() < 0.02 else 0),
            )  # fmt: skip
        writer.sample(at_ns, cpu_ns=total, memory_kib=chance.randrange(2**24), flags=flags)
        if chance.random() < 0.01:
            writer.step_clock(at_ns, chance.choice([-3600, 3600]) * SECOND_NS)
        if chance.random() < 0.01:  # killed; whoever takes over goes on in a new segment
            segments.append(writer.encode())
            writer.records = []
        at_ns += chance.choice([SECOND_NS] * 20 + [7 * SECOND_NS]) + chance.randrange(1_000_000)
    segments.append(writer.encode())
    for number, data in enumerate(segments):
        raw = bytearray(data)
        for _ in range(chance.choice([0, 0, 0, 1, 3])):  # flipped bits, of records only
            if len(raw) > 4096:
                raw[chance.randrange(4096, len(raw))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.1 and number == len(segments) - 1:
            raw = raw[: max(4096, len(raw) - chance.randrange(64))]  # torn
        segment_path(path, number).write_bytes(raw)
    return START_NS, writer.wall_offset_ns + at_ns


@pytest.mark.parametrize("part", range(4))
def test_the_plain_reader_agrees_to_the_last_digit(tmp_path: Path, part: int) -> None:
    prices = load_price_book("us-east-1")
    rates = prices.rates_of("X86_64")
    damaged_lives = stepped_lives = 0
    for number in range(LIVES // 4):
        chance = random.Random(part * LIVES + number)
        path = tmp_path / f"{number}.ledger"
        begin_ns, end_ns = live(path, chance)
        names, groups, steps, damaged = plain_ledger.read(path)
        damaged_lives += bool(damaged)
        stepped_lives += bool(steps)
        plain = plain_bill.use(groups)
        used = measure(read_task_ledger(path))
        assert {None if key == TASK else names[key]: value for key, value in plain.items()} == {
            name: (usage.cpu_ns, usage.memory_byte_ns, usage.memory_peak_bytes)
            for name, usage in used.usage.items()
        }
        assert roll_up(path)
        assert number % 20 or not roll_up(path)  # again: the same bytes, so nothing is written
        assert read_task_usage(path) == used
        life = BillableLife(
            task_id="0" * 32, family="f", cpu_units=512, memory_mib=3072,
            ephemeral_storage_gib=20, cpu_architecture="X86_64", pull_started_at_ns=begin_ns,
            stopped_at_ns=end_ns, now_ns=end_ns, containers=tuple(names),
            clock_steps=used.clock_steps,
        )  # fmt: skip
        bill = compute_bill(life, used, prices)
        assert sum((item.cost for item in bill.containers), Decimal(0)) == bill.cost
        if TASK not in plain:  # each of its few samples was hit
            assert bill.used_cost is None
            continue
        cpu_ns, byte_ns, _ = plain[TASK]
        seconds, cost, used_cost = plain_bill.charge(
            begin_ns, end_ns, steps, 512, 3072, rates.vcpu_hour, rates.gb_hour, cpu_ns, byte_ns
        )
        assert (bill.billed_seconds, bill.cost, bill.used_cost) == (seconds, cost, used_cost)
    assert damaged_lives > 20
    assert stepped_lives > 20


def test_the_plain_reader_is_short() -> None:
    assert len(Path(plain_ledger.__file__).read_text().splitlines()) < 100
    for module in (plain_ledger, plain_bill):
        lines = Path(module.__file__).read_text().splitlines()
        assert not any("fargatelite" in line and "import" in line for line in lines)


def test_minutes_and_hours_add_up_to_the_raw_data(tmp_path: Path) -> None:
    path = tmp_path / "t.ledger"
    write_busy_hour(path, "0" * 32, seconds=7300)
    ledger = read_task_ledger(path)
    rolled = parse_rollup(encode_rollup(ledger))
    raw = summarise(ledger)
    for name, usage in raw.items():
        minutes = rolled.minutes[name].values()
        for member in ("cpu_ns", "memory_byte_ns", "observed_ns", "throttled_ns", "samples"):
            assert sum(getattr(item, member) for item in minutes) == getattr(usage, member), member
    assert rolled.total == measure(ledger)
    # Sum over containers is the task.
    assert raw["web"].cpu_ns + raw["worker"].cpu_ns == raw[None].cpu_ns  # type: ignore[index]


def test_an_hour_fits_where_it_should(tmp_path: Path) -> None:
    path = tmp_path / "t.ledger"
    write_busy_hour(path, "0" * 32)
    roll_up(path)
    # Two containers and the task itself.
    assert rollup_path(path).stat().st_size < 3 * 8 * 1024


def test_raw_data_goes_and_the_bill_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.ledger"
    write_busy_hour(path, "0" * 32, seconds=100)
    segment_path(path, 1).write_bytes(path.read_bytes())
    before = measure(read_task_ledger(path))
    assert drop_raw(path) == 0  # not rolled up yet
    assert roll_up(path)
    # A crash between the two removals: the roll-up knows of more segments than there are.
    segment_path(path, 1).unlink()
    assert not roll_up(path)
    assert drop_raw(path) > 0
    assert not path.exists()
    assert read_task_usage(path) == before
    assert not roll_up(path)
