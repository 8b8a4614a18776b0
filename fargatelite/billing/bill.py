"""What a task costs as Fargate bills it, and what of that it used. Pure; money is Decimal.

Two views of the same seconds. The *charge* is Fargate's: configured size times seconds from the
start of the pull to STOPPED, rounded up to a second, at least a minute (contract 7.1). *Usage* is
what the meter saw: CPU seconds and GB-seconds, priced at the same rates.

Rounding: the only one is of each amount (half to even) at the 15th decimal, so that sums of them
are exact in Python's default 28 digits; rounding to a currency's cents is for the invoice over many
rows (contract 7.1).

A container's part of the charge is AWS' split cost allocation (`split`).
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Any

import msgspec

from fargatelite.billing.prices import Capacity, PriceBook, Rates
from fargatelite.billing.sizing import RightSizing, right_size
from fargatelite.billing.split import AMOUNT, Split, split_meter
from fargatelite.errors import ConfigurationInvalid
from fargatelite.meter.usage import ClockStep, TaskUsage, Usage

__all__ = [
    "Bill",
    "BillableLife",
    "ContainerBill",
    "Line",
    "Reservation",
    "bill_to_builtins",
    "billed_interval_ns",
    "billed_seconds",
    "compute_bill",
    "make_lines",
]

INCLUDED_EPHEMERAL_GIB = 20
SECOND_NS = 1_000_000_000
HOUR_S = 3600
CPU_UNITS_PER_VCPU = 1024
MIB_PER_GB = 1024
DEFAULT_MARGIN = Decimal("0.2")
_DIGITS = 50  # of intermediate results
_ZERO = Decimal(0)


class Reservation(msgspec.Struct, frozen=True):
    """What a container's definition reserves: `cpu`, and `memoryReservation` or `memory`."""

    cpu_units: int = 0
    memory_mib: int = 0


class BillableLife(msgspec.Struct, frozen=True, kw_only=True):
    """What of a task's life the charge depends on. Without `stopped_at_ns` the bill is up to
    `now_ns`; without `pull_started_at_ns` there is no charge."""

    task_id: str
    family: str
    cpu_units: int
    memory_mib: int
    ephemeral_storage_gib: int
    cpu_architecture: str
    pull_started_at_ns: int | None
    stopped_at_ns: int | None
    now_ns: int
    containers: tuple[str, ...]
    reservations: tuple[Reservation, ...] = ()
    """One for each container; none: nothing is reserved."""
    capacity: Capacity = "FARGATE"
    clock_steps: tuple[ClockStep, ...] = ()
    """Times are the wall clock's: what it was set by in between was not lived."""


