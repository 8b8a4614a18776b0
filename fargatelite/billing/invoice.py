"""Bills of many tasks: what a row of an export needs, cut at days and months, and summed by group.

Pure. Sums are of unrounded amounts (15 decimals, see `bill`); whoever writes an invoice rounds its
lines.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from typing import Literal

import msgspec

from fargatelite.billing.bill import SECOND_NS, Bill, Line
from fargatelite.billing.split import AMOUNT, share
from fargatelite.errors import ConfigurationInvalid

__all__ = [
    "BilledTask",
    "Group",
    "Slice",
    "group_bills",
    "month_of",
    "plain",
    "slice_bill",
    "sum_groups",
]

_ZERO = Decimal(0)
_DIGITS = 50


class BilledTask(msgspec.Struct, frozen=True, kw_only=True):
    """A bill and whose it is."""

    bill: Bill
    arn: str
    account: str
    cluster: str
    group: str
    revision: int
    tags: dict[str, str]
    cpu_units: int
    memory_mib: int
    cpu_architecture: str
    container_arns: dict[str, str]
    begin_ns: int | None
    """Where the charge begins; None for a task that never pulled: there is none."""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a bill that lies in one day or month (UTC)."""

    begin_s: int
    end_s: int
    lines: tuple[Line, ...]


