"""Fargate's charge (contract 7.1, 7.2) and its split; money never loses a digit."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from fargatelite.billing.bill import (
    BillableLife,
    Reservation,
    bill_to_builtins,
    billed_seconds,
    compute_bill,
)
from fargatelite.billing.prices import load_price_book
from fargatelite.errors import ConfigurationInvalid
from fargatelite.meter.usage import ClockStep, Profile, Spread, TaskUsage, Usage

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND


def life(seconds: float | None = 61, **more: object) -> BillableLife:
    values: dict[str, object] = {
        "task_id": "0" * 32,
        "family": "f",
        "cpu_units": 256,
        "memory_mib": 512,
        "ephemeral_storage_gib": 20,
        "cpu_architecture": "X86_64",
        "pull_started_at_ns": START,
        "stopped_at_ns": None if seconds is None else START + int(seconds * SECOND),
        "now_ns": START + 10 * SECOND,
        "containers": ("a", "b"),
    }
    return BillableLife(**{**values, **more})  # type: ignore[arg-type]


def usage(cpu_s: float, gb_s: float) -> Usage:
    return Usage(
        cpu_ns=int(cpu_s * SECOND),
        memory_byte_ns=int(gb_s * 2**30) * SECOND,
        memory_peak_bytes=2**20,
        observed_ns=SECOND,
        estimated_ns=0,
        first_at_ns=START,
        last_at_ns=START,
        samples=2,
        gaps=0,
    )


def measured(found: dict[str | None, Usage]) -> TaskUsage:
    return TaskUsage(usage=found, profiles={}, traffic={})


PRICES = load_price_book("us-east-1")


def test_the_contracts_worked_example() -> None:
    """0.25 vCPU, 0.5 GB, 10 m 0.2 s: 601 s, 0.00206051 USD."""
    bill = compute_bill(life(600.2), None, PRICES)
    assert bill.billed_seconds == 601
    assert round(bill.lines[0].cost, 8) == Decimal("0.00168948")
    assert round(bill.lines[1].cost, 8) == Decimal("0.00037103")
    # The contract rounds each line first.
    assert abs(bill.cost - Decimal("0.00206051")) < Decimal("0.00000001")


@pytest.mark.parametrize(
    ("seconds", "billed"), [(0, 60), (7, 60), (60, 60), (60.000000001, 61), (600.2, 601)]
)
def test_seconds_are_rounded_up_with_a_minimum(seconds: float, billed: int) -> None:
    assert billed_seconds(life(seconds)) == billed


def test_no_pull_no_charge() -> None:
    bill = compute_bill(life(pull_started_at_ns=None), None, PRICES)
    assert (bill.billed_seconds, bill.cost) == (0, Decimal(0))


def test_a_running_task_is_billed_up_to_now() -> None:
    bill = compute_bill(life(None, now_ns=START + 90 * SECOND), None, PRICES)
    assert (bill.billed_seconds, bill.is_final) == (90, False)


@pytest.mark.field("ephemeralStorage.sizeInGiB")
def test_ephemeral_storage_beyond_the_included() -> None:
    bill = compute_bill(life(3600, ephemeral_storage_gib=30), None, PRICES)
    assert bill.lines[2].cost == Decimal("0.00111")


def test_an_unknown_price_is_an_error() -> None:
    with pytest.raises(ConfigurationInvalid, match="no price is known for ARM64 in us-east-2"):
        compute_bill(life(cpu_architecture="ARM64"), None, load_price_book("us-east-2"))
    with pytest.raises(ConfigurationInvalid, match="no prices are known for region mars-1"):
        load_price_book("mars-1")


def test_what_was_not_measured_is_unknown() -> None:
    bill = compute_bill(life(), None, PRICES)
    assert bill.used_cost is None
    assert bill.containers[0].cpu_seconds is None


def test_a_container_pays_for_what_it_used() -> None:
    found = {"a": usage(3, 1), "b": usage(1, 1), None: usage(4, 2)}
    bill = compute_bill(life(), measured(found), PRICES)
    cpu, memory = bill.lines[0].cost, bill.lines[1].cost
    assert abs(bill.containers[0].cost - (cpu * 3 / 4 + memory / 2)) < Decimal("1E-14")
    assert bill.used_cost is not None
    assert bill.idle_share is not None
    assert abs(bill.idle_share - (1 - bill.used_cost / bill.cost)) < Decimal("1E-20")


_floats = st.floats(0, 10_000, allow_nan=False)


@given(
    st.floats(0, 10**6, allow_nan=False),
    st.lists(st.tuples(_floats, _floats), min_size=1, max_size=10),
)
def test_containers_add_up_to_the_task(seconds: float, parts: list[tuple[float, float]]) -> None:
    names = tuple(f"c{index}" for index in range(len(parts)))
    found: dict[str | None, Usage] = {
        name: usage(cpu, memory) for name, (cpu, memory) in zip(names, parts, strict=True)
    }
    bill = compute_bill(life(seconds, containers=names), measured(found), PRICES)
    assert sum((item.cost for item in bill.containers), Decimal(0)) == bill.cost
    assert sum((line.cost for line in bill.lines), Decimal(0)) == bill.cost


@pytest.mark.parametrize("value_s", [3600, -3600])
def test_a_clock_that_was_set_is_not_billed(value_s: int) -> None:
    """100 s of life; the wall clock was set by an hour in the 40th second of it."""
    step = ClockStep(wall_ns=START + (40 + value_s) * SECOND, value_ns=value_s * SECOND)
    lived = life(100 + value_s, clock_steps=(step,))
    assert billed_seconds(lived) == 100
    early = ClockStep(wall_ns=START - 3700 * SECOND, value_ns=value_s * SECOND)
    assert billed_seconds(life(100, clock_steps=(early,))) == 100


def test_spot_has_prices_of_its_own() -> None:
    book = load_price_book("us-west-2")
    bill = compute_bill(life(3600, capacity="FARGATE_SPOT"), None, book)
    assert bill.lines[0].rate == Decimal("0.012144")
    assert "2023" in bill.price_source
    with pytest.raises(ConfigurationInvalid, match="X86_64 on Spot in us-east-1"):
        compute_bill(life(capacity="FARGATE_SPOT"), None, PRICES)


OWN = """
source = "our machine room"
effective = "2026-01-01"
currency = "EUR"
minimum_s = 1
[rates.X86_64]
vcpu_hour = 0.021
gb_hour = 0.0023
"""


def test_a_price_book_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(OWN)
    bill = compute_bill(life(7), None, load_price_book("mars-1", str(path)))
    assert (bill.billed_seconds, bill.currency, bill.lines[0].rate) == (7, "EUR", Decimal("0.021"))
    assert bill.price_source == "our machine room"
    with pytest.raises(ConfigurationInvalid, match="ephemeral storage"):
        compute_bill(life(ephemeral_storage_gib=21), None, load_price_book("mars-1", str(path)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (OWN.replace("0.021", "-1"), r"a rate is at least 0, not -1.*rates\.X86_64"),
        (OWN.replace("gb_hour", "gb_our"), r"unknown field `gb_our`"),
        (OWN.replace("2026-01-01", "lately"), r"\$\.effective"),
        ("source", "price book .*"),
    ],
)
def test_a_wrong_price_book_is_refused(tmp_path: Path, wrong: str, message: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(wrong)
    with pytest.raises(ConfigurationInvalid, match=message):
        load_price_book("us-east-1", str(path))


def test_what_is_reserved_counts_as_used() -> None:
    """As AWS splits: the greater of reserved and used, what is idle in proportion."""
    found = {"a": usage(0, 0), "b": usage(900, 0), None: usage(900, 0)}
    reservations = (Reservation(cpu_units=64), Reservation())
    bill = compute_bill(life(3600, reservations=reservations), measured(found), PRICES)
    a, b = (item.splits[0] for item in bill.containers)
    assert (a.reserved_usage, a.actual_usage, a.split_usage) == (
        Decimal("0.0625"), 0, Decimal("0.0625"),
    )  # fmt: skip
    assert (b.split_usage, a.split_usage_ratio) == (Decimal("0.25"), Decimal("0.2"))
    # More than there is: 0.3125 of 0.25 vCPU-hours; nothing is left unused.
    assert (a.unused_cost, b.unused_cost) == (0, 0)
    assert a.split_cost + b.split_cost == bill.lines[0].cost
    assert a.split_cost == bill.lines[0].cost / 5


def profile(cpu: float, memory_mib: int) -> TaskUsage:
    spread = Spread(p50=0, p95=0, p99=int(cpu * SECOND), highest=10 * SECOND)
    peak = memory_mib * 2**20
    memory = Spread(p50=0, p95=0, p99=peak, highest=peak)
    task = structs.replace(usage(1, 1), memory_peak_bytes=peak)
    return TaskUsage(
        usage={None: task},
        profiles={None: Profile(cpu_ns_per_s=spread, memory_bytes=memory)},
        traffic={},
    )


@pytest.mark.parametrize(
    ("cpu", "memory_mib", "units", "mib"),
    [
        (0.1, 100, 256, 512),
        (0.25, 100, 512, 1024),  # 0.3 with the margin
        (0.9, 4000, 2048, 5120),
        (0.1, 1800, 512, 3072),
        (26, 1000, 32768, 61440),
        (30, 1000, None, None),
    ],
)
def test_right_sizing(cpu: float, memory_mib: int, units: int | None, mib: int | None) -> None:
    bill = compute_bill(life(cpu_units=4096, memory_mib=8192), profile(cpu, memory_mib), PRICES)
    assert bill.right_sizing is not None
    assert (bill.right_sizing.cpu_units, bill.right_sizing.memory_mib) == (units, mib)


def test_right_sizing_says_what_it_saves() -> None:
    bill = compute_bill(life(cpu_units=1024, memory_mib=2048), profile(0.1, 100), PRICES)
    assert bill.right_sizing is not None
    hour = Decimal("0.04048") + 2 * Decimal("0.004445")
    assert bill.right_sizing.monthly_cost == hour * 730
    assert bill.right_sizing.monthly_saving == hour * 730 * 3 / 4


def test_a_throttled_task_is_not_made_smaller() -> None:
    found = profile(0.2, 100)
    task = structs.replace(found.usage[None], periods=100, throttled_periods=2)
    bill = compute_bill(
        life(cpu_units=1024, memory_mib=2048),
        structs.replace(found, usage={None: task}),
        PRICES,
    )
    assert bill.right_sizing is not None
    assert (bill.right_sizing.is_throttled, bill.right_sizing.cpu_units) == (True, 1024)


def test_json_has_decimals_as_strings() -> None:
    shown = bill_to_builtins(compute_bill(life(), None, PRICES))
    assert isinstance(shown["cost"], str)
    assert Decimal(shown["cost"]) > 0
