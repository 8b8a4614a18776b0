"""Fargate's charge (contract 7.1, 7.2) and its split; money never loses a digit."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.billing.bill import BillableLife, bill_to_builtins, billed_seconds, compute_bill
from fargatelite.billing.prices import load_price_book
from fargatelite.errors import ConfigurationInvalid
from fargatelite.meter.ledger import Usage

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
    bill = compute_bill(life(), found, PRICES)
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
    bill = compute_bill(life(seconds, containers=names), found, PRICES)
    assert sum((item.cost for item in bill.containers), Decimal(0)) == bill.cost
    assert sum((line.cost for line in bill.lines), Decimal(0)) == bill.cost


def test_json_has_decimals_as_strings() -> None:
    shown = bill_to_builtins(compute_bill(life(), None, PRICES))
    assert isinstance(shown["cost"], str)
    assert Decimal(shown["cost"]) > 0
