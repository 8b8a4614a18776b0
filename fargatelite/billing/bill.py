"""What a task costs as Fargate bills it, and what of that it used. Pure; money is Decimal.

Two views of the same seconds. The *charge* is Fargate's: configured size times seconds from the
start of the pull to STOPPED, rounded up to a second, at least a minute (contract 7.1). *Usage* is
what the meter saw: CPU seconds and GB-seconds, priced at the same rates. Amounts are rounded (half
to even) at the 15th decimal, so that sums of them are exact in Python's default 28 digits; rounding
to a currency's cents is for the invoice over many rows (contract 7.1).

A container's part of the charge: of vCPU and memory each, containers share by what they used; where
nothing was measured, evenly. The last container gets what is left, so parts add up to the digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from typing import Any

import msgspec

from fargatelite.billing.prices import PriceBook
from fargatelite.errors import ConfigurationInvalid
from fargatelite.meter.ledger import Usage

__all__ = [
    "Bill",
    "BillableLife",
    "ContainerBill",
    "Line",
    "bill_to_builtins",
    "billed_seconds",
    "compute_bill",
]

MINIMUM_S = 60  # Linux (contract 7.1)
INCLUDED_EPHEMERAL_GIB = 20
SECOND_NS = 1_000_000_000
HOUR_S = 3600
CPU_UNITS_PER_VCPU = 1024
MIB_PER_GB = 1024
_DIGITS = 50  # of intermediate results
_AMOUNT = Decimal("1E-15")


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
    containers: tuple[ContainerBill, ...]


def billed_seconds(life: BillableLife) -> int:
    """Whole seconds that are charged: rounded up, at least 60; 0 when no pull ever began."""
    if life.pull_started_at_ns is None:
        return 0
    end_ns = life.stopped_at_ns if life.stopped_at_ns is not None else life.now_ns
    spent_ns = max(0, end_ns - life.pull_started_at_ns)
    return max(MINIMUM_S, -(-spent_ns // SECOND_NS))


def _lines(life: BillableLife, seconds: int, prices: PriceBook) -> list[Line]:
    rates = prices.rates_of(life.cpu_architecture)
    hours = Decimal(seconds) / HOUR_S
    vcpu_hours = Decimal(life.cpu_units) / CPU_UNITS_PER_VCPU * hours
    gb_hours = Decimal(life.memory_mib) / MIB_PER_GB * hours
    lines = [
        Line(meter="vCPU", unit="vCPU-Hours", quantity=vcpu_hours, rate=rates.vcpu_hour,
             cost=_amount(vcpu_hours * rates.vcpu_hour)),
        Line(meter="Memory", unit="GB-Hours", quantity=gb_hours, rate=rates.gb_hour,
             cost=_amount(gb_hours * rates.gb_hour)),
    ]  # fmt: skip
    extra = max(0, life.ephemeral_storage_gib - INCLUDED_EPHEMERAL_GIB)
    if extra:
        rate = prices.ephemeral_gb_hour
        if rate is None:
            raise ConfigurationInvalid(
                f"no price is known for ephemeral storage in {prices.region}; choose another "
                "region for the bill"
            )
        quantity = extra * hours
        lines.append(
            Line(meter="Ephemeral Storage", unit="GB-Hours", quantity=quantity, rate=rate,
                 cost=_amount(quantity * rate))
        )  # fmt: skip
    return lines


def _amount(value: Decimal) -> Decimal:
    return value.quantize(_AMOUNT)


def _cpu_seconds(usage: Usage) -> Decimal:
    return Decimal(usage.cpu_ns) / SECOND_NS


def _gb_seconds(usage: Usage) -> Decimal:
    return Decimal(usage.memory_byte_ns) / SECOND_NS / 2**30


def _split(total: Decimal, weights: list[Decimal]) -> list[Decimal]:
    """`total` in proportion to the weights (evenly when all are 0), adding up exactly."""
    if not weights:
        return []
    whole = sum(weights, Decimal(0))
    if whole == 0:
        weights, whole = [Decimal(1)] * len(weights), Decimal(len(weights))
    parts = [_amount(total * weight / whole) for weight in weights[:-1]]
    return [*parts, total - sum(parts, Decimal(0))]


def compute_bill(
    life: BillableLife, usage: Mapping[str | None, Usage] | None, prices: PriceBook
) -> Bill:
    """The bill of a task. `usage` is by container name, None for the task's own group; a missing
    mapping means that nothing was measured, and is shown as unknown, not as 0.

    Raises: ConfigurationInvalid for a price that is not known.
    Source: contract 7.1.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        return _compute(life, usage, prices)


def _compute(
    life: BillableLife, usage: Mapping[str | None, Usage] | None, prices: PriceBook
) -> Bill:
    seconds = billed_seconds(life)
    lines = _lines(life, seconds, prices)
    rates = prices.rates_of(life.cpu_architecture)
    cost = sum((line.cost for line in lines), Decimal(0))

    def used_cost(item: Usage) -> Decimal:
        return _amount(
            _cpu_seconds(item) * rates.vcpu_hour / HOUR_S
            + _gb_seconds(item) * rates.gb_hour / HOUR_S
        )

    found = usage or {}
    known = [found.get(name) for name in life.containers]
    by_cpu = [_cpu_seconds(item) if item is not None else Decimal(0) for item in known]
    by_memory = [_gb_seconds(item) if item is not None else Decimal(0) for item in known]
    rest = sum((line.cost for line in lines[2:]), Decimal(0))
    parts = [
        sum(three, Decimal(0))
        for three in zip(
            _split(lines[0].cost, by_cpu),
            _split(lines[1].cost, by_memory),
            _split(rest, [Decimal(1)] * len(known)),
            strict=True,
        )
    ]
    containers = tuple(
        ContainerBill(
            name=name,
            cpu_seconds=_cpu_seconds(item) if item is not None else None,
            memory_gb_seconds=_gb_seconds(item) if item is not None else None,
            memory_peak_bytes=item.memory_peak_bytes if item is not None else None,
            used_cost=used_cost(item) if item is not None else None,
            cost=part,
        )
        for name, item, part in zip(life.containers, known, parts, strict=True)
    )
    task = found.get(None)
    used = used_cost(task) if task is not None else None
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
        used_cost=used,
        idle_share=1 - used / cost if used is not None and cost else None,
        estimated_seconds=Decimal(task.estimated_ns if task is not None else 0) / SECOND_NS,
        containers=containers,
    )


def bill_to_builtins(bill: Bill) -> dict[str, Any]:
    """For JSON: camelCase members, Decimal as strings."""
    built: dict[str, Any] = msgspec.to_builtins(bill)
    return built