class Group(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A row of a bill over many tasks."""

    key: str
    tasks: int
    billed_seconds: int
    vcpu_hours: Decimal
    gb_hours: Decimal
    cost: Decimal
    currency: str
    used_cost: Decimal | None
    """None where nothing of it was measured."""
    idle_share: Decimal | None
    """Of the cost of those tasks that were measured."""
    monthly_saving: Decimal | None
    """With the sizes that right-sizing would choose, were each task to run all month."""


def plain(value: Decimal) -> str:
    """A number for an export: 15 decimals at most, no exponent, no zeros at its end."""
    text = f"{value.quantize(AMOUNT):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def month_of(at_s: int) -> tuple[datetime, datetime]:
    """The first moment of a month (UTC) and of the next one."""
    first = datetime.fromtimestamp(at_s, UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    return first, (first + timedelta(days=32)).replace(day=1)


def _next_boundary(at_s: int, unit: Literal["day", "month"]) -> int:
    if unit == "day":
        return (at_s // 86400 + 1) * 86400
    return int(month_of(at_s)[1].timestamp())


def slice_bill(task: BilledTask, unit: Literal["day", "month"]) -> list[Slice]:
    """A bill cut at midnights or ends of months; the slices add up to it to the last digit."""
    if task.begin_ns is None:
        return []
    begin_s = task.begin_ns // SECOND_NS
    end_s = begin_s + task.bill.billed_seconds
    cuts = [begin_s]
    while cuts[-1] < end_s:
        cuts.append(min(end_s, _next_boundary(cuts[-1], unit)))
    if len(cuts) == 2:
        return [Slice(begin_s=begin_s, end_s=end_s, lines=task.bill.lines)]
    with localcontext() as context:
        context.prec = _DIGITS
        weights = [Decimal(after - before) for before, after in itertools.pairwise(cuts)]
        parts = [
            (share(line.quantity, weights), share(line.cost, weights)) for line in task.bill.lines
        ]
        return [
            Slice(
                begin_s=cuts[number],
                end_s=cuts[number + 1],
                lines=tuple(
                    msgspec.structs.replace(line, quantity=quantities[number], cost=costs[number])
                    for line, (quantities, costs) in zip(task.bill.lines, parts, strict=True)
                ),
            )
            for number in range(len(weights))
        ]


class _Sum:
    def __init__(self) -> None:
        self.tasks: set[str] = set()
        self.seconds = 0
        self.vcpu_hours = self.gb_hours = self.cost = self.measured_cost = _ZERO
        self.used: Decimal | None = None
        self.saving: Decimal | None = None

    def add(
        self,
        task_id: str,
        lines: Iterable[Line],
        seconds: int,
        used: Decimal | None,
        saving: Decimal | None,
    ) -> None:
        self.tasks.add(task_id)
        self.seconds += seconds
        cost = _ZERO
        for line in lines:
            cost += line.cost
            if line.meter == "vCPU":
                self.vcpu_hours += line.quantity
            elif line.meter == "Memory":
                self.gb_hours += line.quantity
        self.cost += cost
        if used is not None:
            self.used = (self.used or _ZERO) + used
            self.measured_cost += cost
        if saving is not None:
            self.saving = (self.saving or _ZERO) + saving

    def row(self, key: str, currency: str) -> Group:
        has_share = self.used is not None and self.measured_cost
        return Group(
            key=key,
            tasks=len(self.tasks),
            billed_seconds=self.seconds,
            vcpu_hours=self.vcpu_hours,
            gb_hours=self.gb_hours,
            cost=self.cost,
            currency=currency,
            used_cost=self.used,
            idle_share=1 - self.used / self.measured_cost
            if has_share and self.used is not None
            else None,
            monthly_saving=self.saving,
        )


def group_bills(tasks: Iterable[BilledTask], by: str) -> list[Group]:
    """Rows by `task`, `family`, `tag:KEY`, `day` (UTC) or `container`, sorted by key.

    By day, use is taken to be even over a task's billed time. By container, quantities are split
    usage and a task's cost is its containers' (see `split`).
    Raises: ConfigurationInvalid when the bills are of several currencies.
    """
    sums: dict[str, _Sum] = {}
    currency = ""
    with localcontext() as context:
        context.prec = _DIGITS
        for task in tasks:
            bill = task.bill
            if currency and bill.currency != currency:
                raise ConfigurationInvalid(
                    f"bills in {currency} and {bill.currency} cannot be added up; choose tasks of "
                    "one currency"
                )
            currency = bill.currency
            if by == "day":
                _add_days(sums, task)
            elif by == "container":
                _add_containers(sums, task)
            else:
                sizing = bill.right_sizing
                saving = sizing.monthly_saving if sizing is not None else None
                key = _key(task, by)
                sums.setdefault(key, _Sum()).add(
                    bill.task_id, bill.lines, bill.billed_seconds, bill.used_cost, saving
                )
        return [entry.row(key, currency) for key, entry in sorted(sums.items())]


def sum_groups(groups: Iterable[Group]) -> Decimal:
    """What all rows cost together."""
    return sum((group.cost for group in groups), _ZERO)


def _key(task: BilledTask, by: str) -> str:
    if by == "task":
        return task.bill.task_id
    if by == "family":
        return task.bill.family
    if by.startswith("tag:"):
        return task.tags.get(by.removeprefix("tag:"), "")
    raise ValueError(f"cannot group by {by!r}")


def _add_days(sums: dict[str, _Sum], task: BilledTask) -> None:
    slices = slice_bill(task, "day")
    weights = [Decimal(item.end_s - item.begin_s) for item in slices]
    used = share(task.bill.used_cost, weights) if task.bill.used_cost is not None else None
    for number, item in enumerate(slices):
        day = datetime.fromtimestamp(item.begin_s, UTC).strftime("%Y-%m-%d")
        sums.setdefault(day, _Sum()).add(
            task.bill.task_id,
            item.lines,
            item.end_s - item.begin_s,
            used[number] if used is not None else None,
            None,
        )


def _add_containers(sums: dict[str, _Sum], task: BilledTask) -> None:
    bill = task.bill
    for container in bill.containers:
        lines = [
            Line(
                meter=split.meter,
                unit=line.unit,
                quantity=split.split_usage,
                rate=line.rate,
                cost=(split.split_cost + split.unused_cost).quantize(AMOUNT),
            )
            for split, line in zip(container.splits, bill.lines, strict=True)
        ]
        sums.setdefault(f"{bill.family}/{container.name}", _Sum()).add(
            bill.task_id, lines, bill.billed_seconds, container.used_cost, None
        )