class Line(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One meter of the charge: quantity (vCPU-hours, GB-hours) times rate."""

    meter: str
    unit: str
    quantity: Decimal
    rate: Decimal
    cost: Decimal


class ContainerBill(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A container's use, and its part of the charge. Use is None when nothing was measured."""

    name: str
    cpu_seconds: Decimal | None
    memory_gb_seconds: Decimal | None
    memory_peak_bytes: int | None
    used_cost: Decimal | None
    cost: Decimal
    splits: tuple[Split, ...] = ()
    """One for each line of the task."""


class Bill(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The bill of one task. `is_final` once the task has stopped."""

    task_id: str
    family: str
    region: str
    currency: str
    price_effective: str
    price_source: str
    is_final: bool
    billed_seconds: int
    lines: tuple[Line, ...]
    cost: Decimal
    cpu_seconds: Decimal | None
    memory_gb_seconds: Decimal | None
    memory_peak_bytes: int | None
    used_cost: Decimal | None
    idle_share: Decimal | None
    estimated_seconds: Decimal
    """Of the memory's seconds, those that were not sampled and are interpolated."""
    damaged_records: int
    """Of the ledger; they were skipped."""
    capacity: str
    right_sizing: RightSizing | None
    containers: tuple[ContainerBill, ...]


def billed_interval_ns(life: BillableLife) -> tuple[int, int] | None:
    """Begin and end of what is charged, by the wall clock as it was; None when no pull ever began.

    A clock that is set in between moves the begin: the length is what was lived.
    """
    if life.pull_started_at_ns is None:
        return None
    end_ns = life.stopped_at_ns if life.stopped_at_ns is not None else life.now_ns
    begin_ns = life.pull_started_at_ns
    for step in life.clock_steps:
        before_ns = step.wall_ns - step.value_ns  # what the clock would have said without it
        if before_ns >= begin_ns:
            begin_ns += step.value_ns
    return begin_ns, max(begin_ns, end_ns)


def billed_seconds(life: BillableLife, minimum_s: int = 60) -> int:
    """Whole seconds that are charged: rounded up, at least the minimum; 0 when no pull began."""
    interval = billed_interval_ns(life)
    if interval is None:
        return 0
    return max(minimum_s, -(-(interval[1] - interval[0]) // SECOND_NS))


def make_lines(
    *,
    cpu_units: int,
    memory_mib: int,
    ephemeral_storage_gib: int,
    seconds: int | Decimal,
    rates: Rates,
    prices: PriceBook,
) -> list[Line]:
    """The meters of a charge: vCPU, memory, and ephemeral storage above what is included.

    Raises: ConfigurationInvalid for ephemeral storage without a price.
    """
    hours = Decimal(seconds) / HOUR_S
    vcpu_hours = Decimal(cpu_units) / CPU_UNITS_PER_VCPU * hours
    gb_hours = Decimal(memory_mib) / MIB_PER_GB * hours
    lines = [
        Line(meter="vCPU", unit="vCPU-Hours", quantity=vcpu_hours, rate=rates.vcpu_hour,
             cost=_amount(vcpu_hours * rates.vcpu_hour)),
        Line(meter="Memory", unit="GB-Hours", quantity=gb_hours, rate=rates.gb_hour,
             cost=_amount(gb_hours * rates.gb_hour)),
    ]  # fmt: skip
    extra = max(0, ephemeral_storage_gib - INCLUDED_EPHEMERAL_GIB)
    if extra:
        rate = prices.ephemeral_gb_hour
        if rate is None:
            raise ConfigurationInvalid(
                f"no price is known for ephemeral storage in {prices.region}; choose another "
                "region for the bill, or a price book of your own (--prices)"
            )
        quantity = extra * hours
        lines.append(
            Line(meter="Ephemeral Storage", unit="GB-Hours", quantity=quantity, rate=rate,
                 cost=_amount(quantity * rate))
        )  # fmt: skip
    return lines


def _amount(value: Decimal) -> Decimal:
    return value.quantize(AMOUNT)


def _cpu_seconds(usage: Usage) -> Decimal:
    return Decimal(usage.cpu_ns) / SECOND_NS


def _gb_seconds(usage: Usage) -> Decimal:
    return Decimal(usage.memory_byte_ns) / SECOND_NS / 2**30


def compute_bill(
    life: BillableLife,
    used: TaskUsage | None,
    prices: PriceBook,
    *,
    margin: Decimal = DEFAULT_MARGIN,
) -> Bill:
    """The bill of a task. Without `used` nothing was measured, which is shown as unknown, not as 0.
    `margin` is what right-sizing leaves above what was measured.

    Raises: ConfigurationInvalid for a price that is not known.
    Source: contract 7.1.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        return _compute(life, used, prices, margin)


def _compute(
    life: BillableLife, used: TaskUsage | None, prices: PriceBook, margin: Decimal
) -> Bill:
    seconds = billed_seconds(life, prices.minimum_s)
    rates = prices.rates_of(life.cpu_architecture, life.capacity)
    lines = make_lines(
        cpu_units=life.cpu_units,
        memory_mib=life.memory_mib,
        ephemeral_storage_gib=life.ephemeral_storage_gib,
        seconds=seconds,
        rates=rates,
        prices=prices,
    )
    cost = sum((line.cost for line in lines), _ZERO)

    def used_cost(item: Usage) -> Decimal:
        return _amount(
            _cpu_seconds(item) * rates.vcpu_hour / HOUR_S
            + _gb_seconds(item) * rates.gb_hour / HOUR_S
        )

    found = used.usage if used is not None else {}
    known = [found.get(name) for name in life.containers]
    splits = _split_lines(life, lines, known, seconds)
    containers = tuple(
        ContainerBill(
            name=name,
            cpu_seconds=_cpu_seconds(item) if item is not None else None,
            memory_gb_seconds=_gb_seconds(item) if item is not None else None,
            memory_peak_bytes=item.memory_peak_bytes if item is not None else None,
            used_cost=used_cost(item) if item is not None else None,
            cost=sum((split.split_cost + split.unused_cost for split in own), _ZERO),
            splits=own,
        )
        for name, item, own in zip(life.containers, known, splits, strict=True)
    )
    task = found.get(None)
    profile = used.profiles.get(None) if used is not None else None
    spent = used_cost(task) if task is not None else None
    return Bill(
        task_id=life.task_id,
        family=life.family,
        region=prices.region,
        currency=prices.currency,
        price_effective=prices.effective,
        price_source=prices.source,
        is_final=life.stopped_at_ns is not None,
        billed_seconds=seconds,
        lines=tuple(lines),
        cost=cost,
        cpu_seconds=_cpu_seconds(task) if task is not None else None,
        memory_gb_seconds=_gb_seconds(task) if task is not None else None,
        memory_peak_bytes=task.memory_peak_bytes if task is not None else None,
        used_cost=spent,
        idle_share=1 - spent / cost if spent is not None and cost else None,
        estimated_seconds=Decimal(task.estimated_ns if task is not None else 0) / SECOND_NS,
        damaged_records=used.damaged if used is not None else 0,
        capacity=life.capacity,
        right_sizing=right_size(
            cpu_units=life.cpu_units,
            memory_mib=life.memory_mib,
            usage=task,
            profile=profile,
            rates=rates,
            margin=margin,
        )
        if task is not None and profile is not None
        else None,
        containers=containers,
    )


def _split_lines(
    life: BillableLife, lines: Sequence[Line], known: Sequence[Usage | None], seconds: int
) -> list[tuple[Split, ...]]:
    """For each container its part of each line. Ephemeral storage is the task's: split evenly."""
    reserved = life.reservations or (Reservation(),) * len(known)
    hours = Decimal(seconds) / HOUR_S
    by_line: list[list[Split]] = []
    for line in lines:
        if line.meter == "vCPU":
            reservations = [Decimal(item.cpu_units) / CPU_UNITS_PER_VCPU for item in reserved]
            actual = [_cpu_seconds(item) if item is not None else _ZERO for item in known]
        elif line.meter == "Memory":
            reservations = [Decimal(item.memory_mib) / MIB_PER_GB for item in reserved]
            actual = [_gb_seconds(item) if item is not None else _ZERO for item in known]
        else:
            reservations = actual = [_ZERO] * len(known)
        by_line.append(
            split_meter(
                meter=line.meter,
                quantity=line.quantity,
                rate=line.rate,
                cost=line.cost,
                reserved=[item * hours for item in reservations],
                actual=[item / HOUR_S for item in actual],
            )
        )
    return [tuple(row[number] for row in by_line) for number in range(len(known))]


def bill_to_builtins(bill: Bill) -> dict[str, Any]:
    """For JSON: camelCase members, Decimal as strings."""
    built: dict[str, Any] = msgspec.to_builtins(bill)
    return built
